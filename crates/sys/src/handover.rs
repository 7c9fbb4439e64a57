//! Sockets put into a running process, and taken out of another: all or nothing, whatever becomes of us.
//!
//! A child process does it, in a session of its own with every signal blocked, so that what is meant for
//! us does not end it. It has all it needs when it starts, and asks nothing: if we end, it goes on to
//! the end, and the sockets are either in the process or not. Before it ends it has put back what it
//! changed: registers, signal masks, the scratch memory; on an error also the descriptors that it made.
//! Should it end itself all the same (a control group that is killed), the kernel lets the threads go.
//!
//! A socket gets across by pidfd_getfd(2), made by the process itself on the child, where it may look
//! into the child: then it could look into us anyway. Where it may not (another user, other capabilities,
//! Yama, another PID namespace), by a message over a connection that it makes to an address of ours in
//! its own network namespace: nothing but the socket is shown to it.

use crate::check;
use crate::foreign::{Failure, Held, SCRATCH, Thread, Wrong};
use crate::guard;
use crate::path::{self, Path};
use rustix::fs::{Mode, OFlags, RawDir, open, readlinkat_raw};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Nothing that works takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// One socket to be put into a process.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The socket.
    pub socket: BorrowedFd<'a>,
    /// The number that its descriptor is to have; `None` for any.
    pub number: Option<i32>,
    /// Whether execve(2) closes that.
    pub close_on_exec: bool,
}

/// One descriptor to be taken out of a process.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// The process, or the thread with its own table.
    pub tid: i32,
    /// The process that it is of.
    pub pid: i32,
    /// The descriptor.
    pub fd: RawFd,
    /// The inode of the socket that it must be.
    pub inode: u64,
}

/// Sockets to be put into one process, and taken out of one.
#[derive(Debug)]
pub struct Handover<'a> {
    /// The process, or the thread with its own table.
    pub tid: i32,
    /// The process that it is of.
    pub pid: i32,
    /// What it gets.
    pub given: Vec<Given<'a>>,
    /// What is closed when it has got it, all of one process.
    pub taken: Vec<Taken>,
    /// Our number in its PID namespace is that in ours.
    pub sees_us: bool,
    /// A listening SOCK_SEQPACKET socket in its network namespace, and its abstract address.
    pub listener: Option<(OwnedFd, Vec<u8>)>,
}

/// The answer that begins a report of success.
const DONE: i32 = 0;

/// What has been done.
#[derive(Clone, Debug)]
pub struct Done {
    /// The new descriptors, in order.
    pub numbers: Vec<i32>,
    /// How long the processes stood still, at most.
    pub stopped: Duration,
}

/// Does it.
pub fn hand_over(plan: &Handover<'_>) -> io::Result<Result<Done, Failure>> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let (line, far) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
    let mut room = Room::for_plan(plan, &far);
    let before = guard::block_signals()?;
    let child = guard::fork();
    if let Ok(0) = child {
        work(plan, &mut room, &line, &far);
    }
    guard::set_signals(&before)?;
    let child = child?;
    drop(far);
    let report = read_report(&line);
    collect(child)?;
    report
}

/// What the child may not allocate.
struct Room {
    into: Vec<Thread>,
    from: Vec<Thread>,
    numbers: Vec<i32>,
    kept: Vec<RawFd>,
}

impl Room {
    fn for_plan(plan: &Handover<'_>, far: &OwnedFd) -> Room {
        let threads = |tid: i32| {
            let folder = std::fs::read_dir(format!("/proc/{tid}/task"));
            2 * folder.map_or(0, Iterator::count) + 1024
        };
        let sockets = plan.given.iter().map(|given| given.socket.as_raw_fd());
        let listener = plan.listener.iter().map(|(fd, _)| fd.as_raw_fd());
        let mut kept: Vec<RawFd> = sockets.chain(listener).collect();
        kept.push(far.as_raw_fd());
        kept.sort_unstable();
        kept.dedup();
        Room {
            into: Vec::with_capacity(threads(plan.tid)),
            from: Vec::with_capacity(plan.taken.first().map_or(0, |taken| threads(taken.tid))),
            numbers: Vec::with_capacity(plan.given.len()),
            kept,
        }
    }
}

/// Numbers: 0, microseconds and the descriptors, or what is wrong, with whom, and the errno.
fn read_report(line: &OwnedFd) -> io::Result<Result<Done, Failure>> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(line, &mut buffer))? {
            0 => break,
            length => bytes.extend_from_slice(&buffer[..length]),
        }
    }
    let numbers = bytes.chunks_exact(4);
    let numbers = numbers.filter_map(|bytes| Some(i32::from_ne_bytes(bytes.try_into().ok()?)));
    let numbers: Vec<i32> = numbers.collect();
    match numbers.as_slice() {
        [DONE, micros, fds @ ..] => Ok(Ok(Done {
            numbers: fds.to_vec(),
            stopped: Duration::from_micros(u64::try_from(*micros).unwrap_or(0)),
        })),
        [wrong, tid, errno] => Ok(Err(Failure {
            wrong: Wrong::from_number(*wrong),
            tid: *tid,
            errno: *errno,
        })),
        _ => Err(io::Error::other("the process that would do it ended")),
    }
}

/// The child sends no SIGCHLD, and nobody else's wait(2) finds it: only `__WALL` does.
fn collect(child: libc::pid_t) -> io::Result<()> {
    loop {
        // SAFETY: no status is asked for, so that nothing is written.
        match check(unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            ended => return ended.map(drop),
        }
    }
}

/// What the child does. It makes system calls only, takes no lock and allocates nothing.
fn work(plan: &Handover<'_>, room: &mut Room, line: &OwnedFd, far: &OwnedFd) -> ! {
    // SAFETY: no argument. It cannot fail: a new process leads no group.
    unsafe { libc::setsid() };
    // SAFETY: sets what SIGCHLD does to nothing; ignored, it would not tell of stops (`ptrace::wait`).
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: the number is the other side's end, which this copy of the process does not use.
    unsafe { libc::close(line.as_raw_fd()) };
    guard::close_others(&room.kept);
    let start = Instant::now();
    let done = transaction(plan, room);
    let micros = start.elapsed().as_micros();
    // Whoever waited for it may be gone.
    let tell = |number: i32| {
        let _ = rustix::net::send(far, &number.to_ne_bytes(), SendFlags::NOSIGNAL);
    };
    match done {
        Ok(()) => {
            tell(DONE);
            tell(i32::try_from(micros).unwrap_or(i32::MAX));
            room.numbers.iter().copied().for_each(tell);
        }
        Err(Failure { wrong, tid, errno }) => {
            [wrong as i32, tid, errno].into_iter().for_each(tell);
        }
    }
    // SAFETY: ends the child without running what the process registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Holds both processes before it changes anything, and lets them go when it is done.
fn transaction(plan: &Handover<'_>, room: &mut Room) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    let mut into = Held::new(plan.tid, &mut room.into, end)?;
    let Some(first) = plan.taken.first() else {
        return give(plan, &mut into, &mut room.numbers);
    };
    if first.pid == plan.pid && first.tid == plan.tid {
        is_still_there(plan)?;
        give(plan, &mut into, &mut room.numbers)?;
        return take(plan, &mut into);
    }
    let mut from = Held::new(first.tid, &mut room.from, end)?;
    is_still_there(plan)?;
    give(plan, &mut into, &mut room.numbers)?;
    match take(plan, &mut from) {
        // With its end its descriptors are closed.
        Err(failure) if failure.wrong == Wrong::Ended => Ok(()),
        Err(failure) => {
            take_back(&mut into, &mut room.numbers);
            Err(failure)
        }
        Ok(()) => Ok(()),
    }
}

/// Whether what is to be taken is still what was found.
fn is_still_there(plan: &Handover<'_>) -> Result<(), Failure> {
    for taken in &plan.taken {
        let there = link_to(taken.tid, taken.fd, |link| {
            let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.parse() == Ok(taken.inode))
        });
        if there != Some(true) {
            return Err(Failure::plain(Wrong::Taken, taken.tid));
        }
    }
    Ok(())
}

/// What a descriptor of a process is.
fn link_to<T>(tid: i32, fd: RawFd, look: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let path = Path::new(format_args!("/proc/{tid}/fd/{fd}"));
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (link, _) = readlinkat_raw(rustix::fs::CWD, path.as_c_str(), &mut buffer).ok()?;
    look(std::str::from_utf8(link).ok()?)
}

/// Gives every socket, or none.
fn give(plan: &Handover<'_>, into: &mut Held<'_>, numbers: &mut Vec<i32>) -> Result<(), Failure> {
    for given in &plan.given {
        match give_one(plan, into, given) {
            Ok(fd) => numbers.push(fd as i32),
            Err(failure) => {
                take_back(into, numbers);
                return Err(failure);
            }
        }
    }
    Ok(())
}

fn take_back(into: &mut Held<'_>, numbers: &mut Vec<i32>) {
    for fd in numbers.drain(..) {
        close(into, fd as u64);
    }
}

/// Closes a descriptor of the process; one that ended has none.
fn close(process: &mut Held<'_>, fd: u64) {
    let _ = process.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
}

fn give_one(plan: &Handover<'_>, into: &mut Held<'_>, given: &Given<'_>) -> Result<u64, Failure> {
    let fd = receive(plan, into, given)?;
    let placed = place(into, given, fd);
    if placed.is_err() {
        close(into, fd);
    }
    placed
}

/// Puts a descriptor, close-on-exec still, where it is to be. No other is ever replaced: F_DUPFD takes a
/// free number.
fn place(into: &mut Held<'_>, given: &Given<'_>, fd: u64) -> Result<u64, Failure> {
    let (tid, number) = (into.tid(), Wrong::Number);
    let failed = |error: io::Error| Failure::new(number, tid, &error);
    let mut fcntl = |fd: u64, command: i32, value: u64| {
        let call = into.call(libc::SYS_fcntl, [fd, command as u64, value, 0, 0, 0])?;
        call.number().map_err(failed)
    };
    let wanted = given.number.map(|number| number as u64);
    let Some(wanted) = wanted.filter(|wanted| *wanted != fd) else {
        if !given.close_on_exec {
            fcntl(fd, libc::F_SETFD, 0)?;
        }
        return Ok(fd);
    };
    let command = match given.close_on_exec {
        true => libc::F_DUPFD_CLOEXEC,
        false => libc::F_DUPFD,
    };
    let new = fcntl(fd, command, wanted)?;
    if new != wanted {
        close(into, new);
        return Err(failed(io::Error::from_raw_os_error(libc::EEXIST)));
    }
    close(into, fd);
    Ok(new)
}

/// Has the process get a descriptor of the socket, close-on-exec.
fn receive(plan: &Handover<'_>, into: &mut Held<'_>, given: &Given<'_>) -> Result<u64, Failure> {
    let tid = into.tid();
    let failed = |error: io::Error| Failure::new(Wrong::Receive, tid, &error);
    let refused = match plan.sees_us {
        true => match fetch(plan, into, given)? {
            Ok(fd) => return Ok(fd),
            Err(error) => error,
        },
        false => io::Error::from_raw_os_error(libc::ESRCH),
    };
    match &plan.listener {
        Some((listener, address)) if is_refusal(&refused) => {
            let connection = connect(into, address)?.map_err(failed)?;
            let received = message(plan, into, given, listener, connection);
            close(into, connection);
            received?.map_err(failed)
        }
        _ => Err(Failure {
            wrong: Wrong::Receive,
            tid,
            errno: refused.raw_os_error().unwrap_or(0),
        }),
    }
}

fn is_refusal(error: &io::Error) -> bool {
    let refusals = [libc::EPERM, libc::EACCES, libc::ESRCH, libc::ENOSYS];
    refusals.map(Some).contains(&error.raw_os_error())
}

/// An answer of the process, which may be an error, or why there is none.
type Told = Result<io::Result<u64>, Failure>;

/// The process takes it from us.
fn fetch(plan: &Handover<'_>, into: &mut Held<'_>, given: &Given<'_>) -> Told {
    let us = rustix::process::getpid().as_raw_pid() as u64;
    // Yama asks for this; other kernels do not know it.
    // SAFETY: it takes a number.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, plan.pid as libc::c_ulong) };
    let opened = into.call(libc::SYS_pidfd_open, [us, 0, 0, 0, 0, 0])?;
    let process = match opened.number() {
        Ok(process) => process,
        Err(error) => return Ok(Err(error)),
    };
    let fd = given.socket.as_raw_fd() as u64;
    let got = into.call(libc::SYS_pidfd_getfd, [process, fd, 0, 0, 0, 0]);
    close(into, process);
    Ok(got?.number())
}

/// Has the process connect to our listener.
fn connect(into: &mut Held<'_>, address: &[u8]) -> Told {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let family = libc::AF_UNIX as u64;
    let opened = into.call(libc::SYS_socket, [family, kind as u64, 0, 0, 0, 0])?;
    let connection = match opened.number() {
        Ok(connection) => connection,
        Err(error) => return Ok(Err(error)),
    };
    let connected = connect_to(into, connection, address);
    if !matches!(connected, Ok(Ok(_))) {
        close(into, connection);
    }
    Ok(connected?.map(|_| connection))
}

fn connect_to(into: &mut Held<'_>, connection: u64, address: &[u8]) -> Told {
    let mut bytes = [0; 8 * SCRATCH];
    let length = 2 + address.len();
    let name = bytes.get_mut(2..length);
    let Some(name) = name.filter(|_| length <= size_of::<libc::sockaddr_un>()) else {
        return Ok(Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG)));
    };
    name.copy_from_slice(address);
    bytes[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    let mut words = [0; SCRATCH];
    for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
    }
    into.write_scratch(&words)?;
    let at = into.scratch_address()?;
    let connected = into.call(libc::SYS_connect, [connection, at, length as u64, 0, 0, 0])?;
    Ok(connected.number())
}

/// Sends the socket over the connection, and has the process receive it.
fn message(
    plan: &Handover<'_>,
    into: &mut Held<'_>,
    given: &Given<'_>,
    listener: &OwnedFd,
    connection: u64,
) -> Told {
    if let Err(error) = send(plan, given, listener) {
        return Ok(Err(error));
    }
    let base = into.scratch_address()?;
    let word = |at: u64| base + 8 * at;
    let mut words = [0; SCRATCH];
    // struct msghdr: no name, one piece of data, room for one descriptor; then that piece.
    let (piece, data, control) = (word(7), word(9), word(10));
    let space = 24;
    words[..9].copy_from_slice(&[0, 0, piece, 1, control, space, 0, data, 1]);
    into.write_scratch(&words)?;
    let flags = (libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) as u64;
    let received = into.call(libc::SYS_recvmsg, [connection, base, flags, 0, 0, 0])?;
    if let Err(error) = received.number() {
        return Ok(Err(error));
    }
    let words = into.read_scratch()?;
    // struct cmsghdr with one descriptor: its length, then SOL_SOCKET and SCM_RIGHTS.
    let rights = u64::from(libc::SOL_SOCKET as u32) | u64::from(libc::SCM_RIGHTS as u32) << 32;
    match (words[10], words[11]) {
        (20, header) if header == rights => Ok(Ok(words[12] & u64::from(u32::MAX))),
        // There was no room for one more (`scm_detach_fds`).
        _ => Ok(Err(io::Error::from_raw_os_error(libc::EMFILE))),
    }
}

/// Sends the socket to the process that has connected, if it is the right one: anybody could.
fn send(plan: &Handover<'_>, given: &Given<'_>, listener: &OwnedFd) -> io::Result<()> {
    use rustix::net::{SocketFlags, accept_with, sendmsg, sockopt::socket_peercred};
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // It is connected already: when none is there any more, it was not the right one.
        let connection = accept_with(listener, flags)?;
        if socket_peercred(&connection)?.pid.as_raw_pid() != plan.pid {
            continue;
        }
        let mut space = [MaybeUninit::uninit(); 64];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sockets = [given.socket];
        control.push(SendAncillaryMessage::ScmRights(&sockets));
        let data = [io::IoSlice::new(b"s")];
        sendmsg(&connection, &data, &mut control, SendFlags::NOSIGNAL)?;
        return Ok(());
    }
}

/// Takes every descriptor out of its process, and out of its epoll instances: these would go on to tell
/// of a socket that lives on elsewhere.
fn take(plan: &Handover<'_>, from: &mut Held<'_>) -> Result<(), Failure> {
    let Some(first) = plan.taken.first() else {
        return Ok(());
    };
    let path = Path::new(format_args!("/proc/{}/fd", first.tid));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |error: rustix::io::Errno| Failure::new(Wrong::Other, first.tid, &error.into());
    let folder = open(path.as_c_str(), flags, Mode::empty()).map_err(failed)?;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let Some(epoll) = path::number(entry.map_err(failed)?.file_name()) else {
            continue;
        };
        let is_epoll = |link: &str| Some(link == "anon_inode:[eventpoll]");
        if link_to(first.tid, epoll, is_epoll) == Some(true) {
            forget(plan, from, epoll as u64)?;
        }
    }
    for taken in &plan.taken {
        from.call(libc::SYS_close, [taken.fd as u64, 0, 0, 0, 0, 0])?;
    }
    Ok(())
}

fn forget(plan: &Handover<'_>, from: &mut Held<'_>, epoll: u64) -> Result<(), Failure> {
    for taken in &plan.taken {
        let delete = libc::EPOLL_CTL_DEL as u64;
        // Where it was not registered, the error says so.
        let arguments = [epoll, delete, taken.fd as u64, 0, 0, 0];
        from.call(libc::SYS_epoll_ctl, arguments)?;
    }
    Ok(())
}
