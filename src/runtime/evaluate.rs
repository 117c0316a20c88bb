//! Graphs without inputs, run once for the tensors that they make.

use std::sync::Arc;

use ort::session::SessionInputValue;
use ort::value::DynValue;

use super::kernels;
use super::session::{Purpose, guarded};
use super::start::Runtime;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{declared_type, int_attribute, node, widen};
use crate::onnx::proto::TensorProto;
use crate::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw, tensor_info};

/// Element types that [`Runtime::evaluate`] returns.
pub fn can_evaluate(kind: DataType) -> bool {
    use DataType::*;
    matches!(kind, Float | Float16 | Bfloat16 | Double | Int64 | Int32 | Bool)
}

impl Runtime {
    /// Runs a model that has no data inputs and returns its outputs, in order and under their names. Outputs must
    /// declare their element types.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] where the runtime cannot run it, [`ErrorKind::Unsupported`] for element types other than
    /// floating-point numbers, int64, int32 and bool.
    pub fn evaluate(self: &Arc<Self>, model: &Model) -> Result<Vec<TensorProto>> {
        let mut model = model.clone();
        let wanted: Vec<(String, DataType)> = model
            .graph()
            .output
            .iter()
            .map(|o| {
                let kind = declared_type(o).and_then(|t| DataType::try_from(t).ok()).filter(|&t| can_evaluate(t));
                kind.map(|kind| (o.name().to_string(), kind)).ok_or_else(|| {
                    Error::new(ErrorKind::Unsupported, format!("the value `{}` has no type that can be read", o.name()))
                })
            })
            .collect::<Result<_>>()?;
        // Half precision crosses the border as f32, which holds it exactly; bfloat16 has no kernels on the processor.
        let graph = model.graph_mut();
        widen(graph, &[DataType::Bfloat16])?;
        let mut names = crate::graph::Names::new(graph);
        let mut read = Vec::with_capacity(wanted.len());
        graph.output.clear();
        for (output, kind) in &wanted {
            let (value, at_border) = match kind {
                DataType::Bfloat16 => (output.clone(), DataType::Float),
                DataType::Float16 => {
                    let wide = names.fresh(&format!("{output}_wide"));
                    let to = int_attribute("to", DataType::Float as i64);
                    graph.node.push(node("Cast", &[output], &[&wide], vec![to]));
                    (wide, DataType::Float)
                }
                _ => (output.clone(), *kind),
            };
            let mut info = tensor_info(&value, at_border, &[]);
            forget_shape(&mut info);
            graph.output.push(info);
            read.push(value);
        }
        debug_assert!(model.proto.opset_import.iter().all(|o| o.domain() != kernels::DOMAIN));
        let mut session = guarded(self.kind, || self.build(model, Purpose::Once))?;
        guarded(self.kind, || {
            let fail = |e: String| Error::new(ErrorKind::Runtime, format!("{} failed: {e}", self.kind.name()));
            let nothing: Vec<(String, SessionInputValue)> = Vec::new();
            let results = session.run(nothing).map_err(|e| fail(e.to_string()))?;
            wanted
                .iter()
                .zip(&read)
                .map(|((output, kind), value)| {
                    let found = results.get(value).ok_or_else(|| fail(format!("no output `{value}`")))?;
                    tensor(output, *kind, found).map_err(|e| fail(format!("output `{output}`: {e}")))
                })
                .collect()
        })
    }
}

/// A declaration without a shape, which is not known before the run.
fn forget_shape(info: &mut crate::onnx::proto::ValueInfoProto) {
    use crate::onnx::proto::type_proto::Value;
    if let Some(Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        t.shape = None;
    }
}

fn tensor(output: &str, kind: DataType, value: &DynValue) -> std::result::Result<TensorProto, ort::Error> {
    macro_rules! raw {
        ($number:ty) => {{
            let array = value.try_extract_array::<$number>()?;
            let bytes: Vec<u8> = array.iter().flat_map(|v| v.to_le_bytes()).collect();
            (array.shape().to_vec(), bytes)
        }};
    }
    let (shape, bytes) = match kind {
        DataType::Double => raw!(f64),
        DataType::Int64 => raw!(i64),
        DataType::Int32 => raw!(i32),
        DataType::Bool => {
            let array = value.try_extract_array::<bool>()?;
            (array.shape().to_vec(), array.iter().map(|&v| u8::from(v)).collect())
        }
        _ => {
            let array = value.try_extract_array::<f32>()?;
            let elements: Vec<f32> = array.iter().copied().collect();
            return Ok(tensor_from_f32(output, kind, array.shape(), &elements));
        }
    };
    Ok(tensor_from_raw(output, kind, &shape, bytes.into()))
}
