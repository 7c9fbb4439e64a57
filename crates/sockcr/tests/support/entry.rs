//! Where a stranger's bytes become a checkpoint: what must hold whatever they are.
//!
//! `fuzz/` compiles this same file, so that both throw their bytes at the same place.

use sockcr::{image, json};
use sockcr_image::attribute::Writer;
use sockcr_image::file::{self, Command, Message};
use sockcr_image::number;

/// An image of one socket with these attributes and a right checksum; empty when they are none.
pub fn wrap(attributes: Vec<u8>) -> Vec<u8> {
    let message = Message {
        command: Command::Dump,
        socket: 1,
        attributes,
    };
    file::encode(&[message]).unwrap_or_default()
}

/// The same of a socket with nothing but what it must have, and a QUEUE message with these.
#[allow(dead_code, reason = "shared by programs that use parts of it")]
pub fn wrap_queue(attributes: Vec<u8>) -> Vec<u8> {
    wrap_queues(vec![attributes])
}

/// The same with several QUEUE messages.
#[allow(dead_code, reason = "shared by programs that use parts of it")]
pub fn wrap_queues(queue: Vec<Vec<u8>>) -> Vec<u8> {
    let word = |number: u16, value: u32| {
        let mut writer = Writer::new();
        writer.u32(number, value).expect("a word fits");
        writer.finish()
    };
    let socket = [
        word(number::SOCK_STATE, 1),
        word(number::SOCK_TYPE, 2),
        word(number::FAMILY, 2),
        word(number::PROTOCOL, 17),
    ];
    let message = |command, attributes| Message {
        command,
        socket: 1,
        attributes,
    };
    let mut messages = vec![message(Command::Dump, socket.concat())];
    messages.extend(queue.into_iter().map(|one| message(Command::Queue, one)));
    file::encode(&messages).unwrap_or_default()
}

/// Bytes as an image: refused, or written again byte for byte, also by way of JSON.
pub fn refused_or_identical(image: &[u8]) -> bool {
    let Ok(checkpoints) = image::decode(image) else {
        return true;
    };
    let json = json::to_json(&checkpoints).to_string();
    let by_json = json::from_json(&json).expect("our own JSON is read");
    let again = |c: &[sockcr::Checkpoint]| image::encode(c).expect("what was read is written");
    assert_eq!(again(&by_json), image, "by way of JSON");
    assert_eq!(again(&checkpoints), image);
    false
}
