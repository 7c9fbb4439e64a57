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
use sockcr::{Checkpoint, Error, ErrorKind, Report, RestoreOptions};
use sockcr_sys::guard::{Guard, Step};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use support::Outcome;
use support::inject::*;
use support::place::{devices, rootless, sysctl};
use support::socket::{self, IP, SOCKET, UDP, get_int, instruction, set_int};

const SO_ERROR: i32 = 4;
const SO_PEEK_OFF: i32 = 42;
const SO_BUF_LOCK: i32 = 72;
const UDP_SEGMENT: i32 = 103;

fn send(from: u16, data: &[u8]) -> std::io::Result<()> {
    let sender = socket::bound((LOCALHOST, from))?;
    message::send(&sender, at(LOCALHOST, PORT), data, &[], 0)
}

/// A bit of everything: many sizes, among them empty ones, from many ports.
fn load() -> std::io::Result<Vec<(u16, Vec<u8>)>> {
    let sizes = [3, 0, 0, 1, 0, 65_507, 1472, 0].into_iter();
    let sizes = sizes.chain((0..60).map(|round| round * 7 % 300));
    let sent: Vec<(u16, Vec<u8>)> = sizes
        .enumerate()
        .map(|(at, size)| (2000 + at as u16, vec![at as u8; size]))
        .collect();
    for (from, data) in &sent {
        send(*from, data)?;
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

fn bound() -> std::io::Result<OwnedFd> {
    socket::bound((LOCALHOST, PORT))
}

#[test]
fn a_look_takes_nothing() -> Outcome {
    rootless(|| {
        let socket = bound()?;
        let before = (socket::sweep(&socket), socket::fcntl_view(&socket)?);
        let sent = load()?;
        let checkpoint = Checkpoint::dump(&socket)?;
        assert_eq!(told(&checkpoint.receive_queue), sent);
        let destinations = checkpoint.receive_queue.iter().map(|one| one.destination);
        assert!(destinations.into_iter().all(|to| to == at(LOCALHOST, PORT)));
        assert_eq!(
            lost(&checkpoint.report),
            [
                "ttl",
                "tos",
                "IP options",
                "mark",
                "priority",
                "receive time"
            ]
            .map(|what| format!("receive queue: {what}"))
        );
        assert_eq!(
            (socket::sweep(&socket), socket::fcntl_view(&socket)?),
            before
        );
        assert_eq!(received(&socket)?, sent, "once, and in order");
        Ok(())
    })
}

/// Nothing of them can be seen but the first, and the memory of the others.
#[test]
fn empty_ones_that_were_peeked_at_are_counted() -> Outcome {
    rootless(|| {
        let socket = bound()?;
        let sent = [
            (2000, vec![]),
            (2001, vec![]),
            (2002, vec![5]),
            (2003, vec![]),
        ];
        for (from, data) in &sent {
            send(*from, data)?;
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
}

#[test]
fn dumps_are_the_same_a_hundred_times() -> Outcome {
    rootless(|| {
        let socket = bound()?;
        for round in 0..100 {
            send(2000 + round, &[round as u8; 9])?;
        }
        let first = Checkpoint::dump(&socket)?;
        for _ in 0..100 {
            assert!(Checkpoint::dump(&socket)? == first);
        }
        assert_eq!(received(&socket)?.len(), 100);
        Ok(())
    })
}

#[test]
fn what_the_owner_asked_for_is_carried() -> Outcome {
    rootless(|| {
        let [device, _] = devices()?;
        let socket = talkative()?;
        socket::bind(&socket, (ANY, PORT))?;
        let sender = socket::udp()?;
        for (level, name, value) in [(IP, IP_TTL, 9), (IP, IP_TOS, 0x10), (SOCKET, SO_MARK, 77)] {
            set_int(&sender, level, name, value)?;
        }
        message::send(&sender, at(device.address, PORT), b"told", &[], 0)?;
        set_int(&sender, UDP, UDP_SEGMENT, 100)?;
        message::send(&sender, at(LOCALHOST, PORT), &[7; 250], &[], 0)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
        let seen = drain(&socket)?;
        let [one, parts] = &checkpoint.receive_queue[..] else {
            panic!("{:?}", checkpoint.receive_queue);
        };
        assert_eq!((one.ttl, one.tos, one.mark), (9, 0x10, 77));
        assert_eq!(
            (one.interface, one.local),
            (device.index, device.address.into())
        );
        assert_eq!(one.destination, at(device.address, PORT));
        assert_eq!((one.segment, parts.segment), (0, 100));
        let stamp = seen[0].control(SOCKET, SO_TIMESTAMPNS).unwrap();
        let [seconds, rest] =
            [&stamp[..8], &stamp[8..]].map(|word| i64::from_ne_bytes(word.try_into().unwrap()));
        assert_eq!(one.received_at, seconds * 1_000_000_000 + rest);
        Ok(())
    })
}

#[test]
fn an_owner_that_peeks_itself_is_left_alone() -> Outcome {
    rootless(|| {
        let socket = bound()?;
        send(2000, b"hello")?;
        send(2001, b"")?;
        send(2002, b"!")?;
        set_int(&socket, SOCKET, SO_PEEK_OFF, 2)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        assert_eq!(lost(&checkpoint.report), ["receive queue"]);
        assert_eq!(get_int(&socket, SOCKET, SO_PEEK_OFF)?, 2);
        let peek = || message::receive(&socket, libc::MSG_PEEK);
        let peeked = [peek()?, peek()?, peek()?].map(|one| one.unwrap().data);
        assert_eq!(peeked, [&b"llo"[..], b"", b"!"]);
        Ok(())
    })
}

#[test]
fn a_pending_error_stays_pending() -> Outcome {
    rootless(|| {
        let socket = bound()?;
        send(2000, b"hello")?;
        socket::connect(&socket, (LOCALHOST, 2000))?;
        rustix::net::send(&socket, b"nobody", rustix::net::SendFlags::empty())?;
        socket::wait_for(&socket, rustix::event::PollFlags::ERR)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        assert!(lost(&checkpoint.report).contains(&"receive queue"));
        assert_eq!(get_int(&socket, SOCKET, SO_ERROR)?, libc::ECONNREFUSED);
        let checkpoint = Checkpoint::dump(&socket)?;
        assert_eq!(checkpoint.receive_queue.len(), 1);
        Ok(())
    })
}

/// What an owner reads meanwhile is never half seen: a dump is a piece of what was sent, without a
/// gap, or says that it could not.
#[test]
fn an_owner_that_reads_meanwhile() -> Outcome {
    const COUNT: u32 = 3000;
    rootless(|| {
        let socket = bound()?;
        let body = |number: u32| [number.to_ne_bytes().to_vec(), vec![0; number as usize % 50]];
        let owner = std::thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let (mut sent, mut read) = (0, Vec::new());
                let sender = socket::udp()?;
                while read.len() < COUNT as usize {
                    let full = sent - read.len() as u32 >= 40 || sent == COUNT;
                    if full {
                        let ten = (0..10).filter_map(|_| message::receive(&socket, 0).transpose());
                        read.extend(ten.collect::<std::io::Result<Vec<_>>>()?);
                    } else {
                        message::send(&sender, at(LOCALHOST, PORT), &body(sent).concat(), &[], 0)?;
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
}

/// The owner reads one in the middle of a dump: that is seen, and a second try has the rest.
#[test]
fn one_read_in_the_middle_is_no_harm() -> Outcome {
    rootless(|| {
        let socket = bound()?;
        for number in 0..200 {
            send(2000, &u32::to_ne_bytes(number))?;
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
        let socket = bound()?;
        for round in 0..200 {
            send(2000 + round, &[round as u8; 9])?;
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
        let socket = bound()?;
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

/// Tells everything but the receive time.
fn nearly_talkative() -> std::io::Result<OwnedFd> {
    let socket = talkative()?;
    set_int(&socket, SOCKET, SO_TIMESTAMPNS, 0)?;
    Ok(socket)
}

#[test]
fn raw_packets_bring_it_back_exactly() -> Outcome {
    rootless(|| {
        let [device, _] = devices()?;
        for of in ["all", "lo", "m0"] {
            sysctl(&format!("net.ipv4.conf.{of}.rp_filter"), "1")?;
        }
        let socket = nearly_talkative()?;
        socket::bind(&socket, (ANY, PORT))?;
        load()?;
        let sender = socket::udp()?;
        for (level, name, value) in [(IP, IP_TTL, 9), (IP, IP_TOS, 0x10), (SOCKET, SO_MARK, 77)] {
            set_int(&sender, level, name, value)?;
        }
        message::send(&sender, at(device.address, PORT), b"by a device", &[], 0)?;
        let mut checkpoint = known(socket.try_clone()?)?;
        let seen = drain(&socket)?;
        drop(socket);
        // From far away, without a route back.
        let mut foreign = checkpoint.receive_queue[0].clone();
        foreign.source = SocketAddr::new(FOREIGN.into(), 0);
        checkpoint.receive_queue.push(foreign);
        let others = [
            socket::bound((LOCALHOST, PORT + 1))?,
            socket::bound((ANY, PORT + 2))?,
        ];
        let restored = checkpoint.restore(&exactly())?;
        assert!(restored.report.is_exact(), "{:?}", restored.report);
        heard_nothing(&others)?;
        assert_eq!(get_int(&restored.fd, SOCKET, SO_PEEK_OFF)?, -1);
        assert_eq!(get_int(&restored.fd, SOCKET, SO_BUF_LOCK)?, 0);
        assert_eq!(socket::filter(&restored.fd), Ok(vec![]));
        send(1999, b"live")?;
        let mut again = drain(&restored.fd)?;
        assert_eq!(again.pop().unwrap().data, b"live");
        assert_eq!(
            again.pop().unwrap().name,
            Some(SocketAddr::new(FOREIGN.into(), 0))
        );
        assert!(again == seen, "the application sees a difference");
        Ok(())
    })
}

#[test]
fn connected_and_filtered_sockets_get_theirs() -> Outcome {
    rootless(|| {
        let socket = nearly_talkative()?;
        socket::bind(&socket, (LOCALHOST, PORT))?;
        send(2000, b"one")?;
        send(2000, b"")?;
        send(2000, b"three")?;
        socket::connect(&socket, (LOCALHOST, 2000))?;
        let nothing = [instruction(6, 0)];
        socket::attach(&socket, &nothing)?;
        let checkpoint = known(socket)?;
        let restored = checkpoint.restore(&exactly())?;
        assert_eq!(socket::peer(&restored.fd), Some(at(LOCALHOST, 2000)));
        assert_eq!(socket::filter(&restored.fd), Ok(nothing.to_vec()));
        send(2000, b"filtered")?;
        let data: Vec<Vec<u8>> = received(&restored.fd)?.into_iter().map(|m| m.1).collect();
        assert_eq!(data, [&b"one"[..], b"", b"three"]);
        Ok(())
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
        type Change = fn(&mut Datagram);
        let changes: [(&str, Change); 7] = [
            ("receive queue: receive time", |d| d.received_at = 5),
            ("receive queue: UDP_GRO", |d| d.segment = 2),
            ("receive queue: IP options", |d| {
                d.options = vec![1, 1, 1, 0]
            }),
            ("receive queue: what came from 0.0.0.0", |d| {
                d.source.set_ip(ANY.into())
            }),
            ("receive queue: what came to another address", |d| {
                d.destination.set_port(9);
            }),
            ("receive queue: what came to another address", |d| {
                d.destination.set_ip(FOREIGN.into());
            }),
            ("receive queue: IP_PKTINFO", |d| {
                d.local = Ipv4Addr::BROADCAST.into()
            }),
        ];
        let socket = nearly_talkative()?;
        socket::bind(&socket, (LOCALHOST, PORT))?;
        send(2000, b"hello")?;
        send(2001, b"again")?;
        let checkpoint = known(socket)?;
        for (what, change) in changes {
            let mut changed = checkpoint.clone();
            change(&mut changed.receive_queue[0]);
            let restored = refused(&changed, what)?;
            let got = received(&restored)?;
            assert_eq!(got.last(), Some(&(2001, b"again".to_vec())), "{what}");
        }
        Ok(())
    })
}

#[test]
fn an_empty_one_would_be_passed_over() -> Outcome {
    rootless(|| {
        let socket = nearly_talkative()?;
        socket::bind(&socket, (LOCALHOST, PORT))?;
        send(2000, b"hello")?;
        send(2001, b"")?;
        let mut checkpoint = known(socket)?;
        checkpoint.edit("SO_PEEK_OFF", "0")?;
        let restored = refused(&checkpoint, "receive queue: peeking at empty ones")?;
        assert_eq!(get_int(&restored, SOCKET, SO_PEEK_OFF)?, 0);
        assert_eq!(received(&restored)?.len(), 2);
        Ok(())
    })
}

#[test]
fn a_shared_port_gets_no_packets() -> Outcome {
    rootless(|| {
        for option in [SO_REUSEADDR, SO_REUSEPORT] {
            let socket = nearly_talkative()?;
            set_int(&socket, SOCKET, option, 1)?;
            socket::bind(&socket, (ANY, PORT))?;
            send(2000, b"mine")?;
            let checkpoint = known(socket)?;
            let other = socket::udp()?;
            set_int(&other, SOCKET, option, 1)?;
            socket::bind(&other, (ANY, PORT))?;
            let restored = refused(&checkpoint, "receive queue")?;
            assert_eq!(get_int(&restored, SOCKET, option)?, 1);
            heard_nothing(&[other, restored])?;
        }
        Ok(())
    })
}

#[test]
fn who_is_alone_may_share_its_port_later() -> Outcome {
    rootless(|| {
        let socket = nearly_talkative()?;
        set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
        socket::bind(&socket, (ANY, PORT))?;
        send(2000, b"mine")?;
        let restored = known(socket)?.restore(&exactly())?.fd;
        assert_eq!(get_int(&restored, SOCKET, SO_REUSEADDR)?, 1);
        let other = socket::udp()?;
        set_int(&other, SOCKET, SO_REUSEADDR, 1)?;
        socket::bind(&other, (ANY, PORT))?;
        assert_eq!(received(&restored)?, [(2000, b"mine".to_vec())]);
        Ok(())
    })
}

/// Two have the same port, each at a device of its own.
#[test]
fn it_comes_by_the_device_it_is_bound_to() -> Outcome {
    rootless(|| {
        let [device, another] = devices()?;
        let bound_to = |device: u32| {
            let socket = nearly_talkative()?;
            set_int(&socket, SOCKET, SO_BINDTOIFINDEX, device as i32)?;
            socket::bind(&socket, (ANY, PORT))?;
            Ok::<_, std::io::Error>(socket)
        };
        let (socket, other) = (bound_to(device.index)?, bound_to(another.index)?);
        let sender = socket::udp()?;
        message::send(&sender, at(device.address, PORT), b"mine", &[], 0)?;
        let checkpoint = known(socket)?;
        assert_eq!(checkpoint.receive_queue[0].interface, device.index);
        let restored = checkpoint.restore(&exactly())?;
        heard_nothing(&[other])?;
        let told = drain(&restored.fd)?;
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].word(IP, IP_PKTINFO, 0), device.index);
        Ok(())
    })
}

/// Sent to a group, to nobody here, to everybody: none of it goes out, and all of it comes back.
#[test]
fn nothing_goes_out() -> Outcome {
    rootless(|| {
        let [device, another] = devices()?;
        let socket = nearly_talkative()?;
        socket::bind(&socket, (ANY, PORT))?;
        send(2000, b"mine")?;
        let mut checkpoint = known(socket)?;
        let one = checkpoint.receive_queue.remove(0);
        for address in [
            GROUP,
            Ipv4Addr::BROADCAST,
            FOREIGN,
            device.address,
            another.address,
        ] {
            let mut datagram = one.clone();
            datagram.destination.set_ip(address.into());
            datagram.local = address.into();
            checkpoint.receive_queue.push(datagram);
        }
        let captures = [Capture::on(&device)?, Capture::on(&another)?];
        let restored = checkpoint.restore(&exactly())?;
        assert_eq!(drain(&restored.fd)?.len(), 5);
        for capture in captures {
            assert_eq!(capture.packets()?, Vec::<Vec<u8>>::new());
        }
        Ok(())
    })
}

#[test]
fn a_buffer_that_is_too_small_says_how_many() -> Outcome {
    rootless(|| {
        let socket = nearly_talkative()?;
        socket::bind(&socket, (LOCALHOST, PORT))?;
        let size = 60_000;
        send(2000, &vec![3; size])?;
        let mut checkpoint = known(socket)?;
        let one = checkpoint.receive_queue[0].clone();
        let probe = socket::udp()?;
        set_int(&probe, SOCKET, SO_RCVBUF, i32::MAX / 2)?;
        let most = get_int(&probe, SOCKET, SO_RCVBUF)? as usize / size + 10;
        checkpoint.receive_queue = vec![one; most];
        let restored = refused(&checkpoint, "receive queue")?;
        let got = received(&restored)?.len();
        assert!((1..most).contains(&got), "{got}");
        Ok(())
    })
}
