//! The datagrams that wait to be received, read by BPF without taking any, and put back before the
//! new socket is bound. Without BPF: `peek` and `raw_queue`.

use super::endpoint::Failure;
use super::interfaces::Interfaces;
use super::meanwhile::{self, Meanwhile};
use super::raw_queue::{self, Spot};
use super::shutdown::poll_now;
use super::{hearers, peek};
use crate::image::MOST_RECEIVED;
use crate::kernel::inject::{self, Carries, Fill, Inexact, Injected, Injector};
use crate::kernel::{self, Hidden, Queued};
use crate::option::Options;
use crate::protocol::Protocol;
use crate::report::Report;
use rustix::event::PollFlags;
use rustix::net::{RecvFlags, recv};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

/// More empty datagrams that somebody has peeked at are not worth the time of the looks.
const MOST_PEEKS: usize = 1000;
const SOL_SOCKET: i32 = 1;
const SO_PEEK_OFF: i32 = 42;
/// SO_TIMESTAMP and SO_TIMESTAMPNS, old and new: one of them is on, or none.
const TIME_STAMPS: [i32; 4] = [29, 35, 63, 64];

/// One datagram, as recvmsg(2) with every option would tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where it came from; address and port may be 0.
    pub source: SocketAddr,
    /// Where it went to.
    pub destination: SocketAddr,
    /// IP_RECVTTL, IPV6_RECVHOPLIMIT.
    pub ttl: u8,
    /// IP_RECVTOS, IPV6_RECVTCLASS.
    pub tos: u8,
    /// IPV6_FLOWINFO, without the traffic class; 0 for IPv4.
    pub flow_label: u32,
    /// The device that IP_PKTINFO or IPV6_PKTINFO tells, by index; 0: none, because it was off at arrival.
    pub interface: u32,
    /// The local address that IP_PKTINFO or IPV6_PKTINFO tells.
    pub local: IpAddr,
    /// When it arrived, in nanoseconds since the epoch; 0: not stamped.
    pub received_at: i64,
    /// SO_RCVMARK.
    pub mark: u32,
    /// SO_RCVPRIORITY.
    pub priority: u32,
    /// What UDP_GRO tells; 0 for a single datagram.
    pub segment: u32,
    /// The options of its IP header; of IPv6 the extension headers, and before them one byte, the kind of
    /// the first.
    pub options: Vec<u8>,
    /// It is empty, and somebody has peeked at it: who peeks with SO_PEEK_OFF does not see it again.
    pub peeked: bool,
    /// Its data.
    pub payload: Vec<u8>,
}

/// Something of a datagram that only its arrival gives it: a loss for those who want to know it.
struct Loss {
    what: &'static str,
    options: &'static [&'static str],
    has: fn(&Queued) -> bool,
    why: &'static str,
}

const LOSSES: [Loss; 4] = [
    Loss {
        what: "IP_RECVFRAGSIZE",
        options: &["IP_RECVFRAGSIZE", "IPV6_RECVFRAGSIZE"],
        has: |queued| queued.fragment_size > 0,
        why: "came in fragments, and would not again",
    },
    Loss {
        what: "IP_CHECKSUM",
        options: &["IP_CHECKSUM"],
        has: |queued| queued.summed,
        why: "the device summed them up, and would not again",
    },
    Loss {
        what: "SO_TIMESTAMPING",
        options: &["SO_TIMESTAMPING_OLD", "SO_TIMESTAMPING_NEW"],
        has: |queued| queued.hardware_time,
        why: "the hardware gave them a time, and would not again",
    },
    Loss {
        what: "IP_PASSSEC",
        options: &["IP_PASSSEC"],
        has: |queued| queued.security_mark,
        why: "a firewall gave them a security mark, and would not again",
    },
];

/// Reads the queue; what of it a restore could not put back is reported.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    hidden: Option<&Hidden>,
    options: &Options,
    report: &mut Report,
) -> Vec<Datagram> {
    let Some(hidden) = hidden else {
        return match protocol.is_udp() {
            true => peek::dump(fd, report),
            false => unseen(fd, report),
        };
    };
    if hidden.receive_queue == 0 {
        return Vec::new();
    }
    let queue = kernel::reader()
        .map_err(io::Error::other)
        .and_then(|reader| reader.receive_queue(fd));
    let queue = match queue {
        Ok(queue) => queue,
        Err(error) => {
            let count = hidden.receive_queue;
            let why = crate::error::reason(&error);
            report.lose("receive queue", format!("{count} waiting: {why}"));
            return Vec::new();
        }
    };
    told(queue, protocol, options, report)
}

/// What a checkpoint holds of a queue; what of it a restore could not put back is reported.
pub(crate) fn told(
    queue: Vec<Queued>,
    protocol: &Protocol,
    options: &Options,
    report: &mut Report,
) -> Vec<Datagram> {
    for loss in LOSSES.iter().filter(|loss| queue.iter().any(loss.has)) {
        let what = format!("receive queue: {}", loss.what);
        match loss.options.iter().any(|option| options.has(option)) {
            true => report.lose(what, loss.why),
            false => report.assume(what + " never wanted", loss.why),
        }
    }
    let mut queue: Vec<Datagram> = queue.into_iter().map(Datagram::from).collect();
    // Others have no SO_PEEK_OFF.
    queue
        .iter_mut()
        .for_each(|d| d.peeked &= protocol.has_ports());
    let waiting = queue.len();
    // Segments of TCP that a device has put together can be longer than any packet (`gro_max_size`).
    queue.retain(|datagram| datagram.payload.len() <= MOST_RECEIVED);
    if queue.len() < waiting {
        let count = waiting - queue.len();
        report.lose(
            "receive queue",
            format!("{count} of them: too long for an image"),
        );
    }
    queue
}

/// Without BPF only whether anything waits is seen of a socket that is not of UDP.
fn unseen(fd: BorrowedFd<'_>, report: &mut Report) -> Vec<Datagram> {
    let waits = poll_now(fd).map(|events| events.contains(PollFlags::IN));
    if report.known("receive queue", waits).unwrap_or(false) {
        report.lose(
            "receive queue",
            "without CAP_BPF it is read of UDP sockets only",
        );
    }
    Vec::new()
}

impl From<Queued> for Datagram {
    fn from(queued: Queued) -> Datagram {
        Datagram {
            source: queued.source,
            destination: queued.destination,
            ttl: queued.ttl,
            tos: queued.tos,
            flow_label: queued.flow_label,
            interface: queued.pktinfo_interface,
            local: queued.pktinfo_address,
            received_at: queued.received_at,
            mark: queued.mark,
            priority: queued.priority,
            segment: queued.segment_size.into(),
            options: queued.ip_options,
            peeked: queued.peeked,
            payload: queued.payload,
        }
    }
}

/// Puts the queue into a new socket: an unbound one without a filter ([`inject`]), or a ping socket or one
/// of UDP-Lite in its place. A sockmap takes none of UDP-Lite (`sk_is_udp`): the kernel finds it.
pub(crate) fn restore(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    queue: &[Datagram],
    interfaces: &Interfaces,
    injector: &mut dyn Fill,
    report: &mut Report,
) -> Result<(), Failure> {
    let failed = |error| Failure::at("look who else would hear the receive queue", error);
    if protocol.is_lite()
        && let Some(why) = raw_queue::obstacle(fd).map_err(failed)?
    {
        report.lose("receive queue", format!("{} waiting: {why}", queue.len()));
        return Ok(());
    }
    let place = Spot::of(fd).map_err(failed)?;
    let devices = devices(fd, queue, interfaces, report);
    let mut queue = without_too_long(protocol, queue, report);
    if protocol.is_lite() {
        without_stray(&place, &mut queue, report);
    } else if !protocol.is_udp() {
        without_heard(fd, protocol, &mut queue, report).map_err(failed)?;
    }
    let carries = match (protocol.has_ports(), protocol.is_raw(), protocol.is_ipv6()) {
        (true, ..) if protocol.is_lite() => Carries::Lite { bound: place.bound },
        (true, ..) => Carries::Data,
        (false, true, false) => Carries::Packet,
        _ => Carries::Message(protocol.number as u8),
    };
    let queue = &queue[..];
    let datagrams = to_inject(carries, queue, &devices);
    let injected = injector
        .inject(fd, &datagrams)
        .map_err(|error| Failure::at("put the receive queue back", error))?;
    tell(&injected, report);
    let peeked = queue.iter().filter(|datagram| datagram.peeked).count();
    if peeked > MOST_PEEKS {
        let why = format!("{peeked} of them, and each look goes through the whole queue");
        report.lose("receive queue: peeking at empty ones", why);
        return Ok(());
    }
    peek_again(fd, queue).map_err(|error| Failure::at("receive queue: peek again", error))
}

/// Puts datagrams into a socket of UDP that is in its place and in use, behind what it has by then.
pub(crate) fn add(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    queue: &[Datagram],
    interfaces: &Interfaces,
    injector: &mut Injector,
    report: &mut Report,
) -> io::Result<()> {
    let devices = devices(fd, queue, interfaces, report);
    let queue = without_too_long(protocol, queue, report);
    let injected = injector.inject_live(fd, &to_inject(Carries::Data, &queue, &devices))?;
    tell(&injected, report);
    Ok(())
}

fn to_inject<'a>(
    carries: Carries,
    queue: &[&'a Datagram],
    devices: &BTreeMap<u32, u32>,
) -> Vec<inject::Datagram<'a>> {
    let datagrams = queue.iter().map(|datagram| inject::Datagram {
        carries,
        source: datagram.source,
        destination: datagram.destination,
        ttl: datagram.ttl,
        tos: datagram.tos,
        flow_label: datagram.flow_label,
        interface: devices.get(&datagram.interface).copied().unwrap_or(0),
        local: (datagram.interface != 0).then_some(datagram.local),
        received_at: datagram.received_at,
        mark: datagram.mark,
        priority: datagram.priority,
        segment_size: u16::try_from(datagram.segment).unwrap_or(0),
        ip_options: &datagram.options,
        payload: &datagram.payload,
    });
    datagrams.collect()
}

/// What comes by IPv6 and does not pass the loopback device in one piece cannot be put back.
fn without_too_long<'a>(
    protocol: &Protocol,
    queue: &'a [Datagram],
    report: &mut Report,
) -> Vec<&'a Datagram> {
    let ports = protocol.has_ports();
    let fits = |one: &&Datagram| inject::fits(&one.destination, ports, &one.options, &one.payload);
    let whole: Vec<&Datagram> = queue.iter().filter(fits).collect();
    match queue.len() - whole.len() {
        0 => {}
        lost => report.lose(
            "receive queue",
            format!("{lost} of them: too long to come by the loopback device in one piece"),
        ),
    }
    whole
}

/// Leaves out what the kernel would not find this socket for.
fn without_stray(place: &Spot, queue: &mut Vec<&Datagram>, report: &mut Report) {
    let mut lost: BTreeMap<&'static str, usize> = BTreeMap::new();
    queue.retain(|datagram| {
        place.stray(datagram).is_none_or(|what| {
            *lost.entry(what).or_default() += 1;
            false
        })
    });
    for (what, count) in lost {
        let why = format!("{count} of them: the kernel would not give them to it again");
        report.lose(format!("receive queue: {what}"), why);
    }
}

/// Leaves out what others would hear too, or the kernel itself.
fn without_heard(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    queue: &mut Vec<&Datagram>,
    report: &mut Report,
) -> io::Result<()> {
    let mut lost: BTreeMap<&'static str, usize> = BTreeMap::new();
    let others = match queue.is_empty() {
        true => None,
        false => hearers::others(fd, protocol)?,
    };
    queue.retain(|datagram| {
        let why = others.or_else(|| hearers::act(fd, protocol, datagram));
        why.is_none_or(|why| {
            *lost.entry(why).or_default() += 1;
            false
        })
    });
    for (why, count) in lost {
        report.lose("receive queue", format!("{count} of them: {why}"));
    }
    Ok(())
}

/// Peeks at the empty datagrams that somebody has peeked at: with SO_PEEK_OFF the first one at that
/// place that is not marked yet is found (`__skb_try_recv_from_queue`).
fn peek_again(fd: BorrowedFd<'_>, queue: &[&Datagram]) -> io::Result<()> {
    if !queue.iter().any(|datagram| datagram.peeked) {
        return Ok(());
    }
    let mut meanwhile = Meanwhile::new(fd);
    meanwhile.keep(SOL_SOCKET, SO_PEEK_OFF)?;
    // A look gives a datagram that has none the time of looking (`__sock_recv_timestamp`).
    for name in TIME_STAMPS {
        if meanwhile::get(fd, SOL_SOCKET, name)? != 0 {
            meanwhile.set(SOL_SOCKET, name, 0)?;
        }
    }
    let peeked = peek_at_each(fd, queue);
    let back = meanwhile.put_back();
    peeked.and(back)
}

fn peek_at_each(fd: BorrowedFd<'_>, queue: &[&Datagram]) -> io::Result<()> {
    let mut before = 0;
    for datagram in queue {
        if datagram.peeked {
            let place = i32::try_from(before).map_err(io::Error::other)?;
            meanwhile::set(fd, SOL_SOCKET, SO_PEEK_OFF, place)?;
            recv(fd, &mut [0; 0][..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        }
        before += datagram.payload.len();
    }
    Ok(())
}

/// The indexes here of the devices of a queue; one that is missing is told once, and 0.
pub(super) fn devices(
    fd: BorrowedFd<'_>,
    queue: &[Datagram],
    interfaces: &Interfaces,
    report: &mut Report,
) -> BTreeMap<u32, u32> {
    let mut devices = BTreeMap::new();
    for datagram in queue {
        let index = datagram.interface;
        devices.entry(index).or_insert_with(|| {
            interfaces.local(fd, index).unwrap_or_else(|error| {
                report.lose("receive queue: IP_PKTINFO", crate::error::reason(&error));
                0
            })
        });
    }
    devices
}

/// Whether the queue is to be put into the socket only when it has taken its place, because there
/// is no BPF to do it before ([`restore_in_place`]).
pub(crate) fn comes_later(queue: &[Datagram]) -> bool {
    !queue.is_empty() && kernel::reader().is_err()
}

/// Has a new socket, whose filter lets nothing in, take its place, and puts the queue into it.
pub(crate) fn restore_in_place(
    fd: BorrowedFd<'_>,
    take: impl Fn() -> Result<(), Failure>,
    queue: &[Datagram],
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let alone = raw_queue::take_alone(fd, take)?;
    raw_queue::restore(fd, queue, interfaces, report)?;
    match alone {
        true => raw_queue::share(fd),
        false => Ok(()),
    }
}

/// Has a new socket of UDP-Lite, whose filter lets nothing in, take its place, and `fill` it while nobody
/// shares that.
pub(crate) fn fill_alone(
    fd: BorrowedFd<'_>,
    take: impl Fn() -> Result<(), Failure>,
    fill: impl FnOnce(),
) -> Result<(), Failure> {
    let alone = raw_queue::take_alone(fd, take)?;
    fill();
    match alone {
        true => raw_queue::share(fd),
        false => Ok(()),
    }
}

fn tell(injected: &Injected, report: &mut Report) {
    for (inexact, what, why) in [
        (
            Inexact::Interface,
            "IP_PKTINFO",
            "the device is not here, or down",
        ),
        (
            Inexact::SegmentSize,
            "UDP_GRO",
            "the segments are one long datagram now",
        ),
        (
            Inexact::Options,
            "IP options",
            "arriving once more changed them",
        ),
    ] {
        let count = injected
            .inexact
            .iter()
            .filter(|(_, i)| *i == inexact)
            .count();
        if count > 0 {
            report.lose(
                format!("receive queue: {what}"),
                format!("{count} of them: {why}"),
            );
        }
    }
}
