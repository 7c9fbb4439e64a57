//! chronyd with all its sockets: for clients, for commands, and connected to its own server.

use anyhow::{Context, ensure};
use sockcr_scenarios::datagram::{Sender, as_read, ensure_same};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program};
use sockcr_scenarios::takeover::{sockets, stop, take};
use sockcr_scenarios::{Outcome, Scenario, wait};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

pub const ALL: &[Scenario] = &[Scenario::new(
    "chrony::all_its_sockets",
    NEEDS,
    all_its_sockets,
)];

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("chronyd"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const NTP: u16 = 123;
const COMMANDS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 323);
const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Version 4, from a client and from a server.
const REQUEST: u8 = 0x23;
const REPLY: u8 = 0x24;

/// chronyd, which leaves the clock alone; next door is its only server, asked once.
fn start() -> anyhow::Result<Process> {
    let folder = std::env::current_dir()?;
    let lines = [
        format!("server {THERE} minpoll 10 maxpoll 10"),
        format!("port {NTP}"),
        "allow 127.0.0.0/8".into(),
        format!("allow {HERE}/24"),
        format!("cmdport {}", COMMANDS.port()),
        format!("bindcmdaddress {}", COMMANDS.ip()),
        // No Unix socket, which would be in a folder of the system.
        "bindcmdaddress /".into(),
        format!("pidfile {}", folder.join("chronyd.pid").display()),
    ];
    std::fs::write("chrony.conf", lines.join("\n") + "\n")?;
    let mut command = program("chronyd");
    command.args(["-4", "-x", "-d", "-u", "root", "-f"]);
    command.arg(folder.join("chrony.conf"));
    Process::start(&mut command)
}

/// An NTP packet that differs from others by its transmit time.
fn packet(first: u8, number: u8) -> Vec<u8> {
    let mut packet = vec![0; 48];
    packet[0] = first;
    packet[47] = number;
    packet
}

/// Asks for the time until it is told.
fn answers(asker: &UdpSocket) -> Outcome {
    wait::until("the time", || {
        asker.send_to(&packet(REQUEST, 0), (Ipv4Addr::LOCALHOST, NTP))?;
        if !wait::readable(asker, Duration::from_millis(200))? {
            return Ok(None);
        }
        let mut answer = [0; 512];
        let (length, _) = asker.recv_from(&mut answer)?;
        ensure!(length == 48, "{length} bytes were told");
        Ok(Some(()))
    })
}

/// Waits until the daemon has asked its server; says from which socket.
fn asks(server: &UdpSocket) -> anyhow::Result<SocketAddr> {
    ensure!(
        wait::readable(server, wait::PATIENCE)?,
        "the server is not asked"
    );
    match server.recv_from(&mut [0; 512])? {
        (48, from) => Ok(from),
        other => anyhow::bail!("no question for the time: {other:?}"),
    }
}

/// Stops the daemon when it has nothing to do: it has taken the transmit time of its request,
/// which the kernel had put into the error queue, where it would be in the way of a restore.
fn stop_asleep(daemon: &Process) -> Outcome {
    wait::until("a daemon with nothing to do", || {
        Ok(daemon.status("State")?.starts_with('S').then_some(()))
    })?;
    stop(daemon)
}

/// For each socket of the daemon those who send to it.
fn senders(
    neighbour: &mut Neighbour,
    server: UdpSocket,
    client: SocketAddr,
) -> anyhow::Result<Vec<(String, Vec<Sender>)>> {
    let here = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let sender = |socket, to, arrives_on| Sender {
        socket,
        to,
        arrives_on,
    };
    let asker = neighbour.socket(SocketAddr::new(THERE.into(), 0))?;
    let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NTP);
    let askers = vec![
        sender(asker, SocketAddr::new(HERE.into(), NTP), "v0"),
        sender(here()?, local, "lo"),
    ];
    Ok(vec![
        (COMMANDS.to_string(), vec![sender(here()?, COMMANDS, "lo")]),
        (format!("0.0.0.0:{NTP}"), askers),
        (client.to_string(), vec![sender(server, client, "v0")]),
    ])
}

fn all_its_sockets() -> Outcome {
    const EACH: u8 = 6;
    let mut neighbour = Neighbour::start(2)?;
    neighbour.link("v0", HERE, &[THERE])?;
    let server = neighbour.socket(SocketAddr::new(THERE.into(), NTP))?;
    let daemon = start()?;
    let client = asks(&server)?;
    answers(&UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    stop_asleep(&daemon)?;
    let listed = sockets(&daemon)?;
    let senders = senders(&mut neighbour, server, client)?;
    let mut sent = Vec::new();
    for (local, senders) in &senders {
        let socket = listed.iter().find(|socket| socket.local == *local);
        let socket = socket.with_context(|| format!("no socket at {local}: {listed:?}"))?;
        let numbered = (1..=EACH).zip(senders.iter().cycle());
        let first = if *local == client.to_string() {
            REPLY
        } else {
            REQUEST
        };
        let all = numbered.map(|(n, sender)| sender.send(&packet(first, n), &socket.target));
        sent.push(all.collect::<anyhow::Result<Vec<_>>>()?);
    }

    let taken = take(&[&daemon.pid().to_string()])?;
    let count = taken.shown.len();
    ensure!(count == senders.len(), "{count} sockets: {:?}", taken.shown);
    let connected = taken.at(&client.to_string())?;
    let peer = &taken.shown[connected]["endpoint"]["peer"];
    ensure!(*peer == format!("{THERE}:{NTP}"), "connected to {peer}");
    daemon.kill()?;
    let mut reader = taken.restore()?;
    for ((local, senders), sent) in senders.iter().zip(&sent) {
        let socket = taken.at(local)?;
        let read = reader.read(socket)?;
        ensure_same(sent, &read).with_context(|| local.clone())?;
        let queue: anyhow::Result<Vec<_>> = taken.queue(socket)?.iter().map(as_read).collect();
        ensure_same(&queue?, &read).with_context(|| local.clone())?;
        for sender in senders {
            let next = sender.send(&packet(REPLY, 99), reader.target(socket)?)?;
            ensure_same(&[next], &reader.read(socket)?).with_context(|| local.clone())?;
        }
    }
    Ok(())
}
