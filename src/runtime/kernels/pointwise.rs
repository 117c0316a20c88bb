//! GELU and its gradient, and the gradient of Softmax.

use super::lanes::{Lanes, dispatch, each, exp, normal};

/// For u = √(2/π) (x + 0.044715 x³) the logistic function of 2u, that of -2u, and u': the tanh form of GELU is x times
/// the first.
#[inline(always)]
fn logistic<L: Lanes>(x: L) -> (L, L, L) {
    let root = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
    let (a, one) = (L::splat(root), L::splat(1.0));
    let square = x.mul(x).mul(L::splat(0.044_715));
    let u = x.mul(a).mul(square.add(one));
    let slope = square.fma(L::splat(3.0), one).mul(a);
    let e = exp(u.mul(L::splat(-2.0)));
    let s = one.div(one.add(e));
    (s, e.mul(s), slope)
}

#[inline(always)]
unsafe fn gelu_lanes<L: Lanes>(n: usize, x: *const f32, y: *mut f32, tanh: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if tanh {
            each!(L, n, [x] x.mul(logistic(x).0) => y);
        } else {
            each!(L, n, [x] x.mul(normal(x).0) => y);
        }
    }
}
dispatch! {
    /// y = GELU(x) for n numbers.
    gelu(n: usize, x: *const f32, y: *mut f32, tanh: bool) = gelu_lanes
}

#[inline(always)]
unsafe fn gelu_gradient_lanes<L: Lanes>(n: usize, g: *const f32, x: *const f32, y: *mut f32, tanh: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if tanh {
            each!(L, n, [g, x] {
                let (s, rest, slope) = logistic(x);
                // s + x s (1 - s) 2u'.
                let inner = rest.mul(s).mul(x).mul(slope);
                g.mul(inner.fma(L::splat(2.0), s))
            } => y);
        } else {
            each!(L, n, [g, x] {
                let (probability, density) = normal(x);
                g.mul(x.fma(density, probability))
            } => y);
        }
    }
}
dispatch! {
    /// y = g GELU'(x) for n numbers. y may be g or x.
    gelu_gradient(n: usize, g: *const f32, x: *const f32, y: *mut f32, tanh: bool) = gelu_gradient_lanes
}

#[inline(always)]
unsafe fn softmax_gradient_lanes<L: Lanes>(rows: usize, n: usize, g: *const f32, y: *const f32, x: *mut f32) {
    for row in 0..rows {
        // SAFETY: the caller's promise.
        unsafe {
            let (g, y, x) = (g.add(row * n), y.add(row * n), x.add(row * n));
            let mut sum = L::splat(0.0);
            each!(L, n, [g, y] sum = g.fma(y, sum));
            let sum = L::splat(sum.sum());
            each!(L, n, [g, y] y.mul(g.sub(sum)) => x);
        }
    }
}
dispatch! {
    /// x = y (g - Σ g y) for each row of n numbers. x may be g or y.
    softmax_gradient(rows: usize, n: usize, g: *const f32, y: *const f32, x: *mut f32) = softmax_gradient_lanes
}
