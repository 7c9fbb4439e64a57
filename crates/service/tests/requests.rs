//! What the parser makes of packets: right ones, wrong ones, and noise.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/entry.rs"]
mod entry;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sockcr::Checkpoint;
use sockcr_image::attribute::Writer;
use sockcr_image::number;
use sockcr_service::message::{self, Answer, CONTROLLER, Command, DONE, FAMILY, flags};
use sockcr_service::request::{Ask, MAX_RESTORE, Passed, What, errno};
use std::net::UdpSocket;

fn attributes(fill: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer::new();
    fill(&mut writer);
    writer.finish()
}

fn asked(command: Command, attributes: &[u8]) -> Vec<u8> {
    entry::message(FAMILY, flags::REQUEST, 7, command as u8, attributes)
}

fn one(packet: &[u8], passed: Passed) -> Ask {
    let mut requests = entry::packets([(packet, passed)]);
    assert_eq!(requests.len(), 1, "one packet, one request");
    requests.remove(0).ask
}

/// errno and offset of what is refused.
fn refused(packet: &[u8], passed: Passed) -> (i32, Option<u32>) {
    match one(packet, passed) {
        Ask::Wrong { errno, offset, .. } => (errno, offset),
        other => panic!("is not refused: {other:?}"),
    }
}

/// The messages of a restore of a real socket with a datagram in it, in order, with their sequence number.
fn restore(sequence: u32) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut checkpoint = Checkpoint::dump(&socket).unwrap();
    checkpoint.receive_queue = vec![datagram()];
    let messages = sockcr::image::messages(&checkpoint, 1).unwrap();
    let mut packets: Vec<Vec<u8>> = messages
        .iter()
        .zip([Command::Restore, Command::Queue])
        .map(|(message, command)| {
            entry::message(
                FAMILY,
                flags::REQUEST,
                sequence,
                command as u8,
                &message.attributes,
            )
        })
        .collect();
    packets.push(entry::message(DONE, 0, sequence, 0, &[]));
    packets
}

fn datagram() -> sockcr::state::receive_queue::Datagram {
    let (sender, receiver) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    sender
        .send_to(b"hello", receiver.local_addr().unwrap())
        .unwrap();
    let mut checkpoint = Checkpoint::dump(&receiver).unwrap();
    checkpoint.receive_queue.remove(0)
}

fn without_passed(packets: &[Vec<u8>]) -> Vec<Ask> {
    let packets = packets.iter().map(|packet| (&packet[..], Passed::None));
    let requests = entry::packets(packets);
    requests.into_iter().map(|request| request.ask).collect()
}

#[test]
fn a_socket_is_named_in_three_ways() {
    let inode = attributes(|w| w.u32(number::INODE, 4711).unwrap());
    let dump = |what| Ask::Dump { what, offset: 20 };
    assert_eq!(
        one(&asked(Command::Dump, &inode), Passed::None),
        dump(What::Inode(4711))
    );
    let name = attributes(|w| w.put(number::TARGET, b"udp:127.0.0.1:53\0").unwrap());
    let named = dump(What::Named("udp:127.0.0.1:53".into()));
    assert_eq!(one(&asked(Command::Dump, &name), Passed::None), named);
    let passed = attributes(|w| w.flag(number::PASSED).unwrap());
    assert_eq!(
        one(&asked(Command::Dump, &passed), Passed::One),
        dump(What::Passed)
    );
}

#[test]
fn what_names_no_socket_or_two_is_refused() {
    let both = attributes(|w| {
        w.u32(number::INODE, 1).unwrap();
        w.str(number::TARGET, "1").unwrap();
    });
    let passed = attributes(|w| w.flag(number::PASSED).unwrap());
    let dump = |attributes: &[u8]| asked(Command::Dump, attributes);
    assert_eq!(refused(&dump(&[]), Passed::None), (errno::INVALID, None));
    assert_eq!(
        refused(&dump(&both), Passed::None),
        (errno::INVALID, Some(28))
    );
    assert_eq!(
        refused(&dump(&passed), Passed::None),
        (errno::INVALID, None)
    );
    assert_eq!(
        refused(&dump(&passed), Passed::Many),
        (errno::INVALID, None)
    );
    let inode = attributes(|w| w.u32(number::INODE, 1).unwrap());
    assert_eq!(refused(&dump(&inode), Passed::One), (errno::INVALID, None));
    for wrong in ["", "nonsense", "udp:1.2.3.4", &"9".repeat(300)] {
        let name = attributes(|w| w.str(number::TARGET, wrong).unwrap());
        assert_eq!(
            refused(&dump(&name), Passed::None),
            (errno::INVALID, Some(20)),
            "{wrong}"
        );
    }
    let process = attributes(|w| w.str(number::TARGET, "udp:*:53").unwrap());
    let list = asked(Command::List, &process);
    assert_eq!(refused(&list, Passed::None), (errno::INVALID, Some(20)));
    let unknown = attributes(|w| w.u32(number::SOCK_TYPE, 1).unwrap());
    assert_eq!(
        refused(&dump(&unknown), Passed::None),
        (errno::INVALID, Some(20))
    );
}

#[test]
fn headers_are_checked() {
    let good = asked(Command::Check, &[]);
    assert_eq!(one(&good, Passed::None), Ask::Check);
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(refused(&longer, Passed::None).0, errno::INVALID);
    assert_eq!(refused(&good[..19], Passed::None).0, errno::INVALID);
    assert_eq!(refused(&good[..3], Passed::None).0, errno::INVALID);
    let no_request = entry::message(FAMILY, 0, 1, Command::Check as u8, &[]);
    assert_eq!(refused(&no_request, Passed::None).0, errno::INVALID);
    for number in [0, Command::Queue as u8, 7, 255] {
        let packet = entry::message(FAMILY, flags::REQUEST, 1, number, &[]);
        assert_eq!(
            refused(&packet, Passed::None).0,
            errno::NOT_SUPPORTED,
            "{number}"
        );
    }
    let other = entry::message(33, flags::REQUEST, 1, 1, &[]);
    assert_eq!(refused(&other, Passed::None).0, errno::NOT_FOUND);
    let large = asked(Command::Check, &vec![0; message::MAX_MESSAGE]);
    assert_eq!(refused(&large, Passed::None).0, errno::TOO_LARGE);
}

#[test]
fn the_controller_knows_one_family() {
    let ask = |flags, attributes: &[u8]| entry::message(CONTROLLER, flags, 1, 3, attributes);
    let name = |name: &[u8]| attributes(|w| w.put(2, name).unwrap());
    let found = Ask::Family { all: false };
    for right in [&b"af_inet_cr\0"[..], b"af_inet_cr"] {
        assert_eq!(one(&ask(flags::REQUEST, &name(right)), Passed::None), found);
    }
    let number = attributes(|w| w.put(1, &FAMILY.to_ne_bytes()).unwrap());
    assert_eq!(one(&ask(flags::REQUEST, &number), Passed::None), found);
    let wrong = ask(flags::REQUEST, &name(b"nlctrl\0"));
    assert_eq!(refused(&wrong, Passed::None), (errno::NOT_FOUND, Some(20)));
    let all = ask(flags::REQUEST | flags::DUMP, &[]);
    assert_eq!(one(&all, Passed::None), Ask::Family { all: true });
    assert_eq!(
        refused(&ask(flags::REQUEST, &[]), Passed::None).0,
        errno::INVALID
    );
}

#[test]
fn a_restore_is_one_request() {
    let expected = Ask::Restore {
        lossy: false,
        alone: false,
        waiting: true,
    };
    assert_eq!(without_passed(&restore(1)), [expected]);
}

#[test]
fn what_is_left_of_a_refused_restore_is_passed_over() {
    let mut packets = restore(1);
    packets[0][16 + 4] = 3; // The length of the first attribute.
    packets.push(asked(Command::Check, &[]));
    let asks = without_passed(&packets);
    assert!(
        matches!(
            asks[0],
            Ask::Wrong {
                errno: errno::INVALID,
                offset: Some(20),
                last: false,
                ..
            }
        ),
        "{asks:?}"
    );
    assert_eq!(asks[1..], [Ask::Check]);
}

#[test]
fn a_restore_is_not_interrupted() {
    let mut packets = restore(1);
    packets.insert(1, asked(Command::Check, &[]));
    let asks = without_passed(&packets);
    assert!(
        matches!(
            asks[..],
            [Ask::Wrong {
                errno: errno::INVALID,
                last: true,
                ..
            }]
        ),
        "{asks:?}"
    );
}

#[test]
fn a_restore_has_a_bound() {
    let mut packets = restore(1);
    let piece = packets[1].clone();
    packets.pop();
    let pieces = MAX_RESTORE / piece.len() + 1;
    packets.extend(std::iter::repeat_n(piece, pieces));
    let asks = without_passed(&packets);
    assert!(
        matches!(
            asks[..],
            [Ask::Wrong {
                errno: errno::TOO_LARGE,
                last: false,
                ..
            }]
        ),
        "{asks:?}"
    );
}

#[test]
fn an_error_tells_what_the_request_was() {
    let request = message::Header {
        length: 20,
        kind: FAMILY,
        flags: flags::REQUEST,
        sequence: 9,
        port: 3,
    };
    let packet = request.error(2, "inode 1: no such\0 socket", Some(20));
    let Some(Answer::Error(fault)) = entry::answer(&packet) else {
        panic!("is no error");
    };
    assert_eq!((fault.errno, fault.offset), (2, Some(20)));
    assert_eq!(fault.text, "inode 1: no such socket");
    assert_eq!(entry::answer(&request.ack()), Some(Answer::Ack));
    assert_eq!(entry::answer(&request.done()), Some(Answer::Done));
}

/// How many cases each property draws: `SOCKCR_CASES` says more.
fn cases() -> u32 {
    let asked = std::env::var("SOCKCR_CASES").ok();
    asked.and_then(|asked| asked.parse().ok()).unwrap_or(5_000)
}

/// Packets that are nearly right: some bytes of some of them are others.
fn nearly_right() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let change = (any::<Index>(), any::<Index>(), any::<u8>());
    let base = any::<prop::sample::Index>();
    (base, vec(change, 1..4), any::<bool>()).prop_map(|(base, changes, cut)| {
        thread_local! {
            static RIGHT: Vec<Vec<Vec<u8>>> = vec![
                restore(1),
                vec![asked(Command::Dump, &attributes(|w| w.u32(number::INODE, 1).unwrap()))],
                vec![asked(Command::List, &attributes(|w| w.str(number::TARGET, "12").unwrap()))],
                vec![entry::message(CONTROLLER, 1, 1, 3, &attributes(|w| w.put(2, b"af_inet_cr\0").unwrap()))],
            ];
        }
        let mut packets = RIGHT.with(|right| right[base.index(right.len())].clone());
        for (packet, byte, value) in changes {
            let at = packet.index(packets.len());
            let packet = &mut packets[at];
            let byte = byte.index(packet.len());
            packet[byte] = value;
        }
        if cut && let Some(last) = packets.last_mut() {
            last.pop();
        }
        packets
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn noise_is_judged(noise in vec(any::<u8>(), 0..400)) {
        entry::packets(entry::cut(&noise));
        entry::answer(&noise);
    }

    #[test]
    fn nearly_right_packets_are_judged(packets in nearly_right()) {
        let asks = without_passed(&packets);
        prop_assert!(asks.len() <= packets.len());
        for packet in &packets {
            entry::answer(packet);
        }
    }
}
