//! Who the client is.
//!
//! Everything is that of the moment of connect(2), or is asked of the process that connected and of no other
//! that has its number since: so nobody wins anything by becoming somebody else, or by ending.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use sockcr::find::Holder;
use sockcr::{Error, ErrorKind, control_group, kernel};
use sockcr_sys::{credentials, namespace, netns, sockopt};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// The numbers of capabilities (`capability.h`).
pub mod capability {
    /// CAP_NET_ADMIN
    pub const NET_ADMIN: u32 = 12;
    /// CAP_NET_RAW
    pub const NET_RAW: u32 = 13;
    /// CAP_SYS_PTRACE
    pub const SYS_PTRACE: u32 = 19;
    /// CAP_CHECKPOINT_RESTORE, since 5.9
    pub const CHECKPOINT_RESTORE: u32 = 40;
}

/// A client.
#[derive(Debug)]
pub struct Peer {
    /// Its process, as it is called here.
    pub pid: i32,
    /// Its effective user, as the user namespace of this process numbers it.
    pub user: u32,
    /// Its effective capabilities, a bit each.
    pub capabilities: u64,
    /// Its user namespace, in which it has them.
    pub user_namespace: OwnedFd,
    /// Its network namespace.
    pub network: OwnedFd,
    /// Its PID namespace, if that is another one than ours.
    pid_namespace: Option<OwnedFd>,
    /// The folder of its control group, if that is another one than ours.
    pub control_group: Option<OwnedFd>,
}

impl Peer {
    /// The client at the other end of a socket from accept(2).
    ///
    /// Needs Linux 6.5 (SO_PEERPIDFD); CAP_NET_ADMIN (SIOCGSKNS) for clients in other network namespaces, and
    /// CAP_SYS_PTRACE for those of other users. Its capabilities are known by BPF alone: without, it counts as having none.
    pub fn of(connection: BorrowedFd<'_>) -> Result<Peer, Error> {
        let failed =
            |what: &'static str| move |error| Error::system(format!("the client: {what}"), error);
        let process = credentials::peer_process(connection)
            .map_err(failed("its process (SO_PEERPIDFD, Linux 6.5)"))?;
        let (pid, user) = credentials_of(connection).map_err(failed("its process"))?;
        if pid == 0 {
            return Err(changed("its process cannot be seen from here"));
        }
        let known = kernel::reader().map_err(io::Error::other);
        let known = known.and_then(|reader| reader.peer(connection)).ok();
        let network = network_of(connection).map_err(failed("its network namespace"))?;
        let open = |name: &str| open_namespace(pid, name);
        let now = open("net").map_err(failed("its network namespace"))?;
        let user_namespace = open("user").map_err(failed("its user namespace"))?;
        let pid_namespace = other(pid, "pid").map_err(failed("its PID namespace"))?;
        let control_group = control_group_of(pid).map_err(failed("its control group"))?;
        if has_ended(process.as_fd()).map_err(failed("its process"))? {
            return Err(changed("its process has ended"));
        }
        let number = |namespace: &OwnedFd| rustix::fs::fstat(namespace).map(|stat| stat.st_ino);
        let same = |a, b| Ok::<_, Errno>(number(a)? == number(b)?);
        if !same(&network, &now).map_err(|e| failed("its network namespace")(e.into()))? {
            return Err(changed(
                "its Unix socket was made in another network namespace than it is in",
            ));
        }
        let there = number(&user_namespace).map_err(|e| failed("its user namespace")(e.into()))?;
        if known.is_some_and(|known| u64::from(known.namespace) != there) {
            return Err(changed("it has changed its user namespace since"));
        }
        Ok(Peer {
            pid,
            user,
            capabilities: known.map_or(0, |known| known.effective),
            user_namespace,
            network,
            pid_namespace,
            control_group,
        })
    }

    /// Whether it has a capability in a user namespace, as `cap_capable` decides it.
    pub fn can(&self, namespace: BorrowedFd<'_>, capability: u32) -> io::Result<bool> {
        /// `create_user_ns` allows 32 levels.
        const LEVELS: usize = 33;
        let own = id(self.user_namespace.as_fd())?;
        let mut at = namespace.try_clone_to_owned()?;
        for _ in 0..LEVELS {
            if id(at.as_fd())? == own {
                return Ok(self.capabilities & (1 << capability) != 0);
            }
            let parent = match namespace::parent(at.as_fd()) {
                Ok(parent) => parent,
                // There is none, or not one that we could see.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            };
            if id(parent.as_fd())? == own && namespace::owner_user(at.as_fd())? == self.user {
                return Ok(true);
            }
            at = parent;
        }
        Ok(false)
    }

    /// Whether it administers a network namespace.
    pub fn administers(&self, network: BorrowedFd<'_>) -> io::Result<bool> {
        let owner = namespace::owner(network)?;
        let can = |capability| self.can(owner.as_fd(), capability);
        Ok(can(capability::NET_ADMIN)? || can(capability::CHECKPOINT_RESTORE)?)
    }

    /// Whether it may send whatever it likes in a network namespace.
    pub fn sends_in(&self, network: BorrowedFd<'_>) -> io::Result<bool> {
        self.can(namespace::owner(network)?.as_fd(), capability::NET_RAW)
    }

    /// A thread of a process of the client's own user: real, effective, saved and of files; in its user namespace, or
    /// in one where it could trace others, since the same user counts for less in a namespace inside (a sandbox).
    pub fn owned<'a>(&'a self, holder: &Holder) -> Option<Owned<'a>> {
        /// Of one thread, since 6.9; else a pidfd is of the first.
        const PIDFD_THREAD: u32 = 0o200;
        let flags = match holder.tid == holder.pid {
            true => PidfdFlags::empty(),
            false => PidfdFlags::from_bits_retain(PIDFD_THREAD),
        };
        let owned = Owned {
            thread: pidfd_open(Pid::from_raw(holder.tid)?, flags).ok()?,
            holder: *holder,
            peer: self,
        };
        owned.is_still().then_some(owned)
    }

    fn has(&self, folder: &str) -> Option<bool> {
        let status = std::fs::read_to_string(format!("{folder}/status")).ok()?;
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
        let mut users = users.split_whitespace();
        if !users.all(|user| user.parse() == Ok(self.user)) {
            return Some(false);
        }
        let namespace = std::fs::File::open(format!("{folder}/ns/user")).ok()?;
        let own = id(self.user_namespace.as_fd()).ok()?;
        match id(namespace.as_fd()).ok()? == own {
            true => Some(true),
            false => self.can(namespace.as_fd(), capability::SYS_PTRACE).ok(),
        }
    }

    /// What is called here what the client calls so: a thread of its PID namespace.
    pub fn thread(&self, called: i32) -> Option<i32> {
        match &self.pid_namespace {
            None => Some(called),
            Some(namespace) => namespace::thread_from(namespace.as_fd(), called).ok(),
        }
    }

    /// What the client calls a thread; `None`: it does not see it.
    pub fn name_of(&self, thread: i32) -> Option<i32> {
        match &self.pid_namespace {
            None => Some(thread),
            Some(namespace) => namespace::thread_in(namespace.as_fd(), thread).ok(),
        }
    }
}

/// A thread of a process of the client's user.
#[derive(Debug)]
pub struct Owned<'a> {
    thread: OwnedFd,
    holder: Holder,
    peer: &'a Peer,
}

impl Owned<'_> {
    /// Whether it is one now: it has not ended, so that nobody else had its number, and has not become another user by
    /// execve(2). Asked before and after, it was one all the time: a process that is more meanwhile has the rights of
    /// another user only until it gives them up, and then it is the client's user's.
    pub fn is_still(&self) -> bool {
        let Holder { pid, tid, .. } = self.holder;
        let has = self.peer.has(&format!("/proc/{pid}/task/{tid}"));
        has == Some(true) && has_ended(self.thread.as_fd()).is_ok_and(|ended| !ended)
    }
}

fn changed(why: &str) -> Error {
    Error::new(ErrorKind::NotPermitted, "the client", why)
}

/// The network namespace of a socket. Without CAP_NET_ADMIN there only ours is known.
fn network_of(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match netns::of_socket(socket) {
        Err(error)
            if Errno::from_io_error(&error) == Some(Errno::PERM)
                && sockcr::netns::cookie(socket)? == sockcr::netns::own_cookie()? =>
        {
            Ok(std::fs::File::open("/proc/self/ns/net")?.into())
        }
        found => found,
    }
}

/// The number of a namespace.
pub fn id(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(rustix::fs::fstat(namespace)?.st_ino)
}

/// SO_PEERCRED: the process and the effective user, as they are called here.
fn credentials_of(connection: BorrowedFd<'_>) -> io::Result<(i32, u32)> {
    let [pid, user, _] = numbers(connection)?;
    Ok((pid as i32, user))
}

/// SO_PEERCRED: process, user and group, as the namespaces of the calling thread number them.
pub fn numbers(connection: BorrowedFd<'_>) -> io::Result<[u32; 3]> {
    const SOL_SOCKET: i32 = 1;
    const SO_PEERCRED: i32 = 17;
    let mut raw = [0; 12];
    sockopt::get(connection, SOL_SOCKET, SO_PEERCRED, &mut raw)?;
    let mut numbers = [0; 3];
    for (number, bytes) in numbers.iter_mut().zip(raw.as_chunks().0) {
        *number = u32::from_ne_bytes(*bytes);
    }
    Ok(numbers)
}

/// SO_PEERGROUPS: its supplementary groups, as the user namespace of the calling thread numbers them.
pub fn groups(connection: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    const SOL_SOCKET: i32 = 1;
    const SO_PEERGROUPS: i32 = 59;
    /// NGROUPS_MAX
    const MOST: usize = 65536;
    let mut raw = vec![0; MOST * 4];
    let length = sockopt::get(connection, SOL_SOCKET, SO_PEERGROUPS, &mut raw)?;
    raw.truncate(length);
    let groups = raw.as_chunks().0.iter();
    Ok(groups.map(|group| u32::from_ne_bytes(*group)).collect())
}

fn open_namespace(pid: i32, name: &str) -> io::Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{name}");
    Ok(std::fs::File::open(path)?.into())
}

/// A namespace of a process, if it is not that of this one.
fn other(pid: i32, name: &str) -> io::Result<Option<OwnedFd>> {
    let theirs = open_namespace(pid, name)?;
    let ours = std::fs::metadata(format!("/proc/self/ns/{name}"))?.ino();
    Ok((id(theirs.as_fd())? != ours).then_some(theirs))
}

/// The folder of the control group of a process, if it is not that of this one.
fn control_group_of(pid: i32) -> io::Result<Option<OwnedFd>> {
    let theirs = match control_group::path_of(&pid.to_string()) {
        // The kernel has none.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        theirs => theirs?,
    };
    if theirs == control_group::path_of("self")? {
        return Ok(None);
    }
    let folder = control_group::mount()?.join(theirs);
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH;
    Ok(Some(rustix::fs::open(folder, flags, Mode::empty())?))
}

fn has_ended(process: BorrowedFd<'_>) -> io::Result<bool> {
    let mut wait = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut wait, Some(&now))? > 0)
}
