//! Where sockets go: to a command, into a running process, to the service manager.

mod command;
pub(crate) mod process;
mod service_manager;

pub use command::{command, received};
pub use process::{Move, Moved, Place, move_to, rehearse, to_process};
pub use service_manager::{StoreName, to_service_manager};
