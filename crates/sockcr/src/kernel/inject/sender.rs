//! The sockets that send what becomes datagrams, and the ways they go.
//!
//! | the datagram went to | we send to | why |
//! |---|---|---|
//! | this host, or what was | 0.0.0.0 | local without a route, for every device (`rt_iif`), `ip_route_output_key_hash_rcu` |
//! | a group, or everybody | 224.0.0.1 with TTL 0 | comes back in by the device, goes out by none (`ip_mc_output`) |
//! | by IPv6 | an address that this host has on the device | local, and the device is told by the route (`ip6_rcv_core`) |

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, OwnedFd};

use crate::state::endpoint::plain;
use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};
use sockcr_sys::message::{Outgoing, add_control, send_many};
use sockcr_sys::sockopt;

use super::program::TRANSIT_PROTOCOL;
use super::record::{NO_OPERATION, padded_options};
use super::{Carries, Datagram, LOOPBACK};

const SOL_SOCKET: i32 = 1;
const SO_SNDBUFFORCE: i32 = 32;
const IPPROTO_IP: i32 = 0;
const IP_TOS: i32 = 1;
const IP_RETOPTS: i32 = 7;
const IP_PKTINFO: i32 = 8;
const IP_MTU_DISCOVER: i32 = 10;
const IP_MULTICAST_TTL: i32 = 33;
const IPPROTO_IPV6: i32 = 41;
const IPV6_MTU_DISCOVER: i32 = 23;
const IPV6_HOPLIMIT: i32 = 52;
const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;

const PMTUDISC_DONT: i32 = 0;
const SEND_BUFFER: i32 = 1 << 22;

/// How one datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// By IPv6.
    pub ipv6: bool,
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
        let ipv6 = datagram.destination.is_ipv6();
        let group = !ipv6
            && match datagram.carries {
                Carries::Data | Carries::Lite { .. } => is_for_many(datagram),
                Carries::Packet => datagram.is_icmp_packet() || is_for_many(datagram),
                Carries::Message(_) => false,
            };
        // One that is bound to a device hears nothing that comes by another.
        let interface = match (datagram.interface, datagram.carries) {
            (0, Carries::Lite { bound }) => bound,
            (interface, _) => interface,
        };
        let device = match (interface, group) {
            (0 | LOOPBACK, true) => LOOPBACK,
            (LOOPBACK, false) => 0,
            (device, _) => device,
        };
        let size = usize::from(datagram.segment_size);
        Self {
            ipv6,
            device,
            group,
            segments: (1..datagram.payload.len()).contains(&size)
                && datagram.ip_options.is_empty()
                && datagram.carries == Carries::Data,
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
        (self.ipv6, self.segments, self.tells) == (other.ipv6, other.segments, other.tells)
    }
}

/// To one of this host IP_PKTINFO tells the address that it went to, else one by which the sender
/// could be answered (`fib_compute_spec_dst`). Where nothing is told it makes no difference.
fn is_for_many(datagram: &Datagram<'_>) -> bool {
    let address = datagram.destination.ip();
    match datagram.local {
        Some(local) => local != address,
        None => address.is_multicast() || address == Ipv4Addr::BROADCAST,
    }
}

/// The sending sockets of one of the protocols.
#[derive(Debug)]
pub struct Sender {
    ipv6: bool,
    raw: OwnedFd,
    /// For segments.
    udp: OwnedFd,
    /// The port of `udp`, which nobody else has.
    port: u16,
    secret: i32,
    /// An IPv6 address of each device that has one.
    addresses: BTreeMap<u32, Ipv6Addr>,
}

impl Sender {
    /// Opens the sockets in the network namespace of this thread.
    pub fn open(ipv6: bool, secret: i32) -> io::Result<Self> {
        let number = std::num::NonZeroU32::new(u32::from(TRANSIT_PROTOCOL));
        let udp = socket(ipv6, SocketType::DGRAM, None)?;
        let any = match ipv6 {
            true => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        };
        rustix::net::bind(&udp, &SocketAddr::new(any, 0))?;
        let name = plain(rustix::net::getsockname(&udp)?)?;
        Ok(Self {
            ipv6,
            raw: socket(ipv6, SocketType::RAW, number.map(Protocol::from_raw))?,
            udp,
            port: name.port(),
            secret,
            addresses: match ipv6 {
                true => addresses()?,
                false => BTreeMap::new(),
            },
        })
    }

    /// The port that the segments are sent from and to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where what goes this way is sent; None: nothing leads there.
    fn to(&self, way: &Way, port: u16) -> Option<SocketAddr> {
        Some(match (self.ipv6, way.group, way.device) {
            (false, true, _) => SocketAddr::new(Ipv4Addr::new(224, 0, 0, 1).into(), port),
            (false, false, _) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port),
            (true, _, 0 | LOOPBACK) => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port),
            (true, _, device) => {
                SocketAddrV6::new(*self.addresses.get(&device)?, port, 0, device).into()
            }
        })
    }

    /// Sends datagrams, whose records are in their order, until one fails; answers how many.
    pub fn send(&self, datagrams: &[Datagram<'_>], ways: &[Way]) -> io::Result<usize> {
        let tags: Vec<Vec<u8>> = (0..)
            .zip(datagrams)
            .map(|(number, d)| self.tag(number, d))
            .collect();
        let segments = ways.first().is_some_and(|way| way.segments);
        let (socket, port) = match segments {
            true => (&self.udp, self.port),
            false => (&self.raw, 0),
        };
        let to = ways.iter().map_while(|way| self.to(way, port));
        let to: Vec<SocketAddr> = to.collect();
        if to.is_empty() {
            return Err(Errno::ADDRNOTAVAIL.into());
        }
        let mut controls = Vec::with_capacity(datagrams.len());
        for (at, (datagram, way)) in datagrams.iter().zip(ways).enumerate() {
            controls.push(control(datagram, *way, at)?);
        }
        let together = datagrams.iter().zip(to).zip(&tags).zip(&controls);
        let outgoing: Vec<Outgoing<'_>> = together
            .map(|(((datagram, to), tag), control)| Outgoing {
                to,
                control,
                parts: match segments {
                    true => [datagram.payload, &[]],
                    false => [tag, datagram.rest()],
                },
            })
            .collect();
        send_many(socket.as_fd(), &outgoing, 0)
    }

    /// The number and the secret, and with IPv6 room for the extension headers.
    fn tag(&self, number: u32, datagram: &Datagram<'_>) -> Vec<u8> {
        let mut tag = [number.to_ne_bytes(), self.secret.to_ne_bytes()].concat();
        if self.ipv6 {
            let extensions = datagram.ip_options.len().saturating_sub(1);
            tag.resize(tag.len() + extensions, 0);
        }
        tag
    }

    /// Sends the packet of the first record, whose body is this.
    pub fn send_tagged(&self, device: u32, body: &[u8]) -> io::Result<()> {
        let tag = [0_u32.to_ne_bytes(), self.secret.to_ne_bytes()];
        let way = Way {
            ipv6: self.ipv6,
            device,
            group: false,
            segments: false,
            tells: false,
        };
        let one = Outgoing {
            to: self.to(&way, 0).ok_or(Errno::ADDRNOTAVAIL)?,
            control: &[],
            parts: [tag.as_flattened(), body],
        };
        send_many(self.raw.as_fd(), &[one], 0).map(drop)
    }
}

/// The IPv6 addresses of the devices of this thread's network namespace that packets can be sent to
/// (`if6_seq_show`, net/ipv6/addrconf.c).
pub fn addresses() -> io::Result<BTreeMap<u32, Ipv6Addr>> {
    const TENTATIVE: u8 = 0x40;
    let table = match std::fs::read_to_string("/proc/thread-self/net/if_inet6") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        table => table?,
    };
    let entry = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [address, device, _, _, flags, ..] = words[..] else {
            return None;
        };
        let usable = u8::from_str_radix(flags, 16).ok()? & TENTATIVE == 0;
        let address = u128::from_str_radix(address, 16).ok().filter(|_| usable)?;
        let device = u32::from_str_radix(device, 16).ok()?;
        Some((device, Ipv6Addr::from(address)))
    };
    Ok(table.lines().filter_map(entry).collect())
}

fn socket(ipv6: bool, kind: SocketType, protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let family = match ipv6 {
        true => AddressFamily::INET6,
        false => AddressFamily::INET,
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?;
    let forced = (SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER);
    // One larger than the device's MTU comes back in before it would be split.
    let options = match ipv6 {
        true => vec![forced, (IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DONT)],
        false => vec![
            forced,
            (IPPROTO_IP, IP_MULTICAST_TTL, 0),
            (IPPROTO_IP, IP_MTU_DISCOVER, PMTUDISC_DONT),
        ],
    };
    for (level, name, value) in options {
        sockopt::set(socket.as_fd(), level, name, &value.to_ne_bytes())?;
    }
    Ok(socket)
}

/// The control messages of the datagram whose record has this number.
fn control(datagram: &Datagram<'_>, way: Way, number: usize) -> io::Result<Vec<u8>> {
    let mut control = Vec::new();
    if way.device != 0 && !way.ipv6 {
        let device = [way.device.to_ne_bytes(), [0; 4], [0; 4]];
        add_control(&mut control, IPPROTO_IP, IP_PKTINFO, device.as_flattened());
    }
    let options = padded_options(datagram).ok_or(io::ErrorKind::InvalidInput)?;
    if !options.is_empty() && !way.ipv6 {
        let room = vec![NO_OPERATION; options.len()];
        add_control(&mut control, IPPROTO_IP, IP_RETOPTS, &room);
    }
    if way.segments {
        let size = datagram.segment_size.to_ne_bytes();
        add_control(&mut control, SOL_UDP, UDP_SEGMENT, &size);
        let number = i32::try_from(number).map_err(io::Error::other)?;
        let (level, place) = match way.ipv6 {
            true => (IPPROTO_IPV6, IPV6_HOPLIMIT),
            false => (IPPROTO_IP, IP_TOS),
        };
        add_control(&mut control, level, place, &number.to_ne_bytes());
    }
    Ok(control)
}
