//! ping, stopped, with replies that wait for it, a router that speaks OSPF, and those that advertise
//! themselves by ICMPv6.

use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, socket_with};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program, run};
use sockcr_scenarios::takeover::{Socket, sockets_of, stop, take};
use sockcr_scenarios::{Outcome, Scenario, wait};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

pub const ALL: &[Scenario] = &[
    Scenario::new("icmp::ping_gets_its_replies", PING, ping_gets_its_replies),
    Scenario::new(
        "icmp::bird_hears_its_neighbours",
        BIRD,
        bird_hears_its_neighbours,
    ),
    Scenario::new("icmp::radvd_hears_solicitations", RADVD, || {
        hears_solicitations(&radvd()?)
    }),
    Scenario::new("icmp::dnsmasq_hears_solicitations", DNSMASQ, || {
        hears_solicitations(&dnsmasq()?)
    }),
];

const PING: &[Need] = &[Need::Root, Need::Program("ping")];
const BIRD: &[Need] = &[Need::Root, Need::Program("bird"), Need::Program("ip")];
const RADVD: &[Need] = &[Need::Root, Need::Program("radvd"), Need::Program("ip")];
const DNSMASQ: &[Need] = &[Need::Root, Need::Program("dnsmasq"), Need::Program("ip")];
const LINK_HERE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const LINK_THERE: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
const HERE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 1);
const ICMPV6: u32 = 58;
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

/// radvd, which advertises a network on a device.
fn radvd() -> anyhow::Result<Process> {
    let network = "prefix fd00:9::/64 { AdvOnLink on; };";
    let configuration = format!("interface v0 {{ AdvSendAdvert on; {network} }};\n");
    std::fs::write("radvd.conf", configuration)?;
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    linked()?;
    let mut command = program("radvd");
    command.args(["-n", "-C", "radvd.conf", "-p", "radvd.pid", "-m", "stderr"]);
    Process::start(&mut command)
}

/// dnsmasq that does the same, and nothing else.
fn dnsmasq() -> anyhow::Result<Process> {
    linked()?;
    let mut command = program("dnsmasq");
    command.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--port=0",
        "--user=root",
        "--enable-ra",
        "--dhcp-range=fd00:9::,ra-only",
        "--interface=v0",
    ]);
    Process::start(&mut command)
}

/// Two devices at the ends of one cable, with addresses of the link.
fn linked() -> Outcome {
    let ip = |words: &str| run("ip", &words.split(' ').collect::<Vec<_>>());
    ip("link add v0 type veth peer name v1")?;
    for (device, address) in [("v0", LINK_HERE), ("v1", LINK_THERE)] {
        ip(&format!("link set {device} addrgenmode none up"))?;
        ip(&format!("address add {address}/64 dev {device} nodad"))?;
    }
    ip(&format!("address add {HERE6}/64 dev v0 nodad"))
}

/// The devices on which somebody is a member of the group of all routers.
fn routers_on() -> anyhow::Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/igmp6")?;
    let all_routers = format!(
        "{:032x}",
        u128::from(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2))
    );
    let member = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(2) == Some(&all_routers.as_str())).then(|| words[1].to_owned())
    };
    Ok(table.lines().filter_map(member).collect())
}

/// Who advertises routers is asked for it: a raw socket with a filter of kinds, and a group.
fn hears_solicitations(router: &Process) -> Outcome {
    let socket = only(router, "raw6:58")?;
    wait::until("a member of the group", || {
        Ok(routers_on()?.contains(&"v0".to_owned()).then_some(()))
    })?;
    stop(router)?;
    let taken = take(&[&socket.target])?;
    let shown = &taken.shown[0];
    ensure!(
        shown["options"]["ICMPV6_FILTER"].is_string(),
        "no filter: {shown}"
    );
    router.signal(rustix::process::Signal::KILL)?;
    let mut reader = taken.restore()?;
    ensure!(routers_on()?.contains(&"v0".to_owned()), "is no member");
    reader.read(0)?;
    // The first is one that the filter of the daemon does not let in.
    for kind in [129, 133] {
        solicit(kind)?;
    }
    let read = wait::until("a solicitation", || {
        let read = reader.read(0)?;
        Ok((!read.is_empty()).then_some(read))
    })?;
    let kinds = read
        .iter()
        .map(|one| one["payload"].as_str().map(|text| &text[..2]));
    let kinds: Vec<Option<&str>> = kinds.collect();
    ensure!(kinds == [Some("85")], "one solicitation was due: {read:?}");
    Ok(())
}

/// Sends a message of this kind from the other end of the cable to all routers.
fn solicit(kind: u8) -> Outcome {
    const IPPROTO_IPV6: i32 = 41;
    const IPV6_MULTICAST_HOPS: i32 = 18;
    const IPV6_MULTICAST_LOOP: i32 = 19;
    let number = std::num::NonZeroU32::new(ICMPV6).map(Protocol::from_raw);
    let (family, type_) = (AddressFamily::INET6, SocketType::RAW);
    let socket = socket_with(family, type_, SocketFlags::CLOEXEC, number)?;
    for (name, value) in [(IPV6_MULTICAST_HOPS, 255_i32), (IPV6_MULTICAST_LOOP, 0)] {
        let value = value.to_ne_bytes();
        sockcr_sys::sockopt::set(socket.as_fd(), IPPROTO_IPV6, name, &value)?;
    }
    let device = sockcr_sys::interface::index(socket.as_fd(), "v1")?;
    let from = SocketAddrV6::new(LINK_THERE, 0, 0, device);
    rustix::net::bind(&socket, &from)?;
    let to = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), 0, 0, device);
    let message = [kind, 0, 0, 0, 0, 0, 0, 0];
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &to)?;
    Ok(())
}
