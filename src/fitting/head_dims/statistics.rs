//! What queries and keys are on some images.

use faer::{Mat, Side};
use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::super::algebra::{self, product, ridged, select, times};
use super::super::network::Network;
use super::super::order::features;
use super::super::padding::chosen;
use super::super::subgraph::size;
use super::super::subgraph::{Subgraph, Values};
use super::find::HeadDimReduction;
use crate::axes::Factor;
use crate::error::Result;
use crate::parallel;

/// Queries of an image that the weighting of keys is summed over, at most.
const QUERIES: usize = 64;
/// Images that it is enough to measure queries and keys on.
pub const IMAGES: usize = 24;

/// What queries and keys of one head were on some images.
#[derive(Clone)]
pub(super) struct ScoreStatistics {
    /// Mean of q qᵀ.
    pub queries: Mat<f64>,
    /// Of keys, centred in each image, and weighted by what a change of score does to the output.
    pub keys: Mat<f64>,
}

/// Queries and keys of an attention on some images, by head.
#[derive(Clone)]
pub struct AttentionStatistics(pub(super) Vec<ScoreStatistics>);

/// Measures queries and keys of all attentions on images.
///
/// # Errors
/// Those of the runtime.
pub fn measure(
    network: &Network,
    reductions: &[HeadDimReduction],
    images: &[Values],
) -> Result<Vec<AttentionStatistics>> {
    if reductions.is_empty() {
        return Ok(Vec::new());
    }
    let operands = |n: &HeadDimReduction| -> [String; 4] {
        [&n.query.value, &n.key.value, &n.values.value, &n.probabilities.0].map(String::clone)
    };
    let mut results: Vec<String> = reductions.iter().flat_map(operands).collect();
    results.sort_unstable();
    results.dedup();
    let parts: Vec<Subgraph> = (0..network.lengths()).map(|l| network.at(l).whole(&results)).collect();
    let outputs: Vec<Mat<f64>> = reductions.iter().map(|n| network.output_of_heads(n.layer)).collect::<Result<_>>()?;
    let mut sums: Vec<Vec<[Mat<f64>; 3]>> = reductions
        .iter()
        .map(|n| (0..n.heads).map(|_| [0; 3].map(|_| Mat::zeros(n.of[0], n.of[0]))).collect())
        .collect();
    // One chunk after the other, and within it in order: the sums do not depend on the number of threads.
    for group in images[parallel::part(images.len(), 1)].chunks(4) {
        let parts: Vec<Vec<Vec<[Mat<f64>; 3]>>> = group
            .par_iter()
            .map(|image| {
                let length = network.length(image);
                let values = parts[length].run(image)?;
                let mask = network.at(length).mask.as_ref();
                let real = |axis: &[Factor], sample| mask.and_then(|mask| mask.along(axis, image, sample));
                let value = |name: &str| results.iter().position(|r| r == name).map(|i| &values[i]);
                reductions
                    .iter()
                    .zip(&outputs)
                    .map(|(n, w)| {
                        let n = n.at(length);
                        let all = [
                            (&n.query.value, &n.query.layout),
                            (&n.key.value, &n.key.layout),
                            (&n.values.value, &n.values.layout),
                            (&n.probabilities.0, &n.probabilities.1),
                        ];
                        let mut matrices = Vec::new();
                        for (name, layout) in all {
                            let Some(value) = value(name) else { bail!(Internal, "the value `{name}` was not kept") };
                            matrices.push(layout.matrix(value)?);
                        }
                        let real: Vec<RealTokens> = (0..size(image))
                            .map(|sample| [&n.query.axis, &n.key.axis].map(|axis| real(axis, sample)))
                            .collect();
                        Ok((0..n.heads).map(|h| head_sums(n, h, &matrices, w, &real)).collect())
                    })
                    .collect::<Result<_>>()
            })
            .collect::<Result<_>>()?;
        for image in parts {
            for (sum, part) in sums.iter_mut().zip(image) {
                for (sum, part) in sum.iter_mut().zip(part) {
                    sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
                }
            }
        }
    }
    sums.iter_mut().flatten().flatten().for_each(algebra::sum);
    let unit = |m: &Mat<f64>| {
        let trace: f64 = (0..m.nrows()).map(|i| m[(i, i)]).sum();
        faer::Scale(1.0 / trace.max(f64::MIN_POSITIVE)) * m
    };
    Ok(sums
        .into_iter()
        .map(|heads| {
            let scores = heads.iter().map(|[q, centred, weighted]| ScoreStatistics {
                queries: q.clone(),
                keys: unit(centred) + unit(weighted),
            });
            AttentionStatistics(scores.collect())
        })
        .collect())
}

/// Queries and keys of one sample that are real, where these are named; else all are.
type RealTokens = [Option<Vec<usize>>; 2];

/// Sums over one batch: q qᵀ, k̃ k̃ᵀ, and M Mᵀ over queries, where M = Σ p k̃ uᵀ − (Σ p k̃)(Σ p u)ᵀ
/// and u uᵀ is what values become in the stream. Of queries and of keys those that are `real` count, by sample.
fn head_sums(
    n: &HeadDimReduction,
    h: usize,
    matrices: &[Array2<f32>],
    output: &Mat<f64>,
    real: &[RealTokens],
) -> [Mat<f64>; 3] {
    let [d, e] = n.of;
    let (tq, tk) = (n.query.tokens, n.key.tokens);
    let mut sums = [0; 3].map(|_| Mat::<f64>::zeros(d, d));
    let rows = features(&[h], e);
    let all: Vec<usize> = (0..output.ncols()).collect();
    let own = select(output, &rows, &all);
    let gram = times(own.as_ref(), own.transpose());
    let root = ridged(&gram, 1e-6).llt(Side::Lower).map(|l| l.L().to_owned()).unwrap_or_else(|_| Mat::identity(e, e));
    let root = Array2::from_shape_fn((e, e), |(i, j)| if i >= j { root[(i, j)] as f32 } else { 0.0 });
    // Each sample has as many windows, one after the other.
    let windows = (matrices[0].nrows() / real.len().max(1)).max(1);
    for window in 0..matrices[0].nrows() {
        let of = |m: &Array2<f32>, rows: usize, columns: usize| -> Array2<f32> {
            let flat = m.slice(s![window.min(m.nrows() - 1), h * rows * columns..(h + 1) * rows * columns]);
            flat.to_owned().into_shape_with_order((rows, columns)).unwrap_or_default()
        };
        let [queries, keys] = [0, 1].map(|of| real.get(window / windows).and_then(|real| real[of].as_deref()));
        let q = chosen(of(&matrices[0], tq, d), queries);
        let (mut k, v) = (chosen(of(&matrices[1], tk, d), keys), chosen(of(&matrices[2], tk, e), keys));
        let p = chosen(chosen(of(&matrices[3], tq, tk), queries).reversed_axes(), keys).reversed_axes();
        let tq = q.nrows();
        if let Some(mean) = k.mean_axis(ndarray::Axis(0)) {
            k -= &mean;
        }
        let u = product(v.view(), root.view());
        add(&mut sums[0], product(q.t(), q.view()).view());
        add(&mut sums[1], product(k.t(), k.view()).view());
        for i in (0..tq).step_by(tq.div_ceil(QUERIES).max(1)) {
            let p = p.row(i);
            let mut weighted = u.clone();
            let mut mean_u = vec![0.0; e];
            for (mut values, p) in weighted.outer_iter_mut().zip(&p) {
                for (value, mean) in values.iter_mut().zip(&mut mean_u) {
                    *value *= p;
                    *mean += *value;
                }
            }
            let mut m = product(k.t(), weighted.view());
            for (mut row, a) in m.outer_iter_mut().zip(&p.dot(&k)) {
                row.iter_mut().zip(&mean_u).for_each(|(m, mean)| *m -= a * mean);
            }
            add(&mut sums[2], product(m.view(), m.t()).view());
        }
    }
    sums
}

fn add(sum: &mut Mat<f64>, part: ArrayView2<f32>) {
    for (i, row) in part.outer_iter().enumerate() {
        row.iter().enumerate().for_each(|(j, v)| sum[(i, j)] += f64::from(*v));
    }
}
