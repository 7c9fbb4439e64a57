//! `sockcr check`: what this kernel and this user can do.

use crate::Outcome;
use crate::output::{self, GOOD, WARNING, line, styled};
use crate::source::Source;
use serde_json::json;
use sockcr::check::{Feature, delivery, features};

/// Say what this kernel and this user can do, and why not
#[derive(clap::Args)]
pub struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments, source: &mut Source) -> anyhow::Result<Outcome> {
    let features = match source {
        Source::Here => features(),
        Source::Service(client) => {
            let mut features = client.check()?;
            // What a restored socket is delivered by is not the service's.
            features.push(delivery());
            features
        }
    };
    if arguments.json {
        output::json(&json!({ "features": features }))?;
        return Ok(Outcome::Done);
    }
    for Feature {
        what,
        missing,
        without,
    } in &features
    {
        match missing {
            None => line(format_args!("{}  {what}", styled(GOOD, "yes")))?,
            Some(why) => {
                line(format_args!("{}  {what}: {why}", styled(WARNING, "no ")))?;
                line(format_args!("     without it: {without}"))?;
            }
        }
    }
    Ok(Outcome::Done)
}
