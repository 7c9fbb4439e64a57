//! What waits in a socket, drawn at random, and how it comes there.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use proptest::prelude::*;
use proptest::sample::select;
use rustix::net::{RecvFlags, recv};

use crate::feed::{By, DESTINATION, HOP_BY_HOP, Heard, ROUTING, Told};
use crate::message::{self, Control};
use crate::support::place::Device;
use crate::support::socket::{self, IP, SOCKET, UDP, set_int};

const SO_ERROR: i32 = 4;
const SO_RCVBUF: i32 = 8;
const SO_RCVBUFFORCE: i32 = 33;
const SO_MARK: i32 = 36;
const SO_PEEK_OFF: i32 = 42;
const SO_BUF_LOCK: i32 = 72;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const UDP_SEGMENT: i32 = 103;

/// Data that is held back, in pieces.
#[derive(Clone, Debug)]
pub struct Cork {
    to: (Ipv4Addr, u16),
    pieces: Vec<usize>,
    tos: Option<u8>,
    ttl: Option<u8>,
    mark: Option<i32>,
    segment: Option<u16>,
    /// Before the socket is connected.
    early: bool,
}

#[derive(Clone, Debug)]
pub struct Waits {
    heard: Vec<Heard>,
    /// SO_PEEK_OFF and how often the owner has peeked.
    peeks: (i32, usize),
    told: Vec<Told>,
    /// The owner has asked SO_ERROR, and taken so many errors.
    asked: Option<usize>,
    cork: Option<Cork>,
}

fn heard(size: impl Strategy<Value = usize>) -> impl Strategy<Value = Heard> {
    let source = prop_oneof![
        any::<u32>().prop_map(|address| Ipv4Addr::from(address & 0xdfff_ffff | 0x0100_0000)),
        any::<(u8, u8)>().prop_map(|(c, d)| Ipv4Addr::new(169, 254, c, d)),
        Just(Ipv4Addr::UNSPECIFIED),
    ];
    let port = prop_oneof![4 => any::<u16>(), 1 => Just(0)];
    let by = prop_oneof![
        2 => Just(By::Loopback),
        2 => (0..2usize).prop_map(By::Group),
        1 => (0..2usize).prop_map(By::Broadcast),
        3 => (source, port).prop_map(|(source, port)| By::Anybody(source, port)),
        1 => Just(By::Segments),
    ];
    let options: Vec<&'static [u8]> = vec![&[], &[], &[1, 1, 1, 0], &[148, 4, 0, 0]];
    let of_ipv6 = (any::<bool>(), any::<u32>(), select(HEADERS.to_vec()));
    (
        by,
        size,
        1..=u8::MAX,
        any::<u8>(),
        any::<i32>(),
        select(options),
        of_ipv6,
    )
        .prop_map(
            |(by, size, ttl, tos, mark, options, (ipv4, flow_label, headers))| {
                // Segments with options are put back as one datagram, which the report says.
                let (options, headers) = match by {
                    By::Segments => (&[][..], &[][..]),
                    _ => (options, headers),
                };
                Heard {
                    by,
                    size,
                    ttl,
                    tos,
                    mark,
                    options,
                    ipv4,
                    flow_label,
                    headers,
                }
            },
        )
}

type Headers = &'static [(u8, &'static [u8])];

/// Extension headers of padding, and a way that was gone.
const HEADERS: [Headers; 5] = [
    &[],
    &[],
    &[(HOP_BY_HOP, &[0, 0, 1, 4, 0, 0, 0, 0])],
    &[(
        DESTINATION,
        &[0, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )],
    &[
        (HOP_BY_HOP, &[0, 0, 1, 4, 0, 0, 0, 0]),
        (ROUTING, &[0, 0, 0, 0, 0, 0, 0, 0]),
        (DESTINATION, &[0, 0, 1, 4, 0, 0, 0, 0]),
    ],
];

/// Mostly small: two hundred of the largest would take the time of thousands.
fn queue() -> impl Strategy<Value = Vec<Heard>> {
    let size = || prop_oneof![2 => Just(0usize), 4 => 1..200usize, 2 => 200..3000usize];
    let largest = prop_oneof![3 => 3000..65_507usize, 1 => Just(65_507)];
    let few = proptest::collection::vec(heard(size()), 0..12);
    let many = proptest::collection::vec(heard(size()), 0..=200);
    let large = proptest::collection::vec(heard(largest), 1..4);
    prop_oneof![4 => Just(Vec::new()), 6 => few, 1 => many, 1 => large]
}

fn told() -> impl Strategy<Value = Told> {
    let kind = prop_oneof![
        select(vec![0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]).prop_map(|code| (3, code)),
        Just((11, 0)),
        any::<u8>().prop_map(|code| (12, code)),
    ];
    let quoted = proptest::collection::vec(any::<u8>(), 0..600);
    (kind, any::<[u8; 4]>(), quoted).prop_map(|((kind, code), rest, quoted)| Told {
        rest,
        quoted,
        ..Told::new(kind, code)
    })
}

fn cork() -> impl Strategy<Value = Cork> {
    let to = prop_oneof![
        any::<(u8, u8)>().prop_map(|(c, d)| Ipv4Addr::new(127, 0, c, d | 1)),
        Just(Ipv4Addr::new(10, 9, 0, 77)),
        Just(Ipv4Addr::new(10, 9, 1, 255)),
        Just(Ipv4Addr::new(239, 7, 7, 7)),
    ];
    let piece = prop_oneof![Just(0usize), 1..2000usize, 2000..30_000usize];
    let pieces = proptest::collection::vec(piece, 1..5);
    let given = (
        proptest::option::of(any::<u8>()),
        proptest::option::of(1..=u8::MAX),
        proptest::option::weighted(0.2, any::<i32>()),
        proptest::option::weighted(0.2, any::<u16>()),
    );
    let place = ((to, any::<u16>()), any::<bool>());
    (place, pieces, given).prop_map(|((to, early), pieces, (tos, ttl, mark, segment))| Cork {
        to,
        pieces,
        tos,
        ttl,
        mark,
        segment,
        early,
    })
}

pub fn strategy() -> impl Strategy<Value = Waits> {
    let few = proptest::collection::vec(told(), 1..5);
    let told = prop_oneof![2 => Just(Vec::new()), 1 => few];
    (
        queue(),
        (-1..2000, 0..4usize),
        told,
        proptest::option::of(0..3usize),
        proptest::option::weighted(0.3, cork()),
    )
        .prop_map(|(heard, peeks, told, asked, cork)| Waits {
            heard,
            peeks,
            told,
            asked,
            cork,
        })
}

/// Everything that a step did, for the tally.
pub type Done = Vec<(&'static str, io::Result<()>)>;

impl Waits {
    /// Nothing at all.
    pub fn nothing() -> Waits {
        Waits {
            heard: Vec::new(),
            peeks: (-1, 0),
            told: Vec::new(),
            asked: None,
            cork: None,
        }
    }

    /// Without errors and corked data.
    pub fn queue_only(self) -> Waits {
        Waits {
            told: Vec::new(),
            cork: None,
            ..self
        }
    }

    /// Whether data is corked before the socket is connected.
    pub fn corks_early(&self) -> bool {
        self.cork.as_ref().is_some_and(|cork| cork.early)
    }

    /// Corks, before the socket is connected or after.
    pub fn cork(&self, socket: &OwnedFd, early: bool, done: &mut Done) {
        let Some(cork) = self.cork.as_ref().filter(|cork| cork.early == early) else {
            return;
        };
        let word =
            |level, kind, value: i32| -> Control { (level, kind, value.to_ne_bytes().into()) };
        let mut controls = Vec::new();
        controls.extend(cork.tos.map(|tos| word(IP, IP_TOS, tos.into())));
        controls.extend(cork.ttl.map(|ttl| word(IP, IP_TTL, ttl.into())));
        controls.extend(cork.mark.map(|mark| word(SOCKET, SO_MARK, mark)));
        let segment = cork
            .segment
            .map(|size| (UDP, UDP_SEGMENT, size.to_ne_bytes().into()));
        controls.extend(segment);
        for (at, size) in cork.pieces.iter().enumerate() {
            let to = SocketAddr::new(cork.to.0.into(), cork.to.1.max(1));
            let data: Vec<u8> = (0..*size).map(|byte| (byte * 3 + at) as u8).collect();
            let flags = libc::MSG_MORE | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
            done.push(("cork", message::send(socket, to, &data, &controls, flags)));
        }
    }

    /// Lets it hear, be told of errors, and its owner peek and ask.
    pub fn come(
        &self,
        socket: &OwnedFd,
        groups: (Ipv4Addr, Ipv6Addr),
        devices: &[Device],
        done: &mut Done,
    ) {
        let name = socket::local(socket).unwrap();
        if name.port() != 0 {
            self.hear(socket, name, groups, devices, done);
            for (told, ttl) in self.told.iter().zip(9..) {
                let about = socket::peer(socket).unwrap_or(told.about);
                let told = Told {
                    about,
                    ..told.clone()
                };
                done.push(("ICMP message", told.tell(name, ttl)));
            }
        }
        self.peek(socket);
        if let Some(count) = self.asked {
            socket::get_int(socket, SOCKET, SO_ERROR).unwrap();
            for _ in 0..count {
                message::receive(socket, libc::MSG_ERRQUEUE).unwrap();
            }
        }
    }

    /// The buffer is larger meanwhile: what is dropped is counted.
    fn hear(
        &self,
        socket: &OwnedFd,
        name: SocketAddr,
        groups: (Ipv4Addr, Ipv6Addr),
        devices: &[Device],
        done: &mut Done,
    ) {
        let size = socket::get_int(socket, SOCKET, SO_RCVBUF).unwrap();
        let locks = socket::get_int(socket, SOCKET, SO_BUF_LOCK).unwrap();
        set_int(socket, SOCKET, SO_RCVBUFFORCE, 1 << 26).unwrap();
        let peer = socket::peer(socket);
        for heard in &self.heard {
            done.push(("datagram", heard.send(name, peer, groups, devices)));
        }
        set_int(socket, SOCKET, SO_RCVBUFFORCE, size / 2).unwrap();
        set_int(socket, SOCKET, SO_BUF_LOCK, locks).unwrap();
    }

    fn peek(&self, socket: &OwnedFd) {
        let (place, count) = self.peeks;
        let before = socket::get_int(socket, SOCKET, SO_PEEK_OFF).unwrap();
        set_int(socket, SOCKET, SO_PEEK_OFF, place).unwrap();
        for _ in 0..count {
            // An error that waits is told first, and an empty queue is one too.
            let _ = recv(
                socket,
                &mut [0; 8][..],
                RecvFlags::PEEK | RecvFlags::DONTWAIT,
            );
        }
        set_int(socket, SOCKET, SO_PEEK_OFF, before).unwrap();
    }
}
