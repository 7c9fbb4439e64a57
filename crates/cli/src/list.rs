//! `sockcr list`: the sockets here.

use crate::Outcome;
use crate::expression::{Ends, Expression};
use crate::output::{self, FAINT, line, styled};
use crate::source::Source;
use anyhow::Context;
use serde_json::json;
use sockcr::find::{self, Holder, Listed};
use sockcr::netns;
use sockcr::option::bytes;
use sockcr::target;
use std::collections::HashMap;
use std::net::SocketAddr;

/// List internet sockets: who has them, where they are bound, whether they can be checkpointed
#[derive(clap::Args)]
pub struct Arguments {
    /// Only those that match, in the grammar of ss(8): dport = :53 and not src 127.0.0.1;
    /// src [2001:db8::]/32; src [fe80::1%eth0]:546
    #[arg(value_name = "EXPR")]
    expression: Vec<String>,

    /// Only the sockets of this process, in whichever network namespace
    #[arg(long)]
    pid: Option<i32>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, source: &mut Source) -> anyhow::Result<Outcome> {
    let text = arguments.expression.join(" ");
    let expression: Expression = match text.parse() {
        Ok(expression) => expression,
        Err(why) => crate::wrong_usage(format_args!("{text}: is no filter: {why:#}")),
    };
    let listing = match source {
        Source::Here => find::list(arguments.pid)?,
        Source::Service(client) => client.list(arguments.pid)?,
    };
    let here = netns::own_cookie().context("ask for the network namespace")?;
    let mut names = Names::default();
    let mut wanted = |socket: &&Listed| {
        (arguments.pid.is_some() || socket.netns == here)
            && expression.matches(&Ends {
                local: socket.local,
                peer: socket.peer,
                device: names.device(socket).as_deref(),
            })
    };
    let mut sockets: Vec<&Listed> = listing.sockets.iter().collect();
    sockets.retain(&mut wanted);
    if arguments.json {
        let sockets = sockets.iter().map(|socket| to_json(socket, &mut names));
        let sockets: Vec<serde_json::Value> = sockets.collect();
        output::json(&json!({ "sockets": sockets, "not_seen": listing.hidden }))?;
    } else {
        print(&sockets, &mut names)?;
    }
    if listing.hidden > 0 {
        output::remark(format_args!(
            "{} tables and sockets of other users could not be looked into",
            listing.hidden
        ));
    }
    Ok(Outcome::Done)
}

fn print(sockets: &[&Listed], names: &mut Names) -> anyhow::Result<()> {
    let titles = [
        "INODE",
        "PID:FD",
        "COMMAND",
        "PROTOCOL",
        "LOCAL",
        "PEER",
        "QUEUED",
        "CHECKPOINT",
    ];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    for socket in sockets {
        rows.push(vec![
            socket.inode.to_string(),
            socket
                .holders
                .iter()
                .map(pid_fd)
                .collect::<Vec<_>>()
                .join(","),
            socket
                .holders
                .first()
                .map_or_else(String::new, |holder| names.command(holder.pid)),
            socket.kind.clone(),
            address(socket, &socket.local, names).unwrap_or_else(|| "-".into()),
            address(socket, &socket.peer, names).unwrap_or_else(|| "-".into()),
            bytes(socket.receive_bytes.into()),
            verdict(socket),
        ]);
    }
    for (at, text) in output::table(&rows).into_iter().enumerate() {
        match at {
            0 => line(styled(FAINT, text))?,
            _ => line(text)?,
        }
    }
    Ok(())
}

fn pid_fd(holder: &Holder) -> String {
    format!("{}:{}", holder.tid, holder.fd)
}

/// The names of processes, and of devices in their network namespaces, each asked once.
#[derive(Default)]
struct Names {
    commands: HashMap<i32, String>,
    devices: HashMap<(u64, u32), Option<String>>,
}

impl Names {
    fn command(&mut self, pid: i32) -> String {
        let name = self.commands.entry(pid).or_insert_with(|| command(pid));
        name.clone()
    }

    /// The device of link-local addresses.
    fn device(&mut self, socket: &Listed) -> Option<String> {
        let device = self.devices.entry((socket.netns, socket.scope()));
        device.or_insert_with(|| socket.device()).clone()
    }
}

fn command(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    // A name can hold anything; what is no letter must not reach the terminal.
    let printable = |c: char| if c.is_control() { '?' } else { c };
    name.unwrap_or_default()
        .trim_end()
        .chars()
        .map(printable)
        .collect()
}

/// An address of a socket; `None` where it has none.
fn address(socket: &Listed, address: &SocketAddr, names: &mut Names) -> Option<String> {
    let none = address.ip().is_unspecified() && address.port() == 0;
    (!none).then(|| target::show(address, names.device(socket).as_deref()))
}

fn verdict(socket: &Listed) -> String {
    match socket.protocol {
        Some(_) => "yes".into(),
        None => format!("no: {} is not carried yet", socket.kind),
    }
}

fn to_json(socket: &Listed, names: &mut Names) -> serde_json::Value {
    let holders = socket.holders.iter().map(|holder| {
        json!({ "pid": holder.pid, "tid": holder.tid, "fd": holder.fd, "command": names.command(holder.pid) })
    });
    let holders: Vec<serde_json::Value> = holders.collect();
    json!({
        "inode": socket.inode,
        "cookie": (socket.cookie != 0).then_some(socket.cookie),
        "holders": holders,
        "protocol": socket.kind,
        "local": address(socket, &socket.local, names),
        "peer": address(socket, &socket.peer, names),
        "queued_bytes": socket.receive_bytes,
        "netns_cookie": socket.netns,
        "checkpoint": socket.protocol.is_some(),
        "reason": socket.protocol.is_none().then(|| verdict(socket)),
    })
}
