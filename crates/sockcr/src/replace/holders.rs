//! Every place where a socket is held: all tables of descriptors, and all numbers in each.

use super::{GONE, Trouble};
use crate::deliver::process::{is_shared, listener};
use crate::error::Error;
use crate::find::{self, Found, Holder, is_gone};
use sockcr_sys::same::is_same_table;
use sockcr_sys::swap::{Seat, Table};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

/// The tables of descriptors that hold a socket.
#[derive(Debug)]
pub(super) struct Holders {
    /// Each table once.
    pub tables: Vec<Table>,
    /// Each descriptor.
    pub seats: Vec<Holder>,
    /// How many descriptors of it this process has: one, and those it was started with.
    pub ours: usize,
}

/// Finds every table that holds this socket, of whatever process.
pub(super) fn find(found: &Found) -> Result<Holders, Trouble> {
    let listing = find::list(None)?;
    let listed = listing.sockets.iter().find(|s| s.inode == found.inode);
    let own = std::process::id() as i32;
    let all = listed.into_iter().flat_map(|listed| &listed.holders);
    let ours = all.clone().filter(|holder| holder.pid == own).count();
    let mut by_table: BTreeMap<(i32, bool, i32), Vec<i32>> = BTreeMap::new();
    for holder in all.filter(|holder| holder.pid != own) {
        // The table of a process comes before those of single threads.
        let key = (holder.pid, holder.tid != holder.pid, holder.tid);
        by_table.entry(key).or_default().push(holder.fd);
    }
    let mut holders = Holders {
        tables: Vec::new(),
        seats: Vec::new(),
        ours,
    };
    for ((pid, _, tid), fds) in by_table {
        if !holders.has_table(pid, tid)? {
            let failed = |error| Error::system("read its descriptor's flags", error);
            unless_gone(holders.add(pid, tid, fds)).map_err(failed)?;
        }
    }
    match holders.tables.is_empty() {
        true => Err(Trouble::Again(GONE)),
        false => Ok(holders),
    }
}

/// `None` for one that ended meanwhile, or closed it: it is no holder any more.
pub(super) fn unless_gone<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An owner that has a ring of io_uring, which may have the socket registered.
pub(super) fn ring(found: &Found) -> Option<i32> {
    let holders = find(found).ok()?;
    let has_ring = |table: &&Table| {
        let rings = descriptors(table.tid, "anon_inode:[io_uring]");
        rings.is_ok_and(|rings| !rings.is_empty())
    };
    holders.tables.iter().find(has_ring).map(|table| table.pid)
}

/// The descriptors of a table that are this, as /proc calls it.
pub(super) fn descriptors(tid: i32, kind: &str) -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{tid}/fd"))? {
        let entry = entry?;
        let Some(link) = unless_gone(std::fs::read_link(entry.path()))? else {
            continue;
        };
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok());
        if link.to_str() == Some(kind) {
            found.extend(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

impl Holders {
    /// Whether the table of a thread is one of those known: threads may share one that is not that of
    /// their process.
    fn has_table(&self, pid: i32, tid: i32) -> Result<bool, Trouble> {
        for table in &self.tables {
            let failed = |error| Error::system("compare tables of descriptors", error);
            let same = unless_gone(is_same_table(table.tid, tid)).map_err(failed)?;
            if same != Some(true) {
                continue;
            }
            if table.pid == pid {
                return Ok(true);
            }
            let why = format!(
                "process {pid} shares its table of descriptors with process {} (CLONE_FILES)",
                table.pid
            );
            return Err(Trouble::Refused(why));
        }
        Ok(false)
    }

    fn add(&mut self, pid: i32, tid: i32, fds: Vec<i32>) -> io::Result<()> {
        let holders = fds.into_iter().map(|fd| Holder { pid, tid, fd });
        let holders: Vec<Holder> = holders.collect();
        let seat = |holder: &Holder| -> io::Result<Seat> {
            Ok(Seat {
                fd: holder.fd,
                close_on_exec: find::close_on_exec(*holder)?,
            })
        };
        let seats: io::Result<Vec<Seat>> = holders.iter().map(seat).collect();
        self.tables.push(Table {
            tid,
            pid,
            seats: seats?,
            sees_us: is_shared(pid, "pid"),
            listener: listener(pid).ok(),
        });
        self.seats.extend(holders);
        Ok(())
    }
}
