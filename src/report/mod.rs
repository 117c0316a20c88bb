//! What is shown of models and runs: pages and plots.

mod page;
mod plot;

pub use page::{Picture, Section, Seen, run_page, shrink_page, study_page, training_page};
pub use plot::{
    Curve, Frontier, KeptLayer, Measure, Series, density_plot, frontier_plot, kept_plot, map_picture, series_plot,
    training_plot,
};
