//! Into a running process, which knows nothing of it: see `sockcr_sys::handover`.

use crate::error::{Error, ErrorKind};
use crate::find::{self, Found, Holder};
use crate::target::Target;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use sockcr_sys::foreign::{Failure, Wrong};
use sockcr_sys::handover::{Done, Given, Handover, Taken, hand_over};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A running process, or a thread with its own table of descriptors, and where in it: `PID[:FD]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The process, or the thread.
    pub pid: i32,
    /// The number of the descriptor, of the first if there are several; `None` for free ones.
    pub fd: Option<i32>,
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Place, Error> {
        let place = match text.parse() {
            Ok(Target::Process(pid)) => Some(Place { pid, fd: None }),
            Ok(Target::Descriptor(pid, fd)) => Some(Place { pid, fd: Some(fd) }),
            _ => None,
        };
        place.ok_or_else(|| Error::new(ErrorKind::BadInput, text, "is neither PID nor PID:FD"))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)
    }
}

/// A descriptor that went from one process to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The inode of the socket.
    pub inode: u64,
    /// Where it was, or still is.
    pub from: Holder,
    /// Where it is now.
    pub to: Holder,
}

/// What [`move_to`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Each socket.
    pub moved: Vec<Moved>,
    /// How long the processes stood still, at most.
    pub stopped: Duration,
}

/// Puts sockets into a running process, all or none, at free descriptors or from the given one on;
/// answers their numbers. Each is close-on-exec there if it is here.
///
/// The process goes on as if nothing had happened, and it is finished or undone even if we are killed.
pub fn to_process(sockets: &[BorrowedFd<'_>], place: Place) -> Result<Vec<i32>, Error> {
    let given = sockets.iter().enumerate().map(|(at, socket)| {
        let close_on_exec = sockcr_sys::descriptor::close_on_exec(*socket)?;
        Ok(Given {
            socket: *socket,
            number: place.fd.map(|fd| fd.saturating_add(at as i32)),
            close_on_exec,
        })
    });
    let given: io::Result<Vec<Given<'_>>> = given.collect();
    let given = given.map_err(|error| Error::system("ask for close-on-exec", error))?;
    Ok(give(place, given, Vec::new())?.numbers)
}

/// Moves the sockets that a target names into a running process: the very same ones, with all that is in
/// them. `keep` leaves them where they were too.
///
/// PID:FD names this one descriptor; every other target a socket, with each descriptor that the one
/// process has which holds it.
pub fn move_to(target: &Target, place: Place, keep: bool) -> Result<Move, Error> {
    let found = find::find(target)?;
    let taken = match keep {
        true => Vec::new(),
        false => taken(target, &found)?,
    };
    let given = found.iter().enumerate().map(|(at, found)| Given {
        socket: found.socket.as_fd(),
        number: place.fd.map(|fd| fd.saturating_add(at as i32)),
        close_on_exec: found.close_on_exec(),
    });
    let Done { numbers, stopped } = give(place, given.collect(), taken)?;
    let moved = found.iter().zip(numbers).map(|(found, fd)| Moved {
        inode: found.inode,
        from: found.holder,
        to: Holder {
            pid: find::process_of(place.pid),
            tid: place.pid,
            fd,
        },
    });
    let moved = moved.collect();
    Ok(Move { moved, stopped })
}

/// The descriptors to be taken: all must be of one table.
fn taken(target: &Target, found: &[Found]) -> Result<Vec<Taken>, Error> {
    let holders: Vec<(Holder, u64)> = match target {
        Target::Descriptor(..) => found.iter().map(|f| (f.holder, f.inode)).collect(),
        _ => holders(target, found)?,
    };
    let tables = |holder: &Holder| (holder.pid, holder.tid);
    let first = holders.first().map(|(holder, _)| tables(holder));
    if holders
        .iter()
        .any(|(holder, _)| Some(tables(holder)) != first)
    {
        let all = holders.iter().map(|(h, _)| format!("{}:{}", h.tid, h.fd));
        let all: Vec<String> = all.collect();
        let why = format!("several processes hold it: {}", all.join(", "));
        return Err(Error::new(ErrorKind::Refused, target, why)
            .help("name the one descriptor that is to go as PID:FD, or --keep them all"));
    }
    let taken = holders.into_iter().map(|(holder, inode)| Taken {
        tid: holder.tid,
        pid: holder.pid,
        fd: holder.fd,
        inode,
    });
    Ok(taken.collect())
}

fn holders(target: &Target, found: &[Found]) -> Result<Vec<(Holder, u64)>, Error> {
    let pid = match target {
        Target::Process(pid) => Some(*pid),
        _ => None,
    };
    let listing = find::list(pid)?;
    let known = |inode: u64| found.iter().any(|found| found.inode == inode);
    let listed = listing.sockets.iter().filter(|listed| known(listed.inode));
    let each = listed.flat_map(|listed| listed.holders.iter().map(|h| (*h, listed.inode)));
    // The duplicates through which they were found are none that was meant.
    let own = std::process::id() as i32;
    Ok(each.filter(|(holder, _)| holder.pid != own).collect())
}

fn give(place: Place, given: Vec<Given<'_>>, taken: Vec<Taken>) -> Result<Done, Error> {
    let pid = find::process_of(place.pid);
    if taken
        .iter()
        .any(|taken| taken.pid == pid && taken.tid != place.pid)
    {
        let why = "is the same process by another thread";
        return Err(Error::new(ErrorKind::Refused, place, why)
            .help("name the same thread on both sides, or --keep"));
    }
    let plan = Handover {
        tid: place.pid,
        pid,
        given,
        taken,
        sees_us: is_shared(place.pid, "pid"),
        listener: listener(place.pid).ok(),
    };
    match hand_over(&plan) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failure)) => Err(explain(place, failure)),
        Err(error) => Err(Error::system(format!("{place}: hand over"), error)),
    }
}

/// Whether a process has this namespace with us.
pub(crate) fn is_shared(pid: i32, namespace: &str) -> bool {
    let link = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}"));
    match (link("self"), link(&pid.to_string())) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        _ => false,
    }
}

/// A socket to connect to from the network namespace of a process, at an address that the kernel chose.
pub(crate) fn listener(pid: i32) -> io::Result<(OwnedFd, Vec<u8>)> {
    let listen = || -> io::Result<(OwnedFd, Vec<u8>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
        rustix::net::listen(&socket, 16)?;
        let address: SocketAddrUnix = rustix::net::getsockname(&socket)?.try_into()?;
        let name = address.abstract_name().ok_or(Errno::INVAL)?;
        // The name of an abstract address begins with a zero.
        let name = [&[0], name].concat();
        Ok((socket, name))
    };
    if is_shared(pid, "net") {
        return listen();
    }
    let namespace = std::fs::File::open(PathBuf::from(format!("/proc/{pid}/ns/net")))?;
    crate::netns::enter_in_thread(namespace.as_fd(), listen)
}

/// What a failure means, and what can be done.
pub(crate) fn explain(place: Place, failure: Failure) -> Error {
    let Failure { wrong, tid, errno } = failure;
    let refused = |why: &str| Error::new(ErrorKind::Refused, process(place, tid), why);
    let system = |what: &str| {
        let what = format!("{}: {what}", process(place, tid));
        Error::system(what, io::Error::from_raw_os_error(errno))
    };
    let known = (1..4096)
        .contains(&errno)
        .then(|| Errno::from_raw_os_error(errno));
    match (wrong, known) {
        (Wrong::Ended, _) => {
            let why = "no such process, or it ended or ran another program meanwhile";
            Error::new(ErrorKind::NotFound, process(place, tid), why)
        }
        (Wrong::Hold, Some(Errno::PERM)) => match tracer(tid) {
            Some(tracer) => refused(&format!("is traced by process {tracer}"))
                .help("end that first: a debugger, strace or another sockcr"),
            None => system("hold it still").help("it needs the rights of ptrace(2): the same user, or CAP_SYS_PTRACE"),
        },
        (Wrong::Hold, _) => system("hold it still"),
        (Wrong::Stop, _) => refused(&format!("thread {tid} cannot be stopped"))
            .help("it waits in the kernel for something that nothing interrupts, such as a disk or a vfork(2): try again"),
        (Wrong::Threads, _) => refused("gets new threads faster than they can be held"),
        (Wrong::Bits, _) => refused("is a 32-bit program, or in 32-bit code"),
        (Wrong::Dispatch, _) => refused("has its system calls turned into signals (Syscall User Dispatch)"),
        (Wrong::Seccomp, _) => refused("has a seccomp filter, which might end it for our system calls")
            .help("root (CAP_SYS_ADMIN) can suspend the filter meanwhile"),
        (Wrong::Instruction, _) => refused("is in no system call, and has no vdso: nothing to make one with"),
        (Wrong::Taken, _) => refused("has another file at that descriptor meanwhile"),
        (Wrong::Number, Some(Errno::EXIST)) => refused(&format!("has a descriptor {} already", number(place)))
            .help("--to PID, without a number, takes a free one"),
        (Wrong::Number, Some(Errno::INVAL)) => refused(&format!("may have no descriptor {}", number(place)))
            .help("`prlimit --nofile --pid PID` shows its limit, and raises it"),
        (Wrong::Receive, Some(Errno::MFILE)) | (Wrong::Number, Some(Errno::MFILE)) => {
            refused("has no free descriptor left: it needs two for a moment")
                .help("`prlimit --nofile --pid PID` shows its limit, and raises it")
        }
        (Wrong::Receive, _) => system("have it receive the socket")
            .help("it may neither look into other processes nor be reached in its network namespace"),
        (Wrong::Number, _) => system("give the descriptor its number"),
        (Wrong::Renewal, _) => system("have its epoll instances")
            .help("sockcr itself needs a descriptor for each, of the same number as theirs: `ulimit -n` may be too low"),
        (Wrong::Other, _) => system("make system calls in it"),
    }
}

fn process(place: Place, tid: i32) -> String {
    match tid {
        0 => place.to_string(),
        tid => format!("process {}", find::process_of(tid)),
    }
}

fn number(place: Place) -> String {
    place
        .fd
        .map_or("of that number".into(), |fd| fd.to_string())
}

fn tracer(tid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let tracer = text
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?;
    tracer.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Tries it out, on a process that does nothing else.
pub fn rehearse() -> Result<(), Error> {
    let failed = |error| Error::system("start a process", error);
    let mut command = std::process::Command::new("sleep");
    let quiet = std::process::Stdio::null;
    let command = command.arg("60").stdin(quiet()).stdout(quiet());
    let mut child = command.spawn().map_err(failed)?;
    let given = crate::netns::probe().map_err(failed).and_then(|socket| {
        to_process(
            &[socket.as_fd()],
            Place {
                pid: child.id() as i32,
                fd: None,
            },
        )
    });
    // It is ours, and not waited for yet.
    let _ = child.kill();
    let _ = child.wait();
    given.map(drop)
}
