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
    let holder = socket.holder;
    format!("process {}, descriptor {}", holder.pid, holder.fd)
}

/// A target if it reads as one and no file is called so, else an image.
pub fn either(name: &str) -> anyhow::Result<Vec<Checkpoint>> {
    match live(name)? {
        Some(named) => target(&named),
        None => image(name),
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
