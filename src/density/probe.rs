//! Measures of attention probabilities, appended to the graph that computes them.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

use crate::anatomy::{Anatomy, TokenPositions, score_axes};
use crate::axes::{Dim, Factor, Typing};
use crate::error::Result;
use crate::graph::{self, Builder, int_attribute, ints_attribute};
use crate::onnx::proto::GraphProto;
use crate::onnx::{DataType, Model, tensor_info};
use crate::runtime::decompose_attention;

/// Attention probabilities [.., queries, keys] in a graph.
pub(super) struct Map {
    pub value: String,
    pub dims: Vec<Dim>,
    /// The factors of its heads, and how many heads they are.
    heads: Dim,
    count: usize,
}

/// The model with one output [images, heads, ..] for each of some layers: what `measure` makes of its attention
/// probabilities, averaged over the maps that share one projection. `tails` are the sizes of the axes behind the heads,
/// by layer.
pub(super) fn attach(
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    layers: &[usize],
    tails: &[[usize; 2]],
    measure: impl Fn(&mut Probe, usize, &Map) -> Result<String>,
) -> Result<Model> {
    let of_layers = || layers.iter().map(|&l| (l, &anatomy.layers[l]));
    let attentions = Attentions::new(typing, anatomy, layers)?;
    let graph = attentions.graph.clone();
    let mut probe = Probe { typing, builder: Builder::new(&graph, typing.opset, "density") };
    let mut outputs = Vec::new();
    for (l, layer) in of_layers() {
        if layer.is_linear() {
            bail!(Anatomy, "the attention of layer {l} is linear: no query has a map of its own");
        }
        let (count, separate) = (layer.head_count(typing), layer.has_separate_heads(typing));
        let heads: Dim = layer.heads.iter().chain(layer.head_mixers.iter().flat_map(|m| &m.heads)).copied().collect();
        let mut measures = Vec::new();
        for &k in &layer.softmax {
            let (value, dims) = attentions.probabilities(k);
            let order = match typing.fused.contains_key(&k) {
                true => None,
                false => score_axes(typing, &typing.graph.node[k], &dims),
            };
            let (value, dims) = match order {
                Some((front, last)) => probe.in_order(value, &dims, &[front, last.to_vec()].concat()),
                None => (value, dims),
            };
            let count = if separate { 1 } else { count };
            measures.push(measure(&mut probe, l, &Map { value, dims, heads: heads.clone(), count })?);
        }
        if separate {
            let refs: Vec<&str> = measures.iter().map(String::as_str).collect();
            measures = vec![probe.op_with("Concat", &refs, vec![int_attribute("axis", 1)])];
        }
        let share = probe.scalar(1.0 / measures.len() as f32);
        let sum = match &measures[..] {
            [one] => one.clone(),
            _ => {
                let refs: Vec<&str> = measures.iter().map(String::as_str).collect();
                probe.op("Sum", &refs)
            }
        };
        let name = probe.op_called("Mul", &[&sum, &share], vec![], &format!("density_{l}"));
        let tail = tails.get(outputs.len()).map_or(&[][..], |t| t);
        let dims: Vec<Option<usize>> = [None, Some(count)].into_iter().chain(tail.iter().copied().map(Some)).collect();
        outputs.push(tensor_info(name, DataType::Float, &dims));
    }
    let mut out = model.clone();
    let target = out.graph_mut();
    *target = graph;
    probe.builder.finish(target);
    target.output = outputs;
    graph::prune(target);
    Ok(out)
}

/// The probabilities of some attentions, as values of a graph in which fused attention is taken apart.
pub(super) struct Attentions<'t, 'm> {
    typing: &'t Typing<'m>,
    pub graph: GraphProto,
    taken_apart: HashMap<usize, String>,
}

impl<'t, 'm> Attentions<'t, 'm> {
    pub fn new(typing: &'t Typing<'m>, anatomy: &Anatomy, layers: &[usize]) -> Result<Self> {
        let softmax = layers.iter().filter_map(|&l| anatomy.layers.get(l)).flat_map(|l| l.softmax.iter().copied());
        let fused: Vec<usize> = softmax.filter(|k| typing.fused.contains_key(k)).collect();
        if fused.is_empty() {
            return Ok(Attentions { typing, graph: typing.graph.clone(), taken_apart: HashMap::new() });
        }
        let decomposed = decompose_attention(typing, &fused)?;
        Ok(Attentions { typing, graph: decomposed.graph, taken_apart: decomposed.probabilities })
    }

    /// The value and its dims, of which the last two are queries and keys, of the attention whose softmax is node `k`.
    pub fn probabilities(&self, k: usize) -> (String, Vec<Dim>) {
        match self.typing.fused.get(&k) {
            Some(f) => (
                self.taken_apart.get(&k).cloned().unwrap_or_default(),
                vec![f.batch.clone(), f.heads.clone(), f.queries.clone(), f.keys.clone()],
            ),
            None => {
                let value = self.typing.graph.node[k].output[0].clone();
                let dims = self.typing.dims.get(value.as_str()).cloned().unwrap_or_default();
                (value, dims)
            }
        }
    }
}

/// Writes the nodes that measure probabilities.
pub(super) struct Probe<'t, 'm> {
    typing: &'t Typing<'m>,
    builder: Builder,
}

impl Deref for Probe<'_, '_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        &self.builder
    }
}

impl DerefMut for Probe<'_, '_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.builder
    }
}

impl Probe<'_, '_> {
    /// A value with its axes in another order.
    fn in_order(&mut self, value: String, dims: &[Dim], order: &[usize]) -> (String, Vec<Dim>) {
        if order.is_sorted() {
            return (value, dims.to_vec());
        }
        let perm: Vec<i64> = order.iter().map(|&a| a as i64).collect();
        let turned = self.op_with("Transpose", &[&value], vec![ints_attribute("perm", &perm)]);
        (turned, order.iter().map(|&a| dims[a].clone()).collect())
    }

    /// Probabilities to [samples, heads] distances. `counted` is a value that has ones for tokens that count, [samples,
    /// tokens], and how many tokens there are.
    pub fn distance(&mut self, map: &Map, places: &[TokenPositions; 2], counted: Option<(&str, usize)>) -> String {
        let table = distances(&places[0], &places[1], counted.is_none());
        let (queries, keys) = (places[0].positions.len(), places[1].positions.len());
        let table = self.floats(&[queries, keys], &table);
        let rank = map.dims.len();
        let float = self.op_with("Cast", &[&map.value], vec![int_attribute("to", DataType::Float as i64)]);
        let weighted = self.op("Mul", &[&float, &table]);
        let Some((counted, tokens)) = counted else {
            let x = self.reduce("ReduceSum", &weighted, &[rank - 2, rank - 1], false);
            return self.by_head(x, map, &[]);
        };
        let x = self.by_head(weighted, map, &[queries, keys]);
        let column = self.ints(&[-1, 1, tokens as i64, 1]);
        let column = self.op("Reshape", &[counted, &column]);
        let by_query = self.op("MatMul", &[&x, &column]);
        // Chosen, not multiplied: what padding attends to may be no number.
        let zero = self.scalar(0.0);
        let counts = self.op("Greater", &[&column, &zero]);
        let chosen = self.op("Where", &[&counts, &by_query, &zero]);
        let sum = self.reduce("ReduceSum", &chosen, &[2, 3], false);
        let one = self.scalar(1.0);
        let number = self.reduce("ReduceSum", counted, &[1], true);
        let number = self.op("Max", &[&number, &one]);
        self.op("Div", &[&sum, &number])
    }

    /// What stands by the leading axes of a map, and some axes of its own (`tail`), as [images, heads, tail..]; windows
    /// and all else are averaged.
    pub fn by_head(&mut self, mut x: String, map: &Map, tail: &[usize]) -> String {
        let factors = &self.typing.factors;
        let front: Vec<Factor> = map.dims[..map.dims.len() - 2].iter().flat_map(|d| factors.leaves(d)).collect();
        let batch = self.typing.batch.map(|b| factors.leaves(&[b])).unwrap_or_default();
        let is_batch: Vec<bool> = front.iter().map(|f| batch.contains(f)).collect();
        let head_leaves = factors.leaves(&map.heads);
        let is_head: Vec<bool> = front.iter().map(|f| head_leaves.contains(f)).collect();
        // The batch of the probe need not be the assumed one: its place in the Reshape is open.
        let mut shape: Vec<i64> =
            front.iter().zip(&is_batch).map(|(&f, &b)| if b { -1 } else { factors.factor_size(f) as i64 }).collect();
        let several = is_batch.iter().filter(|b| **b).count() > 1;
        let tail = tail.iter().map(|&n| n as i64);
        if !front.is_empty() && !several {
            if !is_batch.contains(&true) {
                shape.insert(0, 1);
            }
            let offset = shape.len() - front.len();
            shape.extend(tail.clone());
            let shape = self.ints(&shape);
            x = self.op("Reshape", &[&x, &shape]);
            let others: Vec<usize> =
                (0..front.len()).filter(|&i| !is_batch[i] && !is_head[i]).map(|i| i + offset).collect();
            if !others.is_empty() {
                x = self.reduce("ReduceMean", &x, &others, false);
            }
            let first_head = is_head.iter().position(|h| *h);
            let first_batch = is_batch.iter().position(|b| *b);
            if let (Some(h), Some(b)) = (first_head, first_batch)
                && h < b
            {
                let heads = is_head.iter().filter(|h| **h).count() as i64;
                let behind = heads + 1..heads + 1 + tail.len() as i64;
                let perm: Vec<i64> = std::iter::once(heads).chain(0..heads).chain(behind).collect();
                x = self.op_with("Transpose", &[&x], vec![ints_attribute("perm", &perm)]);
            }
        }
        let shape: Vec<i64> = [-1, map.count as i64].into_iter().chain(tail).collect();
        let shape = self.ints(&shape);
        self.op("Reshape", &[&x, &shape])
    }
}

/// Distances between queries and keys in pixels, or in tokens of a sequence, divided by the number of queries that have
/// a place where it is their mean; zero for tokens that have none. As [queries x keys].
fn distances(queries: &TokenPositions, keys: &TokenPositions, mean: bool) -> Vec<f32> {
    let patches = if mean { queries.positions.iter().flatten().count().max(1) as f64 } else { 1.0 };
    // Where keys are coarser than queries, the centres of patches count.
    let half = |t: &TokenPositions| t.stride().map(|s| [s[0] / 2.0, s[1] / 2.0]).unwrap_or_default();
    let (hq, hk) = (half(queries), half(keys));
    let mut table = Vec::with_capacity(queries.positions.len() * keys.positions.len());
    for q in &queries.positions {
        for k in &keys.positions {
            table.push(match (q, k) {
                (Some(q), Some(k)) => {
                    let (y, x) = (q.0 + hq[0] - k.0 - hk[0], q.1 + hq[1] - k.1 - hk[1]);
                    (y.hypot(x) / patches) as f32
                }
                _ => 0.0,
            });
        }
    }
    table
}
