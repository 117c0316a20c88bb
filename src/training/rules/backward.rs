//! Which rule an operator has.

use super::super::tape::Backward;
use super::operands::refuse;
use super::{contraction, elementwise, movement, normalisation, resampling};
use crate::error::Result;
use crate::graph::int_attribute;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark, ShapeRule};

/// Gives the inputs of a node their gradients. `given` holds what has been gathered for each output.
pub fn backward(t: &mut Backward, node: &NodeProto, given: &[Option<String>]) -> Result<()> {
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
        "Dropout" if t.typing.is_random(node) => {
            Err(refuse(node, "values that are dropped at random (export the model in evaluation mode)"))
        }
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
            ShapeRule::Same => elementwise::unary(t, node, g),
            ShapeRule::Broadcast => elementwise::broadcast(t, node, g),
            ShapeRule::Reduce => normalisation::reduce(t, node, g),
            ShapeRule::Channels | ShapeRule::Own => Err(refuse(node, "a gradient")),
        },
    }
}
