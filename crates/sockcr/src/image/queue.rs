//! A queued datagram as a QUEUE message, and back.

use super::{address, sockaddr};
use crate::state::receive_queue::Datagram;
use sockcr_image::Error as ImageError;
use sockcr_image::attribute::{Attribute, Writer, attributes};
use sockcr_image::number;

/// The most that fits into one UDP datagram over IPv4.
const MOST_PAYLOAD: usize = 65_507;

/// The attributes of a QUEUE message.
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
    writer.put(number::DATAGRAM_SPEC_DST, &datagram.local.octets())?;
    writer.put(number::DATAGRAM_TIME, &datagram.received_at.to_ne_bytes())?;
    writer.u32(number::DATAGRAM_MARK, datagram.mark)?;
    writer.u32(number::DATAGRAM_SEGMENT, datagram.segment)?;
    writer.put(number::DATAGRAM_OPTIONS, &datagram.options)?;
    writer.put(number::DATAGRAM_PAYLOAD, &datagram.payload)?;
    Ok(writer.finish())
}

/// The inverse of [`from_datagram`]; only what that writes is accepted.
pub(super) fn to_datagram(bytes: &[u8]) -> Result<Datagram, String> {
    let attributes: Result<Vec<Attribute<'_>>, ImageError> = attributes(bytes).collect();
    let attributes = attributes.map_err(|error| error.to_string())?;
    let find = |number: u16| {
        let found = attributes
            .iter()
            .find(|attribute| attribute.number == number);
        found.ok_or_else(|| format!("a queued datagram without attribute {number}"))
    };
    let text = |error: ImageError| error.to_string();
    let datagram = Datagram {
        source: address(find(number::DATAGRAM_SOURCE)?).map_err(text)?,
        destination: address(find(number::DATAGRAM_DESTINATION)?).map_err(text)?,
        ttl: find(number::DATAGRAM_TTL)?.as_u8().map_err(text)?,
        tos: find(number::DATAGRAM_TOS)?.as_u8().map_err(text)?,
        interface: find(number::DATAGRAM_INTERFACE)?.as_u32().map_err(text)?,
        local: find(number::DATAGRAM_SPEC_DST)?
            .as_array::<4>()
            .map_err(text)?
            .into(),
        received_at: i64::from_ne_bytes(find(number::DATAGRAM_TIME)?.as_array().map_err(text)?),
        mark: find(number::DATAGRAM_MARK)?.as_u32().map_err(text)?,
        segment: find(number::DATAGRAM_SEGMENT)?.as_u32().map_err(text)?,
        options: find(number::DATAGRAM_OPTIONS)?.payload.to_vec(),
        payload: find(number::DATAGRAM_PAYLOAD)?.payload.to_vec(),
    };
    let fits = datagram.options.len() <= 40 && datagram.payload.len() <= MOST_PAYLOAD;
    match from_datagram(&datagram) {
        Ok(again) if again == bytes && fits && datagram.segment <= u16::MAX.into() => Ok(datagram),
        _ => Err("a queued datagram that cannot be".into()),
    }
}
