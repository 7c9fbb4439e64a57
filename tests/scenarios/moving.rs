//! An image from a place where addresses and devices have other names.

use anyhow::{Context, ensure};
use rustix::net::sockopt::{set_ip_add_membership_with_ifindex, set_ip_multicast_if_with_ifindex};
use sockcr_scenarios::command::{Sockcr, done, refused, sees_everything, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, run};
use sockcr_scenarios::socket::{echoes, target};
use sockcr_scenarios::{Outcome, Scenario, actor, harness, wait};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

pub const ALL: &[Scenario] = &[
    Scenario::new("moving::to_other_names", NEEDS, to_other_names),
    Scenario::new("moving::to_any_address", &[], to_any_address),
    Scenario::new(
        "moving::what_has_no_such_name",
        NEEDS,
        what_has_no_such_name,
    ),
    Scenario::new(
        "moving::a_map_that_maps_nothing",
        NEEDS,
        a_map_that_maps_nothing,
    ),
];

const NEEDS: &[Need] = &[Need::Program("ip")];
const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
const SERVICE: u16 = 7040;
const NEWS: u16 = 7041;
const MAPS: [&str; 4] = ["--map", "10.1.0.1=10.2.0.1", "--map", "v0=w0"];

/// A device with an address, and one that nobody uses so that the indexes differ.
fn device(name: &str, address: Ipv4Addr, before: &[&str]) -> Outcome {
    for name in before {
        run("ip", &["link", "add", name, "type", "bridge"])?;
    }
    run(
        "ip",
        &["link", "add", name, "type", "veth", "peer", "name", "other"],
    )?;
    run(
        "ip",
        &["address", "add", &format!("{address}/24"), "dev", name],
    )?;
    run("ip", &["link", "set", name, "up"])?;
    run("ip", &["link", "set", "other", "up"])
}

/// Dumps a socket at the address and on the device, and one that has joined a group on it; and
/// goes to where they have other names.
fn dump_and_move() -> anyhow::Result<Vec<UdpSocket>> {
    const SO_BINDTODEVICE: i32 = 25;
    device("v0", HERE, &[])?;
    let service = UdpSocket::bind((HERE, SERVICE))?;
    let index = sockcr_sys::interface::index(service.as_fd(), "v0")?;
    let any = Ipv4Addr::UNSPECIFIED;
    sockcr_sys::sockopt::set(service.as_fd(), 1, SO_BINDTODEVICE, b"v0")?;
    set_ip_multicast_if_with_ifindex(&service, &any, &HERE, index)?;
    let news = UdpSocket::bind((any, NEWS))?;
    set_ip_add_membership_with_ifindex(&news, &GROUP, &any, index)?;
    set_ip_multicast_if_with_ifindex(&news, &any, &any, index)?;
    for (socket, image) in [(&service, "service.skc"), (&news, "news.skc")] {
        done(["dump", &target(socket), "-o", image])?.quiet()?;
    }
    done(["dump", &target(&service), &target(&news), "-o", "both.skc"])?.quiet()?;
    harness::enter_namespace()?;
    device("w0", THERE, &["x0", "x1"])?;
    Ok(vec![service, news])
}

fn restore_into_server(image: &str) -> Sockcr {
    let mut words = vec!["restore", image];
    words.extend(MAPS);
    words.push("--");
    let words = words.into_iter().map(str::to_owned);
    sockcr(words.chain(actor::command_line("serve")))
}

fn to_other_names() -> Outcome {
    let _kept = dump_and_move()?;
    done(["restore", "both.skc"].iter().chain(&MAPS))?.prints(&["exactly"])?;
    let mut server = restore_into_server("both.skc").start()?;
    server.facts()?;
    let sees = sees_everything()?;
    let service = shown(&server, 3)?;
    let place = format!("{THERE}:{SERVICE}");
    ensure!(service["endpoint"]["local"] == place, "{service}");
    ensure!(service["options"]["SO_BINDTODEVICE"] == "w0", "{service}");
    let multicast = &service["options"]["IP_MULTICAST_IF"];
    ensure!(multicast["address"] == THERE.to_string(), "{service}");
    // The device itself is what only BPF shows.
    ensure!(!sees || multicast["interface"] == "w0", "{service}");
    let news = shown(&server, 4)?;
    let joined = &news["memberships"][0];
    ensure!(joined["group"] == GROUP.to_string(), "{news}");
    ensure!(joined["interface"] == "w0", "{news}");
    let multicast = &news["options"]["IP_MULTICAST_IF"];
    ensure!(!sees || multicast["interface"] == "w0", "{news}");
    // The group reaches the socket through the device of the new name.
    let sender = UdpSocket::bind((THERE, 0))?;
    let index = sockcr_sys::interface::index(sender.as_fd(), "w0")?;
    set_ip_multicast_if_with_ifindex(&sender, &GROUP, &THERE, index)?;
    echoes_to(&sender, SocketAddr::new(GROUP.into(), NEWS))
        .context("the group does not reach it")?;
    echoes(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), NEWS))
}

/// A socket of the server.
fn shown(server: &Process, fd: i32) -> anyhow::Result<serde_json::Value> {
    let target = format!("{}:{fd}", server.pid());
    let shown = done(["show", "--json", &target])?.quiet()?.json()?;
    Ok(shown["sockets"][0].clone())
}

fn echoes_to(sender: &UdpSocket, to: SocketAddr) -> Outcome {
    sender.send_to(b"news", to)?;
    ensure!(
        wait::readable(sender, wait::PATIENCE)?,
        "nothing comes back"
    );
    Ok(())
}

/// An address for any, as where the address of the old place has no counterpart.
fn to_any_address() -> Outcome {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, SERVICE))?;
    done(["dump", &target(&socket), "-o", "a.skc"])?.quiet()?;
    drop(socket);
    let words = [
        "restore",
        "a.skc",
        "--map",
        "127.0.0.1=0.0.0.0",
        "--",
        "cat",
        "/proc/net/udp",
    ];
    done(words)?.quiet()?.prints(&["00000000:1B80"])?;
    Ok(())
}

/// Without the maps the error names what is missing, and the map that would help.
fn what_has_no_such_name() -> Outcome {
    let _kept = dump_and_move()?;
    refused(["restore", "service.skc"])?.says(&["10.1.0.1", "--map 10.1.0.1="])?;
    let words = ["restore", "service.skc", "--map", "10.1.0.1=10.2.0.1"];
    refused(words)?.says(&["v0", "--map v0="])?;
    refused(["restore", "news.skc"])?.says(&[&GROUP.to_string(), "v0", "--map v0="])?;
    for image in ["service.skc", "news.skc", "both.skc"] {
        refused(["restore", image, "--map", "v0=v9", "--", "touch", "ran"])?;
    }
    ensure!(!std::fs::exists("ran")?, "the command ran all the same");
    done(["restore", "news.skc", "--map", "v0=w0"])?.prints(&["exactly"])?;
    Ok(())
}

fn a_map_that_maps_nothing() -> Outcome {
    let _kept = dump_and_move()?;
    for (map, name) in [
        ("10.9.0.1=10.2.0.1", "10.9.0.1"),
        ("v9=w0", "v9"),
        ("V0=w0", "V0"),
    ] {
        let words = ["restore", "both.skc", "--map", map];
        refused(words.iter().chain(&MAPS))?.says(&[&format!("--map {name}"), "nothing called"])?;
    }
    Ok(())
}
