//! Processes that a scenario starts; each is gone when its [`Process`] is.

use crate::wait;
use anyhow::{Context, bail, ensure};
use rustix::process::{
    PTracer, Pid, PidfdFlags, Signal, WaitOptions, getppid, kill_process, pidfd_open,
    pidfd_send_signal, set_parent_process_death_signal, set_ptracer, waitpid,
};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A running child.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pidfd: OwnedFd,
    name: String,
}

impl Process {
    /// Starts a program; what it reads comes from a pipe that stays open as long as this.
    pub fn start(command: &mut Command) -> anyhow::Result<Process> {
        let name = format!("{command:?}");
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| name.clone())?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Process { child, pidfd, name })
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A line of what it prints.
    pub fn line(&mut self) -> anyhow::Result<String> {
        let name = &self.name;
        let output = self.child.stdout.as_mut().context("its output is closed")?;
        let end = Instant::now() + wait::PATIENCE;
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let left = end.saturating_duration_since(Instant::now());
            ensure!(
                wait::readable(&*output, left)?,
                "{name}: printed no line in time"
            );
            let mut byte = [0];
            ensure!(output.read(&mut byte)? == 1, "{name}: ended without a line");
            line.extend(byte);
        }
        Ok(String::from_utf8(line)?.trim_end().to_owned())
    }

    /// Waits until it has printed this.
    pub fn shows(&mut self, what: &str) -> anyhow::Result<()> {
        let name = &self.name;
        let output = self.child.stdout.as_mut().context("its output is closed")?;
        let end = Instant::now() + wait::PATIENCE;
        let (mut shown, mut bytes) = (Vec::new(), [0; 4096]);
        while !String::from_utf8_lossy(&shown).contains(what) {
            let left = end.saturating_duration_since(Instant::now());
            let text = String::from_utf8_lossy(&shown);
            ensure!(
                wait::readable(&*output, left)?,
                "{name}: did not print {what:?} in time: {text:?}"
            );
            let length = output.read(&mut bytes)?;
            ensure!(
                length > 0,
                "{name}: ended without printing {what:?}: {text:?}"
            );
            shown.extend(&bytes[..length]);
        }
        Ok(())
    }

    /// A line of what it prints, as JSON.
    pub fn facts(&mut self) -> anyhow::Result<serde_json::Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| format!("{}: {line:?}", self.name))
    }

    /// Tells it a line.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("its input is closed")?;
        writeln!(input, "{line}").with_context(|| self.name.clone())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        pidfd_send_signal(&self.pidfd, signal).with_context(|| self.name.clone())
    }

    /// Whether it ends within this time.
    pub fn ends_within(&self, time: Duration) -> anyhow::Result<bool> {
        wait::readable(&self.pidfd, time)
    }

    /// Waits for its end.
    pub fn end(mut self) -> anyhow::Result<ExitStatus> {
        if !self.ends_within(wait::PATIENCE)? {
            bail!("{}: did not end", self.name);
        }
        Ok(self.child.wait()?)
    }

    /// Asks it to end, and waits for that.
    pub fn terminate(self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.end()
    }

    /// Ends it, and waits for that.
    pub fn kill(self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        self.end()
    }

    /// A line of its `/proc/PID/status`.
    pub fn status(&self, name: &str) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let mut lines = text.lines().filter_map(|line| line.split_once(":\t"));
        let found = lines.find(|(have, _)| *have == name);
        let (_, value) = found.with_context(|| format!("no {name} in {text}"))?;
        Ok(value.to_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has been waited for already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process that was started by one that has ended, and has come to this one; it ends with this.
#[derive(Debug)]
pub struct Orphan(Pid);

impl Orphan {
    /// The only one that a command leaves behind, with what it has printed.
    pub fn left_by(command: &mut Command) -> anyhow::Result<(Orphan, String)> {
        let all = || children(std::process::id().cast_signed());
        let known = all()?;
        let output = command.output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let new: Vec<i32> = all()?
            .into_iter()
            .filter(|pid| !known.contains(pid))
            .collect();
        let [pid] = new[..] else {
            bail!("{command:?} left {new:?}: {output:?}");
        };
        Ok((Orphan(Pid::from_raw(pid).context("no process")?), text))
    }

    /// Waits for its end.
    pub fn end(self) -> anyhow::Result<()> {
        wait::until("the end of an orphan", || {
            Ok(waitpid(Some(self.0), WaitOptions::NOHANG)?.map(drop))
        })?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Orphan {
    fn drop(&mut self) {
        // Nobody else waits for it, so that its number is still its own.
        let _ = kill_process(self.0, Signal::KILL);
        let _ = waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// Makes this process end with the one that started it, and lets its siblings look into it.
pub fn end_with_parent(parent: i32) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let now = getppid().map_or(0, |pid| pid.as_raw_pid());
    ensure!(now == parent, "the process that started this one is gone");
    // Only kernels with Yama know it.
    let _ = set_ptracer(PTracer::Any);
    Ok(())
}

/// Programs of the administrator are not on everybody's path.
pub fn program(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("/proc/self/exe");
    let parent = std::process::id().to_string();
    command.args([crate::harness::PROGRAM, &parent, name]);
    command.env("PATH", path + ":/usr/sbin:/sbin");
    command
}

/// Runs a program of the system to its end, which must be a good one.
pub fn run(name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = program(name).args(arguments).output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{name} {arguments:?}: {}: {text}",
        output.status
    );
    Ok(())
}

/// The processes that have this one as their parent.
pub fn children(pid: i32) -> anyhow::Result<Vec<i32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let Ok(child) = entry?.file_name().to_string_lossy().parse::<i32>() else {
            continue;
        };
        // One that has ended has none.
        let text = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
        if fields.split_whitespace().nth(1) == Some(&pid.to_string()) {
            children.push(child);
        }
    }
    Ok(children)
}

/// Whether all children but the known ones have ended.
pub fn reaped(known: &[i32]) -> anyhow::Result<Option<()>> {
    let mut left = children(std::process::id().cast_signed())?;
    left.retain(|child| !known.contains(child));
    for child in &left {
        let pid = Pid::from_raw(*child).context("no child")?;
        waitpid(Some(pid), WaitOptions::NOHANG)?;
    }
    Ok(left.is_empty().then_some(()))
}
