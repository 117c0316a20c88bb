//! The gradient of LayerNormalization.

use super::lanes::{Lanes, dispatch, each};

/// The gradient of x, for the gradient gw of its normal form, less what the mean and the deviation take away.
#[inline(always)]
fn along<L: Lanes>(gw: L, normal: L, inverse_deviation: L, first: L, second: L) -> L {
    inverse_deviation.mul(gw.sub(first).sub(normal.mul(second)))
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn layer_norm_gradient_lanes<L: Lanes>(
    rows: usize,
    n: usize,
    epsilon: f32,
    g: *const f32,
    x: *const f32,
    scale: *const f32,
    residual: *const f32,
    gx: *mut f32,
    sums: *mut f32,
) {
    let one_nth = 1.0 / n as f32;
    // SAFETY: the caller's promise; a row is in the cache after its first pass.
    unsafe {
        let (gscale, gbias) = (sums, sums.add(n));
        std::slice::from_raw_parts_mut(sums, 2 * n).fill(0.0);
        for row in 0..rows {
            let (g, x, gx) = (g.add(row * n), x.add(row * n), gx.add(row * n));
            let mut sum = L::splat(0.0);
            each!(L, n, [x] sum = sum.add(x));
            let mean = sum.sum() * one_nth;
            let m = L::splat(mean);
            let mut squares = L::splat(0.0);
            each!(L, n, [x] squares = x.sub(m).fma(x.sub(m), squares));
            // Less the zeros that fill the last vector up.
            let surplus = (n.next_multiple_of(L::N) - n) as f32 * mean * mean;
            let variance = ((squares.sum() - surplus) * one_nth).max(0.0);
            let v = L::splat(1.0 / (variance + epsilon).sqrt());

            let (mut first, mut second) = (L::splat(0.0), L::splat(0.0));
            each!(L, n, [g, x, scale] {
                let gw = g.mul(scale);
                first = first.add(gw);
                second = gw.fma(x.sub(m).mul(v), second);
            });
            each!(L, n, [g, gbias] g.add(gbias) => gbias);
            each!(L, n, [g, x, gscale] g.fma(x.sub(m).mul(v), gscale) => gscale);
            let (first, second) = (L::splat(first.sum() * one_nth), L::splat(second.sum() * one_nth));
            if residual.is_null() {
                each!(L, n, [g, x, scale] along(g.mul(scale), x.sub(m).mul(v), v, first, second) => gx);
            } else {
                let residual = residual.add(row * n);
                each!(L, n, [g, x, scale, residual] {
                    along(g.mul(scale), x.sub(m).mul(v), v, first, second).add(residual)
                } => gx);
            }
        }
    }
}
dispatch! {
    /// The gradient through y = scale (x - mean)/√(variance + epsilon) + bias of each row of n numbers, for g of y: gx
    /// is that of x, plus `residual` where it is not null; `sums` are those of scale, then those of bias. gx may be g
    /// or the residual.
    layer_norm_gradient(
        rows: usize, n: usize, epsilon: f32,
        g: *const f32, x: *const f32, scale: *const f32, residual: *const f32, gx: *mut f32, sums: *mut f32,
    ) = layer_norm_gradient_lanes
}
