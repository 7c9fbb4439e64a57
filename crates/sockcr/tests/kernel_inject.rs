//! What `kernel::inject` puts into a socket is what the application then receives, and nobody else
//! notices. As root, each test in a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/message.rs"]
mod message;
mod support;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sockcr::kernel::inject::{Datagram, Inexact, Injected};
use support::inject::*;
use support::octets::octets;
use support::place::{Device, sysctl};
use support::socket::{self, IP, IPV6, SOCKET, UDP, set, set_int};
use support::{Outcome, skip};

/// What a datagram looks like to its receiver: `spec_dst` and all.
fn check(datagram: &Datagram<'_>, spec: IpAddr, got: &message::Message) {
    assert_eq!(got.name, Some(datagram.source), "{datagram:?}");
    assert!(got.data == datagram.payload, "payload of {datagram:?}");
    let seconds = datagram.received_at / 1_000_000_000;
    let nanos = datagram.received_at % 1_000_000_000;
    let time = [seconds.to_ne_bytes(), nanos.to_ne_bytes()].concat();
    assert_eq!(got.control(SOCKET, SO_TIMESTAMPNS), Some(&time[..]));
    assert_eq!(got.word(SOCKET, SO_MARK, 0), datagram.mark);
    assert_eq!(got.word(IP, IP_TTL, 0), u32::from(datagram.ttl));
    let tos = got.control(IP, IP_TOS).and_then(|tos| tos.first().copied());
    assert_eq!(tos, Some(datagram.tos), "{datagram:?}");
    let destination = octets(datagram.destination.ip());
    let info = match datagram.interface {
        0 => [[0; 4], [0; 4], destination].concat(),
        device => [device.to_ne_bytes(), octets(spec), destination].concat(),
    };
    let told = got.control(IP, IP_PKTINFO);
    match datagram.interface {
        0 => assert_eq!(told.map(|told| &told[..4]), Some(&info[..4])),
        _ => assert_eq!(told, Some(&info[..]), "{datagram:?}"),
    }
    let name = got.control(IP, IP_RECVORIGDSTADDR).unwrap_or_default();
    let port = datagram.destination.port().to_be_bytes();
    assert_eq!(
        name.get(2..8),
        Some(&[&port[..], &destination].concat()[..])
    );
    let options = got.control(IP, IP_RECVOPTS).unwrap_or_default();
    assert_eq!(options, datagram.ip_options);
    assert_eq!(
        got.word(UDP, UDP_GRO, 0),
        u32::from(datagram.segment_size),
        "{datagram:?}"
    );
}

/// One of everything, with the `spec_dst` that IP_PKTINFO will tell.
fn variety<'a>(m0: &Device, m1: &Device, large: &'a [u8]) -> Vec<(Datagram<'a>, IpAddr)> {
    let small = plain(b"small");
    let to = |address, interface| Datagram {
        destination: at(address, PORT),
        interface,
        ..small
    };
    let gone = Ipv4Addr::new(198, 51, 100, 9);
    let subnet = Ipv4Addr::new(10, 9, 0, 255);
    let unicast = [
        small,
        plain(b""),
        plain(large),
        to(m0.address, m0.index),
        to(m0.address, m1.index),
        to(gone, m1.index),
        to(LOCALHOST, m0.index),
        Datagram {
            source: at(ANY, 0),
            mark: u32::MAX,
            ..to(gone, m0.index)
        },
        Datagram {
            source: at(Ipv4Addr::new(169, 254, 1, 2), 0),
            ..to(m0.address, m0.index)
        },
        Datagram {
            source: at(GROUP, 7),
            ttl: 0,
            tos: 0xff,
            ..small
        },
        Datagram {
            source: at(Ipv4Addr::BROADCAST, 65_535),
            ttl: 255,
            ..small
        },
        Datagram {
            source: at(m0.address, PORT),
            destination: at(LOCALHOST, 0),
            ..small
        },
        Datagram {
            payload: large,
            ..to(m0.address, m1.index)
        },
        Datagram {
            received_at: 1,
            ip_options: &[148, 4, 0, 0],
            ..small
        },
        Datagram {
            ip_options: &[1, 7, 7, 8, 127, 0, 0, 1],
            ..small
        },
        Datagram {
            segment_size: 100,
            payload: &large[..3000],
            tos: 0xb8,
            ..small
        },
        Datagram {
            segment_size: 1400,
            payload: &large[..65_000],
            ..to(m0.address, m0.index)
        },
        to(m0.address, 0),
        Datagram {
            payload: b"",
            ..to(GROUP, 0)
        },
    ];
    let spec = |datagram: Datagram<'a>| (datagram, datagram.destination.ip());
    let mut all: Vec<_> = unicast.map(spec).into();
    let many = [
        to(GROUP, m0.index),
        Datagram {
            payload: b"",
            ttl: 1,
            ..to(GROUP, m0.index)
        },
        to(Ipv4Addr::new(224, 0, 0, 251), m0.index),
        Datagram {
            source: at(ANY, 68),
            ..to(Ipv4Addr::BROADCAST, m0.index)
        },
        to(subnet, m0.index),
        Datagram {
            payload: large,
            ..to(GROUP, m0.index)
        },
        Datagram {
            payload: &large[..4000],
            segment_size: 1000,
            ..to(GROUP, m0.index)
        },
    ];
    all.extend(many.map(|datagram| {
        let local = Some(m0.address.into());
        (Datagram { local, ..datagram }, m0.address.into())
    }));
    all
}

#[test]
fn everything_comes_as_it_was() -> Outcome {
    privileged(|| {
        let [m0, m1] = strict()?;
        let capture = Capture::on(&m1)?;
        let others = bystanders(Family::Ipv4, &m0)?;
        let target = talkative()?;
        set_int(&target, SOCKET, SO_REUSEPORT, 1)?;
        set_int(&target, SOCKET, SO_REUSEADDR, 1)?;
        set_int(&target, SOCKET, SO_RCVBUF, 1)?;
        set_int(&target, SOCKET, SO_BINDTOIFINDEX, m0.index as i32)?;
        set_int(&target, SOCKET, SO_INCOMING_CPU, 7)?;
        set_int(&target, IP, IP_LOCAL_PORT_RANGE, 4_001 << 16 | 4_000)?;
        join(&target, m0.index)?;
        let before = socket::sweep(&target);
        let hidden = support::reader()?.read(target.as_fd())?;
        let large = vec![0x5a; 65_507];
        let all = variety(&m0, &m1, &large);
        let datagrams: Vec<_> = all.iter().map(|(datagram, _)| *datagram).collect();
        assert_eq!(inject(target.as_fd(), &datagrams)?, Injected::default());
        let differences = socket::differences(&before, &socket::sweep(&target));
        assert_eq!(differences, Vec::<String>::new());
        let mut now = support::reader()?.read(target.as_fd())?;
        assert_eq!(now.receive_queue as usize, all.len());
        now.receive_queue = hidden.receive_queue;
        assert_eq!(now, hidden);
        socket::bind(&target, (ANY, PORT + 1))?;
        for (datagram, spec) in &all {
            let got = message::receive(&target, 0)?.ok_or("one is missing")?;
            check(datagram, *spec, &got);
        }
        assert_eq!(message::receive(&target, 0)?, None);
        heard_nothing(&others)?;
        assert_eq!(capture.packets()?, Vec::<Vec<u8>>::new());
        Ok(())
    })
}

const IPV6_UNICAST_HOPS: i32 = 52;
const IPV6_PKTINFO: i32 = 50;
const IPV6_TCLASS: i32 = 67;
const IPV6_ORIGDSTADDR: i32 = 74;
const IPV6_FLOWINFO: i32 = 11;

/// What a datagram of IPv6 looks like to its receiver.
fn check6(datagram: &Datagram<'_>, got: &message::Message) {
    let name = got.name.unwrap();
    let plain = SocketAddr::new(name.ip(), name.port());
    assert_eq!(plain, datagram.source, "{datagram:?}");
    if let (SocketAddr::V6(name), IpAddr::V6(source)) = (name, datagram.source.ip()) {
        let scope = match source.is_unicast_link_local() {
            true => datagram.interface,
            false => 0,
        };
        assert_eq!(name.scope_id(), scope, "{datagram:?}");
    }
    assert!(got.data == datagram.payload, "payload of {datagram:?}");
    let seconds = datagram.received_at / 1_000_000_000;
    let nanos = datagram.received_at % 1_000_000_000;
    let time = [seconds.to_ne_bytes(), nanos.to_ne_bytes()].concat();
    assert_eq!(got.control(SOCKET, SO_TIMESTAMPNS), Some(&time[..]));
    assert_eq!(got.word(SOCKET, SO_MARK, 0), datagram.mark);
    assert_eq!(
        got.word(IPV6, IPV6_UNICAST_HOPS, 0),
        u32::from(datagram.ttl)
    );
    assert_eq!(got.word(IPV6, IPV6_TCLASS, 0), u32::from(datagram.tos));
    let flow = u32::from(datagram.tos) << 20 | datagram.flow_label;
    assert_eq!(
        u32::from_be(got.word(IPV6, IPV6_FLOWINFO, 0)),
        flow,
        "{datagram:?}"
    );
    let IpAddr::V6(destination) = datagram.destination.ip() else {
        panic!("{datagram:?}");
    };
    let info = [&destination.octets()[..], &datagram.interface.to_ne_bytes()].concat();
    assert_eq!(
        got.control(IPV6, IPV6_PKTINFO),
        Some(&info[..]),
        "{datagram:?}"
    );
    let to = got.control(IPV6, IPV6_ORIGDSTADDR).unwrap_or_default();
    assert_eq!(
        to.get(2..4),
        Some(&datagram.destination.port().to_be_bytes()[..])
    );
    assert_eq!(to.get(8..24), Some(&destination.octets()[..]));
    let segment = u32::from(datagram.segment_size);
    assert_eq!(got.word(UDP, UDP_GRO, 0), segment, "{datagram:?}");
}

/// One of everything by IPv6.
fn variety6<'a>(m0: &Device, m1: &Device, large: &'a [u8], headers: &'a [u8]) -> Vec<Datagram<'a>> {
    let small = Family::Ipv6.plain(b"small");
    let to = |address: Ipv6Addr, interface| Datagram {
        destination: SocketAddr::new(address.into(), PORT),
        interface,
        ..small
    };
    let from = |address: Ipv6Addr, port| SocketAddr::new(address.into(), port);
    let gone = Ipv6Addr::new(0x2001, 0xdb8, 0, 5, 0, 0, 0, 9);
    let near_group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb);
    let far_group = Ipv6Addr::new(0xff0e, 0, 0, 0, 0, 0, 0, 0x77);
    let link_local = from(Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 2, 3, 4), 0);
    vec![
        small,
        Family::Ipv6.plain(b""),
        Family::Ipv6.plain(large),
        to(m0.address6, m0.index),
        to(m0.address6, m1.index),
        to(m1.link_local, m1.index),
        to(gone, m1.index),
        to(near_group, m0.index),
        to(far_group, m1.index),
        to(near_group, LOOPBACK),
        Datagram {
            source: link_local,
            ..to(m0.link_local, m0.index)
        },
        Datagram {
            source: link_local,
            ..small
        },
        Datagram {
            source: from(Ipv6Addr::UNSPECIFIED, 0),
            mark: u32::MAX,
            ..to(gone, m0.index)
        },
        Datagram {
            source: from(m1.address6, 7),
            ttl: 0,
            tos: 0xff,
            ..small
        },
        Datagram {
            source: from(m0.address6, PORT),
            ttl: 255,
            flow_label: 0xf_ffff,
            ..small
        },
        Datagram {
            payload: large,
            ..to(far_group, m0.index)
        },
        Datagram {
            received_at: 1,
            ip_options: headers,
            ..small
        },
        Datagram {
            ip_options: headers,
            ..to(near_group, m1.index)
        },
        Datagram {
            segment_size: 100,
            payload: &large[..3000],
            tos: 0xb8,
            flow_label: 0x1234,
            ..small
        },
        Datagram {
            segment_size: 1400,
            payload: &large[..65_000],
            ..to(m0.address6, m0.index)
        },
        Datagram {
            segment_size: 1000,
            payload: &large[..4000],
            ..to(far_group, m0.index)
        },
    ]
}

#[test]
fn everything_of_ipv6_comes_as_it_was() -> Outcome {
    privileged(|| {
        let [m0, m1] = strict()?;
        let capture = Capture::on(&m1)?;
        let others = bystanders(Family::Ipv4, &m0)?;
        let target = Family::Ipv6.talkative()?;
        set_int(&target, SOCKET, SO_REUSEPORT, 1)?;
        set_int(&target, SOCKET, SO_RCVBUF, 1)?;
        set_int(&target, SOCKET, SO_BINDTOIFINDEX, m0.index as i32)?;
        set_int(&target, IP, IP_LOCAL_PORT_RANGE, 4_001 << 16 | 4_000)?;
        let before = socket::sweep(&target);
        let hidden = support::reader()?.read(target.as_fd())?;
        let large = vec![0x5a; 65_488];
        // A hop-by-hop header with one option that nobody knows, as long as may be.
        let mut headers = vec![0; 209];
        headers[1..5].copy_from_slice(&[17, 25, 0x1e, 204]);
        let all = variety6(&m0, &m1, &large, &headers);
        assert_eq!(inject(target.as_fd(), &all)?, Injected::default());
        let differences = socket::differences(&before, &socket::sweep(&target));
        assert_eq!(differences, Vec::<String>::new());
        let mut now = support::reader()?.read(target.as_fd())?;
        assert_eq!(now.receive_queue as usize, all.len());
        now.receive_queue = hidden.receive_queue;
        assert_eq!(now, hidden);
        for datagram in &all {
            let got = message::receive(&target, 0)?.ok_or("one is missing")?;
            check6(datagram, &got);
        }
        assert_eq!(message::receive(&target, 0)?, None);
        heard_nothing(&others)?;
        assert_eq!(capture.packets()?, Vec::<Vec<u8>>::new());
        Ok(())
    })
}

#[test]
fn ten_thousand_in_order_and_then_live_ones() -> Outcome {
    privileged(|| FAMILIES.into_iter().try_for_each(ten_thousand))
}

fn ten_thousand(family: Family) -> Outcome {
    let payloads: Vec<Vec<u8>> = (0..10_000_u32)
        .map(|n| n.to_ne_bytes().repeat(n as usize % 50))
        .collect();
    let datagrams = payloads.iter().enumerate().map(|(n, payload)| Datagram {
        source: SocketAddr::new(family.foreign(), n as u16),
        interface: (n % 7 == 0 || family == Family::Ipv6).into(),
        segment_size: if n % 1000 == 999 { 20 } else { 0 },
        ..family.plain(payload)
    });
    let datagrams: Vec<_> = datagrams.collect();
    let target = family.udp()?;
    // Room behind the queue for a live one.
    set_int(&target, SOCKET, SO_RCVBUFFORCE, i32::MAX / 2)?;
    assert_eq!(inject(target.as_fd(), &datagrams)?, Injected::default());
    assert_eq!(socket::local(&target)?, SocketAddr::new(family.any(), 0));
    socket::bind(&target, (family.any(), PORT))?;
    family.send(1001, PORT, b"live")?;
    family.send(1002, PORT, b"from another")?;
    for datagram in &datagrams {
        let got = message::receive(&target, 0)?.ok_or("one is missing")?;
        assert_eq!(got.name, Some(family.told(datagram.source)));
        assert!(got.data == datagram.payload);
    }
    assert_eq!(socket::receive(&target)?, b"live");
    assert_eq!(socket::receive(&target)?, b"from another");
    Ok(())
}

/// What IP_PKTINFO tells of datagrams to a group and to this host.
fn infos(
    target: &OwnedFd,
    by: &Device,
) -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
    const IP_MULTICAST_IF: i32 = 32;
    let mut told = Vec::new();
    for to in [GROUP, LOCALHOST, GROUP] {
        let sender = socket::udp()?;
        let by = [[0; 4], [0; 4], by.index.to_ne_bytes()].concat();
        set(&sender, IP, IP_MULTICAST_IF, &by).map_err(io::Error::from_raw_os_error)?;
        rustix::net::sendto(
            &sender,
            b"later",
            rustix::net::SendFlags::empty(),
            &at(to, PORT),
        )?;
        socket::wait_for(target, rustix::event::PollFlags::IN)?;
        let got = message::receive(target, 0)?.ok_or("nothing")?;
        assert_eq!(got.data, b"later");
        told.push(got.control(IP, IP_PKTINFO).unwrap_or_default().to_vec());
    }
    Ok(told)
}

/// The route that early demux remembers of an injected packet changes nothing of later ones.
#[test]
fn later_datagrams_tell_what_they_would() -> Outcome {
    privileged(|| {
        let [m0, m1] = strict()?;
        for of in ["all", "m0", "m1"] {
            sysctl(&format!("net.ipv4.conf.{of}.rp_filter"), "0")?;
            sysctl(&format!("net.ipv4.conf.{of}.accept_local"), "1")?;
        }
        let group = Datagram {
            destination: at(GROUP, PORT),
            interface: m0.index,
            ..plain(b"group")
        };
        let mut told = Vec::new();
        for queue in [
            vec![],
            vec![plain(b"single"), group],
            vec![group, plain(b"single")],
        ] {
            let target = talkative()?;
            join(&target, m0.index)?;
            inject(target.as_fd(), &queue)?;
            socket::bind(&target, (ANY, PORT))?;
            for _ in &queue {
                socket::receive(&target)?;
            }
            told.push(infos(&target, &m1)?);
        }
        let untouched = told.first().cloned().unwrap_or_default();
        assert!(told.iter().all(|infos| *infos == untouched), "{told:?}");
        let peer = socket::bound((LOCALHOST, 0))?;
        let target = talkative()?;
        inject(target.as_fd(), &[plain(b"queued"), group])?;
        socket::bind(&target, (LOCALHOST, PORT))?;
        let name = socket::local(&peer)?;
        socket::connect(&target, (name.ip(), name.port()))?;
        rustix::net::sendto(
            &peer,
            b"live",
            rustix::net::SendFlags::empty(),
            &at(LOCALHOST, PORT),
        )?;
        for wanted in [&b"queued"[..], b"group", b"live"] {
            assert_eq!(socket::receive(&target)?, wanted);
        }
        Ok(())
    })
}

#[test]
fn what_cannot_be_exact_is_told() -> Outcome {
    privileged(|| {
        let target = talkative()?;
        let datagrams = [
            Datagram {
                interface: 77,
                ..plain(b"gone")
            },
            Datagram {
                interface: 77,
                destination: at(GROUP, PORT),
                ..plain(b"gone")
            },
            Datagram {
                segment_size: 9,
                ..plain(b"one")
            },
            Datagram {
                ip_options: &[68, 8, 5, 0, 0, 0, 0, 0],
                ..plain(b"time")
            },
            plain(b"exact"),
        ];
        let injected = inject(target.as_fd(), &datagrams)?;
        let lost = [
            (0, Inexact::Interface),
            (1, Inexact::Interface),
            (2, Inexact::SegmentSize),
            (3, Inexact::Options),
        ];
        assert_eq!(injected.inexact, lost);
        for datagram in &datagrams {
            let got = message::receive(&target, 0)?.ok_or("one is missing")?;
            assert_eq!(got.data, datagram.payload);
            assert_eq!(got.name, Some(datagram.source));
            let device = if datagram.interface == 77 {
                0
            } else {
                LOOPBACK
            };
            assert_eq!(got.word(IP, IP_PKTINFO, 0), device);
        }
        let long = vec![0; 65_508];
        let error = inject(target.as_fd(), &[plain(&long)]).map_err(|error| error.kind());
        assert_eq!(error, Err(io::ErrorKind::InvalidInput));
        assert_eq!(socket::local(&target)?, at(ANY, 0));
        Ok(())
    })
}

/// A flood to every port that the socket could get meanwhile never comes into the queue.
#[test]
fn nobody_else_comes_in() -> Outcome {
    privileged(|| {
        sysctl("net.ipv4.ip_local_port_range", "40000 40007")?;
        FAMILIES.into_iter().try_for_each(flooded)
    })
}

fn flooded(family: Family) -> Outcome {
    const PORTS: std::ops::RangeInclusive<u16> = 40_000..=40_007;
    let stop = AtomicBool::new(false);
    let sender = match family {
        Family::Ipv6 => family.udp()?,
        Family::Ipv4 | Family::Dual => socket::udp()?,
    };
    socket::bind(&sender, (family.here(), 39_999))?;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for port in PORTS {
                    let flags = rustix::net::SendFlags::empty();
                    let _ = rustix::net::sendto(
                        &sender,
                        b"no",
                        flags,
                        &SocketAddr::new(family.here(), port),
                    );
                }
            }
        });
        let _stop = Stop(&stop);
        (0..100).try_for_each(|_| {
            let target = family.udp()?;
            inject(target.as_fd(), &[family.plain(b"x"); 20])?;
            assert_eq!(socket::receive_now(&target)?, vec![b"x"; 20]);
            Ok(())
        })
    })
}

/// Ends the flood, also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_bound_socket_is_refused() -> Outcome {
    privileged(|| {
        let target = socket::bound((LOCALHOST, PORT))?;
        let refused = inject(target.as_fd(), &[plain(b"x")]).map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::InvalidInput));
        Ok(())
    })
}

#[test]
fn what_is_dropped_is_noticed() -> Outcome {
    privileged(|| {
        let from = "203.0.113.8/32";
        let words = [
            "xfrm",
            "policy",
            "add",
            "src",
            from,
            "dst",
            "0.0.0.0/0",
            "dir",
            "in",
            "action",
            "block",
        ];
        if !Command::new("ip")
            .args(words)
            .status()
            .is_ok_and(|done| done.success())
        {
            return skip("no IPsec policies here");
        }
        sysctl("net.ipv4.conf.lo.disable_policy", "0")?;
        let target = socket::udp()?;
        let mut datagrams = [plain(b"x"); 5];
        datagrams[2].source = at(Ipv4Addr::new(203, 0, 113, 8), 53);
        let error = inject(target.as_fd(), &datagrams).err();
        let error = error.ok_or("nothing was noticed")?.to_string();
        assert!(
            error.contains("1 datagram was dropped, and those behind were not sent, at the socket"),
            "{error}"
        );
        Ok(())
    })
}
