//! The families by which datagrams come to a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use sockcr::protocol;

use super::{Outcome, socket};

/// How datagrams come to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Ipv4,
    Ipv6,
    /// By IPv4 to a socket of AF_INET6.
    Mapped,
}

/// Runs a test for each.
pub fn each(test: impl Fn(By) -> Outcome) -> Outcome {
    for by in [By::Ipv4, By::Ipv6, By::Mapped] {
        println!("{by:?}");
        test(by)?;
    }
    Ok(())
}

/// A fresh UDP socket of this family.
pub fn of_family(family: i32) -> io::Result<OwnedFd> {
    let protocol = protocol::find(family as u32, 2, 17);
    socket::fresh(protocol.ok_or(io::ErrorKind::Unsupported)?)
}

impl By {
    pub fn socket(self) -> io::Result<OwnedFd> {
        of_family(match self {
            By::Ipv4 => libc::AF_INET,
            By::Ipv6 | By::Mapped => libc::AF_INET6,
        })
    }

    /// A socket that sends to such.
    pub fn sender(self) -> io::Result<OwnedFd> {
        of_family(match self {
            By::Ipv4 | By::Mapped => libc::AF_INET,
            By::Ipv6 => libc::AF_INET6,
        })
    }

    /// The one of two addresses by which it comes.
    pub fn of(self, ipv4: impl Into<IpAddr>, ipv6: impl Into<IpAddr>) -> IpAddr {
        match self {
            By::Ipv4 | By::Mapped => ipv4.into(),
            By::Ipv6 => ipv6.into(),
        }
    }

    /// The loopback address.
    pub fn here(self) -> IpAddr {
        self.of(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST)
    }

    /// As the socket itself calls an address.
    pub fn called(self, address: IpAddr) -> IpAddr {
        match (self, address) {
            (By::Mapped, IpAddr::V4(address)) => address.to_ipv6_mapped().into(),
            _ => address,
        }
    }

    /// Every address that the socket can hear at.
    pub fn any(self) -> IpAddr {
        match self {
            By::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            By::Ipv6 | By::Mapped => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    /// A socket bound to this port of the loopback address.
    pub fn bound(self, port: u16) -> io::Result<OwnedFd> {
        let socket = self.socket()?;
        socket::bind(&socket, (self.called(self.here()), port))?;
        Ok(socket)
    }
}
