//! How much the heads of a layer differ in where they look: the Jensen-Shannon divergence of their mean attention maps.

use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayD, ArrayView2, Axis, Ix4};

use super::probe::attach;
use crate::anatomy::{Anatomy, TokenPositions, sequence_axis};
use crate::axes::Typing;
use crate::data::Samples;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::int_attribute;
use crate::onnx::{DataType, Model};
use crate::parallel;
use crate::runtime::{Runtime, suggested_batch};

/// Bytes of mean maps that are held at once; more layers take another pass over the images.
const MAPS: usize = 512 << 20;
/// Bytes of maps that leave the runtime at once.
const BATCH: usize = 256 << 20;

/// The distances of the heads of every layer, [heads, heads], in bits from 0 to 1: the Jensen-Shannon divergence of the
/// rows of their attention maps, each averaged over samples and windows, averaged over all queries. A query that is
/// padding in a sample has no row there. Memory does not grow with the number of samples.
///
/// `progress` is told how many samples of how many are done.
///
/// # Errors
/// [`ErrorKind::Anatomy`] where maps of different sizes share one projection; errors of the runtime and of the samples.
pub fn attention_distances(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    samples: &dyn Samples,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Array2<f64>>> {
    let masked = samples.mask().and_then(|input| sequence_axis(typing, input));
    let is_masked =
        |l: usize| masked.is_some() && TokenPositions::new(typing, &anatomy.layers[l].queries).sequence == masked;
    let sizes: Vec<[usize; 2]> =
        (anatomy.layers.iter()).map(|l| [typing.factors.size(&l.queries), typing.factors.size(&l.keys)]).collect();
    let elements = |l: usize| anatomy.layers[l].head_count(typing) * sizes[l][0] * sizes[l][1];
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut held = usize::MAX;
    for l in 0..sizes.len() {
        let bytes = elements(l) * size_of::<f64>();
        match groups.last_mut() {
            Some(group) if held.saturating_add(bytes) <= MAPS => {
                group.push(l);
                held += bytes;
            }
            _ => {
                groups.push(vec![l]);
                held = bytes;
            }
        }
    }
    let image = typing.image_size();
    let of = samples.len() * groups.len();
    let (mut found, mut done) = (Vec::with_capacity(sizes.len()), 0);
    for group in &groups {
        let tails: Vec<[usize; 2]> = group.iter().map(|&l| sizes[l]).collect();
        let probe = attach(model, typing, anatomy, group, &tails, |probe, l, map| {
            let own = [map.dims.len() - 2, map.dims.len() - 1].map(|a| typing.factors.size(&map.dims[a]));
            if own != sizes[l] {
                bail!(Anatomy, "layer {l} has attention maps of different sizes, whose heads cannot be compared");
            }
            let float = probe.op_with("Cast", &[&map.value], vec![int_attribute("to", DataType::Float as i64)]);
            Ok(probe.by_head(float, map, &own))
        })?;
        let bytes: usize = group.iter().map(|&l| elements(l) * size_of::<f32>()).sum();
        let batch = suggested_batch(image, samples.len()).min(BATCH / bytes.max(1)).max(1);
        let mut session = runtime.load(&probe, batch, image)?;
        let mut means: Vec<Mean> = group
            .iter()
            .map(|&l| Mean::new([anatomy.layers[l].head_count(typing), sizes[l][0], sizes[l][1]]))
            .collect();
        let mut count = 0;
        for batch in samples.own_batches_of(session.batch) {
            let batch = batch?;
            for ((mean, output), &l) in means.iter_mut().zip(session.run_on(&batch.views())?).zip(group) {
                mean.add(output, batch.real.as_ref().filter(|_| is_masked(l)))?;
            }
            count += batch.len();
            done += batch.len();
            progress((done * parallel::size()).min(of), of);
        }
        samples.check_any(parallel::total(count))?;
        for mean in means {
            let maps = mean.finish();
            if maps.iter().any(|v| !v.is_finite()) {
                let what = "the attention of this model is not a number on these samples";
                return Err(Error::new(ErrorKind::Runtime, what).at(&model.path).hint(samples.advice()));
            }
            found.push(distances(&maps));
        }
    }
    Ok(found)
}

/// The mean of attention maps [heads, queries, keys] over samples.
struct Mean {
    sum: Array3<f64>,
    /// Samples in which a query is no padding.
    counts: Vec<f64>,
}

impl Mean {
    fn new(shape: [usize; 3]) -> Mean {
        Mean { sum: Array3::zeros(shape), counts: vec![0.0; shape[1]] }
    }

    /// Adds maps [samples, heads, queries, keys]; `real` says which queries of a sample are no padding.
    fn add(&mut self, maps: ArrayD<f32>, real: Option<&Array2<bool>>) -> Result<()> {
        let Ok(maps) = maps.into_dimensionality::<Ix4>() else {
            bail!(Internal, "attention maps have an unexpected shape");
        };
        for (i, map) in maps.outer_iter().enumerate() {
            for (query, count) in self.counts.iter_mut().enumerate() {
                if real.is_none_or(|real| real[[i, query]]) {
                    let (mut sum, row) = (self.sum.index_axis_mut(Axis(1), query), map.index_axis(Axis(1), query));
                    sum.zip_mut_with(&row, |s, v| *s += f64::from(*v));
                    *count += 1.0;
                }
            }
        }
        Ok(())
    }

    /// The mean over the samples of all processes; zeros for a query that is padding in all of them.
    fn finish(mut self) -> Array3<f64> {
        self.sum.as_slice_mut().into_iter().for_each(parallel::sum);
        parallel::sum(&mut self.counts);
        for (query, count) in self.counts.iter().enumerate() {
            self.sum.index_axis_mut(Axis(1), query).mapv_inplace(|v| v / count.max(1.0));
        }
        self.sum
    }
}

/// The divergences of the maps of every two heads.
fn distances(maps: &Array3<f64>) -> Array2<f64> {
    let heads = maps.len_of(Axis(0));
    let map = |h: usize| maps.index_axis(Axis(0), h);
    let mut distances = Array2::zeros((heads, heads));
    for a in 0..heads {
        for b in 0..a {
            let d = divergence(map(a), map(b));
            (distances[[a, b]], distances[[b, a]]) = (d, d);
        }
    }
    distances
}

/// The Jensen-Shannon divergence of the rows of two maps in bits, averaged over the rows that are not zero in both.
pub fn divergence(a: ArrayView2<f64>, b: ArrayView2<f64>) -> f64 {
    let part = |p: f64, m: f64| if p > 0.0 { p * (p / m).log2() } else { 0.0 };
    let (mut sum, mut rows) = (0.0, 0usize);
    for (a, b) in a.outer_iter().zip(b.outer_iter()) {
        rows += usize::from(a.iter().chain(&b).any(|p| *p > 0.0));
        for (&p, &q) in a.iter().zip(&b) {
            let m = (p + q) / 2.0;
            sum += (part(p, m) + part(q, m)) / 2.0;
        }
    }
    (sum / rows.max(1) as f64).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_by_hand() {
        let rows = |a: [[f64; 2]; 2]| Array2::from(a.map(|r| r).to_vec());
        let (left, right, even) =
            (rows([[1.0, 0.0], [1.0, 0.0]]), rows([[0.0, 1.0], [1.0, 0.0]]), rows([[0.5, 0.5], [1.0, 0.0]]));
        assert_eq!(divergence(left.view(), left.view()), 0.0);
        // One of two rows has nothing in common: one bit there, none in the other.
        assert_eq!(divergence(left.view(), right.view()), 0.5);
        // (log2(4/3) + (log2(2/3) + 1) / 2) / 2 of the first row: 1 against 1/2 with a mean of 3/4, 0 against 1/2.
        let first = 0.5 * (4.0f64 / 3.0).log2() + 0.5 * (0.5 * (2.0f64 / 3.0).log2() + 0.5 * 2.0f64.log2());
        assert!((divergence(left.view(), even.view()) - first / 2.0).abs() < 1e-15);
    }
}
