//! A small vocabulary for writing graphs: operators under fresh names, and constants that are made once.

use std::collections::HashMap;

use crate::graph::{Names, int_attribute, ints_attribute, node as new_node};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor_from_f32, tensor_from_i64};

/// Nodes and constants that are to be added to a graph.
pub(crate) struct Builder {
    /// What new values are called.
    stem: &'static str,
    /// The version of the default operator set.
    opset: i64,
    names: Names,
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    constants: HashMap<(Vec<usize>, Vec<u8>), String>,
}

impl Builder {
    /// For a graph of the given opset; new values are called `stem_…`.
    pub fn new(graph: &GraphProto, opset: i64, stem: &'static str) -> Self {
        Builder {
            stem,
            opset,
            names: Names::new(graph),
            nodes: Vec::new(),
            initializers: Vec::new(),
            constants: HashMap::new(),
        }
    }

    /// Adds what was built to the graph.
    pub fn finish(self, graph: &mut GraphProto) {
        graph.node.extend(self.nodes);
        graph.initializer.extend(self.initializers);
    }

    pub fn op(&mut self, op: &str, inputs: &[&str]) -> String {
        self.op_with(op, inputs, vec![])
    }

    pub fn op_with(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        let output = self.names.fresh(&format!("{}_{}", self.stem, op.to_lowercase()));
        self.nodes.push(new_node(op, inputs, &[&output], attributes));
        output
    }

    /// An operator whose output has a name that was chosen.
    pub fn op_as(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.nodes.push(new_node(op, inputs, &[output], vec![]));
    }

    pub fn floats(&mut self, shape: &[usize], data: &[f32]) -> String {
        let t = tensor_from_f32("", DataType::Float, shape, data);
        self.constant(t, shape)
    }

    pub fn scalar(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        let t = tensor_from_i64("", &[values.len()], values);
        self.constant(t, &[values.len(), usize::MAX])
    }

    /// An index: an integer without axes.
    pub fn index(&mut self, value: i64) -> String {
        let t = tensor_from_i64("", &[], &[value]);
        self.constant(t, &[usize::MAX])
    }

    /// Equal constants are made once.
    fn constant(&mut self, mut t: TensorProto, key: &[usize]) -> String {
        let bytes = t.raw_data.as_ref().map(|b| b.to_vec()).unwrap_or_default();
        if let Some(name) = self.constants.get(&(key.to_vec(), bytes.clone())) {
            return name.clone();
        }
        let name = self.names.fresh(&format!("{}_constant", self.stem));
        t.name = Some(name.clone());
        self.initializers.push(t);
        self.constants.insert((key.to_vec(), bytes), name.clone());
        name
    }

    pub fn reshape(&mut self, x: &str, shape: &[usize]) -> String {
        let shape = self.ints(&shape.iter().map(|&n| n as i64).collect::<Vec<_>>());
        self.op("Reshape", &[x, &shape])
    }

    /// ReduceSum or ReduceMean over all axes, to a scalar.
    pub fn reduce_all(&mut self, op: &str, x: &str) -> String {
        self.op_with(op, &[x], vec![int_attribute("keepdims", 0)])
    }

    /// ReduceSum or ReduceMean; axes became an input in opset 13 and 18.
    pub fn reduce(&mut self, op: &str, x: &str, axes: &[i64], keep: bool) -> String {
        let keep = int_attribute("keepdims", keep as i64);
        if self.opset >= if op == "ReduceSum" { 13 } else { 18 } {
            let axes = self.ints(axes);
            self.op_with(op, &[x, &axes], vec![keep])
        } else {
            self.op_with(op, &[x], vec![ints_attribute("axes", axes), keep])
        }
    }

    /// Elements `start..end` along an axis.
    pub fn slice(&mut self, x: &str, axis: i64, start: i64, end: i64) -> String {
        if self.opset < 10 {
            let attributes = vec![
                ints_attribute("axes", &[axis]),
                ints_attribute("starts", &[start]),
                ints_attribute("ends", &[end]),
            ];
            return self.op_with("Slice", &[x], attributes);
        }
        let (a, b, axis) = (self.ints(&[start]), self.ints(&[end]), self.ints(&[axis]));
        self.op("Slice", &[x, &a, &b, &axis])
    }

    /// Clips from above by a constant.
    pub fn at_most(&mut self, x: &str, bound: f32) -> String {
        let bound = self.scalar(bound);
        self.op("Min", &[x, &bound])
    }

    /// LogSoftmax over the last of two axes.
    pub fn log_softmax(&mut self, x: &str) -> String {
        self.op_with("LogSoftmax", &[x], vec![int_attribute("axis", 1)])
    }

    /// A product with a constant.
    pub fn scaled(&mut self, x: &str, factor: f32) -> String {
        if factor == 1.0 {
            return x.to_string();
        }
        let factor = self.scalar(factor);
        self.op("Mul", &[x, &factor])
    }

    /// A Gemm whose second matrix may stand transposed.
    pub fn gemm(&mut self, inputs: &[&str], transposed: bool) -> String {
        self.op_with("Gemm", inputs, vec![int_attribute("transB", transposed as i64)])
    }
}
