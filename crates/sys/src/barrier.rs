//! Waiting for what other processors are in the middle of.

use std::io;

/// Waits until every processor has ended what it was in when this was called: also the packet that it was
/// about to put into a queue (`synchronize_rcu`, by membarrier(2), since 4.3). Some 10 ms.
///
/// `EINVAL`: the kernel runs processors without a clock tick (`nohz_full`), and does not offer it.
pub fn wait_for_all() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: membarrier(2) takes numbers only.
    let done = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
