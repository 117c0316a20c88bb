//! The mean attention distances of the heads of a model.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::probe::attach;
use crate::anatomy::{Anatomy, Attention, Tokens};
use crate::axes::{Dim, Typing};
use crate::data::Loader;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;
use crate::parallel;
use crate::runtime::Runtime;

/// Mean attention distances.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Densities {
    /// In pixels, as `[layer][head]`. Empty for a layer whose tokens have no known place on the image, see
    /// [`obstacle`].
    pub layers: Vec<Vec<f64>>,
    /// Images that they are the mean of.
    pub images: usize,
}

/// What keeps the heads of a layer from having a density: channels that attend to channels, pixels inside of patches
/// and learned queries have no place on the image. `None` where they have one.
pub fn obstacle(typing: &Typing, layer: &Attention) -> Option<String> {
    let size = |dim: &Dim| typing.factors.size(dim);
    let whose = match places(typing, layer).each_ref().map(Tokens::are_placed) {
        [true, true] => return None,
        [false, true] => format!("its {} queries", size(&layer.queries)),
        [true, false] => format!("its {} keys", size(&layer.keys)),
        [false, false] => format!("its {} queries and {} keys", size(&layer.queries), size(&layer.keys)),
    };
    Some(format!("{whose} have no known place on the image"))
}

/// Where queries and keys of a layer are.
fn places(typing: &Typing, layer: &Attention) -> [Tokens; 2] {
    [&layer.queries, &layer.keys].map(|axis| Tokens::new(typing, axis))
}

/// Measures the density of every head on images, in all layers that have densities.
///
/// `progress` is told how many images are done.
///
/// # Errors
/// [`ErrorKind::Anatomy`] where no layer has densities, and errors of the runtime and of the images.
pub fn measure(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    images: &Loader,
    mut progress: impl FnMut(usize),
) -> Result<Densities> {
    let probe = probe(model, typing, anatomy)?;
    let image = typing.image_size();
    let mut session = runtime.load_for(images.len(), &probe, image)?;
    let heads = |l: &Attention| if obstacle(typing, l).is_none() { l.head_count(typing) } else { 0 };
    let mut sums: Vec<Vec<f64>> = anatomy.layers.iter().map(|l| vec![0.0; heads(l)]).collect();
    let mut count = 0;
    let total = images.len();
    for batch in images.clone().share().batches(session.batch) {
        let batch = batch?;
        let outputs = session.run(batch.images.view())?;
        for (sums, output) in sums.iter_mut().filter(|s| !s.is_empty()).zip(&outputs) {
            for (i, value) in output.iter().enumerate() {
                if !value.is_finite() {
                    return Err(Error::new(
                        ErrorKind::Runtime,
                        "the attention of this model is not a number on these images",
                    )
                    .at(&model.path)
                    .hint("check preprocessing (--mean, --std) and the model's weights"));
                }
                let heads = sums.len();
                sums[i % heads] += *value as f64;
            }
        }
        count += batch.images.shape()[0];
        progress((count * parallel::size()).min(total));
    }
    sums.iter_mut().for_each(|s| parallel::sum(s));
    let count = parallel::total(count);
    images.check_any(count)?;
    for sum in sums.iter_mut().flatten() {
        *sum /= count.max(1) as f64;
    }
    Ok(Densities { layers: sums, images: count })
}

/// The model with one output [images, heads] for each layer that has densities: the mean attention distance of each
/// head for each image.
///
/// # Errors
/// As [`measure`].
pub fn probe(model: &Model, typing: &Typing, anatomy: &Anatomy) -> Result<Model> {
    let all: Vec<usize> = (0..anatomy.layers.len()).collect();
    let placed: Vec<usize> = all.iter().copied().filter(|&l| obstacle(typing, &anatomy.layers[l]).is_none()).collect();
    let layers = if placed.is_empty() { all } else { placed };
    attach(model, typing, anatomy, &layers, &[], |probe, l, map| match obstacle(typing, &anatomy.layers[l]) {
        Some(why) => Err(Error::new(ErrorKind::Anatomy, format!("no layer has densities; of layer {l}, {why}"))
            .hint("use `grow --no-images`, where every head is its own cluster")),
        None => Ok(probe.distance(map, &places(typing, &anatomy.layers[l]))),
    })
}
