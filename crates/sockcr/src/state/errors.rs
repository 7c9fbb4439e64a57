//! The pending error and the error queue, read by BPF and made again.
//!
//! | an entry of origin | is made by |
//! |---|---|
//! | ICMP | the ICMP message once more, on the loopback device, about a datagram from a port that nobody else has ([`Injector::notify`](crate::kernel::inject::Injector::notify)) |
//! | this host | sending a datagram that is too large, where the route has the same MTU as it had |
//!
//! An AF_INET6 socket hears those of both families. It is never connected meanwhile: it would stay deaf to
//! all others afterwards (`__udp_disconnect`).
//!
//! Each ICMP entry also becomes the pending error (`__udp4_lib_err`, `__udp6_lib_err`). One without an entry is made
//! with one, which IP_RECVERR=0 then throws away; the error of the first entry, by taking another
//! one from before it (`sock_dequeue_err_skb`).

use super::endpoint::plain;
use super::filter;
use super::interfaces::Interfaces;
use super::meanwhile::{self, Buffer, Meanwhile};
use crate::kernel::inject::{Fill, Notice};
use crate::kernel::{self, ErrorEntry, Hidden};
use crate::option::Options;
use crate::report::Report;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socket_with};
use sockcr_sys::message::{Outgoing, add_control, send_many};
use sockcr_sys::sockopt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_ERROR: i32 = 4;
const SO_BROADCAST: i32 = 6;
const SO_REUSEPORT: i32 = 15;
const SO_MARK: i32 = 36;
const SO_TIMESTAMPING: i32 = 37;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_IP: i32 = 0;
const IP_OPTIONS: i32 = 4;
const IP_MTU_DISCOVER: i32 = 10;
const IP_RECVERR: i32 = 11;
const IP_MTU: i32 = 14;
const IP_RECVERR_RFC4884: i32 = 26;
const IP_UNICAST_IF: i32 = 50;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const IPPROTO_IPV6: i32 = 41;
const IPV6_MTU_DISCOVER: i32 = 23;
const IPV6_MTU: i32 = 24;
const IPV6_RECVERR: i32 = 25;
const IPV6_RECVERR_RFC4884: i32 = 31;
const IPV6_PKTINFO: i32 = 50;
const IP_PKTINFO: i32 = 8;
const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;
const MSG_ERRQUEUE: i32 = 0x2000;
const MSG_DONTWAIT: i32 = 0x40;
const MSG_MORE: i32 = 0x8000;
const PMTUDISC_WANT: i32 = 1;
const PMTUDISC_DO: i32 = 2;
/// With it no ICMP message changes what this host knows of a path (`ip_sk_accept_pmtu`), and corked
/// data stay.
const PMTUDISC_OMIT: i32 = 5;
const LOOPBACK: i32 = 1;
const ROOM: i32 = i32::MAX / 2;
const MOST_OPTIONS: usize = 40;
/// IPOPT_NOP
const NO_OPERATION: u8 = 1;
/// The largest datagram.
const LARGEST: usize = 65_507;

const ANY_PORT: u16 = 9;

const ORIGIN_LOCAL: u8 = 1;
const ORIGIN_ICMP: u8 = 2;
const ORIGIN_ICMP6: u8 = 3;
/// ICMPV6_DEST_UNREACH to ICMPV6_PARAMPROB
const UNREACHABLE6: u8 = 1;
const TOO_BIG6: u8 = 2;
const TIME_EXCEEDED6: u8 = 3;
const PARAMETER_PROBLEM6: u8 = 4;
const UNREACHABLE: u8 = 3;
const TIME_EXCEEDED: u8 = 11;
const PARAMETER_PROBLEM: u8 = 12;
/// `NR_ICMP_UNREACH`
const LAST_UNREACHABLE: u8 = 15;
/// `ICMP_EXC_FRAGTIME`
const FRAGMENT_TIME: u8 = 1;

/// The pending error (SO_ERROR) and the error queue, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// What SO_ERROR would tell, 0 for nothing.
    pub pending: i32,
    /// What MSG_ERRQUEUE would tell, of origin ICMP or this host.
    pub queue: Vec<ErrorEntry>,
}

impl Errors {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pending == 0 && self.queue.is_empty()
    }

    /// Whether making them connects the socket for a moment.
    pub(crate) fn connects(&self) -> bool {
        self.queue.iter().any(|entry| entry.origin == ORIGIN_LOCAL)
    }

    /// Reads them; what cannot be made again is reported.
    pub(crate) fn dump(
        fd: BorrowedFd<'_>,
        hidden: Option<&Hidden>,
        options: &Options,
        report: &mut Report,
    ) -> Errors {
        let Some(hidden) = hidden else {
            return Errors::default();
        };
        let mut errors = Errors {
            pending: hidden.pending_error,
            queue: Vec::new(),
        };
        if hidden.error_queue == 0 {
            return errors;
        }
        let queue = kernel::reader()
            .map_err(io::Error::other)
            .and_then(|reader| reader.error_queue(fd));
        let Some(queue) = report.known("error queue", queue) else {
            return errors;
        };
        tell_statistics(fd, &queue, report);
        let (made, lost) = queue.into_iter().partition(can_be_made);
        errors.queue = made;
        errors
            .queue
            .iter_mut()
            .for_each(|entry| entry.statistics = false);
        let from_network = |entry: &ErrorEntry| entry.origin == ORIGIN_ICMP;
        if options.has("IP_CHECKSUM") && errors.queue.iter().any(from_network) {
            let why = "is that of another message, which quotes another datagram";
            report.lose("error queue: IP_CHECKSUM", why);
        }
        let told = DEVICE_TELLING.iter().any(|name| options.has(name));
        for entry in &mut errors.queue {
            let by_link = entry.offender.is_some_and(|by| is_of_a_link(by.ip()));
            if !told && !by_link {
                entry.interface = 0;
            }
        }
        lose(&lost, report);
        errors
    }

    /// Makes them on a new, unbound socket without a filter, which is unbound again afterwards.
    pub(crate) fn restore(
        &self,
        fd: BorrowedFd<'_>,
        interfaces: &Interfaces,
        injector: &mut dyn Fill,
        report: &mut Report,
    ) -> io::Result<()> {
        if !self.queue.iter().all(can_be_made) {
            return Err(io::Error::other("holds an entry that nothing makes"));
        }
        let mut maker = Maker::prepare(fd, interfaces, injector, self.queue.is_empty())?;
        let made = maker.make(self, report);
        let back = maker.finish();
        made.and(back)?;
        self.check(fd, interfaces, report)
    }

    /// What a message of ours could not make the same is told.
    fn check(
        &self,
        fd: BorrowedFd<'_>,
        interfaces: &Interfaces,
        report: &mut Report,
    ) -> io::Result<()> {
        let reader = kernel::reader().map_err(io::Error::other)?;
        let now = reader.error_queue(fd)?;
        tell_statistics(fd, &now, report);
        let same = |(wanted, made): &(&ErrorEntry, &ErrorEntry)| {
            let mut made = (*made).clone();
            made.statistics = false;
            let mut wanted = (*wanted).clone();
            match wanted.interface {
                0 => made.interface = 0,
                index => wanted.interface = interfaces.local(fd, index).unwrap_or(0),
            }
            wanted == made
        };
        let same = self.queue.iter().zip(&now).take_while(same).count();
        let first = self.queue.get(same).zip(now.get(same));
        if (same, same) != (self.queue.len(), now.len()) && !report.tells_of("error queue") {
            let why = match first {
                Some((had, has)) if had.info != has.info => {
                    let whom = had.destination.map_or("nobody".into(), |to| to.to_string());
                    format!("about {whom}: an MTU of {} became {}", had.info, has.info)
                }
                _ => format!("entry {} of {} became another", same + 1, self.queue.len()),
            };
            report.lose("error queue", why);
        }
        let pending = reader.read(fd)?.pending_error;
        if pending != self.pending && !report.tells_of("pending error") {
            let why = format!("SO_ERROR {} became {pending}", self.pending);
            report.lose("pending error", why);
        }
        Ok(())
    }
}

/// What the owner is told beside an error is left to chance where BPF programs see its message, ours
/// among them (`tcx_run` leaves a pointer where `ip_icmp_error` sets nothing).
fn tell_statistics(fd: BorrowedFd<'_>, queue: &[ErrorEntry], report: &mut Report) {
    let count = queue.iter().filter(|entry| entry.statistics).count();
    let wanted = meanwhile::get(fd, SOL_SOCKET, SO_TIMESTAMPING).unwrap_or(0) != 0;
    if count > 0 && wanted {
        report.lose(
            "error queue: SCM_TIMESTAMPING_OPT_STATS",
            format!("told with {count} of them, though they have no statistics"),
        );
    }
}

/// What tells the device of an ICMP message.
const DEVICE_TELLING: [&str; 3] = ["IP_PKTINFO", "IPV6_RECVPKTINFO", "IPV6_2292PKTINFO"];

/// Whether its scope tells the device.
fn is_of_a_link(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if kernel::needs_scope(&ip))
}

/// Whether an entry can be made again: no other message becomes an error (`icmp_unreach`), and some
/// would do something to this host.
pub(crate) fn can_be_made(entry: &ErrorEntry) -> bool {
    let is = |address: Option<SocketAddr>, ipv6| address.is_some_and(|a| a.is_ipv6() == ipv6);
    entry.destination.is_some()
        && match entry.origin {
            ORIGIN_LOCAL => {
                entry.error == Errno::MSGSIZE.raw_os_error() && entry.offender.is_none()
            }
            ORIGIN_ICMP => {
                let becomes_an_error = match entry.kind {
                    UNREACHABLE => entry.code <= LAST_UNREACHABLE,
                    TIME_EXCEEDED => entry.code != FRAGMENT_TIME,
                    kind => kind == PARAMETER_PROBLEM,
                };
                becomes_an_error
                    && entry.offender.is_some_and(|by| by.port() == 0)
                    && is(entry.offender, false)
                    && is(entry.destination, false)
                    && entry.local.is_ipv4()
            }
            ORIGIN_ICMP6 => {
                (UNREACHABLE6..=PARAMETER_PROBLEM6).contains(&entry.kind)
                    && entry.offender.is_some_and(|by| by.port() == 0)
                    && is(entry.offender, true)
                    && is(entry.destination, true)
                    && entry.local.is_ipv6()
            }
            _ => false,
        }
}

fn lose(lost: &[ErrorEntry], report: &mut Report) {
    for (origins, what) in [
        (&[4_u8][..], "transmit time stamp"),
        (&[5], "zero-copy notice"),
        (&[6], "SO_TXTIME notice"),
        (&[0, 1, 2, 3], "error that only its cause could make again"),
    ] {
        let count = lost.iter().filter(|entry| origins.contains(&entry.origin));
        match count.count() {
            0 => {}
            1 => report.lose("error queue", format!("1 {what}")),
            count => report.lose("error queue", format!("{count} {what}s")),
        }
    }
}

/// A new socket on its way to its errors.
struct Maker<'a> {
    fd: BorrowedFd<'a>,
    /// It is one of AF_INET6.
    ipv6: bool,
    interfaces: &'a Interfaces,
    injector: &'a mut dyn Fill,
    meanwhile: Meanwhile<'a>,
    /// The device it is bound to otherwise.
    device: i32,
    /// The device that it sends by otherwise.
    unicast: i32,
    /// Its IP options.
    options: Vec<u8>,
    /// The port from which it seems to have sent; None: it is unbound.
    port: Option<u16>,
    /// IP_RECVERR and IPV6_RECVERR, where it hears the errors.
    wanted: Vec<(i32, i32)>,
}

impl<'a> Maker<'a> {
    /// Nothing comes in meanwhile, and no port is shared.
    fn prepare(
        fd: BorrowedFd<'a>,
        interfaces: &'a Interfaces,
        injector: &'a mut dyn Fill,
        only_pending: bool,
    ) -> io::Result<Self> {
        filter::block(fd)?;
        let mut maker = Self {
            fd,
            ipv6: plain(rustix::net::getsockname(fd)?)?.is_ipv6(),
            interfaces,
            injector,
            meanwhile: Meanwhile::new(fd),
            device: 0,
            unicast: 0,
            options: Vec::new(),
            port: None,
            wanted: Vec::new(),
        };
        let ready = maker.set_options();
        match ready.and_then(|()| maker.want(only_pending)) {
            Ok(()) => Ok(maker),
            Err(error) => {
                // Its own error would only hide the first.
                let _ = maker.finish();
                Err(error)
            }
        }
    }

    fn set_options(&mut self) -> io::Result<()> {
        let meanwhile = &mut self.meanwhile;
        meanwhile.room(Buffer::Receive, ROOM)?;
        self.device = meanwhile.keep(SOL_SOCKET, SO_BINDTOIFINDEX)?;
        self.unicast = meanwhile.keep(IPPROTO_IP, IP_UNICAST_IF)?;
        self.options = vec![0; MOST_OPTIONS];
        let length = sockopt::get(self.fd, IPPROTO_IP, IP_OPTIONS, &mut self.options)?;
        self.options.truncate(length);
        for (level, name, value) in [
            (SOL_SOCKET, SO_REUSEADDR, 0),
            (SOL_SOCKET, SO_REUSEPORT, 0),
            (SOL_SOCKET, SO_BROADCAST, 1),
            (SOL_SOCKET, SO_MARK, 0),
            (IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0),
            (IPPROTO_IP, IP_RECVERR_RFC4884, 0),
            (IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_OMIT),
            (SOL_UDP, UDP_SEGMENT, 0),
        ] {
            meanwhile.set(level, name, value)?;
        }
        for (name, value) in [
            (IPV6_RECVERR_RFC4884, 0),
            (IPV6_MTU_DISCOVER, PMTUDISC_OMIT),
        ] {
            if self.ipv6 {
                meanwhile.set(IPPROTO_IPV6, name, value)?;
            }
        }
        Ok(())
    }

    /// Wants errors of its families, or, where some are to stay, of those alone whose errors it wants: to
    /// want them no more throws all away, of both families (`skb_errqueue_purge`).
    fn want(&mut self, only_pending: bool) -> io::Result<()> {
        let families = [
            (IPPROTO_IP, IP_RECVERR, true),
            (IPPROTO_IPV6, IPV6_RECVERR, self.ipv6),
        ];
        for (level, name, _) in families.into_iter().filter(|(.., has)| *has) {
            if only_pending {
                self.meanwhile.set(level, name, 1)?;
            }
            if meanwhile::get(self.fd, level, name)? != 0 {
                self.wanted.push((level, name));
            }
        }
        Ok(())
    }

    fn wants(&self, family: (i32, i32)) -> bool {
        self.wanted.contains(&family)
    }

    fn make(&mut self, errors: &Errors, report: &mut Report) -> io::Result<()> {
        let is_message = |e: &&ErrorEntry| e.origin != ORIGIN_LOCAL;
        let messages = errors.queue.iter().filter(is_message);
        let last = messages.clone().next_back().map_or(0, |entry| entry.error);
        let first = errors.queue.first().filter(is_message);
        let pending = errors.pending;
        let by_first = first.is_some_and(|entry| entry.error == pending);
        let before = pending != 0 && pending != last && (by_first || messages.count() == 0);
        if before {
            self.begin(pending, by_first, report)?;
        }
        for entry in &errors.queue {
            match entry.origin {
                ORIGIN_LOCAL => self.exceed(entry, report)?,
                _ => self.hear(entry, report)?,
            }
        }
        if before && by_first {
            let mut room = [0; 0];
            sockcr_sys::message::receive(self.fd, &mut room, &mut [], MSG_ERRQUEUE)?;
        } else if pending == 0 && last != 0 {
            meanwhile::get(self.fd, SOL_SOCKET, SO_ERROR)?;
        }
        Ok(())
    }

    /// Makes the pending error before the queue: with an entry that is thrown away at once, or
    /// taken at the end.
    fn begin(&mut self, pending: i32, stays: bool, report: &mut Report) -> io::Result<()> {
        let message = match self.wants((IPPROTO_IPV6, IPV6_RECVERR)) {
            true => message6_of(pending).map(|message| (Ipv6Addr::LOCALHOST.into(), message)),
            false => None,
        };
        let ipv4 = || {
            let message = message_of(pending).filter(|_| self.wants((IPPROTO_IP, IP_RECVERR)));
            message.map(|message| (Ipv4Addr::LOCALHOST.into(), message))
        };
        let Some((here, (kind, code))) = message.or_else(ipv4) else {
            let error = crate::error::reason(&io::Error::from_raw_os_error(pending));
            report.lose("pending error", format!("{error}: no ICMP message says so"));
            return Ok(());
        };
        self.notify(&Notice {
            source: here,
            local: here,
            device: 0,
            ttl: 64,
            tos: 0,
            flow_label: 0,
            kind,
            code,
            rest: [0; 4],
            received_at: 0,
            destination: SocketAddr::new(here, 9),
            payload: &[],
        })?;
        if !stays {
            for on in [0, 1] {
                for (level, name) in &self.wanted {
                    meanwhile::set(self.fd, *level, *name, on)?;
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, entry: &ErrorEntry, report: &mut Report) -> io::Result<()> {
        let extended = i32::from(entry.data != 0);
        let mut device = 0;
        if entry.origin == ORIGIN_ICMP6 {
            meanwhile::set(self.fd, IPPROTO_IPV6, IPV6_RECVERR_RFC4884, extended)?;
            device = self.device_of(entry, report);
            let too_big = entry.kind == TOO_BIG6;
            if too_big && changes_path(entry, device) {
                let about = entry.destination.map(|to| to.ip().to_string());
                let about = about.unwrap_or_default();
                let why = "to tell its device would change what this host knows of the path";
                report.lose("error queue", format!("too big for {about}: {why}"));
                device = 0;
            }
            self.listen(too_big, device)?;
        } else {
            meanwhile::set(self.fd, IPPROTO_IP, IP_RECVERR_RFC4884, extended)?;
            self.listen(false, 0)?;
        }
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        self.notify(&Notice {
            source: entry.offender.map_or(nowhere.ip(), |by| by.ip()),
            local: entry.local,
            device,
            ttl: entry.ttl,
            tos: entry.tos,
            flow_label: entry.flow_label,
            kind: entry.kind,
            code: entry.code,
            rest: entry.rest,
            received_at: entry.received_at,
            destination: entry.destination.unwrap_or(nowhere),
            payload: &entry.payload,
        })
    }

    /// The index here of the device that the message came by.
    fn device_of(&self, entry: &ErrorEntry, report: &mut Report) -> u32 {
        let local = self.interfaces.local(self.fd, entry.interface);
        local.unwrap_or_else(|error| {
            report.lose("error queue: IPV6_PKTINFO", crate::error::reason(&error));
            0
        })
    }

    /// Hears by the device that the message comes by. One that says that a packet was too big is listened
    /// to only by who minds (`ip6_sk_accept_pmtu`), and changes what this host knows of a path by the
    /// device of the socket (`ip6_sk_update_pmtu`): by the loopback device none leads there
    /// ([`Injector::notify`](crate::kernel::inject::Injector::notify)).
    fn listen(&mut self, too_big: bool, device: u32) -> io::Result<()> {
        if !self.ipv6 {
            return Ok(());
        }
        self.take_port()?;
        let at = match (device, too_big) {
            (0, _) => LOOPBACK,
            (_, false) => 0,
            (device, true) => device as i32,
        };
        let mode = if too_big {
            PMTUDISC_WANT
        } else {
            PMTUDISC_OMIT
        };
        meanwhile::set(self.fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, mode)?;
        meanwhile::set(self.fd, SOL_SOCKET, SO_BINDTOIFINDEX, at)
    }

    fn notify(&mut self, notice: &Notice<'_>) -> io::Result<()> {
        let port = self.take_port()?;
        self.injector.notify(self.fd, port, notice)
    }

    /// The port that it has, or a new one.
    fn take_port(&mut self) -> io::Result<u16> {
        if let Some(port) = self.port {
            return Ok(port);
        }
        meanwhile::set(self.fd, SOL_SOCKET, SO_BINDTOIFINDEX, LOOPBACK)?;
        super::endpoint::bind_to_any(self.fd)?;
        let name = plain(rustix::net::getsockname(self.fd)?)?;
        self.port = Some(name.port());
        Ok(name.port())
    }

    fn leave_port(&mut self) -> io::Result<()> {
        self.port = None;
        Ok(rustix::net::connect_unspec(self.fd)?)
    }

    /// Sends too much (`ip_append_data` tells by `ip_local_error`), if that leads to this entry.
    fn exceed(&mut self, entry: &ErrorEntry, report: &mut Report) -> io::Result<()> {
        self.leave_port()?;
        if let Err(why) = self.try_to_exceed(entry) {
            let to = entry.destination.map(|to| to.to_string());
            let to = to.unwrap_or_default();
            let why = crate::error::reason(&why);
            report.lose("error queue", format!("too large for {to}: {why}"));
        }
        self.leave_port()
    }

    /// Corked, and a second time where the route takes the largest datagram: whatever its MTU,
    /// nothing leaves, and nothing stays (`udp_flush_pending_frames`). What is told is the MTU
    /// without the IP options that the socket had then.
    fn try_to_exceed(&self, entry: &ErrorEntry) -> io::Result<()> {
        let to = entry.destination.ok_or(io::ErrorKind::InvalidInput)?;
        if self.ipv6 {
            return self.exceed_unconnected(to, entry.info);
        }
        let taken = self.find_route(to, entry.info)?;
        sockopt::set(self.fd, IPPROTO_IP, IP_OPTIONS, &vec![NO_OPERATION; taken])?;
        meanwhile::set(self.fd, IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DO)?;
        let flags = SendFlags::DONTWAIT | SendFlags::MORE;
        let piece = || send(self.fd, &[0; LARGEST], flags);
        let sent = piece().and_then(|_| piece());
        meanwhile::set(self.fd, IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_OMIT)?;
        sockopt::set(self.fd, IPPROTO_IP, IP_OPTIONS, &self.options)?;
        match sent {
            Err(Errno::MSGSIZE) => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(io::Error::other("the kernel took twice as much")),
        }
    }

    /// The same of an AF_INET6 socket, by a route that another socket has found.
    fn exceed_unconnected(&self, to: SocketAddr, told: u32) -> io::Result<()> {
        let (device, taken) = self.find_device(to, told)?;
        let (level, name, kind, request) = match to {
            SocketAddr::V4(_) => {
                let request = [device.to_ne_bytes(), [0; 4], [0; 4]].concat();
                (IPPROTO_IP, IP_MTU_DISCOVER, IP_PKTINFO, request)
            }
            SocketAddr::V6(_) => {
                let request = [&[0; 16][..], &device.to_ne_bytes()].concat();
                (IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_PKTINFO, request)
            }
        };
        let mut control = Vec::new();
        if device != 0 {
            add_control(&mut control, level, kind, &request);
        }
        // Of IPv4 the port of the peer is told, whatever port it goes to (`ip_local_error`).
        let port = if to.port() == 0 { ANY_PORT } else { to.port() };
        let one = Outgoing {
            to: SocketAddr::new(to.ip(), port),
            control: &control,
            parts: [&[0; LARGEST], &[]],
        };
        let own = self.headers()?;
        sockopt::set(self.fd, IPPROTO_IP, IP_OPTIONS, &vec![NO_OPERATION; taken])?;
        self.set_headers(&header_of(taken))?;
        meanwhile::set(self.fd, level, name, PMTUDISC_DO)?;
        let piece = || send_many(self.fd, &[one], MSG_DONTWAIT | MSG_MORE);
        let sent = piece().and_then(|_| piece());
        meanwhile::set(self.fd, level, name, PMTUDISC_OMIT)?;
        self.set_headers(&own)?;
        sockopt::set(self.fd, IPPROTO_IP, IP_OPTIONS, &self.options)?;
        match sent {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("the kernel took twice as much")),
        }
    }

    /// The extension headers that all its datagrams have, by their options.
    fn headers(&self) -> io::Result<Headers> {
        let mut all = Headers::default();
        for (name, header) in STICKY.into_iter().zip(&mut all) {
            let mut room = vec![0; MOST_HEADER];
            let length = sockopt::get(self.fd, IPPROTO_IPV6, name, &mut room)?;
            room.truncate(length);
            *header = room;
        }
        Ok(all)
    }

    fn set_headers(&self, headers: &Headers) -> io::Result<()> {
        let mut all = STICKY.into_iter().zip(headers);
        all.try_for_each(|(name, header)| sockopt::set(self.fd, IPPROTO_IPV6, name, header))
    }

    /// The device by which a route of the MTU that was told leads there, 0 for any, and how much of it
    /// options or extension headers took.
    fn find_device(&self, to: SocketAddr, told: u32) -> io::Result<(i32, usize)> {
        let most = if to.is_ipv6() {
            MOST_HEADER
        } else {
            MOST_OPTIONS
        };
        let others = devices(self.fd)?;
        for device in [self.device, 0].into_iter().chain(others) {
            let taken = mtu(to, device).map(|mtu| i64::from(mtu) - i64::from(told));
            let taken = taken.ok().and_then(|taken| usize::try_from(taken).ok());
            let fits = |taken: &usize| *taken <= most && (!to.is_ipv6() || taken.is_multiple_of(8));
            if let Some(taken) = taken.filter(fits) {
                return Ok((device, taken));
            }
        }
        // What becomes of another one is told.
        mtu(to, self.device).map(|_| (self.device, 0))
    }

    /// Connects by a route of the MTU that was told, and answers how much of it IP options took: by
    /// the devices that the socket names, without those that it may have named since, or by any other
    /// one, as a bound address may have chosen it. Where no route has it, what becomes of the last one
    /// is told.
    fn find_route(&self, to: SocketAddr, told: u32) -> io::Result<usize> {
        let own = [(self.device, self.unicast), (self.device, 0)];
        let others = devices(self.fd)?.into_iter().map(|device| (device, 0));
        let mut error = None;
        for (device, unicast) in own.into_iter().chain(others).chain([(0, 0)]) {
            rustix::net::connect_unspec(self.fd)?;
            meanwhile::set(self.fd, SOL_SOCKET, SO_BINDTOIFINDEX, 0)?;
            meanwhile::set(self.fd, IPPROTO_IP, IP_UNICAST_IF, unicast)?;
            meanwhile::set(self.fd, SOL_SOCKET, SO_BINDTOIFINDEX, device)?;
            error = rustix::net::connect(self.fd, &to).err();
            if error.is_some() {
                continue;
            }
            let mtu = meanwhile::get(self.fd, IPPROTO_IP, IP_MTU)?;
            let taken = usize::try_from(i64::from(mtu) - i64::from(told));
            if let Some(taken) = taken.ok().filter(|taken| *taken <= MOST_OPTIONS) {
                return Ok(taken);
            }
        }
        error.map_or(Ok(0), |error| Err(error.into()))
    }

    fn finish(&mut self) -> io::Result<()> {
        let left = self.leave_port();
        let back = self.meanwhile.put_back();
        left.and(back).and(filter::unblock(self.fd))
    }
}

/// IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR, IPV6_DSTOPTS
const STICKY: [i32; 4] = [54, 55, 57, 59];
type Headers = [Vec<u8>; STICKY.len()];
/// The longest extension header.
const MOST_HEADER: usize = 2048;

/// A header of so many bytes in which nothing is said.
fn header_of(size: usize) -> Headers {
    let mut padding = vec![0; size];
    if let (Some(length), Some(words)) = (padding.get_mut(1), (size / 8).checked_sub(1)) {
        *length = words as u8;
    }
    [vec![], vec![], vec![], padding]
}

/// Whether a message that comes by this device tells the route by it of a smaller MTU than it has; one
/// that does not lead there hears nothing (`__ip6_rt_update_pmtu`).
fn changes_path(entry: &ErrorEntry, device: u32) -> bool {
    let known = entry.destination.map(|to| mtu(to, device as i32));
    let known = known.and_then(Result::ok);
    device != 0 && known.is_some_and(|mtu| i64::from(mtu) > i64::from(entry.info))
}

/// The MTU of the route that leads there by a device.
fn mtu(to: SocketAddr, device: i32) -> io::Result<i32> {
    let (family, level, name) = match to {
        SocketAddr::V4(_) => (AddressFamily::INET, IPPROTO_IP, IP_MTU),
        SocketAddr::V6(_) => (AddressFamily::INET6, IPPROTO_IPV6, IPV6_MTU),
    };
    let probe = socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    meanwhile::set(probe.as_fd(), SOL_SOCKET, SO_BINDTOIFINDEX, device)?;
    meanwhile::set(probe.as_fd(), SOL_SOCKET, SO_BROADCAST, 1)?;
    rustix::net::connect(&probe, &to)?;
    meanwhile::get(probe.as_fd(), level, name)
}

/// The devices of the network namespace of this thread.
fn devices(fd: BorrowedFd<'_>) -> io::Result<Vec<i32>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let names = table.lines().filter_map(|line| line.split_once(':'));
    let indexes = names.map(|(name, _)| sockcr_sys::interface::index(fd, name.trim()));
    // One may be gone meanwhile.
    Ok(indexes.flatten().map(|index| index as i32).collect())
}

/// The ICMP message that becomes this error (`icmp_err_convert`, net/ipv4/icmp.c).
fn message_of(error: i32) -> Option<(u8, u8)> {
    const CODES: [(Errno, u8); 8] = [
        (Errno::NETUNREACH, 0),
        (Errno::HOSTUNREACH, 1),
        (Errno::NOPROTOOPT, 2),
        (Errno::CONNREFUSED, 3),
        (Errno::MSGSIZE, 4),
        (Errno::OPNOTSUPP, 5),
        (Errno::HOSTDOWN, 7),
        (Errno::NONET, 8),
    ];
    let found = CODES
        .iter()
        .find(|(known, _)| known.raw_os_error() == error);
    match found {
        Some((_, code)) => Some((UNREACHABLE, *code)),
        None if error == Errno::PROTO.raw_os_error() => Some((PARAMETER_PROBLEM, 0)),
        None => None,
    }
}

/// The ICMPv6 message that becomes this error (`icmpv6_err_convert`, net/ipv6/icmp.c).
fn message6_of(error: i32) -> Option<(u8, u8)> {
    const MESSAGES: [(Errno, u8, u8); 5] = [
        (Errno::NETUNREACH, UNREACHABLE6, 0),
        (Errno::ACCESS, UNREACHABLE6, 1),
        (Errno::CONNREFUSED, UNREACHABLE6, 4),
        (Errno::HOSTUNREACH, TIME_EXCEEDED6, 0),
        (Errno::PROTO, PARAMETER_PROBLEM6, 0),
    ];
    let mut messages = MESSAGES.iter();
    let found = messages.find(|(known, ..)| known.raw_os_error() == error);
    found.map(|(_, kind, code)| (*kind, *code))
}
