//! Which attribute has which number.
//!
//! | numbers | of |
//! |---|---|
//! | 1 to 44 | the attributes of 2007, in their order and with their types |
//! | from 64 | what those do not hold |
//! | 0x100 to 0x4ff | socket options, by [`option`]: one number for each that the kernel can have |
//! | from 0x2000 | information: who does not know one passes over it |
//! | from 0x3000 | what the service is asked and answers; never in an image |
//!
//! A number stands for one thing for ever. Who meets one below [`INFORMATIONAL`] that it does
//! not know must not act as if it were not there.

/// From here on, numbers are for information: a restore passes over those it does not know.
pub const INFORMATIONAL: u16 = 0x2000;

macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        $($(#[$doc])* pub const $name: u16 = $number;)*

        /// Every attribute with a number of its own and its name, in the order of the numbers.
        pub const ALL: &[(&str, u16)] = &[$((stringify!($name), $number),)*];
    };
}

numbers! {
    /// u32: the inode of the socket in sockfs.
    INODE = 1,
    /// u32: the kernel's socket_state; 1 is unconnected, 3 connected.
    SOCK_STATE = 2,
    /// u32: SOCK_STREAM, SOCK_DGRAM, ...
    SOCK_TYPE = 3,
    /// u32: a descriptor of the socket.
    SOCK_FD = 4,
    /// SO_BINDTODEVICE, 16 bytes: the name, filled up with NULs.
    SOCKOPT_BINDTODEVICE = 5,
    /// SO_BROADCAST, flag.
    SOCKOPT_BROADCAST = 6,
    /// SO_DEBUG, flag.
    SOCKOPT_DEBUG = 7,
    /// SO_DONTROUTE, flag.
    SOCKOPT_DONTROUTE = 8,
    /// SO_KEEPALIVE, flag.
    SOCKOPT_KEEPALIVE = 9,
    /// SO_LINGER, struct linger: two i32, on or off and seconds.
    SOCKOPT_LINGER = 10,
    /// SO_OOBINLINE, flag.
    SOCKOPT_OOBINLINE = 11,
    /// SO_PASSCRED, flag.
    SOCKOPT_PASSCRED = 12,
    /// SO_PRIORITY, u32.
    SOCKOPT_PRIORITY = 13,
    /// SO_RCVLOWAT, u32 in bytes.
    SOCKOPT_RCVLOWAT = 14,
    /// SO_RCVTIMEO, struct timeval: two i64, seconds and microseconds.
    SOCKOPT_RCVTIMEO = 15,
    /// SO_SNDTIMEO, struct timeval: two i64, seconds and microseconds.
    SOCKOPT_SNDTIMEO = 16,
    /// SO_RCVBUF, u32 in bytes, as the kernel tells it: twice what was asked for.
    SOCKOPT_RCVBUF = 17,
    /// SO_REUSEADDR, flag.
    SOCKOPT_REUSEADDR = 18,
    /// SO_SNDBUF, u32 in bytes, as the kernel tells it: twice what was asked for.
    SOCKOPT_SNDBUF = 19,
    /// SO_TIMESTAMP, flag.
    SOCKOPT_TIMESTAMP = 20,
    /// Flag: the send buffer was set by hand, and the kernel leaves it alone.
    SOCKOPT_SNDBUF_ULOCK = 21,
    /// Flag: the receive buffer was set by hand, and the kernel leaves it alone.
    SOCKOPT_RCVBUF_ULOCK = 22,
    /// IP_OPTIONS, bytes.
    IPOPT_OPTIONS = 23,
    /// IP_PKTINFO, flag.
    IPOPT_PKTINFO = 24,
    /// IP_RECVTOS, flag.
    IPOPT_RECVTOS = 25,
    /// IP_RECVTTL, flag.
    IPOPT_RECVTTL = 26,
    /// IP_RECVOPTS, flag.
    IPOPT_RECVOPTS = 27,
    /// IP_RETOPTS, flag.
    IPOPT_RETOPTS = 28,
    /// IP_TOS, u8.
    IPOPT_TOS = 29,
    /// IP_TTL, u8.
    IPOPT_TTL = 30,
    /// IP_HDRINCL, flag.
    IPOPT_HDRINCL = 31,
    /// IP_RECVERR, flag.
    IPOPT_RECVERR = 32,
    /// IP_MTU_DISCOVER, u8.
    IPOPT_MTU_DISCOVER = 33,
    /// IP_ROUTER_ALERT, flag.
    IPOPT_ROUTER_ALERT = 34,
    /// IP_MULTICAST_TTL, u8.
    IPOPT_MULTICAST_TTL = 35,
    /// IP_MULTICAST_LOOP, flag.
    IPOPT_MULTICAST_LOOP = 36,
    /// Nested: the multicast groups, each an [`IPOPT_MREQ`] and perhaps a [`MEMBERSHIP_FILTER`].
    IPOPT_MEMBERSHIP = 37,
    /// In [`IPOPT_MEMBERSHIP`], struct ip_mreqn: group, local address, i32 interface index.
    IPOPT_MREQ = 38,
    /// IP_MULTICAST_IF, 4 bytes: the address datagrams to a group are sent from.
    IPOPT_MULTICAST_IF = 39,
    /// UDP_CORK, flag.
    UDPOPT_CORK = 40,
    /// struct sockaddr_in: the local address and port.
    UDP_BIND = 41,
    /// Flag: the local address was chosen by hand, and a disconnect leaves it.
    UDP_BIND_ADDR_ULOCK = 42,
    /// Flag: the local port was chosen by hand, and a disconnect leaves it.
    UDP_BIND_PORT_ULOCK = 43,
    /// struct sockaddr_in: the address and port of the peer.
    UDP_PEER = 44,

    /// u32: AF_INET, AF_INET6, ...
    FAMILY = 64,
    /// u32: IPPROTO_UDP, ...
    PROTOCOL = 65,
    /// Nested: an [`INTERFACE`] for each interface index that another attribute uses.
    INTERFACES = 66,
    /// In [`INTERFACES`]: u32 index, then the bytes of the name; no name: the device is gone.
    INTERFACE = 67,
    /// In [`IPOPT_MEMBERSHIP`], about the [`IPOPT_MREQ`] before it: u32 mode, 0 to exclude and 1
    /// to include, then 4 bytes for each source. Absent: nobody is excluded.
    MEMBERSHIP_FILTER = 68,
    /// u32: the interface index of IP_MULTICAST_IF; absent: none.
    MULTICAST_IFINDEX = 69,
    /// SO_ATTACH_FILTER: struct sock_filter, 8 bytes for each instruction; empty: no filter.
    FILTER = 70,
    /// u32: bit 0 O_NONBLOCK, bit 1 O_ASYNC, bit 2 close on exec.
    DESCRIPTOR_FLAGS = 71,
    /// Who gets the signals: u32 kind, i32 id. Kind 0 is nobody and 1 whoever holds the socket,
    /// both with id 0; 2 is the process, 3 the thread, 4 the process group with that id.
    OWNER = 72,
    /// u32: the signal that says I/O is possible (F_SETSIG); 0 is SIGIO.
    SIGNAL = 73,
    /// Nested, once for each thing the image should hold and does not: [`WHAT`] and [`REASON`].
    NOT_CARRIED = 74,
    /// Text: what it is about.
    WHAT = 75,
    /// Text: why.
    REASON = 76,
    /// u8: bit 0 shut down for receiving, bit 1 for sending.
    SHUTDOWN = 77,
    /// 4 or 16 bytes: the source address of a connected socket where it is not the bound one.
    SOURCE = 78,

    /// In QUEUE, struct sockaddr_in, or sockaddr_in6 with scope 0 for what came by IPv6: where a queued
    /// datagram came from; port and address may be 0.
    DATAGRAM_SOURCE = 79,
    /// In QUEUE, as [`DATAGRAM_SOURCE`]: where it went to.
    DATAGRAM_DESTINATION = 80,
    /// In QUEUE, u8: its TTL or hop limit.
    DATAGRAM_TTL = 81,
    /// In QUEUE, u8: its TOS or traffic class.
    DATAGRAM_TOS = 82,
    /// In QUEUE, u32: the interface index that IP_PKTINFO or IPV6_PKTINFO tells; 0: it tells nothing.
    DATAGRAM_INTERFACE = 83,
    /// In QUEUE, 4 or 16 bytes: the local address that IP_PKTINFO or IPV6_PKTINFO tells.
    DATAGRAM_SPEC_DST = 84,
    /// In QUEUE, i64: when it arrived, in nanoseconds since the epoch; 0: it was not stamped.
    DATAGRAM_TIME = 85,
    /// In QUEUE, u32: its mark.
    DATAGRAM_MARK = 86,
    /// In QUEUE, u32: the bytes of a segment, when UDP_GRO put several together; else 0.
    DATAGRAM_SEGMENT = 87,
    /// In QUEUE, the options of its IP header; of IPv6: one byte, the kind of the first extension header,
    /// and the extension headers, or nothing where there are none.
    DATAGRAM_OPTIONS = 88,
    /// In QUEUE, its data.
    DATAGRAM_PAYLOAD = 89,
    /// In QUEUE, u32: this is what UDP_CORK or MSG_MORE holds back; bit 0: it goes by a gateway.
    CORK = 90,
    /// In QUEUE of a [`CORK`], u64: when it may leave, in nanoseconds of SO_TXTIME's clock; 0: at once.
    CORK_TRANSMIT_TIME = 91,
    /// In QUEUE, struct sock_extended_err: this is an entry of the error queue.
    EXTENDED_ERROR = 92,
    /// In QUEUE of an [`EXTENDED_ERROR`], 4 bytes: the second word of the ICMP header.
    ICMP_REST = 93,
    /// In QUEUE, u32: its priority, SO_RCVPRIORITY; absent: 0.
    DATAGRAM_PRIORITY = 94,
    /// In QUEUE, flag: an empty datagram that somebody has peeked at: with SO_PEEK_OFF nobody sees
    /// it a second time.
    DATAGRAM_PEEKED = 95,
    /// u32: the errno that SO_ERROR would tell; absent: none.
    PENDING_ERROR = 96,
    /// An eBPF program as the filter, in place of [`FILTER`]: u32 number, 8 bytes tag, 16 bytes boot
    /// id, name.
    FILTER_PROGRAM = 97,
    /// The classic program of the SO_REUSEPORT group, as [`FILTER`]; absent: none.
    REUSEPORT_FILTER = 98,
    /// The eBPF program of the SO_REUSEPORT group, as [`FILTER_PROGRAM`].
    REUSEPORT_PROGRAM = 99,
    /// struct sockaddr_in6, with scope 0: the local address and port of an AF_INET6 socket, in place of
    /// [`UDP_BIND`].
    BIND6 = 100,
    /// struct sockaddr_in6, with scope 0: the address, port and flow label of the peer of an AF_INET6
    /// socket, in place of [`UDP_PEER`].
    PEER6 = 101,
    /// In [`IPOPT_MEMBERSHIP`], in place of [`IPOPT_MREQ`]: 16 bytes group, u32 interface index, u32 0
    /// for a group and 1 for an anycast address. A [`MEMBERSHIP_FILTER`] behind it has 16 bytes for
    /// each source.
    MREQ6 = 102,
    /// In QUEUE, u32: the flow label of a datagram of IPv6; absent: 0.
    DATAGRAM_FLOW_LABEL = 103,
    /// The flow labels that the socket has leased, 24 bytes each: u32 label, 16 bytes destination, u16
    /// seconds it lingers, u8 who may share it, a zero. Absent: none.
    FLOW_LABELS = 104,
    /// In QUEUE of a [`CORK`], u32: the bytes of a fragment at most; absent: as many as its device takes.
    CORK_FRAGMENT_SIZE = 105,
    /// In QUEUE: the end of a payload that is longer than [`DATAGRAM_PAYLOAD`] can be, and which fills
    /// that; absent: there is none.
    DATAGRAM_PAYLOAD_END = 106,

    /// 16 bytes: the former peer of an AF_INET6 socket, which hears nobody else by IPv6 since it was
    /// disconnected; absent: none.
    HEARD = 120,

    /// Nested, once for each thing that was inferred rather than read: [`WHAT`] and [`REASON`].
    ASSUMED = 0x2001,
    /// u32: the place of the socket in its SO_REUSEPORT group.
    REUSEPORT_INDEX = 0x2002,
    /// u32: bytes of memory that datagrams sent before took while they were with the device.
    IN_FLIGHT = 0x2003,
    /// u64: the datagrams that the socket had dropped.
    DROPS = 0x2004,

    /// In a request, text: which sockets are meant, as the command spells it (`udp:127.0.0.1:53`).
    TARGET = 0x3000,
    /// In a request, flag: the socket whose descriptor comes with the message.
    PASSED = 0x3001,
    /// In a request to restore, flag: go on without what cannot be restored exactly.
    LOSSY = 0x3002,
    /// In a request to restore, flag: refuse where another socket has the address.
    ALONE = 0x3003,
    /// In LIST, u64: SO_COOKIE; absent: none was made yet.
    COOKIE = 0x3004,
    /// In LIST, u64: SO_NETNS_COOKIE.
    NETNS = 0x3005,
    /// In LIST, once for each descriptor: i32 process, i32 thread whose table it is in, i32 descriptor.
    HOLDER = 0x3006,
    /// In LIST, struct sockaddr_in or sockaddr_in6, with its scope: the local address.
    LOCAL = 0x3007,
    /// In LIST, as [`LOCAL`]: the peer.
    PEER = 0x3008,
    /// In LIST, u32: bytes that the receive queue occupies in the kernel.
    RECEIVE_BYTES = 0x3009,
    /// In the last LIST, u32: how many descriptors and sockets are not shown.
    HIDDEN = 0x300a,
    /// In CHECK, text: what happens instead of [`WHAT`] that is missing.
    WITHOUT = 0x300b,
    /// In METRICS, text: the figures, as Prometheus reads them.
    TEXT = 0x300c,
}

/// The name of an attribute with a number of its own; socket options have [`as_option`].
///
/// ```
/// use sockcr_image::number;
/// assert_eq!(number::name(number::UDP_PEER), Some("UDP_PEER"));
/// assert_eq!(number::name(63), None);
/// ```
pub fn name(number: u16) -> Option<&'static str> {
    let found = ALL.iter().find(|(_, of)| *of == number);
    found.map(|(name, _)| *name)
}

/// A protocol level whose options have attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// SOL_SOCKET
    Socket,
    /// IPPROTO_IP
    Ip,
    /// SOL_UDP
    Udp,
    /// IPPROTO_IPV6
    Ipv6,
    /// IPPROTO_TCP
    Tcp,
    /// SOL_RAW
    Raw,
    /// IPPROTO_ICMP
    Icmp,
    /// SOL_ICMPV6
    Icmpv6,
}

impl Level {
    /// All of them, in the order of their numbers.
    pub const ALL: [Level; 8] = [
        Level::Socket,
        Level::Ip,
        Level::Udp,
        Level::Ipv6,
        Level::Tcp,
        Level::Raw,
        Level::Icmp,
        Level::Icmpv6,
    ];

    /// The attribute of option 0, the first of the [`OPTIONS`] that belong to the level.
    pub const fn base(self) -> u16 {
        match self {
            Level::Socket => 0x100,
            Level::Ip => 0x180,
            Level::Udp => 0x200,
            Level::Ipv6 => 0x280,
            Level::Tcp => 0x300,
            Level::Raw => 0x380,
            Level::Icmp => 0x400,
            Level::Icmpv6 => 0x480,
        }
    }
}

/// How many options a level has room for.
pub const OPTIONS: u16 = 128;

/// The attribute of a socket option that the attributes of 2007 do not have.
///
/// `optname` is the kernel's number and below [`OPTIONS`]; for a larger one the answer is 0,
/// which is no attribute and which no [`Writer`](crate::attribute::Writer) accepts.
///
/// ```
/// use sockcr_image::number::{Level, option};
/// const SO_MARK: u16 = 36;
/// assert_eq!(option(Level::Socket, SO_MARK), 0x124);
/// ```
pub const fn option(level: Level, optname: u16) -> u16 {
    if optname < OPTIONS {
        level.base() + optname
    } else {
        0
    }
}

/// The level and the kernel's number of the option that an attribute belongs to.
///
/// ```
/// use sockcr_image::number::{Level, as_option, option};
/// assert_eq!(as_option(option(Level::Udp, 103)), Some((Level::Udp, 103)));
/// assert_eq!(as_option(1), None);
/// ```
pub fn as_option(number: u16) -> Option<(Level, u16)> {
    Level::ALL.into_iter().find_map(|level| {
        let optname = number.checked_sub(level.base())?;
        (optname < OPTIONS).then_some((level, optname))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_option_has_an_attribute_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for level in Level::ALL {
            for optname in 0..OPTIONS {
                let number = option(level, optname);
                assert!(seen.insert(number), "{number} is there twice");
                assert_eq!(as_option(number), Some((level, optname)));
                assert_eq!(name(number), None);
            }
        }
        assert_eq!(seen.len(), 8 * 128);
        assert_eq!((seen.first(), seen.last()), (Some(&0x100), Some(&0x4ff)));
    }

    #[test]
    fn an_option_without_room_has_no_attribute() {
        for level in Level::ALL {
            assert_eq!(option(level, 128), 0);
            assert_eq!(option(level, u16::MAX), 0);
        }
        assert_eq!(as_option(0xff), None);
        assert_eq!(as_option(0x500), None);
    }
}
