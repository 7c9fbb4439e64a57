//! What only BPF shows: state of a socket that no system call tells, and every socket of every
//! process.
//!
//! No compiler and no library is involved. The kernel describes its own structures (BTF); from
//! that a few small programs are assembled when they are first needed, and the kernel's verifier
//! checks them. They read and change nothing; only [`inject`] writes, and only into new sockets. They need CAP_BPF and CAP_PERFMON in the initial
//! user namespace; without them [`reader`] and [`sockets`] say so.
#![forbid(unsafe_code)]

mod assembler;
mod btf;
mod buffer;
mod copier;
mod cork;
mod file;
mod gather;
mod inet6;
pub mod inject;
mod iterator;
mod layout;
mod order;
mod pages;
mod peer;
mod program;
mod programs;
mod queue;
mod reader;
mod walk;

use std::io;
use std::os::fd::OwnedFd;

use sockcr_sys::bpf;

pub use copier::Sock;
pub use cork::Corked;
pub use file::{OpenFile, Origin, Users};
pub use inet6::Hidden6;
pub(crate) use iterator::needs_scope;
pub use iterator::{SocketFile, sockets};
pub use peer::Peer;
pub use programs::Attached;
pub use queue::{ErrorEntry, Mark, Queued};
pub use reader::{Extent, Hidden, Joined, Reader, reader};

/// The room for the verifier's words, of which the last ones count.
const LOG_SIZE: usize = 1 << 20;

/// Why the kernel cannot be read by BPF here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unavailable {
    reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("BPF needs CAP_BPF and CAP_PERFMON (or root) in the initial user namespace")]
    Privilege,
    #[error("no type information of the kernel ({path}: {0})", path = bpf::KERNEL_TYPES)]
    NoTypes(String),
    #[error("{0}")]
    Types(#[from] btf::BtfError),
    #[error("{0}")]
    Assemble(#[from] assembler::AssembleError),
    #[error("the kernel has no BPF, or is too old ({0})")]
    TooOld(String),
    #[error("the kernel is locked down: its memory may not be read")]
    LockedDown,
    #[error("the kernel refused the program: {0}")]
    Refused(String),
    #[error("{0}")]
    Other(String),
}

impl Unavailable {
    /// Whether the same process with more capabilities would succeed.
    #[must_use]
    pub fn is_privilege(&self) -> bool {
        self.reason == Reason::Privilege
    }

    fn io(&'static self) -> io::Error {
        let kind = if self.is_privilege() {
            io::ErrorKind::PermissionDenied
        } else {
            io::ErrorKind::Unsupported
        };
        io::Error::new(kind, self)
    }
}

impl<T: Into<Reason>> From<T> for Unavailable {
    fn from(reason: T) -> Self {
        Self {
            reason: reason.into(),
        }
    }
}

/// Loads now what is otherwise loaded when it is first needed, as far as copies of this process may share it.
pub fn warm_up() -> io::Result<()> {
    let reader = reader().map_err(io::Error::other)?;
    reader.warm_up()?;
    sockets(Some(std::process::id())).map(drop)
}

/// Says early and at little cost that this process may not use BPF, by the smallest program.
fn permitted() -> Result<(), Unavailable> {
    let mut program = assembler::Assembler::new();
    program.set(assembler::Register::R0, 0);
    program.exit();
    load(bpf::Kind::Syscall, "sockcr_try", &program.finish()?).map(drop)
}

/// Loads a program; on a refusal once more, to learn the verifier's last line.
fn load(kind: bpf::Kind, name: &str, instructions: &[u8]) -> Result<OwnedFd, Unavailable> {
    let error = match bpf::load(kind, name, instructions, &mut []) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    Err(match error.kind() {
        io::ErrorKind::PermissionDenied if is_operation(&error) => Reason::Privilege,
        io::ErrorKind::Unsupported => Reason::TooOld(error.to_string()),
        _ => refusal(kind, name, instructions, &error),
    }
    .into())
}

/// Whether an error is EPERM: the verifier's refusal is EACCES, which has the same kind.
fn is_operation(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error())
}

fn refusal(kind: bpf::Kind, name: &str, instructions: &[u8], error: &io::Error) -> Reason {
    let mut log = vec![0; LOG_SIZE];
    match bpf::load(kind, name, instructions, &mut log) {
        Ok(_) => Reason::Other(error.to_string()),
        Err(_) => match complaint(&log) {
            Some(line) => meaning(line),
            None => Reason::TooOld(error.to_string()),
        },
    }
}

/// Without CAP_PERFMON no helper for tracing may be used, and the task is asked for first; reading
/// alone is forbidden by a lockdown.
fn meaning(line: String) -> Reason {
    match line.split_once("cannot use helper ") {
        Some((_, helper)) if helper.contains("probe_read") => Reason::LockedDown,
        Some((_, helper)) if helper.contains("get_current_task") => Reason::Privilege,
        _ => Reason::Refused(line),
    }
}

/// The last line of the verifier's log that is not its statistics.
fn complaint(log: &[u8]) -> Option<String> {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(log.get(..end)?);
    text.lines()
        .map(str::trim)
        .rfind(|line| !line.is_empty() && !line.starts_with("processed "))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_complaint_is_the_last_line_before_the_statistics() {
        let log = b"0: (bf) r6 = r1\nR1 type=ctx expected=fp\nprocessed 4 insns (limit 1)\n\0\0";
        assert_eq!(complaint(log).as_deref(), Some("R1 type=ctx expected=fp"));
        assert_eq!(complaint(b"\0"), None);
        assert_eq!(complaint(b""), None);
    }

    #[test]
    fn a_refused_program_says_why() {
        let mut program = assembler::Assembler::new();
        program.copy(assembler::Register::R0, assembler::Register::R7);
        program.exit();
        let code = program.finish().unwrap();
        let why = load(bpf::Kind::Syscall, "refused", &code).unwrap_err();
        assert!(
            why.is_privilege() || why.to_string().contains("R7"),
            "{why}"
        );
    }
}
