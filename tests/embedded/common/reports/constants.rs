//! Constants that exporters store once: five norms that begin with ones were trained as one norm.

use std::fs;
use std::path::Path;

use ndarray::{Array1, Array4};
use ndarray_npy::NpzWriter;
use offshoot::graph::node;
use offshoot::onnx::Model;
use offshoot::onnx::proto::AttributeProto;
use offshoot::onnx::proto::attribute_proto::AttributeType;
use serde_json::{Value, json};

use crate::common::binary::{PLAIN, done, json, text};
use crate::common::hash::values;
use crate::common::root;

const FOLDER: &str = "fixtures/reports/constants";

/// The images of scripts/golden/constants.py.
fn images(path: &Path) {
    let mut writer = NpzWriter::new(fs::File::create(path).unwrap());
    let x = Array4::from_shape_vec((24, 3, 16, 16), values(24 * 3 * 256, 77)).unwrap();
    writer.add_array("x", &x).unwrap();
    writer.add_array("y", &Array1::from_shape_fn(24, |n| n as i64 % 2)).unwrap();
    writer.finish().unwrap();
}

fn losses(path: &Path) -> Vec<f64> {
    let lines = fs::read_to_string(path).unwrap();
    lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap()).collect()
}

/// Trains a model as the script did: the losses, and what was said.
fn trained(runtime: &str, model: &str, freeze: &[&str], folder: &Path) -> (Vec<f64>, String) {
    let [data, log, tuned] = ["data.npz", "log.jsonl", "tuned.onnx"].map(|name| folder.join(name));
    images(&data);
    let optimiser = "--optimizer sgd --lr 0.01 --momentum 0.9 --weight-decay 0 --batch-size 8 --epochs 3 --force";
    let optimiser: Vec<&str> = optimiser.split_whitespace().collect();
    let common = ["tune", model, "--data", text(&data), "--runtime", runtime];
    let files = ["--metrics", text(&log), "-o", text(&tuned)];
    let output = done(&[&common[..], freeze, &PLAIN, &optimiser, &files].concat());
    (losses(&log), String::from_utf8(output.stderr).unwrap())
}

fn assert_near(found: &[f64], expected: &Value, model: &str) {
    assert_eq!(found.len(), 9);
    for (a, b) in found.iter().zip(expected.as_array().unwrap()) {
        let b = b.as_f64().unwrap();
        assert!((a - b).abs() < 5e-6 * b, "{model}: {found:?} and {expected}");
    }
}

/// Nine updates give PyTorch's losses: a parameter for each use where tensors were merged for being equal, and one for
/// all uses where a module is called several times.
pub fn merged_constants_are_trained_apart(runtime: &str) {
    let golden = fs::read(root().join(FOLDER).join("golden.json")).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&golden).unwrap();
    assert_eq!(golden.len(), 8);
    let folder = tempfile::tempdir().unwrap();
    for entry in &golden {
        let model = format!("{FOLDER}/{}", entry["file"].as_str().unwrap());
        let freeze: Vec<&str> =
            entry["freeze"].as_array().unwrap().iter().flat_map(|n| ["--freeze", n.as_str().unwrap()]).collect();
        let (found, said) = trained(runtime, &model, &freeze, folder.path());
        assert_near(&found, &entry["losses"], &model);
        assert!(said.contains("one for each use"), "{said}");
        // As many parameters as PyTorch counts, and in the file that is written nothing is left to take apart.
        let data = folder.path().join("data.npz");
        let plan = |model: &str| {
            let common = ["tune", model, "--data", text(&data), "--runtime", runtime, "--dry-run", "--json"];
            json(&[&common[..], &freeze].concat())
        };
        assert_eq!(plan(&model)["parameters"], entry["parameters"], "{model}");
        let again = plan(text(&folder.path().join("tuned.onnx")));
        assert_eq!((&again["parameters"], &again["separated"]), (&entry["parameters"], &json!([])), "{model}");
    }

    // The same weights behind one Identity for all, and as Constant nodes.
    let entry = golden.iter().find(|entry| entry["file"] == "apart-ts.onnx").unwrap();
    let whole = Model::open(root().join(FOLDER).join("apart-ts.onnx")).unwrap();
    let shared: Vec<String> = (whole.graph().initializer.iter())
        .map(|t| t.name().to_string())
        .filter(|name| whole.graph().node.iter().filter(|n| n.input.contains(name)).count() > 1)
        .collect();
    assert!(!shared.is_empty());
    let behind_identities = |model: &mut Model| {
        for name in &shared {
            let alias = format!("{name}/alias");
            for x in model.graph_mut().node.iter_mut().flat_map(|n| &mut n.input).filter(|x| *x == name) {
                x.clone_from(&alias);
            }
            model.graph_mut().node.insert(0, node("Identity", &[name], &[&alias], vec![]));
        }
    };
    let as_constants = |model: &mut Model| {
        let graph = model.graph_mut();
        let (out, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut graph.initializer).into_iter().partition(|t| shared.contains(&t.name().to_string()));
        graph.initializer = kept;
        for t in out {
            let name = t.name().to_string();
            let value = AttributeProto {
                name: Some("value".into()),
                r#type: Some(AttributeType::Tensor as i32),
                t: Some(t),
                ..Default::default()
            };
            graph.node.insert(0, node("Constant", &[], &[&name], vec![value]));
        }
    };
    type Change<'a> = &'a dyn Fn(&mut Model);
    let rewrite: [(&str, Change); 2] = [("identities.onnx", &behind_identities), ("constants.onnx", &as_constants)];
    for (name, change) in rewrite {
        let (path, mut model) = (folder.path().join(name), whole.clone());
        change(&mut model);
        model.write(&path).unwrap();
        let (found, _) = trained(runtime, text(&path), &[], folder.path());
        assert_near(&found, &entry["losses"], name);
    }
}
