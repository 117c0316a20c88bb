//! What is asked of a session.

use super::goal::Goal;
use crate::anatomy::Pooling;
use crate::data::{PreprocessFlags, Rows, TrainingOptions};
use crate::training::{Recipe, RunOptions};

/// What is asked of a session, beside its model, its data and its teacher.
#[derive(Default)]
pub struct Options {
    /// Classes of a new classifier, where there is to be one.
    pub classes: Option<usize>,
    /// What a new classifier behind an encoder looks at.
    pub pooling: Option<Pooling>,
    /// What is to be learned.
    pub goal: Goal,
    /// How it is learned; the loss is the goal's.
    pub recipe: Recipe,
    /// How long, and how the run goes.
    pub plan: RunOptions,
    /// How images are put into batches; the size of a batch and the classes are the trainer's.
    pub batches: TrainingOptions,
    /// How images are prepared, beside what the model says.
    pub transform: PreprocessFlags,
    /// How many images are taken at most where no split says which.
    pub limit: Option<usize>,
    /// Weights that are trained too, and weights that are not, by patterns.
    pub train: Vec<String>,
    /// Weights that stay as they are, by patterns.
    pub freeze: Vec<String>,
    /// Images to validate on must be there.
    pub require_improvement: bool,
    /// What the model takes, where these are rows of arrays, of which all is said, and no images.
    pub rows: Option<Rows>,
    /// Nothing will be trained.
    pub dry_run: bool,
}
