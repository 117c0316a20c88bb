//! Files made to do harm: each is refused with a clear error, within bounded memory and time, and nothing but the named
//! output is written. Every command runs in a process of its own with 4 GB of address space and a minute.

mod bombs;
mod images;
mod library;
mod models;
mod writing;

use std::path::Path;
use std::process::{Command, Output};

use offshoot::onnx::proto::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    tensor_proto::DataLocation,
};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_info};
use prost::Message;

const KILOBYTES: u64 = 4 << 20;
const SECONDS: u64 = 60;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn ancestor() -> std::path::PathBuf {
    root().join("models/fashion-vit.onnx")
}

/// The command with its bounds, ready to be started.
fn bounded(arguments: &[&str]) -> Command {
    let mut command = Command::new("sh");
    let limits = format!("ulimit -v {KILOBYTES}; exec timeout {SECONDS} \"$@\"");
    command.args(["-c", &limits, "sh", env!("CARGO_BIN_EXE_offshoot")]).args(arguments);
    command.env("NO_COLOR", "1").current_dir(root());
    command
}

fn offshoot(arguments: &[&str]) -> Output {
    bounded(arguments).output().unwrap()
}

/// Exit code 2 and a message that says all of `says`.
#[track_caller]
fn refused(arguments: &[&str], says: &[&str]) {
    let output = offshoot(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
    for s in says {
        assert!(stderr.contains(s), "{arguments:?} does not say `{s}`: {stderr}");
    }
}

/// Every command that reads a model refuses it, and writes nothing.
#[track_caller]
fn refused_as_a_model(path: &Path, says: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out.onnx");
    refused(&["inspect", text(path)], says);
    refused(&["grow", text(path), "--no-images", "-o", text(&out)], says);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A model of one product, to be spoiled.
fn model() -> ModelProto {
    let graph = GraphProto {
        node: vec![offshoot::graph::node("MatMul", &["x", "w"], &["y"], vec![])],
        initializer: vec![tensor_from_f32("w", DataType::Float, &[8, 8], &[0.5; 64])],
        input: vec![tensor_info("x", DataType::Float, &[None, Some(3), Some(8), Some(8)])],
        output: vec![tensor_info("y", DataType::Float, &[None, Some(3), Some(8), Some(8)])],
        ..Default::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(graph),
        ..Default::default()
    }
}

/// The same with its weight in a file that the model names.
fn model_with_external_data(location: &str) -> ModelProto {
    let mut model = model();
    let entry = StringStringEntryProto { key: Some("location".into()), value: Some(location.into()) };
    model.graph.as_mut().unwrap().initializer[0] = TensorProto {
        raw_data: None,
        external_data: vec![entry],
        data_location: Some(DataLocation::External as i32),
        ..tensor_from_f32("w", DataType::Float, &[8, 8], &[0.5; 64])
    };
    model
}

fn write(path: &Path, model: &ModelProto) {
    std::fs::write(path, model.encode_to_vec()).unwrap();
}
