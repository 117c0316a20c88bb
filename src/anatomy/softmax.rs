//! The axes of attention scores.

use crate::axes::{Dim, Typing};
use crate::graph::{Attributes, resolve_axis};
use crate::onnx::proto::NodeProto;

/// True where queries and keys are the last axes of what a Softmax makes.
pub(crate) fn in_usual_order(typing: &Typing, node: &NodeProto) -> bool {
    let dims = node.output.first().and_then(|o| typing.dims.get(o.as_str())).cloned().unwrap_or_default();
    score_axes(typing, node, &dims).is_none_or(|(front, last)| [front, last.to_vec()].concat().is_sorted())
}

/// The axes of a Softmax's output: those before queries and keys, and these two. The Softmax runs over the keys, mostly
/// the last axis; where it is not (optimisers move a Transpose past it), queries are as many as keys, or the last axis
/// that is left.
pub(crate) fn score_axes(typing: &Typing, node: &NodeProto, dims: &[Dim]) -> Option<(Vec<usize>, [usize; 2])> {
    let rank = dims.len();
    if rank < 3 {
        return None;
    }
    let axis = node.int("axis").filter(|_| node.op_type() == "Softmax" && typing.opset >= 13).unwrap_or(-1);
    let keys = resolve_axis(axis, rank)?;
    let mut others: Vec<usize> = (0..rank).filter(|&a| a != keys).collect();
    let leaves = |a: usize| typing.factors.leaves(&dims[a]);
    let like_keys = others.iter().rposition(|&a| leaves(a) == leaves(keys)).filter(|_| keys + 1 < rank);
    let queries = others.remove(like_keys.unwrap_or(others.len() - 1));
    Some((others, [queries, keys]))
}
