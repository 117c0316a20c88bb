//! Attention maps: where on the image a layer looks, as one picture.

use std::sync::Arc;

use ndarray::{Array3, ArrayD, Axis, Ix4};
use serde::Serialize;

use super::probe::{Attentions, attach};
use crate::anatomy::{Anatomy, TokenPositions, in_usual_order};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, int_attribute};
use crate::onnx::{DataType, Model, tensor_info};
use crate::runtime::Runtime;

/// The attention that the patches of an image receive.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AttentionMap {
    /// Rows and columns of patches.
    pub patches: [usize; 2],
    /// Row by row: the probability that each patch has, as the first token that is no patch (the class token) sees it,
    /// or the mean over all patches where there is none. The mean over heads, and over windows.
    pub attention: Vec<f32>,
}

/// The maps of some layers on one image [1, channels, height, width]; none where a layer's keys have no known place.
///
/// # Errors
/// Those of typing and of the runtime.
pub fn attention_maps(
    runtime: &Arc<Runtime>,
    model: &Model,
    layers: &[usize],
    image: &ArrayD<f32>,
) -> Result<Vec<Option<AttentionMap>>> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let attentions = Attentions::new(&typing, &anatomy, layers)?;
    let mut probe = model.clone();
    *probe.graph_mut() = attentions.graph.clone();
    let mut wanted = Vec::new();
    let places: Vec<Option<(TokenPositions, TokenPositions)>> = layers
        .iter()
        .map(|&l| {
            let layer = anatomy.layers.get(l)?;
            let first = &typing.graph.node[*layer.softmax.first()?];
            if !in_usual_order(&typing, first) {
                return None;
            }
            let (value, dims) = attentions.probabilities(*layer.softmax.first()?);
            let keys = TokenPositions::new(&typing, &layer.keys);
            keys.are_placed().then(|| {
                wanted.push(tensor_info(value, DataType::Float, &vec![None; dims.len()]));
                (TokenPositions::new(&typing, &layer.queries), keys)
            })
        })
        .collect();
    if wanted.is_empty() {
        return Ok(vec![None; layers.len()]);
    }
    probe.graph_mut().output = wanted;
    graph::prune(probe.graph_mut());
    let mut session = runtime.load(&probe, 1, typing.image_size())?;
    let Ok(image) = image.view().into_dimensionality() else { return Ok(vec![None; layers.len()]) };
    let mut values = session.run(image)?.into_iter();
    Ok(places.iter().map(|p| p.as_ref().zip(values.next()).and_then(|((q, k), v)| map(q, k, &v))).collect())
}

/// The attention probabilities of some layers on one image [1, channels, height, width], as [heads, queries, keys] a
/// layer; the mean over windows.
///
/// # Errors
/// [`ErrorKind::Usage`] for a layer that is not there; [`ErrorKind::Anatomy`] where maps of different sizes share one
/// projection; those of typing and of the runtime.
pub fn attention_matrices(
    runtime: &Arc<Runtime>,
    model: &Model,
    layers: &[usize],
    image: &ArrayD<f32>,
) -> Result<Vec<Array3<f32>>> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    if let Some(l) = layers.iter().find(|&&l| l >= anatomy.layers.len()) {
        bail!(Usage, "there is no layer {l}: the model has {}", anatomy.layers.len());
    }
    let size = |l: usize| [&anatomy.layers[l].queries, &anatomy.layers[l].keys].map(|d| typing.factors.size(d));
    let tails: Vec<[usize; 2]> = layers.iter().map(|&l| size(l)).collect();
    let probe = attach(model, &typing, &anatomy, layers, &tails, |probe, l, map| {
        let own = [map.dims.len() - 2, map.dims.len() - 1].map(|a| typing.factors.size(&map.dims[a]));
        if own != size(l) {
            bail!(Anatomy, "layer {l} has attention maps of different sizes");
        }
        let float = probe.op_with("Cast", &[&map.value], vec![int_attribute("to", DataType::Float as i64)]);
        Ok(probe.by_head(float, map, &own))
    })?;
    let mut session = runtime.load(&probe, 1, typing.image_size())?;
    let wrong = |e: ndarray::ShapeError| Error::new(ErrorKind::Internal, format!("attention has another shape: {e}"));
    let outputs = session.run(image.view().into_dimensionality().map_err(wrong)?)?;
    outputs
        .into_iter()
        .map(|o| Ok(o.into_dimensionality::<Ix4>().map_err(wrong)?.index_axis_move(Axis(0), 0)))
        .collect()
}

fn map(queries: &TokenPositions, keys: &TokenPositions, value: &ArrayD<f32>) -> Option<AttentionMap> {
    let (q, k) = (queries.positions.len(), keys.positions.len());
    let flat = value.as_standard_layout();
    let flat = flat.as_slice()?;
    if q * k == 0 || flat.len() % (q * k) != 0 {
        return None;
    }
    let rows: Vec<usize> = match queries.positions.iter().position(Option::is_none) {
        Some(token) => vec![token],
        None => (0..q).collect(),
    };
    let mut seen = vec![0f32; k];
    for attention in flat.chunks(q * k) {
        for &row in &rows {
            seen.iter_mut().zip(&attention[row * k..(row + 1) * k]).for_each(|(s, a)| *s += a);
        }
    }
    let count = (rows.len() * (flat.len() / (q * k))) as f32;
    let stride = keys.stride()?;
    let at = |p: &(f64, f64)| [(p.0 / stride[0]).round() as usize, (p.1 / stride[1]).round() as usize];
    let places: Vec<[usize; 2]> = keys.positions.iter().flatten().map(at).collect();
    let patches = [0, 1].map(|axis| 1 + places.iter().map(|p| p[axis]).max().unwrap_or(0));
    let mut attention = vec![0f32; patches[0] * patches[1]];
    let placed = keys.positions.iter().zip(&seen).filter(|(p, _)| p.is_some());
    for ((_, seen), place) in placed.zip(&places) {
        attention[place[0] * patches[1] + place[1]] = seen / count;
    }
    Some(AttentionMap { patches, attention })
}
