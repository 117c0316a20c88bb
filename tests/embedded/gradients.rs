//! Gradient rules on the embedded runtime.

use offshoot::runtime::{Kind, Options, Runtime};

#[test]
fn every_gradient_rule_equals_finite_differences() {
    let runtime = Runtime::start(&Options { kind: Kind::Tract, ..Options::default() }).unwrap();
    crate::common::rules::check_all(&runtime);
}
