//! Models that end in an activation: losses were taken from probabilities, as if these were logits.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array4, ArrayD, Axis};
use offshoot::anatomy::{ActivationKind, activation, class_factors, unit_norms};
use offshoot::axes::Typing;
use offshoot::graph::{int_attribute, ints_attribute, node};
use offshoot::onnx::proto::NodeProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_info};
use offshoot::runtime::Runtime;
use serde_json::Value;

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{PLAIN, done, json, offshoot, refused, text};
use crate::common::root;

/// A fixture of scripts/fixtures/classifiers.py.
fn fixture(name: &str) -> PathBuf {
    root().join("fixtures/reports/classifiers").join(name)
}

/// What PyTorch says, by the same script.
fn golden() -> Value {
    serde_json::from_slice(&fs::read(fixture("golden.json")).unwrap()).unwrap()
}

/// The losses of the three updates of scripts/fixtures/classifiers.py, and what `tune` prints.
pub fn descend(runtime: &str, model: &Path, golden: &Value, more: &[&str], output: &Path) -> (Vec<f64>, Value, String) {
    let log = output.with_extension("jsonl");
    let (rate, batch) = (golden["rate"].to_string(), golden["batch"].to_string());
    let data = fixture("images.npz");
    let mut arguments = vec!["tune", text(model), "--data", text(&data), "--lr", &rate, "--batch-size", &batch];
    arguments.extend(PLAIN);
    arguments.extend(["--optimizer", "sgd", "--momentum", "0", "--weight-decay", "0"]);
    arguments.extend(["--epochs", "1", "--json", "--force", "--runtime", runtime, "--metrics", text(&log)]);
    arguments.extend(["-o", text(output)]);
    arguments.extend(more);
    let run = done(&arguments);
    let lines = fs::read_to_string(&log).unwrap();
    let steps = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let losses = steps.filter_map(|line| line["loss"].as_f64()).collect();
    (losses, serde_json::from_slice(&run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap())
}

pub fn same(found: &[f64], expected: &Value, what: &str) {
    let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    assert_eq!(found.len(), expected.len(), "{what}: {found:?} for {expected:?}");
    for (f, e) in found.iter().zip(&expected) {
        assert!((f - e).abs() <= 2e-5 * (1.0 + e.abs()), "{what}: {found:?} for {expected:?}");
    }
}

/// PyTorch's losses on the logits: `eval`, updates, and distillation from a model that ends in a Softmax; the file
/// keeps its activation.
pub fn losses_take_the_logits(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let golden = golden();
    for entry in golden["models"].as_array().unwrap() {
        let file = entry["file"].as_str().unwrap();
        let (model, data) = (fixture(file), fixture("images.npz"));
        let arguments = ["eval", text(&model), "--data", text(&data), "--runtime", runtime, "--json"];
        let evaluated = json(&arguments);
        same(&[evaluated["loss"].as_f64().unwrap()], &serde_json::json!([entry["loss"]]), file);
        assert_eq!(evaluated["top1"], entry["top1"], "{file}");
        assert_eq!(evaluated["activation"], entry["activation"], "{file}");
        let operator = match entry["activation"].as_str() {
            Some("softmax") => "Softmax",
            Some("log-softmax") => "LogSoftmax",
            _ => "Sigmoid",
        };
        let said = String::from_utf8(offshoot(&arguments).stderr).unwrap();
        assert_eq!(said.matches(&format!("the model ends in {operator}")).count(), 1, "{file}: {said}");

        let flags: Vec<&str> = entry["flags"].as_array().unwrap().iter().map(|f| f.as_str().unwrap()).collect();
        let tuned = folder.path().join(file);
        let (losses, report, said) = descend(runtime, &model, &golden, &flags, &tuned);
        same(&losses, &entry["losses"], file);
        assert_eq!(report["activation"], entry["activation"], "{file}");
        assert!(said.contains(&format!("the model ends in {operator}")), "{file}: {said}");
        let written = Model::open(&tuned).unwrap();
        let kept = activation(&Typing::new(&written).unwrap()).unwrap();
        assert_eq!((kept.kind.operator(), kept.is_binary()), (operator, file == "sigmoid-one.onnx"), "{file}");
        let operators = |m: &Model| m.graph().node.iter().map(|n| n.op_type().to_owned()).collect::<Vec<_>>();
        assert_eq!(operators(&written).last(), operators(&Model::open(&model).unwrap()).last(), "{file}");
    }
    let teacher = fixture("softmax-written.onnx");
    let flags = ["--teacher", text(&teacher), "--distill", "1"];
    let (losses, _, said) =
        descend(runtime, &fixture("student.onnx"), &golden, &flags, &folder.path().join("distilled.onnx"));
    same(&losses, &golden["distilled"], "distilled");
    assert!(said.contains("the teacher ends in Softmax"), "{said}");
}

/// Classes of a Sigmoid do not exclude each other.
pub fn cross_entropy_behind_a_sigmoid_is_refused(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (model, data, output) = (fixture("sigmoid-two.onnx"), fixture("images.npz"), folder.path().join("tuned.onnx"));
    let tune = ["tune", text(&model), "--data", text(&data), "--batch-size", "8", "--runtime", runtime];
    refused(
        &[&tune[..], &["-o", text(&output)]].concat(),
        &["ends in a Sigmoid", "each of its 2 outputs", "--loss bce"],
    );
    assert!(!output.exists());
    let evaluated = json(&["eval", text(&model), "--data", text(&data), "--runtime", runtime, "--json"]);
    assert_eq!(evaluated["loss_kind"], "binary-cross-entropy");
}

/// The nodes of an activation of `raw` that makes `y`, and how they are called.
fn forms(rank_two: &str) -> Vec<(&'static str, ActivationKind, Vec<NodeProto>)> {
    use ActivationKind::{LogSoftmax, Sigmoid, Softmax};
    let axes = || vec![ints_attribute("axes", &[-1]), int_attribute("keepdims", 1)];
    let sum = |x: &str, y: &str| node("ReduceSum", &[x, "last"], &[y], vec![int_attribute("keepdims", 1)]);
    let op = |op: &str, x: &[&str], y: &str| node(op, x, &[y], vec![]);
    let softmax = |x: &str, y: &str| node("Softmax", &[x], &[y], vec![int_attribute("axis", 1)]);
    let (raw, y) = (rank_two, "y");
    let shifted = || vec![node("ReduceMax", &[raw], &["m"], axes()), op("Sub", &[raw, "m"], "s")];
    let mut with_maximum = shifted();
    with_maximum.extend([op("Exp", &["s"], "e"), sum("e", "t"), op("Div", &["e", "t"], y)]);
    let mut log_with_maximum = shifted();
    log_with_maximum.extend([op("Exp", &["s"], "e"), sum("e", "t"), op("Log", &["t"], "l"), op("Sub", &["s", "l"], y)]);
    vec![
        ("softmax", Softmax, vec![softmax(raw, y)]),
        ("log-softmax", LogSoftmax, vec![node("LogSoftmax", &[raw], &[y], vec![int_attribute("axis", -1)])]),
        ("log of softmax", LogSoftmax, vec![softmax(raw, "p"), op("Log", &["p"], y)]),
        (
            "softmax, another form",
            Softmax,
            vec![softmax(raw, "p"), op("Reshape", &["p", "columns"], "c"), op("Reshape", &["c", "rows"], y)],
        ),
        ("softmax times one", Softmax, vec![softmax(raw, "p"), op("Mul", &["p", "one"], y)]),
        (
            "exponentials over their sum",
            Softmax,
            vec![op("Exp", &[raw], "e"), sum("e", "t"), op("Div", &["e", "t"], y)],
        ),
        ("with the maximum taken away", Softmax, with_maximum),
        (
            "times one over the sum",
            Softmax,
            vec![op("Exp", &[raw], "e"), sum("e", "t"), op("Reciprocal", &["t"], "r"), op("Mul", &["r", "e"], y)],
        ),
        ("logits less the logarithm", LogSoftmax, log_with_maximum),
        (
            "logits less the logarithm of a sum",
            LogSoftmax,
            vec![node("ReduceLogSumExp", &[raw], &["l"], axes()), op("Sub", &[raw, "l"], y)],
        ),
        ("sigmoid", Sigmoid, vec![op("Sigmoid", &[raw], y)]),
        (
            "one over one and an exponential",
            Sigmoid,
            vec![
                op("Neg", &[raw], "n"),
                op("Exp", &["n"], "e"),
                op("Add", &["e", "one"], "d"),
                op("Div", &["one", "d"], y),
            ],
        ),
    ]
}

/// The ancestor with nodes behind its logits `raw`, the last of which makes `y`.
fn behind(nodes: Vec<NodeProto>) -> Model {
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    let graph = model.graph_mut();
    let output = graph.output[0].name().to_owned();
    for n in &mut graph.node {
        n.input.iter_mut().chain(&mut n.output).filter(|x| **x == output).for_each(|x| *x = "raw".into());
    }
    graph.node.extend(nodes);
    graph.output = vec![tensor_info("y", DataType::Float, &[None, Some(10)])];
    graph.initializer.push(tensor_from_i64("last", &[1], &[-1]));
    graph.initializer.push(tensor_from_i64("columns", &[4], &[-1, 10, 1, 1]));
    graph.initializer.push(tensor_from_i64("rows", &[2], &[-1, 10]));
    graph.initializer.push(tensor_from_f32("one", DataType::Float, &[], &[1.0]));
    graph.initializer.push(tensor_from_f32("least", DataType::Float, &[], &[1e-12]));
    graph.initializer.push(tensor_from_f32("half", DataType::Float, &[], &[0.5]));
    graph.initializer.push(tensor_from_f32("two", DataType::Float, &[], &[2.0]));
    let used: Vec<String> = graph.node.iter().flat_map(|n| n.input.clone()).collect();
    graph.initializer.retain(|t| used.iter().any(|x| x == t.name()));
    model
}

/// Whatever an activation is made of, the loss is that of the plain model.
pub fn activations_are_found_in_any_form(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = fashion::idx(folder.path(), &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 3);
    let evaluated = |model: &str| json(&["eval", model, "--data", text(&data), "--runtime", runtime, "--json"]);
    let plain = evaluated(ANCESTOR);
    assert_eq!((&plain["activation"], &plain["loss_kind"]), (&Value::Null, &Value::from("cross-entropy")));
    for (name, kind, nodes) in forms("raw") {
        let model = behind(nodes);
        {
            let typing = Typing::new(&model).unwrap();
            let found = activation(&typing).unwrap_or_else(|| panic!("{name} is not found"));
            assert_eq!((found.kind, found.logits.as_str()), (kind, "raw"), "{name}");
        }
        let path = folder.path().join("behind.onnx");
        model.write(&path).unwrap();
        let found = evaluated(text(&path));
        assert_eq!(found["top1"], plain["top1"], "{name}");
        if kind != ActivationKind::Sigmoid {
            let difference = (found["loss"].as_f64().unwrap() - plain["loss"].as_f64().unwrap()).abs();
            assert!(difference < 1e-5, "{name}: {} for {}", found["loss"], plain["loss"]);
        }
    }
    // What only looks like one: over the images of a batch, and sums of other exponentials.
    let others = [
        vec![node("Softmax", &["raw"], &["y"], vec![int_attribute("axis", 0)])],
        vec![
            node("Exp", &["raw"], &["e"], vec![]),
            node("ReduceSum", &["raw", "last"], &["t"], vec![int_attribute("keepdims", 1)]),
            node("Div", &["e", "t"], &["y"], vec![]),
        ],
        vec![node("Tanh", &["raw"], &["y"], vec![])],
    ];
    for nodes in others {
        let model = behind(nodes);
        assert_eq!(activation(&Typing::new(&model).unwrap()), None);
    }
}

/// A new classifier has the activation of the old one behind it, and no norm; every output that holds classes is
/// replaced.
pub fn new_classifiers_keep_what_is_behind_them(runtime: &Arc<Runtime>) {
    let folder = tempfile::tempdir().unwrap();
    let [path, child] = ["model.onnx", "child.onnx"].map(|name| folder.path().join(name));
    let grow = |model: Model| -> (Model, String) {
        model.write(&path).unwrap();
        let run = done(&["grow", text(&path), "--no-images", "--classes", "3", "--force", "-o", text(&child)]);
        (Model::open(&child).unwrap(), String::from_utf8(run.stderr).unwrap())
    };
    let outputs = |model: &Model| -> Vec<ArrayD<f32>> {
        let images = Array4::from_shape_fn((2, 1, 28, 28), |(n, _, i, j)| ((n + 3 * i + 5 * j) % 7) as f32 / 3.0 - 1.0);
        runtime.load(model, 2, [28, 28]).unwrap().run(images.view()).unwrap()
    };
    for (name, kind, nodes) in forms("raw") {
        let (grown, _) = grow(behind(nodes));
        let typing = Typing::new(&grown).unwrap();
        assert_eq!(activation(&typing).map(|a| (a.kind, a.classes)), Some((kind, 3)), "{name}");
        let found = &outputs(&grown)[0];
        assert_eq!(found.shape(), [2, 3], "{name}");
        for row in found.axis_iter(Axis(0)) {
            let total: f32 = match kind {
                ActivationKind::LogSoftmax => row.iter().map(|v| v.exp()).sum(),
                _ => row.sum(),
            };
            let alike = kind == ActivationKind::Sigmoid || (total - 1.0).abs() < 1e-5;
            assert!(alike && row.iter().all(|v| v.is_finite()), "{name}: {row}");
        }
    }
    let op = |op: &str, x: &[&str], y: &str| node(op, x, &[y], vec![]);
    let keep = || int_attribute("keepdims", 1);
    let axes = || vec![ints_attribute("axes", &[-1]), keep()];
    let norms = [
        vec![node("LpNormalization", &["raw"], &["y"], vec![int_attribute("axis", -1), int_attribute("p", 2)])],
        vec![
            node("ReduceL2", &["raw"], &["l"], axes()),
            op("Clip", &["l", "least"], "c"),
            op("Shape", &["raw"], "shape"),
            op("Expand", &["c", "shape"], "x"),
            op("Div", &["raw", "x"], "y"),
        ],
        vec![
            op("Pow", &["raw", "two"], "q"),
            node("ReduceSum", &["q", "last"], &["t"], vec![keep()]),
            op("Pow", &["t", "half"], "l"),
            op("Div", &["raw", "l"], "u"),
            op("Mul", &["u", "two"], "y"),
        ],
    ];
    for nodes in norms {
        let model = behind(nodes);
        assert_eq!(unit_norms(&Typing::new(&model).unwrap()).len(), 1);
        let (grown, said) = grow(model);
        assert!(said.contains("the norm that made unit vectors of the old logits"), "{said}");
        assert_eq!(unit_norms(&Typing::new(&grown).unwrap()), []);
        let found = &outputs(&grown)[0];
        let lengths = found.axis_iter(Axis(0)).map(|row| row.iter().map(|v| v * v).sum::<f32>().sqrt());
        assert_eq!((found.shape(), lengths.filter(|l| (l - 1.0).abs() < 1e-3).count()), (&[2, 3][..], 0));
    }
    // Two heads, and probabilities beside the logits; features are no classes.
    let mut model = behind(vec![
        node("Gemm", &["raw", "other"], &["second"], vec![int_attribute("transB", 1)]),
        node("Softmax", &["second"], &["p"], vec![int_attribute("axis", -1)]),
        node("Gemm", &["raw", "few"], &["features"], vec![int_attribute("transB", 1)]),
        node("Identity", &["raw"], &["y"], vec![]),
    ]);
    let graph = model.graph_mut();
    let wave = |n: usize| (0..n).map(|i| (i as f32).sin()).collect::<Vec<f32>>();
    graph.initializer.push(tensor_from_f32("other", DataType::Float, &[10, 10], &wave(100)));
    graph.initializer.push(tensor_from_f32("few", DataType::Float, &[4, 10], &wave(40)));
    for (name, size) in [("second", 10), ("p", 10), ("features", 4)] {
        graph.output.push(tensor_info(name, DataType::Float, &[None, Some(size)]));
    }
    assert_eq!(class_factors(&Typing::new(&model).unwrap()).len(), 2);
    let (grown, said) = grow(model);
    assert!(said.contains("warning: the output `features` stays as it is: it holds 4 values an image"), "{said}");
    assert!(!said.contains("`second`") && !said.contains("`p`"), "{said}");
    let shapes: Vec<Vec<usize>> = outputs(&grown).iter().map(|o| o.shape().to_vec()).collect();
    assert_eq!(shapes, [[2, 3], [2, 3], [2, 3], [2, 4]]);
}
