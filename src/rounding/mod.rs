//! The types that children are written in: half precision, and weights in int8 with what reads them.
//!
//! [`convert`] is the door. Half precision is the [graph's](crate::graph::convert); here stands what int8 takes: the
//! operator set is raised where it has no DequantizeLinear with an axis (`raise`), weights are chosen and the others
//! named (`plan`), rounded (`numbers`), and written with the nodes of a form (`write`). What is written is read back
//! by [`unfold`](fn@crate::graph::unfold).

mod dtype;
mod numbers;
mod plan;
mod raise;
mod write;

pub use dtype::{Converted, Dtype, convert, convert_but};
pub use plan::{Kept, Rounded, Twice};
pub use raise::raise;
