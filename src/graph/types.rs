//! Element types of values, and constants as initializers.

use std::collections::HashMap;

use super::nodes::Attributes;
use super::values::declared_type;
use crate::error::Result;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType, type_proto};
use crate::onnx::{DataType, data_type, element_count, is_float, tensor_from_f32, to_f32};
use crate::ops::{self, Type};

/// The element type of every value, as far as graph inputs declare theirs.
pub fn element_types(graph: &GraphProto) -> HashMap<&str, DataType> {
    let mut types = HashMap::new();
    for info in &graph.input {
        if let Some(kind) = declared_type(info).and_then(|t| DataType::try_from(t).ok()) {
            types.insert(info.name(), kind);
        }
    }
    types.extend(graph.initializer.iter().filter_map(|t| Some((t.name(), data_type(t)?))));
    // What an operator makes that is not known, the file may say.
    let infos = graph.value_info.iter().chain(&graph.output);
    let declared: HashMap<&str, DataType> =
        infos.filter_map(|v| Some((v.name(), DataType::try_from(declared_type(v)?).ok()?))).collect();
    for node in &graph.node {
        for (j, output) in node.output.iter().enumerate().filter(|(_, o)| !o.is_empty()) {
            let input = |i: usize| node.input.get(i).and_then(|x| types.get(x.as_str())).copied();
            let unknown = || declared.get(output.as_str()).copied().filter(|_| !ops::of(node).is_known());
            if let Some(kind) = output_type(node, j, input).or_else(unknown) {
                types.insert(output.as_str(), kind);
            }
        }
    }
    types
}

/// The element type of a node's output `j`, from those of its inputs.
pub fn output_type(node: &NodeProto, j: usize, input: impl Fn(usize) -> Option<DataType>) -> Option<DataType> {
    let named = |name: &str| node.int(name).and_then(|t| DataType::try_from(t as i32).ok());
    match (node.op_type(), j) {
        ("RemovePadding", 1..) => Some(DataType::Int32),
        ("TopK" | "MaxPool", 1) => Some(DataType::Int64),
        ("Dropout", 1) => Some(DataType::Bool),
        ("LayerNormalization", 1 | 2) => named("stash_type").or(Some(DataType::Float)),
        ("ConstantOfShape", _) => node.tensor("value").map_or(Some(DataType::Float), data_type),
        ("Constant", _) => match node.attribute.first()?.r#type() {
            AttributeType::Tensor => data_type(node.attribute.first()?.t.as_ref()?),
            AttributeType::Float | AttributeType::Floats => Some(DataType::Float),
            AttributeType::Int | AttributeType::Ints => Some(DataType::Int64),
            _ => None,
        },
        _ if !ops::of(node).is_known() => None,
        _ => match ops::of(node).result {
            Type::Of(i) => input(i),
            // Where it is left out, the type is that of the input (EyeLike).
            Type::Attribute(name) => named(name).or_else(|| input(0)),
            Type::Bool => Some(DataType::Bool),
            Type::Int64 => Some(DataType::Int64),
            Type::Int32 => Some(DataType::Int32),
        },
    }
}

/// Turns floating-point tensors of Constant nodes into initializers, so that there is one place for weights.
pub fn lift_constants(graph: &mut GraphProto) {
    let mut lifted = Vec::new();
    graph.node.retain(|node| {
        let tensor = node.tensor("value").filter(|t| is_float(t) && element_count(t).is_ok_and(|n| n > 1));
        match (node.op_type(), node.output.first(), tensor) {
            ("Constant", Some(name), Some(t)) => {
                let mut t = t.clone();
                t.name = Some(name.clone());
                lifted.push(t);
                false
            }
            _ => true,
        }
    });
    graph.initializer.extend(lifted);
}

/// Makes a graph that computes in one of the types `narrow` compute in float32: weights, constants, casts, inputs and
/// outputs.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported) for a weight that is no floating-point tensor after
/// all.
pub fn widen(graph: &mut GraphProto, narrow: &[DataType]) -> Result<()> {
    let is_narrow = |kind: i64| DataType::try_from(kind as i32).is_ok_and(|k| narrow.contains(&k));
    let wide = |t: &mut TensorProto| -> Result<()> {
        if is_narrow(t.data_type().into()) {
            let dims = t.shape();
            *t = tensor_from_f32(t.name(), DataType::Float, &dims, &to_f32(t)?);
        }
        Ok(())
    };
    for t in &mut graph.initializer {
        wide(t)?;
    }
    for a in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        if let Some(t) = a.t.as_mut() {
            wide(t)?;
        }
        // Cast, and operators that make values of a type that is an attribute.
        if matches!(a.name(), "to" | "dtype" | "stash_type") && a.i.is_some_and(is_narrow) {
            a.i = Some(DataType::Float as i64);
        }
    }
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && is_narrow(t.elem_type().into())
        {
            t.elem_type = Some(DataType::Float as i32);
        }
    }
    graph.value_info.retain(|v| !declared_type(v).is_some_and(|t| is_narrow(t.into())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, node};
    use crate::onnx::proto::AttributeProto;
    use crate::onnx::tensor_info;

    fn constant(name: &str, t: TensorProto) -> NodeProto {
        let value = AttributeProto {
            name: Some("value".into()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(t),
            ..Default::default()
        };
        node("Constant", &[], &[name], vec![value])
    }

    #[test]
    fn types_follow_casts_and_comparisons() {
        let graph = GraphProto {
            node: vec![
                node("Cast", &["x"], &["h"], vec![int_attribute("to", DataType::Float16 as i64)]),
                node("Mul", &["h", "h"], &["s"], vec![]),
                node("Greater", &["s", "h"], &["c"], vec![]),
                node("Where", &["c", "s", "h"], &["w"], vec![]),
                node("Shape", &["w"], &["n"], vec![]),
            ],
            input: vec![tensor_info("x", DataType::Float, &[None])],
            ..Default::default()
        };
        let types = element_types(&graph);
        use DataType::*;
        let expected = [("x", Float), ("h", Float16), ("s", Float16), ("c", Bool), ("w", Float16), ("n", Int64)];
        assert!(expected.iter().all(|(name, kind)| types[name] == *kind), "{types:?}");
    }

    #[test]
    fn only_float_tensors_of_several_elements_are_lifted() {
        let mut graph = GraphProto {
            node: vec![
                constant("weight", tensor_from_f32("", DataType::Float, &[2], &[1.0, 2.0])),
                constant("scalar", tensor_from_f32("", DataType::Float, &[], &[1.0])),
                constant("shape", crate::onnx::tensor_from_i64("", &[2], &[1, 2])),
                node("Add", &["x", "weight"], &["y"], vec![]),
            ],
            ..Default::default()
        };
        lift_constants(&mut graph);
        let names: Vec<_> = graph.initializer.iter().map(|t| t.name()).collect();
        assert_eq!(names, ["weight"]);
        assert_eq!(graph.node.len(), 3);
    }
}
