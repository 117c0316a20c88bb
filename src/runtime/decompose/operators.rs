//! Which operators are taken apart for whom, and how each is.

use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    Attributes, Builder, element_types, float_attribute, int_attribute, ints_attribute, lift_constants,
};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto};
use crate::onnx::{DataType, Model, node_label, tensor_from_f32, tensor_from_raw};
use crate::ops::{self, Mark};
use std::collections::HashMap;

/// A graph without the fused operators that were asked for.
pub struct Decomposed {
    /// The graph.
    pub graph: GraphProto,
    /// The probabilities [batch, heads, queries, keys] that took the place of each fused attention, by the node's old
    /// index.
    pub probabilities: HashMap<usize, String>,
}

/// Takes the fused attention operators `nodes` apart.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for masks and caches of forms that have no decomposition here; it names the node.
pub fn decompose_attention(typing: &Typing, nodes: &[usize]) -> Result<Decomposed> {
    decompose(typing, |k, _| nodes.contains(&k))
}

/// The graph without what is younger than the embedded runtime, and without fused attention.
///
/// # Errors
/// Those of [`decompose_attention`].
pub(in crate::runtime) fn without_recent(typing: &Typing) -> Result<GraphProto> {
    let chosen = |k: usize, node: &NodeProto| typing.fused.contains_key(&k) || ops::of(node).is(Mark::Recent);
    Ok(decompose(typing, chosen)?.graph)
}

/// The typed model with every `com.microsoft` SkipLayerNormalization (SkipSimplifiedLayerNormalization) as a sum and a
/// norm, so that the residual stream can be cut between them; `None` where there is none.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the statistics are outputs of their own; it names the node.
pub fn separate_skip_norms(model: &Model, typing: &Typing) -> Result<Option<Model>> {
    let skips = |node: &NodeProto| node.op_type().starts_with("Skip");
    if !typing.graph.node.iter().any(skips) {
        return Ok(None);
    }
    let mut apart = model.clone();
    *apart.graph_mut() = decompose(typing, |_, node| skips(node))?.graph;
    Ok(Some(apart))
}

/// The graph in the form that gradient rules are for: fused operators taken apart, weights in initializers.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a fused operator of a form that has no decomposition here; it names the node.
pub fn differentiable(typing: &Typing) -> Result<GraphProto> {
    let chosen = |k: usize, node: &NodeProto| {
        typing.fused.contains_key(&k) || ops::of(node).is(Mark::Composite) || takes_statistics(typing, node)
    };
    let decomposed = decompose(typing, chosen)?;
    let mut graph = decomposed.graph;
    lift_constants(&mut graph);
    Ok(graph)
}

/// A BatchNormalization whose statistics are computed, by itself or before it: exporters write standardised weights so.
fn takes_statistics(typing: &Typing, node: &NodeProto) -> bool {
    let computed = || node.input.iter().skip(3).any(|x| !typing.weights.contains_key(x.as_str()));
    node.op_type() == "BatchNormalization" && (node.int("training_mode").unwrap_or(0) != 0 || computed())
}

fn decompose(typing: &Typing, chosen: impl Fn(usize, &NodeProto) -> bool) -> Result<Decomposed> {
    let types = element_types(typing.graph);
    let mut graph = typing.graph.clone();
    let mut builder = Builder::new(&graph, typing.opset, "");
    let mut probabilities = HashMap::new();
    for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        if !chosen(k, &node) {
            builder.nodes.push(node);
            continue;
        }
        let label = node_label(&node);
        builder.under(node.output.first().map_or("", String::as_str));
        let mut work = Decomposer { typing, types: &types, node: &node, builder: &mut builder };
        let done = match node.op_type() {
            "RotaryEmbedding" => work.rotary(),
            "BiasGelu" | "FastGelu" => work.gelu(),
            "BatchNormalization" => work.batch_norm(),
            "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => work.skip_norm(),
            "SwiGLU" => work.gated_swish(),
            "CumProd" => work.cumulative_product(),
            "CausalConvWithState" => work.causal_convolution(),
            "LinearAttention" => work.linear_attention(),
            _ => work.attention(k).map(|p| {
                probabilities.insert(k, p);
            }),
        };
        done.map_err(|e| e.in_node(label))?;
    }
    builder.finish(&mut graph);
    graph.value_info.clear();
    Ok(Decomposed { graph, probabilities })
}

pub(super) struct Decomposer<'a, 'm> {
    pub(super) typing: &'a Typing<'m>,
    types: &'a HashMap<&'m str, DataType>,
    pub(super) node: &'a NodeProto,
    builder: &'a mut Builder,
}

/// What an attention works on.
struct Operands {
    q: String,
    k: String,
    v: String,
    /// True where a key is seen, or what is added to the scores.
    mask: Option<String>,
    /// Axes of the queries: heads lie side by side in the last of 3, and are one of 4.
    rank: usize,
}

impl Decomposer<'_, '_> {
    pub(super) fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.builder.op_with(op, inputs, attributes)
    }

    /// The last step, which makes output `j` of the fused node.
    pub(super) fn end(&mut self, j: usize, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) {
        self.builder.op_as(op, inputs, attributes, &self.node.output[j]);
    }

    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        self.builder.operand(values)
    }

    /// A constant of the element type that the node computes in.
    pub(super) fn scalar(&mut self, value: f32) -> String {
        self.filled(&[], value)
    }

    /// One number everywhere, of the element type that the node computes in.
    pub(super) fn filled(&mut self, shape: &[usize], value: f32) -> String {
        let elements = vec![value; shape.iter().product()];
        self.builder.tensor(tensor_from_f32("offshoot_constant", self.kind(), shape, &elements))
    }

    /// The element type that the node computes in.
    fn kind(&self) -> DataType {
        self.node.input.first().and_then(|x| self.types.get(x.as_str())).copied().unwrap_or(DataType::Float)
    }

    pub(super) fn shape(&self, x: &str) -> Result<Vec<usize>> {
        self.typing.shape(x).ok_or_else(|| Error::new(ErrorKind::Internal, format!("the shape of `{x}` is not known")))
    }

    /// Elements from `start` on along an axis, up to `end`, every `step`-th.
    pub(super) fn slice(&mut self, x: &str, axis: i64, [start, end, step]: [i64; 3]) -> String {
        let operands = [self.ints(&[start]), self.ints(&[end]), self.ints(&[axis]), self.ints(&[step])];
        self.op("Slice", &[x, &operands[0], &operands[1], &operands[2], &operands[3]], vec![])
    }

    /// A new axis of one element; axes became an input in opset 13.
    fn unsqueeze(&mut self, x: &str, axis: i64) -> String {
        if self.typing.opset < 13 {
            return self.op("Unsqueeze", &[x], vec![ints_attribute("axes", &[axis])]);
        }
        let axes = self.ints(&[axis]);
        self.op("Unsqueeze", &[x, &axes], vec![])
    }

    /// [batch, tokens, heads x dim] as [batch, heads, tokens, dim].
    pub(super) fn separate(&mut self, x: &str, heads: usize) -> String {
        let shape = self.ints(&[0, 0, heads as i64, -1]);
        let x = self.op("Reshape", &[x, &shape], vec![]);
        self.op("Transpose", &[&x], vec![ints_attribute("perm", &[0, 2, 1, 3])])
    }

    /// [batch, heads, tokens, dim] as [batch, tokens, heads x dim], the node's output.
    pub(super) fn merge(&mut self, x: &str) {
        let merged = self.op("Transpose", &[x], vec![ints_attribute("perm", &[0, 2, 1, 3])]);
        let shape = self.ints(&[0, 0, -1]);
        self.end(0, "Reshape", &[&merged, &shape], vec![]);
    }

    pub(super) fn input(&self, j: usize) -> Option<&str> {
        self.node.input.get(j).map(String::as_str).filter(|x| !x.is_empty())
    }

    /// The name of an operand that the operator cannot do without.
    pub(super) fn operand(&self, j: usize) -> Result<String> {
        match self.input(j) {
            Some(x) => Ok(x.to_string()),
            None => bail!(Format, "`{}` has no input {j}, which it cannot do without", self.node.op_type()),
        }
    }

    pub(super) fn refuse(&self, what: &str) -> Error {
        Error::new(ErrorKind::Unsupported, format!("`{}` with {what} cannot be taken apart", self.node.op_type())).hint(
            "export without fused operators (timm: `set_fused_attn(False)`; transformers: \
                `attn_implementation=\"eager\"`)",
        )
    }

    /// All attentions: `com.microsoft` Attention and MultiHeadAttention, and Attention of opset 23. Returns the
    /// probabilities.
    fn attention(&mut self, k: usize) -> Result<String> {
        let typing = self.typing;
        let fused = &typing.fused[&k];
        let size = |dim| typing.factors.size(dim);
        let (heads, queries, keys) = (size(&fused.heads), size(&fused.queries), size(&fused.keys));
        if self.node.output.iter().skip(1).any(|o| !o.is_empty()) {
            return Err(self.refuse("more than one output"));
        }
        if self.node.op_type().starts_with("Packed") {
            let why =
                format!("`{}` leaves padding out: it runs on CUDA only and cannot be taken apart", self.node.op_type());
            return Err(Error::new(ErrorKind::Unsupported, why)
                .hint("give the model as it was before padding was packed (`Attention` or `MultiHeadAttention`)"));
        }
        let operands = match self.node.op_type() {
            _ if self.projects() => self.projected_operands()?,
            "MultiHeadAttention" => self.biased_operands()?,
            _ => self.plain_operands()?,
        };
        let (rank, mask) = (operands.rank, operands.mask.clone());
        let key_heads = self.key_heads(heads, rank)?;
        let head_dim = self.head_dim(heads, rank)?;
        let [q, k, v] = self.by_heads(operands, [key_heads, heads, keys])?;
        let mut scores = self.scores(&q, &k, head_dim);
        scores = self.windowed(scores, queries, keys);
        if let Some(mask) = mask {
            scores = match self.types.get(mask.as_str()) {
                Some(DataType::Bool) => self.masked(&mask, &scores),
                _ => self.op("Add", &[&scores, &mask], vec![]),
            };
        }
        scores = self.causal(scores, queries, keys);
        let probabilities =
            self.op("Softmax", &[&scores], vec![int_attribute("axis", if typing.opset < 13 { 3 } else { -1 })]);
        let mixed = self.op("MatMul", &[&probabilities, &v], vec![]);
        match rank {
            3 => self.merge(&mixed),
            _ => self.end(0, "Identity", &[&mixed], vec![]),
        }
        Ok(probabilities)
    }

    /// True for the Attention of `com.microsoft`, which multiplies tokens by the weights of queries, keys and values
    /// itself.
    fn projects(&self) -> bool {
        self.node.op_type() == "Attention" && self.node.domain() == "com.microsoft"
    }

    /// Parts of one product with weights that lie side by side.
    fn projected_operands(&mut self) -> Result<Operands> {
        if [3, 4, 6].iter().any(|&j| self.input(j).is_some()) {
            return Err(self.refuse("a padding mask or a cache"));
        }
        let (x, w) = (self.operand(0)?, self.operand(1)?);
        let mut packed = self.op("MatMul", &[&x, &w], vec![]);
        if let Some(bias) = self.input(2).map(str::to_string) {
            packed = self.op("Add", &[&packed, &bias], vec![]);
        }
        let width = self.shape(&w)?.last().copied().unwrap_or(0) as i64 / 3;
        let [q, k, v] = [0, 1, 2].map(|i| self.slice(&packed, 2, [i * width, (i + 1) * width, 1]));
        Ok(Operands { q, k, v, mask: self.input(5).map(str::to_string), rank: 3 })
    }

    /// MultiHeadAttention: its operands, each with its part of the bias.
    fn biased_operands(&mut self) -> Result<Operands> {
        if [4, 6, 7].iter().any(|&j| self.input(j).is_some()) || self.input(2).is_none() {
            return Err(self.refuse("a padding mask, a cache or packed operands"));
        }
        let mut operands = [self.operand(0)?, self.operand(1)?, self.operand(2)?];
        for (j, axes) in [(0, 3..4), (1, 3..5)] {
            let rank = self.shape(&operands[j])?.len();
            if !axes.contains(&rank) || (rank == 4 && self.input(3).is_some()) {
                return Err(self.refuse("packed operands"));
            }
        }
        if let Some(bias) = self.input(3).map(str::to_string) {
            let mut start = 0;
            for operand in operands.iter_mut() {
                let width = self.shape(operand)?.last().copied().unwrap_or(0) as i64;
                let part = self.slice(&bias, 0, [start, start + width, 1]);
                *operand = self.op("Add", &[operand, &part], vec![]);
                start += width;
            }
        }
        let [q, k, v] = operands;
        Ok(Operands { q, k, v, mask: self.input(5).map(str::to_string), rank: 3 })
    }

    /// Attention of opset 23: its operands as they are.
    fn plain_operands(&self) -> Result<Operands> {
        if [4, 5, 6].iter().any(|&j| self.input(j).is_some()) {
            return Err(self.refuse("a cache"));
        }
        let (q, k, v) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let rank = self.shape(&q)?.len();
        Ok(Operands { q, k, v, mask: self.input(3).map(str::to_string), rank })
    }

    /// How many heads keys and values have.
    fn key_heads(&self, heads: usize, rank: usize) -> Result<usize> {
        Ok(match self.node.int("kv_num_heads") {
            Some(n) if rank == 3 => n as usize,
            _ if rank == 4 => self.shape(&self.operand(1)?)?[1],
            _ => heads,
        })
    }

    fn head_dim(&self, heads: usize, rank: usize) -> Result<usize> {
        let (name, parts) = if self.projects() { (&self.operand(1)?, 3) } else { (&self.operand(0)?, 1) };
        let last = self.shape(name)?.last().copied().unwrap_or(1);
        Ok(if rank == 4 { last } else { last / parts / heads.max(1) })
    }

    /// Queries, keys and values as [batch, heads, tokens, dim], all with the heads of the queries.
    fn by_heads(&mut self, operands: Operands, [key_heads, heads, keys]: [usize; 3]) -> Result<[String; 3]> {
        let Operands { mut q, mut k, mut v, rank, .. } = operands;
        let apart = self.projects() || self.shape(&self.operand(1)?)?.len() == 3;
        if rank == 3 {
            q = self.separate(&q, heads);
            // Keys and values of MultiHeadAttention may have an axis of heads where queries have none.
            if apart {
                (k, v) = (self.separate(&k, key_heads), self.separate(&v, key_heads));
            }
        }
        if key_heads != heads {
            let sizes = [key_heads, heads, keys];
            (k, v) = (self.repeat(&k, sizes), self.repeat(&v, sizes));
        }
        Ok([q, k, v])
    }

    /// Scaled products of queries and keys, bent where they have a soft cap.
    fn scores(&mut self, q: &str, k: &str, head_dim: usize) -> String {
        let scale = self.node.float("scale").filter(|s| *s != 0.0).unwrap_or(1.0 / (head_dim as f32).sqrt());
        let scale = self.scalar(scale);
        let scaled = self.op("Mul", &[q, &scale], vec![]);
        let transposed = self.op("Transpose", &[k], vec![ints_attribute("perm", &[0, 1, 3, 2])]);
        let scores = self.op("MatMul", &[&scaled, &transposed], vec![]);
        let Some(cap) = self.node.float("softcap").filter(|c| *c != 0.0) else { return scores };
        let cap = self.scalar(cap);
        let share = self.op("Div", &[&scores, &cap], vec![]);
        let bent = self.op("Tanh", &[&share], vec![]);
        self.op("Mul", &[&bent, &cap], vec![])
    }

    /// Scores of keys that do not lie behind their query, where the node wants that; others as good as -∞.
    fn causal(&mut self, scores: String, queries: usize, keys: usize) -> String {
        if self.node.int("is_causal").unwrap_or(0) == 0 && self.node.int("unidirectional").unwrap_or(0) == 0 {
            return scores;
        }
        let seen = (0..queries * keys).map(|i| u8::from(i % keys <= i / keys)).collect::<Vec<u8>>();
        let seen = tensor_from_raw("offshoot_causal", DataType::Bool, &[queries, keys], seen.into());
        let seen = self.builder.tensor(seen);
        self.masked(&seen, &scores)
    }

    /// Scores of keys that lie near their query; others as good as -∞. Of either side -1 is as far as the tokens go
    /// (operator set 25).
    fn windowed(&mut self, scores: String, queries: usize, keys: usize) -> String {
        let reach = ["left_window_size", "right_window_size"].map(|name| self.node.int(name).unwrap_or(-1));
        if reach.iter().all(|&n| n < 0) {
            return scores;
        }
        let near = |(query, key): (usize, usize)| {
            let away = key as i64 - query as i64;
            (reach[0] < 0 || -away <= reach[0]) && (reach[1] < 0 || away <= reach[1])
        };
        let seen = (0..queries * keys).map(|i| u8::from(near((i / keys, i % keys)))).collect::<Vec<u8>>();
        let seen = tensor_from_raw("offshoot_window", DataType::Bool, &[queries, keys], seen.into());
        let seen = self.builder.tensor(seen);
        self.masked(&seen, &scores)
    }

    /// Scores where a mask is true, elsewhere as good as -∞.
    fn masked(&mut self, mask: &str, scores: &str) -> String {
        let half = self.input(0).and_then(|x| self.types.get(x)) == Some(&DataType::Float16);
        let lowest = self.scalar(if half { -6e4 } else { -1e30 });
        self.op("Where", &[mask, scores, &lowest], vec![])
    }

    /// Grouped queries: each key head serves several query heads that lie together.
    pub(super) fn repeat(&mut self, x: &str, [from, to, keys]: [usize; 3]) -> String {
        let apart = self.unsqueeze(x, 2);
        let target = self.ints(&[1, 1, (to / from.max(1)) as i64, 1, 1]);
        let repeated = self.op("Expand", &[&apart, &target], vec![]);
        // [batch, key heads, repeats, tokens, dim]: the axes of heads become one.
        let shape = self.ints(&[0, to as i64, keys as i64, -1]);
        self.op("Reshape", &[&repeated, &shape], vec![])
    }

    /// RotaryEmbedding of opset 23 (X, cos, sin, positions) and of `com.microsoft` (X, positions, cos, sin): pairs of
    /// features are turned by an angle that belongs to the position.
    fn rotary(&mut self) -> Result<()> {
        let microsoft = self.node.domain() == "com.microsoft";
        let [cos, sin, positions] = if microsoft { [2, 3, 1] } else { [1, 2, 3] };
        let (Some(cos), Some(sin)) = (self.input(cos).map(str::to_string), self.input(sin).map(str::to_string)) else {
            return Err(self.refuse("missing tables"));
        };
        let positions = self.input(positions).map(str::to_string);
        let input = self.operand(0)?;
        let shape = self.shape(&input)?;
        let rank = shape.len();
        let heads = self.node.int("num_heads").unwrap_or(0);
        if rank == 3 && heads < 1 {
            return Err(self.refuse("no number of heads"));
        }
        let x = if rank == 3 { self.separate(&input, heads as usize) } else { input };
        let last = shape.last().copied().unwrap_or(0) as i64;
        let dim = if rank == 3 { last / heads } else { last };
        let turned = match self.node.int("rotary_embedding_dim").unwrap_or(0) {
            0 => dim,
            n => n.min(dim),
        };
        let mut tables = Vec::new();
        for table in [cos, sin] {
            let picked = match &positions {
                Some(p) if self.shape(p)?.len() == 2 => self.op("Gather", &[&table, p], vec![int_attribute("axis", 0)]),
                Some(_) => return Err(self.refuse("one position for all images")),
                None => table,
            };
            // The same for all heads.
            tables.push(self.unsqueeze(&picked, 1));
        }
        let half = turned / 2;
        let interleaved = self.node.int("interleaved").unwrap_or(0) != 0;
        let (first, second) = match interleaved {
            true => (self.slice(&x, 3, [0, turned, 2]), self.slice(&x, 3, [1, turned, 2])),
            false => (self.slice(&x, 3, [0, half, 1]), self.slice(&x, 3, [half, turned, 1])),
        };
        let mut product = |a: &str, b: &str| self.op("Mul", &[a, b], vec![]);
        let (a, b) = (product(&first, &tables[0]), product(&second, &tables[1]));
        let (c, d) = (product(&first, &tables[1]), product(&second, &tables[0]));
        let real = self.op("Sub", &[&a, &b], vec![]);
        let imaginary = self.op("Add", &[&c, &d], vec![]);
        let mut out = if interleaved {
            let (real, imaginary) = (self.unsqueeze(&real, 4), self.unsqueeze(&imaginary, 4));
            let pairs = self.op("Concat", &[&real, &imaginary], vec![int_attribute("axis", 4)]);
            let shape = self.ints(&[0, 0, 0, turned]);
            self.op("Reshape", &[&pairs, &shape], vec![])
        } else {
            self.op("Concat", &[&real, &imaginary], vec![int_attribute("axis", 3)])
        };
        if turned < dim {
            let rest = self.slice(&x, 3, [turned, dim, 1]);
            out = self.op("Concat", &[&out, &rest], vec![int_attribute("axis", 3)]);
        }
        match rank {
            3 => self.merge(&out),
            _ => self.end(0, "Identity", &[&out], vec![]),
        }
        Ok(())
    }

    /// BiasGelu: x Φ(x) of a sum; FastGelu: its approximation by tanh, bias optional.
    fn gelu(&mut self) -> Result<()> {
        let mut x = self.operand(0)?;
        if let Some(bias) = self.input(1).map(str::to_string) {
            x = self.op("Add", &[&x, &bias], vec![]);
        }
        let (half, one) = (self.scalar(0.5), self.scalar(1.0));
        let bent = if self.node.op_type() == "BiasGelu" {
            let root = self.scalar(std::f32::consts::SQRT_2);
            let scaled = self.op("Div", &[&x, &root], vec![]);
            self.op("Erf", &[&scaled], vec![])
        } else {
            let (root, cubic) = (self.scalar((2.0 / std::f32::consts::PI).sqrt()), self.scalar(0.044715));
            let square = self.op("Mul", &[&x, &x], vec![]);
            let part = self.op("Mul", &[&square, &cubic], vec![]);
            let sum = self.op("Add", &[&part, &one], vec![]);
            let scaled = self.op("Mul", &[&x, &root], vec![]);
            let inner = self.op("Mul", &[&scaled, &sum], vec![]);
            self.op("Tanh", &[&inner], vec![])
        };
        let shifted = self.op("Add", &[&bent, &one], vec![]);
        let product = self.op("Mul", &[&x, &shifted], vec![]);
        self.end(0, "Mul", &[&product, &half], vec![]);
        Ok(())
    }

    /// SwiGLU: a sigmoid(alpha a) b.
    fn gated_swish(&mut self) -> Result<()> {
        let (a, b) = (self.operand(0)?, self.operand(1)?);
        let alpha = self.scalar(self.node.float("alpha").unwrap_or(1.0));
        let scaled = self.op("Mul", &[&a, &alpha], vec![]);
        let gate = self.op("Sigmoid", &[&scaled], vec![]);
        let swish = self.op("Mul", &[&a, &gate], vec![]);
        self.end(0, "Mul", &[&swish, &b], vec![]);
        Ok(())
    }

    /// The mean over axes, which are kept; they became an input in opset 18.
    fn mean(&mut self, x: &str, axes: &[i64]) -> String {
        let keep = int_attribute("keepdims", 1);
        if self.typing.opset < 18 {
            return self.op("ReduceMean", &[x], vec![ints_attribute("axes", axes), keep]);
        }
        let axes = self.ints(axes);
        self.op("ReduceMean", &[x, &axes], vec![keep])
    }

    /// BatchNormalization with computed statistics: in training mode those of its input over all axes but the second.
    fn batch_norm(&mut self) -> Result<()> {
        if self
            .node
            .output
            .iter()
            .skip(1)
            .any(|o| self.typing.graph.node.iter().any(|n| !o.is_empty() && n.input.contains(o)))
        {
            return Err(self.refuse("running statistics that are used"));
        }
        let [x, scale, bias, given_mean, given_variance] = &self.node.input[..] else {
            return Err(self.refuse("missing operands"));
        };
        let rank = self.shape(x)?.len() as i64;
        let axes: Vec<i64> = (0..rank).filter(|&a| a != 1).collect();
        let epsilon = self.scalar(self.node.float("epsilon").unwrap_or(1e-5));
        let channels: Vec<i64> = (0..rank).map(|a| if a == 1 { -1 } else { 1 }).collect();
        let shape = self.ints(&channels);
        let training = self.node.int("training_mode").unwrap_or(0) != 0;
        let mean = match training {
            true => self.mean(x, &axes),
            false => self.op("Reshape", &[given_mean, &shape], vec![]),
        };
        let centred = self.op("Sub", &[x, &mean], vec![]);
        let variance = match training {
            true => {
                let square = self.op("Mul", &[&centred, &centred], vec![]);
                self.mean(&square, &axes)
            }
            false => self.op("Reshape", &[given_variance, &shape], vec![]),
        };
        let shifted = self.op("Add", &[&variance, &epsilon], vec![]);
        let deviation = self.op("Sqrt", &[&shifted], vec![]);
        let normal = self.op("Div", &[&centred, &deviation], vec![]);
        let (scale, bias) = (self.op("Reshape", &[scale, &shape], vec![]), self.op("Reshape", &[bias, &shape], vec![]));
        let scaled = self.op("Mul", &[&normal, &scale], vec![]);
        self.end(0, "Add", &[&scaled, &bias], vec![]);
        Ok(())
    }

    /// (x + skip + bias), normalised; output 3 is the sum.
    fn skip_norm(&mut self) -> Result<()> {
        if [1, 2].iter().any(|&j| self.node.output.get(j).is_some_and(|o| !o.is_empty())) {
            return Err(self.refuse("its statistics as outputs"));
        }
        let simplified = self.node.op_type() == "SkipSimplifiedLayerNormalization";
        let epsilon = self.node.float("epsilon").unwrap_or(1e-12);
        let (x, skip, gamma) = (self.operand(0)?, self.operand(1)?, self.operand(2)?);
        let (beta, bias) = if simplified { (None, self.input(3)) } else { (self.input(3), self.input(4)) };
        let (beta, bias) = (beta.map(str::to_string), bias.map(str::to_string));
        // The bias belongs to the branch: optimisers put it on either side, and the branch is the one that is made
        // later.
        let made = |v: &str| self.typing.links().maker(v);
        let (stream, branch) = if made(&skip) > made(&x) { (x, skip) } else { (skip, x) };
        // The sum stands under one name: what the norm takes is what the stream goes on with.
        let branch = match &bias {
            Some(bias) => self.op("Add", &[&branch, bias], vec![]),
            None => branch,
        };
        let sum = match self.node.output.get(3).filter(|o| !o.is_empty()).cloned() {
            Some(named) => {
                self.end(3, "Add", &[&stream, &branch], vec![]);
                named
            }
            None => self.op("Add", &[&stream, &branch], vec![]),
        };
        if !simplified {
            let inputs: Vec<&str> = [&sum, &gamma].into_iter().chain(&beta).map(String::as_str).collect();
            self.end(
                0,
                "LayerNormalization",
                &inputs,
                vec![int_attribute("axis", -1), float_attribute("epsilon", epsilon)],
            );
            return Ok(());
        }
        let square = self.op("Mul", &[&sum, &sum], vec![]);
        let mean = self.mean(&square, &[-1]);
        let epsilon = self.scalar(epsilon);
        let shifted = self.op("Add", &[&mean, &epsilon], vec![]);
        let deviation = self.op("Sqrt", &[&shifted], vec![]);
        let normal = self.op("Div", &[&sum, &deviation], vec![]);
        self.end(0, "Mul", &[&normal, &gamma], vec![]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::node;
    use crate::onnx::proto::ModelProto;
    use crate::onnx::tensor_info;

    /// Found by fuzzing: the scale was asked for without a look at how many inputs there are.
    #[test]
    fn an_operator_without_all_its_inputs_is_an_error() {
        for op in ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"] {
            for (inputs, whole) in [(&["x", "x"][..], false), (&["x", "x", ""], false), (&["x", "x", "w"], true)] {
                let skip = NodeProto { domain: Some("com.microsoft".into()), ..node(op, inputs, &["y"], vec![]) };
                let model = Model::from_proto(ModelProto {
                    graph: Some(GraphProto {
                        input: vec![tensor_info("x", DataType::Float, &[Some(2), Some(5), Some(4)])],
                        output: vec![tensor_info("y", DataType::Float, &[Some(2), Some(5), Some(4)])],
                        initializer: vec![tensor_from_f32("w", DataType::Float, &[4], &[1.0; 4])],
                        node: vec![skip],
                        ..Default::default()
                    }),
                    ..Default::default()
                });
                let typing = Typing::new(&model).unwrap();
                match separate_skip_norms(&model, &typing) {
                    Ok(apart) => assert!(whole && apart.is_some(), "{op} {inputs:?}"),
                    Err(e) => {
                        assert!(!whole && e.kind() == ErrorKind::Format && e.to_string().contains("input 2"), "{e}")
                    }
                }
            }
        }
    }
}
