//! What comes to a socket from anybody: datagrams of every kind, and ICMP messages.
#![allow(dead_code, reason = "shared by tests that use parts of it")]

use super::support::octets::octets;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Protocol, RawProtocol, SocketFlags, SocketType, socket_with};

use crate::message::send;
use crate::support::place::Device;
use crate::support::socket::{self, IP, SOCKET, UDP, set, set_int};

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
const ICMP: u32 = 1;
/// `IPPROTO_RAW`: what is sent begins with its IP header.
const RAW: u32 = 255;

fn raw(protocol: u32) -> io::Result<OwnedFd> {
    let protocol = RawProtocol::new(protocol).map(Protocol::from_raw);
    let family = AddressFamily::INET;
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

/// How a datagram comes.
#[derive(Clone, Debug)]
pub enum By {
    /// From an address of this host.
    Loopback,
    /// To a group, by a device.
    Group(usize),
    /// To everybody, by a device.
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
}

impl Heard {
    /// Sends it to a socket with this name and peer.
    pub fn send(
        &self,
        to: SocketAddr,
        peer: Option<SocketAddr>,
        group: Ipv4Addr,
        devices: &[Device],
    ) -> io::Result<()> {
        let data: Vec<u8> = (0..self.size)
            .map(|at| (at * 7 + self.size) as u8)
            .collect();
        let place = match to.ip().is_unspecified() {
            true => HERE.into(),
            false => to.ip(),
        };
        let to = SocketAddr::new(place, to.port());
        if let By::Anybody(source, port) = self.by {
            let source = peer.unwrap_or(SocketAddr::new(source.into(), port));
            return self.by_hand(source, to, &data);
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
        send(&socket, to, &data, &[], 0)
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
