//! The image: a header, a message for each socket and each thing in its queues, and an end.
//!
//! | part | bytes | content |
//! |---|---|---|
//! | header | 16 | [`MAGIC`], u16 [`VERSION`], u16 0x0102, u32 0 |
//! | messages | 20 and more | nlmsghdr, genlmsghdr, attributes |
//! | end | 28 | nlmsghdr of type NLMSG_DONE, u32 sockets, u32 messages, u32 CRC-32C |
//!
//! Integers are in the order of the machine that wrote them; the 0x0102 tells which that was.
//! The CRC-32C is of every byte before the end.
//!
//! [`decode`] verifies the whole before it returns any of it, and the verdict on one image is
//! always the same: `encode` of what `decode` returns is the image again, byte for byte.

use crate::attribute::Attributes;
use crate::error::{EndFault, Error, HeaderFault, MessageFault};

/// The first bytes of every image.
pub const MAGIC: [u8; 8] = *b"\x89SOCKCR\n";

/// The version of the format that is written, and the newest that is read.
pub const VERSION: u16 = 1;

/// No image is larger, in bytes (1 GiB).
pub const MAX_IMAGE: usize = 1 << 30;

/// The netlink type of a message: the place of a generic netlink family's id.
pub const MESSAGE_TYPE: u16 = 32;

/// The size of the header in bytes: the first netlink message starts here.
pub const HEADER: usize = 16;

const BYTE_ORDER: u16 = 0x0102;
const NLMSGHDR: usize = 16;
const GENLMSGHDR: usize = 4;
const MESSAGE: usize = NLMSGHDR + GENLMSGHDR;
const END: usize = NLMSGHDR + 12;
const NLMSG_DONE: u16 = 3;
const NLM_F_MULTI: u16 = 2;
const GENL_VERSION: u8 = 1;

/// What a message is (genlmsghdr.cmd).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Command {
    /// A socket as it was found.
    Dump = 1,
    /// A socket as it should be made.
    Restore = 2,
    /// One datagram, or one piece of a stream, in a queue of the socket before it.
    Queue = 3,
}

impl Command {
    fn from_number(number: u8) -> Option<Command> {
        let all = [Command::Dump, Command::Restore, Command::Queue];
        all.into_iter().find(|command| *command as u8 == number)
    }
}

/// A message to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub command: Command,
    /// The socket it is about: its place in the image, counted from 1.
    pub socket: u32,
    /// Its attributes, from [`Writer::finish`](crate::attribute::Writer::finish).
    pub attributes: Vec<u8>,
}

/// A message in an image that was verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageRef<'a> {
    /// What it is.
    pub command: Command,
    /// The socket it is about: its place in the image, counted from 1.
    pub socket: u32,
    /// Its attributes. Each is whole; what is inside of them was not looked at.
    pub attributes: &'a [u8],
    /// Where in the image the attributes start, in bytes.
    pub offset: usize,
}

impl<'a> MessageRef<'a> {
    /// Its attributes, with the offsets they have in the image.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes::at(self.attributes, self.offset)
    }

    /// The message on its own.
    pub fn to_message(&self) -> Message {
        Message {
            command: self.command,
            socket: self.socket,
            attributes: self.attributes.to_vec(),
        }
    }
}

/// Whether the bytes start as an image does; whether they are one, [`decode`] tells.
pub fn looks_like_image(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Writes an image.
///
/// Refuses what [`decode`] would refuse: sockets that are not 1, 2, 3... in order, a
/// [`Command::Queue`] that is not behind its own socket, attributes that are not whole, and
/// more than [`MAX_IMAGE`] bytes.
pub fn encode(messages: &[Message]) -> Result<Vec<u8>, Error> {
    let sizes = messages
        .iter()
        .map(|message| MESSAGE.saturating_add(message.attributes.len()));
    let size = sizes.fold(HEADER + END, usize::saturating_add);
    check_size(size)?;
    let mut image = Vec::with_capacity(size);
    put_header(&mut image);
    let mut order = Order::default();
    for message in messages {
        order.accept(message.command, message.socket, image.len())?;
        Attributes::at(&message.attributes, image.len() + MESSAGE).verify()?;
        put_message(&mut image, message);
    }
    put_end(&mut image, &order);
    Ok(image)
}

fn check_size(size: usize) -> Result<(), Error> {
    let limit = MAX_IMAGE;
    match size > limit {
        true => Err(Error::TooLarge { size, limit }),
        false => Ok(()),
    }
}

fn put_header(image: &mut Vec<u8>) {
    image.extend(MAGIC);
    image.extend(VERSION.to_ne_bytes());
    image.extend(BYTE_ORDER.to_ne_bytes());
    image.extend(0u32.to_ne_bytes());
}

fn put_message(image: &mut Vec<u8>, message: &Message) {
    let length = MESSAGE + message.attributes.len();
    put_nlmsghdr(image, length, MESSAGE_TYPE, message.socket);
    image.extend([message.command as u8, GENL_VERSION, 0, 0]);
    image.extend(&message.attributes);
}

fn put_end(image: &mut Vec<u8>, order: &Order) {
    let checksum = crc32c::crc32c(image);
    put_nlmsghdr(image, END, NLMSG_DONE, 0);
    for word in [order.sockets, order.messages, checksum] {
        image.extend(word.to_ne_bytes());
    }
}

fn put_nlmsghdr(image: &mut Vec<u8>, length: usize, kind: u16, sequence: u32) {
    // MAX_IMAGE was checked: no length is cut off here.
    image.extend((length as u32).to_ne_bytes());
    image.extend(kind.to_ne_bytes());
    image.extend(NLM_F_MULTI.to_ne_bytes());
    image.extend(sequence.to_ne_bytes());
    image.extend(0u32.to_ne_bytes());
}

/// Reads an image, after it has verified all of it.
///
/// The size, the header, the lengths of all messages, the end and the checksum come first, so
/// that damage is called damage; then each message, its place, and its attributes.
pub fn decode(image: &[u8]) -> Result<Vec<MessageRef<'_>>, Error> {
    check_size(image.len())?;
    check_header(image)?;
    let end = End::find(image)?;
    let mut messages = Vec::new();
    let mut order = Order::default();
    let mut offset = HEADER;
    while offset < end.offset {
        let frame = Frame::read(image, offset, messages.len() + 1)?;
        let message = frame.message()?;
        order.accept(message.command, message.socket, offset)?;
        message.attributes().verify()?;
        messages.push(message);
        offset = frame.end();
    }
    end.check_counts(&order)?;
    Ok(messages)
}

fn check_header(image: &[u8]) -> Result<(), Error> {
    let known = image.len().min(MAGIC.len());
    match image.get(..known) {
        Some([]) => return Err(Error::Empty),
        Some(start) if !MAGIC.starts_with(start) => return Err(Error::NotAnImage),
        _ => {}
    }
    let (mark, version, reserved) = header_fields(image).ok_or(Error::HeaderTruncated {
        missing: HEADER.saturating_sub(image.len()),
    })?;
    let fault = match (mark, version, reserved) {
        (BYTE_ORDER, VERSION, 0) => return Ok(()),
        (BYTE_ORDER, VERSION, found) => HeaderFault::Reserved { found },
        (BYTE_ORDER, 0, _) => HeaderFault::NoVersion { version },
        (BYTE_ORDER, _, _) => HeaderFault::Newer {
            version,
            known: VERSION,
        },
        (found, _, _) if found == BYTE_ORDER.swap_bytes() => HeaderFault::ForeignByteOrder,
        (found, _, _) => HeaderFault::ByteOrderMark { found },
    };
    Err(Error::Header(fault))
}

/// Byte-order mark, version and reserved word.
fn header_fields(image: &[u8]) -> Option<(u16, u16, u32)> {
    let mut fields = Fields(image.get(MAGIC.len()..)?);
    let version = fields.u16()?;
    let mark = fields.u16()?;
    Some((mark, version, fields.u32()?))
}

/// The fixed fields of a netlink message.
struct Nlmsghdr {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

impl Nlmsghdr {
    fn read(bytes: &[u8]) -> Option<Nlmsghdr> {
        let mut fields = Fields(bytes);
        Some(Nlmsghdr {
            length: fields.u32()?,
            kind: fields.u16()?,
            flags: fields.u16()?,
            sequence: fields.u32()?,
            port: fields.u32()?,
        })
    }
}

/// A netlink message that lies within the image; of its fields, only the length was checked.
struct Frame<'a> {
    /// Its place, counted from 1.
    place: usize,
    /// Where it starts.
    offset: usize,
    header: Nlmsghdr,
    /// What follows the header.
    body: &'a [u8],
}

impl<'a> Frame<'a> {
    fn read(image: &'a [u8], offset: usize, place: usize) -> Result<Frame<'a>, Error> {
        let rest = image.get(offset..).unwrap_or_default();
        if rest.is_empty() {
            return Err(Error::NoEnd { offset });
        }
        let lacks = |whole: usize| Error::Truncated {
            message: place,
            offset,
            missing: whole.saturating_sub(rest.len()),
        };
        let header = Nlmsghdr::read(rest).ok_or_else(|| lacks(NLMSGHDR))?;
        let length = header.length as usize;
        let mut frame = Frame {
            place,
            offset,
            header,
            body: &[],
        };
        if length < NLMSGHDR || !length.is_multiple_of(4) {
            return Err(frame.wrong_length());
        }
        frame.body = rest.get(NLMSGHDR..length).ok_or_else(|| lacks(length))?;
        Ok(frame)
    }

    /// Where the next one starts.
    fn end(&self) -> usize {
        self.offset + NLMSGHDR + self.body.len()
    }

    /// The message in it, all of its fixed fields checked.
    fn message(&self) -> Result<MessageRef<'a>, Error> {
        let wrong = |fault| self.wrong(fault);
        check_nlmsghdr(&self.header).map_err(wrong)?;
        let Some((genlmsghdr, attributes)) = self.body.split_first_chunk() else {
            return Err(self.wrong_length());
        };
        let command = check_genlmsghdr(*genlmsghdr).map_err(wrong)?;
        Ok(MessageRef {
            command,
            socket: self.header.sequence,
            attributes,
            offset: self.offset + MESSAGE,
        })
    }

    fn wrong_length(&self) -> Error {
        let length = self.header.length;
        self.wrong(MessageFault::Length { length })
    }

    fn wrong(&self, fault: MessageFault) -> Error {
        Error::Message {
            message: self.place,
            offset: self.offset,
            fault,
        }
    }
}

fn check_nlmsghdr(header: &Nlmsghdr) -> Result<(), MessageFault> {
    match (header.kind, header.flags, header.port) {
        (MESSAGE_TYPE, NLM_F_MULTI, 0) => Ok(()),
        (MESSAGE_TYPE, NLM_F_MULTI, found) => Err(MessageFault::Port { found }),
        (MESSAGE_TYPE, found, _) => Err(MessageFault::Flags { found }),
        (found, _, _) => Err(MessageFault::Type { found }),
    }
}

fn check_genlmsghdr([command, version, r0, r1]: [u8; 4]) -> Result<Command, MessageFault> {
    match (version, u16::from_ne_bytes([r0, r1])) {
        (GENL_VERSION, 0) => {
            Command::from_number(command).ok_or(MessageFault::Command { found: command })
        }
        (GENL_VERSION, found) => Err(MessageFault::Reserved { found }),
        (found, _) => Err(MessageFault::Version { found }),
    }
}

/// Which socket is next, and how many messages there were.
#[derive(Default)]
struct Order {
    sockets: u32,
    messages: u32,
}

impl Order {
    /// Accepts the next message, which starts at byte `offset` of the image.
    fn accept(&mut self, command: Command, socket: u32, offset: usize) -> Result<(), Error> {
        self.messages += 1;
        let fault = match (command, self.sockets) {
            (Command::Queue, 0) => MessageFault::QueueFirst { found: socket },
            (Command::Queue, last) if socket == last => return Ok(()),
            (Command::Queue, behind) => MessageFault::Queue {
                found: socket,
                behind,
            },
            (_, last) if socket == last + 1 => {
                self.sockets = socket;
                return Ok(());
            }
            (_, last) => MessageFault::Socket {
                found: socket,
                due: last + 1,
            },
        };
        Err(Error::Message {
            message: self.messages as usize,
            offset,
            fault,
        })
    }
}

/// The end of an image.
struct End {
    offset: usize,
    sockets: u32,
    messages: u32,
}

impl End {
    /// Finds the end, and verifies the checksum in it.
    fn find(image: &[u8]) -> Result<End, Error> {
        let mut offset = HEADER;
        let mut place = 1;
        let frame = loop {
            let frame = Frame::read(image, offset, place)?;
            if frame.header.kind == NLMSG_DONE {
                break frame;
            }
            (offset, place) = (frame.end(), place + 1);
        };
        let wrong = |fault| Error::End { offset, fault };
        let [sockets, messages, stored] = end_fields(&frame).map_err(wrong)?;
        let excess = image.len().saturating_sub(frame.end());
        if excess != 0 {
            let offset = frame.end();
            return Err(Error::Trailing { offset, excess });
        }
        let computed = crc32c::crc32c(image.get(..offset).unwrap_or_default());
        if stored != computed {
            return Err(Error::Checksum { stored, computed });
        }
        Ok(End {
            offset,
            sockets,
            messages,
        })
    }

    fn check_counts(&self, order: &Order) -> Result<(), Error> {
        let fault = if self.sockets != order.sockets {
            EndFault::Sockets {
                told: self.sockets,
                found: order.sockets,
            }
        } else if self.messages != order.messages {
            EndFault::Messages {
                told: self.messages,
                found: order.messages,
            }
        } else {
            return Ok(());
        };
        let offset = self.offset;
        Err(Error::End { offset, fault })
    }
}

/// Sockets, messages and checksum.
fn end_fields(frame: &Frame<'_>) -> Result<[u32; 3], EndFault> {
    let header = &frame.header;
    let words = match frame.body.as_chunks() {
        ([sockets, messages, checksum], []) => [*sockets, *messages, *checksum],
        _ => {
            let length = header.length;
            return Err(EndFault::Length { length });
        }
    };
    match (header.flags, header.sequence, header.port) {
        (NLM_F_MULTI, 0, 0) => Ok(words.map(u32::from_ne_bytes)),
        (NLM_F_MULTI, _, _) => Err(EndFault::Address),
        (found, _, _) => Err(EndFault::Flags { found }),
    }
}

/// Takes one integer after another from bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }
}
