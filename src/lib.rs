//! Offshoot grows small Vision Transformers out of big ones: ONNX in, ONNX out.
#![warn(missing_docs)]
#[macro_use]
pub mod error;
pub mod anatomy;
pub mod axes;
pub mod cli;
pub mod data;
pub mod density;
pub mod descendant;
pub mod graph;
pub mod learngene;
pub mod onnx;
pub mod report;
pub mod runtime;
