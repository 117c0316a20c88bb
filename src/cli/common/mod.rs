//! Groups of flags that commands share.

mod clusters;
mod data;
mod model;
mod runtime;
mod shape;
mod training;
pub mod values;

pub use clusters::ClusterFlags;
pub use data::{ArrayFlags, DataFlags, SampleFiles, SampleFlags, TransformFlags};
pub use model::{OpenFlags, VerifyFlags};
pub use runtime::{RunFlags, RuntimeFlags};
pub use shape::ShapeFlags;
pub use training::{OptimizerKind, TrainingFlags};
