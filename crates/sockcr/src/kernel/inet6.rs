//! What an AF_INET6 socket has besides: `struct ipv6_pinfo`, which lies behind all else of the same
//! socket, and the lists that hang on it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use super::btf::{Btf, BtfError, Field};
use super::copier::steady;
use super::layout::offset;
use super::reader::{Hidden, Joined, Reader, damaged};
use crate::state::flow_labels::FlowLabel;

/// The entries of a list that are followed: more than any sysctl lets a socket have, and an end where
/// the owner changes the list meanwhile.
const ENTRIES_LIMIT: usize = 1 << 16;
/// The tries to read a list while the owner joins and leaves.
const ATTEMPTS: usize = 8;

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
    /// The flow label and traffic class of the peer (`ipv6_pinfo.flow_label`).
    pub flow_information: u32,
    /// A notice of a new MTU waits for IPV6_RECVPATHMTU (`ipv6_pinfo.rxpmtu`).
    pub path_mtu: bool,
    /// It has leases of flow labels (`inet_sock.ipv6_fl_list`).
    pub flow_labels: bool,
}

/// Where IPv6 sockets keep what.
#[derive(Debug)]
pub struct Inet6 {
    /// The bytes of a `struct udp6_sock`.
    pub udp_size: usize,
    /// The bytes of a `struct raw6_sock`, which ping sockets have too.
    pub raw_size: usize,
    /// `sk_v6_rcv_saddr` and `sk_v6_daddr`.
    bound_address: usize,
    peer_address: usize,
    /// `inet_sock.pinet6`
    part: Field,
    /// `inet_sock.ipv6_fl_list`
    flow_labels: Field,
    /// The flags with the number of the bit that says that IPV6_AUTOFLOWLABEL was set; before 6.8 a
    /// bit of `struct ipv6_pinfo`.
    flags: Result<(Field, u32), Field>,
    /// In `struct ipv6_pinfo`, as all below.
    source_address: usize,
    unicast_hops: Field,
    fragment_size: Field,
    sticky_address: usize,
    sticky_interface: Field,
    flow_information: Field,
    path_mtu: Field,
    extent: usize,
    groups: List,
    anycasts: List,
    leases: Leases,
}

/// The list of leases of flow labels, newest first.
#[derive(Debug)]
struct Leases {
    /// In an entry.
    next: Field,
    label: Field,
    /// In a `struct ip6_flowlabel` of so many bytes.
    number: Field,
    destination: usize,
    share: Field,
    options: Field,
    extent: usize,
}

/// A list of memberships, newest first.
#[derive(Debug)]
struct List {
    /// In `struct ipv6_pinfo`.
    first: Field,
    /// In an entry.
    next: Field,
    address: usize,
    interface: Field,
    extent: usize,
    anycast: bool,
}

impl Inet6 {
    pub fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        Ok(Self {
            udp_size: btf.size("udp6_sock")?,
            raw_size: btf.size("raw6_sock")?,
            bound_address: offset(btf, "sock", "__sk_common.skc_v6_rcv_saddr")?,
            peer_address: offset(btf, "sock", "__sk_common.skc_v6_daddr")?,
            part: btf.field("inet_sock", "pinet6")?,
            flow_labels: btf
                .field("inet_sock", "ipv6_fl_list")
                .or_else(|_| btf.field("ipv6_pinfo", "ipv6_fl_list"))?,
            flags: Self::flags(btf)?,
            source_address: offset(btf, "ipv6_pinfo", "saddr")?,
            unicast_hops: btf.field("ipv6_pinfo", "hop_limit")?,
            fragment_size: btf.field("ipv6_pinfo", "frag_size")?,
            sticky_address: offset(btf, "ipv6_pinfo", "sticky_pktinfo.ipi6_addr")?,
            sticky_interface: btf.field("ipv6_pinfo", "sticky_pktinfo.ipi6_ifindex")?,
            flow_information: btf.field("ipv6_pinfo", "flow_label")?,
            path_mtu: btf.field("ipv6_pinfo", "rxpmtu")?,
            extent: btf.size("ipv6_pinfo")?,
            leases: Leases::of(btf)?,
            groups: List::of(
                btf,
                "ipv6_mc_list",
                "ipv6_mc_socklist",
                ["next", "addr", "ifindex"],
            )?,
            anycasts: List {
                anycast: true,
                ..List::of(
                    btf,
                    "ipv6_ac_list",
                    "ipv6_ac_socklist",
                    ["acl_next", "acl_addr", "acl_ifindex"],
                )?
            },
        })
    }

    fn flags(btf: &Btf<'_>) -> Result<Result<(Field, u32), Field>, BtfError> {
        let bit = btf.anonymous_constant("INET_FLAGS_AUTOFLOWLABEL_SET");
        match bit {
            Ok(bit) => Ok(Ok((btf.field("inet_sock", "inet_flags")?, bit))),
            Err(_) => Ok(Err(btf.field("ipv6_pinfo", "autoflowlabel_set")?)),
        }
    }

    /// Where the part begins in the copy of an IPv6 socket, if it is in there.
    pub fn place(&self, raw: &[u8], address: u64) -> io::Result<Option<usize>> {
        let place = self.part.value(raw).ok_or_else(damaged)?;
        let inside = usize::try_from(place.wrapping_sub(address)).ok();
        Ok(inside.filter(|at| at + self.extent <= raw.len()))
    }

    /// The part of a copy of an IPv6 socket; `None` where it lies outside the copy.
    pub fn part<'a>(&'a self, raw: &'a [u8], address: u64) -> io::Result<Option<Part<'a>>> {
        let inside = self.place(raw, address)?;
        let bytes = inside.and_then(|at| raw.get(at..)?.get(..self.extent));
        Ok(bytes.map(|bytes| Part {
            layout: self,
            raw,
            bytes,
        }))
    }
}

impl Leases {
    fn of(btf: &Btf<'_>) -> Result<Self, BtfError> {
        let lease = |path| btf.field("ip6_flowlabel", path);
        Ok(Self {
            next: btf.field("ipv6_fl_socklist", "next")?,
            label: btf.field("ipv6_fl_socklist", "fl")?,
            number: lease("label")?,
            destination: offset(btf, "ip6_flowlabel", "dst")?,
            share: lease("share")?,
            options: lease("opt")?,
            extent: btf.size("ip6_flowlabel")?,
        })
    }
}

impl List {
    fn of(btf: &Btf<'_>, head: &str, entry: &str, members: [&str; 3]) -> Result<Self, BtfError> {
        let [next, address, interface] = members;
        let (next, interface) = (btf.field(entry, next)?, btf.field(entry, interface)?);
        let address = offset(btf, entry, address)?;
        let ends = [
            next.offset + next.size,
            interface.offset + interface.size,
            address + 16,
        ];
        Ok(Self {
            first: btf.field("ipv6_pinfo", head)?,
            next,
            address,
            interface,
            extent: ends.into_iter().max().unwrap_or(0),
            anycast: false,
        })
    }
}

/// The IPv6 part of one socket, as it was copied.
pub struct Part<'a> {
    layout: &'a Inet6,
    raw: &'a [u8],
    bytes: &'a [u8],
}

impl Part<'_> {
    /// Puts the addresses into `hidden`, v4-mapped ones as they are.
    pub fn fill(&self, hidden: &mut Hidden) -> io::Result<()> {
        let layout = self.layout;
        hidden.bound_address = ipv6(self.raw, layout.bound_address)?.into();
        hidden.peer_address = ipv6(self.raw, layout.peer_address)?.into();
        hidden.source_address = ipv6(self.bytes, layout.source_address)?.into();
        hidden.ipv6 = Some(self.hidden()?);
        Ok(())
    }

    fn hidden(&self) -> io::Result<Hidden6> {
        let layout = self.layout;
        let get = |field: Field| field.value(self.bytes).ok_or_else(damaged);
        let inet = |field: Field| field.value(self.raw).ok_or_else(damaged);
        Ok(Hidden6 {
            unicast_hops: u8::try_from(get(layout.unicast_hops)? as i16).ok(),
            fragment_size: get(layout.fragment_size)? as u32,
            sticky_address: ipv6(self.bytes, layout.sticky_address)?,
            sticky_interface: get(layout.sticky_interface)? as u32,
            auto_flow_label_set: match layout.flags {
                Ok((flags, bit)) => inet(flags)? >> (bit & 63) & 1 != 0,
                Err(field) => get(field)? != 0,
            },
            flow_information: u32::from_be(get(layout.flow_information)? as u32),
            path_mtu: get(layout.path_mtu)? != 0,
            flow_labels: inet(layout.flow_labels)? != 0,
        })
    }

    /// Whether it has joined anything.
    pub fn has_memberships(&self) -> io::Result<bool> {
        Ok(self.heads()? != [0; 2])
    }

    fn heads(&self) -> io::Result<[u64; 2]> {
        let head = |list: &List| list.first.value(self.bytes).ok_or_else(damaged);
        Ok([head(&self.layout.groups)?, head(&self.layout.anycasts)?])
    }
}

/// An address in raw bytes.
pub fn ipv6(bytes: &[u8], at: usize) -> io::Result<Ipv6Addr> {
    let raw: &[u8; 16] = bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .ok_or_else(damaged)?;
    Ok(Ipv6Addr::from(*raw))
}

impl Reader {
    /// The IPv6 groups and anycast addresses of a socket, oldest first. An owner that joins or leaves
    /// meanwhile shows in a second look at the heads of the lists; then they are read anew.
    pub(super) fn ipv6_memberships(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<Joined>> {
        let Some(layout) = &self.layout.inet6 else {
            return Ok(Vec::new());
        };
        for _ in 0..ATTEMPTS {
            let before = self.list_heads(layout, socket)?;
            let mut joined = Vec::new();
            for (list, first) in [&layout.groups, &layout.anycasts].into_iter().zip(before) {
                joined.extend(self.ipv6_list(list, first)?);
            }
            if self.list_heads(layout, socket)? == before {
                return Ok(joined);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "the memberships of the socket changed while they were read",
        ))
    }

    /// The leases of flow labels of a socket, oldest first, and whether each has options. How long they
    /// linger is counted in ticks of an unknown length, and not told.
    pub(crate) fn flow_labels(&self, socket: BorrowedFd<'_>) -> io::Result<Vec<(FlowLabel, bool)>> {
        let Some(layout) = &self.layout.inet6 else {
            return Ok(Vec::new());
        };
        let first = || {
            let sock = self.sock(socket)?;
            layout.flow_labels.value(&sock.raw).ok_or_else(damaged)
        };
        steady(|| {
            let before = first()?;
            let mut labels = Vec::new();
            let mut at = before;
            while at != 0 && labels.len() < ENTRIES_LIMIT {
                let entry = self.bytes(at, layout.leases.label.offset + 8)?;
                labels.push(self.flow_label(&layout.leases, &entry)?);
                at = layout.leases.next.value(&entry).ok_or_else(damaged)?;
            }
            labels.reverse();
            Ok((first()? == before).then_some(labels))
        })
    }

    fn flow_label(&self, layout: &Leases, entry: &[u8]) -> io::Result<(FlowLabel, bool)> {
        let place = layout.label.value(entry).ok_or_else(damaged)?;
        let lease = self.bytes(place, layout.extent)?;
        let get = |field: Field| field.value(&lease).ok_or_else(damaged);
        let label = FlowLabel {
            label: u32::from_be(get(layout.number)? as u32),
            to: ipv6(&lease, layout.destination)?,
            share: get(layout.share)? as u8,
            linger: 0,
        };
        Ok((label, get(layout.options)? != 0))
    }

    fn list_heads(&self, layout: &Inet6, socket: BorrowedFd<'_>) -> io::Result<[u64; 2]> {
        let sock = self.sock(socket)?;
        let part = layout.part(&sock.raw, sock.address)?;
        part.map_or(Ok([0; 2]), |part| part.heads())
    }

    fn ipv6_list(&self, list: &List, first: u64) -> io::Result<Vec<Joined>> {
        let mut joined = Vec::new();
        let mut at = first;
        while at != 0 && joined.len() < ENTRIES_LIMIT {
            let entry = self.bytes(at, list.extent)?;
            let get = |field: Field| field.value(&entry).ok_or_else(damaged);
            joined.push(Joined {
                group: IpAddr::V6(ipv6(&entry, list.address)?),
                anycast: list.anycast,
                address: Ipv4Addr::UNSPECIFIED,
                interface: get(list.interface)? as u32,
            });
            at = get(list.next)?;
        }
        joined.reverse();
        Ok(joined)
    }
}
