//! Normalisation that stands in a configuration beside the model: nobody read it, and the ancestor had 72.67 % where
//! 92.67 % is right.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::fashion::ANCESTOR;
use super::wrapped::{self, MEAN, STD};
use crate::common::binary::{done, json, offshoot, refused, text};

const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";
/// Beside these two, `--interpolation bicubic --crop-ratio 1` is the ancestor's transform.
const FLAGS: [&str; 4] = ["--mean", "0.286", "--std", "0.353"];

fn evaluated(runtime: &str, model: &str, more: &[&str]) -> Value {
    json(&[&["eval", model, "--data", IMAGES, "--runtime", runtime, "--json"], more].concat())
}

fn processor(mean: f32, std: f32) -> Value {
    json!({
        "image_processor_type": "ViTImageProcessor", "do_resize": true, "size": {"height": 28, "width": 28},
            "resample": 3,
        "do_rescale": true, "rescale_factor": 1.0 / 255.0, "do_normalize": true, "image_mean": [mean, mean, mean],
        "image_std": [std, std, std], "do_center_crop": false,
    })
}

fn of_timm(mean: f32, std: f32) -> Value {
    json!({"architecture": "vit", "pretrained_cfg": {
        "input_size": [3, 28, 28], "interpolation": "bicubic", "mean": [mean, mean, mean], "std": [std, std, std],
            "crop_pct": 1.0,
    }})
}

fn same(found: &Value, expected: &Value) -> bool {
    let close = |key: &str| (found[key].as_f64().unwrap() - expected[key].as_f64().unwrap()).abs() < 2e-4;
    close("top1") && close("loss")
}

fn stderr(arguments: &[&str]) -> String {
    String::from_utf8(offshoot(arguments).stderr).unwrap()
}

/// Writes a file into a folder that is made where it is not there.
fn put(path: &Path, value: &Value) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

/// Each source is used, its name is told, and the child keeps what was used.
pub fn transforms_beside_the_model_are_read(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let model = wrapped::rgb([1.0 / 3.0; 3]);
    let right = evaluated(runtime, ANCESTOR, &[]);
    assert!(right["top1"].as_f64().unwrap() > 0.92, "{right}");
    assert_eq!(right["input"]["transform_from"], json!(["metadata"]));

    // Nothing says it: what is usual for ImageNet is wrong here, and a warning.
    let alone = path("alone/model.onnx");
    fs::create_dir_all(alone.parent().unwrap()).unwrap();
    model.write(&alone).unwrap();
    let guessed = evaluated(runtime, text(&alone), &[]);
    assert!(guessed["top1"].as_f64().unwrap() < 0.8, "{guessed}");
    assert_eq!(guessed["input"]["transform_from"], json!(["guess"]));
    let said = stderr(&["eval", text(&alone), "--data", IMAGES, "--limit", "2", "--runtime", runtime]);
    assert!(said.contains("warning: nothing says how pictures are normalised"), "{said}");

    // transformers' form beside the model; timm's form above a folder `onnx`, with a model's own config of the same
    // name in between.
    let hugging = path("hugging/model.onnx");
    put(&path("hugging/preprocessor_config.json"), &processor(MEAN, STD));
    model.write(&hugging).unwrap();
    let optimum = path("optimum/onnx/model.onnx");
    put(&path("optimum/onnx/config.json"), &json!({"model_type": "vit", "image_size": 224}));
    put(&path("optimum/config.json"), &of_timm(MEAN, STD));
    model.write(&optimum).unwrap();
    for (file, config) in [(&hugging, "hugging/preprocessor_config.json"), (&optimum, "optimum/config.json")] {
        let found = evaluated(runtime, text(file), &[]);
        assert!(same(&found, &right), "{config}: {found}");
        let from = found["input"]["transform_from"][0].as_str().unwrap();
        assert_eq!(fs::canonicalize(from).unwrap(), fs::canonicalize(path(config)).unwrap());
        let said = stderr(&["eval", text(file), "--data", IMAGES, "--limit", "2", "--runtime", runtime]);
        let name = Path::new(config).file_name().unwrap().to_str().unwrap();
        assert!(said.contains("mean 0.286, std 0.353, ") && said.contains(name), "{said}");
        assert!(!said.contains("warning"), "{said}");
        // A child elsewhere has no file beside it, and needs none.
        let child = path("child.onnx");
        done(&["grow", text(file), "--no-images", "-o", text(&child), "--force"]);
        let found = evaluated(runtime, text(&child), &[]);
        assert!(same(&found, &right), "the child: {found}");
        assert_eq!(found["input"]["transform_from"], json!(["metadata"]));
    }

    // What trains a child is written into it, wherever it was read, even from flags.
    let tuned = path("tuned.onnx");
    let training = ["tune", text(&alone), "--data", IMAGES, "--steps", "1", "--lr", "1e-9", "--batch-size", "8"];
    let more = ["--val-split", "0", "--crop-ratio", "1", "-o", text(&tuned), "--runtime", runtime];
    done(&[&training[..], &FLAGS, &more].concat());
    assert!(same(&evaluated(runtime, text(&tuned), &[]), &right));
}

/// Flags, the model's metadata, transformers' configuration, timm's.
pub fn the_strongest_source_wins(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let file = path("model.onnx");
    let mut model = wrapped::rgb([1.0 / 3.0; 3]);
    model.write(&file).unwrap();
    let seen = |more: &[&str]| {
        let found = evaluated(runtime, text(&file), &[&["--limit", "2"], more].concat());
        let from = found["input"]["transform_from"].as_array().unwrap().len();
        (found["input"]["transform"]["mean"][0].as_f64().unwrap() as f32, from)
    };
    put(&path("config.json"), &of_timm(0.1, 0.5));
    assert_eq!(seen(&[]), (0.1, 1));
    put(&path("preprocessor_config.json"), &processor(0.2, 0.5));
    assert_eq!(seen(&[]), (0.2, 1));
    model.set_metadata(
        "offshoot.preprocess",
        r#"{"size": [28, 28], "channels": 3, "mean": [0.3], "std": [0.5], "crop_ratio": 1.0, "interpolation": "bicubic", "resize": "square"}"#,
    );
    model.write(&file).unwrap();
    assert_eq!(seen(&[]), (0.3, 1));
    // A flag for one thing leaves the others.
    assert_eq!(seen(&["--mean", "0.4"]), (0.4, 2));
    assert_eq!(seen(&["--crop-ratio", "0.5"]), (0.3, 2));
}

/// A configuration that cannot be used is named; flags that decide make it no matter, and so does a command that feeds
/// no pictures.
pub fn what_cannot_be_used_is_named(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let file = path("model.onnx");
    wrapped::rgb([1.0 / 3.0; 3]).write(&file).unwrap();
    let config = path("preprocessor_config.json");
    let eval = ["eval", text(&file), "--data", IMAGES, "--limit", "2", "--runtime", runtime];
    let mut other = processor(MEAN, STD);
    other["size"] = json!({"height": 32, "width": 32});
    let mut detector = processor(MEAN, STD);
    detector["size"] = json!({"shortest_edge": 800, "longest_edge": 1333});
    let cases = [
        ("{\"image_mean\": [0.5".to_string(), "not JSON"),
        (" ".repeat((1 << 20) + 1), "more than a configuration has"),
        (json!({"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}).to_string(), "2 entries"),
        (json!({"image_mean": 0.5, "image_std": 0}).to_string(), "above 0"),
        (detector.to_string(), "is not among Offshoot's transforms"),
        (other.to_string(), "it is for images of 32 x 32, and the graph takes 28 x 28"),
    ];
    for (content, says) in cases {
        fs::write(&config, content).unwrap();
        refused(&eval, &[says, "preprocessor_config.json"]);
        let found = json(&[&eval[..], &FLAGS, &["--json"]].concat());
        assert_eq!(found["input"]["transform"]["mean"][0].as_f64().unwrap() as f32, MEAN);
        let inspected = offshoot(&["inspect", text(&file)]);
        assert!(inspected.status.success());
        assert!(String::from_utf8_lossy(&inspected.stderr).contains(says), "{says}");
    }
    // A size that is said takes the rest of the configuration.
    let found = json(&[&eval[..], &["--input-size", "28", "--json"]].concat());
    assert_eq!(found["input"]["transform"]["mean"][0].as_f64().unwrap() as f32, MEAN);
    assert_eq!(found["input"]["size"], json!([28, 28]));
}
