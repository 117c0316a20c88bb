//! What is minimised: the loss that a session is asked for, in terms of its models.

use std::path::Path;

use crate::anatomy::activation;
use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::Model;
use crate::training::{Loss, Term, has_classifier, is_independent};

/// The loss on labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum LabelLoss {
    /// Cross-entropy.
    #[default]
    CrossEntropy,
    /// Binary cross-entropy of every class by itself.
    Bce,
    /// Mean squared difference between logits and one-hot labels.
    Mse,
}

/// What a model is to learn.
#[derive(Clone, Debug)]
pub struct Goal {
    /// The loss on the labels.
    pub labels: LabelLoss,
    /// Share of every label that is spread over all classes.
    pub smoothing: f32,
    /// Share of the teacher in the loss; all of it without labels and half of it with them, where none is given.
    pub distill: Option<f64>,
    /// What logits of both are divided by.
    pub temperature: f32,
    /// Further values that are compared: a name, or STUDENT=TEACHER.
    pub features: Vec<String>,
    /// The weight of each of them.
    pub feature_weight: f32,
    /// The output whose cosines of pairs are to be those that the data want. It is learned alone.
    pub embedding: Option<String>,
}

impl Default for Goal {
    /// Cross-entropy with a smoothing of 0.1, and what `tune` takes of a teacher.
    fn default() -> Self {
        Goal {
            labels: LabelLoss::default(),
            smoothing: 0.1,
            distill: None,
            temperature: 2.0,
            features: Vec::new(),
            feature_weight: 1.0,
            embedding: None,
        }
    }
}

impl Goal {
    /// The loss of a model on data with labels or without, with a teacher or without; `data` is named where something
    /// is missing.
    pub(super) fn loss(&self, model: &Model, teacher: Option<&Model>, labelled: bool, data: &Path) -> Result<Loss> {
        if let Some(embedding) = &self.embedding {
            return of_pairs(model, teacher, embedding);
        }
        let mut terms = Vec::new();
        let share = match (teacher.is_some(), self.distill) {
            (false, _) => 0.0,
            (true, Some(share)) => share,
            (true, None) if labelled => 0.5,
            (true, None) => 1.0,
        };
        if share < 1.0 {
            if !labelled {
                return Err(Error::new(
                    ErrorKind::Usage,
                    "the data have no labels, and nothing else says what to learn",
                )
                .at(data)
                .hint("give a data set with labels, or a ⟦teacher⟧"));
            }
            let term = match self.labels {
                LabelLoss::CrossEntropy => Term::CrossEntropy { smoothing: self.smoothing },
                LabelLoss::Bce => Term::BinaryCrossEntropy { smoothing: self.smoothing },
                LabelLoss::Mse => Term::SquaredError,
            };
            terms.push((1.0 - share as f32, term));
        }
        if let Some(teacher) = teacher {
            let first = |m: &Model| m.graph().output.first().map(|o| o.name().to_string()).unwrap_or_default();
            let (student, of_teacher) = (first(model), first(teacher));
            if share > 0.0 {
                // Classes that exclude each other are compared as distributions.
                let term = match exclusive(model) && exclusive(teacher) {
                    true => Term::Distillation { temperature: self.temperature, student, teacher: of_teacher },
                    false => Term::Imitation { student, teacher: of_teacher },
                };
                terms.push((share as f32, term));
            }
            for names in &self.features {
                let (student, teacher) = names.split_once('=').unwrap_or((names, names));
                let term = Term::Imitation { student: student.into(), teacher: teacher.into() };
                terms.push((self.feature_weight, term));
            }
        }
        Ok(Loss { terms, output: None })
    }
}

/// The loss of pairs, whose embeddings are an output of the model.
fn of_pairs(model: &Model, teacher: Option<&Model>, embedding: &str) -> Result<Loss> {
    if teacher.is_some() {
        bail!(Internal, "scores of pairs are learned without a teacher");
    }
    if let Some(a) = activation(&Typing::new(model)?).filter(|a| a.output == embedding) {
        let what = format!("`{embedding}` ends in {}: it tells classes apart, and is no embedding", a.kind);
        return Err(Error::new(ErrorKind::Usage, what)
            .hint("name another output with ⟦of⟧ NAME, or pool the states of tokens with ⟦pooling⟧"));
    }
    Ok(Loss { terms: vec![(1.0, Term::Cosine { embedding: embedding.to_owned() })], output: None })
}

/// True where a model tells classes apart that exclude each other.
fn exclusive(model: &Model) -> bool {
    match Typing::new(model) {
        Err(_) => false,
        Ok(typing) => match activation(&typing) {
            Some(a) => !is_independent(&a),
            None => has_classifier(&typing),
        },
    }
}
