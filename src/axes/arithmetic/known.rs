//! Values that are known while a graph is typed.

use ndarray::{ArrayD, IxDyn};

use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{
    DataType, data_type, element_count, is_float, tensor_from_f32, tensor_from_i64, tensor_from_raw, to_f32, to_i64,
};

/// The type that a known value has in the graph, as far as arithmetic depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Any integer type.
    Integer,
    /// Any floating-point type.
    Float,
    /// Booleans, as 0 and 1.
    Boolean,
}

impl Number {
    /// That of an element type.
    pub(super) fn of(kind: DataType) -> Number {
        match kind {
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => Number::Float,
            DataType::Bool => Number::Boolean,
            _ => Number::Integer,
        }
    }
}

/// A known value.
#[derive(Clone, Debug)]
pub struct ConstValue {
    /// Its type.
    pub number: Number,
    /// Its elements.
    pub data: ArrayD<f64>,
}

/// Values beyond this many elements are not computed.
pub const LIMIT: usize = 65536;

impl ConstValue {
    /// A one-dimensional integer value.
    pub fn integers(values: impl IntoIterator<Item = i64>) -> Self {
        let data: Vec<f64> = values.into_iter().map(|v| v as f64).collect();
        ConstValue {
            number: Number::Integer,
            data: ArrayD::from_shape_vec(IxDyn(&[data.len()]), data).unwrap_or_default(),
        }
    }

    /// Reads a tensor of the file.
    pub fn read(t: &TensorProto) -> Option<ConstValue> {
        let shape = t.shape();
        if element_count(t).ok()? > LIMIT {
            return None;
        }
        let (number, data): (_, Vec<f64>) = if is_float(t) {
            (Number::Float, to_f32(t).ok()?.into_iter().map(f64::from).collect())
        } else {
            let number = if data_type(t) == Some(DataType::Bool) { Number::Boolean } else { Number::Integer };
            (number, to_i64(t).ok()?.into_iter().map(|v| v as f64).collect())
        };
        Some(ConstValue { number, data: ArrayD::from_shape_vec(IxDyn(&shape), data).ok()? })
    }

    /// The value as a tensor of a file; `None` for element types that are not floating-point numbers, int64, int32 or
    /// bool.
    pub fn tensor(&self, name: &str, kind: DataType) -> Option<TensorProto> {
        let (shape, ints) = (self.data.shape(), self.ints());
        Some(match kind {
            DataType::Int64 => tensor_from_i64(name, shape, &ints),
            DataType::Int32 => {
                let bytes: Vec<u8> = ints.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect();
                tensor_from_raw(name, kind, shape, bytes.into())
            }
            DataType::Bool => {
                let bytes: Vec<u8> = ints.iter().map(|&v| u8::from(v != 0)).collect();
                tensor_from_raw(name, kind, shape, bytes.into())
            }
            DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double => {
                let elements: Vec<f32> = self.data.iter().map(|&v| v as f32).collect();
                tensor_from_f32(name, kind, shape, &elements)
            }
            _ => return None,
        })
    }

    /// The elements as integers.
    pub fn ints(&self) -> Vec<i64> {
        self.data.iter().map(|&v| v as i64).collect()
    }

    pub(super) fn with(&self, data: ArrayD<f64>) -> ConstValue {
        ConstValue { number: self.number, data }
    }
}

/// The value of a Constant node.
pub fn constant(node: &NodeProto) -> Option<ConstValue> {
    let attribute = node.attribute.first()?;
    let scalar = |number, v| Some(ConstValue { number, data: ArrayD::from_elem(IxDyn(&[]), v) });
    let list =
        |number, v: Vec<f64>| Some(ConstValue { number, data: ArrayD::from_shape_vec(IxDyn(&[v.len()]), v).ok()? });
    match attribute.name() {
        "value" => ConstValue::read(attribute.t.as_ref()?),
        "value_int" => scalar(Number::Integer, attribute.i() as f64),
        "value_float" => scalar(Number::Float, attribute.f() as f64),
        "value_ints" => list(Number::Integer, attribute.ints.iter().map(|&v| v as f64).collect()),
        "value_floats" => list(Number::Float, attribute.floats.iter().map(|&v| v as f64).collect()),
        _ => None,
    }
}
