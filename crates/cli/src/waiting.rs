//! What waits in a socket, as `sockcr show` prints it.

use crate::output::{self, FAINT, STRONG, WARNING};
use crate::show::section;
use sockcr::Checkpoint;
use sockcr::find::Found;
use sockcr::kernel::{Corked, ErrorEntry};
use sockcr::option::bytes;
use sockcr::state::receive_queue::Datagram;
use std::net::SocketAddrV4;

/// More are counted, not printed.
const MOST: usize = 20;

/// The receive queue of a checkpoint; and what else waits in the live socket.
pub fn page(checkpoint: &Checkpoint, socket: Option<&Found>) -> Vec<String> {
    let mut text = Vec::new();
    let received = list(&checkpoint.receive_queue, datagram);
    section(
        &mut text,
        "waiting to be received, oldest first",
        &received,
        STRONG,
    );
    match socket.map(Found::waiting) {
        None => {}
        Some(Ok(waiting)) => {
            let corked: Vec<String> = waiting.corked.iter().map(corked).collect();
            section(
                &mut text,
                "held back by UDP_CORK or MSG_MORE",
                &corked,
                WARNING,
            );
            let errors = list(&waiting.errors, error);
            section(&mut text, "errors waiting to be told", &errors, WARNING);
        }
        Some(Err(why)) => {
            let why = format!("what else waits cannot be read: {why}");
            section(&mut text, "waiting", &[why], FAINT);
        }
    }
    text
}

fn list<T>(entries: &[T], words: fn(&T) -> Vec<String>) -> Vec<String> {
    let rows: Vec<Vec<String>> = entries.iter().take(MOST).map(words).collect();
    let mut lines = output::table(&rows);
    if entries.len() > MOST {
        lines.push(format!("and {} more", entries.len() - MOST));
    }
    lines
}

fn datagram(datagram: &Datagram) -> Vec<String> {
    vec![
        format!("{} → {}", datagram.source, datagram.destination),
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
        time => format!("at {}.{:09}", time / SECOND, time % SECOND),
    }
}

fn corked(corked: &Corked) -> String {
    let size = bytes(corked.payload.len() as u64);
    format!("→ {}  {size}", corked.destination)
}

fn error(entry: &ErrorEntry) -> Vec<String> {
    let address = |address: Option<SocketAddrV4>| address.map_or("-".into(), |a| a.to_string());
    let reason = std::io::Error::from_raw_os_error(entry.error).to_string();
    let reason = reason.split(" (os error").next().unwrap_or_default();
    vec![
        format!("→ {}", address(entry.destination)),
        format!("from {}", address(entry.offender)),
        format!("type {} code {}", entry.kind, entry.code),
        reason.to_lowercase(),
    ]
}
