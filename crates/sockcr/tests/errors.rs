//! Errors travel: an application that asks the restored socket is told what the original would have
//! told it.
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

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use feed::Told;
use message::{Message, send};
use rustix::event::PollFlags;
use sockcr::kernel::ErrorEntry;
use sockcr::state::errors::Errors;
use sockcr::{Checkpoint, RestoreOptions};
use support::inject::{FAMILIES, Family, PATIENCE, privileged, talkative};
use support::place::{devices, sysctl};
use support::socket::{self, IP, IPV6, SOCKET, set_int};
use support::twin::{exactly, identical, lossy};
use support::{Outcome, reader};

type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const M0: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SO_REUSEADDR: i32 = 2;
const SO_ERROR: i32 = 4;
const SO_SNDBUFFORCE: i32 = 32;
const SO_MARK: i32 = 36;
const SO_TIMESTAMPING: i32 = 37;
const IP_OPTIONS: i32 = 4;
const IP_MTU_DISCOVER: i32 = 10;
const IP_RECVERR: i32 = 11;
const IP_RECVERR_RFC4884: i32 = 26;
const IPV6_MTU_DISCOVER: i32 = 23;
const IPV6_RECVERR: i32 = 25;
const IPV6_RECVERR_RFC4884: i32 = 31;
const IPV6_DSTOPTS: i32 = 59;
const PORT: u16 = 4100;
const UNREACHABLE: u8 = 3;

/// A socket that wants to know everything, of always the same port: a child of another test may
/// hold the last one for a moment.
fn wanting() -> Fallible<OwnedFd> {
    let socket = of(Family::Ipv4)?;
    socket::bind(&socket, (HERE, PORT))?;
    Ok(socket)
}

/// The same, not yet bound.
fn of(family: Family) -> Fallible<OwnedFd> {
    let socket = family.talkative()?;
    set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
    recverr(&socket, family, true)?;
    Ok(socket)
}

fn recverr(socket: &OwnedFd, family: Family, on: bool) -> io::Result<()> {
    match family {
        Family::Ipv4 | Family::Dual => set_int(socket, IP, IP_RECVERR, on.into()),
        Family::Ipv6 => set_int(socket, IPV6, IPV6_RECVERR, on.into()),
    }
}

/// An entry as of an ICMP message.
fn entry(kind: u8, code: u8, error: i32) -> ErrorEntry {
    ErrorEntry {
        error,
        origin: 2,
        kind,
        code,
        info: 0,
        data: 0,
        statistics: false,
        offender: Some(SocketAddr::new(HERE.into(), 0)),
        destination: Some(SocketAddr::new(HERE.into(), 9)),
        received_at: 1,
        ttl: 64,
        tos: 0,
        flow_label: 0,
        local: HERE.into(),
        rest: [0; 4],
        interface: 0,
        payload: Vec::new(),
    }
}

/// Tells the socket, and waits until it knows.
fn tell(socket: &OwnedFd, all: &[Told]) -> Outcome {
    for (told, ttl) in all.iter().zip(50..) {
        let before = reader()?.read(socket.as_fd())?.error_queue;
        told.tell(SocketAddr::new(HERE.into(), PORT), ttl)?;
        let end = std::time::Instant::now() + PATIENCE;
        while reader()?.read(socket.as_fd())?.error_queue == before {
            assert!(std::time::Instant::now() < end, "never came");
        }
    }
    Ok(())
}

/// What the application is told: SO_ERROR, if it asks first, and each entry with SO_ERROR after it.
fn asked(socket: &OwnedFd, first: bool) -> Fallible<(i32, Vec<(Message, i32)>)> {
    let error = match first {
        true => socket::get_int(socket, SOCKET, SO_ERROR)?,
        false => 0,
    };
    let stamped = reader()?.error_queue(socket.as_fd())?.into_iter();
    let mut stamped = stamped.map(|entry| entry.received_at != 0);
    let mut all = Vec::new();
    while let Some(mut message) = message::receive(socket, libc::MSG_ERRQUEUE)? {
        // Of one without a time the kernel tells that of asking.
        if stamped.next() == Some(false) {
            message.controls.retain(|control| control.0 != SOCKET);
        }
        all.push((message, socket::get_int(socket, SOCKET, SO_ERROR)?));
    }
    match first {
        true => Ok((error, all)),
        false => Ok((socket::get_int(socket, SOCKET, SO_ERROR)?, all)),
    }
}

/// Two originals and their checkpoint, restored twice: each is asked in one order.
fn compare(make: impl Fn() -> Fallible<OwnedFd>) -> Outcome {
    for first in [false, true] {
        let socket = make()?;
        let checkpoint = Checkpoint::dump(&socket)?;
        assert!(checkpoint.report.is_exact(), "{:?}", checkpoint.report);
        assert!(
            Checkpoint::dump(&socket)? == checkpoint,
            "a dump changes it"
        );
        let wanted = asked(&socket, first)?;
        assert!(wanted.0 != 0 || !wanted.1.is_empty(), "nothing to tell");
        drop(socket);
        let image = checkpoint.to_bytes()?;
        let again = Checkpoint::from_bytes(&image)?;
        assert_eq!(again, checkpoint);
        let json = sockcr::json::to_json(std::slice::from_ref(&again)).to_string();
        assert!(sockcr::json::from_json(&json)? == [again.clone()]);
        let restored = again.restore(&exactly())?.fd;
        let now = Checkpoint::dump(&restored)?.canonical();
        let wished = checkpoint.canonical();
        assert_eq!(sockcr::diff::diff(&wished, &now), []);
        assert!(now.to_bytes()? == wished.to_bytes()?);
        assert_eq!(asked(&restored, first)?, wanted);
    }
    Ok(())
}

#[test]
fn a_refused_datagram() -> Outcome {
    privileged(|| {
        let ways = [(true, true), (true, false), (false, true)];
        for (family, (connects, queues)) in FAMILIES.into_iter().flat_map(|f| ways.map(|w| (f, w)))
        {
            compare(|| {
                let socket = of(family)?;
                let here = SocketAddr::new(family.here(), 9);
                socket::bind(&socket, (family.any(), PORT))?;
                recverr(&socket, family, queues)?;
                if connects {
                    socket::connect_to(&socket, family.told(here))?;
                }
                send(&socket, here, b"anybody?", &[], 0)?;
                socket::wait_for(&socket, PollFlags::ERR)?;
                Ok(socket)
            })?;
        }
        Ok(())
    })
}

/// A socket of IPv6 hears everybody still when its errors were made.
#[test]
fn nobody_is_unheard_afterwards() -> Outcome {
    privileged(|| {
        let [one, other] = devices()?;
        let all = [
            (
                Family::Ipv6,
                [Ipv6Addr::LOCALHOST, one.address6, other.address6].map(IpAddr::V6),
            ),
            (
                Family::Dual,
                [HERE, one.address, other.address].map(IpAddr::V4),
            ),
        ];
        for (family, addresses) in all {
            let socket = of(family)?;
            socket::bind(&socket, (family.any(), PORT))?;
            let here = SocketAddr::new(family.here(), 9);
            send(&socket, here, b"anybody?", &[], 0)?;
            socket::wait_for(&socket, PollFlags::ERR)?;
            let restored = identical(socket);
            let error = socket::get_int(&restored, SOCKET, SO_ERROR)?;
            assert_eq!(error, libc::ECONNREFUSED);
            for address in addresses {
                let sender = match family {
                    Family::Dual => socket::udp()?,
                    Family::Ipv4 | Family::Ipv6 => Family::Ipv6.udp()?,
                };
                socket::bind(&sender, (address, 0))?;
                send(
                    &sender,
                    SocketAddr::new(family.here(), PORT),
                    b"heard",
                    &[],
                    0,
                )?;
                assert_eq!(socket::receive(&restored)?, b"heard", "{address}");
            }
        }
        Ok(())
    })
}

/// An ICMPv6 message from and to an address of this host, about a datagram that the socket sent from it.
fn tell6(
    socket: &OwnedFd,
    at: Ipv6Addr,
    hops: i32,
    [kind, code]: [u8; 2],
    rest: [u8; 4],
    quoted: &[u8],
) -> Outcome {
    const HOPS: i32 = 16;
    const TCLASS: i32 = 67;
    let before = reader()?.read(socket.as_fd())?.error_queue;
    let about = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    let mut message = [&[kind, code, 0, 0][..], &rest].concat();
    let length = (8 + quoted.len()) as u16;
    message.extend([&[0x60, 0, 0, 0][..], &length.to_be_bytes(), &[17, 64]].concat());
    message.extend([at.octets(), about.octets()].concat());
    for word in [PORT, 9, length, 0] {
        message.extend(word.to_be_bytes());
    }
    message.extend(quoted);
    let raw = feed::raw_of(rustix::net::AddressFamily::INET6, 58)?;
    set_int(&raw, IPV6, HOPS, hops)?;
    set_int(&raw, IPV6, TCLASS, hops)?;
    send(&raw, SocketAddr::new(at.into(), 0), &message, &[], 0)?;
    let end = std::time::Instant::now() + PATIENCE;
    while reader()?.read(socket.as_fd())?.error_queue == before {
        assert!(std::time::Instant::now() < end, "never came");
    }
    Ok(())
}

/// Messages of every kind of ICMPv6 that becomes an error.
fn of_every_kind6() -> Vec<([u8; 2], [u8; 4], usize)> {
    let mut all: Vec<_> = (0..8).map(|code| ([1, code], [0; 4], 8)).collect();
    all.extend([0, 1].map(|code| ([3, code], [0; 4], 0)));
    all.extend([0, 1, 2].map(|code| ([4, code], [0, 0, 0, 40], 1)));
    all.extend([501, 1000, 9000].map(|size| ([1, 4], [0; 4], size)));
    all
}

#[test]
fn messages_of_every_kind_of_ipv6() -> Outcome {
    privileged(|| {
        let [device, _] = devices()?;
        for at in [Ipv6Addr::LOCALHOST, device.address6] {
            let make = |kinds: &[([u8; 2], [u8; 4], usize)]| {
                let socket = of(Family::Ipv6)?;
                socket::bind(&socket, (Family::Ipv6.any(), PORT))?;
                for ((kind, rest, size), hops) in kinds.iter().zip(50..) {
                    tell6(&socket, at, hops, *kind, *rest, &vec![7; *size])?;
                }
                Ok(socket)
            };
            compare(|| make(&of_every_kind6()))?;
            for one in of_every_kind6() {
                compare(|| make(&[one]))?;
            }
        }
        // Too big, by the loopback device: nothing that this host knows of a path becomes otherwise.
        compare(|| {
            let socket = of(Family::Ipv6)?;
            socket::bind(&socket, (Family::Ipv6.any(), PORT))?;
            tell6(
                &socket,
                Ipv6Addr::LOCALHOST,
                64,
                [2, 0],
                1300_u32.to_be_bytes(),
                &[1; 100],
            )?;
            Ok(socket)
        })?;
        let routes = std::process::Command::new("ip")
            .args(["-6", "route", "show", "cache"])
            .output()?;
        assert_eq!(String::from_utf8(routes.stdout)?, "");
        Ok(())
    })
}

/// By a device, to whose address it came: its way is told, and the MTU of no path changes.
#[test]
fn too_big_by_a_device() -> Outcome {
    privileged(|| {
        let [device, _] = devices()?;
        let ip = |arguments: &str| {
            let output = std::process::Command::new("ip")
                .args(arguments.split(' '))
                .output()?;
            assert!(output.status.success(), "{arguments}: {output:?}");
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(String::from_utf8(output.stdout)?)
        };
        ip("-6 route add 2001:db8::/32 dev m0")?;
        let make = || {
            let socket = of(Family::Ipv6)?;
            set_int(&socket, SOCKET, SO_MARK, 5)?;
            socket::bind(&socket, (Family::Ipv6.any(), PORT))?;
            for kind in [2, 1] {
                let rest = 1300_u32.to_be_bytes();
                tell6(&socket, device.address6, 64, [kind, 0], rest, &[1; 100])?;
            }
            Ok(socket)
        };
        // It is known here since the original heard of it.
        compare(make)?;
        assert!(ip("-6 route show cache")?.contains("mtu 1300"));
        let checkpoint = Checkpoint::dump(&make()?)?;
        ip("-6 route del 2001:db8::/32 dev m0")?;
        ip("-6 route add 2001:db8::/32 dev m0")?;
        assert_eq!(ip("-6 route show cache")?, "");
        let refused = checkpoint.restore(&exactly()).unwrap_err().to_string();
        assert!(refused.contains("the path"), "{refused}");
        let restored = checkpoint.restore(&lossy())?;
        assert_eq!(
            restored.report.not_carried.len(),
            1,
            "{:?}",
            restored.report
        );
        let mut errors = checkpoint.errors.clone();
        errors.queue[0].interface = 1;
        let mut now = Checkpoint::dump(&restored.fd)?;
        now.errors.queue[1].interface = errors.queue[1].interface;
        assert_eq!(now.errors, errors);
        assert_eq!(ip("-6 route show cache")?, "");
        // Where nothing leads there, it changes nothing.
        ip("-6 route del 2001:db8::/32 dev m0")?;
        drop(restored);
        checkpoint.restore(&exactly())?;
        Ok(())
    })
}

#[test]
fn extensions_of_a_message_of_ipv6() -> Outcome {
    privileged(|| {
        let object = [0x20, 0, 0xdf, 0xff - 0x0c, 0, 8, 1, 1, 0, 0, 0, 3];
        let quoted = [&[7; 80][..], &object].concat();
        compare(|| {
            let socket = of(Family::Ipv6)?;
            set_int(&socket, IPV6, IPV6_RECVERR_RFC4884, 1)?;
            socket::bind(&socket, (Family::Ipv6.any(), PORT))?;
            tell6(
                &socket,
                Ipv6Addr::LOCALHOST,
                64,
                [3, 0],
                [16, 0, 0, 0],
                &quoted,
            )?;
            tell6(&socket, Ipv6Addr::LOCALHOST, 64, [3, 0], [0; 4], &[])?;
            Ok(socket)
        })
    })
}

#[test]
fn too_large_for_the_route_of_ipv6() -> Outcome {
    privileged(|| {
        let [device, _] = devices()?;
        let mut near = device.address6.segments();
        near[7] = 0x77;
        let near = SocketAddr::new(Ipv6Addr::from(near).into(), 9);
        let here = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 9);
        let near4 = SocketAddr::new(Ipv4Addr::new(10, 9, 0, 77).into(), 9);
        let padding = [0, 0, 1, 4, 0, 0, 0, 0];
        for (family, to, pieces, before) in [
            (Family::Ipv6, near, &[3000][..], &[][..]),
            (Family::Ipv6, near, &[3000], &padding),
            (Family::Ipv6, here, &[65_507, 100], &[]),
            (Family::Dual, near4, &[3000], &[]),
        ] {
            compare(|| {
                let socket = of(family)?;
                set_int(&socket, SOCKET, SO_SNDBUFFORCE, 1 << 20)?;
                set_int(&socket, IP, IP_MTU_DISCOVER, 2)?;
                set_int(&socket, IPV6, IPV6_MTU_DISCOVER, 2)?;
                socket::bind(&socket, (family.any(), PORT))?;
                let header = |bytes: &[u8]| {
                    socket::set(&socket, IPV6, IPV6_DSTOPTS, bytes)
                        .map_err(io::Error::from_raw_os_error)
                };
                header(before)?;
                let sent = pieces
                    .iter()
                    .try_for_each(|size| send(&socket, to, &vec![0; *size], &[], libc::MSG_MORE));
                assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
                // What comes later changes nothing.
                header(if before.is_empty() { &padding } else { &[] })?;
                Ok(socket)
            })?;
        }
        Ok(())
    })
}

/// Messages of every kind that becomes an error.
fn of_every_kind() -> Vec<Told> {
    let codes = [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut all: Vec<Told> = codes.map(|code| Told::new(UNREACHABLE, code)).into();
    all.push(Told {
        rest: [0, 0, 5, 100],
        ..Told::new(UNREACHABLE, 4)
    });
    all.push(Told::new(11, 0));
    all.push(Told {
        rest: [20, 0, 0, 0],
        ..Told::new(12, 0)
    });
    for size in [0, 1, 8, 501, 1000, 9000] {
        all.push(Told {
            quoted: (0..size).map(|byte| byte as u8).collect(),
            ..Told::new(UNREACHABLE, 1)
        });
    }
    all
}

#[test]
fn messages_of_every_kind() -> Outcome {
    privileged(|| {
        compare(|| {
            let socket = wanting()?;
            tell(&socket, &of_every_kind())?;
            Ok(socket)
        })?;
        for told in of_every_kind() {
            compare(|| {
                let socket = wanting()?;
                tell(&socket, std::slice::from_ref(&told))?;
                Ok(socket)
            })?;
        }
        Ok(())
    })
}

#[test]
fn extensions_of_a_message() -> Outcome {
    privileged(|| {
        let quoted = |extension: &[u8]| {
            let mut quoted = vec![7; 100];
            quoted.extend(extension);
            quoted
        };
        let object = [0x20, 0, 0xdf, 0xff - 0x0c, 0, 8, 1, 1, 0, 0, 0, 3];
        compare(|| {
            let socket = wanting()?;
            set_int(&socket, IP, IP_RECVERR_RFC4884, 1)?;
            let all = [
                Told {
                    rest: [0, 32, 0, 0],
                    quoted: quoted(&object),
                    ..Told::new(11, 0)
                },
                Told::new(11, 0),
            ];
            tell(&socket, &all)?;
            Ok(socket)
        })
    })
}

/// What SO_ERROR tells may be the last error, an earlier one, or none of those that wait.
#[test]
fn the_pending_error_is_another_one() -> Outcome {
    privileged(|| {
        let all = || {
            [
                Told::new(UNREACHABLE, 1),
                Told::new(UNREACHABLE, 3),
                Told::new(12, 0),
            ]
        };
        compare(|| {
            let socket = wanting()?;
            tell(&socket, &all())?;
            socket::get_int(&socket, SOCKET, SO_ERROR)?;
            Ok(socket)
        })?;
        compare(|| {
            let socket = wanting()?;
            tell(&socket, &all())?;
            message::receive(&socket, libc::MSG_ERRQUEUE)?;
            Ok(socket)
        })?;
        compare(|| {
            let socket = wanting()?;
            tell(&socket, &all()[2..])?;
            set_int(&socket, IP, IP_RECVERR, 0)?;
            Ok(socket)
        })
    })
}

#[test]
fn too_large_for_the_route() -> Outcome {
    privileged(|| {
        devices()?;
        sysctl("net.ipv4.conf.all.rp_filter", "0")?;
        let to = SocketAddr::new(Ipv4Addr::new(10, 9, 0, 77).into(), 9);
        let anywhere = SocketAddr::new(HERE.into(), 9);
        let group = SocketAddr::new(Ipv4Addr::new(239, 7, 7, 7).into(), 9);
        for (to, pieces, options) in [
            (group, &[3000][..], &[][..]),
            (to, &[3000][..], &[][..]),
            (to, &[3000], &[1, 1, 1, 0]),
            (anywhere, &[65_507, 1], &[]),
        ] {
            compare(|| {
                let socket = talkative()?;
                set_int(&socket, SOCKET, SO_REUSEADDR, 1)?;
                set_int(&socket, SOCKET, SO_SNDBUFFORCE, 1 << 20)?;
                set_int(&socket, IP, IP_RECVERR, 1)?;
                set_int(&socket, IP, IP_MTU_DISCOVER, 2)?;
                socket::set(&socket, IP, IP_OPTIONS, options)
                    .map_err(io::Error::from_raw_os_error)?;
                // The address chooses the device of what goes to a group.
                socket::bind(&socket, (if to == group { M0 } else { ANY }, PORT))?;
                let sent = pieces
                    .iter()
                    .try_for_each(|size| send(&socket, to, &vec![0; *size], &[], libc::MSG_MORE));
                assert_eq!(sent.unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
                socket::set(&socket, IP, IP_OPTIONS, &[1, 1, 1, 1, 1, 1, 1, 0])
                    .map_err(io::Error::from_raw_os_error)?;
                Ok(socket)
            })?;
        }
        // The route that it was about is another one here.
        let socket = wanting()?;
        let mut checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        checkpoint.errors.queue.push(ErrorEntry {
            origin: 1,
            info: 1400,
            offender: None,
            destination: Some(to),
            received_at: 0,
            ttl: 0,
            local: Ipv4Addr::UNSPECIFIED.into(),
            ..entry(0, 0, libc::EMSGSIZE)
        });
        let refused = checkpoint.restore(&exactly()).unwrap_err().to_string();
        assert!(refused.contains("an MTU of 1400 became 1500"), "{refused}");
        Ok(())
    })
}

#[test]
fn with_a_queue_a_cork_and_a_group() -> Outcome {
    privileged(|| {
        compare(|| {
            let socket = wanting()?;
            send(
                &socket::udp()?,
                SocketAddr::new(HERE.into(), PORT),
                b"heard",
                &[],
                0,
            )?;
            send(
                &socket,
                SocketAddr::new(HERE.into(), 9),
                b"said",
                &[],
                libc::MSG_MORE,
            )?;
            tell(&socket, &of_every_kind()[..4])?;
            Ok(socket)
        })
    })
}

#[test]
fn a_transmit_time_stamp_is_named() -> Outcome {
    privileged(|| {
        let socket = wanting()?;
        let receiver = socket::bound((HERE, 9))?;
        set_int(&socket, SOCKET, SO_TIMESTAMPING, 1 << 1 | 1 << 4)?;
        send(&socket, SocketAddr::new(HERE.into(), 9), b"stamped", &[], 0)?;
        socket::receive(&receiver)?;
        socket::wait_for(&socket, PollFlags::ERR)?;
        tell(&socket, &[Told::new(UNREACHABLE, 1)])?;
        let checkpoint = Checkpoint::dump(&socket)?;
        let notes: Vec<String> = checkpoint
            .report
            .not_carried
            .iter()
            .map(|n| n.to_string())
            .collect();
        assert_eq!(notes, ["error queue: 1 transmit time stamp"]);
        assert_eq!(checkpoint.errors.queue.len(), 1);
        drop(socket);
        assert!(checkpoint.restore(&exactly()).is_err());
        let restored = checkpoint.restore(&lossy())?;
        let mut notes = restored.report.not_carried;
        notes.retain(|note| !note.what.contains("OPT_STATS"));
        assert_eq!(notes, checkpoint.report.not_carried);
        assert_eq!(asked(&restored.fd, false)?.1.len(), 1);
        Ok(())
    })
}

/// A stranger's checkpoint: what it says is done is told when it is not.
#[test]
fn errors_that_cannot_be_made_are_named() -> Outcome {
    privileged(|| {
        let fresh = Checkpoint::dump(&wanting()?)?;
        for (what, errors) in [
            (
                "pending error",
                Errors {
                    pending: libc::EIO,
                    queue: Vec::new(),
                },
            ),
            (
                "pending error",
                Errors {
                    pending: -7,
                    queue: Vec::new(),
                },
            ),
            (
                "error queue",
                Errors {
                    pending: 0,
                    queue: vec![entry(3, 1, libc::EIO)],
                },
            ),
            (
                "error queue",
                Errors {
                    pending: 0,
                    queue: vec![entry(3, 200, libc::EIO)],
                },
            ),
            (
                "error queue",
                Errors {
                    pending: 0,
                    queue: vec![entry(8, 0, libc::EIO)],
                },
            ),
            (
                "error queue",
                Errors {
                    pending: 0,
                    queue: vec![entry(5, 0, libc::EIO)],
                },
            ),
        ] {
            let checkpoint = Checkpoint {
                errors,
                ..fresh.clone()
            };
            let started = std::time::Instant::now();
            let refused = checkpoint.restore(&RestoreOptions::default());
            let refused = refused.expect_err("made").to_string();
            assert!(refused.contains(what), "{refused}");
            assert!(started.elapsed() < PATIENCE);
        }
        Ok(())
    })
}

#[test]
fn no_image_holds_a_message_that_would_do_something() -> io::Result<()> {
    let mut checkpoint = Checkpoint::dump(&socket::udp()?).map_err(io::Error::other)?;
    for kind in 0..=u8::MAX {
        checkpoint.errors.queue = vec![entry(kind, 0, libc::EHOSTUNREACH)];
        let image = checkpoint.to_bytes().map_err(io::Error::other)?;
        let read = Checkpoint::from_bytes(&image);
        assert_eq!(read.is_ok(), [3, 11, 12].contains(&kind), "{kind}");
    }
    Ok(())
}
