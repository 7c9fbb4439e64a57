//! What a socket holds beyond its settings, and a checkpoint does not: each is reported by name.

use super::endpoint::{ESTABLISHED, own_number};
use super::shutdown::poll_now;
use crate::kernel::{self, Extent, Hidden};
use crate::option::{self, Options, Value};
use crate::protocol::Protocol;
use crate::report::Report;
use rustix::event::PollFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const SOL_SOCKET: i32 = 1;
const SO_MEMINFO: i32 = 55;
const WMEM_ALLOC: usize = 2;
const IPPROTO_RAW: u32 = 255;

/// Reports policies and counters; without BPF also what waits.
pub(crate) fn report(
    fd: BorrowedFd<'_>,
    protocol: &Protocol,
    hidden: Option<&Hidden>,
    options: &Options,
    report: &mut Report,
) -> io::Result<()> {
    match hidden {
        Some(hidden) => from_kernel(hidden, options, report),
        None => from_outside(fd, report)?,
    }
    router_alert(fd, protocol, report)
}

/// Only a socket of IPPROTO_RAW is told of alerts of IPv6. No option tells of which: IPV6_ROUTER_ALERT
/// reads whether the last number that it was given was not 0, be it -1, which ends it (`ip6_ra_control`).
fn router_alert(fd: BorrowedFd<'_>, protocol: &Protocol, report: &mut Report) -> io::Result<()> {
    if !(protocol.is_raw() && protocol.is_ipv6() && protocol.number == IPPROTO_RAW) {
        return Ok(());
    }
    let row = option::find("IPV6_ROUTER_ALERT").map(|row| row.read(fd));
    let reads = row.transpose()?.flatten();
    match (reads == Some(Value::Int(0)), is_alerted(fd, protocol)) {
        (true, Some(false)) => {}
        (true, Some(true)) => report.lose("IPV6_ROUTER_ALERT", "told of alert 0, of MLD"),
        (true, None) => report.assume(
            "no IPV6_ROUTER_ALERT",
            "only BPF sees whether it is told of alert 0, of MLD",
        ),
        (false, Some(false)) => report.lose(
            "IPV6_ROUTER_ALERT",
            "reads as on; it is told of no alerts any more",
        ),
        (false, _) => report.lose(
            "IPV6_ROUTER_ALERT",
            "on, and the kernel does not tell which",
        ),
    }
    Ok(())
}

/// Whether a socket is told of alerts: the kernel holds it for that (`ip6_ra_control`), and so once more
/// than a new one in the same place. `None`: nobody tells.
fn is_alerted(fd: BorrowedFd<'_>, protocol: &Protocol) -> Option<bool> {
    let reader = kernel::reader().ok()?;
    let twin = crate::restore::new_socket(protocol).ok()?;
    if own_number(fd).ok()? == 0 {
        // Out of the table of raw sockets, which holds those that are in it (`raw_unhash_sk`).
        rustix::net::connect_unspec(&twin).ok()?;
    }
    let [held, fresh] = [fd, twin.as_fd()].map(|fd| reader.references(fd));
    Some(held.ok()?? > fresh.ok()??)
}

fn from_kernel(hidden: &Hidden, options: &Options, report: &mut Report) {
    if hidden.extent != Extent::Udp && hidden.write_queue > 0 {
        report.lose(
            "corked data",
            "held back by MSG_MORE; read of UDP sockets only",
        );
    }
    if hidden.policies.contains(&true) {
        report.lose("IPsec policy", "IP_XFRM_POLICY gives none back");
    }
    if hidden.storage {
        report.lose("BPF storage", "what BPF programs keep with this socket");
    }
    for (key, what) in [
        (hidden.timestamp_key, "time stamp counter"),
        (hidden.zerocopy_key, "zero-copy counter"),
    ] {
        if key != 0 {
            report.lose(what, format!("stands at {key}; a new socket counts from 0"));
        }
    }
    if hidden.ipv6.as_ref().is_some_and(|ipv6| ipv6.path_mtu) && options.has("IPV6_RECVPATHMTU") {
        report.lose("notice of a path MTU", "only the path itself gives another");
    }
    if let Some(label) = left_over(hidden) {
        let why = format!("{label:#07x}, left over from a connection");
        report.lose("flow label", why);
    }
    if hidden.drops > 0 && options.has("SO_RXQ_OVFL") {
        let why = format!("stands at {}; a new socket counts from 0", hidden.drops);
        report.lose("drop counter", why);
    }
    let source = hidden.source_address;
    let connected = hidden.state == ESTABLISHED;
    if source != hidden.bound_address && !source.is_unspecified() && !connected {
        report.lose(
            "source address",
            format!("{source}, left over from a connection"),
        );
    }
}

/// The flow label of a former peer: getpeername(2) tells it of one of IPv4, IPV6_FLOWLABEL_MGR where
/// there are leases, and nothing else.
fn left_over(hidden: &Hidden) -> Option<u32> {
    let ipv6 = hidden.ipv6.as_ref()?;
    let connected = hidden.state == ESTABLISHED;
    let mapped = hidden.peer_address.to_canonical().is_ipv4();
    let told = match connected {
        true => mapped,
        false => ipv6.flow_labels,
    };
    Some(ipv6.flow_information).filter(|label| *label != 0 && told)
}

/// Without BPF: what poll(2) and SO_MEMINFO tell, neither of which consumes anything.
fn from_outside(fd: BorrowedFd<'_>, report: &mut Report) -> io::Result<()> {
    let events = poll_now(fd)?;
    let mut counters = [0u8; 36];
    sockcr_sys::sockopt::get(fd, SOL_SOCKET, SO_MEMINFO, &mut counters)?;
    let counter = |at: usize| {
        let word = counters.chunks(4).nth(at).unwrap_or_default();
        word.try_into().map_or(0, u32::from_ne_bytes)
    };
    if events.contains(PollFlags::ERR) {
        report.lose("errors", "a pending error or an error queue");
    }
    if counter(WMEM_ALLOC) > 0 {
        let why = "corked, or still with the device; without CAP_BPF the two look alike";
        report.lose("unsent data", why);
    }
    report.assume(
        "no IPsec policy, SO_REUSEPORT program, time stamp counter; sending not shut down alone",
        "only BPF sees them",
    );
    Ok(())
}
