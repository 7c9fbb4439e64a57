//! `sockcr edit`: change a checkpoint.

use crate::{Outcome, output, source};
use anyhow::bail;
use sockcr::{diff, image};

/// Change a checkpoint: options by name, and local=ADDR:PORT or peer=ADDR:PORT
///
/// Values are typed as `sockcr options NAME` describes them: SO_RCVBUF=8M, SO_RCVTIMEO=250ms,
/// IP_MTU_DISCOVER=IP_PMTUDISC_DO. Every socket of the image is changed.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image
    image: String,

    /// What to change
    #[arg(required = true, value_name = "NAME=VALUE")]
    changes: Vec<String>,

    /// Where to write the changed image, instead of over the old one
    #[arg(short, long, value_name = "IMAGE")]
    output: Option<String>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let before = source::image(&arguments.image)?;
    let mut after = before.clone();
    for change in &arguments.changes {
        let Some((name, value)) = change.split_once('=') else {
            bail!("{change}: is not NAME=VALUE");
        };
        for checkpoint in &mut after {
            checkpoint.edit(name, value)?;
        }
    }
    let output = arguments.output.as_ref().unwrap_or(&arguments.image);
    output::write(output, &image::encode(&after)?)?;
    for (before, after) in before.iter().zip(&after) {
        for change in diff::diff(before, after) {
            let (old, new) = diff::brief(&change, "-");
            output::remark(format_args!(
                "{}: {}: {old} → {new}",
                before.name(),
                change.what
            ));
        }
    }
    Ok(Outcome::Done)
}
