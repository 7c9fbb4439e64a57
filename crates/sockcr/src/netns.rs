//! Network namespaces: which one a socket lives in, and working inside it.
//!
//! A thread that enters a namespace is made for that and ends with it; no other thread is moved.

use crate::error::{Error, ErrorKind};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

const SOL_SOCKET: i32 = 1;
const SO_NETNS_COOKIE: i32 = 71;

/// The number of a socket's network namespace, never used twice (`SO_NETNS_COOKIE`, since 5.14).
pub fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = [0; 8];
    sockcr_sys::sockopt::get(socket, SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// The number of the network namespace of this thread.
pub fn own_cookie() -> io::Result<u64> {
    cookie(probe()?.as_fd())
}

/// A fresh UDP socket here, to ask the kernel with.
pub(crate) fn probe() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let kind = SocketType::DGRAM;
    Ok(socket_with(
        AddressFamily::INET,
        kind,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Runs `work` in the network namespace of a socket.
pub(crate) fn within<T: Send>(
    socket: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    if cookie(socket)? == own_cookie()? {
        return work();
    }
    let namespace = sockcr_sys::netns::of_socket(socket)?;
    enter_in_thread(namespace.as_fd(), work)
}

/// Reads a sysctl of a socket's network namespace.
pub(crate) fn sysctl(socket: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    within(socket, || {
        std::fs::read_to_string(format!("/proc/sys/{name}"))
    })
}

/// Runs `work` in a thread of its own inside a network namespace.
pub(crate) fn enter_in_thread<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
            work()
        });
        let gone = |_| Err(io::Error::other("the thread in the namespace ended"));
        thread.join().unwrap_or_else(gone)
    })
}

/// Opens a network namespace by its name under /run/netns, or by a path such as /proc/1/ns/net.
pub fn open(name: &str) -> Result<OwnedFd, Error> {
    let path = match name.contains('/') {
        true => name.into(),
        false => format!("/run/netns/{name}"),
    };
    let opened = std::fs::File::open(&path).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::System,
        };
        let why = crate::error::reason(&error);
        Error::new(
            kind,
            format!("network namespace {name}"),
            format!("{path}: {why}"),
        )
        .help("`ip netns list` shows the named ones; a path such as /proc/PID/ns/net does too")
    })?;
    Ok(opened.into())
}

/// Moves this thread into a network namespace, for good (CAP_SYS_ADMIN).
pub fn enter(name: &str, namespace: BorrowedFd<'_>) -> Result<(), Error> {
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network)).map_err(|error| {
        let what = format!("network namespace {name}: enter it");
        let help = match error {
            Errno::INVAL => "it is no network namespace: /run/netns/NAME and /proc/PID/ns/net are",
            _ => "entering needs CAP_SYS_ADMIN",
        };
        Error::system(what, error.into()).help(help)
    })
}
