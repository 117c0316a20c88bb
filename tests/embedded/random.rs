//! Graphs that draw random numbers: nothing of them is taken for a constant.

use std::path::PathBuf;

use offshoot::anatomy::{WeightKind, weight_uses};
use offshoot::axes::Typing;
use offshoot::descendant::fold_constants;
use offshoot::graph::{ints_attribute, node};
use offshoot::onnx::proto::NodeProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_raw};

use crate::common::binary::{args, refused, text};
use crate::common::{root, tract};

/// The bundled ancestor, and where its position table meets the tokens: the node, its input and the table's shape.
fn ancestor() -> (Model, usize, usize, Vec<usize>) {
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let typing = Typing::new(&model).unwrap();
    let uses = weight_uses(&typing);
    let u = uses.iter().position(|u| u.kind == WeightKind::Position).unwrap();
    let (node, input) = uses[u].meets[0];
    let shape = typing.shape(&typing.uses[u].name).unwrap();
    drop(typing);
    (model, node, input, shape)
}

/// The ancestor with `made` in the place of its position table.
fn with(made: impl Fn(&str, &[usize]) -> NodeProto) -> Model {
    let (mut model, k, input, shape) = ancestor();
    let graph = model.graph_mut();
    let table = std::mem::replace(&mut graph.node[k].input[input], "made".into());
    graph.node.insert(k, made(&table, &shape));
    model
}

#[test]
fn a_table_that_dropout_is_trained_on_is_not_folded() {
    let runtime = tract();
    for trains in [false, true] {
        let mut model = with(|table, _| node("Dropout", &[table, "share", "trains"], &["made"], vec![]));
        let flag = tensor_from_raw("trains", DataType::Bool, &[], vec![u8::from(trains)].into());
        model.graph_mut().initializer.extend([tensor_from_f32("share", DataType::Float, &[], &[0.5]), flag]);
        assert_eq!(Typing::new(&model).unwrap().is_constant("made"), !trains);
        let folded = fold_constants(&runtime, &model, None).unwrap();
        let drops = |n: &NodeProto| n.op_type() == "Dropout";
        assert_eq!(folded.graph().node.iter().any(drops), trains);
    }
}

#[test]
fn noise_in_the_stream_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, model: Model| -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, model.to_bytes()).unwrap();
        path
    };
    let noise = write(
        "noise.onnx",
        with(|_, shape| {
            let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
            node("RandomNormal", &[], &["made"], vec![ints_attribute("shape", &shape)])
        }),
    );
    let like = write("like.onnx", with(|table, _| node("RandomUniformLike", &[table], &["made"], vec![])));
    let out = folder.path().join("out.onnx");
    for (model, op) in [(&noise, "RandomNormal"), (&like, "RandomUniformLike")] {
        let (model, out) = (text(model), text(&out));
        let says = [&format!("in node `made`: the operator `{op}` draws random numbers") as &str, "evaluation mode"];
        refused(args!("inspect {model}"), &says);
        refused(args!("grow {model} --no-images --fold -o {out}"), &says);
        refused(args!("shrink {model} --images fixtures/fashion-images.idx3-ubyte --to 50% -o {out}"), &says);
    }
    assert!(!out.exists());
}
