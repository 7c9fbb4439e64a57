//! DUMP by message, beside the library in process and beside a bare echo: requests a second, by the clock.

use anyhow::{Context, ensure};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv,
    send, socket_with, socketpair,
};
use sockcr::{Target, find, image};
use sockcr_service::Server;
use sockcr_service::message::{self, Command as Ask, Header, flags};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The argument that makes this program the service.
pub const SERVE: &str = "--serve";
/// The argument that makes it an echo at its standard input.
pub const ECHO: &str = "--echo";
const REQUESTS: usize = 20_000;
/// How many requests are sent before the first answer is waited for.
const DEPTHS: [usize; 2] = [1, 8];

pub fn serve() -> anyhow::Result<()> {
    let path = std::env::args().next_back().context("a path")?;
    Ok(Server::new(Some(Path::new(&path)))?.run()?)
}

pub fn echo() -> anyhow::Result<()> {
    let line = std::io::stdin();
    let mut packet = vec![0; message::MAX_MESSAGE];
    loop {
        match recv(line.as_fd(), &mut packet[..], RecvFlags::empty())?.0 {
            0 => return Ok(()),
            length => send(line.as_fd(), &packet[..length], SendFlags::empty())?,
        };
    }
}

pub fn all() -> anyhow::Result<()> {
    println!("DUMP by message, by the clock{:22} {:>13}", "", "a second");
    let folder = std::env::temp_dir().join(format!("sockcr-bench-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    let measured = measured(&folder.join("socket"));
    std::fs::remove_dir_all(&folder)?;
    measured
}

fn measured(path: &Path) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let pid = std::process::id() as i32;
    let fd = socket.as_raw_fd();
    let inode = std::fs::metadata(format!("/proc/self/fd/{fd}"))?.ino();
    let mut service = Service::start(path)?;
    for (name, target) in [
        ("PID:FD", Target::Descriptor(pid, fd)),
        ("inode", Target::Inode(inode)),
    ] {
        let text = match &target {
            Target::Inode(inode) => format!("inode:{inode}"),
            _ => format!("{pid}:{fd}"),
        };
        let library = rate(REQUESTS, || library(&target))?;
        print(&format!("by {name}: the library in process"), library, None);
        for depth in DEPTHS {
            let asked = service.rate(&text, depth)?;
            print(
                &format!("by {name}: the service, {depth} at a time"),
                asked,
                Some(library),
            );
        }
    }
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(ECHO)
        .stdin(Stdio::from(theirs))
        .spawn()?;
    let packet = vec![1; 600];
    let mut answer = vec![0; 1_000];
    let echoed = rate(REQUESTS, || {
        send(&ours, &packet, SendFlags::empty())?;
        ensure!(
            recv(&ours, &mut answer[..], RecvFlags::empty())?.0 == packet.len(),
            "no echo"
        );
        Ok(())
    })?;
    print("a bare echo of 600 bytes", echoed, None);
    drop(ours);
    child.wait()?;
    service.stop()
}

fn print(what: &str, rate: f64, library: Option<f64>) {
    let times = library.map_or_else(String::new, |library| {
        format!("{:.2} of the library", rate / library)
    });
    println!("  {what:49} {rate:>11.0}  {times}");
}

fn library(target: &Target) -> anyhow::Result<()> {
    for found in find::find(target)? {
        std::hint::black_box(image::messages(&found.dump()?, 1)?);
    }
    Ok(())
}

fn rate(count: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    for _ in 0..count {
        work()?;
    }
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

/// The service, and a client of it.
pub struct Service {
    process: Child,
    client: Client,
}

/// A client.
pub struct Client {
    connection: OwnedFd,
    answer: Vec<u8>,
}

/// A request to dump what the target names.
pub fn request(target: &str) -> anyhow::Result<Vec<u8>> {
    let mut attributes = sockcr_image::attribute::Writer::new();
    attributes.str(sockcr_image::number::TARGET, target)?;
    let header = Header {
        length: 0,
        kind: 0,
        flags: 0,
        sequence: 1,
        port: 0,
    };
    Ok(header.family(Ask::Dump, flags::REQUEST, &attributes.finish()))
}

impl Client {
    fn connect(path: &Path) -> anyhow::Result<Client> {
        let kind = SocketType::SEQPACKET;
        let connection = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        connect(&connection, &SocketAddrUnix::new(path)?)?;
        Ok(Client {
            connection,
            answer: vec![0; message::MAX_MESSAGE],
        })
    }

    fn send(&self, packet: &[u8]) -> anyhow::Result<()> {
        send(&self.connection, packet, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Sends a request; answers whether something was found.
    pub fn ask(&mut self, request: &[u8]) -> anyhow::Result<bool> {
        self.send(request)?;
        self.done()
    }

    /// Waits for the end of an answer; answers whether it is no error.
    fn done(&mut self) -> anyhow::Result<bool> {
        loop {
            let (length, _) = recv(&self.connection, &mut self.answer[..], RecvFlags::empty())?;
            match message::read_answer(&self.answer[..length]) {
                Some((_, message::Answer::Done)) => return Ok(true),
                Some((_, message::Answer::Error(fault))) if fault.errno == 2 => return Ok(false),
                Some((_, message::Answer::Message(Ask::Dump | Ask::Queue, _))) => {}
                other => anyhow::bail!("the service answers {other:?}"),
            }
        }
    }

    /// Has a socket restored, and closes it.
    pub fn restore(&mut self, packets: &[Vec<u8>]) -> anyhow::Result<()> {
        packets.iter().try_for_each(|packet| self.send(packet))?;
        // The kernel closes the descriptor that there is no room for.
        let (length, _) = recv(&self.connection, &mut self.answer[..], RecvFlags::empty())?;
        match message::read_answer(&self.answer[..length]) {
            Some((_, message::Answer::Message(Ask::Restore, _))) => Ok(()),
            other => anyhow::bail!("the service answers {other:?}"),
        }
    }
}

impl Service {
    /// Starts it, with a first client.
    pub fn start(path: &Path) -> anyhow::Result<Service> {
        let told = path.with_extension("ready");
        let ready = UnixDatagram::bind(&told)?;
        ready.set_read_timeout(Some(Duration::from_secs(10)))?;
        let process = Command::new(std::env::current_exe()?)
            .arg(SERVE)
            .arg(path)
            .env("NOTIFY_SOCKET", &told)
            .spawn()?;
        // It says when it listens.
        ready
            .recv(&mut [0; 64])
            .context("the service does not listen")?;
        let client = Client::connect(path)?;
        Ok(Service { process, client })
    }

    /// One more client.
    pub fn another(&self, path: &Path) -> anyhow::Result<Client> {
        Client::connect(path)
    }

    /// A request of the first client.
    pub fn ask(&mut self, request: &[u8]) -> anyhow::Result<bool> {
        self.client.ask(request)
    }

    fn rate(&mut self, target: &str, depth: usize) -> anyhow::Result<f64> {
        let request = request(target)?;
        let client = &mut self.client;
        rate(REQUESTS / depth, || {
            for _ in 0..depth {
                client.send(&request)?;
            }
            for _ in 0..depth {
                ensure!(client.done()?, "the socket is there");
            }
            Ok(())
        })
        .map(|rate| rate * depth as f64)
    }

    /// Resident memory in kB, and descriptors, of the main process and of the broker of the first client.
    pub fn used(&self) -> anyhow::Result<[(u64, usize); 2]> {
        let main = self.process.id();
        let children = std::fs::read_to_string(format!("/proc/{main}/task/{main}/children"))?;
        let broker = children
            .split(' ')
            .next()
            .context("the first client has a broker")?;
        Ok([used(&main.to_string())?, used(broker)?])
    }

    /// Ends it.
    pub fn stop(mut self) -> anyhow::Result<()> {
        drop(self.client);
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        ensure!(self.process.wait()?.success(), "the service failed");
        Ok(())
    }
}

fn used(process: &str) -> anyhow::Result<(u64, usize)> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory.and_then(|text| text.trim().strip_suffix(" kB"));
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd"))?.count();
    Ok((memory.context("VmRSS")?.parse()?, descriptors))
}
