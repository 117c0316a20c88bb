//! Activation recomputation (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): of a layer only the
//! value that enters it is kept for the backward pass, which computes the others once more.
//!
//! A runtime would merge what is computed twice, or compute it at once and keep it; and it may follow the gradient
//! through all layers before it turns to the gradients of weights, which read the values. So what enters a layer for
//! the second time is made to wait for the gradient that reaches the layer and for the gradients of all weights above
//! it: a zero that is made from one element of each is added.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::axes::Typing;
use crate::graph::{Builder, Links, element_types, int_attribute};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::ops::{self, Mark};

/// Computes the values inside of layers again where the backward nodes of a graph with gradients read them. `typing` is
/// that of the forward graph, `layers` are pairs of the value that enters a layer and the one that leaves it.
pub(super) fn recompute(graph: &mut GraphProto, typing: &Typing, layers: &[(String, String)]) {
    if layers.is_empty() {
        return;
    }
    let known: HashSet<&str> = typing.graph.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let is_forward = |n: &NodeProto| n.output.iter().any(|o| known.contains(o.as_str()));
    let (forward, mut backward): (Vec<NodeProto>, Vec<NodeProto>) = graph.node.iter().cloned().partition(is_forward);
    let types: HashMap<String, i32> =
        element_types(graph).into_iter().map(|(name, kind)| (name.to_string(), kind as i32)).collect();
    let mut awaited: HashSet<String> = HashSet::new();
    for (enter, leave) in layers.iter().rev() {
        let layer = inside(&forward, enter, leave);
        let made: HashSet<&str> = layer.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        let made_here = |x: &String| x != leave && made.contains(x.as_str());
        let Some(Meeting { gradient, at, early, finished }) = meeting(&backward, made_here) else { continue };

        let mut b = Builder::new(graph, typing.opset, "again");
        let kind = types.get(enter.as_str());
        let all = b.ints(&[-1]);
        let mut elements = Vec::new();
        for value in finished.into_iter().filter(|v| awaited.insert(v.clone())).chain([gradient]) {
            let flat = b.op("Reshape", &[&value, &all]);
            let one = b.slice(&flat, 0, 0, 1);
            // Of the element type of what enters.
            elements.push(match kind.filter(|k| types.get(&value) != Some(k)) {
                Some(kind) => b.op_with("Cast", &[&one], vec![int_attribute("to", i64::from(*kind))]),
                None => one,
            });
        }
        let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
        let sum = b.op("Sum", &elements);
        let zero = b.op("Sub", &[&sum, &sum]);
        let again = b.op("Add", &[enter, &zero]);

        // What the backward nodes read, and what that is made from.
        let mut wanted: HashSet<&str> = HashSet::new();
        wanted.extend(backward.iter().flat_map(|n| &n.input).filter(|x| made_here(x)).map(String::as_str));
        for node in layer.iter().rev().filter(|n| !n.output.contains(leave)) {
            if node.output.iter().any(|o| wanted.contains(o.as_str())) {
                wanted.extend(node.input.iter().filter(|x| made_here(x)).map(String::as_str));
            }
        }
        let mut renamed: HashMap<String, String> = HashMap::from([(enter.clone(), again)]);
        for node in layer.iter().filter(|n| n.output.iter().any(|o| wanted.contains(o.as_str()))) {
            let mut node = (*node).clone();
            node.name = None;
            node.input.iter_mut().for_each(|x| follow(&renamed, x));
            for o in node.output.iter_mut().filter(|o| !o.is_empty()) {
                let name = b.names.fresh(&format!("again_{o}"));
                renamed.insert(std::mem::replace(o, name.clone()), name);
            }
            b.nodes.push(node);
        }
        renamed.remove(enter);
        backward.iter_mut().flat_map(|n| &mut n.input).for_each(|x| follow(&renamed, x));
        graph.initializer.extend(b.initializers);
        graph.node.extend(b.nodes.iter().cloned());
        let late = backward.split_off(at);
        let (mut above, mut waiting) = (Vec::new(), Vec::new());
        for (k, node) in backward.into_iter().enumerate() {
            if early.contains(&k) { waiting.push(node) } else { above.push(node) }
        }
        backward = [above, b.nodes, waiting, late].concat();
    }
    graph.node = forward.into_iter().chain(backward).collect();
}

fn follow(renamed: &HashMap<String, String>, value: &mut String) {
    if let Some(name) = renamed.get(value) {
        value.clone_from(name);
    }
}

/// The nodes on the way from one value to another, in order.
pub(super) fn inside<'g>(forward: &'g [NodeProto], enter: &str, leave: &str) -> Vec<&'g NodeProto> {
    let links = Links::of(forward);
    // What differs from one run to the next is kept.
    let repeats = |k: usize| !ops::of(&forward[k]).is(Mark::Random) && forward[k].op_type() != "Dropout";
    let behind: HashSet<usize> = links.downstream([enter]).through(repeats).collect();
    let is_behind = |x: &str| links.maker(x).is_some_and(|k| behind.contains(&k));
    let inside: BTreeSet<usize> = links.upstream([leave]).along(is_behind).nodes().collect();
    inside.into_iter().map(|k| &forward[k]).collect()
}

/// Where the backward pass reaches a layer.
struct Meeting {
    /// The gradient that comes from above.
    gradient: String,
    /// The node where it first meets values of the layer.
    at: usize,
    /// Nodes before that one which read values of the layer alone.
    early: HashSet<usize>,
    /// What was made before it and is read by no other node of the backward pass: gradients of weights.
    finished: Vec<String>,
}

fn meeting(backward: &[NodeProto], made_here: impl Fn(&String) -> bool) -> Option<Meeting> {
    let mut above: HashSet<&str> = HashSet::new();
    let mut behind: HashSet<&str> = HashSet::new();
    let mut early = HashSet::new();
    let read: HashSet<&str> = backward.iter().flat_map(|n| &n.input).map(String::as_str).collect();
    let mut finished = Vec::new();
    for (at, node) in backward.iter().enumerate() {
        if node.input.iter().any(|x| made_here(x) || behind.contains(x.as_str())) {
            if let Some(gradient) = node.input.iter().find(|x| above.contains(x.as_str())) {
                return Some(Meeting { gradient: gradient.clone(), at, early, finished });
            }
            early.insert(at);
            behind.extend(node.output.iter().map(String::as_str));
        } else {
            above.extend(node.output.iter().map(String::as_str));
            finished.extend(node.output.iter().filter(|o| !o.is_empty() && !read.contains(o.as_str())).cloned());
        }
    }
    None
}
