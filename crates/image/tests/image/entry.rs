//! Where bytes of any kind come in: what must hold whatever they are.
//!
//! `fuzz/` compiles this same file, so that both throw their bytes at the same places.

use sockcr_image::attribute::{Attribute, Attributes, Writer, attributes};
use sockcr_image::file::{self, Message, MessageRef};
use sockcr_image::{Error, looks_like_image};

/// Bytes as an image: refused with a reason, or written again byte for byte.
pub fn image(bytes: &[u8]) -> Result<Vec<Message>, Error> {
    let decoded = file::decode(bytes).inspect_err(explain)?;
    assert!(looks_like_image(bytes));
    for message in &decoded {
        let start = message.offset;
        assert_eq!(
            &bytes[start..start + message.attributes.len()],
            message.attributes
        );
        assert!(message.attributes().all(|attribute| attribute.is_ok()));
    }
    let messages: Vec<Message> = decoded.iter().map(MessageRef::to_message).collect();
    assert_eq!(file::encode(&messages).as_deref(), Ok(bytes));
    Ok(messages)
}

/// Bytes as the messages of an image whose header and end are right.
pub fn sealed(messages: &[u8]) -> Result<Vec<Message>, Error> {
    image(&seal(messages))
}

/// Bytes as attributes: refused with a reason, or written again byte for byte.
pub fn attribute_list(bytes: &[u8]) -> Result<usize, Error> {
    let mut writer = Writer::new();
    let mut count = 0;
    for attribute in attributes(bytes) {
        let attribute = attribute.inspect_err(explain)?;
        let start = attribute.offset + 4;
        assert_eq!(
            &bytes[start..start + attribute.payload.len()],
            attribute.payload
        );
        every_type(&attribute);
        every_level(attribute.nested(), bytes);
        match attribute.nested {
            true => writer.put_nested(attribute.number, attribute.payload)?,
            false => writer.put(attribute.number, attribute.payload)?,
        }
        count += 1;
    }
    assert_eq!(writer.finish(), bytes);
    Ok(count)
}

fn explain(error: &Error) {
    let text = error.to_string();
    assert!(
        text.len() > 10 && !text.contains('\n'),
        "{text:?} explains nothing"
    );
}

/// Each accessor accepts what has its length, and nothing else.
fn every_type(attribute: &Attribute<'_>) {
    let fits = |length| !attribute.nested && attribute.payload.len() == length;
    assert_eq!(attribute.as_flag().is_ok(), fits(0));
    assert_eq!(attribute.as_u8().is_ok(), fits(1));
    assert_eq!(attribute.as_u32().is_ok(), fits(4));
    assert_eq!(attribute.as_i32().is_ok(), fits(4));
    assert_eq!(attribute.as_u64().is_ok(), fits(8));
    assert_eq!(attribute.as_array::<16>().is_ok(), fits(16));
    if let Ok(text) = attribute.as_str() {
        assert_eq!(text.as_bytes(), attribute.payload);
    }
}

/// Goes down as long as there are attributes, with offsets that stay true.
fn every_level(mut level: Attributes<'_>, bytes: &[u8]) {
    while let Some(Ok(attribute)) = level.next() {
        let start = attribute.offset + 4;
        assert_eq!(
            &bytes[start..start + attribute.payload.len()],
            attribute.payload
        );
        level = attribute.nested();
    }
}

/// Puts a header before messages, and behind them an end with the counts and checksum they have.
pub fn seal(messages: &[u8]) -> Vec<u8> {
    let mut image = file::encode(&[]).unwrap();
    image.truncate(file::HEADER);
    image.extend(messages);
    let (sockets, count) = count(messages);
    end(&mut image, sockets, count);
    image
}

/// An end with these counts, and the checksum of what is there.
pub fn end(image: &mut Vec<u8>, sockets: u32, messages: u32) {
    let checksum = crc32c::crc32c(image);
    image.extend(28u32.to_ne_bytes());
    image.extend(3u16.to_ne_bytes());
    image.extend(2u16.to_ne_bytes());
    for word in [0, 0, sockets, messages, checksum] {
        image.extend(u32::to_ne_bytes(word));
    }
}

/// Sockets and messages, as far as lengths lead.
fn count(mut messages: &[u8]) -> (u32, u32) {
    let (mut sockets, mut count) = (0, 0);
    while let Some(length) = messages
        .first_chunk()
        .map(|length| u32::from_ne_bytes(*length))
    {
        count += 1;
        sockets += u32::from(messages.get(16) != Some(&(file::Command::Queue as u8)));
        match messages.get(length.max(1) as usize..) {
            Some(rest) => messages = rest,
            None => break,
        }
    }
    (sockets, count)
}
