//! The kinds of sockets that are carried: one file each, saying which option tables they have.
//!
//! This is the RFC's `sk_prot->dump` and `sk_prot->restore`, as data.

mod udp;

use crate::error::{Error, ErrorKind};
use crate::option::Row;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// A kind of socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Protocol {
    /// `inet` or `inet6`, as in images.
    pub family_name: &'static str,
    /// `dgram`, as in images.
    pub type_name: &'static str,
    /// `udp`, as in images and targets.
    pub name: &'static str,
    /// `AF_INET`
    pub family: u32,
    /// `SOCK_DGRAM`
    pub socket_type: u32,
    /// `IPPROTO_UDP`
    pub number: u32,
    /// The option tables, in the order in which restore writes them.
    pub tables: &'static [&'static [Row]],
}

impl Protocol {
    /// Whether its addresses are those of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.family == AF_INET6
    }

    /// The address of a socket that has none.
    pub fn any(&self) -> IpAddr {
        match self.is_ipv6() {
            true => Ipv6Addr::UNSPECIFIED.into(),
            false => Ipv4Addr::UNSPECIFIED.into(),
        }
    }

    /// The rows of its option tables, in the order in which restore writes them.
    pub fn rows(&self) -> impl Iterator<Item = &'static Row> + Clone + use<> {
        self.tables.iter().copied().flatten()
    }
}

const AF_INET6: u32 = 10;

/// All of them.
pub static ALL: &[&Protocol] = &[&udp::IPV4, &udp::IPV6];

/// The kind with these numbers.
pub fn find(family: u32, socket_type: u32, number: u32) -> Option<&'static Protocol> {
    let same = |p: &&Protocol| (p.family, p.socket_type, p.number) == (family, socket_type, number);
    ALL.iter().copied().find(same)
}

/// The kind of a socket.
pub fn of(fd: BorrowedFd<'_>) -> Result<&'static Protocol, Error> {
    let ask = |option: i32| -> io::Result<u32> {
        let mut value = [0; 4];
        sockcr_sys::sockopt::get(fd, 1, option, &mut value)?;
        Ok(u32::from_ne_bytes(value))
    };
    let (domain, kind, protocol) = (39, 3, 38);
    let numbers = ask(domain).and_then(|d| Ok((d, ask(kind)?, ask(protocol)?)));
    let (family, socket_type, number) = numbers.map_err(|error| {
        if error.raw_os_error() == Some(rustix::io::Errno::NOTSOCK.raw_os_error()) {
            Error::new(ErrorKind::NotASocket, "descriptor", "is not a socket")
        } else {
            Error::system("ask for the kind of the socket", error)
        }
    })?;
    find(family, socket_type, number).ok_or_else(|| {
        let kind = describe(family, socket_type, number);
        let names: Vec<&str> = ALL.iter().map(|protocol| protocol.name).collect();
        Error::new(
            ErrorKind::NotSupported,
            kind,
            "this kind of socket is not carried yet",
        )
        .help(format!("carried are: {}", names.join(", ")))
    })
}

/// What a kind of socket is called, whether carried or not.
pub fn describe(family: u32, socket_type: u32, number: u32) -> String {
    let kind = match socket_type {
        1 => "stream",
        2 => "dgram",
        3 => "raw",
        5 => "seqpacket",
        _ => "other",
    };
    match (family, socket_type, number) {
        (1, ..) => format!("unix-{kind}"),
        (2, _, 6) => "tcp".into(),
        (10, _, 6) => "tcp6".into(),
        (2, _, 17) => "udp".into(),
        (10, _, 17) => "udp6".into(),
        (2, _, 136) => "udplite".into(),
        (10, _, 136) => "udplite6".into(),
        (2, 2, 1) => "ping".into(),
        (10, 2, 58) => "ping6".into(),
        (2, 3, number) => format!("raw:{number}"),
        (10, 3, number) => format!("raw6:{number}"),
        (16, _, number) => format!("netlink:{number}"),
        (17, ..) => format!("packet-{kind}"),
        (40, ..) => format!("vsock-{kind}"),
        (44, ..) => "xdp".into(),
        _ => format!("family {family} {kind} {number}"),
    }
}
