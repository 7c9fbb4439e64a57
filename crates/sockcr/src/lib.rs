//! See, tune, checkpoint and restore any live Linux socket, with no kernel patch.
//!
//! ```text
//! target ──find──▶ descriptor ──dump──▶ Checkpoint ◀──decode── image
//!                                           │ edit, diff, show
//!                  descriptor ◀──restore────┘ ──encode──▶ image
//! ```
//!
//! A program needs no privilege to checkpoint its own sockets: see [`Checkpoint`]. To reach the
//! sockets of other processes, name them by a [`Target`] and [`find`](find::find) them.
#![forbid(unsafe_code)]

pub mod check;
pub mod checkpoint;
pub mod control_group;
pub mod deliver;
pub mod diff;
pub mod error;
pub mod find;
mod hex;
pub mod image;
pub mod json;
pub mod kernel;
pub mod map;
pub mod netns;
pub mod option;
pub mod protocol;
pub mod replace;
pub mod report;
pub mod restore;
pub mod sandbox;
pub mod state;
pub mod stop;
pub mod target;
pub mod tune;

pub use checkpoint::Checkpoint;
pub use error::{Error, ErrorKind};
pub use map::Mapping;
pub use replace::{ReplaceOptions, Replaced, Replacement};
pub use report::{Note, Report};
pub use restore::{RestoreOptions, Restored, restore_all};
pub use target::Target;
