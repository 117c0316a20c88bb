//! What users reported of tools of this trade, on the embedded runtime.

use crate::common::reports::{classes, pictures, tars};

#[test]
fn class_folders_are_matched_by_name() {
    classes::folders_are_matched_by_name("tract");
}

#[test]
fn classes_that_the_model_lacks_are_named() {
    classes::missing_classes_are_named("tract");
}

#[test]
fn class_folders_are_sorted_as_numbers() {
    classes::numbers_are_sorted_as_numbers("tract");
}

#[test]
fn tuned_models_have_the_names_of_their_labels() {
    classes::tuned_models_have_the_names_of_their_labels("tract");
}

#[test]
fn truncated_pictures_are_counted() {
    pictures::truncated_files_are_counted("tract");
}

#[test]
fn pictures_are_told_by_their_content() {
    pictures::files_are_told_by_their_content("tract");
}

#[test]
fn classes_without_pictures_are_errors() {
    pictures::empty_classes_are_errors("tract");
}

#[test]
fn fields_of_tar_archives_are_chosen_by_name() {
    tars::bare_extensions_come_first("tract");
}
