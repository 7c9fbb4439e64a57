//! What goes to the terminal: colours there alone, tables, errors, files.

use anstyle::{AnsiColor, Style};
use anyhow::Context;
use serde_json::Value as Json;
use sockcr::Error;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::Path;

/// For what stands out.
pub const STRONG: Style = Style::new().bold();
/// For what is there to be complete.
pub const FAINT: Style = Style::new().dimmed();
/// For what changed.
pub const CHANGED: Style = AnsiColor::Cyan.on_default().bold();
/// For what is lost.
pub const WARNING: Style = AnsiColor::Yellow.on_default();
/// For what works.
pub const GOOD: Style = AnsiColor::Green.on_default();

/// `text` in a style; the colours are taken out where there is no terminal.
pub fn styled(style: Style, text: impl std::fmt::Display) -> String {
    format!("{style}{text}{style:#}")
}

/// Prints a line to standard output.
pub fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(anstream::stdout(), "{text}")?)
}

/// Prints a line to standard error.
pub fn remark(text: impl std::fmt::Display) {
    // Standard error is the last resort: when it is closed there is nobody to tell.
    let _ = writeln!(anstream::stderr(), "sockcr: {text}");
}

/// Prints JSON.
pub fn json(value: &Json) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints an error as `sockcr: what: why`, and its next step.
pub fn complain(error: &anyhow::Error) {
    let ours = |cause: &(dyn std::error::Error + 'static)| cause.is::<sockcr::Error>();
    // An error of the library says its source itself.
    let causes = error.chain().count();
    let shown = error.chain().position(ours).map_or(causes, |at| at + 1);
    let words: Vec<String> = error.chain().take(shown).map(|c| c.to_string()).collect();
    remark(words.join(": "));
    let help = error.chain().find_map(|cause| {
        let error: &sockcr::Error = cause.downcast_ref()?;
        error.next_step()
    });
    if let Some(help) = help {
        let _ = writeln!(anstream::stderr(), "help: {help}");
    }
}

/// Whether the reader of our output has gone, as `head` does.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    if error.chain().any(|cause| cause.is::<sockcr::Error>()) {
        return false;
    }
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Lines up columns; widths count characters.
pub fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths);
        let line: String = cells
            .map(|(cell, width)| format!("{cell:width$}  "))
            .collect();
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Writes a file whole or not at all; `-` is standard output.
pub fn write(path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    if path == "-" {
        let mut stdout = io::stdout().lock();
        if stdout.is_terminal() && sockcr::image::looks_like_image(bytes) {
            anyhow::bail!("-: an image is not for a terminal: use -o FILE, or a pipe");
        }
        stdout.write_all(bytes)?;
        return Ok(stdout.flush()?);
    }
    // A link keeps its place: what it names is written.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let name = target
        .file_name()
        .with_context(|| format!("{path}: is no file name"))?;
    let have = std::fs::metadata(&target);
    if have.as_ref().is_ok_and(|have| !have.is_file()) {
        // A pipe or a device keeps its place.
        return std::fs::write(&target, bytes).map_err(|e| Error::system(path, e).into());
    }
    let mut unfinished = name.to_owned();
    unfinished.push(format!(".{}.part", std::process::id()));
    let unfinished = target.with_file_name(unfinished);
    let written = create(&unfinished)
        .and_then(|mut file| {
            if let Ok(have) = &have {
                file.set_permissions(have.permissions())?;
            }
            file.write_all(bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&unfinished, &target));
    if written.is_err() {
        let _ = std::fs::remove_file(&unfinished);
    }
    written.map_err(|error| Error::system(format!("write {path}"), error).into())
}

/// An image tells what a process does: for its owner's eyes only.
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    options.open(path)
}
