//! Fused operators of the domain `offshoot`, for training on ONNX Runtime's processor: one pass over memory where a
//! graph of standard operators takes several, and attention whose scores never leave the cache.
//!
//! All are single precision. They run on the session's own threads, and their results do not depend on how many there
//! are: work is cut by the shapes alone, and partial sums are added in order. Graphs that use them come from
//! [`crate::training::kernels`]; only a session of ONNX Runtime on the processor knows the operators.

mod adamw;
mod attention;
mod lanes;
mod normalization;
mod operators;
mod pointwise;
mod product;
mod scratch;
#[cfg(test)]
mod tests;

pub(crate) use operators::{DOMAIN, domain};
