//! Without any privilege, on one's own sockets.

use anyhow::{Context, ensure};
use rustix::net::Shutdown;
use rustix::net::sockopt::set_ip_multicast_if_with_ifindex;
use sockcr_scenarios::command::{Ran, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::socket::{echoes, target};
use sockcr_scenarios::{Outcome, Scenario, actor};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;

pub const ALL: &[Scenario] = &[
    Scenario::new(
        "unprivileged::the_whole_way",
        &[Need::LookIntoOwnProcesses],
        the_whole_way,
    ),
    Scenario::new(
        "unprivileged::what_root_dumped",
        &[Need::Root],
        what_root_dumped,
    ),
    Scenario::new("unprivileged::nobody_s_demo", &[Need::Root], || demo(true)),
    Scenario::new("unprivileged::demo", &[], || demo(false)),
];

const ADDRESS: &str = "127.0.0.1:7060";

fn done(words: &[&str]) -> anyhow::Result<Ran> {
    sockcr(words).as_nobody().run()?.done()
}

fn the_whole_way() -> Outcome {
    let kind = format!("udp:{ADDRESS}");
    let (owner, facts) = actor::start_as_nobody("hold", &[&kind, "unbound"])?;
    let listed = done(&["list", "--json"])?.json()?;
    let sockets = listed["sockets"].as_array().context("no list")?;
    let inode = &facts[0]["inode"];
    let socket = sockets.iter().find(|socket| socket["inode"] == *inode);
    let socket = socket.with_context(|| format!("{inode} is not listed: {listed}"))?;
    ensure!(
        socket["local"] == ADDRESS && socket["holders"][0]["pid"] == owner.pid(),
        "{socket}"
    );

    let by_descriptor = format!("{}:{}", owner.pid(), facts[0]["fd"]);
    let by_inode = format!("inode:{inode}");
    done(&["dump", &by_descriptor, "-o", "nobody/a.skc", "--canonical"])?.assumes()?;
    for name in [&by_descriptor, &by_inode, &kind] {
        done(&["show", name])?.prints(&[ADDRESS])?.quiet()?;
        for stop in [&[][..], &["--stop"]] {
            let words = ["dump", name, "-o", "nobody/b.skc", "--canonical"];
            done(&[&words[..], stop].concat())?.assumes()?;
            let same = std::fs::read("nobody/a.skc")? == std::fs::read("nobody/b.skc")?;
            ensure!(same, "{name} {stop:?}: is another image");
        }
    }
    done(&["dump", &owner.pid().to_string(), "-o", "nobody/all.skc"])?.assumes()?;
    owner.kill()?;

    done(&["restore", "nobody/all.skc"])?
        .prints(&[ADDRESS, "exactly"])?
        .quiet()?;
    let words = ["restore", "nobody/all.skc", "--"].map(str::to_owned);
    let words = words.into_iter().chain(actor::command_line("serve"));
    let mut server = sockcr(words).as_nobody().start()?;
    let facts = server.facts()?;
    ensure!(facts["sockets"][0]["local"] == ADDRESS, "{facts}");
    let restored = format!("{}:{}", server.pid(), facts["sockets"][0]["fd"]);
    done(&["dump", &restored, "-o", "nobody/b.skc", "--canonical"])?.assumes()?;
    let same = std::fs::read("nobody/a.skc")? == std::fs::read("nobody/b.skc")?;
    ensure!(same, "the restored socket is another one");
    echoes(ADDRESS.parse()?)
}

/// Images of root hold what a plain user cannot see, but can restore: root sees that it is there.
fn what_root_dumped() -> Outcome {
    const OTHER: &str = "127.0.0.1:7061";
    let open = || UdpSocket::bind(ADDRESS);
    let connected = open()?;
    connected.connect(OTHER)?;
    restored_by_nobody(connected).context("connected")?;
    let elsewhere = UdpSocket::bind("127.0.0.9:7060")?;
    elsewhere.connect(OTHER)?;
    rustix::net::shutdown(&elsewhere, Shutdown::Write)?;
    restored_by_nobody(elsewhere).context("connected from another address")?;
    let usual = open()?;
    usual.set_ttl(64)?;
    restored_by_nobody(usual).context("the ttl that is usual anyway")?;
    let device = open()?;
    let any = Ipv4Addr::UNSPECIFIED;
    set_ip_multicast_if_with_ifindex(&device, &any, &any, 1)?;
    restored_by_nobody(device).context("a device for multicast")?;
    restored_by_nobody(UdpSocket::bind("127.0.0.1:40000")?).context("an ephemeral port")?;
    restored_by_nobody(UdpSocket::bind("127.0.0.1:0")?).context("a port of the kernel's choice")?;
    let joined = open()?;
    for group in [3, 1, 2].map(|last| Ipv4Addr::new(239, 1, 1, last)) {
        joined.join_multicast_v4(&group, &Ipv4Addr::LOCALHOST)?;
    }
    restored_by_nobody(joined).context("groups")
}

/// Dumps and closes a socket, has a plain user restore it, and compares.
fn restored_by_nobody(socket: UdpSocket) -> Outcome {
    let dump = |target: &str, image| {
        let words = ["dump", target, "-o", image, "--canonical"];
        sockcr(words).run()?.done()?.quiet()
    };
    dump(&target(&socket), "before.skc")?;
    drop(socket);
    std::fs::copy("before.skc", "nobody/image.skc")?;
    std::fs::set_permissions("nobody/image.skc", PermissionsExt::from_mode(0o644))?;
    done(&["restore", "nobody/image.skc"])?
        .prints(&["exactly"])?
        .quiet()?;
    let words = ["restore", "nobody/image.skc", "--"].map(str::to_owned);
    let words = words.into_iter().chain(actor::command_line("serve"));
    let mut server = sockcr(words).as_nobody().start()?;
    let facts = server.facts()?;
    let fd = &facts["sockets"][0]["fd"];
    dump(&format!("{}:{fd}", server.pid()), "after.skc")?;
    let difference = sockcr(["diff", "before.skc", "after.skc"]).run()?;
    let same = std::fs::read("before.skc")? == std::fs::read("after.skc")?;
    ensure!(same, "another socket: {difference}");
    Ok(())
}

fn demo(as_nobody: bool) -> Outcome {
    let command = sockcr(["demo"]);
    let command = if as_nobody {
        command.as_nobody()
    } else {
        command
    };
    let ran = command.run()?.done()?.quiet()?;
    ran.prints(&[
        "dump",
        "restore",
        "answered by process",
        "with nothing lost",
    ])?;
    Ok(())
}
