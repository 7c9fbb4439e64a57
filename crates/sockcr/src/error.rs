//! Errors that say what was attempted, on what, why it failed, and what to do.

use std::fmt;
use std::io;

/// What kind of failure it was; the RFC's errno beside each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such socket, process, descriptor or namespace (`ENOENT`).
    NotFound,
    /// The descriptor is no socket (`ENOTSOCK`).
    NotASocket,
    /// A socket of a kind this version does not carry (`ENOSYS`).
    NotSupported,
    /// Not allowed to this user (`EPERM`).
    NotPermitted,
    /// The image, a value or a name is wrong (`EINVAL`).
    BadInput,
    /// What the image holds cannot be restored exactly here (`EOPNOTSUPP`).
    Refused,
    /// A system call failed; its errno is the source.
    System,
}

/// An error of this library: `what: why`, and a next step where there is one.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    why: String,
    help: Option<String>,
    source: Option<io::Error>,
}

impl Error {
    /// A failure of this kind, on `what`, because of `why`.
    pub fn new(kind: ErrorKind, what: impl fmt::Display, why: impl fmt::Display) -> Error {
        Error {
            kind,
            what: what.to_string(),
            why: why.to_string(),
            help: None,
            source: None,
        }
    }

    /// A failed system call, on `what`.
    pub fn system(what: impl fmt::Display, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::PermissionDenied => ErrorKind::NotPermitted,
            _ => ErrorKind::System,
        };
        let mut error = Error::new(kind, what, reason(&source));
        if rustix::io::Errno::from_io_error(&source) == Some(rustix::io::Errno::MFILE) {
            error = error.help("each socket takes some descriptors: `ulimit -n` raises the limit");
        }
        error.source = Some(source);
        error
    }

    /// Adds the next step.
    #[must_use]
    pub fn help(mut self, help: impl fmt::Display) -> Error {
        self.help = Some(help.to_string());
        self
    }

    /// Names the error that it comes from.
    #[must_use]
    pub fn because(mut self, source: io::Error) -> Error {
        self.source = Some(source);
        self
    }

    /// What kind of failure it was.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The next step, if there is one.
    pub fn next_step(&self) -> Option<&str> {
        self.help.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

impl From<sockcr_image::Error> for Error {
    fn from(error: sockcr_image::Error) -> Error {
        let why = error.to_string();
        let why = why.strip_prefix("image ").unwrap_or(&why);
        Error::new(ErrorKind::BadInput, "image", why)
    }
}

/// The text of an error without the "(os error 13)" that std appends.
pub(crate) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => {
            let mut letters = reason.chars();
            let first = letters.next().map(|c| c.to_ascii_lowercase());
            first.into_iter().chain(letters).collect()
        }
        None => text,
    }
}
