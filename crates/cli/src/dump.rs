//! `sockcr dump`: checkpoint live sockets into an image.

use crate::source::{self, Source};
use crate::{Outcome, output};
use sockcr::find::{self, Found};
use sockcr::option::bytes;
use sockcr::{Checkpoint, Target, image, kernel, stop};
use std::time::Duration;

/// How long --stop waits for the devices.
const PATIENCE: Duration = Duration::from_secs(10);

/// Checkpoint live sockets into an image; their owner goes on running
#[derive(clap::Args)]
pub struct Arguments {
    /// PID:FD, PID, inode:N, cookie:N or udp:ADDR:PORT
    #[arg(required = true, value_name = "TARGET")]
    targets: Vec<Target>,

    /// The image; - is standard output
    #[arg(short, long, value_name = "IMAGE")]
    output: String,

    /// Hold the owners still while their sockets are read, and wait up to 10 s for what they have
    /// sent to leave the device
    #[arg(long)]
    pub stop: bool,

    /// Leave out what names this host or this one socket (inode, descriptor number, assumptions),
    /// so that equal sockets give equal bytes
    #[arg(long)]
    canonical: bool,
}

pub fn run(arguments: &Arguments, source: &mut Source) -> anyhow::Result<Outcome> {
    let mut checkpoints = match source {
        Source::Here => dump(&arguments.targets, arguments.stop)?,
        Source::Service(client) => source::served(client, &arguments.targets)?,
    };
    for checkpoint in &checkpoints {
        for note in &checkpoint.report.not_carried {
            output::remark(format_args!("{}: not carried: {note}", checkpoint.name()));
        }
        if checkpoint.in_flight > 0 {
            let size = bytes(checkpoint.in_flight.into());
            let what = "with a device, on its way out: nothing brings it back";
            output::remark(format_args!("{}: {size} {what}", checkpoint.name()));
        }
    }
    // With BPF nothing is assumed for want of seeing it.
    let blind = matches!(source, Source::Here) && kernel::reader().is_err();
    if blind && checkpoints.iter().any(|c| !c.report.assumed.is_empty()) {
        output::remark("what only BPF sees is assumed: `sockcr show` says what");
    }
    if arguments.canonical {
        checkpoints = checkpoints.into_iter().map(Checkpoint::canonical).collect();
    }
    output::write(&arguments.output, &image::encode(&checkpoints)?)?;
    Ok(Outcome::Done)
}

fn dump(targets: &[Target], stop: bool) -> anyhow::Result<Vec<Checkpoint>> {
    let mut found: Vec<Found> = Vec::new();
    for target in targets {
        for socket in find::find(target)? {
            if !found.iter().any(|have| have.inode == socket.inode) {
                found.push(socket);
            }
        }
    }
    let stopped = match stop {
        true => hold_still(&found)?,
        false => Vec::new(),
    };
    let checkpoints = source::dump(&found);
    drop(stopped);
    checkpoints
}

/// Stops the owners, and waits for what they have sent to leave.
fn hold_still(found: &[Found]) -> Result<Vec<stop::Stopped>, sockcr::Error> {
    let owners = find::owners(found)?.into_iter();
    let stopped = owners.map(stop::stop).collect::<Result<_, _>>()?;
    find::until_sent(found, PATIENCE);
    Ok(stopped)
}
