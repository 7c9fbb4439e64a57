//! What a checkpoint does not carry is reported and left alone; dumps and restores that fail change
//! nothing. What waits in a socket is carried with BPF, and reported without.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use sockcr::{Checkpoint, ErrorKind, Restored};

use support::place::isolated;
use support::socket::{self, IP, SOCKET, udp};
use support::twin::{
    GROUP, HERE, IP_ADD_MEMBERSHIP, PORT, SO_BROADCAST, change_group, exactly, lossy, send_to, with,
};
use support::{Outcome, reader, skip};

const SO_ERROR: i32 = 4;
const SO_TIMESTAMPING: i32 = 37;
const IP_RECVERR: i32 = 11;

/// Something that only BPF shows whole.
struct Held {
    /// How the report calls it, without BPF.
    what: &'static str,
    make: fn() -> OwnedFd,
    /// Whether it is there still; takes it.
    check: fn(&OwnedFd),
}

/// A socket connected to a port where nobody is, that has sent there.
fn unreachable(options: &[(i32, i32, i32)]) -> OwnedFd {
    let socket = with((HERE, PORT), options);
    socket::connect(&socket, (HERE, 9)).unwrap();
    send(&socket, b"anybody there?", SendFlags::NOSIGNAL).unwrap();
    socket::wait_for(&socket, PollFlags::ERR).unwrap();
    socket
}

fn with_queue() -> OwnedFd {
    let socket = with((HERE, PORT), &[]);
    let sender = udp().unwrap();
    for data in [&b"one"[..], b"", b"three"] {
        send_to(&sender, data, HERE, PORT).unwrap();
    }
    socket::wait_for(&socket, PollFlags::IN).unwrap();
    socket
}

fn check_queue(socket: &OwnedFd) {
    let all = [(); 3].map(|()| socket::receive(socket).unwrap());
    assert_eq!(all, [b"one".to_vec(), b"".to_vec(), b"three".to_vec()]);
}

fn with_cork() -> OwnedFd {
    let socket = with((HERE, PORT), &[]);
    socket::connect(&socket, (HERE, 9)).unwrap();
    send(&socket, b"begun", SendFlags::MORE).unwrap();
    socket
}

fn check_cork(socket: &OwnedFd) {
    let receiver = with((HERE, 9), &[]);
    send(socket, b" and done", SendFlags::empty()).unwrap();
    assert_eq!(socket::receive(&receiver).unwrap(), b"begun and done");
}

fn check_error(socket: &OwnedFd) {
    let error = socket::get_int(socket, SOCKET, SO_ERROR).unwrap();
    assert_eq!(error, libc::ECONNREFUSED);
}

fn with_error_queue() -> OwnedFd {
    let socket = unreachable(&[(IP, IP_RECVERR, 1)]);
    check_error(&socket);
    socket
}

fn check_error_queue(socket: &OwnedFd) {
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
fn with_counter() -> OwnedFd {
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

fn check_counter(socket: &OwnedFd) {
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
        make: || unreachable(&[]),
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

fn check_carried(held: &Held) {
    let original = (held.make)();
    let checkpoint = dumped(&original);
    assert_eq!(checkpoint.report.not_carried, []);
    (held.check)(&original);
    drop(original);
    let restored = checkpoint.restore(&exactly()).unwrap();
    (held.check)(&restored.fd);
}

fn check_lost(held: &Held) {
    let original = (held.make)();
    let checkpoint = dumped(&original);
    let what = held.what;
    let notes = &checkpoint.report.not_carried;
    let [note] = notes.as_slice() else {
        panic!("{what}: {notes:?}")
    };
    assert_eq!(note.what, what);
    (held.check)(&original);
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
    assert_eq!(report.not_carried, checkpoint.report.not_carried);
    assert!(socket::local(&fd).unwrap().port() == PORT);
}

#[test]
fn what_waits_is_carried_or_reported_and_left_alone() -> Outcome {
    isolated(|| {
        let check = match reader() {
            Ok(_) => check_carried,
            Err(_) => check_lost,
        };
        HELD.iter().for_each(check);
        Ok(())
    })
}

#[test]
fn a_counter_is_reported_and_left_alone() -> Outcome {
    match reader() {
        Err(why) => skip(&why),
        Ok(_) => isolated(|| {
            check_lost(&COUNTER);
            Ok(())
        }),
    }
}

#[test]
fn a_thousand_dumps_give_the_same_bytes() -> Outcome {
    isolated(|| {
        let socket = with((HERE, PORT), &[(SOCKET, SO_BROADCAST, 1)]);
        change_group(&socket, IP_ADD_MEMBERSHIP, GROUP, 1);
        let first = Checkpoint::dump(&socket)?.to_bytes()?;
        for _ in 0..1000 {
            assert!(Checkpoint::dump(&socket)?.to_bytes()? == first);
        }
        Ok(())
    })
}
