//! Models of several inputs where what is wanted needs the image alone: every command that fed images refused them.

use offshoot::graph::node;
use offshoot::onnx::{DataType, Model, tensor_info};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{done, json, refused, text};
use crate::common::root;

/// What needs another input is cut away where images are fed, and named; a child that is grown without keeps it.
pub fn what_needs_other_inputs_is_cut_away(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [path, child, masked] = ["model.onnx", "child.onnx", "masked.onnx"].map(|name| folder.path().join(name));
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    let graph = model.graph_mut();
    let logits = graph.output[0].name().to_string();
    // It stands first, as the numbers of a text do.
    graph.input.insert(0, tensor_info("mask", DataType::Float, &[None, Some(10)]));
    graph.node.push(node("Mul", &[&logits, "mask"], &["chosen"], vec![]));
    graph.output.insert(0, tensor_info("chosen", DataType::Float, &[None, Some(10)]));
    model.write(&path).unwrap();
    let data = fashion::idx(folder.path(), &[0, 7, 8], 4);
    let told = "only images are fed: `chosen`, made from `mask`, is left out";
    let images = ["--images", "fixtures/fashion-png", "--runtime", runtime, "--limit", "6"];
    let run = |arguments: &[&str]| {
        let output = done(&[arguments, &images[..]].concat());
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(told), "{arguments:?}: {said}");
        output.stdout
    };
    let eval =
        |model: &str| json(&["eval", model, "--data", text(&data), "--runtime", runtime, "--json"])["loss"].clone();
    assert!(eval(ANCESTOR).is_f64());
    assert_eq!(eval(text(&path)), eval(ANCESTOR));
    let own = done(&[&["density", ANCESTOR, "--json"], &images[..]].concat()).stdout;
    let densities = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap()["densities"].clone();
    assert!(densities(&own).as_array().is_some_and(|layers| layers.len() == 8));
    assert_eq!(densities(&run(&["density", text(&path), "--json"])), densities(&own));
    run(&["shrink", text(&path), "--to", "70%", "-o", text(&child)]);
    let names = |infos: &[offshoot::onnx::proto::ValueInfoProto]| -> Vec<String> {
        infos.iter().map(|v| v.name().to_string()).collect()
    };
    let shrunk = Model::open(&child).unwrap();
    assert_eq!((shrunk.graph().input.len(), names(&shrunk.graph().output)), (1, vec![logits.clone()]));
    let compared = ["compare", text(&path), text(&child)];
    run(&compared);
    // Without pictures nothing is cut, and what is verified is what can be run.
    let grow =
        ["grow", text(&path), "--no-images", "--heads", "50%", "--runtime", runtime, "--force", "-o", text(&child)];
    let said = String::from_utf8(done(&grow).stderr).unwrap();
    assert!(said.contains("verified on") && said.contains("removed"), "{said}");
    let grown = Model::open(&child).unwrap();
    assert_eq!((grown.graph().input.len(), names(&grown.graph().output)), (2, vec!["chosen".to_string(), logits]));
    // Every output needs it.
    model.graph_mut().output.truncate(1);
    model.write(&masked).unwrap();
    refused(
        &[&["density", text(&masked)], &images[..]].concat(),
        &["every output needs inputs beside the image: `mask`", "hint: "],
    );
}
