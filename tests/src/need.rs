//! What a scenario cannot do without, and where it may be missing.

use std::path::Path;
use std::process::{Command, Stdio};

/// Something of the machine or of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To be root of the machine: to act as another user, or to see what only BPF shows.
    Root,
    /// A program.
    Program(&'static str),
    /// That a process without privilege may look into another one of its user.
    LookIntoOwnProcesses,
    /// Control groups of version 2, mounted, for root to make some.
    ControlGroups,
}

/// What the machine of the continuous integration may lack, and why; anything else must be there.
pub const MAY_BE_MISSING_IN_CI: &[(Need, &str)] = &[];

impl Need {
    /// What is missing, if it is.
    pub fn missing(self) -> Option<String> {
        match self {
            Need::Root => (!rustix::process::geteuid().is_root()).then(|| "not root".into()),
            Need::Program(name) => {
                let missing = !is_installed(name);
                missing.then(|| format!("{name} is not installed"))
            }
            Need::ControlGroups => match sockcr::control_group::mount() {
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            },
            Need::LookIntoOwnProcesses => {
                let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
                let scope = scope.unwrap_or_default();
                let forbidden = !matches!(scope.trim(), "" | "0" | "1");
                forbidden.then(|| format!("kernel.yama.ptrace_scope is {}", scope.trim()))
            }
        }
    }
}

/// Why this cannot be told here; `Err` where that is a fault of the machine.
pub fn skip(needs: &[Need]) -> Result<Option<String>, String> {
    if let Err(why) = namespaces() {
        return strict().map_or(Ok(Some(why.clone())), |()| Err(why));
    }
    let missing = needs.iter().find_map(|need| Some((need, need.missing()?)));
    let Some((need, why)) = missing else {
        return Ok(None);
    };
    let allowed = MAY_BE_MISSING_IN_CI.iter().any(|(may, _)| may == need);
    match strict() {
        Some(()) if !allowed => Err(format!("nothing is skipped where CI=true: {why}")),
        _ => Ok(Some(why)),
    }
}

fn strict() -> Option<()> {
    std::env::var_os("CI").filter(|ci| ci == "true").map(drop)
}

/// Whether scenarios can have a network namespace each; tried out once, in another process.
fn namespaces() -> Result<(), String> {
    use std::sync::LazyLock;
    static TRIED: LazyLock<Result<(), String>> = LazyLock::new(|| {
        let mut probe = Command::new("/proc/self/exe");
        probe.arg(crate::harness::PROBE).stdout(Stdio::null());
        match probe.output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    });
    TRIED.clone()
}

/// Programs of the administrator are not on everybody's path.
fn is_installed(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|folder| Path::new(folder).join(name).is_file())
}
