//! Masks that hide nothing. An exporter that knows the size of the image writes them out, with one number in every
//! place; at any other size the number is the same.

use ndarray::{ArrayD, IxDyn};

use crate::axes::arithmetic::{ConstValue, broadcast_shape};
use crate::axes::{Assumption, Dim, Typing};
use crate::error::Result;
use crate::graph::{self, Names, element_types};
use crate::onnx::Model;
use crate::ops::{self, ShapeRule};

/// The model with a number in the place of every known value that is the same everywhere and meets data of the same
/// shape.
///
/// # Errors
/// Those of the typing.
pub(super) fn with_numbers(model: &Model, typing: &Typing) -> Result<Option<Model>> {
    let found = places(typing);
    if found.is_empty() {
        return Ok(None);
    }
    // Whatever depends on the batch is none.
    let other = Assumption { batch: typing.assumption.batch + 1, ..typing.assumption.clone() };
    let other = Typing::with(model, other)?;
    let others = places(&other);
    let types = element_types(model.graph());
    let mut out = model.clone();
    let mut names = Names::new(out.graph());
    let (graph, mut changed) = (out.graph_mut(), false);
    for (k, j, known) in found {
        let same = others.iter().any(|(l, i, o)| (*l, *i) == (k, j) && o.data.first() == known.data.first());
        let value = graph.node[k].input[j].clone();
        let (Some(&kind), Some(&number), true) = (types.get(value.as_str()), known.data.first(), same) else {
            continue;
        };
        let number = ConstValue { number: known.number, data: ArrayD::from_elem(IxDyn(&[]), number) };
        let name = names.fresh(&format!("{value}/everywhere"));
        let Some(tensor) = number.tensor(&name, kind) else { continue };
        graph.initializer.push(tensor);
        graph.node[k].input[j] = name;
        changed = true;
    }
    graph::prune(graph);
    Ok(changed.then_some(out))
}

/// Nodes and their inputs that are the same number everywhere, where what they are broadcast with has the shape of the
/// result.
fn places<'t>(typing: &'t Typing) -> Vec<(usize, usize, &'t ConstValue)> {
    let mut found = Vec::new();
    for (k, node) in typing.graph.node.iter().enumerate() {
        let Some(output) = node.output.first() else { continue };
        if ops::of(node).shape != ShapeRule::Broadcast || typing.known.contains_key(output.as_str()) {
            continue;
        }
        let shape = |x: &String| typing.shape(x);
        for (j, x) in node.input.iter().enumerate() {
            let Some(known) = typing.known.get(x.as_str()).filter(|_| !typing.fed().contains(x.as_str())) else {
                continue;
            };
            let rest = node.input.iter().enumerate().filter(|(i, _)| *i != j);
            let met = rest.map(|(_, x)| shape(x)).try_fold(Vec::new(), |met, s| broadcast_shape(&met, &s?));
            let uniform = known.data.len() > 1 && known.data.iter().all(|v| Some(v) == known.data.first());
            if uniform && met.is_some() && met == shape(output) && is_stored(typing, x) {
                found.push((k, j, known));
            }
        }
    }
    found
}

/// True for what is made from stored numbers and the batch alone: what is computed from the size of the image, or
/// counted, may be the same everywhere by chance.
fn is_stored<'m>(typing: &Typing<'m>, value: &'m str) -> bool {
    let counts = |k: usize| typing.graph.node[k].op_type() == "Range";
    let batch = typing.batch.map(|b| typing.factors.leaves(&[b])).unwrap_or_default();
    let is_batch = |dim: Dim| typing.factors.leaves(&dim).iter().all(|f| batch.contains(f));
    !typing.links().upstream([value]).nodes().any(counts) && typing.sizes_behind(value).into_iter().all(is_batch)
}
