//! As much of DNS as one question needs.

use crate::process::program;
use crate::wait;
use anyhow::{Context, ensure};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

/// The name asked for, and its address.
pub const NAME: &str = "example.test";
/// What [`NAME`] must be answered with.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

const HEADER: usize = 12;
/// The number of the question.
const NUMBER: u16 = 0x534b;
const A: u16 = 1;
const INTERNET: u16 = 1;

/// Asks a server for [`NAME`], again while nothing comes, and checks the answer.
pub fn ask(server: SocketAddr) -> anyhow::Result<()> {
    let any = match server.is_ipv6() {
        true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    let question = question(NAME);
    let what = format!("an answer of {server}");
    let answer = wait::until(&what, || {
        // Refused until the server is there.
        if socket.send(&question).is_err() {
            return Ok(None);
        }
        if !wait::readable(&socket, Duration::from_millis(200))? {
            return Ok(None);
        }
        let mut answer = [0; 512];
        Ok(socket
            .recv(&mut answer)
            .ok()
            .map(|length| answer[..length].to_vec()))
    })?;
    check(&answer).with_context(|| format!("{server} answered {answer:02x?}"))
}

/// A question for the A record of a name.
pub fn question(name: &str) -> Vec<u8> {
    question_of(name, A)
}

/// A question for the AAAA record of a name.
pub fn question6(name: &str) -> Vec<u8> {
    const AAAA: u16 = 28;
    question_of(name, AAAA)
}

fn question_of(name: &str, kind: u16) -> Vec<u8> {
    // Number, recursion desired, one question, no records.
    let mut message = [NUMBER, 0x0100, 1, 0, 0, 0].map(u16::to_be_bytes).concat();
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend([kind, INTERNET].map(u16::to_be_bytes).concat());
    message
}

fn check(answer: &[u8]) -> anyhow::Result<()> {
    let word = |at: usize| Some(u16::from_be_bytes([*answer.get(at)?, *answer.get(at + 1)?]));
    ensure!(word(0) == Some(NUMBER), "to another question");
    let flags = word(2).context("has no flags")?;
    ensure!(
        flags & 0x8000 != 0 && flags & 0xf == 0,
        "flags {flags:#06x}"
    );
    ensure!(word(6) == Some(1), "one answer was due");
    ensure!(answer.ends_with(&ADDRESS.octets()), "another address");
    Ok(())
}

/// Answers a question of [`ask`]; `None` for what is none.
pub fn answer(question: &[u8]) -> Option<Vec<u8>> {
    if !question.starts_with(&NUMBER.to_be_bytes()) {
        return None;
    }
    let asked = question.get(HEADER..)?;
    let mut message = question.get(..2)?.to_vec();
    // An authoritative answer: one question, one record.
    message.extend([0x8580_u16, 1, 1, 0, 0].map(u16::to_be_bytes).concat());
    message.extend(asked);
    // The name stands at the start of the question.
    message.extend(
        [0xc000 | HEADER as u16, A, INTERNET]
            .map(u16::to_be_bytes)
            .concat(),
    );
    message.extend(60_u32.to_be_bytes());
    message.extend((ADDRESS.octets().len() as u16).to_be_bytes());
    message.extend(ADDRESS.octets());
    Some(message)
}

/// dnsmasq, to be started: it answers for [`NAME`] at this port, at these addresses or at all.
pub fn dnsmasq(port: u16, addresses: &[&str]) -> Command {
    let mut command = program("dnsmasq");
    command.args(["--no-daemon", "--conf-file=/dev/null", "--pid-file="]);
    command.args(["--user=root", "--no-resolv", "--no-hosts"]);
    command.arg(format!("--port={port}"));
    if !addresses.is_empty() {
        command.arg("--bind-interfaces");
    }
    let listens = addresses.iter();
    command.args(listens.map(|address| format!("--listen-address={address}")));
    command.arg(format!("--address=/{NAME}/{ADDRESS}"));
    command
}

/// unbound, to be started: it answers for [`NAME`], by the lines of its `server:` that are given.
pub fn unbound(server: &str) -> anyhow::Result<Command> {
    let folder = std::env::current_dir()?;
    let configuration = format!(
        "server:
{server}
  username: \"\"
  chroot: \"\"
  directory: {folder:?}
  pidfile: \"\"
  use-syslog: no
  module-config: iterator
  local-data: \"{NAME}. A {ADDRESS}\"
remote-control:
  control-enable: no
"
    );
    std::fs::write("unbound.conf", configuration)?;
    let mut command = program("unbound");
    command.args(["-d", "-c"]).arg(folder.join("unbound.conf"));
    Ok(command)
}
