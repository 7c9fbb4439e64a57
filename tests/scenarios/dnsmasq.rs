//! dnsmasq, stopped while questions wait in its queue.

use sockcr_scenarios::datagram::{LONGEST, Sender, as_read, ensure_same};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::Process;
use sockcr_scenarios::takeover::{socket_at, stop, take};
use sockcr_scenarios::{Outcome, Scenario, dns, wait};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

pub const ALL: &[Scenario] = &[Scenario::new(
    "dnsmasq::questions_wait",
    NEEDS,
    questions_wait,
)];

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("dnsmasq"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const PORT: u16 = 53;
const HERE: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 2, 0, 1)];
const THERE: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 1, 0, 2),
    Ipv4Addr::new(10, 1, 0, 3),
    Ipv4Addr::new(10, 2, 0, 2),
];
const QUESTIONS: usize = 20;

/// dnsmasq at any address, answering.
fn start() -> anyhow::Result<Process> {
    let daemon = Process::start(&mut dns::dnsmasq(PORT, &[]))?;
    for address in HERE.into_iter().chain([Ipv4Addr::LOCALHOST]) {
        dns::ask(SocketAddr::new(address.into(), PORT))?;
    }
    Ok(daemon)
}

/// Those who ask: two of loopback, four by two devices, each with a ttl of its own.
fn askers(neighbour: &mut Neighbour) -> anyhow::Result<Vec<Sender>> {
    let far = Ipv4Addr::new(127, 0, 0, 53);
    let here = |address: Ipv4Addr| UdpSocket::bind((address, 0));
    let mut there = |address: Ipv4Addr| neighbour.socket(SocketAddr::new(address.into(), 0));
    let sockets = [
        (here(Ipv4Addr::LOCALHOST)?, Ipv4Addr::LOCALHOST, "lo"),
        (there(THERE[0])?, HERE[0], "v0"),
        (there(THERE[2])?, HERE[1], "v1"),
        (there(THERE[1])?, HERE[0], "v0"),
        (here(Ipv4Addr::new(127, 9, 9, 9))?, far, "lo"),
        (there(THERE[0])?, HERE[0], "v0"),
    ];
    let mut askers = Vec::new();
    for (ttl, (socket, to, arrives_on)) in (41..).zip(sockets) {
        socket.set_ttl(ttl)?;
        let to = SocketAddr::new(to.into(), PORT);
        askers.push(Sender {
            socket,
            to,
            arrives_on,
        });
    }
    Ok(askers)
}

/// Questions of so many sizes; and what is none: nothing at all, and all that fits.
fn payloads() -> Vec<Vec<u8>> {
    let label = |length: usize| "x".repeat(length);
    let name = |at: usize| vec![label(2 * at + 3); at % 4 + 1].join(".");
    let questions = (0..QUESTIONS).map(|at| dns::question(&format!("{}.{}", name(at), dns::NAME)));
    // The longest comes first, by loopback: on the devices it would come in fragments, and how
    // large these were is what a restore cannot repeat.
    let others = [vec![0xa5; LONGEST], vec![]];
    others.into_iter().chain(questions).collect()
}

fn questions_wait() -> Outcome {
    let mut neighbour = Neighbour::start(5)?;
    neighbour.link("v0", HERE[0], &THERE[..2])?;
    neighbour.link("v1", HERE[1], &THERE[2..])?;
    let daemon = start()?;
    let socket = socket_at(&daemon, &format!("0.0.0.0:{PORT}"))?;
    stop(&daemon)?;
    let askers = askers(&mut neighbour)?;
    let mut sent = Vec::new();
    for (payload, asker) in payloads().iter().zip(askers.iter().cycle()) {
        sent.push(asker.send(payload, &socket.target)?);
    }

    let taken = take(&[&socket.target])?;
    ensure_same(&sent, taken.queue(0)?)?;
    daemon.kill()?;
    let mut reader = taken.restore()?;
    let read = reader.read(0)?;
    ensure_same(&sent, &read)?;
    let queue: anyhow::Result<Vec<_>> = taken.queue(0)?.iter().map(as_read).collect();
    ensure_same(&queue?, &read)?;

    // The next to come is the next that is sent.
    for asker in &askers {
        let sent = asker.send(&dns::question(dns::NAME), reader.target(0)?)?;
        ensure_same(&[sent], &reader.read(0)?)?;
    }
    wait::until("an empty queue", || {
        Ok(reader.read(0)?.is_empty().then_some(()))
    })
}
