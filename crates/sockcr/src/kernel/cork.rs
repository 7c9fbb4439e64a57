//! A datagram that is being put together, by UDP_CORK or MSG_MORE.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use super::btf::Field;
use super::buffer::{Buffer, Buffers, Cork6, Options};
use super::copier::{Copier, Head, Sock, Tried, steady};
use super::inet6;
use super::reader::{Reader, address, damaged};
use super::walk::View;

const UDP_HEADER: usize = 8;
/// `IP_MAX_MTU`
const IP_MAX_MTU: u32 = 0xffff;
/// `IPCORK_OPT`: the cork has IP options of its own.
const CORK_OPTIONS: u64 = 1;
/// IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR, IPV6_DSTOPTS
const EXTENSIONS: [u8; 4] = [54, 55, 57, 59];
const AF_INET: u64 = rustix::net::AddressFamily::INET.as_raw() as u64;
const AF_INET6: u64 = rustix::net::AddressFamily::INET6.as_raw() as u64;

/// The pending datagram of a socket, with what its first sendmsg(2) fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corked {
    /// Where it goes, at the end of a source route where there is one.
    pub destination: SocketAddr,
    /// The source address that its route chose.
    pub source: IpAddr,
    /// The TOS it will have. None (-1 in the kernel): that of the socket when it is sent. Newer
    /// kernels (6.18 does) fix the socket's own with the first data, which cannot be told from
    /// one that was given with them.
    pub tos: Option<u8>,
    /// The TTL given with the data. None (0 in the kernel): that of the socket counts.
    pub ttl: Option<u8>,
    /// UDP_SEGMENT as it was; 0: one datagram.
    pub segment_size: u16,
    /// The bytes of a fragment at most, which the route's MTU or IPV6_MTU gave it; 0: as many as its
    /// device takes.
    pub fragment_size: u32,
    /// The flow label of IPv6.
    pub flow_label: u32,
    /// IPV6_DONTFRAG, or as given with the data.
    pub dont_fragment: bool,
    /// The interface by which its route leaves (`rtable.dst.dev`), 0 when that is gone. Of IPv6, where
    /// that is the loopback device, the one that the data were to leave by, if any was named.
    pub device: u32,
    /// Its route goes by a gateway (`rtable.rt_uses_gateway`). Of IPv6 always false: nothing that a
    /// sendmsg(2) says depends on it.
    pub gateway: bool,
    /// SO_MARK, or the one given with the data.
    pub mark: u32,
    /// SO_PRIORITY, or the one given with the data.
    pub priority: u32,
    /// When it may leave (SO_TXTIME), 0 for at once.
    pub transmit_time: u64,
    /// A time stamp is wanted when it is sent (SO_TIMESTAMPING).
    pub stamped: bool,
    /// The IP options as IP_RETOPTS wants them, those of the socket included. Of IPv6 the extension
    /// headers, before each one byte: the number of its option (IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS,
    /// IPV6_RTHDR, IPV6_DSTOPTS).
    pub ip_options: Vec<u8>,
    /// The data so far.
    pub payload: Vec<u8>,
}

/// The way that the route of a cork goes.
#[derive(Clone, Copy, Default)]
struct Way {
    /// The index of the device, and its MTU.
    device: u32,
    mtu: u32,
    gateway: bool,
}

impl Way {
    /// The size of fragments as a cork tells it: a route of IPv4 on a device that takes more says
    /// `IP_MAX_MTU` (`ipv4_mtu`), which cuts as little.
    fn fragment_size(&self, size: u32) -> u32 {
        match size >= self.mtu || size == IP_MAX_MTU {
            true => 0,
            false => size,
        }
    }
}

impl Reader {
    /// The pending datagram of a UDP socket: `udp_sock.pending`, `inet_sock.cork` and the
    /// buffers in `sk_write_queue`, as `ip_append_data` laid them out. None: nothing is pending.
    ///
    /// `WouldBlock`: the owner adds data all the time. Nothing is changed.
    pub fn cork(&self, socket: BorrowedFd<'_>) -> io::Result<Option<Corked>> {
        steady(|| self.try_cork(socket))
    }

    fn try_cork(&self, socket: BorrowedFd<'_>) -> Tried<Option<Corked>> {
        let (layout, sock) = (self.buffers()?, self.udp(socket)?);
        let ipv6 = match self.layout.udp.pending.value(&sock.raw) {
            Some(0) => return Ok(Some(None)),
            Some(AF_INET) => false,
            Some(AF_INET6) => true,
            _ => return Err(damaged()),
        };
        let get = |field: Field| field.value(&sock.raw).ok_or_else(damaged);
        let head = Head::of(layout, &sock.raw, sock.address, layout.heads.write)?;
        let mut payload = Vec::new();
        let mut number = 0;
        let done = Copier::new(self)?.queue(&head, View::Data, |buffer, contents| {
            let skip = headers(buffer, number == 0)?;
            payload.extend_from_slice(contents.get(skip..).ok_or_else(damaged)?);
            number += 1;
            Ok(())
        })?;
        let ip_options = match ipv6 {
            true => self.extensions(&sock)?,
            false => self.options(&sock)?,
        };
        let route = self.route(&sock)?;
        if done.is_none() || !self.is_still(&sock, layout, socket)? {
            return Ok(None);
        }
        if get(self.layout.udp.length)? as usize != payload.len() + UDP_HEADER {
            return Ok(None);
        }
        let mut corked = corked(layout, &sock, ip_options, route, payload)?;
        if ipv6 {
            self.for_ipv6(&sock, &mut corked)?;
        }
        Ok(Some(Some(corked)))
    }

    /// What the cork says of data for IPv6, and where the part of the socket begins that has the rest.
    fn cork6(&self, sock: &Sock) -> io::Result<(&'static Cork6, usize)> {
        let layout = self.buffers()?.cork.ipv6.as_ref();
        let inet6 = self.layout.inet6.as_ref();
        let place = inet6.map(|inet6| inet6.place(&sock.raw, sock.address));
        layout.zip(place.transpose()?.flatten()).ok_or_else(damaged)
    }

    /// Puts what differs for IPv6 in the place of what was read as for IPv4.
    fn for_ipv6(&self, sock: &Sock, corked: &mut Corked) -> io::Result<()> {
        const LOOPBACK: u32 = 1;
        let (layout, place) = self.cork6(sock)?;
        let part = sock.raw.get(place..).ok_or_else(damaged)?;
        let get = |field: Field, raw: &[u8]| field.value(raw).ok_or_else(damaged);
        let port = u16::from_be(get(layout.port, &sock.raw)? as u16);
        let destination = inet6::ipv6(&sock.raw, layout.destination)?;
        corked.destination = SocketAddr::new(destination.into(), port);
        corked.source = inet6::ipv6(&sock.raw, layout.source)?.into();
        corked.ttl = Some(get(layout.hop_limit, part)? as u8);
        corked.tos = Some(get(layout.traffic_class, part)? as u8);
        corked.flow_label = u32::from_be(get(layout.flow, &sock.raw)? as u32) & 0xf_ffff;
        corked.dont_fragment = get(layout.dont_fragment, part)? != 0;
        corked.gateway = false;
        let named = get(layout.device, &sock.raw)? as u32;
        if corked.device == LOOPBACK && named != 0 {
            corked.device = named;
        }
        Ok(())
    }

    /// The extension headers of a cork (`ip6_setup_cork` copies them).
    fn extensions(&self, sock: &Sock) -> io::Result<Vec<u8>> {
        let (layout, place) = self.cork6(sock)?;
        let part = sock.raw.get(place..).ok_or_else(damaged)?;
        let options = layout.options.value(part).ok_or_else(damaged)?;
        if options == 0 {
            return Ok(Vec::new());
        }
        let whole = self.bytes(options, layout.headers_extent)?;
        let mut all = Vec::new();
        for (number, header) in EXTENSIONS.into_iter().zip(layout.headers) {
            let at = header.value(&whole).ok_or_else(damaged)?;
            if at != 0 {
                let length = self.bytes(at, 2)?.last().copied().unwrap_or(0);
                all.push(number);
                all.extend(self.bytes(at, (usize::from(length) + 1) * 8)?);
            }
        }
        Ok(all)
    }

    /// What the route says; of IPv6 nothing of a gateway.
    fn route(&self, sock: &Sock) -> io::Result<Way> {
        let layout = &self.buffers()?.cork.route;
        let place = layout.route.value(&sock.raw).ok_or_else(damaged)?;
        if place == 0 {
            return Ok(Way::default());
        }
        let get = |base: u64, field: Field| {
            let raw = self.bytes(base.wrapping_add(field.offset as u64), field.size)?;
            Field { offset: 0, ..field }.value(&raw).ok_or_else(damaged)
        };
        let gateway = get(place, layout.gateway)? != 0;
        let (device, mtu) = match get(place, layout.device)? {
            0 => (0, 0),
            device => (get(device, layout.index)?, get(device, layout.mtu)?),
        };
        Ok(Way {
            device: device as u32,
            mtu: mtu as u32,
            gateway,
        })
    }

    /// The memory, in bytes, that datagrams of a UDP socket take while they are with a device
    /// (`sk_wmem_alloc` without what is corked). As [`cork`](Self::cork) otherwise.
    pub fn in_flight(&self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        steady(|| {
            let (layout, sock) = (self.buffers()?, self.udp(socket)?);
            let sent = self.layout.sock.sent.value(&sock.raw).ok_or_else(damaged)?;
            let head = Head::of(layout, &sock.raw, sock.address, layout.heads.write)?;
            let mut corked = 0;
            let done = Copier::new(self)?.queue(&head, View::Data, |buffer, _| {
                corked += buffer.get(layout.skb.true_size)?;
                Ok(())
            })?;
            if done.is_none() || !self.is_still(&sock, layout, socket)? {
                return Ok(None);
            }
            // A socket holds one byte of it as long as it lives.
            let rest = sent.saturating_sub(1).saturating_sub(corked);
            Ok(Some(rest as u32))
        })
    }

    /// Whether the cork and its queue are as they were.
    fn is_still(
        &self,
        before: &Sock,
        layout: &Buffers,
        socket: BorrowedFd<'_>,
    ) -> io::Result<bool> {
        let after = self.udp(socket)?;
        let (cork, heads, udp) = (layout.cork.whole, &layout.heads, &self.layout.udp);
        let mut places = vec![
            (cork.offset, cork.size),
            (heads.write, heads.extent),
            (udp.length.offset, udp.length.size),
            (udp.pending.offset, udp.pending.size),
        ];
        if let Ok((ipv6, place)) = self.cork6(before) {
            places.push((place + ipv6.whole.offset, ipv6.whole.size));
        }
        let part = |sock: &Sock, at: usize, size: usize| {
            let raw = sock.raw.get(at..at + size).map(<[u8]>::to_vec);
            raw.ok_or_else(damaged)
        };
        for (at, size) in places {
            if part(before, at, size)? != part(&after, at, size)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The options of the cork, as they were given.
    fn options(&self, sock: &Sock) -> io::Result<Vec<u8>> {
        let layout = self.buffers()?;
        let get = |field: Field| field.value(&sock.raw).ok_or_else(damaged);
        if get(layout.cork.flags)? & CORK_OPTIONS == 0 {
            return Ok(Vec::new());
        }
        let at = get(layout.cork.options)?;
        if at == 0 {
            return Ok(Vec::new());
        }
        let options = &layout.options;
        let header = self.bytes(at, options.size)?;
        let length = options.length.value(&header).ok_or_else(damaged)? as usize;
        let data = self.bytes(at.wrapping_add(options.size as u64), length)?;
        restored(options, &header, data)
    }
}

/// The bytes in front of the data: `ip_append_data` leaves room for the headers of IP, and in the
/// first buffer for those of UDP.
fn headers(buffer: &Buffer<'_>, is_first: bool) -> io::Result<usize> {
    let skb = &buffer.layout.skb;
    let transport = buffer.get(skb.transport_header)?;
    let data = buffer.get(skb.data)?.wrapping_sub(buffer.get(skb.head)?);
    let network = usize::try_from(transport.wrapping_sub(data)).map_err(|_| damaged())?;
    Ok(network + if is_first { UDP_HEADER } else { 0 })
}

fn corked(
    layout: &Buffers,
    sock: &Sock,
    ip_options: Vec<u8>,
    way: Way,
    payload: Vec<u8>,
) -> io::Result<Corked> {
    let cork = &layout.cork;
    let get = |field: Field| field.value(&sock.raw).ok_or_else(damaged);
    let optional = |field: Option<Field>| field.map_or(Ok(0), get);
    let port = u16::from_be(get(cork.destination_port)? as u16);
    let has_options = get(cork.flags)? & CORK_OPTIONS != 0;
    let place = if has_options {
        cork.last_hop
    } else {
        cork.destination
    };
    let destination = address(get(place)? as u32);
    Ok(Corked {
        destination: SocketAddr::new(destination.into(), port),
        source: address(get(cork.source)? as u32).into(),
        tos: u8::try_from(get(cork.tos)? as i16).ok(),
        ttl: u8::try_from(get(cork.ttl)?).ok().filter(|ttl| *ttl != 0),
        segment_size: get(cork.segment_size)? as u16,
        fragment_size: way.fragment_size(get(cork.fragment_size)? as u32),
        flow_label: 0,
        dont_fragment: false,
        device: way.device,
        gateway: way.gateway,
        mark: optional(cork.mark)? as u32,
        priority: get(cork.priority)? as u32,
        transmit_time: optional(cork.transmit_time)?,
        stamped: get(cork.stamps)? != 0,
        ip_options,
        payload,
    })
}

/// The options before `ip_options_compile` made them ready for sending, as `ip_options_undo` does.
fn restored(layout: &Options, header: &[u8], mut data: Vec<u8>) -> io::Result<Vec<u8>> {
    let get = |field: Field| field.value(header).ok_or_else(damaged);
    let is_set = |field: Field| get(field).map(|value| value != 0);
    if is_set(layout.source_route)? {
        let option = option(&mut data, get(layout.source_route)?)?;
        let hop = (get(layout.first_hop)? as u32).to_ne_bytes();
        put_hop(option, hop).ok_or_else(damaged)?;
    }
    if is_set(layout.record_address)? {
        let option = option(&mut data, get(layout.record_route)?)?;
        take_back(option, true).ok_or_else(damaged)?;
    }
    if is_set(layout.time_stamp)? {
        let option = option(&mut data, get(layout.time_stamp)?)?;
        if is_set(layout.stamp_time)? {
            take_back(option, true).ok_or_else(damaged)?;
            if option.get(3).is_some_and(|flags| flags & 0xf == 3) {
                take_back(option, false).ok_or_else(damaged)?;
            }
        }
        if is_set(layout.stamp_address)? {
            take_back(option, true).ok_or_else(damaged)?;
        }
    }
    Ok(data)
}

/// One option; the kernel counts its place from the beginning of the IP header.
fn option(data: &mut [u8], place: u64) -> io::Result<&mut [u8]> {
    let start = usize::try_from(place)
        .ok()
        .and_then(|at| at.checked_sub(20));
    let rest = start.and_then(|start| data.get_mut(start..));
    let rest = rest.ok_or_else(damaged)?;
    let length = usize::from(*rest.get(1).ok_or_else(damaged)?);
    rest.get_mut(..length).ok_or_else(damaged)
}

/// The first hop goes back in front of the others.
fn put_hop(option: &mut [u8], hop: [u8; 4]) -> Option<()> {
    let end = option.len().checked_sub(4)?;
    if end < 3 {
        return None;
    }
    option.copy_within(3..end, 7);
    option.get_mut(3..7)?.copy_from_slice(&hop);
    Some(())
}

/// The place reserved for an answer is free again.
fn take_back(option: &mut [u8], clears: bool) -> Option<()> {
    let pointer = option.get(2)?.checked_sub(4)?;
    *option.get_mut(2)? = pointer;
    if clears {
        let at = usize::from(pointer).checked_sub(1)?;
        option.get_mut(at..at + 4)?.fill(0);
    }
    Some(())
}
