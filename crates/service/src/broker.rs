//! The process that has the rights, one for each client: it takes requests that were read by somebody else, and
//! descriptors, and gives descriptors and what it has read of sockets.

use crate::fill;
use crate::message::{self, Command, Header, flags};
use crate::metrics::{Counter, Metrics};
use crate::packet::{Receiver, decode, line, send, send_all, take_leave};
use crate::parser;
use crate::peer::Peer;
use crate::policy::{Act, Standing, Verdict, judge};
use crate::request::{Ask, Request, What};
use crate::restorer::{self, How};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::process::{
    DumpableBehavior, Signal, WaitId, WaitIdOptions, pidfd_send_signal, set_dumpable_behavior,
    waitid,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sockcr::check::{Feature, features};
use sockcr::find::{self, Found, Holder, Listed};
use sockcr::kernel::inject::Injector;
use sockcr::{Checkpoint, Error, ErrorKind, Target, image, kernel, netns, protocol};
use sockcr_image::attribute::Writer;
use sockcr_image::{Error as ImageError, number};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use tracing::{debug, info, warn};

/// A client that takes nothing for so long is let go.
const PATIENCE: Duration = Duration::from_secs(10);
/// No restore takes longer.
const LONGEST_RESTORE: Duration = Duration::from_secs(30);
/// What fills sockets stays so long for the next one: it is in the way of all that passes the loopback device.
const READY: Duration = Duration::from_secs(1);

/// A client, and what it may.
#[derive(Debug)]
pub struct Client {
    /// Who it is.
    pub peer: Peer,
    /// The connection to it.
    pub connection: OwnedFd,
    metrics: Metrics,
    /// SO_NETNS_COOKIE of its network namespace, in which this process is.
    here: u64,
    administers: bool,
    sends: bool,
    may_see_figures: bool,
}

/// Serves one client until it has closed, or `stop` is closed.
pub fn run(
    connection: OwnedFd,
    metrics: Metrics,
    service: &OwnedFd,
    stop: &OwnedFd,
) -> io::Result<()> {
    // Whoever has rights in the user namespace that a restorer enters could look into it from then on
    // (`__ptrace_may_access`).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_socket_timeout(&connection, Timeout::Send, Some(PATIENCE))?;
    let client = match Client::new(connection.try_clone()?, metrics, service.as_fd()) {
        Ok(client) => client,
        Err(error) => {
            warn!(%error, "turned away");
            let (errno, text) = fault(&error);
            metrics.answered(None, errno, Duration::ZERO);
            let told = nothing().error(errno, &text, None);
            let sent = send(connection.as_fd(), &told, &[]);
            take_leave(connection.as_fd());
            return sent;
        }
    };
    drop(connection);
    let peer = &client.peer;
    info!(
        pid = peer.pid,
        uid = peer.user,
        administers = client.administers,
        "client"
    );
    let (ours, theirs) = line()?;
    let parser = sockcr_sys::process::spawn(None, || {
        // What it ends with tells nobody anything: the connection ends.
        u8::from(parser::run(&client.connection, &theirs).is_err())
    })?;
    drop(theirs);
    let served = Broker {
        client: &client,
        line: ours,
        injector: None,
        used: Instant::now(),
    }
    .serve(stop.as_fd());
    // It may wait for a client that sends nothing.
    pidfd_send_signal(&parser, Signal::KILL).or_else(gone)?;
    waitid(WaitId::PidFd(parser.as_fd()), WaitIdOptions::EXITED)?;
    take_leave(client.connection.as_fd());
    info!(pid = client.peer.pid, "client is gone");
    served
}

fn gone(error: Errno) -> Result<(), Errno> {
    match error {
        Errno::SRCH => Ok(()),
        error => Err(error),
    }
}

/// The header of an answer to nothing.
pub fn nothing() -> Header {
    Header {
        length: 0,
        kind: 0,
        flags: 0,
        sequence: 0,
        port: 0,
    }
}

/// The errno and the words of an error.
pub fn fault(error: &Error) -> (i32, String) {
    use std::error::Error as _;
    let source = error.source().and_then(|source| source.downcast_ref());
    let errno = source.and_then(Errno::from_io_error);
    let errno = match error.kind() {
        ErrorKind::NotFound => Errno::NOENT,
        ErrorKind::NotASocket => Errno::NOTSOCK,
        ErrorKind::NotSupported => Errno::NOSYS,
        ErrorKind::NotPermitted => errno.unwrap_or(Errno::PERM),
        ErrorKind::BadInput => Errno::INVAL,
        ErrorKind::Refused => Errno::OPNOTSUPP,
        _ => errno.unwrap_or(Errno::IO),
    };
    let text = match error.next_step() {
        Some(help) => format!("{error}\nhelp: {help}"),
        None => error.to_string(),
    };
    (errno.raw_os_error(), text)
}

impl Client {
    fn new(
        connection: OwnedFd,
        metrics: Metrics,
        service: BorrowedFd<'_>,
    ) -> Result<Client, Error> {
        let peer = Peer::of(connection.as_fd())?;
        let failed = |what: &'static str| move |error| Error::system(what, error);
        let judged = failed("judge the capabilities of the client");
        let administers = peer.administers(peer.network.as_fd()).map_err(judged)?;
        let sends = peer.sends_in(peer.network.as_fd()).map_err(judged)?;
        let own = rustix::process::geteuid().as_raw() == peer.user;
        let may_see_figures = match (own, peer.administers(service).map_err(judged)?) {
            (_, true) => Standing::Administrator,
            (true, _) => Standing::Owner,
            _ => Standing::Stranger,
        };
        let same = crate::peer::id(service)
            .and_then(|id| Ok(id == crate::peer::id(peer.network.as_fd())?));
        if !same.map_err(judged)? {
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(peer.network.as_fd(), kind).map_err(|error| {
                Error::system("enter the network namespace of the client", error.into())
            })?;
        }
        Ok(Client {
            peer,
            connection,
            metrics,
            here: netns::own_cookie().map_err(failed("ask for the network namespace"))?,
            administers,
            sends,
            may_see_figures: judge(Act::Metrics, may_see_figures) == Verdict::Allowed,
        })
    }

    fn send(&self, packet: &[u8], passed: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(self.connection.as_fd(), packet, passed)?;
        self.metrics.add(Counter::Sent, packet.len() as u64);
        Ok(())
    }

    fn send_all(&self, packets: &[Vec<u8>]) -> io::Result<()> {
        send_all(self.connection.as_fd(), packets)?;
        let sent: usize = packets.iter().map(Vec::len).sum();
        self.metrics.add(Counter::Sent, sent as u64);
        Ok(())
    }

    /// Tells an error.
    pub fn refuse(
        &self,
        request: &Request,
        errno: i32,
        text: &str,
        offset: Option<u32>,
    ) -> io::Result<()> {
        self.send(&request.header.error(errno, text, offset), &[])
    }

    /// Answers with a descriptor.
    pub fn give(&self, request: &Request, attributes: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let header = &request.header;
        self.send(&header.family(Command::Restore, 0, attributes), &[fd])?;
        self.acknowledge(header)
    }

    fn acknowledge(&self, header: &Header) -> io::Result<()> {
        match header.wants_ack() {
            true => self.send(&header.ack(), &[]),
            false => Ok(()),
        }
    }

    /// How it stands to a socket in its network namespace, and a holder through which it does. One that is its own
    /// is certain as long as it is there.
    fn stands(&self, socket: &Listed) -> Standing {
        let own = || {
            socket
                .holders
                .iter()
                .any(|holder| self.holds(holder, socket.inode))
        };
        match (self.administers, self.sends) {
            (true, _) => Standing::Administrator,
            (_, true) if is_raw(socket.socket_type) => Standing::Sender,
            _ if own() => Standing::Owner,
            _ => Standing::Stranger,
        }
    }

    fn may_dump(&self, socket: &Listed) -> Verdict {
        judge(here(socket.socket_type), self.stands(socket))
    }

    /// Whether a process of its user has this socket there, now.
    fn holds(&self, holder: &Holder, inode: u64) -> bool {
        let Some(owned) = self.peer.owned(holder) else {
            return false;
        };
        let link = format!("/proc/{}/fd/{}", holder.tid, holder.fd);
        let is =
            |name: std::path::PathBuf| name.as_os_str() == format!("socket:[{inode}]").as_str();
        std::fs::read_link(link).is_ok_and(is) && owned.is_still()
    }

    fn may_dump_elsewhere(&self, socket: &Listed) -> Verdict {
        let target = Target::Inode(socket.inode);
        let held = socket
            .holders
            .iter()
            .find_map(|holder| find::hold(*holder, Some(socket.inode)).ok());
        let seen =
            held.is_some_and(|held| self.permit(&target, held.socket.as_fd(), false).is_ok());
        match seen {
            true => Verdict::Allowed,
            false => Verdict::Unseen,
        }
    }

    /// Duplicates a socket of its network namespace from somebody it may have it from.
    fn hold(&self, target: &Target, socket: &Listed) -> Result<Found, Error> {
        let mut refused = None;
        for holder in &socket.holders {
            let hold = || find::hold(*holder, Some(socket.inode));
            match self.with_owner(*holder, hold) {
                (Ok(found), mine) if mine || self.administers => return Ok(found),
                (Err(error), _) => refused = Some(error),
                _ => {}
            }
        }
        match refused {
            None => Err(unseen(target)),
            Some(error) => match Errno::from_io_error(&error) {
                Some(Errno::BADF | Errno::SRCH | Errno::NOENT | Errno::NOTSOCK) => {
                    Err(unseen(target))
                }
                _ => Err(Error::system(
                    format!("{target}: duplicate its descriptor"),
                    error,
                )),
            },
        }
    }

    /// The sockets that are meant, if the client may dump them.
    fn find(&self, target: &Target) -> Result<Vec<Found>, Error> {
        match target {
            Target::Descriptor(thread, fd) => self.descriptor(target, *thread, *fd),
            Target::Process(thread) => self.of_process(target, *thread),
            _ => self.named(target),
        }
    }

    fn descriptor(&self, target: &Target, thread: i32, fd: i32) -> Result<Vec<Found>, Error> {
        let thread = self.peer.thread(thread).ok_or_else(|| unseen(target))?;
        let holder = Holder {
            pid: find::process_of(thread),
            tid: thread,
            fd,
        };
        let (found, mine) = self.with_owner(holder, || find::hold(holder, None));
        match found {
            Ok(found) => {
                self.permit(target, found.socket.as_fd(), mine)?;
                Ok(vec![found])
            }
            // Nobody else is told what a process has.
            Err(_) if !mine && !self.administers => Err(unseen(target)),
            Err(error) => Err(find::explain(target, thread, error)),
        }
    }

    /// What is done with a process, and whether that was one of the client's user all the time; who administers the
    /// namespace need not ask.
    fn with_owner<T>(&self, holder: Holder, work: impl FnOnce() -> T) -> (T, bool) {
        if self.administers {
            return (work(), false);
        }
        let owned = self.peer.owned(&holder);
        let done = work();
        (done, owned.is_some_and(|owned| owned.is_still()))
    }

    fn of_process(&self, target: &Target, thread: i32) -> Result<Vec<Found>, Error> {
        let called = thread;
        let thread = self.peer.thread(called).ok_or_else(|| unseen(target))?;
        let listing = find::list(Some(thread)).map_err(|error| match called == thread {
            true => error,
            // Its words would have our number.
            false => unseen(target),
        })?;
        let mut all = Vec::new();
        for socket in &listing.sockets {
            let first = socket.holders.first().copied();
            let Some(holder) = first else { continue };
            let hold = || find::hold(holder, Some(socket.inode));
            // What is closed meanwhile is not there.
            let (Ok(found), mine) = self.with_owner(holder, hold) else {
                continue;
            };
            match self.permit(target, found.socket.as_fd(), mine) {
                Ok(()) => all.push(found),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match all.is_empty() {
            true => Err(Error::new(
                ErrorKind::NotFound,
                target,
                "has no internet socket here",
            )),
            false => Ok(all),
        }
    }

    fn named(&self, target: &Target) -> Result<Vec<Found>, Error> {
        let named = find::named(target).map_err(|error| match error.kind() {
            // Its words would tell of other network namespaces.
            ErrorKind::NotFound => unseen(target),
            _ => error,
        })?;
        let sockets = named.iter().map(|socket| {
            verdict(target, self.may_dump(socket))?;
            self.hold(target, socket)
        });
        sockets.collect()
    }

    /// Whether it may dump a socket that we hold, and that is in a process of its own or not.
    fn permit(&self, target: &Target, socket: BorrowedFd<'_>, mine: bool) -> Result<(), Error> {
        let standing = match mine {
            true => Standing::Owner,
            false => Standing::Stranger,
        };
        self.permit_as(target, socket, standing)
    }

    fn permit_as(
        &self,
        target: &Target,
        socket: BorrowedFd<'_>,
        standing: Standing,
    ) -> Result<(), Error> {
        let failed = |error| Error::system(format!("{target}: its network namespace"), error);
        let kind = rustix::net::sockopt::socket_type(socket);
        let kind = kind.map_err(|error| failed(error.into()))?.as_raw();
        let (act, administers) = match netns::cookie(socket).map_err(failed)? == self.here {
            true => (here(kind), self.administers),
            false => {
                let there = sockcr_sys::netns::of_socket(socket).map_err(failed)?;
                let administers = self.peer.administers(there.as_fd()).map_err(failed)?;
                (Act::DumpElsewhere, administers)
            }
        };
        let standing = match (administers, act) {
            (true, _) => Standing::Administrator,
            (false, Act::DumpRawHere) if self.sends => Standing::Sender,
            _ => standing,
        };
        verdict(target, judge(act, standing))
    }

    fn dump(
        &self,
        request: &Request,
        what: &What,
        passed: Option<OwnedFd>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let target = match what {
            What::Inode(inode) => Target::Inode((*inode).into()),
            What::Named(name) => name.parse()?,
            What::Passed => return self.dump_passed(request, passed),
        };
        let found = self.find(&target)?;
        let mut answer = Vec::new();
        for socket in &found {
            match protocol::of(socket.socket.as_fd()) {
                Ok(_) => {
                    add_messages(&mut answer, request, &socket.dump()?)?;
                    self.metrics.add(Counter::Dumped, 1);
                    self.tell_begun(&mut answer)?;
                }
                Err(error) if error.kind() == ErrorKind::NotSupported && found.len() > 1 => {
                    answer.push(self.left_out(request, socket)?);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(answer)
    }

    /// Sends what there is of an answer, if it is much: the queues of many sockets are not kept at once.
    fn tell_begun(&self, answer: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        const MUCH: usize = 1 << 20;
        if answer.iter().map(Vec::len).sum::<usize>() < MUCH {
            return Ok(());
        }
        let told = self.send_all(answer);
        answer.clear();
        told.map_err(|error| Error::system("answer", error))
    }

    /// A socket of a kind that is not carried, of several.
    fn left_out(&self, request: &Request, socket: &Found) -> Result<Vec<u8>, Error> {
        let listed = find::list(Some(socket.holder.tid))?;
        let mut listed = listed.sockets.into_iter();
        let listed = listed.find(|listed| listed.inode == socket.inode);
        let listed = listed.ok_or_else(|| unseen(&Target::Inode(socket.inode)))?;
        self.listed(request, &listed)
    }

    fn dump_passed(
        &self,
        request: &Request,
        passed: Option<OwnedFd>,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let missing = || Error::new(ErrorKind::BadInput, "dump", "no descriptor came with it");
        let socket = passed.ok_or_else(missing)?;
        protocol::of(socket.as_fd())?;
        let inode =
            rustix::fs::fstat(&socket).map_err(|error| Error::system("dump", error.into()))?;
        let target = Target::Inode(inode.st_ino);
        self.permit_as(&target, socket.as_fd(), Standing::Bearer)?;
        let checkpoint = Checkpoint::dump_passed(&socket, self.peer.pid)?;
        let mut answer = Vec::new();
        add_messages(&mut answer, request, &checkpoint)?;
        self.metrics.add(Counter::Dumped, 1);
        Ok(answer)
    }

    fn list(&self, request: &Request, process: Option<i32>) -> Result<Vec<Vec<u8>>, Error> {
        let of = match process {
            None => None,
            Some(called) => {
                let target = Target::Process(called);
                Some(self.peer.thread(called).ok_or_else(|| unseen(&target))?)
            }
        };
        let listing = find::list(of)?;
        let mut hidden = listing.hidden;
        let mut answer = Vec::new();
        for socket in &listing.sockets {
            let visible = match socket.netns == self.here {
                true => self.may_dump(socket),
                // Of one process also those are meant that it has elsewhere.
                false if of.is_some() => self.may_dump_elsewhere(socket),
                false => Verdict::Unseen,
            };
            match visible {
                Verdict::Allowed => answer.push(self.listed(request, socket)?),
                Verdict::Forbidden => hidden += 1,
                Verdict::Unseen => {}
            }
        }
        let mut writer = Writer::new();
        writer.u32(number::HIDDEN, hidden as u32)?;
        answer.push(
            request
                .header
                .family(Command::List, flags::MULTI, &writer.finish()),
        );
        Ok(answer)
    }

    fn listed(&self, request: &Request, socket: &Listed) -> Result<Vec<u8>, Error> {
        let attributes = self.attributes(socket)?;
        Ok(request
            .header
            .family(Command::List, flags::MULTI, &attributes))
    }

    fn attributes(&self, socket: &Listed) -> Result<Vec<u8>, ImageError> {
        let mut writer = Writer::new();
        // sockfs numbers its inodes with 32 bits (`get_next_ino`).
        writer.u32(number::INODE, socket.inode as u32)?;
        writer.u32(number::SOCK_TYPE, socket.socket_type)?;
        writer.u32(number::FAMILY, socket.family)?;
        writer.u32(number::PROTOCOL, socket.number)?;
        if socket.cookie != 0 {
            writer.u64(number::COOKIE, socket.cookie)?;
        }
        writer.u64(number::NETNS, socket.netns)?;
        for holder in &socket.holders {
            let names = [holder.pid, holder.tid].map(|thread| self.peer.name_of(thread));
            if let [Some(pid), Some(tid)] = names {
                let numbers = [pid, tid, holder.fd].map(i32::to_ne_bytes);
                writer.put(number::HOLDER, numbers.as_flattened())?;
            }
        }
        writer.put(number::LOCAL, &address(&socket.local))?;
        writer.put(number::PEER, &address(&socket.peer))?;
        writer.u32(number::RECEIVE_BYTES, socket.receive_bytes)?;
        Ok(writer.finish())
    }

    /// What becomes of a request that is no restore and no check.
    fn answer(&self, request: &Request, passed: Option<OwnedFd>) -> Result<Vec<Vec<u8>>, Error> {
        let header = &request.header;
        match &request.ask {
            Ask::Family { all } => {
                let flags = if *all { flags::MULTI } else { 0 };
                let family =
                    header.controller(message::controller::NEW_FAMILY, flags, &message::family());
                Ok(vec![family])
            }
            Ask::Dump { what, .. } => self.dump(request, what, passed),
            Ask::List { process } => self.list(request, *process),
            Ask::Metrics if self.may_see_figures => {
                let mut writer = Writer::new();
                writer.str(number::TEXT, &self.metrics.text())?;
                Ok(vec![header.family(Command::Metrics, 0, &writer.finish())])
            }
            Ask::Metrics => {
                let why = "only the user of the service, and who administers its network namespace, may have them";
                Err(Error::new(ErrorKind::NotPermitted, "metrics", why))
            }
            Ask::Check | Ask::Restore { .. } | Ask::Wrong { .. } => Ok(Vec::new()),
        }
    }
}

fn is_raw(socket_type: u32) -> bool {
    socket_type == rustix::net::SocketType::RAW.as_raw()
}

/// What it is to dump a socket of this type in the network namespace of the client.
fn here(socket_type: u32) -> Act {
    match is_raw(socket_type) {
        true => Act::DumpRawHere,
        false => Act::DumpHere,
    }
}

/// What is told of a socket that there is none of, or that the client does not see.
fn unseen(target: &Target) -> Error {
    let why = "no such socket in this network namespace";
    Error::new(ErrorKind::NotFound, target, why).help("`sockcr list` shows what there is")
}

fn verdict(target: &Target, verdict: Verdict) -> Result<(), Error> {
    match verdict {
        Verdict::Allowed => Ok(()),
        Verdict::Unseen => Err(unseen(target)),
        Verdict::Forbidden => {
            let why = "it is not a socket of your user";
            let error = Error::new(ErrorKind::NotPermitted, target, why);
            Err(error.help("others need CAP_NET_ADMIN or CAP_CHECKPOINT_RESTORE"))
        }
    }
}

/// struct sockaddr_in, sockaddr_in6.
fn address(address: &SocketAddr) -> Vec<u8> {
    const AF_INET: u16 = 2;
    const AF_INET6: u16 = 10;
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(address) => {
            let ip = address.ip().octets();
            [&AF_INET.to_ne_bytes()[..], &port, &ip, &[0; 8]].concat()
        }
        SocketAddr::V6(address) => {
            let (ip, scope) = (address.ip().octets(), address.scope_id().to_ne_bytes());
            let flow = address.flowinfo().to_be_bytes();
            [&AF_INET6.to_ne_bytes()[..], &port, &flow, &ip, &scope].concat()
        }
    }
}

fn add_messages(
    answer: &mut Vec<Vec<u8>>,
    request: &Request,
    checkpoint: &Checkpoint,
) -> Result<(), Error> {
    for message in image::messages(checkpoint, 1)? {
        let command = match message.command {
            sockcr_image::file::Command::Queue => Command::Queue,
            _ => Command::Dump,
        };
        let packet = request
            .header
            .family(command, flags::MULTI, &message.attributes);
        if packet.len() > message::MAX_MESSAGE {
            let why = format!("a message of it would have {} bytes", packet.len());
            return Err(Error::system(why, Errno::MSGSIZE.into()));
        }
        answer.push(packet);
    }
    Ok(())
}

struct Broker<'a> {
    client: &'a Client,
    line: OwnedFd,
    injector: Option<Injector>,
    /// When that was needed last.
    used: Instant,
}

impl Broker<'_> {
    fn serve(&mut self, stop: BorrowedFd<'_>) -> io::Result<()> {
        let mut receiver = Receiver::default();
        loop {
            let mut wait = [
                PollFd::new(&self.line, PollFlags::IN),
                PollFd::from_borrowed_fd(stop, PollFlags::IN),
            ];
            let most = self.injector.as_ref().map(|_| timespec(READY));
            poll(&mut wait, most.as_ref())?;
            if self.used.elapsed() >= READY {
                self.injector = None;
            }
            match wait.map(|end| !end.revents().is_empty()) {
                // What was asked for before is answered first.
                [true, _] => {}
                [false, true] => return Ok(()),
                [false, false] => continue,
            }
            let packet = receiver.receive(self.line.as_fd())?;
            if packet.bytes.is_empty() {
                return Ok(());
            }
            let request: Request = decode(packet.bytes)?;
            if !self.one(&request, packet.descriptor)? {
                self.client.metrics.add(Counter::LetGo, 1);
                return Ok(());
            }
        }
    }

    /// Answers one request; answers whether the client stays.
    fn one(&mut self, request: &Request, passed: Option<OwnedFd>) -> io::Result<bool> {
        let begun = Instant::now();
        let command = command(&request.ask);
        let (errno, stays) = match (&request.ask, passed) {
            (
                Ask::Wrong {
                    errno,
                    text,
                    offset,
                    last,
                },
                _,
            ) => {
                self.client.refuse(request, *errno, text, *offset)?;
                (*errno, !last)
            }
            (
                Ask::Restore {
                    lossy,
                    alone,
                    waiting,
                },
                Some(image),
            ) => {
                let how = How {
                    lossy: *lossy,
                    alone: *alone,
                };
                let errno = self.restore(request, image, how, *waiting)?;
                send(self.line.as_fd(), b".", &[])?;
                (errno, true)
            }
            (Ask::Check, _) => (self.check(request)?, true),
            (_, passed) => (self.answer(request, passed)?, true),
        };
        let took = begun.elapsed();
        self.client.metrics.answered(command, errno, took);
        let command = command.map_or("family", Command::name);
        let micros = took.as_micros() as u64;
        match errno {
            0 => debug!(pid = self.client.peer.pid, command, micros, "answered"),
            errno => debug!(
                pid = self.client.peer.pid,
                command, micros, errno, "refused"
            ),
        }
        Ok(stays)
    }

    fn answer(&self, request: &Request, passed: Option<OwnedFd>) -> io::Result<i32> {
        let client = self.client;
        let mut answer = match client.answer(request, passed) {
            Ok(answer) => answer,
            Err(error) => {
                let (errno, text) = fault(&error);
                let offset = match &request.ask {
                    Ask::Dump { offset, .. } => Some(*offset),
                    _ => None,
                };
                client.refuse(request, errno, &text, offset)?;
                return Ok(errno);
            }
        };
        let multipart = match &request.ask {
            Ask::Family { all } => *all,
            ask => command(ask).is_some_and(Command::is_multipart),
        };
        if multipart {
            answer.push(request.header.done());
        } else if request.header.wants_ack() {
            answer.push(request.header.ack());
        }
        client.send_all(&answer)?;
        Ok(0)
    }

    fn restore(
        &mut self,
        request: &Request,
        image: OwnedFd,
        how: How,
        waiting: bool,
    ) -> io::Result<i32> {
        let client = self.client;
        let size = rustix::fs::fstat(&image)?.st_size;
        client
            .metrics
            .add(Counter::Received, u64::try_from(size).unwrap_or(0));
        let (act, standing) = match (waiting, client.administers, client.sends) {
            (false, ..) => (Act::RestoreEmpty, Standing::Stranger),
            (true, true, _) => (Act::RestoreWaiting, Standing::Administrator),
            (true, false, true) => (Act::RestoreWaiting, Standing::Sender),
            (true, false, false) => (Act::RestoreWaiting, Standing::Stranger),
        };
        if judge(act, standing) != Verdict::Allowed {
            let text = "restore: what waits in it comes from any address: that needs CAP_NET_RAW";
            client.refuse(request, Errno::PERM.raw_os_error(), text, None)?;
            return Ok(Errno::PERM.raw_os_error());
        }
        if waiting && let Ok(reader) = kernel::reader() {
            // The child may use programs, and may not load them. What fails here fails there, and is told.
            let _ = reader.get_ready();
        }
        let (ours, theirs) = line()?;
        let line = ours.as_fd();
        let errno = self.in_child(request, Some((line, waiting)), || {
            restorer::run(client, request, image, how, theirs)
        })?;
        if errno == 0 {
            client.metrics.add(Counter::Restored, 1);
        }
        Ok(errno)
    }

    fn check(&mut self, request: &Request) -> io::Result<i32> {
        let client = self.client;
        self.in_child(request, None, || {
            let tell = |features: Vec<Feature>| {
                for feature in &features {
                    let attributes = ability(feature).map_err(io::Error::other)?;
                    let header = &request.header;
                    client.send(
                        &header.family(Command::Check, flags::MULTI, &attributes),
                        &[],
                    )?;
                }
                client.send(&request.header.done(), &[])
            };
            restorer::as_client(client, request, || Ok(features()), tell)
        })
    }

    /// Has a child in the client's control group answer, and serves it; answers its errno.
    fn in_child(
        &mut self,
        request: &Request,
        fills: Option<(BorrowedFd<'_>, bool)>,
        work: impl FnOnce() -> u8,
    ) -> io::Result<i32> {
        let client = self.client;
        let group = client.peer.control_group.as_ref().map(AsFd::as_fd);
        let child = match sockcr_sys::process::spawn(group, work) {
            Ok(child) => child,
            Err(error) => {
                let error =
                    Error::system("start a process in the control group of the client", error);
                let (errno, text) = fault(&error);
                client.refuse(request, errno, &text, None)?;
                return Ok(errno);
            }
        };
        let end = Instant::now() + LONGEST_RESTORE;
        let ended = self.serve_child(&child, fills, end);
        if !matches!(ended, Ok(true)) {
            pidfd_send_signal(&child, Signal::KILL).or_else(gone)?;
        }
        let status = waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)?;
        let code = status.and_then(|status| status.exit_status());
        if code == Some(restorer::UNTOLD.into()) {
            // What it had begun to tell is not whole.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let (errno, text) = match (ended?, code) {
            (true, Some(code)) if code != i32::from(sockcr_sys::process::PANICKED) => {
                return Ok(code);
            }
            (true, _) => (
                Errno::IO,
                "the process that did it has ended before its time",
            ),
            (false, _) => (Errno::TIME, "it took too long"),
        };
        warn!(pid = client.peer.pid, ?code, text, "a child failed");
        let name = command(&request.ask).map_or("request", Command::name);
        client.refuse(
            request,
            errno.raw_os_error(),
            &format!("{name}: {text}"),
            None,
        )?;
        Ok(errno.raw_os_error())
    }

    /// Fills sockets for a child until it ends; answers whether it did in time.
    fn serve_child(
        &mut self,
        child: &OwnedFd,
        fills: Option<(BorrowedFd<'_>, bool)>,
        end: Instant,
    ) -> io::Result<bool> {
        let line = fills.filter(|(_, waiting)| *waiting).map(|(line, _)| line);
        let mut open = line.is_some();
        loop {
            let left = timespec(end.saturating_duration_since(Instant::now()));
            let mut wait = vec![PollFd::new(child, PollFlags::IN)];
            let asked = line.filter(|_| open);
            wait.extend(asked.map(|line| PollFd::from_borrowed_fd(line, PollFlags::IN)));
            if poll(&mut wait, Some(&left))? == 0 {
                return Ok(false);
            }
            let ready = |at: usize| wait.get(at).is_some_and(|end| !end.revents().is_empty());
            match asked.filter(|_| ready(1)) {
                // Closed by the child, whose end is near.
                Some(line) => open = fill::serve(line, &mut self.injector)?,
                None if ready(0) => return Ok(true),
                None => {}
            }
            self.used = Instant::now();
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn ability(feature: &Feature) -> Result<Vec<u8>, ImageError> {
    let mut writer = Writer::new();
    writer.str(number::WHAT, &feature.what)?;
    if let Some(missing) = &feature.missing {
        writer.str(number::REASON, missing)?;
    }
    writer.str(number::WITHOUT, &feature.without)?;
    Ok(writer.finish())
}

fn command(ask: &Ask) -> Option<Command> {
    match ask {
        Ask::Dump { .. } => Some(Command::Dump),
        Ask::Restore { .. } => Some(Command::Restore),
        Ask::List { .. } => Some(Command::List),
        Ask::Check => Some(Command::Check),
        Ask::Metrics => Some(Command::Metrics),
        Ask::Family { .. } | Ask::Wrong { .. } => None,
    }
}
