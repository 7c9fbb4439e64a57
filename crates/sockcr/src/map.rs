//! Addresses and devices that are called otherwise at the place of the restore.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind};
use crate::option::{self, Value};
use std::borrow::Cow;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// `OLD=NEW`: one address, or one device, for another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// An address.
    Address(Ipv4Addr, Ipv4Addr),
    /// A device by name.
    Device(String, String),
}

impl FromStr for Mapping {
    type Err = Error;

    fn from_str(text: &str) -> Result<Mapping, Error> {
        let bad = |why: &str| Error::new(ErrorKind::BadInput, format!("--map {text}"), why);
        let (old, new) = text.split_once('=').ok_or_else(|| bad("is not OLD=NEW"))?;
        match (old.parse(), new.parse()) {
            (Ok(old), Ok(new)) => Ok(Mapping::Address(old, new)),
            (Err(_), Err(_)) if !old.is_empty() && (1..16).contains(&new.len()) => {
                Ok(Mapping::Device(old.into(), new.into()))
            }
            _ => Err(bad(
                "takes two IPv4 addresses, or two device names of at most 15 bytes",
            )),
        }
    }
}

/// Carries the mappings out; one that names nothing in any of the checkpoints is an error.
pub(crate) fn apply<'a>(
    checkpoints: &'a [Checkpoint],
    map: &[Mapping],
) -> Result<Cow<'a, [Checkpoint]>, Error> {
    if map.is_empty() {
        return Ok(Cow::Borrowed(checkpoints));
    }
    let mut mapped = checkpoints.to_vec();
    let mut used = vec![false; map.len()];
    for checkpoint in &mut mapped {
        map_addresses(checkpoint, map, &mut used);
        map_devices(checkpoint, map, &mut used);
    }
    if let Some((mapping, _)) = map.iter().zip(used).find(|(_, used)| !used) {
        let old = match mapping {
            Mapping::Address(old, _) => old.to_string(),
            Mapping::Device(old, _) => old.clone(),
        };
        let why = format!("the checkpoint has nothing called {old}");
        return Err(Error::new(ErrorKind::BadInput, format!("--map {old}"), why));
    }
    Ok(Cow::Owned(mapped))
}

/// What an address is called here: each is looked up once, so that two can change places.
fn map_addresses(checkpoint: &mut Checkpoint, map: &[Mapping], used: &mut [bool]) {
    let mut change = |address: &mut Ipv4Addr| {
        let known = map
            .iter()
            .zip(used.iter_mut())
            .find_map(|(m, used)| match m {
                Mapping::Address(old, new) if old == address => Some((new, used)),
                _ => None,
            });
        if let Some((new, used)) = known {
            *address = *new;
            *used = true;
        }
    };
    let endpoint = &mut checkpoint.endpoint;
    let mut local = *endpoint.local.ip();
    change(&mut local);
    endpoint.move_to(local);
    // Elsewhere 0.0.0.0 is not an address that could be called otherwise, but none at all.
    let mut change = |address: &mut Ipv4Addr| {
        if !address.is_unspecified() {
            change(address);
        }
    };
    if let Some(peer) = &mut endpoint.peer {
        let mut ip = *peer.ip();
        change(&mut ip);
        peer.set_ip(ip);
    }
    endpoint.source.iter_mut().for_each(&mut change);
    for membership in &mut checkpoint.memberships {
        change(&mut membership.group);
        change(&mut membership.address);
        membership.sources.iter_mut().for_each(&mut change);
    }
    // Where something came from, and what an error is about, are facts of the past.
    let received = checkpoint.receive_queue.iter_mut();
    let received = received.map(|datagram| &mut datagram.destination);
    let corked = checkpoint.cork.iter_mut().map(|c| &mut c.destination);
    for place in received.chain(corked) {
        let mut ip = *place.ip();
        change(&mut ip);
        place.set_ip(ip);
    }
    for datagram in &mut checkpoint.receive_queue {
        change(&mut datagram.local);
    }
    if let Some(corked) = &mut checkpoint.cork {
        change(&mut corked.source);
    }
    for entry in &mut checkpoint.errors.queue {
        change(&mut entry.local);
    }
    let row = option::find("IP_MULTICAST_IF");
    let value = checkpoint.options.get("IP_MULTICAST_IF").cloned();
    if let (Some(row), Some(Value::Pair(address, index))) = (row, value) {
        let mut ip = Ipv4Addr::from(address as u32);
        change(&mut ip);
        let value = Value::Pair(u32::from(ip).into(), index);
        checkpoint.options.set(row, Some(value));
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
