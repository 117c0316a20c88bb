//! Which heads and which neurons go first.
//!
//! Both follow from the covariance of what enters a matrix (features: head outputs, or FFN activations) and the matrix
//! itself. A set of heads is judged by how well it predicts the layer's output (a ridge regression on the heads that
//! stay). Neurons are removed backwards by the exact second-order rule of Optimal Brain Surgeon (Hassibi and Stork
//! 1992)
//! on the linear map that follows, a few at a time.

use faer::prelude::Solve;
use faer::{Mat, Side};
use serde::{Deserialize, Serialize};

use super::algebra::{inner, ridge_solve, scale, select, subtract, times};
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::KeepOrder;

/// Ridge of the choice of heads, in means of the diagonal.
const HEAD_RIDGE: f64 = 0.1;
/// Ridge of the removal of neurons.
const NEURON_RIDGE: f64 = 0.03;
/// Neurons that are removed at once.
const AT_ONCE: usize = 8;
/// Up to so many heads every subset is tried.
const EXHAUSTIVE: usize = 8;

/// What stays of a layer's heads or neurons at every count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitOrder {
    /// The units that stay.
    pub kept: KeepOrder,
    /// `error[k]`: the squared error of the layer's output with k units, mean over rows; not rising with k.
    pub error: Vec<f64>,
}

/// The ridge regression of the whole output on the features that stay: (G_SS + r)⁻¹ (G_S: W + r W_S), where `target` is
/// G W.
///
/// # Errors
/// Those of [`ridge_solve`].
pub fn predict(gram: &Mat<f64>, target: &Mat<f64>, weight: &Mat<f64>, kept: &[usize], ridge: f64) -> Result<Mat<f64>> {
    let outputs: Vec<usize> = (0..weight.ncols()).collect();
    let right = select(target, kept, &outputs) + faer::Scale(ridge) * select(weight, kept, &outputs);
    ridge_solve(&select(gram, kept, kept), ridge, &right)
}

/// The best set of heads of every size, by prediction: every subset up to eight heads, else backwards one by one.
///
/// `gram` is the covariance of head outputs, `size` features a head; `weight` is features x outputs.
///
/// # Errors
/// Those of [`ridge_solve`].
pub fn heads(gram: &Mat<f64>, weight: &Mat<f64>, size: usize) -> Result<UnitOrder> {
    let count = gram.nrows() / size.max(1);
    if count > EXHAUSTIVE {
        return backwards(gram, weight, size, 1, HEAD_RIDGE);
    }
    let ridge = HEAD_RIDGE * scale(gram);
    let target = times(gram.as_ref(), weight.as_ref());
    let whole = inner(weight, &target);
    let outputs: Vec<usize> = (0..weight.ncols()).collect();
    let mut sets: Vec<Vec<usize>> = vec![Vec::new(); count + 1];
    let mut error = vec![f64::INFINITY; count + 1];
    (error[0], error[count], sets[count]) = (whole, 0.0, (0..count).collect());
    for mask in 1u32..(1 << count) - 1 {
        let set: Vec<usize> = (0..count).filter(|h| mask >> h & 1 == 1).collect();
        let features = features(&set, size);
        let fit = predict(gram, &target, weight, &features, ridge)?;
        let explained = inner(&fit, &select(&target, &features, &outputs));
        let own = inner(&fit, &times(select(gram, &features, &features).as_ref(), fit.as_ref()));
        let left = (whole - 2.0 * explained + own).max(0.0);
        if left < error[set.len()] {
            error[set.len()] = left;
            sets[set.len()].clone_from(&set);
        }
    }
    monotone(&mut error);
    Ok(UnitOrder { kept: KeepOrder::Sets(sets), error })
}

/// The order in which neurons are removed.
///
/// # Errors
/// Those of [`ridge_solve`].
pub fn neurons(gram: &Mat<f64>, weight: &Mat<f64>) -> Result<UnitOrder> {
    backwards(gram, weight, 1, AT_ONCE, NEURON_RIDGE)
}

/// The features of some units.
pub fn features(units: &[usize], size: usize) -> Vec<usize> {
    units.iter().flat_map(|u| u * size..(u + 1) * size).collect()
}

fn monotone(error: &mut [f64]) {
    for k in (0..error.len().saturating_sub(1)).rev() {
        error[k] = error[k].max(error[k + 1]);
    }
}

/// Backward elimination of units of `size` features, `at_once` at a time. With P = (G + r)⁻¹ the removal of unit J
/// costs tr(W_Jᵀ P_JJ⁻¹ W_J); then W −= P_:J P_JJ⁻¹ W_J and P −= P_:J P_JJ⁻¹ P_J:.
fn backwards(gram: &Mat<f64>, weight: &Mat<f64>, size: usize, at_once: usize, ridge: f64) -> Result<UnitOrder> {
    let count = gram.nrows() / size.max(1);
    let identity = Mat::<f64>::identity(gram.nrows(), gram.nrows());
    let mut p = ridge_solve(gram, ridge * scale(gram), &identity)?;
    let mut w = weight.clone();
    // Units that are still there, in the order of the rows of p and w.
    let mut units: Vec<usize> = (0..count).collect();
    let mut alive: Vec<bool> = vec![true; count];
    let mut order = Vec::with_capacity(count);
    let mut error = vec![0.0; count + 1];
    let mut spent = 0.0;
    while order.len() < count {
        let costs = costs(&p, &w, size, &alive)?;
        let mut next: Vec<usize> = (0..units.len()).filter(|&i| alive[i]).collect();
        next.sort_by(|&a, &b| costs[a].total_cmp(&costs[b]).then(units[a].cmp(&units[b])));
        next.truncate(at_once);
        let rows = features(&next, size);
        let outputs: Vec<usize> = (0..w.ncols()).collect();
        let block = select(&p, &rows, &rows);
        let factor = cholesky(&block)?;
        let own = select(&w, &rows, &outputs);
        let solved = factor.solve(&own);
        let cost = inner(&own, &solved).max(0.0);
        let share = cost / next.len() as f64;
        for &i in &next {
            spent += share;
            order.push(units[i]);
            error[count - order.len()] = spent;
            alive[i] = false;
        }
        let all: Vec<usize> = (0..p.nrows()).collect();
        let across = select(&p, &all, &rows);
        let back = factor.solve(across.transpose());
        subtract(&mut w, across.as_ref(), solved.as_ref());
        subtract(&mut p, across.as_ref(), back.as_ref());
        // What was removed is left in place until it is an eighth.
        let left = alive.iter().filter(|a| **a).count();
        if left * 8 < alive.len() * 7 {
            let stay: Vec<usize> = (0..units.len()).filter(|&i| alive[i]).collect();
            let rows = features(&stay, size);
            (p, w) = (select(&p, &rows, &rows), select(&w, &rows, &outputs));
            units = stay.iter().map(|&i| units[i]).collect();
            alive = vec![true; units.len()];
        }
    }
    Ok(UnitOrder { kept: KeepOrder::Order(order), error })
}

/// tr(W_Jᵀ P_JJ⁻¹ W_J) of every unit that is still there.
fn costs(p: &Mat<f64>, w: &Mat<f64>, size: usize, alive: &[bool]) -> Result<Vec<f64>> {
    if size == 1 {
        let mut norms = vec![0.0; w.nrows()];
        for c in w.col_iter() {
            norms.iter_mut().zip(c.iter()).for_each(|(n, v)| *n += v * v);
        }
        return Ok(norms.iter().enumerate().map(|(j, n)| n / p[(j, j)]).collect());
    }
    let outputs: Vec<usize> = (0..w.ncols()).collect();
    alive
        .iter()
        .enumerate()
        .map(|(u, &alive)| {
            if !alive {
                return Ok(0.0);
            }
            let rows = features(&[u], size);
            let own = select(w, &rows, &outputs);
            Ok(inner(&own, &cholesky(&select(p, &rows, &rows))?.solve(&own)))
        })
        .collect()
}

fn cholesky(block: &Mat<f64>) -> Result<faer::linalg::solvers::Llt<f64>> {
    block
        .llt(Side::Lower)
        .map_err(|_| Error::new(ErrorKind::Images, "the activations on these images determine no order"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    /// Correlated features and a matrix behind them.
    fn problem(n: usize, outputs: usize, seed: u64) -> (Mat<f64>, Mat<f64>) {
        let mut random = StdRng::seed_from_u64(seed);
        let a = Mat::from_fn(3 * n, n, |_, _| random.random_range(-1.0..1.0));
        let mix = Mat::from_fn(n, n, |_, _| random.random_range(-1.0..1.0));
        let a = &a * &mix;
        (a.transpose() * &a, Mat::from_fn(n, outputs, |_, _| random.random_range(-1.0..1.0)))
    }

    fn ridged(gram: &Mat<f64>, ridge: f64) -> Mat<f64> {
        let mut h = gram.clone();
        (0..gram.nrows()).for_each(|i| h[(i, i)] += ridge);
        h
    }

    /// The smallest squared error of any matrix on `kept`, with the ridge that pulls towards the old one.
    fn least(gram: &Mat<f64>, w: &Mat<f64>, kept: &[usize], ridge: f64) -> f64 {
        let d = difference(gram, w, kept, ridge);
        inner(&d, &(&ridged(gram, ridge) * &d))
    }

    /// What the best matrix on `kept` differs in from the old one, by normal equations.
    fn difference(gram: &Mat<f64>, w: &Mat<f64>, kept: &[usize], ridge: f64) -> Mat<f64> {
        let n = gram.nrows();
        let h = ridged(gram, ridge);
        let gone: Vec<usize> = (0..n).filter(|i| !kept.contains(i)).collect();
        let outputs: Vec<usize> = (0..w.ncols()).collect();
        // D = W − W0 with D_gone = −W0_gone: minimise tr(Dᵀ H D) over D_kept.
        let fixed = -select(w, &gone, &outputs);
        let mut d = Mat::zeros(n, w.ncols());
        let right = -(select(&h, kept, &gone) * &fixed);
        let free = select(&h, kept, kept).partial_piv_lu().solve(&right);
        for c in 0..w.ncols() {
            kept.iter().enumerate().for_each(|(i, &k)| d[(k, c)] = free[(i, c)]);
            gone.iter().enumerate().for_each(|(i, &k)| d[(k, c)] = fixed[(i, c)]);
        }
        d
    }

    #[test]
    fn elimination_is_exact_and_greedy() {
        let (gram, w) = problem(6, 3, 1);
        let ridge = NEURON_RIDGE * scale(&gram);
        let found = backwards(&gram, &w, 1, 1, NEURON_RIDGE).unwrap();
        let mut kept: Vec<usize> = (0..6).collect();
        for count in (1..6).rev() {
            // Brute force: the neuron whose removal leaves the least error.
            let best = kept
                .iter()
                .map(|&j| kept.iter().copied().filter(|&i| i != j).collect::<Vec<_>>())
                .min_by(|a, b| least(&gram, &w, a, ridge).total_cmp(&least(&gram, &w, b, ridge)))
                .unwrap();
            assert_eq!(found.kept.at(count), best);
            let want = least(&gram, &w, &best, ridge);
            assert!((found.error[count] / want - 1.0).abs() < 1e-8, "{} {want}", found.error[count]);
            kept = best;
        }
        assert_eq!((found.error[6], found.kept.units()), (0.0, 6));
    }

    #[test]
    fn several_at_once_and_compaction_keep_the_errors_exact() {
        let (gram, w) = problem(40, 5, 2);
        let found = neurons(&gram, &w).unwrap();
        let ridge = NEURON_RIDGE * scale(&gram);
        for count in [32, 24, 8] {
            let want = least(&gram, &w, &found.kept.at(count), ridge);
            assert!((found.error[count] / want - 1.0).abs() < 1e-6, "{} {want}", found.error[count]);
        }
        assert!(found.error.windows(2).all(|e| e[0] >= e[1]));
    }

    #[test]
    fn the_best_set_of_heads_is_found() {
        let (mut gram, w) = problem(8, 3, 3);
        // Head 2 (features 4 and 5) is a copy of head 0: one of them is spare.
        for i in 0..8 {
            for (a, b) in [(4, 0), (5, 1)] {
                gram[(a, i)] = gram[(b, i)];
            }
        }
        for i in 0..8 {
            for (a, b) in [(4, 0), (5, 1)] {
                gram[(i, a)] = gram[(i, b)];
            }
        }
        let found = heads(&gram, &w, 2).unwrap();
        let three = found.kept.at(3);
        assert!(three.contains(&1) && three.contains(&3), "{three:?}");
        let ridge = HEAD_RIDGE * scale(&gram);
        for gone in 0..4 {
            let kept: Vec<usize> = (0..8).filter(|f| f / 2 != gone).collect();
            let d = difference(&gram, &w, &kept, ridge);
            let error = inner(&d, &(&gram * &d));
            assert!(found.error[3] <= error * (1.0 + 1e-9), "without head {gone}: {error}, found {}", found.error[3]);
            assert!(three.contains(&gone) || (found.error[3] / error - 1.0).abs() < 1e-9);
        }
        assert_eq!(found.kept.at(4), [0, 1, 2, 3]);
        let blocks = backwards(&gram, &w, 2, 1, HEAD_RIDGE).unwrap();
        assert_eq!(blocks.kept.at(4), [0, 1, 2, 3]);
        assert!(blocks.kept.at(3).contains(&1) && blocks.kept.at(3).contains(&3));
    }
}
