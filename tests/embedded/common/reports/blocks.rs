//! Layers that are more than an attention and an FFN: half FFNs and a convolution around it, a cross-attention, several
//! FFNs, an FFN that is not read as one, weighed skips, a narrow stream inside a wide one; against PyTorch's children
//! (scripts/fixtures/blocks.py).

use std::sync::Arc;

use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{FfnWidth, GrowOptions, Heads, Init, grow};
use offshoot::learngene::Learngene;
use offshoot::onnx::Model;
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use super::stacks::{children_are_pytorchs, far, golden, images, numbers, opened};
use crate::common::binary::{done, json as printed, refused, text};

fn identity(model: &Model) -> Learngene {
    let typing = Typing::new(model).unwrap();
    Learngene::identity(&typing, &Anatomy::new(&typing).unwrap())
}

/// A dropped layer is dropped whole: PyTorch's module whose list lacks it.
pub fn layers_go_whole(runtime: &Arc<Runtime>) {
    children_are_pytorchs(runtime, "layers", "models");
}

/// Every FFN of a layer is found and resized, and a convolution beside them is not.
pub fn every_ffn_of_a_layer_is_resized(runtime: &Arc<Runtime>) {
    let (folder, golden) = golden("layers");
    let x = images(&golden);
    let temporary = tempfile::tempdir().unwrap();
    for entry in golden["models"].as_array().unwrap() {
        let path = folder.join(entry["file"].as_str().unwrap());
        let found = printed(&["inspect", text(&path), "--json"]);
        let layers = found["layers"].as_array().unwrap();
        let widths =
            |layer: &Value| -> Value { layer["ffns"].as_array().unwrap().iter().map(|f| f["width"].clone()).collect() };
        if entry["ffns"].as_array().unwrap().iter().all(|ffns| ffns == &json!([])) {
            assert!(layers.iter().all(|layer| widths(layer) == json!([])), "{layers:?}");
            let child = temporary.path().join("child.onnx");
            let half = ["grow", text(&path), "--no-images", "--ffn-width", "50%", "-o", text(&child)];
            refused(&half, &["no layer has an FFN that is known", "leave out --ffn-width"]);
            continue;
        }
        assert_eq!(layers.iter().map(widths).collect::<Value>(), entry["ffns"], "{}", path.display());
        for layer in layers {
            assert_eq!(layer["convolution"]["width"], entry["convolution"], "{}", path.display());
            let alone = layer["ffns"].as_array().unwrap().len() == 1;
            assert_eq!(layer["ffn_width"].is_null(), !alone, "one FFN keeps its own fields");
        }
        let model = opened(path.clone());
        let shape =
            GrowOptions { ffn_width: FfnWidth::Percent(50.0), init: Init::PretrainFinetune, ..GrowOptions::default() };
        let grown = grow(&model, &identity(&model), &shape).unwrap();
        let error = far(runtime, &grown.model, &x, &numbers(&entry["halved"]));
        assert!(error < 2e-5, "{}: {error:e}", path.display());
        if entry["few"].is_array() {
            let fewer = GrowOptions { heads: Heads::Percent(50.0), ..shape };
            let error =
                far(runtime, &grow(&model, &identity(&model), &fewer).unwrap().model, &x, &numbers(&entry["few"]));
            assert!(error < 2e-5, "{}, half the heads: {error:e}", path.display());
        }
    }
    let shown = String::from_utf8(done(&["inspect", text(&folder.join("conformer.onnx"))]).stdout).unwrap();
    assert!(shown.contains("24, 32") && shown.contains("convolution"), "{shown}");
    let shown = printed(&["inspect", text(&folder.join("bare.onnx")), "--json"]);
    for layer in shown["layers"].as_array().unwrap() {
        let read = ["heads", "head_dim", "embedding_dim", "attention"].map(|field| &layer[field]);
        assert_eq!(json!(read), json!([1, 16, 16, "no output projection"]));
    }
    let linear = folder.join("linear.onnx");
    let shown = printed(&["inspect", text(&linear), "--json"]);
    assert!(
        shown["layers"].as_array().unwrap().iter().all(|l| l["attention"] == "linear" && l["heads"] == 1),
        "{shown}"
    );
    let density = ["density", text(&linear), "--images", "fixtures/fashion-png", "--mean", "0.5", "--std", "0.5"];
    refused(&density, &["of layer 0, its attention is linear", "grow --no-images"]);
    let shown = printed(&["inspect", text(&folder.join("groups.onnx")), "--json"]);
    let of: Value =
        shown["other_attentions"].as_array().unwrap().iter().map(|a| json!([a["keys"], a["ffn_width"]])).collect();
    assert_eq!(of, json!([[16, 24], [16, 24]]), "groups that compete for tokens have an FFN, too");
    let shown = printed(&["inspect", text(&folder.join("decoder.onnx")), "--json"]);
    let of: Value = shown["other_attentions"].as_array().unwrap().iter().map(|a| a["layer"].clone()).collect();
    assert_eq!(of, json!([2, 3]), "a cross-attention names the layer that it goes with");
}
