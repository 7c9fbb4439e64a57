//! Values as people type and read them: `8M`, `250ms`, `IP_PMTUDISC_DO`.

use super::value::{Names, Unit};
use super::{Kind, Value};
use crate::state::interfaces::Interfaces;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

const CLOCKS: Names = &[
    ("CLOCK_REALTIME", 0),
    ("CLOCK_MONOTONIC", 1),
    ("CLOCK_TAI", 11),
];

impl Kind {
    /// Reads a value as a person writes it; a device not met before is added to `interfaces`.
    pub fn parse(self, text: &str, interfaces: &mut Interfaces) -> Result<Value, String> {
        let text = text.trim();
        let value = match self {
            Kind::Flag => flag(text),
            Kind::Int(_, _, unit) | Kind::ZeroOr(_, _, unit) => number(text, unit),
            Kind::U64(unit) => unsigned(text, unit),
            Kind::Buffer(_) => number(text, Unit::Bytes),
            Kind::Enum(names) => named(text, names),
            Kind::Bits(names) => flags(text, names),
            Kind::Timeval => timeval(text),
            Kind::Linger => linger(text),
            Kind::Timestamping(names) => timestamping(text, names),
            Kind::Txtime => txtime(text),
            Kind::PortRange => range(text),
            Kind::Interface(_) => Some(Value::Int(device(text, interfaces).into())),
            Kind::MulticastInterface => address_and_device(text, Ipv4Addr::UNSPECIFIED, interfaces)
                .map(|(address, index)| Value::Pair(u32::from(address).into(), index.into())),
            Kind::PacketInfo => address_and_device(text, Ipv6Addr::UNSPECIFIED, interfaces)
                .map(|(address, index)| Value::Scoped(address, index)),
            Kind::Device => Some(Value::Text(text.into())),
            Kind::Bytes(_) if text == "none" => Some(Value::Bytes(Vec::new())),
            Kind::Field(size) if text == "none" => Some(Value::Bytes(vec![0; size])),
            Kind::Bytes(_) | Kind::Field(_) | Kind::Opaque(_) => {
                crate::hex::decode(text).map(Value::Bytes)
            }
        };
        let value = value.ok_or_else(|| format!("{text:?} is not {}", self.describe()))?;
        self.check(&value)?;
        Ok(value)
    }

    /// Prints a value for a person.
    pub fn show(self, value: &Value, interfaces: &Interfaces) -> String {
        match (self, value) {
            (Kind::Flag, Value::Int(0)) => "off".into(),
            (Kind::Flag, Value::Int(1)) => "on".into(),
            (Kind::Int(_, _, unit) | Kind::ZeroOr(_, _, unit), Value::Int(number)) => {
                show_number(*number, unit)
            }
            (Kind::U64(_), Value::Int(-1)) => "no limit".into(),
            (Kind::U64(unit), Value::Int(number)) => show_unsigned(*number as u64, unit),
            (Kind::Buffer(_), Value::Int(size)) => show_number(*size, Unit::Bytes),
            (Kind::Enum(names), Value::Int(number)) => name(*number, names),
            (Kind::Bits(names), Value::Int(bits)) => names_of(*bits, names),
            (Kind::Timeval, Value::Pair(0, 0)) => "no limit".into(),
            (Kind::Timeval, Value::Pair(seconds, micros)) => show_time(*seconds, *micros),
            (Kind::Linger, Value::Pair(0, 0)) => "off".into(),
            (Kind::Linger, Value::Pair(0, seconds)) => format!("off ({seconds} s kept)"),
            (Kind::Linger, Value::Pair(_, seconds)) => format!("{seconds} s"),
            (Kind::Timestamping(names), Value::Pair(bits, 0)) => names_of(*bits, names),
            (Kind::Timestamping(names), Value::Pair(bits, clock)) => {
                format!("{}, hardware clock {clock}", names_of(*bits, names))
            }
            (Kind::Txtime, Value::Pair(clock, 0)) => name(*clock, CLOCKS),
            (Kind::Txtime, Value::Pair(clock, flags)) => {
                format!("{}, flags {flags:#x}", name(*clock, CLOCKS))
            }
            (Kind::PortRange, Value::Pair(0, 0)) => "the system's".into(),
            (Kind::PortRange, Value::Pair(low, high)) => format!("{low}-{high}"),
            (Kind::Interface(_), Value::Int(0)) => "any".into(),
            (Kind::Interface(_), Value::Int(index)) => interfaces.show(*index as u32),
            (Kind::MulticastInterface, Value::Pair(address, index)) => {
                let address = Ipv4Addr::from(*address as u32);
                show_address_and_device(address.into(), *index as u32, interfaces)
            }
            (_, Value::Scoped(address, index)) => {
                show_address_and_device((*address).into(), *index, interfaces)
            }
            (_, Value::Text(text)) if text.is_empty() => "none".into(),
            (_, Value::Text(text)) => text.clone(),
            (kind, Value::Bytes(_)) if kind.is_empty(value) => "none".into(),
            (_, Value::Bytes(bytes)) => crate::hex::encode(bytes),
            (_, Value::Int(number)) => number.to_string(),
            (_, Value::Pair(a, b)) => format!("{a} {b}"),
        }
    }
}

fn flag(text: &str) -> Option<Value> {
    let on = match text.to_ascii_lowercase().as_str() {
        "1" | "on" | "yes" | "true" => 1,
        "0" | "off" | "no" | "false" => 0,
        _ => return None,
    };
    Some(Value::Int(on))
}

fn integer(text: &str) -> Option<i64> {
    match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// A number with the suffixes of its unit.
fn number(text: &str, unit: Unit) -> Option<Value> {
    integer(text)
        .or_else(|| scaled(text, unit).and_then(|number| i64::try_from(number).ok()))
        .map(Value::Int)
}

fn unsigned(text: &str, unit: Unit) -> Option<Value> {
    let number = match text {
        "unlimited" | "no limit" => Some(u64::MAX),
        _ => text.parse().ok().or_else(|| scaled(text, unit)),
    };
    number.map(|number| Value::Int(number as i64))
}

fn scaled(text: &str, unit: Unit) -> Option<u64> {
    if unit == Unit::Microseconds {
        let (seconds, micros) = time(text)?;
        return seconds.checked_mul(1_000_000)?.checked_add(micros);
    }
    let text = text.trim_end_matches("/s").trim_end_matches(['b', 'B']);
    let (digits, factor) = match text.trim_end_matches('i').char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 1 << 10),
        (at, 'm' | 'M') => (&text[..at], 1 << 20),
        (at, 'g' | 'G') => (&text[..at], 1 << 30),
        _ => (text, 1),
    };
    let scales = matches!(unit, Unit::Bytes | Unit::Rate);
    let number: u64 = digits.trim().parse().ok()?;
    number.checked_mul(factor).filter(|_| scales)
}

/// Seconds and microseconds of `250ms`, `1.5s`, `40us`, `2min`.
fn time(text: &str) -> Option<(u64, u64)> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (digits, unit) = text.split_at(at);
    let unit = match unit.trim() {
        "us" | "µs" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "min" => 60_000_000,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let mut micros = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let mut part = unit;
    for digit in fraction.chars() {
        part /= 10;
        micros = micros.checked_add(u64::from(digit.to_digit(10)?) * part)?;
    }
    Some((micros / 1_000_000, micros % 1_000_000))
}

fn timeval(text: &str) -> Option<Value> {
    let (seconds, micros) = match text {
        "0" | "no limit" => (0, 0),
        _ => time(text)?,
    };
    Some(Value::Pair(
        i64::try_from(seconds).ok()?,
        i64::try_from(micros).ok()?,
    ))
}

fn named(text: &str, names: Names) -> Option<Value> {
    let known = names
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(text));
    known
        .map(|(_, number)| *number)
        .or_else(|| integer(text))
        .map(Value::Int)
}

fn flags(text: &str, names: Names) -> Option<Value> {
    let mut bits = 0;
    for word in text.split('|').filter(|_| !text.is_empty()) {
        bits |= named(word.trim(), names)?.number()?;
    }
    Some(Value::Int(bits))
}

fn linger(text: &str) -> Option<Value> {
    let seconds = |text: &str| {
        let number: i32 = text.trim_end_matches('s').trim().parse().ok()?;
        Some(i64::from(number))
    };
    match text.strip_prefix("off") {
        Some("") => Some(Value::Pair(0, 0)),
        Some(kept) => Some(Value::Pair(0, seconds(kept.strip_prefix(':')?)?)),
        None => Some(Value::Pair(1, seconds(text)?)),
    }
}

fn timestamping(text: &str, names: Names) -> Option<Value> {
    if text == "off" {
        return Some(Value::Pair(0, 0));
    }
    let (bits, clock) = text.split_once(':').unwrap_or((text, "0"));
    let clock: i32 = clock.parse().ok()?;
    Some(Value::Pair(flags(bits, names)?.number()?, clock.into()))
}

fn txtime(text: &str) -> Option<Value> {
    let (clock, flags) = text.split_once(':').unwrap_or((text, "0"));
    Some(Value::Pair(
        named(clock, CLOCKS)?.number()?,
        integer(flags)?,
    ))
}

fn range(text: &str) -> Option<Value> {
    if let "0" | "the system's" = text {
        return Some(Value::Pair(0, 0));
    }
    let (low, high) = text.split_once('-')?;
    Some(Value::Pair(low.parse().ok()?, high.parse().ok()?))
}

fn device(text: &str, interfaces: &mut Interfaces) -> u32 {
    match text {
        "" | "any" | "none" | "by route" | "0" => 0,
        name => interfaces.index_of(name),
    }
}

/// `ADDRESS`, `DEVICE` or `ADDRESS@DEVICE`.
fn address_and_device<A: FromStr>(
    text: &str,
    none: A,
    interfaces: &mut Interfaces,
) -> Option<(A, u32)> {
    let (address, name) = match text.split_once('@') {
        Some((address, name)) => (address.parse().ok()?, name),
        None => match text.parse() {
            Ok(address) => (address, ""),
            Err(_) => (none, text),
        },
    };
    Some((address, device(name, interfaces)))
}

fn show_address_and_device(address: IpAddr, index: u32, interfaces: &Interfaces) -> String {
    match (address.is_unspecified(), index) {
        (true, 0) => "by route".into(),
        (true, index) => interfaces.show(index),
        (false, 0) => address.to_string(),
        (false, index) => format!("{address}@{}", interfaces.show(index)),
    }
}

fn name(number: i64, names: Names) -> String {
    let known = names.iter().find(|(_, value)| *value == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).into())
}

fn names_of(bits: i64, names: Names) -> String {
    if bits == 0 {
        return "off".into();
    }
    let known = names.iter().filter(|(_, bit)| bits & bit != 0);
    let mut words: Vec<String> = known.clone().map(|(name, _)| (*name).into()).collect();
    let rest = bits & !known.fold(0, |all, (_, bit)| all | bit);
    if rest != 0 {
        words.push(format!("{rest:#x}"));
    }
    words.join(" | ")
}

fn show_number(number: i64, unit: Unit) -> String {
    match u64::try_from(number) {
        Ok(number) => show_unsigned(number, unit),
        Err(_) => number.to_string(),
    }
}

fn show_unsigned(number: u64, unit: Unit) -> String {
    match unit {
        Unit::None | Unit::Hops => number.to_string(),
        Unit::Mask => format!("{number:#x}"),
        Unit::Bytes => bytes(number),
        Unit::Rate => format!("{}/s", bytes(number)),
        Unit::Microseconds => format!("{number} µs"),
    }
}

/// A size, exact, with the larger unit beside it where that says more: `212992 B (208 KiB)`.
pub fn bytes(number: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(size, _)| number >= *size) {
        None => format!("{number} B"),
        Some((size, unit)) if number.is_multiple_of(size) => {
            format!("{number} B ({} {unit})", number / size)
        }
        Some((size, unit)) => format!("{number} B ({:.1} {unit})", number as f64 / size as f64),
    }
}

fn show_time(seconds: i64, micros: i64) -> String {
    match (seconds, micros) {
        (0, micros) if micros % 1000 == 0 => format!("{} ms", micros / 1000),
        (0, micros) => format!("{micros} µs"),
        (seconds, 0) => format!("{seconds} s"),
        (seconds, micros) => {
            let fraction = format!("{micros:06}");
            format!("{seconds}.{} s", fraction.trim_end_matches('0'))
        }
    }
}
