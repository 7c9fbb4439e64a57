//! The control group of a socket: that of the process that made it, whose BPF programs and limits count for
//! it as long as it lives (`cgroup_sk_alloc`). A firewall of the service manager is such a program.

use crate::control_group::{mount, path_of};
use crate::kernel::Reader;
use rustix::fd::AsFd;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Makes a socket in the control group of another one. To move there for that moment needs the right to
/// write to both groups.
pub(super) fn inside<T>(
    reader: &Reader,
    socket: BorrowedFd<'_>,
    pid: i32,
    make: impl FnOnce() -> T,
) -> io::Result<T> {
    let here = crate::netns::probe()?;
    let group = |fd| Ok::<_, io::Error>(reader.origin(fd)?.group);
    let wanted = group(socket)?;
    if wanted == group(here.as_fd())? {
        return Ok(make());
    }
    let root = mount()?;
    let home = root.join(path_of("self")?);
    let there = find(&root, &path_of(&pid.to_string())?, wanted)?;
    enter(&there)?;
    let made = make();
    enter(&home)?;
    Ok(made)
}

/// Whether a process stands still because its control group does (`cgroup.freeze`).
pub(super) fn is_frozen(pid: i32) -> bool {
    let group = mount().and_then(|root| Ok(root.join(path_of(&pid.to_string())?)));
    group.is_ok_and(|group| stands_still(&group))
}

fn stands_still(group: &Path) -> bool {
    let events = std::fs::read_to_string(group.join("cgroup.events"));
    events.is_ok_and(|events| events.lines().any(|line| line == "frozen 1"))
}

fn enter(group: &Path) -> io::Result<()> {
    if stands_still(group) {
        let why = format!("{} is frozen: so would we be in it", group.display());
        return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
    }
    let name = group.join("cgroup.procs");
    std::fs::write(&name, std::process::id().to_string())
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", name.display())))
}

/// The folder of the group with this number, which is its inode: most often that of the owner, else
/// anywhere (a socket that the service manager has made).
fn find(root: &Path, likely: &str, wanted: u64) -> io::Result<PathBuf> {
    let likely = root.join(likely);
    if std::fs::metadata(&likely)?.ino() == wanted {
        return Ok(likely);
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        if std::fs::metadata(&folder)?.ino() == wanted {
            return Ok(folder);
        }
        // One that goes away meanwhile is not the one that has a socket of a live process, or is dying.
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let inner = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.extend(inner.map(|entry| entry.path()));
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "it is gone"))
}
