//! The command `sockcr`, run as a user runs it.

use crate::harness;
use crate::process::Process;
use anyhow::{Context, ensure};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The user without any privilege.
pub const NOBODY: u32 = 65534;

/// Whether this process may become that user: as root, unless of a user namespace of its own.
pub fn can_be_nobody() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut ids = map
        .split_whitespace()
        .map_while(|id| id.parse::<u32>().ok());
    let all = ids.next() == Some(0) && ids.nth(1).is_some_and(|count| count > NOBODY);
    all && rustix::process::geteuid().is_root()
}

/// What a dump says on standard error without BPF.
const ASSUMED: &str = "sockcr: what only BPF sees is assumed: `sockcr show` says what\n";

/// Whether the command sees here what only BPF shows.
pub fn sees_everything() -> anyhow::Result<bool> {
    let json = done(["check", "--json"])?.json()?;
    let mut features = json["features"].as_array().context("no features")?.iter();
    Ok(features.all(|feature| {
        let what = feature["what"].as_str().unwrap_or_default();
        !what.contains("by BPF") || feature["missing"].is_null()
    }))
}

/// The command with its arguments, to be run.
#[derive(Debug)]
pub struct Sockcr {
    command: Command,
    arguments: Vec<OsString>,
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    arguments: Vec<OsString>,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub bytes: Vec<u8>,
    /// Its standard error.
    pub errors: String,
}

/// The command with these arguments.
pub fn sockcr<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Sockcr {
    let arguments = arguments.into_iter().map(|a| a.as_ref().to_owned());
    let arguments: Vec<OsString> = arguments.collect();
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("sockcr")
        .args(&arguments)
        .env(harness::BE_SOCKCR, std::process::id().to_string())
        .stdin(Stdio::null());
    Sockcr { command, arguments }
}

/// Runs the command, which must do as told.
pub fn done<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> anyhow::Result<Ran> {
    sockcr(arguments).run()?.done()
}

/// Runs the command, which must refuse, saying so.
pub fn refused<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> anyhow::Result<Ran> {
    sockcr(arguments).run()?.refused()
}

/// The receive queue of one socket, as the command shows it.
pub fn queue(target: &str) -> anyhow::Result<Vec<serde_json::Value>> {
    let mut shown = done(["show", "--json", target])?.json()?;
    let queue = shown["sockets"][0]["receive_queue"].take();
    serde_json::from_value(queue).with_context(|| format!("{target} has no queue: {shown}"))
}

/// How long the command takes to do this, to choose moments within: the shortest of some times.
pub fn duration(arguments: &[&str]) -> anyhow::Result<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        done(arguments)?;
        shortest = shortest.min(start.elapsed());
    }
    Ok(shortest)
}

impl Sockcr {
    /// As the user without any privilege.
    pub fn as_nobody(mut self) -> Sockcr {
        if can_be_nobody() {
            self.command.uid(NOBODY).gid(NOBODY);
        }
        self
    }

    /// With this variable in its environment.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Sockcr {
        self.command.env(name, value);
        self
    }

    /// With this file as standard input.
    pub fn input(mut self, path: &str) -> anyhow::Result<Sockcr> {
        self.command.stdin(File::open(path)?);
        Ok(self)
    }

    /// Runs it to its end.
    pub fn run(mut self) -> anyhow::Result<Ran> {
        let output = self.command.output()?;
        Ok(Ran::new(self.arguments, output))
    }

    /// Runs it to its end with its standard output there.
    pub fn run_into(mut self, output: OwnedFd) -> anyhow::Result<Ran> {
        self.command.stdout(output).stderr(Stdio::piped());
        self.run_spawned()
    }

    /// Runs it to its end with its standard error there.
    pub fn errors_into(mut self, errors: OwnedFd) -> anyhow::Result<Ran> {
        self.command.stdout(Stdio::piped()).stderr(errors);
        self.run_spawned()
    }

    fn run_spawned(mut self) -> anyhow::Result<Ran> {
        let child = self.command.spawn()?;
        // Our copies of the child's files are in there.
        drop(self.command);
        let output = child.wait_with_output()?;
        Ok(Ran::new(self.arguments, output))
    }

    /// Starts it.
    pub fn start(mut self) -> anyhow::Result<Process> {
        Process::start(&mut self.command)
    }
}

impl Ran {
    fn new(arguments: Vec<OsString>, output: Output) -> Ran {
        Ran {
            arguments,
            code: output.status.code(),
            bytes: output.stdout,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// It must have done as told.
    pub fn done(self) -> anyhow::Result<Ran> {
        ensure!(self.code == Some(0), "did not do it: {self}");
        Ok(self)
    }

    /// It must have found a difference, with nothing wrong.
    pub fn different(self) -> anyhow::Result<Ran> {
        ensure!(
            self.code == Some(1) && self.errors.is_empty(),
            "is not just different: {self}"
        );
        Ok(self)
    }

    /// It must have refused with one error, `sockcr: what: why`, and have printed nothing.
    pub fn refused(self) -> anyhow::Result<Ran> {
        ensure!(self.code == Some(1), "exit 1 was due: {self}");
        ensure!(
            self.bytes.is_empty(),
            "printed something all the same: {self}"
        );
        let errors = self
            .errors
            .lines()
            .filter(|line| line.starts_with("sockcr: "));
        let errors: Vec<&str> = errors.collect();
        ensure!(errors.len() == 1, "one error was due: {self}");
        ensure!(
            errors[0].matches(": ").count() >= 2,
            "says no what and why: {self}"
        );
        ensure!(!self.errors.contains("panicked"), "panicked: {self}");
        Ok(self)
    }

    /// It must have been called wrongly.
    pub fn misused(self) -> anyhow::Result<Ran> {
        ensure!(self.code == Some(2), "exit 2 was due: {self}");
        ensure!(
            self.bytes.is_empty() && !self.errors.is_empty(),
            "must be on stderr: {self}"
        );
        Ok(self)
    }

    /// Its standard error must say all of this.
    pub fn says(self, words: &[&str]) -> anyhow::Result<Ran> {
        for words in words {
            ensure!(
                self.errors.contains(words),
                "does not say {words:?}: {self}"
            );
        }
        Ok(self)
    }

    /// It must name a next step with these words in it.
    pub fn helps(self, words: &str) -> anyhow::Result<Ran> {
        let mut lines = self
            .errors
            .lines()
            .filter_map(|line| line.strip_prefix("help: "));
        let helped = lines.any(|line| line.contains(words));
        ensure!(helped, "has no help with {words:?}: {self}");
        Ok(self)
    }

    /// Its standard output must hold all of this.
    pub fn prints(self, words: &[&str]) -> anyhow::Result<Ran> {
        for words in words {
            ensure!(
                self.text().contains(words),
                "does not print {words:?}: {self}"
            );
        }
        Ok(self)
    }

    /// It must have had nothing to remark, but what every dump does where BPF is not to be had.
    pub fn quiet(self) -> anyhow::Result<Ran> {
        let usual = self.errors == ASSUMED && !sees_everything()?;
        ensure!(
            usual || self.errors.is_empty(),
            "has something to say: {self}"
        );
        Ok(self)
    }

    /// A dump must have remarked nothing but that it assumes what it cannot see.
    pub fn assumes(self) -> anyhow::Result<Ran> {
        ensure!(
            self.errors == ASSUMED,
            "does not say just that it assumes: {self}"
        );
        Ok(self)
    }

    /// Its standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// Its standard output as JSON.
    pub fn json(&self) -> anyhow::Result<serde_json::Value> {
        serde_json::from_slice(&self.bytes).with_context(|| self.to_string())
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments: Vec<_> = self.arguments.iter().map(|a| a.to_string_lossy()).collect();
        writeln!(f, "sockcr {}", arguments.join(" "))?;
        writeln!(f, "  exit code {:?}", self.code)?;
        for (name, text) in [("out", self.text()), ("err", self.errors.clone())] {
            for line in text.lines().take(60) {
                writeln!(f, "  {name}: {line}")?;
            }
        }
        Ok(())
    }
}
