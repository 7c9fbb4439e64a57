//! A real daemon: looked at and dumped while it works, stopped, its sockets restored elsewhere.

use anyhow::{Context, ensure};
use sockcr_scenarios::command::{done, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, run};
use sockcr_scenarios::{Outcome, Scenario, actor, dns};
use std::net::SocketAddr;

pub const ALL: &[Scenario] = &[
    Scenario::new(
        "daemon::looked_at_while_it_works",
        NEEDS,
        looked_at_while_it_works,
    ),
    Scenario::new(
        "daemon::dumped_by_every_name",
        NEEDS_SS,
        dumped_by_every_name,
    ),
    Scenario::new("daemon::taken_over", NEEDS, taken_over),
];

const NEEDS: &[Need] = &[Need::Program("dnsmasq")];
const NEEDS_SS: &[Need] = &[Need::Program("dnsmasq"), Need::Program("ss")];
const ADDRESSES: [&str; 2] = ["127.0.0.1:5353", "127.0.0.2:5353"];

/// dnsmasq, answering.
fn start() -> anyhow::Result<Process> {
    let daemon = Process::start(&mut dns::dnsmasq(5353, &["127.0.0.1", "127.0.0.2"]))?;
    answers()?;
    Ok(daemon)
}

fn answers() -> Outcome {
    ADDRESSES
        .iter()
        .try_for_each(|address| dns::ask(address.parse::<SocketAddr>()?))
}

/// The inode, descriptor and cookie of its UDP sockets, in the order of [`ADDRESSES`].
fn sockets(daemon: &Process) -> anyhow::Result<Vec<(u64, u64)>> {
    let pid = daemon.pid().to_string();
    let ran = done(["list", "--pid", &pid, "--json"])?;
    let listed = ran.json()?;
    let listed = listed["sockets"].as_array().context("no list")?;
    let find = |address: &&str| {
        let mut udp = listed.iter().filter(|socket| socket["protocol"] == "udp");
        let socket = udp.find(|socket| socket["local"] == **address)?;
        ensure_one_holder(socket, daemon)?;
        Some((
            socket["inode"].as_u64()?,
            socket["holders"][0]["fd"].as_u64()?,
        ))
    };
    let found: Option<Vec<_>> = ADDRESSES.iter().map(find).collect();
    found.with_context(|| format!("not all are listed: {ran}"))
}

fn ensure_one_holder(socket: &serde_json::Value, daemon: &Process) -> Option<()> {
    let holders = socket["holders"].as_array()?;
    let only = holders.len() == 1 && holders[0]["pid"] == daemon.pid();
    (only && holders[0]["command"] == "dnsmasq" && socket["checkpoint"] == true).then_some(())
}

fn looked_at_while_it_works() -> Outcome {
    let daemon = start()?;
    let pid = daemon.pid();
    for (address, (inode, fd)) in ADDRESSES.iter().zip(sockets(&daemon)?) {
        let listed = done(["list", "src", address])?;
        let row = format!("{inode}");
        let row = listed
            .text()
            .lines()
            .find(|line| line.starts_with(&row))
            .map(str::to_owned);
        let row = row.with_context(|| format!("{inode} is not listed: {listed}"))?;
        for words in [&format!("{pid}:{fd}"), "dnsmasq", "udp", address, "yes"] {
            ensure!(row.contains(words), "no {words} in {row}");
        }
        let target = format!("{pid}:{fd}");
        done(["show", &target])?
            .prints(&[address, "SO_REUSEADDR  on", "O_NONBLOCK", "SO_RCVBUF"])?
            .quiet()?;
        let shown = done(["show", "--json", &target])?.json()?;
        ensure!(
            shown["sockets"][0]["endpoint"]["local"] == *address,
            "{shown}"
        );
        ensure!(
            shown["sockets"][0]["options"]["SO_REUSEADDR"] == 1,
            "{shown}"
        );
        answers()?;
    }
    Ok(())
}

fn dumped_by_every_name() -> Outcome {
    let daemon = start()?;
    let pid = daemon.pid();
    let (inode, fd) = sockets(&daemon)?[0];
    let by_descriptor = format!("{pid}:{fd}");
    done(["dump", &by_descriptor, "-o", "0.skc", "--canonical"])?.quiet()?;
    let cookie = cookie(inode)?;
    for name in [
        by_descriptor,
        format!("inode:{inode}"),
        format!("cookie:{cookie}"),
        format!("udp:{}", ADDRESSES[0]),
    ] {
        for stop in [&[][..], &["--stop"]] {
            let words = ["dump", &name, "-o", "1.skc", "--canonical"];
            done(words.iter().chain(stop))?.quiet()?;
            let same = std::fs::read("0.skc")? == std::fs::read("1.skc")?;
            ensure!(same, "{name} {stop:?}: is another image");
            answers()?;
        }
    }
    // A whole process: what is not carried yet is told, and left out.
    for stop in [&[][..], &["--stop"]] {
        let pid = pid.to_string();
        let words = ["dump", &pid, "-o", "all.skc"];
        done(words.iter().chain(stop))?.says(&["left out: tcp"])?;
        answers()?;
        let shown = done(["show", "all.skc", "--json"])?.json()?;
        let count = shown["sockets"].as_array().map(Vec::len);
        ensure!(count == Some(ADDRESSES.len()), "{count:?} sockets: {shown}");
    }
    Ok(())
}

/// The cookie; a socket has none before somebody asks, as ss(8) does.
fn cookie(inode: u64) -> anyhow::Result<u64> {
    run("ss", &["--udp", "--all", "--extended"])?;
    let listed = done(["list", "--json"])?.json()?;
    let sockets = listed["sockets"].as_array().context("no list")?;
    let socket = sockets.iter().find(|socket| socket["inode"] == inode);
    let cookie = socket.and_then(|socket| socket["cookie"].as_u64());
    cookie.with_context(|| format!("{inode} has no cookie: {listed}"))
}

fn taken_over() -> Outcome {
    let daemon = start()?;
    let pid = daemon.pid();
    let sockets = sockets(&daemon)?;
    let targets: Vec<String> = sockets
        .iter()
        .map(|(_, fd)| format!("{pid}:{fd}"))
        .collect();
    dump("exact.skc", &targets, &[])?;
    dump("before.skc", &targets, &["--canonical"])?;
    let status = daemon.terminate()?;
    ensure!(status.code() == Some(0), "dnsmasq ended with {status}");

    let mut words = vec!["restore".to_owned(), "exact.skc".into(), "--".into()];
    words.extend(actor::command_line("serve"));
    let mut helper = sockcr(words).start()?;
    let facts = helper.facts()?;
    let sockets = facts["sockets"].as_array().context("no sockets")?;
    for (address, socket) in ADDRESSES.iter().zip(sockets) {
        ensure!(socket["local"] == *address, "{facts}");
    }
    let fds = sockets
        .iter()
        .map(|socket| format!("{}:{}", helper.pid(), socket["fd"]));
    dump("after.skc", &fds.collect::<Vec<_>>(), &["--canonical"])?;
    let difference = sockcr(["diff", "before.skc", "after.skc"]).run()?;
    let same = std::fs::read("before.skc")? == std::fs::read("after.skc")?;
    ensure!(same, "not the same, byte for byte: {difference}");
    answers()
}

fn dump(image: &str, targets: &[String], more: &[&str]) -> Outcome {
    let targets = targets.iter().map(String::as_str);
    let words = ["dump", "-o", image].into_iter().chain(targets);
    done(words.chain(more.iter().copied()))?.quiet().map(drop)
}
