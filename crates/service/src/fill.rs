//! What a child that has become the client says to its broker: what has come of its task, and before that, which
//! datagrams and errors are to be put into the socket that it restores, for which it has not the rights.

use crate::packet::{Receiver, decode, encode, send};
use crate::parser::in_memory;
use crate::request::MAX_RESTORE;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sockcr::check::Feature;
use sockcr::kernel::inject::{Datagram, Fill, Injected, Injector, Notice};
use sockcr::netns;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What a child says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// Something is to be put into the socket beside it; what, is in the file in memory beside it.
    Wish,
    /// The socket beside it was restored; the attributes of the answer.
    Restored(Vec<u8>),
    /// What can be done as the client.
    Able(Vec<Feature>),
    /// errno, and words.
    Failed(i32, String),
}

/// What is asked for, of the socket whose descriptor is beside it.
#[derive(Debug, Serialize, Deserialize)]
enum Wish<'a> {
    Inject(#[serde(borrow)] Vec<Datagram<'a>>),
    Notify(u16, #[serde(borrow)] Notice<'a>),
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
enum Done {
    Injected(Injected),
    Notified,
    /// errno, and words.
    Failed(Option<i32>, String),
}

/// The restorer's end.
#[derive(Debug)]
pub struct Remote(pub OwnedFd);

impl Remote {
    fn ask(&self, socket: BorrowedFd<'_>, wish: &Wish<'_>) -> io::Result<Done> {
        let file = in_memory(&encode(wish)?)?;
        send(
            self.0.as_fd(),
            &encode(&Said::Wish)?,
            &[socket, file.as_fd()],
        )?;
        let mut receiver = Receiver::default();
        let answer = receiver.receive(self.0.as_fd())?.descriptor();
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        match decode(&content(answer)?)? {
            Done::Failed(errno, text) => Err(Foreign::error(errno, text)),
            done => Ok(done),
        }
    }
}

impl Fill for Remote {
    fn inject(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: &[Datagram<'_>],
    ) -> io::Result<Injected> {
        match self.ask(socket, &Wish::Inject(datagrams.to_vec()))? {
            Done::Injected(injected) => Ok(injected),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn notify(&mut self, socket: BorrowedFd<'_>, port: u16, notice: &Notice<'_>) -> io::Result<()> {
        match self.ask(socket, &Wish::Notify(port, *notice))? {
            Done::Notified => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// An error of the broker, in its words.
#[derive(Debug)]
struct Foreign(String);

impl Foreign {
    fn error(errno: Option<i32>, text: String) -> io::Error {
        let kind = errno.map_or(io::ErrorKind::Other, |errno| {
            io::Error::from_raw_os_error(errno).kind()
        });
        io::Error::new(kind, Foreign(text))
    }
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Foreign {}

/// Answers a wish, by a file in memory of our own.
pub fn answer(
    line: BorrowedFd<'_>,
    beside: Vec<OwnedFd>,
    injector: &mut Option<Injector>,
) -> io::Result<()> {
    let done = match fulfil(beside, injector) {
        Ok(done) => done,
        Err(error) => {
            let errno = Errno::from_io_error(&error).map(Errno::raw_os_error);
            Done::Failed(errno, error.to_string())
        }
    };
    let file = in_memory(&encode(&done)?)?;
    send(line, b"!", &[file.as_fd()])
}

fn fulfil(beside: Vec<OwnedFd>, injector: &mut Option<Injector>) -> io::Result<Done> {
    let [socket, file] =
        <[OwnedFd; 2]>::try_from(beside).map_err(|_| io::ErrorKind::InvalidInput)?;
    let raw = content(file)?;
    // The injector is of the client's network namespace: a packet of it must meet a socket there.
    if netns::cookie(socket.as_fd())? != netns::own_cookie()? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let wish: Wish<'_> = postcard::from_bytes(&raw).map_err(io::Error::other)?;
    let injector = match injector {
        Some(injector) => injector,
        empty => empty.insert(Injector::new()?),
    };
    match wish {
        Wish::Inject(datagrams) => injector
            .inject(socket.as_fd(), &datagrams)
            .map(Done::Injected),
        Wish::Notify(port, notice) => injector
            .notify(socket.as_fd(), port, &notice)
            .map(|()| Done::Notified),
    }
}

/// What is in a file in memory, from its beginning. Any other file could keep who reads it waiting: only those in
/// memory have seals.
pub fn content(file: OwnedFd) -> io::Result<Vec<u8>> {
    let most = MAX_RESTORE as u64 * 2;
    rustix::fs::fcntl_get_seals(&file)?;
    let mut file = std::fs::File::from(file);
    file.seek(SeekFrom::Start(0))?;
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content)?;
    match content.len() as u64 > most {
        true => Err(Errno::MSGSIZE.into()),
        false => Ok(content),
    }
}
