//! What the commands that fit have in common: a fitter on the samples of the command line.

use std::path::Path;
use std::time::Instant;

use super::source::Source;
use super::{agree, images, named, warn_skipped};
use crate::axes::Typing;
use crate::cli::common::{RuntimeFlags, TransformFlags};
use crate::cli::output::Bars;
use crate::data::InputReport;
use crate::error::Result;
use crate::fitting::{Fitter, Origin};
use crate::onnx::Model;
use crate::runtime::{Options, Runtime};

/// Views of the images that matrices are fitted on, where no number is given.
pub const VIEWS: usize = 192;

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

/// Opens images for a model and draws `views` views of them.
pub fn calibrated(
    model: &Model,
    path: &Path,
    transform: &TransformFlags,
    runtime: &RuntimeFlags,
    views: (usize, u64),
    bars: &Bars,
) -> Result<Calibrated> {
    let begun = Instant::now();
    let source = {
        let typing = named(&model.path, Typing::new(model))?;
        let loader = images(path, transform, model, &typing)?;
        let input = InputReport::new(model, &typing, loader.preprocess());
        Source::Images(loader, Box::new(input))
    };
    calibrated_on(model, source, runtime, views, begun, bars)
}

/// Draws `views` views of images, or takes up to so many samples of arrays as they are. The time counts from `begun`.
pub fn calibrated_on(
    model: &Model,
    source: Source,
    runtime: &RuntimeFlags,
    views: (usize, u64),
    begun: Instant,
    bars: &Bars,
) -> Result<Calibrated> {
    agree(&model.path, || source.fingerprint())?;
    let runtime = Runtime::start(&Options { threads: Some(1), ..runtime.options() })?;
    let fitter = match &source {
        Source::Images(loader, _) => Fitter::new(model, loader, runtime, views, begun, bars)?,
        Source::Arrays(arrays, _) => Fitter::on_arrays(model, arrays, runtime, views, begun)?,
    };
    // Every process draws the same views.
    warn_skipped(&source.skipped());
    Ok(Calibrated { source, fitter })
}
