//! The receive queue without BPF: looked at without a trace, put back by raw packets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/message.rs"]
mod message;
mod support;

use message::Message;
use rustix::net::{RecvFlags, recv};
use sockcr::state::receive_queue::Datagram;
use sockcr::{Checkpoint, Error, ErrorKind, Report, RestoreOptions, json};
use sockcr_sys::guard::{Guard, Step};
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use support::Outcome;
use support::by::{By, each, of_family};
use support::inject::*;
use support::place::{Device, devices, rootless, sysctl};
use support::socket::{self, IP, IPV6, SOCKET, UDP, get_int, instruction, set_int};

const SO_ERROR: i32 = 4;
const SO_PEEK_OFF: i32 = 42;
const SO_BUF_LOCK: i32 = 72;
const UDP_SEGMENT: i32 = 103;

const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_MULTICAST_IF: i32 = 17;
const IPV6_ADD_MEMBERSHIP: i32 = 20;
const IPV6_PKTINFO: i32 = 50;
const IPV6_HOPOPTS: i32 = 54;
const IPV6_DSTOPTS: i32 = 59;
const IPV6_TCLASS: i32 = 67;
/// What tells of a datagram that came by IPv6: the flow, the device, the hop limit, the extension
/// headers, the traffic class, where it went to, and the biggest fragment.
const TELL_IPV6: [i32; 8] = [11, 49, 51, 53, 56, 58, 66, 74];
/// The same as it was before RFC 3542, which tells no traffic class.
const TELL_2292: [i32; 7] = [11, 2, 3, 4, 5, 8, 74];

impl By {
    fn foreign(self) -> IpAddr {
        self.of(FOREIGN, [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7])
    }

    fn group(self) -> IpAddr {
        self.of(GROUP, GROUP6)
    }

    fn device(self, device: &Device) -> IpAddr {
        self.of(device.address, device.address6)
    }

    /// A socket that tells everything.
    fn talkative(self) -> std::io::Result<OwnedFd> {
        match self {
            By::Ipv4 => talkative(),
            By::Ipv6 | By::Mapped => talkative6(&TELL_IPV6),
        }
    }

    /// Tells everything but the receive time.
    fn nearly_talkative(self) -> std::io::Result<OwnedFd> {
        let socket = self.talkative()?;
        set_int(&socket, SOCKET, SO_TIMESTAMPNS, 0)?;
        Ok(socket)
    }

    /// What makes a datagram another than most.
    fn set_apart(self) -> [(i32, i32, i32); 3] {
        let [ttl, tos] = match self {
            By::Ipv4 | By::Mapped => [(IP, IP_TTL), (IP, IP_TOS)],
            By::Ipv6 => [(IPV6, IPV6_UNICAST_HOPS), (IPV6, IPV6_TCLASS)],
        };
        [
            (ttl.0, ttl.1, 9),
            (tos.0, tos.1, 0x10),
            (SOCKET, SO_MARK, 77),
        ]
    }

    fn send(self, from: u16, data: &[u8]) -> std::io::Result<()> {
        let sender = self.sender()?;
        socket::bind(&sender, (self.here(), from))?;
        message::send(&sender, at(self.here(), PORT), data, &[], 0)
    }

    /// How the report calls them.
    fn not_told(self) -> Vec<&'static str> {
        let own: (&[_], &[_]) = match self {
            By::Ipv4 | By::Mapped => (&["ttl", "tos", "IP options"], &[]),
            By::Ipv6 => (
                &[
                    "hop limit",
                    "traffic class",
                    "flow label",
                    "extension headers",
                ],
                &["device"],
            ),
        };
        [own.0, &["mark", "priority", "receive time"], own.1].concat()
    }

    /// The device that a message tells.
    fn told_device(self, message: &Message) -> u32 {
        match self {
            By::Ipv4 | By::Mapped => message.word(IP, IP_PKTINFO, 0),
            By::Ipv6 => message.word(IPV6, IPV6_PKTINFO, 16),
        }
    }
}

const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 9);

/// A socket of AF_INET6 that tells everything, of IPv6 by these options.
fn talkative6(tell: &[i32]) -> std::io::Result<OwnedFd> {
    let socket = of_family(libc::AF_INET6)?;
    for name in [SO_TIMESTAMPNS, SO_RCVMARK, SO_RCVPRIORITY] {
        set_int(&socket, SOCKET, name, 1)?;
    }
    for name in [
        IP_PKTINFO,
        IP_RECVTTL,
        IP_RECVTOS,
        IP_RECVOPTS,
        IP_RECVORIGDSTADDR,
    ] {
        set_int(&socket, IP, name, 1)?;
    }
    for name in tell {
        set_int(&socket, IPV6, *name, 1)?;
    }
    set_int(&socket, UDP, UDP_GRO, 1)?;
    Ok(socket)
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// A bit of everything: many sizes, among them empty ones, from many ports.
fn load(by: By) -> std::io::Result<Vec<(u16, Vec<u8>)>> {
    // The largest in one packet.
    let largest = match by {
        By::Ipv4 | By::Mapped => 65_507,
        By::Ipv6 => 65_488,
    };
    let sizes = [3, 0, 0, 1, 0, largest, 1472, 0].into_iter();
    let sizes = sizes.chain((0..60).map(|round| round * 7 % 300));
    let sent: Vec<(u16, Vec<u8>)> = sizes
        .enumerate()
        .map(|(at, size)| (2000 + at as u16, vec![at as u8; size]))
        .collect();
    for (from, data) in &sent {
        by.send(*from, data)?;
    }
    Ok(sent)
}

fn told(queue: &[Datagram]) -> Vec<(u16, Vec<u8>)> {
    let told = queue.iter();
    told.map(|one| (one.source.port(), one.payload.clone()))
        .collect()
}

fn drain(socket: &impl AsFd) -> std::io::Result<Vec<Message>> {
    std::iter::from_fn(|| message::receive(&socket.as_fd(), 0).transpose()).collect()
}

fn received(socket: &impl AsFd) -> std::io::Result<Vec<(u16, Vec<u8>)>> {
    let all = drain(socket)?.into_iter();
    Ok(all
        .map(|one| (one.name.unwrap().port(), one.data))
        .collect())
}

fn lost(report: &Report) -> Vec<&str> {
    let notes = report.not_carried.iter();
    notes.map(|note| note.what.as_str()).collect()
}

#[test]
fn a_look_takes_nothing() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            let before = (socket::sweep(&socket), socket::fcntl_view(&socket)?);
            let sent = load(by)?;
            let checkpoint = Checkpoint::dump(&socket)?;
            assert_eq!(told(&checkpoint.receive_queue), sent);
            let destinations = checkpoint.receive_queue.iter().map(|one| one.destination);
            assert!(destinations.into_iter().all(|to| to == at(by.here(), PORT)));
            assert_eq!(
                lost(&checkpoint.report),
                by.not_told()
                    .into_iter()
                    .map(|what| format!("receive queue: {what}"))
                    .collect::<Vec<_>>()
            );
            assert_eq!(
                (socket::sweep(&socket), socket::fcntl_view(&socket)?),
                before
            );
            assert_eq!(received(&socket)?, sent, "once, and in order");
            Ok(())
        })
    })
}

/// Nothing of them can be seen but the first, and the memory of the others.
#[test]
fn empty_ones_that_were_peeked_at_are_counted() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            let sent = [
                (2000, vec![]),
                (2001, vec![]),
                (2002, vec![5]),
                (2003, vec![]),
            ];
            for (from, data) in &sent {
                by.send(*from, data)?;
            }
            for _ in 0..3 {
                recv(&socket, &mut [0u8; 8][..], RecvFlags::PEEK)?;
            }
            let first = Checkpoint::dump(&socket)?;
            assert_eq!(told(&first.receive_queue), sent);
            assert!(!lost(&first.report).contains(&"receive queue: empty datagrams"));
            let again = Checkpoint::dump(&socket)?;
            assert_eq!(
                told(&again.receive_queue),
                [sent[0].clone(), sent[2].clone()]
            );
            let notes = again.report.not_carried.iter();
            let count: Vec<&str> = notes
                .filter(|note| note.what == "receive queue: empty datagrams")
                .map(|note| note.reason.split(',').next().unwrap())
                .collect();
            assert_eq!(count, ["2 more"]);
            assert_eq!(received(&socket)?, sent);
            Ok(())
        })
    })
}

#[test]
fn dumps_are_the_same_a_hundred_times() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            for round in 0..100 {
                by.send(2000 + round, &[round as u8; 9])?;
            }
            let first = Checkpoint::dump(&socket)?;
            for _ in 0..100 {
                assert!(Checkpoint::dump(&socket)? == first);
            }
            assert_eq!(received(&socket)?.len(), 100);
            Ok(())
        })
    })
}

#[test]
fn what_the_owner_asked_for_is_carried() -> Outcome {
    rootless(|| {
        let [device, _] = devices()?;
        each(|by| {
            let socket = by.talkative()?;
            socket::bind(&socket, (by.any(), PORT))?;
            let sender = by.sender()?;
            for (level, name, value) in by.set_apart() {
                set_int(&sender, level, name, value)?;
            }
            message::send(&sender, at(by.device(&device), PORT), b"told", &[], 0)?;
            set_int(&sender, UDP, UDP_SEGMENT, 100)?;
            message::send(&sender, at(by.here(), PORT), &[7; 250], &[], 0)?;
            let checkpoint = Checkpoint::dump(&socket)?;
            assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
            let seen = drain(&socket)?;
            let [one, parts] = &checkpoint.receive_queue[..] else {
                panic!("{:?}", checkpoint.receive_queue);
            };
            assert_eq!((one.ttl, one.tos, one.mark), (9, 0x10, 77));
            assert_eq!(
                (one.interface, one.local),
                (device.index, by.device(&device))
            );
            assert_eq!(one.destination, at(by.device(&device), PORT));
            assert_eq!((one.segment, parts.segment), (0, 100));
            let stamp = seen[0].control(SOCKET, SO_TIMESTAMPNS).unwrap();
            let [seconds, rest] =
                [&stamp[..8], &stamp[8..]].map(|word| i64::from_ne_bytes(word.try_into().unwrap()));
            assert_eq!(one.received_at, seconds * 1_000_000_000 + rest);
            Ok(())
        })
    })
}

#[test]
fn an_owner_that_peeks_itself_is_left_alone() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            by.send(2000, b"hello")?;
            by.send(2001, b"")?;
            by.send(2002, b"!")?;
            set_int(&socket, SOCKET, SO_PEEK_OFF, 2)?;
            let checkpoint = Checkpoint::dump(&socket)?;
            assert_eq!(lost(&checkpoint.report), ["receive queue"]);
            assert_eq!(get_int(&socket, SOCKET, SO_PEEK_OFF)?, 2);
            let peek = || message::receive(&socket, libc::MSG_PEEK);
            let peeked = [peek()?, peek()?, peek()?].map(|one| one.unwrap().data);
            assert_eq!(peeked, [&b"llo"[..], b"", b"!"]);
            Ok(())
        })
    })
}

#[test]
fn a_pending_error_stays_pending() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            by.send(2000, b"hello")?;
            socket::connect(&socket, (by.called(by.here()), 2000))?;
            rustix::net::send(&socket, b"nobody", rustix::net::SendFlags::empty())?;
            socket::wait_for(&socket, rustix::event::PollFlags::ERR)?;
            let checkpoint = Checkpoint::dump(&socket)?;
            assert!(lost(&checkpoint.report).contains(&"receive queue"));
            assert_eq!(get_int(&socket, SOCKET, SO_ERROR)?, libc::ECONNREFUSED);
            let checkpoint = Checkpoint::dump(&socket)?;
            assert_eq!(checkpoint.receive_queue.len(), 1);
            Ok(())
        })
    })
}

/// What an owner reads meanwhile is never half seen: a dump is a piece of what was sent, without a
/// gap, or says that it could not.
#[test]
fn an_owner_that_reads_meanwhile() -> Outcome {
    const COUNT: u32 = 3000;
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            let body = |number: u32| [number.to_ne_bytes().to_vec(), vec![0; number as usize % 50]];
            let owner = std::thread::scope(|scope| {
                let reading = scope.spawn(|| {
                    let (mut sent, mut read) = (0, Vec::new());
                    let sender = by.sender()?;
                    while read.len() < COUNT as usize {
                        let full = sent - read.len() as u32 >= 40 || sent == COUNT;
                        if full {
                            let ten =
                                (0..10).filter_map(|_| message::receive(&socket, 0).transpose());
                            read.extend(ten.collect::<std::io::Result<Vec<_>>>()?);
                        } else {
                            message::send(
                                &sender,
                                at(by.here(), PORT),
                                &body(sent).concat(),
                                &[],
                                0,
                            )?;
                            sent += 1;
                        }
                    }
                    Ok::<_, std::io::Error>(read)
                });
                while !reading.is_finished() {
                    let checkpoint = Checkpoint::dump(&socket).unwrap();
                    let first =
                        |one: &Datagram| u32::from_ne_bytes(*one.payload.first_chunk().unwrap());
                    let queue = &checkpoint.receive_queue;
                    if let Some(start) = queue.first().map(first) {
                        let whole = (start..).map(|number| body(number).concat());
                        assert!(
                            queue
                                .iter()
                                .map(|one| one.payload.clone())
                                .eq(whole.take(queue.len()))
                        );
                    }
                }
                reading.join().unwrap()
            })?;
            let all = (0..COUNT).map(|number| body(number).concat());
            assert!(owner.into_iter().map(|one| one.data).eq(all));
            Ok(())
        })
    })
}

/// The owner reads one in the middle of a dump: that is seen, and a second try has the rest.
#[test]
fn one_read_in_the_middle_is_no_harm() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            for number in 0..200 {
                by.send(2000, &u32::to_ne_bytes(number))?;
            }
            for round in 0..50 {
                let dumped = AtomicBool::new(false);
                let checkpoint = std::thread::scope(|scope| {
                    let reading = scope.spawn(|| {
                        while get_int(&socket, SOCKET, SO_PEEK_OFF)? < 0
                            && !dumped.load(Ordering::Relaxed)
                        {
                            std::hint::spin_loop();
                        }
                        socket::receive(&socket)
                    });
                    let checkpoint = Checkpoint::dump(&socket);
                    dumped.store(true, Ordering::Relaxed);
                    assert_eq!(reading.join().unwrap().unwrap(), u32::to_ne_bytes(round));
                    checkpoint
                })?;
                let queue = checkpoint.receive_queue.iter();
                let numbers: Vec<u32> = queue
                    .map(|one| u32::from_ne_bytes(*one.payload.first_chunk().unwrap()))
                    .collect();
                let first = *numbers.first().unwrap();
                assert!([round, round + 1].contains(&first), "{round}: {first}");
                assert!(numbers.into_iter().eq(first..200));
            }
            Ok(())
        })
    })
}

/// Set in a child whose standard input is a socket that it dumps until it is killed.
const DUMPER: &str = "SOCKCR_TEST_DUMPER";

/// Starts this test once more, in a process group of its own, and waits until it dumps.
fn dumper(test: &str, socket: &OwnedFd) -> std::io::Result<Child> {
    let mut child = Command::new("/proc/self/exe");
    child
        .args([test, "--exact", "--nocapture"])
        .process_group(0)
        .env(DUMPER, "1")
        .stdin(Stdio::from(socket.try_clone()?))
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = child.spawn()?;
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let started = lines
        .map_while(Result::ok)
        .any(|line| line.contains("dumping"));
    assert!(started, "the dumper ended");
    Ok(child)
}

fn dump_forever() -> Outcome {
    let socket = std::io::stdin();
    Checkpoint::dump(&socket)?;
    println!("dumping");
    loop {
        Checkpoint::dump(&socket)?;
    }
}

/// Stands still in the middle.
fn look_forever() -> Outcome {
    let socket = std::io::stdin();
    let _guard = Guard::new(vec![(
        socket.as_fd(),
        Step::now(socket.as_fd(), SOCKET, SO_PEEK_OFF)?,
    )])?;
    set_int(&socket, SOCKET, SO_PEEK_OFF, 3)?;
    println!("dumping");
    loop {
        std::thread::park();
    }
}

fn wait_until_off(socket: &OwnedFd) -> Outcome {
    let end = Instant::now() + PATIENCE;
    while get_int(socket, SOCKET, SO_PEEK_OFF)? != -1 {
        assert!(Instant::now() < end, "SO_PEEK_OFF was left on");
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn a_killed_dump_leaves_no_trace() -> Outcome {
    rootless(|| {
        if std::env::var_os(DUMPER).is_some() {
            return dump_forever();
        }
        let socket = By::Ipv6.bound(PORT)?;
        for round in 0..200 {
            By::Ipv6.send(2000 + round, &[round as u8; 9])?;
        }
        let mut caught = 0;
        for _ in 0..20 {
            let mut child = dumper("a_killed_dump_leaves_no_trace", &socket)?;
            let end = Instant::now() + PATIENCE;
            while get_int(&socket, SOCKET, SO_PEEK_OFF)? < 0 {
                assert!(Instant::now() < end, "it never looked");
            }
            child.kill()?;
            child.wait()?;
            caught += usize::from(get_int(&socket, SOCKET, SO_PEEK_OFF)? >= 0);
            wait_until_off(&socket)?;
        }
        println!("{caught} of 20 were killed while it was on, and seen so");
        let all = received(&socket)?;
        assert!(all.iter().map(|one| one.0).eq(2000..2200));
        Ok(())
    })
}

/// Not even with its whole process group.
#[test]
fn killed_in_the_middle_it_is_put_back() -> Outcome {
    rootless(|| {
        if std::env::var_os(DUMPER).is_some() {
            return look_forever();
        }
        let socket = By::Ipv6.bound(PORT)?;
        let mut child = dumper("killed_in_the_middle_it_is_put_back", &socket)?;
        assert_eq!(get_int(&socket, SOCKET, SO_PEEK_OFF)?, 3);
        let group = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL)?;
        child.wait()?;
        wait_until_off(&socket)
    })
}

fn exactly() -> RestoreOptions {
    RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    }
}

/// A checkpoint of a closed socket as BPF would have made it of datagrams without a time stamp.
fn known(socket: OwnedFd) -> Result<Checkpoint, Error> {
    let mut checkpoint = Checkpoint::dump(&socket)?;
    let unknown = ["receive queue: receive time", "receive queue: IP options"];
    let known = |what: &str| unknown.contains(&what);
    checkpoint
        .report
        .not_carried
        .retain(|note| !known(&note.what));
    assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
    Ok(checkpoint)
}

#[test]
fn raw_packets_bring_it_back_exactly() -> Outcome {
    rootless(|| {
        let [device, _] = devices()?;
        for of in ["all", "lo", "m0"] {
            sysctl(&format!("net.ipv4.conf.{of}.rp_filter"), "1")?;
        }
        each(|by| {
            let socket = by.nearly_talkative()?;
            socket::bind(&socket, (by.any(), PORT))?;
            load(by)?;
            let sender = by.sender()?;
            for (level, name, value) in by.set_apart() {
                set_int(&sender, level, name, value)?;
            }
            message::send(
                &sender,
                at(by.device(&device), PORT),
                b"by a device",
                &[],
                0,
            )?;
            let mut checkpoint = known(socket.try_clone()?)?;
            let seen = drain(&socket)?;
            drop(socket);
            // From far away, without a route back.
            let mut foreign = checkpoint.receive_queue[0].clone();
            foreign.source = SocketAddr::new(by.foreign(), 0);
            checkpoint.receive_queue.push(foreign);
            let others = [by.socket()?, by.socket()?];
            socket::bind(&others[0], (by.called(by.here()), PORT + 1))?;
            socket::bind(&others[1], (by.any(), PORT + 2))?;
            let restored = checkpoint.restore(&exactly())?;
            assert!(restored.report.is_exact(), "{:?}", restored.report);
            heard_nothing(&others)?;
            assert_eq!(get_int(&restored.fd, SOCKET, SO_PEEK_OFF)?, -1);
            assert_eq!(get_int(&restored.fd, SOCKET, SO_BUF_LOCK)?, 0);
            assert_eq!(socket::filter(&restored.fd), Ok(vec![]));
            by.send(1999, b"live")?;
            let mut again = drain(&restored.fd)?;
            assert_eq!(again.pop().unwrap().data, b"live");
            assert_eq!(
                again.pop().unwrap().name,
                Some(at(by.called(by.foreign()), 0))
            );
            assert!(again == seen, "the application sees a difference");
            Ok(())
        })
    })
}

#[test]
fn connected_and_filtered_sockets_get_theirs() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.nearly_talkative()?;
            socket::bind(&socket, (by.called(by.here()), PORT))?;
            by.send(2000, b"one")?;
            by.send(2000, b"")?;
            by.send(2000, b"three")?;
            socket::connect(&socket, (by.called(by.here()), 2000))?;
            let nothing = [instruction(6, 0)];
            socket::attach(&socket, &nothing)?;
            let checkpoint = known(socket)?;
            let restored = checkpoint.restore(&exactly())?;
            assert_eq!(
                socket::peer(&restored.fd),
                Some(at(by.called(by.here()), 2000))
            );
            assert_eq!(socket::filter(&restored.fd), Ok(nothing.to_vec()));
            by.send(2000, b"filtered")?;
            let data: Vec<Vec<u8>> = received(&restored.fd)?.into_iter().map(|m| m.1).collect();
            assert_eq!(data, [&b"one"[..], b"", b"three"]);
            Ok(())
        })
    })
}

/// What an exact restore refuses, naming it; the lossy one goes on and says the same.
fn refused(checkpoint: &Checkpoint, what: &str) -> Result<OwnedFd, Error> {
    let error = checkpoint.restore(&exactly()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    assert!(error.to_string().contains(what), "{what}: {error}");
    let lossy = checkpoint.restore(&RestoreOptions {
        lossy: true,
        ..exactly()
    })?;
    let told = lost(&lossy.report);
    assert!(told.contains(&what), "{what}: {told:?}");
    Ok(lossy.fd)
}

#[test]
fn what_raw_packets_cannot_do_is_refused_by_name() -> Outcome {
    rootless(|| {
        each(|by| {
            type Change = fn(&mut Datagram, By);
            let any: [(&str, Change); 5] = [
                ("receive time", |d, _| d.received_at = 5),
                ("UDP_GRO", |d, _| d.segment = 2),
                ("what came to another address", |d, _| {
                    d.destination.set_port(9)
                }),
                ("what came to another address", |d, by| {
                    d.destination.set_ip(by.foreign())
                }),
                ("what came to another address", |d, by| {
                    d.destination.set_ip(by.of(Ipv6Addr::LOCALHOST, LOCALHOST));
                }),
            ];
            let ipv4: [(&str, Change); 3] = [
                ("IP options", |d, _| d.options = vec![1, 1, 1, 0]),
                ("what came from 0.0.0.0", |d, _| d.source.set_ip(ANY.into())),
                ("IP_PKTINFO", |d, _| d.local = Ipv4Addr::BROADCAST.into()),
            ];
            let ipv6: [(&str, Change); 3] = [
                ("what is longer than a packet", |d, _| {
                    d.payload = vec![1; 65_489]
                }),
                ("what came from a group", |d, by| {
                    d.source.set_ip(by.group())
                }),
                ("device", |d, by| d.local = by.foreign()),
            ];
            let own: &[_] = match by {
                By::Ipv4 | By::Mapped => &ipv4,
                By::Ipv6 => &ipv6,
            };
            let socket = by.nearly_talkative()?;
            socket::bind(&socket, (by.called(by.here()), PORT))?;
            by.send(2000, b"hello")?;
            by.send(2001, b"again")?;
            let checkpoint = known(socket)?;
            for (what, change) in any.iter().chain(own) {
                let mut changed = checkpoint.clone();
                change(&mut changed.receive_queue[0], by);
                let restored = refused(&changed, &format!("receive queue: {what}"))?;
                let got = received(&restored)?;
                assert_eq!(got.last(), Some(&(2001, b"again".to_vec())), "{what}");
            }
            Ok(())
        })
    })
}

#[test]
fn an_empty_one_would_be_passed_over() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.nearly_talkative()?;
            socket::bind(&socket, (by.called(by.here()), PORT))?;
            by.send(2000, b"hello")?;
            by.send(2001, b"")?;
            let mut checkpoint = known(socket)?;
            checkpoint.edit("SO_PEEK_OFF", "0")?;
            let restored = refused(&checkpoint, "receive queue: peeking at empty ones")?;
            assert_eq!(get_int(&restored, SOCKET, SO_PEEK_OFF)?, 0);
            assert_eq!(received(&restored)?.len(), 2);
            Ok(())
        })
    })
}

#[test]
fn a_shared_port_gets_no_packets() -> Outcome {
    rootless(|| {
        each(|by| {
            for option in [SO_REUSEADDR, SO_REUSEPORT] {
                let socket = by.nearly_talkative()?;
                set_int(&socket, SOCKET, option, 1)?;
                socket::bind(&socket, (by.any(), PORT))?;
                by.send(2000, b"mine")?;
                let checkpoint = known(socket)?;
                let other = by.socket()?;
                set_int(&other, SOCKET, option, 1)?;
                socket::bind(&other, (by.any(), PORT))?;
                let restored = refused(&checkpoint, "receive queue")?;
                assert_eq!(get_int(&restored, SOCKET, option)?, 1);
                heard_nothing(&[other, restored])?;
            }
            Ok(())
        })
    })
}

#[test]
fn who_is_alone_may_share_its_port_later() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.nearly_talkative()?;
            set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
            socket::bind(&socket, (by.any(), PORT))?;
            by.send(2000, b"mine")?;
            let restored = known(socket)?.restore(&exactly())?.fd;
            assert_eq!(get_int(&restored, SOCKET, SO_REUSEADDR)?, 1);
            let other = by.socket()?;
            set_int(&other, SOCKET, SO_REUSEADDR, 1)?;
            socket::bind(&other, (by.any(), PORT))?;
            assert_eq!(received(&restored)?, [(2000, b"mine".to_vec())]);
            Ok(())
        })
    })
}

/// Two have the same port, each at a device of its own.
#[test]
fn it_comes_by_the_device_it_is_bound_to() -> Outcome {
    rootless(|| {
        let [device, another] = devices()?;
        each(|by| {
            let bound_to = |device: u32| {
                let socket = by.nearly_talkative()?;
                set_int(&socket, SOCKET, SO_BINDTOIFINDEX, device as i32)?;
                socket::bind(&socket, (by.any(), PORT))?;
                Ok::<_, std::io::Error>(socket)
            };
            let (socket, other) = (bound_to(device.index)?, bound_to(another.index)?);
            let sender = by.sender()?;
            message::send(&sender, at(by.device(&device), PORT), b"mine", &[], 0)?;
            let checkpoint = known(socket)?;
            assert_eq!(checkpoint.receive_queue[0].interface, device.index);
            let restored = checkpoint.restore(&exactly())?;
            heard_nothing(&[other])?;
            let told = drain(&restored.fd)?;
            assert_eq!(told.len(), 1);
            assert_eq!(by.told_device(&told[0]), device.index);
            Ok(())
        })
    })
}

/// Sent to a group, to nobody here, to everybody: none of it goes out, and all of it comes back.
#[test]
fn nothing_goes_out() -> Outcome {
    rootless(|| {
        let [device, another] = devices()?;
        each(|by| {
            let socket = by.nearly_talkative()?;
            socket::bind(&socket, (by.any(), PORT))?;
            by.send(2000, b"mine")?;
            let mut checkpoint = known(socket)?;
            let one = checkpoint.receive_queue.remove(0);
            for address in [
                by.group(),
                by.of(Ipv4Addr::BROADCAST, [0xff02, 0, 0, 0, 0, 0, 0, 1]),
                by.foreign(),
                by.device(&device),
                by.device(&another),
            ] {
                let mut datagram = one.clone();
                datagram.destination.set_ip(address);
                datagram.local = address;
                checkpoint.receive_queue.push(datagram);
            }
            let captures = [capture(&device)?, capture(&another)?];
            let restored = checkpoint.restore(&exactly())?;
            assert_eq!(drain(&restored.fd)?.len(), 5);
            for capture in captures {
                let udp = [(8, 23), (0x86, 20)];
                let is_udp = |frame: &Vec<u8>| {
                    let mut kinds = udp.iter();
                    kinds.any(|(kind, at)| {
                        frame.get(12) == Some(kind) && frame.get(*at) == Some(&17)
                    })
                };
                assert!(!socket::receive_now(&capture)?.iter().any(is_udp));
            }
            Ok(())
        })
    })
}

fn capture(device: &Device) -> std::io::Result<OwnedFd> {
    sockcr_sys::capture::open(device.index)
}

#[test]
fn a_buffer_that_is_too_small_says_how_many() -> Outcome {
    rootless(|| {
        each(|by| {
            let socket = by.nearly_talkative()?;
            socket::bind(&socket, (by.called(by.here()), PORT))?;
            let size = 60_000;
            by.send(2000, &vec![3; size])?;
            let mut checkpoint = known(socket)?;
            let one = checkpoint.receive_queue[0].clone();
            let probe = by.sender()?;
            set_int(&probe, SOCKET, SO_RCVBUF, i32::MAX / 2)?;
            let most = get_int(&probe, SOCKET, SO_RCVBUF)? as usize / size + 10;
            checkpoint.receive_queue = vec![one; most];
            let restored = refused(&checkpoint, "receive queue")?;
            let got = received(&restored)?.len();
            assert!((1..most).contains(&got), "{got}");
            Ok(())
        })
    })
}

/// That of the first device.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 9, 0);

/// Sends a bit of everything by both families to a port of every address, which is a member of the
/// group by this device.
fn load6(device: &Device) -> Outcome {
    let scoped = |port: u16| SocketAddrV6::new(LINK_LOCAL, port, 0, device.index);
    let everywhere = [
        at(Ipv6Addr::LOCALHOST, PORT),
        at(device.address6, PORT),
        scoped(PORT).into(),
        at(GROUP6, PORT),
    ];
    let sender = By::Ipv6.sender()?;
    set_int(&sender, IPV6, IPV6_MULTICAST_IF, device.index as i32)?;
    for (level, name, value) in By::Ipv6.set_apart() {
        set_int(&sender, level, name, value)?;
    }
    let link_local = By::Ipv6.sender()?;
    rustix::net::bind(&link_local, &SocketAddr::from(scoped(2000)))?;
    message::send(&link_local, scoped(PORT).into(), b"local", &[], 0)?;
    let padding = [0, 0, 1, 4, 0, 0, 0, 0];
    for headers in [&[][..], &[IPV6_DSTOPTS], &[IPV6_HOPOPTS, IPV6_DSTOPTS]] {
        for name in headers {
            let done = socket::set(&sender, IPV6, *name, &padding);
            done.map_err(std::io::Error::from_raw_os_error)?;
        }
        for (to, data) in everywhere
            .iter()
            .zip([&b"here"[..], b"", b"scope", b"group"])
        {
            message::send(&sender, *to, data, &[], 0)?;
        }
    }
    By::Mapped.send(2001, b"by IPv4")?;
    Ok(By::Mapped.send(2001, b"")?)
}

/// A socket that gets what [`load6`] sends.
fn member(
    device: &Device,
    tell: &[i32],
) -> Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
    let socket = talkative6(tell)?;
    let request = [&GROUP6.octets()[..], &device.index.to_ne_bytes()].concat();
    let joined = socket::set(&socket, IPV6, IPV6_ADD_MEMBERSHIP, &request);
    joined.map_err(std::io::Error::from_raw_os_error)?;
    socket::bind(&socket, (Ipv6Addr::UNSPECIFIED, PORT))?;
    Ok(socket)
}

fn linked() -> std::io::Result<Device> {
    let [device, _] = devices()?;
    assert_eq!(device.link_local, LINK_LOCAL);
    Ok(device)
}

/// Set in a child whose standard input is a socket that it dumps without BPF.
const LOOKER: &str = "SOCKCR_TEST_LOOKER";
const FOUND: &str = "dumped: ";

#[test]
fn bpf_sees_the_same() -> Outcome {
    if std::env::var_os(LOOKER).is_some() {
        assert!(sockcr::kernel::reader().is_err());
        let checkpoint = Checkpoint::dump(&std::io::stdin())?;
        println!("{FOUND}{}", json::to_json(&[checkpoint]));
        return Ok(());
    }
    privileged(|| {
        let device = linked()?;
        for tell in [&TELL_IPV6[..], &TELL_2292] {
            let socket = member(&device, tell)?;
            load6(&device)?;
            let by_bpf = Checkpoint::dump(&socket)?;
            let mut child = Command::new("/proc/self/exe");
            child.args(["bpf_sees_the_same", "--exact", "--nocapture"]);
            child.env(LOOKER, "1").uid(65534).gid(65534);
            let output = child.stdin(Stdio::from(socket)).output()?;
            let text = String::from_utf8(output.stdout)?;
            let found = text.lines().find_map(|line| line.split_once(FOUND));
            let by_peeking = json::from_json(found.unwrap().1)?;
            let report = &by_peeking[0].report;
            assert!(report.is_exact(), "{report:?}");
            assert_eq!(by_peeking[0].receive_queue, by_bpf.receive_queue);
            assert_eq!(by_bpf.receive_queue.len(), 15);
        }
        Ok(())
    })
}

/// What comes to an AF_INET6 socket by both families, with every control message, and none of it twice.
#[test]
fn all_of_ipv6_comes_back() -> Outcome {
    rootless(|| {
        let device = linked()?;
        for tell in [&TELL_IPV6[..], &TELL_2292] {
            let socket = member(&device, tell)?;
            set_int(&socket, SOCKET, SO_TIMESTAMPNS, 0)?;
            load6(&device)?;
            let mut checkpoint = known(socket.try_clone()?)?;
            let seen = drain(&socket)?;
            drop(socket);
            let mut nowhere = checkpoint.receive_queue[0].clone();
            nowhere.source = at(Ipv6Addr::UNSPECIFIED, 0);
            checkpoint.receive_queue.push(nowhere);
            let restored = checkpoint.restore(&exactly())?;
            load6(&device)?;
            let again = drain(&restored.fd)?;
            assert_eq!(again.len(), 2 * seen.len() + 1);
            assert_eq!(
                again[..seen.len()],
                seen,
                "the application sees a difference"
            );
            let live: Vec<_> = again[seen.len() + 1..]
                .iter()
                .map(|one| &one.data)
                .collect();
            assert!(live.into_iter().eq(seen.iter().map(|one| &one.data)));
        }
        Ok(())
    })
}

/// Bound to a link-local address, with a device, and connected to another.
#[test]
fn link_local_sockets_get_theirs() -> Outcome {
    rootless(|| {
        let device = linked()?;
        let scoped =
            |port: u16| SocketAddr::from(SocketAddrV6::new(LINK_LOCAL, port, 0, device.index));
        for connects in [false, true] {
            let socket = By::Ipv6.nearly_talkative()?;
            rustix::net::bind(&socket, &scoped(PORT))?;
            let sender = By::Ipv6.sender()?;
            rustix::net::bind(&sender, &scoped(2000))?;
            if connects {
                rustix::net::connect(&socket, &scoped(2000))?;
            }
            message::send(&sender, scoped(PORT), b"mine", &[], 0)?;
            let checkpoint = known(socket.try_clone()?)?;
            let seen = drain(&socket)?;
            drop(socket);
            let restored = checkpoint.restore(&exactly())?;
            message::send(&sender, scoped(PORT), b"mine", &[], 0)?;
            let again = drain(&restored.fd)?;
            assert_eq!(again.len(), 2);
            assert_eq!(again[..1], seen);
            assert_eq!(
                (&again[1].name, &again[1].data),
                (&seen[0].name, &seen[0].data)
            );
        }
        Ok(())
    })
}

/// Who tells nothing gets what it would have got, and the report names the rest.
#[test]
fn a_silent_owner_of_ipv6_loses_what_it_never_asked_for() -> Outcome {
    rootless(|| {
        let device = linked()?;
        let socket = of_family(libc::AF_INET6)?;
        socket::bind(&socket, (Ipv6Addr::UNSPECIFIED, PORT))?;
        By::Ipv6.send(2000, b"by IPv6")?;
        By::Mapped.send(2001, b"by IPv4")?;
        message::send(&By::Ipv6.sender()?, at(device.address6, PORT), b"", &[], 0)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        let what = |what: &str| format!("receive queue: {what}");
        let lost = lost(&checkpoint.report);
        for by in [By::Ipv6, By::Mapped] {
            let mut names = by.not_told().into_iter().chain(["destination"]).map(what);
            assert!(names.all(|name| lost.contains(&&*name)), "{by:?}: {lost:?}");
        }
        assert_eq!(lost.len(), 12, "{lost:?}");
        let seen = drain(&socket)?;
        drop(socket);
        let lossy = RestoreOptions {
            lossy: true,
            ..exactly()
        };
        let restored = checkpoint.restore(&lossy)?;
        By::Ipv6.send(2002, b"live")?;
        By::Mapped.send(2003, b"live")?;
        let again = drain(&restored.fd)?;
        assert_eq!(again[..3], seen);
        assert_eq!(again.len(), 5);
        Ok(())
    })
}
