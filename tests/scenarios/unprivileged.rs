//! Without any privilege, on one's own sockets.

use anyhow::{Context, ensure};
use sockcr_scenarios::command::{Ran, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::{Outcome, Scenario, actor};

pub const ALL: &[Scenario] = &[
    Scenario::new(
        "unprivileged::the_whole_way",
        &[Need::LookIntoOwnProcesses],
        the_whole_way,
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
    done(&["dump", &by_descriptor, "-o", "nobody/a.skc", "--canonical"])?.quiet()?;
    for name in [&by_descriptor, &by_inode, &kind] {
        done(&["show", name])?.prints(&[ADDRESS])?.quiet()?;
        for stop in [&[][..], &["--stop"]] {
            let words = ["dump", name, "-o", "nobody/b.skc", "--canonical"];
            done(&[&words[..], stop].concat())?.quiet()?;
            let same = std::fs::read("nobody/a.skc")? == std::fs::read("nobody/b.skc")?;
            ensure!(same, "{name} {stop:?}: is another image");
        }
    }
    done(&["dump", &owner.pid().to_string(), "-o", "nobody/all.skc"])?.quiet()?;
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
    done(&["dump", &restored, "-o", "nobody/b.skc", "--canonical"])?.quiet()?;
    let same = std::fs::read("nobody/a.skc")? == std::fs::read("nobody/b.skc")?;
    ensure!(same, "the restored socket is another one");
    sockcr_scenarios::socket::echoes(ADDRESS.parse()?)
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
