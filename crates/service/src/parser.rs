//! The process that reads what one client sends. It has no rights ([`sandbox`]); what it makes of a packet it hands
//! to the broker, and says nothing to the client itself.

use crate::packet::{Receiver, encode, send};
use crate::request::{Ask, MAX_RESTORE, Read, Reader};
use crate::sandbox;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// A request in several messages has to be there within this time.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Reads until the client has closed, or sends what ends its connection.
pub fn run(client: &OwnedFd, broker: &OwnedFd) -> io::Result<()> {
    let mut kept = [client.as_raw_fd(), broker.as_raw_fd()];
    sockcr_sys::process::close_others(&mut kept)?;
    // An image, and what its encoding adds.
    sandbox::enter(MAX_RESTORE as u64 * 2)?;
    read(client.as_fd(), broker.as_fd())
}

fn read(client: BorrowedFd<'_>, broker: BorrowedFd<'_>) -> io::Result<()> {
    let mut receiver = Receiver::default();
    let mut reader = Reader::default();
    let mut end = None;
    loop {
        end = match (reader.is_waiting(), end) {
            (false, _) => None,
            (true, None) => Some(Instant::now() + PATIENCE),
            (true, end) => end,
        };
        if let Some(end) = end
            && !comes_before(client, end)?
        {
            return match reader.too_late() {
                Some(read) => hand_on(broker, read, None).map(drop),
                None => Ok(()),
            };
        }
        let packet = receiver.receive(client)?;
        if packet.bytes.is_empty() {
            return Ok(());
        }
        if let Some(read) = reader.packet(packet.bytes, packet.passed)
            && !hand_on(broker, read, packet.descriptor().as_ref())?
        {
            return Ok(());
        }
    }
}

/// Whether something can be received before then.
fn comes_before(client: BorrowedFd<'_>, end: Instant) -> io::Result<bool> {
    let left = end.saturating_duration_since(Instant::now());
    let left = Timespec {
        tv_sec: left.as_secs() as i64,
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut wait = [PollFd::from_borrowed_fd(client, PollFlags::IN)];
    Ok(poll(&mut wait, Some(&left))? > 0)
}

/// Hands a request to the broker; answers whether more is read. There is one image at a time: it waits until one
/// is done with.
fn hand_on(
    broker: BorrowedFd<'_>,
    (request, image): Read,
    passed: Option<&OwnedFd>,
) -> io::Result<bool> {
    let packet = encode(&request)?;
    match image {
        Some(image) => {
            let file = in_memory(&image)?;
            drop(image);
            send(broker, &packet, &[file.as_fd()])?;
            drop(file);
            let mut done = Receiver::default();
            Ok(!done.receive(broker)?.bytes.is_empty())
        }
        None => {
            let passed: Vec<BorrowedFd<'_>> = passed.iter().map(|fd| fd.as_fd()).collect();
            send(broker, &packet, &passed)?;
            Ok(!matches!(request.ask, Ask::Wrong { last: true, .. }))
        }
    }
}

/// A file in memory with these bytes.
pub fn in_memory(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create(c"sockcr", MemfdFlags::CLOEXEC)?;
    let mut left = bytes;
    while !left.is_empty() {
        let written = rustix::io::write(&file, left)?;
        left = left.get(written..).unwrap_or_default();
    }
    Ok(file)
}
