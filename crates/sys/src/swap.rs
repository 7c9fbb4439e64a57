//! One socket in the place of another, in every process that has it, whatever becomes of us.
//!
//! A child process does it, the supervisor (`child` says how it outlives us). It is told step by step over a
//! connection, and each step has one meaning if we end:
//!
//! - *Not committed yet.* It undoes: the descriptors that it has given are closed, the options of the old socket put
//!   back, the processes let go. They have the old socket, as ever.
//! - *Committed.* It goes forward without us: every seat gets the new socket, at once, while we look after the old
//!   one. All that could fail has been done by then: each table has a descriptor of the new socket, its numbers are
//!   within its limit, every epoll instance is at hand.
//!
//! Our silence is as our end after ten seconds: no process stands still for ever because we do.
//! Holders that end meanwhile take their descriptors with them, and are no error for the others.
//!
//! In a process only four calls are made, and none needs memory: pidfd_open and pidfd_getfd give it the new
//! socket, dup3 puts that in the place of the old one, atomically, and close_range takes both helpers away.
//! Registrations in epoll instances are renewed from here (`renewal`).

use crate::child::Child;
use crate::descriptor;
use crate::foreign::{self, Failure, Held, Thread, Wrong};
use crate::guard::Step;
use crate::pass::{self, Offer, Received};
use crate::path::Path;
use crate::processor::Apart;
use crate::ptrace::{self, Sleep};
use crate::renewal::{self, Remains, Renewal};
pub use crate::renewal::{REGISTRATIONS, Registration, Role};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// How long it may take to hold all: some stand still already. Who sleeps where nothing interrupts it is not waited
/// for that long.
const STOPPING: Duration = Duration::from_secs(1);
/// Nothing else that works takes longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long processes stand still while we say nothing.
const SILENCE: Duration = Duration::from_secs(10);
/// How often an answer is asked for without a pause, some 50 µs, by those who have a processor of their own meanwhile.
const AT_ONCE: u32 = 200;

/// One table of descriptors, and the seats of the old socket in it.
#[derive(Debug)]
pub struct Table {
    /// A thread that has it.
    pub tid: i32,
    /// The process that it is of.
    pub pid: i32,
    /// The descriptors that are to be the new socket.
    pub seats: Vec<Seat>,
    /// Our number in its PID namespace is that in ours.
    pub sees_us: bool,
    /// A listening SOCK_SEQPACKET socket in its network namespace, and its abstract address.
    pub listener: Option<(OwnedFd, Vec<u8>)>,
}

/// One descriptor of the old socket.
#[derive(Clone, Copy, Debug)]
pub struct Seat {
    /// Its number.
    pub fd: RawFd,
    /// Whether execve(2) closes it, where that cannot be seen any more.
    pub close_on_exec: bool,
}

/// What is to be done.
#[derive(Debug)]
pub struct Swap<'a> {
    /// The socket that they have.
    pub old: BorrowedFd<'a>,
    /// The socket that they get.
    pub new: BorrowedFd<'a>,
    /// The inode of the old one.
    pub inode: u64,
    /// Everybody who has it.
    pub tables: Vec<Table>,
    /// SIGIO is for the new socket (O_ASYNC), and tells this number (`fasync_struct.fa_fd`).
    pub asynchronous: Option<RawFd>,
    /// Options of the old socket that are put back when it stays, as they were when its owners stood still.
    pub undo: Vec<Step>,
}

/// What has been done.
#[derive(Clone, Copy, Debug)]
pub struct Swapped {
    /// How long the processes stood still, at most.
    pub stopped: Duration,
    /// How many registrations could not be renewed.
    pub failed_registrations: usize,
    /// How many that were disarmed tell of EPOLLERR and EPOLLHUP, until they are armed again.
    pub armed_registrations: usize,
}

/// The process that does it; dropped, it undoes before `commit`, and goes forward after.
#[derive(Debug)]
pub struct Supervisor {
    child: Child,
    line: Option<Line>,
    tables: usize,
    /// What we do while they stand still is done beside what it does.
    _apart: Option<Apart>,
}

/// An end of the connection between the two.
#[derive(Debug)]
struct Line {
    socket: OwnedFd,
    /// How often it is asked without a pause.
    at_once: u32,
    /// How long silence may last where reading is interrupted; the supervisor's has `SO_RCVTIMEO` too.
    silence: Duration,
    heard: Heard,
}

/// What has come over it, and is not read yet: each time that it is asked for takes time.
#[derive(Debug)]
struct Heard {
    bytes: [u8; PIECE],
    start: usize,
    end: usize,
}

/// What is said at once.
const PIECE: usize = 1024;

/// What the supervisor is told, by one word.
const HOLD: i32 = 1;
const COMMIT: i32 = 2;
const LET_GO: i32 = 3;
/// What it says before it stops anybody.
const BEGUN: i32 = 4;
/// Why it does not answer.
const ENDED: &str = "it has ended: it was killed, or had to wait for us for more than 10 s";
/// The answer that begins a report of success.
const DONE: i32 = 0;

impl Supervisor {
    /// Starts it. Nothing is touched yet; it holds one descriptor of either socket. As long as it is there this thread is
    /// kept off the processor of the first thread of the plan, if it has another one.
    pub fn start(plan: &Swap<'_>) -> io::Result<Supervisor> {
        use rustix::net::sockopt::{Timeout, set_socket_timeout};
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (kind, flags) = (SocketType::STREAM, SocketFlags::CLOEXEC);
        let (line, far) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        for way in [Timeout::Recv, Timeout::Send] {
            set_socket_timeout(&far, way, Some(SILENCE))?;
        }
        let kept = kept(plan, &far);
        let mut rooms: Vec<Vec<Thread>> = Vec::new();
        let mut state = State::for_plan(plan, &mut rooms);
        let first = plan.tables.first();
        let apart = first.and_then(|table| Apart::from(table.tid));
        let at_once = if apart.is_some() { AT_ONCE } else { 0 };
        let ends = [(line, Duration::MAX), (far, SILENCE)];
        let [line, mut far] = ends.map(|(socket, silence)| Line {
            socket,
            at_once,
            silence,
            heard: Heard::nothing(),
        });
        let child = Child::start(&line.socket, &kept, || {
            apart.as_ref().inspect(|apart| apart.join());
            work(plan, &mut state, &mut far);
        })?;
        Ok(Supervisor {
            child,
            line: Some(line),
            tables: plan.tables.len(),
            _apart: apart,
        })
    }

    /// Stops every process. Says for each table whether it has seats still: its process may have ended, or closed
    /// them all. After a failure everything is undone, and it has ended.
    ///
    /// When this returns it goes on by itself, and gives each table a descriptor of the new socket, at any number.
    pub fn hold(&mut self) -> io::Result<Result<Vec<bool>, Failure>> {
        self.tell(&[HOLD])?;
        self.begins()?;
        if let Some(failure) = self.failure()? {
            return Ok(Err(failure));
        }
        let mut there = Vec::with_capacity(self.tables);
        for _ in 0..self.tables {
            there.push(self.word()? != 0);
        }
        Ok(Ok(there))
    }

    /// Waits until it is about to stop them: whoever is awake by then need not be woken up while they stand still.
    fn begins(&mut self) -> io::Result<()> {
        let line = self.line.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        // It does not matter when that is.
        line.hear(0).map_err(|_| io::Error::other(ENDED))?;
        self.word().map(drop)
    }

    /// Waits until every table has its descriptor. If one has none, the processes are held still, with the old one, until this
    /// is dropped: that must have its place again by then.
    pub fn given(&mut self) -> io::Result<Result<(), Failure>> {
        Ok(self.failure()?.map_or(Ok(()), Err))
    }

    /// From here on it goes forward whatever becomes of us, if this succeeds: it puts the new socket in the place of
    /// the old one, everywhere. If not, the processes are held still, with the old one: `Wrong::Ended` when the
    /// process with an epoll instance has ended, so that the plan is no longer true.
    ///
    /// `E2BIG` for more than [`REGISTRATIONS`].
    pub fn commit(&mut self, registrations: &[Registration]) -> io::Result<Result<(), Failure>> {
        if registrations.len() > REGISTRATIONS {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        let mut words = vec![COMMIT, registrations.len() as i32];
        words.extend(registrations.iter().flat_map(|one| one.to_words()));
        self.tell(&words)?;
        Ok(self.failure()?.map_or(Ok(()), Err))
    }

    /// Lets the processes go, when the new socket is in its place, and says what was done.
    pub fn let_go(mut self) -> io::Result<Result<Swapped, Failure>> {
        // It may have let them go already: then it has told so, and ended.
        let told = self.tell(&[LET_GO]);
        if let Some(failure) = self.failure().or_else(|error| told.and(Err(error)))? {
            return Ok(Err(failure));
        }
        let micros = u64::try_from(self.word()?).unwrap_or(0);
        let failed = usize::try_from(self.word()?).unwrap_or(0);
        let armed = usize::try_from(self.word()?).unwrap_or(0);
        Ok(Ok(Swapped {
            stopped: Duration::from_micros(micros),
            failed_registrations: failed,
            armed_registrations: armed,
        }))
    }

    fn tell(&self, words: &[i32]) -> io::Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let line = self.line.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::net::send(&line.socket, rest, SendFlags::NOSIGNAL) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(io::Error::other(ENDED)),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn word(&mut self) -> io::Result<i32> {
        let line = self.line.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut bytes = [0; 4];
        match line.read(&mut bytes) {
            Ok(()) => Ok(i32::from_ne_bytes(bytes)),
            Err(_) => Err(io::Error::other(ENDED)),
        }
    }

    /// Whether it reports a failure, and which.
    fn failure(&mut self) -> io::Result<Option<Failure>> {
        match self.word()? {
            DONE => Ok(None),
            wrong => Ok(Some(Failure {
                wrong: Wrong::from_number(wrong),
                tid: self.word()?,
                errno: self.word()?,
            })),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its end of the connection tells it; it undoes, or goes forward, before it ends.
        self.line = None;
        let _ = self.child.collect();
    }
}

/// The descriptors that the supervisor keeps, in order.
fn kept(plan: &Swap<'_>, far: &OwnedFd) -> Vec<RawFd> {
    let listeners = plan.tables.iter().flat_map(|table| &table.listener);
    let mut kept: Vec<RawFd> = listeners.map(|(fd, _)| fd.as_raw_fd()).collect();
    kept.extend([plan.old.as_raw_fd(), plan.new.as_raw_fd(), far.as_raw_fd()]);
    kept.sort_unstable();
    kept.dedup();
    kept
}

impl Line {
    /// Reads all of it.
    fn read(&mut self, bytes: &mut [u8]) -> rustix::io::Result<()> {
        for byte in bytes {
            if self.heard.start == self.heard.end {
                self.hear(self.at_once)?;
            }
            *byte = self.heard.bytes[self.heard.start];
            self.heard.start += 1;
        }
        Ok(())
    }

    /// Waits for the next piece, when all of the last one was read.
    fn hear(&mut self, at_once: u32) -> rustix::io::Result<()> {
        let (mut asked, start) = (0, Instant::now());
        loop {
            // Processes stand still: to go to sleep and be woken up would take longer than most answers.
            let flags = match asked < at_once {
                true => RecvFlags::DONTWAIT,
                false => RecvFlags::empty(),
            };
            match rustix::net::recv(&self.socket, &mut self.heard.bytes[..], flags) {
                Ok((_, 0)) => return Err(Errno::PIPE),
                Ok((_, length)) => {
                    (self.heard.start, self.heard.end) = (0, length);
                    return Ok(());
                }
                Err(Errno::INTR) if start.elapsed() < self.silence => {}
                Err(Errno::AGAIN) if asked < at_once => asked += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Heard {
    fn nothing() -> Heard {
        Heard {
            bytes: [0; PIECE],
            start: 0,
            end: 0,
        }
    }
}

/// Everything below is done by the supervisor, and allocates nothing: this is its room.
struct State<'a> {
    processes: Vec<Held<'a>>,
    tables: Vec<Given>,
    seats: Vec<Owned>,
    renewal: Renewal,
    /// What puts the old socket back as it was when all stood still.
    undo: Vec<Step>,
    /// They do, or did: what puts it back is known.
    stand: bool,
    since: Instant,
}

/// What one table has got.
#[derive(Clone, Copy)]
struct Given {
    /// Its process, by its place in [`State`].
    process: usize,
    /// The thread that makes its calls.
    tid: i32,
    /// It has seats.
    is_there: bool,
    received: Option<Received>,
}

/// One seat, as it is while its process stands still.
struct Owned {
    table: usize,
    seat: Seat,
    is_old: bool,
    /// Tells the flags of its descriptor, whenever it is read: to open it takes ten times as long.
    flags: Option<OwnedFd>,
}

impl<'a> State<'a> {
    fn for_plan(plan: &Swap<'_>, rooms: &'a mut Vec<Vec<Thread>>) -> State<'a> {
        let mut pids: Vec<i32> = plan.tables.iter().map(|table| table.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        rooms.extend(pids.iter().map(|pid| foreign::room(*pid)));
        let processes = pids.iter().zip(rooms);
        let given = |table: &Table| Given {
            process: pids.binary_search(&table.pid).unwrap_or(0),
            tid: table.tid,
            is_there: false,
            received: None,
        };
        let seats = plan.tables.iter().enumerate();
        let seats = seats.flat_map(|(at, table)| table.seats.iter().map(move |seat| (at, seat)));
        State {
            tables: plan.tables.iter().map(given).collect(),
            seats: seats
                .map(|(table, seat)| Owned::new(table, *seat))
                .collect(),
            processes: processes
                .map(|(pid, room)| Held::none_of(*pid, room))
                .collect(),
            renewal: Renewal::new(),
            undo: plan.undo.clone(),
            stand: false,
            since: Instant::now(),
        }
    }

    /// Nothing is known yet. To write that down now is to have room of our own to write to, not a copy still to be made.
    fn forget(&mut self) {
        for given in &mut self.tables {
            (given.is_there, given.received) = (false, None);
        }
        self.seats.iter_mut().for_each(|owned| owned.is_old = false);
    }

    /// The process that stands still, with the right thread to make calls in this table; `None` when it
    /// has no seats any more.
    fn process(&mut self, table: usize) -> Option<(&mut Held<'a>, Received)> {
        let given = self.tables.get(table)?;
        let process = self.processes.get_mut(given.process)?;
        let received = given.received?;
        process.speak_by(given.tid).then_some((process, received))
    }
}

impl Owned {
    fn new(table: usize, seat: Seat) -> Owned {
        Owned {
            table,
            seat,
            is_old: false,
            flags: None,
        }
    }
}

/// What the child does.
fn work(plan: &Swap<'_>, state: &mut State<'_>, far: &mut Line) {
    // A number that a process has may be beyond our own limit; where it cannot be raised, `commit` says so.
    let _ = raise_limit();
    if next(far, Silence::IsAllowed) != Some(HOLD) {
        return undo(plan, state);
    }
    if let Err(failure) = hold(plan, state, far) {
        undo(plan, state);
        // Those threads that did not stop have been let go when they did, or are by its end.
        return tell_failure(far, failure);
    }
    report_hold(state, far);
    if let Err(failure) = give_all(plan, state) {
        tell_failure(far, failure);
        wait_for_old(far);
        return undo(plan, state);
    }
    tell(far, [DONE]);
    look_at_flags(state);
    match is_committed(state, far) {
        true => go_forward(plan, state, far),
        false => undo(plan, state),
    }
}

fn is_committed(state: &mut State<'_>, far: &mut Line) -> bool {
    if next(far, Silence::IsTheEnd) != Some(COMMIT) {
        return false;
    }
    match prepare(state, far) {
        Ok(()) => tell(far, [DONE]),
        Err(failure) => {
            tell_failure(far, failure);
            wait_for_old(far);
            return false;
        }
    }
    true
}

/// The old one has its place again before anybody runs.
fn wait_for_old(far: &mut Line) {
    next(far, Silence::IsTheEnd);
}

/// Whether we may say nothing: not while processes stand still.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silence {
    IsAllowed,
    IsTheEnd,
}

/// The next word; `None` when there is nobody any more, or only silence (`SO_RCVTIMEO`).
fn next(far: &mut Line, silence: Silence) -> Option<i32> {
    if silence == Silence::IsAllowed {
        let mut asked = [PollFd::new(&far.socket, PollFlags::IN)];
        retry_on_intr(|| poll(&mut asked, None)).ok()?;
    }
    words(far).map(|[word]| word)
}

fn words<const COUNT: usize>(far: &mut Line) -> Option<[i32; COUNT]> {
    let mut bytes = [[0; 4]; COUNT];
    far.read(bytes.as_flattened_mut()).ok()?;
    Some(bytes.map(i32::from_ne_bytes))
}

/// Whoever waited for it may be gone. In few pieces: each wakes somebody.
fn tell(far: &Line, words: impl IntoIterator<Item = i32>) {
    let mut bytes = [0; PIECE];
    let mut words = words.into_iter().peekable();
    while words.peek().is_some() {
        let mut length = 0;
        for (piece, word) in bytes.chunks_exact_mut(4).zip(&mut words) {
            piece.copy_from_slice(&word.to_ne_bytes());
            length += 4;
        }
        let send = || rustix::net::send(&far.socket, &bytes[..length], SendFlags::NOSIGNAL);
        let _ = retry_on_intr(send);
    }
}

fn tell_failure(far: &Line, failure: Failure) {
    let Failure { wrong, tid, errno } = failure;
    tell(far, [wrong as i32, tid, errno]);
}

fn report_hold(state: &State<'_>, far: &Line) {
    let tables = state.tables.iter();
    let there = tables.map(|given| i32::from(given.is_there));
    tell(far, [DONE].into_iter().chain(there));
}

/// An end is none of our errors.
fn unless_ended<T>(done: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match done {
        Err(failure) if failure.wrong == Wrong::Ended => Ok(None),
        done => done.map(Some),
    }
}

fn hold(plan: &Swap<'_>, state: &mut State<'_>, far: &Line) -> Result<(), Failure> {
    ptrace::tick();
    state.forget();
    let end = Instant::now() + STOPPING;
    let mut processes = state.processes.iter_mut();
    let begun = processes.try_for_each(|process| unless_ended(process.begin(end)).map(drop));
    pass::learn_of_yama();
    open_flags(state);
    tell(far, [BEGUN]);
    begun?;
    state.since = Instant::now();
    for process in &mut state.processes {
        process.interrupt()?;
    }
    for process in &mut state.processes {
        unless_ended(process.complete(Sleep::IsTheEnd))?;
    }
    // Until now they may have changed them.
    state.undo.iter_mut().for_each(|step| step.renew(plan.old));
    state.stand = true;
    for at in 0..plan.tables.len() {
        let there = has_seats(plan, state, at)?;
        if let Some(given) = state.tables.get_mut(at) {
            given.is_there = there;
        }
    }
    // Before it gets a place: SIGIO tells only of what comes later.
    if let Some(fd) = plan.asynchronous {
        let on = renewal::at_number(fd, plan.new, plan.new, |_| descriptor::set_asynchronous(fd));
        let tid = plan.tables.first().map_or(0, |table| table.tid);
        on.map_err(|error| number_failure(tid, error.raw_os_error().unwrap_or(0)))?;
    }
    match state.tables.iter().any(|given| given.is_there) {
        true => Ok(()),
        false => Err(Failure::plain(
            Wrong::Ended,
            plan.tables.first().map_or(0, |table| table.tid),
        )),
    }
}

/// Whether a table has seats still, and which; finds the thread that makes its calls.
fn has_seats(plan: &Swap<'_>, state: &mut State<'_>, at: usize) -> Result<bool, Failure> {
    let (Some(table), Some(given)) = (plan.tables.get(at), state.tables.get_mut(at)) else {
        return Ok(false);
    };
    let Some(process) = state.processes.get_mut(given.process) else {
        return Ok(false);
    };
    if !process.speak_by(table.tid) && !process.speak_by_any(|tid| is_heir(plan, at, tid)) {
        return Ok(false);
    }
    given.tid = process.tid();
    process.may_call()?;
    let mut any = false;
    for owned in state.seats.iter_mut().filter(|owned| owned.table == at) {
        owned.is_old = is_old(plan, given.tid, owned.seat.fd);
        any |= owned.is_old;
        if owned.is_old {
            is_within_limit(table.pid, owned.seat.fd)?;
        }
    }
    Ok(any)
}

/// Gives each table that has seats the new socket.
fn give_all(plan: &Swap<'_>, state: &mut State<'_>) -> Result<(), Failure> {
    be_patient(state);
    for (table, given) in plan.tables.iter().zip(&mut state.tables) {
        let process = state.processes.get_mut(given.process);
        let Some(process) = process.filter(|_| given.is_there) else {
            continue;
        };
        process.speak_by(given.tid);
        let offer = Offer {
            socket: plan.new,
            pid: table.pid,
            sees_us: table.sees_us,
            listener: table.listener.as_ref(),
        };
        // One that ends now was counted as a holder: it is counted anew.
        given.received = Some(pass::receive(&offer, process)?);
    }
    Ok(())
}

/// Whether this thread may have the table of one that has ended: another one of the plan is not its.
fn is_heir(plan: &Swap<'_>, at: usize, tid: i32) -> bool {
    let mut others = plan.tables.iter().enumerate();
    let pid = plan.tables.get(at).map(|table| table.pid);
    !others.any(|(other, table)| {
        other != at && Some(table.pid) == pid && shares_table(tid, table.tid) == Some(true)
    })
}

const KCMP_FILE: i32 = 0;
const KCMP_FILES: i32 = 2;

fn shares_table(tid: i32, other: i32) -> Option<bool> {
    // SAFETY: kcmp(2) takes five numbers, and reads no memory of ours for these two kinds.
    let told = unsafe { libc::syscall(libc::SYS_kcmp, tid, other, KCMP_FILES, 0_u64, 0_u64) };
    (told >= 0).then_some(told == 0)
}

/// Whether a descriptor is the old socket still.
fn is_old(plan: &Swap<'_>, tid: i32, fd: RawFd) -> bool {
    let us = rustix::process::getpid().as_raw_pid();
    let (ours, theirs) = (plan.old.as_raw_fd() as u64, fd as u64);
    // SAFETY: kcmp(2) takes five numbers, and reads no memory of ours for these two kinds.
    let told = unsafe { libc::syscall(libc::SYS_kcmp, us, tid, KCMP_FILE, ours, theirs) };
    match told {
        0.. => told == 0,
        // Not every kernel has it.
        _ => pass::is_socket(tid, fd, plan.inode),
    }
}

/// Beyond its limit a process could have no descriptor by dup3(2), which it has had since before.
fn is_within_limit(pid: i32, fd: RawFd) -> Result<(), Failure> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    let (resource, to) = (libc::RLIMIT_NOFILE, &raw mut limit);
    // SAFETY: the kernel writes one rlimit to `to`; no new one is given.
    let told = unsafe { libc::prlimit(pid, resource, std::ptr::null(), to) };
    match told == 0 && fd as u64 >= limit.rlim_cur {
        true => Err(number_failure(pid, libc::EINVAL)),
        false => Ok(()),
    }
}

fn number_failure(tid: i32, errno: i32) -> Failure {
    let wrong = Wrong::Number;
    Failure { wrong, tid, errno }
}

fn raise_limit() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: maximum,
        maximum,
    };
    Ok(setrlimit(Resource::Nofile, limit)?)
}

/// How many of the seats are looked at by files that are open already.
const MOST_OPEN: usize = 64;

/// Opens what tells of the flags of the seats; where that fails, it is done when they are looked at.
fn open_flags(state: &mut State<'_>) {
    for owned in state.seats.iter_mut().take(MOST_OPEN) {
        let given = state.tables.get(owned.table);
        owned.flags = given.and_then(|given| info_of(given.tid, owned.seat.fd).ok());
    }
}

fn info_of(tid: i32, fd: RawFd) -> rustix::io::Result<OwnedFd> {
    let path = Path::new(format_args!("/proc/{tid}/fdinfo/{fd}"));
    let (flags, mode) = (OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    open(path.as_c_str(), flags, mode)
}

/// Looks whether the seats are close-on-exec, as they are now; it is done while we look at other things.
fn look_at_flags(state: &mut State<'_>) {
    for owned in state.seats.iter_mut().filter(|owned| owned.is_old) {
        let Some(given) = state.tables.get(owned.table) else {
            continue;
        };
        let mut buffer = [0; 512];
        let mut look = |info: &OwnedFd| flags(info, &mut buffer);
        let told = owned.flags.take().as_ref().and_then(&mut look);
        // The thread may have ended, and left its table to another.
        let told = told.or_else(|| look(&info_of(given.tid, owned.seat.fd).ok()?));
        if let Some(flags) = told {
            owned.seat.close_on_exec = flags & libc::O_CLOEXEC != 0;
        }
    }
}

/// The line `flags:` of /proc/PID/fdinfo/FD, in octal (`seq_show` of fs/proc/fd.c looks the descriptor up for each read).
fn flags(info: &OwnedFd, buffer: &mut [u8]) -> Option<i32> {
    let length = rustix::io::pread(info, &mut *buffer, 0).ok()?;
    let text = buffer.get(..length)?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"flags:"))?;
    i32::from_str_radix(std::str::from_utf8(line).ok()?.trim(), 8).ok()
}

/// Takes the given descriptors back, and lets the processes go.
fn release(state: &mut State<'_>) {
    be_patient(state);
    for at in 0..state.tables.len() {
        if let Some((process, received)) = state.process(at) {
            close_both(process, received);
        }
    }
    let processes = &mut state.processes;
    processes.iter_mut().for_each(Held::let_go_standing);
    processes.iter_mut().for_each(Held::let_go_others);
}

fn be_patient(state: &mut State<'_>) {
    let end = Instant::now() + PATIENCE;
    let processes = state.processes.iter_mut();
    processes.for_each(|process| process.be_patient_until(end));
}

/// Closes what a process has got, by one call where it can be one. One that ended has nothing.
fn close_both(process: &mut Held<'_>, received: Received) {
    let Received { fd, way } = received;
    let (first, last) = (fd.min(way), fd.max(way));
    let at_once = match last - first {
        1 => process.call(libc::SYS_close_range, [first, last, 0, 0, 0, 0]),
        _ => Err(Failure::plain(Wrong::Other, 0)),
    };
    if !at_once.is_ok_and(|answer| answer.0 == 0) {
        pass::close(process, first);
        pass::close(process, last);
    }
}

/// Everything as it was.
fn undo(plan: &Swap<'_>, state: &mut State<'_>) {
    for step in state.undo.iter().filter(|_| state.stand) {
        // There is nobody to hear of an error.
        let _ = step.take(plan.old);
    }
    release(state);
}

/// Reads the registrations, and takes the epoll instances: the last thing that can fail.
fn prepare(state: &mut State<'_>, far: &mut Line) -> Result<(), Failure> {
    let lost = Failure::plain(Wrong::Other, 0);
    let [count] = words(far).ok_or(lost)?;
    if count == 0 {
        return Ok(());
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let State {
        renewal, tables, ..
    } = state;
    let mut added = Ok(());
    for _ in 0..count {
        let registration = Registration::from_words(words(far).ok_or(lost)?);
        let tid = tables.get(registration.table).map_or(0, |given| given.tid);
        // All are read, whatever becomes of the first.
        added = added.and_then(|()| {
            let added = renewal.add(registration, tid, limit);
            added.map_err(|error| match error.raw_os_error() {
                Some(libc::ESRCH | libc::EBADF) => Failure::plain(Wrong::Ended, tid),
                errno => Failure {
                    wrong: Wrong::Renewal,
                    tid,
                    errno: errno.unwrap_or(0),
                },
            })
        });
    }
    added
}

/// The swap; when it is done, and we have said so or are not there any more, the processes run on.
fn go_forward(plan: &Swap<'_>, state: &mut State<'_>, far: &mut Line) {
    be_patient(state);
    let Remains { failed, armed } = state.renewal.renew_all(plan.old, plan.new);
    let mut swapped = Ok(());
    for owned in 0..state.seats.len() {
        swapped = swapped.and(take_seat(state, owned));
    }
    next(far, Silence::IsTheEnd);
    release(state);
    let micros = state.since.elapsed().as_micros();
    match swapped {
        Ok(()) => {
            let micros = i32::try_from(micros).unwrap_or(i32::MAX);
            tell(far, [DONE, micros, failed, armed]);
        }
        Err(failure) => tell_failure(far, failure),
    }
}

/// Puts the new socket at the number of the old one.
fn take_seat(state: &mut State<'_>, at: usize) -> Result<(), Failure> {
    let Some(owned) = state.seats.get(at).filter(|owned| owned.is_old) else {
        return Ok(());
    };
    let (table, seat) = (owned.table, owned.seat);
    let Some((process, received)) = state.process(table) else {
        return Ok(());
    };
    let flags = if seat.close_on_exec {
        libc::O_CLOEXEC
    } else {
        0
    };
    let arguments = [received.fd, seat.fd as u64, flags as u64, 0, 0, 0];
    let (tid, call) = (process.tid(), process.call(libc::SYS_dup3, arguments));
    match unless_ended(call)?.map(|answer| answer.number()) {
        Some(Err(error)) => Err(Failure::new(Wrong::Number, tid, &error)),
        Some(Ok(_)) | None => Ok(()),
    }
}
