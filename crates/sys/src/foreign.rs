//! A process that stands still, and makes system calls for us.
//!
//! No code is written into it: one of its threads is sent through a `syscall` instruction that is there
//! already, the one it waits behind or one of its vdso, and is stopped on the way in and on the way out
//! (PTRACE_SYSCALL). Unlike a single step that needs no SIGTRAP, whose handler the kernel would forget in a
//! process that blocks or ignores it (`force_sig_info_to_task`). Where a call needs memory, that is the stack below
//! what the ABI leaves to the thread (the red zone): dead memory, which any signal handler would overwrite,
//! and which is put back all the same.
//!
//! Everything here is done by the child process of `handover`, after fork: nothing allocates.

use crate::path::{self, Path};
use crate::ptrace::{self, Sleep};
use crate::registers::{CALL, Registers, Waiting};
use rustix::fs::{Mode, OFlags, RawDir, open, stat};
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// What is refused, or went wrong.
#[repr(i32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// The process could not be held.
    Hold = 1,
    /// A thread of it does not stop.
    Stop,
    /// It has more threads, or gets them faster, than can be held.
    Threads,
    /// It is a program of another word size.
    Bits,
    /// It has its system calls turned into signals.
    Dispatch,
    /// It has a seccomp filter, which we may not suspend.
    Seccomp,
    /// No instruction was found that makes a system call.
    Instruction,
    /// It ended, or ran another program.
    Ended,
    /// The descriptor that is to be taken is another file meanwhile.
    Taken,
    /// It was not given the socket.
    Receive,
    /// It cannot have a descriptor of that number.
    Number,
    /// An epoll instance of it cannot be had.
    Renewal,
    /// The one that does all this failed itself.
    Other,
}

impl Wrong {
    /// By its number.
    pub(crate) fn from_number(number: i32) -> Wrong {
        use Wrong::*;
        let all = [
            Hold,
            Stop,
            Threads,
            Bits,
            Dispatch,
            Seccomp,
            Instruction,
            Ended,
            Taken,
            Receive,
            Number,
            Renewal,
        ];
        let mut all = all.into_iter();
        all.find(|wrong| *wrong as i32 == number).unwrap_or(Other)
    }
}

/// Why something was not done: what is wrong, with which thread or process, and the errno.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// What is refused, or went wrong.
    pub wrong: Wrong,
    /// The thread or process that it concerns.
    pub tid: i32,
    /// The errno, 0 for none.
    pub errno: i32,
}

impl Failure {
    pub(crate) fn new(wrong: Wrong, tid: i32, error: &io::Error) -> Failure {
        let errno = error.raw_os_error().unwrap_or(0);
        match errno {
            libc::ESRCH => Failure::plain(Wrong::Ended, tid),
            _ => Failure { wrong, tid, errno },
        }
    }

    pub(crate) fn plain(wrong: Wrong, tid: i32) -> Failure {
        Failure {
            wrong,
            tid,
            errno: 0,
        }
    }
}

/// One thread that we trace.
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    tid: i32,
    before: Waiting,
    interrupted: bool,
    stands: bool,
    /// No seccomp filter looks at its calls meanwhile.
    unfiltered: bool,
    calls: Option<Calls>,
}

/// Room for the threads of a process, and for those that it may have by the time it stands still: whoever
/// stops it may not allocate.
pub(crate) fn room(tid: i32) -> Vec<Thread> {
    let folder = std::fs::read_dir(format!("/proc/{tid}/task"));
    Vec::with_capacity(2 * folder.map_or(0, Iterator::count) + 1024)
}

/// A process whose threads all stand still; they run on when it is dropped.
pub(crate) struct Held<'a> {
    threads: &'a mut Vec<Thread>,
    /// Any thread of it.
    process: i32,
    /// The thread that makes the calls.
    tid: i32,
    /// The end of all patience.
    end: Instant,
}

/// How long is waited for threads that were interrupted in vain.
const COMING_TO_REST: Duration = Duration::from_millis(250);

/// What has to be put back in a thread that makes calls.
#[derive(Clone, Copy)]
struct Calls {
    instruction: u64,
    registers: Registers,
    mask: u64,
    scratch: Option<[u64; SCRATCH]>,
    stands: Stands,
}

/// Where a thread that makes calls stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// Where it was stopped.
    Stopped,
    /// At the end of its last call, on the way out of the kernel.
    Behind,
    /// Nobody knows: its last call was not made to its end.
    Lost,
}

/// How many words of memory a call can have.
pub(crate) const SCRATCH: usize = 24;
/// What the ABI of x86-64 leaves to a function below its stack pointer; that of aarch64 leaves nothing.
const RED_ZONE: u64 = 128;

impl<'a> Held<'a> {
    /// Stops every thread of the process that `tid` is of; `threads`, empty, is what it has room for.
    pub fn new(tid: i32, threads: &'a mut Vec<Thread>, end: Instant) -> Result<Held<'a>, Failure> {
        let mut held = Held::none_of(tid, threads);
        held.begin(end)?;
        held.complete(Sleep::Lasts)?;
        // A first thread that has ended leaves its table to the others.
        if !held.speak_by(tid) && !held.speak_by_any(|_| true) {
            return Err(Failure::plain(Wrong::Ended, tid));
        }
        Ok(held)
    }

    /// The process that `tid` is of, which runs still.
    pub fn none_of(tid: i32, threads: &'a mut Vec<Thread>) -> Held<'a> {
        Held {
            threads,
            process: tid,
            tid,
            end: Instant::now(),
        }
    }

    /// Becomes the tracer of every thread of the process; they run on. From now on nothing takes longer than
    /// until `end`.
    pub fn begin(&mut self, end: Instant) -> Result<(), Failure> {
        self.end = end;
        self.seize_new().map(drop)
    }

    /// Interrupts its threads, and does not wait: several processes can be stopped together.
    pub fn interrupt(&mut self) -> Result<(), Failure> {
        let running = |thread: &&mut Thread| !thread.interrupted;
        for thread in self.threads.iter_mut().filter(running) {
            thread.interrupted = true;
            match ptrace::interrupt(thread.tid) {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(Failure::new(Wrong::Hold, thread.tid, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until all its threads stand still. Only a running thread makes new ones: when all that are
    /// there stand still, none comes.
    pub(crate) fn complete(&mut self, sleep: Sleep) -> Result<(), Failure> {
        loop {
            self.interrupt()?;
            self.await_stops(sleep)?;
            if !self.seize_new()? {
                return Ok(());
            }
        }
    }

    /// Has this thread of the process make the calls; says whether it is there.
    pub fn speak_by(&mut self, tid: i32) -> bool {
        self.speak_by_any(|other| other == tid)
    }

    /// Has the first thread make the calls that this is true of; says whether there is one.
    pub fn speak_by_any(&mut self, may: impl Fn(i32) -> bool) -> bool {
        let mut tids = self.threads.iter().map(|thread| thread.tid);
        match tids.find(|tid| may(*tid)) {
            Some(tid) => self.tid = tid,
            None => return false,
        }
        true
    }

    /// Puts everything back as it was, and lets its threads run on; it can begin again. One that does not stand still yet
    /// has to come to that first: it may be in a call that answers EINTR for a mere interruption.
    pub fn let_go(&mut self) {
        self.let_go_standing();
        self.let_go_others();
    }

    /// The first half of that: those that stand still. What the others wait for may be one of these (vfork(2)).
    pub fn let_go_standing(&mut self) {
        for thread in self.threads.iter().filter(|thread| thread.stands) {
            // A process that has ended meanwhile has nothing that could be put back.
            let _ = thread.put_back();
            let _ = ptrace::let_go(thread.tid);
        }
        self.threads.retain(|thread| !thread.stands);
    }

    /// The second half.
    pub fn let_go_others(&mut self) {
        let end = Instant::now() + COMING_TO_REST;
        for thread in self.threads.iter().filter(|thread| thread.interrupted) {
            if let Ok(true) = stopped(thread, end, Sleep::Lasts) {
                let _ = ptrace::let_go(thread.tid);
            }
        }
        self.threads.clear();
    }

    /// From now on nothing may take longer than this.
    pub fn be_patient_until(&mut self, end: Instant) {
        self.end = end;
    }

    /// The thread that makes the calls; `ESRCH` if it has ended.
    fn speaker(&mut self) -> Result<&mut Thread, Failure> {
        let tid = self.tid;
        let thread = self.threads.iter_mut().find(|thread| thread.tid == tid);
        thread.ok_or(Failure::plain(Wrong::Ended, tid))
    }

    /// Becomes the tracer of every thread that it is not yet; says whether there was any.
    fn seize_new(&mut self) -> Result<bool, Failure> {
        let asked = self.process;
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(libc::ENOENT) => Failure::plain(Wrong::Ended, asked),
            _ => Failure::new(Wrong::Hold, asked, &error),
        };
        let path = Path::new(format_args!("/proc/{asked}/task"));
        // One link for each thread, beside the two of any directory (`proc_task_getattr`).
        let links = stat(path.as_c_str())
            .map_err(|e| failed(e.into()))?
            .st_nlink;
        if usize::try_from(links) == Ok(self.threads.len() + 2) {
            return Ok(false);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(path.as_c_str(), flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut entries = RawDir::new(folder, &mut buffer);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| failed(error.into()))?;
            let Some(tid) = path::number(entry.file_name()) else {
                continue;
            };
            if !self.threads.iter().any(|thread| thread.tid == tid) {
                any |= self.seize(tid)?;
            }
        }
        Ok(any)
    }

    fn seize(&mut self, tid: i32) -> Result<bool, Failure> {
        // One more would have to be allocated.
        if self.threads.len() == self.threads.capacity() {
            return Err(Failure::plain(Wrong::Threads, tid));
        }
        let before = Waiting::of(tid);
        // Whether it has a filter would have to be asked otherwise, while it stands still.
        let seized = match ptrace::seize_unfiltered(tid) {
            Ok(()) => Ok(true),
            Err(_) => ptrace::seize(tid).map(|()| false),
        };
        let unfiltered = match seized {
            Ok(unfiltered) => unfiltered,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
            Err(error) => return Err(Failure::new(Wrong::Hold, tid, &error)),
        };
        self.threads.push(Thread {
            tid,
            before,
            stands: false,
            interrupted: false,
            unfiltered,
            calls: None,
        });
        Ok(true)
    }

    /// Waits for every thread to stand still, and forgets those that have ended.
    fn await_stops(&mut self, sleep: Sleep) -> Result<(), Failure> {
        let mut at = 0;
        while let Some(thread) = self.threads.get_mut(at) {
            thread.stands = thread.stands || stopped(thread, self.end, sleep)?;
            if thread.stands {
                at += 1;
            } else {
                self.threads.swap_remove(at);
            }
        }
        Ok(())
    }

    /// Whether its calls would be made as they are.
    pub fn may_call(&mut self) -> Result<(), Failure> {
        let Thread {
            tid, unfiltered, ..
        } = *self.speaker()?;
        may_call(tid, unfiltered)
    }

    /// Gets the process ready to make calls.
    fn ready(&mut self) -> Result<Calls, Failure> {
        let Thread {
            tid,
            unfiltered,
            calls,
            ..
        } = *self.speaker()?;
        if let Some(calls) = calls {
            return Ok(calls);
        }
        let failed = |error: io::Error| Failure::new(Wrong::Other, tid, &error);
        may_call(tid, unfiltered)?;
        // Not those that it had when it stopped: another thread may have executed a program, and be this one now.
        let mut registers = ptrace::registers(tid).map_err(failed)?;
        let own = leave_sequence(tid, &mut registers).map_err(failed)?;
        let calls = Calls {
            instruction: own
                .or_else(|| in_vdso(tid))
                .ok_or(Failure::plain(Wrong::Instruction, tid))?,
            registers,
            mask: ptrace::blocked_signals(tid).map_err(failed)?,
            scratch: None,
            stands: Stands::Stopped,
        };
        // None of its handlers may run with registers that are not its own.
        ptrace::block_signals(tid, u64::MAX).map_err(failed)?;
        self.speaker()?.calls = Some(calls);
        Ok(calls)
    }

    /// Has a system call made, and says what it answered.
    pub fn call(&mut self, number: i64, arguments: [u64; 6]) -> Result<Answer, Failure> {
        let calls = self.ready()?;
        let (tid, end) = (self.tid, self.end);
        let registers = calls
            .registers
            .calling(calls.instruction, number, arguments);
        if calls.stands == Stands::Lost {
            // It may stand within a call, and the next one would be taken for the end of that.
            ptrace::try_back_to_stop(tid, end)
                .map_err(|error| Failure::new(Wrong::Other, tid, &error))?;
        }
        self.stand(Stands::Lost)?;
        let call = || -> io::Result<i64> {
            ptrace::set_registers(tid, &registers)?;
            ptrace::to_next_boundary(tid, end)?;
            ptrace::to_next_boundary(tid, end)?;
            Ok(ptrace::registers(tid)?.answer())
        };
        let answer = call().map_err(|error| Failure::new(Wrong::Other, tid, &error))?;
        self.stand(Stands::Behind)?;
        Ok(Answer(answer))
    }

    fn stand(&mut self, stands: Stands) -> Result<(), Failure> {
        if let Some(calls) = &mut self.speaker()?.calls {
            calls.stands = stands;
        }
        Ok(())
    }

    /// Where the memory is that calls can have.
    pub fn scratch_address(&mut self) -> Result<u64, Failure> {
        Ok(self.ready()?.scratch_address())
    }

    /// Writes that memory.
    pub fn write_scratch(&mut self, words: &[u64; SCRATCH]) -> Result<(), Failure> {
        let at = self.scratch_address()?;
        let tid = self.tid;
        let failed = |error: io::Error| Failure::new(Wrong::Other, tid, &error);
        let calls = self.speaker()?.calls.as_mut();
        if let Some(calls) = calls.filter(|calls| calls.scratch.is_none()) {
            let mut before = [0; SCRATCH];
            read_memory(tid, at, &mut before).map_err(failed)?;
            calls.scratch = Some(before);
        }
        write_memory(tid, at, words).map_err(failed)
    }

    /// Reads that memory.
    pub fn read_scratch(&mut self) -> Result<[u64; SCRATCH], Failure> {
        let at = self.scratch_address()?;
        let mut words = [0; SCRATCH];
        read_memory(self.tid, at, &mut words)
            .map_err(|error| Failure::new(Wrong::Other, self.tid, &error))?;
        Ok(words)
    }

    /// The thread that makes the calls.
    pub fn tid(&self) -> i32 {
        self.tid
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Calls {
    fn scratch_address(&self) -> u64 {
        let below = RED_ZONE + 8 * SCRATCH as u64;
        self.registers.stack().wrapping_sub(below) & !15
    }
}

impl Thread {
    /// Puts everything back as it was before the calls.
    fn put_back(&self) -> io::Result<()> {
        let Some(calls) = self.calls else {
            return Ok(());
        };
        // Whatever happened before, its memory comes first: it needs no stop of a certain kind.
        let memory = match calls.scratch {
            Some(before) => write_memory(self.tid, calls.scratch_address(), &before),
            None => Ok(()),
        };
        ptrace::put_back(self.tid, &calls.registers, calls.stands == Stands::Behind)?;
        ptrace::block_signals(self.tid, calls.mask)?;
        memory
    }
}

fn may_call(tid: i32, unfiltered: bool) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::new(Wrong::Other, tid, &error);
    if ptrace::dispatches_its_calls(tid) {
        return Err(Failure::plain(Wrong::Dispatch, tid));
    }
    match !unfiltered && ptrace::is_filtered(tid).map_err(failed)? {
        true => Err(Failure::plain(Wrong::Seccomp, tid)),
        false => Ok(()),
    }
}

/// What a system call of another process answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer(pub i64);

impl Answer {
    /// A number, or the error.
    pub fn number(self) -> io::Result<u64> {
        match u64::try_from(self.0) {
            Ok(number) => Ok(number),
            Err(_) => Err(io::Error::from_raw_os_error(-self.0 as i32)),
        }
    }
}

/// Waits for a thread to stand still, with no interruption to be told by its call; `false`: it ended.
fn stopped(thread: &Thread, end: Instant, sleep: Sleep) -> Result<bool, Failure> {
    let tid = thread.tid;
    let settled = || -> io::Result<()> {
        ptrace::settle_or_else(tid, end, sleep)?;
        ptrace::take_back_disturbance(tid, &thread.before, thread.unfiltered)
    };
    match settled() {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ESRCH) => Ok(false),
            Some(libc::EPROTOTYPE) => Err(Failure::plain(Wrong::Bits, tid)),
            Some(libc::ETIMEDOUT) => Err(Failure::plain(Wrong::Stop, tid)),
            _ => Err(Failure::new(Wrong::Hold, tid, &error)),
        },
    }
}

/// What the kernel does with a thread that it stops within a restartable sequence (rseq(2)): to go on
/// at the abort handler. It does so when it sees the thread's own address, which our calls hide from it.
///
/// Answers where the instruction is that made the call that the thread is behind, if it is behind one.
fn leave_sequence(tid: i32, registers: &mut Registers) -> io::Result<Option<u64>> {
    // struct rseq: cpu_id_start and cpu_id, then rseq_cs.
    let sequence = ptrace::restartable_sequence(tid).map(|area| area + 8);
    let behind = registers.call_address();
    let (critical, instruction) = match (sequence, behind) {
        (Some(sequence), Some(behind)) => read_both(tid, sequence, behind)?,
        (Some(sequence), None) => (read_word(tid, sequence)?, 0),
        (None, Some(behind)) => (0, read_word(tid, behind).unwrap_or(0)),
        (None, None) => (0, 0),
    };
    if let Some(sequence) = sequence.filter(|_| critical != 0) {
        // struct rseq_cs: version and flags, start_ip, post_commit_offset, abort_ip.
        let mut section = [0; 4];
        read_memory(tid, critical, &mut section)?;
        let [_, start, length, abort] = section;
        if registers.address().wrapping_sub(start) < length {
            registers.go_on_at(abort);
            write_memory(tid, sequence, &[0])?;
            // Whatever happens now, it must not go on within.
            ptrace::set_registers(tid, registers)?;
            return Ok(None);
        }
    }
    let is_call = instruction.to_ne_bytes().starts_with(CALL);
    Ok(behind.filter(|_| is_call))
}

fn in_vdso(tid: i32) -> Option<u64> {
    const AT_SYSINFO_EHDR: u64 = 33;
    let mut buffer = [0; 1024];
    let path = Path::new(format_args!("/proc/{tid}/auxv"));
    let auxv = path::read(path.as_c_str(), &mut buffer).ok()?;
    let word = |bytes: &[u8]| Some(u64::from_ne_bytes(bytes.try_into().ok()?));
    let mut pairs = auxv.chunks_exact(16).map(|pair| pair.split_at(8));
    let (_, vdso) = pairs.find(|(kind, _)| word(kind) == Some(AT_SYSINFO_EHDR))?;
    let vdso = word(vdso)?;
    (vdso..)
        .step_by(PAGE)
        .take(4)
        .find_map(|page| in_page(tid, page))
}

const PAGE: usize = 4096;

fn in_page(tid: i32, page: u64) -> Option<u64> {
    let mut words = [0_u64; PAGE / 8];
    read_memory(tid, page, &mut words).ok()?;
    let mut bytes = [0; PAGE];
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let found = bytes.windows(CALL.len()).position(|window| window == CALL);
    found.map(|at| page + at as u64)
}

fn read_word(tid: i32, at: u64) -> io::Result<u64> {
    let mut word = [0];
    read_memory(tid, at, &mut word)?;
    let [word] = word;
    Ok(word)
}

/// Reads a word, and another one that may not be there: 0 then.
fn read_both(tid: i32, at: u64, other: u64) -> io::Result<(u64, u64)> {
    const WORD: usize = size_of::<u64>();
    let mut words = [0_u64; 2];
    let own = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: 2 * WORD,
    };
    let places = [elsewhere(at, WORD), elsewhere(other, WORD)];
    let from = places.as_ptr();
    // SAFETY: it writes at most two words to `words`; the other addresses are checked by the kernel.
    let read = unsafe { libc::process_vm_readv(tid, &raw const own, 1, from, 2, 0) };
    let [word, other] = words;
    match usize::try_from(read) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0..WORD) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Ok(read) => Ok((word, if read == 2 * WORD { other } else { 0 })),
    }
}

/// Reads memory of a stopped thread, all or nothing.
fn read_memory(tid: i32, at: u64, words: &mut [u64]) -> io::Result<()> {
    let length = size_of_val(words);
    let own = libc::iovec {
        iov_base: words.as_mut_ptr().cast(),
        iov_len: length,
    };
    let other = elsewhere(at, length);
    // SAFETY: it writes at most `length` bytes to `words`; the other address is checked by the kernel.
    let read = unsafe { libc::process_vm_readv(tid, &raw const own, 1, &raw const other, 1, 0) };
    whole(read, length)
}

/// Writes memory of a stopped thread that this thread itself could write.
fn write_memory(tid: i32, at: u64, words: &[u64]) -> io::Result<()> {
    let length = size_of_val(words);
    let own = libc::iovec {
        iov_base: words.as_ptr().cast_mut().cast(),
        iov_len: length,
    };
    let other = elsewhere(at, length);
    // SAFETY: it reads `length` bytes of `words`; what it writes is no memory of this process.
    let written =
        unsafe { libc::process_vm_writev(tid, &raw const own, 1, &raw const other, 1, 0) };
    whole(written, length)
}

fn elsewhere(at: u64, length: usize) -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::without_provenance_mut(at as usize),
        iov_len: length,
    }
}

fn whole(done: isize, length: usize) -> io::Result<()> {
    match usize::try_from(done) {
        Ok(done) if done == length => Ok(()),
        Ok(_) => Err(io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    /// Its next call is its own, and not the end of the one that nobody waited for any more.
    #[test]
    fn a_call_that_took_too_long() {
        let mut command = Command::new("cat");
        let mut cat = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = cat.id().cast_signed();
        let soon = || Instant::now() + Duration::from_secs(10);
        for _ in 0..100 {
            let mut room = room(pid);
            let mut held = Held::new(pid, &mut room, soon()).unwrap();
            held.be_patient_until(Instant::now());
            // It may be in time nevertheless.
            let _ = held.call(libc::SYS_getppid, [0; 6]);
            held.be_patient_until(soon());
            let answer = held.call(libc::SYS_getpid, [0; 6]).unwrap();
            assert_eq!(answer.number().unwrap(), u64::from(cat.id()));
        }
        cat.stdin.take().unwrap().write_all(b"still there").unwrap();
        let mut heard = String::new();
        let output = cat.stdout.as_mut().unwrap();
        output.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "still there");
        assert!(cat.wait().unwrap().success());
    }
}
