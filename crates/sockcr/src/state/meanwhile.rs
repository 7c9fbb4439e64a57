//! Options of a new socket that are otherwise while something is put into it.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use sockcr_sys::sockopt;

const SOL_SOCKET: i32 = 1;
const SO_BUF_LOCK: i32 = 72;

/// A buffer of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffer {
    /// SO_SNDBUF
    Send,
    /// SO_RCVBUF
    Receive,
}

impl Buffer {
    /// The option, and the one that no sysctl limits.
    fn numbers(self) -> (i32, i32) {
        match self {
            Buffer::Send => (7, 32),
            Buffer::Receive => (8, 33),
        }
    }
}

/// What options were before, to be put back.
#[derive(Debug)]
pub(crate) struct Meanwhile<'a> {
    fd: BorrowedFd<'a>,
    before: Vec<(i32, i32, i32)>,
    buffers: Vec<(Buffer, i32)>,
    locks: i32,
}

impl<'a> Meanwhile<'a> {
    /// Nothing is otherwise yet.
    pub(crate) fn new(fd: BorrowedFd<'a>) -> Self {
        Self {
            fd,
            before: Vec::new(),
            buffers: Vec::new(),
            locks: 0,
        }
    }

    /// Remembers an option, which the kernel changes by itself.
    pub(crate) fn keep(&mut self, level: i32, name: i32) -> io::Result<i32> {
        let value = get(self.fd, level, name)?;
        self.before.push((level, name, value));
        Ok(value)
    }

    /// Sets an option, if it is not so already.
    pub(crate) fn set(&mut self, level: i32, name: i32, value: i32) -> io::Result<()> {
        match self.keep(level, name)? == value {
            true => Ok(()),
            false => set(self.fd, level, name, value),
        }
    }

    /// Gives a buffer so much room, or what may be had (CAP_NET_ADMIN of the initial user namespace
    /// for more than the sysctl).
    pub(crate) fn room(&mut self, buffer: Buffer, bytes: i32) -> io::Result<()> {
        let (name, force) = buffer.numbers();
        if self.buffers.is_empty() {
            self.locks = get(self.fd, SOL_SOCKET, SO_BUF_LOCK)?;
        }
        self.buffers.push((buffer, get(self.fd, SOL_SOCKET, name)?));
        self.size(name, force, bytes)
    }

    fn size(&self, name: i32, force: i32, bytes: i32) -> io::Result<()> {
        match set(self.fd, SOL_SOCKET, force, bytes) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                set(self.fd, SOL_SOCKET, name, bytes)
            }
            done => done,
        }
    }

    /// Puts all back, what was set last first. Setting a buffer sets its lock, so the locks follow.
    /// What fails hinders nothing else; the first error is answered.
    pub(crate) fn put_back(&self) -> io::Result<()> {
        let mut done = Ok(());
        for (buffer, value) in &self.buffers {
            let (name, force) = buffer.numbers();
            done = done.and(self.size(name, force, value / 2));
        }
        if !self.buffers.is_empty() {
            done = done.and(set(self.fd, SOL_SOCKET, SO_BUF_LOCK, self.locks));
        }
        for (level, name, value) in self.before.iter().rev() {
            if get(self.fd, *level, *name).ok() != Some(*value) {
                done = done.and(set(self.fd, *level, *name, *value));
            }
        }
        done
    }
}

pub(crate) fn get(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    sockopt::get(fd, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

pub(crate) fn set(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    sockopt::set(fd, level, name, &value.to_ne_bytes())
}
