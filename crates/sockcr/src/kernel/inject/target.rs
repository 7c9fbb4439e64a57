//! The new socket while datagrams are put into it: bound so that nobody reaches it, and with the
//! options that delivery needs. Afterwards it is as before.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;

use sockcr_sys::sockopt;

use crate::state::filter;

use super::step;

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_RCVBUF: i32 = 8;
const SO_REUSEPORT: i32 = 15;
const SO_RCVBUFFORCE: i32 = 33;
const SO_INCOMING_CPU: i32 = 49;
const SO_BINDTOIFINDEX: i32 = 62;
const SO_BUF_LOCK: i32 = 72;
const IPPROTO_IP: i32 = 0;
const IP_PKTINFO: i32 = 8;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const SOL_UDP: i32 = 17;
const UDP_GRO: i32 = 104;

const LOOPBACK: i32 = super::LOOPBACK as i32;
/// Half of the largest receive buffer: the kernel doubles it.
const ROOM: i32 = i32::MAX / 2;

/// An option, and its value meanwhile; None: the kernel changes it by itself.
type Meanwhile = (i32, i32, Option<i32>);

/// In the order of setting them. Sharing the port is off, or the kernel could choose one that
/// somebody has, and `inet_steal_sock` could choose another member of the group.
const MEANWHILE: [Meanwhile; 7] = [
    (SOL_SOCKET, SO_REUSEADDR, Some(0)),
    (SOL_SOCKET, SO_REUSEPORT, Some(0)),
    (SOL_SOCKET, SO_BINDTOIFINDEX, Some(LOOPBACK)),
    (SOL_SOCKET, SO_INCOMING_CPU, None),
    (IPPROTO_IP, IP_LOCAL_PORT_RANGE, Some(0)),
    (IPPROTO_IP, IP_PKTINFO, None),
    (SOL_UDP, UDP_GRO, Some(1)),
];

/// The prepared socket; [`Target::finish`] makes it unbound again.
#[derive(Debug)]
pub struct Target<'a> {
    pub socket: BorrowedFd<'a>,
    /// What [`MEANWHILE`] were before.
    before: Vec<(i32, i32, i32)>,
    buffer: i32,
    locks: i32,
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
        let before = MEANWHILE.iter().map(|(level, name, _)| {
            let value = get(socket, *level, *name)?;
            Ok((*level, *name, value))
        });
        let before: io::Result<Vec<_>> = before.collect();
        let mut target = Self {
            socket,
            before: before.map_err(step("read the options of the new socket"))?,
            buffer: get(socket, SOL_SOCKET, SO_RCVBUF)?,
            locks: get(socket, SOL_SOCKET, SO_BUF_LOCK)?,
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
        self.tells = get(self.socket, IPPROTO_IP, IP_PKTINFO)? != 0;
        for (level, name, value) in MEANWHILE {
            if let Some(value) = value {
                set(self.socket, level, name, value)
                    .map_err(step("prepare the new socket for its queue"))?;
            }
        }
        set(self.socket, SOL_SOCKET, SO_RCVBUFFORCE, ROOM)
            .map_err(step("make room for the queue (SO_RCVBUFFORCE)"))?;
        filter::block(self.socket).map_err(step("filter while the queue is put back"))?;
        self.connect_to_itself()
            .map_err(step("bind meanwhile on the loopback device"))
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
        filter::unblock(self.socket, &[])
    }

    /// Lets nothing in any more.
    pub fn close(&self) -> io::Result<()> {
        filter::block(self.socket)
    }

    /// Whether datagrams that come now will tell IP_PKTINFO (`ipv4_pktinfo_prepare`).
    pub fn tell(&mut self, tells: bool) -> io::Result<()> {
        if self.tells != tells {
            set(self.socket, IPPROTO_IP, IP_PKTINFO, i32::from(tells))?;
            self.tells = tells;
        }
        Ok(())
    }

    /// Takes address, port and peer away, and puts the options back. The queue stays
    /// (`__udp_disconnect`). The filter goes last.
    pub fn finish(&self) -> io::Result<()> {
        rustix::net::connect_unspec(self.socket)?;
        // The buffer first: setting it sets its lock.
        set(self.socket, SOL_SOCKET, SO_RCVBUFFORCE, self.buffer / 2)?;
        set(self.socket, SOL_SOCKET, SO_BUF_LOCK, self.locks)?;
        for (level, name, value) in &self.before {
            if get(self.socket, *level, *name)? != *value {
                set(self.socket, *level, *name, *value)?;
            }
        }
        self.open()
    }
}

fn get(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    sockopt::get(socket, level, name, &mut value)?;
    Ok(i32::from_ne_bytes(value))
}

fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    sockopt::set(socket, level, name, &value.to_ne_bytes())
}
