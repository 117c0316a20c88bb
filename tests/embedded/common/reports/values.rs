//! Inputs that normalise themselves: bytes, channels last, 0 to 255, 0 to 1, BGR, and pictures without an axis of
//! images. They were fed with normalised numbers, or ended in a type error of a library.

use std::slice::from_ref;

use offshoot::onnx::{DataType, Model};
use serde_json::{Value, json};

use super::fashion::ANCESTOR;
use super::wrapped::{self, MEAN, STD, before, normalising, rgb};
use crate::common::binary::{done, json, offshoot, refused, text};

const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";
const THIRDS: [f32; 3] = [1.0 / 3.0; 3];
const OPEN: [Option<usize>; 4] = [None, Some(3), Some(28), Some(28)];
const LAST: [Option<usize>; 4] = [None, Some(28), Some(28), Some(3)];

fn evaluated(runtime: &str, model: &str, data: &str, more: &[&str]) -> Value {
    json(&[&["eval", model, "--data", data, "--crop-ratio", "1", "--runtime", runtime, "--json"], more].concat())
}

fn same(found: &Value, expected: &Value) -> bool {
    let close = |key: &str| (found[key].as_f64().unwrap() - expected[key].as_f64().unwrap()).abs() < 2e-4;
    close("top1") && close("loss")
}

fn chain(first: &[(&'static str, Vec<f32>)]) -> Vec<(&'static str, Vec<f32>)> {
    [first, &normalising()].concat()
}

/// Forms of the ancestor: name, model, what `inspect` calls its input, and the type and shape of that.
fn forms() -> Vec<(&'static str, Model, &'static str)> {
    let to_planes = ("Transpose", vec![0.0, 3.0, 1.0, 2.0]);
    let cast = ("Cast", vec![]);
    let scaled = vec![("Mul", vec![1.0 / 127.5]), ("Sub", vec![2.0 * MEAN]), ("Div", vec![2.0 * STD])];
    let bare = chain(&[cast.clone(), ("Unsqueeze", vec![0.0])]);
    let bare_last = chain(&[("Transpose", vec![2.0, 0.0, 1.0]), cast.clone(), ("Unsqueeze", vec![0.0])]);
    let (planes, pixels) = ([Some(3), Some(28), Some(28)], [Some(28), Some(28), Some(3)]);
    vec![
        (
            "u8",
            before(rgb(THIRDS), DataType::Uint8, &LAST, &chain(&[to_planes.clone(), cast.clone()])),
            "picture uint8 [batch,28,28,3]",
        ),
        (
            "u8chw",
            before(rgb(THIRDS), DataType::Uint8, &OPEN, &chain(from_ref(&cast))),
            "picture uint8 [batch,3,28,28]",
        ),
        ("i32", before(rgb(THIRDS), DataType::Int32, &OPEN, &chain(from_ref(&cast))), "picture int32 [batch,3,28,28]"),
        ("f255", before(rgb(THIRDS), DataType::Float, &LAST, &chain(&[to_planes])), "picture float [batch,28,28,3]"),
        ("f255chw", before(rgb(THIRDS), DataType::Float, &OPEN, &scaled), "picture float [batch,3,28,28]"),
        ("unit", before(rgb(THIRDS), DataType::Float, &OPEN, &normalising()[1..]), "picture float [batch,3,28,28]"),
        ("nobatch", before(rgb(THIRDS), DataType::Uint8, &planes, &bare), "picture uint8 [3,28,28]"),
        (
            "single",
            wrapped::single(before(rgb(THIRDS), DataType::Uint8, &pixels, &bare_last)),
            "picture uint8 [28,28,3]",
        ),
    ]
}

/// Whatever the form, the accuracy and the loss are those of the ancestor.
pub fn inputs_are_fed_what_they_declare(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let right = evaluated(runtime, ANCESTOR, IMAGES, &[]);
    assert!(right["top1"].as_f64().unwrap() > 0.92, "{right}");
    for (name, model, input) in forms() {
        let path = folder.path().join(format!("{name}.onnx"));
        model.write(&path).unwrap();
        let shown = String::from_utf8(done(&["inspect", text(&path)]).stdout).unwrap();
        assert!(shown.contains(input), "{name}: {shown}");
        let found = evaluated(runtime, text(&path), IMAGES, &[]);
        assert!(same(&found, &right), "{name}: {} and {}", found["top1"], found["loss"]);
        assert_eq!(found["input"]["transform_from"], json!(["flags", "graph"]), "{name}");
        let said = String::from_utf8(
            offshoot(&["eval", text(&path), "--data", IMAGES, "--limit", "1", "--runtime", runtime]).stderr,
        );
        assert!(!said.unwrap().contains("warning"), "{name}");
    }
}

/// A child is shrunk and tuned with what its ancestor takes, and takes the same.
pub fn children_take_what_their_ancestor_takes(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    for (name, model, _) in forms().into_iter().filter(|f| ["u8", "single"].contains(&f.0)) {
        let [path, small, tuned] =
            ["", "-small", "-tuned"].map(|what| folder.path().join(format!("{name}{what}.onnx")));
        model.write(&path).unwrap();
        let shrink = ["shrink", text(&path), "--images", "fixtures/fashion-png", "--crops", "12", "--to", "90%"];
        done(&[&shrink[..], &["--crop-ratio", "1", "-o", text(&small), "--runtime", runtime]].concat());
        let found = evaluated(runtime, text(&small), IMAGES, &[]);
        assert!(found["top1"].as_f64().unwrap() > 0.6, "{name}: {found}");
        assert_eq!(found["input"]["transform_from"], json!(["flags", "metadata"]));
        let tune = ["tune", text(&path), "--data", IMAGES, "--crop-ratio", "1", "--steps", "1", "--lr", "1e-9"];
        let more = ["--val-split", "0", "--batch-size", "4", "-o", text(&tuned), "--runtime", runtime];
        done(&[&tune[..], &more].concat());
        let found = evaluated(runtime, text(&tuned), IMAGES, &[]);
        assert!(found["top1"].as_f64().unwrap() > 0.92, "{name}: {found}");
        for child in [&small, &tuned] {
            assert_eq!(wrapped::declared(child), wrapped::declared(&path), "{name}");
        }
    }
}

/// Colours in OpenCV's order, where a flag says so; what the graph does with the order of its channels is no secret.
pub fn colours_come_in_the_order_of_the_flag(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    // Red counts most, so that the order matters.
    let shares = [0.8, 0.15, 0.05];
    wrapped::coloured(&path("data"), [0.5, 0.1]);
    let data = path("data");
    let plain = path("plain.onnx");
    let scale = || vec![("Div", vec![255.0]), ("Sub", vec![MEAN]), ("Div", vec![STD])];
    before(rgb(shares), DataType::Float, &OPEN, &scale()).write(&plain).unwrap();
    let right = evaluated(runtime, text(&plain), text(&data), &[]);
    let reversed = path("bgr.onnx");
    let steps = [vec![("Gather", vec![2.0, 1.0, 0.0])], scale()].concat();
    before(rgb(shares), DataType::Float, &OPEN, &steps).write(&reversed).unwrap();
    let wrong = evaluated(runtime, text(&reversed), text(&data), &["--channel-order", "rgb"]);
    assert!(!same(&wrong, &right));
    let found = evaluated(runtime, text(&reversed), text(&data), &["--channel-order", "bgr"]);
    assert!(same(&found, &right), "{found}");
    assert_eq!(found["input"]["transform"]["channel_order"], "bgr");
    let eval = |more: &[&str]| {
        let all = [&["eval", text(&reversed), "--data", text(&data), "--runtime", runtime], more].concat();
        String::from_utf8(offshoot(&all).stderr).unwrap()
    };
    assert!(eval(&[]).contains("reverses the order of its channels"));
    assert!(!eval(&["--channel-order", "bgr"]).contains("warning"));

    // Means and deviations are in the model's order: this model has a normalisation for each channel of its own.
    let three = path("three.onnx");
    rgb(shares).write(&three).unwrap();
    let flags = |mean: &str, order: &str| {
        evaluated(runtime, text(&three), text(&data), &["--mean", mean, "--std", "0.353", "--channel-order", order])
    };
    let mirrored = path("mirrored.onnx");
    before(rgb(shares), DataType::Float, &OPEN, &[("Gather", vec![2.0, 1.0, 0.0])]).write(&mirrored).unwrap();
    let other = evaluated(
        runtime,
        text(&mirrored),
        text(&data),
        &["--mean", "0.1,0.2,0.3", "--std", "0.353", "--channel-order", "bgr"],
    );
    assert!(same(&other, &flags("0.3,0.2,0.1", "rgb")));
}

/// A graph that normalises and a transform that does it again are a warning; bytes less 128 are asked for.
pub fn normalising_twice_is_said(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let twice = path("twice.onnx");
    before(rgb(THIRDS), DataType::Float, &OPEN, &normalising()).write(&twice).unwrap();
    let eval = |model: &str, more: &[&str]| -> Vec<String> {
        let all = [&["eval", model, "--data", IMAGES, "--limit", "2", "--runtime", runtime], more].concat();
        all.into_iter().map(str::to_string).collect()
    };
    let flags = eval(text(&twice), &["--mean", "0.5", "--std", "0.5"]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let said = String::from_utf8(offshoot(&flags).stderr).unwrap();
    assert!(said.contains("normalised twice: the graph does it itself, and the flags as well"), "{said}");

    let signed = path("signed.onnx");
    let steps = [vec![("Cast", vec![]), ("Add", vec![128.0])], normalising()].concat();
    before(rgb(THIRDS), DataType::Int8, &OPEN, &steps).write(&signed).unwrap();
    let all = eval(text(&signed), &[]);
    refused(&all.iter().map(String::as_str).collect::<Vec<_>>(), &["int8", "--mean 0.50196 --std 0.00392157"]);
    let found = evaluated(runtime, text(&signed), IMAGES, &["--mean", "0.50196", "--std", "0.00392157"]);
    assert!(same(&found, &evaluated(runtime, ANCESTOR, IMAGES, &[])), "{found}");
}
