//! `offshoot eval`: the accuracy of a classifier.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::{open, warn_skipped};
use crate::axes::Typing;
use crate::cli::flags::{DataFlags, Eval, Part, TransformFlags};
use crate::cli::output::{self, table};
use crate::data::{Dataset, DatasetOptions, InputShape};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;
use crate::report::{Evaluation, PREPROCESS};
use crate::runtime::Runtime;
use crate::training::{Validation, evaluate};

/// The key of a model's class names in its metadata: a JSON list.
pub const CLASSES: &str = "offshoot.classes";

/// Runs the command.
pub fn run(c: &Eval) -> Result<()> {
    let model = open(&c.model, c.open)?;
    let dataset = dataset(&c.data, false)?;
    let cut = c.val_split.map(|share| dataset.split(share, c.seed));
    let split = cut.as_ref().or(dataset.given_split());
    let indices: Vec<usize> = match (c.part, split) {
        (Part::All, _) | (Part::Auto, None) => (0..dataset.len()).collect(),
        (Part::Auto | Part::Validation, Some(s)) => s.validation.clone(),
        (Part::Training, Some(s)) => s.training.clone(),
        _ => {
            return Err(Error::new(ErrorKind::Usage, "the data have no part of their own for validation")
                .at(&c.data.data)
                .hint("cut one off with --val-split SHARE, as `tune` does"));
        }
    };
    let runtime = Runtime::start(&c.runtime.options())?;
    let begun = Instant::now();
    let (result, left_out) = measure(&runtime, &model, &dataset, indices, &c.transform, c.batch_size, c.data.strict)?;
    let rate = result.images as f64 / begun.elapsed().as_secs_f64();
    if c.json {
        output::print_json(&json!({
            "schema": "offshoot.eval/1",
            "model": c.model,
            "data": c.data.data,
            "images": result.images,
            "skipped": left_out,
            "top1": result.top1,
            "top5": result.top5,
            "loss": result.loss,
            "images_per_second": rate,
            "classes": result.classes,
            "runtime": runtime.kind,
        }))?;
    } else {
        output::print(&text(&result, rate, &runtime.describe()))?;
    }
    match c.at_least {
        Some(least) if result.top1 < least => {
            Err(Error::new(ErrorKind::Check, format!("the top-1 accuracy {:.4} is below {least}", result.top1))
                .at(&c.model))
        }
        _ => Ok(()),
    }
}

/// Evaluates a classifier on some images of a data set. Returns the result and how many images could not be read.
pub fn measure(
    runtime: &Arc<Runtime>,
    model: &Model,
    dataset: &Dataset,
    indices: Vec<usize>,
    transform: &TransformFlags,
    batch_size: Option<u32>,
    strict: bool,
) -> Result<(Evaluation, usize)> {
    check_classes(dataset, model)?;
    let typing = Typing::new(model)?;
    let validation = validation(dataset, indices, transform, model, &typing, strict)?;
    let image = typing.image_size();
    let mut session = match batch_size {
        Some(batch) => runtime.load(model, batch as usize, image)?,
        None => runtime.load_for(validation.loader.len(), model, image)?,
    };
    let names = class_names(model).or(dataset.classes().map(<[String]>::to_vec));
    let bar = output::progress(validation.loader.len(), "eval");
    let result = evaluate(&mut session, &validation, names.as_deref(), |n| bar.set_position(n as u64));
    bar.finish_and_clear();
    warn_skipped(&validation.loader.skipped());
    Ok((result?, validation.loader.skipped().count))
}

/// Opens a data set.
pub fn dataset(flags: &DataFlags, ignore_labels: bool) -> Result<Dataset> {
    Dataset::open(
        &flags.data,
        &DatasetOptions {
            ignore_labels,
            image_column: flags.image_column.clone(),
            label_column: flags.label_column.clone(),
        },
    )
}

/// Some images of a data set through the evaluation transform, with their labels.
pub fn validation(
    dataset: &Dataset,
    indices: Vec<usize>,
    transform: &TransformFlags,
    model: &Model,
    typing: &Typing,
    strict: bool,
) -> Result<Validation> {
    let input = InputShape::of(typing)?;
    let preprocess = dataset.preprocess(&transform.preprocess(), model.metadata(PREPROCESS), input)?;
    let mut loader = dataset.loader(indices, preprocess, input.layout)?.strict(strict);
    if let Some(limit) = transform.limit {
        loader = loader.limit(limit as usize);
    }
    Ok(Validation { loader, labels: dataset.labels().map(<[u32]>::to_vec) })
}

/// The number of classes that the model's first output tells apart must fit the data.
fn check_classes(dataset: &Dataset, model: &Model) -> Result<()> {
    let typing = Typing::new(model)?;
    let output = model.graph().output.first().map(|o| o.name()).unwrap_or_default();
    match typing.shape(output).as_deref() {
        Some(&[_, classes]) => dataset.check_labels(classes),
        other => Err(Error::new(
            ErrorKind::Usage,
            format!("the model's first output has the shape {:?}, not [batch, classes]", other.unwrap_or_default()),
        )
        .at(&model.path)
        .hint("`offshoot compare` compares models of other outputs; `offshoot tune --classes N` adds a classifier")),
    }
}

/// The names of a model's classes, where its metadata holds them.
pub fn class_names(model: &Model) -> Option<Vec<String>> {
    serde_json::from_str(model.metadata(CLASSES)?).ok()
}

/// The result for a person.
pub fn text(result: &Evaluation, rate: f64, runtime: &str) -> String {
    let percent = |v: f64| format!("{:.2} %", 100.0 * v);
    let mut out = format!("images {}, {rate:.0} a second, {runtime}\ntop-1  {}\n", result.images, percent(result.top1));
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
    out + &table(&["class", "name", "images", "correct", "%"], rows)
}
