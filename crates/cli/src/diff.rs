//! `sockcr diff`: what two sockets differ in.

use crate::output::{self, line};
use crate::{Outcome, source};
use anyhow::ensure;
use serde_json::json;
use sockcr::diff::{Difference, brief, diff};

/// Compare two sockets or images, a line for each difference; exit 1 when there is one
#[derive(clap::Args)]
pub struct Arguments {
    /// PID:FD, PID, inode:N, cookie:N, udp:ADDR:PORT, or an image file
    a: String,

    /// What to compare it with
    b: String,

    /// As JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let (a, b) = (source::either(&arguments.a)?, source::either(&arguments.b)?);
    ensure!(
        a.len() == b.len(),
        "{} has {} sockets, {} has {}: nothing to compare one by one",
        arguments.a,
        a.len(),
        arguments.b,
        b.len()
    );
    let differences: Vec<Vec<Difference>> = a.iter().zip(&b).map(|(a, b)| diff(a, b)).collect();
    if arguments.json {
        output::json(&json!({ "sockets": differences }))?;
    } else {
        for (socket, differences) in a.iter().zip(&differences) {
            for text in lines(differences) {
                match a.len() {
                    1 => line(text)?,
                    _ => line(format_args!("{}: {text}", socket.name()))?,
                }
            }
        }
    }
    match differences.iter().all(Vec::is_empty) {
        true => Ok(Outcome::Done),
        false => Ok(Outcome::Different),
    }
}

fn lines(differences: &[Difference]) -> Vec<String> {
    let words = |difference: &Difference| {
        let (a, b) = brief(difference, "-");
        vec![difference.what.clone(), a, "→".into(), b]
    };
    let rows: Vec<Vec<String>> = differences.iter().map(words).collect();
    output::table(&rows)
}
