//! How well the outputs of two models agree.

use ndarray::{Array2, ArrayD, ArrayView1, Axis};
use serde::Serialize;

/// Sums over batches; [`Agreement::finish`] gives the measures.
#[derive(Clone, Debug, Default)]
pub struct Agreement {
    images: usize,
    largest_error: f64,
    largest: f64,
    correlations: Vec<f64>,
    logits: usize,
    same_class: usize,
    not_a_number: bool,
    ranked: bool,
}

/// Measures of agreement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measures {
    /// Samples compared.
    pub images: usize,
    /// Largest absolute difference of any output element.
    pub max_abs_error: f64,
    /// The same, over the largest absolute element of the first model's outputs.
    pub relative_error: f64,
    /// Pearson correlation of the first output, the mean over images.
    pub correlation: f64,
    /// Standard error of that mean; `None` for fewer than two images.
    pub correlation_error: Option<f64>,
    /// The correlation of every image, where it has one.
    pub correlations: Vec<f64>,
    /// Share of images whose largest logit is the same, where the first output is one vector an image.
    pub top1_agreement: Option<f64>,
}

impl Agreement {
    /// Nothing added yet. Where the first output is `ranked`, its places are no classes, and the first is always the
    /// largest.
    pub fn of(ranked: bool) -> Self {
        Agreement { ranked, ..Agreement::default() }
    }

    /// Adds a batch of one output; `first` marks the model's first output, which correlation and classes are read from.
    pub fn add(&mut self, a: &ArrayD<f32>, b: &ArrayD<f32>, first: bool) {
        for (x, y) in a.iter().zip(b) {
            let (x, y) = (*x as f64, *y as f64);
            self.not_a_number |= x.is_nan() || y.is_nan();
            // Equal infinities (a mask) differ by nothing.
            let difference = if x == y { 0.0 } else { (x - y).abs() };
            self.largest_error = self.largest_error.max(difference);
            if x.is_finite() {
                self.largest = self.largest.max(x.abs());
            }
        }
        if !first || a.ndim() == 0 {
            return;
        }
        self.images += a.len_of(Axis(0));
        for (x, y) in a.axis_iter(Axis(0)).zip(b.axis_iter(Axis(0))) {
            let (x, y) = (x.flatten(), y.flatten());
            self.correlations.extend(correlation(x.view(), y.view()));
            if a.ndim() == 2 && x.len() > 1 && !self.ranked {
                self.logits += 1;
                self.same_class += (largest(x.view()) == largest(y.view())) as usize;
            }
        }
    }

    /// Adds a batch of one output [samples, tokens, ..] of which the `real` tokens alone count, [samples, tokens].
    pub fn add_real(&mut self, a: &ArrayD<f32>, b: &ArrayD<f32>, first: bool, real: &Array2<bool>) {
        for (sample, real) in real.outer_iter().enumerate() {
            let rows: Vec<usize> = real.iter().enumerate().filter(|(_, r)| **r).map(|(i, _)| i).collect();
            let own = |x: &ArrayD<f32>| x.index_axis(Axis(0), sample).select(Axis(0), &rows).insert_axis(Axis(0));
            if !rows.is_empty() {
                self.add(&own(a), &own(b), first);
            }
        }
    }

    /// The measures over everything added.
    pub fn finish(&self) -> Measures {
        let nan = |v: f64| if self.not_a_number { f64::NAN } else { v };
        let n = self.correlations.len() as f64;
        let mean = self.correlations.iter().sum::<f64>() / n;
        let squares: f64 = self.correlations.iter().map(|r| (r - mean).powi(2)).sum();
        Measures {
            images: self.images,
            max_abs_error: nan(self.largest_error),
            relative_error: nan(self.largest_error / self.largest.max(f64::MIN_POSITIVE)),
            correlation: nan(mean),
            correlation_error: (n > 1.0).then(|| nan((squares / (n - 1.0) / n).sqrt())),
            correlations: self.correlations.clone(),
            top1_agreement: (self.logits > 0).then(|| self.same_class as f64 / self.logits as f64),
        }
    }
}

fn largest(x: ArrayView1<f32>) -> Option<usize> {
    x.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).map(|(i, _)| i)
}

/// Pearson's correlation; `None` for constant vectors that differ, one for vectors that are equal.
fn correlation(x: ArrayView1<f32>, y: ArrayView1<f32>) -> Option<f64> {
    let n = x.len() as f64;
    let mean = |v: ArrayView1<f32>| v.iter().map(|&e| e as f64).sum::<f64>() / n;
    let (mx, my) = (mean(x), mean(y));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (&a, &b) in x.iter().zip(y) {
        let (a, b) = (a as f64 - mx, b as f64 - my);
        xx += a * a;
        yy += b * b;
        xy += a * b;
    }
    if xx == 0.0 || yy == 0.0 {
        return (x == y).then_some(1.0);
    }
    Some(xy / (xx * yy).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn equal_outputs_agree() {
        let a = array![[1.0f32, 2.0, 3.0], [0.5, -1.0, 0.0]].into_dyn();
        let mut agreement = Agreement::default();
        agreement.add(&a, &a, true);
        let m = agreement.finish();
        assert_eq!((m.images, m.max_abs_error, m.relative_error), (2, 0.0, 0.0));
        assert!((m.correlation - 1.0).abs() < 1e-12);
        assert_eq!(m.top1_agreement, Some(1.0));
    }

    #[test]
    fn differences_are_measured() {
        let a = array![[1.0f32, 2.0], [4.0, 1.0]].into_dyn();
        let b = array![[2.0f32, 1.0], [4.0, 1.0]].into_dyn();
        let mut agreement = Agreement::default();
        agreement.add(&a, &b, true);
        let m = agreement.finish();
        assert_eq!((m.max_abs_error, m.relative_error), (1.0, 0.25));
        assert!(m.correlation.abs() < 1e-12);
        assert_eq!(m.top1_agreement, Some(0.5));
        // Correlations of -1 and 1: a deviation of the square root of two, over that of two images.
        assert!((m.correlation_error.unwrap() - 1.0).abs() < 1e-12 && m.correlations.len() == 2);
    }

    #[test]
    fn padding_does_not_count() {
        let a = array![[[1.0f32, 2.0], [4.0, 1.0], [9.0, 9.0]], [[1.0, 3.0], [7.0, 7.0], [8.0, 8.0]]].into_dyn();
        let b = array![[[1.0f32, 2.0], [4.0, 2.0], [0.0, 9.0]], [[1.0, 3.0], [f32::NAN, 7.0], [8.0, 0.0]]].into_dyn();
        let mut agreement = Agreement::default();
        agreement.add_real(&a, &b, true, &array![[true, true, false], [true, false, false]]);
        let m = agreement.finish();
        assert_eq!((m.images, m.max_abs_error, m.relative_error), (2, 1.0, 0.25));
        assert_eq!((m.correlations.len(), m.correlations[1], m.top1_agreement), (2, 1.0, None));
        // Of 1 2 4 1 and 1 2 4 2 about their means of 2 and 2.25: 5 over the square root of 6 times 4.75.
        assert!((m.correlations[0] - 5.0 / (6.0f64 * 4.75).sqrt()).abs() < 1e-12, "{}", m.correlations[0]);
    }

    #[test]
    fn what_is_not_a_number_never_agrees() {
        let a = array![[1.0f32, 2.0]].into_dyn();
        let b = array![[f32::NAN, 2.0]].into_dyn();
        let mut agreement = Agreement::default();
        agreement.add(&a, &b, true);
        assert!(agreement.finish().relative_error.is_nan());
    }
}
