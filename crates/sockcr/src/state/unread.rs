//! What a socket holds beyond its settings, and a checkpoint does not: each is reported by name.

use super::shutdown::poll_now;
use crate::kernel::Hidden;
use crate::report::Report;
use rustix::event::PollFlags;
use std::io;
use std::os::fd::BorrowedFd;

const SOL_SOCKET: i32 = 1;
const SO_MEMINFO: i32 = 55;
const WMEM_ALLOC: usize = 2;

/// Reports queues, corked data, errors and counters.
pub(crate) fn report(
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> io::Result<()> {
    match hidden {
        Some(hidden) => from_kernel(hidden, report),
        None => from_outside(fd, report)?,
    }
    Ok(())
}

fn from_kernel(hidden: &Hidden, report: &mut Report) {
    if hidden.error_queue > 0 {
        report.lose("error queue", plural(hidden.error_queue, "entry"));
    }
    if hidden.pending_error != 0 {
        let error = io::Error::from_raw_os_error(hidden.pending_error);
        let text = crate::error::reason(&error);
        report.lose(
            "pending error",
            format!("SO_ERROR {}: {text}", hidden.pending_error),
        );
    }
    if hidden.pending {
        // udp_sock.len counts the UDP header of 8 bytes too.
        let payload = hidden.pending_bytes.saturating_sub(8);
        report.lose("corked data", plural(payload, "byte"));
    }
    if hidden.policies.contains(&true) {
        report.lose("IPsec policy", "IP_XFRM_POLICY gives none back");
    }
    if hidden.reuseport_program {
        report.lose("SO_REUSEPORT program", "no option gives it back");
    }
    for (key, what) in [
        (hidden.timestamp_key, "time stamp counter"),
        (hidden.zerocopy_key, "zero-copy counter"),
    ] {
        if key != 0 {
            report.lose(what, format!("stands at {key}; a new socket counts from 0"));
        }
    }
    let source = hidden.source_address;
    let connected = !hidden.peer_address.is_unspecified();
    if source != hidden.bound_address && !source.is_unspecified() && !connected {
        report.lose(
            "source address",
            format!("{source}, left over from a connection"),
        );
    }
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

fn plural(count: u32, noun: &str) -> String {
    match (count, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        _ => format!("{count} {noun}s"),
    }
}
