//! Fused operators taken apart into standard ones, where probabilities or gradients are asked for or a runtime lacks
//! the operator.

mod operators;
mod sequence;

pub(super) use operators::without_recent;
pub use operators::{decompose_attention, differentiable, separate_skip_norms};
