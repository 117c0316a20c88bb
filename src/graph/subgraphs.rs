//! Graphs inside nodes, and the values of the graphs around them that they use by name.

use std::collections::{HashMap, HashSet};

use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{subgraphs, subgraphs_mut};

/// The values that a node needs: its inputs, and what the graphs inside it use of those around them.
pub fn needed(node: &NodeProto) -> impl Iterator<Item = &str> {
    node.input.iter().map(String::as_str).filter(|x| !x.is_empty()).chain(captured(node))
}

/// The values of the graphs around them that the graphs inside a node use.
fn captured(node: &NodeProto) -> Vec<&str> {
    let mut found = Vec::new();
    for graph in subgraphs(node) {
        let own: HashSet<&str> = given(graph).collect();
        let inner = graph.node.iter().flat_map(needed);
        let outputs = graph.output.iter().map(|o| o.name()).filter(|o| !o.is_empty());
        found.extend(inner.chain(outputs).filter(|x| !own.contains(x)));
    }
    found
}

/// The names that a graph gives to values, without those inside its nodes.
pub(super) fn given(graph: &GraphProto) -> impl Iterator<Item = &str> {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    (graph.input.iter().map(|v| v.name()))
        .chain(graph.initializer.iter().chain(sparse).map(|t| t.name()))
        .chain(graph.node.iter().flat_map(|n| &n.output).map(String::as_str))
        .filter(|name| !name.is_empty())
}

/// All names that the graphs inside a node give to values.
pub(super) fn inner_names(node: &NodeProto) -> Vec<&str> {
    subgraphs(node).flat_map(|g| given(g).chain(g.node.iter().flat_map(inner_names))).collect()
}

/// Gives other names to what a graph uses and does not make itself.
pub(super) fn rename_captured(graph: &mut GraphProto, rename: &dyn Fn(&str) -> String) {
    let own: HashSet<String> = given(graph).map(str::to_string).collect();
    let outside = |name: &str| if own.contains(name) { name.to_string() } else { rename(name) };
    for node in &mut graph.node {
        node.input.iter_mut().filter(|x| !x.is_empty()).for_each(|x| *x = outside(x));
        subgraphs_mut(node).for_each(|inner| rename_captured(inner, &outside));
    }
    for output in &mut graph.output {
        output.name = output.name.take().map(|name| outside(&name));
    }
}

/// Lets a node, and what is inside it, use one value in the place of another.
pub fn replace_use(node: &mut NodeProto, from: &str, to: &str) {
    node.input.iter_mut().filter(|x| *x == from).for_each(|x| *x = to.to_string());
    let renamed = |x: &str| if x == from { to.to_string() } else { x.to_string() };
    subgraphs_mut(node).for_each(|inner| rename_captured(inner, &renamed));
}

/// Gives values other names, wherever a graph or one inside it makes or uses them.
pub fn rename(graph: &mut GraphProto, names: &HashMap<String, String>) {
    let put = |name: &mut String| {
        if let Some(new) = names.get(name.as_str()) {
            name.clone_from(new);
        }
    };
    let infos = graph.input.iter_mut().chain(&mut graph.output).chain(&mut graph.value_info);
    infos.filter_map(|v| v.name.as_mut()).for_each(put);
    graph.initializer.iter_mut().filter_map(|t| t.name.as_mut()).for_each(put);
    for node in &mut graph.node {
        node.input.iter_mut().chain(&mut node.output).for_each(put);
        subgraphs_mut(node).for_each(|inner| rename(inner, names));
    }
}
