//! One typing rule an operator.
//!
//! A rule takes the dimensions of a node's inputs and says what those of its outputs are: contractions unify what they
//! sum over, elementwise operators unify what they align, Reshape regroups factors, Transpose permutes them, Slice and
//! Split name parts, Concat joins them. Which rule an operator has stands in `dispatch`; the other files are those of
//! the gradient rules.

mod attention;
mod branches;
mod contraction;
mod dispatch;
mod elementwise;
mod indexing;
mod movement;
mod normalisation;
mod opaque;
mod recurrence;
mod resampling;
mod values;
mod vocabulary;

pub(super) use branches::branch_of;
pub use contraction::explicit_einsum;
pub(crate) use resampling::window_length;
pub(super) use values::shape_value;
