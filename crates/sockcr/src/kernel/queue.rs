//! What waits in a socket for its owner: datagrams and errors, read without taking anything.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;

use super::btf::Field;
use super::buffer::{Buffer, Buffers};
use super::copier::{Copier, Head, Sock, Tried, steady};
use super::reader::{Reader, address, damaged};
use super::walk::View;

/// The smallest IPv4 header, and a UDP header.
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const IPPROTO_UDP: u64 = 17;
/// `enum` of `skb->ip_summed`: somebody made sure of the checksum, or it is made on the way out.
const CHECKSUM_UNNECESSARY: u64 = 1;
const CHECKSUM_COMPLETE: u64 = 2;
const CHECKSUM_PARTIAL: u64 = 3;
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;

/// A datagram in the receive queue, as recvmsg(2) with every option would tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Who sent it: address and port of its headers, also 0.0.0.0 and port 0.
    pub source: SocketAddrV4,
    /// Whom it was sent to (IP_ORIGDSTADDR), also a group or a broadcast address.
    pub destination: SocketAddrV4,
    /// IP_RECVTTL.
    pub ttl: u8,
    /// IP_RECVTOS.
    pub tos: u8,
    /// The interface it arrived at (`skb->skb_iif`), whatever options were on.
    pub interface: u32,
    /// The interface that IP_PKTINFO tells (`PKTINFO_SKB_CB`): 0 when the option was off at
    /// arrival.
    pub pktinfo_interface: u32,
    /// `ipi_spec_dst` of IP_PKTINFO: 0.0.0.0 when the option was off at arrival.
    pub pktinfo_address: Ipv4Addr,
    /// When it arrived, in nanoseconds since the epoch (`skb->tstamp`). 0: nobody wanted to know
    /// then, and the first to ask will be told the time of asking.
    pub received_at: i64,
    /// SO_RCVMARK.
    pub mark: u32,
    /// SO_RCVPRIORITY.
    pub priority: u32,
    /// The bytes of one datagram, when UDP_GRO put several together (`gso_size`); else 0.
    pub segment_size: u16,
    /// IP_RECVFRAGSIZE: the biggest fragment it came in, 0 when it came whole.
    pub fragment_size: u16,
    /// IP_CHECKSUM tells the sum that the device made (`CHECKSUM_COMPLETE`).
    pub summed: bool,
    /// The hardware gave it a time (SO_TIMESTAMPING).
    pub hardware_time: bool,
    /// A firewall gave it a security mark (IP_PASSSEC).
    pub security_mark: bool,
    /// SO_RXQ_OVFL: the drops before it; 0 when the option was off at arrival.
    pub drops: u32,
    /// Somebody peeked at it, and it is empty: who peeks with SO_PEEK_OFF does not see it again
    /// (`skb->peeked`).
    pub peeked: bool,
    /// IP_RECVOPTS: the options of its IP header, as they came.
    pub ip_options: Vec<u8>,
    /// Its data.
    pub payload: Vec<u8>,
}

/// An entry of the error queue, as MSG_ERRQUEUE would tell it (`struct sock_extended_err`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// `ee_errno`
    pub error: i32,
    /// `ee_origin`: `SO_EE_ORIGIN_...`
    pub origin: u8,
    /// `ee_type`
    pub kind: u8,
    /// `ee_code`
    pub code: u8,
    /// `ee_info`
    pub info: u32,
    /// `ee_data`
    pub data: u32,
    /// A socket with SO_TIMESTAMPING is told SCM_TIMESTAMPING_OPT_STATS with it. In ICMP errors the
    /// kernel does not set it (`ip_icmp_error`): a BPF program that the message has passed may have.
    pub statistics: bool,
    /// Who sent the ICMP message, with port 0; errors of another origin have none.
    pub offender: Option<SocketAddrV4>,
    /// Where the datagram was going that made the error (`msg_name`), when the kernel says so.
    pub destination: Option<SocketAddrV4>,
    /// When it came, as in [`Queued`]; of a time stamp entry the stamp.
    pub received_at: i64,
    /// IP_RECVTTL of the ICMP message; 0 for errors of another origin, as all below.
    pub ttl: u8,
    /// IP_RECVTOS of the ICMP message.
    pub tos: u8,
    /// Whom the ICMP message was sent to.
    pub local: Ipv4Addr,
    /// The second word of the ICMP header: an MTU, a pointer, the length of RFC 4884.
    pub rest: [u8; 4],
    /// The index of the device that the ICMP message came by (`IPCB(skb)->iif`).
    pub interface: u32,
    /// The data of the datagram, as far as the error quotes it.
    pub payload: Vec<u8>,
}

impl Reader {
    /// The datagrams that wait in an IPv4 UDP socket, in the order they will be read:
    /// `udp_sock.reader_queue`, then `sk_receive_queue`. One with a wrong checksum, which
    /// recvmsg(2) would throw away, is left out.
    ///
    /// The first datagrams that wait are seen as of one moment; what arrives meanwhile may be in
    /// or not. `WouldBlock`: the owner reads all the time. `Unsupported`: no such socket, or its
    /// memory cannot be read. Nothing is changed.
    pub fn receive_queue(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<Queued>> {
        steady(|| self.try_receive_queue(socket))
    }

    fn try_receive_queue(&self, socket: BorrowedFd<'_>) -> Tried<Vec<Queued>> {
        let before = self.heads(socket)?;
        if before.iter().all(Head::is_empty) {
            return Ok(Some(Vec::new()));
        }
        let copier = Copier::new(self)?;
        let waiting = before.iter().map(|head| head.length).sum::<usize>();
        let mut queued = Vec::with_capacity(waiting.min(1 << 20));
        for head in &before {
            let done = copier.queue(head, View::Headers, |buffer, payload| {
                queued.extend(datagram(buffer, payload)?);
                Ok(())
            })?;
            if done.is_none() {
                return Ok(None);
            }
        }
        let after = self.heads(socket)?;
        let mut pairs = after.iter().zip(&before);
        Ok(pairs
            .all(|(after, before)| after.extends(before))
            .then_some(queued))
    }

    /// The heads of the receive queues, in the order of reading.
    fn heads(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<Head>> {
        let layout = self.buffers()?;
        let sock = self.udp(socket)?;
        let offsets = layout.heads.reader.into_iter();
        offsets
            .chain([layout.heads.receive])
            .map(|offset| Head::of(layout, &sock.raw, sock.address, offset))
            .collect()
    }

    /// The sock of an IPv4 UDP socket.
    pub(super) fn udp(&self, socket: BorrowedFd<'_>) -> io::Result<Sock> {
        let sock = self.ipv4(socket)?;
        if sock.raw.len() < self.layout.udp.size {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is not a UDP socket",
            ));
        }
        Ok(sock)
    }

    fn ipv4(&self, socket: BorrowedFd<'_>) -> io::Result<Sock> {
        let sock = self.sock(socket)?;
        let family = self.layout.sock.family.value(&sock.raw);
        if family == Some(u64::from(rustix::net::AddressFamily::INET.as_raw())) {
            Ok(sock)
        } else {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is not an IPv4 socket",
            ))
        }
    }

    /// The errors that wait in an IPv4 socket with IP_RECVERR, and its transmit time stamps and
    /// zero-copy notices: `sk_error_queue`, oldest first. As [`receive_queue`](Self::receive_queue)
    /// otherwise.
    pub fn error_queue(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<ErrorEntry>> {
        steady(|| self.try_error_queue(socket))
    }

    fn try_error_queue(&self, socket: BorrowedFd<'_>) -> Tried<Vec<ErrorEntry>> {
        let layout = self.buffers()?;
        let head = |sock: &Sock| Head::of(layout, &sock.raw, sock.address, layout.heads.error);
        let before = head(&self.ipv4(socket)?)?;
        let mut entries = Vec::new();
        if before.is_empty() {
            return Ok(Some(entries));
        }
        let done = Copier::new(self)?.queue(&before, View::Headers, |buffer, payload| {
            entries.push(error_entry(buffer, payload)?);
            Ok(())
        })?;
        let after = head(&self.ipv4(socket)?)?;
        Ok(done.filter(|()| after.extends(&before)).map(|()| entries))
    }
}

/// The IP header and what follows it, in the window of a buffer.
struct Headers<'a> {
    bytes: &'a [u8],
    /// Where the transport header begins.
    transport: usize,
}

impl<'a> Headers<'a> {
    /// The headers of a datagram.
    fn of(buffer: &Buffer<'a>) -> io::Result<Self> {
        let skb = &buffer.layout.skb;
        let network = buffer.get(skb.network_header)? as usize;
        let transport = buffer.get(skb.transport_header)? as usize;
        let transport = transport.checked_sub(network).ok_or_else(damaged)?;
        let bytes = buffer.window;
        let version = bytes.first().ok_or_else(damaged)? >> 4;
        if version != 4 {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "a datagram of another protocol than IPv4",
            ));
        }
        if transport < IP_HEADER || transport + UDP_HEADER > bytes.len() {
            return Err(damaged());
        }
        Ok(Self { bytes, transport })
    }

    fn byte(&self, at: usize) -> io::Result<u8> {
        self.bytes.get(at).copied().ok_or_else(damaged)
    }

    fn port(&self, at: usize) -> io::Result<u16> {
        Ok(u16::from_be_bytes([self.byte(at)?, self.byte(at + 1)?]))
    }

    fn end_point(&self, address: usize, port: usize) -> io::Result<SocketAddrV4> {
        Ok(SocketAddrV4::new(
            ip(self.bytes, address)?,
            self.port(self.transport + port)?,
        ))
    }

    fn options(&self) -> &'a [u8] {
        self.bytes
            .get(IP_HEADER..self.transport)
            .unwrap_or_default()
    }
}

fn ip(bytes: &[u8], at: usize) -> io::Result<Ipv4Addr> {
    let raw: &[u8; 4] = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .ok_or_else(damaged)?;
    Ok(Ipv4Addr::from(*raw))
}

/// The datagram in a buffer; None: recvmsg(2) would throw it away.
fn datagram(buffer: &Buffer<'_>, payload: Vec<u8>) -> io::Result<Option<Queued>> {
    let headers = Headers::of(buffer)?;
    let (layout, control) = (buffer.layout, &buffer.layout.control);
    if !checked(buffer)? && !is_intact(&headers, &payload)? {
        return Ok(None);
    }
    Ok(Some(Queued {
        source: headers.end_point(12, 0)?,
        destination: headers.end_point(16, 2)?,
        ttl: headers.byte(8)?,
        tos: headers.byte(1)?,
        interface: buffer.get(layout.skb.interface)? as u32,
        pktinfo_interface: buffer.get(control.interface)? as u32,
        pktinfo_address: address(buffer.get(control.address)? as u32),
        received_at: stamp(buffer, layout)?,
        mark: buffer.get(layout.skb.mark)? as u32,
        priority: buffer.get(layout.skb.priority)? as u32,
        segment_size: buffer.shared(layout.shared.segment_size)? as u16,
        fragment_size: buffer.optional(control.fragment_size)? as u16,
        summed: buffer.get(layout.skb.checksum_state)? == CHECKSUM_COMPLETE,
        hardware_time: match layout.shared.hardware_time {
            Some(time) => buffer.shared(time)? != 0,
            None => false,
        },
        security_mark: buffer.optional(layout.skb.security_mark)? != 0,
        drops: buffer.optional(control.drops)? as u32,
        peeked: payload.is_empty() && buffer.get(layout.skb.peeked)? != 0,
        ip_options: headers.options().to_vec(),
        payload,
    }))
}

/// `skb->tstamp` when it is real time.
fn stamp(buffer: &Buffer<'_>, layout: &Buffers) -> io::Result<i64> {
    if buffer.optional(layout.skb.clock)? != 0 {
        return Ok(0);
    }
    Ok(buffer.get(layout.skb.time)?.cast_signed())
}

/// Whether the kernel will not look at the checksum any more (`udp_skb_csum_unnecessary`,
/// `skb_csum_unnecessary`).
fn checked(buffer: &Buffer<'_>) -> io::Result<bool> {
    let skb = &buffer.layout.skb;
    let is_set = |field: Option<Field>| Ok::<bool, io::Error>(buffer.optional(field)? != 0);
    let state = buffer.get(skb.checksum_state)?;
    Ok(matches!(state, CHECKSUM_UNNECESSARY | CHECKSUM_PARTIAL)
        || is_set(Some(skb.checksum_valid))?
        || is_set(buffer.layout.control.checked)?
        || buffer.shared(buffer.layout.shared.segment_size)? != 0)
}

/// Whether the checksum of a datagram is right, or there is none.
fn is_intact(headers: &Headers<'_>, payload: &[u8]) -> io::Result<bool> {
    let header = headers.bytes.get(headers.transport..);
    let header = header
        .and_then(|rest| rest.get(..UDP_HEADER))
        .ok_or_else(damaged)?;
    let protocol = headers.byte(9)?;
    if u64::from(protocol) != IPPROTO_UDP || header.ends_with(&[0, 0]) {
        return Ok(true);
    }
    let addresses = headers.bytes.get(12..IP_HEADER).ok_or_else(damaged)?;
    let length = (UDP_HEADER + payload.len()) as u64;
    let sum = [addresses, header, payload].into_iter().map(sum);
    let mut sum = sum.sum::<u64>() + IPPROTO_UDP + length;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Ok(sum == 0xffff)
}

/// The sum of 16-bit words in network order.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let last = rest.first().map_or(0, |byte| u64::from(*byte) << 8);
    let words = words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)));
    words.sum::<u64>() + last
}

/// `ip_recv_error` says what of an entry counts.
fn error_entry(buffer: &Buffer<'_>, payload: Vec<u8>) -> io::Result<ErrorEntry> {
    let (layout, ee) = (buffer.layout, &buffer.layout.error);
    let origin = buffer.get(ee.origin)? as u8;
    let port = u16::from_be(buffer.get(ee.port)? as u16);
    let place = buffer.get(ee.address)? as usize;
    let named = matches!(origin, ORIGIN_LOCAL | ORIGIN_ICMP) || port != 0;
    let destination = || Ok(SocketAddrV4::new(ip(buffer.window, place)?, port));
    let notice = match origin == ORIGIN_ICMP {
        true => Notice::of(buffer)?,
        false => Notice::default(),
    };
    Ok(ErrorEntry {
        error: buffer.get(ee.error)? as i32,
        origin,
        kind: buffer.get(ee.kind)? as u8,
        code: buffer.get(ee.code)? as u8,
        info: buffer.get(ee.info)? as u32,
        data: buffer.get(ee.data)? as u32,
        statistics: buffer.optional(ee.statistics)? != 0,
        offender: notice.source.map(|source| SocketAddrV4::new(source, 0)),
        destination: when(named, destination)?,
        received_at: stamp(buffer, layout)?,
        ttl: notice.ttl,
        tos: notice.tos,
        local: notice.destination.unwrap_or(Ipv4Addr::UNSPECIFIED),
        rest: notice.rest,
        interface: notice.interface,
        payload,
    })
}

/// What the headers of an ICMP message tell besides the error.
#[derive(Default)]
struct Notice {
    source: Option<Ipv4Addr>,
    destination: Option<Ipv4Addr>,
    ttl: u8,
    tos: u8,
    rest: [u8; 4],
    interface: u32,
}

impl Notice {
    fn of(buffer: &Buffer<'_>) -> io::Result<Self> {
        let window = buffer.window;
        let byte = |at: usize| window.get(at).copied().ok_or_else(damaged);
        let icmp = usize::from(byte(0)? & 0x0f) * 4;
        let rest = window.get(icmp + 4..);
        Ok(Self {
            source: Some(ip(window, 12)?),
            destination: Some(ip(window, 16)?),
            ttl: byte(8)?,
            tos: byte(1)?,
            rest: *rest
                .and_then(|rest| rest.first_chunk())
                .ok_or_else(damaged)?,
            interface: buffer.get(buffer.layout.skb.interface)? as u32,
        })
    }
}

fn when<T>(wanted: bool, get: impl FnOnce() -> io::Result<T>) -> io::Result<Option<T>> {
    wanted.then(get).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums() {
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[1]), 0x0100);
        assert_eq!(sum(&[1, 2, 3, 4, 5]), 0x0102 + 0x0304 + 0x0500);
    }
}
