//! A classifier for models that have none: the graph is cut behind the encoder's last norm, tokens are pooled, and a
//! linear layer tells the classes apart. It starts from a closed-form ridge regression of one-hot labels on the pooled
//! features.

use faer::prelude::Solve;
use faer::{Mat, Side};
use ndarray::{Array2, Axis};
use std::sync::Arc;

use super::run::Validation;
use crate::anatomy::{ActivationKind, Anatomy, Pooling, activation, class_factor};
use crate::axes::{Typing, carry_value_info};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, int_attribute};
use crate::metadata::CLASSES;
use crate::onnx::{DataType, Model, tensor_from_f32, tensor_info};
use crate::runtime::Runtime;

/// The output of a new classifier.
const LOGITS: &str = "logits";
/// The outputs where the activation of an old one stands behind it.
const PROBABILITIES: &str = "probabilities";
const LOG_PROBABILITIES: &str = "log_probabilities";
const FEATURES: &str = "classifier/features";
const WEIGHT: &str = "classifier/weight";
const BIAS: &str = "classifier/bias";

/// Images that the regression is fitted on at most.
pub const IMAGES: usize = 5000;

/// True where the model's first output tells classes apart: its last axis is made by a weight and is not the embedding.
pub fn has_classifier(typing: &Typing) -> bool {
    let Some(classes) = class_factor(typing) else { return false };
    let Ok(anatomy) = Anatomy::new(typing) else { return true };
    anatomy.layers.iter().all(|l| !typing.factors.all_leaves(&l.embedding).contains(&typing.factors.root(classes)))
}

/// Cuts a model behind its encoder and adds a classifier whose weights are zero, with the activation of the old one
/// behind it, where that had one. Pooling is by class token where there is one, and over real tokens where a `mask`
/// tells these from padding.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the encoder's end is not found, [`ErrorKind::Usage`] for a class token that is not
/// there.
pub fn add_classifier(model: &Model, classes: usize, pooling: Option<Pooling>, mask: Option<&str>) -> Result<Model> {
    if classes == 0 || classes > 1 << 20 {
        bail!(Usage, "{classes} classes cannot be");
    }
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let Some(end) = anatomy.encoder_end(&typing) else {
        return Err(Error::new(ErrorKind::Unsupported, "the end of the encoder was not found in the graph")
            .at(&model.path)
            .hint("export the model with a classifier"));
    };
    let embedding = anatomy.layers.last().map(|l| typing.factors.all_leaves(&l.embedding)).unwrap_or_default();
    let dims = &typing.dims[end.as_str()];
    let axis = dims.iter().position(|d| typing.factors.all_leaves(d).iter().any(|f| embedding.contains(f)));
    let Some(axis) = axis.filter(|&a| a > 0) else {
        bail!(Unsupported, "the tokens `{end}` have no embedding axis of their own")
    };
    let width = typing.factors.size(&dims[axis]);
    let tokens: Vec<usize> = (1..dims.len()).filter(|&a| a != axis).collect();
    let listed = tokens == [1] && dims.len() == 3;
    let has_class_token = listed && anatomy.prefix_tokens > 0;
    let pooling = pooling.unwrap_or(if has_class_token { Pooling::ClassToken } else { Pooling::Mean });
    let mut out = model.clone();
    out.proto.metadata_props.retain(|p| p.key() != CLASSES);
    let mut b = Builder::new(model.graph(), typing.opset, "classifier");
    let pooled = match (pooling, mask) {
        (_, Some(mask)) if listed => pooling.over(&mut b, &end, Some(mask))?,
        (_, Some(_)) => bail!(Unsupported, "the tokens `{end}` do not lie along the mask that tells padding"),
        (Pooling::ClassToken, None) if !has_class_token => {
            return Err(Error::new(ErrorKind::Usage, "the encoder has no class token").hint("use ⟦pooling⟧ mean"));
        }
        (Pooling::Last, None) if !listed => {
            return Err(Error::new(ErrorKind::Usage, "the encoder has no last token").hint("use ⟦pooling⟧ mean"));
        }
        (Pooling::Mean, None) => {
            let patches = match has_class_token {
                true => b.slice(&end, 1, anatomy.prefix_tokens as i64, i64::MAX),
                false => end.clone(),
            };
            b.reduce("ReduceMean", &patches, &tokens, false)
        }
        (Pooling::ClassToken | Pooling::Last, None) => pooling.over(&mut b, &end, None)?,
    };
    b.op_as("Identity", &[&pooled], vec![], FEATURES);
    let logits = b.gemm(&[FEATURES, WEIGHT, BIAS], true);
    b.op_as("Identity", &[&logits], vec![], LOGITS);
    let output = match activation(&typing).map(|a| a.kind) {
        None => LOGITS,
        Some(ActivationKind::Sigmoid) => {
            b.op_as("Sigmoid", &[LOGITS], vec![], PROBABILITIES);
            PROBABILITIES
        }
        Some(kind) => {
            let name = if kind == ActivationKind::Softmax { PROBABILITIES } else { LOG_PROBABILITIES };
            b.op_as(kind.operator(), &[LOGITS], vec![int_attribute("axis", 1)], name);
            name
        }
    };
    drop(typing);
    let graph = out.graph_mut();
    let taken = [LOGITS, PROBABILITIES, LOG_PROBABILITIES, FEATURES, WEIGHT, BIAS];
    for node in &mut graph.node {
        // A later output of that name goes away with the cut.
        for o in node.output.iter_mut().chain(node.input.iter_mut()).filter(|o| taken.contains(&o.as_str())) {
            *o = format!("{o}/before");
        }
    }
    b.finish(graph);
    graph.initializer.push(tensor_from_f32(WEIGHT, DataType::Float, &[classes, width], &vec![0.0; classes * width]));
    graph.initializer.push(tensor_from_f32(BIAS, DataType::Float, &[classes], &vec![0.0; classes]));
    graph.output = vec![tensor_info(output, DataType::Float, &[None, Some(classes)])];
    graph.value_info.clear();
    graph::sort(graph)?;
    graph::prune(graph);
    carry_value_info(model, &mut out);
    Ok(out)
}

/// Fits the weights of a new classifier in closed form on labelled images.
///
/// # Errors
/// [`ErrorKind::Usage`] without labels, [`ErrorKind::Runtime`] where the features are no numbers.
pub fn fit_classifier(
    runtime: &Arc<Runtime>,
    model: &mut Model,
    images: &Validation,
    image: [usize; 2],
    mut done: impl FnMut(usize),
) -> Result<()> {
    let Some(labels) = &images.labels else { bail!(Usage, "a classifier needs labels") };
    let mut encoder = model.clone();
    encoder.graph_mut().output = vec![tensor_info(FEATURES, DataType::Float, &[None, None])];
    let mut session = runtime.load_for(images.loader.len(), &encoder, image)?;
    let classes = model.graph().initializer.iter().find(|t| t.name() == BIAS).map_or(0, |t| t.dims[0] as usize);
    let (mut rows, mut of_rows) = (Vec::new(), Vec::new());
    for batch in images.loader.batches(session.batch) {
        let batch = batch?;
        let outputs = session.run(batch.images.view())?;
        for (row, &i) in outputs[0].outer_iter().zip(&batch.indices) {
            rows.push(row.iter().map(|&v| v as f64).collect::<Vec<f64>>());
            of_rows.push(labels.get(i).copied().unwrap_or(0) as usize);
        }
        done(rows.len());
    }
    let width = rows.first().map_or(0, Vec::len);
    let features = Array2::from_shape_fn((rows.len(), width), |(i, j)| rows[i][j]);
    if features.iter().any(|v| !v.is_finite()) {
        return Err(Error::new(ErrorKind::Runtime, "the encoder's features are not all finite").at(&model.path));
    }
    let (weight, bias) = ridge_classifier(&features, &of_rows, classes)?;
    for tensor in &mut model.graph_mut().initializer {
        match tensor.name() {
            WEIGHT => *tensor = tensor_from_f32(WEIGHT, DataType::Float, &[classes, width], &weight),
            BIAS => *tensor = tensor_from_f32(BIAS, DataType::Float, &[classes], &bias),
            _ => {}
        }
    }
    Ok(())
}

/// Ridge regression of one-hot labels on features [images, width]: the penalty is chosen on every fifth image, and
/// logits are scaled so that their cross-entropy is least. Returns the weight [classes, width] and the bias [classes].
fn ridge_classifier(features: &Array2<f64>, labels: &[usize], classes: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let held = |i: usize| i % 5 == 4 && features.nrows() >= 10;
    let fit = |ridge: f64, use_all: bool| -> Result<(Array2<f64>, Vec<f64>)> {
        let chosen: Vec<usize> = (0..features.nrows()).filter(|&i| use_all || !held(i)).collect();
        let x = features.select(Axis(0), &chosen);
        let n = chosen.len().max(1) as f64;
        let mean = x.sum_axis(Axis(0)) / n;
        let centred = &x - &mean;
        let gram = centred.t().dot(&centred) / n;
        let mut share = vec![0.0; classes];
        chosen.iter().for_each(|&i| share[labels[i]] += 1.0 / n);
        // The mean of the centred features times the targets: sums over the images of each class.
        let mut cross = Array2::<f64>::zeros((x.ncols(), classes));
        for (row, &i) in centred.outer_iter().zip(&chosen) {
            let mut column = cross.column_mut(labels[i]);
            column += &(&row / n);
        }
        let scale = (0..gram.nrows()).map(|i| gram[[i, i]]).sum::<f64>() / gram.nrows().max(1) as f64;
        let penalised = Mat::from_fn(gram.nrows(), gram.ncols(), |i, j| {
            gram[[i, j]] + if i == j { ridge * scale + 1e-12 } else { 0.0 }
        });
        let right = Mat::from_fn(cross.nrows(), classes, |i, j| cross[[i, j]]);
        let factor = penalised
            .llt(Side::Lower)
            .map_err(|e| Error::new(ErrorKind::Runtime, format!("the features cannot be regressed on: {e:?}")))?;
        let solution = factor.solve(&right);
        let weight = Array2::from_shape_fn((classes, x.ncols()), |(c, j)| solution[(j, c)]);
        let bias = (0..classes).map(|c| share[c] - weight.row(c).dot(&mean)).collect();
        Ok((weight, bias))
    };
    let logits = |(weight, bias): &(Array2<f64>, Vec<f64>), i: usize| -> Vec<f64> {
        (0..classes).map(|c| weight.row(c).dot(&features.row(i)) + bias[c]).collect()
    };
    let loss = |values: &[f64], label: usize, scale: f64| {
        let top = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        values.iter().map(|v| ((v - top) * scale).exp()).sum::<f64>().ln() - (values[label] - top) * scale
    };
    const SCALES: [f64; 9] = [1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];
    let mut best = (f64::INFINITY, 1e-2, 8.0);
    for ridge in [1e-4, 1e-3, 1e-2, 1e-1, 1.0] {
        let fitted = fit(ridge, false)?;
        let judged: Vec<(Vec<f64>, usize)> =
            (0..features.nrows()).filter(|&i| held(i)).map(|i| (logits(&fitted, i), labels[i])).collect();
        for scale in SCALES {
            let total: f64 = judged.iter().map(|(v, l)| loss(v, *l, scale)).sum();
            if total < best.0 && !judged.is_empty() {
                best = (total, ridge, scale);
            }
        }
    }
    let (_, ridge, scale) = best;
    let (weight, bias) = fit(ridge, true)?;
    Ok((weight.iter().map(|v| (v * scale) as f32).collect(), bias.iter().map(|v| (v * scale) as f32).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    #[test]
    fn the_regression_tells_separable_classes_apart() {
        let mut random = StdRng::seed_from_u64(5);
        let labels: Vec<usize> = (0..200).map(|i| i % 4).collect();
        let centres = Array2::from_shape_simple_fn((4, 6), || random.random_range(-2.0..2.0f64));
        let features =
            Array2::from_shape_fn((200, 6), |(i, j)| centres[[labels[i], j]] + random.random_range(-0.3..0.3));
        let (weight, bias) = ridge_classifier(&features, &labels, 4).unwrap();
        let right = (0..200)
            .filter(|&i| {
                let logit = |c: usize| {
                    (0..6).map(|j| weight[c * 6 + j] as f64 * features[[i, j]]).sum::<f64>() + bias[c] as f64
                };
                (0..4).max_by(|&a, &b| logit(a).total_cmp(&logit(b))) == Some(labels[i])
            })
            .count();
        assert!(right >= 198, "{right}");
    }
}
