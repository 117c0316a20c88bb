//! What cutting the head dimension costs.

use faer::Mat;
use ndarray::{Array2, ArrayD, s};
use rayon::prelude::*;

use super::super::algebra::{Covariance, affine, product, ridge_solve, scale, times};
use super::super::network::{Network, Progress, RIDGE, distance};
use super::super::subgraph::{Subgraph, Values};
use super::bases::{score_bases, value_bases};
use super::find::HeadDimReduction;
use super::statistics::{AttentionStatistics, ScoreStatistics};
use crate::error::Result;
use crate::learngene::BlockKind;
use crate::parallel;

/// Numbers of dimensions of queries and keys, and of values, and the squared error at the end of the network with each.
pub type DimensionCosts = [Vec<(usize, f64)>; 2];

/// What cutting the dimensions of queries and keys, and of values, of one attention at a time does to the end of the
/// network: for some numbers of dimensions.
///
/// # Errors
/// Those of the runtime.
pub fn dimension_costs(
    network: &Network,
    statistics: &[Covariance],
    reductions: &[HeadDimReduction],
    measured: &[AttentionStatistics],
    images: &[Values],
    progress: Progress,
) -> Result<Vec<DimensionCosts>> {
    let end = network.ends(images)?;
    let size: f64 = end.iter().flatten().flatten().map(|v| f64::from(*v).powi(2)).sum();
    let mut states: Vec<Values> = images.to_vec();
    let mut found = vec![[Vec::new(), Vec::new()]; reductions.len()];
    for (i, linear) in network.linears.iter().enumerate() {
        progress(i, network.linears.len());
        let own = parallel::is_own(linear.layer);
        let narrow = reductions.iter().position(|n| own && linear.kind == BlockKind::Heads && n.layer == linear.layer);
        let before = narrow.map(|_| states.clone());
        states.par_iter_mut().try_for_each(|values| network.advance(i, values))?;
        let rows: Vec<Array2<f32>> = states.iter().map(|v| network.rows(i, v)).collect::<Result<_>>()?;
        if let (Some(at), Some(before)) = (narrow, before) {
            let n = &reductions[at];
            let rest = network.rest(i)?;
            // What leaves the linear layer, through the rest of the network.
            let error = |image: usize, out: &Array2<f32>| -> Result<f64> {
                let mut values = states[image].clone();
                values.insert(linear.output.clone(), network.leaving(i, out, &values)?);
                let rest = &rest[network.length(&values)];
                Ok(distance(&network.real_end(rest.run(&values)?, &values)?, &end[image]))
            };
            let query = n.query.value.clone();
            let feeds = network.stages()?.feeds(i);
            let cut = |feeds: &[String], result: &String| network.parts(feeds, std::slice::from_ref(result));
            let tap = cut(feeds, &query);
            let on = cut(&[feeds, std::slice::from_ref(&query)].concat(), &linear.input);
            let weight = network.weight(i, None);
            // Where queries are made before the stage there is nothing to measure by.
            let is_whole = tap.iter().chain(&on).all(Subgraph::is_whole);
            let levels = if is_whole { dimension_levels(n.of[0]) } else { Vec::new() };
            let queries = |values: &Values| Ok(tap[network.length(values)].run(values)?.into_iter().next());
            let measurable = if levels.is_empty() { &[][..] } else { &before };
            let whole: Vec<Option<ArrayD<f32>>> = measurable.par_iter().map(queries).collect::<Result<_>>()?;
            for r in levels {
                let changes = basis_changes(n, &measured[at], r)?;
                let errors: Vec<f64> = before
                    .par_iter()
                    .zip(&whole)
                    .enumerate()
                    .map(|(image, (values, queries))| {
                        let (mut values, length) = (values.clone(), network.length(values));
                        let Some(queries) = queries else { bail!(Internal, "queries are gone") };
                        values.insert(query.clone(), cut_queries(n.at(length), &changes, queries)?);
                        let input = on[length].run(&values)?.into_iter().next().unwrap_or_default();
                        values.insert(linear.input.clone(), input);
                        let rows = network.rows(i, &values)?;
                        error(image, &network.apply(i, &rows))
                    })
                    .collect::<Result<_>>()?;
                found[at][0].push((r, errors.iter().sum::<f64>() / size));
            }
            let all: Vec<usize> = (0..weight.nrows()).collect();
            for r in dimension_levels(n.of[1]) {
                let fit = cut_values(n, r, &statistics[i], &weight, RIDGE)?;
                let (_, matrix, bias) = network.narrow(i, &statistics[i], &weight, &all, &fit);
                let errors: Vec<f64> = rows
                    .par_iter()
                    .enumerate()
                    .map(|(image, rows)| {
                        error(image, &affine(rows.view(), matrix.view(), bias.as_slice().unwrap_or_default()))
                    })
                    .collect::<Result<_>>()?;
                found[at][1].push((r, errors.iter().sum::<f64>() / size));
            }
        }
        states.par_iter_mut().zip(&rows).try_for_each(|(values, rows)| network.pass(i, rows, values))?;
    }
    let all = parallel::all(found)?;
    let of = |(at, n): (usize, &HeadDimReduction)| all.get(n.layer % all.len()).and_then(|f| f.get(at)).cloned();
    Ok(reductions.iter().enumerate().filter_map(of).collect())
}

/// The numbers of dimensions at which an attention is measured; between them costs follow the [local
/// errors](local_errors).
fn dimension_levels(of: usize) -> Vec<usize> {
    let mut levels: Vec<usize> = [2, 3].iter().map(|s| s * of / 4).filter(|&r| r > 0 && r < of).collect();
    levels.dedup();
    levels
}

/// What is lost of the scores, and of the output, at every number of dimensions: measures of the layer alone.
pub fn local_errors(
    n: &HeadDimReduction,
    measured: &AttentionStatistics,
    statistics: &Covariance,
    weight: &Mat<f64>,
) -> Result<[Vec<f64>; 2]> {
    let mut scores = vec![0.0; n.of[0] + 1];
    for head in &measured.0 {
        scores.iter_mut().zip(score_bases(head)?.2).for_each(|(s, t)| *s += t);
    }
    let all: Vec<usize> = (0..n.heads).collect();
    let mut values = vec![0.0; n.of[1] + 1];
    for (_, tail) in value_bases(&statistics.gram, weight, &all, n.of[1])? {
        values.iter_mut().zip(tail).for_each(|(s, t)| *s += t);
    }
    Ok([scores, values])
}

/// A Bᵀ of every head at rank `r`: what cut queries are multiplied by.
pub(super) fn basis_changes(
    n: &HeadDimReduction,
    measured: &AttentionStatistics,
    r: usize,
) -> Result<Vec<Array2<f32>>> {
    let turn = |head: &ScoreStatistics| {
        let (a, b, _) = score_bases(head)?;
        let through = times(a.subcols(0, r), b.subcols(0, r).transpose());
        Ok(Array2::from_shape_fn((n.of[0], n.of[0]), |(i, j)| through[(i, j)] as f32))
    };
    measured.0.iter().map(turn).collect()
}

/// Queries that are cut in every head, in the place of those that there were.
pub(super) fn cut_queries(n: &HeadDimReduction, turns: &[Array2<f32>], queries: &ArrayD<f32>) -> Result<ArrayD<f32>> {
    let (d, t) = (n.of[0], n.query.tokens);
    let mut matrix = n.query.layout.matrix(queries)?;
    for (h, through) in turns.iter().enumerate() {
        for mut row in matrix.rows_mut() {
            let mut own = row.slice_mut(s![h * t * d..(h + 1) * t * d]);
            let flat = own.to_owned().into_shape_with_order((t, d)).unwrap_or_default();
            let cut = product(flat.view(), through.view());
            own.iter_mut().zip(&cut).for_each(|(o, c)| *o = *c);
        }
    }
    n.query.layout.tensor(&matrix, queries.shape())
}

/// The output projection behind values of rank `r` in every head, for features that are not cut: a matrix of the whole
/// width.
fn cut_values(
    n: &HeadDimReduction,
    r: usize,
    statistics: &Covariance,
    weight: &Mat<f64>,
    ridge: f64,
) -> Result<Mat<f64>> {
    let heads: Vec<usize> = (0..n.heads).collect();
    let bases = value_bases(&statistics.gram, weight, &heads, n.of[1])?;
    let size = n.of[1];
    let mut wide = Mat::<f64>::zeros(n.heads * size, n.heads * r);
    for (h, (base, _)) in bases.iter().enumerate() {
        for i in 0..size {
            (0..r).for_each(|j| wide[(h * size + i, h * r + j)] = base[(i, j)]);
        }
    }
    let ridge = ridge * scale(&statistics.gram);
    let target = times(statistics.gram.as_ref(), weight.as_ref()) + faer::Scale(ridge) * weight;
    let inner = times(times(wide.transpose(), statistics.gram.as_ref()).as_ref(), wide.as_ref());
    let fit = ridge_solve(&inner, ridge, &times(wide.transpose(), target.as_ref()))?;
    Ok(times(wide.as_ref(), fit.as_ref()))
}
