//! The hidden state of the IPv6 part of a socket: `struct ipv6_pinfo`, and the flags that it has in
//! `struct inet_sock`.

use std::net::Ipv6Addr;

/// What getsockopt(2) does not tell of an AF_INET6 socket's options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hidden6 {
    /// The hop limit that was set; None: none was, the route and the sysctl count
    /// (`ipv6_pinfo.hop_limit`, which is then -1).
    pub unicast_hops: Option<u8>,
    /// IPV6_MTU as it was set, 0 for not at all; reading it tells the route's
    /// (`ipv6_pinfo.frag_size`).
    pub fragment_size: u32,
    /// The source address of IPV6_PKTINFO, :: for none (`ipv6_pinfo.sticky_pktinfo.ipi6_addr`).
    pub sticky_address: Ipv6Addr,
    /// The device of IPV6_PKTINFO, 0 for none (`ipv6_pinfo.sticky_pktinfo.ipi6_ifindex`).
    pub sticky_interface: u32,
    /// IPV6_AUTOFLOWLABEL was set, to what it reads; otherwise the sysctl counts (bit
    /// `INET_FLAGS_AUTOFLOWLABEL_SET` of `inet_sock.inet_flags`; before 6.8
    /// `ipv6_pinfo.autoflowlabel_set`).
    pub auto_flow_label_set: bool,
}
