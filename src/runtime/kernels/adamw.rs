//! One step of AdamW.

use super::lanes::{Lanes, dispatch};

/// What a step of AdamW takes besides the tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    /// lr / (1 - β1^t).
    pub size: f32,
    /// 1 / √(1 - β2^t).
    pub root: f32,
    /// 1 - lr · weight decay, or 1.
    pub keep: f32,
    /// What gradients are multiplied by before anything else.
    pub scale: f32,
    /// 1 - β1 and 1 - β2: β itself would lose digits of them.
    pub weights: [f32; 2],
    pub epsilon: f32,
}

/// A tensor with its moments and its gradient, before and after the step. State after may be state before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensors {
    /// Parameter, first moment, second moment.
    pub before: [*const f32; 3],
    pub gradient: *const f32,
    pub after: [*mut f32; 3],
}

#[inline(always)]
unsafe fn adamw_lanes<L: Lanes>(n: usize, start: usize, t: Tensors, step: Step) {
    let [new1, new2] = step.weights.map(L::splat);
    let [old1, old2] = step.weights.map(|w| L::splat((1.0 - w as f64) as f32));
    let (size, root, keep) = (L::splat(step.size), L::splat(step.root), L::splat(step.keep));
    let (scale, epsilon) = (L::splat(step.scale), L::splat(step.epsilon));
    // SAFETY: the caller's promise.
    unsafe {
        let [p, m, v] = t.before.map(|x| x.add(start));
        let [p1, m1, v1] = t.after.map(|x| x.add(start));
        let g = t.gradient.add(start);
        let whole = n - n % L::N;
        let mut i = 0;
        while i < n {
            let rest = n - i;
            let [p, m, v, g] = if i < whole {
                [L::load(p.add(i)), L::load(m.add(i)), L::load(v.add(i)), L::load(g.add(i))]
            } else {
                let first = [L::load_first(p.add(i), rest), L::load_first(m.add(i), rest)];
                [first[0], first[1], L::load_first(v.add(i), rest), L::load_first(g.add(i), rest)]
            };
            let g = g.mul(scale);
            let m = m.fma(old1, g.mul(new1));
            let v = v.fma(old2, g.mul(g).mul(new2));
            let change = m.mul(size).div(v.sqrt().fma(root, epsilon));
            let p = p.mul(keep).sub(change);
            if i < whole {
                p.store(p1.add(i));
                m.store(m1.add(i));
                v.store(v1.add(i));
            } else {
                p.store_first(p1.add(i), rest);
                m.store_first(m1.add(i), rest);
                v.store_first(v1.add(i), rest);
            }
            i += L::N;
        }
    }
}
dispatch! {
    /// Updates n numbers from `start` on.
    adamw(n: usize, start: usize, tensors: Tensors, step: Step) = adamw_lanes
}
