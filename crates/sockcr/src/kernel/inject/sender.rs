//! The sockets that send what becomes datagrams, and the ways they go.
//!
//! | the datagram went to | we send to | why |
//! |---|---|---|
//! | this host, or what was | 0.0.0.0 | local without a route, for every device (`rt_iif`), `ip_route_output_key_hash_rcu` |
//! | a group, or everybody | 224.0.0.1 with TTL 0 | comes back in by the device, goes out by none (`ip_mc_output`) |

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use sockcr_sys::message::{Outgoing, add_control, send_many};
use sockcr_sys::sockopt;

use super::program::TRANSIT_PROTOCOL;
use super::record::{NO_OPERATION, padded_options};
use super::{Datagram, LOOPBACK};

const SOL_SOCKET: i32 = 1;
const SO_BROADCAST: i32 = 6;
const SO_SNDBUFFORCE: i32 = 32;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_IP: i32 = 0;
const IP_TOS: i32 = 1;
const IP_RETOPTS: i32 = 7;
const IP_PKTINFO: i32 = 8;
const IP_MTU_DISCOVER: i32 = 10;
const IP_MULTICAST_TTL: i32 = 33;
const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;

const PMTUDISC_DONT: i32 = 0;
const SEND_BUFFER: i32 = 1 << 22;

/// How one datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The device it comes in by; 0: the loopback device, with nothing said.
    pub device: u32,
    /// As a multicast: what comes of IP_PKTINFO differs.
    pub group: bool,
    /// In segments of the size that the datagram has.
    pub segments: bool,
    /// IP_PKTINFO is to tell of it.
    pub tells: bool,
}

impl Way {
    /// The way of a datagram; `group`: its destination is a multicast or broadcast address.
    pub fn of(datagram: &Datagram<'_>, group: bool) -> Self {
        let device = match (datagram.interface, group) {
            (0 | LOOPBACK, true) => LOOPBACK,
            (LOOPBACK, false) => 0,
            (device, _) => device,
        };
        let size = usize::from(datagram.segment_size);
        Self {
            device,
            group,
            segments: (1..datagram.payload.len()).contains(&size) && datagram.ip_options.is_empty(),
            tells: datagram.interface != 0,
        }
    }

    /// The same by the loopback device, which IP_PKTINFO is then not to tell.
    pub fn by_loopback(self) -> Self {
        Self {
            device: if self.group { LOOPBACK } else { 0 },
            tells: false,
            ..self
        }
    }

    /// Whether both can be sent by one call.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.segments, self.tells) == (other.segments, other.tells)
    }

    fn address(&self) -> Ipv4Addr {
        match self.group {
            true => Ipv4Addr::new(224, 0, 0, 1),
            false => Ipv4Addr::UNSPECIFIED,
        }
    }
}

/// The sending sockets.
#[derive(Debug)]
pub struct Sender {
    raw: OwnedFd,
    /// For segments.
    udp: OwnedFd,
    /// The port of `udp`, which nobody else has.
    port: u16,
    secret: i32,
}

impl Sender {
    /// Opens the sockets in the network namespace of this thread.
    pub fn open(secret: i32) -> io::Result<Self> {
        let number = std::num::NonZeroU32::new(u32::from(TRANSIT_PROTOCOL));
        let udp = socket(SocketType::DGRAM, None)?;
        rustix::net::bind(&udp, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))?;
        let name = SocketAddrV4::try_from(rustix::net::getsockname(&udp)?)?;
        Ok(Self {
            raw: socket(SocketType::RAW, number.map(Protocol::from_raw))?,
            udp,
            port: name.port(),
            secret,
        })
    }

    /// The port that the segments are sent from and to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends datagrams, whose records are in their order, until one fails; answers how many.
    pub fn send(&self, datagrams: &[Datagram<'_>], ways: &[Way]) -> io::Result<usize> {
        let tags: Vec<[[u8; 4]; 2]> = (0..datagrams.len() as u32)
            .map(|number| [number.to_ne_bytes(), self.secret.to_ne_bytes()])
            .collect();
        let mut controls = Vec::with_capacity(datagrams.len());
        for (at, (datagram, way)) in datagrams.iter().zip(ways).enumerate() {
            controls.push(control(datagram, *way, at)?);
        }
        let segments = ways.first().is_some_and(|way| way.segments);
        let (socket, port) = match segments {
            true => (&self.udp, self.port),
            false => (&self.raw, 0),
        };
        let together = datagrams.iter().zip(ways).zip(&tags).zip(&controls);
        let outgoing: Vec<Outgoing<'_>> = together
            .map(|(((datagram, way), tag), control)| Outgoing {
                to: SocketAddrV4::new(way.address(), port),
                control,
                parts: match segments {
                    true => [datagram.payload, &[]],
                    false => [tag.as_flattened(), datagram.payload],
                },
            })
            .collect();
        send_many(socket.as_fd(), &outgoing, 0)
    }
}

impl Sender {
    /// Sends the packet of the first record, whose body is this.
    pub fn send_tagged(&self, body: &[u8]) -> io::Result<()> {
        let tag = [0_u32.to_ne_bytes(), self.secret.to_ne_bytes()];
        let one = Outgoing {
            to: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
            control: &[],
            parts: [tag.as_flattened(), body],
        };
        send_many(self.raw.as_fd(), &[one], 0).map(drop)
    }
}

fn socket(kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, protocol)?;
    let options = [
        (SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER),
        (IPPROTO_IP, IP_MULTICAST_TTL, 0),
        // One larger than the device's MTU comes back in before it would be split.
        (IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT),
    ];
    for (level, name, value) in options {
        sockopt::set(socket.as_fd(), level, name, &value.to_ne_bytes())?;
    }
    Ok(socket)
}

/// The control messages of the datagram whose record has this number.
fn control(datagram: &Datagram<'_>, way: Way, number: usize) -> io::Result<Vec<u8>> {
    let mut control = Vec::new();
    if way.device != 0 {
        let device = [way.device.to_ne_bytes(), [0; 4], [0; 4]];
        add_control(&mut control, IPPROTO_IP, IP_PKTINFO, device.as_flattened());
    }
    if !datagram.ip_options.is_empty() {
        let options = padded_options(datagram).ok_or(io::ErrorKind::InvalidInput)?;
        let room = vec![NO_OPERATION; options.len()];
        add_control(&mut control, IPPROTO_IP, IP_RETOPTS, &room);
    }
    if way.segments {
        let size = datagram.segment_size.to_ne_bytes();
        add_control(&mut control, SOL_UDP, UDP_SEGMENT, &size);
        let number = i32::try_from(number).map_err(io::Error::other)?;
        add_control(&mut control, IPPROTO_IP, IP_TOS, &number.to_ne_bytes());
    }
    Ok(control)
}

/// Knows which addresses are for many.
#[derive(Debug)]
pub struct Groups {
    probe: OwnedFd,
    known: HashMap<(u32, Ipv4Addr), bool>,
}

impl Groups {
    /// Knows nothing yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            probe: crate::netns::probe()?,
            known: HashMap::new(),
        })
    }

    /// Whether a datagram was for a group or for everybody, as this host sees its destination.
    pub fn has(&mut self, datagram: &Datagram<'_>) -> bool {
        let address = *datagram.destination.ip();
        if address.is_multicast() || address.is_broadcast() {
            return true;
        }
        if address.is_loopback() || address.is_unspecified() {
            return false;
        }
        let key = (datagram.interface, address);
        let probe = &self.probe;
        *self.known.entry(key).or_insert_with(|| {
            // What came by one device may be for everybody on the network of another.
            let anywhere = is_broadcast(probe, 0, address).unwrap_or(false);
            anywhere || is_broadcast(probe, key.0, address).unwrap_or(false)
        })
    }
}

/// Asks for a route: to a broadcast address a socket may connect only with SO_BROADCAST
/// (`__ip4_datagram_connect`).
fn is_broadcast(probe: &OwnedFd, device: u32, address: Ipv4Addr) -> io::Result<bool> {
    let to = SocketAddrV4::new(address, 9);
    let connect = |allowed: u32| {
        sockopt::set(
            probe.as_fd(),
            SOL_SOCKET,
            SO_BROADCAST,
            &allowed.to_ne_bytes(),
        )?;
        rustix::net::connect_unspec(probe)?;
        let device = device.to_ne_bytes();
        sockopt::set(probe.as_fd(), SOL_SOCKET, SO_BINDTOIFINDEX, &device)?;
        Ok::<_, io::Error>(rustix::net::connect(probe, &to))
    };
    Ok(connect(0)? == Err(Errno::ACCESS) && connect(1)?.is_ok())
}
