//! From a name to a socket, and what is said when there is none.

use anyhow::{Context, ensure};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, bind, connect, socket_with};
use serde_json::Value as Json;
use sockcr_scenarios::command::{done, refused, sees_everything, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{program, run};
use sockcr_scenarios::socket::{self, inode, local, target};
use sockcr_scenarios::{Outcome, Scenario, actor};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

pub const ALL: &[Scenario] = &[
    Scenario::new("finding::shared_by_processes", &[], shared_by_processes),
    Scenario::new("finding::not_bound", &[], not_bound),
    Scenario::new("finding::by_address", &[], by_address),
    Scenario::new(
        "finding::of_every_family_and_kind",
        &[Need::Program("ip"), Need::LookIntoOwnProcesses],
        of_every_family_and_kind,
    ),
    Scenario::new(
        "finding::as_ss_does",
        &[Need::Program("ip"), Need::Program("ss")],
        as_ss_does,
    ),
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
    finds(&[("127.0.0.1", 1), ("127.0.0.2", 1), ("*", 2)])?;
    let shared = [
        sharing(AddressFamily::INET, "127.0.0.4:7002")?,
        sharing(AddressFamily::INET6, "[::ffff:127.0.0.4]:7002")?,
    ];
    finds(&[("127.0.0.4", 2), ("[::ffff:127.0.0.4]", 1), ("*", 4)])?;
    refused(["show", "udp:127.0.0.3:7002"])?.says(&["no such socket"])?;
    refused(["show", "udp:*:7003"])?.says(&["no such socket"])?;
    drop((two, shared));
    Ok(())
}

/// A socket that lets others have its address too.
fn sharing(family: AddressFamily, local: &str) -> anyhow::Result<OwnedFd> {
    let socket = open(family, SocketType::DGRAM, 17, None)?;
    rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &local.parse::<SocketAddr>()?)?;
    Ok(socket)
}

/// How many sockets each address names.
fn finds(expected: &[(&str, usize)]) -> Outcome {
    for (address, expected) in expected {
        done(["dump", &format!("udp:{address}:7002"), "-o", "found.skc"])?.quiet()?;
        ensure!(count("found.skc")? == *expected, "{address}");
    }
    Ok(())
}

/// A socket, how it is listed, and all names by which it alone is found.
struct Example {
    socket: OwnedFd,
    protocol: &'static str,
    local: Option<&'static str>,
    names: &'static [&'static str],
}

/// A socket, bound where an address is given.
fn open(
    family: AddressFamily,
    kind: SocketType,
    protocol: u32,
    local: Option<&str>,
) -> anyhow::Result<OwnedFd> {
    let protocol = std::num::NonZero::new(protocol).map(Protocol::from_raw);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    if let Some(local) = local {
        bind(&socket, &address(local)?).with_context(|| local.to_owned())?;
    }
    Ok(socket)
}

/// Reads an address, with the device `v0` by its name.
fn address(text: &str) -> anyhow::Result<SocketAddr> {
    Ok(text
        .replace("%v0", &format!("%{}", index_of_v0()?))
        .parse()?)
}

fn index_of_v0() -> anyhow::Result<u32> {
    use std::os::fd::AsFd;
    let socket = socket::unbound()?;
    Ok(sockcr_sys::interface::index(socket.as_fd(), "v0")?)
}

/// A device `v0` with addresses of its link and of the world.
fn lay_cable() -> Outcome {
    for words in [
        "link add v0 type veth peer name v1",
        "link set v0 up",
        "link set v1 up",
        "address add fe80::5/64 dev v0 nodad",
        "address add 2001:db8::5/64 dev v0 nodad",
        "address add 10.1.2.3/24 dev v0",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

fn examples() -> anyhow::Result<Vec<Example>> {
    const UDP: u32 = 17;
    let (v4, v6) = (AddressFamily::INET, AddressFamily::INET6);
    let (datagram, raw) = (SocketType::DGRAM, SocketType::RAW);
    let example = |(family, kind, number), protocol, local, names| -> anyhow::Result<Example> {
        Ok(Example {
            socket: open(family, kind, number, local)?,
            protocol,
            local,
            names,
        })
    };
    let udp6 = (v6, datagram, UDP);
    let examples = vec![
        example(udp6, "udp6", None, &[])?,
        example(
            udp6,
            "udp6",
            Some("[::]:7010"),
            &["udp:[::]:7010", "udp:*:7010"],
        )?,
        example(
            udp6,
            "udp6",
            Some("[::ffff:127.0.0.1]:7011"),
            &[
                "udp:[::ffff:127.0.0.1]:7011",
                "udp:127.0.0.1:7011",
                "udp:*:7011",
            ],
        )?,
        example(
            udp6,
            "udp6",
            Some("[fe80::5%v0]:7012"),
            &["udp:[fe80::5%v0]:7012", "udp:[fe80::5]:7012", "udp:*:7012"],
        )?,
        example(
            (v6, raw, 58),
            "raw6:58",
            None,
            &["raw:[::]:ipv6-icmp", "raw:[::]:58", "raw:*:icmpv6"],
        )?,
        example(
            (v6, raw, 89),
            "raw6:89",
            Some("[fe80::5%v0]:0"),
            &["raw:[fe80::5%v0]:ospf", "raw:[fe80::5]:89", "raw:*:ospf"],
        )?,
        example(
            (v4, raw, 1),
            "raw:1",
            Some("127.0.0.1:0"),
            &["raw:127.0.0.1:icmp", "raw:*:1"],
        )?,
        example(
            (v4, datagram, 1),
            "ping",
            Some("127.0.0.1:77"),
            &["ping:127.0.0.1:77", "ping:*:77"],
        )?,
        example(
            (v6, datagram, 58),
            "ping6",
            Some("[::1]:78"),
            &["ping:[::1]:78", "ping:*:78"],
        )?,
    ];
    Ok(examples)
}

fn of_every_family_and_kind() -> Outcome {
    lay_cable()?;
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
    let examples = examples()?;
    let connected = &examples[2].socket;
    connect(connected, &address("[::ffff:127.0.0.1]:7019")?)?;
    for example in &examples {
        fcntl_setfd(&example.socket, FdFlags::empty())?;
    }
    // By what only root may see, and by what its user may.
    let (owner, _) = actor::start_as_nobody("hold", &[])?;
    for example in &examples {
        fcntl_setfd(&example.socket, FdFlags::CLOEXEC)?;
    }
    for nobody in [false, true] {
        listed_as(&examples, nobody).with_context(|| format!("listed, as nobody: {nobody}"))?;
        found_as(&examples, owner.pid(), nobody)
            .with_context(|| format!("found, as nobody: {nobody}"))?;
    }
    done(["list", "src", "[fe80::5%v0]"])?.prints(&["[fe80::5%v0]:7012", "[fe80::5%v0]:0"])?;
    not_found()
}

fn listed_as(examples: &[Example], nobody: bool) -> Outcome {
    let command = sockcr(["list", "--json"]);
    let command = match nobody {
        true => command.as_nobody(),
        false => command,
    };
    let json = command.run()?.done()?.json()?;
    for example in examples {
        let inode = inode(&example.socket)?;
        let mut sockets = json["sockets"].as_array().context("no list")?.iter();
        let listed = sockets.find(|socket| socket["inode"] == inode);
        let listed = listed.with_context(|| format!("{} is not listed", example.protocol))?;
        let peer =
            (example.local == Some("[::ffff:127.0.0.1]:7011")).then_some("[::ffff:127.0.0.1]:7019");
        ensure!(
            listed["protocol"] == example.protocol
                && listed["local"].as_str() == example.local
                && listed["peer"].as_str() == peer,
            "{listed}"
        );
    }
    Ok(())
}

fn found_as(examples: &[Example], owner: i32, nobody: bool) -> Outcome {
    let mut names: Vec<(String, u64)> = Vec::new();
    for example in examples {
        let inode = inode(&example.socket)?;
        names.push((format!("inode:{inode}"), inode));
        names.push((format!("{owner}:{}", example.socket.as_raw_fd()), inode));
        names.extend(example.names.iter().map(|name| ((*name).into(), inode)));
    }
    let by_index = format!("udp:[fe80::5%{}]:7012", index_of_v0()?);
    names.push((by_index, inode(&examples[3].socket)?));
    let words: Vec<&str> = names.iter().map(|(name, _)| name.as_str()).collect();
    let (_, found) = match nobody {
        true => actor::start_as_nobody("find", &words)?,
        false => actor::start("find", &words)?,
    };
    let found: Vec<Vec<u64>> = serde_json::from_value(found)?;
    for ((name, inode), found) in names.iter().zip(found) {
        ensure!(found == [*inode], "{name} finds {found:?}, not {inode}");
    }
    Ok(())
}

fn not_found() -> Outcome {
    for name in [
        "udp:0.0.0.0:7010",
        "udp:[::ffff:127.0.0.2]:7011",
        "udp:127.0.0.2:7011",
        "udp:[fe80::5%lo]:7012",
        "udp:[fe80::6%v0]:7012",
        "udplite:*:7012",
        "raw:0.0.0.0:58",
        "raw:*:90",
        "ping:[::1]:77",
        "ping:*:7010",
    ] {
        refused(["show", name])?.says(&[name, "no such socket"])?;
    }
    refused(["show", "udp:[fe80::5%no-such]:7012"])?
        .says(&["no device no-such"])?
        .helps("ip link")?;
    Ok(())
}

/// The ports of UDP sockets that ss shows.
fn ports_by_ss(expression: &str) -> anyhow::Result<Vec<String>> {
    let mut ss = program("ss");
    let ran = ss.arg("-uanH").args(expression.split(' ')).output()?;
    let errors = String::from_utf8_lossy(&ran.stderr).into_owned();
    ensure!(ran.status.success() && errors.is_empty(), "ss: {errors}");
    let text = String::from_utf8(ran.stdout)?;
    let locals = text
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3));
    Ok(ports(locals))
}

/// The ports of UDP sockets that the command lists.
fn ports_by_list(expression: &str) -> anyhow::Result<Vec<String>> {
    let words = ["list", "--json"];
    let json = done(words.into_iter().chain(expression.split(' ')))?.json()?;
    let sockets = json["sockets"].as_array().context("no list")?.iter();
    let udp = sockets.filter(|socket| socket["protocol"] == "udp" || socket["protocol"] == "udp6");
    Ok(ports(udp.filter_map(|socket| socket["local"].as_str())))
}

fn ports<'a>(locals: impl Iterator<Item = &'a str>) -> Vec<String> {
    let port = |local: &'a str| Some(local.rsplit_once(':')?.1.to_owned());
    let mut ports: Vec<String> = locals.filter_map(port).collect();
    ports.sort_unstable();
    ports
}

/// What both programs understand, they must understand alike. (`not src ::/0` is nothing to ss, whose
/// own second look passes every family where the prefix is 0.)
const EXPRESSIONS: &[&str] = &[
    "src [fe80::5]:7023",
    "src [fe80::5]",
    "src fe80::/10",
    "src 2001:db8::/32",
    "src [2001:db8::/32]",
    "src [2001:db8::/32]:7024",
    "dst [2001:db8::9]:53",
    "src ::/0",
    "dst ::/0",
    "not src fe80::/10",
    "src [::]",
    "dst [::]",
    "src [::1]",
    "src [::1]:*",
    "src ::1:7026",
    "src 0.0.0.0",
    "src 0.0.0.0/0",
    "dst 0.0.0.0/0",
    "src 10.0.0.0/8",
    "src 10.0.0.0/7",
    "src 10.1.2.3",
    "src 10.1.2.3:7025",
    "dst 10.1.2.9:53",
    "src [::ffff:10.1.2.3]",
    "src ::ffff:0:0/96",
    "src *",
    "src *:7022",
    "sport = :7022 or dport = :53",
];

fn as_ss_does() -> Outcome {
    lay_cable()?;
    let (v4, v6) = (AddressFamily::INET, AddressFamily::INET6);
    let mut sockets = Vec::new();
    for (family, local, peer) in [
        (v4, "0.0.0.0:7020", None),
        (v4, "10.1.2.3:7021", Some("10.1.2.9:53")),
        (v6, "[::]:7022", None),
        (v6, "[fe80::5%v0]:7023", None),
        (v6, "[2001:db8::5]:7024", Some("[2001:db8::9]:53")),
        (v6, "[::ffff:10.1.2.3]:7025", Some("[::ffff:10.1.2.9]:53")),
        (v6, "[::1]:7026", None),
    ] {
        let socket = open(family, SocketType::DGRAM, 17, Some(local))?;
        if let Some(peer) = peer {
            connect(&socket, &address(peer)?)?;
        }
        sockets.push(socket);
    }
    for expression in EXPRESSIONS {
        let (ss, list) = (ports_by_ss(expression)?, ports_by_list(expression)?);
        ensure!(!ss.is_empty(), "{expression}: shows nothing");
        ensure!(ss == list, "{expression}: ss shows {ss:?}, we {list:?}");
    }
    // What ss does not read.
    for (expression, port) in [
        ("src fe80::5", "7023"),
        ("src [2001:db8::]/32", "7024"),
        ("src [fe80::5%v0]:7023", "7023"),
    ] {
        ensure!(ports_by_list(expression)? == [port], "{expression}");
    }
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
                .helps("carried are: udp, udp6, ping")?;
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
        &["dump", "udp:[::1:53", "-o", "x.skc"],
        &["dump", "raw:*:no-such-protocol", "-o", "x.skc"],
        &["list", "src", "[::1"],
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
