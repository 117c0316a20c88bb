//! Half precision in NumPy files, which `ndarray-npy` does not read by itself.

use std::io::Read;

use half::f16;
use ndarray_npy::{ReadDataError, ReadableElement};
use py_literal::Value;

/// An element of type `float16`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Float16(pub f16);

impl ReadableElement for Float16 {
    fn read_to_end_exact_vec<R: Read>(reader: R, kind: &Value, len: usize) -> Result<Vec<Self>, ReadDataError> {
        if *kind != Value::String("<f2".into()) {
            return Err(ReadDataError::WrongDescriptor(kind.clone()));
        }
        // A damaged header may ask for more than there is: nothing is reserved before it is read.
        let wanted = len.checked_mul(size_of::<f16>()).ok_or(ReadDataError::MissingData)?;
        let mut bytes = Vec::new();
        reader.take(wanted as u64 + 1).read_to_end(&mut bytes).map_err(ReadDataError::Io)?;
        match bytes.len().cmp(&wanted) {
            std::cmp::Ordering::Less => Err(ReadDataError::MissingData),
            std::cmp::Ordering::Greater => Err(ReadDataError::ExtraBytes(bytes.len() - wanted)),
            std::cmp::Ordering::Equal => {
                Ok(bytes.as_chunks::<2>().0.iter().map(|&pair| Float16(f16::from_le_bytes(pair))).collect())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, arr2};
    use ndarray_npy::{ReadNpyError, ReadNpyExt};

    use super::*;

    /// A file as NumPy 2.5 writes it: the header, and the values 1, -2, 0.333251953125, 65504.
    fn file(kind: &str, values: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': (2, 2), }}");
        header += &" ".repeat(118 - header.len() - 1);
        [b"\x93NUMPY\x01\x00\x76\x00", header.as_bytes(), b"\n", values].concat()
    }

    #[test]
    fn arrays_of_float16_are_read() {
        let values = [0x00, 0x3c, 0x00, 0xc0, 0x55, 0x35, 0xff, 0x7b];
        let read = |bytes: &[u8]| ArrayD::<Float16>::read_npy(bytes);
        let found = read(&file("<f2", &values)).unwrap().mapv(|v| v.0.to_f32());
        assert_eq!(found, arr2(&[[1.0, -2.0], [0.333_251_95, 65504.0]]).into_dyn());
        assert!(matches!(read(&file("<f4", &values)), Err(ReadNpyError::WrongDescriptor(_))));
        assert!(matches!(read(&file("<f2", &values[..6])), Err(ReadNpyError::MissingData)));
        assert!(matches!(read(&file("<f2", &[&values[..], &[0]].concat())), Err(ReadNpyError::ExtraBytes(_))));
    }
}
