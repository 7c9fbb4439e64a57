//! Images to test with: one that is right, and parts to put a wrong one together.

use crate::entry;
use sockcr_image::attribute::Writer;
use sockcr_image::file::{self, Command, Message};
use sockcr_image::{Error, number};

/// A message whose every field can be wrong.
#[derive(Clone)]
pub struct Raw {
    /// nlmsghdr.nlmsg_len; the right one when `None`.
    pub length: Option<u32>,
    pub kind: u16,
    pub flags: u16,
    pub socket: u32,
    pub port: u32,
    pub command: u8,
    pub version: u8,
    pub reserved: u16,
    pub attributes: Vec<u8>,
}

impl Raw {
    /// A message that is right.
    pub fn new(command: Command, socket: u32) -> Raw {
        Raw {
            length: None,
            kind: 32,
            flags: 2,
            socket,
            port: 0,
            command: command as u8,
            version: 1,
            reserved: 0,
            attributes: flags(&[number::SOCKOPT_BROADCAST]),
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let length = self.length.unwrap_or(20 + self.attributes.len() as u32);
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(self.flags.to_ne_bytes());
        bytes.extend(self.socket.to_ne_bytes());
        bytes.extend(self.port.to_ne_bytes());
        bytes.extend([self.command, self.version]);
        bytes.extend(self.reserved.to_ne_bytes());
        bytes.extend(&self.attributes);
        bytes
    }
}

/// Header and messages, without an end.
pub fn open(messages: &[Raw]) -> Vec<u8> {
    let mut image = file::encode(&[]).unwrap()[..16].to_vec();
    image.extend(messages.iter().flat_map(Raw::bytes));
    image
}

/// Messages in an image whose counts and checksum are right.
pub fn sealed(messages: &[Raw]) -> Vec<u8> {
    let sockets = messages
        .iter()
        .filter(|message| message.command != 3)
        .count();
    closed(messages, sockets as u32, messages.len() as u32)
}

/// Messages in an image with these counts, and a checksum that is right.
pub fn closed(messages: &[Raw], sockets: u32, count: u32) -> Vec<u8> {
    let mut image = open(messages);
    entry::end(&mut image, sockets, count);
    image
}

/// Attributes without payload.
pub fn flags(numbers: &[u16]) -> Vec<u8> {
    let mut writer = Writer::new();
    for number in numbers {
        writer.flag(*number).unwrap();
    }
    writer.finish()
}

/// Two sockets, one with two datagrams in its queue, and attributes of every shape.
pub fn sample() -> Vec<Message> {
    let message = |command, socket, attributes: Result<Vec<u8>, Error>| Message {
        command,
        socket,
        attributes: attributes.unwrap(),
    };
    vec![
        message(Command::Dump, 1, every_shape()),
        message(Command::Queue, 1, datagram(b"first")),
        message(Command::Queue, 1, datagram(b"")),
        message(Command::Dump, 2, Ok(flags(&[number::SOCKOPT_REUSEADDR]))),
    ]
}

fn datagram(payload: &[u8]) -> Result<Vec<u8>, Error> {
    let mut writer = Writer::new();
    writer.put(0x1000, payload)?;
    Ok(writer.finish())
}

fn every_shape() -> Result<Vec<u8>, Error> {
    let mut writer = Writer::new();
    writer.u32(number::SOCK_TYPE, 2)?;
    writer.flag(number::SOCKOPT_BROADCAST)?;
    writer.u8(number::IPOPT_TTL, 64)?;
    writer.nested(number::IPOPT_MEMBERSHIP, |groups| {
        groups.put(number::IPOPT_MREQ, &[239, 1, 1, 1, 10, 1, 0, 1, 2, 0, 0, 0])?;
        groups.put(number::MEMBERSHIP_FILTER, &[1, 0, 0, 0, 10, 1, 0, 9])
    })?;
    writer.put(
        number::UDP_BIND,
        &[2, 0, 0x13, 0x88, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
    )?;
    writer.nested(number::INTERFACES, |interfaces| {
        interfaces.put(number::INTERFACE, b"\x02\0\0\0eth0")?;
        interfaces.put(number::INTERFACE, b"\x07\0\0\0")
    })?;
    writer.nested(number::NOT_CARRIED, |note| {
        note.str(number::WHAT, "error queue")?;
        note.str(number::REASON, "reading it would empty it")
    })?;
    writer.i32(number::option(number::Level::Socket, 47), -1)?;
    writer.u64(number::INFORMATIONAL + 77, 1 << 40)?;
    Ok(writer.finish())
}
