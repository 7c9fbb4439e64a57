//! `sockcr replace`: checkpoint and restore in place.

use crate::{Outcome, output, source};
use anyhow::bail;
use serde_json::json;
use sockcr::replace::{self, ReplaceOptions, Replaced, Side};
use sockcr::{Mapping, Target, find};
use std::time::Duration;

/// Replace live sockets by new ones inside the processes that have them: checkpoint and restore in place
///
/// Every descriptor of every process that is the socket becomes the new one: same number, same flags,
/// same registrations in epoll instances. Calls that wait go on, datagrams that wait are carried over,
/// and while the address stays the same none is lost. With NAME=VALUE, local=ADDR:PORT or peer=ADDR:PORT
/// the new socket is otherwise than the old one, also in what no socket can change: its address, its
/// network namespace (--netns), a locked filter (SO_LOCK_FILTER=off). UDP sockets only; needs CAP_BPF,
/// and the rights of ptrace(2). Sockets are replaced one after the other: one that is refused is as it was.
#[derive(clap::Args)]
pub struct Arguments {
    /// PID:FD, PID, inode:N, cookie:N or udp:ADDR:PORT
    target: Target,

    /// What the new socket has otherwise
    #[arg(value_name = "NAME=VALUE")]
    changes: Vec<String>,

    /// An address or a device that is to be called otherwise
    #[arg(long, value_name = "OLD=NEW")]
    map: Vec<Mapping>,

    /// Go on without what cannot be carried exactly, and say what that is
    #[arg(long)]
    lossy: bool,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, netns: Option<&str>) -> anyhow::Result<Outcome> {
    match replace::undisturbed(|| crate::end(carry_out(arguments, netns)))? {
        0 => Ok(Outcome::Done),
        _ => Ok(Outcome::Different),
    }
}

fn carry_out(arguments: &Arguments, netns: Option<&str>) -> anyhow::Result<Outcome> {
    let options = ReplaceOptions {
        edits: edits(&arguments.changes)?,
        map: arguments.map.clone(),
        netns: netns.map(sockcr::netns::open).transpose()?,
        lossy: arguments.lossy,
    };
    let mut found = find::find(&arguments.target)?;
    let carried = source::carried(&found)?;
    let carried: Vec<u64> = carried.iter().map(|found| found.inode).collect();
    found.retain(|found| carried.contains(&found.inode));
    let mut all = Vec::with_capacity(found.len());
    let mut done = Ok(());
    for replacement in replace::prepare(found, &options)? {
        match replacement.carry_out() {
            Ok(replaced) => {
                complain(&replaced);
                all.push(replaced);
            }
            Err(error) => {
                done = Err(error.into());
                break;
            }
        }
    }
    match arguments.json {
        true => output::json(&json!({ "sockets": all.iter().map(to_json).collect::<Vec<_>>() }))?,
        false => all.iter().try_for_each(print)?,
    }
    done.map(|()| Outcome::Done)
}

fn edits(changes: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let mut edits = Vec::with_capacity(changes.len());
    for change in changes {
        let Some((name, value)) = change.split_once('=') else {
            bail!("{change}: is not NAME=VALUE");
        };
        edits.push((name.into(), value.into()));
    }
    Ok(edits)
}

fn complain(replaced: &Replaced) {
    for note in &replaced.report.not_carried {
        let inode = replaced.old.inode;
        output::remark(format_args!("inode {inode}: not carried: {note}"));
    }
}

fn print(replaced: &Replaced) -> anyhow::Result<()> {
    let Replaced { old, new, .. } = replaced;
    output::line(format_args!("{} → {}", words(old), words(new)))?;
    for seat in &replaced.seats {
        let (pid, tid, fd) = (seat.pid, seat.tid, seat.fd);
        let thread = match tid == pid {
            true => String::new(),
            false => format!(", thread {tid}"),
        };
        output::line(format_args!("  process {pid}{thread}, descriptor {fd}"))?;
    }
    let count = |count: usize, what: &str| match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    };
    let mut carried = count(replaced.carried, "datagram");
    if replaced.reordered > 0 {
        carried += &format!(" ({} of them behind later ones)", replaced.reordered);
    }
    output::line(format_args!(
        "  stopped for {} µs, unbound for {} µs, {carried} and {} carried",
        micros(replaced.stopped),
        micros(replaced.unbound),
        count(replaced.registrations, "epoll registration"),
    ))?;
    if !replaced.crowded.is_zero() {
        output::line(format_args!(
            "  its SO_REUSEPORT group had a member more for {} µs: datagrams may have come to others of it",
            micros(replaced.crowded)
        ))?;
    }
    Ok(())
}

fn words(side: &Side) -> String {
    match side.peer {
        Some(peer) => format!("inode {} {} -> {peer}", side.inode, side.local),
        None => format!("inode {} {}", side.inode, side.local),
    }
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

fn to_json(replaced: &Replaced) -> serde_json::Value {
    let side = |side: &Side| {
        json!({
            "inode": side.inode,
            "local": side.local.to_string(),
            "peer": side.peer.map(|peer| peer.to_string()),
        })
    };
    let seats = replaced.seats.iter();
    let seats = seats.map(|seat| json!({ "pid": seat.pid, "tid": seat.tid, "fd": seat.fd }));
    let lost = replaced.report.not_carried.iter();
    json!({
        "old": side(&replaced.old),
        "new": side(&replaced.new),
        "seats": seats.collect::<Vec<_>>(),
        "epoll_registrations": replaced.registrations,
        "stopped_us": micros(replaced.stopped),
        "unbound_us": micros(replaced.unbound),
        "crowded_us": micros(replaced.crowded),
        "datagrams_carried": replaced.carried,
        "datagrams_reordered": replaced.reordered,
        "attempts": replaced.attempts,
        "not_carried": lost.map(ToString::to_string).collect::<Vec<_>>(),
    })
}
