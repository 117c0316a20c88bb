//! Mixed precision: the graph computes in half precision, while weights, their gradients and the optimiser stay in
//! float32.
//!
//! Every weight is cast where it is used, so that its gradient is cast back by the rule of Cast. Constants become half
//! tensors; shape arithmetic stays as it is. Outputs are cast to float32, and with them the loss. What of the whole
//! step no device computes in bfloat16 stays in float32 between casts.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::trained::is_trainable;
use crate::axes::Typing;
use crate::graph::{self, Attributes, Names, cast, data_inputs, element_types, int_attribute};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use crate::onnx::{DataType, data_type, tensor_from_f32, to_f32};
use crate::ops;

/// The precision that a step computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// float32 throughout.
    #[default]
    F32,
    /// float16 with a scaled loss, whose scale follows the gradients.
    Fp16,
    /// bfloat16, which needs no scale.
    Bf16,
}

impl Precision {
    /// The element type, where it is not float32.
    pub fn half(self) -> Option<DataType> {
        match self {
            Precision::F32 => None,
            Precision::Fp16 => Some(DataType::Float16),
            Precision::Bf16 => Some(DataType::Bfloat16),
        }
    }

    /// True where the loss is scaled.
    pub fn scales(self) -> bool {
        self == Precision::Fp16
    }
}

/// True for a node that a GPU computes in bfloat16.
pub(super) fn runs_in_bfloat16(node: &NodeProto, opset: i64) -> bool {
    let op = ops::of(node);
    op.is_of(node) && op.cuda_bfloat16.is_some_and(|since| opset >= since)
}

/// Makes the nodes of a sorted graph that do not run in `half` compute in float32, between casts. Between two such
/// nodes nothing is rounded.
pub(super) fn widen_where(graph: &mut GraphProto, half: DataType, runs: impl Fn(&NodeProto) -> bool) {
    let halves: HashSet<String> =
        element_types(graph).into_iter().filter(|(_, kind)| *kind == half).map(|(name, _)| name.to_string()).collect();
    let mut names = Names::new(graph);
    let mut wide: HashMap<String, String> = HashMap::new();
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        if runs(&node) {
            nodes.push(node);
            continue;
        }
        for x in node.input.iter_mut().filter(|x| halves.contains(x.as_str())) {
            let float = wide.entry(x.clone()).or_insert_with(|| {
                let float = names.fresh(&format!("{x}/float"));
                nodes.push(cast(x, &float, DataType::Float));
                float
            });
            *x = float.clone();
        }
        let mut back = Vec::new();
        for o in node.output.iter_mut().filter(|o| halves.contains(o.as_str())) {
            let float = names.fresh(&format!("{o}/float"));
            back.push(cast(&float, o, half));
            wide.insert(std::mem::replace(o, float.clone()), float);
        }
        nodes.push(node);
        nodes.extend(back);
    }
    graph.node = nodes;
}

/// Makes a typed graph of float32 compute in `half`.
pub(super) fn in_half(typing: &Typing, half: DataType) -> crate::error::Result<GraphProto> {
    let mut graph = typing.graph.clone();
    let mut names = Names::new(&graph);
    let arithmetic: HashSet<&str> = typing.known.keys().copied().collect();
    let is_float = |t: &TensorProto| data_type(t) == Some(DataType::Float);
    let mut first = Vec::new();
    let rename = |graph: &mut GraphProto, from: &str, to: &str| {
        let nodes = graph.node.iter_mut().flat_map(|n| &mut n.input);
        nodes.filter(|x| *x == from).for_each(|x| *x = to.to_string());
    };
    let inputs: Vec<String> = data_inputs(&graph).iter().map(|v| v.name().to_string()).collect();
    let weights = graph.initializer.iter().filter(|t| is_float(t) && is_trainable(t)).map(|t| t.name().to_string());
    for value in weights.chain(inputs).collect::<Vec<_>>() {
        let inside = names.fresh(&format!("{value}/half"));
        rename(&mut graph, &value, &inside);
        first.push(cast(&value, &inside, half));
    }
    for t in graph.initializer.iter_mut().filter(|t| is_float(t) && !is_trainable(t)) {
        if !used_as_float(&typing.graph.node, t.name()) {
            *t = as_half(t, half)?;
        }
    }
    for node in &mut graph.node {
        if node.output.iter().any(|o| arithmetic.contains(o.as_str())) {
            continue;
        }
        match node.op_type() {
            "Constant" => {
                for a in &mut node.attribute {
                    half_attribute(a, half)?;
                }
            }
            "ConstantOfShape" => match node.attribute.iter_mut().find(|a| a.name() == "value") {
                Some(a) => half_attribute(a, half)?,
                None => node.attribute.push(value_attribute(tensor_from_f32("", half, &[1], &[0.0]))),
            },
            "Cast" if node.int("to") == Some(DataType::Float as i64) => {
                node.attribute = vec![int_attribute("to", half as i64)];
            }
            _ => {}
        }
    }
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_string()).collect();
    for output in outputs {
        let inside = names.fresh(&format!("{output}/half"));
        rename(&mut graph, &output, &inside);
        for o in graph.node.iter_mut().flat_map(|n| &mut n.output).filter(|o| **o == output) {
            *o = inside.clone();
        }
        graph.node.push(cast(&inside, &output, DataType::Float));
    }
    graph.node.splice(0..0, first);
    graph.value_info.clear();
    let far = graph::Far::new(typing.graph, half)?;
    meet_in_half(&mut graph, half, &far, typing.opset, &mut names);
    Ok(graph)
}

/// Casts what shape arithmetic made in float32 where it meets data in `half`, in a sorted graph.
fn meet_in_half(graph: &mut GraphProto, half: DataType, far: &graph::Far, opset: i64, names: &mut Names) {
    let unchanged = std::mem::take(&mut graph.node);
    let mut types: HashMap<String, DataType> =
        element_types(graph).into_iter().map(|(name, kind)| (name.to_string(), kind)).collect();
    let mut made: HashMap<String, String> = HashMap::new();
    for mut node in unchanged {
        let of = |kind: DataType| {
            let data = node.input.iter().take(data_operands(&node)).enumerate();
            data.filter(|(_, x)| types.get(*x) == Some(&kind)).map(|(j, _)| j).collect::<Vec<_>>()
        };
        if node.op_type() != "Cast" && !of(half).is_empty() {
            for j in of(DataType::Float) {
                let from = node.input[j].clone();
                let to = made.entry(from).or_insert_with_key(|from| {
                    let to = names.fresh(&format!("{from}/half"));
                    types.insert(to.clone(), half);
                    let within = far.origin(from).map(|_| graph::clipped(from, half, opset, names));
                    let (from, nodes) = within.unwrap_or_else(|| (from.clone(), Vec::new()));
                    graph.node.extend(nodes);
                    graph.node.push(cast(&from, &to, half));
                    to
                });
                node.input[j] = to.clone();
            }
        }
        for (j, output) in node.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
            let kind = graph::output_type(&node, j, |i| node.input.get(i).and_then(|x| types.get(x)).copied());
            types.extend(kind.map(|kind| (output.clone(), kind)));
        }
        graph.node.push(node);
    }
}

/// How many of a node's inputs share one element type, where they are floating-point numbers.
fn data_operands(node: &NodeProto) -> usize {
    if node.op_type() == "Resize" { 1 } else { node.input.len() }
}

/// True where a node takes the value as float32 whatever its data are: the scales of a Resize.
fn used_as_float(nodes: &[NodeProto], value: &str) -> bool {
    nodes.iter().any(|n| n.op_type() == "Resize" && n.input.iter().skip(1).any(|x| x == value))
}

fn as_half(t: &TensorProto, half: DataType) -> crate::error::Result<TensorProto> {
    let dims = t.shape();
    let mut numbers = to_f32(t)?;
    graph::clamp(&mut numbers, half);
    Ok(tensor_from_f32(t.name(), half, &dims, &numbers))
}

fn value_attribute(t: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some("value".into()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(t),
        ..Default::default()
    }
}

fn half_attribute(a: &mut AttributeProto, half: DataType) -> crate::error::Result<()> {
    match (a.name(), &a.t) {
        ("value", Some(t)) if data_type(t) == Some(DataType::Float) => a.t = Some(as_half(t, half)?),
        ("value_float", _) => {
            *a = value_attribute(as_half(&tensor_from_f32("", DataType::Float, &[], &[a.f()]), half)?)
        }
        ("value_floats", _) => {
            let t = tensor_from_f32("", DataType::Float, &[a.floats.len()], &a.floats);
            *a = value_attribute(as_half(&t, half)?);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::node as new_node;
    use crate::onnx::tensor_info;

    #[test]
    fn what_does_not_run_in_half_precision_stays_in_float32_between_casts() {
        let mut graph = GraphProto {
            input: vec![tensor_info("x", DataType::Bfloat16, &[Some(2)])],
            node: vec![
                new_node("Neg", &["x"], &["negative"], vec![]),
                new_node("Log", &["negative"], &["logarithm"], vec![]),
                new_node("Reciprocal", &["logarithm"], &["reciprocal"], vec![]),
                new_node("Less", &["logarithm", "reciprocal"], &["less"], vec![]),
                new_node("Where", &["less", "logarithm", "reciprocal"], &["y"], vec![]),
            ],
            ..Default::default()
        };
        widen_where(&mut graph, DataType::Bfloat16, |n| runs_in_bfloat16(n, 17));
        let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type()).collect();
        assert_eq!(ops, ["Neg", "Cast", "Log", "Cast", "Reciprocal", "Cast", "Less", "Where"]);
        let types = element_types(&graph);
        for node in &graph.node {
            let expected = match node.op_type() {
                "Log" | "Reciprocal" | "Less" => DataType::Float,
                "Neg" | "Where" => DataType::Bfloat16,
                _ => continue,
            };
            let data: Vec<_> = node.input.iter().filter(|x| *x != "less").map(|x| types[x.as_str()]).collect();
            assert!(data.iter().all(|t| *t == expected), "{node:?}: {data:?}");
        }
        assert_eq!(types["y"], DataType::Bfloat16);
        assert_eq!(types["less"], DataType::Bool);
    }
}
