//! Gradients of every weight of a fixture against finite differences of the graph itself.

use std::collections::HashSet;
use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use offshoot::axes::Typing;
use offshoot::onnx::{DataType, Model, tensor_from_f32, tensor_info, to_f32};
use offshoot::runtime::{Runtime, decompose_attention};
use offshoot::training::{Gradients, Operators, is_trainable};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::Fixture;
use super::surgery::{images, run};

/// Σ output · R: a loss whose gradient with respect to each output is R.
fn loss(outputs: &[ArrayD<f32>], weights: &[Vec<f32>]) -> f64 {
    outputs.iter().zip(weights).flat_map(|(o, r)| o.iter().zip(r)).map(|(o, r)| *o as f64 * *r as f64).sum()
}

fn with_weight(model: &Model, name: &str, data: &[f32]) -> Model {
    let mut out = model.clone();
    let tensors = out.graph_mut();
    let t = tensors.initializer.iter_mut().find(|t| t.name() == name).unwrap();
    let dims: Vec<usize> = t.dims.iter().map(|&d| d as usize).collect();
    *t = tensor_from_f32(name, DataType::Float, &dims, data);
    out
}

/// Checks one fixture; returns what failed and how many weights were checked.
pub fn check(runtime: &Arc<Runtime>, fixture: &Fixture) -> (Vec<String>, usize) {
    let x: Array4<f32> = images(fixture);
    let mut model = fixture.open();
    {
        let typing = Typing::new(&model).unwrap();
        let fused: Vec<usize> = typing.fused.keys().copied().collect();
        let graph = decompose_attention(&typing, &fused).unwrap().graph;
        *model.graph_mut() = graph;
    }
    // Weights that are initializers; those in Constant nodes are left out, since only initializers are moved below.
    let typing = Typing::new(&model).unwrap();
    let initializers: HashSet<&str> = model.graph().initializer.iter().map(|t| t.name()).collect();
    let trained: HashSet<String> = typing
        .uses
        .iter()
        .map(|u| u.name.clone())
        .filter(|n| initializers.contains(n.as_str()) && is_trainable(typing.weights[n.as_str()]))
        .collect();
    let mut random = StdRng::seed_from_u64(3);
    let outputs = run(runtime, &model, &x).unwrap();
    if outputs[0].shape()[0] != 2 && typing.batch.is_some() {
        return (vec![format!("{}: the batch is not the assumed one", fixture.name())], 0);
    }
    // Graphs of fixed batch size run one image at a time; their gradient is that of one image.
    let x = if typing.batch.is_some() { x } else { x.slice(ndarray::s![..1, .., .., ..]).to_owned() };
    let base = run(runtime, &model, &x).unwrap();
    let mut seeds = Vec::new();
    let mut constants = Vec::new();
    let mut r = Vec::new();
    for (i, (info, o)) in model.graph().output.iter().zip(&base).enumerate() {
        let values: Vec<f32> = o.iter().map(|_| random.random_range(-1.0..1.0)).collect();
        let name = format!("seed_{i}");
        constants.push(tensor_from_f32(name.clone(), DataType::Float, o.shape(), &values));
        seeds.push((info.name().to_string(), name));
        r.push(values);
    }
    let gradients = match Gradients::new(&typing, &trained, &seeds, (Vec::new(), constants), Operators::Standard) {
        Ok(g) => g,
        Err(e) => return (vec![format!("{}: {e}", fixture.name())], 0),
    };
    let mut names: Vec<&String> = gradients.of.keys().collect();
    names.sort();
    let mut backward = model.clone();
    *backward.graph_mut() = gradients.graph.clone();
    backward.graph_mut().output = names
        .iter()
        .map(|n| {
            let dims: Vec<Option<usize>> = typing.weights[n.as_str()].dims.iter().map(|&d| Some(d as usize)).collect();
            tensor_info(gradients.of[*n].clone(), DataType::Float, &dims)
        })
        .collect();
    let found = match run(runtime, &backward, &x) {
        Ok(f) => f,
        Err(e) => return (vec![format!("{}: the backward graph does not run: {e}", fixture.name())], 0),
    };
    let mut failures = Vec::new();
    for (n, g) in names.iter().zip(&found) {
        let w = to_f32(typing.weights[n.as_str()]).unwrap();
        let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|e| (e as f64).powi(2)).sum::<f64>().sqrt();
        let length = norm(&mut g.iter().copied());
        let weight = norm(&mut w.iter().copied()).max(1e-3);
        // A gradient that rounding alone makes (a key's bias, which Softmax ignores) has nothing to be compared with.
        if length * weight < 1e-3 * loss(&base, &r).abs().max(1.0) {
            continue;
        }
        // Along the gradient itself the slope is its length; extrapolated over two steps.
        let slope = |h: f64| -> f64 {
            let at = |sign: f64| -> f64 {
                let moved: Vec<f32> =
                    w.iter().zip(g.iter()).map(|(w, g)| (*w as f64 + sign * h * *g as f64 / length) as f32).collect();
                loss(&run(runtime, &with_weight(&model, n, &moved), &x).unwrap(), &r)
            };
            (at(1.0) - at(-1.0)) / (2.0 * h)
        };
        let h = 0.002 * weight;
        let slope = (4.0 * slope(h / 2.0) - slope(h)) / 3.0;
        let error = (slope - length).abs() / length;
        if error.is_nan() || error > 0.01 {
            failures.push(format!("{}: `{n}`: slope {slope}, length of the gradient {length}", fixture.name()));
        }
    }
    (failures, names.len())
}
