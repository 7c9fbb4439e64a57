//! What could be left behind in the kernel, and in the network namespace of this thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use sockcr_sys::bpf::{self, Object};

use crate::support::Outcome;

/// The kernel gives programs and maps back behind its own back (RCU, work queues).
const PATIENCE: Duration = Duration::from_secs(20);
/// Every name that the library gives to a program or map begins so.
const OURS: &str = "sockcr_";
/// Each has a line for every socket of the network namespace.
const SOCKETS: [&str; 4] = ["udp", "raw", "packet", "unix"];

/// A network namespace as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The programs at each device.
    programs: Vec<u32>,
    /// The routing rules of both families, and the IPv4 routes: those of IPv6 come by themselves.
    rules: [String; 2],
    routes: String,
    sysctls: BTreeMap<String, String>,
    sockets: Vec<usize>,
    /// The namespaces that a mount keeps alive.
    namespaces: BTreeSet<String>,
}

impl Place {
    pub fn now() -> io::Result<Self> {
        let mut sysctls = BTreeMap::new();
        collect(Path::new("/proc/sys/net/ipv4"), &mut sysctls)?;
        let lines = |name: &&str| {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{name}"))?;
            Ok(text.lines().count())
        };
        Ok(Self {
            programs: devices()?
                .into_iter()
                .map(bpf::ingress_count)
                .collect::<io::Result<_>>()?,
            rules: [ip("-4 rule")?, ip("-6 rule")?],
            routes: ip("-4 route show table all")?,
            sysctls,
            sockets: SOCKETS
                .iter()
                .map(lines)
                .collect::<io::Result<Vec<usize>>>()?,
            namespaces: namespaces()?,
        })
    }

    /// Waits until the place is again as it was, and nothing of ours is left in the kernel.
    pub fn again(&self) -> Outcome {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = left()?;
            if left.is_empty() && Self::now()? == *self {
                return Ok(());
            }
            if Instant::now() > end {
                let now = Self::now()?;
                return Err(format!("{left:?} left, {}", self.differences(&now)).into());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn differences(&self, now: &Self) -> String {
        let changed = |(name, value): &(&String, &String)| now.sysctls.get(*name) != Some(*value);
        let sysctls: Vec<_> = self.sysctls.iter().filter(changed).collect();
        let rest = |place: &Self| {
            let sysctls = BTreeMap::new();
            format!(
                "{:#?}",
                Self {
                    sysctls,
                    ..place.clone()
                }
            )
        };
        format!(
            "before {}, now {}, sysctls before {sysctls:?}",
            rest(self),
            rest(now)
        )
    }
}

/// The indexes of the devices.
fn devices() -> io::Result<Vec<u32>> {
    let text = fs::read_to_string("/proc/thread-self/net/dev")?;
    let names = text.lines().filter_map(|line| line.split_once(':'));
    names
        .map(|(name, _)| crate::support::place::index(name.trim()))
        .collect()
}

fn namespaces() -> io::Result<BTreeSet<String>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mounts = text.lines().filter(|line| line.contains(" - nsfs "));
    Ok(mounts.map(str::to_owned).collect())
}

fn ip(arguments: &str) -> io::Result<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|why| io::Error::new(why.kind(), format!("run ip(8): {why}")))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}

/// Every sysctl below a directory that can be read.
fn collect(directory: &Path, all: &mut BTreeMap<String, String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, all)?;
        } else if let Ok(text) = fs::read_to_string(&path) {
            all.insert(path.to_string_lossy().into_owned(), text);
        }
    }
    Ok(())
}

/// The programs (a link holds one) and maps of ours in the kernel that no process has: whose
/// descriptors are gone is there no more, or soon.
fn left() -> io::Result<BTreeSet<String>> {
    let mut all = BTreeSet::new();
    for (kind, name) in [(Object::Program, "prog_id"), (Object::Map, "map_id")] {
        let ours = bpf::objects(kind)?.into_iter();
        let ours = ours.filter(|(_, name)| name.starts_with(OURS));
        all.extend(ours.map(|(number, _)| format!("{name}:\t{number}")));
    }
    if !all.is_empty() {
        held(&mut all)?;
    }
    Ok(all)
}

/// Takes away what some process has a descriptor of.
fn held(all: &mut BTreeSet<String>) -> io::Result<()> {
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
    Ok(())
}
