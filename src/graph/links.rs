//! Who makes and who uses each value. How a graph is walked along these links is in [`walk`](super::walk).

use std::collections::HashMap;

use super::subgraphs::needed;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Who makes and who uses each value, also inside of nodes.
pub struct Links<'g> {
    /// The nodes of the graph, in order.
    pub nodes: &'g [NodeProto],
    maker: HashMap<&'g str, usize>,
    users: HashMap<&'g str, Vec<usize>>,
}

impl<'g> Links<'g> {
    /// Reads the links of a graph.
    pub fn new(graph: &'g GraphProto) -> Self {
        Links::of(&graph.node)
    }

    /// Reads the links of some nodes.
    pub fn of(nodes: &'g [NodeProto]) -> Self {
        let mut maker = HashMap::new();
        let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
        for (k, node) in nodes.iter().enumerate() {
            for x in needed(node) {
                let list = users.entry(x).or_default();
                if list.last() != Some(&k) {
                    list.push(k);
                }
            }
            for o in node.output.iter().filter(|o| !o.is_empty()) {
                maker.insert(o.as_str(), k);
            }
        }
        Links { nodes, maker, users }
    }

    /// The node that makes a value; `None` for inputs, initializers and names that the graph does not have.
    pub fn maker(&self, value: &str) -> Option<usize> {
        self.maker.get(value).copied()
    }

    /// The nodes that use a value, in order; a node that uses it twice stands there once.
    pub fn users(&self, value: &str) -> &[usize] {
        self.users.get(value).map_or(&[], Vec::as_slice)
    }

    /// The inputs of a node; one that is left out has an empty name.
    pub fn inputs(&self, k: usize) -> impl Iterator<Item = &'g str> + use<'g> {
        self.nodes[k].input.iter().map(String::as_str)
    }

    /// The outputs of a node; one that is left out has an empty name.
    pub fn outputs(&self, k: usize) -> impl Iterator<Item = &'g str> + use<'g> {
        self.nodes[k].output.iter().map(String::as_str)
    }
}
