//! Tests that need nothing but Rust: they run on the embedded runtime.

mod anatomy;
mod cli;
mod clusters;
mod common;
mod decided;
mod dequantize;
mod fitting;
mod forms;
mod gradients;
mod image_size;
mod init;
mod int8;
mod operators;
mod padding;
mod precision;
mod random;
mod reports;
mod study;
mod surgery;
mod texts;
mod training;
mod tune;
mod wrong;
