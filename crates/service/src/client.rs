//! A client of the service.

use crate::message::{
    self, Answer, Command, FAMILY_NAME, Fault, Header, MAX_MESSAGE, controller, flags, read_answer,
};
use crate::packet::{Receiver, send};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use sockcr::check::Feature;
use sockcr::find::{Holder, Listed, Listing};
use sockcr::report::Note;
use sockcr::{Checkpoint, Error, ErrorKind, Report, RestoreOptions, Restored, Target, image, map};
use sockcr_image::attribute::{Attribute, Writer, attributes};
use sockcr_image::file::{self, Message};
use sockcr_image::{Error as ImageError, number};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A connection to the service ([docs/service.md]).
///
/// ```no_run
/// use sockcr_service::Client;
/// use std::net::UdpSocket;
///
/// let mut client = Client::connect("/run/sockcr/socket".as_ref())?;
/// let dumped = client.dump(&"udp:127.0.0.1:5353".parse()?)?;
/// let restored = client.restore(&dumped.sockets[0], false, true)?;
/// let socket = UdpSocket::from(restored.fd);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [docs/service.md]: https://docs.rs/sockcr-service
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
    receiver: Receiver,
}

/// What a target named.
#[derive(Clone, Debug, Default)]
pub struct Dumped {
    /// The sockets.
    pub sockets: Vec<Checkpoint>,
    /// Those of a kind that is not carried.
    pub left_out: Vec<Listed>,
}

/// A message of an answer.
struct Part {
    command: u8,
    attributes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

impl Client {
    /// Connects to the service that listens at this path.
    pub fn connect(path: &Path) -> Result<Client, Error> {
        let failed = |error: Errno| {
            let what = format!("service at {}: connect", path.display());
            Error::system(what, error.into()).help(format!(
                "`sockcr serve --socket {}` starts one",
                path.display()
            ))
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let socket = socket.map_err(failed)?;
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        connect(&socket, &address).map_err(failed)?;
        let mut client = Client {
            socket,
            family: 0,
            sequence: 0,
            receiver: Receiver::default(),
        };
        client.family = client.find_family()?;
        Ok(client)
    }

    /// Asks the controller for the number of the family.
    fn find_family(&mut self) -> Result<u16, Error> {
        let mut writer = Writer::new();
        writer.put(
            controller::FAMILY_NAME,
            format!("{FAMILY_NAME}\0").as_bytes(),
        )?;
        self.sequence += 1;
        let header = self.header();
        let packet = header.controller(controller::GET_FAMILY, flags::REQUEST, &writer.finish());
        self.send(&packet, &[])?;
        let family = self.single()?;
        for attribute in attributes(&family.attributes) {
            let attribute = attribute?;
            if attribute.number == controller::FAMILY_ID {
                let number = attribute.as_array().map(u16::from_ne_bytes);
                return Ok(number?);
            }
        }
        Err(broken("its family has no number"))
    }

    /// Dumps what a target names, in our network namespace; processes by the numbers that they have for us.
    pub fn dump(&mut self, target: &Target) -> Result<Dumped, Error> {
        let mut writer = Writer::new();
        writer.str(number::TARGET, &target.spelled())?;
        self.dump_by(&writer.finish(), &[])
    }

    /// Dumps a socket of our own.
    pub fn dump_passed(&mut self, socket: &impl AsFd) -> Result<Checkpoint, Error> {
        let mut writer = Writer::new();
        writer.flag(number::PASSED)?;
        let mut dumped = self.dump_by(&writer.finish(), &[socket.as_fd()])?;
        let only = dumped.sockets.pop().filter(|_| dumped.sockets.is_empty());
        only.ok_or_else(|| broken("it dumped more or less than one socket"))
    }

    fn dump_by(&mut self, attributes: &[u8], passed: &[BorrowedFd<'_>]) -> Result<Dumped, Error> {
        self.ask(Command::Dump, attributes, passed)?;
        let mut messages: Vec<Message> = Vec::new();
        let mut dumped = Dumped::default();
        let mut sockets = 0;
        for part in self.several()? {
            let command = match Command::from_number(part.command) {
                Some(Command::List) => {
                    dumped.left_out.push(listed(&part.attributes)?.0);
                    continue;
                }
                Some(Command::Dump) => file::Command::Dump,
                Some(Command::Queue) => file::Command::Queue,
                _ => return Err(broken("it answers what was not asked")),
            };
            sockets += u32::from(command == file::Command::Dump);
            messages.push(Message {
                command,
                socket: sockets,
                attributes: part.attributes,
            });
        }
        dumped.sockets = image::decode(&file::encode(&messages)?)?;
        Ok(dumped)
    }

    /// Restores several, all or nothing, as [`sockcr::restore_all`] does, in our network namespace: of the options
    /// `lossy`, `map` and `alone` count.
    pub fn restore_all(
        &mut self,
        checkpoints: &[Checkpoint],
        options: &RestoreOptions,
    ) -> Result<Vec<Restored>, Error> {
        let mapped = map::apply(checkpoints, &options.map)?;
        let mut order: Vec<(usize, &Checkpoint)> = mapped.iter().enumerate().collect();
        order.sort_by_key(|(_, checkpoint)| checkpoint.reuseport_index);
        let mut taken: Vec<SocketAddr> = Vec::new();
        let mut restored: Vec<(usize, Restored)> = Vec::new();
        for (at, checkpoint) in order {
            let local = checkpoint.endpoint.local;
            // Those of one group share their address with each other.
            let alone = options.alone && !taken.contains(&local);
            restored.push((at, self.restore(checkpoint, options.lossy, alone)?));
            taken.push(local);
        }
        restored.sort_by_key(|(at, _)| *at);
        Ok(restored.into_iter().map(|(_, restored)| restored).collect())
    }

    /// Makes a socket that is what the checkpoint says, in our network namespace; `lossy` and `alone` as in
    /// [`sockcr::RestoreOptions`]. What needs a right needs ours.
    pub fn restore(
        &mut self,
        checkpoint: &Checkpoint,
        lossy: bool,
        alone: bool,
    ) -> Result<Restored, Error> {
        let messages = image::messages(checkpoint, 1)?;
        self.sequence += 1;
        for message in &messages {
            let sent = match message.command {
                file::Command::Queue => {
                    let packet =
                        self.header()
                            .family(Command::Queue, flags::REQUEST, &message.attributes);
                    self.send(&packet, &[])
                }
                _ => {
                    let mut attributes = message.attributes.clone();
                    attributes.extend(how(lossy, alone)?);
                    let packet =
                        self.header()
                            .family(Command::Restore, flags::REQUEST, &attributes);
                    self.send(&packet, &[])
                }
            };
            // What it has to say about that waits to be read.
            if sent.is_err() {
                break;
            }
        }
        let done = self.header().done();
        let sent = self.send(&done, &[]);
        let answer = match self.single() {
            Ok(answer) => answer,
            Err(error) => return Err(sent.err().filter(|_| is_closed(&error)).unwrap_or(error)),
        };
        let fd = answer
            .descriptor
            .ok_or_else(|| broken("no descriptor came with its answer"))?;
        let mut report = Report::default();
        for attribute in attributes(&answer.attributes) {
            let attribute = attribute?;
            if attribute.number == number::NOT_CARRIED {
                report.not_carried.push(note(&attribute)?);
            }
        }
        Ok(Restored { fd, report })
    }

    /// The sockets in our network namespace that we may dump, perhaps of one process only.
    pub fn list(&mut self, process: Option<i32>) -> Result<Listing, Error> {
        let mut writer = Writer::new();
        if let Some(process) = process {
            writer.str(number::TARGET, &process.to_string())?;
        }
        self.ask(Command::List, &writer.finish(), &[])?;
        let mut listing = Listing::default();
        for part in self.several()? {
            let (socket, hidden) = listed(&part.attributes)?;
            match hidden {
                Some(hidden) => listing.hidden = hidden as usize,
                None => listing.sockets.push(socket),
            }
        }
        Ok(listing)
    }

    /// What the service can do for us.
    pub fn check(&mut self) -> Result<Vec<Feature>, Error> {
        self.ask(Command::Check, &[], &[])?;
        let parts = self.several()?;
        parts.iter().map(|part| feature(&part.attributes)).collect()
    }

    /// How the service fares, as Prometheus reads it.
    pub fn metrics(&mut self) -> Result<String, Error> {
        self.ask(Command::Metrics, &[], &[])?;
        let answer = self.single()?;
        let mut all = attributes(&answer.attributes);
        let text = all.find_map(|attribute| match attribute {
            Ok(attribute) if attribute.number == number::TEXT => Some(attribute.as_str()),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        let text = text.ok_or_else(|| broken("its figures have no text"))?;
        Ok(text?.to_owned())
    }

    fn header(&self) -> Header {
        Header {
            length: 0,
            kind: self.family,
            flags: 0,
            sequence: self.sequence,
            port: 0,
        }
    }

    fn ask(
        &mut self,
        command: Command,
        attributes: &[u8],
        passed: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        self.sequence += 1;
        let packet = self.header().family(command, flags::REQUEST, attributes);
        self.send(&packet, passed)
    }

    fn send(&self, packet: &[u8], passed: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if packet.len() > MAX_MESSAGE {
            let why = format!(
                "a message would have {} bytes, and may have {MAX_MESSAGE}",
                packet.len()
            );
            return Err(Error::new(ErrorKind::Refused, "service", why));
        }
        send(self.socket.as_fd(), packet, passed)
            .map_err(|error| Error::system("service: send a request", error))
    }

    /// The messages of an answer that NLMSG_DONE ends.
    fn several(&mut self) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        let mut size = 0;
        while let Some(part) = self.part()? {
            size += message::FAMILY_HEADER + part.attributes.len();
            if size as u64 > image::MAX_IMAGE {
                return Err(broken("its answer is larger than any image"));
            }
            parts.push(part);
        }
        Ok(parts)
    }

    fn single(&mut self) -> Result<Part, Error> {
        self.part()?.ok_or_else(|| broken("its answer is empty"))
    }

    /// The next message of an answer; `None`: it ends here.
    fn part(&mut self) -> Result<Option<Part>, Error> {
        let packet = self.receiver.receive(self.socket.as_fd());
        let packet = packet.map_err(|error| Error::system("service: receive an answer", error))?;
        if packet.bytes.is_empty() {
            let closed = io::Error::from(io::ErrorKind::UnexpectedEof);
            return Err(Error::system("service: it closed the connection", closed)
                .help("its log says why: it may have ended, or let us go"));
        }
        let (header, answer) =
            read_answer(packet.bytes).ok_or_else(|| broken("its answer is no message"))?;
        // Who is turned away has asked nothing yet.
        let refused = matches!(answer, Answer::Error(_)) && header.sequence == 0;
        if header.sequence != self.sequence && !refused {
            return Err(broken("it answers another request"));
        }
        let (command, attributes) = match answer {
            Answer::Done | Answer::Ack => return Ok(None),
            Answer::Error(fault) => return Err(told(fault)),
            Answer::Message(command, attributes) => (command as u8, attributes),
            Answer::Controller(command, attributes) => (command, attributes),
        };
        Ok(Some(Part {
            command,
            attributes: attributes.to_vec(),
            descriptor: packet.descriptor,
        }))
    }
}

fn is_closed(error: &Error) -> bool {
    use std::error::Error as _;
    let source = error.source().and_then(|source| source.downcast_ref());
    source.is_some_and(|source: &io::Error| source.kind() == io::ErrorKind::UnexpectedEof)
}

fn broken(why: &str) -> Error {
    Error::new(ErrorKind::BadInput, "service", why)
}

fn how(lossy: bool, alone: bool) -> Result<Vec<u8>, ImageError> {
    let mut writer = Writer::new();
    for (wanted, number) in [(lossy, number::LOSSY), (alone, number::ALONE)] {
        if wanted {
            writer.flag(number)?;
        }
    }
    Ok(writer.finish())
}

/// An error that the service tells, as one of the library.
fn told(fault: Fault) -> Error {
    let kind = match Errno::from_raw_os_error(fault.errno) {
        Errno::NOENT => ErrorKind::NotFound,
        Errno::NOTSOCK => ErrorKind::NotASocket,
        Errno::NOSYS => ErrorKind::NotSupported,
        Errno::PERM | Errno::ACCESS => ErrorKind::NotPermitted,
        Errno::INVAL => ErrorKind::BadInput,
        Errno::OPNOTSUPP => ErrorKind::Refused,
        _ => ErrorKind::System,
    };
    let (text, help) = match fault.text.split_once("\nhelp: ") {
        Some((text, help)) => (text, Some(help)),
        None => (&fault.text[..], None),
    };
    let (what, why) = text.split_once(": ").unwrap_or(("service", text));
    let mut error = Error::new(kind, what, why);
    if matches!(kind, ErrorKind::System | ErrorKind::NotPermitted) {
        error = error.because(io::Error::from_raw_os_error(fault.errno));
    }
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}

/// A socket of LIST; or, of the last message of it, how many are not shown.
fn listed(payload: &[u8]) -> Result<(Listed, Option<u32>), Error> {
    let word = |wanted: u16| {
        let found = attributes(payload)
            .flatten()
            .find(|attribute| attribute.number == wanted);
        found.map_or(Ok(0), |attribute| attribute.as_u32())
    };
    let mut socket = Listed::of(
        word(number::FAMILY)?,
        word(number::SOCK_TYPE)?,
        word(number::PROTOCOL)?,
    );
    let mut hidden = None;
    for attribute in attributes(payload) {
        let attribute = attribute?;
        match attribute.number {
            number::INODE => socket.inode = attribute.as_u32()?.into(),
            number::COOKIE => socket.cookie = attribute.as_u64()?,
            number::NETNS => socket.netns = attribute.as_u64()?,
            number::HOLDER => socket.holders.push(holder(&attribute)?),
            number::LOCAL => socket.local = address(&attribute)?,
            number::PEER => socket.peer = address(&attribute)?,
            number::RECEIVE_BYTES => socket.receive_bytes = attribute.as_u32()?,
            number::HIDDEN => hidden = Some(attribute.as_u32()?),
            // What a newer service tells besides.
            _ => {}
        }
    }
    Ok((socket, hidden))
}

fn holder(attribute: &Attribute<'_>) -> Result<Holder, ImageError> {
    let numbers: [u8; 12] = attribute.as_array()?;
    let mut numbers = numbers
        .as_chunks()
        .0
        .iter()
        .map(|number| i32::from_ne_bytes(*number));
    let mut next = || numbers.next().unwrap_or(0);
    Ok(Holder {
        pid: next(),
        tid: next(),
        fd: next(),
    })
}

/// struct sockaddr_in, sockaddr_in6.
fn address(attribute: &Attribute<'_>) -> Result<SocketAddr, ImageError> {
    let port = |high, low| u16::from_be_bytes([high, low]);
    match attribute.payload {
        [_, _, high, low, a, b, c, d, ..] if attribute.payload.len() == 16 => {
            Ok(SocketAddrV4::new([*a, *b, *c, *d].into(), port(*high, *low)).into())
        }
        [_, _, high, low, flow @ ..] if attribute.payload.len() == 28 => {
            let (flow, rest) = flow
                .split_first_chunk()
                .ok_or_else(|| attribute.invalid("is no address"))?;
            let (ip, rest) = rest
                .split_first_chunk::<16>()
                .ok_or_else(|| attribute.invalid("is no address"))?;
            let scope = rest
                .first_chunk()
                .ok_or_else(|| attribute.invalid("is no address"))?;
            let (flow, scope) = (u32::from_be_bytes(*flow), u32::from_ne_bytes(*scope));
            Ok(SocketAddrV6::new((*ip).into(), port(*high, *low), flow, scope).into())
        }
        _ => Err(attribute.invalid("is no address")),
    }
}

fn note(attribute: &Attribute<'_>) -> Result<Note, ImageError> {
    let [mut what, mut reason] = [String::new(), String::new()];
    for inner in attribute.nested() {
        let inner = inner?;
        match inner.number {
            number::WHAT => what = inner.as_str()?.into(),
            number::REASON => reason = inner.as_str()?.into(),
            _ => {}
        }
    }
    Ok(Note::new(what, reason))
}

fn feature(payload: &[u8]) -> Result<Feature, Error> {
    let mut feature = Feature {
        what: "".into(),
        missing: None,
        without: "".into(),
    };
    for attribute in attributes(payload) {
        let attribute = attribute?;
        match attribute.number {
            number::WHAT => feature.what = attribute.as_str()?.to_owned().into(),
            number::REASON => feature.missing = Some(attribute.as_str()?.into()),
            number::WITHOUT => feature.without = attribute.as_str()?.to_owned().into(),
            _ => {}
        }
    }
    Ok(feature)
}
