//! What a plain user can do: checkpoint and restore sockets of its own, and hear plainly what it
//! may not.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::any::type_name_of_val;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::net::SendFlags;
use sockcr::option::{self, Kind, Row};
use sockcr::{Checkpoint, Error, ErrorKind, RestoreOptions, json, kernel};

use support::Outcome;
use support::place::{self, isolated};
use support::socket::{self, IP, SOCKET, instruction, set_int, udp};
use support::values;

/// Set in a child that is a plain user.
const PLAIN: &str = "SOCKCR_TEST_PLAIN";
const NOBODY: u32 = 65534;
const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
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
fn made(way: &str) -> OwnedFd {
    let socket = udp().unwrap();
    let connect = || socket::connect(&socket, (HERE, 9999)).unwrap();
    match way {
        "unbound" => {}
        "bound" => socket::bind(&socket, (HERE, PORT)).unwrap(),
        "bound to any address" => socket::bind(&socket, (ANY, PORT)).unwrap(),
        "bound to a port of the kernel's" => socket::bind(&socket, (HERE, 0)).unwrap(),
        "connected" => connect(),
        "bound and connected" => {
            socket::bind(&socket, (HERE, PORT)).unwrap();
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
        assert!(!rustix::process::geteuid().is_root());
        let ways = [
            "unbound",
            "bound",
            "bound to any address",
            "bound to a port of the kernel's",
            "connected",
            "bound and connected",
            "sent",
        ];
        for way in ways {
            let original = made(way);
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
}

#[test]
fn options_filter_and_buffers_come_back() -> Outcome {
    as_plain_user(|| {
        let socket = udp()?;
        let options = [
            (SOCKET, 6, 1),
            (SOCKET, 8, 70_000),
            (SOCKET, 7, 60_001),
            (SOCKET, 12, 6),
            (IP, 1, 0x10),
            (IP, 2, 9),
            (IP, 8, 1),
            (SOCKET, 44, 1),
        ];
        socket::attach(&socket, &[instruction(0x06, 0xffff)])?;
        for (level, name, value) in options {
            set_int(&socket, level, name, value)?;
        }
        let before = (socket::sweep(&socket), socket::filter(&socket));
        let (_, fd) = there_and_back(socket)?;
        assert_eq!((socket::sweep(&fd), socket::filter(&fd)), before);
        Ok(())
    })
}

#[test]
fn memberships_come_back() -> Outcome {
    as_plain_user(|| {
        let socket = udp()?;
        let groups = [[239, 9, 0, 3], [239, 9, 0, 1], [239, 9, 0, 2]];
        for group in groups {
            let request = [group, [0; 4], 1u32.to_ne_bytes()].concat();
            socket::set(&socket, IP, 35, &request).map_err(std::io::Error::from_raw_os_error)?;
        }
        let block = [groups[1], [127, 0, 0, 1], [10, 0, 0, 1]].concat();
        socket::set(&socket, IP, 38, &block).map_err(std::io::Error::from_raw_os_error)?;
        let (checkpoint, fd) = there_and_back(socket)?;
        let mut again = Checkpoint::dump(&fd)?.memberships;
        assert_eq!(again, checkpoint.memberships);
        again.sort_by_key(|membership| membership.group);
        let seen: Vec<_> = again.iter().map(|m| (m.group, m.sources.len())).collect();
        let groups = [1, 2, 3].map(|last| IpAddr::from([239, 9, 0, last]));
        assert_eq!(seen, [(groups[0], 1), (groups[1], 0), (groups[2], 0)]);
        let order = checkpoint
            .report
            .assumed
            .iter()
            .any(|note| note.what.contains("order of memberships"));
        assert_eq!(order, !sees_everything());
        Ok(())
    })
}

#[test]
fn the_report_lists_what_was_assumed() -> Outcome {
    as_plain_user(|| {
        let checkpoint = Checkpoint::dump(&made("connected"))?;
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
        let mut checkpoint = Checkpoint::dump(&made("bound"))?;
        checkpoint.endpoint.local = SocketAddr::from((HERE, 53));
        let refused = checkpoint.restore(&RestoreOptions::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotPermitted, "{refused}");
        assert!(refused.to_string().contains("127.0.0.1:53"), "{refused}");
        assert!(
            refused
                .next_step()
                .is_some_and(|help| help.contains("CAP_NET_BIND_SERVICE"))
        );
        Ok(())
    })
}

#[test]
fn what_waits_behind_a_shutdown_is_seen() -> Outcome {
    as_plain_user(|| {
        let socket = socket::bound((HERE, PORT))?;
        let sender = udp()?;
        rustix::net::sendto(
            &sender,
            b"hello",
            SendFlags::empty(),
            &SocketAddr::new(HERE.into(), PORT),
        )?;
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
}

/// By peeking the queue is read, and only raw packets would put it back.
#[test]
fn a_queue_needs_more_than_a_plain_user_has() -> Outcome {
    as_plain_user(|| {
        let socket = socket::bound((HERE, PORT))?;
        let to = SocketAddr::new(HERE.into(), PORT);
        rustix::net::sendto(udp()?, b"hello", SendFlags::empty(), &to)?;
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
}
