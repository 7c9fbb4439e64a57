//! What the parser does with packets, for tests and the fuzzer.

use sockcr_service::message::{self, Answer, Header, read_answer};
use sockcr_service::request::{Ask, Passed, Reader, Request};

/// Reads packets as the parser does; answers what became of them. Whatever the packets are: no more than one request
/// for each, in the form that the broker reads, and an image that is one.
pub fn packets<'a>(packets: impl IntoIterator<Item = (&'a [u8], Passed)>) -> Vec<Request> {
    let mut reader = Reader::default();
    let mut requests = Vec::new();
    for (packet, passed) in packets {
        let Some((request, image)) = reader.packet(packet, passed) else {
            continue;
        };
        assert_eq!(image.is_some(), matches!(request.ask, Ask::Restore { .. }));
        if let Some(image) = image {
            let checkpoint =
                sockcr::Checkpoint::from_bytes(&image).expect("what is handed on is an image");
            assert_eq!(checkpoint.to_bytes().expect("it can be written"), image);
        }
        let last = matches!(request.ask, Ask::Wrong { last: true, .. });
        requests.push(request);
        if last {
            break;
        }
    }
    requests
}

/// Reads a packet as a client reads an answer: what it says lies within it.
pub fn answer(packet: &[u8]) -> Option<Answer<'_>> {
    let (header, answer) = read_answer(packet)?;
    assert_eq!(header.length as usize, packet.len());
    Some(answer)
}

/// Cuts bytes into packets: a byte says how long each is, another what came beside it.
pub fn cut(mut bytes: &[u8]) -> Vec<(&[u8], Passed)> {
    let mut packets = Vec::new();
    while let [length, passed, rest @ ..] = bytes {
        let (packet, rest) = rest.split_at(usize::from(*length).min(rest.len()));
        let passed = match passed % 4 {
            0 => Passed::One,
            1 => Passed::Many,
            _ => Passed::None,
        };
        packets.push((packet, passed));
        bytes = rest;
    }
    packets
}

/// A message with this header and these attributes, whose length is right.
pub fn message(kind: u16, flags: u16, sequence: u32, command: u8, attributes: &[u8]) -> Vec<u8> {
    let length = (message::FAMILY_HEADER + attributes.len()) as u32;
    let header = Header {
        length,
        kind,
        flags,
        sequence,
        port: 0,
    };
    let mut bytes = Vec::new();
    bytes.extend(header.length.to_ne_bytes());
    bytes.extend(header.kind.to_ne_bytes());
    bytes.extend(header.flags.to_ne_bytes());
    bytes.extend(header.sequence.to_ne_bytes());
    bytes.extend(header.port.to_ne_bytes());
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    bytes
}
