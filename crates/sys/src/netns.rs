//! The network namespace of a socket.

use crate::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A descriptor of the network namespace a socket lives in (`SIOCGSKNS`, since 4.10).
///
/// `EPERM` without CAP_NET_ADMIN in the user namespace that owns it.
pub fn of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: libc::Ioctl = 0x894c;
    // SAFETY: SIOCGSKNS takes no argument.
    let fd = check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Moves the calling thread into new namespaces (`CLONE_NEW*` flags).
///
/// Call it while the process has one thread.
pub fn unshare(flags: i32) -> io::Result<()> {
    // SAFETY: only CLONE_NEW* flags are let through; they share no memory of this process.
    check(unsafe { libc::unshare(flags & (libc::CLONE_NEWNET | libc::CLONE_NEWUSER)) })?;
    Ok(())
}
