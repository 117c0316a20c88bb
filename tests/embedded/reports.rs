//! What users reported of tools of this trade, on the embedded runtime.

use crate::common::tract;

use crate::common::reports::{
    arrays, batches, blocks, both_towers, branches, bundles, classes, classifiers, configs, constants, feeds, heads,
    inputs, joined, labelled, learned, listed, masks, meeting, models, pictures, ranges, scored, sentences, shared,
    sizes, stacks, starts, studies, tars, teachers, texts, tokens, towers, unknown, values, verified, windows,
};

#[test]
fn the_output_that_counts_decides_which_tower_changes() {
    towers::one_tower_changes(&tract());
}

#[test]
fn both_towers_are_shrunk_as_each_by_itself() {
    both_towers::each_tower_is_that_of_its_own(&tract());
}

#[test]
fn one_command_shrinks_both_towers() {
    both_towers::one_command_shrinks_both("tract");
}

#[test]
fn learngenes_of_both_towers_have_the_clusters_of_each() {
    both_towers::learngenes_have_the_clusters_of_each("tract");
}

#[test]
fn densities_of_both_towers_are_those_of_each() {
    both_towers::densities_are_those_of_each("tract");
}

#[test]
fn what_is_for_one_tower_is_refused() {
    both_towers::what_is_for_one_tower_is_refused();
}

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

#[test]
fn losses_take_the_logits_before_an_activation() {
    classifiers::losses_take_the_logits("tract");
    classifiers::cross_entropy_behind_a_sigmoid_is_refused("tract");
}

#[test]
fn activations_are_found_in_any_form() {
    classifiers::activations_are_found_in_any_form("tract");
}

#[test]
fn new_classifiers_keep_what_is_behind_them() {
    classifiers::new_classifiers_keep_what_is_behind_them(&tract());
}

#[test]
fn fixed_batches_are_trained_in_the_size_asked_for() {
    batches::batches_are_of_the_size_asked_for("tract");
}

#[test]
fn children_get_an_open_batch() {
    batches::children_get_an_open_batch(&tract());
    batches::tokens_that_are_repeated_are_opened(&tract());
    batches::lists_say_the_batch_of_each_child();
}

#[test]
fn batches_that_are_not_open_are_found() {
    batches::batches_that_are_not_open_are_found("tract");
}

#[test]
fn open_batches_of_all_exports_are_believed() {
    batches::open_batches_of_all_exports_are_believed(&tract());
}

#[test]
fn branches_that_shapes_choose_are_inlined() {
    branches::children_have_their_branches_inlined(&tract());
}

#[test]
fn branches_that_more_than_shapes_choose_are_refused() {
    branches::what_more_than_shapes_chooses_is_refused();
}

#[test]
fn operators_that_are_not_known_keep_what_they_touch() {
    unknown::an_invented_operator_keeps_what_it_touches();
    unknown::a_layer_whose_ffn_is_not_read_stays();
    unknown::rules_say_what_the_specification_says();
    unknown::what_is_sampled_is_no_attention();
}

#[test]
fn children_keep_what_was_fed() {
    feeds::children_keep_what_was_fed(&tract(), "tract");
}

#[test]
fn commands_run_with_what_is_fed() {
    feeds::commands_run_with_what_is_fed("tract");
}

#[test]
fn one_output_of_several_counts() {
    feeds::one_output_of_several_counts(&tract(), "tract");
}

#[test]
fn inputs_that_decide_shapes_are_fed() {
    feeds::inputs_that_decide_shapes_are_fed(&tract(), "tract");
}

#[test]
fn densities_are_those_of_real_tokens() {
    texts::densities_are_those_of_real_tokens("tract");
}

#[test]
fn models_are_compared_on_real_tokens() {
    texts::models_are_compared_on_real_tokens("tract");
}

#[test]
fn images_may_be_arrays() {
    texts::images_may_be_arrays("tract");
}

#[test]
fn padding_changes_no_child() {
    texts::padding_changes_no_child("tract", &crate::common::texts::tried(&tract()));
}

#[test]
fn samples_that_meet_are_run_one_by_one() {
    meeting::samples_that_meet_are_run_one_by_one("tract", &[]);
    meeting::images_that_meet_are_run_one_by_one("tract");
}

#[test]
fn children_are_fitted_on_real_tokens() {
    texts::children_are_fitted_on_real_tokens("tract");
}

#[test]
fn texts_are_condensed() {
    arrays::texts_are_condensed("tract");
}

#[test]
fn heads_differ_by_real_tokens() {
    arrays::heads_differ_by_real_tokens(&tract());
}

#[test]
fn learngenes_of_texts_need_no_samples() {
    arrays::learngenes_of_texts_need_no_samples("tract");
}

#[test]
fn children_are_verified_on_arrays() {
    arrays::children_are_verified_on_arrays("tract");
}

#[test]
fn texts_are_the_arrays_of_their_tokens() {
    sentences::texts_are_the_arrays_of_their_tokens("tract");
}

#[test]
fn texts_are_what_children_grow_on() {
    sentences::texts_are_what_children_grow_on("tract");
}

#[test]
fn a_text_alone_is_itself_in_a_batch() {
    sentences::a_text_alone_is_itself_in_a_batch(&tract());
}

#[test]
fn children_take_so_many_tokens() {
    tokens::children_take_so_many_tokens("tract");
}

#[test]
fn hints_lead_to_the_number_of_tokens() {
    tokens::hints_lead_to_the_number_of_tokens();
}

#[test]
fn places_that_are_given_and_second_sequences_stay() {
    tokens::places_that_are_given_and_second_sequences_stay(&tract());
}

#[test]
fn the_whole_path_takes_a_number_of_tokens() {
    tokens::the_whole_path_takes_a_number_of_tokens("tract");
}

#[test]
fn what_is_assumed_of_texts_is_told() {
    sentences::what_is_assumed_of_texts_is_told();
}

#[test]
fn wrong_texts_are_refused() {
    sentences::wrong_texts_are_refused();
}

#[test]
fn texts_are_judged_and_tuned() {
    learned::texts_are_judged_and_tuned("tract");
}

#[test]
fn texts_learn_from_a_teacher() {
    learned::texts_learn_from_a_teacher("tract");
}

#[test]
fn texts_take_the_whole_path() {
    learned::texts_take_the_whole_path("tract");
}

#[test]
fn labelled_texts_are_the_arrays_of_their_tokens() {
    labelled::labelled_texts_are_the_arrays_of_their_tokens("tract");
}

#[test]
fn texts_learn_without_labels() {
    labelled::texts_learn_without_labels("tract");
}

#[test]
fn new_classifiers_look_at_real_tokens() {
    labelled::new_classifiers_look_at_real_tokens("tract");
}

#[test]
fn padding_is_on_the_left_where_that_is_the_same() {
    sentences::padding_is_on_the_left_where_that_is_the_same("tract");
}

#[test]
fn states_are_pooled_over_real_tokens() {
    sentences::states_are_pooled_over_real_tokens(&tract());
}

#[test]
fn labelled_texts_take_the_whole_path() {
    labelled::labelled_texts_take_the_whole_path("tract");
}

#[test]
fn the_first_texts_alone_are_cut_into_tokens() {
    labelled::the_first_texts_alone_are_cut_into_tokens("tract");
}

#[test]
fn wrong_labels_beside_texts_are_refused() {
    labelled::wrong_labels_beside_texts_are_refused();
}

#[test]
fn names_are_those_of_the_configuration() {
    labelled::names_are_those_of_the_configuration("tract");
}

#[test]
fn pairs_follow_their_scores() {
    labelled::pairs_follow_their_scores("tract");
}

#[test]
fn scores_of_pairs_are_learned() {
    scored::scores_of_pairs_are_learned("tract");
}

#[test]
fn pairs_stay_pairs() {
    scored::pairs_stay_pairs("tract");
}

#[test]
fn cosines_follow_scores_after_tuning() {
    scored::cosines_follow_scores_after_tuning("tract");
}

#[test]
fn wrong_scores_are_not_learned() {
    scored::wrong_scores_are_not_learned();
}

#[test]
fn wrong_scores_are_refused() {
    labelled::wrong_scores_are_refused();
}

#[test]
fn children_have_what_their_ancestor_had() {
    bundles::children_have_what_their_ancestor_had("tract");
}

#[test]
fn every_size_has_its_folder() {
    bundles::every_size_has_its_folder("tract");
}

#[test]
fn texts_are_as_long_as_the_child_takes_them() {
    bundles::texts_are_as_long_as_the_child_takes_them();
}

#[test]
fn pictures_are_of_the_size_of_the_child() {
    bundles::pictures_are_of_the_size_of_the_child();
}

#[test]
fn pooling_twice_is_told() {
    bundles::pooling_twice_is_told();
}

#[test]
fn folders_of_others_stay() {
    bundles::folders_of_others_stay();
}

#[test]
fn wrong_labels_are_refused() {
    learned::wrong_labels_are_refused();
}

#[test]
fn wrong_arrays_are_refused() {
    texts::wrong_arrays_are_refused();
}

#[test]
fn wrong_feeds_are_refused() {
    feeds::wrong_feeds_are_refused();
}

#[test]
fn what_needs_other_inputs_is_cut_away() {
    inputs::what_needs_other_inputs_is_cut_away("tract");
}

#[test]
fn models_are_told_what_helps() {
    models::dequantised_weights_get_the_hint("tract");
    models::tensors_of_other_ranks_are_named("tract");
}

#[test]
fn norms_behind_a_stack_stay() {
    stacks::norms_behind_a_stack_stay(&tract());
}

#[test]
fn layers_are_those_of_a_stack() {
    stacks::layers_are_those_of_a_stack(&tract());
}

#[test]
fn layers_go_whole() {
    blocks::layers_go_whole(&tract());
}

#[test]
fn every_ffn_of_a_layer_is_resized() {
    blocks::every_ffn_of_a_layer_is_resized(&tract());
}

#[test]
fn a_block_is_resized_once() {
    shared::a_block_is_resized_once(&tract());
}

#[test]
fn a_block_is_fitted_once() {
    shared::a_block_is_fitted_once(&tract());
}

#[test]
fn patches_are_no_batch() {
    stacks::patches_are_no_batch();
}

#[test]
fn heads_that_something_else_takes_are_named() {
    heads::heads_that_something_else_takes_are_named(&tract());
}

#[test]
fn heads_of_other_exports_are_taken_once() {
    heads::heads_of_other_exports_are_taken_once();
}

#[test]
fn layers_that_have_the_same_heads_are_given_as_many() {
    heads::layers_that_have_the_same_heads_are_given_as_many();
}

#[test]
fn layers_that_outputs_need_are_named() {
    heads::layers_that_outputs_need_are_named();
}

#[test]
fn a_last_top_k_is_no_classifier() {
    heads::a_last_top_k_is_no_classifier("tract");
}

#[test]
fn values_that_two_nodes_make_are_told_what_helps() {
    models::values_of_two_nodes_get_the_hint();
}

#[test]
fn transforms_beside_the_model_are_read() {
    configs::transforms_beside_the_model_are_read("tract");
}

#[test]
fn the_strongest_source_of_a_transform_wins() {
    configs::the_strongest_source_wins("tract");
}

#[test]
fn configurations_that_cannot_be_used_are_named() {
    configs::what_cannot_be_used_is_named("tract");
}

#[test]
fn tokens_that_no_patch_makes_are_no_grid() {
    sizes::tokens_that_no_patch_makes_are_no_grid();
}

#[test]
fn a_transform_that_is_supplied_names_no_size() {
    sizes::a_transform_that_is_supplied_names_no_size();
}

#[test]
fn the_strongest_source_of_an_image_size_decides() {
    sizes::the_strongest_source_decides();
}

#[test]
fn an_image_size_that_is_said_is_used() {
    sizes::a_size_that_is_said_is_used("tract");
}

#[test]
fn inputs_are_fed_what_they_declare() {
    values::inputs_are_fed_what_they_declare("tract");
}

#[test]
fn children_take_what_their_ancestor_takes() {
    values::children_take_what_their_ancestor_takes("tract");
}

#[test]
fn colours_come_in_the_order_of_the_flag() {
    values::colours_come_in_the_order_of_the_flag("tract");
}

#[test]
fn normalising_twice_is_said() {
    values::normalising_twice_is_said("tract");
}

#[test]
fn the_start_of_a_run_counts() {
    starts::the_start_counts("tract");
}

#[test]
fn a_resumed_run_knows_its_start() {
    starts::a_resumed_run_knows_its_start("tract");
}

#[test]
fn few_images_are_held_out() {
    starts::few_images_are_held_out("tract");
}

#[test]
fn the_start_decides_the_rate() {
    starts::the_start_decides_the_rate("tract");
}

#[test]
fn constants_that_were_merged_are_trained_apart() {
    constants::merged_constants_are_trained_apart("tract");
}

#[test]
fn teachers_have_their_own_normalisation() {
    teachers::teachers_have_their_own_normalisation("tract");
}

#[test]
fn teachers_are_known_by_their_folder() {
    teachers::teachers_are_known_by_their_folder("tract");
}

#[test]
fn teachers_have_their_own_size() {
    teachers::teachers_have_their_own_size("tract");
}

#[test]
fn teachers_of_other_classes_are_refused() {
    teachers::teachers_of_other_classes_are_refused("tract");
}

#[test]
fn studies_open_models_as_commands_do() {
    studies::batches_that_are_not_open_are_found("tract");
    studies::transforms_beside_the_model_are_read("tract");
}

#[test]
fn texts_are_samples_of_a_study() {
    studies::texts_are_samples_of_a_study("tract");
    studies::samples_of_a_study_come_from_one_place();
}

#[test]
fn teachers_of_another_order_are_matched_by_name() {
    teachers::teachers_of_another_order_are_matched_by_name("tract");
}

#[test]
fn teachers_of_a_whole_run_get_its_image_size() {
    teachers::teachers_of_a_whole_run_get_its_image_size("tract");
}

#[test]
fn listed_weights_are_weights() {
    listed::listed_weights_are_weights("tract");
    listed::entries_of_weights_go();
}

#[test]
fn masks_stay_finite_in_half_precision() {
    masks::masks_stay_finite(&tract());
}

#[test]
fn heads_that_are_joined_with_the_batch_fit_every_batch() {
    joined::every_batch_is_right(&tract());
}

#[test]
fn large_neurons_stay_float32() {
    ranges::large_neurons_stay_float32("tract");
}

#[test]
fn windows_at_other_sizes_are_right() {
    windows::children_of_other_sizes_are_right(&tract());
}

#[test]
fn faults_of_children_are_found() {
    verified::faults_are_found(&tract());
    verified::one_run_finds_what_does_not_run(&tract());
}

#[test]
fn outputs_of_each_head_are_left_out_of_a_verification() {
    verified::outputs_of_each_head_are_left_out(&tract());
}

#[test]
fn children_of_every_fixture_pass_their_verification() {
    verified::children_of_every_fixture_pass(&tract());
}

#[test]
fn half_precision_is_run_where_it_is_computed() {
    verified::half_precision_is_run_where_it_is_computed(&tract());
}

#[test]
fn children_are_verified_before_they_are_written() {
    verified::children_are_verified("tract");
    verified::what_is_wrong_is_not_written("tract");
}

#[test]
fn what_is_not_verified_is_said() {
    verified::what_is_not_run_is_said("tract");
    verified::children_of_another_size_are_run("tract");
}

#[test]
fn panics_of_a_runtime_do_not_abort() {
    verified::panics_do_not_abort();
}
