//! A network of our own to try things in.

use crate::error::Error;
use crate::netns;
use rustix::fd::AsFd;
use std::io;

const CLONE_NEWUSER: i32 = 0x1000_0000;
const CLONE_NEWNET: i32 = 0x4000_0000;

/// Moves this process into a network namespace of its own, whose loopback device is up.
///
/// Needs no privilege where user namespaces are allowed; there the process is root of its own.
/// Call it while the process has one thread.
pub fn enter() -> Result<(), Error> {
    let entered = match rustix::process::geteuid().is_root() {
        true => sockcr_sys::netns::unshare(CLONE_NEWNET),
        false => enter_as_user(),
    };
    entered
        .and_then(|()| sockcr_sys::interface::bring_up(netns::probe()?.as_fd(), "lo"))
        .map_err(|error| {
            Error::system("make a network namespace", error)
                .help("plain users need user namespaces: sysctl user.max_user_namespaces")
        })
}

fn enter_as_user() -> io::Result<()> {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    sockcr_sys::netns::unshare(CLONE_NEWUSER | CLONE_NEWNET)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {} 1", user.as_raw()))?;
    std::fs::write("/proc/self/gid_map", format!("0 {} 1", group.as_raw()))
}
