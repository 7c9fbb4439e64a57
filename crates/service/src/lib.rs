//! The two commands of the RFC of 2007, DUMP and RESTORE, by netlink messages over a Unix socket: the service,
//! and its client.
//!
//! ```text
//! main ── accepts, counts ─┐
//!   │ for each client      │
//!   ├─▶ broker ── has the rights; takes checked requests and descriptors, gives descriptors
//!   │     ├─▶ parser ── reads what the client sends; may receive and send, and nothing else
//!   │     └─▶ restorer ── for one restore; has become the client
//!   └─▶ broker …
//! ```
//!
//! `docs/service.md` describes the messages, and who may do what.
#![forbid(unsafe_code)]

mod answer;
mod broker;
pub mod client;
mod fill;
pub mod message;
mod metrics;
mod packet;
mod parser;
mod peer;
pub mod policy;
mod reach;
pub mod request;
mod restorer;
mod sandbox;
mod server;
mod session;

pub use client::Client;
pub use server::{DEFAULT_PATH, MOST_CLIENTS, MOST_OF_ONE, Server};
