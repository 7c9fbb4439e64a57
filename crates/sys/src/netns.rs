//! The network namespace of a socket, of a thread, and of a command.

use crate::check;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

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

/// Has a command run as root of a user namespace of its own, in a network namespace of its own.
///
/// For processes with more than one thread, which cannot enter a user namespace themselves. Where
/// that is not allowed, the command does not start.
pub fn in_user_namespace(command: &mut Command) -> &mut Command {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    let maps = [
        (c"/proc/self/setgroups", "deny".to_owned()),
        (c"/proc/self/uid_map", format!("0 {} 1", uid.as_raw())),
        (c"/proc/self/gid_map", format!("0 {} 1", gid.as_raw())),
    ];
    let enter = move || {
        unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET)?;
        maps.iter().try_for_each(|(path, text)| write(path, text))
    };
    // SAFETY: between fork and exec `enter` makes system calls only, on memory prepared before; it
    // takes no lock and allocates nothing.
    unsafe { command.pre_exec(enter) }
}

/// Writes a file of /proc by one write(2), and allocates nothing.
fn write(path: &CStr, text: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let file = open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::io::write(file, text.as_bytes())? {
        length if length == text.len() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EIO)),
    }
}
