//! Who may do what: one table.

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// To dump a socket in the network namespace of the client, or to have it listed.
    DumpHere,
    /// The same of a raw socket, which hears what is for others too.
    DumpRawHere,
    /// To dump a socket in another network namespace.
    DumpElsewhere,
    /// To restore a socket in which nothing waits. Whatever needs a capability needs the client's: the kernel sees to it.
    RestoreEmpty,
    /// To restore one in which datagrams or errors wait, from whatever address they say.
    RestoreWaiting,
    /// To have the figures of the service.
    Metrics,
}

/// How the client stands to what it asks for: the first that is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has CAP_NET_ADMIN or CAP_CHECKPOINT_RESTORE in the user namespace that owns the network namespace of
    /// the socket; of the service, where its figures are asked for.
    Administrator,
    /// It has CAP_NET_RAW there.
    Sender,
    /// Its user is that of a process that holds the socket, real, effective, saved and of files, in its user namespace
    /// or in one where it may trace; that of the service for the figures.
    Owner,
    /// It holds the socket, and has sent a descriptor of it.
    Bearer,
    /// None of these.
    Stranger,
}

/// What comes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    Allowed,
    /// EPERM.
    Forbidden,
    /// ENOENT, as if it did not exist.
    Unseen,
}

use Verdict::{Allowed, Forbidden, Unseen};

/// The columns of the table.
pub const STANDINGS: [Standing; 5] = [
    Standing::Administrator,
    Standing::Sender,
    Standing::Owner,
    Standing::Bearer,
    Standing::Stranger,
];

/// The table: what is asked for, and the verdict in each column.
pub const TABLE: [(Act, [Verdict; 5]); 6] = [
    (
        Act::DumpHere,
        [Allowed, Forbidden, Allowed, Allowed, Forbidden],
    ),
    (
        Act::DumpRawHere,
        [Allowed, Allowed, Forbidden, Allowed, Forbidden],
    ),
    (
        Act::DumpElsewhere,
        [Allowed, Unseen, Unseen, Unseen, Unseen],
    ),
    (
        Act::RestoreEmpty,
        [Allowed, Allowed, Allowed, Allowed, Allowed],
    ),
    (
        Act::RestoreWaiting,
        [Allowed, Allowed, Forbidden, Forbidden, Forbidden],
    ),
    (
        Act::Metrics,
        [Allowed, Forbidden, Allowed, Forbidden, Forbidden],
    ),
];

/// The verdict.
pub fn judge(act: Act, standing: Standing) -> Verdict {
    let row = TABLE.iter().find(|(of, _)| *of == act);
    let column = STANDINGS.iter().position(|of| *of == standing);
    let cell = row.zip(column).and_then(|((_, row), at)| row.get(at));
    cell.copied().unwrap_or(Unseen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of docs/service.md is this one.
    #[test]
    fn the_document_has_the_table() {
        let document = include_str!("../../../docs/service.md");
        let names = STANDINGS.map(|standing| format!("{standing:?}"));
        let head = format!("| | {} |", names.join(" | "));
        assert!(document.contains(&head), "the document lacks {head}");
        for (act, row) in TABLE {
            let cells = row.map(|verdict| match verdict {
                Allowed => "yes",
                Forbidden => "EPERM",
                Unseen => "ENOENT",
            });
            let line = format!("| {act:?} | {} |", cells.join(" | "));
            assert!(document.contains(&line), "the document lacks {line}");
        }
    }

    #[test]
    fn each_cell_is_the_verdict() {
        let mut seen = 0;
        for (act, row) in TABLE {
            for (standing, verdict) in STANDINGS.into_iter().zip(row) {
                assert_eq!(judge(act, standing), verdict, "{act:?} {standing:?}");
                seen += 1;
            }
        }
        assert_eq!(seen, 30);
    }

    /// Nobody but who administers a namespace is told of what is in another one.
    #[test]
    fn what_is_elsewhere_is_not_there() {
        for standing in STANDINGS {
            let verdict = judge(Act::DumpElsewhere, standing);
            let administers = standing == Standing::Administrator;
            assert_eq!(verdict == Allowed, administers, "{standing:?}");
            assert_ne!(verdict, Forbidden, "EPERM would tell that it exists");
        }
    }
}
