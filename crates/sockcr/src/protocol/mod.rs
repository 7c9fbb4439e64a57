//! The kinds of sockets that are carried: one file each, saying which option tables they have.
//!
//! This is the RFC's `sk_prot->dump` and `sk_prot->restore`, as data.

mod ping;
mod raw;
mod udp;

use crate::error::{Error, ErrorKind};
use crate::option::{Access, Row, Special};
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

/// A kind of socket. Raw sockets are of one kind for each protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// `inet` or `inet6`, as in images.
    pub family_name: &'static str,
    /// `dgram` or `raw`, as in images.
    pub type_name: &'static str,
    /// `udp`; `raw` whatever the protocol.
    pub name: &'static str,
    /// `AF_INET` or `AF_INET6`
    pub family: u32,
    /// `SOCK_DGRAM` or `SOCK_RAW`
    pub socket_type: u32,
    /// `IPPROTO_...`
    pub number: u32,
    /// The option tables, in the order in which restore writes them.
    pub tables: &'static [&'static [Row]],
}

impl Protocol {
    /// Whether its addresses are those of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.family == AF_INET6
    }

    /// Whether it is a raw socket: it has no port, and hears what others of its protocol hear too.
    pub fn is_raw(&self) -> bool {
        self.socket_type == SOCK_RAW
    }

    /// Whether its number is that of UDP.
    pub fn is_udp(&self) -> bool {
        !self.is_raw() && self.number == IPPROTO_UDP
    }

    /// Whether its ports are those of UDP or UDP-Lite.
    pub fn has_ports(&self) -> bool {
        !self.is_raw() && !self.is_ping()
    }

    /// Whether a port of its own is an identifier of ICMP.
    pub fn is_ping(&self) -> bool {
        !self.is_raw() && matches!(self.number, IPPROTO_ICMP | IPPROTO_ICMPV6)
    }

    /// Whether it is UDP-Lite.
    pub fn is_lite(&self) -> bool {
        self.number == IPPROTO_UDPLITE && !self.is_raw()
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

    /// What an option of its tables is to a checkpoint of such a socket.
    pub fn access(&self, row: &Row) -> Access {
        let meant = |special: Special| match special {
            Special::Raw => self.is_raw(),
            Special::Lite => self.is_lite(),
        };
        match row.special {
            Some((special, access)) if meant(special) => access,
            _ => row.access,
        }
    }

    /// Whether a checkpoint of such a socket holds a value for the option.
    pub fn carries(&self, row: &Row) -> bool {
        matches!(self.access(row), Access::Carried(_)) && self.rows().any(|have| have == row)
    }

    /// The rows of which a checkpoint holds a value, in the order in which restore writes them.
    pub fn carried(&self) -> impl Iterator<Item = &'static Row> + Clone + use<> {
        let kind = *self;
        let carried = move |row: &&Row| matches!(kind.access(row), Access::Carried(_));
        self.rows().filter(carried)
    }
}

/// As targets and images name it: `udp`, `raw:89`.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&describe(self.family, self.socket_type, self.number))
    }
}

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOCK_DGRAM: u32 = 2;
const SOCK_RAW: u32 = 3;
const IPPROTO_ICMP: u32 = 1;
const IPPROTO_UDP: u32 = 17;
const IPPROTO_ICMPV6: u32 = 58;
const IPPROTO_UDPLITE: u32 = 136;

/// All of them but raw sockets, of which these stand for all: those that have options or defaults of
/// their own, and OSPF for the others.
pub static ALL: &[&Protocol] = &[
    &udp::IPV4,
    &udp::IPV6,
    &ping::IPV4,
    &ping::IPV6,
    &udp::LITE_IPV4,
    &udp::LITE_IPV6,
    &raw::IPV4[1],
    &raw::IPV4[89],
    &raw::IPV4[255],
    &raw::IPV6[58],
    &raw::IPV6[89],
    &raw::IPV6[255],
];

/// The kind with these numbers.
pub fn find(family: u32, socket_type: u32, number: u32) -> Option<&'static Protocol> {
    let of_raw = |all: &'static [Protocol]| {
        let there = all.get(usize::try_from(number).ok()?);
        there.filter(|protocol| protocol.number != 0)
    };
    match (family, socket_type) {
        (AF_INET, SOCK_RAW) => of_raw(&raw::IPV4),
        (AF_INET6, SOCK_RAW) => of_raw(&raw::IPV6),
        numbers => {
            let same = |p: &&Protocol| (p.family, p.socket_type) == numbers && p.number == number;
            ALL.iter().copied().find(same)
        }
    }
}

/// The kind with these names, the last one as [`Protocol`] displays itself.
pub fn named(family: &str, socket_type: &str, name: &str) -> Option<&'static Protocol> {
    let same = |p: &&Protocol| (p.family_name, p.type_name) == (family, socket_type);
    let mut kinds = ALL.iter().copied().filter(same);
    if let Some(found) = kinds.clone().find(|p| p.to_string() == name) {
        return Some(found);
    }
    let (_, number) = name.split_once(':')?;
    let like = kinds.next().filter(|p| p.is_raw())?;
    let found = find(like.family, like.socket_type, number.parse().ok()?);
    found.filter(|p| p.to_string() == name)
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
    carried(family, socket_type, number)
}

/// The kind with these numbers (`AF_...`, `SOCK_...`, `IPPROTO_...`), if it is carried.
pub fn carried(family: u32, socket_type: u32, number: u32) -> Result<&'static Protocol, Error> {
    find(family, socket_type, number).ok_or_else(|| {
        let kind = describe(family, socket_type, number);
        let mut names: Vec<&str> = ALL.iter().map(|protocol| protocol.name).collect();
        names.dedup();
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
        (2, 3, number) => format!("raw:{number}"),
        (10, 3, number) => format!("raw6:{number}"),
        (2, _, 6) => "tcp".into(),
        (10, _, 6) => "tcp6".into(),
        (2, _, 17) => "udp".into(),
        (10, _, 17) => "udp6".into(),
        (2, _, 136) => "udplite".into(),
        (10, _, 136) => "udplite6".into(),
        (2, 2, 1) => "ping".into(),
        (10, 2, 58) => "ping6".into(),
        (16, _, number) => format!("netlink:{number}"),
        (17, ..) => format!("packet-{kind}"),
        (40, ..) => format!("vsock-{kind}"),
        (44, ..) => "xdp".into(),
        _ => format!("family {family} {kind} {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_numbers_and_by_its_name() {
        let raw = raw::IPV4.iter().chain(&raw::IPV6);
        let kinds = ALL.iter().copied().chain(raw.filter(|p| p.number != 0));
        for kind in kinds {
            let by_numbers = find(kind.family, kind.socket_type, kind.number);
            assert_eq!(by_numbers, Some(kind));
            let by_name = named(kind.family_name, kind.type_name, &kind.to_string());
            assert_eq!(by_name, Some(kind), "{kind}");
        }
    }
}
