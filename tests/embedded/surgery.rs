//! Surgery and densities of every fixture, on the embedded runtime.

use crate::common::tract;

#[test]
fn surgery_on_every_fixture_equals_its_oracle() {
    let runtime = tract();
    crate::common::surgery::check_all(&runtime);
}

#[test]
fn densities_of_every_fixture_equal_their_attention_maps() {
    let runtime = tract();
    crate::common::densities::check_all(&runtime);
}

#[test]
fn no_child_has_a_node_more_than_its_ancestor() {
    crate::common::nodes::no_child_has_more();
}

#[test]
fn children_declare_their_values_as_their_ancestor_does() {
    let runtime = tract();
    crate::common::declared::check_all(&runtime);
}

#[test]
fn children_of_other_heads_say_how_many_they_are() {
    crate::common::nodes::heads_are_said();
}
