//! Stacks: layers that one residual stream passes, one after the other.
//!
//! A model may hold several: the towers of a picture and of a text, an encoder and a decoder, branches of two
//! resolutions. Which layers follow each other is read from the graph, going back from the value that enters each along
//! its residual stream to the sums of the layers before it.

use std::collections::{HashMap, HashSet};

use super::super::structure::{Attention, Stack};
use super::finder::BlockFinder;
use super::residual::is_skip_norm;
use crate::graph::{data_inputs, declared_dims, declared_type, is_integer, walk};
use crate::onnx::DataType;
use crate::onnx::proto::ValueInfoProto;

/// Names that say something else in `--layers`.
const RESERVED: [&str; 3] = ["first", "last", "even"];

/// What is met on the way back along a stream.
#[derive(Default)]
struct Origin<'m> {
    layers: Vec<usize>,
    inputs: HashSet<&'m str>,
}

/// The stacks of some layers, in order of their first layers.
pub(super) fn stacks(finder: &BlockFinder, layers: &[Attention]) -> Vec<Stack> {
    let mut made_by: HashMap<&str, usize> = HashMap::new();
    for (l, layer) in layers.iter().enumerate() {
        let sums = layer.residual_adds.iter().map(|(_, sum)| sum).chain(&layer.residual_out);
        made_by.extend(sums.map(|sum| (sum.as_str(), l)));
    }
    let mut stacks: Vec<Stack> = Vec::new();
    for (l, layer) in layers.iter().enumerate() {
        // Attentions side by side branch from the same value.
        let beside = |s: &&mut Stack| {
            s.layers.iter().any(|&m| layer.residual_in.is_some() && layers[m].residual_in == layer.residual_in)
        };
        if let Some(stack) = stacks.iter_mut().find(beside) {
            stack.layers.push(l);
            continue;
        }
        let origin = origin(finder, layer, &made_by);
        let mut before: Vec<usize> =
            (0..stacks.len()).filter(|&s| stacks[s].layers.iter().any(|m| origin.layers.contains(m))).collect();
        if before.len() > 1 {
            // Streams that meet in this one: it goes on with that of its own channels.
            let channels = |l: usize| finder.typing.factors.leaves(&layers[l].embedding);
            let own = |s: &usize| stacks[*s].layers.iter().any(|&m| channels(m) == channels(l));
            before.retain(own);
        }
        match before[..] {
            [s] => stacks[s].layers.push(l),
            _ => stacks.push(Stack { name: name(finder, &origin, &stacks), layers: vec![l] }),
        }
    }
    stacks
}

/// Goes back from what enters a layer to the layers before it. Of a sum of a value and what was made of it, the value
/// is the stream.
fn origin<'a>(finder: &'a BlockFinder, layer: &'a Attention, made_by: &HashMap<&str, usize>) -> Origin<'a> {
    let links = &finder.links;
    let computed = |x: &&str| !x.is_empty() && !finder.typing.is_constant(x);
    let back = |x: &'a str| -> Vec<&'a str> {
        let Some(k) = links.maker(x).filter(|_| !made_by.contains_key(x)) else { return Vec::new() };
        let operands: Vec<&str> = links.inputs(k).filter(computed).collect();
        let sums = matches!(finder.node(k).op_type(), "Add" | "Sum") || is_skip_norm(finder.node(k));
        let skip = operands.iter().filter(|_| sums).find(|skip| {
            let others = operands.iter().filter(|o| o != skip);
            others.filter_map(|o| links.maker(o)).any(|m| finder.is_made_from(m, skip))
        });
        skip.map_or_else(|| operands.clone(), |skip| vec![skip])
    };
    let start: Vec<&str> = match layer.residual_in.as_deref() {
        Some(enter) => vec![enter],
        None => links.inputs(layer.softmax.first().copied().unwrap_or(layer.projection)).collect(),
    };
    let mut found = Origin::default();
    for x in walk::search(start.into_iter().filter(computed), back) {
        if let Some(&l) = made_by.get(x) {
            found.layers.push(l);
        } else if links.maker(x).is_none() {
            found.inputs.insert(x);
        }
    }
    found
}

/// What a new stack is called.
fn name(finder: &BlockFinder, origin: &Origin, stacks: &[Stack]) -> String {
    let inputs: Vec<&ValueInfoProto> =
        data_inputs(finder.typing.graph).into_iter().filter(|v| origin.inputs.contains(v.name())).collect();
    let rank = |v: &ValueInfoProto| declared_dims(v).map_or(0, |d| d.len());
    let numbers =
        |v: &ValueInfoProto| declared_type(v).and_then(|t| DataType::try_from(t).ok()).is_some_and(is_integer);
    let plain = if !origin.layers.is_empty() {
        "joint".to_string()
    } else if inputs.iter().any(|v| rank(v) > 3) {
        "vision".to_string()
    } else if inputs.iter().any(|v| rank(v) <= 2 && numbers(v)) {
        "text".to_string()
    } else {
        inputs.first().map_or("queries", |v| v.name()).replace([':', ',', ' '], "_")
    };
    let is_free = |name: &String| {
        let reserved = RESERVED.contains(&name.as_str()) || name.parse::<usize>().is_ok();
        !reserved && stacks.iter().all(|s| s.name != *name)
    };
    let numbered = (2..).map(|n| format!("{plain}{n}"));
    std::iter::once(plain.clone()).chain(numbered).find(is_free).unwrap_or(plain)
}
