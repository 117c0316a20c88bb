//! Heads and layers that something else needs, against PyTorch (scripts/fixtures/stacks.py): what surgery cannot leave
//! exact is said.

use std::sync::Arc;

use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{GrowOptions, Heads, Layers, grow};
use offshoot::learngene::Learngene;
use offshoot::onnx::proto::NodeProto;
use offshoot::onnx::{DataType, Model, node_label, tensor_from_i64, tensor_info};
use offshoot::runtime::Runtime;

use super::fashion::ANCESTOR;
use super::stacks::{far, golden, images, numbers, opened};
use crate::common::binary::{done, json, refused, text};
use crate::common::{all_fixtures, root};

/// Half the heads of each model: those that a convolution, token merging or an averaged map takes together are named,
/// and no others. The child of all others is the ancestor whose removed heads are at zero, which shows that the message
/// is neither missing nor idle.
pub fn heads_that_something_else_takes_are_named(runtime: &Arc<Runtime>) {
    let (folder, golden) = golden("heads");
    let x = images(&golden);
    for entry in golden["models"].as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let model = opened(folder.join(file));
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let gene = Learngene::identity(&typing, &anatomy);
        assert!(far(runtime, &model, &x, &numbers(&entry["outputs"])) < 2e-5, "{file}");
        let grown = |heads: Heads| grow(&model, &gene, &GrowOptions { heads, ..GrowOptions::default() }).unwrap();
        let same = grown(Heads::Same);
        assert!(same.plan.warnings.is_empty(), "{file}: {:?}", same.plan.warnings);
        let half = grown(Heads::Count(2));
        let said: Vec<&String> = half.plan.warnings.iter().filter(|w| w.contains("taken together")).collect();
        let op = match file {
            "convolution.onnx" => Some("(Conv)"),
            "merged.onnx" | "map.onnx" => Some("(ReduceMean)"),
            _ => None,
        };
        let layers = if file == "map.onnx" { 1 } else { 2 };
        assert_eq!(said.len(), if op.is_some() { layers } else { 0 }, "{file}: {said:?}");
        assert!(said.iter().all(|w| op.is_some_and(|op| w.contains(op))), "{file}: {said:?}");
        let error = far(runtime, &half.model, &x, &numbers(&entry["halved"]));
        let inexact = matches!(file, "convolution.onnx" | "merged.onnx");
        assert_eq!(error > 1e-3, inexact, "{file}: {error:e}");
        assert!(inexact || error < 2e-5, "{file}: {error:e}");
    }
    let temporary = tempfile::tempdir().unwrap();
    let child = temporary.path().join("child.onnx");
    let path = folder.join("convolution.onnx");
    let run = done(&["grow", text(&path), "--no-images", "--heads", "50%", "-o", text(&child)]);
    let said = String::from_utf8(run.stderr).unwrap();
    assert!(said.contains("warning: layer 0: its heads are also taken together in node"), "{said}");
    let counts = json(&["inspect", text(&child), "--json"]);
    assert_eq!(counts["layers"][0]["heads"], 2);
}

/// No export of a plain family takes its heads together but through its output projection, or a weight that mixes them.
pub fn heads_of_other_exports_are_taken_once() {
    let mut found = Vec::new();
    for fixture in all_fixtures() {
        let model = fixture.open();
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let mixers = [anatomy.head_mixers(&typing), anatomy.neuron_mixers(&typing)];
        let labels: Vec<String> =
            mixers.iter().flatten().flatten().map(|&k| node_label(&model.graph().node[k])).collect();
        found.extend((!labels.is_empty()).then(|| format!("{}: {labels:?}", fixture.name())));
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// A layer whose inner value is an output, or that leaves one, goes only with a message that names the output.
pub fn layers_that_outputs_need_are_named() {
    let (folder, _) = golden("heads");
    for (file, dropped, says) in [
        ("inside.onnx", 0, Some("still needed by the output `map`")),
        ("map.onnx", 0, Some("still needed by the output `map`")),
        ("states.onnx", 0, Some("the output `first`, which held what leaves it")),
        // The last layer leaves what the output of the whole stack is.
        ("states.onnx", 1, None),
        ("inside.onnx", 1, None),
        ("depthwise.onnx", 0, None),
    ] {
        let model = opened(folder.join(file));
        let typing = Typing::new(&model).unwrap();
        let gene = Learngene::identity(&typing, &Anatomy::new(&typing).unwrap());
        let shape = GrowOptions { layers: Layers::List(vec![1 - dropped]), ..GrowOptions::default() };
        let warnings = grow(&model, &gene, &shape).unwrap().plan.warnings;
        match says {
            Some(says) => assert!(warnings.iter().any(|w| w.contains(says)), "{file}: {warnings:?}"),
            None => assert!(warnings.is_empty(), "{file}: {warnings:?}"),
        }
    }
}

/// The three largest logits, sorted, are no three classes.
pub fn a_last_top_k_is_no_classifier(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("top.onnx");
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    let graph = model.graph_mut();
    let logits = graph.output[0].name().to_string();
    graph.initializer.push(tensor_from_i64("three", &[1], &[3]));
    let strings = |names: [&str; 2]| names.map(String::from).to_vec();
    graph.node.push(NodeProto {
        op_type: Some("TopK".into()),
        name: Some("best".into()),
        input: strings([&logits, "three"]),
        output: strings(["largest", "places"]),
        ..Default::default()
    });
    graph.output = vec![
        tensor_info("largest", DataType::Float, &[None, Some(3)]),
        tensor_info("places", DataType::Int64, &[None, Some(3)]),
    ];
    graph.value_info.clear();
    model.write(&path).unwrap();
    let data = "fixtures/fashion-images.idx3-ubyte";
    let says = ["the output `largest` holds what TopK found", "node `best`", "places are ranks", &logits];
    refused(&["eval", text(&path), "--data", data, "--runtime", runtime], &says);
    let tuned = folder.path().join("tuned.onnx");
    let tune = ["tune", text(&path), "--data", data, "--epochs", "1", "--runtime", runtime, "-o", text(&tuned)];
    refused(&tune, &says[..3]);
    let child = folder.path().join("child.onnx");
    refused(
        &["grow", text(&path), "--no-images", "--classes", "4", "-o", text(&child)],
        &["no classifier whose classes could be replaced"],
    );
    let compared =
        json(&["compare", text(&path), text(&path), "--images", data, "--limit", "4", "--runtime", runtime, "--json"]);
    assert!(compared["top1_agreement"].is_null() && compared["max_abs_error"] == 0.0, "{compared}");
}

/// A table of relative positions that every layer looks into, or a block that is used twice, has the heads of all.
pub fn layers_that_have_the_same_heads_are_given_as_many() {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    for (model, tensor) in [
        ("mpnet-ts17", "model.encoder.relative_attention_bias.weight`"),
        ("t5-ts17", "v382`"),
        ("albert-ts17", "v332`, `v333`"),
        ("layoutlmv3-ts17", "v554`, `v555`"),
    ] {
        let path = format!("fixtures/texts/{model}.onnx");
        let grow = |heads| ["grow", &path, "--no-images", "--heads", heads, "--force", "-o", text(&child)];
        let says = ["layers 0 and 1 have the same heads, those of `", tensor, "give all layers as many: --heads 2"];
        refused(&grow("2,4"), &says);
        refused(&grow("3,2"), &says);
        done(&grow("2"));
    }
}
