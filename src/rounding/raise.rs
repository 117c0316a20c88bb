//! Models of older operator sets at set 13, with the same outputs.
//!
//! An operator that says something else from a set on is written as that set has it; what has no counterpart here, and
//! what is not known, is refused by its name. All others mean the same in every set that lies between.

use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, Builder, is_standard, node as new_node};
use crate::onnx::proto::{AttributeProto, NodeProto};
use crate::onnx::{Model, node_label, subgraphs};
use crate::ops;

/// DequantizeLinear has an axis from this set on.
pub(super) const OPSET: i64 = 13;
/// The oldest set that is raised.
const OLDEST: i64 = 9;
/// The IR version that goes with set 13.
const IR_VERSION: i64 = 7;

/// Raises a model to operator set 13 where it is older, and says which set it had.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for an operator that cannot be raised; it names the node.
pub fn raise(model: &mut Model) -> Result<Option<i64>> {
    let from = model.opset();
    if from >= OPSET {
        return Ok(None);
    }
    if from < OLDEST {
        return Err(Error::new(ErrorKind::Unsupported, format!("operator set {from} cannot be raised to {OPSET}"))
            .hint("export the model at operator set 13 or later"));
    }
    let ranks: Vec<Option<usize>> = {
        let typing = Typing::new(model)?;
        let rank = |n: &NodeProto| Some(typing.dims.get(n.input.first()?.as_str())?.len());
        model.graph().node.iter().map(rank).collect()
    };
    let graph = model.graph_mut();
    let mut raising = Raising { from, builder: Builder::new(graph, OPSET, "raised") };
    for (node, rank) in std::mem::take(&mut graph.node).into_iter().zip(ranks) {
        let label = node_label(&node);
        raising.node(node, rank).map_err(|e| e.in_node(label))?;
    }
    raising.builder.finish(graph);
    for import in model.proto.opset_import.iter_mut().filter(|o| matches!(o.domain(), "" | "ai.onnx")) {
        import.version = Some(OPSET);
    }
    model.proto.ir_version = Some(model.proto.ir_version().max(IR_VERSION));
    Ok(Some(from))
}

struct Raising {
    from: i64,
    builder: Builder,
}

impl Raising {
    fn node(&mut self, mut node: NodeProto, rank: Option<usize>) -> Result<()> {
        if subgraphs(&node).next().is_some() {
            return Err(self.refuse(&node, "holds a graph"));
        }
        if is_standard(&node) {
            match node.op_type() {
                "Squeeze" | "Unsqueeze" | "ReduceSum" => self.list(&mut node, "axes"),
                "Split" => self.list(&mut node, "split"),
                "Softmax" | "LogSoftmax" | "Hardmax" => return self.softmax(node, rank),
                // Nothing is dropped where nothing is trained.
                "Dropout" if self.from < 12 => node.attribute.clear(),
                "Clip" if self.from < 11 => ["min", "max"].iter().for_each(|bound| self.number(&mut node, bound)),
                "Pad" if self.from < 11 => {
                    self.list(&mut node, "pads");
                    self.number(&mut node, "value");
                }
                "Slice" if self.from < 10 => ["starts", "ends", "axes"].iter().for_each(|n| self.list(&mut node, n)),
                "Resize" | "Upsample" | "Scatter" if self.from < 11 => {
                    return Err(self.refuse(&node, "means something else"));
                }
                "TopK" if self.from < 10 => return Err(self.refuse(&node, "means something else")),
                _ if !ops::of(&node).is_known() => return Err(self.refuse(&node, "is not known")),
                _ => {}
            }
        }
        self.builder.nodes.push(node);
        Ok(())
    }

    /// An attribute of integers as the next input.
    fn list(&mut self, node: &mut NodeProto, name: &str) {
        if let Some(values) = take(node, name) {
            let name = format!("{}/{name}", node.output.first().map_or("", String::as_str));
            let tensor = crate::onnx::tensor_from_i64(name, &[values.ints.len()], &values.ints);
            let input = self.builder.tensor(tensor);
            node.input.push(input);
        }
    }

    /// An attribute that is a number as the next input, which is left out where the number is.
    fn number(&mut self, node: &mut NodeProto, name: &str) {
        let input = take(node, name).and_then(|a| a.f).map_or(String::new(), |value| self.builder.scalar(value));
        node.input.push(input);
    }

    /// Up to set 12 it is computed over all axes from one on; later over one.
    fn softmax(&mut self, mut node: NodeProto, rank: Option<usize>) -> Result<()> {
        let axis = node.int("axis").unwrap_or(1);
        let last = axis == -1 || rank.is_some_and(|rank| axis == rank as i64 - 1);
        node.attribute.retain(|a| a.name() != "axis");
        node.attribute.push(crate::graph::int_attribute("axis", -1));
        let (Some(x), Some(y)) = (node.input.first().cloned(), node.output.first().cloned()) else {
            return Err(self.refuse(&node, "has no input or no output"));
        };
        if !last {
            let fresh = |raising: &mut Raising, part: &str| raising.builder.names.fresh(&format!("{y}/{part}"));
            let [shape, rows, result] = ["shape", "rows", "of_rows"].map(|part| fresh(self, part));
            let axis = vec![crate::graph::int_attribute("axis", axis)];
            self.builder.nodes.push(new_node("Shape", &[&x], &[&shape], vec![]));
            self.builder.nodes.push(new_node("Flatten", &[&x], &[&rows], axis));
            (node.input[0], node.output[0]) = (rows, result.clone());
            self.builder.nodes.push(node);
            self.builder.nodes.push(new_node("Reshape", &[&result, &shape], &[&y], vec![]));
            return Ok(());
        }
        self.builder.nodes.push(node);
        Ok(())
    }

    fn refuse(&self, node: &NodeProto, why: &str) -> Error {
        let (op, from) = (node.op_type(), self.from);
        let what = format!("operator set {from} cannot be raised to {OPSET}: `{op}` {why}");
        Error::new(ErrorKind::Unsupported, what).hint("export the model at operator set 13 or later")
    }
}

fn take(node: &mut NodeProto, name: &str) -> Option<AttributeProto> {
    let at = node.attribute.iter().position(|a| a.name() == name)?;
    Some(node.attribute.remove(at))
}
