//! Which processor a thread runs on.
//!
//! A thread that waits for another one on the same processor costs two switches; on different ones each of them
//! has to be woken up, which takes many times as long where an idle processor sleeps, above all in a virtual machine. The
//! scheduler does not know who will wait for whom.

use rustix::process::Pid;
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_setaffinity};

/// Keeps this thread off a processor as long as it lives.
#[derive(Debug)]
pub(crate) struct Apart {
    thread: Pid,
    before: CpuSet,
}

impl Apart {
    /// `None`: it has no other one, or may not run on this one.
    pub fn from(processor: usize) -> Option<Apart> {
        let before = sched_getaffinity(None).ok()?;
        if processor >= CpuSet::MAX_CPU || !before.is_set(processor) {
            return None;
        }
        let mut others = before;
        others.unset(processor);
        let moved = others.count() > 0 && sched_setaffinity(None, &others).is_ok();
        moved.then(|| Apart {
            thread: gettid(),
            before,
        })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // It fails where none of these is left to us: then the kernel has chosen others already.
        let _ = sched_setaffinity(Some(self.thread), &self.before);
    }
}

/// Has this thread run on one processor, and lets the scheduler take it away from there where others need that; where
/// it is not allowed, it runs where it did.
pub(crate) fn move_to(processor: usize) {
    let Ok(before) = sched_getaffinity(None) else {
        return;
    };
    let mut only = CpuSet::new();
    if processor < CpuSet::MAX_CPU {
        only.set(processor);
        let _ = sched_setaffinity(None, &only);
        let mut all = before;
        all.set(processor);
        let _ = sched_setaffinity(None, &all);
    }
}

/// The processor that a thread runs on, or has run on last (/proc/PID/stat: `processor`); `None` where it need not
/// share that with others (`policy`: real time, deadlines).
pub(crate) fn last_of(tid: i32) -> Option<usize> {
    let mut buffer = [0; 1024];
    let path = crate::path::Path::new(format_args!("/proc/{tid}/stat"));
    let text = crate::path::read(path.as_c_str(), &mut buffer).ok()?;
    // Its name, in brackets, can hold anything; the state behind it is the third field of all.
    let name = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace().skip(39 - 3);
    let (processor, _priority, policy) = (fields.next()?, fields.next()?, fields.next()?);
    let policy: i32 = policy.parse().ok()?;
    let shares = [libc::SCHED_OTHER, libc::SCHED_BATCH, libc::SCHED_IDLE].contains(&policy);
    shares.then(|| processor.parse().ok()).flatten()
}
