//! Network devices as a socket sees them: the ioctls act in the network namespace of the socket
//! (`sock_ioctl`, net/socket.c), whichever one the caller is in.

use crate::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The longest device name, its NUL included.
pub const NAME_SIZE: usize = libc::IFNAMSIZ;

/// The name of the device with this index; `ENODEV` when there is none.
pub fn name(socket: BorrowedFd<'_>, index: u32) -> io::Result<String> {
    let mut request = request("")?;
    request.ifr_ifru.ifru_ifindex = index as libc::c_int;
    ioctl(socket, libc::SIOCGIFNAME, &mut request)?;
    let bytes: Vec<u8> = request
        .ifr_name
        .iter()
        .map(|&c| c as u8)
        .take_while(|&c| c != 0)
        .collect();
    String::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The index of the device with this name; `ENODEV` when there is none.
pub fn index(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = request(name)?;
    ioctl(socket, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: SIOCGIFINDEX succeeded, so the kernel wrote the ifru_ifindex member.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex } as u32)
}

/// Brings a device up (needs CAP_NET_ADMIN in the user namespace of the network namespace).
pub fn bring_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name)?;
    ioctl(socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS succeeded, so the kernel wrote the ifru_flags member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    ioctl(socket, libc::SIOCSIFFLAGS, &mut request)
}

/// The commands of ethtool that read one `struct ethtool_value` and write nothing:
/// ETHTOOL_SRXCSUM, STXCSUM, SSG, STSO, SUFO, SGSO, SFLAGS, SGRO.
const SET_OFFLOAD: [u32; 8] = [0x15, 0x17, 0x19, 0x1f, 0x22, 0x24, 0x26, 0x2c];

/// Switches an offload of a device on or off, by one of `SET_OFFLOAD`.
pub fn set_offload(socket: BorrowedFd<'_>, name: &str, command: u32, value: u32) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    if !SET_OFFLOAD.contains(&command) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut setting = [command, value];
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = setting.as_mut_ptr().cast();
    ioctl(socket, SIOCETHTOOL, &mut request)
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= NAME_SIZE {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    // SAFETY: ifreq is plain data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn ioctl(socket: BorrowedFd<'_>, call: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the SIOC[GS]IF* calls used here read and write one ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), call, std::ptr::from_mut(request)) })?;
    Ok(())
}
