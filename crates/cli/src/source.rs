//! Where checkpoints come from: a live socket, or an image.

use anyhow::Context;
use sockcr::{Checkpoint, Error, ErrorKind, Target, find, image};
use std::io::{IsTerminal, Read};

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

/// A target if it reads as one, else an image.
pub fn either(name: &str) -> anyhow::Result<Vec<Checkpoint>> {
    let as_target = name.parse::<Target>();
    match (
        as_target,
        std::path::Path::new(name).exists() || name == "-",
    ) {
        (Ok(named), false) => target(&named),
        (_, true) => image(name),
        (Err(_), false) if name.contains(['/', '.']) && !name.starts_with("udp:") => {
            let none = ErrorKind::NotFound;
            Err(Error::new(none, name, "no such file, and no TARGET").into())
        }
        (Err(error), false) => Err(error.into()),
    }
}
