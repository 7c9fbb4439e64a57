//! The command with real namespaces, processes and programs.
#![forbid(unsafe_code)]

mod daemon;
mod finding;
mod handing_over;
mod images;
mod moving;
mod printing;
mod stopping;
mod unprivileged;

use std::process::ExitCode;

fn main() -> ExitCode {
    sockcr_scenarios::harness::main(&[
        daemon::ALL,
        finding::ALL,
        handing_over::ALL,
        images::ALL,
        moving::ALL,
        printing::ALL,
        stopping::ALL,
        unprivileged::ALL,
    ])
}
