//! What is found in a graph: attentions, FFNs, layers and stacks.

use std::collections::HashSet;

use super::tokens::Grid;
use crate::axes::{Dim, Factor, Typing};
use crate::ops::{self, Mark};

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

/// An attention with what belongs to it: of a layer, everything that adds to the residual stream between the value that
/// enters it and the value where the next one begins.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Its Softmax nodes, or its fused operator. Several where several attention maps share one output projection; none
    /// where there is no map ([linear](Attention::is_linear) attention).
    pub softmax: Vec<usize>,
    /// The node of its output projection; where there is none ([`has_projection`](Attention::has_projection)), the
    /// product of its probabilities with the values.
    pub projection: usize,
    /// Its heads; empty where it has one head and so no axis for them. Where several heads of queries share one of keys
    /// and values, the heads of keys and values.
    pub heads: Dim,
    /// Where weights mix its heads before or after the Softmax (talking heads), in order. The heads before each are
    /// resized together with `heads`, which stand behind the last one.
    pub head_mixers: Vec<Mixing>,
    /// Heads of queries that share one head of keys and values; empty where each has its own.
    pub queries_per_kv_head: Dim,
    /// The part of the output projection's input that is not heads.
    pub head_dim: Dim,
    /// What the output projection makes: the residual stream.
    pub embedding: Dim,
    /// Queries.
    pub queries: Dim,
    /// Keys.
    pub keys: Dim,
    /// The FFNs of the layer, in order of execution. Most have one.
    pub ffns: Vec<FeedForward>,
    /// A convolution module that stands in the layer beside FFNs (Conformer). It is kept whole.
    pub convolution: Option<FeedForward>,
    /// The residual sum of the attention itself: the value that it adds to, and the sum.
    pub sum: Option<(String, String)>,
    /// The value of the residual stream that enters the layer.
    pub residual_in: Option<String>,
    /// The value of the residual stream that leaves the layer.
    pub residual_out: Option<String>,
    /// The residual sums of the layer, of its attention and of its FFNs among them: the value that each adds to, and
    /// the sum.
    pub residual_adds: Vec<(String, String)>,
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
    /// True where a convolution over tokens stands between its contractions.
    pub convolves: bool,
    /// The residual sum that is its own: the value that it adds to, and the sum. None where the attention has the same.
    pub sum: Option<(String, String)>,
}

/// Layers on one residual stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// What its stream is made from: `vision`, `text`, another input's name, `queries` where it is learned, or `joint`
    /// where several stacks meet; with a number from the second of that name on.
    pub name: String,
    /// Its layers in order of execution, as indices into [`Anatomy::layers`].
    pub layers: Vec<usize>,
}

impl Anatomy {
    /// The value behind the encoder's last norm: what is computed from the last layer's output and constants alone, by
    /// norms or what they are made of, and has its shape.
    pub fn encoder_end(&self, typing: &Typing) -> Option<String> {
        let leave = self.layers.last()?.residual_out.clone()?;
        let shape = typing.shape(&leave)?;
        let mut inside: HashSet<&str> = HashSet::from([leave.as_str()]);
        let mut end = leave.clone();
        for node in &typing.graph.node {
            let uses = node.input.iter().any(|x| inside.contains(x.as_str()));
            let closed =
                node.input.iter().all(|x| x.is_empty() || inside.contains(x.as_str()) || typing.is_constant(x));
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

    /// True where scores weigh tokens that are added up, and no query has a map of its own (MobileViT v2, SwiftFormer).
    pub fn is_linear(&self) -> bool {
        self.softmax.is_empty()
    }

    /// False where what it attends to is added to the residual stream without a weight (T2T-ViT). Its heads, channels
    /// of the stream, stay as many as they are.
    pub fn has_projection(&self, typing: &Typing) -> bool {
        let operands = typing.graph.node[self.projection].input.iter().filter(|x| !x.is_empty());
        operands.take(2).any(|x| typing.is_constant(x))
    }

    /// The FFN whose neurons a learngene clusters and orders, and whose last matrix is fitted: the last one.
    pub fn ffn(&self) -> Option<&FeedForward> {
        self.ffns.last()
    }

    /// Number of heads of its queries.
    pub fn query_heads(&self, typing: &Typing) -> usize {
        typing.factors.size(&self.heads) * typing.factors.size(&self.queries_per_kv_head)
    }

    /// The factor of its heads, where there is one.
    pub fn head_factor(&self, typing: &Typing) -> Option<Factor> {
        self.own(typing, &self.heads)
    }

    /// All factors that are resized with its heads: those that the output projection sums over first, then those that
    /// are mixed. None where they have no axis of their own.
    pub fn head_factors(&self, typing: &Typing) -> Vec<Factor> {
        let dims = std::iter::once(&self.heads).chain(self.head_mixers.iter().map(|m| &m.heads));
        dims.map(|d| self.own(typing, d)).collect::<Option<_>>().unwrap_or_default()
    }

    /// The factor of heads that are not channels of the residual stream. They are where queries are the stream itself
    /// (GCViT's global queries): no weight makes them, so resizing them would resize the stream. Heads that are
    /// computed one by one have no axis, and heads that are cut into groups (CoaT's windows of several sizes) are not
    /// alike, whether the groups are equal or not.
    fn own(&self, typing: &Typing, heads: &Dim) -> Option<Factor> {
        single(typing, heads).filter(|f| {
            !typing.factors.leaves(&self.embedding).contains(f)
                && !self.has_separate_heads(typing)
                && typing.factors.segments(&[*f]).is_none()
                && !typing.is_taken_apart(*f)
                && typing.pinned_by(*f).is_none()
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
        single(typing, &self.hidden).filter(|f| typing.pinned_by(*f).is_none())
    }
}

fn single(typing: &Typing, dim: &Dim) -> Option<Factor> {
    match typing.factors.leaves(dim)[..] {
        [f] => Some(f),
        _ => None,
    }
}

impl Anatomy {
    /// The layers of a stack by their channels: stages of one width, an encoder and its decoder.
    pub fn by_channels(&self, typing: &Typing, stack: &Stack) -> Vec<Vec<usize>> {
        let mut parts: Vec<(Dim, Vec<usize>)> = Vec::new();
        for &l in &stack.layers {
            let channels = typing.factors.leaves(&self.layers[l].embedding);
            match parts.iter_mut().find(|p| p.0 == channels) {
                Some(part) => part.1.push(l),
                None => parts.push((channels, vec![l])),
            }
        }
        parts.into_iter().map(|p| p.1).collect()
    }

    /// The stack of a layer, and its place in it.
    pub fn stack_of(&self, layer: usize) -> Option<(&Stack, usize)> {
        self.stacks.iter().find_map(|s| Some((s, s.layers.iter().position(|&l| l == layer)?)))
    }
}
