//! Sentence encoders learn scores of pairs of texts (scripts/golden/pairs.py): `tune --score-column` does what PyTorch
//! does with every text alone.

use std::fs;
use std::path::{Path, PathBuf};

use offshoot::anatomy::EMBEDDING;
use offshoot::onnx::{Model, to_f32};
use serde_json::{Value, json};

use super::texts::{FOLDER, agree};
use crate::common::binary::{args, done, json as json_of, offshoot, refused, text};
use crate::common::root;

/// Plain gradient descent on all pairs at once, in their order, with nothing that is held out.
const DESCENT: &str = "--optimizer sgd --momentum 0 --weight-decay 0 --no-shuffle --schedule constant --warmup 0";
const PAIRS: &str = "fixtures/reports/texts/rated.csv";
const COLUMNS: &str = "--text-column first,second --score-column score";
const MODELS: [&str; 2] = ["bert-ts", "bert-dynamo"];

fn golden() -> Value {
    let golden = fs::read_to_string(root().join(FOLDER).join("learned-pairs.json")).unwrap();
    serde_json::from_str(&golden).unwrap()
}

/// The validations in a metrics file, and the updates.
fn told(path: &Path) -> [Vec<Value>; 2] {
    let lines = fs::read_to_string(path).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (validations, updates) = lines.partition(|line: &Value| line.get("val_loss").is_some());
    [validations, updates]
}

fn of(list: &[Value], field: &str) -> Value {
    list.iter().map(|line| line[field].clone()).collect()
}

/// A weight of a file.
fn weight(path: &Path, name: &str) -> Vec<f32> {
    let model = Model::open(path).unwrap();
    to_f32(model.graph().initializer.iter().find(|t| t.name() == name).unwrap()).unwrap()
}

/// Losses, correlations and gradients are PyTorch's, where every text stands alone; here all are padded to the longest.
pub fn scores_of_pairs_are_learned(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, log] = ["tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
    for (pooling, output) in [("sentence", "sentence"), ("class-token", EMBEDDING)] {
        let golden = &golden()[pooling];
        let pooled = if pooling == "sentence" { String::new() } else { format!("--pooling {pooling}") };
        for model in MODELS {
            let of_model = format!("{model}, {pooling}");
            let tune = |more: &str| {
                json_of(args!(
                    "tune {FOLDER}/{model}.onnx --texts {PAIRS} {COLUMNS} {pooled} --score-range 0,5 {DESCENT} \
                     --batch-size 7 --runtime {kind} --force --json --metrics {} -o {} {more}",
                    text(&log),
                    text(&tuned)
                ))
            };
            let found = tune(&format!("--val {PAIRS} --epochs 5 --lr 0.2"));
            let [validations, updates] = told(&log);
            agree(&of(&validations, "val_loss"), &golden["losses"], 1e-4, &of_model);
            agree(&of(&validations, "val_spearman"), &golden["spearman"], 1e-9, &of_model);
            agree(&of(&updates, "loss"), &json!(golden["losses"].as_array().unwrap()[..5]), 1e-4, &of_model);
            // The best is the one whose cosines follow the scores most closely.
            let best = golden["spearman"].as_array().unwrap().iter().filter_map(Value::as_f64).fold(-1.0, f64::max);
            agree(&found["best"]["val_spearman"], &json!(best), 1e-9, &of_model);
            let eval =
                format!("eval {} --texts {PAIRS} {COLUMNS} --tokenizer {FOLDER} --runtime {kind} --json", text(&tuned));
            let judged = json_of(args!("{eval}"));
            agree(&judged["spearman"], &json!(best), 1e-9, &of_model);
            assert_eq!((&judged["embedding"], &judged["pairs"]), (&json!(output), &json!(7)), "{of_model}");
            assert_eq!(found["images"], json!({"training": 7, "validation": 7}), "{of_model}");
            assert_eq!((&found["batch"]["images"], &validations[0]["val_images"]), (&json!(7), &json!(7)));
            let scale = json!({"low": 0.0, "high": 5.0, "from": "--score-range"});
            assert_eq!(
                found["scores"],
                json!({"column": "score", "scale": scale, "least": 0.0, "most": 4.5}),
                "{of_model}"
            );
            // One step along the gradient.
            tune("--val-split 0 --steps 1 --lr 1");
            for (name, gradient) in golden["gradients"].as_object().unwrap() {
                let [before, after] =
                    [root().join(FOLDER).join(format!("{model}.onnx")), tuned.clone()].map(|path| weight(&path, name));
                let gradient: Vec<f64> = gradient.as_array().unwrap().iter().filter_map(Value::as_f64).collect();
                let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
                let error = |((b, a), g): ((&f32, &f32), &f64)| (f64::from(b - a) - g).powi(2);
                let error = before.iter().zip(&after).zip(&gradient).map(error).sum::<f64>().sqrt();
                assert!(before.len() == gradient.len() && length > 0.0, "{of_model}: {name}");
                assert!(error < 1e-4 * length, "{of_model}: {name} differs by {error} of {length}");
            }
        }
    }
}

/// The pairs of the fixture, with scores from 0 to 1.
fn rated() -> Vec<(String, String, f64)> {
    let file = fs::read_to_string(root().join(PAIRS)).unwrap();
    let row = |line: &str| {
        let (texts, score) = line.rsplit_once(',').unwrap();
        let (first, second) = match texts.strip_prefix('"') {
            Some(quoted) => quoted.split_once("\",").unwrap(),
            None => texts.split_once(',').unwrap(),
        };
        (first.to_owned(), second.trim_matches('"').to_owned(), score.trim().parse::<f64>().unwrap() / 5.0)
    };
    file.lines().skip(1).map(row).collect()
}

/// Pairs as JSON lines, with scores that are multiplied.
fn written(folder: &Path, name: &str, pairs: &[(String, String, f64)], factor: f64) -> PathBuf {
    let path = folder.join(name);
    let line = |(first, second, score): &(String, String, f64)| {
        json!({"first": first, "second": second, "score": score * factor}).to_string()
    };
    fs::write(&path, pairs.iter().map(line).collect::<Vec<_>>().join("\n")).unwrap();
    path
}

/// A batch of short pairs has the same loss beside longer texts; scores that are cosines are taken as they are; batches
/// that are gathered, or drawn in an order of their own, are pairs still.
pub fn pairs_stay_pairs(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, log] = ["tuned.onnx", "log.jsonl"].map(|name| folder.path().join(name));
    let tune = |texts: &Path, more: &str| {
        let found = json_of(args!(
            "tune {FOLDER}/bert-ts.onnx --texts {} {COLUMNS} {DESCENT} --lr 0.1 --runtime {kind} --force --json \
             --metrics {} -o {} {more}",
            text(texts),
            text(&log),
            text(&tuned)
        ));
        (of(&told(&log)[1], "loss"), found)
    };
    let pairs = rated();
    let (all, five) =
        (written(folder.path(), "all.jsonl", &pairs, 1.0), written(folder.path(), "five.jsonl", &pairs, 5.0));
    let (expected, found) = tune(&five, "--val-split 0 --batch-size 3 --epochs 2 --score-range 0,5");
    assert_eq!((expected.as_array().unwrap().len(), &found["images"]["training"]), (4, &json!(7)));
    let (losses, found) = tune(&all, "--val-split 0 --batch-size 3 --epochs 2");
    agree(&losses, &expected, 1e-5, "cosines as they are");
    assert_eq!(found["scores"]["scale"], json!({"low": 0.0, "high": 1.0, "from": "as they are"}));
    // Gradients of three pairs are those of each, averaged.
    let (losses, _) = tune(&all, "--val-split 0 --batch-size 1 --accumulate 3 --epochs 2");
    agree(&losses, &expected, 1e-5, "gathered");
    // Short pairs alone, and beside long ones that validate.
    let short = [("a tin", "a test", 0.25), ("it is", "it sits", 0.875)];
    let short: Vec<_> = short.map(|(first, second, score)| (first.to_owned(), second.to_owned(), score)).into();
    let few = written(folder.path(), "short.jsonl", &short, 1.0);
    let length = |found: &Value| found["input"]["texts"]["padded_to"].as_u64().unwrap();
    let (alone, without) = tune(&few, "--val-split 0 --batch-size 2 --steps 2");
    let (beside, with) = tune(&few, &format!("--val {} --batch-size 2 --steps 2", text(&all)));
    assert!(length(&without) < length(&with), "{without}");
    agree(&beside, &alone, 1e-5, "padding");
    // A file that takes one batch size: a batch is gathered from several steps.
    let fixed = folder.path().join("fixed.onnx");
    done(args!("grow {FOLDER}/bert-ts.onnx --no-images --batch-axis 2 -o {}", text(&fixed)));
    let (losses, _) = {
        let found = json_of(args!(
            "tune {} --texts {} {COLUMNS} {DESCENT} --lr 0.1 --tokenizer {FOLDER} --runtime {kind} --force --json \
             --metrics {} -o {} --val-split 0 --batch-size 3 --epochs 2",
            text(&fixed),
            text(&all),
            text(&log),
            text(&tuned)
        ));
        (of(&told(&log)[1], "loss"), found)
    };
    agree(&losses, &expected, 1e-5, "a fixed batch");
}

/// What is tuned follows the scores that it learned from more closely than before, whatever part validates.
pub fn cosines_follow_scores_after_tuning(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [tuned, log, plot, page] =
        ["tuned.onnx", "log.jsonl", "plot.svg", "page.html"].map(|name| folder.path().join(name));
    let eval = |model: &str| {
        let found =
            json_of(args!("eval {model} --texts {PAIRS} {COLUMNS} --tokenizer {FOLDER} --runtime {kind} --json"));
        found["spearman"].as_f64().unwrap()
    };
    let command = format!(
        "tune {FOLDER}/bert-dynamo.onnx --texts {PAIRS} {COLUMNS} --score-range 0,5 --lr 5e-3 \
         --runtime {kind} --metrics {} --plot {} --report {} -o {}",
        text(&log),
        text(&plot),
        text(&page),
        text(&tuned)
    );
    let output = done(args!("{command} --val-split 0 --batch-size 7 --epochs 30"));
    let [before, after] = [format!("{FOLDER}/bert-dynamo.onnx"), text(&tuned).to_owned()].map(|model| eval(&model));
    assert!(after > before + 0.2, "{before} before and {after} after");
    let stderr = String::from_utf8_lossy(&output.stderr);
    for says in [
        "the scores in the column `score`, from 0 to 4.5, stand for cosines: 0 for 0 and 5 for 1 (--score-range)",
        "the embedding of a text is the output `sentence`",
        "7 pairs to train on, 0 to validate on",
    ] {
        assert!(stderr.contains(says), "{says}: {stderr}");
    }
    // What validates is told by its correlation, in words, in the plot and on the page.
    let output = done(args!("{command} --force --val-split 0.5 --batch-size 3 --epochs 2"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(", Spearman "), "{stderr}");
    let output = done(args!("{command} --force --val-split 0.1 --batch-size 3 --epochs 1"));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("the pairs to validate on have one score alone"), "{stderr}");
    assert!(!stderr.contains(", Spearman "), "{stderr}");
    done(args!("{command} --force --val-split 0.5 --batch-size 3 --epochs 2"));
    for file in [&plot, &page] {
        let written = fs::read_to_string(file).unwrap();
        assert!(written.contains("Spearman") && !written.contains("Accuracy"), "{}", file.display());
    }
}

/// What cannot be learned from scores, or beside them, is named.
pub fn wrong_scores_are_not_learned() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = folder.path().join("tuned.onnx");
    let tune = |texts: &str, more: &str, says: &[&str]| {
        refused(args!("tune {FOLDER}/bert-ts.onnx --texts {texts} {COLUMNS} -o {} {more}", text(&tuned)), says);
    };
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_owned()
    };
    tune(
        PAIRS,
        "",
        &["rated.csv", "row 0 has the score `4.5` in its column `score`, and a cosine is from -1 to 1", "0,5"],
    );
    tune(PAIRS, "--score-range 0,4", &["row 0 has the score `4.5`", "--score-range is from 0 to 4", "--val"]);
    let good = write("good.csv", "first,second,score\na,b,0.5\na,tin,1\nan,inn,-0.25\n");
    tune(&good, &format!("--val {PAIRS}"), &["rated.csv", "row 0 has the score `4.5`"]);
    tune(&good, "--score-range 0,1", &["row 2 has the score `-0.25`", "--score-range is from 0 to 1"]);
    for (value, says) in [("NaN", "which is no number"), ("", "row 1 has no score"), ("inf", "which is no number")] {
        let bad = write("bad.csv", &format!("first,second,score\na,b,0.5\na,tin,{value}\n"));
        tune(&bad, "", &["bad.csv", "row 1 has", says]);
    }
    tune(&good, "--classes 3", &["--classes is not for --score-column", "--pooling"]);
    tune(&good, &format!("--teacher {FOLDER}/teacher-ts.onnx"), &["--teacher is not for --score-column", "first"]);
    tune(&good, "--mixup 0.2", &["--mixup is for pictures"]);
    tune(&good, "--of last_hidden_state", &["no output is one vector a text", "--pooling"]);
    tune(&good, &format!("--emit-step {}", text(&folder.path().join("s.onnx"))), &["takes images, and not arrays"]);
    tune(&good, "--batch-size 64", &["there are 2 samples to train on, fewer than the 64 of one batch"]);
    let run = format!("run {FOLDER}/bert-ts.onnx --texts {good} {COLUMNS} -o {}", text(&folder.path().join("out")));
    refused(args!("{run}"), &["--score-column is not for `run`", "`offshoot tune --score-column`"]);
    for more in ["--label-column score", "--loss bce", "--label-smoothing 0.1"] {
        let output = offshoot(args!("tune {FOLDER}/bert-ts.onnx --texts {good} {COLUMNS} -o {} {more}", text(&tuned)));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains("cannot be used with"), "{more}: {told}");
    }
    for range in ["5", "5,0", "0,x", "1,1"] {
        let output = offshoot(args!(
            "tune {FOLDER}/bert-ts.onnx --texts {good} {COLUMNS} --score-range {range} -o {}",
            text(&tuned)
        ));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains("a range of scores is LOW,HIGH"), "{range}: {told}");
    }
    assert!(!tuned.exists() && !folder.path().join("out").exists());
}
