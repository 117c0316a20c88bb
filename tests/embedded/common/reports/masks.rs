//! Masks in half precision: the smallest float32 stands for "not seen" and became minus infinity, so that a query
//! without keys made no numbers, which spread to every token of its text. A runtime that computes in float32 does not
//! show it.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use ndarray::ArrayD;
use offshoot::graph::{Attributes, cast, element_types, prune};
use offshoot::onnx::proto::type_proto;
use offshoot::onnx::{DataType, Model, tensor_info};
use offshoot::runtime::{DeviceTensors, Ports, Runtime, RuntimeKind};
use serde_json::Value;

use crate::common::binary::{done, text};
use crate::common::hash::values;
use crate::common::root;

const FOLDER: &str = "fixtures/reports/masks";
const SHAPE: [usize; 3] = [2, 12, 16];

/// What a model says of the texts of scripts/fixtures/masks.py.
fn said(runtime: &Arc<Runtime>, model: &Model, mask: &[f32]) -> Vec<ArrayD<f32>> {
    let x = ArrayD::from_shape_vec(SHAPE.to_vec(), values(SHAPE.iter().product(), 5)).unwrap();
    let mask = ArrayD::from_shape_vec(SHAPE[..2].to_vec(), mask.to_vec()).unwrap();
    let mut program = runtime.load_program(model, Ports::default()).unwrap();
    let declared: Vec<&str> = model.graph().input.iter().map(|v| v.name()).collect();
    let feeds = [("x", x.view()), ("mask", mask.view())];
    let feeds: Vec<_> = feeds.into_iter().filter(|(name, _)| declared.contains(name)).collect();
    program.run(&mut DeviceTensors::default(), &feeds).unwrap()
}

/// The part of a model in bfloat16 that computes in float32, with what it casts to bfloat16 as its outputs: no
/// processor computes the rest.
fn casts(model: &Model) -> Model {
    let mut out = model.clone();
    let types = element_types(model.graph());
    let mut wide: HashSet<&str> = model.graph().input.iter().map(|v| v.name()).collect();
    wide.extend(model.graph().initializer.iter().map(|t| t.name()));
    let (mut nodes, mut outputs) = (Vec::new(), Vec::new());
    for node in &model.graph().node {
        if !node.input.iter().all(|x| x.is_empty() || wide.contains(x.as_str())) {
            continue;
        }
        let narrows = node.op_type() == "Cast" && node.int("to") == Some(DataType::Bfloat16 as i64);
        if narrows {
            let seen = format!("{}/seen", node.output[0]);
            nodes.extend([node.clone(), cast(&node.output[0], &seen, DataType::Float)]);
            outputs.push(seen);
        } else if node.output.iter().all(|o| types.get(o.as_str()) != Some(&DataType::Bfloat16)) {
            wide.extend(node.output.iter().map(String::as_str));
            nodes.push(node.clone());
        }
    }
    let graph = out.graph_mut();
    graph.node = nodes;
    graph.output = outputs.iter().map(|o| tensor_info(o, DataType::Float, &[None; 4])).collect();
    for output in &mut graph.output {
        if let Some(type_proto::Value::TensorType(t)) = output.r#type.as_mut().and_then(|t| t.value.as_mut()) {
            t.shape = None;
        }
    }
    prune(graph);
    out
}

/// Children in float16 say what PyTorch says in float32, to what float16 holds, and nothing that is cast to bfloat16 is
/// infinite.
pub fn masks_stay_finite(runtime: &Arc<Runtime>) {
    let golden: Vec<Value> =
        serde_json::from_slice(&fs::read(root().join(FOLDER).join("golden.json")).unwrap()).unwrap();
    assert_eq!(golden.len(), 10);
    let folder = tempfile::tempdir().unwrap();
    let mut masks = 0;
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect::<Vec<_>>();
    for entry in &golden {
        let file = entry["file"].as_str().unwrap();
        let ancestor = format!("{FOLDER}/{file}");
        let mask: Vec<f32> = entry["mask"].as_array().unwrap().iter().flat_map(numbers).collect();
        let expected = numbers(&entry["y"]);
        let grow = |dtype: &str| {
            let child = folder.path().join(format!("{dtype}-{file}"));
            let run = done(&["grow", &ancestor, "--no-images", "--dtype", dtype, "-o", text(&child)]);
            let said = String::from_utf8(run.stderr).unwrap();
            assert!(dtype == "fp32" || said.contains("compare the outputs"), "{file}: {said}");
            Model::open(child).unwrap()
        };
        for (dtype, tolerance) in [("fp32", 1e-4), ("fp16", 2e-2)] {
            let found = &said(runtime, &grow(dtype), &mask)[0];
            assert_eq!(found.len(), expected.len());
            for (i, (f, e)) in found.iter().zip(&expected).enumerate() {
                // A query that sees nothing is padding: a runtime that computes half precision in float32 tells its
                // scores apart.
                let sees = dtype == "fp32" || mask[i / SHAPE[2]] > 0.0;
                let right = if sees { (f - e).abs() < tolerance } else { f.is_finite() };
                assert!(right, "{file} in {dtype}, token {}: {f}, not {e}", i / SHAPE[2]);
            }
        }
        let narrow = grow("bf16");
        if runtime.kind == RuntimeKind::Onnxruntime {
            let seen = said(runtime, &casts(&narrow), &mask);
            assert!(seen.iter().flatten().all(|v| v.is_finite()), "{file} in bf16");
            masks += seen.len() - 1;
        }
    }
    // Besides the input, that is. A mask that meets scores in half precision before it is cast is no value of its own.
    assert!(runtime.kind != RuntimeKind::Onnxruntime || masks > 0);
}
