//! The order of nodes, and which of them are needed.

use std::collections::HashSet;

use super::links::Links;
use super::subgraphs::needed;
use super::values::declare_dim;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::node_label;
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::ops;

/// Sorts nodes topologically, stable where they are in order already.
pub(crate) fn sort(graph: &mut GraphProto) -> Result<()> {
    let mut ready: HashSet<&str> =
        graph.initializer.iter().map(|t| t.name()).chain(graph.input.iter().map(|v| v.name())).collect();
    let mut in_order = true;
    for node in &graph.node {
        if !needed(node).all(|x| ready.contains(x)) {
            in_order = false;
            break;
        }
        ready.extend(node.output.iter().map(String::as_str));
    }
    if in_order {
        return Ok(());
    }
    let links = Links::new(graph);
    let mut ready: HashSet<&str> =
        graph.initializer.iter().map(|t| t.name()).chain(graph.input.iter().map(|v| v.name())).collect();
    let mut waiting: Vec<usize> = vec![0; graph.node.len()];
    let mut queue = std::collections::BinaryHeap::new();
    for (k, node) in graph.node.iter().enumerate() {
        let mut missing: Vec<&str> = needed(node).filter(|x| !ready.contains(x)).collect();
        missing.sort();
        missing.dedup();
        for x in &missing {
            if links.maker(x).is_none() {
                return Err(
                    Error::new(ErrorKind::Format, format!("nothing makes its input `{x}`")).in_node(node_label(node))
                );
            }
        }
        waiting[k] = missing.len();
        if waiting[k] == 0 {
            queue.push(std::cmp::Reverse(k));
        }
    }
    let mut order = Vec::with_capacity(graph.node.len());
    while let Some(std::cmp::Reverse(k)) = queue.pop() {
        order.push(k);
        for o in graph.node[k].output.iter().filter(|o| !o.is_empty()) {
            if ready.insert(o) {
                for &u in links.users(o) {
                    waiting[u] -= 1;
                    if waiting[u] == 0 {
                        queue.push(std::cmp::Reverse(u));
                    }
                }
            }
        }
    }
    if order.len() != graph.node.len() {
        let stuck = (0..graph.node.len()).find(|&k| waiting[k] > 0).unwrap_or(0);
        return Err(Error::new(ErrorKind::Format, "the graph has a cycle")
            .in_node(node_label(&graph.node[stuck]))
            .hint("export the model again: `onnx.checker.check_model` refuses it, too"));
    }
    let mut nodes: Vec<Option<NodeProto>> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.into_iter().filter_map(|k| nodes[k].take()).collect();
    Ok(())
}

/// Drops the shapes that the file declares for values inside, but for those that nothing else says: of operators that
/// are not known.
pub fn forget_shapes(graph: &mut GraphProto) {
    let unknown = graph.node.iter().filter(|n| !ops::of(n).is_known());
    let kept: HashSet<&str> = unknown.flat_map(|n| &n.output).map(String::as_str).collect();
    graph.value_info.retain(|v| kept.contains(v.name()));
}

/// Gives inputs the lengths of arrays that they are fed with, by their names, on all axes but that of samples.
pub fn fix_lengths<'a>(graph: &mut GraphProto, arrays: impl IntoIterator<Item = (&'a str, &'a [usize])>) {
    for (name, shape) in arrays {
        for info in graph.input.iter_mut().filter(|v| v.name() == name) {
            shape.iter().enumerate().skip(1).for_each(|(axis, &size)| declare_dim(info, axis, size));
        }
    }
    forget_shapes(graph);
}

/// Removes nodes, initializers and declarations that no output needs.
pub fn prune(graph: &mut GraphProto) {
    let mut live: HashSet<String> = graph.output.iter().map(|o| o.name().to_string()).collect();
    let mut keep = vec![false; graph.node.len()];
    for (k, node) in graph.node.iter().enumerate().rev() {
        if node.output.iter().any(|o| live.contains(o)) {
            keep[k] = true;
            live.extend(needed(node).map(str::to_string));
        }
    }
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        keep[k - 1]
    });
    graph.initializer.retain(|t| live.contains(t.name()));
    let made: HashSet<&str> = graph.node.iter().flat_map(|n| n.output.iter().map(String::as_str)).collect();
    graph.value_info.retain(|v| made.contains(v.name()));
    let first = graph.input.first().map(|v| v.name().to_string());
    graph.input.retain(|v| live.contains(v.name()) || Some(v.name()) == first.as_deref());
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::nodes::node;
    use super::*;
    use crate::onnx::{DataType, tensor_info};

    pub(crate) fn chain() -> GraphProto {
        GraphProto {
            node: vec![
                node("Relu", &["b"], &["c"], vec![]),
                node("Relu", &["a"], &["b"], vec![]),
                node("Relu", &["a"], &["unused"], vec![]),
            ],
            input: vec![tensor_info("a", DataType::Float, &[None])],
            output: vec![tensor_info("c", DataType::Float, &[None])],
            ..Default::default()
        }
    }

    #[test]
    fn nodes_are_sorted_and_pruned() {
        let mut graph = chain();
        sort(&mut graph).unwrap();
        prune(&mut graph);
        let outputs: Vec<_> = graph.node.iter().map(|n| n.output[0].as_str()).collect();
        assert_eq!(outputs, ["b", "c"]);
    }

    #[test]
    fn a_cycle_and_an_undefined_value_are_errors() {
        let mut graph = chain();
        graph.node[1].input[0] = "c".into();
        assert!(sort(&mut graph).unwrap_err().to_string().contains("cycle"));
        let mut graph = chain();
        graph.node[1].input[0] = "nowhere".into();
        assert!(sort(&mut graph).unwrap_err().to_string().contains("nowhere"));
    }
}
