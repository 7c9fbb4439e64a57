//! Attributes that are damaged: an error that says where, and no more.

use crate::{build, entry};
use sockcr_image::attribute::{Attribute, Writer, attributes};
use sockcr_image::{AttributeFault, Error};

fn raw(length: u16, number: u16, payload: &[u8]) -> Vec<u8> {
    [&length.to_ne_bytes()[..], &number.to_ne_bytes(), payload].concat()
}

/// The error that ends the attributes; there is nothing after it.
fn refusal(bytes: &[u8]) -> Error {
    let mut list = attributes(bytes);
    let error = list.by_ref().find_map(Result::err).expect("no error");
    assert_eq!(list.next(), None, "something follows {error}");
    assert_eq!(entry::attribute_list(bytes), Err(error.clone()));
    error
}

fn fault(number: u16, offset: usize, fault: AttributeFault) -> Error {
    Error::Attribute {
        number,
        offset,
        fault,
    }
}

#[test]
fn attributes_cut_anywhere_are_refused() {
    for message in build::sample() {
        let whole = message.attributes;
        let starts: Vec<usize> = attributes(&whole).map(|a| a.unwrap().offset).collect();
        let mut refused = 0;
        for length in 0..whole.len() {
            let bytes = &whole[..length];
            if starts.contains(&length) {
                assert!(entry::attribute_list(bytes).is_ok());
                continue;
            }
            let start = *starts.iter().rev().find(|start| **start < length).unwrap();
            match refusal(bytes) {
                Error::AttributeHeader { offset, left } => {
                    assert_eq!((offset, left), (start, length - start));
                    assert!(left < 4);
                }
                Error::Attribute {
                    offset,
                    fault: AttributeFault::Truncated { missing },
                    ..
                } => {
                    assert_eq!(offset, start);
                    let end = starts.iter().find(|start| **start > length);
                    assert_eq!(missing, end.unwrap_or(&whole.len()) - length);
                }
                other => panic!("{length}: {other}"),
            }
            refused += 1;
        }
        assert_eq!(refused, whole.len() - starts.len());
    }
}

#[test]
fn a_length_shorter_than_the_header_is_refused() {
    for length in 0..4 {
        let error = refusal(&raw(length, 29, &[0; 4]));
        assert_eq!(error, fault(29, 0, AttributeFault::Length { length }));
    }
    let text = "attribute 29 at byte 0 says it is 1 byte long, less than its own header";
    assert_eq!(refusal(&raw(1, 29, &[0; 4])).to_string(), text);
}

#[test]
fn a_length_beyond_the_end_is_refused() {
    for (length, missing) in [(9, 4), (12, 4), (13, 8), (u16::MAX, 65528)] {
        let error = refusal(&raw(length, 41, &[1; 4]));
        assert_eq!(error, fault(41, 0, AttributeFault::Truncated { missing }));
    }
    let error = refusal(&raw(5, 41, &[1, 0, 0]));
    assert_eq!(error.to_string(), "attribute 41 at byte 0 lacks 1 byte");
}

#[test]
fn padding_that_is_not_zero_is_refused() {
    for place in 1..4 {
        let mut payload = [0; 4];
        payload[place] = 1;
        let error = refusal(&raw(5, 30, &payload));
        assert_eq!(error, fault(30, 0, AttributeFault::Padding));
    }
    assert_eq!(entry::attribute_list(&raw(5, 30, &[9, 0, 0, 0])), Ok(1));
}

#[test]
fn network_byte_order_is_refused() {
    for flags in [0x4000, 0xc000] {
        let error = refusal(&raw(8, 13 | flags, &[0; 4]));
        assert_eq!(error, fault(13, 0, AttributeFault::NetworkByteOrder));
    }
}

#[test]
fn number_0_is_refused() {
    for number in [0, 0x8000] {
        assert_eq!(
            refusal(&raw(4, number, &[])),
            fault(0, 0, AttributeFault::Number)
        );
    }
}

#[test]
fn what_is_left_over_is_refused() {
    for left in 1..4 {
        let mut bytes = build::flags(&[6, 7]);
        bytes.extend(vec![0; left]);
        assert_eq!(refusal(&bytes), Error::AttributeHeader { offset: 8, left });
    }
    let error = refusal(&[build::flags(&[6]), vec![0]].concat());
    assert_eq!(
        error.to_string(),
        "1 byte at byte 4: too few for an attribute"
    );
    // Four zeros are no end of a list: they claim to be an attribute of length 0.
    let error = refusal(&[build::flags(&[6]), vec![0; 4]].concat());
    assert_eq!(error, fault(0, 4, AttributeFault::Length { length: 0 }));
}

#[test]
fn what_stands_before_damage_is_told() {
    let bytes = [build::flags(&[6]), raw(3, 7, &[]), build::flags(&[8])].concat();
    let read: Vec<_> = attributes(&bytes).collect();
    assert_eq!(read.len(), 2);
    assert!(matches!(read[0], Ok(Attribute { number: 6, .. })));
    assert_eq!(
        read[1],
        Err(fault(7, 4, AttributeFault::Length { length: 3 }))
    );
}

#[test]
fn repeated_and_unknown_numbers_are_told_as_they_are() {
    let numbers = [6, 6, 63, 0x1fff, 0x3fff, 2, 6];
    let bytes = build::flags(&numbers);
    let read: Vec<u16> = attributes(&bytes).map(|a| a.unwrap().number).collect();
    assert_eq!(read, numbers);
}

#[test]
fn damage_inside_is_found_where_it_is() {
    let mut writer = Writer::new();
    writer.flag(6).unwrap();
    writer.put_nested(66, &raw(9, 67, &[0; 4])).unwrap();
    let bytes = writer.finish();
    let outer = attributes(&bytes).nth(1).unwrap().unwrap();
    let error = outer.nested().next().unwrap().unwrap_err();
    assert_eq!(
        error,
        fault(67, 8, AttributeFault::Truncated { missing: 4 })
    );
    let inner = [raw(12, 67, &[0; 8]), raw(8, 75, b"a\0b\0")].concat();
    let outer = raw(4 + inner.len() as u16, 74 | 0x8000, &inner);
    let outer = attributes(&outer).next().unwrap().unwrap();
    let error = outer
        .nested()
        .nth(1)
        .unwrap()
        .unwrap()
        .as_str()
        .unwrap_err();
    assert_eq!(error, fault(75, 16, AttributeFault::Text));
}

#[test]
fn thousands_of_levels_are_opened_one_by_one() {
    let mut bytes = Vec::new();
    let deepest = usize::from(u16::MAX) / 4;
    for left in (1..=deepest).rev() {
        let length = u16::try_from(4 * (deepest - left + 1)).unwrap();
        bytes.splice(..0, raw(length, 66 | 0x8000, &[]));
    }
    assert_eq!(entry::attribute_list(&bytes), Ok(1));
    let (mut level, mut depth) = (attributes(&bytes), 0);
    while let Some(attribute) = level.next() {
        level = attribute.unwrap().nested();
        depth += 1;
    }
    assert_eq!(depth, 16383);
    let one_more = Writer::new().put_nested(66, &bytes).unwrap_err();
    assert_eq!(
        one_more,
        Error::PayloadTooLong {
            number: 66,
            length: 65532,
            limit: 65531
        }
    );
}
