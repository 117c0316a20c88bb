//! The backward walk: which values need a gradient, what has been gathered for each, and the nodes that compute it.

use std::collections::{HashMap, HashSet};
use std::ops::{Deref, DerefMut};

use super::operators::Operators;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Builder, int_attribute, ints_attribute};
use crate::onnx::DataType;
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::runtime::kernels::DOMAIN;

/// From this many rows on a sum over rows is a product with a row of ones: a matrix product is faster than ReduceSum.
const ROWS_OF_A_PRODUCT: usize = 64;

/// The batch is fixed, so results of shape arithmetic are constants.
fn fold_shapes(graph: &mut GraphProto, typing: &Typing, types: &HashMap<&str, DataType>) {
    let constant = |name: &String| -> Option<TensorProto> {
        let kind = *types.get(name.as_str()).filter(|k| **k == DataType::Int64 || float(**k))?;
        typing.known.get(name.as_str())?.tensor(name, kind)
    };
    let outputs: HashSet<String> = graph.output.iter().map(|o| o.name().to_string()).collect();
    let mut constants = Vec::new();
    graph.node.retain(|node| {
        let values: Option<Vec<TensorProto>> = node.output.iter().map(constant).collect();
        match values {
            Some(values) if !values.is_empty() && !node.output.iter().any(|o| outputs.contains(o)) => {
                constants.extend(values);
                false
            }
            _ => true,
        }
    });
    graph.initializer.extend(constants);
}

pub(super) fn float(kind: DataType) -> bool {
    matches!(kind, DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16)
}

/// An element type that ONNX Runtime concatenates, but neither pads nor compares on every device and in every opset.
pub(super) const FEW_KERNELS: DataType = DataType::Bfloat16;

/// The state of the backward walk, and the vocabulary that gradient rules are written in.
pub(super) struct Backward<'t, 'm> {
    pub typing: &'t Typing<'m>,
    /// What the graph may be made of.
    pub operators: Operators,
    types: HashMap<&'m str, DataType>,
    /// What the backward nodes are written with; constants take the element type of the gradient at hand.
    builder: Builder,
    /// The node at hand.
    at: usize,
    needs: HashSet<&'t str>,
    gathered: HashMap<String, String>,
    /// Shapes of gradients, as far as they are known.
    shapes: HashMap<String, Vec<usize>>,
    /// What each result of a Reshape is a view of.
    views: HashMap<String, String>,
    reshaped: HashMap<(String, Vec<usize>), String>,
    /// Outputs that nodes of the forward graph get in addition, by node.
    outputs: HashMap<usize, Vec<String>>,
}

impl Deref for Backward<'_, '_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        &self.builder
    }
}

impl DerefMut for Backward<'_, '_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.builder
    }
}

impl<'t, 'm> Backward<'t, 'm> {
    /// A walk without a gradient yet.
    pub fn new(
        typing: &'t Typing<'m>,
        operators: Operators,
        types: HashMap<&'m str, DataType>,
        builder: Builder,
        needs: HashSet<&'t str>,
    ) -> Self {
        Backward {
            typing,
            operators,
            types,
            builder,
            at: 0,
            needs,
            gathered: HashMap::new(),
            shapes: HashMap::new(),
            views: HashMap::new(),
            reshaped: HashMap::new(),
            outputs: HashMap::new(),
        }
    }

    /// Goes to node `k` of the forward graph.
    pub fn go_to(&mut self, k: usize, node: &NodeProto) {
        self.at = k;
        self.builder.kind = self.element_type(&node.output[0]);
    }

    /// The graph with the backward nodes that its gradients need.
    pub fn finish(self, mut graph: GraphProto, of: &HashMap<String, String>) -> GraphProto {
        for (k, outputs) in self.outputs {
            graph.node[k].output = outputs;
        }
        let Builder { nodes, initializers, .. } = self.builder;
        let mut live: HashSet<&str> = of.values().map(String::as_str).collect();
        let mut kept = vec![false; nodes.len()];
        for (node, kept) in nodes.iter().zip(&mut kept).rev() {
            if node.output.iter().any(|o| live.contains(o.as_str())) {
                *kept = true;
                live.extend(node.input.iter().map(String::as_str));
            }
        }
        fold_shapes(&mut graph, self.typing, &self.types);
        graph.initializer.extend(initializers.iter().filter(|t| live.contains(t.name())).cloned());
        graph.node.extend(nodes.into_iter().zip(kept).filter_map(|(node, kept)| kept.then_some(node)));
        graph.value_info.clear();
        graph
    }

    /// True where a value needs a gradient.
    pub fn requires_grad(&self, value: &str) -> bool {
        self.needs.contains(value)
    }

    /// Adds to the gradient of a value.
    pub fn accumulate(&mut self, value: &str, gradient: String) {
        let sum = match self.gathered.remove(value) {
            Some(old) => self.op("Add", &[&old, &gradient]),
            None => gradient,
        };
        self.gathered.insert(value.to_string(), sum);
    }

    /// True where a value has a gradient.
    pub fn has_grad(&self, value: &str) -> bool {
        self.gathered.contains_key(value)
    }

    /// The gradient of a value so far.
    pub fn grad(&mut self, value: &str) -> Option<String> {
        let gradient = self.gathered.get(value)?.clone();
        if let Some(shape) = self.typing.shape(value) {
            self.shapes.insert(gradient.clone(), shape);
        }
        Some(gradient)
    }

    /// The shape of a value of the forward graph.
    pub fn shape(&self, value: &str) -> Result<Vec<usize>> {
        self.typing
            .shape(value)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("the shape of `{value}` is not known")))
    }

    /// The element type of a value of the forward graph.
    pub fn element_type(&self, value: &str) -> DataType {
        self.types.get(value).copied().unwrap_or(DataType::Float)
    }

    /// The name of output `j` of the forward node at hand, which gets that output where it has none.
    pub fn forward_output(&mut self, node: &NodeProto, j: usize) -> String {
        let outputs = self.outputs.entry(self.at).or_insert_with(|| node.output.clone());
        outputs.resize(outputs.len().max(j + 1), String::new());
        if outputs[j].is_empty() {
            outputs[j] = self.builder.names.fresh(&format!("{}_{j}", node.output[0]));
        }
        outputs[j].clone()
    }

    /// An operator of `com.microsoft`.
    pub fn contrib(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.op_in("com.microsoft", op, inputs, 1, attributes).remove(0)
    }

    /// True where a fused operator may compute the gradient at hand.
    pub fn fuses(&self) -> bool {
        self.operators == Operators::Fused && self.kind == DataType::Float
    }

    /// A fused operator of Offshoot's own, with as many outputs.
    pub fn fused(&mut self, op: &str, inputs: &[&str], outputs: usize, attributes: Vec<AttributeProto>) -> Vec<String> {
        self.op_in(DOMAIN, op, inputs, outputs, attributes)
    }

    /// Takes the gradient of a value, to add to it by other means than [`Backward::accumulate`].
    pub fn take_grad(&mut self, value: &str) -> Option<String> {
        self.gathered.remove(value)
    }

    /// Zeros that the graph holds.
    pub fn zeros(&mut self, shape: &[usize]) -> String {
        self.floats(shape, &vec![0.0; shape.iter().product()])
    }

    /// Zeros in the shape of a value, however large, made when the graph runs: no number is less than itself. What
    /// follows from constants alone a runtime computes when it loads the graph, and keeps.
    ///
    /// # Errors
    /// Those of [`Backward::shape`].
    pub fn zeros_like(&mut self, x: &str) -> Result<String> {
        if self.kind == FEW_KERNELS {
            let shape = self.shape(x)?;
            return Ok(self.zeros(&shape));
        }
        let never = self.op("Less", &[x, x]);
        Ok(self.indicator(&never))
    }

    /// A value in another shape. Views of one value are views of that value, and each is made once.
    pub fn reshape(&mut self, x: &str, shape: &[usize]) -> String {
        let x = self.views.get(x).cloned().unwrap_or_else(|| x.to_string());
        if self.shapes.get(&x).cloned().or_else(|| self.typing.shape(&x)).is_some_and(|s| s == shape) {
            return x;
        }
        let key = (x, shape.to_vec());
        if let Some(view) = self.reshaped.get(&key) {
            return view.clone();
        }
        let target = self.ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>());
        let view = self.op("Reshape", &[&key.0, &target]);
        self.views.insert(view.clone(), key.0.clone());
        self.reshaped.insert(key, view.clone());
        view
    }

    pub fn transpose(&mut self, x: &str, perm: &[usize]) -> String {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return x.to_string();
        }
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.op_with("Transpose", &[x], vec![ints_attribute("perm", &perm)])
    }

    /// The product of two matrices, or of two batches of them, each transposed first where asked for.
    pub fn product(&mut self, (a, ta): (&str, bool), (b, tb): (&str, bool), rank: (usize, usize)) -> String {
        let flags = vec![int_attribute("transA", ta as i64), int_attribute("transB", tb as i64)];
        if rank == (2, 2) {
            return self.op_with("Gemm", &[a, b], flags);
        }
        if (ta || tb) && self.operators >= Operators::Contrib && self.kind == DataType::Float {
            return self.contrib("FusedMatMul", &[a, b], flags);
        }
        let a = if ta { self.transposed(a, rank.0) } else { a.to_string() };
        let b = if tb { self.transposed(b, rank.1) } else { b.to_string() };
        self.op("MatMul", &[&a, &b])
    }

    /// Swaps the last two axes.
    fn transposed(&mut self, x: &str, rank: usize) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(x, &perm)
    }

    /// Undoes broadcasting: sums a gradient of shape `from` over the axes along which `to` was broadcast.
    pub fn unbroadcast(&mut self, g: &str, from: &[usize], to: &[usize]) -> String {
        self.shapes.insert(g.to_string(), from.to_vec());
        if from == to {
            return g.to_string();
        }
        let lead = from.len() - to.len().min(from.len());
        let axes: Vec<usize> = (0..from.len()).filter(|&i| from[i] != 1 && (i < lead || to[i - lead] == 1)).collect();
        // Leading axes, but for those of one element.
        let rows: usize = axes.iter().map(|&a| from[a]).product();
        let end = axes.last().map_or(0, |a| a + 1);
        let columns: usize = from[end..].iter().product();
        let summed = if axes.is_empty() {
            g.to_string()
        } else if from[..end].iter().product::<usize>() == rows && rows >= ROWS_OF_A_PRODUCT && columns > 1 {
            let ones = self.floats(&[1, rows], &vec![1.0; rows]);
            let matrix = self.reshape(g, &[rows, columns]);
            self.op("MatMul", &[&ones, &matrix])
        } else {
            self.reduce("ReduceSum", g, &axes, false)
        };
        self.reshape(&summed, to)
    }

    /// Gives an input of a node its gradient, where it needs one.
    pub fn give(
        &mut self,
        node: &NodeProto,
        input: usize,
        make: impl FnOnce(&mut Self, &str) -> Result<String>,
    ) -> Result<()> {
        let Some(x) = node.input.get(input).filter(|x| !x.is_empty()) else { return Ok(()) };
        if self.requires_grad(x) {
            let g = make(self, x)?;
            self.accumulate(x, g);
        }
        Ok(())
    }

    /// [`Backward::give`] for a gradient of the output's shape, which the input was broadcast to.
    pub fn give_broadcast(
        &mut self,
        node: &NodeProto,
        input: usize,
        make: impl FnOnce(&mut Self) -> String,
    ) -> Result<()> {
        self.give(node, input, |t, x| {
            let g = make(t);
            let (from, to) = (t.shape(&node.output[0])?, t.shape(x)?);
            Ok(t.unbroadcast(&g, &from, &to))
        })
    }

    /// Elements `start` to `start + length` along an axis.
    pub fn part(&mut self, x: &str, axis: usize, start: usize, length: usize) -> String {
        self.slice(x, axis as i64, start as i64, (start + length) as i64)
    }

    pub fn concat(&mut self, parts: &[String], axis: usize) -> String {
        if let [part] = parts {
            return part.clone();
        }
        let refs: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.op_with("Concat", &refs, vec![int_attribute("axis", axis as i64)])
    }

    /// Zeros before and behind a gradient along an axis, which then has the length that `shape` says.
    pub fn pad(&mut self, g: &str, shape: &[usize], axis: usize, start: usize, length: usize) -> String {
        if length == shape[axis] {
            return g.to_string();
        }
        let behind = shape[axis] - start - length;
        if self.kind == FEW_KERNELS {
            let zeros = |t: &mut Self, n: usize| {
                let mut shape = shape.to_vec();
                shape[axis] = n;
                (n > 0).then(|| t.zeros(&shape))
            };
            let mut parts: Vec<String> = zeros(self, start).into_iter().collect();
            parts.push(g.to_string());
            parts.extend(zeros(self, behind));
            return self.concat(&parts, axis);
        }
        let mut pads = vec![0; 2 * shape.len()];
        pads[axis] = start as i64;
        pads[shape.len() + axis] = behind as i64;
        // The widths of the padding became an input in opset 11.
        if self.typing.opset < 11 {
            return self.op_with("Pad", &[g], vec![ints_attribute("pads", &pads)]);
        }
        let (pads, zero) = (self.ints(&pads), self.scalar(0.0));
        self.op("Pad", &[g, &pads, &zero])
    }

    /// 1 where a condition holds, else 0, in the element type at hand.
    pub fn indicator(&mut self, condition: &str) -> String {
        let to = int_attribute("to", self.kind as i64);
        self.op_with("Cast", &[condition], vec![to])
    }

    /// A value where a condition holds, else 0.
    pub fn only_where(&mut self, condition: &str, x: &str) -> String {
        let zero = self.scalar(0.0);
        self.op("Where", &[condition, x, &zero])
    }
}
