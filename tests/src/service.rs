//! The service, and the bytes that go to it and come from it.

use crate::command::sockcr;
use crate::process::{Process, children};
use crate::wait;
use anyhow::{Context, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    recvmsg, sendmsg, socket_with,
};
use sockcr::Checkpoint;
use sockcr_image::attribute::Writer;
use sockcr_image::file::{self, Message};
use sockcr_image::number;
use sockcr_service::message::{
    Answer, Command, FAMILY, Fault, Header, MAX_MESSAGE, flags, read_answer,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// Where the service of a scenario listens, in its folder.
pub const SOCKET: &str = "service";

/// A service that runs.
#[derive(Debug)]
pub struct Service {
    /// Its first process.
    pub process: Process,
    /// Where it listens.
    pub path: PathBuf,
}

impl Service {
    /// Starts one, and waits until it says that it serves.
    pub fn start() -> anyhow::Result<Service> {
        let folder = std::env::current_dir()?;
        let notified = folder.join("notify");
        let _ = std::fs::remove_file(&notified);
        let notify = UnixDatagram::bind(&notified)?;
        notify.set_read_timeout(Some(wait::PATIENCE))?;
        let command = sockcr(["serve", "--socket", SOCKET, "--log", "debug"]);
        let process = command.variable("NOTIFY_SOCKET", &notified).start()?;
        let mut told = [0; 64];
        let length = notify.recv(&mut told).context("the service says nothing")?;
        ensure!(&told[..length] == b"READY=1\n", "it says {told:?}");
        let path = folder.join(SOCKET);
        Ok(Service { process, path })
    }

    /// A client of it.
    pub fn client(&self) -> anyhow::Result<Raw> {
        Raw::connect(&self.path)
    }

    /// The brokers: its children, one for each client.
    pub fn brokers(&self) -> anyhow::Result<Vec<i32>> {
        children(self.process.pid())
    }

    /// Waits until it has no client.
    pub fn idle(&self) -> anyhow::Result<()> {
        wait::until("a service without clients", || {
            Ok(self.brokers()?.is_empty().then_some(()))
        })
    }
}

/// A connection, over which anything may be sent.
#[derive(Debug)]
pub struct Raw {
    socket: OwnedFd,
    sequence: u32,
}

/// What came of a request.
#[derive(Debug, Default)]
pub struct Told {
    /// The error, if it is one.
    pub fault: Option<Fault>,
    /// Messages of the family: command and attributes.
    pub messages: Vec<(Command, Vec<u8>)>,
    /// The descriptor that came.
    pub fd: Option<OwnedFd>,
}

impl Told {
    /// 0, or what is wrong.
    pub fn errno(&self) -> i32 {
        self.fault.as_ref().map_or(0, |fault| fault.errno)
    }

    /// It must have been done.
    pub fn done(self) -> anyhow::Result<Told> {
        match &self.fault {
            None => Ok(self),
            Some(fault) => bail!("refused: {fault:?}"),
        }
    }

    /// It must have been refused by this error.
    pub fn refused(&self, errno: Errno) -> anyhow::Result<()> {
        let is = self.errno() == errno.raw_os_error() && self.messages.is_empty();
        ensure!(is && self.fd.is_none(), "{errno} was due: {self:?}");
        Ok(())
    }

    /// The sockets of a dump.
    pub fn sockets(&self) -> anyhow::Result<Vec<Checkpoint>> {
        let mut sockets = 0;
        let mut messages = Vec::new();
        for (command, attributes) in &self.messages {
            let command = match command {
                Command::Dump => file::Command::Dump,
                Command::Queue => file::Command::Queue,
                other => bail!("{other:?} in a dump"),
            };
            sockets += u32::from(command == file::Command::Dump);
            messages.push(Message {
                command,
                socket: sockets,
                attributes: attributes.clone(),
            });
        }
        Ok(sockcr::image::decode(&file::encode(&messages)?)?)
    }

    /// The socket of a dump of one, but for what a dump cannot repeat.
    pub fn canonical(&self) -> anyhow::Result<Vec<u8>> {
        let [socket] = &self.sockets()?[..] else {
            bail!("one socket was due");
        };
        Ok(socket.clone().canonical().to_bytes()?)
    }
}

impl Raw {
    /// Connects.
    pub fn connect(path: &Path) -> anyhow::Result<Raw> {
        let (kind, cloexec) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let socket = socket_with(AddressFamily::UNIX, kind, cloexec, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?).context("connect to the service")?;
        Ok(Raw::of(socket))
    }

    /// A connection that somebody has made.
    pub fn of(socket: OwnedFd) -> Raw {
        Raw {
            socket,
            sequence: 1,
        }
    }

    /// Sends bytes, and descriptors beside them.
    pub fn send(&self, packet: &[u8], passed: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.send_with(packet, passed, SendFlags::NOSIGNAL)
    }

    /// The same if there is room.
    pub fn try_send(&self, packet: &[u8]) -> Result<(), Errno> {
        self.send_with(packet, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
    }

    fn send_with(
        &self,
        packet: &[u8],
        passed: &[BorrowedFd<'_>],
        how: SendFlags,
    ) -> Result<(), Errno> {
        // SCM_MAX_FD
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !passed.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(passed)) {
            return Err(Errno::INVAL);
        }
        sendmsg(&self.socket, &[IoSlice::new(packet)], &mut beside, how).map(drop)
    }

    /// The next packet, and a descriptor that came with it; `None`: the service has closed.
    pub fn receive(&mut self) -> anyhow::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        ensure!(
            wait::readable(&self.socket, wait::PATIENCE)?,
            "the service answers nothing"
        );
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let mut room = [IoSliceMut::new(&mut bytes)];
        let length = match recvmsg(&self.socket, &mut room, &mut beside, flags) {
            // It has closed, and not read everything.
            Err(Errno::CONNRESET) => 0,
            told => told?.bytes,
        };
        let rights = beside.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let mut fds: Vec<OwnedFd> = rights.flatten().collect();
        ensure!(fds.len() <= 1, "{} descriptors came", fds.len());
        bytes.truncate(length);
        Ok((length > 0).then(|| (bytes, fds.pop())))
    }

    /// The service must have closed, with nothing more to say.
    pub fn is_closed(&mut self) -> anyhow::Result<()> {
        let more = self.receive()?;
        ensure!(more.is_none(), "there is more: {more:?}");
        Ok(())
    }

    /// Whether the service has closed, or has anything to say.
    pub fn has_something(&self, time: std::time::Duration) -> anyhow::Result<bool> {
        wait::readable(&self.socket, time)
    }

    /// Whether the other end has closed.
    pub fn hung_up(&self) -> anyhow::Result<bool> {
        let mut wait = [PollFd::new(&self.socket, PollFlags::empty())];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        Ok(poll(&mut wait, Some(&now))? > 0 && wait[0].revents().contains(PollFlags::HUP))
    }

    /// The number of the next request.
    pub fn begin(&mut self) -> Header {
        self.sequence += 1;
        header(self.sequence)
    }

    /// The number of the request that is answered next.
    pub fn next_is(&mut self, sequence: u32) {
        self.sequence = sequence;
    }

    /// Takes what there is, whatever it is.
    pub fn drain(&self) {
        let mut bytes = [0; 512];
        let flags = RecvFlags::DONTWAIT;
        while recv(&self.socket, &mut bytes, flags).is_ok_and(|(_, length)| length > 0) {}
    }

    /// The whole answer to the last request; `None`: the service closed before its end.
    pub fn answer(&mut self) -> anyhow::Result<Option<Told>> {
        let mut told = Told::default();
        while let Some((packet, fd)) = self.receive()? {
            let (header, answer) = read_answer(&packet).context("no answer")?;
            let single = header.flags & flags::MULTI == 0;
            ensure!(
                header.sequence == self.sequence || header.sequence == 0,
                "another answer: {header:?}"
            );
            match answer {
                Answer::Message(command, attributes) => {
                    told.messages.push((command, attributes.to_vec()));
                    told.fd = fd.or(told.fd);
                    if single {
                        return Ok(Some(told));
                    }
                }
                Answer::Controller(..) | Answer::Done | Answer::Ack => return Ok(Some(told)),
                Answer::Error(fault) => {
                    // What came before is to be thrown away.
                    return Ok(Some(Told {
                        fault: Some(fault),
                        ..Told::default()
                    }));
                }
            }
        }
        Ok(None)
    }

    /// Asks, and has the whole answer.
    pub fn ask(
        &mut self,
        command: Command,
        attributes: &[u8],
        passed: &[BorrowedFd<'_>],
    ) -> anyhow::Result<Told> {
        let packet = self.begin().family(command, flags::REQUEST, attributes);
        match self.send(&packet, passed) {
            // What it said before it closed can be read.
            Ok(()) | Err(Errno::PIPE) => self.answer()?.context("the service has closed"),
            Err(error) => Err(error.into()),
        }
    }

    /// DUMP by INODE.
    pub fn dump_inode(&mut self, inode: u64) -> anyhow::Result<Told> {
        self.ask(Command::Dump, &by_inode(inode)?, &[])
    }

    /// DUMP by TARGET.
    pub fn dump_target(&mut self, target: &str) -> anyhow::Result<Told> {
        let mut writer = Writer::new();
        writer.str(number::TARGET, target)?;
        self.ask(Command::Dump, &writer.finish(), &[])
    }

    /// DUMP by PASSED.
    pub fn dump_passed(&mut self, socket: &impl AsFd) -> anyhow::Result<Told> {
        let mut writer = Writer::new();
        writer.flag(number::PASSED)?;
        self.ask(Command::Dump, &writer.finish(), &[socket.as_fd()])
    }

    /// RESTORE.
    pub fn restore(&mut self, socket: &Checkpoint) -> anyhow::Result<Told> {
        for packet in restore(&self.begin(), socket)? {
            self.send(&packet, &[])?;
        }
        self.answer()?.context("the service has closed")
    }

    /// METRICS: a figure of the service.
    pub fn figure(&mut self, name: &str) -> anyhow::Result<u64> {
        let told = self.ask(Command::Metrics, &[], &[])?.done()?;
        let (_, attributes) = told.messages.first().context("no text")?;
        let text = sockcr_image::attribute::attributes(attributes).next();
        let text = text.context("no text")??.as_str()?.to_owned();
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(have, _)| *have == name);
        let (_, value) = found.with_context(|| format!("no {name} in {text}"))?;
        value.parse().with_context(|| format!("{name} {value}"))
    }
}

impl AsFd for Raw {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The header of a request with this number.
pub fn header(sequence: u32) -> Header {
    Header {
        length: 0,
        kind: FAMILY,
        flags: 0,
        sequence,
        port: 0,
    }
}

/// The attribute that names a socket by its inode.
pub fn by_inode(inode: u64) -> anyhow::Result<Vec<u8>> {
    let mut writer = Writer::new();
    writer.u32(number::INODE, inode.try_into()?)?;
    Ok(writer.finish())
}

/// The packets that restore a socket.
pub fn restore(header: &Header, socket: &Checkpoint) -> anyhow::Result<Vec<Vec<u8>>> {
    let messages = sockcr::image::messages(socket, 1)?;
    let packets = messages.iter().map(|message| {
        let command = match message.command {
            file::Command::Queue => Command::Queue,
            _ => Command::Restore,
        };
        header.family(command, flags::REQUEST, &message.attributes)
    });
    Ok(packets.chain([header.done()]).collect())
}
