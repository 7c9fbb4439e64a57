//! The new socket before it has its place, and how it follows what happens to the old one.

use super::neighbours::overlap as meet;
use super::{ReplaceOptions, Trouble, learn_devices};
use super::{group, neighbours};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ErrorKind};
use crate::find::{Found, Holder};
use crate::kernel::inject::Lazy;
use crate::kernel::{self, OpenFile, Queued, Sock};
use crate::map;
use crate::netns;
use crate::report::Report;
use crate::restore::Beside;
use crate::state::descriptor::{Descriptor, Owner};
use crate::state::endpoint::Failure;
use crate::state::membership;
use crate::state::receive_queue::{self, Datagram};
use rustix::fd::AsFd;
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown, fstat};
use rustix::net::RecvFlags;
use rustix::process::{getegid, geteuid};
use sockcr_sys::credentials;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

/// The old socket as it was dumped while its owner ran.
#[derive(Debug)]
pub(super) struct Before {
    /// The dump.
    pub socket: Checkpoint,
    /// The bytes of the kernel's own structure, where they alone tell that nothing has changed.
    bytes: Option<Vec<u8>>,
    /// What tells whether it is in use.
    signs: Signs,
}

/// What changes where somebody sends to a socket, or its owner reads from it.
#[derive(Debug, PartialEq, Eq)]
struct Signs {
    bytes: Vec<u8>,
    times: Vec<String>,
}

impl Before {
    /// Dumps it. A queue that changes faster than it is read is not worth to be loaded before: it is read
    /// when the owner stands still.
    pub fn of(found: &Found) -> Result<Before, Error> {
        let fd = found.socket.as_fd();
        let signs = signs(found)?;
        let mut socket = found.dump_without_queue()?;
        // Behind these there is more than is in the structure itself, and than `Draft::has_lists` looks at.
        let plain = socket.flow_labels.is_empty()
            && socket.errors.queue.is_empty()
            && socket.cork.is_none()
            && socket.reuseport_program.is_none()
            && !socket.options.has("SO_RXQ_OVFL");
        let bytes = match plain && looks(fd)? == signs.bytes {
            true => Some(signs.bytes.clone()),
            false => None,
        };
        match super::reader(&socket.name())?.receive_queue(fd) {
            Ok(queue) => {
                let report = &mut socket.report;
                socket.receive_queue =
                    receive_queue::told(queue, socket.protocol, &socket.options, report);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(Error::system("read the receive queue", error)),
        }
        learn_devices(&mut socket, fd);
        Ok(Before {
            socket,
            bytes,
            signs,
        })
    }
}

/// A new socket with everything but its place, made from a dump of the old one.
#[derive(Debug)]
pub(super) struct Draft {
    /// The old one as it was dumped, without its queue.
    pub old: Checkpoint,
    bytes: Option<Vec<u8>>,
    /// Its open file.
    pub file: OpenFile,
    /// What the new one is to be, without its queue, if the old one does not change.
    wanted: Checkpoint,
    /// What waited in it, and waits in the new one.
    queue: Vec<Datagram>,
    /// How many the new one has: less, where some could not be put into it.
    loaded: usize,
    /// The new one.
    pub new: OwnedFd,
    /// What it does not have.
    pub report: Report,
    /// Both have the same port in the same network namespace: SO_REUSEADDR lets them.
    pub same_port: bool,
    /// The new one takes the very place of the old one.
    pub beside: Beside,
}

impl Draft {
    pub fn new(
        found: &Found,
        before: Before,
        options: &ReplaceOptions,
        injector: &mut Lazy,
    ) -> Result<Draft, Error> {
        let Before {
            socket: mut old,
            bytes,
            signs: before,
        } = before;
        let mut wanted = wanted(old.clone(), options)?;
        let mut report = Report::default();
        wanted.known_losses(&mut report);
        exact(&wanted, &report, options)?;
        let failed = |error| Error::system(format!("{}: its network namespace", old.name()), error);
        let own;
        let place = match &options.netns {
            Some(netns) => netns,
            None => {
                own = sockcr_sys::netns::of_socket(found.socket.as_fd()).map_err(failed)?;
                &own
            }
        };
        let new = make(found, &wanted, place, &mut report)
            .and_then(|new| wanted.prepare(new, injector, &mut report))
            .map_err(|failure| wanted.explain(failure))?;
        let made = Checkpoint::dump_own_without_queue(&new)?;
        wanted.compare_unplaced(new.as_fd(), made, &mut report)?;
        exact(&wanted, &report, options)?;
        let (socket, fd) = (found.socket.as_fd(), new.as_fd());
        give_owner(socket, fd)
            .map_err(|error| Error::system(format!("{}: its owner", old.name()), error))?;
        if signs(found)? != before {
            // Some will come until it is replaced.
            get_ready(fd, injector, heard(&wanted))?;
        }
        let here = |fd| netns::cookie(fd).map_err(failed);
        let reader = super::reader(&old.name())?;
        let file = reader
            .sock(socket)
            .and_then(|sock| reader.open_file(&sock))
            .map_err(failed)?;
        let same_netns = here(socket)? == here(fd)?;
        let (before, after) = (old.endpoint.local, wanted.endpoint.local);
        let same_port = same_netns && before.port() != 0 && meet(before, after);
        if same_port {
            look_at_neighbours(found, &wanted, before == after, &mut report)?;
            exact(&wanted, &report, options)?;
        }
        let beside = match same_port && before == after {
            true => Beside::Replaced,
            false => Beside::Nobody,
        };
        wanted.receive_queue.clear();
        Ok(Draft {
            queue: std::mem::take(&mut old.receive_queue),
            loaded: waiting(new.as_fd())?,
            bytes,
            file,
            wanted,
            old,
            new,
            report,
            same_port,
            beside,
        })
    }

    /// Prepares to put datagrams of these protocols, IPv4 and IPv6, into the new socket.
    pub fn get_ready(&self, injector: &mut Lazy, protocols: (bool, bool)) -> Result<(), Error> {
        get_ready(self.new.as_fd(), injector, protocols)
    }

    /// The number that SIGIO tells, if it is on (O_ASYNC); of several, which it was nobody tells.
    pub fn asynchronous(&self, seats: &[Holder]) -> Option<RawFd> {
        let on = self.old.descriptor.is_some_and(|flags| flags.asynchronous);
        seats.first().filter(|_| on).map(|seat| seat.fd)
    }

    /// The old socket as it is now, without its queue; `None` where not one byte of it, as `sock` shows it, has changed.
    pub fn now(&self, found: &Found, sock: &Sock) -> Result<Option<Checkpoint>, Error> {
        let same = match &self.bytes {
            Some(bytes) => {
                sock.bytes() == bytes && self.has_flags(found) && self.has_lists(found)?
            }
            None => false,
        };
        match same {
            true => Ok(None),
            false => found.dump_without_queue().map(Some),
        }
    }

    /// Whether the flags of the open file are as they were, which is no part of the socket.
    fn has_flags(&self, found: &Found) -> bool {
        let (fd, pid) = (found.socket.as_fd(), Some(found.holder.pid));
        let now = Descriptor::dump(fd, pid, found.close_on_exec());
        now.ok() == self.old.descriptor
    }

    /// Whether it is a member of the same groups, with the same sources and in the same place, where it is in any: those
    /// are lists and arrays, of which the structure has the address alone.
    fn has_lists(&self, found: &Found) -> Result<bool, Error> {
        let old = &self.old;
        if old.memberships.is_empty() && old.reuseport_index.is_none() {
            return Ok(true);
        }
        let failed = |error| Error::system(format!("{}: read its groups", old.name()), error);
        let (fd, mut report) = (found.socket.as_fd(), Report::default());
        let now = super::reader(&old.name())?.read(fd).map_err(failed)?;
        Ok(now.reuseport_index == old.reuseport_index
            && !now.reuseport_program
            && membership::dump(fd, old.protocol, Some(&now), &mut report) == old.memberships
            && report.is_exact())
    }

    /// Whether the new one has nothing in it, like the old one when that was dumped.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.loaded == 0
    }

    /// What the new one is to be where [`Draft::now`] says that nothing has changed, and nothing waits in either.
    pub fn unchanged(&self) -> &Checkpoint {
        &self.wanted
    }

    /// Makes up for what happened since the dump: what the owner has read is read away, what came is put
    /// in. Both must stand still. `now`: the old `socket` as [`Draft::now`] says; `queue`: what waits in it. Answers
    /// what the new one is to be, and how many datagrams it has.
    pub fn catch_up(
        &self,
        socket: BorrowedFd<'_>,
        now: Option<Checkpoint>,
        queue: Vec<Queued>,
        options: &ReplaceOptions,
        injector: &mut Lazy,
        report: &mut Report,
    ) -> Result<(Checkpoint, usize), Trouble> {
        let mut now = match now {
            Some(now) if !is_same(&self.old, &now) => {
                return Err(Trouble::Again("its owner changes it meanwhile"));
            }
            now => now.unwrap_or_else(|| self.old.clone()),
        };
        let losses = &mut now.report;
        now.receive_queue = receive_queue::told(queue, now.protocol, &now.options, losses);
        learn_devices(&mut now, socket);
        let (gone, kept) = match overlap(&self.queue, &now.receive_queue) {
            // Which of them it has nobody knows.
            (1.., _) if self.loaded < self.queue.len() => (self.loaded, 0),
            overlap => overlap,
        };
        let mut wanted = wanted(now, options)?;
        wanted.receive_queue.drain(..kept);
        let later = &wanted.receive_queue;
        if !later.is_empty() && !is_ready(injector, later) {
            // It takes milliseconds: not while they stand still.
            let (ipv4, ipv6) = protocols(later);
            return Err(Trouble::Unprepared(ipv4, ipv6));
        }
        let new = self.new.as_fd();
        read_away(new, gone).map_err(|error| Error::system("read away", error))?;
        wanted.fill_queue(new, injector, report);
        let loaded = waiting(new)?;
        Ok((wanted, loaded))
    }
}

/// The bytes of the kernel's structure. Nothing in it counts datagrams.
fn looks(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Error> {
    let failed = |error| Error::system("look whether it is used", error);
    let reader = kernel::reader().map_err(|why| failed(io::Error::other(why)))?;
    Ok(reader.sock(fd).map_err(failed)?.bytes().to_vec())
}

fn signs(found: &Found) -> Result<Signs, Error> {
    Ok(Signs {
        bytes: looks(found.socket.as_fd())?,
        times: times(found),
    })
}

/// How long the threads of its owner have run: who reads datagrams runs.
fn times(found: &Found) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", found.holder.pid));
    let tasks = tasks.into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .collect()
}

/// How many datagrams wait in a socket.
fn waiting(fd: BorrowedFd<'_>) -> Result<usize, Error> {
    let failed = |error| Error::system("look into the new socket", error);
    let reader = kernel::reader().map_err(|why| failed(io::Error::other(why)))?;
    Ok(reader.read(fd).map_err(failed)?.receive_queue as usize)
}

/// A fresh socket, in the control group that the old one is of.
fn make(
    found: &Found,
    wanted: &Checkpoint,
    netns: &OwnedFd,
    report: &mut Report,
) -> Result<OwnedFd, Failure> {
    let failed = |error| Failure::at("control group", error);
    let reader = kernel::reader().map_err(|why| failed(io::Error::other(why)))?;
    let (socket, pid) = (found.socket.as_fd(), found.holder.pid);
    let maker = reader.origin(socket).map_err(failed)?.maker;
    let make = || match maker == (geteuid().as_raw(), getegid().as_raw()) {
        true => wanted.make(Some(netns)),
        false => credentials::as_maker(maker, || wanted.make(Some(netns)))
            .map_err(|error| Failure::at("become its user", error))?,
    };
    match group::inside(reader, socket, pid, make) {
        Ok(made) => made,
        Err(error) => {
            report.lose("control group", crate::error::reason(&error));
            make()
        }
    }
}

/// The new socket must take no address, and no datagram, of others.
fn look_at_neighbours(
    found: &Found,
    wanted: &Checkpoint,
    same_address: bool,
    report: &mut Report,
) -> Result<(), Error> {
    let (fd, local) = (found.socket.as_fd(), wanted.endpoint.local);
    let failed = |error| Error::system(format!("{}: who shares its address", wanted.name()), error);
    if !same_address {
        return match neighbours::has(fd, local, found.inode).map_err(failed)? {
            Some(inode) if !wanted.options.has("SO_REUSEADDR") => {
                let why = format!("inode {inode} has this address already");
                Err(Error::new(ErrorKind::Refused, wanted.name(), why))
            }
            _ => Ok(()),
        };
    }
    // A connected one is found by its peer; what is for many comes to all.
    if wanted.endpoint.peer.is_some() || local.ip().is_multicast() {
        return Ok(());
    }
    let reader = kernel::reader().map_err(|why| failed(io::Error::other(why)))?;
    let rivals = reader.rivals(fd).map_err(failed)?;
    // One of IPv6 that shares its port is put behind all others (`udp_lib_get_port`).
    let last = wanted.protocol.is_ipv6() && wanted.options.has("SO_REUSEPORT");
    if rivals.before && !last {
        let why =
            "another socket with its address gets what is for one of them, and then this one would";
        report.lose("place among those with its address", why);
    }
    if rivals.after && last {
        let why = "it gets what is for one of those with its address, and then another one would";
        report.lose("place among those with its address", why);
    }
    Ok(())
}

/// What the new socket is to be: edited, and called as it is to be called.
fn wanted(mut wanted: Checkpoint, options: &ReplaceOptions) -> Result<Checkpoint, Error> {
    for (name, value) in &options.edits {
        wanted.edit(name, value)?;
    }
    let mut used = vec![false; options.map.len()];
    map::apply_to(&mut wanted, &options.map, &mut used);
    if let Some(descriptor) = &mut wanted.descriptor {
        // Ours is close-on-exec whatever theirs is, and SIGIO is a matter of the end.
        (descriptor.close_on_exec, descriptor.owner) = (true, Owner::Nobody);
        descriptor.asynchronous = false;
    }
    Ok(wanted)
}

/// An error where something is not carried, unless that is allowed.
pub(super) fn exact(
    wanted: &Checkpoint,
    report: &Report,
    options: &ReplaceOptions,
) -> Result<(), Error> {
    match report.is_exact() || options.lossy {
        true => Ok(()),
        false => Err(wanted.refused(report)),
    }
}

/// The user that a socket belongs to: only sockets of one user share a port by SO_REUSEPORT
/// (`udp_lib_lport_inuse`, `reuseport_add_sock`), and rules of routing ask for it.
fn give_owner(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    let (old, now) = (fstat(old)?, fstat(new)?);
    if (old.st_uid, old.st_gid) != (now.st_uid, now.st_gid) {
        let (uid, gid) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
        fchown(new, Some(uid), Some(gid))?;
    }
    match old.st_mode == now.st_mode {
        true => Ok(()),
        false => Ok(fchmod(new, Mode::from_raw_mode(old.st_mode))?),
    }
}

/// Whether a socket is as it was, but for what waits in it and for what every datagram changes.
fn is_same(before: &Checkpoint, now: &Checkpoint) -> bool {
    let plain = |checkpoint: &Checkpoint| {
        let mut plain = checkpoint.clone();
        plain.receive_queue.clear();
        plain.report = Report::default();
        plain.interfaces = Default::default();
        (plain.in_flight, plain.drops) = (0, 0);
        if let Some(row) = crate::option::find("SO_INCOMING_CPU") {
            // `sk_incoming_cpu_update`
            plain.options.set(row, None);
        }
        plain
    };
    plain(before) == plain(now)
}

/// How many at the head of the queue were read since, and how many of those that wait now were there
/// before. Equal datagrams are equal to their reader too, so that any way to explain the difference is as
/// good as the true one.
fn overlap(before: &[Datagram], now: &[Datagram]) -> (usize, usize) {
    let least = before.len().saturating_sub(now.len());
    for gone in least..before.len() {
        let rest = before.get(gone..).unwrap_or_default();
        if now.starts_with(rest) {
            return (gone, rest.len());
        }
    }
    (before.len(), 0)
}

/// Takes datagrams away from the head of a queue.
fn read_away(fd: BorrowedFd<'_>, count: usize) -> io::Result<()> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    for _ in 0..count {
        rustix::net::recv(fd, &mut [0; 0][..], flags)?;
    }
    Ok(())
}

/// Whether what comes by these protocols is among the datagrams: IPv4, IPv6.
fn protocols(queue: &[Datagram]) -> (bool, bool) {
    let is_ipv6 = |datagram: &Datagram| datagram.destination.is_ipv6();
    (!queue.iter().all(is_ipv6), queue.iter().any(is_ipv6))
}

/// What may come: IPv4, IPv6.
fn heard(wanted: &Checkpoint) -> (bool, bool) {
    let ipv6 = wanted.protocol.is_ipv6();
    (!ipv6 || !wanted.options.has("IPV6_V6ONLY"), ipv6)
}

fn is_ready(injector: &Lazy, queue: &[Datagram]) -> bool {
    let (ipv4, ipv6) = protocols(queue);
    injector
        .made()
        .is_some_and(|made| made.is_ready(ipv4, ipv6))
}

/// Prepares to put datagrams of these protocols into a socket, in its network namespace.
fn get_ready(
    fd: BorrowedFd<'_>,
    injector: &mut Lazy,
    (ipv4, ipv6): (bool, bool),
) -> Result<(), Error> {
    netns::within(fd, || injector.get()?.get_ready(ipv4, ipv6))
        .map_err(|error| Error::system("prepare to put datagrams into the new socket", error))
}

/// The place that a new socket cannot take.
pub(super) fn explain(wanted: &Checkpoint, failure: Failure) -> Error {
    let error = wanted.explain(failure);
    match error.next_step() {
        Some(_) => error,
        None => error.help("nothing was changed"),
    }
}
