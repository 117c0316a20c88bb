//! `offshoot tune` and `offshoot eval` through the binary, on the embedded runtime.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use ndarray::{Array1, Array3, Array4};
use ndarray_npy::NpzWriter;
use offshoot::onnx::{Model, to_f32};
use serde_json::Value;

use crate::common::binary::{self, args};
use crate::common::root;

const ANCESTOR: &str = "models/fashion-vit.onnx";
const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";

fn on_tract<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--runtime", "tract"]].concat()
}

fn offshoot(arguments: &[&str]) -> Output {
    binary::offshoot(&on_tract(arguments))
}

fn done(arguments: &[&str]) -> Output {
    binary::done(&on_tract(arguments))
}

fn json(arguments: &[&str]) -> Value {
    binary::json(&on_tract(arguments))
}

fn refused(arguments: &[&str], says: &[&str]) {
    binary::refused(&on_tract(arguments), says);
}

/// The lines of a metrics file: updates, and validations.
fn metrics(path: &Path) -> (Vec<Value>, Vec<Value>) {
    let lines = fs::read_to_string(path).unwrap();
    lines.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()).partition(|v| v.get("loss").is_some())
}

fn losses(path: &Path) -> Vec<f64> {
    metrics(path).0.iter().map(|v| v["loss"].as_f64().unwrap()).collect()
}

fn weights(path: &Path) -> Vec<(String, Vec<f32>)> {
    let model = Model::open(path).unwrap();
    model.graph().initializer.iter().map(|t| (t.name().to_string(), to_f32(t).unwrap_or_default())).collect()
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_string()
    }
}

/// A child of two layers and two heads: quick to train.
fn child(folder: &Folder) -> String {
    let path = folder.path("child.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--layers", "even:2", "--heads", "2", "-o", &path]);
    path
}

#[test]
fn a_child_is_tuned_and_evaluated() {
    let folder = Folder::new();
    let (child, tuned, log) = (child(&folder), folder.path("tuned.onnx"), folder.path("log.jsonl"));
    let (plot, page) = (folder.path("curve.svg"), folder.path("report.html"));
    let before = json(&["eval", &child, "--data", IMAGES, "--json"]);
    let result = json(args!(
        "tune {child} --data {IMAGES} -o {tuned} --epochs 3 --batch-size 32 --lr 2e-3 --metrics {log} --plot \
         {plot} --report {page} --json --val-split 0.2"
    ));
    assert_eq!(result["schema"], "offshoot.tune/1");
    // 240 images to train on make 7 batches of 32.
    assert_eq!(result["steps"], 21);
    let (steps, validations) = metrics(Path::new(&log));
    // The model is validated before the first update, too.
    assert_eq!((steps.len(), validations.len()), (21, 4));
    assert_eq!(steps[20]["step"], 21);
    assert!(validations.iter().all(|v| v["val_images"] == 60));
    let after = json(&["eval", &tuned, "--data", IMAGES, "--json"]);
    let (a, b) = (before["top1"].as_f64().unwrap(), after["top1"].as_f64().unwrap());
    assert!(b > a + 0.2, "accuracy {a} before and {b} after");
    // What was written is the best by validation, and the part that validated gives its figure again.
    let validated = json(&["eval", &tuned, "--data", IMAGES, "--part", "validation", "--val-split", "0.2", "--json"]);
    assert_eq!(validated["top1"], result["best"]["val_top1"]);
    assert!(Path::new(&folder.path("tuned.last.onnx")).is_file());
    assert!(fs::read_to_string(&plot).unwrap().contains("<svg"));
    assert!(fs::read_to_string(&page).unwrap().contains("Trained parameters"));
    let counted: u64 = after["classes"].as_array().unwrap().iter().map(|c| c["images"].as_u64().unwrap()).sum();
    assert_eq!(counted, 300);
}

#[test]
fn an_interrupted_run_ends_where_a_whole_one_ends() {
    let folder = Folder::new();
    let child = child(&folder);
    let run = |name: &str, more: &[&str]| {
        let (output, log) = (folder.path(&format!("{name}.onnx")), folder.path(&format!("{name}.jsonl")));
        let mut arguments = vec![
            "tune",
            &child,
            "--data",
            IMAGES,
            "-o",
            &output,
            "--epochs",
            "2",
            "--batch-size",
            "50",
            "--lr",
            "1e-3",
            "--metrics",
            &log,
            "--ema",
            "0.9",
            "--clip",
            "1",
            "--drop-path",
            "0.2",
            "--mixup",
            "0.2",
            "--checkpoint-every",
            "1",
            "--val-split",
            "0",
        ];
        arguments.extend(more);
        done(&arguments);
        losses(Path::new(&log))
    };
    let whole = run("whole", &[]);
    assert_eq!(whole.len(), 12);
    // Cut in the middle of the first epoch and of the second. A schedule depends on the length of the run, so the run
    // is cut, not planned shorter: the checkpoint of an update is kept and put back.
    let planned = ["--schedule", "constant"];
    let constant = run("constant", &planned);
    let part = run("part", &["--schedule", "constant", "--steps", "4"]);
    assert_eq!(part.len(), 4);
    let resumed = run("part", &["--schedule", "constant", "--steps", "9", "--resume"]);
    assert_eq!(resumed.len(), 9);
    let resumed = run("part", &["--schedule", "constant", "--resume"]);
    assert_eq!(resumed.len(), 12);
    for (a, b) in constant.iter().zip(&resumed) {
        assert!((a - b).abs() <= 1e-5 * a.abs(), "{a} and {b}");
    }
    let last = |name: &str| weights(Path::new(&folder.path(&format!("{name}.onnx"))));
    for ((name, a), (_, b)) in last("constant").iter().zip(last("part").iter()) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 1e-6 + 1e-5 * a.abs(), "{name}: {a} and {b}");
        }
    }
    let checkpoint = folder.path("part.checkpoint.safetensors");
    refused(
        &["tune", &child, "--data", IMAGES, "-o", &folder.path("part.onnx"), "--batch-size", "50", "--resume"],
        &["part.checkpoint.safetensors"],
    );
    assert!(Path::new(&checkpoint).is_file());
}

#[test]
fn the_same_seed_gives_the_same_model() {
    let folder = Folder::new();
    let child = child(&folder);
    let run = |name: &str, seed: &str| {
        let output = folder.path(name);
        done(args!(
            "tune {child} --data {IMAGES} -o {output} --steps 4 --batch-size 16 --seed {seed} --val-split 0 \
             --threads 1"
        ));
        fs::read(output).unwrap()
    };
    let (a, b, c) = (run("a.onnx", "3"), run("b.onnx", "3"), run("c.onnx", "4"));
    assert!(a == b, "the same seed gave two models");
    assert!(a != c, "two seeds gave one model");
}

#[test]
fn what_is_frozen_stays() {
    let folder = Folder::new();
    let (child, tuned) = (child(&folder), folder.path("tuned.onnx"));
    let plan =
        json(&["tune", &child, "--data", IMAGES, "--dry-run", "--json", "--freeze", "*norm*", "--freeze", "patch*"]);
    let names = |key: &str| -> Vec<String> {
        plan[key].as_array().unwrap().iter().map(|w| w["name"].as_str().unwrap().to_string()).collect()
    };
    let (trained, frozen) = (names("trained"), names("frozen"));
    assert!(trained.iter().any(|n| n == "class_token") && trained.iter().any(|n| n == "position"), "{trained:?}");
    assert!(frozen.iter().any(|n| n.contains("norm")) && trained.iter().all(|n| !n.contains("norm")), "{frozen:?}");
    done(args!(
        "tune {child} --data {IMAGES} -o {tuned} --steps 2 --batch-size 16 --freeze *norm* --freeze patch* \
         --val-split 0"
    ));
    let mut moved = 0;
    for ((name, a), (_, b)) in weights(Path::new(&child)).iter().zip(&weights(Path::new(&tuned))) {
        if trained.contains(name) {
            moved += (a != b) as usize;
        } else {
            assert_eq!(a, b, "{name} is not trained and changed");
        }
    }
    assert_eq!(moved, trained.len());
    refused(&["tune", &child, "--data", IMAGES, "--dry-run", "--freeze", "nothing*"], &["nothing*"]);
    refused(&["tune", &child, "--data", IMAGES, "--dry-run", "--freeze", "*"], &["no weight is left"]);
}

#[test]
fn a_student_learns_from_its_teacher_without_labels() {
    let folder = Folder::new();
    let (child, tuned, log) = (child(&folder), folder.path("tuned.onnx"), folder.path("log.jsonl"));
    let pictures = "fixtures/fashion-png";
    done(args!(
        "tune {child} --data {pictures} --teacher {ANCESTOR} -o {tuned} --epochs 12 --batch-size 10 --lr 2e-3 \
         --metrics {log} --augment none --val-split 0"
    ));
    let losses = losses(Path::new(&log));
    assert!(losses.last().unwrap() * 2.0 < losses[0], "{losses:?}");
    // A model is its own best teacher: nothing to learn, nothing changes but by decay.
    let same = folder.path("same.onnx");
    done(args!(
        "tune {child} --data {pictures} --teacher {child} -o {same} --steps 1 --batch-size 10 --metrics {log} \
         --augment none --val-split 0 --force --weight-decay 0 --optimizer sgd"
    ));
    let (steps, _) = metrics(Path::new(&log));
    assert!(steps[0]["loss"].as_f64().unwrap().abs() < 1e-6);
    for ((name, a), (_, b)) in weights(Path::new(&child)).iter().zip(&weights(Path::new(&same))) {
        let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest < 1e-6, "{name} moved by {largest}");
    }
}

/// Prepared tensors with labels.
fn tensors(path: &str, images: usize, label: impl Fn(usize) -> i64, value: f32) {
    let mut writer = NpzWriter::new(fs::File::create(path).unwrap());
    let x = Array4::<f32>::from_shape_fn((images, 1, 28, 28), |(n, _, i, j)| {
        value * ((n + i * 3 + j * 7) % 11) as f32 / 5.0
    });
    writer.add_array("x", &x).unwrap();
    writer.add_array("y", &Array1::<i64>::from_shape_fn(images, label)).unwrap();
    writer.finish().unwrap();
}

#[test]
fn matched_runs_write_one_line_an_update() {
    let folder = Folder::new();
    let (data, log) = (folder.path("data.npz"), folder.path("log.jsonl"));
    tensors(&data, 10, |n| n as i64 % 10, 1.0);
    let run = ["tune", ANCESTOR, "--data", &data, "-o", &folder.path("tuned.onnx"), "--metrics", &log];
    let optimiser = ["--optimizer", "adamw", "--lr", "1e-4", "--weight-decay", "0.05"];
    done(&[&run[..], &binary::PLAIN, &optimiser, &["--batch-size", "5", "--epochs", "3"]].concat());
    let (steps, validations) = metrics(Path::new(&log));
    assert_eq!((steps.len(), validations.len()), (6, 0));
    for (i, step) in steps.iter().enumerate() {
        assert_eq!((step["step"].as_u64(), step["epoch"].as_u64()), (Some(i as u64 + 1), Some(i as u64 / 2 + 1)));
        assert_eq!(step["lr"].as_f64(), Some(1e-4));
    }
    assert!(!Path::new(&folder.path("tuned.last.onnx")).exists());
}

#[test]
fn a_new_classifier_starts_from_a_regression() {
    let folder = Folder::new();
    // The encoder alone: its tokens are the output.
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let end = {
        let typing = offshoot::axes::Typing::new(&model).unwrap();
        let anatomy = offshoot::anatomy::Anatomy::new(&typing).unwrap();
        let leave = anatomy.layers.last().unwrap().residual_out.clone().unwrap();
        let norm = model.graph().node.iter().find(|n| n.input.first() == Some(&leave)).unwrap();
        norm.output[0].clone()
    };
    let info = offshoot::onnx::tensor_info(&end, offshoot::onnx::DataType::Float, &[None, Some(50), Some(64)]);
    model.graph_mut().output = vec![info];
    offshoot::graph::prune(model.graph_mut());
    let encoder = folder.path("encoder.onnx");
    model.write(&encoder).unwrap();
    for pooling in ["class-token", "mean"] {
        let tuned = folder.path(&format!("{pooling}.onnx"));
        done(args!(
            "tune {encoder} --data {IMAGES} --classes 10 --pooling {pooling} -o {tuned} --steps 1 --lr 0 \
             --batch-size 32 --val-split 0"
        ));
        let found = json(&["eval", &tuned, "--data", IMAGES, "--json"]);
        assert!(found["top1"].as_f64().unwrap() > 0.75, "{pooling}: {}", found["top1"]);
        assert!(found["loss"].as_f64().unwrap() < 1.0, "{pooling}: {}", found["loss"]);
    }
    refused(
        &["tune", &encoder, "--data", IMAGES, "-o", &folder.path("x.onnx"), "--val-split", "0"],
        &["[batch, classes]"],
    );
}

#[test]
fn bad_input_is_refused_and_nothing_is_lost() {
    let folder = Folder::new();
    let output = folder.path("tuned.onnx");
    let tune = |data: &str, more: &[&str], says: &[&str]| {
        let mut arguments = vec!["tune", ANCESTOR, "--data", data, "-o", &output];
        arguments.extend(more);
        if !more.contains(&"--batch-size") {
            arguments.extend(["--batch-size", "5"]);
        }
        refused(&arguments, says);
        assert!(!Path::new(&output).exists(), "{arguments:?} wrote an output");
    };
    let data = folder.path("data.npz");
    tensors(&data, 10, |n| n as i64 + 1, 1.0);
    tune(&data, &[], &["label is 10", "10 classes"]);
    tensors(&data, 10, |n| n as i64 % 10, 1.0);
    tune(&data, &["--batch-size", "11", "--val-split", "0"], &["fewer than"]);
    let sideways = offshoot(&["tune", ANCESTOR, "--data", &data, "-o", &output, "--augment", "sideways"]);
    assert_eq!(sideways.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&sideways.stderr).contains("`sideways` is no augmentation"));
    tune("fixtures/fashion-png", &[], &["labels"]);
    tune(&data, &["--teacher", ANCESTOR, "--feature", "nowhere"], &["nowhere"]);
    tune(&folder.path("none"), &[], &["none"]);
    // A class count that differs.
    tune("fixtures/fashion-images.idx3-ubyte", &["--classes", "7"], &["label is"]);

    // A loss that is no number stops the run; the checkpoint before it stays whole.
    tensors(&data, 10, |n| n as i64 % 10, 1.0);
    let log = folder.path("log.jsonl");
    let arguments = [
        "tune",
        ANCESTOR,
        "--data",
        &data,
        "-o",
        &output,
        "--batch-size",
        "5",
        "--val-split",
        "0",
        "--lr",
        "1e30",
        "--schedule",
        "constant",
        "--warmup",
        "0",
        "--checkpoint-every",
        "1",
        "--metrics",
        &log,
        "--augment",
        "none",
    ];
    let result = offshoot(&arguments);
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("loss is") && stderr.contains("step ") && stderr.contains("checkpoint"), "{stderr}");
    assert!(!Path::new(&output).exists());
    let bytes = fs::read(folder.path("tuned.checkpoint.safetensors")).unwrap();
    assert!(safetensors::SafeTensors::deserialize(&bytes).is_ok());
}

#[test]
fn corrupt_images_are_counted_or_refused() {
    let folder = Folder::new();
    for class in ["a", "b"] {
        let to = folder.path(class);
        fs::create_dir(&to).unwrap();
        for (i, entry) in fs::read_dir(root().join("fixtures/fashion-png")).unwrap().enumerate() {
            fs::copy(entry.unwrap().path(), Path::new(&to).join(format!("{i:02}.png"))).unwrap();
        }
    }
    fs::write(Path::new(&folder.path("a")).join("00.png"), b"no picture").unwrap();
    let (data, output) = (folder.path(""), folder.path("tuned.onnx"));
    let arguments = [
        "tune",
        ANCESTOR,
        "--data",
        &data,
        "--classes",
        "2",
        "-o",
        &output,
        "--epochs",
        "1",
        "--batch-size",
        "8",
        "--val-split",
        "0",
    ];
    let result = done(&arguments);
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert!(stderr.contains("1 image(s) could not be read") && stderr.contains("00.png"), "{stderr}");
    let mut strict = arguments.to_vec();
    strict.extend(["--strict", "--force"]);
    refused(&strict, &["00.png"]);
}

#[test]
fn the_step_graph_is_written_with_its_description() {
    let folder = Folder::new();
    let step = folder.path("step.onnx");
    done(&["tune", ANCESTOR, "--data", IMAGES, "--emit-step", &step, "--batch-size", "8"]);
    let description: Value = serde_json::from_slice(&fs::read(folder.path("step.json")).unwrap()).unwrap();
    assert_eq!(description["schema"], "offshoot.step/1");
    let model = Model::open(&step).unwrap();
    let inputs: Vec<&str> = model.graph().input.iter().map(|i| i.name()).collect();
    let outputs: Vec<&str> = model.graph().output.iter().map(|i| i.name()).collect();
    for port in description["inputs"].as_array().unwrap() {
        assert!(inputs.contains(&port["name"].as_str().unwrap()), "{port}");
    }
    let state = description["state"].as_array().unwrap();
    let bytes = fs::read(folder.path("step.safetensors")).unwrap();
    let initial = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for tensor in state {
        assert!(inputs.contains(&tensor["name"].as_str().unwrap()), "{tensor}");
        assert!(outputs.contains(&tensor["next"].as_str().unwrap()), "{tensor}");
        let initial = initial.tensor(tensor["name"].as_str().unwrap());
        assert_eq!(initial.is_ok(), tensor["initial"].is_string(), "{tensor}");
    }
    assert_eq!(inputs.len(), description["inputs"].as_array().unwrap().len() + state.len());
}

/// A disk that is full, as a limit on the size of files: the run ends, and what was there before is whole.
#[cfg(unix)]
#[test]
fn a_full_disk_loses_nothing() {
    let folder = Folder::new();
    let (child, output) = (child(&folder), folder.path("tuned.onnx"));
    let arguments =
        ["tune", &child, "--data", IMAGES, "-o", &output, "--steps", "1", "--batch-size", "8", "--val-split", "0"];
    done(&arguments);
    let files = ["tuned.onnx", "tuned.checkpoint.safetensors"].map(|f| folder.path(f));
    let before = files.each_ref().map(|f| fs::read(f).unwrap());
    let result = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_offshoot")])
        .args(arguments)
        .args(["--force", "--seed", "1", "--runtime", "tract"])
        .current_dir(root())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&result.stderr);
    assert_eq!(result.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("too large") && stderr.contains("hint: "), "{stderr}");
    assert_eq!(files.each_ref().map(|f| fs::read(f).unwrap()), before);
    let left: Vec<_> = fs::read_dir(folder.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().starts_with(".offshoot-")), "{left:?}");
}

#[test]
fn the_whole_path_in_one_command() {
    let folder = Folder::new();
    let out = folder.path("child");
    let arguments = [
        "run",
        ANCESTOR,
        "--data",
        IMAGES,
        "--layers",
        "even:2",
        "--heads",
        "4",
        "--epochs",
        "3",
        "--batch-size",
        "32",
        "--lr",
        "2e-3",
        "-o",
        &out,
        "--json",
    ];
    let value = json(&arguments);
    assert_eq!(value["schema"], "offshoot.run/1");
    let top1 = |i: usize| value["models"][i]["top1"].as_f64().unwrap();
    assert!(top1(0) > 0.8 && top1(2) > top1(1), "{value}");
    assert!(value["models"][2]["parameters"].as_u64() < value["models"][0]["parameters"].as_u64());
    for file in ["gene.onnx", "child.onnx", "tuned.onnx", "tuned.last.onnx", "metrics.jsonl", "run.json"] {
        assert!(Path::new(&out).join(file).is_file(), "{file}");
    }
    let page = fs::read_to_string(Path::new(&out).join("report.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 2);
    assert!(page.contains("ancestor") && page.contains("Heads of the ancestor"));
    refused(&arguments[..arguments.len() - 1], &["exists already"]);
    // Another method, without densities.
    let mut other = arguments.to_vec();
    other.extend(["--init", "weight-selection", "--force", "--steps", "2"]);
    assert_eq!(json(&other)["models"][1]["model"], "child");
    // Where other images are given to validate on, all of the data are trained on, and those judge.
    let val = folder.path("val.npz");
    let mut npz = NpzWriter::new(fs::File::create(&val).unwrap());
    let pixel = |(i, y, x): (usize, usize, usize)| (37 * i + 11 * y * (i % 5) + 7 * x) as u8;
    npz.add_array("x", &Array3::from_shape_fn((24, 28, 28), pixel)).unwrap();
    npz.add_array("y", &Array1::from_shape_fn(24, |i| (i % 10) as i64)).unwrap();
    npz.finish().unwrap();
    other.extend(["--val", &val]);
    let value = json(&other);
    assert_eq!((&value["images"], &value["val"]), (&24.into(), &val.as_str().into()));
    let tuned = folder.path("child/tuned.onnx");
    for (row, model) in [(0, ANCESTOR), (2, &*tuned)] {
        let judged = json(&["eval", model, "--data", &val, "--json"]);
        for figure in ["top1", "loss"] {
            assert_eq!(value["models"][row][figure], judged[figure], "{model}");
        }
    }
}

/// Transforms are trained with the rest, and folded into plain weights when the model is written.
#[test]
fn transforms_are_trained_and_folded() {
    let folder = Folder::new();
    let (child, tuned) = (folder.path("child.onnx"), folder.path("tuned.onnx"));
    done(args!("grow {ANCESTOR} --no-images --ffn-clusters 0-1 --layers 2 --heads 2 --transform affine -o {child}"));
    let plan = json(&["tune", &child, "--data", IMAGES, "--dry-run", "--json"]);
    let trained: Vec<&str> = plan["trained"].as_array().unwrap().iter().map(|w| w["name"].as_str().unwrap()).collect();
    let of_transforms = trained.iter().filter(|n| n.contains("transform")).count();
    assert!(of_transforms >= 8, "{trained:?}");
    done(args!("tune {child} --data {IMAGES} -o {tuned} --steps 6 --batch-size 32 --lr 5e-3 --val-split 0"));
    // What is written has the nodes and the weights of a child that never had transforms.
    let plain = folder.path("plain.onnx");
    done(&["grow", ANCESTOR, "--no-images", "--ffn-clusters", "0-1", "--layers", "2", "--heads", "2", "-o", &plain]);
    let size = |path: &str| {
        let model = Model::open(path).unwrap();
        (model.graph().node.len(), offshoot::learngene::parameters(model.graph()))
    };
    assert_eq!(size(&tuned), size(&plain));
    assert_ne!(size(&child), size(&plain));
    let accuracy = |m: &str| json(&["eval", m, "--data", IMAGES, "--json"])["loss"].as_f64().unwrap();
    assert!(accuracy(&tuned) < accuracy(&child));
}
