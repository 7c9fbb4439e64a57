//! The least that can be done in a process that stands still: the floor of everything else that is.

use crate::child::Child;
use crate::processor::Apart;
use crate::ptrace;
use crate::registers::Waiting;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socketpair};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// No call takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the other processors do meanwhile: one that sleeps has to be woken up, as soon as the scheduler sends the thread
/// there, which takes longer than all else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// They sleep, if nobody else needs them.
    Sleep,
    /// We keep one of them awake, as whoever works beside does.
    Wake,
}

/// How long it takes to stop a thread that waits in a system call, have it make getpid(2), and let it go: by a process that
/// has attached to it and does nothing else, on the same processor, as `swap` does more. `None`: we have no other processor
/// to keep awake.
pub fn floor(tid: i32, others: Others) -> io::Result<Option<Duration>> {
    let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
    let (line, far) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
    let apart = Apart::from(tid);
    if apart.is_none() && others == Others::Wake {
        return Ok(None);
    }
    let child = Child::start(&line, &[far.as_raw_fd()], || {
        apart.as_ref().inspect(|apart| apart.join());
        ptrace::tick();
        if let Ok(took) = visit(tid) {
            let nanos = (took.as_nanos() as u64).to_ne_bytes();
            // Whoever waited for it may be gone.
            let _ = send(&far, &nanos, SendFlags::NOSIGNAL);
        }
    })?;
    drop(far);
    let mut bytes = [0; 8];
    let flags = match others {
        Others::Wake => RecvFlags::DONTWAIT,
        Others::Sleep => RecvFlags::WAITALL,
    };
    let heard = loop {
        match recv(&line, &mut bytes, flags) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            heard => break heard,
        }
    };
    child.collect()?;
    match heard? {
        (_, 8) => Ok(Some(Duration::from_nanos(u64::from_ne_bytes(bytes)))),
        _ => Err(io::Error::other("it cannot be visited")),
    }
}

fn visit(tid: i32) -> io::Result<Duration> {
    let before = Waiting::of(tid);
    ptrace::seize(tid)?;
    let start = Instant::now();
    let stopped = ptrace::stop_seized(tid, &before)?;
    let own = ptrace::registers(tid)?;
    let at = own.call_address().ok_or(Errno::INVAL)?;
    let end = Instant::now() + PATIENCE;
    ptrace::set_registers(tid, &own.calling(at, libc::SYS_getpid, [0; 6]))?;
    ptrace::to_next_boundary(tid, end)?;
    ptrace::to_next_boundary(tid, end)?;
    let answer = ptrace::registers(tid)?.answer();
    ptrace::put_back(tid, &own, true)?;
    drop(stopped);
    match answer > 0 {
        true => Ok(start.elapsed()),
        false => Err(Errno::NOSYS.into()),
    }
}
