//! Interpolation of tables along one axis: each new entry as a sum of old ones.
//!
//! Position tables and relative position biases are resampled as timm does it, so that a child of another image size
//! starts where a model that timm resized starts.

use crate::axes::resize::LinearCombination;

/// Antialiased bicubic interpolation from `n` to `m` entries, pixel centres aligned (PyTorch's `interpolate` with
/// `mode="bicubic", antialias=True`; the kernel is Keys' with a = -0.5).
pub(super) fn bicubic(n: usize, m: usize) -> LinearCombination {
    const A: f64 = -0.5;
    let kernel = |x: f64| match x.abs() {
        x if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A,
        _ => 0.0,
    };
    let step = n as f64 / m as f64;
    // Where the table shrinks, the kernel is as much wider.
    let stretch = step.max(1.0);
    (0..m)
        .map(|i| {
            let centre = step * (i as f64 + 0.5);
            let first = ((centre - 2.0 * stretch + 0.5).floor().max(0.0)) as usize;
            let last = ((centre + 2.0 * stretch + 0.5).floor() as usize).min(n);
            let weights: Vec<f64> = (first..last).map(|j| kernel((j as f64 - centre + 0.5) / stretch)).collect();
            let total: f64 = weights.iter().sum();
            (first..last).zip(weights).map(|(j, w)| (j, (w / total) as f32)).filter(|&(_, w)| w != 0.0).collect()
        })
        .collect()
}

/// Linear interpolation of relative positions from a window of `n` tokens to one of `m`: the 2n - 1 old offsets are
/// placed at distances that grow as a geometric series, so that near offsets keep their resolution (BEiT; timm's
/// `resize_rel_pos_bias_table`, which treats both axes so even where one keeps its length).
pub(super) fn relative(n: usize, m: usize) -> LinearCombination {
    let (source, target) = (2 * n - 1, 2 * m - 1);
    let series = |ratio: f64, terms: usize| (1.0 - ratio.powi(terms as i32)) / (1.0 - ratio);
    // The ratio whose series reaches the farthest new offset; the tolerance is timm's, and part of the result.
    let (mut low, mut high, mut ratio) = (1.01, 1.5, 1.01);
    while high - low > 1e-6 {
        ratio = (low + high) / 2.0;
        if series(ratio, source / 2) > (target / 2) as f64 { high = ratio } else { low = ratio }
    }
    let (mut distances, mut at) = (Vec::new(), 1.0f64);
    for i in 0..source / 2 {
        distances.push(at as f32);
        at += ratio.powi(i as i32 + 1);
    }
    let mut points: Vec<f32> = distances.iter().rev().map(|d| -d).collect();
    points.push(0.0);
    points.extend(distances);
    (0..target)
        .map(|i| {
            let x = i as f32 - (target / 2) as f32;
            let right = points.partition_point(|&p| p < x).min(points.len() - 1);
            let left = right.saturating_sub(1);
            // Beyond the last point the table is flat.
            let (mut before, mut after) = ((x - points[left]).max(0.0), (points[right] - x).max(0.0));
            if before == 0.0 && after == 0.0 {
                (before, after) = (1.0, 1.0);
            }
            let span = before + after;
            if left == right {
                return vec![(left, 1.0)];
            }
            [(left, after / span), (right, before / span)].into_iter().filter(|t| t.1 != 0.0).collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(mixture: &LinearCombination, x: &[f32]) -> Vec<f32> {
        mixture.iter().map(|row| row.iter().map(|&(j, w)| w * x[j]).sum()).collect()
    }

    fn close(a: &[f32], b: &[f32]) {
        assert!(a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-6), "{a:?}\n{b:?}");
    }

    /// Values of torch.nn.functional.interpolate (torch 2.15).
    #[test]
    fn bicubic_is_pytorchs() {
        let x = [1.0, -2.0, 0.5, 3.0, 4.0, -1.0];
        close(&apply(&bicubic(6, 4), &x), &BICUBIC_DOWN);
        close(&apply(&bicubic(6, 9), &x), &BICUBIC_UP);
        close(&apply(&bicubic(6, 6), &x), &x);
    }

    /// Values of timm.layers.pos_embed_rel.resize_rel_pos_bias_table (timm 1.0.31), which is separable.
    #[test]
    fn relative_positions_are_timms() {
        let x = [1.0, -2.0, 0.5, 3.0, 4.0, -1.0, 2.0];
        close(&apply(&relative(4, 6), &x), &RELATIVE_UP);
        close(&apply(&relative(4, 3), &x), &RELATIVE_DOWN);
        close(&apply(&relative(4, 4), &x), &RELATIVE_SAME);
    }

    const BICUBIC_DOWN: [f32; 4] = [-0.1755669, -0.3759574, 3.513783, 0.7920711];
    const BICUBIC_UP: [f32; 9] =
        [1.197368, -0.5588236, -1.901621, 0.01967651, 1.84375, 3.322918, 4.197917, 1.411765, -1.328948];
    const RELATIVE_UP: [f32; 11] =
        [1.0, 3.814702e-06, -1.333331, -1.166668, 0.5, 3.0, 4.0, 0.6666645, -0.3333312, 1.000004, 2.0];
    const RELATIVE_SAME: [f32; 7] = [0.9114714, -1.975245, 0.5, 3.0, 4.0, -0.9504904, 1.911471];
    const RELATIVE_DOWN: [f32; 5] = [-1.975245, 0.5, 3.0, 4.0, -0.9504904];
}
