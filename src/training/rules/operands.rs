//! What rules ask of their nodes: lists and axes, and how they refuse what they do not differentiate.

use super::super::tape::Backward;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::Attributes;
use crate::onnx::proto::NodeProto;

pub fn refuse(node: &NodeProto, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("`{}` has no rule for {what}", node.op_type()))
        .hint("freeze the weights before this node, or export the model with standard operators")
}

/// A list of integers that is an attribute or a known input.
pub fn list(t: &Backward, node: &NodeProto, name: &str, j: usize) -> Result<Option<Vec<i64>>> {
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
