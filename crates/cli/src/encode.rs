//! `sockcr encode`: the inverse of `sockcr show --json`.

use crate::{Outcome, output, source};
use anyhow::Context;
use sockcr::{image, json};

/// Turn the JSON of `sockcr show --json` into an image
#[derive(clap::Args)]
pub struct Arguments {
    /// The JSON file; - is standard input
    #[arg(default_value = "-")]
    json: String,

    /// The image; - is standard output
    #[arg(short, long, value_name = "IMAGE")]
    output: String,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let bytes = source::bytes(&arguments.json)?;
    let text = std::str::from_utf8(&bytes).context("JSON: is not UTF-8")?;
    let checkpoints = json::from_json(text)?;
    output::write(&arguments.output, &image::encode(&checkpoints)?)?;
    Ok(Outcome::Done)
}
