//! How training graphs use the fused operators of ONNX Runtime's processor: what exporters write as chains is found by
//! its meaning and replaced by one operator that has a kernel, and a kernel for its gradient.
//!
//! - Linear: a product of many rows with one matrix, which may be transposed, and the sum with a row of biases.
//! - GELU: a value that is a polynomial in x and in the Erf or Tanh of another polynomial in x, whatever the order of
//!   its factors.
//! - Attention: a Softmax over a product of queries and keys, and its product with values. Where each of the three lies
//!   is followed back through reshapes, transposes and slices to the tensor that a projection made, so that nothing is
//!   moved in memory.
//!
//! [`fuse`] runs on a graph in differentiable form, before [`Gradients`](super::Gradients). Gradient rules emit the
//! other fused operators by themselves where [`Operators::Fused`](super::Operators::Fused) is asked for.

use std::collections::{HashMap, HashSet};

use crate::axes::Typing;
use crate::axes::arithmetic::slice_range;
use crate::graph::{
    self, Attributes, Links, Names, element_types, float_attribute, floats_attribute, int_attribute, ints_attribute,
    is_standard, node as new_node, resolve_axis, string_attribute,
};
use crate::onnx::DataType;
use crate::onnx::proto::{GraphProto, NodeProto, OperatorSetIdProto};
use crate::ops::{self, Mark};
use crate::runtime::kernels::DOMAIN;

/// From this many rows on a product with a matrix of weights, and the gradient of that matrix, are fused operators.
pub(super) const ROWS_OF_A_FUSED_PRODUCT: usize = 32;

/// Nodes that an expression may be deep.
const DEPTH: usize = 10;

/// The import that a model with fused operators needs.
pub fn import() -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(DOMAIN.into()), version: Some(1) }
}

/// Replaces chains of operators by fused ones in a typed graph of fixed batch size. The graph then needs [`import`],
/// and runs on ONNX Runtime's processor only.
pub fn fuse(typing: &Typing) -> GraphProto {
    let mut fusion = Fusion {
        typing,
        links: typing.links(),
        types: element_types(typing.graph),
        outputs: typing.graph.output.iter().map(|o| o.name()).collect(),
        names: Names::new(typing.graph),
        replaced: HashMap::new(),
    };
    for (k, node) in typing.graph.node.iter().enumerate().filter(|(_, n)| is_standard(n)) {
        match node.op_type() {
            "Erf" | "Tanh" => fusion.gelu(k),
            "Softmax" => fusion.attention(k),
            "MatMul" | "Gemm" => fusion.linear(k),
            _ => None,
        };
    }
    let replaced = fusion.replaced;
    let mut graph = typing.graph.clone();
    for (k, node) in replaced {
        graph.node[k] = node;
    }
    graph::prune(&mut graph);
    graph
}

/// One AdamW step of all parameters: see the operator's own description. Outputs are named by `next`; state may be
/// updated in place, because the node wants every gradient and so runs last.
pub struct AdamW<'a> {
    /// Values of the learning rate, of 1/(1 - β1^t) and of 1/√(1 - β2^t).
    pub scalars: [&'a str; 3],
    /// The value that all gradients are multiplied by, for clipping; a scalar.
    pub gradient_scale: &'a str,
    /// A scalar; nothing changes where it is no finite number.
    pub guard: &'a str,
    /// β1 and β2.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

/// A parameter of [`AdamW`].
pub struct Tensor<'a> {
    /// Values of the parameter, its first and its second moment.
    pub state: [&'a str; 3],
    /// The value of its gradient.
    pub gradient: &'a str,
    /// Its weight decay.
    pub decay: f32,
    /// What its learning rate is multiplied by.
    pub rate: f32,
}

impl AdamW<'_> {
    /// The node; `next` names the next value of a tensor of the state.
    pub fn node(&self, tensors: &[Tensor], next: impl Fn(&str) -> String) -> NodeProto {
        let state: Vec<&str> = (0..3).flat_map(|k| tensors.iter().map(move |t| t.state[k])).collect();
        let mut inputs: Vec<&str> = self.scalars.to_vec();
        inputs.extend([self.gradient_scale, self.guard]);
        inputs.extend(&state);
        inputs.extend(tensors.iter().map(|t| t.gradient));
        let outputs: Vec<String> = state.iter().map(|s| next(s)).collect();
        let outputs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let attributes = vec![
            floats_attribute("rates", &tensors.iter().map(|t| t.rate).collect::<Vec<_>>()),
            floats_attribute("decays", &tensors.iter().map(|t| t.decay).collect::<Vec<_>>()),
            floats_attribute("weights", &self.betas.map(|b| (1.0 - b) as f32)),
            float_attribute("epsilon", self.epsilon as f32),
        ];
        fused("AdamW", &inputs, &outputs, attributes)
    }
}

/// Inputs of a graph that its [`AdamW`] node may write over: those whose every other reader comes before the node in
/// any order.
pub fn in_place(graph: &GraphProto) -> HashSet<String> {
    let is_adamw = |n: &NodeProto| n.domain() == DOMAIN && n.op_type() == "AdamW";
    let Some(last) = graph.node.iter().position(is_adamw) else { return HashSet::new() };
    let links = Links::new(graph);
    let earlier = links.upstream(links.inputs(last)).nodes();
    let before: HashSet<usize> = std::iter::once(last).chain(earlier).collect();
    let state = graph.node[last].input.iter().skip(5).take(graph.node[last].output.len());
    state.filter(|s| links.users(s).iter().all(|k| before.contains(k))).cloned().collect()
}

fn fused(
    op: &str,
    inputs: &[&str],
    outputs: &[&str],
    attributes: Vec<crate::onnx::proto::AttributeProto>,
) -> NodeProto {
    let mut node = new_node(op, inputs, outputs, attributes);
    node.domain = Some(DOMAIN.into());
    node
}

struct Fusion<'t, 'm> {
    typing: &'t Typing<'m>,
    links: &'t Links<'m>,
    types: HashMap<&'m str, DataType>,
    outputs: HashSet<&'m str>,
    names: Names,
    /// New nodes, by the index of the node that they take the place of.
    replaced: HashMap<usize, NodeProto>,
}

impl<'m> Fusion<'_, 'm> {
    fn maker(&self, value: &str) -> Option<&'m NodeProto> {
        self.links.maker(value).map(|k| &self.typing.graph.node[k]).filter(|n| is_standard(n))
    }

    /// A known number.
    fn scalar(&self, value: &str) -> Option<f64> {
        self.typing.known.get(value).filter(|k| k.data.len() == 1).and_then(|k| k.data.first().copied())
    }

    fn is_float(&self, value: &str) -> bool {
        self.types.get(value) == Some(&DataType::Float)
    }
}

// ---- products with weights

impl<'m> Fusion<'_, 'm> {
    fn linear(&mut self, k: usize) -> Option<()> {
        let graph = self.typing.graph;
        let node = &graph.node[k];
        let [x, mut w] = [node.input.first()?.as_str(), node.input.get(1)?.as_str()];
        let mut y = node.output.first()?.as_str();
        let plain = |name: &str| node.float(name).is_none_or(|scale| scale == 1.0);
        if !self.is_float(y) || node.int("transA").unwrap_or(0) != 0 || !plain("alpha") || !plain("beta") {
            return None;
        }
        let (shape, matrix) = (self.typing.shape(y)?, self.typing.shape(w)?);
        let (&n, rows) = shape.split_last()?;
        if matrix.len() != 2 || rows.iter().product::<usize>() < ROWS_OF_A_FUSED_PRODUCT {
            return None;
        }
        let is_row = |bias: &str| {
            self.typing.shape(bias).is_some_and(|s| s.last() == Some(&n) && s.iter().product::<usize>() == n)
        };
        let mut bias = node.input.get(2).map(String::as_str).filter(|c| !c.is_empty());
        if !bias.is_none_or(is_row) {
            return None;
        }
        let mut place = k;
        if bias.is_none()
            && let Some(user) = self.only_user(y)
            && let ("Add", [a, b]) = (graph.node[user].op_type(), &graph.node[user].input[..])
            && is_standard(&graph.node[user])
        {
            let other = if a == y { b } else { a };
            let sum = graph.node[user].output.first()?;
            if is_row(other) && self.typing.shape(sum)? == shape {
                (place, y, bias) = (user, sum, Some(other.as_str()));
            }
        }
        let mut transposed = node.int("transB").unwrap_or(0) != 0;
        let swaps = |n: &&NodeProto| n.op_type() == "Transpose" && n.ints("perm").is_none_or(|p| p == [1, 0]);
        if let Some(turn) = self.maker(w).filter(swaps) {
            (w, transposed) = (turn.input.first()?, !transposed);
        }
        let inputs: Vec<&str> = [x, w].into_iter().chain(bias).collect();
        let attributes = vec![int_attribute("transB", transposed as i64)];
        self.replaced.insert(place, fused("Linear", &inputs, &[y], attributes));
        Some(())
    }
}

// ---- GELU

/// c0 + c1 x + c2 x² + c3 x³.
type Polynomial = [f64; 4];

/// plain(x) + factor(x) · t, where t is the Erf or Tanh of something.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Expression {
    plain: Polynomial,
    factor: Polynomial,
}

fn times(a: Polynomial, b: Polynomial) -> Option<Polynomial> {
    let mut product = [0.0; 7];
    for (i, x) in a.iter().enumerate() {
        b.iter().enumerate().for_each(|(j, y)| product[i + j] += x * y);
    }
    let [c0, c1, c2, c3, rest @ ..] = product;
    rest.iter().all(|&c| c == 0.0).then_some([c0, c1, c2, c3])
}

impl Expression {
    fn constant(c: f64) -> Self {
        Expression { plain: [c, 0.0, 0.0, 0.0], ..Default::default() }
    }

    fn plus(self, other: Self, sign: f64) -> Self {
        let add = |a: Polynomial, b: Polynomial| std::array::from_fn(|i| a[i] + sign * b[i]);
        Expression { plain: add(self.plain, other.plain), factor: add(self.factor, other.factor) }
    }

    fn times(self, other: Self) -> Option<Self> {
        let squared = times(self.factor, other.factor)?;
        if squared != Polynomial::default() {
            return None;
        }
        let (left, right) = (times(self.plain, other.factor)?, times(self.factor, other.plain)?);
        Some(Expression { plain: times(self.plain, other.plain)?, factor: std::array::from_fn(|i| left[i] + right[i]) })
    }

    fn close(self, other: Self) -> bool {
        let near =
            |a: Polynomial, b: Polynomial| a.iter().zip(&b).all(|(x, y)| (x - y).abs() <= 1e-4 * (1.0 + y.abs()));
        near(self.plain, other.plain) && near(self.factor, other.factor)
    }
}

impl<'m> Fusion<'_, 'm> {
    /// A value as an expression of x and t.
    fn expression(&self, value: &str, x: &str, t: &str, depth: usize) -> Option<Expression> {
        if value == t {
            return Some(Expression { factor: [1.0, 0.0, 0.0, 0.0], ..Default::default() });
        }
        if value == x {
            return Some(Expression { plain: [0.0, 1.0, 0.0, 0.0], ..Default::default() });
        }
        if let Some(c) = self.scalar(value) {
            return Some(Expression::constant(c));
        }
        let node = self.maker(value)?;
        let depth = depth.checked_sub(1)?;
        let operand = |j: usize| node.input.get(j).and_then(|v| self.expression(v, x, t, depth));
        match node.op_type() {
            "Identity" => operand(0),
            "Neg" => operand(0)?.times(Expression::constant(-1.0)),
            "Add" => Some(operand(0)?.plus(operand(1)?, 1.0)),
            "Sub" => Some(operand(0)?.plus(operand(1)?, -1.0)),
            "Mul" => operand(0)?.times(operand(1)?),
            "Div" => operand(0)?.times(Expression::constant(1.0 / self.scalar(node.input.get(1)?)?)),
            "Pow" => {
                let (base, exponent) = (operand(0)?, self.scalar(node.input.get(1)?)?);
                match exponent {
                    2.0 => base.times(base),
                    3.0 => base.times(base)?.times(base),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Values that a value is computed from by arithmetic, the nearest first.
    fn before(&self, value: &'m str) -> impl Iterator<Item = &'m str> {
        let arithmetic =
            |n: &&NodeProto| ops::of(n).is(Mark::Arithmetic) || matches!(n.op_type(), "Identity" | "Neg" | "Pow");
        let is_computed = move |x: &str| self.maker(x).filter(arithmetic).is_some();
        let values = self.links.upstream([value]).along(|x| self.scalar(x).is_none()).nearest_first();
        // What stands further back is more than an expression holds.
        values.until(move |x| !is_computed(x)).skip(1).take(1 << DEPTH)
    }

    /// GELU (Hendrycks and Gimpel 2016) as x/2 (1 + erf(x/√2)), or with tanh(√(2/π) (x + 0.044715 x³)) in the place of
    /// erf.
    fn gelu(&mut self, k: usize) -> Option<()> {
        let node = &self.typing.graph.node[k];
        let (inner, t) = (node.input.first()?.as_str(), node.output.first()?.as_str());
        let tanh = node.op_type() == "Tanh";
        let root = (2.0 / std::f64::consts::PI).sqrt();
        let argument = match tanh {
            true => [0.0, root, 0.0, root * 0.044715],
            false => [0.0, std::f64::consts::FRAC_1_SQRT_2, 0.0, 0.0],
        };
        let argument = Expression { plain: argument, ..Default::default() };
        let is = |x: &&str| self.expression(inner, x, "", DEPTH).is_some_and(|e| e.close(argument));
        let x = self.before(inner).find(is)?;
        let half = [0.0, 0.5, 0.0, 0.0];
        let gelu = Expression { plain: half, factor: half };
        let of_both = |k: usize| self.expression(self.links.outputs(k).next()?, x, t, DEPTH);
        let is_whole = |k: &usize| {
            let y = self.links.outputs(*k).next().unwrap_or_default();
            let is_gelu = of_both(*k).is_some_and(|found| found.close(gelu));
            is_gelu && self.is_float(y) && self.typing.shape(x) == self.typing.shape(y)
        };
        let user = self.links.downstream([t]).through(|k| of_both(k).is_some()).find(is_whole)?;
        let y = self.links.outputs(user).next()?;
        let form = string_attribute("approximate", if tanh { "tanh" } else { "none" });
        self.replaced.insert(user, fused("Gelu", &[x], &[y], vec![form]));
        Some(())
    }
}

// ---- attention

/// A value as a part of a tensor: element (i, j, ...) lies at offset + i stride0 + j stride1 + ..., and is multiplied
/// by a number.
#[derive(Clone, Debug)]
struct View<'m> {
    source: &'m str,
    offset: usize,
    sizes: Vec<usize>,
    strides: Vec<usize>,
    factor: f64,
}

/// Strides of a dense tensor.
fn dense(sizes: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; sizes.len()];
    for i in (1..sizes.len()).rev() {
        strides[i - 1] = strides[i] * sizes[i];
    }
    strides
}

impl View<'_> {
    /// The same elements in another shape, where strides allow it.
    fn reshape(mut self, shape: &[usize]) -> Option<Self> {
        // Axes that lie one within the other are one.
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (&n, &stride) in self.sizes.iter().zip(&self.strides).filter(|(n, _)| **n != 1) {
            match merged.last_mut() {
                Some((m, outer)) if *outer == n * stride => (*m, *outer) = (*m * n, stride),
                _ => merged.push((n, stride)),
            }
        }
        let mut strides = vec![0; shape.len()];
        let mut axes = merged.into_iter().rev();
        let (mut left, mut stride) = (1, 1);
        for (i, &n) in shape.iter().enumerate().rev().filter(|(_, n)| **n != 1) {
            if left == 1 {
                (left, stride) = axes.next()?;
            }
            if n == 0 || left % n != 0 {
                return None;
            }
            strides[i] = stride;
            (left, stride) = (left / n, stride * n);
        }
        if left != 1 || axes.next().is_some() {
            return None;
        }
        (self.sizes, self.strides) = (shape.to_vec(), strides);
        Some(self)
    }

    fn transpose(mut self, perm: &[i64]) -> Option<Self> {
        let at = |list: &[usize]| perm.iter().map(|&p| list.get(p as usize).copied()).collect::<Option<Vec<_>>>();
        (self.sizes, self.strides) = (at(&self.sizes)?, at(&self.strides)?);
        Some(self)
    }

    /// `length` elements from `start` on along an axis.
    fn part(mut self, axis: usize, start: usize, length: usize) -> Option<Self> {
        if start.checked_add(length)? > *self.sizes.get(axis)? {
            return None;
        }
        self.offset += start * self.strides.get(axis)?;
        self.sizes[axis] = length;
        Some(self)
    }

    /// With its last two axes swapped, where it has two.
    fn swapped(mut self) -> Option<Self> {
        let first = self.sizes.len().checked_sub(2)?;
        self.sizes.swap(first, first + 1);
        self.strides.swap(first, first + 1);
        Some(self)
    }

    /// As [batch, heads, tokens, dim], where rows of dim lie in memory as they are; what has no axis of heads has one
    /// head.
    fn by_heads(mut self) -> Option<Self> {
        if self.sizes.len() == 3 {
            self.sizes.insert(1, 1);
            self.strides.insert(1, 0);
        }
        (self.sizes.len() == 4 && (self.strides[3] == 1 || self.sizes[3] == 1)).then_some(self)
    }

    /// Where each row begins: the last axis is a row, and its elements lie one behind the other.
    fn rows(&self) -> Vec<usize> {
        let mut starts = vec![self.offset];
        for (&n, &stride) in self.sizes.iter().zip(&self.strides).take(self.sizes.len() - 1) {
            starts = starts.into_iter().flat_map(|s| (0..n).map(move |i| s + i * stride)).collect();
        }
        starts
    }
}

impl<'m> Fusion<'_, 'm> {
    /// What a value is a part of: the furthest tensor first, the value itself last.
    fn views(&self, value: &'m str, depth: usize) -> Vec<View<'m>> {
        let Some(sizes) = self.typing.shape(value) else { return Vec::new() };
        let itself = View { source: value, offset: 0, strides: dense(&sizes), sizes: sizes.clone(), factor: 1.0 };
        let mut views = Vec::new();
        if let Some(node) = self.maker(value).filter(|_| depth > 0) {
            let mut from = 0;
            if node.op_type() == "Mul" && node.input.first().is_some_and(|x| self.scalar(x).is_some()) {
                from = 1;
            }
            if let Some(x) = node.input.get(from).filter(|x| !self.typing.weights.contains_key(x.as_str())) {
                let output = node.output.iter().position(|o| o == value).unwrap_or(0);
                views = self.views(x, depth - 1);
                views = views.into_iter().filter_map(|v| self.step(node, from, output, &sizes, v)).collect();
            }
        }
        views.push(itself);
        views
    }

    /// A view of a node's input becomes a view of its output.
    fn step(&self, node: &NodeProto, from: usize, output: usize, shape: &[usize], mut v: View<'m>) -> Option<View<'m>> {
        let ints = |name: &str, j: usize| -> Option<Vec<i64>> {
            match node.ints(name) {
                Some(list) => Some(list.to_vec()),
                None => self.typing.known.get(node.input.get(j)?.as_str()).map(|k| k.ints()),
            }
        };
        match node.op_type() {
            "Identity" => Some(v),
            "Mul" | "Div" if v.sizes == shape => {
                let c = self.scalar(node.input.get(1 - from)?)?;
                v.factor = if node.op_type() == "Mul" { v.factor * c } else { v.factor / c };
                Some(v)
            }
            _ if ops::of(node).is(Mark::View) => v.reshape(shape),
            "Transpose" => {
                let reversed: Vec<i64> = (0..shape.len() as i64).rev().collect();
                let perm = node.ints("perm").filter(|p| !p.is_empty()).unwrap_or(&reversed);
                v.transpose(perm)
            }
            "Split" => {
                let axis = resolve_axis(node.int("axis").unwrap_or(0), shape.len())?;
                let length = |o: &String| self.typing.shape(o).and_then(|s| s.get(axis).copied());
                let start = node.output.iter().take(output).map(length).sum::<Option<usize>>()?;
                v.part(axis, start, *shape.get(axis)?)
            }
            "Slice" => {
                let (starts, ends) = (ints("starts", 1)?, ints("ends", 2)?);
                let axes = ints("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
                let steps = ints("steps", 4).unwrap_or_else(|| vec![1; starts.len()]);
                for (i, &axis) in axes.iter().enumerate() {
                    let axis = resolve_axis(axis, v.sizes.len())?;
                    let (&start, &end) = (starts.get(i)?, ends.get(i)?);
                    let (first, length) =
                        slice_range(*v.sizes.get(axis)?, start, end, 1).filter(|_| steps.get(i) == Some(&1))?;
                    v = v.part(axis, first, length)?;
                }
                Some(v)
            }
            "Gather" => {
                let index = self.typing.known.get(node.input.get(1)?.as_str()).filter(|k| k.data.len() == 1)?.ints();
                let axis = resolve_axis(node.int("axis").unwrap_or(0), v.sizes.len())?;
                let start = resolve_axis(*index.first()?, *v.sizes.get(axis)?)?;
                v.part(axis, start, 1)?.reshape(shape)
            }
            _ => None,
        }
    }

    /// A value without the numbers that it was multiplied by.
    fn scaled(&self, value: &'m str) -> (&'m str, f64) {
        let (mut value, mut factor) = (value, 1.0);
        for _ in 0..DEPTH {
            let Some(node) = self.maker(value) else { break };
            let [x, y] = &node.input[..] else { break };
            let (next, by) = match (node.op_type(), self.scalar(x), self.scalar(y)) {
                ("Mul", None, Some(c)) => (x, c),
                ("Mul", Some(c), None) => (y, c),
                ("Div", None, Some(c)) => (x, 1.0 / c),
                _ => break,
            };
            if self.typing.shape(next) != self.typing.shape(value) {
                break;
            }
            (value, factor) = (next, factor * by);
        }
        (value, factor)
    }

    /// The only node that uses a value, where it is no output of the graph.
    fn only_user(&self, value: &str) -> Option<usize> {
        match self.links.users(value) {
            [user] if !self.outputs.contains(value) => Some(*user),
            _ => None,
        }
    }

    fn attention(&mut self, k: usize) -> Option<()> {
        let graph = self.typing.graph;
        let softmax = &graph.node[k];
        let shape = self.typing.shape(softmax.input.first()?)?;
        let last = shape.len() as i64 - 1;
        let axis = softmax.int("axis").unwrap_or(if self.typing.opset < 13 { 1 } else { -1 });
        if (axis != -1 && axis != last) || !self.is_float(&softmax.output[0]) {
            return None;
        }
        let (scores, scale) = self.scaled(softmax.input.first()?);
        let product = self.maker(scores).filter(|n| n.op_type() == "MatMul")?;
        let context = self.weighted_sum(&softmax.output[0])?;
        let [q, k] = &product.input[..] else { return None };
        let [q, k, v] = self.operands([q, k, graph.node[context].input.get(1)?])?;

        let [batch, heads, queries, dim] = q.sizes[..] else { return None };
        let keys = k.sizes[2];
        let value_dim = v.sizes[3];
        let agree = k.sizes == [batch, heads, keys, dim] && v.sizes == [batch, heads, keys, value_dim];
        if !agree || shape.iter().product::<usize>() != batch * heads * queries * keys {
            return None;
        }

        let (place, strides) = self.outcome(context, [heads, queries, value_dim])?;
        let out = graph.node[place].output.first()?.as_str();
        let list = |values: &[usize]| values.iter().map(|&n| n as i64).collect::<Vec<_>>();
        let rows = |v: &View| list(&[v.offset, v.strides[0], v.strides[1], v.strides[2]]);
        let attributes = vec![
            float_attribute("scale", (scale * q.factor * k.factor) as f32),
            ints_attribute("sizes", &list(&[batch, heads, queries, keys, dim, value_dim])),
            ints_attribute("query", &rows(&q)),
            ints_attribute("key", &rows(&k)),
            ints_attribute("value", &rows(&v)),
            ints_attribute("output", &list(&[0, strides[0], strides[1], strides[2]])),
            ints_attribute("shape", &list(&self.typing.shape(out)?)),
        ];
        let sums = self.names.fresh(&format!("{out}_sums"));
        let node = fused("Attention", &[q.source, k.source, v.source], &[out, &sums], attributes);
        self.replaced.insert(place, node);
        Some(())
    }

    /// The product of probabilities with values, where nothing else reads the probabilities.
    fn weighted_sum(&self, mut probabilities: &'m str) -> Option<usize> {
        let graph = self.typing.graph;
        let mut user = self.only_user(probabilities)?;
        // Exporters cast to the type that it has already.
        while matches!(graph.node[user].op_type(), "Identity" | "Cast") {
            probabilities = graph.node[user].output.first().filter(|y| self.is_float(y))?;
            user = self.only_user(probabilities)?;
        }
        let node = &graph.node[user];
        let is_product =
            node.op_type() == "MatMul" && is_standard(node) && node.input.first().is_some_and(|x| x == probabilities);
        is_product.then_some(user)
    }

    /// Queries, transposed keys and values as parts [batch, heads, tokens, dim] of the furthest tensors, or else of the
    /// nearest.
    fn operands(&self, [q, k, v]: [&'m str; 3]) -> Option<[View<'m>; 3]> {
        let all = |x: &'m str| self.views(x, 4 * DEPTH).into_iter();
        let q: Vec<View> = all(q).filter_map(View::by_heads).collect();
        let k: Vec<View> = all(k).filter_map(View::swapped).filter_map(View::by_heads).collect();
        let v: Vec<View> = all(v).filter(|v| v.factor == 1.0).filter_map(View::by_heads).collect();
        let far = [q.first()?, k.first()?, v.first()?];
        let near = [q.last()?, k.last()?, v.last()?];
        [far, near].into_iter().find(|views| self.tiled(views)).map(|views| views.map(View::clone))
    }

    /// The node whose output the fused operator writes, and how far batches, heads and tokens lie apart in it: tokens
    /// come before heads if a Transpose behind the product wants that.
    fn outcome(&self, product: usize, [heads, queries, dim]: [usize; 3]) -> Option<(usize, [usize; 3])> {
        let graph = self.typing.graph;
        let turns = |user: &usize| {
            let user = &graph.node[*user];
            user.op_type() == "Transpose" && user.ints("perm") == Some(&[0, 2, 1, 3])
        };
        let batch = heads * queries * dim;
        Some(match self.only_user(graph.node[product].output.first()?).filter(turns) {
            Some(user) => (user, [batch, dim, heads * dim]),
            None => (product, [batch, queries * dim, dim]),
        })
    }

    /// True where the rows of all views of a tensor are that tensor, each element once: its gradient is then written as
    /// a whole.
    fn tiled(&self, views: &[&View<'m>; 3]) -> bool {
        views.iter().all(|view| {
            let Some(shape) = self.typing.shape(view.source) else { return false };
            let mut rows: Vec<(usize, usize)> = views
                .iter()
                .filter(|v| v.source == view.source)
                .flat_map(|v| v.rows().into_iter().map(|start| (start, v.sizes[3])))
                .collect();
            rows.sort_unstable();
            let end = rows.iter().try_fold(0, |at, &(start, length)| (at == start).then_some(start + length));
            end == Some(shape.iter().product())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::axes::Assumption;
    use crate::onnx::proto::{ModelProto, TensorProto};
    use crate::onnx::{Model, tensor_from_f32, tensor_info};

    /// The operators that are left when a graph from x [2, 6] to y was fused.
    fn left(nodes: Vec<NodeProto>, numbers: &[(&str, f32)]) -> Vec<String> {
        let import = OperatorSetIdProto { domain: None, version: Some(17) };
        let number =
            |(name, value): &(&str, f32)| -> TensorProto { tensor_from_f32(*name, DataType::Float, &[], &[*value]) };
        let graph = GraphProto {
            node: nodes,
            initializer: numbers.iter().map(number).collect(),
            input: vec![tensor_info("x", DataType::Float, &[Some(2), Some(6)])],
            output: vec![tensor_info("y", DataType::Float, &[Some(2), Some(6)])],
            ..Default::default()
        };
        let proto = ModelProto { graph: Some(graph), opset_import: vec![import], ..Default::default() };
        let model = Model::from_proto(proto);
        let typing = Typing::with(&model, Assumption::default()).unwrap();
        fuse(&typing).node.iter().map(|n| format!("{}.{}", n.domain(), n.op_type())).collect()
    }

    #[test]
    fn gelu_is_found_in_any_order() {
        let n = |op: &str, a: &str, b: &str, o: &str| new_node(op, &[a, b], &[o], vec![]);
        let erf = |x: &str| new_node("Erf", &[x], &["e"], vec![]);
        let numbers = [("two", 2f32.sqrt()), ("one", 1.0), ("half", 0.5)];
        let fused = ["offshoot.Gelu"];
        // x · (1 + erf(x / √2)) · 0.5.
        let chain = vec![
            n("Div", "x", "two", "d"),
            erf("d"),
            n("Add", "e", "one", "a"),
            n("Mul", "x", "a", "m"),
            n("Mul", "m", "half", "y"),
        ];
        assert_eq!(left(chain.clone(), &numbers), fused);
        // 0.5 x + (0.5 x) erf(x / √2), with the half in front.
        let spread = vec![
            n("Div", "x", "two", "d"),
            erf("d"),
            n("Mul", "half", "x", "h"),
            n("Mul", "h", "e", "p"),
            n("Add", "p", "h", "y"),
        ];
        assert_eq!(left(spread, &numbers), fused);
        // Another constant is another function.
        assert_eq!(left(chain, &[("two", 1.5), ("one", 1.0), ("half", 0.5)]).len(), 5);

        let numbers = [("three", 3.0), ("c", 0.044715), ("root", 0.797_884_6), ("one", 1.0), ("half", 0.5)];
        let tanh = vec![
            n("Mul", "half", "x", "h"),
            n("Pow", "x", "three", "p"),
            n("Mul", "p", "c", "q"),
            n("Add", "x", "q", "r"),
            n("Mul", "r", "root", "u"),
            new_node("Tanh", &["u"], &["t"], vec![]),
            n("Add", "t", "one", "a"),
            n("Mul", "h", "a", "y"),
        ];
        assert_eq!(left(tanh, &numbers), fused);
    }

    #[test]
    fn products_with_weights_take_their_bias_along() {
        let weight = |name: &str, dims: &[usize]| {
            tensor_from_f32(name, DataType::Float, dims, &vec![0.5; dims.iter().product()])
        };
        let fused = |rows: usize, nodes: Vec<NodeProto>| -> Vec<NodeProto> {
            let graph = GraphProto {
                node: nodes,
                initializer: vec![weight("w", &[6, 4]), weight("turned", &[4, 6]), weight("bias", &[4])],
                input: vec![tensor_info("x", DataType::Float, &[Some(2), Some(rows), Some(6)])],
                output: vec![tensor_info("y", DataType::Float, &[Some(2), Some(rows), Some(4)])],
                ..Default::default()
            };
            let import = OperatorSetIdProto { domain: None, version: Some(17) };
            let proto = ModelProto { graph: Some(graph), opset_import: vec![import], ..Default::default() };
            fuse(&Typing::with(&Model::from_proto(proto), Assumption::default()).unwrap()).node
        };
        let n = |op: &str, a: &str, b: &str, o: &str| new_node(op, &[a, b], &[o], vec![]);
        let linear = |nodes: &[NodeProto], inputs: &[&str], transposed: i64| {
            let [node] = nodes else { panic!("{} nodes are left", nodes.len()) };
            assert_eq!((node.domain(), node.op_type()), (DOMAIN, "Linear"));
            assert_eq!(
                (&node.input[..], node.int("transB")),
                (&inputs.iter().map(|s| s.to_string()).collect::<Vec<_>>()[..], Some(transposed))
            );
            assert_eq!(node.output, ["y"]);
        };
        let sum = vec![n("MatMul", "x", "w", "p"), n("Add", "bias", "p", "y")];
        linear(&fused(16, sum.clone()), &["x", "w", "bias"], 0);
        linear(&fused(16, vec![n("MatMul", "x", "w", "y")]), &["x", "w"], 0);
        let turn = new_node("Transpose", &["turned"], &["t"], vec![]);
        linear(&fused(16, vec![turn, n("MatMul", "x", "t", "y")]), &["x", "turned"], 1);
        // Few rows; a product that something else reads, too.
        assert_eq!(fused(15, sum).len(), 2);
        let twice = vec![n("MatMul", "x", "w", "p"), n("Add", "p", "bias", "q"), n("Mul", "p", "q", "y")];
        let left: Vec<String> = fused(16, twice).iter().map(|n| n.op_type().to_string()).collect();
        assert_eq!(left, ["Linear", "Add", "Mul"]);
    }

    #[test]
    fn views_follow_reshapes_and_transposes() {
        let sizes = vec![2, 3, 24];
        let view = View { source: "x", offset: 0, strides: dense(&sizes), sizes, factor: 1.0 };
        // [batch, tokens, 3 x heads x dim] to the values [batch, heads, tokens, dim].
        let heads = view.clone().reshape(&[2, 3, 3, 2, 4]).and_then(|v| v.transpose(&[2, 0, 3, 1, 4]));
        let values = heads.and_then(|v| v.part(0, 2, 1)).and_then(|v| v.reshape(&[2, 2, 3, 4])).unwrap();
        assert_eq!((values.offset, &values.strides[..]), (16, &[72, 4, 24, 1][..]));
        assert_eq!(values.rows()[..4], [16, 40, 64, 20]);
        // Axes that do not lie one within the other cannot be merged.
        assert!(values.reshape(&[4, 3, 4]).is_none());
        assert!(view.part(2, 20, 8).is_none());
    }

    #[test]
    fn state_is_written_in_place_where_nothing_reads_it_later() {
        let tensor = |k: usize| Tensor {
            state: [["p0", "m0", "v0"], ["p1", "m1", "v1"]][k],
            gradient: ["g0", "g1"][k],
            decay: 0.0,
            rate: 1.0,
        };
        let scalars = ["rate", "first", "second"];
        let adamw = AdamW { scalars, gradient_scale: "scale", guard: "loss", betas: [0.9, 0.999], epsilon: 1e-8 };
        let mut graph = GraphProto {
            node: vec![
                new_node("Mul", &["p0", "x"], &["g0"], vec![]),
                new_node("Mul", &["p1", "x"], &["g1"], vec![]),
                adamw.node(&[tensor(0), tensor(1)], |s| format!("next/{s}")),
            ],
            ..Default::default()
        };
        let all = ["p0", "p1", "m0", "m1", "v0", "v1"].map(String::from);
        assert_eq!(in_place(&graph), HashSet::from(all));
        // No gradient waits for this reader of p0, which may run last.
        graph.node.insert(0, new_node("Neg", &["p0"], &["y"], vec![]));
        assert!(!in_place(&graph).contains("p0"));
        assert_eq!(in_place(&graph).len(), 5);
    }
}
