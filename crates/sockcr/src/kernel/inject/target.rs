//! The new socket while datagrams are put into it: bound to a port of its own, since an unbound one
//! cannot be in a map, with a filter that knows our packets, and with the options that delivery needs.
//! Afterwards it is as before. It is never connected: an AF_INET6 socket that was stays deaf to all
//! others (`__udp_disconnect` leaves `sk_v6_daddr`).
//!
//! A socket that is in its place already ([`Mode::Live`]) keeps all of that, and its own filter.

use std::io;
use std::os::fd::BorrowedFd;

use crate::state::endpoint::{bind_to_any, plain};
use crate::state::filter;
use crate::state::meanwhile::{self, Buffer, Meanwhile};

use rustix::io::Errno;
use sockcr_sys::guard::Step;
use sockcr_sys::sockopt;

use super::{Carries, Datagram, step};

const SOL_SOCKET: i32 = 1;
const SO_REUSEADDR: i32 = 2;
const SO_RCVBUF: i32 = 8;
const SO_REUSEPORT: i32 = 15;
const SO_RCVBUFFORCE: i32 = 33;
const SO_INCOMING_CPU: i32 = 49;
const SO_BINDTOIFINDEX: i32 = 62;
const SO_MEMINFO: i32 = 55;
const SO_BUF_LOCK: i32 = 72;
const IPPROTO_IP: i32 = 0;
const IP_PKTINFO: i32 = 8;
const IP_LOCAL_PORT_RANGE: i32 = 51;
const SOL_UDP: i32 = 17;
const UDP_NO_CHECK6_RX: i32 = 102;
const UDP_GRO: i32 = 104;
const IPPROTO_IPV6: i32 = 41;
const IPV6_RECVPKTINFO: i32 = 49;

/// Half of the largest receive buffer: the kernel doubles it.
const ROOM: i32 = i32::MAX / 2;

/// An option, and its value meanwhile. Sharing the port is off, or the kernel could choose one that
/// somebody has, and `inet_steal_sock` could choose another member of the group. Our datagrams have no
/// checksum.
const SETTINGS: [(i32, i32, i32); 5] = [
    (SOL_SOCKET, SO_REUSEADDR, 0),
    (SOL_SOCKET, SO_REUSEPORT, 0),
    (IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0),
    (SOL_UDP, UDP_GRO, 1),
    (SOL_UDP, UDP_NO_CHECK6_RX, 1),
];

/// How a socket gets its datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The program gives them to it, while it is bound to a port of its own.
    Unbound,
    /// The program gives them to it where it is, among what comes from others. They came under its own
    /// options, so none of those is touched that decides how others come.
    Live {
        /// The queue may be longer meanwhile than SO_RCVBUF allows.
        room: bool,
    },
    /// The kernel finds it by its port, where it is.
    Port,
    /// The kernel finds it by its protocol or its identifier, where it is, but for its device.
    Found,
}

impl Mode {
    /// That of a socket that nobody uses yet; all its datagrams are of one kind.
    pub fn of(datagrams: &[Datagram<'_>]) -> Self {
        match datagrams.first().map(|datagram| datagram.carries) {
            None | Some(Carries::Data) => Self::Unbound,
            Some(Carries::Lite { .. }) => Self::Port,
            Some(Carries::Message(_) | Carries::Packet) => Self::Found,
        }
    }

    /// Whether the program gives them to it.
    pub fn is_assigned(self) -> bool {
        matches!(self, Self::Unbound | Self::Live { .. })
    }
}

/// The prepared socket; [`Target::finish`] makes it unbound again.
#[derive(Debug)]
pub struct Target<'a> {
    pub socket: BorrowedFd<'a>,
    /// The hash of our packets.
    secret: i32,
    mode: Mode,
    meanwhile: Meanwhile<'a>,
    /// IP_PKTINFO as it is now; a raw socket of IPv6 has none.
    tells: Option<bool>,
}

impl<'a> Target<'a> {
    /// Binds the socket to a port of its own. A filter lets nothing in until [`Target::open`].
    /// One that the kernel finds stays where it is; a live one gets room only.
    pub fn prepare(socket: BorrowedFd<'a>, secret: i32, mode: Mode) -> io::Result<Self> {
        if mode == Mode::Unbound && plain(rustix::net::getsockname(socket)?)?.port() != 0 {
            let why = "only an unbound socket can get a queue";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let mut target = Self {
            socket,
            secret,
            mode,
            meanwhile: Meanwhile::new(socket),
            tells: None,
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
        if self.mode != (Mode::Live { room: false }) {
            self.meanwhile
                .room(Buffer::Receive, ROOM)
                .map_err(step("make room for the queue (SO_RCVBUFFORCE)"))?;
        }
        if let Mode::Live { .. } = self.mode {
            return Ok(());
        }
        filter::block(self.socket).map_err(step("filter while the queue is put back"))?;
        if !self.mode.is_assigned() {
            return Ok(());
        }
        bind_to_any(self.socket).map_err(step("bind meanwhile to a port of its own"))
    }

    fn set_options(&mut self) -> io::Result<()> {
        if let Mode::Live { .. } = self.mode {
            return Ok(());
        }
        // Delivery changes it, and leaving the port (`__udp_disconnect`).
        self.meanwhile.keep(SOL_SOCKET, SO_INCOMING_CPU)?;
        match self.mode {
            Mode::Unbound => {
                self.meanwhile.keep(SOL_SOCKET, SO_BINDTOIFINDEX)?;
                for (level, name, value) in SETTINGS {
                    self.meanwhile.set(level, name, value)?;
                }
            }
            // Elsewhere others may have its port.
            Mode::Port | Mode::Live { .. } => {}
            // What comes by the loopback device is not for one that is bound to another.
            Mode::Found => {
                self.meanwhile.set(SOL_SOCKET, SO_BINDTOIFINDEX, 0)?;
                let tells = self.meanwhile.keep(IPPROTO_IP, IP_PKTINFO);
                self.tells = tells.ok().map(|tells| tells != 0);
                return Ok(());
            }
        }
        self.tells = Some(self.meanwhile.keep(IPPROTO_IP, IP_PKTINFO)? != 0);
        // On an AF_INET6 socket it makes what comes by IPv4 tell of itself too.
        match self.meanwhile.set(IPPROTO_IPV6, IPV6_RECVPKTINFO, 0) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Ok(()),
            done => done,
        }
    }

    /// Lets datagrams in that the program has assigned to the socket.
    pub fn open(&self) -> io::Result<()> {
        match self.mode {
            Mode::Live { .. } => Ok(()),
            _ => filter::only_hash(self.socket, self.secret),
        }
    }

    /// Lets nothing in any more.
    pub fn close(&self) -> io::Result<()> {
        match self.mode {
            Mode::Live { .. } => Ok(()),
            _ => filter::block(self.socket),
        }
    }

    /// Whether datagrams that come now will tell IP_PKTINFO (`ipv4_pktinfo_prepare`).
    pub fn tell(&mut self, tells: bool) -> io::Result<()> {
        if self.tells.is_some_and(|now| now != tells) {
            meanwhile::set(self.socket, IPPROTO_IP, IP_PKTINFO, i32::from(tells))?;
            self.tells = Some(tells);
        }
        Ok(())
    }

    /// Takes address, port and peer away, and puts the options back. The queue stays
    /// (`__udp_disconnect`). The filter goes last.
    pub fn finish(&self) -> io::Result<()> {
        if self.mode != Mode::Unbound {
            return self.meanwhile.put_back();
        }
        let left = rustix::net::connect_unspec(self.socket).map_err(io::Error::from);
        let back = self.meanwhile.put_back();
        left.and(back).and(filter::unblock(self.socket))
    }
}

/// Whether the queue of a live socket would be longer with these than SO_RCVBUF allows.
pub fn lacks_room(socket: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> io::Result<bool> {
    // What a buffer counts for is at most this much more than its data.
    const OVERHEAD: usize = 2048;
    let memory = |datagram: &Datagram<'_>| 2 * datagram.payload.len() + OVERHEAD;
    let more: usize = datagrams.iter().map(memory).sum();
    let mut counters = [0; 36];
    sockopt::get(socket, SOL_SOCKET, SO_MEMINFO, &mut counters)?;
    let [a, b, c, d, e, f, g, h, ..] = counters;
    let used = u32::from_ne_bytes([a, b, c, d]) as usize;
    let limit = u32::from_ne_bytes([e, f, g, h]) as usize;
    Ok(used + more > limit)
}

/// What gives a live socket the room back that it has now.
pub fn room_now(socket: BorrowedFd<'_>) -> io::Result<Vec<Step>> {
    let mut buffer = Step::now(socket, SOL_SOCKET, SO_RCVBUF)?;
    // The kernel doubles what is set.
    let bytes: [u8; 4] = buffer.value.as_slice().try_into().unwrap_or_default();
    buffer.value = (i32::from_ne_bytes(bytes) / 2).to_ne_bytes().to_vec();
    buffer.name = SO_RCVBUFFORCE;
    // Setting it sets its lock.
    Ok(vec![buffer, Step::now(socket, SOL_SOCKET, SO_BUF_LOCK)?])
}
