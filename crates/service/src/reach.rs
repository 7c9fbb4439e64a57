//! Which sockets a client reaches: found, judged by the policy, and duplicated.

use crate::policy::{Act, Standing, Verdict, judge};
use crate::session::Session;
use rustix::io::Errno;
use sockcr::find::{self, Found, Holder, Listed};
use sockcr::{Error, ErrorKind, Target, netns};
use std::os::fd::{AsFd, BorrowedFd};

impl Session {
    /// The sockets that are meant, if the client may dump them.
    pub fn find(&self, target: &Target) -> Result<Vec<Found>, Error> {
        match target {
            Target::Descriptor(thread, fd) => self.descriptor(target, *thread, *fd),
            Target::Process(thread) => self.of_process(target, *thread),
            _ => self.named(target),
        }
    }

    fn descriptor(&self, target: &Target, thread: i32, fd: i32) -> Result<Vec<Found>, Error> {
        let thread = self.peer.thread(thread).ok_or_else(|| unseen(target))?;
        let holder = Holder {
            pid: find::process_of(thread),
            tid: thread,
            fd,
        };
        let own = match self.administers {
            // It need not be asked.
            true => None,
            false => self.of_owner(&holder, || find::hold(holder, None)),
        };
        let mine = own.is_some();
        match own.unwrap_or_else(|| find::hold(holder, None)) {
            Ok(found) => {
                let standing = if mine {
                    Standing::Owner
                } else {
                    Standing::Stranger
                };
                self.permit(target, found.socket.as_fd(), standing)?;
                Ok(vec![found])
            }
            // Nobody else is told what a process has.
            Err(_) if !mine && !self.administers => Err(unseen(target)),
            Err(error) => Err(find::explain(target, thread, error)),
        }
    }

    fn of_process(&self, target: &Target, thread: i32) -> Result<Vec<Found>, Error> {
        let called = thread;
        let thread = self.peer.thread(called).ok_or_else(|| unseen(target))?;
        let listing = find::list(Some(thread)).map_err(|error| match called == thread {
            true => error,
            // Its words would have our number.
            false => unseen(target),
        })?;
        let mut all = Vec::new();
        for socket in &listing.sockets {
            let reached = match socket.netns == self.here {
                true => self.hold(target, socket),
                false => self.elsewhere(target, socket),
            };
            match reached {
                Ok(found) => all.push(found),
                // Closed meanwhile, or in a network namespace that the client does not see.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match all.is_empty() {
            true => Err(Error::new(
                ErrorKind::NotFound,
                target,
                "has no internet socket here",
            )),
            false => Ok(all),
        }
    }

    fn named(&self, target: &Target) -> Result<Vec<Found>, Error> {
        let named = find::named(target).map_err(|error| match error.kind() {
            // Its words would tell of other network namespaces.
            ErrorKind::NotFound => unseen(target),
            _ => error,
        })?;
        named
            .iter()
            .map(|socket| self.hold(target, socket))
            .collect()
    }

    /// Duplicates a socket of its network namespace from somebody it may have it from; those of others are not even
    /// duplicated.
    fn hold(&self, target: &Target, socket: &Listed) -> Result<Found, Error> {
        let act = here(socket.socket_type);
        let trusted = judge(act, self.by_capability(socket.socket_type)) == Verdict::Allowed;
        let by_owner = judge(act, Standing::Owner) == Verdict::Allowed;
        let mut refused = match trusted {
            true => unseen(target),
            false => forbidden(target),
        };
        for holder in &socket.holders {
            let hold = || find::hold(*holder, Some(socket.inode));
            let held = match (trusted, by_owner) {
                (true, _) => Some(hold()),
                (false, true) => self.of_owner(holder, hold),
                (false, false) => None,
            };
            match held {
                Some(Ok(found)) => return Ok(found),
                Some(Err(error)) => {
                    refused = match Errno::from_io_error(&error) {
                        Some(Errno::BADF | Errno::SRCH | Errno::NOENT | Errno::NOTSOCK) => {
                            unseen(target)
                        }
                        _ => Error::system(format!("{target}: duplicate its descriptor"), error),
                    };
                }
                None => {}
            }
        }
        Err(refused)
    }

    /// What is done with a thread, if it was one of the client's user all the time.
    fn of_owner<T>(&self, holder: &Holder, work: impl FnOnce() -> T) -> Option<T> {
        let owned = self.peer.owned(holder)?;
        let done = work();
        owned.is_still().then_some(done)
    }

    /// Duplicates a socket of another network namespace.
    fn elsewhere(&self, target: &Target, socket: &Listed) -> Result<Found, Error> {
        let mut holders = socket.holders.iter();
        let found = holders.find_map(|holder| find::hold(*holder, Some(socket.inode)).ok());
        let found = found.ok_or_else(|| unseen(target))?;
        self.permit(target, found.socket.as_fd(), Standing::Stranger)?;
        Ok(found)
    }

    /// Whether it may have a socket shown; of another network namespace only where `all` are meant.
    pub fn may_see(&self, socket: &Listed, all: bool) -> Verdict {
        if socket.netns != self.here {
            let target = Target::Inode(socket.inode);
            return match all && self.elsewhere(&target, socket).is_ok() {
                true => Verdict::Allowed,
                false => Verdict::Unseen,
            };
        }
        let act = here(socket.socket_type);
        let own = || {
            socket
                .holders
                .iter()
                .any(|holder| self.holds(holder, socket.inode))
        };
        match judge(act, self.by_capability(socket.socket_type)) {
            Verdict::Forbidden if own() => judge(act, Standing::Owner),
            verdict => verdict,
        }
    }

    /// Whether a process of its user has this socket there, now.
    fn holds(&self, holder: &Holder, inode: u64) -> bool {
        let link = format!("/proc/{}/fd/{}", holder.tid, holder.fd);
        let name = self.of_owner(holder, || std::fs::read_link(link));
        let inode = format!("socket:[{inode}]");
        name.is_some_and(|name| name.is_ok_and(|name| name.as_os_str() == inode.as_str()))
    }

    /// How it stands to a socket of this type in its network namespace by its capabilities alone.
    fn by_capability(&self, socket_type: u32) -> Standing {
        match (self.administers, self.sends && is_raw(socket_type)) {
            (true, _) => Standing::Administrator,
            (false, true) => Standing::Sender,
            (false, false) => Standing::Stranger,
        }
    }

    /// Whether it may dump a socket that we hold, to which it stands so if no capability counts for more.
    pub fn permit(
        &self,
        target: &Target,
        socket: BorrowedFd<'_>,
        standing: Standing,
    ) -> Result<(), Error> {
        let failed = |error| Error::system(format!("{target}: its network namespace"), error);
        let kind = rustix::net::sockopt::socket_type(socket);
        let kind = kind.map_err(|error| failed(error.into()))?.as_raw();
        let (act, by_capability) = match netns::cookie(socket).map_err(failed)? == self.here {
            true => (here(kind), self.by_capability(kind)),
            false => {
                let there = sockcr_sys::netns::of_socket(socket).map_err(failed)?;
                let administers = self.peer.administers(there.as_fd()).map_err(failed)?;
                let by_capability = match administers {
                    true => Standing::Administrator,
                    false => Standing::Stranger,
                };
                (Act::DumpElsewhere, by_capability)
            }
        };
        let standing = match by_capability {
            Standing::Stranger => standing,
            by_capability => by_capability,
        };
        match judge(act, standing) {
            Verdict::Allowed => Ok(()),
            Verdict::Unseen => Err(unseen(target)),
            Verdict::Forbidden => Err(forbidden(target)),
        }
    }
}

fn is_raw(socket_type: u32) -> bool {
    socket_type == rustix::net::SocketType::RAW.as_raw()
}

/// What it is to dump a socket of this type in the network namespace of the client.
fn here(socket_type: u32) -> Act {
    match is_raw(socket_type) {
        true => Act::DumpRawHere,
        false => Act::DumpHere,
    }
}

/// What is told of a socket that there is none of, or that the client does not see.
pub fn unseen(target: &Target) -> Error {
    let why = "no such socket in this network namespace";
    Error::new(ErrorKind::NotFound, target, why).help("`sockcr list` shows what there is")
}

fn forbidden(target: &Target) -> Error {
    let why = "it is not a socket of your user";
    let error = Error::new(ErrorKind::NotPermitted, target, why);
    error.help("others need CAP_NET_ADMIN or CAP_CHECKPOINT_RESTORE")
}
