//! Other image sizes, on the embedded runtime.

use offshoot::runtime::{Kind, Options, Runtime};

#[test]
fn children_of_another_image_size_equal_timms() {
    let runtime = Runtime::start(&Options { kind: Kind::Tract, ..Options::default() }).unwrap();
    crate::common::image_size::check_all(&runtime);
}

#[test]
fn folded_fixtures_give_the_same_outputs() {
    let runtime = Runtime::start(&Options { kind: Kind::Tract, ..Options::default() }).unwrap();
    crate::common::image_size::check_folding(&runtime);
}
