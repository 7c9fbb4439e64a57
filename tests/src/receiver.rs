//! Programs that receive numbered datagrams, and check themselves: `victims/replace.c`.

use crate::process::{Process, program, run};
use crate::{Outcome, remains::Still, wait};
use anyhow::{Context, ensure};
use serde_json::Value as Json;

/// One that runs.
#[derive(Debug)]
pub struct Receiver {
    process: Process,
    /// Those that receive: the first, and the workers that it has forked.
    pub pids: Vec<i32>,
    /// The descriptors of the first.
    pub fds: Vec<i32>,
    /// Where they receive.
    pub port: u16,
    /// What the first thread of the first handles all the time; 0 where there is none.
    signal: u32,
}

/// What it has noticed.
#[derive(Debug)]
pub struct Told(Json);

/// Compiles it; `-static` is one of the flags that make a difference.
pub fn compiled(flags: &[&str]) -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/replace.c");
    let common = ["-O1", "-pthread", "-o", "receiver", source];
    run("cc", &[flags, &common].concat())
}

impl Receiver {
    /// Starts it with these words.
    pub fn start(words: &str) -> anyhow::Result<Receiver> {
        let mut command = program("./receiver");
        command.args(words.split_whitespace());
        let mut process = Process::start(&mut command)?;
        let facts = process.facts().with_context(|| words.to_owned())?;
        let numbers = |name: &str| -> anyhow::Result<Vec<i32>> {
            serde_json::from_value(facts[name].clone()).with_context(|| facts.to_string())
        };
        Ok(Receiver {
            pids: numbers("pids")?,
            fds: numbers("fds")?,
            port: serde_json::from_value(facts["port"].clone())?,
            signal: serde_json::from_value(facts["signal"].clone())?,
            process,
        })
    }

    /// How the command names its sockets.
    pub fn targets(&self) -> anyhow::Result<Vec<String>> {
        let pid = self.pids.first().context("no process")?;
        let mut seen = Vec::new();
        let mut targets = Vec::new();
        for fd in &self.fds {
            let link = std::fs::read_link(format!("/proc/{pid}/fd/{fd}"))?;
            if !seen.contains(&link) {
                seen.push(link);
                targets.push(format!("{pid}:{fd}"));
            }
        }
        Ok(targets)
    }

    /// Sends it so many datagrams a second.
    pub fn run_at(&mut self, rate: u32) -> Outcome {
        self.process.tell(&format!("start {rate}"))
    }

    /// Sends no more, and waits until all has come.
    pub fn stop(&mut self) -> anyhow::Result<Told> {
        self.process.tell("stop")?;
        Ok(Told(self.process.facts()?))
    }

    /// Sends until each of its threads has come out of its call with a datagram.
    pub fn check(&mut self) -> anyhow::Result<Told> {
        self.process.tell("check")?;
        Ok(Told(self.process.facts()?))
    }

    /// The processes as they are.
    pub fn still(&self) -> anyhow::Result<Still> {
        // The signal is blocked in its handler, and nowhere else.
        wait::until("a thread that is not in its handler", || {
            let still = Still::now(&self.pids, &self.fds)?;
            let handles = self.signal != 0 && still.blocks(self.pid()?, self.signal)?;
            Ok((!handles).then_some(still))
        })
    }

    /// The first process.
    pub fn pid(&self) -> anyhow::Result<i32> {
        self.pids.first().copied().context("no process")
    }

    /// Its threads and workers have ended, or are about to.
    pub fn kill(self) -> Outcome {
        self.process.kill().map(drop)
    }
}

impl Told {
    /// Nothing lost, nothing twice, and no more out of order than this; no error, and every thread awake.
    pub fn is_fine(&self, reordered: u64) -> Outcome {
        ensure!(self.0["lost"] == 0, "lost some: {}", self.0);
        self.is_fine_but_for_lost(reordered)
    }

    /// The same of one whose replacement was killed, which may have had some in its hands.
    pub fn is_fine_but_for_lost(&self, reordered: u64) -> Outcome {
        let Told(told) = self;
        let nothing = ["doubled", "errors"];
        let clean = nothing.iter().all(|name| told[name] == 0) && told["wrong"] == "";
        let awake = told["asleep"] == "";
        let ordered = told["disordered"].as_u64() <= Some(reordered);
        ensure!(
            clean && awake && ordered && told["disordered"].is_u64(),
            "with {reordered} told as reordered: {told}"
        );
        Ok(())
    }

    /// How many datagrams have not come.
    pub fn lost(&self) -> Option<u64> {
        self.0["lost"].as_u64()
    }

    /// How many datagrams were sent.
    pub fn sent(&self) -> u64 {
        self.0["sent"].as_u64().unwrap_or_default()
    }

    /// How many times a datagram came to another member than the one before of its sender.
    pub fn strayed(&self) -> u64 {
        self.0["strayed"].as_u64().unwrap_or_default()
    }

    /// How many calls that wait for a second datagram answered with the first alone.
    pub fn cut(&self) -> u64 {
        self.0["cut"].as_u64().unwrap_or_default()
    }

    /// Which member the last datagram of each sender came to.
    pub fn homes(&self) -> &Json {
        &self.0["homes"]
    }

    /// The whole of it.
    pub fn all(&self) -> &Json {
        &self.0
    }
}
