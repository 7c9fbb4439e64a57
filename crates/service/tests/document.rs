//! docs/service.md shows bytes that are what it says.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/entry.rs"]
#[allow(dead_code)]
mod entry;

use sockcr_service::message::{Answer, Command};
use sockcr_service::request::{Ask, Passed, What};

const DOCUMENT: &str = include_str!("../../../docs/service.md");

/// Who sends it and its bytes, for each packet that the document shows.
fn packets() -> Vec<(&'static str, Vec<u8>)> {
    let (_, shown) = DOCUMENT.split_once("## As bytes").unwrap();
    let mut packets: Vec<(&str, Vec<u8>)> = Vec::new();
    for line in shown.lines() {
        if let Some((who, length)) = line.split_once(", ").filter(|_| line.ends_with(" bytes:")) {
            let length = length.rsplit(", ").next().unwrap();
            assert!(length.ends_with(" bytes:"), "{length}");
            packets.push((who, Vec::new()));
        } else if let Some(bytes) = line.strip_prefix("    ") {
            let bytes = bytes
                .split(' ')
                .map(|byte| u8::from_str_radix(byte, 16).unwrap());
            packets.last_mut().unwrap().1.extend(bytes);
        }
    }
    packets
}

#[test]
#[cfg(target_endian = "little")]
fn the_requests_are_understood() {
    let packets = packets();
    let sent = packets.iter().filter(|(who, _)| *who == "Client");
    let requests = entry::packets(sent.map(|(_, packet)| (&packet[..], Passed::None)));
    let asks: Vec<Ask> = requests.into_iter().map(|request| request.ask).collect();
    let [
        Ask::Family { all: false },
        Ask::Dump {
            what: What::Inode(_),
            ..
        },
        Ask::Restore {
            lossy: false,
            alone: false,
            waiting: true,
        },
        Ask::Dump {
            what: What::Inode(4711),
            ..
        },
        Ask::Metrics,
    ] = &asks[..]
    else {
        panic!("the document asks for {asks:?}");
    };
}

#[test]
#[cfg(target_endian = "little")]
fn the_answers_are_what_a_client_reads() {
    let packets = packets();
    let answers: Vec<Answer<'_>> = packets
        .iter()
        .filter(|(who, _)| who.starts_with("Service"))
        .map(|(who, packet)| entry::answer(packet).unwrap_or_else(|| panic!("{who}: is no answer")))
        .collect();
    let [
        Answer::Controller(1, family),
        Answer::Message(Command::Dump, _),
        Answer::Message(Command::Queue, _),
        Answer::Done,
        Answer::Message(Command::Restore, _),
        Answer::Error(fault),
        Answer::Ack,
    ] = &answers[..]
    else {
        panic!("the document answers {answers:?}");
    };
    assert_eq!(*family, sockcr_service::message::family());
    assert_eq!((fault.errno, fault.offset), (2, Some(20)));
}
