//! Allocation: the counts of heads, neurons and layers under a budget whose predicted errors are least.

use std::collections::HashMap;

use super::blocks::{Block, blocks, counts};
use super::budget::{Allocation, Budget, LayerBudget, Limits};
use super::knapsack::{Choice, LayerChoices, allocate};
use super::latency::Latencies;
use crate::anatomy::{Anatomy, Stack};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::{BlockKind, Dimensions, PruningOrder, parameters};
use crate::onnx::{Model, encoded_len};

/// Finds the counts of heads, neurons and layers under a budget. `latencies` are needed for a budget of time.
///
/// # Errors
/// [`ErrorKind::Usage`] for a budget that cannot be met, or that is above the ancestor.
pub fn plan(
    model: &Model,
    removals: &PruningOrder,
    limits: &Limits,
    budget: Budget,
    latencies: Option<&Latencies>,
) -> Result<Allocation> {
    let (blocks, _) = blocks(model, limits)?;
    let whole_is_asked = matches!(budget, Budget::Share(s) if s >= 1.0);
    if !whole_is_asked && !blocks.iter().any(|b| b.free) && removals.layers.iter().all(Option::is_none) {
        return Err(Error::new(ErrorKind::Unsupported, "no head, FFN or layer of this model can be thinned")
            .at(&model.path)
            .hint("allow more levers and layers; `inspect ⟦explain⟧ LAYER` shows what its axes are tied to"));
    }
    let typing = Typing::new(model)?;
    let (macs, stacks) = (typing.macs() as f64, Anatomy::new(&typing)?.stacks);
    let wholes = [parameters(model.graph()) as f64, macs, encoded_len(&model.proto) as f64];
    let allocator = Allocator { blocks, removals, limits, budget, latencies };
    let of_blocks = allocator.cost_of_blocks()?;
    let (whole, wanted) = allocator.whole_and_wanted(wholes, of_blocks)?;
    if wanted > whole {
        return Err(Error::new(ErrorKind::Usage, format!("the budget {wanted} is above the ancestor's {whole}"))
            .at(&model.path)
            .hint("a descendant is smaller than its ancestor: give less"));
    }
    let mut without = allocator.without();
    let layers = allocator.by_layer(without.len())?;
    let chosen = allocator.choose(&layers, &mut without, &stacks, (wanted - (whole - of_blocks)).max(0.0))?;
    Ok(allocator.allocation(&layers, &chosen, &without, wholes))
}

/// The choice of every block of a layer; none where the layer is left out.
type Chosen = Option<Vec<Choice>>;

/// What is chosen from, and by which measure.
struct Allocator<'a> {
    blocks: Vec<Block>,
    removals: &'a PruningOrder,
    limits: &'a Limits,
    budget: Budget,
    latencies: Option<&'a Latencies>,
}

impl Allocator<'_> {
    /// The head dimensions of a block, where they may be cut.
    fn dimensions(&self, b: usize) -> Option<&Dimensions> {
        let block = &self.blocks[b];
        let asked = block.kind == BlockKind::Heads && self.limits.dims && self.limits.touches(block.layer);
        self.removals.dimensions.iter().find(|d| asked && d.layer == block.layer)
    }

    /// Parameters, operations or bytes of some units, with the dimensions that their heads have.
    fn amount(&self, b: usize, measure: usize, count: usize, dims: Option<[usize; 2]>) -> f64 {
        let gone = self
            .dimensions(b)
            .zip(dims)
            .map_or(0.0, |(d, dims)| (0..2).map(|i| d.unit[i][measure] * (d.of[i] - dims[i]) as f64).sum::<f64>());
        count as f64 * (self.blocks[b].unit[measure] - gone)
    }

    /// Milliseconds of some units.
    fn time(&self, b: usize, count: usize) -> Option<f64> {
        self.latencies.map(|l| l.cost(b, count))
    }

    /// What some units take of the budget.
    fn cost(&self, b: usize, count: usize, dims: Option<[usize; 2]>) -> Result<f64> {
        Ok(match self.budget {
            Budget::Share(_) | Budget::Parameters(_) => self.amount(b, 0, count, dims),
            Budget::Macs(_) => self.amount(b, 1, count, dims),
            Budget::Bytes(_) => self.amount(b, 2, count, dims),
            Budget::Latency(_) => {
                let share = self.amount(b, 1, count, dims) / self.amount(b, 1, count, None).max(f64::MIN_POSITIVE);
                self.time(b, count).ok_or_else(no_latencies)? * share.min(1.0)
            }
        })
    }

    /// What all blocks of the ancestor take of the budget.
    fn cost_of_blocks(&self) -> Result<f64> {
        (0..self.blocks.len()).map(|b| self.cost(b, self.blocks[b].units, None)).sum()
    }

    /// What the ancestor takes of the budget, and how much that is to be.
    fn whole_and_wanted(&self, wholes: [f64; 3], of_blocks: f64) -> Result<(f64, f64)> {
        Ok(match self.budget {
            Budget::Share(s) if !(s > 0.0 && s <= 1.0) => {
                bail!(Usage, "a share is above 0 and up to 100 %, not {:.1} %", 100.0 * s)
            }
            Budget::Share(s) => (of_blocks, s * of_blocks),
            Budget::Parameters(n) => (wholes[0], n),
            Budget::Macs(n) => (wholes[1], n),
            Budget::Bytes(n) => (wholes[2], n),
            Budget::Latency(n) => (self.latencies.ok_or_else(no_latencies)?.whole, n),
        })
    }

    /// The error without each layer; none for layers that stay.
    fn without(&self) -> Vec<Option<f64>> {
        let layers = self.removals.layers.iter().enumerate();
        let goes = |l: usize| self.limits.depth && self.limits.touches(l);
        layers.map(|(l, e)| e.map(f64::from).filter(|_| goes(l))).collect()
    }

    /// The blocks of each of so many layers.
    fn by_layer(&self, layers: usize) -> Result<Vec<Vec<usize>>> {
        if self.blocks.iter().any(|b| b.layer >= layers) {
            bail!(Format, "the order of removal is of another model");
        }
        let mut of_layer: Vec<Vec<usize>> = vec![Vec::new(); layers];
        for (b, block) in self.blocks.iter().enumerate() {
            of_layer[block.layer].push(b);
        }
        Ok(of_layer)
    }

    /// What a block may be.
    fn choices(&self, b: usize) -> Result<Vec<Choice>> {
        let block = &self.blocks[b];
        let mut choices = Vec::new();
        let removal = self.removals.block(block.layer, block.kind).filter(|_| block.free);
        if removal.is_some_and(|r| r.kept.units() != block.units) {
            bail!(Format, "the order of removal is of another model: layer {} has {}", block.layer, block.units);
        }
        let all = match removal {
            Some(_) => counts(block, self.limits),
            None => vec![block.units],
        };
        let sizes = self.dimensions(b).map(sizes).unwrap_or_default();
        for count in all {
            let error = removal.map_or(0.0, |r| f64::from(r.error[count]));
            choices.push(Choice { count, dims: None, cost: self.cost(b, count, None)?, error });
            let share = count as f64 / block.units.max(1) as f64;
            for &(dims, own) in &sizes {
                let dims = Some(dims);
                choices.push(Choice { count, dims, cost: self.cost(b, count, dims)?, error: error + share * own });
            }
        }
        Ok(choices)
    }

    /// Chooses for every layer. One layer of each stack has to stay: `without` loses its error.
    fn choose(
        &self,
        layers: &[Vec<usize>],
        without: &mut [Option<f64>],
        stacks: &[Stack],
        budget: f64,
    ) -> Result<Vec<Chosen>> {
        loop {
            let group = |(list, &without): (&Vec<usize>, &Option<f64>)| {
                let blocks = list.iter().map(|&b| self.choices(b)).collect::<Result<_>>()?;
                Ok(LayerChoices { blocks, without: without.filter(|_| !list.is_empty()) })
            };
            let groups: Vec<LayerChoices> = layers.iter().zip(&*without).map(group).collect::<Result<_>>()?;
            let found = allocate(&groups, budget)?;
            let is_gone = |l: &usize| found.get(*l).is_some_and(Option::is_none);
            let Some(emptied) = stacks.iter().find(|s| s.layers.iter().all(is_gone)) else { return Ok(found) };
            // The one that is missed most.
            let layers = emptied.layers.iter().copied();
            let most = layers.max_by(|&a, &b| without[a].partial_cmp(&without[b]).unwrap_or(a.cmp(&b)));
            most.into_iter().for_each(|l| without[l] = None);
        }
    }

    /// What was chosen, and what is predicted of it.
    fn allocation(
        &self,
        layers: &[Vec<usize>],
        chosen: &[Chosen],
        without: &[Option<f64>],
        wholes: [f64; 3],
    ) -> Allocation {
        let mut planned = vec![LayerBudget::default(); layers.len()];
        let mut saved = [0.0; 3];
        let mut latency = self.latencies.map(|l| l.whole);
        let mut predicted_error = 0.0;
        let of_layers = || layers.iter().zip(chosen);
        let counted = of_layers().flat_map(|(list, chosen)| list.iter().zip(chosen.iter().flatten()));
        let counts: HashMap<usize, usize> = counted.map(|(&b, c)| (b, c.count)).collect();
        for (l, (list, chosen)) in of_layers().enumerate() {
            let layer = &mut planned[l];
            layer.dropped = chosen.is_none();
            predicted_error += match chosen {
                Some(choices) => choices.iter().map(|c| c.error).sum(),
                None => without[l].unwrap_or(0.0),
            };
            for (i, &b) in list.iter().enumerate() {
                let units = self.blocks[b].units;
                let first = self.blocks[b].first;
                let count = chosen.as_ref().and_then(|_| counts.get(&first)).map_or(0, |&count| count);
                let dims = chosen.as_ref().and_then(|c| c[i].dims);
                if let (Some(dims), Some(d)) = (dims, self.dimensions(b)) {
                    layer.dims = Some([dims, d.of]);
                }
                match self.blocks[b].kind {
                    BlockKind::Heads => (layer.heads, layer.of_heads) = (Some(count), Some(units)),
                    BlockKind::Neurons => (layer.neurons, layer.of_neurons) = (Some(count), Some(units)),
                }
                for (measure, s) in saved.iter_mut().enumerate() {
                    *s += self.amount(b, measure, units, None) - self.amount(b, measure, count, dims);
                }
                let times = (self.time(b, count), self.time(b, units));
                if let (Some(latency), (Some(now), Some(then))) = (latency.as_mut(), times) {
                    *latency -= then - now;
                }
            }
        }
        let of_all: f64 = self.blocks.iter().map(|b| b.unit[0] * b.units as f64).sum();
        Allocation {
            budget: self.budget,
            share: 1.0 - saved[0] / of_all.max(f64::MIN_POSITIVE),
            layers: planned,
            predicted_error,
            parameters: wholes[0] - saved[0],
            macs: wholes[1] - saved[1],
            bytes: wholes[2] - saved[2],
            latency,
        }
    }
}

fn no_latencies() -> Error {
    Error::new(ErrorKind::Internal, "a budget of time needs measured latencies")
}

/// Dimensions that the heads of a layer may be cut to, a quarter at least and in eighths, and the error of each.
fn sizes(d: &Dimensions) -> Vec<([usize; 2], f64)> {
    let of = |i: usize| -> Vec<usize> {
        let step = (d.of[i] / 8).max(1);
        // One dimension has no axis of its own, by which it would be found again.
        (1..).map(|k| k * step).skip_while(|&r| 4 * r < d.of[i] || r < 2).take_while(|&r| r <= d.of[i]).collect()
    };
    let error = |dims: [usize; 2]| f64::from(d.error[0][dims[0]]) + f64::from(d.error[1][dims[1]]);
    let mut all: Vec<[usize; 2]> = of(0).into_iter().flat_map(|q| of(1).into_iter().map(move |v| [q, v])).collect();
    all.retain(|&dims| dims != d.of && (!d.joint || dims[0] == dims[1]));
    all.into_iter().map(|dims| (dims, error(dims))).collect()
}
