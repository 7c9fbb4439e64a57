//! Holding a process still.

use crate::error::{Error, ErrorKind};
use rustix::io::Errno;
use std::io;

/// Every thread of a process, standing still until this is dropped.
///
/// If we are killed meanwhile, the kernel lets the process go on by itself.
#[derive(Debug)]
pub struct Stopped {
    _threads: Vec<sockcr_sys::ptrace::Stopped>,
}

/// Stops every thread of a process (the rights of ptrace(2)).
pub fn stop(pid: i32) -> Result<Stopped, Error> {
    let failed = |error: io::Error| {
        let what = format!("process {pid}: hold it still");
        match Errno::from_io_error(&error) {
            Some(Errno::PERM) => Error::system(what, error)
                .help("it needs the rights of ptrace(2), and no other tracer at work"),
            Some(Errno::TIMEDOUT) => {
                Error::new(ErrorKind::Refused, format!("process {pid}"), "cannot be stopped")
                    .help("it waits in the kernel for something that nothing interrupts, such as a disk or a vfork(2): try again")
            }
            _ => Error::system(what, error),
        }
    };
    let mut threads = Vec::new();
    let mut known: Vec<i32> = Vec::new();
    loop {
        let now = tasks(pid).map_err(failed)?;
        let new: Vec<i32> = now.into_iter().filter(|t| !known.contains(t)).collect();
        // Only a running thread makes new ones: when all that are there stand still, none comes.
        if new.is_empty() {
            break;
        }
        for tid in new {
            match sockcr_sys::ptrace::stop(tid) {
                Ok(thread) => threads.push(thread),
                // Another thread has its number, if it has executed a program: that is to be stopped.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => {
                    if !sockcr_sys::ptrace::has_ended(tid) {
                        continue;
                    }
                }
                Err(error) => return Err(failed(error)),
            }
            known.push(tid);
        }
    }
    match threads.is_empty() {
        true => Err(Error::new(
            ErrorKind::NotFound,
            format!("process {pid}"),
            "no such process",
        )),
        false => Ok(Stopped { _threads: threads }),
    }
}

fn tasks(pid: i32) -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}
