//! What waits in a socket, as `sockcr show` prints it.

use crate::output::{self, FAINT, STRONG, WARNING};
use crate::show::section;
use sockcr::Checkpoint;
use sockcr::kernel::{Corked, ErrorEntry};
use sockcr::option::bytes;
use sockcr::state::receive_queue::Datagram;
use sockcr::target;
use std::net::SocketAddr;

/// More are counted, not printed.
const MOST: usize = 20;

/// What waits in a socket: datagrams in both directions, and errors.
pub fn page(checkpoint: &Checkpoint) -> Vec<String> {
    let mut text = Vec::new();
    let received = list(&checkpoint.receive_queue, |one| datagram(checkpoint, one));
    section(
        &mut text,
        "waiting to be received, oldest first",
        &received,
        STRONG,
    );
    let corked: Vec<String> = checkpoint.cork.iter().map(corked).collect();
    section(
        &mut text,
        "held back by UDP_CORK or MSG_MORE",
        &corked,
        STRONG,
    );
    let errors = list(&checkpoint.errors.queue, error);
    section(&mut text, "errors waiting to be told", &errors, WARNING);
    section(&mut text, "counters", &counters(checkpoint), FAINT);
    text
}

fn counters(checkpoint: &Checkpoint) -> Vec<String> {
    let mut text = Vec::new();
    if checkpoint.errors.pending != 0 {
        let errno = checkpoint.errors.pending;
        text.push(format!("pending error {errno}: {}", reason(errno)));
    }
    if checkpoint.in_flight != 0 {
        let size = bytes(checkpoint.in_flight.into());
        text.push(format!("{size} of memory with a device, on its way out"));
    }
    if checkpoint.drops != 0 {
        text.push(format!("{} datagrams dropped so far", checkpoint.drops));
    }
    text
}

fn list<T>(entries: &[T], words: impl Fn(&T) -> Vec<String>) -> Vec<String> {
    let rows: Vec<Vec<String>> = entries.iter().take(MOST).map(words).collect();
    let mut lines = output::table(&rows);
    if entries.len() > MOST {
        lines.push(format!("and {} more", entries.len() - MOST));
    }
    lines
}

fn datagram(checkpoint: &Checkpoint, datagram: &Datagram) -> Vec<String> {
    let device = checkpoint.interfaces.name(datagram.interface);
    let shown = |address: &SocketAddr| target::show(address, device);
    vec![
        format!(
            "{} → {}",
            shown(&datagram.source),
            shown(&datagram.destination)
        ),
        bytes(datagram.payload.len() as u64),
        format!("ttl {}", datagram.ttl),
        format!("tos {}", datagram.tos),
        time(datagram.received_at),
    ]
}

/// Seconds since the epoch, as SO_TIMESTAMPNS tells them.
fn time(nanoseconds: i64) -> String {
    const SECOND: i64 = 1_000_000_000;
    match nanoseconds {
        0 => "not stamped".into(),
        time => format!(
            "at {}.{:09}",
            time.div_euclid(SECOND),
            time.rem_euclid(SECOND)
        ),
    }
}

fn corked(corked: &Corked) -> String {
    let size = bytes(corked.payload.len() as u64);
    format!("→ {}  {size}", corked.destination)
}

fn error(entry: &ErrorEntry) -> Vec<String> {
    let address = |address: Option<SocketAddr>| address.map_or("-".into(), |a| a.to_string());
    vec![
        format!("→ {}", address(entry.destination)),
        format!("from {}", address(entry.offender)),
        format!("type {} code {}", entry.kind, entry.code),
        reason(entry.error),
    ]
}

fn reason(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    text.to_lowercase()
}
