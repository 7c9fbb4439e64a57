//! Membership of IPv6 groups on the loopback device.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use sockcr_sys::sockopt;

use super::{LOOPBACK, step};

const IPPROTO_IPV6: i32 = 41;
const IPV6_ADD_MEMBERSHIP: i32 = 20;

/// A socket that hears nothing and is a member as long as it lives.
#[derive(Debug)]
pub struct Members {
    socket: OwnedFd,
    joined: BTreeSet<Ipv6Addr>,
}

impl Members {
    /// Of no group yet.
    pub fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        Ok(Self {
            socket: socket_with(AddressFamily::INET6, SocketType::DGRAM, flags, None)?,
            joined: BTreeSet::new(),
        })
    }

    /// Becomes a member of one more.
    pub fn join(&mut self, group: Ipv6Addr) -> io::Result<()> {
        if !self.joined.insert(group) {
            return Ok(());
        }
        let request = [&group.octets()[..], &LOOPBACK.to_ne_bytes()].concat();
        match sockopt::set(
            self.socket.as_fd(),
            IPPROTO_IPV6,
            IPV6_ADD_MEMBERSHIP,
            &request,
        ) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRINUSE) => Ok(()),
            done => done.map_err(step("join a group on the loopback device")),
        }
    }
}
