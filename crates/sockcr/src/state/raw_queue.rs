//! The receive queue put back without BPF: by raw packets on the loopback device, into a socket
//! that is in its place already (CAP_NET_RAW).
//!
//! A packet with its own header is routed by the address it is sent to, not by the one in it
//! (`raw_sendmsg`). Sent to 0.0.0.0 it goes no way but to this host, by the loopback device
//! (`ip_route_output_key_hash_rcu`), so that nothing goes out whatever the header says; then the
//! header alone decides which socket gets it (`__udp4_lib_lookup_skb`). That is this one and no
//! other, because we send only what it matches, and only while it does not share its port: nobody
//! else can be bound there. What others send meanwhile does not come in by its filter, which wants
//! the loopback device and a secret IP id; each datagram is looked at when it has come, and a
//! stranger's among them fails the restore.
//!
//! A receive time cannot be given this way, and what came differs where the look says so.

use super::endpoint::{Failure, plain};
use super::filter;
use super::interfaces::Interfaces;
use super::meanwhile::{Buffer, Meanwhile, get, set};
use super::peek::{self, Seen};
use super::receive_queue::{self, Datagram};
use crate::netns;
use crate::report::Report;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use sockcr_sys::message::{Batch, Outgoing, add_control, send_many};
use sockcr_sys::sockopt::{Instruction, Place, attach_filter};
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_REUSEPORT: i32 = 15;
const SO_PRIORITY: i32 = 12;
const SO_MARK: i32 = 36;
const SO_INCOMING_CPU: i32 = 49;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_IP: i32 = 0;
const IPPROTO_RAW: u32 = 255;
const UDP: u8 = 17;
const LOOPBACK: u32 = 1;
const ROOM: i32 = i32::MAX / 2;
/// Softirqs may run later, in a thread of their own; longer than this nothing takes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Takes the place by `take`, with SO_REUSEADDR off where it is on and nobody else is there; answers
/// whether it was so. The flag counts when somebody binds (`udp_lib_lport_inuse`): to [`share`] the
/// port afterwards is the same as from the start. Of SO_REUSEPORT that is not true.
pub(super) fn take_alone(
    fd: BorrowedFd<'_>,
    take: impl Fn() -> Result<(), Failure>,
) -> Result<bool, Failure> {
    let shares = get(fd, SOL_SOCKET, SO_REUSEADDR).map_err(sharing)?;
    if shares == 0 {
        return take().map(|()| false);
    }
    set(fd, SOL_SOCKET, SO_REUSEADDR, 0).map_err(sharing)?;
    match take() {
        Err(failure) if Errno::from_io_error(&failure.error) == Some(Errno::ADDRINUSE) => {
            share(fd)?;
            take().map(|()| false)
        }
        done => done.map(|()| true),
    }
}

/// Lets others share the port.
pub(super) fn share(fd: BorrowedFd<'_>) -> Result<(), Failure> {
    set(fd, SOL_SOCKET, SO_REUSEADDR, 1).map_err(sharing)
}

fn sharing(error: io::Error) -> Failure {
    Failure::at("SO_REUSEADDR while the queue is put back", error)
}

/// Puts the queue into a socket in its place, whose filter lets nothing in, and leaves that filter.
///
/// What does not come as it was is reported by name; an error: the socket is not to be used.
pub(super) fn restore(
    fd: BorrowedFd<'_>,
    queue: &[Datagram],
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let failed = |error| Failure::at("put the receive queue back", error);
    if let Some(why) = obstacle(fd).map_err(failed)? {
        report.lose("receive queue", format!("without CAP_BPF, {why}"));
        return Ok(());
    }
    let raw = match netns::within(fd, raw_socket) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            report.lose(
                "receive queue",
                "putting it back needs CAP_BPF, or CAP_NET_RAW in the network namespace",
            );
            return Ok(());
        }
        raw => raw.map_err(failed)?,
    };
    let mut filling = Filling::new(fd, raw).map_err(failed)?;
    let filled = filling.all(queue, interfaces, report);
    let left = filling.finish();
    filled.and(left).map_err(failed)
}

/// Why packets for this socket could be somebody else's.
fn obstacle(fd: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    let shared = get(fd, SOL_SOCKET, SO_REUSEADDR)? != 0 || get(fd, SOL_SOCKET, SO_REUSEPORT)? != 0;
    let name = plain(rustix::net::getsockname(fd)?)?;
    Ok(if name.port() == 0 {
        Some("a queue can be put back only into a socket with a port")
    } else if shared {
        Some(
            "others could get it that share the port by SO_REUSEADDR or SO_REUSEPORT, which are on",
        )
    } else {
        None
    })
}

fn raw_socket() -> io::Result<OwnedFd> {
    let number = std::num::NonZeroU32::new(IPPROTO_RAW).map(Protocol::from_raw);
    let flags = SocketFlags::CLOEXEC;
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        flags,
        number,
    )?)
}

struct Filling<'a> {
    fd: BorrowedFd<'a>,
    raw: OwnedFd,
    meanwhile: Meanwhile<'a>,
    local: SocketAddr,
    peer: Option<SocketAddr>,
    /// The device it is bound to; 0: none.
    bound: u32,
    id: u16,
    mark: u32,
    priority: u32,
    /// Its owner will peek by SO_PEEK_OFF, which passes over an empty datagram once looked at.
    peeks: bool,
    room: Batch,
    /// What came otherwise, and how often.
    otherwise: BTreeMap<&'static str, usize>,
}

impl<'a> Filling<'a> {
    fn new(fd: BorrowedFd<'a>, raw: OwnedFd) -> io::Result<Self> {
        let peer = rustix::net::getpeername(fd).ok().flatten();
        let mut filling = Self {
            fd,
            raw,
            meanwhile: Meanwhile::new(fd),
            local: plain(rustix::net::getsockname(fd)?)?,
            peer: peer.and_then(|peer| plain(peer).ok()),
            bound: get(fd, SOL_SOCKET, SO_BINDTOIFINDEX)? as u32,
            id: secret(),
            mark: 0,
            priority: 0,
            peeks: false,
            room: peek::room(1),
            otherwise: BTreeMap::new(),
        };
        match filling.prepare() {
            Ok(()) => Ok(filling),
            Err(error) => {
                // Its own error would only hide the first.
                let _ = filling.finish();
                Err(error)
            }
        }
    }

    /// Has the new socket, which nobody else uses, tell everything.
    fn prepare(&mut self) -> io::Result<()> {
        let meanwhile = &mut self.meanwhile;
        meanwhile.room(Buffer::Receive, ROOM)?;
        meanwhile.keep(IPPROTO_IP, peek::IP_PKTINFO)?;
        // Of a connected socket every datagram changes it (`sk_incoming_cpu_update`).
        meanwhile.keep(SOL_SOCKET, SO_INCOMING_CPU)?;
        for name in [peek::IP_RECVTTL, peek::IP_RECVTOS, peek::IP_RECVORIGDSTADDR] {
            meanwhile.set(IPPROTO_IP, name, 1)?;
        }
        meanwhile.set(SOL_SOCKET, peek::SO_RCVMARK, 1)?;
        match meanwhile.set(SOL_SOCKET, peek::SO_RCVPRIORITY, 1) {
            // Before 6.14 nobody is told a priority.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOPROTOOPT) => {}
            set => set?,
        }
        self.peeks = meanwhile.keep(SOL_SOCKET, peek::SO_PEEK_OFF)? >= 0;
        set(self.fd, SOL_SOCKET, peek::SO_PEEK_OFF, 0)?;
        attach_filter(self.fd, Place::Filter, &only(self.id))
    }

    fn all(
        &mut self,
        queue: &[Datagram],
        interfaces: &Interfaces,
        report: &mut Report,
    ) -> io::Result<()> {
        let mut times = peek::TIMES
            .iter()
            .map(|name| get(self.fd, SOL_SOCKET, *name));
        let stamps = times.try_fold(false, |any, on| Ok::<_, io::Error>(any | (on? != 0)))?;
        let devices = receive_queue::devices(self.fd, queue, interfaces, report);
        for (at, datagram) in queue.iter().enumerate() {
            if let Some(why) = self.unsendable(datagram) {
                self.count(why);
                continue;
            }
            let mut wanted = datagram.clone();
            wanted.interface = devices.get(&datagram.interface).copied().unwrap_or(0);
            self.send(&wanted)?;
            let Some(seen) = self.arrived()? else {
                let why = "did not come: SO_RCVBUF (net.core.rmem_max) or a firewall is in the way";
                let count = queue.len() - at;
                report.lose("receive queue", format!("{count} of them {why}"));
                break;
            };
            self.compare(&wanted, &seen.datagram, stamps)?;
        }
        for (what, count) in &self.otherwise {
            let why = format!("{count} of them: without CAP_BPF it cannot be put back");
            report.lose(format!("receive queue: {what}"), why);
        }
        Ok(())
    }

    fn count(&mut self, what: &'static str) {
        *self.otherwise.entry(what).or_default() += 1;
    }

    /// What this socket would not get, or nobody can send: `raw_send_hdrinc` puts an address in the
    /// place of the source 0.0.0.0.
    fn unsendable(&self, datagram: &Datagram) -> Option<&'static str> {
        let (to, bound) = (datagram.destination, self.local.ip());
        let stranger = |peer: SocketAddr| {
            let other = peer.port() != 0 && peer.port() != datagram.source.port();
            other || peer.ip() != datagram.source.ip()
        };
        if to.is_ipv6() || self.local.is_ipv6() {
            Some("what came to a socket of IPv6")
        } else if to.port() != self.local.port() || !(bound.is_unspecified() || bound == to.ip()) {
            Some("what came to another address")
        } else if self.peer.is_some_and(stranger) {
            Some("what came from others before it was connected")
        } else if datagram.source.ip().is_unspecified() {
            Some("what came from 0.0.0.0")
        } else if datagram.payload.len() > usize::from(u16::MAX) - 28 {
            Some("what is longer than a packet")
        } else {
            None
        }
    }

    fn send(&mut self, datagram: &Datagram) -> io::Result<()> {
        let tells = i32::from(datagram.interface != 0);
        set(self.fd, IPPROTO_IP, peek::IP_PKTINFO, tells)?;
        if self.mark != datagram.mark {
            set(self.raw.as_fd(), SOL_SOCKET, SO_MARK, datagram.mark as i32)?;
            self.mark = datagram.mark;
        }
        if self.priority != datagram.priority {
            let priority = datagram.priority as i32;
            set(self.raw.as_fd(), SOL_SOCKET, SO_PRIORITY, priority)?;
            self.priority = datagram.priority;
        }
        // The socket's own device first: of another one it gets nothing.
        let device = [self.bound, datagram.interface]
            .into_iter()
            .find(|device| *device != 0);
        let mut control = Vec::new();
        if let Some(device) = device.filter(|device| *device != LOOPBACK) {
            let device = [device.to_ne_bytes(), [0; 4], [0; 4]];
            add_control(
                &mut control,
                IPPROTO_IP,
                peek::IP_PKTINFO,
                device.as_flattened(),
            );
        }
        let one = Outgoing {
            to: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
            control: &control,
            parts: [&header(datagram, self.id), &datagram.payload],
        };
        send_many(self.raw.as_fd(), &[one], 0).map(drop)
    }

    /// The next one in the queue, as soon as it is there.
    fn arrived(&mut self) -> io::Result<Option<Seen>> {
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = peek::look(self.fd, &mut self.room)?.pop();
            if seen.is_some() || Instant::now() > end {
                return Ok(seen);
            }
            std::thread::yield_now();
        }
    }

    fn compare(&mut self, wanted: &Datagram, seen: &Datagram, stamps: bool) -> io::Result<()> {
        if (wanted.source, &wanted.payload) != (seen.source, &seen.payload) {
            let why = "a datagram of somebody else came in between: try again";
            return Err(io::Error::other(why));
        }
        let told = wanted.interface != 0;
        let passed_over = self.peeks && wanted.payload.is_empty() && !wanted.peeked;
        for (what, same) in [
            ("ttl", wanted.ttl == seen.ttl),
            ("tos", wanted.tos == seen.tos),
            ("mark", wanted.mark == seen.mark),
            ("priority", wanted.priority == seen.priority),
            ("destination", wanted.destination == seen.destination),
            (
                "IP_PKTINFO",
                !told || (wanted.interface, wanted.local) == (seen.interface, seen.local),
            ),
            ("peeking at empty ones", !passed_over),
            ("UDP_GRO", wanted.segment == 0),
            ("IP options", wanted.options.is_empty()),
            ("receive time", wanted.received_at == 0 && !stamps),
        ] {
            if !same {
                self.count(what);
            }
        }
        Ok(())
    }

    /// Puts the options back; the filter lets nothing in again.
    fn finish(&self) -> io::Result<()> {
        filter::block(self.fd)?;
        self.meanwhile.put_back()
    }
}

fn secret() -> u16 {
    RandomState::new().build_hasher().finish() as u16 | 1
}

/// Lets in what comes by the loopback device with this IP id.
fn only(id: u16) -> [Instruction; 6] {
    const LOAD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // `SKF_AD_OFF + SKF_AD_IFINDEX`, and the id in the header at `SKF_NET_OFF`.
    let (device, header_id) = (-0x1000_i32 + 8, -0x10_0000_i32 + 4);
    let code = |code: u16, otherwise: u8, k: u32| {
        let ([c0, c1], [k0, k1, k2, k3]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [c0, c1, 0, otherwise, k0, k1, k2, k3]
    };
    [
        code(LOAD, 0, device as u32),
        code(JUMP_IF_EQUAL, 3, LOOPBACK),
        code(LOAD_HALF, 0, header_id as u32),
        code(JUMP_IF_EQUAL, 1, id.into()),
        code(RETURN, 0, u32::MAX),
        code(RETURN, 0, 0),
    ]
}

/// The IP and UDP headers; the kernel fills in the length and checksum of the first, and 0 is no
/// checksum in the second.
fn header(datagram: &Datagram, id: u16) -> Vec<u8> {
    const VERSION_AND_LENGTH: u8 = 0x45;
    let (from, to) = (datagram.source, datagram.destination);
    let length = datagram.payload.len() as u16 + 8;
    let [id0, id1] = id.to_be_bytes();
    let mut bytes = vec![VERSION_AND_LENGTH, datagram.tos, 0, 0, id0, id1, 0, 0];
    bytes.extend([datagram.ttl, UDP, 0, 0]);
    for ip in [from.ip(), to.ip()] {
        if let IpAddr::V4(ip) = ip {
            bytes.extend(ip.octets());
        }
    }
    for word in [from.port(), to.port(), length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes
}
