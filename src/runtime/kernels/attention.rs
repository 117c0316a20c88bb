//! Scaled dot-product attention of one head, and its gradient, in the manner of FlashAttention (Dao et al. 2022):
//! scores are computed by blocks of queries and never leave the cache; the gradient computes them again from the
//! logarithm of their sums.

use super::lanes::{Lanes, Width, dispatch, each, exp, prefetch};
use super::product::{Strided, product};
use super::scratch::with_scratch;

/// Queries in a block: their scores stay in the second-level cache.
const BLOCK: usize = 112;

/// Rows of a head are far from each other in memory: those so many ahead are asked for.
const AHEAD: usize = 8;

/// What rows of scratch matrices are padded to: a whole number of vectors of any width.
const PAD: usize = 16;

/// Sizes of one head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadDims {
    pub queries: usize,
    pub keys: usize,
    /// Length of a query and of a key.
    pub dim: usize,
    /// Length of a value.
    pub value_dim: usize,
    /// What scores are multiplied by.
    pub scale: f32,
}

/// The rows of one head in a larger tensor: each contiguous, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    pub start: *const f32,
    pub stride: usize,
}

/// [`Rows`] to write to.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowsMut {
    pub start: *mut f32,
    pub stride: usize,
}

/// A matrix of the scratch memory, with padded rows.
#[derive(Clone, Copy)]
struct Matrix {
    start: *mut f32,
    row: usize,
}

impl Matrix {
    fn read(self) -> (*const f32, usize) {
        (self.start, self.row)
    }
    fn write(self) -> (*mut f32, usize) {
        (self.start, self.row)
    }
    fn plain(self) -> Strided {
        Strided { start: self.start, row: self.row, column: 1 }
    }
    fn transposed(self) -> Strided {
        Strided { start: self.start, row: 1, column: self.row }
    }
    unsafe fn row(self, i: usize) -> *mut f32 {
        // SAFETY: the caller names a row that is there.
        unsafe { self.start.add(i * self.row) }
    }

    /// Copies `count` rows of `n` numbers from row `first` on; the padding becomes zero.
    unsafe fn copy(self, from: Rows, first: usize, count: usize, n: usize) {
        for i in 0..count {
            prefetch(from.start.wrapping_add((first + i + AHEAD) * from.stride), n);
            // SAFETY: rows of a scratch matrix are no shorter than what it was made for.
            unsafe {
                std::ptr::copy_nonoverlapping(from.start.add((first + i) * from.stride), self.row(i), n);
                std::slice::from_raw_parts_mut(self.row(i).add(n), self.row - n).fill(0.0);
            }
        }
    }

    /// Copies `count` rows of `n` numbers into columns; the padding becomes zero.
    unsafe fn copy_transposed(self, from: Rows, count: usize, n: usize) {
        // SAFETY: as above.
        unsafe {
            for i in 0..n {
                std::slice::from_raw_parts_mut(self.row(i).add(count), self.row - count).fill(0.0);
            }
            for k in 0..count {
                prefetch(from.start.wrapping_add((k + AHEAD) * from.stride), n);
                let row = from.start.add(k * from.stride);
                (0..n).for_each(|i| *self.row(i).add(k) = *row.add(i));
            }
        }
    }

    /// Writes `count` rows of `n` numbers from row `first` of the target on.
    unsafe fn put(self, to: RowsMut, first: usize, count: usize, n: usize) {
        for i in 0..count {
            prefetch(to.start.wrapping_add((first + i + AHEAD) * to.stride), n);
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(self.row(i), to.start.add((first + i) * to.stride), n) };
        }
    }
}

/// Lays matrices of the given rows and columns out in scratch memory. Rows begin with a line of the cache.
#[inline(always)]
unsafe fn matrices<const N: usize>(sizes: [[usize; 2]; N], mut scratch: *mut f32) -> [Matrix; N] {
    // SAFETY: the memory is large enough for the matrices and the alignment: it has the length of `length`.
    unsafe {
        scratch = scratch.add(scratch.align_offset(64));
        sizes.map(|[rows, columns]| {
            let matrix = Matrix { start: scratch, row: columns.next_multiple_of(PAD) };
            scratch = scratch.add(rows * matrix.row);
            matrix
        })
    }
}

/// Numbers of scratch memory that [`matrices`] of these sizes take.
fn length<const N: usize>(sizes: [[usize; 2]; N]) -> usize {
    sizes.iter().map(|[rows, columns]| rows * columns.next_multiple_of(PAD)).sum::<usize>() + PAD
}

impl HeadDims {
    fn block(&self) -> usize {
        BLOCK.min(self.queries)
    }

    fn forward_matrices(&self) -> [[usize; 2]; 6] {
        let (block, keys) = (self.block(), self.keys);
        let scores = [[block, self.dim], [block, keys], [block, self.value_dim], [block, 1]];
        [[self.dim, keys], [keys, self.value_dim], scores[0], scores[1], scores[2], scores[3]]
    }

    fn backward_matrices(&self) -> [[usize; 2]; 10] {
        let (block, keys) = (self.block(), self.keys);
        [
            [self.dim, keys],
            [self.value_dim, keys],
            [keys, self.dim],
            [block, self.dim],
            [block, self.value_dim],
            [block, keys],
            [block, keys],
            [block, self.dim],
            [keys, self.dim],
            [keys, self.value_dim],
        ]
    }
}

/// out = softmax(scale · q kᵀ) v; `log_sums` holds the logarithm of each query's sum of exponentials.
///
/// # Safety
/// The rows are there, in the sizes that are named.
pub(super) unsafe fn forward(width: Width, s: HeadDims, q: Rows, k: Rows, v: Rows, out: RowsMut, log_sums: *mut f32) {
    // SAFETY: the caller's promise, and scratch memory of the length that is used.
    with_scratch(length(s.forward_matrices()), |scratch| unsafe {
        forward_block(width, s, q, k, v, out, log_sums, scratch);
    });
}

/// The gradients of query, key and value.
///
/// # Safety
/// The rows are there, in the sizes that are named.
pub(super) unsafe fn backward(width: Width, s: HeadDims, given: Saved, gq: RowsMut, gk: RowsMut, gv: RowsMut) {
    // SAFETY: the caller's promise, and scratch memory of the length that is used.
    with_scratch(length(s.backward_matrices()), |scratch| unsafe {
        backward_block(width, s, given, gq, gk, gv, scratch);
    });
}

/// The largest of `n` numbers.
#[inline(always)]
unsafe fn largest<L: Lanes>(row: *const f32, n: usize) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        if n < L::N {
            return (0..n).fold(f32::NEG_INFINITY, |top, j| top.max(*row.add(j)));
        }
        // The last vector may overlap the one before it.
        let mut top = L::load(row.add(n - L::N));
        for j in (0..n - L::N).step_by(L::N) {
            top = top.max(L::load(row.add(j)));
        }
        top.maximum()
    }
}

#[allow(clippy::too_many_arguments)]
#[inline(always)]
unsafe fn forward_lanes<L: Lanes>(
    s: HeadDims,
    q: Rows,
    k: Rows,
    v: Rows,
    out: RowsMut,
    log_sums: *mut f32,
    scratch: *mut f32,
) {
    let block = s.block();
    // SAFETY: the caller's promise, and scratch matrices of the sizes that are used.
    unsafe {
        let [kt, values, queries, scores, sums, largest_of] = matrices(s.forward_matrices(), scratch);
        kt.copy_transposed(k, s.keys, s.dim);
        values.copy(v, 0, s.keys, s.value_dim);
        for first in (0..s.queries).step_by(block) {
            let count = block.min(s.queries - first);
            queries.copy(q, first, count, s.dim);
            product(L::WIDTH, [count, scores.row, s.dim], queries.plain(), kt.read(), scores.write(), false);
            for i in 0..count {
                let row = scores.row(i);
                let largest = largest::<L>(row, s.keys) * s.scale;
                let (scale, shift) = (L::splat(s.scale), L::splat(-largest));
                let mut total = L::splat(0.0);
                let whole = s.keys - s.keys % L::N;
                for j in (0..whole).step_by(L::N) {
                    let p = exp(L::load(row.add(j)).fma(scale, shift));
                    p.store(row.add(j));
                    total = total.add(p);
                }
                if whole < s.keys {
                    let (at, rest) = (row.add(whole), s.keys - whole);
                    exp(L::load_first(at, rest).fma(scale, shift)).store_first(at, rest);
                    total = total.add(L::load_first(at, rest));
                }
                let total = total.sum();
                // Until the values are summed up, the place of the logarithm holds the sum.
                *log_sums.add(first + i) = total;
                *largest_of.row(i) = largest;
            }
            product(L::WIDTH, [count, sums.row, s.keys], scores.plain(), values.read(), sums.write(), false);
            for i in 0..count {
                let (sum, total) = (sums.row(i), log_sums.add(first + i));
                let share = L::splat(1.0 / *total);
                each!(L, s.value_dim, [sum] sum.mul(share) => sum);
                *total = *largest_of.row(i) + (*total).ln();
            }
            sums.put(out, first, count, s.value_dim);
        }
    }
}
dispatch! {
    /// [`forward`] in scratch memory that is given.
    forward_block(s: HeadDims, q: Rows, k: Rows, v: Rows, out: RowsMut, log_sums: *mut f32,
        scratch: *mut f32) = forward_lanes
}

/// What the gradient is computed from.
#[derive(Clone, Copy)]
pub(super) struct Saved {
    /// The gradient of the output.
    pub gradient: Rows,
    pub query: Rows,
    pub key: Rows,
    pub value: Rows,
    pub output: Rows,
    pub log_sums: *const f32,
}

#[inline(always)]
unsafe fn backward_lanes<L: Lanes>(
    s: HeadDims,
    given: Saved,
    gq: RowsMut,
    gk: RowsMut,
    gv: RowsMut,
    scratch: *mut f32,
) {
    let block = s.block();
    // SAFETY: the caller's promise, and scratch matrices of the sizes that are used.
    unsafe {
        let [kt, vt, keys, queries, gradients, scores, slopes, gqueries, gkeys, gvalues] =
            matrices(s.backward_matrices(), scratch);
        kt.copy_transposed(given.key, s.keys, s.dim);
        vt.copy_transposed(given.value, s.keys, s.value_dim);
        keys.copy(given.key, 0, s.keys, s.dim);
        let scale = L::splat(s.scale);
        for first in (0..s.queries).step_by(block) {
            let count = block.min(s.queries - first);
            queries.copy(given.query, first, count, s.dim);
            gradients.copy(given.gradient, first, count, s.value_dim);
            product(L::WIDTH, [count, scores.row, s.dim], queries.plain(), kt.read(), scores.write(), false);
            product(L::WIDTH, [count, slopes.row, s.value_dim], gradients.plain(), vt.read(), slopes.write(), false);
            for i in 0..count {
                // Σ p · (gradient of p) over the keys is Σ g · output over the value.
                let output = given.output.start.add((first + i) * given.output.stride);
                let gradient = gradients.row(i);
                let mut along = L::splat(0.0);
                each!(L, s.value_dim, [gradient, output] along = gradient.fma(output, along));
                let along = L::splat(along.sum());
                let shift = L::splat(-*given.log_sums.add(first + i));
                let (p, slope) = (scores.row(i), slopes.row(i));
                let whole = s.keys - s.keys % L::N;
                for j in (0..whole).step_by(L::N) {
                    let (p, slope) = (p.add(j), slope.add(j));
                    let e = exp(L::load(p).fma(scale, shift));
                    e.store(p);
                    L::load(slope).sub(along).mul(e).mul(scale).store(slope);
                }
                if whole < s.keys {
                    let (p, slope, rest) = (p.add(whole), slope.add(whole), s.keys - whole);
                    let e = exp(L::load_first(p, rest).fma(scale, shift));
                    e.store_first(p, rest);
                    L::load_first(slope, rest).sub(along).mul(e).mul(scale).store_first(slope, rest);
                }
            }
            let later = first > 0;
            product(L::WIDTH, [count, gqueries.row, s.keys], slopes.plain(), keys.read(), gqueries.write(), false);
            product(L::WIDTH, [s.keys, gkeys.row, count], slopes.transposed(), queries.read(), gkeys.write(), later);
            product(
                L::WIDTH,
                [s.keys, gvalues.row, count],
                scores.transposed(),
                gradients.read(),
                gvalues.write(),
                later,
            );
            gqueries.put(gq, first, count, s.dim);
        }
        gkeys.put(gk, 0, s.keys, s.dim);
        gvalues.put(gv, 0, s.keys, s.value_dim);
    }
}
dispatch! {
    /// [`backward`] in scratch memory that is given.
    backward_block(s: HeadDims, given: Saved, gq: RowsMut, gk: RowsMut, gv: RowsMut, scratch: *mut f32) = backward_lanes
}
