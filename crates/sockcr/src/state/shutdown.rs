//! What shutdown(2) has closed.

use crate::kernel::Hidden;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::Shutdown as How;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

/// Which directions are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shutdown {
    /// `RCV_SHUTDOWN`: reading answers end of file.
    pub receive: bool,
    /// `SEND_SHUTDOWN`: sending answers EPIPE.
    pub send: bool,
}

impl fmt::Display for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.receive, self.send) {
            (false, false) => "none",
            (true, false) => "receiving",
            (false, true) => "sending",
            (true, true) => "receiving and sending",
        })
    }
}

impl Shutdown {
    /// From `sock.sk_shutdown`; without BPF from what poll(2) tells, which does not know of a
    /// closed send side alone (`datagram_poll`, net/core/datagram.c).
    pub(crate) fn dump(fd: BorrowedFd<'_>, hidden: Option<&Hidden>) -> io::Result<Shutdown> {
        if let Some(hidden) = hidden {
            return Ok(Shutdown::from_bits(hidden.shutdown));
        }
        let events = poll_now(fd)?;
        Ok(Shutdown {
            receive: events.contains(PollFlags::RDHUP),
            send: events.contains(PollFlags::HUP),
        })
    }

    /// Bit 0 receive, bit 1 send, as in the kernel.
    pub(crate) fn from_bits(bits: u8) -> Shutdown {
        Shutdown {
            receive: bits & 1 != 0,
            send: bits & 2 != 0,
        }
    }

    pub(crate) fn bits(self) -> u8 {
        u8::from(self.receive) | u8::from(self.send) << 1
    }

    /// Closes them. `inet_shutdown` answers ENOTCONN for an unconnected socket, and does it all
    /// the same.
    pub(crate) fn restore(self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let how = match (self.receive, self.send) {
            (false, false) => return Ok(()),
            (true, false) => How::Read,
            (false, true) => How::Write,
            (true, true) => How::Both,
        };
        match rustix::net::shutdown(fd, how) {
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What poll(2) says at once; it consumes nothing, no error either.
pub(crate) fn poll_now(fd: BorrowedFd<'_>) -> io::Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(
        fd,
        PollFlags::IN | PollFlags::RDHUP,
    )];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&now))?;
    Ok(fds[0].revents())
}
