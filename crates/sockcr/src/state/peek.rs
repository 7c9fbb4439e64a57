//! The receive queue without BPF: looked at by recvmsg(2) with MSG_PEEK, which takes nothing.
//!
//! We share the socket with an owner that runs on, so that what we touch is little:
//!
//! - SO_PEEK_OFF moves the look from one datagram to the next, and is put back also when we are
//!   killed ([`Guard`]). While it is on, a look by the owner itself would begin where ours is. Where
//!   the owner has it on, we do not look: ours would move its position, and marks the empty
//!   datagrams that it has not seen yet as seen.
//! - No option is switched on for what it would tell: the owner's own recvmsg(2) would find control
//!   messages that it did not ask for. So what the owner has not asked for is not carried, and
//!   reported by name.
//! - A look takes a pending error away (`sock_error`): where poll(2) tells of one, we do not look.
//!   One that comes while many are looked at by one recvmmsg(2) is left with the socket
//!   (`do_recvmmsg`).
//! - A look sets the time that SIOCGSTAMP tells (`sock_recv_timestamp`).
//!
//! The kernel goes from the head of the queue to the position at each look
//! (`__skb_try_recv_from_queue`), so that the cost grows with the square of the depth. It passes
//! over an empty datagram that was looked at once (`skb->peeked`), unless it is the first and
//! SO_PEEK_OFF is off: what the queue takes of memory tells whether there may be such.
//!
//! An AF_INET6 socket tells of what came by IPv4 as an AF_INET one, and by IPV6_PKTINFO besides
//! (`udpv6_recvmsg`).

use super::endpoint::plain;
use super::meanwhile::{get, set};
use super::receive_queue::Datagram;
use super::shutdown::poll_now;
use crate::netns;
use crate::report::Report;
use rustix::event::PollFlags;
use rustix::io::Errno;
use sockcr_sys::guard::{Guard, Step};
use sockcr_sys::message::{Batch, ControlMessage, Message, control_messages};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

const SOL_SOCKET: i32 = 1;
const SO_TIMESTAMP: i32 = 29;
const SO_TIMESTAMPNS: i32 = 35;
const SO_PRIORITY: i32 = 12;
const SO_MARK: i32 = 36;
pub(super) const SO_PEEK_OFF: i32 = 42;
const SO_MEMINFO: i32 = 55;
const SO_TIMESTAMP_NEW: i32 = 63;
const SO_TIMESTAMPNS_NEW: i32 = 64;
pub(super) const SO_RCVMARK: i32 = 75;
pub(super) const SO_RCVPRIORITY: i32 = 82;
const IPPROTO_IP: i32 = 0;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_RECVOPTS: i32 = 6;
pub(super) const IP_PKTINFO: i32 = 8;
pub(super) const IP_RECVTTL: i32 = 12;
pub(super) const IP_RECVTOS: i32 = 13;
pub(super) const IP_RECVORIGDSTADDR: i32 = 20;
const IP_RECVFRAGSIZE: i32 = 25;
pub(super) const IPPROTO_IPV6: i32 = 41;
const IPV6_2292PKTINFO: i32 = 2;
const IPV6_2292HOPOPTS: i32 = 3;
const IPV6_2292DSTOPTS: i32 = 4;
const IPV6_2292RTHDR: i32 = 5;
const IPV6_2292HOPLIMIT: i32 = 8;
pub(super) const IPV6_FLOWINFO: i32 = 11;
pub(super) const IPV6_RECVPKTINFO: i32 = 49;
const IPV6_PKTINFO: i32 = 50;
pub(super) const IPV6_RECVHOPLIMIT: i32 = 51;
const IPV6_HOPLIMIT: i32 = 52;
pub(super) const IPV6_RECVHOPOPTS: i32 = 53;
const IPV6_HOPOPTS: i32 = 54;
pub(super) const IPV6_RECVRTHDR: i32 = 56;
const IPV6_RTHDR: i32 = 57;
pub(super) const IPV6_RECVDSTOPTS: i32 = 58;
const IPV6_DSTOPTS: i32 = 59;
pub(super) const IPV6_RECVTCLASS: i32 = 66;
const IPV6_TCLASS: i32 = 67;
pub(super) const IPV6_RECVORIGDSTADDR: i32 = 74;
const IPV6_RECVFRAGSIZE: i32 = 77;
const SOL_UDP: i32 = 17;
const UDP_GRO: i32 = 104;

/// `IPV6_FLOWLABEL_MASK`
pub(super) const FLOW_LABEL: u32 = 0xf_ffff;
/// `IPPROTO_UDP`, as an extension header names what follows it.
const UDP_HEADER: u8 = 17;

const MSG_PEEK: i32 = 2;
const MSG_TRUNC: i32 = 0x20;
const MSG_CTRUNC: i32 = 8;

/// More than a datagram can have.
const LONGEST: usize = 1 << 16;
/// Extension headers can be longer; then the look says so.
const CONTROL: usize = 1 << 14;
const AT_ONCE: usize = 32;
const TRIES: usize = 3;

/// The options that tell a receive time.
pub(super) const TIMES: [i32; 4] = [
    SO_TIMESTAMP,
    SO_TIMESTAMPNS,
    SO_TIMESTAMP_NEW,
    SO_TIMESTAMPNS_NEW,
];

/// A datagram that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub datagram: Datagram,
    fragment: bool,
    /// There are extension headers among those told that do not follow upon one another.
    torn: bool,
}

/// Reads the queue. What of it cannot be told is reported.
pub(super) fn dump(fd: BorrowedFd<'_>, report: &mut Report) -> Vec<Datagram> {
    let seen = read(fd).and_then(|seen| {
        tell(fd, &seen, report)?;
        Ok(seen)
    });
    match seen {
        Ok(seen) => seen.into_iter().map(|seen| seen.datagram).collect(),
        Err(error) => {
            report.lose("receive queue", crate::error::reason(&error));
            Vec::new()
        }
    }
}

fn read(fd: BorrowedFd<'_>) -> io::Result<Vec<Seen>> {
    if !has_any(fd)? {
        return Ok(Vec::new());
    }
    if get(fd, SOL_SOCKET, SO_PEEK_OFF)? >= 0 {
        return Err(io::Error::other(
            "not empty; its owner peeks by SO_PEEK_OFF, and without CAP_BPF reading it would \
             disturb that",
        ));
    }
    for _ in 0..TRIES {
        match sweep(fd)? {
            Sweep::Whole(seen) => return Ok(seen),
            // A second time they would be passed over.
            Sweep::Moved { empties: true } => break,
            Sweep::Moved { empties: false } => {}
        }
    }
    Err(io::Error::other(
        "is being read by its owner; without CAP_BPF it must hold still (`dump --stop`)",
    ))
}

/// Whether something waits; no error is taken by asking.
fn has_any(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let events = poll_now(fd)?;
    // A socket shut down for receiving is always readable; what it still holds takes memory.
    Ok(match events.contains(PollFlags::RDHUP) {
        true => memory(fd)? > 0,
        false => events.contains(PollFlags::IN),
    })
}

enum Sweep {
    Whole(Vec<Seen>),
    /// Somebody took from the queue meanwhile.
    Moved {
        empties: bool,
    },
}

fn sweep(fd: BorrowedFd<'_>) -> io::Result<Sweep> {
    let (mut one, mut many) = (room(1), room(AT_ONCE));
    let Some(first) = look(fd, &mut one)?.pop() else {
        return Ok(Sweep::Whole(Vec::new()));
    };
    let guard = Guard::new(vec![(fd, Step::now(fd, SOL_SOCKET, SO_PEEK_OFF)?)])?;
    let all = behind(fd, &mut many);
    guard.put_back()?;
    let (mut all, moved) = all?;
    let empties = all.iter().any(is_empty);
    if is_empty(&first) {
        // The first look has marked it.
        all.insert(0, first.clone());
    }
    let again = look(fd, &mut one)?.pop();
    let same = again.is_some_and(|again| again == first) && all.first() == Some(&first);
    Ok(match moved || !same {
        true => Sweep::Moved { empties },
        false => Sweep::Whole(all),
    })
}

fn is_empty(seen: &Seen) -> bool {
    seen.datagram.payload.is_empty()
}

/// Looks from the head on, and tells whether somebody took from the queue meanwhile: that moves the
/// position back (`sk_peek_offset_bwd`).
fn behind(fd: BorrowedFd<'_>, room: &mut Batch) -> io::Result<(Vec<Seen>, bool)> {
    set(fd, SOL_SOCKET, SO_PEEK_OFF, 0)?;
    let (mut all, mut position) = (Vec::new(), 0);
    loop {
        let seen = look(fd, room)?;
        let end = seen.is_empty();
        position += seen.iter().map(|s| s.datagram.payload.len()).sum::<usize>();
        all.extend(seen);
        let moved = usize::try_from(get(fd, SOL_SOCKET, SO_PEEK_OFF)?) != Ok(position);
        if end || moved {
            return Ok((all, moved));
        }
    }
}

/// Room for this many datagrams of any length.
pub(super) fn room(count: usize) -> Batch {
    Batch::new(count, LONGEST, CONTROL)
}

/// Looks at what is there and has room.
pub(super) fn look(fd: BorrowedFd<'_>, room: &mut Batch) -> io::Result<Vec<Seen>> {
    if poll_now(fd)?.contains(PollFlags::ERR) {
        return Err(io::Error::other(
            "not empty, and there are errors: without CAP_BPF reading it would take a pending one",
        ));
    }
    let local = plain(rustix::net::getsockname(fd)?)?;
    let received = match room.receive(fd, MSG_PEEK) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => return Ok(Vec::new()),
        Err(error) => {
            let why = crate::error::reason(&error);
            let why = format!("the pending error \"{why}\" came just then, and is taken by that");
            return Err(io::Error::other(why));
        }
        Ok(received) => received,
    };
    room.messages()
        .take(received)
        .map(|message| seen_of(&message, local))
        .collect()
}

fn seen_of(message: &Message<'_>, local: SocketAddr) -> io::Result<Seen> {
    if message.flags & (MSG_TRUNC | MSG_CTRUNC) != 0 {
        return Err(io::Error::other("one is longer than a datagram can be"));
    }
    let source = message.source;
    let source = source.ok_or_else(|| io::Error::other("one has no source address"))?;
    let from = source.ip().to_canonical();
    let mut seen = Seen {
        datagram: Datagram {
            source: SocketAddr::new(from, source.port()),
            destination: SocketAddr::new(as_it_came(local.ip(), from), local.port()),
            ttl: 0,
            tos: 0,
            flow_label: 0,
            interface: scope_of(source),
            local: as_it_came(Ipv6Addr::UNSPECIFIED.into(), from),
            received_at: 0,
            mark: 0,
            priority: 0,
            segment: 0,
            options: Vec::new(),
            // Our look has marked it: before, nobody had.
            peeked: false,
            payload: message.data.to_vec(),
        },
        fragment: false,
        torn: false,
    };
    let told: Vec<ControlMessage<'_>> = control_messages(message.control).collect();
    for told in &told {
        seen.learn(told.level, told.kind, told.payload);
    }
    if from.is_ipv6() {
        seen.datagram.local = seen.datagram.destination.ip();
        seen.learn_headers(&told);
    }
    Ok(seen)
}

/// An address of the socket in the family by which a datagram came from `source`.
fn as_it_came(address: IpAddr, source: IpAddr) -> IpAddr {
    match (address.to_canonical(), source) {
        (IpAddr::V6(_), IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (address, _) => address,
    }
}

/// The device that the scope of a link-local address names.
fn scope_of(address: SocketAddr) -> u32 {
    match address {
        SocketAddr::V6(address) => address.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

impl Seen {
    /// Whether it came by IPv6.
    fn is_ipv6(&self) -> bool {
        self.datagram.source.is_ipv6()
    }

    fn learn(&mut self, level: i32, kind: i32, payload: &[u8]) {
        let datagram = &mut self.datagram;
        let word = |at: usize| {
            let word = payload.get(at..).and_then(|rest| rest.first_chunk());
            word.copied().unwrap_or_default()
        };
        let number = u32::from_ne_bytes(word(0));
        match (level, kind) {
            (IPPROTO_IP, IP_TTL) => datagram.ttl = number as u8,
            (IPPROTO_IP, IP_TOS) => datagram.tos = payload.first().copied().unwrap_or(0),
            (IPPROTO_IP, IP_RECVOPTS) => datagram.options = payload.to_vec(),
            (IPPROTO_IP, IP_PKTINFO) => {
                datagram.interface = number;
                datagram.local = IpAddr::from(word(4));
                datagram.destination.set_ip(IpAddr::from(word(8)));
            }
            (IPPROTO_IP, IP_RECVORIGDSTADDR) => {
                let [_, _, high, low] = word(0);
                let port = u16::from_be_bytes([high, low]);
                datagram.destination = SocketAddr::new(IpAddr::from(word(4)), port);
            }
            (IPPROTO_IP, IP_RECVFRAGSIZE) => self.fragment = number > 0,
            (IPPROTO_IPV6, IPV6_HOPLIMIT | IPV6_2292HOPLIMIT) => datagram.ttl = number as u8,
            (IPPROTO_IPV6, IPV6_TCLASS) => datagram.tos = number as u8,
            (IPPROTO_IPV6, IPV6_FLOWINFO) => {
                let flow = u32::from_be_bytes(word(0));
                datagram.flow_label = flow & FLOW_LABEL;
                datagram.tos = (flow >> 20) as u8;
            }
            (IPPROTO_IPV6, IPV6_PKTINFO | IPV6_2292PKTINFO) => {
                datagram.interface = u32::from_ne_bytes(word(16));
                datagram.destination.set_ip(ipv6(payload, 0).to_canonical());
                // Of what came by IPv4 only IP_PKTINFO, which comes behind, tells a different one.
                datagram.local = datagram.destination.ip();
            }
            (IPPROTO_IPV6, IPV6_RECVORIGDSTADDR) => {
                let [_, _, high, low] = word(0);
                let port = u16::from_be_bytes([high, low]);
                datagram.destination = SocketAddr::new(ipv6(payload, 8).into(), port);
                // The scope of a link-local one.
                match u32::from_ne_bytes(word(24)) {
                    0 => {}
                    scope => datagram.interface = scope,
                }
            }
            (IPPROTO_IPV6, IPV6_RECVFRAGSIZE) => self.fragment = number > 0,
            (SOL_SOCKET, SO_MARK) => datagram.mark = number,
            (SOL_SOCKET, SO_PRIORITY) => datagram.priority = number,
            (SOL_SOCKET, kind) if TIMES.contains(&kind) => {
                datagram.received_at = time(kind, payload).unwrap_or(0);
            }
            (SOL_UDP, UDP_GRO) => datagram.segment = number,
            _ => {}
        }
    }

    /// Puts the extension headers together again. By both kinds of options they are told twice.
    fn learn_headers(&mut self, told: &[ControlMessage<'_>]) {
        let kinds = [
            [IPV6_HOPOPTS, IPV6_RTHDR, IPV6_DSTOPTS],
            [IPV6_2292HOPOPTS, IPV6_2292RTHDR, IPV6_2292DSTOPTS],
        ];
        let told = |kinds: [i32; 3]| {
            let ours = told.iter().filter(|told| told.level == IPPROTO_IPV6);
            let headers: Vec<Header<'_>> = ours
                .filter_map(|told| {
                    let at = kinds.iter().position(|kind| *kind == told.kind)?;
                    Some((*HEADERS.get(at)?, told.payload))
                })
                .collect();
            headers
        };
        let told = kinds.map(told);
        match told.iter().find_map(|headers| chain(headers)) {
            Some(options) => self.datagram.options = options,
            None => self.torn = told.iter().any(|headers| !headers.is_empty()),
        }
    }
}

/// An extension header: its kind and its bytes.
type Header<'a> = (u8, &'a [u8]);

/// The kinds of extension headers: for each hop, routing, for the destination.
const HEADERS: [u8; 3] = [0, 43, 60];

/// These extension headers as a datagram has them: the kind of the first, and all of them. `None` when
/// there are none, or others between them that nobody tells (`ip6_datagram_recv_specific_ctl`).
fn chain(headers: &[Header<'_>]) -> Option<Vec<u8>> {
    let next = headers.iter().skip(1).map(|(kind, _)| *kind);
    let next = next.chain([UDP_HEADER]);
    let follow = |((_, bytes), next): (&Header<'_>, u8)| bytes.first() == Some(&next);
    let whole = headers.iter().zip(next).all(follow);
    let (first, _) = headers.first().filter(|_| whole)?;
    let bytes = headers.iter().flat_map(|(_, bytes)| bytes.iter().copied());
    Some([*first].into_iter().chain(bytes).collect())
}

fn ipv6(bytes: &[u8], at: usize) -> Ipv6Addr {
    let octets = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk::<16>().copied());
    Ipv6Addr::from(octets.unwrap_or_default())
}

/// A `struct timeval` or `struct timespec`, of 64 or 32 bits each.
fn time(kind: i32, payload: &[u8]) -> Option<i64> {
    let (seconds, rest) = match payload.len() {
        8 => {
            let (seconds, rest) = payload.split_first_chunk()?;
            let rest = i32::from_ne_bytes(*rest.first_chunk()?);
            (i32::from_ne_bytes(*seconds).into(), rest.into())
        }
        _ => {
            let (seconds, rest) = payload.split_first_chunk()?;
            let rest = i64::from_ne_bytes(*rest.first_chunk()?);
            (i64::from_ne_bytes(*seconds), rest)
        }
    };
    let unit = match kind {
        SO_TIMESTAMP | SO_TIMESTAMP_NEW => 1000,
        _ => 1,
    };
    seconds
        .checked_mul(1_000_000_000)?
        .checked_add(rest.checked_mul(unit)?)
}

/// Something of a datagram that only these options together tell, or these others.
struct Told {
    what: &'static str,
    by: &'static [Asked],
    or_by: &'static [Asked],
}

/// Level, number and name of an option.
type Asked = (i32, i32, &'static str);

const TOLD_OF_IPV4: &[Told] = &[
    Told::of("ttl", &[(IPPROTO_IP, IP_RECVTTL, "IP_RECVTTL")]),
    Told::of("tos", &[(IPPROTO_IP, IP_RECVTOS, "IP_RECVTOS")]),
    Told::of("IP options", &[(IPPROTO_IP, IP_RECVOPTS, "IP_RECVOPTS")]),
];

const TOLD_OF_IPV6: &[Told] = &[
    Told {
        what: "hop limit",
        by: &[(IPPROTO_IPV6, IPV6_RECVHOPLIMIT, "IPV6_RECVHOPLIMIT")],
        or_by: &[(IPPROTO_IPV6, IPV6_2292HOPLIMIT, "IPV6_2292HOPLIMIT")],
    },
    Told {
        what: "traffic class",
        by: &[(IPPROTO_IPV6, IPV6_RECVTCLASS, "IPV6_RECVTCLASS")],
        or_by: &[(IPPROTO_IPV6, IPV6_FLOWINFO, "IPV6_FLOWINFO")],
    },
    Told::of(
        "flow label",
        &[(IPPROTO_IPV6, IPV6_FLOWINFO, "IPV6_FLOWINFO")],
    ),
    Told {
        what: "extension headers",
        by: &[
            (IPPROTO_IPV6, IPV6_RECVHOPOPTS, "IPV6_RECVHOPOPTS"),
            (IPPROTO_IPV6, IPV6_RECVRTHDR, "IPV6_RECVRTHDR"),
            (IPPROTO_IPV6, IPV6_RECVDSTOPTS, "IPV6_RECVDSTOPTS"),
        ],
        or_by: &[
            (IPPROTO_IPV6, IPV6_2292HOPOPTS, "IPV6_2292HOPOPTS"),
            (IPPROTO_IPV6, IPV6_2292RTHDR, "IPV6_2292RTHDR"),
            (IPPROTO_IPV6, IPV6_2292DSTOPTS, "IPV6_2292DSTOPTS"),
        ],
    },
];

const TOLD_OF_ALL: &[Told] = &[
    Told::of("mark", &[(SOL_SOCKET, SO_RCVMARK, "SO_RCVMARK")]),
    Told::of(
        "priority",
        &[(SOL_SOCKET, SO_RCVPRIORITY, "SO_RCVPRIORITY")],
    ),
];

impl Told {
    const fn of(what: &'static str, by: &'static [Asked]) -> Told {
        Told {
            what,
            by,
            or_by: &[],
        }
    }

    /// Reports it where these options are off.
    fn tell(&self, fd: BorrowedFd<'_>, report: &mut Report) {
        // One that this kernel does not know is off.
        let on = |asked: &[Asked]| {
            let mut asked = asked.iter();
            asked.all(|(level, name, _)| is_on(fd, *level, *name))
        };
        if on(self.by) || (!self.or_by.is_empty() && on(self.or_by)) {
            return;
        }
        let names: Vec<&str> = self.by.iter().map(|(_, _, name)| *name).collect();
        let (names, are_off) = match names.len() {
            1 => (names.concat(), "tells it, which is off"),
            _ => (names.join(", "), "tell them, and not all are on"),
        };
        let why = format!("without CAP_BPF only {names} {are_off}");
        report.lose(format!("receive queue: {}", self.what), why);
    }
}

fn is_on(fd: BorrowedFd<'_>, level: i32, name: i32) -> bool {
    get(fd, level, name).is_ok_and(|value| value != 0)
}

/// Reports what the owner has not asked for, and so nobody tells.
fn tell(fd: BorrowedFd<'_>, seen: &[Seen], report: &mut Report) -> io::Result<()> {
    if seen.is_empty() {
        return Ok(());
    }
    let any_ipv6 = seen.iter().any(Seen::is_ipv6);
    let any_ipv4 = !seen.iter().all(Seen::is_ipv6);
    for (told, any) in [
        (TOLD_OF_IPV4, any_ipv4),
        (TOLD_OF_IPV6, any_ipv6),
        (TOLD_OF_ALL, true),
    ] {
        for told in told.iter().filter(|_| any) {
            told.tell(fd, report);
        }
    }
    tell_time(fd, report)?;
    tell_places(seen, report);
    let info =
        !any_ipv4 || is_on(fd, IPPROTO_IP, IP_PKTINFO) || is_on(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO);
    if !info || !is_on(fd, SOL_UDP, UDP_GRO) {
        report.assume(
            "receive queue: IP_PKTINFO and UDP_GRO were as now when it came",
            "only BPF sees what arrived otherwise",
        );
    }
    if seen.iter().any(|seen| seen.torn) {
        report.lose(
            "receive queue: extension headers",
            "there are more than those that are told",
        );
    }
    if seen.iter().any(|seen| seen.fragment) {
        report.lose(
            "receive queue: IP_RECVFRAGSIZE",
            "came in fragments, and would not again",
        );
    }
    tell_empties(fd, seen, report)
}

/// Reports where nobody tells where it went to, or the device it came by: what comes by IPv4 has one
/// only for IP_PKTINFO.
fn tell_places(seen: &[Seen], report: &mut Report) {
    let nowhere = seen
        .iter()
        .find(|seen| seen.datagram.destination.ip().is_unspecified());
    if let Some(seen) = nowhere {
        let why = match seen.is_ipv6() {
            false => "bound to every address, and IP_PKTINFO and IP_RECVORIGDSTADDR are off",
            true => "bound to every address, and IPV6_RECVPKTINFO and IPV6_RECVORIGDSTADDR are off",
        };
        report.lose("receive queue: destination", why);
    }
    let mut ipv6 = seen.iter().filter(|seen| seen.is_ipv6());
    if ipv6.any(|seen| seen.datagram.interface == 0) {
        report.lose(
            "receive queue: device",
            "without CAP_BPF only IPV6_RECVPKTINFO tells it, which is off",
        );
    }
}

fn tell_time(fd: BorrowedFd<'_>, report: &mut Report) -> io::Result<()> {
    let on = |name: i32| Ok::<_, io::Error>(get(fd, SOL_SOCKET, name)? != 0);
    let why = if on(SO_TIMESTAMPNS)? || on(SO_TIMESTAMPNS_NEW)? {
        return Ok(());
    } else if on(SO_TIMESTAMP)? || on(SO_TIMESTAMP_NEW)? {
        "SO_TIMESTAMP tells it to the microsecond only"
    } else {
        "without CAP_BPF only SO_TIMESTAMPNS tells it, which is off"
    };
    report.lose("receive queue: receive time", why);
    Ok(())
}

/// Tells of empty datagrams that are passed over: the memory that nothing seen takes, beside what
/// datagrams of these lengths take when they come by the loopback device.
fn tell_empties(fd: BorrowedFd<'_>, seen: &[Seen], report: &mut Report) -> io::Result<()> {
    let lengths = seen
        .iter()
        .map(|seen| (seen.is_ipv6(), seen.datagram.payload.len()));
    let left = match scale(lengths.clone()) {
        Ok(scale) => {
            let takes = |length: &(bool, usize)| scale.get(length).copied().unwrap_or(0);
            let known: u64 = lengths.map(|length| takes(&length)).sum();
            let empty = seen.first().map_or(0, |seen| takes(&(seen.is_ipv6(), 0)));
            let empty = empty.max(1);
            let left = queue_memory(fd)?.saturating_sub(known);
            Some((left / empty, left % empty))
        }
        Err(_) => None,
    };
    match left {
        Some((0, _)) => {}
        Some((count, 0)) => report.lose(
            "receive queue: empty datagrams",
            format!("{count} more, it seems, that somebody peeked at before: only BPF sees where"),
        ),
        _ => report.assume(
            "receive queue: no empty datagram that somebody peeked at before",
            "only BPF sees one behind the first",
        ),
    }
    Ok(())
}

/// The memory that a datagram takes that came by IPv6 or not with this length, and an empty one.
type Scale = BTreeMap<(bool, usize), u64>;

/// Tries it on sockets of ours.
fn scale(lengths: impl Iterator<Item = (bool, usize)> + Clone) -> io::Result<Scale> {
    let mut scale = Scale::new();
    for ipv6 in [false, true] {
        let lengths = lengths.clone().filter(|length| length.0 == ipv6);
        let lengths: BTreeSet<usize> = lengths.map(|length| length.1).collect();
        if !lengths.is_empty() {
            weigh(ipv6, lengths, &mut scale)?;
        }
    }
    Ok(scale)
}

fn weigh(ipv6: bool, mut lengths: BTreeSet<usize>, scale: &mut Scale) -> io::Result<()> {
    let here: IpAddr = match ipv6 {
        true => Ipv6Addr::LOCALHOST.into(),
        false => Ipv4Addr::LOCALHOST.into(),
    };
    let probe = UdpSocket::bind((here, 0))?;
    let to = probe.local_addr()?;
    probe.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    let bytes = vec![0; LONGEST];
    lengths.insert(0);
    for length in lengths {
        probe.send_to(bytes.get(..length).unwrap_or_default(), to)?;
        probe.peek(&mut [])?;
        scale.insert((ipv6, length), memory(probe.as_fd())?);
        probe.recv(&mut [])?;
    }
    Ok(())
}

/// `sk_rmem_alloc`: also what was received and is not given back yet.
fn memory(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut counters = [0; 36];
    sockcr_sys::sockopt::get(fd, SOL_SOCKET, SO_MEMINFO, &mut counters)?;
    let allocated = counters.first_chunk().copied().unwrap_or_default();
    Ok(u32::from_ne_bytes(allocated).into())
}

/// What the queue takes: `udp_rqueue_get` knows what is not given back yet; it is shown for bound
/// sockets, by /proc.
fn queue_memory(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let upper = memory(fd)?;
    let inode = rustix::fs::fstat(fd)?.st_ino;
    let name = match plain(rustix::net::getsockname(fd)?)?.is_ipv6() {
        true => "/proc/thread-self/net/udp6",
        false => "/proc/thread-self/net/udp",
    };
    let table = netns::within(fd, || std::fs::read_to_string(name));
    let exact = table.ok().and_then(|table| in_table(&table, inode));
    Ok(exact.unwrap_or(upper))
}

/// The `rx_queue` of the socket with this inode.
fn in_table(table: &str, inode: u64) -> Option<u64> {
    let mut rows = table.lines().map(|line| line.split_whitespace());
    rows.find_map(|row| {
        let columns: Vec<&str> = row.collect();
        let is_it = columns.get(9)?.parse() == Ok(inode);
        let (_, waiting) = columns.get(4)?.split_once(':')?;
        is_it.then(|| u64::from_str_radix(waiting, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_every_width() {
        let wide = [7_i64.to_ne_bytes(), 5_i64.to_ne_bytes()].concat();
        assert_eq!(time(SO_TIMESTAMPNS, &wide), Some(7_000_000_005));
        assert_eq!(time(SO_TIMESTAMP_NEW, &wide), Some(7_000_005_000));
        let narrow = [7_i32.to_ne_bytes(), 5_i32.to_ne_bytes()].concat();
        assert_eq!(time(SO_TIMESTAMP, &narrow), Some(7_000_005_000));
        assert_eq!(time(SO_TIMESTAMPNS, &wide[..9]), None);
    }

    #[test]
    fn extension_headers_follow_upon_one_another() {
        let (hops, route, last) = ([43, 0], [60, 1], [17, 2]);
        let all: [Header<'_>; 3] = [(0, &hops), (43, &route), (60, &last)];
        assert_eq!(chain(&all), Some(vec![0, 43, 0, 60, 1, 17, 2]));
        assert_eq!(chain(&all[2..]), Some(vec![60, 17, 2]));
        assert_eq!(chain(&[all[0], all[2]]), None);
        assert_eq!(chain(&all[..2]), None);
        assert_eq!(chain(&[]), None);
    }

    #[test]
    fn the_memory_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     10201: 0100007F:1388 00000000:0000 07 00000000:00001380 00:00000000 00000000     0        0 38113 2 0000000071e85b8b 0\n";
        assert_eq!(in_table(table, 38113), Some(0x1380));
        assert_eq!(in_table(table, 1), None);
    }
}
