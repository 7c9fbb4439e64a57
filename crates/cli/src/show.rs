//! `sockcr show`: everything a checkpoint carries.

use crate::output::{self, CHANGED, FAINT, STRONG, WARNING, line, styled};
use crate::source::Source;
use crate::{Outcome, waiting};
use sockcr::option::{Row, Value, bytes};
use sockcr::state::descriptor::Owner;
use sockcr::state::filter::Filter;
use sockcr::{Checkpoint, diff, json};

/// Show everything that a checkpoint of a socket carries; what differs from a fresh socket stands
/// out
#[derive(clap::Args)]
pub struct Arguments {
    /// PID:FD, PID, inode:N, cookie:N, udp:ADDR:PORT, or an image file
    #[arg(value_name = "TARGET|IMAGE")]
    what: String,

    /// Only what differs from a fresh socket
    #[arg(long)]
    changed: bool,

    /// As JSON, which `sockcr encode` turns back into the same image
    #[arg(long, conflicts_with = "changed")]
    json: bool,
}

pub fn run(arguments: &Arguments, source: &mut Source) -> anyhow::Result<Outcome> {
    let (checkpoints, sockets) = source.with_sockets(&arguments.what)?;
    if arguments.json {
        output::json(&json::to_json(&checkpoints))?;
        return Ok(Outcome::Done);
    }
    // A place that may not be entered is compared with ours.
    let fresh = sockets.iter().find_map(|socket| socket.fresh().ok());
    for (at, checkpoint) in checkpoints.iter().enumerate() {
        if at > 0 {
            line("")?;
        }
        let fresh = match &fresh {
            Some(fresh) if fresh.protocol == checkpoint.protocol => fresh,
            _ => &Checkpoint::fresh(checkpoint.protocol)?,
        };
        for text in page(checkpoint, fresh, arguments.changed) {
            line(text)?;
        }
        waiting::page(checkpoint).into_iter().try_for_each(line)?;
    }
    Ok(Outcome::Done)
}

/// A socket in words; what differs from `fresh` stands out.
pub fn page(checkpoint: &Checkpoint, fresh: &Checkpoint, only_changed: bool) -> Vec<String> {
    let mut text = vec![heading(checkpoint)];
    text.extend(endpoint(checkpoint));
    let (changed, same): (Vec<_>, Vec<_>) = checkpoint
        .options
        .iter()
        .partition(|(row, value)| differs(fresh, row, value));
    section(
        &mut text,
        "options set",
        &changed_rows(checkpoint, &changed),
        CHANGED,
    );
    let leases = checkpoint.flow_labels.iter().map(diff::describe_lease);
    let leases: Vec<String> = leases.collect();
    section(&mut text, "flow labels", &leases, STRONG);
    section(
        &mut text,
        "groups, in the order of joining",
        &groups(checkpoint),
        STRONG,
    );
    let program = |filter: Option<&Filter>| filter.map(program).unwrap_or_default();
    let filter = program(checkpoint.filter.as_ref());
    section(&mut text, "filter", &filter, STRONG);
    let chooses = program(checkpoint.reuseport_program.as_ref());
    section(
        &mut text,
        "chooses within the SO_REUSEPORT group",
        &chooses,
        STRONG,
    );
    section(&mut text, "descriptor", &descriptor(checkpoint), STRONG);
    if !only_changed {
        let rows: Vec<_> = same
            .iter()
            .map(|(row, value)| vec![row.name.to_owned(), shown(checkpoint, row, value)])
            .collect();
        section(
            &mut text,
            "options as in a fresh socket",
            &columns(&rows),
            FAINT,
        );
    }
    let notes = |notes: &[sockcr::Note]| notes.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let report = &checkpoint.report;
    section(
        &mut text,
        "not carried",
        &notes(&report.not_carried),
        WARNING,
    );
    section(&mut text, "assumed", &notes(&report.assumed), FAINT);
    let unknown = checkpoint.unknown.iter();
    let unknown: Vec<_> = unknown
        .map(|u| format!("attribute {}, {}", u.number, bytes(u.payload.len() as u64)))
        .collect();
    section(&mut text, "made by a newer version", &unknown, WARNING);
    text
}

fn heading(checkpoint: &Checkpoint) -> String {
    let mut text = styled(STRONG, checkpoint.name());
    let facts = [("inode", checkpoint.inode), ("fd", checkpoint.fd)];
    for (name, number) in facts {
        if let Some(number) = number {
            text += &styled(FAINT, format_args!("  {name} {number}"));
        }
    }
    text
}

fn endpoint(checkpoint: &Checkpoint) -> Vec<String> {
    let endpoint = &checkpoint.endpoint;
    let kept = match (endpoint.address_locked, endpoint.port_locked) {
        (true, true) => "address and port",
        (true, false) => "the address, not the port",
        (false, true) => "the port, not the address",
        (false, false) => "neither address nor port",
    };
    let mut text = match endpoint.local.port() {
        0 if endpoint.local.ip().is_unspecified() => vec!["  not bound".to_owned()],
        _ => vec![format!("  a disconnect keeps {kept}")],
    };
    if let Some(source) = endpoint.source {
        text.push(format!("  sends from {source}"));
    }
    if let Some(heard) = endpoint.heard {
        text.push(format!("  by IPv6 hears {heard} alone, its former peer"));
    }
    if let Some(shutdown) = checkpoint.shutdown {
        let shut = [("receiving", shutdown.receive), ("sending", shutdown.send)];
        for (what, _) in shut.iter().filter(|(_, shut)| *shut) {
            text.push(format!("  shut down for {what}"));
        }
    }
    text
}

/// An option left out of the fresh one is one that a socket has only when it was set.
fn differs(fresh: &Checkpoint, row: &Row, value: &Value) -> bool {
    fresh.options.get(row.name) != Some(value)
}

fn shown(checkpoint: &Checkpoint, row: &Row, value: &Value) -> String {
    row.kind.show(value, &checkpoint.interfaces)
}

fn changed_rows(checkpoint: &Checkpoint, rows: &[(&'static Row, &Value)]) -> Vec<String> {
    let locks = checkpoint.buffer_locks;
    let remark = |row: &Row| match row.name {
        "SO_SNDBUF" if locks.send => "chosen by the owner",
        "SO_RCVBUF" if locks.receive => "chosen by the owner",
        _ => "",
    };
    let mut cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(row, value)| {
            let value = shown(checkpoint, row, value);
            vec![row.name.to_owned(), value, remark(row).to_owned()]
        })
        .collect();
    // A size that was set to what it was anyway is told by its lock alone.
    for (name, locked) in [("SO_SNDBUF", locks.send), ("SO_RCVBUF", locks.receive)] {
        if locked && !rows.iter().any(|(row, _)| row.name == name) {
            cells.push(vec![name.to_owned(), "chosen by the owner".to_owned()]);
        }
    }
    columns(&cells)
}

fn columns(rows: &[Vec<String>]) -> Vec<String> {
    output::table(rows)
}

fn groups(checkpoint: &Checkpoint) -> Vec<String> {
    let memberships = checkpoint.memberships.iter();
    memberships
        .map(|membership| diff::describe(checkpoint, membership))
        .collect()
}

fn program(filter: &Filter) -> Vec<String> {
    let instruction = |bytes: &[u8; 8]| {
        let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
        let code = u16::from_ne_bytes([c0, c1]);
        let k = u32::from_ne_bytes([k0, k1, k2, k3]);
        format!("{{ {code:#04x}, {jt}, {jf}, {k:#010x} }}")
    };
    match filter {
        Filter::Classic(code) => code.iter().map(instruction).collect(),
        Filter::Program(program) => vec![program.to_string()],
    }
}

fn descriptor(checkpoint: &Checkpoint) -> Vec<String> {
    let Some(descriptor) = &checkpoint.descriptor else {
        return Vec::new();
    };
    let flags = [
        ("O_NONBLOCK", descriptor.nonblock),
        ("O_ASYNC", descriptor.asynchronous),
        ("close-on-exec", descriptor.close_on_exec),
    ];
    let set = flags.iter().filter(|(_, on)| *on);
    let set: Vec<&str> = set.map(|(name, _)| *name).collect();
    let mut text = Vec::new();
    if !set.is_empty() {
        text.push(set.join(", "));
    }
    let owner = match descriptor.owner {
        Owner::Nobody => None,
        Owner::Holder => Some("the process itself".to_owned()),
        Owner::Process(id) => Some(format!("process {id}")),
        Owner::Thread(id) => Some(format!("thread {id}")),
        Owner::Group(id) => Some(format!("process group {id}")),
    };
    let signal = match descriptor.signal {
        0 => "SIGIO".to_owned(),
        number => format!("signal {number}"),
    };
    text.extend(owner.map(|owner| format!("{signal} goes to {owner}")));
    text
}

pub fn section(text: &mut Vec<String>, title: &str, lines: &[String], style: anstyle::Style) {
    if lines.is_empty() {
        return;
    }
    text.push(String::new());
    text.push(format!("  {title}"));
    let lines = lines
        .iter()
        .map(|line| format!("    {}", styled(style, line)));
    text.extend(lines);
}
