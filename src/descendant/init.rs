//! Initialisations: Cluster-Learngene and the methods that it is compared with.
//!
//! A descendant's shape is planned first; the weights of the resized graph are then written by the method that was chosen. What a
//! weight is for ([`WeightKind`]) decides how it is drawn; which weight of another layer plays its part ([`LayerWeights`])
//! decides what it is fitted to. Tensors that a method inherits as they are stay byte for byte.

use std::collections::HashMap;
use std::str::FromStr;

use rand::{SeedableRng, rngs::StdRng};
use rayon::prelude::*;
use serde::Serialize;

use super::layers::{LayerWeights, Part};
use super::numbers::{line, resample, select, truncated_normal, uniform};
use super::{Grower, Shape};
use crate::anatomy::{Anatomy, Stack, WeightKind, WeightUse, class_factors, weight_uses};
use crate::axes::{Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::{is_float, to_f32};

/// How the weights of a descendant come about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Centroids of clustered heads and shared FFNs (Wang et al., NeurIPS 2024)
    #[default]
    ClusterLearngene,
    /// Everything at random: matrices normal with deviation 0.02, as timm and DeiT
    FromScratch,
    /// The ancestor's weights; heads and neurons are cut from the end
    PretrainFinetune,
    /// The ancestor's last layers, on random lower ones (Wang et al., AAAI 2022)
    HeuristicLearngene,
    /// The ancestor's first layers, below random ones (Wang et al., 2305.02279)
    AutoLearngene,
    /// Consecutive layers share weights, each with transforms that start as identity (MiniViT, CVPR 2022)
    WeightTransformation,
    /// Evenly spaced elements of every tensor, a new classifier (Xu et al., 2311.18823)
    WeightSelection,
    /// A straight line over depth through the ancestor's layers (TLEG, AAAI 2024)
    LinearExpansion,
    /// The low frequencies of weights stacked over layers (FRONT, 2026)
    Frequency,
}

impl Init {
    /// The method's name on the command line.
    pub fn name(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default()
    }

    fn takes_inherit(self) -> bool {
        matches!(self, Init::PretrainFinetune | Init::HeuristicLearngene | Init::AutoLearngene)
    }

    fn takes_embedding(self) -> bool {
        matches!(self, Init::FromScratch | Init::WeightSelection)
    }

    /// True where layers may become wider than the ancestor's.
    fn widens(self) -> bool {
        matches!(self, Init::ClusterLearngene | Init::FromScratch | Init::Frequency)
    }
}

/// Which layers of a descendant inherit, where a method inherits only some of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Inherit {
    /// N layers, where the method says which.
    Count(usize),
    /// The first N.
    Front(usize),
    /// N in the middle.
    Middle(usize),
    /// The last N.
    Last(usize),
}

impl FromStr for Inherit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = || {
            Error::new(ErrorKind::Usage, format!("`{text}` is no choice of inherited layers"))
                .hint("write front:4, middle:4, last:4, or 4 where the method says which")
        };
        let number = |s: &str| s.trim().parse().map_err(|_| fail());
        Ok(match text.split_once(':') {
            Some(("front", n)) => Inherit::Front(number(n)?),
            Some(("middle", n)) => Inherit::Middle(number(n)?),
            Some(("last", n)) => Inherit::Last(number(n)?),
            Some(_) => return Err(fail()),
            None => Inherit::Count(number(text)?),
        })
    }
}

/// Where the weights of one layer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerSource {
    /// The ancestor's layer.
    Inherited,
    /// Drawn at random.
    Random,
    /// Computed from the ancestor's layers.
    Expanded,
    /// The weights of the first layer of its group, with transforms of its own.
    Shared,
}

/// Checks that what a shape asks for is something that its method defines.
pub(super) fn check(shape: &Shape, is_gene: bool) -> Result<()> {
    let init = shape.init;
    let usage = |what: String, hint: &str| Err(Error::new(ErrorKind::Usage, what).hint(hint));
    let name = init.name();
    if init != Init::ClusterLearngene && is_gene {
        return usage(
            format!("{name} needs more than a learngene holds, and the model is a learngene"),
            "give the ancestor",
        );
    }
    if shape.tied && init != Init::ClusterLearngene {
        return usage(format!("{name} has no learngene to tie weights to"), "leave out --tied");
    }
    if shape.inherit.is_some() && !init.takes_inherit() {
        return usage(
            format!("{name} does not inherit single layers"),
            "--inherit goes with pretrain-finetune, heuristic-learngene and auto-learngene",
        );
    }
    if !matches!(shape.inherit, None | Some(Inherit::Count(_))) && init != Init::PretrainFinetune {
        return usage(format!("{name} says itself which layers are inherited"), "give --inherit a number alone");
    }
    if shape.embedding_dim.is_some() && !init.takes_embedding() {
        return usage(
            format!("{name} does not define another embedding dimension"),
            "--embedding-dim goes with weight-selection and from-scratch",
        );
    }
    if shape.share.is_some() && init != Init::WeightTransformation {
        return usage(format!("{name} shares no consecutive layers"), "--share goes with weight-transformation");
    }
    let transforms = shape.transform.is_some_and(|t| t != super::Transform::None);
    if transforms && !matches!(init, Init::ClusterLearngene | Init::WeightTransformation) {
        return usage(
            format!("{name} shares no weights that could be transformed"),
            "--transform goes with cluster-learngene and weight-transformation",
        );
    }
    if shape.share == Some(0) || shape.share == Some(1) {
        return usage("layers are shared by two or more".into(), "give --share 2 or more");
    }
    Ok(())
}

/// The layers of an ancestor of these stacks that a descendant is built from, and where the weights of each come from.
pub(super) fn layers(shape: &Shape, stacks: &[Stack]) -> Result<(Vec<usize>, Vec<LayerSource>)> {
    use super::Layers;
    let count: usize = stacks.iter().map(|s| s.layers.len()).sum();
    let kept = shape
        .layers
        .choose(stacks)
        .map_err(|e| e.hint("layers can only be dropped: choose among the ancestor's with --layers"))?;
    let n = kept.len();
    let sources = |range: std::ops::Range<usize>| {
        (0..n)
            .map(|i| if range.contains(&i) { LayerSource::Inherited } else { LayerSource::Random })
            .collect::<Vec<_>>()
    };
    let enough = |m: usize| match m {
        0 => Err(Error::new(ErrorKind::Usage, "--inherit 0 inherits nothing").hint("use --init from-scratch")),
        m if m > n => {
            Err(Error::new(ErrorKind::Usage, format!("{m} layers cannot be inherited: the descendant has {n}"))
                .hint("give --layers more or --inherit less"))
        }
        m => Ok(m),
    };
    // Heuristic-Learngene and Auto-Learngene say which layers are inherited: the descendant stands at that end of the ancestor.
    let published = (count / 2).clamp(1, n);
    let named = |end: Vec<usize>| match shape.layers {
        Layers::List(_) | Layers::Even(_) | Layers::Stacks(_) => {
            Err(Error::new(ErrorKind::Usage, format!("{} says itself which layers are inherited", shape.init.name()))
                .hint("give --layers a number alone"))
        }
        _ => Ok(end),
    };
    Ok(match (shape.init, shape.inherit) {
        (Init::PretrainFinetune, Some(choice)) => {
            let range = match choice {
                Inherit::Front(m) => 0..enough(m)?,
                Inherit::Middle(m) => {
                    let first = (n - enough(m)?) / 2;
                    first..first + m
                }
                Inherit::Last(m) => n - enough(m)?..n,
                Inherit::Count(_) => {
                    return Err(Error::new(
                        ErrorKind::Usage,
                        "pretrain-finetune does not say which layers are inherited",
                    )
                    .hint("write --inherit front:N, middle:N or last:N"));
                }
            };
            (kept, sources(range))
        }
        (Init::HeuristicLearngene, choice) => {
            let m = match choice {
                Some(Inherit::Count(m)) => enough(m)?,
                _ => published,
            };
            (named((count - n..count).collect())?, sources(n - m..n))
        }
        (Init::AutoLearngene, choice) => {
            let m = match choice {
                Some(Inherit::Count(m)) => enough(m)?,
                _ => published,
            };
            (named((0..n).collect())?, sources(0..m))
        }
        (Init::FromScratch, _) => (kept, vec![LayerSource::Random; n]),
        (Init::LinearExpansion | Init::Frequency, _) => (kept, vec![LayerSource::Expanded; n]),
        (Init::WeightTransformation, _) => {
            let size = shape.share.unwrap_or(2);
            let source = |i: usize| if i.is_multiple_of(size) { LayerSource::Inherited } else { LayerSource::Shared };
            (kept, (0..n).map(source).collect())
        }
        _ => (kept, vec![LayerSource::Inherited; n]),
    })
}

/// The ancestor's own weights, layer by layer, for the methods that look across layers.
pub(super) struct Ancestor<'a, 'm> {
    typing: &'a Typing<'m>,
    weights: LayerWeights,
    parts: Vec<Vec<Part>>,
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

impl Grower<'_, '_> {
    /// Heads of a layer by the rule of any method but Cluster-Learngene. Returns the ancestor's head in each slot.
    pub(super) fn plain_heads(&mut self, i: usize, count: usize) -> Result<Vec<usize>> {
        let layer = &self.anatomy.layers[i];
        let heads = layer.head_count(self.typing);
        let slots = self.indices(heads, count, "heads")?;
        for factor in layer.head_factors(self.typing).into_iter().filter(|_| count != heads) {
            self.resizing.gather(&self.typing.factors, factor, slots.clone()).map_err(|e| {
                e.hint(format!(
                    "layer {} shares its head axis with another layer: give both the same heads",
                    self.kept[i]
                ))
            })?;
        }
        // Weight selection takes elements across the borders of heads.
        let whole = count == heads || self.shape.init != Init::WeightSelection;
        Ok(if whole && self.sources[i] == LayerSource::Inherited { slots } else { Vec::new() })
    }

    /// Neurons of an FFN by the rule of any method but Cluster-Learngene. Returns the ancestor's neuron in each place.
    pub(super) fn plain_neurons(&mut self, factor: Factor, wanted: usize) -> Result<Vec<usize>> {
        let width = self.typing.factors.factor_size(factor);
        let neurons = self.indices(width, wanted, "FFN neurons")?;
        self.resizing.gather(&self.typing.factors, factor, neurons.clone())?;
        Ok(neurons)
    }

    fn indices(&self, have: usize, wanted: usize, what: &str) -> Result<Vec<usize>> {
        let init = self.shape.init;
        if wanted > have && !init.widens() {
            return Err(Error::new(ErrorKind::Usage, format!("{} cannot make {wanted} {what} of {have}", init.name()))
                .hint("ask for fewer, or use cluster-learngene, frequency or from-scratch"));
        }
        Ok(match init {
            Init::WeightSelection => select(have, wanted),
            _ => (0..wanted).map(|n| n % have).collect(),
        })
    }

    /// Plans another embedding dimension: the residual stream's factor is resized like any other.
    pub(super) fn embedding(&mut self, wanted: usize) -> Result<()> {
        let factors = &self.typing.factors;
        let mut found: Vec<Factor> = self.anatomy.layers.iter().flat_map(|l| factors.leaves(&l.embedding)).collect();
        found.sort_unstable();
        found.dedup();
        let unsupported = |what: &str| {
            Err(Error::new(ErrorKind::Unsupported, format!("the embedding dimension cannot be changed: {what}"))
                .hint("leave out --embedding-dim"))
        };
        let [factor] = found[..] else {
            return unsupported("the layers do not have one embedding axis in common");
        };
        let inside = self
            .anatomy
            .layers
            .iter()
            .any(|l| factors.meet(&[factor], &l.heads) || factors.meet(&[factor], &l.head_dim));
        if inside {
            return unsupported("the heads' own axes are part of it");
        }
        let old = factors.factor_size(factor);
        if wanted == 0 || wanted > 1 << 20 {
            return Err(Error::new(ErrorKind::Usage, format!("an embedding dimension of {wanted} cannot be"))
                .hint("give --embedding-dim a number such as 192"));
        }
        if wanted == old {
            return Ok(());
        }
        let indices = self.indices(old, wanted, "embedding channels")?;
        self.resizing.gather(factors, factor, indices)?;
        let uses = weight_uses(self.typing);
        let norms = (0..uses.len())
            .filter(|&u| uses[u].kind == WeightKind::NormScale)
            .filter(|&u| self.typing.uses[u].dims.iter().any(|d| factors.leaves(d).contains(&factor)))
            .count();
        let consequence = match self.shape.init {
            Init::WeightSelection => {
                ": the inherited weights see other inputs than in the ancestor and have to be trained"
            }
            _ => "",
        };
        self.warnings.push(format!(
            "{norms} norms take their statistics over {wanted} channels and not over {old}{consequence}"
        ));
        Ok(())
    }

    /// Writes the weights by the method that was chosen, for the sizes that are planned.
    pub(super) fn initialise(&mut self, ancestor: &Ancestor) -> Result<()> {
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
                .hint("use --init pretrain-finetune or weight-selection, which take layers as they are"));
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
        for (u, elements) in made.into_iter().flatten() {
            self.resizing.replace(u, elements);
        }
        Ok(())
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
    fn source(&self, u: usize) -> (&crate::onnx::proto::TensorProto, Vec<usize>) {
        let tensor = self.typing.weights[self.typing.uses[u].name.as_str()];
        (tensor, tensor.shape())
    }

    /// The elements that resizing keeps along each axis of a use.
    fn lists(&self, u: usize) -> Vec<Vec<usize>> {
        let of_use = &self.typing.uses[u];
        let factors = &self.typing.factors;
        let all = |d: &crate::axes::Dim| (0..factors.size(d)).collect();
        of_use.dims.iter().map(|d| self.resizing.positions(factors, d).unwrap_or_else(|| all(d))).collect()
    }

    /// The dims that a use will have.
    fn target(&self, u: usize) -> Vec<usize> {
        let factors = &self.typing.factors;
        let size = |d: &crate::axes::Dim| self.resizing.positions(factors, d).map_or(factors.size(d), |p| p.len());
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
        data = crate::axes::resize::mix(&data, &shape, axis, &mixture);
        shape[axis] = list.len();
    }
    data
}

/// One layer of a stack of layers that is resampled to `of` layers of another shape. Axes are resampled one by one, so the
/// layers are mixed first.
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
    use super::super::Layers;
    use super::*;

    #[test]
    fn inherited_layers_are_parsed() {
        let parse = |s: &str| s.parse::<Inherit>().ok();
        assert_eq!(parse("front:3"), Some(Inherit::Front(3)));
        assert_eq!(parse("middle: 2"), Some(Inherit::Middle(2)));
        assert_eq!(parse("last:1"), Some(Inherit::Last(1)));
        assert_eq!(parse("4"), Some(Inherit::Count(4)));
        for bad in ["top:3", "first", "front:", "-1", ""] {
            assert!(bad.parse::<Inherit>().unwrap_err().hint_text().is_some(), "{bad}");
        }
    }

    #[test]
    fn methods_say_which_layers_inherit() {
        let of = |init, inherit, n| {
            let shape = Shape { init, inherit, layers: Layers::First(n), ..Shape::default() };
            let stack = Stack { name: "vision".into(), layers: (0..12).collect() };
            let (kept, sources) = layers(&shape, &[stack]).unwrap();
            let inherited = |i: &usize| sources[*i] == LayerSource::Inherited;
            (kept.clone(), (0..n).filter(inherited).map(|i| kept[i]).collect::<Vec<_>>())
        };
        // The published settings: the last or first six of twelve layers.
        assert_eq!(of(Init::HeuristicLearngene, None, 8), ((4..12).collect(), (6..12).collect()));
        assert_eq!(of(Init::AutoLearngene, None, 8), ((0..8).collect(), (0..6).collect()));
        assert_eq!(of(Init::HeuristicLearngene, None, 4).1, [8, 9, 10, 11]);
        let ten = |choice| of(Init::PretrainFinetune, Some(choice), 12).1;
        assert_eq!(ten(Inherit::Front(10)), (0..10).collect::<Vec<_>>());
        assert_eq!(ten(Inherit::Middle(10)), (1..11).collect::<Vec<_>>());
        assert_eq!(ten(Inherit::Last(10)), (2..12).collect::<Vec<_>>());
    }

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
