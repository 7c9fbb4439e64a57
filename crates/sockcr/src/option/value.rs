//! The value of an option: what shapes there are, and how each looks to the kernel, in JSON, typed
//! by a person and printed for one.

use super::{Default, Wire};
use crate::state::interfaces::Interfaces;
use serde_json::{Value as Json, json};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// Room enough for the longest value that is read.
pub(super) const LONGEST: usize = 2048;
/// Room for the values that are not [`Kind::Bytes`].
pub(super) const SHORT: usize = 64;

/// A list of named numbers, as the header files name them.
pub type Names = &'static [(&'static str, i64)];

/// The unit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A bare number.
    None,
    /// Bytes.
    Bytes,
    /// Microseconds.
    Microseconds,
    /// Bytes a second.
    Rate,
    /// Routers passed.
    Hops,
    /// A bit for each of 32 things.
    Mask,
}

/// The order of the bytes of a device's index in the system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The machine's.
    Host,
    /// The network's.
    Network,
}

/// The shape of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 0 or 1.
    Flag,
    /// A number of 4 bytes within these bounds; unsigned when the lower one is not negative.
    Int(i64, i64, Unit),
    /// 0, or a number of 4 bytes within these bounds.
    ZeroOr(i64, i64, Unit),
    /// A number of 8 bytes.
    U64(Unit),
    /// One of these.
    Enum(Names),
    /// Any of these together.
    Bits(Names),
    /// A buffer size: reads twice what was set, is never below this minimum, and always even.
    Buffer(i64),
    /// `struct timeval`: seconds and microseconds; zero is no limit.
    Timeval,
    /// `struct linger`: on or off, seconds.
    Linger,
    /// `struct so_timestamping`: these flags, and the index of a hardware clock.
    Timestamping(Names),
    /// `struct sock_txtime`: the clock, and flags.
    Txtime,
    /// A low and a high port.
    PortRange,
    /// A device by index.
    Interface(Order),
    /// The device and the source address of outgoing multicast: `struct ip_mreqn`.
    MulticastInterface,
    /// The source address and the device of what is sent: `struct in6_pktinfo`.
    PacketInfo,
    /// A device by name.
    Device,
    /// At most so many bytes.
    Bytes(usize),
    /// Exactly so many bytes, all 0 when nothing is chosen.
    Field(usize),
    /// So many bytes that are shown as they are and never written.
    Opaque(usize),
}

/// A value. Which variant an option uses follows from its [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Int(i64),
    /// Two numbers: (onoff, linger), (sec, usec), (flags, bind_phc), (clockid, flags), (low, high),
    /// (address, index).
    Pair(i64, i64),
    /// An IPv6 address and the index of a device.
    Scoped(Ipv6Addr, u32),
    /// A name.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// Nothing at all: zeroes, an empty name, no bytes.
    pub fn is_empty(&self) -> bool {
        match self {
            Value::Int(number) => *number == 0,
            Value::Pair(a, b) => *a == 0 && *b == 0,
            Value::Scoped(address, index) => address.is_unspecified() && *index == 0,
            Value::Text(text) => text.is_empty(),
            Value::Bytes(bytes) => bytes.is_empty(),
        }
    }

    /// The number, if it is one.
    pub fn number(&self) -> Option<i64> {
        match self {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    Some(i32::from_ne_bytes(bytes))
}

fn i64_at(bytes: &[u8], at: usize) -> Option<i64> {
    let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
    Some(i64::from_ne_bytes(bytes))
}

fn words(a: i64, b: i64) -> Vec<u8> {
    [(a as i32).to_ne_bytes(), (b as i32).to_ne_bytes()].concat()
}

impl Kind {
    /// Whether a value of this kind is nothing at all.
    pub(super) fn is_empty(self, value: &Value) -> bool {
        match (self, value) {
            (Kind::Field(_), Value::Bytes(bytes)) => bytes.iter().all(|byte| *byte == 0),
            _ => value.is_empty(),
        }
    }

    /// How it lies in an attribute unless the row says otherwise.
    pub(super) const fn wire(self) -> Wire {
        match self {
            Kind::Device => Wire::Name,
            Kind::MulticastInterface => Wire::MulticastInterface,
            Kind::Flag
            | Kind::Int(..)
            | Kind::ZeroOr(..)
            | Kind::Enum(_)
            | Kind::Bits(_)
            | Kind::Buffer(_)
            | Kind::Interface(_) => Wire::U32,
            _ => Wire::Kernel,
        }
    }

    /// What a fresh socket has unless the row says otherwise.
    pub(super) const fn default(self) -> Default {
        match self {
            Kind::Flag
            | Kind::Int(..)
            | Kind::ZeroOr(..)
            | Kind::U64(_)
            | Kind::Enum(_)
            | Kind::Bits(_) => Default::Number(0),
            Kind::Buffer(_) | Kind::Opaque(_) => Default::None,
            _ => Default::Empty,
        }
    }

    /// How many bytes to ask the kernel for.
    pub fn size(self) -> usize {
        match self {
            Kind::U64(_) | Kind::Linger | Kind::Timestamping(_) | Kind::Txtime => 8,
            Kind::Timeval | Kind::Device => 16,
            Kind::PacketInfo => 20,
            // A little more than may be set: what is longer is seen to be so, not cut off.
            Kind::Bytes(most) => (most + 8).min(LONGEST),
            Kind::Opaque(size) | Kind::Field(size) => size.min(SHORT),
            _ => 4,
        }
    }

    /// Whether a number of 4 bytes is unsigned.
    pub(super) fn unsigned(self) -> bool {
        match self {
            Kind::Int(min, ..) | Kind::ZeroOr(min, ..) => min >= 0,
            Kind::Bits(_) | Kind::Interface(_) | Kind::PortRange => true,
            _ => false,
        }
    }

    /// Reads what getsockopt(2) answered.
    pub(super) fn decode(self, bytes: &[u8]) -> Option<Value> {
        let value = match self {
            Kind::U64(_) => Value::Int(i64_at(bytes, 0)?),
            Kind::Timeval => Value::Pair(i64_at(bytes, 0)?, i64_at(bytes, 8)?),
            Kind::Linger | Kind::Timestamping(_) | Kind::Txtime => {
                Value::Pair(i32_at(bytes, 0)?.into(), i32_at(bytes, 4)?.into())
            }
            Kind::PortRange => {
                let range = i32_at(bytes, 0)? as u32;
                Value::Pair((range & 0xffff).into(), (range >> 16).into())
            }
            Kind::Interface(Order::Network) => {
                Value::Int(u32::from_be(i32_at(bytes, 0)? as u32).into())
            }
            Kind::PacketInfo => {
                let address = *bytes.first_chunk::<16>()?;
                Value::Scoped(address.into(), i32_at(bytes, 16)? as u32)
            }
            Kind::MulticastInterface => {
                Value::Pair(u32::from_be(i32_at(bytes, 0)? as u32).into(), 0)
            }
            Kind::Device => {
                let name = bytes.split(|byte| *byte == 0).next()?;
                let name = String::from_utf8(name.to_vec()).ok()?;
                Value::Text(Some(name).filter(|name| printable(name))?)
            }
            Kind::Field(size) if size != bytes.len() => return None,
            Kind::Bytes(_) | Kind::Field(_) | Kind::Opaque(_) => Value::Bytes(bytes.to_vec()),
            _ if self.unsigned() => Value::Int((i32_at(bytes, 0)? as u32).into()),
            _ => Value::Int(i32_at(bytes, 0)?.into()),
        };
        Some(value)
    }

    /// What setsockopt(2) is given, one call after the other.
    pub(crate) fn encode(self, value: &Value) -> Vec<Vec<u8>> {
        let one = |bytes: &[u8]| vec![bytes.to_vec()];
        match (self, value) {
            // SO_LINGER keeps its seconds while off, and only an "on" writes them.
            (Kind::Linger, Value::Pair(0, seconds)) => vec![words(1, *seconds), words(0, 0)],
            (Kind::Buffer(_), Value::Int(size)) => one(&((size / 2) as i32).to_ne_bytes()),
            (Kind::U64(_), Value::Int(number)) => one(&number.to_ne_bytes()),
            (Kind::Interface(Order::Network), Value::Int(index)) => {
                one(&(*index as u32).to_be_bytes())
            }
            (Kind::Timeval, Value::Pair(seconds, micros)) => {
                one(&[seconds.to_ne_bytes(), micros.to_ne_bytes()].concat())
            }
            (Kind::PortRange, Value::Pair(low, high)) => {
                one(&((*high as u32) << 16 | (*low as u32 & 0xffff)).to_ne_bytes())
            }
            (Kind::MulticastInterface, Value::Pair(address, index)) => one(&[
                [0; 4],
                (*address as u32).to_be_bytes(),
                (*index as u32).to_ne_bytes(),
            ]
            .concat()),
            (_, Value::Int(number)) => one(&(*number as i32).to_ne_bytes()),
            (_, Value::Pair(a, b)) => vec![words(*a, *b)],
            (_, Value::Scoped(address, index)) => {
                one(&[&address.octets()[..], &index.to_ne_bytes()].concat())
            }
            (_, Value::Text(name)) => one(name.as_bytes()),
            (_, Value::Bytes(bytes)) => one(bytes),
        }
    }

    /// Says what is wrong with a value that the kernel would refuse, or change in silence.
    pub fn check(self, value: &Value) -> Result<(), String> {
        let within = |number: i64, min: i64, max: i64| {
            if (min..=max).contains(&number) {
                Ok(())
            } else {
                Err(format!("{number} is not between {min} and {max}"))
            }
        };
        match (self, value) {
            (Kind::Flag, Value::Int(number)) => within(*number, 0, 1),
            (Kind::Int(min, max, _), Value::Int(number)) => within(*number, min, max),
            (Kind::ZeroOr(..), Value::Int(0)) => Ok(()),
            (Kind::ZeroOr(min, max, _), Value::Int(number)) => within(*number, min, max),
            (Kind::Interface(_), Value::Int(number)) => within(*number, 0, i32::MAX.into()),
            (Kind::PacketInfo, Value::Scoped(_, index)) => {
                within((*index).into(), 0, i32::MAX.into())
            }
            (Kind::Enum(names), Value::Int(number)) => names
                .iter()
                .any(|(_, value)| value == number)
                .then_some(())
                .ok_or_else(|| format!("{number} is none of {}", list(names))),
            (Kind::Bits(names), Value::Int(flags))
            | (Kind::Timestamping(names), Value::Pair(flags, _)) => {
                match flags & !names.iter().fold(0, |all, (_, bit)| all | bit) {
                    0 => Ok(()),
                    rest => Err(format!("{rest:#x} is none of {}", list(names))),
                }
            }
            (Kind::Buffer(min), Value::Int(size)) if size % 2 != 0 => Err(format!(
                "{size} is odd: the kernel doubles what it is given, so only the sysctl's default \
                 can be odd (at least {min}, at most {})",
                i32::MAX - 1
            )),
            (Kind::Buffer(min), Value::Int(size)) => within(*size, min, (i32::MAX - 1).into()),
            (Kind::Timeval, Value::Pair(seconds, micros)) => {
                within(*seconds, 0, i64::MAX).and(within(*micros, 0, 999_999))
            }
            (Kind::Linger, Value::Pair(on, _)) => within(*on, 0, 1),
            (Kind::Txtime, Value::Pair(_, flags)) => within(*flags, 0, 3),
            (Kind::PortRange, Value::Pair(low, high)) => {
                within(*low, 0, 65535).and(within(*high, 0, 65535))?;
                if *low != 0 && *high != 0 && low > high {
                    return Err(format!("{low} is above {high}"));
                }
                Ok(())
            }
            (Kind::MulticastInterface, Value::Pair(address, index)) => {
                within(*address, 0, u32::MAX.into()).and(within(*index, 0, i32::MAX.into()))
            }
            (Kind::U64(_), Value::Int(_)) => Ok(()),
            (Kind::Device, Value::Text(name)) if name.len() < 16 => Ok(()),
            (Kind::Device, Value::Text(name)) => Err(format!("{name} is longer than 15 bytes")),
            (Kind::Bytes(most), Value::Bytes(bytes)) => within(bytes.len() as i64, 0, most as i64),
            (Kind::Field(size), Value::Bytes(bytes)) if bytes.len() == size => Ok(()),
            (Kind::Field(size), Value::Bytes(bytes)) => {
                Err(format!("{} bytes are not {size}", bytes.len()))
            }
            _ => Err("this kind of value does not belong to this option".into()),
        }
    }

    /// Turns device indexes of the place the value was read into those of `fd`'s.
    pub(crate) fn localize(
        self,
        value: &Value,
        fd: BorrowedFd<'_>,
        interfaces: &Interfaces,
    ) -> io::Result<Value> {
        Ok(match (self, value) {
            (Kind::Interface(_), Value::Int(index)) => {
                Value::Int(interfaces.local(fd, *index as u32)?.into())
            }
            (Kind::MulticastInterface, Value::Pair(address, index)) => {
                Value::Pair(*address, interfaces.local(fd, *index as u32)?.into())
            }
            (Kind::PacketInfo, Value::Scoped(address, index)) => {
                Value::Scoped(*address, interfaces.local(fd, *index)?)
            }
            _ => value.clone(),
        })
    }

    /// Whether the kernel may make something else of a legal value, such as a time rounded to its
    /// clock.
    pub(crate) fn may_change(self) -> bool {
        matches!(
            self,
            Kind::Timeval | Kind::Linger | Kind::Bytes(_) | Kind::Timestamping(_)
        )
    }

    /// Why a buffer did not take the size it was given.
    pub(super) fn clamped(self, value: &Value) -> String {
        format!(
            "the kernel gave less than {}: it is above net.core.rmem_max or wmem_max, and only \
             CAP_NET_ADMIN of the initial user namespace may exceed those",
            self.show(value, &Interfaces::default())
        )
    }

    /// The device index in a value, to be named in the image.
    pub fn interface(self, value: &Value) -> Option<u32> {
        let index = match (self, value) {
            (Kind::Interface(_), Value::Int(index)) => *index,
            (Kind::PacketInfo, Value::Scoped(_, index)) => (*index).into(),
            (Kind::MulticastInterface, Value::Pair(_, index)) => *index,
            _ => 0,
        };
        u32::try_from(index).ok().filter(|index| *index != 0)
    }

    /// As JSON, in the kernel's unit.
    pub fn to_json(self, value: &Value, interfaces: &Interfaces) -> Json {
        let [a, b] = match self {
            Kind::Linger => ["onoff", "linger"],
            Kind::Timeval => ["sec", "usec"],
            Kind::Timestamping(_) => ["flags", "bind_phc"],
            Kind::Txtime => ["clockid", "flags"],
            _ => ["low", "high"],
        };
        match (self, value) {
            (Kind::U64(_), Value::Int(number)) => json!(*number as u64),
            (Kind::Interface(_), Value::Int(index)) => interfaces.to_json(*index as u32),
            (Kind::MulticastInterface, Value::Pair(address, index)) => json!({
                "address": Ipv4Addr::from(*address as u32).to_string(),
                "interface": interfaces.to_json(*index as u32),
            }),
            (_, Value::Scoped(address, index)) => json!({
                "address": address.to_string(),
                "interface": interfaces.to_json(*index),
            }),
            (_, Value::Int(number)) => json!(number),
            (_, Value::Pair(first, second)) => json!({ a: first, b: second }),
            (_, Value::Text(text)) => json!(text),
            (_, Value::Bytes(bytes)) => json!(crate::hex::encode(bytes)),
        }
    }

    /// The inverse of [`Kind::to_json`].
    pub fn from_json(self, json: &Json, interfaces: &Interfaces) -> Result<Value, String> {
        let pair = |a: &str, b: &str| {
            let (a, b) = (json.get(a)?.as_i64()?, json.get(b)?.as_i64()?);
            json.as_object().filter(|map| map.len() == 2)?;
            Some(Value::Pair(a, b))
        };
        let value = match self {
            Kind::U64(_) => json.as_u64().map(|number| Value::Int(number as i64)),
            Kind::Interface(_) => interfaces.parse_json(json).map(|i| Value::Int(i.into())),
            Kind::PacketInfo => json.get("address").and_then(|address| {
                let address: Ipv6Addr = address.as_str()?.parse().ok()?;
                let index = interfaces.parse_json(json.get("interface")?)?;
                Some(Value::Scoped(address, index))
            }),
            Kind::MulticastInterface => json.get("address").and_then(|address| {
                let address: Ipv4Addr = address.as_str()?.parse().ok()?;
                let index = interfaces.parse_json(json.get("interface")?)?;
                Some(Value::Pair(u32::from(address).into(), index.into()))
            }),
            Kind::Linger => pair("onoff", "linger"),
            Kind::Timeval => pair("sec", "usec"),
            Kind::Timestamping(_) => pair("flags", "bind_phc"),
            Kind::Txtime => pair("clockid", "flags"),
            Kind::PortRange => pair("low", "high"),
            Kind::Device => json.as_str().map(|text| Value::Text(text.into())),
            Kind::Bytes(_) | Kind::Field(_) | Kind::Opaque(_) => {
                json.as_str().and_then(crate::hex::decode).map(Value::Bytes)
            }
            _ => json.as_i64().map(Value::Int),
        };
        value.ok_or_else(|| format!("{json} is not {}", self.describe()))
    }

    /// What such a value is, for error messages and the table of options.
    pub fn describe(self) -> String {
        match self {
            Kind::Flag => "a flag: 0 or 1".into(),
            Kind::Int(min, max, unit) => format!("a number from {min} to {max}{}", unit.of()),
            Kind::ZeroOr(min, max, unit) => {
                format!("0, or a number from {min} to {max}{}", unit.of())
            }
            Kind::U64(unit) => format!("a number of 64 bits{}", unit.of()),
            Kind::Enum(names) => format!("one of {}", list(names)),
            Kind::Bits(names) => format!("any of {}, joined by |", list(names)),
            Kind::Buffer(min) => {
                format!("a size in bytes as it reads (twice what is set), even, from {min}")
            }
            Kind::Timeval => "a time: 250ms, 1.5s, 0 for no limit".into(),
            Kind::Linger => "off, or a number of seconds (off:N keeps them while off)".into(),
            Kind::Timestamping(names) => format!(
                "any of {}, joined by |, and :N for the hardware clock N",
                list(names)
            ),
            Kind::Txtime => "a clock (CLOCK_MONOTONIC, CLOCK_TAI, ...) and :FLAGS".into(),
            Kind::PortRange => "two ports, LOW-HIGH".into(),
            Kind::Interface(_) => "a device".into(),
            Kind::MulticastInterface | Kind::PacketInfo => {
                "an address, a device, or ADDRESS@DEVICE".into()
            }
            Kind::Device => "a device, or nothing".into(),
            Kind::Bytes(most) => format!("at most {most} bytes in hexadecimal"),
            Kind::Field(size) => format!("{size} bytes in hexadecimal, or none"),
            Kind::Opaque(0) => "-".into(),
            Kind::Opaque(size) => format!("{size} bytes"),
        }
    }
}

/// Whether a text from elsewhere may be shown on a terminal.
pub(crate) fn printable(text: &str) -> bool {
    !text.contains(char::is_control)
}

fn list(names: Names) -> String {
    let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

impl Unit {
    fn of(self) -> &'static str {
        match self {
            Unit::None => "",
            Unit::Bytes => ", in bytes",
            Unit::Microseconds => ", in microseconds",
            Unit::Rate => ", in bytes a second",
            Unit::Hops => " routers",
            Unit::Mask => ", a bit for each",
        }
    }
}
