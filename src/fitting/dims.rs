//! Head dimension: fewer dimensions of queries and keys, and of values, in every head.
//!
//! Scores are q kᵀ, so any A and B with A Bᵀ ≈ 1 may stand behind the projections of queries and keys: the best of rank r keep what
//! the scores of these images need, keys weighted by what a change of score does to the output. Values and output projection are
//! cut by the singular vectors of what the heads pass on. Where the columns of a projection lie among queries, keys and values is
//! found by running that way on probes, as everywhere in these fits, so that packed projections need no rule of their own; where a
//! rotation or a norm acts on the dimension in between, the attention keeps it.

use std::collections::HashSet;
use std::sync::Arc;

use faer::prelude::Solve;
use faer::{Mat, Side};
use ndarray::{Array2, ArrayD, ArrayView2, IxDyn, s};
use rayon::prelude::*;

use super::algebra::{self, Covariance, product, ridge_solve, scale, select, times};
use super::network::Network;
use super::order::features;
use super::sites::{Finder, Layout, Site, Way};
use super::stages::{Part, Values, fixed};
use crate::anatomy::{Anatomy, Attention, in_usual_order};
use crate::axes::{Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Links;
use crate::learngene::Kind;
use crate::onnx::Model;
use crate::ops::{self, Mark};
use crate::parallel;
use crate::runtime::Runtime;

/// Ridge of the covariances of queries and keys, in means of the diagonal.
const SCORE_RIDGE: f64 = 1e-4;
/// Ridge of the fit of values, in means of the diagonal.
const VALUE_RIDGE: f64 = 1.0;
/// Queries of an image that the weighting of keys is summed over, at most.
const QUERIES: usize = 64;
/// Images that queries and keys are measured on, at most.
pub(super) const IMAGES: usize = 24;

/// Queries, keys or values as the attention takes them.
struct Operand {
    value: String,
    /// Columns are heads, tokens and dimensions.
    layout: Layout,
    tokens: usize,
    projection: Site,
    /// The column of the projection that makes dimension j of head h, at h * size + j.
    columns: Vec<usize>,
    /// What the projection is multiplied by on its way.
    gain: f32,
}

/// An attention whose head dimension may be cut.
pub struct Narrow {
    /// The layer.
    pub layer: usize,
    /// Heads.
    pub heads: usize,
    /// Dimensions of queries and keys, and of values.
    pub of: [usize; 2],
    /// The factors of both; the same where one projection packs them.
    pub factors: [Factor; 2],
    query: Operand,
    key: Operand,
    values: Operand,
    probabilities: (String, Layout),
    /// What scores are multiplied by behind the product.
    scale: f32,
}

impl Narrow {
    /// True where queries, keys and values share one factor, and so one size.
    pub fn is_joint(&self) -> bool {
        self.factors[0] == self.factors[1]
    }

    /// The value that queries enter the scores by.
    pub(super) fn query(&self) -> &str {
        &self.query.value
    }
}

/// The attentions of a pinned network whose head dimension may be cut.
pub fn narrows(runtime: &Arc<Runtime>, typing: &Typing, model: &Model) -> Result<Vec<Narrow>> {
    let anatomy = Anatomy::new(typing)?;
    let finder = Finder::new(typing);
    let links = Links::new(typing.graph);
    let search = Search { runtime, typing, model, finder, links, fixed: fixed(typing) };
    let found: Vec<Option<Narrow>> =
        anatomy.layers.par_iter().enumerate().map(|(l, layer)| search.attention(l, layer)).collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

/// The products of an attention that is not fused, and the dimensions that they sum over and make.
pub(super) struct HeadFactors {
    scores: usize,
    mix: usize,
    /// Of queries and keys, and of values.
    pub factors: [Factor; 2],
}

/// Finds them; `None` where heads are mixed or shared, or where a dimension is made of parts (a rotation).
pub(super) fn head_factors(typing: &Typing, links: &Links, layer: &Attention) -> Option<HeadFactors> {
    let [softmax] = layer.softmax[..] else { return None };
    if typing.fused.contains_key(&softmax) || !layer.mixings.is_empty() || !layer.shared.is_empty() {
        return None;
    }
    let node = &typing.graph.node[softmax];
    if !in_usual_order(typing, node) {
        return None;
    }
    let (scores, mix) = (back(typing, links, node.input.first()?)?, forth(typing, links, node.output.first()?)?);
    let summed = &typing.contractions.iter().find(|c| c.node == scores)?.summed;
    match (&typing.factors.leaves(summed)[..], &typing.factors.leaves(&layer.head_dim)[..]) {
        (&[q], &[v]) => Some(HeadFactors { scores, mix, factors: [q, v] }),
        _ => None,
    }
}

/// The product of two computed values that a value is made of, by operators that keep its elements apart.
fn back(typing: &Typing, links: &Links, value: &str) -> Option<usize> {
    let fixed = fixed(typing);
    let mut value = value;
    for _ in 0..32 {
        let &k = links.maker.get(value)?;
        let node = &typing.graph.node[k];
        if typing.contractions.iter().any(|c| c.node == k) {
            return node.input.iter().all(|x| !fixed.contains(x.as_str())).then_some(k);
        }
        let op = ops::of(node);
        if !op.is(Mark::Arithmetic) && !op.is(Mark::Heads) && op.name != "Where" {
            return None;
        }
        // Shapes that are computed are known, and no data.
        let data = |x: &&String| !x.is_empty() && !fixed.contains(x.as_str()) && !typing.known.contains_key(x.as_str());
        let mut computed = node.input.iter().filter(data);
        value = computed.next()?;
        if computed.next().is_some() {
            return None;
        }
    }
    None
}

/// The product with another computed value that a value goes into.
fn forth(typing: &Typing, links: &Links, value: &str) -> Option<usize> {
    let mut value = value;
    for _ in 0..16 {
        let data = |k: &&usize| !["Shape", "Size"].contains(&typing.graph.node[**k].op_type());
        let users: Vec<&usize> = links.users(value).iter().filter(data).collect();
        let [&k] = users[..] else { return None };
        let node = &typing.graph.node[k];
        if typing.contractions.iter().any(|c| c.node == k) {
            return Some(k);
        }
        if !ops::of(node).is(Mark::Heads) && node.op_type() != "Dropout" {
            return None;
        }
        value = node.output.first()?;
    }
    None
}

struct Search<'t, 'm> {
    runtime: &'t Arc<Runtime>,
    typing: &'t Typing<'m>,
    model: &'t Model,
    finder: Finder<'t, 'm>,
    links: Links<'m>,
    fixed: HashSet<&'m str>,
}

impl Search<'_, '_> {
    fn attention(&self, l: usize, layer: &Attention) -> Result<Option<Narrow>> {
        let typing = self.typing;
        // A single head has no axis of its own.
        let head: Vec<Factor> = layer.head_factor(typing).map(|f| typing.factors.root(f)).into_iter().collect();
        let Some(found) = head_factors(typing, &self.links, layer) else { return Ok(None) };
        let HeadFactors { scores, mix, factors: [fq, fv] } = found;
        let node = &typing.graph.node[layer.softmax[0]];
        let (Some(before), Some(after)) = (node.input.first(), node.output.first()) else { return Ok(None) };
        let (product, mixing) = (&typing.graph.node[scores], &typing.graph.node[mix]);
        // The operand of the scores whose tokens are the keys, and that of the mix that is no probability.
        let carries = |name: &str, dim: &[Factor]| {
            let leaves: Vec<Factor> = typing.dims[name].iter().flat_map(|d| typing.factors.leaves(d)).collect();
            typing.factors.leaves(dim).iter().all(|f| leaves.contains(f))
        };
        let known = |name: &String| typing.dims.contains_key(name.as_str());
        if !product.input.iter().chain(&mixing.input).all(known) || product.input.len() != 2 || mixing.input.len() != 2
        {
            return Ok(None);
        }
        let (q, k) = match (carries(&product.input[0], &layer.queries), carries(&product.input[1], &layer.queries)) {
            (true, _) => (&product.input[0], &product.input[1]),
            (_, true) => (&product.input[1], &product.input[0]),
            _ => return Ok(None),
        };
        let v = match carries(&mixing.input[0], &[fv]) {
            true => &mixing.input[0],
            false => &mixing.input[1],
        };
        let Some(probabilities) = Layout::of_probabilities(typing, &typing.dims[after.as_str()], &head) else {
            return Ok(None);
        };
        let operand = |value: &String, tokens: &[Factor], f: Factor| self.operand(l, value, &head, tokens, f);
        let (Some(query), Some(key), Some(values)) =
            (operand(q, &layer.queries, fq)?, operand(k, &layer.keys, fq)?, operand(v, &layer.keys, fv)?)
        else {
            return Ok(None);
        };
        let Some(scale) = self.scale(&product.output[0], before)? else { return Ok(None) };
        let narrow = Narrow {
            layer: l,
            heads: typing.factors.size(&head),
            of: [fq, fv].map(|f| typing.factors.factor_size(f)),
            factors: [fq, fv],
            query,
            key,
            values,
            probabilities: (after.clone(), probabilities),
            scale,
        };
        Ok(self.is_free(&narrow, layer).then_some(narrow))
    }

    /// True where nothing but the projections carries the dimensions, and nothing mixes them in between.
    fn is_free(&self, n: &Narrow, layer: &Attention) -> bool {
        let (typing, roles) = (self.typing, &self.finder.roles);
        let mut allowed = roles.operand(layer.projection);
        for o in [&n.query, &n.key, &n.values] {
            allowed.extend(roles.operand(o.projection.node()));
            allowed.extend(roles.bias(o.projection.node()));
        }
        let plain = |f: Factor| {
            typing.graph.node.iter().filter(|node| !node.output.iter().all(|o| self.fixed.contains(o.as_str()))).all(
                |node| {
                    let carries = node.output.iter().any(|o| {
                        let dims = typing.dims.get(o.as_str());
                        dims.is_some_and(|d| d.iter().any(|d| typing.factors.leaves(d).contains(&f)))
                    });
                    !carries || ops::of(node).is(Mark::HeadDim)
                },
            )
        };
        n.factors.iter().all(|&f| roles.carriers(f).iter().all(|u| allowed.contains(u)) && plain(f))
    }

    fn layout(&self, value: &str, columns: &[&[Factor]]) -> Option<Layout> {
        let factors = &self.typing.factors;
        let columns: Vec<Factor> = columns.iter().flat_map(|c| factors.leaves(c)).collect();
        Layout::new(self.typing, self.typing.dims.get(value)?, &columns)
    }

    fn operand(&self, l: usize, value: &str, head: &[Factor], tokens: &[Factor], f: Factor) -> Result<Option<Operand>> {
        let factors = &self.typing.factors;
        let Some(layout) = self.layout(value, &[head, tokens, &[f]]) else { return Ok(None) };
        let (heads, size) = (factors.size(head), factors.factor_size(f));
        for c in &self.typing.contractions {
            let makes = self.typing.graph.node[c.node].output.first().and_then(|o| self.typing.dims.get(o.as_str()));
            if !makes.is_some_and(|d| d.iter().any(|d| factors.leaves(d).contains(&f))) {
                continue;
            }
            let Some(mut site) = self.finder.site(l, Kind::Heads, c.node, None, None) else { continue };
            site.lead_to(value);
            let Some(way) = site.way(self.runtime, self.typing, self.model)? else { continue };
            let Some(columns) = self.columns(&layout, &way, [heads, factors.size(&factors.leaves(tokens)), size])
            else {
                continue;
            };
            let gain = way.gain[columns[0]];
            if columns.iter().any(|&c| (way.gain[c] - gain).abs() > 1e-4 * gain.abs()) {
                return Ok(None);
            }
            let tokens = factors.size(&factors.leaves(tokens));
            return Ok(Some(Operand { value: value.to_string(), layout, tokens, projection: site, columns, gain }));
        }
        Ok(None)
    }

    /// Which column of a projection makes which dimension of which head; `None` where that is no one-to-one relation.
    fn columns(&self, layout: &Layout, way: &Way, [heads, tokens, size]: [usize; 3]) -> Option<Vec<usize>> {
        let outputs = way.gain.len();
        let places = layout.places();
        let mut columns = vec![usize::MAX; heads * size];
        for c in (0..outputs).filter(|&c| way.gain[c] != 0.0) {
            let first =
                (c..way.source().len()).step_by(outputs).map(|i| way.source()[i]).find(|&at| at != usize::MAX)?;
            let column = places.get(first)? % (heads * tokens * size);
            let (h, j) = (column / (tokens * size), column % size);
            let place = columns.get_mut(h * size + j)?;
            if *place != usize::MAX {
                return None;
            }
            *place = c;
        }
        (!columns.contains(&usize::MAX)).then_some(columns)
    }

    /// What scores are multiplied by between the product and the softmax.
    fn scale(&self, scores: &str, softmax: &str) -> Result<Option<f32>> {
        if scores == softmax {
            return Ok(Some(1.0));
        }
        let part =
            Part::cut(self.runtime, self.typing, self.model, vec![scores.to_string()], vec![softmax.to_string()]);
        let shape = self.typing.shape(scores).unwrap_or_default();
        let run = |v: f32| -> Result<ArrayD<f32>> {
            let values = Values::from([(scores.to_string(), ArrayD::from_elem(IxDyn(&shape), v))]);
            Ok(part.run(&values)?.into_iter().next().unwrap_or_default())
        };
        let (zero, one) = (run(0.0)?, run(1.0)?);
        let gains: Vec<f32> =
            one.iter().zip(&zero).map(|(a, b)| a - b).filter(|g| g.is_finite() && *g != 0.0).collect();
        let Some(&gain) = gains.first() else { return Ok(None) };
        // A mask of large negative numbers swallows small differences.
        let alike = gains.iter().filter(|g| (**g - gain).abs() <= 1e-3 * gain.abs()).count();
        Ok((2 * alike > gains.len()).then_some(gain))
    }
}

/// What queries and keys of one head were on some images.
#[derive(Clone)]
struct Scores {
    /// Mean of q qᵀ.
    queries: Mat<f64>,
    /// Of keys, centred in each image, and weighted by what a change of score does to the output.
    keys: Mat<f64>,
}

/// Queries and keys of an attention on some images, by head.
#[derive(Clone)]
pub struct Measured(Vec<Scores>);

/// Measures queries and keys of all attentions on images.
///
/// # Errors
/// Those of the runtime.
pub fn measure(network: &Network, narrows: &[Narrow], images: &[ArrayD<f32>]) -> Result<Vec<Measured>> {
    let images = &images[..images.len().min(IMAGES)];
    let operands = |n: &Narrow| -> [String; 4] {
        [&n.query.value, &n.key.value, &n.values.value, &n.probabilities.0].map(String::clone)
    };
    let mut results: Vec<String> = narrows.iter().flat_map(operands).collect();
    results.sort_unstable();
    results.dedup();
    let (part, input) = network.whole(&results);
    let outputs: Vec<Mat<f64>> = narrows.iter().map(|n| network.output_of_heads(n.layer)).collect::<Result<_>>()?;
    let mut sums: Vec<Vec<[Mat<f64>; 3]>> =
        narrows.iter().map(|n| (0..n.heads).map(|_| [0; 3].map(|_| Mat::zeros(n.of[0], n.of[0]))).collect()).collect();
    // One chunk after the other, and within it in order: the sums do not depend on the number of threads.
    for group in images[parallel::part(images.len(), 1)].chunks(4) {
        let parts: Vec<Vec<Vec<[Mat<f64>; 3]>>> = group
            .par_iter()
            .map(|image| {
                let values = part.run(&Values::from([(input.clone(), image.clone())]))?;
                let value = |name: &str| results.iter().position(|r| r == name).map(|i| &values[i]);
                narrows
                    .iter()
                    .zip(&outputs)
                    .map(|(n, w)| {
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
                        Ok((0..n.heads).map(|h| head_sums(n, h, &matrices, w)).collect())
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
            let scores = heads
                .iter()
                .map(|[q, centred, weighted]| Scores { queries: q.clone(), keys: unit(centred) + unit(weighted) });
            Measured(scores.collect())
        })
        .collect())
}

/// Sums over one image: q qᵀ, k̃ k̃ᵀ, and M Mᵀ over queries, where M = Σ p k̃ uᵀ − (Σ p k̃)(Σ p u)ᵀ and u uᵀ is what values become in the
/// stream.
fn head_sums(n: &Narrow, h: usize, matrices: &[Array2<f32>], output: &Mat<f64>) -> [Mat<f64>; 3] {
    let [d, e] = n.of;
    let (tq, tk) = (n.query.tokens, n.key.tokens);
    let mut sums = [0; 3].map(|_| Mat::<f64>::zeros(d, d));
    let rows = features(&[h], e);
    let all: Vec<usize> = (0..output.ncols()).collect();
    let own = select(output, &rows, &all);
    let gram = times(own.as_ref(), own.transpose());
    let root = ridged(&gram, 1e-6).llt(Side::Lower).map(|l| l.L().to_owned()).unwrap_or_else(|_| Mat::identity(e, e));
    let root = Array2::from_shape_fn((e, e), |(i, j)| if i >= j { root[(i, j)] as f32 } else { 0.0 });
    for window in 0..matrices[0].nrows() {
        let of = |m: &Array2<f32>, rows: usize, columns: usize| -> Array2<f32> {
            let flat = m.slice(s![window.min(m.nrows() - 1), h * rows * columns..(h + 1) * rows * columns]);
            flat.to_owned().into_shape_with_order((rows, columns)).unwrap_or_default()
        };
        let (q, mut k) = (of(&matrices[0], tq, d), of(&matrices[1], tk, d));
        let (v, p) = (of(&matrices[2], tk, e), of(&matrices[3], tq, tk));
        if let Some(mean) = k.mean_axis(ndarray::Axis(0)) {
            k -= &mean;
        }
        let u = product(v.view(), root.view());
        add(&mut sums[0], product(q.t(), q.view()).view());
        add(&mut sums[1], product(k.t(), k.view()).view());
        for i in (0..tq).step_by(tq.div_ceil(QUERIES)) {
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

fn ridged(gram: &Mat<f64>, ridge: f64) -> Mat<f64> {
    let mut sum = gram.clone();
    let by = ridge * scale(gram);
    (0..sum.nrows()).for_each(|i| sum[(i, i)] += by);
    sum
}

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
fn score_bases(s: &Scores) -> Result<(Mat<f64>, Mat<f64>, Vec<f64>)> {
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
fn value_bases(gram: &Mat<f64>, weight: &Mat<f64>, heads: &[usize], size: usize) -> Result<Vec<(Mat<f64>, Vec<f64>)>> {
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

/// What is lost of the scores, and of the output, at every number of dimensions: measures of the layer alone.
pub fn local_errors(
    n: &Narrow,
    measured: &Measured,
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
pub fn turns(n: &Narrow, measured: &Measured, r: usize) -> Result<Vec<Array2<f32>>> {
    let turn = |head: &Scores| {
        let (a, b, _) = score_bases(head)?;
        let through = times(a.subcols(0, r), b.subcols(0, r).transpose());
        Ok(Array2::from_shape_fn((n.of[0], n.of[0]), |(i, j)| through[(i, j)] as f32))
    };
    measured.0.iter().map(turn).collect()
}

/// Queries that are cut in every head, in the place of those that there were.
pub fn cut_queries(n: &Narrow, turns: &[Array2<f32>], queries: &ArrayD<f32>) -> Result<ArrayD<f32>> {
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

/// The output projection behind values of rank `r` in every head, for features that are not cut: a matrix of the whole width.
pub fn cut_values(n: &Narrow, r: usize, statistics: &Covariance, weight: &Mat<f64>, ridge: f64) -> Result<Mat<f64>> {
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

/// An attention of the ancestor as a descendant has it.
pub struct Cut<'n> {
    /// The ancestor's attention.
    pub narrow: &'n Narrow,
    /// Its queries and keys.
    pub measured: &'n Measured,
    /// Statistics of its heads.
    pub statistics: &'n Covariance,
    /// Its layer in the descendant.
    pub layer: usize,
    /// The ancestor's heads that are kept.
    pub heads: Vec<usize>,
}

/// Puts the projections of cut attentions into a descendant that has their shape already: pinned it is `child`, and the weights go
/// into `out`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where an attention is not found again.
pub fn write(runtime: &Arc<Runtime>, ancestor: &Network, cuts: &[Cut], child: &Model, out: &Model) -> Result<Model> {
    let pinned = Typing::new(child)?;
    let found = narrows(runtime, &pinned, child)?;
    let mut model = out.clone();
    for cut in cuts {
        let n = cut.narrow;
        let Some(own) = found.iter().find(|f| f.layer == cut.layer) else {
            bail!(Unsupported, "the attention of layer {} has lost its head dimension", n.layer)
        };
        let bases: Vec<(Mat<f64>, Mat<f64>, Vec<f64>)> =
            cut.heads.iter().map(|&h| score_bases(&cut.measured.0[h])).collect::<Result<_>>()?;
        let weight = ancestor.output_of_heads(n.layer)?;
        let values = value_bases(&cut.statistics.gram, &weight, &cut.heads, n.of[1])?;
        let [d, e] = own.of;
        let whole = d == n.of[0];
        let by_scale = f64::from(n.query.gain * n.key.gain * n.scale / (own.query.gain * own.key.gain * own.scale));
        // What stays whole is not turned.
        let turn = |base: &Mat<f64>, factor: f64| match whole {
            true => Mat::<f64>::identity(d, d) * faer::Scale(factor),
            false => base.subcols(0, d) * faer::Scale(factor),
        };
        let turned = |mats: Vec<Mat<f64>>, a: &Operand, b: &Operand, size: [usize; 2], bias: bool| Turn {
            from: a.projection.clone(),
            to: b.projection.output.clone(),
            columns: [a.columns.clone(), b.columns.clone()],
            size,
            bases: mats,
            bias,
        };
        let queries = bases.iter().map(|b| turn(&b.0, by_scale)).collect();
        let keys = bases.iter().map(|b| turn(&b.1, 1.0)).collect();
        let gain = f64::from(n.values.gain / own.values.gain);
        let whole_values = e == n.of[1];
        let cut_values: Vec<Mat<f64>> = values
            .iter()
            .map(|(base, _)| match whole_values {
                true => Mat::<f64>::identity(e, e) * faer::Scale(gain),
                false => base.subcols(0, e) * faer::Scale(gain),
            })
            .collect();
        let turns = [
            turned(queries, &n.query, &own.query, [n.of[0], d], true),
            turned(keys, &n.key, &own.key, [n.of[0], d], whole),
            turned(cut_values, &n.values, &own.values, [n.of[1], e], true),
        ];
        for turn in &turns {
            turn.write(runtime, ancestor, &cut.heads, &mut model)?;
        }
        // The output projection follows the values.
        if !whole_values {
            let typing = Typing::new(&model)?;
            let anatomy = Anatomy::new(&typing)?;
            let (sites, _) = super::sites::sites(&typing, &anatomy);
            let Some(site) = sites.iter().find(|s| (s.layer, s.kind) == (cut.layer, Kind::Heads)) else {
                bail!(Unsupported, "the output projection of layer {} has disappeared", n.layer)
            };
            let (_, bias) = site.matrix(runtime, &typing, &model)?;
            let mut matrix = Array2::<f32>::zeros((cut.heads.len() * e, weight.ncols()));
            let all: Vec<usize> = (0..weight.ncols()).collect();
            for (i, (&h, (base, _))) in cut.heads.iter().zip(&values).enumerate() {
                let own =
                    times(base.subcols(0, e).transpose(), select(&weight, &features(&[h], n.of[1]), &all).as_ref());
                for r in 0..e {
                    all.iter().for_each(|&c| matrix[[i * e + r, c]] = own[(r, c)] as f32);
                }
            }
            let mut next = model.clone();
            site.write(&typing, &mut next, &matrix, &bias)?;
            drop(sites);
            model = next;
        }
    }
    Ok(model)
}

/// Columns of a projection that are made from those of the ancestor's, head by head.
struct Turn {
    from: Site,
    /// The value that leaves the descendant's projection.
    to: String,
    /// By head and dimension: in the ancestor, and in the descendant.
    columns: [Vec<usize>; 2],
    size: [usize; 2],
    bases: Vec<Mat<f64>>,
    /// False where the bias falls away.
    bias: bool,
}

impl Turn {
    fn write(&self, runtime: &Arc<Runtime>, ancestor: &Network, heads: &[usize], model: &mut Model) -> Result<()> {
        let (old, old_bias) = self.from.matrix(runtime, &ancestor.typing, ancestor.model)?;
        let typing = Typing::new(model)?;
        let finder = Finder::new(&typing);
        let site = typing
            .contractions
            .iter()
            .filter_map(|c| finder.site(self.from.layer, Kind::Heads, c.node, None, None))
            .find(|s| s.output == self.to);
        let Some(site) = site else { bail!(Unsupported, "the projection `{}` has disappeared", self.to) };
        let (mut matrix, mut bias) = site.matrix(runtime, &typing, model)?;
        let [d, r] = self.size;
        for (i, (&h, base)) in heads.iter().zip(&self.bases).enumerate() {
            for j in 0..r {
                let to = self.columns[1][i * r + j];
                let mut column = vec![0f64; old.nrows()];
                let mut shift = 0.0;
                for x in 0..d {
                    let from = self.columns[0][h * d + x];
                    let factor = base[(x, j)];
                    column.iter_mut().zip(old.column(from)).for_each(|(c, w)| *c += factor * f64::from(*w));
                    shift += factor * f64::from(old_bias[from]);
                }
                matrix.column_mut(to).iter_mut().zip(&column).for_each(|(m, c)| *m = *c as f32);
                bias[to] = if self.bias { shift as f32 } else { 0.0 };
            }
        }
        let mut next = model.clone();
        site.write(&typing, &mut next, &matrix, &bias)?;
        drop(typing);
        *model = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fitting::budget::cut;
    use crate::fitting::stages::pin;
    use crate::runtime::{Kind as Library, Options};

    fn image(shape: &[usize], seed: usize) -> ArrayD<f32> {
        ArrayD::from_shape_fn(IxDyn(shape), |at| {
            let wave = (0..shape.len()).map(|i| ((seed + i) as f32 * 0.37 + 0.3) * at[i] as f32).sum::<f32>();
            wave.sin() + 0.5 * (0.31 * wave + seed as f32).cos()
        })
    }

    fn close(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f32 {
        let most = a.iter().fold(1e-6f32, |m, v| m.max(v.abs()));
        a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / most
    }

    /// What a model says whose queries, keys and values are cut in its graph is what the ancestor says when queries are cut on the way
    /// and the output projection sees values through the same directions.
    fn check(path: &str, joint: bool, kept: &[usize]) {
        let runtime =
            Runtime::start(&Options { kind: Library::Tract, threads: Some(1), ..Options::default() }).unwrap();
        let mut model = Model::open(std::path::Path::new(path)).unwrap();
        crate::graph::prepare(&mut model).unwrap();
        let pinned = pin(&model).unwrap();
        let network = Network::new(&runtime, &pinned).unwrap();
        let found = narrows(&runtime, &network.typing, &pinned).unwrap();
        let n = found.iter().find(|n| n.layer == 1).unwrap_or_else(|| panic!("{path}: none of {}", found.len()));
        assert_eq!(n.is_joint(), joint, "{path}");
        let input = crate::graph::data_inputs(pinned.graph())[0].name().to_string();
        let shape = network.typing.shape(&input).unwrap();
        let images: Vec<ArrayD<f32>> = (0..6).map(|i| image(&shape, i)).collect();
        let i = network.site_of_heads(n.layer).unwrap();
        let statistics = network.statistics(&images, &|_, _| {}).unwrap();
        let measured = measure(&network, std::slice::from_ref(n), &images).unwrap();
        let r = n.of.map(|of| (of / 2).max(1));
        // By surgery.
        let heads: Vec<usize> = (0..n.heads).filter(|h| kept.is_empty() || kept.contains(h)).collect();
        let all: Vec<usize> = (0..Anatomy::new(&network.typing).unwrap().layers.len()).collect();
        let fewer = (heads.len() < n.heads).then(|| (n.layer, Kind::Heads, heads.clone()));
        let thin = cut(&model, &all, fewer.into_iter().collect(), vec![(n.layer, r)]).unwrap();
        let cuts = [Cut {
            narrow: n,
            measured: &measured[0],
            statistics: &statistics[i],
            layer: n.layer,
            heads: heads.clone(),
        }];
        let child = write(&runtime, &network, &cuts, &pin(&thin).unwrap(), &thin).unwrap();
        let child = pin(&child).unwrap();
        let small = Network::new(&runtime, &child).unwrap();
        // On the way.
        let stages = network.stages().unwrap();
        let mut values = stages.start(images[0].clone());
        for s in 0..i {
            stages.advance(s, &mut values).unwrap();
            let rows = network.sites[s].rows(&values).unwrap();
            network.pass(s, &rows, &mut values).unwrap();
        }
        let feeds = stages.feeds(i);
        let part = |feeds: Vec<String>, result: &str| {
            Part::cut(&runtime, &network.typing, &pinned, feeds, vec![result.to_string()])
        };
        let query = n.query.value.clone();
        let queries = part(feeds.to_vec(), &query).run(&values).unwrap().remove(0);
        let mut with = values.clone();
        with.insert(query.clone(), cut_queries(n, &turns(n, &measured[0], r[0]).unwrap(), &queries).unwrap());
        let site = &network.sites[i];
        let entering = part([feeds, &[query]].concat(), &site.input).run(&with).unwrap().remove(0);
        let rows = site.rows(&Values::from([(site.input.clone(), entering)])).unwrap();
        let weight = network.output_of_heads(n.layer).unwrap();
        let bases = value_bases(&statistics[i].gram, &weight, &heads, n.of[1]).unwrap();
        let mut through = Array2::<f32>::zeros((rows.ncols(), rows.ncols()));
        for (&h, (base, _)) in heads.iter().zip(&bases) {
            let p = base.subcols(0, r[1]);
            let own = times(p, p.transpose());
            let e = n.of[1];
            (0..e * e).for_each(|x| through[[h * e + x / e, h * e + x % e]] = own[(x / e, x % e)] as f32);
        }
        let cut_rows = product(rows.view(), through.view());
        stages.advance(i, &mut values).unwrap();
        let out = network.apply(i, &cut_rows);
        values.insert(site.output.clone(), site.leaving(&network.typing, &out).unwrap());
        let rest = stages.rest(&runtime, &network.typing, &pinned, i);
        let want = rest.run(&values).unwrap();
        let (part, input) = small.whole(&small.end);
        let have = part.run(&Values::from([(input, images[0].clone())])).unwrap();
        let (whole, input) = network.whole(&network.end);
        let before = whole.run(&Values::from([(input, images[0].clone())])).unwrap();
        for ((w, h), b) in want.iter().zip(&have).zip(&before) {
            assert!(close(w, h) < 2e-4, "{path}: {}", close(w, h));
            assert!(close(w, b) > 1e-3, "{path}: cutting half of the dimensions changes nothing");
        }
    }

    #[test]
    fn projections_that_are_cut_do_what_cut_queries_and_values_do() {
        check("models/fashion-vit.onnx", true, &[]);
        check("models/fashion-vit.onnx", true, &[1, 4, 6]);
        // One head has no axis of its own any more.
        check("models/fashion-vit.onnx", true, &[5]);
        check("fixtures/graphs/hf-dinov2-ts17.onnx", false, &[1]);
        for (name, joint) in [
            ("hf-dinov2-ts17", false),
            ("hf4-vit-eager-ts13", false),
            ("timm-vit-unfused-ts17", true),
            ("timm-swin-ts17", true),
            ("torchvision-vit-ts17", true),
        ] {
            check(&format!("fixtures/graphs/{name}.onnx"), joint, &[]);
        }
    }

    #[test]
    fn bases_of_full_rank_change_nothing_and_lose_nothing() {
        let random = |rows: usize, columns: usize, seed: usize| {
            Mat::from_fn(rows, columns, |i, j| {
                (((seed + 7 * i + 13 * j + i * j) * 2654435761) % 1000) as f64 / 500.0 - 1.0
            })
        };
        let square = |m: Mat<f64>| times(m.transpose(), m.as_ref());
        let s = Scores { queries: square(random(40, 6, 1)), keys: square(random(40, 6, 2)) };
        let (a, b, tail) = score_bases(&s).unwrap();
        let one = times(a.as_ref(), b.transpose());
        (0..6).for_each(|i| (0..6).for_each(|j| assert!((one[(i, j)] - f64::from(i == j)).abs() < 1e-8)));
        assert!(tail[6] == 0.0 && tail.windows(2).all(|t| t[0] >= t[1]));
        // The loss of rank r is that of the best approximation of scores in the norm of both covariances.
        let through = times(a.subcols(0, 3), b.subcols(0, 3).transpose());
        let missing = &one - &through;
        let (q, k) = (ridged(&s.queries, SCORE_RIDGE), ridged(&s.keys, SCORE_RIDGE));
        let lost = times(times(times(q.as_ref(), missing.as_ref()).as_ref(), k.as_ref()).as_ref(), missing.transpose());
        let lost: f64 = (0..6).map(|i| lost[(i, i)]).sum();
        assert!((lost / tail[3] - 1.0).abs() < 1e-6, "{lost} {}", tail[3]);
        let (gram, weight) = (square(random(50, 8, 3)), random(8, 5, 4));
        let bases = value_bases(&gram, &weight, &[0, 1], 4).unwrap();
        for (base, _) in &bases {
            let one = times(base.transpose(), base.as_ref());
            (0..4).for_each(|i| (0..4).for_each(|j| assert!((one[(i, j)] - f64::from(i == j)).abs() < 1e-8)));
        }
    }
}
