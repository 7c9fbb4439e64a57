//! The options of `IPPROTO_IPV6`.

use super::value::{Names, Order, Unit};
use super::{Access, Default, Field, Kind, Level, Row, Special};

const PMTUDISC: Names = &[
    ("IPV6_PMTUDISC_DONT", 0),
    ("IPV6_PMTUDISC_WANT", 1),
    ("IPV6_PMTUDISC_DO", 2),
    ("IPV6_PMTUDISC_PROBE", 3),
    ("IPV6_PMTUDISC_INTERFACE", 4),
    ("IPV6_PMTUDISC_OMIT", 5),
];

/// As it reads: one of three and one of two, each of which has a number also when it is the default.
/// What is unsaid in a name is the default, IPV6_PREFER_SRC_HOME or IPV6_PREFER_SRC_PUBTMP_DEFAULT.
const PREFERENCES: Names = &[
    ("IPV6_PREFER_SRC_PUBTMP_DEFAULT", 0x500),
    ("IPV6_PREFER_SRC_TMP", 0x401),
    ("IPV6_PREFER_SRC_PUBLIC", 0x402),
    ("IPV6_PREFER_SRC_COA", 0x104),
    ("IPV6_PREFER_SRC_TMP|IPV6_PREFER_SRC_COA", 0x5),
    ("IPV6_PREFER_SRC_PUBLIC|IPV6_PREFER_SRC_COA", 0x6),
];

const BYTE: Kind = Kind::Int(0, 255, Unit::None);
const HOPS: Kind = Kind::Int(0, 255, Unit::Hops);
/// An extension header of its own; 8 bytes less than its length field could say (`ipv6_set_opt_hdr`).
const HEADER: Kind = Kind::Bytes(8 * 255);
const MEMBERSHIP: Access = Access::State("membership");
const NETFILTER: Access =
    Access::ReadOnly("asks netfilter about the tables of the network namespace, not the socket");
const ROUTE: Access = Access::ReadOnly("belongs to the route of a connected socket");

const fn row(number: u16, name: &'static str, kind: Kind) -> Row {
    Row::new(Level::Ipv6, number, name, kind)
}

const fn flag(number: u16, name: &'static str) -> Row {
    row(number, name, Kind::Flag)
}

/// An option that does something once, or that another row or state carries.
const fn action(number: u16, name: &'static str, access: Access) -> Row {
    row(number, name, Kind::Opaque(0)).access(access)
}

/// The rows, in the order in which restore writes them: none changes what another one reads. Those
/// that name a device are refused once SO_BINDTODEVICE names another one, and all stand before it.
///
/// The headers name the options of 42 to 48 as those of IPPROTO_IP; here their names begin with
/// IPV6, so that each name is one option's.
#[rustfmt::skip]
pub static ROWS: &[Row] = &[
    row(1, "IPV6_ADDRFORM", Kind::Int(0, i32::MAX as i64, Unit::None)).default(Default::None)
        .access(Access::ReadOnly("tells the family; setting it makes an IPv4 socket of a connected one")),
    flag(2, "IPV6_2292PKTINFO"),
    flag(3, "IPV6_2292HOPOPTS"),
    flag(4, "IPV6_2292DSTOPTS"),
    flag(5, "IPV6_2292RTHDR"),
    action(6, "IPV6_2292PKTOPTIONS", Access::SetOnly(
        "sets the headers that IPV6_HOPOPTS, IPV6_RTHDRDSTOPTS, IPV6_RTHDR and IPV6_DSTOPTS carry")),
    flag(8, "IPV6_2292HOPLIMIT"),
    flag(11, "IPV6_FLOWINFO"),
    row(16, "IPV6_UNICAST_HOPS", HOPS)
        .default(Default::Sysctl("net.ipv6.conf.all.hop_limit")).hidden(Field::UnicastHops),
    row(17, "IPV6_MULTICAST_IF", Kind::Interface(Order::Host)),
    row(18, "IPV6_MULTICAST_HOPS", HOPS).default(Default::Number(1)),
    flag(19, "IPV6_MULTICAST_LOOP").default(Default::Number(1)),
    action(20, "IPV6_ADD_MEMBERSHIP", MEMBERSHIP),
    action(21, "IPV6_DROP_MEMBERSHIP", MEMBERSHIP),
    flag(22, "IPV6_ROUTER_ALERT").access(Access::ReadOnly(
        "on raw sockets of IPPROTO_RAW only, and of its number the kernel tells nothing but whether it is 0"))
        .source("net/ipv6/ipv6_sockglue.c ip6_ra_control"),
    row(23, "IPV6_MTU_DISCOVER", Kind::Enum(PMTUDISC)).default(Default::Number(1)),
    row(24, "IPV6_MTU", Kind::ZeroOr(1280, i32::MAX as i64, Unit::Bytes)).hidden(Field::FragmentSize),
    flag(25, "IPV6_RECVERR"),
    // Refused on a bound socket, and on when an address of IPv6 was bound (`__inet6_bind`).
    flag(26, "IPV6_V6ONLY").default(Default::Sysctl("net.ipv6.bindv6only")),
    action(27, "IPV6_JOIN_ANYCAST", MEMBERSHIP),
    action(28, "IPV6_LEAVE_ANYCAST", MEMBERSHIP),
    flag(29, "IPV6_MULTICAST_ALL").since("4.20").default(Default::Number(1)),
    flag(30, "IPV6_ROUTER_ALERT_ISOLATE").since("5.1"),
    flag(31, "IPV6_RECVERR_RFC4884").since("5.9"),
    action(32, "IPV6_FLOWLABEL_MGR", Access::State("flow_labels")).source("net/ipv6/ip6_flowlabel.c ipv6_flowlabel_opt"),
    flag(33, "IPV6_FLOWINFO_SEND"),
    action(34, "IPV6_IPSEC_POLICY", Access::SetOnly("an IPsec policy of PF_KEY; never readable")),
    action(35, "IPV6_XFRM_POLICY", Access::SetOnly(
        "an IPsec policy; only whether there is one can be seen (sock.sk_policy)"))
        .needs("CAP_NET_ADMIN").since("2.5.48").source("net/xfrm/xfrm_state.c xfrm_user_policy"),
    action(42, "IPV6_MCAST_JOIN_GROUP", MEMBERSHIP).since("2.5.68"),
    action(43, "IPV6_MCAST_BLOCK_SOURCE", MEMBERSHIP).since("2.5.68"),
    action(44, "IPV6_MCAST_UNBLOCK_SOURCE", MEMBERSHIP).since("2.5.68"),
    action(45, "IPV6_MCAST_LEAVE_GROUP", MEMBERSHIP).since("2.5.68"),
    action(46, "IPV6_MCAST_JOIN_SOURCE_GROUP", MEMBERSHIP).since("2.5.68"),
    action(47, "IPV6_MCAST_LEAVE_SOURCE_GROUP", MEMBERSHIP).since("2.5.68"),
    action(48, "IPV6_MCAST_MSFILTER", MEMBERSHIP).since("2.5.68"),
    flag(49, "IPV6_RECVPKTINFO").since("2.6.14"),
    row(50, "IPV6_PKTINFO", Kind::PacketInfo).since("2.6.14").hidden(Field::StickyPacketInfo),
    flag(51, "IPV6_RECVHOPLIMIT").since("2.6.14"),
    flag(53, "IPV6_RECVHOPOPTS").since("2.6.14"),
    row(54, "IPV6_HOPOPTS", HEADER).since("2.6.14").needs("CAP_NET_RAW")
        .source("net/ipv6/ipv6_sockglue.c ipv6_set_opt_hdr"),
    row(55, "IPV6_RTHDRDSTOPTS", HEADER).since("2.6.14").needs("CAP_NET_RAW")
        .source("net/ipv6/ipv6_sockglue.c ipv6_set_opt_hdr"),
    flag(56, "IPV6_RECVRTHDR").since("2.6.14"),
    row(57, "IPV6_RTHDR", HEADER).since("2.6.14").source("net/ipv6/ipv6_sockglue.c ipv6_set_opt_hdr"),
    flag(58, "IPV6_RECVDSTOPTS").since("2.6.14"),
    row(59, "IPV6_DSTOPTS", HEADER).since("2.6.14").needs("CAP_NET_RAW")
        .source("net/ipv6/ipv6_sockglue.c ipv6_set_opt_hdr"),
    flag(60, "IPV6_RECVPATHMTU").since("2.6.35"),
    row(61, "IPV6_PATHMTU", Kind::Opaque(32)).since("2.6.35").access(ROUTE),
    flag(62, "IPV6_DONTFRAG").since("2.6.35"),
    action(64, "IP6T_SO_GET_INFO", NETFILTER).source("net/ipv6/netfilter/ip6_tables.c do_ip6t_get_ctl"),
    action(65, "IP6T_SO_GET_ENTRIES", NETFILTER).source("net/ipv6/netfilter/ip6_tables.c do_ip6t_get_ctl"),
    flag(66, "IPV6_RECVTCLASS").since("2.6.14"),
    row(67, "IPV6_TCLASS", BYTE).since("2.6.14"),
    action(68, "IP6T_SO_GET_REVISION_MATCH", NETFILTER).source("net/ipv6/netfilter/ip6_tables.c do_ip6t_get_ctl"),
    action(69, "IP6T_SO_GET_REVISION_TARGET", NETFILTER).source("net/ipv6/netfilter/ip6_tables.c do_ip6t_get_ctl"),
    flag(70, "IPV6_AUTOFLOWLABEL").since("3.17")
        .default(Default::Sysctl("net.ipv6.auto_flowlabels")).hidden(Field::AutoFlowLabel),
    row(72, "IPV6_ADDR_PREFERENCES", Kind::Enum(PREFERENCES)).since("2.6.26").default(Default::Number(0x500)),
    row(73, "IPV6_MINHOPCOUNT", BYTE).since("2.6.35"),
    flag(74, "IPV6_RECVORIGDSTADDR").since("2.6.37"),
    // A raw socket does not have the options of IPPROTO_IP.
    flag(75, "IPV6_TRANSPARENT").since("2.6.37").access(Access::Alias("IP_TRANSPARENT")).only_on(Special::Raw)
        .needs("CAP_NET_RAW or CAP_NET_ADMIN"),
    row(76, "IPV6_UNICAST_IF", Kind::Interface(Order::Network)).since("3.4"),
    flag(77, "IPV6_RECVFRAGSIZE").since("4.10"),
    flag(78, "IPV6_FREEBIND").since("4.15").access(Access::Alias("IP_FREEBIND")).only_on(Special::Raw),
];
