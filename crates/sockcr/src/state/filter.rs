//! The classic BPF filter of a socket.

use crate::report::Report;
use rustix::io::Errno;
use std::io;
use std::os::fd::BorrowedFd;

pub use sockcr_sys::sockopt::Instruction;

/// Reads the filter (`SO_GET_FILTER`, since 3.8), empty when there is none; an eBPF program is
/// reported.
pub(crate) fn dump(fd: BorrowedFd<'_>, report: &mut Report) -> Option<Vec<Instruction>> {
    match sockcr_sys::sockopt::filter(fd) {
        Ok(program) => Some(program),
        Err(error) => {
            let why = match Errno::from_io_error(&error) {
                Some(Errno::ACCESS) => {
                    "an eBPF program is attached, which no option gives back".into()
                }
                _ => format!("SO_GET_FILTER: {}", crate::error::reason(&error)),
            };
            report.lose("filter", why);
            None
        }
    }
}

/// `BPF_RET | BPF_K` with 0: nothing passes.
const NOTHING: Instruction = [0x06, 0, 0, 0, 0, 0, 0, 0];
const SOL_SOCKET: i32 = 1;
const SO_DETACH_FILTER: i32 = 27;

/// Lets nothing in: between bind(2) and connect(2) a socket hears everybody, and what it heard
/// would stay in its queue.
pub(crate) fn block(fd: BorrowedFd<'_>) -> io::Result<()> {
    sockcr_sys::sockopt::attach_filter(fd, &[NOTHING])
}

/// Puts the filter in the place of that of [`block`].
pub(crate) fn unblock(fd: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    match program {
        [] => sockcr_sys::sockopt::set(fd, SOL_SOCKET, SO_DETACH_FILTER, &[0; 4]),
        _ => restore(fd, program),
    }
}

/// Attaches the filter.
pub(crate) fn restore(fd: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    match program {
        [] => Ok(()),
        _ => sockcr_sys::sockopt::attach_filter(fd, program),
    }
}
