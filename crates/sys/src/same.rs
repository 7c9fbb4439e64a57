//! Whether two things of other processes are the same one: kcmp(2).

use std::io;
use std::os::fd::RawFd;

/// Whether two threads share one table of descriptors (the rights of ptrace(2) on both).
pub fn is_same_table(one: i32, other: i32) -> io::Result<bool> {
    const KCMP_FILES: i32 = 2;
    compare((one, 0), (other, 0), KCMP_FILES)
}

/// Whether two descriptors, each of a thread, are one open file.
pub fn is_same_file(one: (i32, RawFd), other: (i32, RawFd)) -> io::Result<bool> {
    const KCMP_FILE: i32 = 0;
    compare(one, other, KCMP_FILE)
}

fn compare(one: (i32, RawFd), other: (i32, RawFd), kind: i32) -> io::Result<bool> {
    let [first, second] = [one.1, other.1].map(|fd| fd as libc::c_ulong);
    // SAFETY: kcmp(2) takes five numbers, and reads no memory of ours for these two kinds.
    let told = unsafe { libc::syscall(libc::SYS_kcmp, one.0, other.0, kind, first, second) };
    match told {
        0.. => Ok(told == 0),
        _ => Err(io::Error::last_os_error()),
    }
}
