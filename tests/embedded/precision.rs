//! Half precision on the embedded runtime, and `--dtype` on the command line.

use crate::common::binary::{json, refused, text};

use crate::common::tract;

#[test]
fn every_fixture_in_half_precision_says_what_it_said() {
    let runtime = tract();
    crate::common::precision::check_all(&runtime);
}

#[test]
fn children_are_written_in_the_type_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (ancestor, images) = ("models/fashion-vit.onnx", "fixtures/fashion-images.idx3-ubyte");
    let compare = |child: &std::path::Path| {
        let few = ["--images", images, "--limit", "16", "--runs", "1", "--runtime", "tract", "--json"];
        json(&[&["compare", ancestor, text(child)][..], &few].concat())
    };
    for (dtype, correlation) in [("fp16", 0.99999), ("bf16", 0.999)] {
        let child = at(dtype);
        let plan = json(&["grow", ancestor, "--no-images", "--dtype", dtype, "-o", text(&child), "--json"]);
        let compared = compare(&child);
        assert!(compared["correlation"].as_f64().unwrap() > correlation, "{dtype}: {compared}");
        assert_eq!(compared["bytes"]["b"], plan["bytes"]);
        assert!(compared["bytes"]["b"].as_f64().unwrap() < 0.6 * compared["bytes"]["a"].as_f64().unwrap());
        assert_eq!(
            json(&["inspect", text(&child), "--json"])["layers"],
            json(&["inspect", ancestor, "--json"])["layers"]
        );
    }
    // And back: what float16 holds is held by float32.
    let (half, wide) = (at("fp16"), at("fp32"));
    json(&["grow", text(&half), "--no-images", "--dtype", "fp32", "-o", text(&wide), "--json"]);
    let few =
        ["--images", images, "--limit", "16", "--runs", "1", "--tolerance", "1e-2", "--runtime", "tract", "--json"];
    json(&[&["compare", text(&half), text(&wide)][..], &few].concat());

    let shrunk = at("shrunk");
    let budget = ["--budget", "bytes=600k", "--crops", "16", "--runtime", "tract"];
    json(
        &[&["shrink", ancestor, "--images", images, "--dtype", "fp16", "-o", text(&shrunk), "--json"][..], &budget]
            .concat(),
    );
    let bytes = std::fs::metadata(&shrunk).unwrap().len();
    assert!((480_000..=600_000).contains(&bytes), "{bytes}");

    let tuned = at("tuned");
    let once = ["--epochs", "1", "--steps", "1", "--batch-size", "2", "--val-split", "0", "--runtime", "tract"];
    json(&[&["tune", ancestor, "--data", images, "--dtype", "bf16", "-o", text(&tuned), "--json"][..], &once].concat());
    assert!(compare(&tuned)["bytes"]["b"].as_f64().unwrap() < 0.6 * compare(&tuned)["bytes"]["a"].as_f64().unwrap());

    let old = "fixtures/graphs/timm-vit-unfused-ts11.onnx";
    refused(
        &["grow", old, "--no-images", "--dtype", "bf16", "-o", text(&at("no"))],
        &["operator set 11 has no bfloat16"],
    );
    assert!(!at("no").exists());
}
