//! How a socket is named.

use crate::error::{Error, ErrorKind};
use crate::kernel::needs_scope;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The name of one socket, or of several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `PID:FD`: a descriptor of a process, or of a thread with its own table.
    Descriptor(i32, i32),
    /// `PID`: every socket of a process.
    Process(i32),
    /// `inode:N`
    Inode(u64),
    /// `cookie:N`, as SO_COOKIE and `ss -e` give it.
    Cookie(u64),
    /// `udp:ADDR:PORT`, `udp:[ADDR]:PORT`, `udp:[ADDR%DEVICE]:PORT`; `*` is any address, of IPv4
    /// and of IPv6. `udplite:`, `ping:` and `raw:` likewise.
    Local {
        /// What stands before the first colon.
        transport: Transport,
        /// The local address, `None` for any. One of IPv4 is also that of AF_INET6 sockets that have it
        /// IPv4-mapped.
        address: Option<Address>,
        /// The local port, the identifier of a ping socket, or the protocol of a raw one.
        number: u16,
    },
}

/// The kinds of sockets that can be named by their address, each of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// `udp`
    Udp,
    /// `udplite`
    UdpLite,
    /// `ping`: ICMP echo by a datagram socket.
    Ping,
    /// `raw`
    Raw,
}

const TRANSPORTS: &[(&str, Transport)] = &[
    ("udp", Transport::Udp),
    ("udplite", Transport::UdpLite),
    ("ping", Transport::Ping),
    ("raw", Transport::Raw),
];

/// The protocols of raw sockets that have a name here, as in /etc/protocols; the first name of a
/// number is the one that is told.
const PROTOCOLS: &[(&str, u16)] = &[
    ("icmp", 1),
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", 6),
    ("udp", 17),
    ("ipv6", 41),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("ospf", 89),
    ("pim", 103),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
    ("raw", 255),
];

/// An IP address, with the device of a link-local one if that was given: `10.0.0.1`,
/// `fe80::1%eth0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    ip: IpAddr,
    device: Option<String>,
}

impl Address {
    /// The address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// The name or the index of the device.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }
}

impl From<IpAddr> for Address {
    fn from(ip: IpAddr) -> Address {
        Address { ip, device: None }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Address, Error> {
        let refuse = |why| Error::new(ErrorKind::BadInput, text, why);
        let Some((address, device)) = text.split_once('%') else {
            let ip: Result<IpAddr, _> = text.parse();
            return ip.map(Address::from).map_err(|_| {
                refuse("is no address").help("10.0.0.1, 2001:db8::1 or fe80::1%eth0 is one")
            });
        };
        let ip: Result<Ipv6Addr, _> = address.parse();
        let ip = ip.map_err(|_| refuse("only an IPv6 address has a device"))?;
        if !needs_scope(&ip) {
            return Err(refuse("only a link-local address has a device"));
        }
        if device.is_empty() {
            return Err(refuse("names no device").help("fe80::1%eth0 or fe80::1%2"));
        }
        Ok(Address {
            ip: ip.into(),
            device: Some(device.into()),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.ip)?;
        match &self.device {
            Some(device) => write!(f, "%{device}"),
            None => Ok(()),
        }
    }
}

/// An address and port as they are shown: with the name of the device, if it is known.
pub fn show(address: &SocketAddr, device: Option<&str>) -> String {
    match (address, device) {
        (SocketAddr::V6(v6), Some(device)) if needs_scope(v6.ip()) => {
            format!("[{}%{device}]:{}", v6.ip(), v6.port())
        }
        _ => address.to_string(),
    }
}

/// Reads an address and port, and the device of a link-local address: the inverse of [`show`].
pub fn parse_address(text: &str) -> Option<(SocketAddr, Option<String>)> {
    let (address, port) = text.rsplit_once(':')?;
    let address = bracketed(address)?;
    Some((
        SocketAddr::new(address.ip, port.parse().ok()?),
        address.device,
    ))
}

impl Target {
    /// Whether a text is meant to name a socket by its address, well or badly.
    pub fn is_address(text: &str) -> bool {
        let head = text.split_once(':').map(|(head, _)| head);
        head.is_some_and(|head| transport(head).is_some())
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target, Error> {
        parse(text).ok_or_else(|| {
            let error = Error::new(ErrorKind::BadInput, text, "names no socket");
            error.help(accepted(text))
        })
    }
}

/// What would be a target, of the sort that was tried.
fn accepted(text: &str) -> String {
    let head = text.split_once(':').map_or("", |(head, _)| head);
    match transport(head) {
        None => "PID:FD, PID, inode:N, cookie:N, udp:ADDR:PORT, udp:*:PORT; \
                 also udplite:ADDR:PORT, ping:ADDR:ID and raw:ADDR:PROTOCOL"
            .into(),
        Some(Transport::Raw) => {
            let names: Vec<&str> = PROTOCOLS.iter().map(|(name, _)| *name).collect();
            let names = names.join(", ");
            format!("raw:10.0.0.1:icmp, raw:[2001:db8::1]:58 or raw:*:89; by name are {names}")
        }
        Some(_) => format!(
            "{head}:10.0.0.1:53, {head}:[2001:db8::1]:53, {head}:[fe80::1%eth0]:53 or {head}:*:53"
        ),
    }
}

fn parse(text: &str) -> Option<Target> {
    let Some((head, rest)) = text.split_once(':') else {
        return text
            .parse()
            .ok()
            .filter(|pid| *pid > 0)
            .map(Target::Process);
    };
    if let Some(transport) = transport(head) {
        return local(transport, rest);
    }
    match head {
        "inode" => rest.parse().ok().map(Target::Inode),
        "cookie" => cookie(rest).map(Target::Cookie),
        pid => {
            let (pid, fd) = (pid.parse().ok()?, rest.parse().ok()?);
            (pid > 0 && fd >= 0).then_some(Target::Descriptor(pid, fd))
        }
    }
}

fn transport(head: &str) -> Option<Transport> {
    let (_, transport) = TRANSPORTS.iter().find(|(name, _)| *name == head)?;
    Some(*transport)
}

fn cookie(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn local(transport: Transport, text: &str) -> Option<Target> {
    let (address, number) = text.rsplit_once(':')?;
    Some(Target::Local {
        transport,
        address: match address {
            "*" => None,
            address => Some(bracketed(address)?),
        },
        number: match transport {
            Transport::Raw => protocol(number)?,
            _ => number.parse().ok()?,
        },
    })
}

/// An IPv6 address in brackets, or an IPv4 address without.
fn bracketed(text: &str) -> Option<Address> {
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address: Address = inner.unwrap_or(text).parse().ok()?;
    (address.ip.is_ipv6() == inner.is_some()).then_some(address)
}

fn protocol(text: &str) -> Option<u16> {
    let named = PROTOCOLS.iter().find(|(name, _)| *name == text);
    named.map_or_else(|| text.parse().ok(), |(_, number)| Some(*number))
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = TRANSPORTS.iter().find(|(_, transport)| transport == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl Target {
    /// As it is typed: what [`FromStr`] reads.
    pub fn spelled(&self) -> String {
        match self {
            Target::Descriptor(pid, fd) => format!("{pid}:{fd}"),
            Target::Process(pid) => pid.to_string(),
            Target::Inode(inode) => format!("inode:{inode}"),
            Target::Cookie(cookie) => format!("cookie:{cookie}"),
            Target::Local { .. } => self.to_string(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Descriptor(pid, fd) => write!(f, "process {pid}, descriptor {fd}"),
            Target::Process(pid) => write!(f, "process {pid}"),
            Target::Inode(inode) => write!(f, "inode {inode}"),
            Target::Cookie(cookie) => write!(f, "cookie {cookie}"),
            Target::Local {
                transport,
                address,
                number,
            } => match address {
                None => write!(f, "{transport}:*:{number}"),
                Some(address) if address.ip.is_ipv6() => {
                    write!(f, "{transport}:[{address}]:{number}")
                }
                Some(address) => write!(f, "{transport}:{address}:{number}"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(transport: Transport, address: &str, number: u16) -> Target {
        Target::Local {
            transport,
            address: (address != "*").then(|| address.parse().unwrap()),
            number,
        }
    }

    #[test]
    fn what_is_spelled_is_read_again() {
        let names = [
            "12:3",
            "12",
            "inode:4711",
            "cookie:9",
            "udp:127.0.0.1:53",
            "udp:*:53",
        ];
        let more = [
            "udplite:[::1]:53",
            "udp:[fe80::1%eth0]:53",
            "ping:10.0.0.1:7",
            "raw:*:89",
        ];
        for name in names.into_iter().chain(more) {
            let target: Target = name.parse().unwrap();
            assert_eq!(
                target.spelled().parse::<Target>().unwrap(),
                target,
                "{name}"
            );
        }
    }

    #[test]
    fn every_way_to_name_a_socket() {
        for (text, target) in [
            ("12:3", Target::Descriptor(12, 3)),
            ("12", Target::Process(12)),
            ("inode:4711", Target::Inode(4711)),
            ("cookie:0x1f", Target::Cookie(31)),
            ("raw:*:icmp", local(Transport::Raw, "*", 1)),
            ("raw:[::]:ipv6-icmp", local(Transport::Raw, "::", 58)),
            ("raw:10.0.0.1:vrrp", local(Transport::Raw, "10.0.0.1", 112)),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), target, "{text}");
        }
    }

    #[test]
    fn an_address_is_shown_as_it_is_read() {
        use Transport::{Ping, Raw, Udp, UdpLite};
        for (text, target) in [
            ("udp:127.0.0.1:53", local(Udp, "127.0.0.1", 53)),
            ("udp:*:53", local(Udp, "*", 53)),
            ("udp:[::]:53", local(Udp, "::", 53)),
            ("udp:[fe80::1]:53", local(Udp, "fe80::1", 53)),
            ("udp:[fe80::1%eth0]:53", local(Udp, "fe80::1%eth0", 53)),
            ("udp:[ff02::fb%3]:5353", local(Udp, "ff02::fb%3", 5353)),
            ("udp:[::ffff:10.0.0.1]:7", local(Udp, "::ffff:10.0.0.1", 7)),
            ("udplite:[::1]:9", local(UdpLite, "::1", 9)),
            ("ping:10.0.0.1:77", local(Ping, "10.0.0.1", 77)),
            ("ping:[::1]:77", local(Ping, "::1", 77)),
            ("raw:*:89", local(Raw, "*", 89)),
            ("raw:[fe80::1%eth0]:58", local(Raw, "fe80::1%eth0", 58)),
        ] {
            assert_eq!(text.parse::<Target>().unwrap(), target, "{text}");
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn what_names_nothing_says_what_would() {
        for (text, help) in [
            ("", "inode:N"),
            ("x", "inode:N"),
            ("0", "inode:N"),
            ("-1", "inode:N"),
            ("1:-1", "inode:N"),
            ("1:x", "inode:N"),
            ("inode:", "inode:N"),
            ("tcp:*:53", "inode:N"),
            ("udp:53", "udp:*:53"),
            ("udp:1.2.3:53", "udp:10.0.0.1:53"),
            ("udp:*:70000", "udp:*:53"),
            ("udp:::1:53", "udp:[2001:db8::1]:53"),
            ("udp:[::1:53", "udp:[2001:db8::1]:53"),
            ("udp:[1.2.3.4]:53", "udp:10.0.0.1:53"),
            ("udp:[fe80::1%]:53", "udp:[fe80::1%eth0]:53"),
            ("udp:[2001:db8::1%eth0]:53", "udp:[fe80::1%eth0]:53"),
            ("udp:1.2.3.4%eth0:53", "udp:[fe80::1%eth0]:53"),
            ("ping:*:x", "ping:*:53"),
            ("raw:*:no-such-protocol", "ipv6-icmp"),
            ("raw:*", "raw:*:89"),
        ] {
            let error = text.parse::<Target>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
            assert!(error.next_step().unwrap().contains(help), "{text}");
        }
    }

    #[test]
    fn a_device_stands_beside_its_address() {
        let address: SocketAddr = "[fe80::1%7]:546".parse().unwrap();
        assert_eq!(show(&address, Some("eth0")), "[fe80::1%eth0]:546");
        assert_eq!(show(&address, None), "[fe80::1%7]:546");
        let address = "[2001:db8::1]:546".parse().unwrap();
        assert_eq!(show(&address, Some("eth0")), "[2001:db8::1]:546");
    }
}
