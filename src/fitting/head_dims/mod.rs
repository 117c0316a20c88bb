//! Head dimension: fewer dimensions of queries and keys, and of values, in every head.

mod bases;
mod cost;
mod find;
mod statistics;
#[cfg(test)]
mod tests;
mod write;

pub use cost::{dimension_costs, local_errors};
pub use find::{HeadDimReduction, narrows_of};
pub use statistics::{AttentionStatistics, IMAGES, measure};
pub use write::{Truncation, write};
