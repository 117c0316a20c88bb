//! How models are measured: the agreement of two, the scores of a classifier.

mod agreement;
mod evaluation;

pub use agreement::{Agreement, Measures};
pub use evaluation::{ClassScore, Evaluation, Scores, binary_cross_entropy};
