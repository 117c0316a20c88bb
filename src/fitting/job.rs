//! Everything that makes descendants of one ancestor on a few images: for `shrink`, `grow` and `condense` as for
//! studies.
//!
//! A [`Fitter`] holds what fits need: the pinned ancestor, views of images, and a runtime of one thread. A [`Job`]
//! makes descendants, each under a budget of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;

use super::lengths::apart;
use super::subgraph::fixed_to;
use super::{
    Allocation, Budget, Calibration, Latencies, Limits, Progress, Shrinker, Shrunk, Timing, Towers, Values, Views,
    beyond_half, image_input, plan, thin,
};
use crate::anatomy::Anatomy;
use crate::axes::{Typing, carry_value_info};
use crate::data::{Arrays, Loader, Preprocess};
use crate::descendant::{fold_constants, has_fixed_size};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::FloatType;
use crate::learngene::{Learngene, PruningOrder, parameters};
use crate::metadata::{DESCENDANT, schema};
use crate::onnx::{Model, encoded_len, sha256};
use crate::opening::keep_transform;
use crate::parallel;
use crate::progress::Listener;
use crate::rounding::{self, Dtype};
use crate::runtime::Runtime;

/// Up to this share of heads and FFNs the dimensions of heads are cut.
const CUT_DIMS: f64 = 0.6;
/// Sizes of the frontier.
const FRONTIER: [f64; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];
/// A budget of time is met where the measured time is within this share of it.
const SLACK: f64 = 0.01;
/// How often an allocation is made anew because it takes longer than predicted.
const TRIES: usize = 4;
/// A budget of bytes is met where the file has at least this share of it.
const FILLED: f64 = 0.98;
/// Bytes that are kept for what is noted in a file once its child is fitted: errors, and the transform of pictures.
const NOTES: f64 = 512.0;
/// How often an allocation is made anew because its file is larger than the budget, or much smaller.
const FILES: usize = 10;

/// What fits descendants to their ancestor.
pub struct Fitter {
    /// For every shape of batches.
    pinned: Vec<Model>,
    /// Every session has one thread, and images are worked on side by side: results do not depend on the number of
    /// threads.
    pub runtime: Arc<Runtime>,
    calibration: Calibration,
    drawn: f64,
}

impl Fitter {
    /// Draws views of images for a model; `runtime` should have one thread. The time counts from `begun`.
    ///
    /// # Errors
    /// Those of [`Calibration::draw`], of [`pin_on`](super::pin_on) and of [`Runtime::check`].
    pub fn new(
        model: &Model,
        images: &Loader,
        runtime: Arc<Runtime>,
        views: Views,
        begun: Instant,
        listener: &dyn Listener,
    ) -> Result<Fitter> {
        let (input, tell) = (image_input(model.graph()), |n, of| listener.progress("views", n, of));
        Fitter::with(model, Calibration::draw(images, &input, views, &tell)?, runtime, begun)
    }

    /// The same on samples of arrays, in batches where `model` leaves open how many samples these have.
    ///
    /// # Errors
    /// Those of [`Calibration::of_arrays`], of [`pin_on`](super::pin_on) and of [`Runtime::check`].
    pub fn on_arrays(
        model: &Model,
        arrays: &Arrays,
        runtime: Arc<Runtime>,
        views: Views,
        begun: Instant,
    ) -> Result<Fitter> {
        Fitter::with(model, Calibration::of_arrays(model, arrays, views)?, runtime, begun)
    }

    fn with(model: &Model, calibration: Calibration, runtime: Arc<Runtime>, begun: Instant) -> Result<Fitter> {
        let pinned = calibration.pin(model).map_err(|e| e.at(&model.path))?;
        pinned.iter().try_for_each(|pinned| runtime.check(pinned)).map_err(|e| e.at(&model.path))?;
        Ok(Fitter { pinned, runtime, calibration, drawn: begun.elapsed().as_secs_f64() })
    }

    /// The shrinker of the model.
    ///
    /// # Errors
    /// Those of [`Shrinker::new`].
    pub fn shrinker<'f>(&'f self, model: &'f Model) -> Result<Shrinker<'f>> {
        let mut shrinker = Shrinker::new(model, &self.pinned, &self.runtime, self.calibration.clone())?;
        shrinker.timings.insert(0, Timing { stage: "views", seconds: self.drawn });
        Ok(shrinker)
    }

    /// Views that are fitted on, and those that are held out.
    pub fn views(&self) -> [usize; 2] {
        self.calibration.counts()
    }

    /// Views that no fit sees, or batches of samples.
    pub fn held_out(&self) -> &[Values] {
        &self.calibration.held_out
    }

    /// The input at whose zeros tokens are padding.
    pub fn mask(&self) -> Option<&str> {
        self.calibration.mask.as_deref()
    }

    /// The values of a descendant that stay in float32 in a file of `dtype`, since float16 might not hold them; says
    /// how many.
    ///
    /// # Errors
    /// Those of running the descendant.
    pub fn wide(
        &self,
        child: &Model,
        dtype: Option<FloatType>,
        listener: &dyn Listener,
    ) -> Result<Option<HashSet<String>>> {
        if dtype != Some(FloatType::Fp16) {
            return Ok(None);
        }
        let views = apart(self.calibration.fit.iter().chain(&self.calibration.held_out));
        let views: Vec<_> = views.iter().map(AsRef::as_ref).collect();
        let wide = beyond_half(&self.runtime, child, &views)?;
        if !wide.is_empty() {
            let count = wide.len();
            listener.warn(&format!(
                "{count} value(s) come near the largest number of float16 on the images: they stay float32"
            ));
        }
        Ok(Some(wide))
    }
}

/// Measures the order of removal, and says what the user should know.
///
/// # Errors
/// Those of [`Towers::analyse`].
pub fn analyse(towers: &mut Towers, limits: &Limits, listener: &dyn Listener) -> Result<PruningOrder> {
    let warnings = towers.warnings(limits)?;
    let removals = towers.analyse(limits, &|stage, n, of| listener.progress(stage, n, of))?;
    warnings.iter().for_each(|w| listener.warn(w));
    Ok(removals)
}

/// What an order of removal was measured on.
pub struct Origin<'a> {
    /// Images or samples.
    pub count: usize,
    /// A hash of them.
    pub sha256: String,
    /// The transform of pictures.
    pub transform: Option<&'a Preprocess>,
}

/// The ancestor as a learngene that carries the order of removal.
///
/// # Errors
/// Those of typing, and of reading the file whose hash it notes.
pub fn carrying(model: &Model, removals: PruningOrder, origin: Option<Origin>) -> Result<Model> {
    let on = |e: Error| e.at(&model.path);
    let typing = Typing::new(model).map_err(on)?;
    let anatomy = Anatomy::new(&typing).map_err(on)?;
    let mut gene = Learngene::calibrated(&typing, &anatomy, removals);
    gene.source.file = model.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    gene.source.sha256 = sha256(&model.path)?;
    gene.source.parameters = parameters(model.graph());
    let transform = origin.as_ref().and_then(|o| o.transform);
    if let Some(origin) = origin {
        gene.source.images = origin.count;
        gene.source.images_sha256 = origin.sha256;
    }
    let mut out = gene.condense(model, &typing, &anatomy).map_err(on)?;
    keep_transform(&mut out, transform, None)?;
    Ok(out)
}

/// True where a descendant under this budget may be so small that dimensions of heads are cut.
pub fn may_cut_dims(budget: &Budget) -> bool {
    !matches!(budget, Budget::Share(share) if *share > CUT_DIMS)
}

/// How descendants are made.
#[derive(Clone, Debug, Default)]
pub struct JobOptions {
    /// Dimensions of heads are cut at every size.
    pub always_cut_dims: bool,
    /// What is constant at a fixed image size is computed once and written down.
    pub fold: bool,
    /// The largest error on held-out images.
    pub max_error: Option<f64>,
    /// What everything random follows from.
    pub seed: u64,
    /// The type of the file, where it is not the ancestor's. A budget of bytes is that of the file.
    pub dtype: Option<Dtype>,
}

/// Descendants of an ancestor.
pub struct Job<'m> {
    /// The ancestor.
    pub ancestor: &'m Model,
    /// In which order its heads and neurons go.
    pub removals: PruningOrder,
    /// What fits them; descendants are only thinned where there is none.
    pub shrinker: Option<Towers<'m>>,
    /// A runtime of the threads that a descendant will have.
    pub runtime: Arc<Runtime>,
    limits: Limits,
    options: JobOptions,
    latencies: Option<Latencies>,
    /// A sample of arrays.
    sample: Option<Values>,
    /// The ancestor as long as the samples of arrays.
    sized: Option<Model>,
}

impl<'m> Job<'m> {
    /// A job whose removals are known.
    pub fn new(
        ancestor: &'m Model,
        shrinker: Option<Towers<'m>>,
        removals: PruningOrder,
        limits: Limits,
        runtime: Arc<Runtime>,
        options: JobOptions,
    ) -> Job<'m> {
        let sample = shrinker.as_ref().and_then(Towers::sample);
        let sized = sample.as_ref().map(|sample| fixed_to(ancestor, sample));
        Job { ancestor, removals, shrinker, runtime, limits, options, latencies: None, sample, sized }
    }

    /// A sample that models are timed on, where they take arrays.
    pub fn sample(&self) -> Option<&Values> {
        self.sample.as_ref()
    }

    /// The ancestor, as long as the samples of arrays where it takes arrays.
    pub fn sized(&self) -> &Model {
        self.sized.as_ref().unwrap_or(self.ancestor)
    }

    /// Measures what blocks of the ancestor take in time, which budgets of time and the frontier go by. The first
    /// process measures.
    ///
    /// # Errors
    /// Those of [`Latencies::measure`].
    pub fn measure(&mut self, listener: &dyn Listener) -> Result<()> {
        let tell = |n, of| listener.progress("latency", n, of);
        let how = (self.sample(), self.options.fold);
        let measure = || Latencies::measure(&self.runtime, self.ancestor, &self.limits, how, &tell);
        self.latencies = Some(parallel::first(measure)?);
        Ok(())
    }

    /// Allocations from the whole model down to half of its heads and FFNs, as far as they go.
    pub fn frontier(&self) -> Vec<Allocation> {
        FRONTIER.iter().map_while(|&share| self.plan(&self.limits, Budget::Share(share)).ok()).collect()
    }

    fn plan(&self, limits: &Limits, budget: Budget) -> Result<Allocation> {
        plan(self.sized(), &self.removals, limits, budget, self.latencies.as_ref())
    }

    /// An allocation, which the first process decides on. One under a budget of time or bytes is made anew until the
    /// thinned model, or its file, keeps to it.
    ///
    /// # Errors
    /// Those of [`plan`]; under a budget of time, those of running the thinned model, and under one of bytes, those of
    /// converting it.
    pub fn allocate(&self, budget: Budget) -> Result<Allocation> {
        parallel::first(|| self.allocation(budget))
    }

    fn allocation(&self, budget: Budget) -> Result<Allocation> {
        let whole = Limits { dims: false, ..self.limits.clone() };
        let planned = |limits: &Limits| match budget {
            Budget::Bytes(wanted) => self.filling(limits, wanted),
            _ => self.plan(limits, budget),
        };
        let mut first = planned(&whole);
        // Without a fit the dimensions of heads cannot be cut.
        let small = || first.as_ref().map_or(true, |a| a.share <= CUT_DIMS);
        let cut = self.limits.dims && self.shrinker.is_some() && (self.options.always_cut_dims || small());
        let limits = if cut { &self.limits } else { &whole };
        if cut {
            first = planned(limits);
        }
        let mut allocation = first?;
        let (Budget::Latency(wanted), Some(latencies)) = (budget, &self.latencies) else { return Ok(allocation) };
        let mut asked = wanted;
        for _ in 0..TRIES {
            let thinned = thin(self.ancestor, &self.removals, &allocation)?;
            let how = (self.sample(), self.options.fold);
            let found = latencies.of(&self.runtime, self.ancestor, &thinned, how)?;
            allocation.latency = Some(found);
            if found <= wanted * (1.0 + SLACK) {
                return Ok(allocation);
            }
            asked *= wanted / found;
            allocation = Allocation { budget, ..self.plan(limits, Budget::Latency(asked))? };
        }
        Ok(allocation)
    }

    /// The allocation of the largest file of at most `wanted` bytes. What one byte of the ancestor comes to in the file
    /// depends on which weights go, so files are made and measured.
    fn filling(&self, limits: &Limits, wanted: f64) -> Result<Allocation> {
        let budget = Budget::Bytes(wanted);
        let whole = encoded_len(&self.sized().proto) as f64;
        if self.options.dtype.is_none() && wanted > whole {
            // The ancestor keeps to it as it is: a plan refuses that, as it does for parameters.
            return self.plan(limits, budget);
        }
        let all = self.plan(limits, Budget::Bytes(whole))?;
        // Bytes that were asked of the ancestor, and those of the file: too few or none, and too many.
        let (mut low, mut high) = ((0.0, 0.0), (whole, self.file_bytes(&all)?));
        if high.1 <= wanted {
            return Ok(Allocation { budget, bytes: high.1, ..all });
        }
        let mut best: Option<Allocation> = None;
        for turn in 0..FILES {
            // Halving takes turns with interpolation, which may come near its aim from one side only.
            let part = if turn % 2 == 0 { (wanted - low.1) / (high.1 - low.1) } else { 0.5 };
            let asked = low.0 + part * (high.0 - low.0);
            let Ok(allocation) = self.plan(limits, Budget::Bytes(asked)) else {
                low.0 = asked;
                continue;
            };
            let bytes = self.file_bytes(&allocation)?;
            if bytes > wanted {
                high = (asked, bytes);
                continue;
            }
            low = (asked, bytes);
            best = Some(Allocation { budget, bytes, ..allocation });
            if bytes >= FILLED * wanted {
                break;
            }
        }
        best.ok_or_else(|| {
            let what = format!("no file of {wanted} bytes can be made: the smallest that was has {}", high.1);
            Error::new(ErrorKind::Usage, what).hint("lower ⟦min-heads⟧ or ⟦min-ffn⟧, or allow more levers and layers")
        })
    }

    /// The bytes of the file of an allocation, with room for the notes. Fits change weights, and no sizes.
    fn file_bytes(&self, allocation: &Allocation) -> Result<f64> {
        let mut child = Shrunk::of(thin(self.ancestor, &self.removals, allocation)?, None)?;
        self.fold(&mut child)?;
        if let Some(dtype) = self.options.dtype {
            rounding::convert(&mut child.model, dtype)?;
        }
        self.describe(&mut child, allocation, None)?;
        Ok(encoded_len(&child.model.proto) as f64 + NOTES)
    }

    /// Thins the ancestor to an allocation, and fits what remains.
    ///
    /// # Errors
    /// Those of [`Towers::shrink`] and of [`thin`]; [`ErrorKind::Check`] where the error on held-out images is too
    /// large.
    pub fn make(&mut self, allocation: &Allocation, progress: Progress) -> Result<Shrunk> {
        let child = match &mut self.shrinker {
            Some(shrinker) => shrinker.shrink(&self.removals, allocation, progress)?,
            None => Shrunk::of(thin(self.ancestor, &self.removals, allocation)?, None)?,
        };
        match self.options.max_error {
            Some(limit) if child.error.is_nan() || child.error > limit => {
                let worst = child.errors.iter().max_by(|a, b| a.1.total_cmp(b.1));
                let of = match worst {
                    Some((tower, _)) => format!("the error of the {tower} tower on held-out samples"),
                    None => "the error on held-out images".into(),
                };
                let what = format!("{of} is {:.4}, above ⟦max-error⟧ {limit}: nothing was written", child.error);
                Err(Error::new(ErrorKind::Check, what)
                    .at(&self.ancestor.path)
                    .hint("keep more, or give more different images"))
            }
            _ => Ok(child),
        }
    }

    /// Computes what is constant in a descendant, where that is asked for and its image size is fixed.
    ///
    /// # Errors
    /// Those of [`fold_constants`].
    pub fn fold(&self, child: &mut Shrunk) -> Result<()> {
        if self.options.fold && has_fixed_size(&child.model) {
            child.model = fold_constants(&self.runtime, &child.model, None)?;
            child.parameters = parameters(child.model.graph());
        }
        Ok(())
    }

    /// Lets a descendant say where it comes from and how its images are prepared.
    ///
    /// # Errors
    /// Those of [`keep_transform`].
    pub fn describe(&self, child: &mut Shrunk, allocation: &Allocation, transform: Option<&Preprocess>) -> Result<()> {
        keep_transform(&mut child.model, transform, None)?;
        let mut description = json!({
            "schema": schema::DESCENDANT,
            "offshoot": env!("CARGO_PKG_VERSION"),
            "source": {"file": self.ancestor.path.file_name().map(|n| n.to_string_lossy())},
            "init": "shrink",
            "budget": allocation.budget,
            "share": allocation.share,
            "layers": allocation.layers,
            "error": child.error,
            "seed": self.options.seed,
        });
        if !child.errors.is_empty() {
            description["errors"] = json!(child.errors);
            description["output_errors"] = json!(child.outputs);
        }
        child.model.set_metadata(DESCENDANT, description.to_string());
        carry_value_info(self.ancestor, &mut child.model);
        Ok(())
    }
}
