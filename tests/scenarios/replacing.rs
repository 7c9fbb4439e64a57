//! `replace`: sockets of programs that run, know nothing of it, and lose nothing.
//!
//! SOCKCR_REPLACES and SOCKCR_KILLS ask for more than the suite has time for.

use anyhow::{Context, ensure};
use rustix::fd::AsRawFd;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::process::Signal;
use serde_json::Value as Json;
use sockcr_scenarios::command::{self, Sockcr, done, refused, sockcr};
use sockcr_scenarios::link::Neighbour;
use sockcr_scenarios::load::{Echo, Kind, Lines, Load};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Orphan, Process, children, program, reaped, run};
use sockcr_scenarios::receiver::{Receiver, compiled};
use sockcr_scenarios::remains::{Still, none_in_the_kernel};
use sockcr_scenarios::socket::{echoes, local};
use sockcr_scenarios::takeover::{Socket, socket_at, sockets};
use sockcr_scenarios::{Outcome, Scenario, dns, wait};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ROOT: &[Need] = &[Need::Root];
const CC: &[Need] = &[Need::Root, Need::Program("cc")];
const CC_IP: &[Need] = &[Need::Root, Need::Program("cc"), Need::Program("ip")];
const PYTHON: &[Need] = &[Need::Root, Need::Program("python3")];
const GO: &[Need] = &[Need::Root, Need::Program("go")];
const DNSMASQ: &[Need] = &[Need::Root, Need::Program("dnsmasq")];
const UNBOUND: &[Need] = &[Need::Root, Need::Program("unbound")];
const SOCAT: &[Need] = &[Need::Root, Need::Program("socat")];
const NEIGHBOUR: &[Need] = &[
    Need::Root,
    Need::Program("dnsmasq"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const OPENVPN: &[Need] = &[
    Need::Root,
    Need::Program("openvpn"),
    Need::Program("openssl"),
    Need::Program("ip"),
    Need::Program("nsenter"),
];
const MOSH: &[Need] = &[
    Need::Root,
    Need::Program("mosh-server"),
    Need::Program("mosh-client"),
    Need::Program("script"),
    Need::Program("setpriv"),
];

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
    Scenario::new("replacing::killed_when_idle", CC, killed_when_idle),
    Scenario::new("replacing::killed_under_load", CC, killed_under_load),
    Scenario::new("replacing::dnsmasq_answers", DNSMASQ, dnsmasq_answers),
    Scenario::new("replacing::unbound_answers", UNBOUND, unbound_answers),
    Scenario::new("replacing::socat_hears_all", SOCAT, socat_hears_all),
    Scenario::new(
        "replacing::openvpn_keeps_going",
        OPENVPN,
        openvpn_keeps_going,
    ),
    Scenario::new("replacing::mosh_keeps_going", MOSH, mosh_keeps_going),
    Scenario::new("replacing::dnsmasq_moves", NEIGHBOUR, dnsmasq_moves),
    Scenario::new("replacing::by_a_closed_number", CC, by_a_closed_number),
    Scenario::new("replacing::refused_by_name", CC, refused_by_name),
    Scenario::new("replacing::beside_others", ROOT, beside_others),
    Scenario::new("replacing::driven_by_signals", PYTHON, driven_by_signals),
    Scenario::new(
        "replacing::in_the_name_of_a_user",
        PYTHON,
        in_the_name_of_a_user,
    ),
];

/// How often, unless somebody asks for more.
fn times(usual: u32) -> u32 {
    asked_for("SOCKCR_REPLACES").unwrap_or(usual)
}

fn asked_for(name: &str) -> Option<u32> {
    std::env::var(name).ok()?.parse().ok()
}

/// Replaces a socket; says how many datagrams came to be out of order.
fn replace(target: &str) -> anyhow::Result<u64> {
    replace_with(target, &[])
}

fn replace_with(target: &str, more: &[&str]) -> anyhow::Result<u64> {
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

const RATE: u32 = 2_000;

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

fn replace_each(targets: &[String]) -> Outcome {
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
fn no_difference() -> Outcome {
    if std::fs::read("before.skc")? == std::fs::read("after.skc")? {
        return Ok(());
    }
    let ran = sockcr(["diff", "before.skc", "after.skc"]).run()?;
    let mut lines = ran.text().lines().map(str::to_owned).collect::<Vec<_>>();
    lines.retain(|line| !line.starts_with("SO_INCOMING_CPU "));
    ensure!(lines.is_empty() && ran.errors.is_empty(), "{ran}");
    Ok(())
}

// Killed

/// The command that replaces its first socket.
fn replacing(receiver: &Receiver) -> anyhow::Result<Sockcr> {
    let targets = receiver.targets()?;
    let target = targets.first().context("no socket")?;
    Ok(sockcr(["replace", target]))
}

fn duration(receiver: &Receiver) -> anyhow::Result<Duration> {
    let targets = receiver.targets()?;
    let target = targets.first().context("no socket")?;
    command::duration(&["replace", target])
}

/// Moments that are spread over the whole, and a little more, however many are asked for.
fn moment(whole: Duration, round: u32) -> Duration {
    whole.mul_f64((f64::from(round) * 0.618_033_988_75).fract() * 1.2)
}

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    /// The command.
    Command,
    /// The process that works for it, and which nobody kills who kills the command.
    Worker,
}

/// A worker that is killed between having taken the place and having made up for what came to the old socket meanwhile
/// takes that with it: what comes in so long a time.
const MOMENT: Duration = Duration::from_millis(20);

/// Whatever moment `kill -9` comes at, the program has the old socket or the new one, and nothing
/// besides. `rate` is that of the datagrams that come meanwhile.
fn killed(whom: Whom, words: &str, rate: u32, usual: u32) -> Outcome {
    let mut receiver = Receiver::start(words)?;
    receiver.check()?.is_fine(0)?;
    receiver.run_at(rate)?;
    let whole = duration(&receiver)?;
    // What the last of them did not report.
    receiver.stop()?.is_fine(u64::MAX)?;
    let targets = receiver.targets()?;
    let dump = |image: &str| -> Outcome {
        let words = ["dump", "--canonical", "-o", image];
        let targets = targets.iter().map(String::as_str);
        done(words.into_iter().chain(targets))?.quiet().map(drop)
    };
    dump("before.skc")?;
    let before = receiver.still()?;
    let rounds = asked_for("SOCKCR_KILLS").unwrap_or(usual);
    let (mut cut, mut new, mut lost) = (0, 0, 0);
    for round in 0..rounds {
        let mut tell = |receiver: &mut Receiver| -> anyhow::Result<(bool, bool)> {
            let old = inode(receiver)?;
            receiver.run_at(rate)?;
            let known = children(std::process::id().cast_signed())?;
            let process = replacing(receiver)?.start()?;
            let cut = !process.ends_within(moment(whole, round))?;
            match whom {
                Whom::Command => process.kill().map(drop)?,
                Whom::Worker => kill_worker(process)?,
            }
            wait::until("the end of what outlives the command", || reaped(&known))?;
            // Nobody is left to report what came to be out of order.
            receiver.stop()?.is_fine_but_for_lost(u64::MAX)?;
            let told = receiver.check()?;
            told.is_fine_but_for_lost(u64::MAX)?;
            let more = told.lost().and_then(|all| all.checked_sub(lost));
            let more = more.with_context(|| told.all().to_string())?;
            let few = match whom {
                Whom::Command => 0,
                Whom::Worker => u64::from(rate) * MOMENT.as_millis() as u64 / 1000,
            };
            ensure!(more <= few, "lost {more}: {}", told.all());
            lost += more;
            before.is(&receiver.still()?)?;
            dump("after.skc")?;
            no_difference()?;
            Ok((cut, inode(receiver)? != old))
        };
        let told = tell(&mut receiver);
        let (was_cut, is_new) = told.with_context(|| format!("round {round}: {words}"))?;
        cut += u32::from(was_cut);
        new += u32::from(is_new);
    }
    eprintln!(
        "{whom:?}, {words}: killed {cut} times of {rounds}, {new} times the new socket, {lost} lost"
    );
    ensure!(cut > rounds / 10, "was killed only {cut} times of {rounds}");
    none_in_the_kernel()
}

/// Kills the worker of a command, if it has one now; the command ends by itself then.
fn kill_worker(process: Process) -> Outcome {
    let workers = children(process.pid())?;
    for worker in workers {
        let worker = rustix::process::Pid::from_raw(worker).context("no process")?;
        match rustix::process::kill_process(worker, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).context("kill the worker"),
        }
    }
    process.end().map(drop)
}

fn inode(receiver: &Receiver) -> anyhow::Result<String> {
    let fd = receiver.fds.first().context("no descriptor")?;
    let link = std::fs::read_link(format!("/proc/{}/fd/{fd}", receiver.pid()?))?;
    Ok(link.to_string_lossy().into_owned())
}

fn killed_when_idle() -> Outcome {
    compiled(&[])?;
    for words in [
        "recv threads=2 signals",
        "edge two threads=2",
        "disarmed",
        "poll workers=3 threads=2",
        "recv members=3 by_program flows=3",
    ] {
        killed(Whom::Command, words, 0, 10)?;
        killed(Whom::Worker, words, 0, 10)?;
    }
    Ok(())
}

fn killed_under_load() -> Outcome {
    compiled(&[])?;
    for words in [
        "recvmsg any",
        "recv_timed connected signals",
        "epoll_wait tables threads=3",
        "recv group",
        "nested ipv6",
    ] {
        killed(Whom::Command, words, 20_000, 10)?;
        killed(Whom::Worker, words, 20_000, 10)?;
    }
    Ok(())
}

// Daemons

const QUESTIONS: u32 = 5_000;

fn dnsmasq(addresses: &[&str]) -> anyhow::Result<Process> {
    let mut command = program("dnsmasq");
    command.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--port=5353",
    ]);
    if !addresses.is_empty() {
        command.arg("--bind-interfaces");
    }
    command.args(
        addresses
            .iter()
            .map(|address| format!("--listen-address={address}")),
    );
    command.arg(format!("--address=/{}/{}", dns::NAME, dns::ADDRESS));
    let daemon = Process::start(&mut command)?;
    dns::ask(local(5353))?;
    Ok(daemon)
}

/// Replaces sockets of a daemon while it is asked there.
fn answers(daemon: &Process, places: &[(Socket, SocketAddr)], usual: u32) -> Outcome {
    let pids = [daemon.pid()];
    let before = sockets(daemon)?.len();
    let loads = places
        .iter()
        .map(|(_, server)| Load::start(*server, Kind::Dns, QUESTIONS));
    let loads: Vec<Load> = loads.collect();
    let fds = |socket: &Socket| -> anyhow::Result<i32> {
        let fd = socket.target.rsplit_once(':').context("no descriptor")?.1;
        Ok(fd.parse()?)
    };
    let fds: anyhow::Result<Vec<i32>> = places.iter().map(|(socket, _)| fds(socket)).collect();
    let fds = fds?;
    for _ in 0..times(usual) {
        for (socket, _) in places {
            replace(&socket.target)?;
        }
    }
    let mut all = Vec::new();
    for load in loads {
        let answers = load.stop()?;
        eprintln!("{answers:?}");
        all.push(answers);
    }
    for (answers, (socket, _)) in all.into_iter().zip(places) {
        answers.are_all(100).with_context(|| socket.local.clone())?;
    }
    ensure!(
        sockets(daemon)?.len() == before,
        "has other sockets: {:?}",
        sockets(daemon)?
    );
    let still = Still::now(&pids, &fds)?;
    for (socket, _) in places {
        replace(&socket.target)?;
    }
    still.is(&Still::now(&pids, &fds)?)
}

fn dnsmasq_answers() -> Outcome {
    let daemon = dnsmasq(&["127.0.0.1", "127.0.0.2"])?;
    let at = |place: &str| -> anyhow::Result<(Socket, SocketAddr)> {
        Ok((socket_at(&daemon, place)?, place.parse()?))
    };
    answers(&daemon, &[at("127.0.0.1:5353")?, at("127.0.0.2:5353")?], 15)?;
    drop(daemon);
    let daemon = dnsmasq(&[])?;
    let ipv4 = (socket_at(&daemon, "0.0.0.0:5353")?, local(5353));
    let ipv6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 5353);
    answers(
        &daemon,
        &[ipv4, (socket_at(&daemon, "[::]:5353")?, ipv6)],
        15,
    )
}

fn unbound_answers() -> Outcome {
    let folder = std::env::current_dir()?;
    let configuration = format!(
        "server:
  interface: 127.0.0.1
  interface: ::1
  port: 5353
  access-control: 127.0.0.0/8 allow
  username: \"\"
  chroot: \"\"
  directory: {folder:?}
  pidfile: \"\"
  use-syslog: no
  num-threads: 2
  module-config: iterator
  local-zone: \"{name}.\" redirect
  local-data: \"{name}. A {address}\"
remote-control:
  control-enable: no
",
        name = dns::NAME,
        address = dns::ADDRESS
    );
    std::fs::write("unbound.conf", configuration)?;
    let mut command = program("unbound");
    command.args(["-d", "-c"]).arg(folder.join("unbound.conf"));
    let daemon = Process::start(&mut command)?;
    dns::ask(local(5353))?;
    // Its threads share a port, so that there are several sockets there.
    let mut places = Vec::new();
    for socket in sockets(&daemon)? {
        if let Ok(at) = socket.local.parse::<SocketAddr>() {
            places.push((socket, at));
        }
    }
    ensure!(places.len() >= 2, "{:?}", sockets(&daemon)?);
    answers(&daemon, &places, 10)
}

/// A program that writes down what comes to a group.
fn socat_hears_all() -> Outcome {
    const PORT: u16 = 7900;
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let from = format!("UDP4-RECV:{PORT},rcvbuf=4000000,ip-add-membership={group}:127.0.0.1");
    let receiver = Process::start(program("socat").args(["-u", &from, "CREATE:heard"]))?;
    let place = format!("0.0.0.0:{PORT}");
    let target = wait::until("its socket", || {
        Ok(socket_at(&receiver, &place)
            .ok()
            .map(|socket| socket.target))
    })?;
    let sender = UdpSocket::bind(local(0))?;
    rustix::net::sockopt::set_ip_multicast_if(&sender, &Ipv4Addr::LOCALHOST)?;
    let lines = Lines::start(sender, SocketAddr::new(group.into(), PORT), QUESTIONS);
    let mut reordered = 0;
    for _ in 0..times(20) {
        reordered += replace(&target)?;
    }
    let sent = lines.stop()?;
    let due: String = (0..sent).map(Lines::line).collect();
    wait::until("all that was sent", || {
        Ok((std::fs::metadata("heard")?.len() >= due.len() as u64).then_some(()))
    })?;
    let heard = std::fs::read_to_string("heard")?;
    let mut sorted: Vec<&str> = heard.lines().collect();
    let disordered = sorted.windows(2).filter(|pair| pair[0] > pair[1]).count() as u64;
    sorted.sort_unstable();
    ensure!(
        sorted.iter().eq(&due.lines().collect::<Vec<_>>()),
        "heard {} of {sent}",
        sorted.len()
    );
    ensure!(
        disordered <= reordered,
        "{disordered} out of order, {reordered} told"
    );
    eprintln!("heard {sent}, {reordered} reordered");
    Ok(())
}

/// A tunnel between two network namespaces, through which questions go and their answers come back.
fn openvpn_keeps_going() -> Outcome {
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 2);
    let mut neighbour = Neighbour::start(1)?;
    neighbour.link("v0", HERE, &[Ipv4Addr::new(10, 1, 0, 2)])?;
    let (ours, theirs) = (certificate("server")?, certificate("client")?);
    let here = HERE.to_string();
    let mut server = openvpn(program("openvpn"), "server", &theirs)?;
    server.args(["--local", &here, "--port", "1194", "--dh", "none"]);
    server.args(["--server", "10.8.0.0", "255.255.255.0"]);
    server.args(["--topology", "subnet", "--keepalive", "1", "10"]);
    let server = Process::start(&mut server)?;
    says("server.log", "Initialization Sequence Completed")?;
    let mut client = openvpn(neighbour.program("openvpn"), "client", &ours)?;
    client.args(["--client", "--remote", &here, "1194", "--nobind"]);
    let client = Process::start(&mut client)?;
    // The last line of each that is due to the session.
    says("client.log", "Protocol options: ")?;
    says("server.log", "Protocol options: ")?;
    let inside = SocketAddr::new(INSIDE.into(), 7);
    let echo = Echo::start(neighbour.socket(inside)?);
    echoes(inside)?;
    let logs = || -> anyhow::Result<String> {
        Ok(std::fs::read_to_string("server.log")? + &std::fs::read_to_string("client.log")?)
    };
    let before = logs()?;
    let targets = [&server, &client].map(|end| -> anyhow::Result<String> {
        let [socket] = &sockets(end)?[..] else {
            anyhow::bail!("not one socket: {:?}", sockets(end)?)
        };
        Ok(socket.target.clone())
    });
    let targets = targets.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let load = Load::start(inside, Kind::Echo, RATE);
    for _ in 0..times(20) {
        replace_each(&targets)?;
    }
    let answers = load.stop()?;
    eprintln!("{answers:?}");
    answers.are_all(100)?;
    echo.stop()?;
    // They tell of each error, and of each session that begins or ends.
    let after = logs()?;
    ensure!(before == after, "{after}");
    Ok(())
}

/// One end of a tunnel, that knows the other one by its fingerprint.
fn openvpn(mut command: Command, name: &str, peer: &str) -> anyhow::Result<Command> {
    command.args(["--dev", "tun0", "--proto", "udp4", "--disable-dco"]);
    command.args(["--cert", &format!("{name}.crt")]);
    command.args(["--key", &format!("{name}.key")]);
    command.args(["--peer-fingerprint", peer, "--verb", "3"]);
    command.args(["--log", &format!("{name}.log")]);
    if !Path::new("/dev/net/tun").exists() {
        let node = std::env::current_dir()?.join("tun");
        if !node.exists() {
            let kind = FileType::CharacterDevice;
            mknodat(CWD, &node, kind, Mode::RUSR | Mode::WUSR, makedev(10, 200))?;
        }
        command.arg("--dev-node").arg(node);
    }
    Ok(command)
}

/// Makes a key and a certificate; says its fingerprint.
fn certificate(name: &str) -> anyhow::Result<String> {
    let (key, file) = (format!("{name}.key"), format!("{name}.crt"));
    let subject = format!("/CN={name}");
    let curve = "ec_paramgen_curve:prime256v1";
    let new = ["req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes"];
    let to = ["-subj", &subject, "-keyout", &key, "-out", &file];
    run("openssl", &[&new[..], &to].concat())?;
    let mut asked = program("openssl");
    asked.args(["x509", "-in", &file, "-noout", "-fingerprint", "-sha256"]);
    let told = String::from_utf8(asked.output()?.stdout)?;
    let print = told.trim().rsplit_once('=').context("no fingerprint")?.1;
    Ok(print.to_owned())
}

fn says(log: &str, words: &str) -> Outcome {
    let said = wait::until(words, || {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        Ok(text.contains(words).then_some(()))
    });
    said.with_context(|| std::fs::read_to_string(log).unwrap_or_default())
}

/// A session of mosh, where somebody types lines and sees them come back.
fn mosh_keeps_going() -> Outcome {
    // It writes down each line, and shows it alone.
    const SESSION: &str = r"
        stty -echo
        printf '\033[2J\033[Hready'
        while read -r line; do
            printf '%s\n' $line >>heard
            printf '\033[2J\033[H%s' $line
            [ $line = end ] && break
        done";
    let session = format!("cd {:?}; {SESSION}", std::env::current_dir()?);
    let mut server = program("mosh-server");
    server.args(["new", "-i", "127.0.0.1", "-p", "60001", "--"]);
    server.args(["sh", "-c", &session]).env("LC_ALL", "C.UTF-8");
    // Should nobody be left to end it.
    server.env("MOSH_SERVER_NETWORK_TMOUT", "60");
    let (server, told) = Orphan::left_by(&mut server)?;
    let key = told.split("MOSH CONNECT 60001 ").nth(1);
    let key = key.and_then(|key| key.lines().next());
    let mut client = program("script");
    client.args(["--quiet", "--return", "--flush", "--command"]);
    // With `script`, should that end first: it would wait for the server for a while.
    let ending = "exec setpriv --pdeathsig KILL";
    client.arg(format!(
        "stty rows 24 cols 80; {ending} mosh-client 127.0.0.1 60001"
    ));
    client.arg("/dev/null");
    client.envs([("LC_ALL", "C.UTF-8"), ("TERM", "xterm")]);
    client.env("MOSH_KEY", key.with_context(|| told.clone())?);
    // What it shows has come back.
    client.env("MOSH_PREDICTION_DISPLAY", "never");
    let mut client = Process::start(&mut client)?;
    client.shows("ready")?;
    let mut lines = 0;
    std::thread::scope(|scope| {
        let replace = || replace("udp:127.0.0.1:60001").map(drop);
        let replacing = scope.spawn(move || (0..times(20)).try_for_each(|_| replace()));
        while !replacing.is_finished() || lines < 10 {
            client.tell(&shown(lines))?;
            client.shows(&shown(lines))?;
            lines += 1;
        }
        let ended = replacing.join();
        ended.unwrap_or_else(|_| anyhow::bail!("who replaces ended"))
    })?;
    // What is lost would be sent again, and nobody would notice.
    for name in ["NoPorts", "InErrors", "RcvbufErrors"] {
        ensure!(counted(name)? == 0, "{name}: {}", counted(name)?);
    }
    client.tell("end")?;
    let ended = client.end()?;
    ensure!(ended.success(), "the client: {ended}");
    server.end()?;
    let due: String = (0..lines).map(|line| shown(line) + "\n").collect();
    ensure!(
        std::fs::read_to_string("heard")? == due + "end\n",
        "heard something else"
    );
    eprintln!("{lines} lines");
    Ok(())
}

/// No two of these in a row have a letter in common: what is on the screen alike is not sent.
fn shown(line: u32) -> String {
    let digits = format!("{line:09}");
    let letter = |digit: u8| {
        char::from(if line.is_multiple_of(2) {
            digit
        } else {
            digit - b'0' + b'a'
        })
    };
    digits.bytes().map(letter).collect()
}

/// What the kernel has counted of UDP here under this name.
fn counted(name: &str) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp")?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = rows.next().zip(rows.next()).context("no UDP")?;
    let mut both = names.split(' ').zip(values.split(' '));
    let found = both.find(|(have, _)| *have == name);
    Ok(found.with_context(|| name.to_owned())?.1.parse()?)
}

/// From loopback to an address of another network namespace.
fn dnsmasq_moves() -> Outcome {
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);
    const THERE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
    let neighbour = Neighbour::start(1)?;
    neighbour.link("v0", HERE, &[THERE])?;
    let daemon = dnsmasq(&["127.0.0.1", "127.0.0.2"])?;
    let socket = socket_at(&daemon, "127.0.0.1:5353")?;
    let namespace = format!("/proc/{}/ns/net", neighbour.pid());
    let map = format!("127.0.0.1={THERE}");
    replace_with(&socket.target, &["--map", &map, "--netns", &namespace])?;
    dns::ask(SocketAddr::new(THERE.into(), 5353))?;
    dns::ask("127.0.0.2:5353".parse()?)?;
    let again = UdpSocket::bind(local(5353)).context("is still at the old address")?;
    drop(again);
    // And back.
    let namespace = format!("/proc/{}/ns/net", std::process::id());
    let map = format!("{THERE}=127.0.0.1");
    replace_with(&socket.target, &["--map", &map, "--netns", &namespace])?;
    dns::ask(local(5353))
}

// Refused

fn refused_by_name() -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/held.c");
    run("cc", &["-O1", "-o", "held", source])?;
    for (how, why) in [
        ("ring", "io_uring"),
        ("request", "io_uring"),
        ("message", "SCM_RIGHTS"),
        ("map", "sockmap"),
        ("tunnel", "UDP_ENCAP"),
        ("traced", "is traced by process"),
        ("raw", "raw socket"),
        ("sent_epoll", "epoll"),
    ] {
        is_refused(how, why).with_context(|| how.to_owned())?;
    }
    Ok(())
}

/// In an epoll instance, where it stays under the number that it had.
fn by_a_closed_number() -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/held.c");
    run("cc", &["-O1", "-o", "held", source])?;
    let mut held = Process::start(program("./held").arg("unlisted"))?;
    let facts = held.facts()?;
    let fd: i32 = serde_json::from_value(facts["fd"].clone())?;
    let before = Still::now(&[held.pid()], &[fd])?;
    for _ in 0..times(5) {
        replace(&format!("{}:{fd}", held.pid()))?;
        before.is(&Still::now(&[held.pid()], &[fd])?)?;
        echoes(local(serde_json::from_value(facts["port"].clone())?))?;
    }
    Ok(())
}

/// Nothing of it is touched.
fn is_refused(how: &str, why: &str) -> Outcome {
    let mut held = Process::start(program("./held").arg(how))?;
    let facts = held.facts()?;
    let fd: i32 = serde_json::from_value(facts["fd"].clone())?;
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
        echoes(local(serde_json::from_value(facts["port"].clone())?))?;
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
