//! How models are measured: the agreement of two, the scores of a classifier, the ranks of similarities.

mod agreement;
mod evaluation;
mod ranks;

pub use agreement::{Agreement, Measures};
pub use evaluation::{ClassScore, Evaluation, EvaluationCounts, binary_cross_entropy};
pub use ranks::{cosine, spearman};
