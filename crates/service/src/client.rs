//! A client of the service.

use crate::message::{
    self, Answer, Command, FAMILY_NAME, Fault, Header, MAX_MESSAGE, controller, flags, read_answer,
};
use crate::packet::{Receiver, send};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};
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
    /// `None`: it is one of the controller.
    command: Option<Command>,
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
        retry_on_intr(|| connect(&socket, &address)).map_err(failed)?;
        let mut client = Client {
            socket,
            sequence: 0,
            receiver: Receiver::default(),
        };
        client.find_family()?;
        Ok(client)
    }

    /// Asks the controller for the family, which has to have the number that we know.
    fn find_family(&mut self) -> Result<(), Error> {
        let mut writer = Writer::new();
        writer.put(
            controller::FAMILY_NAME,
            format!("{FAMILY_NAME}\0").as_bytes(),
        )?;
        let header = self.next();
        let packet = header.controller(controller::GET_FAMILY, flags::REQUEST, &writer.finish());
        self.send_whole(&packet, &[])?;
        let family = self.single(None)?;
        for attribute in attributes(&family.attributes) {
            let attribute = attribute?;
            if attribute.number == controller::FAMILY_ID {
                return match attribute.as_array().map(u16::from_ne_bytes)? {
                    message::FAMILY => Ok(()),
                    _ => Err(broken(
                        "its family has a number that this version does not know",
                    )),
                };
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
        let wanted = [Command::Dump, Command::Queue, Command::List];
        for part in self.several(&wanted)? {
            let command = match part.command {
                Some(Command::List) => {
                    dumped.left_out.push(listed(&part.attributes)?.0);
                    continue;
                }
                Some(Command::Queue) => file::Command::Queue,
                _ => file::Command::Dump,
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
        let header = self.next();
        let sent = match self.send_restore(&header, &messages, &how(lossy, alone)?) {
            Err(error) if !has_left(&error) => {
                // It would wait for the rest.
                let _ = shutdown(&self.socket, Shutdown::Both);
                return Err(error);
            }
            sent => sent,
        };
        // Why it has left waits to be read.
        let answer = match self.single(Some(Command::Restore)) {
            Ok(answer) => answer,
            Err(error) => return Err(sent.err().filter(|_| is_closed(&error)).unwrap_or(error)),
        };
        let fd = answer
            .descriptor
            .ok_or_else(|| broken("not one descriptor came with its answer"))?;
        let mut report = Report::default();
        for attribute in attributes(&answer.attributes) {
            let attribute = attribute?;
            if attribute.number == number::NOT_CARRIED {
                report.not_carried.push(note(&attribute)?);
            }
        }
        Ok(Restored { fd, report })
    }

    /// The messages of one socket, and their end: only behind all of them, as it would make a socket of some.
    fn send_restore(&self, header: &Header, messages: &[Message], how: &[u8]) -> Result<(), Error> {
        for message in messages {
            let packet = match message.command {
                file::Command::Queue => {
                    header.family(Command::Queue, flags::REQUEST, &message.attributes)
                }
                _ => {
                    let attributes = [&message.attributes, how].concat();
                    header.family(Command::Restore, flags::REQUEST, &attributes)
                }
            };
            self.send(&packet, &[])?;
        }
        self.send(&header.done(), &[])
    }

    /// The sockets in our network namespace that we may dump, perhaps of one process only.
    pub fn list(&mut self, process: Option<i32>) -> Result<Listing, Error> {
        let mut writer = Writer::new();
        if let Some(process) = process {
            writer.str(number::TARGET, &process.to_string())?;
        }
        self.ask(Command::List, &writer.finish(), &[])?;
        let mut listing = Listing::default();
        for part in self.several(&[Command::List])? {
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
        let parts = self.several(&[Command::Check])?;
        parts.iter().map(|part| feature(&part.attributes)).collect()
    }

    /// How the service fares, as Prometheus reads it.
    pub fn metrics(&mut self) -> Result<String, Error> {
        self.ask(Command::Metrics, &[], &[])?;
        let answer = self.single(Some(Command::Metrics))?;
        let mut all = attributes(&answer.attributes);
        let text = all.find_map(|attribute| match attribute {
            Ok(attribute) if attribute.number == number::TEXT => Some(attribute.as_str()),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        let text = text.ok_or_else(|| broken("its figures have no text"))?;
        Ok(text?.to_owned())
    }

    /// The header of the next request. 0 is of none: the service turns away with it.
    fn next(&mut self) -> Header {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        Header {
            length: 0,
            kind: message::FAMILY,
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
        let packet = self.next().family(command, flags::REQUEST, attributes);
        self.send_whole(&packet, passed)
    }

    /// A request in one packet. If the service has left, why waits to be read where its answer would come.
    fn send_whole(&self, packet: &[u8], passed: &[BorrowedFd<'_>]) -> Result<(), Error> {
        match self.send(packet, passed) {
            Err(error) if has_left(&error) => Ok(()),
            sent => sent,
        }
    }

    fn send(&self, packet: &[u8], passed: &[BorrowedFd<'_>]) -> Result<(), Error> {
        if packet.len() > MAX_MESSAGE {
            let why = format!(
                "a message would have {} bytes, and may have {MAX_MESSAGE}",
                packet.len()
            );
            return Err(Error::new(ErrorKind::Refused, "service", why));
        }
        loop {
            match send(self.socket.as_fd(), packet, passed) {
                // Nothing of it has gone out: it is one packet.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                sent => {
                    return sent.map_err(|error| Error::system("service: send a request", error));
                }
            }
        }
    }

    /// The messages of an answer that NLMSG_DONE ends, which are of these commands.
    fn several(&mut self, wanted: &[Command]) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        let mut size = 0;
        while let Some(mut part) = self.part()? {
            if !part
                .command
                .is_some_and(|command| wanted.contains(&command))
            {
                return Err(unasked());
            }
            // None has a descriptor; many would be all that we may have.
            part.descriptor = None;
            size += size_of::<Part>() + message::FAMILY_HEADER + part.attributes.len();
            if size as u64 > image::MAX_IMAGE {
                return Err(broken("its answer is larger than any image"));
            }
            parts.push(part);
        }
        Ok(parts)
    }

    fn single(&mut self, wanted: Option<Command>) -> Result<Part, Error> {
        let part = self.part()?.ok_or_else(|| broken("its answer is empty"))?;
        match part.command == wanted {
            true => Ok(part),
            false => Err(unasked()),
        }
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
            Answer::Done => return Ok(None),
            // We want none: it would pass for the end of several.
            Answer::Ack => return Err(unasked()),
            Answer::Error(fault) => return Err(told(fault)),
            Answer::Message(command, attributes) => (Some(command), attributes),
            Answer::Controller(controller::NEW_FAMILY, attributes) => (None, attributes),
            Answer::Controller(..) => return Err(unasked()),
        };
        Ok(Some(Part {
            command,
            attributes: attributes.to_vec(),
            descriptor: packet.descriptor(),
        }))
    }
}

fn has_kind(error: &Error, kinds: &[io::ErrorKind]) -> bool {
    use std::error::Error as _;
    let source = error.source().and_then(|source| source.downcast_ref());
    source.is_some_and(|source: &io::Error| kinds.contains(&source.kind()))
}

/// Whether there is nothing more to be read.
fn is_closed(error: &Error) -> bool {
    has_kind(error, &[io::ErrorKind::UnexpectedEof])
}

/// Whether nobody reads what is sent.
fn has_left(error: &Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    has_kind(error, &[BrokenPipe, ConnectionReset])
}

fn unasked() -> Error {
    broken("it answers what was not asked")
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
    // `Errno` panics of any other number.
    let known = (1..4096).contains(&fault.errno);
    let kind = match known.then(|| Errno::from_raw_os_error(fault.errno)) {
        Some(Errno::NOENT) => ErrorKind::NotFound,
        Some(Errno::NOTSOCK) => ErrorKind::NotASocket,
        Some(Errno::NOSYS) => ErrorKind::NotSupported,
        Some(Errno::PERM | Errno::ACCESS) => ErrorKind::NotPermitted,
        Some(Errno::INVAL) => ErrorKind::BadInput,
        Some(Errno::OPNOTSUPP) => ErrorKind::Refused,
        _ => ErrorKind::System,
    };
    let source = || io::Error::from_raw_os_error(fault.errno);
    let told = match fault.text.is_empty() {
        true => Error::system("service", source()).to_string(),
        false => fault.text,
    };
    let (text, help) = match told.split_once("\nhelp: ") {
        Some((text, help)) => (text, Some(help)),
        None => (&told[..], None),
    };
    let (what, why) = text.split_once(": ").unwrap_or(("service", text));
    let mut error = Error::new(kind, what, why);
    if matches!(kind, ErrorKind::System | ErrorKind::NotPermitted) {
        error = error.because(source());
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

#[cfg(test)]
mod tests;
