//! Models of several stacks of layers: what belongs to which, against PyTorch's children (scripts/fixtures/stacks.py).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::Array4;
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{GrowOptions, Layers, grow};
use offshoot::learngene::Learngene;
use offshoot::onnx::{Model, tensor_from_i64};
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use crate::common::binary::{done, json as printed, refused, text};
use crate::common::root;
use crate::common::surgery::run;

/// The folder of some fixtures, and what PyTorch says of them.
pub fn golden(folder: &str) -> (PathBuf, Value) {
    let folder = root().join("fixtures/reports").join(folder);
    let golden = serde_json::from_slice(&fs::read(folder.join("golden.json")).unwrap()).unwrap();
    (folder, golden)
}

/// The images that the models were run on.
pub fn images(golden: &Value) -> Array4<f32> {
    Array4::from_shape_vec((2, 1, 12, 12), numbers(&golden["images"])).unwrap()
}

pub fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// A model of the fixtures, as commands open it.
pub fn opened(path: PathBuf) -> Model {
    let mut model = Model::open(path).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    model
}

/// How far the first output of a model is from these numbers, relative to the largest of them.
pub fn far(runtime: &Arc<Runtime>, model: &Model, x: &Array4<f32>, truth: &[f32]) -> f32 {
    let found = run(runtime, model, x).unwrap();
    assert_eq!(found[0].len(), truth.len());
    let largest = truth.iter().fold(0f32, |m, v| m.max(v.abs()));
    found[0].iter().zip(truth).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
}

/// A norm goes with a layer where the layer's own sums are followed by one, and stays where it is that of a stack.
pub fn norms_behind_a_stack_stay(runtime: &Arc<Runtime>) {
    children_are_pytorchs(runtime, "stacks", "encoders");
}

/// Children that keep some layers of the models that a list of a folder names: PyTorch's modules without the others.
pub fn children_are_pytorchs(runtime: &Arc<Runtime>, folder: &str, list: &str) {
    let (folder, golden) = golden(folder);
    let x = images(&golden);
    for entry in golden[list].as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let model = opened(folder.join(file));
        let typing = Typing::new(&model).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        for child in entry["children"].as_array().unwrap() {
            let kept = child["kept"].as_array().unwrap().iter().map(|l| l.as_u64().unwrap() as usize).collect();
            let shape = GrowOptions { layers: Layers::List(kept), ..GrowOptions::default() };
            let grown = grow(&model, &gene, &shape).unwrap();
            let error = far(runtime, &grown.model, &x, &numbers(&child["outputs"]));
            assert!(error < 2e-5, "{file}, {}: {error:e}", child["kept"]);
        }
        for kept in entry["refused"].as_array().into_iter().flatten() {
            let kept = kept.as_array().unwrap().iter().map(|l| l.as_u64().unwrap() as usize).collect();
            let shape = GrowOptions { layers: Layers::List(kept), ..GrowOptions::default() };
            let error = grow(&model, &gene, &shape).unwrap_err().to_string();
            assert!(error.contains("cannot be dropped"), "{file}: {error}");
        }
    }
}

/// `inspect` names the stacks, `--layers` takes their names, and no stack is emptied without being named.
pub fn layers_are_those_of_a_stack(runtime: &Arc<Runtime>) {
    let (folder, golden) = golden("stacks");
    let (path, x) = (folder.join("towers.onnx"), images(&golden));
    let found = printed(&["inspect", text(&path), "--json"]);
    let stack = |name: &str, layers: [usize; 3]| json!({"name": name, "layers": layers});
    assert_eq!(found["stacks"], json!([stack("vision", [0, 1, 2]), stack("text", [3, 4, 5])]));
    assert_eq!((&found["layers"][4]["stack"], &found["layers"][4]["stack_index"]), (&json!("text"), &json!(1)));
    let shown = String::from_utf8(done(&["inspect", text(&path)]).stdout).unwrap();
    assert!(shown.contains("vision:2") && shown.contains("text:0"), "{shown}");
    let one = String::from_utf8(done(&["inspect", "models/fashion-vit.onnx"]).stdout).unwrap();
    assert!(!one.contains("stack"), "one stack needs no name: {one}");

    let temporary = tempfile::tempdir().unwrap();
    let child = temporary.path().join("child.onnx");
    let arguments =
        |layers: &'static str| ["grow", text(&path), "--no-images", "--force", "--layers", layers, "-o", text(&child)];
    for (layers, stack) in [("3", "text"), ("last:3", "vision"), ("even:1", "text")] {
        refused(&arguments(layers), &[&format!("no layer of the stack `{stack}` is left"), "--layers vision:1,text:1"]);
    }
    refused(&arguments("sound:1"), &["no stack `sound`", "`vision` (layers 0 to 2)", "`text` (layers 3 to 5)"]);
    refused(&arguments("text:4"), &["4 layers were asked for"]);
    assert!(!child.exists());
    // Who lists layers one by one has seen which they are.
    let told = String::from_utf8(done(&arguments("3,4,5")).stderr).unwrap();
    assert!(told.contains("no layer of the stack `vision` is left"), "{told}");
    fs::remove_file(&child).unwrap();
    let init = ["grow", text(&path), "--init", "heuristic-learngene", "--layers", "3", "-o", text(&child)];
    refused(&init, &["no layer of the stack `vision` is left"]);

    let ids: Vec<i64> = golden["towers"]["ids"].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect();
    for (layers, truth) in golden["towers"]["children"].as_object().unwrap() {
        done(&["grow", text(&path), "--no-images", "--force", "--layers", layers, "-o", text(&child)]);
        let mut grown = Model::open(&child).unwrap();
        // The texts are those that PyTorch read.
        let graph = grown.graph_mut();
        graph.input.retain(|v| v.name() != "ids");
        graph.initializer.push(tensor_from_i64("ids".to_string(), &[3, 6], &ids));
        let error = far(runtime, &grown, &x, &numbers(truth));
        assert!(error < 2e-5, "{layers}: {error:e}");
    }
}

/// Operations of a tower that takes the cut patches of one picture are those of the whole picture.
pub fn patches_are_no_batch() {
    let (folder, golden) = golden("stacks");
    let found = printed(&["inspect", text(&folder.join("patches.onnx")), "--json"]);
    assert_eq!(found["macs"], golden["patches"]["macs"]);
}
