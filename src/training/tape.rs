//! The backward walk: which values need a gradient, what has been gathered for each, and the nodes that compute it.

use std::collections::{HashMap, HashSet};

use super::{Operators, rules};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Names, int_attribute, ints_attribute, node as new_node};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, node_label, tensor_from_f32, tensor_from_i64};

/// A graph with its gradients.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// Forward and backward in one graph. Its outputs are those of the forward graph; append what you need.
    pub graph: GraphProto,
    /// The value that holds the gradient of each trained weight, by the weight's name. A weight that does not influence the
    /// outputs has none.
    pub of: HashMap<String, String>,
}

impl Gradients {
    /// Differentiates a typed graph of fixed batch size.
    ///
    /// `seeds` are pairs of a value of the graph and the value that holds the gradient of the loss with respect to it, which must be
    /// an input, an initializer or made by `extra`: nodes that stand behind the forward graph (the loss).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an operator without a gradient rule on the way; it names the node.
    pub fn new(
        typing: &Typing,
        trained: &HashSet<String>,
        seeds: &[(String, String)],
        extra: (Vec<NodeProto>, Vec<TensorProto>),
        operators: Operators,
    ) -> Result<Gradients> {
        let mut graph = typing.graph.clone();
        graph.node.extend(extra.0);
        graph.initializer.extend(extra.1);
        let mut needs: HashSet<&str> = trained.iter().map(String::as_str).collect();
        // Results of shape arithmetic depend on shapes alone.
        let computed = |node: &NodeProto| node.output.iter().any(|o| typing.known.contains_key(o.as_str()));
        for node in typing.graph.node.iter().filter(|n| !computed(n)) {
            if node.input.iter().any(|x| needs.contains(x.as_str())) {
                needs.extend(node.output.iter().filter(|o| !o.is_empty()).map(String::as_str));
            }
        }
        let names = Names::new(&graph);
        let mut tape = Tape {
            typing,
            operators,
            needs,
            names,
            gathered: HashMap::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
            constants: HashMap::new(),
        };
        for (value, gradient) in seeds {
            tape.add(value, gradient.clone());
        }
        for node in typing.graph.node.iter().rev() {
            let wanted = !computed(node) && node.input.iter().any(|x| tape.needs.contains(x.as_str()));
            let given: Vec<Option<String>> = node.output.iter().map(|o| tape.gathered.get(o).cloned()).collect();
            if wanted && given.iter().any(Option::is_some) {
                rules::backward(&mut tape, node, &given).map_err(|e| e.in_node(node_label(node)))?;
            }
        }
        let of = trained.iter().filter_map(|w| Some((w.clone(), tape.gathered.get(w)?.clone()))).collect();
        let Tape { nodes, initializers, .. } = tape;
        graph.node.extend(nodes);
        graph.initializer.extend(initializers);
        graph.value_info.clear();
        Ok(Gradients { graph, of })
    }
}

/// The state of the backward walk, and the vocabulary that gradient rules are written in.
pub(super) struct Tape<'t, 'm> {
    pub typing: &'t Typing<'m>,
    /// What the graph may be made of.
    pub operators: Operators,
    needs: HashSet<&'t str>,
    names: Names,
    gathered: HashMap<String, String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
    constants: HashMap<(Vec<usize>, Vec<u8>), String>,
}

impl Tape<'_, '_> {
    /// True where the gradient of a value is wanted.
    pub fn needs(&self, value: &str) -> bool {
        self.needs.contains(value)
    }

    /// Adds to what has been gathered for a value.
    pub fn add(&mut self, value: &str, gradient: String) {
        let sum = match self.gathered.remove(value) {
            Some(old) => self.op("Add", &[&old, &gradient]),
            None => gradient,
        };
        self.gathered.insert(value.to_string(), sum);
    }

    /// The shape of a value of the forward graph.
    pub fn shape(&self, value: &str) -> Result<Vec<usize>> {
        self.typing
            .shape(value)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("the shape of `{value}` is not known")))
    }

    pub fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.op_with(op, inputs, vec![])
    }

    pub fn op_with(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.names.fresh(&format!("gradient_{}", op.to_lowercase()));
        self.nodes.push(new_node(op, inputs, &[&output], attributes));
        output
    }

    pub fn floats(&mut self, shape: &[usize], data: &[f32]) -> String {
        let t = tensor_from_f32("", DataType::Float, shape, data);
        self.constant(t, shape)
    }

    pub fn scalar(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    pub fn zeros(&mut self, shape: &[usize]) -> String {
        self.floats(shape, &vec![0.0; shape.iter().product()])
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        let t = tensor_from_i64("", &[values.len()], values);
        self.constant(t, &[values.len(), usize::MAX])
    }

    /// Equal constants are made once.
    fn constant(&mut self, mut t: TensorProto, key: &[usize]) -> String {
        let bytes = t.raw_data.as_ref().map(|b| b.to_vec()).unwrap_or_default();
        if let Some(name) = self.constants.get(&(key.to_vec(), bytes.clone())) {
            return name.clone();
        }
        let name = self.names.fresh("gradient_constant");
        t.name = Some(name.clone());
        self.initializers.push(t);
        self.constants.insert((key.to_vec(), bytes), name.clone());
        name
    }

    pub fn reshape(&mut self, x: &str, shape: &[usize]) -> String {
        let shape = self.ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>());
        self.op("Reshape", &[x, &shape])
    }

    pub fn transpose(&mut self, x: &str, perm: &[usize]) -> String {
        let perm: Vec<i64> = perm.iter().map(|&p| p as i64).collect();
        self.op_with("Transpose", &[x], vec![ints_attribute("perm", &perm)])
    }

    /// Swaps the last two axes.
    pub fn transposed(&mut self, x: &str, rank: usize) -> String {
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 1, rank - 2);
        self.transpose(x, &perm)
    }

    /// ReduceSum or ReduceMean; axes became an input in opset 13 and 18.
    pub fn reduce(&mut self, op: &str, x: &str, axes: &[usize], keep: bool) -> String {
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let keep = int_attribute("keepdims", keep as i64);
        if self.typing.opset >= if op == "ReduceSum" { 13 } else { 18 } {
            let axes = self.ints(&axes);
            self.op_with(op, &[x, &axes], vec![keep])
        } else {
            self.op_with(op, &[x], vec![ints_attribute("axes", &axes), keep])
        }
    }

    /// Undoes broadcasting: sums a gradient of shape `from` over the axes along which `to` was broadcast.
    pub fn unbroadcast(&mut self, g: &str, from: &[usize], to: &[usize]) -> String {
        if from == to {
            return g.to_string();
        }
        let lead = from.len() - to.len().min(from.len());
        let axes: Vec<usize> = (0..from.len()).filter(|&i| from[i] != 1 && (i < lead || to[i - lead] == 1)).collect();
        let summed = if axes.is_empty() { g.to_string() } else { self.reduce("ReduceSum", g, &axes, false) };
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
        if self.needs(x) {
            let g = make(self, x)?;
            self.add(x, g);
        }
        Ok(())
    }

    /// [`Tape::give`] for a gradient of the output's shape, which the input was broadcast to.
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

    /// A part of zeros before and behind a gradient along an axis.
    pub fn pad(&mut self, g: &str, shape: &[usize], axis: usize, start: usize, length: usize) -> String {
        let mut parts = Vec::new();
        let zeros = |t: &mut Self, n: usize| {
            let mut s = shape.to_vec();
            s[axis] = n;
            (n > 0).then(|| t.zeros(&s))
        };
        parts.extend(zeros(self, start));
        parts.push(g.to_string());
        parts.extend(zeros(self, shape[axis] - start - length));
        if parts.len() == 1 {
            return g.to_string();
        }
        let refs: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.op_with("Concat", &refs, vec![int_attribute("axis", axis as i64)])
    }
}
