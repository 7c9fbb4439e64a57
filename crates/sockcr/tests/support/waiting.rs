//! Sockets with something waiting in them, in network namespaces of a test's own.
#![allow(dead_code, reason = "shared by tests that use parts of it")]

use std::error::Error;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use sockcr::kernel::{self, Reader};

use crate::message::{self, Message, receive};

/// What a test gives.
pub type Fallible<T> = Result<T, Box<dyn Error + Send + Sync>>;
pub type Outcome = Fallible<()>;

pub const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const PATIENCE: Duration = Duration::from_secs(10);
pub const SOL_SOCKET: i32 = 1;
pub const IPPROTO_IP: i32 = 0;
pub const IPPROTO_UDP: i32 = 17;

pub mod option {
    pub const SO_MARK: i32 = 36;
    pub const SO_PRIORITY: i32 = 12;
    pub const SO_RCVBUFFORCE: i32 = 33;
    pub const SO_SNDBUFFORCE: i32 = 32;
    pub const SO_TIMESTAMPNS: i32 = 35;
    pub const SO_RXQ_OVFL: i32 = 40;
    pub const SO_RCVMARK: i32 = 75;
    pub const SO_RCVPRIORITY: i32 = 82;
    pub const SO_NO_CHECK: i32 = 11;
    pub const IP_TOS: i32 = 1;
    pub const IP_TTL: i32 = 2;
    pub const IP_OPTIONS: i32 = 4;
    pub const IP_RECVOPTS: i32 = 6;
    pub const IP_RETOPTS: i32 = 7;
    pub const IP_PKTINFO: i32 = 8;
    pub const IP_RECVERR: i32 = 11;
    pub const IP_RECVTTL: i32 = 12;
    pub const IP_RECVTOS: i32 = 13;
    pub const IP_ORIGDSTADDR: i32 = 20;
    pub const IP_RECVFRAGSIZE: i32 = 25;
    pub const UDP_CORK: i32 = 1;
    pub const UDP_SEGMENT: i32 = 103;
    pub const UDP_GRO: i32 = 104;
}
pub use option::*;

/// Runs a test with the reader, in a network namespace of its own whose loopback device is up.
pub fn isolated(test: impl FnOnce(&'static Reader) -> Outcome + Send) -> Outcome {
    let reader = match kernel::reader() {
        Ok(reader) => reader,
        Err(why) => return crate::support::skip(&why.to_string()),
    };
    if let Err(why) = Command::new("ip").arg("-V").output() {
        return crate::support::skip(&format!("ip (iproute2) is not installed: {why}"));
    }
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // Whoever has the reader may have a network namespace of its own.
            sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
            ip("link set lo up")?;
            let _stays = stamped(reader)?;
            test(reader)
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// While this socket lives, whatever arrives has its time: the kernel begins with it some time after
/// the first socket of the machine has asked (`net_enable_timestamp` leaves it to `netstamp_work`).
fn stamped(reader: &Reader) -> Fallible<UdpSocket> {
    let socket = UdpSocket::bind((LOCALHOST, 0))?;
    set(&socket, SOL_SOCKET, SO_TIMESTAMPNS, 1)?;
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        socket.send_to(b"when?", local(&socket)?)?;
        arrived(reader, &socket, 1)?;
        let queued = reader.receive_queue(socket.as_fd())?;
        receive(&socket, 0)?;
        if queued.iter().all(|datagram| datagram.received_at != 0) {
            return Ok(socket);
        }
    }
    Err("what arrives has no time".into())
}

/// ip(8) in the namespace of this thread.
pub fn ip(arguments: &str) -> Outcome {
    let status = Command::new("ip").args(arguments.split(' ')).status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ip {arguments}: {status}").into())
    }
}

pub fn set(socket: &impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    sockcr_sys::sockopt::set(socket.as_fd(), level, name, &value.to_ne_bytes())
}

/// Bound, with room, and with every option that tells something.
pub fn receiver(to: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((to, 0))?;
    set(&socket, SOL_SOCKET, SO_RCVBUFFORCE, 1 << 29)?;
    for name in [SO_TIMESTAMPNS, SO_RXQ_OVFL, SO_RCVMARK] {
        set(&socket, SOL_SOCKET, name, 1)?;
    }
    let _since_6_14 = set(&socket, SOL_SOCKET, SO_RCVPRIORITY, 1);
    for name in [
        IP_RECVOPTS,
        IP_PKTINFO,
        IP_RECVTTL,
        IP_RECVTOS,
        IP_ORIGDSTADDR,
        IP_RECVFRAGSIZE,
    ] {
        set(&socket, IPPROTO_IP, name, 1)?;
    }
    Ok(socket)
}

pub fn local(socket: &UdpSocket) -> io::Result<SocketAddr> {
    socket.local_addr()
}

/// Waits until so many datagrams are there.
pub fn arrived(reader: &Reader, socket: &UdpSocket, count: u32) -> Outcome {
    let end = Instant::now() + PATIENCE;
    while reader.read(socket.as_fd())?.receive_queue < count {
        if Instant::now() > end {
            return Err(format!("{count} datagrams never came").into());
        }
        thread::yield_now();
    }
    Ok(())
}

pub fn drain(socket: &UdpSocket) -> io::Result<Vec<Message>> {
    let mut all = Vec::new();
    while let Some(message) = receive(socket, 0)? {
        all.push(message);
    }
    Ok(all)
}

pub fn nanoseconds(message: &Message) -> i64 {
    let Some(raw) = message.control(SOL_SOCKET, SO_TIMESTAMPNS) else {
        return 0;
    };
    let part = |at: usize| i64::from_ne_bytes(*raw[at..].first_chunk().expect("a time"));
    part(0) * 1_000_000_000 + part(8)
}

/// A generator of numbers, good enough for contents and sizes.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn bytes(&mut self, size: usize) -> Vec<u8> {
        (0..size).map(|_| self.next() as u8).collect()
    }
}

/// Sizes where something changes.
pub const SIZES: [usize; 22] = [
    0, 1, 2, 227, 228, 229, 255, 256, 257, 1000, 1472, 1473, 4096, 8192, 16_000, 16_384, 32_768,
    40_000, 61_440, 65_000, 65_506, 65_507,
];

/// A socket of another namespace, that reaches this one by a veth of its own.
pub fn neighbour(number: u8, settings: &[&str]) -> Fallible<UdpSocket> {
    let (tell, told) = mpsc::channel();
    let (go, gone) = mpsc::channel::<()>();
    let settings: Vec<String> = settings.iter().map(|text| (*text).to_owned()).collect();
    let thread = thread::spawn(move || -> Fallible<UdpSocket> {
        sockcr_sys::netns::unshare(libc::CLONE_NEWNET)?;
        tell.send(rustix::thread::gettid())?;
        gone.recv_timeout(PATIENCE)?;
        ip("link set lo up")?;
        ip(&format!("addr add 10.1.{number}.2/24 dev w{number}"))?;
        ip(&format!("link set w{number} up"))?;
        for setting in &settings {
            match setting.strip_prefix("offload ") {
                Some(command) => message::offload(&format!("w{number}"), command.parse()?, 0)?,
                None => ip(setting)?,
            }
        }
        Ok(UdpSocket::bind((Ipv4Addr::new(10, 1, number, 2), 0))?)
    });
    let task = told.recv_timeout(PATIENCE)?.as_raw_nonzero();
    ip(&format!(
        "link add v{number} type veth peer name w{number} netns {task}"
    ))?;
    ip(&format!("addr add 10.1.{number}.1/24 dev v{number}"))?;
    ip(&format!("link set v{number} up"))?;
    go.send(())?;
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
