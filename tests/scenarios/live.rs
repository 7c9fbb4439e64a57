//! `move` and `restore --into`: sockets put into programs that run, know nothing of it, and do not notice.

use anyhow::{Context, bail, ensure};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use sockcr_scenarios::command::{self, done, refused, sockcr};
use sockcr_scenarios::need::Need;
use sockcr_scenarios::process::{Process, children, program, reaped, run};
use sockcr_scenarios::socket::{local, target};
use sockcr_scenarios::{Outcome, Scenario, actor, wait};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

const CC: &[Need] = &[Need::Program("cc")];
const CC_ROOT: &[Need] = &[Need::Program("cc"), Need::Root];

pub const ALL: &[Scenario] = &[
    Scenario::new("live::in_every_call", CC, in_every_call),
    Scenario::new("live::held_still_for_a_dump", CC, held_still_for_a_dump),
    Scenario::new("live::with_64_threads", CC, with_64_threads),
    Scenario::new("live::signals_arrive", CC, signals_arrive),
    Scenario::new("live::under_a_filter", CC_ROOT, under_a_filter),
    Scenario::new("live::of_another_user", CC_ROOT, of_another_user),
    Scenario::new("live::in_other_namespaces", CC_ROOT, in_other_namespaces),
    Scenario::new(
        "live::a_stopped_process_stays_stopped",
        CC,
        a_stopped_process_stays_stopped,
    ),
    Scenario::new(
        "live::without_its_first_thread",
        CC,
        without_its_first_thread,
    ),
    Scenario::new("live::one_of_two", CC, one_of_two),
    Scenario::new("live::runs_itself_again", CC, runs_itself_again),
    Scenario::new("live::cannot_be_stopped", CC, cannot_be_stopped),
    Scenario::new("live::moved_away", CC, moved_away),
    Scenario::new("live::killed_at_any_moment", CC, killed_at_any_moment),
    Scenario::new("live::an_ending_process", CC, an_ending_process),
    Scenario::new("live::refused_by_name", CC, refused_by_name),
    Scenario::new("live::restored_into", CC, restored_into),
    Scenario::new("live::into_the_store", &[], into_the_store),
];

const CALLS: [&str; 14] = [
    "recv",
    "recv_timed",
    "recvmsg",
    "recvmmsg",
    "poll",
    "poll_timed",
    "ppoll",
    "select",
    "pselect",
    "epoll_wait",
    "epoll_pwait",
    "nanosleep",
    "clock_nanosleep",
    "spin",
];

/// Compiles the victims.
fn compiled(flags: &[&str]) -> Outcome {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/victims/live.c");
    let common = ["-O1", "-pthread", "-o", "live", source];
    run("cc", &[flags, &common].concat())
}

/// A process that checks itself, and says so at a port.
struct Victim {
    process: Process,
    /// The one that has the sockets.
    pid: i32,
    fd: i64,
    line: UdpSocket,
}

impl Victim {
    fn start(call: &str, threads: u32, more: &[&str]) -> anyhow::Result<Victim> {
        Victim::start_as(None, call, threads, more)
    }

    fn start_as(
        user: Option<u32>,
        call: &str,
        threads: u32,
        more: &[&str],
    ) -> anyhow::Result<Victim> {
        let mut command = program("./live");
        command.args([call, &threads.to_string()]).args(more);
        if let Some(id) = user {
            command.uid(id).gid(id);
        }
        let mut process = Process::start(&mut command)?;
        let facts = process.facts()?;
        let line = UdpSocket::bind(local(0))?;
        line.set_read_timeout(Some(wait::PATIENCE))?;
        line.connect(local(
            facts["port"].as_u64().context("no port")?.try_into()?,
        ))?;
        let fd = facts["fd"].as_i64().context("no descriptor")?;
        let pid = process.pid();
        Ok(Victim {
            process,
            pid,
            fd,
            line,
        })
    }

    fn ask(&self, words: &str) -> anyhow::Result<String> {
        self.line.send(words.as_bytes())?;
        let mut answer = [0; 2000];
        let length = self
            .line
            .recv(&mut answer)
            .with_context(|| format!("{words}: no answer"))?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }

    /// Nobody traces it or holds it still, and it has noticed nothing.
    fn is_fine(&self) -> Outcome {
        let tracer = self.process.status("TracerPid")?;
        ensure!(tracer == "0", "is traced by {tracer}");
        let state = self.ask("state")?;
        ensure!(state == "fine", "has noticed: {state}");
        Ok(())
    }

    fn fds(&self) -> anyhow::Result<String> {
        self.ask("fds")
    }

    fn place(&self, fd: i32) -> String {
        format!("{}:{fd}", self.pid)
    }

    /// Its descriptor is this socket.
    fn has(&self, fd: i32, address: std::net::SocketAddr) -> Outcome {
        UdpSocket::bind(local(0))?.send_to(b"to the moved one", address)?;
        let took = self.ask(&format!("take {fd}"))?;
        ensure!(took == "to the moved one", "descriptor {fd} has {took:?}");
        Ok(())
    }

    fn close(&self, fd: i32) -> Outcome {
        let closed = self.ask(&format!("close {fd}"))?;
        ensure!(closed == "0", "descriptor {fd} was not there");
        Ok(())
    }
}

/// Moves a socket of ours into the victim some times, which must have it, and nothing else.
fn is_given(victim: &Victim, times: u32) -> Outcome {
    let socket = UdpSocket::bind(local(0))?;
    let (name, address) = (target(&socket), socket.local_addr()?);
    let before = victim.fds()?;
    for at in 0..times {
        let fd = 100 + at.cast_signed() % 10;
        done(["move", &name, "--to", &victim.place(fd), "--keep"])?.quiet()?;
        victim.is_fine()?;
        victim.has(fd, address)?;
        let now = victim.fds()?;
        ensure!(
            now == format!("{before}{fd}c "),
            "{before:?} became {now:?}"
        );
        victim.close(fd)?;
    }
    let moved = done([
        "move",
        &name,
        "--to",
        &victim.pid.to_string(),
        "--keep",
        "--json",
    ])?
    .json()?;
    let fd = moved["sockets"][0]["to"]["fd"]
        .as_i64()
        .context("no descriptor")?;
    victim.has(fd.try_into()?, address)?;
    victim.close(fd.try_into()?)?;
    ensure!(
        victim.fds()? == before,
        "a descriptor is left: {}",
        victim.fds()?
    );
    victim.is_fine()
}

fn in_every_call() -> Outcome {
    compiled(&["-static"])?;
    let given = |call: &str| is_given(&Victim::start(call, 1, &[])?, 3);
    CALLS
        .iter()
        .try_for_each(|call| given(call).with_context(|| format!("in {call}, static")))?;
    compiled(&[])?;
    CALLS
        .iter()
        .try_for_each(|call| given(call).with_context(|| format!("in {call}")))
}

fn held_still_for_a_dump() -> Outcome {
    compiled(&[])?;
    for call in CALLS {
        let victim = Victim::start(call, 2, &[])?;
        let target = format!("{}:{}", victim.pid, victim.fd);
        for _ in 0..3 {
            done(["dump", "--stop", &target, "-o", "a.skc"])?.quiet()?;
            victim.is_fine().with_context(|| format!("in {call}"))?;
        }
    }
    Ok(())
}

fn with_64_threads() -> Outcome {
    compiled(&[])?;
    for call in CALLS {
        let victim = Victim::start(call, 64, &[])?;
        is_given(&victim, 2).with_context(|| format!("in {call}"))?;
    }
    Ok(())
}

/// One each 100 µs, in order; none is lost, and none is told that the kernel would not have told.
fn signals_arrive() -> Outcome {
    compiled(&[])?;
    for call in CALLS {
        for threads in [1, 4] {
            let victim = Victim::start(call, threads, &["signals"])?;
            is_given(&victim, 10).with_context(|| format!("in {call}"))?;
        }
    }
    Ok(())
}

/// That would kill the victim for what it is made to do.
fn under_a_filter() -> Outcome {
    compiled(&[])?;
    is_given(&Victim::start("recv", 4, &["filtered"])?, 5)?;
    // What the kernel would go on with by a call that the program has never made.
    for call in ["poll_timed", "nanosleep", "clock_nanosleep"] {
        let victim = Victim::start(call, 2, &["filtered"])?;
        is_given(&victim, 5).with_context(|| format!("in {call}"))?;
        let target = format!("{}:{}", victim.pid, victim.fd);
        done(["dump", "--stop", &target, "-o", "a.skc"])?.quiet()?;
        victim.is_fine().with_context(|| format!("in {call}"))?;
    }
    let victim = Victim::start_as(Some(command::NOBODY), "recv", 1, &["filtered"])?;
    is_given(&victim, 5)?;
    let (held, facts) = actor::start_as_nobody("hold", &["unbound"])?;
    let target = format!("{}:{}", held.pid(), facts[0]["fd"]);
    sockcr(["move", &target, "--to", &victim.place(100), "--keep"])
        .as_nobody()
        .run()?
        .refused()?
        .says(&["seccomp filter"])?
        .helps("CAP_SYS_ADMIN")?;
    victim.is_fine()
}

/// It may not look into us, so it is sent the socket; its like may.
fn of_another_user() -> Outcome {
    compiled(&[])?;
    for call in ["recv", "epoll_wait", "spin"] {
        for threads in [1, 4] {
            let more: &[&str] = if threads > 1 { &["signals"] } else { &[] };
            let victim = Victim::start_as(Some(command::NOBODY), call, threads, more)?;
            is_given(&victim, 10)?;
        }
    }
    let victim = Victim::start("recv", 1, &[])?;
    let (held, facts) = actor::start_as_nobody("hold", &["unbound"])?;
    let target = format!("{}:{}", held.pid(), facts[0]["fd"]);
    let moved = sockcr(["move", &target, "--to", &victim.place(100), "--keep"]).as_nobody();
    moved
        .run()?
        .refused()?
        .says(&["hold it still"])?
        .helps("CAP_SYS_PTRACE")?;
    victim.is_fine()?;
    let (other, _) = actor::start_as_nobody("hold", &["unbound"])?;
    let to = format!("{}:100", other.pid());
    let moved = sockcr(["move", &target, "--to", &to]).as_nobody();
    moved.run()?.done()?.quiet()?;
    done(["show", &to])?;
    Ok(())
}

fn in_other_namespaces() -> Outcome {
    compiled(&[])?;
    let mut victim = Victim::start("epoll_wait", 2, &["namespaces"])?;
    let outer = victim.process.pid();
    victim.pid = child_of(outer)?.context("no child")?;
    is_given(&victim, 5)
}

fn child_of(pid: i32) -> anyhow::Result<Option<i32>> {
    let mut children = children(pid)?;
    Ok(children.pop())
}

fn a_stopped_process_stays_stopped() -> Outcome {
    compiled(&[])?;
    for (call, threads) in [
        ("recv", 1),
        ("epoll_wait", 4),
        ("nanosleep", 2),
        ("spin", 1),
    ] {
        let victim = Victim::start(call, threads, &[])?;
        let socket = UdpSocket::bind(local(0))?;
        victim.process.signal(Signal::STOP)?;
        let stopped = || {
            Ok(victim
                .process
                .status("State")?
                .starts_with('T')
                .then_some(()))
        };
        wait::until("a stop", stopped)?;
        for fd in 100..110 {
            done([
                "move",
                &target(&socket),
                "--to",
                &victim.place(fd),
                "--keep",
            ])?
            .quiet()?;
            wait::until("the stop goes on", stopped)?;
        }
        victim.process.signal(Signal::CONT)?;
        victim.has(105, socket.local_addr()?)?;
        victim.is_fine()?;
    }
    Ok(())
}

fn without_its_first_thread() -> Outcome {
    compiled(&[])?;
    let victim = Victim::start("recv", 3, &["leaderless"])?;
    // While it ends, pthread_exit(3) has a library open.
    wait::until("the end of the first thread", || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", victim.pid))?;
        Ok(status.contains("State:\tZ").then_some(()))
    })?;
    is_given(&victim, 3)
}

/// A thread has one datagram of recvmmsg(2) and waits for the second; it is told no error afterwards.
fn one_of_two() -> Outcome {
    compiled(&[])?;
    let victim = Victim::start("recv", 1, &["some"])?;
    is_given(&victim, 20)?;
    let target = format!("{}:{}", victim.pid, victim.fd);
    for _ in 0..20 {
        done(["dump", "--stop", &target, "-o", "a.skc"])?.quiet()?;
        victim.is_fine()?;
    }
    Ok(())
}

/// From a thread that is not its first, all the time: the command ends, done or refused.
fn runs_itself_again() -> Outcome {
    compiled(&[])?;
    let mut victim = Process::start(program("./live").args(["again", "0"]))?;
    let fd = victim.facts()?["fd"].as_i64().context("no descriptor")?;
    let place = format!("{}:{fd}", victim.pid());
    let (mut ended, mut whole) = (0, 0);
    for round in 0..100 {
        let command = sockcr(["dump", "--stop", &place, "-o", "a.skc"]).start()?;
        ensure!(
            command.ends_within(wait::PATIENCE)?,
            "waits still in round {round}"
        );
        match command.end()?.code() {
            Some(0) => whole += 1,
            Some(1) => ended += 1,
            code => bail!("the command ended with {code:?}"),
        }
        ensure!(
            !victim.ends_within(Duration::ZERO)?,
            "the program has ended in round {round}"
        );
    }
    ensure!(whole > 0, "is never done, refused {ended} times");
    Ok(())
}

/// Its first thread waits for a vfork(2). When that is waited for, another thread executes a program, which
/// nobody tells who waits; or nothing happens at all.
fn cannot_be_stopped() -> Outcome {
    compiled(&[])?;
    let start = |words: &[&str]| -> anyhow::Result<(Process, String)> {
        let mut victim = Process::start(program("./live").args(["stuck", "0"]).args(words))?;
        let fd = victim.facts()?["fd"].as_i64().context("no descriptor")?;
        let place = format!("{}:{fd}", victim.pid());
        Ok((victim, place))
    };
    let (_victim, place) = start(&["executes"])?;
    done(["dump", "--stop", &place, "-o", "a.skc"])?.quiet()?;
    let (victim, place) = start(&[])?;
    refused(["dump", "--stop", &place, "-o", "a.skc"])?
        .says(&["cannot be stopped"])?
        .helps("vfork")?;
    // Who goes on after that has let it go as well.
    let stopped = sockcr::stop::stop(victim.pid());
    ensure!(stopped.is_err(), "was stopped");
    let let_go = || Ok((victim.status("TracerPid")? == "0").then_some(()));
    wait::until("it is traced by nobody", let_go)
}

/// From one program to the next: the first is out of it, its epoll instance too.
fn moved_away() -> Outcome {
    compiled(&[])?;
    let (first, second) = (
        Victim::start("epoll_wait", 4, &[])?,
        Victim::start("poll", 1, &[])?,
    );
    let socket = UdpSocket::bind(local(0))?;
    let address = socket.local_addr()?;
    done([
        "move",
        &target(&socket),
        "--to",
        &first.place(100),
        "--keep",
    ])?
    .quiet()?;
    drop(socket);
    ensure!(first.ask("watch 100")? == "0", "is not watched");
    let watched =
        || std::fs::read_to_string(format!("/proc/{}/fdinfo/{}", first.pid, first.fd + 1));
    ensure!(watched()?.contains("tfd:      100"), "{}", watched()?);
    let before = second.fds()?;
    // Data that wait move with it.
    UdpSocket::bind(local(0))?.send_to(b"on the way", address)?;
    let from = format!("udp:{address}");
    done(["move", &from, "--to", &second.place(101)])?
        .prints(&["descriptor 100 →", "descriptor 101"])?;
    ensure!(!watched()?.contains("tfd:      100"), "{}", watched()?);
    ensure!(!first.fds()?.contains("100"), "is still there");
    ensure!(second.ask("take 101")? == "on the way", "is not all there");
    second.has(101, address)?;
    ensure!(
        second.fds()? == format!("{before}101c "),
        "{}",
        second.fds()?
    );
    first.is_fine()?;
    second.is_fine()?;
    // Within one process, to another number.
    done(["move", &second.place(101), "--to", &second.place(105)])?.quiet()?;
    second.has(105, address)?;
    ensure!(
        second.fds()? == format!("{before}105c "),
        "{}",
        second.fds()?
    );
    second.is_fine()
}

/// There and back between two programs that get signals meanwhile: at every moment one of them has it.
fn killed_at_any_moment() -> Outcome {
    const ROUNDS: u32 = 300;
    compiled(&[])?;
    let victims = [
        Victim::start("epoll_wait", 4, &["signals"])?,
        Victim::start("recv", 2, &["signals"])?,
    ];
    let socket = UdpSocket::bind(local(0))?;
    let address = socket.local_addr()?;
    let bare = [victims[0].fds()?, victims[1].fds()?];
    done([
        "move",
        &target(&socket),
        "--to",
        &victims[0].place(100),
        "--keep",
    ])?;
    drop(socket);
    let back_and_forth = |at: usize| -> [String; 4] {
        let [from, to] = [at, 1 - at].map(|at| victims[at].place(100));
        ["move".into(), from, "--to".into(), to]
    };
    let mut whole = Duration::MAX;
    for at in [0, 1, 0, 1, 0, 1] {
        let start = Instant::now();
        done(back_and_forth(at))?;
        whole = whole.min(start.elapsed());
    }
    let (mut at, mut killed, mut moved) = (0, 0, 0);
    for round in 0..ROUNDS {
        let known = children(std::process::id().cast_signed())?;
        let process = sockcr(back_and_forth(at)).start()?;
        killed += u32::from(!process.ends_within(whole * (round % 100) / 100)?);
        process.kill()?;
        wait::until("the end of what outlives the command", || reaped(&known))?;
        let has = |at: usize| -> anyhow::Result<bool> {
            victims[at].is_fine()?;
            match victims[at].fds()? {
                fds if fds == bare[at] => Ok(false),
                fds if fds == format!("{}100c ", bare[at]) => Ok(true),
                fds => bail!("round {round}: {:?} became {fds:?}", bare[at]),
            }
        };
        match (has(at)?, has(1 - at)?) {
            (true, false) => {}
            (false, true) => (at, moved) = (1 - at, moved + 1),
            both => bail!("round {round}: here and there: {both:?}"),
        }
        victims[at].has(100, address)?;
    }
    let enough = killed > ROUNDS / 10 && (1..ROUNDS).contains(&moved);
    ensure!(
        enough,
        "was killed {killed} times of {ROUNDS}, and moved {moved} times"
    );
    Ok(())
}

/// Whatever moment its end comes at, the command ends too, and says so.
fn an_ending_process() -> Outcome {
    compiled(&[])?;
    let socket = UdpSocket::bind(local(0))?;
    let victim = Victim::start("recv", 8, &[])?;
    let words = [
        "move",
        &target(&socket),
        "--keep",
        "--to",
        &victim.pid.to_string(),
    ];
    let whole = command::duration(&words)?;
    for round in 0..40 {
        let victim = Victim::start("spin", 8, &[])?;
        let to = victim.place(100);
        let command = sockcr(["move", &target(&socket), "--keep", "--to", &to]).start()?;
        command.ends_within(whole * round / 40)?;
        victim.process.kill()?;
        let code = command.end()?.code();
        ensure!(
            matches!(code, Some(0 | 1)),
            "the command ended with {code:?}"
        );
    }
    Ok(())
}

fn refused_by_name() -> Outcome {
    compiled(&[])?;
    let socket = UdpSocket::bind(local(0))?;
    let name = target(&socket);
    let victim = Victim::start("recv", 2, &[])?;
    let before = victim.fds()?;
    let is_refused = |to: &str| refused(["move", &name, "--to", to, "--keep"]);
    is_refused(&victim.place(victim.fd.try_into()?))?
        .says(&["already"])?
        .helps("free one")?;
    is_refused(&victim.place(1_000_000_000))?
        .says(&["may have no descriptor"])?
        .helps("prlimit")?;
    is_refused("999999999")?.says(&["no such process"])?;
    ensure!(
        victim.fds()? == before,
        "something is left: {}",
        victim.fds()?
    );
    victim.is_fine()?;
    let traced = Victim::start("recv", 1, &["traced"])?;
    let words = is_refused(&traced.pid.to_string())?;
    words.says(&["is traced by process"])?.helps("debugger")?;
    ensure!(traced.ask("state")? == "fine", "has noticed");
    // Not every compiler, nor every kernel, knows them.
    std::fs::write(
        "32.s",
        ".globl _start\n_start: mov $29, %eax\nint $0x80\njmp _start\n",
    )?;
    if run("cc", &["-m32", "-nostdlib", "-static", "-o", "32", "32.s"]).is_ok() {
        let pauses = Process::start(&mut program("./32"))?;
        let executed = || Ok(pauses.status("Name")?.eq("32").then_some(()));
        wait::until("its execve", executed)?;
        is_refused(&pauses.pid().to_string())?.says(&["32-bit"])?;
    }
    // Two processes hold it: which is to lose it?
    done(["move", &name, "--to", &victim.place(100), "--keep"])?;
    let inode = format!("inode:{}", sockcr_scenarios::socket::inode(&socket)?);
    let other = Victim::start("recv", 1, &[])?;
    let third = Victim::start("recv", 1, &[])?;
    done(["move", &name, "--to", &other.place(100), "--keep"])?;
    refused(["move", &inode, "--to", &third.pid.to_string()])?
        .says(&["several processes"])?
        .helps("--keep")?;
    sockcr(["move", &name, "--to", "nowhere"])
        .run()?
        .misused()?
        .says(&["neither PID nor"])?;
    let is_misused = |words: &[&str]| sockcr(words).run()?.misused().map(drop);
    is_misused(&["restore", "a", "--into", "1", "--fdstore", "a"])?;
    is_misused(&["restore", "a", "--into", "1", "--", "true"])?;
    is_misused(&["restore", "a", "--fdstore", "a:b"])
}

fn restored_into() -> Outcome {
    compiled(&[])?;
    let ports = [7801, 7802];
    let sockets: Result<Vec<UdpSocket>, _> = ports
        .map(|port| UdpSocket::bind(local(port)))
        .into_iter()
        .collect();
    let sockets = sockets?;
    UdpSocket::bind(local(0))?.send_to(b"waits", local(7801))?;
    let words = [
        "dump",
        &target(&sockets[0]),
        &target(&sockets[1]),
        "-o",
        "two.skc",
    ];
    done(words)?.quiet()?;
    drop(sockets);
    let victim = Victim::start("ppoll", 3, &[])?;
    let before = victim.fds()?;
    let all = ["restore", "two.skc", "--into"];
    // The second number is taken.
    let number = victim.place(i32::try_from(victim.fd)? - 1);
    refused([&all[..], &[&number]].concat())?.says(&["already"])?;
    ensure!(victim.fds()? == before, "{}", victim.fds()?);
    let put = done([&all[..], &[&victim.place(100)]].concat())?;
    put.prints(&["descriptor 100", "descriptor 101"])?;
    ensure!(
        victim.fds()? == format!("{before}100c 101c "),
        "{}",
        victim.fds()?
    );
    if command::sees_everything()? {
        ensure!(victim.ask("take 100")? == "waits", "its queue is lost");
    }
    victim.has(100, local(7801))?;
    victim.has(101, local(7802))?;
    victim.is_fine()?;
    Ok(())
}

/// One message with the sockets, and one that is waited for until the service manager has read it.
fn into_the_store() -> Outcome {
    let sockets = [7811, 7812].map(|port| UdpSocket::bind(local(port)));
    let [first, second] = sockets;
    let (first, second) = (first?, second?);
    done(["dump", &target(&first), &target(&second), "-o", "two.skc"])?.quiet()?;
    drop((first, second));
    let words = ["restore", "two.skc", "--fdstore", "dns"];
    refused(words)?
        .says(&["NOTIFY_SOCKET"])?
        .helps("FileDescriptorStoreMax")?;
    let nobody = sockcr(words).variable("NOTIFY_SOCKET", "/no/such/socket");
    nobody
        .run()?
        .refused()?
        .says(&["/no/such/socket", "no such file"])?;
    let path = std::env::current_dir()?.join("manager");
    let manager = UnixDatagram::bind(&path)?;
    let command = sockcr(words).variable("NOTIFY_SOCKET", &path).start()?;
    let (text, stored) = message(&manager)?;
    ensure!(text == "FDSTORE=1\nFDNAME=dns", "{text}");
    let stored: Vec<UdpSocket> = stored.into_iter().map(UdpSocket::from).collect();
    let ports: Result<Vec<u16>, _> = stored.iter().map(|s| Ok(s.local_addr()?.port())).collect();
    ensure!(
        matches!(ports, Ok::<_, std::io::Error>(ports) if ports == [7811, 7812]),
        "{stored:?}"
    );
    let (text, barrier) = message(&manager)?;
    ensure!(
        text == "BARRIER=1" && barrier.len() == 1,
        "{text} {barrier:?}"
    );
    ensure!(
        !command.ends_within(Duration::from_millis(100))?,
        "did not wait"
    );
    drop(barrier);
    ensure!(command.end()?.success(), "the command failed");
    Ok(())
}

fn message(manager: &UnixDatagram) -> anyhow::Result<(String, Vec<OwnedFd>)> {
    ensure!(wait::readable(manager, wait::PATIENCE)?, "no message");
    let mut space = [MaybeUninit::uninit(); 128];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 200];
    let mut pieces = [IoSliceMut::new(&mut data)];
    let got = recvmsg(manager, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let messages = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    let fds = messages.flatten().collect();
    Ok((
        String::from_utf8_lossy(&data[..got.bytes]).into_owned(),
        fds,
    ))
}
