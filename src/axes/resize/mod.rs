//! Surgery, the same for every dialect: gather each weight axis that carries a factor along that factor, then walk once
//! more with the new sizes and correct every shape operand, slice border and attribute that disagrees with the typing.

mod carry_out;
mod operators;
mod plan;
mod repair;
mod shapes;
mod weights;

pub use carry_out::resize;
pub use plan::{LinearCombination, ResizePlan};
pub(crate) use weights::{mix, take};
