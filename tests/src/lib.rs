//! What the scenarios stand on.
//!
//! ```text
//! cargo test ─▶ harness ─▶ one process with one network namespace for each scenario
//!                              ├─▶ the command sockcr
//!                              ├─▶ actors: small programs with sockets
//!                              └─▶ programs of the system
//! ```
//!
//! All but the last are the same executable again, told by its first argument what to be: see
//! [`harness::main`]. So nothing has to be built first, and no process has more threads than it
//! needs. Every child is killed when its parent ends.
#![forbid(unsafe_code)]

pub mod actor;
pub mod command;
pub mod datagram;
pub mod dns;
pub mod guest;
pub mod harness;
pub mod link;
pub mod load;
pub mod need;
pub mod process;
pub mod receiver;
pub mod remains;
pub mod service;
pub mod socket;
pub mod takeover;
pub mod wait;

/// How a scenario or a step of it ends.
pub type Outcome = anyhow::Result<()>;

/// One story that must come out as told.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name, as `cargo test` prints it.
    pub name: &'static str,
    /// What it cannot do without.
    pub needs: &'static [need::Need],
    /// The story, told in a fresh folder and in a fresh network namespace with loopback up.
    pub run: fn() -> Outcome,
}

impl Scenario {
    /// A scenario.
    pub const fn new(
        name: &'static str,
        needs: &'static [need::Need],
        run: fn() -> Outcome,
    ) -> Scenario {
        Scenario { name, needs, run }
    }
}
