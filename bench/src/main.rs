//! What sockcr costs, each figure beside its floor in the same run.
//!
//! A floor is the bare system calls that the work cannot do without. Times are user and system
//! time of this process, the best of several rounds.
#![forbid(unsafe_code)]

mod queue;
mod replace;
mod service;
mod soak;

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use rustix::time::{ClockId, clock_gettime};
use sockcr::option::{Access, Row, Value};
use sockcr::{Checkpoint, RestoreOptions, image, kernel, option, sandbox};
use sockcr_sys::sockopt;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

const ROUNDS: usize = 15;
const REPEAT: usize = 2_000;
const PORT: u16 = 5353;
const MANY: usize = 10_000;

fn main() -> anyhow::Result<()> {
    let is_asked_for = |name: &str| std::env::args().skip(1).any(|argument| argument == name);
    if is_asked_for(replace::OWNER) {
        return replace::own();
    }
    if is_asked_for(service::SERVE) {
        return service::serve();
    }
    if is_asked_for(service::ECHO) {
        return service::echo();
    }
    sandbox::enter()?;
    match kernel::reader() {
        Ok(_) => println!("with BPF"),
        Err(why) => println!("without BPF: {why}"),
    }
    println!("{:44} {:>11} {:>11} {:>7}", "", "sockcr", "floor", "times");
    if is_asked_for("queue") {
        return queue::all();
    }
    if is_asked_for("replace") {
        return replace::all();
    }
    if is_asked_for("soak") {
        return soak::all();
    }
    if is_asked_for("service") {
        return service::all();
    }
    for (name, change) in [("fresh socket", false), ("socket of a server", true)] {
        let socket = prepared(change)?;
        dump(name, &socket)?;
        let checkpoint = Checkpoint::dump(&socket)?;
        drop(socket);
        restore(name, &checkpoint)?;
        codec(name, &checkpoint)?;
    }
    many()?;
    queue::all()?;
    replace::all()?;
    service::all()?;
    cold_start()
}

/// A bound socket, with the settings that servers have or with none.
fn prepared(change: bool) -> anyhow::Result<UdpSocket> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let options = [
        ("SO_REUSEADDR", "on"),
        ("SO_RCVBUF", "400000"),
        ("SO_SNDBUF", "400000"),
        ("IP_PKTINFO", "on"),
        ("IP_MTU_DISCOVER", "IP_PMTUDISC_DO"),
        ("IP_TOS", "16"),
    ];
    for (name, text) in options.iter().filter(|_| change) {
        option::write(&socket, name, text)?;
    }
    bind(&socket, &SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT))?;
    Ok(socket.into())
}

fn dump(name: &str, socket: &UdpSocket) -> anyhow::Result<()> {
    let calls = readings();
    let floor = best(REPEAT, || read_all(socket, &calls))?;
    let ours = best(REPEAT, || {
        drop(Checkpoint::dump(socket)?);
        Ok(())
    })?;
    let what = format!("dump {name}: {} getsockopt calls", calls.len() + 1);
    print(&what, ours, floor);
    Ok(())
}

/// (level, number, length) of every getsockopt call that a dump makes.
fn readings() -> Vec<(i32, u16, usize)> {
    let hidden = kernel::reader().is_ok();
    let asked = |row: &&Row| match row.access {
        Access::Carried(_) => !(hidden && row.hidden.is_some()),
        _ => matches!(row.name, "SO_DOMAIN" | "SO_TYPE" | "SO_PROTOCOL"),
    };
    let rows = sockcr::protocol::ALL[0].rows().filter(asked);
    rows.map(|row| (row.level.number(), row.number, row.kind.size()))
        .collect()
}

fn read_all(socket: &UdpSocket, calls: &[(i32, u16, usize)]) -> anyhow::Result<()> {
    let mut buffer = [0; 64];
    for (level, number, length) in calls {
        // Some are not answered by every kernel; the call is made all the same.
        let _ = sockopt::get(
            socket.as_fd(),
            *level,
            (*number).into(),
            &mut buffer[..*length],
        );
    }
    sockopt::filter(socket.as_fd())?;
    Ok(())
}

fn restore(name: &str, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let writes = writings(checkpoint);
    let options = RestoreOptions::default();
    let floor = best(REPEAT, || {
        drop(bare(checkpoint, &writes)?);
        Ok(())
    })?;
    let ours = best(REPEAT, || {
        drop(checkpoint.restore(&options)?);
        Ok(())
    })?;
    let what = format!("restore {name}: socket, {} setsockopt, bind", writes.len());
    print(&what, ours, floor);
    Ok(())
}

/// (level, number, value) of what differs from a fresh socket, as a program would write it.
fn writings(checkpoint: &Checkpoint) -> Vec<(i32, u16, i32)> {
    let Ok(fresh) = Checkpoint::fresh(checkpoint.protocol) else {
        return Vec::new();
    };
    let mut writes = Vec::new();
    for (row, value) in checkpoint.options.iter() {
        if fresh.options.get(row.name) == Some(value) {
            continue;
        }
        if let Value::Int(number) = value {
            let (number, half) = (*number as i32, *number as i32 / 2);
            match row.force {
                Some(force) => writes.push((row.level.number(), force, half)),
                None => writes.push((row.level.number(), row.number, number)),
            }
        }
    }
    writes
}

fn bare(checkpoint: &Checkpoint, writes: &[(i32, u16, i32)]) -> anyhow::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    for (level, number, value) in writes {
        sockopt::set(
            socket.as_fd(),
            *level,
            (*number).into(),
            &value.to_ne_bytes(),
        )?;
    }
    bind(&socket, &checkpoint.endpoint.local)?;
    Ok(socket)
}

fn codec(name: &str, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    let bytes = checkpoint.to_bytes()?;
    let write = best(REPEAT, || {
        drop(checkpoint.to_bytes()?);
        Ok(())
    })?;
    let read = best(REPEAT, || {
        drop(Checkpoint::from_bytes(&bytes)?);
        Ok(())
    })?;
    println!(
        "{:44} {write:>8.2} µs",
        format!("encode {name}: {} bytes", bytes.len())
    );
    println!("{:44} {read:>8.2} µs", format!("decode {name}"));
    Ok(())
}

/// Many sockets: nothing may be repeated for each that can be done once.
fn many() -> anyhow::Result<()> {
    let mut sockets = Vec::with_capacity(MANY);
    for port in 10_000..10_000 + MANY as u16 {
        sockets.push(UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?);
    }
    let calls = readings();
    let floor = best(1, || sockets.iter().try_for_each(|s| read_all(s, &calls)))?;
    let mut checkpoints = Vec::new();
    let ours = best(1, || {
        let dumped: Result<Vec<Checkpoint>, _> = sockets.iter().map(Checkpoint::dump).collect();
        checkpoints = dumped?;
        Ok(())
    })?;
    print(&format!("dump {MANY} sockets of one process"), ours, floor);
    let bytes = image::encode(&checkpoints)?;
    println!("{:44} {:>8} B each", "image of them", bytes.len() / MANY);
    drop(sockets);
    let began = Instant::now();
    let restored = sockcr::restore_all(&checkpoints, &RestoreOptions::default())?;
    let took = began.elapsed().as_secs_f64() * 1e6 / restored.len() as f64;
    println!("{:44} {took:>8.2} µs each, by the clock", "restore them");
    Ok(())
}

/// The command from a cold start, by the clock; it must have been built beside this program.
fn cold_start() -> anyhow::Result<()> {
    let command = std::env::current_exe()?.with_file_name("sockcr");
    if !command.exists() {
        println!("sockcr show, cold: not measured: run `cargo build --release` first");
        return Ok(());
    }
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let target = format!(
        "{}:{}",
        std::process::id(),
        std::os::fd::AsRawFd::as_raw_fd(&socket)
    );
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let output = Command::new(&command).args(["show", &target]).output();
        let output = output.context("run sockcr show")?;
        anyhow::ensure!(output.status.success(), "sockcr show failed");
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!(
        "{:44} {:>8.2} ms, median by the clock",
        "sockcr show PID:FD, cold",
        times[ROUNDS / 2]
    );
    Ok(())
}

/// User and system time of one run in microseconds: the best of several rounds.
fn best(repeat: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..ROUNDS {
        let began = cpu_time();
        for _ in 0..repeat {
            work()?;
        }
        best = best.min((cpu_time() - began) / repeat as f64);
    }
    Ok(best)
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn print(what: &str, ours: f64, floor: f64) {
    println!(
        "{what:44} {ours:>8.2} µs {floor:>8.2} µs {:>7.2}",
        ours / floor
    );
}
