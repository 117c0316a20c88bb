//! Kernels of every width against plain computations in double precision.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::adamw::{Step, Tensors, adamw};
use super::attention::{self, HeadDims, Rows, RowsMut, Saved};
use super::lanes::{Lanes, Width, dispatch, each, exp, normal, widths};
use super::normalization::layer_norm_gradient;
use super::pointwise::{gelu, gelu_gradient, softmax_gradient};
use super::product::{Linear, TILE, WeightGradient, Weights, linear, pack, weight_gradient};

#[inline(always)]
unsafe fn exp_lanes<L: Lanes>(n: usize, x: *const f32, y: *mut f32) {
    unsafe { each!(L, n, [x] exp(x) => y) };
}
dispatch! { exponential(n: usize, x: *const f32, y: *mut f32) = exp_lanes }

#[inline(always)]
unsafe fn probability_lanes<L: Lanes>(n: usize, x: *const f32, y: *mut f32) {
    unsafe { each!(L, n, [x] normal(x).0 => y) };
}
dispatch! { probability(n: usize, x: *const f32, y: *mut f32) = probability_lanes }

fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..n).map(|_| random.random_range(-1.5f32..1.5)).collect()
}

/// Numbers from -`end` to `end`.
fn range(end: f32) -> Vec<f32> {
    (-10_001..=10_001).map(|i| i as f32 / 10_001.0 * end).collect()
}

/// Largest difference, relative to the largest true value.
fn error(found: &[f32], truth: &[f64]) -> f64 {
    assert_eq!(found.len(), truth.len());
    let largest = truth.iter().fold(0f64, |m, t| m.max(t.abs()));
    found.iter().zip(truth).fold(0f64, |m, (f, t)| {
        let difference = (*f as f64 - t).abs();
        if difference.is_nan() { f64::INFINITY } else { m.max(difference) }
    }) / largest
}

/// The error function by its power series; exact to 1e-9 up to 4, where it is 1 to 2e-8.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

fn cumulative(x: f64) -> f64 {
    0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_of(x: f64, tanh: bool) -> f64 {
    if tanh {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
        return 0.5 * x * (1.0 + u.tanh());
    }
    x * cumulative(x)
}

#[test]
fn the_exponential_is_exact_to_2e_7() {
    let x = range(86.0);
    for width in widths() {
        let mut y = vec![0.0; x.len()];
        unsafe { exponential(width, x.len(), x.as_ptr(), y.as_mut_ptr()) };
        for (x, y) in x.iter().zip(&y) {
            let truth = (*x as f64).exp();
            assert!(((*y as f64 - truth) / truth).abs() < 2e-7, "{width:?}: exp({x}) is {y}");
        }
        let (odd, mut y) = ([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0], [0.0; 4]);
        unsafe { exponential(width, 4, odd.as_ptr(), y.as_mut_ptr()) };
        assert!(y[0].is_nan() && y[1] > 1e38 && (0.0..1e-37).contains(&y[2]) && y[3] == 1.0, "{width:?}: {y:?}");
    }
}

#[test]
fn the_normal_distribution_is_exact_to_2e_7() {
    let x = range(6.0);
    for width in widths() {
        let mut y = vec![0.0; x.len()];
        unsafe { probability(width, x.len(), x.as_ptr(), y.as_mut_ptr()) };
        for (x, y) in x.iter().zip(&y) {
            assert!((*y as f64 - cumulative(*x as f64)).abs() < 2e-7, "{width:?}: the probability of {x} is {y}");
        }
    }
}

#[test]
fn gelu_and_its_gradient() {
    let x = range(5.0);
    let g = random(x.len(), 1);
    for width in widths() {
        for tanh in [false, true] {
            let (mut y, mut gx) = (vec![0.0; x.len()], g.clone());
            unsafe {
                gelu(width, x.len(), x.as_ptr(), y.as_mut_ptr(), tanh);
                // In place.
                gelu_gradient(width, x.len(), gx.as_ptr(), x.as_ptr(), gx.as_mut_ptr(), tanh);
            }
            let truth: Vec<f64> = x.iter().map(|&x| gelu_of(x as f64, tanh)).collect();
            assert!(error(&y, &truth) < 3e-7, "{width:?} {tanh}");
            let slope = |x: f64| (gelu_of(x + 1e-4, tanh) - gelu_of(x - 1e-4, tanh)) / 2e-4;
            let truth: Vec<f64> = x.iter().zip(&g).map(|(&x, &g)| g as f64 * slope(x as f64)).collect();
            assert!(error(&gx, &truth) < 1e-6, "{width:?} {tanh}: {}", error(&gx, &truth));
        }
    }
}

#[test]
fn the_gradient_of_softmax() {
    let (rows, n) = (5, 197);
    let (g, y) = (random(rows * n, 1), random(rows * n, 2));
    let mut truth = Vec::new();
    for (g, y) in g.chunks(n).zip(y.chunks(n)) {
        let sum: f64 = g.iter().zip(y).map(|(&g, &y)| g as f64 * y as f64).sum();
        truth.extend(g.iter().zip(y).map(|(&g, &y)| y as f64 * (g as f64 - sum)));
    }
    for width in widths() {
        let mut x = vec![0.0; rows * n];
        unsafe { softmax_gradient(width, rows, n, g.as_ptr(), y.as_ptr(), x.as_mut_ptr()) };
        assert!(error(&x, &truth) < 1e-6, "{width:?}");
    }
}

/// The loss Σ g · LayerNormalization(x), whose gradients are those that g stands for.
fn norm_loss(g: &[f32], x: &[f64], scale: &[f64], bias: &[f64], epsilon: f64) -> f64 {
    let n = scale.len();
    let mut loss = 0.0;
    for (g, x) in g.chunks(n).zip(x.chunks(n)) {
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let deviation = (variance + epsilon).sqrt();
        loss += (0..n).map(|i| g[i] as f64 * (scale[i] * (x[i] - mean) / deviation + bias[i])).sum::<f64>();
    }
    loss
}

/// The slopes of a function along every one of some numbers.
fn slopes(x: &[f64], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let (here, step) = (x[i], 1e-4);
            x[i] = here + step;
            let above = f(&x);
            x[i] = here - step;
            let below = f(&x);
            x[i] = here;
            (above - below) / (2.0 * step)
        })
        .collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x as f64).collect()
}

#[test]
fn the_gradient_of_layer_normalization() {
    let (rows, n, epsilon) = (3, 37, 1e-3);
    // A mean far from zero.
    let x: Vec<f32> = random(rows * n, 1).iter().map(|x| x + 3.0).collect();
    let (g, scale, residual) = (random(rows * n, 2), random(n, 3), random(rows * n, 4));
    let (x64, s64, bias) = (wide(&x), wide(&scale), vec![0.0; n]);
    let gx = slopes(&x64, |x| norm_loss(&g, x, &s64, &bias, epsilon));
    let gscale = slopes(&s64, |s| norm_loss(&g, &x64, s, &bias, epsilon));
    let gbias = slopes(&bias, |b| norm_loss(&g, &x64, &s64, b, epsilon));
    for width in widths() {
        for residual in [None, Some(&residual)] {
            let (mut found, mut sums) = (vec![0.0; rows * n], vec![0.0; 2 * n]);
            let pointer = residual.map_or(std::ptr::null(), |r| r.as_ptr());
            unsafe {
                let (g, x, scale) = (g.as_ptr(), x.as_ptr(), scale.as_ptr());
                let (gx, sums) = (found.as_mut_ptr(), sums.as_mut_ptr());
                layer_norm_gradient(width, rows, n, epsilon as f32, g, x, scale, pointer, gx, sums);
            }
            let more = |i: usize| residual.map_or(0.0, |r| r[i] as f64);
            let truth: Vec<f64> = gx.iter().enumerate().map(|(i, g)| g + more(i)).collect();
            assert!(error(&found, &truth) < 2e-6, "{width:?}: {}", error(&found, &truth));
            assert!(error(&sums[..n], &gscale) < 2e-6 && error(&sums[n..], &gbias) < 2e-6, "{width:?}");
        }
    }
}

#[test]
fn a_step_of_adamw() {
    let n = 100;
    let [p, g] = [1, 2].map(|seed| random(n, seed));
    let [m, v] = [3, 4].map(|seed| random(n, seed).iter().map(|x| x * x).collect::<Vec<f32>>());
    let step = Step { size: 0.01, root: 1.7, keep: 0.999, scale: 0.5, weights: [0.1, 0.001], epsilon: 1e-8 };
    let mut truth = [Vec::new(), Vec::new(), Vec::new()];
    for i in 0..n {
        let g = g[i] as f64 * 0.5;
        let m = 0.9 * m[i] as f64 + 0.1 * g;
        let v = 0.999 * v[i] as f64 + 0.001 * g * g;
        truth[0].push(0.999 * p[i] as f64 - 0.01 * m / (v.sqrt() * 1.7 + 1e-8));
        truth[1].push(m);
        truth[2].push(v);
    }
    for width in widths() {
        // In place, in two parts.
        let mut state = [p.clone(), m.clone(), v.clone()];
        let after = state.each_mut().map(|s| s.as_mut_ptr());
        let tensors = Tensors { before: after.map(|p| p.cast_const()), gradient: g.as_ptr(), after };
        unsafe {
            adamw(width, 33, 0, tensors, step);
            adamw(width, n - 33, 33, tensors, step);
        }
        for (found, truth) in state.iter().zip(&truth) {
            assert!(error(found, truth) < 1e-6, "{width:?}: {}", error(found, truth));
        }
    }
}

#[test]
fn products_with_weights_are_the_same_however_they_are_cut() {
    // More than one panel, parts of panels and of lines, and fewer rows than a tile has.
    for (rows, k, n) in [(200, 37, 70), (3, 2, 5), (28, 64, 32)] {
        let (x, w, b) = (random(rows * k, 1), random(k * n, 2), random(n, 3));
        let turned: Vec<f32> = (0..k * n).map(|i| w[i % k * n + i / k]).collect();
        for (start, transposed, bias) in [(&w, false, Some(&b)), (&turned, true, Some(&b)), (&w, false, None)] {
            let mut truth = Vec::new();
            for row in x.chunks(k) {
                let sum = |j: usize| (0..k).map(|i| row[i] as f64 * w[i * n + j] as f64).sum::<f64>();
                truth.extend((0..n).map(|j| sum(j) + bias.map_or(0.0, |b| b[j] as f64)));
            }
            let bias = bias.map_or(std::ptr::null(), |b| b.as_ptr());
            let weights = Weights { k, n, start: start.as_ptr(), transposed, bias };
            for width in widths() {
                let results = [1, 2, 3].map(|parts| {
                    let mut panels = vec![f32::NAN; weights.panels()];
                    let mut y = vec![f32::NAN; rows * n];
                    let l = Linear { k, n, x: x.as_ptr(), panels: panels.as_mut_ptr(), y: y.as_mut_ptr() };
                    let tiles = n.div_ceil(TILE);
                    for part in 0..parts {
                        let [from, to] = [part, part + 1].map(|p| (tiles * p / parts * TILE).min(n));
                        unsafe { pack(width, weights, from, to, panels.as_mut_ptr()) };
                    }
                    for part in 0..parts {
                        unsafe { linear(width, l, rows * part / parts, rows * (part + 1) / parts) };
                    }
                    y
                });
                assert!(error(&results[0], &truth) < 1e-6, "{width:?} {rows} {k} {n}: {}", error(&results[0], &truth));
                assert!(results.iter().all(|r| *r == results[0]), "{width:?} {rows} {k} {n}");
            }
        }
    }
}

#[test]
fn the_gradient_of_a_weight_is_the_same_however_it_is_cut() {
    // More than one panel of every kind, and parts of panels.
    for (rows, m, n) in [(400, 270, 70), (5, 3, 2), (64, 14, 32)] {
        let (x, g) = (random(rows * m, 1), random(rows * n, 2));
        let mut truth = vec![0.0; m * n];
        let sums = |x: &[f32], n: usize| -> Vec<f64> {
            (0..n).map(|j| x[j..].iter().step_by(n).map(|&x| x as f64).sum()).collect()
        };
        for k in 0..rows {
            for i in 0..m {
                (0..n).for_each(|j| truth[i * n + j] += x[k * m + i] as f64 * g[k * n + j] as f64);
            }
        }
        for width in widths() {
            let results = [[1, 1], [2, 1], [1, 3], [3, 2]].map(|cut| {
                let mut out = vec![f32::NAN; m * n];
                let (mut of_x, mut of_g) = (vec![f32::NAN; m], vec![f32::NAN; n]);
                let mut scratch = vec![0.0; WeightGradient::SCRATCH];
                let (x, g, out_start) = (x.as_ptr(), g.as_ptr(), out.as_mut_ptr());
                let (sum_of_x, sum_of_g) = (of_x.as_mut_ptr(), of_g.as_mut_ptr());
                let w = WeightGradient { rows, m, n, x, g, out: out_start, sum_of_x, sum_of_g };
                for part in 0..cut[0] * cut[1] {
                    unsafe { weight_gradient(width, w, w.part(part, cut), scratch.as_mut_ptr()) };
                }
                [out, of_x, of_g]
            });
            for (found, truth) in results[0].iter().zip([&truth, &sums(&x, m), &sums(&g, n)]) {
                assert!(error(found, truth) < 2e-6, "{width:?} {rows} {m} {n}");
            }
            assert!(results.iter().all(|r| *r == results[0]), "{width:?} {rows} {m} {n}");
        }
    }
}

#[test]
fn the_gradient_of_a_weight_is_cut_for_as_many_threads_as_it_fills() {
    let pointers = (std::ptr::null(), std::ptr::null_mut());
    let (x, out) = pointers;
    let of = |m, n| WeightGradient { rows: 1, m, n, x, g: x, out, sum_of_x: out, sum_of_g: out };
    assert_eq!(of(192, 768).parts(2), [1, 2]);
    assert_eq!(of(768, 192).parts(2), [2, 1]);
    assert_eq!(of(768, 768).parts(16), [4, 4]);
    assert_eq!(of(3, 5).parts(16), [1, 1]);
    // Every column of both is in some part.
    let w = of(300, 70);
    let cut = w.parts(7);
    let all: usize = (0..cut[0] * cut[1]).map(|p| w.part(p, cut)).map(|[a, b]| a.len() * b.len()).sum();
    assert_eq!(all, 300 * 70);
}

/// The loss Σ g · attention(q, k, v) of one head.
fn attention_loss(s: HeadDims, g: &[f32], q: &[f64], k: &[f64], v: &[f64]) -> f64 {
    attend(s, q, k, v).iter().zip(g).map(|(o, &g)| o * g as f64).sum()
}

fn attend(s: HeadDims, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let mut out = Vec::new();
    for q in q.chunks(s.dim) {
        let scores: Vec<f64> = k
            .chunks(s.dim)
            .map(|k| (q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * s.scale as f64).exp())
            .collect();
        let total: f64 = scores.iter().sum();
        for j in 0..s.value_dim {
            let sum: f64 = scores.iter().zip(v.chunks(s.value_dim)).map(|(p, v)| p * v[j]).sum();
            out.push(sum / total);
        }
    }
    out
}

#[test]
fn attention_and_its_gradient() {
    // More than one block of queries; lengths that fill no vector.
    let large = HeadDims { queries: 130, keys: 21, dim: 5, value_dim: 3, scale: 0.4 };
    let small = HeadDims { queries: 3, keys: 33, dim: 17, value_dim: 18, scale: 0.3 };
    for s in [large, small] {
        let q = random(s.queries * s.dim, 1);
        let k = random(s.keys * s.dim, 2);
        let v = random(s.keys * s.value_dim, 3);
        let g = random(s.queries * s.value_dim, 4);
        let [q64, k64, v64] = [&q, &k, &v].map(|x| wide(x));
        let truth = attend(s, &q64, &k64, &v64);
        let truths = [
            slopes(&q64, |q| attention_loss(s, &g, q, &k64, &v64)),
            slopes(&k64, |k| attention_loss(s, &g, &q64, k, &v64)),
            slopes(&v64, |v| attention_loss(s, &g, &q64, &k64, v)),
        ];
        let rows = |x: &[f32], stride: usize| Rows { start: x.as_ptr(), stride };
        let rows_mut = |x: &mut [f32], stride: usize| RowsMut { start: x.as_mut_ptr(), stride };
        for width in widths() {
            let mut out = vec![f32::NAN; truth.len()];
            let mut sums = vec![0.0; s.queries];
            let [mut gq, mut gk, mut gv] = [&q, &k, &v].map(|x| vec![f32::NAN; x.len()]);
            let (query, key, value) = (rows(&q, s.dim), rows(&k, s.dim), rows(&v, s.value_dim));
            unsafe {
                let target = rows_mut(&mut out, s.value_dim);
                attention::forward(width, s, query, key, value, target, sums.as_mut_ptr());
                let (gradient, output) = (rows(&g, s.value_dim), rows(&out, s.value_dim));
                let given = Saved { gradient, query, key, value, output, log_sums: sums.as_ptr() };
                let (gq, gk) = (rows_mut(&mut gq, s.dim), rows_mut(&mut gk, s.dim));
                attention::backward(width, s, given, gq, gk, rows_mut(&mut gv, s.value_dim));
            }
            assert!(error(&out, &truth) < 2e-6, "{width:?}");
            for (found, truth) in [gq, gk, gv].iter().zip(&truths) {
                assert!(error(found, truth) < 5e-6, "{width:?}: {}", error(found, truth));
            }
        }
    }
}

#[test]
fn every_processor_has_a_width() {
    assert_eq!(widths().last(), Some(Width::Portable));
}
