//! `restore IMAGE -- COMMAND`: sockets by the LISTEN_FDS protocol.

use anyhow::ensure;
use serde_json::{Value as Json, json};
use sockcr_scenarios::command::{Ran, Sockcr, done, refused, sockcr};
use sockcr_scenarios::socket::{echoes, local, target};
use sockcr_scenarios::{Outcome, Scenario, actor};
use std::collections::BTreeSet;
use std::net::UdpSocket;

pub const ALL: &[Scenario] = &[
    Scenario::new("handing_over::to_a_command", &[], to_a_command),
    Scenario::new(
        "handing_over::from_standard_input",
        &[],
        from_standard_input,
    ),
    Scenario::new("handing_over::no_such_command", &[], no_such_command),
    Scenario::new("handing_over::all_or_nothing", &[], all_or_nothing),
];

/// Dumps sockets at these ports of loopback, and closes them.
fn dumped(image: &str, ports: &[u16]) -> anyhow::Result<Ran> {
    let open = |port: &u16| UdpSocket::bind(local(*port));
    let sockets: Vec<UdpSocket> = ports.iter().map(open).collect::<Result<_, _>>()?;
    let targets = sockets.iter().map(target);
    let words = ["dump", "-o", image].map(str::to_owned);
    done(words.into_iter().chain(targets))?.quiet()
}

/// The command that restores the image into an actor.
fn restore_into(role: &'static str, image: &str) -> Sockcr {
    let words = ["restore", image, "--"].map(str::to_owned);
    sockcr(words.into_iter().chain(actor::command_line(role)))
}

fn to_a_command() -> Outcome {
    let ports = [7012, 7010, 7011];
    dumped("three.skc", &ports)?;
    let facts = restore_into("report", "three.skc")
        .run()?
        .done()?
        .quiet()?
        .json()?;
    let pid = facts["pid"].to_string();
    ensure!(facts["listen_pid"] == pid, "{facts}");
    let names = ports.map(|port| format!("udp-127.0.0.1-{port}")).join(":");
    ensure!(facts["listen_fdnames"] == names, "{facts}");
    for (at, port) in ports.iter().enumerate() {
        let socket = &facts["sockets"][at];
        ensure!(socket["came_as"] == at + 3, "{facts}");
        ensure!(socket["local"] == format!("127.0.0.1:{port}"), "{facts}");
        ensure!(socket["close_on_exec"] == false, "{facts}");
    }
    // What every child here gets, the three sockets, and nothing of the command's own.
    let (_, inherited) = actor::start("open", &[])?;
    let inherited = inherited
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Json::as_i64);
    let expected: BTreeSet<i64> = inherited.chain(3..6).collect();
    ensure!(
        facts["open"] == json!(expected),
        "{expected:?} were due: {facts}"
    );

    let mut server = restore_into("serve", "three.skc").start()?;
    let facts: Json = server.facts()?;
    ensure!(
        facts["pid"] == server.pid(),
        "the command is another process: {facts}"
    );
    ports.iter().try_for_each(|port| echoes(local(*port)))
}

fn from_standard_input() -> Outcome {
    dumped("one.skc", &[7013])?;
    let facts = restore_into("report", "-")
        .input("one.skc")?
        .run()?
        .done()?
        .json()?;
    ensure!(facts["sockets"][0]["local"] == "127.0.0.1:7013", "{facts}");
    sockcr(["restore", "-"])
        .input("one.skc")?
        .run()?
        .done()?
        .prints(&["exactly"])?;
    Ok(())
}

fn no_such_command() -> Outcome {
    dumped("one.skc", &[7014])?;
    refused(["restore", "one.skc", "--", "/no/such/command"])?
        .says(&["run /no/such/command", "no such file"])?;
    refused(["restore", "one.skc", "--", "/dev/null"])?
        .says(&["run /dev/null", "permission denied"])?;
    // Nothing of the sockets is left.
    UdpSocket::bind(local(7014))?;
    refused(["restore", "no-such-image.skc", "--", "true"])?
        .says(&["no-such-image.skc", "no such file"])?;
    Ok(())
}

/// One address of three is taken: no socket is restored, and the command does not run.
fn all_or_nothing() -> Outcome {
    dumped("three.skc", &[7015, 7016, 7017])?;
    let taken = UdpSocket::bind(local(7017))?;
    refused(["restore", "three.skc", "--", "touch", "ran"])?
        .says(&["127.0.0.1:7017", "in use"])?
        .helps("sockcr list src 127.0.0.1:7017")?;
    ensure!(!std::fs::exists("ran")?, "the command ran all the same");
    done(["list", "src", "127.0.0.1:7017"])?.prints(&["127.0.0.1:7017"])?;
    for port in [7015, 7016] {
        UdpSocket::bind(local(port))?;
    }
    drop(taken);
    done(["restore", "three.skc", "--", "touch", "ran"])?.quiet()?;
    ensure!(std::fs::exists("ran")?, "the command did not run");
    Ok(())
}
