//! What `tune` and `eval` learn from and judge by: labelled pictures, or arrays for the inputs of a model, in rows.

use std::path::Path;

use super::source::opened_on;
use super::{named, opened};
use crate::cli::common::{ArrayFlags, DataFlags, OpenFlags, RuntimeFlags, TrainingFlags, TransformFlags};
use crate::cli::output;
use crate::data::{Arrays, ArraysReport, Rows};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;
use crate::training::of_rows;

/// A model, and what it is fed with.
pub struct Opened {
    /// The model; one of rows where it is fed with arrays.
    pub model: Model,
    /// The warning about the batch that its file declares, where there is one.
    pub batch: Option<String>,
    /// The arrays, where it is fed with some.
    pub arrays: Option<Laid>,
}

/// Arrays that are laid into rows.
pub struct Laid {
    /// How they lie.
    pub rows: Rows,
    /// The arrays.
    pub arrays: Arrays,
    /// What is said of them.
    pub report: ArraysReport,
    /// The model that takes them by name.
    pub original: Model,
}

/// Opens a model that is to learn from data or to be judged by them; says what arrays are.
///
/// # Errors
/// Those of opening, and of [`of_rows`].
pub fn open_for_data(
    path: &Path,
    open: &OpenFlags,
    data: &DataFlags,
    runtime: &RuntimeFlags,
    transform: &TransformFlags,
) -> Result<Opened> {
    let Some(inputs) = &data.inputs else {
        let (model, batch) = opened(path, open, Some(runtime), Some(transform))?;
        return Ok(Opened { model, batch, arrays: None });
    };
    let found = opened_on(path, open, runtime, transform, &ArrayFlags::of(inputs))?;
    let (original, arrays) = (found.model, found.arrays);
    let Some(arrays) = arrays else { bail!(Internal, "the arrays were not read") };
    let report = arrays.report(&original);
    report.lines().iter().for_each(|line| output::note(line));
    let rows = Rows::of(&arrays);
    let model = named(path, of_rows(&original, &rows))?;
    Ok(Opened { model, batch: found.batch, arrays: Some(Laid { rows, arrays, report, original }) })
}

/// Opens a teacher that is fed with the same arrays.
///
/// # Errors
/// Those of [`open_for_data`].
pub fn open_teacher(
    path: &Path,
    open: &OpenFlags,
    runtime: &RuntimeFlags,
    inputs: &Path,
    rows: &Rows,
) -> Result<Model> {
    let found = opened_on(path, open, runtime, &TransformFlags::default(), &ArrayFlags::of(inputs))?;
    named(path, of_rows(&found.model, rows))
}

/// Checks that nothing is asked for that pictures alone can be given.
///
/// # Errors
/// [`ErrorKind::Usage`]; it names the flag.
pub fn check_views(data: &DataFlags, training: &TrainingFlags) -> Result<()> {
    let Some(inputs) = &data.inputs else { return Ok(()) };
    let given = [
        ("--augment", training.augment.as_ref().is_some_and(|a| !a.is_none())),
        ("--mixup", training.mixup > 0.0),
        ("--cutmix", training.cutmix > 0.0),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            Err(Error::new(ErrorKind::Usage, format!("{flag} is for pictures: arrays are taken as they are"))
                .at(inputs)
                .hint(format!("leave {flag} out")))
        }
        None => Ok(()),
    }
}
