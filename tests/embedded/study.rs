//! `offshoot study` through the binary, on the embedded runtime.

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array4};
use ndarray_npy::NpzWriter;
use serde_json::Value;

use crate::common::binary::{done, json, offshoot, refused, text};
use crate::common::root;

/// A folder with a data set of three classes that differ in their brightness, and a study of it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(study: &str) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        let pictures = |count: usize, offset: usize| {
            let pixel = |(i, y, x, c): (usize, usize, usize, usize)| {
                (50 * (i % 3) + (7 * (i + offset) + 13 * y + 29 * x + 5 * c) % 90) as u8
            };
            let labels: Array1<i64> = (0..count).map(|i| (i % 3) as i64).collect();
            (Array4::from_shape_fn((count, 28, 28, 3), pixel), labels)
        };
        let mut npz = NpzWriter::new(fs::File::create(folder.path("tiny.npz")).unwrap());
        for (side, count, offset) in [("train", 24, 0), ("test", 12, 1000)] {
            let (x, y) = pictures(count, offset);
            npz.add_array(format!("x_{side}"), &x).unwrap();
            npz.add_array(format!("y_{side}"), &y).unwrap();
        }
        npz.finish().unwrap();
        folder.write("study.toml", study);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Names and contents of the cells in a folder of results.
    fn cells(&self, results: &str) -> Vec<(String, Value)> {
        let folder = self.path(results).join("cells");
        let mut cells: Vec<(String, Value)> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter(|p| p.extension().is_some_and(|e| e == "json"))
            .map(|p| (name(&p), serde_json::from_slice(&fs::read(&p).unwrap()).unwrap()))
            .collect();
        cells.sort_by(|a, b| a.0.cmp(&b.0));
        cells
    }

    fn study<'a>(&'a self, study: &'a Path, results: &'a Path) -> Vec<&'a str> {
        vec!["study", text(study), "--folder", text(results), "--runtime", "tract", "--threads", "1"]
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_string()
}

fn ancestor(name: &str, model: &str) -> String {
    let model = root().join(model);
    format!("[ancestor.{name}]\nmodel = '{}'\nimages = 'tiny.npz'\nlimit = 8\n", model.display())
}

const COMMON: &str = r#"
reference = "from-scratch"
training = { epochs = 2, batch-size = 8, augment = "none" }
[data.tiny]
path = "tiny.npz"
[shape.small]
layers = 2
width = 4
[method.cluster-learngene]
init = "cluster-learngene"
[method.from-scratch]
init = "from-scratch"
"#;

const GRID: &str = r#"
[[grid]]
ancestors = ["fashion"]
data = ["tiny"]
shapes = ["small"]
methods = ["cluster-learngene", "from-scratch"]
seeds = [0, 1]
"#;

fn fashion(grid: &str) -> String {
    format!("{COMMON}{}{grid}", ancestor("fashion", "models/fashion-vit.onnx"))
}

#[test]
fn a_study_computes_every_cell_once_and_its_tables_are_right() {
    let folder = Folder::new(&fashion(GRID));
    let (study, results) = (folder.path("study.toml"), folder.path("results"));
    // Broken off before the first cell: tables of nothing.
    done(&[&folder.study(&study, &results)[..], &["--minutes", "0"]].concat());
    assert!(folder.cells("results").is_empty());
    assert!(fs::read_to_string(results.join("study.md")).unwrap().contains("0 of 4 cells"));

    done(&folder.study(&study, &results));
    let cells = folder.cells("results");
    assert_eq!(cells.len(), 4);
    for (_, cell) in &cells {
        assert_eq!(cell["schema"], "offshoot.cell/1");
        assert_eq!(cell["epochs"].as_array().unwrap().len(), 2);
        assert_eq!(cell["images"], serde_json::json!([24, 12]));
        let inherited = cell["inherited"].as_u64().unwrap();
        match cell["method"].as_str().unwrap() {
            "from-scratch" => assert_eq!(inherited, 0),
            // What two layers inherit, without the classifier of 64 x 3 weights and 3 biases.
            _ => assert!(inherited > 0 && inherited <= cell["parameters"].as_u64().unwrap() - 195),
        }
    }

    // What is there is not computed again; what is missing is, and comes to the same.
    let [gone, kept] = [0, 1].map(|i| results.join("cells").join(&cells[i].0));
    let marked = fs::read_to_string(&kept).unwrap().replace("\"offshoot\": \"", "\"offshoot\": \"before ");
    fs::write(&kept, &marked).unwrap();
    fs::remove_file(&gone).unwrap();
    done(&folder.study(&study, &results));
    assert_eq!(fs::read_to_string(&kept).unwrap(), marked);
    let again = folder.cells("results");
    assert_eq!(again[0].1["epochs"], cells[0].1["epochs"]);
    assert_eq!(again[0].1["settings"], cells[0].1["settings"]);

    let tables: Value = serde_json::from_slice(&fs::read(results.join("study.json")).unwrap()).unwrap();
    let rows = tables["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &tables["cells"]), (2, &serde_json::json!([4, 4])));
    for row in rows {
        let last: Vec<f64> = cells
            .iter()
            .filter(|c| c.1["method"] == row["method"])
            .map(|c| c.1["epochs"][1]["top1"].as_f64().unwrap())
            .collect();
        let [a, b] = last[..] else { panic!("{last:?}") };
        let near = |v: &Value, wanted: f64| assert!((v.as_f64().unwrap() - wanted).abs() < 1e-12, "{v} {wanted}");
        near(&row["last"]["mean"], (a + b) / 2.0);
        near(&row["last"]["deviation"], (a - b).abs() / 2f64.sqrt());
        assert_eq!((&row["seeds"], &row["width"]), (&serde_json::json!([2, 2]), &Value::from(4.0)));
    }
    let csv = fs::read_to_string(results.join("study.csv")).unwrap();
    assert_eq!(csv.lines().count(), 3);
    assert!(csv.lines().nth(1).unwrap().starts_with("fashion,tiny,small,cluster-learngene,1,2,4,description,2,"));
    let page = fs::read_to_string(results.join("study.html")).unwrap();
    // Accuracy by epoch, and the densities of the ancestor; a single size gives no other plot.
    assert!(page.contains("4 of 4 cells") && page.matches("<svg").count() >= 2);
    let markdown = fs::read_to_string(results.join("study.md")).unwrap();
    assert!(markdown.contains("| small | from-scratch | description | 2 of 2 |"), "{markdown}");

    // Another study that has cells in common computes only its own.
    folder.write("other.toml", &fashion(&GRID.replace("[0, 1]", "[1, 2]")));
    let other = folder.path("other.toml");
    done(&folder.study(&other, &results));
    assert_eq!(folder.cells("results").len(), 6);
}

#[test]
fn packed_cells_are_read_like_loose_ones() {
    let folder = Folder::new(&fashion(GRID));
    let (study, results) = (folder.path("study.toml"), folder.path("results"));
    let packed = results.join("study.cells.jsonl");
    let pack = |study: &Path| done(&["study", text(study), "--folder", text(&results), "--pack"]);
    let lines = |file: &Path| -> Vec<Value> {
        fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let tables = || ["study.md", "study.csv", "study.json"].map(|name| fs::read_to_string(results.join(name)).unwrap());
    done(&folder.study(&study, &results));
    let (loose, before) = (folder.cells("results"), tables());

    // Neither the data nor the model has to be there.
    fs::rename(folder.path("tiny.npz"), folder.path("away.npz")).unwrap();
    pack(&study);
    fs::rename(folder.path("away.npz"), folder.path("tiny.npz")).unwrap();
    assert_eq!(fs::read_dir(results.join("cells")).unwrap().count(), 0);
    assert_eq!(lines(&packed), loose.iter().map(|(_, cell)| cell.clone()).collect::<Vec<_>>());

    // Nothing is computed again, and the tables are the same.
    let again = folder.study(&study, &results);
    let listed = String::from_utf8(done(&[&again[..], &["--dry-run"]].concat()).stdout).unwrap();
    assert_eq!((listed.matches("there").count(), listed.matches("to do").count()), (4, 0), "{listed}");
    done(&again);
    assert_eq!((fs::read_dir(results.join("cells")).unwrap().count(), tables()), (0, before));

    // Another study takes the cells that it has in common from there, and packs its own.
    folder.write("other.toml", &fashion(&GRID.replace("[0, 1]", "[1, 2]")));
    let other = folder.path("other.toml");
    done(&folder.study(&other, &results));
    assert_eq!(folder.cells("results").len(), 2);
    pack(&other);
    assert_eq!((lines(&packed).len(), lines(&results.join("other.cells.jsonl")).len()), (4, 2));

    // A loose cell counts before a packed one, and takes its line's place.
    let (name, cell) = &loose[1];
    let mut marked = cell.clone();
    marked["offshoot"] = "marked".into();
    fs::write(results.join("cells").join(name), format!("{marked:#}\n")).unwrap();
    done(&again);
    pack(&study);
    assert_eq!((lines(&packed).len(), &lines(&packed)[1]), (4, &marked));
    assert_eq!(fs::read_dir(results.join("cells")).unwrap().count(), 0);

    // A damaged line is named.
    let text = fs::read_to_string(&packed).unwrap();
    fs::write(&packed, text.replacen("\"epochs\": [{", "\"epochs\": {[", 2)).unwrap();
    refused(&again, &["study.cells.jsonl", "line 1", "no cell", "remove the line"]);
}

#[test]
fn processes_that_share_a_folder_compute_every_cell_once() {
    let folder = Folder::new(&fashion(GRID));
    let (study, results) = (folder.path("study.toml"), folder.path("results"));
    let start = || {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command.args(folder.study(&study, &results)).current_dir(root()).stdout(std::process::Stdio::null());
        command.stderr(std::process::Stdio::piped()).spawn().unwrap()
    };
    let said: Vec<String> = [start(), start()]
        .map(|process| {
            let output = process.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            said
        })
        .into();
    let cells = folder.cells("results");
    assert_eq!(cells.len(), 4);
    for (cell, _) in &cells {
        let times: usize = said.iter().map(|s| s.matches(&format!("{cell}: ")).count()).sum();
        assert_eq!(times, 1, "{cell}: {said:?}");
    }
    // No claim is left behind.
    assert_eq!(fs::read_dir(results.join("cells")).unwrap().count(), 4);
}

#[test]
fn a_training_that_diverges_does_not_stop_the_others() {
    let wild = GRID.replace("seeds = [0, 1]", "seeds = [0]\nlr = 1e30").replace("\"cluster-learngene\", ", "");
    let tame = GRID.replace("seeds = [0, 1]", "seeds = [0]").replace("\"cluster-learngene\", ", "");
    let folder = Folder::new(&fashion(&format!("{wild}{tame}")));
    let (study, results) = (folder.path("study.toml"), folder.path("results"));
    let output = offshoot(&folder.study(&study, &results));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("warning") && stderr.contains("1 cells failed"), "{stderr}");
    let cells = folder.cells("results");
    assert_eq!(cells.len(), 1);
    assert_eq!(cells[0].1["settings"]["training"]["lr"], 1e-3);
}

#[test]
fn other_backbones_and_methods_go_the_whole_way() {
    let methods = r#"
[method.fitted]
init = "cluster-learngene"
projection = "fitted"
[method.magnitude]
init = "magnitude"
[method.weight-selection]
init = "weight-selection"
[method.shrink]
init = "shrink"
shape = { parameters = 9000 }
[method.searched]
init = "cluster-learngene"
search = { eps = [0, "auto"], ffn-eps = [0], width = [1, 2], inherited = 1.0, parameters = 0.98 }
[shape.half]
width = 2
[shape.free]
[[grid]]
ancestors = ["swin", "hybrid"]
data = ["tiny"]
shapes = ["half"]
methods = ["fitted", "magnitude", "weight-selection", "searched", "from-scratch"]
attention = true
[[grid]]
ancestors = ["swin", "hybrid"]
data = ["tiny"]
shapes = ["free"]
methods = ["shrink"]
"#;
    let models = [("swin", "timm-swin-ts17"), ("hybrid", "family-hybrid-ts17")]
        .map(|(name, file)| ancestor(name, &format!("fixtures/graphs/{file}.onnx")));
    let folder = Folder::new(&format!("{COMMON}{}{methods}", models.concat()));
    let (study, results) = (folder.path("study.toml"), folder.path("results"));
    done(&[&folder.study(&study, &results)[..], &["--quick"]].concat());
    let cells = folder.cells("results/quick");
    // One seed and one epoch of each.
    assert_eq!(cells.len(), 12);
    assert!(cells.iter().all(|c| c.1["epochs"].as_array().unwrap().len() == 1));
    for (_, cell) in &cells {
        assert!(cell["parameters"].as_u64() < cell["ancestor_parameters"].as_u64(), "{cell}");
        if cell["method"] == "shrink" {
            assert!(cell["parameters"].as_u64().unwrap() <= 9000, "{cell}");
            continue;
        }
        let file = results.join("quick/cells").join(cell["attention"].as_str().unwrap());
        let picture = image::open(file).unwrap();
        // Heads and tokens of the ancestor's first layer: a 4 x 4 window, or a class token and 4 x 4 patches, and lines
        // between.
        let (heads, tokens) = if cell["ancestor"] == "swin" { (2, 16) } else { (4, 17) };
        assert!(picture.width() > heads * (tokens + 1) && picture.height() > tokens + 1, "{picture:?}");
    }
    let searched = cells.iter().filter(|c| c.1["method"] == "searched");
    for (_, cell) in searched {
        let trials = cell["search"].as_array().unwrap();
        assert_eq!(trials.len(), 4);
        let taken: Vec<&Value> = trials.iter().filter(|t| t["taken"] == true).collect();
        assert_eq!(taken.len(), 1);
        // The whole ancestor agrees with itself, and is too large.
        let whole = trials.iter().find(|t| t["eps"] == "0" && t["width"] == 1.0).unwrap();
        assert!(whole["correlation"].as_f64().unwrap() > 0.9999 && whole["fits"] == false, "{whole}");
        let best = trials.iter().filter(|t| t["fits"] == true).map(|t| t["correlation"].as_f64().unwrap());
        assert_eq!(taken[0]["correlation"].as_f64().unwrap(), best.fold(f64::NEG_INFINITY, f64::max));
    }
    let markdown = fs::read_to_string(results.join("quick/study.md")).unwrap();
    assert!(markdown.contains("## Search: searched of swin, half"), "{markdown}");
    let page = fs::read_to_string(results.join("quick/study.html")).unwrap();
    assert_eq!(page.matches("data:image/png;base64,").count(), 10);

    // A cell whose picture is gone is made anew, and no other.
    let (name, cell) = cells.iter().find(|c| c.1["method"] == "fitted").unwrap();
    let file = results.join("quick/cells").join(cell["attention"].as_str().unwrap());
    let drawn = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let quick = [&folder.study(&study, &results)[..], &["--quick"]].concat();
    done(&[&quick[..], &["--minutes", "0"]].concat());
    assert!(fs::read_to_string(results.join("quick/study.md")).unwrap().contains("11 of 12 cells"));
    let before = folder.cells("results/quick");
    done(&quick);
    assert_eq!(fs::read(&file).unwrap(), drawn);
    for ((file, old), (_, new)) in before.iter().zip(&folder.cells("results/quick")) {
        assert_eq!(old["seconds"] == new["seconds"], file != name, "{file}");
    }
}

#[test]
fn a_study_that_cannot_be_is_refused_before_its_first_cell() {
    let folder = Folder::new("");
    let (study, results) = (folder.path("study.toml"), folder.path("results"));
    let good = fashion(GRID);
    let bad = [
        (good.replace("layers = 2", "layer = 2"), vec!["line", "layer"]),
        (good.replace("layers = 2", "layers = 9"), vec!["shape `small`", "9 layers"]),
        (good.replace("width = 4", "width = 3"), vec!["shape `small`", "width 3"]),
        (
            good.replace("init = \"from-scratch\"", "init = \"by-magic\""),
            vec!["method `from-scratch`", "by-magic", "weight-selection"],
        ),
        (good.replace("init = \"from-scratch\"", "init = \"from-scratch\"\neps = 1"), vec!["clusters no heads"]),
        (good.replace("init = \"from-scratch\"", "init = \"model\""), vec!["method `from-scratch`", "`model`"]),
        (good.replace("init = \"from-scratch\"", "init = \"shrink\""), vec!["`parameters` is missing"]),
        (good.replace("path = \"tiny.npz\"", "path = \"gone.npz\""), vec!["gone.npz", "scripts/fetch/studies.sh"]),
        (good.replace("fashion-vit.onnx", "gone.onnx"), vec!["gone.onnx"]),
        (good.replace("[\"small\"]", "[\"smal\"]"), vec!["grid 1", "[shape.smal]", "small"]),
        (good.replace("[0, 1]", "[]"), vec!["grid 1", "`seeds` is empty"]),
        (good.replace("[[grid]]", "[[grid]]\nfractions = [1.5]"), vec!["grid 1", "1.5"]),
        (good.replace("epochs = 2", "epochs = 0"), vec!["`training`"]),
        (good.replace(GRID, ""), vec!["[[grid]]"]),
        (format!("include = 'gone.toml'\n{good}"), vec!["gone.toml"]),
    ];
    for (content, says) in bad {
        assert_ne!(content, good);
        folder.write("study.toml", &content);
        refused(&folder.study(&study, &results), &says);
        assert!(!results.exists(), "{content}");
    }
}

#[test]
fn the_trained_backbones_classify_and_can_be_halved() {
    let folder = tempfile::tempdir().unwrap();
    let images = "fixtures/fashion-images.idx3-ubyte";
    let correct = |model: &str| {
        json(&["eval", model, "--data", images, "--runtime", "tract", "--json"])["top1"].as_f64().unwrap()
    };
    // What ONNX Runtime finds for the model as it is, and untrained halves that know more than nothing (a tenth).
    for (name, whole, half) in [("swin", 271.0 / 300.0, 0.4), ("hybrid", 271.0 / 300.0, 0.5)] {
        let (model, child) = (format!("models/fashion-{name}.onnx"), folder.path().join(format!("{name}.onnx")));
        assert!((correct(&model) - whole).abs() < 1.5 / 300.0, "{name}");
        let shape = ["--width", "2", "--ffn-width", "50%", "--limit", "64", "--runtime", "tract", "-o", text(&child)];
        done(&[&["grow", &model, "--images", images][..], &shape].concat());
        let kept = correct(text(&child));
        assert!(kept > half && kept < whole, "{name}: {kept}");
    }
}
