//! Gradient rules on the embedded runtime.

use offshoot::training::Operators;

use crate::common::tract;

#[test]
fn every_gradient_rule_equals_finite_differences() {
    let runtime = tract();
    crate::common::rules::check_all(&runtime);
}

#[test]
fn gradients_of_some_fixtures_equal_pytorch() {
    let runtime = tract();
    let some =
        ["timm-vit-unfused-ts11", "timm-vit-fused-dynamo23", "timm-beit-ts13", "timm-swin-dynamo18", "hf-vit-ts17"];
    crate::common::gradients::check_all(&runtime, Operators::Standard, &some);
}

#[test]
fn gradients_of_a_learngene_add_up_over_its_lookups() {
    let runtime = tract();
    crate::common::gradients::check_learngene(&runtime);
}
