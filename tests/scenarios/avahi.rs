//! avahi-daemon, which has joined one group on two devices, of IPv4 or of IPv6 on the link.

use anyhow::{Context, ensure};
use serde_json::{Value as Json, json};
use sockcr_scenarios::datagram::{Sender, as_read, ensure_same};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program};
use sockcr_scenarios::takeover::{socket_at, stop, take};
use sockcr_scenarios::{Outcome, Scenario, dns, wait};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsFd;
use std::time::Duration;

pub const ALL: &[Scenario] = &[
    Scenario::new("avahi::a_group_on_two_devices", NEEDS, || {
        a_group_on_two_devices(&IPV4)
    }),
    Scenario::new("avahi::a_group_of_ipv6_on_two_links", NEEDS, || {
        a_group_on_two_devices(&IPV6)
    }),
];

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("avahi-daemon"),
    Need::Program("ip"),
    Need::Program("mount"),
    Need::Program("nsenter"),
    Need::Program("unshare"),
];
const PORT: u16 = 5353;
const NAME: &str = "sockcr.local";
const DEVICES: [&str; 2] = ["v0", "v1"];

/// One of the families.
struct Family {
    group: IpAddr,
    any: &'static str,
    /// On each device, the address here and the one next door.
    links: [[IpAddr; 2]; 2],
    question: fn(&str) -> Vec<u8>,
}

const fn ipv4(network: u8, host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, network, 0, host))
}

const fn link_local(network: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, network, host))
}

static IPV4: Family = Family {
    group: IpAddr::V4(Ipv4Addr::new(224, 0, 0, 251)),
    any: "0.0.0.0:5353",
    links: [[ipv4(1, 1), ipv4(1, 2)], [ipv4(2, 1), ipv4(2, 2)]],
    question: dns::question,
};

static IPV6: Family = Family {
    group: IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0xfb)),
    any: "[::]:5353",
    links: [
        [link_local(1, 1), link_local(1, 2)],
        [link_local(2, 1), link_local(2, 2)],
    ],
    question: dns::question6,
};

impl Family {
    fn configuration(&self) -> String {
        let yes = |on| if on { "yes" } else { "no" };
        format!(
            "[server]
host-name=sockcr
use-ipv4={}
use-ipv6={}
allow-interfaces=v0,v1
enable-dbus=no
[wide-area]
enable-wide-area=no
",
            yes(self.group.is_ipv4()),
            yes(self.group.is_ipv6())
        )
    }

    /// An address of a link that the device with this index is on.
    fn at(&self, ip: IpAddr, port: u16, index: u32) -> SocketAddr {
        match ip {
            IpAddr::V4(_) => SocketAddr::new(ip, port),
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, index).into(),
        }
    }
}

/// avahi-daemon. Its pid file and its socket have fixed names in /run, so it gets a /run of its own,
/// which goes with it; `mount -n` notes nothing in the /run of all.
fn start(family: &Family) -> anyhow::Result<Process> {
    std::fs::write("avahi.conf", family.configuration())?;
    let file = std::env::current_dir()?.join("avahi.conf");
    let script = "mount -n -t tmpfs tmpfs /run && exec avahi-daemon \"$@\"";
    let mut command = program("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", "--file"]);
    command.arg(file);
    command.args(["--no-drop-root", "--no-chroot", "--no-rlimits"]);
    Process::start(&mut command)
}

/// Those who ask the group: on each device one as a simple resolver, and one as a responder.
fn askers(family: &Family, neighbour: &mut Neighbour) -> anyhow::Result<Vec<Sender>> {
    let mut askers = Vec::new();
    for port in [0, PORT] {
        for (device, [_, there]) in DEVICES.into_iter().zip(family.links) {
            let index = neighbour.index(device)?;
            let socket = neighbour.socket(family.at(there, port, index))?;
            set_hops(&socket, family.group.is_ipv6())?;
            askers.push(Sender {
                socket,
                to: family.at(family.group, PORT, index),
                arrives_on: device,
            });
        }
    }
    Ok(askers)
}

/// What is not from the link itself is no answer (RFC 6762, section 11).
fn set_hops(socket: &UdpSocket, ipv6: bool) -> Outcome {
    const IPPROTO_IPV6: i32 = 41;
    const IPV6_MULTICAST_HOPS: i32 = 18;
    match ipv6 {
        true => {
            let hops = 255_i32.to_ne_bytes();
            sockcr_sys::sockopt::set(socket.as_fd(), IPPROTO_IPV6, IPV6_MULTICAST_HOPS, &hops)?;
        }
        false => socket.set_multicast_ttl_v4(255)?,
    }
    Ok(())
}

/// Asks until the daemon answers with its address on this device.
fn answers(family: &Family, asker: &Sender, address: IpAddr) -> Outcome {
    let question = (family.question)(NAME);
    let octets = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    wait::until(&format!("an answer of {address}"), || {
        asker.socket.send_to(&question, asker.to)?;
        if !wait::readable(&asker.socket, Duration::from_millis(200))? {
            return Ok(None);
        }
        let mut answer = [0; 512];
        let (length, by) = asker.socket.recv_from(&mut answer)?;
        let right = (by.ip(), by.port()) == (address, PORT) && answer[..length].ends_with(&octets);
        Ok(right.then_some(()))
    })
}

/// The devices on which somebody here has joined the group, as /proc/net/igmp and igmp6 list them.
fn joined_on(family: &Family) -> anyhow::Result<Vec<String>> {
    let mut joined = match family.group {
        IpAddr::V4(group) => joined_ipv4(group)?,
        IpAddr::V6(group) => joined_ipv6(group)?,
    };
    joined.sort();
    Ok(joined)
}

fn joined_ipv4(group: Ipv4Addr) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/net/igmp")?;
    let group = format!("{:08X}", u32::from_ne_bytes(group.octets()));
    let (mut device, mut joined) = ("", Vec::new());
    for line in text.lines().skip(1) {
        // A line of a device starts with its index, those of its groups with white space.
        let mut words = line.split_whitespace();
        match line.starts_with(char::is_whitespace) {
            false => device = words.nth(1).context("a device without a name")?,
            true if words.next() == Some(&group) => joined.push(device.to_owned()),
            true => {}
        }
    }
    Ok(joined)
}

fn joined_ipv6(group: Ipv6Addr) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/net/igmp6")?;
    let group = format!("{:032x}", u128::from(group));
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(2) == Some(&group.as_str())).then(|| words[1].to_owned())
    };
    Ok(text.lines().filter_map(entry).collect())
}

/// The image has joined the group on each device once, by the address there where IPv4 says it.
fn ensure_joined(family: &Family, shown: &Json) -> Outcome {
    let memberships = shown["memberships"].as_array().context("no memberships")?;
    ensure!(memberships.len() == DEVICES.len(), "{memberships:?}");
    for (device, [here, _]) in DEVICES.into_iter().zip(family.links) {
        let address = match here {
            IpAddr::V4(here) => here,
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let due = json!({
            "group": family.group, "interface": device, "address": address, "mode": "exclude",
            "sources": [],
        });
        ensure!(memberships.contains(&due), "no {due}: {memberships:?}");
    }
    Ok(())
}

fn is_from_next_door(family: &Family, datagram: &Json) -> bool {
    let from = datagram["from"].as_str().unwrap_or_default();
    let from: Option<SocketAddr> = from.parse().ok();
    let there = family.links.iter().map(|[_, there]| *there);
    from.is_some_and(|from| there.into_iter().any(|there| there == from.ip()))
}

fn a_group_on_two_devices(family: &Family) -> Outcome {
    let mut neighbour = Neighbour::start(3 * DEVICES.len())?;
    for (device, [here, there]) in DEVICES.into_iter().zip(family.links) {
        neighbour.link(device, here, &[there])?;
    }
    let devices = DEVICES.map(str::to_owned);
    let joined_on = || joined_on(family);
    let askers = askers(family, &mut neighbour)?;
    let daemon = start(family)?;
    for (asker, [here, _]) in askers.iter().zip(family.links) {
        answers(family, asker, here)?;
    }
    ensure!(joined_on()? == devices, "{:?}", joined_on()?);
    let socket = socket_at(&daemon, family.any)?;
    stop(&daemon)?;
    let mut sent = Vec::new();
    for (number, asker) in askers.iter().cycle().take(12).enumerate() {
        let question = (family.question)(&format!("{}.{NAME}", "x".repeat(number + 1)));
        sent.push(asker.send(&question, &socket.target)?);
    }

    let taken = take(&[&format!("inode:{}", socket.inode)])?;
    ensure_joined(family, &taken.shown[0])?;
    let pid = daemon.pid();
    daemon.kill()?;
    ensure!(joined_on()?.is_empty(), "{pid} is gone: {:?}", joined_on()?);
    let mut reader = taken.restore()?;
    ensure!(joined_on()? == devices, "{:?}", joined_on()?);

    let read = reader.read(0)?;
    // What the daemon had announced comes back to it too: some may have waited already.
    let ours = read
        .iter()
        .filter(|one| is_from_next_door(family, one))
        .cloned();
    ensure_same(&sent, &ours.collect::<Vec<_>>())?;
    let queue: anyhow::Result<Vec<_>> = taken.queue(0)?.iter().map(as_read).collect();
    ensure_same(&queue?, &read)?;
    for asker in &askers {
        let sent = asker.send(&(family.question)(NAME), reader.target(0)?)?;
        ensure_same(&[sent], &reader.read(0)?)?;
    }
    Ok(())
}
