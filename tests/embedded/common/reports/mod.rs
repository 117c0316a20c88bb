//! What users reported of tools of this trade, one file a kind: each began as a wrong result without a word.

pub mod classes;
pub mod fashion;
pub mod pictures;
pub mod tars;
