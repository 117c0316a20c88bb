//! What users see: errors with hints, warnings, progress on stderr; data on stdout.
//!
//! Of several processes that work together the first one speaks and writes; errors are the exception.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anstream::{AutoStream, eprintln};
use clap::builder::styling::{AnsiColor, Style};
use comfy_table::{Cell, CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, ErrorKind, Result};
use crate::graph;
use crate::onnx::Model;
use crate::options;
use crate::parallel;
use crate::progress::Listener;

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default().bold();
const CYAN: Style = AnsiColor::Cyan.on_default().bold();

/// How long other processes than the first wait before they tell an error: where it is the first one's too, that has
/// ended them by then.
const PATIENCE: Duration = Duration::from_millis(500);

/// What the library says, with its options as flags. Whatever is printed or written below goes through here.
fn flags(text: &str) -> Cow<'_, str> {
    options::written(text, |option| format!("--{option}"))
}

/// Prints an error and its hint, in one write: pieces would be mixed with those of other processes that fail at the
/// same moment.
pub fn error(e: &Error) {
    let (rank, size) = (parallel::rank(), parallel::size());
    let who = if size == 1 { String::new() } else { format!("rank {rank} of {size}: ") };
    let mut text = format!("{RED}error{RED:#}: {who}{}\n", flags(&e.marked()));
    if let Some(hint) = e.marked_hint() {
        text += &format!("\n{CYAN}hint{CYAN:#}: {}\n", flags(hint));
    }
    if rank > 0 {
        std::thread::sleep(PATIENCE);
    }
    let mut styled = AutoStream::new(Vec::new(), AutoStream::choice(&io::stderr()));
    let _ = styled.write_all(text.as_bytes());
    let _ = io::stderr().write_all(&styled.into_inner());
}

/// Prints a warning.
pub fn warn(text: &str) {
    if parallel::is_first() {
        eprintln!("{YELLOW}warning{YELLOW:#}: {}", flags(text));
    }
}

/// Prints a line of progress or result for a person.
pub fn note(text: &str) {
    if parallel::is_first() {
        eprintln!("{}", flags(text));
    }
}

/// Writes data to stdout.
pub fn print(text: &str) -> Result<()> {
    if !parallel::is_first() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    out.write_all(flags(text).as_bytes()).and_then(|()| out.flush()).map_err(|e| Error::io("stdout", e))
}

/// Writes a JSON value and a line end to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    print(&format!("{text}\n"))
}

/// True where whoever read stdout went away, which is no error.
pub fn is_broken_pipe(e: &Error) -> bool {
    std::error::Error::source(e)
        .and_then(|s| s.downcast_ref::<io::Error>())
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// A table without borders; numbers stand to the right.
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.iter().map(Cell::new));
    for row in rows {
        table.add_row(row.into_iter().map(|c| {
            let number = c.chars().next().is_some_and(|f| f.is_ascii_digit() || f == '-')
                && c.chars().all(|c| c.is_ascii_digit() || ".-+e".contains(c));
            Cell::new(c).set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
        }));
    }
    let text = table.to_string();
    text.lines().map(|l| format!("{}\n", l.trim_end())).collect()
}

/// A progress bar on stderr, where that is a terminal.
pub fn progress(total: usize, what: &str) -> ProgressBar {
    let shown = io::stderr().is_terminal() && parallel::is_first();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(total as u64), target).with_style(style).with_message(what.to_string())
}

/// One progress bar after the other.
#[derive(Default)]
pub struct Bars(Mutex<Option<(&'static str, ProgressBar)>>);

impl Bars {
    /// Shows that `done` of `of` parts of a stage are done.
    pub fn tell(&self, stage: &'static str, done: usize, of: usize) {
        let Ok(mut bar) = self.0.lock() else { return };
        if bar.as_ref().is_none_or(|b| b.0 != stage) {
            if let Some((_, old)) = bar.take() {
                old.finish_and_clear();
            }
            *bar = Some((stage, progress(of, stage)));
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_position(bar.position().max(done as u64));
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Ok(mut bar) = self.0.lock()
            && let Some((_, old)) = bar.take()
        {
            old.finish_and_clear();
        }
    }
}

impl Listener for Bars {
    fn note(&self, text: &str) {
        note(text);
    }

    fn warn(&self, text: &str) {
        warn(text);
    }

    fn progress(&self, stage: &'static str, done: usize, of: usize) {
        self.tell(stage, done, of);
    }

    fn over(&self) {
        self.clear();
    }
}

/// 21.6 M, 4.61 G: three digits and a unit.
pub fn count(n: u64) -> String {
    let n = n as f64;
    for (unit, scale) in [("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if n >= scale {
            let v = n / scale;
            let digits = if v >= 100.0 {
                0
            } else if v >= 10.0 {
                1
            } else {
                2
            };
            return format!("{v:.digits$} {unit}");
        }
    }
    format!("{n}")
}

/// Checks an output before any work is done: it must not be an input, must not exist without `--force`, and its folder
/// must take new files.
pub fn check_output(path: &Path, inputs: &[&Path], force: bool) -> Result<()> {
    if !parallel::is_first() {
        return Ok(());
    }
    let real = |p: &Path| p.canonicalize().ok();
    for input in inputs {
        if path == *input || (path.exists() && real(path) == real(input)) {
            return Err(Error::new(ErrorKind::Usage, "the output is the input").at(path).hint("write to another file"));
        }
    }
    if path.is_dir() {
        return Err(Error::new(ErrorKind::Usage, "the output is a folder").at(path).hint("name a file in it"));
    }
    if path.exists() && !path.is_file() {
        return Err(Error::new(ErrorKind::Usage, "the output is no regular file")
            .at(path)
            .hint("name a file; --dry-run writes nothing"));
    }
    if path.exists() && !force {
        return Err(Error::new(ErrorKind::Usage, "the output exists already")
            .at(path)
            .hint("pass --force to overwrite it"));
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.file_name().is_none() {
        return Err(Error::new(ErrorKind::Usage, "the output path has no file name").at(path).hint("name a file"));
    }
    tempfile::Builder::new().prefix(".offshoot-").tempfile_in(folder).map_err(|e| {
        // Without the name of the temporary file.
        let why = io::Error::from(e.kind());
        Error::new(ErrorKind::Io, format!("the output cannot be written: {why}"))
            .at(path)
            .hint("check that the folder exists and is writable")
    })?;
    Ok(())
}

/// Two outputs of one command must not be the same file.
pub fn check_distinct(paths: &[PathBuf]) -> Result<()> {
    for (i, p) in paths.iter().enumerate() {
        if paths[..i].contains(p) {
            return Err(Error::new(ErrorKind::Usage, "two outputs have the same path").at(p).hint("give each its own"));
        }
    }
    Ok(())
}

/// A progress bar for training, whose message says how it goes.
pub fn training_bar() -> ProgressBar {
    let bar = progress(0, "");
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {msg} {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar
}

/// Writes a text file at once or not at all.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    if parallel::is_first() {
        crate::onnx::replace_file(path, |out| out.write_all(flags(text).as_bytes()))?;
    }
    Ok(())
}

/// Writes a model at once or not at all, with the inputs that it was opened with. Returns its bytes.
pub fn write_model(path: &Path, model: &Model) -> Result<u64> {
    write_accepted(path, model, &|_| Ok(()))
}

/// Writes a model as [`write_model`] does, where `accept` takes its file.
pub fn write_accepted(path: &Path, model: &Model, accept: &dyn Fn(&Path) -> Result<()>) -> Result<u64> {
    if !parallel::is_first() {
        return Ok(0);
    }
    let mut model = model.clone();
    graph::remove_batch_axis(&mut model);
    graph::take_feeds_back(&mut model);
    model.write_accepted(path, accept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;
    use std::collections::BTreeSet;
    use std::fs;

    fn flags_of(command: &clap::Command, found: &mut BTreeSet<String>) {
        found.extend(command.get_arguments().filter_map(|flag| flag.get_long()).map(str::to_owned));
        command.get_subcommands().for_each(|command| flags_of(command, found));
    }

    fn options_below(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                options_below(&path, found);
            } else if !path.ends_with("options.rs") {
                found.extend(options::options_in(&fs::read_to_string(path).unwrap()).map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_option_that_the_library_names_is_a_flag() {
        let (mut known, mut named) = (BTreeSet::new(), BTreeSet::new());
        flags_of(&Cli::command(), &mut known);
        options_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut named);
        assert!(named.len() > 50, "{named:?}");
        let unknown: Vec<&String> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "no command has these flags: {unknown:?}");
    }

    #[test]
    fn options_are_written_as_flags() {
        assert_eq!(flags("leave ⟦image-size⟧ out"), "leave --image-size out");
    }
}
