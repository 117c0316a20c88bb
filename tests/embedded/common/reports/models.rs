//! Models that were told to do what does not help them.

use offshoot::graph::{int_attribute, ints_attribute, node};
use offshoot::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw, tensor_info, to_f32};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{done, json, offshoot, refused, text};
use crate::common::root;

/// Weights alone in eight bits: the file has no operator of quantisation but DequantizeLinear.
pub fn dequantised_weights_get_the_hint(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    let graph = model.graph_mut();
    let at = graph.node.iter().find_map(|n| {
        let is_weight = |x: &&String| graph.initializer.iter().any(|t| t.name() == x.as_str() && t.dims.len() == 2);
        n.input.iter().find(is_weight).cloned()
    });
    let name = at.unwrap();
    let weight = graph.initializer.iter_mut().find(|t| t.name() == name).unwrap();
    let values = to_f32(weight).unwrap();
    let scale = values.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
    let bytes: Vec<u8> = values.iter().map(|v| (v / scale).round() as i8 as u8).collect();
    let dims = weight.shape();
    *weight = tensor_from_raw("eight_bits", DataType::Int8, &dims, bytes.into());
    graph.initializer.push(tensor_from_f32("scale", DataType::Float, &[], &[scale]));
    graph.node.insert(0, node("DequantizeLinear", &["eight_bits", "scale"], &[&name], vec![]));
    let path = folder.path().join("weights.onnx");
    model.write(&path).unwrap();
    let data = fashion::idx(folder.path(), &[0, 7, 8], 4);
    let eval = |model: &'_ str, more: &[&str]| {
        let arguments = ["eval", model, "--data", text(&data), "--runtime", runtime, "--json"];
        json(&[&arguments[..], more].concat())
    };
    refused(&["inspect", text(&path)], &["quantised (`DequantizeLinear`)", "--dequantize"]);
    done(&["inspect", text(&path), "--dequantize"]);
    let (found, plain) = (eval(text(&path), &["--dequantize"]), eval(ANCESTOR, &[]));
    let difference = (found["loss"].as_f64().unwrap() - plain["loss"].as_f64().unwrap()).abs();
    assert!(difference < 0.05, "{} and {}", found["loss"], plain["loss"]);
}

/// A model of spectra or of point clouds has no image encoder to give.
pub fn tensors_of_other_ranks_are_named(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mean = vec![ints_attribute("axes", &[1]), int_attribute("keepdims", 0)];
    let model = Model::from_proto(ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        graph: Some(GraphProto {
            name: Some("spectra".into()),
            input: vec![tensor_info("spectra", DataType::Float, &[None, Some(16), Some(8)])],
            output: vec![tensor_info("y", DataType::Float, &[None, Some(10)])],
            initializer: vec![tensor_from_f32("w", DataType::Float, &[8, 10], &[0.5; 80])],
            node: vec![node("ReduceMean", &["spectra"], &["m"], mean), node("MatMul", &["m", "w"], &["y"], vec![])],
            ..Default::default()
        }),
        ..Default::default()
    });
    let path = folder.path().join("spectra.onnx");
    model.write(&path).unwrap();
    let eval = ["eval", text(&path), "--data", "fixtures/fashion-images.idx3-ubyte", "--runtime", runtime];
    refused(&eval, &["input `spectra` has 3 dimensions and not four", "[batch, channels, height, width]"]);
    assert!(!String::from_utf8_lossy(&offshoot(&eval).stderr).contains("image encoder"));
}

/// Exporters write an output that bears the name of a value inside as that value again.
pub fn values_of_two_nodes_get_the_hint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("two.onnx");
    let own = Model::open(root().join(ANCESTOR)).unwrap();
    let output = own.graph().output[0].name().to_string();
    let inner = own.graph().node[0].output[0].clone();
    for (name, hint) in [(&output, "another name for the output"), (&inner, "export the model again")] {
        let mut model = own.clone();
        let first = model.graph().node.iter().find(|n| n.output.contains(name)).unwrap().clone();
        let again = NodeProto { name: Some("again".into()), ..first };
        model.graph_mut().node.push(again);
        model.write(&path).unwrap();
        refused(&["inspect", text(&path)], &[&format!("two nodes make a value called `{name}`"), "node `again`", hint]);
    }
}
