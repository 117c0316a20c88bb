//! Mixed precision: the graph computes in half precision, while weights, their gradients and the optimiser stay in float32.
//!
//! Every weight is cast where it is used, so that its gradient is cast back by the rule of Cast. Constants become half tensors; shape
//! arithmetic stays as it is. Outputs are cast to float32, and with them the loss.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::axes::Typing;
use crate::graph::{self, Attributes, Names, data_inputs, element_types, int_attribute, node as new_node};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use crate::onnx::{DataType, data_type, tensor_from_f32, to_f32};

use super::is_trainable;

/// The precision that a step computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
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

/// Makes a typed graph of float32 compute in `half`.
pub(super) fn in_half(typing: &Typing, half: DataType) -> crate::error::Result<GraphProto> {
    let mut graph = typing.graph.clone();
    let mut names = Names::new(&graph);
    let arithmetic: HashSet<&str> = typing.known.keys().copied().collect();
    let is_float = |t: &TensorProto| data_type(t) == Some(DataType::Float);
    let cast =
        |from: &str, to: &str, kind: DataType| new_node("Cast", &[from], &[to], vec![int_attribute("to", kind as i64)]);
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
    // What shape arithmetic made in float32 meets the data here.
    let mut casts: Vec<(usize, usize)> = Vec::new();
    {
        let types = element_types(&graph);
        for (k, node) in graph.node.iter().enumerate() {
            let kind = |x: &String| types.get(x.as_str()).copied();
            let operands = data_operands(node);
            let halves = node.input.iter().take(operands).any(|x| kind(x) == Some(half));
            for (j, x) in node.input.iter().enumerate().take(operands) {
                if halves && kind(x) == Some(DataType::Float) && node.op_type() != "Cast" {
                    casts.push((k, j));
                }
            }
        }
    }
    let mut more = Vec::new();
    for (k, j) in casts {
        let from = graph.node[k].input[j].clone();
        let to = names.fresh(&format!("{from}/half"));
        graph.node[k].input[j] = to.clone();
        more.push(cast(&from, &to, half));
    }
    graph.node.extend(more);
    graph::sort(&mut graph)?;
    Ok(graph)
}

/// How many of a node's inputs share one element type.
fn data_operands(node: &NodeProto) -> usize {
    match node.op_type() {
        "Resize" | "Reshape" | "Expand" | "Slice" | "Tile" => 1,
        _ => node.input.len(),
    }
}

/// True where a node takes the value as float32 whatever its data are: the scales of a Resize.
fn used_as_float(nodes: &[NodeProto], value: &str) -> bool {
    nodes.iter().any(|n| n.op_type() == "Resize" && n.input.iter().skip(1).any(|x| x == value))
}

fn as_half(t: &TensorProto, half: DataType) -> crate::error::Result<TensorProto> {
    let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
    Ok(tensor_from_f32(t.name(), half, &dims, &to_f32(t)?))
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
        ("value_float", _) => *a = value_attribute(tensor_from_f32("", half, &[], &[a.f()])),
        ("value_floats", _) => *a = value_attribute(tensor_from_f32("", half, &[a.floats.len()], &a.floats)),
        _ => {}
    }
    Ok(())
}
