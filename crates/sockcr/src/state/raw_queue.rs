//! The receive queue put back without BPF: by raw packets on the loopback device, into a socket
//! that is in its place already (CAP_NET_RAW).
//!
//! A packet with its own header is routed by the address it is sent to, not by the one in it
//! (`raw_sendmsg`, `rawv6_send_hdrinc`). Sent to an address of this host it goes no way but to this
//! host, by the loopback device, so that nothing goes out whatever the header says:
//!
//! | the datagram came by | we send to | why |
//! |---|---|---|
//! | IPv4 | 0.0.0.0 | local without a route, for every device (`ip_route_output_key_hash_rcu`) |
//! | IPv6 | an address of its device, else ::1 | the device is told by the route (`ip6_rcv_core`) |
//!
//! Then the header alone decides which socket gets it (`__udp4_lib_lookup_skb`,
//! `__udp6_lib_lookup_skb`). That is this one and no other, because we send only what it matches, and
//! only while it does not share its port: nobody else can be bound there. To a group of IPv6 it comes
//! only where the loopback device is a member (`ip6_protocol_deliver_rcu`).
//!
//! What others send meanwhile does not come in by its filter, which wants the loopback device and a
//! secret IP id. A header of IPv6 has nothing that its receiver could not be told, so that there the
//! filter wants the source, the ports, the length and the checksum, which covers all else, of just the
//! one on its way. Each datagram is looked at when it has come: a stranger's among them, also one that
//! is the same as ours, stands in the place of the next one, and fails the restore.
//!
//! A receive time cannot be given this way, and what came differs where the look says so.

use super::endpoint::{Failure, plain};
use super::filter;
use super::interfaces::Interfaces;
use super::meanwhile::{Buffer, Meanwhile, get, set};
use super::peek::{self, Seen};
use super::receive_queue::{self, Datagram};
use crate::kernel::inject::{Members, addresses};
use crate::netns;
use crate::report::Report;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use sockcr_sys::message::{Batch, Outgoing, add_control, send_many};
use sockcr_sys::sockopt::{Instruction, Place, attach_filter};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_REUSEPORT: i32 = 15;
const SO_PRIORITY: i32 = 12;
const SO_MARK: i32 = 36;
const SO_INCOMING_CPU: i32 = 49;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_IP: i32 = 0;
const IPPROTO_RAW: u32 = 255;
const IPPROTO_IPV6: i32 = peek::IPPROTO_IPV6;
const IPV6_V6ONLY: i32 = 26;
const UDP: u8 = 17;
const LOOPBACK: u32 = 1;
const ROOM: i32 = i32::MAX / 2;
const FLOW_LABEL: u32 = peek::FLOW_LABEL;
/// The headers of IPv6 and UDP.
const HEADERS6: usize = 48;
/// The largest packet of IPv6 by the loopback device (`rawv6_send_hdrinc`).
const LARGEST6: usize = 65_536;
/// Softirqs may run later, in a thread of their own; longer than this nothing takes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes the place by `take`, with SO_REUSEADDR off where it is on and nobody else is there; answers
/// whether it was so. The flag counts when somebody binds (`udp_lib_lport_inuse`): to [`share`] the
/// port afterwards is the same as from the start. Of SO_REUSEPORT that is not true.
pub(super) fn take_alone(
    fd: BorrowedFd<'_>,
    take: impl Fn() -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let shares = get(fd, SOL_SOCKET, SO_REUSEADDR).map_err(sharing)?;
    if shares == 0 {
        return take().map(|()| false);
    }
    set(fd, SOL_SOCKET, SO_REUSEADDR, 0).map_err(sharing)?;
    match take() {
        Err(failure) if Errno::from_io_error(&failure.error) == Some(Errno::ADDRINUSE) => {
            share(fd)?;
            take().map(|()| false)
        }
        done => done.map(|()| true),
    }
}

/// Lets others share the port.
pub(super) fn share(fd: BorrowedFd<'_>) -> Result<(), Failure> {
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1).map_err(sharing)
}

fn sharing(error: io::Error) -> Failure {
    Failure::at("SO_REUSEADDR while the queue is put back", error)
}

/// Puts the queue into a socket in its place, whose filter lets nothing in, and leaves that filter.
///
/// What does not come as it was is reported by name; an error: the socket is not to be used.
pub(super) fn restore(
    fd: BorrowedFd<'_>,
    queue: &[Datagram],
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let failed = |error| Failure::at("put the receive queue back", error);
    if let Some(why) = obstacle(fd).map_err(failed)? {
        report.lose("receive queue", format!("without CAP_BPF, {why}"));
        return Ok(());
    }
    let senders = match netns::within(fd, || Senders::new(queue)) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            report.lose(
                "receive queue",
                "putting it back needs CAP_BPF, or CAP_NET_RAW in the network namespace",
            );
            return Ok(());
        }
        senders => senders.map_err(failed)?,
    };
    let mut filling = Filling::new(fd, senders).map_err(failed)?;
    let filled = filling.all(queue, interfaces, report);
    let left = filling.finish();
    filled.and(left).map_err(failed)
}

/// Why packets for this socket could be somebody else's.
pub(super) fn obstacle(fd: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    let shared = get(fd, SOL_SOCKET, SO_REUSEADDR)? != 0 || get(fd, SOL_SOCKET, SO_REUSEPORT)? != 0;
    let name = plain(rustix::net::getsockname(fd)?)?;
    Ok(if shared {
        Some(
            "others could get it that share the port by SO_REUSEADDR or SO_REUSEPORT, which are on",
        )
    } else if name.port() == 0 {
        Some("a queue can be put back only into a socket with a port")
    } else {
        None
    })
}

/// Where a socket is, by which the kernel finds it.
pub(super) struct Spot {
    /// It is an AF_INET6 socket; its addresses are those of IPv4 where it speaks IPv4.
    ipv6: bool,
    local: SocketAddr,
    peer: Option<SocketAddr>,
    /// It hears nothing of IPv4.
    only_ipv6: bool,
    /// The device it is bound to; 0: none.
    pub(super) bound: u32,
}

impl Spot {
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let peer = rustix::net::getpeername(fd).ok().flatten();
        let local = plain(rustix::net::getsockname(fd)?)?;
        let ipv6 = local.is_ipv6();
        Ok(Self {
            ipv6,
            local: canonical(local),
            peer: peer.and_then(|peer| plain(peer).ok()).map(canonical),
            only_ipv6: ipv6 && get(fd, IPPROTO_IPV6, IPV6_V6ONLY)? != 0,
            bound: get(fd, SOL_SOCKET, SO_BINDTOIFINDEX)? as u32,
        })
    }

    /// Why the kernel would not find it for a datagram.
    pub(super) fn stray(&self, datagram: &Datagram) -> Option<&'static str> {
        let (from, to) = (datagram.source, datagram.destination);
        let stranger = |peer: SocketAddr| {
            let other = peer.port() != 0 && peer.port() != from.port();
            other || peer.ip() != from.ip()
        };
        if from.is_ipv6() != to.is_ipv6() || !self.hears(to) {
            Some("what came to another address")
        } else if self.peer.is_some_and(stranger) {
            Some("what came from others before it was connected")
        } else {
            None
        }
    }

    /// Whether it gets what goes to this place.
    fn hears(&self, to: SocketAddr) -> bool {
        let local = self.local.ip();
        let everything = match local {
            IpAddr::V4(local) => local.is_unspecified() && to.is_ipv4(),
            IpAddr::V6(local) => local.is_unspecified() && (to.is_ipv6() || !self.only_ipv6),
        };
        to.port() == self.local.port() && (everything || local == to.ip())
    }
}

/// A raw socket, and what it gives its packets.
struct Sender {
    raw: OwnedFd,
    mark: u32,
    priority: u32,
}

impl Sender {
    fn new(family: AddressFamily) -> io::Result<Self> {
        let number = std::num::NonZeroU32::new(IPPROTO_RAW).map(Protocol::from_raw);
        Ok(Self {
            raw: socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, number)?,
            mark: 0,
            priority: 0,
        })
    }

    fn send(
        &mut self,
        datagram: &Datagram,
        to: SocketAddr,
        control: &[u8],
        header: &[u8],
    ) -> io::Result<()> {
        let raw = self.raw.as_fd();
        if self.mark != datagram.mark {
            set(raw, SOL_SOCKET, SO_MARK, datagram.mark as i32)?;
            self.mark = datagram.mark;
        }
        if self.priority != datagram.priority {
            set(raw, SOL_SOCKET, SO_PRIORITY, datagram.priority as i32)?;
            self.priority = datagram.priority;
        }
        let parts = [header, &datagram.payload];
        send_many(raw, &[Outgoing { to, control, parts }], 0).map(drop)
    }
}

/// What sends IPv6 packets.
struct Sender6 {
    sender: Sender,
    /// The addresses of the devices here.
    addresses: BTreeMap<u32, Ipv6Addr>,
    members: Members,
}

impl Sender6 {
    fn new() -> io::Result<Self> {
        Ok(Self {
            sender: Sender::new(AddressFamily::INET6)?,
            addresses: addresses()?,
            members: Members::new()?,
        })
    }

    /// Where a packet is sent that comes by this device.
    fn to(&self, device: u32) -> SocketAddr {
        match self.addresses.get(&device).filter(|_| device != LOOPBACK) {
            Some(address) => SocketAddrV6::new(*address, 0, 0, device).into(),
            None => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 0),
        }
    }
}

/// Those that a queue needs.
struct Senders {
    ipv4: Option<Sender>,
    ipv6: Option<Sender6>,
}

impl Senders {
    fn new(queue: &[Datagram]) -> io::Result<Self> {
        let any = |ipv6: bool| queue.iter().any(|one| one.destination.is_ipv6() == ipv6);
        Ok(Self {
            ipv4: any(false)
                .then(|| Sender::new(AddressFamily::INET))
                .transpose()?,
            ipv6: any(true).then(Sender6::new).transpose()?,
        })
    }
}

struct Filling<'a> {
    fd: BorrowedFd<'a>,
    senders: Senders,
    meanwhile: Meanwhile<'a>,
    place: Spot,
    id: u16,
    /// What its filter lets in.
    comes: Vec<(usize, Width)>,
    /// Its owner will peek by SO_PEEK_OFF, which passes over an empty datagram once looked at.
    peeks: bool,
    room: Batch,
    /// What came otherwise, and how often.
    otherwise: BTreeMap<&'static str, usize>,
}

impl<'a> Filling<'a> {
    fn new(fd: BorrowedFd<'a>, senders: Senders) -> io::Result<Self> {
        let mut filling = Self {
            fd,
            senders,
            meanwhile: Meanwhile::new(fd),
            place: Spot::of(fd)?,
            id: secret(),
            comes: Vec::new(),
            peeks: false,
            room: peek::room(1),
            otherwise: BTreeMap::new(),
        };
        match filling.prepare() {
            Ok(()) => Ok(filling),
            Err(error) => {
                // Its own error would only hide the first.
                let _ = filling.finish();
                Err(error)
            }
        }
    }

    /// Has the new socket, which nobody else uses, tell everything.
    fn prepare(&mut self) -> io::Result<()> {
        let meanwhile = &mut self.meanwhile;
        meanwhile.room(Buffer::Receive, ROOM)?;
        meanwhile.keep(IPPROTO_IP, peek::IP_PKTINFO)?;
        // Of a connected socket every datagram changes it (`sk_incoming_cpu_update`).
        meanwhile.keep(SOL_SOCKET, SO_INCOMING_CPU)?;
        for name in [peek::IP_RECVTTL, peek::IP_RECVTOS, peek::IP_RECVORIGDSTADDR] {
            meanwhile.set(IPPROTO_IP, name, 1)?;
        }
        if self.place.ipv6 {
            for name in TELL6 {
                meanwhile.set(IPPROTO_IPV6, name, 1)?;
            }
        }
        meanwhile.set(SOL_SOCKET, peek::SO_RCVMARK, 1)?;
        match meanwhile.set(SOL_SOCKET, peek::SO_RCVPRIORITY, 1) {
            // Before 6.14 nobody is told a priority.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOPROTOOPT) => {}
            set => set?,
        }
        self.peeks = meanwhile.keep(SOL_SOCKET, peek::SO_PEEK_OFF)? >= 0;
        set(self.fd, SOL_SOCKET, peek::SO_PEEK_OFF, 0)
    }

    fn all(
        &mut self,
        queue: &[Datagram],
        interfaces: &Interfaces,
        report: &mut Report,
    ) -> io::Result<()> {
        let mut times = peek::TIMES
            .iter()
            .map(|name| get(self.fd, SOL_SOCKET, *name));
        let stamps = times.try_fold(false, |any, on| Ok::<_, io::Error>(any | (on? != 0)))?;
        let devices = receive_queue::devices(self.fd, queue, interfaces, report);
        for (at, datagram) in queue.iter().enumerate() {
            let mut wanted = datagram.clone();
            wanted.interface = devices.get(&datagram.interface).copied().unwrap_or(0);
            if let Some(why) = self.unsendable(&wanted) {
                self.count(why);
                continue;
            }
            match wanted.destination.is_ipv6() {
                true => self.send6(&wanted)?,
                false => self.send(&wanted)?,
            }
            let Some(seen) = self.arrived()? else {
                let why = "did not come: SO_RCVBUF (net.core.rmem_max) or a firewall is in the way";
                let count = queue.len() - at;
                report.lose("receive queue", format!("{count} of them {why}"));
                break;
            };
            self.compare(&wanted, &seen.datagram, stamps)?;
        }
        for (what, count) in &self.otherwise {
            let why = format!("{count} of them: without CAP_BPF it cannot be put back");
            report.lose(format!("receive queue: {what}"), why);
        }
        Ok(())
    }

    fn count(&mut self, what: &'static str) {
        *self.otherwise.entry(what).or_default() += 1;
    }

    /// What this socket would not get, or nobody can send: `raw_send_hdrinc` puts an address in the
    /// place of the source 0.0.0.0, and `ip6_rcv_core` lets nothing in from a group.
    fn unsendable(&self, datagram: &Datagram) -> Option<&'static str> {
        let (from, to) = (datagram.source, datagram.destination);
        let stray = self.place.stray(datagram);
        if stray.is_some() {
            stray
        } else if to.is_ipv6() {
            self.unsendable6(datagram)
        } else if from.ip().is_unspecified() {
            Some("what came from 0.0.0.0")
        } else if datagram.payload.len() > usize::from(u16::MAX) - 28 {
            Some("what is longer than a packet")
        } else {
            None
        }
    }

    fn unsendable6(&self, datagram: &Datagram) -> Option<&'static str> {
        let addresses = self.senders.ipv6.as_ref().map(|ipv6| &ipv6.addresses);
        let has_address =
            |device: &u32| addresses.is_some_and(|addresses| addresses.contains_key(device));
        let headers = datagram.options.len().saturating_sub(1);
        let bound = self.place.bound;
        if ![0, LOOPBACK].contains(&bound) && !has_address(&bound) {
            Some("what came by a device without an address")
        } else if datagram.source.ip().is_multicast() {
            Some("what came from a group")
        } else if HEADERS6 + headers + datagram.payload.len() > LARGEST6 {
            Some("what is longer than a packet")
        } else {
            None
        }
    }

    /// The device by which it is to come: the socket's own first, of another one it gets nothing.
    fn device(&self, datagram: &Datagram) -> u32 {
        match self.place.bound {
            0 => datagram.interface,
            bound => bound,
        }
    }

    fn send(&mut self, datagram: &Datagram) -> io::Result<()> {
        let tells = i32::from(datagram.interface != 0);
        set(self.fd, IPPROTO_IP, peek::IP_PKTINFO, tells)?;
        if self.place.ipv6 {
            // With it IP_PKTINFO would be known (`ipv4_pktinfo_prepare`).
            set(self.fd, IPPROTO_IPV6, peek::IPV6_RECVPKTINFO, tells)?;
        }
        let device = self.device(datagram);
        let mut control = Vec::new();
        if ![0, LOOPBACK].contains(&device) {
            let device = [device.to_ne_bytes(), [0; 4], [0; 4]];
            add_control(
                &mut control,
                IPPROTO_IP,
                peek::IP_PKTINFO,
                device.as_flattened(),
            );
        }
        self.let_in(&[(4, Width::Half(self.id))])?;
        let to = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let header = header(datagram, self.id);
        let sender = self.senders.ipv4.as_mut();
        let sender = sender.ok_or(io::ErrorKind::NotConnected)?;
        sender.send(datagram, to, &control, &header)
    }

    fn send6(&mut self, datagram: &Datagram) -> io::Result<()> {
        set(self.fd, IPPROTO_IPV6, peek::IPV6_RECVPKTINFO, 1)?;
        let header = header6(datagram)?;
        self.let_in(&marks6(&header))?;
        let device = self.device(datagram);
        let sender = self.senders.ipv6.as_mut();
        let sender = sender.ok_or(io::ErrorKind::NotConnected)?;
        if let IpAddr::V6(group) = datagram.destination.ip()
            && group.is_multicast()
        {
            sender.members.join(group)?;
        }
        let to = sender.to(device);
        sender.sender.send(datagram, to, &[], &header)
    }

    /// Lets in what has these numbers at these places behind the beginning of its IP header.
    fn let_in(&mut self, marks: &[(usize, Width)]) -> io::Result<()> {
        if self.comes != marks {
            attach_filter(self.fd, Place::Filter, &only(marks))?;
            self.comes = marks.to_vec();
        }
        Ok(())
    }

    /// The next one in the queue, as soon as it is there.
    fn arrived(&mut self) -> io::Result<Option<Seen>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = peek::look(self.fd, &mut self.room)?.pop();
            if seen.is_some() || Instant::now() > end {
                return Ok(seen);
            }
            std::thread::yield_now();
        }
    }

    fn compare(&mut self, wanted: &Datagram, seen: &Datagram, stamps: bool) -> io::Result<()> {
        if (wanted.source, &wanted.payload) != (seen.source, &seen.payload) {
            let why = "a datagram of somebody else came in between: try again";
            return Err(io::Error::other(why));
        }
        let told = wanted.interface != 0;
        let place = (wanted.interface, wanted.local) == (seen.interface, seen.local);
        let passed_over = self.peeks && wanted.payload.is_empty() && !wanted.peeked;
        let [ttl, tos, info, options] = match wanted.destination.is_ipv6() {
            true => ["hop limit", "traffic class", "device", "extension headers"],
            false => ["ttl", "tos", "IP_PKTINFO", "IP options"],
        };
        for (what, same) in [
            (ttl, wanted.ttl == seen.ttl),
            (tos, wanted.tos == seen.tos),
            ("flow label", wanted.flow_label == seen.flow_label),
            ("mark", wanted.mark == seen.mark),
            ("priority", wanted.priority == seen.priority),
            ("destination", wanted.destination == seen.destination),
            (info, !told || place),
            ("peeking at empty ones", !passed_over),
            ("UDP_GRO", wanted.segment == 0),
            (options, wanted.options == seen.options),
            ("receive time", wanted.received_at == 0 && !stamps),
        ] {
            if !same {
                self.count(what);
            }
        }
        Ok(())
    }

    /// Puts the options back; the filter lets nothing in again.
    fn finish(&self) -> io::Result<()> {
        filter::block(self.fd)?;
        self.meanwhile.put_back()
    }
}

fn secret() -> u16 {
    RandomState::new().build_hasher().finish() as u16 | 1
}

/// The options by which an AF_INET6 socket tells what came by IPv6; IPV6_RECVPKTINFO is set for each
/// datagram.
const TELL6: [i32; 8] = [
    peek::IPV6_RECVPKTINFO,
    peek::IPV6_RECVHOPLIMIT,
    peek::IPV6_RECVTCLASS,
    peek::IPV6_FLOWINFO,
    peek::IPV6_RECVHOPOPTS,
    peek::IPV6_RECVRTHDR,
    peek::IPV6_RECVDSTOPTS,
    peek::IPV6_RECVORIGDSTADDR,
];

/// A number that the filter looks for.
#[derive(Clone, Copy, PartialEq)]
enum Width {
    Half(u16),
    Word(u32),
}

/// Lets in what comes by the loopback device and has these numbers at these places behind the
/// beginning of its IP header.
fn only(marks: &[(usize, Width)]) -> Vec<Instruction> {
    const LOAD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // `SKF_AD_OFF + SKF_AD_IFINDEX`, and `SKF_NET_OFF`.
    let (device, network) = (-0x1000_i32 + 8, -0x10_0000_i32);
    let code = |code: u16, otherwise: u8, k: u32| {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [c0, c1, 0, otherwise, k0, k1, k2, k3]
    };
    let device = (LOAD, device, LOOPBACK);
    let marks = marks.iter().map(|(at, width)| match width {
        Width::Half(number) => (LOAD_HALF, network + *at as i32, u32::from(*number)),
        Width::Word(number) => (LOAD, network + *at as i32, *number),
    });
    let checks: Vec<_> = [device].into_iter().chain(marks).collect();
    let mut program = Vec::new();
    for (at, (load, from, number)) in checks.iter().enumerate() {
        // Past the checks that follow, of two instructions each, and the first return.
        let otherwise = 2 * (checks.len() - at - 1) + 1;
        program.push(code(*load, 0, *from as u32));
        program.push(code(JUMP_IF_EQUAL, otherwise as u8, *number));
    }
    program.push(code(RETURN, 0, u32::MAX));
    program.push(code(RETURN, 0, 0));
    program
}

/// The IP and UDP headers; the kernel fills in the length and checksum of the first, and 0 is no
/// checksum in the second.
fn header(datagram: &Datagram, id: u16) -> Vec<u8> {
    const VERSION_AND_LENGTH: u8 = 0x45;
    let (from, to) = (datagram.source, datagram.destination);
    let length = datagram.payload.len() as u16 + 8;
    let [id0, id1] = id.to_be_bytes();
    let mut bytes = vec![VERSION_AND_LENGTH, datagram.tos, 0, 0, id0, id1, 0, 0];
    bytes.extend([datagram.ttl, UDP, 0, 0]);
    for ip in [from.ip(), to.ip()] {
        if let IpAddr::V4(ip) = ip {
            bytes.extend(ip.octets());
        }
    }
    for word in [from.port(), to.port(), length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes
}

/// The IPv6 header, the extension headers and the UDP header with its checksum.
fn header6(datagram: &Datagram) -> io::Result<Vec<u8>> {
    const VERSION: u32 = 6 << 28;
    let (SocketAddr::V6(from), SocketAddr::V6(to)) = (datagram.source, datagram.destination) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let (first, extensions) = match datagram.options.split_first() {
        Some((first, extensions)) => (*first, extensions),
        None => (UDP, &[][..]),
    };
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let length = u16::try_from(datagram.payload.len() + 8).map_err(too_long)?;
    let whole = u16::try_from(usize::from(length) + extensions.len()).map_err(too_long)?;
    let flow = VERSION | u32::from(datagram.tos) << 20 | datagram.flow_label & FLOW_LABEL;
    let mut bytes = flow.to_be_bytes().to_vec();
    bytes.extend(whole.to_be_bytes());
    bytes.extend([first, datagram.ttl]);
    bytes.extend(from.ip().octets());
    bytes.extend(to.ip().octets());
    bytes.extend(extensions);
    let addresses = [from.ip().octets(), to.ip().octets()];
    let ports = [from.port(), to.port(), length];
    let sum = checksum6(addresses.as_flattened(), ports, &datagram.payload);
    let [source, destination, length] = ports;
    for word in [source, destination, length, sum] {
        bytes.extend(word.to_be_bytes());
    }
    Ok(bytes)
}

/// The checksum of UDP over IPv6 (RFC 8200, 8.1): never 0, which would be none.
fn checksum6(addresses: &[u8], ports: [u16; 3], payload: &[u8]) -> u16 {
    let words = |bytes: &[u8]| -> u64 {
        let pairs = bytes.chunks(2).map(|pair| match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            [high] => u16::from_be_bytes([*high, 0]),
            _ => 0,
        });
        pairs.map(u64::from).sum()
    };
    let [_, _, length] = ports.map(u64::from);
    let head: u64 = ports.map(u64::from).iter().sum();
    let mut sum = words(addresses) + words(payload) + head + length + u64::from(UDP);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    match !(sum as u16) {
        0 => 0xffff,
        sum => sum,
    }
}

/// The source, the ports, the length and the checksum in such headers, and where they are.
fn marks6(header: &[u8]) -> Vec<(usize, Width)> {
    let udp = header.len().saturating_sub(8);
    let places = [8, 12, 16, 20, udp, udp + 4];
    let word = |at: usize| {
        let bytes = header.get(at..).and_then(|rest| rest.first_chunk());
        Some((at, Width::Word(u32::from_be_bytes(*bytes?))))
    };
    places.into_iter().filter_map(word).collect()
}

/// With the address of IPv4 where it is one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
