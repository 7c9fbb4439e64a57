//! What a socket got after its queue was read: it is put behind what the other one has.

use super::learn_devices;
use crate::checkpoint::Checkpoint;
use crate::kernel::inject::Lazy;
use crate::kernel::{Mark, Queued, Reader};
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
    /// Those before it are accounted for.
    mark: Mark,
    waiting: Vec<Queued>,
}

impl Stragglers {
    /// Whatever comes behind this mark.
    pub fn behind(mark: Mark) -> Stragglers {
        Stragglers {
            mark,
            waiting: Vec::new(),
        }
    }

    /// Looks at the socket that they came to, which nobody reads from any more. What is for many came to the
    /// other one too, while both were in their place: the same datagram waits in its queue.
    pub fn look(
        &mut self,
        reader: &Reader,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut new = reader.queue_behind(from, &mut self.mark)?;
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
