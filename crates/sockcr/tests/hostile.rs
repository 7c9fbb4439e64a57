//! Images from strangers: whatever is wrong with one is said, and nothing panics.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

#[path = "support/entry.rs"]
mod entry;

use entry::{refused_or_identical, wrap, wrap_queue, wrap_queues};
use proptest::prelude::*;
use sockcr::kernel::{Corked, ErrorEntry};
use sockcr::state::filter::Filter;
use sockcr::state::flow_labels::FlowLabel;
use sockcr::state::membership::Membership;
use sockcr::state::receive_queue::Datagram;
use sockcr::{Checkpoint, ErrorKind, RestoreOptions, image, json, option};
use sockcr_image::attribute::{Attribute, Writer, attributes};
use sockcr_image::file::{self, Command, Message};
use sockcr_image::number;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

/// A checkpoint that uses every kind of attribute there is.
fn rich() -> Checkpoint {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let group = Ipv4Addr::new(239, 83, 67, 1);
    socket
        .join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)
        .unwrap();
    for (name, text) in [
        ("SO_RCVBUF", "40000"),
        ("IP_TTL", "7"),
        ("IP_OPTIONS", "01010101"),
        ("SO_RCVTIMEO", "1s"),
        ("IP_MULTICAST_IF", "127.0.0.1"),
        ("SO_LINGER", "3"),
        ("IP_UNICAST_IF", "lo"),
    ] {
        write(&socket, name, text);
    }
    let mut checkpoint = Checkpoint::dump(&socket).unwrap();
    checkpoint.edit("SO_BINDTODEVICE", "lo").unwrap();
    checkpoint.edit("SO_TXTIME", "CLOCK_MONOTONIC").unwrap();
    checkpoint.filter = Some(Filter::Classic(vec![[6, 0, 0, 0, 255, 255, 0, 0]]));
    checkpoint.memberships[0].include = true;
    checkpoint.memberships[0].sources = vec![[10, 0, 0, 1].into()];
    let note = sockcr::Note::new("receive queue", "2 datagrams");
    checkpoint.report.not_carried.push(note.clone());
    checkpoint.report.assumed.push(note);
    checkpoint
}

/// The same of IPv6, as far as it is another.
fn rich6() -> Checkpoint {
    let socket = UdpSocket::bind("[::1]:0").unwrap();
    socket.connect("[::1]:9").unwrap();
    let mut checkpoint = Checkpoint::dump(&socket).unwrap();
    for (name, text) in [
        ("IPV6_PKTINFO", "::1@lo"),
        (
            "IPV6_RTHDR",
            "0002020100000000fd000001000000000000000000000006",
        ),
        ("IPV6_MULTICAST_IF", "lo"),
        ("IPV6_ADDR_PREFERENCES", "IPV6_PREFER_SRC_TMP"),
    ] {
        checkpoint.edit(name, text).unwrap();
    }
    let group = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 9);
    let membership = |anycast: bool, group: Ipv6Addr, sources: Vec<IpAddr>| Membership {
        group: group.into(),
        anycast,
        interface: 1,
        address: Ipv4Addr::UNSPECIFIED,
        include: !sources.is_empty(),
        sources,
    };
    checkpoint.memberships = vec![
        membership(false, group, vec![Ipv6Addr::LOCALHOST.into()]),
        membership(true, Ipv6Addr::LOCALHOST, Vec::new()),
    ];
    checkpoint.flow_labels = vec![FlowLabel {
        label: 0x12345,
        to: Ipv6Addr::LOCALHOST,
        share: 1,
        linger: 6,
    }];
    let peer = SocketAddrV6::new(Ipv6Addr::LOCALHOST, 9, 0x12345, 0);
    checkpoint.endpoint.peer = Some(peer.into());
    checkpoint.endpoint.source = Some(Ipv6Addr::LOCALHOST.into());
    checkpoint
}

/// A device index of this process's own loopback needs no name of another place.
fn write(socket: &UdpSocket, name: &str, text: &str) {
    if name == "IP_UNICAST_IF" {
        let index = 1u32.to_be_bytes();
        sockcr_sys::sockopt::set(std::os::fd::AsFd::as_fd(socket), 0, 50, &index).unwrap();
    } else {
        option::write(socket, name, text).unwrap();
    }
}

/// The parts of the one message of a checkpoint: number, nested, payload.
fn parts(checkpoint: &Checkpoint) -> Vec<(u16, bool, Vec<u8>)> {
    let bytes = checkpoint.to_bytes().unwrap();
    let messages = file::decode(&bytes).unwrap();
    let part = |a: Attribute<'_>| (a.number, a.nested, a.payload.to_vec());
    attributes(messages[0].attributes)
        .map(|a| part(a.unwrap()))
        .collect()
}

/// An image of these parts, whole and with a right checksum.
fn assemble(parts: &[(u16, bool, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new();
    for (number, nested, payload) in parts {
        match nested {
            true => writer.put_nested(*number, payload).unwrap(),
            false => writer.put(*number, payload).unwrap(),
        }
    }
    wrap(writer.finish())
}

#[test]
fn the_rich_image_is_accepted() {
    let image = assemble(&parts(&rich()));
    assert!(!refused_or_identical(&image));
}

#[test]
fn an_attribute_cut_at_each_byte_is_refused_or_means_just_that() {
    let whole = parts(&rich());
    let mut refused = 0;
    for at in 0..whole.len() {
        for length in 0..whole[at].2.len() {
            let mut cut = whole.clone();
            cut[at].2.truncate(length);
            refused += usize::from(refused_or_identical(&assemble_lossy(&cut)));
        }
    }
    assert!(refused > 200, "only {refused} refused");
}

/// Nested payloads that are cut are no attributes: what the codec will not write is no image.
fn assemble_lossy(parts: &[(u16, bool, Vec<u8>)]) -> Vec<u8> {
    let mut raw = Vec::new();
    for (number, nested, payload) in parts {
        let flag = if *nested { 0x8000 } else { 0 };
        raw.extend((payload.len() as u16 + 4).to_ne_bytes());
        raw.extend((number | flag).to_ne_bytes());
        raw.extend(payload);
        raw.resize(raw.len().next_multiple_of(4), 0);
    }
    wrap(raw)
}

#[test]
fn an_attribute_grown_by_each_length_is_refused_or_means_just_that() {
    let whole = parts(&rich());
    for at in 0..whole.len() {
        for more in 1..9 {
            let mut grown = whole.clone();
            grown[at].2.extend(vec![0xa5; more]);
            refused_or_identical(&assemble_lossy(&grown));
        }
    }
}

#[test]
fn wrong_order_and_doubles_are_refused_by_name() {
    let whole = parts(&rich());
    for at in 1..whole.len() {
        // Notes may stand in any order among themselves.
        if whole[at - 1].0 == whole[at].0 {
            continue;
        }
        let mut swapped = whole.clone();
        swapped.swap(at - 1, at);
        let error = image::decode(&assemble(&swapped)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("out of order"), "{error}");
        let mut doubled = whole.clone();
        doubled.insert(at, whole[at].clone());
        let number = whole[at].0;
        if ![number::NOT_CARRIED, number::ASSUMED].contains(&number) {
            let error = image::decode(&assemble(&doubled)).unwrap_err().to_string();
            assert!(
                error.contains(&format!("attribute {number} is there twice")),
                "{error}"
            );
        }
    }
}

#[test]
fn a_missing_attribute_is_refused_or_means_that_it_is_not_known() {
    let whole = parts(&rich());
    for required in [
        number::SOCK_STATE,
        number::SOCK_TYPE,
        number::FAMILY,
        number::PROTOCOL,
    ] {
        let less: Vec<_> = whole.iter().filter(|p| p.0 != required).cloned().collect();
        let error = image::decode(&assemble(&less)).unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }
    for at in 0..whole.len() {
        let mut less = whole.clone();
        less.remove(at);
        refused_or_identical(&assemble(&less));
    }
}

#[test]
fn each_bit_of_each_attribute_may_be_turned() {
    turned_or_refused(&parts(&rich()));
    let whole = parts(&rich6());
    assert!(!refused_or_identical(&assemble(&whole)));
    turned_or_refused(&whole);
}

fn turned_or_refused(whole: &[(u16, bool, Vec<u8>)]) {
    for at in 0..whole.len() {
        for bit in 0..whole[at].2.len() * 8 {
            let mut turned = whole.to_vec();
            turned[at].2[bit / 8] ^= 1 << (bit % 8);
            refused_or_identical(&assemble_lossy(&turned));
        }
    }
}

#[test]
fn an_unknown_attribute_is_kept_and_refused_by_number_at_restore() {
    let mut checkpoint = rich();
    checkpoint.report.not_carried.clear();
    for edit in ["SO_BINDTODEVICE=", "SO_TXTIME=default"] {
        let (name, text) = edit.split_once('=').unwrap();
        checkpoint
            .edit(name, text)
            .unwrap_or_else(|e| panic!("{e}"));
    }
    let mut with_required = parts(&checkpoint);
    let place = with_required.iter().position(|p| p.0 >= 0x2000).unwrap();
    with_required.insert(place, (0x1fff, false, vec![1, 2, 3]));
    let image = assemble(&with_required);
    assert!(!refused_or_identical(&image), "unknown attributes are kept");
    let error = Checkpoint::from_bytes(&image)
        .unwrap()
        .restore(&RestoreOptions::default());
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("attribute 8191"), "{error}");

    let mut with_information = parts(&checkpoint);
    with_information.push((0x3ff0, true, Vec::new()));
    let image = assemble(&with_information);
    assert!(!refused_or_identical(&image));
    let checkpoint = Checkpoint::from_bytes(&image).unwrap();
    let restored = checkpoint.restore(&RestoreOptions::default());
    restored.expect("information is ignored by restore");
}

#[test]
fn nesting_without_end_is_refused() {
    let mut nested = Vec::new();
    for _ in 0..5000 {
        let mut writer = Writer::new();
        writer.put_nested(number::NOT_CARRIED, &nested).unwrap();
        nested = writer.finish();
    }
    let mut deep = parts(&rich());
    deep.retain(|p| p.0 != number::NOT_CARRIED);
    let place = deep.iter().position(|p| p.0 > number::NOT_CARRIED).unwrap();
    deep.insert(place, (number::NOT_CARRIED, true, nested));
    assert!(image::decode(&assemble_lossy(&deep)).is_err());
}

#[test]
fn a_damaged_or_foreign_file_has_one_clear_error() {
    let image = rich().to_bytes().unwrap();
    for (bytes, says) in [
        (Vec::new(), "empty"),
        (b"GIF89a, not ours at all".to_vec(), "not a sockcr image"),
        (image[..image.len() - 1].to_vec(), "truncated"),
    ] {
        let error = image::decode(&bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains(says), "{error}");
    }
    let mut flipped = image.clone();
    flipped[40] ^= 1;
    image::decode(&flipped).unwrap_err();
    let mut newer = image;
    newer[8] = 2;
    let error = image::decode(&newer).unwrap_err().to_string();
    assert!(error.contains("newer"), "{error}");
}

#[test]
fn json_that_is_wrong_says_where() {
    let good = json::to_json(&[rich()]).to_string();
    for (old, new, says) in [
        ("\"format\":1", "\"format\":2", "format 2"),
        ("\"SO_DEBUG\":0", "\"SO_DEBUG\":\"x\"", "SO_DEBUG"),
        ("\"SO_DEBUG\":0", "\"SO_NONSENSE\":0", "SO_NONSENSE"),
        ("\"IP_TOS\":0", "\"IP_TOS\":300", "IP_TOS"),
        ("\"IP_TOS\":0", "\"IP_TOS\":-1", "IP_TOS"),
        ("\"family\":\"inet\"", "\"family\":\"inet9\"", "inet9"),
        (
            "\"state\":\"unconnected\"",
            "\"state\":\"connected\"",
            "state",
        ),
        ("\"mode\":\"include\"", "\"mode\":\"maybe\"", "maybe"),
        ("\"owner\":\"nobody\"", "\"owner\":\"somebody\"", "somebody"),
        ("\"interface\":\"lo\"", "\"interface\":\"eth7\"", "eth7"),
    ] {
        assert!(good.contains(old), "{old} is not in {good}");
        let error = json::from_json(&good.replacen(old, new, 1)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains(says), "{error}");
    }
    for end in 0..good.len() {
        assert!(json::from_json(&good[..end]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_refused_or_means_just_that(
        noise in prop::collection::vec((0u16..0x300, any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12)
    ) {
        let mut parts = parts_minimal();
        parts.extend(noise.into_iter().filter(|p| p.0 > 0 && p.0 != 2 && p.0 != 3 && p.0 != 64 && p.0 != 65));
        parts.sort_by_key(|p| p.0);
        refused_or_identical(&assemble_lossy(&parts));
    }

    #[test]
    fn bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(image::decode(&bytes).is_err());
        let mut image = b"\x89SOCKCR\n\x01\0\x02\x01\0\0\0\0".to_vec();
        image.extend(bytes);
        prop_assert!(image::decode(&image).is_err());
    }
}

/// The four attributes without which there is no socket.
fn parts_minimal() -> Vec<(u16, bool, Vec<u8>)> {
    let word = |number: u16, value: u32| (number, false, value.to_ne_bytes().to_vec());
    vec![
        word(number::SOCK_STATE, 1),
        word(number::SOCK_TYPE, 2),
        word(number::FAMILY, 2),
        word(number::PROTOCOL, 17),
    ]
}

/// The JSON of docs/format.md is read, and written again with the options that it left out.
#[test]
fn the_json_of_the_document_is_ours() {
    let page = include_str!("../../../docs/format.md");
    let (_, rest) = page.split_once("```json\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let checkpoints = json::from_json(text).unwrap();
    let again = json::to_json(&checkpoints);
    let document: serde_json::Value = serde_json::from_str(text).unwrap();
    let (ours, theirs) = (&again["sockets"][0], &document["sockets"][0]);
    for (name, value) in theirs.as_object().unwrap() {
        match name.as_str() {
            "options" => {
                for (option, value) in value.as_object().unwrap() {
                    assert_eq!(&ours["options"][option], value, "{option}");
                }
            }
            name => assert_eq!(&ours[name], value, "{name}"),
        }
    }
    let known: Vec<&String> = ours.as_object().unwrap().keys().collect();
    let told: Vec<&String> = theirs.as_object().unwrap().keys().collect();
    assert_eq!(known, told);
}

/// The attributes of what waits: a datagram, a cork, an error; it came from one address to another.
fn queued(from: IpAddr, here: IpAddr) -> Vec<Vec<(u16, Vec<u8>)>> {
    let mut checkpoint = rich();
    let address = SocketAddr::new(from, 53);
    checkpoint.receive_queue.push(Datagram {
        source: address,
        destination: address,
        ttl: 57,
        tos: 4,
        flow_label: 0,
        interface: 1,
        local: here,
        received_at: -1,
        mark: 7,
        priority: 6,
        peeked: false,
        segment: 100,
        options: vec![1, 1, 1, 0],
        payload: b"hello".to_vec(),
    });
    checkpoint.cork = Some(Corked {
        flow_label: 0,
        dont_fragment: false,
        fragment_size: 1300,
        destination: address,
        source: here,
        tos: Some(8),
        ttl: Some(9),
        segment_size: 1000,
        device: 1,
        gateway: true,
        mark: 7,
        priority: 5,
        transmit_time: 1 << 40,
        stamped: false,
        ip_options: vec![1, 1, 1, 0],
        payload: b"held back".to_vec(),
    });
    checkpoint.errors.pending = libc::ECONNREFUSED;
    checkpoint.errors.queue.push(ErrorEntry {
        flow_label: 0,
        error: libc::EHOSTUNREACH,
        origin: if here.is_ipv6() { 3 } else { 2 },
        kind: 3,
        code: 1,
        info: 5,
        data: 6,
        statistics: false,
        offender: Some(SocketAddr::new(here, 0)),
        destination: Some(address),
        received_at: -2,
        ttl: 60,
        tos: 2,
        local: here,
        rest: [1, 2, 3, 4],
        interface: 1,
        payload: b"quoted".to_vec(),
    });
    let bytes = checkpoint.to_bytes().unwrap();
    assert!(!refused_or_identical(&bytes));
    let messages = file::decode(&bytes).unwrap();
    let part = |a: Attribute<'_>| (a.number, a.payload.to_vec());
    let queues = messages[1..].iter().map(|message| {
        attributes(message.attributes)
            .map(|a| part(a.unwrap()))
            .collect()
    });
    queues.collect()
}

fn queue_image(parts: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new();
    for (number, payload) in parts {
        writer.put(*number, payload).unwrap();
    }
    wrap_queue(writer.finish())
}

/// `left_out`: the numbers of which the message may be without; `most`: the longest payload.
fn whole_or_refused(whole: &[(u16, Vec<u8>)], left_out: &[u16], most: usize) {
    assert!(!refused_or_identical(&queue_image(whole)));
    let bytes = [number::DATAGRAM_OPTIONS, number::DATAGRAM_PAYLOAD];
    for at in 0..whole.len() {
        let number = whole[at].0;
        let mut missing = whole.to_vec();
        missing.remove(at);
        let refused = refused_or_identical(&queue_image(&missing));
        assert_eq!(refused, !left_out.contains(&number), "without {number}");
        let mut doubled = whole.to_vec();
        doubled.insert(at, whole[at].clone());
        assert!(refused_or_identical(&queue_image(&doubled)));
        for length in 0..whole[at].1.len() {
            let mut cut = whole.to_vec();
            cut[at].1.truncate(length);
            let refused = refused_or_identical(&queue_image(&cut));
            assert!(refused || bytes.contains(&number));
        }
    }
    queue_turned_or_refused(whole);
    for (number, most) in bytes.into_iter().zip([40, most]) {
        let mut long = whole.to_vec();
        let Some(at) = long.iter().position(|(have, _)| *have == number) else {
            continue;
        };
        long[at].1 = vec![1; most];
        assert!(!refused_or_identical(&queue_image(&long)));
        long[at].1.push(1);
        assert!(refused_or_identical(&queue_image(&long)));
    }
}

fn queue_turned_or_refused(whole: &[(u16, Vec<u8>)]) {
    for at in 0..whole.len() {
        for bit in 0..whole[at].1.len() * 8 {
            let mut turned = whole.to_vec();
            turned[at].1[bit / 8] ^= 1 << (bit % 8);
            refused_or_identical(&queue_image(&turned));
        }
    }
}

fn queued_by_ipv4() -> Vec<Vec<(u16, Vec<u8>)>> {
    let from = Ipv4Addr::new(203, 0, 113, 7);
    queued(from.into(), Ipv4Addr::LOCALHOST.into())
}

#[test]
fn what_waits_by_ipv6_is_turned_or_refused() {
    let from = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
    for one in queued(from.into(), Ipv6Addr::LOCALHOST.into()) {
        assert!(!refused_or_identical(&queue_image(&one)));
        queue_turned_or_refused(&one);
    }
}

#[test]
fn what_waits_is_whole_or_refused() {
    let [datagram, cork, error] = queued_by_ipv4().try_into().unwrap();
    let (ttl, tos) = (number::DATAGRAM_TTL, number::DATAGRAM_TOS);
    let priority = number::DATAGRAM_PRIORITY;
    whole_or_refused(&datagram, &[priority], 65_507);
    let size = number::CORK_FRAGMENT_SIZE;
    whole_or_refused(&cork, &[ttl, tos, priority, size], 65_507);
    whole_or_refused(&error, &[], 65_535 - 56);
    let mut peeked = datagram.clone();
    peeked.push((number::DATAGRAM_PEEKED, Vec::new()));
    assert!(refused_or_identical(&queue_image(&peeked)), "it has data");
    for end in [&b""[..], b"!"] {
        let mut torn = datagram.clone();
        torn.push((number::DATAGRAM_PAYLOAD_END, end.to_vec()));
        assert!(refused_or_identical(&queue_image(&torn)), "has room");
    }
    let alone = Message {
        command: Command::Queue,
        socket: 1,
        attributes: Vec::new(),
    };
    assert!(file::encode(&[alone]).is_err(), "a queue without a socket");
}

/// Within a socket: datagrams, the cork, errors.
#[test]
fn what_waits_stands_in_order() {
    let kinds = queued_by_ipv4();
    let image = |order: &[usize]| {
        let queue = order.iter().map(|kind| {
            let mut writer = Writer::new();
            for (number, payload) in &kinds[*kind] {
                writer.put(*number, payload).unwrap();
            }
            writer.finish()
        });
        wrap_queues(queue.collect())
    };
    for order in [&[0, 0, 1, 2, 2][..], &[1], &[2], &[0, 2], &[1, 2], &[]] {
        assert!(!refused_or_identical(&image(order)), "{order:?}");
    }
    for order in [&[1, 1][..], &[1, 0], &[2, 0], &[2, 1], &[0, 2, 0]] {
        assert!(refused_or_identical(&image(order)), "{order:?}");
    }
}

/// Images written before stay readable, and say the same.
#[test]
fn images_from_before_are_read() {
    let images = [
        (
            &include_bytes!("fixtures/format-1.image")[..],
            include_str!("fixtures/format-1.json"),
        ),
        (
            &include_bytes!("fixtures/format-1-waiting.image")[..],
            include_str!("fixtures/format-1-waiting.json"),
        ),
    ];
    for (image, text) in images {
        let checkpoints = image::decode(image).unwrap();
        let document: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(json::to_json(&checkpoints), document);
        assert_eq!(image::encode(&checkpoints).unwrap(), image);
        let by_json = json::from_json(text).unwrap();
        assert_eq!(image::encode(&by_json).unwrap(), image);
    }
}
