//! The sockets that send what becomes datagrams, and the ways they go.
//!
//! | the datagram went to | we send to | why |
//! |---|---|---|
//! | this host, or what was | 0.0.0.0 | local without a route, for every device (`rt_iif`), `ip_route_output_key_hash_rcu` |
//! | a group, or everybody | 224.0.0.1 with TTL 0 | comes back in by the device, goes out by none (`ip_mc_output`) |

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use sockcr_sys::message::{Outgoing, add_control, send_many};
use sockcr_sys::sockopt;

use super::program::TRANSIT_PROTOCOL;
use super::record::{NO_OPERATION, padded_options};
use super::{Datagram, LOOPBACK};

const SOL_SOCKET: i32 = 1;
const SO_SNDBUFFORCE: i32 = 32;
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
    /// The way of a datagram.
    pub fn of(datagram: &Datagram<'_>) -> Self {
        let group = is_for_many(datagram);
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

/// To one of this host IP_PKTINFO tells the address that it went to, else one by which the sender
/// could be answered (`fib_compute_spec_dst`). Where nothing is told it makes no difference.
fn is_for_many(datagram: &Datagram<'_>) -> bool {
    let address = datagram.destination.ip();
    match datagram.local {
        Some(local) => local != *address,
        None => address.is_multicast() || address.is_broadcast(),
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
