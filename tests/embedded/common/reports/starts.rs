//! Tuning that makes a model worse: the start counts, and where nobody names a learning rate, the start decides it.

use std::fs;
use std::path::{Path, PathBuf};

use offshoot::onnx::{Model, to_f32};
use serde_json::{Value, json};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{done, json, offshoot, refused, text};

const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn losses(path: &Path) -> Vec<f64> {
    lines(path).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

fn weights(path: &Path) -> Vec<Vec<f32>> {
    let model = Model::open(path).unwrap();
    model.graph().initializer.iter().map(|t| to_f32(t).unwrap_or_default()).collect()
}

fn stderr(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A model that no epoch beats is what is written, and that is said.
pub fn the_start_counts(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [log, page, tuned] = ["log.jsonl", "page.html", "tuned.onnx"].map(|name| folder.path().join(name));
    let common = ["tune", ANCESTOR, "--data", IMAGES, "--runtime", runtime, "-o", text(&tuned), "--force", "--json"];
    // A rate that the trained ancestor does not survive.
    let ruin = ["--lr", "0.02", "--warmup", "0", "--epochs", "2", "--batch-size", "50"];
    let written = ["--metrics", text(&log), "--report", text(&page)];
    let arguments = [&common[..], &ruin, &written].concat();
    let output = done(&arguments);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["improved"], &report["best"]), (&json!(false), &report["start"]));
    assert_eq!((&report["start"]["epoch"], &report["start"]["step"]), (&json!(0), &json!(0)));
    let validations: Vec<Value> = lines(&log).into_iter().filter(|line| line.get("val_loss").is_some()).collect();
    assert_eq!(validations.iter().map(|v| v["epoch"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(validations.iter().map(|v| v["best"].as_bool().unwrap()).collect::<Vec<_>>(), [true, false, false]);
    assert!(validations[2]["val_loss"].as_f64() > report["start"]["val_loss"].as_f64());
    let said = stderr(&output);
    assert!(said.contains("before training: validation loss") && said.contains("no epoch was better"), "{said}");
    let loss = format!("{:.4}", report["start"]["val_loss"].as_f64().unwrap());
    assert!(
        fs::read_to_string(&page).unwrap().contains(&format!("<td class=\"number\">0</td><td class=\"number\">{loss}"))
    );
    // What was written is the start.
    let compare =
        ["compare", ANCESTOR, text(&tuned), "--images", IMAGES, "--runs", "1", "--runtime", runtime, "--json"];
    assert!(json(&compare)["relative_error"].as_f64().unwrap() < 1e-6);
    assert_ne!(weights(&tuned), weights(&folder.path().join("tuned.last.onnx")));

    let required = offshoot(&[&arguments[..], &["--require-improvement"]].concat());
    assert_eq!(required.status.code(), Some(1), "{}", stderr(&required));
    assert!(stderr(&required).contains("no epoch was better than the model was before training"));
    // The result is printed all the same.
    let printed: Value = serde_json::from_slice(&required.stdout).unwrap();
    assert_eq!(printed["improved"], false);
    // A child that is far from its best gets better, and nothing is required without images to tell by.
    let child = folder.path().join("child.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--layers", "even:2", "--heads", "2", "-o", text(&child)]);
    let common =
        ["tune", text(&child), "--data", IMAGES, "--runtime", runtime, "-o", text(&tuned), "--force", "--json"];
    let learns = ["--lr", "2e-3", "--epochs", "2", "--batch-size", "32", "--require-improvement"];
    let report = json(&[&common[..], &learns].concat());
    assert_eq!(report["improved"], true);
    assert!(report["best"]["val_loss"].as_f64() < report["start"]["val_loss"].as_f64());
    refused(&[&common[..], &learns, &["--val-split", "0"]].concat(), &["no improvement can be told"]);
}

/// A run that goes on knows where it began, and the rate that was found.
pub fn a_resumed_run_knows_its_start(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let child = folder.path().join("child.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--layers", "even:2", "--heads", "2", "-o", text(&child)]);
    let run = |name: &str, more: &[&str]| -> Value {
        let tuned = folder.path().join(name);
        let common = ["tune", text(&child), "--data", IMAGES, "--runtime", runtime, "-o", text(&tuned), "--json"];
        json(&[&common[..], &["--epochs", "2", "--batch-size", "50", "--schedule", "constant"], more].concat())
    };
    let whole = run("whole.onnx", &[]);
    run("parts.onnx", &["--steps", "3"]);
    let resumed = run("parts.onnx", &["--resume"]);
    for key in ["improved", "steps"] {
        assert_eq!(whole[key], resumed[key], "{key}");
    }
    let of = |report: &Value| (report["learning_rate"]["rate"].clone(), report["start"]["epoch"].clone());
    assert_eq!(of(&whole), of(&resumed));
    assert_eq!(of(&whole), (json!(5e-4), json!(0)));
    let loss = |report: &Value| report["start"]["val_loss"].as_f64().unwrap();
    assert!((loss(&whole) - loss(&resumed)).abs() < 1e-9);
}

/// Eight images, or a fifth of fewer than 40, are held out where nobody says how many.
pub fn few_images_are_held_out(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [data, tuned] = ["data", "tuned.onnx"].map(|name| folder.path().join(name));
    let run = |counts: [usize; 3], more: &[&str]| {
        fs::remove_dir_all(&data).ok();
        for (name, class, count) in [("Bag", 8, counts[0]), ("Coat", 4, counts[1]), ("Sneaker", 7, counts[2])] {
            if count > 0 {
                fashion::folder(&data.join(name), class, count);
            }
        }
        let common = ["tune", ANCESTOR, "--data", text(&data), "--runtime", runtime, "-o", text(&tuned), "--force"];
        let output = done(&[&common[..], &["--steps", "1", "--batch-size", "4", "--lr", "0", "--json"], more].concat());
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let images = &report["images"];
        assert_eq!(report["start"]["val_images"].as_u64().unwrap_or(0), images["validation"].as_u64().unwrap());
        ([images["training"].as_u64().unwrap(), images["validation"].as_u64().unwrap()], stderr(&output))
    };
    for (counts, expected) in [
        ([10, 10, 0], [16, 4]),
        ([13, 13, 13], [31, 8]),
        ([15, 15, 15], [37, 8]),
        ([29, 30, 20], [71, 8]),
        ([30, 30, 30], [81, 9]),
    ] {
        let (found, said) = run(counts, &[]);
        assert_eq!(found, expected, "{counts:?}");
        let total: usize = counts.iter().sum();
        let note = format!("{} of {total} samples are held out to validate on", expected[1]);
        assert_eq!(said.contains(&note), total < 80, "{said}");
    }
    // The share that is named cuts off the same images, here and in `eval`.
    let (_, said) = run([13, 13, 13], &[]);
    let share = said.split("--val-split ").nth(1).unwrap().split(':').next().unwrap();
    assert_eq!(run([13, 13, 13], &["--val-split", share]).0, [31, 8]);
    assert_eq!(run([13, 13, 13], &["--val-split", "0.1"]).0, [35, 4]);
}

/// A child fitted to the ancestor, which lies in a narrow valley.
fn fitted(folder: &Path) -> PathBuf {
    let child = folder.join("fitted.onnx");
    let common = ["shrink", ANCESTOR, "--images", IMAGES, "--to", "50%", "--crops", "48", "--runtime", "tract"];
    done(&[&common[..], &["-o", text(&child)]].concat());
    child
}

/// Where no rate is given, one is tried and taken back: what it was tried with is not left behind, and where one update
/// at the default raises the loss, a lower rate is taken.
pub fn the_start_decides_the_rate(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let [child, log, tuned] = ["child.onnx", "log.jsonl", "tuned.onnx"].map(path);
    done(&["grow", ANCESTOR, "--no-images", "--layers", "even:2", "--heads", "2", "-o", text(&child)]);
    let run = |model: &Path, flags: &str, more: &[&str]| -> (Vec<f64>, Value) {
        let common =
            ["tune", text(model), "--data", IMAGES, "--runtime", runtime, "--threads", "1", "--force", "--json"];
        let files = ["--metrics", text(&log), "-o", text(&tuned)];
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let report = json(&[&common[..], &files, &flags, more].concat());
        (losses(&log), report)
    };
    for flags in [
        "--steps 3 --batch-size 50",
        "--steps 2 --batch-size 20 --accumulate 2 --ema 0.9 --drop-path 0.2 --mixup 0.2 --clip 1",
        "--steps 3 --batch-size 50 --optimizer sgd",
    ] {
        let (found, report) = run(&child, flags, &[]);
        let rate = &report["learning_rate"];
        assert_eq!((&rate["rate"], rate["attempts"].as_array().unwrap().len()), (&json!(5e-4), 1), "{flags}");
        assert_eq!(rate["attempts"][0]["before"], found[0]);
        // The same as if nothing had been tried.
        let (given, report) = run(&child, flags, &["--lr", "5e-4"]);
        assert_eq!(found, given, "{flags}");
        assert_eq!(report["learning_rate"]["attempts"], json!([]));
    }
    // One batch, seen again: the loss after the trial is that before the second update.
    let once = "--epochs 2 --batch-size 300 --val-split 0 --augment none --no-shuffle --schedule constant --warmup 0";
    let (found, report) = run(&child, once, &[]);
    let after = report["learning_rate"]["attempts"][0]["after"].as_f64().unwrap();
    assert!((after - found[1]).abs() < 1e-6 * after, "{report} and {found:?}");

    // What a fit left is ruined by the default, and gets better at the rate that is found.
    let fitted = fitted(folder.path());
    let distil = "--distill 1 --epochs 2 --batch-size 30";
    let teacher = ["--teacher", ANCESTOR];
    let (_, report) = run(&fitted, distil, &teacher);
    let attempts = report["learning_rate"]["attempts"].as_array().unwrap().clone();
    let number = |value: &Value| value.as_f64().unwrap();
    assert!(number(&report["learning_rate"]["rate"]) < 2e-4 && attempts.len() > 1, "{report}");
    assert_eq!(attempts[0]["rate"], 5e-4);
    assert!(number(&attempts[0]["after"]) > number(&attempts[0]["before"]), "{report}");
    assert_eq!(report["improved"], true, "{report}");
    let (_, ruined) = run(&fitted, distil, &[&teacher[..], &["--lr", "5e-4"]].concat());
    assert!(
        number(&ruined["last_validation"]["val_loss"]) > number(&report["last_validation"]["val_loss"]),
        "{ruined}"
    );
}
