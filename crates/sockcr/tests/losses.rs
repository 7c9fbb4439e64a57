//! What a checkpoint does not carry is reported and left alone; dumps and restores that fail change
//! nothing.
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
use support::socket::{self, IP, SOCKET, UDP, set_int, udp};
use support::twin::{
    GROUP, HERE, IP_ADD_MEMBERSHIP, PORT, SO_BROADCAST, change_group, exactly, lossy, send_to, with,
};
use support::{Outcome, reader, skip};

const SO_ERROR: i32 = 4;
const SO_TIMESTAMPING: i32 = 37;
const IP_RECVERR: i32 = 11;
const UDP_CORK: i32 = 1;

/// Something a socket holds that a checkpoint does not.
struct Held {
    /// How the report calls it: with BPF, and without.
    what: [&'static str; 2],
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

fn with_ebpf() -> OwnedFd {
    let socket = with((HERE, PORT), &[]);
    socket::attach_ebpf(&socket).unwrap();
    socket
}

fn check_ebpf(socket: &OwnedFd) {
    assert_eq!(socket::filter(socket), Err(libc::EACCES));
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

/// With BPF it is carried: `queue.rs`.
const HELD_WITHOUT_BPF: Held = Held {
    what: ["", "receive queue"],
    make: with_queue,
    check: check_queue,
};

const HELD: &[Held] = &[
    Held {
        what: ["corked data", "unsent data"],
        make: with_cork,
        check: check_cork,
    },
    Held {
        what: ["pending error", "errors"],
        make: || unreachable(&[]),
        check: check_error,
    },
    Held {
        what: ["error queue", "errors"],
        make: with_error_queue,
        check: check_error_queue,
    },
];

/// Only with BPF can these be made, or seen.
const HELD_WITH_BPF: &[Held] = &[
    Held {
        what: ["filter", "filter"],
        make: with_ebpf,
        check: check_ebpf,
    },
    Held {
        what: ["time stamp counter", ""],
        make: with_counter,
        check: check_counter,
    },
];

fn check_held(held: &Held) {
    let original = (held.make)();
    let checkpoint = Checkpoint::dump(&original).unwrap();
    assert_eq!(
        Checkpoint::dump(&original).unwrap(),
        checkpoint,
        "a dump changes nothing"
    );
    let [with, without] = held.what;
    let what = if reader().is_ok() { with } else { without };
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
fn what_is_not_carried_is_reported_and_left_alone() -> Outcome {
    isolated(|| {
        if reader().is_err() {
            check_held(&HELD_WITHOUT_BPF);
        }
        HELD.iter().for_each(check_held);
        Ok(())
    })
}

#[test]
fn what_is_seen_with_bpf_only_is_reported_and_left_alone() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        HELD_WITH_BPF.iter().for_each(check_held);
        Ok(())
    })
}

#[test]
fn data_held_back_by_udp_cork_is_reported() -> Outcome {
    isolated(|| {
        let socket = with((HERE, PORT), &[(UDP, UDP_CORK, 1)]);
        socket::connect(&socket, (HERE, 9))?;
        let receiver = with((HERE, 9), &[]);
        assert!(
            Checkpoint::dump(&socket)?.report.is_exact(),
            "corked, and nothing in it"
        );
        send(&socket, b"held", SendFlags::empty())?;
        assert!(!Checkpoint::dump(&socket)?.report.is_exact());
        set_int(&socket, UDP, UDP_CORK, 0)?;
        assert_eq!(socket::receive(&receiver)?, b"held");
        assert!(Checkpoint::dump(&socket)?.report.is_exact());
        Ok(())
    })
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
