//! How namespaces are related (ioctl_nsfs(2)).

use crate::check;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The user namespace that owns a namespace (`NS_GET_USERNS`, since 4.9).
///
/// `EPERM`: it is outside of that of this process.
pub fn owner(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_USERNS: libc::Ioctl = 0xb701;
    open(namespace, NS_GET_USERNS)
}

/// The parent of a user namespace (`NS_GET_PARENT`, since 4.9).
///
/// `EPERM`: it is outside of that of this process, or there is none.
pub fn parent(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const NS_GET_PARENT: libc::Ioctl = 0xb702;
    open(namespace, NS_GET_PARENT)
}

fn open(namespace: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: neither request takes an argument.
    let fd = check(unsafe { libc::ioctl(namespace.as_raw_fd(), request) })?;
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The user who made a user namespace, as the one of this process numbers users (`NS_GET_OWNER_UID`, since 4.11).
pub fn owner_user(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    const NS_GET_OWNER_UID: libc::Ioctl = 0xb704;
    let mut user: libc::uid_t = 0;
    // SAFETY: the kernel writes one uid_t.
    check(unsafe { libc::ioctl(namespace.as_raw_fd(), NS_GET_OWNER_UID, &raw mut user) })?;
    Ok(user)
}

/// What a thread that a PID namespace calls so is called here (`NS_GET_PID_FROM_PIDNS`, since 6.11).
///
/// `ESRCH`: there is no such thread.
pub fn thread_from(namespace: BorrowedFd<'_>, thread: i32) -> io::Result<i32> {
    const NS_GET_PID_FROM_PIDNS: libc::Ioctl = 0x8004_b706;
    translate(namespace, NS_GET_PID_FROM_PIDNS, thread)
}

/// What a thread of ours is called in a PID namespace (`NS_GET_PID_IN_PIDNS`, since 6.11).
///
/// `ESRCH`: it is not in it.
pub fn thread_in(namespace: BorrowedFd<'_>, thread: i32) -> io::Result<i32> {
    const NS_GET_PID_IN_PIDNS: libc::Ioctl = 0x8004_b708;
    translate(namespace, NS_GET_PID_IN_PIDNS, thread)
}

fn translate(namespace: BorrowedFd<'_>, request: libc::Ioctl, thread: i32) -> io::Result<i32> {
    // SAFETY: both requests take a number and write nothing.
    match check(unsafe { libc::ioctl(namespace.as_raw_fd(), request, thread) })? {
        0 => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        other => Ok(other),
    }
}
