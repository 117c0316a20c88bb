//! What commands open, models and pictures, and what is said of it.

use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::cli::common::{OpenFlags, RuntimeFlags, TransformFlags};
use crate::cli::output;
use crate::data::{Feed, InputReport, InputShape, Loader, Samples, Skipped, takes_size};
use crate::density::{Densities, measure, obstacle};
use crate::error::{Error, Result};
use crate::graph::int8_dtype;
use crate::metadata::PREPROCESS;
use crate::onnx::{Model, sha256};
use crate::opening::{Opened, Opening};
use crate::parallel;
use crate::rounding::{self, Dtype, Rounded};
use crate::runtime::{Runtime, RuntimeKind};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Opens a model and brings it into the form that everything else works on. A configuration beside it that cannot be
/// used is no matter where no pictures are fed: it is named in a warning.
pub fn open(path: &Path, flags: &OpenFlags) -> Result<Model> {
    opened(path, flags, None, None).map(|(model, _)| model)
}

/// Opens a model that is to run on batches of pictures: see [`opened`].
pub fn open_to_run(
    path: &Path,
    flags: &OpenFlags,
    runtime: &RuntimeFlags,
    transform: &TransformFlags,
) -> Result<Model> {
    opened(path, flags, Some(runtime), Some(transform)).map(|(model, _)| model)
}

/// Opens a model that is fed with pictures, one at a time.
pub fn open_for_images(path: &Path, flags: &OpenFlags, transform: &TransformFlags) -> Result<Model> {
    opened(path, flags, None, Some(transform)).map(|(model, _)| model)
}

/// Flags for each of two models that see the same samples: an image size is for those that leave theirs open, a value
/// for those that have its input, and an output for those that have it. Each has to be for one.
pub fn flags_for(paths: [&Path; 2], flags: &OpenFlags) -> Result<[OpenFlags; 2]> {
    let OpenFlags { input_size, feed, of, .. } = flags;
    if input_size.is_none() && feed.is_empty() && of.is_none() {
        return Ok([flags.clone(), flags.clone()]);
    }
    let bare = OpenFlags { input_size: None, feed: Vec::new(), of: None, ..flags.clone() };
    let files = [bare.opening().prepared(paths[0])?, bare.opening().prepared(paths[1])?];
    // What fits neither is for both, which refuse it.
    let fits = |takes: &dyn Fn(&Model) -> bool| {
        let takes = [takes(&files[0]), takes(&files[1])];
        takes.map(|own| own || takes == [false; 2])
    };
    let mut both = [bare.clone(), bare];
    for (k, own) in both.iter_mut().enumerate() {
        own.input_size = input_size.filter(|&size| fits(&|m| takes_size(m, size))[k]);
        let has = |feed: &&Feed| fits(&|m| m.graph().input.iter().any(|v| v.name() == feed.input))[k];
        own.feed = feed.iter().filter(has).cloned().collect();
        own.of = of.clone().filter(|of| fits(&|m| m.graph().output.iter().any(|v| v.name() == of))[k]);
    }
    Ok(both)
}

/// Says what a model's images become, and who decided that.
pub fn tell_input(report: &InputReport) {
    output::note(&report.line());
    report.warnings().iter().for_each(|warning| output::warn(warning));
}

/// Opens a model through the [door](crate::opening) that studies use as well, and passes on what it tells: see
/// [`Opening::open`].
pub fn opened(
    path: &Path,
    flags: &OpenFlags,
    runtime: Option<&RuntimeFlags>,
    transform: Option<&TransformFlags>,
) -> Result<(Model, Option<String>)> {
    let opening = Opening { pictures: transform.map(TransformFlags::preprocess), ..flags.opening() };
    let start = runtime.map(|flags| || Runtime::start(&flags.options()));
    let opened = told(opening.open(path, start.as_ref().map(|start| start as _))?);
    Ok((opened.model, opened.batch))
}

/// Passes on what the door tells.
pub fn told(opened: Opened) -> Opened {
    opened.notes.iter().for_each(|note| output::note(note));
    opened.warnings.iter().for_each(|warning| output::warn(warning));
    opened
}

/// Opens images for a model.
pub fn images(path: &Path, transform: &TransformFlags, model: &Model, typing: &Typing) -> Result<Loader> {
    let input = InputShape::of(typing)?;
    let mut loader = Loader::open(path, &transform.preprocess(), model.metadata(PREPROCESS), input)?;
    loader.source().notes().iter().for_each(|note| output::warn(note));
    tell_input(&InputReport::new(model, typing, loader.preprocess()));
    if let Some(limit) = transform.limit {
        loader = loader.limit(limit as usize);
    }
    Ok(loader)
}

/// Checks that all processes that work together were given the same model and the same data.
pub fn agree(model: &Path, fingerprint: impl FnOnce() -> Result<String>) -> Result<()> {
    if parallel::size() == 1 {
        return Ok(());
    }
    let on = |e: Error| {
        e.hint("every machine has to see the same files: put them on a file system that all share, or copy them")
    };
    parallel::agree("another model", &sha256(model)?).map_err(|e| on(e.at(model)))?;
    parallel::agree("other samples or labels", &fingerprint()?).map_err(on)
}

/// Measures densities with a progress bar, and says which layers have none, by the numbers that they bear.
pub fn densities(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    (anatomy, numbers): (&Anatomy, &[usize]),
    samples: &dyn Samples,
    unread: impl FnOnce() -> Skipped,
) -> Result<Densities> {
    let bar = output::progress(samples.len(), "density");
    let result = measure(runtime, model, typing, anatomy, samples, |n| bar.set_position(n as u64));
    bar.finish_and_clear();
    let result = result?;
    skipped(unread())?;
    for (l, why) in without_density(typing, anatomy) {
        output::warn(&format!("layer {} has no densities: {why}", numbers.get(l).unwrap_or(&l)));
    }
    Ok(result)
}

/// Says which images could not be read, by any of the processes that share them.
pub fn skipped(own: Skipped) -> Result<()> {
    let mut sum = Skipped::default();
    parallel::all(own)?.into_iter().for_each(|part| sum.add(part));
    warn_skipped(&sum);
    Ok(())
}

/// The layers without densities, and why.
pub fn without_density(typing: &Typing, anatomy: &Anatomy) -> Vec<(usize, String)> {
    anatomy.layers.iter().enumerate().filter_map(|(l, layer)| Some((l, obstacle(typing, layer)?))).collect()
}

/// Says which images could not be read.
pub fn warn_skipped(skipped: &Skipped) {
    if let Some(first) = &skipped.first {
        let kinds: Vec<String> = skipped.kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
        let count = skipped.count;
        output::warn(&format!("{count} image(s) could not be read and were left out{kinds}; the first: {first}"));
    }
}

/// Gives a model that is about to be written the type that was asked for; `wide` are the values that stay float32,
/// where images were looked at for them.
pub fn in_type(model: &mut Model, dtype: Option<Dtype>, wide: Option<&HashSet<String>>) -> Result<Option<Rounded>> {
    let Some(dtype) = dtype else { return Ok(None) };
    let none = HashSet::new();
    let converted = rounding::convert_but(model, dtype, wide.unwrap_or(&none))?;
    converted.warnings.iter().for_each(|warning| output::warn(warning));
    dtype.caution(wide.is_some()).iter().for_each(|caution| output::warn(caution));
    converted.int8.iter().filter_map(Rounded::by_design).for_each(|note| output::note(&note));
    Ok(converted.int8)
}

/// What a runtime makes of weights in int8, where it is not what the file says.
pub fn int8_note(path: &Path, model: &Model, runtime: RuntimeKind) -> Option<String> {
    if int8_dtype(model.graph()) != Some("int8") {
        return None;
    }
    let path = path.display();
    Some(match runtime {
        RuntimeKind::Onnxruntime => format!(
            "`{path}`: ONNX Runtime also rounds what int8 weights are multiplied with, to 8 bits in blocks, unless \
             `session.qdq_matmulnbits_accuracy_level` is 1"
        ),
        _ => format!(
            "`{path}`: what int8 weights are multiplied with is float32 here; ONNX Runtime and OpenVINO round it, too, \
             which --runtime onnxruntime shows"
        ),
    })
}

/// Adds the model's path to errors that name no file.
pub fn named<T>(path: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|e| e.at(path))
}
