//! Blocks that are used several times (ALBERT): one block in the file, in surgery, in fits and in what is counted,
//! against PyTorch (scripts/fixtures/blocks.py).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{FfnWidth, GrowOptions, Heads, Init, grow};
use offshoot::fitting::{Budget, Calibration, Limits, Shrinker, pin, plan, thin};
use offshoot::learngene::{Learngene, parameters};
use offshoot::onnx::{Model, is_float};
use offshoot::runtime::Runtime;
use serde_json::{Value, json};

use super::stacks::{far, golden, images, numbers, opened};
use crate::common::binary::{done, json as printed, text};
use crate::common::surgery::run;

const MODELS: [&str; 2] = ["repeated.onnx", "repeated-dynamo.onnx"];

/// How many weights of each rank a file holds.
fn weights(model: &Model) -> BTreeMap<usize, usize> {
    let mut counts = BTreeMap::new();
    for t in model.graph().initializer.iter().filter(|t| is_float(t)) {
        *counts.entry(t.dims.len()).or_default() += 1;
    }
    counts
}

fn entry<'g>(golden: &'g Value, file: &str) -> &'g Value {
    golden["models"].as_array().unwrap().iter().find(|e| e["file"] == file).unwrap()
}

/// `inspect` says which layers are one block and counts it once; with half its heads and neurons it is PyTorch's block,
/// once in the file.
pub fn a_block_is_resized_once(runtime: &Arc<Runtime>) {
    let (folder, golden) = golden("layers");
    let x = images(&golden);
    for file in [MODELS[0], MODELS[1], "alone.onnx", "twofold.onnx"] {
        let (entry, model) = (entry(&golden, file), opened(folder.join(file)));
        let found = printed(&["inspect", text(&folder.join(file)), "--json"]);
        assert_eq!(found["parameters"], entry["parameters"], "{file}");
        if MODELS.contains(&file) {
            let of: Vec<&Value> = found["layers"].as_array().unwrap().iter().map(|l| &l["weights_of"]).collect();
            assert_eq!(of, [&json!(null), &json!(0), &json!(0)], "{file}");
            let shown = String::from_utf8(done(&["inspect", text(&folder.join(file))]).stdout).unwrap();
            assert!(shown.contains("weights of layer"), "{shown}");
        }
        let gene = Learngene::identity(&Typing::new(&model).unwrap(), &anatomy(&model));
        let (heads, ffn_width) = (Heads::Percent(50.0), FfnWidth::Percent(50.0));
        let shape = GrowOptions { heads, ffn_width, init: Init::PretrainFinetune, ..GrowOptions::default() };
        let child = grow(&model, &gene, &shape).unwrap().model;
        let error = far(runtime, &child, &x, &numbers(&entry["few"]));
        assert!(error < 2e-5, "{file}: {error:e}");
        assert_eq!(weights(&child), weights(&model), "{file}: the block is there once");
        // Twice the heads are a copy of the block, wherever it is used.
        let twice = GrowOptions { heads: Heads::Percent(200.0), ..GrowOptions::default() };
        let error = far(runtime, &grow(&model, &gene, &twice).unwrap().model, &x, &numbers(&entry["outputs"]));
        assert!(error < 2e-5, "{file}, twice the heads: {error:e}");
    }
}

fn anatomy(model: &Model) -> Anatomy {
    Anatomy::new(&Typing::new(model).unwrap()).unwrap()
}

/// Images with some structure.
fn waves(count: usize, first: usize) -> Vec<ArrayD<f32>> {
    let image = |n: usize| {
        let n = n as f32;
        Array4::from_shape_fn((1, 1, 12, 12), |(_, _, y, x)| {
            (0.7 * n + y as f32 * (0.3 + 0.1 * (n % 5.0))).sin() + (0.4 * n + x as f32 * (0.2 + 0.1 * (n % 7.0))).cos()
        })
    };
    (first..first + count).map(|n| image(n).into_dyn()).collect()
}

fn views(count: usize, first: usize) -> Vec<HashMap<String, ArrayD<f32>>> {
    waves(count, first).into_iter().map(|image| HashMap::from([("pixels".to_string(), image)])).collect()
}

fn distance(runtime: &Arc<Runtime>, a: &Model, b: &Model, images: &[ArrayD<f32>]) -> f64 {
    let (mut left, mut size) = (0.0, 0.0);
    for image in images {
        let x = image.view().into_dimensionality().unwrap().to_owned();
        let (a, b) = (run(runtime, a, &x).unwrap(), run(runtime, b, &x).unwrap());
        left += a[0].iter().zip(&b[0]).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        size += a[0].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    }
    left / size
}

/// A budget of parameters counts the block once and is met; what was fitted is one block still, and nearer to the
/// ancestor than the block with those rows gone.
pub fn a_block_is_fitted_once(runtime: &Arc<Runtime>) {
    let (folder, golden) = golden("layers");
    for file in &MODELS[..1] {
        let (entry, model) = (entry(&golden, file), opened(folder.join(file)));
        let whole = entry["parameters"].as_u64().unwrap();
        let budget = Budget::Parameters(0.8 * whole as f64);
        let limits = Limits { min_neurons: 2, multiple: 2, ..Limits::default() };
        let pinned = pin(&model).unwrap();
        let calibration =
            Calibration { fit: views(24, 0), held_out: views(8, 100), images: 32, ..Calibration::default() };
        let runtime = &runtime.single_threaded();
        let mut shrinker = Shrinker::new(&model, std::slice::from_ref(&pinned), runtime, calibration).unwrap();
        let removals = shrinker.analyse(&limits, &|_, _, _| {}).unwrap();
        let said = shrinker.warnings(&limits).unwrap();
        assert!(said.iter().any(|w| w.contains("layers 0, 1, 2 have matrices in common")), "{said:?}");
        let allocation = plan(&model, &removals, &limits, budget, None).unwrap();
        let found = shrinker.shrink(&removals, &allocation, &|_, _| {}).unwrap();
        let predicted = allocation.parameters;
        assert_eq!(found.parameters as f64, predicted, "{file}");
        assert!(found.parameters * 10 <= whole * 8 && found.parameters * 10 > whole * 7, "{file}: {predicted}");
        assert_eq!(parameters(found.model.graph()), found.parameters);
        assert_eq!(weights(&found.model), weights(&model), "{file}: the block is there once");
        let thin = thin(&model, &removals, &allocation).unwrap();
        let unseen = waves(16, 200);
        let (fitted, old) =
            (distance(runtime, &model, &found.model, &unseen), distance(runtime, &model, &thin, &unseen));
        assert!(fitted < 0.5 * old, "{file}: {fitted:e}, {old:e} unfitted");
    }
}
