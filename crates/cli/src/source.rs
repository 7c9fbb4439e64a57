//! Where checkpoints come from: a live socket, or an image.

use anyhow::Context;
use sockcr::find::{self, Holder, Listed};
use sockcr::{Checkpoint, Error, ErrorKind, Target, image};
use sockcr_service::Client;
use std::io::{IsTerminal, Read};
use std::os::fd::AsFd;

/// Larger input is no image of ours.
const MOST: u64 = sockcr::image::MAX_IMAGE;

/// Reads a file, or standard input for `-`.
pub fn bytes(path: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if path == "-" {
        let stdin = std::io::stdin();
        if stdin.is_terminal() {
            anyhow::bail!("-: standard input is a terminal, not an image");
        }
        stdin.lock().take(MOST + 1).read_to_end(&mut bytes)?;
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::system(path, error))?;
    }
    Ok(bytes)
}

/// Reads an image.
pub fn image(path: &str) -> anyhow::Result<Vec<Checkpoint>> {
    image::decode(&bytes(path)?).with_context(|| path.to_owned())
}

/// Who reads live sockets.
pub enum Source {
    /// This process.
    Here,
    /// The service.
    Service(Box<Client>),
}

impl Source {
    /// Dumps what the target names; sockets of a kind that is not carried are told and left out. Here, also the sockets
    /// themselves.
    fn target(&mut self, target: &Target) -> anyhow::Result<(Vec<Checkpoint>, Vec<find::Found>)> {
        match self {
            Source::Here => {
                let found = find::find(target)?;
                Ok((dump(&found)?, found))
            }
            Source::Service(client) => {
                Ok((served(client, std::slice::from_ref(target))?, Vec::new()))
            }
        }
    }

    /// A target if it reads as one and no file is called so, else an image; and the live sockets where we have
    /// them.
    pub fn with_sockets(
        &mut self,
        name: &str,
    ) -> anyhow::Result<(Vec<Checkpoint>, Vec<find::Found>)> {
        match live(name)? {
            Some(named) => self.target(&named),
            None => Ok((image(name)?, Vec::new())),
        }
    }
}

/// A socket of a kind that is not carried, as the service tells of it.
struct LeftOut {
    socket: Option<Listed>,
    holder: Option<Holder>,
    why: Error,
}

impl LeftOut {
    fn of(socket: Listed) -> Option<LeftOut> {
        let kind = (socket.family, socket.socket_type, socket.number);
        let why = sockcr::protocol::carried(kind.0, kind.1, kind.2).err()?;
        Some(LeftOut {
            holder: socket.holders.first().copied(),
            socket: Some(socket),
            why,
        })
    }

    /// The only socket that a target names, which the service tells nothing of but this error.
    fn only(client: &mut Client, target: &Target, why: Error) -> LeftOut {
        let (process, fd) = match *target {
            Target::Process(pid) => (Some(pid), None),
            Target::Descriptor(pid, fd) => (Some(pid), Some(fd)),
            _ => (None, None),
        };
        let through =
            |holder: &&Holder| fd.is_none_or(|fd| (Some(holder.tid), holder.fd) == (process, fd));
        let is_named = |socket: &Listed| match target {
            Target::Inode(inode) => socket.inode == *inode,
            Target::Cookie(cookie) => socket.cookie == *cookie,
            _ => process.is_some() && socket.holders.iter().any(|h| through(&h)),
        };
        let listing = client.list(process).unwrap_or_default();
        let socket = listing.sockets.into_iter().find(is_named);
        let holder = socket.as_ref().and_then(|s| s.holders.iter().find(through));
        // Sockets that are not of the internet are not listed.
        let told = || {
            let (tid, fd) = (process?, fd?);
            let pid = find::process_of(tid);
            Some(Holder { pid, tid, fd })
        };
        LeftOut {
            holder: holder.copied().or_else(told),
            socket,
            why,
        }
    }

    fn is(&self, other: &LeftOut) -> bool {
        match (&self.socket, &other.socket) {
            (Some(one), Some(other)) => one.inode == other.inode,
            _ => self.holder.is_some() && self.holder == other.holder,
        }
    }

    fn name(&self) -> String {
        match (self.holder, &self.socket) {
            (Some(holder), _) => named(holder),
            (None, Some(socket)) => format!("inode {}", socket.inode),
            (None, None) => "a socket".into(),
        }
    }
}

/// What the service dumps of these targets, each socket once; what is left out is told, as by [`dump`].
pub fn served(client: &mut Client, targets: &[Target]) -> anyhow::Result<Vec<Checkpoint>> {
    let mut carried: Vec<Checkpoint> = Vec::new();
    let mut left_out: Vec<LeftOut> = Vec::new();
    for target in targets {
        let (sockets, others) = match client.dump(target) {
            Ok(dumped) => {
                let others = dumped.left_out.into_iter().filter_map(LeftOut::of);
                (dumped.sockets, others.collect())
            }
            Err(error) if error.kind() == ErrorKind::NotSupported => {
                (Vec::new(), vec![LeftOut::only(client, target, error)])
            }
            Err(error) => return Err(error.into()),
        };
        for socket in sockets {
            let is_new = |have: &Checkpoint| have.inode.is_none() || have.inode != socket.inode;
            if carried.iter().all(is_new) {
                carried.push(socket);
            }
        }
        for other in others {
            if !left_out.iter().any(|have| have.is(&other)) {
                left_out.push(other);
            }
        }
    }
    if carried.is_empty() && left_out.len() == 1 {
        let only = left_out.into_iter().next();
        return only.map_or(Ok(carried), |only| {
            let name = only.name();
            Err(only.why).context(name)
        });
    }
    for other in &left_out {
        crate::output::remark(format_args!("{}: left out: {}", other.name(), other.why));
    }
    match left_out.pop().filter(|_| carried.is_empty()) {
        Some(last) => Err(last.why.into()),
        None => Ok(carried),
    }
}

/// Dumps these sockets.
pub fn dump(found: &[find::Found]) -> anyhow::Result<Vec<Checkpoint>> {
    let carried = carried(found)?.into_iter();
    carried
        .map(|socket| socket.dump().with_context(|| name(socket)))
        .collect()
}

/// Those of a kind that is carried; the others are told and left out.
pub fn carried(found: &[find::Found]) -> anyhow::Result<Vec<&find::Found>> {
    let (mut carried, mut left_out) = (Vec::new(), None);
    for socket in found {
        match sockcr::protocol::of(socket.socket.as_fd()) {
            Ok(_) => carried.push(socket),
            Err(error) if error.kind() == ErrorKind::NotSupported && found.len() > 1 => {
                crate::output::remark(format_args!("{}: left out: {error}", name(socket)));
                left_out = Some(error);
            }
            Err(error) => return Err(error).with_context(|| name(socket)),
        }
    }
    match left_out.filter(|_| carried.is_empty()) {
        Some(error) => Err(error.into()),
        None => Ok(carried),
    }
}

fn name(socket: &find::Found) -> String {
    named(socket.holder)
}

fn named(holder: Holder) -> String {
    format!("process {}, descriptor {}", holder.pid, holder.fd)
}

/// A target if it reads as one and no file is called so, else an image.
pub fn either(name: &str) -> anyhow::Result<Vec<Checkpoint>> {
    match live(name)? {
        Some(named) => dump(&find::find(&named)?),
        None => image(name),
    }
}

/// The target, or `None` for an image.
fn live(name: &str) -> anyhow::Result<Option<Target>> {
    if name == "-" || std::path::Path::new(name).exists() {
        return Ok(None);
    }
    match name.parse::<Target>() {
        Ok(named) => Ok(Some(named)),
        Err(_) if name.contains(['/', '.']) && !Target::is_address(name) => {
            let none = ErrorKind::NotFound;
            let error = Error::new(none, name, "no such file, and no TARGET");
            Err(error
                .help("a TARGET is PID:FD, PID, inode:N, cookie:N or udp:ADDR:PORT")
                .into())
        }
        Err(error) => Err(error.into()),
    }
}
