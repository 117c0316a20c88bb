//! Latency: what blocks of every size take on this machine, measured once.
//!
//! Blocks of the same shape take the same time, so all of them are thinned together to a few sizes, and the whole model
//! is timed beside its thinned self, taking turns, so that a machine that slows down slows both. A share of the
//! difference is each block's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ndarray::Array4;
use serde::{Deserialize, Serialize};

use super::blocks::{Block, blocks, counts};
use super::budget::Limits;
use super::prune::cut;
use super::subgraph::{Values, fixed_to};
use crate::axes::Typing;
use crate::descendant::{fold_constants, has_fixed_size};
use crate::error::Result;
use crate::learngene::BlockKind;
use crate::onnx::Model;
use crate::runtime::{Runtime, Session};

/// Shares of a block's units that are timed.
const LEVELS: [f64; 3] = [0.25, 0.5, 0.75];
/// Runs that a median is taken of, at least and at most, and the time after which no more are made.
const RUNS: [usize; 2] = [7, 40];
const TIME: Duration = Duration::from_millis(1500);

/// Milliseconds of a model and of its blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Latencies {
    /// One image through the whole model, as it would be written.
    pub whole: f64,
    /// For every block: counts, ascending, and what is saved there.
    saved: Vec<Vec<(usize, f64)>>,
}

impl Latencies {
    /// Measures on a runtime that has the threads that the descendant will have, on `sample`, or where there is none on
    /// an image. `fold` times models with their constants folded.
    ///
    /// # Errors
    /// Those of surgery and of the runtime.
    pub fn measure(
        runtime: &Arc<Runtime>,
        model: &Model,
        limits: &Limits,
        (sample, fold): (Option<&Values>, bool),
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Latencies> {
        let (blocks, _) = blocks(model, limits)?;
        let mut whole = Timed::new(runtime, model, sample, fold)?;
        let alone = pair(&mut whole, None)?.0;
        // Blocks of one shape.
        let alike = |a: &Block, b: &Block| (a.kind, a.units, a.free, a.unit) == (b.kind, b.units, b.free, b.unit);
        let mut groups: Vec<Vec<usize>> = Vec::new();
        for (i, block) in blocks.iter().enumerate().filter(|(_, b)| b.free) {
            match groups.iter_mut().find(|g| alike(&blocks[g[0]], block)) {
                Some(group) => group.push(i),
                None => groups.push(vec![i]),
            }
        }
        let all: Vec<usize> = (0..=blocks.iter().map(|b| b.layer).max().unwrap_or(0)).collect();
        let mut saved: Vec<Vec<(usize, f64)>> = blocks.iter().map(|b| vec![(b.units, 0.0)]).collect();
        for (g, group) in groups.iter().enumerate() {
            progress(g, groups.len());
            let block = &blocks[group[0]];
            let possible = counts(block, limits);
            let near = |share: f64| {
                let want = share * block.units as f64;
                possible.iter().copied().min_by(|&a, &b| (a as f64 - want).abs().total_cmp(&(b as f64 - want).abs()))
            };
            let mut levels: Vec<usize> =
                LEVELS.iter().filter_map(|&s| near(s)).chain(possible.first().copied()).collect();
            levels.sort_unstable();
            levels.dedup();
            levels.retain(|&n| n < block.units);
            let mut table: Vec<(usize, f64)> = Vec::new();
            for count in levels {
                let units: Vec<(usize, BlockKind, Vec<usize>)> =
                    group.iter().map(|&b| (blocks[b].layer, blocks[b].kind, (0..count).collect())).collect();
                let mut thin = Timed::new(runtime, &cut(model, &all, units, Vec::new())?, sample, fold)?;
                let (a, b) = pair(&mut whole, Some(&mut thin))?;
                table.push((count, (alone * (1.0 - b / a) / group.len() as f64).max(0.0)));
            }
            table.push((block.units, 0.0));
            // More units never take less time.
            for i in (0..table.len().saturating_sub(1)).rev() {
                table[i].1 = table[i].1.max(table[i + 1].1);
            }
            group.iter().for_each(|&b| saved[b] = table.clone());
        }
        Ok(Latencies { whole: alone, saved })
    }

    /// Milliseconds of a thinned model, by the same clock as [`Self::whole`].
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn of(
        &self,
        runtime: &Arc<Runtime>,
        model: &Model,
        thin: &Model,
        (sample, fold): (Option<&Values>, bool),
    ) -> Result<f64> {
        let timed = |model| Timed::new(runtime, model, sample, fold);
        let (a, b) = pair(&mut timed(model)?, Some(&mut timed(thin)?))?;
        Ok(self.whole * b / a)
    }

    /// What a block of some count takes above its smallest size.
    pub fn cost(&self, block: usize, count: usize) -> f64 {
        let Some(table) = self.saved.get(block) else { return 0.0 };
        let most = table.first().map_or(0.0, |t| t.1);
        let saved = match table.iter().position(|t| t.0 >= count) {
            None => 0.0,
            Some(0) => most,
            Some(i) => {
                let ((x, a), (y, b)) = (table[i - 1], table[i]);
                a + (b - a) * (count - x) as f64 / (y - x) as f64
            }
        };
        most - saved
    }
}

/// A model that is timed on one sample.
struct Timed {
    session: Session,
    sample: Values,
}

impl Timed {
    fn new(runtime: &Arc<Runtime>, model: &Model, sample: Option<&Values>, fold: bool) -> Result<Timed> {
        let folded;
        let model = if fold && has_fixed_size(model) {
            folded = fold_constants(runtime, model, None)?;
            &folded
        } else {
            model
        };
        if let Some(sample) = sample {
            let fixed = fixed_to(model, sample);
            let session = runtime.load(&fixed, 1, Typing::new(&fixed)?.image_size())?;
            return Ok(Timed { session, sample: sample.clone() });
        }
        let session = runtime.load(model, 1, Typing::new(model)?.image_size())?;
        // Any image does, as long as it makes no denormal numbers.
        let shape = session.inputs.first().map(|i| i.fixed()).transpose()?.unwrap_or_default();
        let [n, c, h, w] = shape[..] else { bail!(Unsupported, "times are measured on images") };
        let image =
            Array4::from_shape_fn([n, c, h, w], |(_, c, y, x)| ((3 * c + 5 * y + 7 * x) % 17) as f32 / 8.0 - 1.0);
        Ok(Timed { session, sample: Values::from([("image".to_string(), image.into_dyn())]) })
    }

    fn run(&mut self) -> Result<f64> {
        let per_image = self.session.batch.max(1) as f64;
        let arrays: Vec<_> = self.sample.iter().map(|(name, array)| (name.as_str(), array.view())).collect();
        Ok(1e3 * self.session.seconds(&arrays)? / per_image)
    }
}

/// Median milliseconds of one model, or of two that take turns.
fn pair(a: &mut Timed, mut b: Option<&mut Timed>) -> Result<(f64, f64)> {
    let mut times = (Vec::new(), Vec::new());
    let start = Instant::now();
    a.run()?;
    b.as_mut().map(|b| b.run()).transpose()?;
    while times.0.len() < RUNS[0] || times.0.len() < RUNS[1] && start.elapsed() < TIME {
        times.0.push(a.run()?);
        if let Some(b) = b.as_mut() {
            times.1.push(b.run()?);
        }
    }
    let median = |mut list: Vec<f64>| {
        list.sort_by(f64::total_cmp);
        list.get(list.len() / 2).copied().unwrap_or(0.0)
    };
    Ok((median(times.0), median(times.1)))
}

/// Milliseconds of one sample, or of an image where there is none, through a model and through another, taking turns:
/// medians.
///
/// # Errors
/// Those of the runtime.
pub fn side_by_side(runtime: &Arc<Runtime>, a: &Model, b: &Model, sample: Option<&Values>) -> Result<(f64, f64)> {
    pair(&mut Timed::new(runtime, a, sample, false)?, Some(&mut Timed::new(runtime, b, sample, false)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fitting::{Budget, plan};
    use crate::learngene::{BlockPruning, KeepOrder, PruningOrder};

    #[test]
    fn a_budget_of_time_is_kept() {
        let mut model = Model::open(std::path::Path::new("models/fashion-vit.onnx")).unwrap();
        crate::graph::prepare(&mut model).unwrap();
        let limits = Limits { depth: false, ..Limits::default() };
        let (blocks, _) = blocks(&model, &limits).unwrap();
        let removals = PruningOrder {
            blocks: blocks
                .iter()
                .map(|b| BlockPruning {
                    layer: b.layer,
                    kind: b.kind,
                    kept: KeepOrder::Order((0..b.units).collect()),
                    error: (0..=b.units).map(|n| 1.0 - n as f32 / b.units as f32).collect(),
                })
                .collect(),
            layers: vec![None; 8],
            ..PruningOrder::default()
        };
        // Heads take three quarters of a millisecond a layer, neurons a quarter: 8 of 10 in all.
        let of = |b: &Block| if b.kind == BlockKind::Heads { 0.75 } else { 0.25 };
        let saved = blocks.iter().map(|b| vec![(0, of(b)), (b.units, 0.0)]).collect();
        let latencies = Latencies { whole: 10.0, saved };
        let found = plan(&model, &removals, &limits, Budget::Latency(6.0), Some(&latencies)).unwrap();
        assert!((5.8..=6.0).contains(&found.latency.unwrap()), "{:?}", found.latency);
        // A head saves more time than as large a share of the neurons, at the same error.
        let kept =
            |f: fn(&crate::fitting::LayerBudget) -> Option<usize>| found.layers.iter().filter_map(f).sum::<usize>();
        assert!(kept(|l| l.heads) < 40 && kept(|l| l.neurons) == kept(|l| l.of_neurons));
        assert!(plan(&model, &removals, &limits, Budget::Latency(1.9), Some(&latencies)).is_err());
        assert!(plan(&model, &removals, &limits, Budget::Latency(11.0), Some(&latencies)).is_err());
        assert!(plan(&model, &removals, &limits, Budget::Latency(6.0), None).is_err());
    }

    #[test]
    fn costs_lie_between_what_was_measured() {
        let found = Latencies { whole: 10.0, saved: vec![vec![(2, 3.0), (4, 1.0), (8, 0.0)], vec![(6, 0.0)]] };
        let costs: Vec<f64> = [2, 3, 4, 6, 8].iter().map(|&n| found.cost(0, n)).collect();
        assert_eq!(costs, [0.0, 1.0, 2.0, 2.5, 3.0]);
        assert_eq!((found.cost(0, 0), found.cost(1, 6), found.cost(1, 3)), (0.0, 0.0, 0.0));
    }
}
