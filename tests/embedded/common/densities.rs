//! Densities and attention-map distances of every fixture against its attention maps, read from the graph and summed up
//! here with what the manifest says of grid, prefix tokens and windows.

use std::sync::Arc;

use ndarray::Array2;
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::data::{InputShape, Loader};
use offshoot::density::{attention_distances, divergence, measure};
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
        // Channels that attend to channels have no place on the image.
        Err(e) if fixture.entry["density"] == false && e.to_string().contains("no known place") => return Vec::new(),
        Ok(_) if fixture.entry["density"] == false => return vec![format!("{}: has densities", fixture.name())],
        Ok(d) if fixture.entry["density"] == "finite" => {
            let sound = d.layers.iter().flatten().all(|d| d.is_finite() && *d > 0.0);
            return if sound { Vec::new() } else { vec![format!("{}: {:?}", fixture.name(), d.layers)] };
        }
        Ok(d) => d.layers,
        Err(e) => return vec![format!("{}: {e}", fixture.name())],
    };
    // Where some layers have densities and some have none, the manifest says which have.
    let listed = fixture.entry["density"].as_array();
    let has = |l: usize| listed.is_none_or(|layers| layers.iter().any(|at| *at == l));
    if let Some(l) = (0..found.len()).find(|&l| found[l].is_empty() == has(l)) {
        return vec![format!("{}: layer {l} has densities {:?}", fixture.name(), found[l])];
    }
    let apart = attention_distances(runtime, &model, &typing, &anatomy, &loader, |_, _| {});
    let apart = match apart {
        Ok(d) => d,
        Err(e) => return vec![format!("{}: {e}", fixture.name())],
    };

    // The attention maps as outputs of the graph.
    let fused: Vec<usize> = typing.fused.keys().copied().collect();
    let decomposed = decompose_attention(&typing, &fused).unwrap();
    let types = element_types(model.graph());
    let mut exposed = model.clone();
    *exposed.graph_mut() = decomposed.graph;
    // Heads that are attentions of their own have a map each.
    let maps_of = |l: usize| match anatomy.layers[l].has_separate_heads(&typing) {
        true => anatomy.layers[l].softmax.clone(),
        false => anatomy.layers[l].softmax[..1].to_vec(),
    };
    let softmax: Vec<usize> = (0..anatomy.layers.len()).flat_map(maps_of).collect();
    exposed.graph_mut().output = softmax
        .iter()
        .map(|&k| {
            let name = decomposed.probabilities.get(&k).cloned().unwrap_or(typing.graph.node[k].output[0].clone());
            let kind = types.get(name.as_str()).copied().unwrap_or(DataType::Float);
            tensor_info(name, kind, &[None; 4])
        })
        .collect();
    // Windows stand in the first axis of Swin's maps, so images go in one by one.
    let mut sums: Vec<Vec<f64>> = found.iter().map(|d| vec![0.0; d.len()]).collect();
    let mut means: Vec<Vec<Array2<f64>>> = found.iter().map(|d| vec![Array2::zeros((0, 0)); d.len()]).collect();
    let patch = fixture.entry["patch_size"].as_f64().unwrap();
    let (mut prefix, grid) = (fixture.entry["prefix_tokens"].as_u64().unwrap() as usize, &fixture.entry["grid"]);
    let count = x.shape()[0];
    for image in x.axis_chunks_iter(ndarray::Axis(0), 1) {
        let mut all = run(runtime, &exposed, &image.to_owned()).unwrap().into_iter();
        for l in 0..anatomy.layers.len() {
            let maps: Vec<_> = all.by_ref().take(maps_of(l).len()).collect();
            let truth = &fixture.entry["layers"][l];
            if !has(l) {
                continue;
            }
            prefix = truth["prefix"].as_u64().map_or(prefix, |p| p as usize);
            let heads = truth["heads"].as_u64().unwrap() as usize;
            // Where an optimiser moved the heads behind queries and keys, they go in front of them again.
            let softmax = &typing.graph.node[anatomy.layers[l].softmax[0]];
            let in_order = |maps: &ndarray::ArrayD<f32>| match (softmax.int("axis"), maps.ndim()) {
                (Some(2), 4) => maps.view().permuted_axes(vec![0, 3, 1, 2]).as_standard_layout().into_owned(),
                _ => maps.as_standard_layout().into_owned(),
            };
            let maps: Vec<_> = maps.iter().map(in_order).collect();
            let [m, n] = maps[0].shape()[maps[0].ndim() - 2..] else { panic!("an attention map has two axes") };
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
            let flat: Vec<f32> = maps.iter().flatten().copied().collect();
            let windows = flat.len() / (heads * m * n);
            assert!(windows > 0, "{}: layer {l} has {} maps", fixture.name(), flat.len() / (m * n));
            let grouped = !anatomy.layers[l].queries_per_kv_head.is_empty() || fixture.entry["heads_first"] == true;
            for (h, sum) in sums[l].iter_mut().enumerate() {
                let mut total = 0.0;
                for w in 0..windows {
                    // Windows are the outer axis (not NesT's); queries that share a head of keys are the inner one.
                    let map = if grouped { h * windows + w } else { w * heads + h };
                    let whole = Array2::from_shape_fn((m, n), |(i, j)| f64::from(flat[(map * m + i) * n + j]));
                    let mean = &mut means[l][h];
                    *mean = if mean.is_empty() { whole } else { &*mean + whole };
                    for i in 0..m - prefix {
                        let [y, x] = place(i, columns, stride);
                        for j in 0..n - prefix {
                            let [v, u] = place(j, key_columns, key_stride);
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
    for (l, (distances, means)) in apart.iter().zip(&mut means).enumerate().filter(|(l, _)| has(*l)) {
        // A row sums up to one in every window of every image.
        for mean in means.iter_mut() {
            let rows = mean.sum() / mean.nrows() as f64;
            *mean /= rows;
        }
        for ((a, b), d) in distances.indexed_iter() {
            let truth = divergence(means[a].view(), means[b].view());
            if (d - truth).abs() > 1e-3 * truth + 1e-6 {
                failures.push(format!("{}: layer {l}, heads {a} and {b}: {d} bits and {truth}", fixture.name()));
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
