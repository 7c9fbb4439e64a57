//! Sockets of this process.

use crate::wait;
use anyhow::{Context, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// This port of loopback.
pub fn local(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A UDP socket that is not bound.
pub fn unbound() -> anyhow::Result<OwnedFd> {
    unbound_of(AddressFamily::INET)
}

/// The same of this family.
pub fn unbound_of(family: AddressFamily) -> anyhow::Result<OwnedFd> {
    Ok(socket_with(
        family,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// How the command names a descriptor of this process.
pub fn target(socket: &impl AsRawFd) -> String {
    format!("{}:{}", std::process::id(), socket.as_raw_fd())
}

/// Its inode.
pub fn inode(socket: impl AsFd) -> anyhow::Result<u64> {
    Ok(rustix::fs::fstat(socket)?.st_ino)
}

/// Its SO_COOKIE.
pub fn cookie(socket: impl AsFd) -> anyhow::Result<u64> {
    const SOL_SOCKET: i32 = 1;
    const SO_COOKIE: i32 = 57;
    let mut cookie = [0; 8];
    sockcr_sys::sockopt::get(socket.as_fd(), SOL_SOCKET, SO_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// Whether the server there sends back what it gets.
pub fn echoes(server: SocketAddr) -> anyhow::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.send_to(b"are you there?", server)?;
    ensure!(
        wait::readable(&socket, wait::PATIENCE)?,
        "{server} sends nothing back"
    );
    let mut answer = [0; 64];
    let (length, _) = socket.recv_from(&mut answer)?;
    ensure!(
        &answer[..length] == b"are you there?",
        "{server} sends back something else"
    );
    Ok(())
}

/// A duplicate of a descriptor of a process.
pub fn of_process(pid: i32, fd: i64) -> anyhow::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).context("no pid")?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let flags = PidfdGetfdFlags::empty();
    Ok(pidfd_getfd(&pidfd, fd.try_into()?, flags)?)
}
