//! `set`: live sockets are changed while their owner runs on.

use anyhow::ensure;
use sockcr_scenarios::command::{done, sockcr};
use sockcr_scenarios::socket::{echoes, local};
use sockcr_scenarios::{Outcome, Scenario, actor};

pub const ALL: &[Scenario] = &[
    Scenario::new("tuning::a_blocked_owner", &[], a_blocked_owner),
    Scenario::new("tuning::all_or_nothing", &[], all_or_nothing),
    Scenario::new(
        "tuning::every_socket_of_a_process",
        &[],
        every_socket_of_a_process,
    ),
];

/// Its thread in recvfrom(2) never notices.
fn a_blocked_owner() -> Outcome {
    let address = local(7090);
    let (owner, facts) = actor::start("echo", &[&address.to_string()])?;
    let target = format!("{}:{}", owner.pid(), facts["fd"]);
    let set = [
        "set",
        &target,
        "SO_RCVBUF=64K",
        "IP_TTL=9",
        "SO_RCVTIMEO=2min",
    ];
    done(set)?.prints(&["SO_RCVBUF", "→ 65536 B (64 KiB)", "IP_TTL", "default → 9"])?;
    echoes(address)?;
    let shown = done(["show", "--changed", &target])?.text();
    for line in [
        "IP_TTL       9",
        "65536 B (64 KiB)",
        "chosen by the owner",
        "120 s",
    ] {
        ensure!(shown.contains(line), "{line:?} is not in:\n{shown}");
    }
    let json = done([
        "set",
        &target,
        "IP_TTL=default",
        "join=239.9.9.9@lo",
        "--json",
    ])?
    .json()?;
    let changes = &json[0]["changes"];
    ensure!(
        changes[0]["old"] == "9" && changes[0]["new"] == "default",
        "{json}"
    );
    ensure!(changes[1]["name"] == "239.9.9.9@lo", "{json}");
    done(["show", &target])?.prints(&["239.9.9.9 on lo"])?;
    done(["set", &target, "leave=239.9.9.9@lo"])?.prints(&["joined → left"])?;
    echoes(address)
}

fn all_or_nothing() -> Outcome {
    let address = local(7091);
    let (owner, facts) = actor::start("echo", &[&address.to_string()])?;
    let target = format!("{}:{}", owner.pid(), facts["fd"]);
    let before = done(["show", "--json", &target])?.text();
    for (change, why) in [
        ("IP_TTL=300", "300 is not between 1 and 255"),
        ("SO_BINDTODEVICE=nowhere0", "no such device"),
        ("leave=239.9.9.9@lo", "is no member"),
        ("SO_RCVBUF=8K", "is there twice"),
    ] {
        sockcr(["set", &target, "SO_RCVBUF=64K", change])
            .run()?
            .refused()?
            .says(&[why])?;
    }
    for (change, why) in [
        ("SO_NONE=1", "no such option"),
        ("IP_MTU=1500", "belongs to the route"),
        ("join=10.0.0.1@lo", "GROUP@DEVICE"),
        ("SO_MARK", "is not NAME=VALUE"),
    ] {
        sockcr(["set", &target, "SO_RCVBUF=64K", change])
            .run()?
            .misused()?
            .says(&[why])?;
    }
    ensure!(
        done(["show", "--json", &target])?.text() == before,
        "something was changed"
    );
    echoes(address)
}

fn every_socket_of_a_process() -> Outcome {
    let kinds = [
        "udp:127.0.0.1:7092",
        "tcp:127.0.0.1:7093",
        "udp:127.0.0.1:7094",
    ];
    let (owner, _) = actor::start("hold", &kinds)?;
    let pid = owner.pid().to_string();
    let set = done(["set", &pid, "IP_TOS=16", "--json"])?;
    set.says(&["left out"])?;
    for target in ["udp:127.0.0.1:7092", "udp:127.0.0.1:7094"] {
        let json = done(["show", "--json", target])?.json()?;
        ensure!(json["sockets"][0]["options"]["IP_TOS"] == 16, "{json}");
    }
    Ok(())
}
