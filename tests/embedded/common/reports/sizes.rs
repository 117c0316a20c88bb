//! The image size that is assumed where a graph leaves it open: register tokens were read as a grid of patches, and
//! tables of offsets as tables of positions. `fixtures/reports/sizes` holds exports of transformers' models whose sizes
//! are known.

use std::fs;

use offshoot::graph::{int_attribute, node};
use offshoot::onnx::{DataType, Model, tensor_info};
use serde_json::{Value, json};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{done, json, offshoot, refused, text};

/// DINOv3 (patches of 8 pixels, four registers) by PyTorch's exporter: it has no table of any size.
const DINOV3: &str = "fixtures/reports/sizes/dinov3-open.onnx";
/// DINOv2 for 32 pixels (patches of 8) by transformers' own exporter: its input is open, and its positions have one
/// size.
const DINOV2: &str = "fixtures/reports/sizes/dinov2-hf-exporter.onnx";
/// BEiT for 112 pixels (patches of 16) by the same: its biases are a table of 13 x 13 offsets, which stays as it is for
/// any image.
const BEIT: &str = "fixtures/reports/sizes/beit-hf-exporter.onnx";
/// ViT for 16 pixels (patches of 4), which resamples its positions.
const VIT: &str = "fixtures/graphs/hf-vit-dynamic-size-ts17.onnx";

fn stderr(arguments: &[&str]) -> String {
    String::from_utf8(offshoot(arguments).stderr).unwrap()
}

fn inspected(model: &str, more: &[&str]) -> Value {
    json(&[&["inspect", model, "--json"], more].concat())
}

/// Tables that are what the grid needs decide; registers do not, and what nothing decides is a guess and a warning.
pub fn tokens_that_no_patch_makes_are_no_grid() {
    let found = inspected(DINOV3, &[]);
    assert_eq!((&found["input"]["size"], &found["input"]["size_from"]), (&json!([224, 224]), &json!("guess")));
    assert_eq!((&found["grid"], &found["prefix_tokens"]), (&json!([28, 28]), &json!(5)));
    assert!(
        stderr(&["inspect", DINOV3]).contains("warning: nothing says which image size this model is for: 224 x 224")
    );

    let found = inspected(DINOV3, &["--input-size", "64x48"]);
    assert_eq!((&found["input"]["size"], &found["input"]["size_from"]), (&json!([64, 48]), &json!("flags")));
    assert_eq!((&found["grid"], &found["prefix_tokens"]), (&json!([8, 6]), &json!(5)));
    assert!(!stderr(&["inspect", DINOV3, "--input-size", "64"]).contains("warning"));

    for (model, size, grid) in [(DINOV2, 32, 4), (BEIT, 112, 7), (VIT, 16, 4)] {
        let found = inspected(model, &[]);
        assert_eq!(
            (&found["input"]["size"], &found["input"]["size_from"]),
            (&json!([size, size]), &json!("tables")),
            "{model}"
        );
        assert_eq!(found["grid"], json!([grid, grid]));
        assert!(!stderr(&["inspect", model]).contains("warning"));
    }
}

/// A transform from flags, or one that the graph shows, names no size: a guess stays one.
pub fn a_transform_that_is_supplied_names_no_size() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    fashion::folder(&pictures, 3, 2);
    let density = ["density", DINOV3, "--images", text(&pictures), "--runtime", "tract", "--mean", ".4", "--std", ".3"];
    let found = json(&[&density[..], &["--json"]].concat());
    assert_eq!((&found["input"]["size_from"], &found["input"]["size"]), (&json!("guess"), &json!([224, 224])));
    assert_eq!(found["input"]["transform_from"], json!(["flags"]));
    assert!(stderr(&density).contains("warning: nothing says which image size this model is for: 224 x 224"));

    // Bytes, which need no transform but their scale.
    let bytes = folder.path().join("bytes.onnx");
    let mut model = Model::open(crate::common::root().join(DINOV3)).unwrap();
    let graph = model.graph_mut();
    let input = graph.input[0].name().to_string();
    for taken in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|x| **x == input) {
        *taken = "pixels".into();
    }
    graph.node.insert(0, node("Cast", &[&input], &["pixels"], vec![int_attribute("to", DataType::Float as i64)]));
    graph.input[0] = tensor_info(&input, DataType::Uint8, &[Some(1), Some(3), None, None]);
    model.write(&bytes).unwrap();
    let found = inspected(text(&bytes), &[]);
    assert_eq!((&found["input"]["size_from"], &found["input"]["transform_from"]), (&json!("guess"), &json!(["graph"])));
    assert!(stderr(&["inspect", text(&bytes)]).contains("warning: nothing says which image size this model is for"));

    // The model's own transform does, and does so when flags replace a part of it.
    let own = folder.path().join("own.onnx");
    let transform = r#"{"size": [64, 64], "channels": 3, "mean": [0.5], "std": [0.5], "crop_ratio": 1.0, "interpolation": "bicubic", "resize": "square"}"#;
    fashion::with_metadata(crate::common::root().join(DINOV3), "offshoot.preprocess", Some(transform), &own);
    let found = json(&[&["density", text(&own)], &density[2..], &["--json"]].concat());
    assert_eq!((&found["input"]["size_from"], &found["input"]["size"]), (&json!("metadata"), &json!([64, 64])));
    assert_eq!(found["input"]["transform_from"], json!(["flags", "metadata"]));
}

/// Flags, the model's metadata, a configuration beside it, tables.
pub fn the_strongest_source_decides() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = path("model.onnx");
    fs::copy(crate::common::root().join(VIT), &model).unwrap();
    let size = |more: &[&str]| {
        let found = inspected(text(&model), more);
        (found["input"]["size"][0].as_u64().unwrap(), found["input"]["size_from"].as_str().unwrap().to_string())
    };
    assert_eq!(size(&[]), (16, "tables".into()));
    let config = path("preprocessor_config.json");
    let processor = json!({"image_mean": 0.5, "image_std": 0.5, "size": {"shortest_edge": 48}, "do_center_crop": true,
        "crop_size": 40});
    fs::write(&config, processor.to_string()).unwrap();
    assert_eq!(size(&[]), (40, text(&config).to_string()));
    let metadata = |key: &str, value: &str| fashion::with_metadata(&model, key, Some(value), &model);
    metadata(
        "offshoot.preprocess",
        r#"{"size": [48, 48], "channels": 3, "mean": [0.5], "std": [0.5], "crop_ratio": 1.0, "interpolation": "bicubic", "resize": "square"}"#,
    );
    assert_eq!(size(&[]), (48, "metadata".into()));
    metadata("offshoot.image_size", "56x56");
    assert_eq!(size(&[]), (56, "metadata".into()));
    assert_eq!(size(&["--input-size", "64"]), (64, "flags".into()));

    // A size that the positions do not have is no size of this model, whoever says it.
    let rigid = path("rigid.onnx");
    fs::copy(crate::common::root().join(DINOV2), &rigid).unwrap();
    let pictures = path("pictures");
    fashion::folder(&pictures, 3, 2);
    let density = ["density", text(&rigid), "--images", text(&pictures), "--runtime", "tract"];
    refused(&density, &["preprocessor_config.json", "40 x 40, which the graph cannot take", "--input-size"]);
    refused(&[&density[..], &["--input-size", "40"]].concat(), &["cannot take images of 40 x 40 pixels"]);
    assert_eq!(inspected(text(&rigid), &["--input-size", "32"])["grid"], json!([4, 4]));
}

/// The flag is for models of any size, is checked, and stays with the child.
pub fn a_size_that_is_said_is_used(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    refused(
        &["inspect", ANCESTOR, "--input-size", "32"],
        &["takes images of 28 x 28 pixels, not of 32 x 32", "--image-size"],
    );
    done(&["inspect", ANCESTOR, "--input-size", "28"]);
    assert_eq!(offshoot(&["inspect", DINOV3, "--input-size", "0"]).status.code(), Some(2));
    refused(&["inspect", "fixtures/graphs/timm-vit-unfused-ts17.onnx", "--input-size", "20x16"], &["not of 20 x 16"]);

    let pictures = path("pictures");
    fashion::folder(&pictures, 3, 4);
    let density = ["density", DINOV3, "--images", text(&pictures), "--input-size", "64", "--runtime", runtime];
    let found = json(&[&density[..], &["--json"]].concat());
    assert_eq!(found["input"]["size"], json!([64, 64]));
    assert_eq!(found["preprocess"]["size"], json!([64, 64]));
    // Pixels between tokens of a grid of eight by eight, not of two by two.
    let longest = found["densities"][0].as_array().unwrap().iter().filter_map(Value::as_f64).fold(0.0, f64::max);
    assert!(longest > 16.0, "{found}");
    assert!(stderr(&density).contains("images of 64 x 64 pixels (from the flags)"));

    let child = path("child.onnx");
    done(&["grow", DINOV3, "--no-images", "--input-size", "64", "-o", text(&child)]);
    let found = inspected(text(&child), &[]);
    assert_eq!((&found["input"]["size"], &found["input"]["size_from"]), (&json!([64, 64]), &json!("metadata")));

    // Of two models one may have a size of its own; one of them has to take what is said.
    let fixed = path("fixed.onnx");
    done(&["grow", VIT, "--no-images", "--fold", "--image-size", "16", "-o", text(&fixed)]);
    let compare = ["compare", VIT, text(&fixed), "--images", text(&pictures), "--runtime", runtime];
    let found = json(&[&compare[..], &["--input-size", "16", "--tolerance", "1e-4", "--json"]].concat());
    assert_eq!(found["input"]["a"]["size_from"], "flags");
    assert_eq!(found["input"]["b"]["size_from"], "graph");
    refused(&["compare", ANCESTOR, ANCESTOR, "--images", text(&pictures), "--input-size", "32"], &["not of 32 x 32"]);
    let other = json(&[&["compare", DINOV3, DINOV3], &compare[3..], &["--input-size", "32", "--json"]].concat());
    assert_eq!(other["input"]["b"]["size"], json!([32, 32]));
}
