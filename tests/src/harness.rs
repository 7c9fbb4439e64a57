//! One executable that is everything: the harness, a scenario, the command, an actor.

use crate::process::{Process, end_with_parent};
use crate::{Outcome, Scenario, actor, need, wait};
use anyhow::{Context, bail, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rustix::process::{
    Signal, WaitOptions, geteuid, getpid, getppid, set_child_subreaper,
    set_parent_process_death_signal, wait as reap,
};
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// `--scenario PARENT NAME`: tell this scenario.
const SCENARIO: &str = "--scenario";
/// `--actor PARENT ROLE ...`: be this actor.
pub const ACTOR: &str = "--actor";
/// `--program PARENT NAME ...`: become this program.
pub(crate) const PROGRAM: &str = "--program";
/// `--probe`: say whether a scenario could be told here.
pub(crate) const PROBE: &str = "--probe";
/// The variable that makes this executable the command; it names the parent.
pub const BE_SOCKCR: &str = "SOCKCR_SCENARIOS_PARENT";

/// No scenario takes longer.
const DEADLINE: Duration = Duration::from_secs(300);
/// Unless somebody has asked for more rounds than it has.
const MORE: [&str; 2] = ["SOCKCR_REPLACES", "SOCKCR_KILLS"];

/// Is what the first argument says, and the harness without one.
pub fn main(scenarios: &[&'static [Scenario]]) -> ExitCode {
    let arguments: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    let all = scenarios.iter().copied().flatten();
    let ended = match arguments.split_first() {
        Some((first, rest)) if first == ACTOR => actor::main(rest),
        Some((first, rest)) if first == PROGRAM => become_program(rest),
        Some((first, [parent, name])) if first == SCENARIO => inside(parent, all, name),
        Some((first, [])) if first == PROBE => enter_namespace(),
        _ => match std::env::var(BE_SOCKCR) {
            Ok(parent) => return sockcr(&parent),
            Err(_) => return harness(all),
        },
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn harness(scenarios: impl Iterator<Item = &'static Scenario>) -> ExitCode {
    let trials =
        scenarios.map(|scenario| Trial::ignorable_test(scenario.name, move || trial(scenario)));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn trial(scenario: &'static Scenario) -> Result<Completion, Failed> {
    match need::skip(scenario.needs)? {
        Some(why) => Ok(Completion::ignored_with(format!("skipped: {why}"))),
        None => match outside(scenario) {
            Ok(()) => Ok(Completion::Completed),
            Err(error) => Err(format!("{error:#}").into()),
        },
    }
}

/// Tells a scenario in a process of its own, in a folder that goes away with it.
fn outside(scenario: &Scenario) -> Outcome {
    let folder = tempfile::Builder::new().prefix("sockcr-").tempdir()?;
    // Others look for their own folder in it.
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755))?;
    let log = folder.path().join("log");
    let parent = std::process::id().to_string();
    let mut command = Command::new("/proc/self/exe");
    command
        .args([SCENARIO, &parent, scenario.name])
        .stderr(File::create(&log)?)
        .current_dir(folder.path());
    let process = Process::start(&mut command)?;
    let more = MORE.iter().any(|name| std::env::var_os(name).is_some());
    let deadline = DEADLINE * if more { 100 } else { 1 };
    if !process.ends_within(deadline)? {
        drop(process);
        bail!(
            "did not end in {deadline:?}\n{}",
            std::fs::read_to_string(&log)?
        );
    }
    let status = process.end()?;
    ensure!(
        status.success(),
        "{status}\n{}",
        std::fs::read_to_string(&log)?
    );
    Ok(())
}

/// Tells a scenario in this process.
fn inside(parent: &str, mut all: impl Iterator<Item = &'static Scenario>, name: &str) -> Outcome {
    end_with_parent(parent.parse()?)?;
    let scenario = all
        .find(|scenario| scenario.name == name)
        .context("no such scenario")?;
    set_child_subreaper(Some(getpid()))?;
    folder_of_nobody()?;
    enter_namespace()?;
    (scenario.run)()?;
    nothing_is_left()
}

/// A folder that the user without privilege may write to.
fn folder_of_nobody() -> Outcome {
    std::fs::create_dir("nobody")?;
    if geteuid().is_root() {
        let id = Some(crate::command::NOBODY);
        chown("nobody", id, id)?;
    }
    Ok(())
}

/// Moves this process into a network namespace of its own, as root of one of its own if need be.
pub fn enter_namespace() -> Outcome {
    Ok(sockcr::sandbox::enter()?)
}

/// Every process that the scenario started, and every one that these did, must have ended.
fn nothing_is_left() -> Outcome {
    wait::until("the end of every process that was started", || {
        loop {
            match reap(WaitOptions::NOHANG) {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                Err(rustix::io::Errno::CHILD) => return Ok(Some(())),
                Err(error) => return Err(error).context("wait"),
            }
        }
    })
}

fn become_program(arguments: &[String]) -> anyhow::Result<()> {
    let [parent, name, rest @ ..] = arguments else {
        bail!("no program is named");
    };
    end_with_parent(parent.parse()?)?;
    Err(Command::new(name).args(rest).exec()).with_context(|| name.clone())
}

fn sockcr(parent: &str) -> ExitCode {
    let started_by = getppid().map(|pid| pid.as_raw_pid().to_string());
    // What the command itself starts is for the command to end.
    if started_by.as_deref() == Some(parent) {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
    }
    sockcr_cli::main()
}
