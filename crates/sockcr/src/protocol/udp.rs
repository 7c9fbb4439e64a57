//! UDP.

use super::Protocol;
use crate::option::{ip, ipv6, socket, udp};

/// UDP over IPv4.
pub static IPV4: Protocol = Protocol {
    family_name: "inet",
    type_name: "dgram",
    name: "udp",
    family: 2,
    socket_type: 2,
    number: 17,
    tables: &[ip::ROWS, udp::ROWS, socket::ROWS],
};

/// UDP over IPv6, and over IPv4 by such a socket: it has the options of both.
pub static IPV6: Protocol = Protocol {
    family_name: "inet6",
    type_name: "dgram",
    name: "udp6",
    family: 10,
    socket_type: 2,
    number: 17,
    tables: &[ip::ROWS, ipv6::ROWS, udp::ROWS, socket::ROWS],
};
