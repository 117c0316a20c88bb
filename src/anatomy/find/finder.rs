//! What every search starts from: links, constants, and contractions with weights.

use std::collections::{HashMap, HashSet};

use crate::axes::{Dim, Factor, Typing};
use crate::graph::Links;
use crate::onnx::proto::NodeProto;

/// A contraction with a weight.
pub(super) struct WeightContraction {
    pub summed: Dim,
    pub made: Dim,
}

/// A typed graph in which attentions and FFNs are looked for.
pub(super) struct BlockFinder<'t, 'm> {
    pub typing: &'t Typing<'m>,
    pub links: &'t Links<'m>,
    /// By node.
    pub weight: HashMap<usize, WeightContraction>,
    /// What every contraction sums over, by node.
    pub summed: HashMap<usize, Vec<&'t Dim>>,
}

impl<'t, 'm> BlockFinder<'t, 'm> {
    pub fn new(typing: &'t Typing<'m>) -> Self {
        let mut uses: HashMap<(usize, usize), &Vec<Dim>> = HashMap::new();
        for u in &typing.uses {
            uses.insert((u.node, u.input), &u.dims);
        }
        let mut weight = HashMap::new();
        let mut summed: HashMap<usize, Vec<&Dim>> = HashMap::new();
        for c in &typing.contractions {
            summed.entry(c.node).or_default().push(&c.summed);
            let node = &typing.graph.node[c.node];
            let operands: Vec<usize> =
                (0..node.input.len().min(2)).filter(|&j| typing.is_constant(&node.input[j])).collect();
            let ([j], false) = (&operands[..], c.summed.is_empty()) else { continue };
            let Some(dims) = uses.get(&(c.node, *j)).copied().or_else(|| typing.dims.get(node.input[*j].as_str()))
            else {
                continue;
            };
            let summed = typing.factors.leaves(&c.summed);
            // A matrix from the stream to the stream has the same factors twice: once summed over, once made. Sums that
            // share some segments (channels that pass an attention by) are two factors.
            let mut left = summed.clone();
            let channels = if matches!(node.op_type(), "Conv" | "ConvTranspose") { 2 } else { dims.len() };
            let mut made: Dim = dims.iter().take(channels).flat_map(|d| typing.factors.leaves(d)).collect();
            made.retain(|f| match left.iter().position(|s| s == f) {
                Some(at) => {
                    left.remove(at);
                    false
                }
                None => true,
            });
            weight.insert(c.node, WeightContraction { summed, made });
        }
        BlockFinder { typing, links: typing.links(), weight, summed }
    }

    pub fn node(&self, k: usize) -> &'m NodeProto {
        &self.typing.graph.node[k]
    }

    pub fn meet(&self, a: &[Factor], b: &[Factor]) -> bool {
        self.typing.factors.meet(a, b)
    }

    /// The leaves of some dimensions, to look others up in: [`meet`](BlockFinder::meet) would take all of them apart
    /// each time.
    pub fn leaves<'d>(&self, dims: impl IntoIterator<Item = &'d Dim>) -> HashSet<Factor> {
        dims.into_iter().flat_map(|dim| self.typing.factors.all_leaves(dim)).collect()
    }

    /// True where a leaf of a dimension is one of these.
    pub fn is_among(&self, dim: &[Factor], leaves: &HashSet<Factor>) -> bool {
        self.typing.factors.all_leaves(dim).iter().any(|f| leaves.contains(f))
    }

    pub fn size(&self, dim: &[Factor]) -> usize {
        self.typing.factors.size(dim)
    }

    /// The parts of a dimension that stand side by side in one axis, each as its factors: one where the axis is no sum.
    pub fn segments(&self, dim: &Dim) -> impl Iterator<Item = Dim> {
        let segments = self.typing.factors.segments(dim).unwrap_or_else(|| vec![dim.clone()]);
        segments.into_iter().map(|s| self.typing.factors.leaves(&s))
    }
}
