//! What sockets do: each thing is tried on an untouched socket and on a restored one, by the same
//! function, and must come out the same. Addresses, traffic, filters.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use sockcr::{Checkpoint, ErrorKind, Mapping, RestoreOptions};

use support::place::{self, isolated};
use support::socket::{self, IP, Instruction, SOCKET, instruction, set_int, udp};
use support::twin::{
    ANY, GROUP, HERE, HERES, IP_ADD_MEMBERSHIP, IP_RECVTTL, IP_TTL, PORT, SO_BROADCAST,
    SO_REUSEADDR, SO_REUSEPORT, WAYS, change_group, exactly, fresh_for, made, restored, same,
    send_to, to, with,
};
use support::{Outcome, reader, skip};

const SO_RCVTIMEO: i32 = 20;
const IP_TOS: i32 = 1;
const IP_RECVTOS: i32 = 13;

/// Each way to an address, at each kind of address.
fn everywhere() -> impl Iterator<Item = (IpAddr, &'static str)> {
    let all = HERES.into_iter();
    all.flat_map(|here| WAYS.into_iter().map(move |way| (here, way)))
}

/// An IPv6 socket that was disconnected hears only its former peer, until it is connected again.
#[test]
fn a_disconnected_socket_hears_its_former_peer() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        let (any, here) = (Ipv6Addr::UNSPECIFIED, Ipv6Addr::LOCALHOST);
        let gone = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
        let [device, _] = place::devices()?;
        for (peer, heard) in [
            (IpAddr::V6(here), [true, false, true]),
            (device.address6.into(), [false, true, true]),
            // Nothing that speaks IPv4 is asked for it.
            (HERE.to_ipv6_mapped().into(), [false, false, true]),
        ] {
            let make = || {
                let socket = fresh_for(peer);
                socket::connect(&socket, (peer, 9)).unwrap();
                rustix::net::connect_unspec(&socket).unwrap();
                socket::bind(&socket, (any, PORT)).unwrap();
                socket
            };
            let all = same(make, |socket| {
                let from = [IpAddr::V6(here), device.address6.into(), HERE.into()];
                from.map(|from| {
                    let sender = with((from, 0), &[]);
                    let to: IpAddr = if from.is_ipv4() {
                        HERE.into()
                    } else {
                        here.into()
                    };
                    send_to(&sender, b"heard?", to, PORT).unwrap();
                    !socket::receive_now(socket).unwrap().is_empty()
                })
            });
            assert_eq!(all, heard, "{peer}");
        }
        // To where no route leads any more.
        let mut checkpoint = Checkpoint::dump(&with((any, PORT), &[]))?;
        checkpoint.endpoint.heard = Some(gone.into());
        let restored = checkpoint.restore(&exactly())?;
        assert_eq!(
            Checkpoint::dump(&restored.fd)?.endpoint.heard,
            Some(gone.into())
        );
        Ok(())
    })
}

#[test]
fn disconnecting_leaves_the_same_address() -> Outcome {
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        for (here, way) in everywhere() {
            // So that nothing sent is answered with an error.
            let _receiver = with((here, 9), &[]);
            let left = same(
                || made(way, here),
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
            println!("{here} {way}: {left:?}");
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
        for (here, way) in everywhere() {
            // So that nothing sent is answered with an error.
            let _receiver = with((here, 9), &[]);
            let original = made(way, here);
            let (local, peer) = (socket::local(&original)?, socket::peer(&original));
            let twin = restored(original);
            assert_eq!(
                (socket::local(&twin)?, socket::peer(&twin)),
                (local, peer),
                "{here} {way}"
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
    isolated(|| HERES.into_iter().try_for_each(hears_only_its_peer))
}

fn hears_only_its_peer(here: IpAddr) -> Outcome {
    let make = || {
        let socket = with((here, PORT), &[]);
        socket::connect(&socket, (here, 9)).unwrap();
        socket
    };
    let heard = same(make, |socket| {
        let (stranger, peer) = (with((here, 10), &[]), with((here, 9), &[]));
        let refused = send_to(&stranger, b"stranger", here, PORT);
        send_to(&peer, b"peer", here, PORT).unwrap();
        send(socket, b"back", SendFlags::empty()).unwrap();
        (
            refused.is_ok(),
            socket::receive(socket).unwrap(),
            socket::receive(&peer).unwrap(),
        )
    });
    assert_eq!(heard, (true, b"peer".to_vec(), b"back".to_vec()));
    Ok(())
}

#[test]
fn a_port_is_not_opened_to_others() -> Outcome {
    isolated(|| {
        let ways = [
            "address and port",
            "address, port 0",
            "any address and port, connected",
        ];
        for (here, way) in everywhere().filter(|(_, way)| ways.contains(way)) {
            let _receiver = with((here, 9), &[]);
            let refused = same(
                || made(way, here),
                |socket| {
                    let local = socket::local(socket).unwrap();
                    [0, SO_REUSEADDR, SO_REUSEPORT].map(|option| {
                        let other = fresh_for(here);
                        if option != 0 {
                            set_int(&other, SOCKET, option, 1).unwrap();
                        }
                        socket::bind(&other, (here, local.port())).map_err(|error| error.kind())
                    })
                },
            );
            assert_eq!(refused, [Err(io::ErrorKind::AddrInUse); 3], "{here} {way}");
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
    isolated(|| HERES.into_iter().try_for_each(no_stranger))
}

fn no_stranger(here: IpAddr) -> Outcome {
    let checkpoint = Checkpoint::dump(&made("any address and port, connected", here))?;
    let stranger = with((here, 10), &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..ROUNDS).cycle() {
                // Refused while nobody is bound there.
                let _ = send_to(&stranger, b"stranger", here, PORT + at);
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        // Another port each round: a closed one may be held by whoever looks at this process.
        let heard = (0..ROUNDS * 50).map(|round| {
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
            (before.ip(), socket::local(socket).unwrap())
        });
        assert_eq!(seen, (other.address.into(), to(ANY, 0)));
        Ok(())
    })
}

/// The device of a link-local address is that of the socket, which may be another one later, or none.
#[test]
fn a_link_local_address_stays_without_its_device() -> Outcome {
    const SO_BINDTOIFINDEX: i32 = 62;
    if let Err(why) = reader() {
        return skip(&why);
    }
    isolated(|| {
        let [m0, m1] = place::devices()?;
        let near = |address: Ipv6Addr| SocketAddrV6::new(address, PORT, 0, m0.index).into();
        for device in [m0.index, m1.index, 0] {
            for address in [m0.link_local, "ff02::77".parse()?] {
                for connects in [false, true] {
                    let socket = fresh_for(address.into());
                    socket::bind_to(&socket, near(address))?;
                    if connects {
                        socket::connect_to(&socket, near(m0.link_local))?;
                    }
                    set_int(&socket, SOCKET, SO_BINDTOIFINDEX, device as i32)?;
                    println!("{address} at device {device}, connected: {connects}");
                    restored(socket);
                }
            }
        }
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
        let local = same(make, |socket| socket::local(socket).unwrap().ip());
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
