//! How a process that stands still gets a descriptor of a socket of ours.
//!
//! By pidfd_getfd(2), made by the process itself on our child process, where it may look into the child:
//! then it could look into us anyway. Where it may not (another user, other capabilities, Yama, another PID
//! namespace), by a message over a connection that it makes to an address of ours in its own network
//! namespace: nothing but the socket is shown to it.
//!
//! All of this is done by a child process, after fork: nothing allocates.

use crate::foreign::{Answer, Failure, Held, SCRATCH, Wrong};
use crate::path::Path;
use rustix::fs::readlinkat_raw;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// A socket, and the ways by which a process may get it.
#[derive(Debug)]
pub(crate) struct Offer<'a> {
    /// The socket.
    pub socket: BorrowedFd<'a>,
    /// The process, not a thread of it.
    pub pid: i32,
    /// Our number in its PID namespace is that in ours.
    pub sees_us: bool,
    /// A listening SOCK_SEQPACKET socket in its network namespace, and its abstract address.
    pub listener: Option<&'a (OwnedFd, Vec<u8>)>,
}

/// What a process has got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    /// A descriptor of the socket, close-on-exec.
    pub fd: u64,
    /// What it has come by, another descriptor of the process, to be closed.
    pub way: u64,
}

/// Closes a descriptor of the process; one that ended has none.
pub(crate) fn close(process: &mut Held<'_>, fd: u64) {
    let _ = process.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
}

/// What a descriptor of a process is.
pub(crate) fn link_to<T>(tid: i32, fd: RawFd, look: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let path = Path::new(format_args!("/proc/{tid}/fd/{fd}"));
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (link, _) = readlinkat_raw(rustix::fs::CWD, path.as_c_str(), &mut buffer).ok()?;
    look(std::str::from_utf8(link).ok()?)
}

/// Whether a descriptor of a process is this socket.
pub(crate) fn is_socket(tid: i32, fd: RawFd, inode: u64) -> bool {
    let is_it = |link: &str| {
        let number = link.strip_prefix("socket:[")?.strip_suffix(']')?;
        Some(number.parse() == Ok(inode))
    };
    link_to(tid, fd, is_it) == Some(true)
}

/// Has the process get a descriptor of the socket, close-on-exec.
pub(crate) fn receive(offer: &Offer<'_>, into: &mut Held<'_>) -> Result<Received, Failure> {
    let tid = into.tid();
    let failed = |error: io::Error| Failure::new(Wrong::Receive, tid, &error);
    let refused = match offer.sees_us {
        true => match fetch(offer, into)? {
            Ok(received) => return Ok(received),
            Err(error) => error,
        },
        false => io::Error::from_raw_os_error(libc::ESRCH),
    };
    match offer.listener {
        Some((listener, address)) if is_refusal(&refused) => {
            let way = connect(into, address)?.map_err(failed)?;
            let received = message(offer, into, listener, way);
            Ok(by(way, received, into)?.map_err(failed)?)
        }
        _ => Err(Failure {
            wrong: Wrong::Receive,
            tid,
            errno: refused.raw_os_error().unwrap_or(0),
        }),
    }
}

/// What has come by this way, which is closed if nothing has.
fn by(way: u64, got: Told, into: &mut Held<'_>) -> Result<io::Result<Received>, Failure> {
    if !matches!(got, Ok(Ok(_))) {
        close(into, way);
    }
    Ok(got?.map(|fd| Received { fd, way }))
}

fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::EPERM, libc::EACCES, libc::ESRCH, libc::ENOSYS];
    refusals.map(Some).contains(&error.raw_os_error())
}

/// An answer of the process, which may be an error, or why there is none.
type Told = Result<io::Result<u64>, Failure>;

/// Whether this kernel has Yama, as far as is known.
static HAS_YAMA: AtomicBool = AtomicBool::new(true);

/// Looks whether somebody has to be let look into us, which is not done then while that one stands still.
pub(crate) fn learn_of_yama() {
    // SAFETY: it takes a number, here that of nobody.
    let known = unsafe { libc::prctl(libc::PR_SET_PTRACER, 0 as libc::c_ulong) };
    HAS_YAMA.store(known == 0, Relaxed);
}

/// Lets a process, and no other one, look into us, as Yama asks for.
fn let_look(pid: i32) {
    if HAS_YAMA.load(Relaxed) {
        // SAFETY: it takes a number.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, pid as libc::c_ulong) };
    }
}

/// The process takes it from us.
fn fetch(offer: &Offer<'_>, into: &mut Held<'_>) -> Result<io::Result<Received>, Failure> {
    let us = rustix::process::getpid().as_raw_pid() as u64;
    let_look(offer.pid);
    let opened = into.call(libc::SYS_pidfd_open, [us, 0, 0, 0, 0, 0])?;
    let way = match opened.number() {
        Ok(way) => way,
        Err(error) => return Ok(Err(error)),
    };
    let fd = offer.socket.as_raw_fd() as u64;
    let got = into.call(libc::SYS_pidfd_getfd, [way, fd, 0, 0, 0, 0]);
    by(way, got.map(Answer::number), into)
}

/// Has the process connect to our listener.
fn connect(into: &mut Held<'_>, address: &[u8]) -> Told {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let family = libc::AF_UNIX as u64;
    let opened = into.call(libc::SYS_socket, [family, kind as u64, 0, 0, 0, 0])?;
    let connection = match opened.number() {
        Ok(connection) => connection,
        Err(error) => return Ok(Err(error)),
    };
    let connected = connect_to(into, connection, address);
    if !matches!(connected, Ok(Ok(_))) {
        close(into, connection);
    }
    Ok(connected?.map(|_| connection))
}

fn connect_to(into: &mut Held<'_>, connection: u64, address: &[u8]) -> Told {
    let mut bytes = [0; 8 * SCRATCH];
    let length = 2 + address.len();
    let name = bytes.get_mut(2..length);
    let Some(name) = name.filter(|_| length <= size_of::<libc::sockaddr_un>()) else {
        return Ok(Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
    };
    name.copy_from_slice(address);
    bytes[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    let mut words = [0; SCRATCH];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    into.write_scratch(&words)?;
    let at = into.scratch_address()?;
    let connected = into.call(libc::SYS_connect, [connection, at, length as u64, 0, 0, 0])?;
    Ok(connected.number())
}

/// Sends the socket over the connection, and has the process receive it.
fn message(offer: &Offer<'_>, into: &mut Held<'_>, listener: &OwnedFd, connection: u64) -> Told {
    if let Err(error) = send(offer, listener) {
        return Ok(Err(error));
    }
    let base = into.scratch_address()?;
    let word = |at: u64| base + 8 * at;
    let mut words = [0; SCRATCH];
    // struct msghdr: no name, one piece of data, room for one descriptor; then that piece.
    let (piece, data, control) = (word(7), word(9), word(10));
    let space = 24;
    words[..9].copy_from_slice(&[0, 0, piece, 1, control, space, 0, data, 1]);
    into.write_scratch(&words)?;
    let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
    let received = into.call(libc::SYS_recvmsg, [connection, base, flags, 0, 0, 0])?;
    if let Err(error) = received.number() {
        return Ok(Err(error));
    }
    let words = into.read_scratch()?;
    // struct cmsghdr with one descriptor: its length, then SOL_SOCKET and SCM_RIGHTS.
    let rights = u64::from(libc::SOL_SOCKET as u32) | u64::from(libc::SCM_RIGHTS as u32) << 32;
    match (words[10], words[11]) {
        (20, header) if header == rights => Ok(Ok(words[12] & u64::from(u32::MAX))),
        // There was no room for one more (`scm_detach_fds`).
        _ => Ok(Err(io::Error::from_raw_os_error(libc::EMFILE))),
    }
}

/// Sends the socket to the process that has connected, if it is the right one: anybody could.
fn send(offer: &Offer<'_>, listener: &OwnedFd) -> io::Result<()> {
    use rustix::net::{SocketFlags, accept_with, sendmsg, sockopt::socket_peercred};
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // It is connected already: when none is there any more, it was not the right one.
        let connection = accept_with(listener, flags)?;
        if socket_peercred(&connection)?.pid.as_raw_pid() != offer.pid {
            continue;
        }
        let mut space = [MaybeUninit::uninit(); 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = [offer.socket];
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let data = [io::IoSlice::new(b"s")];
        sendmsg(&connection, &data, &mut control, SendFlags::NOSIGNAL)?;
        return Ok(());
    }
}
