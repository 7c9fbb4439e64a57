//! What a checkpoint does not carry is reported and left alone; dumps and restores that fail change
//! nothing. What waits in a socket is carried with BPF, and reported without.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SendFlags, recv, send, sendto};
use sockcr::report::Note;
use sockcr::{Checkpoint, ErrorKind, Restored};

use support::by::{By, each};
use support::place::{isolated, rootless};
use support::socket::{self, IP, IPV6, SOCKET};
use support::twin::{
    GROUP, HERE, IP_ADD_MEMBERSHIP, PORT, SO_BROADCAST, change_group, exactly, lossy, send_to, with,
};
use support::{Outcome, reader, skip};

const SO_ERROR: i32 = 4;
const SO_TIMESTAMPING: i32 = 37;
const IP_RECVERR: i32 = 11;
const IPV6_RECVERR: i32 = 25;

/// Something that only BPF shows whole.
struct Held {
    /// How the report calls it, without BPF.
    what: &'static str,
    make: fn(By) -> OwnedFd,
    /// Whether it is there still; takes it.
    check: fn(&OwnedFd, By),
}

/// A socket connected to a port where nobody is, that has sent there.
fn unreachable(by: By) -> OwnedFd {
    let socket = by.bound(PORT).unwrap();
    socket::connect(&socket, (by.called(by.here()), 9)).unwrap();
    send(&socket, b"anybody there?", SendFlags::NOSIGNAL).unwrap();
    socket::wait_for(&socket, PollFlags::ERR).unwrap();
    socket
}

fn with_queue(by: By) -> OwnedFd {
    let socket = by.bound(PORT).unwrap();
    let sender = by.sender().unwrap();
    let to = SocketAddr::new(by.here(), PORT);
    for data in [&b"one"[..], b"", b"three"] {
        sendto(&sender, data, SendFlags::NOSIGNAL, &to).unwrap();
    }
    socket::wait_for(&socket, PollFlags::IN).unwrap();
    socket
}

fn check_queue(socket: &OwnedFd, _: By) {
    let all = [(); 3].map(|()| socket::receive(socket).unwrap());
    assert_eq!(all, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
}

fn with_cork(by: By) -> OwnedFd {
    let socket = by.bound(PORT).unwrap();
    socket::connect(&socket, (by.called(by.here()), 9)).unwrap();
    send(&socket, b"begun", SendFlags::MORE).unwrap();
    socket
}

fn check_cork(socket: &OwnedFd, by: By) {
    let receiver = by.bound(9).unwrap();
    send(socket, b" and done", SendFlags::empty()).unwrap();
    assert_eq!(socket::receive(&receiver).unwrap(), b"begun and done");
}

fn check_error(socket: &OwnedFd, _: By) {
    let error = socket::get_int(socket, SOCKET, SO_ERROR).unwrap();
    assert_eq!(error, libc::ECONNREFUSED);
}

fn with_error_queue(by: By) -> OwnedFd {
    let socket = by.bound(PORT).unwrap();
    let (level, name) = match by {
        By::Ipv4 | By::Mapped => (IP, IP_RECVERR),
        By::Ipv6 => (IPV6, IPV6_RECVERR),
    };
    socket::set_int(&socket, level, name, 1).unwrap();
    socket::connect(&socket, (by.called(by.here()), 9)).unwrap();
    send(&socket, b"anybody there?", SendFlags::NOSIGNAL).unwrap();
    socket::wait_for(&socket, PollFlags::ERR).unwrap();
    check_error(&socket, by);
    socket
}

fn check_error_queue(socket: &OwnedFd, _: By) {
    let mut data = [0u8; 64];
    let (length, _) = recv(
        socket,
        &mut data[..],
        RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT,
    )
    .unwrap();
    assert_eq!(&data[..length], b"anybody there?");
}

/// Sends with a number for each time stamp; the datagrams and the stamps are taken away.
fn with_counter(_: By) -> OwnedFd {
    let flags = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 11;
    let socket = with((HERE, PORT), &[(SOCKET, SO_TIMESTAMPING, flags)]);
    let receiver = with((HERE, 9), &[]);
    send_to(&socket, b"stamped", HERE, 9).unwrap();
    socket::receive(&receiver).unwrap();
    socket::wait_for(&socket, PollFlags::ERR).unwrap();
    recv(
        &socket,
        &mut [0u8; 64][..],
        RecvFlags::ERRQUEUE | RecvFlags::DONTWAIT,
    )
    .unwrap();
    socket
}

fn check_counter(socket: &OwnedFd, _: By) {
    let key = reader()
        .unwrap()
        .read(socket.as_fd())
        .unwrap()
        .timestamp_key;
    assert_eq!(key, 1);
}

const HELD: &[Held] = &[
    Held {
        what: "receive queue",
        make: with_queue,
        check: check_queue,
    },
    Held {
        what: "unsent data",
        make: with_cork,
        check: check_cork,
    },
    Held {
        what: "errors",
        make: unreachable,
        check: check_error,
    },
    Held {
        what: "errors",
        make: with_error_queue,
        check: check_error_queue,
    },
];

const COUNTER: Held = Held {
    what: "time stamp counter",
    make: with_counter,
    check: check_counter,
};

fn dumped(socket: &OwnedFd) -> Checkpoint {
    let checkpoint = Checkpoint::dump(socket).unwrap();
    let again = Checkpoint::dump(socket).unwrap();
    assert_eq!(again, checkpoint, "a dump changes nothing");
    checkpoint
}

fn check_carried(held: &Held, by: By) {
    let original = (held.make)(by);
    let checkpoint = dumped(&original);
    assert_eq!(checkpoint.report.not_carried, []);
    (held.check)(&original, by);
    drop(original);
    let restored = checkpoint.restore(&exactly()).unwrap();
    (held.check)(&restored.fd, by);
}

/// Of a queue something is told in each note.
fn check_lost(held: &Held, by: By) {
    let original = (held.make)(by);
    let checkpoint = Checkpoint::dump(&original).unwrap();
    let what = held.what;
    let told = |notes: &[Note]| !notes.is_empty() && notes.iter().all(|n| n.what.starts_with(what));
    let notes = &checkpoint.report.not_carried;
    assert!(told(notes), "{what}: {notes:?}");
    (held.check)(&original, by);
    drop(original);
    let image = checkpoint.to_bytes().unwrap();
    let checkpoint = Checkpoint::from_bytes(&image).unwrap();
    let refused = checkpoint.restore(&exactly()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(refused.to_string().contains(what), "{refused}");
    assert!(
        refused
            .next_step()
            .is_some_and(|help| help.contains("--lossy"))
    );
    let Restored { fd, report } = checkpoint.restore(&lossy()).unwrap();
    assert!(told(&report.not_carried), "{what}: {report:?}");
    assert!(socket::local(&fd).unwrap().port() == PORT);
}

#[test]
fn what_waits_is_carried() -> Outcome {
    match reader() {
        Err(why) => skip(&why),
        Ok(_) => isolated(|| {
            HELD.iter().for_each(|held| check_carried(held, By::Ipv4));
            each(|by| {
                check_carried(&HELD[0], by);
                Ok(())
            })
        }),
    }
}

#[test]
fn what_waits_is_reported_and_left_alone() -> Outcome {
    rootless(|| {
        each(|by| {
            HELD.iter().for_each(|held| check_lost(held, by));
            Ok(())
        })
    })
}

#[test]
fn a_counter_is_reported_and_left_alone() -> Outcome {
    match reader() {
        Err(why) => skip(&why),
        Ok(_) => isolated(|| {
            check_lost(&COUNTER, By::Ipv4);
            Ok(())
        }),
    }
}

#[test]
fn a_thousand_dumps_give_the_same_bytes() -> Outcome {
    isolated(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            socket::set_int(&socket, SOCKET, SO_BROADCAST, 1)?;
            change_group(&socket, IP_ADD_MEMBERSHIP, GROUP, 1);
            let first = Checkpoint::dump(&socket)?.to_bytes()?;
            for _ in 0..1000 {
                assert!(Checkpoint::dump(&socket)?.to_bytes()? == first);
            }
            Ok(())
        })
    })
}
