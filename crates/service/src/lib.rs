//! The two commands of the RFC of 2007, DUMP and RESTORE, by netlink messages over a Unix socket: the service,
//! and its client.
#![forbid(unsafe_code)]

pub mod message;
