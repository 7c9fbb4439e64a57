//! What was read of one socket.

use crate::error::{Error, ErrorKind};
use crate::kernel::{self, Corked, Hidden};
use crate::option::{self, Options, Value};
use crate::protocol::{self, Protocol};
use crate::report::{Note, Report};
use crate::state::cork;
use crate::state::descriptor::Descriptor;
use crate::state::endpoint::Endpoint;
use crate::state::errors::Errors;
use crate::state::filter::{self, Filter};
use crate::state::flow_labels::{self, FlowLabel};
use crate::state::interfaces::Interfaces;
use crate::state::locks::BufferLocks;
use crate::state::membership::{self, Membership};
use crate::state::receive_queue::{self, Datagram};
use crate::state::shutdown::Shutdown;
use crate::state::unread;
use rustix::fd::AsFd;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

/// Everything read of one socket: to be shown, edited, compared, written to an image and restored.
///
/// ```
/// use sockcr::{Checkpoint, RestoreOptions};
/// use std::net::UdpSocket;
///
/// let socket = UdpSocket::bind("127.0.0.1:0")?;
/// socket.set_broadcast(true)?;
/// let local = socket.local_addr()?;
///
/// let image = Checkpoint::dump(&socket)?.to_bytes()?;
/// drop(socket);
///
/// let restored = Checkpoint::from_bytes(&image)?.restore(&RestoreOptions::default())?;
/// let socket = UdpSocket::from(restored.fd);
/// assert_eq!(socket.local_addr()?, local);
/// assert!(socket.broadcast()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The inode the socket had; it names this one socket, and is left out of canonical images.
    pub inode: Option<u32>,
    /// The number its descriptor had; left out of canonical images.
    pub fd: Option<u32>,
    /// Its kind.
    pub protocol: &'static Protocol,
    /// Its options.
    pub options: Options,
    /// SO_BUF_LOCK.
    pub buffer_locks: BufferLocks,
    /// Where it is bound and connected to.
    pub endpoint: Endpoint,
    /// The flow labels of IPv6 that it has leased, oldest first.
    pub flow_labels: Vec<FlowLabel>,
    /// Its multicast groups, oldest first.
    pub memberships: Vec<Membership>,
    /// Its filter, empty when it has none; `None` when it could not be read.
    pub filter: Option<Filter>,
    /// The program that chooses within its SO_REUSEPORT group.
    pub reuseport_program: Option<Filter>,
    /// The datagrams that wait to be received, oldest first.
    pub receive_queue: Vec<Datagram>,
    /// The datagram that UDP_CORK or MSG_MORE holds back.
    pub cork: Option<Corked>,
    /// The errors that wait to be told.
    pub errors: Errors,
    /// The flags of its descriptor; `None` when the image does not know.
    pub descriptor: Option<Descriptor>,
    /// What shutdown(2) closed; `None` when the image does not know.
    pub shutdown: Option<Shutdown>,
    /// The names of the device indexes in it.
    pub interfaces: Interfaces,
    /// Its place in its SO_REUSEPORT group, when that could be seen.
    pub reuseport_index: Option<u32>,
    /// The bytes of memory that datagrams took that were with a device already.
    pub in_flight: u32,
    /// The datagrams that it had dropped.
    pub drops: u64,
    /// What it had and this checkpoint has not, and what was assumed.
    pub report: Report,
    /// Attributes of an image that this version does not know: number, nested, payload.
    pub unknown: Vec<UnknownAttribute>,
}

/// An attribute that this version does not know, kept as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownAttribute {
    /// Its number; from 0x2000 it is for information only.
    pub number: u16,
    /// Whether it says it holds attributes.
    pub nested: bool,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// How the process that owns a socket holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// `None`: this process.
    pub pid: Option<i32>,
    pub fd: u32,
    pub close_on_exec: bool,
}

impl Held {
    /// By a descriptor of this process.
    fn own(fd: BorrowedFd<'_>) -> Result<Held, Error> {
        use std::os::fd::AsRawFd;
        Ok(Held {
            pid: None,
            fd: fd.as_raw_fd() as u32,
            close_on_exec: sockcr_sys::descriptor::close_on_exec(fd)
                .map_err(|error| Error::system("read the descriptor's flags", error))?,
        })
    }
}

impl Checkpoint {
    /// Reads everything of a socket of this process, and changes nothing in it.
    ///
    /// No privilege is needed. With CAP_BPF and CAP_PERFMON also what no option shows is read
    /// ([`kernel`]); without, the report says what was assumed, and datagrams that wait are peeked
    /// at, for which SO_PEEK_OFF is on for a moment and a process watches over it.
    pub fn dump(socket: &impl AsFd) -> Result<Checkpoint, Error> {
        let fd = socket.as_fd();
        Checkpoint::dump_held(fd, Held::own(fd)?)
    }

    /// The same without the datagrams that wait.
    pub(crate) fn dump_own_without_queue(socket: &impl AsFd) -> Result<Checkpoint, Error> {
        let fd = socket.as_fd();
        Checkpoint::dump_without_queue(fd, Held::own(fd)?)
    }

    /// Reads a socket whose descriptor the process `pid` has given to us, as that process holds it: which number it has
    /// there, and whether execve(2) closes it, is not known.
    pub fn dump_passed(socket: &impl AsFd, pid: i32) -> Result<Checkpoint, Error> {
        let held = Held {
            pid: Some(pid),
            fd: 0,
            close_on_exec: false,
        };
        let checkpoint = Checkpoint::dump_held(socket.as_fd(), held)?;
        Ok(Checkpoint {
            fd: None,
            ..checkpoint
        })
    }

    /// Reads a socket through `fd`, our duplicate of a descriptor that another process holds.
    pub(crate) fn dump_held(fd: BorrowedFd<'_>, held: Held) -> Result<Checkpoint, Error> {
        Checkpoint::dump_what(fd, held, true)
    }

    /// The same without the datagrams that wait.
    pub(crate) fn dump_without_queue(fd: BorrowedFd<'_>, held: Held) -> Result<Checkpoint, Error> {
        Checkpoint::dump_what(fd, held, false)
    }

    fn dump_what(fd: BorrowedFd<'_>, held: Held, queue: bool) -> Result<Checkpoint, Error> {
        let protocol = protocol::of(fd)?;
        let mut report = Report::default();
        let hidden = hidden(fd, protocol, &mut report);
        read(fd, protocol, held, queue, hidden.as_ref(), &mut report)
            .map(|checkpoint| Checkpoint {
                report,
                ..checkpoint
            })
            .map_err(|error| Error::system(format!("dump {protocol} socket"), error))
    }

    /// What a fresh socket of this kind has, in the network namespace of this thread.
    pub fn fresh(protocol: &'static Protocol) -> Result<Checkpoint, Error> {
        let socket = crate::restore::open(protocol)?;
        Checkpoint::dump(&socket)
    }

    /// Leaves out what names this host, this one socket or one descriptor of it, so that equal
    /// sockets give equal bytes: inode, descriptor number, close-on-exec, place in a group, what is
    /// with a device, drops, assumptions. Device indexes are numbered anew, in the order of the names.
    #[must_use]
    pub fn canonical(mut self) -> Checkpoint {
        self.inode = None;
        self.fd = None;
        self.renumber_interfaces();
        if let Some(descriptor) = &mut self.descriptor {
            descriptor.close_on_exec = false;
        }
        self.reuseport_index = None;
        (self.in_flight, self.drops) = (0, 0);
        self.report.assumed.clear();
        self.unknown
            .retain(|unknown| unknown.number < sockcr_image::number::INFORMATIONAL);
        self
    }

    /// After its address was changed: bind(2) to one of IPv6 sets IPV6_V6ONLY for good, and goes to one of
    /// IPv4 only without it (`__inet6_bind`).
    pub(crate) fn speak_as_bound(&mut self, before: IpAddr) {
        let IpAddr::V6(now) = self.endpoint.local.ip() else {
            return;
        };
        let bound = self.endpoint.address_locked && now != before && !now.is_unspecified();
        if let Some(row) =
            option::find("IPV6_V6ONLY").filter(|_| bound && self.protocol.has_ports())
        {
            let only = now.to_ipv4_mapped().is_none();
            self.options.set(row, Some(Value::Int(only.into())));
        }
    }

    /// Changes what `name` names to what `text` says, as typed by a person: an option, or `local`
    /// or `peer`, an ADDR:PORT or `none`.
    pub fn edit(&mut self, name: &str, text: &str) -> Result<(), Error> {
        let bad = |why: String| Error::new(ErrorKind::BadInput, format!("{name}={text}"), why);
        if let "local" | "peer" = name {
            let before = self.endpoint.local.ip();
            let device = self.endpoint.edit(name, text, self.protocol).map_err(bad)?;
            self.speak_as_bound(before);
            return match device {
                Some(device) => self.edit("SO_BINDTODEVICE", &device),
                None => Ok(()),
            };
        }
        let row = option::find(name)
            .filter(|row| self.protocol.rows().any(|have| have == *row))
            .ok_or_else(|| {
                bad(format!("{} sockets have no such option", self.protocol))
                    .help("`sockcr options` lists them")
            })?;
        if !self.protocol.carries(row) {
            return Err(bad("a checkpoint does not carry this option".into())
                .help(format!("`sockcr options {}` says why", row.name)));
        }
        let value = match text {
            "default" if row.only_when_set() => None,
            _ => Some(row.kind.parse(text, &mut self.interfaces).map_err(bad)?),
        };
        // An empty name is no device: an image says that by leaving it out.
        let value = value.filter(|value| *value != Value::Text(String::new()));
        self.options.set(row, value);
        // As setsockopt(2) does: a size that was chosen is locked.
        match row.name {
            "SO_SNDBUF" => self.buffer_locks.send = true,
            "SO_RCVBUF" => self.buffer_locks.receive = true,
            _ => {}
        }
        self.forget_unused_interfaces();
        Ok(())
    }

    fn forget_unused_interfaces(&mut self) {
        let mut used = Vec::new();
        self.each_interface(|index| used.push(*index));
        self.interfaces.retain(&used);
    }

    fn renumber_interfaces(&mut self) {
        let new = self.interfaces.renumber();
        self.each_interface(|index| *index = new.get(index).copied().unwrap_or(*index));
    }

    /// Every device index that stands in it.
    pub(crate) fn each_interface(&mut self, mut change: impl FnMut(&mut u32)) {
        self.options.each_interface(&mut change);
        let memberships = self.memberships.iter_mut().map(|m| &mut m.interface);
        let received = self.receive_queue.iter_mut().map(|d| &mut d.interface);
        let corked = self.cork.iter_mut().map(|corked| &mut corked.device);
        let errors = self.errors.queue.iter_mut().map(|e| &mut e.interface);
        let all = memberships.chain(received).chain(corked).chain(errors);
        all.for_each(change);
    }

    /// How the socket is called in messages: protocol, addresses.
    pub fn name(&self) -> String {
        let protocol = self.protocol;
        let local = self.shown(&self.endpoint.local);
        match self.endpoint.peer {
            Some(peer) => format!("{protocol} {local} -> {}", self.shown(&peer)),
            None => format!("{protocol} {local}"),
        }
    }

    /// One of its own addresses in words: the device of a link-local one is that of SO_BINDTODEVICE.
    pub fn shown(&self, address: &SocketAddr) -> String {
        crate::target::show(address, self.bound_device())
    }

    pub(crate) fn bound_device(&self) -> Option<&str> {
        match self.options.get("SO_BINDTODEVICE") {
            Some(Value::Text(name)) => Some(name),
            _ => None,
        }
    }
}

/// Reads by BPF, or says what is assumed without.
fn hidden(fd: BorrowedFd<'_>, protocol: &Protocol, report: &mut Report) -> Option<Hidden> {
    let read = kernel::reader()
        .map_err(|unavailable| unavailable.to_string())
        .and_then(|reader| reader.read(fd).map_err(|error| error.to_string()));
    read.map_err(|why| {
        let ipv4 = "IP_TTL, IP_MULTICAST_IF, SO_TXTIME, SO_BUSY_POLL_BUDGET";
        let ipv6 = ", IPV6_UNICAST_HOPS, IPV6_MTU, IPV6_PKTINFO, IPV6_AUTOFLOWLABEL";
        let what = match protocol.is_ipv6() {
            true => ipv4.to_owned() + ipv6,
            false => ipv4.to_owned(),
        };
        report.assume(what, format!("taken as far as getsockopt tells: {why}"));
    })
    .ok()
}

fn read(
    fd: BorrowedFd<'_>,
    protocol: &'static Protocol,
    held: Held,
    queue: bool,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> io::Result<Checkpoint> {
    let mut failed = Vec::new();
    let options = option::dump(fd, protocol, hidden, |row, error| {
        failed.push(Note::new(row.name, unreadable(row.name, fd, &error)));
    });
    report.not_carried.append(&mut failed);
    let index = hidden.and_then(|hidden| hidden.reuseport_index);
    if index.unwrap_or(0) > 0 && options.get("SO_REUSEPORT") == Some(&Value::Int(0)) {
        report.lose(
            "SO_REUSEPORT group",
            "it is in one, but has taken SO_REUSEPORT off since",
        );
    }
    let unread = unread::report(fd, protocol, hidden, &options, report);
    report.known("queues and errors", unread);
    let descriptor = Descriptor::dump(fd, held.pid, held.close_on_exec);
    let inode = rustix::fs::fstat(fd)?.st_ino;
    let mut checkpoint = Checkpoint {
        inode: u32::try_from(inode).ok(),
        fd: Some(held.fd),
        protocol,
        buffer_locks: BufferLocks::dump(fd, hidden, report),
        endpoint: Endpoint::dump(fd, protocol, hidden, report)?,
        flow_labels: flow_labels::dump(fd, hidden, report),
        memberships: membership::dump(fd, protocol, hidden, report),
        filter: filter::dump(fd, report),
        reuseport_program: filter::dump_group(fd, hidden, report),
        receive_queue: match queue {
            true => receive_queue::dump(fd, protocol, hidden, &options, report),
            false => Vec::new(),
        },
        cork: cork::dump(fd, hidden, report),
        errors: Errors::dump(fd, hidden, &options, report),
        descriptor: report.known("descriptor flags", descriptor),
        shutdown: report.known("shutdown", Shutdown::dump(fd, hidden)),
        interfaces: Interfaces::default(),
        options,
        reuseport_index: index,
        in_flight: cork::in_flight(fd, hidden, report),
        drops: hidden.map_or(0, |hidden| hidden.drops),
        report: Report::default(),
        unknown: Vec::new(),
    };
    let mut interfaces = Interfaces::default();
    checkpoint.each_interface(|index| interfaces.learn(fd, *index, report));
    checkpoint.interfaces = interfaces;
    Ok(checkpoint)
}

/// SO_BINDTODEVICE answers ENODEV for a device that went away; SO_BINDTOIFINDEX still knows it.
fn unreadable(name: &str, fd: BorrowedFd<'_>, error: &io::Error) -> String {
    let index = option::find("SO_BINDTOIFINDEX").and_then(|row| row.read(fd).ok().flatten());
    match index.and_then(|index| index.number()) {
        Some(index) if name == "SO_BINDTODEVICE" => {
            format!("bound to the device with index {index}, which is gone")
        }
        _ => crate::error::reason(error),
    }
}
