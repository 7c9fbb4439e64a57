//! What sockets do: each thing is tried on an untouched socket and on a restored one, by the same
//! function, and must come out the same.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::fmt::Debug;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send, sendto};
use sockcr::{Checkpoint, ErrorKind, Mapping, RestoreOptions, Restored, restore_all};

use support::place::{self, isolated};
use support::socket::{self, IP, Instruction, SOCKET, UDP, instruction, set_int, udp};
use support::{Outcome, reader, skip};

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PORT: u16 = 4321;

const SO_REUSEADDR: i32 = 2;
const SO_ERROR: i32 = 4;
const SO_BROADCAST: i32 = 6;
const SO_REUSEPORT: i32 = 15;
const SO_RCVTIMEO: i32 = 20;
const SO_TIMESTAMPING: i32 = 37;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_RECVERR: i32 = 11;
const IP_RECVTTL: i32 = 12;
const IP_RECVTOS: i32 = 13;
const IP_BIND_ADDRESS_NO_PORT: i32 = 24;
const IP_MULTICAST_IF: i32 = 32;
const IP_MULTICAST_TTL: i32 = 33;
const IP_MULTICAST_LOOP: i32 = 34;
const IP_ADD_MEMBERSHIP: i32 = 35;
const IP_DROP_MEMBERSHIP: i32 = 36;
const IP_BLOCK_SOURCE: i32 = 38;
const IP_ADD_SOURCE_MEMBERSHIP: i32 = 39;
const IP_MULTICAST_ALL: i32 = 49;
const UDP_CORK: i32 = 1;

fn exactly() -> RestoreOptions {
    RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    }
}

fn lossy() -> RestoreOptions {
    RestoreOptions {
        lossy: true,
        ..RestoreOptions::default()
    }
}

/// Dumps the socket, closes it, and restores it from the bytes of the image.
fn restored(original: OwnedFd) -> OwnedFd {
    let image = Checkpoint::dump(&original).unwrap().to_bytes().unwrap();
    drop(original);
    let checkpoint = Checkpoint::from_bytes(&image).unwrap();
    checkpoint.restore(&exactly()).unwrap().fd
}

/// Observes a socket that `make` made, then the restored twin of another one.
fn same<T: PartialEq + Debug>(make: impl Fn() -> OwnedFd, observe: impl Fn(&OwnedFd) -> T) -> T {
    let untouched = {
        let socket = make();
        observe(&socket)
    };
    let twin = restored(make());
    let again = observe(&twin);
    assert_eq!(untouched, again, "untouched, restored");
    again
}

fn to(address: Ipv4Addr, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(address, port)
}

fn send_to(socket: &OwnedFd, data: &[u8], address: Ipv4Addr, port: u16) -> io::Result<()> {
    sendto(socket, data, SendFlags::NOSIGNAL, &to(address, port))?;
    Ok(())
}

/// A fresh socket bound somewhere, with these options of four bytes.
fn with(address: (Ipv4Addr, u16), options: &[(i32, i32, i32)]) -> OwnedFd {
    let socket = udp().unwrap();
    for (level, name, value) in options {
        set_int(&socket, *level, *name, *value).unwrap();
    }
    socket::bind(&socket, address).unwrap();
    socket
}

/// The seven ways to an address.
const WAYS: [&str; 7] = [
    "address and port",
    "any address and port, connected",
    "address, port 0",
    "address, port 0, connected",
    "connected only",
    "sent only",
    "address, no port",
];

fn made(way: &str) -> OwnedFd {
    let socket = udp().unwrap();
    let connect = |socket: &OwnedFd| socket::connect(socket, (HERE, 9)).unwrap();
    match way {
        "address and port" => socket::bind(&socket, (HERE, PORT)).unwrap(),
        "any address and port, connected" => {
            socket::bind(&socket, (ANY, PORT)).unwrap();
            connect(&socket);
        }
        "address, port 0" => socket::bind(&socket, (HERE, 0)).unwrap(),
        "address, port 0, connected" => {
            socket::bind(&socket, (HERE, 0)).unwrap();
            connect(&socket);
        }
        "connected only" => connect(&socket),
        "sent only" => send_to(&socket, b"", HERE, 9).unwrap(),
        "address, no port" => {
            set_int(&socket, IP, IP_BIND_ADDRESS_NO_PORT, 1).unwrap();
            socket::bind(&socket, (HERE, 0)).unwrap();
        }
        other => panic!("{other}"),
    }
    socket
}

#[test]
fn disconnecting_leaves_the_same_address() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        // A receiver, so that nothing sent is answered with an error.
        let _receiver = socket::bound((HERE, 9))?;
        for way in WAYS {
            let left = same(
                || made(way),
                |socket| {
                    let before = socket::local(socket).unwrap();
                    rustix::net::connect_unspec(socket).unwrap();
                    let after = socket::local(socket).unwrap();
                    (
                        before.ip().is_unspecified(),
                        after.ip().is_unspecified(),
                        after.port() == before.port(),
                        after.port() == 0,
                    )
                },
            );
            println!("{way}: {left:?}");
        }
        Ok(())
    })
}

#[test]
fn the_address_itself_comes_back() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        let _receiver = socket::bound((HERE, 9))?;
        for way in WAYS {
            let original = made(way);
            let (local, peer) = (socket::local(&original)?, socket::peer(&original));
            let twin = restored(original);
            assert_eq!(
                (socket::local(&twin)?, socket::peer(&twin)),
                (local, peer),
                "{way}"
            );
        }
        Ok(())
    })
}

#[test]
fn a_ttl_never_set_follows_the_system() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        let observe = |socket: &OwnedFd| {
            place::sysctl("net.ipv4.ip_default_ttl", "77").unwrap();
            let ttl = (
                socket::get_int(socket, IP, IP_TTL).unwrap(),
                ttl_on_the_wire(socket),
            );
            place::sysctl("net.ipv4.ip_default_ttl", "64").unwrap();
            ttl
        };
        assert_eq!(same(|| with((HERE, PORT), &[]), observe), (77, 77));
        assert_eq!(
            same(|| with((HERE, PORT), &[(IP, IP_TTL, 64)]), observe),
            (64, 64)
        );
        Ok(())
    })
}

fn ttl_on_the_wire(socket: &OwnedFd) -> i32 {
    let receiver = with((HERE, 9), &[(IP, IP_RECVTTL, 1)]);
    send_to(socket, b"ttl", HERE, 9).unwrap();
    socket::receive_message(&receiver).unwrap().control[&(IP, IP_TTL)]
}

#[test]
fn ttl_and_tos_on_the_wire() -> Outcome {
    isolated(|| {
        let make = || with((HERE, PORT), &[(IP, IP_TTL, 7), (IP, IP_TOS, 0xb8)]);
        let message = same(make, |socket| {
            let receiver = with((HERE, 9), &[(IP, IP_RECVTTL, 1), (IP, IP_RECVTOS, 1)]);
            send_to(socket, b"hello", HERE, 9).unwrap();
            socket::receive_message(&receiver).unwrap()
        });
        assert_eq!(
            (
                message.control[&(IP, IP_TTL)],
                message.control[&(IP, IP_TOS)]
            ),
            (7, 0xb8)
        );
        assert_eq!(
            (message.data.as_slice(), message.from),
            (&b"hello"[..], to(HERE, PORT))
        );
        Ok(())
    })
}

#[test]
fn datagrams_arrive_with_what_the_receiver_asked_for() -> Outcome {
    isolated(|| {
        let options = [(IP, IP_RECVTTL, 1), (IP, IP_RECVTOS, 1)];
        let message = same(
            || with((HERE, PORT), &options),
            |socket| {
                let sender = with((Ipv4Addr::new(127, 0, 0, 5), 99), &[(IP, IP_TTL, 3)]);
                send_to(&sender, b"in", HERE, PORT).unwrap();
                socket::receive_message(socket).unwrap()
            },
        );
        assert_eq!(message.from, to(Ipv4Addr::new(127, 0, 0, 5), 99));
        assert_eq!(
            message.control,
            [((IP, IP_TOS), 0), ((IP, IP_TTL), 3)].into()
        );
        Ok(())
    })
}

#[test]
fn a_connected_socket_hears_only_its_peer() -> Outcome {
    isolated(|| {
        let make = || {
            let socket = with((HERE, PORT), &[]);
            socket::connect(&socket, (HERE, 9)).unwrap();
            socket
        };
        let heard = same(make, |socket| {
            let (stranger, peer) = (with((HERE, 10), &[]), with((HERE, 9), &[]));
            let refused = send_to(&stranger, b"stranger", HERE, PORT);
            send_to(&peer, b"peer", HERE, PORT).unwrap();
            send(socket, b"back", SendFlags::empty()).unwrap();
            (
                refused.is_ok(),
                socket::receive(socket).unwrap(),
                socket::receive(&peer).unwrap(),
            )
        });
        assert_eq!(heard, (true, b"peer".to_vec(), b"back".to_vec()));
        Ok(())
    })
}

/// Five members of one group, bound in this order; one that came between them has left.
fn group() -> Vec<OwnedFd> {
    let mut members: Vec<OwnedFd> = (0..6)
        .map(|_| with((HERE, PORT), &[(SOCKET, SO_REUSEPORT, 1)]))
        .collect();
    members.remove(2);
    members
}

fn places(members: &[OwnedFd]) -> Vec<Option<u32>> {
    let reader = reader().unwrap();
    members
        .iter()
        .map(|member| reader.read(member.as_fd()).unwrap().reuseport_index)
        .collect()
}

/// How many of the datagrams from 300 ports each member gets.
fn shares(members: &[OwnedFd]) -> Vec<usize> {
    for port in 20_000..20_300 {
        let sender = with((HERE, port), &[]);
        send_to(&sender, &port.to_be_bytes(), HERE, PORT).unwrap();
    }
    let mut shares = vec![0; members.len()];
    while shares.iter().sum::<usize>() < 300 {
        for (member, share) in members.iter().zip(&mut shares) {
            *share += socket::receive_now(member).unwrap().len();
        }
    }
    shares
}

#[test]
fn a_reuseport_group_keeps_its_order_and_its_shares() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        let members = group();
        let (order, before) = (places(&members), shares(&members));
        assert!(order.iter().all(Option::is_some) && before.iter().all(|share| *share > 0));
        let checkpoints: Result<Vec<_>, _> = members.iter().map(Checkpoint::dump).collect();
        drop(members);
        let restored = restore_all(&checkpoints?, &exactly())?;
        let members: Vec<OwnedFd> = restored.into_iter().map(|restored| restored.fd).collect();
        assert_eq!(places(&members), order);
        assert_eq!(shares(&members), before);
        Ok(())
    })
}

#[test]
fn a_port_is_not_opened_to_others() -> Outcome {
    isolated(|| {
        for way in [
            "address and port",
            "address, port 0",
            "any address and port, connected",
        ] {
            let _receiver = socket::bound((HERE, 9))?;
            let refused = same(
                || made(way),
                |socket| {
                    let local = socket::local(socket).unwrap();
                    [0, SO_REUSEADDR, SO_REUSEPORT].map(|option| {
                        let other = udp().unwrap();
                        if option != 0 {
                            set_int(&other, SOCKET, option, 1).unwrap();
                        }
                        socket::bind(&other, (HERE, local.port())).map_err(|error| error.kind())
                    })
                },
            );
            assert_eq!(refused, [Err(io::ErrorKind::AddrInUse); 3], "{way}");
        }
        Ok(())
    })
}

#[test]
fn broadcast_is_allowed_or_not() -> Outcome {
    isolated(|| {
        let broadcast = Ipv4Addr::new(127, 255, 255, 255);
        let observe =
            |socket: &OwnedFd| send_to(socket, b"all", broadcast, 9).map_err(|e| e.kind());
        let _receiver = socket::bound((ANY, 9))?;
        assert_eq!(
            same(|| with((HERE, PORT), &[]), observe),
            Err(io::ErrorKind::PermissionDenied)
        );
        assert_eq!(
            same(|| with((HERE, PORT), &[(SOCKET, SO_BROADCAST, 1)]), observe),
            Ok(())
        );
        Ok(())
    })
}

/// `struct ip_mreqn`
fn join_request(group: Ipv4Addr, address: Ipv4Addr, index: u32) -> Vec<u8> {
    [group.octets(), address.octets(), index.to_ne_bytes()].concat()
}

fn change_group(socket: &OwnedFd, name: i32, group: Ipv4Addr, index: u32) {
    socket::set(socket, IP, name, &join_request(group, ANY, index)).unwrap();
}

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const OTHER_GROUP: Ipv4Addr = Ipv4Addr::new(239, 2, 2, 2);

/// Sends to a group by this device, from an address.
fn multicast(data: &[u8], from: Ipv4Addr, index: u32, group: Ipv4Addr) {
    let sender = with((from, 0), &[]);
    socket::set(&sender, IP, IP_MULTICAST_IF, &join_request(ANY, ANY, index)).unwrap();
    send_to(&sender, data, group, PORT).unwrap();
}

#[test]
fn multicast_is_looped_back_or_not() -> Outcome {
    isolated(|| {
        let [device, _] = place::devices()?;
        for looped in [0, 1] {
            let make = || {
                let socket = with(
                    (device.address, 99),
                    &[(IP, IP_MULTICAST_LOOP, looped), (IP, IP_MULTICAST_TTL, 5)],
                );
                socket::set(
                    &socket,
                    IP,
                    IP_MULTICAST_IF,
                    &join_request(ANY, ANY, device.index),
                )
                .unwrap();
                socket
            };
            let first = same(make, |socket| {
                let receiver = with((ANY, PORT), &[(IP, IP_RECVTTL, 1)]);
                change_group(&receiver, IP_ADD_MEMBERSHIP, GROUP, device.index);
                send_to(socket, b"mine", GROUP, PORT).unwrap();
                multicast(b"marker", device.address, device.index, GROUP);
                let message = socket::receive_message(&receiver).unwrap();
                (message.data, message.control[&(IP, IP_TTL)])
            });
            let expected = if looped == 1 {
                (b"mine".to_vec(), 5)
            } else {
                (b"marker".to_vec(), 1)
            };
            assert_eq!(first, expected);
        }
        Ok(())
    })
}

#[test]
fn a_group_left_is_not_heard() -> Outcome {
    isolated(|| {
        let [device, _] = place::devices()?;
        let make = || {
            let socket = with(
                (ANY, PORT),
                &[(IP, IP_MULTICAST_ALL, 0), (SOCKET, SO_REUSEADDR, 1)],
            );
            change_group(&socket, IP_ADD_MEMBERSHIP, GROUP, device.index);
            change_group(&socket, IP_ADD_MEMBERSHIP, OTHER_GROUP, device.index);
            change_group(&socket, IP_DROP_MEMBERSHIP, GROUP, device.index);
            socket
        };
        let member = with((HERE, 0), &[]);
        change_group(&member, IP_ADD_MEMBERSHIP, GROUP, device.index);
        let first = same(make, |socket| {
            multicast(b"left", device.address, device.index, GROUP);
            multicast(b"joined", device.address, device.index, OTHER_GROUP);
            socket::receive(socket).unwrap()
        });
        assert_eq!(first, b"joined");
        Ok(())
    })
}

/// A way to join a group.
type Joining<'a> = &'a dyn Fn(&OwnedFd);

#[test]
fn a_source_filter_filters() -> Outcome {
    isolated(|| {
        let [one, other] = place::devices()?;
        let source = [GROUP.octets(), one.address.octets(), other.address.octets()].concat();
        let except = |socket: &OwnedFd| {
            change_group(socket, IP_ADD_MEMBERSHIP, GROUP, one.index);
            socket::set(socket, IP, IP_BLOCK_SOURCE, &source).unwrap();
        };
        let only =
            |socket: &OwnedFd| socket::set(socket, IP, IP_ADD_SOURCE_MEMBERSHIP, &source).unwrap();
        let joins: [(Joining<'_>, &[u8]); 2] = [(&except, b"one"), (&only, b"other")];
        for (join, heard) in joins {
            let make = || {
                let socket = with((ANY, PORT), &[(IP, IP_MULTICAST_ALL, 0)]);
                join(&socket);
                socket
            };
            let first = same(make, |socket| {
                // The one that is filtered comes first.
                let mut senders = [(&b"one"[..], one.address), (&b"other"[..], other.address)];
                senders.sort_by_key(|(data, _)| *data == heard);
                for (data, from) in senders {
                    multicast(data, from, one.index, GROUP);
                }
                socket::receive(socket).unwrap()
            });
            assert_eq!(first, heard);
        }
        Ok(())
    })
}

/// `BPF_LD | BPF_B | BPF_ABS` of the first byte behind the UDP header, and `BPF_RET | BPF_A`: a
/// datagram is cut to as many bytes as its first one says, and dropped for 0.
fn by_first_byte() -> [Instruction; 2] {
    [instruction(0x30, 8), instruction(0x16, 0)]
}

#[test]
fn a_filter_filters_and_stays_locked() -> Outcome {
    isolated(|| {
        let make = || {
            let socket = with((HERE, PORT), &[]);
            socket::attach(&socket, &by_first_byte()).unwrap();
            set_int(&socket, SOCKET, 44, 1).unwrap();
            socket
        };
        let seen = same(make, |socket| {
            let sender = udp().unwrap();
            for first in [0, 0xff, 0x0b] {
                send_to(&sender, &[first, 1, 2, 3, 4], HERE, PORT).unwrap();
            }
            let cut = [
                socket::receive(socket).unwrap(),
                socket::receive(socket).unwrap(),
            ];
            let change = socket::attach(socket, &by_first_byte()).map_err(|error| error.kind());
            (cut, change)
        });
        let cut = [vec![0xff, 1, 2, 3, 4], vec![0x0b, 1, 2]];
        assert_eq!(seen, (cut, Err(io::ErrorKind::PermissionDenied)));
        Ok(())
    })
}

const ROUNDS: u16 = 4;

/// Between bind(2) and connect(2) a socket would hear everybody.
#[test]
fn a_connected_socket_hears_no_stranger_while_it_is_restored() -> Outcome {
    isolated(|| {
        let checkpoint = Checkpoint::dump(&made("any address and port, connected"))?;
        let stranger = with((HERE, 10), &[]);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for at in (0..ROUNDS).cycle() {
                    // Refused while nobody is bound there.
                    let _ = send_to(&stranger, b"stranger", HERE, PORT + at);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            // Another port each round: a closed one may be held by whoever looks at this process.
            let heard = (0..ROUNDS * 100).map(|round| {
                let mut there = checkpoint.clone();
                there.endpoint.local.set_port(PORT + round % ROUNDS);
                let restored = there.restore(&RestoreOptions::default())?;
                Ok(socket::receive_now(&restored.fd)?.len())
            });
            let heard: Result<usize, Box<dyn std::error::Error + Send + Sync>> = heard.sum();
            done.store(true, Ordering::Relaxed);
            assert_eq!(heard?, 0);
            Ok(())
        })
    })
}

#[test]
fn a_receive_timeout_fires() -> Outcome {
    isolated(|| {
        let timeout = Duration::from_millis(40);
        let make = || {
            let socket = with((HERE, PORT), &[]);
            let timeval = [0i64.to_ne_bytes(), 40_000i64.to_ne_bytes()].concat();
            socket::set(&socket, SOCKET, SO_RCVTIMEO, &timeval).unwrap();
            socket
        };
        let fired = same(make, |socket| {
            let start = Instant::now();
            let answer = recv(socket, &mut [0u8; 8][..], RecvFlags::empty()).map(|(n, _)| n);
            (answer, start.elapsed() >= timeout)
        });
        assert_eq!(fired, (Err(Errno::AGAIN), true));
        Ok(())
    })
}

/// Connected to 10.9.0.2 by way of m0, from the address of m1, which nothing holds there.
fn from_elsewhere() -> OwnedFd {
    let socket = udp().unwrap();
    socket::connect(&socket, (Ipv4Addr::new(10, 9, 1, 2), 9)).unwrap();
    socket::connect(&socket, (Ipv4Addr::new(10, 9, 0, 2), 9)).unwrap();
    socket
}

#[test]
fn a_source_address_that_the_route_would_not_choose_stays() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        let [_, other] = place::devices()?;
        let seen = same(from_elsewhere, |socket| {
            let before = socket::local(socket).unwrap();
            rustix::net::connect_unspec(socket).unwrap();
            (*before.ip(), socket::local(socket).unwrap())
        });
        assert_eq!(seen, (other.address, to(ANY, 0)));
        Ok(())
    })
}

/// The source of an unlocked connection is chosen by way of the loopback device: where that is
/// down, by way of another.
#[test]
fn a_connection_comes_back_without_the_loopback_device() -> Outcome {
    isolated(|| {
        // A second namespace inside this one's thread: its lo was never brought up.
        sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
        let [one, _] = place::devices()?;
        let make = || {
            let socket = udp().unwrap();
            socket::connect(&socket, (Ipv4Addr::new(10, 9, 0, 2), 9)).unwrap();
            socket
        };
        let local = same(make, |socket| *socket::local(socket).unwrap().ip());
        assert_eq!(local, one.address);
        Ok(())
    })
}

/// Restored to a device only after it was connected to a peer that the device does not lead to.
#[test]
fn a_device_given_after_connecting_comes_back() -> Outcome {
    isolated(|| {
        let [one, _] = place::devices()?;
        let make = || {
            let socket = with((HERE, PORT), &[]);
            socket::attach(&socket, &by_first_byte()).unwrap();
            socket::connect(&socket, (HERE, 9)).unwrap();
            socket::set(&socket, SOCKET, 25, one.name.as_bytes()).unwrap();
            socket
        };
        let seen = same(make, |socket| {
            let peer = with((HERE, 9), &[]);
            let lifted = socket::set(socket, SOCKET, 25, b"");
            send_to(&peer, &[0xff, 1], HERE, PORT).unwrap();
            (
                lifted,
                socket::receive(socket).unwrap(),
                socket::filter(socket).unwrap(),
            )
        });
        assert_eq!(seen, (Ok(()), vec![0xff, 1], by_first_byte().to_vec()));
        Ok(())
    })
}

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

const HELD: &[Held] = &[
    Held {
        what: ["receive queue", "receive queue"],
        make: with_queue,
        check: check_queue,
    },
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

/// The numbers of this thread's descriptors.
fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/thread-self/fd").unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Gives this thread descriptors of its own, that no other test opens or closes.
#[allow(
    deprecated,
    reason = "to have one's own table of descriptors endangers no memory"
)]
fn own_descriptors() {
    rustix::thread::unshare(rustix::thread::UnshareFlags::FILES).unwrap();
}

#[test]
fn a_failed_restore_leaves_nothing_open() -> Outcome {
    isolated(|| {
        own_descriptors();
        let _ = reader();
        let (one, other) = (with((HERE, PORT), &[]), with((HERE, PORT + 1), &[]));
        let checkpoints = [Checkpoint::dump(&one)?, Checkpoint::dump(&other)?];
        drop(one);
        let before = descriptors();
        let refused = restore_all(&checkpoints, &exactly()).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains(&format!("127.0.0.1:{}", PORT + 1)),
            "{refused}"
        );
        assert_eq!(descriptors(), before);
        socket::bound((HERE, PORT))?;
        drop(other);
        assert_eq!(restore_all(&checkpoints, &exactly())?.len(), 2);
        Ok(())
    })
}

#[test]
fn a_socket_is_restored_into_another_namespace() -> Outcome {
    isolated(|| {
        let checkpoint = Checkpoint::dump(&with((HERE, PORT), &[]))?;
        let elsewhere = std::fs::File::open("/proc/thread-self/ns/net")?;
        let cookie = sockcr::netns::own_cookie()?;
        sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
        let options = RestoreOptions {
            netns: Some(elsewhere.into()),
            ..exactly()
        };
        let restored = checkpoint.restore(&options)?;
        assert_eq!(sockcr::netns::cookie(restored.fd.as_fd())?, cookie);
        assert_ne!(sockcr::netns::own_cookie()?, cookie);
        assert_eq!(socket::local(&restored.fd)?, to(HERE, PORT));
        Ok(())
    })
}

#[test]
fn addresses_and_devices_are_mapped() -> Outcome {
    isolated(|| {
        let [one, other] = place::devices()?;
        let socket = with((one.address, PORT), &[]);
        socket::set(&socket, SOCKET, 25, one.name.as_bytes()).unwrap();
        change_group(&socket, IP_ADD_MEMBERSHIP, GROUP, one.index);
        let checkpoint = Checkpoint::dump(&socket)?;
        let map = ["10.9.0.1=10.9.1.1", "m0=m1"].map(|text| text.parse::<Mapping>().unwrap());
        let mapped = checkpoint.restore(&RestoreOptions {
            map: map.into(),
            ..exactly()
        })?;
        assert_eq!(socket::local(&mapped.fd)?, to(other.address, PORT));
        let again = Checkpoint::dump(&mapped.fd)?;
        assert_eq!(again.memberships[0].interface, other.index);
        let unused = RestoreOptions {
            map: vec!["10.1.1.1=10.2.2.2".parse()?],
            ..exactly()
        };
        assert_eq!(
            checkpoint.restore(&unused).unwrap_err().kind(),
            ErrorKind::BadInput
        );
        Ok(())
    })
}
