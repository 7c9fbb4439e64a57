//! Into the descriptor store of the service manager: sd_notify(3), FDSTORE=1.

use crate::error::{Error, ErrorKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use rustix::pipe::{PipeFlags, pipe_with};
use std::ffi::{OsStr, OsString};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::str::FromStr;

/// How long the service manager may take.
const PATIENCE: i64 = 10;
/// The kernel takes no more in one message (`SCM_MAX_FD`).
const MOST: usize = 253;

/// A name in the store, as the service gets it back in LISTEN_FDNAMES.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreName(String);

impl FromStr for StoreName {
    type Err = Error;

    fn from_str(text: &str) -> Result<StoreName, Error> {
        let is_plain = |c: char| c.is_ascii() && !c.is_ascii_control() && c != ':';
        match (1..=255).contains(&text.len()) && text.chars().all(is_plain) {
            true => Ok(StoreName(text.into())),
            false => {
                let why =
                    "is no name for the store: up to 255 printable ASCII characters, no colon";
                Err(Error::new(ErrorKind::BadInput, format!("{text:?}"), why))
            }
        }
    }
}

/// Puts sockets into the store of the service that this process is of, at $NOTIFY_SOCKET; comes back
/// when the service manager has them.
pub fn to_service_manager(sockets: &[BorrowedFd<'_>], name: &StoreName) -> Result<(), Error> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        let why = "$NOTIFY_SOCKET is not set: no service manager has started this";
        return Err(
            Error::new(ErrorKind::Refused, "descriptor store", why).help(
                "run it as part of a service that has FileDescriptorStoreMax= and NotifyAccess=all",
            ),
        );
    };
    let what = || format!("descriptor store at {}", path.to_string_lossy());
    if sockets.len() > MOST {
        let why = format!("takes at most {MOST} sockets at once");
        return Err(Error::new(ErrorKind::Refused, what(), why));
    }
    store(sockets, name, &path).map_err(|error| Error::system(what(), error))
}

fn store(sockets: &[BorrowedFd<'_>], name: &StoreName, path: &OsString) -> io::Result<()> {
    let address = address(path)?;
    let StoreName(name) = name;
    let text = format!("FDSTORE=1\nFDNAME={name}");
    tell(&address, text.as_bytes(), sockets)?;
    // The manager knows the service by the number of this process, which must not end before that; it
    // closes the pipe when it has read all that was said before (`sd_notify_barrier`).
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    tell(&address, b"BARRIER=1", &[theirs.as_fd()])?;
    drop(theirs);
    let mut fds = [PollFd::new(&ours, PollFlags::empty())];
    let most = Timespec {
        tv_sec: PATIENCE,
        tv_nsec: 0,
    };
    match rustix::io::retry_on_intr(|| poll(&mut fds, Some(&most)))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

fn address(path: &OsStr) -> io::Result<SocketAddrUnix> {
    match path.as_bytes() {
        [b'@', name @ ..] => Ok(SocketAddrUnix::new_abstract_name(name)?),
        [b'/', ..] => Ok(SocketAddrUnix::new(path)?),
        // Such as `vsock:`, which carries no descriptor.
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

fn tell(to: &SocketAddrUnix, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let mut space = vec![MaybeUninit::uninit(); SendAncillaryMessage::ScmRights(fds).size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(fds));
    let data = [IoSlice::new(text)];
    sendmsg_addr(&socket, to, &data, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
