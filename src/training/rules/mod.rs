//! One gradient rule an operator. A rule emits standard operators, and only for inputs that need a gradient.

mod contraction;
mod elementwise;
mod movement;
mod normalisation;
mod resampling;

use super::tape::Tape;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, int_attribute};
use crate::onnx::is_float;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark, Shape};

/// Gives the inputs of a node their gradients. `given` holds what has been gathered for each output.
pub(super) fn backward(t: &mut Tape, node: &NodeProto, given: &[Option<String>]) -> Result<()> {
    if node.op_type() == "Split" {
        return movement::split(t, node, given);
    }
    let Some(g) = given.first().and_then(Option::as_deref) else {
        return Err(refuse(node, "a gradient through this output"));
    };
    let op = ops::of(node);
    let least = op.least;
    if node.input.len() < least {
        bail!(Format, "`{}` has {} inputs and needs {least}", node.op_type(), node.input.len());
    }
    match node.op_type() {
        "Identity" | "Dropout" => t.give(node, 0, |_, _| Ok(g.to_string())),
        "Cast" | "CastLike" => t.give(node, 0, |t, x| {
            let (from, to) = (t.kind, t.element_type(x));
            Ok(if from == to { g.to_string() } else { t.op_with("Cast", &[g], vec![int_attribute("to", to as i64)]) })
        }),
        "Expand" => elementwise::broadcast(t, node, g),
        "Pow" => elementwise::power(t, node, g),
        "Attention" => normalisation::attention(t, node, g),
        "Softmax" | "LogSoftmax" => normalisation::softmax(t, node, g),
        _ if op.is(Mark::LayerNorm) => normalisation::layer_norm(t, node, g),
        "InstanceNormalization" | "GroupNormalization" => normalisation::group_norm(t, node, g),
        "MeanVarianceNormalization" => normalisation::mean_variance(t, node, g),
        "LpNormalization" => normalisation::lp_norm(t, node, g),
        "BatchNormalization" => normalisation::batch_norm(t, node, g),
        "GlobalAveragePool" | "GlobalMaxPool" => normalisation::reduce(t, node, g),
        _ if op.is(Mark::View) => movement::reshape(t, node, g),
        "Transpose" => movement::transpose(t, node, g),
        "Tile" => movement::tile(t, node, g),
        "Concat" => movement::concat(t, node, g),
        "Slice" => movement::slice(t, node, g),
        "Gather" => movement::gather(t, node, g),
        "GatherND" => movement::gather_nd(t, node, g),
        "GatherElements" => movement::gather_elements(t, node, g),
        "ScatterND" | "ScatterElements" => movement::scatter(t, node, g),
        "Pad" => movement::pad(t, node, g),
        "DepthToSpace" | "SpaceToDepth" => movement::depth_space(t, node, g),
        "Trilu" | "CumSum" => movement::same(t, node, g),
        "MatMul" | "FusedMatMul" | "Gemm" | "Linear" => contraction::matmul(t, node, g),
        "Einsum" => contraction::einsum(t, node, g),
        "Conv" => contraction::conv(t, node, g),
        "ConvTranspose" => contraction::conv_transpose(t, node, g),
        "Resize" => resampling::resize(t, node, g),
        "AveragePool" => resampling::average_pool(t, node, g),
        "MaxPool" => resampling::max_pool(t, node, g),
        "Col2Im" => resampling::columns_to_image(t, node, g),
        _ => match op.shape {
            Shape::Same => elementwise::unary(t, node, g),
            Shape::Broadcast => elementwise::broadcast(t, node, g),
            Shape::Reduce => normalisation::reduce(t, node, g),
            Shape::Channels | Shape::Own => Err(refuse(node, "a gradient")),
        },
    }
}

fn refuse(node: &NodeProto, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("`{}` has no rule for {what}", node.op_type()))
        .hint("freeze the weights before this node, or export the model with standard operators")
}

/// A list of integers that is an attribute or a known input.
fn list(t: &Tape, node: &NodeProto, name: &str, j: usize) -> Result<Option<Vec<i64>>> {
    if let Some(list) = node.ints(name) {
        return Ok(Some(list.to_vec()));
    }
    match node.input.get(j).filter(|x| !x.is_empty()) {
        None => Ok(None),
        Some(x) => match t.typing.known.get(x.as_str()) {
            Some(known) => Ok(Some(known.ints())),
            None => Err(refuse(node, "a shape operand that is not constant")),
        },
    }
}

/// Weights that training may change as far as their type goes: floating-point tensors of more than one element.
pub fn is_trainable(t: &crate::onnx::proto::TensorProto) -> bool {
    is_float(t) && crate::onnx::element_count(t).is_ok_and(|n| n > 1)
}
