//! The multicast groups a socket has joined: device, mode and sources, in the order of joining.

use super::endpoint::Failure;
use super::interfaces::Interfaces;
use crate::kernel::Hidden;
use crate::protocol::Protocol;
use crate::report::Report;
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

const IPPROTO_IP: i32 = 0;
const IP_ADD_MEMBERSHIP: i32 = 35;
const IPPROTO_IPV6: i32 = 41;
const IPV6_ADD_MEMBERSHIP: i32 = 20;
const IPV6_JOIN_ANYCAST: i32 = 27;
const MCAST_MSFILTER: i32 = 48;
const STORAGE: usize = 128;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// The head of `struct group_filter`: index, padding, group, mode, number of sources.
const HEAD: usize = 8 + STORAGE + 8;
const INCLUDE: u32 = 1;
/// What fits beside the mode in one attribute.
const MOST_SOURCES: usize = 16_000;

/// One membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group, or the anycast address.
    pub group: IpAddr,
    /// It is an anycast address (IPV6_JOIN_ANYCAST).
    pub anycast: bool,
    /// The device, by index.
    pub interface: u32,
    /// The device's address that the join named, 0.0.0.0 if it named the device alone; IPv6 knows
    /// the device only.
    pub address: Ipv4Addr,
    /// Whether only `sources` are received, or all but those.
    pub include: bool,
    /// In the kernel's order.
    pub sources: Vec<IpAddr>,
}

/// Reads all memberships: oldest first by BPF, else in the order of devices and groups; those of IPv4
/// before those of IPv6, and anycast addresses last.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> Vec<Membership> {
    let Some(hidden) = hidden else {
        return search(fd, protocol.is_ipv6(), report);
    };
    let mut memberships = Vec::with_capacity(hidden.memberships.len());
    for joined in &hidden.memberships {
        if joined.anycast {
            memberships.push(Membership {
                anycast: true,
                ..Membership::of(joined.interface, joined.group)
            });
            continue;
        }
        // `None`: left in the moment between the two looks.
        if let Some(mut membership) = known(fd, joined.interface, joined.group, report) {
            membership.address = joined.address;
            memberships.push(membership);
        }
    }
    memberships
}

impl Membership {
    /// Of a group, in which nobody is excluded.
    pub(crate) fn of(interface: u32, group: IpAddr) -> Membership {
        Membership {
            group,
            anycast: false,
            interface,
            address: Ipv4Addr::UNSPECIFIED,
            include: false,
            sources: Vec::new(),
        }
    }
}

/// One membership, if the socket has it; one that cannot be read is reported.
fn known(
    fd: BorrowedFd<'_>,
    interface: u32,
    group: IpAddr,
    report: &mut Report,
) -> Option<Membership> {
    read(fd, interface, group).unwrap_or_else(|error| {
        report.lose(
            format!("membership of {group}"),
            crate::error::reason(&error),
        );
        None
    })
}

/// Asks the socket about every group that any socket of its network namespace has joined.
fn search(fd: BorrowedFd<'_>, ipv6: bool, report: &mut Report) -> Vec<Membership> {
    let mut memberships = Vec::new();
    let read = |table: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{table}"));
    let groups = crate::netns::within(fd, || {
        let mut groups = joined_by_anyone(&read("igmp")?);
        if ipv6 {
            groups.extend(joined_by_anyone6(&read("igmp6")?));
        }
        Ok(groups)
    });
    let groups = match groups {
        Ok(groups) => groups,
        Err(error) => {
            report.lose("memberships", crate::error::reason(&error));
            return memberships;
        }
    };
    for (interface, group) in groups {
        memberships.extend(known(fd, interface, group, report));
    }
    if !memberships.is_empty() {
        report.assume(
            "order of memberships, and that they named devices by index",
            "only BPF sees how they were joined",
        );
    }
    if ipv6 {
        report.assume("no anycast membership", "only BPF sees them");
    }
    memberships
}

/// Parses /proc/net/igmp (`igmp_mc_seq_show`): a device a line, its groups indented below it, the
/// group as the eight digits of the word in memory. The groups of a device are listed newest first;
/// here they are in the order of joining.
fn joined_by_anyone(text: &str) -> Vec<(u32, IpAddr)> {
    let mut found = Vec::new();
    let (mut interface, mut oldest) = (0, 0);
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(['\t', ' ']) {
            (interface, oldest) = (first.parse().unwrap_or(0), found.len());
        } else if let Ok(word) = u32::from_str_radix(first, 16) {
            found.insert(
                oldest,
                (interface, Ipv4Addr::from(word.to_ne_bytes()).into()),
            );
        }
    }
    found
}

/// Parses /proc/net/igmp6 (`igmp6_mc_seq_show`): a group a line, after the index and the name of its
/// device. Here too the groups of a device are listed newest first.
fn joined_by_anyone6(text: &str) -> Vec<(u32, IpAddr)> {
    let mut found: Vec<(u32, IpAddr)> = Vec::new();
    let (mut device, mut oldest) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let interface = words.next().and_then(|index| index.parse().ok());
        let group = words.nth(1).map(|group| u128::from_str_radix(group, 16));
        let (Some(interface), Some(Ok(group))) = (interface, group) else {
            continue;
        };
        if device != interface {
            (device, oldest) = (interface, found.len());
        }
        found.insert(oldest, (interface, Ipv6Addr::from(group).into()));
    }
    found
}

/// The level of the options of its kind.
pub(crate) fn level(group: IpAddr) -> i32 {
    match group {
        IpAddr::V4(_) => IPPROTO_IP,
        IpAddr::V6(_) => IPPROTO_IPV6,
    }
}

/// Reads one membership by MCAST_MSFILTER (`ip_mc_gsfget`, `ip6_mc_msfget`); `None` when this socket is no
/// member, and when its kind cannot be: a raw socket of IPv6 has no options of IPPROTO_IP
/// (`ipv6_getsockopt`).
pub(crate) fn read(
    fd: BorrowedFd<'_>,
    interface: u32,
    group: IpAddr,
) -> io::Result<Option<Membership>> {
    let mut room = 0;
    loop {
        let mut filter = group_filter(interface, group, false, &[]);
        filter.resize(HEAD + room * STORAGE, 0);
        set_word(&mut filter, HEAD - 4, room as u32);
        match sockcr_sys::sockopt::get(fd, level(group), MCAST_MSFILTER, &mut filter) {
            Ok(_) => {}
            Err(error) => {
                return match Errno::from_io_error(&error) {
                    Some(Errno::ADDRNOTAVAIL | Errno::NOPROTOOPT) => Ok(None),
                    _ => Err(error),
                };
            }
        }
        let count = word(&filter, HEAD - 4) as usize;
        if count > MOST_SOURCES {
            return Err(io::Error::other(format!(
                "{count} sources of one group are too many"
            )));
        }
        if count > room {
            room = count;
            continue;
        }
        let sources = filter[HEAD..].chunks_exact(STORAGE).take(count);
        return Ok(Some(Membership {
            include: word(&filter, HEAD - 8) == INCLUDE,
            sources: sources.map(|source| stored(source, group)).collect(),
            ..Membership::of(interface, group)
        }));
    }
}

/// Joins one group on a new socket.
pub(crate) fn restore(
    fd: BorrowedFd<'_>,
    membership: &Membership,
    interfaces: &Interfaces,
) -> Result<(), Failure> {
    let group = membership.group;
    let failed = |error| Failure::at(format!("join {group}"), error);
    let index = interfaces.local(fd, membership.interface).map_err(failed)?;
    let index_bytes = index.to_ne_bytes();
    let (name, request) = match group {
        IpAddr::V4(group) => {
            let request = [group.octets(), membership.address.octets(), index_bytes];
            (IP_ADD_MEMBERSHIP, request.concat())
        }
        IpAddr::V6(group) => {
            let name = match membership.anycast {
                true => IPV6_JOIN_ANYCAST,
                false => IPV6_ADD_MEMBERSHIP,
            };
            (name, [&group.octets()[..], &index_bytes].concat())
        }
    };
    sockcr_sys::sockopt::set(fd, level(group), name, &request)
        .map_err(|error| failed(limits(error)))?;
    if !membership.include && membership.sources.is_empty() {
        return Ok(());
    }
    let filter = group_filter(index, group, membership.include, &membership.sources);
    sockcr_sys::sockopt::set(fd, level(group), MCAST_MSFILTER, &filter)
        .map_err(|error| failed(limits(error)))
}

pub(crate) fn limits(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOBUFS) => {
            let why = "more than net.ipv4.igmp_max_memberships or igmp_max_msf, or net.ipv6.mld_max_msf, \
                       allows here";
            io::Error::other(why)
        }
        _ => error,
    }
}

/// A `struct group_filter`.
pub(crate) fn group_filter(
    interface: u32,
    group: IpAddr,
    include: bool,
    sources: &[IpAddr],
) -> Vec<u8> {
    let mut filter = Vec::with_capacity(HEAD + sources.len() * STORAGE);
    filter.extend(interface.to_ne_bytes());
    filter.extend([0; 4]);
    filter.extend(storage(group));
    filter.extend(u32::from(include).to_ne_bytes());
    filter.extend((sources.len() as u32).to_ne_bytes());
    for source in sources {
        filter.extend(storage(*source));
    }
    filter
}

/// A `sockaddr_in` or `sockaddr_in6` in a `sockaddr_storage`.
fn storage(address: IpAddr) -> [u8; STORAGE] {
    let mut storage = [0; STORAGE];
    match address {
        IpAddr::V4(address) => {
            storage[..2].copy_from_slice(&AF_INET.to_ne_bytes());
            storage[4..8].copy_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            storage[..2].copy_from_slice(&AF_INET6.to_ne_bytes());
            storage[8..24].copy_from_slice(&address.octets());
        }
    }
    storage
}

/// The address in a `sockaddr_storage`, of the family of `like`.
fn stored(storage: &[u8], like: IpAddr) -> IpAddr {
    fn part<const N: usize>(storage: &[u8], at: usize) -> [u8; N] {
        let octets = storage.get(at..).and_then(|rest| rest.first_chunk());
        octets.copied().unwrap_or([0; N])
    }
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(part(storage, 4)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(part(storage, 8)).into(),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

fn set_word(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(word) = bytes.get_mut(at..at + 4) {
        word.copy_from_slice(&value.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_each_device_oldest_first() {
        let text = "1    lo              ff020000000000000000000000000001     1 0000000C 0\n\
                    1    lo              ff010000000000000000000000000001     1 00000008 0\n\
                    2    m0              ff050000000000000000000000000009     1 0000000C 0\n";
        let group =
            |index: u32, group: &str| (index, group.parse().unwrap_or(IpAddr::from([0; 4])));
        let groups = [
            group(1, "ff01::1"),
            group(1, "ff02::1"),
            group(2, "ff05::9"),
        ];
        assert_eq!(joined_by_anyone6(text), groups);
    }
}
