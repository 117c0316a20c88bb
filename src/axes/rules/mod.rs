//! One typing rule an operator.
//!
//! A rule takes the dimensions of a node's inputs and says what those of its outputs are: contractions unify what they sum
//! over, elementwise operators unify what they align, Reshape regroups factors, Transpose permutes them, Slice and Split name
//! parts, Concat joins them.

use super::arithmetic::{self, Known, LIMIT, elements, evaluate, resolve_shape, slice_range, split_lengths};
use super::factors::{Dim, Spatial};
use super::{Conflict, Contraction, Fused, MAX_RANK, Part, Typing, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, is_standard};
use crate::onnx::proto::NodeProto;
use crate::onnx::{element_count, is_float};

/// Operators whose first output has the dimensions of their first input.
const SAME: &[&str] = &[
    "Identity",
    "Cast",
    "CastLike",
    "Dropout",
    "Relu",
    "Gelu",
    "QuickGelu",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Exp",
    "Log",
    "Sqrt",
    "Neg",
    "Abs",
    "Sign",
    "Reciprocal",
    "Softmax",
    "LogSoftmax",
    "Clip",
    "HardSigmoid",
    "HardSwish",
    "Elu",
    "Selu",
    "Celu",
    "Mish",
    "Swish",
    "LeakyRelu",
    "ThresholdedRelu",
    "Softplus",
    "Softsign",
    "Floor",
    "Ceil",
    "Round",
    "Not",
    "IsNaN",
    "IsInf",
    "Trilu",
    "CumSum",
    "Sin",
    "Cos",
    "Tan",
    "Atan",
    "LpNormalization",
    "ScatterElements",
    "RotaryEmbedding",
    "Hardmax",
    "Shrink",
    "MeanVarianceNormalization",
];

/// Operators whose first output has the dimensions that their inputs broadcast to.
const BROADCAST: &[&str] = &[
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Pow",
    "Where",
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "And",
    "Or",
    "Xor",
    "Min",
    "Max",
    "Mod",
    "PRelu",
    "Sum",
    "Mean",
    "BiasGelu",
    "FastGelu",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "BitShift",
];

impl<'m> Typing<'m> {
    /// Types node `k`.
    pub(super) fn node(&mut self, k: usize) -> Result<()> {
        let graph = self.graph;
        let node = &graph.node[k];
        arity(node)?;
        match node.op_type() {
            "Constant" => return self.constant(node),
            "Shape" | "Size" => return self.shape_of(node),
            _ => {}
        }
        if self.arithmetic(node) {
            return Ok(());
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        for j in 0..node.input.len() {
            inputs.push(self.operand(k, node, j)?);
        }
        let outputs = Rule { typing: self, k, node, inputs }.apply()?;
        for (name, dims) in node.output.iter().zip(outputs).filter(|(n, _)| !n.is_empty()) {
            self.sized(&dims)?;
            self.dims.insert(name, dims);
        }
        Ok(())
    }

    fn constant(&mut self, node: &'m NodeProto) -> Result<()> {
        let Some(name) = node.output.first() else { return Ok(()) };
        if let Some(t) = node.tensor("value")
            && element_count(t)? > 1
        {
            self.weight(name, t);
            return Ok(());
        }
        let known = arithmetic::constant(node)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "a constant of this kind has no typing rule"))?;
        self.know(name, known);
        Ok(())
    }

    fn know(&mut self, name: &'m str, known: Known) {
        let dims = known.data.shape().iter().map(|&n| self.factors.fresh(n)).collect();
        self.dims.insert(name, dims);
        if known.data.len() <= LIMIT {
            self.known.insert(name, known);
        }
    }

    fn shape_of(&mut self, node: &'m NodeProto) -> Result<()> {
        let input = node.input.first().map(String::as_str).unwrap_or("");
        let Some(shape) = self.shape(input) else { bail!(Format, "nothing makes its input `{input}`") };
        if let Some(output) = node.output.first() {
            self.know(output, shape_value(node, &shape));
        }
        Ok(())
    }

    /// Evaluates a node of shape arithmetic. A short Concat may also take small floats that stand in initializers (the scales
    /// of a Resize).
    fn arithmetic(&mut self, node: &'m NodeProto) -> bool {
        let Some(results) = self.evaluated(node, &self.known) else { return false };
        for (name, known) in node.output.iter().zip(results).filter(|(n, _)| !n.is_empty()) {
            self.know(name, known);
        }
        true
    }

    pub(super) fn evaluated(
        &self,
        node: &NodeProto,
        values: &std::collections::HashMap<&'m str, Known>,
    ) -> Option<Vec<Known>> {
        // Rows of a table of numbers are weights (a learngene's lookups), however small the table is.
        let table = || node.input.first().and_then(|x| self.weights.get(x.as_str())).is_some_and(|t| is_float(t));
        if node.op_type() == "Gather" && table() {
            return None;
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        let mut computed = node.op_type() != "Concat";
        for x in &node.input {
            if x.is_empty() {
                inputs.push(None);
                continue;
            }
            let known = match values.get(x.as_str()) {
                Some(known) => {
                    computed |= !self.weights.contains_key(x.as_str());
                    known.clone()
                }
                None if node.op_type() == "Concat" => {
                    let t = self.weights.get(x.as_str()).filter(|t| t.dims.len() == 1 && t.dims[0] <= 4)?;
                    Known::read(t)?
                }
                None => return None,
            };
            inputs.push(Some(known));
        }
        if inputs.is_empty() || (!computed && !inputs.iter().flatten().all(|k| k.number != arithmetic::Number::Float)) {
            return None;
        }
        let results = evaluate(node, &inputs)?;
        results.iter().all(|r| r.data.len() <= LIMIT).then_some(results)
    }

    /// Dimensions of an input; a weight gets factors of its own for every use.
    fn operand(&mut self, k: usize, node: &'m NodeProto, j: usize) -> Result<Option<Vec<Dim>>> {
        let name = node.input[j].as_str();
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(t) = self.weights.get(name) {
            let dims: Vec<Dim> = t.dims.iter().map(|&d| self.factors.fresh(d as usize)).collect();
            self.uses.push(Use { name: name.to_string(), node: k, input: j, dims: dims.clone() });
            return Ok(Some(dims));
        }
        match self.dims.get(name) {
            Some(dims) => Ok(Some(dims.clone())),
            None => bail!(Format, "nothing makes its input `{name}`"),
        }
    }

    /// Small constants as integers: known values, or initializers that are read for it.
    pub(super) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.known.get(name).map(Known::ints)
    }

    fn floats(&self, name: &str) -> Option<Vec<f64>> {
        if let Some(known) = self.known.get(name) {
            return Some(known.data.iter().copied().collect());
        }
        let t = self.weights.get(name).filter(|t| element_count(t).is_ok_and(|n| n <= 16))?;
        Some(Known::read(t)?.data.iter().copied().collect())
    }
}

/// Checks that an operator of two or three operands has as many: what works on graphs later asks for the other one.
fn arity(node: &NodeProto) -> Result<()> {
    let wanted = match node.op_type() {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Mod" | "MatMul" | "PRelu" | "Equal" | "Less" | "Greater"
        | "LessOrEqual" | "GreaterOrEqual" | "And" | "Or" | "Xor" => 2,
        "Where" => 3,
        _ => return Ok(()),
    };
    if is_standard(node) && (node.input.len() != wanted || node.input.iter().any(String::is_empty)) {
        let (op, count) = (node.op_type(), node.input.len());
        return Err(Error::new(ErrorKind::Format, format!("`{op}` takes {wanted} inputs, and {count} are listed"))
            .hint("export the model again: `onnx.checker.check_model` refuses it, too"));
    }
    Ok(())
}

/// What a convolution's or pooling operator's window makes of `length` elements along spatial axis `i` of `rank`: the number of
/// positions, and the stride.
pub(crate) fn window_length(
    node: &NodeProto,
    rank: usize,
    i: usize,
    kernel: usize,
    length: i64,
    transposed: bool,
) -> (i64, i64) {
    let listed = |name: &str, default: i64, at: usize, n: usize| match node.ints(name) {
        Some(v) if v.len() == n => v[at],
        _ => default,
    };
    let stride = listed("strides", 1, i, rank).max(1);
    // Attributes may be any number; what comes of those that cannot be is too large, or not positive, and refused.
    let reach = listed("dilations", 1, i, rank).saturating_mul((kernel as i64).saturating_sub(1));
    let padding = listed("pads", 0, i, 2 * rank).saturating_add(listed("pads", 0, rank + i, 2 * rank));
    let ceil = node.int("ceil_mode").unwrap_or(0) != 0;
    let n = match (node.string("auto_pad").unwrap_or("NOTSET"), transposed) {
        ("SAME_UPPER" | "SAME_LOWER", false) => length.saturating_add(stride - 1) / stride,
        ("SAME_UPPER" | "SAME_LOWER", true) => length.saturating_mul(stride),
        (_, false) => {
            let room = length.saturating_add(padding).saturating_sub(reach).saturating_sub(1);
            let steps = if ceil { room.saturating_add(stride - 1) } else { room }.div_euclid(stride);
            steps.saturating_add(1)
        }
        (_, true) => (length.saturating_sub(1).saturating_mul(stride))
            .saturating_add(listed("output_padding", 0, i, rank))
            .saturating_add(reach)
            .saturating_add(1)
            .saturating_sub(padding),
    };
    (n, stride)
}

/// The value of a Shape or Size node, of an input that has `shape`.
pub(super) fn shape_value(node: &NodeProto, shape: &[usize]) -> Known {
    if node.op_type() == "Size" {
        let count = Known::integers([elements(shape) as i64]);
        return Known { data: count.data.index_axis_move(ndarray::Axis(0), 0), ..count };
    }
    let rank = shape.len() as i64;
    let clamp = |v: i64| (if v < 0 { v + rank } else { v }).clamp(0, rank) as usize;
    let start = clamp(node.int("start").unwrap_or(0));
    let end = clamp(node.int("end").unwrap_or(rank)).max(start);
    Known::integers(shape[start..end].iter().map(|&n| n as i64))
}

/// An Einsum equation with an arrow and a letter for every axis that an ellipsis stands for, for inputs of these ranks; `None` where
/// they do not fit. Without an arrow, the output has the ellipsis and the letters that stand there once, in the order of the alphabet
/// (Einsum, operator set 12).
pub fn explicit_einsum(equation: &str, ranks: &[usize]) -> Option<String> {
    let equation = equation.replace(' ', "");
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    let letters = |term: &str| term.replace("...", "").chars().count();
    if terms.len() != ranks.len() {
        return None;
    }
    let hidden = |term: &str, rank: usize| rank.checked_sub(letters(term)).filter(|&n| n == 0 || term.contains("..."));
    let counts: Vec<usize> = terms.iter().zip(ranks).map(|(t, &rank)| hidden(t, rank)).collect::<Option<_>>()?;
    let most = counts.iter().copied().max().unwrap_or(0);
    let free: Vec<char> = ('A'..='Z').chain('a'..='z').filter(|&c| !equation.contains(c)).take(most).collect();
    if free.len() < most {
        return None;
    }
    // Axes under an ellipsis are aligned at their ends.
    let spell = |term: &str, count: usize| term.replace("...", &free[most - count..].iter().collect::<String>());
    let spelled: Vec<String> = terms.iter().zip(&counts).map(|(t, &count)| spell(t, count)).collect();
    let right = match right {
        Some(right) => spell(right, most),
        None => {
            let mut once: Vec<char> = left.chars().filter(|c| c.is_alphabetic()).collect();
            once.sort_unstable();
            let once = once.iter().filter(|c| left.matches(**c).count() == 1);
            free.iter().chain(once).collect()
        }
    };
    let sound = spelled.iter().chain([&right]).all(|t| t.chars().all(|c| c.is_ascii_alphabetic()));
    sound.then(|| format!("{}->{right}", spelled.join(",")))
}

struct Rule<'t, 'm> {
    typing: &'t mut Typing<'m>,
    k: usize,
    node: &'m NodeProto,
    inputs: Vec<Option<Vec<Dim>>>,
}

impl Rule<'_, '_> {
    fn apply(mut self) -> Result<Vec<Vec<Dim>>> {
        let op = self.node.op_type();
        if SAME.contains(&op) {
            if op == "RotaryEmbedding" && self.node.int("num_heads").is_some_and(|n| n > 0) {
                let x = self.input(0)?;
                if x.len() == 3 {
                    self.heads_of(&x[2], "num_heads")?;
                }
            }
            let x = self.input(0)?;
            return Ok(self.node.output.iter().map(|_| x.clone()).collect());
        }
        if BROADCAST.contains(&op) {
            return self.elementwise();
        }
        let one = |dims: Vec<Dim>| Ok(vec![dims]);
        match op {
            "Reshape" => one(self.reshape()?),
            "Flatten" => one(self.flatten()?),
            "Squeeze" => one(self.squeeze()?),
            "Unsqueeze" => one(self.unsqueeze()?),
            "Transpose" => one(self.transpose()?),
            "MatMul" | "FusedMatMul" | "TransposeMatMul" | "Gemm" => one(self.matmul()?),
            // Offshoot's own, which training graphs hold.
            "Linear" if self.node.domain() == "offshoot" => one(self.matmul()?),
            "Einsum" => one(self.einsum()?),
            "Conv" | "ConvTranspose" => one(self.conv()?),
            "BatchNormalization" | "InstanceNormalization" | "GroupNormalization" => self.channel_norm(),
            "GlobalAveragePool" | "GlobalMaxPool" => {
                let x = self.input(0)?;
                one(x.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { Dim::new() }).collect())
            }
            "AveragePool" | "MaxPool" | "LpPool" => one(self.pool()?),
            "Col2Im" => one(self.columns_to_image()?),
            "Split" => self.split(),
            "Slice" => one(self.slice()?),
            "Concat" => one(self.concat()?),
            "Gather" => {
                let (x, indices) = (self.input(0)?, self.input(1)?);
                let a = self.axis(self.node.int("axis").unwrap_or(0), x.len())?;
                one(x[..a].iter().chain(&indices).chain(&x[a + 1..]).cloned().collect())
            }
            "GatherElements" => one(self.gather_elements()?),
            "GatherND" => {
                let (x, shape) = (self.input(0)?, self.shape(1)?);
                let (&last, lead) = shape.split_last().ok_or_else(|| self.fail("its indices are a scalar"))?;
                let indexed = last + self.node.int("batch_dims").unwrap_or(0).max(0) as usize;
                if indexed > x.len() {
                    return Err(self.fail("its indices are longer than its input has axes"));
                }
                let mut out = self.fresh(lead);
                out.extend_from_slice(&x[indexed..]);
                one(out)
            }
            "ScatterND" => {
                // What is not indexed is the same in the values that are put in; a table of places that is too small for them is said.
                let (x, indices, updates) = (self.input(0)?, self.shape(1)?, self.input(2)?);
                let indexed = indices.last().copied().unwrap_or(0);
                let places = indices.len().saturating_sub(1);
                let sizes: Vec<usize> = updates.iter().map(|d| self.size(d)).collect();
                if indexed > x.len()
                    || sizes.get(..places) != indices.get(..places)
                    || sizes.len() != places + x.len() - indexed
                {
                    return Err(self
                        .fail(&format!("values of dimensions {sizes:?} do not fit places of dimensions {indices:?}"))
                        .hint("where a simplifier made constants of the places, give the model as it was before"));
                }
                for (a, b) in x[indexed..].iter().zip(&updates[places..]) {
                    self.unify(a, b);
                }
                one(x)
            }
            "Expand" | "Tile" => one(self.expand()?),
            "Pad" => one(self.pad()?),
            "Resize" | "Upsample" => one(self.resize()?),
            "DepthToSpace" | "SpaceToDepth" => {
                let (s, b) = (self.shape(0)?, self.node.int("blocksize").unwrap_or(1).max(1) as usize);
                let [n, c, h, w] = s[..] else { return Err(self.fail("it wants four dimensions")) };
                one(match op {
                    "DepthToSpace" => {
                        self.fresh(&[n, c / b.saturating_mul(b), h.saturating_mul(b), w.saturating_mul(b)])
                    }
                    _ => self.fresh(&[n, c.saturating_mul(b).saturating_mul(b), h / b, w / b]),
                })
            }
            "ConstantOfShape" => {
                let shape = self.sizes(0)?;
                one(self.fresh(&shape))
            }
            // Offshoot's own: the shape is an attribute, and the sums of each query's exponentials come second.
            "Attention" if self.node.domain() == "offshoot" => {
                let list =
                    |name: &str| self.node.ints(name).unwrap_or(&[]).iter().map(|&n| n.max(0) as usize).collect();
                let (shape, sizes): (Vec<usize>, Vec<usize>) = (list("shape"), list("sizes"));
                let sums = sizes.iter().take(3).copied().collect::<Vec<_>>();
                Ok(vec![self.fresh(&shape), self.fresh(&sums)])
            }
            "Attention" if self.node.domain() == "com.microsoft" => one(self.projected_attention()?),
            "Attention" | "MultiHeadAttention" => self.attention(),
            "PackedAttention" => one(self.projected_attention()?),
            "PackedMultiHeadAttention" => one(self.unpadded_attention()?),
            "RemovePadding" => {
                let x = self.input(0)?;
                let [batch, tokens, features] = &x[..] else { return Err(self.fail("it wants three dimensions")) };
                let count = self.size(batch) + 1;
                let kept: Dim = batch.iter().chain(tokens).copied().collect();
                let offsets = vec![batch.clone(), tokens.clone()];
                Ok(vec![vec![kept, features.clone()], offsets, self.fresh(&[count]), self.fresh(&[1])])
            }
            "RestorePadding" => {
                let x = self.input(0)?;
                let [kept, features] = &x[..] else { return Err(self.fail("it wants two dimensions")) };
                let [batch, tokens] = self.padded(kept, 1)?;
                one(vec![batch, tokens, features.clone()])
            }
            "TopK" => {
                let mut s = self.shape(0)?;
                let a = self.axis(self.node.int("axis").unwrap_or(-1), s.len())?;
                s[a] = self.sizes(1)?.first().copied().unwrap_or(1);
                Ok(vec![self.fresh(&s), self.fresh(&s)])
            }
            "OneHot" => {
                let mut s = self.shape(0)?;
                let depth = self.sizes(1)?.first().copied().unwrap_or(1);
                let a = self.axis(self.node.int("axis").unwrap_or(-1), s.len() + 1)?;
                s.insert(a, depth);
                one(self.fresh(&s))
            }
            "Range" => Err(self.fail("the length of a Range depends on more than shapes")),
            _ if op.starts_with("Reduce") || op.starts_with("Arg") => one(self.reduce()?),
            _ => {
                let domain = if self.node.domain().is_empty() { "ai.onnx" } else { self.node.domain() };
                Err(Error::new(ErrorKind::Unsupported, format!("the operator `{domain}.{op}` has no typing rule"))
                    .hint("cut the model before this node, or export it with standard operators"))
            }
        }
    }

    // ---- helpers

    fn fail(&self, what: &str) -> Error {
        Error::new(ErrorKind::Typing, format!("`{}`: {what}", self.node.op_type()))
    }

    fn input(&self, j: usize) -> Result<Vec<Dim>> {
        match self.inputs.get(j) {
            Some(Some(dims)) => Ok(dims.clone()),
            _ => Err(self.fail(&format!("input {j} is missing"))),
        }
    }

    fn given(&self) -> Vec<Vec<Dim>> {
        self.inputs.iter().flatten().cloned().collect()
    }

    fn size(&self, dim: &Dim) -> usize {
        self.typing.factors.size(dim)
    }

    fn shape(&self, j: usize) -> Result<Vec<usize>> {
        Ok(self.input(j)?.iter().map(|d| self.size(d)).collect())
    }

    fn fresh(&mut self, shape: &[usize]) -> Vec<Dim> {
        shape.iter().map(|&n| self.typing.factors.fresh(n)).collect()
    }

    fn axis(&self, a: i64, rank: usize) -> Result<usize> {
        let wrapped = if a < 0 { a + rank as i64 } else { a };
        if (0..rank as i64).contains(&wrapped) {
            Ok(wrapped as usize)
        } else {
            Err(self.fail(&format!("axis {a} is out of range for {rank} dimensions")))
        }
    }

    /// A list of integers that is an attribute in old opsets and an input in new ones.
    fn list(&self, name: &str, j: usize) -> Result<Option<Vec<i64>>> {
        let list = match (self.node.ints(name), self.node.input.get(j).filter(|x| !x.is_empty())) {
            (Some(list), _) => list.to_vec(),
            (None, None) => return Ok(None),
            (None, Some(x)) => match self.typing.ints(x) {
                Some(list) => list,
                None => return Err(self.fail(&format!("its operand `{x}` depends on more than shapes"))),
            },
        };
        // Pads come in pairs.
        if list.len() > 2 * MAX_RANK {
            return Err(self.fail(&format!("its list of {} numbers is longer than any shape", list.len())));
        }
        Ok(Some(list))
    }

    /// An operand that is a list of sizes.
    fn sizes(&self, j: usize) -> Result<Vec<usize>> {
        let list = self.list("", j)?.ok_or_else(|| self.fail(&format!("input {j} is missing")))?;
        list.iter()
            .map(|&v| usize::try_from(v).ok().filter(|&v| v < 1 << 40))
            .collect::<Option<_>>()
            .ok_or_else(|| self.fail(&format!("the sizes {list:?} cannot be")))
    }

    fn unify(&mut self, a: &Dim, b: &Dim) {
        if let Err(mismatch) = self.typing.factors.unify(a, b) {
            self.typing.conflicts.push(Conflict { node: self.k, mismatch, inputs: self.node.input.clone() });
        }
    }

    fn broadcast(&mut self, operands: &[Vec<Dim>]) -> Vec<Dim> {
        let rank = operands.iter().map(Vec::len).max().unwrap_or(0);
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let mut column = operands
                .iter()
                .filter_map(|d| (i + d.len()).checked_sub(rank).map(|at| d[at].clone()))
                .filter(|d| !self.typing.factors.leaves(d).is_empty());
            let Some(first) = column.next() else {
                out.push(Dim::new());
                continue;
            };
            for other in column.collect::<Vec<_>>() {
                self.unify(&first, &other);
            }
            out.push(first);
        }
        out
    }

    fn contraction(&mut self, summed: Dim, output: &[Dim], groups: usize) {
        let macs = output.iter().chain([&summed]).fold(1u64, |n, d| n.saturating_mul(self.size(d) as u64));
        self.typing.contractions.push(Contraction { node: self.k, summed, macs: macs / groups.max(1) as u64 });
    }

    // ---- rules

    fn elementwise(&mut self) -> Result<Vec<Vec<Dim>>> {
        let given = self.given();
        let out = self.broadcast(&given);
        let norm = self.node.op_type().contains("Normalization");
        Ok((0..self.node.output.len())
            .map(|i| match (norm, i) {
                // Mean and inverse deviation; the fourth output of a skip norm is the sum.
                (true, 1 | 2) => {
                    let last = out.len().saturating_sub(1);
                    out.iter().enumerate().map(|(a, d)| if a == last { Dim::new() } else { d.clone() }).collect()
                }
                _ => out.clone(),
            })
            .collect())
    }

    fn reshape(&mut self) -> Result<Vec<Dim>> {
        let (x, shape) = (self.input(0)?, self.shape(0)?);
        let target = self.list("shape", 1)?.ok_or_else(|| self.fail("it has no target shape"))?;
        let allow_zero = self.node.int("allowzero").unwrap_or(0) != 0;
        if let Some(sizes) = self.typing.opened_target(self.k, &x, &target, allow_zero) {
            return Ok(self.typing.factors.reshaped(&x, &sizes));
        }
        let target = resolve_shape(&shape, &target, allow_zero)
            .ok_or_else(|| self.fail(&format!("dimensions {shape:?} cannot become {target:?}")))?;
        if shape.contains(&0) {
            return Err(self.fail(&format!("dimensions {shape:?} hold nothing")));
        }
        Ok(self.typing.factors.reshaped(&x, &target))
    }

    fn flatten(&mut self) -> Result<Vec<Dim>> {
        let (x, shape) = (self.input(0)?, self.shape(0)?);
        let a = self.node.int("axis").unwrap_or(1);
        let a = (if a < 0 { a + x.len() as i64 } else { a }).clamp(0, x.len() as i64) as usize;
        if shape.contains(&0) {
            return Err(self.fail(&format!("dimensions {shape:?} hold nothing")));
        }
        let target = [elements(&shape[..a]), elements(&shape[a..])];
        Ok(self.typing.factors.reshaped(&x, &target))
    }

    fn squeeze(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let axes: Vec<usize> = match self.list("axes", 1)? {
            Some(list) => list.iter().map(|&a| self.axis(a, x.len())).collect::<Result<_>>()?,
            None => (0..x.len()).filter(|&i| self.size(&x[i]) == 1).collect(),
        };
        Ok(x.into_iter().enumerate().filter(|(i, _)| !axes.contains(i)).map(|(_, d)| d).collect())
    }

    fn unsqueeze(&mut self) -> Result<Vec<Dim>> {
        let mut x = self.input(0)?;
        let list = self.list("axes", 1)?.ok_or_else(|| self.fail("it has no axes"))?;
        let rank = x.len() + list.len();
        let mut axes: Vec<usize> = list.iter().map(|&a| self.axis(a, rank)).collect::<Result<_>>()?;
        axes.sort_unstable();
        for a in axes {
            if a > x.len() {
                return Err(self.fail("its axes repeat"));
            }
            x.insert(a, Dim::new());
        }
        Ok(x)
    }

    fn transpose(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        match self.node.ints("perm").filter(|p| !p.is_empty()) {
            Some(perm) if perm.len() == x.len() => {
                perm.iter().map(|&a| self.axis(a, x.len()).map(|a| x[a].clone())).collect()
            }
            Some(_) => Err(self.fail("perm and input differ in rank")),
            None => Ok(x.into_iter().rev().collect()),
        }
    }

    fn matmul(&mut self) -> Result<Vec<Dim>> {
        let (mut a, mut b) = (self.input(0)?, self.input(1)?);
        for flag in ["transBatchA", "transBatchB"] {
            if self.node.int(flag).unwrap_or(0) != 0 {
                return Err(Error::new(ErrorKind::Unsupported, format!("`{flag}` has no typing rule")));
            }
        }
        if self.node.int("transA").unwrap_or(0) != 0 && a.len() > 1 {
            let n = a.len();
            a.swap(n - 1, n - 2);
        }
        if self.node.int("transB").unwrap_or(0) != 0 && b.len() > 1 {
            let n = b.len();
            b.swap(n - 1, n - 2);
        }
        let (vector_a, vector_b) = (a.len() == 1, b.len() == 1);
        if a.is_empty() || b.is_empty() {
            return Err(self.fail("an operand is a scalar"));
        }
        if vector_a {
            a.insert(0, Dim::new());
        }
        if vector_b {
            b.push(Dim::new());
        }
        let (m, n) = (a.len(), b.len());
        self.unify(&a[m - 1], &b[n - 2]);
        let mut out = self.broadcast(&[a[..m - 2].to_vec(), b[..n - 2].to_vec()]);
        if !vector_a {
            out.push(a[m - 2].clone());
        }
        if !vector_b {
            out.push(b[n - 1].clone());
        }
        if matches!(self.node.op_type(), "Gemm" | "Linear")
            && let Some(Some(c)) = self.inputs.get(2).cloned()
        {
            self.broadcast(&[out.clone(), c]);
        }
        self.contraction(a[m - 1].clone(), &out, 1);
        Ok(out)
    }

    fn einsum(&mut self) -> Result<Vec<Dim>> {
        let equation = self.node.string("equation").unwrap_or("");
        let operands: Vec<Vec<Dim>> = (0..self.node.input.len()).map(|j| self.input(j)).collect::<Result<_>>()?;
        let ranks: Vec<usize> = operands.iter().map(Vec::len).collect();
        let Some(explicit) = explicit_einsum(equation, &ranks) else {
            return Err(self.fail(&format!("the equation `{equation}` does not fit inputs of {ranks:?} dimensions")));
        };
        let (left, right) = explicit.split_once("->").unwrap_or((&explicit, ""));
        let mut letters: Vec<(char, Dim)> = Vec::new();
        for (c, d) in left.split(',').zip(operands).flat_map(|(term, dims)| term.chars().zip(dims)) {
            match letters.iter().position(|(l, _)| *l == c) {
                None => letters.push((c, d)),
                Some(p) if letters[p].1.is_empty() => letters[p].1 = d,
                Some(p) if !d.is_empty() => {
                    let known = letters[p].1.clone();
                    self.unify(&known, &d);
                }
                Some(_) => {}
            }
        }
        let mut out = Vec::new();
        for c in right.chars() {
            match letters.iter().find(|(l, _)| *l == c) {
                Some((_, d)) => out.push(d.clone()),
                None => return Err(self.fail(&format!("`{c}` stands on the right of `{equation}` only"))),
            }
        }
        let summed = letters.iter().filter(|(c, _)| !right.contains(*c)).flat_map(|(_, d)| d.iter().copied()).collect();
        self.contraction(summed, &out, 1);
        Ok(out)
    }

    /// Output length, and pixels that one step covers, along each spatial axis of a convolution or pooling window.
    fn windows(&mut self, x: &[Dim], kernel: &[usize], transposed: bool) -> Result<Vec<Dim>> {
        let mut out = Vec::new();
        for (i, &length) in kernel.iter().enumerate() {
            let m = self.size(&x[2 + i]) as i64;
            let (n, stride) = window_length(self.node, kernel.len(), i, length, m, transposed);
            if n < 1 {
                return Err(self.fail(&format!("its window does not fit into {m} elements")));
            }
            if n == m {
                out.push(x[2 + i].clone());
                continue;
            }
            let spatial = self.typing.factors.spatial_of(&x[2 + i]);
            let dim = self.typing.factors.fresh(n as usize);
            let step = if transposed { 1.0 / stride as f64 } else { stride as f64 };
            self.typing.factors.set_spatial(&dim, spatial.map(|s| Spatial { stride: s.stride * step, ..s }));
            out.push(dim);
        }
        Ok(out)
    }

    fn conv(&mut self) -> Result<Vec<Dim>> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        if x.len() < 3 || w.len() != x.len() {
            return Err(self.fail("input and weight differ in rank"));
        }
        let transposed = self.node.op_type() == "ConvTranspose";
        let groups = self.node.int("group").unwrap_or(1).max(1) as usize;
        let (mut channels_in, mut channels_out) =
            if transposed { (w[0].clone(), w[1].clone()) } else { (w[1].clone(), w[0].clone()) };
        if groups > 1 {
            // Grouped: the group factor is the outer part of both channel axes.
            let group = self.typing.factors.fresh(groups);
            if transposed {
                channels_out = group.iter().chain(&channels_out).copied().collect();
            } else {
                channels_in = group.iter().chain(&channels_in).copied().collect();
                let total = self.size(&channels_out);
                if !total.is_multiple_of(groups) {
                    return Err(self.fail(&format!("{total} output channels do not divide into {groups} groups")));
                }
                let mut channels = group.clone();
                channels.extend(self.typing.factors.fresh(total / groups));
                self.unify(&channels_out, &channels);
                channels_out = channels;
            }
            self.typing.groups.insert(self.k, group);
        }
        self.unify(&x[1], &channels_in);
        if let Some(Some(bias)) = self.inputs.get(2).cloned()
            && let Some(b) = bias.first()
        {
            self.unify(&channels_out, b);
        }
        let kernel: Vec<usize> = w[2..].iter().map(|d| self.size(d)).collect();
        let mut out = vec![x[0].clone(), channels_out];
        out.extend(self.windows(&x, &kernel, transposed)?);
        // MACs of a convolution: output elements x channels of a group x kernel (of the input, where transposed).
        let factors = &self.typing.factors;
        let places = if transposed { &x } else { &out };
        let macs = places.iter().chain(&w[1..]).fold(1u64, |n, d| n.saturating_mul(factors.size(d) as u64));
        self.typing.contractions.push(Contraction { node: self.k, summed: x[1].clone(), macs });
        Ok(out)
    }

    fn pool(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let kernel: Vec<usize> =
            self.node.ints("kernel_shape").unwrap_or(&[]).iter().map(|&k| k.max(1) as usize).collect();
        if x.len() != kernel.len() + 2 {
            return Err(self.fail("kernel and input differ in rank"));
        }
        let mut out = x[..2].to_vec();
        out.extend(self.windows(&x, &kernel, false)?);
        Ok(out)
    }

    /// Blocks [n, channels x block, places] added up to an image [n, channels, ...] (Col2Im, operator set 18).
    fn columns_to_image(&mut self) -> Result<Vec<Dim>> {
        let (x, image, block) = (self.input(0)?, self.sizes(1)?, self.sizes(2)?);
        let [n, channels, places] = &x[..] else { return Err(self.fail("it wants three dimensions")) };
        let elements = elements(&block).max(1);
        let total = self.size(channels);
        if image.len() != block.len() || !total.is_multiple_of(elements) {
            return Err(self.fail(&format!("{total} channels do not divide into blocks of {block:?}")));
        }
        let channels = match self.typing.factors.outer(channels, total / elements) {
            Some(channels) => channels,
            None => self.typing.factors.fresh(total / elements),
        };
        let mut out = vec![n.clone(), channels];
        let mut rest = places.clone();
        for (i, &length) in image.iter().enumerate() {
            let (count, stride) = window_length(self.node, image.len(), i, block[i], length as i64, false);
            let dim = self.typing.factors.fresh(length);
            let count = usize::try_from(count).unwrap_or(0);
            let whole = self.size(&rest);
            if count > 0
                && whole.is_multiple_of(count)
                && let Some(own) = self.typing.factors.outer(&rest, count)
            {
                let spatial = self.typing.factors.spatial_of(&own);
                let place = spatial.map(|s| Spatial { stride: s.stride / stride as f64, ..s });
                self.typing.factors.set_spatial(&dim, place);
                rest = self.typing.factors.inner(&rest, whole / count).unwrap_or_default();
            }
            out.push(dim);
        }
        Ok(out)
    }

    fn channel_norm(&mut self) -> Result<Vec<Vec<Dim>>> {
        let x = self.input(0)?;
        for j in 1..self.inputs.len() {
            if let Some(Some(d)) = self.inputs.get(j).cloned()
                && d.len() == 1
                && x.len() > 1
                && self.size(&d[0]) == self.size(&x[1])
            {
                self.unify(&x[1], &d[0]);
            }
        }
        Ok(self.node.output.iter().map(|_| x.clone()).collect())
    }

    fn reduce(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let keep = self.node.int("keepdims").unwrap_or(1) != 0;
        let axes = if self.node.op_type().starts_with("Arg") {
            Some(vec![self.node.int("axis").unwrap_or(0)])
        } else {
            self.list("axes", 1)?.filter(|l| !l.is_empty())
        };
        let axes: Vec<usize> = match axes {
            Some(list) => list.iter().map(|&a| self.axis(a, x.len())).collect::<Result<_>>()?,
            None if self.node.int("noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
            None => (0..x.len()).collect(),
        };
        Ok(x.into_iter()
            .enumerate()
            .filter(|(i, _)| keep || !axes.contains(i))
            .map(|(i, d)| if axes.contains(&i) { Dim::new() } else { d })
            .collect())
    }

    fn split(&mut self) -> Result<Vec<Vec<Dim>>> {
        let x = self.input(0)?;
        let a = self.axis(self.node.int("axis").unwrap_or(0), x.len())?;
        let n = self.size(&x[a]);
        let lengths = split_lengths(self.node, n, self.list("split", 1)?)
            .ok_or_else(|| self.fail(&format!("its lengths do not add up to {n}")))?;
        let equal = lengths.windows(2).all(|w| w[0] == w[1]);
        let mut at = 0;
        let mut out = Vec::new();
        for &length in &lengths {
            // Unequal lengths are typed as segments from the first border on.
            let part = match equal {
                true => self.typing.factors.slice(&x[a], at, length).1,
                false => self.segment(&x[a], at, length),
            };
            at += length;
            let mut dims = x.clone();
            dims[a] = part;
            out.push(dims);
        }
        Ok(out)
    }

    /// A part of a dimension that is cut into unequal pieces: never a product, even where this piece alone would divide it.
    fn segment(&mut self, dim: &Dim, start: usize, length: usize) -> Dim {
        let total = self.size(dim);
        let factors = &mut self.typing.factors;
        // A border inside the dimension makes an atom a sum; the piece is then one of its segments.
        if factors.leaves(dim).len() == 1 && factors.segments(dim).is_none() && start == 0 && total > 1 {
            return factors.cut_atom(dim, length);
        }
        factors.slice(dim, start, length).1
    }

    fn slice(&mut self) -> Result<Vec<Dim>> {
        let mut out = self.input(0)?;
        let starts = self.list("starts", 1)?.ok_or_else(|| self.fail("it has no starts"))?;
        let ends = self.list("ends", 2)?.ok_or_else(|| self.fail("it has no ends"))?;
        let axes = self.list("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self.list("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err(self.fail("starts, ends, axes and steps differ in length"));
        }
        for i in 0..starts.len() {
            let a = self.axis(axes[i], out.len())?;
            let n = self.size(&out[a]);
            let (first, length) =
                slice_range(n, starts[i], ends[i], steps[i]).ok_or_else(|| self.fail("its step is zero"))?;
            if length == n && steps[i].unsigned_abs() == 1 {
                continue;
            }
            if length == 0 {
                // Nothing, which a Concat joins with something (a rotary embedding that turns all features).
                out[a] = Dim::from_slice(&[self.typing.factors.atom(0)]);
                continue;
            }
            if steps[i] == 1 {
                let (before, taken) = self.typing.factors.slice(&out[a], first, length);
                if let Some(before) = before {
                    self.typing.parts.push(Part { node: self.k, axis: a, before, taken: taken.clone() });
                }
                out[a] = taken;
            } else if steps[i] > 1
                && length.saturating_mul(steps[i] as usize) == n
                && let Some(outer) = self.typing.factors.outer(&out[a], length)
            {
                out[a] = outer;
            } else {
                let spatial = self.typing.factors.spatial_of(&out[a]);
                out[a] = self.typing.factors.fresh(length);
                let step = steps[i].unsigned_abs() as f64;
                let dim = out[a].clone();
                self.typing.factors.set_spatial(&dim, spatial.map(|s| Spatial { stride: s.stride * step, ..s }));
            }
        }
        Ok(out)
    }

    fn concat(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let a = self.axis(self.node.int("axis").ok_or_else(|| self.fail("it has no axis"))?, x.len())?;
        self.typing.opened_operands(self.k, &mut self.inputs, a);
        let given = self.given();
        if given.iter().any(|d| d.len() != x.len()) {
            return Err(self.fail("its inputs differ in rank"));
        }
        let mut out = Vec::new();
        for i in 0..x.len() {
            let whole = |d: &&Vec<Dim>| i != a || given.len() == 1 || self.size(&d[a]) > 0;
            let column: Vec<Dim> = given.iter().filter(whole).map(|d| d[i].clone()).collect();
            if i != a {
                let operands: Vec<Vec<Dim>> = column.into_iter().map(|d| vec![d]).collect();
                out.extend(self.broadcast(&operands));
                continue;
            }
            let lengths: Vec<usize> = column.iter().map(|d| self.size(d)).collect();
            if lengths.len() == 1 {
                out.push(column[0].clone());
            } else if lengths.windows(2).all(|w| w[0] == w[1]) {
                // Equal pieces: a product of their number and the piece.
                for d in &column[1..] {
                    self.unify(&column[0], d);
                }
                let mut dim = self.typing.factors.fresh(lengths.len());
                dim.extend(column[0].iter().copied());
                out.push(dim);
            } else {
                out.push(self.typing.factors.sum(column));
            }
        }
        Ok(out)
    }

    /// Every element of the indices stands where its value goes: along the axis that is gathered the order is computed, along all others
    /// that are taken whole the input's own.
    fn gather_elements(&mut self) -> Result<Vec<Dim>> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let a = self.axis(self.node.int("axis").unwrap_or(0), x.len())?;
        if x.len() != indices.len() {
            return Err(self.fail("its indices have another rank than its input"));
        }
        let mut out = Vec::with_capacity(x.len());
        for (k, (x, indices)) in x.iter().zip(&indices).enumerate() {
            let length = self.size(indices);
            if k != a && self.size(x) == length {
                self.unify(x, indices);
                out.push(x.clone());
            } else {
                out.push(self.typing.factors.fresh(length));
            }
        }
        Ok(out)
    }

    fn expand(&mut self) -> Result<Vec<Dim>> {
        let mut x = self.input(0)?;
        let mut times = match self.node.op_type() {
            "Expand" => self.sizes(1)?,
            _ => self.list("repeats", 1)?.unwrap_or_default().iter().map(|&v| v.max(1) as usize).collect(),
        };
        let rank = times.len().max(x.len());
        while x.len() < rank {
            x.insert(0, Dim::new());
        }
        while times.len() < rank {
            times.insert(0, 1);
        }
        let expand = self.node.op_type() == "Expand";
        if expand {
            self.typing.opened_shape(self.k, &x, &mut times);
        }
        let mut out = Vec::new();
        for (d, m) in x.into_iter().zip(times) {
            if m == 1 || (expand && self.size(&d) == m) {
                out.push(d);
            } else {
                let mut dim = self.typing.factors.fresh(m);
                dim.extend(d);
                out.push(dim);
            }
        }
        Ok(out)
    }

    fn pad(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let pads = self.list("pads", 1)?.ok_or_else(|| self.fail("it has no pads"))?;
        let axes = self.list("axes", 3)?.unwrap_or_else(|| (0..x.len() as i64).collect());
        if pads.len() != 2 * axes.len() {
            return Err(self.fail("pads and axes differ in length"));
        }
        let mut out = x;
        for (i, &a) in axes.iter().enumerate() {
            let a = self.axis(a, out.len())?;
            let added = pads[i].saturating_add(pads[i + axes.len()]);
            if pads[i] != 0 || added != 0 {
                let n = (self.size(&out[a]) as i64).saturating_add(added);
                if n < 1 {
                    return Err(self.fail("it cuts everything away"));
                }
                let spatial = self.typing.factors.spatial_of(&out[a]);
                out[a] = self.typing.factors.fresh(n as usize);
                let dim = out[a].clone();
                self.typing.factors.set_spatial(&dim, spatial);
            }
        }
        Ok(out)
    }

    fn resize(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let shape = self.shape(0)?;
        let operand = |j: usize| self.node.input.get(j).filter(|n| !n.is_empty());
        let axes: Vec<usize> = match self.node.ints("axes").filter(|a| !a.is_empty()) {
            Some(list) => list.iter().map(|&a| self.axis(a, x.len())).collect::<Result<_>>()?,
            None => (0..x.len()).collect(),
        };
        let mut target = shape.clone();
        let scale_input = if self.node.op_type() == "Upsample" || self.node.input.len() == 2 { 1 } else { 2 };
        let sizes = operand(3).and_then(|n| self.typing.ints(n));
        let scales = operand(scale_input).and_then(|n| self.typing.floats(n)).filter(|s| !s.is_empty());
        match (sizes, scales) {
            (Some(s), _) if s.len() == axes.len() => {
                axes.iter().zip(s).for_each(|(&a, v)| target[a] = v.max(1) as usize)
            }
            (None, Some(s)) if s.len() == axes.len() => {
                axes.iter().zip(s).for_each(|(&a, v)| target[a] = ((shape[a] as f64 * v).floor() as usize).max(1));
            }
            _ => return Err(self.fail("neither its sizes nor its scales are known")),
        }
        if operand(3).is_some() && axes.len() == x.len() {
            self.typing.opened_sizes(self.k, &x, &mut target);
        }
        // A table of offsets along one axis is resampled to the length that the grid wants, also where that is its own.
        let is_line = x.len() == 3 && self.node.input.first().is_some_and(|x| self.typing.fixed().contains(x.as_str()));
        let mut out = Vec::new();
        for (i, d) in x.iter().enumerate() {
            if target[i] == shape[i] && !(is_line && i == 2) {
                out.push(d.clone());
                continue;
            }
            let spatial = self.typing.factors.spatial_of(d);
            let dim = self.typing.factors.fresh(target[i]);
            let step = shape[i] as f64 / target[i] as f64;
            self.typing.factors.set_spatial(&dim, spatial.map(|s| Spatial { stride: s.stride * step, ..s }));
            out.push(dim);
        }
        Ok(out)
    }

    /// Types a dimension as (heads, head dim) after an attribute that counts heads.
    fn heads_of(&mut self, dim: &Dim, attribute: &'static str) -> Result<(Dim, Dim)> {
        let count = self.node.int(attribute).unwrap_or(1).max(1) as usize;
        let n = self.size(dim);
        if !n.is_multiple_of(count) {
            return Err(self.fail(&format!("{n} features do not divide into {count} heads")));
        }
        let heads = self.typing.factors.fresh(count);
        let width = self.typing.factors.fresh(n / count);
        let pair: Dim = heads.iter().chain(&width).copied().collect();
        self.unify(dim, &pair);
        self.typing.head_counts.insert((self.k, attribute), heads.clone());
        Ok((heads, width))
    }

    fn fuse(&mut self, batch: Dim, heads: Dim, queries: Dim, keys: Dim, width: usize) {
        let size = |d: &Dim| self.size(d) as u64;
        let sizes = [size(&batch), size(&queries), size(&keys), width as u64];
        let macs = sizes.into_iter().fold(2u64, u64::saturating_mul);
        self.typing.contractions.push(Contraction { node: self.k, summed: Dim::new(), macs });
        self.typing.fused.insert(self.k, Fused { batch, heads, queries, keys });
    }

    /// Batch and tokens that stand in one axis without padding (`com.microsoft` PackedAttention and what belongs to it): those of the
    /// operand of token offsets [batch, tokens], for images of as many tokens each.
    fn padded(&mut self, kept: &Dim, offsets: usize) -> Result<[Dim; 2]> {
        let offsets = self.input(offsets)?;
        let [batch, tokens] = &offsets[..] else { return Err(self.fail("its token offsets want two dimensions")) };
        self.unify(kept, &batch.iter().chain(tokens).copied().collect());
        Ok([batch.clone(), tokens.clone()])
    }

    /// `com.microsoft` Attention and PackedAttention: the packed projection and the attention in one.
    fn projected_attention(&mut self) -> Result<Vec<Dim>> {
        let (x, w) = (self.input(0)?, self.input(1)?);
        let unpadded = self.node.op_type() == "PackedAttention";
        if x.len() != if unpadded { 2 } else { 3 }
            || w.len() != 2
            || self.node.ints("qkv_hidden_sizes").is_some_and(|s| s.windows(2).any(|p| p[0] != p[1]))
        {
            return Err(Error::new(ErrorKind::Unsupported, "this form of the fused operator has no typing rule"));
        }
        let (lead, features) = (&x[..x.len() - 1], &x[x.len() - 1]);
        let [batch, tokens] = if unpadded { self.padded(&x[0], 3)? } else { [x[0].clone(), x[1].clone()] };
        self.unify(features, &w[0]);
        let count = self.node.int("num_heads").unwrap_or(1).max(1) as usize;
        let width = self.size(&w[1]) / 3;
        if !width.is_multiple_of(count) {
            return Err(self.fail(&format!("{width} features do not divide into {count} heads")));
        }
        let heads = self.typing.factors.fresh(count);
        let mut out_dim = heads.clone();
        out_dim.extend(self.typing.factors.fresh(width / count));
        let mut packed = self.typing.factors.fresh(3);
        packed.extend(out_dim.iter().copied());
        self.unify(&w[1], &packed);
        if let Some(Some(bias)) = self.inputs.get(2).cloned()
            && let [b] = &bias[..]
        {
            self.unify(b, &packed);
        }
        self.typing.head_counts.insert((self.k, "num_heads"), heads.clone());
        let projected: Vec<Dim> = lead.iter().chain([&w[1]]).cloned().collect();
        self.contraction(features.clone(), &projected, 1);
        self.fuse(batch, heads, tokens.clone(), tokens, width);
        Ok(lead.iter().cloned().chain([out_dim]).collect())
    }

    /// `com.microsoft` PackedMultiHeadAttention: [tokens of all images, heads x dim] three times, or [tokens, heads, 3, dim] once.
    fn unpadded_attention(&mut self) -> Result<Vec<Dim>> {
        let q = self.input(0)?;
        let kept = q.first().cloned().unwrap_or_default();
        let [batch, tokens] = self.padded(&kept, 4)?;
        let [heads, dim, of_values] = match &q[..] {
            [_, heads, _, dim] => {
                self.typing.head_counts.insert((self.k, "num_heads"), heads.clone());
                [heads.clone(), dim.clone(), dim.clone()]
            }
            [_, features] => {
                let (k, v) = (self.input(1)?, self.input(2)?);
                let ([k_kept, k_features], [v_kept, v_features]) = (&k[..], &v[..]) else {
                    return Err(self.fail("keys and values want two dimensions, as the queries have"));
                };
                let (heads, dim) = self.heads_of(features, "num_heads")?;
                let (k_heads, k_dim) = self.heads_of(k_features, "num_heads")?;
                let (v_heads, v_dim) = self.heads_of(v_features, "num_heads")?;
                for (a, b) in [(&heads, &k_heads), (&heads, &v_heads), (&dim, &k_dim), (&kept, k_kept), (&kept, v_kept)]
                {
                    self.unify(a, b);
                }
                [heads, dim, v_dim]
            }
            _ => return Err(Error::new(ErrorKind::Unsupported, "this form of the fused operator has no typing rule")),
        };
        self.packed_bias(&heads, &dim, &of_values);
        let width = self.size(&heads).saturating_mul(self.size(&dim));
        self.fuse(batch, heads.clone(), tokens.clone(), tokens, width);
        Ok(vec![kept, heads.iter().chain(&of_values).copied().collect()])
    }

    /// The bias of `com.microsoft` MultiHeadAttention: that of queries, keys and values, one behind the other.
    fn packed_bias(&mut self, heads: &Dim, dim: &Dim, of_values: &Dim) {
        let Some(Some(bias)) = self.inputs.get(3).cloned() else { return };
        let [b] = &bias[..] else { return };
        let joined = |dim: &Dim| heads.iter().chain(dim).copied().collect::<Dim>();
        let (of_keys, of_values) = (joined(dim), joined(of_values));
        let packed = if self.size(&of_keys) == self.size(&of_values) {
            self.unify(&of_keys, &of_values);
            self.typing.factors.fresh(3).iter().chain(&of_keys).copied().collect()
        } else {
            self.typing.factors.sum(vec![of_keys.clone(), of_keys, of_values])
        };
        self.unify(b, &packed);
    }

    /// Attention of the default domain, and `com.microsoft` MultiHeadAttention: [batch, heads, tokens, dim], or
    /// [batch, tokens, heads x dim] with the number of heads as an attribute. MultiHeadAttention also takes keys and values with an
    /// axis of heads beside queries without one, and packed operands: [batch, tokens, heads, 3, dim], or queries beside
    /// [batch, tokens, heads, 2, dim].
    fn attention(&mut self) -> Result<Vec<Vec<Dim>>> {
        let microsoft = self.node.op_type() == "MultiHeadAttention";
        let (of_queries, of_keys) =
            if microsoft { ("num_heads", "num_heads") } else { ("q_num_heads", "kv_num_heads") };
        let operands: Vec<Vec<Dim>> = (0..3).map_while(|j| self.inputs.get(j).cloned().flatten()).collect();
        let merged = operands.first().is_some_and(|q| q.len() != 4);
        let mut parts = Vec::new();
        for (j, dims) in operands.into_iter().enumerate() {
            match &dims[..] {
                [n, tokens, features] => {
                    let (heads, dim) = self.heads_of(features, if j == 0 { of_queries } else { of_keys })?;
                    parts.push([n.clone(), heads, tokens.clone(), dim]);
                }
                [n, heads, tokens, dim] => parts.push([n.clone(), heads.clone(), tokens.clone(), dim.clone()]),
                [n, tokens, heads, packed, dim] if microsoft => {
                    let part = [n.clone(), heads.clone(), tokens.clone(), dim.clone()];
                    parts.extend(vec![part; self.size(packed)]);
                    self.typing.head_counts.insert((self.k, of_queries), heads.clone());
                }
                _ => parts.clear(),
            }
        }
        let [q, k, v] = &parts[..] else {
            return Err(Error::new(ErrorKind::Unsupported, "this form of the fused operator has no typing rule"));
        };
        let [batch, heads, queries, dim] = q.clone();
        let [key_batch, key_heads, keys, key_dim] = k.clone();
        self.unify(&batch, &key_batch);
        self.unify(&batch, &v[0]);
        self.unify(&dim, &key_dim);
        self.unify(&keys, &v[2]);
        self.unify(&key_heads, &v[1]);
        let (m, n) = (self.size(&heads), self.size(&key_heads));
        if m == n {
            self.unify(&heads, &key_heads);
        } else if n > 0 && m.is_multiple_of(n) {
            // Grouped queries: each key head serves several query heads.
            if let Some(outer) = self.typing.factors.outer(&heads, n) {
                self.unify(&outer, &key_heads);
            }
        } else {
            return Err(self.fail(&format!("{m} query heads cannot share {n} key heads")));
        }
        let joined = |heads: &Dim, dim: &Dim| heads.iter().chain(dim).copied().collect::<Dim>();
        let width = m.saturating_mul(self.size(&dim));
        if microsoft {
            self.packed_bias(&heads, &dim, &v[3]);
        }
        let mask = if microsoft { 5 } else { 3 };
        if let Some(Some(mask)) = self.inputs.get(mask).cloned()
            && mask.len() <= 4
        {
            self.broadcast(&[vec![batch.clone(), heads.clone(), queries.clone(), keys.clone()], mask]);
        }
        self.fuse(batch.clone(), heads.clone(), queries.clone(), keys.clone(), width);
        let out = match merged {
            true => vec![batch.clone(), queries.clone(), joined(&heads, &v[3])],
            false => vec![batch.clone(), heads.clone(), queries.clone(), v[3].clone()],
        };
        // Present keys and values, and the scores, where they are asked for.
        let scores = vec![batch, heads, queries, keys];
        Ok(vec![out, k.to_vec(), v.to_vec(), scores])
    }
}

#[cfg(test)]
mod tests {
    use super::explicit_einsum;

    #[test]
    fn einsum_equations_are_spelled_out() {
        let explicit = |equation: &str, ranks: &[usize]| explicit_einsum(equation, ranks);
        assert_eq!(explicit("...qd, ...kd -> ...qk", &[4, 4]).unwrap(), "ABqd,ABkd->ABqk");
        assert_eq!(explicit("...c,cd->...d", &[3, 2]).unwrap(), "ABc,cd->ABd");
        assert_eq!(explicit("...ij,...jk->...ik", &[4, 3]).unwrap(), "ABij,Bjk->ABik");
        assert_eq!(explicit("bij,bjk", &[3, 3]).unwrap(), "bij,bjk->ik");
        assert_eq!(explicit("i...,i", &[3, 1]).unwrap(), "iAB,i->AB");
        assert_eq!(explicit("ij,jk->ik", &[3, 2]), None);
        assert_eq!(explicit("ij->i", &[2, 2]), None);
        assert_eq!(explicit("i.j->i", &[3]), None);
    }
}
