//! `sockcr move`: live sockets from one process to another.

use crate::{Outcome, output};
use serde_json::json;
use sockcr::Target;
use sockcr::deliver::{self, Move, Moved, Place};

/// Move live sockets into another running process: the very same ones, with all that is in them
///
/// Neither process notices: calls that wait go on, and no signal is lost. The new descriptor is
/// printed. In the old process the descriptor is closed, and gone from its epoll instances; a thread
/// that waits on it is told EBADF. The sockets may be of any kind. If anything is refused, nothing is
/// changed.
#[derive(clap::Args)]
pub struct Arguments {
    /// PID:FD, PID, inode:N, cookie:N or udp:ADDR:PORT
    target: Target,

    /// The process, and the descriptor there (of the first socket, if there are several); a free one
    /// without FD
    #[arg(long, value_name = "PID[:FD]")]
    to: Place,

    /// Leave the sockets where they are, too
    #[arg(long)]
    keep: bool,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let Move { moved, stopped } =
        deliver::move_to(&arguments.target, arguments.to, arguments.keep)?;
    if arguments.json {
        let sockets: serde_json::Value = moved.iter().map(to_json).collect();
        output::json(&json!({
            "sockets": sockets,
            "kept": arguments.keep,
            "stopped_us": stopped.as_micros() as u64,
        }))?;
        return Ok(Outcome::Done);
    }
    for Moved { inode, from, to } in &moved {
        output::line(format_args!(
            "inode {inode}: process {}, descriptor {} → process {}, descriptor {}",
            from.pid, from.fd, to.pid, to.fd
        ))?;
    }
    Ok(Outcome::Done)
}

fn to_json(moved: &Moved) -> serde_json::Value {
    let Moved { inode, from, to } = moved;
    json!({
        "inode": inode,
        "from": { "pid": from.pid, "tid": from.tid, "fd": from.fd },
        "to": { "pid": to.pid, "tid": to.tid, "fd": to.fd },
    })
}
