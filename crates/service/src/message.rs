//! The messages that go over the socket: one netlink message a packet ([docs/service.md]).
//!
//! [docs/service.md]: https://docs.rs/sockcr-service

use sockcr_image::attribute::{Attributes, Writer, attributes};
use sockcr_image::number;

/// The name of the generic netlink family.
pub const FAMILY_NAME: &str = "af_inet_cr";
/// Its number, which is the type of its messages.
pub const FAMILY: u16 = sockcr_image::file::MESSAGE_TYPE;
/// Its version.
pub const VERSION: u8 = 1;
/// The type of messages for the controller (GENL_ID_CTRL).
pub const CONTROLLER: u16 = 16;
/// The type of an error, or of an acknowledgement (NLMSG_ERROR).
pub const ERROR: u16 = 2;
/// The type of the message that ends several (NLMSG_DONE).
pub const DONE: u16 = 3;

/// nlmsghdr.nlmsg_flags
pub mod flags {
    /// It asks for something.
    pub const REQUEST: u16 = 1;
    /// It is one of several; NLMSG_DONE ends them.
    pub const MULTI: u16 = 2;
    /// An acknowledgement is wanted.
    pub const ACK: u16 = 4;
    /// Everything is wanted (NLM_F_ROOT and NLM_F_MATCH).
    pub const DUMP: u16 = 0x300;
    /// Of an error: the request is not repeated but for its header.
    pub const CAPPED: u16 = 0x100;
    /// Of an error: attributes follow.
    pub const ACK_TLVS: u16 = 0x200;
}

/// genlmsghdr.cmd of the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Command {
    /// Sockets as they are found.
    Dump = 1,
    /// A socket is made.
    Restore = 2,
    /// What waits in the socket before it.
    Queue = 3,
    /// The sockets there are.
    List = 4,
    /// What can be done here.
    Check = 5,
    /// How the service fares.
    Metrics = 6,
}

impl Command {
    /// All of them, in the order of their numbers.
    pub const ALL: [Command; 6] = [
        Command::Dump,
        Command::Restore,
        Command::Queue,
        Command::List,
        Command::Check,
        Command::Metrics,
    ];

    /// The command with this number.
    pub fn from_number(number: u8) -> Option<Command> {
        Command::ALL
            .into_iter()
            .find(|command| *command as u8 == number)
    }

    /// Whether its answer is several messages, which NLMSG_DONE ends.
    pub fn is_multipart(self) -> bool {
        matches!(self, Command::Dump | Command::List | Command::Check)
    }

    /// What it is called in messages and in figures.
    pub fn name(self) -> &'static str {
        match self {
            Command::Dump => "dump",
            Command::Restore => "restore",
            Command::Queue => "queue",
            Command::List => "list",
            Command::Check => "check",
            Command::Metrics => "metrics",
        }
    }
}

/// The controller: its command to ask by, that of its answers, and their attributes.
pub mod controller {
    /// CTRL_CMD_GETFAMILY
    pub const GET_FAMILY: u8 = 3;
    /// CTRL_CMD_NEWFAMILY
    pub const NEW_FAMILY: u8 = 1;
    /// CTRL_ATTR_FAMILY_ID, u16
    pub const FAMILY_ID: u16 = 1;
    /// CTRL_ATTR_FAMILY_NAME, text with a NUL
    pub const FAMILY_NAME: u16 = 2;
    /// CTRL_ATTR_VERSION, u32
    pub const VERSION: u16 = 3;
    /// CTRL_ATTR_HDRSIZE, u32
    pub const HEADER_SIZE: u16 = 4;
    /// CTRL_ATTR_MAXATTR, u32
    pub const MAX_ATTRIBUTE: u16 = 5;
    /// CTRL_ATTR_OPS, nested
    pub const OPERATIONS: u16 = 6;
    /// CTRL_ATTR_OP_ID, u32
    pub const OPERATION: u16 = 1;
    /// CTRL_ATTR_OP_FLAGS, u32
    pub const OPERATION_FLAGS: u16 = 2;
    /// GENL_CMD_CAP_DO
    pub const CAN_DO: u32 = 2;
    /// GENL_CMD_CAP_DUMP
    pub const CAN_DUMP: u32 = 4;
}

/// NLMSGERR_ATTR_MSG
const ERROR_TEXT: u16 = 1;
/// NLMSGERR_ATTR_OFFS
const ERROR_OFFSET: u16 = 2;

/// The bytes of a nlmsghdr.
pub const HEADER: usize = 16;
/// The bytes of a nlmsghdr and a genlmsghdr.
pub const FAMILY_HEADER: usize = 20;
/// No message is larger, in bytes: what a Unix socket takes with the kernel's own limits.
pub const MAX_MESSAGE: usize = 200 << 10;

/// A nlmsghdr.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Header {
    /// The bytes of the message, this header among them.
    pub length: u32,
    /// nlmsg_type
    pub kind: u16,
    /// nlmsg_flags
    pub flags: u16,
    /// nlmsg_seq
    pub sequence: u32,
    /// nlmsg_pid
    pub port: u32,
}

impl Header {
    /// The header at the beginning of a packet.
    pub fn read(packet: &[u8]) -> Option<Header> {
        let word = |at: usize| Some(u32::from_ne_bytes(*packet.get(at..)?.first_chunk()?));
        let half = |at: usize| Some(u16::from_ne_bytes(*packet.get(at..)?.first_chunk()?));
        Some(Header {
            length: word(0)?,
            kind: half(4)?,
            flags: half(6)?,
            sequence: word(8)?,
            port: word(12)?,
        })
    }

    fn bytes(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.length.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.port.to_ne_bytes());
        bytes
    }

    /// Whether an acknowledgement is wanted.
    pub fn wants_ack(&self) -> bool {
        self.flags & flags::ACK != 0
    }

    /// A message that answers this one.
    fn answer(&self, kind: u16, flags: u16, body: &[&[u8]]) -> Vec<u8> {
        let length = HEADER + body.iter().map(|part| part.len()).sum::<usize>();
        let header = Header {
            // At most some parts of 64 KiB.
            length: length as u32,
            kind,
            flags,
            ..*self
        };
        let mut message = Vec::with_capacity(length);
        message.extend(header.bytes());
        body.iter().for_each(|part| message.extend(*part));
        message
    }

    /// A message of the family.
    pub fn family(&self, command: Command, flags: u16, attributes: &[u8]) -> Vec<u8> {
        let family = [command as u8, VERSION, 0, 0];
        self.answer(FAMILY, flags, &[&family, attributes])
    }

    /// A message of the controller.
    pub fn controller(&self, command: u8, flags: u16, attributes: &[u8]) -> Vec<u8> {
        let family = [command, 2, 0, 0];
        self.answer(CONTROLLER, flags, &[&family, attributes])
    }

    /// The message that ends several.
    pub fn done(&self) -> Vec<u8> {
        self.answer(DONE, flags::MULTI, &[&0_i32.to_ne_bytes()])
    }

    /// The acknowledgement.
    pub fn ack(&self) -> Vec<u8> {
        let error = 0_i32.to_ne_bytes();
        self.answer(ERROR, flags::CAPPED, &[&error, &self.bytes()])
    }

    /// An error, and which attribute of the request it is about, as the place where that begins.
    pub fn error(&self, errno: i32, text: &str, offset: Option<u32>) -> Vec<u8> {
        let mut about = Writer::new();
        let text: String = text.chars().filter(|c| *c != '\0').collect();
        let text = shortened(&text);
        // Neither can be refused: a short text, and a number.
        let _ = about.put(ERROR_TEXT, format!("{text}\0").as_bytes());
        if let Some(offset) = offset {
            let _ = about.u32(ERROR_OFFSET, offset);
        }
        let flags = flags::CAPPED | flags::ACK_TLVS;
        let errno = errno.saturating_neg().to_ne_bytes();
        self.answer(ERROR, flags, &[&errno, &self.bytes(), &about.finish()])
    }
}

/// The beginning of a text that is too long for a message.
fn shortened(text: &str) -> &str {
    const MOST: usize = 32 << 10;
    let mut end = text.len().min(MOST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// The attributes that say what the family can do.
pub fn family() -> Vec<u8> {
    let mut writer = Writer::new();
    let written = write_family(&mut writer);
    debug_assert!(written.is_ok(), "nothing in it is long");
    writer.finish()
}

fn write_family(writer: &mut Writer) -> Result<(), sockcr_image::Error> {
    writer.put(
        controller::FAMILY_NAME,
        format!("{FAMILY_NAME}\0").as_bytes(),
    )?;
    writer.put(controller::FAMILY_ID, &FAMILY.to_ne_bytes())?;
    writer.u32(controller::VERSION, VERSION.into())?;
    writer.u32(controller::HEADER_SIZE, 0)?;
    let highest = number::ALL.iter().map(|(_, number)| *number).max();
    writer.u32(controller::MAX_ATTRIBUTE, highest.unwrap_or(0).into())?;
    writer.nested(controller::OPERATIONS, |operations| {
        let asked = Command::ALL.into_iter().filter(|c| *c != Command::Queue);
        for (command, place) in asked.zip(1..) {
            operations.nested(place, |operation| {
                let can = match command.is_multipart() {
                    true => controller::CAN_DUMP,
                    false => controller::CAN_DO,
                };
                operation.u32(controller::OPERATION, command as u32)?;
                operation.u32(controller::OPERATION_FLAGS, can)
            })?;
        }
        Ok(())
    })
}

/// What a packet of the service says.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// A message of the family.
    Message(Command, &'a [u8]),
    /// A message of the controller: its command and its attributes.
    Controller(u8, &'a [u8]),
    /// The end of several.
    Done,
    /// The acknowledgement.
    Ack,
    /// An error.
    Error(Fault),
}

/// An error that the service tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its errno, positive.
    pub errno: i32,
    /// What it says.
    pub text: String,
    /// Where the attribute of the request begins that it is about.
    pub offset: Option<u32>,
}

/// Reads a packet of the service; `None`: it is no message of it.
pub fn read_answer(packet: &[u8]) -> Option<(Header, Answer<'_>)> {
    let header = Header::read(packet)?;
    if header.length as usize != packet.len() {
        return None;
    }
    let body = packet.get(HEADER..)?;
    let answer = match header.kind {
        DONE => Answer::Done,
        ERROR => read_error(body)?,
        FAMILY => {
            let (family, attributes) = body.split_first_chunk::<4>()?;
            Answer::Message(Command::from_number(family[0])?, attributes)
        }
        CONTROLLER => {
            let (family, attributes) = body.split_first_chunk::<4>()?;
            Answer::Controller(family[0], attributes)
        }
        _ => return None,
    };
    Some((header, answer))
}

fn read_error(body: &[u8]) -> Option<Answer<'static>> {
    let (errno, rest) = body.split_first_chunk()?;
    let errno = i32::from_ne_bytes(*errno).checked_neg()?;
    if errno == 0 {
        return Some(Answer::Ack);
    }
    let mut fault = Fault {
        errno,
        text: String::new(),
        offset: None,
    };
    for attribute in attributes(rest.get(HEADER..)?) {
        let attribute = attribute.ok()?;
        match attribute.number {
            ERROR_TEXT => fault.text = text(attribute.payload)?.into(),
            ERROR_OFFSET => fault.offset = attribute.as_u32().ok(),
            _ => {}
        }
    }
    Some(Answer::Error(fault))
}

/// Text, with or without the NUL behind it that netlink has.
pub(crate) fn text(payload: &[u8]) -> Option<&str> {
    let payload = payload.strip_suffix(b"\0").unwrap_or(payload);
    std::str::from_utf8(payload).ok()
}

/// The attributes of a message, with the places that they have in it.
pub(crate) fn in_message(attributes: &[u8]) -> Attributes<'_> {
    Attributes::at(attributes, FAMILY_HEADER)
}
