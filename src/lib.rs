//! Offshoot.
#![warn(missing_docs)]
#[macro_use]
pub mod error;
pub mod anatomy;
pub mod axes;
pub mod graph;
pub mod onnx;
