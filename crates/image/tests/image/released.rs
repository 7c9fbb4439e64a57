//! A released number stays what it is.
//!
//! `released.txt` grows and never changes: what is in it may be in somebody's image.

use sockcr_image::number::{self, INFORMATIONAL, Level, OPTIONS};
use std::collections::{BTreeMap, BTreeSet};

const RELEASED: &str = include_str!("released.txt");

/// Every name and number of this program: attributes, and the first option of each level.
fn present() -> Vec<(String, u16)> {
    let attributes = number::ALL
        .iter()
        .map(|(name, number)| (name.to_string(), *number));
    let levels = Level::ALL
        .into_iter()
        .map(|level| (format!("option:{level:?}"), level.base()));
    attributes.chain(levels).collect()
}

fn released() -> Vec<(String, u16)> {
    let lines = RELEASED.lines().filter(|line| !line.starts_with('#'));
    let fields = lines.map(|line| line.split_once(' ').expect("a name and a number"));
    fields
        .map(|(name, number)| (name.into(), number.parse().unwrap()))
        .collect()
}

#[test]
fn no_released_number_has_changed() {
    let present: BTreeMap<String, u16> = present().into_iter().collect();
    let released = released();
    assert!(
        released.len() >= 68,
        "the list has shrunk to {}",
        released.len()
    );
    for (name, number) in released {
        assert_eq!(
            present.get(&name),
            Some(&number),
            "{name} was released as {number}"
        );
    }
}

#[test]
fn every_number_is_in_the_list_of_released_ones() {
    let released = released();
    for entry in present() {
        let line = format!("{} {}", entry.0, entry.1);
        assert!(released.contains(&entry), "add to released.txt: {line}");
    }
}

#[test]
fn no_name_and_no_number_is_there_twice() {
    for list in [present(), released()] {
        let names: BTreeSet<&str> = list.iter().map(|(name, _)| &name[..]).collect();
        let numbers: BTreeSet<u16> = list.iter().map(|(_, number)| *number).collect();
        assert_eq!((names.len(), numbers.len()), (list.len(), list.len()));
    }
}

#[test]
fn attributes_and_options_do_not_meet() {
    for (name, number) in number::ALL {
        assert_eq!(number::as_option(*number), None, "{name}");
        assert_eq!(number::name(*number), Some(*name));
        let ranges = [1..=44, 64..=0xff, INFORMATIONAL + 1..=0x3fff];
        assert!(
            ranges.iter().any(|range| range.contains(number)),
            "{name} is {number}"
        );
    }
    let last = Level::ALL
        .iter()
        .map(|level| level.base() + OPTIONS - 1)
        .max();
    assert!(last < Some(INFORMATIONAL));
}

#[test]
fn the_attributes_of_2007_are_complete() {
    let first: Vec<u16> = number::ALL
        .iter()
        .take(44)
        .map(|(_, number)| *number)
        .collect();
    assert_eq!(first, (1..=44).collect::<Vec<u16>>());
}
