//! sendmsg(2) and recvmsg(2) with any ancillary data, as C programs use them.
#![allow(unsafe_code, reason = "no crate here gives control messages of IP")]
#![allow(dead_code, reason = "shared by tests that use parts of it")]

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};

/// One control message: level, type, data.
pub type Control = (i32, i32, Vec<u8>);

/// What one recvmsg(2) gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub name: Option<SocketAddrV4>,
    pub data: Vec<u8>,
    pub controls: Vec<Control>,
    pub flags: i32,
}

impl Message {
    /// The data of a control message.
    pub fn control(&self, level: i32, kind: i32) -> Option<&[u8]> {
        let mut controls = self.controls.iter();
        controls
            .find(|control| (control.0, control.1) == (level, kind))
            .map(|control| control.2.as_slice())
    }

    /// A word in a control message; 0 when there is none.
    pub fn word(&self, level: i32, kind: i32, at: usize) -> u32 {
        let data = self.control(level, kind).and_then(|data| data.get(at..));
        let word = data.and_then(|data| data.first_chunk());
        word.map_or(0, |word| u32::from_ne_bytes(*word))
    }
}

pub fn name(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}

pub fn address(name: &libc::sockaddr_in) -> SocketAddrV4 {
    let ip = Ipv4Addr::from(name.sin_addr.s_addr.to_ne_bytes());
    SocketAddrV4::new(ip, u16::from_be(name.sin_port))
}

/// Receives one message without waiting; None: there is none.
pub fn receive(socket: &impl AsFd, flags: i32) -> io::Result<Option<Message>> {
    let mut data = vec![0; 70_000];
    let mut control = vec![0_u64; 256];
    // SAFETY: both are plain data for which all zeroes is a value.
    let mut from: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: as above.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut from).cast();
    header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len() * 8;
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: every address in `header` is that of a live buffer with its size.
    let size = unsafe { libc::recvmsg(socket, &raw mut header, flags | libc::MSG_DONTWAIT) };
    let Ok(size) = usize::try_from(size) else {
        let error = io::Error::last_os_error();
        let is_empty = error.kind() == io::ErrorKind::WouldBlock;
        return if is_empty { Ok(None) } else { Err(error) };
    };
    data.truncate(size);
    let named = header.msg_namelen >= 8 && i32::from(from.sin_family) == libc::AF_INET;
    Ok(Some(Message {
        name: named.then(|| address(&from)),
        data,
        controls: controls(&header),
        flags: header.msg_flags,
    }))
}

fn controls(header: &libc::msghdr) -> Vec<Control> {
    let mut all = Vec::new();
    // SAFETY: the kernel filled `header` and its control buffer, which is aligned and alive.
    let mut at = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !at.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give headers inside of the buffer.
        let control = unsafe { at.read() };
        // SAFETY: as above.
        let start = unsafe { libc::CMSG_DATA(at) };
        // SAFETY: zero is as good a length as any.
        let size = control.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
        // SAFETY: the data of a control message of `cmsg_len` bytes.
        let data = unsafe { std::slice::from_raw_parts(start, size) };
        all.push((control.cmsg_level, control.cmsg_type, data.to_vec()));
        // SAFETY: as for CMSG_FIRSTHDR.
        at = unsafe { libc::CMSG_NXTHDR(header, at) };
    }
    all
}

/// Sends one message with control messages.
pub fn send(
    socket: &impl AsFd,
    to: SocketAddrV4,
    data: &[u8],
    controls: &[Control],
    flags: i32,
) -> io::Result<()> {
    let mut to = name(to);
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    let control = encode(controls);
    // SAFETY: a plain structure for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut to).cast();
    header.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_ptr().cast_mut().cast();
    header.msg_controllen = control.len();
    // SAFETY: every address in `header` is that of a live buffer with its size.
    let sent = unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const header, flags) };
    if usize::try_from(sent) == Ok(data.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct cmsghdr` after `struct cmsghdr`, as the kernel reads them.
fn encode(controls: &[Control]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (level, kind, data) in controls {
        bytes.extend((16 + data.len()).to_ne_bytes());
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
    bytes
}

/// Switches an offload of a device on or off (`ETHTOOL_S...`).
pub fn offload(device: &str, command: u32, value: u32) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut setting = [command, value];
    // SAFETY: a plain structure for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let place = request.ifr_name.iter_mut();
    for (to, from) in place.zip(device.bytes()).take(libc::IFNAMSIZ - 1) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = setting.as_mut_ptr().cast();
    let socket = socket.as_raw_fd();
    // SAFETY: SIOCETHTOOL reads a `struct ethtool_value` at `ifru_data`, which is alive.
    let done = unsafe { libc::ioctl(socket, 0x8946, &raw mut request) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
