//! The receive queue travels: an application that reads the restored socket sees what it would have
//! seen on the original.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/feed.rs"]
mod feed;
#[path = "support/message.rs"]
mod message;
mod support;

use feed::{By, DESTINATION, HOP_BY_HOP, Heard, Packet6, ROUTING, packet6};
use message::Message;
use rustix::net::{RecvFlags, recv};
use sockcr::{Checkpoint, Mapping, RestoreOptions, json};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;
use support::Outcome;
use support::inject::*;
use support::place::Device;
use support::socket::{self, IPV6, SOCKET, UDP, instruction, set_int};

const SO_ERROR: i32 = 4;
const IP_RECVERR: i32 = 11;
const UDP_CORK: i32 = 1;
const UDP_SEGMENT: i32 = 103;
const IPV6_V6ONLY: i32 = 26;
const SO_PEEK_OFF: i32 = 42;
const SO_TIMESTAMPNS: i32 = 35;
const UDP_NO_CHECK6_RX: i32 = 102;

fn exactly() -> RestoreOptions {
    RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    }
}

fn drain(socket: &OwnedFd) -> std::io::Result<Vec<Message>> {
    std::iter::from_fn(|| message::receive(socket, 0).transpose()).collect()
}

fn send(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), data: &[u8]) -> std::io::Result<()> {
    let sender = socket::bound(from)?;
    message::send(&sender, at(to.0, to.1), data, &[], 0)
}

/// Sends a bit of everything to a port of this host.
fn fill(device: u32) -> std::io::Result<()> {
    let mut sizes = vec![0, 1, 0, 1471, 1472, 9000, 65_507, 0];
    sizes.extend((0..60).map(|n| n * 37 % 2000));
    for (at, size) in sizes.into_iter().enumerate() {
        let data: Vec<u8> = (0..size).map(|byte| (byte + at) as u8).collect();
        let from = Ipv4Addr::new(127, 0, 0, 1 + (at % 9) as u8);
        send((from, 2000 + at as u16), (LOCALHOST, PORT), &data)?;
    }
    let sender = socket::udp()?;
    let by = [[0; 4], [0; 4], device.to_ne_bytes()].concat();
    socket::set(&sender, support::socket::IP, 32, &by).unwrap();
    message::send(&sender, at(GROUP, PORT), b"to the group", &[], 0)?;
    set_int(&sender, UDP, UDP_SEGMENT, 100)?;
    message::send(&sender, at(LOCALHOST, PORT), &[7; 950], &[], 0)
}

/// Dumps, closes and restores a socket, and sees that image and JSON say it all.
fn through_an_image(
    original: OwnedFd,
) -> Result<OwnedFd, Box<dyn std::error::Error + Send + Sync>> {
    let checkpoint = Checkpoint::dump(&original)?;
    let again = Checkpoint::dump(&original)?;
    assert!(checkpoint == again, "a dump changes nothing");
    drop(original);
    let bytes = checkpoint.to_bytes()?;
    let text = json::to_json(std::slice::from_ref(&checkpoint)).to_string();
    assert!(json::from_json(&text)? == [checkpoint.clone()]);
    let restored = Checkpoint::from_bytes(&bytes)?.restore(&exactly())?.fd;
    let now = Checkpoint::dump(&restored)?.canonical().to_bytes()?;
    assert!(
        now == checkpoint.canonical().to_bytes()?,
        "not the same bytes"
    );
    Ok(restored)
}

#[test]
fn everything_queued_is_received_as_it_was() -> Outcome {
    privileged(|| {
        let [device, _] = strict()?;
        let socket = talkative()?;
        set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 23)?;
        join(&socket, device.index)?;
        socket::bind(&socket, (ANY, PORT))?;
        fill(device.index)?;
        for _ in 0..3 {
            recv(&socket, &mut [0u8; 8][..], RecvFlags::PEEK)?;
        }
        let checkpoint = Checkpoint::dump(&socket)?;
        assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
        let seen = drain(&socket)?;
        assert_eq!(seen.len(), checkpoint.receive_queue.len());
        drop(socket);
        let restored = Checkpoint::from_bytes(&checkpoint.to_bytes()?)?.restore(&exactly())?;
        send((LOCALHOST, 1999), (LOCALHOST, PORT), b"live")?;
        let mut again = drain(&restored.fd)?;
        assert_eq!(again.pop().unwrap().data, b"live");
        assert!(again == seen, "the application sees a difference");
        Ok(())
    })
}

const NEAR_GROUP6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x77);

/// Every way in which a datagram comes, with everything it can have.
fn every_kind() -> Vec<Heard> {
    const PADDING: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];
    let anybody = |address: [u8; 4], port| By::Anybody(address.into(), port);
    let ways = [
        By::Loopback,
        By::Group(0),
        By::Group(1),
        By::Broadcast(1),
        anybody([203, 0, 113, 9], 0),
        anybody([169, 254, 3, 4], 77),
        anybody([0, 0, 0, 0], 68),
        By::Segments,
    ];
    let headers: [&[(u8, &[u8])]; 4] = [
        &[],
        &[(HOP_BY_HOP, PADDING)],
        &[(DESTINATION, PADDING)],
        &[
            (HOP_BY_HOP, PADDING),
            (ROUTING, &[0; 8]),
            (DESTINATION, PADDING),
        ],
    ];
    let mut all = Vec::new();
    for (at, by) in ways.into_iter().enumerate() {
        for (size, headers) in [950, 0, 1, 30_000, 65_450]
            .into_iter()
            .zip(headers.iter().cycle())
        {
            let segments = matches!(by, By::Segments);
            all.push(Heard {
                by: by.clone(),
                size: if segments { size.max(200) } else { size },
                ttl: 3 + at as u8,
                tos: (size % 251) as u8,
                mark: size as i32 * 7,
                options: &[],
                ipv4: false,
                flow_label: 0x12345 + size as u32,
                headers: if segments { &[] } else { headers },
            });
        }
    }
    all
}

fn bystander6(device: &Device) -> std::io::Result<OwnedFd> {
    let socket = Family::Ipv6.udp()?;
    set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
    set_int(&socket, IPV6, IPV6_V6ONLY, 1)?;
    socket::bind(&socket, (Ipv6Addr::UNSPECIFIED, PORT))?;
    join6(&socket, GROUP6, device.index)?;
    join6(&socket, NEAR_GROUP6, device.index)?;
    Ok(socket)
}

/// From one end of the cable to the other.
fn by_cable(from: &Device, to: &Device) -> std::io::Result<()> {
    let sender = Family::Ipv6.udp()?;
    let own = SocketAddrV6::new(from.link_local, 4000, 0, from.index);
    socket::bind_to(&sender, own.into())?;
    let there = SocketAddrV6::new(to.link_local, PORT, 0, from.index);
    message::send(&sender, there.into(), b"by cable", &[], 0)
}

/// Without a checksum, which UDP_NO_CHECK6_RX lets pass.
fn without_checksum() -> std::io::Result<()> {
    let packet = packet6(&Packet6 {
        from: SocketAddrV6::new(FOREIGN6, 9, 0, 0),
        to: SocketAddrV6::new(Ipv6Addr::LOCALHOST, PORT, 0, 0),
        hops: 7,
        class: 1,
        flow_label: 9,
        headers: &[],
        summed: false,
        data: b"without a checksum",
    });
    feed::by_loopback6(&packet, Ipv6Addr::LOCALHOST)
}

#[test]
fn every_kind_is_received_as_it_was_by_every_family() -> Outcome {
    privileged(|| {
        let devices = support::place::devices()?;
        // Time stamps begin some time after the first who asks (`netstamp_work`).
        let _asks = talkative()?;
        std::thread::sleep(std::time::Duration::from_millis(200));
        for family in FAMILIES {
            every_kind_as_it_was(family, &devices)?;
        }
        Ok(())
    })
}

fn every_kind_as_it_was(family: Family, devices: &[Device; 2]) -> Outcome {
    let [m0, m1] = devices;
    let socket = family.talkative()?;
    set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 24)?;
    set_int(&socket, UDP, UDP_NO_CHECK6_RX, 1)?;
    set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
    for device in devices {
        join(&socket, device.index)?;
        if family == Family::Ipv6 {
            join6(&socket, GROUP6, device.index)?;
            join6(&socket, NEAR_GROUP6, device.index)?;
        }
    }
    socket::bind(&socket, (family.any(), PORT))?;
    let to = SocketAddr::new(family.any(), PORT);
    for group6 in [GROUP6, NEAR_GROUP6] {
        for heard in every_kind() {
            let heard = Heard {
                ipv4: family == Family::Dual,
                ..heard
            };
            heard.send(to, None, (GROUP, group6), devices)?;
        }
    }
    if family == Family::Ipv6 {
        without_checksum()?;
        by_cable(m0, m1)?;
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let checkpoint = Checkpoint::dump(&socket)?;
    assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
    let seen = drain(&socket)?;
    assert_eq!(seen.len(), checkpoint.receive_queue.len());
    println!("{family:?}: {} datagrams", seen.len());
    let sent = 2 * every_kind().len();
    assert!(seen.len() >= sent - 10, "{family:?}: {} came", seen.len());
    if family == Family::Ipv6 {
        assert!(seen.iter().any(|one| one.data == b"without a checksum"));
        assert!(seen.iter().any(|one| one.data == b"by cable"));
    }
    drop(socket);
    let mut others = bystanders(Family::Ipv4, m0)?;
    others.push(bystander6(m0)?);
    let restored = Checkpoint::from_bytes(&checkpoint.to_bytes()?)?.restore(&exactly());
    heard_nothing(&others)?;
    drop(others);
    let restored = restored?.fd;
    // It hears everybody, more than one.
    for from in [1998, 1999] {
        family.send(from, PORT, b"live")?;
    }
    let again = drain(&restored)?;
    assert_eq!(again.len(), seen.len() + 2, "{family:?}");
    for (seen, again) in seen.iter().zip(&again) {
        assert_eq!(seen.controls, again.controls, "{family:?}: {:?}", seen.name);
        assert!(
            seen == again,
            "{family:?}: {:?} {:?}",
            seen.name,
            again.name
        );
    }
    Ok(())
}

/// What comes in fragments by IPv6 and is longer than what the loopback device takes.
#[test]
fn what_is_too_long_is_a_loss_by_name() -> Outcome {
    privileged(|| {
        let socket = Family::Ipv6.talkative()?;
        set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 24)?;
        socket::bind(&socket, (Ipv6Addr::LOCALHOST, PORT))?;
        for size in [1, 65_488, 65_489, 65_527, 2] {
            Family::Ipv6.send(2000, PORT, &vec![7; size])?;
        }
        let checkpoint = Checkpoint::dump(&socket)?;
        assert_eq!(checkpoint.receive_queue.len(), 5);
        drop(socket);
        let refused = checkpoint.restore(&exactly()).err().ok_or("not refused")?;
        let text = refused.to_string();
        assert!(
            text.contains("receive queue: 2 of them: too long"),
            "{text}"
        );
        let options = RestoreOptions {
            lossy: true,
            ..exactly()
        };
        let restored = checkpoint.restore(&options)?;
        let notes = &restored.report.not_carried;
        println!("{notes:?}");
        let sizes = drain(&restored.fd)?.into_iter().map(|one| one.data.len());
        assert_eq!(sizes.collect::<Vec<_>>(), [1, 65_488, 2]);
        Ok(())
    })
}

/// What waits in a socket besides datagrams: an error, and what is held back by a cork.
struct Beside {
    closed: SocketAddr,
    peer: OwnedFd,
}

impl Beside {
    fn put(socket: &OwnedFd) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let closed = socket::local(&socket::bound((LOCALHOST, 0))?)?;
        set_int(socket, support::socket::IP, IP_RECVERR, 1)?;
        message::send(socket, closed, b"refused", &[], 0)?;
        // The entry stays; the pending error would only fail the next send.
        let refused = socket::get_int(socket, SOCKET, SO_ERROR)?;
        assert_eq!(refused, libc::ECONNREFUSED);
        let peer = socket::bound((LOCALHOST, 0))?;
        set_int(socket, UDP, UDP_CORK, 1)?;
        for part in [&b"held "[..], b"", b"back"] {
            message::send(socket, socket::local(&peer)?, part, &[], 0)?;
        }
        Ok(Self { closed, peer })
    }

    /// Sees that each is there, once.
    fn is_there(&self, socket: &OwnedFd) -> Outcome {
        let error = message::receive(socket, libc::MSG_ERRQUEUE)?.ok_or("no error waits")?;
        assert_eq!(
            (error.name, &error.data[..]),
            (Some(self.closed), &b"refused"[..])
        );
        assert_eq!(message::receive(socket, libc::MSG_ERRQUEUE)?, None);
        assert_eq!(socket::receive_now(&self.peer)?, Vec::<Vec<u8>>::new());
        set_int(socket, UDP, UDP_CORK, 0)?;
        assert_eq!(socket::receive_now(&self.peer)?, [b"held back"]);
        Ok(())
    }
}

#[test]
fn a_thousand_dumps_change_nothing() -> Outcome {
    privileged(|| {
        let socket = talkative()?;
        set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 23)?;
        socket::bind(&socket, (LOCALHOST, PORT))?;
        let sizes = (0..100_usize).map(|number| [0, number, number * 97 % 9000][number % 3]);
        let sent: Vec<Vec<u8>> = sizes
            .chain([65_507, 0])
            .map(|size| vec![size as u8; size])
            .collect();
        for (number, data) in sent.iter().enumerate() {
            send((LOCALHOST, 2000 + number as u16), (LOCALHOST, PORT), data)?;
        }
        assert_eq!(recv(&socket, &mut [0u8; 8][..], RecvFlags::PEEK)?, (0, 0));
        let beside = Beside::put(&socket)?;
        let first = Checkpoint::dump(&socket)?;
        assert_eq!(first.receive_queue.len(), sent.len());
        let first = first.to_bytes()?;
        for round in 1..1000 {
            let again = Checkpoint::dump(&socket)?.to_bytes()?;
            assert!(again == first, "dump {round} differs from the first");
        }
        beside.is_there(&socket)?;
        let read = drain(&socket)?;
        let from = read
            .iter()
            .filter_map(|message| message.name)
            .map(|name| name.port());
        assert!(from.eq((2000..).take(sent.len())), "order");
        assert!(read.iter().map(|message| &message.data).eq(&sent), "data");
        Ok(())
    })
}

#[test]
fn the_image_says_it_all() -> Outcome {
    privileged(|| {
        let [device, _] = strict()?;
        let socket = talkative()?;
        set_int(&socket, SOCKET, SO_RCVBUFFORCE, 1 << 23)?;
        join(&socket, device.index)?;
        socket::bind(&socket, (ANY, PORT))?;
        fill(device.index)?;
        let restored = through_an_image(socket)?;
        assert_eq!(drain(&restored)?.len(), 70);
        Ok(())
    })
}

#[test]
fn a_filter_and_a_small_buffer_came_later() -> Outcome {
    privileged(|| {
        let socket = talkative()?;
        socket::bind(&socket, (LOCALHOST, PORT))?;
        for round in 0..40 {
            send((LOCALHOST, 2000 + round), (LOCALHOST, PORT), &[9; 1000])?;
        }
        set_int(&socket, SOCKET, SO_RCVBUF, 0)?;
        socket::attach(&socket, &[instruction(6, 0)])?;
        set_int(&socket, SOCKET, 44, 1)?;
        let restored = through_an_image(socket)?;
        send((LOCALHOST, 1999), (LOCALHOST, PORT), b"filtered")?;
        let received = drain(&restored)?;
        assert_eq!(received.len(), 40);
        assert!(received.iter().all(|message| message.data == [9; 1000]));
        Ok(())
    })
}

#[test]
fn a_connected_socket_keeps_what_it_has_heard() -> Outcome {
    privileged(|| {
        let peer = socket::bound((LOCALHOST, 9))?;
        let socket = talkative()?;
        socket::connect(&socket, (LOCALHOST, 9))?;
        let to = socket::local(&socket)?;
        message::send(&peer, to, b"one", &[], 0)?;
        message::send(&peer, to, b"", &[], 0)?;
        let restored = through_an_image(socket)?;
        assert_eq!(socket::local(&restored)?, to);
        message::send(&peer, to, b"three", &[], 0)?;
        let data: Vec<Vec<u8>> = drain(&restored)?.into_iter().map(|m| m.data).collect();
        assert_eq!(data, [&b"one"[..], b"", b"three"]);
        Ok(())
    })
}

#[test]
fn nobody_else_hears_of_it() -> Outcome {
    FAMILIES.into_iter().try_for_each(|family| {
        privileged(|| {
            let [device, _] = strict()?;
            let socket = family.talkative()?;
            set_int(&socket, SOCKET, SO_REUSEPORT, 1)?;
            socket::bind(&socket, (family.any(), PORT + 1))?;
            family.join(&socket, device.index)?;
            for round in 0..20 {
                family.send(2000 + round, PORT + 1, b"mine")?;
            }
            let others = bystanders(family, &device)?;
            let restored = through_an_image(socket)?;
            heard_nothing(&others)?;
            assert_eq!(drain(&restored)?.len(), 20);
            Ok(())
        })
    })
}

/// The checkpoint of a socket with one datagram, closed.
fn with_one(data: &[u8]) -> Result<Checkpoint, Box<dyn std::error::Error + Send + Sync>> {
    let socket = talkative()?;
    socket::bind(&socket, (LOCALHOST, PORT))?;
    send((LOCALHOST, 2000), (LOCALHOST, PORT), data)?;
    Ok(Checkpoint::dump(&socket)?)
}

#[test]
fn the_queue_moves_to_another_address() -> Outcome {
    privileged(|| {
        let checkpoint = with_one(b"moved")?;
        let there = Ipv4Addr::new(127, 0, 0, 2);
        let options = RestoreOptions {
            map: vec![Mapping::Network(LOCALHOST.into(), there.into(), 32)],
            ..RestoreOptions::default()
        };
        let restored = checkpoint.restore(&options)?;
        let received = drain(&restored.fd)?;
        assert_eq!(received.len(), 1);
        let told = received[0].control(support::socket::IP, IP_RECVORIGDSTADDR);
        let mut expected = PORT.to_be_bytes().to_vec();
        expected.extend(there.octets());
        assert_eq!(told.and_then(|told| told.get(2..8)), Some(&expected[..]));
        assert_eq!(
            received[0].name,
            Some(SocketAddr::new(LOCALHOST.into(), 2000))
        );
        Ok(())
    })
}

#[test]
fn a_device_that_is_gone_is_told_once() -> Outcome {
    privileged(|| {
        let mut checkpoint = with_one(b"from nowhere")?;
        let one = checkpoint.receive_queue.remove(0);
        checkpoint.receive_queue = vec![one; 3];
        checkpoint.interfaces = Checkpoint::fresh(checkpoint.protocol)?.interfaces;
        let lossy = RestoreOptions {
            lossy: true,
            ..RestoreOptions::default()
        };
        let restored = checkpoint.restore(&lossy)?;
        let notes = restored.report.not_carried;
        let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
        assert_eq!(notes, ["receive queue: IP_PKTINFO: device 1 is gone"]);
        assert_eq!(drain(&restored.fd)?.len(), 3);
        Ok(())
    })
}

#[test]
fn the_queue_goes_into_another_namespace() -> Outcome {
    privileged(|| {
        let checkpoint = with_one(b"over there")?;
        let there = std::fs::File::open("/proc/thread-self/ns/net")?;
        // This thread goes where loopback is not even up.
        sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
        let options = RestoreOptions {
            netns: Some(there.into()),
            ..exactly()
        };
        let restored = checkpoint.restore(&options)?;
        assert_eq!(socket::receive(&restored.fd)?, b"over there");
        Ok(())
    })
}

/// What differs of two long queues is told in short, and soon.
#[test]
fn long_queues_are_compared() -> Outcome {
    privileged(|| {
        let mut a = with_one(&[7; 60_000])?;
        let one = a.receive_queue.first().cloned().ok_or("nothing queued")?;
        let small = sockcr::state::receive_queue::Datagram {
            payload: vec![1; 9],
            ..one
        };
        a.receive_queue.extend(vec![small; 30_000]);
        let mut b = a.clone();
        *b.receive_queue[0].payload.last_mut().ok_or("empty")? = 8;
        b.receive_queue[29_999].mark = 5;
        let started = std::time::Instant::now();
        let differences = sockcr::diff::diff(&a, &b);
        assert!(started.elapsed() < PATIENCE);
        let names: Vec<&str> = differences.iter().map(|one| &*one.what).collect();
        assert_eq!(names, ["queued datagram 1", "queued datagram 30000"]);
        let (had, has) = sockcr::diff::brief(&differences[0], "-");
        assert!(had.len() < 200 && has.len() < 200, "{had} {has}");
        assert!(
            had.ends_with("0707") && has.ends_with("0708"),
            "{had} {has}"
        );
        Ok(())
    })
}

/// bind(2) to an address of IPv6 makes a socket one of IPv6 alone, for good.
#[test]
fn a_dual_stack_socket_gets_another_address() -> Outcome {
    privileged(|| {
        strict()?;
        let socket = Family::Dual.udp()?;
        socket::bind(&socket, (Ipv6Addr::UNSPECIFIED, PORT))?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        for (address, only) in [("::1", 1), ("::ffff:127.0.0.1", 0)] {
            let mut edited = checkpoint.clone();
            edited.edit("local", &format!("[{address}]:{PORT}"))?;
            let map = vec![format!("::={address}").parse::<Mapping>()?];
            let mapped = RestoreOptions { map, ..exactly() };
            for (checkpoint, options) in [(&edited, &exactly()), (&checkpoint, &mapped)] {
                let restored = checkpoint.restore(options)?.fd;
                assert_eq!(socket::get_int(&restored, IPV6, IPV6_V6ONLY)?, only);
                assert_eq!(socket::local(&restored)?.ip(), address.parse::<IpAddr>()?);
            }
        }
        Ok(())
    })
}

/// One that came when nobody wanted time stamps, was peeked at, and has none since.
#[test]
fn a_look_gives_no_time() -> Outcome {
    privileged(|| {
        strict()?;
        let socket = socket::bound((LOCALHOST, PORT))?;
        set_int(&socket, SOCKET, SO_PEEK_OFF, 0)?;
        send((LOCALHOST, 1999), (LOCALHOST, PORT), b"")?;
        recv(&socket, &mut [0u8; 8][..], RecvFlags::PEEK)?;
        set_int(&socket, SOCKET, SO_TIMESTAMPNS, 1)?;
        let mut checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        // Somebody else may have wanted them.
        checkpoint.receive_queue[0].received_at = 0;
        assert!(checkpoint.receive_queue[0].peeked);
        let restored = checkpoint.restore(&exactly())?.fd;
        let again = Checkpoint::dump(&restored)?;
        assert_eq!(again.receive_queue, checkpoint.receive_queue);
        Ok(())
    })
}
