//! What comes to a socket from anybody: datagrams of every kind, and ICMP messages.
#![allow(dead_code, reason = "shared by tests that use parts of it")]

use super::support::octets::octets;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, socket_with};

use crate::message::send;
use crate::support::place::Device;
use crate::support::socket::{self, IP, IPV6, SOCKET, UDP, set, set_int};

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const SO_BROADCAST: i32 = 6;
const SO_PRIORITY: i32 = 12;
const SO_MARK: i32 = 36;
const IP_TOS: i32 = 1;
const IP_TTL: i32 = 2;
const IP_OPTIONS: i32 = 4;
const IP_MULTICAST_IF: i32 = 32;
const IP_MULTICAST_TTL: i32 = 33;
const UDP_SEGMENT: i32 = 103;
const IPV6_UNICAST_HOPS: i32 = 16;
const IPV6_MULTICAST_IF: i32 = 17;
const IPV6_MULTICAST_HOPS: i32 = 18;
const IPV6_HOPOPTS: i32 = 54;
const IPV6_DSTOPTS: i32 = 59;
const IPV6_TCLASS: i32 = 67;
/// The kinds of extension headers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const DESTINATION: u8 = 60;
const NUMBER_UDP: u8 = 17;
const ICMP: u32 = 1;
/// `IPPROTO_RAW`: what is sent begins with its IP header.
const RAW: u32 = 255;

fn raw(protocol: u32) -> io::Result<OwnedFd> {
    raw_of(AddressFamily::INET, protocol)
}

pub fn raw_of(family: AddressFamily, protocol: u32) -> io::Result<OwnedFd> {
    let protocol = RawProtocol::new(protocol).map(Protocol::from_raw);
    let kind = SocketType::RAW;
    Ok(socket_with(family, kind, SocketFlags::CLOEXEC, protocol)?)
}

/// An ICMP message about a datagram from a socket of this host.
#[derive(Clone, Debug)]
pub struct Told {
    pub kind: u8,
    pub code: u8,
    pub rest: [u8; 4],
    pub about: SocketAddr,
    pub quoted: Vec<u8>,
}

impl Told {
    pub fn new(kind: u8, code: u8) -> Told {
        Told {
            kind,
            code,
            rest: [0; 4],
            about: SocketAddr::new(Ipv4Addr::new(10, 20, 30, 40).into(), 53),
            quoted: b"the beginning".to_vec(),
        }
    }

    fn packet(&self, from: SocketAddr) -> Vec<u8> {
        let total = (28 + self.quoted.len()) as u16;
        let mut packet = vec![self.kind, self.code, 0, 0];
        packet.extend(self.rest);
        packet.extend([0x45, 0]);
        packet.extend(total.to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(octets(from.ip()));
        packet.extend(octets(self.about.ip()));
        packet.extend(from.port().to_be_bytes());
        packet.extend(self.about.port().to_be_bytes());
        packet.extend((total - 20).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(&self.quoted);
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum);
        packet
    }

    /// Tells it the socket that has this name, as a host with this TTL.
    pub fn tell(&self, from: SocketAddr, ttl: i32) -> io::Result<()> {
        let raw = raw(ICMP)?;
        set_int(&raw, IP, IP_TTL, ttl)?;
        let to = SocketAddr::new(HERE.into(), 0);
        send(&raw, to, &self.packet(from), &[], 0)
    }
}

fn checksum(bytes: &[u8]) -> [u8; 2] {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A datagram of IPv6, header by header.
pub struct Packet6<'a> {
    pub from: SocketAddrV6,
    pub to: SocketAddrV6,
    pub hops: u8,
    pub class: u8,
    pub flow_label: u32,
    /// The kind of each extension header, and its bytes; the first of them is written here.
    pub headers: &'a [(u8, &'a [u8])],
    /// With a checksum.
    pub summed: bool,
    pub data: &'a [u8],
}

/// Sends a whole packet of IPv6 to this host.
pub fn by_loopback6(packet: &[u8], to: Ipv6Addr) -> io::Result<()> {
    let raw = raw_of(AddressFamily::INET6, RAW)?;
    set_int(&raw, SOCKET, 32, 1 << 20)?;
    send(&raw, SocketAddr::new(to.into(), 0), packet, &[], 0)
}

/// The bytes of a packet.
pub fn packet6(of: &Packet6<'_>) -> Vec<u8> {
    let total = (of.data.len() + 8) as u16;
    let mut udp = of.from.port().to_be_bytes().to_vec();
    udp.extend(of.to.port().to_be_bytes());
    udp.extend(total.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(of.data);
    let addresses = [of.from.ip().octets(), of.to.ip().octets()].concat();
    if of.summed {
        let mut all = addresses.clone();
        all.extend(total.to_be_bytes());
        all.extend([0, NUMBER_UDP]);
        all.extend(&udp);
        let sum = checksum(&all);
        let sum = if sum == [0, 0] { [0xff; 2] } else { sum };
        udp[6..8].copy_from_slice(&sum);
    }
    let kinds = of.headers.iter().map(|(kind, _)| *kind);
    let kinds: Vec<u8> = kinds.chain([NUMBER_UDP]).collect();
    let length = of
        .headers
        .iter()
        .map(|(_, header)| header.len())
        .sum::<usize>()
        + udp.len();
    let word = 6 << 28 | u32::from(of.class) << 20 | of.flow_label & 0xf_ffff;
    let mut packet = word.to_be_bytes().to_vec();
    packet.extend((length as u16).to_be_bytes());
    packet.extend([kinds[0], of.hops]);
    packet.extend(addresses);
    for ((_, header), next) in of.headers.iter().zip(&kinds[1..]) {
        packet.push(*next);
        packet.extend(&header[1..]);
    }
    packet.extend(udp);
    packet
}

/// The address of IPv6 that stands for one of IPv4.
fn like(address: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = address.octets().map(u16::from);
    match address {
        Ipv4Addr::UNSPECIFIED => Ipv6Addr::UNSPECIFIED,
        address if address.is_link_local() => Ipv6Addr::new(0xfe80, 0, 0, 0, a, b, c, d),
        _ => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, a, b, c, d),
    }
}

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// What comes by the loopback device in one piece, behind all the headers that are drawn.
const LARGEST6: usize = 65_450;

/// How a datagram comes.
#[derive(Clone, Debug)]
pub enum By {
    /// From an address of this host.
    Loopback,
    /// To a group, by a device.
    Group(usize),
    /// To everybody, by a device; of IPv6, to all nodes.
    Broadcast(usize),
    /// From anybody, headers made by hand.
    Anybody(Ipv4Addr, u16),
    /// Cut by the kernel (UDP_SEGMENT), put together by the receiver's (UDP_GRO).
    Segments,
}

/// A datagram that comes.
#[derive(Clone, Debug)]
pub struct Heard {
    pub by: By,
    pub size: usize,
    pub ttl: u8,
    pub tos: u8,
    pub mark: i32,
    pub options: &'static [u8],
    /// By IPv4, where the socket hears both.
    pub ipv4: bool,
    /// Of IPv6 only, as the extension headers, each with its kind.
    pub flow_label: u32,
    pub headers: &'static [(u8, &'static [u8])],
}

impl Heard {
    /// Sends it to a socket with this name and peer.
    pub fn send(
        &self,
        to: SocketAddr,
        peer: Option<SocketAddr>,
        groups: (Ipv4Addr, Ipv6Addr),
        devices: &[Device],
    ) -> io::Result<()> {
        let data: Vec<u8> = (0..self.size)
            .map(|at| (at * 7 + self.size) as u8)
            .collect();
        let place = match to.ip() {
            IpAddr::V6(place) if place.is_unspecified() && self.ipv4 => HERE.into(),
            IpAddr::V6(place) if place.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            place if place.to_canonical().is_unspecified() => HERE.into(),
            place => place.to_canonical(),
        };
        let to = SocketAddr::new(place, to.port());
        let peer = peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        let peer = peer.filter(|peer| peer.is_ipv6() == to.is_ipv6());
        match place {
            IpAddr::V4(_) => self.send4(to, peer, groups.0, devices, &data),
            IpAddr::V6(place) => self.send6((place, to.port()), peer, groups.1, devices, &data),
        }
    }

    fn send6(
        &self,
        to: (Ipv6Addr, u16),
        peer: Option<SocketAddr>,
        group: Ipv6Addr,
        devices: &[Device],
        data: &[u8],
    ) -> io::Result<()> {
        let data = data.get(..LARGEST6).unwrap_or(data);
        let plain = SocketAddrV6::new(to.0, to.1, 0, 0);
        if let By::Anybody(source, port) = self.by {
            let source = peer.unwrap_or(SocketAddr::new(like(source).into(), port));
            return self.by_hand6(source, plain, data);
        }
        let socket = self.sender6(devices)?;
        let to = match self.by {
            By::Group(device) => SocketAddrV6::new(group, to.1, 0, devices[device].index),
            By::Broadcast(device) => SocketAddrV6::new(ALL_NODES, to.1, 0, devices[device].index),
            _ => plain,
        };
        send(&socket, to.into(), data, &[], 0)
    }

    fn sender6(&self, devices: &[Device]) -> io::Result<OwnedFd> {
        let device = match self.by {
            By::Group(device) | By::Broadcast(device) => devices.get(device),
            _ => None,
        };
        let from = device.map_or(Ipv6Addr::LOCALHOST, |device| device.address6);
        let socket = socket::of_family(AddressFamily::INET6)?;
        set_int(&socket, SOCKET, 32, 1 << 20)?;
        set_int(&socket, IPV6, IPV6_UNICAST_HOPS, self.ttl.into())?;
        set_int(&socket, IPV6, IPV6_MULTICAST_HOPS, self.ttl.into())?;
        set_int(&socket, IPV6, IPV6_TCLASS, self.tos.into())?;
        set_int(&socket, SOCKET, SO_MARK, self.mark)?;
        set_int(&socket, SOCKET, SO_PRIORITY, self.mark & 7)?;
        if let Some(device) = device {
            set_int(&socket, IPV6, IPV6_MULTICAST_IF, device.index as i32)?;
        }
        socket::bind(&socket, (from, 0))?;
        for (kind, header) in self.headers {
            let option = match *kind {
                HOP_BY_HOP => IPV6_HOPOPTS,
                DESTINATION => IPV6_DSTOPTS,
                _ => continue,
            };
            set(&socket, IPV6, option, header).map_err(io::Error::from_raw_os_error)?;
        }
        if let By::Segments = self.by {
            set_int(&socket, UDP, UDP_SEGMENT, 1 + (self.size / 9) as i32)?;
        }
        Ok(socket)
    }

    fn by_hand6(&self, from: SocketAddr, to: SocketAddrV6, data: &[u8]) -> io::Result<()> {
        let IpAddr::V6(source) = from.ip() else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let packet = packet6(&Packet6 {
            from: SocketAddrV6::new(source, from.port(), 0, 0),
            to,
            hops: self.ttl,
            class: self.tos,
            flow_label: self.flow_label,
            headers: self.headers,
            summed: true,
            data,
        });
        let raw = raw_of(AddressFamily::INET6, RAW)?;
        set_int(&raw, SOCKET, SO_MARK, self.mark)?;
        set_int(&raw, SOCKET, 32, 1 << 20)?;
        let there = SocketAddrV6::new(*to.ip(), 0, 0, to.scope_id());
        send(&raw, there.into(), &packet, &[], 0)
    }

    fn send4(
        &self,
        to: SocketAddr,
        peer: Option<SocketAddr>,
        group: Ipv4Addr,
        devices: &[Device],
        data: &[u8],
    ) -> io::Result<()> {
        if let By::Anybody(source, port) = self.by {
            let source = peer.unwrap_or(SocketAddr::new(source.into(), port));
            return self.by_hand(source, to, data);
        }
        let socket = self.sender(devices)?;
        let to = match self.by {
            By::Group(_) => SocketAddr::new(group.into(), to.port()),
            By::Broadcast(device) => {
                let [a, b, c, _] = devices[device].address.octets();
                SocketAddr::new(Ipv4Addr::new(a, b, c, 255).into(), to.port())
            }
            _ => to,
        };
        send(&socket, to, data, &[], 0)
    }

    fn sender(&self, devices: &[Device]) -> io::Result<OwnedFd> {
        let from = match self.by {
            By::Group(device) | By::Broadcast(device) => devices[device].address,
            _ => HERE,
        };
        let socket = socket::bound((from, 0))?;
        set_int(&socket, SOCKET, 32, 1 << 20)?;
        set_int(&socket, IP, IP_TTL, self.ttl.into())?;
        set_int(&socket, IP, IP_MULTICAST_TTL, self.ttl.into())?;
        set_int(&socket, IP, IP_TOS, self.tos.into())?;
        set_int(&socket, SOCKET, SO_MARK, self.mark)?;
        set_int(&socket, SOCKET, SO_PRIORITY, self.mark & 7)?;
        set_int(&socket, SOCKET, SO_BROADCAST, 1)?;
        set(&socket, IP, IP_OPTIONS, self.options).map_err(io::Error::from_raw_os_error)?;
        if let By::Group(device) = self.by {
            let request = [[0; 4], [0; 4], devices[device].index.to_ne_bytes()].concat();
            set(&socket, IP, IP_MULTICAST_IF, &request).map_err(io::Error::from_raw_os_error)?;
        }
        if let By::Segments = self.by {
            set_int(&socket, UDP, UDP_SEGMENT, 1 + (self.size / 9) as i32)?;
        }
        Ok(socket)
    }

    fn by_hand(&self, from: SocketAddr, to: SocketAddr, data: &[u8]) -> io::Result<()> {
        let words = 5 + self.options.len().div_ceil(4);
        let mut packet = vec![
            0x40 | words as u8,
            self.tos,
            0,
            0,
            0,
            0,
            0,
            0,
            self.ttl,
            17,
            0,
            0,
        ];
        packet.extend(octets(from.ip()));
        packet.extend(octets(to.ip()));
        packet.extend(self.options);
        packet.resize(words * 4, 0);
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend(((data.len() + 8) as u16).to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(data);
        let raw = raw(RAW)?;
        set_int(&raw, SOCKET, SO_MARK, self.mark)?;
        set_int(&raw, SOCKET, SO_BROADCAST, 1)?;
        // By the loopback device, whoever is told in the headers.
        socket::set(&raw, SOCKET, 25, b"lo\0").map_err(io::Error::from_raw_os_error)?;
        send(&raw, to, &packet, &[], 0)
    }
}
