//! The options of `IPPROTO_IP`.

use super::value::{Names, Order, Unit};
use super::{Access, Default, Field, Kind, Level, Row, Special, Stage, Wire};
use sockcr_image::number;

const PMTUDISC: Names = &[
    ("IP_PMTUDISC_DONT", 0),
    ("IP_PMTUDISC_WANT", 1),
    ("IP_PMTUDISC_DO", 2),
    ("IP_PMTUDISC_PROBE", 3),
    ("IP_PMTUDISC_INTERFACE", 4),
    ("IP_PMTUDISC_OMIT", 5),
];

const BYTE: Kind = Kind::Int(0, 255, Unit::None);
const MEMBERSHIP: Access = Access::State("membership");
const NETFILTER: Access =
    Access::ReadOnly("asks netfilter about the tables of the network namespace, not the socket");
const RAW_ONLY: Access = Access::ReadOnly("can be set on raw sockets only");

const fn row(number: u16, name: &'static str, kind: Kind) -> Row {
    Row::new(Level::Ip, number, name, kind)
}

const fn flag(number: u16, name: &'static str) -> Row {
    row(number, name, Kind::Flag)
}

/// An option that does something once, or that another row or state carries.
const fn action(number: u16, name: &'static str, access: Access) -> Row {
    row(number, name, Kind::Opaque(0)).access(access)
}

/// The rows, in the order in which restore writes them.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    row(1, "IP_TOS", BYTE).rfc(number::IPOPT_TOS, Wire::U8),
    row(2, "IP_TTL", Kind::Int(1, 255, Unit::Hops)).rfc(number::IPOPT_TTL, Wire::U8)
        .default(Default::Sysctl("net.ipv4.ip_default_ttl")).hidden(Field::UnicastTtl),
    // `inet_create`: on from the start for IPPROTO_RAW.
    flag(3, "IP_HDRINCL").rfc(number::IPOPT_HDRINCL, Wire::Flag).default(Default::ByProtocol(&[(255, 1)], 0))
        .access(RAW_ONLY).only_on(Special::Raw),
    row(4, "IP_OPTIONS", Kind::Bytes(40)).rfc(number::IPOPT_OPTIONS, Wire::Kernel)
        .needs("CAP_NET_RAW for a security option or a source route"),
    flag(5, "IP_ROUTER_ALERT").rfc(number::IPOPT_ROUTER_ALERT, Wire::Flag).access(RAW_ONLY).only_on(Special::Raw)
        .source("net/ipv4/ip_sockglue.c ip_ra_control"),
    flag(6, "IP_RECVOPTS").rfc(number::IPOPT_RECVOPTS, Wire::Flag),
    flag(7, "IP_RETOPTS").rfc(number::IPOPT_RETOPTS, Wire::Flag),
    flag(8, "IP_PKTINFO").rfc(number::IPOPT_PKTINFO, Wire::Flag),
    row(10, "IP_MTU_DISCOVER", Kind::Enum(PMTUDISC)).rfc(number::IPOPT_MTU_DISCOVER, Wire::U8)
        .default(Default::Sysctl("net.ipv4.ip_no_pmtu_disc")),
    flag(11, "IP_RECVERR").rfc(number::IPOPT_RECVERR, Wire::Flag),
    flag(12, "IP_RECVTTL").rfc(number::IPOPT_RECVTTL, Wire::Flag),
    flag(13, "IP_RECVTOS").rfc(number::IPOPT_RECVTOS, Wire::Flag),
    row(14, "IP_MTU", Kind::Int(0, 65535, Unit::Bytes))
        .access(Access::ReadOnly("belongs to the route of a connected socket")),
    flag(15, "IP_FREEBIND").since("2.4"),
    action(16, "IP_IPSEC_POLICY", Access::SetOnly("an IPsec policy of PF_KEY; never readable")),
    action(17, "IP_XFRM_POLICY", Access::SetOnly(
        "an IPsec policy; only whether there is one can be seen (sock.sk_policy)"))
        .needs("CAP_NET_ADMIN").since("2.5.48").source("net/xfrm/xfrm_state.c xfrm_user_policy"),
    flag(18, "IP_PASSSEC").since("2.6.17"),
    flag(19, "IP_TRANSPARENT").since("2.6.28").needs("CAP_NET_RAW or CAP_NET_ADMIN"),
    flag(20, "IP_RECVORIGDSTADDR").since("2.6.29"),
    row(21, "IP_MINTTL", BYTE).since("2.6.34"),
    flag(22, "IP_NODEFRAG").since("2.6.36").access(RAW_ONLY).only_on(Special::Raw),
    flag(23, "IP_CHECKSUM").since("4.0"),
    flag(24, "IP_BIND_ADDRESS_NO_PORT").since("4.2").stage(Stage::AfterConnect)
        .source("net/ipv4/af_inet.c __inet_bind"),
    flag(25, "IP_RECVFRAGSIZE").since("4.10"),
    flag(26, "IP_RECVERR_RFC4884").since("5.9"),
    row(32, "IP_MULTICAST_IF", Kind::MulticastInterface)
        .rfc(number::IPOPT_MULTICAST_IF, Wire::MulticastInterface).hidden(Field::MulticastIndex),
    row(33, "IP_MULTICAST_TTL", BYTE).rfc(number::IPOPT_MULTICAST_TTL, Wire::U8)
        .default(Default::Number(1)),
    flag(34, "IP_MULTICAST_LOOP").rfc(number::IPOPT_MULTICAST_LOOP, Wire::Flag)
        .default(Default::Number(1)),
    action(35, "IP_ADD_MEMBERSHIP", MEMBERSHIP),
    action(36, "IP_DROP_MEMBERSHIP", MEMBERSHIP),
    action(37, "IP_UNBLOCK_SOURCE", MEMBERSHIP).since("2.5.68"),
    action(38, "IP_BLOCK_SOURCE", MEMBERSHIP).since("2.5.68"),
    action(39, "IP_ADD_SOURCE_MEMBERSHIP", MEMBERSHIP).since("2.5.68"),
    action(40, "IP_DROP_SOURCE_MEMBERSHIP", MEMBERSHIP).since("2.5.68"),
    action(41, "IP_MSFILTER", MEMBERSHIP).since("2.5.68"),
    action(42, "MCAST_JOIN_GROUP", MEMBERSHIP).since("2.5.68"),
    action(43, "MCAST_BLOCK_SOURCE", MEMBERSHIP).since("2.5.68"),
    action(44, "MCAST_UNBLOCK_SOURCE", MEMBERSHIP).since("2.5.68"),
    action(45, "MCAST_LEAVE_GROUP", MEMBERSHIP).since("2.5.68"),
    action(46, "MCAST_JOIN_SOURCE_GROUP", MEMBERSHIP).since("2.5.68"),
    action(47, "MCAST_LEAVE_SOURCE_GROUP", MEMBERSHIP).since("2.5.68"),
    action(48, "MCAST_MSFILTER", MEMBERSHIP).since("2.5.68"),
    // `inet6_create` does not set the bit that `inet_create` sets.
    flag(49, "IP_MULTICAST_ALL").since("2.6.31").default(Default::ByFamily(1, 0)),
    row(50, "IP_UNICAST_IF", Kind::Interface(Order::Network)).since("3.4"),
    row(51, "IP_LOCAL_PORT_RANGE", Kind::PortRange).since("6.3").stage(Stage::AfterConnect),
    row(52, "IP_PROTOCOL", Kind::Int(0, 65535, Unit::None)).since("6.4").default(Default::None)
        .access(Access::ReadOnly("tells inet_sock.inet_num: the protocol of a raw socket, the own port of others"))
        .source("net/ipv4/ip_sockglue.c do_ip_getsockopt"),
    action(64, "IPT_SO_GET_INFO", NETFILTER).source("net/ipv4/netfilter/ip_tables.c do_ipt_get_ctl"),
    action(65, "IPT_SO_GET_ENTRIES", NETFILTER).source("net/ipv4/netfilter/ip_tables.c do_ipt_get_ctl"),
    action(66, "IPT_SO_GET_REVISION_MATCH", NETFILTER).source("net/ipv4/netfilter/ip_tables.c do_ipt_get_ctl"),
    action(67, "IPT_SO_GET_REVISION_TARGET", NETFILTER).source("net/ipv4/netfilter/ip_tables.c do_ipt_get_ctl"),
    action(83, "SO_IP_SET", NETFILTER).source("net/netfilter/ipset/ip_set_core.c ip_set_sockfn_get"),
    action(96, "ARPT_SO_GET_INFO", NETFILTER).source("net/ipv4/netfilter/arp_tables.c do_arpt_get_ctl"),
    action(97, "ARPT_SO_GET_ENTRIES", NETFILTER).source("net/ipv4/netfilter/arp_tables.c do_arpt_get_ctl"),
    action(98, "ARPT_SO_GET_REVISION_MATCH", NETFILTER).source("net/ipv4/netfilter/arp_tables.c do_arpt_get_ctl"),
    action(99, "ARPT_SO_GET_REVISION_TARGET", NETFILTER).source("net/ipv4/netfilter/arp_tables.c do_arpt_get_ctl"),
];
