//! The option tables against the running kernel: nothing is missing, the defaults are right, and
//! every value of every row comes back.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};

use sockcr::option::{self, Access, Default, Kind, Level, Row, Value};
use sockcr::protocol::{self, Protocol};
use sockcr::{Checkpoint, RestoreOptions, json};

use support::place::{self, Device, isolated};
use support::socket::{self, HIGHEST, IP, IPV6, LEVELS, NOT_SWEPT, SOCKET, UDP, UDPLITE, fresh};
use support::values::{FOREIGN, apply, level, samples, spellings};
use support::{Outcome, reader};

const LENGTHS: [usize; 6] = [0, 4, 8, 16, 64, 256];
const NUMBERS: [i32; 8] = [1, 2, 0, 3, 5, 100, 4096, 0x10000];
const ABSENT: [i32; 2] = [libc::ENOPROTOOPT, libc::EOPNOTSUPP];

/// Each kind of sockets with each row of its tables.
fn all() -> impl Iterator<Item = (&'static Protocol, &'static Row)> {
    let kinds = protocol::ALL.iter().copied();
    kinds.flat_map(|protocol| protocol.rows().map(move |row| (protocol, row)))
}

fn carried() -> impl Iterator<Item = (&'static Protocol, &'static Row)> {
    all().filter(|(protocol, row)| protocol.carries(row))
}

/// Whether the kernel knows an option of this number, by asking a fresh socket for each try.
fn known(protocol: &Protocol, level: i32, name: i32) -> bool {
    let there = |answer: Result<(), i32>| !answer.is_err_and(|error| ABSENT.contains(&error));
    let readable = LENGTHS.iter().any(|length| {
        let socket = fresh(protocol).unwrap();
        there(socket::get(&socket, level, name, *length).map(drop))
    });
    let numbers = NUMBERS.iter().map(|number| number.to_ne_bytes().to_vec());
    let writable = numbers
        .chain(LENGTHS[1..].iter().map(|length| vec![0; *length]))
        .any(|value| {
            let socket = fresh(protocol).unwrap();
            there(socket::set(&socket, level, name, &value))
        });
    readable || writable
}

/// SO_ATTACH_FILTER, whose row is checked by the filters' tests, and IP6T_SO_SET_REPLACE,
/// IPT_SO_SET_REPLACE and ARPT_SO_SET_REPLACE, which are not of the socket: their
/// values hold pointers, so that the calls are refused before they reach the kernel.
const POINTERS: [(i32, i32); 4] = [(SOCKET, 26), (IPV6, 64), (IP, 64), (IP, 96)];

#[test]
fn every_option_of_the_kernel_has_a_row() -> Outcome {
    isolated(|| {
        for protocol in protocol::ALL {
            let rows: BTreeSet<_> = protocol
                .rows()
                .map(|row| (level(row), row.number.into()))
                .collect();
            let names = LEVELS.into_iter();
            let names = names.flat_map(|level| (0..=HIGHEST).map(move |name| (level, name)));
            let names = names.filter(|name| !POINTERS.contains(name) && !rows.contains(name));
            let missing: Vec<_> = names
                .filter(|(level, name)| known(protocol, *level, *name))
                .collect();
            let lacking = "(level, number) that the tables lack";
            assert_eq!(missing, [], "{protocol}: {lacking}");
            // What is known at level SOL_UDPLITE is what SOL_UDP means.
            let other = (0..=HIGHEST).filter(|name| !rows.contains(&(UDP, *name)));
            let other: Vec<i32> = other.filter(|n| known(protocol, UDPLITE, *n)).collect();
            assert_eq!(
                other, [0; 0],
                "{protocol}: numbers of SOL_UDPLITE that SOL_UDP lacks"
            );
        }
        Ok(())
    })
}

/// The rows that say they can be read, and a fresh socket of this kind does not answer.
const SILENT: &[(&str, &str)] = &[
    ("SO_PEERSEC", "Unix sockets, with a security module"),
    ("SO_PEERGROUPS", "Unix sockets"),
    ("SO_PEERPIDFD", "Unix sockets"),
    ("SO_PASSSEC", "Unix and netlink sockets since 6.16"),
    ("SO_PASSCRED", "Unix and netlink sockets since 6.16"),
    ("SO_PASSPIDFD", "Unix sockets since 6.16"),
    ("SO_PASSRIGHTS", "Unix sockets"),
    ("SO_TXREHASH", "TCP"),
    ("SO_SNDBUFFORCE", "writes what SO_SNDBUF reads"),
    ("SO_RCVBUFFORCE", "writes what SO_RCVBUF reads"),
    ("SO_BUSY_POLL_BUDGET", "no option reads it, only BPF"),
    ("SO_NETNS_COOKIE", "wants exactly 8 bytes; asked so below"),
    ("IP_MTU", "connected sockets"),
    ("IPV6_MTU", "connected sockets"),
    ("IPV6_PATHMTU", "connected sockets"),
    ("IPV6_ADDRFORM", "connected sockets"),
    ("IPV6_PKTINFO", "no option reads it, only BPF"),
    ("SO_PEEK_OFF", "not raw and ping sockets"),
    ("IP6T_SO_GET_INFO", "with CAP_NET_ADMIN and a table's name"),
    (
        "IP6T_SO_GET_ENTRIES",
        "with CAP_NET_ADMIN and a table's name",
    ),
    (
        "IP6T_SO_GET_REVISION_MATCH",
        "with CAP_NET_ADMIN and a name",
    ),
    (
        "IP6T_SO_GET_REVISION_TARGET",
        "with CAP_NET_ADMIN and a name",
    ),
    ("IPT_SO_GET_INFO", "with CAP_NET_ADMIN and a table's name"),
    (
        "IPT_SO_GET_ENTRIES",
        "with CAP_NET_ADMIN and a table's name",
    ),
    ("IPT_SO_GET_REVISION_MATCH", "with CAP_NET_ADMIN and a name"),
    (
        "IPT_SO_GET_REVISION_TARGET",
        "with CAP_NET_ADMIN and a name",
    ),
    ("SO_IP_SET", "with CAP_NET_ADMIN and a request"),
    ("ARPT_SO_GET_INFO", "with CAP_NET_ADMIN and a table's name"),
    (
        "ARPT_SO_GET_ENTRIES",
        "with CAP_NET_ADMIN and a table's name",
    ),
    (
        "ARPT_SO_GET_REVISION_MATCH",
        "with CAP_NET_ADMIN and a name",
    ),
    (
        "ARPT_SO_GET_REVISION_TARGET",
        "with CAP_NET_ADMIN and a name",
    ),
];

#[test]
fn every_readable_row_answers() -> Outcome {
    let readable = |row: &&Row| {
        matches!(
            row.access,
            Access::Carried(_) | Access::ReadOnly(_) | Access::Alias(_)
        )
    };
    let listed = |row: &&Row| SILENT.iter().any(|(name, _)| *name == row.name);
    isolated(|| {
        for protocol in protocol::ALL {
            let socket = fresh(protocol)?;
            let mute: Vec<_> = protocol
                .rows()
                .filter(readable)
                .filter(|row| !listed(row))
                .filter_map(|row| {
                    let answer = socket::get(&socket, level(row), row.number.into(), 256);
                    answer.err().map(|error| (row.name, error))
                })
                .collect();
            let errnos = "rows said to be readable, and the errno";
            assert_eq!(mute, [], "{protocol}: {errnos}");
            let cookie = socket::get(&socket, SOCKET, 71, 8);
            assert!(cookie.is_ok(), "SO_NETNS_COOKIE");
        }
        assert!(
            SILENT.iter().all(|(name, _)| option::find(name).is_some()),
            "a row of the list is gone"
        );
        Ok(())
    })
}

/// The number a fresh socket answers, whatever its width.
fn number(bytes: &[u8]) -> i64 {
    match *bytes {
        [a, b, c, d] => i32::from_ne_bytes([a, b, c, d]).into(),
        [a, b, c, d, e, f, g, h] => i64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        _ => panic!("{} bytes are no number", bytes.len()),
    }
}

#[test]
fn a_fresh_socket_has_the_defaults() -> Outcome {
    isolated(|| {
        let mut wrong = Vec::new();
        for (protocol, row) in all() {
            let socket = fresh(protocol)?;
            let name = (level(row), i32::from(row.number));
            if NOT_SWEPT.contains(&name) {
                continue;
            }
            let Ok(bytes) = socket::get(&socket, name.0, name.1, 256) else {
                continue;
            };
            let right = match row.default {
                Default::Number(default) => number(&bytes) == default,
                Default::ByFamily(inet, inet6) => {
                    let six = protocol.family_name == "inet6";
                    number(&bytes) == if six { inet6 } else { inet }
                }
                Default::ByPort(udp, others) => {
                    let udp = protocol.name.starts_with("udp").then_some(udp);
                    number(&bytes) == udp.unwrap_or(others)
                }
                Default::ByProtocol(own, other) => {
                    let own = own.iter().find(|(of, _)| *of == protocol.number);
                    number(&bytes) == own.map_or(other, |(_, own)| *own)
                }
                Default::Empty => bytes.iter().all(|byte| *byte == 0),
                Default::Sysctl(_) | Default::None => true,
            };
            let carried_names_its_default = !protocol.carries(row) || row.default != Default::None;
            if !right || !carried_names_its_default {
                wrong.push((protocol.to_string(), row.name, row.default, bytes));
            }
        }
        assert_eq!(wrong, []);
        Ok(())
    })
}

#[test]
fn a_sysctl_default_is_what_that_sysctl_says() -> Outcome {
    isolated(|| {
        place::sysctl("net.ipv4.ip_default_ttl", "77")?;
        place::sysctl("net.ipv6.conf.all.hop_limit", "78")?;
        place::sysctl("net.ipv6.bindv6only", "1")?;
        let read =
            |name: &str| std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/")));
        for row in option::rows() {
            let Default::Sysctl(name) = row.default else {
                continue;
            };
            // The limits of buffers and of busy polling are shown in the first namespace only.
            let Ok(says) = read(name) else { continue };
            let says: i64 = says.trim().parse()?;
            let says = match name {
                // It says whether to leave it; the option says whether to do it.
                "net.ipv4.ip_no_pmtu_disc" => 1 - says,
                // 1 and 3 are on: unless a socket does not want it, and in any case.
                "net.ipv6.auto_flowlabels" => says & 1,
                _ => says,
            };
            let of_row = |protocol: &&&Protocol| protocol.rows().any(|have| have == row);
            for protocol in protocol::ALL.iter().filter(of_row) {
                let socket = fresh(protocol)?;
                let bytes = socket::get(&socket, level(row), row.number.into(), 4).unwrap();
                assert_eq!(number(&bytes), says, "{protocol} {}", row.name);
            }
        }
        Ok(())
    })
}

/// What no machine without the hardware or the controller can set.
fn may_be_refused(protocol: &Protocol, row: &Row, value: &Value) -> Option<&'static str> {
    const BIND_PHC: i64 = 1 << 15;
    let raw = protocol.type_name == "raw";
    let udp = protocol.name.starts_with("udp");
    match (row.name, value) {
        ("SO_ZEROCOPY", _) => (protocol.number != 17 || raw).then_some("UDP and TCP only"),
        ("SO_PEEK_OFF", _) => (!udp).then_some("not raw and ping sockets"),
        ("IPV6_V6ONLY", _) => {
            raw.then_some("has a protocol from the start, which counts as a port")
        }
        ("IPV6_CHECKSUM", Value::Int(place)) => (place % 2 != 0).then_some("an odd place"),
        ("IP_ROUTER_ALERT", Value::Int(0)) => Some("is off already"),
        ("IP_ROUTER_ALERT", _) => (protocol.number == 255).then_some("not IPPROTO_RAW"),
        ("SO_RESERVE_MEM", Value::Int(size)) if *size != 0 => Some("needs a memory control group"),
        ("SO_RESERVE_MEM", _) => Some("needs memory control groups"),
        ("SO_TIMESTAMPING_OLD" | "SO_TIMESTAMPING_NEW", Value::Pair(flags, _)) => {
            (flags & BIND_PHC != 0).then_some("needs a device with a hardware clock")
        }
        _ => None,
    }
}

/// How the socket of a case came to its address.
const WAYS: [&str; 3] = ["unbound", "bound", "connected"];

fn prepared(protocol: &Protocol, way: &str) -> OwnedFd {
    let socket = fresh(protocol).unwrap();
    let here = socket::loopback(protocol);
    if way != "unbound" {
        socket::bind(&socket, (here, 0)).unwrap();
    }
    if way == "connected" {
        socket::connect(&socket, (here, 9)).unwrap();
    }
    socket
}

/// What UDP sockets have is tried in every way on these, and in one way on the other kinds.
fn ways(protocol: &Protocol, row: &Row) -> impl Iterator<Item = &'static str> + use<> {
    let shared = row.special.is_none() && !matches!(row.level, Level::Raw | Level::Icmpv6);
    let once = match before_bind_only(row) {
        true => "unbound",
        false => "connected",
    };
    let all = protocol.number == 17 || !shared;
    WAYS.into_iter().filter(move |way| all || *way == once)
}

/// Whether it can be set on an unbound socket only.
fn before_bind_only(row: &Row) -> bool {
    row.name == "IPV6_V6ONLY"
}

/// Whether it is an IP_MULTICAST_IF of which getsockopt(2) tells nothing that names the device.
fn foreign(value: &Value) -> bool {
    matches!(value, Value::Pair(address, _) if *address == i64::from(u32::from(FOREIGN)))
}

/// One value, on one socket, there and back; what went wrong, or nothing.
fn there_and_back(
    protocol: &Protocol,
    row: &'static Row,
    value: &Value,
    way: &str,
) -> Result<(), String> {
    if reader().is_err() && foreign(value) {
        println!("{} {value:?}: without BPF its device is not seen", row.name);
        return Ok(());
    }
    let socket = prepared(protocol, way);
    let words = |what: &str, error: &dyn Debug| {
        let name = row.name;
        format!("{protocol} {name} {value:?} {way}: {what}: {error:?}")
    };
    if let Err(error) = apply(&socket, row, value) {
        return refused(protocol, row, value, error).map_err(|why| words("set", &why));
    }
    let before = socket::sweep(&socket);
    let hidden = reader()
        .ok()
        .map(|reader| reader.read(socket.as_fd()).unwrap());
    let checkpoint = Checkpoint::dump(&socket).map_err(|error| words("dump", &error))?;
    check_json(&checkpoint).map_err(|error| words("JSON", &error))?;
    drop(socket);
    let bytes = checkpoint
        .to_bytes()
        .map_err(|error| words("to bytes", &error))?;
    let again = Checkpoint::from_bytes(&bytes).map_err(|error| words("from bytes", &error))?;
    let options = RestoreOptions {
        verify: true,
        ..RestoreOptions::default()
    };
    let restored = again
        .restore(&options)
        .map_err(|error| words("restore", &error))?;
    match socket::differences(&before, &socket::sweep(&restored.fd)) {
        same if same.is_empty() => {}
        other => return Err(words("read back", &other)),
    }
    let after = reader()
        .ok()
        .map(|reader| reader.read(restored.fd.as_fd()).unwrap());
    let settings = |hidden: sockcr::kernel::Hidden| {
        (
            hidden.unicast_ttl,
            hidden.busy_poll_budget,
            hidden.txtime,
            hidden.multicast_index,
            hidden.ipv6,
            hidden.coverage,
        )
    };
    match (hidden.map(settings), after.map(settings)) {
        (before, after) if before == after => Ok(()),
        other => Err(words("hidden", &other)),
    }
}

/// A plain user may not set everything; root may, but for what the hardware lacks.
fn refused(protocol: &Protocol, row: &Row, value: &Value, error: i32) -> Result<(), String> {
    let error = std::io::Error::from_raw_os_error(error);
    let plain = error.kind() == std::io::ErrorKind::PermissionDenied && reader().is_err();
    match may_be_refused(protocol, row, value) {
        Some(why) => println!(
            "{protocol} {} {value:?} is not settable here: {why} ({error})",
            row.name
        ),
        None if plain => println!("{} {value:?} is not settable here: {error}", row.name),
        None => return Err(error.to_string()),
    }
    Ok(())
}

fn check_json(checkpoint: &Checkpoint) -> Result<(), String> {
    let text = json::to_json(std::slice::from_ref(checkpoint)).to_string();
    let again = json::from_json(&text).map_err(|error| error.to_string())?;
    match again.as_slice() {
        [again] if again == checkpoint => Ok(()),
        other => Err(format!("{text} became {other:?}")),
    }
}

#[test]
fn every_value_of_every_carried_row_comes_back() -> Outcome {
    isolated(|| {
        let devices = place::devices()?;
        let mut cases = 0;
        let mut wrong = Vec::new();
        for (protocol, row) in carried() {
            let values = samples(row, &devices);
            assert!(values.len() > 1, "{} has no values to try", row.name);
            for (value, way) in values
                .iter()
                .flat_map(|v| ways(protocol, row).map(move |way| (v, way)))
            {
                if way != "unbound" && before_bind_only(row) {
                    continue;
                }
                cases += 1;
                wrong.extend(there_and_back(protocol, row, value, way).err());
            }
        }
        println!("{cases} cases");
        assert!(
            wrong.is_empty(),
            "{} of {cases}:\n{}",
            wrong.len(),
            wrong.join("\n")
        );
        Ok(())
    })
}

/// Writing a value does what setsockopt(2) by hand does, and what reads back is the value.
#[test]
fn what_is_written_is_what_was_meant() -> Outcome {
    isolated(|| {
        let devices = place::devices()?;
        for (protocol, row) in carried() {
            for value in samples(row, &devices) {
                let (by_hand, socket) = (fresh(protocol)?, fresh(protocol)?);
                let told = format!("{protocol} {} {value:?}", row.name);
                if let Err(error) = apply(&by_hand, row, &value) {
                    refused(protocol, row, &value, error)
                        .map_err(|why| format!("{told}: {why}"))?;
                    continue;
                }
                row.write(socket.as_fd(), &value)?;
                let (due, have) = (socket::sweep(&by_hand), socket::sweep(&socket));
                assert_eq!(due, have, "{told}");
                let exact = row.hidden.is_none() && !matches!(row.kind, Kind::Timeval);
                if exact {
                    assert_eq!(row.read(socket.as_fd())?, Some(value), "{told}");
                }
            }
        }
        Ok(())
    })
}

/// Options that change another one: the other one keeps what it was given last, its default too.
#[test]
fn a_disturbed_row_keeps_what_it_was_given() -> Outcome {
    isolated(|| {
        let disturbed =
            carried().filter_map(|(p, row)| Some((p, row, option::find(row.disturbed_by?)?)));
        let disturbed = disturbed.filter(|(p, _, first)| p.carries(first));
        for (protocol, row, first) in disturbed {
            for disturbing in samples(first, &[]) {
                let socket = fresh(protocol)?;
                apply(&socket, first, &disturbing).map_err(std::io::Error::from_raw_os_error)?;
                apply(&socket, row, &Value::Int(0)).map_err(std::io::Error::from_raw_os_error)?;
                let before = socket::sweep(&socket);
                let checkpoint = Checkpoint::dump(&socket)?;
                let restored = checkpoint.restore(&RestoreOptions::default())?;
                let after = socket::sweep(&restored.fd);
                assert!(
                    before == after,
                    "{disturbing:?}: {:?}",
                    socket::differences(&before, &after)
                );
            }
        }
        Ok(())
    })
}

#[test]
fn every_documented_spelling_is_understood() {
    let devices: [Device; 0] = [];
    for row in option::rows().filter(|row| row.carried()) {
        for value in samples(row, &devices) {
            for text in spellings(row.kind, &value) {
                let parsed = row
                    .kind
                    .parse(&text, &mut sockcr::state::interfaces::Interfaces::default());
                assert_eq!(parsed.as_ref(), Ok(&value), "{}={text:?}", row.name);
            }
        }
    }
}

/// Name, text, and the number or pair it means.
const TYPED: &[(&str, &str, Value)] = &[
    ("SO_RCVBUF", "8M", Value::Int(8 << 20)),
    ("SO_RCVBUF", "64 KiB", Value::Int(64 << 10)),
    ("SO_RCVBUF", "4k", Value::Int(4096)),
    ("SO_SNDBUF", "1GB", Value::Int(1 << 30)),
    ("SO_MAX_PACING_RATE", "10M/s", Value::Int(10 << 20)),
    ("SO_MAX_PACING_RATE", "unlimited", Value::Int(-1)),
    ("SO_BUSY_POLL", "50us", Value::Int(50)),
    ("SO_BUSY_POLL", "2ms", Value::Int(2000)),
    ("SO_RCVTIMEO", "250ms", Value::Pair(0, 250_000)),
    ("SO_RCVTIMEO", "1.5s", Value::Pair(1, 500_000)),
    ("SO_RCVTIMEO", "2min", Value::Pair(120, 0)),
    ("SO_RCVTIMEO", "0", Value::Pair(0, 0)),
    ("SO_LINGER", "off:3", Value::Pair(0, 3)),
    ("SO_MARK", "0xffffffff", Value::Int(0xffff_ffff)),
    ("IP_MULTICAST_IF", "10.0.0.1", Value::Pair(0x0a00_0001, 0)),
    ("IP_MULTICAST_IF", "eth0", Value::Pair(0, 1)),
    (
        "IP_MULTICAST_IF",
        "10.0.0.1@eth0",
        Value::Pair(0x0a00_0001, 1),
    ),
    ("IP_UNICAST_IF", "eth0", Value::Int(1)),
    ("IP_UNICAST_IF", "any", Value::Int(0)),
    ("IP_MTU_DISCOVER", "ip_pmtudisc_probe", Value::Int(3)),
    ("IPV6_MTU_DISCOVER", "ipv6_pmtudisc_do", Value::Int(2)),
    ("IPV6_MTU", "0", Value::Int(0)),
    ("IPV6_MTU", "1280", Value::Int(1280)),
    ("IPV6_MULTICAST_IF", "eth0", Value::Int(1)),
    ("IPV6_PKTINFO", "::1", Value::Scoped(Ipv6Addr::LOCALHOST, 0)),
    (
        "IPV6_PKTINFO",
        "eth0",
        Value::Scoped(Ipv6Addr::UNSPECIFIED, 1),
    ),
    (
        "IPV6_PKTINFO",
        "::1@eth0",
        Value::Scoped(Ipv6Addr::LOCALHOST, 1),
    ),
    (
        "IPV6_ADDR_PREFERENCES",
        "IPV6_PREFER_SRC_TMP",
        Value::Int(0x401),
    ),
    (
        "IPV6_ADDR_PREFERENCES",
        "IPV6_PREFER_SRC_TMP|IPV6_PREFER_SRC_COA",
        Value::Int(5),
    ),
    (
        "IP_LOCAL_PORT_RANGE",
        "40000-50000",
        Value::Pair(40_000, 50_000),
    ),
    ("SO_TXTIME", "CLOCK_TAI:2", Value::Pair(11, 2)),
];

#[test]
fn values_as_people_type_them() {
    for (name, text, value) in TYPED {
        let mut interfaces = sockcr::state::interfaces::Interfaces::default();
        let row = option::find(name).unwrap();
        assert_eq!(
            row.kind.parse(text, &mut interfaces).as_ref(),
            Ok(value),
            "{name}={text}"
        );
    }
}

/// Name, and a text that must be refused.
const WRONG: &[(&str, &str)] = &[
    ("SO_RCVBUF", "-1"),
    ("SO_RCVBUF", "100"),
    ("SO_RCVBUF", "65537"),
    ("SO_RCVBUF", "8MM"),
    ("SO_RCVBUF", "99999999999999999999G"),
    ("SO_BROADCAST", "2"),
    ("SO_BROADCAST", ""),
    ("SO_MARK", "0x100000000"),
    ("SO_MARK", "-1"),
    ("SO_MARK", "4k"),
    ("IP_TTL", "0"),
    ("IP_TTL", "256"),
    ("IP_TOS", "256"),
    ("IP_MTU_DISCOVER", "6"),
    ("IPV6_MTU", "1279"),
    ("IPV6_MTU", "-1"),
    ("IPV6_UNICAST_HOPS", "-1"),
    ("IPV6_UNICAST_HOPS", "256"),
    ("IPV6_ADDR_PREFERENCES", "IPV6_PREFER_SRC_CGA"),
    ("IPV6_PKTINFO", "10.0.0.1@eth0"),
    ("SO_RCVTIMEO", "5"),
    ("SO_RCVTIMEO", "-5s"),
    ("SO_RCVTIMEO", "1h"),
    ("SO_LINGER", "on"),
    ("SO_TIMESTAMPING_OLD", "0x80000000"),
    ("SO_TXTIME", "CLOCK_TAI:4"),
    ("IP_LOCAL_PORT_RANGE", "50000-40000"),
    ("IP_LOCAL_PORT_RANGE", "1-65536"),
    ("SO_BINDTODEVICE", "a_name_too_long_"),
    ("IP_OPTIONS", "0"),
    ("IP_OPTIONS", "zz"),
    ("UDP_SEGMENT", "65536"),
    ("UDP_ENCAP", "1"),
];

#[test]
fn wrong_values_are_refused() {
    for (name, text) in WRONG {
        let mut interfaces = sockcr::state::interfaces::Interfaces::default();
        let row = option::find(name).unwrap();
        let parsed = row.kind.parse(text, &mut interfaces);
        let why = parsed.expect_err(&format!("{name}={text}"));
        assert!(!why.is_empty(), "{name}={text}");
    }
}

fn unique<T: Eq + Hash + Ord + Debug>(what: &str, of: impl Fn(&'static Row) -> T) {
    let mut seen = BTreeMap::new();
    for row in option::rows() {
        if let Some(other) = seen.insert(of(row), row.name) {
            panic!(
                "{what} {:?} belongs to {other} and to {}",
                of(row),
                row.name
            );
        }
    }
}

#[test]
fn names_numbers_and_attributes_are_unique() {
    unique("attribute", |row| row.attribute);
    unique("name", |row| row.name.to_ascii_lowercase());
    unique("number", |row| (level(row), row.number));
}

/// The attributes that the RFC gave to options: all of 5 to 40 but the locks of the buffers and the
/// memberships.
#[test]
fn the_rfc_options_have_their_attributes() {
    let options = (5..=40).filter(|number| ![21, 22, 37, 38].contains(number));
    let have: BTreeSet<u16> = option::rows().map(|row| row.attribute).collect();
    let missing: Vec<u16> = options.filter(|number| !have.contains(number)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn every_row_says_where_it_comes_from() {
    for row in option::rows() {
        assert!(
            row.since.split('.').all(|part| part.parse::<u32>().is_ok()),
            "{}: {}",
            row.name,
            row.since
        );
        assert!(row.source.contains(".c "), "{}: {}", row.name, row.source);
        assert!(
            row.kind == Kind::Opaque(0) || !row.kind.describe().is_empty(),
            "{}",
            row.name
        );
        if let Access::Alias(name) = row.access {
            assert!(
                option::find(name).is_some_and(Row::carried),
                "{}: {name}",
                row.name
            );
        }
        if let Some(name) = row.disturbed_by {
            assert!(
                option::find(name).is_some_and(Row::carried),
                "{}: {name}",
                row.name
            );
        }
        // IPV6_MTU tells another thing than it sets, which only BPF reads.
        assert!(
            NOT_SWEPT
                .iter()
                .all(|name| *name != (level(row), row.number.into()))
                || !row.carried()
                || row.name == "IPV6_MTU",
            "{}",
            row.name
        );
    }
}

/// First, then: what is written first must not undo, forbid or change what is written then.
const ORDER: &[(&str, &str)] = &[
    ("IP_TOS", "SO_PRIORITY"),
    ("IP_MULTICAST_IF", "SO_BINDTODEVICE"),
    ("IP_UNICAST_IF", "SO_BINDTODEVICE"),
    ("IPV6_MULTICAST_IF", "SO_BINDTODEVICE"),
    ("IPV6_UNICAST_IF", "SO_BINDTODEVICE"),
    ("IPV6_PKTINFO", "SO_BINDTODEVICE"),
    ("SO_TIMESTAMPING_OLD", "SO_TIMESTAMPING_NEW"),
    ("SO_TIMESTAMPING_NEW", "SO_TIMESTAMP"),
    ("SO_TIMESTAMPING_NEW", "SO_TIMESTAMP_NEW"),
    ("SO_TIMESTAMP", "SO_TIMESTAMP_NEW"),
    ("SO_TIMESTAMPNS", "SO_TIMESTAMPNS_NEW"),
];

#[test]
fn the_rows_stand_in_an_order_that_restores() {
    let place = |name: &str| option::rows().position(|row| row.name == name).unwrap();
    for (first, then) in ORDER {
        assert!(place(first) < place(then), "{first} before {then}");
    }
    let stage = |name: &str| option::find(name).map(|row| row.access).unwrap();
    for name in ["SO_LOCK_FILTER", "UDP_CORK"] {
        assert_eq!(stage(name), Access::Carried(option::Stage::Last), "{name}");
    }
    for name in [
        "SO_REUSEADDR",
        "SO_REUSEPORT",
        "SO_BINDTODEVICE",
        "IP_TRANSPARENT",
        "IP_FREEBIND",
        "IPV6_V6ONLY",
    ] {
        assert_eq!(
            stage(name),
            Access::Carried(option::Stage::BeforeBind),
            "{name}"
        );
    }
    for row in option::rows().filter(|row| row.disturbed_by.is_some()) {
        assert!(
            place(row.disturbed_by.unwrap()) < place(row.name),
            "{}",
            row.name
        );
    }
}
