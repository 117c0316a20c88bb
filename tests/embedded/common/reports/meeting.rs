//! Files that declare an open batch, whose samples change each other: every command runs them one by one, and says so.

use std::fs;
use std::path::{Path, PathBuf};

use offshoot::graph::{int_attribute, node};
use offshoot::onnx::proto::NodeProto;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_from_i64, tensor_from_raw};
use serde_json::{Value, json};

use super::learned::{DESCENT, losses};
use super::texts::{FOLDER, agree, fix_batch};
use crate::common::binary::{PLAIN, args, done, text};
use crate::common::root;

/// The nodes that make `met` of `whole`, which is the same for a sample alone.
fn met(kind: &str, whole: &str) -> Vec<NodeProto> {
    let axis = || vec![int_attribute("axis", 0)];
    match kind {
        // The first sample of the batch, for all.
        "first" => vec![node("Slice", &[whole, "zero", "one", "zero"], &["met"], vec![])],
        "gathered" => vec![node("Gather", &[whole, "zero"], &["met"], axis())],
        // All samples before it.
        "summed" => vec![node("CumSum", &[whole, "first_axis"], &["met"], vec![])],
        // The one that is as far from the end.
        "reversed" => vec![node("Slice", &[whole, "last", "before", "zero", "last"], &["met"], vec![])],
        // The same, by places that the graph does not show.
        "placed" => vec![
            node("Shape", &[whole], &["shape"], vec![]),
            node("Slice", &["shape", "zero", "one"], &["count"], vec![]),
            node("Sub", &["count", "one"], &["count_before"], vec![]),
            node("Squeeze", &["count_before"], &["from"], vec![]),
            node("Range", &["from", "step", "step"], &["places"], vec![]),
            node("Reshape", &["places", "column"], &["columns"], vec![]),
            node("Expand", &["columns", "shape"], &["everywhere"], vec![]),
            node("GatherElements", &[whole, "everywhere"], &["met"], axis()),
        ],
        _ => panic!("{kind}"),
    }
}

/// A model where most of what it met is taken away behind its first norm.
fn meeting(kind: &str, model: &str) -> Model {
    let mut model = Model::open(root().join(model)).unwrap();
    let graph = model.graph_mut();
    let at = graph.node.iter().position(|n| n.op_type() == "LayerNormalization").unwrap();
    let whole = graph.node[at].output[0].clone();
    graph.node.iter_mut().flat_map(|n| &mut n.input).filter(|x| **x == whole).for_each(|x| *x = "apart".into());
    let mut put = met(kind, &whole);
    put.push(node("Mul", &["met", "most"], &["share"], vec![]));
    put.push(node("Sub", &[&whole, "share"], &["apart"], vec![]));
    graph.node.splice(at + 1..at + 1, put);
    let numbers = [("zero", 0), ("one", 1), ("last", -1), ("before", i64::MIN + 1)]
        .map(|(name, n)| tensor_from_i64(name, &[1], &[n]));
    let scalar = |name: &str, n: i64| tensor_from_raw(name, DataType::Int64, &[], n.to_le_bytes().to_vec().into());
    graph.initializer.extend(numbers);
    graph.initializer.extend([
        scalar("first_axis", 0),
        scalar("step", -1),
        tensor_from_i64("column", &[3], &[-1, 1, 1]),
        tensor_from_f32("most", DataType::Float, &[1], &[0.7]),
    ]);
    model
}

/// What a run printed, and what it said.
fn ran(arguments: &[&str]) -> (Value, String) {
    let output = done(arguments);
    (serde_json::from_slice(&output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// Writes a model whose batch is open, or of one sample alone.
fn written(folder: &Path, kind: &str, model: &str, is_single: bool) -> PathBuf {
    let mut made = meeting(kind, model);
    if is_single {
        fix_batch(&mut made, 1);
    }
    let path = folder.join(format!("{kind}.onnx"));
    made.write(&path).unwrap();
    path
}

const SAYS: &str = "declares an open batch and has none, since samples of a batch";

/// Eval, density, compare and training of texts.
fn judged(kind: &str, folder: &Path, [classifier, encoder]: [&Path; 2], is_single: bool) -> Vec<Value> {
    let (labelled, sentences) = (format!("{FOLDER}/labelled.jsonl"), format!("{FOLDER}/sentences.txt"));
    let log = folder.join("log.jsonl");
    let common = format!("--tokenizer {FOLDER} --runtime {kind} --json");
    let told = |arguments: &[&str]| {
        let (found, said) = ran(arguments);
        assert_eq!(said.contains(SAYS), !is_single, "{arguments:?}: {said}");
        found
    };
    let eval = told(args!("eval {} --texts {labelled} {common}", text(classifier)));
    assert_eq!((&eval["batch"], eval["notes"].to_string().contains(SAYS)), (&json!(1), !is_single));
    let density = told(args!("density {} --texts {sentences} {common}", text(encoder)));
    let like = format!("{FOLDER}/bert-ts.onnx");
    let compare = told(args!("compare {} {like} --texts {sentences} --runs 1 {common}", text(encoder)));
    let tune = format!(
        "tune {} --texts {labelled} --steps 3 --metrics {} --force -o {} {common}",
        text(classifier),
        text(&log),
        text(&folder.join("tuned.onnx"))
    );
    let tune: Vec<&str> = tune.split_whitespace().collect();
    let tuned = told(&[&tune[..], &PLAIN, &DESCENT].concat());
    // Each by itself, and an update for as many as were asked for.
    assert_eq!((&tuned["batch"]["way"], &tuned["steps"]), (&json!("gathered"), &json!(3)), "{tuned}");
    vec![
        json!([eval["loss"]]),
        density["densities"].clone(),
        json!([compare["relative_error"], compare["correlation"]]),
        losses(&log),
    ]
}

/// Whatever lets samples of a batch meet, what is said of them is what is said of each alone.
pub fn samples_that_meet_are_run_one_by_one(runtime: &str, more: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let of = |kind: &str, is_single: bool| {
        let own = folder.path().join(format!("{kind}-{is_single}"));
        fs::create_dir(&own).unwrap();
        let models = ["classifier-ts", "bert-ts"].map(|name| {
            let path = written(&own, kind, &format!("{FOLDER}/{name}.onnx"), is_single);
            let named = own.join(format!("{name}.onnx"));
            fs::rename(path, &named).unwrap();
            named
        });
        let found = judged(runtime, &own, [&models[0], &models[1]], is_single);
        (models, found)
    };
    let (alone, expected) = of("first", true);
    for kind in ["first", "summed", "reversed"].iter().chain(more) {
        let (models, found) = of(kind, false);
        found.iter().zip(&expected).for_each(|(found, expected)| agree(found, expected, 1e-5, kind));
        if *kind == "first" {
            children_are_made_of_each(runtime, folder.path(), [&models, &alone]);
        }
    }
}

/// Learngenes, children and studies, each of a model with an open batch and of one that takes one sample.
fn children_are_made_of_each(runtime: &str, folder: &Path, models: [&[PathBuf; 2]; 2]) {
    let (labelled, sentences) = (format!("{FOLDER}/labelled.jsonl"), format!("{FOLDER}/sentences.txt"));
    let common = format!("--tokenizer {FOLDER} --runtime {runtime} --json --force");
    let [together, alone] = models.map(|[classifier, encoder]| {
        let is_single = classifier.parent() == models[1][0].parent();
        let child = folder.join("child.onnx");
        let told = |arguments: &[&str]| {
            let (found, said) = ran(arguments);
            assert_eq!(said.contains(SAYS), !is_single, "{arguments:?}: {said}");
            found
        };
        let size = "--to 50% --min-ffn 2 --multiple-of 2";
        let shrunk = told(args!("shrink {} --texts {sentences} {size} {common} -o {}", text(encoder), text(&child)));
        let gene = told(args!("condense {} --texts {sentences} {common} -o {}", text(encoder), text(&child)));
        let out = folder.join("out");
        let run = "--heads 2 --epochs 1 --batch-size 2 --augment none";
        let ran = told(args!("run {} --texts {labelled} {run} {common} -o {}", text(classifier), text(&out)));
        let study = folder.join("study.toml");
        fs::write(
            &study,
            format!(
                "training = {{ epochs = 1, batch-size = 2 }}\n[ancestor.a]\nmodel = '{}'\ntexts = '{2}/sentences.txt'\n\
                 tokenizer = '{2}'\n[data.d]\ntexts = '{2}/labelled.jsonl'\n[shape.s]\n[method.m]\ninit = 'shrink'\n\
                 shape = {{ parameters = 4000 }}\n[[grid]]\nancestors = ['a']\ndata = ['d']\nshapes = ['s']\n\
                 methods = ['m']\nseeds = [0]\n# {}\n",
                text(classifier),
                is_single,
                text(&root().join(FOLDER))
            ),
        )
        .unwrap();
        let results = folder.join(format!("results-{is_single}"));
        let cells = told(args!("study {} --folder {} --runtime {runtime} --json", text(&study), text(&results)));
        let losses: Vec<Value> = ran["models"].as_array().unwrap().iter().map(|model| model["loss"].clone()).collect();
        let error = &shrunk["descendants"][0]["error"];
        (json!([error]), gene["densities"].clone(), json!(losses), json!([cells["rows"][0]["last"]["mean"]]))
    });
    agree(&together.0, &alone.0, 1e-6, "shrink");
    agree(&together.1, &alone.1, 1e-5, "condense");
    agree(&together.2, &alone.2, 1e-5, "run");
    agree(&together.3, &alone.3, 1e-6, "study");
}

/// The same of pictures, where the graph shows it and two images of noise prove it.
pub fn images_that_meet_are_run_one_by_one(runtime: &str) {
    let folder = tempfile::tempdir().unwrap();
    let data = "--data fixtures/fashion-images.idx3-ubyte --limit 12";
    let of = |kind: &str, is_single: bool| {
        let path = written(folder.path(), kind, "models/fashion-vit.onnx", is_single);
        let (found, said) = ran(args!("eval {} {data} --runtime {runtime} --json", text(&path)));
        let says = "declares an open batch and has none, since images of a batch meet in node";
        assert_eq!((said.contains(says), &found["batch"]), (!is_single, &json!(1)), "{kind}: {said}");
        json!([found["loss"]])
    };
    let expected = of("first", true);
    for kind in ["first", "gathered", "summed", "reversed"] {
        agree(&of(kind, false), &expected, 1e-5, kind);
    }
}
