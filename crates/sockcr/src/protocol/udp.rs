//! UDP and UDP-Lite.

use super::{AF_INET, AF_INET6, Protocol, SOCK_DGRAM};
use crate::option::{ip, ipv6, socket, udp};

/// UDP over IPv4.
pub static IPV4: Protocol = Protocol {
    family_name: "inet",
    type_name: "dgram",
    name: "udp",
    family: AF_INET,
    socket_type: SOCK_DGRAM,
    number: 17,
    tables: &[ip::ROWS, udp::ROWS, socket::ROWS],
};

/// UDP over IPv6, and over IPv4 by such a socket: it has the options of both.
pub static IPV6: Protocol = Protocol {
    family_name: "inet6",
    name: "udp6",
    family: AF_INET6,
    tables: &[ip::ROWS, ipv6::ROWS, udp::ROWS, socket::ROWS],
    ..IPV4
};

/// UDP-Lite over IPv4, where the kernel has it. Level SOL_UDPLITE means SOL_UDP (`udplite_setsockopt`).
pub static LITE_IPV4: Protocol = Protocol {
    name: "udplite",
    number: super::IPPROTO_UDPLITE,
    ..IPV4
};

/// UDP-Lite over IPv6.
pub static LITE_IPV6: Protocol = Protocol {
    name: "udplite6",
    number: super::IPPROTO_UDPLITE,
    ..IPV6
};
