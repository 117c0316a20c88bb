//! Densities of every fixture against its attention maps, read from the graph and summed up here with what the manifest says of
//! grid, prefix tokens and windows.

use std::sync::Arc;

use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::data::{InputShape, Loader};
use offshoot::density::measure;
use offshoot::graph::{Attributes, element_types};
use offshoot::onnx::{DataType, tensor_info};
use offshoot::runtime::{Runtime, decompose_attention};

use super::surgery::{channels_first, images, run};
use super::{Fixture, all_fixtures};

fn check(runtime: &Arc<Runtime>, fixture: &Fixture) -> Vec<String> {
    let model = fixture.open();
    let typing = Typing::new(&model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let x = images(fixture);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    ndarray_npy::write_npy(&path, &channels_first(fixture)).unwrap();
    let input = InputShape::of(&typing).unwrap();
    let loader = Loader::open(&path, &Default::default(), None, input).unwrap();
    let found = match measure(runtime, &model, &typing, &anatomy, &loader, |_| {}) {
        Ok(d) => d.layers,
        Err(e) => return vec![format!("{}: {e}", fixture.name())],
    };

    // The attention maps as outputs of the graph.
    let fused: Vec<usize> = typing.fused.keys().copied().collect();
    let decomposed = decompose_attention(&typing, &fused).unwrap();
    let types = element_types(model.graph());
    let mut exposed = model.clone();
    *exposed.graph_mut() = decomposed.graph;
    exposed.graph_mut().output = anatomy
        .layers
        .iter()
        .map(|l| {
            let k = l.softmax[0];
            let name = decomposed.probabilities.get(&k).cloned().unwrap_or(typing.graph.node[k].output[0].clone());
            let kind = types.get(name.as_str()).copied().unwrap_or(DataType::Float);
            tensor_info(name, kind, &[None; 4])
        })
        .collect();
    // Windows stand in the first axis of Swin's maps, so images go in one by one.
    let mut sums: Vec<Vec<f64>> = found.iter().map(|d| vec![0.0; d.len()]).collect();
    let patch = fixture.entry["patch_size"].as_f64().unwrap();
    let (mut prefix, grid) = (fixture.entry["prefix_tokens"].as_u64().unwrap() as usize, &fixture.entry["grid"]);
    let count = x.shape()[0];
    for image in x.axis_chunks_iter(ndarray::Axis(0), 1) {
        for (l, maps) in run(runtime, &exposed, &image.to_owned()).unwrap().iter().enumerate() {
            let truth = &fixture.entry["layers"][l];
            let heads = truth["heads"].as_u64().unwrap() as usize;
            // Where an optimiser moved the heads behind queries and keys, they go in front of them again.
            let softmax = &typing.graph.node[anatomy.layers[l].softmax[0]];
            let maps = match (softmax.int("axis"), maps.ndim()) {
                (Some(2), 4) => maps.view().permuted_axes(vec![0, 3, 1, 2]),
                _ => maps.view(),
            };
            let n = *maps.shape().last().unwrap();
            // A window sees its own tokens, and a later stage has larger ones.
            let (columns, stride) = match truth["window"].as_u64() {
                Some(w) => {
                    prefix = 0;
                    let stage = (truth["embedding_dim"].as_f64().unwrap()
                        / fixture.entry["embedding_dim"].as_f64().unwrap())
                    .round();
                    (w as usize, patch * stage)
                }
                None => (grid[1].as_u64().unwrap() as usize, patch),
            };
            let patches = n - prefix;
            let flat = maps.as_standard_layout();
            let flat = flat.as_slice().unwrap();
            let windows = flat.len() / (heads * n * n);
            let grouped = !anatomy.layers[l].shared.is_empty();
            for (h, sum) in sums[l].iter_mut().enumerate() {
                let mut total = 0.0;
                for w in 0..windows {
                    for i in 0..patches {
                        for j in 0..patches {
                            let dy = (i / columns) as f64 - (j / columns) as f64;
                            let dx = (i % columns) as f64 - (j % columns) as f64;
                            // Windows are the outer axis; queries that share a head of keys are the inner one.
                            let map = if grouped { h * windows + w } else { w * heads + h };
                            let a = flat[(map * n + i + prefix) * n + j + prefix] as f64;
                            total += a * dy.hypot(dx) * stride;
                        }
                    }
                }
                *sum += total / (windows * patches * count) as f64;
            }
        }
    }
    let mut failures = Vec::new();
    for (l, (a, b)) in found.iter().zip(&sums).enumerate() {
        for (h, (a, b)) in a.iter().zip(b).enumerate() {
            // Summed up in the graph's own precision.
            if (a - b).abs() > 10.0 * fixture.tolerance() as f64 * b.abs() {
                failures.push(format!("{}: layer {l} head {h}: {a} and {b}", fixture.name()));
            }
        }
    }
    failures
}

/// All fixtures.
pub fn check_all(runtime: &Arc<Runtime>) {
    let all = all_fixtures();
    let failures: Vec<String> = all.iter().filter(|f| f.runs_on(runtime)).flat_map(|f| check(runtime, f)).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}
