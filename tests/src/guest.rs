//! A client of the service that is told who to be and what to ask: each line is an order, answered with JSON.

use crate::process::Process;
use crate::service::{Raw, SOCKET, Service};
use crate::socket;
use crate::{actor, harness, wait};
use anyhow::{Context, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{DumpableBehavior, Gid, Signal, Uid, geteuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde_json::{Value as Json, json};
use sockcr::Checkpoint;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `unshare`: a user namespace.
const CLONE_NEWUSER: i32 = 0x1000_0000;
/// `unshare`: a network namespace.
const CLONE_NEWNET: i32 = 0x4000_0000;

/// One that runs.
#[derive(Debug)]
pub struct Guest(Process);

impl Guest {
    /// Starts one, which does what it is told in this order.
    pub fn start(orders: &[&str]) -> anyhow::Result<Guest> {
        let mut guest = Guest(actor::start("guest", &[])?.0);
        for order in orders {
            guest.tell(order)?;
        }
        Ok(guest)
    }

    /// Its number.
    pub fn pid(&self) -> i32 {
        self.0.pid()
    }

    /// Has it do something, and answers what it says.
    pub fn tell(&mut self, order: &str) -> anyhow::Result<Json> {
        self.begin(order)?;
        self.end(order)
    }

    /// Tells it to do something; [`Guest::end`] has what it says.
    pub fn begin(&mut self, order: &str) -> anyhow::Result<()> {
        self.0.tell(order)
    }

    /// What it says.
    pub fn end(&mut self, order: &str) -> anyhow::Result<Json> {
        let told = self.0.facts().with_context(|| order.to_owned())?;
        match &told["failed"] {
            Json::Null => Ok(told),
            failed => bail!("{order}: {failed}"),
        }
    }

    /// The errno of what it asks the service.
    pub fn errno(&mut self, order: &str) -> anyhow::Result<i32> {
        let told = self.tell(order)?;
        let errno = told["errno"].as_i64().context("no errno")?;
        Ok(errno.try_into()?)
    }

    /// Gives it a socket, which it passes from now on.
    pub fn give(&mut self, socket: &impl AsFd) -> anyhow::Result<()> {
        let name = format!("door-{}", self.pid());
        let door = UnixListener::bind(&name)?;
        std::fs::set_permissions(&name, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        self.0.tell(&format!("take {name}"))?;
        let (line, _) = door.accept()?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        let passed = [socket.as_fd()];
        ensure!(beside.push(SendAncillaryMessage::ScmRights(&passed)));
        sendmsg(
            &line,
            &[IoSlice::new(b".")],
            &mut beside,
            SendFlags::empty(),
        )?;
        self.0.facts()?;
        Ok(std::fs::remove_file(&name)?)
    }

    /// Waits for its end.
    pub fn kill(self) -> anyhow::Result<()> {
        self.0.kill().map(drop)
    }
}

#[derive(Default)]
struct State {
    held: Vec<UdpSocket>,
    passed: Option<OwnedFd>,
    line: Option<Raw>,
}

/// Does what it is told; goes on with a connection, if there is one.
pub(crate) fn main(connection: &[String]) -> anyhow::Result<()> {
    let mut state = State::default();
    if let [connection] = connection {
        let socket = sockcr_sys::descriptor::duplicate(connection.parse()?)?;
        state.line = Some(Raw::of(socket));
    }
    actor::say(&json!({}))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let told = match state.order(&words) {
            Ok(told) => told,
            Err(error) => json!({ "failed": format!("{error:#}") }),
        };
        actor::say(&told)?;
    }
    Ok(())
}

impl State {
    fn order(&mut self, words: &[&str]) -> anyhow::Result<Json> {
        match words {
            ["net", pid] => enter(pid, "net", LinkNameSpaceType::Network)?,
            ["user-of", pid] => {
                enter(pid, "user", LinkNameSpaceType::User)?;
                be(0, None)?;
            }
            ["unshare", "user"] => unshare(CLONE_NEWUSER)?,
            ["unshare", "net"] => unshare(CLONE_NEWNET)?,
            ["unshare", "both"] => unshare(CLONE_NEWUSER | CLONE_NEWNET)?,
            ["be", user] => be(user.parse()?, None)?,
            ["be", user, capabilities @ ..] => be(user.parse()?, Some(capabilities))?,
            ["hold", address] => return self.hold(address),
            ["take", door] => self.passed = Some(take(door)?),
            ["connect", path] => {
                let line = Raw::connect(path.as_ref())?;
                let fd = line.as_fd().as_raw_fd();
                self.line = Some(line);
                return Ok(json!({ "fd": fd }));
            }
            ["lower", user] => effective(user.parse()?)?,
            ["raise"] => effective(0)?,
            ["who"] => return Ok(json!({ "user": geteuid().as_raw() })),
            ["exec", program] => return Err(self.exec(program)),
            ["again", times, target] => return self.again(times.parse()?, target),
            ["inode", inode] => {
                let told = self.line()?.dump_inode(inode.parse()?)?;
                return Ok(json!({ "errno": told.errno(), "told": format!("{:?}", told.fault) }));
            }
            ["save", inode, image] => {
                let told = self.line()?.dump_inode(inode.parse()?)?.done()?;
                std::fs::write(format!("nobody/{image}"), told.canonical()?)?;
            }
            ["target", target] => {
                let told = self.line()?.dump_target(target)?;
                return Ok(json!({ "errno": told.errno(), "told": format!("{:?}", told.fault) }));
            }
            ["passed"] => {
                let passed = self.passed.take().context("nothing was given")?;
                let told = self.line()?.dump_passed(&passed);
                self.passed = Some(passed);
                let told = told?;
                return Ok(json!({ "errno": told.errno(), "told": format!("{:?}", told.fault) }));
            }
            ["restore", image] => return self.restore(image),
            _ => bail!("{words:?}: no such order"),
        }
        Ok(json!({}))
    }

    fn line(&mut self) -> anyhow::Result<&mut Raw> {
        self.line.as_mut().context("is not connected")
    }

    /// Becomes this program, which is this one with the rights that the file gives, with its connection open.
    fn exec(&mut self, program: &str) -> anyhow::Error {
        let mut run = || -> anyhow::Result<std::convert::Infallible> {
            let connection = self.line()?;
            let line = connection.as_fd();
            sockcr_sys::descriptor::set_close_on_exec(line, false)?;
            let parent = rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid());
            let mut command = Command::new(program);
            command.args([harness::ACTOR, &parent.to_string(), "guest"]);
            Err(command.arg(line.as_raw_fd().to_string()).exec().into())
        };
        match run() {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Asks for the same again and again; the answers that there were: errno, or the address of the socket.
    fn again(&mut self, times: u32, target: &str) -> anyhow::Result<Json> {
        let line = self.line()?;
        let mut answers = BTreeSet::new();
        for _ in 0..times {
            let told = line.dump_target(target)?;
            answers.insert(match told.errno() {
                0 => {
                    let sockets = told.sockets()?;
                    let locals = sockets
                        .iter()
                        .map(|socket| socket.endpoint.local.to_string());
                    locals.collect::<Vec<_>>().join(" ")
                }
                errno => errno.to_string(),
            });
        }
        Ok(json!(answers))
    }

    fn hold(&mut self, address: &str) -> anyhow::Result<Json> {
        let socket = UdpSocket::bind(address)?;
        let facts = json!({
            "fd": socket.as_raw_fd(),
            "inode": socket::inode(&socket)?,
        });
        self.held.push(socket);
        Ok(facts)
    }

    /// Restores, and looks at what it has got.
    fn restore(&mut self, image: &str) -> anyhow::Result<Json> {
        let checkpoint = Checkpoint::from_bytes(&std::fs::read(image)?)?;
        let told = self.line()?.restore(&checkpoint)?;
        let fault = json!({ "errno": told.errno(), "told": format!("{:?}", told.fault) });
        let Some(fd) = told.fd else {
            return Ok(fault);
        };
        let here = sockcr::netns::cookie(fd.as_fd())? == sockcr::netns::own_cookie()?;
        ensure!(here, "it is in another network namespace");
        let owner = rustix::fs::fstat(&fd)?.st_uid;
        ensure!(
            owner == geteuid().as_raw(),
            "it is one of user {owner}, not of {:?}",
            geteuid()
        );
        ensure!(
            sockcr_sys::descriptor::close_on_exec(fd.as_fd())?,
            "it is not closed by execve"
        );
        let socket = UdpSocket::from(fd);
        socket.set_nonblocking(true)?;
        let mut room = [0; 64];
        let mut waited = Vec::new();
        while let Ok((length, from)) = socket.recv_from(&mut room) {
            waited.push(json!([from, String::from_utf8_lossy(&room[..length])]));
        }
        let address = socket.local_addr()?;
        let sender = UdpSocket::bind(crate::socket::local(0))?;
        sender.send_to(b"are you there?", address)?;
        ensure!(
            wait::readable(&socket, wait::PATIENCE)?,
            "what is sent to it does not come"
        );
        let (length, from) = socket.recv_from(&mut room)?;
        ensure!(
            &room[..length] == b"are you there?" && from == sender.local_addr()?,
            "something else came"
        );
        let number = |level, name| -> anyhow::Result<i32> {
            let mut value = [0; 4];
            sockcr_sys::sockopt::get(socket.as_fd(), level, name, &mut value)?;
            Ok(i32::from_ne_bytes(value))
        };
        Ok(json!({
            "errno": 0,
            "local": address,
            "waited": waited,
            // SO_MARK, IP_TRANSPARENT, SO_RCVBUF
            "options": [number(1, 36)?, number(0, 19)?, number(1, 8)?],
        }))
    }
}

fn enter(pid: &str, name: &str, kind: LinkNameSpaceType) -> anyhow::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/{name}"))?;
    Ok(move_into_link_name_space(namespace.as_fd(), Some(kind))?)
}

/// Moves into new namespaces; as root of the user namespace.
fn unshare(flags: i32) -> anyhow::Result<()> {
    let (user, group) = (geteuid().as_raw(), rustix::process::getegid().as_raw());
    sockcr_sys::netns::unshare(flags)?;
    if flags & CLONE_NEWUSER != 0 {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    if flags & CLONE_NEWNET != 0 {
        sockcr_sys::interface::bring_up(socket::unbound()?.as_fd(), "lo")?;
    }
    Ok(())
}

/// Becomes this user, with these capabilities only where some are said: `-` is none.
fn be(user: u32, capabilities: Option<&[&str]>) -> anyhow::Result<()> {
    // Only who had others may not be able to.
    if !rustix::process::getgroups()?.is_empty() {
        set_thread_groups(&[])?;
    }
    set_keep_capabilities(capabilities.is_some())?;
    let (group, id) = (Gid::from_raw(user), Uid::from_raw(user));
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(id, id, id)?;
    if let Some(names) = capabilities {
        let mut kept = CapabilitySet::empty();
        for name in names {
            kept |= match *name {
                "-" => CapabilitySet::empty(),
                "net_admin" => CapabilitySet::NET_ADMIN,
                "net_raw" => CapabilitySet::NET_RAW,
                "checkpoint_restore" => CapabilitySet::CHECKPOINT_RESTORE,
                name => bail!("{name}: no such capability"),
            };
        }
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)?;
    }
    // Its own files of /proc belong to it, as to any program that the user starts.
    Ok(set_dumpable_behavior(DumpableBehavior::Dumpable)?)
}

/// Becomes this user in what counts, and may become another one again.
fn effective(user: u32) -> anyhow::Result<()> {
    let root = Uid::ROOT;
    Ok(set_thread_res_uid(root, Uid::from_raw(user), root)?)
}

/// What is handed through the door.
fn take(door: &str) -> anyhow::Result<OwnedFd> {
    let line = UnixStream::connect(door)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(&line, &mut [IoSliceMut::new(&mut byte)], &mut beside, flags)?;
    let mut rights = beside.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rights.next().context("nothing was handed")
}

/// In a PID namespace of its own: what a process gains that gets the number of another one.
pub(crate) fn reused() -> anyhow::Result<()> {
    actor::say(&match numbers_used_again() {
        Ok(()) => json!("ok"),
        Err(error) => json!(format!("{error:#}")),
    })
}

/// Starts one that has this number, which nobody has.
fn start_as(pid: i32, orders: &[&str]) -> anyhow::Result<Guest> {
    wait::until("a process with this number", || {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let guest = Guest::start(&[])?;
        Ok((guest.pid() == pid).then_some(guest))
    })
    .and_then(|mut guest| {
        for order in orders {
            guest.tell(order)?;
        }
        Ok(guest)
    })
}

fn numbers_used_again() -> anyhow::Result<()> {
    const EPERM: i32 = 1;
    const ROUNDS: u32 = 60;
    let service = Service::start()?;
    let connect = format!("connect {SOCKET}");
    let mut owned = Guest::start(&["be 4001"])?;
    let inode = owned.tell("hold 127.0.0.1:7082")?["inode"].clone();
    let inode = inode.as_u64().context("no inode")?;

    // The client, who might, has ended before it was looked at, and one with all rights has its number.
    service.process.signal(Signal::STOP)?;
    let mut client = Guest::start(&["be 4001"])?;
    let fd = client.tell(&connect)?["fd"].as_i64().context("no fd")?;
    let mut line = Raw::of(socket::of_process(client.pid(), fd)?);
    let pid = client.pid();
    client.kill()?;
    let other = start_as(pid, &[])?;
    service.process.signal(Signal::CONT)?;
    let told = line.dump_inode(inode)?;
    ensure!(told.errno() == EPERM, "the client has ended: {told:?}");
    drop((line, other));

    // The owner of a socket ends at any moment, and somebody else has its number, and a socket at the same
    // descriptor.
    let mut client = Guest::start(&["be 4001", &connect])?;
    let mut both = BTreeSet::new();
    let first = Guest::start(&["be 4001"])?;
    let pid = first.pid();
    first.kill()?;
    for round in 0..ROUNDS {
        let mut one = start_as(pid, &["be 4001"])?;
        let fd = one.tell("hold 127.0.0.1:7083")?["fd"].clone();
        let order = format!("again 200 {pid}:{fd}");
        client.begin(&order)?;
        // Not always at the same moment.
        wait::pause(std::time::Duration::from_micros(u64::from(round) * 200))?;
        one.kill()?;
        let mut other = start_as(pid, &["be 4002"])?;
        let same = other.tell("hold 127.0.0.1:7084")?["fd"].clone();
        ensure!(same == fd, "another descriptor: {same}, not {fd}");
        let answers: BTreeSet<String> = serde_json::from_value(client.end(&order)?)?;
        // With the other one there for certain.
        let last: BTreeSet<String> =
            serde_json::from_value(client.tell(&format!("again 1 {pid}:{fd}"))?)?;
        ensure!(
            last == BTreeSet::from([EPERM.to_string()]),
            "of another user: {last:?}"
        );
        both.extend(answers);
        other.kill()?;
    }
    let due = ["1", "127.0.0.1:7083", "2"].map(str::to_owned);
    ensure!(
        both.is_subset(&due.into()),
        "somebody else's socket: {both:?}"
    );
    ensure!(
        both.contains("127.0.0.1:7083") && both.len() > 1,
        "it never ended meanwhile: {both:?}"
    );
    Ok(())
}
