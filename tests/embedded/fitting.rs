//! Every family of fixtures shrinks, runs, and keeps more than magnitude pruning of the same shape does.

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use offshoot::anatomy::{Anatomy, Roles};
use offshoot::axes::resize::{Plan, resize};
use offshoot::axes::{Factor, Typing};
use offshoot::fitting::{Budget, Calibration, Limits, Shrinker, stages};
use offshoot::onnx::{Model, to_f32};
use offshoot::runtime::{Kind, Options, Runtime};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::common::{Fixture, all_fixtures, fixtures, root};

/// Random images with some structure: a few waves in every channel.
fn images(shape: &[usize], count: usize, seed: u64) -> Vec<ArrayD<f32>> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let waves: Vec<[f32; 4]> =
                (0..12).map(|_| std::array::from_fn(|_| random.random_range(-1.0..1.0))).collect();
            let mut shape = shape.to_vec();
            shape[0] = 1;
            ArrayD::from_shape_fn(IxDyn(&shape), |at| {
                let wave = |w: usize| {
                    let [a, y, x, p] = waves[w];
                    a * (1.5 * y * at[2] as f32 + 1.5 * x * at[3] as f32 + 6.0 * p).sin()
                };
                (0..4).map(|w| wave((4 * at[1] + w) % 12)).sum()
            })
        })
        .collect()
}

fn input_shape(model: &Model) -> Vec<usize> {
    let typing = Typing::new(model).unwrap();
    let name = offshoot::graph::data_inputs(model.graph())[0].name().to_string();
    typing.shape(&name).unwrap()
}

fn outputs(runtime: &Arc<Runtime>, model: &Model, images: &[ArrayD<f32>]) -> Vec<Vec<ArrayD<f32>>> {
    let image = Typing::new(model).unwrap().image_size();
    let mut session = runtime.load(model, 1, image).unwrap();
    images.iter().map(|x| session.run(x.view().into_dimensionality().unwrap()).unwrap()).collect()
}

/// Squared error of all outputs, relative to their spread around their means over images.
fn error(a: &[Vec<ArrayD<f32>>], b: &[Vec<ArrayD<f32>>]) -> f64 {
    let (mut left, mut size) = (0.0, 0.0);
    for o in 0..a[0].len() {
        let mean = a.iter().fold(ArrayD::<f32>::zeros(a[0][o].raw_dim()), |m, x| m + &x[o]) / a.len() as f32;
        for (x, y) in a.iter().zip(b) {
            assert_eq!(x[o].shape(), y[o].shape());
            left += x[o].iter().zip(&y[o]).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
            size += x[o].iter().zip(&mean).map(|(x, m)| f64::from(x - m).powi(2)).sum::<f64>();
        }
    }
    left / size
}

/// The units with the largest sum of squares over all weights that carry them.
fn largest(typing: &Typing, roles: &Roles, factor: Factor, count: usize) -> Vec<usize> {
    let units = typing.factors.factor_size(factor);
    let mut squares = vec![0f64; units];
    for u in roles.carriers(factor) {
        let Some((axis, outer, inner)) = roles.place(u, factor) else { continue };
        let t = typing.weights[typing.uses[u].name.as_str()];
        let Ok(data) = to_f32(t) else { continue };
        let after = inner * t.dims[axis + 1..].iter().product::<i64>() as usize;
        let before = outer * t.dims[..axis].iter().product::<i64>() as usize;
        for b in 0..before {
            for (n, s) in squares.iter_mut().enumerate() {
                let at = (b * units + n) * after;
                *s += data[at..at + after].iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
            }
        }
    }
    let mut order: Vec<usize> = (0..units).collect();
    order.sort_by(|&a, &b| squares[b].total_cmp(&squares[a]));
    order.truncate(count);
    order.sort_unstable();
    order
}

/// Magnitude pruning to the shape of a descendant, and nothing else.
fn by_magnitude(ancestor: &Model, child: &Model) -> Model {
    let (typing, thin) = (Typing::new(ancestor).unwrap(), Typing::new(child).unwrap());
    let (a, b) = (Anatomy::new(&typing).unwrap(), Anatomy::new(&thin).unwrap());
    let roles = Roles::new(&typing);
    let mut plan = Plan::default();
    for (l, m) in a.layers.iter().zip(&b.layers) {
        let mut cut = |factors: Vec<Factor>, count: usize| {
            let Some(&first) = factors.first().filter(|f| typing.factors.factor_size(**f) > count) else { return };
            let kept = largest(&typing, &roles, first, count);
            for f in factors {
                plan.gather(&typing.factors, f, kept.clone()).unwrap();
            }
        };
        cut(l.head_factors(&typing), m.head_count(&thin));
        if let (Some(f), Some(g)) = (&l.ffn, &m.ffn) {
            cut(f.hidden_factor(&typing).into_iter().collect(), thin.factors.size(&g.hidden));
        }
    }
    assert!(!plan.is_empty());
    let mut out = ancestor.clone();
    out.proto.graph = Some(resize(&typing, &plan).unwrap());
    out
}

struct Found {
    fitted: f64,
    magnitude: f64,
    corrected: bool,
}

fn shrink(runtime: &Arc<Runtime>, fixture: &Fixture) -> Found {
    let model = fixture.open();
    let shape = input_shape(&model);
    let calibration =
        Calibration { fit: images(&shape, 32, 1), held_out: images(&shape, 8, 2), images: 40, warnings: Vec::new() };
    let pinned = stages::pin(&model).unwrap();
    let mut shrinker = Shrinker::new(&model, &pinned, runtime, calibration).unwrap();
    let limits = Limits { min_neurons: 2, multiple: 1, ..Limits::default() };
    let analysis = shrinker.analyse(&limits, &|_, _, _| {}).unwrap();
    let allocation = shrinker.allocate(&analysis, &limits, Budget::Share(0.75)).unwrap();
    assert!(allocation.share <= 0.75 + 1e-9);
    let child = shrinker.shrink(&analysis, &allocation, &|_, _| {}).unwrap();
    let test = images(&shape, 8, 3);
    let want = outputs(runtime, &model, &test);
    let magnitude = by_magnitude(&model, &child.model);
    assert_eq!(offshoot::learngene::parameters(magnitude.graph()), child.parameters);
    Found {
        fitted: error(&want, &outputs(runtime, &child.model, &test)),
        magnitude: error(&want, &outputs(runtime, &magnitude, &test)),
        corrected: child.fits.iter().any(|f| f.chosen.is_some_and(|c| c.correction > 0.0)),
    }
}

#[test]
fn every_family_shrinks_and_beats_magnitude_pruning() {
    let runtime = Runtime::start(&Options { kind: Kind::Tract, threads: Some(1), ..Options::default() }).unwrap();
    let only = std::env::var("FIXTURE").ok();
    let (mut bad, mut corrected) = (Vec::new(), 0);
    for fixture in fixtures()
        .iter()
        .filter(|f| f.runs_on(&runtime))
        .filter(|f| only.as_ref().is_none_or(|o| f.name().contains(o.as_str())))
    {
        let found = shrink(&runtime, fixture);
        let line = format!("{}: fitted {:.4}, magnitude {:.4}", fixture.name(), found.fitted, found.magnitude);
        println!("{line} {}", found.corrected);
        corrected += usize::from(found.corrected);
        if found.fitted.is_nan() || found.fitted >= found.magnitude {
            bad.push(line);
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
    assert!(only.is_some() || corrected > 10, "{corrected}");
}

#[test]
fn other_exporters_and_mixed_heads_shrink() {
    let runtime = Runtime::start(&Options { kind: Kind::Tract, threads: Some(1), ..Options::default() }).unwrap();
    for name in ["tensorflow.onnx", "keras.onnx", "flax.onnx", "talking-heads.onnx"] {
        let fixture = all_fixtures().into_iter().find(|f| f.name() == name).unwrap();
        let found = shrink(&runtime, &fixture);
        assert!(found.fitted < found.magnitude, "{name}: fitted {}, magnitude {}", found.fitted, found.magnitude);
    }
}

#[test]
fn the_whole_size_is_the_ancestor_and_threads_change_nothing() {
    let runtime = Runtime::start(&Options { kind: Kind::Tract, threads: Some(1), ..Options::default() }).unwrap();
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    let pinned = stages::pin(&model).unwrap();
    let shape = input_shape(&model);
    let at = |threads: usize, share: f64| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let calibration = Calibration {
                fit: images(&shape, 20, 1),
                held_out: images(&shape, 4, 2),
                images: 24,
                warnings: Vec::new(),
            };
            let mut shrinker = Shrinker::new(&model, &pinned, &runtime, calibration).unwrap();
            let limits = Limits::default();
            let analysis = shrinker.analyse(&limits, &|_, _, _| {}).unwrap();
            let allocation = shrinker.allocate(&analysis, &limits, Budget::Share(share)).unwrap();
            shrinker.shrink(&analysis, &allocation, &|_, _| {}).unwrap().model.to_bytes()
        })
    };
    let whole = Model::from_bytes(at(2, 1.0)).unwrap();
    assert_eq!(whole.graph(), model.graph());
    let half = at(1, 0.5);
    assert!(half.len() < model.to_bytes().len() * 7 / 10);
    assert_eq!(half, at(3, 0.5));
}
