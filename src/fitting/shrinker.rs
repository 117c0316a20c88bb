//! An ancestor that is shrunk: the steps in their order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::algebra::Covariance;
use super::blocks::{self, blocks};
use super::budget::{Allocation, Limits};
use super::calibration::Calibration;
use super::head_dims::{self, AttentionStatistics, HeadDimReduction, dimension_costs, local_errors};
use super::knapsack::curve;
use super::network::{Network, Progress, distance};
use super::prune::thin;
use super::refit::{self, Fitted, refit};
use super::subgraph::{Values, fixed_to};
use super::targets::{TargetLinear, find_targets, first_uses};
use crate::anatomy::{Anatomy, Roles};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph;
use crate::learngene::{BlockKind, BlockPruning, Dimensions, Learngene, PruningOrder, parameters};
use crate::onnx::{Model, encoded_len};
use crate::runtime::Runtime;

/// Seconds that a stage took.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The stage.
    pub stage: &'static str,
    /// Seconds.
    pub seconds: f64,
}

/// A descendant that was thinned and fitted.
pub struct Shrunk {
    /// The model.
    pub model: Model,
    /// Squared error of what leaves the encoder on held-out views, relative to the values themselves.
    pub error: f64,
    /// The same of each tower that was shrunk by itself, with its name; `error` is the largest. Empty where the model
    /// was not taken apart.
    pub errors: BTreeMap<String, f64>,
    /// The same of the outputs of these towers.
    pub outputs: BTreeMap<String, f64>,
    /// How matrices were fitted.
    pub fits: Vec<Fit>,
    /// Parameters.
    pub parameters: u64,
    /// Multiply-accumulate operations for one image.
    pub macs: u64,
    /// Bytes of the file.
    pub bytes: u64,
}

/// How a matrix was fitted.
#[derive(Clone, Debug, Serialize)]
pub struct Fit {
    /// The layer of the descendant.
    pub layer: usize,
    /// Heads or neurons.
    pub kind: BlockKind,
    /// What was chosen; none where the old matrix stayed.
    pub chosen: Option<refit::Chosen>,
}

/// An ancestor that is to be shrunk.
pub struct Shrinker<'m> {
    model: &'m Model,
    network: Network<'m>,
    runtime: Arc<Runtime>,
    calibration: Calibration,
    narrowed: Option<Narrowed>,
    /// Bytes of token streams that the fit holds in memory; what is above goes to a scratch file.
    pub memory_limit: u64,
    /// How long the stages took.
    pub timings: Vec<Timing>,
}

/// Attentions whose head dimension may be cut, with queries and keys, and statistics of the heads.
struct Narrowed {
    reductions: Vec<HeadDimReduction>,
    measured: Vec<AttentionStatistics>,
    statistics: Vec<Covariance>,
}

/// What [`Shrinker::memory_limit`] is where nothing else is asked for.
pub const MEMORY: u64 = 4 << 30;

impl<'m> Shrinker<'m> {
    /// Prepares an ancestor. `pinned` is the model as [`pin_on`](super::pin_on) gives it for each length of samples,
    /// the longest first; `runtime` should have one thread, as images are worked on side by side by the threads of
    /// rayon's pool.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a learngene whose heads are shared, and those of [`Network::new`].
    pub fn new(
        model: &'m Model,
        pinned: &'m [Model],
        runtime: &Arc<Runtime>,
        calibration: Calibration,
    ) -> Result<Shrinker<'m>> {
        if Learngene::read(model)?.is_some_and(|gene| !gene.is_identity()) {
            return Err(Error::new(ErrorKind::Usage, "the model is a learngene, whose heads are shared")
                .at(&model.path)
                .hint("give the ancestor, or grow a descendant from it"));
        }
        let start = Instant::now();
        let network = Network::of_lengths(runtime, pinned, calibration.mask.as_deref())?;
        // Their time is that of the graph, not of the first stage that asks for them.
        network.residual_paths()?;
        let timings = vec![Timing { stage: "graph", seconds: start.elapsed().as_secs_f64() }];
        Ok(Shrinker {
            model,
            network,
            runtime: runtime.clone(),
            calibration,
            narrowed: None,
            memory_limit: MEMORY,
            timings,
        })
    }

    /// Measures in which order heads and neurons go, and what that and leaving out whole layers cost.
    ///
    /// # Errors
    /// Those of the runtime; [`ErrorKind::Images`] for activations that are no numbers.
    pub fn analyse(
        &mut self,
        limits: &Limits,
        progress: &(dyn Fn(&'static str, usize, usize) + Sync),
    ) -> Result<PruningOrder> {
        let removable = blocks::removable(self.model, limits)?;
        let timings = &mut self.timings;
        let mut timed = |stage: &'static str, start: Instant| {
            timings.push(Timing { stage, seconds: start.elapsed().as_secs_f64() });
        };
        let start = Instant::now();
        let statistics = self.network.statistics(&self.calibration.fit, &|n, of| progress("statistics", n, of))?;
        timed("statistics", start);
        let start = Instant::now();
        let thinnings = self.network.thinnings(&statistics, &|n, of| progress("order", n, of))?;
        timed("order", start);
        let start = Instant::now();
        let images = self.calibration.first(&self.calibration.held_out, JUDGES);
        let tell = |n, of| progress("cost of blocks", n, of);
        let costs = self.network.sensitivities(&statistics, &thinnings, &removable, images, &tell)?;
        timed("cost of blocks", start);
        let dimensions = match limits.dims {
            true => {
                let start = Instant::now();
                let (found, own) = self.dimensions(&statistics, images, &|n, of| progress("head dimensions", n, of))?;
                self.narrowed = Some(own);
                self.timings.push(Timing { stage: "head dimensions", seconds: start.elapsed().as_secs_f64() });
                found
            }
            false => Vec::new(),
        };
        let own: Vec<Vec<f64>> = thinnings.iter().zip(&costs.blocks).map(|(t, m)| curve(&t.error, m)).collect();
        let blocks = self.network.linears.iter().zip(thinnings).enumerate().map(|(i, (linear, thinning))| {
            let of_all = |n: usize| self.network.uses(i).map(|j| own[j][n]).sum::<f64>() as f32;
            let error = (0..own[i].len()).map(of_all).collect();
            BlockPruning { layer: linear.layer, kind: linear.kind, kept: thinning.kept, error }
        });
        let layers = costs.layers.into_iter().map(|e| e.map(|e| e as f32).filter(|e| e.is_finite())).collect();
        let ([views, _], seed) = (self.calibration.counts(), self.calibration.seed);
        Ok(PruningOrder { blocks: blocks.collect(), layers, dimensions, views, seed })
    }

    /// What cutting head dimensions costs.
    fn dimensions(
        &self,
        statistics: &[Covariance],
        images: &[Values],
        progress: Progress,
    ) -> Result<(Vec<Dimensions>, Narrowed)> {
        let own = self.narrowed(statistics)?;
        let costs = dimension_costs(&self.network, statistics, &own.reductions, &own.measured, images, progress)?;
        let typing = &self.network.typing;
        let roles = Roles::new(typing);
        let mut found = Vec::new();
        for (i, n) in own.reductions.iter().enumerate() {
            if costs[i].iter().any(Vec::is_empty) {
                continue;
            }
            let weight = self.network.output_of_heads(n.layer)?;
            let local = local_errors(n, &own.measured[i], &own.statistics[i], &weight)?;
            let error = [0, 1].map(|k| curve(&local[k], &costs[i][k]).into_iter().map(|e| e as f32).collect());
            let unit = |f| blocks::unit(typing, &roles, f).map(|u| u / n.heads as f64);
            let joint = n.is_joint();
            let unit = [unit(n.factors[0]), if joint { [0.0; 3] } else { unit(n.factors[1]) }];
            found.push(Dimensions { layer: n.layer, of: n.of, joint, error, unit });
        }
        Ok((found, own))
    }

    /// The attentions whose head dimension may be cut, with what they are measured by.
    fn narrowed(&self, statistics: &[Covariance]) -> Result<Narrowed> {
        let reductions: Vec<HeadDimReduction> = head_dims::narrows_of(&self.network)?
            .into_iter()
            .filter(|n| self.network.site_of_heads(n.layer).is_some())
            .collect();
        let images = self.calibration.first(&self.calibration.fit, head_dims::IMAGES);
        let measured = head_dims::measure(&self.network, &reductions, images)?;
        let of = |n: &HeadDimReduction| self.network.site_of_heads(n.layer).map(|i| statistics[i].clone());
        let statistics = reductions.iter().filter_map(of).collect();
        Ok(Narrowed { reductions, measured, statistics })
    }

    /// The model that is shrunk.
    pub(super) fn model(&self) -> &'m Model {
        self.model
    }

    /// One of the longest samples that there are.
    pub(super) fn longest(&self) -> Option<Values> {
        self.calibration.longest()
    }

    /// Squared errors of the outputs of a descendant on held-out views, relative to the values themselves.
    ///
    /// # Errors
    /// Those of typing and of the runtime.
    pub(super) fn of_outputs(&self, child: &Model) -> Result<BTreeMap<String, f64>> {
        let names: Vec<String> = self.model.graph().output.iter().map(|o| o.name().to_string()).collect();
        let pinned = self.calibration.pin(child)?;
        let held_out = &self.calibration.held_out;
        let [old, new] = [self.network.values(&names, held_out)?, self.network(&pinned)?.values(&names, held_out)?];
        let error = |o: usize| {
            let sum = |f: &dyn Fn(usize) -> f64| (0..held_out.len()).map(f).sum::<f64>();
            let own = |i: usize| old[i][o].iter().map(|v| f64::from(*v).powi(2)).sum();
            sum(&|i| distance(&old[i][o..=o], &new[i][o..=o])) / sum(&own).max(f64::MIN_POSITIVE)
        };
        Ok(names.iter().enumerate().map(|(o, name)| (name.clone(), error(o))).collect())
    }

    /// What the user should know about the samples.
    pub(super) fn of_samples(&self) -> &[String] {
        &self.calibration.warnings
    }

    /// What the user should know about the model, the images and what stays as it is.
    ///
    /// # Errors
    /// Those of typing.
    pub fn warnings(&self, limits: &Limits) -> Result<Vec<String>> {
        let mut warnings = blocks(self.model, limits)?.1;
        warnings.extend(self.network.warnings.iter().cloned());
        warnings.extend(self.of_samples().iter().cloned());
        Ok(warnings)
    }

    /// Thins and fits.
    ///
    /// # Errors
    /// Those of surgery, of typing and of the runtime.
    pub fn shrink(&mut self, removals: &PruningOrder, allocation: &Allocation, progress: Progress) -> Result<Shrunk> {
        let start = Instant::now();
        let mut model = thin(self.model, removals, allocation)?;
        if allocation.layers.iter().any(|l| l.dims.is_some()) {
            model = self.cut(&model, removals, allocation)?;
        }
        let (mut error, mut fits) = (0.0, Vec::new());
        if model.graph() != self.model.graph() {
            let pinned = self.calibration.pin(&model)?;
            let child = self.network(&pinned)?;
            let sources = allocation.kept_layers();
            let counts: Vec<usize> = child.linears.iter().map(|s| s.units).collect();
            let planned: Vec<usize> = self
                .network
                .linears
                .iter()
                .filter(|s| sources.contains(&s.layer))
                .map(|s| allocation.count(s.layer, s.kind).unwrap_or(s.units))
                .collect();
            if counts != planned {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the resized graph has {counts:?} heads and neurons where {planned:?} were planned"),
                )
                .at(&self.model.path)
                .hint("this graph ties axes in a way that Offshoot does not resize yet; use ⟦only-layers⟧"));
            }
            let found = self.fit(&child, &sources, progress)?;
            error = found.error;
            model = write(&model, &found.fitted)?;
            fits = found.fitted.iter().map(|f| Fit { layer: f.layer, kind: f.kind, chosen: f.chosen }).collect();
        }
        self.timings.push(Timing { stage: "refit", seconds: start.elapsed().as_secs_f64() });
        Ok(Shrunk { error, fits, ..Shrunk::of(model, self.sample().as_ref())? })
    }

    fn network<'c>(&self, pinned: &'c [Model]) -> Result<Network<'c>> {
        Network::of_lengths(&self.runtime, pinned, self.calibration.mask.as_deref())
    }

    /// A sample that models are timed on, where they take arrays.
    pub fn sample(&self) -> Option<Values> {
        self.calibration.sample()
    }

    /// Puts the projections of heads that were cut into a model of their shape.
    fn cut(&mut self, model: &Model, removals: &PruningOrder, allocation: &Allocation) -> Result<Model> {
        let own = match self.narrowed.take() {
            Some(own) => own,
            None => self.narrowed(&self.network.statistics(&self.calibration.fit, &|_, _| {})?)?,
        };
        let mut cuts = Vec::new();
        for (layer, l) in allocation.kept_layers().into_iter().enumerate() {
            if allocation.layers[l].dims.is_none() {
                continue;
            }
            let Some(i) = own.reductions.iter().position(|n| n.layer == l) else {
                bail!(Unsupported, "the head dimension of layer {l} cannot be cut")
            };
            let units = own.reductions[i].heads;
            let count = allocation.count(l, BlockKind::Heads).unwrap_or(units);
            let heads = removals.block(l, BlockKind::Heads).map_or((0..units).collect(), |b| b.kept.at(count));
            let (narrow, measured) = (&own.reductions[i], &own.measured[i]);
            cuts.push(head_dims::Truncation { narrow, measured, statistics: &own.statistics[i], layer, heads });
        }
        let pinned = self.calibration.pin(model)?;
        let Some(longest) = pinned.first() else { bail!(Internal, "there is no sample") };
        let out = head_dims::write(&self.runtime, &self.network, &cuts, longest, model)?;
        self.narrowed = Some(own);
        Ok(out)
    }

    fn fit(&self, child: &Network, sources: &[usize], progress: Progress) -> Result<refit::Refit> {
        let Calibration { fit, held_out, .. } = &self.calibration;
        refit(&self.network, child, sources, fit, held_out, self.memory_limit, progress)
    }

    /// Fits the output projections and last FFN matrices of a descendant that was grown in any other way. Its layer l
    /// is built like layer `sources[l]` of the ancestor. Matrices that held-out images do not speak for stay as they
    /// are, and so does everything where nothing was removed.
    ///
    /// # Errors
    /// Those of typing and of the runtime.
    pub fn refit(&self, child: &Model, sources: &[usize], progress: Progress) -> Result<(Model, f64)> {
        let pinned = self.calibration.pin(child)?;
        let network = self.network(&pinned)?;
        let found = self.fit(&network, sources, progress)?;
        Ok((write(child, &found.fitted)?, found.error))
    }
}

impl Shrunk {
    /// A descendant as it is, not fitted; operations are those for `sample`, where models take arrays.
    ///
    /// # Errors
    /// Those of typing.
    pub fn of(model: Model, sample: Option<&Values>) -> Result<Shrunk> {
        let sized = sample.map(|sample| fixed_to(&model, sample));
        let (parameters, macs) = (parameters(model.graph()), Typing::new(sized.as_ref().unwrap_or(&model))?.macs());
        drop(sized);
        let bytes = encoded_len(&model.proto);
        let (errors, outputs) = (BTreeMap::new(), BTreeMap::new());
        Ok(Shrunk { model, error: 0.0, errors, outputs, fits: Vec::new(), parameters, macs, bytes })
    }
}

/// Views of held-out images that the costs of blocks are measured on.
const JUDGES: usize = 8;

/// Puts fitted matrices into a model.
fn write(model: &Model, fitted: &[Fitted]) -> Result<Model> {
    let typing = Typing::new(model)?;
    let (places, _) = find_targets(&typing, &Anatomy::new(&typing)?);
    let first = first_uses(&places);
    let mut out = model.clone();
    for fit in fitted.iter().filter(|f| f.chosen.is_some()) {
        let Some(i) = places.iter().position(|s| (s.layer, s.kind) == (fit.layer, fit.kind)) else {
            bail!(Internal, "the matrix of layer {} has disappeared", fit.layer)
        };
        // A matrix that is used several times is written once, for all its uses.
        if first[i] == i {
            let again: Vec<&TargetLinear> =
                (i + 1..places.len()).filter(|&j| first[j] == i).map(|j| &places[j]).collect();
            places[i].write(&again, &typing, &mut out, &fit.matrix, &fit.bias)?;
        }
    }
    graph::prune(out.graph_mut());
    Ok(out)
}
