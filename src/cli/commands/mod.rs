//! One file a command.

pub mod compare;
pub mod condense;
pub mod density;
pub mod doctor;
pub mod eval;
pub mod fitter;
pub mod grow;
pub mod inspect;
pub mod run;
pub mod shrink;
pub mod study;
pub mod tune;

use std::path::Path;
use std::sync::Arc;

use super::flags::{OpenFlags, TransformFlags};
use super::output;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::data::{InputShape, Loader};
use crate::density::{Densities, measure};
use crate::error::Result;
use crate::graph::{self, FloatType};
use crate::onnx::Model;
use crate::report::PREPROCESS;
use crate::runtime::Runtime;

/// Opens a model and brings it into the form that everything else works on.
pub fn open(path: &Path, flags: OpenFlags) -> Result<Model> {
    let mut model = Model::open_with(path, flags.links())?;
    if flags.dequantize {
        graph::dequantize(&mut model)?;
    }
    graph::prepare(&mut model)?;
    Ok(model)
}

/// Opens images for a model.
pub fn images(path: &Path, transform: &TransformFlags, model: &Model, typing: &Typing) -> Result<Loader> {
    let input = InputShape::of(typing)?;
    let mut loader = Loader::open(path, &transform.preprocess(), model.metadata(PREPROCESS), input)?;
    if let Some(limit) = transform.limit {
        loader = loader.limit(limit as usize);
    }
    Ok(loader)
}

/// Measures densities with a progress bar.
pub fn densities(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    loader: &Loader,
) -> Result<Densities> {
    let bar = output::progress(loader.len(), "density");
    let result = measure(runtime, model, typing, anatomy, loader, |n| bar.set_position(n as u64));
    bar.finish_and_clear();
    skipped(loader);
    result
}

/// Says which images could not be read.
pub fn skipped(loader: &Loader) {
    let skipped = loader.skipped();
    if skipped.count > 0 {
        let first = skipped.first.unwrap_or_default();
        output::warn(&format!("{} image(s) could not be read and were left out; the first: {first}", skipped.count));
    }
}

/// Gives a model that is about to be written the type that was asked for.
pub fn in_type(model: &mut Model, dtype: Option<FloatType>) -> Result<()> {
    if let Some(dtype) = dtype
        && let Some(warning) = graph::convert(model, dtype)?
    {
        output::warn(&warning);
    }
    Ok(())
}

/// Adds the model's path to errors that name no file.
pub fn named<T>(path: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|e| e.at(path))
}
