//! Graphs in the form that tract takes, and what it takes in no form.

use super::decompose::without_recent;
use crate::axes::{Assumption, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Names};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{DataType, Model, node_label};
use crate::ops::{self, Mark};

/// What to do about a graph that tract does not take.
pub(super) const WAY_OUT: &str =
    "ONNX Runtime knows more operators: run `scripts/fetch/onnxruntime.sh` and pass ⟦runtime⟧ onnxruntime";

/// Brings a model whose every size is fixed into the form that tract takes. It has no fused attention and no operator
/// of the newest sets; and what a file declares of values inside would contradict sizes that were fixed since.
///
/// # Errors
/// [`ErrorKind::Runtime`] for operators that tract has not, [`ErrorKind::Unsupported`] for fused ones that cannot be
/// taken apart; both name a node.
pub(super) fn for_tract(model: &mut Model, assumption: Assumption) -> Result<()> {
    let is_newer = |n: &NodeProto| n.op_type().ends_with("Attention") || ops::of(n).is(Mark::Recent);
    let newer = model.graph().node.iter().any(is_newer);
    let taken_apart = match newer.then(|| Typing::with(model, assumption)) {
        Some(Ok(typing)) => Some(without_recent(&typing)?),
        _ => None,
    };
    if let Some(graph) = taken_apart {
        model.proto.graph = Some(graph);
    }
    graph::split_half_gemms(model.graph_mut());
    sum_in_double(model.graph_mut());
    model.graph_mut().value_info.clear();
    check(model.graph())
}

/// Running sums of int64 in float64: what is cast to int64 tract takes for sizes, which its `CumSum` does not add.
fn sum_in_double(graph: &mut GraphProto) {
    let types = graph::element_types(graph);
    let is_long = |n: &NodeProto| n.input.first().and_then(|x| types.get(x.as_str())) == Some(&DataType::Int64);
    let sums: Vec<usize> =
        (0..graph.node.len()).filter(|&k| graph.node[k].op_type() == "CumSum" && is_long(&graph.node[k])).collect();
    let mut names = Names::new(graph);
    for k in sums.into_iter().rev() {
        let sum = &mut graph.node[k];
        let (given, output) = (sum.input[0].clone(), sum.output[0].clone());
        let [double, whole] = ["double", "sum"].map(|part| names.fresh(&format!("{output}/{part}")));
        sum.input[0] = double.clone();
        sum.output[0] = whole.clone();
        let to = |kind: DataType| vec![graph::int_attribute("to", kind as i64)];
        graph.node.insert(k + 1, graph::node("Cast", &[&whole], &[&output], to(DataType::Int64)));
        graph.node.insert(k, graph::node("Cast", &[&given], &[&double], to(DataType::Double)));
    }
}

/// Names the operators that tract has not.
fn check(graph: &GraphProto) -> Result<()> {
    let mut lacking: Vec<&NodeProto> = Vec::new();
    for node in unknown(graph) {
        if lacking.iter().all(|n| n.op_type() != node.op_type()) {
            lacking.push(node);
        }
    }
    let Some(first) = lacking.first() else { return Ok(()) };
    let names: Vec<String> = lacking.iter().map(|n| format!("`{}`", n.op_type())).collect();
    let message = format!("tract cannot run this graph: it has no {}", names.join(", no "));
    Err(Error::new(ErrorKind::Runtime, message).in_node(node_label(first)).hint(WAY_OUT))
}

/// The nodes of operators that tract does not know by name.
#[cfg(feature = "tract")]
fn unknown(graph: &GraphProto) -> Vec<&NodeProto> {
    let known = tract_onnx::onnx().op_register.0;
    graph.node.iter().filter(|n| !known.contains_key(n.op_type())).collect()
}

#[cfg(not(feature = "tract"))]
fn unknown(_: &GraphProto) -> Vec<&NodeProto> {
    Vec::new()
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;

    #[test]
    fn what_tract_lacks_is_named_once() {
        let mut graph = GraphProto::default();
        let nodes = [("Relu", "x", "a"), ("Det", "a", "b"), ("Unique", "b", "c"), ("Det", "c", "d")];
        graph.node.extend(nodes.map(|(op, from, to)| graph::node(op, &[from], &[to], vec![])));
        let error = check(&graph).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Runtime);
        let said = error.to_string();
        assert!(said.contains("in node `b`") && said.ends_with("it has no `Det`, no `Unique`"), "{said}");
        graph.node.truncate(1);
        assert!(check(&graph).is_ok());
    }
}
