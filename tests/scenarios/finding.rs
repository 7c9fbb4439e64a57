//! From a name to a socket, and what is said when there is none.

use anyhow::{Context, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::Value as Json;
use sockcr_scenarios::command::{done, refused, sees_everything, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::socket::{self, inode, local, target};
use sockcr_scenarios::{Outcome, Scenario, actor};
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsRawFd;

pub const ALL: &[Scenario] = &[
    Scenario::new("finding::shared_by_processes", &[], shared_by_processes),
    Scenario::new("finding::not_bound", &[], not_bound),
    Scenario::new("finding::by_address", &[], by_address),
    Scenario::new(
        "finding::thread_with_its_own_table",
        &[],
        thread_with_its_own_table,
    ),
    Scenario::new("finding::another_namespace", &[], another_namespace),
    Scenario::new("finding::what_is_not_there", &[], what_is_not_there),
    Scenario::new("finding::what_is_not_carried", &[], what_is_not_carried),
    Scenario::new(
        "finding::what_is_not_permitted",
        &[Need::Root],
        what_is_not_permitted,
    ),
    Scenario::new("finding::wrong_usage", &[], wrong_usage),
];

/// Every verb that takes a target.
fn verbs(target: &str) -> [Vec<&str>; 3] {
    [
        vec!["show", target],
        vec!["dump", target, "-o", "refused.skc"],
        vec!["diff", target, target],
    ]
}

fn no_image_was_written() -> Outcome {
    ensure!(
        !std::fs::exists("refused.skc")?,
        "an image was written all the same"
    );
    Ok(())
}

/// What `list` says of the socket with this inode.
fn listed(inode: u64, arguments: &[&str]) -> anyhow::Result<Option<Json>> {
    let ran = done(["list", "--json"].iter().chain(arguments))?.json()?;
    let sockets = ran["sockets"].as_array().context("no list")?;
    let mut same = sockets.iter().filter(|socket| socket["inode"] == inode);
    let first = same.next().cloned();
    ensure!(same.next().is_none(), "is listed twice: {ran}");
    Ok(first)
}

fn count(image: &str) -> anyhow::Result<usize> {
    let shown = done(["show", "--json", image])?.json()?;
    Ok(shown["sockets"].as_array().context("no sockets")?.len())
}

fn shared_by_processes() -> Outcome {
    let socket = UdpSocket::bind(local(7001))?;
    // Only the actors inherit it.
    fcntl_setfd(&socket, FdFlags::empty())?;
    let actors = [actor::start("hold", &[])?, actor::start("hold", &[])?];
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    let inode = inode(&socket)?;
    let listed = listed(inode, &[])?.context("is not listed")?;
    let mut holders: Vec<i32> = vec![std::process::id().cast_signed()];
    holders.extend(actors.iter().map(|(actor, _)| actor.pid()));
    holders.sort_unstable();
    let told = listed["holders"].as_array().context("no holders")?.iter();
    let told: Vec<&Json> = told.map(|holder| &holder["pid"]).collect();
    ensure!(
        told == holders.iter().collect::<Vec<_>>(),
        "{holders:?} have it: {listed}"
    );
    for holder in &told {
        let through = format!("{holder}:{}", socket.as_raw_fd());
        done(["show", &through])?.prints(&["127.0.0.1:7001"])?;
    }
    let name = format!("inode:{inode}");
    let twice = [target(&socket), "udp:127.0.0.1:7001".into()];
    for stop in [&[][..], &["--stop"]] {
        // The scenario waits for the command, which so cannot be held still by it for long.
        let words = ["dump", &name, &twice[0], &twice[1], "-o", "shared.skc"];
        done(words.iter().chain(stop))?.quiet()?;
        ensure!(count("shared.skc")? == 1, "was dumped more than once");
    }
    Ok(())
}

fn not_bound() -> Outcome {
    let socket = socket::unbound()?;
    let inode = inode(&socket)?;
    let listed = listed(inode, &[])?.context("is not listed")?;
    ensure!(
        listed["local"].is_null() && listed["checkpoint"] == true,
        "{listed}"
    );
    let by_inode = format!("inode:{inode}");
    done(["show", &by_inode])?.prints(&["not bound"])?.quiet()?;
    done(["dump", &by_inode, "-o", "unbound.skc"])?.quiet()?;
    done(["diff", "unbound.skc", &target(&socket)])?.quiet()?;
    for (flags, expected) in [(FdFlags::empty(), false), (FdFlags::CLOEXEC, true)] {
        fcntl_setfd(&socket, flags)?;
        let shown = done(["show", "--json", &target(&socket)])?.json()?;
        let told = &shown["sockets"][0]["descriptor"]["close_on_exec"];
        ensure!(*told == expected, "close-on-exec is {expected}: {shown}");
    }
    let cookie = format!("cookie:{}", socket::cookie(&socket)?);
    done(["show", &cookie])?.prints(&["not bound"])?;
    done(["restore", "unbound.skc"])?.prints(&["exactly"])?;
    Ok(())
}

fn by_address() -> Outcome {
    let two = [
        UdpSocket::bind("127.0.0.1:7002")?,
        UdpSocket::bind("127.0.0.2:7002")?,
    ];
    for (address, expected) in [("127.0.0.1", 1), ("127.0.0.2", 1), ("*", 2)] {
        done(["dump", &format!("udp:{address}:7002"), "-o", "found.skc"])?.quiet()?;
        ensure!(count("found.skc")? == expected, "{address}");
    }
    refused(["show", "udp:127.0.0.3:7002"])?.says(&["no such socket"])?;
    refused(["show", "udp:*:7003"])?.says(&["no such socket"])?;
    drop(two);
    Ok(())
}

fn thread_with_its_own_table() -> Outcome {
    let (actor, facts) = actor::start("thread", &[])?;
    let inode = facts["inode"].as_u64().context("no inode")?;
    for arguments in [&[][..], &["--pid", &actor.pid().to_string()]] {
        let listed = listed(inode, arguments)?.context("is not listed")?;
        let holder = &listed["holders"][0];
        ensure!(
            holder["pid"] == actor.pid() && holder["tid"] == facts["tid"],
            "{listed}"
        );
    }
    let tid = &facts["tid"];
    done(["list"])?.prints(&[&format!("{tid}:{}", facts["fd"])])?;
    for name in [
        format!("{tid}:{}", facts["fd"]),
        format!("inode:{inode}"),
        actor.pid().to_string(),
    ] {
        done(["show", &name])?.prints(&["not bound"])?;
        done(["dump", "--stop", &name, "-o", "thread.skc"])?.quiet()?;
        ensure!(count("thread.skc")? == 1, "{name}");
    }
    refused(["show", &format!("{}:{}", actor.pid(), facts["fd"])])?
        .says(&["no such descriptor"])?
        .helps("sockcr list --pid")?;
    Ok(())
}

fn another_namespace() -> Outcome {
    let (actor, facts) = actor::start("elsewhere", &["udp:127.0.0.1:7004"])?;
    let (pid, inode) = (actor.pid(), facts[0]["inode"].as_u64().context("no inode")?);
    let by_inode = format!("inode:{inode}");
    let namespace = format!("/proc/{pid}/ns/net");
    let by_descriptor = format!("{pid}:{}", facts[0]["fd"]);
    for name in [&by_descriptor, &pid.to_string()] {
        done(["show", name])?.prints(&["127.0.0.1:7004"])?.quiet()?;
        done(["dump", name, "-o", "elsewhere.skc"])?.quiet()?;
    }
    ensure!(listed(inode, &[])?.is_none(), "is listed here");
    ensure!(
        listed(inode, &["--pid", &pid.to_string()])?.is_some(),
        "its process does not show it"
    );
    for name in [&by_inode, "udp:127.0.0.1:7004", "udp:*:7004"] {
        for words in verbs(name) {
            refused(words)?
                .says(&["no such socket in this network namespace"])?
                .helps(&format!("--netns {namespace}"))?;
        }
        no_image_was_written()?;
        done(["--netns", &namespace, "show", name])?.prints(&["127.0.0.1:7004"])?;
        done(["dump", name, "--netns", &namespace, "-o", "there.skc"])?.quiet()?;
        done(["diff", "elsewhere.skc", "there.skc"])?;
    }
    ensure!(
        listed(inode, &["--netns", &namespace])?.is_some(),
        "is not listed there"
    );
    // The address is free here, and taken there.
    done(["restore", "elsewhere.skc"])?.prints(&["exactly"])?;
    refused(["restore", "elsewhere.skc", "--netns", &namespace])?
        .says(&["127.0.0.1:7004", "in use"])?
        .helps("another socket has 127.0.0.1:7004")?;
    refused(["list", "--netns", "no-such-name"])?
        .says(&["network namespace no-such-name", "no such file"])?
        .helps("ip netns list")?;
    Ok(())
}

fn what_is_not_there() -> Outcome {
    let file = File::open("/dev/null")?;
    let own = std::process::id();
    let nobody_has = i32::MAX;
    // Who does not see all sockets is told so.
    let next = match sees_everything()? {
        true => "sockcr list",
        false => "root sees them all",
    };
    for (name, why, help) in [
        (
            "inode:1".to_owned(),
            "no such socket in this network namespace",
            next,
        ),
        ("cookie:0xffffffffffffffff".into(), "no such socket", next),
        ("udp:127.0.0.1:1".into(), "no such socket", next),
        (format!("{nobody_has}"), "no such process", "sockcr list"),
        (format!("{nobody_has}:3"), "no such process", "sockcr list"),
        (
            format!("{own}:{}", i32::MAX),
            "no such descriptor",
            "sockcr list --pid",
        ),
        (target(&file), "is not a socket", "sockcr list --pid"),
    ] {
        for words in verbs(&name) {
            refused(words)?.says(&[why])?.helps(help)?;
        }
        no_image_was_written()?;
    }
    let (actor, _) = actor::start("hold", &[])?;
    refused(["show", &actor.pid().to_string()])?.says(&["has no internet socket"])?;
    refused(["list", "--pid", &nobody_has.to_string()])?.says(&["no such process"])?;
    Ok(())
}

fn what_is_not_carried() -> Outcome {
    let listener = TcpListener::bind("127.0.0.1:7005")?;
    let listed = listed(inode(&listener)?, &[])?.context("is not listed")?;
    ensure!(
        listed["checkpoint"] == false && listed["protocol"] == "tcp",
        "{listed}"
    );
    done(["list", "src", "127.0.0.1:7005"])?.prints(&["no: tcp is not carried yet"])?;
    for name in [target(&listener), format!("inode:{}", inode(&listener)?)] {
        for words in verbs(&name) {
            refused(words)?
                .says(&["tcp", "not carried yet"])?
                .helps("UDP over IPv4")?;
        }
        no_image_was_written()?;
    }
    Ok(())
}

fn what_is_not_permitted() -> Outcome {
    let socket = UdpSocket::bind(local(7006))?;
    for words in verbs(&target(&socket)) {
        let ran = sockcr(words).as_nobody().run()?.refused()?;
        ran.says(&["not permitted"])?.helps("CAP_SYS_PTRACE")?;
    }
    let name = format!("inode:{}", inode(&socket)?);
    let ran = sockcr(["show", &name]).as_nobody().run()?.refused()?;
    ran.says(&["no such socket"])?.helps("root sees them all")?;
    let own = std::process::id().to_string();
    let ran = sockcr(["dump", &own, "-o", "nobody/x.skc"])
        .as_nobody()
        .run()?
        .refused()?;
    ran.says(&["not permitted"])?.helps("CAP_SYS_PTRACE")?;
    ensure!(
        !std::fs::exists("nobody/x.skc")?,
        "an image was written all the same"
    );
    let ran = sockcr(["list"]).as_nobody().run()?.done()?;
    ran.says(&["could not be looked into"])?;
    Ok(())
}

fn wrong_usage() -> Outcome {
    for words in [
        &[][..],
        &["no-such-verb"],
        &["list", "--no-such-flag"],
        &["list", "--pid", "x"],
        &["show"],
        &["dump", "1:2"],
        &["dump", "x", "-o", "x.skc"],
        &["dump", "udp:[::1]:53", "-o", "x.skc"],
        &["restore", "x.skc", "--map", "x"],
        &["restore", "x.skc", "--map", "10.0.0.1=eth0"],
        &["edit", "x.skc"],
        &["options", "--json", "--markdown"],
        &["completions", "no-such-shell"],
    ] {
        sockcr(words).run()?.misused()?;
    }
    sockcr(["--help"])
        .run()?
        .done()?
        .prints(&["Usage: sockcr", "restore", "inode:N"])?;
    sockcr(["--version"]).run()?.done()?.prints(&["sockcr "])?;
    Ok(())
}
