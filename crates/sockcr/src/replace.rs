//! A socket replaced by another one, inside the processes that have it: checkpoint and restore in place.
//!
//! The new socket is complete before the old one loses its place, and both have it for a moment: the
//! last one that was bound gets what comes (SO_REUSEADDR at both). The processes stand still while
//! what has happened since the dump is made up for, and while the descriptors change hands; a child
//! process does that part, which goes back or on to its end if we are killed (`sockcr_sys::swap`).
//! ARCHITECTURE.md, "How a socket is replaced", has the whole order.

mod attempt;
mod draft;
mod epoll;
mod group;
mod holders;
mod neighbours;
mod stragglers;

use crate::checkpoint::Checkpoint;
use crate::deliver::Place;
use crate::deliver::process;
use crate::error::{Error, ErrorKind};
use crate::find::{Found, Holder};
use crate::kernel::inject::Lazy;
use crate::kernel::{self, Reader, Users};
use crate::map::{self, Mapping};
use crate::protocol;
use crate::report::Report;
use attempt::Attempt;
use draft::{Before, Draft};
use epoll::Instances;
use holders::Holders;
use rustix::fd::AsFd;
use sockcr_sys::foreign::{Failure, Wrong};
use sockcr_sys::guard::Step;
use sockcr_sys::swap::{Supervisor, Swap, Table};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
/// How often it is tried again where the socket changes meanwhile.
const ATTEMPTS: u32 = 8;
/// How long a process that an owner has just started may keep what it was born with, before it executes a program or
/// ends; so many times longer with each attempt.
const BIRTH: Duration = Duration::from_micros(300);
/// Who has it that is no process.
const KERNELS: &str = "is used by the kernel itself: a tunnel, or a BPF map (sockmap)";
/// What an owner does that we see half way.
const GONE: &str = "an owner closed it, or ended";
/// Who is no descriptor of any process.
const UNSEEN: &str = "somebody has it whom nobody sees: a message on its way (SCM_RIGHTS), a ring of \
                      io_uring, or a process that was just started";
/// A thread that does not stop.
const ASLEEP: &str = "a thread of an owner waits in the kernel for something that nothing interrupts, such as a disk or \
                      a vfork(2)";

/// How to replace.
#[derive(Debug, Default)]
pub struct ReplaceOptions {
    /// What the new socket has otherwise: names and values, as [`Checkpoint::edit`] takes them.
    pub edits: Vec<(String, String)>,
    /// Addresses and devices that are to be called otherwise.
    pub map: Vec<Mapping>,
    /// The network namespace of the new socket; `None` for that of the old one.
    pub netns: Option<OwnedFd>,
    /// Go on without what cannot be carried exactly, and report it.
    pub lossy: bool,
}

/// A socket before or after it was replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// Its inode.
    pub inode: u64,
    /// Its local address.
    pub local: SocketAddr,
    /// Its peer.
    pub peer: Option<SocketAddr>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The socket that there was.
    pub old: Side,
    /// The socket that there is.
    pub new: Side,
    /// Each descriptor that is the new socket now.
    pub seats: Vec<Holder>,
    /// How many registrations in epoll instances were made anew.
    pub registrations: usize,
    /// How long the processes stood still, at most, all attempts together.
    pub stopped: Duration,
    /// How long the old one was deaf and the new one not in its place yet: nothing, in the order that this is done.
    pub unbound: Duration,
    /// How long both were in one SO_REUSEPORT group with others that is chosen from by hash: the kernel had one
    /// more to choose from, so that some datagrams of some senders came to other members. Zero: no such group.
    pub crowded: Duration,
    /// How many datagrams of the old socket are in the new one.
    pub carried: usize,
    /// How many of these stand behind others that came later.
    pub reordered: usize,
    /// How often the processes were held, because something had changed meanwhile.
    pub attempts: u32,
    /// What the new socket does not have: with `lossy` anything, else only what was seen when there was no way back
    /// any more.
    pub report: Report,
}

/// Why an attempt did not lead to the end.
#[derive(Debug)]
enum Trouble {
    /// It may the next time.
    Again(&'static str),
    /// It may when the new socket can be given datagrams of these protocols: IPv4, IPv6.
    Unprepared(bool, bool),
    /// The socket cannot be replaced, because of this.
    Refused(String),
    /// It failed.
    Failed(Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Trouble {
        Trouble::Failed(error)
    }
}

/// A socket that is going to be replaced: the new one is there, and nothing of the old one is touched.
#[derive(Debug)]
pub struct Replacement<'a> {
    found: Found,
    options: &'a ReplaceOptions,
    draft: Draft,
    injector: Lazy,
}

/// Does some work, such as to [`prepare`] and carry out, in a copy of this process that comes to its end whatever becomes of
/// us: killed half way by whoever kills us, the one who replaces loses the datagrams that it has in its hands. Answers what
/// the work answers; at its end nothing is flushed.
///
/// The process must have one thread.
pub fn undisturbed(work: impl FnOnce() -> u8) -> Result<u8, Error> {
    match sockcr_sys::process::outlive(work) {
        Ok(sockcr_sys::process::PANICKED) => {
            let why = "the process that did it ended before its time";
            Err(Error::new(ErrorKind::System, "replace", why))
        }
        ended => ended.map_err(|error| Error::system("replace: start a process for it", error)),
    }
}

/// Makes the new sockets for all of these, or answers why one of them cannot be replaced. Nothing is
/// touched; [`Replacement::carry_out`] does the rest.
///
/// Needs CAP_BPF and CAP_PERFMON, since nobody else sees who has a socket, the rights of ptrace(2) on
/// its owners, and the privileges of a restore ([`Checkpoint::restore`]).
pub fn prepare(found: Vec<Found>, options: &ReplaceOptions) -> Result<Vec<Replacement<'_>>, Error> {
    let mut old = Vec::with_capacity(found.len());
    for socket in &found {
        refuse_kind(socket)?;
        old.push(Before::of(socket)?);
    }
    check_maps(&old, options)?;
    let mut replacements = Vec::with_capacity(found.len());
    for (found, old) in found.into_iter().zip(old) {
        let mut injector = Lazy::default();
        let draft = Draft::new(&found, old, options, &mut injector)?;
        replacements.push(Replacement {
            found,
            options,
            draft,
            injector,
        });
    }
    Ok(replacements)
}

/// Looks up the devices of datagrams that were added to a checkpoint, where the socket lives.
fn learn_devices(checkpoint: &mut Checkpoint, fd: BorrowedFd<'_>) {
    let mut interfaces = std::mem::take(&mut checkpoint.interfaces);
    let mut report = std::mem::take(&mut checkpoint.report);
    checkpoint.each_interface(|index| interfaces.learn(fd, *index, &mut report));
    (checkpoint.interfaces, checkpoint.report) = (interfaces, report);
}

/// Whether each mapping names something in one of them, after the edits.
fn check_maps(old: &[Before], options: &ReplaceOptions) -> Result<(), Error> {
    let mut edited: Vec<Checkpoint> = old.iter().map(|old| old.socket.clone()).collect();
    for checkpoint in &mut edited {
        for (name, value) in &options.edits {
            checkpoint.edit(name, value)?;
        }
    }
    map::apply(&edited, &options.map).map(drop)
}

/// What is never replaced.
fn refuse_kind(found: &Found) -> Result<(), Error> {
    let fd = found.socket.as_fd();
    let protocol = protocol::of(fd)?;
    let name = format!(
        "process {}, descriptor {}",
        found.holder.pid, found.holder.fd
    );
    let refused = |why: &str| Err(Error::new(ErrorKind::Refused, &name, why));
    if found.holder.pid == std::process::id() as i32 {
        return refused("is a socket of this process itself");
    }
    if protocol.is_raw() {
        return refused("is a raw socket: two of them would hear everything twice");
    }
    if !protocol.is_udp() {
        return refused(&format!(
            "is a {protocol} socket: only those of UDP are replaced"
        ));
    }
    let reader = reader(&name)?;
    let failed = |error| Error::system(format!("{name}: see who uses it"), error);
    if reader.read(fd).map_err(failed)?.encapsulated != 0 {
        return refused("has UDP_ENCAP: its datagrams are for the kernel (IPsec, L2TP)");
    }
    // Not while they stand still.
    reader.get_ready().map_err(failed)?;
    reader.users(fd).map_err(failed)?;
    let sock = reader.sock(fd).map_err(failed)?;
    match reader.is_kernels(&sock).map_err(failed)? {
        true => refused(KERNELS),
        false => Ok(()),
    }
}

/// Says who it may be that nobody sees.
fn unseen_by_name(found: &Found, why: &str) -> String {
    match holders::ring(found) {
        Some(pid) if why == UNSEEN => {
            format!("process {pid} has a ring of io_uring, and somebody has it whom nobody sees")
        }
        _ => why.into(),
    }
}

fn reader(name: &str) -> Result<&'static Reader, Error> {
    kernel::reader().map_err(|why| {
        let kind = match why.is_privilege() {
            true => ErrorKind::NotPermitted,
            false => ErrorKind::NotSupported,
        };
        Error::new(kind, name, format!("only BPF sees who has it: {why}"))
    })
}

impl Replacement<'_> {
    /// Replaces it. On an error the old one is where it was, with all that it had. Meanwhile this thread is kept off the
    /// processor that an owner runs on, if there is another one (`sched_setaffinity(2)`).
    ///
    /// If this process is killed meanwhile, its owners have the old socket or the new one, in all their
    /// descriptors, and go on.
    pub fn carry_out(mut self) -> Result<Replaced, Error> {
        let mut attempts = 1;
        let mut stopped = Duration::ZERO;
        loop {
            let trouble = match self.attempt(attempts, &mut stopped) {
                Ok(replaced) => return Ok(replaced),
                Err(trouble) => trouble,
            };
            let why = match trouble {
                Trouble::Again(why) => why,
                Trouble::Unprepared(ipv4, ipv6) => {
                    self.draft.get_ready(&mut self.injector, (ipv4, ipv6))?;
                    "datagrams came that nothing was prepared for"
                }
                Trouble::Refused(why) => return Err(self.refused(&why)),
                Trouble::Failed(error) => return Err(error),
            };
            if attempts == ATTEMPTS {
                return Err(self
                    .refused(&unseen_by_name(&self.found, why))
                    .help(format!("tried {ATTEMPTS} times; nothing was changed")));
            }
            if why == ASLEEP {
                std::thread::sleep(attempts * Duration::from_millis(2));
            }
            attempts += 1;
            self = self.again()?;
        }
    }

    /// Another new socket; the one that there was is gone by then: it may have an address already.
    fn again(self) -> Result<Self, Error> {
        let Replacement {
            found,
            options,
            draft,
            mut injector,
        } = self;
        drop(draft);
        let old = Before::of(&found)?;
        let draft = Draft::new(&found, old, options, &mut injector)?;
        Ok(Replacement {
            found,
            options,
            draft,
            injector,
        })
    }

    fn refused(&self, why: &str) -> Error {
        Error::new(ErrorKind::Refused, self.draft.old.name(), why)
    }

    /// `stopped`: how long its owners have stood still before, in vain.
    fn attempt(&mut self, attempts: u32, stopped: &mut Duration) -> Result<Replaced, Trouble> {
        let reader = reader(&self.draft.old.name())?;
        let Holders {
            tables,
            mut seats,
            ours,
        } = holders::find(&self.found)?;
        let old = self.found.socket.as_fd();
        // It would stand still in the middle of a call of ours.
        if let Some(table) = tables.iter().find(|table| group::is_frozen(table.pid)) {
            let why = format!(
                "process {} is frozen (cgroup.freeze): thaw it first",
                table.pid
            );
            return Err(Trouble::Refused(why));
        }
        let plan = Swap {
            old,
            new: self.draft.new.as_fd(),
            inode: self.found.inode,
            asynchronous: self.draft.asynchronous(&seats),
            undo: self.undo()?,
            tables,
        };
        let mut supervisor = Supervisor::start(&plan)
            .map_err(|error| Error::system("start the process that watches over it", error))?;
        let users = rehearse(reader, &plan)?;
        let instances = match users.registrations {
            0 => None,
            _ => Some(Instances::find(&plan.tables)?),
        };
        let mut attempt = Attempt {
            reader,
            found: &self.found,
            options: self.options,
            draft: &self.draft,
            tables: &plan.tables,
            instances,
            injector: &mut self.injector,
            report: self.draft.report.clone(),
            touched: false,
            patience: (attempts - 1) * BIRTH,
        };
        let since = Instant::now();
        let there = told(supervisor.hold(), &plan.tables);
        let there = there.inspect_err(|_| *stopped += since.elapsed())?;
        for (table, _) in plan.tables.iter().zip(there).filter(|(_, there)| !there) {
            seats.retain(|seat| (seat.pid, seat.tid) != (table.pid, table.tid));
        }
        let ready = match attempt.get_ready(&mut supervisor, seats.len() + ours) {
            Ok(ready) => ready,
            Err(trouble) => {
                drop(supervisor);
                *stopped += since.elapsed();
                if attempt.touched {
                    undo(&plan);
                }
                return Err(trouble);
            }
        };
        let done = attempt.finish(supervisor, ready, seats, attempts);
        match done {
            Ok(mut replaced) => {
                replaced.stopped += *stopped;
                Ok(replaced)
            }
            Err(trouble) => {
                *stopped += since.elapsed();
                undo(&plan);
                Err(trouble)
            }
        }
    }

    /// What puts the old socket back as it was, without us.
    fn undo(&self) -> Result<Vec<Step>, Error> {
        if !self.draft.same_port {
            return Ok(Vec::new());
        }
        let step = Step::now(self.found.socket.as_fd(), SOL_SOCKET, SO_REUSEADDR);
        Ok(vec![step.map_err(|e| Error::system("SO_REUSEADDR", e))?])
    }
}

/// Looks at all that will be looked at while the owners stand still. The supervisor has a copy of our memory, of which
/// each page is copied when it is first written to: that takes longer than the look itself.
fn rehearse(reader: &Reader, plan: &Swap<'_>) -> Result<Users, Trouble> {
    reader.read(plan.new).map_err(unseen)?;
    reader.glance_at_queue(plan.old);
    reader.users(plan.old).map_err(unseen)
}

/// The same as the child process does, which may have given us up before the last that we did.
fn undo(plan: &Swap<'_>) {
    for step in &plan.undo {
        // The error that led here is the one to tell.
        let _ = step.take(plan.old);
    }
}

/// What a failure of the child process means.
fn told<T>(answer: io::Result<Result<T, Failure>>, tables: &[Table]) -> Result<T, Trouble> {
    match answer {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(Failure {
            wrong: Wrong::Taken | Wrong::Ended,
            ..
        })) => Err(Trouble::Again(GONE)),
        Ok(Err(Failure {
            wrong: Wrong::Stop, ..
        })) => Err(Trouble::Again(ASLEEP)),
        Ok(Err(failure)) => {
            let pid = match failure.tid {
                0 => tables.first().map_or(0, |table| table.pid),
                tid => tid,
            };
            let place = Place { pid, fd: None };
            Err(process::explain(place, failure).into())
        }
        Err(error) => Err(Error::system("the process that watches over it", error).into()),
    }
}

fn unseen(error: io::Error) -> Trouble {
    Error::system("see who uses it", error).into()
}
