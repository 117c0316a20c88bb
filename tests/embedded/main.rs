//! Tests that need nothing but Rust: they run on the embedded runtime.

mod anatomy;
mod common;
mod surgery;
