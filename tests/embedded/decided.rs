//! `--fold`: what a condition of nothing but true, or nothing but false, chooses takes the place of the choice.

use ndarray::Array4;
use offshoot::descendant::fold_constants;
use offshoot::graph::{int_attribute, node};
use offshoot::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_from_raw, tensor_info};

use crate::common::tract;

/// x [batch, 2, 4, 4], and what some nodes make of it and of conditions.
fn model(nodes: Vec<NodeProto>) -> Model {
    let flags =
        |name: &str, shape: &[usize], flags: &[u8]| tensor_from_raw(name, DataType::Bool, shape, flags.to_vec().into());
    let float = |name: &str, shape: &[usize], v: &[f32]| tensor_from_f32(name, DataType::Float, shape, v);
    let seen = || int_attribute("to", DataType::Bool as i64);
    let mut all = vec![
        // Computed, as masks are.
        node("Less", &["zero", "row"], &["below"], vec![]),
        node("Not", &["below"], &["above"], vec![]),
        node("Cast", &["x"], &["data"], vec![seen()]),
    ];
    all.extend(nodes);
    Model::from_proto(ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(GraphProto {
            node: all,
            initializer: vec![
                flags("yes", &[1, 1, 4, 4], &[1; 16]),
                flags("some", &[4], &[1, 1, 0, 1]),
                float("zero", &[], &[0.0]),
                float("row", &[4], &[1.0, 2.0, 3.0, 4.0]),
                float("one", &[1, 2, 1, 1], &[5.0, 6.0]),
            ],
            input: vec![tensor_info("x", DataType::Float, &[None, Some(2), Some(4), Some(4)])],
            output: vec![tensor_info("y", DataType::Float, &[None, Some(2), Some(4), Some(4)])],
            ..Default::default()
        }),
        ..Default::default()
    })
}

fn operators(model: &Model) -> Vec<&str> {
    model.graph().node.iter().map(NodeProto::op_type).collect()
}

#[test]
fn choices_that_constants_decide_are_folded() {
    let runtime = tract();
    let mul = |a: &str, b: &str| node("Mul", &[a, b], &["y"], vec![]);
    let float = || vec![int_attribute("to", DataType::Float as i64)];
    let x = Array4::from_shape_fn((3, 2, 4, 4), |(n, c, h, w)| ((n * 7 + c * 5 + h * 3 + w) % 4) as f32 - 1.0);
    let cases: Vec<(Vec<NodeProto>, &[&str])> = vec![
        // True everywhere: a weight, and computed.
        (vec![node("Where", &["yes", "x", "zero"], &["c"], vec![]), mul("c", "row")], &["Mul"]),
        (vec![node("Where", &["below", "x", "one"], &["c"], vec![]), mul("c", "row")], &["Mul"]),
        // False everywhere, of a shape that depends on the batch: what computes it stays, for want of a boolean tensor.
        (vec![node("Where", &["above", "x", "row"], &["c"], vec![]), mul("x", "c")], &["Less", "Not", "Where", "Mul"]),
        // What it leaves is constant, has the shape of one image, and is folded in its turn.
        (
            vec![
                node("Where", &["above", "row", "one"], &["c"], vec![]),
                node("Exp", &["c"], &["e"], vec![]),
                mul("x", "e"),
            ],
            &["Mul"],
        ),
        // Truth values: what decides nothing goes, what decides all is what is left.
        (
            vec![
                node("And", &["data", "yes"], &["both"], vec![]),
                node("Or", &["both", "above"], &["any"], vec![]),
                node("Xor", &["any", "above"], &["other"], vec![]),
                node("Cast", &["other"], &["f"], float()),
                mul("f", "x"),
            ],
            &["Cast", "Cast", "Mul"],
        ),
        // A decision for the output of the graph.
        (vec![node("Where", &["yes", "x", "zero"], &["y"], vec![])], &["Identity"]),
        // What differs from place to place decides something.
        (vec![node("Where", &["some", "x", "zero"], &["y"], vec![])], &["Where"]),
        (
            vec![
                node("And", &["data", "some"], &["both"], vec![]),
                node("Cast", &["both"], &["f"], float()),
                mul("f", "x"),
            ],
            &["Cast", "And", "Cast", "Mul"],
        ),
    ];
    for (nodes, expected) in cases {
        let model = model(nodes);
        let folded = fold_constants(&runtime, &model, None).unwrap();
        assert_eq!(operators(&folded), expected);
        let run = |model: &Model| runtime.load(model, 3, [4, 4]).unwrap().run(x.view()).unwrap();
        assert_eq!(run(&folded), run(&model), "{expected:?}");
    }
}

/// What is computed of numbers stays computed; what is computed of truth values takes their place.
#[test]
fn no_boolean_tensor_is_written_where_there_was_none() {
    let runtime = tract();
    let cases: Vec<(Vec<NodeProto>, &[&str], usize)> = vec![
        // Neither true nor false throughout; what is compared is written down.
        (
            vec![node("Exp", &["row"], &["grown"], vec![]), node("Greater", &["grown", "twenty"], &["c"], vec![])],
            &["Greater", "Where"],
            0,
        ),
        // Some sides are as long as that; the batch is not, as far as is known.
        (
            vec![node("Shape", &["x"], &["size"], vec![]), node("Equal", &["size", "four"], &["c"], vec![])],
            &["Shape", "Equal", "Where"],
            0,
        ),
        (vec![node("Not", &["some"], &["c"], vec![])], &["Where"], 1),
    ];
    for (condition, expected, booleans) in cases {
        let chosen = node("Where", &["c", "x", "zero"], &["y"], vec![]);
        let mut model = model(condition.into_iter().chain([chosen]).collect());
        let more = [tensor_from_f32("twenty", DataType::Float, &[], &[20.0]), tensor_from_i64("four", &[], &[4])];
        model.graph_mut().initializer.extend(more);
        let folded = fold_constants(&runtime, &model, None).unwrap();
        assert_eq!(operators(&folded), expected);
        let boolean = |t: &&TensorProto| t.data_type() == DataType::Bool as i32;
        assert_eq!(folded.graph().initializer.iter().filter(boolean).count(), booleans);
        let x = Array4::from_shape_fn((3, 2, 4, 4), |(n, c, h, w)| (n + c + h + w) as f32 + 1.0);
        let run = |model: &Model| runtime.load(model, 3, [4, 4]).unwrap().run(x.view()).unwrap();
        assert_eq!(run(&folded), run(&model), "{expected:?}");
    }
}

/// A choice of another shape than what it chose: it is expanded, where its shape depends on no batch.
#[test]
fn what_is_left_keeps_the_shape_of_the_choice() {
    let runtime = tract();
    let model = model(vec![
        node("ReduceMax", &["x"], &["top"], vec![int_attribute("keepdims", 0)]),
        node("Where", &["yes", "top", "zero"], &["c"], vec![]),
        node("Mul", &["x", "c"], &["y"], vec![]),
    ]);
    let folded = fold_constants(&runtime, &model, None).unwrap();
    assert_eq!(operators(&folded), ["ReduceMax", "Expand", "Mul"]);
    let x = Array4::from_shape_fn((2, 2, 4, 4), |(n, c, h, w)| (n + c + h + w) as f32);
    let run = |model: &Model| runtime.load(model, 2, [4, 4]).unwrap().run(x.view()).unwrap();
    assert_eq!(run(&folded), run(&model));
}
