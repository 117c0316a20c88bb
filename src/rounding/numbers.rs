//! Weights rounded to int8: symmetric, with a scale for each column of a matrix or each row of a table.
//!
//! A scale is the largest magnitude divided by 127, a number the quotient by the scale, rounded to the nearest and to
//! even between two, all in float32. A column of zeros has the scale one, and stays zero.

use bytes::Bytes;
use rayon::prelude::*;

use crate::graph::LARGEST;

/// Behind this number float32 holds whole numbers alone: what is added to it is rounded to even between two, and stands
/// in its last bits.
const WHOLE: f32 = 12_582_912.0;

/// Rows that one thread rounds at a time.
const ROWS: usize = 32;

/// How a weight lies in the file, and what has a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Lies {
    /// `[K, N]`, a scale a column.
    Columns,
    /// `[N, K]`, a scale a row, which becomes a column.
    Transposed,
    /// `[V, D]`, a scale a row, which stays one.
    Rows,
}

/// Numbers in int8 and their scales.
#[derive(Debug, PartialEq)]
pub(super) struct Numbers {
    pub bytes: Bytes,
    pub scales: Vec<f32>,
}

/// Rounds a weight of two axes. An error says what is wrong with it.
pub(super) fn round(values: &[f32], [rows, columns]: [usize; 2], lies: Lies) -> Result<Numbers, String> {
    let by_rows = lies != Lies::Columns;
    let largest = match by_rows {
        true => values.par_chunks(columns.max(1)).map(of_row).collect(),
        false => of_columns(values, columns),
    };
    let scales = largest.iter().enumerate().map(|(i, &largest)| {
        let scale = f32::from_bits(largest) / LARGEST;
        let what = if by_rows && lies == Lies::Rows { "row" } else { "column" };
        match largest {
            0 => Ok(1.0),
            _ if !scale.is_finite() => Err(format!("numbers of its {what} {i} are not finite")),
            _ if scale < f32::MIN_POSITIVE => Err(format!("numbers of its {what} {i} are too small to be told apart")),
            _ => Ok(scale),
        }
    });
    let scales: Vec<f32> = scales.collect::<Result<_, _>>()?;
    let mut bytes = vec![0u8; values.len()];
    match lies {
        Lies::Columns | Lies::Rows => {
            let width = columns.max(1);
            let blocks = bytes.par_chunks_mut(width * ROWS).zip(values.par_chunks(width * ROWS)).enumerate();
            blocks.for_each(|(block, (bytes, values))| {
                for (i, (bytes, values)) in bytes.chunks_mut(width).zip(values.chunks(width)).enumerate() {
                    if by_rows {
                        let scale = scales[block * ROWS + i];
                        bytes.iter_mut().zip(values).for_each(|(byte, v)| *byte = to_byte(*v, scale));
                    } else {
                        let each = bytes.iter_mut().zip(values).zip(&scales);
                        each.for_each(|((byte, v), scale)| *byte = to_byte(*v, *scale));
                    }
                }
            });
        }
        Lies::Transposed => {
            let width = rows.max(1);
            bytes.par_chunks_mut(width * ROWS).enumerate().for_each(|(block, bytes)| {
                for (n, (values, scale)) in values.chunks(columns.max(1)).zip(&scales).enumerate() {
                    let own = &values[block * ROWS..values.len().min((block + 1) * ROWS)];
                    own.iter().enumerate().for_each(|(k, v)| bytes[k * width + n] = to_byte(*v, *scale));
                }
            });
        }
    }
    Ok(Numbers { bytes: bytes.into(), scales })
}

/// A number that is at most 127 scales, as a byte with a sign.
fn to_byte(v: f32, scale: f32) -> u8 {
    (v / scale + WHOLE).to_bits() as u8
}

/// The bits of the largest magnitude: they are ordered as magnitudes are, and what is no number is the largest.
fn of_row(values: &[f32]) -> u32 {
    values.iter().fold(0, |most, v| most.max(v.abs().to_bits()))
}

fn of_columns(values: &[f32], columns: usize) -> Vec<u32> {
    let width = columns.max(1);
    let of_block = |block: &[f32]| {
        let mut most = vec![0u32; columns];
        for row in block.chunks(width) {
            most.iter_mut().zip(row).for_each(|(most, v)| *most = (*most).max(v.abs().to_bits()));
        }
        most
    };
    let larger = |mut a: Vec<u32>, b: Vec<u32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a = (*a).max(b));
        a
    };
    values.par_chunks(width * ROWS).map(of_block).reduce(|| vec![0; columns], larger)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `np.rint(w / scale)` with `scale = np.abs(w).max(axis) / np.float32(127)`, by hand.
    #[test]
    fn numbers_are_rounded_to_the_nearest_and_to_even_between_two() {
        let values = [127.0, 0.5, 0.0, -2.5, 1.0, 0.0, 1.5, -0.25, 0.0];
        let found = round(&values, [3, 3], Lies::Columns).unwrap();
        assert_eq!(found.scales, [1.0, 1.0 / 127.0, 1.0]);
        let as_i8: Vec<i8> = found.bytes.iter().map(|b| *b as i8).collect();
        assert_eq!(as_i8, [127, 64, 0, -2, 127, 0, 2, -32, 0]);
    }

    #[test]
    fn bytes_are_quotients_rounded_to_even() {
        let scale = 3.7e-3f32;
        for i in -25_400..=25_400 {
            let v = i as f32 / 200.0 * scale;
            assert_eq!(to_byte(v, scale) as i8, (v / scale).round_ties_even() as i8, "{i}");
        }
    }

    #[test]
    fn columns_of_a_transposed_matrix_are_those_of_the_matrix() {
        let (k, n) = (70, 45);
        let values: Vec<f32> = (0..k * n).map(|i| ((i * 7919) % 1013) as f32 / 100.0 - 5.0).collect();
        let turned: Vec<f32> = (0..n * k).map(|i| values[(i % k) * n + i / k]).collect();
        let plain = round(&values, [k, n], Lies::Columns).unwrap();
        assert_eq!(plain, round(&turned, [n, k], Lies::Transposed).unwrap());
        let rows = round(&turned, [n, k], Lies::Rows).unwrap();
        assert_eq!(rows.scales, plain.scales);
        assert!((0..n * k).all(|i| rows.bytes[i] == plain.bytes[(i % k) * n + i / k]));
        let error = |i: usize| (f32::from(plain.bytes[i] as i8) * plain.scales[i % n] - values[i]).abs();
        assert!((0..k * n).all(|i| error(i) <= 0.5001 * plain.scales[i % n]));
    }

    #[test]
    fn what_int8_cannot_hold_is_said() {
        for (bad, says) in [(f32::INFINITY, "not finite"), (f32::NAN, "not finite"), (1e-40, "too small")] {
            let error = round(&[1.0, 0.0, 1.0, bad], [2, 2], Lies::Columns).unwrap_err();
            assert!(error.contains("column 1") && error.contains(says), "{error}");
        }
        assert!(round(&[1.0, f32::NAN], [1, 2], Lies::Rows).unwrap_err().contains("row 0"));
    }
}
