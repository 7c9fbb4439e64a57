//! `sockcr restore`: sockets from an image.

use crate::Outcome;
use crate::output::{self, GOOD, line, styled};
use crate::source::{self, Source};
use anyhow::ensure;
use sockcr::deliver::{self, Place, StoreName};
use sockcr::{Checkpoint, Mapping, RestoreOptions, Restored, restore_all};
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};

/// Restore the sockets of an image, and become COMMAND with them, or put them elsewhere; without any
/// of these, only try whether they can be restored here
///
/// COMMAND gets the sockets by the LISTEN_FDS protocol of systemd: from descriptor 3 on, with
/// LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES in its environment. A running process gets them at free
/// descriptors, or from FD on; it goes on as if nothing had happened. They are made in this network
/// namespace, or that of --netns.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image; - is standard input
    image: String,

    /// An address or a device that is called otherwise here
    #[arg(long, value_name = "OLD=NEW")]
    map: Vec<Mapping>,

    /// Go on without what cannot be restored exactly, and say what that is
    #[arg(long)]
    lossy: bool,

    /// Put the sockets into this running process, and print their descriptors there
    #[arg(long, value_name = "PID[:FD]", conflicts_with_all = ["fdstore", "command"])]
    into: Option<Place>,

    /// Put the sockets into the descriptor store of the service manager ($NOTIFY_SOCKET)
    #[arg(long, value_name = "NAME", conflicts_with = "command")]
    fdstore: Option<StoreName>,

    /// What gets the sockets
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn run(arguments: &Arguments, source: &mut Source) -> anyhow::Result<Outcome> {
    let checkpoints = source::image(&arguments.image)?;
    let options = RestoreOptions {
        lossy: arguments.lossy,
        map: arguments.map.clone(),
        verify: true,
        alone: arguments.only_tries(),
        ..RestoreOptions::default()
    };
    ensure!(
        !checkpoints.is_empty(),
        "{}: holds no socket",
        arguments.image
    );
    let restored = match source {
        Source::Here => restore_all(&checkpoints, &options)?,
        Source::Service(client) => client.restore_all(&checkpoints, &options)?,
    };
    for (checkpoint, restored) in checkpoints.iter().zip(&restored) {
        for note in &restored.report.not_carried {
            output::remark(format_args!("{}: not restored: {note}", checkpoint.name()));
        }
    }
    if arguments.only_tries() {
        return tried(&checkpoints, &restored);
    }
    let sockets: Vec<BorrowedFd<'_>> = restored.iter().map(|r| r.fd.as_fd()).collect();
    if let Some(place) = arguments.into {
        let numbers = deliver::to_process(&sockets, place)?;
        for (checkpoint, fd) in checkpoints.iter().zip(numbers) {
            line(format_args!(
                "{}: {place}, descriptor {fd}",
                checkpoint.name()
            ))?;
        }
        return Ok(Outcome::Done);
    }
    if let Some(name) = &arguments.fdstore {
        deliver::to_service_manager(&sockets, name)?;
        return Ok(Outcome::Done);
    }
    let names = checkpoints.iter().map(name);
    let sockets = names.zip(restored.into_iter().map(|r| r.fd)).collect();
    Err(deliver::command(sockets, &arguments.command).into())
}

impl Arguments {
    fn only_tries(&self) -> bool {
        self.command.is_empty() && self.into.is_none() && self.fdstore.is_none()
    }
}

fn tried(checkpoints: &[Checkpoint], restored: &[Restored]) -> anyhow::Result<Outcome> {
    for (checkpoint, restored) in checkpoints.iter().zip(restored) {
        let how = match restored.report.is_exact() {
            true => "can be restored here, exactly",
            false => "can be restored here, with the losses above",
        };
        line(format_args!("{}: {}", checkpoint.name(), styled(GOOD, how)))?;
    }
    Ok(Outcome::Done)
}

/// Its name in LISTEN_FDNAMES: protocol, address and port; of a raw socket its number, for colons part
/// the names.
fn name(checkpoint: &Checkpoint) -> String {
    let local = checkpoint.endpoint.local;
    let number = match checkpoint.protocol.is_raw() {
        true => checkpoint.protocol.number,
        false => local.port().into(),
    };
    format!("{}-{}-{}", checkpoint.protocol.name, local.ip(), number)
}
