//! The least that can be done in a process that stands still: the floor of everything else that is.

use crate::ptrace;
use rustix::io::Errno;
use std::io;
use std::time::{Duration, Instant};

/// No call takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Stops a thread that waits in a system call, has it make getpid(2), and lets it go on; answers what that
/// answered.
pub fn visit(tid: i32) -> io::Result<i64> {
    let stopped = ptrace::stop(tid)?;
    let own = ptrace::registers(tid)?;
    let at = own.call_address().ok_or(Errno::INVAL)?;
    let end = Instant::now() + PATIENCE;
    ptrace::set_registers(tid, &own.calling(at, libc::SYS_getpid, [0; 6]))?;
    ptrace::to_next_boundary(tid, end)?;
    ptrace::to_next_boundary(tid, end)?;
    let answer = ptrace::registers(tid)?.answer();
    ptrace::back_to_stop(tid)?;
    ptrace::set_registers(tid, &own)?;
    drop(stopped);
    Ok(answer)
}
