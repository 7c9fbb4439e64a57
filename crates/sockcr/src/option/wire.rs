//! Values in the attributes of an image.

use super::value::printable;
use super::{Kind, Row, Value, Wire};
use sockcr_image::attribute::Attribute;

/// The payload of a row's attribute; `None` when its absence says the value.
pub(crate) fn payload(row: &Row, value: &Value) -> Option<Vec<u8>> {
    let bytes = match (row.wire, value) {
        (Wire::Flag, value) if value.is_empty() => return None,
        (Wire::Flag, _) => Vec::new(),
        (Wire::U8, Value::Int(number)) => vec![*number as u8],
        (Wire::U32, Value::Int(number)) => (*number as u32).to_ne_bytes().into(),
        (Wire::Name, Value::Text(name)) => {
            let mut bytes = name.clone().into_bytes();
            bytes.resize(16, 0);
            bytes
        }
        (Wire::MulticastInterface, Value::Pair(address, _)) => {
            (*address as u32).to_be_bytes().into()
        }
        (_, value) => raw(row.kind, value),
    };
    Some(bytes)
}

/// The value in a row's attribute; the inverse of [`payload`].
pub(crate) fn value(row: &Row, attribute: &Attribute<'_>) -> Result<Value, sockcr_image::Error> {
    Ok(match row.wire {
        Wire::Flag => {
            attribute.as_flag()?;
            Value::Int(1)
        }
        Wire::U8 => Value::Int(attribute.as_u8()?.into()),
        Wire::U32 => {
            let word = attribute.as_u32()?;
            match row.kind.unsigned() {
                true => Value::Int(word.into()),
                false => Value::Int((word as i32).into()),
            }
        }
        Wire::MulticastInterface => {
            Value::Pair(u32::from_be_bytes(attribute.as_array()?).into(), 0)
        }
        Wire::Name => name(&attribute.as_array::<16>()?)
            .ok_or_else(|| attribute.invalid("is no name filled up with NULs"))?,
        Wire::Kernel => row
            .kind
            .decode(attribute.payload)
            .filter(|value| raw(row.kind, value) == attribute.payload)
            .ok_or_else(|| attribute.invalid("has a wrong length"))?,
    })
}

fn name(bytes: &[u8; 16]) -> Option<Value> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    let (name, rest) = bytes.split_at(end);
    if name.is_empty() || rest.iter().any(|byte| *byte != 0) {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    printable(name).then(|| Value::Text(name.into()))
}

/// The bytes as getsockopt(2) gives them.
fn raw(kind: Kind, value: &Value) -> Vec<u8> {
    let words = |a: i64, b: i64| [(a as i32).to_ne_bytes(), (b as i32).to_ne_bytes()].concat();
    match (kind, value) {
        (Kind::Timeval, Value::Pair(seconds, micros)) => {
            [seconds.to_ne_bytes(), micros.to_ne_bytes()].concat()
        }
        (Kind::PortRange, Value::Pair(low, high)) => ((*high as u32) << 16
            | (*low as u32 & 0xffff))
            .to_ne_bytes()
            .into(),
        (_, Value::Pair(a, b)) => words(*a, *b),
        (_, Value::Scoped(address, index)) => {
            [&address.octets()[..], &index.to_ne_bytes()].concat()
        }
        (_, Value::Int(number)) => number.to_ne_bytes().into(),
        (_, Value::Text(text)) => text.clone().into_bytes(),
        (_, Value::Bytes(bytes)) => bytes.clone(),
    }
}
