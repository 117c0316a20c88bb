//! Which uses of weights belong to a head axis, an output projection or an FFN.

use std::collections::{HashMap, HashSet};

use super::structure::{Attention, FeedForward};
use crate::axes::{Dim, Factor, Typing};
use crate::error::Result;
use crate::graph::Links;
use crate::onnx::is_float;

/// The dimension of one head.
pub fn of_head(typing: &Typing, a: &Attention) -> Dim {
    // Queries that share keys are heads of their own.
    let own: Dim = a.head_dim.iter().copied().filter(|f| !typing.factors.meet(&[*f], &a.queries_per_kv_head)).collect();
    if own.len() < 2 {
        return own;
    }
    // What is joined with the heads in front of the projection (ConvBERT's convolution) is no part of one: no other
    // weight has an axis for the pieces.
    let roles = Roles::new(typing);
    let joined = roles.operand(a.projection);
    let made: Dim = own.iter().copied().filter(|f| roles.carriers(*f).iter().any(|u| !joined.contains(u))).collect();
    if made.is_empty() { own } else { made }
}

/// An axis of a weight along which a contraction sums over a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summed {
    /// Index into [`Typing::uses`].
    pub of_use: usize,
    /// The axis of the use.
    pub axis: usize,
    /// What is summed over; the axis may hold more.
    pub factor: Factor,
}

/// Finds uses of weights by the part that they play. Uses are indices into [`Typing::uses`].
pub struct Roles<'t, 'm> {
    typing: &'t Typing<'m>,
    links: &'t Links<'m>,
    /// Uses by the factors that their axes carry, and by their nodes.
    by_factor: HashMap<Factor, Vec<usize>>,
    by_node: HashMap<usize, Vec<usize>>,
}

impl<'t, 'm> Roles<'t, 'm> {
    /// Prepares the search.
    pub fn new(typing: &'t Typing<'m>) -> Self {
        let (mut by_factor, mut by_node) = (HashMap::<Factor, Vec<usize>>::new(), HashMap::<usize, Vec<usize>>::new());
        for (u, of_use) in typing.uses.iter().enumerate() {
            by_node.entry(of_use.node).or_default().push(u);
            let carried: HashSet<Factor> = of_use.dims.iter().flat_map(|d| typing.factors.all_leaves(d)).collect();
            carried.into_iter().for_each(|f| by_factor.entry(f).or_default().push(u));
        }
        Roles { typing, links: typing.links(), by_factor, by_node }
    }

    /// Uses whose axes carry the factor.
    pub fn carriers(&self, factor: Factor) -> Vec<usize> {
        self.by_factor.get(&self.typing.factors.root(factor)).cloned().unwrap_or_default()
    }

    /// Uses that the weight operand of contraction `k` is made of.
    pub fn operand(&self, k: usize) -> HashSet<usize> {
        self.made_of(k, &[0, 1])
    }

    /// The matrices, used several times by design, that the weight operand of contraction `k` is made of.
    pub fn shared(&self, k: usize) -> Vec<&'m str> {
        let operand = self.operand(k);
        let names = operand.iter().map(|&u| self.typing.uses[u].name.as_str());
        let mut names: Vec<&str> = names.filter_map(|name| self.typing.shared.get(name).copied()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Uses that the fixed values in some input slots of node `k` are, or are computed from.
    fn made_of(&self, k: usize, slots: &[usize]) -> HashSet<usize> {
        let node = &self.typing.graph.node[k];
        let given = slots.iter().filter_map(|&j| node.input.get(j)).map(String::as_str);
        let uses = |node: usize| self.by_node.get(&node).into_iter().flatten().copied();
        let own = uses(k).filter(|&u| slots.contains(&self.typing.uses[u].input));
        self.links.upstream(given.filter(|x| self.typing.is_constant(x))).nodes().flat_map(uses).chain(own).collect()
    }

    /// Uses that any fixed value that node `k` takes is, or is computed from.
    fn taken(&self, k: usize) -> HashSet<usize> {
        let slots: Vec<usize> = (0..self.typing.graph.node[k].input.len()).collect();
        self.made_of(k, &slots)
    }

    /// The bias that contraction `k` adds: its own third input, or a weight in the Add (or skip norm, or BiasGelu)
    /// behind it, also where it is reached through other operators.
    pub fn bias(&self, k: usize) -> Option<usize> {
        self.bias_at(k).map(|b| b.2)
    }

    /// Where the bias that contraction `k` adds meets the data: the node and its input; and the use that it is made of.
    pub fn bias_at(&self, k: usize) -> Option<(usize, usize, usize)> {
        let node = &self.typing.graph.node[k];
        let float = |k: usize, slots: &[usize]| {
            slots.iter().find_map(|&slot| {
                let tensor = |u: &usize| self.typing.weights[self.typing.uses[*u].name.as_str()];
                let found = self.made_of(k, &[slot]).into_iter().filter(|u| is_float(tensor(u))).min();
                found.map(|u| (k, slot, u))
            })
        };
        float(k, &[2]).or_else(|| {
            // A product over flattened tokens gets its axes back before its bias (TensorFlow's Tensordot).
            let op = |k: usize| self.typing.graph.node[k].op_type();
            let moves = |k: usize| matches!(op(k), "Reshape" | "Squeeze" | "Unsqueeze" | "Identity");
            let add = self.links.follow(node.output.first()?, |_| true).find(|&k| !moves(k))?;
            match op(add) {
                "Add" => float(add, &[0, 1]),
                "SkipLayerNormalization" => float(add, &[4]),
                "SkipSimplifiedLayerNormalization" => float(add, &[3]),
                "BiasGelu" | "FastGelu" => float(add, &[1]),
                _ => None,
            }
        })
    }

    /// Floating-point uses that carry the heads of a layer (queries, keys, values and bias tables), each with the
    /// factor that it carries; not those of what sums over heads.
    pub fn head_uses(&self, layer: &Attention) -> Vec<(usize, Factor)> {
        let factors = layer.head_factors(self.typing);
        // What sums over these heads, or mixes them, in all layers that have them: the other uses of a block, and
        // layers that one bias table joins.
        let roots: Vec<Factor> = factors.iter().map(|&f| self.typing.factors.root(f)).collect();
        let sums_heads = |d: &Dim| self.typing.factors.all_leaves(d).iter().any(|f| roots.contains(f));
        let sums = self.typing.contractions.iter().filter(|c| sums_heads(&c.summed));
        let others: HashSet<usize> =
            sums.flat_map(|c| self.operand(c.node).into_iter().chain(self.bias(c.node))).collect();
        let all = factors.into_iter().flat_map(|f| self.carriers(f).into_iter().map(move |u| (u, f)));
        all.filter(|(u, _)| !others.contains(u) && is_float(self.typing.weights[self.typing.uses[*u].name.as_str()]))
            .collect()
    }

    /// The axes of weights along which heads are summed: those of the output projection, and of what mixes heads.
    ///
    /// # Errors
    /// Those of [`summed_over`](Roles::summed_over).
    pub fn summing(&self, layer: &Attention) -> Result<Vec<Summed>> {
        let contractions = std::iter::once(layer.projection).chain(layer.head_mixers.iter().map(|m| m.node));
        let pairs = contractions.zip(layer.head_factors(self.typing));
        let mut out = Vec::new();
        for (k, factor) in pairs {
            out.extend(self.summed_over(k, factor)?);
        }
        Ok(out)
    }

    /// The axes along which contraction `k` sums over a factor, of every use that its weight operand is made of.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) where several axes of a weight hold the factor
    /// (what mixes heads that q, k and v share), and none of them is known to be the one that is summed over.
    pub fn summed_over(&self, k: usize, factor: Factor) -> Result<Vec<Summed>> {
        let operand = self.operand(k);
        let uses = self.carriers(factor).into_iter().filter(|u| operand.contains(u));
        uses.map(|of_use| {
            let dims = &self.typing.uses[of_use].dims;
            let holds =
                |a: &usize| self.typing.factors.all_leaves(&dims[*a]).contains(&self.typing.factors.root(factor));
            let mut axes: Vec<usize> = (0..dims.len()).filter(holds).collect();
            if axes.len() > 1 {
                let is_term = |d: &Dim| self.typing.contractions.iter().any(|c| c.node == k && c.terms.contains(d));
                axes.retain(|&a| is_term(&dims[a]));
            }
            match axes[..] {
                [axis] => Ok(Summed { of_use, axis, factor }),
                _ => bail!(
                    Unsupported,
                    "which axis of `{}` is summed over cannot be told: several hold the same heads",
                    self.typing.uses[of_use].name
                ),
            }
        })
        .collect()
    }

    /// Uses of the output projection that carry the heads of a layer.
    pub fn projection_uses(&self, layer: &Attention) -> Vec<usize> {
        let Some(heads) = layer.head_factor(self.typing) else { return Vec::new() };
        let projection = self.operand(layer.projection);
        self.carriers(heads).into_iter().filter(|u| projection.contains(u)).collect()
    }

    /// All uses of an FFN, in order: what carries its hidden neurons, and the bias of its last matrix. Where a block is
    /// used several times its other uses carry the same neurons, and are not among them.
    pub fn ffn_uses(&self, ffn: &FeedForward) -> Vec<usize> {
        let mut uses = match ffn.hidden_factor(self.typing) {
            Some(f) => self.carriers(f),
            None => Vec::new(),
        };
        if !self.typing.shared.is_empty() {
            let made = ffn.up.iter().flat_map(|&k| self.links.outputs(k));
            let between = self.links.downstream(made).through(|k| k <= ffn.down);
            let own: HashSet<usize> = ffn.up.iter().copied().chain(between).flat_map(|k| self.taken(k)).collect();
            uses.retain(|u| own.contains(u));
        }
        uses.extend(self.bias(ffn.down));
        uses.sort_unstable();
        uses.dedup();
        uses
    }

    /// All uses of a layer's FFNs, one FFN after the other.
    pub fn layer_ffn_uses(&self, layer: &Attention) -> Vec<usize> {
        layer.ffns.iter().flat_map(|f| self.ffn_uses(f)).collect()
    }

    /// The first axis of a use that holds a factor, also inside a sum, and where its indices lie along it.
    pub fn along(&self, of_use: usize, factor: Factor) -> Option<(usize, Vec<Vec<usize>>)> {
        let (factors, dims) = (&self.typing.factors, &self.typing.uses[of_use].dims);
        let axis = dims.iter().position(|d| factors.all_leaves(d).contains(&factors.root(factor)))?;
        Some((axis, self.positions(&Summed { of_use, axis, factor })))
    }

    /// Where along an axis each index of what is summed over lies.
    pub fn positions(&self, s: &Summed) -> Vec<Vec<usize>> {
        self.typing.factors.positions(&self.typing.uses[s.of_use].dims[s.axis], s.factor)
    }

    /// Position of a factor among the leaves of a use's axes: the axis, the elements outside the factor and inside it.
    pub fn place(&self, of_use: usize, factor: Factor) -> Option<(usize, usize, usize)> {
        (0..self.typing.uses[of_use].dims.len()).find_map(|axis| {
            let (outer, inner) = self.around(&Summed { of_use, axis, factor })?;
            Some((axis, outer, inner))
        })
    }

    /// The elements of an axis outside of what is summed over, and inside it; `None` where it lies inside a sum.
    pub fn around(&self, s: &Summed) -> Option<(usize, usize)> {
        let factors = &self.typing.factors;
        let leaves = factors.leaves(&self.typing.uses[s.of_use].dims[s.axis]);
        let at = leaves.iter().position(|&f| f == factors.root(s.factor))?;
        Some((factors.size(&leaves[..at]), factors.size(&leaves[at + 1..])))
    }
}
