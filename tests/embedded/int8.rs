//! Weights in int8 on the embedded runtime: numbers against NumPy's (`scripts/golden/int8.py`), operator sets that are
//! raised, what stays float32, and `--dtype int8` and `int8-rows` on the command line.

use ndarray::Array4;
use offshoot::error::ErrorKind;
use offshoot::graph::{float_attribute, int_attribute, ints_attribute, node, prepare, prepare_written, unfold};
use offshoot::onnx::proto::attribute_proto::AttributeType;
use offshoot::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
};
use offshoot::onnx::{DataType, Model, payload, tensor_from_f32, tensor_from_raw, tensor_info, to_f32};
use offshoot::rounding::{Dtype, convert, raise};
use serde_json::Value;

use crate::common::binary::{done, json, refused, text};
use crate::common::hash::values;
use crate::common::surgery::{error, run};
use crate::common::{Fixture, all_fixtures, int8, root, texts, tract};

/// On ONNX Runtime all fixtures are tried.
#[test]
fn fixtures_in_int8_say_what_their_integers_stand_for() {
    let runtime = tract();
    let wanted = |f: &Fixture| f.name().contains("ts11") || f.name().starts_with("timm") || !f.name().contains('-');
    let mut fixtures: Vec<Fixture> = all_fixtures().into_iter().filter(wanted).collect();
    fixtures.extend(texts::tried(&runtime));
    int8::check_each(&runtime, &fixtures);
}

#[test]
fn numbers_are_those_of_numpy() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(root().join("fixtures/int8/golden.json")).unwrap()).unwrap();
    let runtime = tract();
    for (name, entry) in golden.as_object().unwrap() {
        let mut model = Model::open(root().join(format!("fixtures/{name}.onnx"))).unwrap();
        prepare(&mut model).unwrap();
        let report = convert(&mut model, Dtype::Int8).unwrap().int8.unwrap();
        let tensor = |name: &str| model.graph().initializer.iter().find(|t| t.name() == name);
        let weights = entry["weights"].as_object().unwrap();
        assert_eq!(weights.len(), report.matrices + report.tables, "{name}: {report:?}");
        for (weight, moments) in weights {
            let of = |part: &str| tensor(&format!("{weight}/{part}")).unwrap_or_else(|| panic!("{name}: {weight}"));
            let numbers: Vec<i64> = payload(of("int8")).iter().map(|&b| i64::from(b as i8)).collect();
            let scales = to_f32(of("scale")).unwrap();
            let weighted: i64 = numbers.iter().zip((1..=97).cycle()).map(|(v, w)| v * w).sum();
            assert_eq!(weighted, moments[0].as_i64().unwrap(), "{name}: {weight}");
            assert_eq!(numbers.iter().map(|v| v.abs()).sum::<i64>(), moments[1].as_i64().unwrap(), "{name}: {weight}");
            let of_scales: f64 = scales.iter().zip((1..=89).cycle()).map(|(s, w)| f64::from(*s) * f64::from(w)).sum();
            assert!((of_scales - moments[2].as_f64().unwrap()).abs() < 1e-12 * of_scales, "{name}: {weight}");
        }
        let Some(outputs) = entry["outputs"].as_array() else { continue };
        let shape: Vec<usize> =
            entry["image"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
        let image = Array4::from_shape_vec((shape[0], shape[1], shape[2], shape[3]), values(shape.iter().product(), 3));
        let found = run(&runtime, &model, &image.unwrap()).unwrap();
        for (y, said) in found.iter().zip(outputs) {
            let largest = y.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (a, b) in y.iter().zip(said.as_array().unwrap()) {
                assert!((a - b.as_f64().unwrap() as f32).abs() < 1e-4 * largest, "{name}: {a} and {b}");
            }
        }
    }
}

fn model(opset: i64, nodes: Vec<NodeProto>, initializers: Vec<TensorProto>, output: &[Option<usize>]) -> Model {
    let graph = GraphProto {
        node: nodes,
        initializer: initializers,
        input: vec![tensor_info("x", DataType::Float, &[None, Some(3), Some(4), Some(4)])],
        output: vec![tensor_info("y", DataType::Float, output)],
        ..Default::default()
    };
    Model::from_proto(ModelProto {
        ir_version: Some(6),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
        graph: Some(graph),
        ..Default::default()
    })
}

/// Operators that say something else in set 13, of every kind.
fn old(opset: i64) -> Model {
    let ints = |name: &str, v: &[i64]| ints_attribute(name, v);
    let mut nodes = vec![
        node("Dropout", &["x"], &["kept"], vec![float_attribute("ratio", 0.3)]),
        node("Unsqueeze", &["kept"], &["wide"], vec![ints("axes", &[1])]),
        node("Softmax", &["wide"], &["shares"], vec![int_attribute("axis", 3)]),
        node("LogSoftmax", &["shares"], &["logs"], vec![int_attribute("axis", 4)]),
        node("Squeeze", &["logs"], &["narrow"], vec![ints("axes", &[1])]),
        node("Split", &["narrow"], &["one", "two"], vec![int_attribute("axis", 1), ints("split", &[1, 2])]),
        node("ReduceSum", &["two"], &["sum"], vec![ints("axes", &[1]), int_attribute("keepdims", 1)]),
        node("Add", &["one", "sum"], &["both"], vec![]),
    ];
    if opset < 11 {
        nodes.push(node("Pad", &["both"], &["padded"], vec![ints("pads", &[0, 0, 1, 0, 0, 0, 0, 2])]));
        nodes.push(node("Clip", &["padded"], &["clipped"], vec![float_attribute("min", -9.0)]));
        let slices = [ints("starts", &[1, 1]), ints("ends", &[4, 5]), ints("axes", &[2, 3])];
        let inputs: &[&str] = if opset < 10 { &["clipped"] } else { &["clipped", "starts", "ends", "axes"] };
        nodes.push(node("Slice", inputs, &["y"], if opset < 10 { slices.to_vec() } else { vec![] }));
    } else {
        nodes.push(node("Identity", &["both"], &["y"], vec![]));
    }
    let ints = |name: &str, v: &[i64]| offshoot::onnx::tensor_from_i64(name, &[v.len()], v);
    let initializers = match opset {
        10 => vec![ints("starts", &[1, 1]), ints("ends", &[4, 5]), ints("axes", &[2, 3])],
        _ => Vec::new(),
    };
    model(opset, nodes, initializers, &[None, Some(1), None, None])
}

#[test]
fn raised_models_say_what_they_said() {
    let runtime = tract();
    let image = Array4::from_shape_vec((2, 3, 4, 4), values(96, 5)).unwrap();
    for opset in 9..=12 {
        let before = old(opset);
        let mut after = before.clone();
        assert_eq!(raise(&mut after).unwrap(), Some(opset));
        assert_eq!((after.opset(), after.proto.ir_version()), (13, 7));
        let after = Model::from_bytes(after.to_bytes()).unwrap();
        let [a, b] = [&before, &after].map(|m| run(&runtime, m, &image).unwrap());
        assert!(error(&b, &a) < 1e-6, "set {opset}: {a:?} and {b:?}");
        assert_eq!(raise(&mut after.clone()).unwrap(), None);
    }
    for fixture in all_fixtures().iter().filter(|f| f.open().opset() == 11) {
        let before = fixture.open();
        for opset in [11, 12] {
            let mut after = before.clone();
            after.proto.opset_import[0].version = Some(opset);
            raise(&mut after).unwrap();
            let x = crate::common::surgery::images(fixture);
            let [a, b] = [&before, &after].map(|m| run(&runtime, m, &x).unwrap());
            assert!(error(&b, &a) < 1e-6, "{}", fixture.name());
        }
    }
}

#[test]
fn what_cannot_be_raised_is_named() {
    let scales = tensor_from_f32("s", DataType::Float, &[4], &[1.0, 1.0, 2.0, 2.0]);
    let cases = [
        (9, node("Upsample", &["x", "s"], &["y"], vec![]), "`Upsample` means something else"),
        (12, NodeProto { domain: Some(String::new()), ..node("Det", &["x"], &["y"], vec![]) }, "`Det` is not known"),
        (8, node("Identity", &["x"], &["y"], vec![]), "operator set 8"),
    ];
    for (opset, node, says) in cases {
        let error = raise(&mut model(opset, vec![node], vec![scales.clone()], &[None; 4])).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint_text().is_some());
    }
}

/// A product of the last axis with `w` [4, n], after whatever other nodes there are.
fn product(values: Vec<f32>, n: usize, others: Vec<NodeProto>) -> Model {
    let w = tensor_from_f32("w", DataType::Float, &[values.len() / n, n], &values);
    let mut nodes = others;
    nodes.push(node("MatMul", &["x", "w"], &["y"], vec![]));
    model(17, nodes, vec![w], &[None, Some(3), Some(4), Some(n)])
}

#[test]
fn what_stays_float32_is_named() {
    let numbers = || -> Vec<f32> { (0..4 * 300).map(|i| (i % 17) as f32 - 8.0).collect() };
    let kept = |mut model: Model, dtype: Dtype| {
        let report = convert(&mut model, dtype).unwrap().int8.unwrap();
        assert_eq!(report.matrices, 0, "{report:?}");
        assert!(report.notes().iter().any(|n| n.contains("`w` (")), "{report:?}");
        assert_eq!(report.float32[0].tensor, "w");
        report.float32[0].why.clone()
    };
    let mut infinite = numbers();
    infinite[301] = f32::NEG_INFINITY;
    assert_eq!(kept(product(infinite, 300, vec![]), Dtype::Int8), "numbers of its column 1 are not finite");
    let mut output = product(numbers(), 300, vec![]);
    output.graph_mut().output.push(tensor_info("w", DataType::Float, &[Some(4), Some(300)]));
    assert_eq!(kept(output, Dtype::Int8), "it is an output");
    let read = product(numbers(), 300, vec![]);
    let mut also = read.clone();
    also.graph_mut().node.push(node("ReduceMax", &["w"], &["most"], vec![int_attribute("keepdims", 0)]));
    also.graph_mut().node.push(node("Add", &["y", "most"], &["z"], vec![]));
    also.graph_mut().output[0].name = Some("z".into());
    assert_eq!(kept(also, Dtype::Int8), "`ReduceMax` reads it as well");
    // As many products as copies would outweigh the matrix; the other form shares it.
    let mut shared = read.clone();
    let again = |k: usize| {
        [
            node("MatMul", &["x", "w"], &[&format!("p{k}")], vec![]),
            node("Add", &[if k == 0 { "y" } else { "s0" }, &format!("p{k}")], &[&format!("s{k}")], vec![]),
        ]
    };
    shared.graph_mut().node.extend((0..2).flat_map(again));
    shared.graph_mut().output[0].name = Some("s1".into());
    let mut twice = shared.clone();
    let report = convert(&mut twice, Dtype::Int8).unwrap().int8.unwrap();
    assert_eq!((report.matrices, report.copies), (3, 2));
    shared.graph_mut().node.extend((2..6).map(|k| again(k)[0].clone()));
    assert!(kept(shared.clone(), Dtype::Int8).starts_with("7 products share it"));
    let report = convert(&mut shared, Dtype::Int8Rows).unwrap().int8.unwrap();
    assert_eq!((report.matrices, report.copies), (1, 0));
    // Columns of zeros are zero.
    let mut zeros = numbers();
    zeros.chunks_mut(300).for_each(|row| row[7] = 0.0);
    let mut model = product(zeros, 300, vec![]);
    assert_eq!(convert(&mut model, Dtype::Int8).unwrap().int8.unwrap().matrices, 1);
    assert!(model.to_bytes().len() < 4 * 300 * 2 + 1500);
}

/// Numbers of tokens are looked up in the matrix that scores them, as in a language model.
#[test]
fn a_matrix_that_is_written_twice_is_named() {
    let values: Vec<f32> = (0..300 * 4).map(|i| (i % 17) as f32 - 8.0).collect();
    let table = tensor_from_f32("table", DataType::Float, &[300, 4], &values);
    let nodes = vec![
        node("Gather", &["table", "ids"], &["rows"], vec![]),
        node("Add", &["x", "rows"], &["both"], vec![]),
        node("Transpose", &["table"], &["turned"], vec![ints_attribute("perm", &[1, 0])]),
        node("MatMul", &["both", "turned"], &["y"], vec![]),
    ];
    let mut model = model(17, nodes, vec![table], &[None, Some(3), Some(4), Some(300)]);
    model.graph_mut().input.push(tensor_info("ids", DataType::Int64, &[Some(4)]));
    for dtype in [Dtype::Int8, Dtype::Int8Rows] {
        let report = convert(&mut model.clone(), dtype).unwrap().int8.unwrap();
        assert_eq!((report.matrices, report.tables, report.twice.len()), (1, 1, 1), "{report:?}");
        assert_eq!((report.twice[0].tensor.as_str(), report.twice[0].bytes), ("table", 300 * 4 + 300 * 4));
        assert!(report.notes().iter().any(|n| n.contains("`table` (2400 bytes)")), "{:?}", report.notes());
    }
}

/// One node that reads a matrix and the same transposed.
#[test]
fn a_weight_that_a_node_reads_twice_stays_float32() {
    let numbers: Vec<f32> = (0..4 * 300).map(|i| (i % 17) as f32 - 8.0).collect();
    let turned = node("Transpose", &["w"], &["t"], vec![]);
    let squares = node("MatMul", &["w", "t"], &["g"], vec![]);
    let mut before = product(numbers, 300, vec![turned, squares, node("MatMul", &["x", "g"], &["z"], vec![])]);
    before.graph_mut().output.push(tensor_info("z", DataType::Float, &[None, Some(3), Some(4), Some(4)]));
    let image = Array4::from_shape_vec((2, 3, 4, 4), values(96, 5)).unwrap();
    for dtype in [Dtype::Int8, Dtype::Int8Rows] {
        let mut model = before.clone();
        let report = convert(&mut model, dtype).unwrap().int8.unwrap();
        let kept: Vec<(&str, &str)> = report.float32.iter().map(|k| (k.tensor.as_str(), k.why.as_str())).collect();
        assert_eq!((report.matrices, kept), (0, vec![("w", "`MatMul` reads it twice")]));
        let [a, b] = [&before, &model].map(|m| run(&tract(), m, &image).unwrap());
        assert_eq!(a, b);
    }
}

/// A product of rows that are rounded otherwise is another product: it is refused, and not taken for one of float32.
#[test]
fn other_forms_of_rounded_rows_are_not_read() {
    let mut written = product((0..4 * 300).map(|i| (i % 17) as f32 - 8.0).collect(), 300, vec![]);
    convert(&mut written, Dtype::Int8Rows).unwrap();
    let read = unfold(&mut written.clone()).unwrap().unwrap();
    assert_eq!((read.rows, read.matrices), (1, 0));
    let refused = |other: Model, what: &str| {
        let mut other = Model::from_bytes(other.to_bytes()).unwrap();
        assert_eq!(unfold(&mut other).unwrap(), None, "{what}");
        let error = prepare(&mut other).unwrap_err();
        assert!(error.kind() == ErrorKind::Unsupported && error.to_string().contains("quantised"), "{what}: {error}");
    };
    for (own, other) in [(128.0, 100.0), (127.0, 63.0), (1e-30, 50.0)] {
        let mut changed = written.clone();
        let is_own = |t: &&mut TensorProto| to_f32(t).is_ok_and(|v| v == [own]);
        let tensor = changed.graph_mut().initializer.iter_mut().find(is_own).unwrap();
        *tensor = tensor_from_f32(tensor.name(), DataType::Float, &[], &[other]);
        refused(changed, &format!("{other} for {own}"));
    }
    for attribute in [ints_attribute("axes", &[1]), int_attribute("keepdims", 0)] {
        let mut changed = written.clone();
        let reduce = changed.graph_mut().node.iter_mut().find(|n| n.op_type() == "ReduceMax").unwrap();
        reduce.attribute.retain(|a| a.name() != attribute.name());
        reduce.attribute.push(attribute.clone());
        refused(changed, attribute.name());
    }
}

/// Other tools write zero points that move nothing, and weights as Constant nodes.
#[test]
fn zero_points_of_zeros_and_weights_in_constants_are_read() {
    let mut written = product((0..4 * 300).map(|i| (i % 17) as f32 - 8.0).collect(), 300, vec![]);
    convert(&mut written, Dtype::Int8).unwrap();
    let wanted = unfold_numbers(written.clone());
    let zeros = |byte: u8| tensor_from_raw("zero", DataType::Int8, &[300], vec![byte; 300].into());
    let pointed = |byte: u8| {
        let mut model = written.clone();
        let graph = model.graph_mut();
        graph.initializer.push(zeros(byte));
        let of = graph.node.iter_mut().find(|n| n.op_type() == "DequantizeLinear").unwrap();
        of.input.push("zero".into());
        model
    };
    assert_eq!(unfold_numbers(pointed(0)), wanted);
    let moved = Model::from_bytes(pointed(1).to_bytes()).unwrap();
    assert_eq!(unfold(&mut moved.clone()).unwrap(), None);
    assert!(prepare(&mut moved.clone()).unwrap_err().to_string().contains("quantised"));
    // As Constant nodes.
    let mut constants = pointed(0);
    let graph = constants.graph_mut();
    for t in std::mem::take(&mut graph.initializer) {
        let name = t.name().to_string();
        let value = AttributeProto {
            name: Some("value".into()),
            r#type: Some(AttributeType::Tensor as i32),
            t: Some(TensorProto { name: None, ..t }),
            ..Default::default()
        };
        graph.node.insert(0, node("Constant", &[], &[&name], vec![value]));
    }
    prepare_written(&mut Model::from_bytes(constants.to_bytes()).unwrap()).unwrap();
    assert_eq!(unfold_numbers(constants.clone()), wanted);
    // Fewer scales than columns are an error, and nothing else.
    for n in constants.graph_mut().node.iter_mut().filter(|n| n.op_type() == "Constant") {
        let t = n.attribute[0].t.as_mut().unwrap();
        if t.data_type() == DataType::Float as i32 {
            t.raw_data = t.raw_data.as_ref().map(|raw| raw.slice(..8));
        }
    }
    assert_eq!(unfold(&mut constants).unwrap_err().kind(), ErrorKind::Format);
}

/// The float32 matrix that a model in int8 stands for.
fn unfold_numbers(model: Model) -> Vec<f32> {
    let mut model = Model::from_bytes(model.to_bytes()).unwrap();
    assert_eq!(unfold(&mut model).unwrap().map(|u| u.matrices), Some(1));
    prepare(&mut model).unwrap();
    let [weight] = &model.graph().initializer[..] else { panic!("{:?}", model.graph().initializer.len()) };
    to_f32(weight).unwrap()
}

/// What a function of the model holds is a part of its graph.
#[test]
fn weights_behind_a_function_are_read() {
    let mut written = product((0..4 * 300).map(|i| (i % 17) as f32 - 8.0).collect(), 300, vec![]);
    convert(&mut written, Dtype::Int8).unwrap();
    let own = |version: i64| OperatorSetIdProto { domain: None, version: Some(version) };
    let opset = written.opset();
    let at = written.graph().node.iter().position(|n| n.op_type() == "DequantizeLinear").unwrap();
    let wide = node("DequantizeLinear", &["a", "b"], &["c"], written.graph().node[at].attribute.clone());
    written.proto.functions.push(FunctionProto {
        name: Some("wide".into()),
        domain: Some("own".into()),
        input: vec!["a".into(), "b".into()],
        output: vec!["c".into()],
        node: vec![wide],
        opset_import: vec![own(opset)],
        ..Default::default()
    });
    written.proto.opset_import.push(OperatorSetIdProto { domain: Some("own".into()), version: Some(1) });
    let called = &mut written.graph_mut().node[at];
    (called.op_type, called.domain) = (Some("wide".into()), Some("own".into()));
    called.attribute.clear();
    let read = unfold(&mut written.clone()).unwrap().unwrap();
    assert_eq!(read.matrices, 1);
    prepare(&mut written).unwrap();
    assert!(written.graph().initializer.iter().all(|t| t.data_type() == DataType::Float as i32));
}

#[test]
fn sums_that_leave_32_bits_are_none() {
    let w = tensor_from_f32("w", DataType::Float, &[70_000, 1], &vec![1.0; 70_000]);
    let graph = GraphProto {
        node: vec![node("MatMul", &["x", "w"], &["y"], vec![])],
        initializer: vec![w],
        input: vec![tensor_info("x", DataType::Float, &[Some(1), Some(70_000)])],
        output: vec![tensor_info("y", DataType::Float, &[Some(1), Some(1)])],
        ..Default::default()
    };
    let mut model = Model::from_proto(ModelProto { graph: Some(graph), ..model(17, vec![], vec![], &[]).proto });
    let report = convert(&mut model.clone(), Dtype::Int8Rows).unwrap().int8.unwrap();
    assert_eq!(report.float32[0].why, "sums over 70000 products would leave 32 bits");
    assert_eq!(convert(&mut model, Dtype::Int8).unwrap().int8.unwrap().matrices, 1);
}

#[test]
fn children_in_int8_go_through_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (ancestor, images) = ("models/fashion-vit.onnx", "fixtures/fashion-images.idx3-ubyte");
    let few = ["--images", images, "--limit", "16", "--runtime", "tract"];
    let compare = |child: &std::path::Path| {
        json(&[&["compare", ancestor, text(child), "--runs", "1", "--json"][..], &few].concat())
    };
    let whole = json(&["inspect", ancestor, "--json"]);
    for (dtype, correlation) in [("int8", 0.999), ("int8-rows", 0.998)] {
        let child = at(dtype);
        let plan = json(&["grow", ancestor, "--no-images", "--dtype", dtype, "--verify", "-o", text(&child), "--json"]);
        assert!(plan["int8"]["matrices"].as_u64().unwrap() > 8, "{plan}");
        let checks = plan["verification"]["checks"].as_array().unwrap();
        let own = checks.iter().find(|c| c["check"] == "int8").unwrap();
        assert_eq!(own["outcome"], "passed", "{own}");
        let compared = compare(&child);
        assert!(compared["correlation"].as_f64().unwrap() > correlation, "{dtype}: {compared}");
        assert_eq!(compared["bytes"]["b"], plan["bytes"]);
        assert_eq!(compared["parameters"]["a"], compared["parameters"]["b"]);
        assert!(compared["bytes"]["b"].as_f64().unwrap() < 0.4 * compared["bytes"]["a"].as_f64().unwrap());
        let inspected = json(&["inspect", text(&child), "--json"]);
        assert_eq!((&inspected["layers"], &inspected["parameters"]), (&whole["layers"], &whole["parameters"]));
        assert_eq!(inspected["int8"]["dtype"], dtype);
        let [a, b] = [ancestor, text(&child)].map(|m| json(&[&["density", m, "--json"][..], &few].concat()));
        for (x, y) in a["densities"][0].as_array().unwrap().iter().zip(b["densities"][0].as_array().unwrap()) {
            assert!((x.as_f64().unwrap() / y.as_f64().unwrap() - 1.0).abs() < 0.05, "{dtype}: {x} and {y}");
        }
        json(&["eval", text(&child), "--data", images, "--limit", "16", "--runtime", "tract", "--json"]);
        // Read back and rounded again it is what it was; without --dtype it is float32. Both is said.
        let (again, wide) = (at("again"), at("wide"));
        for (flags, out) in [(&["--dtype", dtype][..], &again), (&[], &wide)] {
            let grow = ["grow", text(&child), "--no-images", "--force", "-o", text(out)];
            let said = done(&[&grow[..], flags].concat()).stderr;
            let said = String::from_utf8_lossy(&said);
            assert!(said.contains("weights are in int8") && said.contains(&format!("--dtype {dtype} ")), "{said}");
        }
        let same = ["compare", text(&child), text(&again), "--images", images, "--limit", "4", "--tolerance", "1e-5"];
        done(&[&same[..], &["--runs", "1", "--runtime", "tract"]].concat());
        let bytes = |p: &std::path::Path| std::fs::metadata(p).unwrap().len();
        assert!(bytes(&again) < bytes(&wide) / 2);
    }
    let child = at("int8");
    let shrunk = at("shrunk");
    let budget = ["--budget", "bytes=250k", "--crops", "16", "--runtime", "tract", "--dtype", "int8"];
    let made =
        json(&[&["shrink", text(&child), "--images", images, "-o", text(&shrunk), "--json"][..], &budget].concat());
    assert!(made["descendants"][0]["int8"]["matrices"].as_u64().unwrap() > 8, "{made}");
    let bytes = std::fs::metadata(&shrunk).unwrap().len();
    assert!((150_000..=250_000).contains(&bytes), "{bytes}");
    let tuned = at("tuned");
    let once = ["--epochs", "1", "--steps", "1", "--batch-size", "2", "--val-split", "0", "--runtime", "tract"];
    let tune = ["tune", text(&child), "--data", images, "--dtype", "int8", "-o", text(&tuned), "--json"];
    let said = json(&[&tune[..], &once].concat());
    assert!(said["int8"]["matrices"].as_u64().unwrap() > 8, "{said}");
    assert!(compare(&tuned)["bytes"]["b"].as_f64().unwrap() < 0.4 * compare(&tuned)["bytes"]["a"].as_f64().unwrap());
    // What lies beside a child is read off the weights that its integers stand for.
    let folder_of = at("folder");
    let (encoder, flags) = ("fixtures/reports/texts/bert-dynamo.onnx", ["--no-images", "--heads", "50%", "--json"]);
    let grown = json(&[&["grow", encoder, "--dtype", "int8-rows", "-o", text(&folder_of)][..], &flags].concat());
    assert_eq!(grown["int8"]["tables"], 1, "{grown}");
    // Every layer has a copy.
    let tied = at("tied");
    let said = done(&["grow", ancestor, "--no-images", "--tied", "--dtype", "int8", "-o", text(&tied)]).stderr;
    assert!(String::from_utf8_lossy(&said).contains("--tied is left out"));
    refused(
        &["grow", "fixtures/quantized/dynamic.onnx", "--no-images", "-o", text(&at("no"))],
        &["the model is quantised"],
    );
}

#[test]
fn convolutions_in_float32_are_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let grow = ["grow", "models/fashion-hybrid.onnx", "--no-images", "--no-verify", "--dtype", "int8"];
    let said = done(&[&grow[..], &["-o", text(&folder.path().join("grown.onnx"))]].concat()).stderr;
    let said = String::from_utf8_lossy(&said);
    let note = said.lines().any(|line| line.starts_with("convolutions stay float32"));
    assert!(note && !said.contains("weights that stay float32"), "{said}");
}

/// What `tune` says of the file that it wrote is what `eval` says of it.
#[test]
fn tune_says_what_rounding_costs() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = folder.path().join("tuned.onnx");
    let (pictures, texts) = ("fixtures/fashion-images.idx3-ubyte", "fixtures/reports/texts/labelled.jsonl");
    let cases = [
        ("models/fashion-vit.onnx", ["--data", pictures, "--limit", "32"]),
        ("fixtures/reports/texts/classifier-ts.onnx", ["--texts", texts, "--tokenizer", "fixtures/reports/texts"]),
    ];
    let once = ["--steps", "1", "--batch-size", "4", "--lr", "1e-3", "--runtime", "tract", "--json", "--force"];
    let tune = |model: &str, more: &[&str]| {
        json(&[&["tune", model, "-o", text(&tuned)][..], more, &once].concat())["int8"]["validation"].clone()
    };
    let loss = |said: &Value| said["val_loss"].as_f64().unwrap();
    for (model, data) in cases {
        for dtype in ["int8", "int8-rows"] {
            let said = tune(model, &[&["--dtype", dtype, "--val", data[1]][..], &data].concat());
            let judged = json(&[&["eval", text(&tuned), "--runtime", "tract", "--json"][..], &data].concat());
            let [before, after] = [&said["before"], &said["after"]].map(loss);
            let found = judged["loss"].as_f64().unwrap();
            assert!((after - found).abs() < 1e-4 * found, "{model} {dtype}: {said} and {found}");
            assert!((before / after - 1.0).abs() < 0.1, "{model} {dtype}: {said}");
            assert!((before - after).abs() > 1e-5 * before, "{model} {dtype}: nothing was rounded: {said}");
            assert_eq!(said["after"]["val_top1"], judged["top1"], "{model} {dtype}");
        }
    }
    // A loss that looks into the graph and to a teacher.
    let (vit, data) = cases[0];
    let inner = "/blocks.0/attention/qkv/Add_output_0";
    let learn = ["--teacher", vit, "--feature", inner, "--dtype", "int8", "--val-split", "0.5"];
    let said = tune(vit, &[&learn[..], &data].concat());
    assert!(said["after"]["val_loss"] != said["before"]["val_loss"] && loss(&said["after"]) > 0.0, "{said}");
    // Without samples to validate on there is nothing to say.
    assert!(tune(vit, &[&["--dtype", "int8", "--val-split", "0"][..], &data].concat()).is_null());
}
