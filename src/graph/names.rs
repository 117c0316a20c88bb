//! Names for new values.

use std::collections::HashSet;

use super::subgraphs::inner_names;
use crate::onnx::proto::GraphProto;

/// Names for new values that no value of the graph has.
#[derive(Default)]
pub struct Names {
    taken: HashSet<String>,
}

impl Names {
    /// Collects the names of a graph, and of the graphs inside its nodes.
    pub fn new(graph: &GraphProto) -> Self {
        let mut names = Names::of_outer_graph(graph);
        names.taken.extend(graph.node.iter().flat_map(inner_names).map(str::to_string));
        names
    }

    /// Collects the names of several graphs.
    pub(super) fn of_all<'g>(graphs: impl IntoIterator<Item = &'g GraphProto>) -> Self {
        Names { taken: graphs.into_iter().flat_map(|graph| Names::new(graph).taken).collect() }
    }

    /// Collects the names of a graph alone.
    pub(super) fn of_outer_graph(graph: &GraphProto) -> Self {
        let nodes = graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input));
        let taken = nodes
            .map(String::as_str)
            .chain(graph.initializer.iter().map(|t| t.name()))
            .chain(graph.input.iter().map(|v| v.name()))
            .map(str::to_string)
            .collect();
        Names { taken }
    }

    /// A free name that begins with `stem`.
    pub fn fresh(&mut self, stem: &str) -> String {
        let mut name = stem.to_string();
        let mut n = 1;
        while !self.taken.insert(name.clone()) {
            n += 1;
            name = format!("{stem}_{n}");
        }
        name
    }
}
