//! What an operator is, said once: one row of [`table`] for each, and the only place that lists operators by name.
//!
//! A column stands here where two parts of the code ask the same of an operator, or where one asks it of many. What
//! needs code is a function beside its like: the typing rules (`axes::rules`), shape arithmetic (`axes::arithmetic`),
//! the gradient rules (`training::rules`). An operator that is not in the table has nothing that a column could say of
//! it.

mod lookup;
mod row;
mod table;

pub use lookup::{marked, named, of};
pub use row::{Mark, ShapeRule, Slot, Type};
