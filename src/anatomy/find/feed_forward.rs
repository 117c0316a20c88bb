//! FFNs: a hidden factor made from the residual stream, and summed over on the way back to it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::structure::{Attention, FeedForward};
use super::finder::{BlockFinder, WeightContraction};
use super::residual::is_skip_norm;
use crate::axes::{Dim, Factor};
use crate::graph::Attributes;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};

impl<'m> BlockFinder<'_, 'm> {
    pub fn feed_forwards(&self, attentions: &[Attention]) -> Vec<FeedForward> {
        let residual = self.leaves(attentions.iter().map(|a| &a.embedding));
        let own = attentions.iter().flat_map(|a| [&a.heads, &a.head_dim]);
        let mixed = attentions.iter().flat_map(|a| a.head_mixers.iter().map(|m| &m.heads));
        let inside = self.leaves(own.chain(mixed));
        let mut nodes: Vec<usize> = self.weight.keys().copied().collect();
        nodes.sort_unstable();
        // The contractions of the stream, by the factors that they make.
        let mut makers: HashMap<Factor, Vec<usize>> = HashMap::new();
        for &k in nodes.iter().filter(|k| self.is_among(&self.weight[k].summed, &residual)) {
            for factor in self.leaves([&self.weight[&k].made]) {
                makers.entry(factor).or_default().push(k);
            }
        }
        let mut found = Vec::new();
        for &down in &nodes {
            let WeightContraction { summed, made } = &self.weight[&down];
            if made.is_empty() || !self.is_among(made, &residual) {
                continue;
            }
            let whole = made.iter().all(|f| self.is_among(&[*f], &residual));
            for hidden in self.segments(summed) {
                if self.is_among(&hidden, &residual) || self.is_among(&hidden, &inside) {
                    continue;
                }
                let made_hidden = self.leaves([&hidden]).into_iter().filter_map(|f| makers.get(&f)).flatten().copied();
                let up: BTreeSet<usize> = made_hidden.filter(|&k| k < down).collect();
                let up: Vec<usize> = up.into_iter().filter(|&k| self.leads_to(k, down, &hidden)).collect();
                // Channels that were cut apart and joined again on the way share some factors with the stream: there
                // the sum that it returns to must be one that it was made from.
                if up.is_empty() || !(whole || self.residual_add(down).0.is_some()) {
                    continue;
                }
                let neurons = |k: &usize| -> usize {
                    let own = self.segments(&self.weight[k].made).filter(|s| self.meet(s, &hidden));
                    own.map(|s| self.size(&s)).sum()
                };
                let gated = up.len() > 1 || up.iter().any(|k| neurons(k) > self.size(&hidden));
                let between = self.between(&up, down, &hidden);
                // Values that are sampled at places of their own are deformable attention, and those that are added to
                // others a residual stream.
                if between.iter().any(|n| n.op_type() == "GridSample") || self.adds_to_others(&up, &between, &hidden) {
                    continue;
                }
                let (activation, convolves) = (self.activation(&between), between.iter().any(|n| convolves(n)));
                found.push(FeedForward { up, down, hidden, gated, activation, convolves, sum: None });
            }
        }
        found
    }

    /// True where what a contraction makes comes to `down` as neurons. In a block that is used several times the
    /// neurons of every use have the same factors.
    fn leads_to(&self, k: usize, down: usize, hidden: &Dim) -> bool {
        let later = self.links.downstream(self.links.outputs(k)).through(|u| u <= down);
        later.until(|u| u == down || self.sums_up(u, hidden)).any(|u| u == down)
    }

    /// True for a contraction that makes something else of neurons. A convolution of each neuron on its own does not.
    fn sums_up(&self, k: usize, hidden: &Dim) -> bool {
        let sums_up = |w: &WeightContraction| self.meet(&w.summed, hidden) && !self.meet(&w.made, hidden);
        self.weight.get(&k).is_some_and(|w| !w.made.is_empty() && sums_up(w))
    }

    /// The nodes between the contractions of an FFN; a convolution of each neuron on its own is one of them.
    fn between(&self, up: &[usize], down: usize, hidden: &Dim) -> Vec<&'m NodeProto> {
        let passes = |u: &usize| self.weight.get(u).is_none_or(|w| self.meet(&w.summed, hidden));
        let made = up.iter().flat_map(|&k| self.links.outputs(k));
        let nodes = self.links.downstream(made).through(|u| u < down && passes(&u) && !self.sums_up(u, hidden));
        nodes.map(|u| self.node(u)).collect()
    }

    /// True where what an FFN would make of its hidden values is added to values that are made elsewhere.
    fn adds_to_others(&self, up: &[usize], between: &[&NodeProto], hidden: &Dim) -> bool {
        let made: HashSet<&str> = up
            .iter()
            .flat_map(|&k| self.links.outputs(k))
            .chain(between.iter().flat_map(|n| n.output.iter().map(String::as_str)))
            .collect();
        let carries = |x: &str| self.typing.dims.get(x).is_some_and(|dims| dims.iter().any(|d| self.meet(d, hidden)));
        let is_other = |x: &&String| !made.contains(x.as_str()) && !self.typing.is_constant(x) && carries(x);
        let mut sums = between.iter().filter(|n| matches!(n.op_type(), "Add" | "Sum") || is_skip_norm(n));
        sums.any(|n| n.input.iter().any(|x| is_other(&x)))
    }

    /// The nonlinearity among the nodes between the contractions of an FFN.
    fn activation(&self, between: &[&NodeProto]) -> String {
        let has = |op: &str| between.iter().find(|n| n.op_type() == op);
        let constant = |value: f64| {
            between.iter().flat_map(|n| &n.input).any(|x| {
                self.typing
                    .known
                    .get(x.as_str())
                    .is_some_and(|v| v.data.len() == 1 && v.data.iter().all(|e| (e - value).abs() < 1e-3))
            })
        };
        let name = if let Some(gelu) = has("Gelu") {
            if gelu.string("approximate") == Some("tanh") { "gelu-tanh" } else { "gelu" }
        } else if has("Erf").is_some() || has("BiasGelu").is_some() {
            "gelu"
        } else if has("FastGelu").is_some() || has("Tanh").is_some() {
            "gelu-tanh"
        } else if has("QuickGelu").is_some() || (has("Sigmoid").is_some() && constant(1.702)) {
            "quick-gelu"
        } else if has("Sigmoid").is_some() || has("Swish").is_some() || has("SwiGLU").is_some() {
            "silu"
        } else if has("Relu").is_some() {
            "relu"
        } else if has("HardSwish").is_some() {
            "hard-swish"
        } else {
            let named = ops::marked(Mark::Activation).find(|op| has(op.name).is_some());
            return named.map_or_else(|| "none".into(), |op| op.name.to_lowercase());
        };
        name.to_string()
    }
}

/// True for a convolution that takes several tokens together.
fn convolves(node: &NodeProto) -> bool {
    node.op_type() == "Conv" && node.ints("kernel_shape").unwrap_or(&[]).iter().any(|&n| n > 1)
}
