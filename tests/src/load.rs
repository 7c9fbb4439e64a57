//! Questions at a steady rate, each of which must be answered, once.

use crate::{dns, wait};
use anyhow::{Context, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// So many questions wait for their answers at most.
const SOCKETS: usize = 16;
/// How long an answer may take before the question has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For a name below [`dns::NAME`], another each time.
    Dns,
    /// To have it sent back.
    Echo,
}

/// Somebody who asks until told to stop.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Answers>>,
}

/// How many questions came to what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Answered, rightly and once.
    pub answered: u64,
    /// Not answered in time, or told to be in vain.
    pub failed: u64,
    /// Answered again, or not asked.
    pub repeated: u64,
}

impl Answers {
    /// Each was answered once, and there were at least so many.
    pub fn are_all(self, at_least: u64) -> anyhow::Result<()> {
        let clean = self.failed == 0 && self.repeated == 0;
        ensure!(clean && self.answered >= at_least, "{self:?}");
        Ok(())
    }
}

impl Load {
    /// Asks so many questions a second, as far as they are answered.
    pub fn start(server: SocketAddr, kind: Kind, rate: u32) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || ask(server, kind, rate, &told));
        Load { stop, thread }
    }

    /// Waits for the last answers.
    pub fn stop(self) -> anyhow::Result<Answers> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| anyhow::bail!("the one who asks ended"))
    }
}

/// One who asks, and what it waits for.
struct Asker {
    socket: UdpSocket,
    waits: Option<(Vec<u8>, Instant)>,
}

fn ask(server: SocketAddr, kind: Kind, rate: u32, stop: &AtomicBool) -> anyhow::Result<Answers> {
    let mut askers = Vec::with_capacity(SOCKETS);
    for _ in 0..SOCKETS {
        let socket = UdpSocket::bind((any(server), 0))?;
        socket.connect(server)?;
        socket.set_nonblocking(true)?;
        let waits = None;
        askers.push(Asker { socket, waits });
    }
    let (mut answers, mut asked, start) = (Answers::default(), 0_u32, Instant::now());
    loop {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
        let stopped = stop.load(Ordering::Relaxed);
        for asker in askers.iter_mut().filter(|asker| asker.waits.is_none()) {
            if stopped || asked >= due {
                break;
            }
            let question = kind.question(asked);
            // An error is that of the question before.
            if asker.socket.send(&question).is_err() {
                answers.failed += 1;
                asker.socket.send(&question)?;
            }
            asker.waits = Some((question, Instant::now() + PATIENCE));
            asked += 1;
        }
        let mut fds: Vec<PollFd<'_>> = askers
            .iter()
            .map(|asker| PollFd::new(&asker.socket, PollFlags::IN))
            .collect();
        let moment = Timespec {
            tv_sec: 0,
            tv_nsec: 500_000,
        };
        poll(&mut fds, Some(&moment)).context("poll")?;
        askers
            .iter_mut()
            .try_for_each(|asker| asker.look(kind, &mut answers))?;
        if stopped && askers.iter().all(|asker| asker.waits.is_none()) {
            return Ok(answers);
        }
    }
}

impl Asker {
    fn look(&mut self, kind: Kind, answers: &mut Answers) -> anyhow::Result<()> {
        let mut answer = [0; 512];
        loop {
            let length = match self.socket.recv(&mut answer) {
                Ok(length) => length,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    answers.failed += 1;
                    continue;
                }
            };
            let due = self.waits.as_ref().map(|(question, _)| question);
            match due.is_some_and(|question| kind.answers(question, &answer[..length])) {
                true => {
                    answers.answered += 1;
                    self.waits = None;
                }
                false => answers.repeated += 1,
            }
        }
        let late = |(_, end): &(Vec<u8>, Instant)| Instant::now() > *end;
        if self.waits.as_ref().is_some_and(late) {
            answers.failed += 1;
            self.waits = None;
        }
        Ok(())
    }
}

impl Kind {
    fn question(self, number: u32) -> Vec<u8> {
        match self {
            Kind::Dns => {
                let mut question = dns::question(&format!("q{number}.{}", dns::NAME));
                question[..2].copy_from_slice(&(number as u16).to_be_bytes());
                question
            }
            Kind::Echo => format!("question {number}").into_bytes(),
        }
    }

    fn answers(self, question: &[u8], answer: &[u8]) -> bool {
        match self {
            Kind::Dns => {
                answer.starts_with(&question[..2])
                    && answer.ends_with(&dns::ADDRESS.octets())
                    && answer.get(12..question.len()) == question.get(12..)
            }
            Kind::Echo => question == answer,
        }
    }
}

fn any(server: SocketAddr) -> IpAddr {
    match server.is_ipv6() {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// Somebody who sends lines, each with the next number.
#[derive(Debug)]
pub struct Lines {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<u32>>,
}

impl Lines {
    /// Sends so many lines a second.
    pub fn start(socket: UdpSocket, to: SocketAddr, rate: u32) -> Lines {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let send = move || {
            let (mut sent, start) = (0_u32, Instant::now());
            while !told.load(Ordering::Relaxed) {
                let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u32;
                while sent < due {
                    socket.send_to(Lines::line(sent).as_bytes(), to)?;
                    sent += 1;
                }
                wait::pause(Duration::from_micros(500))?;
            }
            Ok(sent)
        };
        let thread = std::thread::spawn(send);
        Lines { stop, thread }
    }

    /// The line with this number; all are of one length.
    pub fn line(number: u32) -> String {
        format!("{number:09}\n")
    }

    /// Says how many were sent.
    pub fn stop(self) -> anyhow::Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| anyhow::bail!("the sender ended"))
    }
}

/// Somebody who sends back what comes to a socket.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Echo {
    /// Begins to.
    pub fn start(socket: UdpSocket) -> Echo {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let echo = move || {
            let mut datagram = [0; 2000];
            while !told.load(Ordering::Relaxed) {
                if wait::readable(&socket, Duration::from_millis(10))? {
                    let (length, from) = socket.recv_from(&mut datagram)?;
                    socket.send_to(&datagram[..length], from)?;
                }
            }
            Ok(())
        };
        let thread = std::thread::spawn(echo);
        Echo { stop, thread }
    }

    /// Does so no more; every call must have been a good one.
    pub fn stop(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.join();
        ended.unwrap_or_else(|_| anyhow::bail!("who sends back ended"))
    }
}
