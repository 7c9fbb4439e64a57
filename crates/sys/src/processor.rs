//! Which processor a thread runs on.
//!
//! A thread that waits for another one on the same processor costs two switches; on different ones each of them
//! has to be woken up, which takes many times as long where an idle processor sleeps, above all in a virtual machine. The
//! scheduler does not know who will wait for whom.

use crate::path;
use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

/// Keeps this thread off the processor of another one as long as it lives.
#[derive(Debug)]
pub(crate) struct Apart {
    processor: usize,
    thread: Pid,
    before: CpuSet,
}

impl Apart {
    /// From a thread that shares its processor with others. `None`: ours has no other one, or may not run on that one.
    pub fn from(tid: i32) -> Option<Apart> {
        let processor = last_of(tid)?;
        let before = sched_getaffinity(None).ok()?;
        if processor >= CpuSet::MAX_CPU || !before.is_set(processor) {
            return None;
        }
        let mut others = before;
        others.unset(processor);
        let moved = others.count() > 0 && sched_setaffinity(None, &others).is_ok();
        moved.then(|| Apart {
            processor,
            thread: gettid(),
            before,
        })
    }

    /// Has this thread, of a child process, go to that processor; the scheduler may take it away from there when others
    /// need that. It works without.
    pub fn join(&self) {
        let mut only = CpuSet::new();
        only.set(self.processor);
        let _ = sched_setaffinity(None, &only);
        let _ = sched_setaffinity(None, &self.before);
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // It fails where none of these is left to us: then the kernel has chosen others already.
        let _ = sched_setaffinity(Some(self.thread), &self.before);
    }
}

/// The processor that a thread runs on, or has run on last (/proc/PID/stat: `processor`); `None` where it need not
/// share that with others (`policy`: real time, deadlines).
fn last_of(tid: i32) -> Option<usize> {
    let mut buffer = [0; 1024];
    let mut fields = path::stat(tid, &mut buffer)?.skip(39 - 3);
    let (processor, _priority, policy) = (fields.next()?, fields.next()?, fields.next()?);
    let policy: i32 = policy.parse().ok()?;
    let shares = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&policy);
    shares.then(|| processor.parse().ok()).flatten()
}
