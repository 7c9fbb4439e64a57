//! The queue of one socket being filled.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::record::{self, RECORDS, Sum};
use super::sender::Way;
use super::target::{Mode, Target};
use super::{Carries, Datagram, Inexact, Injected, Injector, LOOPBACK, step};

/// How long a packet may take from sendmmsg(2) to the queue: on the loopback device it is there
/// when the call returns, unless softirqs are put off or the device has a queue of its own.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// What became of a run of datagrams.
enum Sent {
    /// So many are in the queue.
    Some(usize),
    /// The first could not be sent.
    None(io::Error),
}

/// A socket on its way to its queue.
pub struct Filling<'a> {
    injector: &'a Injector,
    target: Target<'a>,
    mode: Mode,
    /// How each datagram goes.
    ways: Vec<Way>,
    /// How long the queue is to be.
    queued: usize,
    /// Whether a packet went by IPv4, and the last one as to a group.
    any_ipv4: bool,
    last_group: bool,
}

impl<'a> Filling<'a> {
    /// Makes the socket one that takes what the program gives it, and nothing else.
    pub fn new(
        injector: &'a Injector,
        socket: BorrowedFd<'a>,
        mode: Mode,
        ways: Vec<Way>,
    ) -> io::Result<Self> {
        let queued = injector.reader.read(socket)?.receive_queue as usize;
        let filling = Self {
            injector,
            target: Target::prepare(socket, injector.secret, mode)?,
            mode,
            ways,
            queued,
            any_ipv4: false,
            last_group: false,
        };
        filling.open()?;
        Ok(filling)
    }

    fn open(&self) -> io::Result<()> {
        let opened = match self.mode.is_assigned() {
            true => self.injector.target.put_socket(self.target.socket),
            false => Ok(()),
        };
        let opened = opened
            .map_err(step("put the new socket into a BPF map"))
            .and_then(|()| self.target.open());
        if opened.is_err() {
            // Their own errors would only hide the first.
            let _ = self.remove();
            let _ = self.target.finish();
        }
        opened
    }

    /// Sends all, by the ways they have; adds what is lost on other ways.
    pub fn all(&mut self, datagrams: &[Datagram<'_>], injected: &mut Injected) -> io::Result<()> {
        let mut at = 0;
        while at < datagrams.len() {
            let end = self.run_end(at);
            let run = datagrams.get(at..end).unwrap_or_default();
            at += match self.run(at, run)? {
                Sent::Some(count) => count,
                Sent::None(error) => {
                    injected.inexact.push((at, self.degrade(at, error)?));
                    0
                }
            };
        }
        Ok(())
    }

    /// Where what one call can send ends.
    fn run_end(&self, at: usize) -> usize {
        let rest = self.ways.get(at..).unwrap_or_default();
        let like = |way: &&Way| rest.first().is_some_and(|first| first.is_like(way));
        at + rest.iter().take(RECORDS).take_while(like).count()
    }

    /// Sends datagrams from the one at `at`, and sees them arrive.
    fn run(&mut self, at: usize, run: &[Datagram<'_>]) -> io::Result<Sent> {
        let ways = self.ways.get(at..at + run.len()).unwrap_or_default();
        let Some(first) = ways.first() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        self.target.tell(first.tells)?;
        self.write(run)?;
        let sent = match self.injector.sender(first.ipv6)?.send(run, ways) {
            Ok(sent) => sent,
            Err(error) => return Ok(Sent::None(error)),
        };
        let last = sent.checked_sub(1).and_then(|last| ways.get(last));
        self.any_ipv4 |= !first.ipv6;
        self.last_group = last.map_or(self.last_group, |way| way.group);
        self.queued += sent;
        self.arrived(sent)?;
        Ok(Sent::Some(sent))
    }

    fn write(&self, run: &[Datagram<'_>]) -> io::Result<()> {
        let mut records = Vec::with_capacity(record::SIZE * RECORDS);
        // A live one asks for what it asks for, and so does whoever the kernel chooses in its group.
        let sum = match self.mode {
            Mode::Live { .. } => Sum::Made,
            _ => Sum::None,
        };
        for datagram in run {
            records.extend(record::encode(datagram, sum)?);
        }
        self.injector.write(records)
    }

    /// Finds another way for a datagram that cannot be sent: whole instead of in segments, then
    /// without its device.
    fn degrade(&mut self, at: usize, error: io::Error) -> io::Result<Inexact> {
        let way = self.ways.get_mut(at).ok_or(io::ErrorKind::InvalidInput)?;
        let no_memory = matches!(
            Errno::from_io_error(&error),
            Some(Errno::NOBUFS | Errno::NOMEM)
        );
        if way.segments && !no_memory {
            way.segments = false;
            Ok(Inexact::SegmentSize)
        } else if way.device > LOOPBACK && !no_memory {
            *way = way.by_loopback();
            Ok(Inexact::Interface)
        } else {
            Err(step("send a datagram to the new socket")(error))
        }
    }

    /// Waits until all are in the queue, as long as more come. `sent`: how many of the records are
    /// on their way.
    pub fn arrived(&self, sent: usize) -> io::Result<()> {
        if let Mode::Live { .. } = self.mode {
            return self.passed(sent);
        }
        let (mut before, mut end) = (0, Instant::now() + PATIENCE);
        loop {
            let there = self.injector.reader.read(self.target.socket)?.receive_queue as usize;
            if there == self.queued {
                return Ok(());
            }
            if there > self.queued {
                return Err(io::Error::other("somebody else uses the new socket"));
            }
            if there > before {
                (before, end) = (there, Instant::now() + PATIENCE);
            }
            if Instant::now() > end {
                return Err(self.lost(self.queued - there, sent));
            }
            std::thread::yield_now();
        }
    }

    /// Waits until the program has given all to a socket whose queue tells nothing, because others
    /// fill it and its owner reads.
    fn passed(&self, sent: usize) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = self.injector.seen(sent);
            if seen >= sent {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(self.lost(sent - seen, sent));
            }
            std::thread::yield_now();
        }
    }

    fn lost(&self, missing: usize, sent: usize) -> io::Error {
        let seen = self.injector.seen(sent);
        let why = match seen < sent {
            true => "before the loopback device: a firewall rule for what goes out?",
            false => {
                "at the socket: a firewall rule for what comes in, IP options that are refused here, \
                 or net.ipv4.udp_mem?"
            }
        };
        let what = match missing {
            1 => "1 datagram was dropped".into(),
            _ => format!("{missing} datagrams were dropped"),
        };
        io::Error::other(format!("{what}, and those behind were not sent, {why}"))
    }

    fn remove(&self) -> io::Result<()> {
        match self.mode.is_assigned() {
            true => self.injector.target.remove(),
            false => Ok(()),
        }
    }

    /// Makes the socket as it was.
    pub fn finish(&self) -> io::Result<()> {
        let closed = self.target.close();
        let left = closed.and_then(|()| self.leave_route());
        let removed = self.remove();
        let finished = self.target.finish();
        left.and(removed)
            .and(finished)
            .map_err(step("make the new socket unbound again"))
    }

    /// Leaves the route of a packet that the socket will meet: `udp_v4_early_demux` gives the one
    /// of the last assigned packet to those of a connected socket, and of the only member of a
    /// group.
    fn leave_route(&self) -> io::Result<()> {
        let before = self.injector.reader.read(self.target.socket)?;
        let group = !before.memberships.is_empty();
        // A live one would take the packet for one of its own.
        let unbound = self.mode == Mode::Unbound;
        if !self.any_ipv4 || group == self.last_group || !unbound {
            return Ok(());
        }
        let nowhere = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9);
        let packet = Datagram {
            carries: Carries::Data,
            source: nowhere,
            destination: nowhere,
            ttl: 1,
            tos: 0,
            flow_label: 0,
            interface: 0,
            local: None,
            received_at: 0,
            mark: 0,
            priority: 0,
            segment_size: 0,
            ip_options: &[],
            payload: &[],
        };
        self.write(&[packet])?;
        let way = Way {
            group,
            device: if group { LOOPBACK } else { 0 },
            ..Way::of(&packet)
        };
        self.injector.sender(false)?.send(&[packet], &[way])?;
        let end = Instant::now() + PATIENCE;
        while self.injector.reader.read(self.target.socket)?.drops == before.drops {
            if Instant::now() > end {
                return Err(self.lost(1, 1));
            }
            std::thread::yield_now();
        }
        Ok(())
    }
}
