//! A command that gets the sockets by the LISTEN_FDS protocol.

use crate::error::Error;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The first descriptor that a command finds its sockets at (`SD_LISTEN_FDS_START`).
const FIRST: i32 = 3;

/// Becomes a command that gets the sockets by the LISTEN_FDS protocol of systemd: from descriptor
/// 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES. Comes back only with an error.
///
/// The descriptors 3 and above that stand in the way are closed.
pub fn command(sockets: Vec<(String, OwnedFd)>, argv: &[OsString]) -> Error {
    let Some((program, arguments)) = argv.split_first() else {
        return Error::system("command", std::io::ErrorKind::InvalidInput.into());
    };
    let names: Vec<String> = sockets
        .iter()
        .map(|(name, _)| name.replace(':', "-"))
        .collect();
    let count = sockets.len();
    let fds = sockets.into_iter().map(|(_, fd)| fd).collect();
    if let Err(error) = sockcr_sys::descriptor::place(fds, FIRST) {
        return Error::system("hand the sockets over", error);
    }
    let error = Command::new(program)
        .args(arguments)
        .env("LISTEN_FDS", count.to_string())
        .env("LISTEN_PID", std::process::id().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .exec();
    Error::system(format!("run {}", program.to_string_lossy()), error)
}

/// The sockets that this process was given by [`command`], or by systemd, with their names.
///
/// Duplicates, so that each call answers them; empty when LISTEN_PID is not this process.
pub fn received() -> Result<Vec<(String, OwnedFd)>, Error> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    let mut sockets = Vec::new();
    for fd in (FIRST..).take(count as usize) {
        let socket = sockcr_sys::descriptor::duplicate(fd)
            .map_err(|error| Error::system(format!("descriptor {fd} of LISTEN_FDS"), error))?;
        sockets.push((names.next().unwrap_or_default(), socket));
    }
    Ok(sockets)
}
