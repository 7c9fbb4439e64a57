//! Copies of this process, each for one task, that do not outlive it.

use crate::check;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI32, Ordering};

/// What a child ends with that did not come to its end.
pub const PANICKED: u8 = 255;

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts a copy of this process that does this work and ends with what it answers; a descriptor of it
/// (`CLONE_PIDFD`, since 5.2). `group`, the folder of a control group, is the one it starts in
/// (`CLONE_INTO_CGROUP`, since 5.7). It is killed when we end.
///
/// The process must have one thread, so that no lock is held by another that the copy does not have.
pub fn spawn(group: Option<BorrowedFd<'_>>, work: impl FnOnce() -> u8) -> io::Result<OwnedFd> {
    if threads()? != 1 {
        return Err(io::Error::other("there are other threads: no copy is made"));
    }
    let parent = rustix::process::getpid();
    let mut descriptor: RawFd = -1;
    match clone(group, &mut descriptor)? {
        0 => {
            PARENT.store(parent.as_raw_pid(), Ordering::Relaxed);
            let answer = catch_unwind(AssertUnwindSafe(|| match end_with_parent() {
                Ok(()) => work(),
                Err(_) => PANICKED,
            }));
            // SAFETY: ends the child, without running what the parent registered for its own end.
            unsafe { libc::_exit(answer.unwrap_or(PANICKED).into()) }
        }
        // SAFETY: the kernel made this descriptor for us; nobody else owns it.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
    }
}

/// Has a copy of this process do this work, and waits for what it answers. It outlives us: in a session of its own, and
/// with every signal blocked, it comes to its end also when we are killed, or interrupted at the terminal.
///
/// The process must have one thread.
pub fn outlive(work: impl FnOnce() -> u8) -> io::Result<u8> {
    if threads()? != 1 {
        return Err(io::Error::other("there are other threads: no copy is made"));
    }
    let mut descriptor: RawFd = -1;
    let before = crate::child::block_signals()?;
    if clone(None, &mut descriptor)? == 0 {
        // SAFETY: no argument. It cannot fail: a new process leads no group.
        unsafe { libc::setsid() };
        let answer = catch_unwind(AssertUnwindSafe(work));
        // SAFETY: ends the child, without running what the parent registered for its own end.
        unsafe { libc::_exit(answer.unwrap_or(PANICKED).into()) }
    }
    // SAFETY: the kernel made this descriptor for us; nobody else owns it.
    let child = unsafe { OwnedFd::from_raw_fd(descriptor) };
    crate::child::set_signals(&before)?;
    let (whom, how) = (WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED);
    loop {
        match waitid(whom.clone(), how) {
            Err(rustix::io::Errno::INTR) => {}
            ended => {
                let code = ended?.and_then(|status| status.exit_status());
                return Ok(code
                    .and_then(|code| code.try_into().ok())
                    .unwrap_or(PANICKED));
            }
        }
    }
}

fn threads() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

fn clone(group: Option<BorrowedFd<'_>>, descriptor: &mut RawFd) -> io::Result<libc::c_long> {
    // SAFETY: clone_args is plain data for which all zeroes is a value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = libc::CLONE_PIDFD as u64;
    arguments.pidfd = std::ptr::from_mut(descriptor) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group.as_raw_fd() as u64;
    }
    let size = size_of::<libc::clone_args>();
    // SAFETY: no stack and no CLONE_VM: the child is a copy, like that of fork(2), of a process with one
    // thread, whose locks it has as they are. The kernel writes the descriptor where `pidfd` says.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) };
    match pid {
        0.. => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The process that made this copy; 0: none did.
static PARENT: AtomicI32 = AtomicI32::new(0);

/// Has this copy killed when the process that made it ends, as it is from its beginning; who takes on another user says
/// it again.
///
/// `ESRCH`: that has ended already, or nobody made a copy.
pub fn end_with_parent() -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let parent = rustix::process::getppid().map_or(0, rustix::process::Pid::as_raw_pid);
    match parent == PARENT.load(Ordering::Relaxed) {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

/// Closes every descriptor but these (`close_range`, since 5.9): what was open for others is not for the task
/// that this process has now.
///
/// The numbers that are given stay; whoever owns another one may not use it any more, so call it where nothing
/// else lives: at the beginning of a child.
pub fn close_others(kept: &mut [RawFd]) -> io::Result<()> {
    kept.sort_unstable();
    let mut first: u32 = 0;
    for fd in kept.iter().map(|fd| *fd as u32).chain([u32::MAX]) {
        if fd > first {
            let last = if fd == u32::MAX { fd } else { fd - 1 };
            // SAFETY: three numbers. The descriptors that are closed are not used any more: the caller says so.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } as libc::c_int)?;
        }
        first = fd.saturating_add(1);
    }
    Ok(())
}
