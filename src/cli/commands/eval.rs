//! `offshoot eval`: the accuracy of a classifier, and how the similarities that an encoder finds follow scores.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::labelled::{Opened, Wanted, open_for_data};
use super::source::Noun;
use super::{int8_note, named, plain, scored, tell_input, warn_skipped};
use crate::anatomy::{Activation, activation, check_classes};
use crate::axes::Typing;
use crate::cli::common::values::share;
use crate::cli::common::{DataFlags, RunFlags, TransformFlags};
use crate::cli::output::{self, Bars, table};
use crate::data::{ClassesBy, Dataset, InputReport, InputShape, Matched, Skipped, class_names};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::{PREPROCESS, schema};
use crate::metrics::Evaluation;
use crate::onnx::Model;
use crate::runtime::Runtime;
use crate::training::{Validation, evaluate, is_independent, open_dataset, said_of, with_logits};

/// `offshoot eval`.
#[derive(Args, Debug)]
pub struct EvalArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// Which samples: all, or the part for validation that the data come with or that --val-split cuts off
    #[arg(long, value_enum, default_value_t, help_heading = "Data", conflicts_with = "score_column")]
    pub part: Split,
    /// Share of the samples that validates, as `tune` cuts it off with the same seed
    #[arg(long, value_name = "SHARE", help_heading = "Data", value_parser = share, conflicts_with = "score_column")]
    pub val_split: Option<f64>,
    /// Seed of the split
    #[arg(long, value_name = "N", help_heading = "Data", default_value_t = 0)]
    pub seed: u64,
    /// Samples in a batch [default: by their size]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Exit with 1 where the top-1 accuracy, or the correlation with scores, is below this
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub at_least: Option<f64>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub run: RunFlags,
}

/// A part of a data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Split {
    /// The images that the data come with for validation, else all.
    #[default]
    Auto,
    /// All images.
    All,
    /// The images for validation.
    Validation,
    /// The images for training.
    Training,
}

/// Runs the command.
pub fn run(c: &EvalArgs) -> Result<()> {
    let as_written = c.run.as_written();
    if let Some(column) = &c.data.score_column {
        return scored::run(&to_score(c, column, &as_written));
    }
    // Of a part that is cut off the first ones are others.
    let first = c.run.transform.limit().filter(|_| c.val_split.is_none());
    let wanted = Wanted { data: &c.data, val: None, ignore_labels: false, first };
    let opened = open_for_data(&c.model, &as_written.open, wanted, &c.run.runtime, &c.run.transform)?;
    let Opened { model, batch: batch_note, arrays } = opened;
    let dataset = match &arrays {
        None => dataset(&c.data)?,
        Some(laid) => laid.rows.dataset(&laid.arrays, false)?,
    };
    let indices = judged(c, &dataset)?;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let int8 = int8_note(&c.model, &model, runtime.kind);
    int8.iter().for_each(|note| output::note(note));
    let begun = Instant::now();
    let input = match &arrays {
        Some(laid) => json!(laid.report),
        None => {
            let typing = named(&c.model, Typing::new(&model))?;
            let shape = InputShape::of(&typing)?;
            let transform = dataset.preprocess(&c.run.transform.preprocess(), model.metadata(PREPROCESS), shape)?;
            let input = InputReport::new(&model, &typing, transform.as_ref());
            tell_input(&input);
            json!(input)
        }
    };
    let Evaluated { result, skipped, classes_by, note, activation, batch } =
        measure(&runtime, &model, &dataset, indices, &c.run.transform, c.batch_size, c.data.strict)?;
    note.iter().for_each(|note| output::warn(note));
    if let Some(a) = &activation {
        output::note(&format!("the model {}", said_of(a)));
    }
    let loss_kind =
        if activation.as_ref().is_some_and(is_independent) { "binary-cross-entropy" } else { "cross-entropy" };
    let notes: Vec<&String> = dataset.source().notes().iter().chain(&note).chain(&batch_note).chain(&int8).collect();
    let rate = result.images as f64 / begun.elapsed().as_secs_f64();
    if c.json {
        output::print_json(&json!({
            "schema": schema::EVAL,
            "model": c.model,
            "data": c.data.path(),
            "images": result.images,
            "skipped": skipped.count,
            "skipped_kinds": skipped.kinds,
            "top1": result.top1,
            "top5": result.top5,
            "loss": result.loss,
            "loss_kind": loss_kind,
            "activation": activation.map(|a| a.kind),
            "batch": batch,
            "images_per_second": rate,
            "classes": result.classes,
            "classes_by": classes_by,
            "input": input,
            "notes": notes,
            "runtime": runtime.kind,
        }))?;
    } else {
        output::print(&text(&result, rate, &runtime.describe(), Noun::of(arrays.as_ref().map(|laid| &laid.arrays))))?;
    }
    let judged = arrays.as_ref().map_or(&model, |laid| &laid.original);
    plain::check(&c.model, judged, &c.run.runtime)?;
    match c.at_least {
        Some(least) if result.top1 < least => {
            Err(Error::new(ErrorKind::Check, format!("the top-1 accuracy {:.4} is below {least}", result.top1))
                .at(&c.model))
        }
        _ => Ok(()),
    }
}

/// Which samples of a data set are judged.
fn judged(c: &EvalArgs, dataset: &Dataset) -> Result<Vec<usize>> {
    let cut = c.val_split.map(|share| dataset.split(share, c.seed));
    let split = cut.as_ref().or(dataset.given_split());
    match (c.part, split) {
        (Split::All, _) | (Split::Auto, None) => Ok((0..dataset.len()).collect()),
        (Split::Auto | Split::Validation, Some(s)) => Ok(s.validation.clone()),
        (Split::Training, Some(s)) => Ok(s.training.clone()),
        _ => Err(Error::new(ErrorKind::Usage, "the data have no part of their own for validation")
            .at(c.data.path())
            .hint("cut one off with --val-split SHARE, as `tune` does")),
    }
}

/// What `--score-column` asks for.
fn to_score<'c>(c: &'c EvalArgs, column: &'c str, run: &'c RunFlags) -> scored::Asked<'c> {
    scored::Asked {
        model: &c.model,
        data: &c.data,
        column,
        batch_size: c.batch_size,
        at_least: c.at_least,
        json: c.json,
        run,
    }
}

/// What an evaluation found.
pub struct Evaluated {
    /// The measures.
    pub result: Evaluation,
    /// The images that could not be read.
    skipped: Skipped,
    classes_by: ClassesBy,
    /// What was assumed of the classes.
    note: Option<String>,
    /// What stands behind the model's logits.
    activation: Option<Activation>,
    /// Images in a batch.
    batch: usize,
}

/// What a classifier tells apart, and a data set in its terms.
pub struct Told {
    activation: Option<Activation>,
    matched: Matched,
}

impl Told {
    /// Of a model and a data set.
    ///
    /// # Errors
    /// Those of a model that tells no classes apart, and of [`Dataset::matched`].
    pub fn new(model: &Model, dataset: &Dataset) -> Result<Told> {
        let typing = Typing::new(model)?;
        let activation = activation(&typing);
        let outputs = match &activation {
            Some(a) if a.is_binary() => 2,
            _ => outputs(model, &typing)?,
        };
        let matched = dataset.matched(class_names(model).as_deref(), outputs)?;
        Ok(Told { activation, matched })
    }
}

/// Evaluates a classifier on some images of a data set, whose classes are matched to the model's.
pub fn measure(
    runtime: &Arc<Runtime>,
    model: &Model,
    dataset: &Dataset,
    indices: Vec<usize>,
    transform: &TransformFlags,
    batch_size: Option<u32>,
    strict: bool,
) -> Result<Evaluated> {
    let Told { activation, matched } = Told::new(model, dataset)?;
    let typing = Typing::new(model)?;
    let logits = with_logits(model, &typing)?;
    let judged = logits.as_ref().unwrap_or(model);
    let names = matched.dataset.classes().map(<[String]>::to_vec).or(class_names(model));
    let flags = transform.preprocess();
    let validation =
        Validation::new(&matched.dataset, indices, &flags, model, &typing, strict)?.limit(transform.limit());
    let image = typing.image_size();
    let mut session = match batch_size {
        Some(batch) => runtime.load(judged, batch as usize, image)?,
        None => runtime.load_for(validation.loader.len(), judged, image)?,
    };
    let bar = output::progress(validation.loader.len(), "eval");
    let independent = activation.as_ref().is_some_and(is_independent);
    let result = evaluate(&mut session, &validation, names.as_deref(), independent, |n| bar.set_position(n as u64));
    bar.finish_and_clear();
    warn_skipped(&validation.loader.skipped());
    Ok(Evaluated {
        result: result?,
        skipped: validation.loader.skipped(),
        classes_by: matched.by,
        note: matched.note,
        activation,
        batch: session.batch,
    })
}

/// Opens the data set of the flags, and says what was assumed of it.
pub fn dataset(flags: &DataFlags) -> Result<Dataset> {
    open_dataset(flags.path(), &flags.options(false), &Bars::default())
}

/// The number of classes that the model's first output tells apart.
fn outputs(model: &Model, typing: &Typing) -> Result<usize> {
    let output = model.graph().output.first().map(|o| o.name()).unwrap_or_default();
    check_classes(typing, output).map_err(|e| e.at(&model.path))?;
    match typing.shape(output).as_deref() {
        Some(&[_, classes]) => Ok(classes),
        other => Err(Error::new(
            ErrorKind::Usage,
            format!("the model's first output has the shape {:?}, not [batch, classes]", other.unwrap_or_default()),
        )
        .at(&model.path)
        .hint("`offshoot compare` compares models of other outputs; `offshoot tune --classes N` adds a classifier")),
    }
}

/// The result for a person.
fn text(result: &Evaluation, rate: f64, runtime: &str, Noun { many, .. }: Noun) -> String {
    let percent = |v: f64| format!("{:.2} %", 100.0 * v);
    let mut out = format!("{many} {}, {rate:.0} a second, {runtime}\ntop-1  {}\n", result.images, percent(result.top1));
    if let Some(top5) = result.top5 {
        out += &format!("top-5  {}\n", percent(top5));
    }
    out += &format!("loss   {:.4}\n\n", result.loss);
    let rows = result
        .classes
        .iter()
        .filter(|c| c.images > 0)
        .map(|c| {
            vec![
                c.class.to_string(),
                c.name.clone().unwrap_or_default(),
                c.images.to_string(),
                c.correct.to_string(),
                format!("{:.2}", 100.0 * c.correct as f64 / c.images as f64),
            ]
        })
        .collect();
    out + &table(&["class", "name", many, "correct", "%"], rows)
}
