//! Offshoot grows small encoders (Vision Transformers and text models) out of big ones: ONNX in, ONNX out.
//!
//! The modules are the pipeline, in order: [`onnx`] (the file), `ops` (what an operator is), [`graph`], [`axes`]
//! (what every dimension is made of), [`runtime`], [`anatomy`] (heads, FFNs, layers), [`data`] (images), [`opening`]
//! (a model with what lies beside it), [`density`] (mean attention distances), [`metrics`] (agreement and scores),
//! [`learngene`] (clusters), [`bundle`] (a child with what lay beside its ancestor), [`descendant`], [`fitting`]
//! (closed-form refits), [`training`] (gradients as graphs), [`report`] (pages and plots), [`study`] (grids of all
//! that), `cli` (with the feature of that name). Data flows one way; no module reaches back. [`error`], [`metadata`]
//! (the names that files are read by), [`progress`] (who is told how far work is) and [`parallel`], processes that
//! share the work, stand below all of them.
//! ARCHITECTURE.md in the repository is the map.
//!
//! The main job, from an ancestor to a running child:
//!
//! ```
//! use offshoot::{anatomy::Anatomy, axes::Typing, data, density, descendant, graph, learngene, onnx::Model, runtime};
//!
//! # fn main() -> offshoot::error::Result<()> {
//! let mut ancestor = Model::open("models/fashion-vit.onnx")?;
//! graph::prepare(&mut ancestor)?;
//! let typing = Typing::new(&ancestor)?;
//! let anatomy = Anatomy::new(&typing)?;
//!
//! let options = runtime::Options { kind: runtime::RuntimeKind::Tract, ..Default::default() };
//! let runtime = runtime::Runtime::start(&options)?;
//! let input = data::InputShape::of(&typing)?;
//! let preprocess = ancestor.metadata("offshoot.preprocess");
//! let images = data::Loader::open("fixtures/fashion-png", &Default::default(), preprocess, input)?;
//! let densities = density::measure(&runtime, &ancestor, &typing, &anatomy, &images, |_| {})?;
//!
//! let rules = learngene::Rules { min_heads: 1, ..Default::default() };
//! let gene = learngene::Learngene::cluster(&typing, &anatomy, &densities, &rules)?;
//! let condensed = gene.condense(&ancestor, &typing, &anatomy)?;
//! let shape = descendant::GrowOptions { layers: "even:4".parse()?, heads: "4".parse()?, ..Default::default() };
//! let child = descendant::grow(&condensed, &gene, &shape)?;
//! assert!(child.plan.parameters * 2 < learngene::parameters(ancestor.graph()));
//! child.model.write(std::env::temp_dir().join("child.onnx"))?;
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

#[macro_use]
pub mod error;

pub mod anatomy;
pub mod axes;
pub mod bundle;
#[cfg(feature = "cli")]
pub mod cli;
pub mod data;
pub mod density;
pub mod descendant;
pub mod fitting;
pub mod graph;
pub mod learngene;
pub mod metadata;
pub mod metrics;
pub mod onnx;
pub mod opening;
mod ops;
pub mod options;
pub mod parallel;
pub mod progress;
pub mod report;
pub mod rounding;
pub mod runtime;
pub mod study;
pub mod training;
