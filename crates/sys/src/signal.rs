//! What this process does at a signal: signal(2).

use std::io;

/// Ignores a signal from now on, as will what execve(2) makes of this process.
///
/// `EINVAL` when there is no such signal or it cannot be ignored. SIGCHLD is refused as well: to
/// ignore it takes the end of children from those that wait for it.
pub fn ignore(signal: i32) -> io::Result<()> {
    if signal == libc::SIGCHLD {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: to ignore a signal runs no code of this process.
    let before = unsafe { libc::signal(signal, libc::SIG_IGN) };
    if before == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
