//! Models whose inputs are arrays are judged and tuned like those of pictures (scripts/fixtures/texts.py): `eval`,
//! `tune` and `run` take `--inputs`, and labels are the array `y`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2};
use ndarray_npy::NpzWriter;
use offshoot::onnx::Model;
use serde_json::{Value, json};

use super::texts::{FOLDER, agree, archive, arrays, golden};
use crate::common::binary::{PLAIN, done, json as json_of, offshoot, refused, text};
use crate::common::root;

const CLASSIFIERS: [&str; 2] = ["classifier-ts", "classifier-dynamo"];
/// PyTorch's plain gradient descent on all six samples.
pub(super) const DESCENT: [&str; 10] =
    ["--optimizer", "sgd", "--momentum", "0", "--weight-decay", "0", "--lr", "0.05", "--batch-size", "6"];

fn labelled() -> String {
    format!("{FOLDER}/labelled.npz")
}

/// The losses of the updates in a metrics file.
pub(super) fn losses(path: &Path) -> Value {
    let lines = fs::read_to_string(path).unwrap();
    let lines = lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    Value::Array(lines.filter_map(|v| v.get("loss").cloned()).collect())
}

/// The arrays of the fixture with other numbers where padding is.
fn wild(folder: &Path) -> PathBuf {
    let [ids, mask, types, _] = arrays();
    let junk = Array2::from_shape_fn(ids.dim(), |at| if mask[at] == 1 { ids[at] } else { (5 * at.1 + 3) as i64 % 40 });
    archive(folder, "wild.npz", &[("input_ids", &junk), ("attention_mask", &mask), ("token_type_ids", &types)])
}

/// The arrays of the fixture with labels.
fn with_labels(folder: &Path, labels: &Array1<i64>) -> PathBuf {
    let path = folder.join("with.npz");
    let mut archive = NpzWriter::new(File::create(&path).unwrap());
    let [ids, mask, types, _] = arrays();
    for (name, array) in [("input_ids", &ids), ("attention_mask", &mask), ("token_type_ids", &types)] {
        archive.add_array(name, array).unwrap();
    }
    archive.add_array("y", labels).unwrap();
    archive.finish().unwrap();
    path
}

/// Scores and losses are PyTorch's, before training and after each update; what is written takes what its ancestor
/// takes.
pub fn texts_are_judged_and_tuned(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, log] = ["tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
    let inputs = labelled();
    let learned = |key: &str| golden(FOLDER, &["learned", key]);
    for model in CLASSIFIERS {
        let path = format!("{FOLDER}/{model}.onnx");
        let eval = |path: &str| json_of(&["eval", path, "--inputs", &inputs, "--runtime", kind, "--json"]);
        let found = eval(&path);
        agree(&found["top1"], &learned("top1"), 1e-9, model);
        agree(&found["loss"], &learned("loss"), 1e-5, model);
        let correct = |c: &Value| c["correct"].clone();
        let correct: Vec<Value> = found["classes"].as_array().unwrap().iter().map(correct).collect();
        assert_eq!(Value::Array(correct), learned("correct"), "{model}: {found}");
        assert_eq!((&found["images"], &found["input"]["samples"]), (&json!(6), &json!(6)));
        assert_eq!(found["input"]["tokens"]["mask"], json!("attention_mask"));
        let tune = ["tune", &path, "--inputs", &inputs, "--runtime", kind, "--metrics", text(&log), "--steps", "3"];
        done(&[&tune[..], &PLAIN, &DESCENT, &["--json", "--force", "-o", text(&tuned)]].concat());
        let curve = learned("curve");
        agree(&losses(&log), &json!(curve.as_array().unwrap()[..3]), 1e-4, model);
        agree(&eval(text(&tuned))["loss"], &curve[3], 1e-4, model);
        let files = [root().join(&path), tuned.clone()].map(|path| Model::open(path).unwrap());
        assert_eq!(files[0].graph().input, files[1].graph().input, "{model}");
        assert_eq!(files[0].graph().output, files[1].graph().output, "{model}");
    }
}

/// Token states follow those of a teacher where tokens are real, whatever stands where padding is.
pub fn texts_learn_from_a_teacher(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, log] = ["tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
    for inputs in [root().join(FOLDER).join("texts.npz"), wild(folder.path())] {
        let command = format!(
            "tune {FOLDER}/bert-ts.onnx --teacher {FOLDER}/teacher-ts.onnx --of last_hidden_state --runtime {kind} \
             --inputs {} --metrics {} --force -o {} --steps 4",
            text(&inputs),
            text(&log),
            text(&tuned)
        );
        let command: Vec<&str> = command.split_whitespace().collect();
        done(&[&command[..], &PLAIN, &DESCENT].concat());
        agree(&losses(&log), &golden(FOLDER, &["learned", "taught"]), 1e-4, text(&inputs));
    }
}

/// One command from labelled arrays to a tuned child with a report.
pub fn texts_take_the_whole_path(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("child");
    let inputs = labelled();
    let run = format!(
        "run {FOLDER}/classifier-ts.onnx --inputs {inputs} --heads 2 --steps 4 --batch-size 4 --lr 1e-3 --runtime \
         {kind} --json -o {}",
        text(&out)
    );
    let run: Vec<&str> = run.split_whitespace().collect();
    let found = json_of(&run);
    let models = found["models"].as_array().unwrap();
    assert!(models.iter().all(|m| m["top1"].is_number()), "{found}");
    assert!(models[2]["parameters"].as_u64() < models[0]["parameters"].as_u64(), "{found}");
    assert_eq!(found["input"]["samples"], json!(6));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    for says in ["Samples that judge", "MACs a sample", "tokens"] {
        assert!(page.contains(says), "{says}");
    }
    let files = [root().join(FOLDER).join("classifier-ts.onnx"), out.join("tuned.onnx")];
    let files = files.map(|path| Model::open(path).unwrap());
    assert_eq!(files[0].graph().input, files[1].graph().input);
    let tuned = json_of(&["eval", text(&out.join("tuned.onnx")), "--inputs", &inputs, "--runtime", kind, "--json"]);
    assert_eq!(tuned["images"], json!(6));
}

/// What arrays cannot be given, and labels that are none, are errors by name.
pub fn wrong_labels_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = folder.path().join("tuned.onnx");
    let (path, inputs) = (format!("{FOLDER}/classifier-ts.onnx"), labelled());
    let tune = ["tune", &path, "--inputs", &inputs, "-o", text(&tuned)];
    for (flag, value) in [("--augment", "light"), ("--mixup", "0.2"), ("--cutmix", "0.2")] {
        let says = format!("{flag} is for pictures");
        refused(&[&tune[..], &[flag, value]].concat(), &[&says, "leave"]);
    }
    let step = folder.path().join("step.onnx");
    refused(&[&tune[..], &["--emit-step", text(&step)]].concat(), &["takes images, and not arrays by their names"]);
    refused(&[&tune[..], &["--mean", "0.5"]].concat(), &["arrays are fed to the model as they are"]);
    let texts = format!("{FOLDER}/texts.npz");
    refused(&["eval", &path, "--inputs", &texts], &["has no labels: it holds no array `y`"]);
    let with = |labels: &[i64]| with_labels(folder.path(), &Array1::from(labels.to_vec()));
    let eval = |inputs: &Path, says: &[&str]| refused(&["eval", &path, "--inputs", text(inputs)], says);
    eval(&with(&[0, 1, 2]), &["`y` is [3], and there are 6 samples", "one whole number a sample"]);
    eval(&with(&[0, 1, 2, 0, 1, -1]), &["label is -1"]);
    eval(&with(&[0, 1, 2, 0, 1, 7]), &["label is 7, and the model tells 3 classes apart"]);
    let inner = "/sentence/model/embeddings/LayerNorm/LayerNormalization_output_0";
    let teacher = ["--teacher", &path, "--feature", inner];
    refused(&[&tune[..], &teacher].concat(), &["would compare padding, too", "name an output"]);
    for more in [&["--data", "fixtures/fashion-png"][..], &["--label-column", "label"]] {
        let output = offshoot(&[&["eval", &path, "--inputs", &inputs][..], more].concat());
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains("cannot be used with"), "{told}");
    }
    assert!(!tuned.exists());
}
