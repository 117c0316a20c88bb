//! Graphs whose shapes choose branches and divide lists (scripts/fixtures/branches.py): they were refused, and what is
//! chosen by more than shapes still is.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array4, Axis, Slice};
use offshoot::axes::batch_fault;
use offshoot::graph::{declared_dims, int_attribute, node};
use offshoot::onnx::proto::{AttributeProto, GraphProto, NodeProto, ValueInfoProto, attribute_proto::AttributeType};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_info};
use offshoot::runtime::Runtime;
use serde_json::Value;

use crate::common::binary::{done, refused, text};
use crate::common::hash::values;
use crate::common::root;

const FOLDER: &str = "fixtures/reports/branches";

/// Children with any number of heads say at every batch what ONNX Runtime says of the file with its branches and lists,
/// or PyTorch of the model, where the other heads write nothing.
pub fn children_have_their_branches_inlined(runtime: &Arc<Runtime>) {
    children_say(runtime, (FOLDER, 3), 5, |model, grown| {
        assert_eq!(batch_fault(grown), None, "{model}");
        let mut names = HashSet::new();
        for node in &grown.graph().node {
            let op = node.op_type();
            assert!(op != "If" && !op.contains("Sequence"), "{model}: {op}");
            assert!(node.name().is_empty() || names.insert(node.name()), "{model}: two nodes are {}", node.name());
        }
    });
}

/// Children of the `count` models of a folder say at every batch what its `golden.json` says, for images of this seed;
/// each is also given to `check`.
pub fn children_say(runtime: &Arc<Runtime>, (models, count): (&str, usize), seed: u32, check: impl Fn(&str, &Model)) {
    let golden: Vec<Value> =
        serde_json::from_slice(&fs::read(root().join(models).join("golden.json")).unwrap()).unwrap();
    assert_eq!(golden.len(), count, "{models}");
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    let images = Array4::from_shape_vec((3, 3, 16, 16), values(3 * 3 * 256, seed)).unwrap();
    for entry in &golden {
        let model = format!("{models}/{}", entry["file"].as_str().unwrap());
        for (heads, expected) in entry["outputs"].as_object().unwrap() {
            let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            done(&["grow", &model, "--no-images", "--heads", heads, "--force", "-o", text(&child)]);
            let grown = Model::open(&child).unwrap();
            check(&format!("{model} with {heads} heads"), &grown);
            for batch in 1..=3 {
                let x = images.slice_axis(Axis(0), Slice::from(..batch));
                let found = runtime.load(&grown, batch, [16, 16]).and_then(|mut s| s.run(x));
                let found = found.unwrap_or_else(|e| panic!("{model} with {heads} heads, batch {batch}: {e}"));
                assert_eq!(found[0].len() * 3, expected.len() * batch, "{model} with {heads} heads");
                for (f, e) in found[0].iter().zip(&expected) {
                    let far = (f64::from(*f) - e).abs();
                    assert!(far < 1e-4, "{model} with {heads} heads, batch {batch}: {f}, not {e}");
                }
            }
        }
    }
}

/// A branch of one node that makes `output` of `input`.
fn branch(name: &str, branch: &str, op: &str, input: &str) -> AttributeProto {
    let made = format!("{branch} made");
    let graph = GraphProto {
        name: Some(branch.into()),
        output: vec![ValueInfoProto { name: Some(made.clone()), ..Default::default() }],
        node: vec![node(op, &[input], &[&made], vec![])],
        ..Default::default()
    };
    let kind = Some(AttributeType::Graph as i32);
    AttributeProto { name: Some(name.into()), r#type: kind, g: Some(graph), ..Default::default() }
}

/// Writes a model with an `If` behind its last value, whose condition `condition` is made by `nodes`.
fn conditional(source: &str, nodes: Vec<NodeProto>, path: &Path) {
    let mut model = Model::open(root().join(source)).unwrap();
    let graph = model.graph_mut();
    let (last, rank) = (graph.output[0].name().to_string(), declared_dims(&graph.output[0]).unwrap().len());
    graph.initializer.push(tensor_from_i64("zero", &[], &[0]));
    graph.initializer.push(tensor_from_i64("two", &[], &[2]));
    graph.initializer.push(tensor_from_i64("sixteen", &[], &[16]));
    graph.initializer.push(tensor_from_f32("none", DataType::Float, &[], &[0.0]));
    graph.node.extend(nodes);
    let branches =
        vec![branch("then_branch", "as it is", "Identity", &last), branch("else_branch", "the opposite", "Neg", &last)];
    graph.node.push(NodeProto { name: Some("chooser".into()), ..node("If", &["condition"], &["chosen"], branches) });
    graph.output = vec![tensor_info("chosen", DataType::Float, &vec![None; rank])];
    model.write(path).unwrap();
}

/// What depends on the values of the image, on the batch or on an open size is refused with the node and its branches.
pub fn what_more_than_shapes_chooses_is_refused() {
    const OPEN: &str = "fixtures/reports/branches/dinov3.onnx";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let axis = |op: &str, input: &str, from: &str| {
        vec![
            node("Shape", &[input], &["sizes"], vec![]),
            node("Gather", &["sizes", from], &["size"], vec![int_attribute("axis", 0)]),
            node("Equal", &["size", op], &["condition"], vec![]),
        ]
    };
    let all = || vec![int_attribute("keepdims", 0)];
    let by_pixels = vec![
        node("ReduceMax", &["x"], &["brightest"], all()),
        node("Greater", &["brightest", "none"], &["condition"], vec![]),
    ];
    conditional(OPEN, by_pixels, &path);
    refused(
        &["inspect", text(&path)],
        &["node `chooser`", "`as it is` (Identity)", "`the opposite` (Neg)", "the values of the image", "hint: "],
    );
    conditional(OPEN, axis("two", "x", "zero"), &path);
    refused(&["inspect", text(&path)], &["node `chooser`", "depends on the number of images in a batch"]);
    conditional(OPEN, axis("sixteen", "x", "two"), &path);
    refused(&["inspect", text(&path)], &["node `chooser`", "depends on the size of the image", "--input-size"]);
    // The size that is said is the only one from then on.
    let child = folder.path().join("child.onnx");
    let grow = |size: &str| {
        done(&[
            "grow",
            text(&path),
            "--input-size",
            size,
            "--no-images",
            "--heads",
            "1",
            "--force",
            "-o",
            text(&child),
        ]);
        let grown = Model::open(&child).unwrap();
        let dims = declared_dims(&grown.graph().input[0]).unwrap();
        (dims, grown.graph().node.iter().any(|n| n.op_type() == "Neg" && n.output[0] == "chosen"))
    };
    assert_eq!(grow("16x16"), (vec![None, Some(3), Some(16), Some(16)], false));
    assert_eq!(grow("32x32"), (vec![None, Some(3), Some(32), Some(32)], true));
    // A place in a list that the image says.
    let mut model = Model::open(root().join("fixtures/reports/branches/lists.onnx")).unwrap();
    let graph = model.graph_mut();
    let input = graph.input[0].name().to_string();
    let at = graph.node.iter().position(|n| n.op_type() == "SequenceAt").unwrap();
    graph.node[at].input[1] = "place".into();
    let int64 = int_attribute("to", DataType::Int64 as i64);
    graph.node.insert(at, node("Cast", &["brightest"], &["place"], vec![int64]));
    graph.node.insert(at, node("ReduceMax", &[&input], &["brightest"], all()));
    model.write(&path).unwrap();
    refused(&["inspect", text(&path)], &["`SequenceAt`: the place `place` depends on more than shapes"]);
}
