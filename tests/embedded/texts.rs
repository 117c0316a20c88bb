//! Text encoders with open batch and tokens, on the embedded runtime.

use crate::common::image_size::open;
use crate::common::{lengths, surgery, texts, tract};

#[test]
fn batches_of_texts_may_be_of_any_length() {
    texts::lengths_are_any(&tract());
}

#[test]
fn a_text_alone_equals_itself_in_a_batch() {
    texts::a_text_alone_equals_itself_in_a_batch(&tract());
}

#[test]
fn cut_texts_train_like_padded_ones() {
    texts::cut_texts_train_like_padded_ones(&tract());
}

#[test]
fn what_sees_padding_is_not_cut() {
    texts::what_sees_padding_is_not_cut(&tract());
}

#[test]
fn surgery_on_texts_equals_its_oracle() {
    surgery::check_texts(&tract());
}

#[test]
fn children_of_fixed_lengths_are_their_ancestors() {
    lengths::children_of_fixed_lengths_are_their_ancestors(&tract());
}

#[test]
fn longer_children_have_rows_between_those_of_their_ancestors() {
    lengths::longer_children_have_rows_between_those_of_their_ancestors(&tract());
}

#[test]
fn wrong_numbers_of_tokens_are_refused() {
    lengths::wrong_numbers_of_tokens_are_refused(&texts::fixtures()[0], &open("graphs/timm-vit-unfused-ts17.onnx"));
}
