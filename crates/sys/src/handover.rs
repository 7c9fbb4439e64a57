//! Sockets put into a running process, and taken out of another: all or nothing, whatever becomes of us.
//!
//! A child process does it, in a session of its own with every signal of others blocked, so that what is meant for
//! us does not end it. It has all it needs when it starts, and asks nothing: if we end, it goes on to
//! the end, and the sockets are either in the process or not. Before it ends it has put back what it
//! changed: registers, signal masks, the scratch memory; on an error also the descriptors that it made.
//! Should it end itself all the same (a control group that is killed), the kernel lets the threads go.
//! How a socket gets across is told in `pass`.

use crate::child::Child;
use crate::foreign::{self, Failure, Held, Thread, Wrong};
use crate::pass::{self, Offer, Received, close, is_socket, link_to};
use crate::path::{self, Path};
use crate::ptrace;
use rustix::fs::{Mode, OFlags, RawDir, open};
use rustix::net::SendFlags;
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
    let kept = std::mem::take(&mut room.kept);
    let child = Child::start(&line, &kept, || work(plan, &mut room, &far))?;
    drop(far);
    let report = read_report(&line);
    child.collect()?;
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
        let sockets = plan.given.iter().map(|given| given.socket.as_raw_fd());
        let listener = plan.listener.iter().map(|(fd, _)| fd.as_raw_fd());
        let mut kept: Vec<RawFd> = sockets.chain(listener).collect();
        kept.push(far.as_raw_fd());
        kept.sort_unstable();
        kept.dedup();
        Room {
            into: foreign::room(plan.tid),
            from: plan
                .taken
                .first()
                .map_or(Vec::new(), |taken| foreign::room(taken.tid)),
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

/// What the child does.
fn work(plan: &Handover<'_>, room: &mut Room, far: &OwnedFd) {
    ptrace::tick();
    let start = Instant::now();
    let done = transaction(plan, room);
    let micros = start.elapsed().as_micros();
    // Whoever waited for it may be gone.
    let tell = |number: i32| {
        let bytes = number.to_ne_bytes();
        let send = || rustix::net::send(far, &bytes, SendFlags::NOSIGNAL);
        let _ = rustix::io::retry_on_intr(send);
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
        if !is_socket(taken.tid, taken.fd, taken.inode) {
            return Err(Failure::plain(Wrong::Taken, taken.tid));
        }
    }
    Ok(())
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

fn give_one(plan: &Handover<'_>, into: &mut Held<'_>, given: &Given<'_>) -> Result<u64, Failure> {
    let offer = Offer {
        socket: given.socket,
        pid: plan.pid,
        sees_us: plan.sees_us,
        listener: plan.listener.as_ref(),
    };
    let Received { fd, way } = pass::receive(&offer, into)?;
    close(into, way);
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
