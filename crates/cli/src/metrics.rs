//! `sockcr metrics`: how the service fares.

use crate::source::Source;
use crate::{Outcome, output, wrong_usage};

/// Print the figures of the service (--service), as Prometheus reads them
#[derive(clap::Args)]
pub struct Arguments {}

pub fn run(source: &mut Source) -> anyhow::Result<Outcome> {
    match source {
        Source::Here => wrong_usage("metrics are those of a service: --service PATH names it"),
        Source::Service(client) => output::line(client.metrics()?.trim_end())?,
    }
    Ok(Outcome::Done)
}
