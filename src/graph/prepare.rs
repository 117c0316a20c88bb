//! The form that later stages work on.

use std::collections::{HashMap, HashSet};

use super::batch::add_batch_axis;
use super::links::Links;
use super::names::Names;
use super::nodes::is_quantised;
use super::order::sort;
use super::unfold;
use super::values::{data_inputs, declared_dims, declared_type};
use super::{activations, copies, functions};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};
use crate::onnx::{DataType, Model, node_label};

/// Brings a model that was just opened into the form that later stages work on: model-local functions are inlined,
/// activations that were fused into products stand by themselves, a weight has one name, copies of a matrix of a module
/// that is called several times are one, every use of a transposed weight has a Transpose of its own, a model of one
/// picture has an axis of images ([`remove_batch_axis`](super::remove_batch_axis) takes it away again), and nodes
/// stand in topological order. An `If` stays: shapes say which branch it takes
/// ([`branches::inline`](crate::axes::branches::inline)).
///
/// # Errors
/// [`ErrorKind::Format`] for a graph with a cycle or an undefined value, [`ErrorKind::Unsupported`] for quantised
/// operators, sparse initializers and text decoders with a cache of keys and values. Weights in a form of int8 that
/// Offshoot writes become float32 ([`unfold`](fn@super::unfold)).
pub fn prepare(model: &mut Model) -> Result<()> {
    let path = model.path.clone();
    unfold::unfold(model).map_err(|e| if path.as_os_str().is_empty() { e } else { e.at(&path) })?;
    prepare_written(model)
}

/// [`prepare`], but weights in int8 stay as the file has them: for a model that is to be run and not changed.
///
/// # Errors
/// Those of [`prepare`].
pub fn prepare_written(model: &mut Model) -> Result<()> {
    model.own_initializers();
    functions::inline(&mut model.proto)?;
    add_batch_axis(model);
    let path = model.path.clone();
    let named = |e: Error| if path.as_os_str().is_empty() { e } else { e.at(&path) };
    let graph = model.graph_mut();
    refuse(graph).map_err(&named)?;
    activations::separate(graph);
    copies::merge(graph);
    separate_transposes(graph);
    sort(graph).map_err(&named)
}

/// Gives every user of a transposed weight a Transpose of its own. Exporters write one for all (an FFN that runs at
/// several resolutions, constants that were merged), and each use of a weight is resized by itself.
fn separate_transposes(graph: &mut GraphProto) {
    let constants = graph.node.iter().filter(|n| n.op_type() == "Constant").flat_map(|n| &n.output);
    let weights: HashSet<&str> =
        graph.initializer.iter().map(|t| t.name()).chain(constants.map(String::as_str)).collect();
    let links = Links::new(graph);
    let is_shared = |n: &NodeProto| {
        let of_weight = n.op_type() == "Transpose" && n.input.first().is_some_and(|x| weights.contains(x.as_str()));
        of_weight && n.output.first().is_some_and(|o| links.users(o).len() > 1)
    };
    let shared: Vec<(NodeProto, Vec<usize>)> = (graph.node.iter().filter(|n| is_shared(n)))
        .map(|n| (n.clone(), links.users(&n.output[0])[1..].to_vec()))
        .collect();
    if shared.is_empty() {
        return;
    }
    let mut names = Names::new(graph);
    let mut copies: HashMap<usize, Vec<NodeProto>> = HashMap::new();
    for (node, users) in shared {
        for user in users {
            let output = names.fresh(&node.output[0]);
            for x in graph.node[user].input.iter_mut().filter(|x| **x == node.output[0]) {
                *x = output.clone();
            }
            let name = node.name.as_ref().map(|_| output.clone());
            copies.entry(user).or_default().push(NodeProto { name, output: vec![output], ..node.clone() });
        }
    }
    for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        graph.node.extend(copies.remove(&k).unwrap_or_default());
        graph.node.push(node);
    }
}

/// What Offshoot does not work on, said before any work is done.
fn refuse(graph: &GraphProto) -> Result<()> {
    if let Some(sparse) = graph.sparse_initializer.first() {
        let name = sparse.values.as_ref().map(|t| t.name()).unwrap_or("");
        return Err(Error::new(ErrorKind::Unsupported, format!("the initializer `{name}` is sparse"))
            .hint("write sparse initializers out as dense ones, and prune the descendant"));
    }
    if let Some((node, cache)) = cache_of_keys(graph) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the model is a text decoder: its input `{cache}` is a cache of keys or values"),
        )
        .in_node(node_label(node))
        .hint(
            "Offshoot works on Vision Transformers; of a model that sees and writes, export the image encoder alone",
        ));
    }
    let read = unfold::read(graph);
    for (k, node) in graph.node.iter().enumerate() {
        let op = node.op_type();
        if node.domain() == "com.microsoft.nchwc" {
            let why = format!("the model was laid out for one kind of processor (`{op}` of `com.microsoft.nchwc`)");
            return Err(Error::new(ErrorKind::Unsupported, why).in_node(node_label(node)).hint(
                "give the model as it was before ONNX Runtime's layout optimisation, or save it at its extended level",
            ));
        }
        if is_quantised(op) && !read.contains(&k) {
            return Err(Error::new(ErrorKind::Unsupported, format!("the model is quantised (`{op}`)"))
                .in_node(node_label(node))
                .hint(
                    "give the model as it was before quantisation (fp32, fp16 or bf16) or try ⟦dequantize⟧, and \
                     quantise the descendant",
                ));
        }
    }
    Ok(())
}

/// The node and the input of a cache: beside token numbers, a float input of four axes that goes into an attention, or
/// is joined to what was computed, and leaves the graph again.
fn cache_of_keys(graph: &GraphProto) -> Option<(&NodeProto, &str)> {
    let inputs = data_inputs(graph);
    let kind = |v: &ValueInfoProto| declared_type(v).and_then(|t| DataType::try_from(t).ok());
    let rank = |v: &ValueInfoProto| declared_dims(v).map_or(0, |d| d.len());
    if !inputs.iter().any(|v| matches!(kind(v), Some(DataType::Int64 | DataType::Int32)) && rank(v) <= 2) {
        return None;
    }
    let floats = [DataType::Float, DataType::Float16, DataType::Bfloat16].map(Some);
    let caches: HashSet<&str> =
        inputs.iter().filter(|v| rank(v) == 4 && floats.contains(&kind(v))).map(|v| v.name()).collect();
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
    graph.node.iter().find_map(|node| {
        let joins = matches!(node.op_type(), "Concat") || node.op_type().ends_with("Attention");
        let cache = node.input.iter().find(|x| caches.contains(x.as_str()))?;
        (joins && node.output.iter().any(|o| outputs.contains(o.as_str()))).then_some((node, cache.as_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::super::nodes::node;
    use super::super::order::tests::chain;
    use super::*;
    use crate::onnx::tensor_info;

    #[test]
    fn every_use_of_a_transposed_weight_is_its_own() {
        let weight = crate::onnx::tensor_from_f32("w".to_string(), DataType::Float, &[2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let mut graph = GraphProto {
            node: vec![
                node("Transpose", &["w"], &["t"], vec![]),
                node("Transpose", &["a"], &["data"], vec![]),
                node("MatMul", &["data", "t"], &["b"], vec![]),
                node("MatMul", &["b", "t"], &["c"], vec![]),
                node("Add", &["c", "data"], &["d"], vec![]),
            ],
            initializer: vec![weight],
            input: vec![tensor_info("a", DataType::Float, &[Some(2), Some(2)])],
            output: vec![tensor_info("d", DataType::Float, &[Some(2), Some(2)])],
            ..Default::default()
        };
        separate_transposes(&mut graph);
        sort(&mut graph).unwrap();
        let of_weight: Vec<_> = graph.node.iter().filter(|n| n.input == ["w"]).map(|n| n.output[0].clone()).collect();
        assert_eq!(of_weight, ["t", "t_2"]);
        let products: Vec<_> =
            graph.node.iter().filter(|n| n.op_type() == "MatMul").map(|n| n.input[1].as_str()).collect();
        assert_eq!(products, ["t", "t_2"]);
        // What is made from the image is computed once.
        assert_eq!(graph.node.len(), 6);
        let again = graph.clone();
        separate_transposes(&mut graph);
        assert_eq!(graph, again);
    }

    #[test]
    fn quantised_graphs_are_refused() {
        for op in ["MatMulInteger", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearMatMul"] {
            let mut graph = chain();
            graph.node[0].op_type = Some(op.into());
            let error = refuse(&graph).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{op}");
            assert!(error.hint_text().is_some());
        }
    }
}
