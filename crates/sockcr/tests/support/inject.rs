//! What the tests of injection share: a place, a socket that tells everything, bystanders.
#![allow(dead_code, reason = "shared by tests that use parts of it")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use sockcr::kernel::inject::{Carries, Datagram, Injected, Injector};

use super::place::{Device, devices, isolated, sysctl};
use super::socket::{self, IP, IPV6, SOCKET, UDP, set, set_int};
use super::{Outcome, skip};

pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 1, 1);
pub const GROUP6: Ipv6Addr = Ipv6Addr::new(0xff05, 0, 0, 0, 0, 0, 0, 0x77);
pub const FOREIGN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
pub const FOREIGN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
pub const PORT: u16 = 5000;
pub const LOOPBACK: u32 = 1;
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const SO_REUSEADDR: i32 = 2;
pub const SO_REUSEPORT: i32 = 15;
pub const SO_RCVBUF: i32 = 8;
pub const SO_RCVBUFFORCE: i32 = 33;
pub const SO_INCOMING_CPU: i32 = 49;
pub const SO_BINDTOIFINDEX: i32 = 62;
pub const IP_LOCAL_PORT_RANGE: i32 = 51;
pub const SO_TIMESTAMPNS: i32 = 35;
pub const SO_MARK: i32 = 36;
pub const SO_RCVMARK: i32 = 75;
pub const SO_RCVPRIORITY: i32 = 82;
pub const IP_TOS: i32 = 1;
pub const IP_TTL: i32 = 2;
pub const IP_RECVOPTS: i32 = 6;
pub const IP_PKTINFO: i32 = 8;
pub const IP_RECVTTL: i32 = 12;
pub const IP_RECVTOS: i32 = 13;
pub const IP_RECVORIGDSTADDR: i32 = 20;
pub const IP_ADD_MEMBERSHIP: i32 = 35;
pub const IPV6_ADD_MEMBERSHIP: i32 = 20;
pub const UDP_GRO: i32 = 104;

/// The families that a socket and those who send to it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
    /// A socket of IPv6, and senders of IPv4.
    Dual,
}

pub const FAMILIES: [Family; 3] = [Family::Ipv4, Family::Ipv6, Family::Dual];

impl Family {
    /// A fresh socket.
    pub fn udp(self) -> io::Result<OwnedFd> {
        socket::fresh(sockcr::protocol::ALL[usize::from(self != Family::Ipv4)])
    }

    /// The address that the socket is bound to, to hear everything.
    pub fn any(self) -> IpAddr {
        match self {
            Family::Ipv4 => ANY.into(),
            Family::Ipv6 | Family::Dual => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// The loopback address of the senders.
    pub fn here(self) -> IpAddr {
        match self {
            Family::Ipv4 | Family::Dual => LOCALHOST.into(),
            Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// An address of nobody here.
    pub fn foreign(self) -> IpAddr {
        match self {
            Family::Ipv4 | Family::Dual => FOREIGN.into(),
            Family::Ipv6 => FOREIGN6.into(),
        }
    }

    /// A datagram from there to here.
    pub fn plain(self, payload: &[u8]) -> Datagram<'_> {
        Datagram {
            source: SocketAddr::new(self.foreign(), 53),
            destination: SocketAddr::new(self.here(), PORT),
            ..plain(payload)
        }
    }

    /// As the socket tells the name of a sender.
    pub fn told(self, name: SocketAddr) -> SocketAddr {
        match (self, name) {
            (Family::Dual, SocketAddr::V4(name)) => {
                SocketAddr::new(name.ip().to_ipv6_mapped().into(), name.port())
            }
            _ => name,
        }
    }

    /// A socket that tells everything.
    pub fn talkative(self) -> io::Result<OwnedFd> {
        let socket = self.udp()?;
        tell_everything(&socket)?;
        if self != Family::Ipv4 {
            for name in IPV6_TELLING {
                set_int(&socket, IPV6, name, 1)?;
            }
        }
        Ok(socket)
    }

    /// The group that members are in.
    pub fn group(self) -> IpAddr {
        match self {
            Family::Ipv4 | Family::Dual => GROUP.into(),
            Family::Ipv6 => GROUP6.into(),
        }
    }

    pub fn join(self, socket: &impl AsFd, device: u32) -> io::Result<()> {
        match self {
            Family::Ipv4 | Family::Dual => join(socket, device),
            Family::Ipv6 => join6(socket, GROUP6, device),
        }
    }

    /// Sends from and to the loopback address.
    pub fn send(self, from: u16, to: u16, data: &[u8]) -> io::Result<()> {
        let sender = match self {
            Family::Ipv6 => self.udp()?,
            Family::Ipv4 | Family::Dual => socket::udp()?,
        };
        socket::bind(&sender, (self.here(), from))?;
        let to = SocketAddr::new(self.here(), to);
        rustix::net::sendto(&sender, data, rustix::net::SendFlags::empty(), &to)?;
        Ok(())
    }
}

/// IPV6_RECVPKTINFO, IPV6_RECVHOPLIMIT, IPV6_RECVHOPOPTS, IPV6_RECVRTHDR, IPV6_RECVDSTOPTS,
/// IPV6_RECVTCLASS, IPV6_RECVORIGDSTADDR, IPV6_FLOWINFO; the forms of RFC 2292.
const IPV6_TELLING: [i32; 13] = [49, 51, 53, 56, 58, 66, 74, 11, 2, 3, 4, 5, 8];

/// Runs a test as root, and only where BPF may be used.
pub fn privileged<F: FnOnce() -> Outcome + Send>(body: F) -> Outcome {
    match super::reader() {
        Ok(_) => isolated(body),
        Err(why) => skip(&why),
    }
}

pub fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

pub fn plain(payload: &[u8]) -> Datagram<'_> {
    Datagram {
        source: at(FOREIGN, 53),
        destination: at(LOCALHOST, PORT),
        ttl: 64,
        tos: 0,
        flow_label: 0,
        interface: LOOPBACK,
        local: None,
        received_at: 1_000_000_000_123_456_789,
        mark: 0,
        priority: 0,
        segment_size: 0,
        carries: Carries::Data,
        ip_options: &[],
        payload,
    }
}

/// A socket that tells everything.
pub fn talkative() -> io::Result<OwnedFd> {
    let socket = socket::udp()?;
    tell_everything(&socket)?;
    Ok(socket)
}

fn tell_everything(socket: &OwnedFd) -> io::Result<()> {
    for (level, name) in [
        (SOCKET, SO_TIMESTAMPNS),
        (SOCKET, SO_RCVMARK),
        (SOCKET, SO_RCVPRIORITY),
        (IP, IP_PKTINFO),
        (IP, IP_RECVTTL),
        (IP, IP_RECVTOS),
        (IP, IP_RECVOPTS),
        (IP, IP_RECVORIGDSTADDR),
        (UDP, UDP_GRO),
    ] {
        set_int(socket, level, name, 1)?;
    }
    Ok(())
}

/// Puts datagrams into a socket by an injector of its own.
pub fn inject(socket: BorrowedFd<'_>, datagrams: &[Datagram<'_>]) -> io::Result<Injected> {
    Injector::new()?.inject(socket, datagrams)
}

pub fn join(socket: &impl AsFd, device: u32) -> io::Result<()> {
    let request = [GROUP.octets(), [0; 4], device.to_ne_bytes()].concat();
    set(socket, IP, IP_ADD_MEMBERSHIP, &request).map_err(io::Error::from_raw_os_error)
}

pub fn join6(socket: &impl AsFd, group: Ipv6Addr, device: u32) -> io::Result<()> {
    let request = [&group.octets()[..], &device.to_ne_bytes()].concat();
    set(socket, IPV6, IPV6_ADD_MEMBERSHIP, &request).map_err(io::Error::from_raw_os_error)
}

/// Strict rp_filter, and no route to anywhere else.
pub fn strict() -> io::Result<[Device; 2]> {
    let devices = devices()?;
    for of in ["all", "default", "lo", "m0", "m1"] {
        sysctl(&format!("net.ipv4.conf.{of}.rp_filter"), "1")?;
    }
    Ok(devices)
}

/// Sockets that must not hear of it.
pub fn bystanders(family: Family, device: &Device) -> io::Result<Vec<OwnedFd>> {
    let mut all = Vec::new();
    for (option, count, port) in [(SO_REUSEADDR, 2, PORT), (SO_REUSEPORT, 3, PORT + 1)] {
        for _ in 0..count {
            let socket = family.udp()?;
            set_int(&socket, SOCKET, option, 1)?;
            socket::bind(&socket, (family.any(), port))?;
            family.join(&socket, device.index)?;
            all.push(socket);
        }
    }
    Ok(all)
}

pub fn heard_nothing(all: &[OwnedFd]) -> io::Result<()> {
    for socket in all {
        assert_eq!(socket::receive_now(socket)?, Vec::<Vec<u8>>::new());
    }
    Ok(())
}

/// What comes out of a cable's other end.
pub struct Capture(OwnedFd);

impl Capture {
    pub fn on(device: &Device) -> io::Result<Self> {
        sockcr_sys::capture::open(device.index).map(Self)
    }

    /// The packets seen so far, without those of IGMP and ICMPv6.
    pub fn packets(&self) -> io::Result<Vec<Vec<u8>>> {
        let all = socket::receive_now(&self.0)?.into_iter();
        let ours = |frame: &Vec<u8>| match frame.get(12..14) {
            Some([8, 0]) => frame.get(23) != Some(&2),
            // MLD behind a hop-by-hop header.
            Some([0x86, 0xdd]) => match frame.get(20) {
                Some(0) => frame.get(54) != Some(&58),
                kind => kind != Some(&58),
            },
            _ => false,
        };
        Ok(all.filter(ours).collect())
    }
}
