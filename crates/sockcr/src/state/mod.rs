//! The state of a socket that no option holds, one file each, its dump beside its restore.

pub mod cork;
pub mod descriptor;
pub mod endpoint;
pub mod errors;
pub mod filter;
pub mod flow_labels;
mod hearers;
pub mod interfaces;
pub mod locks;
pub(crate) mod meanwhile;
pub mod membership;
mod peek;
mod raw_queue;
pub mod receive_queue;
pub mod shutdown;
pub(crate) mod unread;
