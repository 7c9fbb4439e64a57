//! Options of a socket that others use too, changed for a moment or all together, and put back in any
//! other case.
//!
//! The options of a socket outlive whoever changed them. So a child process that does nothing else
//! holds the sockets and one end of a connection to us: when we end, it puts the options back. It is in a
//! session of its own and blocks every signal, so that what is meant for us (Ctrl-C, a SIGKILL for the
//! process group) does not end it; it holds no other descriptor. Only who kills both prevents it: a
//! control group that is killed, or a PID namespace whose first process is.

use crate::child::Child;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// One option as it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Its level.
    pub level: i32,
    /// Its number.
    pub name: i32,
    /// Its value.
    pub value: Vec<u8>,
    /// The error that says that it is so already.
    pub already: Option<i32>,
}

impl Step {
    /// Sets the option; the error of setsockopt(2), but for the one that says that it is so already.
    pub fn take(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match crate::sockopt::set(fd, self.level, self.name, &self.value) {
            Err(error) if self.already.is_some() && error.raw_os_error() == self.already => Ok(()),
            taken => taken,
        }
    }

    /// Becomes the step to what the option is now; on an error it stays what it is.
    pub(crate) fn renew(&mut self, fd: BorrowedFd<'_>) {
        let _ = crate::sockopt::get(fd, self.level, self.name, &mut self.value);
    }

    /// An option of four bytes as it is now.
    pub fn now(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<Step> {
        let mut value = vec![0; 4];
        crate::sockopt::get(fd, level, name, &mut value)?;
        Ok(Step {
            level,
            name,
            value,
            already: None,
        })
    }
}

/// Puts options back, step by step, when it is dropped, or when this process ends.
#[derive(Debug)]
pub struct Guard<'a> {
    saved: Saved<'a>,
    child: Child,
    line: OwnedFd,
    done: bool,
}

#[derive(Debug)]
struct Saved<'a> {
    steps: Vec<(BorrowedFd<'a>, Step)>,
    /// What the child keeps open, in order.
    kept: Vec<RawFd>,
}

impl Saved<'_> {
    /// Takes every step; answers the first error.
    fn put_back(&self) -> io::Result<()> {
        let mut done = Ok(());
        for (fd, step) in &self.steps {
            done = done.and(step.take(*fd));
        }
        done
    }
}

impl<'a> Guard<'a> {
    /// From here on what these steps put back may be changed.
    pub fn new(steps: Vec<(BorrowedFd<'a>, Step)>) -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
        let (line, far) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let sockets = steps.iter().map(|(fd, _)| fd.as_raw_fd());
        let mut kept: Vec<RawFd> = sockets.chain([far.as_raw_fd()]).collect();
        kept.sort_unstable();
        kept.dedup();
        let saved = Saved { steps, kept };
        let child = Child::start(&line, &saved.kept, || watch(&saved, &far))?;
        drop(far);
        let guard = Self {
            saved,
            child,
            line,
            done: false,
        };
        guard.await_ready()?;
        Ok(guard)
    }

    fn await_ready(&self) -> io::Result<()> {
        let mut byte = [0];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.line, &mut byte))? {
            0 => Err(io::Error::other("the process that would undo it ended")),
            _ => Ok(()),
        }
    }

    /// Puts the options back as they were.
    pub fn put_back(mut self) -> io::Result<()> {
        self.finish(true)
    }

    /// Leaves them as they are now.
    pub fn keep(mut self) -> io::Result<()> {
        self.finish(false)
    }

    /// The child goes only when the options are as they should be; told so, it leaves them alone:
    /// their owner may change them.
    fn finish(&mut self, undoes: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.done, true) {
            return Ok(());
        }
        let put_back = match undoes {
            true => self.saved.put_back(),
            false => Ok(()),
        };
        let told = rustix::net::send(&self.line, &[1], rustix::net::SendFlags::NOSIGNAL);
        // Of a child that is gone already, only its end is left to be collected.
        let gone = told.is_ok() || told == Err(rustix::io::Errno::PIPE);
        if gone {
            self.child.collect()?;
        }
        put_back
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Whoever wants to hear of an error calls `put_back`.
        let _ = self.finish(true);
    }
}

/// What the child does: says that it is there, and waits for a word or the end of the other side.
fn watch(saved: &Saved<'_>, far: &OwnedFd) {
    let mut byte = [1_u8];
    // Nobody is there to hear of an error; the end of the other side is told by the read.
    let _ = rustix::net::send(far, &byte, rustix::net::SendFlags::NOSIGNAL);
    let told = rustix::io::retry_on_intr(|| rustix::io::read(far, &mut byte));
    if told.unwrap_or(0) == 0 {
        // The process ends with it: there is nobody to hear of an error.
        let _ = saved.put_back();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    const SO_PEEK_OFF: i32 = 42;

    fn position(socket: &UdpSocket) -> io::Result<i32> {
        let mut value = [0; 4];
        crate::sockopt::get(socket.as_fd(), libc::SOL_SOCKET, SO_PEEK_OFF, &mut value)?;
        Ok(i32::from_ne_bytes(value))
    }

    fn set(socket: &UdpSocket, value: i32) -> io::Result<()> {
        let value = value.to_ne_bytes();
        crate::sockopt::set(socket.as_fd(), libc::SOL_SOCKET, SO_PEEK_OFF, &value)
    }

    fn saved(socket: &UdpSocket) -> io::Result<Vec<(BorrowedFd<'_>, Step)>> {
        let fd = socket.as_fd();
        Ok(vec![(fd, Step::now(fd, libc::SOL_SOCKET, SO_PEEK_OFF)?)])
    }

    #[test]
    fn the_option_is_put_back_and_then_left_alone() -> io::Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        set(&socket, 5)?;
        let guard = Guard::new(saved(&socket)?)?;
        set(&socket, 0)?;
        guard.put_back()?;
        assert_eq!(position(&socket)?, 5);
        drop(Guard::new(saved(&socket)?)?);
        assert_eq!(position(&socket)?, 5);
        let guard = Guard::new(saved(&socket)?)?;
        set(&socket, 7)?;
        guard.keep()?;
        assert_eq!(position(&socket)?, 7);
        Ok(())
    }

    #[test]
    fn no_child_is_left() -> io::Result<()> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let guard = Guard::new(saved(&socket)?)?;
        let child = guard.child;
        drop(guard);
        let ended = child.collect().map_err(|error| error.raw_os_error());
        assert_eq!(ended, Err(Some(libc::ECHILD)));
        Ok(())
    }
}
