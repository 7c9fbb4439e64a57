//! Ping sockets: ICMP echo for those whose group net.ipv4.ping_group_range has. The identifier is the
//! port.

use super::{AF_INET, AF_INET6, Protocol, SOCK_DGRAM};
use crate::option::{ip, ipv6, socket};

/// Over IPv4.
pub static IPV4: Protocol = Protocol {
    family_name: "inet",
    type_name: "dgram",
    name: "ping",
    family: AF_INET,
    socket_type: SOCK_DGRAM,
    number: 1,
    tables: &[ip::ROWS, socket::ROWS],
};

/// Over IPv6.
pub static IPV6: Protocol = Protocol {
    family_name: "inet6",
    type_name: "dgram",
    name: "ping6",
    family: AF_INET6,
    socket_type: SOCK_DGRAM,
    number: 58,
    tables: &[ip::ROWS, ipv6::ROWS, socket::ROWS],
};
