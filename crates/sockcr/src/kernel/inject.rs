//! Puts datagrams into a new socket before it is bound, exactly as they once came.
//!
//! A raw socket sends packets of a protocol that nobody receives to this host itself. A small
//! program at the loopback device (TCX) makes of each the datagram it stands for: addresses, ports,
//! TTL, TOS, options, receive time and mark come from a record in a map, the payload is in the
//! packet. Then it gives the packet to the one socket of another map (`bpf_sk_assign`), whatever
//! its addresses are. The kernel had routed the packet as a local one before, so that neither
//! rp_filter nor a missing route is in the way, and no packet goes out by any device.
//!
//! Programs, maps and links are held by descriptors alone: they end with the process, however it
//! ends. A packet that the program does not see is no UDP, and no UDP socket gets it.
//!
//! Who listens to everything that comes by the device hears these packets too: packet sockets, and
//! raw sockets of UDP, which the kernel serves first (`raw_local_deliver`).

mod filling;
mod members;
mod notices;
mod program;
mod record;
mod sender;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sockcr_sys::bpf::{self, Content, Map};
use sockcr_sys::guard::Guard;

use self::filling::Filling;
pub(crate) use self::members::Members;
use self::program::Plan;
use self::record::RECORDS;
pub(crate) use self::sender::addresses;
use self::sender::{Sender, Way};
use self::target::Mode;
use super::{Reader, Unavailable};

/// The index of the loopback device in every network namespace.
const LOOPBACK: u32 = 1;
/// Where the IP header begins at the loopback device, behind an Ethernet header.
const BASE_LOOPBACK: i32 = 14;
/// Where it begins in what `dev_loopback_xmit` gives back to a device.
const BASE_RETURNED: i32 = 0;
/// What the payload of a datagram is, and how its socket gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Carries {
    /// The data of a UDP datagram: given to the socket (`bpf_sk_assign`).
    Data,
    /// The data of a UDP-Lite datagram. The kernel finds the socket by its port, address and peer.
    Lite {
        /// The index of the device that the socket is bound to; 0: none.
        bound: u32,
    },
    /// All behind the IP header, of this protocol. The kernel finds the socket by itself, and all others
    /// that match.
    Message(u8),
    /// The same with an IPv4 header before it, that stays as it is.
    Packet,
}

/// A datagram as it waits in a queue.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Datagram<'a> {
    /// What its payload is.
    pub carries: Carries,
    /// Where it came from: any address, any port.
    pub source: SocketAddr,
    /// Where it went to: any address, also one that this host has no more.
    pub destination: SocketAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// The flow label of IPv6.
    pub flow_label: u32,
    /// The index here of the device that IP_PKTINFO tells; 0: IP_PKTINFO tells nothing, because it
    /// was off when the datagram came.
    pub interface: u32,
    /// The local address that IP_PKTINFO tells; None: nothing.
    pub local: Option<IpAddr>,
    /// The receive time in ns; 0: none was taken.
    pub received_at: i64,
    /// The mark.
    pub mark: u32,
    /// The priority.
    pub priority: u32,
    /// What UDP_GRO tells; 0 for a single datagram.
    pub segment_size: u16,
    /// The IP options, as in the header; of IPv6 the kind of the first extension header, and the
    /// headers.
    pub ip_options: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// The bytes of an IPv4 header at the beginning of the payload.
    fn own_header(&self) -> usize {
        match (self.carries, self.payload.first()) {
            (Carries::Packet, Some(first)) => usize::from(first & 0x0f) * 4,
            _ => 0,
        }
    }

    /// The payload without the IP header.
    fn body(&self) -> &'a [u8] {
        self.payload.get(self.own_header()..).unwrap_or_default()
    }

    /// What follows the bytes that a record holds.
    fn rest(&self) -> &'a [u8] {
        match self.carries {
            Carries::Data | Carries::Lite { .. } => self.payload,
            _ => self
                .body()
                .get(record::UDP_HEADER_SIZE..)
                .unwrap_or_default(),
        }
    }

    /// Whether there are ports before its payload.
    fn has_ports(&self) -> bool {
        matches!(self.carries, Carries::Data | Carries::Lite { .. })
    }

    /// Whether `icmp_rcv` is to throw it away once raw sockets have it, which it does with most that is
    /// for many.
    fn is_icmp_packet(&self) -> bool {
        const ICMP: u8 = 1;
        self.carries == Carries::Packet && self.payload.get(9) == Some(&ICMP)
    }
}

/// An ICMP message that says what became of a datagram the socket had sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Notice<'a> {
    /// Who sent it.
    pub source: IpAddr,
    /// Whom it was sent to.
    pub local: IpAddr,
    /// The index here of the device that it comes by; 0: the loopback device. IPv4 knows no other.
    pub device: u32,
    /// TTL.
    pub ttl: u8,
    /// TOS.
    pub tos: u8,
    /// The flow label of IPv6.
    pub flow_label: u32,
    /// The type of the message.
    pub kind: u8,
    /// Its code.
    pub code: u8,
    /// The second word of its header.
    pub rest: [u8; 4],
    /// The receive time in ns; 0: none was taken.
    pub received_at: i64,
    /// Where the datagram was going.
    pub destination: SocketAddr,
    /// What the message quotes of its data.
    pub payload: &'a [u8],
}

/// What a datagram lost on its way into the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Inexact {
    /// The device it came by is not here, or down: IP_PKTINFO tells nothing.
    Interface,
    /// The segments that UDP_GRO had put together came as one long datagram.
    SegmentSize,
    /// IP options with time stamps: one more was added.
    Options,
}

/// All datagrams are in the queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injected {
    /// Those that are not exactly what was given, by their place in the list.
    pub inexact: Vec<(usize, Inexact)>,
}

/// What puts datagrams and errors into new sockets: an [`Injector`], or whoever has one for somebody with
/// fewer rights.
pub trait Fill: std::fmt::Debug + Send {
    /// As [`Injector::inject`].
    fn inject(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: &[Datagram<'_>],
    ) -> io::Result<Injected>;

    /// As [`Injector::notify`].
    fn notify(&mut self, socket: BorrowedFd<'_>, port: u16, notice: &Notice<'_>) -> io::Result<()>;
}

impl Fill for Injector {
    fn inject(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: &[Datagram<'_>],
    ) -> io::Result<Injected> {
        Injector::inject(self, socket, datagrams)
    }

    fn notify(&mut self, socket: BorrowedFd<'_>, port: u16, notice: &Notice<'_>) -> io::Result<()> {
        Injector::notify(self, socket, port, notice)
    }
}

/// An [`Injector`] that is made when it is first needed, or somebody else's.
#[derive(Debug, Default)]
pub struct Lazy {
    own: Option<Injector>,
    other: Option<Box<dyn Fill>>,
}

impl Lazy {
    /// Somebody else's.
    pub fn of(other: Box<dyn Fill>) -> Lazy {
        Lazy {
            own: None,
            other: Some(other),
        }
    }

    /// What fills new sockets.
    pub fn fill(&mut self) -> io::Result<&mut dyn Fill> {
        match self.other {
            Some(ref mut other) => Ok(&mut **other),
            None => own(&mut self.own).map(|own| own as &mut dyn Fill),
        }
    }

    /// The injector, if it is there already.
    pub fn made(&self) -> Option<&Injector> {
        self.own.as_ref()
    }

    /// The injector, for the network namespace in which this thread was at the first call.
    pub fn get(&mut self) -> io::Result<&mut Injector> {
        own(&mut self.own)
    }
}

fn own(injector: &mut Option<Injector>) -> io::Result<&mut Injector> {
    match injector {
        Some(injector) => Ok(injector),
        empty => Ok(empty.insert(Injector::new()?)),
    }
}

/// What puts datagrams into sockets of one network namespace; several sockets share one: coming and
/// going, a program waits for all processors (`tcx_entry_sync`), some 15 ms. While it lives, the program is at
/// the loopback device, where it lets everything pass that is not its own.
///
/// Needs Linux 6.6, CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_NET_RAW, and the loopback device
/// up.
#[derive(Debug)]
pub struct Injector {
    reader: &'static Reader,
    secret: i32,
    records: Map,
    target: Map,
    /// For IPv4 and for IPv6, each when it is first needed.
    channels: [Option<Channel>; 2],
    /// The program at other devices, where groups are heard on them, and its links.
    returned: Option<OwnedFd>,
    devices: BTreeMap<u32, OwnedFd>,
    /// A member of IPv6 groups on the loopback device, where datagrams for them come in.
    members: Option<Members>,
}

/// What sends, and the program that hears it.
#[derive(Debug)]
struct Channel {
    sender: Sender,
    /// Detached when closed.
    _loopback: OwnedFd,
}

impl Injector {
    /// Prepares the network namespace of this thread.
    pub fn new() -> io::Result<Self> {
        let reader = super::reader().map_err(Unavailable::io)?;
        let size = u32::try_from(record::SIZE * RECORDS).map_err(io::Error::other)?;
        let records = Map::new(Content::Bytes(size), "sockcr_queue")
            .map_err(step("make a BPF map of datagrams"))?;
        let target = Map::new(Content::Socket, "sockcr_target")
            .map_err(step("make a BPF map of a socket"))?;
        Ok(Self {
            reader,
            secret: secret(),
            records,
            target,
            channels: [None, None],
            returned: None,
            devices: BTreeMap::new(),
            members: None,
        })
    }

    /// Makes the channel of one of the protocols, if it is not there.
    fn channel(&mut self, ipv6: bool) -> io::Result<()> {
        if self.channels[usize::from(ipv6)].is_some() {
            return Ok(());
        }
        let sender =
            Sender::open(ipv6, self.secret).map_err(step("open the sockets that send a queue"))?;
        let program = load(self.plan(BASE_LOOPBACK, ipv6, sender.port()))?;
        let link = bpf::link_ingress(program.as_fd(), LOOPBACK);
        let attach = step("put a BPF program before the loopback device (TCX, Linux 6.6)");
        self.channels[usize::from(ipv6)] = Some(Channel {
            sender,
            _loopback: link.map_err(attach)?,
        });
        Ok(())
    }

    fn sender(&self, ipv6: bool) -> io::Result<&Sender> {
        let channel = self.channels[usize::from(ipv6)].as_ref();
        channel
            .map(|channel| &channel.sender)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn plan(&self, base: i32, ipv6: bool, port: u16) -> Plan<'_> {
        Plan {
            ipv6,
            base,
            secret: self.secret,
            port,
            records: self.records.as_fd(),
            target: self.target.as_fd(),
        }
    }

    /// Puts datagrams into exactly this unbound socket and no other, in order, behind those it has.
    ///
    /// The socket is new, in the network namespace of this injector, without a filter; nobody else
    /// uses it meanwhile. Its options are as before afterwards, and it is unbound; SO_RCVBUF does
    /// not limit the queue. Where the kernel drops a datagram (a firewall, an IPsec policy, the
    /// limit of all UDP memory), the error says so, and the socket is to be closed.
    ///
    /// A socket that is not of UDP gets it where it is and keeps its place; nothing else may hear what it
    /// hears. Afterwards it has a filter that lets nothing in.
    ///
    /// A route that early demux may remember (`sk_rx_dst`) is left as one for a group when the
    /// socket has memberships, else as one for this host; where the last datagram was not of that
    /// kind, one more packet is dropped by the socket, which its drop counter shows.
    pub fn inject(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: &[Datagram<'_>],
    ) -> io::Result<Injected> {
        self.put(socket, datagrams, Mode::of(datagrams))
    }

    /// Puts datagrams of UDP into a socket that is in its place, in order, behind what it has by then;
    /// its owner and others use it meanwhile. They pass its own filter once more.
    ///
    /// Where they need it, SO_RCVBUF does not limit the queue meanwhile; it is put back even if we are
    /// killed. In a SO_REUSEPORT group that chooses by hash they go to whom the kernel chooses
    /// (`inet6_steal_sock`).
    pub fn inject_live(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: &[Datagram<'_>],
    ) -> io::Result<Injected> {
        let room = target::lacks_room(socket, datagrams)?;
        let guard = match room {
            true => {
                let steps = target::room_now(socket)?.into_iter();
                Some(Guard::new(steps.map(|step| (socket, step)).collect())?)
            }
            false => None,
        };
        let put = self.put(socket, datagrams, Mode::Live { room });
        // They are put back by now.
        guard.map_or(Ok(()), Guard::keep).and(put)
    }

    /// Does now what takes long the first time: what sends datagrams of these protocols.
    pub fn get_ready(&mut self, ipv4: bool, ipv6: bool) -> io::Result<()> {
        for (wanted, which) in [(ipv4, false), (ipv6, true)] {
            if wanted {
                self.channel(which)?;
            }
        }
        Ok(())
    }

    /// Whether datagrams of these protocols can be sent at once.
    pub fn is_ready(&self, ipv4: bool, ipv6: bool) -> bool {
        let [four, six] = &self.channels;
        (four.is_some() || !ipv4) && (six.is_some() || !ipv6)
    }

    fn put(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: &[Datagram<'_>],
        mode: Mode,
    ) -> io::Result<Injected> {
        if datagrams.is_empty() {
            return Ok(Injected::default());
        }
        let mut injected = Injected::default();
        let mut ways = ways(datagrams, &mut injected);
        for way in &ways {
            self.channel(way.ipv6)?;
        }
        self.link(&mut ways, &mut injected)?;
        self.join(datagrams)?;
        let mut filling = Filling::new(self, socket, mode, ways)?;
        let sent = filling.all(datagrams, &mut injected);
        let left = filling.finish();
        sent.and(left)?;
        filling.arrived(0)?;
        injected.inexact.sort_by_key(|(at, _)| *at);
        Ok(injected)
    }

    /// Puts the program before the devices that groups are heard on. What came by a device that is
    /// gone takes another way.
    fn link(&mut self, ways: &mut [Way], injected: &mut Injected) -> io::Result<()> {
        let groups = ways.iter().filter(|way| way.group && way.device > LOOPBACK);
        let wanted: BTreeSet<u32> = groups.map(|way| way.device).collect();
        for device in wanted {
            match self.link_device(device) {
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => {
                    avoid(device, ways, injected);
                }
                linked => linked.map_err(step("put a BPF program before a device"))?,
            }
        }
        Ok(())
    }

    fn link_device(&mut self, device: u32) -> io::Result<()> {
        if self.devices.contains_key(&device) {
            return Ok(());
        }
        let program = match self.returned.take() {
            Some(program) => program,
            None => load(self.plan(BASE_RETURNED, false, self.sender(false)?.port()))?,
        };
        let program = self.returned.insert(program);
        let link = bpf::link_ingress(program.as_fd(), device)?;
        self.devices.insert(device, link);
        Ok(())
    }

    /// Writes the records, from the first on.
    fn write(&self, mut records: Vec<u8>) -> io::Result<()> {
        records.resize(record::SIZE * RECORDS, 0);
        self.records.put(&records)
    }

    /// How many of the first `sent` records the program has met.
    fn seen(&self, sent: usize) -> usize {
        let records = self.records.get().unwrap_or_default();
        let seen = records.chunks(record::SIZE).take(sent);
        seen.filter(|record| record::was_seen(record)).count()
    }

    /// Joins the IPv6 groups that datagrams came to: `ip6_protocol_deliver_rcu` asks the device.
    fn join(&mut self, datagrams: &[Datagram<'_>]) -> io::Result<()> {
        for datagram in datagrams {
            if let IpAddr::V6(group) = datagram.destination.ip()
                && group.is_multicast()
                && datagram.has_ports()
            {
                let members = match &mut self.members {
                    Some(members) => members,
                    empty => empty.insert(Members::new()?),
                };
                members.join(group)?;
            }
        }
        Ok(())
    }
}

/// Whether a datagram, with `ports` or the packet of a raw socket, passes the loopback device in one
/// piece: one of IPv6 can be longer than its MTU (`loopback_setup`).
pub fn fits(destination: &SocketAddr, ports: bool, options: &[u8], payload: &[u8]) -> bool {
    const MTU: usize = 64 * 1024;
    let ports = if ports { record::UDP_HEADER_SIZE } else { 0 };
    let headers = record::HEADER6 + options.len().saturating_sub(1) + ports;
    destination.is_ipv4() || headers + payload.len() <= MTU
}

/// The way of each, and what is lost on it from the start.
fn ways(datagrams: &[Datagram<'_>], injected: &mut Injected) -> Vec<Way> {
    let mut ways = Vec::with_capacity(datagrams.len());
    for (at, datagram) in datagrams.iter().enumerate() {
        let way = Way::of(datagram);
        if datagram.segment_size != 0 && !way.segments {
            injected.inexact.push((at, Inexact::SegmentSize));
        }
        let own = datagram.carries == Carries::Packet;
        if !way.ipv6 && record::changes_on_arrival(datagram.ip_options, own) {
            injected.inexact.push((at, Inexact::Options));
        }
        ways.push(way);
    }
    ways
}

/// Sends what came to a group by a device by way of the loopback device.
fn avoid(device: u32, ways: &mut [Way], injected: &mut Injected) {
    let lost = ways.iter_mut().enumerate();
    for (at, way) in lost.filter(|(_, way)| way.group && way.device == device) {
        *way = way.by_loopback();
        injected.inexact.push((at, Inexact::Interface));
    }
}

fn load(plan: Plan<'_>) -> io::Result<OwnedFd> {
    let code = program::program(plan).map_err(io::Error::other)?;
    super::load(bpf::Kind::Classifier, "sockcr_inject", &code).map_err(|why| {
        let kind = match why.is_privilege() {
            true => io::ErrorKind::PermissionDenied,
            false => io::ErrorKind::Unsupported,
        };
        io::Error::new(kind, why)
    })
}

/// What tells our packets from anybody else's: positive, not 0.
fn secret() -> i32 {
    let random = RandomState::new().build_hasher().finish();
    (random & 0x7fff_ffff) as i32 | 1
}

/// Adds what was attempted to an error.
fn step(what: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}
