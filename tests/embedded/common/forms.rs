//! The forms that one model can have in a file: batch size open or fixed, precision, weights beside it. Each goes
//! through every command, and says the same as the model that it was made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use offshoot::graph::declare_dim;
use offshoot::onnx::proto::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation, type_proto};
use offshoot::onnx::{DataType, Model, is_float, payload, tensor_from_f32, to_f32};
use serde_json::Value;

use super::root;

/// What distinguishes a form.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    FixedBatch,
    Precision(DataType),
    OneFile,
    ManyFiles,
}

/// Writes the bundled ancestor in a form.
fn make(form: Form, folder: &Path) -> PathBuf {
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    let path = folder.join("model.onnx");
    let graph = model.graph_mut();
    match form {
        Form::FixedBatch => {
            declare_dim(&mut graph.input[0], 0, 2);
            declare_dim(&mut graph.output[0], 0, 2);
        }
        Form::Precision(kind) => {
            let narrow = |t: &mut TensorProto| {
                if is_float(t) {
                    let dims = t.shape();
                    *t = tensor_from_f32(t.name(), kind, &dims, &to_f32(t).unwrap());
                }
            };
            graph.initializer.iter_mut().for_each(narrow);
            for a in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
                a.t.iter_mut().for_each(narrow);
                if a.name() == "to" && a.i == Some(DataType::Float as i64) {
                    a.i = Some(kind as i64);
                }
            }
            for info in graph.input.iter_mut().chain(&mut graph.output) {
                if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
                    t.elem_type = Some(kind as i32);
                }
            }
            graph.value_info.clear();
        }
        Form::OneFile | Form::ManyFiles => {
            let mut data: Vec<u8> = Vec::new();
            for (i, t) in graph.initializer.iter_mut().enumerate() {
                let bytes = payload(t);
                let location = if form == Form::OneFile { "weights.bin".to_string() } else { format!("weight{i}.bin") };
                let offset = if form == Form::OneFile { data.len() } else { 0 };
                let entry =
                    |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
                t.external_data = vec![
                    entry("location", location.clone()),
                    entry("offset", offset.to_string()),
                    entry("length", bytes.len().to_string()),
                ];
                t.data_location = Some(DataLocation::External as i32);
                (t.raw_data, t.float_data) = (None, Vec::new());
                match form {
                    Form::OneFile => data.extend_from_slice(&bytes),
                    _ => fs::write(folder.join(location), &bytes).unwrap(),
                }
            }
            if form == Form::OneFile {
                fs::write(folder.join("weights.bin"), data).unwrap();
            }
        }
    }
    model.write(&path).unwrap();
    path
}

/// Takes a form through inspect, density, condense, grow, compare and tune on a runtime.
pub fn check(form: Form, runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = make(form, folder.path());
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let run = |arguments: &[&str], plain: bool| -> Vec<u8> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(arguments).current_dir(root());
        if !plain {
            command.args(["--runtime", runtime]);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{form:?}: {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let json = |arguments: &[&str], plain| -> Value { serde_json::from_slice(&run(arguments, plain)).unwrap() };
    let (model, original) = (path.to_str().unwrap(), "models/fashion-vit.onnx");
    let images = "fixtures/fashion-images.idx3-ubyte";
    let few = ["--images", images, "--limit", "8"];
    let half = matches!(form, Form::Precision(_));

    let [a, b] = [model, original].map(|m| json(&["inspect", m, "--json"], true));
    assert_eq!((&a["layers"], &a["parameters"]), (&b["layers"], &b["parameters"]), "{form:?}");
    let [a, b] = [model, original].map(|m| json(&[&["density", m, "--json"], &few[..]].concat(), false));
    for (x, y) in a["densities"].as_array().unwrap().iter().zip(b["densities"].as_array().unwrap()) {
        for (x, y) in x.as_array().unwrap().iter().zip(y.as_array().unwrap()) {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            assert!((x - y).abs() < if half { 0.02 } else { 1e-5 } * y, "{form:?}: {x} and {y}");
        }
    }
    let (gene, child, same, folded) = (at("gene.onnx"), at("child.onnx"), at("same.onnx"), at("folded.onnx"));
    run(&[&["condense", model, "-o", &gene], &few[..]].concat(), false);
    run(&["grow", &gene, "--heads", "4", "--layers", "even:4", "--ffn-width", "50%", "-o", &child], false);
    run(&["grow", model, "--no-images", "-o", &same], false);
    run(&["grow", model, "--no-images", "--fold", "-o", &folded], false);
    for (other, tolerance) in [(same.as_str(), "1e-5"), (&folded, if half { "1e-2" } else { "1e-5" })] {
        run(&[&["compare", model, other, "--runs", "1", "--tolerance", tolerance], &few[..]].concat(), false);
    }
    let bytes = |p: &str| fs::metadata(p).unwrap().len();
    if half {
        assert!(
            bytes(&same) * 3 < bytes(root().join(original).to_str().unwrap()) * 2,
            "the child is in half precision, too"
        );
    }
    run(&[&["compare", model, &child, "--runs", "1"], &few[..]].concat(), false);
    let data = ["--data", images, "--val-split", "0", "--limit", "16"];
    run(&[&["tune", &child, "--dry-run"], &data[..]].concat(), false);
    let tuned = at("tuned.onnx");
    let once = ["tune", &child, "--epochs", "1", "--steps", "1", "--batch-size", "2", "-o", &tuned];
    run(&[&once[..], &data[..]].concat(), false);
    let [a, b] = [&child, &tuned].map(|m| json(&["inspect", m, "--json"], true));
    assert_eq!(a["parameters"], b["parameters"], "{form:?}");
    assert_ne!(fs::read(&child).unwrap(), fs::read(&tuned).unwrap(), "{form:?}: nothing was learned");
}
