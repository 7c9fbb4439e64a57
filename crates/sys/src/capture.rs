//! Packet sockets: every frame that passes a device.

use crate::check;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Opens a socket that receives every frame of one device, in and out (CAP_NET_RAW).
pub fn open(device: u32) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket(2) takes numbers.
    let fd = check(unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(all)) })?;
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: sockaddr_ll is plain data for which all zeroes is a value.
    let mut name: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    name.sll_family = libc::AF_PACKET as u16;
    name.sll_protocol = all;
    name.sll_ifindex = device as i32;
    let size = size_of_val(&name) as libc::socklen_t;
    // SAFETY: bind(2) reads `size` bytes of the name.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const name).cast(), size) })?;
    Ok(socket)
}
