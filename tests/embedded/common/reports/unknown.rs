//! Operators that no rule types, beside encoders that are read (scripts/fixtures/unknown.py): they were refused.

use std::sync::Arc;

use offshoot::axes::Typing;
use offshoot::graph::{int_attribute, ints_attribute, node, prepare};
use offshoot::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_info};
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use super::branches::children_say;
use crate::common::binary::{done, json as json_of, refused, text};
use crate::common::root;

const FOLDER: &str = "fixtures/reports/unknown";
const BASE: &str = "fixtures/graphs/timm-vit-unfused-ts17.onnx";

/// Children with any number of heads say what the file says where the other heads write nothing.
pub fn what_is_known_is_resized(runtime: &Arc<Runtime>) {
    let kept = |grown: &Model, op: &str| grown.graph().node.iter().any(|n| n.op_type() == op);
    children_say(runtime, (FOLDER, 5), 7, |model, grown| {
        assert!(["GridSample", "Loop", "NonZero"].iter().any(|op| kept(grown, op)), "{model}");
    });
}

/// Deformable attention adds up a few places of a map. Its Softmax makes no attention over keys, and what it samples
/// are no neurons: the layer has the FFN behind it.
pub fn what_is_sampled_is_no_attention() {
    let found = json_of(&["inspect", &format!("{FOLDER}/deformable.onnx"), "--json"]);
    let layers = found["layers"].as_array().unwrap();
    let read: Vec<[&Value; 3]> =
        layers.iter().map(|l| ["heads", "ffn_width", "ffn_activation"].map(|k| &l[k])).collect();
    assert_eq!(read, [[&json!(4), &json!(32), &json!("gelu")]; 3]);
    assert_eq!(found["other_attentions"], json!([]));
    // The FFN of a layer whose own attention is a constant is not one of the next layer.
    let found = json_of(&["inspect", &format!("{FOLDER}/learned.onnx"), "--json"]);
    assert_eq!(found["layers"].as_array().unwrap().len(), 1);
    assert_eq!(found["layers"][0]["ffn_width"], json!(32));
    for (file, said) in [("deformable", true), ("learned", true), ("sampled", false)] {
        let shown = done(&["inspect", &format!("{FOLDER}/{file}.onnx")]);
        let warnings = String::from_utf8(shown.stderr).unwrap();
        assert_eq!(warnings.contains("sample values at places"), said, "{file}: {warnings}");
    }
}

/// An operator of a domain that nobody knows.
fn invented(inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { domain: Some("com.example".into()), ..node("Frobnicate", inputs, outputs, vec![]) }
}

/// What a plain child of the base has, and what one of the model with another node has.
fn heads_of_children(model: &Model, said: &[&str]) -> Vec<u64> {
    let folder = tempfile::tempdir().unwrap();
    let (path, child) = (folder.path().join("model.onnx"), folder.path().join("child.onnx"));
    model.write(&path).unwrap();
    let grown = done(&["grow", text(&path), "--no-images", "--heads", "2", "--no-verify", "-o", text(&child)]);
    let warnings = String::from_utf8(grown.stderr).unwrap();
    said.iter().for_each(|word| assert!(warnings.contains(word), "{word}: {warnings}"));
    let kept = Model::open(&child).unwrap();
    assert_eq!(kept.graph().node.iter().filter(|n| n.op_type() == "Frobnicate").count(), 1);
    // What the file says of it is still there, and reads alike.
    let layers = |path: &str| json_of(&["inspect", path, "--json"])["layers"].clone();
    let heads = |layers: Value| layers.as_array().unwrap().iter().map(|l| l["heads"].as_u64().unwrap()).collect();
    let before: Vec<u64> = heads(layers(text(&path)));
    assert_eq!(before, [4, 4]);
    refused(
        &[
            "grow",
            text(&path),
            "--no-images",
            "--heads",
            "2",
            "--dtype",
            "fp16",
            "--no-verify",
            "--force",
            "-o",
            text(&child),
        ],
        &["the type of what `Frobnicate` makes is not known", "--dtype"],
    );
    heads(layers(text(&child)))
}

/// Nothing that an invented operator touches is resized, and everything else is.
pub fn an_invented_operator_keeps_what_it_touches() {
    let base = || {
        let mut model = Model::open(root().join(BASE)).unwrap();
        model.graph_mut().value_info.clear();
        model.proto.opset_import.push(OperatorSetIdProto { domain: Some("com.example".into()), version: Some(1) });
        model
    };
    let said = "`com.example.Frobnicate` in node `made` has no typing rule";
    // Behind the logits: all heads are resized.
    let mut behind = base();
    let graph = behind.graph_mut();
    let logits = graph.output[0].name().to_string();
    graph.node.push(invented(&[&logits], &["made"]));
    graph.output = vec![tensor_info("made", DataType::Float, &[None, Some(7)])];
    graph.output[0].r#type = None;
    assert_eq!(heads_of_children(&behind, &[said]), [2, 2]);
    // It takes the probabilities of the first layer: their heads stay, and those of the second do not.
    let mut maps = base();
    let graph = maps.graph_mut();
    let map = graph.node.iter().find(|n| n.op_type() == "Softmax").unwrap().output[0].clone();
    graph.node.push(invented(&[&map], &["made"]));
    graph.output.push(Default::default());
    graph.output[1].name = Some("made".into());
    assert_eq!(heads_of_children(&maps, &[said, "layer 0 keeps its 4 head(s)", "reach node `made`"]), [4, 2]);
    // It takes the tokens, which run over the image: its size stays.
    let folder = tempfile::tempdir().unwrap();
    let (path, child) = (folder.path().join("model.onnx"), folder.path().join("child.onnx"));
    maps.write(&path).unwrap();
    let grow = ["grow", text(&path), "--no-images", "--image-size", "32", "--no-verify", "--force", "-o", text(&child)];
    refused(&grow, &["node `made`", said, "nothing that it touches can be resized"]);
}

/// A layer whose FFN an invented operator has a part in is not dropped: its FFN would stay, and without a word.
pub fn a_layer_whose_ffn_is_not_read_stays() {
    let mut model = Model::open(root().join(BASE)).unwrap();
    model.graph_mut().value_info.clear();
    model.proto.opset_import.push(OperatorSetIdProto { domain: Some("com.example".into()), version: Some(1) });
    let nodes = &mut model.graph_mut().node;
    let last = nodes.iter().rposition(|n| n.op_type() == "Erf").unwrap();
    nodes[last] = invented(&[&nodes[last].input[0]], &[&nodes[last].output[0]]);
    let folder = tempfile::tempdir().unwrap();
    let (path, child) = (folder.path().join("model.onnx"), folder.path().join("child.onnx"));
    model.write(&path).unwrap();
    let grow = |layer: &'static str| ["grow", text(&path), "--no-images", "--layers", layer, "-o", text(&child)];
    refused(&grow("1"), &["layer 1 cannot be dropped", "Erf_output_0` behind its attention is no FFN that is known"]);
}

/// The shapes of recurrent layers, regions and the rest, as ONNX's specification says them.
pub fn rules_say_what_the_specification_says() {
    let float = |name: &str, dims: &[usize]| {
        tensor_from_f32(name.to_string(), DataType::Float, dims, &vec![0.5; dims.iter().product()])
    };
    let hidden = || int_attribute("hidden_size", 5);
    let both = |mut n: NodeProto| {
        n.attribute.push(offshoot::graph::string_attribute("direction", "bidirectional"));
        n
    };
    let nodes = vec![
        both(node("LSTM", &["x", "w4", "r4", "b"], &["all", "last", "cell"], vec![hidden()])),
        both(node("GRU", &["x", "w3", "r3"], &["turned", "state"], vec![hidden(), int_attribute("layout", 1)])),
        node("RoiAlign", &["image", "regions", "of"], &["aligned"], vec![int_attribute("output_width", 3)]),
        node("GridSample", &["image", "grid"], &["sampled"], vec![]),
        node("EyeLike", &["regions"], &["eye"], vec![]),
        node("NonZero", &["some"], &["found"], vec![]),
        node("Shape", &["found"], &["how_many"], vec![]),
        node("Transpose", &["found"], &["places"], vec![ints_attribute("perm", &[1, 0])]),
    ];
    let mut model = Model::from_proto(ModelProto {
        ir_version: Some(9),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(17) }],
        graph: Some(GraphProto {
            input: vec![
                tensor_info("x", DataType::Float, &[Some(7), Some(2), Some(6)]),
                tensor_info("image", DataType::Float, &[Some(2), Some(4), Some(8), Some(8)]),
                tensor_info("grid", DataType::Float, &[Some(2), Some(3), Some(9), Some(2)]),
                tensor_info("regions", DataType::Float, &[Some(11), Some(4)]),
            ],
            initializer: vec![
                float("w4", &[2, 20, 6]),
                float("r4", &[2, 20, 5]),
                float("b", &[2, 40]),
                float("w3", &[2, 15, 6]),
                float("r3", &[2, 15, 5]),
                tensor_from_i64("of", &[11], &[0; 11]),
                tensor_from_i64("some", &[2, 3], &[0, 4, 0, 1, 0, 2]),
            ],
            node: nodes,
            ..Default::default()
        }),
        ..Default::default()
    });
    prepare(&mut model).unwrap();
    let typing = Typing::new(&model).unwrap();
    let shape = |name: &str| typing.shape(name).unwrap();
    assert_eq!([shape("all"), shape("last"), shape("cell")], [vec![7, 2, 2, 5], vec![2, 2, 5], vec![2, 2, 5]]);
    assert_eq!([shape("turned"), shape("state")], [vec![7, 2, 2, 5], vec![7, 2, 5]]);
    assert_eq!(shape("aligned"), [11, 4, 1, 3]);
    assert_eq!(shape("sampled"), [2, 4, 3, 9]);
    assert_eq!(shape("eye"), [11, 4]);
    assert_eq!(typing.known["places"].ints(), [0, 1, 1, 0, 1, 2]);
    assert_eq!(typing.known["how_many"].ints(), [2, 3]);
    assert!(typing.opaque.is_empty());
}
