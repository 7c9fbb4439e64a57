//! A client of the service that is told who to be and what to ask: each line is an order, answered with JSON.

use crate::actor;
use crate::process::Process;
use crate::service::Raw;
use crate::socket;
use anyhow::{Context, bail, ensure};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{DumpableBehavior, Gid, Uid, geteuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use serde_json::{Value as Json, json};
use sockcr::Checkpoint;
use std::fs::File;
use std::io::{BufRead, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

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
        self.0.tell(order)?;
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

/// Does what it is told.
pub(crate) fn main() -> anyhow::Result<()> {
    actor::say(&json!("ready"))?;
    let mut state = State::default();
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
            ["connect", path] => self.line = Some(Raw::connect(path.as_ref())?),
            ["inode", inode] => {
                let told = self.line()?.dump_inode(inode.parse()?)?;
                return Ok(json!({ "errno": told.errno(), "told": format!("{:?}", told.fault) }));
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
            crate::wait::readable(&socket, crate::wait::PATIENCE)?,
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
