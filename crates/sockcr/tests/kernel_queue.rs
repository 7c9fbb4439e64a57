//! Datagrams that wait, read by the kernel reader and then by the owner: both must agree, and the
//! owner must still get everything once. Each test has network namespaces of its own; where these
//! or BPF are not allowed it says so.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/message.rs"]
mod message;
mod support;

use support::octets::octets;
#[path = "support/waiting.rs"]
mod waiting;

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use message::{Message, receive};
use sockcr::kernel::{Queued, Reader};
use waiting::*;

/// What the owner got must be what the reader told.
fn agree(queued: &[Queued], messages: &[Message]) {
    assert_eq!(queued.len(), messages.len());
    for (index, (queued, message)) in queued.iter().zip(messages).enumerate() {
        assert_eq!(Some(queued.source), message.name, "{index}");
        assert_eq!(queued.payload.len(), message.data.len(), "{index}");
        assert!(queued.payload == message.data, "{index}: other bytes");
        let word = |level, kind, at| message.word(level, kind, at);
        let byte = |kind| message.control(IPPROTO_IP, kind).map(|data| data[0]);
        assert_eq!(Some(queued.ttl), byte(IP_TTL));
        assert_eq!(Some(queued.tos), byte(IP_TOS));
        assert_eq!(queued.pktinfo_interface, word(IPPROTO_IP, IP_PKTINFO, 0));
        let address = Ipv4Addr::from(word(IPPROTO_IP, IP_PKTINFO, 4).to_ne_bytes());
        assert_eq!(queued.pktinfo_address, address);
        assert_eq!(queued.interface, queued.pktinfo_interface);
        assert_eq!(queued.mark, word(SOL_SOCKET, SO_MARK, 0));
        if message.control(SOL_SOCKET, SO_PRIORITY).is_some() {
            assert_eq!(queued.priority, word(SOL_SOCKET, SO_PRIORITY, 0));
        }
        assert_eq!(queued.drops, word(SOL_SOCKET, SO_RXQ_OVFL, 0));
        let fragment = word(IPPROTO_IP, IP_RECVFRAGSIZE, 0);
        assert_eq!(u32::from(queued.fragment_size), fragment);
        let segment = word(IPPROTO_UDP, UDP_GRO, 0);
        assert_eq!(u32::from(queued.segment_size), segment);
        let options = message.control(IPPROTO_IP, IP_RECVOPTS);
        assert_eq!(queued.ip_options, options.unwrap_or_default());
        let destination = message.control(IPPROTO_IP, IP_ORIGDSTADDR);
        let destination = destination.expect("IP_RECVORIGDSTADDR is on");
        assert_eq!(octets(queued.destination.ip()), destination[4..8]);
        assert_eq!(queued.destination.port().to_be_bytes(), destination[2..4]);
        assert_eq!(queued.received_at, nanoseconds(message), "{index}");
        assert_ne!(queued.received_at, 0);
    }
}

/// Reads without and with taking, compares.
fn compare(reader: &Reader, socket: &UdpSocket, count: usize) -> Fallible<Vec<Queued>> {
    arrived(reader, socket, count as u32)?;
    let queued = reader.receive_queue(socket.as_fd())?;
    assert_eq!(queued.len(), count);
    assert_eq!(queued, reader.receive_queue(socket.as_fd())?);
    agree(&queued, &drain(socket)?);
    assert_eq!(reader.receive_queue(socket.as_fd())?, []);
    Ok(queued)
}

#[test]
fn every_size_over_loopback() -> Outcome {
    isolated(|reader| {
        let socket = receiver(LOCALHOST)?;
        let mut random = Random(1);
        for size in SIZES {
            let sender = UdpSocket::bind((LOCALHOST, 0))?;
            sender.send_to(&random.bytes(size), local(&socket)?)?;
        }
        let sender = UdpSocket::bind((LOCALHOST, 0))?;
        for _ in 0..300 {
            let size = (random.next() % 3000) as usize;
            sender.send_to(&random.bytes(size), local(&socket)?)?;
        }
        compare(reader, &socket, SIZES.len() + 300)?;
        Ok(())
    })
}

#[test]
fn every_size_over_two_veths() -> Outcome {
    isolated(|reader| {
        let near = [neighbour(1, &[])?, neighbour(2, &["link set w2 mtu 900"])?];
        let socket = receiver(Ipv4Addr::UNSPECIFIED)?;
        let port = local(&socket)?.port();
        let mut random = Random(2);
        let mut count = 0;
        for size in SIZES {
            for (index, sender) in near.iter().enumerate() {
                set(sender, IPPROTO_IP, IP_TTL, 30 + size as i32 % 100)?;
                set(sender, IPPROTO_IP, IP_TOS, (size as i32 % 60) * 4)?;
                set(sender, SOL_SOCKET, SO_NO_CHECK, (size % 2) as i32)?;
                let to = SocketAddr::new(Ipv4Addr::new(10, 1, 1 + index as u8, 1).into(), port);
                sender.send_to(&random.bytes(size), to)?;
                count += 1;
                arrived(reader, &socket, count)?;
            }
        }
        let queued = compare(reader, &socket, count as usize)?;
        let devices: Vec<u32> = queued.iter().map(|datagram| datagram.interface).collect();
        assert_ne!(devices[0], devices[1]);
        assert!(queued.iter().any(|datagram| datagram.fragment_size > 1000));
        Ok(())
    })
}

#[test]
fn segments_put_together() -> Outcome {
    isolated(|reader| {
        let far = neighbour(1, &[])?;
        let near = UdpSocket::bind((LOCALHOST, 0))?;
        let socket = receiver(Ipv4Addr::UNSPECIFIED)?;
        set(&socket, IPPROTO_UDP, UDP_GRO, 1)?;
        let port = local(&socket)?.port();
        let mut random = Random(3);
        let mut aggregates = 0;
        for (sender, to) in [(&near, LOCALHOST), (&far, Ipv4Addr::new(10, 1, 1, 1))] {
            for (size, segment) in [
                (250, 100),
                (9000, 1000),
                (60_000, 1000),
                (64_000, 1472),
                (50, 100),
                (65_000, 1400),
            ] {
                set(sender, IPPROTO_UDP, UDP_SEGMENT, segment)?;
                sender.send_to(&random.bytes(size), (to, port))?;
                aggregates += 1;
            }
        }
        let queued = compare(reader, &socket, aggregates)?;
        assert_eq!(queued[1].segment_size, 1000);
        Ok(())
    })
}

/// The device puts datagrams of one size together as they come (NAPI).
#[test]
fn segments_put_together_by_the_device() -> Outcome {
    const ETHTOOL_SGRO: u32 = 0x2c;
    isolated(|reader| {
        // ETHTOOL_STXCSUM: without it the sender makes the segments itself.
        let far = neighbour(1, &["offload 23"])?;
        if let Err(why) = message::offload("v1", ETHTOOL_SGRO, 1) {
            return support::skip(&format!("no GRO on veth: {why}"));
        }
        let socket = receiver(Ipv4Addr::UNSPECIFIED)?;
        set(&socket, IPPROTO_UDP, UDP_GRO, 1)?;
        let to = SocketAddr::new(Ipv4Addr::new(10, 1, 1, 1).into(), local(&socket)?.port());
        let mut random = Random(7);
        let mut sum = 0;
        for (size, segment) in [(60_000, 1400), (3000, 100), (40_000, 1472), (500, 300)] {
            set(&far, IPPROTO_UDP, UDP_SEGMENT, segment)?;
            far.send_to(&random.bytes(size), to)?;
            sum += size;
        }
        // NAPI brings them when it likes.
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut queued = Vec::new();
        while queued
            .iter()
            .map(|one: &Queued| one.payload.len())
            .sum::<usize>()
            < sum
        {
            assert!(Instant::now() < deadline, "only {} came", queued.len());
            queued = reader.receive_queue(socket.as_fd())?;
        }
        agree(&queued, &drain(&socket)?);
        println!("102 datagrams came as {}", queued.len());
        Ok(())
    })
}

#[test]
fn order_and_zero_lengths_after_peeking() -> Outcome {
    isolated(|reader| {
        let socket = receiver(LOCALHOST)?;
        let to = local(&socket)?;
        let sender = || UdpSocket::bind((LOCALHOST, 0));
        let senders = [sender()?, sender()?, sender()?];
        let mut random = Random(4);
        let mut count = 0;
        for round in 0..5 {
            for sender in &senders {
                set(sender, SOL_SOCKET, SO_MARK, round * 7)?;
                set(sender, SOL_SOCKET, SO_PRIORITY, round)?;
                for size in [0, 3, 0, 0, 1200] {
                    sender.send_to(&random.bytes(size), to)?;
                    count += 1;
                }
            }
            // Moves what is there into the queue of the reader, and marks it as peeked.
            set(&socket, SOL_SOCKET, libc::SO_PEEK_OFF, 0)?;
            while receive(&socket, libc::MSG_PEEK)?.is_some() {}
            set(&socket, SOL_SOCKET, libc::SO_PEEK_OFF, -1)?;
            receive(&socket, libc::MSG_PEEK)?;
        }
        let queued = compare(reader, &socket, count)?;
        assert_eq!(queued[count - 1].mark, 28);
        Ok(())
    })
}

/// What IP_PKTINFO and time stamps cannot tell when they came too late.
#[test]
fn what_was_not_asked_for_at_arrival() -> Outcome {
    isolated(|reader| {
        let socket = UdpSocket::bind((LOCALHOST, 0))?;
        let sender = UdpSocket::bind((LOCALHOST, 0))?;
        sender.send_to(b"early", local(&socket)?)?;
        arrived(reader, &socket, 1)?;
        let queued = reader.receive_queue(socket.as_fd())?;
        let [datagram] = queued.as_slice() else {
            return Err("not one datagram".into());
        };
        // Time stamps are switched for all sockets of the machine: another test may have them on.
        assert_eq!((datagram.interface, datagram.pktinfo_interface), (1, 0));
        assert_eq!(datagram.pktinfo_address, Ipv4Addr::UNSPECIFIED);
        assert_eq!((datagram.drops, datagram.fragment_size), (0, 0));
        assert_eq!(datagram.payload, b"early");
        Ok(())
    })
}

/// An IPv4 header and a UDP header with its payload, of any source.
fn packet(from: SocketAddr, to: SocketAddr, options: &[u8], sum: u16, data: &[u8]) -> Vec<u8> {
    let length = ((8 + data.len()) as u16).to_be_bytes();
    let mut packet = vec![
        0x45 + (options.len() / 4) as u8,
        0x28,
        0,
        0,
        0,
        0,
        0,
        0,
        77,
        17,
        0,
        0,
    ];
    packet.extend(octets(from.ip()));
    packet.extend(octets(to.ip()));
    packet.extend(options);
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(length);
    packet.extend(sum.to_be_bytes());
    packet.extend(data);
    packet
}

#[test]
fn foreign_sources_options_and_wrong_checksums() -> Outcome {
    isolated(|reader| {
        let socket = receiver(LOCALHOST)?;
        let to = local(&socket)?;
        let raw = rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::RAW,
            Some(rustix::net::ipproto::RAW),
        )?;
        let from = SocketAddr::new(Ipv4Addr::new(203, 0, 113, 9).into(), 0);
        let linklocal = SocketAddr::new(Ipv4Addr::new(169, 254, 1, 1).into(), 9);
        let mut record = vec![7, 11, 4];
        record.resize(12, 0);
        ip("route add default dev lo")?;
        for (source, options, sum, size) in [
            (from, vec![], 0, 5),
            (linklocal, record, 0, 300),
            (from, vec![], 0x1234, 300),
            (from, vec![], 0, 0),
        ] {
            let packet = packet(source, to, &options, sum, &vec![9; size]);
            rustix::net::sendto(&raw, &packet, rustix::net::SendFlags::empty(), &to)?;
        }
        arrived(reader, &socket, 3)?;
        let queued = reader.receive_queue(socket.as_fd())?;
        agree(&queued, &drain(&socket)?);
        let sizes: Vec<usize> = queued
            .iter()
            .map(|datagram| datagram.payload.len())
            .collect();
        assert_eq!(sizes, [5, 300, 0]);
        assert_eq!(
            (queued[0].source, queued[0].ttl, queued[0].tos),
            (from, 77, 0x28)
        );
        assert_eq!(queued[1].ip_options[..2], [7, 11]);
        Ok(())
    })
}

/// A datagram whose number tells its contents.
fn numbered(number: u64) -> Vec<u8> {
    let size = number * 7919 % 5000;
    let mut data = number.to_ne_bytes().to_vec();
    data.extend((0..size).map(|at| (number + at) as u8));
    data
}

/// Whatever is read while the owner takes datagrams and others arrive is a piece of the queue.
#[test]
fn a_running_owner_makes_no_garbage() -> Outcome {
    isolated(|reader| {
        let socket = receiver(LOCALHOST)?;
        let sender = UdpSocket::bind((LOCALHOST, 0))?;
        let (to, stop) = (local(&socket)?, AtomicBool::new(false));
        let (mut good, mut busy, mut seen) = (0, 0, 0);
        let stopped = || stop.load(Ordering::Relaxed);
        thread::scope(|scope| {
            scope.spawn(|| {
                (0..).take_while(|_| !stopped()).for_each(|number| {
                    let _full = sender.send_to(&numbered(number), to);
                });
            });
            scope.spawn(|| {
                while !stopped() {
                    let _empty = receive(&socket, 0);
                    thread::sleep(Duration::from_micros(30));
                }
            });
            let end = Instant::now() + Duration::from_secs(2);
            let result = (|| -> Outcome {
                while Instant::now() < end {
                    match reader.receive_queue(socket.as_fd()) {
                        Ok(queued) => {
                            good += 1;
                            seen += queued.len();
                            consecutive(&queued)?;
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => busy += 1,
                        Err(error) => return Err(error.into()),
                    }
                    while reader.read(socket.as_fd())?.receive_queue > 300 {
                        receive(&socket, 0)?;
                    }
                }
                Ok(())
            })();
            stop.store(true, Ordering::Relaxed);
            result
        })?;
        println!("{good} times read, {seen} datagrams, {busy} times too busy");
        assert!(good > 0);
        Ok(())
    })
}

fn consecutive(queued: &[Queued]) -> Outcome {
    let mut last = None;
    for datagram in queued {
        let number = *datagram.payload.first_chunk().ok_or("too short")?;
        let number = u64::from_ne_bytes(number);
        if datagram.payload != numbered(number) || last.is_some_and(|last| number <= last) {
            return Err(format!("garbage at {number} after {last:?}").into());
        }
        last = Some(number);
    }
    Ok(())
}

#[test]
fn other_sockets_are_refused() -> Outcome {
    isolated(|reader| {
        let listener = std::net::TcpListener::bind((LOCALHOST, 0))?;
        let unsupported = |error: io::Error| assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        unsupported(reader.receive_queue(listener.as_fd()).unwrap_err());
        let file = std::fs::File::open("/dev/null")?;
        let error = reader.receive_queue(file.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        Ok(())
    })
}
