//! Raw sockets: one kind for each protocol number that socket(2) takes.

use super::{AF_INET, AF_INET6, Protocol, SOCK_RAW};
use crate::option::{Row, icmp, ip, ipv6, raw, socket};

/// `IPPROTO_MAX`: socket(2) takes numbers below, and none at 0 (`inet_create`).
const NUMBERS: usize = 263;

const IPPROTO_ICMP: u32 = 1;
const IPPROTO_ICMPV6: u32 = 58;

static TABLES: &[&[Row]] = &[ip::ROWS, socket::ROWS];
static ICMP_TABLES: &[&[Row]] = &[ip::ROWS, icmp::ROWS, socket::ROWS];
/// `rawv6_setsockopt` hands the options of IPPROTO_IP to nobody.
static IPV6_TABLES: &[&[Row]] = &[ipv6::ROWS, raw::ROWS, socket::ROWS];
static ICMPV6_TABLES: &[&[Row]] = &[ipv6::ROWS, raw::ROWS, icmp::ROWS6, socket::ROWS];

/// Of IPv4, by their protocol.
pub static IPV4: [Protocol; NUMBERS] = all(
    Protocol {
        family_name: "inet",
        type_name: "raw",
        name: "raw",
        family: AF_INET,
        socket_type: SOCK_RAW,
        number: IPPROTO_ICMP,
        tables: TABLES,
    },
    ICMP_TABLES,
);
/// Of IPv6, by their protocol.
pub static IPV6: [Protocol; NUMBERS] = all(
    Protocol {
        family_name: "inet6",
        type_name: "raw",
        name: "raw6",
        family: AF_INET6,
        socket_type: SOCK_RAW,
        number: IPPROTO_ICMPV6,
        tables: IPV6_TABLES,
    },
    ICMPV6_TABLES,
);

/// One for each number; that of `kind` has tables of its own.
const fn all(kind: Protocol, own: &'static [&'static [Row]]) -> [Protocol; NUMBERS] {
    let mut all = [kind; NUMBERS];
    let mut number = 0;
    while number < NUMBERS {
        all[number].number = number as u32;
        number += 1;
    }
    all[kind.number as usize].tables = own;
    all
}
