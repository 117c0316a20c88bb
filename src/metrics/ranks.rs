//! Similarities, and the correlation of their ranks.

/// The cosine of two vectors; no number where one of them is zero.
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

/// Spearman's correlation of two lists: Pearson's of their ranks, where equal values share the mean of theirs. None
/// for lists of other lengths, for values that are no numbers, and where all values of a list are equal.
pub fn spearman(a: &[f64], b: &[f64]) -> Option<f64> {
    if a.len() != b.len() || a.iter().chain(b).any(|v| v.is_nan()) {
        return None;
    }
    let middle = (a.len() as f64 - 1.0) / 2.0;
    let [a, b] = [a, b].map(|values| ranks(values).into_iter().map(|rank| rank - middle).collect::<Vec<f64>>());
    Some(cosine(&a, &b)).filter(|correlation| !correlation.is_nan())
}

/// The rank of each value, from 0.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&i, &j| values[i].total_cmp(&values[j]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    // Zeros of both signs are equal, and stand beside each other.
    for same in order.chunk_by(|&i, &j| values[i] == values[j]) {
        same.iter().for_each(|&i| ranks[i] = first as f64 + (same.len() as f64 - 1.0) / 2.0);
        first += same.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy.stats.spearmanr (1.18.1) says so.
    #[test]
    fn ranks_correlate_as_in_scipy() {
        let near = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?}");
        near(spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]), 0.820_782_681_668_123_3);
        near(spearman(&[0.1, -3.0, 0.1, 9.0, 2.0, 0.1], &[4.0, 4.0, 1.0, 0.0, 2.5, 4.0]), -0.741_935_483_870_967_9);
        near(spearman(&[1.0, 2.0], &[3.0, -1.0]), -1.0);
    }

    #[test]
    fn what_does_not_vary_has_no_correlation() {
        for (a, b) in [(&[1.0, 1.0][..], &[1.0, 2.0][..]), (&[1.0, f64::NAN], &[1.0, 2.0]), (&[1.0], &[1.0, 2.0])] {
            assert_eq!(spearman(a, b), None);
        }
        assert_eq!(spearman(&[], &[]), None);
    }
}
