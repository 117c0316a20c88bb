//! The mean attention distances of the heads of a model.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::probe::attach;
use crate::anatomy::{Anatomy, Attention, TokenPositions, sequence_axis, sequences};
use crate::axes::{Dim, Factor, Typing};
use crate::data::Samples;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::{DataType, Model, tensor_info};
use crate::parallel;
use crate::runtime::Runtime;

/// The input of a probe that has ones for tokens that count.
const COUNTED: &str = "offshoot_counted_tokens";

/// Mean attention distances.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Densities {
    /// In pixels, or in tokens of a sequence, as `[layer][head]`. Empty for a layer whose tokens have no known place,
    /// see [`obstacle`].
    pub layers: Vec<Vec<f64>>,
    /// Samples that they are the mean of.
    pub images: usize,
    /// How many real tokens the sequence has on average that a layer attends over, one a layer; `None` for one that
    /// attends over an image. Empty where all do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<Option<f64>>,
}

/// What a mean attention distance is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Pixels of the image.
    #[serde(rename = "px")]
    Pixels,
    /// Tokens of a sequence.
    #[serde(rename = "tokens")]
    Tokens,
}

impl Unit {
    /// In a sentence.
    pub fn plural(self) -> &'static str {
        match self {
            Unit::Pixels => "pixels",
            Unit::Tokens => "tokens",
        }
    }

    /// The unit of the heads of a layer; none where they have no density.
    pub fn of(typing: &Typing, layer: &Attention) -> Option<Unit> {
        if obstacle(typing, layer).is_some() {
            return None;
        }
        let sequence = TokenPositions::new(typing, &layer.keys).sequence;
        Some(if sequence.is_some() { Unit::Tokens } else { Unit::Pixels })
    }
}

impl Densities {
    /// Means over the uses of layers that are used several times; `first` is the first use of each.
    pub fn pooled(&self, first: &[usize]) -> Densities {
        let mean = |l: &usize| {
            let uses = self.layers.iter().zip(first).filter(|(own, of)| *of == l && own.len() == self.layers[*l].len());
            let uses: Vec<&Vec<f64>> = uses.map(|(own, _)| own).collect();
            let head = |h: usize| uses.iter().map(|own| own[h]).sum::<f64>() / uses.len().max(1) as f64;
            (0..self.layers[*l].len()).map(head).collect()
        };
        let layers = first.iter().take(self.layers.len()).map(mean).collect();
        Densities { layers, images: self.images, lengths: self.lengths.clone() }
    }
}

/// What keeps the heads of a layer from having a density: channels that attend to channels, pixels inside of patches
/// and learned queries have no place on the image, and two sequences no distance from each other. `None` where they
/// have one.
pub fn obstacle(typing: &Typing, layer: &Attention) -> Option<String> {
    if layer.is_linear() {
        return Some("its attention is linear: no query has a map of its own".into());
    }
    let size = |dim: &Dim| typing.factors.size(dim);
    let places = places(typing, layer);
    let whose = match places.each_ref().map(TokenPositions::are_placed) {
        [true, true] if places[0].sequence == places[1].sequence => return None,
        [true, true] => return Some("its queries and its keys are no tokens of one sequence or image".into()),
        [false, true] => format!("its {} queries", size(&layer.queries)),
        [true, false] => format!("its {} keys", size(&layer.keys)),
        [false, false] => format!("its {} queries and {} keys", size(&layer.queries), size(&layer.keys)),
    };
    Some(match sequences(typing).is_empty() {
        true => format!("{whose} have no known place on the image"),
        false => format!("{whose} have no known place on an image or in a sequence"),
    })
}

/// Where queries and keys of a layer are.
fn places(typing: &Typing, layer: &Attention) -> [TokenPositions; 2] {
    [&layer.queries, &layer.keys].map(|axis| TokenPositions::new(typing, axis))
}

/// Measures the density of every head on samples, in all layers that have densities. Of a sequence the tokens that have
/// [content](crate::data::Inputs::content) count, where that is known.
///
/// `progress` is told how many samples are done.
///
/// # Errors
/// [`ErrorKind::Anatomy`] where no layer has densities, and errors of the runtime and of the samples.
pub fn measure(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    samples: &dyn Samples,
    mut progress: impl FnMut(usize),
) -> Result<Densities> {
    let axis = samples.token_input().and_then(|input| sequence_axis(typing, input));
    let counted = axis.filter(|_| anatomy.layers.iter().any(|l| counts_tokens(typing, l, axis)));
    let probe = probe_of(model, typing, anatomy, counted)?;
    let image = typing.image_size();
    let mut session = runtime.load_for(samples.len(), &probe, image)?;
    let heads = |l: &Attention| if obstacle(typing, l).is_none() { l.head_count(typing) } else { 0 };
    let mut sums: Vec<Vec<f64>> = anatomy.layers.iter().map(|l| vec![0.0; heads(l)]).collect();
    let is_counted: Vec<bool> = anatomy.layers.iter().map(|l| counts_tokens(typing, l, counted)).collect();
    // Samples, those of them that have a token that counts, and real tokens.
    let mut counts = [0; 3];
    let total = samples.len();
    for batch in samples.own_batches_of(session.batch) {
        let batch = batch?;
        let full: Vec<bool> = match &batch.content {
            Some(content) => content.outer_iter().map(|tokens| tokens.iter().any(|t| *t)).collect(),
            None => vec![true; batch.len()],
        };
        let mut arrays = batch.views();
        let weights = batch.content.as_ref().map(|c| c.mapv(|t| f32::from(u8::from(t))).into_dyn());
        arrays.extend(weights.as_ref().map(|w| (COUNTED, w.view())));
        let outputs = session.run_on(&arrays)?;
        let measured = sums.iter_mut().zip(&is_counted).filter(|(s, _)| !s.is_empty());
        for ((sums, is_counted), output) in measured.zip(&outputs) {
            for (i, value) in output.iter().enumerate() {
                let heads = sums.len();
                if *is_counted && !full.get(i / heads).copied().unwrap_or(true) {
                    continue;
                }
                if !value.is_finite() {
                    let what = "the attention of this model is not a number on these samples";
                    return Err(Error::new(ErrorKind::Runtime, what).at(&model.path).hint(samples.advice()));
                }
                sums[i % heads] += *value as f64;
            }
        }
        counts[0] += batch.len();
        counts[1] += full.iter().filter(|f| **f).count();
        counts[2] += batch.real.iter().flatten().filter(|real| **real).count();
        progress((counts[0] * parallel::size()).min(total));
    }
    sums.iter_mut().for_each(|s| parallel::sum(s));
    let counts = counts.map(parallel::total);
    samples.check_any(counts[0])?;
    for (sums, is_counted) in sums.iter_mut().zip(is_counted) {
        sums.iter_mut().for_each(|sum| *sum /= counts[usize::from(is_counted)].max(1) as f64);
    }
    let masked = samples.mask().and_then(|input| sequence_axis(typing, input));
    let length = |layer: &Attention| {
        let sequence = TokenPositions::new(typing, &layer.keys).sequence?;
        let whole = typing.factors.factor_size(sequence) as f64;
        Some(if masked == Some(sequence) { counts[2] as f64 / counts[0].max(1) as f64 } else { whole })
    };
    let mut lengths: Vec<Option<f64>> = anatomy.layers.iter().map(length).collect();
    if lengths.iter().all(Option::is_none) {
        lengths.clear();
    }
    Ok(Densities { layers: sums, images: counts[0], lengths })
}

/// True where the tokens of a layer lie along an axis whose tokens do not all count.
fn counts_tokens(typing: &Typing, layer: &Attention, counted: Option<Factor>) -> bool {
    counted.is_some() && TokenPositions::new(typing, &layer.keys).sequence == counted
}

/// The model with one output [samples, heads] for each layer that has densities: the mean attention distance of each
/// head for each sample.
///
/// # Errors
/// As [`measure`].
pub fn probe(model: &Model, typing: &Typing, anatomy: &Anatomy) -> Result<Model> {
    probe_of(model, typing, anatomy, None)
}

/// The same, with an input more where not all tokens of an axis count: ones for those that do, [samples, tokens].
fn probe_of(model: &Model, typing: &Typing, anatomy: &Anatomy, counted: Option<Factor>) -> Result<Model> {
    let is_placed = |l: &usize| obstacle(typing, &anatomy.layers[*l]).is_none();
    let placed: Vec<usize> = (0..anatomy.layers.len()).filter(is_placed).collect();
    if let (true, Some(why)) = (placed.is_empty(), anatomy.layers.first().and_then(|l| obstacle(typing, l))) {
        return Err(Error::new(ErrorKind::Anatomy, format!("no layer has densities; of layer 0, {why}"))
            .hint("use `grow ⟦no-images⟧`, where every head is its own cluster"));
    }
    let weights = counted.map(|axis| typing.factors.factor_size(axis));
    let mut probe = attach(model, typing, anatomy, &placed, &[], |probe, l, map| {
        let layer = &anatomy.layers[l];
        let weights = weights.filter(|_| counts_tokens(typing, layer, counted)).map(|tokens| (COUNTED, tokens));
        Ok(probe.distance(map, &places(typing, layer), weights))
    })?;
    if let Some(tokens) = weights {
        probe.graph_mut().input.push(tensor_info(COUNTED, DataType::Float, &[None, Some(tokens)]));
    }
    Ok(probe)
}
