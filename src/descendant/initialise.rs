//! The weights of a descendant by the method that was chosen.
//!
//! A descendant's shape is planned first; the weights of the resized graph are then written. What a weight is for
//! ([`WeightKind`]) decides how it is drawn; which weight of another layer plays its part ([`LayerWeights`]) decides
//! what it is fitted to. Tensors that a method inherits as they are stay byte for byte.

use std::collections::HashMap;

use rand::{SeedableRng, rngs::StdRng};
use rayon::prelude::*;

use super::init::{Init, LayerSource};
use super::layers::{LayerWeights, WeightSignature};
use super::numbers::{line, resample, select, truncated_normal, uniform};
use super::plan::GrowOptions;
use crate::anatomy::{Anatomy, Roles, WeightKind, WeightUse, class_factors, weight_uses};
use crate::axes::resize::{ResizePlan, mix};
use crate::axes::{Dim, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::TensorProto;
use crate::onnx::{is_float, to_f32};

/// The ancestor's own weights, layer by layer, for the methods that look across layers.
pub(super) struct Ancestor<'a, 'm> {
    typing: &'a Typing<'m>,
    weights: LayerWeights,
    parts: Vec<Vec<WeightSignature>>,
}

impl<'a, 'm> Ancestor<'a, 'm> {
    pub fn new(typing: &'a Typing<'m>, anatomy: &Anatomy) -> Self {
        let uses = weight_uses(typing);
        let weights = LayerWeights::new(typing, anatomy, &uses);
        let parts = (0..weights.layers.len()).map(|l| weights.parts(typing, &uses, l)).collect();
        Ancestor { typing, weights, parts }
    }

    /// The layers that are like layer `l`, itself among them.
    fn alike(&self, l: usize) -> Vec<usize> {
        (0..self.parts.len()).filter(|&m| self.parts[m] == self.parts[l]).collect()
    }

    /// The elements of the weight in place `p` of a layer.
    fn elements(&self, l: usize, p: usize) -> Result<Vec<f32>> {
        let of_use = &self.typing.uses[self.weights.layers[l][p]];
        to_f32(self.typing.weights[of_use.name.as_str()])
    }
}

/// What a weight of the resized graph is made of.
enum Making {
    /// As resizing leaves it: the ancestor's.
    Kept,
    Random,
    /// Evenly spaced elements of its own.
    Selected,
    /// Layer `at` of `of` of the descendant that are like the ancestor's `layers`, place `p`.
    Expanded {
        layers: Vec<usize>,
        p: usize,
        at: usize,
        of: usize,
    },
}

/// A planned descendant whose weights are to be written.
pub(super) struct Initialiser<'a, 'm> {
    pub typing: &'a Typing<'m>,
    pub anatomy: &'a Anatomy,
    pub roles: &'a Roles<'a, 'm>,
    pub shape: &'a GrowOptions,
    /// The ancestor's layers that it is built from.
    pub kept: &'a [usize],
    pub sources: &'a [LayerSource],
    pub resizing: &'a ResizePlan,
}

impl Initialiser<'_, '_> {
    /// The elements of all weights that are not as resizing leaves them, by use, for the sizes that are planned.
    pub fn weights(&self, ancestor: &Ancestor) -> Result<Vec<(usize, Vec<f32>)>> {
        let uses = weight_uses(self.typing);
        let own = LayerWeights::new(self.typing, self.anatomy, &uses);
        for (i, source) in self.sources.iter().enumerate() {
            let l = self.kept[i];
            let like_ancestor = || own.parts(self.typing, &uses, i) == ancestor.parts[l];
            if *source != LayerSource::Inherited && (own.layers[i].is_empty() || !like_ancestor()) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!(
                        "layer {l} cannot be initialised apart: its weights are not told from those of other layers"
                    ),
                )
                .hint("use ⟦init⟧ pretrain-finetune or weight-selection, which take layers as they are"));
            }
        }
        let classes: Vec<usize> = class_factors(self.typing).into_iter().flat_map(|f| self.roles.carriers(f)).collect();
        let mut jobs: Vec<(usize, Making)> = Vec::new();
        for (u, found) in uses.iter().enumerate() {
            let making = self.making(u, found, &own, ancestor, &classes);
            if !matches!(making, Making::Kept) {
                jobs.push((u, making));
            }
        }
        let shapes: HashMap<usize, Vec<usize>> = (0..uses.len()).map(|u| (u, self.target(u))).collect();
        // Weights that the file ties stay tied: what is drawn depends on the name and not on the use.
        let mut first: HashMap<&str, usize> = HashMap::new();
        for (u, of_use) in self.typing.uses.iter().enumerate() {
            first.entry(&of_use.name).or_insert(u);
        }
        let made: Vec<Option<(usize, Vec<f32>)>> = jobs
            .par_iter()
            .map(|(u, making)| -> Result<_> {
                let shape = &shapes[u];
                Ok(Some((
                    *u,
                    match making {
                        Making::Kept => return Ok(None),
                        Making::Random => {
                            let stream = first[self.typing.uses[*u].name.as_str()] as u64;
                            let seed = self.shape.seed ^ (stream + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                            self.draw(*u, &uses[*u], &shapes, shape, &mut StdRng::seed_from_u64(seed))
                        }
                        Making::Selected => {
                            let (tensor, dims) = self.source(*u);
                            let lists = dims.iter().zip(shape).map(|(&t, &s)| select(t, s)).collect();
                            pick(to_f32(tensor)?, &dims, lists)
                        }
                        Making::Expanded { layers, p, at, of } => {
                            let tensors: Vec<Vec<f32>> =
                                layers.iter().map(|&l| ancestor.elements(l, *p)).collect::<Result<_>>()?;
                            let dims = self.source(*u).1;
                            match self.shape.init {
                                Init::Frequency => frequency(&tensors, &dims, *of, *at, shape),
                                _ => {
                                    let places: Vec<f64> =
                                        (0..tensors.len()).map(|l| l as f64 / tensors.len() as f64).collect();
                                    let (a, b) = line(&tensors, &places);
                                    let x = *at as f64 / *of as f64;
                                    let whole = a.iter().zip(&b).map(|(a, b)| (a + x * b) as f32).collect();
                                    pick(whole, &dims, self.lists(*u))
                                }
                            }
                        }
                    },
                )))
            })
            .collect::<Result<_>>()?;
        Ok(made.into_iter().flatten().collect())
    }

    fn making(
        &self,
        u: usize,
        found: &WeightUse,
        own: &LayerWeights,
        ancestor: &Ancestor,
        classes: &[usize],
    ) -> Making {
        let init = self.shape.init;
        let of_use = &self.typing.uses[u];
        let float = is_float(self.typing.weights[of_use.name.as_str()]);
        if found.kind == WeightKind::Constant {
            // Running statistics of weights that are no longer there.
            let statistic =
                self.typing.graph.node[of_use.node].op_type() == "BatchNormalization" && matches!(of_use.input, 3 | 4);
            return if statistic && init == Init::FromScratch { Making::Random } else { Making::Kept };
        }
        if !float || (classes.contains(&u) && self.shape.classes.is_some() && !init.takes_embedding()) {
            return Making::Kept;
        }
        match (init, own.place.get(&u)) {
            (Init::FromScratch, _) => Making::Random,
            (Init::WeightSelection, _) if classes.contains(&u) => Making::Random,
            (Init::WeightSelection, _) if self.target(u) != self.source(u).1 => Making::Selected,
            (_, Some(&(i, p))) => match self.sources[i] {
                LayerSource::Random => Making::Random,
                LayerSource::Expanded => {
                    let layers = ancestor.alike(self.kept[i]);
                    let like: Vec<usize> = (0..self.kept.len()).filter(|&j| layers.contains(&self.kept[j])).collect();
                    let at = like.iter().position(|&j| j == i).unwrap_or(0);
                    Making::Expanded { layers, p, at, of: like.len() }
                }
                _ => Making::Kept,
            },
            _ => Making::Kept,
        }
    }

    /// The tensor of a use, and its dims.
    fn source(&self, u: usize) -> (&TensorProto, Vec<usize>) {
        let tensor = self.typing.weights[self.typing.uses[u].name.as_str()];
        (tensor, tensor.shape())
    }

    /// The elements that resizing keeps along each axis of a use.
    fn lists(&self, u: usize) -> Vec<Vec<usize>> {
        let of_use = &self.typing.uses[u];
        let factors = &self.typing.factors;
        let all = |d: &Dim| (0..factors.size(d)).collect();
        of_use.dims.iter().map(|d| self.resizing.positions(factors, d).unwrap_or_else(|| all(d))).collect()
    }

    /// The dims that a use will have.
    fn target(&self, u: usize) -> Vec<usize> {
        let factors = &self.typing.factors;
        let size = |d: &Dim| self.resizing.positions(factors, d).map_or(factors.size(d), |p| p.len());
        self.typing.uses[u].dims.iter().map(size).collect()
    }

    /// A weight at random, as timm and DeiT draw what plays its part.
    fn draw(
        &self,
        u: usize,
        found: &WeightUse,
        shapes: &HashMap<usize, Vec<usize>>,
        shape: &[usize],
        random: &mut StdRng,
    ) -> Vec<f32> {
        let count = shape.iter().product();
        let convolution = found
            .meets
            .first()
            .map(|&(k, j)| (k, j))
            .filter(|(k, _)| matches!(self.typing.graph.node[*k].op_type(), "Conv" | "ConvTranspose"));
        match (found.kind, convolution) {
            // torch's own for convolutions, which timm leaves: evenly up to one over the root of the fan-in.
            (WeightKind::Contraction | WeightKind::Bias, Some((k, _))) => {
                let kernel = (0..self.typing.uses.len())
                    .find(|&v| self.typing.uses[v].node == k && self.typing.uses[v].input == 1)
                    .map(|v| shapes[&v].as_slice());
                let fan_in: usize = kernel.unwrap_or(shape).iter().skip(1).product();
                uniform(random, 1.0 / (fan_in.max(1) as f64).sqrt(), count)
            }
            (WeightKind::Contraction | WeightKind::Token | WeightKind::Position | WeightKind::HeadTable, _) => {
                truncated_normal(random, 0.02, count)
            }
            (WeightKind::NormScale, _) => vec![1.0; count],
            (WeightKind::NormBias | WeightKind::Bias, _) => vec![0.0; count],
            (WeightKind::LayerScale, _) => vec![layer_scale(self.kept.len()); count],
            // The variance and the mean of BatchNormalization.
            (WeightKind::Constant, _) => vec![(self.typing.uses[u].input == 4) as u8 as f32; count],
        }
    }
}

/// Where CaiT starts its layer scales, by depth (Touvron et al., 2103.17239).
fn layer_scale(depth: usize) -> f32 {
    match depth {
        0..=18 => 0.1,
        19..=24 => 1e-5,
        _ => 1e-6,
    }
}

/// Gathers along every axis.
fn pick(mut data: Vec<f32>, dims: &[usize], lists: Vec<Vec<usize>>) -> Vec<f32> {
    let mut shape = dims.to_vec();
    for (axis, list) in lists.into_iter().enumerate() {
        if list.len() == shape[axis] && list.iter().copied().eq(0..list.len()) {
            continue;
        }
        let mixture = list.iter().map(|&i| vec![(i, 1.0)]).collect();
        data = mix(&data, &shape, axis, &mixture);
        shape[axis] = list.len();
    }
    data
}

/// One layer of a stack of layers that is resampled to `of` layers of another shape. Axes are resampled one by one, so
/// the layers are mixed first.
fn frequency(tensors: &[Vec<f32>], dims: &[usize], of: usize, at: usize, shape: &[usize]) -> Vec<f32> {
    let layers = tensors.len();
    let mut mixed = vec![0f32; tensors.first().map_or(0, Vec::len)];
    for (l, tensor) in tensors.iter().enumerate() {
        let unit: Vec<f32> = (0..layers).map(|m| (m == l) as u8 as f32).collect();
        let share = resample(&unit, &[layers], &[of])[at];
        mixed.iter_mut().zip(tensor).for_each(|(m, w)| *m += share * w);
    }
    resample(&mixed, dims, shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_mixed_before_they_are_resampled() {
        let tensors: Vec<Vec<f32>> = (0..3).map(|l| (0..8).map(|i| ((l * 8 + i) as f32).sin()).collect()).collect();
        let whole = resample(&tensors.concat(), &[3, 2, 4], &[5, 2, 3]);
        for at in 0..5 {
            let one = frequency(&tensors, &[2, 4], 5, at, &[2, 3]);
            let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-5;
            assert!(one.iter().zip(&whole[at * 6..(at + 1) * 6]).all(close), "layer {at}");
        }
    }
}
