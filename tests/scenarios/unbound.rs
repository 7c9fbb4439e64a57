//! unbound, a DNS server on every address of both families, stopped while questions wait.

use sockcr_scenarios::datagram::{Sender, as_read, ensure_same};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::Process;
use sockcr_scenarios::takeover::{socket_at, stop, take};
use sockcr_scenarios::{Outcome, Scenario, dns};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};

pub const ALL: &[Scenario] = &[Scenario::new(
    "unbound::questions_of_both_families",
    NEEDS,
    questions_of_both_families,
)];

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("unbound"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const PORT: u16 = 53;
const DEVICE: &str = "v0";
const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const HERE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 1);
const THERE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
const LINK_HERE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const LINK_THERE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const ROUNDS: usize = 4;

/// unbound, which answers from where it was asked (`interface-automatic`).
fn start() -> anyhow::Result<Process> {
    let server = format!(
        "  interface-automatic: yes
  port: {PORT}
  access-control: ::/0 allow
  access-control: 0.0.0.0/0 allow
  num-threads: 1"
    );
    let daemon = Process::start(&mut dns::unbound(&server)?)?;
    for address in [IpAddr::V4(HERE), HERE6.into(), Ipv6Addr::LOCALHOST.into()] {
        dns::ask(SocketAddr::new(address, PORT))?;
    }
    Ok(daemon)
}

/// Those who ask, by loopback and from next door, of IPv4 or of IPv6.
fn askers(neighbour: &mut Neighbour, ipv6: bool) -> anyhow::Result<Vec<Sender>> {
    let link =
        |ip: Ipv6Addr, port, device| SocketAddr::from(SocketAddrV6::new(ip, port, 0, device));
    let lo = |ip: IpAddr| (SocketAddr::new(ip, 0), SocketAddr::new(ip, PORT), "lo");
    let next_door = |there: IpAddr, here: IpAddr| {
        let (from, to) = (SocketAddr::new(there, 0), SocketAddr::new(here, PORT));
        (from, to, DEVICE)
    };
    let index = neighbour.index(DEVICE)?;
    let places = match ipv6 {
        false => vec![
            lo(Ipv4Addr::LOCALHOST.into()),
            next_door(THERE.into(), HERE.into()),
        ],
        true => vec![
            lo(Ipv6Addr::LOCALHOST.into()),
            next_door(THERE6.into(), HERE6.into()),
            (
                link(LINK_THERE, 0, index),
                link(LINK_HERE, PORT, index),
                DEVICE,
            ),
        ],
    };
    let askers = places.into_iter().map(|(from, to, arrives_on)| {
        let socket = match arrives_on {
            "lo" => UdpSocket::bind(from)?,
            _ => neighbour.socket(from)?,
        };
        Ok(Sender {
            socket,
            to,
            arrives_on,
        })
    });
    askers.collect()
}

fn questions_of_both_families() -> Outcome {
    let mut neighbour = Neighbour::start(4)?;
    neighbour.link(DEVICE, HERE, &[THERE])?;
    neighbour.addresses(DEVICE, HERE6, &[THERE6])?;
    neighbour.addresses(DEVICE, LINK_HERE, &[LINK_THERE])?;
    let daemon = start()?;
    let places = ["0.0.0.0:53", "[::]:53"];
    let sockets = [
        socket_at(&daemon, places[0])?,
        socket_at(&daemon, places[1])?,
    ];
    stop(&daemon)?;
    let mut sent = [Vec::new(), Vec::new()];
    let askers = [
        askers(&mut neighbour, false)?,
        askers(&mut neighbour, true)?,
    ];
    for ((askers, socket), sent) in askers.iter().zip(&sockets).zip(&mut sent) {
        for (number, asker) in askers
            .iter()
            .cycle()
            .take(ROUNDS * askers.len())
            .enumerate()
        {
            let question = dns::question(&format!("{}.{}", "x".repeat(number + 1), dns::NAME));
            sent.push(asker.send(&question, &socket.target)?);
        }
    }

    let taken = take(&[&sockets[0].target, &sockets[1].target])?;
    daemon.kill()?;
    let mut reader = taken.restore()?;
    for (place, sent) in places.iter().zip(&sent) {
        let at = taken.at(place)?;
        let read = reader.read(at)?;
        ensure_same(sent, &read)?;
        let queue: anyhow::Result<Vec<_>> = taken.queue(at)?.iter().map(as_read).collect();
        ensure_same(&queue?, &read)?;
    }
    for (place, askers) in places.iter().zip(&askers) {
        let at = taken.at(place)?;
        for asker in askers {
            let sent = asker.send(&dns::question(dns::NAME), reader.target(at)?)?;
            ensure_same(&[sent], &reader.read(at)?)?;
        }
    }
    drop(reader);

    let _server = taken.restore_to_serve()?;
    for address in [IpAddr::V4(HERE), HERE6.into(), Ipv6Addr::LOCALHOST.into()] {
        dns::ask(SocketAddr::new(address, PORT))?;
    }
    Ok(())
}
