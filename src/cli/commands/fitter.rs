//! What the commands that fit have in common: a fitter on the images of the command line.

use std::path::Path;
use std::time::Instant;

use super::{agree, images, named, warn_skipped};
use crate::axes::Typing;
use crate::cli::common::{RuntimeFlags, TransformFlags};
use crate::cli::output::Bars;
use crate::data::{InputReport, Loader};
use crate::error::Result;
use crate::fitting::Fitter;
use crate::onnx::Model;
use crate::runtime::{Options, Runtime};

/// Views of the images that matrices are fitted on, where no number is given.
pub const VIEWS: usize = 192;

/// Images, and what fits descendants on them.
pub struct Calibrated {
    /// The images.
    pub loader: Loader,
    /// What the images become.
    pub input: InputReport,
    /// What fits.
    pub fitter: Fitter,
}

/// Opens images for a model and draws `views` views of them.
pub fn calibrated(
    model: &Model,
    path: &Path,
    transform: &TransformFlags,
    runtime: &RuntimeFlags,
    (views, seed): (usize, u64),
    bars: &Bars,
) -> Result<Calibrated> {
    let begun = Instant::now();
    let (loader, input) = {
        let typing = named(&model.path, Typing::new(model))?;
        let loader = images(path, transform, model, &typing)?;
        let input = InputReport::new(model, &typing, loader.preprocess());
        (loader, input)
    };
    agree(&model.path, || loader.fingerprint())?;
    let runtime = Runtime::start(&Options { threads: Some(1), ..runtime.options() })?;
    let fitter = Fitter::new(model, &loader, runtime, (views, seed), begun, bars)?;
    // Every process draws the same views.
    warn_skipped(&loader.skipped());
    Ok(Calibrated { loader, input, fitter })
}
