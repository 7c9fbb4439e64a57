//! The kernel interfaces sockcr needs that no safe crate offers, one file each.
//!
//! This is the only crate of the project with unsafe code; every block says why it is sound.
#![allow(unsafe_code)]

pub mod barrier;
pub mod bpf;
pub mod capture;
mod child;
pub mod credentials;
pub mod descriptor;
pub mod foreign;
pub mod guard;
pub mod handover;
pub mod interface;
pub mod message;
pub mod namespace;
pub mod netns;
mod pass;
mod path;
pub mod process;
mod processor;
pub mod ptrace;
mod registers;
mod renewal;
pub mod same;
pub mod shared;
pub mod signal;
pub mod sockopt;
pub mod swap;
pub mod visit;

/// Turns the `-1` of a system call into the error of this thread's `errno`.
fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
