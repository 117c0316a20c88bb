//! Quantised models that are made float again: their weights against what the integers stand for
//! (`scripts/fixtures/quantized.py`), and their outputs against the model that was quantised.

use ndarray::Array4;
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::error::ErrorKind;
use offshoot::graph::{dequantize, int_attribute, node, prepare};
use offshoot::onnx::proto::GraphProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw, tensor_info, to_f32};
use serde_json::Value;

use crate::common::surgery::{error, run};
use crate::common::{root, tract};

fn opened(name: &str) -> Model {
    let mut model = Model::open(root().join("fixtures/quantized").join(name)).unwrap();
    dequantize(&mut model).unwrap();
    prepare(&mut model).unwrap();
    model
}

#[test]
fn quantised_models_become_the_float_model_that_they_stand_for() {
    let runtime = tract();
    let mut original = Model::open(root().join("fixtures/dialects/separate.onnx")).unwrap();
    prepare(&mut original).unwrap();
    let x = Array4::from_shape_fn((2, 3, 16, 16), |(n, c, y, x)| {
        ((n * 7 + c * 5 + y * 3 + x * 11) % 13) as f32 / 6.0 - 1.0
    });
    let want = run(&runtime, &original, &x).unwrap();
    let truth: Value =
        serde_json::from_slice(&std::fs::read(root().join("fixtures/quantized/weights.json")).unwrap()).unwrap();
    for name in ["dynamic", "qdq", "operators", "all-operators", "blocks"] {
        let model = opened(&format!("{name}.onnx"));
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let heads: Vec<usize> = anatomy.layers.iter().map(|l| l.head_count(&typing)).collect();
        assert_eq!(heads, [4, 4], "{name}");
        let operators = |m: &Model| {
            let mut list: Vec<String> = m.graph().node.iter().map(|n| n.op_type().to_string()).collect();
            list.retain(|o| o != "Identity");
            list.sort();
            list
        };
        assert_eq!(operators(&model), operators(&original), "{name}");
        let found: Vec<[f64; 2]> = (model.graph().initializer.iter().filter(|t| t.dims.len() == 2))
            .filter_map(|t| to_f32(t).ok())
            .map(|v| [v.iter().map(|v| f64::from(*v)).sum(), v.iter().map(|v| f64::from(*v).powi(2)).sum()])
            .collect();
        let matrices = truth[name].as_array().unwrap();
        assert_eq!(matrices.len(), 13, "{name}");
        for m in matrices {
            let (sum, squares) = (m[0].as_f64().unwrap(), m[1].as_f64().unwrap());
            let near = |f: &&[f64; 2]| (f[0] - sum).abs() < 1e-4 * squares && (f[1] - squares).abs() < 1e-5 * squares;
            assert!(found.iter().any(|f| near(&f)), "{name}: no weight has the moments {m}");
        }
        let e = error(&run(&runtime, &model, &x).unwrap(), &want);
        assert!(e > 1e-5 && e < 0.05, "{name}: {e}");
    }
}

#[test]
fn quantised_arithmetic_that_has_no_float_counterpart_is_refused() {
    let byte = |name: &str| tensor_from_raw(name, DataType::Uint8, &[], vec![3].into());
    let scale = |name: &str, n: usize| tensor_from_f32(name, DataType::Float, &[n], &vec![0.1; n]);
    let graph = |nodes, initializers| GraphProto {
        node: nodes,
        initializer: initializers,
        input: vec![tensor_info("x", DataType::Float, &[Some(2), Some(6)])],
        output: vec![tensor_info("y", DataType::Float, &[Some(2), Some(6)])],
        ..Default::default()
    };
    let computed = graph(
        vec![
            node("QuantizeLinear", &["x", "s", "z"], &["q"], vec![]),
            node("BitShift", &["q", "z"], &["r"], vec![]),
            node("DequantizeLinear", &["r", "s", "z"], &["y"], vec![]),
        ],
        vec![scale("s", 1), byte("z")],
    );
    let blocks = graph(
        vec![node("DequantizeLinear", &["w", "s"], &["d"], vec![]), node("Mul", &["x", "d"], &["y"], vec![])],
        vec![tensor_from_raw("w", DataType::Int8, &[2, 6], vec![1; 12].into()), scale("s", 3)],
    );
    let unknown = graph(vec![node("DequantizeLinear", &["x", "s"], &["y"], vec![])], vec![scale("s", 1)]);
    // What has no rewriting is named as a whole.
    let several = graph(
        vec![
            node("QLinearReduceMean", &["x", "s", "z", "s", "z"], &["q"], vec![]),
            node("QAttention", &["q", "w", "b"], &["r"], vec![]),
            node("QLinearReduceMean", &["r", "s", "z", "s", "z"], &["y"], vec![]),
        ],
        vec![scale("s", 1), byte("z"), scale("w", 6), scale("b", 6)],
    );
    let unfit = graph(
        vec![
            node(
                "DequantizeLinear",
                &["w", "s"],
                &["d"],
                vec![int_attribute("axis", 1), int_attribute("block_size", 2)],
            ),
            node("Mul", &["x", "d"], &["y"], vec![]),
        ],
        vec![tensor_from_raw("w", DataType::Int8, &[2, 6], vec![1; 12].into()), scale("s", 3)],
    );
    let cases = [
        (computed, "BitShift"),
        (blocks, "in blocks"),
        (unknown, "`x` is no constant"),
        (several, "`QAttention`, `QLinearReduceMean`"),
        (unfit, "for blocks of 2"),
    ];
    for (graph, says) in cases {
        let proto = offshoot::onnx::proto::ModelProto { graph: Some(graph), ..Default::default() };
        let error = dequantize(&mut Model::from_proto(proto)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains(says), "{error}");
    }
}
