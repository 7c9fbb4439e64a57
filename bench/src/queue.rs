//! The receive queue: a dump beside reading all of it, a restore beside sending all of it.
//!
//! Reading consumes and a restore fills: each round has sockets of its own, and what makes and
//! closes them is not counted.

use super::{ROUNDS, cpu_time, print};
use anyhow::ensure;
use sockcr::{Checkpoint, RestoreOptions, kernel, option};
use sockcr_sys::message::{Batch, Outgoing, send_many};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::time::Instant;

/// How many datagrams of how many bytes.
const SHAPES: [(usize, usize); 5] = [
    (1_000, 100),
    (10_000, 100),
    (100_000, 100),
    (10_000, 1_400),
    (1_000, 60_000),
];
/// The datagrams of one recvmmsg(2) or sendmmsg(2).
const BATCH: usize = 256;
const ROOM: &str = "1000000000";
/// The bytes of the control messages of one datagram, and more.
const CONTROL: usize = 256;
/// The sockets of one image that share the datagrams.
const SOCKETS: usize = 10;

pub fn all() -> anyhow::Result<()> {
    if let Err(why) = kernel::reader() {
        println!("queues: not measured: {why}");
        return Ok(());
    }
    once()?;
    println!("queues, for each datagram:");
    for (count, size) in SHAPES {
        let rounds = if count * size > 5_000_000 { 5 } else { ROUNDS };
        let shape = Shape {
            count,
            size,
            rounds,
        };
        shape.dump()?;
        shape.restore()?;
    }
    Ok(())
}

/// What is paid once, by the clock: programs to load, and the wait for all processors when one is
/// put before a device and taken away (`tcx_entry_sync`).
fn once() -> anyhow::Result<()> {
    let one = Shape {
        count: 1,
        size: 100,
        rounds: 1,
    };
    let socket = one.filled(true)?;
    let began = Instant::now();
    let checkpoint = Checkpoint::dump(&socket)?;
    let first = began.elapsed().as_secs_f64() * 1e3;
    drop(socket);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        drop(checkpoint.restore(&RestoreOptions::default())?);
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let restore = times[ROUNDS / 2];
    println!(
        "{:44} {first:>8.2} ms, by the clock",
        "first dump of a queue"
    );
    println!(
        "{:44} {restore:>8.2} ms, median by the clock",
        "restore of one datagram"
    );
    Ok(())
}

#[derive(Clone, Copy)]
struct Shape {
    count: usize,
    size: usize,
    rounds: usize,
}

impl Shape {
    fn dump(&self) -> anyhow::Result<()> {
        let plain = self.best(|| self.read_all(self.filled(false)?, 0))?;
        let told = self.best(|| self.read_all(self.filled(true)?, CONTROL))?;
        let socket = self.filled(true)?;
        let ours = self.best(|| {
            let (took, checkpoint) = timed(|| Ok(Checkpoint::dump(&socket)?))?;
            ensure!(checkpoint.receive_queue.len() == self.count);
            Ok(took)
        })?;
        self.print("dump", ": recvmmsg", ours, plain);
        self.print("dump", ": recvmmsg, told", ours, told);
        Ok(())
    }

    /// Takes everything out of the socket.
    fn read_all(&self, socket: UdpSocket, control: usize) -> anyhow::Result<f64> {
        let mut batch = Batch::new(BATCH, self.size, control);
        let (took, received) = timed(|| {
            let mut received = 0;
            while received < self.count {
                received += batch.receive(socket.as_fd(), 0)?;
            }
            Ok(received)
        })?;
        ensure!(received == self.count);
        Ok(took)
    }

    fn restore(&self) -> anyhow::Result<()> {
        let options = RestoreOptions::default();
        let floor = self.best(|| {
            let receiver = receiver(true)?;
            let (took, ()) = timed(|| self.send_all(&receiver))?;
            ensure!(waiting(&receiver)? == self.count);
            Ok(took)
        })?;
        let checkpoint = Checkpoint::dump(&self.filled(true)?)?;
        let one = self.best(|| Ok(timed(|| Ok(checkpoint.restore(&options)?))?.0))?;
        self.print("restore", ": sendmmsg", one, floor);
        let read_back = RestoreOptions {
            verify: true,
            ..RestoreOptions::default()
        };
        let one = self.best(|| Ok(timed(|| Ok(checkpoint.restore(&read_back)?))?.0))?;
        self.print("restore and read back", "", one, floor);
        let many = self.split(&checkpoint)?;
        let ours = self.best(|| Ok(timed(|| Ok(sockcr::restore_all(&many, &options)?))?.0))?;
        self.print("restore_all of 10 sockets,", "", ours, floor);
        Ok(())
    }

    /// The same datagrams in several sockets.
    fn split(&self, whole: &Checkpoint) -> anyhow::Result<Vec<Checkpoint>> {
        let mut parts = Vec::with_capacity(SOCKETS);
        for queue in whole.receive_queue.chunks(self.count / SOCKETS) {
            parts.push(Checkpoint {
                endpoint: Checkpoint::dump(&receiver(true)?)?.endpoint,
                receive_queue: queue.to_vec(),
                ..whole.clone()
            });
        }
        Ok(parts)
    }

    /// A socket with the queue; `told`: with every option that tells something of a datagram.
    fn filled(&self, told: bool) -> anyhow::Result<UdpSocket> {
        let socket = receiver(told)?;
        self.send_all(&socket)?;
        ensure!(waiting(&socket)? == self.count);
        Ok(socket)
    }

    fn send_all(&self, receiver: &UdpSocket) -> anyhow::Result<()> {
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        let payload = vec![7; self.size];
        let one = Outgoing {
            to: address(receiver)?,
            control: &[],
            parts: [&payload, &[]],
        };
        let many = vec![one; BATCH];
        let mut left = self.count;
        while left > 0 {
            left -= send_many(sender.as_fd(), &many[..left.min(BATCH)], 0)?;
        }
        Ok(())
    }

    /// The best of several rounds, for each datagram.
    fn best(&self, mut round: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..self.rounds {
            best = best.min(round()?);
        }
        Ok(best / self.count as f64)
    }

    fn print(&self, what: &str, floor_name: &str, ours: f64, floor: f64) {
        let what = format!("{what} {} x {} B{floor_name}", self.count, self.size);
        print(&what, ours, floor);
    }
}

/// User and system time of the work; what it gives is dropped by the caller, uncounted.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(f64, T)> {
    let began = cpu_time();
    let done = work()?;
    Ok((cpu_time() - began, done))
}

fn receiver(told: bool) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    option::write(&socket, "SO_RCVBUF", ROOM)?;
    let options = [
        "SO_TIMESTAMPNS",
        "SO_RCVMARK",
        "IP_PKTINFO",
        "IP_RECVTTL",
        "IP_RECVTOS",
        "IP_RECVORIGDSTADDR",
    ];
    for name in options.iter().filter(|_| told) {
        option::write(&socket, name, "on")?;
    }
    Ok(socket)
}

fn address(socket: &UdpSocket) -> anyhow::Result<SocketAddr> {
    Ok(socket.local_addr()?)
}

fn waiting(socket: &UdpSocket) -> anyhow::Result<usize> {
    Ok(kernel::reader()?.read(socket.as_fd())?.receive_queue as usize)
}
