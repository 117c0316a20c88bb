//! What the commands that fit have in common: the pinned model, views of images, and a runtime of one thread.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use indicatif::ProgressBar;

use super::{agree, images, named, warn_skipped};
use crate::axes::Typing;
use crate::cli::common::{RuntimeFlags, TransformFlags};
use crate::cli::output;
use crate::data::{InputReport, Loader};
use crate::error::Result;
use crate::fitting::{Calibration, Limits, Shrinker, Timing, beyond_half, stages};
use crate::graph::FloatType;
use crate::learngene::Removals;
use crate::onnx::Model;
use crate::runtime::{Options, Runtime};

/// Views of the images that matrices are fitted on, where no number is given.
pub const VIEWS: usize = 192;

/// What fits descendants to their ancestor.
pub struct Fitter {
    pinned: Model,
    /// The images.
    pub loader: Loader,
    /// What the images become.
    pub input: InputReport,
    /// Every session has one thread, and images are worked on side by side: results do not depend on the number of threads.
    pub runtime: Arc<Runtime>,
    calibration: Calibration,
    drawn: f64,
}

impl Fitter {
    /// Draws `views` views of images for a model.
    pub fn new(
        model: &Model,
        path: &Path,
        transform: &TransformFlags,
        runtime: &RuntimeFlags,
        (views, seed): (usize, u64),
        bars: &Bars,
    ) -> Result<Fitter> {
        let start = Instant::now();
        let (loader, input) = {
            let typing = named(&model.path, Typing::new(model))?;
            let loader = images(path, transform, model, &typing)?;
            let input = InputReport::new(model, &typing, loader.preprocess());
            (loader, input)
        };
        agree(&model.path, || loader.fingerprint())?;
        let runtime = Runtime::start(&Options { threads: Some(1), ..runtime.options() })?;
        let calibration = Calibration::draw(&loader, views, seed, &|n, of| bars.tell("views", n, of))?;
        // Every process draws the same views.
        warn_skipped(&loader.skipped());
        let pinned = named(&model.path, stages::pin(model))?;
        Ok(Fitter { pinned, loader, input, runtime, calibration, drawn: start.elapsed().as_secs_f64() })
    }

    /// The shrinker of the model.
    pub fn shrinker<'f>(&'f self, model: &'f Model) -> Result<Shrinker<'f>> {
        let made = Shrinker::new(model, &self.pinned, &self.runtime, self.calibration.clone());
        let mut shrinker = named(&model.path, made)?;
        shrinker.timings.insert(0, Timing { stage: "views", seconds: self.drawn });
        Ok(shrinker)
    }

    /// Views that are fitted on, and those that are held out.
    pub fn views(&self) -> [usize; 2] {
        [self.calibration.fit.len(), self.calibration.held_out.len()]
    }

    /// The values of a descendant that stay in float32 in a file of `dtype`, since float16 might not hold them; says how many.
    pub fn wide(&self, child: &Model, dtype: Option<FloatType>) -> Result<Option<HashSet<String>>> {
        if dtype != Some(FloatType::Fp16) {
            return Ok(None);
        }
        let views: Vec<_> = self.calibration.fit.iter().chain(&self.calibration.held_out).collect();
        let wide = beyond_half(&self.runtime, child, &views)?;
        if !wide.is_empty() {
            let count = wide.len();
            output::warn(&format!(
                "{count} value(s) come near the largest number of float16 on the images: they stay float32"
            ));
        }
        Ok(Some(wide))
    }

    /// Views that no fit sees.
    pub fn held_out(&self) -> &[ndarray::ArrayD<f32>] {
        &self.calibration.held_out
    }
}

/// Measures the order of removal, and says what the user should know.
pub fn analyse(shrinker: &mut Shrinker, limits: &Limits, bars: &Bars) -> Result<Removals> {
    let warnings = shrinker.warnings(limits)?;
    let removals = shrinker.analyse(limits, &|stage, n, of| bars.tell(stage, n, of))?;
    warnings.iter().for_each(|w| output::warn(w));
    Ok(removals)
}

/// One progress bar after the other.
#[derive(Default)]
pub struct Bars(Mutex<Option<(&'static str, ProgressBar)>>);

impl Bars {
    /// Shows that `done` of `of` parts of a stage are done.
    pub fn tell(&self, stage: &'static str, done: usize, of: usize) {
        let Ok(mut bar) = self.0.lock() else { return };
        if bar.as_ref().is_none_or(|b| b.0 != stage) {
            if let Some((_, old)) = bar.take() {
                old.finish_and_clear();
            }
            *bar = Some((stage, output::progress(of, stage)));
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_position(bar.position().max(done as u64));
        }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Ok(mut bar) = self.0.lock()
            && let Some((_, old)) = bar.take()
        {
            old.finish_and_clear();
        }
    }
}
