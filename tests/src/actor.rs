//! Small programs with sockets, to be looked at, and to be handed sockets.
//!
//! Each prints one line of JSON about itself, and goes on until it is killed or, where nothing
//! else is said, until its standard input is closed.

use crate::command::{NOBODY, can_be_nobody};
use crate::process::{Process, end_with_parent};
use crate::{datagram, dns, guest, harness, socket};
use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::AddressFamily;
use serde_json::{Value as Json, json};
use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The first descriptor that is handed over.
const FIRST: i32 = 3;

/// The words by which the command runs an actor.
pub fn command_line(role: &'static str) -> [String; 4] {
    let parent = std::process::id().to_string();
    [
        "/proc/self/exe".into(),
        harness::ACTOR.into(),
        parent,
        role.into(),
    ]
}

/// Starts an actor, and says what it says about itself.
pub fn start(role: &'static str, arguments: &[&str]) -> anyhow::Result<(Process, Json)> {
    start_as(false, role, arguments)
}

/// Starts an actor without any privilege.
pub fn start_as_nobody(role: &'static str, arguments: &[&str]) -> anyhow::Result<(Process, Json)> {
    start_as(can_be_nobody(), role, arguments)
}

fn start_as(
    nobody: bool,
    role: &'static str,
    arguments: &[&str],
) -> anyhow::Result<(Process, Json)> {
    let [program, words @ ..] = command_line(role);
    let mut command = Command::new(program);
    command.args(words).args(arguments);
    if nobody {
        command.uid(NOBODY).gid(NOBODY);
    }
    let mut process = Process::start(&mut command)?;
    let facts = process.facts()?;
    Ok((process, facts))
}

/// Is the actor that the arguments name.
pub(crate) fn main(arguments: &[String]) -> anyhow::Result<()> {
    let [parent, role, rest @ ..] = arguments else {
        bail!("no actor is named");
    };
    end_with_parent(parent.parse()?)?;
    match role.as_str() {
        "hold" => hold(rest),
        "elsewhere" => {
            harness::enter_namespace()?;
            hold(rest)
        }
        "thread" => thread(),
        "echo" => echo(rest),
        "find" => find(rest),
        "reused" => guest::reused(),
        "guest" => guest::main(rest),
        "open" => say(&json!(open_numbers())),
        "report" => say(&handed_over()?.0),
        "read" => read(),
        "serve" => serve(),
        role => bail!("{role}: no such actor"),
    }
}

pub(crate) fn say(facts: &Json) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{facts}")?;
    Ok(output.flush()?)
}

fn until_closed() -> anyhow::Result<()> {
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Has sockets: `unbound`, `unbound6`, `udp:ADDR:PORT`, `tcp:ADDR:PORT`.
fn hold(kinds: &[String]) -> anyhow::Result<()> {
    let sockets: anyhow::Result<Vec<OwnedFd>> = kinds.iter().map(|kind| open(kind)).collect();
    let sockets = sockets?;
    let facts: anyhow::Result<Vec<Json>> = sockets.iter().map(facts).collect();
    say(&Json::Array(facts?))?;
    until_closed()
}

fn open(kind: &str) -> anyhow::Result<OwnedFd> {
    match kind.split_once(':') {
        None if kind == "unbound6" => socket::unbound_of(AddressFamily::INET6),
        None => socket::unbound(),
        Some(("udp", address)) => Ok(UdpSocket::bind(address)?.into()),
        Some((_, address)) => Ok(TcpListener::bind(address)?.into()),
    }
}

fn facts(socket: &OwnedFd) -> anyhow::Result<Json> {
    Ok(json!({ "fd": socket.as_raw_fd(), "inode": socket::inode(socket)? }))
}

/// Has a socket in a thread with a table of descriptors of its own.
fn thread() -> anyhow::Result<()> {
    let work = || {
        sockcr_sys::descriptor::own_table()?;
        let socket = socket::unbound()?;
        let mut facts = facts(&socket)?;
        facts["tid"] = rustix::thread::gettid().as_raw_pid().into();
        say(&facts)?;
        until_closed()
    };
    let ended = std::thread::spawn(work).join();
    ended.unwrap_or_else(|_| bail!("the thread ended"))
}

/// Says which sockets each of the names finds, by their inodes.
fn find(names: &[String]) -> anyhow::Result<()> {
    let inodes = |name: &String| -> anyhow::Result<Vec<u64>> {
        let found = sockcr::find::find(&name.parse()?)?;
        Ok(found.iter().map(|found| found.inode).collect())
    };
    let found: anyhow::Result<Vec<Vec<u64>>> = names.iter().map(inodes).collect();
    say(&json!(found?))
}

/// Sends back what it gets at an address; has several threads, and prints a line at each SIGUSR1.
fn echo(arguments: &[String]) -> anyhow::Result<()> {
    let [address] = arguments else {
        bail!("at which address?");
    };
    let socket = UdpSocket::bind(address.parse::<SocketAddr>()?)?;
    let mut signals = Signals::new([SIGUSR1])?;
    say(&json!({ "fd": socket.as_raw_fd() }))?;
    std::thread::spawn(move || signals.forever().try_for_each(|_| say(&json!("signal"))));
    let mut datagram = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&datagram[..length], from)?;
    }
}

/// Has the sockets handed over, and takes nothing out of them before it is told to: a line with the
/// place of one of them is answered with all that waits there.
fn read() -> anyhow::Result<()> {
    let (facts, sockets) = handed_over()?;
    say(&facts)?;
    for line in std::io::stdin().lock().lines() {
        let place: usize = line?.parse()?;
        let socket = sockets.get(place).context("no such socket")?;
        say(&Json::Array(datagram::read_all(socket.as_fd())?))?;
    }
    Ok(())
}

/// Answers on the sockets handed over: questions with answers, all else with itself.
fn serve() -> anyhow::Result<()> {
    let (facts, sockets) = handed_over()?;
    let sockets: Vec<UdpSocket> = sockets.into_iter().map(UdpSocket::from).collect();
    say(&facts)?;
    let mut datagram = [0; 512];
    loop {
        let polled = sockets
            .iter()
            .map(|socket| PollFd::new(socket, PollFlags::IN));
        let mut polled: Vec<PollFd<'_>> = polled.collect();
        poll(&mut polled, None)?;
        let ready = polled.iter().map(|poll| !poll.revents().is_empty());
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            let (length, from) = socket.recv_from(&mut datagram)?;
            let datagram = &datagram[..length];
            let answer = dns::answer(datagram);
            socket.send_to(answer.as_deref().unwrap_or(datagram), from)?;
        }
    }
}

/// What was handed over by the LISTEN_FDS protocol, and how it came. Like sd_listen_fds(3), goes
/// on with descriptors that are close-on-exec.
fn handed_over() -> anyhow::Result<(Json, Vec<OwnedFd>)> {
    let variable = |name: &str| std::env::var(name).with_context(|| name.to_owned());
    let open = open_numbers();
    let count: i32 = variable("LISTEN_FDS")?.parse()?;
    let numbers = FIRST..FIRST + count;
    let sockets: std::io::Result<Vec<OwnedFd>> = numbers
        .clone()
        .map(sockcr_sys::descriptor::duplicate)
        .collect();
    let sockets = sockets?;
    let told: anyhow::Result<Vec<Json>> = numbers
        .zip(&sockets)
        .map(|(number, socket)| {
            Ok(json!({
                "came_as": number,
                "fd": socket.as_raw_fd(),
                "local": UdpSocket::from(socket.try_clone()?).local_addr()?.to_string(),
                "close_on_exec": close_on_exec(number)?,
            }))
        })
        .collect();
    let facts = json!({
        "pid": std::process::id(),
        "listen_pid": variable("LISTEN_PID")?,
        "listen_fdnames": variable("LISTEN_FDNAMES")?,
        "sockets": told?,
        "open": open,
    });
    Ok((facts, sockets))
}

/// The descriptors that this process came into the world with, as far as anybody has them.
fn open_numbers() -> Vec<i32> {
    let is_open = |number: &i32| sockcr_sys::descriptor::duplicate(*number).is_ok();
    (0..1000).filter(is_open).collect()
}

fn close_on_exec(number: i32) -> anyhow::Result<bool> {
    const O_CLOEXEC: u32 = 0o2000000;
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:\t"));
    let flags = u32::from_str_radix(flags.context("no flags")?.trim(), 8)?;
    Ok(flags & O_CLOEXEC != 0)
}
