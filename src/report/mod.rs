//! What is told about models: agreement of outputs, plots.

mod agreement;
mod evaluation;
mod page;
mod plot;

pub use agreement::{Agreement, Measures};
pub use evaluation::{ClassScore, Evaluation, Scores, binary_cross_entropy};
pub use page::{Picture, Section, Seen, run_page, shrink_page, study_page, training_page};
pub use plot::{
    Curve, Frontier, KeptLayer, Series, density_plot, frontier_plot, kept_plot, map_picture, series_plot, training_plot,
};

pub use crate::axes::PREPROCESS;
