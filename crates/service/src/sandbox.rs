//! A process that may do nothing but receive, send and use memory.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::io;

/// The system calls that are let through; any other one ends the process.
const CALLS: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_memfd_create,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sendmsg,
    libc::SYS_sigaltstack,
    libc::SYS_write,
];

/// Gives up, for good, every right of this process: capabilities, all files, all connections, and every system call that
/// is not needed to receive, send and use memory. It keeps its user, whom nobody shares that has less than the service:
/// who has the same user may kill it.
///
/// `most` bounds the files that it makes in memory, in bytes. Landlock is used as far as the kernel has it (5.13); all
/// else must succeed.
pub fn enter(most: u64) -> io::Result<()> {
    setrlimit(Resource::Fsize, limit(most))?;
    setrlimit(Resource::Core, limit(0))?;
    // More than any request, and what is made of it.
    setrlimit(Resource::Data, limit(most.saturating_mul(4)))?;
    let none = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    stay_alone()?;
    lock_files().map_err(io::Error::other)?;
    let filter = filter().map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}

/// After a change of user: others of it may not look into this process; it gains no right any more; and it ends with its
/// parent, which that change had undone (`commit_creds`).
pub fn stay_alone() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    set_no_new_privs(true)?;
    sockcr_sys::process::end_with_parent()
}

fn limit(most: u64) -> Rlimit {
    Rlimit {
        current: Some(most),
        maximum: Some(most),
    }
}

/// No file may be opened, no port used, nobody outside spoken to by a name.
fn lock_files() -> Result<(), landlock::RulesetError> {
    let newest = ABI::V6;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(newest))?
        .handle_access(AccessNet::from_all(newest))?
        .scope(Scope::from_all(newest))?
        .create()?
        .restrict_self()?;
    Ok(())
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut calls: BTreeMap<i64, _> = CALLS.iter().map(|call| (*call, Vec::new())).collect();
    // The standard library asks, in builds with its own assertions, whether what it closes is open.
    let (second, is) = (1, SeccompCmpOp::Eq);
    let asks = SeccompCondition::new(second, SeccompCmpArgLen::Dword, is, libc::F_GETFD as u64)?;
    calls.insert(libc::SYS_fcntl, vec![SeccompRule::new(vec![asks])?]);
    let filter = SeccompFilter::new(
        calls,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}
