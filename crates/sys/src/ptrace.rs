//! ptrace(2): holding threads still by PTRACE_SEIZE and PTRACE_INTERRUPT, and what can be done then.
//!
//! The kernel lets a seized thread go by itself when its tracer ends, however it ends.

use crate::check;
use crate::registers::{GOES_ON_FROM_EXIT, Raw, Registers, Waiting};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// A thread that stands still until this is dropped.
///
/// ptrace(2) knows the tracer by its thread: drop it in the thread that made it.
#[derive(Debug)]
pub struct Stopped {
    tid: libc::pid_t,
}

/// The event of a stop that was asked for, above the signal in a wait status.
const PTRACE_EVENT_STOP: libc::c_int = 128;
/// What PTRACE_O_TRACESYSGOOD adds to the SIGTRAP of a stop at a system call.
const AT_A_CALL: libc::c_int = 0x80;

/// Stops a thread (needs the rights of ptrace(2): the same user, or CAP_SYS_PTRACE).
///
/// `EPERM` also when another tracer has it; `ESRCH` when it is gone, or another thread of it has executed
/// a program; `ETIMEDOUT` when it waits in the kernel for something that nothing interrupts.
pub fn stop(tid: i32) -> io::Result<Stopped> {
    let before = Waiting::of(tid);
    seize(tid)?;
    stop_seized(tid, &before)
}

/// The same of a thread that is seized already; `before` was looked at while it ran.
pub(crate) fn stop_seized(tid: i32, before: &Waiting) -> io::Result<Stopped> {
    let stopped = Stopped { tid };
    interrupt(tid)?;
    settle(tid, Instant::now() + STOPPING)?;
    match take_back_disturbance(tid, before, false) {
        // A program of another kind keeps its EINTR.
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => Ok(stopped),
        taken => taken.map(|()| stopped),
    }
}

/// How long a thread may take to stop.
const STOPPING: Duration = Duration::from_secs(2);

impl Drop for Stopped {
    fn drop(&mut self) {
        // A thread that has ended meanwhile needs no letting go.
        let _ = let_go(self.tid);
    }
}

/// Becomes the tracer of a thread, which runs on; `ESRCH` when it has ended.
pub(crate) fn seize(tid: i32) -> io::Result<()> {
    const ATTEMPTS: u32 = 3;
    let mut attempt = 0;
    loop {
        attempt += 1;
        match request(libc::PTRACE_SEIZE, tid, libc::PTRACE_O_TRACESYSGOOD) {
            // One that has just ended is refused like one that we may not trace (`ptrace_attach`). If another
            // thread executes a program, that has its number an instant later (`de_thread`).
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                if has_ended(tid) {
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                if attempt == ATTEMPTS {
                    return Err(error);
                }
            }
            seized => return seized,
        }
    }
}

/// Makes a thread stop; [`settle`] waits for that.
pub(crate) fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0)
}

/// The same, with system calls that its seccomp filter does not see until it is let go (CAP_SYS_ADMIN).
pub(crate) fn seize_unfiltered(tid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_SUSPEND_SECCOMP;
    request(libc::PTRACE_SEIZE, tid, options)
}

/// Waits until an interrupted thread stands still, before any further signal is delivered to it.
///
/// A signal that is about to be delivered stops it too. It is passed on: the kernel starts the handler,
/// or ends the process, as if nobody looked, and then comes to the stop that was asked for. So a signal
/// is never held back, and never delivered with registers that are not the thread's own.
pub(crate) fn settle(tid: i32, end: Instant) -> io::Result<()> {
    settle_or_else(tid, end, Sleep::Lasts)
}

/// The same; whether it is waited for one that sleeps where nothing interrupts it.
pub(crate) fn settle_or_else(tid: i32, end: Instant, sleep: Sleep) -> io::Result<()> {
    loop {
        let status = wait(tid, end, sleep)?;
        if status >> 16 == PTRACE_EVENT_STOP {
            return Ok(());
        }
        interrupt(tid)?;
        request(libc::PTRACE_CONT, tid, signal_of(status))?;
    }
}

/// The signal that this stop would deliver; a stop at a system call delivers none.
fn signal_of(status: libc::c_int) -> libc::c_int {
    match libc::WSTOPSIG(status) {
        signal if status >> 16 != 0 || signal & AT_A_CALL != 0 => 0,
        signal => signal,
    }
}

/// Lets a stopped thread run to the next boundary of a system call: into it, or out of it.
///
/// Its signals are blocked but for those that cannot be. SIGSTOP is passed on: the thread does its
/// call all the same, and stands still when it is let go. A signal of its own making means that the
/// call could not be made: `EFAULT`.
pub(crate) fn to_next_boundary(tid: i32, end: Instant) -> io::Result<()> {
    let mut signal = 0;
    loop {
        request(libc::PTRACE_SYSCALL, tid, signal)?;
        let status = wait(tid, end, Sleep::Lasts)?;
        signal = signal_of(status);
        match libc::WSTOPSIG(status) {
            at if at == libc::SIGTRAP | AT_A_CALL => return Ok(()),
            _ if signal == 0 || signal == libc::SIGSTOP => {}
            _ => return Err(io::Error::from_raw_os_error(libc::EFAULT)),
        }
    }
}

/// Puts the registers of a thread back as they were when it was stopped; `is_behind`: it stands at the end of a call that
/// it made for us.
pub(crate) fn put_back(tid: i32, registers: &Registers, is_behind: bool) -> io::Result<()> {
    if !(is_behind && GOES_ON_FROM_EXIT) {
        back_to_stop(tid)?;
    }
    set_registers(tid, registers)
}

/// How long is waited for a thread that has to be put back before it is asked again.
const PUTTING_BACK: Duration = Duration::from_secs(20);

/// Lets a thread that stands anywhere come to the stop that [`settle`] knows, from which the kernel
/// restarts the call that its registers tell of.
///
/// One that does not come, because its control group is frozen, is waited for: let go, it would go on with
/// our registers.
fn back_to_stop(tid: i32) -> io::Result<()> {
    loop {
        match try_back_to_stop(tid, Instant::now() + PUTTING_BACK) {
            Err(error) if error.raw_os_error() == Some(libc::ETIMEDOUT) => {}
            settled => return settled,
        }
    }
}

/// The same, but not after `end`: `ETIMEDOUT`.
pub(crate) fn try_back_to_stop(tid: i32, end: Instant) -> io::Result<()> {
    interrupt(tid)?;
    // One that does not stand still is on its way already.
    let _ = request(libc::PTRACE_CONT, tid, 0);
    settle(tid, end)
}

/// Lets a stopped thread run on.
pub(crate) fn let_go(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0)
}

/// Waits for a thread to stop; `ESRCH` when it has ended, `ETIMEDOUT` when it takes too long.
///
/// It asks again and again, or whenever it is interrupted: when another thread executes a program, who sleeps in wait(2)
/// for the first one is not woken (`child_wait_callback` sees the exchanged number).
fn wait(tid: i32, end: Instant, sleep: Sleep) -> io::Result<libc::c_int> {
    let ticks = TICKS.load(Relaxed);
    let flags = if ticks { 0 } else { libc::WNOHANG };
    let (mut status, mut turns) = (0, 0);
    loop {
        // SAFETY: status is writable; __WALL also waits for threads that are no child.
        match check(unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | flags) }) {
            Ok(0) => {}
            Ok(_) if libc::WIFSTOPPED(status) => return Ok(status),
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::ESRCH)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Another thread has executed a program, and took the place of this one.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Err(error) => return Err(error),
        }
        if Instant::now() > end {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
        turns += 1;
        let takes_long = match ticks {
            true => turns > 1,
            false => pause(turns),
        };
        // The first thread of a process is not told of before the others are collected.
        if takes_long && has_ended(tid) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if takes_long && sleep == Sleep::IsTheEnd && is_asleep(tid) {
            return Err(io::Error::from_raw_os_error(libc::ETIMEDOUT));
        }
    }
}

/// Whether wait(2) is interrupted every [`LONGEST_MOMENT`].
static TICKS: AtomicBool = AtomicBool::new(false);

/// Has this process sleep while it waits for threads, and look up every other millisecond: to ask again and again
/// takes the processor that they need, and to sleep for a moment sets a timer each time. From now on SIGALRM
/// interrupts it; only for a child process that is alone with its signals.
pub(crate) fn tick() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: sigaction is plain data for which all zeroes is a value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
    let moment = libc::timeval {
        tv_sec: 0,
        tv_usec: LONGEST_MOMENT.subsec_micros().into(),
    };
    let timer = libc::itimerval {
        it_interval: moment,
        it_value: moment,
    };
    // SAFETY: sigset_t is plain data for which all zeroes is a value.
    let mut alarm: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: it writes the set it is given.
    unsafe { libc::sigaddset(&raw mut alarm, libc::SIGALRM) };
    let (handler, unblocked, every) = (&raw const action, &raw const alarm, &raw const timer);
    // SAFETY: the handler does nothing; what was before is not asked for.
    let handled = unsafe { libc::sigaction(libc::SIGALRM, handler, std::ptr::null_mut()) } == 0;
    // SAFETY: it reads the set; what was before is not asked for.
    let heard = unsafe { libc::sigprocmask(libc::SIG_UNBLOCK, unblocked, std::ptr::null_mut()) };
    // SAFETY: it reads the time; what was before is not asked for.
    let set = || unsafe { libc::setitimer(libc::ITIMER_REAL, every, std::ptr::null_mut()) };
    let ticks = handled && heard == 0 && set() == 0;
    TICKS.store(ticks, Relaxed);
}

/// Waits a while before a thread is asked for again for this time: first not at all, then longer and longer. Says
/// whether that was long.
fn pause(turn: u32) -> bool {
    let Some(turn) = turn.checked_sub(AT_ONCE) else {
        // The thread may be one that waits for this processor.
        std::thread::yield_now();
        return false;
    };
    let moment = SHORTEST_MOMENT.saturating_mul(1 << turn.min(16));
    std::thread::sleep(moment.min(LONGEST_MOMENT));
    moment >= LONGEST_MOMENT
}

/// How long is waited for a thread that waits in the kernel for something that nothing interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// As long as for any other.
    Lasts,
    /// A few milliseconds: what it waits for may be another process that we hold (vfork(2)).
    IsTheEnd,
}

/// How often it is asked without a pause, some 50 µs, by those that nothing interrupts.
const AT_ONCE: u32 = 100;
/// The first pause.
const SHORTEST_MOMENT: Duration = Duration::from_micros(20);
/// The last.
const LONGEST_MOMENT: Duration = Duration::from_millis(2);

/// Whether a thread has ended, and is only waited for.
pub fn has_ended(tid: i32) -> bool {
    state(tid).is_none_or(|state| matches!(state, b'Z' | b'X'))
}

/// Whether it sleeps where only SIGKILL reaches it, or not even that.
fn is_asleep(tid: i32) -> bool {
    state(tid) == Some(b'D')
}

/// The letter for what a thread does; `None`: it is gone.
fn state(tid: i32) -> Option<u8> {
    let mut buffer = [0; 1024];
    let letter = crate::path::stat(tid, &mut buffer)?.next()?;
    letter.bytes().next()
}

/// Whether a thread has a seccomp filter, or less.
pub(crate) fn is_filtered(tid: i32) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let path = crate::path::Path::new(format_args!("/proc/{tid}/status"));
    let text = crate::path::read(path.as_c_str(), &mut buffer)?;
    // A kernel without seccomp does not tell.
    Ok(crate::path::number_after(text, "Seccomp:").unwrap_or(0) != 0)
}

/// The same of a stopped thread that [`seize_unfiltered`] has seized: that this was possible says that
/// the kernel knows the answer (`seccomp_get_filter`). /proc takes twenty times as long, for each of many threads.
fn has_filters(tid: i32) -> Option<bool> {
    const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
    let first = std::ptr::null_mut::<libc::c_void>();
    let nowhere = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: with no memory given it only tells the length of the first filter.
    let told = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, tid, first, nowhere) };
    match told {
        0.. => Some(true),
        _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => Some(false),
        _ => None,
    }
}

/// Takes back what a mere stop has done to the call that a thread was in; `before` was looked at
/// while it ran, and `unfiltered` says that [`seize_unfiltered`] has seized it.
pub(crate) fn take_back_disturbance(
    tid: i32,
    before: &Waiting,
    unfiltered: bool,
) -> io::Result<()> {
    let mut registers = registers(tid)?;
    if let Some(socket) = registers.cut_short(before) {
        // What cannot be looked at has nothing that could be taken.
        let _ = take_interruption(tid, socket);
    }
    // Where it cannot be asked, what is right for one that has a filter does no harm.
    let is_filtered = || match unfiltered.then(|| has_filters(tid)).flatten() {
        Some(has) => has,
        None => is_filtered(tid).unwrap_or(true),
    };
    match registers.take_back_interruption(before, is_filtered) {
        true => set_registers(tid, &registers),
        false => Ok(()),
    }
}

/// Takes away the error that recvmmsg(2) has left in its socket when it was disturbed.
///
/// A thread that had just returned by itself looks alike; then there is no error, or its own, which is
/// lost: there is no way to look at one without taking it.
fn take_interruption(tid: i32, fd: i32) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::retry_on_intr;
    let socket = crate::descriptor::of_thread(tid, fd)?;
    let mut asked = [PollFd::new(&socket, PollFlags::empty())];
    retry_on_intr(|| poll(&mut asked, Some(&Timespec::default())))?;
    if asked[0].revents().contains(PollFlags::ERR) {
        let mut error = [0; 4];
        let name = libc::SO_ERROR;
        crate::sockopt::get(socket.as_fd(), libc::SOL_SOCKET, name, &mut error)?;
    }
    Ok(())
}

/// The registers of a stopped thread; `EPROTOTYPE` when its program is of another kind than ours: 32-bit.
pub(crate) fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: registers are plain numbers, for which all zeroes is a value.
    let mut raw: Raw = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec {
        iov_base: (&raw mut raw).cast(),
        iov_len: size_of::<Raw>(),
    };
    let set = std::ptr::without_provenance_mut::<libc::c_void>(NT_PRSTATUS);
    // SAFETY: the kernel writes at most `iov_len` bytes of `raw`, which outlives the call.
    let result = unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, set, &raw mut vector) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ if vector.iov_len != size_of::<Raw>() => {
            Err(io::Error::from_raw_os_error(libc::EPROTOTYPE))
        }
        _ => Ok(Registers(raw)),
    }
}

/// Writes the registers of a stopped thread.
pub(crate) fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let mut raw = registers.0;
    let mut vector = libc::iovec {
        iov_base: (&raw mut raw).cast(),
        iov_len: size_of::<Raw>(),
    };
    let set = std::ptr::without_provenance_mut::<libc::c_void>(NT_PRSTATUS);
    // SAFETY: the kernel reads `iov_len` bytes of `raw`, which outlives the call.
    match unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, set, &raw mut vector) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The signals that a stopped thread blocks.
pub(crate) fn blocked_signals(tid: i32) -> io::Result<u64> {
    let mut mask = 0_u64;
    let size = std::ptr::without_provenance_mut::<libc::c_void>(size_of::<u64>());
    // SAFETY: the kernel writes its sigset_t, 64 bits, to `mask`, which outlives the call.
    match unsafe { libc::ptrace(libc::PTRACE_GETSIGMASK, tid, size, &raw mut mask) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(mask),
    }
}

/// Makes a stopped thread block these signals; SIGKILL and SIGSTOP cannot be (`ptrace_request`).
pub(crate) fn block_signals(tid: i32, mask: u64) -> io::Result<()> {
    let mut mask = mask;
    let size = std::ptr::without_provenance_mut::<libc::c_void>(size_of::<u64>());
    // SAFETY: the kernel reads its sigset_t, 64 bits, from `mask`, which outlives the call.
    match unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, tid, size, &raw mut mask) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Where a thread has its `struct rseq` (`PTRACE_GET_RSEQ_CONFIGURATION`, since 5.13), if it has one.
pub(crate) fn restartable_sequence(tid: i32) -> Option<u64> {
    const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
    // `rseq_abi_pointer`, then what does not matter here.
    let mut configuration = [0_u64; 3];
    let size = std::ptr::without_provenance_mut::<libc::c_void>(size_of_val(&configuration));
    let to = configuration.as_mut_ptr();
    // SAFETY: the kernel writes one ptrace_rseq_configuration, 24 bytes, to `to`.
    let told = unsafe { libc::ptrace(PTRACE_GET_RSEQ_CONFIGURATION, tid, size, to) };
    let [address, ..] = configuration;
    (told > 0 && address != 0).then_some(address)
}

/// Whether a thread has its system calls turned into signals (Syscall User Dispatch; asked since 6.4).
pub(crate) fn dispatches_its_calls(tid: i32) -> bool {
    const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;
    // mode, selector, offset, length.
    let mut configuration = [0_u64; 4];
    let size = std::ptr::without_provenance_mut::<libc::c_void>(size_of_val(&configuration));
    let to = configuration.as_mut_ptr();
    // SAFETY: the kernel writes one ptrace_sud_config, 32 bytes, to `to`.
    let told = unsafe { libc::ptrace(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, to) };
    let [mode, ..] = configuration;
    told == 0 && mode != 0
}

const NT_PRSTATUS: usize = 1;

fn request(request: libc::c_uint, tid: i32, data: libc::c_int) -> io::Result<()> {
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: SEIZE, INTERRUPT, CONT, SYSCALL and DETACH take a number as data; they read
    // no memory of ours and write none of the thread's.
    let result = unsafe { libc::ptrace(request, tid, none, libc::c_long::from(data)) };
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
