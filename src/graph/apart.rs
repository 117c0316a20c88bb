//! Names of their own for values of graphs inside nodes.

use std::collections::{HashMap, HashSet};

use super::names::Names;
use super::subgraphs::{given, rename};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::GraphProto;
use crate::onnx::{node_label, subgraphs_mut};

/// Gives every value of a graph inside a node a name that no other value has: ONNX lets the two branches of an `If`
/// use the same ones.
///
/// # Errors
/// [`ErrorKind::Format`] where one of these graphs gives a name twice.
pub fn name_apart(graph: &mut GraphProto) -> Result<()> {
    let mut names = Names::of_outer_graph(graph);
    for node in &mut graph.node {
        let label = node_label(node);
        subgraphs_mut(node).try_for_each(|inner| apart(inner, &mut names)).map_err(|e| e.in_node(label))?;
    }
    Ok(())
}

fn apart(graph: &mut GraphProto, names: &mut Names) -> Result<()> {
    let mut seen = HashSet::new();
    let mut renamed = HashMap::new();
    for name in given(graph) {
        if !seen.insert(name) {
            return Err(Error::new(ErrorKind::Format, format!("two values inside it are called `{name}`"))
                .hint("export the model again: `onnx.checker.check_model` refuses it, too"));
        }
        let fresh = names.fresh(name);
        if fresh != name {
            renamed.insert(name.to_string(), fresh);
        }
    }
    if !renamed.is_empty() {
        rename(graph, &renamed);
    }
    graph.node.iter_mut().flat_map(subgraphs_mut).try_for_each(|inner| apart(inner, names))
}
