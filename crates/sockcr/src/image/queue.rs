//! What waits in a socket as QUEUE messages, and back.

use super::{address, ip, octets, sockaddr};
use crate::kernel::{Corked, ErrorEntry};
use crate::protocol::Protocol;
use crate::state::errors;
use crate::state::receive_queue::Datagram;
use sockcr_image::Error as ImageError;
use sockcr_image::attribute::{Attribute, MAX_PAYLOAD, Writer, attributes};
use sockcr_image::number;
use std::net::{IpAddr, SocketAddr};

/// The most that fits into one UDP datagram over IPv4, and over IPv6.
const MOST_PAYLOAD: usize = 65_507;
const MOST_PAYLOAD6: usize = 65_527;
/// The most that a raw socket may receive: a whole packet.
pub(crate) const MOST_RECEIVED: usize = 65_535;
/// The most that an ICMP message can quote: its own headers and those of the datagram are before it.
const MOST_QUOTED: usize = 65_535 - 56;
const MOST_OPTIONS: usize = 40;
/// The kind of the first extension header, and the headers.
const MOST_EXTENSIONS: usize = 1 + 2048;
const MOST_FLOW_LABEL: u32 = 0xf_ffff;
/// The extension headers of corked data: four, and one byte before each.
const MOST_HEADERS: usize = 4 * (1 + 2048);
/// In [`number::CORK`]: by a gateway; not to be cut into fragments.
const GATEWAY: u32 = 1;
const DONT_FRAGMENT: u32 = 2;

/// What a QUEUE message holds; within a socket they come in this order.
pub(super) enum Waiting {
    Received(Datagram),
    Corked(Corked),
    Error(ErrorEntry),
}

/// Reads the attributes of a QUEUE message; only what is written for it is accepted.
pub(super) fn read(bytes: &[u8]) -> Result<Waiting, String> {
    let fields = attributes(bytes).collect::<Result<_, ImageError>>();
    let fields = Fields(fields.map_err(|error| error.to_string())?);
    let (waiting, again) = if fields.optional(number::CORK).is_some() {
        let corked = fields.corked()?;
        let again = from_cork(&corked);
        (Waiting::Corked(corked), again)
    } else if fields.optional(number::EXTENDED_ERROR).is_some() {
        let error = fields.error()?;
        let again = from_error(&error);
        (Waiting::Error(error), again)
    } else {
        let datagram = fields.datagram()?;
        let again = from_datagram(&datagram);
        (Waiting::Received(datagram), again)
    };
    match again {
        Ok(again) if again == bytes && can_be(&waiting) => Ok(waiting),
        _ => Err(format!("{} that cannot be", waiting.name())),
    }
}

impl Waiting {
    fn name(&self) -> &'static str {
        match self {
            Waiting::Received(_) => "a queued datagram",
            Waiting::Corked(_) => "corked data",
            Waiting::Error(_) => "a queued error",
        }
    }
}

/// Whether a socket of this kind can have received it.
pub(super) fn can_have_come(datagram: &Datagram, protocol: &Protocol) -> bool {
    let most = match (protocol.has_ports(), datagram.local.is_ipv6()) {
        (true, true) => MOST_PAYLOAD6,
        (true, false) => MOST_PAYLOAD,
        (false, _) => MOST_RECEIVED,
    };
    datagram.payload.len() <= most
}

fn can_be(waiting: &Waiting) -> bool {
    match waiting {
        Waiting::Received(datagram) => {
            let ips = [datagram.source.ip(), datagram.destination.ip()];
            let ipv6 = datagram.local.is_ipv6();
            let options = match ipv6 {
                true => MOST_EXTENSIONS,
                false => MOST_OPTIONS,
            };
            ips.iter().all(|ip| ip.is_ipv6() == ipv6)
                && datagram.options.len() <= options
                && datagram.payload.len() <= MOST_RECEIVED
                && datagram.flow_label <= if ipv6 { MOST_FLOW_LABEL } else { 0 }
                && datagram.segment <= u16::MAX.into()
                && (!datagram.peeked || datagram.payload.is_empty())
        }
        Waiting::Corked(corked) => {
            let ipv6 = corked.destination.is_ipv6();
            let (options, payload) = match ipv6 {
                true => (MOST_HEADERS, MOST_PAYLOAD6),
                false => (MOST_OPTIONS, MOST_PAYLOAD),
            };
            corked.source.is_ipv6() == ipv6
                && corked.ip_options.len() <= options
                && corked.payload.len() <= payload
                && corked.flow_label <= if ipv6 { MOST_FLOW_LABEL } else { 0 }
                && (ipv6 || !corked.dont_fragment)
        }
        Waiting::Error(entry) => {
            errors::can_be_made(entry)
                && entry.payload.len() <= MOST_QUOTED
                && entry.flow_label <= MOST_FLOW_LABEL
        }
    }
}

/// The attributes of a datagram of the receive queue.
pub(super) fn from_datagram(datagram: &Datagram) -> Result<Vec<u8>, ImageError> {
    let mut writer = Writer::new();
    writer.put(number::DATAGRAM_SOURCE, &sockaddr(datagram.source))?;
    writer.put(
        number::DATAGRAM_DESTINATION,
        &sockaddr(datagram.destination),
    )?;
    writer.u8(number::DATAGRAM_TTL, datagram.ttl)?;
    writer.u8(number::DATAGRAM_TOS, datagram.tos)?;
    writer.u32(number::DATAGRAM_INTERFACE, datagram.interface)?;
    writer.put(number::DATAGRAM_SPEC_DST, &octets(datagram.local))?;
    writer.put(number::DATAGRAM_TIME, &datagram.received_at.to_ne_bytes())?;
    writer.u32(number::DATAGRAM_MARK, datagram.mark)?;
    writer.u32(number::DATAGRAM_SEGMENT, datagram.segment)?;
    writer.put(number::DATAGRAM_OPTIONS, &datagram.options)?;
    let full = datagram.payload.len().min(MAX_PAYLOAD);
    let (payload, end) = datagram.payload.split_at(full);
    writer.put(number::DATAGRAM_PAYLOAD, payload)?;
    put_priority(&mut writer, datagram.priority)?;
    if datagram.peeked {
        writer.put(number::DATAGRAM_PEEKED, &[])?;
    }
    if datagram.flow_label != 0 {
        writer.u32(number::DATAGRAM_FLOW_LABEL, datagram.flow_label)?;
    }
    if !end.is_empty() {
        writer.put(number::DATAGRAM_PAYLOAD_END, end)?;
    }
    Ok(writer.finish())
}

/// Images without priorities are older than those with them, and must stay as they are.
fn put_priority(writer: &mut Writer, priority: u32) -> Result<(), ImageError> {
    match priority {
        0 => Ok(()),
        _ => writer.u32(number::DATAGRAM_PRIORITY, priority),
    }
}

/// The attributes of the corked datagram.
pub(super) fn from_cork(corked: &Corked) -> Result<Vec<u8>, ImageError> {
    let mut writer = Writer::new();
    let source = SocketAddr::new(corked.source, 0);
    writer.put(number::DATAGRAM_SOURCE, &sockaddr(source))?;
    writer.put(number::DATAGRAM_DESTINATION, &sockaddr(corked.destination))?;
    if let Some(ttl) = corked.ttl {
        writer.u8(number::DATAGRAM_TTL, ttl)?;
    }
    if let Some(tos) = corked.tos {
        writer.u8(number::DATAGRAM_TOS, tos)?;
    }
    writer.u32(number::DATAGRAM_INTERFACE, corked.device)?;
    writer.u32(number::DATAGRAM_MARK, corked.mark)?;
    writer.u32(number::DATAGRAM_SEGMENT, corked.segment_size.into())?;
    writer.put(number::DATAGRAM_OPTIONS, &corked.ip_options)?;
    writer.put(number::DATAGRAM_PAYLOAD, &corked.payload)?;
    let gateway = if corked.gateway { GATEWAY } else { 0 };
    let whole = if corked.dont_fragment {
        DONT_FRAGMENT
    } else {
        0
    };
    writer.u32(number::CORK, gateway | whole)?;
    let time = corked.transmit_time.to_ne_bytes();
    writer.put(number::CORK_TRANSMIT_TIME, &time)?;
    put_priority(&mut writer, corked.priority)?;
    if corked.flow_label != 0 {
        writer.u32(number::DATAGRAM_FLOW_LABEL, corked.flow_label)?;
    }
    if corked.fragment_size != 0 {
        writer.u32(number::CORK_FRAGMENT_SIZE, corked.fragment_size)?;
    }
    Ok(writer.finish())
}

/// The attributes of an entry of the error queue.
pub(super) fn from_error(entry: &ErrorEntry) -> Result<Vec<u8>, ImageError> {
    let mut writer = Writer::new();
    if let Some(offender) = entry.offender {
        writer.put(number::DATAGRAM_SOURCE, &sockaddr(offender))?;
    }
    if let Some(destination) = entry.destination {
        writer.put(number::DATAGRAM_DESTINATION, &sockaddr(destination))?;
    }
    writer.u8(number::DATAGRAM_TTL, entry.ttl)?;
    writer.u8(number::DATAGRAM_TOS, entry.tos)?;
    writer.u32(number::DATAGRAM_INTERFACE, entry.interface)?;
    writer.put(number::DATAGRAM_SPEC_DST, &octets(entry.local))?;
    writer.put(number::DATAGRAM_TIME, &entry.received_at.to_ne_bytes())?;
    writer.put(number::DATAGRAM_PAYLOAD, &entry.payload)?;
    writer.put(number::EXTENDED_ERROR, &extended_error(entry))?;
    writer.put(number::ICMP_REST, &entry.rest)?;
    if entry.flow_label != 0 {
        writer.u32(number::DATAGRAM_FLOW_LABEL, entry.flow_label)?;
    }
    Ok(writer.finish())
}

/// `struct sock_extended_err`
fn extended_error(entry: &ErrorEntry) -> Vec<u8> {
    let mut bytes = entry.error.to_ne_bytes().to_vec();
    bytes.extend([entry.origin, entry.kind, entry.code, 0]);
    bytes.extend(entry.info.to_ne_bytes());
    bytes.extend(entry.data.to_ne_bytes());
    bytes
}

/// The attributes of a message.
struct Fields<'a>(Vec<Attribute<'a>>);

fn text(error: ImageError) -> String {
    error.to_string()
}

impl<'a> Fields<'a> {
    fn optional(&self, number: u16) -> Option<&Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.number == number)
    }

    fn find(&self, number: u16) -> Result<&Attribute<'a>, String> {
        self.optional(number)
            .ok_or_else(|| format!("a QUEUE message without attribute {number}"))
    }

    fn u8(&self, number: u16) -> Result<u8, String> {
        self.find(number)?.as_u8().map_err(text)
    }

    fn u32(&self, number: u16) -> Result<u32, String> {
        self.find(number)?.as_u32().map_err(text)
    }

    fn array<const N: usize>(&self, number: u16) -> Result<[u8; N], String> {
        self.find(number)?.as_array().map_err(text)
    }

    fn bytes(&self, number: u16) -> Result<Vec<u8>, String> {
        Ok(self.find(number)?.payload.to_vec())
    }

    fn address(&self, number: u16) -> Result<SocketAddr, String> {
        address(self.find(number)?).map_err(text)
    }

    fn ip(&self, number: u16) -> Result<IpAddr, String> {
        ip(self.find(number)?).map_err(text)
    }

    /// A number whose absence means 0.
    fn u32_or_0(&self, number: u16) -> Result<u32, String> {
        match self.optional(number) {
            Some(found) => found.as_u32().map_err(text),
            None => Ok(0),
        }
    }

    /// All of it: one attribute does not hold the longest packets.
    fn payload(&self) -> Result<Vec<u8>, String> {
        let mut payload = self.bytes(number::DATAGRAM_PAYLOAD)?;
        if let Some(end) = self.optional(number::DATAGRAM_PAYLOAD_END) {
            payload.extend(end.payload);
        }
        Ok(payload)
    }

    fn datagram(&self) -> Result<Datagram, String> {
        Ok(Datagram {
            source: self.address(number::DATAGRAM_SOURCE)?,
            destination: self.address(number::DATAGRAM_DESTINATION)?,
            ttl: self.u8(number::DATAGRAM_TTL)?,
            tos: self.u8(number::DATAGRAM_TOS)?,
            flow_label: self.u32_or_0(number::DATAGRAM_FLOW_LABEL)?,
            interface: self.u32(number::DATAGRAM_INTERFACE)?,
            local: self.ip(number::DATAGRAM_SPEC_DST)?,
            received_at: i64::from_ne_bytes(self.array(number::DATAGRAM_TIME)?),
            mark: self.u32(number::DATAGRAM_MARK)?,
            priority: self.u32_or_0(number::DATAGRAM_PRIORITY)?,
            segment: self.u32(number::DATAGRAM_SEGMENT)?,
            options: self.bytes(number::DATAGRAM_OPTIONS)?,
            peeked: self.optional(number::DATAGRAM_PEEKED).is_some(),
            payload: self.payload()?,
        })
    }

    fn corked(&self) -> Result<Corked, String> {
        let byte = |number: u16| {
            let found = self.optional(number);
            found.map(|found| found.as_u8().map_err(text)).transpose()
        };
        let segment = self.u32(number::DATAGRAM_SEGMENT)?;
        Ok(Corked {
            destination: self.address(number::DATAGRAM_DESTINATION)?,
            source: self.address(number::DATAGRAM_SOURCE)?.ip(),
            tos: byte(number::DATAGRAM_TOS)?,
            ttl: byte(number::DATAGRAM_TTL)?,
            segment_size: u16::try_from(segment).map_err(|error| error.to_string())?,
            device: self.u32(number::DATAGRAM_INTERFACE)?,
            flow_label: self.u32_or_0(number::DATAGRAM_FLOW_LABEL)?,
            dont_fragment: self.u32(number::CORK)? & DONT_FRAGMENT != 0,
            fragment_size: self.u32_or_0(number::CORK_FRAGMENT_SIZE)?,
            gateway: self.u32(number::CORK)? & GATEWAY != 0,
            mark: self.u32(number::DATAGRAM_MARK)?,
            priority: self.u32_or_0(number::DATAGRAM_PRIORITY)?,
            transmit_time: u64::from_ne_bytes(self.array(number::CORK_TRANSMIT_TIME)?),
            stamped: false,
            ip_options: self.bytes(number::DATAGRAM_OPTIONS)?,
            payload: self.bytes(number::DATAGRAM_PAYLOAD)?,
        })
    }

    fn error(&self) -> Result<ErrorEntry, String> {
        let address = |number: u16| {
            let found = self.optional(number);
            found.map(|found| address(found).map_err(text)).transpose()
        };
        let [
            e0,
            e1,
            e2,
            e3,
            origin,
            kind,
            code,
            _,
            i0,
            i1,
            i2,
            i3,
            d0,
            d1,
            d2,
            d3,
        ] = self.array(number::EXTENDED_ERROR)?;
        Ok(ErrorEntry {
            error: i32::from_ne_bytes([e0, e1, e2, e3]),
            origin,
            kind,
            code,
            info: u32::from_ne_bytes([i0, i1, i2, i3]),
            data: u32::from_ne_bytes([d0, d1, d2, d3]),
            statistics: false,
            offender: address(number::DATAGRAM_SOURCE)?,
            destination: address(number::DATAGRAM_DESTINATION)?,
            received_at: i64::from_ne_bytes(self.array(number::DATAGRAM_TIME)?),
            ttl: self.u8(number::DATAGRAM_TTL)?,
            tos: self.u8(number::DATAGRAM_TOS)?,
            flow_label: self.u32_or_0(number::DATAGRAM_FLOW_LABEL)?,
            local: self.ip(number::DATAGRAM_SPEC_DST)?,
            rest: self.array(number::ICMP_REST)?,
            interface: self.u32(number::DATAGRAM_INTERFACE)?,
            payload: self.bytes(number::DATAGRAM_PAYLOAD)?,
        })
    }
}
