//! The new socket while datagrams are put into it: bound so that nobody reaches it, and with the
//! options that delivery needs. Afterwards it is as before.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;

use crate::state::filter;
use crate::state::meanwhile::{self, Buffer, Meanwhile};

use super::step;

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_REUSEPORT: i32 = 15;
const SO_INCOMING_CPU: i32 = 49;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_IP: i32 = 0;
const IP_PKTINFO: i32 = 8;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const SOL_UDP: i32 = 17;
const UDP_GRO: i32 = 104;

const LOOPBACK: i32 = super::LOOPBACK as i32;
/// Half of the largest receive buffer: the kernel doubles it.
const ROOM: i32 = i32::MAX / 2;

/// An option, and its value meanwhile. Sharing the port is off, or the kernel could choose one that
/// somebody has, and `inet_steal_sock` could choose another member of the group.
const SETTINGS: [(i32, i32, i32); 5] = [
    (SOL_SOCKET, SO_REUSEADDR, 0),
    (SOL_SOCKET, SO_REUSEPORT, 0),
    (SOL_SOCKET, SO_BINDTOIFINDEX, LOOPBACK),
    (IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0),
    (SOL_UDP, UDP_GRO, 1),
];

/// The prepared socket; [`Target::finish`] makes it unbound again.
#[derive(Debug)]
pub struct Target<'a> {
    pub socket: BorrowedFd<'a>,
    meanwhile: Meanwhile<'a>,
    /// IP_PKTINFO as it is now.
    tells: bool,
}

impl<'a> Target<'a> {
    /// Binds the socket to a port of its own and connects it to itself: only it could send there,
    /// and a socket with a peer is never exchanged for another of its group (`inet_steal_sock`).
    /// A filter lets nothing in until [`Target::open`].
    pub fn prepare(socket: BorrowedFd<'a>) -> io::Result<Self> {
        if SocketAddrV4::try_from(rustix::net::getsockname(socket)?)?.port() != 0 {
            let why = "only an unbound socket can get a queue";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut target = Self {
            socket,
            meanwhile: Meanwhile::new(socket),
            tells: false,
        };
        match target.take_place() {
            Ok(()) => Ok(target),
            Err(error) => {
                // Its own error would only hide the first.
                let _ = target.finish();
                Err(error)
            }
        }
    }

    fn take_place(&mut self) -> io::Result<()> {
        self.set_options()
            .map_err(step("prepare the new socket for its queue"))?;
        self.meanwhile
            .room(Buffer::Receive, ROOM)
            .map_err(step("make room for the queue (SO_RCVBUFFORCE)"))?;
        filter::block(self.socket).map_err(step("filter while the queue is put back"))?;
        self.connect_to_itself().map_err(step(
            "bind meanwhile on the loopback device, which must be up",
        ))
    }

    fn set_options(&mut self) -> io::Result<()> {
        // Delivery changes it.
        self.meanwhile.keep(SOL_SOCKET, SO_INCOMING_CPU)?;
        self.tells = self.meanwhile.keep(IPPROTO_IP, IP_PKTINFO)? != 0;
        for (level, name, value) in SETTINGS {
            self.meanwhile.set(level, name, value)?;
        }
        Ok(())
    }

    /// 0.0.0.0 is the own address, found without a route (`ip_route_output_key_hash_rcu`).
    fn connect_to_itself(&self) -> io::Result<()> {
        const ANY_PORT: u16 = 9;
        let own = |port| SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        rustix::net::connect(self.socket, &own(ANY_PORT))?;
        let name = SocketAddrV4::try_from(rustix::net::getsockname(self.socket)?)?;
        Ok(rustix::net::connect(self.socket, &own(name.port()))?)
    }

    /// Lets datagrams in: only what is assigned to the socket can come.
    pub fn open(&self) -> io::Result<()> {
        filter::unblock(self.socket)
    }

    /// Lets nothing in any more.
    pub fn close(&self) -> io::Result<()> {
        filter::block(self.socket)
    }

    /// Whether datagrams that come now will tell IP_PKTINFO (`ipv4_pktinfo_prepare`).
    pub fn tell(&mut self, tells: bool) -> io::Result<()> {
        if self.tells != tells {
            meanwhile::set(self.socket, IPPROTO_IP, IP_PKTINFO, i32::from(tells))?;
            self.tells = tells;
        }
        Ok(())
    }

    /// Takes address, port and peer away, and puts the options back. The queue stays
    /// (`__udp_disconnect`). The filter goes last.
    pub fn finish(&self) -> io::Result<()> {
        let left = rustix::net::connect_unspec(self.socket).map_err(io::Error::from);
        let back = self.meanwhile.put_back();
        left.and(back).and(self.open())
    }
}
