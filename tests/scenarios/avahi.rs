//! avahi-daemon, which has joined one group on two devices.

use anyhow::{Context, ensure};
use serde_json::{Value as Json, json};
use sockcr_scenarios::datagram::{Sender, as_read, ensure_same};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program};
use sockcr_scenarios::takeover::{socket_at, stop, take};
use sockcr_scenarios::{Outcome, Scenario, dns, wait};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

pub const ALL: &[Scenario] = &[Scenario::new(
    "avahi::a_group_on_two_devices",
    NEEDS,
    a_group_on_two_devices,
)];

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Program("avahi-daemon"),
    Need::Program("ip"),
    Need::Program("mount"),
    Need::Program("nsenter"),
    Need::Program("unshare"),
];
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;
const NAME: &str = "sockcr.local";
/// The devices, the addresses here, and those next door.
const LINKS: [(&str, Ipv4Addr, Ipv4Addr); 2] = [
    ("v0", Ipv4Addr::new(10, 1, 0, 1), Ipv4Addr::new(10, 1, 0, 2)),
    ("v1", Ipv4Addr::new(10, 2, 0, 1), Ipv4Addr::new(10, 2, 0, 2)),
];
const CONFIGURATION: &str = "[server]
host-name=sockcr
use-ipv4=yes
use-ipv6=no
allow-interfaces=v0,v1
enable-dbus=no
[wide-area]
enable-wide-area=no
";

/// avahi-daemon. Its pid file and its socket have fixed names in /run, so it gets a /run of its own,
/// which goes with it; `mount -n` notes nothing in the /run of all.
fn start() -> anyhow::Result<Process> {
    std::fs::write("avahi.conf", CONFIGURATION)?;
    let file = std::env::current_dir()?.join("avahi.conf");
    let script = "mount -n -t tmpfs tmpfs /run && exec avahi-daemon \"$@\"";
    let mut command = program("unshare");
    command.args(["--mount", "sh", "-c", script, "sh", "--file"]);
    command.arg(file);
    command.args(["--no-drop-root", "--no-chroot", "--no-rlimits"]);
    Process::start(&mut command)
}

/// Those who ask the group: on each device one as a simple resolver, and one as a responder.
fn askers(neighbour: &mut Neighbour) -> anyhow::Result<Vec<Sender>> {
    let mut askers = Vec::new();
    for port in [0, PORT] {
        for (device, _, there) in LINKS {
            let socket = neighbour.socket(SocketAddr::new(there.into(), port))?;
            socket.set_multicast_ttl_v4(255)?;
            askers.push(Sender {
                socket,
                to: SocketAddr::new(GROUP.into(), PORT),
                arrives_on: device,
            });
        }
    }
    Ok(askers)
}

/// Asks until the daemon answers with its address on this device.
fn answers(asker: &UdpSocket, address: Ipv4Addr) -> Outcome {
    let question = dns::question(NAME);
    let from = SocketAddr::from((address, PORT));
    wait::until(&format!("an answer of {from}"), || {
        asker.send_to(&question, (GROUP, PORT))?;
        if !wait::readable(asker, Duration::from_millis(200))? {
            return Ok(None);
        }
        let mut answer = [0; 512];
        let (length, answered_by) = asker.recv_from(&mut answer)?;
        let right = answered_by == from && answer[..length].ends_with(&address.octets());
        Ok(right.then_some(()))
    })
}

/// The devices on which somebody here has joined the group, as /proc/net/igmp lists them.
fn joined_on() -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/net/igmp")?;
    let group = format!("{:08X}", u32::from_ne_bytes(GROUP.octets()));
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
    joined.sort();
    Ok(joined)
}

/// The image has joined the group on each device once, by the address there.
fn ensure_joined(shown: &Json) -> Outcome {
    let memberships = shown["memberships"].as_array().context("no memberships")?;
    ensure!(memberships.len() == LINKS.len(), "{memberships:?}");
    for (device, here, _) in LINKS {
        let due = json!({
            "group": GROUP, "interface": device, "address": here, "mode": "exclude", "sources": [],
        });
        ensure!(memberships.contains(&due), "no {due}: {memberships:?}");
    }
    Ok(())
}

fn is_from_next_door(datagram: &&Json) -> bool {
    let from = datagram["from"].as_str().unwrap_or_default();
    let host = from.split(':').next().unwrap_or_default();
    LINKS.iter().any(|(_, _, there)| host == there.to_string())
}

fn a_group_on_two_devices() -> Outcome {
    let mut neighbour = Neighbour::start(2 * LINKS.len())?;
    for (device, here, there) in LINKS {
        neighbour.link(device, here, &[there])?;
    }
    let devices = LINKS.map(|(device, _, _)| device.to_owned());
    let askers = askers(&mut neighbour)?;
    let daemon = start()?;
    for (asker, (_, here, _)) in askers.iter().zip(LINKS) {
        answers(&asker.socket, here)?;
    }
    ensure!(joined_on()? == devices, "{:?}", joined_on()?);
    let socket = socket_at(&daemon, &format!("0.0.0.0:{PORT}"))?;
    stop(&daemon)?;
    let mut sent = Vec::new();
    for (number, asker) in askers.iter().cycle().take(12).enumerate() {
        let question = dns::question(&format!("{}.{NAME}", "x".repeat(number + 1)));
        sent.push(asker.send(&question, &socket.target)?);
    }

    let taken = take(&[&format!("inode:{}", socket.inode)])?;
    ensure_joined(&taken.shown[0])?;
    let pid = daemon.pid();
    daemon.kill()?;
    ensure!(joined_on()?.is_empty(), "{pid} is gone: {:?}", joined_on()?);
    let mut reader = taken.restore()?;
    ensure!(joined_on()? == devices, "{:?}", joined_on()?);

    let read = reader.read(0)?;
    // What the daemon had announced comes back to it too: some may have waited already.
    let ours = read.iter().filter(is_from_next_door).cloned();
    ensure_same(&sent, &ours.collect::<Vec<_>>())?;
    let queue: anyhow::Result<Vec<_>> = taken.queue(0)?.iter().map(as_read).collect();
    ensure_same(&queue?, &read)?;
    for asker in &askers {
        let sent = asker.send(&dns::question(NAME), reader.target(0)?)?;
        ensure_same(&[sent], &reader.read(0)?)?;
    }
    Ok(())
}
