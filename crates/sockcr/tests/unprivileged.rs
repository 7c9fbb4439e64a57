//! What a plain user can do: checkpoint and restore sockets of its own, and hear plainly what it
//! may not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::any::type_name_of_val;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::net::SendFlags;
use sockcr::option::{self, Kind, Row};
use sockcr::{Checkpoint, Error, ErrorKind, RestoreOptions, json, kernel};

use support::Outcome;
use support::by::{By, each};
use support::place::{self, isolated};
use support::socket::{self, IP, IPV6, SOCKET, instruction, set_int, udp};
use support::values;

/// Set in a child that is a plain user.
const PLAIN: &str = "SOCKCR_TEST_PLAIN";
const NOBODY: u32 = 65534;
const PORT: u16 = 4321;
/// Outside of the ports that the kernel gives out in the namespace of these tests.
const EPHEMERAL: &str = "40000 50000";

/// Runs a test as a plain user, in a network namespace where nobody else is: root starts the test
/// binary once more, without its privileges.
fn as_plain_user<F: FnOnce() -> Outcome + Send>(body: F) -> Outcome {
    if !rustix::process::geteuid().is_root() {
        return body();
    }
    assert!(std::env::var_os(PLAIN).is_none(), "still root");
    let test = place::test_name(type_name_of_val(&body));
    isolated(|| {
        place::sysctl("net.ipv4.ip_local_port_range", EPHEMERAL)?;
        // By this name the binary is found wherever it lies.
        let mut child = Command::new("/proc/self/exe");
        child
            .args([&*test, "--exact", "--nocapture"])
            .env(PLAIN, "1");
        let output = child.uid(NOBODY).gid(NOBODY).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        print!("{text}");
        assert!(
            text.contains("1 passed"),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    })
}

/// Whether BPF tells this user everything: then nothing is assumed.
fn sees_everything() -> bool {
    kernel::reader().is_ok()
}

fn there_and_back(socket: OwnedFd) -> Result<(Checkpoint, OwnedFd), Error> {
    let checkpoint = Checkpoint::dump(&socket)?;
    drop(socket);
    let text = json::to_json(std::slice::from_ref(&checkpoint)).to_string();
    assert_eq!(json::from_json(&text)?, std::slice::from_ref(&checkpoint));
    let again = Checkpoint::from_bytes(&checkpoint.to_bytes()?)?;
    let options = RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    };
    let restored = again.restore(&options)?;
    assert!(restored.report.is_exact());
    Ok((checkpoint, restored.fd))
}

/// Every way to an address that a plain user has, by name.
fn made(by: By, way: &str) -> OwnedFd {
    let socket = by.socket().unwrap();
    let here = by.called(by.here());
    let any = by.called(by.of(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED));
    let connect = || socket::connect(&socket, (here, 9999)).unwrap();
    match way {
        "unbound" => {}
        "bound" => socket::bind(&socket, (here, PORT)).unwrap(),
        "bound to any address" => socket::bind(&socket, (any, PORT)).unwrap(),
        "bound to every address" => socket::bind(&socket, (by.any(), PORT)).unwrap(),
        "bound to a port of the kernel's" => socket::bind(&socket, (here, 0)).unwrap(),
        "connected" => connect(),
        "bound and connected" => {
            socket::bind(&socket, (here, PORT)).unwrap();
            connect();
        }
        "sent" => {
            rustix::net::send(&socket, &[], SendFlags::NOSIGNAL).unwrap_err();
        }
        other => panic!("{other}"),
    }
    socket
}

#[test]
fn own_sockets_come_back() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            assert!(!rustix::process::geteuid().is_root());
            let ways = [
                "unbound",
                "bound",
                "bound to any address",
                "bound to every address",
                "bound to a port of the kernel's",
                "connected",
                "bound and connected",
                "sent",
            ];
            for way in ways {
                let original = made(by, way);
                let (before, local, peer) = (
                    socket::sweep(&original),
                    socket::local(&original)?,
                    socket::peer(&original),
                );
                let (checkpoint, fd) = there_and_back(original)?;
                assert_eq!(
                    socket::differences(&before, &socket::sweep(&fd)),
                    [""; 0],
                    "{way}"
                );
                assert_eq!(
                    (socket::local(&fd)?, socket::peer(&fd)),
                    (local, peer),
                    "{way}"
                );
                assert!(
                    checkpoint.report.is_exact(),
                    "{way}: {:?}",
                    checkpoint.report
                );
                assert_eq!(
                    checkpoint.report.assumed.is_empty(),
                    sees_everything(),
                    "{way}"
                );
            }
            Ok(())
        })
    })
}

#[test]
fn options_filter_and_buffers_come_back() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            let socket = by.socket()?;
            let mut options = vec![
                (SOCKET, 6, 1),
                (SOCKET, 8, 70_000),
                (SOCKET, 7, 60_001),
                (SOCKET, 12, 6),
                (IP, 1, 0x10),
                (IP, 2, 9),
                (IP, 8, 1),
                (SOCKET, 44, 1),
            ];
            if by != By::Ipv4 {
                // Hop limit, traffic class, no flow labels of the kernel's choice, IPV6_RECVPKTINFO.
                options.extend([(16, 9), (67, 0x10), (70, 0), (49, 1)].map(|(n, v)| (IPV6, n, v)));
            }
            socket::attach(&socket, &[instruction(0x06, 0xffff)])?;
            for (level, name, value) in options {
                set_int(&socket, level, name, value)?;
            }
            let before = (socket::sweep(&socket), socket::filter(&socket));
            let (_, fd) = there_and_back(socket)?;
            assert_eq!((socket::sweep(&fd), socket::filter(&fd)), before);
            Ok(())
        })
    })
}

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_BLOCK_SOURCE: i32 = 43;

/// `struct group_req` or `group_source_req`, with the loopback device.
fn change_group(
    socket: &OwnedFd,
    name: i32,
    group: IpAddr,
    source: Option<IpAddr>,
) -> std::io::Result<()> {
    let mut request = 1u64.to_ne_bytes().to_vec();
    for address in [group].into_iter().chain(source) {
        let start = request.len();
        match address {
            IpAddr::V4(address) => {
                request.extend([libc::AF_INET as u8, 0, 0, 0]);
                request.extend(address.octets());
            }
            IpAddr::V6(address) => {
                request.extend([libc::AF_INET6 as u8, 0, 0, 0, 0, 0, 0, 0]);
                request.extend(address.octets());
            }
        }
        request.resize(start + 128, 0);
    }
    let level = if group.is_ipv6() { IPV6 } else { IP };
    socket::set(socket, level, name, &request).map_err(std::io::Error::from_raw_os_error)
}

#[test]
fn memberships_come_back() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            let socket = by.socket()?;
            let group =
                |last: u8| by.of([239, 9, 0, last], [0xff02, 0, 0, 0, 0, 0, 9, last.into()]);
            let groups = [3, 1, 2].map(group);
            for group in groups {
                change_group(&socket, MCAST_JOIN_GROUP, group, None)?;
            }
            change_group(&socket, MCAST_BLOCK_SOURCE, groups[1], Some(by.here()))?;
            let (checkpoint, fd) = there_and_back(socket)?;
            let mut again = Checkpoint::dump(&fd)?.memberships;
            assert_eq!(again, checkpoint.memberships);
            again.sort_by_key(|membership| membership.group);
            let seen: Vec<_> = again.iter().map(|m| (m.group, m.sources.len())).collect();
            let groups = [1, 2, 3].map(group);
            assert_eq!(seen, [(groups[0], 1), (groups[1], 0), (groups[2], 0)]);
            let order = checkpoint
                .report
                .assumed
                .iter()
                .any(|note| note.what.contains("order of memberships"));
            assert_eq!(order, !sees_everything());
            Ok(())
        })
    })
}

#[test]
fn the_report_lists_what_was_assumed() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            let checkpoint = Checkpoint::dump(&made(by, "connected"))?;
            if sees_everything() {
                assert_eq!(checkpoint.report.assumed, []);
                return Ok(());
            }
            let assumed: String = checkpoint
                .report
                .assumed
                .iter()
                .map(|note| format!("{note}\n"))
                .collect();
            for word in [
                "IP_TTL",
                "IP_MULTICAST_IF",
                "IPsec policy",
                "port chosen by the kernel",
                "route",
                "BPF",
            ] {
                assert!(assumed.contains(word), "{word}: {assumed}");
            }
            assert!(
                assumed.contains("CAP_BPF"),
                "it says what would help: {assumed}"
            );
            Ok(())
        })
    })
}

/// What a restore of a fresh socket with this option answers, exactly and with losses.
fn refusal(option: &str, value: &str) -> Result<Error, Error> {
    let mut checkpoint = Checkpoint::dump(&udp().unwrap())?;
    checkpoint.edit(option, value)?;
    let lossy = checkpoint.restore(&RestoreOptions {
        lossy: true,
        ..RestoreOptions::default()
    })?;
    let notes = &lossy.report.not_carried;
    assert!(
        notes.iter().any(|note| note.what.starts_with(option)),
        "{notes:?}"
    );
    let refused = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
    assert!(
        refused
            .next_step()
            .is_some_and(|help| help.contains("--lossy"))
    );
    Ok(refused)
}

#[test]
fn a_buffer_above_the_limit_is_refused() -> Outcome {
    as_plain_user(|| {
        for (option, sysctl) in [
            ("SO_RCVBUF", "net.core.rmem_max"),
            ("SO_SNDBUF", "wmem_max"),
        ] {
            let refused = refusal(option, "1G")?.to_string();
            for word in [option, "1 GiB", sysctl, "CAP_NET_ADMIN"] {
                assert!(refused.contains(word), "{word}: {refused}");
            }
        }
        Ok(())
    })
}

#[test]
fn privileged_options_are_refused_with_the_capability() -> Outcome {
    as_plain_user(|| {
        let privileged = [
            ("SO_MARK", "7", "CAP_NET_RAW or CAP_NET_ADMIN"),
            ("SO_DEBUG", "on", "CAP_NET_ADMIN"),
            ("SO_PRIORITY", "7", "CAP_NET_RAW or CAP_NET_ADMIN"),
            ("IP_TRANSPARENT", "on", "CAP_NET_RAW or CAP_NET_ADMIN"),
            ("SO_PREFER_BUSY_POLL", "on", "CAP_NET_ADMIN"),
            ("SO_TXTIME", "CLOCK_TAI", "CAP_NET_ADMIN"),
        ];
        for (option, value, capability) in privileged {
            let refused = refusal(option, value)?.to_string();
            assert!(
                refused.contains(&format!("needs {capability}")),
                "{refused}"
            );
        }
        Ok(())
    })
}

/// The tables name a capability exactly where the kernel wants one.
#[test]
fn the_rows_name_the_capabilities() -> Outcome {
    as_plain_user(|| {
        let denied = |row: &Row| {
            let kinds = sockcr::protocol::ALL.iter();
            let protocol = kinds
                .rev()
                .find(|protocol| protocol.name.starts_with("udp") && protocol.carries(row));
            let socket = || socket::fresh(protocol.unwrap()).unwrap();
            let tried = values::samples(row, &[])
                .into_iter()
                .map(|value| values::apply(&socket(), row, &value));
            tried
                .into_iter()
                .any(|answer| [Err(libc::EPERM), Err(libc::EACCES)].contains(&answer))
        };
        // The size of a buffer is tried by the test of its limit.
        let rows =
            option::rows().filter(|row| row.carried() && !matches!(row.kind, Kind::Buffer(_)));
        // Raw sockets are not for plain users at all.
        let udp = sockcr::protocol::ALL
            .iter()
            .filter(|p| p.name.starts_with("udp"));
        let rows = rows.filter(|row| udp.clone().any(|protocol| protocol.carries(row)));
        for row in rows {
            let needs = row.capability.is_some_and(|needs| {
                !needs.contains("older kernels") && !needs.contains("already set")
            });
            assert_eq!(denied(row), needs, "{}: {:?}", row.name, row.capability);
        }
        Ok(())
    })
}

#[test]
fn a_low_port_is_refused_with_the_capability() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            let mut checkpoint = Checkpoint::dump(&made(by, "bound"))?;
            checkpoint.endpoint.local = SocketAddr::from((by.called(by.here()), 53));
            let refused = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotPermitted, "{refused}");
            let local = checkpoint.endpoint.local.to_string();
            assert!(refused.to_string().contains(&local), "{refused}");
            assert!(
                refused
                    .next_step()
                    .is_some_and(|help| help.contains("CAP_NET_BIND_SERVICE"))
            );
            Ok(())
        })
    })
}

#[test]
fn what_waits_behind_a_shutdown_is_seen() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            let to = SocketAddr::new(by.here(), PORT);
            rustix::net::sendto(by.sender()?, b"hello", SendFlags::empty(), &to)?;
            // Answers ENOTCONN, and does it all the same.
            let _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Read);
            let queue = Checkpoint::dump(&socket)?.receive_queue;
            let payloads: Vec<&[u8]> = queue.iter().map(|one| &*one.payload).collect();
            assert_eq!(payloads, [b"hello"]);
            assert_eq!(socket::receive(&socket)?, b"hello");
            let report = Checkpoint::dump(&socket)?.report;
            assert!(report.is_exact(), "{report:?}");
            Ok(())
        })
    })
}

/// By peeking the queue is read, and only raw packets would put it back.
#[test]
fn a_queue_needs_more_than_a_plain_user_has() -> Outcome {
    as_plain_user(|| {
        each(|by| {
            let socket = by.bound(PORT)?;
            let to = SocketAddr::new(by.here(), PORT);
            rustix::net::sendto(by.sender()?, b"hello", SendFlags::empty(), &to)?;
            let mut checkpoint = Checkpoint::dump(&socket)?;
            assert_eq!(socket::receive(&socket)?, b"hello");
            drop(socket);
            assert_eq!(checkpoint.receive_queue.len(), 1);
            checkpoint.report.not_carried.clear();
            if !sees_everything() {
                let refused = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Refused, "{refused}");
                assert!(refused.to_string().contains("CAP_NET_RAW"), "{refused}");
            }
            Ok(())
        })
    })
}
