//! Tensors of the file: element types, checked payloads, and conversion to numbers where numbers are needed.

use bytes::Bytes;
use half::{bf16, f16};
use rayon::prelude::*;

use super::proto::{
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_proto, tensor_shape_proto, type_proto,
};
use crate::error::{Error, ErrorKind, Result};

pub use tensor_proto::DataType;

/// The ONNX element type of a tensor, where it is one that this version knows.
pub fn data_type(t: &TensorProto) -> Option<DataType> {
    DataType::try_from(t.data_type()).ok()
}

/// Bytes of one element; `None` for strings and for types packed below a byte.
pub fn element_size(data_type: DataType) -> Option<usize> {
    use DataType::*;
    Some(match data_type {
        Double | Int64 | Uint64 | Complex64 => 8,
        Complex128 => 16,
        Float | Int32 | Uint32 => 4,
        Float16 | Bfloat16 | Int16 | Uint16 => 2,
        Int8 | Uint8 | Bool | Float8e4m3fn | Float8e4m3fnuz | Float8e5m2 | Float8e5m2fnuz => 1,
        _ => return None,
    })
}

impl TensorProto {
    /// The dims, as [`element_count`] has found them to be.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().map(|&d| d as usize).collect()
    }
}

/// Number of elements: the product of the dims.
///
/// # Errors
/// [`ErrorKind::Format`] where a dim is negative or the product overflows.
pub fn element_count(t: &TensorProto) -> Result<usize> {
    t.dims
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))
        .filter(|&n| n <= isize::MAX as usize / 16)
        .ok_or_else(|| Error::new(ErrorKind::Format, format!("tensor `{}` has impossible dims {:?}", t.name(), t.dims)))
}

pub(super) fn is_external(t: &TensorProto) -> bool {
    t.data_location() == tensor_proto::DataLocation::External
}

/// Checks that a payload has exactly the length that type and dims ask for.
pub(super) fn check(t: &TensorProto) -> Result<()> {
    let count = element_count(t)?;
    let Some(kind) = data_type(t) else {
        bail!(Unsupported, "tensor `{}` has the unknown element type {}", t.name(), t.data_type());
    };
    let Some(size) = element_size(kind) else {
        return Ok(());
    };
    let (have, want, unit) = match &t.raw_data {
        Some(raw) => (raw.len(), count * size, "bytes"),
        None => {
            use DataType::*;
            let have = match kind {
                Float | Complex64 => t.float_data.len(),
                Double | Complex128 => t.double_data.len(),
                Int64 => t.int64_data.len(),
                Uint32 | Uint64 => t.uint64_data.len(),
                _ => t.int32_data.len(),
            };
            (have, count * if matches!(kind, Complex64 | Complex128) { 2 } else { 1 }, "elements")
        }
    };
    if have != want {
        bail!(
            Format,
            "tensor `{}` of type {kind:?} and dims {:?} needs {want} {unit} and has {have}",
            t.name(),
            t.dims
        );
    }
    Ok(())
}

/// The payload as little-endian bytes: a slice of the file where it lies there raw, else converted.
pub fn payload(t: &TensorProto) -> Bytes {
    use DataType::*;
    if let Some(raw) = &t.raw_data {
        return raw.clone();
    }
    let ints =
        |size: usize| -> Vec<u8> { t.int32_data.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect() };
    Bytes::from(match data_type(t) {
        Some(Float) | Some(Complex64) => t.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(Double) | Some(Complex128) => t.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(Int64) => t.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(Uint64) => t.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Some(Uint32) => t.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
        Some(kind) => ints(element_size(kind).unwrap_or(4).min(4)),
        None => Vec::new(),
    })
}

macro_rules! convert {
    ($bytes:expr, $($data_type:ident => $number:ty, $n:literal, $f:expr;)*) => {
        |kind: DataType| -> Option<Vec<_>> {
            match kind {
                $(DataType::$data_type => Some({
                    let elements = $bytes.as_chunks::<$n>().0;
                    let mut numbers = vec![Default::default(); elements.len()];
                    for (number, bytes) in numbers.iter_mut().zip(elements) {
                        #[allow(clippy::redundant_closure_call)]
                        let converted = ($f)(<$number>::from_le_bytes(*bytes));
                        *number = converted;
                    }
                    numbers
                }),)*
                _ => None,
            }
        }
    };
}

/// The elements of a floating-point tensor as f32.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the tensor is not of a floating-point type of 16, 32 or 64 bits.
pub fn to_f32(t: &TensorProto) -> Result<Vec<f32>> {
    let bytes = payload(t);
    let read = convert!(bytes,
        Float => f32, 4, |v| v;
        Double => f64, 8, |v| v as f32;
        Float16 => f16, 2, f16::to_f32;
        Bfloat16 => bf16, 2, bf16::to_f32;
    );
    data_type(t).and_then(read).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, format!("tensor `{}` is not of a floating-point type", t.name()))
    })
}

/// For every index along an axis of a floating-point tensor, with `before` indices in front of it and `after` behind
/// it: the sum of the squares of its elements, in double precision. Each is one thread's, so that it is the same
/// whatever the number of threads. Elements of single precision are read where they lie.
///
/// # Errors
/// Those of [`to_f32`].
pub fn squares_along(t: &TensorProto, shape: [usize; 3]) -> Result<Vec<f64>> {
    Ok(match (data_type(t), &t.raw_data) {
        (Some(DataType::Float), Some(raw)) => sum_squares(raw.as_chunks::<4>().0, |b| f32::from_le_bytes(*b), shape),
        _ => sum_squares(&to_f32(t)?, |v| *v, shape),
    })
}

/// Indices along an axis that one thread sums over at a time.
const INDICES: usize = 1024;
/// Sums that are carried side by side.
const LANES: usize = 16;

fn sum_squares<E: Sync>(
    elements: &[E],
    read: impl Fn(&E) -> f32 + Sync,
    [before, length, after]: [usize; 3],
) -> Vec<f64> {
    let square = |e: &E| (read(e) as f64).powi(2);
    let mut sums = vec![0f64; length];
    if elements.is_empty() {
        return sums;
    }
    sums.par_chunks_mut(INDICES).enumerate().for_each(|(part, sums)| {
        for b in 0..before {
            let first = (b * length + part * INDICES) * after;
            let elements = &elements[first..first + sums.len() * after];
            if after == 1 {
                sums.iter_mut().zip(elements).for_each(|(s, e)| *s += square(e));
                continue;
            }
            for (s, own) in sums.iter_mut().zip(elements.chunks_exact(after)) {
                let mut lanes = [0f64; LANES];
                let (whole, rest) = own.as_chunks::<LANES>();
                for e in whole {
                    lanes.iter_mut().zip(e).for_each(|(l, e)| *l += square(e));
                }
                lanes.iter_mut().zip(rest).for_each(|(l, e)| *l += square(e));
                *s += lanes.iter().sum::<f64>();
            }
        }
    });
    sums
}

/// The elements of a numeric tensor as i64; floating-point values are truncated.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the tensor is not numeric.
pub fn to_i64(t: &TensorProto) -> Result<Vec<i64>> {
    let bytes = payload(t);
    let read = convert!(bytes,
        Int64 => i64, 8, |v| v;
        Int32 => i32, 4, |v| v as i64;
        Int16 => i16, 2, |v| v as i64;
        Int8 => i8, 1, |v| v as i64;
        Uint64 => u64, 8, |v| i64::try_from(v).unwrap_or(i64::MAX);
        Uint32 => u32, 4, |v| v as i64;
        Uint16 => u16, 2, |v| v as i64;
        Uint8 => u8, 1, |v| v as i64;
        Bool => u8, 1, |v| (v != 0) as i64;
        Float => f32, 4, |v| v as i64;
        Double => f64, 8, |v| v as i64;
    );
    data_type(t)
        .and_then(read)
        .ok_or_else(|| Error::new(ErrorKind::Unsupported, format!("tensor `{}` is not numeric", t.name())))
}

/// True for floating-point element types that hold weights.
pub fn is_float(t: &TensorProto) -> bool {
    matches!(data_type(t), Some(DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16))
}

/// True where all elements are equal. No more is read than the elements up to the first that differs.
pub fn is_uniform(t: &TensorProto) -> bool {
    let bytes = payload(t);
    let size = data_type(t).and_then(element_size).unwrap_or(4);
    bytes.chunks(size).all(|element| *element == bytes[..size])
}

/// A tensor over raw bytes.
pub fn tensor_from_raw(name: impl Into<String>, kind: DataType, dims: &[usize], raw: Bytes) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.iter().map(|&d| d as i64).collect(),
        data_type: Some(kind as i32),
        raw_data: Some(raw),
        ..Default::default()
    }
}

/// An int64 tensor.
pub fn tensor_from_i64(name: impl Into<String>, dims: &[usize], data: &[i64]) -> TensorProto {
    let raw: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensor_from_raw(name, DataType::Int64, dims, raw.into())
}

/// A tensor of the floating-point type `kind`, rounded from f32.
pub fn tensor_from_f32(name: impl Into<String>, kind: DataType, dims: &[usize], data: &[f32]) -> TensorProto {
    let raw: Vec<u8> = match kind {
        DataType::Double => to_bytes(data, |v| f64::from(v).to_le_bytes()),
        DataType::Float16 => to_bytes(data, |v| f16::from_f32(v).to_le_bytes()),
        DataType::Bfloat16 => to_bytes(data, |v| bf16::from_f32(v).to_le_bytes()),
        _ => to_bytes(data, f32::to_le_bytes),
    };
    let kind = match kind {
        DataType::Double | DataType::Float16 | DataType::Bfloat16 => kind,
        _ => DataType::Float,
    };
    tensor_from_raw(name, kind, dims, raw.into())
}

fn to_bytes<const N: usize>(data: &[f32], convert: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; N * data.len()];
    for (to, v) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(data) {
        *to = convert(*v);
    }
    bytes
}

/// The declaration of a tensor value; a dim of `None` is dynamic.
pub fn tensor_info(name: impl Into<String>, kind: DataType, dims: &[Option<usize>]) -> ValueInfoProto {
    use tensor_shape_proto::{Dimension, dimension::Value};
    let dim = dims
        .iter()
        .enumerate()
        .map(|(i, d)| Dimension {
            denotation: None,
            value: Some(match d {
                Some(n) => Value::DimValue(*n as i64),
                None if i == 0 => Value::DimParam("batch".into()),
                None => Value::DimParam(format!("dim{i}")),
            }),
        })
        .collect();
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            denotation: None,
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: Some(kind as i32),
                shape: Some(TensorShapeProto { dim }),
            })),
        }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_summed_along_any_axis() {
        for [before, length, after] in [[3, 2500, 1], [2, 3, 37], [1, 1, 16], [2, 0, 3], [1, 2, 0]] {
            let values: Vec<f32> = (0..before * length * after).map(|i| (i % 13) as f32 / 4.0).collect();
            let mut sums = vec![0f64; length];
            for (i, v) in values.iter().enumerate() {
                sums[i / after % length] += (*v as f64).powi(2);
            }
            // Quarters and their sums are exact, in half precision, too.
            for kind in [DataType::Float, DataType::Float16] {
                let t = tensor_from_f32("w", kind, &[before, length, after], &values);
                assert_eq!(squares_along(&t, [before, length, after]).unwrap(), sums, "{kind:?}");
            }
        }
        assert!(squares_along(&tensor_from_i64("i", &[1], &[1]), [1, 1, 1]).is_err());
    }

    #[test]
    fn payload_must_match_dims() {
        let mut t = tensor_from_f32("w", DataType::Float, &[2, 3], &[0.0; 6]);
        assert!(check(&t).is_ok());
        t.dims = vec![2, 4];
        let error = check(&t).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Format);
        assert!(error.to_string().contains("needs 32 bytes and has 24"), "{error}");
    }

    #[test]
    fn elements_must_lie_in_the_field_of_their_type() {
        let in_field = |kind: DataType, floats: usize, ints: usize| TensorProto {
            dims: vec![2],
            data_type: Some(kind as i32),
            float_data: vec![1.0; floats],
            int32_data: vec![1; ints],
            ..Default::default()
        };
        for (kind, floats, ints) in [(DataType::Float, 0, 2), (DataType::Float, 1, 1), (DataType::Int64, 2, 0)] {
            assert_eq!(check(&in_field(kind, floats, ints)).unwrap_err().kind(), ErrorKind::Format);
        }
        assert!(check(&in_field(DataType::Float, 2, 0)).is_ok());
        assert!(check(&in_field(DataType::Float16, 0, 2)).is_ok());
        // Fields that are not read do no harm.
        assert!(check(&in_field(DataType::Int8, 5, 2)).is_ok());
    }

    #[test]
    fn product_of_dims_must_not_overflow() {
        let t = TensorProto { dims: vec![1 << 40, 1 << 40], data_type: Some(1), ..Default::default() };
        assert_eq!(check(&t).unwrap_err().kind(), ErrorKind::Format);
        let t = TensorProto { dims: vec![-1], data_type: Some(1), ..Default::default() };
        assert_eq!(check(&t).unwrap_err().kind(), ErrorKind::Format);
    }

    #[test]
    fn typed_fields_and_raw_bytes_are_the_same() {
        let raw = tensor_from_f32("w", DataType::Float, &[3], &[1.5, -2.0, 3.25]);
        let typed = TensorProto { raw_data: None, float_data: vec![1.5, -2.0, 3.25], ..raw.clone() };
        assert_eq!(payload(&raw), payload(&typed));
        assert_eq!(to_f32(&typed).unwrap(), [1.5, -2.0, 3.25]);
    }

    #[test]
    fn half_precision_round_trips() {
        for kind in [DataType::Float16, DataType::Bfloat16, DataType::Double] {
            let t = tensor_from_f32("w", kind, &[2], &[0.5, -4.0]);
            assert!(check(&t).is_ok());
            assert_eq!(to_f32(&t).unwrap(), [0.5, -4.0]);
        }
    }
}
