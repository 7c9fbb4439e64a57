//! From a checkpoint to a new socket, all or nothing.
//!
//! Everything that decides what the socket receives - options, memberships, filter - is in place
//! before it is bound, so that no datagram comes in under other rules than the owner's. A socket
//! that fails half way is closed; nothing outside it is ever touched.

use crate::checkpoint::Checkpoint;
use crate::diff::{brief, describe, diff};
use crate::error::{Error, ErrorKind};
use crate::kernel::{self, inject::Lazy};
use crate::map::Mapping;
use crate::netns;
use crate::option::{self, Stage, Value, Writer};
use crate::protocol::Protocol;
use crate::report::Report;
use crate::state::cork;
use crate::state::endpoint::{Endpoint, Failure};
use crate::state::filter::{self, Filter};
use crate::state::flow_labels;
use crate::state::locks::BufferLocks;
use crate::state::membership;
use crate::state::receive_queue;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol as Number, RecvFlags, SocketFlags, SocketType, socket_with,
};
use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

/// How to restore.
#[derive(Debug, Default)]
pub struct RestoreOptions {
    /// Go on without what cannot be restored exactly, and report it.
    pub lossy: bool,
    /// Addresses and devices that are called otherwise here.
    pub map: Vec<Mapping>,
    /// The network namespace to restore into; `None` for that of this thread.
    pub netns: Option<OwnedFd>,
    /// Read the new socket back and compare.
    pub verify: bool,
    /// Refuse where another socket has the address: with SO_REUSEADDR or SO_REUSEPORT a new one could
    /// share it, and would get some of what is for that one.
    pub alone: bool,
}

/// A restored socket.
#[derive(Debug)]
pub struct Restored {
    /// Its descriptor.
    pub fd: OwnedFd,
    /// What it does not have of the checkpoint; empty unless the restore was lossy.
    pub report: Report,
}

/// Who is in the place that a new socket takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beside {
    /// Nobody: what comes before the socket is complete is for nobody.
    Nobody,
    /// The socket that it replaces: from the moment that it takes the place, nothing may be lost.
    Replaced,
}

/// When corked data are put back: the first two into the unbound socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CorkAt {
    BeforeErrors,
    AfterErrors,
    InPlace,
}

impl Checkpoint {
    /// Makes a socket that is what the checkpoint says.
    ///
    /// Refused, naming each, when something cannot be restored exactly, unless `lossy` is set.
    /// Needs the privileges of what it writes: each row of [`option`] names its own.
    pub fn restore(&self, options: &RestoreOptions) -> Result<Restored, Error> {
        let mapped = crate::map::apply(std::slice::from_ref(self), &options.map)?;
        let mapped = mapped.first().unwrap_or(self);
        mapped.restore_by(options, &mut Lazy::default())
    }

    /// The same, where somebody else has the rights to put in what waits. `options.map` is passed over.
    pub fn restore_by(
        &self,
        options: &RestoreOptions,
        injector: &mut Lazy,
    ) -> Result<Restored, Error> {
        if options.alone {
            self.is_alone(options)?;
        }
        self.restore_mapped(options, injector)
    }

    /// Whether it may be bound where others are.
    fn shares(&self) -> bool {
        self.options.has("SO_REUSEADDR") || self.options.has("SO_REUSEPORT")
    }

    /// Whether nobody has its address; anything else that may be wrong is seen later.
    fn is_alone(&self, options: &RestoreOptions) -> Result<(), Error> {
        let local = self.endpoint.local;
        if local.port() == 0 || !self.shares() {
            return Ok(());
        }
        let probe = || {
            let socket = new_socket(self.protocol)?;
            if let Some(device) = self.options.get("SO_BINDTODEVICE") {
                option::put(socket.as_fd(), "SO_BINDTODEVICE", device, &self.interfaces)?;
            }
            Ok(rustix::net::bind(&socket, &local)?)
        };
        let bound = match &options.netns {
            Some(netns) => netns::enter_in_thread(netns.as_fd(), probe),
            None => probe(),
        };
        match bound {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRINUSE) => {
                let why = "the address is in use: another socket could lose datagrams to this one";
                let error = Error::new(ErrorKind::Refused, self.name(), why);
                Err(error.help(format!(
                    "`sockcr list src {local}` shows it: stop its owner first"
                )))
            }
            _ => Ok(()),
        }
    }

    fn restore_mapped(
        &self,
        options: &RestoreOptions,
        injector: &mut Lazy,
    ) -> Result<Restored, Error> {
        let mut report = Report::default();
        self.known_losses(&mut report);
        if !report.is_exact() && !options.lossy {
            return Err(self.refused(&report));
        }
        let fd = self.build_or_lock(options, injector, &mut report)?;
        if options.verify && (options.lossy || report.is_exact() || !self.shares()) {
            self.verify(fd.as_fd(), &mut report)?;
        }
        if !report.is_exact() && !options.lossy {
            return Err(self.refused(&report));
        }
        Ok(Restored { fd, report })
    }

    /// What the checkpoint itself says it lacks, or holds and this version does not understand.
    pub(crate) fn known_losses(&self, report: &mut Report) {
        report.not_carried.clone_from(&self.report.not_carried);
        let required = |number: u16| number < sockcr_image::number::INFORMATIONAL;
        for unknown in self.unknown.iter().filter(|u| required(u.number)) {
            let what = format!("attribute {}", unknown.number);
            report.lose(what, "made by a newer version, unknown to this one");
        }
    }

    pub(crate) fn refused(&self, report: &Report) -> Error {
        const MOST: usize = 20;
        let notes = report.not_carried.iter().take(MOST);
        let mut lines: String = notes.map(|note| format!("\n  {note}")).collect();
        if report.not_carried.len() > MOST {
            lines += &format!("\n  and {} more", report.not_carried.len() - MOST);
        }
        let why = format!("cannot be restored exactly:{lines}");
        Error::new(ErrorKind::Refused, self.name(), why).help("--lossy restores it without these")
    }

    /// A port that only a lock can take is taken with a lock when losses are allowed.
    fn build_or_lock(
        &self,
        options: &RestoreOptions,
        injector: &mut Lazy,
        report: &mut Report,
    ) -> Result<OwnedFd, Error> {
        let before = report.clone();
        let error = match self.build(options, injector, report) {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        };
        *report = before;
        let lockable = error.error.kind() == io::ErrorKind::Other && !self.endpoint.port_locked;
        if !options.lossy || !lockable || self.endpoint.local.port() == 0 {
            return Err(self.explain(error));
        }
        let mut locked = self.clone();
        locked.endpoint.port_locked = true;
        report.lose("port lock off", crate::error::reason(&error.error));
        locked
            .build(options, injector, report)
            .map_err(|failure| self.explain(failure))
    }

    fn build(
        &self,
        options: &RestoreOptions,
        injector: &mut Lazy,
        report: &mut Report,
    ) -> Result<OwnedFd, Failure> {
        let socket = self.make(options.netns.as_ref())?;
        let socket = self.prepare(socket, injector, report)?;
        // What is refused anyway takes no datagrams from those who share its address.
        if self.shares() && !options.lossy && !report.is_exact() {
            return Ok(socket);
        }
        self.settle(socket.as_fd(), Beside::Nobody, injector, report)?;
        Ok(socket)
    }

    /// A fresh socket in a network namespace, or in that of this thread.
    pub(crate) fn make(&self, netns: Option<&OwnedFd>) -> Result<OwnedFd, Failure> {
        let made = match netns {
            Some(netns) => netns::enter_in_thread(netns.as_fd(), || new_socket(self.protocol)),
            None => new_socket(self.protocol),
        };
        made.map_err(|error| Failure::at("socket", error))
    }

    /// The first half: a fresh socket gets everything that does not need its place, which it does not take.
    pub(crate) fn prepare(
        &self,
        socket: OwnedFd,
        injector: &mut Lazy,
        report: &mut Report,
    ) -> Result<OwnedFd, Failure> {
        let fd = socket.as_fd();
        if self.protocol.is_raw() {
            hush(fd).map_err(|error| Failure::at("filter from the start", error))?;
        }
        let mut writer = self.writer(fd);
        self.write_options(&mut writer, Stage::BeforeBind, report);
        let locked = self.buffer_locks.restore(fd, writer.written);
        lossy(locked, "SO_BUF_LOCK", report);
        for lease in &self.flow_labels {
            lossy_step(flow_labels::restore(fd, lease), report);
        }
        for joined in &self.memberships {
            if let Err(failure) = membership::restore(fd, joined, &self.interfaces) {
                let why = crate::error::reason(&failure.error);
                report.lose(failure.step, why + &self.map_hint(&failure.error));
            }
        }
        if !self.fills_in_place() {
            self.fill_queue(fd, injector, report);
        }
        let corks = self.corks();
        self.cork_at(CorkAt::BeforeErrors, corks, fd, report);
        self.make_errors(fd, corks, injector, report);
        self.cork_at(CorkAt::AfterErrors, corks, fd, report);
        self.write_options(&mut writer, Stage::AfterQueue, report);
        Ok(socket)
    }

    /// The second half: the socket takes its place, and gets what comes after.
    pub(crate) fn settle(
        &self,
        fd: BorrowedFd<'_>,
        beside: Beside,
        injector: &mut Lazy,
        report: &mut Report,
    ) -> Result<(), Failure> {
        self.take_place(fd, beside, injector, report)?;
        self.cork_at(CorkAt::InPlace, self.corks(), fd, report);
        let mut writer = self.writer(fd);
        self.write_options(&mut writer, Stage::AfterConnect, report);
        lossy(
            self.shutdown.unwrap_or_default().restore(fd),
            "shutdown",
            report,
        );
        self.write_options(&mut writer, Stage::Last, report);
        if let Some(descriptor) = &self.descriptor {
            descriptor.restore(fd, report);
        }
        Ok(())
    }

    fn writer<'a>(&'a self, fd: BorrowedFd<'a>) -> Writer<'a> {
        Writer {
            fd,
            options: &self.options,
            locks: self.buffer_locks,
            interfaces: &self.interfaces,
            written: BufferLocks::default(),
        }
    }

    /// Whether the kernel finds the socket for its queue: one of ping by its identifier, one of UDP-Lite by
    /// its port, unless others of its group could get it.
    fn fills_in_place(&self) -> bool {
        let lite = self.protocol.is_lite() && !self.options.has("SO_REUSEPORT");
        self.protocol.is_ping() || lite
    }

    /// Puts the receive queue back, if that can be done before the socket takes its place.
    pub(crate) fn fill_queue(&self, fd: BorrowedFd<'_>, injector: &mut Lazy, report: &mut Report) {
        if self.receive_queue.is_empty() || receive_queue::comes_later(&self.receive_queue) {
            return;
        }
        let filled = netns::within(fd, || {
            let (queue, injector) = (&self.receive_queue, injector.fill()?);
            let (protocol, interfaces) = (self.protocol, &self.interfaces);
            let filter = self.open_type_filter(fd)?;
            let done = receive_queue::restore(fd, protocol, queue, interfaces, injector, report);
            filter.map_or(Ok(()), |name| self.close_type_filter(fd, name))?;
            lossy_step(done, report);
            self.count_drops(fd, report)
        });
        lossy(filled, "put the receive queue back", report);
    }

    /// Has a raw socket of ICMP hear every type: its filter may be younger than what waits. Answers its
    /// name, if there is one.
    fn open_type_filter(&self, fd: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
        for (name, open) in [
            ("ICMP_FILTER", Value::Int(0)),
            ("ICMPV6_FILTER", Value::Bytes(vec![0; 32])),
        ] {
            if self.options.get(name).is_some() {
                option::put(fd, name, &open, &self.interfaces)?;
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn close_type_filter(&self, fd: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let value = self.options.get(name).ok_or(io::ErrorKind::NotFound)?;
        option::put(fd, name, value, &self.interfaces)
    }

    /// What is dropped on the way is counted for the new socket.
    fn count_drops(&self, fd: BorrowedFd<'_>, report: &mut Report) -> io::Result<()> {
        if self.options.has("SO_RXQ_OVFL") {
            let reader = kernel::reader().map_err(io::Error::other)?;
            let drops = reader.read(fd)?.drops;
            if drops > 0 {
                report.lose("drop counter", format!("stands at {drops} from the start"));
            }
        }
        Ok(())
    }

    /// When data are corked again. They bind the socket, so that an unbound one gets them before; they
    /// take a pending error with them (`sock_alloc_send_pskb`), so that with one they come before the
    /// errors. connect(2) gives what is corked already its own destination
    /// (`__ip4_datagram_connect`), and what makes an error may connect: else they come in place.
    fn corks(&self) -> Option<CorkAt> {
        let corked = self.cork.as_ref()?;
        let peer = self.endpoint.peer;
        let there = corked.destination;
        // The flow label does not count.
        let is_there = |peer: SocketAddr| (peer.ip(), peer.port()) == (there.ip(), there.port());
        let stays = peer.is_none_or(is_there) && !self.errors.connects();
        Some(match self.errors.pending != 0 && stays {
            true => CorkAt::BeforeErrors,
            false if self.endpoint.local.port() == 0 => CorkAt::AfterErrors,
            false => CorkAt::InPlace,
        })
    }

    fn cork_at(&self, now: CorkAt, when: Option<CorkAt>, fd: BorrowedFd<'_>, report: &mut Report) {
        let Some(corked) = self.cork.as_ref().filter(|_| when == Some(now)) else {
            return;
        };
        let restore = match now {
            CorkAt::InPlace => cork::restore,
            CorkAt::BeforeErrors | CorkAt::AfterErrors => cork::restore_unbound,
        };
        let done = restore(fd, corked, &self.options, &self.interfaces, report);
        lossy_step(done, report);
    }

    /// Makes the errors again.
    fn make_errors(
        &self,
        fd: BorrowedFd<'_>,
        corks: Option<CorkAt>,
        injector: &mut Lazy,
        report: &mut Report,
    ) {
        let mut errors = Cow::Borrowed(&self.errors);
        let later = matches!(corks, Some(CorkAt::AfterErrors | CorkAt::InPlace));
        if errors.pending != 0 && later {
            errors.to_mut().pending = 0;
            let why = "corking the data takes it away";
            report.lose("pending error", why);
        }
        if errors.is_empty() {
            return;
        }
        let what = match errors.queue.is_empty() {
            true => "pending error",
            false => "error queue",
        };
        if !self.protocol.is_udp() {
            return report.lose(what, "made again on UDP sockets only");
        }
        let made = netns::within(fd, || {
            errors.restore(fd, &self.interfaces, injector.fill()?, report)
        });
        lossy(made, what, report);
    }

    /// Attaches the programs, binds and connects; a socket that will be connected or was, gets its queue
    /// only then, or brings its group a program, hears nobody before. Nor does a raw one: see [`hush`].
    fn take_place(
        &self,
        fd: BorrowedFd<'_>,
        beside: Beside,
        injector: &mut Lazy,
        report: &mut Report,
    ) -> Result<(), Failure> {
        let none = Filter::default();
        let program = self.filter.as_ref().unwrap_or(&none);
        // A group whose member is replaced has its program already.
        let alone = beside == Beside::Nobody;
        let leads =
            alone && self.reuseport_program.is_some() && self.reuseport_index.unwrap_or(0) == 0;
        let queue = &self.receive_queue;
        let queue_later = receive_queue::comes_later(queue);
        let peer = self.endpoint.peer.map(|peer| (peer.ip(), peer.port()));
        let peer = peer.or(self.endpoint.heard.map(|heard| (heard, 0)));
        let in_place = self.fills_in_place() && !queue.is_empty();
        let waits = peer.is_some() || leads || queue_later || self.protocol.is_raw() || in_place;
        match (waits, peer) {
            (false, _) => lossy(program.restore(fd), "filter", report),
            // From the moment that it is connected it gets what the other one got.
            (true, Some(peer)) if !alone => filter::only_from(fd, peer, program)
                .map_err(|e| Failure::at("filter while unconnected", e))?,
            _ => filter::block(fd).map_err(|e| Failure::at("filter while unconnected", e))?,
        }
        let take = || {
            let (options, interfaces) = (&self.options, &self.interfaces);
            self.endpoint
                .restore(fd, self.protocol, options, interfaces)
        };
        if queue_later && self.protocol.is_udp() {
            receive_queue::restore_in_place(fd, take, queue, &self.interfaces, report)?;
        } else if in_place && self.protocol.is_lite() {
            let fill = || self.fill_queue(fd, injector, report);
            receive_queue::fill_alone(fd, take, fill)?;
        } else {
            take()?;
        }
        if queue_later && !self.protocol.is_udp() {
            report.lose(
                "receive queue",
                "without CAP_BPF only UDP sockets get theirs",
            );
        }
        if in_place && self.protocol.is_ping() {
            self.fill_queue(fd, injector, report);
        }
        if let Some(program) = &self.reuseport_program {
            lossy(program.restore_group(fd), "SO_REUSEPORT program", report);
        }
        if waits && let Err(error) = program.replace_block(fd) {
            // A filter that is refused must not leave the one that lets nothing in.
            filter::unblock(fd).map_err(|e| Failure::at("filter", e))?;
            lossy(Err(error), "filter", report);
        }
        Ok(())
    }

    fn write_options(&self, writer: &mut Writer<'_>, stage: Stage, report: &mut Report) {
        for refused in writer.write(stage) {
            let value = refused.row.kind.show(&refused.value, &self.interfaces);
            let mut why = crate::error::reason(&refused.error);
            if let Some(capability) = refused.row.capability
                && refused.error.kind() == io::ErrorKind::PermissionDenied
            {
                why = format!("{why}: needs {capability}");
            }
            report.lose(
                format!("{} {value}", refused.row.name),
                why + &self.map_hint(&refused.error),
            );
        }
    }

    /// Reads the new socket back: what the kernel changed in silence is a loss too.
    fn verify(&self, fd: BorrowedFd<'_>, report: &mut Report) -> Result<(), Error> {
        self.compare(fd, Checkpoint::dump(&fd)?, report)
    }

    /// Compares what was read back of the new socket.
    pub(crate) fn compare(
        &self,
        fd: BorrowedFd<'_>,
        mut now: Checkpoint,
        report: &mut Report,
    ) -> Result<(), Error> {
        // What has come in since it is bound is none of the checkpoint's.
        now.receive_queue.truncate(self.receive_queue.len());
        now.errors.queue.truncate(self.errors.queue.len());
        if self.errors.pending == 0 {
            now.errors.pending = 0;
        }
        let mut wanted = self.clone();
        if let (Some(row), Some(_)) = (option::find("SO_INCOMING_CPU"), self.endpoint.peer) {
            // Every datagram of the peer overwrites it (`sk_incoming_cpu_update`).
            wanted.options.set(row, now.options.get(row.name).cloned());
        }
        wanted.report = now.report.clone();
        wanted.unknown.clear();
        if kernel::reader().is_err() {
            wanted.without_hidden(fd, &now);
        }
        // A long queue that is the same need not be put into words, or bytes.
        if wanted.interfaces == now.interfaces && wanted.receive_queue == now.receive_queue {
            wanted.receive_queue.clear();
            now.receive_queue.clear();
        }
        let bytes = |checkpoint: &Checkpoint| checkpoint.clone().canonical().to_bytes();
        if bytes(&wanted)? == bytes(&now)? {
            return Ok(());
        }
        for difference in diff(&wanted, &now) {
            let (had, has) = brief(&difference, "nothing");
            if !report.tells_of(&difference.what) {
                report.lose(difference.what, format!("{had} became {has}"));
            }
        }
        Ok(())
    }

    /// Compares a socket that has not taken its place with the checkpoint: all that the first half makes but
    /// its queue.
    pub(crate) fn compare_unplaced(
        &self,
        fd: BorrowedFd<'_>,
        now: Checkpoint,
        report: &mut Report,
    ) -> Result<(), Error> {
        let mut wanted = self.clone();
        wanted.receive_queue.clear();
        wanted.endpoint = now.endpoint;
        (wanted.filter, wanted.reuseport_program) =
            (now.filter.clone(), now.reuseport_program.clone());
        (wanted.shutdown, wanted.descriptor) = (now.shutdown, now.descriptor);
        if self.corks() == Some(CorkAt::InPlace) {
            wanted.cork.clone_from(&now.cork);
        }
        let later =
            |row: &&option::Row| matches!(row.written(), Some(Stage::AfterConnect | Stage::Last));
        for row in self.protocol.carried().filter(later) {
            wanted.options.set(row, now.options.get(row.name).cloned());
        }
        wanted.compare(fd, now, report)
    }

    /// Compares where the socket is, and, where taking the place may have changed more, all but its queue.
    /// `same`: another one has had this very place, with the same settings, so that the kernel changes nothing that it has not
    /// changed there (`inet_bind_sk`, `inet6_bind_sk`, `__ip6_datagram_connect`). What a BPF program of the control group
    /// sets as it pleases at bind(2) or connect(2) is not seen then.
    pub(crate) fn compare_placed(
        &self,
        fd: BorrowedFd<'_>,
        same: bool,
        report: &mut Report,
    ) -> Result<(), Error> {
        let endpoint = &self.endpoint;
        let plain = endpoint.peer.is_none() && endpoint.heard.is_none();
        if same || plain && !self.protocol.is_ipv6() {
            let failed = |error| Error::system(format!("{}: read its address", self.name()), error);
            self.compare_endpoint(fd, report).map_err(failed)?;
            if self.protocol.is_ipv6() {
                self.compare_device(fd, report);
            }
            return Ok(());
        }
        let mut wanted = self.clone();
        wanted.receive_queue.clear();
        wanted.compare(fd, Checkpoint::dump_own_without_queue(&fd)?, report)
    }

    fn compare_endpoint(&self, fd: BorrowedFd<'_>, report: &mut Report) -> io::Result<()> {
        let hidden = kernel::reader().map_err(io::Error::other)?.read(fd)?;
        let now = Endpoint::dump(fd, self.protocol, Some(&hidden), report)?;
        let name = |peer: Option<SocketAddr>| peer.map_or("none".into(), |peer| peer.to_string());
        if now.peer != self.endpoint.peer {
            let why = format!("{} became {}", name(self.endpoint.peer), name(now.peer));
            report.lose("peer", why);
        } else if now != self.endpoint {
            let (before, now) = (self.endpoint.local, now.local);
            let why = format!("{before} became {now}, or its locks changed");
            report.lose("local address", why);
        }
        Ok(())
    }

    /// An address or a peer of one link binds to its device.
    fn compare_device(&self, fd: BorrowedFd<'_>, report: &mut Report) {
        const DEVICE: &str = "SO_BINDTODEVICE";
        let read = |row| option::read_whole(row, fd, None);
        // One that is gone has no name, here or in a dump.
        let now = option::find(DEVICE).and_then(|row| read(row).ok().flatten());
        if now.as_ref() != self.options.get(DEVICE) {
            report.lose(DEVICE, "it became another one");
        }
    }

    /// Leaves out what nobody sees without BPF: to be as restore made it is all that `now`, read
    /// back, can show.
    fn without_hidden(&mut self, fd: BorrowedFd<'_>, now: &Checkpoint) {
        self.options.without_hidden(fd);
        self.endpoint.address_locked = now.endpoint.address_locked;
        self.endpoint.port_locked = now.endpoint.port_locked;
        self.endpoint.source = now.endpoint.source;
        self.endpoint.heard = now.endpoint.heard;
        // Each datagram was compared when it was put back; peeking again shows less of it.
        self.receive_queue.clone_from(&now.receive_queue);
        self.cork.clone_from(&now.cork);
        self.errors.clone_from(&now.errors);
        self.reuseport_program.clone_from(&now.reuseport_program);
        if let Some(shutdown) = &mut self.shutdown {
            shutdown.send &= shutdown.receive;
        }
        let order = now.memberships.iter().map(|m| describe(now, m));
        let order: Vec<String> = order.collect();
        let mut memberships = std::mem::take(&mut self.memberships);
        memberships.retain(|membership| !membership.anycast);
        for membership in &mut memberships {
            membership.address = Ipv4Addr::UNSPECIFIED;
        }
        memberships.sort_by_key(|m| order.iter().position(|have| *have == describe(self, m)));
        self.memberships = memberships;
    }

    pub(crate) fn explain(&self, failure: Failure) -> Error {
        let errno = Errno::from_io_error(&failure.error);
        let local = self.endpoint.local;
        let help = match errno {
            Some(Errno::ADDRNOTAVAIL) => {
                let address = self.unavailable(&failure.step);
                Some(format!(
                    "{address} is no address of this place: --map {address}=ADDRESS"
                ))
            }
            Some(Errno::ADDRINUSE) => Some(format!(
                "another socket has {local}: stop its owner (`sockcr list src {local}` shows it); \
                 or the port is in net.ipv4.ip_local_reserved_ports"
            )),
            Some(Errno::ACCESS) if failure.step.starts_with("bind") => {
                Some("ports below 1024 need CAP_NET_BIND_SERVICE".into())
            }
            None if failure.step.starts_with("bind") => {
                Some("--lossy restores it with the port locked".into())
            }
            Some(Errno::NETUNREACH) => Some("no route leads there from here".into()),
            _ if failure.step == "socket" => needed(self.protocol).map(String::from),
            _ => None,
        };
        let mut what = format!("{}: {}", self.name(), failure.step);
        if failure.step.contains(&local.to_string()) {
            what = failure.step;
        }
        let error = Error::system(what, failure.error);
        match help {
            Some(help) => error.help(help),
            None => error,
        }
    }

    fn unavailable(&self, step: &str) -> IpAddr {
        let source = self.endpoint.source.unwrap_or(self.endpoint.local.ip());
        if step.starts_with("bind") {
            self.endpoint.local.ip()
        } else {
            source
        }
    }

    /// The `--map` that would help, when a device or an address is not here.
    fn map_hint(&self, error: &io::Error) -> String {
        let text = error.to_string();
        let named = self.interfaces.iter().map(|(_, name)| name);
        let named = named.filter(|name| text.starts_with(&format!("device {name}:")));
        let bound = match self.options.get("SO_BINDTODEVICE") {
            Some(Value::Text(name)) => Some(name.as_str()),
            _ => None,
        };
        let errno = Errno::from_io_error(error);
        let bound = bound.filter(|_| errno == Some(Errno::NODEV));
        if let Some(name) = named.chain(bound).next() {
            return format!(" (--map {name}=DEVICE)");
        }
        match (errno, self.options.get("IP_MULTICAST_IF")) {
            (Some(Errno::ADDRNOTAVAIL), Some(Value::Pair(address, 0))) => {
                let address = Ipv4Addr::from(*address as u32);
                format!(" (--map {address}=ADDRESS)")
            }
            _ => String::new(),
        }
    }
}

/// Restores several, all or nothing, in the order in which the members of a SO_REUSEPORT group
/// were bound; answers them in the order given.
pub fn restore_all(
    checkpoints: &[Checkpoint],
    options: &RestoreOptions,
) -> Result<Vec<Restored>, Error> {
    let mapped = crate::map::apply(checkpoints, &options.map)?;
    let mut order: Vec<(usize, &Checkpoint)> = mapped.iter().enumerate().collect();
    order.sort_by_key(|(_, checkpoint)| checkpoint.reuseport_index);
    if options.alone {
        mapped.iter().try_for_each(|one| one.is_alone(options))?;
    }
    // Coming and going it costs some 15 ms.
    let mut injector = Lazy::default();
    let mut restored: Vec<(usize, Restored)> = Vec::with_capacity(order.len());
    for (at, checkpoint) in order {
        restored.push((at, checkpoint.restore_mapped(options, &mut injector)?));
    }
    restored.sort_by_key(|(at, _)| *at);
    Ok(restored.into_iter().map(|(_, restored)| restored).collect())
}

/// A fresh socket of this kind, in the network namespace of this thread.
pub(crate) fn open(protocol: &Protocol) -> Result<OwnedFd, Error> {
    new_socket(protocol).map_err(|error| {
        let error = Error::system(format!("open a {protocol} socket"), error);
        match needed(protocol) {
            Some(help) => error.help(help),
            None => error,
        }
    })
}

/// What not everybody has who wants to open such a socket.
fn needed(protocol: &Protocol) -> Option<&'static str> {
    if protocol.is_raw() {
        Some("raw sockets need CAP_NET_RAW")
    } else if protocol.is_ping() {
        Some("ping sockets are for the groups of net.ipv4.ping_group_range")
    } else {
        (!protocol.is_udp()).then_some("UDP-Lite is not in every kernel, and in none of the newest")
    }
}

pub(crate) fn new_socket(protocol: &Protocol) -> io::Result<OwnedFd> {
    let family = AddressFamily::from_raw(protocol.family as u16);
    let kind = SocketType::from_raw(protocol.socket_type);
    let number = std::num::NonZeroU32::new(protocol.number).map(Number::from_raw);
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, number)?)
}

/// A raw socket hears all of its protocol from the moment it is made. Nothing may come in before
/// everything that decides about it is in its place, and nothing may have.
fn hush(fd: BorrowedFd<'_>) -> io::Result<()> {
    filter::block(fd)?;
    while rustix::net::recv(fd, &mut [0; 0][..], RecvFlags::DONTWAIT).is_ok() {}
    Ok(())
}

fn lossy(done: io::Result<()>, what: &str, report: &mut Report) {
    if let Err(error) = done {
        report.lose(what, crate::error::reason(&error));
    }
}

fn lossy_step(done: Result<(), Failure>, report: &mut Report) {
    if let Err(failure) = done {
        report.lose(failure.step, crate::error::reason(&failure.error));
    }
}
