//! `kill -9` of `sockcr replace`, and of the process that works for it, at any moment.

use crate::replacing::{asked_for, no_difference};
use anyhow::{Context, ensure};
use rustix::process::Signal;
use sockcr_scenarios::command::{self, Sockcr, done, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, children, reaped};
use sockcr_scenarios::receiver::{Receiver, compiled};
use sockcr_scenarios::remains::none_in_the_kernel;
use sockcr_scenarios::{Outcome, Scenario, wait};
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    Scenario::new("replacing::killed_when_idle", CC, killed_when_idle),
    Scenario::new("replacing::killed_under_load", CC, killed_under_load),
];

const CC: &[Need] = &[Need::Root, Need::Program("cc")];

/// The command that replaces its first socket.
pub(crate) fn replacing(receiver: &Receiver) -> anyhow::Result<Sockcr> {
    let targets = receiver.targets()?;
    let target = targets.first().context("no socket")?;
    Ok(sockcr(["replace", target]))
}

pub(crate) fn duration(receiver: &Receiver) -> anyhow::Result<Duration> {
    let targets = receiver.targets()?;
    let target = targets.first().context("no socket")?;
    command::duration(&["replace", target])
}

/// Moments that are spread over the whole, and a little more, however many are asked for.
pub(crate) fn moment(whole: Duration, round: u32) -> Duration {
    whole.mul_f64((f64::from(round) * 0.618_033_988_75).fract() * 1.2)
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// The command.
    Command,
    /// The process that works for it, and which nobody kills who kills the command.
    Worker,
}

/// A worker that is killed between having taken the place and having made up for what came to the old socket meanwhile
/// takes that with it: what comes in so long a time.
const MOMENT: Duration = Duration::from_millis(20);

/// Whatever moment `kill -9` comes at, the program has the old socket or the new one, and nothing
/// besides. `rate` is that of the datagrams that come meanwhile.
fn killed(whom: Whom, words: &str, rate: u32, usual: u32) -> Outcome {
    let mut receiver = Receiver::start(words)?;
    receiver.check()?.is_fine(0)?;
    receiver.run_at(rate)?;
    let whole = duration(&receiver)?;
    // What the last of them did not report.
    receiver.stop()?.is_fine(u64::MAX)?;
    let targets = receiver.targets()?;
    let dump = |image: &str| -> Outcome {
        let words = ["dump", "--canonical", "-o", image];
        let targets = targets.iter().map(String::as_str);
        done(words.into_iter().chain(targets))?.quiet().map(drop)
    };
    dump("before.skc")?;
    let before = receiver.still()?;
    let rounds = asked_for("SOCKCR_KILLS").unwrap_or(usual);
    let (mut cut, mut new, mut lost) = (0, 0, 0);
    for round in 0..rounds {
        let mut tell = |receiver: &mut Receiver| -> anyhow::Result<(bool, bool)> {
            let old = inode(receiver)?;
            receiver.run_at(rate)?;
            let known = children(std::process::id().cast_signed())?;
            let process = replacing(receiver)?.start()?;
            let cut = !process.ends_within(moment(whole, round))?;
            match whom {
                Whom::Command => process.kill().map(drop)?,
                Whom::Worker => kill_worker(process)?,
            }
            wait::until("the end of what outlives the command", || reaped(&known))?;
            // Nobody is left to report what came to be out of order.
            receiver.stop()?.is_fine_but_for_lost(u64::MAX)?;
            let told = receiver.check()?;
            told.is_fine_but_for_lost(u64::MAX)?;
            let more = told.lost().and_then(|all| all.checked_sub(lost));
            let more = more.with_context(|| told.all().to_string())?;
            let few = match whom {
                Whom::Command => 0,
                Whom::Worker => u64::from(rate) * MOMENT.as_millis() as u64 / 1000,
            };
            ensure!(more <= few, "lost {more}: {}", told.all());
            lost += more;
            before.is(&receiver.still()?)?;
            dump("after.skc")?;
            no_difference()?;
            Ok((cut, inode(receiver)? != old))
        };
        let told = tell(&mut receiver);
        let (was_cut, is_new) = told.with_context(|| format!("round {round}: {words}"))?;
        cut += u32::from(was_cut);
        new += u32::from(is_new);
    }
    eprintln!(
        "{whom:?}, {words}: killed {cut} times of {rounds}, {new} times the new socket, {lost} lost"
    );
    ensure!(cut > rounds / 10, "was killed only {cut} times of {rounds}");
    none_in_the_kernel()
}

/// Kills the worker of a command, if it has one now; the command ends by itself then.
fn kill_worker(process: Process) -> Outcome {
    let workers = children(process.pid())?;
    for worker in workers {
        let worker = rustix::process::Pid::from_raw(worker).context("no process")?;
        match rustix::process::kill_process(worker, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("kill the worker"),
        }
    }
    process.end().map(drop)
}

fn inode(receiver: &Receiver) -> anyhow::Result<String> {
    let fd = receiver.fds.first().context("no descriptor")?;
    let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", receiver.pid()?))?;
    Ok(link.to_string_lossy().into_owned())
}

fn killed_when_idle() -> Outcome {
    compiled(&[])?;
    for words in [
        "recv threads=2 signals",
        "edge two threads=2",
        "disarmed",
        "poll workers=3 threads=2",
        "recv members=3 by_program flows=3",
    ] {
        killed(Whom::Command, words, 0, 10)?;
        killed(Whom::Worker, words, 0, 10)?;
    }
    Ok(())
}

fn killed_under_load() -> Outcome {
    compiled(&[])?;
    for words in [
        "recvmsg any",
        "recv_timed connected signals",
        "epoll_wait tables threads=3",
        "recv group",
        "nested ipv6",
    ] {
        killed(Whom::Command, words, 20_000, 10)?;
        killed(Whom::Worker, words, 20_000, 10)?;
    }
    Ok(())
}
