//! Parts of training steps against what is computed by hand or in another way.

use std::collections::HashMap;
use std::sync::Arc;

use ndarray::{Array2, Array4, ArrayD, Axis, Slice};
use offshoot::anatomy::Anatomy;
use offshoot::axes::Typing;
use offshoot::descendant::{GrowOptions, Layers, grow};
use offshoot::learngene::Learngene;
use offshoot::onnx::Model;
use offshoot::runtime::Runtime;
use offshoot::training::{
    Feeds, KEPT, Loss, Operators, Optimiser, Precision, Recipe, TARGETS, Term, Trainer, teacher_input,
};

use super::hash::{hash, values};
use super::root;

const BATCH: usize = 6;

fn ancestor() -> Model {
    let mut model = Model::open(root().join("models/fashion-vit.onnx")).unwrap();
    offshoot::graph::prepare(&mut model).unwrap();
    model
}

fn images(count: usize, seed: u32) -> Array4<f32> {
    Array4::from_shape_vec((count, 1, 28, 28), values(count * 28 * 28, seed)).unwrap()
}

fn targets(count: usize, seed: u32) -> Array2<f32> {
    let mut hot = Array2::zeros((count, 10));
    (0..count).for_each(|i| hot[[i, hash(i, seed) as usize % 10]] = 1.0);
    hot
}

fn trainer(runtime: &Arc<Runtime>, model: &Model, recipe: &Recipe) -> Trainer {
    Trainer::new(runtime, model, [28, 28], recipe, &[], &[]).unwrap()
}

fn feeds<'a>(trainer: &'a Trainer, x: &'a Array4<f32>, y: &'a Array2<f32>) -> Feeds<'a> {
    vec![(trainer.input.as_str(), x.view().into_dyn()), (TARGETS, y.view().into_dyn())]
}

fn step(trainer: &mut Trainer, x: &Array4<f32>, y: &Array2<f32>, rate: f64, ema: f64) -> f64 {
    let input = trainer.input.clone();
    let feeds: Feeds = vec![(input.as_str(), x.view().into_dyn()), (TARGETS, y.view().into_dyn())];
    trainer.step(&[feeds], rate, ema).unwrap().loss
}

fn weights(trainer: &Trainer, averaged: bool) -> HashMap<String, ArrayD<f32>> {
    let names: Vec<String> = trainer.selection.trained.iter().map(|w| w.name.clone()).collect();
    names.into_iter().map(|n| (n.clone(), trainer.weight(&n, averaged).unwrap())).collect()
}

fn close(name: &str, found: &ArrayD<f32>, expected: impl Fn(usize) -> f64, tolerance: f64) {
    for (i, &f) in found.iter().enumerate() {
        let e = expected(i);
        assert!((f as f64 - e).abs() <= tolerance * (1.0 + e.abs()), "{name}[{i}]: {f} and {e}");
    }
}

/// Two batches of half the size make the update that a whole one makes, clipped, averaged and decayed alike.
pub fn accumulation(runtime: &Arc<Runtime>, operators: Operators) {
    let model = ancestor();
    let whole = Recipe { batch: 2 * BATCH, clip: Some(0.5), ema: true, operators, ..Recipe::default() };
    let halves = Recipe { batch: BATCH, accumulate: 2, ..whole.clone() };
    let (mut a, mut b) = (trainer(runtime, &model, &whole), trainer(runtime, &model, &halves));
    assert_eq!((a.batches_per_update(), b.batches_per_update()), (1, 2));
    for k in 0..4 {
        let (x, y) = (images(2 * BATCH, 10 + k), targets(2 * BATCH, 20 + k));
        let loss = step(&mut a, &x, &y, 1e-3, 0.9);
        let part = |i: usize| {
            let range = Slice::from(i * BATCH..(i + 1) * BATCH);
            (x.slice_axis(Axis(0), range).to_owned(), y.slice_axis(Axis(0), range).to_owned())
        };
        let (first, second) = (part(0), part(1));
        let input = b.input.clone();
        let feed = |(x, y): &'_ (Array4<f32>, Array2<f32>)| -> Vec<(String, ArrayD<f32>)> {
            vec![(input.clone(), x.clone().into_dyn()), (TARGETS.to_string(), y.clone().into_dyn())]
        };
        let owned = [feed(&first), feed(&second)];
        let feeds: Vec<Feeds> = owned.iter().map(|f| f.iter().map(|(n, v)| (n.as_str(), v.view())).collect()).collect();
        let result = b.step(&feeds, 1e-3, 0.9).unwrap();
        assert!((loss - result.loss).abs() < 1e-5 * loss, "{loss} and {}", result.loss);
        assert!(result.gradient_norm.is_some_and(|n| n > 0.0));
    }
    for averaged in [false, true] {
        let (wa, wb) = (weights(&a, averaged), weights(&b, averaged));
        // Adam divides by the root of the second moment: where a gradient is rounding alone, as a key's bias has it, so
        // is the step.
        for (name, value) in wa.iter().filter(|(_, w)| w.ndim() > 1) {
            let other: Vec<f32> = wb[name].iter().copied().collect();
            let far = value.iter().zip(&other).filter(|(a, b)| (**a - **b).abs() > 1e-4).count();
            assert!(far * 50 <= other.len(), "{name}: {far} of {} elements differ", other.len());
        }
    }
}

/// One update by hand, from gradients that plain gradient descent shows.
pub fn updates_by_hand(runtime: &Arc<Runtime>, operators: Operators) {
    let model = ancestor();
    let (x, y) = (images(BATCH, 1), targets(BATCH, 2));
    let base = Recipe { batch: BATCH, weight_decay: 0.0, operators, ..Recipe::default() };
    let plain = Recipe { optimiser: Optimiser::Sgd { momentum: 0.0 }, ..base.clone() };
    let mut descent = trainer(runtime, &model, &plain);
    let before = weights(&descent, false);
    // A large rate, so that the difference of two weights holds the gradient's digits.
    step(&mut descent, &x, &y, 1024.0, 0.0);
    let after = weights(&descent, false);
    let gradient = |name: &str, i: usize| -> f64 {
        let at = |w: &HashMap<String, ArrayD<f32>>| w[name].iter().nth(i).copied().unwrap() as f64;
        (at(&before) - at(&after)) / 1024.0
    };
    let norm: f64 =
        before.iter().map(|(n, w)| (0..w.len()).map(|i| gradient(n, i).powi(2)).sum::<f64>()).sum::<f64>().sqrt();
    let (rate, decay, layer_decay, limit, ema) = (1e-3f64, 0.1f64, 0.8f64, 0.25f64, 0.75f64);
    let recipe = Recipe {
        weight_decay: decay as f32,
        layer_decay: layer_decay as f32,
        clip: Some(limit as f32),
        ema: true,
        ..base.clone()
    };
    let mut adam = trainer(runtime, &model, &recipe);
    let selection = adam.selection.clone();
    let input = adam.input.clone();
    let feeds: Feeds = vec![(input.as_str(), x.view().into_dyn()), (TARGETS, y.view().into_dyn())];
    let result = adam.step(&[feeds], rate, ema).unwrap();
    let found_norm = result.gradient_norm.unwrap();
    assert!((found_norm - norm).abs() < 1e-3 * norm, "{found_norm} and {norm}");
    let share = (limit / (norm + 1e-6)).min(1.0);
    assert!(share < 1.0, "nothing was clipped");
    let (new, averaged) = (weights(&adam, false), weights(&adam, true));
    for w in &selection.trained {
        let own_rate = rate * layer_decay.powi((selection.layers + 1 - w.depth) as i32);
        let own_decay = if w.decays { decay } else { 0.0 };
        let old: Vec<f64> = before[&w.name].iter().map(|&v| v.into()).collect();
        let expected = |i: usize| {
            let g = gradient(&w.name, i) * share;
            // The first step of Adam is the sign of the gradient, but for epsilon.
            let direction = if g.abs() < 1e-7 { f64::NAN } else { g / (g.abs() + 1e-8) };
            old[i] * (1.0 - own_rate * own_decay) - own_rate * direction
        };
        let mut checked = 0;
        for (i, (&f, &a)) in new[&w.name].iter().zip(averaged[&w.name].iter()).enumerate() {
            let e = expected(i);
            if e.is_nan() {
                continue;
            }
            checked += 1;
            assert!((f as f64 - e).abs() < 2e-2 * own_rate + 1e-6 * e.abs(), "{}[{i}]: {f} and {e}", w.name);
            let mean = ema * old[i] + (1.0 - ema) * f as f64;
            assert!(
                (a as f64 - mean).abs() < 1e-6 * (1.0 + mean.abs()),
                "the average of {}[{i}]: {a} and {mean}",
                w.name
            );
        }
        assert!(checked > 0 || w.name.contains("bias") || w.shape.len() == 1, "{}", w.name);
    }
    // Momentum, with the decay added to the gradient, over two steps at the same place in weight space would need the
    // second gradient: a rate of zero keeps the place.
    let recipe = Recipe { optimiser: Optimiser::Sgd { momentum: 0.5 }, weight_decay: decay as f32, ..base };
    let mut sgd = trainer(runtime, &model, &recipe);
    step(&mut sgd, &x, &y, 0.0, 0.0);
    step(&mut sgd, &x, &y, 1.0, 0.0);
    let moved = weights(&sgd, false);
    for w in &selection.trained {
        let own_decay = if w.decays { decay } else { 0.0 };
        let old: Vec<f64> = before[&w.name].iter().map(|&v| v.into()).collect();
        close(&w.name, &moved[&w.name], |i| old[i] - 1.5 * (gradient(&w.name, i) + own_decay * old[i]), 1e-4);
    }
}

/// A layer whose branches are dropped for every image is a layer that is not there.
pub fn stochastic_depth(runtime: &Arc<Runtime>, operators: Operators) {
    let model = ancestor();
    let (x, y) = (images(BATCH, 3), targets(BATCH, 4));
    let recipe = Recipe { batch: BATCH, operators, ..Recipe::default() };
    let dropping = Recipe { drop_path: 0.5, ..recipe.clone() };
    let mut with = trainer(runtime, &model, &dropping);
    assert_eq!(with.branches, 16);
    let mut loss_with = |kept: Array2<f32>| {
        let input = with.input.clone();
        let kept = kept.into_dyn();
        let feeds: Feeds =
            vec![(input.as_str(), x.view().into_dyn()), (TARGETS, y.view().into_dyn()), (KEPT, kept.view())];
        with.step(&[feeds], 0.0, 0.0).unwrap().loss
    };
    let whole = step(&mut trainer(runtime, &model, &recipe), &x, &y, 0.0, 0.0);
    let kept = loss_with(Array2::ones((16, BATCH)));
    assert!((whole - kept).abs() < 1e-5 * whole, "{whole} and {kept}");
    let mut third = Array2::ones((16, BATCH));
    third.slice_mut(ndarray::s![6..8, ..]).fill(0.0);
    let dropped = loss_with(third);
    let shallow = {
        let typing = Typing::new(&model).unwrap();
        let anatomy = Anatomy::new(&typing).unwrap();
        let shape = GrowOptions { layers: Layers::List(vec![0, 1, 2, 4, 5, 6, 7]), ..GrowOptions::default() };
        grow(&model, &Learngene::identity(&typing, &anatomy), &shape).unwrap().model
    };
    let without = step(&mut trainer(runtime, &shallow, &recipe), &x, &y, 0.0, 0.0);
    assert!((dropped - without).abs() < 1e-5 * without, "{dropped} and {without}");
    assert!((dropped - whole).abs() > 1e-3 * whole, "the layer did nothing");
}

/// The divergence from a teacher, computed here from the outputs of both.
pub fn distillation(runtime: &Arc<Runtime>, operators: Operators) {
    let model = ancestor();
    let (x, y) = (images(BATCH, 5), targets(BATCH, 6));
    let logits = runtime.load(&model, BATCH, [28, 28]).unwrap().run(x.view()).unwrap().remove(0);
    let name = model.graph().output[0].name().to_string();
    let teacher = ArrayD::from_shape_vec(logits.raw_dim(), values(logits.len(), 7)).unwrap().mapv(|v| 4.0 * v);
    let temperature = 3.0f64;
    let terms = vec![
        (0.3, Term::CrossEntropy { smoothing: 0.2 }),
        (0.7, Term::Distillation { temperature: temperature as f32, student: name.clone(), teacher: name.clone() }),
        (0.5, Term::Imitation { student: name.clone(), teacher: name.clone() }),
        (0.25, Term::SquaredError),
    ];
    let recipe = Recipe { batch: BATCH, loss: Loss { terms, output: None }, operators, ..Recipe::default() };
    let mut trainer = trainer(runtime, &model, &recipe);
    let (input, of_teacher) = (trainer.input.clone(), teacher_input(&name));
    let feeds: Feeds = vec![
        (input.as_str(), x.view().into_dyn()),
        (TARGETS, y.view().into_dyn()),
        (of_teacher.as_str(), teacher.view()),
    ];
    let found = trainer.step(&[feeds], 0.0, 0.0).unwrap().loss;
    let log_softmax = |row: Vec<f64>| -> Vec<f64> {
        let sum = row.iter().map(|v| v.exp()).sum::<f64>().ln();
        row.into_iter().map(|v| v - sum).collect()
    };
    let row = |a: &ArrayD<f32>, i: usize| -> Vec<f64> { a.index_axis(Axis(0), i).iter().map(|&v| v.into()).collect() };
    let (mut cross, mut divergence, mut squares, mut errors) = (0.0, 0.0, 0.0, 0.0);
    for i in 0..BATCH {
        let (s, t): (Vec<f64>, Vec<f64>) = (row(&logits, i), row(&teacher, i));
        let log = log_softmax(s.clone());
        let soften = |v: &[f64]| log_softmax(v.iter().map(|v| v / temperature).collect());
        let (p, q) = (soften(&t), soften(&s));
        for c in 0..10 {
            let target = y[[i, c]] as f64;
            cross -= (0.8 * target + 0.02) * log[c] / BATCH as f64;
            divergence += p[c].exp() * (p[c] - q[c]) * temperature * temperature / BATCH as f64;
            squares += (s[c] - t[c]).powi(2) / (10 * BATCH) as f64;
            errors += (s[c] - target).powi(2) / (10 * BATCH) as f64;
        }
    }
    let expected = 0.3 * cross + 0.7 * divergence + 0.5 * squares + 0.25 * errors;
    assert!((found - expected).abs() < 1e-5 * expected, "{found} and {expected}");
}

/// What is not finite leaves the weights and moments as they were.
pub fn not_finite(runtime: &Arc<Runtime>, operators: Operators) {
    let model = ancestor();
    let (mut x, y) = (images(BATCH, 8), targets(BATCH, 9));
    for (accumulate, clip) in [(1, None), (1, Some(1.0)), (2, Some(1.0))] {
        let recipe = Recipe { batch: BATCH, accumulate, clip, operators, ..Recipe::default() };
        let (mut tried, mut spared) = (trainer(runtime, &model, &recipe), trainer(runtime, &model, &recipe));
        let before = weights(&tried, false);
        let mut step = |trainer: &mut Trainer, pixel: f32| {
            x[[2, 0, 5, 5]] = pixel;
            let feeds: Vec<Feeds> =
                vec![vec![("image", x.view().into_dyn()), (TARGETS, y.view().into_dyn())]; accumulate];
            trainer.step(&feeds, 1e-3, 0.0)
        };
        let error = step(&mut tried, f32::NAN).unwrap_err();
        assert!(error.to_string().contains("step 1"), "{error}");
        assert_eq!(weights(&tried, false), before);
        assert_eq!(tried.updates, 0);
        step(&mut tried, 0.0).unwrap();
        let error = step(&mut tried, f32::NAN).unwrap_err();
        assert!(error.to_string().contains("step 2"), "{error}");
        step(&mut tried, 0.5).unwrap();
        assert_ne!(weights(&tried, false), before);
        // As if the two steps that failed had not been tried.
        step(&mut spared, 0.0).unwrap();
        step(&mut spared, 0.5).unwrap();
        assert_eq!(weights(&tried, false), weights(&spared, false));
    }
}

/// Half precision follows single precision, and a scale that is too large is lowered.
pub fn half_precision(runtime: &Arc<Runtime>) {
    let model = ancestor();
    let single = Recipe { batch: BATCH, operators: Operators::Contrib, ..Recipe::default() };
    for recompute in [false, true] {
        let half = Recipe { precision: Precision::Fp16, recompute, ..single.clone() };
        let (mut a, mut b) = (trainer(runtime, &model, &single), trainer(runtime, &model, &half));
        for k in 0..6 {
            let (x, y) = (images(BATCH, 30 + k % 2), targets(BATCH, 40 + k % 2));
            let (expected, found) = (step(&mut a, &x, &y, 1e-3, 0.0), step(&mut b, &x, &y, 1e-3, 0.0));
            assert!((expected - found).abs() < 0.03 * expected, "step {k}: {expected} and {found}");
        }
    }
}
