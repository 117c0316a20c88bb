//! Weights that a file holds under several names. PyTorch's TorchScript exporter gives every use of a shared weight an
//! Identity, its other one folds a constant for each use and may write a matrix several times (the FFN of ALBERT).
//!
//! Equal matrices alone say nothing: layers that were copied before any training are equal, too. Where some matrix of
//! the graph is used several times under one name, a module is called several times, and equal matrices are its own.

use std::collections::{HashMap, HashSet};

use super::links::Links;
use super::subgraphs::needed;
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{is_float, is_uniform, payload};
use crate::ops::{self, ShapeRule};

/// Bytes by which matrices are told apart before all of them are compared.
const FIRST: usize = 64;

/// Element type, dimensions and first bytes of a matrix.
type Form<'t> = (Option<i32>, &'t [i64], Vec<u8>);

/// Gives every weight one name, and equal matrices where modules are called several times.
pub(super) fn merge(graph: &mut GraphProto) {
    let names = aliases(graph);
    let left = rename(graph, &names);
    graph.node.retain(|n| n.output.first().is_none_or(|o| !names.contains_key(o) || left.contains(o)));
    let names = copies(graph);
    let left = rename(graph, &names);
    graph.initializer.retain(|t| !names.contains_key(t.name()) || left.contains(t.name()));
}

/// Other names of initializers.
fn aliases(graph: &GraphProto) -> HashMap<String, String> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|t| t.name()).collect();
    let mut found: HashMap<String, String> = HashMap::new();
    for node in graph.node.iter().filter(|n| n.op_type() == "Identity") {
        let (Some(x), Some(o)) = (node.input.first(), node.output.first()) else { continue };
        if let Some(weight) = found.get(x).cloned().or_else(|| weights.contains(x.as_str()).then(|| x.clone())) {
            found.insert(o.clone(), weight);
        }
    }
    found
}

/// Renames values, and gives the old names that something reads all the same: an output, or what is inside a node.
fn rename(graph: &mut GraphProto, names: &HashMap<String, String>) -> HashSet<String> {
    if names.is_empty() {
        return HashSet::new();
    }
    for x in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        if let Some(name) = names.get(x.as_str()) {
            x.clone_from(name);
        }
    }
    let outputs = graph.output.iter().map(|o| o.name());
    graph.node.iter().flat_map(needed).chain(outputs).filter(|x| names.contains_key(*x)).map(str::to_string).collect()
}

/// For each copy of a matrix the name of the first, where a matrix is used several times.
fn copies(graph: &GraphProto) -> HashMap<String, String> {
    let links = Links::new(graph);
    let users = |t: &TensorProto| -> Vec<(&str, usize)> {
        let slot = |k: &usize| {
            let node = &graph.node[*k];
            let at = node.input.iter().position(|x| x == t.name())?;
            (at > 0 && ops::of(node).shape == ShapeRule::Own).then_some((node.op_type(), at))
        };
        links.users(t.name()).iter().filter_map(slot).collect()
    };
    let is_matrix = |t: &&TensorProto| is_float(t) && t.dims.iter().filter(|&&n| n > 1).count() > 1;
    let used = graph.initializer.iter().filter(is_matrix).map(|t| (t, users(t)));
    let used: Vec<(&TensorProto, Vec<(&str, usize)>)> = used.filter(|(_, users)| !users.is_empty()).collect();
    let repeats = |users: &[(&str, usize)]| users.len() > 1 && users.windows(2).all(|w| w[0] == w[1]);
    if !used.iter().any(|(t, users)| repeats(users) && !is_uniform(t)) {
        return HashMap::new();
    }
    equal(&used.into_iter().map(|(t, _)| t).collect::<Vec<_>>())
}

/// For each copy of a matrix the name of the first.
fn equal(tensors: &[&TensorProto]) -> HashMap<String, String> {
    let mut groups: HashMap<Form, Vec<&TensorProto>> = HashMap::new();
    let mut same = HashMap::new();
    for t in tensors.iter().filter(|t| !is_uniform(t)) {
        let bytes = payload(t);
        let group = groups.entry((t.data_type, &t.dims, bytes[..bytes.len().min(FIRST)].to_vec())).or_default();
        match group.iter().find(|first| payload(first) == bytes) {
            Some(first) => drop(same.insert(t.name().to_string(), first.name().to_string())),
            None => group.push(t),
        }
    }
    same
}

#[cfg(test)]
mod tests {
    use super::super::nodes::node;
    use super::*;
    use crate::onnx::{DataType, tensor_from_f32, tensor_info};

    /// Products with a matrix each, one after the other; `again` names the matrix of a last one.
    fn products(values: &[[f32; 4]], again: Option<&str>) -> GraphProto {
        let names: Vec<String> = (0..values.len()).map(|k| format!("w{k}")).collect();
        let tensor = |(name, v): (&String, &[f32; 4])| tensor_from_f32(name.clone(), DataType::Float, &[2, 2], v);
        let matrices = names.iter().map(String::as_str).chain(again);
        let product = |(k, w): (usize, &str)| node("MatMul", &[&format!("x{k}"), w], &[&format!("x{}", k + 1)], vec![]);
        GraphProto {
            input: vec![tensor_info("x0", DataType::Float, &[Some(2), Some(2)])],
            initializer: names.iter().zip(values).map(tensor).collect(),
            node: matrices.enumerate().map(product).collect(),
            ..Default::default()
        }
    }

    fn taken(graph: &GraphProto) -> Vec<&str> {
        graph.node.iter().map(|n| n.input[1].as_str()).collect()
    }

    const ONE: [f32; 4] = [1.0, 2.0, 3.0, 4.0];
    const OTHER: [f32; 4] = [1.0, 2.0, 3.0, 5.0];

    #[test]
    fn equal_matrices_are_one_where_a_module_is_called_several_times() {
        let mut alone = products(&[ONE, OTHER, ONE], None);
        merge(&mut alone);
        assert_eq!((taken(&alone), alone.initializer.len()), (vec!["w0", "w1", "w2"], 3), "layers that were copied");
        let mut called = products(&[ONE, OTHER, ONE], Some("w1"));
        merge(&mut called);
        assert_eq!((taken(&called), called.initializer.len()), (vec!["w0", "w1", "w0", "w1"], 2));
        let mut zeros = products(&[[0.0; 4], [0.0; 4]], Some("w1"));
        merge(&mut zeros);
        assert_eq!(taken(&zeros), ["w0", "w1", "w1"], "elements that are all equal say nothing");
    }

    #[test]
    fn a_weight_has_one_name() {
        let mut graph = products(&[ONE], Some("alias"));
        graph.node.insert(0, node("Identity", &["w0"], &["other"], vec![]));
        graph.node.insert(1, node("Identity", &["other"], &["alias"], vec![]));
        graph.output = vec![tensor_info("other", DataType::Float, &[Some(2), Some(2)])];
        merge(&mut graph);
        let ops: Vec<&str> = graph.node.iter().map(|n| n.op_type()).collect();
        assert_eq!(ops, ["Identity", "MatMul", "MatMul"], "an output keeps its name");
        assert_eq!([&graph.node[1].input[1], &graph.node[2].input[1]], ["w0", "w0"]);
    }
}
