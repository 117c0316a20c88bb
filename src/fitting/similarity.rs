//! How much the heads of a layer, and the neurons of an FFN, differ in what they pass on, from the covariance of their
//! outputs.

use std::sync::Arc;

use faer::Mat;
use ndarray::Array2;

use super::algebra::{inner, ridge_solve, scale, select, times};
use super::network::{Collector, Network};
use super::order::features;
use super::subgraph::{Values, image_input, pin};
use super::targets::TargetLinear;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::data::{Inputs, Samples};
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::{
    BlockKind, Cluster, Eps, NeuronRules, Similarities, Similarity, by_medoid, combined, partition,
};
use crate::onnx::Model;
use crate::parallel;
use crate::runtime::Runtime;

/// Ridge of the prediction of one head from another, in means of the diagonal.
const RIDGE: f64 = 1e-4;

const HINT: &str = "use ⟦similarity⟧ density or attention";

/// Distances of the heads of every layer, [heads, heads].
pub struct HeadDistances {
    /// One minus the linear centred kernel alignment of their outputs.
    pub output: Vec<Array2<f64>>,
    /// What the layer's output loses when one is predicted from the other, as a share of it.
    pub prediction: Vec<Array2<f64>>,
}

/// Measures the distances of heads by their outputs, sample by sample, in memory that does not grow with the number of
/// samples. `runtime` should have one thread; samples are worked on side by side.
///
/// `progress` is told how many samples are done.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a layer whose output projection has a form that is not fitted; errors of the runtime
/// and of the samples.
pub fn head_distances(
    runtime: &Arc<Runtime>,
    model: &Model,
    samples: &dyn Samples,
    progress: impl FnMut(usize),
) -> Result<HeadDistances> {
    let pinned = pin(model)?;
    let network = Network::new(runtime, &pinned, samples.mask()).map_err(|e| e.hint(HINT))?;
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let collector = collected(&network, samples, progress)?;
    let mut found = HeadDistances { output: Vec::new(), prediction: Vec::new() };
    for (l, layer) in anatomy.layers.iter().enumerate() {
        let heads = layer.head_count(&typing);
        let linear = network.linears.iter().position(|s| s.layer == l && s.kind == BlockKind::Heads);
        let divided = |s: &TargetLinear| heads < 2 || s.divides && s.units == heads;
        let Some(i) = linear.filter(|&i| divided(&network.linears[i])) else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the output projection of layer {l} has a form in which the outputs of heads are not told apart"
                ),
            )
            .at(&model.path)
            .hint(HINT));
        };
        let gram = collector.moments[i].covariance(true).gram;
        let weight =
            Mat::from_fn(gram.nrows(), network.linears[i].outputs, |r, c| f64::from(network.matrices[i].0[[r, c]]));
        let size = network.linears[i].features() / heads.max(1);
        found.output.push(alignment(&gram, heads, size));
        found.prediction.push(prediction(&gram, &weight, heads, size)?);
    }
    Ok(found)
}

/// What enters every linear layer, over all samples.
fn collected<'n, 'm>(
    network: &'n Network<'m>,
    samples: &dyn Samples,
    mut progress: impl FnMut(usize),
) -> Result<Collector<'n, 'm>> {
    let mut collector = Collector::new(network);
    let input = image_input(network.typing.graph);
    let mut done = 0;
    for batch in samples.own_batches_of(collector.chunk) {
        let batch = batch?;
        let list: Vec<Values> = (0..batch.len()).map(|i| values(batch.select(&[i]), &input)).collect();
        collector.add(&list)?;
        done += list.len();
        progress((done * parallel::size()).min(samples.len()));
    }
    samples.check_any(parallel::total(done))?;
    collector.finish();
    Ok(collector)
}

/// A sample by the names of inputs; one array alone is for the only `input`, whatever it is called.
fn values(sample: Inputs, input: &str) -> Values {
    match <[_; 1]>::try_from(sample.arrays) {
        Ok([(_, array)]) => Values::from([(input.to_string(), array)]),
        Err(arrays) => arrays.into_iter().collect(),
    }
}

/// Clusters the neurons of every layer's FFN by their outputs, with medoids; big clusters first, and of equal ones
/// those whose medoid adds most to the layer's output. Layers whose FFN cannot be read get no clusters.
///
/// # Errors
/// Those of [`neuron_distances`]; [`ErrorKind::Unsupported`] where no layer has neurons that are told apart.
pub fn neuron_clusters(
    runtime: &Arc<Runtime>,
    model: &Model,
    samples: &dyn Samples,
    rules: &NeuronRules,
    progress: impl FnMut(usize),
) -> Result<Vec<Vec<Cluster>>> {
    let mut found = Vec::new();
    neuron_distances(runtime, model, samples, &rules.similarity, progress, |layer, distances, adds| {
        let (members, _) = partition(distances, rules.algorithm, rules.eps.unwrap_or(Eps::Auto), 1);
        let mut clusters = by_medoid(members, distances);
        let adds = |c: &Cluster| adds[c.centroid];
        clusters.sort_by(|a, b| b.members.len().cmp(&a.members.len()).then(adds(b).total_cmp(&adds(a))));
        found.resize(found.len().max(layer + 1), Vec::new());
        found[layer] = clusters;
    })?;
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, "no FFN has neurons that are told apart").at(&model.path));
    }
    Ok(found)
}

/// Measures the distances of the neurons of every layer's FFN by their outputs: `visit` gets the layer, the distances
/// [neurons, neurons], and the mean square of what each neuron adds to the layer's output. Layers whose FFN cannot be
/// read are left out. Samples are worked on as for [`head_distances`], and distances are held for one layer at a time.
///
/// # Errors
/// [`ErrorKind::Usage`] for similarities that neurons do not have; errors of the runtime and of the samples.
pub fn neuron_distances(
    runtime: &Arc<Runtime>,
    model: &Model,
    samples: &dyn Samples,
    similarity: &Similarities,
    progress: impl FnMut(usize),
    mut visit: impl FnMut(usize, &Array2<f64>, &[f64]),
) -> Result<()> {
    if let Some(kind) = similarity.0.iter().find(|k| !matches!(k, Similarity::Output | Similarity::Prediction)) {
        return Err(Error::new(ErrorKind::Usage, format!("neurons have no {} that could be compared", kind.name()))
            .hint("use ⟦neuron-similarity⟧ output, prediction, or output+prediction"));
    }
    let pinned = pin(model)?;
    let network = Network::new(runtime, &pinned, samples.mask())?;
    let collector = collected(&network, samples, progress)?;
    for (i, linear) in network.linears.iter().enumerate().filter(|(_, s)| s.kind == BlockKind::Neurons && s.divides) {
        if linear.units < 3 || linear.size != 1 {
            continue;
        }
        let matrix = &network.matrices[i].0;
        let norms: Vec<f64> = matrix.outer_iter().map(|row| row.iter().map(|v| f64::from(*v).powi(2)).sum()).collect();
        let squares = collector.moments[i].covariance(false).gram;
        let measure = |kind: &Similarity| match kind {
            Similarity::Prediction => {
                let weight = Mat::from_fn(matrix.nrows(), matrix.ncols(), |r, c| f64::from(matrix[[r, c]]));
                vec![neuron_prediction(&collector.moments[i].covariance(true).gram, &weight, &norms)]
            }
            _ => vec![neuron_difference(&squares)],
        };
        let distances = combined(&similarity.0.iter().map(measure).collect::<Vec<_>>());
        let adds: Vec<f64> = norms.iter().enumerate().map(|(n, norm)| norm * squares[(n, n)]).collect();
        distances.first().into_iter().for_each(|d| visit(linear.layer, d, &adds));
    }
    Ok(())
}

/// The mean squared difference of the outputs of every two neurons, as a share of the sum of their mean squares
/// (`squares`: means of products, not centred): 0 for neurons that can stand for each other as they are, 1 for
/// unrelated ones, 2 for opposites.
fn neuron_difference(squares: &Mat<f64>) -> Array2<f64> {
    symmetric(squares.nrows(), |a, b| match squares[(a, a)] + squares[(b, b)] {
        0.0 => 0.0,
        both => 1.0 - 2.0 * squares[(a, b)] / both,
    })
}

/// What the layer's output loses when one neuron is predicted from another, as [`prediction`] has it for heads. `norms`
/// are the squared norms of the rows of `weight`.
fn neuron_prediction(gram: &Mat<f64>, weight: &Mat<f64>, norms: &[f64]) -> Array2<f64> {
    let whole = inner(weight, &times(gram.as_ref(), weight.as_ref()));
    let lost = |j: usize, c: usize| {
        let (own, across, other) = (gram[(j, j)], gram[(j, c)], gram[(c, c)]);
        let fit = across / (other * (1.0 + RIDGE)).max(f64::MIN_POSITIVE);
        norms[j] * (own - 2.0 * fit * across + fit * fit * other).max(0.0)
    };
    symmetric(norms.len(), |a, b| if whole > 0.0 { (lost(a, b) + lost(b, a)) / 2.0 / whole } else { 0.0 })
}

/// One minus the linear CKA of the features of every two heads (Kornblith et al. 2019), from their centred covariance:
/// |G_ab|² / (|G_aa| |G_bb|) in Frobenius norms. A head that passes on a constant is like none but others of its kind.
fn alignment(gram: &Mat<f64>, heads: usize, size: usize) -> Array2<f64> {
    let block = |a: usize, b: usize| {
        let block = select(gram, &features(&[a], size), &features(&[b], size));
        inner(&block, &block)
    };
    let own: Vec<f64> = (0..heads).map(|h| block(h, h).sqrt()).collect();
    symmetric(heads, |a, b| match own[a] * own[b] {
        0.0 => f64::from(u8::from(own[a] != own[b])),
        both => 1.0 - block(a, b) / both,
    })
}

/// What the layer's output W ᵀ a loses when the part of one head is predicted linearly from the other, as a share of
/// the output's variance; the mean of both directions.
fn prediction(gram: &Mat<f64>, weight: &Mat<f64>, heads: usize, size: usize) -> Result<Array2<f64>> {
    let whole = inner(weight, &times(gram.as_ref(), weight.as_ref()));
    if whole <= 0.0 {
        return Ok(Array2::zeros((heads, heads)));
    }
    let outputs: Vec<usize> = (0..weight.ncols()).collect();
    let of: Vec<Vec<usize>> = (0..heads).map(|h| features(&[h], size)).collect();
    // tr(W_jᵀ (G_jj - G_jc (G_cc + r)⁻¹ G_cj) W_j), and the bias of the ridge.
    let lost = |j: usize, c: usize| -> Result<f64> {
        let own = select(weight, &of[j], &outputs);
        let across = times(select(gram, &of[c], &of[j]).as_ref(), own.as_ref());
        let block = select(gram, &of[c], &of[c]);
        let fit = ridge_solve(&block, RIDGE * scale(&block), &across)?;
        let variance = inner(&own, &times(select(gram, &of[j], &of[j]).as_ref(), own.as_ref()));
        let left = variance - 2.0 * inner(&fit, &across) + inner(&fit, &times(block.as_ref(), fit.as_ref()));
        Ok(left.max(0.0) / whole)
    };
    let mut distances = Array2::zeros((heads, heads));
    for a in 0..heads {
        for b in 0..a {
            let both = (lost(a, b)? + lost(b, a)?) / 2.0;
            (distances[[a, b]], distances[[b, a]]) = (both, both);
        }
    }
    Ok(distances)
}

fn symmetric(heads: usize, distance: impl Fn(usize, usize) -> f64) -> Array2<f64> {
    let of = |a: usize, b: usize| if a == b { 0.0 } else { distance(a.max(b), a.min(b)).max(0.0) };
    Array2::from_shape_fn((heads, heads), |(a, b)| of(a, b))
}
