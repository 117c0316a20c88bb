//! Text encoders with open batch and tokens, on the embedded runtime.

use crate::common::{surgery, texts, tract};

#[test]
fn batches_of_texts_may_be_of_any_length() {
    texts::lengths_are_any(&tract());
}

#[test]
fn a_text_alone_equals_itself_in_a_batch() {
    texts::a_text_alone_equals_itself_in_a_batch(&tract());
}

#[test]
fn surgery_on_texts_equals_its_oracle() {
    surgery::check_texts(&tract());
}
