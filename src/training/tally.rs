//! Validation: the terms of a loss, and what else is said of a model, added up over batches.

use ndarray::{ArrayD, ArrayView2, ArrayViewD, Axis, Ix2, Slice};

use super::loss::{Loss, Term, teacher_input};
use crate::data::Batch;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{EvaluationCounts, binary_cross_entropy, cosine, spearman};
use crate::parallel;

/// Logits, or other numbers of each image, as a matrix.
///
/// # Errors
/// [`ErrorKind::Internal`] where they are none.
pub(super) fn rows(logits: &ArrayD<f32>) -> Result<ArrayView2<'_, f32>> {
    logits.view().into_dimensionality::<Ix2>().map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))
}

/// The terms of a loss over validation images, computed on the host from outputs.
pub(super) struct Tally<'a> {
    loss: &'a Loss,
    labels: Option<&'a [u32]>,
    /// The cosine that every pair is to have.
    wanted: Option<&'a [f64]>,
    scores: EvaluationCounts,
    sums: Vec<f64>,
    /// The cosine that every pair has and the one that it is to have.
    cosines: Vec<[f64; 2]>,
    /// Samples.
    pub images: usize,
}

impl<'a> Tally<'a> {
    /// For a loss on images of these labels, or on pairs that are to have these cosines.
    pub fn new(loss: &'a Loss, labels: Option<&'a [u32]>, wanted: Option<&'a [f64]>) -> Self {
        let (sums, cosines) = (vec![0.0; loss.terms.len()], Vec::new());
        Tally { loss, labels, wanted, scores: EvaluationCounts::default(), sums, cosines, images: 0 }
    }

    /// Adds a batch: what the model and its teacher make of it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a value that is not there.
    pub fn add(
        &mut self,
        batch: &Batch,
        outputs: &[(String, ArrayD<f32>)],
        teacher: &[(String, ArrayD<f32>)],
    ) -> Result<()> {
        let count = batch.images.len_of(Axis(0));
        let find = |list: &'_ [(String, ArrayD<f32>)], name: &str| -> Result<ArrayD<f32>> {
            match list.iter().find(|(n, _)| n == name) {
                Some((_, v)) => Ok(v.slice_axis(Axis(0), Slice::from(..count)).to_owned()),
                None => bail!(Usage, "`{name}` is no value that can be validated"),
            }
        };
        let labels: Option<Vec<u32>> =
            self.labels.map(|all| batch.indices.iter().filter_map(|&i| all.get(i).copied()).collect());
        let class_output = self.loss.output.as_deref().or(outputs.first().map(|(n, _)| n.as_str())).unwrap_or_default();
        if let Some(labels) = &labels
            && self.loss.needs_classes()
        {
            self.scores.add(rows(&find(outputs, class_output)?)?, labels);
        }
        let pairs = self.wanted.map(|all| batch.indices.chunks_exact(2).filter_map(|pair| all.get(pair[0]).copied()));
        let pairs: Vec<f64> = pairs.into_iter().flatten().collect();
        for ((_, term), sum) in self.loss.terms.iter().zip(&mut self.sums) {
            *sum += match term {
                // Counted by the scores.
                Term::CrossEntropy { .. } => 0.0,
                Term::BinaryCrossEntropy { .. } => {
                    let logits = find(outputs, class_output)?;
                    let of_image = |(row, &label)| binary_cross_entropy(row, label as usize);
                    rows(&logits)?.outer_iter().zip(labels.iter().flatten()).map(of_image).sum()
                }
                Term::SquaredError => {
                    let logits = find(outputs, class_output)?;
                    let mut targets = ArrayD::<f32>::zeros(logits.raw_dim());
                    for (mut row, &label) in targets.outer_iter_mut().zip(labels.iter().flatten()) {
                        if let Some(one) = row.iter_mut().nth(label as usize) {
                            *one = 1.0;
                        }
                    }
                    squared(logits.view(), targets.view())
                }
                Term::Cosine { embedding } => {
                    let embedding = find(outputs, embedding)?.mapv(f64::from);
                    let texts: Vec<Vec<f64>> =
                        embedding.outer_iter().map(|row| row.iter().copied().collect()).collect();
                    let found = texts.chunks_exact(2).map(|pair| cosine(&pair[0], &pair[1]));
                    let both: Vec<[f64; 2]> = found.zip(&pairs).map(|(found, wanted)| [found, *wanted]).collect();
                    let sum = both.iter().map(|[found, wanted]| (found - wanted).powi(2)).sum();
                    self.cosines.extend(both);
                    sum
                }
                Term::Imitation { student, teacher: t } => {
                    squared(find(outputs, student)?.view(), find(teacher, &teacher_input(t))?.view())
                }
                Term::Distillation { temperature, student, teacher: t } => {
                    let (s, t) = (find(outputs, student)?, find(teacher, &teacher_input(t))?);
                    divergence(rows(&t)?, rows(&s)?, *temperature as f64)
                }
            };
        }
        self.images += if self.wanted.is_some() { pairs.len() } else { count };
        Ok(())
    }

    /// The sums of all processes.
    ///
    /// # Errors
    /// Those of [`parallel::all`].
    pub fn of_all(mut self) -> Result<Self> {
        parallel::sum(&mut self.sums);
        let (images, scores) = (parallel::total(self.images), self.scores.of_all()?);
        // Those that are no number are null in JSON.
        let own: Vec<[Option<f64>; 2]> = self.cosines.iter().map(|both| both.map(Some)).collect();
        let all = parallel::all(own)?.into_iter().flatten();
        let cosines = all.map(|both| both.map(|v| v.unwrap_or(f64::NAN))).collect();
        Ok(Tally { images, scores, cosines, ..self })
    }

    /// The mean over the samples.
    pub fn loss(&self) -> f64 {
        let n = self.images.max(1) as f64;
        let cross_entropy = || self.scores.finish(None).loss;
        self.loss
            .terms
            .iter()
            .zip(&self.sums)
            .map(|((weight, term), sum)| {
                *weight as f64 * if matches!(term, Term::CrossEntropy { .. }) { cross_entropy() } else { sum / n }
            })
            .sum()
    }

    /// Share of images that were recognised, where there are labels.
    pub fn top1(&self) -> Option<f64> {
        (self.scores.images() > 0).then(|| self.scores.top1())
    }

    /// How the cosines of pairs follow those that they are to have, where there are pairs.
    pub fn spearman(&self) -> Option<f64> {
        let [found, wanted] = [0, 1].map(|k| self.cosines.iter().map(|both| both[k]).collect::<Vec<f64>>());
        spearman(&found, &wanted)
    }
}

/// Mean squared difference of each image, summed over images.
fn squared(a: ArrayViewD<f32>, b: ArrayViewD<f32>) -> f64 {
    let each = (a.len() / a.shape().first().copied().unwrap_or(1).max(1)).max(1) as f64;
    a.iter().zip(&b).map(|(x, y)| (*x as f64 - *y as f64).powi(2)).sum::<f64>() / each
}

/// Divergence of softened distributions times the temperature squared, summed over images.
fn divergence(teacher: ArrayView2<f32>, student: ArrayView2<f32>, temperature: f64) -> f64 {
    let log_softmax = |row: ndarray::ArrayView1<f32>| -> Vec<f64> {
        let scaled: Vec<f64> = row.iter().map(|&v| v as f64 / temperature).collect();
        let top = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = scaled.iter().map(|v| (v - top).exp()).sum::<f64>().ln() + top;
        scaled.into_iter().map(|v| v - sum).collect()
    };
    let mut total = 0.0;
    for (t, s) in teacher.outer_iter().zip(student.outer_iter()) {
        let (p, q) = (log_softmax(t), log_softmax(s));
        total += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
    total * temperature * temperature
}
