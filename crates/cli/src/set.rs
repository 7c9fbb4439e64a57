//! `sockcr set`: change live sockets.

use crate::{Outcome, output, source};
use serde_json::json;
use sockcr::tune::{self, Change, Changed};
use sockcr::{Target, find};
use std::os::fd::{AsFd, BorrowedFd};

/// Change live sockets of any process: options by name, join=GROUP@DEVICE, leave=GROUP@DEVICE
///
/// Values are typed as `sockcr options NAME` describes them: SO_RCVBUF=8M, SO_RCVTIMEO=250ms,
/// IP_MTU_DISCOVER=IP_PMTUDISC_DO, SO_BINDTODEVICE=eth0. Where TARGET names several sockets all are
/// changed. If anything is refused, nothing is changed; what cannot be taken back (SO_LOCK_FILTER=on,
/// SO_TXTIME, UDP_ENCAP, IP_RECVERR=off) is written last of all.
#[derive(clap::Args)]
pub struct Arguments {
    /// PID:FD, PID, inode:N, cookie:N or udp:ADDR:PORT
    target: Target,

    /// What to change
    #[arg(required = true, value_name = "NAME=VALUE")]
    changes: Vec<Change>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let all = find::find(&arguments.target)?;
    let found = source::carried(&all)?;
    let sockets: Vec<BorrowedFd<'_>> = found.iter().map(|f| f.socket.as_fd()).collect();
    let changed = tune::set(&sockets, &arguments.changes)?;
    if arguments.json {
        let all = found.iter().zip(&changed).map(|(socket, changes)| {
            let (pid, fd) = (socket.holder.pid, socket.holder.fd);
            json!({ "inode": socket.inode, "pid": pid, "fd": fd, "changes": changes })
        });
        output::json(&all.collect())?;
        return Ok(Outcome::Done);
    }
    for (socket, changes) in found.iter().zip(&changed) {
        let holder = socket.holder;
        let (pid, fd, inode) = (holder.pid, holder.fd, socket.inode);
        output::line(format_args!(
            "process {pid}, descriptor {fd}, inode {inode}"
        ))?;
        let rows: Vec<Vec<String>> = changes.iter().map(words).collect();
        for text in output::table(&rows) {
            output::line(format_args!("  {text}"))?;
        }
    }
    Ok(Outcome::Done)
}

fn words(changed: &Changed) -> Vec<String> {
    let Changed { name, old, new } = changed;
    vec![name.clone(), format!("{old} → {new}")]
}
