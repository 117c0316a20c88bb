//! What is told about models: agreement of outputs, plots.

mod agreement;
mod plot;

pub use agreement::{Agreement, Measures};
pub use plot::density_plot;

/// The key of the preprocessing description in a model's `metadata_props`.
pub const PREPROCESS: &str = "offshoot.preprocess";
