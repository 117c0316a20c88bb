//! Forms of one model, on the embedded runtime.

use crate::common::forms::{Form, check};

#[test]
fn a_fixed_batch_goes_through_every_command() {
    check(Form::FixedBatch, "tract");
}

#[test]
fn weights_beside_the_model_go_through_every_command() {
    check(Form::OneFile, "tract");
    check(Form::ManyFiles, "tract");
}

#[test]
fn bfloat16_goes_through_every_command() {
    check(Form::Precision(offshoot::onnx::DataType::Bfloat16), "tract");
}
