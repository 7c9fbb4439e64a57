//! Options of a socket that others use too, changed for a moment or all together, and put back in any
//! other case.
//!
//! The options of a socket outlive whoever changed them. So a child process that does nothing else
//! holds the sockets and one end of a connection to us: when we end, it puts the options back. It is in a
//! session of its own and blocks every signal, so that what is meant for us (Ctrl-C, a SIGKILL for the
//! process group) does not end it; it holds no other descriptor. Only who kills both prevents it: a
//! control group that is killed, or a PID namespace whose first process is.

use crate::check;
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
    fn take(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        match crate::sockopt::set(fd, self.level, self.name, &self.value) {
            Err(error) if self.already.is_some() && error.raw_os_error() == self.already => Ok(()),
            taken => taken,
        }
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
    child: libc::pid_t,
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
        let child = start(&saved, &line, &far)?;
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
            self.collect()?;
        }
        put_back
    }

    /// The child sends no SIGCHLD, and nobody else's wait(2) finds it: only `__WALL` does.
    fn collect(&self) -> io::Result<()> {
        loop {
            // SAFETY: no status is asked for, so that nothing is written.
            let ended =
                check(unsafe { libc::waitpid(self.child, std::ptr::null_mut(), libc::__WALL) });
            match ended {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                ended => return ended.map(drop),
            }
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Whoever wants to hear of an error calls `put_back`.
        let _ = self.finish(true);
    }
}

/// Starts the child, which has every signal blocked from its first instruction on.
fn start(saved: &Saved<'_>, line: &OwnedFd, far: &OwnedFd) -> io::Result<libc::pid_t> {
    let before = block_signals()?;
    let child = fork();
    if let Ok(0) = child {
        watch(saved, line.as_raw_fd(), far.as_raw_fd());
    }
    set_signals(&before)?;
    child
}

/// Like fork(2), but without a signal at its end: a process that we are a guest in would be
/// disturbed by a child it knows nothing of.
pub(crate) fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: with no flags and no stack clone(2) copies the process; all arguments are 0, so that
    // their order, which differs between architectures, does not matter. The child makes system
    // calls only (see `watch`), takes no lock and allocates nothing.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) };
    match pid {
        0.. => Ok(pid as libc::pid_t),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data for which all zeroes is a value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: it writes the set it is given.
    check(unsafe { libc::sigfillset(&raw mut all) })?;
    // SAFETY: sigset_t is plain data for which all zeroes is a value.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: it reads one set and writes the other.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) } {
        0 => Ok(before),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

pub(crate) fn set_signals(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: it reads the set; the former one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// What the child does: says that it is there, and waits for a word or the end of the other side.
fn watch(saved: &Saved<'_>, line: RawFd, far: RawFd) -> ! {
    // SAFETY: no argument. It cannot fail: a new process leads no group.
    unsafe { libc::setsid() };
    // SAFETY: the number is the other side's end, which this copy of the process does not use; open
    // here, it would hide the end of that side.
    unsafe { libc::close(line) };
    close_others(&saved.kept);
    let mut byte = 1_u8;
    // SAFETY: one byte to be read, which outlives the call.
    unsafe { libc::write(far, (&raw const byte).cast(), 1) };
    let told = loop {
        // SAFETY: one byte to be written, which outlives the call.
        let length = unsafe { libc::read(far, (&raw mut byte).cast(), 1) };
        let interrupted = io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if length >= 0 || !interrupted {
            break length > 0;
        }
    };
    if !told {
        // The process ends with it: there is nobody to hear of an error.
        let _ = saved.put_back();
    }
    // SAFETY: ends the child without running what the process registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Closes every descriptor but these, which are in order (`close_range`, since 5.9): held here, the
/// files of others would outlive them.
pub(crate) fn close_others(kept: &[RawFd]) {
    let mut first = 0;
    for fd in kept {
        let fd = *fd as u32;
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closes descriptors of this copy of the process, which uses only those that are kept.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
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
        // SAFETY: no status is asked for, so that nothing is written.
        let ended = check(unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) });
        assert_eq!(
            ended.map_err(|error| error.raw_os_error()),
            Err(Some(libc::ECHILD))
        );
        Ok(())
    }
}
