//! `docs/format.md` says what the program does.

use sockcr_image::attribute::{Attribute, Writer};
use sockcr_image::file::{self, Command, MAX_IMAGE, Message};
use sockcr_image::number::{self, INFORMATIONAL, Level, OPTIONS};
use std::fmt::Write;

const DOCUMENT: &str = include_str!("../../../../docs/format.md");

/// The socket of the worked example: UDP, bound to 127.0.0.1:5000, SO_BROADCAST, TTL 32, mark 7.
fn example() -> Vec<u8> {
    let mut writer = Writer::new();
    let write = |writer: &mut Writer| {
        writer.u32(number::SOCK_STATE, 1)?;
        writer.u32(number::SOCK_TYPE, 2)?;
        writer.flag(number::SOCKOPT_BROADCAST)?;
        writer.u8(number::IPOPT_TTL, 32)?;
        writer.put(
            number::UDP_BIND,
            &[2, 0, 0x13, 0x88, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        )?;
        writer.flag(number::UDP_BIND_PORT_ULOCK)?;
        writer.u32(number::FAMILY, 2)?;
        writer.u32(number::PROTOCOL, 17)?;
        writer.nested(number::NOT_CARRIED, |note| {
            note.str(number::WHAT, "error queue")?;
            note.str(number::REASON, "reading it would empty it")
        })?;
        writer.u32(number::option(Level::Socket, 36), 7)
    };
    write(&mut writer).unwrap();
    let attributes = writer.finish();
    file::encode(&[Message {
        command: Command::Dump,
        socket: 1,
        attributes,
    }])
    .unwrap()
}

/// The image as it stands in the document: offset, bytes, and what they are.
fn hexdump(image: &[u8]) -> String {
    let mut dump = String::new();
    let mut line = |range: std::ops::Range<usize>, what: &str| {
        let mut what = what;
        for (place, bytes) in (range.start..).step_by(8).zip(image[range].chunks(8)) {
            let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(dump, "{place:04x}  {:<23}  {what}", hex.join(" ")).unwrap();
            what = "";
        }
    };
    line(0..8, "magic");
    line(8..16, "version 1, byte-order mark, zero");
    for message in file::decode(image).unwrap() {
        let start = message.offset;
        line(
            start - 20..start - 4,
            "nlmsghdr: length, type 32, MULTI; socket 1, port 0",
        );
        line(start - 4..start, "genlmsghdr: DUMP, version 1");
        for attribute in message.attributes().map(Result::unwrap) {
            attribute_lines(&attribute, "", &mut line);
        }
    }
    let end = image.len() - 28;
    line(end..end + 16, "nlmsghdr: length 28, DONE, MULTI");
    line(end + 16..end + 24, "1 socket, 1 message");
    line(end + 24..end + 28, "CRC-32C");
    let lines = dump
        .lines()
        .map(|line| format!("    {}\n", line.trim_end()));
    lines.collect()
}

fn attribute_lines(
    attribute: &Attribute<'_>,
    indent: &str,
    line: &mut impl FnMut(std::ops::Range<usize>, &str),
) {
    let number = attribute.number;
    let option = || {
        format!(
            "{number:#x} SOL_SOCKET option {}",
            number - Level::Socket.base()
        )
    };
    let name = number::name(number).map(|name| format!("{number} {name}"));
    let name = name.unwrap_or_else(option);
    let start = attribute.offset;
    let end = start + 4 + attribute.payload.len().next_multiple_of(4);
    if !attribute.nested {
        return line(start..end, &format!("{indent}{name}"));
    }
    line(start..start + 4, &format!("{indent}{name}, nested:"));
    for inner in attribute.nested().map(Result::unwrap) {
        attribute_lines(&inner, &format!("{indent}  "), line);
    }
}

/// The indented lines under a heading.
fn block<'a>(document: &'a str, heading: &str) -> Vec<&'a str> {
    let lines = document.lines().skip_while(|line| *line != heading);
    let from = lines.skip_while(|line| !line.starts_with("    "));
    from.take_while(|line| line.starts_with("    ")).collect()
}

#[test]
#[cfg(target_endian = "little")]
fn the_worked_example_is_ours() {
    let image = example();
    let expected = hexdump(&image);
    let told = block(DOCUMENT, "## An example");
    assert_eq!(
        told,
        expected.lines().collect::<Vec<_>>(),
        "it should be:\n{expected}"
    );
    let hex = told.iter().map(|line| &line[10..33.min(line.len())]);
    let bytes: Vec<u8> = hex
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    assert_eq!(bytes, image);
}

#[test]
#[cfg(target_endian = "little")]
fn the_fuzzer_starts_from_the_example() {
    let image = example();
    let messages = &image[16..image.len() - 28];
    assert_eq!(
        &include_bytes!("../../../../fuzz/seeds/image/example")[..],
        image
    );
    assert_eq!(
        &include_bytes!("../../../../fuzz/seeds/image/messages")[..],
        messages
    );
    assert_eq!(
        &include_bytes!("../../../../fuzz/seeds/attributes/example")[..],
        &messages[20..]
    );
}

#[test]
fn every_attribute_is_told_with_its_number() {
    let mut told: Vec<_> = DOCUMENT.lines().filter_map(attribute_row).collect();
    told.sort_by_key(|(_, number)| *number);
    assert_eq!(told, number::ALL);
}

/// `| 64 | FAMILY | u32 | ...`
fn attribute_row(line: &'static str) -> Option<(&'static str, u16)> {
    let mut cells = line.split('|').map(str::trim).skip(1);
    let number = cells.next()?.parse().ok()?;
    let name = cells.next()?;
    let is_name = name.contains(char::is_uppercase) && !name.contains(char::is_lowercase);
    is_name.then_some((name, number))
}

#[test]
fn every_level_is_told_with_its_first_attribute() {
    let levels = ["SOL_SOCKET", "IPPROTO_IP", "SOL_UDP", "IPPROTO_IPV6"];
    let levels = levels
        .into_iter()
        .chain(["IPPROTO_TCP", "SOL_RAW", "IPPROTO_ICMP"]);
    for (level, name) in Level::ALL.into_iter().zip(levels) {
        let row = format!("| {:#x} + n | {name} |", level.base());
        assert!(DOCUMENT.contains(&row), "the document lacks {row}");
    }
}

#[test]
fn the_constants_are_told() {
    let facts = [
        format!(
            "`{}`",
            file::MAGIC.map(|byte| format!("{byte:02x}")).join(" ")
        ),
        format!("{} bytes", MAX_IMAGE),
        format!("format version, {}", file::VERSION),
        format!("`nlmsg_type` | {}", file::MESSAGE_TYPE),
        format!("{INFORMATIONAL:#x}"),
        format!("n is below {OPTIONS}"),
        format!("{} bytes of payload", sockcr_image::attribute::MAX_PAYLOAD),
    ];
    for fact in facts {
        assert!(DOCUMENT.contains(&fact), "the document lacks {fact:?}");
    }
}
