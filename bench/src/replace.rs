//! A socket replaced in a process that runs: how long that stands still, and how long nobody has the address.
//!
//! By the clock: it waits for another process. The floors are what no replacement can do without: stopping a
//! process, one system call in it, letting it go; and, for an address, close, socket, bind. The first one is measured twice:
//! with a processor that is awake beside, as it is while a socket is replaced, and without.

use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use sockcr::replace::{self, ReplaceOptions};
use sockcr::{Target, find, kernel, option};
use sockcr_sys::visit::{self, Others};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The argument that makes this program the one whose socket is replaced.
pub const OWNER: &str = "--owner";
/// How many datagrams wait, and how many times it is done.
const LOADS: [(usize, usize); 3] = [(0, 1_000), (100, 1_000), (10_000, 1_000)];
const SIZE: usize = 100;
/// The first times are not counted: the caches are cold.
const WARM: usize = 5;
const ROOM: &str = "100000000";

pub fn all() -> anyhow::Result<()> {
    if let Err(why) = kernel::reader() {
        println!("replace: not measured: {why}");
        return Ok(());
    }
    println!(
        "replace, by the clock:{:29} {:>11} {:>11}",
        "", "median", "99 of 100"
    );
    for (waiting, rounds) in LOADS {
        measured(waiting, rounds)?;
    }
    Ok(())
}

/// Has a socket, and does nothing until its standard input is closed.
pub fn own() -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    option::write(&socket, "SO_RCVBUF", ROOM)?;
    println!("{} {}", socket.as_raw_fd(), socket.local_addr()?.port());
    std::io::stdout().flush()?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

struct Owner {
    process: Child,
    target: Target,
    address: SocketAddr,
}

impl Owner {
    fn start() -> anyhow::Result<Owner> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = command
            .arg(OWNER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = process.stdout.as_mut().context("no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let (fd, port) = line.trim().split_once(' ').context("no facts")?;
        Ok(Owner {
            target: format!("{}:{fd}", process.id()).parse()?,
            address: (Ipv4Addr::LOCALHOST, port.parse::<u16>()?).into(),
            process,
        })
    }

    fn fill(&self, count: usize) -> anyhow::Result<()> {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        for _ in 0..count {
            sender.send_to(&[0x5a; SIZE], self.address)?;
        }
        Ok(())
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What was measured, in microseconds.
#[derive(Clone, Default)]
struct Times(Vec<f64>);

impl Times {
    fn add(&mut self, time: Duration) {
        self.0.push(time.as_secs_f64() * 1e6);
    }

    /// The median, and what one of a hundred exceeds.
    fn both(&mut self) -> [f64; 2] {
        self.0.sort_by(f64::total_cmp);
        [0.5, 0.99].map(|part| {
            let place = (self.0.len() as f64 * part) as usize;
            self.0.get(place).copied().unwrap_or(f64::NAN)
        })
    }
}

fn print(what: &str, mut ours: Times, floor: Option<Times>) {
    let [median, most] = ours.both();
    match floor.map(|mut floor| floor.both()) {
        Some([least, high]) => {
            println!(
                "{what:44} {median:>8.1} µs {least:>8.1} µs {:>7.2}",
                median / least
            );
            println!("{:44} {most:>8.1} µs {high:>8.1} µs", "  1 of 100 above");
        }
        None => println!("{what:44} {median:>8.1} µs, 1 of 100 above {most:.1} µs"),
    }
}

fn measured(waiting: usize, rounds: usize) -> anyhow::Result<()> {
    let owner = Owner::start()?;
    owner.fill(waiting)?;
    let tid = owner.process.id().cast_signed();
    let [mut stopped, mut unbound, mut whole] = [(); 3].map(|()| Times::default());
    let [mut visited, mut alone, mut rebound] = [(); 3].map(|()| Times::default());
    let mut own = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    for round in 0..rounds + WARM {
        let began = Instant::now();
        let replaced = once(&owner)?;
        let took = began.elapsed();
        ensure!(replaced.carried == waiting, "carried {}", replaced.carried);
        let beside = visit::floor(tid, Others::Wake)?;
        let lonely = visit::floor(tid, Others::Sleep)?.context("no floor")?;
        let (again, rebind) = close_and_bind(own)?;
        own = again;
        if round >= WARM {
            stopped.add(replaced.stopped);
            unbound.add(replaced.unbound);
            whole.add(took);
            beside.into_iter().for_each(|beside| visited.add(beside));
            alone.add(lonely);
            rebound.add(rebind);
        }
    }
    println!("replace, {waiting} datagrams wait: median of {rounds} by the clock");
    let floor = Some(visited).filter(|visited| !visited.0.is_empty());
    print("  stopped; stop, getpid, let go", stopped.clone(), floor);
    print(
        "  that floor with nobody awake beside",
        stopped,
        Some(alone),
    );
    print("  unbound; close, socket, bind", unbound, Some(rebound));
    print("  the whole of it", whole, None);
    Ok(())
}

fn once(owner: &Owner) -> anyhow::Result<replace::Replaced> {
    let found = find::find(&owner.target)?;
    let options = ReplaceOptions::default();
    let mut prepared = replace::prepare(found, &options)?.into_iter();
    let one = prepared.next().context("no socket")?;
    Ok(one.carry_out()?)
}

fn close_and_bind(socket: UdpSocket) -> anyhow::Result<(UdpSocket, Duration)> {
    let address = socket.local_addr()?;
    let began = Instant::now();
    drop(socket);
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    let socket = socket_with(AddressFamily::INET, kind, flags, None)?;
    bind(&socket, &address)?;
    Ok((socket.into(), began.elapsed()))
}
