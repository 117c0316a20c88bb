//! What is told about models: agreement of outputs, plots.

mod agreement;
mod evaluation;
mod page;
mod plot;

pub use agreement::{Agreement, Measures};
pub use evaluation::{ClassScore, Evaluation, Scores};
pub use page::{run_page, training_page};
pub use plot::{Curve, density_plot, training_plot};

/// The key of the preprocessing description in a model's `metadata_props`.
pub const PREPROCESS: &str = "offshoot.preprocess";
