//! Datagrams with their control messages: recvmsg(2).

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The `struct cmsghdr` before each payload: a length of a machine word, a level and a kind.
const HEAD: usize = size_of::<libc::cmsghdr>();
const WORD: usize = size_of::<usize>();

/// What [`receive`] says of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The bytes written to the buffer; with `MSG_TRUNC` asked for, those of the whole datagram.
    pub length: usize,
    /// The bytes written to the control buffer: see [`control_messages`].
    pub control_length: usize,
    /// `MSG_TRUNC`, `MSG_CTRUNC` and the like.
    pub flags: i32,
    /// Who sent it, if that has an IPv4 address.
    pub source: Option<SocketAddrV4>,
}

/// Receives one datagram and the control messages that came with it.
///
/// Descriptors among these (`SCM_RIGHTS`) are close-on-exec and belong to nobody.
pub fn receive(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &mut [u8],
    flags: i32,
) -> io::Result<Received> {
    // SAFETY: sockaddr_in is plain data for which all zeroes is a value.
    let mut from: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    let mut part = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut from).cast();
    header.msg_namelen = size_of_val(&from) as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = control.len().min(i32::MAX as usize) as _;
    let flags = flags | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: every pointer of the header is to writable memory of the length beside it, and the
    // kernel writes no more than that.
    let length = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut header, flags) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let is_ipv4 = header.msg_namelen as usize >= size_of_val(&from)
        && i32::from(from.sin_family) == libc::AF_INET;
    let address = Ipv4Addr::from(from.sin_addr.s_addr.to_ne_bytes());
    Ok(Received {
        length,
        control_length: (header.msg_controllen as usize).min(control.len()),
        flags: header.msg_flags,
        source: is_ipv4.then(|| SocketAddrV4::new(address, u16::from_be(from.sin_port))),
    })
}

/// Sends one datagram with control messages, each a `struct cmsghdr` as the kernel reads it;
/// answers the bytes sent.
pub fn send(
    fd: BorrowedFd<'_>,
    to: SocketAddrV4,
    data: &[u8],
    control: &[u8],
    flags: i32,
) -> io::Result<usize> {
    let mut to = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(to.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    let mut part = libc::iovec {
        iov_base: data.as_ptr().cast_mut().cast(),
        iov_len: data.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut to).cast();
    header.msg_namelen = size_of_val(&to) as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_ptr().cast_mut().cast();
    header.msg_controllen = control.len() as _;
    // SAFETY: every pointer of the header is to readable memory of the length beside it, and the
    // kernel only reads it.
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const header, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// One control message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlMessage<'a> {
    /// `SOL_SOCKET`, `IPPROTO_IP`, ...
    pub level: i32,
    /// `SCM_...`, `IP_...`, ...
    pub kind: i32,
    /// What it says.
    pub payload: &'a [u8],
}

/// Reads the control messages in what [`receive`] wrote. Bytes that are no whole message end it.
pub fn control_messages(mut bytes: &[u8]) -> impl Iterator<Item = ControlMessage<'_>> {
    std::iter::from_fn(move || {
        let (head, _) = bytes.split_first_chunk::<HEAD>()?;
        let (length, names) = head.split_first_chunk::<WORD>()?;
        let (level, rest) = names.split_first_chunk()?;
        let kind = rest.first_chunk()?;
        let length = usize::from_ne_bytes(*length);
        let message = ControlMessage {
            level: i32::from_ne_bytes(*level),
            kind: i32::from_ne_bytes(*kind),
            payload: bytes.get(HEAD..length)?,
        };
        let next = length.next_multiple_of(WORD);
        bytes = bytes.get(next..).unwrap_or_default();
        Some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    #[test]
    fn a_datagram_with_what_was_asked_for() -> io::Result<()> {
        const IP_RECVTTL: i32 = 12;
        const IP_TTL: i32 = 2;
        let (socket, sender) = (
            UdpSocket::bind("127.0.0.1:0")?,
            UdpSocket::bind("127.0.0.1:0")?,
        );
        crate::sockopt::set(socket.as_fd(), 0, IP_RECVTTL, &1i32.to_ne_bytes())?;
        sender.set_ttl(3)?;
        sender.send_to(b"hello", socket.local_addr()?)?;
        let (mut buffer, mut control) = ([0; 4], [0; 64]);
        let received = receive(socket.as_fd(), &mut buffer, &mut control, 0)?;
        assert_eq!((received.length, &buffer), (4, b"hell"));
        assert_ne!(received.flags & libc::MSG_TRUNC, 0);
        assert_eq!(received.source.map(Into::into), Some(sender.local_addr()?));
        let messages: Vec<_> = control_messages(&control[..received.control_length]).collect();
        let ttl = ControlMessage {
            level: 0,
            kind: IP_TTL,
            payload: &3i32.to_ne_bytes(),
        };
        assert_eq!(messages, [ttl]);
        Ok(())
    }

    #[test]
    fn damaged_control_messages_end_the_list() {
        for length in [0, 1, HEAD - 1, HEAD + 5, usize::MAX] {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.resize(HEAD + 4, 0);
            assert_eq!(control_messages(&bytes).count(), 0, "{length}");
        }
        assert_eq!(control_messages(&[0; HEAD - 1]).count(), 0);
    }
}
