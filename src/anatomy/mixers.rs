//! What else takes the heads of an attention together, beside its output projection: a convolution over the channels of
//! all heads, keys that are averaged over heads, maps that are; and the same of an FFN's neurons. What is removed is
//! missed there, and no other weight of the layer can make up for it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::structure::{Anatomy, Attention};
use crate::axes::{Dim, Factor, Typing, mixed_axes};
use crate::graph::Attributes;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};

impl Anatomy {
    /// For each layer, the nodes that take its heads together on another way than through its output projection and its
    /// mixings: they sum over them, or their elements depend on several of them. Norms that run over the last axis are
    /// left out.
    pub fn head_mixers(&self, typing: &Typing) -> Vec<Vec<usize>> {
        let all = self.layers.iter().chain(&self.others);
        let known =
            all.flat_map(|a| std::iter::once(a.projection).chain(a.head_mixers.iter().map(|m| m.node))).collect();
        mixers(typing, self.layers.iter().map(|l| l.head_factors(typing)).collect(), &known)
    }

    /// For each layer, the nodes that take the neurons of an FFN together, beside the contractions that sum over them.
    pub fn neuron_mixers(&self, typing: &Typing) -> Vec<Vec<usize>> {
        let ffns = self.layers.iter().chain(&self.others).flat_map(|l| l.ffns.iter().chain(&l.convolution));
        let hidden = |l: &Attention| l.ffns.iter().filter_map(|f| f.hidden_factor(typing)).collect();
        mixers(typing, self.layers.iter().map(hidden).collect(), &ffns.map(|f| f.down).collect())
    }
}

/// For each list of factors the nodes that take one of them together, but those that are `known` to.
fn mixers(typing: &Typing, factors: Vec<Vec<Factor>>, known: &HashSet<usize>) -> Vec<Vec<usize>> {
    let mut found: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); factors.len()];
    let mut layers_of: HashMap<Factor, Vec<usize>> = HashMap::new();
    for (l, list) in factors.iter().enumerate() {
        list.iter().for_each(|&f| layers_of.entry(typing.factors.root(f)).or_default().push(l));
    }
    let mut add = |k: usize, factors: &[Factor]| {
        for l in factors.iter().filter_map(|f| layers_of.get(f)).flatten() {
            found[*l].insert(k);
        }
    };
    for c in typing.contractions.iter().filter(|c| !known.contains(&c.node)) {
        // A grouped convolution sums over the channels of one group alone.
        let groups = typing.groups.get(&c.node).map(|g| typing.factors.leaves(g)).unwrap_or_default();
        let mut over = typing.factors.all_leaves(&c.summed);
        over.retain(|f| !groups.contains(f));
        add(c.node, &over);
    }
    for (k, node) in typing.graph.node.iter().enumerate() {
        let made = node.output.first().filter(|o| !typing.known.contains_key(o.as_str()));
        let Some(dims) = made.and(node.input.first()).and_then(|x| typing.dims.get(x.as_str())) else { continue };
        for a in axes(typing, node, dims) {
            add(k, &typing.factors.all_leaves(&dims[a]));
        }
    }
    found.into_iter().map(|nodes| nodes.into_iter().collect()).collect()
}

/// The axes of a node's first input of which one element of its output takes several places.
fn axes(typing: &Typing, node: &NodeProto, dims: &[Dim]) -> Vec<usize> {
    let rank = dims.len();
    let mut axes = match node.op_type() {
        // These put places side by side.
        "Concat" | "Split" => return Vec::new(),
        _ if ops::of(node).is(Mark::Window) => {
            let kernel = node.ints("kernel_shape").unwrap_or(&[]);
            return (2..rank).filter(|a| kernel.get(a - 2).is_some_and(|&n| n > 1)).collect();
        }
        "GlobalAveragePool" | "GlobalMaxPool" | "InstanceNormalization" => (2..rank).collect(),
        "GroupNormalization" => return group_norm(typing, node, dims),
        _ => mixed_axes(typing, node, rank),
    };
    let is_norm = node.op_type().contains("Normalization") || node.op_type() == "ReduceMean";
    axes.retain(|&a| a < rank && !(is_norm && a + 1 == rank));
    axes
}

/// The axis of channels, where a group holds those of several heads.
fn group_norm(typing: &Typing, node: &NodeProto, dims: &[Dim]) -> Vec<usize> {
    let groups = node.int("num_groups").unwrap_or(1).max(1) as usize;
    let Some(channels) = dims.get(1) else { return Vec::new() };
    let outermost = typing.factors.leaves(channels).first().map_or(1, |&f| typing.factors.factor_size(f));
    if groups.is_multiple_of(outermost) { Vec::new() } else { vec![1] }
}

/// The factors that norms take their statistics over.
pub fn normed(typing: &Typing) -> HashSet<Factor> {
    let reduces = |op: &str| op.contains("Normalization") || op == "ReduceMean";
    let inputs = typing.graph.node.iter().filter(|n| reduces(n.op_type())).filter_map(|n| n.input.first());
    let channels = inputs.filter_map(|x| typing.dims.get(x.as_str())?.last());
    channels.flat_map(|last| typing.factors.leaves(last)).collect()
}
