//! What `tune` and `eval` learn from and judge by: labelled pictures, or arrays for the inputs of a model, in rows.
//! Texts become such arrays.

use std::path::Path;

use super::source::opened_on;
use super::{named, opened};
use crate::cli::common::{DataFlags, OpenFlags, RuntimeFlags, SampleFiles, TrainingFlags, TransformFlags};
use crate::cli::output;
use crate::data::{Arrays, ArraysReport, Rows, Texts};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::CLASSES;
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
    /// Others, all of which validate.
    pub other: Option<Arrays>,
    /// What is said of them.
    pub report: ArraysReport,
    /// The model that takes them by name.
    pub original: Model,
}

impl Laid {
    /// The same texts with as many tokens each, padding included, where they have fewer.
    ///
    /// # Errors
    /// Those of [`Arrays::padded`].
    pub fn padded(&self, tokens: usize) -> Result<Laid> {
        let (arrays, other) = as_long(self.arrays.clone(), self.other.clone(), tokens)?;
        let (report, original) = (self.report.clone(), self.original.clone());
        Ok(Laid { rows: Rows::of(&arrays), arrays, other, report, original })
    }
}

/// What a model is to learn from or to be judged by.
#[derive(Clone, Copy)]
pub struct Wanted<'c> {
    /// The data.
    pub data: &'c DataFlags,
    /// Others to validate on.
    pub val: Option<&'c Path>,
    /// True where labels, wrong ones too, are left aside.
    pub ignore_labels: bool,
    /// How many samples are used of each, where these are the first ones.
    pub first: Option<usize>,
}

/// Opens a model that is to learn from data or to be judged by them; says what arrays are.
///
/// # Errors
/// Those of opening, and of [`of_rows`].
pub fn open_for_data(
    path: &Path,
    open: &OpenFlags,
    wanted: Wanted,
    runtime: &RuntimeFlags,
    transform: &TransformFlags,
) -> Result<Opened> {
    let Wanted { data, val, ignore_labels, first } = wanted;
    let Some(given) = data.given(data.path(), ignore_labels) else {
        let (model, batch) = opened(path, open, Some(runtime), Some(transform))?;
        return Ok(Opened { model, batch, arrays: None });
    };
    let arrays_of = |given: SampleFiles| {
        let given = match given {
            SampleFiles::Texts(texts) => SampleFiles::Texts(Texts { first, ..texts }),
            arrays => arrays,
        };
        let found = opened_on(path, open, runtime, transform, given)?;
        let Some(arrays) = found.arrays else { bail!(Internal, "the arrays were not read") };
        Ok((found.model, found.batch, arrays))
    };
    let (mut original, batch, arrays) = arrays_of(given)?;
    // Names of labels are matched with those of the model's classes, which the configuration beside it may tell.
    if let (None, Some(classes)) = (original.metadata(CLASSES), arrays.model_classes()) {
        original.set_metadata(CLASSES, serde_json::to_string(classes).unwrap_or_default());
    }
    let other = val.and_then(|val| data.given(val, ignore_labels)).map(arrays_of).transpose()?.map(|(.., other)| other);
    // Rows are of one length, whatever is in them.
    let length = [Some(&arrays), other.as_ref()].into_iter().flatten().filter_map(Arrays::text_length).max();
    let (arrays, other) = as_long(arrays, other, length.unwrap_or(0))?;
    let report = arrays.report(&original);
    report.lines().iter().for_each(|line| output::note(line));
    let rows = Rows::of(&arrays);
    let model = named(path, of_rows(&original, &rows))?;
    Ok(Opened { model, batch, arrays: Some(Laid { rows, arrays, other, report, original }) })
}

/// Texts to learn from and to validate on, with as many tokens each where they have fewer.
fn as_long(arrays: Arrays, other: Option<Arrays>, tokens: usize) -> Result<(Arrays, Option<Arrays>)> {
    Ok((arrays.padded(tokens)?, other.map(|other| other.padded(tokens)).transpose()?))
}

/// Opens a teacher that is fed with the same arrays; texts are the tokens that its student takes.
///
/// # Errors
/// Those of [`open_for_data`]; [`ErrorKind::Usage`] for a teacher that texts are other arrays for.
pub fn open_teacher(
    path: &Path,
    open: &OpenFlags,
    runtime: &RuntimeFlags,
    data: &DataFlags,
    laid: &Laid,
) -> Result<Model> {
    let Some(mut given) = data.given(laid.arrays.path(), true) else { bail!(Internal, "a teacher of no arrays") };
    if let (SampleFiles::Texts(texts), Some(report)) = (&mut given, laid.arrays.texts()) {
        texts.tokenizer = Some(report.tokenizer.clone());
        texts.max_length = report.max_length.as_ref().map(|length| length.tokens);
    }
    let found = opened_on(path, open, runtime, &TransformFlags::default(), given)?;
    let length = laid.arrays.text_length().unwrap_or(0);
    let own = found.arrays.map(|arrays| arrays.padded(length)).transpose()?;
    if let Some(input) = own.as_ref().and_then(|own| own.differs_from(&laid.arrays)) {
        let what = format!("as a teacher it is given another `{input}` than its student");
        return Err(Error::new(ErrorKind::Usage, what)
            .at(path)
            .hint("models that learn from each other take the same tokens: give --tokenizer and --max-length"));
    }
    named(path, of_rows(&found.model, &laid.rows))
}

/// Checks that nothing is asked for beside scores of pairs that is not learned from them.
///
/// # Errors
/// [`ErrorKind::Usage`]; it names the flag.
pub fn check_scores(data: &DataFlags, training: &TrainingFlags, classes: Option<usize>) -> Result<()> {
    let given = [
        ("--classes", classes.is_some(), "leave it out: --pooling says how states of tokens become an embedding"),
        ("--teacher", training.teacher.is_some(), "learn from the teacher first, without --score-column"),
    ];
    match given.iter().find(|(_, given, _)| data.score_column.is_some() && *given) {
        Some((flag, _, hint)) => {
            let what = format!("{flag} is not for --score-column, with which embeddings learn from scores alone");
            Err(Error::new(ErrorKind::Usage, what).at(data.path()).hint(*hint))
        }
        None => Ok(()),
    }
}

/// Checks that nothing is asked for that pictures alone can be given.
///
/// # Errors
/// [`ErrorKind::Usage`]; it names the flag.
pub fn check_views(data: &DataFlags, training: &TrainingFlags) -> Result<()> {
    let what = match data.given(data.path(), true) {
        None => return Ok(()),
        Some(SampleFiles::Arrays(_)) => "arrays",
        Some(SampleFiles::Texts(_)) => "texts",
    };
    let given = [
        ("--augment", training.augment.as_ref().is_some_and(|a| !a.is_none())),
        ("--mixup", training.mixup > 0.0),
        ("--cutmix", training.cutmix > 0.0),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((flag, _)) => {
            Err(Error::new(ErrorKind::Usage, format!("{flag} is for pictures: {what} are taken as they are"))
                .at(data.path())
                .hint(format!("leave {flag} out")))
        }
        None => Ok(()),
    }
}
