//! One gradient rule an operator. A rule emits standard operators, and only for inputs that need a gradient.

mod backward;
mod contraction;
mod elementwise;
mod movement;
mod normalisation;
mod operands;
mod resampling;

pub(super) use backward::backward;
