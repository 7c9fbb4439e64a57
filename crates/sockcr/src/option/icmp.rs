//! The filters of raw sockets by the type of ICMP messages.

use super::value::Unit;
use super::{Kind, Level, Row};

/// Of raw sockets of IPPROTO_ICMP: bit N stops the type N.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    Row::new(Level::Raw, 1, "ICMP_FILTER", Kind::Int(0, u32::MAX as i64, Unit::Mask))
        .source("net/ipv4/raw.c raw_seticmpfilter"),
];

/// Of raw sockets of IPPROTO_ICMPV6: `struct icmp6_filter`, where a bit set stops its type.
#[rustfmt::skip]
pub static ROWS6: &[Row] = &[
    Row::new(Level::Icmpv6, 1, "ICMPV6_FILTER", Kind::Field(32)),
];
