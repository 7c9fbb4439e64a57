//! Where checkpoints come from: a live socket, or an image.

use anyhow::Context;
use sockcr::{Checkpoint, Error, ErrorKind, Target, find, image};
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

/// Dumps what the target names; sockets of a kind that is not carried are told and left out.
pub fn target(target: &Target) -> anyhow::Result<Vec<Checkpoint>> {
    dump(&find::find(target)?)
}

/// Dumps these sockets.
pub fn dump(found: &[find::Found]) -> anyhow::Result<Vec<Checkpoint>> {
    let mut checkpoints = Vec::new();
    let mut left_out = None;
    for socket in found {
        let holder = socket.holder;
        let name = format!("process {}, descriptor {}", holder.pid, holder.fd);
        match socket.dump() {
            Ok(checkpoint) => checkpoints.push(checkpoint),
            Err(error) if error.kind() == sockcr::ErrorKind::NotSupported && found.len() > 1 => {
                crate::output::remark(format_args!("{name}: left out: {error}"));
                left_out = Some(error);
            }
            Err(error) => return Err(error).context(name),
        }
    }
    match left_out.filter(|_| checkpoints.is_empty()) {
        Some(error) => Err(error.into()),
        None => Ok(checkpoints),
    }
}

/// A target if it reads as one and no file is called so, else an image.
pub fn either(name: &str) -> anyhow::Result<Vec<Checkpoint>> {
    match live(name)? {
        Some(named) => target(&named),
        None => image(name),
    }
}

/// The sockets that the target names; those of a kind that is not carried are told and left out.
pub fn carried(target: &Target) -> anyhow::Result<Vec<find::Found>> {
    let all = find::find(target)?;
    let several = all.len() > 1;
    let (mut found, mut left_out) = (Vec::new(), None);
    for socket in all {
        match sockcr::protocol::of(socket.socket.as_fd()) {
            Ok(_) => found.push(socket),
            Err(error) if error.kind() == ErrorKind::NotSupported && several => {
                let holder = socket.holder;
                let name = format!("process {}, descriptor {}", holder.pid, holder.fd);
                crate::output::remark(format_args!("{name}: left out: {error}"));
                left_out = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    match left_out.filter(|_| found.is_empty()) {
        Some(error) => Err(error.into()),
        None => Ok(found),
    }
}

/// The same, and the live sockets where there are such.
pub fn with_sockets(name: &str) -> anyhow::Result<(Vec<Checkpoint>, Vec<find::Found>)> {
    let Some(named) = live(name)? else {
        return Ok((image(name)?, Vec::new()));
    };
    let found = find::find(&named)?;
    let checkpoints = dump(&found)?;
    Ok((checkpoints, found))
}

/// The target, or `None` for an image.
fn live(name: &str) -> anyhow::Result<Option<Target>> {
    if name == "-" || std::path::Path::new(name).exists() {
        return Ok(None);
    }
    match name.parse::<Target>() {
        Ok(named) => Ok(Some(named)),
        Err(_) if name.contains(['/', '.']) && !name.starts_with("udp:") => {
            let none = ErrorKind::NotFound;
            let error = Error::new(none, name, "no such file, and no TARGET");
            Err(error
                .help("a TARGET is PID:FD, PID, inode:N, cookie:N or udp:ADDR:PORT")
                .into())
        }
        Err(error) => Err(error.into()),
    }
}
