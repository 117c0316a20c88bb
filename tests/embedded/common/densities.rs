//! Densities of every fixture against its attention maps, read from the graph and summed up here with what the manifest says of
//! grid, prefix tokens and windows.

use std::sync::Arc;

use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::data::{InputShape, Loader};
use offshoot::density::measure;
use offshoot::graph::element_types;
use offshoot::onnx::{DataType, tensor_info};
use offshoot::runtime::{Runtime, decompose_attention};

use super::surgery::{images, run};
use super::{Fixture, all_fixtures};

fn check(runtime: &Arc<Runtime>, fixture: &Fixture) -> Vec<String> {
    let model = fixture.open();
    let typing = Typing::new(&model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let x = images(fixture);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.npy");
    ndarray_npy::write_npy(&path, &x).unwrap();
    let input = InputShape::of(&typing).unwrap();
    let loader = Loader::open(&path, &Default::default(), None, input).unwrap();
    let found = match measure(runtime, &model, &typing, &anatomy, &loader, |_| {}) {
        // Channels that attend to channels, and attention beyond the encoder, have no place on the image.
        Err(e) if fixture.entry["density"] == false && e.to_string().contains("no known place") => return Vec::new(),
        Ok(_) if fixture.entry["density"] == false => return vec![format!("{}: has densities", fixture.name())],
        Ok(d) if fixture.entry["density"] == "finite" => {
            let sound = d.layers.iter().flatten().all(|d| d.is_finite() && *d > 0.0);
            return if sound { Vec::new() } else { vec![format!("{}: {:?}", fixture.name(), d.layers)] };
        }
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
            let [m, n] = maps.shape()[maps.ndim() - 2..] else { panic!("an attention map has two axes") };
            // A window sees its own tokens, and a later stage has larger ones.
            let ([columns, key_columns], [stride, key_stride]) = match (truth["window"].as_u64(), &truth["place"]) {
                (Some(w), _) => {
                    prefix = 0;
                    let stage = (truth["embedding_dim"].as_f64().unwrap()
                        / fixture.entry["embedding_dim"].as_f64().unwrap())
                    .round();
                    ([w as usize; 2], [patch * stage; 2])
                }
                (_, place) if place.is_array() => {
                    ([0, 2].map(|i| place[i].as_u64().unwrap() as usize), [1, 3].map(|i| place[i].as_f64().unwrap()))
                }
                _ => ([grid[1].as_u64().unwrap() as usize; 2], [patch; 2]),
            };
            let place =
                |i: usize, columns: usize, stride: f64| [i / columns, i % columns].map(|at| (at as f64 + 0.5) * stride);
            let flat = maps.as_standard_layout();
            let flat = flat.as_slice().unwrap();
            let windows = flat.len() / (heads * m * n);
            let grouped = !anatomy.layers[l].shared.is_empty() || fixture.entry["heads_first"] == true;
            for (h, sum) in sums[l].iter_mut().enumerate() {
                let mut total = 0.0;
                for w in 0..windows {
                    for i in 0..m - prefix {
                        let [y, x] = place(i, columns, stride);
                        for j in 0..n - prefix {
                            let [v, u] = place(j, key_columns, key_stride);
                            // Windows are the outer axis (not NesT's); queries that share a head of keys are the inner one.
                            let map = if grouped { h * windows + w } else { w * heads + h };
                            let a = flat[(map * m + i + prefix) * n + j + prefix] as f64;
                            total += a * (y - v).hypot(x - u);
                        }
                    }
                }
                *sum += total / (windows * (m - prefix) * count) as f64;
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
