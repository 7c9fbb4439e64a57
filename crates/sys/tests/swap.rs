//! A socket replaced in programs that know nothing of it, and end with an error at any disturbance.

// kcmp(2), which no safe crate offers.
#![allow(unsafe_code)]

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt::{set_socket_reuseaddr, socket_reuseaddr};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open};
use sockcr_sys::guard::Step;
use sockcr_sys::swap::{Registration, Role, Seat, Supervisor, Swap, Swapped, Table};
use sockcr_sys::visit::{Others, floor};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const CALLS: [&str; 8] = [
    "recv",
    "recvmsg",
    "poll",
    "poll_timed",
    "epoll",
    "epoll_et",
    "epoll_oneshot",
    "epoll_exclusive",
];

/// Compiles the victim, once.
fn compiled() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = std::env::temp_dir().join(format!("sockcr-swap-{}", std::process::id()));
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/swap.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-O1", "-pthread", "-o"]);
        let status = compiler.arg(&program).arg(source).status();
        assert!(status.expect("no C compiler").success());
        program
    })
}

struct Victim {
    /// `None` for a worker, which has not started it.
    process: Option<Child>,
    /// What it has said.
    line: String,
    port: u16,
    fds: Vec<i32>,
    /// Process and thread of each table.
    tables: Vec<(i32, i32)>,
}

impl Victim {
    fn start(call: &str, processes: u32, threads: u32, more: &[&str]) -> Victim {
        let mut command = Command::new(compiled());
        command.args([call, &processes.to_string(), &threads.to_string()]);
        let command = command.args(more).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the victim does not start");
        let output = process.stdout.take().expect("no output");
        let mut line = String::new();
        let read = BufReader::new(output).read_line(&mut line);
        read.expect("the victim says nothing");
        Victim::parse(Some(process), &line).expect("the victim says something else")
    }

    fn parse(process: Option<Child>, line: &str) -> Option<Victim> {
        let mut words = line.split_whitespace();
        let port = words.next()?.parse().ok()?;
        let fds = words.next()?.split(',').map(|fd| fd.parse().ok());
        let fds: Option<Vec<i32>> = fds.collect();
        let table = |word: &str| -> Option<(i32, i32)> {
            let (pid, tid) = word.split_once(':')?;
            Some((pid.parse().ok()?, tid.parse().ok()?))
        };
        let tables: Option<Vec<(i32, i32)>> = words.map(table).collect();
        let (fds, mut tables) = (fds?, tables?);
        tables.sort_unstable();
        tables.dedup();
        let line = line.into();
        Some(Victim {
            process,
            line,
            port,
            fds,
            tables,
        })
    }

    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// A duplicate of its socket.
    fn socket(&self) -> io::Result<UdpSocket> {
        let (pid, _) = self.tables[0];
        let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let socket = pidfd_getfd(process, self.fds[0], PidfdGetfdFlags::empty())?;
        Ok(socket.into())
    }

    /// What each table has: numbers, inodes, close-on-exec.
    fn descriptors(&self) -> Vec<String> {
        let of = |(pid, tid): &(i32, i32)| {
            let folder = format!("/proc/{pid}/task/{tid}");
            let entries = std::fs::read_dir(format!("{folder}/fd"));
            let entries = entries.expect("a victim has ended").flatten();
            let one = |fd: String| {
                let link = std::fs::read_link(format!("{folder}/fd/{fd}")).unwrap_or_default();
                let info = std::fs::read_to_string(format!("{folder}/fdinfo/{fd}"));
                let info = info.unwrap_or_default();
                let lines = info.lines().filter(|line| {
                    line.starts_with("flags:") || line.starts_with("tfd:") && !line.is_empty()
                });
                let lines = lines.map(|line| line.split(" pos:").next().unwrap_or(line));
                let lines: Vec<&str> = lines.collect();
                format!("{fd} {} {}\n", link.display(), lines.join(" "))
            };
            let mut all: Vec<String> = entries
                .map(|entry| one(entry.file_name().to_string_lossy().into_owned()))
                .collect();
            all.sort_unstable();
            // A one-shot registration, before the victim arms it again and after.
            all.concat().replace("events: 40000000", "events: 40000019")
        };
        self.tables.iter().map(of).collect()
    }

    /// Datagrams come back, from where they went; nobody traces it.
    fn is_fine(&mut self) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("no socket");
        socket.connect(self.address()).expect("no connection");
        let patience = Some(Duration::from_secs(10));
        socket.set_read_timeout(patience).expect("no timeout");
        for at in 0..20_u32 {
            let sent = at.to_ne_bytes();
            socket.send(&sent).expect("an ICMP error");
            let mut got = [0; 100];
            let length = socket.recv(&mut got).expect("no echo");
            assert_eq!(got[..length], sent);
        }
        let ended = self.process.as_mut().map(Child::try_wait);
        assert!(matches!(ended, Some(Ok(None))), "it has ended");
        for (pid, tid) in &self.tables {
            let status = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/status"));
            let status = status.expect("a victim has ended");
            assert!(status.contains("TracerPid:\t0\n"), "{status}");
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Its children end with it.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn inode(socket: &UdpSocket) -> io::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

fn plan<'a>(victim: &Victim, old: &'a UdpSocket, new: &'a UdpSocket) -> io::Result<Swap<'a>> {
    let seat = |fd: &i32| Seat {
        fd: *fd,
        close_on_exec: false,
    };
    let table = |(pid, tid): &(i32, i32)| Table {
        tid: *tid,
        pid: *pid,
        seats: victim.fds.iter().map(seat).collect(),
        sees_us: true,
        listener: None,
    };
    let (level, name) = (libc::SOL_SOCKET, libc::SO_REUSEADDR);
    let off = Step {
        level,
        name,
        value: vec![0; 4],
        already: None,
    };
    Ok(Swap {
        asynchronous: None,
        old: old.as_fd(),
        new: new.as_fd(),
        inode: inode(old)?,
        tables: victim.tables.iter().map(table).collect(),
        undo: vec![off],
    })
}

/// Each registration once, whoever shares the instance.
fn registrations(victim: &Victim, inode: u64) -> io::Result<Vec<Registration>> {
    let mut all: Vec<Registration> = Vec::new();
    let mut seen: Vec<(OwnedFd, i32)> = Vec::new();
    for (table, (pid, tid)) in victim.tables.iter().enumerate() {
        let folder = format!("/proc/{pid}/task/{tid}");
        for entry in std::fs::read_dir(format!("{folder}/fd"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let link = std::fs::read_link(format!("{folder}/fd/{name}"))?;
            if link.to_string_lossy() != "anon_inode:[eventpoll]" {
                continue;
            }
            let epoll: i32 = name.parse().map_err(io::Error::other)?;
            let flags = PidfdFlags::from_bits_retain(libc::O_EXCL as u32);
            let thread = Pid::from_raw(*tid).ok_or(io::ErrorKind::NotFound)?;
            let file = pidfd_open(thread, flags)
                .and_then(|thread| pidfd_getfd(thread, epoll, PidfdGetfdFlags::empty()))?;
            if seen.iter().any(|(other, _)| is_same(other, &file)) {
                continue;
            }
            seen.push((file, epoll));
            let info = std::fs::read_to_string(format!("{folder}/fdinfo/{name}"))?;
            let of = |line: &str| registration(line, table, epoll, inode);
            all.extend(info.lines().filter_map(of));
        }
    }
    Ok(all)
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let us = std::process::id() as i32;
    let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
    // SAFETY: kcmp(2) takes five numbers; of KCMP_FILE two descriptors.
    unsafe { libc::syscall(libc::SYS_kcmp, us, us, 0, one as u64, other as u64) == 0 }
}

fn registration(line: &str, table: usize, epoll: i32, inode: u64) -> Option<Registration> {
    let mut fields = line
        .split_whitespace()
        .map(|word| word.trim_end_matches(':'));
    let mut next = |name: &str| {
        fields.find(|word| word.trim_start() == name)?;
        fields.next()
    };
    let fd = next("tfd")?.parse().ok()?;
    let events = u32::from_str_radix(next("events")?, 16).ok()?;
    let data = u64::from_str_radix(next("data")?, 16).ok()?;
    let rest = line.split_once("ino:")?.1;
    let found = u64::from_str_radix(rest.split_whitespace().next()?, 16).ok()?;
    (found == inode).then_some(Registration {
        table,
        epoll,
        fd,
        events,
        data,
        // All but the private bits: EPOLLEXCLUSIVE and above.
        role: match events & 0x0fff_ffff {
            0 => Role::Disarmed,
            _ => Role::Armed,
        },
    })
}

/// The whole of it; `before` hears of each step before it is taken, the last when all is done.
fn replaced(victim: &Victim, before: impl Fn(&str)) -> io::Result<(Swapped, u64)> {
    let old = victim.socket()?;
    let new = unbound()?;
    let failed = |failure| io::Error::other(format!("{failure:?}"));
    let plan = plan(victim, &old, &new)?;
    before("start");
    let mut supervisor = Supervisor::start(&plan)?;
    before("hold");
    let there = supervisor.hold()?.map_err(failed)?;
    supervisor.given()?.map_err(failed)?;
    assert!(there.iter().all(|there| *there), "{there:?}");
    set_socket_reuseaddr(&old, true)?;
    set_socket_reuseaddr(&new, true)?;
    rustix::net::bind(&new, &victim.address())?;
    set_socket_reuseaddr(&new, false)?;
    let registrations = registrations(victim, plan.inode)?;
    before("commit");
    supervisor.commit(&registrations)?.map_err(failed)?;
    before("let go");
    // What comes from now on comes to the new one; what the old one has goes there too.
    old.set_nonblocking(true)?;
    drain(&old)?;
    let swapped = supervisor.let_go()?.map_err(failed)?;
    drain(&old)?;
    before("end");
    Ok((swapped, inode(&new)?))
}

fn unbound() -> io::Result<UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::CLOEXEC);
    Ok(socket_with(AddressFamily::INET, kind, flags, None)?.into())
}

/// One that has taken the traffic over already.
fn bound_alike(victim: &Victim, old: &UdpSocket) -> io::Result<UdpSocket> {
    let new = unbound()?;
    set_socket_reuseaddr(old, true)?;
    set_socket_reuseaddr(&new, true)?;
    rustix::net::bind(&new, &victim.address())?;
    set_socket_reuseaddr(&new, false)?;
    set_socket_reuseaddr(old, false)?;
    Ok(new)
}

/// A plain echo in place of a carried queue: nothing must be lost here.
fn drain(old: &UdpSocket) -> io::Result<()> {
    let mut bytes = [0; 100];
    while let Ok((length, from)) = old.recv_from(&mut bytes) {
        old.send_to(&bytes[..length], from)?;
    }
    Ok(())
}

fn is_replaced(victim: &mut Victim, times: u32) {
    victim.is_fine();
    for _ in 0..times {
        let before = victim.descriptors();
        let old = inode(&victim.socket().expect("no socket")).expect("no inode");
        let (swapped, new) = replaced(victim, |_| {}).expect("is not replaced");
        assert_eq!(swapped.failed_registrations, 0);
        let (old, new) = (format!("socket:[{old}]"), format!("socket:[{new}]"));
        let expected: Vec<String> = before
            .iter()
            .map(|table| table.replace(&old, &new))
            .collect();
        assert_eq!(victim.descriptors(), expected);
        victim.is_fine();
    }
}

#[test]
fn in_every_call() {
    for call in CALLS {
        eprintln!("{call}");
        is_replaced(&mut Victim::start(call, 1, 1, &[]), 10);
        is_replaced(&mut Victim::start(call, 1, 8, &[]), 3);
    }
}

#[test]
fn in_forked_workers() {
    for call in CALLS {
        eprintln!("{call}");
        is_replaced(&mut Victim::start(call, 4, 1, &[]), 5);
    }
}

#[test]
fn in_threads_with_tables_of_their_own() {
    for call in CALLS {
        eprintln!("{call}");
        is_replaced(&mut Victim::start(call, 2, 3, &["own"]), 5);
    }
}

#[test]
fn at_several_numbers() {
    for call in ["recv", "epoll", "epoll_et"] {
        eprintln!("{call}");
        is_replaced(&mut Victim::start(call, 2, 2, &["dup"]), 5);
    }
}

/// Where it may not look into us, it is sent the socket.
#[test]
fn by_a_message() {
    for call in ["recv", "epoll_et"] {
        let mut victim = Victim::start(call, 2, 2, &["own"]);
        let old = victim.socket().expect("no socket");
        let before = victim.descriptors();
        let new = bound_alike(&victim, &old).expect("no second socket");
        let mut plan = plan(&victim, &old, &new).expect("no plan");
        for table in &mut plan.tables {
            table.sees_us = false;
            table.listener = Some(listener().expect("no listener"));
        }
        let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
        let held = supervisor.hold().expect("it has ended");
        held.expect("is not held");
        let given = supervisor.given().expect("it has ended");
        given.expect("is not given");
        // Taken back, and held again.
        drop(supervisor);
        assert_eq!(victim.descriptors(), before);
        set_socket_reuseaddr(&old, true).expect("no option");
        let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
        let held = supervisor.hold().expect("it has ended");
        held.expect("is not held again");
        let given = supervisor.given().expect("it has ended");
        given.expect("is not given");
        let registrations = registrations(&victim, plan.inode).expect("no registrations");
        let committed = supervisor.commit(&registrations).expect("it has ended");
        committed.expect("not committed");
        let swapped = supervisor.let_go().expect("it has ended");
        swapped.expect("is not swapped");
        drop(plan);
        drop((old, new));
        victim.is_fine();
    }
}

fn listener() -> io::Result<(OwnedFd, Vec<u8>)> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new_unnamed())?;
    rustix::net::listen(&socket, 16)?;
    let address: SocketAddrUnix = rustix::net::getsockname(&socket)?.try_into()?;
    let name = address.abstract_name().ok_or(io::ErrorKind::NotFound)?;
    Ok((socket, [&[0], name].concat()))
}

/// A holder that is killed while all stand still takes its descriptors with it; one that has ended before is
/// told of.
#[test]
fn without_a_holder_that_ends() {
    for round in 0..3 {
        let mut victim = Victim::start("epoll", 4, 1, &[]);
        let old = victim.socket().expect("no socket");
        let new = bound_alike(&victim, &old).expect("no second socket");
        let plan = plan(&victim, &old, &new).expect("no plan");
        let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
        let (ending, _) = victim.tables.pop().expect("no worker");
        let end = |now: bool| {
            let pid = Pid::from_raw(ending).filter(|_| now);
            let process = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty()).expect("no process"));
            let killed = pid.map(|pid| rustix::process::kill_process(pid, Signal::KILL));
            assert!(killed.is_none_or(|killed| killed.is_ok()));
            if let Some(process) = process {
                let mut asked = [PollFd::new(&process, PollFlags::IN)];
                poll(&mut asked, None).expect("no end");
            }
        };
        end(round == 0);
        let there = supervisor.hold().expect("it has ended");
        let there = there.expect("the others are not held");
        let given = supervisor.given().expect("it has ended");
        given.expect("is not given");
        assert_eq!(there, [true, true, true, round != 0]);
        end(round == 1);
        let registrations = registrations(&victim, plan.inode).expect("no registrations");
        assert_eq!(registrations.len(), 1);
        let committed = supervisor.commit(&registrations).expect("it has ended");
        committed.expect("not committed");
        end(round == 2);
        let swapped = supervisor.let_go().expect("it has ended");
        let swapped = swapped.expect("the others are not swapped");
        assert_eq!(swapped.failed_registrations, 0);
        let expected = format!("socket:[{}]", inode(&new).expect("no inode"));
        for table in victim.descriptors() {
            assert!(table.contains(&expected), "{table}");
        }
    }
}

/// The thread that was found has ended since: another one that has its table makes the calls.
#[test]
fn by_an_heir() {
    for more in [&[][..], &["own"]] {
        for at in [0, 1, 2] {
            let mut victim = Victim::start("epoll", 1, 3, more);
            let before = victim.descriptors();
            let old = victim.socket().expect("no socket");
            let new = bound_alike(&victim, &old).expect("no second socket");
            let mut plan = plan(&victim, &old, &new).expect("no plan");
            let table = at % plan.tables.len();
            plan.tables[table].tid = i32::MAX;
            let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
            let held = supervisor.hold().expect("it has ended");
            held.expect("is not held");
            let given = supervisor.given().expect("it has ended");
            given.expect("is not given");
            let registrations = registrations(&victim, plan.inode).expect("no registrations");
            let committed = supervisor.commit(&registrations).expect("it has ended");
            committed.expect("not committed");
            let swapped = supervisor.let_go().expect("it has ended");
            swapped.expect("is not swapped");
            let names = [&old, &new].map(|one| inode(one).expect("no inode"));
            let names = names.map(|inode| format!("socket:[{inode}]"));
            let expected = before
                .iter()
                .map(|table| table.replace(&names[0], &names[1]));
            let expected: Vec<String> = expected.collect();
            assert_eq!(victim.descriptors(), expected);
            drop(plan);
            drop((old, new));
            victim.is_fine();
        }
    }
}

/// Undone, it goes on with the old socket.
#[test]
fn dropped_before_the_commit() {
    let mut victim = Victim::start("epoll", 2, 3, &[]);
    let before = victim.descriptors();
    for _ in 0..5 {
        let old = victim.socket().expect("no socket");
        let new = bound_alike(&victim, &old).expect("no second socket");
        let plan = plan(&victim, &old, &new).expect("no plan");
        let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
        let held = supervisor.hold().expect("it has ended");
        held.expect("is not held");
        set_socket_reuseaddr(&old, true).expect("no option");
        let given = supervisor.given().expect("it has ended");
        given.expect("is not given");
        drop(supervisor);
        assert_eq!(socket_reuseaddr(&old), Ok(false));
        drop(plan);
        drop((old, new));
        assert_eq!(victim.descriptors(), before);
        victim.is_fine();
    }
}

/// What its owner has set before it stood still is what is put back.
#[test]
fn an_option_that_was_changed_since_the_plan() {
    let victim = Victim::start("recv", 1, 1, &[]);
    let old = victim.socket().expect("no socket");
    let new = bound_alike(&victim, &old).expect("no second socket");
    let plan = plan(&victim, &old, &new).expect("no plan");
    for before in [true, false] {
        let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
        set_socket_reuseaddr(&old, before).expect("no option");
        let held = supervisor.hold().expect("it has ended");
        held.expect("is not held");
        set_socket_reuseaddr(&old, !before).expect("no option");
        drop(supervisor);
        assert_eq!(socket_reuseaddr(&old), Ok(before));
    }
}

/// No program stands still for ever because we say nothing: it is undone before the commit, finished after.
#[test]
fn in_silence() {
    let mut victims = [false, true].map(|commits| (commits, Victim::start("epoll", 2, 1, &[])));
    let sockets = victims.each_ref().map(|(_, victim)| {
        let old = victim.socket().expect("no socket");
        let new = bound_alike(victim, &old).expect("no second socket");
        (old, new)
    });
    let before = victims.each_ref().map(|(_, victim)| victim.descriptors());
    let mut supervisors = Vec::new();
    for ((commits, victim), (old, new)) in victims.iter().zip(&sockets) {
        let plan = plan(victim, old, new).expect("no plan");
        let mut supervisor = Supervisor::start(&plan).expect("no supervisor");
        let held = supervisor.hold().expect("it has ended");
        held.expect("is not held");
        set_socket_reuseaddr(old, !commits).expect("no option");
        let given = supervisor.given().expect("it has ended");
        given.expect("is not given");
        if *commits {
            let registrations = registrations(victim, plan.inode).expect("no registrations");
            let committed = supervisor.commit(&registrations).expect("it has ended");
            committed.expect("not committed");
        }
        supervisors.push(supervisor);
    }
    for (_, victim) in &victims {
        await_release(victim);
    }
    let committed = supervisors.pop().map(Supervisor::let_go);
    assert!(matches!(committed, Some(Ok(Ok(_)))), "{committed:?}");
    let undone = supervisors.pop().map(|mut undone| undone.commit(&[]));
    assert!(matches!(undone, Some(Err(_))), "{undone:?}");
    let inodes = sockets
        .each_ref()
        .map(|(old, new)| [old, new].map(|one| inode(one).ok()));
    let stays = [&sockets[0].0, &sockets[1].1];
    for socket in stays {
        assert_eq!(socket_reuseaddr(socket), Ok(false));
    }
    drop(sockets);
    let names = inodes[1].map(|inode| format!("socket:[{}]", inode.unwrap_or(0)));
    let replaced = before[1]
        .iter()
        .map(|table| table.replace(&names[0], &names[1]));
    let replaced: Vec<String> = replaced.collect();
    assert_eq!(victims[0].1.descriptors(), before[0]);
    assert_eq!(victims[1].1.descriptors(), replaced);
    victims.iter_mut().for_each(|(_, victim)| victim.is_fine());
}

/// Nothing tells when a thread is let go: it is looked at until then.
fn await_release(victim: &Victim) {
    let is_traced = |tid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{tid}/status"));
        !status.expect("it has ended").contains("TracerPid:\t0\n")
    };
    while victim.tables.iter().any(|(_, tid)| is_traced(tid)) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut victim = Victim::start("epoll_et", 1, 3, &[]);
    victim.is_fine();
    let (pid, _) = victim.tables[0];
    let process = Pid::from_raw(pid).expect("no process");
    let is_stopped = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it has ended");
        text.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('T'))
    };
    rustix::process::kill_process(process, Signal::STOP).expect("no signal");
    for _ in 0..5 {
        while !is_stopped() {
            std::thread::yield_now();
        }
        replaced(&victim, |_| {}).expect("is not replaced");
    }
    while !is_stopped() {
        std::thread::yield_now();
    }
    rustix::process::kill_process(process, Signal::CONT).expect("no signal");
    victim.is_fine();
}

/// What is started anew as a program of its own, to be killed; it says which step comes next.
#[test]
fn worker() {
    let Ok(line) = std::env::var(WORKER) else {
        return;
    };
    let victim = Victim::parse(None, &line).expect("no such victim");
    let last = std::env::var(LAST).unwrap_or_default();
    let say = |step: &str| {
        let mut output = io::stdout().lock();
        let said = writeln!(output, "step {step}");
        said.and_then(|()| output.flush()).expect("nobody listens");
        if step == last {
            loop {
                std::thread::park();
            }
        }
    };
    replaced(&victim, say).expect("is not replaced");
}

const WORKER: &str = "SOCKCR_TEST_SWAP";
/// The step before which it comes to rest.
const LAST: &str = "SOCKCR_TEST_LAST";

/// When a worker is killed.
#[derive(Clone, Copy)]
enum Moment {
    /// So long after its first word.
    After(Duration),
    /// Before this step.
    Before(&'static str),
}

/// Starts a worker, and kills it; answers its words, and that the supervisor has been seen to end.
fn killed(victim: &Victim, moment: Moment) -> io::Result<Vec<String>> {
    let mut command = Command::new(std::env::current_exe()?);
    let command = command.args(["--exact", "worker", "--nocapture"]);
    let command = command.env(WORKER, &victim.line).stdout(Stdio::piped());
    if let Moment::Before(step) = moment {
        command.env(LAST, step);
    }
    let mut worker = command.spawn()?;
    let output = worker.stdout.take().ok_or(io::ErrorKind::NotFound)?;
    let mut lines = BufReader::new(output).lines().map_while(Result::ok);
    let mut steps: Vec<String> = Vec::new();
    match moment {
        Moment::After(time) => {
            steps.extend(lines.find(|line| line == "step start"));
            let start = Instant::now();
            while start.elapsed() < time {
                std::hint::spin_loop();
            }
        }
        Moment::Before(step) => {
            let step = format!("step {step}");
            let last = lines.by_ref().find(|line| {
                let said = line.starts_with("step ").then(|| line.clone());
                steps.extend(said);
                *line == step
            });
            assert!(last.is_some(), "{steps:?}");
        }
    }
    let supervisors = stopped_with_children(&worker)?;
    worker.kill()?;
    worker.wait()?;
    for supervisor in &supervisors {
        let mut asked = [PollFd::new(supervisor, PollFlags::IN)];
        poll(&mut asked, None)?;
    }
    steps.extend(lines.filter(|line| line.starts_with("step ")));
    Ok(steps)
}

/// Its children, when it can make no more.
fn stopped_with_children(worker: &Child) -> io::Result<Vec<OwnedFd>> {
    let pid = Pid::from_child(worker);
    // It may have ended, and is not waited for yet.
    rustix::process::kill_process(pid, Signal::STOP)?;
    let folder = format!("/proc/{}", worker.id());
    let state = || -> io::Result<bool> {
        let text = std::fs::read_to_string(format!("{folder}/stat"))?;
        let state = text.rsplit_once(") ").map_or("", |(_, rest)| rest);
        Ok(state.starts_with(['T', 'Z']))
    };
    while !state()? {
        std::thread::yield_now();
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(format!("{folder}/task"))?.flatten() {
        let children = std::fs::read_to_string(entry.path().join("children"));
        for child in children.unwrap_or_default().split_whitespace() {
            let child = child.parse().ok().and_then(Pid::from_raw);
            let child = child.map(|child| pidfd_open(child, PidfdFlags::empty()));
            all.extend(child.and_then(Result::ok));
        }
    }
    Ok(all)
}

fn is_whole_when_killed(victim: &mut Victim, rounds: u32) {
    let whole = (0..5).map(|_| {
        let start = Instant::now();
        replaced(victim, |_| {}).map(|_| start.elapsed())
    });
    let whole = whole.map(|took| took.expect("is not replaced")).max();
    let whole = whole.unwrap_or_default();
    let (mut undone, mut done) = (0, 0);
    for round in 0..rounds {
        let before = victim.descriptors();
        let old = inode(&victim.socket().expect("no socket")).expect("no inode");
        // The steps take too little time for each to be met by chance.
        let moment = match (round % 5, round / 5 % 3) {
            (0, at) => Moment::Before(["hold", "commit", "let go"][at as usize]),
            _ => Moment::After(whole * (round % 50) / 50),
        };
        let steps = killed(victim, moment).expect("no worker");
        let socket = victim.socket().expect("no socket");
        let new = inode(&socket).expect("no inode");
        let said = |step: &str| steps.iter().any(|said| said.ends_with(step));
        assert!(new == old || said("commit"), "replaced without: {steps:?}");
        assert!(new != old || !said("let go"), "committed, not replaced");
        let names = [old, new].map(|inode| format!("socket:[{inode}]"));
        let expected: Vec<String> = before
            .iter()
            .map(|table| table.replace(&names[0], &names[1]))
            .collect();
        assert_eq!(victim.descriptors(), expected, "after {steps:?}");
        let reusable = socket_reuseaddr(&socket);
        assert_eq!(reusable, Ok(false), "after {steps:?}");
        drop(socket);
        victim.is_fine();
        undone += u32::from(new == old);
        done += u32::from(new != old && !said("end"));
    }
    eprintln!("{whole:?}: undone {undone}, finished {done} of {rounds}");
    assert!(undone > 0 && done > 0, "undone {undone}, finished {done}");
}

#[test]
fn whole_when_killed() {
    is_whole_when_killed(&mut Victim::start("epoll_et", 1, 2, &[]), 150);
    is_whole_when_killed(&mut Victim::start("epoll_exclusive", 4, 1, &[]), 150);
    is_whole_when_killed(&mut Victim::start("poll", 2, 3, &["own"]), 150);
}

/// Without what the worker does meanwhile.
fn swapped_at_once(victim: &Victim) -> io::Result<Duration> {
    let old = victim.socket()?;
    let new = UdpSocket::bind("127.0.0.1:0")?;
    let failed = |failure| io::Error::other(format!("{failure:?}"));
    let plan = plan(victim, &old, &new)?;
    let registrations = registrations(victim, plan.inode)?;
    let mut supervisor = Supervisor::start(&plan)?;
    supervisor.hold()?.map_err(failed)?;
    supervisor.given()?.map_err(failed)?;
    supervisor.commit(&registrations)?.map_err(failed)?;
    Ok(supervisor.let_go()?.map_err(failed)?.stopped)
}

/// `cargo test --release -p sockcr-sys --test swap -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn how_long_it_stands_still() {
    for (call, processes, threads) in [
        ("recv", 1, 1),
        ("epoll", 1, 1),
        ("recv", 1, 64),
        ("poll_timed", 1, 64),
        ("recv", 4, 1),
    ] {
        let victim = Victim::start(call, processes, threads, &[]);
        let (mut ours, mut least) = (Vec::new(), Vec::new());
        for _ in 0..500 {
            ours.push(swapped_at_once(&victim).expect("is not replaced"));
            let took = floor(victim.tables[0].0, Others::Wake).expect("no floor");
            least.push(took.expect("no processor beside"));
        }
        for all in [&mut ours, &mut least] {
            all.sort_unstable();
        }
        let of = |all: &[Duration]| [all[0], all[250], all[495]];
        eprintln!(
            "{call} {processes}x{threads}: {:?} floor {:?}",
            of(&ours),
            of(&least)
        );
    }
}
