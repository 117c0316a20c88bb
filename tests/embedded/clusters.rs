//! Distances of heads against an independent computation, and what is clustered by them.

use std::sync::Arc;

use ndarray::Array2;
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::data::{InputShape, Loader};
use offshoot::density::attention_distances;
use offshoot::descendant::{FfnWidth, GrowOptions, grow};
use offshoot::fitting::similarity::{head_distances, neuron_clusters, neuron_distances};
use offshoot::learngene::{
    Algorithm, Cluster, Count, Eps, Learngene, NeuronRules, Similarities, Similarity, partition,
};
use offshoot::metadata::LEARNGENE;
use offshoot::onnx::Model;
use offshoot::runtime::{Options, Runtime, RuntimeKind};
use serde_json::Value;

use crate::common::binary::{done, json, refused, text};
use crate::common::{all_fixtures, root, surgery};

const ANCESTOR: &str = "models/fashion-vit.onnx";
const IMAGES: &str = "fixtures/fashion-images.idx3-ubyte";

fn tract() -> Arc<Runtime> {
    Runtime::start(&Options { kind: RuntimeKind::Tract, threads: Some(1), ..Options::default() }).unwrap()
}

fn ancestor() -> Model {
    let mut model = Model::open(root().join(ANCESTOR)).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    model
}

fn images(model: &Model, count: usize) -> Loader {
    let input = InputShape::of(&Typing::new(model).unwrap()).unwrap();
    let preprocess = model.metadata("offshoot.preprocess");
    Loader::open(root().join(IMAGES), &Default::default(), preprocess, input).unwrap().limit(count)
}

/// Distances by attention, output and prediction.
fn measure(model: &Model, images: usize) -> [Vec<Array2<f64>>; 3] {
    let (typing, runtime) = (Typing::new(model).unwrap(), tract());
    let anatomy = Anatomy::new(&typing).unwrap();
    let loader = self::images(model, images);
    let attention = attention_distances(&runtime, model, &typing, &anatomy, &loader, |_, _| {}).unwrap();
    let heads = head_distances(&runtime, model, &loader, |_| {}).unwrap();
    [attention, heads.output, heads.prediction]
}

#[test]
fn distances_equal_an_independent_computation() {
    let golden = std::fs::read(root().join("fixtures/density/similarities.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let found = measure(&ancestor(), golden["images"].as_u64().unwrap() as usize);
    let mut compared = 0;
    for (kind, layers) in ["attention", "output", "prediction"].iter().zip(&found) {
        for (l, distances) in layers.iter().enumerate() {
            for (a, row) in golden[kind][l].as_array().unwrap().iter().enumerate() {
                for (b, truth) in row.as_array().unwrap().iter().enumerate() {
                    let (d, truth) = (distances[[a + 1, b]], truth.as_f64().unwrap());
                    assert!((d - truth).abs() < 1e-5, "{kind}, layer {l}, heads {} and {b}: {d} and {truth}", a + 1);
                    assert_eq!(d, distances[[b, a + 1]]);
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 3 * 8 * 28);
    let (model, mut compared) = (ancestor(), 0);
    let loader = images(&model, golden["images"].as_u64().unwrap() as usize);
    for (kind, key) in [(Similarity::Output, "neuron_output"), (Similarity::Prediction, "neuron_prediction")] {
        neuron_distances(
            &tract(),
            &model,
            &loader,
            &Similarities(vec![kind]),
            |_| {},
            |l, distances, adds| {
                assert!(distances.dim() == (256, 256) && adds.len() == 256 && adds.iter().all(|a| *a > 0.0));
                for (a, row) in golden[key][l].as_array().unwrap().iter().enumerate() {
                    for (b, truth) in row.as_array().unwrap().iter().enumerate() {
                        let (d, truth) = (distances[[a + 1, b]], truth.as_f64().unwrap());
                        assert!((d - truth).abs() < 1e-6 + 1e-3 * truth, "{key}, layer {l}: {d} and {truth}");
                        compared += 1;
                    }
                }
            },
        )
        .unwrap();
    }
    assert_eq!(compared, 2 * 8 * 28);
}

/// Neurons 0 and 1 of every FFN made the same, in every dialect: they are found to be the same, and a descendant that
/// has one of them for both computes what it did.
#[test]
fn neurons_that_are_the_same_are_found_and_merged() {
    let runtime = tract();
    let (mut failures, mut merged) = (Vec::new(), 0);
    for fixture in all_fixtures().iter().filter(|f| f.runs_on(&runtime)) {
        let (model, name) = (fixture.open(), fixture.name());
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let mut gene = Learngene::identity(&typing, &anatomy);
        let width = |l: &offshoot::anatomy::Attention| {
            let ffn = l.ffn().filter(|f| f.hidden_factor(&typing).is_some());
            ffn.map_or(0, |f| typing.factors.size(&f.hidden))
        };
        let widths: Vec<usize> = anatomy.layers.iter().map(width).collect();
        let pairs = |n: &usize| -> Vec<Cluster> {
            let alone = (2..*n).map(|h| Cluster { members: vec![h], centroid: h });
            let both = (*n > 2).then(|| Cluster { members: vec![0, 1], centroid: 0 });
            both.into_iter().chain(alone).collect()
        };
        // One width for all, since a descendant is asked for one.
        let Some(&n) = widths.iter().find(|n| **n > 2).filter(|n| widths.iter().all(|w| w == *n)) else { continue };
        gene.cluster_neurons(widths.iter().map(pairs).collect()).unwrap();
        let twice = gene.condense(&model, &typing, &anatomy).unwrap();
        let x = surgery::images(fixture);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        ndarray_npy::write_npy(&path, &surgery::channels_first(fixture)).unwrap();
        let input = InputShape::of(&Typing::new(&twice).unwrap()).unwrap();
        let loader = Loader::open(&path, &Default::default(), None, input).unwrap();
        let rules = NeuronRules {
            similarity: Similarities(vec![Similarity::Output]),
            algorithm: Algorithm::Agglomerative(Count::Of(n - 1)),
            eps: None,
        };
        match neuron_clusters(&runtime, &twice, &loader, &rules, |_| {}) {
            Ok(found) => {
                for (l, clusters) in found.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
                    // Others may be the same by nature: a ReLU that is never open.
                    let both = clusters.iter().find(|c| c.members.contains(&0)).unwrap();
                    if clusters.len() != n - 1 || both.members.len() > 1 && !both.members.contains(&1) {
                        failures.push(format!("{name}: layer {l}: {:?}", clusters[0]));
                    }
                }
            }
            Err(e) if e.hint_text().is_some() => println!("{name}: {e}"),
            Err(e) => failures.push(format!("{name}: {e}")),
        }
        let shape = GrowOptions { ffn_width: FfnWidth::Neurons(n - 1), ..GrowOptions::default() };
        let child = match grow(&twice, &gene, &shape) {
            Ok(child) => child,
            // The forms in which FFNs cannot be resized say so, with clusters or without.
            Err(e) => {
                if let Ok(plain) = grow(&model, &Learngene::identity(&typing, &anatomy), &shape) {
                    failures.push(format!("{name}: {e}, and without clusters {:?}", plain.plan.layers[0].ffn_width));
                }
                continue;
            }
        };
        let run = |model: &Model| surgery::run(&runtime, model, &x).unwrap();
        let (before, after) = (run(&twice), run(&child.model));
        let error = surgery::error(&before, &after);
        // A norm over the neurons sees one less.
        let normed = child.plan.warnings.iter().any(|w| w.contains("norm"));
        if error > fixture.tolerance() && !normed {
            failures.push(format!("{name}: the merged neurons change the output by {error}"));
        }
        merged += usize::from(!normed);
    }
    println!("{merged} fixtures");
    assert!(failures.is_empty() && merged > 60, "{} of {merged}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_same_head_twice_is_found_by_every_similarity() {
    let model = ancestor();
    let typing = Typing::new(&model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let mut gene = Learngene::identity(&typing, &anatomy);
    for clusters in &mut gene.layers {
        // Head 5 gets the queries, keys and values of head 2.
        clusters.retain(|c| !matches!(c.centroid, 2 | 5));
        clusters.insert(0, Cluster { members: vec![2, 5], centroid: 2 });
    }
    let twice = gene.condense(&model, &typing, &anatomy).unwrap();
    for (kind, layers) in ["attention", "output", "prediction"].iter().zip(measure(&twice, 8)) {
        for (l, distances) in layers.iter().enumerate() {
            let others =
                distances.indexed_iter().filter(|((a, b), _)| a != b && (*a, *b) != (2, 5) && (*a, *b) != (5, 2));
            let least = others.map(|(_, d)| *d).fold(f64::INFINITY, f64::min);
            let same = distances[[2, 5]];
            assert!(same < 0.02 * least, "{kind}, layer {l}: {same}, and {least} between others");
            for algorithm in [Algorithm::Agglomerative(Count::Of(7)), Algorithm::KMeans(Count::Of(7))] {
                assert_eq!(
                    partition(distances, algorithm, Eps::Auto, 1).0[0],
                    [2, 5],
                    "{kind}, layer {l}, {algorithm}"
                );
            }
            let members = partition(distances, Algorithm::Dbscan, Eps::Auto, 1).0;
            assert!(members.iter().any(|m| m.contains(&2) && m.contains(&5)), "{kind}, layer {l}: {members:?}");
        }
    }
}

/// Heads 0 and 1 of every layer made the same, in every dialect: no distance lies between them, and the others are as
/// they were.
#[test]
fn the_same_head_twice_is_found_in_every_fixture() {
    let runtime = tract();
    let (mut failures, mut compared) = (Vec::new(), 0);
    for fixture in all_fixtures().iter().filter(|f| f.runs_on(&runtime)) {
        let model = fixture.open();
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let mut gene = Learngene::identity(&typing, &anatomy);
        for clusters in gene.layers.iter_mut().filter(|c| c.len() > 1) {
            clusters.splice(..2, [Cluster { members: vec![0, 1], centroid: 0 }]);
        }
        // Talking heads mix what is then the same.
        if gene.is_identity() || anatomy.layers.iter().any(|l| !l.head_mixers.is_empty()) {
            continue;
        }
        let twice = gene.condense(&model, &typing, &anatomy).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.npy");
        ndarray_npy::write_npy(&path, &surgery::channels_first(fixture)).unwrap();
        let (typing, name) = (Typing::new(&twice).unwrap(), fixture.name());
        let anatomy = Anatomy::new(&typing).unwrap();
        let loader = Loader::open(&path, &Default::default(), None, InputShape::of(&typing).unwrap()).unwrap();
        let maps = attention_distances(&runtime, &twice, &typing, &anatomy, &loader, |_, _| {});
        let outputs = head_distances(&runtime, &twice, &loader, |_| {});
        let mut check = |kind: &str, layers: Vec<Array2<f64>>| {
            assert_eq!(layers.len(), gene.layers.len());
            // Heads without an axis of their own cannot be made the same.
            let alike = |l: usize| !anatomy.layers[l].head_factors(&typing).is_empty();
            for (l, d) in layers.iter().enumerate().filter(|(l, d)| d.nrows() > 1 && alike(*l)) {
                let largest = d.iter().fold(0.0f64, |m, v| m.max(*v));
                if d[[0, 1]] > 2e-3 * largest.max(1e-3) || d[[0, 1]].is_nan() || d.nrows() > 2 && largest < 1e-6 {
                    failures.push(format!("{name}: {kind} in layer {l}: {} of {largest}", d[[0, 1]]));
                }
                compared += 1;
            }
        };
        match maps {
            Ok(maps) => check("attention", maps),
            Err(e) => check(&format!("attention: {e}"), vec![Array2::ones((2, 2)); gene.layers.len()]),
        }
        match outputs {
            Ok(found) => {
                check("output", found.output);
                check("prediction", found.prediction);
            }
            // A batch that the file fixes, and projections that are told apart by no axis, are refused with a reason.
            Err(e) if e.hint_text().is_some() => println!("{name}: {e}"),
            Err(e) => check(&format!("outputs: {e}"), vec![Array2::ones((2, 2)); gene.layers.len()]),
        }
    }
    println!("{compared} layers compared");
    assert!(failures.is_empty() && compared > 200, "{} of {compared}:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn learngenes_say_what_they_were_clustered_by() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let few = ["--images", IMAGES, "--limit", "8", "--runtime", "tract", "--json"];
    let condense = |name: &str, more: &[&str]| -> Value {
        json(&[&["condense", ANCESTOR, "-o", text(&at(name))][..], &few, more].concat())
    };
    let sizes = |gene: &Value| -> Vec<usize> {
        gene["layers"].as_array().unwrap().iter().map(|l| l.as_array().unwrap().len()).collect()
    };
    let plain = condense("plain", &[]);
    assert_eq!((&plain["similarity"], &plain["algorithm"]), (&"density".into(), &"dbscan".into()));
    assert!(plain["eps"].as_array().unwrap().iter().all(|e| e.as_f64() == Some(1.25)));

    let gene = condense("output", &["--similarity", "output", "--cluster", "agglomerative:3"]);
    assert_eq!((&gene["similarity"], &gene["algorithm"]), (&"output".into(), &"agglomerative:3".into()));
    assert_eq!(sizes(&gene), [3; 8]);
    let stored = Model::open(at("output")).unwrap();
    let stored: Value = serde_json::from_str(stored.metadata(LEARNGENE).unwrap()).unwrap();
    assert_eq!((&stored["similarity"], &stored["layers"]), (&gene["similarity"], &gene["layers"]));
    // A learngene is a learngene, whatever it was clustered by.
    let plan = json(&["grow", text(&at("output")), "--heads", "3", "-o", text(&at("child")), "--json"]);
    assert!(plan["layers"].as_array().unwrap().iter().all(|l| l["heads"] == 3));

    let mixed = ["--similarity", "density+attention+prediction", "--ffn-eps", "auto"];
    let gene = condense("mixed", &mixed);
    assert_eq!(gene["similarity"], "density+attention+prediction");
    assert!(gene["eps"].as_array().unwrap().iter().all(|e| e.as_f64().unwrap() > 0.0));
    assert!(sizes(&gene).iter().all(|n| (2..8).contains(n)), "{:?}", sizes(&gene));
    let means = condense("means", &["--cluster", "kmeans:auto"]);
    assert!(sizes(&means).iter().all(|n| (2..8).contains(n)));

    let bad = |more: &[&str], says: &str| {
        let output =
            crate::common::binary::offshoot(&[&["condense", ANCESTOR, "-o", text(&at("no"))][..], &few, more].concat());
        assert_eq!(output.status.code(), Some(2));
        let why = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(why.contains(says), "{more:?}: {why}");
    };
    // Neurons: half as many clusters, of which a descendant of that width takes each.
    let gene = condense("neurons", &["--neuron-cluster", "agglomerative:50%"]);
    let neurons = gene["neurons"].as_array().unwrap();
    assert!(neurons.len() == 8 && neurons.iter().all(|l| l.as_array().unwrap().len() == 128), "{gene}");
    let plan = json(&["grow", text(&at("neurons")), "--ffn-width", "50%", "-o", text(&at("half")), "--json"]);
    assert!(plan["layers"].as_array().unwrap().iter().all(|l| l["ffn_width"] == 128));
    for how in [&["dbscan", "--neuron-eps", "auto"][..], &["kmeans:200", "--neuron-similarity", "output+prediction"]] {
        let gene = condense(how[0], &[&["--neuron-cluster"], how].concat());
        let counts: Vec<usize> =
            gene["neurons"].as_array().unwrap().iter().map(|l| l.as_array().unwrap().len()).collect();
        assert!(counts.iter().all(|n| (2..256).contains(n)), "{counts:?}");
    }
    bad(&["--neuron-cluster", "dbscan", "--neuron-similarity", "density"], "neurons have no density");
    bad(&["--neuron-eps", "1"], "--neuron-cluster");
    bad(&["--similarity", "colour"], "none of density, attention, output and prediction");
    bad(&["--cluster", "kmeans:0"], "no number of clusters");
    bad(&["--eps", "-3"], "");
    refused(
        &["grow", ANCESTOR, "--no-images", "--similarity", "output", "-o", text(&at("no"))],
        &["need images to measure on"],
    );
    done(&[
        "grow",
        ANCESTOR,
        "--images",
        IMAGES,
        "--limit",
        "8",
        "--similarity",
        "attention",
        "--runtime",
        "tract",
        "--heads",
        "2",
        "-o",
        text(&at("direct")),
    ]);
}

/// DaViT's second layer attends between channels.
#[test]
fn layers_without_densities_stay_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let images = at("x.npy");
    let fixture = |name: &str| all_fixtures().into_iter().find(|f| f.name() == name).unwrap();
    let davit = fixture("family-davit-ts17.onnx");
    ndarray_npy::write_npy(&images, &surgery::channels_first(&davit)).unwrap();
    let few = ["--images", text(&images), "--runtime", "tract", "--json"];
    let model = text(&davit.path);

    let measured = json(&[&["density", model][..], &few].concat());
    let heads: Vec<usize> =
        measured["densities"].as_array().unwrap().iter().map(|d| d.as_array().unwrap().len()).collect();
    assert_eq!(heads, [2, 0]);
    assert_eq!(measured["without"][0]["layer"], 1);
    let reason = measured["without"][0]["reason"].as_str().unwrap();
    assert_eq!(reason, "its 8 queries and 8 keys have no known place on the image");
    done(&["density", model, "--images", text(&images), "--runtime", "tract", "--plot", text(&at("plot.svg"))]);

    let condense = |name: &str, more: &[&str]| -> Vec<usize> {
        let gene = at(name);
        let gene =
            json(&[&["condense", model, "-o", text(&gene), "--cluster", "agglomerative:1"][..], &few, more].concat());
        gene["layers"].as_array().unwrap().iter().map(|l| l.as_array().unwrap().len()).collect()
    };
    assert_eq!(condense("gene", &[]), [1, 2]);
    assert_eq!(condense("mixed", &["--similarity", "density+attention"]), [1, 2]);
    assert_eq!(condense("maps", &["--similarity", "attention", "--ffn-eps", "auto"]), [1, 1]);
    let (gene, child) = (at("gene"), at("child"));
    for order in ["ascending", "priority"] {
        done(&["grow", text(&gene), "--heads", "2", "--order", order, "--force", "-o", text(&child)]);
    }
    let path = at("child.npy");
    let xcit = fixture("family-xcit-ts17.onnx");
    ndarray_npy::write_npy(&path, &surgery::channels_first(&xcit)).unwrap();
    refused(
        &["density", text(&xcit.path), "--images", text(&path), "--runtime", "tract"],
        &["no layer has densities", "of layer 0, its 6 queries and 6 keys have no known place"],
    );
}
