//! Whether what a model says of a sample depends on which samples are beside it.

use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD, Axis, IxDyn, Slice};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::start::Runtime;
use crate::error::Result;
use crate::graph::element_types;
use crate::onnx::{DataType, Model};

/// Rounding stays well below these shares of the largest output: in float32, and in half precision.
const TOLERANCES: [f32; 2] = [1e-3, 2e-2];

impl Runtime {
    /// Compares what a model says of two samples, each alone and both together: of arrays for its inputs, by name, or
    /// of two images of noise. `false` where rows of its outputs differ, or where it does not run on two samples.
    ///
    /// # Errors
    /// Those of [`Runtime::load`] and of a run, for one sample alone.
    pub fn keeps_apart(
        self: &Arc<Self>,
        model: &Model,
        image: [usize; 2],
        samples: Option<Vec<(String, ArrayD<f32>)>>,
    ) -> Result<bool> {
        let mut alone = self.load(model, 1, image)?;
        let mut random = StdRng::seed_from_u64(3);
        let mut noise = |shape: &[usize]| {
            let shape = [&[2], &shape[1..]].concat();
            ArrayD::from_shape_simple_fn(IxDyn(&shape), || random.random_range(-1.0..1.0f32))
        };
        let samples = match samples {
            Some(samples) => samples,
            None => alone.inputs.iter().map(|i| Ok((i.name.clone(), noise(&i.fixed()?)))).collect::<Result<_>>()?,
        };
        let rows = |range: Range<usize>| -> Vec<(&str, ArrayViewD<f32>)> {
            let of = |a: &'_ ArrayD<f32>| Slice::from(range.start..range.end.min(a.len_of(Axis(0))));
            samples.iter().map(|(name, a)| (name.as_str(), a.slice_axis(Axis(0), of(a)))).collect()
        };
        // One behind another may change it, and one before another.
        let each = [alone.run_on(&rows(0..1))?, alone.run_on(&rows(1..2))?];
        let together = self.load(model, 2, image).and_then(|mut session| session.run_on(&rows(0..2)));
        let Ok(together) = together else { return Ok(false) };
        let half = element_types(model.graph()).values().any(|t| matches!(t, DataType::Float16 | DataType::Bfloat16));
        let tolerance = TOLERANCES[usize::from(half)];
        let is_same = |(at, own): (usize, &Vec<ArrayD<f32>>)| {
            own.iter().zip(&together).all(|(one, two)| same_row(one, two, at, tolerance))
        };
        Ok(each.iter().enumerate().all(is_same))
    }
}

/// True where row `at` of `two` is that of `one`. What has no row for each image is not compared.
fn same_row(one: &ArrayD<f32>, two: &ArrayD<f32>, at: usize, tolerance: f32) -> bool {
    if one.ndim() == 0 || one.len_of(Axis(0)) != 1 {
        return true;
    }
    if two.ndim() != one.ndim() || two.len_of(Axis(0)) != 2 {
        return false;
    }
    let row = two.slice_axis(Axis(0), Slice::from(at..at + 1));
    let largest = one.iter().fold(0f32, |m, v| m.max(v.abs()));
    let is_same = |(a, b): (&f32, &f32)| a == b || (a - b).abs() <= tolerance * largest || a.is_nan() && b.is_nan();
    row.shape() == one.shape() && row.iter().zip(one).all(is_same)
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::same_row;

    #[test]
    fn rows_are_compared_relative_to_the_largest() {
        let one = array![[1000.0f32, 1.0]].into_dyn();
        assert!(same_row(&one, &array![[1000.0f32, 1.5], [0.0, 0.0]].into_dyn(), 0, 1e-3));
        assert!(!same_row(&one, &array![[1000.0f32, 1.5], [0.0, 0.0]].into_dyn(), 1, 1e-3));
        assert!(same_row(&one, &array![[0.0f32, 0.0], [1000.5, 1.0]].into_dyn(), 1, 1e-3));
        assert!(!same_row(&one, &array![[1000.0f32, 3.5], [0.0, 0.0]].into_dyn(), 0, 1e-3));
        assert!(!same_row(&one, &array![[f32::NAN, 1.0], [0.0, 0.0]].into_dyn(), 0, 1e-3));
        let none = array![[f32::NAN, 1.0]].into_dyn();
        assert!(same_row(&none, &array![[f32::NAN, 1.0], [0.0, 0.0]].into_dyn(), 0, 1e-3));
        assert!(!same_row(&one, &one, 0, 1e-3));
    }
}
