//! `grow --image-size` against timm: the child equals the model of the other size with weights that timm resampled.
//! `scripts/golden/image_size.py` made the outputs.

use std::sync::Arc;

use ndarray::{Array4, ArrayD, IxDyn};
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{GrowOptions, fold_constants, grow};
use offshoot::graph::{data_inputs, declared_dims, int_attribute, node};
use offshoot::learngene::Learngene;
use offshoot::onnx::proto::TensorProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_from_raw};
use offshoot::runtime::Runtime;
use serde_json::Value;

use super::{root, surgery};

const TOLERANCE: f32 = 1e-5;

/// The golden script's input: one image.
pub fn image([height, width]: [usize; 2]) -> Array4<f32> {
    let value = |i: usize| ((0.7 * i as f64).sin() + (0.013 * i as f64 * i as f64).cos()) as f32;
    Array4::from_shape_vec((1, 3, height, width), (0..3 * height * width).map(value).collect()).unwrap()
}

/// Opens and prepares a graph of the fixtures.
pub fn open(path: &str) -> Model {
    let mut model = Model::open(root().join("fixtures").join(path)).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    model
}

/// A child of another image size, all else the same.
pub fn at_size(model: &Model, size: [usize; 2]) -> offshoot::error::Result<Model> {
    let typing = Typing::new(model)?;
    let gene = Learngene::identity(&typing, &Anatomy::new(&typing)?);
    let shape = GrowOptions { image_size: Some(size), ..GrowOptions::default() };
    grow(model, &gene, &shape).map(|d| d.model)
}

/// The truth values that a file holds, as initializers and in Constant nodes.
fn booleans(model: &Model) -> usize {
    let is_boolean = |t: &&TensorProto| t.data_type() == DataType::Bool as i32;
    let constants = model.graph().node.iter().filter(|n| n.op_type() == "Constant").flat_map(|n| &n.attribute);
    let tensors = model.graph().initializer.iter().chain(constants.filter_map(|a| a.t.as_ref()));
    tensors.filter(is_boolean).count()
}

/// `grow --fold` on every fixture: fewer nodes, no more boolean tensors, the same outputs.
pub fn check_folding(runtime: &Arc<Runtime>) {
    let mut failures = Vec::new();
    for fixture in super::fixtures() {
        let model = fixture.open();
        let x = surgery::images(&fixture);
        let size = [x.shape()[2], x.shape()[3]];
        let folded = match fold_constants(runtime, &model, Some(size)) {
            Ok(folded) => folded,
            Err(e) => {
                failures.push(format!("{}: {e}", fixture.name()));
                continue;
            }
        };
        let declared = declared_dims(data_inputs(folded.graph())[0]).unwrap();
        assert_eq!(declared[2..], [Some(size[0]), Some(size[1])], "{}", fixture.name());
        let (before, after) = (model.graph().node.len(), folded.graph().node.len());
        let left = folded.graph().node.iter().filter(|n| n.op_type() == "Resize").count();
        println!("{}: {before} -> {after} nodes", fixture.name());
        if after > before || left > 0 {
            failures.push(format!("{}: {before} -> {after} nodes, {left} Resize left", fixture.name()));
        }
        // Some engines know none.
        let [had, holds] = [&model, &folded].map(booleans);
        if holds > had {
            failures.push(format!("{}: {had} -> {holds} boolean tensors", fixture.name()));
        }
        // A layer scale is a constant factor behind a matrix.
        let factors = |m: &Model| m.graph().node.iter().filter(|n| n.op_type() == "Mul").count();
        if fixture.name().contains("dinov2") && factors(&folded) + 2 > factors(&model) {
            failures.push(format!("{}: the layer scales are still there", fixture.name()));
        }
        let errors = (surgery::run(runtime, &model, &x), surgery::run(runtime, &folded, &x));
        match errors {
            (Ok(a), Ok(b)) if surgery::error(&b, &a) <= TOLERANCE => {}
            (Ok(a), Ok(b)) => failures.push(format!("{}: {:e}", fixture.name(), surgery::error(&b, &a))),
            (a, b) => failures.push(format!("{}: {:?} {:?}", fixture.name(), a.err(), b.err())),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

pub fn check_all(runtime: &Arc<Runtime>) {
    let golden = std::fs::read(root().join("fixtures/image-size/golden.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let number = |v: &Value| v.as_u64().unwrap() as usize;
    let mut failures = Vec::new();
    for case in golden["cases"].as_array().unwrap() {
        let graph = case["graph"].as_str().unwrap();
        let size = [number(&case["size"][0]), number(&case["size"][1])];
        let truth: Vec<ArrayD<f32>> = case["outputs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|o| {
                let shape: Vec<usize> = o["shape"].as_array().unwrap().iter().map(number).collect();
                let data = o["data"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
                ArrayD::from_shape_vec(IxDyn(&shape), data).unwrap()
            })
            .collect();
        let child = match at_size(&open(graph), size) {
            Ok(child) => child,
            Err(e) => {
                failures.push(format!("{graph} at {size:?}: {e}"));
                continue;
            }
        };
        let declared = declared_dims(data_inputs(child.graph())[0]).unwrap();
        assert_eq!(declared[2..], [Some(size[0]), Some(size[1])], "{graph}");
        match surgery::run(runtime, &child, &image(size)) {
            Ok(found) => {
                let error = surgery::error(&found, &truth);
                println!("{graph} at {size:?}: {error:e}");
                if error > TOLERANCE {
                    failures.push(format!("{graph} at {size:?}: relative error {error:e}"));
                }
            }
            Err(e) => failures.push(format!("{graph} at {size:?} does not run: {e}")),
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// A table of truth that hides nothing, as transformers' exporters leave one, changes nothing at any size.
pub fn check_masks_that_hide_nothing(runtime: &Arc<Runtime>) {
    let plain = open("graphs/timm-vit-unfused-ts17.onnx");
    let tokens = {
        let typing = Typing::new(&plain).unwrap();
        let softmax = plain.graph().node.iter().find(|n| n.op_type() == "Softmax").unwrap();
        typing.shape(&softmax.output[0]).unwrap()[3]
    };
    let mut masked = plain.clone();
    let graph = masked.graph_mut();
    let input = graph.input[0].name().to_string();
    let every = tensor_from_raw("every", DataType::Bool, &[1, 1, tokens, tokens], vec![1; tokens * tokens].into());
    let number = |name: &str, v: f32| tensor_from_f32(name.to_string(), DataType::Float, &[], &[v]);
    let sizes = tensor_from_i64("sizes", &[3], &[1, tokens as i64, tokens as i64]);
    graph.initializer.extend([
        every,
        sizes,
        tensor_from_i64("first", &[1], &[0]),
        number("least", f32::MIN),
        number("0", 0.0),
    ]);
    let mut nodes = vec![
        node("Shape", &[&input], &["whole"], vec![]),
        node("Gather", &["whole", "first"], &["count"], vec![]),
        node("Concat", &["count", "sizes"], &["all"], vec![int_attribute("axis", 0)]),
        node("Expand", &["every", "all"], &["seen"], vec![]),
        node("Where", &["seen", "0", "least"], &["bias"], vec![]),
    ];
    let mut layers = 0;
    for mut n in std::mem::take(&mut graph.node) {
        if n.op_type() == "Softmax" {
            let (scores, masked) = (n.input[0].clone(), format!("masked {layers}"));
            nodes.push(match layers {
                0 => node("Where", &["seen", &scores, "least"], &[&masked], vec![]),
                _ => node("Add", &[&scores, "bias"], &[&masked], vec![]),
            });
            n.input[0] = masked;
            layers += 1;
        }
        nodes.push(n);
    }
    assert!(layers > 1);
    graph.node = nodes;
    let size = Typing::new(&plain).unwrap().image_size().map(|n| 2 * n);
    let said = |model: &Model, size| surgery::run(runtime, &at_size(model, size).unwrap(), &image(size)).unwrap();
    let error = surgery::error(&said(&masked, size), &said(&plain, size));
    assert!(error <= TOLERANCE, "{error:e}");
}
