//! A study: what its grid combines, checked before anything is computed.

use super::cell::{Cell, CellRecord, picture};
use super::file::{File, Grid, SAMPLES, Training};
use super::materials::CellSamples;
use super::results::{Results, STALE};
use super::workshop::CellRunner;
use crate::density::{Densities, Unit};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::replace_file;
use crate::parallel::claims::{Claim, claim};
use crate::runtime::Runtime;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A study whose every cell was checked.
pub struct Study {
    /// What it is called.
    pub title: String,
    /// What a reader should know.
    pub note: String,
    /// The method whose last accuracy others are timed to.
    pub reference: Option<String>,
    /// Its cells, the first seeds first, each once.
    pub cells: Vec<Cell>,
    /// What every model is fed with, by the ancestor's name or the file.
    pub inputs: BTreeMap<String, CellSamples>,
    /// What the user should know of the models.
    pub warnings: Vec<String>,
    workshop: CellRunner,
}

/// Images that `--quick` trains on, validates on, and clusters on.
const QUICK: [usize; 3] = [128, 64, 32];

impl Study {
    /// Reads a study, opens everything that it names, and checks every cell before any is computed. `quick` makes a
    /// smoke run of it: one seed, one epoch, few images.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] with the line for a file that is no study; [`ErrorKind::Usage`] with the key for a name
    /// that is not defined, a method that is not known and a shape that cannot be; and those of opening models and
    /// data.
    pub fn open(path: &Path, quick: bool, runtime: Arc<Runtime>) -> Result<Study> {
        let file = File::read(path)?;
        let mut workshop = CellRunner::new(runtime);
        let cells = cells(&file, path, quick, Some(&mut workshop))?;
        let mut checked: Vec<(&str, &str, &str, &str)> = Vec::new();
        for cell in &cells {
            let what = (cell.ancestor.as_str(), cell.data.as_str(), cell.method.as_str(), cell.shape.as_str());
            if !checked.contains(&what) {
                let place = format!("method `{}` with shape `{}` on data `{}`", cell.method, cell.shape, cell.data);
                workshop.check(cell).map_err(|e| in_key(e, path, &place))?;
                checked.push(what);
            }
        }
        Ok(Study {
            title: file.title.unwrap_or_else(|| stem(path)),
            note: file.note.unwrap_or_default(),
            reference: file.reference,
            cells,
            inputs: std::mem::take(&mut workshop.materials.inputs),
            warnings: std::mem::take(&mut workshop.materials.warnings),
            workshop,
        })
    }

    /// The next cell that a folder does not have (with its picture, where one is drawn), that did not fail before, and
    /// that no other process claims that works on the folder: the one place that decides who computes what. The cell is
    /// this process's while the claim is held.
    ///
    /// # Errors
    /// Those of [`claim`], and of [`Results::open`].
    pub fn next(&self, results: &mut Results, failed: &[String]) -> Result<Option<(&Cell, Claim)>> {
        for cell in &self.cells {
            let file = cell.file();
            if results.is_whole(cell) || failed.contains(&file) {
                continue;
            }
            let Some(claim) = claim(&results.cells(), &file, STALE)? else { continue };
            // Another process may have finished or packed it before the claim was made.
            results.reread()?;
            if !results.is_whole(cell) {
                return Ok(Some((cell, claim)));
            }
        }
        Ok(None)
    }

    /// Computes a cell and writes its file at once or not at all.
    ///
    /// # Errors
    /// Those of [`CellRunner::compute`], and of writing.
    pub fn compute(&mut self, cell: &Cell, results: &Results, told: &dyn Fn(&str)) -> Result<CellRecord> {
        let path = results.loose(cell);
        let record = self.workshop.compute(cell, &picture(&path), told).map_err(|e| e.at(&path))?;
        let text = serde_json::to_string_pretty(&record).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        replace_file(&path, |out| std::io::Write::write_all(out, format!("{text}\n").as_bytes()))?;
        Ok(record)
    }

    /// The cells that a folder has, in the order of the study.
    ///
    /// # Errors
    /// Those of [`CellRecord::read`].
    pub fn records(&self, results: &Results) -> Result<Vec<(&Cell, Option<CellRecord>)>> {
        self.cells.iter().map(|c| Ok((c, results.record(c)?))).collect()
    }

    /// The densities of the heads of every ancestor, as in figure 1c of the paper, and what they are measured in.
    ///
    /// # Errors
    /// Those of measuring them.
    pub fn densities(&self) -> Result<BTreeMap<String, (Densities, Unit)>> {
        let mut found = BTreeMap::new();
        for cell in &self.cells {
            if !found.contains_key(&cell.ancestor) {
                let densities = self.workshop.densities(&cell.ancestor, cell.calibration.0)?;
                found.insert(cell.ancestor.clone(), densities);
            }
        }
        Ok(found)
    }
}

/// Moves the cells of a study that lie loose in a folder of results into one file there, without opening what the study
/// names. Returns how many there were, and the file.
///
/// # Errors
/// Those of [`Study::open`] that reading the file has; [`ErrorKind::Usage`] while another process packs; those of
/// reading and writing.
pub fn pack(path: &Path, quick: bool, folder: &Path) -> Result<(usize, PathBuf)> {
    let cells = cells(&File::read(path)?, path, quick, None)?;
    Results::open(folder)?.pack(&stem(path), |record| cells.iter().any(|cell| cell.is_of(record)))
}

/// The name of a study's file, without its end.
fn stem(path: &Path) -> String {
    path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The cells of a study, the first seeds first, each once. Without a workshop nothing is opened, and they know no
/// sources.
fn cells(file: &File, path: &Path, quick: bool, mut workshop: Option<&mut CellRunner>) -> Result<Vec<Cell>> {
    if file.grid.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "the study has no [[grid]], so there is nothing to compute")
            .at(path)
            .hint("a grid lists ancestors, methods, shapes and data"));
    }
    let mut cells: Vec<Cell> = Vec::new();
    for (g, grid) in file.grid.iter().enumerate() {
        let here = |e: Error| in_key(e, path, &format!("grid {}", g + 1));
        grid_is_sound(grid).map_err(here)?;
        for cell in combinations(file, grid, quick, workshop.as_deref_mut()).map_err(here)? {
            let name = cell.file();
            if cells.iter().all(|c| c.file() != name) {
                cells.push(cell);
            }
        }
    }
    cells.sort_by_key(|c| c.seed);
    Ok(cells)
}

/// An error that says which part of the study it is about.
fn in_key(e: Error, path: &Path, place: &str) -> Error {
    let hint = e.marked_hint().unwrap_or("docs/studies/README.md lists the keys").to_string();
    Error::new(e.kind(), format!("{place}: {}", e.marked())).at(path).hint(hint)
}

/// How cells of arrays and texts are trained, of which there are no random views.
fn as_they_are(training: &Training) -> Result<Training> {
    let none = || "none".to_string();
    match training.augment == Training::default().augment || training.augment == none() {
        true => Ok(Training { augment: none(), ..training.clone() }),
        false => {
            let what =
                format!("`augment = \"{}\"` is for images: arrays and texts are taken as they are", training.augment);
            Err(Error::new(ErrorKind::Usage, what).hint("leave it out, or give images a study of their own"))
        }
    }
}

fn grid_is_sound(grid: &Grid) -> Result<()> {
    let lists = [
        ("ancestors", grid.ancestors.is_empty()),
        ("methods", grid.methods.is_empty()),
        ("shapes", grid.shapes.is_empty()),
        ("data", grid.data.is_empty()),
        ("fractions", grid.fractions.is_empty()),
        ("seeds", grid.seeds.is_empty()),
    ];
    if let Some((key, _)) = lists.iter().find(|l| l.1) {
        bail!(Usage, "`{key}` is empty");
    }
    match grid.fractions.iter().find(|f| !(**f > 0.0 && **f <= 1.0)) {
        Some(f) => bail!(Usage, "`fractions`: {f} is no share above 0 and up to 1"),
        None => Ok(()),
    }
}

fn named<'a, T>(table: &'a BTreeMap<String, T>, kind: &str, name: &str) -> Result<&'a T> {
    let known = || table.keys().cloned().collect::<Vec<_>>().join(", ");
    table.get(name).ok_or_else(|| {
        Error::new(ErrorKind::Usage, format!("there is no [{kind}.{name}]")).hint(format!("there are {}", known()))
    })
}

/// The cells of one grid.
fn combinations(file: &File, grid: &Grid, quick: bool, mut workshop: Option<&mut CellRunner>) -> Result<Vec<Cell>> {
    let mut training = file.training.clone().unwrap_or_default();
    training.epochs = grid.epochs.unwrap_or(training.epochs);
    training.lr = grid.lr.unwrap_or(training.lr);
    if quick {
        training.epochs = 1;
    }
    let sound = training.epochs > 0 && training.batch_size > 0 && training.lr.is_finite() && training.lr > 0.0;
    if !sound || !(0.0..1.0).contains(&training.label_smoothing) || training.warmup.is_nan() {
        bail!(Usage, "`training`: epochs, batch-size and lr are above 0, label-smoothing is below 1");
    }
    let keep = |n: usize| if quick { n.min(1) } else { n };
    let mut cells = Vec::new();
    for ancestor in &grid.ancestors {
        let entry = named(&file.ancestor, "ancestor", ancestor)?;
        if let Some(workshop) = &mut workshop {
            workshop.materials.ancestor(ancestor, entry)?;
        }
        let calibration = entry.limit.unwrap_or(SAMPLES);
        let calibration = if quick { calibration.min(QUICK[2]) } else { calibration };
        for data in &grid.data {
            let set = named(&file.data, "data", data)?;
            if let Some(workshop) = &mut workshop {
                workshop.materials.data(ancestor, data, set)?;
            }
            let training = if set.is_given() { as_they_are(&training)? } else { training.clone() };
            let most = |n: Option<usize>, q: usize| if quick { Some(n.unwrap_or(q).min(q)) } else { n };
            let images = [most(set.train, QUICK[0]), most(set.validate, QUICK[1])];
            for shape in &grid.shapes {
                let of_shape = named(&file.shape, "shape", shape)?;
                for method in &grid.methods {
                    let how = named(&file.method, "method", method)?;
                    let sources = match &mut workshop {
                        Some(workshop) => workshop.materials.sources(ancestor, data, how)?,
                        None => Vec::new(),
                    };
                    for &fraction in &grid.fractions[..grid.fractions.len().min(keep(usize::MAX))] {
                        for &seed in &grid.seeds[..grid.seeds.len().min(keep(usize::MAX))] {
                            cells.push(Cell {
                                ancestor: ancestor.clone(),
                                data: data.clone(),
                                method: method.clone(),
                                shape: shape.clone(),
                                fraction,
                                seed,
                                training: training.clone(),
                                how: how.clone(),
                                size: of_shape.with(&how.shape),
                                attention: grid.attention,
                                sources: sources.clone(),
                                images,
                                calibration: (calibration, entry.image_size),
                            });
                        }
                    }
                }
            }
        }
    }
    Ok(cells)
}
