//! Models of several inputs (scripts/fixtures/feeds.py): `--feed` gives the others a value, `--of` picks an output.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ndarray::{Array1, Array3, Array4, ArrayD};
use ndarray_npy::{NpzWriter, write_npy};
use offshoot::data::PreprocessFlags;
use offshoot::graph::declared_dims;
use offshoot::onnx::Model;
use offshoot::opening::Opening;
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use crate::common::binary::{PLAIN, done, json as json_of, offshoot, refused, text};
use crate::common::hash::values;
use crate::common::root;

const FOLDER: &str = "fixtures/reports/feeds";
const IMAGES: usize = 6;

fn golden(keys: &[&str]) -> Value {
    let all: Value = serde_json::from_slice(&fs::read(root().join(FOLDER).join("golden.json")).unwrap()).unwrap();
    keys.iter().fold(all, |found, key| found[key].clone())
}

fn images(columns: usize) -> Array4<f32> {
    Array4::from_shape_vec((IMAGES, 3, 32, columns), values(IMAGES * 3 * 32 * columns, 7)).unwrap()
}

/// Files that the script's numbers were made of: images, the same with labels, and a mask whose right half is zero.
fn files(folder: &Path) -> [PathBuf; 3] {
    let [x, labelled, mask] = ["x.npy", "labelled.npz", "mask.npy"].map(|name| folder.join(name));
    write_npy(&x, &images(32)).unwrap();
    let mut archive = NpzWriter::new(File::create(&labelled).unwrap());
    archive.add_array("x", &images(32)).unwrap();
    archive.add_array("y", &Array1::from_iter((0..IMAGES as i64).map(|i| i % 3))).unwrap();
    archive.finish().unwrap();
    write_npy(&mask, &Array3::from_shape_fn((1, 32, 32), |(_, _, column)| i64::from(column < 16))).unwrap();
    [x, labelled, mask]
}

/// What a file says of the images, with feeds, of one output.
fn said(runtime: &Arc<Runtime>, path: &Path, feeds: &[&str], of: Option<&str>, columns: usize) -> ArrayD<f32> {
    let feeds = feeds.iter().map(|feed| feed.parse().unwrap()).collect();
    let pictures = Some(PreprocessFlags::default());
    let opening = Opening { feeds, of: of.map(str::to_owned), pictures, ..Opening::default() };
    let model = opening.open(path, None).unwrap().model;
    let mut session = runtime.load(&model, IMAGES, [32, columns]).unwrap();
    session.run(images(columns).view()).unwrap().remove(0)
}

fn agree(found: impl IntoIterator<Item = f64>, expected: &Value, tolerance: f64, what: &str) {
    let found: Vec<f64> = found.into_iter().collect();
    let expected = expected.as_array().unwrap_or_else(|| panic!("{what}: {expected}"));
    assert_eq!(found.len(), expected.len(), "{what}");
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e.as_f64().unwrap()).abs() < tolerance, "{what}: {f}, not {e}");
    }
}

fn names(path: &Path) -> [Vec<String>; 2] {
    let model = Model::open(path).unwrap();
    let names = |list: &[offshoot::onnx::proto::ValueInfoProto]| list.iter().map(|v| v.name().to_string()).collect();
    [names(&model.graph().input), names(&model.graph().output)]
}

/// A child takes what its ancestor takes, and says what PyTorch says without the other heads, whatever it is fed.
pub fn children_keep_what_was_fed(runtime: &Arc<Runtime>, kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mask = text(&files(folder.path())[2]).to_string();
    let child = folder.path().join("child.onnx");
    for model in ["masked-ts", "masked-dynamo", "masked-fixed"] {
        let ancestor = root().join(format!("{FOLDER}/{model}.onnx"));
        for (heads, feed) in [("4", "ones".to_string()), ("2", "ones".into()), ("2", mask.clone())] {
            let grow = ["grow", text(&ancestor), "--no-images", "--heads", heads, "--verify", "--runtime", kind];
            let given = format!("pixel_mask={feed}");
            let run = done(&[&grow[..], &["--feed", &given, "--force", "-o", text(&child)]].concat());
            let told = String::from_utf8(run.stderr).unwrap();
            assert!(told.contains("`pixel_mask` is ") && told.contains("removed"), "{model}: {told}");
            let (before, after) = (Model::open(&ancestor).unwrap(), Model::open(&child).unwrap());
            assert_eq!(before.graph().input, after.graph().input, "{model}");
            assert!(!format!("{:?}", after.graph().node).contains("offshoot.feed"), "{model}");
            for (name, feed) in [("ones", "ones"), ("half", mask.as_str())] {
                let found = said(runtime, &child, &[&format!("pixel_mask={feed}")], None, 32);
                let what = format!("{model}, {heads} heads, {name}");
                agree(found.iter().map(|&v| f64::from(v)), &golden(&["masked", name, heads]), 1e-4, &what);
            }
        }
    }
    // A batch that is opened is open for every input, and so is one that is fixed.
    let ancestor = format!("{FOLDER}/masked-fixed.onnx");
    for (axis, batch) in [("open", None), ("3", Some(3))] {
        let grow = ["grow", &ancestor, "--no-images", "--batch-axis", axis, "--feed", "pixel_mask=ones"];
        done(&[&grow[..], &["--runtime", kind, "--verify", "--force", "-o", text(&child)]].concat());
        let grown = Model::open(&child).unwrap();
        let batches: Vec<Option<usize>> = grown.graph().input.iter().map(|v| declared_dims(v).unwrap()[0]).collect();
        assert_eq!(batches, [batch; 2], "--batch-axis {axis}");
        let found = said(runtime, &child, &[&format!("pixel_mask={mask}")], None, 32);
        agree(found.iter().map(|&v| f64::from(v)), &golden(&["masked", "half", "4"]), 1e-4, axis);
    }
}

/// Every command that runs a model runs it with what it is fed: densities, losses and curves are PyTorch's.
pub fn commands_run_with_what_is_fed(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [x, labelled, mask] = files(folder.path());
    let [x, labelled, mask] = [text(&x), text(&labelled), text(&mask)];
    let out = |name: &str| folder.path().join(name);
    for model in ["masked-ts", "masked-dynamo"] {
        let path = format!("{FOLDER}/{model}.onnx");
        for (name, value) in [("ones", "ones"), ("half", mask)] {
            let feed = format!("pixel_mask={value}");
            let fed = ["--feed", &feed, "--runtime", kind, "--json"];
            let wanted = golden(&["masked", name]);
            let found = json_of(&[&["density", &path, "--images", x], &fed[..]].concat());
            for (own, expected) in
                found["densities"].as_array().unwrap().iter().zip(wanted["densities"].as_array().unwrap())
            {
                let own = own.as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
                agree(own, expected, 1e-3, &format!("{model}, {name}"));
            }
            let report = &found["input"]["fed"][0];
            assert_eq!((&report["input"], &report["decides"]), (&json!("pixel_mask"), &json!(false)));
            assert_eq!((&found["input"]["outputs"], &report["shape"]), (&json!(["logits"]), &json!([null, 32, 32])));
            let found = json_of(&[&["eval", &path, "--data", labelled], &fed[..]].concat());
            let loss = found["loss"].as_f64().unwrap();
            assert!((loss - wanted["losses"][0].as_f64().unwrap()).abs() < 1e-4, "{model}, {name}: {loss}");
            let tuned = out("tuned.onnx");
            let sgd = ["--optimizer", "sgd", "--momentum", "0", "--weight-decay", "0", "--lr", "0.05", "--epochs", "3"];
            let tune = ["tune", &path, "--data", labelled, "--batch-size", "6", "--force", "-o", text(&tuned)];
            let found = json_of(&[&tune[..], &sgd, &PLAIN, &fed].concat());
            let loss = found["last_loss"].as_f64().unwrap();
            assert!((loss - wanted["losses"][2].as_f64().unwrap()).abs() < 1e-4, "{model}, {name}: {loss}");
            // The tuned model takes the mask, too, and has made the third step.
            let found = json_of(&[&["eval", text(&tuned), "--data", labelled], &fed[..]].concat());
            let loss = found["loss"].as_f64().unwrap();
            assert!((loss - wanted["losses"][3].as_f64().unwrap()).abs() < 1e-4, "{model}, {name}: {loss}");
        }
        let fed = ["--feed", &format!("pixel_mask={mask}"), "--runtime", kind];
        let [gene, child] = ["gene.onnx", "child.onnx"].map(out);
        done(&[&["condense", &path, "--images", x, "--force", "-o", text(&gene)], &fed[..]].concat());
        let shrink = ["shrink", &path, "--images", x, "--to", "75%", "--crops", "8", "--force", "-o", text(&child)];
        done(&[&shrink[..], &fed].concat());
        assert_eq!([names(&gene), names(&child)], [names(&root().join(&path)), names(&root().join(&path))]);
        let found = json_of(&[&["compare", &path, text(&child), "--images", x, "--json"], &fed[..]].concat());
        assert_eq!(found["input"]["b"]["fed"], found["input"]["a"]["fed"]);
        let error = found["relative_error"].as_f64().unwrap();
        assert!(error > 0.0 && error < 1.0, "{model}: {error}");
    }
}

/// An output that images alone make is picked by `--of`; without it all of these count.
pub fn one_output_of_several_counts(runtime: &Arc<Runtime>, kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let x = files(folder.path())[0].clone();
    let child = folder.path().join("child.onnx");
    for exporter in ["ts", "dynamo"] {
        let path = format!("{FOLDER}/two-{exporter}.onnx");
        let found = said(runtime, &root().join(&path), &[], Some("image_embeds"), 32);
        agree(found.iter().map(|&v| f64::from(v)), &golden(&["two", "4"]), 1e-4, exporter);
        let density = ["density", &path, "--images", text(&x), "--runtime", kind, "--json"];
        let outputs = |more: &[&str]| {
            let run = done(&[&density[..], more].concat());
            let found: Value = serde_json::from_slice(&run.stdout).unwrap();
            (found["input"]["outputs"].clone(), String::from_utf8(run.stderr).unwrap())
        };
        let (all, told) = outputs(&[]);
        assert_eq!(all, json!(["image_embeds", "features"]));
        assert!(
            told.contains("only images are fed: `scores`, `text_embeds`, made from `input_ids`, are left out"),
            "{told}"
        );
        let (one, told) = outputs(&["--of", "image_embeds"]);
        assert_eq!(one, json!(["image_embeds"]));
        assert!(told.contains("`image_embeds` is the output that counts"), "{told}");
        // With token numbers every output can be computed.
        let ids = ["--feed", "input_ids=1,2,3,4,5,6"];
        assert_eq!(outputs(&ids).0, json!(["scores", "image_embeds", "text_embeds", "features"]));
        assert_eq!(outputs(&[&ids[..], &["--of", "scores"]].concat()).0, json!(["scores"]));
        let shrink = ["shrink", &path, "--images", text(&x), "--to", "75%", "--crops", "8", "--of", "image_embeds"];
        done(&[&shrink[..], &["--runtime", kind, "--force", "-o", text(&child)]].concat());
        assert_eq!(names(&child), [vec!["pixel_values".to_string()], vec!["image_embeds".into()]]);
        // A child that is grown keeps all, and one output is verified.
        let grow =
            ["grow", &path, "--no-images", "--heads", "2", "--verify", "--of", "image_embeds", "--runtime", kind];
        let told = String::from_utf8(done(&[&grow[..], &["--force", "-o", text(&child)]].concat()).stderr).unwrap();
        assert!(told.contains("verified on") && told.contains("removed"), "{told}");
        assert_eq!(names(&child), names(&root().join(&path)));
        let found = said(runtime, &child, &[], Some("image_embeds"), 32);
        agree(found.iter().map(|&v| f64::from(v)), &golden(&["two", "2"]), 1e-4, exporter);
        refused(
            &[&density[..], &["--of", "text_embeds"]].concat(),
            &["the output `text_embeds` needs inputs beside the image: `input_ids`", "--feed input_ids=ones"],
        );
        refused(
            &[&density[..], &["--of", "logits"]].concat(),
            &["no output `logits`", "its outputs are `scores`, `image_embeds`, `text_embeds`, `features`"],
        );
    }
}

/// Shapes that are computed from an input are known once it is fed; before that, the error names it.
pub fn inputs_that_decide_shapes_are_fed(runtime: &Arc<Runtime>, kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let x = folder.path().join("x.npy");
    write_npy(&x, &images(48)).unwrap();
    let path = format!("{FOLDER}/grid-ts.onnx");
    let density = ["density", &path, "--images", text(&x), "--runtime", kind, "--json"];
    refused(&["inspect", &path], &["`Resize`: neither its sizes nor its scales are known", "`grid`", "--feed grid="]);
    refused(&density, &["every output needs inputs beside the image: `grid`", "--feed grid="]);
    let feed = ["--feed", "grid=4,6"];
    let run = done(&[&density[..], &feed].concat());
    let told = String::from_utf8(run.stderr).unwrap();
    assert!(told.contains("`grid` is [4, 6] for every sample: shapes are computed from it"), "{told}");
    let found: Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(found["input"]["fed"][0]["decides"], json!(true));
    let wanted = golden(&["grid", "densities"]);
    for (own, expected) in found["densities"].as_array().unwrap().iter().zip(wanted.as_array().unwrap()) {
        agree(own.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()), expected, 1e-3, "densities");
    }
    let inspected = json_of(&[&["inspect", &path, "--json"], &feed[..]].concat());
    assert_eq!(inspected["inputs"].as_array().unwrap().len(), 2);
    assert_eq!((&inspected["grid"], &inspected["fed"][0]["value"]), (&json!([4, 6]), &json!("[4, 6]")));
    let child = folder.path().join("child.onnx");
    let grow = ["grow", &path, "--no-images", "--heads", "2", "--verify", "--runtime", kind, "--force"];
    done(&[&grow[..], &feed, &["-o", text(&child)]].concat());
    assert_eq!(names(&child), names(&root().join(&path)));
    let found = said(runtime, &child, &["grid=[4,6]"], None, 48);
    agree(found.iter().map(|&v| f64::from(v)), &golden(&["grid", "2"]), 1e-4, "grid");
    // Another grid fits no image of this size, and is refused.
    let wrong = offshoot(&[&density[..], &["--feed", "grid=4,5"]].concat());
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
}

/// What fits no input is an error that lists them.
pub fn wrong_feeds_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let [x, _, mask] = files(folder.path());
    let (path, listed) = (format!("{FOLDER}/masked-ts.onnx"), "its inputs are `pixel_values` float [batch, 3, 32, 32]");
    let refuse = |feed: &str, says: &str| {
        let hint = if says.starts_with("os error") { "hint: give the path of an .npy file" } else { listed };
        refused(&["density", &path, "--images", text(&x), "--feed", feed], &[says, hint]);
    };
    refuse("mask=ones", "the model has no input `mask` to feed");
    refuse("pixel_values=ones", "`pixel_values` is the image");
    refuse("pixel_mask=0.5", "0.5 is no int64 of the input `pixel_mask`");
    refuse("pixel_mask=1,0,1", "a list of 3 numbers does not fill a sample of `pixel_mask` int64 [batch, 32, 32]");
    refuse("pixel_mask=missing.npy", "os error 2");
    let given = |name: &str| format!("pixel_mask={}", text(&file(name)));
    write_npy(file("floats.npy"), &Array3::<f32>::ones((1, 32, 32))).unwrap();
    refuse(&given("floats.npy"), "its array is of type '<f4', and the input takes int64");
    write_npy(file("flat.npy"), &Array1::<i64>::ones(1024)).unwrap();
    refuse(&given("flat.npy"), "its array has 1 dimensions, and `pixel_mask` int64 [batch, 32, 32] is to be fed");
    write_npy(file("small.npy"), &Array3::<i64>::ones((1, 16, 32))).unwrap();
    refuse(&given("small.npy"), "an array [1, 16, 32] does not fit `pixel_mask` int64 [batch, 32, 32]");
    write_npy(file("many.npy"), &Array3::<i64>::ones((2, 32, 32))).unwrap();
    refuse(&given("many.npy"), "with one row that is repeated for each sample");
    refused(
        &["density", &path, "--images", text(&x), "--feed", "pixel_mask=ones", "--feed", &given("mask.npy")],
        &["the input `pixel_mask` is fed twice", listed],
    );
    assert!(mask.exists());
    for (feed, says) in
        [("pixel_mask", "`NAME=VALUE`"), ("pixel_mask=many", "`many` is no value"), ("=1", "`NAME=VALUE`")]
    {
        let output = offshoot(&["density", &path, "--images", text(&x), "--feed", feed]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && told.contains(says), "{feed}: {told}");
    }
    // A fixed mask has the size of the images that the model takes.
    let child = file("child.onnx");
    let grow = ["grow", &path, "--no-images", "--image-size", "64", "--feed", "pixel_mask=ones", "-o", text(&child)];
    refused(&grow, &["the input `pixel_mask` keeps its shape"]);
}
