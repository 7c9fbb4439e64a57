//! What a client asks, read from its packets by a process without rights, and handed to one that has them in a
//! form of its own.

use crate::message::{self, Command, Header, controller, flags};
use serde::{Deserialize, Serialize};
use sockcr::{Checkpoint, Target, image};
use sockcr_image::attribute::{Attribute, Writer};
use sockcr_image::file::{self, Message};
use sockcr_image::{Error as ImageError, number};

/// errno of what is refused.
pub mod errno {
    /// The request is wrong.
    pub const INVALID: i32 = 22;
    /// No such family.
    pub const NOT_FOUND: i32 = 2;
    /// The command is not known.
    pub const NOT_SUPPORTED: i32 = 95;
    /// It is too large.
    pub const TOO_LARGE: i32 = 90;
    /// It took too long.
    pub const TOO_LATE: i32 = 62;
}

/// No request to restore is larger, in bytes.
pub const MAX_RESTORE: usize = 32 << 20;

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// The family; all families, which are one, end with NLMSG_DONE.
    Family {
        /// Whether all are asked for.
        all: bool,
    },
    /// Sockets as they are.
    Dump {
        /// Which.
        what: What,
        /// Where in the request that stands.
        offset: u32,
    },
    /// The sockets that there are, perhaps of one process only.
    List {
        /// As the client calls it.
        process: Option<i32>,
    },
    /// What can be done.
    Check,
    /// The figures.
    Metrics,
    /// A socket, whose image comes beside it.
    Restore {
        /// Without what cannot be restored exactly.
        lossy: bool,
        /// Not where another socket has the address.
        alone: bool,
        /// Whether datagrams or errors wait in it.
        waiting: bool,
    },
    /// Nothing: the request is wrong.
    Wrong {
        /// Why, as the kernel numbers it.
        errno: i32,
        /// Why, in words.
        text: String,
        /// Where in it.
        offset: Option<u32>,
        /// Whether no more is taken from this client.
        last: bool,
    },
}

/// Which sockets are meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// That with this inode.
    Inode(u32),
    /// Those that a TARGET names, which is one.
    Named(String),
    /// That whose descriptor comes with it.
    Passed,
}

/// A request in the form of the service: every length in it is right, and every word known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// The header of its first message.
    pub header: Header,
    /// What is asked for.
    pub ask: Ask,
}

/// A request, and the image of what is to be restored.
pub type Read = (Request, Option<Vec<u8>>);

/// Reads the packets of one client.
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    /// A request to restore has begun.
    Restoring(Restoring),
    /// One was refused: what is left of it is passed over.
    PassingOver { sequence: u32 },
}

#[derive(Debug)]
struct Restoring {
    header: Header,
    lossy: bool,
    alone: bool,
    messages: Vec<Message>,
    size: usize,
}

/// Why a request is refused.
struct Refusal {
    errno: i32,
    text: String,
    offset: Option<u32>,
}

impl Refusal {
    fn new(errno: i32, text: impl Into<String>) -> Refusal {
        Refusal {
            errno,
            text: text.into(),
            offset: None,
        }
    }

    fn invalid(text: impl Into<String>) -> Refusal {
        Refusal::new(errno::INVALID, text)
    }

    fn at(self, attribute: &Attribute<'_>) -> Refusal {
        Refusal {
            offset: Some(attribute.offset as u32),
            ..self
        }
    }
}

impl From<ImageError> for Refusal {
    fn from(error: ImageError) -> Refusal {
        Refusal {
            offset: error.offset().map(|offset| offset as u32),
            ..Refusal::invalid(error.to_string())
        }
    }
}

type Refusable<T> = Result<T, Refusal>;

impl Reader {
    /// Whether a request has begun and not ended.
    pub fn is_waiting(&self) -> bool {
        matches!(self.state, State::Restoring(_))
    }

    /// Reads a packet; `passed` is whether exactly one descriptor came with it. `None`: it is a part of a request, or is
    /// passed over.
    pub fn packet(&mut self, packet: &[u8], passed: Passed) -> Option<Read> {
        let Some(header) = Header::read(packet) else {
            let header = Header {
                length: packet.len() as u32,
                kind: 0,
                flags: 0,
                sequence: 0,
                port: 0,
            };
            let why = "is too short for a netlink message";
            return Some(wrong(
                header,
                Refusal::invalid(format!("request: {why}")),
                true,
            ));
        };
        match std::mem::take(&mut self.state) {
            State::Restoring(begun) => self.go_on(begun, header, packet, passed),
            State::PassingOver { sequence } if is_rest(&header, packet, sequence) => {
                if header.kind != message::DONE {
                    self.state = State::PassingOver { sequence };
                }
                None
            }
            _ => self.begin(header, packet, passed),
        }
    }

    /// A request that has begun takes too long.
    pub fn too_late(&mut self) -> Option<Read> {
        let State::Restoring(begun) = std::mem::take(&mut self.state) else {
            return None;
        };
        let why = "restore: the request was begun and not ended in time";
        Some(wrong(
            begun.header,
            Refusal::new(errno::TOO_LATE, why),
            true,
        ))
    }

    fn begin(&mut self, header: Header, packet: &[u8], passed: Passed) -> Option<Read> {
        let asked = match ask(&header, packet, passed) {
            Ok(Asked::All(ask)) => return Some((Request { header, ask }, None)),
            Ok(Asked::Begun(begun)) => {
                self.state = State::Restoring(begun);
                return None;
            }
            Err(refusal) => refusal,
        };
        if command(packet) == Some(Command::Restore) && header.kind == message::FAMILY {
            self.pass_over(&header);
        }
        Some(wrong(header, asked, false))
    }

    fn go_on(
        &mut self,
        mut begun: Restoring,
        header: Header,
        packet: &[u8],
        passed: Passed,
    ) -> Option<Read> {
        if !is_rest(&header, packet, begun.header.sequence) {
            // What interrupts it is answered by the same refusal: who sends that has lost count.
            let why = "restore: another request came before its NLMSG_DONE";
            return Some(wrong(begun.header, Refusal::invalid(why), true));
        }
        let first = begun.header;
        let refusal = match begun.add(&header, packet, passed) {
            Ok(true) => match begun.finish() {
                Ok(read) => return Some(read),
                // Its end has come.
                Err(refusal) => return Some(wrong(first, refusal, false)),
            },
            Ok(false) => {
                self.state = State::Restoring(begun);
                return None;
            }
            Err(refusal) => refusal,
        };
        if header.kind != message::DONE {
            self.pass_over(&first);
        }
        Some(wrong(first, refusal, false))
    }

    fn pass_over(&mut self, header: &Header) {
        let sequence = header.sequence;
        self.state = State::PassingOver { sequence };
    }
}

/// What came beside a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// No descriptor.
    None,
    /// One.
    One,
    /// More.
    Many,
}

enum Asked {
    All(Ask),
    Begun(Restoring),
}

fn wrong(header: Header, refusal: Refusal, last: bool) -> Read {
    let Refusal {
        errno,
        text,
        offset,
    } = refusal;
    let ask = Ask::Wrong {
        errno,
        text,
        offset,
        last,
    };
    (Request { header, ask }, None)
}

fn command(packet: &[u8]) -> Option<Command> {
    packet
        .get(message::HEADER)
        .and_then(|number| Command::from_number(*number))
}

/// Whether a packet goes on with the request to restore that has this number.
fn is_rest(header: &Header, packet: &[u8], sequence: u32) -> bool {
    let queue = header.kind == message::FAMILY && command(packet) == Some(Command::Queue);
    header.sequence == sequence && (queue || header.kind == message::DONE)
}

fn check_length(header: &Header, packet: &[u8]) -> Refusable<()> {
    if packet.len() > message::MAX_MESSAGE {
        let why = format!(
            "request: a message has {} bytes at most",
            message::MAX_MESSAGE
        );
        return Err(Refusal::new(errno::TOO_LARGE, why));
    }
    if header.length as usize != packet.len() {
        return Err(Refusal::invalid(format!(
            "request: its header says {} bytes, the packet has {}",
            header.length,
            packet.len()
        )));
    }
    Ok(())
}

/// What stands behind the genlmsghdr.
fn attributes_of(packet: &[u8]) -> Refusable<&[u8]> {
    let why = "request: is too short for a message of generic netlink";
    packet
        .get(message::FAMILY_HEADER..)
        .ok_or_else(|| Refusal::invalid(why))
}

fn ask(header: &Header, packet: &[u8], passed: Passed) -> Refusable<Asked> {
    check_length(header, packet)?;
    if header.flags & flags::REQUEST == 0 {
        return Err(Refusal::invalid("request: lacks NLM_F_REQUEST"));
    }
    let payload = attributes_of(packet)?;
    let number = packet.get(message::HEADER).copied().unwrap_or(0);
    match header.kind {
        message::CONTROLLER if number == controller::GET_FAMILY => {
            family(header, payload).map(Asked::All)
        }
        message::CONTROLLER => Err(unknown(format!("controller: command {number}"))),
        message::FAMILY => {
            let known = Command::from_number(number).filter(|c| *c != Command::Queue);
            let command = known.ok_or_else(|| unknown(format!("command {number}")))?;
            of_family(header, command, payload, passed)
        }
        kind => {
            let why = format!("family {kind}: no such family; {} is", message::FAMILY_NAME);
            Err(Refusal::new(errno::NOT_FOUND, why))
        }
    }
}

fn unknown(what: String) -> Refusal {
    Refusal::new(errno::NOT_SUPPORTED, format!("{what}: is not known"))
}

fn family(header: &Header, payload: &[u8]) -> Refusable<Ask> {
    let mut meant = None;
    for attribute in message::in_message(payload) {
        let attribute = attribute?;
        let is_ours = match attribute.number {
            controller::FAMILY_NAME => {
                message::text(attribute.payload) == Some(message::FAMILY_NAME)
            }
            controller::FAMILY_ID => attribute.payload == message::FAMILY.to_ne_bytes(),
            _ => continue,
        };
        if !is_ours {
            let why = format!("family: no such family; {} is", message::FAMILY_NAME);
            return Err(Refusal::new(errno::NOT_FOUND, why).at(&attribute));
        }
        meant = Some(());
    }
    let all = header.flags & flags::DUMP == flags::DUMP;
    match (meant, all) {
        (Some(()), _) => Ok(Ask::Family { all: false }),
        (None, true) => Ok(Ask::Family { all: true }),
        (None, false) => Err(Refusal::invalid("family: neither its name nor its number")),
    }
}

fn of_family(
    header: &Header,
    command: Command,
    payload: &[u8],
    passed: Passed,
) -> Refusable<Asked> {
    if command == Command::Restore {
        none_passed(passed)?;
        return Restoring::begin(*header, payload).map(Asked::Begun);
    }
    let mut meant: Option<(What, u32)> = None;
    for attribute in message::in_message(payload) {
        let attribute = attribute?;
        let what = what(command, &attribute).map_err(|refusal| refusal.at(&attribute))?;
        if meant.is_some() {
            let why = format!("{}: names sockets twice", command.name());
            return Err(Refusal::invalid(why).at(&attribute));
        }
        meant = Some((what, attribute.offset as u32));
    }
    let passes = matches!(meant, Some((What::Passed, _)));
    match (passes, passed) {
        (true, Passed::One) => {}
        (true, Passed::None) => {
            let why = "dump: no descriptor came with the message";
            return Err(Refusal::invalid(why));
        }
        _ => none_passed(passed)?,
    }
    match (command, meant) {
        (Command::Dump, Some((what, offset))) => Ok(Asked::All(Ask::Dump { what, offset })),
        (Command::Dump, None) => Err(Refusal::invalid(
            "dump: names no socket: INODE, TARGET or PASSED",
        )),
        (Command::List, meant) => Ok(Asked::All(Ask::List {
            process: meant.and_then(|(what, _)| process(&what)),
        })),
        (Command::Check, _) => Ok(Asked::All(Ask::Check)),
        _ => Ok(Asked::All(Ask::Metrics)),
    }
}

fn none_passed(passed: Passed) -> Refusable<()> {
    match passed {
        Passed::None => Ok(()),
        Passed::One => Err(Refusal::invalid(
            "request: a descriptor that is not asked for",
        )),
        Passed::Many => Err(Refusal::invalid("request: more than one descriptor")),
    }
}

/// What an attribute of a request names.
fn what(command: Command, attribute: &Attribute<'_>) -> Refusable<What> {
    match (command, attribute.number) {
        (Command::Dump, number::INODE) => Ok(What::Inode(attribute.as_u32()?)),
        (Command::Dump, number::PASSED) => {
            attribute.as_flag()?;
            Ok(What::Passed)
        }
        (Command::Dump | Command::List, number::TARGET) => {
            let (text, target) = target(attribute)?;
            match (command, &target) {
                (Command::List, Target::Process(_)) | (Command::Dump, _) => Ok(What::Named(text)),
                _ => Err(Refusal::invalid("list: TARGET is the number of a process")),
            }
        }
        (_, number) => {
            let why = format!("{}: attribute {number} is not known here", command.name());
            Err(Refusal::invalid(why))
        }
    }
}

/// No TARGET is longer, in bytes.
const LONGEST_TARGET: usize = 200;

fn target(attribute: &Attribute<'_>) -> Refusable<(String, Target)> {
    let text = Some(attribute.payload).filter(|text| text.len() <= LONGEST_TARGET);
    let text = text.and_then(message::text);
    let text = text.ok_or_else(|| Refusal::invalid("TARGET: is no text, or too long"))?;
    let target = text.parse();
    let target = target.map_err(|error: sockcr::Error| Refusal::invalid(error.to_string()))?;
    Ok((text.to_owned(), target))
}

fn process(what: &What) -> Option<i32> {
    let What::Named(name) = what else {
        return None;
    };
    match name.parse() {
        Ok(Target::Process(pid)) => Some(pid),
        _ => None,
    }
}

impl Restoring {
    fn begin(header: Header, payload: &[u8]) -> Refusable<Restoring> {
        let mut writer = Writer::new();
        let (mut lossy, mut alone) = (false, false);
        for attribute in message::in_message(payload) {
            let attribute = attribute?;
            match attribute.number {
                number::LOSSY => {
                    attribute.as_flag()?;
                    lossy = true;
                }
                number::ALONE => {
                    attribute.as_flag()?;
                    alone = true;
                }
                number if attribute.nested => writer.put_nested(number, attribute.payload)?,
                number => writer.put(number, attribute.payload)?,
            }
        }
        let mut begun = Restoring {
            header,
            lossy,
            alone,
            messages: Vec::new(),
            size: 0,
        };
        begun.push(file::Command::Dump, writer.finish())?;
        Ok(begun)
    }

    fn push(&mut self, command: file::Command, attributes: Vec<u8>) -> Refusable<()> {
        self.size += message::FAMILY_HEADER + attributes.len();
        if self.size > MAX_RESTORE {
            let why = format!("restore: has more than {MAX_RESTORE} bytes");
            return Err(Refusal::new(errno::TOO_LARGE, why));
        }
        self.messages.push(Message {
            command,
            socket: 1,
            attributes,
        });
        Ok(())
    }

    /// Answers whether it was the last one.
    fn add(&mut self, header: &Header, packet: &[u8], passed: Passed) -> Refusable<bool> {
        check_length(header, packet)?;
        none_passed(passed)?;
        if header.kind == message::DONE {
            return Ok(true);
        }
        let payload = attributes_of(packet)?;
        for attribute in message::in_message(payload) {
            attribute?;
        }
        self.push(file::Command::Queue, payload.to_vec())?;
        Ok(false)
    }

    /// The image is read here as a whole, where nothing can come of it, and written anew.
    fn finish(self) -> Refusable<Read> {
        let image = file::encode(&self.messages)?;
        drop(self.messages);
        let read = Checkpoint::from_bytes(&image);
        drop(image);
        let checkpoint = read.map_err(|error| Refusal::invalid(error.to_string()))?;
        let written = image::encode(std::slice::from_ref(&checkpoint));
        let image = written.map_err(|error| Refusal::invalid(error.to_string()))?;
        let waiting = !checkpoint.receive_queue.is_empty() || !checkpoint.errors.is_empty();
        let ask = Ask::Restore {
            lossy: self.lossy,
            alone: self.alone,
            waiting,
        };
        let header = self.header;
        Ok((Request { header, ask }, Some(image)))
    }
}
