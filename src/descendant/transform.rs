//! Learnable transforms between a weight that layers share and the weight that each of them uses.
//!
//! A transform is a few standard operators that depend on initializers alone, so runtimes fold it when they load the
//! model, training differentiates it like anything else, and [`simplify`](super::simplify) writes its result out. At
//! the start it changes nothing.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::layers::LayerWeights;
use super::numbers::truncated_normal;
use crate::anatomy::{Anatomy, Roles, WeightKind, WeightUse, weight_uses};
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, int_attribute};
use crate::metadata::TRANSFORM_PREFIX;
use crate::onnx::{DataType, Model, data_type, tensor_from_f32, tensor_from_i64};

/// How a layer transforms a weight that it shares with others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum Transform {
    /// Not at all
    #[default]
    None,
    /// W' = (1 + a)(1 + r)^T * W + U V^T for a matrix, b' = (1 + s) * b + t for a bias
    Affine,
    /// The published perceptron, which maps every element of the shared weights to one element a layer
    Paper,
}

/// The rank of U V^T where none is given.
pub const DEFAULT_RANK: usize = 4;

/// A place where a layer uses a shared weight.
struct SharedUse {
    layer: usize,
    node: usize,
    input: usize,
    /// For a matrix, the axis that its contraction sums over; none for a bias.
    summed: Option<usize>,
}

/// Sites of each group: per part, one site a layer.
struct SharingLayers {
    layers: Vec<usize>,
    parts: Vec<Vec<SharedUse>>,
}

/// Gives the later layers of each group the contraction weights and biases of its first.
pub(super) fn share_layers(model: &mut Model, groups: &[Vec<usize>]) -> Result<()> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let uses = weight_uses(&typing);
    let weights = LayerWeights::new(&typing, &anatomy, &uses);
    let mut renamed = Vec::new();
    for group in groups {
        let [first, rest @ ..] = &group[..] else { continue };
        let parts = weights.parts(&typing, &uses, *first);
        for l in rest {
            if parts.is_empty() || weights.parts(&typing, &uses, *l) != parts {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("layers {first} and {l} of the descendant differ in form and cannot share weights"),
                )
                .hint("choose other ⟦layers⟧, or a ⟦share⟧ that ends where stages end"));
            }
            for (&u, &v) in weights.layers[*first].iter().zip(&weights.layers[*l]) {
                if matches!(uses[u].kind, WeightKind::Contraction | WeightKind::Bias) {
                    renamed.push((typing.uses[v].node, typing.uses[v].input, typing.uses[u].name.clone()));
                }
            }
        }
    }
    let graph = model.graph_mut();
    for (node, input, name) in renamed {
        graph.node[node].input[input] = name;
    }
    graph::sort(graph)?;
    graph::prune(graph);
    Ok(())
}

/// Puts transforms between the weights that the layers of a group share and their uses: those of whole layers, or of
/// FFNs alone.
pub(super) fn insert(
    model: &mut Model,
    groups: &[Vec<usize>],
    whole: bool,
    transform: Transform,
    rank: usize,
    seed: u64,
) -> Result<()> {
    if transform == Transform::None {
        return Ok(());
    }
    if rank == 0 || rank > 1 << 16 {
        return Err(Error::new(ErrorKind::Usage, format!("a transform of rank {rank} cannot be"))
            .hint("give ⟦transform-rank⟧ a small number such as 4"));
    }
    let (groups, shapes) = sites(model, groups, whole)?;
    let builder = Builder::new(model.graph(), model.opset(), TRANSFORM_PREFIX);
    let mut maker = TransformBuilder { builder, random: StdRng::seed_from_u64(seed) };
    let mut renamed = Vec::new();
    for (g, group) in groups.iter().enumerate() {
        let net = match transform {
            Transform::Paper => Some(maker.perceptron(g, group.layers.len())),
            _ => None,
        };
        for part in &group.parts {
            let mut outputs: Option<String> = None;
            for (t, site) in part.iter().enumerate() {
                let base = model.graph().node[site.node].input[site.input].clone();
                let (dims, kind) = &shapes[&base];
                let stem = format!("{TRANSFORM_PREFIX}layer{}/{base}", site.layer);
                let made = match &net {
                    None => maker.affine(&base, &stem, dims, *kind, site.summed, rank),
                    Some(net) => {
                        let all = outputs.get_or_insert_with(|| {
                            maker.apply(net, &base, &format!("{TRANSFORM_PREFIX}group{g}/{base}"), dims, *kind)
                        });
                        maker.component(all, t, &stem, dims.len())
                    }
                };
                renamed.push((site.node, site.input, made));
            }
        }
    }
    let graph = model.graph_mut();
    for (node, input, name) in renamed {
        graph.node[node].input[input] = name;
    }
    let after = std::mem::take(&mut graph.node);
    maker.builder.finish(graph);
    graph.node.extend(after);
    graph::sort(graph)
}

type Shapes = HashMap<String, (Vec<usize>, DataType)>;

/// Finds what each group shares, and the shape and type of every shared weight.
fn sites(model: &Model, groups: &[Vec<usize>], whole: bool) -> Result<(Vec<SharingLayers>, Shapes)> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let roles = Roles::new(&typing);
    let uses = weight_uses(&typing);
    let weights = LayerWeights::new(&typing, &anatomy, &uses);
    let (mut found, mut shapes) = (Vec::new(), HashMap::new());
    for group in groups {
        let lists: Vec<Vec<usize>> = group
            .iter()
            .map(|&l| match whole {
                true => weights.layers[l].clone(),
                false => roles.layer_ffn_uses(&anatomy.layers[l]),
            })
            .collect();
        let mut parts = Vec::new();
        for (i, &u) in lists[0].iter().enumerate() {
            let same: Option<Vec<usize>> = lists.iter().map(|l| l.get(i).copied()).collect();
            let Some(same) = same.filter(|s| s.iter().all(|&v| typing.uses[v].name == typing.uses[u].name)) else {
                continue;
            };
            let Some(summed) = form(&typing, &uses, u) else { continue };
            let tensor = typing.weights[typing.uses[u].name.as_str()];
            let dims = tensor.shape();
            shapes.insert(typing.uses[u].name.clone(), (dims, data_type(tensor).unwrap_or(DataType::Float)));
            let site = |(&layer, &v): (&usize, &usize)| SharedUse {
                layer,
                node: typing.uses[v].node,
                input: typing.uses[v].input,
                summed,
            };
            parts.push(group.iter().zip(&same).map(site).collect());
        }
        if parts.is_empty() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("layers {group:?} of the descendant share no matrix that could be transformed"),
            )
            .hint("leave out ⟦transform⟧"));
        }
        found.push(SharingLayers { layers: group.clone(), parts });
    }
    Ok((found, shapes))
}

/// `Some(Some(axis))` for a matrix whose contraction sums over an axis, `Some(None)` for a bias, `None` for everything
/// else.
fn form(typing: &Typing, uses: &[WeightUse], u: usize) -> Option<Option<usize>> {
    let dims = &typing.uses[u].dims;
    match uses[u].kind {
        WeightKind::Bias => Some(None),
        WeightKind::Contraction if dims.len() == 2 => {
            let &(node, _) = uses[u].meets.first()?;
            let summed = &typing.contractions.iter().find(|c| c.node == node)?.summed;
            let axes: Vec<usize> = (0..2).filter(|&a| typing.factors.meet(&dims[a], summed)).collect();
            let [axis] = axes[..] else { return None };
            Some(Some(axis))
        }
        _ => None,
    }
}

/// The initializers of a group's perceptron.
struct Perceptron {
    up: String,
    up_bias: String,
    down: String,
    down_bias: String,
}

struct TransformBuilder {
    builder: Builder,
    random: StdRng,
}

impl TransformBuilder {
    fn tensor(&mut self, stem: &str, kind: DataType, dims: &[usize], data: &[f32]) -> String {
        self.builder.tensor(tensor_from_f32(stem, kind, dims, data))
    }

    fn zeros(&mut self, stem: &str, kind: DataType, dims: &[usize]) -> String {
        self.tensor(stem, kind, dims, &vec![0.0; dims.iter().product()])
    }

    fn integers(&mut self, stem: &str, dims: &[usize], values: &[i64]) -> String {
        self.builder.tensor(tensor_from_i64(stem, dims, values))
    }

    fn apply_op(&mut self, op: &str, inputs: &[&str], stem: &str) -> String {
        self.builder.op_called(op, inputs, vec![], stem)
    }

    /// `value * (1 + parameter)`.
    fn scaled(&mut self, value: &str, parameter: &str, kind: DataType, stem: &str) -> String {
        let one = self.tensor(&format!("{parameter}/one"), kind, &[], &[1.0]);
        let factor = self.apply_op("Add", &[parameter, &one], &format!("{parameter}/factor"));
        self.apply_op("Mul", &[value, &factor], stem)
    }

    fn affine(
        &mut self,
        base: &str,
        stem: &str,
        dims: &[usize],
        kind: DataType,
        summed: Option<usize>,
        rank: usize,
    ) -> String {
        let Some(summed) = summed else {
            let (s, t) = (self.zeros(&format!("{stem}/s"), kind, dims), self.zeros(&format!("{stem}/t"), kind, dims));
            let scaled = self.scaled(base, &s, kind, &format!("{stem}/scaled"));
            return self.apply_op("Add", &[&scaled, &t], stem);
        };
        let made = 1 - summed;
        let along = |axis: usize| -> [usize; 2] { std::array::from_fn(|i| if i == axis { dims[axis] } else { 1 }) };
        let a = self.zeros(&format!("{stem}/a"), kind, &along(made));
        let r = self.zeros(&format!("{stem}/r"), kind, &along(summed));
        let rows = self.scaled(base, &a, kind, &format!("{stem}/rows"));
        let scaled = self.scaled(&rows, &r, kind, &format!("{stem}/scaled"));
        // U V^T, or V U^T where the matrix stands the other way round.
        let sides = |axis: usize| if axis == 0 { [dims[0], rank] } else { [rank, dims[1]] };
        let u = self.zeros(&format!("{stem}/u"), kind, &sides(made));
        let drawn = truncated_normal(&mut self.random, 0.02, dims[summed] * rank);
        let v = self.tensor(&format!("{stem}/v"), kind, &sides(summed), &drawn);
        let factors = if made == 0 { [u.as_str(), v.as_str()] } else { [v.as_str(), u.as_str()] };
        let low_rank = self.apply_op("MatMul", &factors, &format!("{stem}/low_rank"));
        self.apply_op("Add", &[&scaled, &low_rank], stem)
    }

    /// A perceptron from one number to one for each of n layers, g(x) = D relu(u x + c) + d, that starts as g(x) = (x,
    /// ..., x): x is relu(x) - relu(-x). Its other hidden units are drawn as torch draws them and pass nothing on yet.
    fn perceptron(&mut self, group: usize, n: usize) -> Perceptron {
        let stem = format!("{TRANSFORM_PREFIX}group{group}");
        let mut up: Vec<f32> = (0..n).map(|_| self.random.random_range(-1.0..=1.0f32)).collect();
        (up[0], up[1]) = (1.0, -1.0);
        let mut down = vec![0.0; n * n];
        for t in 0..n {
            (down[t], down[n + t]) = (1.0, -1.0);
        }
        let kind = DataType::Float;
        Perceptron {
            up: self.tensor(&format!("{stem}/up"), kind, &[1, n], &up),
            up_bias: self.zeros(&format!("{stem}/up_bias"), kind, &[n]),
            down: self.tensor(&format!("{stem}/down"), kind, &[n, n], &down),
            down_bias: self.zeros(&format!("{stem}/down_bias"), kind, &[n]),
        }
    }

    /// The perceptron on every element of a weight: [.., n].
    fn apply(&mut self, net: &Perceptron, base: &str, stem: &str, dims: &[usize], kind: DataType) -> String {
        let column: Vec<i64> = dims.iter().map(|&d| d as i64).chain([1]).collect();
        let shape = self.integers(&format!("{stem}/column"), &[column.len()], &column);
        let x = self.apply_op("Reshape", &[base, &shape], &format!("{stem}/elements"));
        let x = self.cast(&x, DataType::Float, kind, &format!("{stem}/float"));
        let hidden = self.apply_op("Mul", &[&x, &net.up], &format!("{stem}/up"));
        let hidden = self.apply_op("Add", &[&hidden, &net.up_bias], &format!("{stem}/hidden"));
        let hidden = self.apply_op("Relu", &[&hidden], &format!("{stem}/relu"));
        let y = self.apply_op("MatMul", &[&hidden, &net.down], &format!("{stem}/down"));
        let y = self.apply_op("Add", &[&y, &net.down_bias], &format!("{stem}/layers"));
        self.cast(&y, kind, DataType::Float, &format!("{stem}/cast"))
    }

    fn cast(&mut self, value: &str, to: DataType, from: DataType, stem: &str) -> String {
        if to == from {
            return value.to_string();
        }
        self.builder.op_called("Cast", &[value], vec![int_attribute("to", to as i64)], stem)
    }

    /// The weight of layer t of a group.
    fn component(&mut self, all: &str, t: usize, stem: &str, axis: usize) -> String {
        let index = self.integers(&format!("{stem}/index"), &[], &[t as i64]);
        self.builder.op_called("Gather", &[all, &index], vec![int_attribute("axis", axis as i64)], stem)
    }
}
