//! Files of /proc, read without any allocation: for the child processes of this crate, which may
//! not allocate after fork.

use rustix::fs::{Mode, OFlags, open};
use std::ffi::CStr;
use std::fmt::{self, Write};
use std::io;

/// A path of its own memory.
#[derive(Debug)]
pub(crate) struct Path {
    bytes: [u8; 64],
    length: usize,
}

impl Path {
    /// What is too long becomes no path at all: an empty one.
    pub fn new(text: fmt::Arguments<'_>) -> Path {
        let mut path = Path {
            bytes: [0; 64],
            length: 0,
        };
        if path.write_fmt(text).is_err() {
            path.bytes = [0; 64];
        }
        path
    }

    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

impl Write for Path {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.length + text.len();
        // The last byte ends it.
        let last = self.bytes.len() - 1;
        let room = self.bytes[..last].get_mut(self.length..end);
        room.ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// The beginning of a file, as much as there is room for.
pub(crate) fn read<'a>(path: &CStr, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut length = 0;
    while length < buffer.len() {
        match rustix::io::read(&file, &mut buffer[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(&buffer[..length])
}

/// The fields of /proc/TID/stat, from the third on: the state.
pub(crate) fn stat(tid: i32, buffer: &mut [u8; 1024]) -> Option<impl Iterator<Item = &str>> {
    let path = Path::new(format_args!("/proc/{tid}/stat"));
    let text = read(path.as_c_str(), buffer).ok()?;
    // The name before them, in brackets, can hold anything.
    let name = text.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(text.get(name + 1..)?).ok()?;
    Some(rest.split_ascii_whitespace())
}

/// The number that stands behind a name in a file of lines such as /proc/PID/status.
pub(crate) fn number_after(text: &[u8], name: &str) -> Option<i32> {
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(name.as_bytes()))?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

/// A name of a directory that is a number.
pub(crate) fn number(name: &CStr) -> Option<i32> {
    name.to_str().ok()?.parse().ok()
}
