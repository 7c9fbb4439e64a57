//! What waits in a socket as JSON, and back.

use crate::hex;
use crate::kernel::{Corked, ErrorEntry};
use crate::state::interfaces::Interfaces;
use crate::state::receive_queue::Datagram;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::net::{IpAddr, SocketAddr};

/// In nanoseconds.
const SECOND: i64 = 1_000_000_000;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatagramJson {
    from: SocketAddr,
    to: SocketAddr,
    ttl: u8,
    tos: u8,
    #[serde(default, skip_serializing_if = "is_default")]
    flow_label: u32,
    interface: Json,
    local: IpAddr,
    received_at: String,
    mark: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    priority: u32,
    segment: u32,
    options: String,
    #[serde(default, skip_serializing_if = "is_default")]
    peeked: bool,
    payload: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CorkJson {
    from: IpAddr,
    to: SocketAddr,
    tos: Option<u8>,
    ttl: Option<u8>,
    #[serde(default, skip_serializing_if = "is_default")]
    flow_label: u32,
    #[serde(default, skip_serializing_if = "is_default")]
    dont_fragment: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    fragment_size: u32,
    interface: Json,
    gateway: bool,
    mark: u32,
    priority: u32,
    transmit_time: u64,
    segment: u16,
    options: String,
    payload: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ErrorJson {
    errno: i32,
    origin: u8,
    #[serde(rename = "type")]
    kind: u8,
    code: u8,
    info: u32,
    data: u32,
    offender: Option<SocketAddr>,
    to: Option<SocketAddr>,
    received_at: String,
    ttl: u8,
    tos: u8,
    #[serde(default, skip_serializing_if = "is_default")]
    flow_label: u32,
    local: IpAddr,
    rest: String,
    interface: Json,
    payload: String,
}

pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads the parts of one of them.
struct Parts<'a> {
    what: String,
    interfaces: &'a Interfaces,
}

impl Parts<'_> {
    fn wrong(&self, part: &str) -> String {
        format!("{}: {part} is wrong", self.what)
    }

    fn bytes(&self, part: &str, digits: &str) -> Result<Vec<u8>, String> {
        hex::decode(digits).ok_or_else(|| self.wrong(part))
    }

    fn interface(&self, json: &Json) -> Result<u32, String> {
        let index = self.interfaces.parse_json(json);
        index.ok_or_else(|| self.wrong("interface"))
    }

    fn time(&self, text: &str) -> Result<i64, String> {
        let nanoseconds = text.split_once('.').and_then(|(seconds, nanos)| {
            let seconds: i64 = seconds.parse().ok()?;
            let nanos: i64 = nanos.parse().ok().filter(|_| nanos.len() == 9)?;
            // The whole seconds before the first time of all are one too many for 64 bits.
            let all = i128::from(seconds) * i128::from(SECOND) + i128::from(nanos);
            i64::try_from(all).ok()
        });
        nanoseconds.ok_or_else(|| self.wrong("received_at"))
    }
}

fn time(nanoseconds: i64) -> String {
    let (seconds, rest) = (
        nanoseconds.div_euclid(SECOND),
        nanoseconds.rem_euclid(SECOND),
    );
    format!("{seconds}.{rest:09}")
}

pub(super) fn to_datagram(datagram: &Datagram, interfaces: &Interfaces) -> DatagramJson {
    DatagramJson {
        from: datagram.source,
        to: datagram.destination,
        ttl: datagram.ttl,
        tos: datagram.tos,
        flow_label: datagram.flow_label,
        interface: interfaces.to_json(datagram.interface),
        local: datagram.local,
        received_at: time(datagram.received_at),
        mark: datagram.mark,
        priority: datagram.priority,
        segment: datagram.segment,
        options: hex::encode(&datagram.options),
        peeked: datagram.peeked,
        payload: hex::encode(&datagram.payload),
    }
}

pub(super) fn from_datagram(
    json: &DatagramJson,
    interfaces: &Interfaces,
) -> Result<Datagram, String> {
    let parts = Parts {
        what: format!("queued datagram from {}", json.from),
        interfaces,
    };
    Ok(Datagram {
        source: json.from,
        destination: json.to,
        ttl: json.ttl,
        tos: json.tos,
        flow_label: json.flow_label,
        interface: parts.interface(&json.interface)?,
        local: json.local,
        received_at: parts.time(&json.received_at)?,
        mark: json.mark,
        priority: json.priority,
        segment: json.segment,
        options: parts.bytes("options", &json.options)?,
        peeked: json.peeked,
        payload: parts.bytes("payload", &json.payload)?,
    })
}

pub(super) fn to_cork(corked: &Corked, interfaces: &Interfaces) -> CorkJson {
    CorkJson {
        from: corked.source,
        to: corked.destination,
        tos: corked.tos,
        ttl: corked.ttl,
        interface: interfaces.to_json(corked.device),
        flow_label: corked.flow_label,
        dont_fragment: corked.dont_fragment,
        fragment_size: corked.fragment_size,
        gateway: corked.gateway,
        mark: corked.mark,
        priority: corked.priority,
        transmit_time: corked.transmit_time,
        segment: corked.segment_size,
        options: hex::encode(&corked.ip_options),
        payload: hex::encode(&corked.payload),
    }
}

pub(super) fn from_cork(json: &CorkJson, interfaces: &Interfaces) -> Result<Corked, String> {
    let parts = Parts {
        what: format!("cork for {}", json.to),
        interfaces,
    };
    Ok(Corked {
        destination: json.to,
        source: json.from,
        tos: json.tos,
        ttl: json.ttl,
        segment_size: json.segment,
        device: parts.interface(&json.interface)?,
        flow_label: json.flow_label,
        dont_fragment: json.dont_fragment,
        fragment_size: json.fragment_size,
        gateway: json.gateway,
        mark: json.mark,
        priority: json.priority,
        transmit_time: json.transmit_time,
        stamped: false,
        ip_options: parts.bytes("options", &json.options)?,
        payload: parts.bytes("payload", &json.payload)?,
    })
}

pub(super) fn to_error(entry: &ErrorEntry, interfaces: &Interfaces) -> ErrorJson {
    ErrorJson {
        errno: entry.error,
        origin: entry.origin,
        kind: entry.kind,
        code: entry.code,
        info: entry.info,
        data: entry.data,
        offender: entry.offender,
        to: entry.destination,
        received_at: time(entry.received_at),
        ttl: entry.ttl,
        tos: entry.tos,
        flow_label: entry.flow_label,
        local: entry.local,
        rest: hex::encode(&entry.rest),
        interface: interfaces.to_json(entry.interface),
        payload: hex::encode(&entry.payload),
    }
}

pub(super) fn from_error(json: &ErrorJson, interfaces: &Interfaces) -> Result<ErrorEntry, String> {
    let parts = Parts {
        what: "queued error".into(),
        interfaces,
    };
    let rest = parts.bytes("rest", &json.rest)?.try_into();
    Ok(ErrorEntry {
        error: json.errno,
        origin: json.origin,
        kind: json.kind,
        code: json.code,
        info: json.info,
        data: json.data,
        statistics: false,
        offender: json.offender,
        destination: json.to,
        received_at: parts.time(&json.received_at)?,
        ttl: json.ttl,
        tos: json.tos,
        flow_label: json.flow_label,
        local: json.local,
        rest: rest.map_err(|_| parts.wrong("rest"))?,
        interface: parts.interface(&json.interface)?,
        payload: parts.bytes("payload", &json.payload)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_read_as_it_is_written() {
        let interfaces = Interfaces::default();
        let parts = Parts {
            what: String::new(),
            interfaces: &interfaces,
        };
        for nanoseconds in [i64::MIN, i64::MIN + 1, -SECOND, -1, 0, 1, SECOND, i64::MAX] {
            assert_eq!(parts.time(&time(nanoseconds)), Ok(nanoseconds));
        }
        for wrong in ["9223372036.854775808", "-9223372037.145224191", "1.1", "1"] {
            parts.time(wrong).unwrap_err();
        }
    }
}
