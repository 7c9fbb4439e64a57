//! The command `sockcr`: see, tune, checkpoint and restore live Linux sockets.
//!
//! It is a library so that the scenarios in `tests/` can be the command themselves.
#![forbid(unsafe_code)]

mod check;
mod demo;
mod diff;
mod dump;
mod edit;
mod encode;
mod expression;
mod list;
mod metrics;
mod move_to;
mod options;
mod output;
mod packaging;
mod replace;
mod restore;
mod serve;
mod set;
mod show;
mod source;
mod waiting;

use crate::source::Source;
use clap::{Parser, Subcommand};
use sockcr_service::Client;
use std::path::PathBuf;
use std::process::ExitCode;

/// See, tune, checkpoint and restore any live Linux socket.
///
/// A TARGET is PID:FD, PID (every socket of the process), inode:N, cookie:N, udp:ADDR:PORT,
/// udp:[ADDR]:PORT, udp:[ADDR%DEVICE]:PORT or udp:*:PORT (any address of IPv4 and IPv6);
/// udplite:ADDR:PORT, ping:ADDR:ID and raw:ADDR:PROTOCOL likewise. An IMAGE is a file, or - for
/// standard input.
#[derive(Parser)]
#[command(name = "sockcr", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// Work in this network namespace: its name under /run/netns, or a path
    #[arg(long, global = true, value_name = "NAME")]
    netns: Option<String>,

    /// Have the service that listens here do it: dump, restore, list, show, check, metrics
    #[arg(long, global = true, value_name = "PATH")]
    service: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    List(list::Arguments),
    Show(show::Arguments),
    Dump(dump::Arguments),
    Restore(restore::Arguments),
    Diff(diff::Arguments),
    Encode(encode::Arguments),
    Edit(edit::Arguments),
    Set(set::Arguments),
    Replace(replace::Arguments),
    Move(move_to::Arguments),
    Options(options::Arguments),
    Check(check::Arguments),
    Demo(demo::Arguments),
    Serve(serve::Arguments),
    Metrics(metrics::Arguments),
    Completions(packaging::Completions),
    /// Print the manual page, or write one for each verb into a folder
    Man(packaging::Manual),
}

impl Verb {
    fn can_be_served(&self) -> bool {
        matches!(
            self,
            Verb::List(_)
                | Verb::Show(_)
                | Verb::Dump(_)
                | Verb::Restore(_)
                | Verb::Check(_)
                | Verb::Metrics(_)
        )
    }
}

/// How a verb ended when it did not fail.
enum Outcome {
    Done,
    /// Different, or refused: exit 1 without a message.
    Different,
}

/// Does what the arguments of this process say.
pub fn main() -> ExitCode {
    end(run(Cli::parse())).into()
}

/// Tells an error, if there is one; answers the exit code.
fn end(ended: anyhow::Result<Outcome>) -> u8 {
    let ended = ended.and_then(|outcome| {
        std::io::Write::flush(&mut std::io::stdout())?;
        Ok(outcome)
    });
    match ended {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::Different) => 1,
        Err(error) if output::is_closed_pipe(&error) => 0,
        Err(error) => {
            output::complain(&error);
            1
        }
    }
}

/// Ends with exit 2, as clap does when the arguments are wrong.
fn wrong_usage(why: impl std::fmt::Display) -> ! {
    output::remark(why);
    std::process::exit(2)
}

fn run(cli: Cli) -> anyhow::Result<Outcome> {
    // What is replaced is looked for here; only the new socket is there.
    let stays = matches!(cli.verb, Verb::Replace(_));
    if let Some(name) = cli.netns.as_ref().filter(|_| !stays) {
        use std::os::fd::AsFd;
        sockcr::netns::enter(name, sockcr::netns::open(name)?.as_fd())?;
    }
    let mut source = match &cli.service {
        Some(_) if !cli.verb.can_be_served() => {
            wrong_usage("--service does dump, restore, list, show, check and metrics only")
        }
        Some(path) => Source::Service(Box::new(Client::connect(path)?)),
        None => Source::Here,
    };
    match cli.verb {
        Verb::List(arguments) => list::run(&arguments, &mut source),
        Verb::Show(arguments) => show::run(&arguments, &mut source),
        Verb::Dump(arguments) => dump::run(&arguments, &mut source),
        Verb::Restore(arguments) => restore::run(&arguments, &mut source),
        Verb::Diff(arguments) => diff::run(&arguments),
        Verb::Encode(arguments) => encode::run(&arguments),
        Verb::Edit(arguments) => edit::run(&arguments),
        Verb::Set(arguments) => set::run(&arguments),
        Verb::Replace(arguments) => replace::run(&arguments, cli.netns.as_deref()),
        Verb::Move(arguments) => move_to::run(&arguments),
        Verb::Options(arguments) => options::run(&arguments),
        Verb::Check(arguments) => check::run(&arguments, &mut source),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Serve(arguments) => serve::run(&arguments),
        Verb::Metrics(_) => metrics::run(&mut source),
        Verb::Completions(arguments) => packaging::completions(&arguments),
        Verb::Man(arguments) => packaging::manual(&arguments),
    }
}
