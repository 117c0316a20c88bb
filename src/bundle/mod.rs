//! A child's folder: what lay beside its ancestor, with the child's sizes.
//!
//! Whoever runs a model opens more than its file: a tokenizer, and the configurations of transformers,
//! sentence-transformers or timm. A [`Bundle`] is what lies beside an ancestor of these. It is copied into the folder
//! of a child, and [`ModelSizes`] are corrected on the way: in `config.json` a number changes where it is the
//! ancestor's, so that no key is believed by its name alone. Everything else stays as it is, in its order. What a
//! configuration cannot say is told.

mod correct;
mod files;
mod keys;
mod sizes;

pub use correct::Change;
pub use files::{Bundle, BundleReport, Correction};
pub use sizes::{ModelSizes, Stack};
