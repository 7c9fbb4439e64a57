//! What was written comes back.

use crate::{build, entry};
use proptest::collection::vec;
use proptest::prelude::*;
use sockcr_image::attribute::{MAX_NUMBER, Writer, attributes};
use sockcr_image::file::{self, Command, Message, MessageRef};

type Written = (u16, bool, Vec<u8>);

fn any_attributes() -> impl Strategy<Value = Vec<Written>> {
    vec(
        (1..=MAX_NUMBER, any::<bool>(), vec(any::<u8>(), 0..40)),
        0..12,
    )
}

fn write(written: &[Written]) -> Vec<u8> {
    let mut writer = Writer::new();
    for (number, nested, payload) in written {
        match nested {
            true => writer.put_nested(*number, payload).unwrap(),
            false => writer.put(*number, payload).unwrap(),
        }
    }
    writer.finish()
}

/// Sockets in order, each with its queue behind it.
fn any_messages() -> impl Strategy<Value = Vec<Message>> {
    let socket = (any::<bool>(), any_attributes(), vec(any_attributes(), 0..4));
    vec(socket, 0..6).prop_map(|sockets| {
        let mut messages = Vec::new();
        for ((restore, own, queue), socket) in sockets.into_iter().zip(1..) {
            let command = if restore {
                Command::Restore
            } else {
                Command::Dump
            };
            let queued = queue.iter().map(|one| (Command::Queue, one));
            for (command, written) in [(command, &own)].into_iter().chain(queued) {
                let attributes = write(written);
                messages.push(Message {
                    command,
                    socket,
                    attributes,
                });
            }
        }
        messages
    })
}

proptest! {
    #[test]
    fn attributes_come_back(written in any_attributes()) {
        let bytes = write(&written);
        let read: Vec<Written> = attributes(&bytes)
            .map(|attribute| attribute.map(|a| (a.number, a.nested, a.payload.to_vec())).unwrap())
            .collect();
        prop_assert_eq!(&read, &written);
        prop_assert_eq!(entry::attribute_list(&bytes), Ok(written.len()));
    }

    #[test]
    fn nested_attributes_come_back(outer in 1..=MAX_NUMBER, written in any_attributes()) {
        let mut writer = Writer::new();
        writer.nested(outer, |inner| {
            written.iter().try_for_each(|(number, _, payload)| inner.put(*number, payload))
        }).unwrap();
        let bytes = writer.finish();
        let [attribute] = &attributes(&bytes).collect::<Result<Vec<_>, _>>().unwrap()[..] else {
            panic!("one was written");
        };
        prop_assert!(attribute.nested && attribute.number == outer);
        let inner: Vec<(u16, &[u8])> =
            attribute.nested().map(|a| a.map(|a| (a.number, a.payload)).unwrap()).collect();
        let expected: Vec<(u16, &[u8])> =
            written.iter().map(|(number, _, payload)| (*number, &payload[..])).collect();
        prop_assert_eq!(inner, expected);
    }

    #[test]
    fn values_come_back(a in any::<u8>(), b in any::<u32>(), c in any::<i32>(), d in any::<u64>(),
                        text in "[^\0]{0,40}") {
        let mut writer = Writer::new();
        writer.u8(1, a).unwrap();
        writer.u32(2, b).unwrap();
        writer.i32(3, c).unwrap();
        writer.u64(4, d).unwrap();
        writer.str(5, &text).unwrap();
        let bytes = writer.finish();
        let read: Vec<_> = attributes(&bytes).map(Result::unwrap).collect();
        prop_assert_eq!(read.len(), 5);
        prop_assert_eq!(read[0].as_u8(), Ok(a));
        prop_assert_eq!(read[1].as_u32(), Ok(b));
        prop_assert_eq!(read[2].as_i32(), Ok(c));
        prop_assert_eq!(read[3].as_u64(), Ok(d));
        prop_assert_eq!(read[4].as_str(), Ok(&text[..]));
    }

    #[test]
    fn messages_come_back(messages in any_messages()) {
        let image = file::encode(&messages).unwrap();
        prop_assert!(image.len().is_multiple_of(4));
        prop_assert_eq!(entry::image(&image), Ok(messages));
    }
}

#[test]
fn an_image_without_sockets_is_one() {
    let image = file::encode(&[]).unwrap();
    assert_eq!(image.len(), 16 + 28);
    assert_eq!(file::decode(&image), Ok(Vec::new()));
}

#[test]
fn offsets_are_those_in_the_image() {
    let messages = build::sample();
    let image = file::encode(&messages).unwrap();
    let mut seen = 0;
    for message in file::decode(&image).unwrap() {
        for attribute in message.attributes().map(Result::unwrap) {
            let payload = &image[attribute.offset + 4..][..attribute.payload.len()];
            assert_eq!(payload, attribute.payload);
            seen += 1;
        }
    }
    assert_eq!(seen, 12);
}

#[test]
fn the_checksum_is_crc32c() {
    // Bit by bit, after the definition in RFC 3720, B.4.
    let bitwise = |bytes: &[u8]| {
        !bytes.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| match crc & 1 {
                1 => crc >> 1 ^ 0x82f6_3b78,
                _ => crc >> 1,
            })
        })
    };
    assert_eq!(bitwise(b"123456789"), 0xe306_9283);
    let image = file::encode(&build::sample()).unwrap();
    let (before, end) = image.split_at(image.len() - 28);
    assert_eq!(end[24..], bitwise(before).to_ne_bytes());
}

#[test]
fn a_message_stands_on_its_own() {
    let image = file::encode(&build::sample()).unwrap();
    let owned: Vec<Message> = file::decode(&image)
        .unwrap()
        .iter()
        .map(MessageRef::to_message)
        .collect();
    drop(image);
    assert_eq!(owned, build::sample());
}
