//! How much the heads of a layer differ in where they look: the Jensen-Shannon divergence of their mean attention maps.

use std::sync::Arc;

use ndarray::{Array2, Array3, ArrayView2, Axis, Ix4};

use super::probe::attach;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::data::Loader;
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
/// rows of their attention maps, each averaged over images and windows, averaged over all queries. Memory does not grow
/// with the number of images.
///
/// `progress` is told how many images of how many are done.
///
/// # Errors
/// [`ErrorKind::Anatomy`] where maps of different sizes share one projection; errors of the runtime and of the images.
pub fn attention_distances(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    images: &Loader,
    mut progress: impl FnMut(usize, usize),
) -> Result<Vec<Array2<f64>>> {
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
    let of = images.len() * groups.len();
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
        let batch = suggested_batch(image, images.len()).min(BATCH / bytes.max(1)).max(1);
        let mut session = runtime.load(&probe, batch, image)?;
        let mut sums: Vec<Array3<f64>> = group
            .iter()
            .map(|&l| Array3::zeros((anatomy.layers[l].head_count(typing), sizes[l][0], sizes[l][1])))
            .collect();
        let mut count = 0;
        for batch in images.clone().share().batches(session.batch) {
            let batch = batch?;
            for (sum, output) in sums.iter_mut().zip(session.run(batch.images.view())?) {
                let Ok(maps) = output.into_dimensionality::<Ix4>() else {
                    bail!(Internal, "attention maps have an unexpected shape");
                };
                maps.outer_iter().for_each(|map| sum.zip_mut_with(&map, |s, v| *s += f64::from(*v)));
            }
            let images = batch.images.len_of(Axis(0));
            count += images;
            done += images;
            progress((done * parallel::size()).min(of), of);
        }
        let count = parallel::total(count);
        images.check_any(count)?;
        for sum in &mut sums {
            sum.as_slice_mut().into_iter().for_each(parallel::sum);
            *sum /= count.max(1) as f64;
            if sum.iter().any(|v| !v.is_finite()) {
                return Err(Error::new(
                    ErrorKind::Runtime,
                    "the attention of this model is not a number on these images",
                )
                .at(&model.path)
                .hint("check preprocessing (--mean, --std) and the model's weights"));
            }
            let heads = sum.len_of(Axis(0));
            let map = |h: usize| sum.index_axis(Axis(0), h);
            let mut distances = Array2::zeros((heads, heads));
            for a in 0..heads {
                for b in 0..a {
                    let d = divergence(map(a), map(b));
                    (distances[[a, b]], distances[[b, a]]) = (d, d);
                }
            }
            found.push(distances);
        }
    }
    Ok(found)
}

/// The Jensen-Shannon divergence of the rows of two maps in bits, averaged over the rows.
pub fn divergence(a: ArrayView2<f64>, b: ArrayView2<f64>) -> f64 {
    let part = |p: f64, m: f64| if p > 0.0 { p * (p / m).log2() } else { 0.0 };
    let sum: f64 = a
        .iter()
        .zip(b)
        .map(|(&p, &q)| {
            let m = (p + q) / 2.0;
            (part(p, m) + part(q, m)) / 2.0
        })
        .sum();
    (sum / a.nrows().max(1) as f64).max(0.0)
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
