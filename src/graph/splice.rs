//! Puts a part that was cut out of a graph, and changed, back into its place.

use std::collections::{HashMap, HashSet};

use super::links::Links;
use super::names::Names;
use super::order::{forget_shapes, prune, sort};
use super::subgraphs::{given, inner_names, needed, rename};
use super::values::data_inputs;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{GraphProto, NodeProto};

/// Puts `after` into the place of `before`, a part that was [cut](super::cut) out of `whole` and became `after`. It is
/// fed as before, and the rest finds what it needs of the part under the same names. Constants that both share stay as
/// they are for the rest. The nodes of all three graphs have to be in order.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the rest needs a value that the part does not make any more.
pub fn splice(whole: &mut GraphProto, before: &GraphProto, mut after: GraphProto) -> Result<()> {
    // What the whole computes from other inputs is none of the part, though this may have it from its own.
    let links = Links::new(whole);
    let computed = links.downstream(data_inputs(before).into_iter().map(|v| v.name()));
    let computed: HashSet<&str> = computed.flat_map(|k| links.outputs(k)).collect();
    let own = before.node.iter().flat_map(|node| &node.output).map(String::as_str);
    let gone: HashSet<String> = own.filter(|o| computed.contains(o)).map(str::to_string).collect();
    let mut rest = whole.clone();
    rest.node.retain(|node| !node.output.iter().any(|o| gone.contains(o)));
    rest.output.retain(|output| !gone.contains(output.name()));
    prune(&mut rest);
    let made: HashSet<&str> = given(&after).collect();
    let wanted = || rest.node.iter().flat_map(needed).chain(whole.output.iter().map(|o| o.name()));
    if let Some(value) = wanted().find(|value| gone.contains(*value) && !made.contains(value)) {
        let what = format!("the rest of the graph needs `{value}`, which its changed part does not make");
        return Err(Error::new(ErrorKind::Unsupported, what).hint("change one tower at a time: give its samples alone"));
    }
    set_apart(&mut after, &rest, whole);
    let places = places(whole.node.iter().enumerate().flat_map(|(at, n)| n.output.iter().map(move |o| (o, at))));
    let old = |node: &NodeProto| node.output.iter().find_map(|o| places.get(o)).copied();
    // What is new comes right before the next node that is not.
    let mut next = whole.node.len();
    let mut nodes: Vec<(usize, NodeProto)> = Vec::new();
    for node in after.node.into_iter().rev() {
        next = old(&node).unwrap_or(next).min(next);
        nodes.push((next, node));
    }
    nodes.reverse();
    nodes.extend(rest.node.into_iter().map(|node| (old(&node).unwrap_or(0), node)));
    nodes.sort_by_key(|(place, _)| *place);
    let weights = self::places(whole.initializer.iter().enumerate().filter_map(|(at, t)| Some((t.name.as_ref()?, at))));
    let mut tensors = rest.initializer;
    tensors.extend(after.initializer);
    tensors.sort_by_key(|t| weights.get(t.name()).copied().unwrap_or(usize::MAX));
    let inputs: HashSet<String> = data_inputs(whole).into_iter().map(|v| v.name().to_string()).collect();
    whole.input.retain(|v| inputs.contains(v.name()));
    (whole.node, whole.initializer) = (nodes.into_iter().map(|(_, node)| node).collect(), tensors);
    whole.value_info.extend(after.value_info);
    forget_shapes(whole);
    sort(whole)
}

/// Where each name stands.
fn places<'n>(names: impl Iterator<Item = (&'n String, usize)>) -> HashMap<String, usize> {
    names.filter(|(name, _)| !name.is_empty()).map(|(name, place)| (name.clone(), place)).collect()
}

/// Gives what a part makes names that nothing in the rest of the whole graph has. What is the same in both is left to
/// the rest.
fn set_apart(part: &mut GraphProto, rest: &GraphProto, whole: &GraphProto) {
    let mut same: HashSet<String> = HashSet::new();
    for tensor in std::mem::take(&mut part.initializer) {
        match rest.initializer.contains(&tensor) {
            true => drop(same.insert(tensor.name().to_string())),
            false => part.initializer.push(tensor),
        }
    }
    for node in std::mem::take(&mut part.node) {
        match needed(&node).all(|x| same.contains(x)) && rest.node.contains(&node) {
            true => same.extend(node.output),
            false => part.node.push(node),
        }
    }
    let inputs: HashSet<&str> = whole.input.iter().map(|v| v.name()).collect();
    let inner = rest.node.iter().flat_map(inner_names);
    let taken: HashSet<&str> = given(rest).chain(inner).filter(|name| !inputs.contains(name)).collect();
    let mut names = Names::of_all([whole, &*part]);
    let own: HashSet<&str> = given(part).chain(part.node.iter().flat_map(inner_names)).collect();
    let mut own: Vec<&str> = own.intersection(&taken).copied().collect();
    own.sort_unstable();
    let renamed = own.into_iter().map(|name| (name.to_string(), names.fresh(name))).collect();
    rename(part, &renamed);
    let called: HashSet<&str> = rest.node.iter().map(|node| node.name()).collect();
    for node in part.node.iter_mut().filter(|node| called.contains(node.name())) {
        node.name = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{SampleInputs, cut, node};
    use crate::onnx::proto::ModelProto;
    use crate::onnx::{DataType, Model, tensor_from_f32, tensor_info};

    fn outputs(graph: &GraphProto) -> Vec<&str> {
        graph.node.iter().map(|n| n.output[0].as_str()).collect()
    }

    /// Two towers that take turns, scale by one constant, and meet in `both`.
    fn towers() -> Model {
        let number = |name: &str, value: f32| tensor_from_f32(name, DataType::Float, &[1], &[value]);
        let graph = GraphProto {
            node: vec![
                node("Neg", &["scale"], &["less"], vec![]),
                node("Mul", &["a", "less"], &["a1"], vec![]),
                node("Mul", &["b", "less"], &["b1"], vec![]),
                node("Add", &["a1", "shift"], &["a2"], vec![]),
                node("Add", &["b1", "shift"], &["b2"], vec![]),
                node("Mul", &["a2", "b2"], &["both"], vec![]),
            ],
            initializer: vec![number("scale", 2.0), number("shift", 1.0)],
            input: ["a", "b"].map(|name| tensor_info(name, DataType::Float, &[None])).to_vec(),
            output: ["both", "a2", "b2"].map(|name| tensor_info(name, DataType::Float, &[None])).to_vec(),
            ..GraphProto::default()
        };
        Model::from_proto(ModelProto { graph: Some(graph), ..ModelProto::default() })
    }

    fn tower(input: &str) -> Model {
        let mut tower = towers();
        cut(&mut tower, SampleInputs::Inputs(&[input.to_string()]), None).unwrap();
        tower
    }

    #[test]
    fn a_part_that_changed_nothing_leaves_the_graph_as_it_was() {
        let (mut whole, part) = (towers(), tower("a"));
        splice(whole.graph_mut(), part.graph(), part.graph().clone()).unwrap();
        assert_eq!(outputs(whole.graph()), outputs(towers().graph()));
        assert_eq!(whole.graph().initializer, towers().graph().initializer);
    }

    #[test]
    fn what_both_share_changes_for_the_part_alone() {
        let (mut whole, part) = (towers(), tower("a"));
        let mut after = part.graph().clone();
        assert_eq!(outputs(&after), ["less", "a1", "a2"]);
        // Another scale and shift, and a node that is new.
        for (name, value) in [("scale", 5.0), ("shift", 7.0)] {
            let tensor = after.initializer.iter_mut().find(|t| t.name() == name).unwrap();
            *tensor = tensor_from_f32(name, DataType::Float, &[1], &[value]);
        }
        after.node[1].input[0] = "b1".into();
        after.node.insert(1, node("Neg", &["a"], &["b1"], vec![]));
        splice(whole.graph_mut(), part.graph(), after).unwrap();
        let graph = whole.graph();
        assert_eq!(outputs(graph), ["less", "less_2", "b1_2", "a1", "b1", "a2", "b2", "both"]);
        let inputs = |output: &str| graph.node.iter().find(|n| n.output[0] == output).unwrap().input.clone();
        assert_eq!([inputs("less"), inputs("less_2")], [["scale"], ["scale_2"]]);
        assert_eq!([inputs("a1"), inputs("b1")], [["b1_2", "less_2"], ["b", "less"]]);
        assert_eq!([inputs("a2"), inputs("b2")], [["a1", "shift_2"], ["b1", "shift"]]);
        let number = |name: &str| crate::onnx::to_f32(graph.initializer.iter().find(|t| t.name() == name).unwrap());
        let numbers = ["scale", "shift", "scale_2", "shift_2"].map(|name| number(name).unwrap()[0]);
        assert_eq!(numbers, [2.0, 1.0, 5.0, 7.0]);
    }

    #[test]
    fn a_size_that_the_rest_computes_from_its_own_input_stays() {
        // One batch, which the graph reads off `b` for both towers.
        let (mut whole, read) = (towers(), node("Shape", &["b"], &["size"], vec![]));
        whole.graph_mut().node.insert(0, read);
        whole.graph_mut().node.iter_mut().filter(|n| n.op_type() == "Add").for_each(|n| n.input[1] = "size".into());
        let mut before = whole.graph().clone();
        before.node[0].input[0] = "a".into();
        before.node.retain(|n| ["size", "less", "a1", "a2"].contains(&n.output[0].as_str()));
        before.output.retain(|o| o.name() == "a2");
        before.input.retain(|v| v.name() == "a");
        let after = before.clone();
        splice(whole.graph_mut(), &before, after).unwrap();
        let read = |output: &str| whole.graph().node.iter().find(|n| n.output[0] == output).unwrap().input.clone();
        assert_eq!([read("size"), read("size_2")], [["b"], ["a"]]);
        assert_eq!([read("a2")[1].as_str(), &read("b2")[1]], ["size_2", "size"]);
    }

    #[test]
    fn a_value_that_the_rest_needs_has_to_be_there() {
        let (mut whole, part) = (towers(), tower("a"));
        let mut after = part.graph().clone();
        after.node.pop();
        let error = splice(whole.graph_mut(), part.graph(), after).unwrap_err();
        assert!(error.to_string().contains("needs `a2`"), "{error}");
    }
}
