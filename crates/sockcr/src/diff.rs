//! What two checkpoints differ in.

use crate::checkpoint::Checkpoint;
use crate::kernel::{Corked, ErrorEntry};
use crate::state::filter::Filter;
use crate::state::flow_labels::FlowLabel;
use crate::state::membership::Membership;
use crate::state::receive_queue::Datagram;
use serde::Serialize;
use std::collections::HashMap;
use std::net::SocketAddr;

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What differs: `SO_RCVBUF`, `local address`.
    pub what: String,
    /// What the first has, if it has it.
    pub a: Option<String>,
    /// What the second has, if it has it.
    pub b: Option<String>,
}

/// A property of a checkpoint in words; its name is unique within the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// The differences, in the order of the first: none exactly when the canonical images are equal
/// ([`Checkpoint::canonical`]).
pub fn diff(a: &Checkpoint, b: &Checkpoint) -> Vec<Difference> {
    let (of_a, of_b) = (properties(a), properties(b));
    let by_name = |list: &[Property]| -> HashMap<String, String> {
        let pairs = list.iter().map(|p| (p.name.clone(), p.value.clone()));
        pairs.collect()
    };
    let (values_a, values_b) = (by_name(&of_a), by_name(&of_b));
    let only_b = of_b.iter().filter(|p| !values_a.contains_key(&p.name));
    let names = of_a.iter().chain(only_b).map(|p| p.name.clone());
    names
        .map(|name| Difference {
            a: values_a.get(&name).cloned(),
            b: values_b.get(&name).cloned(),
            what: name,
        })
        .filter(|difference| difference.a != difference.b)
        .collect()
}

/// Both sides in words, `none` where there is nothing; of long ones only what is around the first
/// difference.
pub fn brief(difference: &Difference, none: &str) -> (String, String) {
    const LONG: usize = 160;
    const BEFORE: usize = 40;
    let side = |value: &Option<String>| value.clone().unwrap_or_else(|| none.into());
    let (a, b) = (side(&difference.a), side(&difference.b));
    let same = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let start = same.saturating_sub(BEFORE);
    let cut = |text: String| {
        let length = text.chars().count();
        if length <= LONG {
            return text;
        }
        let part: String = text.chars().skip(start).take(LONG).collect();
        let front = if start > 0 { "…" } else { "" };
        let back = if start + LONG < length { "…" } else { "" };
        format!("{front}{part}{back}")
    };
    (cut(a), cut(b))
}

/// Everything that counts when two checkpoints are compared, in words.
pub fn properties(checkpoint: &Checkpoint) -> Vec<Property> {
    let mut list = Vec::new();
    let mut add = |name: &str, value: String| {
        let name = name.into();
        list.push(Property { name, value });
    };
    let endpoint = &checkpoint.endpoint;
    let locked = |on: bool| if on { "locked" } else { "not locked" }.to_owned();
    add("protocol", checkpoint.protocol.to_string());
    add("local address", checkpoint.shown(&endpoint.local));
    add("address lock", locked(endpoint.address_locked));
    add("port lock", locked(endpoint.port_locked));
    add(
        "peer",
        endpoint
            .peer
            .map_or("none".into(), |peer| checkpoint.shown(&peer)),
    );
    if let Some(source) = endpoint.source {
        add("source address", source.to_string());
    }
    if let Some(heard) = endpoint.heard {
        add("former peer", heard.to_string());
    }
    for (row, value) in checkpoint.options.iter() {
        add(row.name, row.kind.show(value, &checkpoint.interfaces));
    }
    for lease in &checkpoint.flow_labels {
        add("flow label", describe_lease(lease));
    }
    add("send buffer lock", locked(checkpoint.buffer_locks.send));
    add(
        "receive buffer lock",
        locked(checkpoint.buffer_locks.receive),
    );
    for (at, membership) in checkpoint.memberships.iter().enumerate() {
        add(
            &format!("membership {}", at + 1),
            describe(checkpoint, membership),
        );
    }
    add("filter", filter(checkpoint.filter.as_ref()));
    if let Some(program) = &checkpoint.reuseport_program {
        add("SO_REUSEPORT program", filter(Some(program)));
    }
    for (at, datagram) in checkpoint.receive_queue.iter().enumerate() {
        add(
            &format!("queued datagram {}", at + 1),
            queued(checkpoint, datagram),
        );
    }
    if let Some(corked) = &checkpoint.cork {
        add("corked data", cork(checkpoint, corked));
    }
    for (at, entry) in checkpoint.errors.queue.iter().enumerate() {
        add(
            &format!("queued error {}", at + 1),
            error(checkpoint, entry),
        );
    }
    if checkpoint.errors.pending != 0 {
        add("pending error", checkpoint.errors.pending.to_string());
    }
    if let Some(shutdown) = checkpoint.shutdown {
        add("shutdown", shutdown.to_string());
    }
    if let Some(descriptor) = &checkpoint.descriptor {
        add("O_NONBLOCK", descriptor.nonblock.to_string());
        add("O_ASYNC", descriptor.asynchronous.to_string());
        add("owner", descriptor.owner.to_string());
        add("signal", descriptor.signal.to_string());
    }
    for (at, note) in checkpoint.report.not_carried.iter().enumerate() {
        add(&format!("not carried {}", at + 1), note.to_string());
    }
    let required = |number: u16| number < sockcr_image::number::INFORMATIONAL;
    for unknown in checkpoint.unknown.iter().filter(|u| required(u.number)) {
        let payload = crate::hex::encode(&unknown.payload);
        add(&format!("attribute {}", unknown.number), payload);
    }
    list
}

/// A membership in one line: `239.1.1.1 on eth0, only from 10.0.0.1`.
pub fn describe(checkpoint: &Checkpoint, membership: &Membership) -> String {
    let device = checkpoint.interfaces.show(membership.interface);
    let mut text = format!("{} on {device}", membership.group);
    if membership.anycast {
        text += " (anycast)";
    }
    if !membership.address.is_unspecified() {
        text += &format!(" (joined by {})", membership.address);
    }
    let sources: Vec<String> = membership.sources.iter().map(|s| s.to_string()).collect();
    match (membership.include, sources.is_empty()) {
        (true, _) => text + ", only from " + &sources.join(" "),
        (false, true) => text,
        (false, false) => text + ", not from " + &sources.join(" "),
    }
}

/// A lease of a flow label in words.
pub fn describe_lease(lease: &FlowLabel) -> String {
    let share = match lease.share {
        1 => "exclusive".into(),
        2 => "shared by the process".into(),
        3 => "shared by the user".into(),
        255 => "shared by anybody".into(),
        other => format!("shared as {other}"),
    };
    format!(
        "{:#07x} to {}, {share}, lingers {} s",
        lease.label, lease.to, lease.linger
    )
}

/// A queued datagram in one line, all of it.
fn queued(checkpoint: &Checkpoint, datagram: &Datagram) -> String {
    format!(
        "{} to {}, ttl {}, tos {}, flow label {}, by {} {}, at {}, mark {}, priority {}, segment {}, \
         peeked {}, options {}: {}",
        datagram.source,
        datagram.destination,
        datagram.ttl,
        datagram.tos,
        datagram.flow_label,
        device(checkpoint, datagram.interface),
        datagram.local,
        datagram.received_at,
        datagram.mark,
        datagram.priority,
        datagram.segment,
        datagram.peeked,
        crate::hex::encode(&datagram.options),
        crate::hex::encode(&datagram.payload),
    )
}

fn device(checkpoint: &Checkpoint, index: u32) -> String {
    match index {
        0 => "-".into(),
        index => checkpoint.interfaces.show(index),
    }
}

fn cork(checkpoint: &Checkpoint, corked: &Corked) -> String {
    let given = |value: Option<u8>| value.map_or("-".into(), |value| value.to_string());
    format!(
        "{} to {}, ttl {}, tos {}, flow label {}, in one piece {}, by {}, by a gateway {}, mark {}, \
         priority {}, segment {}, at {}, options {}: {}",
        corked.source,
        corked.destination,
        given(corked.ttl),
        given(corked.tos),
        corked.flow_label,
        corked.dont_fragment,
        device(checkpoint, corked.device),
        corked.gateway,
        corked.mark,
        corked.priority,
        corked.segment_size,
        corked.transmit_time,
        crate::hex::encode(&corked.ip_options),
        crate::hex::encode(&corked.payload),
    )
}

fn error(checkpoint: &Checkpoint, entry: &ErrorEntry) -> String {
    let address = |address: Option<SocketAddr>| address.map_or("-".into(), |a| a.to_string());
    format!(
        "errno {}, origin {}, type {}, code {}, info {}, data {}, from {} to {}, about {}, ttl {}, \
         tos {}, flow label {}, by {}, at {}, rest {}: {}",
        entry.error,
        entry.origin,
        entry.kind,
        entry.code,
        entry.info,
        entry.data,
        address(entry.offender),
        entry.local,
        address(entry.destination),
        entry.ttl,
        entry.tos,
        entry.flow_label,
        device(checkpoint, entry.interface),
        entry.received_at,
        crate::hex::encode(&entry.rest),
        crate::hex::encode(&entry.payload),
    )
}

fn filter(filter: Option<&Filter>) -> String {
    match filter {
        None => "not known".into(),
        Some(Filter::Classic(code)) if code.is_empty() => "none".into(),
        Some(Filter::Classic(code)) => crate::hex::encode(&code.concat()),
        Some(Filter::Program(program)) => {
            let boot = crate::hex::encode(&program.boot);
            format!("{program} boot {boot}")
        }
    }
}
