//! Blocks of heads and neurons, and layers: which may go, and what each costs.

use std::collections::{HashMap, HashSet};

use super::budget::Limits;
use super::targets::{TargetLinear, find_targets, first_uses};
use crate::anatomy::{Anatomy, Roles, normed};
use crate::axes::{Factor, Typing};
use crate::descendant::{keep_layers, mixed_elsewhere};
use crate::error::Result;
use crate::learngene::BlockKind;
use crate::onnx::{Model, element_count, is_float, payload};

/// A block of heads or neurons.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub layer: usize,
    pub kind: BlockKind,
    pub units: usize,
    /// The block that it is thinned and counted with: itself, but in a layer that is used several times.
    pub first: usize,
    /// True where it may be thinned.
    pub free: bool,
    /// Parameters, operations and bytes of one unit.
    pub unit: [f64; 3],
}

/// The factor of a layer's heads or neurons.
pub(super) fn factor(typing: &Typing, anatomy: &Anatomy, layer: usize, kind: BlockKind) -> Option<Factor> {
    let layer = anatomy.layers.get(layer)?;
    match kind {
        BlockKind::Heads => layer.head_factor(typing),
        BlockKind::Neurons => layer.ffn()?.hidden_factor(typing),
    }
}

/// The blocks of an ancestor in order of execution, and what is to be said of those that stay.
pub(super) fn blocks(model: &Model, limits: &Limits) -> Result<(Vec<Block>, Vec<String>)> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let roles = Roles::new(&typing);
    let (linears, _) = find_targets(&typing, &anatomy);
    let root = |layer, kind| factor(&typing, &anatomy, layer, kind).map(|f| typing.factors.root(f));
    let first = first_uses(&linears);
    let mut uses: HashMap<Factor, usize> = HashMap::new();
    for (_, s) in linears.iter().enumerate().filter(|(i, _)| first[*i] == *i) {
        if let Some(f) = root(s.layer, s.kind) {
            *uses.entry(f).or_default() += 1;
        }
    }
    let mixers =
        [(BlockKind::Heads, anatomy.head_mixers(&typing)), (BlockKind::Neurons, anatomy.neuron_mixers(&typing))];
    let mut warnings = shared(&linears, &first);
    if let Some(layers) = &limits.layers
        && let Some(l) = layers.iter().find(|l| **l >= anatomy.layers.len())
    {
        bail!(Usage, "there is no layer {l}, only {}", anatomy.layers.len());
    }
    let normed = normed(&typing);
    let blocks = linears.iter().enumerate().map(|(i, linear)| {
        let f = root(linear.layer, linear.kind);
        let alone = f.is_some_and(|f| uses[&f] == 1);
        if f.is_some() && !alone {
            warnings
                .push(format!("layer {}: its {:?} are shared with another layer and stay", linear.layer, linear.kind));
        }
        let asked = match linear.kind {
            BlockKind::Heads => limits.heads,
            BlockKind::Neurons => limits.neurons,
        } && (0..linears.len()).filter(|&j| first[j] == i).all(|j| limits.touches(linears[j].layer));
        let free = asked && alone && linear.divides && first[i] == i;
        if free && f.is_some_and(|f| normed.contains(&typing.factors.root(f))) {
            warnings.push(format!(
                "layer {}: a norm runs over its {}, whose statistics change with their number; the matrix behind it is \
                 fitted to them",
                linear.layer,
                match linear.kind {
                    BlockKind::Heads => "heads",
                    BlockKind::Neurons => "neurons",
                }
            ));
        }
        if free {
            let of_layer =
                mixers.iter().filter(|(kind, _)| *kind == linear.kind).filter_map(|(_, m)| m.get(linear.layer));
            warnings.extend(of_layer.filter_map(|m| mixed_elsewhere(&typing, linear.layer, linear.kind, m)));
        }
        let unit = f.filter(|_| first[i] == i).map_or([0.0; 3], |f| unit(&typing, &roles, f));
        Block { layer: linear.layer, kind: linear.kind, units: linear.units, first: first[i], free, unit }
    });
    Ok((blocks.collect(), warnings))
}

/// What is to be said of layers that have matrices in common: those of each block once.
fn shared(linears: &[TargetLinear], first: &[usize]) -> Vec<String> {
    let uses = |i: usize| (0..linears.len()).filter(move |&j| first[j] == i).map(|j| linears[j].layer.to_string());
    let mut blocks: Vec<Vec<String>> = (0..linears.len()).map(|i| uses(i).collect()).collect();
    blocks.retain(|layers| layers.len() > 1);
    blocks.dedup();
    let said = |layers: &Vec<String>| {
        let layers = layers.join(", ");
        format!("layers {layers} have matrices in common: they are thinned together, and none of them is left out")
    };
    blocks.iter().map(said).collect()
}

/// Parameters, operations and bytes of one unit of a factor, each weight once.
pub(super) fn unit(typing: &Typing, roles: &Roles, f: Factor) -> [f64; 3] {
    let mut unit = [0.0; 3];
    let units = typing.factors.factor_size(f).max(1) as f64;
    let mut seen = HashSet::new();
    for name in roles.carriers(f).into_iter().map(|u| typing.uses[u].name.as_str()) {
        let t = typing.weights[name];
        if is_float(t) && seen.insert(name) {
            unit[0] += element_count(t).unwrap_or(0) as f64 / units;
            unit[2] += payload(t).len() as f64 / units;
        }
    }
    let carries =
        |name: &str| typing.dims.get(name).is_some_and(|d| d.iter().any(|d| typing.factors.leaves(d).contains(&f)));
    for c in &typing.contractions {
        let node = &typing.graph.node[c.node];
        if typing.factors.leaves(&c.summed).contains(&f) || node.output.iter().any(|o| carries(o)) {
            unit[1] += c.macs as f64 / typing.batch_size().max(1) as f64 / units;
        }
    }
    unit
}

/// The layers that can be left out: those that surgery by-passes and leaves all others, and what no output needs from
/// inside them.
pub(super) fn removable(model: &Model, limits: &Limits) -> Result<Vec<bool>> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let layers = anatomy.layers.len();
    let without = |l: usize| -> bool {
        let kept: Vec<usize> = (0..layers).filter(|&k| k != l).collect();
        let Ok(shallow) = keep_layers(model, &typing, &anatomy, &kept) else { return false };
        let left = Typing::new(&shallow.model).and_then(|t| Ok(Anatomy::new(&t)?.layers.len()));
        // Outputs that hold what a layer computes are the model's word on it: the layer stays.
        shallow.warnings.is_empty() && left.is_ok_and(|n| n == layers - 1)
    };
    let (linears, _) = find_targets(&typing, &anatomy);
    let first = first_uses(&linears);
    // What one use would save is there for the others.
    let shared: HashSet<usize> = (0..linears.len())
        .filter(|&i| (0..linears.len()).any(|j| j != i && first[j] == first[i]))
        .map(|i| linears[i].layer)
        .collect();
    let goes = |l: usize| limits.depth && layers > 1 && !shared.contains(&l) && limits.touches(l) && without(l);
    Ok((0..layers).map(goes).collect())
}

/// The counts that a block may have, ascending.
pub(super) fn counts(block: &Block, limits: &Limits) -> Vec<usize> {
    let (least, multiple) = match block.kind {
        BlockKind::Heads => (limits.min_heads, 1),
        BlockKind::Neurons => (limits.min_neurons.max(2), limits.multiple.max(1)),
    };
    // A wide FFN is not divided finer than a table of choices can hold.
    let multiple = multiple * block.units.div_ceil(multiple * 256);
    let mut counts: Vec<usize> = (1..).map(|i| i * multiple).take_while(|&n| n < block.units).collect();
    counts.retain(|&n| n >= least);
    counts.push(block.units);
    counts
}
