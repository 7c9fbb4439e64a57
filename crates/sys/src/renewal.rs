//! Registrations in epoll instances, renewed for processes that stand still.
//!
//! The kernel knows a registration by its open file and its *number* (`struct epoll_filefd`), not by the process. So
//! whoever has taken the epoll instance from a process, and has a socket at that number itself for a moment, can
//! renew it: fifty times cheaper than calls in the process, and also where that has closed the number.
//!
//! A one-shot registration is disarmed by its event alone (`ep_send_events`): whatever is written to it has EPOLLERR
//! and EPOLLHUP. So a disarmed one is made to fire once more, for us. Whatever else fires with it is armed again,
//! which reports it again if it is still so (`ep_modify`), also what has the same data; what is level-triggered stays
//! in the list by itself.

use crate::descriptor;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// How many registrations can be given.
pub const REGISTRATIONS: usize = 4096;

/// What a registration is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// One of the old socket, which is to be one of the new socket.
    Armed = 0,
    /// The same; it is disarmed, and is to be so again. No more than [`REGISTRATIONS`] are in its instance.
    Disarmed = 1,
    /// One of another file, beside a disarmed one: its event may be taken, and is given back where it would not be told
    /// again by itself. The file must tell anybody the same, however often he asks.
    Other = 2,
}

/// One registration in an epoll instance.
#[derive(Clone, Copy, Debug)]
pub struct Registration {
    /// A table that has the epoll instance, by its place in the plan.
    pub table: usize,
    /// Where it has it.
    pub epoll: RawFd,
    /// The number that it was registered by; that of the old socket may be closed since.
    pub fd: RawFd,
    /// The events, with all flags, as /proc/PID/fdinfo tells them.
    pub events: u32,
    /// What the program wants to be told with them.
    pub data: u64,
    /// What it is to be.
    pub role: Role,
}

impl Registration {
    pub(crate) const WORDS: usize = 7;

    pub(crate) fn to_words(self) -> [i32; Registration::WORDS] {
        [
            self.table as i32,
            self.epoll,
            self.fd,
            self.events as i32,
            self.data as i32,
            (self.data >> 32) as i32,
            self.role as i32,
        ]
    }

    pub(crate) fn from_words(words: [i32; Registration::WORDS]) -> Registration {
        let [table, epoll, fd, events, low, high, role] = words;
        Registration {
            table: table as usize,
            epoll,
            fd,
            events: events as u32,
            data: u64::from(low as u32) | u64::from(high as u32) << 32,
            role: match role {
                1 => Role::Disarmed,
                2 => Role::Other,
                _ => Role::Armed,
            },
        }
    }

    fn is_in(&self, epoll: &Epoll) -> bool {
        (self.table, self.epoll) == (epoll.table, epoll.fd)
    }

    /// Its event, once told, is not told again by itself.
    fn is_told_once(&self) -> bool {
        const ONCE: u32 = (libc::EPOLLET | libc::EPOLLONESHOT) as u32;
        const OTHERS: u32 = (libc::EPOLLEXCLUSIVE | libc::EPOLLWAKEUP) as u32;
        let disarmed = self.events & !(ONCE | OTHERS) == 0;
        self.events & ONCE != 0 && self.role != Role::Disarmed && !disarmed
    }
}

/// An epoll instance, as it is known in a table, and here.
struct Epoll {
    table: usize,
    fd: RawFd,
    file: OwnedFd,
    /// Something in it is not known, so that no event may be taken.
    unknown: bool,
}

/// What could not be done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Remains {
    /// So many registrations are lost.
    pub failed: i32,
    /// So many that were disarmed tell of errors.
    pub armed: i32,
}

/// All that is to be renewed. It has its room from the start.
pub(crate) struct Renewal {
    registrations: Vec<Registration>,
    /// The files of [`Role::Other`], and the place of each.
    others: Vec<(usize, OwnedFd)>,
    epolls: Vec<Epoll>,
    told: Vec<libc::epoll_event>,
}

impl Renewal {
    pub(crate) fn new() -> Renewal {
        Renewal {
            registrations: Vec::with_capacity(REGISTRATIONS),
            others: Vec::with_capacity(REGISTRATIONS),
            epolls: Vec::with_capacity(REGISTRATIONS),
            told: Vec::with_capacity(REGISTRATIONS),
        }
    }

    /// Adds one, and takes its epoll instance from the thread: the last thing that can fail.
    pub(crate) fn add(
        &mut self,
        one: Registration,
        tid: i32,
        limit: Option<u64>,
    ) -> io::Result<()> {
        if self.registrations.len() == REGISTRATIONS {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let epoll = self.take_epoll(&one, tid)?;
        let beyond = one.fd < 0 || limit.is_some_and(|limit| one.fd as u64 >= limit);
        if one.role == Role::Other {
            match take_other(&one, tid, &self.epolls[epoll]) {
                Ok(file) if !beyond => self.others.push((self.registrations.len(), file)),
                _ => self.epolls[epoll].unknown = true,
            }
        } else if beyond {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.registrations.push(one);
        Ok(())
    }

    fn take_epoll(&mut self, one: &Registration, tid: i32) -> io::Result<usize> {
        if let Some(at) = self.epolls.iter().position(|known| one.is_in(known)) {
            return Ok(at);
        }
        self.epolls.push(Epoll {
            table: one.table,
            fd: one.epoll,
            file: descriptor::of_thread(tid, one.epoll)?,
            unknown: false,
        });
        Ok(self.epolls.len() - 1)
    }

    /// Renews all. No program runs meanwhile that could see one missing.
    pub(crate) fn renew_all(&mut self, old: BorrowedFd<'_>, new: BorrowedFd<'_>) -> Remains {
        let mut remains = Remains::default();
        let own = |one: &&Registration| one.role != Role::Other;
        for one in self.registrations.iter().filter(own) {
            remains.failed += i32::from(self.renew(one, old, new).is_err());
        }
        for at in 0..self.registrations.len() {
            if self.registrations[at].role == Role::Disarmed {
                remains.armed += i32::from(!self.disarm(at, new).unwrap_or(false));
            }
        }
        remains
    }

    fn epoll_of(&self, one: &Registration) -> io::Result<&Epoll> {
        let known = self.epolls.iter().find(|known| one.is_in(known));
        known.ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn renew(
        &self,
        one: &Registration,
        old: BorrowedFd<'_>,
        new: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let epoll = self.epoll_of(one)?;
        // The old one goes first: one more than allowed is never there (`max_user_watches`).
        match control(epoll, libc::EPOLL_CTL_DEL, old, one) {
            // Somebody else who has the epoll instance has taken it out.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            deleted => deleted?,
        }
        control(epoll, libc::EPOLL_CTL_ADD, new, one)
    }

    /// Has a registration fire, so that it is disarmed; says whether it is.
    fn disarm(&mut self, at: usize, new: BorrowedFd<'_>) -> io::Result<bool> {
        let one = self.registrations[at];
        let epoll = self.epoll_of(&one)?;
        if epoll.unknown || !is_writable(new)? {
            return Ok(false);
        }
        let fires = Registration {
            events: one.events | libc::EPOLLOUT as u32,
            ..one
        };
        control(epoll, libc::EPOLL_CTL_MOD, new, &fires)?;
        let file = epoll.file.as_raw_fd();
        self.told.clear();
        // SAFETY: there is room for so many events, of which the kernel writes as many as it answers.
        let told = unsafe {
            let to = self.told.as_mut_ptr();
            libc::epoll_wait(file, to, REGISTRATIONS as i32, 0)
        };
        let Ok(told @ 1..) = usize::try_from(told) else {
            control(self.epoll_of(&one)?, libc::EPOLL_CTL_MOD, new, &one)?;
            return Ok(false);
        };
        // SAFETY: the kernel has written these.
        unsafe { self.told.set_len(told) };
        self.give_back(self.epoll_of(&one)?, new)
    }

    /// Arms what was told to us and would not be told again.
    fn give_back(&self, epoll: &Epoll, new: BorrowedFd<'_>) -> io::Result<bool> {
        for (at, one) in self.registrations.iter().enumerate() {
            let was_told = |event: &libc::epoll_event| event.u64 == one.data;
            if !one.is_in(epoll) || !one.is_told_once() || !self.told.iter().any(was_told) {
                continue;
            }
            let file = match one.role {
                Role::Other => self.others.iter().find(|(of, _)| *of == at),
                _ => None,
            };
            let file = file.map_or(new, |(_, file)| file.as_fd());
            control(epoll, libc::EPOLL_CTL_MOD, file, one)?;
        }
        Ok(true)
    }
}

/// The file of a registration, if it is that which the number is now.
fn take_other(one: &Registration, tid: i32, epoll: &Epoll) -> io::Result<OwnedFd> {
    let file = descriptor::of_thread(tid, one.fd)?;
    match control(epoll, libc::EPOLL_CTL_ADD, file.as_fd(), one) {
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(file),
        Err(error) => Err(error),
        Ok(()) => {
            control(epoll, libc::EPOLL_CTL_DEL, file.as_fd(), one)?;
            Err(io::ErrorKind::NotFound.into())
        }
    }
}

fn is_writable(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut asked = [PollFd::new(&socket, PollFlags::OUT)];
    let now = Timespec::default();
    retry_on_intr(|| poll(&mut asked, Some(&now)))?;
    Ok(asked[0].revents().contains(PollFlags::OUT))
}

/// Changes a registration of a file, which has its number for that moment.
fn control(
    epoll: &Epoll,
    operation: i32,
    file: BorrowedFd<'_>,
    one: &Registration,
) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: one.events,
        u64: one.data,
    };
    at_number(one.fd, file, epoll.file.as_fd(), |epoll| {
        let (epoll, fd) = (epoll.as_raw_fd(), one.fd);
        // SAFETY: the kernel reads one epoll_event, which outlives the call.
        crate::check(unsafe { libc::epoll_ctl(epoll, operation, fd, &raw mut event) }).map(drop)
    })
}

/// Does something while a socket has this number here. What has it otherwise, even that epoll instance, has
/// another one meanwhile: there is only this one thread.
pub(crate) fn at_number(
    fd: RawFd,
    socket: BorrowedFd<'_>,
    epoll: BorrowedFd<'_>,
    done: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> io::Result<()> {
    if socket.as_raw_fd() == fd {
        return done(epoll);
    }
    let displaced = match descriptor::duplicate(fd) {
        Ok(displaced) => Some(displaced),
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => None,
        Err(error) => return Err(error),
    };
    // SAFETY: two numbers; what is displaced is back before anybody uses it.
    crate::check(unsafe { libc::dup2(socket.as_raw_fd(), fd) })?;
    let result = match &displaced {
        Some(displaced) if epoll.as_raw_fd() == fd => done(displaced.as_fd()),
        _ => done(epoll),
    };
    match displaced {
        // SAFETY: two numbers; what was there before is put back.
        Some(displaced) => drop(unsafe { libc::dup2(displaced.as_raw_fd(), fd) }),
        // SAFETY: the number was free, and is again.
        None => drop(unsafe { libc::close(fd) }),
    }
    result
}
