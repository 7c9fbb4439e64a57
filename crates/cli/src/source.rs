//! Where checkpoints come from: a live socket, or an image.

use anyhow::Context;
use sockcr::{Checkpoint, Error, ErrorKind, Target, find, image};
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
            Source::Service(client) => Ok((served(client, target)?, Vec::new())),
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

/// What the service dumps; what it has left out is told.
pub fn served(client: &mut Client, target: &Target) -> anyhow::Result<Vec<Checkpoint>> {
    let dumped = client.dump(target)?;
    for socket in &dumped.left_out {
        let holder = socket.holders.first();
        let name = holder.map_or_else(|| format!("inode {}", socket.inode), |h| named(*h));
        if let Err(error) =
            sockcr::protocol::carried(socket.family, socket.socket_type, socket.number)
        {
            crate::output::remark(format_args!("{name}: left out: {error}"));
        }
    }
    Ok(dumped.sockets)
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

fn named(holder: find::Holder) -> String {
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
