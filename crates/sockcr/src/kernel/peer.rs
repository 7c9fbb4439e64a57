//! Who connected a Unix socket, as the kernel remembers it.

use std::io;
use std::os::fd::BorrowedFd;

use super::reader::{Reader, damaged};

/// The credentials that a process had when it called connect(2): what it became later does not count
/// (`sk->sk_peer_cred`, `init_peercred`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user, as the initial user namespace numbers it.
    pub user: u32,
    /// The effective group.
    pub group: u32,
    /// The effective capabilities, a bit each.
    pub effective: u64,
    /// The number of the user namespace in which it has them, as in /proc/PID/ns/user.
    pub namespace: u32,
}

impl Reader {
    /// Who connected to `socket`, a Unix socket from accept(2). SO_PEERCRED does not tell the capabilities, and
    /// /proc tells those of now.
    ///
    /// `Unsupported`: this kernel does not tell, or nobody is connected.
    pub fn peer(&self, socket: BorrowedFd<'_>) -> io::Result<Peer> {
        let unsupported = |why: String| io::Error::new(io::ErrorKind::Unsupported, why);
        let layout = self.layout.peer.as_ref();
        let layout = layout.map_err(|error| unsupported(format!("who connected: {error}")))?;
        let raw = self.sock(socket)?.raw;
        let at = raw.get(layout.credentials..);
        let credentials = at.and_then(|rest| rest.first_chunk()).ok_or_else(damaged)?;
        let credentials = u64::from_ne_bytes(*credentials);
        if credentials == 0 {
            return Err(unsupported("nobody is connected".into()));
        }
        let namespace = self.pointer(credentials, layout.namespace)?;
        Ok(Peer {
            user: self.member(credentials, layout.user)? as u32,
            group: self.member(credentials, layout.user_group)? as u32,
            effective: self.pointer(credentials, layout.effective)?,
            namespace: self.member(namespace, layout.number)? as u32,
        })
    }
}
