//! Anatomy: the Vision Transformer in the typed graph.
//!
//! An attention is a Softmax, and its heads are the leading factors of the Softmax's output that the next weight contraction
//! (the output projection) sums over. Batch, windows and shifts are never summed over, so Swin needs nothing special. Where
//! weights mix the heads of scores or probabilities (talking heads), the heads before and after are factors that go together; where
//! several heads of queries share keys and values, the heads are those of the keys. An FFN is a hidden factor made by weight
//! contractions from the residual stream and summed over by one that returns to it. The residual stream is whatever output
//! projections make. No name and no template is looked at.

mod classes;
mod mixers;
mod roles;
mod stacks;
mod tokens;
mod weights;

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::axes::{Dim, Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, Links, resolve_axis};
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark};
pub use classes::{
    Activation, ActivationKind, activation, activations, check_classes, class_factor, class_factors, other_outputs,
    ranking, unit_norms,
};
pub use roles::Roles;
pub use stacks::Stack;
pub use tokens::{Grid, Tokens};
pub use weights::{WeightKind, WeightUse, weight_kinds, weight_uses};

/// What Offshoot found in a graph.
#[derive(Clone, Debug)]
pub struct Anatomy {
    /// Self-attentions with more than one query, in order of execution.
    pub layers: Vec<Attention>,
    /// Attention pooling, class attention and cross-attention, in order of execution.
    pub others: Vec<Attention>,
    /// Which layers follow each other on one residual stream. Every layer is in one of them.
    pub stacks: Vec<Stack>,
    /// The grid of patches that the first layer works on, where it is known.
    pub grid: Option<Grid>,
    /// Tokens of the first layer that are no patches (class token, registers).
    pub prefix_tokens: usize,
}

/// An attention with what belongs to it.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Its Softmax nodes, or its fused operator. Several where several attention maps share one output projection.
    pub softmax: Vec<usize>,
    /// The node of its output projection.
    pub projection: usize,
    /// Its heads; empty where it has one head and so no axis for them. Where several heads of queries share one of keys and
    /// values, the heads of keys and values.
    pub heads: Dim,
    /// Where weights mix its heads before or after the Softmax (talking heads), in order. The heads before each are resized together
    /// with `heads`, which stand behind the last one.
    pub mixings: Vec<Mixing>,
    /// Heads of queries that share one head of keys and values; empty where each has its own.
    pub shared: Dim,
    /// The part of the output projection's input that is not heads.
    pub head_dim: Dim,
    /// What the output projection makes: the residual stream.
    pub embedding: Dim,
    /// Queries.
    pub queries: Dim,
    /// Keys.
    pub keys: Dim,
    /// The FFN that follows it.
    pub ffn: Option<FeedForward>,
    /// The value of the residual stream that enters the layer.
    pub enter: Option<String>,
    /// The value of the residual stream that leaves the layer.
    pub leave: Option<String>,
    /// The residual sums of its attention and of its FFN: the value that each adds to, and the sum.
    pub sums: Vec<(String, String)>,
}

/// A contraction that mixes the heads of scores or of probabilities.
#[derive(Clone, Debug)]
pub struct Mixing {
    /// Its node.
    pub node: usize,
    /// The heads that it sums over.
    pub heads: Dim,
}

/// An FFN.
#[derive(Clone, Debug)]
pub struct FeedForward {
    /// The contractions that make its hidden neurons.
    pub up: Vec<usize>,
    /// The contraction that sums over them.
    pub down: usize,
    /// Its hidden neurons.
    pub hidden: Dim,
    /// True where neurons are products of two projections.
    pub gated: bool,
    /// Its nonlinearity: `gelu`, `gelu-tanh`, `quick-gelu`, `silu`, `relu` or `hard-swish`, or the operator's own name.
    pub activation: String,
}

/// A contraction with a weight.
struct WeightContraction {
    summed: Dim,
    made: Dim,
}

impl Anatomy {
    /// Reads the anatomy of a typed graph.
    ///
    /// # Errors
    /// [`ErrorKind::Anatomy`] where the graph holds no attention.
    pub fn new(typing: &Typing) -> Result<Anatomy> {
        let finder = Finder::new(typing);
        let mut attentions = finder.attentions();
        if attentions.is_empty() {
            return Err(Error::new(
                ErrorKind::Anatomy,
                "no attention found: no Softmax whose heads an output projection sums over",
            )
            .hint(
                "Offshoot works on Vision Transformers; give the model before any compilation into custom operators",
            ));
        }
        let ffns = finder.feed_forwards(&attentions);
        finder.assign(&mut attentions, ffns);
        let stream: Vec<String> = attentions.iter().flat_map(|a| [&a.enter, &a.leave]).flatten().cloned().collect();
        let sums: HashSet<&str> = stream.iter().map(String::as_str).collect();
        let (layers, others): (Vec<_>, Vec<_>) = attentions.iter().cloned().partition(|a| finder.is_layer(a, &sums));
        let first = layers.first().or(others.first());
        let tokens = first.map(|a| Tokens::new(typing, &a.queries));
        Ok(Anatomy {
            grid: tokens.as_ref().and_then(|t| t.grid(typing)),
            prefix_tokens: tokens.map(|t| t.prefix()).unwrap_or(0),
            stacks: stacks::stacks(&finder, &layers),
            layers,
            others,
        })
    }
}

impl Anatomy {
    /// The value behind the encoder's last norm: what is computed from the last layer's output and constants alone, by norms or
    /// what they are made of, and has its shape.
    pub fn encoder_end(&self, typing: &Typing) -> Option<String> {
        let leave = self.layers.last()?.leave.clone()?;
        let shape = typing.shape(&leave)?;
        let fixed = typing.fixed();
        let mut inside: HashSet<&str> = HashSet::from([leave.as_str()]);
        let mut end = leave.clone();
        for node in &typing.graph.node {
            let uses = node.input.iter().any(|x| inside.contains(x.as_str()));
            let closed =
                node.input.iter().all(|x| x.is_empty() || inside.contains(x.as_str()) || fixed.contains(x.as_str()));
            let op = ops::of(node);
            let of_norm = op.is(Mark::LayerNorm) || op.is(Mark::NormStep) || op.name == "ReduceMean";
            if uses && closed && of_norm {
                let Some(o) = node.output.first() else { continue };
                inside.insert(o);
                if typing.shape(o).as_ref() == Some(&shape) {
                    end = o.clone();
                }
            }
        }
        Some(end)
    }
}

impl Attention {
    /// Number of heads.
    pub fn head_count(&self, typing: &Typing) -> usize {
        typing.factors.size(&self.heads)
    }

    /// Number of heads of its queries.
    pub fn query_heads(&self, typing: &Typing) -> usize {
        typing.factors.size(&self.heads) * typing.factors.size(&self.shared)
    }

    /// The factor of its heads, where there is one.
    pub fn head_factor(&self, typing: &Typing) -> Option<Factor> {
        self.own(typing, &self.heads)
    }

    /// All factors that are resized with its heads: those that the output projection sums over first, then those that are mixed.
    /// None where they have no axis of their own.
    pub fn head_factors(&self, typing: &Typing) -> Vec<Factor> {
        let dims = std::iter::once(&self.heads).chain(self.mixings.iter().map(|m| &m.heads));
        dims.map(|d| self.own(typing, d)).collect::<Option<_>>().unwrap_or_default()
    }

    /// The factor of heads that are not channels of the residual stream. They are where queries are the stream itself (GCViT's global
    /// queries): no weight makes them, so resizing them would resize the stream. Heads that are computed one by one have no axis, and
    /// heads that are cut into groups (CoaT's windows of several sizes) are not alike, whether the groups are equal or not.
    fn own(&self, typing: &Typing, heads: &Dim) -> Option<Factor> {
        single(typing, heads).filter(|f| {
            !typing.factors.leaves(&self.embedding).contains(f)
                && !self.has_separate_heads(typing)
                && typing.factors.segments(&[*f]).is_none()
                && !typing.is_taken_apart(*f)
        })
    }

    /// True where every head has a Softmax of its own (cascaded heads).
    pub fn has_separate_heads(&self, typing: &Typing) -> bool {
        let Some(&first) = self.softmax.first() else { return false };
        let carries = || {
            let value = typing.graph.node[first].output.first();
            let dims = value.and_then(|o| typing.dims.get(o.as_str()));
            dims.is_some_and(|d| d.iter().any(|d| typing.factors.meet(d, &self.heads)))
        };
        self.softmax.len() > 1 && self.softmax.len() == self.head_count(typing) && !carries()
    }
}

impl FeedForward {
    /// The factor of its hidden neurons, where there is one.
    pub fn hidden_factor(&self, typing: &Typing) -> Option<Factor> {
        single(typing, &self.hidden)
    }
}

fn single(typing: &Typing, dim: &Dim) -> Option<Factor> {
    match typing.factors.leaves(dim)[..] {
        [f] => Some(f),
        _ => None,
    }
}

/// True where queries and keys are the last axes of what a Softmax makes.
pub(crate) fn in_usual_order(typing: &Typing, node: &NodeProto) -> bool {
    let dims = node.output.first().and_then(|o| typing.dims.get(o.as_str())).cloned().unwrap_or_default();
    score_axes(typing, node, &dims).is_none_or(|(front, last)| [front, last.to_vec()].concat().is_sorted())
}

/// The axes of a Softmax's output: those before queries and keys, and these two. The Softmax runs over the keys, mostly the last axis; where
/// it is not (optimisers move a Transpose past it), queries are as many as keys, or the last axis that is left.
pub(crate) fn score_axes(typing: &Typing, node: &NodeProto, dims: &[Dim]) -> Option<(Vec<usize>, [usize; 2])> {
    let rank = dims.len();
    if rank < 3 {
        return None;
    }
    let axis = node.int("axis").filter(|_| node.op_type() == "Softmax" && typing.opset >= 13).unwrap_or(-1);
    let keys = resolve_axis(axis, rank)?;
    let mut others: Vec<usize> = (0..rank).filter(|&a| a != keys).collect();
    let leaves = |a: usize| typing.factors.leaves(&dims[a]);
    let like_keys = others.iter().rposition(|&a| leaves(a) == leaves(keys)).filter(|_| keys + 1 < rank);
    let queries = others.remove(like_keys.unwrap_or(others.len() - 1));
    Some((others, [queries, keys]))
}

/// True for the operators of ONNX Runtime that add to the residual stream and normalise the sum.
fn is_skip_norm(node: &NodeProto) -> bool {
    matches!(node.op_type(), "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization")
}

struct Finder<'t, 'm> {
    typing: &'t Typing<'m>,
    links: Links<'m>,
    fixed: HashSet<&'m str>,
    weight: HashMap<usize, WeightContraction>,
}

impl<'t, 'm> Finder<'t, 'm> {
    fn new(typing: &'t Typing<'m>) -> Self {
        let fixed = typing.fixed();
        let mut uses: HashMap<(usize, usize), &Vec<Dim>> = HashMap::new();
        for u in &typing.uses {
            uses.insert((u.node, u.input), &u.dims);
        }
        let mut weight = HashMap::new();
        for c in &typing.contractions {
            let node = &typing.graph.node[c.node];
            let operands: Vec<usize> =
                (0..node.input.len().min(2)).filter(|&j| fixed.contains(node.input[j].as_str())).collect();
            let ([j], false) = (&operands[..], c.summed.is_empty()) else { continue };
            let Some(dims) = uses.get(&(c.node, *j)).copied().or_else(|| typing.dims.get(node.input[*j].as_str()))
            else {
                continue;
            };
            let summed = typing.factors.leaves(&c.summed);
            // A matrix from the stream to the stream has the same factors twice: once summed over, once made. Sums that share some
            // segments (channels that pass an attention by) are two factors.
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
        Finder { typing, links: Links::new(typing.graph), fixed, weight }
    }

    fn node(&self, k: usize) -> &'m NodeProto {
        &self.typing.graph.node[k]
    }

    fn meet(&self, a: &[Factor], b: &[Factor]) -> bool {
        self.typing.factors.meet(a, b)
    }

    fn size(&self, dim: &[Factor]) -> usize {
        self.typing.factors.size(dim)
    }

    fn attentions(&self) -> Vec<Attention> {
        let typing = self.typing;
        let mut found: Vec<Attention> = Vec::new();
        for (k, node) in typing.graph.node.iter().enumerate() {
            let fused = typing.fused.get(&k);
            let (front, queries, keys) = match (fused, node) {
                (Some(f), _) => (vec![f.batch.clone(), f.heads.clone()], f.queries.clone(), f.keys.clone()),
                (None, _) if self.is_softmax(k) => {
                    let Some(dims) = node.output.first().and_then(|o| typing.dims.get(o.as_str())) else { continue };
                    let Some((front, [q, k])) = score_axes(typing, node, dims) else { continue };
                    (front.into_iter().map(|a| dims[a].clone()).collect(), dims[q].clone(), dims[k].clone())
                }
                _ => continue,
            };
            let Some(projection) = self.projection(k) else { continue };
            let WeightContraction { summed, made } = &self.weight[&projection];
            let front: Dim = front.iter().flat_map(|d| typing.factors.leaves(d)).collect();
            let (mixings, behind) = self.mixings(k, &front, projection);
            let mut heads: Dim = behind.into_iter().filter(|f| self.meet(&[*f], summed)).collect();
            let own = self.own_heads(k, &heads);
            let shared: Dim = match own.is_empty() || own.len() == heads.len() {
                true => Dim::new(),
                false => std::mem::replace(&mut heads, own.clone()).into_iter().filter(|f| !own.contains(f)).collect(),
            };
            if let Some(same) = found.iter_mut().find(|a| a.projection == projection) {
                same.softmax.push(k);
                continue;
            }
            // What is summed over may hold more than heads: a projection that an FFN shares.
            let made_of = if heads.is_empty() { self.attended(k) } else { heads.clone() };
            let own = self.segments(summed).find(|s| self.meet(s, &made_of)).unwrap_or_else(|| summed.clone());
            let head_dim = own.into_iter().filter(|f| !self.meet(&[*f], &heads)).collect();
            found.push(Attention {
                softmax: vec![k],
                projection,
                heads,
                mixings,
                shared,
                head_dim,
                embedding: made.clone(),
                queries: typing.factors.leaves(&queries),
                keys: typing.factors.leaves(&keys),
                ffn: None,
                enter: None,
                leave: None,
                sums: Vec::new(),
            });
        }
        // Heads that each have a Softmax of their own are joined by a Concat: its pieces are the heads.
        for a in found.iter_mut().filter(|a| a.heads.is_empty() && a.softmax.len() > 1) {
            if let Some((&pieces, rest)) = a.head_dim.split_first()
                && self.size(&[pieces]) == a.softmax.len()
            {
                (a.heads, a.head_dim) = (Dim::from_slice(&[pieces]), Dim::from_slice(rest));
            }
        }
        found
    }

    /// A Softmax over the last axis, also where it is written out: exponentials over their sum.
    fn is_softmax(&self, k: usize) -> bool {
        let node = self.node(k);
        let maker = |x: &String| self.links.maker.get(x.as_str()).map(|&m| self.node(m));
        let sums_last = |sum: &NodeProto, of: &String| {
            let shape = |x: &String| self.typing.shape(x);
            sum.op_type() == "ReduceSum"
                && sum.input.first() == Some(of)
                && sum.output.first().and_then(shape).zip(shape(of)).is_some_and(|(mut one, all)| {
                    one.last() == Some(&1) && {
                        one.pop();
                        all.starts_with(&one) && all.len() == one.len() + 1
                    }
                })
        };
        match (node.op_type(), &node.input[..]) {
            ("Softmax", _) => true,
            ("Div", [e, sum]) => {
                maker(e).is_some_and(|m| m.op_type() == "Exp") && maker(sum).is_some_and(|m| sums_last(m, e))
            }
            ("Mul", [a, b]) => [(a, b), (b, a)].into_iter().any(|(e, inverse)| {
                let sum = maker(inverse).filter(|m| m.op_type() == "Reciprocal").and_then(|m| maker(m.input.first()?));
                maker(e).is_some_and(|m| m.op_type() == "Exp") && sum.is_some_and(|m| sums_last(m, e))
            }),
            _ => false,
        }
    }

    /// Talking heads: weight contractions from heads to as many heads, of scores on the way to the Softmax or of probabilities
    /// behind it. Returns them in order, and the leading factors behind the last one.
    fn mixings(&self, softmax: usize, front: &Dim, projection: usize) -> (Vec<Mixing>, Dim) {
        let mut found = Vec::new();
        if self.typing.fused.contains_key(&softmax) {
            return (found, front.clone());
        }
        let mixes =
            |from: &[Factor], to: &[Factor]| from.len() == 1 && to.len() == 1 && self.size(from) == self.size(to);
        // Backwards to the product of queries and keys: what is summed over makes heads.
        let mut heads = front.clone();
        let mut todo = vec![softmax];
        let mut seen = HashSet::new();
        while let Some(k) = todo.pop() {
            for m in self.node(k).input.iter().filter_map(|x| self.links.maker.get(x.as_str()).copied()) {
                if !seen.insert(m) {
                    continue;
                }
                match self.weight.get(&m) {
                    Some(w) if mixes(&w.summed, &w.made) && self.meet(&w.made, &heads) => {
                        found.insert(0, Mixing { node: m, heads: w.summed.clone() });
                        heads = w.summed.clone();
                        todo = vec![m];
                    }
                    None if !self.is_product(m) => todo.push(m),
                    _ => {}
                }
            }
        }
        // Forwards to the product with the values.
        let mut heads = front.clone();
        let mut todo: BTreeSet<usize> =
            self.node(softmax).output.iter().flat_map(|o| self.links.users(o)).copied().collect();
        while let Some(m) = todo.pop_first().filter(|&m| m < projection) {
            match self.weight.get(&m) {
                Some(w) if mixes(&w.summed, &w.made) && self.meet(&w.summed, &heads) => {
                    found.push(Mixing { node: m, heads: w.summed.clone() });
                    heads = w.made.clone();
                }
                None if !self.is_product(m) => {}
                _ => continue,
            }
            todo.extend(self.node(m).output.iter().flat_map(|o| self.links.users(o)).copied());
        }
        (found, heads)
    }

    fn is_product(&self, k: usize) -> bool {
        matches!(self.node(k).op_type(), "MatMul" | "FusedMatMul" | "Einsum")
    }

    /// The heads that keys carry all the way from their projection: grouped queries share the others.
    fn own_heads(&self, softmax: usize, heads: &Dim) -> Dim {
        let [_, keys] = self.score_operands(softmax)[..] else { return heads.clone() };
        let mut own = heads.clone();
        let mut todo = vec![keys];
        let mut seen = HashSet::new();
        while let Some(x) = todo.pop() {
            if !seen.insert(x) || x.is_empty() || self.fixed.contains(x) {
                continue;
            }
            let carried: Vec<Factor> =
                self.typing.dims.get(x).into_iter().flatten().flat_map(|d| self.typing.factors.all_leaves(d)).collect();
            if heads.iter().any(|f| carried.contains(f)) {
                own.retain(|f| carried.contains(f));
            }
            if let Some(&m) = self.links.maker.get(x).filter(|m| !self.weight.contains_key(m)) {
                todo.extend(self.node(m).input.iter().map(String::as_str));
            }
        }
        own
    }

    /// The factors of what an attention makes: of the product of its probabilities with the values.
    fn attended(&self, softmax: usize) -> Dim {
        let product =
            |k: &usize| self.typing.fused.contains_key(k) || (self.is_product(*k) && !self.weight.contains_key(k));
        let mut todo = BTreeSet::from([softmax]);
        while let Some(k) = todo.pop_first() {
            let outputs = self.node(k).output.iter();
            if product(&k) {
                let dims = outputs.take(1).filter_map(|o| self.typing.dims.get(o.as_str())).flatten();
                return dims.flat_map(|d| self.typing.factors.leaves(d)).collect();
            }
            todo.extend(outputs.flat_map(|o| self.links.users(o)).copied());
        }
        Dim::new()
    }

    /// Forward from the probabilities: their product with the values, then the first contraction with a weight of what the
    /// attention made that everything made from it passes through; else the first one.
    fn projection(&self, softmax: usize) -> Option<usize> {
        let attended = self.attended(softmax);
        let mut product = self.typing.fused.contains_key(&softmax);
        let mut first = None;
        let mut seen = BTreeSet::from([softmax]);
        let mut todo = seen.clone();
        while let Some(k) = todo.pop_first() {
            if let (true, Some(w)) = (product && k != softmax, self.weight.get(&k)) {
                first = first.or(Some(k));
                if todo.is_empty() && self.meet(&w.summed, &attended) {
                    return Some(k);
                }
            } else {
                product |= self.is_product(k) && !self.weight.contains_key(&k);
            }
            for o in self.node(k).output.iter().filter(|o| !self.typing.known.contains_key(o.as_str())) {
                todo.extend(self.links.users(o).iter().filter(|u| seen.insert(**u)));
            }
        }
        first
    }

    /// The parts of a dimension that stand side by side in one axis, each as its factors: one where the axis is no sum.
    fn segments(&self, dim: &Dim) -> impl Iterator<Item = Dim> {
        let segments = self.typing.factors.segments(dim).unwrap_or_else(|| vec![dim.clone()]);
        segments.into_iter().map(|s| self.typing.factors.leaves(&s))
    }

    fn feed_forwards(&self, attentions: &[Attention]) -> Vec<FeedForward> {
        let residual: Vec<Factor> = attentions.iter().flat_map(|a| a.embedding.iter().copied()).collect();
        let inside: Vec<Factor> = attentions
            .iter()
            .flat_map(|a| a.heads.iter().chain(&a.head_dim).chain(a.mixings.iter().flat_map(|m| &m.heads)).copied())
            .collect();
        let mut nodes: Vec<usize> = self.weight.keys().copied().collect();
        nodes.sort_unstable();
        let mut found = Vec::new();
        for &down in &nodes {
            let WeightContraction { summed, made } = &self.weight[&down];
            if made.is_empty() || !self.meet(made, &residual) {
                continue;
            }
            let whole = made.iter().all(|f| self.meet(&[*f], &residual));
            for hidden in self.segments(summed) {
                if self.meet(&hidden, &residual) || self.meet(&hidden, &inside) {
                    continue;
                }
                let up: Vec<usize> = nodes
                    .iter()
                    .copied()
                    .filter(|&k| {
                        let w = &self.weight[&k];
                        k < down && self.meet(&hidden, &w.made) && self.meet(&w.summed, &residual)
                    })
                    .collect();
                // Channels that were cut apart and joined again on the way share some factors with the stream: there the sum that it
                // returns to must be one that it was made from.
                if up.is_empty() || !(whole || self.residual_add(down).0.is_some()) {
                    continue;
                }
                let neurons = |k: &usize| -> usize {
                    let own = self.segments(&self.weight[k].made).filter(|s| self.meet(s, &hidden));
                    own.map(|s| self.size(&s)).sum()
                };
                let gated = up.len() > 1 || up.iter().any(|k| neurons(k) > self.size(&hidden));
                let activation = self.activation(&up, down, &hidden);
                found.push(FeedForward { up, down, hidden, gated, activation });
            }
        }
        found
    }

    /// The nonlinearity between the contractions of an FFN, before or behind a convolution of each neuron on its own.
    fn activation(&self, up: &[usize], down: usize, hidden: &Dim) -> String {
        let passes = |u: &usize| self.weight.get(u).is_none_or(|w| self.meet(&w.summed, hidden));
        let mut seen = BTreeSet::new();
        let mut todo: Vec<usize> = up.to_vec();
        let mut between = Vec::new();
        while let Some(k) = todo.pop() {
            for o in &self.node(k).output {
                for &u in self.links.users(o) {
                    if u < down && passes(&u) && seen.insert(u) {
                        between.push(self.node(u));
                        todo.push(u);
                    }
                }
            }
        }
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
        } else if has("Sigmoid").is_some() || has("Swish").is_some() {
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

    /// Gives every attention the FFN that follows it, and finds where layers begin and end in the residual stream.
    fn assign(&self, attentions: &mut [Attention], ffns: Vec<FeedForward>) {
        let sums: Vec<_> = ffns.iter().map(|f| self.residual_add(f.down)).collect();
        for a in attentions.iter_mut() {
            (a.enter, a.leave) = self.residual_add(a.projection);
            a.sums.extend(a.enter.clone().zip(a.leave.clone()));
        }
        let order: Vec<usize> = attentions.iter().map(|a| a.projection).collect();
        let mut taken = HashSet::new();
        let mut first = 0;
        while first < attentions.len() {
            // Attentions that branch from the same value stand side by side, and so do their FFNs.
            let mut last = first;
            while last + 1 < attentions.len()
                && attentions[first].enter.is_some()
                && attentions[last + 1].enter == attentions[first].enter
            {
                last += 1;
            }
            let from = first.checked_sub(1).map(|p| order[p]).unwrap_or(0);
            let until = order.get(last + 1).copied().unwrap_or(usize::MAX);
            for a in &mut attentions[first..=last] {
                let made = |f: &FeedForward| self.meet(&a.embedding, &self.weight[&f.down].made);
                // Both branches in one sum.
                let shared = (0..ffns.len()).find(|i| {
                    !taken.contains(i) && a.enter.is_some() && sums[*i] == (a.enter.clone(), a.leave.clone())
                });
                // Where branches of a model stand between each other, the FFN that adds to what the attention made.
                let joined = (0..ffns.len())
                    .find(|i| !taken.contains(i) && a.leave.is_some() && sums[*i].0 == a.leave && made(&ffns[*i]));
                let behind = (0..ffns.len()).find(|i| {
                    !taken.contains(i) && order[last] < ffns[*i].down && ffns[*i].down < until && made(&ffns[*i])
                });
                // Parallel blocks: the FFN branches from the same value as the attention, and may stand before it or share its
                // projection.
                let beside = || {
                    (0..ffns.len()).find(|i| {
                        !taken.contains(i)
                            && from < ffns[*i].down
                            && ffns[*i].down <= order[last]
                            && a.enter.is_some()
                            && sums[*i].0 == a.enter
                    })
                };
                let Some(i) = shared.or(joined).or(behind).or_else(beside) else { continue };
                taken.insert(i);
                a.ffn = Some(ffns[i].clone());
                a.sums.extend(sums[i].0.clone().zip(sums[i].1.clone()).filter(|s| !a.sums.contains(s)));
                let position = |v: &Option<String>| v.as_deref().and_then(|v| self.links.maker.get(v).copied());
                if position(&sums[i].1) > position(&a.leave) {
                    a.leave = sums[i].1.clone();
                }
            }
            first = last + 1;
        }
    }

    /// Everything that a node is made from.
    fn ancestors(&self, k: usize) -> HashSet<&'m str> {
        let mut before = HashSet::new();
        let mut todo: Vec<&str> = self.node(k).input.iter().map(String::as_str).collect();
        while let Some(x) = todo.pop() {
            if before.insert(x)
                && let Some(&m) = self.links.maker.get(x)
            {
                let node = self.node(m);
                todo.extend(node.input.iter().map(String::as_str));
                // What a skip norm normalises is its fourth output.
                before.extend(node.output.get(3).filter(|_| is_skip_norm(node)).map(String::as_str));
            }
        }
        before
    }

    /// The skip value and the sum of the first Add that joins what node `k` makes with something that `k` was made from.
    fn residual_add(&self, k: usize) -> (Option<String>, Option<String>) {
        let before = self.ancestors(k);
        // In half precision a skip may pass a Cast of its own.
        let is_before = |x: &str| {
            let mut x = x;
            loop {
                if before.contains(x) {
                    return true;
                }
                match self.links.maker.get(x).map(|&m| self.node(m)) {
                    Some(node) if node.op_type() == "Cast" => x = node.input.first().map_or("", String::as_str),
                    _ => return false,
                }
            }
        };
        let mut made: HashSet<&str> = self.node(k).output.iter().map(String::as_str).collect();
        let mut todo: BTreeSet<usize> = made.iter().flat_map(|o| self.links.users(o)).copied().collect();
        while let Some(c) = todo.pop_first() {
            let node = self.node(c);
            if matches!(node.op_type(), "Add" | "Sum") || is_skip_norm(node) {
                let skip = node
                    .input
                    .iter()
                    .find(|x| !made.contains(x.as_str()) && is_before(x) && !self.fixed.contains(x.as_str()));
                if let Some(skip) = skip {
                    let sum = match node.op_type() {
                        "Add" | "Sum" => node.output.first(),
                        // The fourth output of a skip norm is the sum; the first is already normalised.
                        _ => node.output.get(3).filter(|o| !o.is_empty()),
                    };
                    return (Some(skip.clone()), sum.cloned());
                }
            }
            made.extend(node.output.iter().map(String::as_str));
            todo.extend(node.output.iter().flat_map(|o| self.links.users(o)).copied());
        }
        (None, None)
    }

    /// A layer has more than one query, and its queries and keys come from the same stream: going back from both, the first
    /// sums of the residual stream that are met have one in common, or the keys come from the sum that the attention adds to (a
    /// global query that all layers of a stage share).
    fn is_layer(&self, a: &Attention, sums: &HashSet<&str>) -> bool {
        if self.size(&a.queries) < 2 {
            return false;
        }
        let operands = self.score_operands(a.softmax[0]);
        let [queries, keys] = operands[..] else { return true };
        let [(stream_q, varies_q), (stream_k, varies_k)] = [self.sources(queries, sums), self.sources(keys, sums)];
        varies_q
            && varies_k
            && (stream_q.intersection(&stream_k).next().is_some()
                || a.enter.as_deref().is_some_and(|e| stream_k.contains(e))
                || (stream_q.is_empty() && stream_k.is_empty()))
    }

    /// The sums that a value is made from most directly, and whether it depends on the model's input at all.
    fn sources<'s>(&self, value: &'m str, sums: &HashSet<&'s str>) -> (HashSet<&'s str>, bool) {
        let (mut found, mut varies) = (HashSet::new(), false);
        let mut seen = HashSet::new();
        let mut todo = vec![value];
        while let Some(x) = todo.pop() {
            if !seen.insert(x) || self.fixed.contains(x) || x.is_empty() {
                continue;
            }
            if let Some(sum) = sums.get(x) {
                found.insert(*sum);
                varies = true;
                continue;
            }
            match self.links.maker.get(x) {
                Some(&m) => todo.extend(self.node(m).input.iter().map(String::as_str)),
                None => varies = true,
            }
        }
        (found, varies)
    }

    /// The two values whose product is the scores: queries and keys.
    fn score_operands(&self, softmax: usize) -> Vec<&'m str> {
        let node = self.node(softmax);
        if self.typing.fused.contains_key(&softmax) {
            let queries = node.input.first().map_or("", String::as_str);
            // One operand may hold queries, keys and values.
            let separate = node.input.get(1).filter(|x| !x.is_empty() && !self.weight.contains_key(&softmax));
            return vec![queries, separate.map_or(queries, String::as_str)];
        }
        let dims = node.output.first().and_then(|o| self.typing.dims.get(o.as_str()));
        let Some([.., queries, keys]) = dims.map(Vec::as_slice) else { return Vec::new() };
        let mut todo: Vec<&str> = node.input.iter().map(String::as_str).collect();
        let mut seen = HashSet::new();
        while let Some(x) = todo.pop() {
            let Some(&m) = self.links.maker.get(x).filter(|m| seen.insert(**m)) else { continue };
            let maker = self.node(m);
            let product = self.is_product(m);
            let operands: Vec<&str> = maker.input.iter().take(2).map(String::as_str).collect();
            if product && operands.len() == 2 {
                if !operands.iter().any(|o| self.fixed.contains(o)) {
                    return operands;
                }
                // Learned queries are fixed. Weights that mix heads have no queries, and tables of relative positions have keys too.
                let holds = |o: usize, part: &Dim| {
                    self.typing.dims.get(operands[o]).into_iter().flatten().any(|d| self.meet(d, part))
                };
                let sides =
                    |q: usize, k: usize| holds(q, queries) && !holds(q, keys) && holds(k, keys) && !holds(k, queries);
                if sides(0, 1) || sides(1, 0) {
                    return operands;
                }
            }
            todo.extend(maker.input.iter().filter(|i| !self.fixed.contains(i.as_str())).map(String::as_str));
        }
        Vec::new()
    }
}
