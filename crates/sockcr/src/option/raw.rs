//! The options of raw sockets of AF_INET6.
//!
//! `do_rawv6_setsockopt` takes them at two levels. At IPPROTO_IPV6, where RFC 3542 has them, a socket of
//! ICMPv6 may not change its checksum; so they are carried at SOL_RAW.

use super::value::Unit;
use super::{Access, Default, Kind, Level, Row};

const SOURCE: &str = "net/ipv6/raw.c do_rawv6_setsockopt";

const fn row(level: Level, number: u16, name: &'static str, kind: Kind) -> Row {
    Row::new(level, number, name, kind).source(SOURCE)
}

/// The rows, in the order in which restore writes them.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    // Where the checksum is in the packet, always an even place; -1: there is none. `rawv6_init_sk` knows
    // where ICMPv6 and Mobile IPv6 have theirs.
    row(Level::Raw, 7, "IPV6_CHECKSUM", Kind::Int(-1, i32::MAX as i64, Unit::Bytes))
        .default(Default::ByProtocol(&[(58, 2), (135, 4)], -1)),
    // `inet6_create`: on from the start for IPPROTO_RAW.
    row(Level::Raw, 36, "IPV6_HDRINCL", Kind::Flag).default(Default::ByProtocol(&[(255, 1)], 0)).since("4.8"),
    row(Level::Ipv6, 7, "IPPROTO_IPV6_CHECKSUM", Kind::Int(-1, i32::MAX as i64, Unit::Bytes))
        .default(Default::None).access(Access::Alias("IPV6_CHECKSUM")),
    row(Level::Ipv6, 36, "IPPROTO_IPV6_HDRINCL", Kind::Flag)
        .default(Default::None).access(Access::Alias("IPV6_HDRINCL")).since("4.8"),
];
