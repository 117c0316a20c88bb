//! Studies open models through the door of the commands: what a command finds of a file holds in a study, too.

use std::fs;
use std::path::Path;

use ndarray::{Array1, Array4};
use ndarray_npy::{NpzReader, NpzWriter};
use serde_json::{Value, json};

use super::batches::{fixture, golden};
use super::classifiers::same;
use super::fashion::ANCESTOR;
use super::labelled;
use super::wrapped::{self, MEAN, STD};
use crate::common::binary::{done, json as json_of, refused, text};
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

/// Every kind of method on texts, of which the ancestor has a classifier or none.
const TEXTS: &str = r#"
training = { epochs = 1, batch-size = 2 }
[ancestor.texts]
model = 'FOLDER/classifier-ts.onnx'
texts = 'FOLDER/sentences.txt'
[ancestor.arrays]
model = 'FOLDER/classifier-ts.onnx'
inputs = 'FOLDER/sentences.npz'
[ancestor.encoder]
model = 'FOLDER/bert-ts.onnx'
texts = 'FOLDER/sentences.txt'
pooling = "last"
[data.texts]
texts = 'FOLDER/labelled.jsonl'
[data.numbers]
texts = 'FOLDER/labelled.jsonl'
label-column = "class"
text-column = "text"
tokenizer = 'FOLDER'
max-length = 12
[data.arrays]
inputs = 'ARRAYS'
[shape.whole]
[shape.half]
width = 2
[method.kept]
init = "pretrain-finetune"
classifier = "kept"
[method.clusters]
init = "cluster-learngene"
eps = 0.3
[method.fitted]
init = "cluster-learngene"
projection = "fitted"
[method.shrink]
init = "shrink"
shape = { parameters = 4000 }
[method.searched]
init = "cluster-learngene"
search = { eps = [0, 1], ffn-eps = [0], width = [1, 2], inherited = 1.0, parameters = 0.98 }
[method.weight-selection]
init = "weight-selection"
[method.other]
init = "model"
model = 'FOLDER/classifier-ts.onnx'
[[grid]]
ancestors = ["texts"]
data = ["texts", "numbers"]
shapes = ["whole"]
methods = ["kept", "shrink", "other"]
seeds = [0]
[[grid]]
ancestors = ["texts"]
data = ["texts"]
shapes = ["half"]
methods = ["clusters", "fitted", "searched", "weight-selection"]
seeds = [0]
[[grid]]
ancestors = ["arrays"]
data = ["arrays"]
shapes = ["whole"]
methods = ["kept", "shrink", "other"]
seeds = [0]
[[grid]]
ancestors = ["arrays"]
data = ["arrays"]
shapes = ["half"]
methods = ["clusters", "fitted", "searched", "weight-selection"]
seeds = [0]
[[grid]]
ancestors = ["encoder"]
data = ["texts"]
shapes = ["half"]
methods = ["clusters", "from-scratch"]
seeds = [0]
[method.from-scratch]
init = "from-scratch"
"#;

/// Cells of texts are those of the arrays that transformers makes of them; before training a model is what `eval` says.
pub fn texts_are_samples_of_a_study(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let [study, results] = ["study.toml", "results"].map(|name| folder.path().join(name));
    let texts = root().join("fixtures/reports/texts");
    let arrays = labelled::arrays(folder.path());
    let content = TEXTS.replace("FOLDER", text(&texts)).replace("ARRAYS", text(&arrays));
    let run = |content: &str, more: &[&str]| {
        fs::write(&study, content).unwrap();
        let common = ["study", text(&study), "--folder", text(&results), "--runtime", runtime, "--threads", "1"];
        [&common[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let owned = run(&content, &["--json"]);
    let printed = done(&owned.iter().map(String::as_str).collect::<Vec<_>>());
    let (report, said): (Value, _) =
        (serde_json::from_slice(&printed.stdout).unwrap(), String::from_utf8(printed.stderr).unwrap());
    assert_eq!(report["inputs"]["texts"]["texts"]["padded_to"], 12, "{report}");
    assert!(said.contains("`texts`: tokens by `"), "{said}");
    let cells: Vec<Value> = (fs::read_dir(results.join("cells")).unwrap())
        .map(|entry| serde_json::from_slice(&fs::read(entry.unwrap().path()).unwrap()).unwrap())
        .collect();
    assert_eq!(cells.len(), 19);
    // Nothing is drawn of texts at random but their order.
    assert!(cells.iter().all(|cell| cell["settings"]["training"]["augment"] == "none"));
    let of = |ancestor: &str, data: &str, method: &str| {
        let is = |cell: &&Value| [&cell["ancestor"], &cell["data"], &cell["method"]] == [ancestor, data, method];
        cells.iter().find(is).unwrap_or_else(|| panic!("{ancestor}, {data}, {method}"))
    };
    for cell in cells.iter().filter(|cell| cell["ancestor"] != "encoder") {
        let like = of("arrays", "arrays", cell["method"].as_str().unwrap());
        for field in ["epochs", "parameters", "inherited", "macs", "images", "learngene", "search"] {
            assert_eq!(cell[field], like[field], "{cell}");
        }
    }
    let judged = json_of(&[
        "eval",
        text(&texts.join("classifier-ts.onnx")),
        "--texts",
        text(&texts.join("labelled.jsonl")),
        "--val-split",
        "0.2",
        "--part",
        "validation",
        "--runtime",
        runtime,
        "--json",
    ]);
    let start = &of("texts", "texts", "kept")["epochs"][0];
    same(&[start["loss"].as_f64().unwrap()], &json!([judged["loss"]]), "before training");
    assert_eq!((&start["epoch"], &start["top1"]), (&json!(0), &judged["top1"]));
    let shrunk = of("texts", "texts", "shrink");
    assert!(shrunk["parameters"].as_u64().unwrap() <= 4000, "{shrunk}");
    assert!(of("encoder", "texts", "clusters")["inherited"].as_u64() > Some(0));
    let page = fs::read_to_string(results.join("study.html")).unwrap();
    assert!(page.contains("density: texts") && page.contains("distance (tokens)"), "unit");
    // What else decides on the tokens makes other cells.
    let listed = |content: &str| {
        let owned = run(content, &["--dry-run"]);
        let list = done(&owned.iter().map(String::as_str).collect::<Vec<_>>());
        String::from_utf8(list.stdout).unwrap().matches("to do").count()
    };
    assert_eq!(listed(&content), 0);
    assert_eq!(listed(&content.replace("max-length = 12", "max-length = 6")), 3);
    assert_eq!(listed(&content.replace("pooling = \"last\"", "pooling = \"mean\"")), 2);
}

/// One source of each kind; keys that are for another are refused before any cell.
pub fn samples_of_a_study_come_from_one_place() {
    let folder = tempfile::tempdir().unwrap();
    let study = folder.path().join("study.toml");
    let good = TEXTS.replace("FOLDER", text(&root().join("fixtures/reports/texts")));
    let good = good.replace("data = [\"arrays\"]", "data = [\"texts\"]");
    let data = "[data.texts]\n";
    let ancestor = "[ancestor.texts]\n";
    for (from, to, says) in [
        (
            data,
            "[data.texts]\npath = 'a'\n",
            &["[data.texts]: `path` and `texts` both give samples", "give one of"][..],
        ),
        (data, "[data.texts]\ninputs = 'a'\n", &["[data.texts]: `inputs` and `texts` both give samples"]),
        (ancestor, "[ancestor.texts]\nimages = 'a'\n", &["[ancestor.texts]: `images` and `texts` both give samples"]),
        (ancestor, "[ancestor.texts]\nimage-size = 8\n", &["`image-size` is for images, and there are none"]),
        ("inputs = 'FOLDER", "max-length = 4\ninputs = 'FOLDER", &["`max-length` is for texts, and there are none"]),
        ("\ntexts = 'FOLDER/labelled.jsonl'\nlabel", "\npath = 'a'\nlabel", &["`text-column` is for texts"]),
        (
            "\ntexts = 'FOLDER/labelled.jsonl'\n[data.n",
            "\n[data.n",
            &["[data.texts]: nothing says where the samples are"],
        ),
        (
            "\ntexts = 'FOLDER/labelled.jsonl'\n[data.n",
            "\npath = 'Cargo.toml'\n[data.n",
            &["[data.texts]: they are images, and the ancestor `texts` is measured on arrays or texts"],
        ),
        ("batch-size = 2", "batch-size = 2, augment = \"standard\"", &["`augment = \"standard\"` is for images"]),
        (
            "methods = [\"kept\"",
            "attention = true\nmethods = [\"kept\"",
            &["`attention` draws what heads see of images"],
        ),
        ("label-column = \"class\"", "label-column = \"kind\"", &["labelled.jsonl", "it has no column `kind`"]),
        ("pooling = \"last\"", "pooling = \"first\"", &["`pooling`: `first` is none of class-token, mean, last"]),
        (ancestor, "[ancestor.texts]\npooling = \"mean\"\n", &["the ancestor has a classifier"]),
    ] {
        let from = from.replace("FOLDER", text(&root().join("fixtures/reports/texts")));
        let to = to.replace("FOLDER", text(&root().join("fixtures/reports/texts")));
        let content = good.replace(&from, &to);
        assert_ne!(content, good, "{from}");
        fs::write(&study, content).unwrap();
        let results = folder.path().join("results");
        refused(&["study", text(&study), "--folder", text(&results), "--runtime", "tract"], says);
        assert!(!results.exists());
    }
}
