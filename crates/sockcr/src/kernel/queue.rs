//! What waits in a socket for its owner: datagrams and errors, read without taking anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;

use rustix::net::{AddressFamily, SocketType};

use super::btf::Field;
use super::buffer::{Buffer, Buffers};
use super::copier::{Copier, Head, Sock, Tried, steady};
use super::inet6;
use super::reader::{Reader, address, damaged};
use super::walk::View;

/// The smallest IPv4 header, the IPv6 header, and a UDP header.
const IP_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const IPPROTO_UDP: u64 = 17;
const IPPROTO_UDPLITE: u64 = 136;
/// `enum` of `skb->ip_summed`: somebody made sure of the checksum, or it is made on the way out.
const CHECKSUM_UNNECESSARY: u64 = 1;
const CHECKSUM_COMPLETE: u64 = 2;
const CHECKSUM_PARTIAL: u64 = 3;
const STREAM: u64 = rustix::net::SocketType::STREAM.as_raw() as u64;
const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
/// `ETH_P_IPV6`
const PROTOCOL_IPV6: u16 = 0x86dd;

/// What the buffers of a socket hold behind the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    /// A header with ports, which the owner does not read, and its data.
    Ports,
    /// What is read as it is: of raw sockets of IPv4 the IP header too.
    AsItIs,
    /// The same, and recvmsg(2) makes sure of the checksum of this protocol (`rawv6_recvmsg`).
    Summed(u64),
}

/// A datagram in the receive queue, as recvmsg(2) with every option would tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// Who sent it: address and port of its headers, also 0.0.0.0 and port 0. Of raw and ping sockets
    /// the port is always 0.
    pub source: SocketAddr,
    /// Whom it was sent to (IP_ORIGDSTADDR), also a group or a broadcast address.
    pub destination: SocketAddr,
    /// IP_RECVTTL, IPV6_RECVHOPLIMIT.
    pub ttl: u8,
    /// IP_RECVTOS, IPV6_RECVTCLASS.
    pub tos: u8,
    /// IPV6_FLOWINFO without the traffic class; 0 for IPv4.
    pub flow_label: u32,
    /// The interface it arrived at (`skb->skb_iif`), whatever options were on.
    pub interface: u32,
    /// The interface that IP_PKTINFO tells (`PKTINFO_SKB_CB`): 0 when the option was off at
    /// arrival; for IPv6 always the one that IPV6_PKTINFO tells (`IP6CB(skb)->iif`).
    pub pktinfo_interface: u32,
    /// `ipi_spec_dst` of IP_PKTINFO: 0.0.0.0 when the option was off at arrival; for IPv6 the destination.
    pub pktinfo_address: IpAddr,
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
    /// What tells it from all others that are in the kernel now (`skb->head`).
    pub identity: u64,
    /// The hardware gave it a time (SO_TIMESTAMPING).
    pub hardware_time: bool,
    /// A firewall gave it a security mark (IP_PASSSEC).
    pub security_mark: bool,
    /// SO_RXQ_OVFL: the drops before it; 0 when the option was off at arrival.
    pub drops: u32,
    /// Somebody peeked at it, and it is empty: who peeks with SO_PEEK_OFF does not see it again
    /// (`skb->peeked`).
    pub peeked: bool,
    /// IP_RECVOPTS: the options of its IP header, as they came; of IPv6 the extension headers, and before
    /// them one byte, the kind of the first.
    pub ip_options: Vec<u8>,
    /// Its data: in a raw socket all behind the IPv6 header and its extensions, or the whole IPv4 packet;
    /// in a ping socket the ICMP message.
    pub payload: Vec<u8>,
}

/// A place in a queue that is only ever added to: by default its beginning.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mark {
    /// All that was there at some time is before it.
    begun: bool,
    /// The last buffer before it, in `sk_receive_queue`.
    last: Option<u64>,
}

impl Mark {
    /// Behind all that was there at some time: nothing.
    pub fn of_nothing() -> Mark {
        Mark {
            begun: true,
            last: None,
        }
    }
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
    pub offender: Option<SocketAddr>,
    /// Where the datagram was going that made the error (`msg_name`), when the kernel says so.
    pub destination: Option<SocketAddr>,
    /// When it came, as in [`Queued`]; of a time stamp entry the stamp.
    pub received_at: i64,
    /// IP_RECVTTL of the ICMP message; 0 for errors of another origin, as all below.
    pub ttl: u8,
    /// IP_RECVTOS of the ICMP message.
    pub tos: u8,
    /// IPV6_FLOWINFO of the ICMP message without the traffic class.
    pub flow_label: u32,
    /// Whom the ICMP message was sent to.
    pub local: IpAddr,
    /// The second word of the ICMP header: an MTU, a pointer, the length of RFC 4884.
    pub rest: [u8; 4],
    /// The index of the device that the ICMP message came by (`IPCB(skb)->iif`).
    pub interface: u32,
    /// The data of the datagram, as far as the error quotes it.
    pub payload: Vec<u8>,
}

impl Reader {
    /// The datagrams that wait in a UDP, raw or ping socket, in the order they will be read:
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
        let sock = self.inet(socket)?;
        let content = self.content(&sock)?;
        let before = self.heads(&sock, content)?;
        if before.iter().all(Head::is_empty) {
            return Ok(Some(Vec::new()));
        }
        let copier = Copier::new(self)?;
        let waiting = before.iter().map(|head| head.length).sum::<usize>();
        let mut queued = Vec::with_capacity(waiting.min(1 << 20));
        for head in &before {
            let done = copier.queue(head, View::Headers, |buffer, payload| {
                queued.extend(datagram(buffer, content, payload)?);
                Ok(())
            })?;
            if done.is_none() {
                return Ok(None);
            }
        }
        let after = self.heads(&self.inet(socket)?, content)?;
        let mut pairs = after.iter().zip(&before);
        Ok(pairs
            .all(|(after, before)| after.extends(before))
            .then_some(queued))
    }

    /// The datagrams behind a mark in a UDP socket that nobody reads from meanwhile, though others may
    /// send to it; moves the mark behind them. In half the time that [`receive_queue`](Self::receive_queue)
    /// takes.
    pub fn queue_behind(&self, socket: BorrowedFd<'_>, mark: &mut Mark) -> io::Result<Vec<Queued>> {
        let (queued, moved) = steady(|| self.try_queue_behind(socket, *mark))?;
        *mark = moved;
        Ok(queued)
    }

    /// Reads all that [`queue_behind`](Self::queue_behind) would, if that is possible just now, and forgets it: by
    /// then the memory for it is there, and the programs are loaded.
    pub fn glance_at_queue(&self, socket: BorrowedFd<'_>) {
        // Whoever needs to know asks when it counts.
        let _ = self.try_queue_behind(socket, Mark::default());
    }

    fn try_queue_behind(
        &self,
        socket: BorrowedFd<'_>,
        mut mark: Mark,
    ) -> Tried<(Vec<Queued>, Mark)> {
        let sock = self.inet(socket)?;
        let content = self.content(&sock)?;
        let heads = self.heads(&sock, content)?;
        let mut queued = Vec::new();
        for (at, head) in heads.iter().enumerate() {
            // What comes is put behind the last one; what is before that is for the reader.
            let comes = at + 1 == heads.len();
            let begin = match (mark.begun, mark.last) {
                (true, _) if !comes => continue,
                (true, Some(last)) => (self.next_buffer(last)?, last),
                _ => (head.first, head.address),
            };
            if begin.0 == head.address {
                continue;
            }
            let copier = Copier::of_still(self)?;
            let done = copier.queue_from(head, begin, View::Headers, |buffer, payload| {
                if comes {
                    mark.last = Some(buffer.address);
                }
                queued.extend(datagram(buffer, content, payload)?);
                Ok(())
            })?;
            if done.is_none() {
                return Ok(None);
            }
        }
        mark.begun = true;
        Ok(Some((queued, mark)))
    }

    fn next_buffer(&self, buffer: u64) -> io::Result<u64> {
        self.pointer(buffer, self.buffers()?.skb.next.offset)
    }

    /// A mark behind all that waits now in a socket that nobody sends to.
    pub fn end_of_queue(&self, socket: BorrowedFd<'_>) -> io::Result<Mark> {
        let heads = self.waiting(socket)?;
        let last = heads.last().filter(|head| !head.is_empty());
        Ok(Mark {
            begun: true,
            last: last.map(|head| head.last),
        })
    }

    /// The heads of the receive queues, in the order of reading.
    pub(super) fn waiting(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<Head>> {
        let sock = self.inet(socket)?;
        self.heads(&sock, self.content(&sock)?)
    }

    /// Whether nothing waits in this copy of a socket.
    pub fn nothing_waits(&self, sock: &Sock) -> io::Result<bool> {
        let heads = self.heads(sock, self.content(sock)?)?;
        Ok(heads.iter().all(Head::is_empty))
    }

    /// The heads in this copy of a socket, whose buffers hold this.
    fn heads(&self, sock: &Sock, content: Content) -> io::Result<Vec<Head>> {
        let layout = self.buffers()?;
        let reader = match content {
            Content::Ports => {
                self.is_udp(sock)?;
                layout.heads.reader
            }
            Content::AsItIs | Content::Summed(_) => None,
        };
        let offsets = reader.into_iter();
        offsets
            .chain([layout.heads.receive])
            .map(|offset| Head::of(layout, &sock.raw, sock.address, offset))
            .collect()
    }

    fn content(&self, sock: &Sock) -> io::Result<Content> {
        let layout = &self.layout.sock;
        let get = |field: Field| field.value(&sock.raw).ok_or_else(damaged);
        if get(layout.kind)? == STREAM {
            let why = "the socket is one of streams, not of datagrams";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let raw = get(layout.kind)? == u64::from(SocketType::RAW.as_raw());
        let datagrams = get(layout.kind)? == u64::from(SocketType::DGRAM.as_raw());
        if !raw && !datagrams {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is neither one of datagrams nor raw",
            ));
        }
        let ipv6 = get(layout.family)? == u64::from(AddressFamily::INET6.as_raw());
        Ok(match (get(layout.protocol)?, raw) {
            (protocol, true) if ipv6 => Content::Summed(protocol),
            (IPPROTO_UDP | IPPROTO_UDPLITE, false) => Content::Ports,
            _ => Content::AsItIs,
        })
    }

    /// The sock of a UDP socket.
    pub(super) fn udp(&self, socket: BorrowedFd<'_>) -> io::Result<Sock> {
        let sock = self.sock(socket)?;
        self.is_udp(&sock)?;
        Ok(sock)
    }

    fn is_udp(&self, sock: &Sock) -> io::Result<()> {
        match sock.raw.len() < self.layout.udp.size {
            true => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is not a UDP socket",
            )),
            false => Ok(()),
        }
    }

    fn inet(&self, socket: BorrowedFd<'_>) -> io::Result<Sock> {
        let sock = self.sock(socket)?;
        let family = self.layout.sock.family.value(&sock.raw);
        let known = [AddressFamily::INET, AddressFamily::INET6].map(|f| Some(f.as_raw().into()));
        if known.contains(&family) {
            Ok(sock)
        } else {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the socket is neither one of IPv4 nor of IPv6",
            ))
        }
    }

    /// The errors that wait in a socket with IP_RECVERR or IPV6_RECVERR, and its transmit time stamps and
    /// zero-copy notices: `sk_error_queue`, oldest first. As [`receive_queue`](Self::receive_queue)
    /// otherwise.
    pub fn error_queue(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<ErrorEntry>> {
        steady(|| self.try_error_queue(socket))
    }

    fn try_error_queue(&self, socket: BorrowedFd<'_>) -> Tried<Vec<ErrorEntry>> {
        let layout = self.buffers()?;
        let head = |sock: &Sock| Head::of(layout, &sock.raw, sock.address, layout.heads.error);
        let before = head(&self.inet(socket)?)?;
        let mut entries = Vec::new();
        if before.is_empty() {
            return Ok(Some(entries));
        }
        let done = Copier::new(self)?.queue(&before, View::Headers, |buffer, payload| {
            entries.push(error_entry(buffer, payload)?);
            Ok(())
        })?;
        let after = head(&self.inet(socket)?)?;
        Ok(done.filter(|()| after.extends(&before)).map(|()| entries))
    }
}

/// The IP header and what follows it, in the window of a buffer.
struct Headers<'a> {
    bytes: &'a [u8],
    /// It is IPv6.
    ipv6: bool,
    /// Where the transport header begins.
    transport: usize,
    /// It has ports.
    ports: bool,
}

impl<'a> Headers<'a> {
    /// The headers of a datagram.
    fn of(buffer: &Buffer<'a>, content: Content) -> io::Result<Self> {
        let skb = &buffer.layout.skb;
        let network = buffer.get(skb.network_header)? as usize;
        let transport = buffer.get(skb.transport_header)? as usize;
        let transport = transport.checked_sub(network).ok_or_else(damaged)?;
        let bytes = buffer.window;
        let (ipv6, header) = match bytes.first().ok_or_else(damaged)? >> 4 {
            4 => (false, IP_HEADER),
            6 => (true, IPV6_HEADER),
            _ => return Err(damaged()),
        };
        let ports = content == Content::Ports;
        let least = if ports { UDP_HEADER } else { 0 };
        if transport < header || transport + least > bytes.len() {
            return Err(damaged());
        }
        Ok(Self {
            bytes,
            ipv6,
            transport,
            ports,
        })
    }

    fn byte(&self, at: usize) -> io::Result<u8> {
        self.bytes.get(at).copied().ok_or_else(damaged)
    }

    fn port(&self, at: usize) -> io::Result<u16> {
        if !self.ports {
            return Ok(0);
        }
        Ok(u16::from_be_bytes([self.byte(at)?, self.byte(at + 1)?]))
    }

    fn address(&self, ipv4: usize, ipv6: usize) -> io::Result<IpAddr> {
        match self.ipv6 {
            true => Ok(inet6::ipv6(self.bytes, ipv6)?.into()),
            false => Ok(ip(self.bytes, ipv4)?.into()),
        }
    }

    fn source(&self) -> io::Result<SocketAddr> {
        let port = self.port(self.transport)?;
        Ok(SocketAddr::new(self.address(12, 8)?, port))
    }

    fn destination(&self) -> io::Result<SocketAddr> {
        let port = self.port(self.transport + 2)?;
        Ok(SocketAddr::new(self.address(16, 24)?, port))
    }

    /// TTL or hop limit.
    fn ttl(&self) -> io::Result<u8> {
        self.byte(if self.ipv6 { 7 } else { 8 })
    }

    /// TOS or traffic class, and the flow label.
    fn tos(&self) -> io::Result<(u8, u32)> {
        let word = [self.byte(0)?, self.byte(1)?, self.byte(2)?, self.byte(3)?];
        let word = u32::from_be_bytes(word);
        Ok(match self.ipv6 {
            true => ((word >> 20) as u8, word & 0xf_ffff),
            false => ((word >> 16) as u8, 0),
        })
    }

    /// The options, or the kind of the first extension header and all of them.
    fn options(&self) -> Vec<u8> {
        let header = if self.ipv6 { IPV6_HEADER } else { IP_HEADER };
        let options = self.bytes.get(header..self.transport).unwrap_or_default();
        match self.ipv6 && !options.is_empty() {
            true => [&[self.byte(6).unwrap_or(0)], options].concat(),
            false => options.to_vec(),
        }
    }

    /// What the IP header says it carries, behind the extension headers.
    fn protocol(&self) -> io::Result<u64> {
        if !self.ipv6 {
            return Ok(self.byte(9)?.into());
        }
        let (mut kind, mut at) = (self.byte(6)?, IPV6_HEADER);
        while at < self.transport {
            const AUTHENTICATION: u8 = 51;
            let length = usize::from(self.byte(at + 1)?);
            let size = match kind {
                AUTHENTICATION => (length + 2) * 4,
                _ => (length + 1) * 8,
            };
            (kind, at) = (self.byte(at)?, at + size);
        }
        Ok(kind.into())
    }

    fn addresses(&self) -> io::Result<&'a [u8]> {
        let range = if self.ipv6 {
            8..IPV6_HEADER
        } else {
            12..IP_HEADER
        };
        self.bytes.get(range).ok_or_else(damaged)
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
fn datagram(buffer: &Buffer<'_>, content: Content, payload: Vec<u8>) -> io::Result<Option<Queued>> {
    let headers = Headers::of(buffer, content)?;
    let (layout, control) = (buffer.layout, &buffer.layout.control);
    let good = match content {
        Content::Ports => checked(buffer)? || is_intact(&headers, &payload)?,
        Content::AsItIs => true,
        Content::Summed(protocol) => {
            let parts = [headers.addresses()?, &payload];
            is_unnecessary(buffer)? || is_right(&parts, protocol, payload.len())
        }
    };
    if !good {
        return Ok(None);
    }
    let destination = headers.destination()?;
    let (pktinfo, fragments) = match headers.ipv6 {
        true => (control.interface6, control.fragment_size6),
        false => (Some(control.interface), control.fragment_size),
    };
    let (tos, flow_label) = headers.tos()?;
    Ok(Some(Queued {
        source: headers.source()?,
        destination,
        ttl: headers.ttl()?,
        tos,
        flow_label,
        interface: buffer.get(layout.skb.interface)? as u32,
        pktinfo_interface: buffer.optional(pktinfo)? as u32,
        pktinfo_address: match headers.ipv6 {
            true => destination.ip(),
            false => address(buffer.get(control.address)? as u32).into(),
        },
        received_at: stamp(buffer, layout)?,
        mark: buffer.get(layout.skb.mark)? as u32,
        priority: buffer.get(layout.skb.priority)? as u32,
        segment_size: buffer.shared(layout.shared.segment_size)? as u16,
        fragment_size: buffer.optional(fragments)? as u16,
        summed: buffer.get(layout.skb.checksum_state)? == CHECKSUM_COMPLETE,
        identity: buffer.get(layout.skb.head)?,
        hardware_time: match layout.shared.hardware_time {
            Some(time) => buffer.shared(time)? != 0,
            None => false,
        },
        security_mark: buffer.optional(layout.skb.security_mark)? != 0,
        drops: buffer.optional(control.drops)? as u32,
        peeked: payload.is_empty() && buffer.get(layout.skb.peeked)? != 0,
        ip_options: headers.options(),
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

/// `skb_csum_unnecessary`
fn is_unnecessary(buffer: &Buffer<'_>) -> io::Result<bool> {
    let skb = &buffer.layout.skb;
    let state = buffer.get(skb.checksum_state)?;
    Ok(matches!(state, CHECKSUM_UNNECESSARY | CHECKSUM_PARTIAL)
        || buffer.get(skb.checksum_valid)? != 0)
}

/// Whether the kernel will not look at the checksum any more (`udp_skb_csum_unnecessary`).
fn checked(buffer: &Buffer<'_>) -> io::Result<bool> {
    Ok(is_unnecessary(buffer)?
        || buffer.optional(buffer.layout.control.checked)? != 0
        || buffer.shared(buffer.layout.shared.segment_size)? != 0)
}

/// What the checksum of UDP-Lite covers behind its header, which says so; 0: all.
fn covered<'a>(header: &[u8], payload: &'a [u8]) -> &'a [u8] {
    let coverage = match header {
        [_, _, _, _, high, low, ..] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    };
    let part = coverage.checked_sub(UDP_HEADER);
    part.and_then(|part| payload.get(..part)).unwrap_or(payload)
}

/// Whether the checksum of a datagram is right, or there is none.
fn is_intact(headers: &Headers<'_>, payload: &[u8]) -> io::Result<bool> {
    let header = headers.bytes.get(headers.transport..);
    let header = header
        .and_then(|rest| rest.get(..UDP_HEADER))
        .ok_or_else(damaged)?;
    let protocol = headers.protocol()?;
    let covered = match protocol {
        IPPROTO_UDPLITE => covered(header, payload),
        IPPROTO_UDP if !header.ends_with(&[0, 0]) => payload,
        _ => return Ok(true),
    };
    let parts = [headers.addresses()?, header, covered];
    Ok(is_right(&parts, protocol, UDP_HEADER + payload.len()))
}

/// Whether the checksum among these parts, with a pseudo header, is right.
fn is_right(parts: &[&[u8]], protocol: u64, length: usize) -> bool {
    let sum = parts.iter().map(|part| sum(part));
    let mut sum = sum.sum::<u64>() + protocol + length as u64;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
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

/// `ip_recv_error` and `ipv6_recv_error` say what of an entry counts.
fn error_entry(buffer: &Buffer<'_>, payload: Vec<u8>) -> io::Result<ErrorEntry> {
    let (layout, ee) = (buffer.layout, &buffer.layout.error);
    let origin = buffer.get(ee.origin)? as u8;
    let port = u16::from_be(buffer.get(ee.port)? as u16);
    let place = buffer.get(ee.address)? as usize;
    let named = matches!(origin, ORIGIN_LOCAL | ORIGIN_ICMP | ORIGIN_ICMP6) || port != 0;
    let protocol = u16::from_be(buffer.get(layout.skb.protocol)? as u16);
    let destination = || {
        let address = match protocol == PROTOCOL_IPV6 {
            true => inet6::ipv6(buffer.window, place)?.into(),
            false => ip(buffer.window, place)?.into(),
        };
        Ok(SocketAddr::new(address, port))
    };
    let notice = match origin {
        ORIGIN_ICMP => Notice::of(buffer)?,
        ORIGIN_ICMP6 => Notice::of_ipv6(buffer, place)?,
        _ => Notice::default(),
    };
    Ok(ErrorEntry {
        error: buffer.get(ee.error)? as i32,
        origin,
        kind: buffer.get(ee.kind)? as u8,
        code: buffer.get(ee.code)? as u8,
        info: buffer.get(ee.info)? as u32,
        data: buffer.get(ee.data)? as u32,
        statistics: buffer.optional(ee.statistics)? != 0,
        offender: notice.source.map(|source| SocketAddr::new(source, 0)),
        destination: when(named, destination)?,
        received_at: stamp(buffer, layout)?,
        ttl: notice.ttl,
        tos: notice.tos,
        flow_label: notice.flow_label,
        local: notice.destination.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        rest: notice.rest,
        interface: notice.interface,
        payload,
    })
}

/// What the headers of an ICMP message tell besides the error.
#[derive(Default)]
struct Notice {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    ttl: u8,
    tos: u8,
    flow_label: u32,
    rest: [u8; 4],
    interface: u32,
}

impl Notice {
    fn of(buffer: &Buffer<'_>) -> io::Result<Self> {
        let window = buffer.window;
        let byte = |at: usize| window.get(at).copied().ok_or_else(damaged);
        let icmp = usize::from(byte(0)? & 0x0f) * 4;
        Ok(Self {
            source: Some(ip(window, 12)?.into()),
            destination: Some(ip(window, 16)?.into()),
            ttl: byte(8)?,
            tos: byte(1)?,
            flow_label: 0,
            rest: rest(window, icmp)?,
            interface: buffer.get(buffer.layout.skb.interface)? as u32,
        })
    }

    /// `quoted`: where the message quotes the destination of the datagram (`ipv6_icmp_error`).
    fn of_ipv6(buffer: &Buffer<'_>, quoted: usize) -> io::Result<Self> {
        const DESTINATION: usize = 24;
        const ICMP_HEADER: usize = 8;
        let headers = Headers {
            bytes: buffer.window,
            ipv6: true,
            transport: IPV6_HEADER,
            ports: false,
        };
        let icmp = quoted.checked_sub(DESTINATION + ICMP_HEADER);
        let (tos, flow_label) = headers.tos()?;
        Ok(Self {
            source: Some(headers.address(12, 8)?),
            destination: Some(headers.address(16, 24)?),
            ttl: headers.ttl()?,
            tos,
            flow_label,
            rest: rest(buffer.window, icmp.ok_or_else(damaged)?)?,
            interface: buffer.optional(buffer.layout.control.interface6)? as u32,
        })
    }
}

/// The second word of an ICMP header.
fn rest(window: &[u8], icmp: usize) -> io::Result<[u8; 4]> {
    let rest = window.get(icmp + 4..).and_then(|rest| rest.first_chunk());
    rest.copied().ok_or_else(damaged)
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

    #[test]
    fn udp_lite_covers_what_it_says() {
        let header = |coverage| [0, 1, 0, 2, 0, coverage, 3, 4];
        for (coverage, bytes) in [(0, 5), (8, 0), (10, 2), (13, 5), (7, 5), (14, 5)] {
            assert_eq!(covered(&header(coverage), b"hello").len(), bytes);
        }
    }
}
