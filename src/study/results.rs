//! The folder of results of a study: cells as loose files while they are computed, and packed into one file when they
//! are kept.
//!
//! Processes that share a folder need a file a cell. Whoever keeps the results wants one file a study,
//! `STUDY.cells.jsonl`: each line is a cell's file without its line breaks. Both are read; a loose file counts where
//! there are both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind as IoKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cell::{Cell, CellRecord, picture};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::replace_file;
use crate::parallel::claims::claim;

/// What the names of files of packed cells end in.
const PACKED: &str = ".cells.jsonl";
/// A claim that nobody has touched for so long is of a process that is gone.
pub(super) const STALE: Duration = Duration::from_secs(120);

/// A folder of results.
pub struct Results {
    folder: PathBuf,
    /// By the names that their files had.
    packed: BTreeMap<String, Packed>,
}

/// A cell in a file of many.
struct Packed {
    file: PathBuf,
    line: String,
    record: CellRecord,
}

impl Results {
    /// Reads what is packed in a folder, which need not exist.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line of a file that is damaged, [`ErrorKind::Io`] for one that cannot be read.
    pub fn open(folder: &Path) -> Result<Results> {
        let mut results = Results { folder: folder.to_path_buf(), packed: BTreeMap::new() };
        results.reread()?;
        Ok(results)
    }

    /// Reads again what is packed: another process may have packed since.
    pub(super) fn reread(&mut self) -> Result<()> {
        self.packed.clear();
        for file in files(&self.folder, PACKED)? {
            let text = fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?;
            for (i, line) in text.lines().enumerate() {
                let record = CellRecord::parse(line.as_bytes()).map_err(|why| {
                    Error::new(ErrorKind::Format, format!("line {}: {why}", i + 1))
                        .at(&file)
                        .hint("remove the line: the cell is then made anew")
                })?;
                let packed = Packed { file: file.clone(), line: line.to_string(), record };
                self.packed.insert(packed.record.file(), packed);
            }
        }
        Ok(())
    }

    /// The folder of loose cells and of all pictures.
    pub fn cells(&self) -> PathBuf {
        self.folder.join("cells")
    }

    /// Where a cell lies while it is loose.
    pub(super) fn loose(&self, cell: &Cell) -> PathBuf {
        self.cells().join(cell.file())
    }

    /// True where a cell is there, be it without its picture.
    pub fn has(&self, cell: &Cell) -> bool {
        self.packed.contains_key(&cell.file()) || self.loose(cell).exists()
    }

    /// True where a cell is there with all that belongs to it.
    pub(super) fn is_whole(&self, cell: &Cell) -> bool {
        self.has(cell) && (!cell.attention || picture(&self.loose(cell)).exists())
    }

    /// The record of a cell; `None` where there is none, or its picture is gone.
    ///
    /// # Errors
    /// Those of [`CellRecord::read`].
    pub fn record(&self, cell: &Cell) -> Result<Option<CellRecord>> {
        let path = self.loose(cell);
        if let Some(record) = CellRecord::read(&path)? {
            return Ok(Some(record));
        }
        let packed = self.packed.get(&cell.file()).map(|packed| &packed.record);
        Ok(packed.filter(|record| record.attention.is_none() || picture(&path).exists()).cloned())
    }

    /// Moves loose cells into the file of a study; one that was packed before takes the place of its line. The files
    /// are written before the loose cells are removed, and a process that computes cells looks for packed ones once it
    /// has claimed one. Returns how many cells were moved, and the study's file.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] while another process packs; those of reading and writing.
    pub(super) fn pack(&mut self, study: &str, wanted: impl Fn(&CellRecord) -> bool) -> Result<(usize, PathBuf)> {
        let own = self.folder.join(format!("{study}{PACKED}"));
        if !self.cells().is_dir() {
            return Ok((0, own));
        }
        let Some(_claim) = claim(&self.cells(), "pack", STALE)? else {
            return Err(Error::new(ErrorKind::Usage, "another process packs cells of this folder").at(&self.folder));
        };
        self.reread()?;
        let (mut moved, mut changed) = (Vec::new(), BTreeSet::new());
        for path in files(&self.cells(), ".json")? {
            let Some(record) = CellRecord::read(&path)?.filter(&wanted) else { continue };
            let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, e))?;
            let name = record.file();
            let file = self.packed.get(&name).map_or(&own, |before| &before.file).clone();
            changed.insert(file.clone());
            // A text within JSON holds no line break of its own: what goes is indentation, and every number stays as it
            // was written.
            let line = text.lines().map(str::trim).collect();
            self.packed.insert(name, Packed { file, line, record });
            moved.push(path);
        }
        for file in &changed {
            let lines = self.packed.values().filter(|packed| packed.file == *file);
            replace_file(file, |out| {
                for packed in lines {
                    writeln!(out, "{}", packed.line)?;
                }
                Ok(())
            })?;
        }
        for path in &moved {
            fs::remove_file(path).map_err(|e| Error::io(path, e))?;
        }
        Ok((moved.len(), own))
    }
}

/// Files of a folder whose names end so, in order.
fn files(folder: &Path, end: &str) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == IoKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(folder, e))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cells_of_the_repository_are_read() {
        let results = Results::open(Path::new("docs/studies/results")).unwrap();
        let lines: usize = files(&results.folder, PACKED)
            .unwrap()
            .iter()
            .map(|file| fs::read_to_string(file).unwrap().lines().count())
            .sum();
        // No cell stands in two files.
        assert_eq!((results.packed.len(), lines), (731, 731));
    }
}
