//! ptrace(2), as far as it holds a thread still: PTRACE_SEIZE and PTRACE_INTERRUPT.
//!
//! The kernel lets a seized thread go by itself when its tracer ends, however it ends.

use crate::check;
use std::io;

/// A thread that stands still until this is dropped.
///
/// ptrace(2) knows the tracer by its thread: drop it in the thread that made it.
#[derive(Debug)]
pub struct Stopped {
    tid: libc::pid_t,
    /// A signal that was about to be delivered when the thread stopped, to be passed on.
    signal: libc::c_int,
}

/// The event of a stop that was asked for, above the signal in a wait status.
const PTRACE_EVENT_STOP: libc::c_int = 128;

/// Stops a thread (needs the rights of ptrace(2): the same user, or CAP_SYS_PTRACE).
///
/// `EPERM` also when another tracer has it; `ESRCH` when it is gone.
pub fn stop(tid: i32) -> io::Result<Stopped> {
    request(libc::PTRACE_SEIZE, tid, 0)?;
    let mut stopped = Stopped { tid, signal: 0 };
    request(libc::PTRACE_INTERRUPT, tid, 0)?;
    let mut status = 0;
    loop {
        // SAFETY: status is writable; __WALL also waits for threads that are no child.
        match check(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL) }) {
            Ok(_) if libc::WIFSTOPPED(status) => {
                if status >> 16 != PTRACE_EVENT_STOP {
                    stopped.signal = libc::WSTOPSIG(status);
                }
                return Ok(stopped);
            }
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // A thread that has ended meanwhile needs no letting go.
        let _ = request(libc::PTRACE_DETACH, self.tid, self.signal);
    }
}

fn request(request: libc::c_uint, tid: i32, data: libc::c_int) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: SEIZE, INTERRUPT and DETACH take a number as data; they read no memory of ours and
    // write none of the thread's.
    let result = unsafe { libc::ptrace(request, tid, none, libc::c_long::from(data)) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
