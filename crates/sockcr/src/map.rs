//! Addresses and devices that are called otherwise at the place of the restore.

mod headers;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind};
use crate::option::{self, Options, Value};
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// `OLD=NEW`: one address, one network, or one device, for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// An address, or all of one network, whose first bits are exchanged: how many.
    Network(IpAddr, IpAddr, u32),
    /// A device by name.
    Device(String, String),
}

impl FromStr for Mapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mapping, Error> {
        let bad = |why: &str| Error::new(ErrorKind::BadInput, format!("--map {text}"), why);
        let (old, new) = text.split_once('=').ok_or_else(|| bad("is not OLD=NEW"))?;
        match (network(old), network(new)) {
            (Some((old, size)), Some((new, same))) => {
                if old.is_ipv6() != new.is_ipv6() || size != same {
                    return Err(bad(
                        "takes two addresses or networks of one family and size",
                    ));
                }
                Ok(Mapping::Network(old, new, size))
            }
            // No device is called so (`dev_valid_name`).
            (None, None) if text.contains('/') => Err(bad("has a network that is none")),
            (None, None) if !old.is_empty() && (1..16).contains(&new.len()) => {
                Ok(Mapping::Device(old.into(), new.into()))
            }
            _ => Err(bad(
                "takes two addresses, two networks (ADDR/BITS) or two device names of at most 15 bytes",
            )),
        }
    }
}

/// An address, or a network and the number of its bits.
fn network(text: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv6() { 128 } else { 32 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some((address, bits))
}

/// The address with the first `bits` of the new network, if it is in the old one.
fn moved(address: IpAddr, old: IpAddr, new: IpAddr, bits: u32) -> Option<IpAddr> {
    let mix = |address: u128, old: u128, new: u128, width: u32| {
        let host = 1_u128
            .checked_shl(width - bits)
            .map_or(u128::MAX, |one| one - 1);
        ((address ^ old) & !host == 0).then_some(new & !host | address & host)
    };
    match (address, old, new) {
        (IpAddr::V4(address), IpAddr::V4(old), IpAddr::V4(new)) => {
            let word = |address: Ipv4Addr| u128::from(u32::from(address));
            let mixed = mix(word(address), word(old), word(new), 32)?;
            Some(Ipv4Addr::from(u32::try_from(mixed & u128::from(u32::MAX)).ok()?).into())
        }
        (IpAddr::V6(address), IpAddr::V6(old), IpAddr::V6(new)) => {
            let mixed = mix(address.into(), old.into(), new.into(), 128)?;
            Some(Ipv6Addr::from(mixed).into())
        }
        // What an IPv6 socket has of IPv4.
        (IpAddr::V6(address), IpAddr::V4(_), IpAddr::V4(_)) => {
            match moved(address.to_ipv4_mapped()?.into(), old, new, bits)? {
                IpAddr::V4(address) => Some(address.to_ipv6_mapped().into()),
                IpAddr::V6(_) => None,
            }
        }
        _ => None,
    }
}

/// Carries the mappings out; one that names nothing in any of the checkpoints is an error.
pub fn apply<'a>(
    checkpoints: &'a [Checkpoint],
    map: &[Mapping],
) -> Result<Cow<'a, [Checkpoint]>, Error> {
    if map.is_empty() {
        return Ok(Cow::Borrowed(checkpoints));
    }
    let mut mapped = checkpoints.to_vec();
    let mut used = vec![false; map.len()];
    for checkpoint in &mut mapped {
        apply_to(checkpoint, map, &mut used);
    }
    if let Some((mapping, _)) = map.iter().zip(used).find(|(_, used)| !used) {
        let old = match mapping {
            Mapping::Network(old, _, bits)
                if matches!((old, bits), (IpAddr::V4(_), 32) | (IpAddr::V6(_), 128)) =>
            {
                old.to_string()
            }
            Mapping::Network(old, _, bits) => format!("{old}/{bits}"),
            Mapping::Device(old, _) => old.clone(),
        };
        let why = format!("the checkpoint has nothing called {old}");
        return Err(Error::new(ErrorKind::BadInput, format!("--map {old}"), why));
    }
    Ok(Cow::Owned(mapped))
}

/// Carries the mappings out in one checkpoint, and tells which of them name something in it.
pub(crate) fn apply_to(checkpoint: &mut Checkpoint, map: &[Mapping], used: &mut [bool]) {
    map_addresses(checkpoint, map, used);
    map_devices(checkpoint, map, used);
}

/// What an address is called here: each is looked up once, so that two can change places.
fn map_addresses(checkpoint: &mut Checkpoint, map: &[Mapping], used: &mut [bool]) {
    let mut change = |address: &mut IpAddr| {
        let known = map
            .iter()
            .zip(used.iter_mut())
            .find_map(|(mapping, used)| match mapping {
                Mapping::Network(old, new, bits) => {
                    Some((moved(*address, *old, *new, *bits)?, used))
                }
                Mapping::Device(..) => None,
            });
        if let Some((new, used)) = known {
            *address = new;
            *used = true;
        }
    };
    let before = checkpoint.endpoint.local.ip();
    let mut local = before;
    change(&mut local);
    checkpoint.endpoint.move_to(local, checkpoint.protocol);
    checkpoint.speak_as_bound(before);
    let endpoint = &mut checkpoint.endpoint;
    // Elsewhere 0.0.0.0 is not an address that could be called otherwise, but none at all.
    let mut change = |address: &mut IpAddr| {
        if !address.is_unspecified() {
            change(address);
        }
    };
    if let Some(peer) = &mut endpoint.peer {
        let mut ip = peer.ip();
        change(&mut ip);
        peer.set_ip(ip);
    }
    endpoint.source.iter_mut().for_each(&mut change);
    endpoint.heard.iter_mut().for_each(&mut change);
    for membership in &mut checkpoint.memberships {
        change(&mut membership.group);
        change_ipv4(&mut membership.address, &mut change);
        membership.sources.iter_mut().for_each(&mut change);
    }
    // Where something came from, and what an error is about, are facts of the past.
    let received = checkpoint.receive_queue.iter_mut();
    let received = received.map(|datagram| &mut datagram.destination);
    let corked = checkpoint.cork.iter_mut().map(|c| &mut c.destination);
    for place in received.chain(corked) {
        let mut ip = place.ip();
        change(&mut ip);
        place.set_ip(ip);
    }
    for datagram in &mut checkpoint.receive_queue {
        change(&mut datagram.local);
    }
    if let Some(corked) = &mut checkpoint.cork {
        change(&mut corked.source);
        match corked.destination.is_ipv6() {
            true => headers::of_ipv6(&mut corked.ip_options, &mut change),
            false => headers::of_ipv4(&mut corked.ip_options, &mut change),
        }
    }
    for entry in &mut checkpoint.errors.queue {
        change(&mut entry.local);
    }
    for lease in &mut checkpoint.flow_labels {
        change_ipv6(&mut lease.to, &mut change);
    }
    map_options(&mut checkpoint.options, &mut change);
}

/// The options that hold addresses.
fn map_options(options: &mut Options, change: &mut impl FnMut(&mut IpAddr)) {
    for name in [
        "IP_MULTICAST_IF",
        "IPV6_PKTINFO",
        "IP_OPTIONS",
        "IPV6_RTHDR",
    ] {
        let (Some(row), Some(mut value)) = (option::find(name), options.get(name).cloned()) else {
            continue;
        };
        match &mut value {
            Value::Pair(address, _) => {
                let mut ip = Ipv4Addr::from(*address as u32);
                change_ipv4(&mut ip, change);
                *address = u32::from(ip).into();
            }
            Value::Scoped(address, _) => change_ipv6(address, change),
            Value::Bytes(header) if name == "IPV6_RTHDR" => headers::of_routing(header, change),
            Value::Bytes(options) => headers::of_ipv4(options, change),
            _ => {}
        }
        options.set(row, Some(value));
    }
}

fn change_ipv6(address: &mut Ipv6Addr, change: &mut impl FnMut(&mut IpAddr)) {
    let mut ip = IpAddr::V6(*address);
    change(&mut ip);
    if let IpAddr::V6(new) = ip {
        *address = new;
    }
}

fn change_ipv4(address: &mut Ipv4Addr, change: &mut impl FnMut(&mut IpAddr)) {
    let mut ip = IpAddr::V4(*address);
    change(&mut ip);
    if let IpAddr::V4(new) = ip {
        *address = new;
    }
}

fn map_devices(checkpoint: &mut Checkpoint, map: &[Mapping], used: &mut [bool]) {
    let mut change = |name: &mut String| {
        let known = map
            .iter()
            .zip(used.iter_mut())
            .find_map(|(m, used)| match m {
                Mapping::Device(old, new) if old == name => Some((new, used)),
                _ => None,
            });
        if let Some((new, used)) = known {
            name.clone_from(new);
            *used = true;
        }
    };
    checkpoint.interfaces.each_name(&mut change);
    let row = option::find("SO_BINDTODEVICE");
    let bound = checkpoint.options.get("SO_BINDTODEVICE").cloned();
    if let (Some(row), Some(Value::Text(mut name))) = (row, bound) {
        change(&mut name);
        checkpoint.options.set(row, Some(Value::Text(name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::flow_labels::FlowLabel;

    fn called(map: &str, address: &str) -> Option<String> {
        let Mapping::Network(old, new, bits) = map.parse().unwrap() else {
            panic!("{map} is no network");
        };
        let moved = moved(address.parse().unwrap(), old, new, bits);
        moved.map(|address| address.to_string())
    }

    #[test]
    fn the_first_bits_are_exchanged() {
        for (map, address, expected) in [
            ("10.0.0.1=10.0.0.2", "10.0.0.1", Some("10.0.0.2")),
            ("10.0.0.1=10.0.0.2", "10.0.0.3", None),
            (
                "10.1.0.0/16=192.168.0.0/16",
                "10.1.2.3",
                Some("192.168.2.3"),
            ),
            ("10.1.0.0/16=192.168.0.0/16", "10.2.2.3", None),
            ("10.1.0.7/31=10.9.0.8/31", "10.1.0.6", Some("10.9.0.8")),
            ("0.0.0.0/0=0.0.0.0/0", "1.2.3.4", Some("1.2.3.4")),
            ("fd00:1::/64=fd00:2::/64", "fd00:1::77", Some("fd00:2::77")),
            ("fd00:1::/64=fd00:2::/64", "fd00:1:0:1::77", None),
            (
                "fd00:1::/60=fd00:2::/60",
                "fd00:1:0:f::7",
                Some("fd00:2:0:f::7"),
            ),
            ("fe80::1=fe80::2", "fe80::1", Some("fe80::2")),
            ("::/0=::/0", "fd00::1", Some("fd00::1")),
            ("fd00:1::/64=fd00:2::/64", "10.0.0.1", None),
        ] {
            assert_eq!(called(map, address).as_deref(), expected, "{map} {address}");
        }
    }

    #[test]
    fn an_ipv6_socket_that_speaks_ipv4_moves_as_ipv4() {
        let map = "10.1.0.0/16=10.2.0.0/16";
        let moved = called(map, "::ffff:10.1.2.3");
        assert_eq!(moved.as_deref(), Some("::ffff:10.2.2.3"));
        assert_eq!(called(map, "::ffff:10.3.2.3"), None);
        assert_eq!(called(map, "::10.1.2.3"), None);
        assert_eq!(called("0.0.0.0/0=0.0.0.0/0", "fd00::1"), None);
    }

    #[test]
    fn two_of_one_family_and_size_or_two_devices() {
        for wrong in [
            "",
            "=",
            "a=",
            "=b",
            "10.0.0.1",
            "10.0.0.1=eth0",
            "10.0.0.0/8=10.0.0.0/9",
            "10.0.0.0/33=10.0.0.0/33",
            "fd00::/129=fd00::/129",
            "10.0.0.1=fd00::1",
            "fd00::/64=fd00::1",
            "eth0=a_name_of_16_bytes",
        ] {
            assert!(wrong.parse::<Mapping>().is_err(), "{wrong}");
        }
        let device = Mapping::Device("eth0".into(), "eth1".into());
        assert_eq!("eth0=eth1".parse::<Mapping>().unwrap(), device);
    }

    fn socket_of(local: &str) -> Checkpoint {
        let socket = std::net::UdpSocket::bind(local).unwrap();
        Checkpoint::dump(&socket).unwrap()
    }

    #[test]
    fn all_that_is_of_this_place_moves() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut before = socket_of("[::1]:0");
        before.endpoint.heard = Some(ip("fd00:1::9"));
        let group = crate::state::membership::Membership::of(1, ip("ff05::1"));
        before.memberships = vec![group];
        before.flow_labels = vec![FlowLabel {
            label: 7,
            to: Ipv6Addr::LOCALHOST,
            share: 1,
            linger: 6,
        }];
        // A routing header of type 2, by way of fd00:1::6.
        let header = "0002020100000000fd000001000000000000000000000006";
        before.edit("IPV6_PKTINFO", "fd00:1::5").unwrap();
        before.edit("IPV6_RTHDR", header).unwrap();
        before.edit("IP_OPTIONS", "018307040a010002").unwrap();
        let map = [
            "::1=fd00:2::1",
            "fd00:1::/64=fd00:2::/64",
            "ff05::/16=ff08::/16",
            "10.1.0.0/16=10.2.0.0/16",
        ];
        let map = map.map(|text| text.parse().unwrap());
        let after = apply(std::slice::from_ref(&before), &map).unwrap();
        assert_eq!(after[0].endpoint.local.ip(), ip("fd00:2::1"));
        assert_eq!(after[0].endpoint.heard, Some(ip("fd00:2::9")));
        assert_eq!(after[0].memberships[0].group, ip("ff08::1"));
        assert_eq!(after[0].flow_labels[0].to, ip("fd00:2::1"));
        let mapped = |name: &str| after[0].options.get(name).cloned();
        let source = Value::Scoped("fd00:2::5".parse().unwrap(), 0);
        assert_eq!(mapped("IPV6_PKTINFO"), Some(source));
        let bytes = |text: &str| Some(Value::Bytes(crate::hex::decode(text).unwrap()));
        let route = header.replacen("fd000001", "fd000002", 1);
        assert_eq!(mapped("IPV6_RTHDR"), bytes(&route));
        assert_eq!(mapped("IP_OPTIONS"), bytes("018307040a020002"));
        let unused = apply(&[socket_of("[::1]:0")], &map)
            .unwrap_err()
            .to_string();
        assert!(unused.contains("nothing called fd00:1::/64"), "{unused}");
    }
}
