//! The state of a descriptor and of its open file: fcntl(2), and where descriptors are put.

use crate::check;
use crate::path::{self, Path};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// `F_OWNER_TID`, `F_OWNER_PID`, `F_OWNER_PGRP` of fcntl(2).
pub const OWNER_THREAD: i32 = 0;
/// The owner is a process.
pub const OWNER_PROCESS: i32 = 1;
/// The owner is a process group.
pub const OWNER_GROUP: i32 = 2;

const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

#[repr(C)]
#[derive(Default)]
struct OwnerEx {
    kind: i32,
    id: i32,
}

/// The file status flags (`F_GETFL`).
pub fn status_flags(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no argument.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })
}

/// Sets the file status flags (`F_SETFL`).
pub fn set_status_flags(fd: BorrowedFd<'_>, flags: i32) -> io::Result<()> {
    // SAFETY: F_SETFL takes an int.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags) }).map(drop)
}

/// Whether this descriptor is closed by execve(2).
pub fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: F_GETFD takes no argument.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFD) })?;
    Ok(flags & libc::FD_CLOEXEC != 0)
}

/// Sets or clears close-on-exec of this descriptor.
pub fn set_close_on_exec(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let flags = if on { libc::FD_CLOEXEC } else { 0 };
    // SAFETY: F_SETFD takes an int.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, flags) }).map(drop)
}

/// Who gets SIGIO for this file: (kind, id), id 0 for nobody (`F_GETOWN_EX`, since 2.6.32).
pub fn owner(fd: BorrowedFd<'_>) -> io::Result<(i32, i32)> {
    let mut owner = OwnerEx::default();
    // SAFETY: F_GETOWN_EX writes one f_owner_ex.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) })?;
    Ok((owner.kind, owner.id))
}

/// Says who gets SIGIO for this file; `ESRCH` when there is no such process.
pub fn set_owner(fd: BorrowedFd<'_>, kind: i32, id: i32) -> io::Result<()> {
    let owner = OwnerEx { kind, id };
    // SAFETY: F_SETOWN_EX reads one f_owner_ex.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) }).map(drop)
}

/// Who said that, as (real user, effective user), whose rights count when the signal is sent
/// (`F_GETOWNER_UIDS`, a kernel with CONFIG_CHECKPOINT_RESTORE; else `EINVAL`).
pub fn owner_set_by(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    const F_GETOWNER_UIDS: i32 = 17;
    let mut users = [0_u32; 2];
    // SAFETY: F_GETOWNER_UIDS writes two uid_t.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWNER_UIDS, &raw mut users) })?;
    Ok((users[0], users[1]))
}

/// Turns O_ASYNC on for the descriptor with this number, which SIGIO tells from then on.
pub(crate) fn set_asynchronous(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an int.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_ASYNC) }).map(drop)
}

/// The signal sent instead of SIGIO, 0 for SIGIO itself.
pub fn signal(fd: BorrowedFd<'_>) -> io::Result<i32> {
    // SAFETY: F_GETSIG takes no argument.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) })
}

/// Chooses the signal sent instead of SIGIO.
pub fn set_signal(fd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: F_SETSIG takes an int.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, signal) }).map(drop)
}

/// Opens `/proc/PID/fd`-like numbers of ourselves: a second descriptor of the open file `fd`.
///
/// `EBADF` when this process has no such descriptor.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes an int; a number that is no descriptor is answered with EBADF.
    let fd = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })?;
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A second descriptor of an open file of a thread's table (pidfd_getfd(2), the rights of ptrace(2)).
pub(crate) fn of_thread(tid: i32, fd: RawFd) -> io::Result<OwnedFd> {
    // PIDFD_THREAD is of 6.9: a thread of its own table. Else only the first thread has a pidfd.
    let thread = pidfd(tid, libc::O_EXCL).or_else(|_| pidfd(process_of(tid), 0))?;
    // SAFETY: three numbers; a number that is no descriptor there is answered with EBADF.
    made(unsafe { libc::syscall(libc::SYS_pidfd_getfd, thread.as_raw_fd(), fd, 0) })
}

fn pidfd(tid: i32, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: two numbers.
    made(unsafe { libc::syscall(libc::SYS_pidfd_open, tid, flags) })
}

fn process_of(tid: i32) -> i32 {
    let mut buffer = [0; 1024];
    let path = Path::new(format_args!("/proc/{tid}/status"));
    let text = path::read(path.as_c_str(), &mut buffer).unwrap_or_default();
    path::number_after(text, "Tgid:").unwrap_or(tid)
}

/// A descriptor that a system call has just made.
fn made(answer: libc::c_long) -> io::Result<OwnedFd> {
    match answer {
        // SAFETY: the kernel made this descriptor for us; nobody else owns it.
        0.. => Ok(unsafe { OwnedFd::from_raw_fd(answer as RawFd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Puts descriptors at `first`, `first + 1`, ... to be inherited over execve(2), and forgets them.
///
/// What stood at those numbers before is closed: call it only right before execve(2).
pub fn place(fds: Vec<OwnedFd>, first: RawFd) -> io::Result<()> {
    let above = first + fds.len() as RawFd;
    let mut parked = Vec::with_capacity(fds.len());
    for fd in fds {
        // SAFETY: F_DUPFD_CLOEXEC takes an int. It moves the file out of the way of the targets.
        let high = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) })?;
        // SAFETY: the kernel made this descriptor for us; nobody else owns it.
        parked.push(unsafe { OwnedFd::from_raw_fd(high) });
    }
    for (at, fd) in parked.into_iter().enumerate() {
        // SAFETY: dup2 takes two numbers; the caller is about to execve and uses no other
        // descriptor at the target's number any more.
        check(unsafe { libc::dup2(fd.as_raw_fd(), first + at as RawFd) })?;
        let _ = fd.into_raw_fd();
    }
    Ok(())
}

/// Gives the calling thread a table of descriptors of its own: a copy of the one it shared.
///
/// From then on a descriptor made by this thread means nothing to the others, nor one of theirs
/// to it: hand none over in either direction, and open before what the whole process keeps.
pub fn own_table() -> io::Result<()> {
    // SAFETY: no memory is touched, and the copy keeps what every descriptor held so far refers to.
    check(unsafe { libc::unshare(libc::CLONE_FILES) }).map(drop)
}
