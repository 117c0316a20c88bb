//! The ONNX Runtime group: what other tests check on tract, checked on ONNX Runtime as well.
//!
//! The group runs where the shared library is found (`scripts/fetch_onnxruntime.sh`) and says so where it is left out. With
//! `OFFSHOOT_REQUIRE_ONNXRUNTIME=1` a missing library is a failure.

#[path = "embedded/common/mod.rs"]
mod common;

use std::io::Write;
use std::sync::{Arc, LazyLock};

use offshoot::runtime::{Kind, Options, Runtime};
use offshoot::training::Operators;

static RUNTIME: LazyLock<Result<Arc<Runtime>, String>> = LazyLock::new(|| {
    Runtime::start(&Options { kind: Kind::Onnxruntime, ..Options::default() }).map_err(|e| e.to_string())
});

/// Says something that the test harness does not keep to itself.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The runtime, or `None` where the group is left out.
fn runtime() -> Option<&'static Arc<Runtime>> {
    match &*RUNTIME {
        Ok(runtime) => {
            say(&format!("ONNX Runtime group: {}", runtime.describe()));
            Some(runtime)
        }
        Err(why) if std::env::var_os("OFFSHOOT_REQUIRE_ONNXRUNTIME").is_some() => {
            panic!("the ONNX Runtime group was asked for and cannot run: {why}")
        }
        Err(why) => {
            say(&format!("ONNX Runtime group LEFT OUT: {why}"));
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

/// Runs the binary on a runtime and reads the JSON that it prints.
fn json_on(runtime: &str, arguments: &[&str]) -> serde_json::Value {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_offshoot"))
        .args(arguments)
        .args(["--runtime", runtime, "--json"])
        .current_dir(common::root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    json_on("onnxruntime", arguments)
}

fn largest_relative_difference(found: &serde_json::Value, golden: &str) -> f64 {
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(common::root().join(golden)).unwrap()).unwrap();
    let flat = |v: &serde_json::Value| -> Vec<f64> {
        v["densities"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|l| l.as_array().unwrap())
            .map(|d| d.as_f64().unwrap())
            .collect()
    };
    let (a, b) = (flat(found), flat(&golden));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| (a - b).abs() / b).fold(0.0, f64::max)
}

#[test]
fn densities_of_every_fixture_equal_their_attention_maps() {
    if let Some(runtime) = runtime() {
        common::densities::check_all(runtime);
    }
}

#[test]
fn densities_of_the_bundled_ancestor_equal_an_independent_computation() {
    if runtime().is_none() {
        return;
    }
    let found = json(&[
        "density",
        "models/fashion-vit.onnx",
        "--images",
        "fixtures/fashion-images.idx3-ubyte",
        "--limit",
        "100",
    ]);
    let difference = largest_relative_difference(&found, "fixtures/density/fashion-vit.json");
    assert!(difference < 1e-5, "{difference}");
}

/// The real pretrained model and photographs that `scripts/fetch_models.sh` fetches; `OFFSHOOT_REQUIRE_MODELS=1` makes it a
/// failure that they are missing.
#[test]
fn the_real_model_goes_the_whole_path() {
    let (model, photographs) = (".cache/dinov2-small-saliency.onnx", ".cache/photographs");
    let missing = [model, photographs].iter().any(|p| !common::root().join(p).exists());
    if runtime().is_none() || missing {
        assert!(!missing || std::env::var_os("OFFSHOOT_REQUIRE_MODELS").is_none(), "run scripts/fetch_models.sh");
        say("real model LEFT OUT: it needs ONNX Runtime and scripts/fetch_models.sh");
        return;
    }
    let found = json(&["density", model, "--images", photographs]);
    let difference = largest_relative_difference(&found, "fixtures/density/dinov2-small.json");
    assert!(difference < 1e-3, "densities differ by {difference}");

    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let (gene, child) = (path("gene.onnx"), path("child.onnx"));
    let condensed = json(&["condense", model, "--images", photographs, "-o", &gene]);
    assert_eq!(condensed["layers"].as_array().unwrap().len(), 12);
    let plan = json(&["grow", &gene, "--layers", "even:6", "--heads", "3", "--verify", "-o", &child]);
    let compared = json(&["compare", model, &child, "--images", photographs, "--limit", "4", "--runs", "3"]);
    assert_eq!(compared["parameters"]["b"], plan["parameters"]);
    for (key, share) in [("parameters", 0.6), ("bytes", 0.6), ("macs", 0.6), ("latency_ms", 1.0)] {
        let value = |m: &str| compared[key][m].as_f64().unwrap();
        assert!(value("b") < share * value("a"), "{key}: {} and {}", value("a"), value("b"));
    }
    // With nothing clustered and nothing left out the child is the ancestor.
    json(&["grow", model, "--no-images", "--heads", "6", "-o", &child, "--force"]);
    let same = json(&[
        "compare",
        model,
        &child,
        "--images",
        photographs,
        "--limit",
        "2",
        "--runs",
        "1",
        "--tolerance",
        "1e-5",
    ]);
    assert!(same["correlation"].as_f64().unwrap() > 0.999999);
}

/// Both runtimes give the same densities.
#[test]
fn runtimes_agree() {
    if runtime().is_none() {
        return;
    }
    let arguments = ["density", "models/fashion-vit.onnx", "--images", "fixtures/fashion-png"];
    let a = json(&arguments);
    let b = json_on("tract", &arguments);
    for (x, y) in a["densities"].as_array().unwrap().iter().zip(b["densities"].as_array().unwrap()) {
        for (x, y) in x.as_array().unwrap().iter().zip(y.as_array().unwrap()) {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() < 1e-4 * y, "{x} and {y}");
        }
    }
}

#[test]
fn gradients_of_every_fixture_equal_pytorch() {
    let Some(runtime) = runtime() else { return };
    for operators in [Operators::Standard, Operators::Contrib, Operators::Fused] {
        common::gradients::check_all(runtime, operators, &[]);
    }
}

#[test]
fn every_gradient_rule_equals_finite_differences() {
    if let Some(runtime) = runtime() {
        common::rules::check_all(runtime);
    }
}

#[test]
fn gradients_in_half_precision_are_those_in_single_precision() {
    if let Some(runtime) = runtime() {
        common::gradients::check_half(runtime);
    }
}
