//! Studies open models through the door of the commands: what a command finds of a file holds in a study, too.

use std::fs;
use std::path::Path;

use ndarray::{Array1, Array4};
use ndarray_npy::{NpzReader, NpzWriter};
use serde_json::{Value, json};

use super::batches::{fixture, golden};
use super::classifiers::same;
use super::fashion::ANCESTOR;
use super::wrapped::{self, MEAN, STD};
use crate::common::binary::{done, text};
use crate::common::root;

/// One cell of every ancestor, all of it with its own classifier, judged before an epoch in which nothing is learned.
const STUDY: &str = r#"
training = { epochs = 1, batch-size = 8, lr = 1e-30, weight-decay = 0, augment = "none" }
[data.images]
path = "DATA"
[shape.whole]
[method.kept]
init = "pretrain-finetune"
classifier = "kept"
[[grid]]
ancestors = [ANCESTORS]
data = ["images"]
shapes = ["whole"]
methods = ["kept"]
seeds = [0]
"#;

/// Writes a study of ancestors, each with its name, file and further keys.
fn write(study: &Path, data: &Path, ancestors: &[(&str, &Path, &str)]) {
    let names: Vec<String> = ancestors.iter().map(|(name, ..)| format!("\"{name}\"")).collect();
    let mut content = STUDY.replace("DATA", text(data)).replace("ANCESTORS", &names.join(", "));
    for (name, model, more) in ancestors {
        let (model, data) = (text(model), text(data));
        content += &format!("[ancestor.{name}]\nmodel = '{model}'\nimages = '{data}'\nlimit = 8\n{more}\n");
    }
    fs::write(study, content).unwrap();
}

/// What a study prints and says, and loss and accuracy of every ancestor before training.
fn computed(runtime: &str, study: &Path, more: &[&str]) -> (Value, String, Vec<(String, Value)>) {
    let results = study.with_extension("results");
    let common = ["study", text(study), "--folder", text(&results), "--runtime", runtime, "--threads", "1", "--json"];
    let run = done(&[&common[..], more].concat());
    let said = String::from_utf8(run.stderr).unwrap();
    let cells = fs::read_dir(results.join("cells")).unwrap().map(|e| e.unwrap().path());
    let cells = cells.map(|path| serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap());
    let starts = cells.map(|cell| (cell["ancestor"].as_str().unwrap().to_owned(), cell["epochs"][0].clone())).collect();
    (serde_json::from_slice(&run.stdout).unwrap(), said, starts)
}

/// Files that declare an open batch which their graphs do not have are judged as PyTorch judges each image alone, and
/// that is said.
pub fn batches_that_are_not_open_are_found(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let (study, data) = (folder.path().join("study.toml"), folder.path().join("data.npz"));
    let source = root().join("fixtures/reports/classifiers/images.npz");
    let mut source = NpzReader::new(fs::File::open(source).unwrap()).unwrap();
    let (x, y): (Array4<f32>, Array1<i64>) = (source.by_name("x").unwrap(), source.by_name("y").unwrap());
    let mut split = NpzWriter::new(fs::File::create(&data).unwrap());
    for side in ["train", "test"] {
        split.add_array(format!("x_{side}"), &x).unwrap();
        split.add_array(format!("y_{side}"), &y).unwrap();
    }
    split.finish().unwrap();
    let entries: Vec<Value> = golden().1.into_iter().filter(|e| e["declared"].is_null()).collect();
    assert_eq!(entries.len(), 3);
    let files: Vec<_> = entries.iter().map(|e| fixture(e["file"].as_str().unwrap())).collect();
    let names = ["first", "second", "third"];
    let ancestors: Vec<(&str, &Path, &str)> = names.iter().zip(&files).map(|(n, f)| (*n, f.as_path(), "")).collect();
    write(&study, &data, &ancestors);
    let (_, said, starts) = computed(runtime, &study, &[]);
    assert_eq!(said.matches("declares an open batch and has none").count(), 3, "{said}");
    for (name, entry) in names.iter().zip(&entries) {
        let start = &starts.iter().find(|(n, _)| n == name).unwrap().1;
        same(&[start["loss"].as_f64().unwrap()], &json!([entry["loss"]]), entry["file"].as_str().unwrap());
        assert_eq!((&start["epoch"], &start["top1"]), (&json!(0), &entry["top1"]), "{entry}");
    }
}

/// A configuration beside an ancestor is used and named, in a line and in the JSON; another one makes another cell.
pub fn transforms_beside_the_model_are_read(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [study, model, config] =
        ["study.toml", "rgb.onnx", "preprocessor_config.json"].map(|name| folder.path().join(name));
    let (ancestor, data) = (root().join(ANCESTOR), root().join("fixtures/fashion-images.idx3-ubyte"));
    wrapped::rgb([1.0 / 3.0; 3]).write(&model).unwrap();
    let put = |mean: f32| {
        let processor = json!({
            "image_processor_type": "ViTImageProcessor", "size": {"height": 28, "width": 28}, "resample": 3,
            "image_mean": [mean, mean, mean], "image_std": [STD, STD, STD],
        });
        fs::write(&config, processor.to_string()).unwrap();
    };
    put(MEAN);
    write(&study, &data, &[("own", &ancestor, ""), ("beside", &model, "")]);
    let (report, said, starts) = computed(runtime, &study, &[]);
    let of = |name: &str| starts.iter().find(|(n, _)| n == name).unwrap().1.clone();
    let (own, beside) = (of("own"), of("beside"));
    assert!(own["top1"].as_f64().unwrap() > 0.85, "{own}");
    same(&[beside["loss"].as_f64().unwrap()], &json!([own["loss"]]), "the configuration");
    assert_eq!(report["inputs"]["own"]["transform_from"], json!(["metadata"]));
    assert_eq!(report["inputs"]["beside"]["transform_from"], json!([text(&config)]));
    assert!(said.contains(&format!("`beside`: images of 28 x 28 pixels, mean {MEAN}")), "{said}");

    let listed = |more: &[&str]| {
        let listed = ["study", text(&study), "--dry-run", "--runtime", runtime];
        let run = done(&[&listed[..], &["--folder", text(&study.with_extension("results"))], more].concat());
        (String::from_utf8(run.stdout).unwrap(), String::from_utf8(run.stderr).unwrap())
    };
    let missing = |list: &str| list.lines().filter(|line| line.trim_end().ends_with("to do")).count();
    assert_eq!(missing(&listed(&[]).0), 0);
    put(0.5);
    assert_eq!(missing(&listed(&[]).0), 1);
    // What nobody says is a warning here as well, and so is a size that is said.
    fs::remove_file(&config).unwrap();
    let said = listed(&[]).1;
    assert!(said.contains("`beside`: nothing says how pictures are normalised"), "{said}");
    let open = root().join("fixtures/reports/sizes/dinov3-open.onnx");
    let sized = |more: &str| {
        write(&study, &data, &[("open", &open, more)]);
        let content = fs::read_to_string(&study).unwrap().replace("classifier = \"kept\"", "");
        fs::write(&study, content).unwrap();
        listed(&[]).1
    };
    assert!(sized("").contains("`open`: nothing says which image size"));
    let said = sized("input-size = 64");
    assert!(said.contains("`open`: images of 64 x 64 pixels (from the flags)"), "{said}");
}
