//! The arithmetic of initialisations: selection, straight lines over depth, resampling by cosine transform, random
//! draws.

use ndarray::{Array2, ArrayView2};
use rand::{RngExt, rngs::StdRng};

/// Which `s` of `t` elements weight selection keeps: every t/s-th where that is whole, else those nearest to evenly
/// spaced places from the first to the last (Xu et al., 2311.18823, uniform selection).
pub fn select(t: usize, s: usize) -> Vec<usize> {
    if s > 0 && t.is_multiple_of(s) {
        return (0..s).map(|i| i * (t / s)).collect();
    }
    let last = t.saturating_sub(1) as f64;
    let step = last / s.saturating_sub(1).max(1) as f64;
    (0..s).map(|i| (i as f64 * step).round_ties_even().min(last) as usize).collect()
}

/// The straight line a + x b that is nearest, in least squares, to the tensors at their places x; element by element.
/// Where all places are the same, b is zero.
pub fn line(tensors: &[Vec<f32>], places: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let n = tensors.len().max(1) as f64;
    let elements = tensors.first().map_or(0, Vec::len);
    let mean = places.iter().sum::<f64>() / n;
    let spread: f64 = places.iter().map(|x| (x - mean).powi(2)).sum();
    let (mut a, mut b) = (vec![0.0; elements], vec![0.0; elements]);
    for (tensor, x) in tensors.iter().zip(places) {
        let lever = if spread > 0.0 { (x - mean) / spread } else { 0.0 };
        for ((a, b), &w) in a.iter_mut().zip(&mut b).zip(tensor) {
            *a += w as f64 / n;
            *b += lever * w as f64;
        }
    }
    a.iter_mut().zip(&b).for_each(|(a, b)| *a -= mean * b);
    (a, b)
}

/// Resamples a tensor to another shape of equal rank in the cosine domain: along every axis its orthonormal DCT-II is
/// cut, or filled up with zeros, to the new length and transformed back, scaled so that a constant keeps its value.
/// Along one axis that is a product with a matrix.
pub fn resample(data: &[f32], from: &[usize], to: &[usize]) -> Vec<f32> {
    let mut shape = from.to_vec();
    let mut data: Vec<f64> = data.iter().map(|&v| v.into()).collect();
    for (axis, &m) in to.iter().enumerate() {
        let n = shape[axis];
        if n == m || n == 0 || m == 0 {
            continue;
        }
        let matrix = cosines(m, n.min(m)).dot(&cosines(n, n.min(m)).t()) * (m as f64 / n as f64).sqrt();
        let inner: usize = shape[axis + 1..].iter().product();
        let mut out = Vec::with_capacity(data.len() / n * m);
        for part in data.chunks_exact(n * inner) {
            if let Ok(part) = ArrayView2::from_shape((n, inner), part) {
                out.extend(matrix.dot(&part));
            }
        }
        shape[axis] = m;
        data = out;
    }
    data.into_iter().map(|v| v as f32).collect()
}

/// The first `count` vectors of the orthonormal DCT-II of length n, as columns.
fn cosines(n: usize, count: usize) -> Array2<f64> {
    Array2::from_shape_fn((n, count), |(i, k)| {
        let scale = if k == 0 { 1.0 } else { 2.0 };
        let angle = std::f64::consts::PI * k as f64 * (i as f64 + 0.5) / n as f64;
        (scale / n as f64).sqrt() * angle.cos()
    })
}

/// Elements of a normal distribution around zero, cut at two as timm's `trunc_normal_` cuts them.
pub fn truncated_normal(random: &mut StdRng, deviation: f64, count: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(count + 1);
    while out.len() < count {
        // Box and Muller: two uniform numbers make two normal ones.
        let radius = (-2.0 * (1.0 - random.random::<f64>()).ln()).sqrt() * deviation;
        let angle = std::f64::consts::TAU * random.random::<f64>();
        out.extend(
            [radius * angle.cos(), radius * angle.sin()].into_iter().filter(|v| v.abs() <= 2.0).map(|v| v as f32),
        );
    }
    out.truncate(count);
    out
}

/// Elements drawn evenly from -bound to bound.
pub fn uniform(random: &mut StdRng, bound: f64, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-bound..=bound) as f32).collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use serde_json::Value;

    use super::*;

    /// Numbers that NumPy and SciPy computed (`scripts/golden/init.py`).
    fn golden() -> Value {
        serde_json::from_str(include_str!("../../fixtures/init/golden.json")).unwrap()
    }

    fn floats(v: &Value) -> Vec<f32> {
        v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    }

    fn sizes(v: &Value) -> Vec<usize> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
    }

    fn close(found: impl IntoIterator<Item = f64>, want: &[f32], tolerance: f64) {
        let mut count = 0;
        for (i, f) in found.into_iter().enumerate() {
            assert!((f - want[i] as f64).abs() < tolerance, "element {i}: {f} and {}", want[i]);
            count += 1;
        }
        assert_eq!(count, want.len());
    }

    #[test]
    fn selection_is_that_of_the_published_rule() {
        for case in golden()["select"].as_array().unwrap() {
            let (t, s) = (case["t"].as_u64().unwrap() as usize, case["s"].as_u64().unwrap() as usize);
            assert_eq!(select(t, s), sizes(&case["indices"]), "{t} to {s}");
        }
    }

    #[test]
    fn lines_are_those_of_least_squares() {
        let golden = golden();
        let case = &golden["line"];
        let tensors: Vec<Vec<f32>> = case["tensors"].as_array().unwrap().iter().map(floats).collect();
        let places: Vec<f64> = floats(&case["places"]).into_iter().map(f64::from).collect();
        let (a, b) = line(&tensors, &places);
        close(a, &floats(&case["a"]), 1e-5);
        close(b, &floats(&case["b"]), 1e-5);
        assert_eq!(
            line(&tensors[..1], &[0.5]),
            (tensors[0].iter().map(|&v| v as f64).collect(), vec![0.0; tensors[0].len()])
        );
    }

    #[test]
    fn resampling_is_that_of_the_cosine_transform() {
        for case in golden()["resample"].as_array().unwrap() {
            let found = resample(&floats(&case["data"]), &sizes(&case["from"]), &sizes(&case["to"]));
            close(found.into_iter().map(f64::from), &floats(&case["result"]), 1e-5);
        }
        let constant = resample(&[3.0; 24], &[2, 3, 4], &[5, 2, 7]);
        close(constant.into_iter().map(f64::from), &[3.0; 70], 1e-5);
    }

    #[test]
    fn draws_have_their_moments() {
        let mut random = StdRng::seed_from_u64(5);
        let n = 200_000;
        for (sample, deviation) in
            [(truncated_normal(&mut random, 0.02, n), 0.02), (uniform(&mut random, 0.1, n), 0.1 / 3f64.sqrt())]
        {
            let mean = sample.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
            let spread = (sample.iter().map(|&v| (v as f64 - mean).powi(2)).sum::<f64>() / n as f64).sqrt();
            assert!(mean.abs() < 4.0 * deviation / (n as f64).sqrt(), "{mean}");
            assert!((spread / deviation - 1.0).abs() < 0.01, "{spread}");
        }
        // The fourth moment tells a normal distribution from others of the same deviation.
        let sample = truncated_normal(&mut random, 1.0, n);
        assert!(sample.iter().all(|v| v.abs() <= 2.0));
        let fourth = sample.iter().map(|&v| (v as f64).powi(4)).sum::<f64>() / n as f64;
        // Of a standard normal distribution cut at two: 3 - (2^3 + 3 * 2) * 2 * phi(2) / (2 Phi(2) - 1).
        assert!((fourth - 1.4161).abs() < 0.02, "{fourth}");
    }
}
