//! Our bytes, read by netlink libraries that know nothing of us.

use crate::build;
use neli::FromBytes;
use neli::genl::Genlmsghdr;
use neli::nl::Nlmsghdr;
use netlink_packet_core::{NetlinkBuffer, NlaBuffer, NlasIterator};
use sockcr_image::attribute::attributes;
use sockcr_image::file::{self, Command, Message};
use sockcr_image::number;
use std::io::Cursor;

type Read = Vec<(u16, Vec<u8>)>;

fn ours(bytes: &[u8]) -> Read {
    let read = attributes(bytes).map(Result::unwrap);
    read.map(|attribute| (attribute.number, attribute.payload.to_vec()))
        .collect()
}

/// Attributes as netlink-packet-core sees them.
fn theirs(bytes: &[u8]) -> Read {
    let read = NlasIterator::new(bytes).map(Result::unwrap);
    read.map(|nla| (nla.kind(), nla.value().to_vec())).collect()
}

fn nested_in(message: &Message) -> Vec<(u16, &[u8])> {
    let read = attributes(&message.attributes).map(Result::unwrap);
    read.filter(|attribute| attribute.nested)
        .map(|a| (a.number, a.payload))
        .collect()
}

#[test]
fn netlink_packet_core_walks_an_image() {
    let messages = build::sample();
    let image = file::encode(&messages).unwrap();
    let mut rest = &image[16..];
    for (place, message) in messages.iter().enumerate() {
        let read = NetlinkBuffer::new_checked(rest).unwrap();
        assert_eq!(read.message_type(), 32);
        assert_eq!(read.flags(), netlink_packet_core::NLM_F_MULTIPART);
        assert_eq!(read.sequence_number(), message.socket);
        assert_eq!(read.port_number(), 0);
        let (genlmsghdr, attributes) = read.payload().split_at(4);
        assert_eq!(
            genlmsghdr,
            [message.command as u8, 1, 0, 0],
            "message {place}"
        );
        assert_eq!(theirs(attributes), ours(&message.attributes));
        rest = &rest[read.length() as usize..];
    }
    let done = NetlinkBuffer::new_checked(rest).unwrap();
    assert_eq!(done.message_type(), netlink_packet_core::NLMSG_DONE);
    assert_eq!(done.flags(), netlink_packet_core::NLM_F_MULTIPART);
    assert_eq!(done.payload()[..4], 2u32.to_ne_bytes());
    assert_eq!(done.payload()[4..8], 4u32.to_ne_bytes());
    assert_eq!(done.length() as usize, rest.len());
}

#[test]
fn netlink_packet_core_opens_nested_attributes() {
    let message = &build::sample()[0];
    let nested: Vec<NlaBuffer<&[u8]>> = NlasIterator::new(&message.attributes[..])
        .map(Result::unwrap)
        .filter(NlaBuffer::nested_flag)
        .collect();
    let expected = nested_in(message);
    assert_eq!(nested.len(), 3);
    assert_eq!(expected.len(), 3);
    for (nla, (number, payload)) in nested.iter().zip(expected) {
        assert_eq!((nla.kind(), nla.value()), (number, payload));
        assert_eq!(theirs(nla.value()), ours(payload));
        assert_eq!(theirs(nla.value()).len(), 2);
        assert!(!nla.network_byte_order_flag());
    }
    let groups = theirs(nested[0].value());
    assert_eq!(groups[0].0, number::IPOPT_MREQ);
    assert_eq!(groups[0].1, [239, 1, 1, 1, 10, 1, 0, 1, 2, 0, 0, 0]);
    assert_eq!(
        groups[1],
        (number::MEMBERSHIP_FILTER, vec![1, 0, 0, 0, 10, 1, 0, 9])
    );
}

#[test]
fn neli_walks_an_image() {
    let messages = build::sample();
    let image = file::encode(&messages).unwrap();
    let mut rest = Cursor::new(&image[16..]);
    for message in &messages {
        let read = Nlmsghdr::<u16, Genlmsghdr<u8, u16>>::from_bytes(&mut rest).unwrap();
        assert_eq!(
            (*read.nl_type(), *read.nl_seq(), *read.nl_pid()),
            (32, message.socket, 0)
        );
        let body = read.get_payload().unwrap();
        assert_eq!((*body.cmd(), *body.version()), (message.command as u8, 1));
        let attributes: Read = body
            .attrs()
            .iter()
            .map(|a| (*a.nla_type().nla_type(), a.nla_payload().as_ref().to_vec()))
            .collect();
        assert_eq!(attributes, ours(&message.attributes));
        let nested = body.attrs().iter().filter(|a| *a.nla_type().nla_nested());
        assert_eq!(nested.count(), nested_in(message).len());
    }
    assert_eq!(rest.position() as usize, image.len() - 16 - 28);
}

#[test]
fn neli_opens_nested_attributes() {
    let image = file::encode(&build::sample()).unwrap();
    let mut rest = Cursor::new(&image[16..]);
    let read = Nlmsghdr::<u16, Genlmsghdr<u8, u16>>::from_bytes(&mut rest).unwrap();
    let handle = read.get_payload().unwrap().attrs().get_attr_handle();
    let note = handle
        .get_nested_attributes::<u16>(number::NOT_CARRIED)
        .unwrap();
    let text = |number| {
        note.get_attribute(number)
            .unwrap()
            .nla_payload()
            .as_ref()
            .to_vec()
    };
    assert_eq!(text(number::WHAT), b"error queue");
    assert_eq!(text(number::REASON), b"reading it would empty it");
    assert_eq!(
        handle
            .get_attr_payload_as::<u32>(number::SOCK_TYPE)
            .unwrap(),
        2
    );
    assert_eq!(
        handle.get_attr_payload_as::<u8>(number::IPOPT_TTL).unwrap(),
        64
    );
}

#[test]
fn every_attribute_of_every_length_is_read_alike() {
    for length in (0..70).chain([255, 256, 4095, 65530, 65531]) {
        let mut writer = sockcr_image::attribute::Writer::new();
        let payload: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
        writer.put(number::FILTER, &payload).unwrap();
        writer.put_nested(number::INTERFACES, &payload).unwrap();
        let attributes = writer.finish();
        let expected = vec![(70, payload.clone()), (66, payload)];
        assert_eq!(theirs(&attributes), expected);
        let message = Message {
            command: Command::Dump,
            socket: 1,
            attributes,
        };
        let image = file::encode(&[message]).unwrap();
        let mut rest = Cursor::new(&image[16..]);
        let read = Nlmsghdr::<u16, Genlmsghdr<u8, u16>>::from_bytes(&mut rest).unwrap();
        let attributes = read.get_payload().unwrap().attrs().iter();
        let read: Read = attributes
            .map(|a| (*a.nla_type().nla_type(), a.nla_payload().as_ref().to_vec()))
            .collect();
        assert_eq!(read, expected);
    }
}
