//! A session that is ready: graphs, loaders and state, and the run that they are for.

use std::sync::Arc;

use ndarray::Array4;

use crate::data::{Dataset, ImageLayout, InputTransform, Rows, TrainingLoader, TrainingOptions};
use crate::error::Result;
use crate::onnx::Model;
use crate::runtime::{Device, Runtime, RuntimeKind};
use crate::training::{
    Observer, Operators, Precision, Recipe, Run, RunOptions, Summary, Teacher, Trainer, Validation, ValidationReport,
};

/// So many texts of each length are run with padding and without.
const TRIED: usize = 8;

/// A run of training that is ready to begin.
pub struct Session {
    /// Its graphs and state.
    pub trainer: Trainer,
    /// What these were made of.
    pub recipe: Recipe,
    /// Images to train on.
    pub training: TrainingLoader,
    /// Images to validate on.
    pub validation: Option<Validation>,
    /// How long the run is and how it goes.
    pub plan: RunOptions,
    /// Texts that rows may be cut to, with the padding that they have there.
    short: Vec<Array4<f32>>,
    teacher: Option<Teacher>,
}

/// Images of a session.
pub struct Images {
    /// The data set.
    pub dataset: Dataset,
    /// Which of its images are trained on.
    pub training: Vec<usize>,
    /// Images to validate on, of this data set or of another.
    pub validation: Option<Validation>,
    /// What they are, where these are rows of arrays.
    pub rows: Option<Rows>,
    /// How the model sees them.
    pub view: InputTransform,
    /// How they are put into batches; the size of a batch and the classes are the trainer's.
    pub batches: TrainingOptions,
}

impl Session {
    /// Puts images before a trainer. Texts are cut to their length where that changes nothing.
    ///
    /// # Errors
    /// Those of [`TrainingLoader::new`], and of running the model.
    pub fn new(trainer: Trainer, recipe: Recipe, images: Images, plan: RunOptions) -> Result<Session> {
        let classes = trainer.classes.as_ref().map(|(_, n)| *n);
        let batches = TrainingOptions { batch_size: trainer.batch, classes, ..images.batches };
        let InputTransform { preprocess, layout } = images.view;
        let short = match &images.rows {
            Some(rows) => short_texts(&images.dataset, &images.training, rows, layout)?,
            None => Vec::new(),
        };
        let trainer = trainer.of_rows(images.rows.as_ref(), &short)?;
        let dataset = if trainer.lengths().is_empty() { images.dataset.of_one_length() } else { images.dataset };
        let training = TrainingLoader::new(dataset, images.training, preprocess, layout, batches)?;
        Ok(Session { trainer, recipe, training, validation: images.validation, plan, short, teacher: None })
    }

    /// Lets a teacher see the same images, in a view of its own where that is another.
    ///
    /// # Errors
    /// Those of [`TrainingLoader::with_teacher`] and of [`Teacher::new`].
    pub(super) fn with_teacher(mut self, runtime: &Arc<Runtime>, teacher: Taught) -> Result<Session> {
        self.training = self.training.with_teacher(teacher.view.clone())?;
        if let Some(validation) = &mut self.validation {
            validation.loader = validation.loader.clone().with_teacher(teacher.view)?;
        }
        let made = Teacher::new(runtime, &teacher.model, &self.recipe.loss, self.trainer.batch, teacher.image)?
            .of_rows(teacher.rows.as_ref(), &self.short)?;
        self.teacher = Some(match teacher.classes {
            Some((value, places)) => made.with_classes(&value, places),
            None => made,
        });
        Ok(self)
    }

    /// Samples to train on and to validate on.
    pub fn images(&self) -> [usize; 2] {
        [self.training.len(), self.validation.as_ref().map_or(0, Validation::samples)]
    }

    /// Samples in a batch.
    pub fn batch(&self) -> usize {
        self.trainer.batch / self.training.dataset().images_each()
    }

    /// Trains, and says what came of it. The trainer holds the last weights then.
    ///
    /// # Errors
    /// Those of [`Run::fit`].
    pub fn fit(&mut self, observer: &mut dyn Observer) -> Result<Summary> {
        self.run().fit(observer)
    }

    /// What a validation would say of another model, such as the file that was made of the best one; see
    /// [`Run::judge`].
    ///
    /// # Errors
    /// Those of [`Run::judge`].
    pub fn judge(&mut self, model: &Model, of: &ValidationReport) -> Result<Option<ValidationReport>> {
        self.run().judge(model, of)
    }

    fn run(&mut self) -> Run<'_> {
        Run {
            trainer: &mut self.trainer,
            recipe: &self.recipe,
            training: &self.training,
            validation: self.validation.as_ref(),
            teacher: self.teacher.as_mut(),
            plan: &self.plan,
        }
    }
}

/// A batch of some texts of each length but the last.
fn short_texts(dataset: &Dataset, training: &[usize], rows: &Rows, layout: ImageLayout) -> Result<Vec<Array4<f32>>> {
    let short = rows.lengths.split_last().map_or(&[][..], |(_, short)| short);
    let mut found = Vec::new();
    for length in short {
        let is_long = |sample: &&usize| dataset.length_of(**sample) == Some(*length);
        let some: Vec<usize> = training.iter().filter(is_long).take(TRIED).copied().collect();
        if some.is_empty() {
            continue;
        }
        let batch = dataset.loader(some, None, layout)?.batches(TRIED * dataset.images_each()).next();
        found.extend(batch.transpose()?.map(|batch| batch.images));
    }
    Ok(found)
}

/// A teacher, and what it sees.
pub(super) struct Taught {
    pub model: Model,
    /// Its view of the images, where that is not the student's.
    pub view: Option<InputTransform>,
    /// Height and width of its images.
    pub image: [usize; 2],
    /// The rows that it takes, where it takes some.
    pub rows: Option<Rows>,
    /// The value whose classes lie in another order than the student's, and the place of each.
    pub classes: Option<(String, Vec<usize>)>,
}

impl Operators {
    /// What step graphs are made of on a runtime: all that it has.
    pub fn of(runtime: &Runtime, precision: Precision) -> Operators {
        match (runtime.kind, runtime.device) {
            (RuntimeKind::Tract, _) => Operators::Standard,
            (_, Device::Cpu) if precision == Precision::F32 => Operators::Fused,
            _ => Operators::Contrib,
        }
    }
}
