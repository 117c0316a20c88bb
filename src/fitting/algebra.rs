//! Dense linear algebra of the fits: sums of products over rows, covariances, and ridge solutions.
//!
//! Features are f32, their sums f64: rows are multiplied chunk by chunk in f32, and the products of the chunks are
//! added up in f64, always in the same order, so that a result does not depend on how many threads worked on it.

use faer::linalg::matmul::{matmul, triangular};
use faer::prelude::Solve;
use faer::{Accum, Mat, MatRef, Par, Side};
use ndarray::{Array2, ArrayView2};

use crate::error::{Error, ErrorKind, Result};
use crate::parallel;

/// A matrix of f32 in row-major order as faer sees it.
fn view<'a>(a: &'a ArrayView2<f32>) -> MatRef<'a, f32> {
    let (rows, columns) = a.dim();
    let strides = a.strides();
    // SAFETY: pointer, shape and strides are those of a live array view, and the result does not outlive it.
    unsafe { MatRef::from_raw_parts(a.as_ptr(), rows, columns, strides[0], strides[1]) }
}

/// a b, in f32, on this thread.
pub fn product(a: ArrayView2<f32>, b: ArrayView2<f32>) -> Array2<f32> {
    let mut out = Array2::zeros((a.nrows(), b.ncols()));
    let (rows, columns) = out.dim();
    if let Some(slice) = out.as_slice_mut() {
        let to = faer::MatMut::from_row_major_slice_mut(slice, rows, columns);
        matmul(to, Accum::Replace, view(&a), view(&b), 1.0, Par::Seq);
    }
    out
}

/// `a` · `b` + `bias` in every row.
pub fn affine(a: ArrayView2<f32>, b: ArrayView2<f32>, bias: &[f32]) -> Array2<f32> {
    let mut out = product(a, b);
    for row in out.as_slice_mut().unwrap_or_default().chunks_mut(bias.len().max(1)) {
        for (v, b) in row.iter_mut().zip(bias) {
            *v += b;
        }
    }
    out
}

/// Sums of products over some rows.
pub struct Partial {
    rows: usize,
    features: Mat<f32>,
    gram: Mat<f32>,
    targets: Mat<f32>,
    cross: Mat<f32>,
}

impl Partial {
    /// Sums over the rows of `a` (rows x features) and of `t` (rows x targets).
    pub fn of(a: ArrayView2<f32>, t: ArrayView2<f32>) -> Partial {
        let (rows, n) = a.dim();
        let k = t.ncols();
        let (a, t) = (view(&a), view(&t));
        let mut gram = Mat::zeros(n, n);
        let rectangular = triangular::BlockStructure::Rectangular;
        triangular::matmul(
            gram.as_mut(),
            triangular::BlockStructure::TriangularLower,
            Accum::Replace,
            a.transpose(),
            rectangular,
            a,
            rectangular,
            1.0,
            Par::Seq,
        );
        let mut cross = Mat::zeros(n, k);
        matmul(cross.as_mut(), Accum::Replace, a.transpose(), t, 1.0, Par::Seq);
        let ones: Mat<f32> = Mat::full(1, rows, 1.0);
        let sum = |m: MatRef<f32>| {
            let mut out = Mat::zeros(1, m.ncols());
            matmul(out.as_mut(), Accum::Replace, ones.as_ref(), m, 1.0, Par::Seq);
            out
        };
        Partial { rows, features: sum(a), gram, targets: sum(t), cross }
    }

    /// True where every sum is a number.
    pub fn is_finite(&self) -> bool {
        self.gram.row_iter().enumerate().all(|(i, r)| r[i].is_finite())
            && self.targets.row(0).iter().all(|v| v.is_finite())
    }
}

/// Sums of products of features with themselves and with targets, over all rows seen.
#[derive(Clone, Debug)]
pub struct Moments {
    rows: f64,
    features: Vec<f64>,
    /// The lower triangle.
    gram: Mat<f64>,
    targets: Vec<f64>,
    cross: Mat<f64>,
}

/// Adds `from` to `to`, element by element.
fn add_to(to: &mut [f64], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f64::from(*f));
}

impl Moments {
    /// No rows yet.
    pub fn new(features: usize, targets: usize) -> Moments {
        Moments {
            rows: 0.0,
            features: vec![0.0; features],
            gram: Mat::zeros(features, features),
            targets: vec![0.0; targets],
            cross: Mat::zeros(features, targets),
        }
    }

    /// Adds the sums over some rows.
    pub fn add(&mut self, part: &Partial) {
        self.rows += part.rows as f64;
        let vector = |to: &mut [f64], from: &Mat<f32>| {
            to.iter_mut().enumerate().for_each(|(j, t)| *t += f64::from(from[(0, j)]));
        };
        vector(&mut self.features, &part.features);
        vector(&mut self.targets, &part.targets);
        for j in 0..self.gram.ncols() {
            add_to(&mut self.gram.col_as_slice_mut(j)[j..], &part.gram.col_as_slice(j)[j..]);
        }
        for j in 0..self.cross.ncols() {
            add_to(self.cross.col_as_slice_mut(j), part.cross.col_as_slice(j));
        }
    }

    /// Adds the sums over other rows.
    pub fn join(&mut self, other: &Moments) {
        let add = |to: &mut [f64], from: &[f64]| to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        self.rows += other.rows;
        add(&mut self.features, &other.features);
        add(&mut self.targets, &other.targets);
        self.gram += &other.gram;
        self.cross += &other.cross;
    }

    /// Adds the sums of all processes.
    pub fn sum(&mut self) {
        if parallel::size() == 1 {
            return;
        }
        let mut rows = [self.rows];
        parallel::sum(&mut rows);
        self.rows = rows[0];
        parallel::sum(&mut self.features);
        parallel::sum(&mut self.targets);
        sum(&mut self.gram);
        sum(&mut self.cross);
    }

    /// Means, and covariances where `centred`; else plain means of products.
    pub fn covariance(&self, centred: bool) -> Covariance {
        let n = self.rows.max(1.0);
        let mean = |v: &[f64]| -> Vec<f64> { v.iter().map(|s| if centred { s / n } else { 0.0 }).collect() };
        let (mu, nu) = (mean(&self.features), mean(&self.targets));
        let gram = Mat::from_fn(mu.len(), mu.len(), |i, j| {
            let (i, j) = if i >= j { (i, j) } else { (j, i) };
            self.gram[(i, j)] / n - mu[i] * mu[j]
        });
        let cross = Mat::from_fn(mu.len(), nu.len(), |i, j| self.cross[(i, j)] / n - mu[i] * nu[j]);
        Covariance { features: mu, gram, targets: nu, cross }
    }
}

/// A matrix becomes the sum of those of all processes.
pub fn sum(m: &mut Mat<f64>) {
    if parallel::size() == 1 {
        return;
    }
    let (rows, columns) = m.shape();
    let mut flat: Vec<f64> = (0..columns).flat_map(|j| m.col(j).iter().copied()).collect();
    parallel::sum(&mut flat);
    *m = Mat::from_fn(rows, columns, |i, j| flat[j * rows + i]);
}

/// Means and covariances of features and targets.
#[derive(Clone, Debug)]
pub struct Covariance {
    /// Means of the features.
    pub features: Vec<f64>,
    /// Features x features.
    pub gram: Mat<f64>,
    /// Means of the targets.
    pub targets: Vec<f64>,
    /// Features x targets.
    pub cross: Mat<f64>,
}

/// Mean of a square matrix's diagonal, which ridges are measured in; never zero.
pub fn scale(gram: &Mat<f64>) -> f64 {
    let n = gram.nrows().max(1);
    let mean = (0..gram.nrows()).map(|i| gram[(i, i)]).sum::<f64>() / n as f64;
    if mean > 0.0 { mean } else { 1.0 }
}

/// (gram + ridge)⁻¹ right, by Cholesky.
///
/// # Errors
/// [`ErrorKind::Images`] where the matrix is not positive definite, which a positive ridge prevents unless features are
/// no numbers.
pub fn ridge_solve(gram: &Mat<f64>, ridge: f64, right: &Mat<f64>) -> Result<Mat<f64>> {
    let mut sum = gram.clone();
    for i in 0..sum.nrows() {
        sum[(i, i)] += ridge;
    }
    let factor = sum.llt(Side::Lower).map_err(|_| {
        Error::new(ErrorKind::Images, "the activations on these images determine no fit")
            .hint("give other images; check preprocessing (⟦mean⟧, ⟦std⟧)")
    })?;
    Ok(factor.solve(right))
}

/// a b in f64, on this thread.
pub fn times(a: MatRef<f64>, b: MatRef<f64>) -> Mat<f64> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    matmul(out.as_mut(), Accum::Replace, a, b, 1.0, Par::Seq);
    out
}

/// to −= a b in f64, on this thread.
pub fn subtract(to: &mut Mat<f64>, a: MatRef<f64>, b: MatRef<f64>) {
    matmul(to.as_mut(), Accum::Add, a, b, -1.0, Par::Seq);
}

/// The rows and columns of a matrix that are listed.
pub fn select(m: &Mat<f64>, rows: &[usize], columns: &[usize]) -> Mat<f64> {
    Mat::from_fn(rows.len(), columns.len(), |i, j| m[(rows[i], columns[j])])
}

/// Sum of the products of equal elements.
pub fn inner(a: &Mat<f64>, b: &Mat<f64>) -> f64 {
    (0..a.ncols()).map(|j| a.col(j).iter().zip(b.col(j).iter()).map(|(x, y)| x * y).sum::<f64>()).sum()
}

/// A square matrix with `ridge` times the mean of its diagonal added there.
pub fn ridged(gram: &Mat<f64>, ridge: f64) -> Mat<f64> {
    let mut sum = gram.clone();
    let by = ridge * scale(gram);
    (0..sum.nrows()).for_each(|i| sum[(i, i)] += by);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
        use rand::{RngExt, SeedableRng, rngs::StdRng};
        let mut random = StdRng::seed_from_u64(seed);
        Array2::from_shape_simple_fn((rows, columns), || random.random_range(-1.0..1.5f32))
    }

    #[test]
    fn covariances_are_those_of_all_rows() {
        let (a, t) = (random(50, 7, 1), random(50, 3, 2));
        let mut moments = Moments::new(7, 3);
        for rows in [0..20, 20..21, 21..50] {
            let part = |m: &Array2<f32>| m.slice(ndarray::s![rows.clone(), ..]).to_owned();
            moments.add(&Partial::of(part(&a).view(), part(&t).view()));
        }
        for centred in [true, false] {
            let c = moments.covariance(centred);
            let wide = |m: &Array2<f32>| {
                let m = m.mapv(f64::from);
                let mean = m.mean_axis(ndarray::Axis(0)).unwrap();
                if centred { m - mean } else { m }
            };
            let (a, t) = (wide(&a), wide(&t));
            let (gram, cross) = (a.t().dot(&a) / 50.0, a.t().dot(&t) / 50.0);
            for i in 0..7 {
                (0..7).for_each(|j| assert!((c.gram[(i, j)] - gram[[i, j]]).abs() < 1e-6));
                (0..3).for_each(|j| assert!((c.cross[(i, j)] - cross[[i, j]]).abs() < 1e-6));
            }
        }
    }

    #[test]
    fn ridge_solutions_solve_their_equation() {
        let a = random(30, 5, 3).mapv(f64::from);
        let gram = Mat::from_fn(5, 5, |i, j| a.column(i).dot(&a.column(j)));
        let right = Mat::from_fn(5, 2, |i, j| (i * 2 + j) as f64);
        let found = ridge_solve(&gram, 0.5, &right).unwrap();
        let mut back = times(gram.as_ref(), found.as_ref());
        for i in 0..5 {
            for j in 0..2 {
                back[(i, j)] += 0.5 * found[(i, j)];
                assert!((back[(i, j)] - right[(i, j)]).abs() < 1e-10);
            }
        }
        let bad = Mat::from_fn(2, 2, |_, _| f64::NAN);
        assert!(ridge_solve(&bad, 1.0, &Mat::zeros(2, 1)).is_err());
    }

    #[test]
    fn products_of_any_layout() {
        let (a, b) = (random(4, 6, 4), random(5, 6, 5));
        let found = product(a.view(), b.t());
        let want = a.dot(&b.t());
        assert!(found.iter().zip(&want).all(|(x, y)| (x - y).abs() < 1e-5));
    }
}
