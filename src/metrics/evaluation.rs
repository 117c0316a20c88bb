//! How well a classifier classifies.

use ndarray::{ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::parallel;

/// Counts over batches; [`EvaluationCounts::finish`] gives the measures.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EvaluationCounts {
    independent: bool,
    images: usize,
    top1: usize,
    top5: usize,
    loss: f64,
    classes: Vec<(usize, usize)>,
}

/// Images of a class and how many of them were recognised.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    /// Index of the class.
    pub class: usize,
    /// Its name, where one is known.
    pub name: Option<String>,
    /// Its images.
    pub images: usize,
    /// Those whose largest logit is that of the class.
    pub correct: usize,
}

/// Measures of a classifier.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Images.
    pub images: usize,
    /// Share of images whose largest logit is that of their label.
    pub top1: f64,
    /// Share of images whose label is among the five largest logits; `None` for fewer than six classes.
    pub top5: Option<f64>,
    /// Cross-entropy, the mean over images; of [independent](EvaluationCounts::of) classes binary cross-entropy.
    pub loss: f64,
    /// Every class of the model.
    pub classes: Vec<ClassScore>,
}

impl EvaluationCounts {
    /// Nothing counted yet. Of `independent` classes, each a yes or no of its own, the loss is their binary
    /// cross-entropy.
    pub fn of(independent: bool) -> Self {
        EvaluationCounts { independent, ..EvaluationCounts::default() }
    }

    /// Adds a batch: logits [images, classes] and the label of each image, which is below the number of classes.
    pub fn add(&mut self, logits: ArrayView2<f32>, labels: &[u32]) {
        if self.classes.is_empty() {
            self.classes = vec![(0, 0); logits.len_of(Axis(1))];
        }
        for (row, &label) in logits.outer_iter().zip(labels) {
            let label = label as usize;
            let Some(class) = self.classes.get_mut(label) else { continue };
            let rank = rank(row, label);
            self.images += 1;
            self.top1 += (rank == 0) as usize;
            self.top5 += (rank < 5) as usize;
            self.loss += if self.independent { binary_cross_entropy(row, label) } else { cross_entropy(row, label) };
            class.0 += 1;
            class.1 += (rank == 0) as usize;
        }
    }

    /// The counts of all processes together.
    ///
    /// # Errors
    /// Those of [`parallel::all`].
    pub fn of_all(self) -> Result<EvaluationCounts> {
        let mut sum = EvaluationCounts::of(self.independent);
        for part in parallel::all(self)? {
            sum.images += part.images;
            sum.top1 += part.top1;
            sum.top5 += part.top5;
            sum.loss += part.loss;
            // A process without images knows of no classes.
            sum.classes.resize(sum.classes.len().max(part.classes.len()), (0, 0));
            for (to, from) in sum.classes.iter_mut().zip(part.classes) {
                *to = (to.0 + from.0, to.1 + from.1);
            }
        }
        Ok(sum)
    }

    /// Images that were added.
    pub fn images(&self) -> usize {
        self.images
    }

    /// Share of images whose largest logit is that of their label.
    pub fn top1(&self) -> f64 {
        self.top1 as f64 / self.images.max(1) as f64
    }

    /// The measures over everything added.
    pub fn finish(&self, names: Option<&[String]>) -> Evaluation {
        let share = |n: usize| n as f64 / self.images.max(1) as f64;
        let name = |class: usize| names.and_then(|n| n.get(class).cloned());
        Evaluation {
            images: self.images,
            top1: share(self.top1),
            top5: (self.classes.len() > 5).then(|| share(self.top5)),
            loss: self.loss / self.images.max(1) as f64,
            classes: self
                .classes
                .iter()
                .enumerate()
                .map(|(class, &(images, correct))| ClassScore { class, name: name(class), images, correct })
                .collect(),
        }
    }
}

/// How many classes come before the label: those with a larger logit, and those with an equal one and a lower index.
/// What is not a number is never recognised.
fn rank(row: ArrayView1<f32>, label: usize) -> usize {
    let own = row[label];
    if own.is_nan() {
        return row.len();
    }
    row.iter().enumerate().filter(|&(i, v)| v.is_nan() || *v > own || (*v == own && i < label)).count()
}

fn cross_entropy(row: ArrayView1<f32>, label: usize) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let sum: f64 = row.iter().map(|&v| (v as f64 - top).exp()).sum();
    top + sum.ln() - row[label] as f64
}

/// Cross-entropy of each class by itself, which is there or not, the mean over the classes.
pub fn binary_cross_entropy(row: ArrayView1<f32>, label: usize) -> f64 {
    let of_class = |(class, &logit): (usize, &f32)| {
        let logit = f64::from(logit);
        // ln(1 + exp(logit)), which does not overflow.
        let either = logit.max(0.0) + (-logit.abs()).exp().ln_1p();
        if class == label { either - logit } else { either }
    };
    row.iter().enumerate().map(of_class).sum::<f64>() / row.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn scores_are_counted_by_hand() {
        let mut scores = EvaluationCounts::default();
        let logits =
            array![[3.0f32, 1.0, 0.0, 0.0, 0.0, -1.0], [0.0, 1.0, 2.0, 3.0, 4.0, -9.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]];
        scores.add(logits.view(), &[0, 5, 1]);
        let e = scores.finish(Some(&["a".into(), "b".into()]));
        assert_eq!(e.images, 3);
        assert!((e.top1 - 1.0 / 3.0).abs() < 1e-12);
        assert!((e.top5.unwrap() - 2.0 / 3.0).abs() < 1e-12);
        assert_eq!((e.classes[0].images, e.classes[0].correct), (1, 1));
        assert_eq!((e.classes[1].images, e.classes[1].correct), (1, 0));
        assert_eq!(e.classes[1].name.as_deref(), Some("b"));
        let by_hand = |row: [f64; 6], l: usize| row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[l];
        let loss = by_hand([3.0, 1.0, 0.0, 0.0, 0.0, -1.0], 0)
            + by_hand([0.0, 1.0, 2.0, 3.0, 4.0, -9.0], 5)
            + by_hand([1.0; 6], 1);
        assert!((e.loss - loss / 3.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_not_a_number_is_never_right() {
        let mut scores = EvaluationCounts::default();
        scores.add(array![[f32::NAN, 0.0]].view(), &[0]);
        scores.add(array![[f32::NAN, 0.0]].view(), &[1]);
        assert_eq!(scores.top1(), 0.0);
        assert_eq!(scores.finish(None).top5, None);
    }
}
