//! Corks and errors, read by the kernel reader and then sent or read by the owner: both must agree.
//! As in kernel_queue.rs.
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

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::thread;
use std::time::Instant;

use message::{Control, Message, receive, send};
use sockcr::kernel::{Corked, ErrorEntry, Reader};
use waiting::*;

/// `SCM_TIMESTAMPING_OPT_STATS`
const OPT_STATS: i32 = 54;

fn word(level: i32, kind: i32, value: i32) -> Control {
    (level, kind, value.to_ne_bytes().to_vec())
}

/// Corks data in pieces; what the reader tells must be what leaves.
fn cork(reader: &Reader, to: &UdpSocket, pieces: &[Vec<u8>], by_option: bool) -> Outcome {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    set(&socket, SOL_SOCKET, SO_SNDBUFFORCE, 1 << 22)?;
    assert_eq!(reader.cork(socket.as_fd())?, None);
    set(&socket, IPPROTO_UDP, UDP_CORK, by_option.into())?;
    let flags = if by_option { 0 } else { libc::MSG_MORE };
    let address = local(to)?;
    let (ttl, tos) = (by_option.then_some(33), by_option.then_some(0x48));
    let mut controls = Vec::new();
    controls.extend(ttl.map(|ttl| word(IPPROTO_IP, IP_TTL, ttl.into())));
    controls.extend(tos.map(|tos| word(IPPROTO_IP, IP_TOS, tos.into())));
    for piece in pieces {
        send(&socket, address, piece, &controls, flags)?;
    }
    let corked = reader.cork(socket.as_fd())?.ok_or("nothing pending")?;
    assert_eq!(reader.cork(socket.as_fd())?.as_ref(), Some(&corked));
    assert_eq!((corked.destination, corked.ttl), (address, ttl));
    // Newer kernels put the socket's own into the cork.
    assert_eq!(corked.tos.unwrap_or(0), tos.unwrap_or(0));
    assert_eq!((corked.segment_size, corked.mark), (0, 0));
    assert!(corked.device != 0 && !corked.gateway, "{corked:?}");
    assert_eq!((corked.transmit_time, corked.ip_options.len()), (0, 0));
    assert!(
        corked.payload == pieces.concat(),
        "{} bytes",
        corked.payload.len()
    );
    if by_option {
        set(&socket, IPPROTO_UDP, UDP_CORK, 0)?;
    } else {
        send(&socket, address, b"", &[], 0)?;
    }
    let end = Instant::now() + PATIENCE;
    let message = loop {
        if let Some(message) = receive(to, 0)? {
            break message;
        }
        assert!(Instant::now() < end, "never came");
        thread::yield_now();
    };
    assert_eq!(
        message.data.len(),
        corked.payload.len(),
        "{address} {by_option}"
    );
    assert!(message.data == corked.payload, "other bytes left");
    if corked.source != Ipv4Addr::UNSPECIFIED {
        assert_eq!(message.name.map(|name| name.ip()), Some(corked.source));
    }
    assert_eq!(reader.cork(socket.as_fd())?, None);
    Ok(())
}

#[test]
fn corks_of_every_length() -> Outcome {
    isolated(|reader| {
        let near = receiver(LOCALHOST)?;
        let far = neighbour(1, &[])?;
        let mut random = Random(5);
        for to in [&near, &far] {
            for size in SIZES {
                let whole = random.bytes(size);
                cork(reader, to, std::slice::from_ref(&whole), true)?;
                cork(reader, to, std::slice::from_ref(&whole), false)?;
                let cut = random.next() as usize % (size + 1);
                let (one, two) = whole.split_at(cut);
                cork(reader, to, &[one.to_vec(), two.to_vec()], true)?;
                let piece = 1 + random.next() as usize % 5000;
                let pieces: Vec<Vec<u8>> = whole.chunks(piece).map(<[u8]>::to_vec).collect();
                if !pieces.is_empty() {
                    cork(reader, to, &pieces, false)?;
                }
            }
        }
        Ok(())
    })
}

fn corked(reader: &Reader, socket: &UdpSocket) -> Fallible<Corked> {
    Ok(reader.cork(socket.as_fd())?.ok_or("nothing pending")?)
}

#[test]
fn corks_with_options_and_segments() -> Outcome {
    isolated(|reader| {
        let to = SocketAddr::new(LOCALHOST.into(), 9);
        let route = [131, 11, 4, 127, 0, 0, 7, 127, 0, 0, 8, 0];
        let record = [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let stamp = [68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let both = [68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        for options in [route, record, stamp, both] {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let control = (IPPROTO_IP, IP_RETOPTS, options.to_vec());
            send(&socket, to, b"some", &[control], libc::MSG_MORE)?;
            let state = corked(reader, &socket)?;
            assert_eq!(
                (state.destination, state.payload.as_slice()),
                (to, &b"some"[..])
            );
            assert_eq!(state.ip_options, options);
            let same = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            sockcr_sys::sockopt::set(same.as_fd(), IPPROTO_IP, IP_OPTIONS, &options)?;
            send(&same, to, b"some", &[], libc::MSG_MORE)?;
            assert_eq!(corked(reader, &same)?.ip_options, options);
        }
        let socket = UdpSocket::bind((LOCALHOST, 0))?;
        for (level, name, value) in [
            (IPPROTO_UDP, UDP_CORK, 1),
            (IPPROTO_UDP, UDP_SEGMENT, 1000),
            (SOL_SOCKET, SO_MARK, 5),
            (SOL_SOCKET, SO_PRIORITY, 3),
        ] {
            set(&socket, level, name, value)?;
        }
        let data = Random(6).bytes(30_000);
        send(&socket, to, &data, &[], 0)?;
        let state = corked(reader, &socket)?;
        assert!(state.payload == data);
        assert_eq!(
            (state.segment_size, state.mark, state.priority),
            (1000, 5, 3)
        );
        assert_eq!((state.source, state.ttl), (LOCALHOST.into(), None));
        Ok(())
    })
}

/// A word of IP_PKTINFO.
fn place(message: &Message, at: usize) -> [u8; 4] {
    message.word(IPPROTO_IP, IP_PKTINFO, at).to_ne_bytes()
}

/// An entry as MSG_ERRQUEUE gave it. ICMP messages of this host about a closed port have no second
/// word.
fn entry(message: &Message) -> ErrorEntry {
    let raw = message.control(IPPROTO_IP, IP_RECVERR).expect("an entry");
    let word = |at: usize| u32::from_ne_bytes(*raw[at..].first_chunk().expect("whole"));
    let offender = u16::from_ne_bytes([raw[16], raw[17]]) == libc::AF_INET as u16;
    let offender = offender.then(|| {
        let address: [u8; 4] = *raw[20..].first_chunk().expect("an entry");
        SocketAddr::new(
            std::net::IpAddr::from(address),
            u16::from_be_bytes([raw[18], raw[19]]),
        )
    });
    ErrorEntry {
        flow_label: 0,
        error: word(0).cast_signed(),
        origin: raw[4],
        kind: raw[5],
        code: raw[6],
        info: word(8),
        data: word(12),
        statistics: message.control(SOL_SOCKET, OPT_STATS).is_some(),
        offender,
        destination: message.name,
        received_at: nanoseconds(message),
        ttl: message.word(IPPROTO_IP, IP_TTL, 0) as u8,
        tos: message.control(IPPROTO_IP, IP_TOS).map_or(0, |tos| tos[0]),
        local: place(message, 8).into(),
        rest: [0; 4],
        interface: u32::from_ne_bytes(place(message, 0)),
        payload: message.data.clone(),
    }
}

/// The entries, read without and with taking.
fn errors(reader: &Reader, socket: &UdpSocket, count: u32) -> Fallible<Vec<ErrorEntry>> {
    let end = Instant::now() + PATIENCE;
    while reader.read(socket.as_fd())?.error_queue < count {
        assert!(Instant::now() < end, "{count} entries never came");
    }
    let entries = reader.error_queue(socket.as_fd())?;
    assert_eq!(entries, reader.error_queue(socket.as_fd())?);
    let mut taken = Vec::new();
    while let Some(message) = receive(socket, libc::MSG_ERRQUEUE)? {
        assert_ne!(message.flags & libc::MSG_ERRQUEUE, 0);
        taken.push(entry(&message));
    }
    // An error made here has no time: the kernel tells that of reading.
    for (entry, taken) in entries.iter().zip(&mut taken) {
        if entry.received_at == 0 {
            assert_eq!(entry.origin, 1);
            taken.received_at = 0;
        }
    }
    assert_eq!(entries, taken);
    assert_eq!(reader.error_queue(socket.as_fd())?, []);
    Ok(entries)
}

#[test]
fn errors_stay_where_they_are() -> Outcome {
    isolated(|reader| {
        let socket = receiver(Ipv4Addr::UNSPECIFIED)?;
        set(&socket, IPPROTO_IP, IP_RECVERR, 1)?;
        for (port, size) in [(9, 2), (10, 0), (11, 700), (12, 60_000)] {
            let data = vec![7; size];
            // The pending error of the one before.
            while socket.send_to(&data, (LOCALHOST, port)).is_err() {}
        }
        let entries = errors(reader, &socket, 4)?;
        let refused: Vec<(i32, u8, u8, u8)> = entries
            .iter()
            .map(|entry| (entry.error, entry.origin, entry.kind, entry.code))
            .collect();
        assert_eq!(refused, [(libc::ECONNREFUSED, 2, 3, 3); 4]);
        let offender = SocketAddr::new(LOCALHOST.into(), 0);
        assert_eq!(entries[0].offender, Some(offender));
        let destination = SocketAddr::new(LOCALHOST.into(), 9);
        assert_eq!(entries[0].destination, Some(destination));
        assert_eq!(entries[0].payload, [7, 7]);
        Ok(())
    })
}

#[test]
fn local_errors_and_time_stamps() -> Outcome {
    isolated(|reader| {
        let far = neighbour(1, &[])?;
        let socket = receiver(Ipv4Addr::UNSPECIFIED)?;
        set(&socket, IPPROTO_IP, IP_RECVERR, 1)?;
        set(
            &socket,
            IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            libc::IP_PMTUDISC_DO,
        )?;
        let refused = socket.send_to(&[0; 3000], local(&far)?).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EMSGSIZE));
        let entries = errors(reader, &socket, 1)?;
        assert_eq!((entries[0].origin, entries[0].info), (1, 1500));
        let destination = entries[0].destination.ok_or("no destination")?;
        assert_eq!(destination.ip(), local(&far)?.ip());
        let flags = libc::SOF_TIMESTAMPING_TX_SOFTWARE | libc::SOF_TIMESTAMPING_OPT_ID;
        set(&socket, SOL_SOCKET, libc::SO_TIMESTAMPING, flags as i32)?;
        for size in [5, 1400] {
            socket.send_to(&vec![3; size], local(&far)?)?;
        }
        let end = Instant::now() + PATIENCE;
        while reader.read(socket.as_fd())?.error_queue < 2 {
            assert!(Instant::now() < end, "no time stamp");
        }
        let entries = reader.error_queue(socket.as_fd())?;
        for (number, size) in [(0, 5), (1, 1400)] {
            let entry = &entries[number];
            assert_eq!((entry.origin, entry.data), (4, number as u32));
            assert_ne!(entry.received_at, 0);
            let message = receive(&socket, libc::MSG_ERRQUEUE)?.ok_or("taken")?;
            assert_eq!(entry.payload, message.data);
            assert!(entry.payload.ends_with(&vec![3; size]));
        }
        Ok(())
    })
}
