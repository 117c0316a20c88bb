//! Budgets: what heads, neurons and layers cost, and how many of each a descendant keeps.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::allocation::{Choice, Group, allocate};
use super::dims::head_factors;
use super::latency::Latencies;
use super::sites::sites;
use crate::anatomy::{Anatomy, Roles};
use crate::axes::resize::{Plan, resize};
use crate::axes::{Factor, Typing};
use crate::descendant::{keep_layers, mixed_elsewhere, norm_over};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Links};
use crate::learngene::{Dimensions, Kind, Removals, parameters};
use crate::metadata::LEARNGENE;
use crate::onnx::{Model, element_count, encoded_len, is_float, payload};

/// What may be thinned, and how far.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Thin heads.
    pub heads: bool,
    /// Thin neurons.
    pub neurons: bool,
    /// Leave out whole layers.
    pub depth: bool,
    /// Cut the dimension of heads.
    pub dims: bool,
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
        Limits {
            heads: true,
            neurons: true,
            depth: true,
            dims: false,
            layers: None,
            min_heads: 1,
            min_neurons: 16,
            multiple: 16,
        }
    }
}

impl Limits {
    fn touches(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|l| l.contains(&layer))
    }
}

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
    /// Milliseconds for one image on this machine.
    Latency(f64),
}

/// A block of heads or neurons.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub layer: usize,
    pub kind: Kind,
    pub units: usize,
    /// True where it may be thinned.
    pub free: bool,
    /// Parameters, operations and bytes of one unit.
    pub unit: [f64; 3],
}

/// The factor of a layer's heads or neurons.
pub(super) fn factor(typing: &Typing, anatomy: &Anatomy, layer: usize, kind: Kind) -> Option<Factor> {
    let layer = anatomy.layers.get(layer)?;
    match kind {
        Kind::Heads => layer.head_factor(typing),
        Kind::Neurons => layer.ffn.as_ref()?.hidden_factor(typing),
    }
}

/// The blocks of an ancestor in order of execution, and what is to be said of those that stay.
pub(super) fn blocks(model: &Model, limits: &Limits) -> Result<(Vec<Block>, Vec<String>)> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let roles = Roles::new(&typing);
    let (sites, _) = sites(&typing, &anatomy);
    let root = |layer, kind| factor(&typing, &anatomy, layer, kind).map(|f| typing.factors.root(f));
    let mut uses: HashMap<Factor, usize> = HashMap::new();
    for f in sites.iter().filter_map(|s| root(s.layer, s.kind)) {
        *uses.entry(f).or_default() += 1;
    }
    let mixers = [(Kind::Heads, anatomy.head_mixers(&typing)), (Kind::Neurons, anatomy.neuron_mixers(&typing))];
    let mut warnings = Vec::new();
    if let Some(layers) = &limits.layers
        && let Some(l) = layers.iter().find(|l| **l >= anatomy.layers.len())
    {
        bail!(Usage, "there is no layer {l}, only {}", anatomy.layers.len());
    }
    let blocks = sites.iter().map(|site| {
        let f = root(site.layer, site.kind);
        let alone = f.is_some_and(|f| uses[&f] == 1);
        if f.is_some() && !alone {
            warnings.push(format!("layer {}: its {:?} are shared with another layer and stay", site.layer, site.kind));
        }
        let asked = match site.kind {
            Kind::Heads => limits.heads,
            Kind::Neurons => limits.neurons,
        } && limits.touches(site.layer);
        let free = asked && alone && site.divides;
        if free && f.is_some_and(|f| norm_over(&typing, f)) {
            warnings.push(format!(
                "layer {}: a norm runs over its {}, whose statistics change with their number; the matrix behind it is fitted to them",
                site.layer,
                match site.kind {
                    Kind::Heads => "heads",
                    Kind::Neurons => "neurons",
                }
            ));
        }
        if free {
            let of_layer = mixers.iter().filter(|(kind, _)| *kind == site.kind).filter_map(|(_, m)| m.get(site.layer));
            warnings.extend(of_layer.filter_map(|m| mixed_elsewhere(&typing, site.layer, site.kind, m)));
        }
        let unit = f.map_or([0.0; 3], |f| unit(&typing, &roles, f));
        Block { layer: site.layer, kind: site.kind, units: site.units, free, unit }
    });
    Ok((blocks.collect(), warnings))
}

/// Parameters, operations and bytes of one unit of a factor.
pub(super) fn unit(typing: &Typing, roles: &Roles, f: Factor) -> [f64; 3] {
    let mut unit = [0.0; 3];
    let units = typing.factors.factor_size(f).max(1) as f64;
    for u in roles.carriers(f) {
        let t = typing.weights[typing.uses[u].name.as_str()];
        if is_float(t) {
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

/// The layers that can be left out: those that surgery by-passes and leaves all others, and what no output needs from inside them.
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
    Ok((0..layers).map(|l| limits.depth && layers > 1 && limits.touches(l) && without(l)).collect())
}

/// One layer of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlannedLayer {
    /// True where the layer is left out.
    pub dropped: bool,
    /// Heads that are kept.
    pub heads: Option<usize>,
    /// Heads that there were.
    pub of_heads: Option<usize>,
    /// Dimensions of queries and keys, and of values, of each head, where they are cut, and how many there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dims: Option<[[usize; 2]; 2]>,
    /// Neurons that are kept.
    pub neurons: Option<usize>,
    /// Neurons that there were.
    pub of_neurons: Option<usize>,
}

/// Counts for every block, and what is predicted of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Allocation {
    /// The budget.
    pub budget: Budget,
    /// By layer.
    pub layers: Vec<PlannedLayer>,
    /// Sum of the errors of the blocks, each measured alone.
    pub predicted_error: f64,
    /// The share of the parameters of all heads and FFNs that is kept.
    pub share: f64,
    /// Parameters of the whole model, as predicted.
    pub parameters: f64,
    /// Multiply-accumulate operations for one image, as predicted.
    pub macs: f64,
    /// Bytes of the file, as predicted.
    pub bytes: f64,
    /// Milliseconds for one image on this machine, as predicted; where it was measured what blocks take.
    pub latency: Option<f64>,
}

impl Allocation {
    /// Layers of the ancestor that are there.
    pub fn kept_layers(&self) -> Vec<usize> {
        (0..self.layers.len()).filter(|&l| !self.layers[l].dropped).collect()
    }

    /// Units of a block.
    pub(super) fn count(&self, layer: usize, kind: Kind) -> Option<usize> {
        let layer = self.layers.get(layer).filter(|l| !l.dropped)?;
        match kind {
            Kind::Heads => layer.heads,
            Kind::Neurons => layer.neurons,
        }
    }
}

/// Finds the counts of heads, neurons and layers under a budget. `latencies` are needed for a budget of time.
///
/// # Errors
/// [`ErrorKind::Usage`] for a budget that cannot be met, or that is above the ancestor.
pub fn plan(
    model: &Model,
    removals: &Removals,
    limits: &Limits,
    budget: Budget,
    latencies: Option<&Latencies>,
) -> Result<Allocation> {
    let (blocks, _) = blocks(model, limits)?;
    let whole_is_asked = matches!(budget, Budget::Share(s) if s >= 1.0);
    if !whole_is_asked && !blocks.iter().any(|b| b.free) && removals.layers.iter().all(Option::is_none) {
        return Err(Error::new(ErrorKind::Unsupported, "no head, FFN or layer of this model can be thinned")
            .at(&model.path)
            .hint("allow more levers and layers; `inspect --explain LAYER` shows what its axes are tied to"));
    }
    let typing = Typing::new(model)?;
    let (macs, stacks) = (typing.macs() as f64, Anatomy::new(&typing)?.stacks);
    let wholes = [parameters(model.graph()) as f64, macs, encoded_len(&model.proto) as f64];
    let none = || Error::new(ErrorKind::Internal, "a budget of time needs measured latencies");
    let measured = |b: usize, count: usize| latencies.map(|l| l.cost(b, count));
    let dimensions = |b: usize| {
        let heads = blocks[b].kind == Kind::Heads && limits.dims && limits.touches(blocks[b].layer);
        removals.dimensions.iter().find(|d| heads && d.layer == blocks[b].layer)
    };
    // Parameters, operations or bytes of some units, with the dimensions that their heads have.
    let amount = |b: usize, measure: usize, count: usize, dims: Option<[usize; 2]>| -> f64 {
        let gone = dimensions(b)
            .zip(dims)
            .map_or(0.0, |(d, dims)| (0..2).map(|i| d.unit[i][measure] * (d.of[i] - dims[i]) as f64).sum::<f64>());
        count as f64 * (blocks[b].unit[measure] - gone)
    };
    let cost = |b: usize, count: usize, dims: Option<[usize; 2]>| -> Result<f64> {
        Ok(match budget {
            Budget::Share(_) | Budget::Parameters(_) => amount(b, 0, count, dims),
            Budget::Macs(_) => amount(b, 1, count, dims),
            Budget::Bytes(_) => amount(b, 2, count, dims),
            Budget::Latency(_) => {
                let share = amount(b, 1, count, dims) / amount(b, 1, count, None).max(f64::MIN_POSITIVE);
                measured(b, count).ok_or_else(none)? * share.min(1.0)
            }
        })
    };
    let of_blocks: f64 = (0..blocks.len()).map(|b| cost(b, blocks[b].units, None)).sum::<Result<f64>>()?;
    let (whole, wanted) = match budget {
        Budget::Share(s) => (of_blocks, s * of_blocks),
        Budget::Parameters(n) => (wholes[0], n),
        Budget::Macs(n) => (wholes[1], n),
        Budget::Bytes(n) => (wholes[2], n),
        Budget::Latency(n) => (latencies.ok_or_else(none)?.whole, n),
    };
    if let Budget::Share(s) = budget
        && !(s > 0.0 && s <= 1.0)
    {
        bail!(Usage, "a share is above 0 and up to 100 %, not {:.1} %", 100.0 * s);
    }
    if wanted > whole {
        return Err(Error::new(ErrorKind::Usage, format!("the budget {wanted} is above the ancestor's {whole}"))
            .at(&model.path)
            .hint("a descendant is smaller than its ancestor: give less"));
    }
    let removable = removals.layers.iter().enumerate();
    let mut without: Vec<Option<f64>> =
        removable.map(|(l, e)| e.map(f64::from).filter(|_| limits.depth && limits.touches(l))).collect();
    if blocks.iter().any(|b| b.layer >= without.len()) {
        bail!(Format, "the order of removal is of another model");
    }
    let mut group_of: Vec<Vec<usize>> = vec![Vec::new(); without.len()];
    for (b, block) in blocks.iter().enumerate() {
        group_of[block.layer].push(b);
    }
    let choices = |b: usize| -> Result<Vec<Choice>> {
        let block = &blocks[b];
        let mut choices = Vec::new();
        let removal = removals.block(block.layer, block.kind).filter(|_| block.free);
        if removal.is_some_and(|r| r.kept.units() != block.units) {
            bail!(Format, "the order of removal is of another model: layer {} has {}", block.layer, block.units);
        }
        let all = match removal {
            Some(_) => counts(block, limits),
            None => vec![block.units],
        };
        let sizes = dimensions(b).map(sizes).unwrap_or_default();
        for count in all {
            let error = removal.map_or(0.0, |r| f64::from(r.error[count]));
            choices.push(Choice { count, dims: None, cost: cost(b, count, None)?, error });
            let share = count as f64 / block.units.max(1) as f64;
            for &(dims, own) in &sizes {
                let dims = Some(dims);
                choices.push(Choice { count, dims, cost: cost(b, count, dims)?, error: error + share * own });
            }
        }
        Ok(choices)
    };
    let found = loop {
        let groups: Vec<Group> = group_of
            .iter()
            .zip(&without)
            .map(|(list, &without)| {
                let blocks = list.iter().map(|&b| choices(b)).collect::<Result<_>>()?;
                Ok(Group { blocks, without: without.filter(|_| !list.is_empty()) })
            })
            .collect::<Result<_>>()?;
        let found = allocate(&groups, (wanted - (whole - of_blocks)).max(0.0))?;
        let is_gone = |l: &usize| found.get(*l).is_some_and(Option::is_none);
        let Some(emptied) = stacks.iter().find(|s| s.layers.iter().all(is_gone)) else { break found };
        // One layer of each stack has to stay: the one that is missed most.
        let layers = emptied.layers.iter().copied();
        let most = layers.max_by(|&a, &b| without[a].partial_cmp(&without[b]).unwrap_or(a.cmp(&b)));
        most.into_iter().for_each(|l| without[l] = None);
    };
    let mut planned = vec![PlannedLayer::default(); without.len()];
    let mut saved = [0.0; 3];
    let mut latency = latencies.map(|l| l.whole);
    let mut predicted_error = 0.0;
    for (l, (list, chosen)) in group_of.iter().zip(&found).enumerate() {
        let layer = &mut planned[l];
        layer.dropped = chosen.is_none();
        predicted_error += match chosen {
            Some(choices) => choices.iter().map(|c| c.error).sum(),
            None => without[l].unwrap_or(0.0),
        };
        for (i, &b) in list.iter().enumerate() {
            let count = chosen.as_ref().map_or(0, |c| c[i].count);
            let dims = chosen.as_ref().and_then(|c| c[i].dims);
            if let (Some(dims), Some(d)) = (dims, dimensions(b)) {
                layer.dims = Some([dims, d.of]);
            }
            match blocks[b].kind {
                Kind::Heads => (layer.heads, layer.of_heads) = (Some(count), Some(blocks[b].units)),
                Kind::Neurons => (layer.neurons, layer.of_neurons) = (Some(count), Some(blocks[b].units)),
            }
            for (measure, s) in saved.iter_mut().enumerate() {
                *s += amount(b, measure, blocks[b].units, None) - amount(b, measure, count, dims);
            }
            if let (Some(latency), Some(now), Some(then)) =
                (latency.as_mut(), measured(b, count), measured(b, blocks[b].units))
            {
                *latency -= then - now;
            }
        }
    }
    let of_all: f64 = blocks.iter().map(|b| b.unit[0] * b.units as f64).sum();
    Ok(Allocation {
        budget,
        share: 1.0 - saved[0] / of_all.max(f64::MIN_POSITIVE),
        layers: planned,
        predicted_error,
        parameters: wholes[0] - saved[0],
        macs: wholes[1] - saved[1],
        bytes: wholes[2] - saved[2],
        latency,
    })
}

/// Dimensions that the heads of a layer may be cut to, a quarter at least and in eighths, and the error of each.
fn sizes(d: &Dimensions) -> Vec<([usize; 2], f64)> {
    let of = |i: usize| -> Vec<usize> {
        let step = (d.of[i] / 8).max(1);
        (1..).map(|k| k * step).skip_while(|&r| 4 * r < d.of[i]).take_while(|&r| r <= d.of[i]).collect()
    };
    let error = |dims: [usize; 2]| f64::from(d.error[0][dims[0]]) + f64::from(d.error[1][dims[1]]);
    let mut all: Vec<[usize; 2]> = of(0).into_iter().flat_map(|q| of(1).into_iter().map(move |v| [q, v])).collect();
    all.retain(|&dims| dims != d.of && (!d.joint || dims[0] == dims[1]));
    all.into_iter().map(|dims| (dims, error(dims))).collect()
}

/// The model without the layers, heads and neurons that an allocation removes, its matrices as they were. Of heads that are cut, the
/// first dimensions stay.
///
/// # Errors
/// Those of surgery and of typing.
pub fn thin(model: &Model, removals: &Removals, allocation: &Allocation) -> Result<Model> {
    let kept = allocation.kept_layers();
    let units = removals.blocks.iter().filter_map(|b| {
        let count = allocation.count(b.layer, b.kind).filter(|&n| n < b.kept.units())?;
        Some((b.layer, b.kind, b.kept.at(count)))
    });
    let dims = (0..allocation.layers.len()).filter_map(|l| Some((l, allocation.layers[l].dims?[0])));
    cut(model, &kept, units.collect(), dims.collect())
}

/// Keeps some layers, and some units of blocks that are named by the ancestor's layers.
pub(super) fn cut(
    model: &Model,
    kept: &[usize],
    units: Vec<(usize, Kind, Vec<usize>)>,
    dims: Vec<(usize, [usize; 2])>,
) -> Result<Model> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    if kept.len() < anatomy.layers.len() {
        let shallow = keep_layers(model, &typing, &anatomy, kept)?.model;
        let place = |l: usize| kept.iter().position(|&k| k == l);
        let units = units.into_iter().filter_map(|(l, kind, list)| Some((place(l)?, kind, list))).collect();
        let dims = dims.into_iter().filter_map(|(l, sizes)| Some((place(l)?, sizes))).collect();
        let all: Vec<usize> = (0..kept.len()).collect();
        return cut(&shallow, &all, units, dims);
    }
    let mut plan = Plan::default();
    for (layer, kind, list) in units {
        // Heads that are mixed go together before and behind the mixing.
        let factors = match (kind, anatomy.layers.get(layer)) {
            (Kind::Heads, Some(layer)) => layer.head_factors(&typing),
            _ => factor(&typing, &anatomy, layer, kind).into_iter().collect(),
        };
        for factor in factors {
            plan.gather(&typing.factors, factor, list.clone())?;
        }
    }
    let links = Links::new(typing.graph);
    for (layer, sizes) in dims {
        let Some(found) = anatomy.layers.get(layer).and_then(|l| head_factors(&typing, &links, l)) else {
            bail!(Unsupported, "the head dimension of layer {layer} cannot be cut")
        };
        plan.gather(&typing.factors, found.factors[0], (0..sizes[0]).collect())?;
        if found.factors[0] != found.factors[1] {
            plan.gather(&typing.factors, found.factors[1], (0..sizes[1]).collect())?;
        }
    }
    let mut out = model.clone();
    out.proto.metadata_props.retain(|p| p.key() != LEARNGENE);
    if !plan.is_empty() {
        out.proto.graph = Some(resize(&typing, &plan)?);
        graph::prune(out.graph_mut());
    }
    Ok(out)
}

/// The counts that a block may have, ascending.
pub(super) fn counts(block: &Block, limits: &Limits) -> Vec<usize> {
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
