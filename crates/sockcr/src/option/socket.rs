//! The options of `SOL_SOCKET`.

use super::value::{Names, Unit};
use super::{Access, Default, Field, Kind, Level, Row, Stage, Wire};
use sockcr_image::number;

const TIMESTAMPING: Names = &[
    ("SOF_TIMESTAMPING_TX_HARDWARE", 1 << 0),
    ("SOF_TIMESTAMPING_TX_SOFTWARE", 1 << 1),
    ("SOF_TIMESTAMPING_RX_HARDWARE", 1 << 2),
    ("SOF_TIMESTAMPING_RX_SOFTWARE", 1 << 3),
    ("SOF_TIMESTAMPING_SOFTWARE", 1 << 4),
    ("SOF_TIMESTAMPING_SYS_HARDWARE", 1 << 5),
    ("SOF_TIMESTAMPING_RAW_HARDWARE", 1 << 6),
    ("SOF_TIMESTAMPING_OPT_ID", 1 << 7),
    ("SOF_TIMESTAMPING_TX_SCHED", 1 << 8),
    ("SOF_TIMESTAMPING_TX_ACK", 1 << 9),
    ("SOF_TIMESTAMPING_OPT_CMSG", 1 << 10),
    ("SOF_TIMESTAMPING_OPT_TSONLY", 1 << 11),
    ("SOF_TIMESTAMPING_OPT_STATS", 1 << 12),
    ("SOF_TIMESTAMPING_OPT_PKTINFO", 1 << 13),
    ("SOF_TIMESTAMPING_OPT_TX_SWHW", 1 << 14),
    ("SOF_TIMESTAMPING_BIND_PHC", 1 << 15),
    ("SOF_TIMESTAMPING_OPT_ID_TCP", 1 << 16),
    ("SOF_TIMESTAMPING_OPT_RX_FILTER", 1 << 17),
    ("SOF_TIMESTAMPING_TX_COMPLETION", 1 << 18),
];

const IDENTITY: Access = Access::ReadOnly("names this one socket; a restored one is another");
const MADE: Access = Access::ReadOnly("chosen when the socket is made");
const UNIX_ONLY: Access = Access::ReadOnly("answered for Unix sockets only");
const COUNTER: Access = Access::ReadOnly("a counter");
const INT: Kind = Kind::Int(i32::MIN as i64, i32::MAX as i64, Unit::None);
const U32: Kind = Kind::Int(0, u32::MAX as i64, Unit::None);
const COUNT: Kind = Kind::Int(0, i32::MAX as i64, Unit::None);

const fn row(number: u16, name: &'static str, kind: Kind) -> Row {
    Row::new(Level::Socket, number, name, kind)
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
    flag(1, "SO_DEBUG").rfc(number::SOCKOPT_DEBUG, Wire::Flag)
        .needs("CAP_NET_ADMIN in the initial user namespace"),
    // `inet_create`, INET_PROTOSW_REUSE.
    flag(2, "SO_REUSEADDR").rfc(number::SOCKOPT_REUSEADDR, Wire::Flag).default(Default::ByPort(0, 1)),
    row(3, "SO_TYPE", Kind::Int(0, 10, Unit::None)).default(Default::None).access(MADE),
    action(4, "SO_ERROR", Access::NotRead("reading it clears it; BPF sees sock.sk_err")),
    flag(5, "SO_DONTROUTE").rfc(number::SOCKOPT_DONTROUTE, Wire::Flag).stage(Stage::AfterConnect),
    flag(6, "SO_BROADCAST").rfc(number::SOCKOPT_BROADCAST, Wire::Flag),
    row(7, "SO_SNDBUF", Kind::Buffer(4608)).rfc(number::SOCKOPT_SNDBUF, Wire::U32).force(32)
        .default(Default::Sysctl("net.core.wmem_default")),
    row(8, "SO_RCVBUF", Kind::Buffer(2304)).rfc(number::SOCKOPT_RCVBUF, Wire::U32).force(33)
        .default(Default::Sysctl("net.core.rmem_default")),
    flag(9, "SO_KEEPALIVE").rfc(number::SOCKOPT_KEEPALIVE, Wire::Flag),
    flag(10, "SO_OOBINLINE").rfc(number::SOCKOPT_OOBINLINE, Wire::Flag),
    flag(11, "SO_NO_CHECK"),
    row(12, "SO_PRIORITY", U32).rfc(number::SOCKOPT_PRIORITY, Wire::U32).disturbed_by("IP_TOS")
        .needs("CAP_NET_RAW or CAP_NET_ADMIN above 6"),
    row(13, "SO_LINGER", Kind::Linger).rfc(number::SOCKOPT_LINGER, Wire::Kernel),
    flag(14, "SO_BSDCOMPAT").access(Access::ReadOnly("without any effect since 2.6.22; always 0")),
    flag(15, "SO_REUSEPORT").since("3.9"),
    flag(16, "SO_PASSCRED").rfc(number::SOCKOPT_PASSCRED, Wire::Flag)
        .access(Access::ReadOnly("refused on internet sockets since 6.16, without effect before")),
    action(17, "SO_PEERCRED", UNIX_ONLY),
    row(18, "SO_RCVLOWAT", Kind::Int(1, i32::MAX as i64, Unit::Bytes))
        .rfc(number::SOCKOPT_RCVLOWAT, Wire::U32).default(Default::Number(1)),
    row(19, "SO_SNDLOWAT", Kind::Int(1, 1, Unit::Bytes)).default(Default::Number(1))
        .access(Access::ReadOnly("always 1; Linux has no such mark")),
    row(20, "SO_RCVTIMEO", Kind::Timeval).rfc(number::SOCKOPT_RCVTIMEO, Wire::Kernel)
        .source("net/core/sock.c sock_set_timeout"),
    row(21, "SO_SNDTIMEO", Kind::Timeval).rfc(number::SOCKOPT_SNDTIMEO, Wire::Kernel)
        .source("net/core/sock.c sock_set_timeout"),
    row(25, "SO_BINDTODEVICE", Kind::Device).rfc(number::SOCKOPT_BINDTODEVICE, Wire::Name)
        .needs("CAP_NET_RAW to change a device already set").source("net/core/sock.c sock_setbindtodevice"),
    action(26, "SO_ATTACH_FILTER", Access::State("filter")).source("net/core/filter.c sk_attach_filter"),
    action(27, "SO_DETACH_FILTER", Access::SetOnly("takes the filter away")),
    action(28, "SO_PEERNAME", Access::State("endpoint")),
    // The two below set one bit that also says which of the four after them is meant: so these
    // two first.
    row(37, "SO_TIMESTAMPING_OLD", Kind::Timestamping(TIMESTAMPING)).since("2.6.30")
        .source("net/core/sock.c sock_set_timestamping"),
    row(65, "SO_TIMESTAMPING_NEW", Kind::Timestamping(TIMESTAMPING)).since("5.1")
        .source("net/core/sock.c sock_set_timestamping"),
    flag(29, "SO_TIMESTAMP").rfc(number::SOCKOPT_TIMESTAMP, Wire::Flag).source("net/core/sock.c sock_set_timestamp"),
    flag(35, "SO_TIMESTAMPNS").since("2.6.22").source("net/core/sock.c sock_set_timestamp"),
    flag(63, "SO_TIMESTAMP_NEW").since("5.1").source("net/core/sock.c sock_set_timestamp"),
    flag(64, "SO_TIMESTAMPNS_NEW").since("5.1").source("net/core/sock.c sock_set_timestamp"),
    flag(30, "SO_ACCEPTCONN").access(Access::ReadOnly("says whether a stream socket listens")),
    action(31, "SO_PEERSEC", UNIX_ONLY).since("2.6.2"),
    action(32, "SO_SNDBUFFORCE", Access::Alias("SO_SNDBUF")).since("2.6.14").needs("CAP_NET_ADMIN in the initial user namespace"),
    action(33, "SO_RCVBUFFORCE", Access::Alias("SO_RCVBUF")).since("2.6.14").needs("CAP_NET_ADMIN in the initial user namespace"),
    flag(34, "SO_PASSSEC").access(UNIX_ONLY).since("2.6.18"),
    row(36, "SO_MARK", U32).since("2.6.25").needs("CAP_NET_RAW or CAP_NET_ADMIN"),
    row(38, "SO_PROTOCOL", COUNT).default(Default::None).access(MADE).since("2.6.32"),
    row(39, "SO_DOMAIN", COUNT).default(Default::None).access(MADE).since("2.6.32"),
    flag(40, "SO_RXQ_OVFL").since("2.6.33"),
    flag(41, "SO_WIFI_STATUS").since("3.3"),
    row(42, "SO_PEEK_OFF", INT).since("3.4").default(Default::Number(-1))
        .source("net/core/sock.c sk_set_peek_off"),
    flag(43, "SO_NOFCS").since("3.4"),
    flag(45, "SO_SELECT_ERR_QUEUE").since("3.10"),
    row(46, "SO_BUSY_POLL", Kind::Int(0, i32::MAX as i64, Unit::Microseconds)).since("3.11")
        .default(Default::Sysctl("net.core.busy_read")).needs("CAP_NET_ADMIN above what it is, on older kernels"),
    row(47, "SO_MAX_PACING_RATE", Kind::U64(Unit::Rate)).since("3.13").default(Default::Number(-1)),
    row(48, "SO_BPF_EXTENSIONS", COUNT).default(Default::None)
        .access(Access::ReadOnly("a number of the kernel's, the same for every socket")).since("3.14"),
    row(49, "SO_INCOMING_CPU", INT).since("3.19").default(Default::Number(-1)),
    action(50, "SO_ATTACH_BPF", Access::SetOnly("attaches an eBPF filter, which no option gives back")).since("3.19"),
    action(51, "SO_ATTACH_REUSEPORT_CBPF", Access::SetOnly("gives a SO_REUSEPORT group a program, which no option gives back")).since("4.5"),
    action(52, "SO_ATTACH_REUSEPORT_EBPF", Access::SetOnly("gives a SO_REUSEPORT group a program, which no option gives back")).since("4.5"),
    action(53, "SO_CNX_ADVICE", Access::SetOnly("tells the kernel once to doubt the route")).since("4.6"),
    row(55, "SO_MEMINFO", Kind::Opaque(36)).access(COUNTER).since("4.12"),
    row(56, "SO_INCOMING_NAPI_ID", COUNT).access(COUNTER).since("4.12"),
    action(57, "SO_COOKIE", IDENTITY).since("4.12"),
    action(59, "SO_PEERGROUPS", UNIX_ONLY).since("4.13"),
    flag(60, "SO_ZEROCOPY").since("4.14"),
    row(61, "SO_TXTIME", Kind::Txtime).since("4.19").hidden(Field::Txtime)
        .needs("CAP_NET_ADMIN for another clock than CLOCK_MONOTONIC"),
    row(62, "SO_BINDTOIFINDEX", COUNT).access(Access::Alias("SO_BINDTODEVICE")).since("5.1"),
    row(66, "SO_RCVTIMEO_NEW", Kind::Timeval).access(Access::Alias("SO_RCVTIMEO")).since("5.1"),
    row(67, "SO_SNDTIMEO_NEW", Kind::Timeval).access(Access::Alias("SO_SNDTIMEO")).since("5.1"),
    action(68, "SO_DETACH_REUSEPORT_BPF", Access::SetOnly("takes the program of a SO_REUSEPORT group away")).since("5.3"),
    flag(69, "SO_PREFER_BUSY_POLL").since("5.11").needs("CAP_NET_ADMIN in the initial user namespace"),
    row(70, "SO_BUSY_POLL_BUDGET", Kind::Int(0, 65535, Unit::None)).since("5.11")
        .hidden(Field::BusyPollBudget).needs("CAP_NET_ADMIN in the initial user namespace above what it is"),
    action(71, "SO_NETNS_COOKIE", Access::ReadOnly("names the network namespace")).since("5.14"),
    row(72, "SO_BUF_LOCK", Kind::Bits(&[("SOCK_SNDBUF_LOCK", 1), ("SOCK_RCVBUF_LOCK", 2)]))
        .access(Access::State("locks")).since("5.15"),
    row(73, "SO_RESERVE_MEM", Kind::Int(0, i32::MAX as i64, Unit::Bytes)).since("5.16"),
    row(74, "SO_TXREHASH", COUNT).default(Default::None).since("5.18")
        .access(Access::ReadOnly("answered for TCP only")),
    flag(75, "SO_RCVMARK").since("5.19").needs("CAP_NET_RAW or CAP_NET_ADMIN, on older kernels"),
    action(76, "SO_PASSPIDFD", UNIX_ONLY).since("6.5"),
    action(77, "SO_PEERPIDFD", UNIX_ONLY).since("6.5"),
    action(80, "SO_DEVMEM_DONTNEED", Access::SetOnly("gives device memory of TCP back")).since("6.12"),
    flag(82, "SO_RCVPRIORITY").since("6.14"),
    action(83, "SO_PASSRIGHTS", UNIX_ONLY).since("6.16"),
    flag(44, "SO_LOCK_FILTER").since("3.9").stage(Stage::Last),
];
