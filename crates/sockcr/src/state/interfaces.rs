//! The names of the device indexes that a checkpoint uses: an index never travels alone.

use crate::option::value::printable;
use crate::report::Report;
use serde_json::Value as Json;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;

/// Device indexes and their names; an empty name is a device that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces(BTreeMap<u32, String>);

impl Interfaces {
    /// Looks the index up in the network namespace of the socket.
    pub(crate) fn learn(&mut self, fd: BorrowedFd<'_>, index: u32, report: &mut Report) {
        if index == 0 || self.0.contains_key(&index) {
            return;
        }
        let name = sockcr_sys::interface::name(fd, index);
        let name = name.and_then(|name| match printable(&name) {
            true => Ok(name),
            false => Err(io::Error::other("has control characters")),
        });
        let name = name.unwrap_or_else(|error| {
            let why = format!("its name: {}", crate::error::reason(&error));
            report.lose(format!("device with index {index}"), why);
            String::new()
        });
        self.0.insert(index, name);
    }

    /// The index, where `fd` lives, of the device that has this index in the checkpoint.
    pub(crate) fn local(&self, fd: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
        if index == 0 {
            return Ok(0);
        }
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("device {index} is gone"));
        let name = self.0.get(&index).filter(|name| !name.is_empty());
        let name = name.ok_or_else(gone)?;
        sockcr_sys::interface::index(fd, name).map_err(|error| missing(name, &error))
    }

    /// The name of a device, if it is known.
    pub fn name(&self, index: u32) -> Option<&str> {
        let name = self.0.get(&index)?;
        (!name.is_empty()).then_some(name.as_str())
    }

    /// All indexes and names.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.0.iter().map(|(index, name)| (*index, name.as_str()))
    }

    /// The index of this name, one not used before if the name is new.
    pub(crate) fn index_of(&mut self, name: &str) -> u32 {
        let known = self.0.iter().find(|(_, have)| *have == name);
        if let Some((index, _)) = known {
            return *index;
        }
        let free = (1..).find(|index| !self.0.contains_key(index)).unwrap_or(0);
        self.0.insert(free, name.into());
        free
    }

    /// Lets `change` change the name of every device that is not gone.
    pub(crate) fn each_name(&mut self, change: impl FnMut(&mut String)) {
        let names = self.0.values_mut().filter(|name| !name.is_empty());
        names.for_each(change);
    }

    /// Forgets the devices whose index is not in `used`.
    pub(crate) fn retain(&mut self, used: &[u32]) {
        self.0.retain(|index, _| used.contains(index));
    }

    /// Numbers the devices from 1 in the order of their names, those that are gone last; answers
    /// the new index of each old one.
    pub(crate) fn renumber(&mut self) -> BTreeMap<u32, u32> {
        let mut order: Vec<(u32, String)> = std::mem::take(&mut self.0).into_iter().collect();
        order.sort_by_key(|(index, name)| (name.is_empty(), name.clone(), *index));
        let mut numbers = BTreeMap::new();
        for ((old, name), new) in order.into_iter().zip(1..) {
            numbers.insert(old, new);
            self.0.insert(new, name);
        }
        numbers
    }

    pub(crate) fn insert(&mut self, index: u32, name: &str) -> bool {
        self.0.insert(index, name.into()).is_none()
    }

    /// For a person: the name, or the number of a device that is gone.
    pub fn show(&self, index: u32) -> String {
        match self.name(index) {
            Some(name) => name.into(),
            None => format!("device {index} (gone)"),
        }
    }

    /// The name, or the number where no name tells it from the others.
    pub(crate) fn to_json(&self, index: u32) -> Json {
        match self.name(index) {
            Some(name) if self.0.values().filter(|have| *have == name).count() == 1 => name.into(),
            _ => index.into(),
        }
    }

    /// The inverse of [`Interfaces::to_json`].
    pub(crate) fn parse_json(&self, json: &Json) -> Option<u32> {
        match json.as_str() {
            Some(name) => {
                let (index, _) = self.0.iter().find(|(_, have)| *have == name)?;
                Some(*index)
            }
            None => u32::try_from(json.as_u64()?).ok(),
        }
    }
}

/// The error for a device that is not here.
pub(crate) fn missing(name: &str, error: &io::Error) -> io::Error {
    let why = format!("device {name}: {}", crate::error::reason(error));
    io::Error::new(io::ErrorKind::NotFound, why)
}
