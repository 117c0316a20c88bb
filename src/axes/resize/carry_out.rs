//! A plan carried out on a graph.

use super::plan::ResizePlan;
use super::repair::repair;
use super::weights::{place, put_operands, weights};
use crate::axes::typing::Typing;
use crate::error::Result;
use crate::graph::{self, Builder};
use crate::onnx::proto::GraphProto;

/// Carries out a plan. The result is pruned and consistent; type it again to work on it further.
///
/// # Errors
/// [`ErrorKind::Typing`](crate::error::ErrorKind::Typing) where an operand cannot be corrected; it names the node.
pub fn resize(typing: &Typing, plan: &ResizePlan) -> Result<GraphProto> {
    let mut out = typing.graph.clone();
    if plan.is_empty() {
        return Ok(out);
    }
    for factor in plan.gathers.keys().chain(plan.spreads.keys().map(|(_, _, factor)| factor)) {
        typing.free(*factor)?;
    }
    let mut builder = Builder::new(&out, typing.opset, "offshoot");
    let changed = weights(typing, plan)?;
    place(typing, changed, &mut builder.names, &mut out);
    put_operands(&plan.operands, &mut builder.names, &mut out);
    let mut factors = typing.factors.clone();
    for (&f, indices) in &plan.gathers {
        factors.set_size(f, indices.len());
    }
    repair(typing, plan, &mut factors, builder, &mut out)?;
    graph::prune(&mut out);
    Ok(out)
}
