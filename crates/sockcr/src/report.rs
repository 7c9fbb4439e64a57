//! What was carried exactly, what not, and why.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// One thing, and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// The thing, in the field's terms: `receive queue`, `SO_MARK`.
    pub what: String,
    /// Why it is told.
    pub reason: String,
}

impl Note {
    /// A note.
    pub fn new(what: impl Into<String>, reason: impl Into<String>) -> Note {
        let (what, reason) = (what.into(), reason.into());
        Note { what, reason }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

/// What a dump or a restore has to say about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What the socket had and the result has not.
    pub not_carried: Vec<Note>,
    /// What could not be seen and was taken to be as most sockets have it.
    pub assumed: Vec<Note>,
}

impl Report {
    /// Whether nothing was lost.
    pub fn is_exact(&self) -> bool {
        self.not_carried.is_empty()
    }

    /// Whether the loss of this property is told already, as a step that failed.
    pub(crate) fn tells_of(&self, property: &str) -> bool {
        let (step, group) = match property.rsplit_once(' ') {
            Some(("membership", _)) => ("join", true),
            Some(("flow label", _)) => ("flow label", true),
            _ => (property, false),
        };
        let tells = |note: &Note| match note.what.strip_prefix(step) {
            Some(rest) => group || rest.is_empty() || rest.starts_with(' '),
            None => false,
        };
        self.not_carried.iter().any(tells)
    }

    /// What could be read; what could not is told.
    pub(crate) fn known<T>(&mut self, what: &str, read: io::Result<T>) -> Option<T> {
        read.map_err(|error| self.lose(what, crate::error::reason(&error)))
            .ok()
    }

    pub(crate) fn lose(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        self.not_carried.push(Note::new(what, reason));
    }

    pub(crate) fn assume(&mut self, what: impl Into<String>, reason: impl Into<String>) {
        self.assumed.push(Note::new(what, reason));
    }
}
