//! A child process that outlives us: it undoes, or finishes, what we have begun.
//!
//! It is in a session of its own and blocks every signal, but for the SIGALRM of its own timer (`ptrace::tick`), so that
//! what is meant for us (Ctrl-C, a SIGKILL for the process group) does not end it; it holds no other descriptor. Only who
//! kills both prevents it: a control group that is killed, or a PID namespace whose first process is.

use crate::check;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// One of them, which has to be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Child(libc::pid_t);

impl Child {
    /// Starts it, with every signal blocked from its first instruction on. It holds the descriptors `kept`,
    /// which are in order, and not `line`, our end of what it hears us by; then it ends.
    ///
    /// `work` makes system calls only, takes no lock and allocates nothing: other threads of ours may have
    /// held a lock at the moment of the copy.
    pub fn start(line: &OwnedFd, kept: &[RawFd], work: impl FnOnce()) -> io::Result<Child> {
        let before = block_signals()?;
        let child = fork();
        if let Ok(0) = child {
            settle_in(line, kept);
            work();
            // SAFETY: ends the child without running what the process registered for its own end.
            unsafe { libc::_exit(0) }
        }
        set_signals(&before)?;
        child.map(Child)
    }

    /// Waits for its end. It sends no SIGCHLD, and nobody else's wait(2) finds it: only `__WALL` does.
    pub fn collect(self) -> io::Result<()> {
        loop {
            // SAFETY: no status is asked for, so that nothing is written.
            match check(unsafe { libc::waitpid(self.0, std::ptr::null_mut(), libc::__WALL) }) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                ended => return ended.map(drop),
            }
        }
    }
}

fn settle_in(line: &OwnedFd, kept: &[RawFd]) {
    // SAFETY: no argument. It cannot fail: a new process leads no group.
    unsafe { libc::setsid() };
    hear_of_ends();
    // SAFETY: the number is the other side's end, which this copy of the process does not use; open
    // here, it would hide the end of that side.
    unsafe { libc::close(line.as_raw_fd()) };
    close_others(kept);
    stay();
    touch_stack();
}

/// Writes to the stack that will be needed: a page that is written for the first time is copied then, and by then somebody
/// may stand still.
#[inline(never)]
fn touch_stack() {
    const NEEDED: usize = 1 << 16;
    let mut room = [0_u8; NEEDED];
    std::hint::black_box(&mut room);
}

/// Stops of threads that we trace make no SIGCHLD, whatever our parent wanted: we wait for them.
fn hear_of_ends() {
    // SAFETY: sigaction is plain data for which all zeroes is a value: SIG_DFL, no flags, no mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_flags = libc::SA_NOCLDSTOP;
    // SAFETY: it sets what SIGCHLD does to nothing; what it did is not asked for.
    unsafe { libc::sigaction(libc::SIGCHLD, &raw const action, std::ptr::null_mut()) };
}

/// It is the last to be killed for want of memory, and not killed by the name of its parent (killall(1)). Neither is
/// needed, and the first may be forbidden.
fn stay() {
    // SAFETY: reads a string that ends with 0.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"sockcr-keeper".as_ptr()) };
    let path = c"/proc/self/oom_score_adj";
    let opened = rustix::fs::open(path, rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty());
    if let Ok(file) = opened {
        let _ = rustix::io::write(&file, b"-1000");
    }
}

/// Like fork(2), but without a signal at its end: a process that we are a guest in would be
/// disturbed by a child it knows nothing of.
fn fork() -> io::Result<libc::pid_t> {
    // SAFETY: with no flags and no stack clone(2) copies the process; all arguments are 0, so that
    // their order, which differs between architectures, does not matter. The child makes system
    // calls only (see `Child::start`), takes no lock and allocates nothing.
    let pid = unsafe { libc::syscall(libc::SYS_clone, 0_u64, 0_u64, 0_u64, 0_u64, 0_u64) };
    match pid {
        0.. => Ok(pid as libc::pid_t),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(crate) fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data for which all zeroes is a value.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: it writes the set it is given.
    check(unsafe { libc::sigfillset(&raw mut all) })?;
    // SAFETY: sigset_t is plain data for which all zeroes is a value.
    let mut before: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: it reads one set and writes the other.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) } {
        0 => Ok(before),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

pub(crate) fn set_signals(set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: it reads the set; the former one is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Closes every descriptor but these, which are in order (`close_range`, since 5.9): held here, the
/// files of others would outlive them.
fn close_others(kept: &[RawFd]) {
    let mut first = 0;
    for fd in kept {
        let fd = *fd as u32;
        if fd > first {
            close_range(first, fd - 1);
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX);
}

fn close_range(first: u32, last: u32) {
    // SAFETY: closes descriptors of this copy of the process, which uses only those that are kept.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
}
