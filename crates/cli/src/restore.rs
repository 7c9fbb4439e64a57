//! `sockcr restore`: sockets from an image.

use crate::output::{self, GOOD, line, styled};
use crate::{Outcome, source};
use anyhow::ensure;
use sockcr::{Checkpoint, Mapping, RestoreOptions, deliver, restore_all};
use std::ffi::OsString;

/// Restore the sockets of an image, and become COMMAND with them; without COMMAND, only try
/// whether they can be restored here
///
/// COMMAND gets the sockets by the LISTEN_FDS protocol of systemd: from descriptor 3 on, with
/// LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES in its environment.
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

    /// What gets the sockets
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let checkpoints = source::image(&arguments.image)?;
    let options = RestoreOptions {
        lossy: arguments.lossy,
        map: arguments.map.clone(),
        verify: true,
        alone: arguments.command.is_empty(),
        ..RestoreOptions::default()
    };
    ensure!(
        !checkpoints.is_empty(),
        "{}: holds no socket",
        arguments.image
    );
    let restored = restore_all(&checkpoints, &options)?;
    for (checkpoint, restored) in checkpoints.iter().zip(&restored) {
        for note in &restored.report.not_carried {
            output::remark(format_args!("{}: not restored: {note}", checkpoint.name()));
        }
    }
    if arguments.command.is_empty() {
        for (checkpoint, restored) in checkpoints.iter().zip(&restored) {
            let how = match restored.report.is_exact() {
                true => "can be restored here, exactly",
                false => "can be restored here, with the losses above",
            };
            line(format_args!("{}: {}", checkpoint.name(), styled(GOOD, how)))?;
        }
        return Ok(Outcome::Done);
    }
    let names = checkpoints.iter().map(name);
    let sockets = names.zip(restored.into_iter().map(|r| r.fd)).collect();
    Err(deliver::command(sockets, &arguments.command).into())
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
