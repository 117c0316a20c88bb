//! Who makes and who uses each value.

use std::collections::HashMap;

use super::subgraphs::needed;
use crate::onnx::proto::GraphProto;

/// Who makes and who uses each value.
pub struct Links<'g> {
    /// The node that makes a value.
    pub maker: HashMap<&'g str, usize>,
    /// The nodes that use a value, also inside them, in order; a node that uses it twice stands there once.
    pub users: HashMap<&'g str, Vec<usize>>,
}

impl<'g> Links<'g> {
    /// Reads the links of a graph.
    pub fn new(graph: &'g GraphProto) -> Self {
        let mut maker = HashMap::new();
        let mut users: HashMap<&str, Vec<usize>> = HashMap::new();
        for (k, node) in graph.node.iter().enumerate() {
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
        Links { maker, users }
    }

    /// The nodes that use a value.
    pub fn users(&self, value: &str) -> &[usize] {
        self.users.get(value).map(Vec::as_slice).unwrap_or(&[])
    }
}
