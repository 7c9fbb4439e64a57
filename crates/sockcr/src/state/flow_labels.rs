//! The leases of flow labels that a socket has (IPV6_FLOWLABEL_MGR), which it may give its datagrams.
//!
//! How long a lease lasts counts from when its last owner has let it go: as long as a socket has it there
//! is nothing to be told (`ip6_fl_gc`, net/ipv6/ip6_flowlabel.c). One that is not shared lingers, some
//! seconds, before another socket can have it: a restore waits for it.

use super::endpoint::Failure;
use crate::kernel::{self, Hidden};
use crate::report::Report;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

const IPPROTO_IPV6: i32 = 41;
const IPV6_FLOWLABEL_MGR: i32 = 32;
/// `IPV6_FL_A_GET`, with `IPV6_FL_F_CREATE`.
const GET: u8 = 0;
const CREATE: u16 = 1;
/// `IPV6_FL_S_PROCESS`, `IPV6_FL_S_USER`
const PROCESS: u8 = 2;
const USER: u8 = 3;

/// One lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlowLabel {
    /// The label, of 20 bits.
    pub label: u32,
    /// The destination that it is for.
    pub to: Ipv6Addr,
    /// Who may share it: `IPV6_FL_S_...`, 1 nobody, 2 the process, 3 the user, 255 anybody.
    pub share: u8,
    /// The seconds that it stays when nobody has it any more.
    pub linger: u16,
}

/// Reads the leases, oldest first.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> Vec<FlowLabel> {
    if hidden.is_none()
        && rustix::net::getsockname(fd)
            .is_ok_and(|name| name.address_family() == AddressFamily::INET6)
    {
        report.assume("no flow labels", "only BPF sees them");
    }
    let has = |hidden: &&Hidden| hidden.ipv6.as_ref().is_some_and(|ipv6| ipv6.flow_labels);
    if hidden.filter(has).is_none() {
        return Vec::new();
    }
    let read = kernel::reader()
        .map_err(io::Error::other)
        .and_then(|reader| reader.flow_labels(fd));
    let table = report
        .known("flow labels: linger", table(fd))
        .unwrap_or_default();
    let mut labels = Vec::new();
    for (mut label, with_options) in report.known("flow labels", read).unwrap_or_default() {
        label.linger = linger(&table, label.label).unwrap_or(0);
        if with_options {
            let what = format!("flow label {:#07x}: its options", label.label);
            report.lose(what, "nothing gives them back");
        }
        let whose = match label.share {
            PROCESS => Some("process"),
            USER => Some("user"),
            _ => None,
        };
        if let Some(whose) = whose {
            let what = format!("flow label {:#07x}", label.label);
            let why = format!("shared by the {whose} that restores it");
            report.assume(what, why);
        }
        labels.push(label);
    }
    labels
}

/// How long a label lingers: the fifth word of its line.
fn linger(table: &str, label: u32) -> Option<u16> {
    word(table, label, 4)
}

/// A word of the line of a label in /proc/net/ip6_flowlabel (`ip6fl_seq_show`).
fn word<T: std::str::FromStr>(table: &str, label: u32, at: usize) -> Option<T> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = u32::from_str_radix(words.first()?, 16).ok()?;
        (number == label).then(|| words.get(at)?.parse().ok())?
    })
}

/// Waits while nobody has the label and it only lingers; whether it did, and does so no more. No event
/// tells of it (`ip6_fl_gc`).
fn until_gone(fd: BorrowedFd<'_>, lease: &FlowLabel) -> io::Result<bool> {
    const INTERVAL: Duration = Duration::from_millis(50);
    let end = Instant::now() + Duration::from_secs(u64::from(lease.linger) + 2);
    let mut waited = false;
    while users(&table(fd)?, lease.label) == Some(0) {
        if Instant::now() > end {
            return Ok(false);
        }
        waited = true;
        std::thread::sleep(INTERVAL);
    }
    Ok(waited)
}

fn table(fd: BorrowedFd<'_>) -> io::Result<String> {
    crate::netns::within(fd, || {
        std::fs::read_to_string("/proc/thread-self/net/ip6_flowlabel")
    })
}

/// How many have a label: the fourth word of its line.
fn users(table: &str, label: u32) -> Option<u32> {
    word(table, label, 3)
}

/// Whether a label is there, for another destination: its seventh word. Who asked for it would share
/// that one (`ipv6_flowlabel_get`).
fn is_for_another(table: &str, lease: &FlowLabel) -> bool {
    let to: String = word(table, lease.label, 6).unwrap_or_default();
    !to.is_empty() && to != crate::hex::encode(&lease.to.octets())
}

/// Takes one lease for a new socket.
pub(crate) fn restore(fd: BorrowedFd<'_>, lease: &FlowLabel) -> Result<(), Failure> {
    // `struct in6_flowlabel_req`
    let mut request = lease.to.octets().to_vec();
    request.extend(lease.label.to_be_bytes());
    request.extend([GET, lease.share]);
    request.extend(CREATE.to_ne_bytes());
    request.extend([0; 2]);
    request.extend(lease.linger.to_ne_bytes());
    request.extend([0; 4]);
    let take = || sockcr_sys::sockopt::set(fd, IPPROTO_IPV6, IPV6_FLOWLABEL_MGR, &request);
    if table(fd).is_ok_and(|table| is_for_another(&table, lease)) {
        let _ = until_gone(fd, lease);
    }
    let taken = take().or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::PERM) if until_gone(fd, lease)? => take(),
        _ => Err(error),
    });
    taken.map_err(|error| {
        let why = match Errno::from_io_error(&error) {
            Some(Errno::PERM) => io::Error::other(
                "another socket of this network namespace has it, and does not share it, or it lingers \
                 longer than CAP_NET_ADMIN allows",
            ),
            _ => error,
        };
        Failure::at(format!("flow label {:#07x}", lease.label), why)
    })
}
