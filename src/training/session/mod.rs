//! A session: what a run of training works with, assembled once for all who train (`tune`, `run` and studies).
//!
//! [`Setup`] brings model, data and teacher together and checks them against each other before any graph is built. A
//! [`Session`] has the graphs, the loaders and the state, and [fits](Session::fit).

mod classifier;
mod data;
mod fit;
mod goal;
mod options;
mod setup;
mod teaching;

pub use data::{Data, HoldOut, open_dataset};
pub use fit::{Images, Session};
pub use goal::{Goal, LabelLoss};
pub use options::Options;
pub use setup::{Open, Prepared, Setup};
pub use teaching::Guide;
