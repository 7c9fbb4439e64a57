//! Memory that a process shares with the copies it makes of itself.

use std::io;
use std::sync::atomic::AtomicU64;

/// So many counters, all 0, that this process and all copies of it made later see and change; for good.
pub fn counters(count: usize) -> io::Result<&'static [AtomicU64]> {
    let size = count
        .max(1)
        .checked_mul(size_of::<AtomicU64>())
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), size, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping has room for them, is aligned to a page, is all zeroes, which is a value of
    // AtomicU64, and stays: nobody unmaps it. What others change meanwhile, they change atomically.
    Ok(unsafe { std::slice::from_raw_parts(start.cast(), count) })
}
