//! Graphs inside nodes: the branches of an `If`, the bodies of loops.

use super::proto::{GraphProto, NodeProto};

/// The graphs that a node holds.
pub fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// The graphs that a node holds, to be edited.
pub fn subgraphs_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute.iter_mut().flat_map(|a| a.g.iter_mut().chain(&mut a.graphs))
}

/// These nodes and all that stand inside them.
pub fn with_inner_nodes<'g>(nodes: impl IntoIterator<Item = &'g NodeProto>) -> Vec<&'g NodeProto> {
    let mut found: Vec<&NodeProto> = nodes.into_iter().collect();
    let mut at = 0;
    while let Some(&node) = found.get(at) {
        found.extend(subgraphs(node).flat_map(|graph| &graph.node));
        at += 1;
    }
    found
}
