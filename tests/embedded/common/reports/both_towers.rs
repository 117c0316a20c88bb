//! Both towers of a CLIP are shrunk at once, pictures for one and texts for the other.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ndarray::{Array1, Array4, ArrayD, ArrayViewD, Axis, Slice};
use offshoot::data::{ImageSource, Loader, PreprocessFlags, Texts};
use offshoot::fitting::{Allocation, Budget, Fitter, Limits, Shrunk, Towers, Views, plan};
use offshoot::graph::{SampleInputs, cut};
use offshoot::onnx::{Model, payload};
use offshoot::opening::{OpenedTowers, Opening};
use offshoot::runtime::Runtime;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::common::binary::{done, json, offshoot, refused, text};
use crate::common::root;

const FOLDER: &str = "fixtures/reports/towers";
const CLIP: &str = "fixtures/reports/towers/clip.onnx";
const CAPTIONS: &str = "fixtures/reports/towers/captions.txt";
const TEXT_INPUTS: [&str; 2] = ["input_ids", "attention_mask"];

/// Pictures as tensors, in a file; each is smooth and another.
fn pictures(folder: &Path) -> PathBuf {
    let mut random = StdRng::seed_from_u64(4);
    let waves: Vec<[f32; 4]> = (0..40 * 3).map(|_| std::array::from_fn(|_| random.random_range(-1.0..1.0))).collect();
    let pixel = |(n, c, y, x): (usize, usize, usize, usize)| {
        let [a, b, phase, shift] = waves[3 * n + c];
        (a * y as f32 + b * x as f32 + 3.0 * phase).sin() + shift
    };
    let path = folder.join("pictures.npy");
    ndarray_npy::write_npy(&path, &Array4::from_shape_fn((40, 3, 16, 16), pixel)).unwrap();
    path
}

/// The part of a model that some inputs are enough for.
fn tower(model: &Model, inputs: &[&str]) -> Model {
    let inputs: Vec<String> = inputs.iter().map(|name| name.to_string()).collect();
    let mut part = model.clone();
    cut(&mut part, SampleInputs::Inputs(&inputs), None).unwrap();
    part
}

fn weights(model: &Model) -> BTreeMap<&str, Vec<u8>> {
    model.graph().initializer.iter().map(|t| (t.name(), payload(t).to_vec())).collect()
}

/// Two pictures and two texts, by inputs.
fn feeds() -> HashMap<String, ArrayD<f32>> {
    let golden: Value = serde_json::from_slice(&fs::read(root().join(FOLDER).join("golden.json")).unwrap()).unwrap();
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let array = |v: &Value| {
        let shape: Vec<usize> = numbers(&v["shape"]).into_iter().map(|n| n as usize).collect();
        let all = ArrayD::from_shape_vec(shape, numbers(&v["values"]).into_iter().map(|v| v as f32).collect());
        all.unwrap().slice_axis(Axis(0), Slice::from(..2)).to_owned()
    };
    golden["feeds"].as_object().unwrap().iter().map(|(name, v)| (name.clone(), array(v))).collect()
}

/// What a model, or a tower of it, says of the feeds that are for it, by outputs.
fn said(runtime: &Arc<Runtime>, model: &Model) -> BTreeMap<String, ArrayD<f32>> {
    let (graph, feeds) = (model.graph(), feeds());
    let views: Vec<(&str, ArrayViewD<f32>)> = graph.input.iter().map(|v| (v.name(), feeds[v.name()].view())).collect();
    let found = runtime.load_open(model, 2, [16, 16]).unwrap().run_on(&views).unwrap();
    graph.output.iter().map(|o| o.name().to_string()).zip(found).collect()
}

/// The squared error, relative to the values.
fn apart(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f64 {
    let square = |v: f32| f64::from(v).powi(2);
    let difference: f64 = a.iter().zip(b).map(|(a, b)| square(a - b)).sum();
    difference / a.iter().map(|a| square(*a)).sum::<f64>()
}

/// Each tower of a child is what that tower becomes where it is shrunk by itself, to the last digit; the outputs that
/// need both follow from both embeddings. Pictures and texts have one batch in one of the files, and the graph reads it
/// off the texts.
pub fn each_tower_is_that_of_its_own(runtime: &Arc<Runtime>) {
    ["clip.onnx", "one-batch.onnx"].into_iter().for_each(|file| each_tower_of(runtime, file));
}

fn each_tower_of(runtime: &Arc<Runtime>, file: &str) {
    let folder = tempfile::tempdir().unwrap();
    let texts = Some(Texts { path: root().join(CAPTIONS), ..Texts::default() });
    let opening = Opening { texts, pictures: Some(PreprocessFlags::default()), ..Opening::default() };
    let OpenedTowers { whole, images, others } =
        opening.open_towers(&root().join(FOLDER).join(file), &|| Ok(runtime.clone())).unwrap();
    assert!(whole.notes.iter().any(|n| n.contains("`logits_per_image`, `logits_per_text` follow from both")));
    let loader = Loader::new(ImageSource::open(pictures(folder.path())).unwrap(), None).unwrap();
    let (one, views) = (runtime.single_threaded(), Views { count: Some(32), seed: 3 });
    let fitters = [
        Fitter::new(&images.model, &loader, one.clone(), views, Instant::now(), &()).unwrap(),
        Fitter::on_arrays(&others.model, &others.arrays.unwrap(), one.clone(), views, Instant::now()).unwrap(),
    ];
    let parts = [&images.model, &others.model];
    let shrinkers = || parts.iter().zip(&fitters).map(|(model, fitter)| fitter.shrinker(model).unwrap());
    let mut towers = Towers::new(&whole.model, shrinkers().collect()).unwrap();
    let limits = Limits { min_neurons: 2, multiple: 2, dims: true, ..Limits::default() };
    let removals = towers.analyse(&limits, &|_, _, _| {}).unwrap();
    let allocation = plan(&whole.model, &removals, &limits, Budget::Share(0.6), None).unwrap();
    let child = towers.shrink(&removals, &allocation, &|_, _| {}).unwrap();
    assert_eq!(child.errors.keys().collect::<Vec<_>>(), ["text", "vision"]);
    assert_eq!(child.error, child.errors.values().copied().fold(0.0, f64::max));
    let inputs = [&["pixel_values"][..], &TEXT_INPUTS];
    let layers: Vec<Vec<usize>> = towers.each().iter().map(|tower| tower.layers.clone()).collect();
    let kinds = [("vision", &layers[0], "image_embeds"), ("text", &layers[1], "text_embeds")];
    assert_eq!(layers.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let each = shrinkers().zip(inputs).zip(parts).zip(&fitters).zip(kinds);
    for ((((mut shrinker, inputs), part), fitter), (name, layers, output)) in each {
        let own: Vec<_> = layers.iter().map(|&l| allocation.layers[l].clone()).collect();
        let own = Allocation { layers: own, ..allocation.clone() };
        let is_thinner = own.layers.iter().any(|l| l.dropped || l.heads < l.of_heads || l.neurons < l.of_neurons);
        assert!(is_thinner, "the {name} tower stays whole: {:?}", own.layers);
        let of_tower = shrinker.analyse(&limits, &|_, _, _| {}).unwrap();
        let Shrunk { model, error, .. } = shrinker.shrink(&of_tower, &own, &|_, _| {}).unwrap();
        assert_eq!(child.errors[name], error, "{name}");
        let small = tower(&child.model, inputs);
        // Names that both towers would have are another in one of them.
        let sorted = |model| {
            let mut all: Vec<Vec<u8>> = weights(model).into_values().collect();
            all.sort_unstable();
            all
        };
        assert!(sorted(&small) == sorted(&model), "the weights of the {name} tower");
        assert_eq!(said(runtime, &small), said(runtime, &model), "{name}");
        let (before, after) = (said(runtime, part), said(runtime, &small));
        let far = apart(&before[output], &after[output]);
        assert!(far > 1e-4 && far < 0.3, "{name}: {far}");
        // The error that is told is that of the samples that no fit has seen.
        let held_out = fitter.held_out().iter().map(|view| {
            let of = |model: &Model| {
                let fixed = offshoot::fitting::pin_on(model, view).unwrap();
                let mut session = one.load(&fixed, 1, [16, 16]).unwrap();
                session.run_on(&view.iter().map(|(name, v)| (name.as_str(), v.view())).collect::<Vec<_>>()).unwrap()
            };
            [of(part).swap_remove(0), of(&small).swap_remove(0)]
        });
        let [old, new]: [Vec<f32>; 2] = held_out.fold([Vec::new(), Vec::new()], |[mut old, mut new], [a, b]| {
            old.extend(a);
            new.extend(b);
            [old, new]
        });
        let flat = |v: Vec<f32>| Array1::from(v).into_dyn();
        let wanted = apart(&flat(old), &flat(new));
        assert!((child.outputs[output] - wanted).abs() < 1e-4 * wanted, "{name}: {} {wanted}", child.outputs[output]);
    }
    let all = said(runtime, &child.model);
    let [logits, images, texts] = ["logits_per_image", "image_embeds", "text_embeds"].map(|name| &all[name]);
    assert_eq!(logits.shape(), [2, 2]);
    let dot = |i: usize, t: usize| (0..8).map(|d| images[[i, d]] * texts[[t, d]]).sum::<f32>();
    let scale = logits[[0, 0]] / dot(0, 0);
    for (i, t) in [(0, 1), (1, 0), (1, 1)] {
        let wanted = scale * dot(i, t);
        assert!((logits[[i, t]] - wanted).abs() < 1e-4 * scale.abs(), "{i} {t}: {} {wanted}", logits[[i, t]]);
    }
}

/// The command as a user gives it: a child of any size that takes what its ancestor takes.
pub fn one_command_shrinks_both(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let at = |name: &str| folder.path().join(name);
    let (child, gene) = (at("child.onnx"), at("gene.onnx"));
    let run = |model: &str, more: &[&str]| {
        let both = ["shrink", model, "--images", text(&images), "--texts", CAPTIONS, "--runtime", kind];
        let more = [more, &["--tokenizer", FOLDER, "--force", "--json", "-o", text(&child)]].concat();
        json(&[&both[..], &more].concat())
    };
    let found = run(CLIP, &["--to", "70%", "--dtype", "fp16", "--save-learngene", text(&gene)]);
    let [input, small] = [&found["input"], &found["descendants"][0]];
    assert_eq!(input["images"]["outputs"], serde_json::json!(["image_embeds"]));
    assert_eq!(input["texts"]["samples"], 60);
    assert_eq!(small["allocation"]["layers"].as_array().unwrap().len(), 4);
    assert!(small["allocation"]["share"].as_f64().unwrap() <= 0.7);
    let errors = ["vision", "text"].map(|tower| small["errors"][tower].as_f64().unwrap());
    assert_eq!(small["error"].as_f64().unwrap(), errors[0].max(errors[1]));
    let embeddings: Vec<&String> = small["output_errors"].as_object().unwrap().keys().collect();
    assert_eq!(embeddings, ["image_embeds", "text_embeds"]);
    let (old, new) = (Model::open(root().join(CLIP)).unwrap(), Model::open(&child).unwrap());
    assert_eq!((&old.graph().input, &old.graph().output), (&new.graph().input, &new.graph().output));
    // Layers are fitted in both towers.
    let layers: Vec<u64> = small["fits"].as_array().unwrap().iter().map(|f| f["layer"].as_u64().unwrap()).collect();
    assert!(layers.contains(&0) && layers.iter().any(|l| *l >= 2), "{layers:?}");
    // The learngene holds what was measured on both, and its descendants are the same.
    let allocation = |found: &Value| found["descendants"][0]["allocation"]["layers"].clone();
    let again = run(text(&gene), &["--to", "70%"]);
    assert_eq!((allocation(&again), &again["descendants"][0]["errors"]), (allocation(&found), &small["errors"]));
    let condensed = at("condensed.onnx");
    let both = ["condense", CLIP, "--fitted", "--images", text(&images), "--texts", CAPTIONS, "--runtime", kind];
    let gene = json(&[&both[..], &["--json", "-o", text(&condensed)]].concat());
    assert_eq!(gene["input"]["texts"]["samples"], 60);
    assert_eq!(allocation(&run(text(&condensed), &["--to", "70%"])), allocation(&found));
    // Layers that are not named stay as they are, byte for byte.
    run(CLIP, &["--to", "90%", "--only-layers", "0,1"]);
    let new = Model::open(&child).unwrap();
    let (before, after) = (weights(&old), weights(&new));
    let of_text = before.iter().filter(|(name, _)| name.contains("text_model"));
    assert!(of_text.clone().count() > 10);
    of_text.for_each(|(name, bytes)| assert!(after.get(name) == Some(bytes), "{name}"));
    assert!(before != after);
    // Times are those of a picture with a text.
    let frontier = run(CLIP, &["--dry-run"]);
    assert!(frontier["frontier"].as_array().unwrap().iter().all(|point| point["latency"].as_f64().unwrap() > 0.0));
}

/// The learngene of both towers has the clusters of each, and descendants take what the ancestor takes.
pub fn learngenes_have_the_clusters_of_each(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let [gene, one, child] = ["gene.onnx", "one.onnx", "child.onnx"].map(|name| folder.path().join(name));
    let wide = ["--eps", "30", "--ffn-eps", "30", "--runtime", kind, "--force", "--json"];
    let run = |more: &[&str], out: &Path| json(&[&["condense", CLIP], &wide[..], more, &["-o", text(out)]].concat());
    let both = run(&["--images", text(&images), "--texts", CAPTIONS], &gene);
    let each = [
        run(&["--images", text(&images), "--of", "image_embeds"], &one),
        run(&["--texts", CAPTIONS, "--of", "text_embeds"], &one),
    ];
    for field in ["layers", "densities", "eps", "ffn_eps"] {
        let all: Vec<&Value> = each.iter().flat_map(|tower| tower[field].as_array().unwrap()).collect();
        assert_eq!(both[field].as_array().unwrap().iter().collect::<Vec<_>>(), all, "{field}");
    }
    // Heads are clustered, and layers of one tower share an FFN.
    assert!(both["layers"][0].as_array().unwrap().len() < 4, "{both}");
    assert_eq!(both["ffn_groups"], serde_json::json!([[0, 1], [2, 3]]));
    assert_eq!((&both["lengths"][0], both["lengths"][2].is_f64()), (&Value::Null, true));
    assert_eq!(both["source"]["images"], 100);
    let plan = json(&["grow", text(&gene), "--heads", "2", "--force", "--json", "-o", text(&child)]);
    assert_eq!(plan["layers"].as_array().unwrap().len(), 4);
    let (old, new) = (Model::open(root().join(CLIP)).unwrap(), Model::open(&child).unwrap());
    assert_eq!((&old.graph().input, &old.graph().output), (&new.graph().input, &new.graph().output));
}

/// Densities of both towers are those of each, of layers that bear the numbers that `shrink` gives them.
pub fn densities_are_those_of_each(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let run = |more: &[&str]| json(&[&["density", CLIP, "--runtime", kind, "--json"], more].concat());
    let both = run(&["--images", text(&images), "--texts", CAPTIONS]);
    assert_eq!(both["towers"]["images"], run(&["--images", text(&images), "--of", "image_embeds"]));
    let mut texts = run(&["--texts", CAPTIONS, "--of", "text_embeds"]);
    assert_eq!(texts["layers"], serde_json::json!([0, 1]));
    texts["layers"] = serde_json::json!([2, 3]);
    assert_eq!(both["towers"]["texts"], texts);
    let told = done(&["density", CLIP, "--images", text(&images), "--texts", CAPTIONS, "--runtime", kind]).stdout;
    let told = String::from_utf8(told).unwrap();
    let numbers = told.lines().filter_map(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    assert_eq!(numbers.collect::<Vec<_>>(), [0, 1, 2, 3], "{told}");
    assert_eq!([&both["towers"]["images"]["unit"], &both["towers"]["texts"]["unit"]], ["px", "tokens"]);
}

/// What is no model of two towers, and what is asked of one, is named.
pub fn what_is_for_one_tower_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let images = pictures(folder.path());
    let both = |model: &str, more: &[&str], says: &[&str]| {
        let all = ["shrink", model, "--images", text(&images), "--to", "50%", "-o", "never.onnx"];
        refused(&[&all[..], more].concat(), says);
    };
    let texts = ["--texts", CAPTIONS, "--tokenizer", FOLDER];
    let with = |more: &[&'static str]| [&texts[..], more].concat();
    both("models/fashion-vit.onnx", &texts, &["no input takes tokens: `image` float", "leave --texts out"]);
    both("fixtures/reports/texts/bert-ts.onnx", &texts, &["no input takes images: `input_ids`", "leave --images out"]);
    both(CLIP, &with(&["--of", "image_embeds"]), &["--of is for one tower", "leave it out"]);
    both(CLIP, &with(&["--pooling", "mean"]), &["--pooling is for one tower"]);
    // The arrays of both belong together, as they do where one encoder sees both.
    let arrays = folder.path().join("arrays");
    fs::create_dir(&arrays).unwrap();
    fs::copy(&images, arrays.join("pixel_values.npy")).unwrap();
    both(CLIP, &["--inputs", text(&arrays)], &["has an array for `pixel_values`, which --images gives"]);
    let more = ["--images", text(&images), "--texts", CAPTIONS];
    let says = ["samples for two", "`shrink`, `density` and `condense` take both kinds"];
    refused(&[&["compare", CLIP, CLIP][..], &more].concat(), &says);
    let groups = ["condense", CLIP, "--ffn-clusters", "0-1", "-o", "never.onnx"];
    refused(&[&groups[..], &more].concat(), &["--ffn-clusters names layers of one tower"]);
    let plot = ["density", CLIP, "--images", text(&images), "--texts", CAPTIONS, "--plot", "never.svg"];
    refused(&plot, &["a plot has the densities of one tower"]);
    let grow = ["grow", CLIP, "--images", text(&images), "--texts", CAPTIONS, "--heads", "2", "-o", "never.onnx"];
    refused(&grow, &["samples for two"]);
    let much = ["--to", "50%", "--max-error", "0.0001", "-o", "never.onnx"];
    let output = offshoot(&[&["shrink", CLIP, "--images", text(&images), "--texts", CAPTIONS][..], &much].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("tower on held-out samples is") && !root().join("never.onnx").exists(), "{stderr}");
}
