//! Holding a process still.

use crate::error::{Error, ErrorKind};
use rustix::io::Errno;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Every thread of a process, standing still until this is dropped.
///
/// If we are killed meanwhile, the kernel lets the process go on by itself.
#[derive(Debug)]
pub struct Stopped {
    /// Nothing is ever sent: its end says that this is dropped.
    hold: Option<Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.hold = None;
        // It ends without a panic.
        let _ = self.holder.take().map(JoinHandle::join);
    }
}

/// Stops every thread of a process (the rights of ptrace(2)).
///
/// A thread of ours does it, which the kernel knows as the tracer: when that ends, it lets go even a thread that was told
/// to stop and has not done so yet (`exit_ptrace`).
pub fn stop(pid: i32) -> Result<Stopped, Error> {
    let (tell, told) = channel();
    let (hold, held) = channel();
    let builder = std::thread::Builder::new().name("sockcr-stop".into());
    let holder = builder.spawn(move || {
        let stopped = hold_all(pid);
        let (threads, done) = match stopped {
            Ok(threads) => (threads, Ok(())),
            Err(error) => (Vec::new(), Err(error)),
        };
        // Whoever is told waits for it.
        let _ = tell.send(done);
        // It ends when nobody holds the other end.
        let _ = held.recv();
        drop(threads);
    });
    let failed = |error| Error::system(format!("process {pid}: hold it still"), error);
    let stopped = Stopped {
        hold: Some(hold),
        holder: Some(holder.map_err(failed)?),
    };
    let ended = |_| failed(io::Error::other("the thread that does it has ended"));
    told.recv().map_err(ended)?.map(|()| stopped)
}

fn hold_all(pid: i32) -> Result<Vec<sockcr_sys::ptrace::Stopped>, Error> {
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
        false => Ok(threads),
    }
}

fn tasks(pid: i32) -> io::Result<Vec<i32>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}
