//! docs/service.md shows bytes that are what it says.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/entry.rs"]
#[allow(dead_code)]
mod entry;

use neli::FromBytes;
use neli::genl::Genlmsghdr;
use neli::nl::Nlmsghdr;
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use sockcr_service::message::{Answer, Command};
use sockcr_service::request::{Ask, Passed, What};
use std::io::Cursor;

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
        Ask::List { process: Some(_) },
        Ask::Check,
        Ask::Metrics,
    ] = &asks[..]
    else {
        panic!("the document asks for {asks:?}");
    };
}

/// Attributes as number and payload.
type Read = Vec<(u16, Vec<u8>)>;

/// What netlink-packet-core and neli, which know nothing of us, read is what we read.
#[test]
#[cfg(target_endian = "little")]
fn netlink_libraries_read_the_same() {
    let packets = packets();
    let ours = |payload: &[u8]| -> Read {
        let read = sockcr_image::attribute::attributes(payload).map(Result::unwrap);
        read.map(|a| (a.number, a.payload.to_vec())).collect()
    };
    let mut read = 0;
    for (who, packet) in &packets {
        let header = NetlinkBuffer::new_checked(&packet[..]).unwrap();
        assert_eq!(header.length() as usize, packet.len(), "{who}");
        if !matches!(header.message_type(), 16 | 32) {
            continue;
        }
        let payload = &header.payload()[4..];
        let core = NlasIterator::new(payload).map(Result::unwrap);
        let core: Read = core.map(|nla| (nla.kind(), nla.value().to_vec())).collect();
        assert_eq!(core, ours(payload), "{who}");
        let message =
            Nlmsghdr::<u16, Genlmsghdr<u8, u16>>::from_bytes(&mut Cursor::new(&packet[..]));
        let message = message.unwrap();
        let body = message.get_payload().unwrap();
        assert_eq!(*body.cmd(), header.payload()[0], "{who}");
        let attributes = body.attrs().iter();
        let neli: Read = attributes
            .map(|a| (*a.nla_type().nla_type(), a.nla_payload().as_ref().to_vec()))
            .collect();
        assert_eq!(neli, ours(payload), "{who}");
        read += core.len();
    }
    assert!(read > 100, "only {read} attributes were read");
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
        Answer::Message(Command::List, _),
        Answer::Message(Command::List, _),
        Answer::Done,
        Answer::Message(Command::Check, _),
        Answer::Ack,
    ] = &answers[..]
    else {
        panic!("the document answers {answers:?}");
    };
    assert_eq!(*family, sockcr_service::message::family());
    assert_eq!((fault.errno, fault.offset), (2, Some(20)));
}
