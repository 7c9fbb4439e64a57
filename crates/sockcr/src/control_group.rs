//! Control groups, of version 2: whose BPF programs and limits count for the sockets that a process makes.

use std::io;
use std::path::PathBuf;

/// Where the groups are (/proc/self/mountinfo: its fourth field is what of them, its fifth where).
pub fn mount() -> io::Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let whole = mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then(|| at.into())
    });
    whole.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "cgroup2 is not mounted here"))
}

/// The group of a process, from the root on, without the first slash; `self` is this one.
pub fn path_of(process: &str) -> io::Result<String> {
    let groups = std::fs::read_to_string(format!("/proc/{process}/cgroup"))?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"));
    path.map(String::from)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}
