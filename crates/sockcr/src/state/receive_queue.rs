//! The datagrams that wait to be received, read by BPF without taking any, and put back before the
//! new socket is bound. Without BPF: `peek` and `raw_queue`.

use super::endpoint::Failure;
use super::interfaces::Interfaces;
use super::{peek, raw_queue};
use crate::kernel::inject::{self, Inexact, Injected};
use crate::kernel::{self, Hidden, Queued};
use crate::netns;
use crate::report::Report;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::BorrowedFd;

/// One datagram, as recvmsg(2) with every option would tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where it came from; address and port may be 0.
    pub source: SocketAddrV4,
    /// Where it went to.
    pub destination: SocketAddrV4,
    /// IP_RECVTTL.
    pub ttl: u8,
    /// IP_RECVTOS.
    pub tos: u8,
    /// The device that IP_PKTINFO tells, by index; 0: none, because it was off at arrival.
    pub interface: u32,
    /// The local address that IP_PKTINFO tells.
    pub local: Ipv4Addr,
    /// When it arrived, in nanoseconds since the epoch; 0: not stamped.
    pub received_at: i64,
    /// SO_RCVMARK.
    pub mark: u32,
    /// What UDP_GRO tells; 0 for a single datagram.
    pub segment: u32,
    /// The options of its IP header.
    pub options: Vec<u8>,
    /// Its data.
    pub payload: Vec<u8>,
}

/// Reads the queue; what of it a restore could not put back is reported.
pub(crate) fn dump(
    fd: BorrowedFd<'_>,
    hidden: Option<&Hidden>,
    report: &mut Report,
) -> Vec<Datagram> {
    let Some(hidden) = hidden else {
        return peek::dump(fd, report);
    };
    if hidden.receive_queue == 0 {
        return Vec::new();
    }
    let queue = kernel::reader()
        .map_err(io::Error::other)
        .and_then(|reader| reader.receive_queue(fd));
    let queue = match queue {
        Ok(queue) => queue,
        Err(error) => {
            let count = hidden.receive_queue;
            let why = crate::error::reason(&error);
            report.lose("receive queue", format!("{count} waiting: {why}"));
            return Vec::new();
        }
    };
    if queue.iter().any(|queued| queued.fragment_size > 0) {
        report.lose(
            "receive queue: IP_RECVFRAGSIZE",
            "came in fragments, and would not again",
        );
    }
    queue.into_iter().map(Datagram::from).collect()
}

impl From<Queued> for Datagram {
    fn from(queued: Queued) -> Datagram {
        Datagram {
            source: queued.source,
            destination: queued.destination,
            ttl: queued.ttl,
            tos: queued.tos,
            interface: queued.pktinfo_interface,
            local: queued.pktinfo_address,
            received_at: queued.received_at,
            mark: queued.mark,
            segment: queued.segment_size.into(),
            options: queued.ip_options,
            payload: queued.payload,
        }
    }
}

/// Puts the queue into a new, unbound socket without a filter ([`inject`]).
pub(crate) fn restore(
    fd: BorrowedFd<'_>,
    queue: &[Datagram],
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut datagrams = Vec::with_capacity(queue.len());
    for datagram in queue {
        datagrams.push(inject::Datagram {
            source: datagram.source,
            destination: datagram.destination,
            ttl: datagram.ttl,
            tos: datagram.tos,
            interface: local_device(fd, datagram, interfaces, report),
            received_at: datagram.received_at,
            mark: datagram.mark,
            priority: 0,
            segment_size: u16::try_from(datagram.segment).unwrap_or(0),
            ip_options: &datagram.options,
            payload: &datagram.payload,
        });
    }
    let injected = netns::within(fd, || inject::inject(fd, &datagrams))
        .map_err(|error| Failure::at("put the receive queue back", error))?;
    tell(&injected, report);
    Ok(())
}

pub(super) fn local_device(
    fd: BorrowedFd<'_>,
    datagram: &Datagram,
    interfaces: &Interfaces,
    report: &mut Report,
) -> u32 {
    interfaces
        .local(fd, datagram.interface)
        .unwrap_or_else(|error| {
            report.lose("receive queue: IP_PKTINFO", crate::error::reason(&error));
            0
        })
}

/// Whether the queue is to be put into the socket only when it has taken its place, because there
/// is no BPF to do it before ([`restore_in_place`]).
pub(crate) fn comes_later(queue: &[Datagram]) -> bool {
    !queue.is_empty() && kernel::reader().is_err()
}

/// Has a new socket, whose filter lets nothing in, take its place, and puts the queue into it.
pub(crate) fn restore_in_place(
    fd: BorrowedFd<'_>,
    take: impl Fn() -> Result<(), Failure>,
    queue: &[Datagram],
    interfaces: &Interfaces,
    report: &mut Report,
) -> Result<(), Failure> {
    let alone = raw_queue::take_alone(fd, take)?;
    raw_queue::restore(fd, queue, interfaces, report)?;
    match alone {
        true => raw_queue::share(fd),
        false => Ok(()),
    }
}

fn tell(injected: &Injected, report: &mut Report) {
    for (inexact, what, why) in [
        (
            Inexact::Interface,
            "IP_PKTINFO",
            "the device is not here, or down",
        ),
        (
            Inexact::SegmentSize,
            "UDP_GRO",
            "the segments are one long datagram now",
        ),
        (
            Inexact::Options,
            "IP options",
            "one more time stamp was added",
        ),
    ] {
        let count = injected
            .inexact
            .iter()
            .filter(|(_, i)| *i == inexact)
            .count();
        if count > 0 {
            report.lose(
                format!("receive queue: {what}"),
                format!("{count} of them: {why}"),
            );
        }
    }
}
