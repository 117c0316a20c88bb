//! Gradients of fixture models against PyTorch's, which `scripts/golden/gradient.py` computed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ndarray::Array4;
use offshoot::anatomy::Anatomy;
use offshoot::axes::{Assumption, Typing};
use offshoot::graph::{declared_dims, element_types};
use offshoot::learngene::{Cluster, Learngene};
use offshoot::onnx::proto::{NodeProto, TensorProto};
use offshoot::onnx::{DataType, Model, is_float, tensor_from_f32, tensor_info, to_f32};
use offshoot::runtime::{Runtime, differentiable};
use offshoot::training::{Gradients, Operators, is_trainable, kernels};
use serde_json::Value;

use super::hash::{hash, values};
use super::surgery::run;
use super::{Fixture, all_fixtures, fixtures, root};

/// Largest error, relative to the length of a gradient.
const TOLERANCE: f64 = 1e-4;
/// What rounding adds where a gradient is (nearly) zero, relative to the length of the whole model's gradient: a key's
/// bias, which Softmax ignores.
const ROUNDING: f64 = 1e-6;
/// Seeds of the golden file's pseudo-random numbers.
const INPUT: u32 = 1;
const OUTPUT: u32 = 100;
const SIGNS: u32 = 200;

/// The gradients of all named weights, for the golden file's input and loss.
fn gradients(
    runtime: &Arc<Runtime>,
    fixture: &Fixture,
    names: &[String],
    operators: Operators,
) -> Result<HashMap<String, Vec<f32>>, String> {
    let mut model: Model = fixture.open();
    let size = |i: usize| fixture.entry["image"][i].as_u64().unwrap() as usize;
    let batch = fixture.entry["input"]["shape"][0].as_u64().unwrap_or(2) as usize;
    let shape = (batch, size(0), size(1), size(2));
    let x = Array4::from_shape_vec(shape, values(batch * size(0) * size(1) * size(2), INPUT)).unwrap();
    let x = fixture.ordered(x);
    let assumption = Assumption { batch, image: [size(1), size(2)] };

    let graph = differentiable(&Typing::with(&model, assumption.clone()).unwrap()).map_err(|e| e.to_string())?;
    *model.graph_mut() = graph;
    if operators == Operators::Fused {
        let graph = kernels::fuse(&Typing::with(&model, assumption.clone()).unwrap());
        *model.graph_mut() = graph;
        model.proto.opset_import.push(kernels::import());
    }
    gradients_of(runtime, &model, assumption, &x, names, operators)
}

/// Gradients of a model that was brought into differentiable form.
fn gradients_of(
    runtime: &Arc<Runtime>,
    model: &Model,
    assumption: Assumption,
    x: &Array4<f32>,
    names: &[String],
    operators: Operators,
) -> Result<HashMap<String, Vec<f32>>, String> {
    let types = element_types(model.graph());
    let gradients = {
        let typing = Typing::with(model, assumption).unwrap();
        let (mut seeds, mut constants) = (Vec::new(), Vec::new());
        for (i, info) in model.graph().output.iter().enumerate() {
            let shape = typing.shape(info.name()).unwrap();
            let weights = values(shape.iter().product(), OUTPUT + i as u32);
            constants.push(tensor_from_f32(format!("seed_{i}"), types[info.name()], &shape, &weights));
            seeds.push((info.name().to_string(), format!("seed_{i}")));
        }
        let trained: HashSet<String> = names.iter().cloned().collect();
        Gradients::new(&typing, &trained, &seeds, (vec![], constants), operators).map_err(|e| e.to_string())?
    };
    let dims = |name: &str| -> Vec<Option<usize>> {
        let t = gradients.graph.initializer.iter().find(|t| t.name() == name).unwrap();
        t.dims.iter().map(|&d| Some(d as usize)).collect()
    };
    let outputs = names
        .iter()
        .map(|n| {
            let gradient = gradients.of.get(n).ok_or_else(|| format!("no gradient for `{n}`"))?;
            Ok(tensor_info(gradient.clone(), types[n.as_str()], &dims(n)))
        })
        .collect::<Result<_, String>>()?;
    let mut backward = model.clone();
    *backward.graph_mut() = gradients.graph;
    backward.graph_mut().output = outputs;
    let imported = |domain: &str| model.proto.opset_import.iter().any(|o| o.domain() == domain);
    backward.proto.opset_import.extend(gradients.imports.into_iter().filter(|o| !imported(o.domain())));
    let found = run(runtime, &backward, x).map_err(|e| format!("the backward graph does not run: {e}"))?;
    Ok(names.iter().cloned().zip(found.into_iter().map(|g| g.into_iter().collect())).collect())
}

fn indices(list: &Value) -> Vec<i64> {
    list.as_array().map(|l| l.iter().map(|v| v.as_i64().unwrap()).collect()).unwrap_or_default()
}

/// What a gradient differs in from the golden summary of it.
fn differs(gradient: &[f64], golden: &Value, scale: f64) -> Option<String> {
    let norm = golden["norm"].as_f64().unwrap();
    let allowed = TOLERANCE * norm + ROUNDING * scale;
    let own = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
    let mut errors = vec![(own - norm).abs()];
    for (k, dot) in golden["dots"].as_array().unwrap().iter().enumerate() {
        let sign = |i: usize| 1.0 - 2.0 * (hash(i, SIGNS + k as u32) >> 31) as f64;
        let found: f64 = gradient.iter().enumerate().map(|(i, g)| g * sign(i)).sum();
        errors.push((found - dot.as_f64().unwrap()).abs());
    }
    let worst = errors.into_iter().fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
    (worst > allowed).then(|| format!("length {own}, PyTorch's {norm}, largest difference {worst}"))
}

/// Compares one fixture; returns what failed, and how many gradients were compared and could not be mapped.
fn check(
    runtime: &Arc<Runtime>,
    fixture: &Fixture,
    golden: &Value,
    operators: Operators,
) -> (Vec<String>, usize, usize) {
    let list = |key: &str| golden[key].as_array().unwrap();
    let mut names: Vec<String> = list("initializers").iter().map(|e| e["name"].as_str().unwrap().to_string()).collect();
    for part in list("folds").iter().flat_map(|f| f["from"].as_array().unwrap()) {
        let name = part["name"].as_str().unwrap().to_string();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let found = match gradients(runtime, fixture, &names, operators) {
        Ok(found) => found,
        Err(e) => return (vec![format!("{}: {e}", fixture.name())], 0, 0),
    };
    let scale = golden["scale"].as_f64().unwrap();
    let mut failures = Vec::new();
    for entry in list("initializers") {
        let name = entry["name"].as_str().unwrap();
        let mut gradient: Vec<f64> = found[name].iter().map(|&g| g as f64).collect();
        indices(&entry["holes"]).iter().for_each(|&i| gradient[i as usize] = 0.0);
        failures.extend(differs(&gradient, entry, scale).map(|e| format!("{}: `{name}`: {e}", fixture.name())));
    }
    for fold in list("folds") {
        // What was gathered into place is added up again.
        let mut gradient = vec![0.0; fold["length"].as_u64().unwrap() as usize];
        for part in fold["from"].as_array().unwrap() {
            let from = &found[part["name"].as_str().unwrap()];
            for (&i, &g) in indices(&part["index"]).iter().zip(from) {
                if let Ok(i) = usize::try_from(i) {
                    gradient[i] += g as f64;
                }
            }
        }
        let failed = differs(&gradient, fold, scale);
        failures.extend(failed.map(|e| format!("{}: {}: {e}", fixture.name(), fold["parameter"])));
    }
    // Where the exporter folded parameters together (norms into convolutions, tables into place), none of theirs stand
    // in the graph.
    let unmapped = if fixture.entry["folded"] == true { 0 } else { list("unmapped").len() };
    (failures, list("initializers").len() + list("folds").len(), unmapped)
}

/// Compares all fixtures, or those whose name contains one of `some`.
pub fn check_all(runtime: &Arc<Runtime>, operators: Operators, some: &[&str]) {
    let mut golden: Vec<Value> = Vec::new();
    for folder in ["gradients", "dialects", "exporters"] {
        let file = format!("fixtures/{folder}/golden.json");
        golden.extend(serde_json::from_slice::<Vec<Value>>(&std::fs::read(root().join(file)).unwrap()).unwrap());
    }
    let (mut failures, mut compared, mut unmapped) = (Vec::new(), 0, 0);
    let chosen = |f: &Fixture| some.is_empty() || some.iter().any(|s| f.name().contains(s));
    let exact = |f: &Fixture| f.tolerance() <= 1e-5;
    for fixture in all_fixtures().iter().filter(|f| chosen(f) && exact(f) && f.runs_on(runtime)) {
        let entry = golden.iter().find(|e| e["file"] == fixture.name());
        let entry = entry.unwrap_or_else(|| panic!("no golden gradients for {}", fixture.name()));
        let (failed, count, missing) = check(runtime, fixture, entry, operators);
        failures.extend(failed);
        compared += count;
        unmapped += missing;
    }
    assert!(failures.is_empty(), "{} of {compared} failed:\n{}", failures.len(), failures.join("\n"));
    if some.is_empty() {
        assert!(compared > 1400, "only {compared} gradients were compared");
        assert_eq!(unmapped, 0, "parameters that cannot be mapped");
    }
}

/// The gradient of a learngene's centroids, which each of its layers looks up, against the slope of the loss along it.
pub fn check_learngene(runtime: &Arc<Runtime>) {
    let all = fixtures();
    let fixture = all.iter().find(|f| f.name() == "timm-vit-unfused-ts17.onnx").unwrap();
    let ancestor = fixture.open();
    let typing = Typing::new(&ancestor).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let mut gene = Learngene::identity(&typing, &anatomy);
    for clusters in &mut gene.layers {
        *clusters = vec![Cluster { members: vec![0, 1, 3], centroid: 3 }, Cluster { members: vec![2], centroid: 2 }];
    }
    gene.group_ffns("0-1", &typing, &anatomy).unwrap();
    let mut model = gene.condense(&ancestor, &typing, &anatomy).unwrap();
    let assumption = Assumption { batch: 2, image: [16, 16] };
    let graph = differentiable(&Typing::with(&model, assumption.clone()).unwrap()).unwrap();
    *model.graph_mut() = graph;

    // Centroids that are looked up, and FFN weights that both layers use.
    let graph = model.graph();
    let floats: HashSet<&str> = graph.initializer.iter().filter(|t| is_trainable(t)).map(|t| t.name()).collect();
    let uses = |name: &str| graph.node.iter().flat_map(|n| &n.input).filter(|x| *x == name).count();
    let looked_up = |n: &&NodeProto| n.op_type() == "Gather" && floats.contains(n.input[0].as_str());
    let mut names: Vec<String> = graph.node.iter().filter(looked_up).map(|n| n.input[0].clone()).collect();
    assert!(!names.is_empty());
    names.extend(floats.iter().filter(|n| uses(n) > 1).map(|n| n.to_string()));
    names.sort();
    names.dedup();
    assert!(names.iter().any(|n| uses(n) > 1));

    let x = Array4::from_shape_vec((2, 3, 16, 16), values(2 * 3 * 16 * 16, INPUT)).unwrap();
    let found = gradients_of(runtime, &model, assumption, &x, &names, Operators::Standard).unwrap();
    let weights = values(2 * 7, OUTPUT);
    for name in &names {
        let t = model.graph().initializer.iter().find(|t| t.name() == *name).unwrap();
        let (dims, w): (Vec<usize>, _) = (t.shape(), to_f32(t).unwrap());
        let length = found[name].iter().map(|g| (*g as f64).powi(2)).sum::<f64>().sqrt();
        let size = w.iter().map(|w| (*w as f64).powi(2)).sum::<f64>().sqrt();
        let loss = |step: f64| -> f64 {
            let data: Vec<f32> =
                w.iter().zip(&found[name]).map(|(w, g)| (*w as f64 + step * *g as f64 / length) as f32).collect();
            let mut moved = model.clone();
            let tensors = &mut moved.graph_mut().initializer;
            *tensors.iter_mut().find(|t| t.name() == *name).unwrap() =
                tensor_from_f32(name.clone(), DataType::Float, &dims, &data);
            let y = run(runtime, &moved, &x).unwrap();
            y[0].iter().zip(&weights).map(|(y, w)| *y as f64 * *w as f64).sum()
        };
        let slope = |h: f64| (loss(h) - loss(-h)) / (2.0 * h);
        let h = 0.002 * size;
        let slope = (4.0 * slope(h / 2.0) - slope(h)) / 3.0;
        // The bias of keys, which Softmax ignores, has none.
        assert!((slope - length).abs() < 0.01 * length.max(1e-3), "`{name}`: slope {slope}, gradient {length}");
    }
}

/// A model in half precision has the gradients of the same model in single precision, as far as its numbers reach.
pub fn check_half(runtime: &Arc<Runtime>) {
    let all = fixtures();
    let fixture = all.iter().find(|f| f.name() == "timm-vit-unfused-ts17.onnx").unwrap();
    let mut single = fixture.open();
    let assumption = Assumption { batch: 2, image: [16, 16] };
    let graph = differentiable(&Typing::with(&single, assumption.clone()).unwrap()).unwrap();
    *single.graph_mut() = graph;
    let mut half = single.clone();
    let as_half = |t: &mut TensorProto| {
        if is_float(t) {
            let dims = t.shape();
            *t = tensor_from_f32(t.name().to_string(), DataType::Float16, &dims, &to_f32(t).unwrap());
        }
    };
    let graph = half.graph_mut();
    graph.initializer.iter_mut().for_each(as_half);
    graph.node.iter_mut().flat_map(|n| &mut n.attribute).filter_map(|a| a.t.as_mut()).for_each(as_half);
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        *info = tensor_info(info.name().to_string(), DataType::Float16, &declared_dims(info).unwrap());
    }
    let names: Vec<String> =
        single.graph().initializer.iter().filter(|t| is_trainable(t)).map(|t| t.name().to_string()).collect();
    let x = Array4::from_shape_vec((2, 3, 16, 16), values(2 * 3 * 16 * 16, INPUT)).unwrap();
    let truth = gradients_of(runtime, &single, assumption.clone(), &x, &names, Operators::Contrib).unwrap();
    let found = gradients_of(runtime, &half, assumption, &x, &names, Operators::Contrib).unwrap();
    let length = |v: &mut dyn Iterator<Item = f64>| v.map(|e| e * e).sum::<f64>().sqrt();
    let whole = length(&mut truth.values().flatten().map(|&g| g as f64));
    for name in &names {
        let own = length(&mut truth[name].iter().map(|&g| g as f64));
        let difference = length(&mut truth[name].iter().zip(&found[name]).map(|(a, b)| (a - b) as f64));
        assert!(difference < 0.02 * own + 1e-3 * whole, "`{name}`: {difference} of {own}");
    }
}
