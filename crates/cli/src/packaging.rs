//! `sockcr completions` and `sockcr man`, for packages.

use crate::{Cli, Outcome, output};
use anyhow::Context;
use clap::CommandFactory;
use std::path::PathBuf;

/// Print the completions of a shell
#[derive(clap::Args)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

/// Print the manual page, or write one for each verb
#[derive(clap::Args)]
pub struct Manual {
    /// Write sockcr.1, sockcr-list.1, ... into this folder
    folder: Option<PathBuf>,
}

pub fn completions(arguments: &Completions) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "sockcr", &mut script);
    output::write("-", &script)?;
    Ok(Outcome::Done)
}

pub fn manual(arguments: &Manual) -> anyhow::Result<Outcome> {
    match &arguments.folder {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder)
            .with_context(|| format!("{}: write the manual pages", folder.display()))?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            output::write("-", &page)?;
        }
    }
    Ok(Outcome::Done)
}
