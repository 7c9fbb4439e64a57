//! A corked socket travels: uncorked on the other side, the same one datagram leaves.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/message.rs"]
mod message;
mod support;
#[path = "support/waiting.rs"]
mod waiting;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use message::{Control, send};
use rustix::event::PollFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sockcr::{Checkpoint, Mapping, RestoreOptions};
use support::inject::{Capture, FAMILIES, Family, privileged};
use support::place::{self, Device};
use support::socket::{self, IP, IPV6, SOCKET, UDP, set, set_int};
use support::twin::{exactly, identical};
use support::{Outcome, reader};
use waiting::{Fallible, LOCALHOST, Random, SIZES, UDP_CORK, UDP_SEGMENT, local, neighbour};

const SO_REUSEADDR: i32 = 2;
const SO_DONTROUTE: i32 = 5;
const SO_BROADCAST: i32 = 6;
const SO_PRIORITY: i32 = 12;
const SO_SNDBUF: i32 = 7;
const SO_MARK: i32 = 36;
const SO_TXTIME: i32 = 61;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_OPTIONS: i32 = 4;
const IP_MULTICAST_IF: i32 = 32;
const IP_MULTICAST_TTL: i32 = 33;
const IP_MTU_DISCOVER: i32 = 10;
const IP_RECVERR: i32 = 11;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_MULTICAST_IF: i32 = 17;
const IPV6_MULTICAST_HOPS: i32 = 18;
const IPV6_MTU_DISCOVER: i32 = 23;
const IPV6_MTU: i32 = 24;
const IPV6_HOPLIMIT: i32 = 52;
const IPV6_HOPOPTS: i32 = 54;
const IPV6_RTHDRDSTOPTS: i32 = 55;
const IPV6_RTHDR: i32 = 57;
const IPV6_DSTOPTS: i32 = 59;
const IPV6_DONTFRAG: i32 = 62;
const IPV6_TCLASS: i32 = 67;
const IPV6_AUTOFLOWLABEL: i32 = 70;
const FAR6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);

/// A neighbour behind a cable, with the socket that it hears with, and what passes the cable.
struct Wire {
    family: Family,
    far: std::net::UdpSocket,
    to: SocketAddr,
    capture: Capture,
    index: u32,
}

impl Wire {
    fn new(family: Family) -> Fallible<Wire> {
        let far = neighbour(1, &["addr add fd00:1::2/64 dev w1 nodad"])?;
        waiting::ip("addr add fd00:1::1/64 dev v1 nodad")?;
        let (far, to) = match family {
            Family::Ipv6 => hears_ipv6(&far)?,
            Family::Ipv4 | Family::Dual => {
                let to = local(&far)?;
                (far, to)
            }
        };
        let device = Device {
            name: "v1",
            index: place::index("v1")?,
            address: Ipv4Addr::new(10, 1, 1, 1),
            address6: std::net::Ipv6Addr::UNSPECIFIED,
            link_local: std::net::Ipv6Addr::UNSPECIFIED,
        };
        // The neighbour's hardware address is asked for now.
        send(&family.udp()?, to, b"first", &[], 0)?;
        socket::wait_for(&far, PollFlags::IN)?;
        socket::receive(&far)?;
        Ok(Wire {
            family,
            far,
            to,
            capture: Capture::on(&device)?,
            index: device.index,
        })
    }

    /// The packets since the last call, without what the kernel numbers them by.
    fn packets(&self) -> Fallible<Vec<Vec<u8>>> {
        let mut packets = self.capture.packets()?;
        for packet in &mut packets {
            match packet[12..14] {
                [8, 0] => {
                    packet[18..20].fill(0);
                    packet[24..26].fill(0);
                }
                _ => number_nothing(packet),
            }
        }
        Ok(packets)
    }

    /// Uncorks a socket, and then its restored twin: both times the same must pass.
    fn compare(&self, make: impl Fn() -> Fallible<OwnedFd>) -> Outcome {
        let original = make()?;
        uncork(&original, self.to)?;
        let wanted = self.packets()?;
        assert!(!wanted.is_empty(), "nothing left");
        drop(original);
        let restored = identical(make()?);
        assert_eq!(self.packets()?, Vec::<Vec<u8>>::new(), "left too early");
        uncork(&restored, self.to)?;
        let packets = self.packets()?;
        assert!(packets == wanted, "{packets:x?}\ninstead of\n{wanted:x?}");
        Ok(())
    }

    /// The neighbour has heard this twice, and nothing else.
    fn heard_twice(&self, data: &[u8]) -> Outcome {
        for _ in 0..2 {
            socket::wait_for(&self.far, PollFlags::IN)?;
            let message = message::receive(&self.far, 0)?.ok_or("nothing came")?;
            assert!(message.data == data, "{} bytes", message.data.len());
        }
        assert_eq!(message::receive(&self.far, 0)?, None);
        Ok(())
    }
}

/// Takes the identification out of a fragment of IPv6.
fn number_nothing(packet: &mut [u8]) {
    const FRAGMENT: u8 = 44;
    let (mut kind, mut at) = (packet[20], 54);
    while matches!(kind, 0 | 43 | 60) {
        (kind, at) = (packet[at], at + (usize::from(packet[at + 1]) + 1) * 8);
    }
    if kind == FRAGMENT {
        packet[at + 4..at + 8].fill(0);
    }
}

/// A socket of IPv6 in the namespace of another one.
fn hears_ipv6(there: &std::net::UdpSocket) -> Fallible<(std::net::UdpSocket, SocketAddr)> {
    let namespace = sockcr_sys::netns::of_socket(there.as_fd())?;
    let thread = std::thread::spawn(move || -> Fallible<std::net::UdpSocket> {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind)?;
        Ok(std::net::UdpSocket::bind((FAR6, 0))?)
    });
    let socket = thread.join().unwrap()?;
    let to = local(&socket)?;
    Ok((socket, to))
}

/// An empty piece that is the last one, whichever way it was corked.
fn uncork(socket: &OwnedFd, to: SocketAddr) -> Outcome {
    set_int(socket, UDP, UDP_CORK, 0)?;
    let corked = reader()?.cork(std::os::fd::AsFd::as_fd(socket))?;
    match corked {
        Some(_) => Ok(send(socket, to, b"", &[], 0)?),
        None => Ok(()),
    }
}

fn word(level: i32, kind: i32, value: i32) -> Control {
    (level, kind, value.to_ne_bytes().to_vec())
}

/// A socket of always the same port: a child of another test may hold the last one for a moment.
fn bound(family: Family) -> Fallible<OwnedFd> {
    let socket = family.udp()?;
    set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
    if family != Family::Ipv4 {
        // One that is made of a number of the socket's would differ.
        set_int(&socket, IPV6, IPV6_AUTOFLOWLABEL, 0)?;
    }
    socket::bind(&socket, (family.any(), 4000))?;
    Ok(socket)
}

fn corked(
    family: Family,
    to: SocketAddr,
    options: &[(i32, i32, i32)],
    pieces: &[&[u8]],
    controls: &[Control],
) -> Fallible<OwnedFd> {
    let socket = bound(family)?;
    set_int(&socket, SOCKET, 32, 1 << 20)?;
    for (level, name, value) in options {
        set_int(&socket, *level, *name, *value)?;
    }
    for piece in pieces {
        send(&socket, to, piece, controls, libc::MSG_MORE)?;
    }
    Ok(socket)
}

fn every_length(family: Family) -> Outcome {
    privileged(|| {
        let wire = Wire::new(family)?;
        let mut random = Random(7);
        let longest = [65_526, 65_527];
        let longest = longest.iter().filter(|_| family == Family::Ipv6);
        for size in SIZES.iter().chain(longest).copied() {
            let whole = random.bytes(size);
            let (one, two) = whole.split_at(random.next() as usize % (size + 1));
            wire.compare(|| corked(family, wire.to, &[], &[&whole], &[]))?;
            wire.heard_twice(&whole)?;
            wire.compare(|| corked(family, wire.to, &[(UDP, UDP_CORK, 1)], &[one, two], &[]))?;
            wire.heard_twice(&whole)?;
        }
        Ok(())
    })
}

#[test]
fn every_length_leaves_as_it_would_have() -> Outcome {
    FAMILIES.into_iter().try_for_each(every_length)
}

fn fixed_by_ipv4(family: Family) -> Outcome {
    privileged(|| {
        let wire = Wire::new(family)?;
        let options = |bytes: &[u8]| (IP, 7, bytes.to_vec());
        let route = [131, 7, 4, 10, 1, 1, 2, 0];
        let record = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let stamp = [68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        let cases: [Vec<Control>; 8] = [
            vec![word(IP, IP_TOS, 0xb8)],
            vec![word(IP, IP_TTL, 3)],
            vec![word(IP, IP_TOS, 0), word(IP, IP_TTL, 255)],
            vec![word(SOCKET, SO_MARK, 7), word(SOCKET, SO_PRIORITY, 5)],
            vec![options(&record)],
            vec![options(&route)],
            vec![options(&[1, 1, 1, 1]), word(IP, IP_TOS, 0x10)],
            vec![options(&stamp[..0])],
        ];
        for controls in cases {
            for own in [&[][..], &[1, 1, 1, 0]] {
                wire.compare(|| {
                    let before = [(IP, IP_TOS, 0x20), (IP, IP_TTL, 40), (SOCKET, SO_MARK, 9)];
                    let socket = bound(family)?;
                    for (level, name, value) in before {
                        set_int(&socket, level, name, value)?;
                    }
                    set(&socket, IP, IP_OPTIONS, own).map_err(std::io::Error::from_raw_os_error)?;
                    send(&socket, wire.to, b"held back", &controls, libc::MSG_MORE)?;
                    for (level, name, _) in before {
                        set_int(&socket, level, name, 0x44)?;
                    }
                    set(&socket, IP, IP_OPTIONS, &[]).map_err(std::io::Error::from_raw_os_error)?;
                    Ok(socket)
                })?;
            }
        }
        Ok(())
    })
}

fn fixed_by_ipv6() -> Outcome {
    privileged(|| {
        let wire = Wire::new(Family::Ipv6)?;
        let header = |kind: i32, bytes: &[u8]| (IPV6, kind, bytes.to_vec());
        // Padding of six bytes; a segment routing header whose one segment is the destination.
        let padding = [0, 0, 1, 4, 0, 0, 0, 0];
        let long = [&[0, 1, 1, 12][..], &[0; 12]].concat();
        let routing = [&[0, 2, 4, 0, 0, 0, 0, 0][..], &FAR6.octets()].concat();
        let cases: [Vec<Control>; 8] = [
            vec![],
            vec![word(IPV6, IPV6_TCLASS, 0xb8)],
            vec![word(IPV6, IPV6_HOPLIMIT, 3)],
            vec![word(IPV6, IPV6_TCLASS, 0), word(IPV6, IPV6_HOPLIMIT, 255)],
            vec![word(SOCKET, SO_MARK, 7), word(SOCKET, SO_PRIORITY, 5)],
            vec![word(IPV6, IPV6_DONTFRAG, 1)],
            vec![header(IPV6_HOPOPTS, &padding)],
            vec![header(IPV6_DSTOPTS, &long), word(IPV6, IPV6_TCLASS, 0x10)],
        ];
        // A control message takes no such routing header.
        let all = [
            header(IPV6_HOPOPTS, &padding),
            header(IPV6_RTHDRDSTOPTS, &padding),
            header(IPV6_RTHDR, &routing),
            header(IPV6_DSTOPTS, &long),
        ];
        let none = all
            .clone()
            .map(|(level, name, _)| (level, name, Vec::new()));
        let cases = cases.into_iter().flat_map(|controls| {
            let later = [&all[..0], &all[..1]].map(<[Control]>::to_vec);
            later.map(|later| (Vec::new(), controls.clone(), later))
        });
        let before = [none.to_vec(), vec![]].map(|later| (all.to_vec(), vec![], later));
        for (before, controls, later) in cases.chain(before) {
            wire.compare(|| fixed(&wire, &before, &controls, &later))?;
        }
        Ok(())
    })
}

/// Corked data of IPv6, by options that are otherwise since.
fn fixed(
    wire: &Wire,
    before: &[Control],
    controls: &[Control],
    later: &[Control],
) -> Fallible<OwnedFd> {
    let numbers = [
        (IPV6, IPV6_TCLASS, 0x20),
        (IPV6, IPV6_UNICAST_HOPS, 40),
        (SOCKET, SO_MARK, 9),
    ];
    let socket = bound(Family::Ipv6)?;
    let set = |options: &[Control]| -> std::io::Result<()> {
        options.iter().try_for_each(|(level, name, value)| {
            set(&socket, *level, *name, value).map_err(std::io::Error::from_raw_os_error)
        })
    };
    for (level, name, value) in numbers {
        set_int(&socket, level, name, value)?;
    }
    set(before)?;
    send(&socket, wire.to, b"held back", controls, libc::MSG_MORE)?;
    for (level, name, _) in numbers {
        set_int(&socket, level, name, 0x44)?;
    }
    set(later)?;
    Ok(socket)
}

#[test]
fn what_the_first_piece_fixed_stays_fixed() -> Outcome {
    fixed_by_ipv4(Family::Ipv4)?;
    fixed_by_ipv4(Family::Dual)?;
    fixed_by_ipv6()
}

fn segments(family: Family) -> Outcome {
    privileged(|| {
        let wire = Wire::new(family)?;
        let data = Random(8).bytes(30_000);
        let segments = [(UDP, UDP_SEGMENT, 1000)];
        wire.compare(|| corked(family, wire.to, &segments, &[&data], &[]))?;
        let later = (UDP, UDP_SEGMENT, 1200u16.to_ne_bytes().to_vec());
        wire.compare(|| {
            corked(
                family,
                wire.to,
                &segments,
                &[&data],
                std::slice::from_ref(&later),
            )
        })
    })
}

/// To a group or to everybody, by options that are otherwise since.
fn to_many(family: Family, to: SocketAddr) -> Outcome {
    privileged(|| {
        let wire = Wire::new(family)?;
        let request = [[0; 4], [0; 4], wire.index.to_ne_bytes()].concat();
        let index = wire.index.to_ne_bytes();
        let original = || -> Fallible<OwnedFd> {
            let socket = bound(family)?;
            let fixed = match to.is_ipv6() {
                true => {
                    set(&socket, IPV6, IPV6_MULTICAST_IF, &index)
                        .map_err(std::io::Error::from_raw_os_error)?;
                    (IPV6, IPV6_MULTICAST_HOPS)
                }
                false => {
                    set(&socket, IP, IP_MULTICAST_IF, &request)
                        .map_err(std::io::Error::from_raw_os_error)?;
                    (IP, IP_MULTICAST_TTL)
                }
            };
            set_int(&socket, fixed.0, fixed.1, 9)?;
            set_int(&socket, SOCKET, SO_BROADCAST, 1)?;
            send(&socket, to, b"to many", &[], libc::MSG_MORE)?;
            set_int(&socket, SOCKET, SO_BROADCAST, 0)?;
            set_int(&socket, fixed.0, fixed.1, 2)?;
            Ok(socket)
        };
        let one = original()?;
        uncork(&one, to)?;
        let wanted = wire.packets()?;
        drop(one);
        let restored = identical(original()?);
        uncork(&restored, to)?;
        assert_eq!(wire.packets()?, wanted);
        assert_eq!(wanted.len(), 1);
        Ok(())
    })
}

#[test]
fn segments_groups_and_everybody() -> Outcome {
    let group = SocketAddr::new(Ipv4Addr::new(239, 7, 7, 7).into(), 9);
    let everybody = SocketAddr::new(Ipv4Addr::new(10, 1, 1, 255).into(), 9);
    for family in FAMILIES {
        segments(family)?;
        if family != Family::Ipv6 {
            to_many(family, group)?;
            to_many(family, everybody)?;
        }
    }
    for group in ["[ff02::77]:9", "[ff05::77]:9"] {
        to_many(Family::Ipv6, group.parse()?)?;
    }
    Ok(())
}

#[test]
fn by_a_gateway_or_to_neighbours_only() -> Outcome {
    privileged(|| {
        let wire = Wire::new(Family::Ipv4)?;
        waiting::ip("route add 10.50.0.0/16 via 10.1.1.2 dev v1")?;
        let far = SocketAddr::new(Ipv4Addr::new(10, 50, 0, 9).into(), 9);
        let dont_route = [(SOCKET, SO_DONTROUTE, 1)];
        for (to, before, after) in [
            (far, &[][..], &dont_route[..]),
            (wire.to, &dont_route, &[]),
            (wire.to, &[], &[]),
        ] {
            wire.compare(|| {
                let socket = corked(wire.family, to, before, &[b"on its way"], &[])?;
                for (_, name, value) in after {
                    set_int(&socket, SOCKET, *name, *value)?;
                }
                let checkpoint = Checkpoint::dump(&socket)?;
                let cork = checkpoint.cork.as_ref().ok_or("nothing corked")?;
                assert_eq!((cork.gateway, cork.destination), (to == far, to));
                assert_eq!(checkpoint.interfaces.name(cork.device), Some("v1"));
                Ok(socket)
            })?;
        }
        let socket = corked(wire.family, far, &[], &[b"no way"], &[])?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        waiting::ip("route del 10.50.0.0/16")?;
        let refused = checkpoint.restore(&exactly()).unwrap_err().to_string();
        assert!(refused.contains("corked data"), "{refused}");
        Ok(())
    })
}

/// The MTU of a path that is remembered for a neighbour is no gateway.
#[test]
fn a_remembered_path_is_no_gateway() -> Outcome {
    privileged(|| {
        let wire = Wire::new(Family::Ipv4)?;
        waiting::ip("route add 10.1.1.2/32 dev v1 mtu 1300")?;
        wire.compare(|| {
            let socket = corked(
                wire.family,
                wire.to,
                &[(IP, IP_MTU_DISCOVER, 0)],
                &[&[1; 4000]],
                &[],
            )?;
            set_int(&socket, IP, IP_MTU_DISCOVER, 2)?;
            set_int(&socket, IP, IP_MTU_DISCOVER, 0)?;
            assert!(
                !Checkpoint::dump(&socket)?
                    .cork
                    .ok_or("nothing corked")?
                    .gateway
            );
            Ok(socket)
        })
    })
}

/// Its first piece fixes what it is cut into, too.
#[test]
fn cut_as_it_was() -> Outcome {
    for family in FAMILIES {
        privileged(|| {
            let wire = Wire::new(family)?;
            waiting::ip("route add 10.1.1.2/32 dev v1 mtu 1300")?;
            waiting::ip("route add fd00:1::2/128 dev v1 mtu 1300")?;
            let ipv6 = family == Family::Ipv6;
            let mode = match ipv6 {
                true => (IPV6, IPV6_MTU_DISCOVER),
                false => (IP, IP_MTU_DISCOVER),
            };
            let mut cases = vec![(mode, 1, 5), (mode, 5, 1), (mode, 0, 2), (mode, 0, 5)];
            if ipv6 {
                let most = (IPV6, IPV6_MTU);
                cases.extend([(most, 1280, 0), (most, 0, 1280), (most, 1290, 1281)]);
            }
            for ((level, name), before, after) in cases {
                println!("{family:?} option {name}: {before}, then {after}");
                wire.compare(|| {
                    let options = [(level, name, before)];
                    let socket = corked(family, wire.to, &options, &[&[1; 4000], &[2; 999]], &[])?;
                    set_int(&socket, level, name, after)?;
                    if after == 2 {
                        set_int(&socket, level, name, 1)?;
                    }
                    Ok(socket)
                })?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_cork_goes_on() -> Outcome {
    privileged(|| {
        let receiver = socket::bound((LOCALHOST, 9))?;
        let to = SocketAddr::new(LOCALHOST.into(), 9);
        let socket = bound(Family::Ipv4)?;
        socket::connect(&socket, (LOCALHOST, 9))?;
        set_int(&socket, UDP, UDP_CORK, 1)?;
        send(&socket, to, b"one ", &[], 0)?;
        let restored = identical(socket);
        send(&restored, to, b"two ", &[], 0)?;
        let restored = identical(restored);
        send(&restored, to, b"three", &[], 0)?;
        assert_eq!(socket::receive_now(&receiver)?, Vec::<Vec<u8>>::new());
        set_int(&restored, UDP, UDP_CORK, 0)?;
        assert_eq!(socket::receive(&receiver)?, b"one two three");
        Ok(())
    })
}

#[test]
fn a_small_buffer_a_deadline_and_neighbours_only() -> Outcome {
    privileged(|| {
        let to = SocketAddr::new(LOCALHOST.into(), 9);
        let receiver = socket::bound((LOCALHOST, 9))?;
        for (options, controls, flags) in [
            (vec![(SOCKET, SO_SNDBUF, 0)], vec![], 0),
            (vec![], vec![], libc::MSG_DONTROUTE),
        ] {
            let socket = bound(Family::Ipv4)?;
            send(&socket, to, &[5; 50_000], &controls, libc::MSG_MORE | flags)?;
            for (level, name, value) in options {
                set_int(&socket, level, name, value)?;
            }
            let restored = identical(socket);
            send(&restored, to, b"", &[], 0)?;
            assert_eq!(socket::receive(&receiver)?, [5; 50_000]);
        }
        let socket = bound(Family::Ipv4)?;
        let clock = [1i32.to_ne_bytes(), [0; 4]].concat();
        set(&socket, SOCKET, SO_TXTIME, &clock).map_err(std::io::Error::from_raw_os_error)?;
        let when = (SOCKET, SO_TXTIME, 5_000_000_000u64.to_ne_bytes().to_vec());
        send(&socket, to, b"later", &[when], libc::MSG_MORE)?;
        let corked = Checkpoint::dump(&socket)?.cork.ok_or("nothing corked")?;
        assert_eq!(corked.transmit_time, 5_000_000_000);
        identical(socket);
        Ok(())
    })
}

#[test]
fn corked_and_unbound_or_with_an_error() -> Outcome {
    privileged(|| {
        let to = SocketAddr::new(LOCALHOST.into(), 9);
        let socket = socket::udp()?;
        send(&socket, to, b"unbound", &[], libc::MSG_MORE)?;
        rustix::net::connect_unspec(&socket)?;
        identical(socket);
        let socket = socket::udp()?;
        set_int(&socket, IP, IP_RECVERR, 1)?;
        socket::connect(&socket, (LOCALHOST, 9))?;
        send(&socket, to, b"first", &[], 0)?;
        socket::wait_for(&socket, PollFlags::ERR)?;
        assert_eq!(socket::get_int(&socket, SOCKET, 4)?, libc::ECONNREFUSED);
        send(&socket, to, b"corked", &[], libc::MSG_MORE)?;
        let restored = identical(socket);
        let checkpoint = Checkpoint::dump(&restored)?;
        assert_eq!(checkpoint.errors.queue.len(), 1);
        assert_eq!(
            checkpoint.cork.map(|corked| corked.payload),
            Some(b"corked".to_vec())
        );
        Ok(())
    })
}

#[test]
fn a_pending_error_beside_a_cork_stays_or_is_named() -> Outcome {
    privileged(|| {
        let to = SocketAddr::new(LOCALHOST.into(), 9);
        for elsewhere in [false, true] {
            let socket = bound(Family::Ipv4)?;
            send(&socket, to, b"corked", &[], libc::MSG_MORE)?;
            let mut checkpoint = Checkpoint::dump(&socket)?;
            checkpoint.errors.pending = libc::ECONNREFUSED;
            if elsewhere {
                checkpoint.edit("local", "127.0.0.1:4000")?;
                checkpoint.edit("peer", "127.0.0.1:77")?;
            }
            drop(socket);
            match checkpoint.restore(&exactly()) {
                Ok(restored) => {
                    assert!(!elsewhere);
                    let error = socket::get_int(&restored.fd, SOCKET, 4)?;
                    assert_eq!(error, libc::ECONNREFUSED);
                }
                Err(refused) => {
                    assert!(elsewhere, "{refused}");
                    assert!(refused.to_string().contains("pending error"), "{refused}");
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_cork_that_may_not_be_cut_and_an_error() -> Outcome {
    privileged(|| {
        let wire = Wire::new(Family::Ipv4)?;
        let socket = socket::udp()?;
        socket::connect(&socket, (wire.to.ip(), wire.to.port()))?;
        send(&socket, wire.to, &[3; 8000], &[], libc::MSG_MORE)?;
        set_int(&socket, IP, IP_MTU_DISCOVER, 2)?;
        let mut checkpoint = Checkpoint::dump(&socket)?;
        checkpoint.errors.pending = libc::ECONNREFUSED;
        drop(socket);
        let restored = checkpoint.restore(&exactly())?.fd;
        let error = socket::get_int(&restored, SOCKET, 4)?;
        assert_eq!(error, libc::ECONNREFUSED);
        set_int(&restored, IP, IP_MTU_DISCOVER, 0)?;
        send(&restored, wire.to, b"", &[], 0)?;
        socket::wait_for(&wire.far, PollFlags::IN)?;
        let message = message::receive(&wire.far, 0)?.ok_or("nothing came")?;
        assert!(message.data == [3; 8000]);
        Ok(())
    })
}

#[test]
fn a_cork_for_an_address_that_moves() -> Outcome {
    privileged(|| {
        let there = Ipv4Addr::new(127, 0, 0, 3);
        let receiver = socket::bound((there, 9))?;
        let socket = bound(Family::Ipv4)?;
        send(
            &socket,
            SocketAddr::new(LOCALHOST.into(), 9),
            b"moved",
            &[],
            libc::MSG_MORE,
        )?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        let options = RestoreOptions {
            map: vec![Mapping::Network(LOCALHOST.into(), there.into(), 32)],
            ..RestoreOptions::default()
        };
        let restored = checkpoint.restore(&options)?.fd;
        send(&restored, SocketAddr::new(there.into(), 9), b"", &[], 0)?;
        assert_eq!(socket::receive(&receiver)?, b"moved");
        Ok(())
    })
}
