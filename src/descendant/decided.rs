//! Choices that constants decide: what a condition of nothing but true, or nothing but false, chooses takes the place
//! of the choice.
//!
//! Masks that hide nothing leave such conditions behind. Some engines know no boolean tensors.

use crate::graph::{self, is_standard};
use crate::onnx::proto::{GraphProto, NodeProto};

/// What is left of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// This input.
    Is(usize),
    /// The node without this input.
    Without(usize),
}

/// The inputs of nodes that may decide what these make: nodes and inputs.
pub(super) fn conditions(graph: &GraphProto) -> impl Iterator<Item = (usize, usize)> {
    let nodes = graph.node.iter().enumerate();
    let inputs = nodes.flat_map(|(k, node)| (0..node.input.len()).map(move |j| (k, j)));
    inputs.filter(|&(k, j)| {
        let node = &graph.node[k];
        !node.input[j].is_empty() && [true, false].into_iter().any(|value| verdict(node, j, value).is_some())
    })
}

/// What is left of a node whose input `j` is `value` everywhere; `None` where that decides nothing.
pub(super) fn verdict(node: &NodeProto, j: usize, value: bool) -> Option<Verdict> {
    let other = 1usize.checked_sub(j);
    match (node.op_type(), j, value) {
        _ if !is_standard(node) => None,
        ("Where", 0, true) => Some(Verdict::Is(1)),
        ("Where", 0, false) => Some(Verdict::Is(2)),
        ("And", _, true) | ("Or" | "Xor", _, false) => other.map(Verdict::Is),
        ("And", _, false) | ("Or", _, true) => Some(Verdict::Is(j)),
        // A mask that lets everything pass.
        ("Attention", 3, true) => Some(Verdict::Without(j)),
        _ => None,
    }
}

/// Puts input `j` of node `k` in the place of what the node makes, expanded to the shape `target` where it has another.
pub(super) fn replace(graph: &mut GraphProto, k: usize, j: usize, target: Option<&str>) {
    let (chosen, output) = (graph.node[k].input[j].clone(), graph.node[k].output[0].clone());
    let name = graph.node[k].name.clone();
    let is_output = graph.output.iter().any(|o| o.name() == output);
    let node = match target {
        Some(shape) => graph::node("Expand", &[&chosen, shape], &[&output], vec![]),
        None => graph::node("Identity", &[&chosen], &[&output], vec![]),
    };
    graph.node[k] = NodeProto { name, ..node };
    if target.is_none() && !is_output {
        graph.node.iter_mut().for_each(|n| graph::replace_use(n, &output, &chosen));
    }
}
