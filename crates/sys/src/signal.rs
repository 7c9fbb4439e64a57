//! What this process does at a signal: signal(2).

use crate::check;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// Ignores a signal from now on, as will what execve(2) makes of this process.
///
/// `EINVAL` when there is no such signal or it cannot be ignored. SIGCHLD is refused as well: to
/// ignore it takes the end of children from those that wait for it.
pub fn ignore(signal: i32) -> io::Result<()> {
    if signal == libc::SIGCHLD {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: to ignore a signal runs no code of this process.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Blocks these signals in this thread; a descriptor tells of them instead (signalfd(2)).
pub fn by_descriptor(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: sigset_t is plain data for which all zeroes is a value.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    for signal in signals {
        // SAFETY: it changes the set it is given; a number that is no signal is refused.
        check(unsafe { libc::sigaddset(&raw mut set, *signal) })?;
    }
    // SAFETY: it reads the set; the former one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => {}
        error => return Err(io::Error::from_raw_os_error(error)),
    }
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: -1 makes a new descriptor; the set is read.
    let fd = check(unsafe { libc::signalfd(-1, &raw const set, flags) })?;
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next signal that such a descriptor tells of; `None`: there is none now.
pub fn next(descriptor: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut told = [0; size_of::<libc::signalfd_siginfo>()];
    match rustix::io::read(descriptor, &mut told) {
        Ok(_) => {
            let [a, b, c, d, ..] = told;
            // `ssi_signo` is the first of it.
            Ok(Some(i32::from_ne_bytes([a, b, c, d])))
        }
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
