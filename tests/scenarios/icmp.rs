//! ping, stopped, with replies that wait for it, and a router that speaks OSPF.

use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, socket_with};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program};
use sockcr_scenarios::takeover::{Socket, sockets_of, stop, take};
use sockcr_scenarios::{Outcome, Scenario, wait};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

pub const ALL: &[Scenario] = &[
    Scenario::new("icmp::ping_gets_its_replies", PING, ping_gets_its_replies),
    Scenario::new(
        "icmp::bird_hears_its_neighbours",
        BIRD,
        bird_hears_its_neighbours,
    ),
];

const PING: &[Need] = &[Need::Root, Need::Program("ping")];
const BIRD: &[Need] = &[Need::Root, Need::Program("bird"), Need::Program("ip")];
const ICMP: u32 = 1;
const OSPF: u32 = 89;
const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
const ALL_ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 5);

fn raw(number: u32) -> anyhow::Result<OwnedFd> {
    let number = std::num::NonZeroU32::new(number).map(Protocol::from_raw);
    let (family, kind) = (AddressFamily::INET, SocketType::RAW);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, number)?)
}

/// Sends packets of a protocol, by a socket that is gone afterwards.
fn send(number: u32, from: Ipv4Addr, to: Ipv4Addr, packets: &[Vec<u8>]) -> Outcome {
    let socket = raw(number)?;
    if to.is_multicast() {
        rustix::net::sockopt::set_ip_multicast_if(&socket, &from)?;
    }
    let to = SocketAddr::new(IpAddr::V4(to), 0);
    for packet in packets {
        rustix::net::sendto(&socket, packet, SendFlags::empty(), &to)?;
    }
    Ok(())
}

/// The socket of a program of this kind, which it has only one of.
fn only(program: &Process, protocol: &str) -> anyhow::Result<Socket> {
    wait::until(protocol, || {
        Ok(sockets_of(program, &[protocol])?.into_iter().next())
    })
}

/// An echo reply.
fn reply(identifier: u16, sequence: u8) -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0];
    message.extend(identifier.to_be_bytes());
    message.extend([0, sequence]);
    let words = message.chunks_exact(2);
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    message
}

fn ping_gets_its_replies() -> Outcome {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
    let mut pinging = Process::start(program("ping").args(["-4", "-i", "0.2", "127.0.0.1"]))?;
    while !pinging.line()?.contains("icmp_seq=2") {}
    stop(&pinging)?;
    let socket = only(&pinging, "ping")?;
    let identifier = socket.local.rsplit_once(':').context("no identifier")?.1;
    let identifier: u16 = identifier.parse()?;
    let replies: Vec<Vec<u8>> = (1..4).map(|number| reply(identifier, number)).collect();
    send(ICMP, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, &replies)?;

    let taken = take(&[&socket.target])?;
    let waiting = taken.queue(0)?.len();
    ensure!((3..=4).contains(&waiting), "{waiting} replies wait");
    pinging.kill()?;
    let mut reader = taken.restore()?;
    let read = reader.read(0)?;
    ensure!(
        read.len() == waiting,
        "{waiting} replies were due: {read:?}"
    );
    send(
        ICMP,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::LOCALHOST,
        &[reply(identifier, 9), reply(identifier ^ 1, 8)],
    )?;
    let read = reader.read(0)?;
    ensure!(read.len() == 1, "one reply was for it: {read:?}");
    Ok(())
}

fn bird() -> anyhow::Result<Process> {
    let lines = [
        format!("router id {HERE};"),
        "protocol device {}".into(),
        "protocol ospf v2 { area 0 { interface \"v0\" { hello 1; type broadcast; }; }; }".into(),
    ];
    std::fs::write("bird.conf", lines.join("\n") + "\n")?;
    let mut command = program("bird");
    command.args(["-f", "-c", "bird.conf", "-s", "bird.ctl", "-P", "bird.pid"]);
    Process::start(&mut command)
}

fn bird_hears_its_neighbours() -> Outcome {
    let neighbour = Neighbour::start(1)?;
    neighbour.link("v0", HERE, &[THERE])?;
    let router = bird()?;
    let socket = only(&router, "raw:89")?;
    wait::until("a member of the group", || {
        let table = std::fs::read_to_string("/proc/thread-self/net/igmp")?;
        Ok(table.contains("050000E0").then_some(()))
    })?;
    stop(&router)?;
    let packets: Vec<Vec<u8>> = (1..4).map(|number| vec![2, number, 0, 4]).collect();
    send(OSPF, HERE, ALL_ROUTERS, &packets)?;

    let taken = take(&[&socket.target])?;
    let shown = &taken.shown[0];
    ensure!(
        shown["memberships"][0]["group"] == ALL_ROUTERS.to_string(),
        "{shown}"
    );
    let waiting = taken.queue(0)?.len();
    ensure!(waiting >= 3, "{waiting} packets wait");
    router.kill()?;
    let mut reader = taken.restore()?;
    let read = reader.read(0)?;
    ensure!(
        read.len() == waiting,
        "{waiting} packets were due: {read:?}"
    );
    send(OSPF, HERE, ALL_ROUTERS, &packets)?;
    let read = reader.read(0)?;
    ensure!(read.len() == 3, "3 packets came: {read:?}");
    Ok(())
}
