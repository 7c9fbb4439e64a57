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

use super::endpoint::plain;
use super::meanwhile::{get, set};
use super::receive_queue::Datagram;
use super::shutdown::poll_now;
use crate::netns;
use crate::report::Report;
use rustix::event::PollFlags;
use rustix::io::Errno;
use sockcr_sys::guard::{Guard, Step};
use sockcr_sys::message::{Batch, Message, control_messages};
use std::collections::BTreeMap;
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
const SOL_UDP: i32 = 17;
const UDP_GRO: i32 = 104;

const MSG_PEEK: i32 = 2;
const MSG_TRUNC: i32 = 0x20;
const MSG_CTRUNC: i32 = 8;

/// More than a datagram can have.
const LONGEST: usize = 1 << 16;
const CONTROL: usize = 1 << 10;
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
    let mapped = source.ip().to_canonical();
    let mut seen = Seen {
        datagram: Datagram {
            source: SocketAddr::new(mapped, source.port()),
            destination: SocketAddr::new(as_it_came(local.ip(), mapped), local.port()),
            ttl: 0,
            tos: 0,
            flow_label: 0,
            interface: scope_of(source),
            local: as_it_came(Ipv6Addr::UNSPECIFIED.into(), mapped),
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
    };
    for told in control_messages(message.control) {
        seen.learn(told.level, told.kind, told.payload);
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

/// The device that the scope of a link-local source names.
fn scope_of(source: SocketAddr) -> u32 {
    match source {
        SocketAddr::V6(source) => source.scope_id(),
        SocketAddr::V4(_) => 0,
    }
}

impl Seen {
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
            (SOL_SOCKET, SO_MARK) => datagram.mark = number,
            (SOL_SOCKET, SO_PRIORITY) => datagram.priority = number,
            (SOL_SOCKET, kind) if TIMES.contains(&kind) => {
                datagram.received_at = time(kind, payload).unwrap_or(0);
            }
            (SOL_UDP, UDP_GRO) => datagram.segment = number,
            _ => {}
        }
    }
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

/// Reports what the owner has not asked for, and so nobody tells.
fn tell(fd: BorrowedFd<'_>, seen: &[Seen], report: &mut Report) -> io::Result<()> {
    if seen.is_empty() {
        return Ok(());
    }
    let is_on = |level: i32, name: i32| Ok::<_, io::Error>(get(fd, level, name)? != 0);
    let told = [
        ("ttl", IPPROTO_IP, IP_RECVTTL, "IP_RECVTTL"),
        ("tos", IPPROTO_IP, IP_RECVTOS, "IP_RECVTOS"),
        ("IP options", IPPROTO_IP, IP_RECVOPTS, "IP_RECVOPTS"),
        ("mark", SOL_SOCKET, SO_RCVMARK, "SO_RCVMARK"),
        ("priority", SOL_SOCKET, SO_RCVPRIORITY, "SO_RCVPRIORITY"),
    ];
    for (what, level, name, option) in told {
        // One that this kernel does not know is off.
        if !is_on(level, name).unwrap_or(false) {
            let why = format!("without CAP_BPF only {option} tells it, which is off");
            report.lose(format!("receive queue: {what}"), why);
        }
    }
    tell_time(fd, report)?;
    let (info, original) = (
        is_on(IPPROTO_IP, IP_PKTINFO)?,
        is_on(IPPROTO_IP, IP_RECVORIGDSTADDR)?,
    );
    if !info && !original && plain(rustix::net::getsockname(fd)?)?.ip().is_unspecified() {
        report.lose(
            "receive queue: destination",
            "bound to every address, and IP_PKTINFO and IP_RECVORIGDSTADDR are off",
        );
    }
    if !info || !is_on(SOL_UDP, UDP_GRO)? {
        report.assume(
            "receive queue: IP_PKTINFO and UDP_GRO were as now when it came",
            "only BPF sees what arrived otherwise",
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
    let lengths = seen.iter().map(|seen| seen.datagram.payload.len());
    let scale = scale(lengths.clone());
    let left = match &scale {
        Ok(scale) => {
            let known: u64 = lengths
                .map(|length| scale.get(&length).copied().unwrap_or(0))
                .sum();
            let empty = scale.get(&0).copied().unwrap_or(0).max(1);
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

/// The memory that a datagram of each length takes, and an empty one, tried on a socket of ours.
fn scale(lengths: impl Iterator<Item = usize>) -> io::Result<BTreeMap<usize, u64>> {
    let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let to = probe.local_addr()?;
    probe.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    let bytes = vec![0; LONGEST];
    let mut scale = BTreeMap::new();
    for length in lengths.chain([0]) {
        if scale.contains_key(&length) {
            continue;
        }
        probe.send_to(bytes.get(..length).unwrap_or_default(), to)?;
        probe.peek(&mut [])?;
        scale.insert(length, memory(probe.as_fd())?);
        probe.recv(&mut [])?;
    }
    Ok(scale)
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
    let table = netns::within(fd, || std::fs::read_to_string("/proc/thread-self/net/udp"));
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
    fn the_memory_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
                     10201: 0100007F:1388 00000000:0000 07 00000000:00001380 00:00000000 00000000     0        0 38113 2 0000000071e85b8b 0\n";
        assert_eq!(in_table(table, 38113), Some(0x1380));
        assert_eq!(in_table(table, 1), None);
    }
}
