//! Training is ONNX to ONNX: a graph is differentiated in reverse, and the gradients are standard operators of a graph
//! again.
//!
//! An operator is one gradient rule ([`Gradients::new`] refuses operators without one, by name). Broadcasting is undone
//! in one place. Nothing is computed for values that no trained weight needs, and gradients of weights that are used
//! several times add up.

pub mod checkpoint;
mod classifier;
mod form;
mod gradients;
pub mod kernels;
mod logits;
mod loss;
mod operators;
mod optimiser;
mod precision;
mod rate;
mod recompute;
mod regularise;
mod rows;
mod rules;
mod run;
mod session;
mod sharing;
mod step;
mod tally;
mod tape;
mod trained;
mod trainer;

pub use classifier::{IMAGES as CLASSIFIER_IMAGES, add_classifier, fit_classifier, has_classifier};
pub use form::trainable_form;
pub use gradients::Gradients;
pub use logits::{is_independent, said_of, with_logits};
pub use loss::{LOSS, Loss, TARGETS, Term, teacher_input};
pub use operators::Operators;
pub use optimiser::{Optimiser, RateCurve, Schedule, ema, next};
pub use precision::Precision;
pub use rate::{Attempt, LearningRate};
pub use regularise::{KEPT, probability};
pub use rows::{of_inputs, of_rows};
pub use run::{
    Observer, Run, RunOptions, RunRecord, StepReport, Summary, Teacher, Validation, ValidationReport, evaluate,
};
pub use session::{
    Data, Goal, Guide, HoldOut, Images, LabelLoss, Open, Options, Prepared, Session, Setup, open_dataset,
};
pub use sharing::{Separated, separate};
pub use step::{Batching, Description, Memory, Port, Recipe, StateTensor, StepGraph, Steps, evaluation_graph};
pub use trained::{FrozenWeight, Selection, TrainedWeight, is_trainable};
pub use trainer::{Feeds, StepResult, Trainer};
