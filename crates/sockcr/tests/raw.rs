//! Raw, ping and UDP-Lite sockets: their addresses, and what they do once restored.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::event::PollFlags;
use rustix::net::SendFlags;

use sockcr::protocol::{self, Protocol};
use sockcr::{Checkpoint, Note, RestoreOptions, json};

use support::place::{self, isolated};
use support::socket::{
    self, ICMPV6, IP, IPV6, Message, RAW, SOCKET, UDP, bind, connect, fresh, set_int,
};
use support::{Outcome, reader};

const IP_HDRINCL: i32 = 3;
const IP_ROUTER_ALERT: i32 = 5;
const ICMP_FILTER: i32 = 1;
const IPV6_CHECKSUM: i32 = 7;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_PKTINFO: i32 = 8;
const IP_ADD_MEMBERSHIP: i32 = 35;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_ADD_MEMBERSHIP: i32 = 20;
const IPV6_ROUTER_ALERT: i32 = 22;
const IPV6_RECVPKTINFO: i32 = 49;
const IPV6_TCLASS: i32 = 67;
const SO_REUSEADDR: i32 = 2;
const SO_REUSEPORT: i32 = 15;
const SO_RCVBUFFORCE: i32 = 33;
const SO_TIMESTAMPNS: i32 = 35;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const SO_RCVMARK: i32 = 75;
const UDPLITE_SEND_CSCOV: i32 = 10;
const UDPLITE_RECV_CSCOV: i32 = 11;

fn kind(family: &str, name: &str) -> &'static Protocol {
    let socket_type = if name.starts_with("raw") {
        "raw"
    } else {
        "dgram"
    };
    protocol::named(family, socket_type, name).unwrap()
}

/// By way of an image, read back and compared.
fn restored(socket: &impl AsFd) -> Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
    let image = Checkpoint::dump(socket)?.to_bytes()?;
    let options = RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    };
    Ok(Checkpoint::from_bytes(&image)?.restore(&options)?.fd)
}

/// How a socket comes to its address; the port counts where there is one.
const PLACES: [&str; 9] = [
    "none",
    "bound",
    "bound to an address",
    "bound to any port there",
    "any port",
    "connected",
    "connected to port 0",
    "bound and connected",
    "an address, no port",
];

fn put(socket: &OwnedFd, protocol: &Protocol, place: &str) {
    let here = socket::loopback(protocol);
    let any = protocol.any();
    let other = socket::loopback(protocol);
    let leave = || rustix::net::connect_unspec(socket).unwrap();
    match place {
        "bound" => bind(socket, (any, 4711)).unwrap(),
        "bound to an address" => bind(socket, (here, 4711)).unwrap(),
        "bound to any port there" => bind(socket, (here, 0)).unwrap(),
        "any port" => {
            // Refused, but not before it has one (`inet_dgram_connect`).
            let unix = rustix::net::SocketAddrUnix::new("/an address of another family").unwrap();
            rustix::net::connect(socket, &unix).unwrap_err();
        }
        "connected" => connect(socket, (other, 9)).unwrap(),
        "connected to port 0" => connect(socket, (other, 0)).unwrap(),
        "bound and connected" => {
            bind(socket, (here, 4711)).unwrap();
            connect(socket, (other, 9)).unwrap();
        }
        "an address, no port" if !protocol.is_raw() => {
            bind(socket, (here, 0)).unwrap();
            leave();
        }
        _ => {}
    }
}

#[test]
fn every_way_to_an_address_comes_back() -> Outcome {
    isolated(|| {
        for protocol in protocol::ALL {
            for place in PLACES {
                let told = format!("{protocol} {place}");
                let socket = fresh(protocol)?;
                put(&socket, protocol, place);
                let before = (socket::local(&socket)?, socket::peer(&socket));
                let checkpoint = Checkpoint::dump(&socket)?;
                drop(socket);
                let image = checkpoint.clone().canonical().to_bytes()?;
                let options = RestoreOptions {
                    verify: reader().is_ok(),
                    ..RestoreOptions::default()
                };
                let again = Checkpoint::from_bytes(&image)?;
                let restored = again
                    .restore(&options)
                    .map_err(|e| format!("{told}: {e}"))?;
                let after = (socket::local(&restored.fd)?, socket::peer(&restored.fd));
                assert_eq!(before, after, "{told}");
                let back = Checkpoint::dump(&restored.fd)?.canonical();
                assert_eq!(back.to_bytes()?, image, "{told}");
            }
        }
        Ok(())
    })
}

/// What the report says of alerts of IPv6: lost, or assumed.
fn told_of_alerts(socket: &OwnedFd) -> Result<[Option<String>; 2], sockcr::Error> {
    let report = Checkpoint::dump(socket)?.report;
    let told = |notes: Vec<Note>| {
        let mut notes = notes.into_iter();
        let note = notes.find(|note| note.what.ends_with("IPV6_ROUTER_ALERT"));
        note.map(|note| note.reason)
    };
    Ok([told(report.not_carried), told(report.assumed)])
}

/// A socket of IPPROTO_RAW that was given these numbers, connected at the end or not.
fn alerted(numbers: &[i32], connected: bool) -> io::Result<OwnedFd> {
    let socket = fresh(kind("inet6", "raw6:255"))?;
    for number in numbers {
        set_int(&socket, IPV6, IPV6_ROUTER_ALERT, *number)?;
    }
    if connected {
        connect(&socket, (std::net::Ipv6Addr::LOCALHOST, 0))?;
    }
    Ok(socket)
}

#[test]
fn alerts_of_ipv6_are_named() -> Outcome {
    isolated(|| {
        if let Err(why) = reader() {
            return support::skip(&why);
        }
        for (numbers, why) in [
            (&[][..], None),
            (&[0], Some("alert 0")),
            (&[7], Some("does not tell which")),
            (&[0, -1], Some("no alerts any more")),
            (&[7, -1, 0], Some("alert 0")),
        ] {
            for connected in [false, true] {
                let [lost, assumed] = told_of_alerts(&alerted(numbers, connected)?)?;
                assert_eq!(assumed, None);
                assert_eq!(lost.is_some(), why.is_some(), "{numbers:?}");
                assert!(lost.zip(why).is_none_or(|(lost, why)| lost.contains(why)));
            }
        }
        Ok(())
    })
}

#[test]
fn a_disconnected_raw_socket_is_told() -> Outcome {
    isolated(|| {
        for (family, name) in [("inet", "raw:89"), ("inet6", "raw6:89")] {
            let protocol = kind(family, name);
            let socket = fresh(protocol)?;
            connect(&socket, (socket::loopback(protocol), 9))?;
            rustix::net::connect_unspec(&socket)?;
            let lost = Checkpoint::dump(&socket)?.report.not_carried;
            assert!(
                lost.iter().any(|note| note.what == "disconnected"),
                "{lost:?}"
            );
        }
        Ok(())
    })
}

/// An echo request of ICMP (8) or ICMPv6 (128), with an identifier that a ping socket changes.
fn echo(kind: u8, sequence: u8) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, sequence];
    message.extend(b"sockcr");
    message
}

/// Pings the loopback address by a socket of its own.
fn ping_once(family: &str, sequence: u8) -> Outcome {
    let (name, kind_of) = match family {
        "inet" => ("ping", 8),
        _ => ("ping6", 128),
    };
    let protocol = kind(family, name);
    let socket = fresh(protocol)?;
    connect(&socket, (socket::loopback(protocol), 0))?;
    rustix::net::send(&socket, &echo(kind_of, sequence), SendFlags::empty())?;
    assert_eq!(socket::receive(&socket)?[7], sequence);
    Ok(())
}

/// The types of the messages that wait in a raw socket of ICMP.
fn types(socket: &OwnedFd, at: usize) -> io::Result<Vec<u8>> {
    let all = socket::receive_now(socket)?;
    Ok(all.iter().map(|message| message[at]).collect())
}

#[test]
fn a_restored_filter_stops_what_it_stopped() -> Outcome {
    isolated(|| {
        for (family, name, level, size, kinds) in [
            ("inet", "raw:1", RAW, 4, [8, 0]),
            ("inet6", "raw6:58", ICMPV6, 32, [128, 129]),
        ] {
            let at = if family == "inet" { 20 } else { 0 };
            let all = fresh(kind(family, name))?;
            for stopped in 0..2 {
                let socket = fresh(kind(family, name))?;
                let mut filter = vec![0; size];
                filter[usize::from(kinds[stopped]) / 8] = 1 << (kinds[stopped] % 8);
                socket::set(&socket, level, ICMP_FILTER, &filter).unwrap();
                let again = restored(&socket)?;
                drop(socket);
                ping_once(family, stopped as u8)?;
                assert_eq!(types(&again, at)?, [kinds[1 - stopped]], "{name}");
                assert_eq!(types(&all, at)?, kinds, "{name}");
            }
        }
        Ok(())
    })
}

#[test]
fn a_restored_ping_socket_gets_its_replies() -> Outcome {
    isolated(|| {
        for (family, name, kinds) in [("inet", "ping", [8, 0]), ("inet6", "ping6", [128, 129])] {
            let protocol = kind(family, name);
            let here = socket::loopback(protocol);
            for place in ["bound", "any port", "connected"] {
                let socket = fresh(protocol)?;
                put(&socket, protocol, place);
                let identifier = socket::local(&socket)?.port();
                let again = restored_alone(socket)?;
                let to = SocketAddr::new(here, 0);
                rustix::net::sendto(&again, &echo(kinds[0], 7), SendFlags::empty(), &to)?;
                let reply = socket::receive(&again)?;
                assert_eq!(reply[0], kinds[1], "{name} {place}");
                assert_eq!(reply[4..6], identifier.to_be_bytes(), "{name} {place}");
            }
        }
        Ok(())
    })
}

/// Restored when the old one is gone.
fn restored_alone(socket: OwnedFd) -> Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
    let checkpoint = Checkpoint::dump(&socket)?;
    drop(socket);
    let options = RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    };
    Ok(checkpoint.restore(&options)?.fd)
}

/// A packet of protocol 253 whose header is the sender's.
fn own_header(ttl: u8) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0x12, 0x34, 0, 0, ttl, 253, 0, 0];
    header.extend([127, 0, 0, 1, 127, 0, 0, 1]);
    header.extend(b"own");
    header
}

#[test]
fn a_restored_socket_sends_its_own_headers() -> Outcome {
    isolated(|| {
        let hears = fresh(kind("inet", "raw:253"))?;
        for name in ["raw:253", "raw:255"] {
            let socket = fresh(kind("inet", name))?;
            set_int(&socket, IP, IP_HDRINCL, 1)?;
            let again = restored(&socket)?;
            let to = SocketAddr::from(([127, 0, 0, 1], 0));
            rustix::net::sendto(&again, &own_header(77), SendFlags::empty(), &to)?;
            let packet = socket::receive(&hears)?;
            assert_eq!(
                (packet[4], packet[5], packet[8]),
                (0x12, 0x34, 77),
                "{name}"
            );
        }
        // Where it was taken off, IPPROTO_RAW has none by itself.
        let socket = fresh(kind("inet", "raw:255"))?;
        set_int(&socket, IP, IP_HDRINCL, 0)?;
        let again = restored(&socket)?;
        assert_eq!(socket::get_int(&again, IP, IP_HDRINCL)?, 0);
        Ok(())
    })
}

#[test]
fn a_restored_socket_sums_as_it_did() -> Outcome {
    isolated(|| {
        let protocol = kind("inet6", "raw6:253");
        let here = socket::loopback(protocol);
        let hears = fresh(protocol)?;
        for (place, zero) in [(2, false), (-1, true), (0, false)] {
            let socket = fresh(protocol)?;
            set_int(&socket, RAW, IPV6_CHECKSUM, place)?;
            let again = restored(&socket)?;
            drop(socket);
            let to = SocketAddr::new(here, 0);
            rustix::net::sendto(&again, &[0; 8], SendFlags::empty(), &to)?;
            let packet = socket::receive(&hears)?;
            assert_eq!(packet == [0; 8], zero, "{place}: {packet:?}");
            let at = usize::try_from(place).unwrap_or(0);
            assert!(zero || packet[at..at + 2] != [0, 0], "{place}: {packet:?}");
        }
        // A checksum of ICMPv6 that is elsewhere, or nowhere.
        let socket = fresh(kind("inet6", "raw6:58"))?;
        set_int(&socket, RAW, IPV6_CHECKSUM, -1)?;
        assert_eq!(
            socket::get_int(&restored(&socket)?, RAW, IPV6_CHECKSUM)?,
            -1
        );
        Ok(())
    })
}

#[test]
fn coverage_counts_again() -> Outcome {
    isolated(|| {
        for (family, name) in [("inet", "udplite"), ("inet6", "udplite6")] {
            let protocol = kind(family, name);
            let here = socket::loopback(protocol);
            let hears = fresh(protocol)?;
            set_int(&hears, UDP, UDPLITE_RECV_CSCOV, 20)?;
            bind(&hears, (here, 4711))?;
            let hears = restored_alone(hears)?;
            for (coverage, heard) in [(8, false), (20, true), (30, true), (12, false)] {
                let sends = fresh(protocol)?;
                set_int(&sends, UDP, UDPLITE_SEND_CSCOV, coverage)?;
                let sends = restored(&sends)?;
                let to = SocketAddr::new(here, 4711);
                rustix::net::sendto(&sends, &[7; 40], SendFlags::empty(), &to)?;
                let got = socket::receive_now(&hears)?;
                assert_eq!(got.len(), usize::from(heard), "{name} {coverage}");
            }
        }
        Ok(())
    })
}

/// A packet that is to be forwarded from m0 to m1, with the option that says "look at me".
fn alerting() -> Vec<u8> {
    let mut packet = vec![0x46, 0, 0, 0, 0, 1, 0, 0, 9, 253, 0, 0];
    packet.extend([10, 88, 0, 1, 10, 77, 0, 1]);
    packet.extend([148, 4, 0, 0]);
    packet.extend(b"alert");
    packet
}

#[test]
fn a_restored_socket_is_told_of_router_alerts() -> Outcome {
    isolated(|| {
        place::devices()?;
        for (name, value) in [
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.conf.all.rp_filter", "0"),
            ("net.ipv4.conf.m1.rp_filter", "0"),
            ("net.ipv4.conf.m0.rp_filter", "0"),
        ] {
            place::sysctl(name, value)?;
        }
        for command in [
            "link set m1 address 02:00:00:00:00:01",
            "route add 10.77.0.0/16 dev m0",
            "neigh add 10.77.0.1 lladdr 02:00:00:00:00:01 dev m0",
        ] {
            let done = Command::new("ip").args(command.split(' ')).status()?;
            assert!(done.success(), "ip {command}");
        }
        let socket = fresh(kind("inet", "raw:253"))?;
        let listens = fresh(kind("inet", "raw:253"))?;
        set_int(&socket, IP, IP_ROUTER_ALERT, 1)?;
        let again = restored(&socket)?;
        drop(socket);
        let sends = fresh(kind("inet", "raw:255"))?;
        let to = SocketAddr::from(([10, 77, 0, 1], 0));
        rustix::net::sendto(&sends, &alerting(), SendFlags::empty(), &to)?;
        let packet = socket::receive(&again)?;
        assert!(packet.ends_with(b"alert"), "{packet:?}");
        assert!(socket::receive_now(&listens)?.is_empty(), "nobody asked");
        Ok(())
    })
}

/// All that waits in a socket, with its control messages.
fn read_all(socket: &OwnedFd) -> io::Result<Vec<Message>> {
    let mut all = Vec::new();
    while socket::poll_in(socket)? {
        all.push(socket::receive_message(socket)?);
    }
    Ok(all)
}

/// Has control messages tell everything.
fn tell_all(socket: &OwnedFd, protocol: &Protocol) -> io::Result<()> {
    const SO_TIMESTAMPNS: i32 = 35;
    set_int(socket, SOCKET, SO_TIMESTAMPNS, 1)?;
    let (level, names): (i32, &[i32]) = match protocol.family_name {
        // IP_PKTINFO, IP_RECVTTL, IP_RECVTOS, IP_RECVOPTS
        "inet" => (IP, &[8, 12, 13, 6]),
        // IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVTCLASS, IPV6_FLOWINFO
        _ => (IPV6, &[49, 51, 66, 11]),
    };
    names
        .iter()
        .try_for_each(|name| set_int(socket, level, *name, 1))
}

/// Sends what a socket of this kind hears.
fn feed(protocol: &Protocol, socket: &OwnedFd) -> Outcome {
    let to = SocketAddr::new(socket::loopback(protocol), 0);
    match protocol.number {
        1 | 58 if protocol.is_ping() => {
            let request = if protocol.number == 1 { 8 } else { 128 };
            for sequence in 1..4 {
                rustix::net::sendto(socket, &echo(request, sequence), SendFlags::empty(), &to)?;
                socket::wait_for(socket, PollFlags::IN)?;
            }
        }
        1 => ping_once("inet", 3)?,
        58 => {
            let sends = fresh(protocol)?;
            rustix::net::sendto(&sends, &echo(129, 3), SendFlags::empty(), &to)?;
        }
        _ => {
            let sends = fresh(protocol)?;
            for size in [0, 1, 3, 8, 100, 3000, 20_000] {
                let data: Vec<u8> = (0..size).map(|at| at as u8).collect();
                rustix::net::sendto(&sends, &data, SendFlags::empty(), &to)?;
            }
        }
    }
    Ok(())
}

#[test]
fn what_waits_comes_back() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        for (family, name) in [
            ("inet", "raw:253"),
            ("inet6", "raw6:253"),
            ("inet", "raw:89"),
            ("inet6", "raw6:89"),
            ("inet", "raw:1"),
            ("inet6", "raw6:58"),
            ("inet", "ping"),
            ("inet6", "ping6"),
        ] {
            let protocol = kind(family, name);
            for place in ["none", "bound to an address", "connected"] {
                let told = format!("{name} {place}");
                let socket = fresh(protocol)?;
                put(&socket, protocol, place);
                tell_all(&socket, protocol)?;
                feed(protocol, &socket)?;
                let checkpoint = Checkpoint::dump(&socket)?;
                let image = checkpoint.clone().canonical().to_bytes()?;
                let due = read_all(&socket)?;
                assert!(!due.is_empty(), "{told}");
                drop(socket);
                let options = RestoreOptions {
                    verify: true,
                    ..RestoreOptions::default()
                };
                let again = Checkpoint::from_bytes(&image)?;
                let restored = again
                    .restore(&options)
                    .map_err(|e| format!("{told}: {e}"))?;
                let back = Checkpoint::dump(&restored.fd)?.canonical();
                assert_eq!(back.to_bytes()?, image, "{told}");
                assert_eq!(read_all(&restored.fd)?, due, "{told}");
            }
        }
        Ok(())
    })
}

/// What is not put back, because of whom else would hear it, or the kernel itself.
/// A raw socket in which packets of these lengths wait, the headers of IPv6 not counted.
fn with_packets(name: &str, lengths: &[usize]) -> io::Result<OwnedFd> {
    let family = if name == "raw6:253" { "inet6" } else { "inet" };
    let protocol = kind(family, name);
    let [socket, sender] = [fresh(protocol)?, fresh(protocol)?];
    set_int(&socket, SOCKET, SO_RCVBUFFORCE, 4 << 20)?;
    let to = SocketAddr::new(socket::loopback(protocol), 0);
    let header = if protocol.is_ipv6() { 0 } else { 20 };
    for length in lengths {
        let data: Vec<u8> = (0..length - header).map(|at| at as u8).collect();
        rustix::net::sendto(&sender, &data, SendFlags::empty(), &to)?;
    }
    Ok(socket)
}

/// One attribute of an image does not hold them; by IPv6 they come in fragments at last, which do not
/// pass the loopback device in one piece.
#[test]
fn the_longest_packets_come_back() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let longest: Vec<usize> = (65_530..=65_535).collect();
        for (name, lengths) in [("raw:253", &longest[..]), ("raw6:253", &[65_495, 65_496])] {
            let socket = with_packets(name, lengths)?;
            let checkpoint = Checkpoint::dump(&socket)?;
            let text = json::to_json(std::slice::from_ref(&checkpoint)).to_string();
            assert_eq!(json::from_json(&text)?, std::slice::from_ref(&checkpoint));
            let due = read_all(&socket)?;
            let came: Vec<usize> = due.iter().map(|message| message.data.len()).collect();
            assert_eq!(came, lengths);
            drop(socket);
            let again = Checkpoint::from_bytes(&checkpoint.to_bytes()?)?;
            let restored = again.restore(&RestoreOptions::default())?.fd;
            assert!(read_all(&restored)? == due);
        }
        let mut longer = Checkpoint::dump(&with_packets("raw:253", &[65_535])?)?;
        longer.receive_queue[0].payload.push(0);
        Checkpoint::from_bytes(&longer.to_bytes()?).unwrap_err();
        let fragmented = Checkpoint::dump(&with_packets("raw6:253", &[65_497])?)?;
        let refused = fragmented.restore(&RestoreOptions::default()).unwrap_err();
        assert!(refused.to_string().contains("too long"), "{refused}");
        Ok(())
    })
}

#[test]
fn nobody_else_hears_what_comes_back() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let protocol = kind("inet", "raw:253");
        let socket = fresh(protocol)?;
        feed(protocol, &socket)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        let why = |checkpoint: &Checkpoint| {
            checkpoint
                .restore(&RestoreOptions::default())
                .map_or_else(|refused| refused.to_string(), |_| String::new())
        };
        assert!(why(&checkpoint).contains("7 of them: another raw socket"));
        let waiting = socket::receive_now(&socket)?.len();
        assert_eq!(waiting, 7, "and nothing came in");
        drop(socket);
        assert_eq!(why(&checkpoint), "");

        let protocol = kind("inet6", "raw6:58");
        let socket = fresh(protocol)?;
        ping_once("inet6", 3)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        assert!(why(&checkpoint).contains("1 of them: the kernel itself"));
        let lossy = RestoreOptions {
            lossy: true,
            ..RestoreOptions::default()
        };
        let restored = checkpoint.restore(&lossy)?;
        assert_eq!(types(&restored.fd, 0)?, [129], "the reply was put back");
        Ok(())
    })
}

#[test]
fn what_is_held_back_is_told() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        for (family, name) in [("inet", "raw:253"), ("inet6", "raw6:253")] {
            let protocol = kind(family, name);
            let socket = fresh(protocol)?;
            connect(&socket, (socket::loopback(protocol), 0))?;
            rustix::net::send(&socket, b"more", SendFlags::MORE)?;
            let lost = Checkpoint::dump(&socket)?.report.not_carried;
            assert!(
                lost.iter().any(|note| note.what == "corked data"),
                "{lost:?}"
            );
        }
        // UDP-Lite corks as UDP does.
        for (family, name) in [("inet", "udplite"), ("inet6", "udplite6")] {
            let protocol = kind(family, name);
            let here = socket::loopback(protocol);
            let hears = fresh(protocol)?;
            bind(&hears, (here, 4711))?;
            let socket = fresh(protocol)?;
            connect(&socket, (here, 4711))?;
            rustix::net::send(&socket, b"more and ", SendFlags::MORE)?;
            let again = restored_alone(socket)?;
            rustix::net::send(&again, b"more", SendFlags::empty())?;
            assert_eq!(socket::receive(&hears)?, b"more and more");
        }
        Ok(())
    })
}

/// A receiver that wants all covered is not the same as one that wants nothing.
#[test]
fn a_coverage_of_nothing_and_none_differ() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let protocol = kind("inet", "udplite");
        let here = socket::loopback(protocol);
        for (set, heard) in [(true, 0), (false, 1)] {
            let hears = fresh(protocol)?;
            if set {
                set_int(&hears, UDP, UDPLITE_RECV_CSCOV, 0)?;
            }
            bind(&hears, (here, 4711))?;
            let hears = restored_alone(hears)?;
            let sends = fresh(protocol)?;
            set_int(&sends, UDP, UDPLITE_SEND_CSCOV, 8)?;
            let to = SocketAddr::new(here, 4711);
            rustix::net::sendto(&sends, &[7; 40], SendFlags::empty(), &to)?;
            assert_eq!(socket::receive_now(&hears)?.len(), heard, "{set}");
        }
        Ok(())
    })
}

/// A socket of UDP-Lite that wants to know all, with room for much.
fn lite(family: &str) -> io::Result<OwnedFd> {
    let socket = fresh(lite_kind(family))?;
    set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 22)?;
    set_int(&socket, SOCKET, SO_TIMESTAMPNS, 1)?;
    set_int(&socket, SOCKET, SO_RCVMARK, 1)?;
    set_int(&socket, IP, IP_PKTINFO, 1)?;
    if family == "inet6" {
        set_int(&socket, IPV6, IPV6_RECVPKTINFO, 1)?;
    }
    Ok(socket)
}

fn lite_kind(family: &str) -> &'static Protocol {
    match family {
        "inet" => kind("inet", "udplite"),
        _ => kind("inet6", "udplite6"),
    }
}

/// What many datagrams hold: nothing, odd and even sizes, and the most.
fn payloads() -> Vec<Vec<u8>> {
    let sizes = [0, 1, 7, 8, 63, 64, 76, 77, 500, 1400, 9001, 60_000];
    let sizes = sizes.into_iter().cycle().take(20);
    sizes
        .zip(1..)
        .map(|(size, byte)| vec![byte; size])
        .collect()
}

/// Sends them with headers of their own, some with a part covered.
fn send_all(family: &str, to: SocketAddr) -> Outcome {
    for (at, payload) in (0_i32..).zip(payloads()) {
        let sends = fresh(lite_kind(family))?;
        set_int(&sends, SOCKET, SO_MARK, at)?;
        match family {
            "inet" => {
                set_int(&sends, IP, IP_TTL, 30 + at)?;
                set_int(&sends, IP, IP_TOS, 4 * at)?;
            }
            _ => {
                set_int(&sends, IPV6, IPV6_UNICAST_HOPS, 30 + at)?;
                set_int(&sends, IPV6, IPV6_TCLASS, 4 * at)?;
            }
        }
        set_int(&sends, UDP, UDPLITE_SEND_CSCOV, 8 * (at % 3))?;
        rustix::net::sendto(&sends, &payload, SendFlags::empty(), &to)?;
    }
    Ok(())
}

/// A member of the group on a device, also bound to that where `bound`.
fn in_group(family: &str, to: IpAddr, index: u32, bound: bool) -> io::Result<OwnedFd> {
    let socket = lite(family)?;
    let request = match to {
        IpAddr::V4(to) => [&to.octets()[..], &[0; 4], &index.to_ne_bytes()].concat(),
        IpAddr::V6(to) => [&to.octets()[..], &index.to_ne_bytes()].concat(),
    };
    let (level, name) = match to {
        IpAddr::V4(_) => (IP, IP_ADD_MEMBERSHIP),
        IpAddr::V6(_) => (IPV6, IPV6_ADD_MEMBERSHIP),
    };
    socket::set(&socket, level, name, &request).unwrap();
    // Of what came before it is on, nothing is told.
    set_int(&socket, IP, IP_PKTINFO, i32::from(!bound))?;
    let device = if bound { index as i32 } else { 0 };
    set_int(&socket, SOCKET, SO_BINDTOIFINDEX, device)?;
    bind(&socket, (lite_kind(family).any(), 4711))?;
    Ok(socket)
}

/// Restored, with the same in it as before.
fn same_again(
    socket: OwnedFd,
    told: &str,
) -> Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
    let before = Checkpoint::dump(&socket)?.canonical();
    let image = before.to_bytes()?;
    let again = restored_alone(socket).map_err(|e| format!("{told}: {e}"))?;
    let after = Checkpoint::dump(&again)?.canonical();
    assert_eq!(after.receive_queue.len(), 20, "{told}");
    assert!(after.receive_queue == before.receive_queue, "{told}");
    assert!(after.to_bytes()? == image, "{told}");
    Ok(again)
}

#[test]
fn the_queue_of_udp_lite_comes_back() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let ends = ["127.0.0.1:4711", "[::1]:4711"];
        let [ipv4, ipv6]: [SocketAddr; 2] = ends.map(|to| to.parse().unwrap());
        for (family, by, to) in [
            ("inet", "inet", ipv4),
            ("inet6", "inet6", ipv6),
            ("inet6", "inet", ipv4),
        ] {
            for (place, coverage) in [("any", 0), ("address", 8), ("device", 0), ("shares", 12)] {
                let told = format!("{family} by {by}, {place}");
                let other = fresh(lite_kind(family))?;
                bind(&other, (lite_kind(family).any(), 4712))?;
                let socket = lite(family)?;
                match (place, to.ip()) {
                    ("address", IpAddr::V4(here)) if family == "inet6" => {
                        bind(&socket, (here.to_ipv6_mapped(), 4711))?;
                    }
                    ("address", here) => bind(&socket, (here, 4711))?,
                    _ => {
                        let device = i32::from(place == "device");
                        set_int(&socket, SOCKET, SO_BINDTOIFINDEX, device)?;
                        set_int(&socket, SOCKET, SO_REUSEADDR, i32::from(place == "shares"))?;
                        bind(&socket, (lite_kind(family).any(), 4711))?;
                    }
                }
                send_all(by, to)?;
                set_int(&socket, UDP, UDPLITE_RECV_CSCOV, coverage)?;
                let again = same_again(socket, &told)?;
                let sends = fresh(lite_kind(by))?;
                rustix::net::sendto(&sends, b"live", SendFlags::empty(), &to)?;
                let wanted = payloads().into_iter().chain([b"live".to_vec()]);
                let got = socket::receive_now(&again)?;
                assert!(got == wanted.collect::<Vec<_>>(), "{told}");
                assert!(socket::receive_now(&other)?.is_empty(), "{told}");
            }
        }
        Ok(())
    })
}

#[test]
fn the_queue_of_udp_lite_tells_of_its_devices() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let [_, m1] = place::devices()?;
        let groups = [("inet", "239.1.1.1:4711"), ("inet6", "[ff02::4711]:4711")];
        for (family, to) in groups {
            for bound in [false, true] {
                let to: SocketAddr = to.parse()?;
                let socket = in_group(family, to.ip(), m1.index, bound)?;
                let sends = fresh(lite_kind(family))?;
                set_int(&sends, SOCKET, SO_BINDTOIFINDEX, m1.index as i32)?;
                for number in 0..20 {
                    rustix::net::sendto(&sends, &[number; 100], SendFlags::empty(), &to)?;
                }
                let device = Checkpoint::dump(&socket)?.receive_queue[0].interface;
                let told = family == "inet6" || !bound;
                assert_eq!(device, if told { m1.index } else { 0 }, "{to}");
                same_again(socket, &format!("{to}, {bound}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn what_udp_lite_would_not_get_again_is_told() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        for (place, told) in [
            (
                "connected",
                "what came from others before it was connected: 1 of them",
            ),
            ("moved", "what came to another address: 1 of them"),
            (
                "group",
                "1 waiting: others could get it that share the port",
            ),
        ] {
            let socket = lite("inet")?;
            set_int(&socket, SOCKET, SO_REUSEPORT, i32::from(place == "group"))?;
            bind(&socket, (Ipv4Addr::UNSPECIFIED, 4711))?;
            let to = SocketAddr::from(([127, 0, 0, 1], 4711));
            let sends = fresh(lite_kind("inet"))?;
            rustix::net::sendto(&sends, b"lite", SendFlags::empty(), &to)?;
            if place == "connected" {
                connect(&socket, (Ipv4Addr::LOCALHOST, 9))?;
            }
            let mut checkpoint = Checkpoint::dump(&socket)?;
            drop(socket);
            if place == "moved" {
                checkpoint.endpoint.local.set_port(4713);
            }
            let refused = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
            assert!(refused.to_string().contains(told), "{refused}");
            let lossy = RestoreOptions {
                lossy: true,
                ..RestoreOptions::default()
            };
            let restored = checkpoint.restore(&lossy)?.fd;
            assert!(Checkpoint::dump(&restored)?.receive_queue.is_empty());
        }
        Ok(())
    })
}

/// What recvmsg(2) would throw away is not in the queue.
#[test]
fn udp_lite_with_a_wrong_checksum_is_left_out() -> Outcome {
    if let Err(why) = reader() {
        return support::skip(&why);
    }
    isolated(|| {
        let socket = fresh(lite_kind("inet"))?;
        bind(&socket, (Ipv4Addr::LOCALHOST, 4711))?;
        let sends = fresh(&Protocol {
            number: 136,
            ..*kind("inet", "raw:89")
        })?;
        let to = SocketAddr::from(([127, 0, 0, 1], 0));
        // 4711 from port 0, all covered; a short one is summed up as it comes.
        let mut wrong = vec![0, 0, 0x12, 0x67, 0, 0, 1, 1];
        wrong.resize(1000, 7);
        rustix::net::sendto(&sends, &wrong, SendFlags::empty(), &to)?;
        let lite = fresh(lite_kind("inet"))?;
        set_int(&lite, UDP, UDPLITE_SEND_CSCOV, 20)?;
        let to = SocketAddr::new(to.ip(), 4711);
        rustix::net::sendto(&lite, &[9; 999], SendFlags::empty(), &to)?;
        let queue = Checkpoint::dump(&socket)?.receive_queue;
        let queue: Vec<_> = queue.into_iter().map(|one| one.payload).collect();
        assert_eq!(queue, [vec![9; 999]]);
        assert_eq!(socket::receive_now(&socket)?, queue);
        Ok(())
    })
}
