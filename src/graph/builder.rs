//! A small vocabulary for writing graphs: operators under fresh names, and constants that are made once.

use std::collections::HashMap;

use super::names::Names;
use super::nodes::{int_attribute, ints_attribute, node as new_node};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, tensor_from_f32, tensor_from_i64};

/// Nodes and constants that are to be added to a graph.
pub(crate) struct Builder {
    /// What new values are called.
    stem: String,
    /// The version of the default operator set.
    /// The operator set that nodes are written in.
    pub opset: i64,
    /// The element type of constants that are not integers.
    pub kind: DataType,
    pub names: Names,
    pub nodes: Vec<NodeProto>,
    pub initializers: Vec<TensorProto>,
    constants: HashMap<(i32, Vec<i64>, Vec<u8>), String>,
}

impl Builder {
    /// For a graph of the given opset; new values are called `stem_…`.
    pub fn new(graph: &GraphProto, opset: i64, stem: &str) -> Self {
        Builder {
            stem: stem.into(),
            opset,
            kind: DataType::Float,
            names: Names::new(graph),
            nodes: Vec::new(),
            initializers: Vec::new(),
            constants: HashMap::new(),
        }
    }

    /// From here on new values are called `stem_…`.
    pub fn under(&mut self, stem: &str) {
        self.stem = stem.into();
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
        let name = format!("{}_{}", self.stem, op.to_lowercase());
        self.op_called(op, inputs, attributes, &name)
    }

    /// An operator whose output has a name of its own, as far as that is free.
    pub fn op_called(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, name: &str) -> String {
        let output = self.names.fresh(name);
        self.op_as(op, inputs, attributes, &output);
        output
    }

    /// An operator of another domain than the default one, with as many outputs.
    pub fn op_in(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        outputs: usize,
        attributes: Vec<AttributeProto>,
    ) -> Vec<String> {
        let stem = format!("{}_{}", self.stem, op.to_lowercase());
        let outputs: Vec<String> = (0..outputs).map(|_| self.names.fresh(&stem)).collect();
        let refs: Vec<&str> = outputs.iter().map(String::as_str).collect();
        let mut node = new_node(op, inputs, &refs, attributes);
        node.domain = Some(domain.into());
        self.nodes.push(node);
        outputs
    }

    /// An operator whose output is a value that others know by its name.
    pub fn op_as(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, output: &str) {
        self.nodes.push(new_node(op, inputs, &[output], attributes));
    }

    /// A tensor under its own name, as far as that is free.
    pub fn tensor(&mut self, mut t: TensorProto) -> String {
        let name = self.names.fresh(t.name());
        t.name = Some(name.clone());
        self.initializers.push(t);
        name
    }

    /// A list that one node takes: a shape, borders, places.
    pub fn operand(&mut self, values: &[i64]) -> String {
        self.tensor(tensor_from_i64("offshoot_shape", &[values.len()], values))
    }

    pub fn floats(&mut self, shape: &[usize], data: &[f32]) -> String {
        self.constant(tensor_from_f32("", self.kind, shape, data))
    }

    pub fn scalar(&mut self, value: f32) -> String {
        self.floats(&[], &[value])
    }

    pub fn integers(&mut self, shape: &[usize], values: &[i64]) -> String {
        self.constant(tensor_from_i64("", shape, values))
    }

    pub fn ints(&mut self, values: &[i64]) -> String {
        self.integers(&[values.len()], values)
    }

    /// Equal constants are made once.
    fn constant(&mut self, mut t: TensorProto) -> String {
        let bytes = t.raw_data.as_ref().map(|b| b.to_vec()).unwrap_or_default();
        let key = (t.data_type(), t.dims.clone(), bytes);
        if let Some(name) = self.constants.get(&key) {
            return name.clone();
        }
        t.name = Some(format!("{}_constant", self.stem));
        let name = self.tensor(t);
        self.constants.insert(key, name.clone());
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

    /// A reduction; axes became an input in opset 13 (ReduceSum) and 18 (all others).
    pub fn reduce(&mut self, op: &str, x: &str, axes: &[usize], keep: bool) -> String {
        let axes: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
        let keep = int_attribute("keepdims", keep as i64);
        if self.opset >= if op == "ReduceSum" { 13 } else { 18 } {
            let axes = self.ints(&axes);
            self.op_with(op, &[x, &axes], vec![keep])
        } else {
            self.op_with(op, &[x], vec![ints_attribute("axes", &axes), keep])
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
