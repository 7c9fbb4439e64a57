//! Values of options: what a row allows, what setsockopt(2) is given for it, how people type it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use sockcr::option::{Default, Kind, Level, Order, Row, Value};

use super::place::Device;
use super::socket::{self, ICMPV6, IP, IPV6, RAW, SOCKET, UDP};

const SO_SNDBUFFORCE: i32 = 32;
const SO_RCVBUFFORCE: i32 = 33;
const OPT_STATS: i64 = 1 << 12;
const OPT_TSONLY: i64 = 1 << 11;
const OPT_ID_TCP: i64 = 1 << 16;
const OPT_ID: i64 = 1 << 7;

/// IP options that the kernel accepts: none, record route, router alert, a loose source route,
/// time stamps.
pub const IP_OPTIONS: &[&[u8]] = &[
    &[],
    &[1, 1, 1, 1],
    &[7, 7, 4, 0, 0, 0, 0, 0],
    &[148, 4, 0, 0],
    &[131, 7, 4, 127, 0, 0, 1, 0],
    &[68, 8, 5, 0, 0, 0, 0, 0],
    &[
        7, 39, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ],
];

/// An address that no device has.
pub const FOREIGN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The number of a level in the system call.
pub fn level(row: &Row) -> i32 {
    match row.level {
        Level::Socket => SOCKET,
        Level::Ip => IP,
        Level::Ipv6 => IPV6,
        Level::Udp => UDP,
        Level::Raw => RAW,
        Level::Icmpv6 => ICMPV6,
    }
}

/// The values worth trying of a row: its default, both ends, something between, each name.
pub fn samples(row: &Row, devices: &[Device]) -> Vec<Value> {
    let mut values = match row.kind {
        Kind::Bytes(_) => bytes(row),
        kind => of_kind(kind, devices),
    };
    if let Default::Number(number) = row.default {
        values.push(Value::Int(number));
    }
    values.dedup();
    values
}

fn of_kind(kind: Kind, devices: &[Device]) -> Vec<Value> {
    let ints = |numbers: &[i64]| numbers.iter().map(|number| Value::Int(*number)).collect();
    let pairs = |pairs: &[(i64, i64)]| pairs.iter().map(|(a, b)| Value::Pair(*a, *b)).collect();
    match kind {
        Kind::Flag => ints(&[1, 0]),
        Kind::Int(min, max, _) => {
            let middle = min + (max - min) / 3;
            ints(&[middle, min, max, (min + 1).min(max), (max - 1).max(min)])
        }
        Kind::ZeroOr(min, max, _) => ints(&[min + 120, 0, min, min + 1, max - 1, max]),
        Kind::U64(_) => ints(&[12_345_678_901, 0, 1, i64::MAX, i64::MIN, -2, -1]),
        Kind::Enum(names) => names
            .iter()
            .map(|(_, number)| Value::Int(*number))
            .collect(),
        Kind::Bits(names) => names.iter().map(|(_, bit)| Value::Int(*bit)).collect(),
        Kind::Buffer(min) => ints(&[65_538, min, min + 2, 1 << 24, i64::from(i32::MAX) - 1]),
        Kind::Timeval => pairs(&[(0, 4_000), (0, 0), (1, 500_000), (86_400, 0), (0, 996_000)]),
        Kind::Linger => pairs(&[(1, 5), (0, 0), (0, 7), (1, 0), (1, i32::MAX.into())]),
        Kind::Timestamping(names) => timestamping(names),
        Kind::Txtime => pairs(&[(1, 0), (11, 3), (0, 0), (0, 2), (1, 1)]),
        Kind::PortRange => pairs(&[
            (40_000, 50_000),
            (0, 0),
            (1, 65_535),
            (0, 9),
            (9, 0),
            (7, 7),
        ]),
        Kind::Interface(_) => devices
            .iter()
            .map(|d| Value::Int(d.index.into()))
            .chain([Value::Int(0)])
            .collect(),
        Kind::MulticastInterface => multicast_interfaces(devices),
        Kind::Device => {
            let names = devices.iter().map(|device| device.name).chain(["lo", ""]);
            names.map(|name| Value::Text(name.into())).collect()
        }
        Kind::PacketInfo => packet_infos(devices),
        Kind::Field(size) => {
            let mixed = (0..size).map(|at| at as u8).collect();
            let all = [vec![0; size], vec![0xff; size], mixed];
            all.map(Value::Bytes).into()
        }
        Kind::Bytes(_) | Kind::Opaque(_) => Vec::new(),
    }
}

/// What the kernel takes for each option of bytes.
fn bytes(row: &Row) -> Vec<Value> {
    let all: Vec<Vec<u8>> = match (row.level, row.name) {
        (Level::Ipv6, "IPV6_RTHDR") => vec![Vec::new(), segments(1), segments(2), segments(127)],
        (Level::Ipv6, _) => vec![Vec::new(), padding(8), padding(16), padding(8 * 255)],
        _ => IP_OPTIONS.iter().map(|bytes| bytes.to_vec()).collect(),
    };
    all.into_iter().map(Value::Bytes).collect()
}

/// An extension header of nothing but padding.
fn padding(length: usize) -> Vec<u8> {
    let mut header = vec![0; length];
    header[1] = (length / 8 - 1) as u8;
    header
}

/// A routing header by way of so many places (`struct ipv6_sr_hdr`).
fn segments(count: usize) -> Vec<u8> {
    let last = (count - 1) as u8;
    let head = vec![0, (2 * count) as u8, 4, last, last, 0, 0, 0];
    let place = |number: usize| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16).octets();
    let places = (1..=count).flat_map(place);
    head.into_iter().chain(places).collect()
}

fn packet_infos(devices: &[Device]) -> Vec<Value> {
    let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9);
    let none = Ipv6Addr::UNSPECIFIED;
    let mut values = vec![Value::Scoped(address, 0), Value::Scoped(none, 0)];
    for device in devices {
        values.push(Value::Scoped(address, device.index));
        values.push(Value::Scoped(none, device.index));
    }
    values
}

/// Each flag, with the one it needs.
fn timestamping(names: &[(&str, i64)]) -> Vec<Value> {
    let needs = |bit: i64| match bit {
        OPT_STATS => OPT_TSONLY,
        OPT_ID_TCP => OPT_ID,
        _ => 0,
    };
    let each = names.iter().map(|(_, bit)| bit | needs(*bit));
    each.chain([0]).map(|flags| Value::Pair(flags, 0)).collect()
}

fn multicast_interfaces(devices: &[Device]) -> Vec<Value> {
    let address = |address: Ipv4Addr| i64::from(u32::from(address));
    let mut values = vec![
        Value::Pair(address(Ipv4Addr::new(127, 1, 2, 3)), 1),
        Value::Pair(0, 0),
    ];
    for device in devices {
        let index = i64::from(device.index);
        values.push(Value::Pair(address(device.address), index));
        values.push(Value::Pair(0, index));
        values.push(Value::Pair(address(FOREIGN), index));
    }
    values
}

/// One setsockopt(2): the number and the bytes.
pub type Step = (i32, Vec<u8>);

/// The calls that give a fresh socket this value.
pub fn steps(row: &Row, value: &Value) -> Vec<Step> {
    let number = i32::from(row.number);
    let word = |number: i64| (number as i32).to_ne_bytes().to_vec();
    let words = |a: i64, b: i64| [word(a), word(b)].concat();
    let one = |bytes: Vec<u8>| vec![(number, bytes)];
    match (row.kind, value) {
        (Kind::Buffer(_), Value::Int(size)) => {
            let force = if number == 7 {
                SO_SNDBUFFORCE
            } else {
                SO_RCVBUFFORCE
            };
            vec![(force, word(size / 2))]
        }
        (Kind::U64(_), Value::Int(number)) => one(number.to_ne_bytes().into()),
        (Kind::Interface(Order::Network), Value::Int(index)) => {
            one((*index as u32).to_be_bytes().into())
        }
        (Kind::Timeval, Value::Pair(a, b)) => one([a.to_ne_bytes(), b.to_ne_bytes()].concat()),
        (Kind::PortRange, Value::Pair(low, high)) => one(word(high << 16 | low)),
        (Kind::Linger, Value::Pair(0, kept)) if *kept != 0 => {
            vec![(number, words(1, *kept)), (number, words(0, 0))]
        }
        (Kind::MulticastInterface, Value::Pair(address, index)) => one([
            vec![0; 4],
            (*address as u32).to_be_bytes().into(),
            word(*index),
        ]
        .concat()),
        (_, Value::Int(number)) => one(word(*number)),
        (_, Value::Pair(a, b)) => one(words(*a, *b)),
        (_, Value::Scoped(address, index)) => {
            one([address.octets().to_vec(), index.to_ne_bytes().into()].concat())
        }
        (_, Value::Text(name)) => one(name.clone().into_bytes()),
        (_, Value::Bytes(bytes)) => one(bytes.clone()),
    }
}

/// Carries out the steps on a socket; the errno of the first that fails.
pub fn apply(socket: &impl AsFd, row: &Row, value: &Value) -> Result<(), i32> {
    let steps = steps(row, value);
    steps
        .iter()
        .try_for_each(|(number, bytes)| socket::set(socket, level(row), *number, bytes))
}

fn flags<'a>(names: &[(&'a str, i64)], bits: i64) -> Vec<&'a str> {
    let set = names.iter().filter(|(_, bit)| bits & bit != 0);
    set.map(|(name, _)| *name).collect()
}

/// The spellings of a value that the documentation promises; devices must be named by hand.
pub fn spellings(kind: Kind, value: &Value) -> Vec<String> {
    let name = |names: &[(&str, i64)], number: i64| {
        let found = names.iter().find(|(_, value)| *value == number);
        found.map_or_else(|| number.to_string(), |(name, _)| (*name).into())
    };
    match (kind, value) {
        (Kind::Flag, Value::Int(0)) => ["0", "off", "no", "false"].map(String::from).into(),
        (Kind::Flag, _) => ["1", "on", "yes", "TRUE"].map(String::from).into(),
        (Kind::U64(_), Value::Int(-1)) => vec!["unlimited".into(), u64::MAX.to_string()],
        (Kind::U64(_), Value::Int(number)) => vec![(*number as u64).to_string()],
        (Kind::Int(..) | Kind::ZeroOr(..) | Kind::Buffer(_), Value::Int(number)) => {
            let hexadecimal = (*number >= 0).then(|| format!("{number:#x}"));
            [number.to_string()]
                .into_iter()
                .chain(hexadecimal)
                .collect()
        }
        (Kind::Enum(names), Value::Int(number)) => {
            let name = name(names, *number);
            vec![name.to_lowercase(), name, number.to_string()]
        }
        (Kind::Bits(names), Value::Int(bits)) => {
            vec![flags(names, *bits).join("|"), bits.to_string()]
        }
        (Kind::Timestamping(names), Value::Pair(bits, 0)) => {
            let names = flags(names, *bits);
            vec![names.join("|"), names.join(" | "), format!("{bits:#x}:0")]
        }
        (Kind::Timeval, Value::Pair(0, 0)) => vec!["0".into(), "no limit".into(), "0s".into()],
        (Kind::Timeval, Value::Pair(seconds, micros)) => {
            let all = seconds * 1_000_000 + micros;
            vec![
                format!("{seconds}.{micros:06}s"),
                format!("{all}us"),
                format!("{}.{:03} ms", all / 1000, all % 1000),
            ]
        }
        (Kind::Linger, Value::Pair(0, 0)) => vec!["off".into()],
        (Kind::Linger, Value::Pair(0, kept)) => vec![format!("off:{kept}")],
        (Kind::Linger, Value::Pair(_, seconds)) => {
            vec![seconds.to_string(), format!("{seconds} s")]
        }
        (Kind::Txtime, Value::Pair(clock, how)) => {
            let clocks = [
                ("CLOCK_REALTIME", 0),
                ("CLOCK_MONOTONIC", 1),
                ("CLOCK_TAI", 11),
            ];
            vec![
                format!("{}:{how}", name(&clocks, *clock)),
                format!("{clock}:{how}"),
            ]
        }
        (Kind::PortRange, Value::Pair(0, 0)) => vec!["0".into(), "0-0".into()],
        (Kind::PortRange, Value::Pair(low, high)) => vec![format!("{low}-{high}")],
        (Kind::Device, Value::Text(name)) => vec![name.clone()],
        (Kind::Bytes(_), Value::Bytes(bytes)) => {
            vec![bytes.iter().map(|byte| format!("{byte:02x}")).collect()]
        }
        _ => Vec::new(),
    }
}
