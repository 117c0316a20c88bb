//! Which rule an operator has.

use super::vocabulary::Rule;
use crate::axes::Typing;
use crate::axes::factors::Dim;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::is_standard;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, Mark, ShapeRule};

impl<'m> Typing<'m> {
    /// Types a node: number `k` of the graph, or one inside it.
    pub(in crate::axes) fn node(&mut self, k: usize, node: &'m NodeProto) -> Result<()> {
        arity(node)?;
        if let Some(why) = self.hidden_by(node).filter(|_| node.op_type() != "If") {
            return self.opaque(k, node, why);
        }
        match node.op_type() {
            "Constant" => {
                return match self.constant(node) {
                    Err(error) if error.kind() == ErrorKind::Unsupported => self.opaque(k, node, error.marked()),
                    outcome => outcome,
                };
            }
            "Shape" | "Size" => return self.shape_of(node),
            "If" => return self.branch(k, node),
            _ => {}
        }
        if self.list(k, node)? || self.arithmetic(node) {
            return Ok(());
        }
        if let Some(why) = self.has_no_rule(node) {
            return self.opaque(k, node, why);
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        for j in 0..node.input.len() {
            inputs.push(self.operand(k, node, j)?);
        }
        let outputs = Rule { typing: self, k, node, inputs }.outputs()?;
        for (name, dims) in node.output.iter().zip(outputs).filter(|(n, _)| !n.is_empty()) {
            self.sized(&dims)?;
            self.dims.insert(name, dims);
        }
        Ok(())
    }
}

/// Checks that an operator of two or three operands has as many: what works on graphs later asks for the other one.
fn arity(node: &NodeProto) -> Result<()> {
    let Some(wanted) = ops::of(node).inputs.filter(|_| is_standard(node)) else { return Ok(()) };
    if node.input.len() != wanted || node.input.iter().any(String::is_empty) {
        let (op, count) = (node.op_type(), node.input.len());
        return Err(Error::new(ErrorKind::Format, format!("`{op}` takes {wanted} inputs, and {count} are listed"))
            .hint("export the model again: `onnx.checker.check_model` refuses it, too"));
    }
    Ok(())
}

impl Rule<'_, '_> {
    /// The dimensions of every output.
    fn outputs(mut self) -> Result<Vec<Vec<Dim>>> {
        match ops::of(self.node).shape {
            ShapeRule::Same if self.node.op_type() == "RotaryEmbedding" => self.rotary(),
            ShapeRule::Same => self.same(),
            ShapeRule::Broadcast => self.elementwise(),
            ShapeRule::Channels => self.channel_norm(),
            ShapeRule::Reduce => Ok(vec![self.reduce()?]),
            ShapeRule::Own => self.own(),
        }
    }

    /// The dimensions of every output, by the operator's own rule.
    fn own(mut self) -> Result<Vec<Vec<Dim>>> {
        match (self.node.domain(), self.node.op_type()) {
            (_, "Split") => self.split(),
            (_, "TopK") => self.top_k(),
            (_, "LSTM") => self.recurrence(4),
            (_, "GRU") => self.recurrence(3),
            ("offshoot", "Attention") => self.offshoot_attention(),
            ("com.microsoft", "Attention") => Ok(vec![self.projected_attention()?]),
            (_, "Attention" | "MultiHeadAttention") => self.attention(),
            (_, "LinearAttention") => self.linear_attention(),
            (_, "CausalConvWithState") => self.causal_conv(),
            (_, "RemovePadding") => self.remove_padding(),
            _ => Ok(vec![self.output()?]),
        }
    }

    /// The dimensions of the only output.
    fn output(&mut self) -> Result<Vec<Dim>> {
        match self.node.op_type() {
            "Reshape" => self.reshape(),
            "Flatten" => self.flatten(),
            "Squeeze" => self.squeeze(),
            "Unsqueeze" => self.unsqueeze(),
            "Transpose" => self.transpose(),
            "Slice" => self.slice(),
            "Concat" => self.concat(),
            "Expand" | "Tile" => self.expand(),
            "Pad" => self.pad(),
            "DepthToSpace" | "SpaceToDepth" => self.depth_space(),
            "ConstantOfShape" => self.constant_of_shape(),
            "Gather" => self.gather(),
            "GatherElements" => self.gather_elements(),
            "GatherND" => self.gather_nd(),
            "ScatterND" => self.scatter_nd(),
            "OneHot" => self.one_hot(),
            "MatMul" | "FusedMatMul" | "TransposeMatMul" | "Gemm" => self.matmul(),
            // Of bytes.
            "MatMulInteger" => self.matmul(),
            // Offshoot's own, which training graphs hold.
            "Linear" if self.node.domain() == "offshoot" => self.matmul(),
            "Einsum" => self.einsum(),
            "Conv" | "ConvTranspose" => self.conv(),
            "GlobalAveragePool" | "GlobalMaxPool" => self.global_pool(),
            "AveragePool" | "MaxPool" | "LpPool" => self.pool(),
            "Col2Im" => self.columns_to_image(),
            "Resize" | "Upsample" => self.resize(),
            "GridSample" => self.grid_sample(),
            "RoiAlign" => self.roi_align(),
            "PackedAttention" => self.projected_attention(),
            "PackedMultiHeadAttention" => self.unpadded_attention(),
            "RestorePadding" => self.restore_padding(),
            "Range" => {
                let error = self.fail("the length of a Range depends on more than shapes");
                let unknown = self.node.input.iter().find(|x| !self.typing.known.contains_key(x.as_str()));
                Err(unknown.map_or_else(|| self.fail("its numbers make no list"), |x| self.typing.unknown(error, x)))
            }
            op if ops::of(self.node).is(Mark::Random) => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the operator `{op}` draws random numbers: the model says something else in every run"),
            )
            .hint("export the model in evaluation mode, or with the random numbers as an input")),
            op => {
                let domain = if self.node.domain().is_empty() { "ai.onnx" } else { self.node.domain() };
                Err(Error::new(ErrorKind::Unsupported, format!("the operator `{domain}.{op}` has no typing rule"))
                    .hint("cut the model before this node, or export it with standard operators"))
            }
        }
    }
}
