//! Products of matrices on one thread: of those that fit the cache, which attention is made of, activations by weights,
//! and the gradient of a weight.

use std::ops::Range;

use super::lanes::{Lanes, dispatch, each, prefetch};

/// What a product is added to.
#[derive(Clone, Copy)]
enum Onto {
    Nothing,
    /// What stands at its place already.
    Itself,
    /// One row for all rows.
    Row(*const f32),
}

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
    let onto = if accumulate { Onto::Itself } else { Onto::Nothing };
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
                    true => rows::<L, 2>(m - row, k, a, b, c, onto),
                    false => rows::<L, 1>(m - row, k, a, b, c, onto),
                };
            }
        }
        column += if wide { 2 * L::N } else { L::N };
    }
}

dispatch! {
    /// C = A B, or C += A B where `accumulate`: A is m x k, B k x n and C m x n with contiguous rows. n is a whole
    /// number of vectors: rows of B and C are padded.
    ///
    /// A tile of C stays in the registers while k runs; B is read along its rows and A broadcast, so that neither is
    /// packed.
    product(sizes: [usize; 3], a: Strided, b: (*const f32, usize), c: (*mut f32, usize),
        accumulate: bool) = product_lanes
}

/// A tile of as many rows as the registers hold, or of what is left; returns how many.
#[inline(always)]
unsafe fn rows<L: Lanes, const W: usize>(
    left: usize,
    k: usize,
    a: Strided,
    b: (*const f32, usize),
    c: (*mut f32, usize),
    onto: Onto,
) -> usize {
    macro_rules! tiles {
        ($($n:literal)*) => {
            $(if $n <= L::ROWS && left >= $n {
                // SAFETY: the caller's promise.
                unsafe { tile::<L, $n, W>(k, a, b, c, onto) };
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
    onto: Onto,
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
                match onto {
                    Onto::Nothing => sum.store(at),
                    Onto::Itself => sum.add(L::load(at)).store(at),
                    Onto::Row(row) => sum.add(L::load(row.add(w * L::N))).store(at),
                }
            }
        }
    }
}

/// The weights and the bias of a [`Linear`] product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights {
    /// Rows of the matrix that activations are multiplied by.
    pub k: usize,
    /// Its columns.
    pub n: usize,
    /// k x n, or n x k where `transposed`.
    pub start: *const f32,
    pub transposed: bool,
    /// n numbers, or null.
    pub bias: *const f32,
}

impl Weights {
    /// Numbers that all panels take.
    pub fn panels(&self) -> usize {
        (self.k + 1) * self.n.next_multiple_of(TILE)
    }
}

/// Rows of weights that are transposed at once: as many numbers as a line of the cache holds.
const LINE: usize = 16;

#[inline(always)]
unsafe fn pack_lanes<L: Lanes>(weights: Weights, from: usize, to: usize, panels: *mut f32) {
    let wide = 2 * L::N;
    for column in (from..to).step_by(wide) {
        let count = wide.min(to - column);
        // SAFETY: the caller's promise.
        unsafe {
            let bias = panels.add(column * (weights.k + 1));
            std::ptr::write_bytes(bias, 0, if count < wide { wide * (weights.k + 1) } else { wide });
            if !weights.bias.is_null() {
                std::ptr::copy_nonoverlapping(weights.bias.add(column), bias, count);
            }
            let panel = bias.add(wide);
            if weights.transposed {
                for first in (0..weights.k).step_by(LINE) {
                    let length = LINE.min(weights.k - first);
                    for j in 0..count {
                        let source = weights.start.add((column + j) * weights.k + first);
                        (0..length).for_each(|i| *panel.add((first + i) * wide + j) = *source.add(i));
                    }
                }
            } else {
                for i in 0..weights.k {
                    let (source, target) = (weights.start.add(i * weights.n + column), panel.add(i * wide));
                    if count == wide {
                        L::load(source).store(target);
                        L::load(source.add(L::N)).store(target.add(L::N));
                    } else {
                        std::ptr::copy_nonoverlapping(source, target, count);
                    }
                }
            }
        }
    }
}
dispatch! {
    /// Columns `from` to `to` of the weights in panels as wide as a tile, each after its part of the bias. Cuts are at
    /// whole tiles of [`TILE`].
    pack(weights: Weights, from: usize, to: usize, panels: *mut f32) = pack_lanes
}

/// A product X W + bias of activations with packed weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Linear {
    /// Columns of X.
    pub k: usize,
    /// Columns of Y.
    pub n: usize,
    pub x: *const f32,
    /// What [`pack`] wrote.
    pub panels: *const f32,
    pub y: *mut f32,
}

#[inline(always)]
unsafe fn linear_lanes<L: Lanes>(l: Linear, from: usize, to: usize) {
    let wide = 2 * L::N;
    let mut border = [0.0; 14 * TILE];
    for column in (0..l.n).step_by(wide) {
        let count = wide.min(l.n - column);
        let mut row = from;
        while row < to {
            // SAFETY: the caller's promise; a tile that is cut off is computed beside its place.
            unsafe {
                let bias = l.panels.add(column * (l.k + 1));
                let a = Strided { start: l.x.add(row * l.k), row: l.k, column: 1 };
                let c = l.y.add(row * l.n + column);
                let place = if count == wide { (c, l.n) } else { (border.as_mut_ptr(), wide) };
                let done = rows::<L, 2>(to - row, l.k, a, (bias.add(wide), wide), place, Onto::Row(bias));
                if count < wide {
                    for i in 0..done {
                        std::ptr::copy_nonoverlapping(border.as_ptr().add(i * wide), c.add(i * l.n), count);
                    }
                }
                row += done;
            }
        }
    }
}
dispatch! {
    /// Rows `from` to `to` of X W + bias. They should fit the second-level cache; how they are cut changes nothing.
    linear(l: Linear, from: usize, to: usize) = linear_lanes
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
pub(super) const TILE: usize = 32;

/// A product Xᵀ G of activations with gradients, and the sums of the rows of one of them.
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
    /// The sum of all rows of the matrix at hand, or null.
    pub sum_of_x: *mut f32,
    pub sum_of_g: *mut f32,
}

impl WeightGradient {
    /// Numbers of scratch memory that [`weight_gradient`] takes.
    pub const SCRATCH: usize = DEPTH * (BREADTH.div_ceil(4) * 8 + GROUP * TILE) + 14 * TILE + LINE;

    /// Into how many parts to cut the rows and the columns of the product for so many threads: every part packs its own
    /// columns of X and of G.
    pub fn parts(&self, threads: usize) -> [usize; 2] {
        let [m, n] = [self.m.div_ceil(4 * 14), self.n.div_ceil(TILE)].map(|most| most.max(1));
        let cuts = (1..=threads.max(1)).map(|columns| [(threads / columns).clamp(1, m), columns.min(n)]);
        let packed = |[rows, columns]: [usize; 2]| self.m / rows + self.n / columns;
        cuts.max_by_key(|&cut| (cut[0] * cut[1], std::cmp::Reverse(packed(cut)))).unwrap_or([1, 1])
    }

    /// The rows and the columns of one of these parts.
    pub fn part(&self, part: usize, [rows, columns]: [usize; 2]) -> [Range<usize>; 2] {
        let cut = |n: usize, parts: usize, part: usize| (n.div_ceil(TILE) * part / parts * TILE).min(n);
        let range = |n, parts, part| cut(n, parts, part)..cut(n, parts, part + 1);
        [range(self.m, rows, part / columns), range(self.n, columns, part % columns)]
    }
}

/// sum += row.
#[inline(always)]
unsafe fn add_row<L: Lanes>(n: usize, row: *const f32, sum: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe { each!(L, n, [row, sum] sum.add(row) => sum) };
}

/// Moves a sum to its place, or adds it to what is there already, and leaves zeros.
#[inline(always)]
unsafe fn keep<L: Lanes>(n: usize, sum: &mut [f32], place: *mut f32, add: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        if add {
            add_row::<L>(n, sum.as_ptr(), place);
        } else {
            std::ptr::copy_nonoverlapping(sum.as_ptr(), place, n);
        }
    }
    sum[..n].fill(0.0);
}

#[inline(always)]
unsafe fn weight_gradient_lanes<L: Lanes>(w: WeightGradient, [down, across]: [Range<usize>; 2], scratch: *mut f32) {
    let (wide, end) = (2 * L::N, w.rows * w.m);
    // SAFETY: the caller's promise; packed panels and the tile at the border lie within the scratch memory.
    unsafe {
        // Panels of X, each as many columns as a tile has rows, one vector for each row of X: lines of the cache are
        // written whole.
        let left = scratch.add(scratch.align_offset(4 * LINE));
        let panel = left.add(DEPTH * BREADTH.div_ceil(L::ROWS) * L::N);
        let border = panel.add(DEPTH * GROUP * TILE);
        for top in (0..w.rows).step_by(DEPTH) {
            let depth = DEPTH.min(w.rows - top);
            // Rows of this depth are summed on their own, which keeps digits.
            let mut sum = [0.0; if BREADTH > GROUP * TILE { BREADTH } else { GROUP * TILE }];
            for first in down.clone().step_by(BREADTH) {
                let breadth = BREADTH.min(down.end - first);
                let sums = !w.sum_of_x.is_null() && across.start == 0;
                for k in 0..depth {
                    let at = (top + k) * w.m + first;
                    prefetch(w.x.wrapping_add(at + AHEAD * w.m), breadth);
                    if sums {
                        add_row::<L>(breadth, w.x.add(at), sum.as_mut_ptr());
                    }
                    for p in 0..breadth.div_ceil(L::ROWS) {
                        let done = p * L::ROWS;
                        let source = w.x.add(at + done);
                        // A whole vector where one can be read: what is too much is not used.
                        let row = match at + done + L::N <= end {
                            true => L::load(source),
                            false => L::load_first(source, L::ROWS.min(breadth - done)),
                        };
                        row.store(left.add((p * depth + k) * L::N));
                    }
                }
                if sums {
                    keep::<L>(breadth, &mut sum, w.sum_of_x.add(first), top > 0);
                }
                for group in across.clone().step_by(GROUP * wide) {
                    let columns = (GROUP * wide).min(across.end - group);
                    let sums = !w.sum_of_g.is_null() && first == 0;
                    // The same of G: whole rows of the group at once, because rows are far from each other in memory.
                    for k in 0..depth {
                        let source = w.g.add((top + k) * w.n + group);
                        prefetch(source.wrapping_add(AHEAD * w.n), columns);
                        if sums {
                            add_row::<L>(columns, source, sum.as_mut_ptr());
                        }
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
                    if sums {
                        keep::<L>(columns, &mut sum, w.sum_of_g.add(group), top > 0);
                    }
                    for row in (0..breadth).step_by(L::ROWS) {
                        let height = L::ROWS.min(breadth - row);
                        let start = left.add(row / L::ROWS * depth * L::N).cast_const();
                        let a = Strided { start, row: 1, column: L::N };
                        for column in (0..columns).step_by(wide) {
                            let b = (panel.add(column * depth).cast_const(), wide);
                            let c = w.out.add((first + row) * w.n + group + column);
                            let count = wide.min(columns - column);
                            // A tile that is cut off is computed beside its place.
                            let whole = count == wide;
                            let to = if whole { (c, w.n) } else { (border, wide) };
                            let onto = if whole && top > 0 { Onto::Itself } else { Onto::Nothing };
                            let mut done = 0;
                            while done < height {
                                let a = Strided { start: a.start.add(done), ..a };
                                done += rows::<L, 2>(height - done, depth, a, b, (to.0.add(done * to.1), to.1), onto);
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
    /// A [part](WeightGradient::part) of Xᵀ G, and of the sums of rows. The order of the sums does not depend on how it
    /// is cut.
    weight_gradient(w: WeightGradient, part: [Range<usize>; 2], scratch: *mut f32) = weight_gradient_lanes
}
