//! One attempt to replace a socket, while its owners stand still.

use super::draft::{self, Draft};
use super::epoll::{Instances, is_disarmed};
use super::stragglers::Stragglers;
use super::{KERNELS, Trouble, UNSEEN, told, unseen};
use super::{ReplaceOptions, Replaced, SO_REUSEADDR, SOL_SOCKET, Side};
use crate::checkpoint::Checkpoint;
use crate::deliver::{Place, process};
use crate::error::Error;
use crate::find::{Found, Holder};
use crate::kernel::inject::Lazy;
use crate::kernel::{Mark, Reader, Users};
use crate::report::Report;
use crate::restore::Beside;
use crate::state::meanwhile;
use rustix::fd::AsFd;
use rustix::process::{geteuid, getuid};
use sockcr_sys::foreign::{Failure, Wrong};
use sockcr_sys::swap::{REGISTRATIONS, Registration, Role, Supervisor, Swapped, Table};
use sockcr_sys::{barrier, credentials, descriptor};
use std::borrow::Cow;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

const SO_BINDTOIFINDEX: i32 = 62;
/// A device that there is none of. What is bound to it hears nobody, and keeps what it has heard.
const NO_DEVICE: i32 = i32::MAX;
/// An epoll instance that is no descriptor of an owner.
const ELSEWHERE: &str = "it is registered in an epoll instance that none of its owners has";

/// One attempt, while the owners stand still.
pub(super) struct Attempt<'a> {
    pub reader: &'static Reader,
    pub found: &'a Found,
    pub options: &'a ReplaceOptions,
    pub draft: &'a Draft,
    pub tables: &'a [Table],
    pub instances: Option<Instances>,
    pub injector: &'a mut Lazy,
    pub report: Report,
    /// Something of the old socket may be otherwise than it was.
    pub touched: bool,
    /// How long is waited for those who have it for a moment.
    pub patience: Duration,
}

/// What the two sockets have, when the new one has what the old one had.
struct Seen<'a> {
    wanted: Cow<'a, Checkpoint>,
    /// How many datagrams the new one has.
    loaded: usize,
    /// What is behind it came to the old one since.
    mark: Mark,
    /// The same of the new one.
    own: Mark,
}

/// What is known before the new socket takes its place.
struct Looked<'a> {
    registrations: Vec<Registration>,
    wanted: Cow<'a, Checkpoint>,
    /// What comes to the old one from now on.
    stragglers: Stragglers,
    /// What comes to the new one.
    own: Stragglers,
    /// How many datagrams the new one has.
    loaded: usize,
}

/// All that is needed to have the descriptors changed.
pub(super) struct Ready<'a> {
    looked: Looked<'a>,
    /// When it began to take its place, and when it had it.
    taking: Instant,
    placed: Instant,
}

impl<'a> Attempt<'a> {
    /// The old socket and the new one.
    fn both(&self) -> (BorrowedFd<'a>, BorrowedFd<'a>) {
        (self.found.socket.as_fd(), self.draft.new.as_fd())
    }

    /// Sees that nobody else uses it, while the owners are given the new socket, and has that take its place.
    pub fn get_ready(
        &mut self,
        supervisor: &mut Supervisor,
        seen: usize,
    ) -> Result<Ready<'a>, Trouble> {
        let looked = self.look(seen);
        if looked.is_err() {
            // Where the giving failed, the owners run again, and what was seen is not the reason.
            told(supervisor.given(), self.tables)?;
        }
        let looked = looked?;
        let taking = Instant::now();
        let taken = self.take_place(&looked.wanted).map_err(Trouble::from);
        let placed = Instant::now();
        match told(supervisor.given(), self.tables).and(taken) {
            Ok(()) => Ok(Ready {
                looked,
                taking,
                placed,
            }),
            Err(trouble) => Err(self.give_back(looked.own, trouble)),
        }
    }

    /// Sees that nobody else uses it, and makes up for what happened to it; nothing of the old socket is touched.
    fn look(&mut self, seen: usize) -> Result<Looked<'a>, Trouble> {
        let registrations = self.registrations(seen)?;
        // Not before it is known that nobody else has it, who could change it.
        let sock = self.reader.sock(self.both().0).map_err(unseen)?;
        if self.reader.is_kernels(&sock).map_err(unseen)? {
            return Err(Trouble::Refused(KERNELS.into()));
        }
        let now = self.draft.now(self.found, &sock)?;
        let nothing_waits = self.reader.nothing_waits(&sock).map_err(unseen)?;
        let seen = match now {
            None if nothing_waits && self.draft.is_empty() => Seen {
                wanted: Cow::Borrowed(self.draft.unchanged()),
                loaded: 0,
                mark: Mark::of_nothing(),
                own: Mark::of_nothing(),
            },
            now => self.catch_up(now)?,
        };
        self.approach(&seen.wanted)?;
        Ok(Looked {
            registrations,
            wanted: seen.wanted,
            stragglers: Stragglers::behind(seen.mark),
            own: Stragglers::behind(seen.own),
            loaded: seen.loaded,
        })
    }

    /// Makes up for what happened to it. `now`: as [`Draft::now`] says.
    fn catch_up(&mut self, now: Option<Checkpoint>) -> Result<Seen<'a>, Trouble> {
        let (old, new) = self.both();
        let mut mark = Mark::default();
        let queue = self.reader.queue_behind(old, &mut mark);
        let queue = queue.map_err(|error| Error::system("read the receive queue", error))?;
        let (options, report) = (self.options, &mut self.report);
        let (wanted, loaded) =
            self.draft
                .catch_up(old, now, queue, options, self.injector, report)?;
        let mut known = Report::default();
        wanted.known_losses(&mut known);
        draft::exact(&wanted, &known, options)?;
        draft::exact(&wanted, &self.report, options)?;
        Ok(Seen {
            wanted: Cow::Owned(wanted),
            loaded,
            mark,
            own: self.reader.end_of_queue(new).map_err(unseen)?,
        })
    }

    /// What the new socket got in the place that it had for a moment goes to the old one, which has it
    /// again.
    fn give_back(&mut self, own: Stragglers, trouble: Trouble) -> Trouble {
        if !self.draft.same_port {
            return trouble;
        }
        let mut report = Report::default();
        let given = self.put_into_old(own, &mut report);
        let lost = match given {
            Ok(()) => report.not_carried.first().map(|note| note.reason.clone()),
            Err(error) => Some(crate::error::reason(&error)),
        };
        let Some(why) = lost else {
            return trouble;
        };
        match trouble {
            Trouble::Failed(error) => error
                .help(format!("and what came meanwhile is lost: {why}"))
                .into(),
            _ => Error::system("put back what came meanwhile", io::Error::other(why)).into(),
        }
    }

    fn put_into_old(&mut self, mut own: Stragglers, report: &mut Report) -> io::Result<()> {
        let (old, new) = self.both();
        deafen(new)?;
        own.look(self.reader, new, old)?;
        // Who had found the new one before it was deaf has put into it what it had.
        wait_for_all();
        own.look(self.reader, new, old)?;
        own.put_in(&self.draft.old, (new, old), &[], self.injector, report)
            .map(drop)
    }

    /// Who uses it: nobody new while its owners stand still, but perhaps somebody who was just started.
    fn users(&self, seen: usize) -> io::Result<Users> {
        let end = Instant::now() + self.patience;
        loop {
            let users = self.reader.users_of(self.draft.file)?;
            if users.references == seen as u64 + 1 || Instant::now() >= end {
                return Ok(users);
            }
            std::thread::yield_now();
        }
    }

    /// Where it is registered, if nobody has it whom nobody sees.
    /// `seen`: the descriptors of all of them, and ours; the child has one more.
    fn registrations(&mut self, seen: usize) -> Result<Vec<Registration>, Trouble> {
        let users = self.users(seen).map_err(unseen)?;
        if users.references != seen as u64 + 1 {
            return Err(Trouble::Again(UNSEEN));
        }
        if users.registrations == 0 {
            return Ok(Vec::new());
        }
        let mut all = match &self.instances {
            Some(instances) => instances.registrations(self.tables, self.found.inode)?,
            None => Vec::new(),
        };
        if of_itself(&all) != users.registrations {
            let instances = Instances::find(self.tables)?;
            all = instances.registrations(self.tables, self.found.inode)?;
        }
        if of_itself(&all) != users.registrations {
            return Err(Trouble::Again(ELSEWHERE));
        }
        match all.len() <= REGISTRATIONS {
            true => Ok(all),
            false => Err(Trouble::Refused(format!(
                "has more than {REGISTRATIONS} registrations in epoll instances"
            ))),
        }
    }

    /// What the new socket needs for its place, and what nobody sees.
    fn approach(&self, wanted: &Checkpoint) -> Result<(), Error> {
        let (old, new) = self.both();
        give_signals(old, new)
            .map_err(|error| Error::system("whom SIGIO is for (F_SETOWN)", error))?;
        match self.draft.same_port {
            true => share(wanted, new, true),
            false => Ok(()),
        }
    }

    /// Has the new socket take its place, beside the old one where that has the same port.
    fn take_place(&mut self, wanted: &Checkpoint) -> Result<(), Error> {
        let (old, new) = self.both();
        self.touched = true;
        if self.draft.same_port {
            share(wanted, old, true)?;
        }
        wanted
            .settle(new, self.draft.beside, self.injector, &mut self.report)
            .map_err(|failure| draft::explain(wanted, failure))?;
        if self.draft.same_port {
            share(wanted, new, wanted.options.has("SO_REUSEADDR"))?;
        }
        let options = self.options;
        let same = options.edits.is_empty() && options.map.is_empty();
        let same = same && self.draft.beside == Beside::Replaced;
        wanted.compare_placed(new, same, &mut self.report)?;
        draft::exact(wanted, &self.report, self.options)
    }

    /// Has the descriptors changed. From the first step on it goes on to the end, with us or without.
    pub fn finish(
        mut self,
        mut supervisor: Supervisor,
        ready: Ready<'a>,
        seats: Vec<Holder>,
        attempts: u32,
    ) -> Result<Replaced, Trouble> {
        let (old, new) = self.both();
        let Ready {
            looked,
            taking,
            placed,
        } = ready;
        let Looked {
            registrations,
            wanted,
            mut stragglers,
            own,
            loaded,
        } = looked;
        let committed = supervisor.commit(&registrations);
        if let Err(trouble) = told(committed, self.tables) {
            return Err(self.give_back(own, trouble));
        }
        let before = Instant::now();
        self.tell(deafen(old));
        let deaf = Instant::now();
        self.tell(stragglers.look(self.reader, old, new));
        let swapped = supervisor.let_go();
        let mut count = self.put_in(&mut stragglers);
        // Who had found the old one before it was deaf has put into it what it had.
        wait_for_all();
        self.tell(stragglers.look(self.reader, old, new));
        count += self.put_in(&mut stragglers);
        let swapped = match swapped {
            Ok(Err(failure)) if failure.wrong == Wrong::Ended => {
                return Err(ended(failure, self.tables).into());
            }
            swapped => told(swapped, self.tables)?,
        };
        self.check_group(&wanted);
        self.check_errors(&wanted);
        self.check_registrations(&registrations, &swapped);
        Ok(Replaced {
            old: side(&self.draft.old, self.found.inode),
            new: side(&wanted, inode(new)?),
            seats,
            registrations: of_itself(&registrations) - swapped.failed_registrations,
            stopped: swapped.stopped,
            unbound: placed.saturating_duration_since(before),
            crowded: if self.is_crowded(&wanted) {
                deaf - taking
            } else {
                Duration::ZERO
            },
            carried: loaded + count,
            reordered: count,
            attempts,
            report: self.report,
        })
    }

    fn put_in(&mut self, stragglers: &mut Stragglers) -> usize {
        let (before, both) = (&self.draft.old, self.both());
        let map = &self.options.map;
        let done = stragglers.put_in(before, both, map, self.injector, &mut self.report);
        done.unwrap_or_else(|error| {
            self.tell(Err(error));
            0
        })
    }

    /// What is lost where there is no way back any more.
    fn tell(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            let what = "datagrams that came meanwhile";
            self.report.lose(what, crate::error::reason(&error));
        }
    }

    /// Which registrations in epoll instances are not as they were.
    fn check_registrations(&mut self, registrations: &[Registration], swapped: &Swapped) {
        if swapped.failed_registrations > 0 {
            let why = format!("{} could not be made again", swapped.failed_registrations);
            self.report.lose("epoll registrations", why);
        }
        let disarmed = |one: &&Registration| one.role == Role::Armed && is_disarmed(one.events);
        let given_up = registrations.iter().filter(disarmed).count();
        let armed = swapped.armed_registrations + given_up;
        if armed > 0 {
            let why = format!("{armed} of them tell of EPOLLERR until they are armed again");
            self.report.lose("disarmed epoll registrations", why);
        }
    }

    /// What became of datagrams that the owner had sent is told to the socket that sent them.
    fn check_errors(&mut self, wanted: &Checkpoint) {
        let now = self.reader.read(self.both().0);
        let Some(now) = self.report.known("errors", now) else {
            return;
        };
        let (pending, queue) = (wanted.errors.pending, wanted.errors.queue.len());
        if now.pending_error != pending || now.error_queue as usize > queue {
            let why = "came to the old socket while it was replaced";
            self.report.lose("errors", why);
        }
    }

    /// Whether the kernel chooses by hash between it and others (`reuseport_select_sock_by_hash`).
    fn is_crowded(&self, wanted: &Checkpoint) -> bool {
        let by_hash = wanted.reuseport_index.is_some() && wanted.reuseport_program.is_none();
        let (_, new) = self.both();
        by_hash && self.draft.same_port && !self.reader.group_size(new).is_ok_and(|size| size <= 1)
    }

    /// The place in a SO_REUSEPORT group decides which flows a socket gets.
    fn check_group(&mut self, wanted: &Checkpoint) {
        let Some(before) = wanted
            .reuseport_index
            .filter(|_| self.draft.beside == Beside::Replaced)
        else {
            return;
        };
        let now = self.reader.read(self.draft.new.as_fd());
        let now = now.ok().and_then(|hidden| hidden.reuseport_index);
        if now != Some(before) {
            let now = now.map_or("none".into(), |now| now.to_string());
            let why = format!("its place {before} became {now}");
            self.report.lose("SO_REUSEPORT group", why);
        }
    }
}

/// How many are of the socket itself.
fn of_itself(registrations: &[Registration]) -> usize {
    let own = |one: &&Registration| one.role != Role::Other;
    registrations.iter().filter(own).count()
}

fn share(wanted: &Checkpoint, fd: BorrowedFd<'_>, on: bool) -> Result<(), Error> {
    let failed = |error| Error::system(format!("{}: SO_REUSEADDR", wanted.name()), error);
    meanwhile::set(fd, SOL_SOCKET, SO_REUSEADDR, on.into()).map_err(failed)
}

/// From now on it hears nobody; what it has heard stays (`udp_lib_rehash`, `sock_bindtoindex_locked`). It
/// leaves its SO_REUSEPORT group, whose last member gets its place (`__reuseport_detach_sock`).
fn deafen(fd: BorrowedFd<'_>) -> io::Result<()> {
    meanwhile::set(fd, SOL_SOCKET, SO_BINDTOIFINDEX, NO_DEVICE)
}

fn wait_for_all() {
    if barrier::wait_for_all().is_err() {
        // No processor takes longer to put one packet into a queue.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whom SIGIO and SIGURG are for, in the name of whoever said so: his rights count when one is sent
/// (`sigio_perm`).
fn give_signals(old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> io::Result<()> {
    let (kind, id) = match descriptor::owner(old)? {
        (_, 0) => return Ok(()),
        owner => owner,
    };
    let users = descriptor::owner_set_by(old)?;
    match users == (getuid().as_raw(), geteuid().as_raw()) {
        true => descriptor::set_owner(new, kind, id),
        false => credentials::as_user(users, || descriptor::set_owner(new, kind, id)),
    }
}

fn side(checkpoint: &Checkpoint, inode: u64) -> Side {
    Side {
        inode,
        local: checkpoint.endpoint.local,
        peer: checkpoint.endpoint.peer,
    }
}

fn inode(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    let stat = rustix::fs::fstat(fd);
    Ok(stat
        .map_err(|error| Error::system("fstat", error.into()))?
        .st_ino)
}

/// There is no way back: those who live on have the new socket.
fn ended(failure: Failure, tables: &[Table]) -> Error {
    let pid = match failure.tid {
        0 => tables.first().map_or(0, |table| table.pid),
        tid => tid,
    };
    let error = process::explain(Place { pid, fd: None }, failure);
    error.help("all other owners have the new socket")
}
