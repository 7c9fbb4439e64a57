//! The sockets of a program, dumped, and restored into one that reads them.

use crate::command::{done, sockcr};
use crate::process::Process;
use crate::{Outcome, actor, wait};
use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::Value as Json;

/// A socket of a program.
#[derive(Clone, Debug)]
pub struct Socket {
    /// Where it is bound; empty where it is not.
    pub local: String,
    /// Its inode.
    pub inode: u64,
    /// How the command names it by its owner.
    pub target: String,
}

/// The UDP sockets of a program, as the command lists them.
pub fn sockets(program: &Process) -> anyhow::Result<Vec<Socket>> {
    sockets_of(program, &["udp", "udp6"])
}

/// The sockets of a program that are of one of these kinds.
pub fn sockets_of(program: &Process, kinds: &[&str]) -> anyhow::Result<Vec<Socket>> {
    let pid = program.pid().to_string();
    let ran = done(["list", "--pid", &pid, "--json"])?;
    let listed = ran.json()?;
    let listed = listed["sockets"].as_array().context("no list")?;
    let is_one = |socket: &&Json| kinds.iter().any(|kind| socket["protocol"] == *kind);
    let chosen = listed.iter().filter(is_one);
    let sockets: Option<Vec<Socket>> = chosen.map(|socket| as_socket(&pid, socket)).collect();
    sockets.with_context(|| format!("a socket without a name: {ran}"))
}

fn as_socket(pid: &str, listed: &Json) -> Option<Socket> {
    let fd = &listed["holders"][0]["fd"];
    Some(Socket {
        local: listed["local"].as_str().unwrap_or_default().into(),
        inode: listed["inode"].as_u64()?,
        target: format!("{pid}:{}", fd.as_u64()?),
    })
}

/// The socket of a program at an address.
pub fn socket_at(program: &Process, local: &str) -> anyhow::Result<Socket> {
    let sockets = sockets(program)?;
    let found = sockets.iter().find(|socket| socket.local == local);
    found
        .cloned()
        .with_context(|| format!("no socket at {local}: {sockets:?}"))
}

/// Stops a program, which takes nothing out of its queues from then on.
pub fn stop(program: &Process) -> Outcome {
    program.signal(Signal::STOP)?;
    wait::until("a stop", || {
        Ok(program.status("State")?.starts_with('T').then_some(()))
    })
}

/// Images of sockets: `exact.skc` to restore, `before.skc` to compare with.
#[derive(Debug)]
pub struct Taken {
    /// The sockets, as the command shows the image.
    pub shown: Vec<Json>,
}

/// Dumps sockets; nothing of them may be left out.
pub fn take(targets: &[&str]) -> anyhow::Result<Taken> {
    dump("exact.skc", targets, &[])?;
    dump("before.skc", targets, &["--canonical"])?;
    let shown = done(["show", "--json", "exact.skc"])?.quiet()?.json()?;
    let shown = shown["sockets"].as_array().context("no sockets")?;
    Ok(Taken {
        shown: shown.clone(),
    })
}

fn dump(image: &str, targets: &[&str], more: &[&str]) -> Outcome {
    let words = ["dump", "-o", image];
    done(words.iter().chain(targets).chain(more))?
        .quiet()
        .map(drop)
}

impl Taken {
    /// The queue of a socket, as the image has it.
    pub fn queue(&self, socket: usize) -> anyhow::Result<&[Json]> {
        let shown = self.shown.get(socket).context("no such socket")?;
        let queue = shown["receive_queue"].as_array().context("no queue")?;
        Ok(queue)
    }

    /// Which socket it is that was at this address.
    pub fn at(&self, local: &str) -> anyhow::Result<usize> {
        let mut sockets = self.shown.iter();
        let found = sockets.position(|shown| shown["endpoint"]["local"] == local);
        found.with_context(|| format!("no socket at {local}: {:?}", self.shown))
    }

    /// Restores all into one that answers.
    pub fn restore_to_serve(&self) -> anyhow::Result<Process> {
        let mut process = restore_into("serve")?;
        process.facts()?;
        Ok(process)
    }

    /// Restores all into a reader; they must be the same there, byte for byte.
    pub fn restore(&self) -> anyhow::Result<Reader> {
        let mut process = restore_into("read")?;
        let facts = process.facts()?;
        let fds = facts["sockets"].as_array().context("no sockets")?.iter();
        let targets = fds.map(|socket| format!("{}:{}", process.pid(), socket["fd"]));
        let targets: Vec<String> = targets.collect();
        let count = self.shown.len();
        ensure!(targets.len() == count, "{count} sockets were due: {facts}");
        let names: Vec<&str> = targets.iter().map(String::as_str).collect();
        dump("after.skc", &names, &["--canonical"])?;
        let same = std::fs::read("before.skc")? == std::fs::read("after.skc")?;
        let difference = sockcr(["diff", "before.skc", "after.skc"]).run()?;
        ensure!(same, "not the same, byte for byte: {difference}");
        Ok(Reader { process, targets })
    }
}

fn restore_into(role: &'static str) -> anyhow::Result<Process> {
    let words = ["restore", "exact.skc", "--"].map(str::to_owned);
    sockcr(words.into_iter().chain(actor::command_line(role))).start()
}

/// A process that reads restored sockets when it is told to.
#[derive(Debug)]
pub struct Reader {
    process: Process,
    targets: Vec<String>,
}

impl Reader {
    /// How the command names one of its sockets.
    pub fn target(&self, socket: usize) -> anyhow::Result<&str> {
        let target = self.targets.get(socket);
        target.map(String::as_str).context("no such socket")
    }

    /// Takes all that waits in a socket, and has the reader tell it.
    pub fn read(&mut self, socket: usize) -> anyhow::Result<Vec<Json>> {
        self.process.tell(&socket.to_string())?;
        Ok(serde_json::from_value(self.process.facts()?)?)
    }
}
