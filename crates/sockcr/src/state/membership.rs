//! The multicast groups a socket has joined: device, mode and sources, in the order of joining.

use super::endpoint::Failure;
use super::interfaces::Interfaces;
use crate::kernel::Hidden;
use crate::report::Report;
use rustix::io::Errno;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

const IPPROTO_IP: i32 = 0;
const IP_ADD_MEMBERSHIP: i32 = 35;
const MCAST_MSFILTER: i32 = 48;
const STORAGE: usize = 128;
/// The head of `struct group_filter`: index, padding, group, mode, number of sources.
const HEAD: usize = 8 + STORAGE + 8;
const INCLUDE: u32 = 1;
/// What fits beside the mode in one attribute.
const MOST_SOURCES: usize = 16_000;

/// One membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The group.
    pub group: Ipv4Addr,
    /// The device, by index.
    pub interface: u32,
    /// The device's address that the join named, 0.0.0.0 if it named the device alone.
    pub address: Ipv4Addr,
    /// Whether only `sources` are received, or all but those.
    pub include: bool,
    /// In the kernel's order.
    pub sources: Vec<Ipv4Addr>,
}

/// Reads all memberships: oldest first by BPF, else in the order of devices and groups.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> Vec<Membership> {
    let Some(hidden) = hidden else {
        return search(fd, report);
    };
    let mut memberships = Vec::with_capacity(hidden.memberships.len());
    for joined in &hidden.memberships {
        // `None`: left in the moment between the two looks.
        if let Some(mut membership) = known(fd, joined.interface, joined.group, report) {
            membership.address = joined.address;
            memberships.push(membership);
        }
    }
    memberships
}

/// One membership, if the socket has it; one that cannot be read is reported.
fn known(
    fd: BorrowedFd<'_>,
    interface: u32,
    group: Ipv4Addr,
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
fn search(fd: BorrowedFd<'_>, report: &mut Report) -> Vec<Membership> {
    let mut memberships = Vec::new();
    let groups = crate::netns::within(fd, || std::fs::read_to_string("/proc/thread-self/net/igmp"));
    let groups = match groups {
        Ok(groups) => groups,
        Err(error) => {
            report.lose("memberships", crate::error::reason(&error));
            return memberships;
        }
    };
    for (interface, group) in joined_by_anyone(&groups) {
        memberships.extend(known(fd, interface, group, report));
    }
    if !memberships.is_empty() {
        report.assume(
            "order of memberships, and that they named devices by index",
            "only BPF sees how they were joined",
        );
    }
    memberships
}

/// Parses /proc/net/igmp (`igmp_mc_seq_show`): a device a line, its groups indented below it, the
/// group as the eight digits of the word in memory. The groups of a device are listed newest first;
/// here they are in the order of joining.
fn joined_by_anyone(text: &str) -> Vec<(u32, Ipv4Addr)> {
    let mut found = Vec::new();
    let (mut interface, mut oldest) = (0, 0);
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if !line.starts_with(['\t', ' ']) {
            (interface, oldest) = (first.parse().unwrap_or(0), found.len());
        } else if let Ok(word) = u32::from_str_radix(first, 16) {
            found.insert(oldest, (interface, Ipv4Addr::from(word.to_ne_bytes())));
        }
    }
    found
}

/// Reads one membership by MCAST_MSFILTER (`ip_mc_gsfget`); `None` when this socket is no member.
pub(crate) fn read(
    fd: BorrowedFd<'_>,
    interface: u32,
    group: Ipv4Addr,
) -> io::Result<Option<Membership>> {
    let mut room = 0;
    loop {
        let mut filter = group_filter(interface, group, false, &[]);
        filter.resize(HEAD + room * STORAGE, 0);
        set_word(&mut filter, HEAD - 4, room as u32);
        match sockcr_sys::sockopt::get(fd, IPPROTO_IP, MCAST_MSFILTER, &mut filter) {
            Ok(_) => {}
            Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
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
            group,
            interface,
            address: Ipv4Addr::UNSPECIFIED,
            include: word(&filter, HEAD - 8) == INCLUDE,
            sources: sources
                .map(|source| Ipv4Addr::from(octets(source)))
                .collect(),
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
    let request = [
        group.octets(),
        membership.address.octets(),
        index.to_ne_bytes(),
    ];
    sockcr_sys::sockopt::set(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &request.concat())
        .map_err(|error| failed(limits(error)))?;
    if !membership.include && membership.sources.is_empty() {
        return Ok(());
    }
    let filter = group_filter(index, group, membership.include, &membership.sources);
    sockcr_sys::sockopt::set(fd, IPPROTO_IP, MCAST_MSFILTER, &filter)
        .map_err(|error| failed(limits(error)))
}

pub(crate) fn limits(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOBUFS) => {
            io::Error::other("more than net.ipv4.igmp_max_memberships or igmp_max_msf allows here")
        }
        _ => error,
    }
}

/// A `struct group_filter`.
pub(crate) fn group_filter(
    interface: u32,
    group: Ipv4Addr,
    include: bool,
    sources: &[Ipv4Addr],
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

/// A `sockaddr_in` in a `sockaddr_storage`.
fn storage(address: Ipv4Addr) -> [u8; STORAGE] {
    let mut storage = [0; STORAGE];
    storage[..2].copy_from_slice(&2u16.to_ne_bytes());
    storage[4..8].copy_from_slice(&address.octets());
    storage
}

fn octets(storage: &[u8]) -> [u8; 4] {
    storage
        .get(4..8)
        .and_then(|octets| octets.try_into().ok())
        .unwrap_or_default()
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
