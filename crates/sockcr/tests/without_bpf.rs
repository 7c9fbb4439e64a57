//! Sockets of every kind without BPF, by root of a user namespace.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::io;
use std::os::fd::OwnedFd;

use sockcr::protocol::{self, Protocol};
use sockcr::{Checkpoint, RestoreOptions};

use support::Outcome;
use support::place::{rootless, sysctl};
use support::socket::{self, IP, IPV6, fresh, instruction, set_int};

const IP_ADD_MEMBERSHIP: i32 = 35;
const IPV6_ADD_MEMBERSHIP: i32 = 20;
const IPV6_ROUTER_ALERT: i32 = 22;
const GROUP: [u8; 4] = [239, 9, 9, 9];
const GROUP6: [u8; 16] = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

/// A new socket that hears nothing: those of ICMPv6 would hear of the groups of others.
fn deaf(protocol: &Protocol) -> io::Result<OwnedFd> {
    let socket = fresh(protocol)?;
    socket::attach(&socket, &[instruction(0x06, 0)])?;
    while socket::poll_in(&socket)? {
        socket::receive(&socket)?;
    }
    Ok(socket)
}

/// Joins a group of its family at the loopback device.
fn join_one(socket: &OwnedFd, protocol: &Protocol) -> io::Result<()> {
    let index = 1u32.to_ne_bytes();
    let (level, name, request) = match protocol.is_ipv6() {
        true => (IPV6, IPV6_ADD_MEMBERSHIP, [&GROUP6[..], &index].concat()),
        false => (
            IP,
            IP_ADD_MEMBERSHIP,
            [&GROUP[..], &[0; 4], &index].concat(),
        ),
    };
    socket::set(socket, level, name, &request).map_err(io::Error::from_raw_os_error)
}

/// Beside the groups that each host is in; those of the socket itself are found by asking.
#[test]
fn every_kind_comes_back_with_its_groups() -> Outcome {
    rootless(|| {
        sysctl("net.ipv4.ping_group_range", "0 0")?;
        let options = RestoreOptions {
            verify: true,
            ..RestoreOptions::default()
        };
        for (protocol, joins) in protocol::ALL.iter().flat_map(|p| [(p, 0), (p, 1)]) {
            let socket = deaf(protocol)?;
            for _ in 0..joins {
                join_one(&socket, protocol)?;
            }
            let checkpoint = Checkpoint::dump(&socket)?;
            let report = &checkpoint.report;
            assert!(report.is_exact(), "{protocol}: {report:?}");
            assert_eq!(checkpoint.memberships.len(), joins, "{protocol}");
            let restored = checkpoint.restore(&options)?;
            let again = Checkpoint::dump(&restored.fd)?.memberships;
            assert_eq!(again, checkpoint.memberships);
        }
        Ok(())
    })
}

/// Whether a socket is told of alert 0 nobody sees, of others whether it is told of any.
#[test]
fn alerts_of_ipv6_are_assumed_or_named() -> Outcome {
    rootless(|| {
        for (number, named) in [(None, false), (Some(0), false), (Some(7), true)] {
            let socket = fresh(protocol::named("inet6", "raw", "raw6:255").unwrap())?;
            if let Some(number) = number {
                set_int(&socket, IPV6, IPV6_ROUTER_ALERT, number)?;
            }
            let report = Checkpoint::dump(&socket)?.report;
            let notes = [report.not_carried, report.assumed];
            let told = notes.map(|notes| {
                let mut notes = notes.iter();
                notes.any(|note| note.what.ends_with("IPV6_ROUTER_ALERT"))
            });
            assert_eq!(told, [named, !named]);
        }
        Ok(())
    })
}
