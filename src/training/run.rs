//! A whole run: epochs over a data set, validation, the best model, checkpoints, and going on after an interruption.
//!
//! Everything random is a function of the seed and of the position in the run, so a run that was interrupted and goes
//! on from its checkpoint makes the updates that it would have made.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ndarray::{Array2, Array4, ArrayD, ArrayView4, Axis};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};

use super::checkpoint::Position;
use super::logits::with_logits;
use super::loss::{Loss, TARGETS, teacher_input};
use super::optimiser::{RateCurve, Schedule};
use super::rate::LearningRate;
use super::regularise::{KEPT, probability};
use super::rows;
use super::step::Recipe;
use super::tally::{Tally, rows as matrix};
use super::trainer::{Feeds, Trainer};
use crate::axes::Typing;
use crate::data::{Loader, Rows, TrainingBatch, TrainingLoader};
use crate::error::{Error, ErrorKind, Result};
use crate::graph;
use crate::metadata::schema;
use crate::metrics::{Evaluation, EvaluationCounts};
use crate::onnx::proto::ValueInfoProto;
use crate::onnx::{DataType, Model, tensor_info};
use crate::parallel;
use crate::runtime::{Runtime, Session};

/// How long a run is and how it goes.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Epochs.
    pub epochs: u64,
    /// Updates after which the run ends even within an epoch.
    pub steps: Option<u64>,
    /// What follows the warm-up.
    pub schedule: RateCurve,
    /// The highest learning rate; where there is none, one is found by [trial](LearningRate).
    pub learning_rate: Option<f64>,
    /// The last learning rate.
    pub minimum_rate: f64,
    /// Epochs in which the learning rate rises.
    pub warmup: f64,
    /// Share of the moving average that is kept at every update, where there is one; it starts lower and rises to this.
    pub ema_decay: f64,
    /// Probability that the last residual branch is dropped.
    pub drop_path: f32,
    /// The model is validated before the first update too, and is the best until another is better.
    pub validate_start: bool,
    /// What everything random follows from.
    pub seed: u64,
    /// Where checkpoints are written.
    pub checkpoint: Option<PathBuf>,
    /// Updates between checkpoints; at the end of an epoch there is always one.
    pub checkpoint_every: Option<u64>,
    /// Go on from the checkpoint.
    pub resume: bool,
    /// Ends the run after an update, with a checkpoint, when it is set.
    pub stop: Option<&'static AtomicBool>,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            epochs: 10,
            steps: None,
            schedule: RateCurve::Cosine,
            learning_rate: None,
            minimum_rate: 1e-6,
            warmup: 0.5,
            ema_decay: 0.999,
            drop_path: 0.0,
            validate_start: true,
            seed: 0,
            checkpoint: None,
            checkpoint_every: None,
            resume: false,
            stop: None,
        }
    }
}

/// Images to validate on, and what is to be said of every image of their data set where that is known.
pub struct Validation {
    /// The images, through the evaluation transform; those of a pair one behind the other.
    pub loader: Loader,
    /// Labels by the index of the image in the data set.
    pub labels: Option<Vec<u32>>,
    /// The cosine of every pair, by the index of its first image.
    pub cosines: Option<Vec<f64>>,
}

/// A model that the student learns from.
pub struct Teacher {
    runtime: Arc<Runtime>,
    model: Model,
    batch: usize,
    image: [usize; 2],
    session: Session,
    /// What it takes, where these are rows that may be cut.
    rows: Option<Rows>,
    /// It for texts that are cut to a length; none where it takes no texts of that length.
    cuts: HashMap<usize, Option<Session>>,
    values: Vec<String>,
    /// The value whose classes are put into another order, and the place of each.
    moved: Option<(String, Vec<usize>)>,
}

impl Teacher {
    /// Loads a prepared teacher that gives the values that a loss names; of outputs that hold classes the logits.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a value that the teacher does not compute, and those of [`Runtime::load`].
    pub fn new(runtime: &Arc<Runtime>, model: &Model, loss: &Loss, batch: usize, image: [usize; 2]) -> Result<Teacher> {
        let values = loss.teacher_values();
        let model = model.clone();
        let path = model.path.clone();
        // A teacher need not be a graph that is typed; it has to run.
        let logits = Typing::new(&model).ok().map(|typing| with_logits(&model, &typing)).transpose()?.flatten();
        let mut model = logits.unwrap_or(model);
        give(&mut model, &values).map_err(|e| e.at(&path))?;
        let session = runtime.load(&model, batch, image)?;
        let (runtime, rows, cuts) = (runtime.clone(), None, HashMap::new());
        Ok(Teacher { runtime, model, batch, image, session, rows, cuts, values, moved: None })
    }

    /// Cuts batches of rows to the length of their longest text, where rows may be cut and it says the same of `short`
    /// texts with the padding that they have in their rows.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
    pub fn of_rows(mut self, rows: Option<&Rows>, short: &[Array4<f32>]) -> Result<Teacher> {
        let is_same = rows::says_the_same(short, |batch, is_cut| {
            self.rows = rows.filter(|_| is_cut).cloned();
            self.values(batch)
        })?;
        self.rows = rows.filter(|_| is_same).cloned();
        if !is_same {
            self.cuts.clear();
        }
        Ok(self)
    }

    /// Puts the classes of a value [batch, classes] into the student's order: `places` says where each of them lies in
    /// the teacher's.
    pub fn with_classes(self, value: &str, places: Vec<usize>) -> Teacher {
        Teacher { moved: Some((value.to_string(), places)), ..self }
    }

    /// The session for a batch.
    fn session(&mut self, images: ArrayView4<f32>) -> Result<&mut Session> {
        let Some((rows, length)) = self.rows.as_ref().and_then(|rows| Some((rows, rows.shortest(images)?))) else {
            return Ok(&mut self.session);
        };
        if !self.cuts.contains_key(&length) {
            let cut = rows::cut(&self.model, rows, length).ok().flatten();
            let session = cut.map(|model| self.runtime.load(&model, self.batch, self.image)).transpose()?;
            self.cuts.insert(length, session);
        }
        Ok(self.cuts.get_mut(&length).and_then(Option::as_mut).unwrap_or(&mut self.session))
    }

    fn values(&mut self, images: &Array4<f32>) -> Result<Vec<(String, ArrayD<f32>)>> {
        let outputs = self.session(images.view())?.run(images.view())?;
        let ordered = |(value, output): (&String, ArrayD<f32>)| match &self.moved {
            Some((moved, places)) if moved == value => (teacher_input(value), output.select(Axis(1), places)),
            _ => (teacher_input(value), output),
        };
        Ok(self.values.iter().zip(outputs).map(ordered).collect())
    }
}

/// Makes `values`, and nothing else, the outputs of a model.
fn give(model: &mut Model, values: &[String]) -> Result<()> {
    let graph = model.graph_mut();
    let made = |v: &str| graph.node.iter().any(|n| n.output.iter().any(|o| o == v));
    if let Some(missing) = values.iter().find(|v| !made(v)) {
        let outputs: Vec<&str> = graph.output.iter().map(|o| o.name()).collect();
        return Err(Error::new(ErrorKind::Usage, format!("the model computes no value `{missing}`"))
            .hint(format!("its outputs are {}", outputs.join(", "))));
    }
    let declared: Vec<ValueInfoProto> = values
        .iter()
        .map(|v| match graph.output.iter().find(|o| o.name() == v) {
            Some(info) => info.clone(),
            None => ValueInfoProto { r#type: None, ..tensor_info(v, DataType::Float, &[]) },
        })
        .collect();
    graph.output = declared;
    graph::prune(graph);
    Ok(())
}

/// What an update saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepReport {
    /// The update, from 1.
    pub step: u64,
    /// The epoch, from 1.
    pub epoch: u64,
    /// Mean loss of its batch or batches, before the update.
    pub loss: f64,
    /// Its learning rate.
    pub lr: f64,
    /// Share of its images that were recognised, where there are labels that were not mixed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub accuracy: Option<f64>,
    /// Norm of all gradients together, where they are clipped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gradient_norm: Option<f64>,
    /// Images a second.
    pub images_per_second: f64,
}

/// What a validation found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ValidationReport {
    /// Updates before it.
    pub step: u64,
    /// The epoch, from 1; 0 for the model as it was before the first update.
    pub epoch: u64,
    /// Mean loss over the images, without label smoothing.
    pub val_loss: f64,
    /// Share of images that were recognised, where there are labels.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub val_top1: Option<f64>,
    /// Spearman's correlation of the cosines of pairs with their scores, where there are scores and it can be told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub val_spearman: Option<f64>,
    /// Samples.
    pub val_images: usize,
    /// True where it is the best so far.
    pub best: bool,
}

impl ValidationReport {
    /// True where more images are recognised, or scores are followed more closely; where that is the same or not known,
    /// where the loss is less.
    fn is_better_than(&self, other: &ValidationReport) -> bool {
        let measure = |report: &ValidationReport| report.val_top1.or(report.val_spearman);
        match (measure(self), measure(other)) {
            (Some(own), Some(other)) if own != other => own > other,
            // Cosines that are all the same, or no numbers, have no correlation.
            (Some(_), None) => true,
            (None, Some(_)) => false,
            _ => self.val_loss < other.val_loss || other.val_loss.is_nan(),
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// The validation before the first update, where there was one.
    pub start: Option<ValidationReport>,
    /// The best validation, where there was one; of several alike the first.
    pub best: Option<ValidationReport>,
    /// The highest learning rate.
    pub learning_rate: LearningRate,
}

impl Summary {
    /// Whether a later model was better than the start; `None` where that is not known, for lack of images to validate
    /// on.
    pub fn improved(&self) -> Option<bool> {
        self.best.as_ref().map(|best| best.epoch > 0)
    }
}

/// Who watches a run.
pub trait Observer {
    /// The run begins, with this highest learning rate.
    fn begun(&mut self, _: &LearningRate) -> Result<()> {
        Ok(())
    }
    /// An update was made; `total` is the number of updates of the whole run.
    fn step(&mut self, _report: &StepReport, _total: u64) -> Result<()> {
        Ok(())
    }
    /// A validation ended.
    fn validated(&mut self, _report: &ValidationReport) -> Result<()> {
        Ok(())
    }
    /// The run goes on after this update of an earlier one.
    fn resumed(&mut self, _step: u64) -> Result<()> {
        Ok(())
    }
    /// A better model than all before it: to be kept.
    fn best(&mut self, _model: &Model) -> Result<()> {
        Ok(())
    }
}

/// An observer that keeps the best model and the reports.
#[derive(Default)]
pub struct RunRecord {
    /// Updates.
    pub steps: Vec<StepReport>,
    /// Validations.
    pub validations: Vec<ValidationReport>,
    /// The best model.
    pub best: Option<Model>,
}

impl Observer for RunRecord {
    fn step(&mut self, report: &StepReport, _: u64) -> Result<()> {
        self.steps.push(report.clone());
        Ok(())
    }

    fn validated(&mut self, report: &ValidationReport) -> Result<()> {
        self.validations.push(report.clone());
        Ok(())
    }

    fn best(&mut self, model: &Model) -> Result<()> {
        self.best = Some(model.clone());
        Ok(())
    }
}

/// What a checkpoint says beside its tensors.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct RunState {
    schema: String,
    position: Position,
    #[serde(default)]
    start: Option<ValidationReport>,
    best: Option<ValidationReport>,
    #[serde(default)]
    learning_rate: Option<LearningRate>,
    seed: u64,
    batch: usize,
    images: usize,
    data: String,
}

/// Everything that a run works with.
pub struct Run<'a> {
    /// The run's graphs and state.
    pub trainer: &'a mut Trainer,
    /// What the trainer was made of.
    pub recipe: &'a Recipe,
    /// Images to train on.
    pub training: &'a TrainingLoader,
    /// Images to validate on.
    pub validation: Option<&'a Validation>,
    /// A model to learn from.
    pub teacher: Option<&'a mut Teacher>,
    /// How long it is and how it goes.
    pub plan: &'a RunOptions,
}

impl Run<'_> {
    /// Updates of the whole run.
    pub fn total(&self) -> u64 {
        let all = self.plan.epochs * self.updates_per_epoch();
        self.plan.steps.map_or(all, |s| s.min(all))
    }

    fn updates_per_epoch(&self) -> u64 {
        (self.training.batches_per_epoch() / self.trainer.batches_per_update()) as u64
    }

    /// Images of a batch in all processes together.
    fn images_per_batch(&self) -> usize {
        self.trainer.batch * self.recipe.ranks.max(1)
    }

    /// Samples of a batch in all processes together.
    fn samples_per_batch(&self) -> usize {
        self.images_per_batch() / self.training.dataset().images_each()
    }

    fn schedule(&self, rate: f64) -> Schedule {
        Schedule {
            shape: self.plan.schedule,
            rate,
            minimum: self.plan.minimum_rate.min(rate),
            warmup: (self.plan.warmup * self.updates_per_epoch() as f64).round() as u64,
            total: self.total(),
        }
    }

    /// Runs to the end, and says what it came to. The trainer holds the last weights then.
    ///
    /// # Errors
    /// [`ErrorKind::Check`] for a loss that is not finite (the last checkpoint is whole), those of the data, of the
    /// runtime, of checkpoints, and of the observer.
    pub fn fit(&mut self, observer: &mut dyn Observer) -> Result<Summary> {
        let per_update = self.trainer.batches_per_update();
        let (total, per_epoch) = (self.total(), self.updates_per_epoch());
        if per_epoch == 0 {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("an epoch has {} batches, fewer than one update takes", self.training.batches_per_epoch()),
            )
            .hint("lower ⟦accumulate⟧ or ⟦batch-size⟧"));
        }
        let data = self.training.dataset().fingerprint()?;
        let mut standing = RunState {
            schema: schema::CHECKPOINT.into(),
            position: Position::default(),
            start: None,
            best: None,
            learning_rate: None,
            seed: self.plan.seed,
            batch: self.samples_per_batch(),
            images: self.training.len(),
            data,
        };
        if self.plan.resume {
            standing = self.resume(&standing)?;
            observer.resumed(standing.position.step)?;
        }
        let learning_rate = match (self.plan.learning_rate, standing.learning_rate.take()) {
            (Some(rate), _) => LearningRate::given(rate),
            (None, Some(found)) => found,
            (None, None) if self.plan.resume => LearningRate::given(LearningRate::DEFAULT),
            (None, None) => self.find_rate()?,
        };
        observer.begun(&learning_rate)?;
        let schedule = self.schedule(learning_rate.rate);
        standing.learning_rate = Some(learning_rate.clone());
        if self.plan.validate_start && !self.plan.resume {
            self.validate(&mut standing, 0, observer)?;
            standing.start = standing.best.clone();
        }
        while standing.position.step < total {
            let at = standing.position.clone();
            let mut batches = self.training.batches(at.epoch as usize, at.batch as usize);
            let mut begun = Instant::now();
            for _ in at.batch / per_update as u64..per_epoch {
                if standing.position.step >= total {
                    break;
                }
                let step = standing.position.step;
                let rate = schedule.at(step);
                let mut report = self.update(&mut batches, step, rate, per_update)?;
                report.epoch = standing.position.epoch + 1;
                report.images_per_second =
                    (per_update * self.samples_per_batch()) as f64 / begun.elapsed().as_secs_f64();
                begun = Instant::now();
                standing.position.step += 1;
                standing.position.batch += per_update as u64;
                observer.step(&report, total)?;
                if self.plan.checkpoint_every.is_some_and(|n| standing.position.step.is_multiple_of(n.max(1))) {
                    self.save(&standing)?;
                }
                if self.plan.stop.is_some_and(|s| s.load(Ordering::Relaxed)) && standing.position.step < total {
                    self.save(&standing)?;
                    return Err(Error::new(ErrorKind::Check, format!("stopped after update {} of {total}", step + 1))
                        .hint("the checkpoint is whole: ⟦resume⟧ goes on from there"));
                }
            }
            drop(batches);
            let ended = standing.position.batch / per_update as u64 >= per_epoch;
            if ended {
                standing.position = Position { epoch: at.epoch + 1, batch: 0, ..standing.position };
            }
            self.validate(&mut standing, at.epoch + 1, observer)?;
            self.save(&standing)?;
        }
        Ok(Summary { start: standing.start, best: standing.best, learning_rate })
    }

    /// Finds a learning rate by trial, on the batches of the first update. The state is as it was afterwards.
    fn find_rate(&mut self) -> Result<LearningRate> {
        let mut batches = self.training.batches(0, 0);
        let prepared = self.prepare(&mut batches, 0, self.trainer.batches_per_update())?;
        drop(batches);
        let input = self.trainer.input.clone();
        let feeds = prepared.feeds(&input, &self.recipe.loss)?;
        LearningRate::find(|rate| self.trainer.attempt(&feeds, rate))
    }

    fn resume(&mut self, expected: &RunState) -> Result<RunState> {
        let Some(path) = &self.plan.checkpoint else {
            return Err(
                Error::new(ErrorKind::Usage, "there is no checkpoint to go on from").hint("name one with ⟦checkpoint⟧")
            );
        };
        let found: RunState = self.trainer.load(path)?;
        let differs = |what: &str| {
            Err(Error::new(ErrorKind::Usage, format!("the checkpoint is of a run with another {what}"))
                .at(path)
                .hint("resume with the flags and the data of the run that wrote it"))
        };
        if found.seed != expected.seed {
            return differs("seed");
        }
        if found.batch != expected.batch {
            let error = differs("batch size");
            return match (self.recipe.ranks.max(1), found.batch) {
                (1, _) => error,
                (ranks, batch) if batch.is_multiple_of(ranks) => error.map_err(|e| {
                    let own = batch / ranks;
                    e.rehint(format!(
                        "its batches are of {batch} samples: ⟦batch-size⟧ {own} in each of {ranks} processes"
                    ))
                }),
                (ranks, batch) => error.map_err(|e| {
                    e.rehint(format!("its batches are of {batch} samples, which {ranks} processes cannot share"))
                }),
            };
        }
        if found.images != expected.images || found.data != expected.data {
            return differs("data set");
        }
        self.trainer.updates = found.position.step;
        Ok(found)
    }

    fn save(&self, standing: &RunState) -> Result<()> {
        match &self.plan.checkpoint {
            Some(path) if parallel::is_first() => self.trainer.save(path, standing),
            _ => Ok(()),
        }
    }

    /// The next batches, with all that they are fed with.
    fn prepare(
        &mut self,
        batches: &mut impl Iterator<Item = Result<TrainingBatch>>,
        step: u64,
        count: usize,
    ) -> Result<Prepared> {
        let mut prepared = Prepared::default();
        for i in 0..count {
            let Some(batch) = batches.next() else { bail!(Internal, "the epoch has fewer batches than it said") };
            let batch = batch?;
            let mut values = match &mut self.teacher {
                Some(teacher) => teacher.values(batch.for_teacher())?,
                None => Vec::new(),
            };
            if self.trainer.branches > 0 {
                values.push((KEPT.to_string(), self.kept(step, i).into_dyn()));
            }
            prepared.batches.push(batch);
            prepared.values.push(values);
        }
        Ok(prepared)
    }

    /// One update from the next batches.
    fn update(
        &mut self,
        batches: &mut impl Iterator<Item = Result<TrainingBatch>>,
        step: u64,
        rate: f64,
        count: usize,
    ) -> Result<StepReport> {
        let prepared = self.prepare(batches, step, count)?;
        let input = self.trainer.input.clone();
        let feeds = prepared.feeds(&input, &self.recipe.loss)?;
        // The average follows closely at first: otherwise it would stay near the start for 1 / (1 - decay) updates.
        let decay = self.plan.ema_decay.min((1.0 + step as f64) / (10.0 + step as f64));
        let result = self.trainer.step(&feeds, rate, decay)?;
        let mut accuracy = None;
        if result.logits.len() == prepared.batches.len() {
            let (mut right, mut all) = (0, 0);
            for (logits, batch) in result.logits.iter().zip(&prepared.batches) {
                let Some(labels) = &batch.labels else { continue };
                let mut scores = EvaluationCounts::default();
                scores.add(matrix(logits)?, labels);
                right += (scores.top1() * scores.images() as f64).round() as usize;
                all += scores.images();
            }
            let mut counts = [right as u64, all as u64];
            parallel::sum(&mut counts);
            accuracy = (counts[1] > 0).then(|| counts[0] as f64 / counts[1] as f64);
        }
        Ok(StepReport {
            step: step + 1,
            epoch: 0,
            loss: result.loss,
            lr: rate,
            accuracy,
            gradient_norm: result.gradient_norm,
            images_per_second: 0.0,
        })
    }

    /// Which residual branches stay for each image of this process's batch: [branches, batch]. It is drawn for the
    /// images of all.
    fn kept(&self, step: u64, batch: usize) -> Array2<f32> {
        let (count, images) = (self.trainer.branches, self.images_per_batch());
        let mut random = StdRng::seed_from_u64(
            self.plan.seed
                ^ (step * self.trainer.batches_per_update() as u64 + batch as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        );
        let all = Array2::from_shape_fn((count, images), |(i, _)| {
            let dropped = probability(i, count, self.plan.drop_path);
            if random.random_range(0.0..1.0f32) < dropped { 0.0 } else { 1.0 / (1.0 - dropped) }
        });
        all.select(Axis(1), &self.training.positions())
    }

    /// Validates, keeps the best, and reports.
    fn validate(&mut self, standing: &mut RunState, epoch: u64, observer: &mut dyn Observer) -> Result<()> {
        let averaged = self.recipe.ema;
        let Some(validation) = self.validation else { return Ok(()) };
        let (trainer, loader) = (&mut *self.trainer, validation.loader.clone().share());
        let (batch, teacher) = (trainer.batch, self.teacher.as_deref_mut());
        let tally = validation.tally(&self.recipe.loss, (loader, batch), teacher, |x| trainer.outputs(x, averaged))?;
        let tally = tally.of_all()?;
        validation.loader.check_any(tally.images)?;
        let mut report = ValidationReport {
            step: standing.position.step,
            epoch,
            val_loss: tally.loss(),
            val_top1: tally.top1(),
            val_spearman: tally.spearman(),
            val_images: tally.images,
            best: false,
        };
        report.best = standing.best.as_ref().is_none_or(|b| report.is_better_than(b));
        if report.best {
            if parallel::is_first() {
                observer.best(&self.trainer.export(averaged)?)?;
            }
            standing.best = Some(report.clone());
        }
        observer.validated(&report)
    }

    /// What another model that takes what the trained one takes, such as the file that was made of it, comes to on the
    /// images of a validation. This process judges alone; `None` where there is nothing to validate on.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a value of the loss that it does not compute, those of the data and of the runtime.
    pub fn judge(&mut self, model: &Model, of: &ValidationReport) -> Result<Option<ValidationReport>> {
        let (Some(validation), loss) = (self.validation, &self.recipe.loss) else { return Ok(None) };
        let logits = with_logits(model, &Typing::new(model)?)?;
        let mut model = logits.unwrap_or_else(|| model.clone());
        let mut values: Vec<String> = model.graph().output.iter().map(|o| o.name().to_string()).collect();
        let compared = loss.student_values().into_iter().filter(|v| !values.contains(v)).collect::<Vec<_>>();
        values.extend(compared);
        give(&mut model, &values)?;
        let mut session = self.trainer.load_other(&model)?;
        let names = session.outputs().to_vec();
        let (batches, teacher) = ((validation.loader.clone(), self.trainer.batch), self.teacher.as_deref_mut());
        let tally = validation.tally(loss, batches, teacher, |images| {
            let outputs = session.run(images.view())?;
            Ok(names.iter().cloned().zip(outputs).collect())
        })?;
        Ok(Some(ValidationReport {
            val_loss: tally.loss(),
            val_top1: tally.top1(),
            val_spearman: tally.spearman(),
            val_images: tally.images,
            ..of.clone()
        }))
    }
}

impl Validation {
    /// Adds up what the `outputs` of a model come to, in batches of a size.
    fn tally<'a>(
        &'a self,
        loss: &'a Loss,
        (loader, batch): (Loader, usize),
        mut teacher: Option<&mut Teacher>,
        mut outputs: impl FnMut(&Array4<f32>) -> Result<Vec<(String, ArrayD<f32>)>>,
    ) -> Result<Tally<'a>> {
        let mut tally = Tally::new(loss, self.labels.as_deref(), self.cosines.as_deref());
        for batch in loader.batches(batch) {
            let batch = batch?;
            let teacher = match &mut teacher {
                Some(teacher) => teacher.values(batch.for_teacher())?,
                None => Vec::new(),
            };
            tally.add(&batch, &outputs(&batch.images)?, &teacher)?;
        }
        Ok(tally)
    }
}

/// Batches of one update, and for each what is fed beside its images and targets.
#[derive(Default)]
struct Prepared {
    batches: Vec<TrainingBatch>,
    values: Vec<Vec<(String, ArrayD<f32>)>>,
}

impl Prepared {
    /// What every batch is fed with, by the names of the step graph's inputs; `input` is that of the images.
    fn feeds<'a>(&'a self, input: &'a str, loss: &Loss) -> Result<Vec<Feeds<'a>>> {
        let mut all: Vec<Feeds> = Vec::with_capacity(self.batches.len());
        for (batch, values) in self.batches.iter().zip(&self.values) {
            let mut feed: Feeds = vec![(input, batch.images.view().into_dyn())];
            if loss.needs_targets() {
                let Some(targets) = &batch.targets else {
                    bail!(Usage, "the loss needs labels and the data set has none")
                };
                feed.push((TARGETS, targets.view().into_dyn()));
            }
            feed.extend(values.iter().map(|(n, v)| (n.as_str(), v.view())));
            all.push(feed);
        }
        Ok(all)
    }
}

/// Evaluates a classifier, which gives logits, on labelled images. Where its classes are `independent`, its loss is
/// their binary cross-entropy.
///
/// # Errors
/// [`ErrorKind::Usage`] where the first output is no matrix of logits, and those of the data and of the runtime.
pub fn evaluate(
    session: &mut Session,
    validation: &Validation,
    names: Option<&[String]>,
    independent: bool,
    mut done: impl FnMut(usize),
) -> Result<Evaluation> {
    let Some(labels) = &validation.labels else {
        return Err(
            Error::new(ErrorKind::Usage, "the data set has no labels").hint("compare models with `offshoot compare`")
        );
    };
    let mut scores = EvaluationCounts::of(independent);
    for batch in validation.loader.batches(session.batch) {
        let batch = batch?;
        let outputs = session.run(batch.images.view())?;
        let Some(logits) = outputs.first().filter(|o| o.ndim() == 2) else {
            return Err(Error::new(ErrorKind::Usage, "the model's first output is not [batch, classes]")
                .hint("`offshoot compare` compares models of other outputs"));
        };
        let of_batch: Vec<u32> = batch.indices.iter().filter_map(|&i| labels.get(i).copied()).collect();
        scores.add(matrix(logits)?, &of_batch);
        done(scores.images());
    }
    Ok(scores.finish(names))
}
