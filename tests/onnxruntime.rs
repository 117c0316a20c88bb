//! The ONNX Runtime group: what other tests check on tract, checked on ONNX Runtime as well.
//!
//! The group runs where the shared library is found (`scripts/fetch_onnxruntime.sh`) and says so where it is left out. With
//! `OFFSHOOT_REQUIRE_ONNXRUNTIME=1` a missing library is a failure.

#[path = "embedded/common/mod.rs"]
mod common;

use std::sync::{Arc, LazyLock};

use offshoot::runtime::{Kind, Options, Runtime};

static RUNTIME: LazyLock<Result<Arc<Runtime>, String>> = LazyLock::new(|| {
    Runtime::start(&Options { kind: Kind::Onnxruntime, ..Options::default() }).map_err(|e| e.to_string())
});

/// The runtime, or `None` where the group is left out.
fn runtime() -> Option<&'static Arc<Runtime>> {
    match &*RUNTIME {
        Ok(runtime) => {
            eprintln!("ONNX Runtime group: {}", runtime.describe());
            Some(runtime)
        }
        Err(why) if std::env::var_os("OFFSHOOT_REQUIRE_ONNXRUNTIME").is_some() => {
            panic!("the ONNX Runtime group was asked for and cannot run: {why}")
        }
        Err(why) => {
            eprintln!("ONNX Runtime group LEFT OUT: {why}");
            None
        }
    }
}

#[test]
fn surgery_on_every_fixture_equals_its_oracle() {
    if let Some(runtime) = runtime() {
        common::surgery::check_all(runtime);
    }
}
