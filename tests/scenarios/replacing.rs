//! `replace`: sockets of programs that run, know nothing of it, and lose nothing.
//!
//! SOCKCR_REPLACES and SOCKCR_KILLS ask for more than the suite has time for.

use crate::replacing_killed::{duration, moment, replacing};
use anyhow::{Context, ensure};
use rustix::fd::AsRawFd;
use rustix::process::Signal;
use serde_json::Value as Json;
use sockcr_scenarios::command::{done, refused, sockcr};
use sockcr_scenarios::load::{Kind, Load};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, program, run};
use sockcr_scenarios::receiver::{Receiver, compiled};
use sockcr_scenarios::remains::{Still, none_in_the_kernel};
use sockcr_scenarios::socket::{echoes, local};
use sockcr_scenarios::takeover::{Socket, sockets};
use sockcr_scenarios::{Outcome, Scenario, wait};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ROOT: &[Need] = &[Need::Root];
const CC: &[Need] = &[Need::Root, Need::Program("cc")];
const CC_IP: &[Need] = &[Need::Root, Need::Program("cc"), Need::Program("ip")];
const PYTHON: &[Need] = &[Need::Root, Need::Program("python3")];
const GO: &[Need] = &[Need::Root, Need::Program("go")];

pub const ALL: &[Scenario] = &[
    Scenario::new("replacing::traffic_of_ipv4", CC, traffic_of_ipv4),
    Scenario::new("replacing::traffic_of_ipv6", CC, traffic_of_ipv6),
    Scenario::new("replacing::traffic_of_a_group", CC_IP, traffic_of_a_group),
    Scenario::new("replacing::one_of_several", CC, one_of_several),
    Scenario::new("replacing::in_every_call", CC, in_every_call),
    Scenario::new("replacing::with_64_threads", CC, with_64_threads),
    Scenario::new("replacing::held_by_several", CC, held_by_several),
    Scenario::new("replacing::signals_arrive", CC, signals_arrive),
    Scenario::new("replacing::under_a_filter", CC, under_a_filter),
    Scenario::new("replacing::static_programs", CC, static_programs),
    Scenario::new("replacing::threads_come_and_go", CC, threads_come_and_go),
    Scenario::new("replacing::python", PYTHON, python),
    Scenario::new("replacing::go", GO, go),
    Scenario::new(
        "replacing::a_stopped_process_stays_stopped",
        CC,
        a_stopped_process_stays_stopped,
    ),
    Scenario::new("replacing::an_ending_process", CC, an_ending_process),
    Scenario::new("replacing::by_a_closed_number", CC, by_a_closed_number),
    Scenario::new(
        "replacing::a_program_that_executes_another",
        CC,
        a_program_that_executes_another,
    ),
    Scenario::new("replacing::refused_by_name", CC, refused_by_name),
    Scenario::new(
        "replacing::given_back_under_traffic",
        CC,
        given_back_under_traffic,
    ),
    Scenario::new("replacing::beside_others", ROOT, beside_others),
    Scenario::new("replacing::driven_by_signals", PYTHON, driven_by_signals),
    Scenario::new(
        "replacing::in_the_name_of_a_user",
        PYTHON,
        in_the_name_of_a_user,
    ),
];

/// How often, unless somebody asks for more.
pub(crate) fn times(usual: u32) -> u32 {
    asked_for("SOCKCR_REPLACES").unwrap_or(usual)
}

pub(crate) fn asked_for(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

/// Replaces a socket; says how many datagrams came to be out of order.
pub(crate) fn replace(target: &str) -> anyhow::Result<u64> {
    replace_with(target, &[])
}

pub(crate) fn replace_with(target: &str, more: &[&str]) -> anyhow::Result<u64> {
    let words = ["replace", target, "--json"];
    let json = done(words.iter().chain(more))?.quiet()?.json()?;
    told_as_reordered(&json)
}

fn told_as_reordered(json: &Json) -> anyhow::Result<u64> {
    let count = |socket: &Json| socket["datagrams_reordered"].as_u64();
    let sockets = json["sockets"].as_array();
    let counts = sockets.and_then(|sockets| sockets.iter().map(count).sum());
    counts.with_context(|| format!("no report: {json}"))
}

/// How long a group had a member more, in µs.
fn crowded(json: &Json) -> u64 {
    json["sockets"][0]["crowded_us"].as_u64().unwrap_or(0)
}

/// Replaces each of its sockets.
fn replace_all(receiver: &Receiver) -> anyhow::Result<u64> {
    receiver.targets()?.iter().map(|one| replace(one)).sum()
}

// Traffic

const FAST: u32 = 100_000;

/// Numbered datagrams come, so many a second, while the socket is replaced again and again.
fn under_traffic(words: &str, rate: u32, usual: u32) -> Outcome {
    let tell = || -> Outcome {
        let mut receiver = Receiver::start(words)?;
        let before = receiver.check()?;
        before.is_fine(0)?;
        receiver.run_at(rate)?;
        let mut reordered = 0;
        for _ in 0..times(usual) {
            reordered += replace_all(&receiver)?;
        }
        let told = receiver.stop()?;
        told.is_fine(reordered)?;
        receiver.check()?.is_fine(reordered)?;
        let (sent, strayed) = (told.sent(), told.strayed());
        eprintln!("{words}: {sent} datagrams, {reordered} reordered, {strayed} strayed");
        Ok(())
    };
    tell().with_context(|| words.to_owned())
}

fn traffic_of_ipv4() -> Outcome {
    compiled(&[])?;
    for words in [
        "recvmsg",
        "recvmsg any",
        "recv connected",
        "recv any connected",
        "recv device",
    ] {
        under_traffic(words, FAST, 8)?;
    }
    // It holds a quarter of a thousand.
    under_traffic("recv small", FAST / 10, 8)
}

fn traffic_of_ipv6() -> Outcome {
    compiled(&[])?;
    for words in [
        "recvmsg ipv6",
        "recv ipv6 any",
        "recv ipv6 connected",
        "recv mapped",
        "recv mapped any",
    ] {
        under_traffic(words, FAST, 8)?;
    }
    Ok(())
}

fn traffic_of_a_group() -> Outcome {
    compiled(&[])?;
    under_traffic("recvmsg group", FAST, 8)?;
    for words in [
        "link add v0 type veth peer name v1",
        "link set v0 addrgenmode none up",
        "link set v1 addrgenmode none up",
        "address add 10.5.0.1/24 dev v0",
        "address add fd05::1/64 dev v0 nodad",
    ] {
        run("ip", &words.split(' ').collect::<Vec<_>>())?;
    }
    under_traffic("recvmsg group", FAST, 8)?;
    under_traffic("recv group ipv6", FAST, 8)
}

/// Sockets that share a port: each keeps its place among them, so that a program goes on choosing
/// the same ones, and every sender comes to the one it came to before.
fn one_of_several() -> Outcome {
    compiled(&[])?;
    under_traffic("recv members=3 by_program flows=4", FAST, 10)?;
    under_traffic("recv members=3 by_program flows=4 ipv6 any", FAST, 5)?;
    let mut receiver = Receiver::start("recv members=3 flows=16")?;
    let before = receiver.check()?;
    receiver.run_at(FAST)?;
    let mut reordered = 0;
    for round in 0..times(10) {
        let targets = receiver.targets()?;
        let target = targets.get(round as usize % 3).context("no member")?;
        let json = done(["replace", target, "--json"])?.quiet()?.json()?;
        ensure!(crowded(&json) > 0, "the kernel chose between more: {json}");
        reordered += told_as_reordered(&json)?;
    }
    receiver.stop()?.is_fine(reordered)?;
    // Whatever came meanwhile.
    let strayed = receiver.check()?.strayed();
    let after = receiver.check()?;
    after.is_fine(reordered)?;
    ensure!(
        after.strayed() == strayed,
        "some stray still: {}",
        after.all()
    );
    ensure!(
        before.homes() == after.homes(),
        "{} became {}",
        before.homes(),
        after.homes()
    );
    eprintln!("{strayed} strayed of {}", after.sent());
    Ok(())
}

// Victims

pub(crate) const RATE: u32 = 2_000;

/// Replaces the sockets of a program that checks itself: while it waits, and while it is busy.
fn is_replaced(words: &str, usual: u32) -> Outcome {
    let tell = || -> Outcome {
        let mut receiver = Receiver::start(words)?;
        receiver.check()?.is_fine(0)?;
        let before = receiver.still()?;
        let targets = receiver.targets()?.len() as u64;
        let (times, mut reordered) = (times(usual), 0);
        for round in 0..times {
            if round == times / 2 {
                receiver.run_at(RATE)?;
            }
            reordered += replace_all(&receiver)?;
            if round < times / 2 {
                before.is(&receiver.still()?)?;
            }
            receiver.check()?.is_fine(reordered)?;
        }
        receiver.stop()?.is_fine(reordered)?;
        let told = receiver.check()?;
        told.is_fine(reordered)?;
        let stops = u64::from(times) * targets;
        ensure!(told.cut() <= stops, "{stops} stops: {}", told.all());
        before.is(&receiver.still()?)
    };
    tell().with_context(|| words.to_owned())
}

const CALLS: [&str; 26] = [
    "recv",
    "recv_timed",
    "recv_short",
    "recvmsg",
    "recvmmsg",
    "poll",
    "poll_timed",
    "poll_short",
    "ppoll",
    "select",
    "pselect",
    "spin",
    "epoll_wait",
    "epoll_timed",
    "epoll_short",
    "epoll_pwait",
    "edge",
    "oneshot",
    "exclusive",
    "several",
    "nested",
    "nested_edge",
    // One thread alone.
    "disarmed",
    "disarmed_edge",
    "disarmed_once",
    "recvmmsg_two",
];
/// The last so many.
const ALONE: usize = 4;

fn in_every_call() -> Outcome {
    compiled(&[])?;
    CALLS.iter().try_for_each(|call| is_replaced(call, 8))
}

fn with_64_threads() -> Outcome {
    compiled(&[])?;
    let calls = CALLS.iter().take(CALLS.len() - ALONE);
    calls
        .map(|call| format!("{call} threads=64"))
        .try_for_each(|words| is_replaced(&words, 2))
}

fn held_by_several() -> Outcome {
    compiled(&[])?;
    for words in [
        "recv workers=4",
        "poll workers=4 threads=2",
        "epoll_wait workers=4",
        "exclusive workers=4 threads=2",
        "edge workers=2 threads=3",
        "recv two threads=2",
        "epoll_wait two threads=2",
        "edge two threads=2",
        "recv tables threads=4",
        "epoll_wait tables threads=4",
        "nested tables threads=3",
        "recv tables workers=2 threads=3",
    ] {
        is_replaced(words, 8)?;
    }
    Ok(())
}

/// One each 100 µs, in order; none is lost, and none is told that the kernel would not have told.
fn signals_arrive() -> Outcome {
    compiled(&[])?;
    for call in [
        "recv",
        "recv_timed",
        "recvmmsg",
        "poll",
        "ppoll",
        "select",
        "epoll_wait",
        "edge",
        "spin",
    ] {
        is_replaced(&format!("{call} signals"), 8)?;
        is_replaced(&format!("{call} signals threads=4"), 4)?;
    }
    Ok(())
}

/// That would kill it for what it is made to do.
fn under_a_filter() -> Outcome {
    compiled(&[])?;
    [
        "recv filtered",
        "poll filtered threads=3",
        "recvmsg filtered workers=3",
    ]
    .iter()
    .try_for_each(|words| is_replaced(words, 10))
}

fn static_programs() -> Outcome {
    compiled(&["-static"])?;
    [
        "recv",
        "recv_timed threads=3",
        "poll",
        "epoll_wait threads=3",
        "edge",
    ]
    .iter()
    .try_for_each(|words| is_replaced(words, 8))
}

fn threads_come_and_go() -> Outcome {
    compiled(&[])?;
    is_replaced("recv leaderless threads=3", 8)?;
    is_replaced("epoll_wait leaderless threads=3", 8)?;
    // Its threads are never the same twice.
    for words in [
        "recv churn threads=2",
        "edge churn threads=2",
        "recv forks threads=2",
        "recv spawns threads=2",
    ] {
        let mut receiver = Receiver::start(words)?;
        for _ in 0..times(20) {
            let reordered = replace_all(&receiver).with_context(|| words.to_owned())?;
            let told = receiver.check()?;
            told.is_fine(reordered).with_context(|| words.to_owned())?;
        }
    }
    Ok(())
}

fn python() -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/replace.py");
    let mut victim = Process::start(program("python3").arg(source))?;
    let facts = victim.facts()?;
    let both = facts["fds"].as_array().zip(facts["ports"].as_array());
    let (fds, ports) = both.context("no sockets")?;
    let mut loads = Vec::new();
    for port in ports {
        let port = port.as_u64().context("no port")?.try_into()?;
        loads.push(Load::start(local(port), Kind::Echo, RATE));
    }
    for _ in 0..times(20) {
        for fd in fds {
            replace(&format!("{}:{fd}", victim.pid()))?;
        }
    }
    for load in loads {
        load.stop()?.are_all(100)?;
    }
    has_no_complaint(&mut victim)
}

fn has_no_complaint(victim: &mut Process) -> Outcome {
    victim.tell("state")?;
    let state = victim.facts()?;
    let wrong = state["wrong"].as_array();
    ensure!(wrong.is_some_and(Vec::is_empty), "{state}");
    Ok(())
}

/// Its runtime waits for all sockets at once, and threads of it come and go.
fn go() -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/replace.go");
    let folder = std::env::current_dir()?;
    let mut build = program("go");
    build.args(["build", "-o", "receiver", source]);
    for name in ["HOME", "GOPATH", "GOCACHE"] {
        build.env(name, folder.join("go"));
    }
    for (name, value) in [
        ("CGO_ENABLED", "0"),
        ("GO111MODULE", "off"),
        ("GOENV", "off"),
        ("GOFLAGS", ""),
        ("GOPROXY", "off"),
        ("GOTOOLCHAIN", "local"),
    ] {
        build.env(name, value);
    }
    let built = build.output()?;
    ensure!(built.status.success(), "{built:?}");
    let mut victim = Process::start(&mut program("./receiver"))?;
    let facts = victim.facts()?;
    let mut targets = Vec::new();
    let mut places: Vec<SocketAddr> = Vec::new();
    for socket in facts["sockets"].as_array().context("no sockets")? {
        targets.push(format!("{}:{}", victim.pid(), socket["fd"]));
        let at: Vec<SocketAddr> = serde_json::from_value(socket["places"].clone())?;
        places.extend(at);
    }
    let numbers = |known: &[Socket]| -> Vec<(String, String)> {
        let of = |one: &Socket| (one.target.clone(), one.local.clone());
        known.iter().map(of).collect()
    };
    let before = sockets(&victim)?;
    let times = times(12);
    for _ in 0..times / 2 {
        replace_each(&targets)?;
        for place in places.iter().filter(|place| place.is_ipv4()) {
            echoes(*place)?;
        }
    }
    let loads = places
        .iter()
        .map(|place| Load::start(*place, Kind::Echo, RATE));
    let loads: Vec<Load> = loads.collect();
    for _ in times / 2..times {
        replace_each(&targets)?;
    }
    for (load, place) in loads.into_iter().zip(&places) {
        let answers = load.stop()?;
        eprintln!("{place}: {answers:?}");
        answers.are_all(100).with_context(|| place.to_string())?;
    }
    has_no_complaint(&mut victim)?;
    let after = sockets(&victim)?;
    ensure!(
        numbers(&before) == numbers(&after),
        "{before:?} became {after:?}"
    );
    let same = |(old, new): (&Socket, &Socket)| old.inode == new.inode;
    ensure!(
        !before.iter().zip(&after).any(same),
        "{before:?} are still there: {after:?}"
    );
    Ok(())
}

pub(crate) fn replace_each(targets: &[String]) -> Outcome {
    targets.iter().try_for_each(|one| replace(one).map(drop))
}

fn a_stopped_process_stays_stopped() -> Outcome {
    compiled(&[])?;
    for words in [
        "recv",
        "recv_timed threads=3",
        "epoll_wait threads=4",
        "poll workers=3",
    ] {
        let mut receiver = Receiver::start(words)?;
        receiver.check()?.is_fine(0)?;
        let pid = receiver.pid()?;
        let id = rustix::process::Pid::from_raw(pid).context("no process")?;
        rustix::process::kill_process(id, Signal::STOP)?;
        let state = || -> anyhow::Result<Option<()>> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
            Ok(status.contains("State:\tT").then_some(()))
        };
        wait::until("a stop", state)?;
        for _ in 0..times(10) {
            replace_all(&receiver)?;
            wait::until("the stop goes on", state)?;
        }
        rustix::process::kill_process(id, Signal::CONT)?;
        receiver
            .check()?
            .is_fine(0)
            .with_context(|| words.to_owned())?;
    }
    Ok(())
}

/// Whatever moment its end comes at, the command ends too, and says so.
fn an_ending_process() -> Outcome {
    compiled(&[])?;
    let whole = {
        let receiver = Receiver::start("recv threads=8")?;
        duration(&receiver)?
    };
    let rounds = times(40);
    for round in 0..rounds {
        let words = if round % 2 == 0 {
            "recv threads=8"
        } else {
            "poll workers=3 threads=3"
        };
        let receiver = Receiver::start(words)?;
        let command = replacing(&receiver)?.start()?;
        command.ends_within(moment(whole, round))?;
        receiver.kill()?;
        let code = command.end()?.code();
        ensure!(
            matches!(code, Some(0 | 1)),
            "round {round}: the command ended with {code:?}"
        );
    }
    none_in_the_kernel()
}

/// The sockets are as they were, but for the processor that had the last datagram.
pub(crate) fn no_difference() -> Outcome {
    if std::fs::read("before.skc")? == std::fs::read("after.skc")? {
        return Ok(());
    }
    let ran = sockcr(["diff", "before.skc", "after.skc"]).run()?;
    let mut lines = ran.text().lines().map(str::to_owned).collect::<Vec<_>>();
    lines.retain(|line| !line.starts_with("SO_INCOMING_CPU "));
    ensure!(lines.is_empty() && ran.errors.is_empty(), "{ran}");
    Ok(())
}

// Refused

fn compile_held() -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/held.c");
    run("cc", &["-O1", "-o", "held", source])
}

/// The program with a socket that is held by more than its descriptor: that, and its address.
fn held(how: &str) -> anyhow::Result<(Process, i32, SocketAddr)> {
    let mut held = Process::start(program("./held").arg(how))?;
    let facts = held.facts()?;
    let port = serde_json::from_value(facts["port"].clone())?;
    Ok((
        held,
        serde_json::from_value(facts["fd"].clone())?,
        local(port),
    ))
}

fn refused_by_name() -> Outcome {
    compile_held()?;
    for (how, why) in [
        ("ring", "io_uring"),
        ("request", "io_uring"),
        ("message", "SCM_RIGHTS"),
        ("map", "sockmap"),
        ("tunnel", "UDP_ENCAP"),
        ("traced", "is traced by process"),
        ("raw", "raw socket"),
        ("sent_epoll", "epoll"),
        ("full", "no free descriptor left"),
        ("asleep", "something that nothing interrupts"),
    ] {
        is_refused(how, why).with_context(|| how.to_owned())?;
    }
    Ok(())
}

/// The new one has its place already when the owner cannot have a descriptor of it: what came to it goes back.
fn given_back_under_traffic() -> Outcome {
    compiled(&[])?;
    let mut receiver = Receiver::start("recvmsg")?;
    receiver.run_at(FAST)?;
    let targets = receiver.targets()?;
    let target = targets.first().context("no socket")?;
    let pid = receiver.pid()?;
    let free = lowest_free(pid)?;
    // One is for the way by which it would come.
    for room in [0, 1] {
        let before = limit_descriptors(pid, free + room)?;
        for _ in 0..times(10) {
            refused(["replace", target])?.says(&["no free descriptor left"])?;
            ensure!(lowest_free(pid)? == free, "one was left there");
        }
        limit_descriptors(pid, before)?;
    }
    let reordered = replace(target)?;
    eprintln!("given back: {reordered} reordered at the end");
    // How many came out of order when they were put back, no report of an error says.
    receiver.stop()?.is_fine(u64::MAX)?;
    receiver.check()?.is_fine(u64::MAX)
}

fn lowest_free(pid: i32) -> anyhow::Result<u64> {
    let names = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    let names: Vec<_> = names
        .map(|one| Ok(one?.file_name()))
        .collect::<io::Result<_>>()?;
    let free = (0..).find(|fd| !names.iter().any(|name| *name == *fd.to_string()));
    free.context("none is free")
}

/// Answers how many it might have before.
fn limit_descriptors(pid: i32, count: u64) -> anyhow::Result<u64> {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let limit = Rlimit {
        current: Some(count),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(Pid::from_raw(pid), Resource::Nofile, limit)?;
    before.current.context("it was not limited")
}

/// In an epoll instance, where it stays under the number that it had.
fn by_a_closed_number() -> Outcome {
    compile_held()?;
    let (held, fd, address) = held("unlisted")?;
    let before = Still::now(&[held.pid()], &[fd])?;
    for _ in 0..times(5) {
        replace(&format!("{}:{fd}", held.pid()))?;
        before.is(&Still::now(&[held.pid()], &[fd])?)?;
        echoes(address)?;
    }
    Ok(())
}

/// By another thread than its first, so that one that was held is another one suddenly.
fn a_program_that_executes_another() -> Outcome {
    compile_held()?;
    let (held, fd, address) = held("executes")?;
    let target = format!("{}:{fd}", held.pid());
    let (mut replaced, mut between) = (0, 0);
    while replaced < times(60) {
        let ran = sockcr(["replace", &target]).run()?;
        // For a moment it has no thread that has descriptors.
        let whys = ["no such process", "is gone meanwhile"];
        match whys.iter().any(|why| ran.errors.contains(why)) {
            true => {
                ran.refused()?;
                between += 1;
            }
            false => {
                ran.done()?;
                replaced += 1;
            }
        }
        ensure!(between < replaced + 20, "has ended");
    }
    echoes(address)?;
    none_in_the_kernel()
}

/// Nothing of it is touched.
fn is_refused(how: &str, why: &str) -> Outcome {
    let (held, fd, address) = held(how)?;
    let target = format!("{}:{fd}", held.pid());
    let dump = |image| done(["dump", "--canonical", "-o", image, &target]).map(drop);
    dump("before.skc")?;
    let before = Still::now(&[held.pid()], &[fd])?;
    let link = || std::fs::read_link(format!("/proc/{}/fd/{fd}", held.pid()));
    let old = link()?;
    for _ in 0..times(3) {
        refused(["replace", &target])?.says(&[why])?;
        ensure!(link()? == old, "is another socket");
        before.is(&Still::now(&[held.pid()], &[fd])?)?;
        dump("after.skc")?;
        no_difference()?;
    }
    // Those do nothing with their socket.
    if !matches!(how, "request" | "raw" | "tunnel") {
        echoes(address)?;
    }
    none_in_the_kernel()
}

/// It takes no address, and no datagram, from sockets that have nothing to do with it.
fn beside_others() -> Outcome {
    let ours = |socket: &UdpSocket| format!("{}:{}", std::process::id(), socket.as_raw_fd());
    let one = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = one.local_addr()?.port();
    let other = shared(SocketAddr::from(([127, 0, 0, 2], port)), false)?;
    for taken in [
        format!("local=127.0.0.2:{port}"),
        format!("local=0.0.0.0:{port}"),
    ] {
        refused(["replace", &ours(&one), &taken])?.says(&["address"])?;
    }
    hears(&other)?;
    hears(&one)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 5008));
    for group in [false, true] {
        let (first, last) = (shared(address, group)?, shared(address, false)?);
        refused(["replace", &ours(&first)])?.says(&["place among those with its address"])?;
        hears(&last)?;
        replace(&ours(&last))?;
        hears(&last)?;
    }
    Ok(())
}

/// What is sent to its address comes to it.
fn hears(socket: &UdpSocket) -> Outcome {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    sender.send_to(b"?", socket.local_addr()?)?;
    Ok(socket.recv(&mut [0; 8]).map(drop)?)
}

/// A socket that shares its address, perhaps as a member of a group.
fn shared(address: SocketAddr, group: bool) -> anyhow::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
    let made = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&made, true)?;
    sockopt::set_socket_reuseport(&made, group)?;
    bind(&made, &address)?;
    Ok(made.into())
}

/// A user has SIGTERM sent to a process that is not his, which does not work, before and after; and the file
/// belongs to him.
fn in_the_name_of_a_user() -> Outcome {
    const SCRIPT: &str = "
import fcntl, json, os, socket, sys
os.setgid(65534)
os.setuid(65534)
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.bind(('127.0.0.1', 5006))
fcntl.fcntl(made, fcntl.F_SETOWN, int(sys.argv[1]))
fcntl.fcntl(made, 10, 15)
fcntl.fcntl(made, fcntl.F_SETFL, fcntl.fcntl(made, fcntl.F_GETFL) | os.O_ASYNC)
print(json.dumps({'fd': made.fileno()}), flush=True)
while True:
    data, peer = made.recvfrom(100)
    made.sendto(data, peer)
";
    let bystander = Process::start(program("sleep").arg("600"))?;
    let mut command = program("python3");
    command
        .args(["-c", SCRIPT])
        .arg(bystander.pid().to_string());
    let mut victim = Process::start(&mut command)?;
    let fd = victim.facts()?["fd"].as_u64().context("no descriptor")?;
    let target = format!("{}:{fd}", victim.pid());
    let asked = || -> Outcome {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send_to(b"?", (Ipv4Addr::LOCALHOST, 5006))?;
        socket.recv(&mut [0; 8]).map(drop)?;
        let name = format!("/proc/{}/status", bystander.pid());
        let status = std::fs::read_to_string(name)?;
        ensure!(status.contains("State:\tS"), "it got the signal: {status}");
        Ok(())
    };
    asked()?;
    for _ in 0..3 {
        replace(&target)?;
        asked()?;
    }
    done(["show", &target])?
        .prints(&[
            "O_ASYNC",
            &format!("signal 15 goes to process {}", bystander.pid()),
        ])
        .map(drop)
}

/// A program that reads when SIGIO comes, and at no other time: what comes at whatever moment is told.
fn driven_by_signals() -> Outcome {
    const SCRIPT: &str = "
import fcntl, json, os, signal, socket
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
made.bind(('127.0.0.1', 5006))
made.setblocking(False)

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
fcntl.fcntl(made, fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(made, fcntl.F_SETFL, fcntl.fcntl(made, fcntl.F_GETFL) | os.O_ASYNC)
print(json.dumps({'fd': made.fileno()}), flush=True)
while True:
    signal.sigwait({signal.SIGIO})
    try:
        while True:
            data, peer = made.recvfrom(100)
            made.sendto(data, peer)
    except BlockingIOError:
        pass
";
    let mut victim = Process::start(program("python3").args(["-c", SCRIPT]))?;
    let fd = victim.facts()?["fd"].as_u64().context("no descriptor")?;
    let target = format!("{}:{fd}", victim.pid());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // One question at a time: nothing that comes later has it read.
        let asking = scope.spawn(|| -> anyhow::Result<u32> {
            let mut asked = 0;
            while !done.load(Ordering::Relaxed) {
                echoes(local(5006))?;
                asked += 1;
            }
            Ok(asked)
        });
        let replaced = (0..times(20)).try_for_each(|_| replace(&target).map(drop));
        done.store(true, Ordering::Relaxed);
        let asked = asking.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        eprintln!("{asked} questions answered");
        replaced
    })
}
