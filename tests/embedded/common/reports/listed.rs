//! Weights that a file lists among its inputs, as IR version 3 does and `keep_initializers_as_inputs=True` asks for:
//! children kept some of the entries and lacked others, and neither `onnx.checker` nor ONNX Runtime took them.

use std::fs;
use std::path::Path;

use offshoot::graph::prepare;
use offshoot::onnx::proto::ModelProto;
use offshoot::onnx::{Model, data_type, tensor_info};
use prost::Message;
use serde_json::json;

use crate::common::binary::{done, json, text};
use crate::common::{all_fixtures, root};

/// The model as a file of IR version 3 holds it.
fn listed(model: &Model) -> Model {
    let mut model = model.clone();
    model.proto.ir_version = Some(3);
    let graph = model.graph_mut();
    let entries = graph.initializer.iter().map(|t| {
        let dims: Vec<Option<usize>> = t.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        tensor_info(t.name(), data_type(t).unwrap(), &dims)
    });
    // Some exporters list the image first, some last.
    graph.input.splice(0..0, entries.collect::<Vec<_>>());
    model
}

/// The names of the inputs that a file declares, which opening it as a model would not tell.
fn declared(path: &Path) -> (i64, Vec<String>) {
    let proto = ModelProto::decode(&fs::read(path).unwrap()[..]).unwrap();
    let inputs = proto.graph.as_ref().unwrap().input.iter().map(|v| v.name().to_string()).collect();
    (proto.ir_version(), inputs)
}

/// What any command makes of such a file is what it makes of the file without the entries, and lists no weight.
pub fn listed_weights_are_weights(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (images, plain) = ("fixtures/fashion-images.idx3-ubyte", root().join("models/fashion-vit.onnx"));
    // One name, which children remember.
    for place in ["plain", "listed"] {
        fs::create_dir(at(place)).unwrap();
    }
    let (a, b) = (at("plain/fashion-vit.onnx"), at("listed/fashion-vit.onnx"));
    fs::copy(&plain, &a).unwrap();
    listed(&Model::open(&plain).unwrap()).write(&b).unwrap();
    let (ir_version, inputs) = declared(&b);
    assert!(ir_version == 3 && inputs.len() > 50, "{inputs:?}");
    assert_eq!(json(&["inspect", text(&b), "--json"])["ir_version"], json!(3));
    let seen = ["--runtime", runtime];
    let few = ["--images", images, "--limit", "8"];
    let once = ["--epochs", "1", "--steps", "1", "--batch-size", "4", "--val-split", "0", "--limit", "8"];
    let commands: [(&str, Vec<&str>); 7] = [
        ("grow", vec!["--no-images", "--heads", "2", "--ffn-width", "50%", "--layers", "even:4"]),
        ("grow", vec!["--no-images", "--image-size", "56", "--dtype", "fp16"]),
        ("grow", vec!["--no-images", "--classes", "3", "--tied", "--batch-axis", "4"]),
        ("grow", [&few[..], &seen, &["--heads", "2", "--fold"]].concat()),
        ("condense", [&few[..], &seen].concat()),
        ("shrink", [&["--images", images, "--to", "70%", "--crops", "16"][..], &seen].concat()),
        ("tune", [&["--data", images][..], &seen, &once].concat()),
    ];
    for (command, flags) in commands {
        let made = |model: &Path, name: &str| {
            let out = at(name);
            done(&[&[command, text(model)][..], &flags, &["-o", text(&out), "--force"]].concat());
            out
        };
        let (from_plain, from_listed) = (made(&a, "a.onnx"), made(&b, "b.onnx"));
        let (ir_version, inputs) = declared(&from_listed);
        assert_eq!((ir_version, &inputs), (4, &declared(&from_plain).1), "{command} {flags:?}");
        assert_eq!(inputs.len(), 1, "{command} {flags:?}");
        let graph = |path: &Path| Model::open(path).unwrap().graph().clone();
        assert!(graph(&from_plain) == graph(&from_listed), "{command} {flags:?} makes another graph");
        json(&[
            "compare",
            text(&from_plain),
            text(&from_listed),
            "--images",
            images,
            "--limit",
            "4",
            "--runtime",
            runtime,
            "--json",
        ]);
    }
}

/// The entries go for every export that is known, and nothing else does.
pub fn entries_of_weights_go() {
    for fixture in all_fixtures() {
        let mut plain = Model::open(&fixture.path).unwrap();
        let mut opened = Model::from_bytes(listed(&plain).to_bytes()).unwrap();
        prepare(&mut plain).unwrap();
        prepare(&mut opened).unwrap();
        assert!(opened.graph() == plain.graph(), "{}", fixture.name());
        assert_eq!((opened.ir_version(), opened.proto.ir_version()), (3, 4));
    }
}
