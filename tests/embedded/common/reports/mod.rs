//! What users reported of tools of this trade, one file a kind: each began as a wrong result without a word.

pub mod batches;
pub mod branches;
pub mod classes;
pub mod classifiers;
pub mod configs;
pub mod constants;
pub mod fashion;
pub mod heads;
pub mod inputs;
pub mod joined;
pub mod listed;
pub mod masks;
pub mod models;
pub mod pictures;
pub mod ranges;
pub mod sizes;
pub mod stacks;
pub mod starts;
pub mod studies;
pub mod tars;
pub mod teachers;
pub mod unknown;
pub mod values;
pub mod verified;
pub mod windows;
pub mod wrapped;
