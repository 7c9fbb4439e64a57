//! UDP.

use super::Protocol;
use crate::option::{ip, socket, udp};

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
