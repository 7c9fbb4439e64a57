//! What the kernel remembers of whoever makes a socket, or says whom it sends signals.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

/// Runs `work` in a thread of its own that makes files as this user: what it makes has its `fsuid` and `fsgid`
/// (`file->f_cred`), which firewalls ask for. It keeps every right but those over the files of others (`setfsuid(2)`).
pub fn as_maker<T: Send>(
    (user, group): (u32, u32),
    work: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    in_thread(|| {
        set_maker(libc::SYS_setfsgid, group);
        set_maker(libc::SYS_setfsuid, user);
        // No user and no group: nothing is changed.
        let now = [libc::SYS_setfsuid, libc::SYS_setfsgid].map(|call| set_maker(call, u32::MAX));
        match now == [user, group] {
            true => Ok(work()),
            false => Err(io::Error::from_raw_os_error(libc::EPERM)),
        }
    })
}

/// Runs `work` in a thread of its own with these (real, effective) users, and the rights that go with them.
pub fn as_user<T: Send>(
    (real, effective): (u32, u32),
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    in_thread(|| {
        // SAFETY: three numbers; the system call, other than the function of the library, changes this
        // thread alone.
        match unsafe { libc::syscall(libc::SYS_setresuid, real, effective, effective) } {
            0 => work(),
            _ => Err(io::Error::last_os_error()),
        }
    })
}

/// Sets one of them for this thread; answers what it was before, which is all that tells whether it worked.
fn set_maker(call: libc::c_long, number: u32) -> u32 {
    // SAFETY: one number; the system call changes this thread alone.
    unsafe { libc::syscall(call, number) as u32 }
}

fn in_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let gone = |_| Err(io::Error::other("the thread of another user ended"));
        scope.spawn(work).join().unwrap_or_else(gone)
    })
}

/// A descriptor of the process that connected to a Unix socket, which names no other one when that has ended
/// (`SO_PEERPIDFD`, since 6.5).
pub fn peer_process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SO_PEERPIDFD: i32 = 77;
    let mut descriptor = [0; 4];
    crate::sockopt::get(socket, libc::SOL_SOCKET, SO_PEERPIDFD, &mut descriptor)?;
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::from_ne_bytes(descriptor)) })
}
