//! Initialisations: what each method inherits byte for byte, what it draws, and that every child runs; transforms and
//! folding.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use offshoot::anatomy::{Anatomy, WeightKind, weight_kinds};
use offshoot::axes::Typing;
use offshoot::descendant::{
    FfnWidth, GrowOptions, Heads, Inherit, Init, LayerSource, Layers, Transform, grow, simplify,
};
use offshoot::learngene::{Cluster, Learngene};
use offshoot::onnx::proto::TensorProto;
use offshoot::onnx::{Model, data_type, payload, tensor_from_f32, to_f32};
use offshoot::runtime::{Options, Runtime, RuntimeKind};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::Value;

use crate::common::binary::{json, refused, text};
use crate::common::surgery::{error, images, run};
use crate::common::{Fixture, all_fixtures, fixtures, root};

fn runtime() -> Arc<Runtime> {
    Runtime::start(&Options { kind: RuntimeKind::Tract, ..Default::default() }).unwrap()
}

fn ancestor() -> Model {
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    model
}

fn child(model: &Model, shape: &GrowOptions) -> offshoot::error::Result<offshoot::descendant::Descendant> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    grow(model, &Learngene::identity(&typing, &anatomy), shape)
}

fn pictures() -> Array4<f32> {
    let mut random = StdRng::seed_from_u64(2);
    Array4::from_shape_simple_fn((2, 1, 28, 28), || random.random_range(-1.0..1.0))
}

fn weights(model: &Model) -> HashMap<&str, &TensorProto> {
    model.graph().initializer.iter().map(|t| (t.name(), t)).collect()
}

/// Mean and standard deviation.
fn moments(data: &[f32]) -> (f64, f64) {
    let n = data.len() as f64;
    let mean = data.iter().map(|&v| v as f64).sum::<f64>() / n;
    (mean, (data.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n).sqrt())
}

/// The layer of the bundled ancestor that a weight's name speaks of.
fn block(name: &str) -> Option<usize> {
    name.split("blocks.").nth(1)?.split(['.', '/']).next()?.parse().ok()
}

/// Initializers of the bundled ancestor are named after the modules that they belong to, matrices by their place: this
/// gives every initializer of a graph the layer in whose anatomy it is used.
fn layer_of(model: &Model) -> HashMap<String, usize> {
    let mut layers: HashMap<String, usize> = HashMap::new();
    for node in &model.graph().node {
        let output = node.output.first().and_then(|o| block(o));
        for x in &node.input {
            if let Some(l) = output.or_else(|| block(x)) {
                layers.insert(x.clone(), l);
            }
        }
    }
    layers
}

#[test]
fn from_scratch_draws_everything_as_timm() {
    let model = ancestor();
    let shape = GrowOptions {
        init: Init::FromScratch,
        layers: Layers::First(3),
        heads: Heads::Count(4),
        embedding_dim: Some(48),
        ffn_width: FfnWidth::Neurons(320),
        seed: 7,
        ..GrowOptions::default()
    };
    let grown = child(&model, &shape).unwrap();
    assert!(grown.plan.layers.iter().all(|l| l.source == LayerSource::Random && l.slots.is_empty()));
    assert_eq!(grown.plan.embedding_dim, Some(48));
    let typing = Typing::new(&grown.model).unwrap();
    let kinds = weight_kinds(&typing);
    let mut seen = HashMap::new();
    for (name, kind) in &kinds {
        let tensor = typing.weights[name.as_str()];
        let data = to_f32(tensor).unwrap();
        let all = |v: f32| data.iter().all(|&d| d == v);
        let patches = typing.graph.node.iter().any(|n| n.op_type() == "Conv" && n.input[1..].contains(name));
        *seen.entry(*kind).or_insert(0) += 1;
        match kind {
            _ if patches => {
                // torch's convolution: even within one over the root of 4 x 4 pixels.
                assert!(data.iter().all(|v| v.abs() <= 0.25), "{name}");
                assert!(
                    *kind == WeightKind::Bias || (moments(&data).1 / (0.25 / 3f64.sqrt()) - 1.0).abs() < 0.1,
                    "{name}"
                );
            }
            WeightKind::NormScale => assert!(all(1.0), "{name}"),
            WeightKind::NormBias | WeightKind::Bias => assert!(all(0.0), "{name}"),
            WeightKind::Constant => {}
            _ => {
                let (mean, deviation) = moments(&data);
                let n = data.len() as f64;
                assert!(mean.abs() < 5.0 * 0.02 / n.sqrt(), "{name}: mean {mean}");
                assert!((deviation / 0.02 - 1.0).abs() < 4.0 / (2.0 * n).sqrt(), "{name}: deviation {deviation}");
            }
        }
    }
    for kind in
        [WeightKind::Contraction, WeightKind::NormScale, WeightKind::Bias, WeightKind::Token, WeightKind::Position]
    {
        assert!(seen.contains_key(&kind), "{kind:?}");
    }
    let outputs = run(&runtime(), &grown.model, &pictures()).unwrap();
    assert!(outputs[0].iter().all(|v| v.is_finite()));
    // The same seed gives the same bytes, another seed others; no two matrices are equal.
    assert_eq!(child(&model, &shape).unwrap().model.to_bytes(), grown.model.to_bytes());
    let other = child(&model, &GrowOptions { seed: 8, ..shape }).unwrap();
    assert_ne!(other.model.to_bytes(), grown.model.to_bytes());
    let matrices: Vec<_> = grown.model.graph().initializer.iter().filter(|t| t.dims.len() == 2).map(payload).collect();
    for (i, a) in matrices.iter().enumerate() {
        assert!(matrices[..i].iter().all(|b| a != b));
    }
}

#[test]
fn inherited_layers_are_equal_byte_for_byte_and_others_are_drawn() {
    let model = ancestor();
    let (old, layers) = (weights(&model), layer_of(&model));
    let case = |init, inherit, kept: &str, inherited: &[usize]| {
        let shape = GrowOptions { init, inherit, layers: kept.parse().unwrap(), ..GrowOptions::default() };
        let grown = child(&model, &shape).unwrap();
        let planned: Vec<usize> =
            grown.plan.layers.iter().filter(|l| l.source == LayerSource::Inherited).map(|l| l.ancestor_layer).collect();
        assert_eq!(planned, inherited, "{init:?}");
        let (mut same, mut drawn) = (0, 0);
        for (name, tensor) in weights(&grown.model) {
            let Some(was) = old.get(name) else { continue };
            match layers.get(name) {
                Some(l) if !inherited.contains(l) => {
                    if payload(tensor) == payload(was) {
                        let data = to_f32(tensor).unwrap();
                        assert!(
                            tensor.dims.iter().product::<i64>() <= 1 || data[0] == data[1],
                            "{init:?}: {name} is the ancestor's"
                        );
                    } else {
                        drawn += 1;
                        if tensor.dims.len() == 2 {
                            assert!((moments(&to_f32(tensor).unwrap()).1 / 0.02 - 1.0).abs() < 0.05, "{name}");
                        }
                    }
                }
                _ => {
                    assert_eq!(payload(tensor), payload(was), "{init:?}: {name}");
                    same += 1;
                }
            }
        }
        let random = grown.plan.layers.len() - inherited.len();
        // Four matrices, four biases, two norms: at least eight of them differ from a fresh layer's.
        assert!(drawn >= 8 * random && same > 8 * inherited.len(), "{init:?}: {same} equal, {drawn} drawn");
        assert!(run(&runtime(), &grown.model, &pictures()).unwrap()[0].iter().all(|v| v.is_finite()));
    };
    case(Init::PretrainFinetune, None, "even:4", &[0, 2, 5, 7]);
    case(Init::PretrainFinetune, Some(Inherit::Front(3)), "first:8", &[0, 1, 2]);
    case(Init::PretrainFinetune, Some(Inherit::Middle(4)), "first:8", &[2, 3, 4, 5]);
    case(Init::PretrainFinetune, Some(Inherit::Last(1)), "first:4", &[3]);
    case(Init::HeuristicLearngene, None, "6", &[4, 5, 6, 7]);
    case(Init::HeuristicLearngene, Some(Inherit::Count(2)), "5", &[6, 7]);
    case(Init::AutoLearngene, None, "6", &[0, 1, 2, 3]);
    case(Init::AutoLearngene, Some(Inherit::Count(1)), "3", &[0]);
}

#[test]
fn pretrained_weights_are_cut_from_the_end() {
    let model = ancestor();
    let shape = GrowOptions {
        init: Init::PretrainFinetune,
        heads: Heads::Count(3),
        ffn_width: FfnWidth::Neurons(100),
        ..GrowOptions::default()
    };
    let grown = child(&model, &shape).unwrap();
    assert_eq!(grown.plan.layers[0].slots, [0, 1, 2]);
    let (old, new) = (weights(&model), weights(&grown.model));
    let name = old.keys().find(|n| n.contains("blocks.0.") && n.ends_with("up.bias")).unwrap();
    let (was, is) = (to_f32(old[name]).unwrap(), to_f32(new[name]).unwrap());
    assert_eq!(is, was[..100]);
    let name = old.keys().find(|n| n.contains("blocks.0.") && n.ends_with("qkv.bias")).unwrap();
    let (was, is) = (to_f32(old[name]).unwrap(), to_f32(new[name]).unwrap());
    let third = was.len() / 3;
    let width = third / 8 * 3;
    let prefix: Vec<f32> = (0..3).flat_map(|q| was[q * third..q * third + width].to_vec()).collect();
    assert_eq!(is, prefix);
}

#[test]
fn weight_selection_takes_evenly_spaced_elements_of_every_axis() {
    let model = ancestor();
    let shape = GrowOptions {
        init: Init::WeightSelection,
        layers: Layers::First(4),
        heads: Heads::Count(4),
        ffn_width: FfnWidth::Neurons(100),
        embedding_dim: Some(32),
        ..GrowOptions::default()
    };
    let grown = child(&model, &shape).unwrap();
    assert!(grown.plan.warnings.iter().any(|w| w.contains("9 norms") && w.contains("32")), "{:?}", grown.plan.warnings);
    let pick = |t: usize, s: usize| -> Vec<usize> {
        if t.is_multiple_of(s) {
            (0..s).map(|i| i * (t / s)).collect()
        } else {
            (0..s).map(|i| (i as f64 * (t - 1) as f64 / (s - 1) as f64).round() as usize).collect()
        }
    };
    let old = weights(&model);
    let mut checked = 0;
    for (name, tensor) in weights(&grown.model) {
        let Some(was) = old.get(name).filter(|t| offshoot::onnx::is_float(t)) else { continue };
        if name.starts_with("head") || tensor.dims.iter().product::<i64>() == 1 {
            continue;
        }
        let (dims, from) = (tensor.dims.clone(), was.dims.clone());
        let lists: Vec<Vec<usize>> = from.iter().zip(&dims).map(|(&t, &s)| pick(t as usize, s as usize)).collect();
        let (data, source) = (to_f32(tensor).unwrap(), to_f32(was).unwrap());
        for (i, v) in data.iter().enumerate() {
            let (mut rest, mut at, mut stride) = (i, 0, 1);
            for a in (0..dims.len()).rev() {
                at += lists[a][rest % dims[a] as usize] * stride;
                rest /= dims[a] as usize;
                stride *= from[a] as usize;
            }
            assert_eq!(*v, source[at], "{name}[{i}]");
        }
        checked += 1;
    }
    assert!(checked > 40, "{checked}");
    // The classifier is not inherited.
    let head = weights(&grown.model)["head.weight"].clone();
    assert!((moments(&to_f32(&head).unwrap()).1 / 0.02 - 1.0).abs() < 0.15);
    let outputs = run(&runtime(), &grown.model, &pictures()).unwrap();
    assert_eq!(outputs[0].shape(), [2, 10]);
}

#[test]
fn linear_expansion_fits_lines_over_depth() {
    let model = ancestor();
    let grown =
        child(&model, &GrowOptions { init: Init::LinearExpansion, layers: Layers::First(4), ..GrowOptions::default() })
            .unwrap();
    let old = weights(&model);
    // Against normal equations of the two unknowns, element by element.
    for (l, x) in [(0, 0.0f64), (1, 0.25), (3, 0.75)] {
        let name = |l: usize| format!("blocks.{l}.up.bias");
        let layers: Vec<Vec<f32>> = (0..8).map(|l| to_f32(old[name(l).as_str()]).unwrap()).collect();
        let found = to_f32(weights(&grown.model)[name(l).as_str()]).unwrap();
        for (e, f) in found.iter().enumerate() {
            let (mut s0, mut s1, mut s2, mut t0, mut t1) = (0.0, 0.0, 0.0, 0.0, 0.0);
            for (i, w) in layers.iter().enumerate() {
                let (x, w) = (i as f64 / 8.0, w[e] as f64);
                (s0, s1, s2, t0, t1) = (s0 + 1.0, s1 + x, s2 + x * x, t0 + w, t1 + x * w);
            }
            let b = (s0 * t1 - s1 * t0) / (s0 * s2 - s1 * s1);
            let a = (t0 - b * s1) / s0;
            assert!((*f as f64 - (a + x * b)).abs() < 1e-5, "layer {l}, element {e}");
        }
    }
    assert!(run(&runtime(), &grown.model, &pictures()).unwrap()[0].iter().all(|v| v.is_finite()));
}

#[test]
fn frequency_keeps_the_ancestor_at_its_own_size_and_magnitudes_at_others() {
    let model = ancestor();
    let whole = child(&model, &GrowOptions { init: Init::Frequency, ..GrowOptions::default() }).unwrap();
    let x = pictures();
    let runtime = runtime();
    assert!(error(&run(&runtime, &whole.model, &x).unwrap(), &run(&runtime, &model, &x).unwrap()) < 1e-4);
    let shape = GrowOptions {
        init: Init::Frequency,
        layers: Layers::First(5),
        heads: Heads::Count(12),
        ffn_width: FfnWidth::Percent(50.0),
        ..GrowOptions::default()
    };
    let grown = child(&model, &shape).unwrap();
    let size = |model: &Model, part: &str| {
        let all: Vec<f32> = model
            .graph()
            .initializer
            .iter()
            .filter(|t| t.name().ends_with(part))
            .flat_map(|t| to_f32(t).unwrap())
            .collect();
        (all.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / all.len() as f64).sqrt()
    };
    for part in ["norm1.weight", "norm2.weight"] {
        let ratio = size(&grown.model, part) / size(&model, part);
        assert!((0.8..1.25).contains(&ratio), "{part}: {ratio}");
    }
    assert!(run(&runtime, &grown.model, &x).unwrap()[0].iter().all(|v| v.is_finite()));
}

/// Gives every initializer of the transforms other values.
fn disturbed(model: &Model) -> (Model, usize) {
    let mut random = StdRng::seed_from_u64(4);
    let mut out = model.clone();
    let mut count = 0;
    for t in &mut out.graph_mut().initializer {
        let parameter = t.name().starts_with("offshoot.transform/") && !t.name().ends_with("/one");
        if parameter && offshoot::onnx::is_float(t) {
            let dims = t.shape();
            let data: Vec<f32> = to_f32(t).unwrap().iter().map(|v| v + random.random_range(-0.2..0.2f32)).collect();
            *t = tensor_from_f32(t.name(), data_type(t).unwrap(), &dims, &data);
            count += 1;
        }
    }
    (out, count)
}

/// A transformed child equals its untransformed twin; disturbed and folded it is plain and equals itself unfolded.
fn check_transforms(runtime: &Arc<Runtime>, what: &str, plain: &Model, transformed: &Model, x: &Array4<f32>) {
    let truth = run(runtime, plain, x).unwrap();
    let outputs = run(runtime, transformed, x).unwrap();
    let difference = error(&outputs, &truth);
    assert!(difference < 1e-6, "{what}: {difference}");
    let (tuned, parameters) = disturbed(transformed);
    assert!(parameters > 0, "{what}");
    let unfolded: Vec<ArrayD<f32>> = run(runtime, &tuned, x).unwrap();
    assert!(error(&unfolded, &truth) > 1e-3, "{what}: the transforms reach no output");
    let simple = simplify(&tuned).unwrap();
    let left = |n: &str| n.starts_with("offshoot.transform/") && n.ends_with("/one");
    assert!(!simple.graph().initializer.iter().any(|t| left(t.name())), "{what}");
    assert!(!simple.graph().node.iter().any(|n| n.name().starts_with("offshoot.")), "{what}");
    let difference = error(&run(runtime, &simple, x).unwrap(), &unfolded);
    assert!(difference < 1e-5, "{what}: simplifying changes the outputs by {difference}");
}

/// Of a plain model, too, with operands that are left out: the upper limit alone that Swin v2 clips its logits to.
#[test]
fn every_fixture_is_simplified() {
    let wrong: Vec<String> = all_fixtures()
        .iter()
        .filter_map(|f| {
            simplify(&f.open())
                .and_then(|m| Typing::new(&m)?.check_consistent())
                .err()
                .map(|e| format!("{}: {e}", f.name()))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn transforms_start_as_identity_and_fold_exactly() {
    let model = ancestor();
    let runtime = runtime();
    let typing = Typing::new(&model).unwrap();
    let anatomy = Anatomy::new(&typing).unwrap();
    let mut gene = Learngene::identity(&typing, &anatomy);
    gene.group_ffns("1-2,4-6", &typing, &anatomy).unwrap();
    // Two heads share a centroid, which a tied child looks up.
    gene.layers[3].truncate(6);
    gene.layers[3].insert(0, Cluster { members: vec![6, 7], centroid: 7 });
    let condensed = gene.condense(&model, &typing, &anatomy).unwrap();
    let plain = grow(&condensed, &gene, &GrowOptions::default()).unwrap();
    let tied = grow(&condensed, &gene, &GrowOptions { tied: true, ..GrowOptions::default() }).unwrap();
    for transform in [Transform::Affine, Transform::Paper] {
        for tie in [false, true] {
            let shape = GrowOptions {
                transform: Some(transform),
                transform_rank: Some(3),
                tied: tie,
                ..GrowOptions::default()
            };
            let grown = grow(&condensed, &gene, &shape).unwrap();
            check_transforms(&runtime, &format!("{transform:?}"), &plain.model, &grown.model, &pictures());
            let names: Vec<&str> = grown.model.graph().initializer.iter().map(|t| t.name()).collect();
            assert!(grown.plan.parameters > tied.plan.parameters && grown.plan.parameters < plain.plan.parameters);
            assert_eq!(
                names.iter().filter(|n| n.ends_with("/v")).count(),
                if transform == Transform::Affine { 10 } else { 0 }
            );
        }
    }
    // Layers with other FFNs stay as they are, and a child without shared layers has nothing to transform.
    let shape = GrowOptions {
        transform: Some(Transform::Affine),
        layers: Layers::List(vec![0, 1, 4]),
        ..GrowOptions::default()
    };
    assert!(grow(&condensed, &gene, &shape).unwrap_err().hint_text().is_some());
}

#[test]
fn weight_transformation_shares_consecutive_layers() {
    let model = ancestor();
    let runtime = runtime();
    let base = GrowOptions { init: Init::WeightTransformation, ..GrowOptions::default() };
    let plain = child(&model, &GrowOptions { transform: Some(Transform::None), ..base.clone() }).unwrap();
    let sources: Vec<LayerSource> = plain.plan.layers.iter().map(|l| l.source).collect();
    assert_eq!(sources[..2], [LayerSource::Inherited, LayerSource::Shared]);
    let grown = child(&model, &base).unwrap();
    check_transforms(&runtime, "weight-transformation", &plain.model, &grown.model, &pictures());
    let three =
        child(&model, &GrowOptions { share: Some(3), transform: Some(Transform::Paper), ..base.clone() }).unwrap();
    let plain = child(&model, &GrowOptions { share: Some(3), transform: Some(Transform::None), ..base }).unwrap();
    check_transforms(&runtime, "threes", &plain.model, &three.model, &pictures());
    // Every second layer with its own norms and the matrices of the one before.
    let typing = Typing::new(&plain.model).unwrap();
    let uses = |name: &str| typing.uses.iter().filter(|u| u.name == name).count();
    assert_eq!(uses("blocks.0.up.bias"), 3);
    assert_eq!(uses("blocks.1.norm1.weight"), 1);
    assert_eq!(uses("blocks.1.up.bias"), 0);
}

/// Every method on a fixture, at full depth and (where the fixture has equal layers) one of them.
fn methods(runtime: &Arc<Runtime>, fixture: &Fixture) -> Vec<String> {
    let model = fixture.open();
    let x = images(fixture);
    let mut failures = Vec::new();
    let channels = fixture.entry["embedding_dim"].as_u64().unwrap() as usize;
    let swin = fixture.name().contains("swin");
    let base = run(runtime, &model, &x).unwrap();
    let mut case = |what: &str, shape: GrowOptions, same: bool| {
        let grown = match child(&model, &shape) {
            Ok(g) => g,
            Err(e) => return failures.push(format!("{}: {what}: {e}", fixture.name())),
        };
        match run(runtime, &grown.model, &x) {
            Ok(outputs) if outputs.iter().flatten().any(|v| !v.is_finite()) => {
                failures.push(format!("{}: {what}: not finite", fixture.name()))
            }
            Ok(outputs) if same && error(&outputs, &base) > 1e-4 => {
                failures.push(format!("{}: {what}: {}", fixture.name(), error(&outputs, &base)))
            }
            Ok(_) => {}
            Err(e) => failures.push(format!("{}: {what}: {e}", fixture.name())),
        }
        // Weights that are not drawn are the same for every seed.
        let again = child(&model, &GrowOptions { seed: shape.seed, ..shape }).unwrap();
        assert_eq!(again.model.to_bytes(), grown.model.to_bytes(), "{}: {what}", fixture.name());
    };
    let of = |init| GrowOptions { init, ..GrowOptions::default() };
    case("from scratch", of(Init::FromScratch), false);
    case("pretrain-finetune", of(Init::PretrainFinetune), true);
    case("front", GrowOptions { inherit: Some(Inherit::Front(1)), ..of(Init::PretrainFinetune) }, false);
    case("heuristic", GrowOptions { inherit: Some(Inherit::Count(1)), ..of(Init::HeuristicLearngene) }, false);
    case("auto", GrowOptions { inherit: Some(Inherit::Count(1)), ..of(Init::AutoLearngene) }, false);
    case("linear expansion", of(Init::LinearExpansion), !swin);
    case("frequency", of(Init::Frequency), true);
    let half = GrowOptions { heads: Heads::Count(1), ffn_width: FfnWidth::Percent(50.0), ..GrowOptions::default() };
    case("selection", GrowOptions { init: Init::WeightSelection, ..half.clone() }, false);
    case("frequency at half the width", GrowOptions { init: Init::Frequency, ..half.clone() }, false);
    case("expansion at half the width", GrowOptions { init: Init::LinearExpansion, ..half.clone() }, false);
    case("cut", GrowOptions { init: Init::PretrainFinetune, ..half }, false);
    if !swin {
        let narrow = Some(channels / 2);
        case("narrow selection", GrowOptions { embedding_dim: narrow, ..of(Init::WeightSelection) }, false);
        case("wide from scratch", GrowOptions { embedding_dim: Some(channels + 6), ..of(Init::FromScratch) }, false);
    }
    case("weight-transformation", of(Init::WeightTransformation), false);
    failures
}

#[test]
fn every_method_on_every_fixture() {
    let runtime = runtime();
    let failures: Vec<String> = fixtures().iter().flat_map(|f| methods(&runtime, f)).collect();
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn transforms_on_every_fixture() {
    let runtime = runtime();
    let mut checked = 0;
    for fixture in fixtures() {
        let model = fixture.open();
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let mut gene = Learngene::identity(&typing, &anatomy);
        if gene.group_ffns("0-1", &typing, &anatomy).is_err() {
            continue;
        }
        let condensed = gene.condense(&model, &typing, &anatomy).unwrap();
        let plain = grow(&condensed, &gene, &GrowOptions::default()).unwrap();
        let x = images(&fixture);
        for transform in [Transform::Affine, Transform::Paper] {
            let grown =
                grow(&condensed, &gene, &GrowOptions { transform: Some(transform), ..GrowOptions::default() }).unwrap();
            check_transforms(&runtime, &format!("{}: {transform:?}", fixture.name()), &plain.model, &grown.model, &x);
            checked += 1;
        }
    }
    assert!(checked >= 70, "{checked}");
}

// ---- the command

#[test]
fn the_command_writes_plan_metadata_and_batches() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("child.onnx");
    let model = "models/fashion-vit.onnx";
    let plan = json(&[
        "grow",
        model,
        "--init",
        "heuristic-learngene",
        "--inherit",
        "2",
        "--layers",
        "4",
        "--seed",
        "3",
        "-o",
        text(&out),
        "--json",
    ]);
    assert_eq!(plan["init"], "heuristic-learngene");
    let sources: Vec<&str> = plan["layers"].as_array().unwrap().iter().map(|l| l["source"].as_str().unwrap()).collect();
    assert_eq!(sources, ["random", "random", "inherited", "inherited"]);
    assert_eq!(plan["layers"][3]["ancestor_layer"], 7);
    let written = Model::open(&out).unwrap();
    let metadata: Value = serde_json::from_str(written.metadata("offshoot.descendant").unwrap()).unwrap();
    assert_eq!((&metadata["init"], &metadata["seed"]), (&"heuristic-learngene".into(), &3.into()));

    let list = folder.path().join("list.toml");
    std::fs::write(
        &list,
        "[[descendant]]\noutput = \"a.onnx\"\ninit = \"weight-selection\"\nembedding-dim = 32\nheads = 4\n\
         [[descendant]]\noutput = \"b.onnx\"\ninit = \"pretrain-finetune\"\ninherit = \"middle:2\"\nlayers = 4\n\
         [[descendant]]\noutput = \"c.onnx\"\ninit = \"weight-transformation\"\ntransform = \"affine\"\ntransform-rank \
         = 2\n",
    )
    .unwrap();
    let plans = json(&["grow", model, "--batch", text(&list), "-o", text(folder.path()), "--json"]);
    assert_eq!(plans["plans"][0]["embedding_dim"], 32);
    assert_eq!(plans["plans"][1]["layers"][1]["source"], "inherited");
    assert_eq!(plans["plans"][2]["transform"], "affine");
    let bytes = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
    assert!(bytes("a.onnx") < bytes("b.onnx"));
    for name in ["a.onnx", "b.onnx", "c.onnx"] {
        let mut model = Model::open(folder.path().join(name)).unwrap();
        offshoot::graph::prepare(&mut model).unwrap();
        run(&runtime(), &model, &pictures()).unwrap();
    }
}

#[test]
fn what_a_method_does_not_define_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let gene = folder.path().join("gene.onnx");
    let model = "models/fashion-vit.onnx";
    let dry = |more: &[&str], says: &str| {
        let mut arguments = vec!["grow", model, "--dry-run", "--init"];
        arguments.extend(more);
        refused(&arguments, &[says]);
    };
    dry(&["frequency", "--embedding-dim", "32"], "does not define another embedding dimension");
    dry(&["from-scratch", "--inherit", "3"], "does not inherit single layers");
    dry(&["auto-learngene", "--inherit", "last:3"], "says itself which layers");
    dry(&["heuristic-learngene", "--layers", "even:3"], "says itself which layers");
    dry(&["pretrain-finetune", "--inherit", "3"], "does not say which layers");
    dry(&["pretrain-finetune", "--inherit", "front:9"], "9 layers cannot be inherited");
    dry(&["pretrain-finetune", "--heads", "16"], "cannot make 16 heads of 8");
    dry(&["weight-selection", "--embedding-dim", "65"], "cannot make 65 embedding channels of 64");
    dry(&["weight-selection", "--embedding-dim", "0"], "cannot be");
    dry(&["weight-selection", "--transform", "affine"], "could be transformed");
    dry(&["linear-expansion", "--projection", "paper"], "no clusters that fill slots");
    dry(&["linear-expansion", "--layers", "9"], "the ancestor has 8");
    dry(&["frequency", "--tied"], "no learngene to tie");
    dry(&["frequency", "--eps", "3"], "only --init cluster-learngene clusters heads");
    dry(&["frequency", "--share", "3"], "shares no consecutive layers");
    dry(&["weight-transformation", "--share", "1"], "two or more");
    dry(&["weight-transformation", "--layers", "1"], "no two layers");
    dry(&["weight-transformation", "--transform", "paper", "--transform-rank", "2"], "rank of an affine transform");
    dry(&["weight-transformation", "--transform-rank", "0"], "rank 0");
    let images = "fixtures/fashion-images.idx3-ubyte";
    json(&["condense", model, "--images", images, "--limit", "8", "-o", text(&gene), "--runtime", "tract", "--json"]);
    refused(&["grow", text(&gene), "--dry-run", "--init", "frequency"], &["the model is a learngene"]);
}
