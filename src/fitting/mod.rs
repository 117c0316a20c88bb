//! Fitting: smaller networks in closed form, on a few dozen unlabelled images, without gradients.
//!
//! The steps: statistics of what enters the output projections and the last FFN matrices ([`network`]); which heads and
//! neurons go first ([`order`]); what thinning each block costs at the end of the network; where to cut under a budget
//! ([`plan`]); the descendant by the surgery that everything else uses; and its matrices fitted in order of execution,
//! each correcting the errors of those before it ([`mod@refit`]).

pub mod algebra;
mod allocate;
mod blocks;
mod budget;
mod calibration;
pub mod comparison;
mod head_dims;
mod head_factors;
mod job;
mod knapsack;
pub mod latency;
mod layout;
mod lengths;
pub mod network;
pub mod order;
mod padding;
mod prune;
mod range;
pub mod refit;
mod scratch;
mod shrinker;
pub mod similarity;
mod stages;
mod subgraph;
mod targets;
mod towers;

pub use allocate::plan;
pub use budget::{Allocation, Budget, LayerBudget, Limits};
pub use calibration::{Calibration, Views};
pub use job::{Fitter, Job, JobOptions, Origin, analyse, carrying, may_cut_dims};
pub use latency::Latencies;
pub use network::Progress;
pub use prune::thin;
pub use range::beyond_half;
pub use shrinker::{Fit, MEMORY, Shrinker, Shrunk, Timing};
pub use subgraph::{Values, image_input, pin, pin_on};
pub use towers::{Tower, Towers};
