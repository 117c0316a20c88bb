//! Neurons beyond the largest number of float16: they were infinite in a file of half precision, and the outputs no
//! numbers.

use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::graph::{element_types, prepare};
use offshoot::onnx::{DataType, Model, tensor_from_f32, to_f32};

use crate::common::binary::{done, json, offshoot, text};
use crate::common::root;

/// What one FFN's neurons are multiplied with, and divided by again.
const SCALE: f32 = 2e5;

/// The bundled model with large neurons in its third layer.
fn large() -> Model {
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    prepare(&mut model).unwrap();
    let (up, down) = {
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let ffn = anatomy.layers[2].ffn().unwrap();
        let weight = |k: usize| model.graph().node[k].input[1].clone();
        (weight(ffn.up[0]), weight(ffn.down))
    };
    for (name, factor) in [(up, SCALE), (down, 1.0 / SCALE)] {
        let t = model.graph_mut().initializer.iter_mut().find(|t| t.name() == name).unwrap();
        let dims = t.shape();
        let scaled: Vec<f32> = to_f32(t).unwrap().iter().map(|v| v * factor).collect();
        *t = tensor_from_f32(name, DataType::Float, &dims, &scaled);
    }
    model
}

/// `shrink` and `grow` on images keep such neurons in float32, and say so; without images they say that nobody looked.
pub fn large_neurons_stay_float32(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (images, ancestor) = ("fixtures/fashion-images.idx3-ubyte", at("large.onnx"));
    large().write(&ancestor).unwrap();
    let data = ["--images", images, "--limit", "32", "--runtime", runtime];
    let near = |child: &std::path::Path| {
        let measured =
            json(&[&["compare", text(&ancestor), text(child)][..], &data, &["--runs", "1", "--json"]].concat());
        measured["correlation"].as_f64().unwrap_or(f64::NAN)
    };
    let shrink = ["shrink", text(&ancestor), "--to", "100%", "--crops", "24", "--dtype", "fp16"];
    let grow = ["grow", text(&ancestor), "--eps", "0", "--ffn-eps", "0", "--dtype", "fp16"];
    for (name, command) in [("shrunk.onnx", &shrink[..]), ("grown.onnx", &grow[..])] {
        let child = at(name);
        let run = done(&[command, &data, &["-o", text(&child)]].concat());
        let said = String::from_utf8(run.stderr).unwrap();
        assert!(said.contains("stay float32") && !said.contains("no data were looked at"), "{said}");
        assert!(near(&child) > 0.999, "{name}: {}", near(&child));
        // The others are half.
        let model = Model::open(&child).unwrap();
        let types = element_types(model.graph());
        let half = types.values().filter(|t| **t == DataType::Float16).count();
        assert!(half > 100, "{name}: {half}");
    }
    let blind = at("blind.onnx");
    let arguments = ["grow", text(&ancestor), "--no-images", "--dtype", "fp16", "-o", text(&blind), "--no-verify"];
    let run = offshoot(&arguments[..arguments.len() - 1]);
    let said = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{said}");
    assert!(said.contains("check `half-precision`") && said.contains("hint: give pictures with --images"), "{said}");
    assert!(!blind.exists());
    assert!(String::from_utf8(done(&arguments).stderr).unwrap().contains("no data were looked at"));
    let plain = done(&["grow", text(&ancestor), "--no-images", "--dtype", "bf16", "-o", text(&at("narrow.onnx"))]);
    assert!(String::from_utf8(plain.stderr).unwrap().contains("CPU provider does not load"));
}
