//! A teacher in the student's transform: the ancestor taught by itself had nothing to learn, whatever its metadata
//! said.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array4, Axis};
use offshoot::axes::Typing;
use offshoot::graph::{data_inputs, int_attribute, node};
use offshoot::metadata::CLASSES;
use offshoot::onnx::{DataType, Model, tensor_from_f32};
use offshoot::runtime::{Options, Runtime, RuntimeKind};
use serde_json::{Value, json};

use super::fashion::{self, ANCESTOR};
use crate::common::binary::{done, json, refused, text};
use crate::common::root;

const PREPROCESS: &str = "offshoot.preprocess";

fn transform(size: usize, channels: usize, [mean, std]: [f64; 2]) -> String {
    json!({
        "size": [size, size], "channels": channels, "mean": vec![mean; channels], "std": vec![std; channels],
        "crop_ratio": 1.0, "interpolation": "nearest", "resize": "square",
    })
    .to_string()
}

fn start(runtime: &str) -> Arc<Runtime> {
    let kind = if runtime == "tract" { RuntimeKind::Tract } else { RuntimeKind::Onnxruntime };
    Runtime::start(&Options { kind, ..Options::default() }).unwrap()
}

/// What a model says of prepared images.
fn logits(runtime: &Arc<Runtime>, model: &Path, images: &Array4<f32>) -> Vec<Vec<f64>> {
    let mut model = Model::open(model).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let size = Typing::new(&model).unwrap().image_size();
    let output = &runtime.load(&model, images.len_of(Axis(0)), size).unwrap().run(images.view()).unwrap()[0];
    output.outer_iter().map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
}

/// The divergence of softened distributions, times the temperature (2) squared: the loss of distillation.
fn divergence(teacher: &[Vec<f64>], student: &[Vec<f64>]) -> f64 {
    let log_softmax = |row: &[f64]| -> Vec<f64> {
        let sum: f64 = row.iter().map(|v| (v / 2.0).exp()).sum();
        row.iter().map(|v| v / 2.0 - sum.ln()).collect()
    };
    let each = teacher.iter().zip(student).map(|(t, s)| {
        let (p, q) = (log_softmax(t), log_softmax(s));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    4.0 * each.sum::<f64>() / teacher.len() as f64
}

fn losses(path: &Path) -> Vec<f64> {
    let lines = fs::read_to_string(path).unwrap();
    let losses = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    losses.filter_map(|line| line["loss"].as_f64()).collect()
}

/// The first losses of a student under a teacher, and what `tune` prints. Nothing is learned.
fn taught(runtime: &str, [student, teacher, data]: [&str; 3], flags: &str) -> (Vec<f64>, Value) {
    let folder = tempfile::tempdir().unwrap();
    let [log, output] = ["log.jsonl", "tuned.onnx"].map(|name| folder.path().join(name));
    let common = ["tune", student, "--teacher", teacher, "--data", data, "--runtime", runtime, "--lr", "0", "--json"];
    let files = ["--metrics", text(&log), "-o", text(&output)];
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let report = json(&[&common[..], &files, &flags].concat());
    (losses(&log), report)
}

/// A copy of the ancestor for images of another normalisation, which its graph undoes: of the same picture it says what
/// the ancestor says.
fn renormalised([mean, std]: [f32; 2], copy: &Path) {
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    let own: Value = serde_json::from_str(model.metadata(PREPROCESS).unwrap()).unwrap();
    let number = |key: &str| own[key][0].as_f64().unwrap() as f32;
    let changed = [("mean", mean), ("std", std)].iter().fold(own.clone(), |mut all, (key, value)| {
        all[*key] = json!([value]);
        all
    });
    let (factor, shift) = (std / number("std"), (mean - number("mean")) / number("std"));
    let graph = model.graph_mut();
    let input = data_inputs(graph)[0].name().to_string();
    for x in graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|x| **x == input) {
        *x = "renormalised".into();
    }
    for (name, value) in [("factor", factor), ("shift", shift)] {
        graph.initializer.push(tensor_from_f32(name, DataType::Float, &[], &[value]));
    }
    graph.node.insert(0, node("Mul", &[&input, "factor"], &["scaled"], vec![]));
    graph.node.insert(1, node("Add", &["scaled", "shift"], &["renormalised"], vec![]));
    model.set_metadata(PREPROCESS, changed.to_string());
    model.write(copy).unwrap();
}

/// Whatever is drawn at random, student and teacher see the same part of a picture, each in its own normalisation.
pub fn teachers_have_their_own_normalisation(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [same, other, data] = ["same.onnx", "other.onnx", "data"].map(|name| folder.path().join(name));
    renormalised([0.9, 0.1], &same);
    let images = "fixtures/fashion-images.idx3-ubyte";
    for augment in ["none", "light", "deit,erase=1,jitter=0.4", "standard,erase=1,erase-mode=rand"] {
        let flags = format!("--distill 1 --augment {augment} --batch-size 50 --epochs 1 --val-split 0.2");
        let (losses, report) = taught(runtime, [ANCESTOR, text(&same), images], &flags);
        assert!(losses.iter().all(|loss| loss.abs() < 1e-5), "{augment}: {losses:?}");
        assert!(report["start"]["val_loss"].as_f64().unwrap().abs() < 1e-5, "{report}");
        assert!((report["teacher"]["preprocess"]["mean"][0].as_f64().unwrap() - 0.9).abs() < 1e-6, "{report}");
    }
    // Mixed images are mixed alike. What is left is a millionth of the loss on labels.
    let mixed = "--distill 0.999999 --mixup 0.8 --cutmix 1 --augment standard --batch-size 50 --epochs 1 --val-split 0";
    let (losses, _) = taught(runtime, [ANCESTOR, text(&same), images], mixed);
    assert!(losses.iter().all(|loss| loss.abs() < 2e-5), "{losses:?}");

    // The same graph under other metadata sees other numbers: the loss is that of two different inputs.
    fashion::with_metadata(root().join(ANCESTOR), PREPROCESS, Some(&transform(28, 1, [0.9, 0.1])), &other);
    fashion::folder(&data, 8, 6);
    let pictures: Vec<_> = fashion::pictures(8, 6);
    let prepared = |[mean, std]: [f32; 2]| {
        Array4::from_shape_fn((6, 1, 28, 28), |(n, _, y, x)| {
            (f32::from(pictures[n].get_pixel(x as u32, y as u32).0[0]) / 255.0 - mean) / std
        })
    };
    let started = start(runtime);
    let ancestor = root().join(ANCESTOR);
    let expected = divergence(
        &logits(&started, &ancestor, &prepared([0.9, 0.1])),
        &logits(&started, &ancestor, &prepared([0.286, 0.353])),
    );
    let flags = "--augment none --no-shuffle --batch-size 6 --epochs 1 --val-split 0";
    let (losses, _) = taught(runtime, [ANCESTOR, text(&other), text(&data)], flags);
    assert!(expected > 0.1 && (losses[0] - expected).abs() < 1e-4 * expected, "{losses:?} and {expected}");
}

/// A configuration beside a teacher says what its metadata would; one of which nothing is known sees what the student
/// sees, flags included.
pub fn teachers_are_known_by_their_folder(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [same, teacher, config] =
        ["same.onnx", "teacher.onnx", "preprocessor_config.json"].map(|name| folder.path().join(name));
    let images = "fixtures/fashion-images.idx3-ubyte";
    let common = "--distill 1 --augment light --batch-size 50 --epochs 1 --val-split 0";
    renormalised([0.9, 0.1], &same);
    fashion::with_metadata(&same, PREPROCESS, None, &teacher);
    let processor = json!({
        "image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}, "image_mean": [0.9],
            "image_std": [0.1],
    });
    fs::write(&config, processor.to_string()).unwrap();
    let (losses, report) = taught(runtime, [ANCESTOR, text(&teacher), images], common);
    assert!(losses.iter().all(|loss| loss.abs() < 1e-5), "{losses:?}");
    assert!((report["teacher"]["preprocess"]["mean"][0].as_f64().unwrap() - 0.9).abs() < 1e-6, "{report}");

    fs::remove_file(&config).unwrap();
    fashion::with_metadata(root().join(ANCESTOR), PREPROCESS, None, &teacher);
    let flags = format!("{common} --mean 0.5 --std 0.25");
    let (losses, report) = taught(runtime, [ANCESTOR, text(&teacher), images], &flags);
    assert!(losses.iter().all(|loss| loss.abs() < 1e-5), "{losses:?}");
    assert_eq!(report["teacher"]["preprocess"]["mean"], json!([0.5]), "{report}");
}

/// A teacher of twice the student's size gets pictures of that size, from the same part of them.
pub fn teachers_have_their_own_size(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [large, student, teacher, data] =
        ["large.onnx", "student.onnx", "teacher.onnx", "data"].map(|name| folder.path().join(name));
    let small = "fixtures/graphs/timm-vit-fused-ts17.onnx";
    done(&["grow", small, "--no-images", "--image-size", "32", "-o", text(&large)]);
    let (own, other) = ([0.45, 0.25], [0.5, 0.5]);
    fashion::with_metadata(root().join(small), PREPROCESS, Some(&transform(16, 3, own)), &student);
    fashion::with_metadata(&large, PREPROCESS, Some(&transform(32, 3, other)), &teacher);
    // Pictures of 32 x 32 pixels, of which the nearest to those of half the size are known.
    fs::create_dir(&data).unwrap();
    let shade = |n: usize, c: usize, y: usize, x: usize| ((n * 37 + c * 71 + y * y * 3 + x * (5 + n)) % 256) as u8;
    for n in 0..6 {
        let at = |y: u32, x: u32| [0, 1, 2].map(|c| shade(n, c, y as usize, x as usize));
        let picture = image::RgbImage::from_fn(32, 32, |x, y| image::Rgb(at(y, x)));
        picture.save(data.join(format!("{n}.png"))).unwrap();
    }
    let flipped = |size: usize, [mean, std]: [f64; 2]| {
        let step = 32 / size;
        Array4::from_shape_fn((6, 3, size, size), |(n, c, y, x)| {
            // The middle of two pixels is the second one's.
            let [y, x] = [y, size - 1 - x].map(|at| at * step + step / 2);
            (f32::from(shade(n, c, y, x)) / 255.0 - mean as f32) / std as f32
        })
    };
    let started = start(runtime);
    let expected =
        divergence(&logits(&started, &teacher, &flipped(32, other)), &logits(&started, &student, &flipped(16, own)));
    let flags = "--augment flip=1 --no-shuffle --batch-size 6 --epochs 1 --val-split 0";
    let (losses, report) = taught(runtime, [text(&student), text(&teacher), text(&data)], flags);
    assert!((losses[0] - expected).abs() < 1e-4 * expected, "{losses:?} and {expected}");
    assert_eq!(report["teacher"]["preprocess"]["size"], json!([32, 32]));
    // The validation shows what the training does, without the flip.
    let straight = |size, of| {
        let mut images: Array4<f32> = flipped(size, of);
        images.invert_axis(Axis(3));
        images
    };
    let expected =
        divergence(&logits(&started, &teacher, &straight(32, other)), &logits(&started, &student, &straight(16, own)));
    let flags = format!("--augment none --batch-size 6 --epochs 1 --val {}", text(&data));
    let (_, report) = taught(runtime, [text(&student), text(&teacher), text(&data)], &flags);
    let found = report["start"]["val_loss"].as_f64().unwrap();
    assert!((found - expected).abs() < 1e-4 * expected, "{found} and {expected}");
}

/// What cannot be compared is refused before anything is trained, with both files named.
pub fn teachers_of_other_classes_are_refused(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [twelve, output] = ["twelve.onnx", "tuned.onnx"].map(|name| folder.path().join(name));
    done(&["grow", ANCESTOR, "--no-images", "--classes", "12", "-o", text(&twelve)]);
    let images = "fixtures/fashion-images.idx3-ubyte";
    let common = ["tune", ANCESTOR, "--data", images, "--runtime", runtime, "-o", text(&output), "--teacher"];
    let refuse = |more: &[&str], says: &[&str]| {
        refused(&[&common[..], more].concat(), says);
        refused(&[&common[..], more, &["--dry-run"]].concat(), says);
        assert!(!output.exists());
    };
    refuse(&[text(&twelve)], &[ANCESTOR, "twelve.onnx", "10 classes", "12", "--classes 12"]);
    // Values inside of the graphs, too.
    let model = Model::open(root().join(ANCESTOR)).unwrap();
    let logits = model.graph().output[0].name().to_string();
    let inside = model.graph().node[0].output[0].clone();
    let feature = format!("{logits}={inside}");
    refuse(&[ANCESTOR, "--feature", &feature], &[logits.as_str(), inside.as_str(), ANCESTOR, "the teacher"]);
}

/// The ancestor with its classes in another order, as a product with a permutation says it, and with their names in the
/// same.
fn turned(order: &[usize; 10], behind: Option<&str>, names: &[String], copy: &Path) {
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    let graph = model.graph_mut();
    let output = graph.output[0].name().to_owned();
    for n in &mut graph.node {
        n.input.iter_mut().chain(&mut n.output).filter(|x| **x == output).for_each(|x| *x = "ancestor".into());
    }
    let mut turn = vec![0.0; 100];
    order.iter().enumerate().for_each(|(to, from)| turn[10 * from + to] = 1.0);
    graph.initializer.push(tensor_from_f32("turn", DataType::Float, &[10, 10], &turn));
    match behind {
        None => graph.node.push(node("MatMul", &["ancestor", "turn"], &[&output], vec![])),
        Some(activation) => {
            graph.node.push(node("MatMul", &["ancestor", "turn"], &["turned"], vec![]));
            graph.node.push(node(activation, &["turned"], &[&output], vec![int_attribute("axis", -1)]));
        }
    }
    model.set_metadata(CLASSES, json!(names).to_string());
    model.write(copy).unwrap();
}

/// A teacher whose classes are the student's in another order is matched by name, and that is said; what names do not
/// settle is said, too.
pub fn teachers_of_another_order_are_matched_by_name(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [student, teacher, output] = ["student.onnx", "teacher.onnx", "tuned.onnx"].map(|n| folder.path().join(n));
    let names = |order: [usize; 10]| order.map(|i| fashion::NAMES[i].to_string()).to_vec();
    let own = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let other = [3, 1, 4, 0, 5, 9, 2, 6, 8, 7];
    fashion::with_metadata(root().join(ANCESTOR), CLASSES, Some(&json!(names(own)).to_string()), &student);
    let images = "fixtures/fashion-images.idx3-ubyte";
    let tune = |more: &[&str]| {
        let common = ["tune", text(&student), "--teacher", text(&teacher), "--lr", "0", "--force", "--json"];
        let short = ["--steps", "1", "--augment", "none", "--runtime", runtime, "-o", text(&output)];
        done(&[&common[..], &short, more].concat())
    };
    let said = |flags: &[&str]| {
        let run = tune(&[&["--data", images, "--limit", "20", "--batch-size", "20"][..], flags].concat());
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        let loss = report["start"]["val_loss"].as_f64().unwrap();
        (loss, String::from_utf8(run.stderr).unwrap(), report["teacher"]["class_order"].clone())
    };
    let both = |said: &str| said.contains(text(&student)) && said.contains(text(&teacher));
    for behind in [None, Some("Softmax")] {
        turned(&other, behind, &names(other), &teacher);
        let (loss, told, order) = said(&["--distill", "1"]);
        assert!(loss.abs() < 1e-5, "{loss}");
        // Class 0 of the student is output 3 of the teacher, and so on.
        assert_eq!(order, json!([3, 1, 6, 0, 2, 4, 7, 9, 8, 5]));
        let line = told.lines().find(|line| line.contains("matched by name")).unwrap();
        assert!(line.starts_with("warning") && both(line), "{told}");
    }
    // The same order is nothing to speak of; without a name in common the order is all there is, and a class of each is
    // named.
    turned(&own, None, &names(own), &teacher);
    let (loss, told, order) = said(&["--distill", "1"]);
    assert!(
        order.is_null() && loss.abs() < 1e-5 && !told.contains("by name") && !told.contains("in their order"),
        "{loss} {told}"
    );
    turned(&other, None, &(0..10).map(|i| format!("kind {i}")).collect::<Vec<_>>(), &teacher);
    let (loss, told, _) = said(&["--distill", "1"]);
    let line = told.lines().find(|line| line.contains("are taken in their order")).unwrap();
    assert!(loss > 0.1 && both(line) && line.contains("`T-shirt/top` is taught what `kind 0` is"), "{loss} {told}");
    // A student without names has the order of the labels, whose names are those of folders.
    fashion::with_metadata(root().join(ANCESTOR), CLASSES, None, &student);
    let data = folder.path().join("data");
    for (index, name) in fashion::NAMES.iter().enumerate() {
        fashion::folder(&data.join(format!("{index} {}", name.replace('/', ""))), index as u8, 2);
    }
    let numbered = |order: [usize; 10]| order.map(|i| format!("{i} {}", fashion::NAMES[i].replace('/', ""))).to_vec();
    turned(&other, None, &numbered(other), &teacher);
    let run = tune(&["--data", text(&data), "--distill", "0.5", "--batch-size", "8"]);
    let report: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["teacher"]["class_order"], json!([3, 1, 6, 0, 2, 4, 7, 9, 8, 5]));
}

/// `run --input-size` is for the teacher as well, whatever size the child has.
pub fn teachers_of_a_whole_run_get_its_image_size(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [data, model, output] = ["data", "model.onnx", "run"].map(|name| folder.path().join(name));
    for class in [0, 1] {
        fashion::folder(&data.join(class.to_string()), class, 8);
    }
    let vit = "fixtures/graphs/hf-vit-dynamic-size-ts17.onnx";
    let common = ["--data", text(&data), "--batch-size", "4", "--steps", "1", "--runtime", runtime];
    done(&[&["tune", vit, "--classes", "2", "-o", text(&model)], &common[..]].concat());
    let sizes = ["--input-size", "32", "--image-size", "16", "--teacher", text(&model), "-o", text(&output)];
    let run = done(&[&["run", text(&model)], &common[..], &sizes].concat());
    let said = String::from_utf8(run.stderr).unwrap();
    let line = said.lines().find(|line| line.contains("the teacher")).unwrap_or_else(|| panic!("{said}"));
    assert!(line.contains(text(&model)) && line.contains("at 32 x 32 pixels"), "{said}");
    let child = json(&["inspect", text(&output.join("tuned.onnx")), "--json"]);
    assert_eq!(child["input"]["size"], json!([16, 16]));
}
