//! A restore that fails leaves nothing open. Alone in its process, because it counts descriptors.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "that is how a test fails"
)]

mod support;

use sockcr::{Checkpoint, restore_all};
use support::place::isolated;
use support::socket;
use support::twin::{HERE, PORT, exactly, with};
use support::{Outcome, reader};

/// The numbers of this process's descriptors.
fn descriptors() -> Vec<String> {
    let entries = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_failed_restore_leaves_nothing_open() -> Outcome {
    isolated(|| {
        // It is opened once and stays.
        let _ = reader();
        let (one, other) = (with((HERE, PORT), &[]), with((HERE, PORT + 1), &[]));
        let checkpoints = [Checkpoint::dump(&one)?, Checkpoint::dump(&other)?];
        drop(one);
        let before = descriptors();
        let refused = restore_all(&checkpoints, &exactly()).unwrap_err();
        assert!(
            refused
                .to_string()
                .contains(&format!("127.0.0.1:{}", PORT + 1)),
            "{refused}"
        );
        assert_eq!(descriptors(), before);
        socket::bound((HERE, PORT))?;
        drop(other);
        assert_eq!(restore_all(&checkpoints, &exactly())?.len(), 2);
        Ok(())
    })
}
