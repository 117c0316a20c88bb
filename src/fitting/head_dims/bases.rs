//! The directions that heads keep.
//!
//! Scores are q kᵀ, so any A and B with A Bᵀ ≈ 1 may stand behind the projections of queries and keys: the best of rank
//! r keep what the scores of these images need, keys weighted by what a change of score does to the output. Values and
//! output projection are cut by the singular vectors of what the heads pass on.

use faer::prelude::Solve;
use faer::{Mat, Side};

use super::super::algebra::{ridge_solve, ridged, scale, select, times};
use super::super::order::features;
use super::statistics::ScoreStatistics;
use crate::error::{Error, ErrorKind, Result};

/// Ridge of the covariances of queries and keys, in means of the diagonal.
pub(super) const SCORE_RIDGE: f64 = 1e-4;
/// Ridge of the fit of values, in means of the diagonal.
const VALUE_RIDGE: f64 = 1.0;

fn failed() -> Error {
    Error::new(ErrorKind::Images, "the activations on these images determine no head dimension")
}

/// The lower Cholesky factor, and the inverse of its transpose.
fn roots(gram: &Mat<f64>) -> Result<[Mat<f64>; 2]> {
    let lower = gram.llt(Side::Lower).map_err(|_| failed())?.L().to_owned();
    let lower = Mat::from_fn(gram.nrows(), gram.nrows(), |i, j| if i >= j { lower[(i, j)] } else { 0.0 });
    let inverse = lower.transpose().to_owned().partial_piv_lu().solve(Mat::<f64>::identity(gram.nrows(), gram.nrows()));
    Ok([lower, inverse])
}

/// A and B of one head, dimensions in order of weight, and what is lost by all dimensions from each on.
pub(super) fn score_bases(s: &ScoreStatistics) -> Result<(Mat<f64>, Mat<f64>, Vec<f64>)> {
    let [lq, iq] = roots(&ridged(&s.queries, SCORE_RIDGE))?;
    let [lk, ik] = roots(&ridged(&s.keys, SCORE_RIDGE))?;
    let svd = times(lq.transpose(), lk.as_ref()).svd().map_err(|_| failed())?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let scaled = |inverse: &Mat<f64>, vectors: faer::MatRef<f64>| {
        let base = times(inverse.as_ref(), vectors);
        Mat::from_fn(base.nrows(), base.ncols(), |i, j| base[(i, j)] * values[j].max(0.0).sqrt())
    };
    let squares: Vec<f64> = values.iter().map(|v| v * v).collect();
    Ok((scaled(&iq, svd.U()), scaled(&ik, svd.V()), tails(&squares)))
}

/// Sums of all elements from each on; one more than elements.
fn tails(values: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0; values.len() + 1];
    for i in (0..values.len()).rev() {
        sums[i] = sums[i + 1] + values[i].max(0.0);
    }
    sums
}

/// Orthonormal directions of the values of every kept head, in order of weight, and what is lost by all from each on.
pub(super) fn value_bases(
    gram: &Mat<f64>,
    weight: &Mat<f64>,
    heads: &[usize],
    size: usize,
) -> Result<Vec<(Mat<f64>, Vec<f64>)>> {
    let rows = features(heads, size);
    let outputs: Vec<usize> = (0..weight.ncols()).collect();
    let ridge = VALUE_RIDGE * scale(gram);
    let target = times(gram.as_ref(), weight.as_ref());
    let right = select(&target, &rows, &outputs) + faer::Scale(ridge) * select(weight, &rows, &outputs);
    let own = select(gram, &rows, &rows);
    let fit = ridge_solve(&own, ridge, &right)?;
    (0..heads.len())
        .map(|h| {
            let rows = features(&[h], size);
            let mut g = select(&own, &rows, &rows);
            (0..size).for_each(|i| g[(i, i)] += ridge);
            let [lower, inverse] = roots(&g)?;
            let passed = times(lower.transpose(), select(&fit, &rows, &outputs).as_ref());
            let square = times(passed.as_ref(), passed.transpose());
            let eigen = square.self_adjoint_eigen(Side::Lower).map_err(|_| failed())?;
            // Eigenvalues ascend.
            let order: Vec<usize> = (0..size).rev().collect();
            let values: Vec<f64> = order.iter().map(|&i| eigen.S().column_vector()[i]).collect();
            let vectors = Mat::from_fn(size, size, |i, j| eigen.U()[(i, order[j])]);
            let base = times(inverse.as_ref(), vectors.as_ref()).qr().compute_thin_Q();
            Ok((base, tails(&values)))
        })
        .collect()
}
