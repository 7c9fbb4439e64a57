//! Images that are damaged or forged: one clear error, and nothing of them is handed out.

use crate::build::{self, Raw};
use crate::entry;
use sockcr_image::file::{self, Command, MAX_IMAGE, Message};
use sockcr_image::{AttributeFault, EndFault, Error, HeaderFault, MessageFault};

fn sample() -> Vec<u8> {
    file::encode(&build::sample()).unwrap()
}

fn refusal(image: &[u8]) -> Error {
    entry::image(image).expect_err("it was accepted")
}

fn says(image: &[u8], text: &str) {
    assert_eq!(refusal(image).to_string(), text);
}

/// The image with these bytes at this place.
fn with(mut image: Vec<u8>, place: usize, bytes: &[u8]) -> Vec<u8> {
    image[place..place + bytes.len()].copy_from_slice(bytes);
    image
}

fn message_fault(image: &[u8]) -> (usize, usize, MessageFault) {
    match refusal(image) {
        Error::Message {
            message,
            offset,
            fault,
        } => (message, offset, fault),
        other => panic!("{other}"),
    }
}

fn end_fault(image: &[u8]) -> (usize, EndFault) {
    match refusal(image) {
        Error::End { offset, fault } => (offset, fault),
        other => panic!("{other}"),
    }
}

/// Sockets 1 and 2, the first with one datagram: messages at 16, 40 and 64, the end at 88.
fn three() -> [Raw; 3] {
    [
        Raw::new(Command::Dump, 1),
        Raw::new(Command::Queue, 1),
        Raw::new(Command::Dump, 2),
    ]
}

fn changed(change: impl FnOnce(&mut Raw)) -> Vec<u8> {
    let mut messages = three();
    change(&mut messages[1]);
    let mut image = build::open(&messages);
    entry::end(&mut image, 2, 3);
    image
}

#[test]
fn what_these_tests_start_from_is_accepted() {
    assert_eq!(entry::image(&sample()), Ok(build::sample()));
    assert_eq!(entry::image(&changed(|_| ())).unwrap().len(), 3);
    assert_eq!(build::sealed(&three()), changed(|_| ()));
}

#[test]
fn every_prefix_is_refused() {
    let image = sample();
    for length in 0..image.len() {
        let error = refusal(&image[..length]);
        let expected = match length {
            0 => matches!(error, Error::Empty),
            1..16 => {
                error
                    == Error::HeaderTruncated {
                        missing: 16 - length,
                    }
            }
            _ => matches!(error, Error::Truncated { .. } | Error::NoEnd { .. }),
        };
        assert!(expected, "{length}: {error}");
    }
}

#[test]
fn truncation_tells_how_much_is_missing() {
    let image = changed(|_| ());
    says(&[], "the image is empty");
    says(&image[..9], "image is truncated: its header lacks 7 bytes");
    says(&image[..15], "image is truncated: its header lacks 1 byte");
    says(
        &image[..41],
        "image is truncated: message 2 at byte 40 lacks 15 bytes",
    );
    says(
        &image[..63],
        "image is truncated: message 2 at byte 40 lacks 1 byte",
    );
    says(
        &image[..64],
        "image is truncated: it stops at byte 64 without its end",
    );
    says(
        &image[..115],
        "image is truncated: message 4 at byte 88 lacks 1 byte",
    );
}

#[test]
fn every_changed_byte_is_refused() {
    let image = sample();
    let patterns = [1, 2, 4, 8, 16, 32, 64, 128, 0xff, 0x55, 0xaa, 0x0f, 0xf0];
    let mut refused = 0;
    for place in 0..image.len() {
        for pattern in patterns {
            let mut damaged = image.clone();
            damaged[place] ^= pattern;
            assert!(
                entry::image(&damaged).is_err(),
                "byte {place} ^ {pattern:#x}"
            );
            refused += 1;
        }
    }
    assert_eq!(refused, image.len() * 13);
}

#[test]
fn changed_content_is_called_damage() {
    let image = sample();
    let messages = file::decode(&image).unwrap();
    let mut places = 0;
    for message in messages {
        for place in message.offset..message.offset + message.attributes.len() {
            let damaged = with(image.clone(), place, &[!image[place]]);
            assert!(
                matches!(refusal(&damaged), Error::Checksum { .. }),
                "byte {place}"
            );
            places += 1;
        }
    }
    let sizes = build::sample()
        .iter()
        .map(|message| message.attributes.len())
        .sum();
    assert_eq!(places, usize::max(sizes, 100));
    let stored = u32::from_ne_bytes(*image.last_chunk().unwrap());
    let damaged = with(image.clone(), image.len() - 4, &(stored ^ 1).to_ne_bytes());
    let text = format!(
        "image is damaged: its checksum should be {:#010x}, but is {stored:#010x}",
        stored ^ 1
    );
    says(&damaged, &text);
}

#[test]
fn exchanged_and_repeated_parts_are_refused() {
    let image = sample();
    for size in [4, 16, 20, 64] {
        for place in (0..image.len() - 2 * size).step_by(4) {
            let (a, b) = (&image[place..][..size], &image[place + size..][..size]);
            if a != b {
                let exchanged = with(image.clone(), place, &[b, a].concat());
                assert!(entry::image(&exchanged).is_err(), "{size} bytes at {place}");
            }
            let mut without = image.clone();
            without.drain(place..place + size);
            assert!(
                entry::image(&without).is_err(),
                "without {size} bytes at {place}"
            );
            let mut twice = image.clone();
            twice.splice(place..place, a.to_vec());
            assert!(
                entry::image(&twice).is_err(),
                "twice {size} bytes at {place}"
            );
        }
    }
}

#[test]
fn foreign_bytes_are_no_image() {
    for bytes in [
        &b"x"[..],
        b"\x7fELF\x02\x01\x01\0",
        b"{\"format\": 1}",
        &[0; 64],
    ] {
        says(bytes, "not a sockcr image");
    }
    let image = sample();
    for place in 0..8 {
        says(
            &with(image.clone(), place, &[image[place] ^ 0x20]),
            "not a sockcr image",
        );
    }
    // What a transfer as text makes of it: the end of line, or the eighth bit.
    says(&with(image.clone(), 7, b"\r\n"), "not a sockcr image");
    says(&with(image, 0, b"\x09"), "not a sockcr image");
}

#[test]
fn the_header_is_checked() {
    let header = |place, bytes: &[u8]| with(sample(), place, bytes);
    let newer = "image format version 2 is newer than this program knows (1)";
    says(&header(8, &2u16.to_ne_bytes()), newer);
    let newest = "image format version 65535 is newer than this program knows (1)";
    says(&header(8, &u16::MAX.to_ne_bytes()), newest);
    says(
        &header(8, &0u16.to_ne_bytes()),
        "there is no image format version 0",
    );
    let foreign = "image was written on a machine of the other byte order";
    says(&header(10, &0x0201u16.to_ne_bytes()), foreign);
    // All of a foreign header, its version included.
    says(
        &header(
            8,
            &[1u16.swap_bytes().to_ne_bytes(), 0x0201u16.to_ne_bytes()].concat(),
        ),
        foreign,
    );
    let neither = "image header: 0x0103 at byte 10 is no byte-order mark";
    says(&header(10, &0x0103u16.to_ne_bytes()), neither);
    let reserved = "image header: 0x00000005 at byte 12 should be zero";
    says(&header(12, &5u32.to_ne_bytes()), reserved);
    assert_eq!(
        refusal(&header(8, &7u16.to_ne_bytes())),
        Error::Header(HeaderFault::Newer {
            version: 7,
            known: 1
        })
    );
}

#[test]
fn a_newer_version_is_named_before_its_content_is_judged() {
    let mut image = sample();
    image.truncate(40);
    let newer = Error::Header(HeaderFault::Newer {
        version: 2,
        known: 1,
    });
    assert_eq!(refusal(&with(image, 8, &2u16.to_ne_bytes())), newer);
}

#[test]
fn every_field_of_a_message_is_checked() {
    let fault = |change: fn(&mut Raw)| match message_fault(&changed(change)) {
        (2, 40, fault) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(|m| m.kind = 33), MessageFault::Type { found: 33 });
    assert_eq!(fault(|m| m.kind = 2), MessageFault::Type { found: 2 });
    assert_eq!(fault(|m| m.flags = 0), MessageFault::Flags { found: 0 });
    assert_eq!(fault(|m| m.flags = 3), MessageFault::Flags { found: 3 });
    assert_eq!(fault(|m| m.port = 7), MessageFault::Port { found: 7 });
    assert_eq!(fault(|m| m.version = 2), MessageFault::Version { found: 2 });
    assert_eq!(
        fault(|m| m.reserved = 1),
        MessageFault::Reserved { found: 1 }
    );
    assert_eq!(fault(|m| m.command = 0), MessageFault::Command { found: 0 });
    assert_eq!(fault(|m| m.command = 4), MessageFault::Command { found: 4 });
    says(
        &changed(|m| m.command = 9),
        "message 2 at byte 40 has the unknown command 9",
    );
    says(
        &changed(|m| m.kind = 17),
        "message 2 at byte 40 has the unknown type 17",
    );
}

#[test]
fn lengths_that_no_message_has_are_refused() {
    for length in [0, 1, 3, 4, 15, 17, 22, 23] {
        let image = changed(|m| m.length = Some(length));
        assert_eq!(
            message_fault(&image),
            (2, 40, MessageFault::Length { length })
        );
    }
    // An nlmsghdr and nothing else.
    let bare = [
        &Raw::new(Command::Dump, 1).bytes()[..],
        &changed(|_| ())[16..32],
    ]
    .concat();
    let bare = with(bare, 24, &16u32.to_ne_bytes());
    let (2, 40, fault) = message_fault(&entry::seal(&bare)) else {
        panic!()
    };
    assert_eq!(fault, MessageFault::Length { length: 16 });
    for length in [80, 1 << 20, u32::MAX - 3] {
        let missing = length as usize - (changed(|_| ()).len() - 40);
        let expected = Error::Truncated {
            message: 2,
            offset: 40,
            missing,
        };
        assert_eq!(refusal(&changed(|m| m.length = Some(length))), expected);
    }
}

#[test]
fn sockets_are_numbered_in_order() {
    let fault = |messages: &[Raw]| message_fault(&build::sealed(messages));
    let dump = |socket| Raw::new(Command::Dump, socket);
    let queue = |socket| Raw::new(Command::Queue, socket);
    let due = |found, due| MessageFault::Socket { found, due };
    assert_eq!(fault(&[dump(0)]), (1, 16, due(0, 1)));
    assert_eq!(fault(&[dump(2)]), (1, 16, due(2, 1)));
    assert_eq!(fault(&[dump(1), dump(1)]), (2, 40, due(1, 2)));
    assert_eq!(fault(&[dump(1), dump(3)]), (2, 40, due(3, 2)));
    assert_eq!(fault(&[dump(1), dump(2), dump(1)]), (3, 64, due(1, 3)));
    assert_eq!(fault(&[dump(1), dump(u32::MAX)]), (2, 40, due(u32::MAX, 2)));
    let queued = |found, behind| MessageFault::Queue { found, behind };
    assert_eq!(
        fault(&[queue(1)]),
        (1, 16, MessageFault::QueueFirst { found: 1 })
    );
    assert_eq!(
        fault(&[queue(0)]),
        (1, 16, MessageFault::QueueFirst { found: 0 })
    );
    assert_eq!(fault(&[dump(1), queue(2), dump(2)]), (2, 40, queued(2, 1)));
    assert_eq!(fault(&[dump(1), dump(2), queue(1)]), (3, 64, queued(1, 2)));
    says(
        &build::sealed(&[dump(1), dump(2), queue(1)]),
        "message 3 at byte 64 is queued on socket 1, but stands behind socket 2",
    );
}

#[test]
fn the_end_is_there_once_and_last() {
    let expected = Error::NoEnd { offset: 88 };
    assert_eq!(refusal(&build::open(&three())), expected);

    let mut doubled = build::sealed(&three());
    entry::end(&mut doubled, 2, 3);
    assert_eq!(
        refusal(&doubled),
        Error::Trailing {
            offset: 116,
            excess: 28
        }
    );

    let mut between = build::sealed(&three()[..1]);
    between.extend(Raw::new(Command::Dump, 2).bytes());
    entry::end(&mut between, 2, 2);
    assert_eq!(
        refusal(&between),
        Error::Trailing {
            offset: 68,
            excess: 24 + 28
        }
    );

    let mut two_images = sample();
    let offset = two_images.len();
    two_images.extend(sample());
    assert_eq!(
        refusal(&two_images),
        Error::Trailing {
            offset,
            excess: offset
        }
    );
}

#[test]
fn bytes_after_the_end_are_refused() {
    for excess in 1..=64 {
        let mut image = build::sealed(&three());
        image.extend(vec![0; excess]);
        assert_eq!(
            refusal(&image),
            Error::Trailing {
                offset: 116,
                excess
            }
        );
    }
    let mut image = build::sealed(&three());
    image.push(b'\n');
    says(&image, "1 byte too many: the image ends at byte 116");
}

#[test]
fn the_fields_of_the_end_are_checked() {
    let end = |place: usize, bytes: &[u8]| with(build::sealed(&three()), 88 + place, bytes);
    assert_eq!(
        end_fault(&end(6, &[0, 0])),
        (88, EndFault::Flags { found: 0 })
    );
    assert_eq!(
        end_fault(&end(8, &1u32.to_ne_bytes())),
        (88, EndFault::Address)
    );
    assert_eq!(
        end_fault(&end(12, &1u32.to_ne_bytes())),
        (88, EndFault::Address)
    );
    for length in [16u32, 20, 24] {
        let image = end(0, &length.to_ne_bytes());
        assert_eq!(end_fault(&image), (88, EndFault::Length { length }));
    }
    let mut longer = end(0, &32u32.to_ne_bytes());
    longer.extend([0; 4]);
    assert_eq!(end_fault(&longer), (88, EndFault::Length { length: 32 }));
}

#[test]
fn wrong_counts_are_refused() {
    for told in [0, 1, 3, u32::MAX] {
        let image = build::closed(&three(), told, 3);
        assert_eq!(
            end_fault(&image),
            (88, EndFault::Sockets { told, found: 2 })
        );
    }
    for told in [0, 2, 4, u32::MAX] {
        let image = build::closed(&three(), 2, told);
        assert_eq!(
            end_fault(&image),
            (88, EndFault::Messages { told, found: 3 })
        );
    }
    says(
        &build::closed(&[], 1, 0),
        "the end of the image at byte 16 counts 1 sockets where there are 0",
    );
}

#[test]
fn attributes_are_checked_before_anything_is_handed_out() {
    let image = changed(|m| m.attributes = [&[9, 0, 6, 0][..], &[0; 4]].concat());
    let fault = AttributeFault::Truncated { missing: 4 };
    if cfg!(target_endian = "little") {
        assert_eq!(
            refusal(&image),
            Error::Attribute {
                number: 6,
                offset: 60,
                fault
            }
        );
    }
    let image = changed(|m| m.attributes = vec![0; 4]);
    let fault = AttributeFault::Length { length: 0 };
    assert_eq!(
        refusal(&image),
        Error::Attribute {
            number: 0,
            offset: 60,
            fault
        }
    );
}

#[test]
fn an_image_beyond_the_limit_is_refused_unread() {
    let huge = vec![0; MAX_IMAGE + 1];
    let expected = Error::TooLarge {
        size: MAX_IMAGE + 1,
        limit: 1 << 30,
    };
    assert_eq!(file::decode(&huge), Err(expected));
    let message = Message {
        command: Command::Dump,
        socket: 1,
        attributes: huge,
    };
    let size = MAX_IMAGE + 1 + 16 + 20 + 28;
    let refused = file::encode(&[message]).unwrap_err();
    assert_eq!(
        refused,
        Error::TooLarge {
            size,
            limit: MAX_IMAGE
        }
    );
    let text = "the image of 1073741889 bytes is larger than the limit of 1073741824 bytes";
    assert_eq!(refused.to_string(), text);
}

#[test]
fn what_would_not_be_read_is_not_written() {
    let write = |messages: &[(Command, u32, Vec<u8>)]| {
        let messages: Vec<Message> = messages
            .iter()
            .cloned()
            .map(|(command, socket, attributes)| Message {
                command,
                socket,
                attributes,
            })
            .collect();
        file::encode(&messages)
    };
    let (dump, queue) = (Command::Dump, Command::Queue);
    let message = |message, offset, fault| {
        Err(Error::Message {
            message,
            offset,
            fault,
        })
    };
    let fault = MessageFault::Socket { found: 2, due: 1 };
    assert_eq!(write(&[(dump, 2, vec![])]), message(1, 16, fault));
    let fault = MessageFault::QueueFirst { found: 1 };
    assert_eq!(write(&[(queue, 1, vec![])]), message(1, 16, fault));
    let fault = MessageFault::Queue {
        found: 2,
        behind: 1,
    };
    assert_eq!(
        write(&[(dump, 1, vec![]), (queue, 2, vec![])]),
        message(2, 36, fault)
    );
    let expected = Err(Error::AttributeHeader {
        offset: 60,
        left: 3,
    });
    assert_eq!(
        write(&[(dump, 1, build::flags(&[6])), (queue, 1, vec![0; 3])]),
        expected
    );
}
