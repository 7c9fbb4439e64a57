//! A client that is served: who it is, what it may in general, and the connection to it.

use crate::message::{Command, Header};
use crate::metrics::{Counter, Metrics};
use crate::packet::{send, send_all};
use crate::peer::{self, Peer};
use crate::policy::{Act, Standing, Verdict, judge};
use crate::request::Request;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sockcr::{Error, ErrorKind, netns};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A client, and what it may.
#[derive(Debug)]
pub struct Session {
    /// Who it is.
    pub peer: Peer,
    /// The connection to it.
    pub connection: OwnedFd,
    /// The figures of the service.
    pub metrics: Metrics,
    /// SO_NETNS_COOKIE of its network namespace, in which this process is.
    pub here: u64,
    /// Whether it administers that.
    pub administers: bool,
    /// Whether it may send there whatever it likes.
    pub sends: bool,
    /// Whether it may have the figures.
    pub may_see_figures: bool,
}

/// The header of an answer to nothing.
pub fn nothing() -> Header {
    Header {
        length: 0,
        kind: 0,
        flags: 0,
        sequence: 0,
        port: 0,
    }
}

/// The errno and the words of an error.
pub fn fault(error: &Error) -> (i32, String) {
    use std::error::Error as _;
    let source = error.source().and_then(|source| source.downcast_ref());
    let errno = source.and_then(Errno::from_io_error);
    let errno = match error.kind() {
        ErrorKind::NotFound => Errno::NOENT,
        ErrorKind::NotASocket => Errno::NOTSOCK,
        ErrorKind::NotSupported => Errno::NOSYS,
        ErrorKind::NotPermitted => errno.unwrap_or(Errno::PERM),
        ErrorKind::BadInput => Errno::INVAL,
        ErrorKind::Refused => Errno::OPNOTSUPP,
        _ => errno.unwrap_or(Errno::IO),
    };
    let text = match error.next_step() {
        Some(help) => format!("{error}\nhelp: {help}"),
        None => error.to_string(),
    };
    (errno.raw_os_error(), text)
}

impl Session {
    /// Sees who has connected, and enters its network namespace. `service` is that of the service.
    pub fn new(
        connection: OwnedFd,
        metrics: Metrics,
        service: BorrowedFd<'_>,
    ) -> Result<Session, Error> {
        let peer = Peer::of(connection.as_fd())?;
        let failed = |what: &'static str| move |error| Error::system(what, error);
        let judged = failed("judge the capabilities of the client");
        let administers = peer.administers(peer.network.as_fd()).map_err(judged)?;
        let sends = peer.sends_in(peer.network.as_fd()).map_err(judged)?;
        let own = rustix::process::geteuid().as_raw() == peer.user;
        let may_see_figures = match (own, peer.administers(service).map_err(judged)?) {
            (_, true) => Standing::Administrator,
            (true, _) => Standing::Owner,
            _ => Standing::Stranger,
        };
        let same = peer::id(service).and_then(|id| Ok(id == peer::id(peer.network.as_fd())?));
        if !same.map_err(judged)? {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(peer.network.as_fd(), kind).map_err(|error| {
                Error::system("enter the network namespace of the client", error.into())
            })?;
        }
        Ok(Session {
            peer,
            connection,
            metrics,
            here: netns::own_cookie().map_err(failed("ask for the network namespace"))?,
            administers,
            sends,
            may_see_figures: judge(Act::Metrics, may_see_figures) == Verdict::Allowed,
        })
    }

    /// Sends a message, and descriptors beside it.
    pub fn send(&self, packet: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.connection.as_fd(), packet, passed)?;
        self.metrics.add(Counter::Sent, packet.len() as u64);
        Ok(())
    }

    /// Sends messages, in order.
    pub fn send_all(&self, packets: &[Vec<u8>]) -> io::Result<()> {
        send_all(self.connection.as_fd(), packets)?;
        let sent: usize = packets.iter().map(Vec::len).sum();
        self.metrics.add(Counter::Sent, sent as u64);
        Ok(())
    }

    /// Tells an error.
    pub fn refuse(
        &self,
        request: &Request,
        errno: i32,
        text: &str,
        offset: Option<u32>,
    ) -> io::Result<()> {
        self.send(&request.header.error(errno, text, offset), &[])
    }

    /// Answers with a descriptor.
    pub fn give(&self, request: &Request, attributes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let header = &request.header;
        self.send(&header.family(Command::Restore, 0, attributes), &[fd])?;
        self.acknowledge(header)
    }

    fn acknowledge(&self, header: &Header) -> io::Result<()> {
        match header.wants_ack() {
            true => self.send(&header.ack(), &[]),
            false => Ok(()),
        }
    }
}
