//! `sockcr list`: the sockets here.

use crate::Outcome;
use crate::expression::Expression;
use crate::output::{self, FAINT, line, styled};
use anyhow::Context;
use serde_json::json;
use sockcr::find::{self, Holder, Listed};
use sockcr::netns;
use sockcr::option::bytes;
use std::collections::HashMap;
use std::net::SocketAddrV4;

/// List internet sockets: who has them, where they are bound, whether they can be checkpointed
#[derive(clap::Args)]
pub struct Arguments {
    /// Only those that match, in the grammar of ss(8): dport = :53 and not src 127.0.0.1
    #[arg(value_name = "EXPR")]
    expression: Vec<String>,

    /// Only the sockets of this process, in whichever network namespace
    #[arg(long)]
    pid: Option<i32>,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let text = arguments.expression.join(" ");
    let expression: Expression = match text.parse() {
        Ok(expression) => expression,
        Err(why) => crate::wrong_usage(format_args!("{text}: is no filter: {why:#}")),
    };
    let listing = find::list(arguments.pid)?;
    let here = netns::own_cookie().context("ask for the network namespace")?;
    let wanted = |socket: &&Listed| {
        (arguments.pid.is_some() || socket.netns == here)
            && expression.matches(&socket.local, &socket.peer)
    };
    let sockets: Vec<&Listed> = listing.sockets.iter().filter(wanted).collect();
    let mut commands = Commands::default();
    if arguments.json {
        let sockets = sockets.iter().map(|socket| to_json(socket, &mut commands));
        let sockets: Vec<serde_json::Value> = sockets.collect();
        output::json(&json!({ "sockets": sockets, "not_seen": listing.hidden }))?;
    } else {
        print(&sockets, &mut commands)?;
    }
    if listing.hidden > 0 {
        output::remark(format_args!(
            "{} tables and sockets of other users could not be looked into",
            listing.hidden
        ));
    }
    Ok(Outcome::Done)
}

fn print(sockets: &[&Listed], commands: &mut Commands) -> anyhow::Result<()> {
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
                .map_or_else(String::new, |holder| commands.of(holder.pid)),
            socket.kind.clone(),
            address(socket, &socket.local),
            address(socket, &socket.peer),
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

/// The names of processes, each read once.
#[derive(Default)]
struct Commands(HashMap<i32, String>);

impl Commands {
    fn of(&mut self, pid: i32) -> String {
        self.0.entry(pid).or_insert_with(|| command(pid)).clone()
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

/// Addresses of other families than IPv4 are not read.
fn address(socket: &Listed, address: &SocketAddrV4) -> String {
    match (socket.kind.contains('6'), address.port()) {
        (true, 0) => "-".into(),
        (true, port) => format!("?:{port}"),
        (false, 0) if address.ip().is_unspecified() => "-".into(),
        (false, _) => address.to_string(),
    }
}

fn verdict(socket: &Listed) -> String {
    match socket.protocol {
        Some(_) => "yes".into(),
        None => format!("no: {} is not carried yet", socket.kind),
    }
}

fn to_json(socket: &Listed, commands: &mut Commands) -> serde_json::Value {
    let holders = socket.holders.iter().map(|holder| {
        json!({ "pid": holder.pid, "tid": holder.tid, "fd": holder.fd, "command": commands.of(holder.pid) })
    });
    let known = |text: String| (!text.starts_with(['-', '?'])).then_some(text);
    json!({
        "inode": socket.inode,
        "cookie": (socket.cookie != 0).then_some(socket.cookie),
        "holders": holders.collect::<Vec<_>>(),
        "protocol": socket.kind,
        "local": known(address(socket, &socket.local)),
        "peer": known(address(socket, &socket.peer)),
        "queued_bytes": socket.receive_bytes,
        "netns_cookie": socket.netns,
        "checkpoint": socket.protocol.is_some(),
        "reason": socket.protocol.is_none().then(|| verdict(socket)),
    })
}
