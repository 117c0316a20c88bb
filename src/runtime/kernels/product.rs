//! Products of matrices on one thread: of those that fit the cache, which attention is made of, and the gradient of a weight.

use super::lanes::{Lanes, dispatch, prefetch};

/// A matrix of any strides that is read number by number.
#[derive(Clone, Copy)]
pub(super) struct Strided {
    pub start: *const f32,
    pub row: usize,
    pub column: usize,
}

#[inline(always)]
unsafe fn product_lanes<L: Lanes>(
    [m, n, k]: [usize; 3],
    a: Strided,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    accumulate: bool,
) {
    debug_assert!(n.is_multiple_of(L::N));
    let mut column = 0;
    while column < n {
        let wide = n - column >= 2 * L::N;
        let mut row = 0;
        while row < m {
            // SAFETY: the tile lies within the matrices, which the caller promises.
            unsafe {
                let a = Strided { start: a.start.add(row * a.row), ..a };
                let (b, c) = ((b.0.add(column), b.1), (c.0.add(row * c.1 + column), c.1));
                row += match wide {
                    true => rows::<L, 2>(m - row, k, a, b, c, accumulate),
                    false => rows::<L, 1>(m - row, k, a, b, c, accumulate),
                };
            }
        }
        column += if wide { 2 * L::N } else { L::N };
    }
}

dispatch! {
    /// C = A B, or C += A B where `accumulate`: A is m x k, B k x n and C m x n with contiguous rows. n is a whole number of
    /// vectors: rows of B and C are padded.
    ///
    /// A tile of C stays in the registers while k runs; B is read along its rows and A broadcast, so that neither is packed.
    product(sizes: [usize; 3], a: Strided, b: (*const f32, usize), c: (*mut f32, usize), accumulate: bool) = product_lanes
}

/// A tile of as many rows as the registers hold, or of what is left; returns how many.
#[inline(always)]
unsafe fn rows<L: Lanes, const W: usize>(
    left: usize,
    k: usize,
    a: Strided,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    accumulate: bool,
) -> usize {
    macro_rules! tiles {
        ($($n:literal)*) => {
            $(if $n <= L::ROWS && left >= $n {
                // SAFETY: the caller's promise.
                unsafe { tile::<L, $n, W>(k, a, b, c, accumulate) };
                return $n;
            })*
        };
    }
    tiles!(14 12 8 6 4 2 1);
    left
}

// Indices, because the adaptors of iterators are functions of their own, which need not be compiled for these vectors.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const W: usize>(
    k: usize,
    a: Strided,
    (b, b_row): (*const f32, usize),
    (c, c_row): (*mut f32, usize),
    accumulate: bool,
) {
    let mut sums = [[L::splat(0.0); W]; R];
    // SAFETY: the caller's promise.
    unsafe {
        for i in 0..k {
            let mut right = [L::splat(0.0); W];
            for w in 0..W {
                right[w] = L::load(b.add(i * b_row + w * L::N));
            }
            for r in 0..R {
                let left = L::splat(*a.start.add(r * a.row + i * a.column));
                for w in 0..W {
                    sums[r][w] = left.fma(right[w], sums[r][w]);
                }
            }
        }
        for r in 0..R {
            for w in 0..W {
                let (at, sum) = (c.add(r * c_row + w * L::N), sums[r][w]);
                if accumulate {
                    sum.add(L::load(at)).store(at)
                } else {
                    sum.store(at)
                };
            }
        }
    }
}

/// Rows of activations that are packed at once.
const DEPTH: usize = 256;
/// Columns of the first matrix that are packed at once: with [`DEPTH`] rows, a part of the second-level cache.
const BREADTH: usize = 392;
/// Tiles whose columns of the second matrix are packed at once.
const GROUP: usize = 4;
/// Rows that are asked for before they are packed.
const AHEAD: usize = 3;
/// Columns of the widest tile.
const TILE: usize = 32;

/// A product Xᵀ G of activations with gradients.
#[derive(Clone, Copy, Debug)]
pub(super) struct WeightGradient {
    /// Rows of both.
    pub rows: usize,
    /// Columns of X.
    pub m: usize,
    /// Columns of G.
    pub n: usize,
    pub x: *const f32,
    pub g: *const f32,
    /// m x n.
    pub out: *mut f32,
}

impl WeightGradient {
    /// Numbers of scratch memory that [`weight_gradient`] takes.
    pub const SCRATCH: usize = (DEPTH + 2) * (BREADTH + 14) + (DEPTH * GROUP + 14) * TILE + 16;

    /// Where to cut the columns into `parts`, at whole tiles.
    pub fn cut(&self, part: usize, parts: usize) -> usize {
        (self.n.div_ceil(TILE) * part / parts * TILE).min(self.n)
    }
}

#[inline(always)]
unsafe fn weight_gradient_lanes<L: Lanes>(w: WeightGradient, from: usize, to: usize, scratch: *mut f32) {
    let (wide, end) = (2 * L::N, w.rows * w.m);
    // SAFETY: the caller's promise; packed panels and the tile at the border lie within the scratch memory.
    unsafe {
        let panel = scratch;
        let border = panel.add(DEPTH * GROUP * TILE);
        let left = border.add(14 * TILE);
        for top in (0..w.rows).step_by(DEPTH) {
            let depth = DEPTH.min(w.rows - top);
            for first in (0..w.m).step_by(BREADTH) {
                let breadth = BREADTH.min(w.m - first);
                // Panels of X, each as many columns as a tile has rows, with room behind it.
                let length = (depth + 2) * L::ROWS;
                for k in 0..depth {
                    let at = (top + k) * w.m + first;
                    prefetch(w.x.wrapping_add(at + AHEAD * w.m), breadth);
                    for p in 0..breadth.div_ceil(L::ROWS) {
                        let done = p * L::ROWS;
                        let (source, target) = (w.x.add(at + done), left.add(p * length + k * L::ROWS));
                        // A whole vector where one can be read: what is too much is written over by the next row.
                        let row = match at + done + L::N <= end {
                            true => L::load(source),
                            false => L::load_first(source, L::ROWS.min(breadth - done)),
                        };
                        row.store(target);
                    }
                }
                for group in (from..to).step_by(GROUP * wide) {
                    let columns = (GROUP * wide).min(to - group);
                    // The same of G: whole rows of the group at once, because rows are far from each other in memory.
                    for k in 0..depth {
                        let source = w.g.add((top + k) * w.n + group);
                        prefetch(source.wrapping_add(AHEAD * w.n), columns);
                        for column in (0..columns).step_by(wide) {
                            let (source, target) = (source.add(column), panel.add(column * depth + k * wide));
                            if columns - column >= wide {
                                L::load(source).store(target);
                                L::load(source.add(L::N)).store(target.add(L::N));
                            } else {
                                std::ptr::write_bytes(target, 0, wide);
                                std::ptr::copy_nonoverlapping(source, target, columns - column);
                            }
                        }
                    }
                    for row in (0..breadth).step_by(L::ROWS) {
                        let height = L::ROWS.min(breadth - row);
                        let start = left.add(row / L::ROWS * length).cast_const();
                        let a = Strided { start, row: 1, column: L::ROWS };
                        for column in (0..columns).step_by(wide) {
                            let b = (panel.add(column * depth).cast_const(), wide);
                            let c = w.out.add((first + row) * w.n + group + column);
                            let count = wide.min(columns - column);
                            // A tile that is cut off is computed beside its place.
                            let (to, add) = if count == wide { ((c, w.n), top > 0) } else { ((border, wide), false) };
                            let mut done = 0;
                            while done < height {
                                let a = Strided { start: a.start.add(done), ..a };
                                done += rows::<L, 2>(height - done, depth, a, b, (to.0.add(done * to.1), to.1), add);
                            }
                            if count < wide {
                                for i in 0..height {
                                    for j in 0..count {
                                        let (at, sum) = (c.add(i * w.n + j), *border.add(i * wide + j));
                                        *at = if top > 0 { *at + sum } else { sum };
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
dispatch! {
    /// Columns `from` to `to` of Xᵀ G. The order of the sums does not depend on how columns are cut, as long as it is at
    /// whole tiles of [`TILE`].
    weight_gradient(w: WeightGradient, from: usize, to: usize, scratch: *mut f32) = weight_gradient_lanes
}
