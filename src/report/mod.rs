//! What is told about models: agreement of outputs, plots.

mod agreement;
mod evaluation;
mod page;
mod plot;

pub use agreement::{Agreement, Measures};
pub use evaluation::{ClassScore, Evaluation, Scores};
pub use page::{Seen, run_page, shrink_page, training_page};
pub use plot::{Curve, Frontier, KeptLayer, density_plot, frontier_plot, kept_plot, map_picture, training_plot};

/// The key of the preprocessing description in a model's `metadata_props`.
pub const PREPROCESS: &str = "offshoot.preprocess";
