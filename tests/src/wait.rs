//! Waiting for what can be waited for, never longer than [`PATIENCE`].

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Nothing that works takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// How often is looked at what cannot be waited for.
const INTERVAL: Duration = Duration::from_millis(2);

/// Waits until there is something to read, or the other end is closed; says whether there is.
pub fn readable(fd: impl AsFd, at_most: Duration) -> anyhow::Result<bool> {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: at_most.as_secs().try_into()?,
        tv_nsec: at_most.subsec_nanos().into(),
    };
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("poll"),
    }
}

/// Looks again and again until `look` has an answer.
pub fn until<T>(
    what: &str,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if Instant::now() > end {
            bail!("waited for {PATIENCE:?}, never came: {what}");
        }
        pause(INTERVAL)?;
    }
}

/// Lets others work for a moment.
pub fn pause(time: Duration) -> anyhow::Result<()> {
    let timeout = Timespec {
        tv_sec: time.as_secs().try_into()?,
        tv_nsec: time.subsec_nanos().into(),
    };
    match poll(&mut [], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("poll"),
    }
}
