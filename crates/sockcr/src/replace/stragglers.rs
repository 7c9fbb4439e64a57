//! What a socket got after its queue was read: it is put behind what the other one has.

use super::learn_devices;
use crate::checkpoint::Checkpoint;
use crate::kernel::inject::Lazy;
use crate::kernel::{Queued, Reader};
use crate::map::{self, Mapping};
use crate::netns;
use crate::report::Report;
use crate::state::receive_queue;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::BorrowedFd;

/// The datagrams that came to a socket, but not to the one that it gives them to.
#[derive(Debug)]
pub(super) struct Stragglers {
    /// Those that are accounted for: nobody reads them any more, so that each keeps its identity.
    known: BTreeSet<u64>,
    waiting: Vec<Queued>,
}

impl Stragglers {
    /// Whatever is not in this queue.
    pub fn after(queue: &[Queued]) -> Stragglers {
        Stragglers {
            known: queue.iter().map(|queued| queued.identity).collect(),
            waiting: Vec::new(),
        }
    }

    /// What waits in `from` behind the first `known`, and not in `to` as well.
    pub fn behind(
        reader: &Reader,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        known: usize,
    ) -> io::Result<Stragglers> {
        let mut queue = reader.receive_queue(from)?;
        let later = queue.split_off(known.min(queue.len()));
        let mut stragglers = Stragglers::after(&queue);
        stragglers.add(reader, later, to)?;
        Ok(stragglers)
    }

    /// Looks at the socket that they came to. What is for many came to the other one too, while both were
    /// in their place: the same datagram waits in its queue.
    pub fn look(
        &mut self,
        reader: &Reader,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> io::Result<()> {
        if reader.read(from)?.receive_queue as usize <= self.known.len() {
            return Ok(());
        }
        self.add(reader, reader.receive_queue(from)?, to)
    }

    fn add(&mut self, reader: &Reader, mut new: Vec<Queued>, to: BorrowedFd<'_>) -> io::Result<()> {
        new.retain(|queued| self.known.insert(queued.identity));
        let shares = |queued: &Queued| {
            let destination = queued.destination.ip();
            // Of a broadcast address only the network knows that it is one.
            destination.is_multicast() || destination.is_ipv4()
        };
        if new.iter().any(shares) {
            let there: BTreeSet<u64> = reader.identities(to)?.into_iter().collect();
            new.retain(|queued| !there.contains(&queued.identity));
        }
        self.waiting.append(&mut new);
        Ok(())
    }

    /// Puts those that were seen into the other socket, which is in use; answers how many.
    pub fn put_in(
        &mut self,
        old: &Checkpoint,
        (from, to): (BorrowedFd<'_>, BorrowedFd<'_>),
        map: &[Mapping],
        injector: &mut Lazy,
        report: &mut Report,
    ) -> io::Result<usize> {
        let waiting = std::mem::take(&mut self.waiting);
        let count = waiting.len();
        if count == 0 {
            return Ok(0);
        }
        let mut all = old.clone();
        all.receive_queue = receive_queue::told(waiting, old.protocol, &old.options, report);
        learn_devices(&mut all, from);
        map::apply_to(&mut all, map, &mut vec![false; map.len()]);
        netns::within(to, || {
            let injector = injector.get()?;
            let (protocol, queue) = (all.protocol, &all.receive_queue);
            receive_queue::add(to, protocol, queue, &all.interfaces, injector, report)
        })?;
        Ok(count)
    }
}
