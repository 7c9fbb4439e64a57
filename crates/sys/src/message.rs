//! Datagrams with their control messages: recvmsg(2), recvmmsg(2) and sendmmsg(2).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The `struct cmsghdr` before each payload: a length of a machine word, a level and a kind.
const HEAD: usize = size_of::<libc::cmsghdr>();
const WORD: usize = size_of::<usize>();

/// A `struct sockaddr_in` or `sockaddr_in6`, as it lies in memory.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(4))]
struct Name([u8; SOCKADDR_IN6]);

const SOCKADDR_IN: usize = size_of::<libc::sockaddr_in>();
const SOCKADDR_IN6: usize = size_of::<libc::sockaddr_in6>();

impl Name {
    fn of(address: SocketAddr) -> Self {
        let family = if address.is_ipv6() {
            libc::AF_INET6
        } else {
            libc::AF_INET
        };
        let mut bytes = (family as libc::sa_family_t).to_ne_bytes().to_vec();
        bytes.extend(address.port().to_be_bytes());
        match address {
            SocketAddr::V4(address) => bytes.extend(address.ip().octets()),
            SocketAddr::V6(address) => {
                bytes.extend(address.flowinfo().to_be_bytes());
                bytes.extend(address.ip().octets());
                bytes.extend(address.scope_id().to_ne_bytes());
            }
        }
        let mut name = Self::default();
        for (to, from) in name.0.iter_mut().zip(bytes) {
            *to = from;
        }
        name
    }

    fn size(address: SocketAddr) -> libc::socklen_t {
        let size = if address.is_ipv6() {
            SOCKADDR_IN6
        } else {
            SOCKADDR_IN
        };
        size as libc::socklen_t
    }

    /// The address of which the kernel wrote so many bytes.
    fn address(&self, length: libc::socklen_t) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, rest @ ..] = self.0;
        let family = i32::from(libc::sa_family_t::from_ne_bytes([f0, f1]));
        let port = u16::from_be_bytes([p0, p1]);
        let (head, rest) = rest.split_first_chunk::<4>()?;
        let (address, scope) = rest.split_first_chunk::<16>()?;
        match length as usize {
            SOCKADDR_IN.. if family == libc::AF_INET => {
                Some(SocketAddr::new(Ipv4Addr::from(*head).into(), port))
            }
            SOCKADDR_IN6.. if family == libc::AF_INET6 => {
                let scope = u32::from_ne_bytes(*scope.first_chunk()?);
                let flow = u32::from_be_bytes(*head);
                Some(SocketAddrV6::new(Ipv6Addr::from(*address), port, flow, scope).into())
            }
            _ => None,
        }
    }
}

/// What [`receive`] says of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The bytes written to the buffer; with `MSG_TRUNC` asked for, those of the whole datagram.
    pub length: usize,
    /// The bytes written to the control buffer: see [`control_messages`].
    pub control_length: usize,
    /// `MSG_TRUNC`, `MSG_CTRUNC` and the like.
    pub flags: i32,
    /// Who sent it, if that has an IP address.
    pub source: Option<SocketAddr>,
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
    let mut from = Name::default();
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
    Ok(Received {
        length,
        control_length: (header.msg_controllen as usize).min(control.len()),
        flags: header.msg_flags,
        source: from.address(header.msg_namelen),
    })
}

/// The parts a datagram is gathered from.
pub const PARTS: usize = 2;

/// A datagram to send.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Where to.
    pub to: SocketAddr,
    /// Control messages, each appended by [`add_control`].
    pub control: &'a [u8],
    /// The bytes, gathered.
    pub parts: [&'a [u8]; PARTS],
}

/// Appends a control message: `struct cmsghdr`, `data`, and what aligns the next one.
pub fn add_control(control: &mut Vec<u8>, level: i32, kind: i32, data: &[u8]) {
    let length = size_of::<libc::cmsghdr>() + data.len();
    control.extend(length.to_ne_bytes());
    control.extend(level.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(data);
    control.resize(control.len().next_multiple_of(size_of::<usize>()), 0);
}

/// Sends datagrams in order until one fails, with these `MSG_...` flags; answers how many were sent. The error is that of the
/// first, when not even that one was.
pub fn send_many(
    socket: BorrowedFd<'_>,
    datagrams: &[Outgoing<'_>],
    flags: i32,
) -> io::Result<usize> {
    let names: Vec<Name> = datagrams.iter().map(|one| Name::of(one.to)).collect();
    let parts: Vec<[libc::iovec; PARTS]> =
        datagrams.iter().map(|one| one.parts.map(vector)).collect();
    let together = datagrams.iter().zip(&names).zip(&parts);
    let mut headers: Vec<libc::mmsghdr> = together
        .map(|((one, name), parts)| header(one, name, parts))
        .collect();
    let count = libc::c_uint::try_from(headers.len()).map_err(io::Error::other)?;
    loop {
        // SAFETY: each of the `count` headers has the address and size of a name, of vectors and
        // of control data that outlive the call; the kernel only reads through them, and writes
        // the `msg_len` of the headers.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, flags) };
        if let Ok(sent) = usize::try_from(sent) {
            return Ok(sent);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

/// A header that only holds addresses: using it is what needs them to be alive.
fn header(datagram: &Outgoing<'_>, name: &Name, parts: &[libc::iovec; PARTS]) -> libc::mmsghdr {
    // SAFETY: mmsghdr is plain data for which all zeroes is a value.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_name = std::ptr::from_ref(name).cast_mut().cast();
    header.msg_hdr.msg_namelen = Name::size(datagram.to);
    header.msg_hdr.msg_iov = parts.as_ptr().cast_mut();
    header.msg_hdr.msg_iovlen = PARTS as _;
    header.msg_hdr.msg_control = datagram.control.as_ptr().cast_mut().cast();
    header.msg_hdr.msg_controllen = datagram.control.len() as _;
    header
}

/// A datagram that was received with others.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// What there was room for of its bytes.
    pub data: &'a [u8],
    /// Its control messages: see [`control_messages`].
    pub control: &'a [u8],
    /// `MSG_TRUNC`, `MSG_CTRUNC` and the like.
    pub flags: i32,
    /// Who sent it, if that has an IP address.
    pub source: Option<SocketAddr>,
}

/// What is filled of the room at this place.
fn filled(rooms: &[u8], at: usize, room: usize, length: usize) -> &[u8] {
    let rest = rooms.get(at * room..).unwrap_or_default();
    rest.get(..length.min(room)).unwrap_or_default()
}

/// Room for many datagrams that are received at once.
#[derive(Debug)]
pub struct Batch {
    data: Vec<u8>,
    control: Vec<u8>,
    /// The bytes of data and of control messages that each may have.
    room: (usize, usize),
    names: Vec<Name>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in it are to memory that it owns, and are used by `receive` alone.
unsafe impl Send for Batch {}

impl Batch {
    /// Room for `count` datagrams of at most `size` bytes, with `control` bytes of control messages.
    #[must_use]
    pub fn new(count: usize, size: usize, control: usize) -> Self {
        Self {
            data: vec![0; count * size],
            control: vec![0; count * control],
            room: (size, control),
            names: vec![Name::default(); count],
            parts: Vec::with_capacity(count),
            headers: Vec::with_capacity(count),
        }
    }

    /// Receives as many as are there, in order, without waiting for more, with these `MSG_...` flags;
    /// answers how many. An error is that of the first; one that comes later stays with the socket
    /// (`do_recvmmsg`).
    pub fn receive(&mut self, socket: BorrowedFd<'_>, flags: i32) -> io::Result<usize> {
        self.aim();
        let count = libc::c_uint::try_from(self.headers.len()).map_err(io::Error::other)?;
        let flags = flags | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        // SAFETY: `aim` has just pointed each of the `count` headers at memory of this batch,
        // borrowed mutably for the whole call, with its length; the kernel writes no more.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                flags as _,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }

    /// What stands in the rooms, of which the last call has filled the first ones.
    pub fn messages(&self) -> impl Iterator<Item = Message<'_>> {
        let (size, control) = self.room;
        let rooms = self.headers.iter().zip(&self.names).enumerate();
        rooms.map(move |(at, (header, name))| {
            let told = header.msg_hdr.msg_controllen;
            Message {
                data: filled(&self.data, at, size, header.msg_len as usize),
                control: filled(&self.control, at, control, told),
                flags: header.msg_hdr.msg_flags,
                source: name.address(header.msg_hdr.msg_namelen),
            }
        })
    }

    /// Points the headers at the rooms; the kernel has written lengths over those of the last call.
    fn aim(&mut self) {
        let (size, control) = self.room;
        let (data, controls) = (self.data.as_mut_ptr(), self.control.as_mut_ptr());
        self.parts.clear();
        let rooms = (0..self.names.len()).map(|at| libc::iovec {
            iov_base: data.wrapping_add(at * size).cast(),
            iov_len: size,
        });
        self.parts.extend(rooms);
        self.headers.clear();
        for (at, (name, part)) in self.names.iter_mut().zip(&mut self.parts).enumerate() {
            // SAFETY: mmsghdr is plain data for which all zeroes is a value.
            let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
            header.msg_hdr.msg_name = std::ptr::from_mut(name).cast();
            header.msg_hdr.msg_namelen = SOCKADDR_IN6 as libc::socklen_t;
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = controls.wrapping_add(at * control).cast();
            header.msg_hdr.msg_controllen = control as _;
            self.headers.push(header);
        }
    }
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
        assert_eq!(received.source, Some(sender.local_addr()?));
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
    fn many_at_once_in_order() -> io::Result<()> {
        let (socket, sender) = (
            UdpSocket::bind("127.0.0.1:0")?,
            UdpSocket::bind("127.0.0.1:0")?,
        );
        let mut batch = Batch::new(2, 4, 0);
        for round in [b"a", b"b"] {
            for data in [&round.repeat(9)[..], b"", round] {
                sender.send_to(data, socket.local_addr()?)?;
            }
            assert_eq!(batch.receive(socket.as_fd(), 0)?, 2);
            let data: Vec<&[u8]> = batch.messages().map(|message| message.data).collect();
            assert_eq!(data[..2], [&round.repeat(4)[..], b""]);
            assert_eq!(batch.receive(socket.as_fd(), 0)?, 1);
            assert_eq!(
                batch.messages().next().map(|message| message.data),
                Some(&round[..])
            );
        }
        let nothing = batch
            .receive(socket.as_fd(), 0)
            .map_err(|error| error.kind());
        assert_eq!(nothing, Err(io::ErrorKind::WouldBlock));
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
