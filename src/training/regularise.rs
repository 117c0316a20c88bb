//! Stochastic depth (Huang et al. 2016): residual branches are dropped for single images, and those that stay are
//! scaled up.
//!
//! Which branches are dropped is drawn outside the graph, which takes the draws as an input: so a run is the same on
//! every runtime.

use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder};
use crate::onnx::proto::GraphProto;
use crate::onnx::{DataType, tensor_info};

/// The input [branches, batch]: 0 where a branch is dropped for an image, else the reciprocal of the probability that
/// it stays.
pub const KEPT: &str = "kept_branches";

/// Puts a factor before every residual sum of the layers. Returns the graph and the number of branches, in order of
/// execution.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where no residual sum was found, or where images are no axis of it.
pub(super) fn stochastic_depth(typing: &Typing, anatomy: &Anatomy) -> Result<(GraphProto, usize)> {
    let links = typing.links();
    let mut sums: Vec<(usize, &str)> = anatomy
        .layers
        .iter()
        .flat_map(|l| &l.residual_adds)
        .filter_map(|(skip, sum)| Some((links.maker(sum)?, skip.as_str())))
        .collect();
    sums.sort_unstable();
    sums.dedup();
    let count = sums.len();
    if count == 0 {
        return Err(
            Error::new(ErrorKind::Unsupported, "stochastic depth found no residual sum").hint("leave ⟦drop-path⟧ out")
        );
    }
    let batch = typing.batch_size();
    let mut graph = typing.graph.clone();
    let mut b = Builder::new(&graph, typing.opset, "kept");
    for (i, &(k, skip)) in sums.iter().enumerate() {
        let node = &typing.graph.node[k];
        let Some(j) = node.input.iter().position(|x| x != skip && !x.is_empty()).filter(|_| node.input.len() == 2)
        else {
            return Err(Error::new(ErrorKind::Unsupported, "stochastic depth needs residual sums of two values")
                .in_node(crate::onnx::node_label(node))
                .hint("leave ⟦drop-path⟧ out"));
        };
        let branch = node.input[j].clone();
        let shape = typing.shape(&branch).unwrap_or_default();
        if shape.first() != Some(&batch) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the first axis of the branch `{branch}` is not the batch"),
            )
            .hint("leave ⟦drop-path⟧ out"));
        }
        let row = b.slice(KEPT, 0, i as i64, i as i64 + 1);
        let mut factor = vec![1; shape.len()];
        factor[0] = batch;
        let factor = b.reshape(&row, &factor);
        let kept = b.op("Mul", &[&branch, &factor]);
        graph.node[k].input[j] = kept;
    }
    b.finish(&mut graph);
    graph.input.push(tensor_info(KEPT, DataType::Float, &[Some(count), Some(batch)]));
    graph::sort(&mut graph)?;
    Ok((graph, count))
}

/// Probability that branch `i` of `count` is dropped: it grows in a line from 0 to `last`.
pub fn probability(i: usize, count: usize, last: f32) -> f32 {
    if count < 2 { last } else { last * i as f32 / (count - 1) as f32 }
}
