//! The flags of the descriptor and of its open file.

use crate::report::Report;
use sockcr_sys::descriptor as sys;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

const O_NONBLOCK: i32 = 0o4000;
const O_ASYNC: i32 = 0o20000;

/// Who gets SIGIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// Nobody.
    #[default]
    Nobody,
    /// The process that holds the socket, whichever it is after a restore.
    Holder,
    /// The process with this pid.
    Process(i32),
    /// The thread with this id.
    Thread(i32),
    /// The process group with this id.
    Group(i32),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Nobody => write!(f, "nobody"),
            Owner::Holder => write!(f, "the process itself"),
            Owner::Process(id) => write!(f, "process {id}"),
            Owner::Thread(id) => write!(f, "thread {id}"),
            Owner::Group(id) => write!(f, "process group {id}"),
        }
    }
}

impl Owner {
    /// (kind, id) as an image holds it.
    pub(crate) fn to_numbers(self) -> (u32, i32) {
        match self {
            Owner::Nobody => (0, 0),
            Owner::Holder => (1, 0),
            Owner::Process(id) => (2, id),
            Owner::Thread(id) => (3, id),
            Owner::Group(id) => (4, id),
        }
    }

    /// The inverse of [`Owner::to_numbers`].
    pub(crate) fn from_numbers(kind: u32, id: i32) -> Option<Owner> {
        match (kind, id) {
            (0, 0) => Some(Owner::Nobody),
            (1, 0) => Some(Owner::Holder),
            (2, id) => Some(Owner::Process(id)),
            (3, id) => Some(Owner::Thread(id)),
            (4, id) => Some(Owner::Group(id)),
            _ => None,
        }
    }
}

/// What fcntl(2) knows of a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// O_NONBLOCK
    pub nonblock: bool,
    /// O_ASYNC
    pub asynchronous: bool,
    /// FD_CLOEXEC
    pub close_on_exec: bool,
    /// F_GETOWN_EX
    pub owner: Owner,
    /// F_GETSIG; 0 is SIGIO.
    pub signal: i32,
}

impl Descriptor {
    /// Reads the flags of a socket that the process `holder`, or this one, has open, there with
    /// `close_on_exec`.
    pub(crate) fn dump(
        fd: BorrowedFd<'_>,
        holder: Option<i32>,
        close_on_exec: bool,
    ) -> io::Result<Descriptor> {
        let flags = sys::status_flags(fd)?;
        let owner = match sys::owner(fd)? {
            (_, 0) => Owner::Nobody,
            (sys::OWNER_THREAD, id) => Owner::Thread(id),
            (sys::OWNER_GROUP, id) => Owner::Group(id),
            (_, id) if id == holder.unwrap_or_else(|| std::process::id() as i32) => Owner::Holder,
            (_, id) => Owner::Process(id),
        };
        Ok(Descriptor {
            nonblock: flags & O_NONBLOCK != 0,
            asynchronous: flags & O_ASYNC != 0,
            close_on_exec,
            owner,
            signal: sys::signal(fd)?,
        })
    }

    /// Writes them on a new socket, whose descriptor is close-on-exec and has no other flag; each
    /// that fails is told by itself.
    ///
    /// An owner other than the holder is not restored: its number names whoever has it here now,
    /// and a signal would reach them.
    pub(crate) fn restore(&self, fd: BorrowedFd<'_>, report: &mut Report) {
        let mut step = |what: &str, done: io::Result<()>| {
            if let Err(error) = done {
                report.lose(what, crate::error::reason(&error));
            }
        };
        step("O_NONBLOCK, O_ASYNC", self.restore_status(fd));
        if !self.close_on_exec {
            step("close-on-exec off", sys::set_close_on_exec(fd, false));
        }
        if self.signal != 0 {
            step("signal", sys::set_signal(fd, self.signal));
        }
        match self.owner {
            Owner::Nobody => {}
            Owner::Holder => {
                let pid = std::process::id() as i32;
                step("owner", sys::set_owner(fd, sys::OWNER_PROCESS, pid));
            }
            other => report.lose("owner", format!("{other} where it was dumped")),
        }
    }

    fn restore_status(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let nonblock = if self.nonblock { O_NONBLOCK } else { 0 };
        let asynchronous = if self.asynchronous { O_ASYNC } else { 0 };
        match nonblock | asynchronous {
            0 => Ok(()),
            flags => sys::set_status_flags(fd, sys::status_flags(fd)? | flags),
        }
    }

    /// Bits 0 to 2 as an image holds them.
    pub(crate) fn bits(&self) -> u32 {
        u32::from(self.nonblock)
            | u32::from(self.asynchronous) << 1
            | u32::from(self.close_on_exec) << 2
    }

    pub(crate) fn set_bits(&mut self, bits: u32) {
        self.nonblock = bits & 1 != 0;
        self.asynchronous = bits & 2 != 0;
        self.close_on_exec = bits & 4 != 0;
    }
}
