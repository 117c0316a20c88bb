//! What a graph declares of its values.

use std::collections::HashSet;

use crate::onnx::proto::{GraphProto, ValueInfoProto, tensor_shape_proto::dimension::Value, type_proto};

/// Dims of a declared tensor value; `None` for a dim that is dynamic. `None` as a whole where no shape is declared.
pub fn declared_dims(info: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_ref()?.value.as_ref() else {
        return None;
    };
    let dims = &tensor.shape.as_ref()?.dim;
    Some(
        dims.iter()
            .map(|d| match d.value {
                Some(Value::DimValue(n)) if n > 0 => Some(n as usize),
                _ => None,
            })
            .collect(),
    )
}

/// Element type of a declared tensor value.
pub fn declared_type(info: &ValueInfoProto) -> Option<i32> {
    match info.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => tensor.elem_type,
        _ => None,
    }
}

/// Declares a dim of a tensor value; does nothing where the value has no such dim.
pub fn declare_dim(info: &mut ValueInfoProto, axis: usize, size: usize) {
    if let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
        && let Some(dim) = tensor.shape.as_mut().and_then(|s| s.dim.get_mut(axis))
    {
        dim.value = Some(Value::DimValue(size as i64));
    }
}

/// The model's data inputs: inputs that are not initializers.
pub fn data_inputs(graph: &GraphProto) -> Vec<&ValueInfoProto> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    graph.input.iter().filter(|v| !weights.contains(v.name())).collect()
}
