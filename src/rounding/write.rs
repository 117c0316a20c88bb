//! Nodes that read weights in int8.
//!
//! Weights alone: `DequantizeLinear(axis 1)` in front of the MatMul that was there; a Gemm becomes a MatMul and an Add,
//! since engines unfold a transposed weight in every run. Rows as well: each row of the data is divided by its largest
//! magnitude over 127, rounded and made a byte without a sign, and a MatMulInteger sums in 32 bits. A row is rounded by
//! itself, so that a sample is the same alone and among others. Tables: the rows that are read, and their scales.

use std::collections::{HashMap, HashSet};

use super::numbers::Lies;
use super::plan::{Plan, Rounded, Site};
use super::raise::{OPSET, raise};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    self, Attributes, Builder, LARGEST, LEAST, MIDDLE, cast, int_attribute, ints_attribute, node as new_node,
};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw};

/// ReduceMax has its axes as an input from this set on.
const AXES_INPUT: i64 = 18;

/// Puts weights of a prepared model of float32 into int8.
pub(super) fn write(model: &mut Model, rows: bool) -> Result<Rounded> {
    graph::lift_constants(model.graph_mut());
    let raised_from = if model.opset() < OPSET { raise(model)? } else { None };
    let plan = Plan::new(&Typing::new(model)?, rows);
    let opset = model.opset();
    let graph = model.graph_mut();
    let count = |table: bool| plan.sites.iter().filter(|s| (s.lies == Lies::Rows) == table).count();
    let (matrices, tables) = (count(false), plan.numbers.keys().filter(|(_, lies)| *lies == Lies::Rows).count());
    let own = plan.numbers.len() - tables;
    let (copies, twice, float32) = (matrices - own, plan.twice(), plan.kept.clone());
    let mut rounded = Rounded { matrices, copies, tables, rows, twice, raised_from, float32 };
    if rows {
        (rounded.matrices, rounded.copies) = (own, 0);
    }
    let mut writing = Writing::new(graph, opset, plan, rows);
    for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        writing.node(k, node);
    }
    let Writing { builder, plan, .. } = writing;
    graph.initializer.retain(|t| !plan.dropped.contains(t.name()));
    graph.value_info.retain(|v| !plan.dropped.contains(v.name()));
    builder.finish(graph);
    // A file that nothing opens is not written.
    graph::sort(graph).map_err(|e| Error::new(ErrorKind::Internal, format!("weights in int8 left a gap: {e}")))?;
    Ok(rounded)
}

struct Writing {
    builder: Builder,
    opset: i64,
    rows: bool,
    plan: Plan,
    sites: HashMap<usize, usize>,
    /// Names of weights in int8 and their scales.
    tensors: HashMap<(String, Lies), (String, String)>,
    /// Names of float weights that are free again.
    free: HashSet<String>,
    /// Rounded rows and their steps, by the value that they are of.
    rounded: HashMap<String, (String, String)>,
    /// The byte that stands for zero.
    zero: Option<String>,
}

impl Writing {
    fn new(graph: &GraphProto, opset: i64, plan: Plan, rows: bool) -> Writing {
        let sites = plan.sites.iter().enumerate().map(|(i, site)| (site.node, i)).collect();
        let builder = Builder::new(graph, opset, "int8");
        let free = plan.dropped.clone();
        let (tensors, rounded) = (HashMap::new(), HashMap::new());
        Writing { builder, opset, rows, plan, sites, tensors, free, rounded, zero: None }
    }

    fn node(&mut self, k: usize, node: NodeProto) {
        let Some(&site) = self.sites.get(&k) else {
            // What made another form of a weight is not asked any more.
            if !node.output.first().is_some_and(|o| self.plan.dropped.contains(o)) {
                self.builder.nodes.push(node);
            }
            return;
        };
        let Site { weight, lies, .. } = &self.plan.sites[site];
        let (weight, lies) = (weight.clone(), *lies);
        match (lies, self.rows) {
            (Lies::Rows, _) => self.table(node, &weight),
            (_, false) => self.matrix(node, &weight, lies),
            (_, true) => self.product(node, &weight, lies),
        }
    }

    /// The tensors of a weight, which are the same for every node that shares them.
    fn tensors(&mut self, weight: &str, lies: Lies) -> (String, String) {
        let key = (weight.to_string(), lies);
        if let Some(made) = self.tensors.get(&key) {
            return made.clone();
        }
        let made = self.copy(weight, lies);
        self.tensors.insert(key, made.clone());
        made
    }

    /// The tensors of a weight under names of their own.
    fn copy(&mut self, weight: &str, lies: Lies) -> (String, String) {
        let numbers = &self.plan.numbers[&(weight.to_string(), lies)];
        let columns = numbers.bytes.len() / numbers.scales.len().max(1);
        let (dims, scale) = match lies {
            Lies::Rows => ([numbers.scales.len(), columns], vec![numbers.scales.len(), 1]),
            _ => ([columns, numbers.scales.len()], vec![numbers.scales.len()]),
        };
        let bytes = tensor_from_raw(format!("{weight}/int8"), DataType::Int8, &dims, numbers.bytes.clone());
        let scales = tensor_from_f32(format!("{weight}/scale"), DataType::Float, &scale, &numbers.scales);
        (self.builder.tensor(bytes), self.builder.tensor(scales))
    }

    /// A fresh name behind that of a value.
    fn fresh(&mut self, value: &str, part: &str) -> String {
        self.builder.names.fresh(&format!("{value}/{part}"))
    }

    fn push(&mut self, op: &str, inputs: &[&str], output: &str) {
        self.builder.nodes.push(new_node(op, inputs, &[output], vec![]));
    }

    /// A DequantizeLinear and a product.
    fn matrix(&mut self, node: NodeProto, weight: &str, lies: Lies) {
        let (numbers, scales) = self.copy(weight, lies);
        // The float matrix has the name that it had, where it lies as it did.
        let wide = match lies == Lies::Columns && self.free.remove(weight) {
            true => weight.to_string(),
            false => self.fresh(weight, "columns"),
        };
        let axis = vec![int_attribute("axis", 1)];
        self.builder.nodes.push(new_node("DequantizeLinear", &[&numbers, &scales], &[&wide], axis));
        let (product, behind) = self.behind(&node);
        let matmul = new_node("MatMul", &[&node.input[0], &wide], &[&product], vec![]);
        self.builder.nodes.push(NodeProto { name: node.name, ..matmul });
        self.builder.nodes.extend(behind);
    }

    /// The output of the product that a node is, and what a Gemm does behind it.
    fn behind(&mut self, node: &NodeProto) -> (String, Vec<NodeProto>) {
        let output = &node.output[0];
        let mut steps: Vec<(&str, String)> = Vec::new();
        if node.op_type() == "Gemm" {
            let factor = |name: &str| node.float(name).filter(|&f| f != 1.0);
            if let Some(alpha) = factor("alpha") {
                steps.push(("Mul", self.builder.scalar(alpha)));
            }
            if let Some(bias) = node.input.get(2).filter(|c| !c.is_empty()) {
                let mut bias = bias.clone();
                if let Some(beta) = factor("beta") {
                    let beta = self.builder.scalar(beta);
                    let scaled = self.fresh(&bias, "scaled");
                    self.push("Mul", &[&bias, &beta], &scaled);
                    bias = scaled;
                }
                steps.push(("Add", bias));
            }
        }
        let mut names: Vec<String> = steps.iter().map(|_| self.fresh(output, "product")).collect();
        names.push(output.clone());
        let step = |(i, (op, other)): (usize, &(&str, String))| {
            let made = new_node(op, &[&names[i], other], &[&names[i + 1]], vec![]);
            // The product has the name of the node.
            NodeProto { name: Some(format!("{}/{}", names[i + 1], op.to_lowercase())), ..made }
        };
        let behind = steps.iter().enumerate().map(step).collect();
        (names[0].clone(), behind)
    }

    /// Rows of a table, and their scales.
    fn table(&mut self, node: NodeProto, weight: &str) {
        let (numbers, scales) = self.tensors(weight, Lies::Rows);
        let output = &node.output[0];
        let [taken, wide, scale] = ["int8", "single", "scale"].map(|part| self.fresh(output, part));
        self.push("Gather", &[&numbers, &node.input[1]], &taken);
        self.builder.nodes.push(cast(&taken, &wide, DataType::Float));
        self.push("Gather", &[&scales, &node.input[1]], &scale);
        let product = new_node("Mul", &[&wide, &scale], &[output], vec![]);
        self.builder.nodes.push(NodeProto { name: node.name.clone(), ..product });
    }

    /// A product of bytes.
    fn product(&mut self, node: NodeProto, weight: &str, lies: Lies) {
        let (numbers, scales) = self.tensors(weight, lies);
        let (bytes, step) = self.rounded_rows(&node.input[0]);
        let middle = self.middle();
        let (product, behind) = self.behind(&node);
        let [sums, wide, of_rows] = ["sums", "single", "rows"].map(|part| self.fresh(&product, part));
        self.push("MatMulInteger", &[&bytes, &numbers, &middle], &sums);
        self.builder.nodes.push(cast(&sums, &wide, DataType::Float));
        self.push("Mul", &[&wide, &step], &of_rows);
        // The last one has the name of the node, and no other: it may be that of the output.
        let of_columns = new_node("Mul", &[&of_rows, &scales], &[&product], vec![]);
        self.builder.nodes.push(NodeProto { name: node.name, ..of_columns });
        self.builder.nodes.extend(behind);
    }

    /// The byte that stands for zero.
    fn middle(&mut self) -> String {
        let made = || self.builder.tensor(tensor_from_raw("int8_zero", DataType::Uint8, &[], vec![MIDDLE].into()));
        self.zero.get_or_insert_with(made).clone()
    }

    /// A value with each of its rows as bytes, and how much a number of them is.
    fn rounded_rows(&mut self, value: &str) -> (String, String) {
        if let Some(made) = self.rounded.get(value) {
            return made.clone();
        }
        let parts = ["size", "largest", "bounded", "step", "steps", "whole", "shifted", "bytes"];
        let [size, largest, bounded, step, steps, whole, shifted, bytes] = parts.map(|part| self.fresh(value, part));
        let [least, most, middle] = [LEAST, LARGEST, f32::from(MIDDLE)].map(|v| self.builder.scalar(v));
        self.push("Abs", &[value], &size);
        let keep = int_attribute("keepdims", 1);
        let reduce = match self.opset >= AXES_INPUT {
            true => {
                let axes = self.builder.ints(&[-1]);
                new_node("ReduceMax", &[&size, &axes], &[&largest], vec![keep])
            }
            false => new_node("ReduceMax", &[&size], &[&largest], vec![ints_attribute("axes", &[-1]), keep]),
        };
        self.builder.nodes.push(reduce);
        self.push("Max", &[&largest, &least], &bounded);
        self.push("Div", &[&bounded, &most], &step);
        self.push("Div", &[value, &step], &steps);
        self.push("Round", &[&steps], &whole);
        self.push("Add", &[&whole, &middle], &shifted);
        self.builder.nodes.push(cast(&shifted, &bytes, DataType::Uint8));
        self.rounded.insert(value.to_string(), (bytes.clone(), step.clone()));
        (bytes, step)
    }
}
