//! From a name to (process, descriptor) pairs to a descriptor of our own.
//!
//! With BPF one pass of the kernel's iterator over open files sees every socket; without, /proc is
//! read and each descriptor that we may duplicate is asked.

use crate::checkpoint::{Checkpoint, Held};
use crate::error::{Error, ErrorKind};
use crate::kernel::{self, SocketFile};
use crate::netns;
use crate::option::value::printable;
use crate::protocol::{self, Protocol};
use crate::target::{Address, Target, Transport};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One descriptor through which a process, or a thread with its own table, holds a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// The process.
    pub pid: i32,
    /// The thread whose table it is; equal to `pid` for the table of the process.
    pub tid: i32,
    /// The number of the descriptor.
    pub fd: i32,
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_UDPLITE: u32 = 136;

/// A live socket, held open by us too.
#[derive(Debug)]
pub struct Found {
    /// Our duplicate: the same open file.
    pub socket: OwnedFd,
    /// The descriptor it was duplicated from.
    pub holder: Holder,
    /// Its inode.
    pub inode: u64,
    close_on_exec: bool,
}

impl Found {
    /// Reads everything of the socket, and changes nothing in it.
    pub fn dump(&self) -> Result<Checkpoint, Error> {
        Checkpoint::dump_held(self.socket.as_fd(), self.held())
    }

    fn held(&self) -> Held {
        Held {
            pid: Some(self.holder.pid),
            fd: self.holder.fd as u32,
            close_on_exec: self.close_on_exec,
        }
    }

    /// The same without the datagrams that wait.
    pub(crate) fn dump_without_queue(&self) -> Result<Checkpoint, Error> {
        Checkpoint::dump_without_queue(self.socket.as_fd(), self.held())
    }

    /// Whether execve(2) closes the descriptor it was duplicated from.
    pub fn close_on_exec(&self) -> bool {
        self.close_on_exec
    }

    /// What a fresh socket of its kind has, in its network namespace.
    pub fn fresh(&self) -> Result<Checkpoint, Error> {
        let protocol = protocol::of(self.socket.as_fd())?;
        let socket = netns::within(self.socket.as_fd(), || crate::restore::new_socket(protocol));
        let socket =
            socket.map_err(|error| Error::system(format!("open a {protocol} socket"), error))?;
        Checkpoint::dump(&socket)
    }
}

/// Waits until no datagram of these sockets is with a device any more, at most so long. Only BPF
/// sees it; without, nothing is waited for.
pub fn until_sent(found: &[Found], most: Duration) {
    let Ok(reader) = kernel::reader() else {
        return;
    };
    let end = Instant::now() + most;
    // One that cannot be read is told by its dump.
    let sent = |found: &Found| !matches!(reader.in_flight(found.socket.as_fd()), Ok(1..));
    while !found.iter().all(sent) && Instant::now() < end {
        // No event tells of it (`sock_wfree` wakes only who waits for room).
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The processes, other than this one, that hold any of these sockets.
pub fn owners(found: &[Found]) -> Result<Vec<i32>, Error> {
    let listing = list(None)?;
    let held = |socket: &&Listed| found.iter().any(|found| found.inode == socket.inode);
    let holders = listing.sockets.iter().filter(held).flat_map(|s| &s.holders);
    let mut owners: Vec<i32> = holders.map(|holder| holder.pid).collect();
    owners.sort_unstable();
    owners.dedup();
    owners.retain(|pid| *pid != std::process::id() as i32);
    Ok(owners)
}

/// A socket as [`list`] sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its inode.
    pub inode: u64,
    /// Its SO_COOKIE, 0 if none was made yet.
    pub cookie: u64,
    /// All that hold it.
    pub holders: Vec<Holder>,
    /// Its kind, if it is carried.
    pub protocol: Option<&'static Protocol>,
    /// Its address family (`AF_...`).
    pub family: u32,
    /// Its type (`SOCK_...`).
    pub socket_type: u32,
    /// Its protocol (`IPPROTO_...`).
    pub number: u32,
    /// What its kind is called.
    pub kind: String,
    /// The number of its network namespace.
    pub netns: u64,
    /// Its local address, of its own family, with the device of a link-local one; the port of a
    /// ping socket is its identifier, that of a raw socket is 0.
    pub local: SocketAddr,
    /// Its peer; the unspecified address and port 0 without one.
    pub peer: SocketAddr,
    /// Bytes that its receive queue occupies in the kernel.
    pub receive_bytes: u32,
}

impl Listed {
    /// A socket of these numbers (`AF_...`, `SOCK_...`, `IPPROTO_...`), of which nothing else is known yet.
    pub fn of(family: u32, socket_type: u32, number: u32) -> Listed {
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        Listed {
            inode: 0,
            cookie: 0,
            holders: Vec::new(),
            protocol: protocol::find(family, socket_type, number),
            family,
            socket_type,
            number,
            kind: protocol::describe(family, socket_type, number),
            netns: 0,
            local: nowhere,
            peer: nowhere,
            receive_bytes: 0,
        }
    }

    /// Whether its family is AF_INET or AF_INET6.
    fn is_internet(&self) -> bool {
        matches!(self.family, AF_INET | AF_INET6)
    }

    /// The index of the device that its link-local addresses belong to, in its network namespace;
    /// 0 where there is none.
    pub fn scope(&self) -> u32 {
        scope(&self.local).max(scope(&self.peer))
    }

    /// The name of that device; `None` where it cannot be had, or had better not be shown.
    pub fn device(&self) -> Option<String> {
        let index = self.scope();
        if index == 0 {
            return None;
        }
        let here = netns::own_cookie().is_ok_and(|here| here == self.netns);
        let socket = match here {
            true => netns::probe().ok()?,
            false => hold_any(self)?.ok()?.socket,
        };
        let name = sockcr_sys::interface::name(socket.as_fd(), index).ok()?;
        Some(name).filter(|name| printable(name))
    }
}

fn scope(address: &SocketAddr) -> u32 {
    match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    }
}

/// What [`list`] saw.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    /// The sockets, by process and descriptor.
    pub sockets: Vec<Listed>,
    /// How many descriptors could not be looked into, being other users'.
    pub hidden: usize,
}

/// Every internet socket of one process, or of all, in every network namespace.
///
/// Complete with CAP_BPF; otherwise what this user may duplicate.
pub fn list(pid: Option<i32>) -> Result<Listing, Error> {
    let mut listing = all(pid, false)?;
    listing.sockets.retain(Listed::is_internet);
    Ok(listing)
}

/// Every socket of whatever kind; `cookies` asks those for theirs that have to be asked.
fn all(pid: Option<i32>, cookies: bool) -> Result<Listing, Error> {
    if let Some(pid) = pid {
        process_exists(pid)?;
    }
    let (files, hidden) = match kernel::sockets(pid.map(|pid| pid as u32)) {
        Ok(files) => (files, 0),
        Err(_) => scan(pid, cookies).map_err(|error| Error::system("read /proc", error))?,
    };
    let mut sockets: BTreeMap<u64, Listed> = BTreeMap::new();
    for file in &files {
        sockets
            .entry(file.inode)
            .or_insert_with(|| listed(file))
            .holders
            .push(holder(file));
    }
    let mut sockets: Vec<Listed> = sockets.into_values().collect();
    for socket in &mut sockets {
        socket.holders.sort();
    }
    sockets.sort_by_key(|socket| socket.holders.first().copied());
    Ok(Listing { sockets, hidden })
}

fn listed(file: &SocketFile) -> Listed {
    let numbers = (
        file.family.into(),
        file.socket_type.into(),
        file.protocol.into(),
    );
    let (family, kind, number) = numbers;
    Listed {
        inode: file.inode,
        cookie: file.cookie,
        netns: file.netns_cookie,
        local: file.local,
        peer: file.peer,
        receive_bytes: file.receive_bytes,
        ..Listed::of(family, kind, number)
    }
}

fn holder(file: &SocketFile) -> Holder {
    Holder {
        pid: file.pid as i32,
        tid: file.tid as i32,
        fd: file.fd as i32,
    }
}

/// Finds the sockets a target names, and holds them open.
///
/// PID:FD and PID reach every network namespace; the other names are looked up in that of this
/// thread, as the RFC has it.
pub fn find(target: &Target) -> Result<Vec<Found>, Error> {
    match target {
        Target::Descriptor(pid, fd) => Ok(vec![descriptor(target, *pid, *fd)?]),
        Target::Process(pid) => process(target, *pid),
        _ => matching(target),
    }
}

fn descriptor(target: &Target, pid: i32, fd: i32) -> Result<Found, Error> {
    let holder = Holder {
        pid: process_of(pid),
        tid: pid,
        fd,
    };
    match hold(holder, None) {
        Ok(found) => Ok(found),
        Err(error) => Err(explain(target, pid, error)),
    }
}

fn process(target: &Target, pid: i32) -> Result<Vec<Found>, Error> {
    let listing = list(Some(pid))?;
    let mut found = Vec::new();
    for socket in &listing.sockets {
        match hold_any(socket) {
            Some(Ok(socket)) => found.push(socket),
            Some(Err(error)) => return Err(explain(target, pid, error)),
            None => {}
        }
    }
    if found.is_empty() && listing.hidden > 0 {
        return Err(explain(target, pid, Errno::PERM.into()));
    }
    if found.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            target,
            "has no internet socket",
        ));
    }
    Ok(found)
}

fn matching(target: &Target) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for socket in named(target)? {
        match hold_any(&socket) {
            Some(Ok(socket)) => found.push(socket),
            Some(Err(error)) => {
                let pid = socket.holders.first().map_or(0, |holder| holder.pid);
                return Err(explain(target, pid, error));
            }
            None => return Err(Error::new(ErrorKind::NotFound, target, "is gone meanwhile")),
        }
    }
    Ok(found)
}

/// The sockets in the network namespace of this thread that have this inode, cookie or address: at least one.
pub fn named(target: &Target) -> Result<Vec<Listed>, Error> {
    let here = netns::own_cookie().map_err(|e| Error::system("ask for the namespace", e))?;
    let listing = all(None, matches!(target, Target::Cookie(_)))?;
    let device = match target {
        Target::Local { address, .. } => address.as_ref().and_then(Address::device),
        _ => None,
    };
    let index = device.map(device_index).transpose()?;
    let in_scope = |socket: &Listed| {
        // The indexes of other namespaces say nothing here.
        index.is_none_or(|index| socket.netns != here || scope(&socket.local) == index)
    };
    let is_named = |socket: &Listed| match target {
        Target::Inode(inode) => socket.inode == *inode,
        Target::Cookie(cookie) => socket.cookie == *cookie && *cookie != 0,
        Target::Local {
            transport,
            address,
            number,
        } => {
            is_numbered(socket, *transport, *number)
                && address
                    .as_ref()
                    .is_none_or(|address| is_called(socket.local.ip(), address.ip()))
                && in_scope(socket)
        }
        Target::Descriptor(..) | Target::Process(_) => false,
    };
    let all: Vec<Listed> = listing.sockets.into_iter().filter(is_named).collect();
    let (found, elsewhere): (Vec<Listed>, Vec<Listed>) =
        all.into_iter().partition(|socket| socket.netns == here);
    match (found.is_empty(), device, index) {
        (true, Some(device), Some(0)) if elsewhere.is_empty() => Err(no_device(target, device)),
        (true, ..) => Err(not_here(target, elsewhere.first(), listing.hidden)),
        (false, ..) => Ok(found),
    }
}

/// An IPv4 address is also that of an AF_INET6 socket that speaks IPv4 there (`ipv6_addr_v4mapped`).
fn is_called(local: IpAddr, name: IpAddr) -> bool {
    local == name || name.is_ipv4() && local.to_canonical() == name
}

/// Whether a socket is of this kind, carried or not, and has this port, identifier or protocol.
fn is_numbered(socket: &Listed, transport: Transport, number: u16) -> bool {
    let port = socket.local.port() == number;
    match (transport, socket.socket_type, socket.number) {
        (Transport::Udp, SOCK_DGRAM, IPPROTO_UDP) => port,
        (Transport::UdpLite, SOCK_DGRAM, IPPROTO_UDPLITE) => port,
        (Transport::Ping, SOCK_DGRAM, IPPROTO_ICMP | IPPROTO_ICMPV6) => port,
        (Transport::Raw, SOCK_RAW, protocol) => protocol == u32::from(number),
        _ => false,
    }
}

/// The index of a device here by its name, or by the index itself; 0 when there is none.
fn device_index(device: &str) -> Result<u32, Error> {
    let failed = |error| Error::system(format!("ask for device {device}"), error);
    let socket = netns::probe().map_err(failed)?;
    match sockcr_sys::interface::index(socket.as_fd(), device) {
        Ok(index) => Ok(index),
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NODEV) => {
            Ok(device.parse().unwrap_or(0))
        }
        Err(error) => Err(failed(error)),
    }
}

fn no_device(target: &Target, device: &str) -> Error {
    let why = format!("no device {device} in this network namespace");
    Error::new(ErrorKind::NotFound, target, why).help("`ip link` shows the devices")
}

fn not_here(target: &Target, elsewhere: Option<&Listed>, hidden: usize) -> Error {
    let why = "no such socket in this network namespace";
    let error = Error::new(ErrorKind::NotFound, target, why);
    if let Some(holder) = elsewhere.and_then(|socket| socket.holders.first()) {
        let pid = holder.pid;
        return error.help(format!(
            "process {pid} has it in another one: --netns /proc/{pid}/ns/net"
        ));
    }
    match hidden {
        0 => error.help("`sockcr list` shows what there is"),
        hidden => error.help(format!(
            "{hidden} sockets of other users could not be looked into: root sees them all"
        )),
    }
}

/// Duplicates a socket from the first of its holders that still has it; `None`: gone meanwhile.
fn hold_any(socket: &Listed) -> Option<io::Result<Found>> {
    let mut refused = None;
    for holder in &socket.holders {
        match hold(*holder, Some(socket.inode)) {
            Ok(found) => return Some(Ok(found)),
            Err(error) if is_gone(&error) => {}
            Err(error) => refused = Some(Err(error)),
        }
    }
    refused
}

pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::BADF | Errno::SRCH | Errno::NOENT | Errno::NOTSOCK)
    )
}

/// Duplicates a descriptor of another process, and makes sure that it is a socket, and still the one meant.
pub fn hold(holder: Holder, inode: Option<u64>) -> io::Result<Found> {
    let socket = duplicate(holder.tid, holder.fd)?;
    let stat = rustix::fs::fstat(&socket)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Socket {
        return Err(Errno::NOTSOCK.into());
    }
    if inode.is_some_and(|inode| inode != stat.st_ino) {
        return Err(Errno::BADF.into());
    }
    Ok(Found {
        socket,
        holder,
        inode: stat.st_ino,
        close_on_exec: close_on_exec(holder)?,
    })
}

/// pidfd_getfd(2); a thread that is no leader needs PIDFD_THREAD (6.9).
fn duplicate(tid: i32, fd: i32) -> io::Result<OwnedFd> {
    const PIDFD_THREAD: u32 = 0o200;
    let pid = Pid::from_raw(tid).ok_or(Errno::SRCH)?;
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::INVAL | Errno::NOENT) => {
            pidfd_open(pid, PidfdFlags::from_bits_retain(PIDFD_THREAD))
        }
        opened => opened,
    };
    Ok(pidfd_getfd(process?, fd, PidfdGetfdFlags::empty())?)
}

/// The duplicate is always close-on-exec; how the original is, /proc tells.
pub(crate) fn close_on_exec(holder: Holder) -> io::Result<bool> {
    const O_CLOEXEC: u32 = 0o2000000;
    let Holder { tid, fd, .. } = holder;
    let text = std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{fd}"))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    let flags = flags.ok_or_else(|| io::Error::other("fdinfo has no flags"))?;
    Ok(flags & O_CLOEXEC != 0)
}

/// An error of [`hold`] in words, about a process of this number.
pub fn explain(target: &Target, pid: i32, error: io::Error) -> Error {
    let new = |kind, why: &str| Error::new(kind, target, why);
    match Errno::from_io_error(&error) {
        Some(Errno::SRCH) => new(ErrorKind::NotFound, "no such process")
            .help("`sockcr list` shows the processes that have sockets"),
        Some(Errno::BADF) => new(ErrorKind::NotFound, "no such descriptor")
            .help(format!("`sockcr list --pid {pid}` shows its sockets")),
        Some(Errno::NOTSOCK) => new(ErrorKind::NotASocket, "is not a socket")
            .help(format!("`sockcr list --pid {pid}` shows its sockets")),
        Some(Errno::PERM | Errno::ACCESS) => {
            let mut error = Error::system(format!("{target}: duplicate its descriptor"), error);
            error = error.help(
                "you may look into your own processes that are dumpable; others need CAP_SYS_PTRACE",
            );
            error
        }
        Some(Errno::NOENT) => new(ErrorKind::NotFound, "is gone meanwhile"),
        _ => Error::system(format!("{target}: duplicate its descriptor"), error),
    }
}

fn process_exists(pid: i32) -> Result<(), Error> {
    match Path::new(&format!("/proc/{pid}")).exists() {
        true => Ok(()),
        false => Err(explain(&Target::Process(pid), pid, Errno::SRCH.into())),
    }
}

/// The process that a thread belongs to.
pub fn process_of(tid: i32) -> i32 {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let tgid = text.lines().find_map(|line| line.strip_prefix("Tgid:"));
    tgid.and_then(|tgid| tgid.trim().parse().ok())
        .unwrap_or(tid)
}

/// Reads /proc: every descriptor that is a socket, each asked through a duplicate; and how many
/// could not be.
fn scan(pid: Option<i32>, cookies: bool) -> io::Result<(Vec<SocketFile>, usize)> {
    let mut found = Vec::new();
    let mut hidden = 0;
    let pids = match pid {
        Some(pid) => vec![pid],
        None => numbers(Path::new("/proc"))?,
    };
    for pid in pids {
        let tasks = numbers(&PathBuf::from(format!("/proc/{pid}/task"))).unwrap_or_default();
        let table = sockets_of(pid);
        let own = tasks.iter().filter(|tid| **tid != pid).filter_map(|tid| {
            let other = sockets_of(*tid);
            (other != table).then_some((*tid, other))
        });
        for (tid, sockets) in own.chain(std::iter::once((pid, table.clone()))) {
            for (fd, inode) in sockets {
                match ask(pid, tid, fd, inode, cookies) {
                    Ok(file) => found.push(file),
                    Err(error) if is_gone(&error) => {}
                    Err(_) => hidden += 1,
                }
            }
        }
        hidden += usize::from(
            std::fs::read_dir(format!("/proc/{pid}/fd"))
                .is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied),
        );
    }
    Ok((found, hidden))
}

/// The names in a folder that are numbers.
fn numbers(folder: &Path) -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir(folder)?.filter_map(Result::ok);
    Ok(entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// (descriptor, inode) of each socket in the table of a thread; none if we may not look.
fn sockets_of(tid: i32) -> Vec<(i32, u64)> {
    let folder = PathBuf::from(format!("/proc/{tid}/fd"));
    let mut fds = numbers(&folder).unwrap_or_default();
    fds.sort_unstable();
    let inode = |fd: i32| {
        let link = std::fs::read_link(folder.join(fd.to_string())).ok()?;
        let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
        inode.parse().ok()
    };
    fds.into_iter()
        .filter_map(|fd| Some((fd, inode(fd)?)))
        .collect()
}

/// What the iterator would have told of a descriptor.
fn ask(pid: i32, tid: i32, fd: i32, inode: u64, cookies: bool) -> io::Result<SocketFile> {
    let socket = duplicate(tid, fd)?;
    if rustix::fs::fstat(&socket)?.st_ino != inode {
        return Err(Errno::BADF.into());
    }
    let word = |option: i32| -> io::Result<u32> {
        let mut value = [0; 4];
        sockcr_sys::sockopt::get(socket.as_fd(), 1, option, &mut value)?;
        Ok(u32::from_ne_bytes(value))
    };
    let (so_type, so_protocol, so_domain) = (3, 38, 39);
    let family = word(so_domain)? as u16;
    let socket_type = word(so_type)?;
    let mut local = address(family, rustix::net::getsockname(&socket));
    if socket_type == SOCK_RAW {
        // It is the protocol.
        local.set_port(0);
    }
    let peer = rustix::net::getpeername(&socket);
    let peer = address(family, peer.and_then(|peer| peer.ok_or(Errno::NOTCONN)));
    Ok(SocketFile {
        pid: pid as u32,
        tid: tid as u32,
        fd: fd as u32,
        inode,
        cookie: match cookies {
            true => cookie(&socket)?,
            false => 0,
        },
        family,
        socket_type: socket_type as u16,
        protocol: word(so_protocol)? as u16,
        netns_cookie: netns::cookie(socket.as_fd())?,
        state: if peer.port() == 0 { 7 } else { 1 },
        local,
        peer,
        receive_bytes: receive_bytes(&socket),
    })
}

/// What a system call told, without the flow label; the unspecified address if it told none.
fn address(family: u16, told: Result<rustix::net::SocketAddrAny, Errno>) -> SocketAddr {
    let none = match family.into() {
        AF_INET6 => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
        _ => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
    };
    let told = told.ok().and_then(|told| SocketAddr::try_from(told).ok());
    let mut address = told.unwrap_or(none);
    if let SocketAddr::V6(address) = &mut address {
        address.set_flowinfo(0);
    }
    address
}

/// SO_COOKIE: asking gives the socket one if it has none yet, so only who looks for one asks.
fn cookie(socket: &OwnedFd) -> io::Result<u64> {
    let mut cookie = [0; 8];
    sockcr_sys::sockopt::get(socket.as_fd(), 1, 57, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// SO_MEMINFO's first counter.
fn receive_bytes(socket: &OwnedFd) -> u32 {
    let mut counters = [0; 36];
    let read = sockcr_sys::sockopt::get(socket.as_fd(), 1, 55, &mut counters);
    let [a, b, c, d, ..] = counters;
    read.map_or(0, |_| u32::from_ne_bytes([a, b, c, d]))
}
