//! The command with real namespaces, processes and programs.
#![forbid(unsafe_code)]

mod avahi;
mod by_service;
mod chrony;
mod daemon;
mod dnsmasq;
mod finding;
mod handing_over;
mod icmp;
mod images;
mod live;
mod moving;
mod printing;
mod replacing;
mod replacing_daemons;
mod replacing_killed;
mod serving;
mod stopping;
mod tuning;
mod unbound;
mod unprivileged;

use std::process::ExitCode;

fn main() -> ExitCode {
    sockcr_scenarios::harness::main(&[
        avahi::ALL,
        by_service::ALL,
        chrony::ALL,
        daemon::ALL,
        dnsmasq::ALL,
        finding::ALL,
        handing_over::ALL,
        icmp::ALL,
        images::ALL,
        live::ALL,
        moving::ALL,
        printing::ALL,
        replacing::ALL,
        replacing_daemons::ALL,
        replacing_killed::ALL,
        serving::ALL,
        stopping::ALL,
        tuning::ALL,
        unbound::ALL,
        unprivileged::ALL,
    ])
}
