//! What could be left behind in a process that was worked on, and in the kernel.

use crate::{Outcome, wait};
use anyhow::{Context, ensure};
use sockcr_sys::bpf::{self, Object};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Every name that the command gives to a program or map begins so.
const OURS: &str = "sockcr_";
const PAGE: u64 = 4096;

/// Processes as they are: their descriptors with flags and registrations, their memory, their code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Still {
    descriptors: BTreeMap<String, String>,
    maps: BTreeMap<i32, String>,
    code: BTreeMap<i32, u64>,
    states: BTreeMap<String, String>,
}

impl Still {
    /// These processes; the sockets at these descriptors of the first are whatever they are, but the
    /// same wherever they are.
    pub fn now(pids: &[i32], fds: &[i32]) -> anyhow::Result<Still> {
        let first = pids.first().context("no process")?;
        let mut names = BTreeMap::new();
        for (at, fd) in fds.iter().enumerate() {
            let link = fs::read_link(format!("/proc/{first}/fd/{fd}"))?;
            names
                .entry(link.to_string_lossy().into_owned())
                .or_insert(at);
        }
        let mut still = Still {
            descriptors: BTreeMap::new(),
            maps: BTreeMap::new(),
            code: BTreeMap::new(),
            states: BTreeMap::new(),
        };
        for pid in pids {
            let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
            still.code.insert(*pid, code(*pid, &maps)?);
            still.maps.insert(*pid, maps);
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let thread = thread?.path();
                let name = thread.to_string_lossy().into_owned();
                let status = fs::read_to_string(thread.join("status"))?;
                let of = |key: &str| status.lines().find(|line| line.starts_with(key));
                let masks = ["TracerPid", "SigBlk", "SigIgn", "SigCgt", "Seccomp"];
                let state: Vec<&str> = masks.iter().filter_map(|key| of(key)).collect();
                still.states.insert(name, state.join(", "));
                descriptors(&thread, &names, &mut still.descriptors)?;
            }
        }
        Ok(still)
    }

    /// Whether the first thread of a process blocks a signal.
    pub fn blocks(&self, pid: i32, signal: u32) -> anyhow::Result<bool> {
        let state = self.states.get(&format!("/proc/{pid}/task/{pid}"));
        let state = state.context("no first thread")?;
        let mut parts = state.split(", ");
        let mask = parts.find_map(|part| part.strip_prefix("SigBlk:\t"));
        let mask = u64::from_str_radix(mask.context("no mask")?, 16)?;
        Ok(mask >> (signal - 1) & 1 == 1)
    }

    /// They are again as they were.
    pub fn is(&self, now: &Still) -> Outcome {
        same("descriptor", &self.descriptors, &now.descriptors)?;
        same("thread", &self.states, &now.states)?;
        same("memory of process", &self.maps, &now.maps)?;
        same("code of process", &self.code, &now.code)
    }
}

fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    what: &str,
    before: &BTreeMap<K, V>,
    now: &BTreeMap<K, V>,
) -> Outcome {
    for key in before.keys().chain(now.keys()) {
        let (before, now) = (before.get(key), now.get(key));
        ensure!(before == now, "{what} {key:?}: was {before:?}, is {now:?}");
    }
    Ok(())
}

/// Each descriptor with what is open there, its flags, and what an epoll instance watches.
fn descriptors(
    thread: &Path,
    names: &BTreeMap<String, usize>,
    all: &mut BTreeMap<String, String>,
) -> Outcome {
    for entry in fs::read_dir(thread.join("fd"))? {
        let path = entry?.path();
        let number = path.file_name().unwrap_or_default().to_owned();
        let link = fs::read_link(&path)?.to_string_lossy().into_owned();
        let link = match names.get(&link) {
            Some(at) => format!("socket {at}"),
            None => link,
        };
        let text = fs::read_to_string(thread.join("fdinfo").join(&number))?;
        // The order is that of the time of registration.
        let mut told = BTreeSet::new();
        for line in text.lines() {
            let line = line.split(" pos:").next().unwrap_or_default();
            if line.starts_with("flags:") || line.starts_with("tfd:") {
                told.insert(line.split_whitespace().collect::<Vec<_>>().join(" "));
            }
        }
        all.insert(
            path.to_string_lossy().into_owned(),
            format!("{link} {told:?}"),
        );
    }
    Ok(())
}

/// A digest of what can be executed.
fn code(pid: i32, maps: &str) -> anyhow::Result<u64> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut hasher = DefaultHasher::new();
    let is_code = |line: &&str| line.contains(" r-xp ") && !line.contains("[vsyscall]");
    for line in maps.lines().filter(is_code) {
        let range = line
            .split_whitespace()
            .next()
            .and_then(|range| range.split_once('-'));
        let (start, end) = range.context("no range")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        let mut page = [0; PAGE as usize];
        for at in (start..end).step_by(PAGE as usize) {
            // Behind the end of the file there is nothing.
            if memory.read_exact_at(&mut page, at).is_ok() {
                hasher.write(&page);
            }
        }
    }
    Ok(hasher.finish())
}

/// Waits until no program or map of the command is in the kernel that no process has, and none at
/// loopback here.
pub fn none_in_the_kernel() -> Outcome {
    let socket = crate::socket::unbound()?;
    let lo = sockcr_sys::interface::index(socket.as_fd(), "lo")?;
    wait::until("the end of programs and maps in the kernel", || {
        let clean = left()?.is_empty() && bpf::ingress_count(lo)? == 0;
        Ok(clean.then_some(()))
    })
}

/// Whose descriptors are gone is there no more, or soon.
fn left() -> io::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for (kind, name) in [(Object::Program, "prog_id"), (Object::Map, "map_id")] {
        let ours = bpf::objects(kind)?.into_iter();
        let ours = ours.filter(|(_, name)| name.starts_with(OURS));
        all.extend(ours.map(|(number, _)| format!("{name}:\t{number}")));
    }
    if all.is_empty() {
        return Ok(all);
    }
    for process in fs::read_dir("/proc")? {
        let Ok(descriptors) = fs::read_dir(process?.path().join("fdinfo")) else {
            continue;
        };
        // A descriptor or process may be gone by now.
        for descriptor in descriptors.flatten() {
            let text = fs::read_to_string(descriptor.path()).unwrap_or_default();
            all.retain(|one| text.lines().all(|line| line != one));
        }
    }
    Ok(all)
}
