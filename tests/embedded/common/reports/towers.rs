//! A model of two towers (CLIP): the output that counts decides which of them changes, against PyTorch
//! (scripts/fixtures/towers.py).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayViewD};
use offshoot::graph::{SampleInputs, cut};
use offshoot::onnx::{Model, payload};
use offshoot::runtime::Runtime;
use serde_json::Value;

use crate::common::binary::{json, refused, text};
use crate::common::root;
use crate::common::surgery::error;

/// Each tower, its output, the inputs that this needs, and its layers.
const TOWERS: [(&str, &str, &[&str], [usize; 2]); 2] = [
    ("vision", "image_embeds", &["pixel_values"], [0, 1]),
    ("text", "text_embeds", &["input_ids", "attention_mask"], [2, 3]),
];

fn ancestor() -> PathBuf {
    root().join("fixtures/reports/towers/clip.onnx")
}

fn array(value: &Value) -> ArrayD<f32> {
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let shape: Vec<usize> = numbers(&value["shape"]).into_iter().map(|n| n as usize).collect();
    ArrayD::from_shape_vec(shape, numbers(&value["values"]).into_iter().map(|v| v as f32).collect()).unwrap()
}

/// What a tower says of the inputs of the golden file.
fn said(runtime: &Arc<Runtime>, model: &Model, golden: &Value, (of, inputs): (&str, &[&str])) -> Vec<ArrayD<f32>> {
    let names: Vec<String> = inputs.iter().map(|name| name.to_string()).collect();
    let mut tower = model.clone();
    cut(&mut tower, SampleInputs::Inputs(&names), Some(of)).unwrap();
    let arrays: Vec<ArrayD<f32>> = inputs.iter().map(|name| array(&golden["feeds"][name])).collect();
    let views: Vec<(&str, ArrayViewD<f32>)> = inputs.iter().copied().zip(arrays.iter().map(|a| a.view())).collect();
    runtime.load_open(&tower, arrays[0].shape()[0], [16, 16]).unwrap().run_on(&views).unwrap()
}

fn weights(model: &Model) -> HashMap<&str, Vec<u8>> {
    model.graph().initializer.iter().map(|t| (t.name(), payload(t).to_vec())).collect()
}

/// The tower that an output needs is halved as PyTorch's, and the other one is the ancestor's: it says the same, and no
/// weight of it is another.
pub fn one_tower_changes(runtime: &Arc<Runtime>) {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("fixtures/reports/towers/golden.json")).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (clip, path) = (ancestor(), folder.path().join("child.onnx"));
    for (tower, of, inputs, layers) in TOWERS {
        let plan = json(&[
            "grow",
            text(&clip),
            "--no-images",
            "--of",
            of,
            "--heads",
            "2",
            "--force",
            "--json",
            "-o",
            text(&path),
        ]);
        let heads = |layer: &Value| layer["heads"].as_u64().unwrap();
        let counts: Vec<u64> = plan["layers"].as_array().unwrap().iter().map(heads).collect();
        let wanted: Vec<u64> = (0..4).map(|l| if layers.contains(&l) { 2 } else { 4 }).collect();
        assert_eq!(counts, wanted, "{of}");
        let (old, child) = (Model::open(&clip).unwrap(), Model::open(&path).unwrap());
        let (other, other_inputs) = TOWERS.iter().find(|t| t.0 != tower).map(|t| (t.1, t.2)).unwrap();
        for (name, inputs, truth) in
            [(of, inputs, &golden["halved"][tower][of]), (other, other_inputs, &golden["outputs"][other])]
        {
            let found = said(runtime, &child, &golden, (name, inputs));
            let far = error(&found, &[array(truth)]);
            assert!(far < 1e-5, "--of {of}: `{name}` is {far:e} off");
        }
        let (before, after) = (weights(&old), weights(&child));
        let other_tower = if tower == "text" { "vision" } else { "text" };
        let mut count = 0;
        for (name, bytes) in before.iter().filter(|(name, _)| name.contains(other_tower)) {
            assert_eq!(after.get(name), Some(bytes), "--of {of}: `{name}`");
            count += 1;
        }
        assert!(count > 10, "{count} weights of the {other_tower} tower");
        // Numbers of layers count those of the tower.
        let shallow = ["grow", text(&clip), "--no-images", "--of", of, "--layers", "1", "--force", "--json"];
        let plan = json(&[&shallow[..], &["-o", text(&path)]].concat());
        let kept = |layer: &Value| layer["ancestor_layer"].as_u64().unwrap() as usize;
        let kept: Vec<usize> = plan["layers"].as_array().unwrap().iter().map(kept).collect();
        assert_eq!(kept, (0..4).filter(|&l| l != layers[1]).collect::<Vec<_>>(), "{of}");
        // `inspect` shows one tower, whatever it takes.
        let shown = json(&["inspect", text(&clip), "--of", of, "--json"]);
        assert_eq!(shown["layers"].as_array().unwrap().len(), 2, "{of}");
    }
    let scratch = ["grow", text(&clip), "--no-images", "--of", "image_embeds", "--init", "from-scratch"];
    refused(&[&scratch[..], &["--force", "-o", text(&path)]].concat(), &["from-scratch", "--of spares some"]);
}
