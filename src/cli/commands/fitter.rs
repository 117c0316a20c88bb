//! What the commands that fit have in common: a fitter on the samples of the command line.

use std::time::Instant;

use super::source::Source;
use super::{agree, named, warn_skipped};
use crate::axes::Typing;
use crate::cli::common::{RunFlags, SampleFlags};
use crate::cli::output::{Bars, note};
use crate::data::Arrays;
use crate::error::Result;
use crate::fitting::{Fitter, Origin, Views};
use crate::onnx::Model;
use crate::runtime::{Options, Runtime};

/// Samples, and what fits descendants on them.
pub struct Calibrated {
    /// The samples, and what is said of them.
    pub source: Source,
    /// What fits.
    pub fitter: Fitter,
}

impl Calibrated {
    /// What an order of removal is measured on.
    pub fn origin(&self) -> Result<Origin<'_>> {
        let (count, transform) = (self.source.samples().len(), self.source.preprocess());
        Ok(Origin { count, sha256: self.source.fingerprint()?, transform })
    }
}

/// Draws so many views of the images that are named, or takes up to so many samples of the arrays that a model was
/// opened with, as they are.
pub fn calibrated(
    model: &Model,
    (samples, arrays): (&SampleFlags, Option<Arrays>),
    run: &RunFlags,
    views: Views,
    bars: &Bars,
) -> Result<Calibrated> {
    let begun = Instant::now();
    let source = match arrays {
        Some(arrays) => Source::of_arrays(arrays, model),
        None => {
            let typing = named(&model.path, Typing::new(model))?;
            Source::new(samples, run, model, &typing, None)?
        }
    };
    agree(&model.path, || source.fingerprint())?;
    let runtime = Runtime::start(&Options { threads: Some(1), ..run.runtime.options() })?;
    let fitter = match &source {
        Source::Images(loader, _) => Fitter::new(model, loader, runtime, views, begun, bars)?,
        Source::Arrays(arrays, _) => named(&model.path, Fitter::on_arrays(model, arrays, runtime, views, begun))?,
    };
    if let Source::Arrays(..) = &source {
        let ([fit, held_out], many) = (fitter.views(), source.noun().many);
        note(&format!("fits are made on {fit} {many} and judged by {held_out} others"));
    }
    // Every process draws the same views.
    warn_skipped(&source.skipped());
    Ok(Calibrated { source, fitter })
}
