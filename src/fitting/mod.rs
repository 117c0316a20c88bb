//! Fitting: smaller networks in closed form, on a few dozen unlabelled images, without gradients.
//!
//! The steps: statistics of what enters the output projections and the last FFN matrices ([`network`]); which heads and neurons go
//! first ([`order`]); what thinning each block costs at the end of the network; where to cut under a budget ([`allocation`]); the
//! descendant by the surgery that everything else uses; and its matrices fitted in order of execution, each correcting the errors of
//! those before it ([`mod@refit`]).

pub mod algebra;
pub mod allocation;
pub mod calibration;
pub mod network;
pub mod order;
pub mod refit;
pub mod sites;
pub mod stages;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use crate::anatomy::{Anatomy, Roles};
use crate::axes::resize::{Plan, resize};
use crate::axes::{Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph;
use crate::learngene::{METADATA, parameters};
use crate::onnx::{Model, element_count, encoded_len, is_float, payload};
use crate::runtime::Runtime;
use allocation::{Choice, allocate, curve};
pub use calibration::Calibration;
use network::Network;
pub use network::Progress;
use order::Thinning;
use refit::{Fitted, refit};
use sites::{Kind, Way};

/// What may be thinned, and how far.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Thin heads.
    pub heads: bool,
    /// Thin neurons.
    pub neurons: bool,
    /// Layers that may be touched; all where none are named.
    pub layers: Option<Vec<usize>>,
    /// Heads that every layer keeps at least.
    pub min_heads: usize,
    /// Neurons that every FFN keeps at least.
    pub min_neurons: usize,
    /// Neurons are kept in multiples of this.
    pub multiple: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { heads: true, neurons: true, layers: None, min_heads: 1, min_neurons: 16, multiple: 16 }
    }
}

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// The share of the parameters of all heads and FFNs that is kept.
    Share(f64),
    /// Parameters of the whole model.
    Parameters(f64),
    /// Multiply-accumulate operations of the whole model for one image.
    Macs(f64),
    /// Bytes of the file.
    Bytes(f64),
}

/// Seconds that a stage took.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    /// The stage.
    pub stage: &'static str,
    /// Seconds.
    pub seconds: f64,
}

/// A block of heads or neurons.
#[derive(Clone, Debug)]
struct Block {
    layer: usize,
    kind: Kind,
    units: usize,
    /// True where it may be thinned.
    free: bool,
    /// Parameters, operations and bytes of one unit.
    unit: [f64; 3],
}

/// What is known of an ancestor before it is thinned: order of removal and costs.
pub struct Analysis {
    blocks: Vec<Block>,
    thinnings: Vec<Thinning>,
    curves: Vec<Vec<f64>>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One layer of a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedLayer {
    /// Heads that are kept.
    pub heads: Option<usize>,
    /// Heads that there were.
    pub of_heads: Option<usize>,
    /// Neurons that are kept.
    pub neurons: Option<usize>,
    /// Neurons that there were.
    pub of_neurons: Option<usize>,
}

/// Counts for every block, and what is predicted of them.
#[derive(Clone, Debug, Serialize)]
pub struct Allocation {
    /// The budget.
    pub budget: Budget,
    /// Heads or neurons of every block.
    #[serde(skip)]
    counts: Vec<usize>,
    /// By layer.
    pub layers: Vec<PlannedLayer>,
    /// Sum of the errors of the blocks, each measured alone.
    pub predicted_error: f64,
    /// The share of the parameters of all heads and FFNs that is kept.
    pub share: f64,
}

/// A descendant that was thinned and fitted.
pub struct Shrunk {
    /// The model.
    pub model: Model,
    /// Squared error of what leaves the encoder on held-out views, relative to the values themselves.
    pub error: f64,
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
    /// The layer.
    pub layer: usize,
    /// Heads or neurons.
    pub kind: Kind,
    /// What was chosen; none where the old matrix stayed.
    pub chosen: Option<refit::Chosen>,
}

/// An ancestor that is to be shrunk.
pub struct Shrinker<'m> {
    model: &'m Model,
    network: Network<'m>,
    ways: Vec<Option<Way>>,
    runtime: Arc<Runtime>,
    calibration: Calibration,
    /// How long the stages took.
    pub timings: Vec<Timing>,
}

/// The factor of a layer's heads or neurons.
fn factor(typing: &Typing, anatomy: &Anatomy, layer: usize, kind: Kind) -> Option<Factor> {
    let layer = anatomy.layers.get(layer)?;
    match kind {
        Kind::Heads => layer.head_factor(typing),
        Kind::Neurons => layer.ffn.as_ref()?.hidden_factor(typing),
    }
}

impl<'m> Shrinker<'m> {
    /// Prepares an ancestor. `pinned` is the model as [`stages::pin`] gives it; `runtime` should have one thread, as images are worked
    /// on side by side by the threads of rayon's pool.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a learngene, and those of [`Network::new`].
    pub fn new(
        model: &'m Model,
        pinned: &'m Model,
        runtime: &Arc<Runtime>,
        calibration: Calibration,
    ) -> Result<Shrinker<'m>> {
        if model.metadata(METADATA).is_some() {
            return Err(Error::new(ErrorKind::Usage, "the model is a learngene, whose heads are shared")
                .at(&model.path)
                .hint("give the ancestor, or grow a descendant from it"));
        }
        let start = Instant::now();
        let network = Network::new(runtime, pinned)?;
        let ways = network.ways()?;
        let timings = vec![Timing { stage: "graph", seconds: start.elapsed().as_secs_f64() }];
        Ok(Shrinker { model, network, ways, runtime: runtime.clone(), calibration, timings })
    }

    /// Measures in which order heads and neurons go, and what that costs.
    ///
    /// # Errors
    /// Those of the runtime; [`ErrorKind::Images`] for activations that are no numbers.
    pub fn analyse(
        &mut self,
        limits: &Limits,
        progress: &(dyn Fn(&'static str, usize, usize) + Sync),
    ) -> Result<Analysis> {
        let (blocks, mut warnings) = self.blocks(limits)?;
        warnings.extend(self.network.warnings.iter().cloned());
        warnings.extend(self.calibration.warnings.iter().cloned());
        let timings = &mut self.timings;
        let mut timed = |stage: &'static str, start: Instant| {
            timings.push(Timing { stage, seconds: start.elapsed().as_secs_f64() });
        };
        let start = Instant::now();
        let statistics = self.network.statistics(&self.calibration.fit, &|n, of| progress("statistics", n, of))?;
        timed("statistics", start);
        let start = Instant::now();
        let thinnings = self.network.thinnings(&statistics, &self.ways, &|n, of| progress("order", n, of))?;
        timed("order", start);
        let start = Instant::now();
        let images = &self.calibration.held_out[..self.calibration.held_out.len().min(JUDGES)];
        let costs =
            self.network.sensitivities(&statistics, &thinnings, images, &|n, of| progress("cost of blocks", n, of))?;
        timed("cost of blocks", start);
        let curves = thinnings.iter().zip(&costs).map(|(t, c)| curve(&t.error, c)).collect();
        Ok(Analysis { blocks, thinnings, curves, warnings })
    }

    /// The blocks of the ancestor, one a site.
    fn blocks(&self, limits: &Limits) -> Result<(Vec<Block>, Vec<String>)> {
        let typing = Typing::new(self.model)?;
        let anatomy = Anatomy::new(&typing)?;
        let roles = Roles::new(&typing);
        let root = |layer, kind| factor(&typing, &anatomy, layer, kind).map(|f| typing.factors.root(f));
        let mut uses: HashMap<Factor, usize> = HashMap::new();
        for site in &self.network.sites {
            if let Some(f) = root(site.layer, site.kind) {
                *uses.entry(f).or_default() += 1;
            }
        }
        let mut warnings = Vec::new();
        if let Some(layers) = &limits.layers
            && let Some(l) = layers.iter().find(|l| **l >= anatomy.layers.len())
        {
            bail!(Usage, "there is no layer {l}, only {}", anatomy.layers.len());
        }
        let blocks = self.network.sites.iter().map(|site| {
            let f = root(site.layer, site.kind);
            let alone = f.is_some_and(|f| uses[&f] == 1);
            if f.is_some() && !alone {
                warnings
                    .push(format!("layer {}: its {:?} are shared with another layer and stay", site.layer, site.kind));
            }
            let asked = match site.kind {
                Kind::Heads => limits.heads,
                Kind::Neurons => limits.neurons,
            } && limits.layers.as_ref().is_none_or(|l| l.contains(&site.layer));
            let mut unit = [0.0; 3];
            if let Some(f) = f {
                let units = typing.factors.factor_size(f).max(1) as f64;
                for u in roles.carriers(f) {
                    let t = typing.weights[typing.uses[u].name.as_str()];
                    if is_float(t) {
                        unit[0] += element_count(t).unwrap_or(0) as f64 / units;
                        unit[2] += payload(t).len() as f64 / units;
                    }
                }
                let carries = |name: &str| {
                    typing.dims.get(name).is_some_and(|dims| dims.iter().any(|d| typing.factors.leaves(d).contains(&f)))
                };
                for c in &typing.contractions {
                    let node = &typing.graph.node[c.node];
                    if typing.factors.leaves(&c.summed).contains(&f) || node.output.iter().any(|o| carries(o)) {
                        unit[1] += c.macs as f64 / typing.batch_size().max(1) as f64 / units;
                    }
                }
            }
            Block { layer: site.layer, kind: site.kind, units: site.units, free: asked && alone && site.divides, unit }
        });
        Ok((blocks.collect(), warnings))
    }

    /// Finds the counts of heads and neurons under a budget.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a budget that cannot be met, or that is above the ancestor.
    pub fn allocate(&self, analysis: &Analysis, limits: &Limits, budget: Budget) -> Result<Allocation> {
        let typing = Typing::new(self.model)?;
        let (measure, whole, wanted) = match budget {
            Budget::Share(s) => (0, 0.0, s),
            Budget::Parameters(n) => (0, parameters(self.model.graph()) as f64, n),
            Budget::Macs(n) => (1, typing.macs() as f64, n),
            Budget::Bytes(n) => (2, encoded_len(&self.model.proto) as f64, n),
        };
        let of_blocks: f64 = analysis.blocks.iter().map(|b| b.unit[measure] * b.units as f64).sum();
        let budget_of_blocks = match budget {
            Budget::Share(s) => {
                if !(s > 0.0 && s <= 1.0) {
                    bail!(Usage, "a share is above 0 and up to 100 %, not {:.1} %", 100.0 * s);
                }
                s * of_blocks
            }
            _ if wanted > whole => {
                return Err(Error::new(
                    ErrorKind::Usage,
                    format!("the budget {wanted} is above the ancestor's {whole}"),
                )
                .at(&self.model.path)
                .hint("a descendant is smaller than its ancestor: give less"));
            }
            _ => wanted - (whole - of_blocks),
        };
        let fixed: f64 = analysis.blocks.iter().filter(|b| !b.free).map(|b| b.unit[measure] * b.units as f64).sum();
        let free: Vec<usize> = (0..analysis.blocks.len()).filter(|&i| analysis.blocks[i].free).collect();
        let choices: Vec<Vec<Choice>> = free
            .iter()
            .map(|&i| {
                let b = &analysis.blocks[i];
                counts(b, limits)
                    .into_iter()
                    .map(|count| Choice {
                        count,
                        cost: count as f64 * b.unit[measure],
                        error: analysis.curves[i][count],
                    })
                    .collect()
            })
            .collect();
        let chosen = allocate(&choices, (budget_of_blocks - fixed).max(0.0))?;
        let mut all: Vec<usize> = analysis.blocks.iter().map(|b| b.units).collect();
        for (&i, c) in free.iter().zip(&chosen) {
            all[i] = c.count;
        }
        let parameters =
            |counts: &[usize]| -> f64 { analysis.blocks.iter().zip(counts).map(|(b, &n)| b.unit[0] * n as f64).sum() };
        let units: Vec<usize> = analysis.blocks.iter().map(|b| b.units).collect();
        let layers = 1 + analysis.blocks.iter().map(|b| b.layer).max().unwrap_or(0);
        let none = PlannedLayer { heads: None, of_heads: None, neurons: None, of_neurons: None };
        let mut planned = vec![none; layers];
        for (b, &count) in analysis.blocks.iter().zip(&all) {
            let l = &mut planned[b.layer];
            match b.kind {
                Kind::Heads => (l.heads, l.of_heads) = (Some(count), Some(b.units)),
                Kind::Neurons => (l.neurons, l.of_neurons) = (Some(count), Some(b.units)),
            }
        }
        Ok(Allocation {
            budget,
            share: parameters(&all) / parameters(&units).max(f64::MIN_POSITIVE),
            counts: all,
            layers: planned,
            predicted_error: chosen.iter().map(|c| c.error).sum(),
        })
    }

    /// Thins and fits.
    ///
    /// # Errors
    /// Those of surgery, of typing and of the runtime.
    pub fn shrink(&mut self, analysis: &Analysis, allocation: &Allocation, progress: Progress) -> Result<Shrunk> {
        let start = Instant::now();
        let typing = Typing::new(self.model)?;
        let anatomy = Anatomy::new(&typing)?;
        let mut plan = Plan::default();
        for ((b, thinning), &count) in analysis.blocks.iter().zip(&analysis.thinnings).zip(&allocation.counts) {
            if count == b.units {
                continue;
            }
            // Heads that are mixed go together before and behind the mixing.
            let factors = match b.kind {
                Kind::Heads => anatomy.layers[b.layer].head_factors(&typing),
                Kind::Neurons => factor(&typing, &anatomy, b.layer, b.kind).into_iter().collect(),
            };
            for factor in factors {
                plan.gather(&typing.factors, factor, thinning.kept(count))?;
            }
        }
        let mut model = self.model.clone();
        let (mut error, mut fits) = (0.0, Vec::new());
        if !plan.is_empty() {
            model.proto.graph = Some(resize(&typing, &plan)?);
            graph::prune(model.graph_mut());
            let pinned = stages::pin(&model)?;
            let child = Network::new(&self.runtime, &pinned)?;
            let counts: Vec<usize> = child.sites.iter().map(|s| s.units).collect();
            if counts != allocation.counts {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "the resized graph has {counts:?} heads and neurons where {:?} were planned",
                        allocation.counts
                    ),
                )
                .at(&self.model.path)
                .hint("this graph ties axes in a way that Offshoot does not resize yet; use --only-layers"));
            }
            let sources: Vec<usize> = (0..anatomy.layers.len()).collect();
            let found = self.fit(&child, &sources, progress)?;
            error = found.error;
            model = write(&model, &found.fitted)?;
            fits = found.fitted.iter().map(|f| Fit { layer: f.layer, kind: f.kind, chosen: f.chosen }).collect();
        }
        self.timings.push(Timing { stage: "refit", seconds: start.elapsed().as_secs_f64() });
        let (parameters, macs) = (parameters(model.graph()), Typing::new(&model)?.macs());
        let bytes = encoded_len(&model.proto);
        Ok(Shrunk { model, error, fits, parameters, macs, bytes })
    }
}

impl Shrinker<'_> {
    fn fit(&self, child: &Network, sources: &[usize], progress: Progress) -> Result<refit::Refit> {
        let Calibration { fit, held_out, .. } = &self.calibration;
        refit(&self.network, &self.ways, child, sources, fit, held_out, progress)
    }

    /// Fits the output projections and last FFN matrices of a descendant that was grown in any other way. Its layer l is built like
    /// layer `sources[l]` of the ancestor. Matrices that held-out images do not speak for stay as they are, and so does everything
    /// where nothing was removed.
    ///
    /// # Errors
    /// Those of typing and of the runtime.
    pub fn refit(&self, child: &Model, sources: &[usize], progress: Progress) -> Result<(Model, f64)> {
        let pinned = stages::pin(child)?;
        let network = Network::new(&self.runtime, &pinned)?;
        let found = self.fit(&network, sources, progress)?;
        Ok((write(child, &found.fitted)?, found.error))
    }
}

/// Views of held-out images that the costs of blocks are measured on.
const JUDGES: usize = 8;

/// Puts fitted matrices into a model.
fn write(model: &Model, fitted: &[Fitted]) -> Result<Model> {
    let typing = Typing::new(model)?;
    let (places, _) = sites::sites(&typing, &Anatomy::new(&typing)?);
    let mut out = model.clone();
    for fit in fitted.iter().filter(|f| f.chosen.is_some()) {
        let Some(site) = places.iter().find(|s| (s.layer, s.kind) == (fit.layer, fit.kind)) else {
            bail!(Internal, "the matrix of layer {} has disappeared", fit.layer)
        };
        site.write(&typing, &mut out, &fit.matrix, &fit.bias)?;
    }
    graph::prune(out.graph_mut());
    Ok(out)
}

/// The counts that a block may have, ascending.
fn counts(block: &Block, limits: &Limits) -> Vec<usize> {
    let (least, multiple) = match block.kind {
        Kind::Heads => (limits.min_heads, 1),
        Kind::Neurons => (limits.min_neurons.max(2), limits.multiple.max(1)),
    };
    // A wide FFN is not divided finer than a table of choices can hold.
    let multiple = multiple * block.units.div_ceil(multiple * 256);
    let mut counts: Vec<usize> = (1..).map(|i| i * multiple).take_while(|&n| n < block.units).collect();
    counts.retain(|&n| n >= least);
    counts.push(block.units);
    counts
}
