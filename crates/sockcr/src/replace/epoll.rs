//! Where a socket is registered: the epoll instances of its holders.
//!
//! /proc/PID/fdinfo of an epoll descriptor lists what is registered in it, by the number that it had then.
//! An instance that several processes have (fork) lists the same in each of them.

use super::Trouble;
use super::holders::{descriptors, unless_gone};
use crate::error::Error;
use sockcr_sys::same::is_same_file;
use sockcr_sys::swap::{REGISTRATIONS, Registration, Role, Table};
use std::io;
use std::os::fd::RawFd;

const ONE_SHOT: u32 = 1 << 30;
const EDGE_TRIGGERED: u32 = 1 << 31;
const EXCLUSIVE: u32 = 1 << 28;
/// Those that are no events: with `EPOLLWAKEUP`.
const PRIVATE: u32 = ONE_SHOT | EDGE_TRIGGERED | EXCLUSIVE | 1 << 29;
/// How many files are taken from their owners while these stand still: some 5 µs each.
const MOST_OTHERS: usize = 256;

/// An epoll instance, and where the holders have it.
#[derive(Debug)]
struct Instance {
    /// Which table, and the number there.
    places: Vec<(usize, RawFd)>,
}

impl Instance {
    /// What is registered in it, as the first of those tells who are still there.
    fn read(&self, tables: &[Table]) -> Result<Option<(usize, RawFd, String)>, Trouble> {
        for (table, number) in self.places.iter().copied() {
            let tid = tables.get(table).map_or(0, |table| table.tid);
            let text = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{number}"));
            let text = unless_gone(text)
                .map_err(|error| Error::system("read its epoll registrations", error))?;
            if let Some(text) = text {
                return Ok(Some((table, number, text)));
            }
        }
        Ok(None)
    }
}

/// The epoll instances of the holders of a socket.
#[derive(Debug)]
pub(super) struct Instances(Vec<Instance>);

impl Instances {
    /// Looks through all descriptors of the holders.
    pub(super) fn find(tables: &[Table]) -> Result<Instances, Trouble> {
        let failed = |error| Error::system("look for its epoll instances", error);
        let mut instances = Instances(Vec::new());
        for (at, table) in tables.iter().enumerate() {
            let found = descriptors(table.tid, "anon_inode:[eventpoll]");
            for fd in unless_gone(found).map_err(failed)?.unwrap_or_default() {
                instances.add(tables, at, fd).map_err(failed)?;
            }
        }
        Ok(instances)
    }

    fn add(&mut self, tables: &[Table], at: usize, fd: RawFd) -> io::Result<()> {
        let thread = |table: usize| tables.get(table).map_or(0, |table| table.tid);
        for instance in &mut self.0 {
            let Some((table, number)) = instance.places.first().copied() else {
                continue;
            };
            let same = is_same_file((thread(table), number), (thread(at), fd));
            if unless_gone(same)? == Some(true) {
                instance.places.push((at, fd));
                return Ok(());
            }
        }
        self.0.push(Instance {
            places: vec![(at, fd)],
        });
        Ok(())
    }

    /// Every registration of the socket with this inode, also by a number that is closed by now; and those of
    /// others whose events may be taken, so that a disarmed one is disarmed again.
    pub(super) fn registrations(
        &self,
        tables: &[Table],
        inode: u64,
    ) -> Result<Vec<Registration>, Trouble> {
        let mut all = Vec::new();
        for instance in &self.0 {
            if let Some((table, epoll, text)) = instance.read(tables)? {
                let watched: Vec<Watched> = text.lines().filter_map(Watched::parse).collect();
                let holder = tables.get(table);
                let keeps = holder.is_some_and(|table| keeps_disarmed(&watched, inode, table));
                let roles = watched.iter().map(|one| one.role(inode, keeps));
                let known = watched.iter().zip(roles);
                all.extend(known.filter_map(|(one, role)| {
                    Some(Registration {
                        table,
                        epoll,
                        fd: one.fd,
                        events: one.events,
                        data: one.data,
                        role: role?,
                    })
                }));
            }
        }
        Ok(all)
    }
}

/// Whether a registration tells nothing, one-shot as it is (`EP_PRIVATE_BITS`).
pub(super) fn is_disarmed(events: u32) -> bool {
    events & !PRIVATE == 0
}

/// Whether something in this instance is disarmed, and can be so again: that takes the events of all others,
/// which must be known, and must be told again.
fn keeps_disarmed(watched: &[Watched], inode: u64, table: &Table) -> bool {
    let own = |one: &&Watched| one.inode == inode;
    let others = || watched.iter().filter(|one| one.inode != inode);
    // One that wakes a single waiter cannot be changed (`do_epoll_ctl`).
    let single = |one: &Watched| one.is_told_once() && one.events & EXCLUSIVE != 0;
    watched
        .iter()
        .filter(own)
        .any(|one| is_disarmed(one.events))
        && watched.len() <= REGISTRATIONS
        && others().count() <= MOST_OTHERS
        && !watched.iter().any(single)
        && others().all(|one| is_told_to_anybody(table.tid, one.fd))
        && (others().count() == 0 || !has_class(table.pid))
}

/// Whether a file tells its events to whoever asks, as often as he asks: not a signalfd, which tells each process its
/// own signals, nor what is told of changes once (`signalfd_poll`, `mounts_poll`).
fn is_told_to_anybody(tid: i32, fd: RawFd) -> bool {
    let link = std::fs::read_link(format!("/proc/{tid}/fd/{fd}"));
    let link = link.unwrap_or_default();
    let link = link.to_string_lossy();
    [
        "socket:[",
        "pipe:[",
        "anon_inode:[eventfd]",
        "anon_inode:[timerfd]",
    ]
    .iter()
    .any(|kind| link.starts_with(kind))
}

/// Whether control groups of the first version give a class to the sockets of a process: whoever receives one gives
/// it his own (`__receive_sock`).
fn has_class(pid: i32) -> bool {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let classed = |line: &str| line.contains("net_") && !line.ends_with(":/");
    groups.lines().any(classed)
}

/// A line of the fdinfo of an epoll descriptor (`ep_show_fdinfo`).
struct Watched {
    fd: RawFd,
    events: u32,
    data: u64,
    inode: u64,
}

impl Watched {
    /// Its event, once told, is not told again by itself.
    fn is_told_once(&self) -> bool {
        self.events & (EDGE_TRIGGERED | ONE_SHOT) != 0 && !is_disarmed(self.events)
    }

    /// What it is to be, if it counts; `keeps`: what is disarmed can be so again.
    fn role(&self, inode: u64, keeps: bool) -> Option<Role> {
        match self.inode == inode {
            true if keeps && is_disarmed(self.events) => Some(Role::Disarmed),
            true => Some(Role::Armed),
            false => keeps.then_some(Role::Other),
        }
    }

    /// `tfd: 5 events: 19 data: 5  pos:0 ino:1234 sdev:8`, numbers but for the first in hexadecimal.
    fn parse(line: &str) -> Option<Watched> {
        let line = line.strip_prefix("tfd:")?;
        let (fd, rest) = line.split_once("events:")?;
        let (events, rest) = rest.split_once("data:")?;
        let (data, rest) = rest.split_once("pos:")?;
        let (_, rest) = rest.split_once("ino:")?;
        let (inode, _) = rest.split_once("sdev:")?;
        let hexadecimal = |text: &str| u64::from_str_radix(text.trim(), 16).ok();
        Some(Watched {
            fd: fd.trim().parse().ok()?,
            events: u32::try_from(hexadecimal(events)?).ok()?,
            data: hexadecimal(data)?,
            inode: hexadecimal(inode)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_kernel() {
        let line = "tfd:        5 events: c0000019 data: deadbeef00000005  pos:0 ino:2f1a sdev:8";
        let watched = Watched::parse(line).unwrap();
        assert_eq!((watched.fd, watched.events), (5, 0xc000_0019));
        assert_eq!(
            (watched.data, watched.inode),
            (0xdead_beef_0000_0005, 0x2f1a)
        );
        assert!(Watched::parse("pos:\t0").is_none());
        assert!(Watched::parse("tfd: x events: 1 data: 1 pos:0 ino:1 sdev:1").is_none());
    }
}
