//! What `tune` and `run` have in common: a session made of flags, and what is written while it goes.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::labelled::{self, Laid, Opened, check_scores, check_views, open_for_data, open_teacher};
use super::scored::Embedding;
use super::source::Noun;
use super::{agree, in_type, named, open_to_run, plain, skipped, warn_skipped};
use crate::anatomy::ActivationKind;
use crate::axes::carry_value_info;
use crate::cli::common::{DataFlags, OpenFlags, OptimizerKind, RuntimeFlags, TrainingFlags, TransformFlags};
use crate::cli::output::{self, Bars, check_distinct, check_output, count, write_text};
use crate::cli::signals;
use crate::data::{Arrays, Augmentation, InputTransform, Scale, ScoresReport, TrainingOptions};
use crate::descendant;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::CLASSES;
use crate::onnx::Model;
use crate::parallel;
use crate::report::{Curve, Measure, training_page, training_plot};
use crate::rounding::{self, Dtype, Rounded};
use crate::runtime::{Device, Runtime, RuntimeKind};
use crate::training::{
    Data, Goal, HoldOut, LearningRate, Observer, Open, Operators, Optimiser, Options, Recipe, RunOptions, Separated,
    Session, Setup, StepReport, Summary, Trainer, ValidationReport, of_inputs, of_rows,
};

/// What is trained, on what and how.
pub struct Asked<'c> {
    /// The model.
    pub model: &'c Path,
    /// How student and teacher are opened.
    pub open: [OpenFlags; 2],
    /// The data.
    pub data: &'c DataFlags,
    /// The training.
    pub training: &'c TrainingFlags,
    /// How images are prepared.
    pub transform: &'c TransformFlags,
    /// What graphs run on.
    pub runtime: &'c RuntimeFlags,
    /// Classes of a new classifier.
    pub classes: Option<usize>,
    /// The scores that stand for cosines of 0 and of 1; else scores are cosines.
    pub score_range: Option<[f64; 2]>,
    /// Nothing will be trained.
    pub dry_run: bool,
}

/// What is to be written, and whether an earlier run goes on.
#[derive(Default)]
pub struct Wanted<'c> {
    /// The tuned model.
    pub output: Option<&'c Path>,
    /// The step graph, instead of a tuned model.
    pub step: Option<&'c Path>,
    /// The type of the tuned model.
    pub dtype: Option<Dtype>,
    /// A line for every update and validation.
    pub metrics: Option<&'c Path>,
    /// A plot of loss and accuracy.
    pub plot: Option<&'c Path>,
    /// A report.
    pub report: Option<&'c Path>,
    /// The checkpoint, where it is not to stand beside the output.
    pub checkpoint: Option<&'c Path>,
    /// Updates between checkpoints.
    pub checkpoint_every: Option<u64>,
    /// Go on from the checkpoint.
    pub resume: bool,
    /// Overwrite what is there.
    pub force: bool,
}

/// A run of training that the command line asked for.
pub struct Training<'c> {
    /// Model, data and teacher.
    pub setup: Setup,
    asked: &'c Asked<'c>,
    wanted: &'c Wanted<'c>,
    outputs: Outputs,
    bars: Bars,
    /// The warning about the batch that the model declares.
    batch: Option<String>,
    /// The arrays that it learns from, where these are no pictures.
    laid: Option<Laid>,
    /// The scores that it learns, where there are some.
    scores: Option<ScoresReport>,
}

impl<'c> Training<'c> {
    /// Checks the outputs, opens what is asked for, and says what was found.
    pub fn new(asked: &'c Asked<'c>, wanted: &'c Wanted<'c>) -> Result<Training<'c>> {
        let outputs = Outputs::new(asked, wanted)?;
        let bars = Bars::default();
        // A new classifier pools by itself.
        let pooling = asked.open[0].pooling.filter(|_| asked.classes.is_some());
        let [student, of_teacher] = &match pooling {
            None => asked.open.clone(),
            Some(_) => asked.open.clone().map(|open| OpenFlags { pooling: None, ..open }),
        };
        check_views(asked.data, asked.training)?;
        check_scores(asked.data, asked.training, asked.classes)?;
        let teacher = asked.training.teacher.as_deref();
        // A child may lie without the tokenizer of its ancestor, its teacher.
        let mut flags = asked.data.with_tokenizer([Some(asked.model), teacher].into_iter().flatten());
        flags.scale = flags.score_column.is_some().then(|| asked.score_range.map_or(Scale::COSINES, Scale::asked));
        let flags = &flags;
        let (val, ignore_labels) = (asked.training.val.as_deref(), asked.training.ignores_labels());
        // Where nothing is cut off to validate on, the first ones are learned from.
        let first = asked.transform.limit().filter(|_| val.is_some() || asked.training.val_split == Some(0.0));
        let to_learn = labelled::Wanted { data: flags, val, ignore_labels, first };
        let opened = open_for_data(asked.model, student, to_learn, asked.runtime, asked.transform)?;
        let Opened { model, batch, arrays: laid } = opened;
        if let Some(laid) = &laid {
            check_rows(asked, wanted, &model, laid)?;
        }
        let (scores, embedding) = learned_scores(asked.model, flags, laid.as_ref())?.unzip();
        let data = named(flags.path(), open_data(asked, flags, laid.as_ref(), &bars))?;
        agree(asked.model, || data.fingerprint())?;
        let runtime = Runtime::start(&asked.runtime.options())?;
        let rows = laid.as_ref().map(|laid| laid.rows.clone());
        let mut options = Options { pooling, rows, ..options(asked, wanted, &outputs, &runtime) };
        options.goal.embedding = embedding;
        // The teacher's pictures are prepared as it says itself.
        let own = TransformFlags::default();
        let open = |path: &Path| match &laid {
            None => open_to_run(path, of_teacher, asked.runtime, &own),
            Some(laid) => open_teacher(path, of_teacher, asked.runtime, flags, laid),
        };
        let teacher = teacher.map(|path| (path, &open as Open));
        let setup = Setup::new(runtime, model, data, teacher, options, &bars)?;
        Ok(Training { setup, asked, wanted, outputs, bars, batch, laid, scores })
    }

    /// Trains, and writes everything that was asked for.
    pub fn run(mut self) -> Result<Outcome> {
        let Some(output) = self.wanted.output else {
            return Err(Error::new(ErrorKind::Usage, "no output was named").hint("give -o TUNED.onnx, or --dry-run"));
        };
        let (mut session, prepared) = self.setup.session(&self.bars)?;
        let runtime = &self.setup.runtime;
        session.plan.stop = Some(signals::stop_on_request());
        // Labels that were matched to the model's classes have one name an output.
        let names = self.setup.data.dataset.classes().filter(|_| session.trainer.classes.is_some());
        let original = self.laid.as_ref().map(|laid| &laid.original);
        let mut watch =
            RunProgress { original, ..RunProgress::new(self.asked, self.wanted, &self.outputs, output, names)? };
        let images = session.images();
        let arrays = self.laid.as_ref().map(|laid| &laid.arrays);
        let noun = if self.scores.is_some() { "pairs" } else { Noun::of(arrays).many };
        watch.noun = noun;
        output::note(&format!(
            "{} of {} parameters in {} weights, {} {} to train on, {} to validate on, {}{}",
            count(session.trainer.selection.parameters() as u64),
            count(crate::learngene::parameters(self.setup.model.graph())),
            session.trainer.selection.trained.len(),
            images[0],
            noun,
            images[1],
            runtime.describe(),
            processes(runtime, session.batch())?,
        ));
        let result = session.fit(&mut watch);
        watch.bar.finish_and_clear();
        if result.is_ok() {
            // One that several processes came upon, in different epochs, counts for each.
            skipped(session.training.skipped())?;
        } else {
            warn_skipped(&session.training.skipped());
        }
        if let (Err(e), Some(path)) = (&result, &session.plan.checkpoint)
            && e.kind() == ErrorKind::Check
            && path.exists()
        {
            output::warn(&format!("the checkpoint `{}` holds the last good state", path.display()));
        }
        let trainer = &session.trainer;
        let notes: Vec<&String> = self.batch.iter().chain(&prepared.batch).collect();
        let mut batch = json!({"images": session.batch(), "way": trainer.batching.name(), "notes": notes});
        if let [_, ..] = trainer.lengths() {
            batch["lengths"] = json!(trainer.lengths());
        }
        let outcome = watch.finish(trainer, result?, (images, session.batch()), self.asked, runtime)?;
        let best = outcome.summary.best.as_ref().filter(|_| self.wanted.dtype.is_some_and(Dtype::is_int8));
        let rounding = best.map(|best| rounding_loss(&mut session, output, self.asked, self.laid.as_ref(), best));
        Ok(Outcome {
            rounding: rounding.transpose()?.flatten(),
            activation: self.setup.activation.map(|a| a.kind),
            batch,
            input: Some(self.laid.map_or(json!(prepared.input), |laid| json!(laid.report))),
            separated: self.setup.separated,
            teacher: prepared.teacher,
            class_order: self.setup.teacher.and_then(|t| t.classes).map(|(_, places)| places),
            scores: self.scores,
            ..outcome
        })
    }
}

/// Validations of the best model before its weights were rounded and, by the file, afterwards; says both. Where the
/// file cannot be judged, that is said: training was not in vain.
fn rounding_loss(
    session: &mut Session,
    output: &Path,
    asked: &Asked,
    laid: Option<&Laid>,
    best: &ValidationReport,
) -> Result<Option<Rounding>> {
    let mut judge = || {
        // What was asked of the model that came in is in the file by now, but for values that are fed.
        let OpenFlags { feed, input_size, allow_external_links, .. } = asked.open[0].clone();
        let open = OpenFlags { feed, input_size, allow_external_links, written: true, ..OpenFlags::default() };
        let file = open.opening().read(output)?.model;
        let of_rows = laid.map(|laid| of_rows(&file, &laid.rows)).transpose()?;
        session.judge(of_rows.as_ref().unwrap_or(&file), best)
    };
    let judged = parallel::first(|| match judge() {
        Ok(after) => Ok(after.map(|after| Rounding { before: best.clone(), after })),
        Err(e) => {
            let why = e.marked();
            output::warn(&format!("the loss after rounding is not known, since the file cannot be judged: {why}"));
            Ok(None)
        }
    })?;
    if let Some(Rounding { before, after }) = &judged {
        output::note(&format!("rounded to int8: {}; before: {}", quality(after), quality(before)));
    }
    Ok(judged)
}

/// The scores of pairs, where some are learned, and the output whose cosines follow them; says what is assumed.
fn learned_scores(model: &Path, flags: &DataFlags, laid: Option<&Laid>) -> Result<Option<(ScoresReport, String)>> {
    let (Some(column), Some(scale), Some(laid)) = (&flags.score_column, flags.scale, laid) else { return Ok(None) };
    let report = ScoresReport::new(column, scale, laid.arrays.scores());
    output::note(&report.line());
    let embedding = named(model, Embedding::find(&laid.arrays.fixed(&laid.original), &laid.arrays))?;
    Ok(Some((report, embedding.output)))
}

/// Opens the data, or lays arrays into rows.
fn open_data(asked: &Asked, flags: &DataFlags, laid: Option<&Laid>, bars: &Bars) -> Result<Data> {
    let training = asked.training;
    let ignore_labels = training.ignores_labels();
    let cut = HoldOut { share: training.val_split, seed: training.seed, limit: asked.transform.limit() };
    let Some(Laid { rows, arrays, other, .. }) = laid else {
        return Data::open(flags.path(), training.val.as_deref(), &flags.options(ignore_labels), cut, bars);
    };
    let dataset = |arrays: &Arrays| {
        let set = rows.dataset(arrays, ignore_labels)?;
        match flags.scale {
            Some(scale) => set.in_pairs(arrays.scores().iter().map(|&score| scale.cosine(score)).collect()),
            None => Ok(set),
        }
    };
    let set = dataset(arrays)?;
    let other = other.as_ref().map(dataset).transpose()?;
    Ok(Data::cut(flags.path(), set, other, cut, bars))
}

/// Checks that nothing is asked for that a model of rows cannot be given.
fn check_rows(asked: &Asked, wanted: &Wanted, model: &Model, laid: &Laid) -> Result<()> {
    let refuse = |what: &str, hint: &str| Err(Error::new(ErrorKind::Unsupported, what).at(asked.model).hint(hint));
    if wanted.step.is_some() {
        return refuse("a step graph takes images, and not arrays by their names", "leave --emit-step out");
    }
    let student = |names: &&String| names.split_once('=').map_or(names.as_str(), |(own, _)| own).to_string();
    let is_output = |name: &str| model.graph().output.iter().any(|o| o.name() == name);
    if let Some(inner) =
        asked.training.feature.iter().find(|f| !is_output(&student(f))).filter(|_| laid.rows.mask.is_some())
    {
        return refuse(
            &format!("--feature {inner} would compare padding, too: only outputs are told apart from it"),
            "name an output of the model",
        );
    }
    Ok(())
}

/// What is asked of the session.
fn options(asked: &Asked, wanted: &Wanted, outputs: &Outputs, runtime: &Runtime) -> Options {
    let (flags, usual) = (asked.training, Goal::default());
    Options {
        classes: asked.classes,
        pooling: None,
        goal: Goal {
            labels: flags.loss,
            smoothing: flags.label_smoothing as f32,
            distill: flags.distill,
            temperature: flags.temperature.map_or(usual.temperature, |t| t as f32),
            features: flags.feature.clone(),
            feature_weight: flags.feature_weight.map_or(usual.feature_weight, |w| w as f32),
            embedding: None,
        },
        recipe: recipe(flags, runtime),
        plan: RunOptions {
            epochs: flags.epochs.into(),
            steps: flags.steps,
            schedule: flags.schedule,
            learning_rate: flags.lr,
            minimum_rate: flags.min_lr,
            warmup: flags.warmup.unwrap_or(f64::from(flags.epochs) / 20.0),
            ema_decay: flags.ema.unwrap_or(0.0),
            drop_path: flags.drop_path as f32,
            validate_start: true,
            seed: flags.seed,
            checkpoint: outputs.checkpoint.clone(),
            checkpoint_every: wanted.checkpoint_every,
            resume: wanted.resume,
            stop: None,
        },
        batches: TrainingOptions {
            shuffle: !flags.no_shuffle,
            seed: flags.seed,
            augmentation: match asked.data.is_given() {
                true => Augmentation::none(),
                false => flags.augment.clone().unwrap_or_else(Augmentation::light),
            },
            mixup: flags.mixup,
            cutmix: flags.cutmix,
            strict: asked.data.strict,
            threads: 0,
            share: (parallel::rank(), parallel::size()),
            ..TrainingOptions::default()
        },
        transform: asked.transform.preprocess(),
        limit: asked.transform.limit(),
        train: flags.train.clone(),
        freeze: flags.freeze.clone(),
        require_improvement: flags.require_improvement,
        rows: None,
        dry_run: asked.dry_run,
    }
}

/// How it is learned; the loss follows from the models.
fn recipe(flags: &TrainingFlags, runtime: &Runtime) -> Recipe {
    let betas = flags.betas.clone().unwrap_or_else(|| vec![0.9, 0.999]);
    let beta = |i: usize, default: f64| betas.get(i).copied().unwrap_or(default);
    let operators = flags.operators.unwrap_or(Operators::of(runtime, flags.precision));
    Recipe {
        batch: flags.batch_size as usize,
        optimiser: match flags.optimizer {
            OptimizerKind::Adamw => Optimiser::AdamW { beta1: beta(0, 0.9), beta2: beta(1, 0.999), epsilon: 1e-8 },
            OptimizerKind::Sgd => Optimiser::Sgd { momentum: flags.momentum },
        },
        weight_decay: flags.weight_decay as f32,
        layer_decay: flags.layer_decay as f32,
        clip: flags.clip.map(|v| v as f32),
        accumulate: flags.accumulate as usize,
        ranks: parallel::size(),
        ema: flags.ema.is_some(),
        drop_path: flags.drop_path as f32,
        recompute: flags.recompute,
        operators,
        precision: flags.precision,
        ..Recipe::default()
    }
}

/// What validations say of the best model before and after its weights were rounded.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Rounding {
    before: ValidationReport,
    after: ValidationReport,
}

/// What a run of training left behind.
pub struct Outcome {
    /// Loss and accuracy over the run.
    pub curve: Curve,
    /// Where it began, what was best, and the learning rate.
    pub summary: Summary,
    /// Images to train on and to validate on.
    pub images: [usize; 2],
    /// Weights that the file holds once and that are several parameters.
    pub separated: Vec<Separated>,
    /// How the teacher saw the images, where there was one.
    pub teacher: Option<InputTransform>,
    /// Where each of the student's classes lies among the teacher's, where their order is another.
    pub class_order: Option<Vec<usize>>,
    /// Which weights are in int8, where that was asked for.
    pub int8: Option<Rounded>,
    /// What rounding to int8 did to the best model, where that was asked for and there are samples to validate on.
    pub rounding: Option<Rounding>,
    /// The last validation.
    pub last: Option<ValidationReport>,
    /// Updates.
    pub steps: u64,
    /// Elements that were trained.
    pub trained_parameters: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// The last model, where it is another file than the best.
    pub last_model: Option<PathBuf>,
    /// What the model is fed with.
    pub input: Option<Value>,
    /// What it ran on.
    pub runtime: RuntimeKind,
    /// What stands behind the model's logits.
    pub activation: Option<ActivationKind>,
    /// How a batch came about.
    pub batch: Value,
    /// The scores that it learned from, where these were some of pairs.
    pub scores: Option<ScoresReport>,
}

impl Outcome {
    /// Checks that training was worth it, where that was asked for.
    ///
    /// # Errors
    /// [`ErrorKind::Check`] where the start is the best model.
    pub fn check(&self, flags: &TrainingFlags) -> Result<()> {
        match &self.summary.best {
            Some(best) if flags.require_improvement && best.epoch == 0 => Err(Error::new(
                ErrorKind::Check,
                format!("no epoch was better than the model was before training ({})", quality(best)),
            )
            .hint("lower --lr, or give more samples; the output is the model as it was before training")),
            _ => Ok(()),
        }
    }
}

/// Loss and accuracy of a validation, in words.
fn quality(report: &ValidationReport) -> String {
    let mut text = format!("validation loss {:.4}", report.val_loss);
    if let Some(top1) = report.val_top1 {
        text += &format!(", accuracy {:.2} %", 100.0 * top1);
    }
    if let Some(spearman) = report.val_spearman {
        text += &format!(", Spearman {spearman:.4}");
    }
    text
}

/// How several processes work together, in words.
fn processes(runtime: &Runtime, batch: usize) -> Result<String> {
    let way = match (parallel::size(), runtime.device) {
        (1, _) => return Ok(String::new()),
        (_, Device::Cpu) => "",
        _ if parallel::between_gpus()? => ", gradients summed through NCCL",
        _ => ", gradients summed over the host: no NCCL was found",
    };
    Ok(format!(", {} processes with batches of {batch} each{way}", parallel::size()))
}

/// Files that the command writes.
struct Outputs {
    last: Option<PathBuf>,
    checkpoint: Option<PathBuf>,
}

impl Outputs {
    /// Derives and checks them before any work is done.
    fn new(asked: &Asked, wanted: &Wanted) -> Result<Self> {
        let beside = |suffix: &str| -> Option<PathBuf> {
            let output = wanted.output?;
            let stem = output.file_stem()?.to_string_lossy().into_owned();
            Some(output.with_file_name(format!("{stem}.{suffix}")))
        };
        let last = beside("last.onnx");
        let checkpoint = wanted.checkpoint.map(Path::to_path_buf).or(beside("checkpoint.safetensors"));
        let trains = !asked.dry_run && wanted.step.is_none();
        let mut paths: Vec<PathBuf> = Vec::new();
        if trains {
            paths.extend(wanted.output.map(Path::to_path_buf).into_iter().chain(last.clone()));
        }
        let others = [wanted.plot, wanted.report, wanted.metrics, wanted.step];
        paths.extend(others.into_iter().flatten().map(Path::to_path_buf));
        paths.extend(wanted.step.iter().flat_map(|p| ["json", "safetensors"].map(|e| p.with_extension(e))));
        check_distinct(&paths)?;
        let inputs: Vec<&Path> = std::iter::once(asked.model).chain(asked.training.teacher.as_deref()).collect();
        for path in &paths {
            // A run that goes on writes where it has written before.
            check_output(path, &inputs, wanted.force || wanted.resume)?;
        }
        if let Some(path) = &checkpoint
            && trains
            && wanted.output.is_some()
        {
            if wanted.resume && !path.is_file() && parallel::is_first() {
                return Err(Error::new(ErrorKind::Usage, "there is no checkpoint to go on from")
                    .at(path)
                    .hint("leave --resume out, or name the checkpoint with --checkpoint"));
            }
            check_output(path, &inputs, true)?;
        }
        Ok(Outputs { last, checkpoint })
    }
}

/// Watches a run: the bar, the metrics file, and the best model.
struct RunProgress<'a> {
    bar: ProgressBar,
    output: &'a Path,
    last: Option<PathBuf>,
    metrics: Option<(PathBuf, BufWriter<File>)>,
    steps: Vec<StepReport>,
    validations: Vec<ValidationReport>,
    names: Option<String>,
    dtype: Option<Dtype>,
    /// What became of the weights, where they are in int8, once that was told.
    told: RefCell<Option<Option<Rounded>>>,
    /// The model that takes arrays by their names, where the trained one takes rows.
    original: Option<&'a Model>,
    /// What samples are called.
    noun: &'static str,
    runtime: RuntimeFlags,
    plot: Option<PathBuf>,
    report: Option<PathBuf>,
    begun: Instant,
    loss: f64,
    accuracy: Option<f64>,
}

impl<'a> RunProgress<'a> {
    fn new(
        asked: &Asked,
        wanted: &Wanted,
        outputs: &Outputs,
        output: &'a Path,
        names: Option<&[String]>,
    ) -> Result<Self> {
        let metrics = match wanted.metrics.filter(|_| parallel::is_first()) {
            None => None,
            Some(path) => {
                let file = File::options()
                    .create(true)
                    .write(true)
                    .truncate(!wanted.resume)
                    .read(true)
                    .open(path)
                    .map_err(|e| Error::io(path, e))?;
                Some((path.to_path_buf(), BufWriter::new(file)))
            }
        };
        Ok(RunProgress {
            bar: output::training_bar(),
            output,
            last: outputs.last.clone(),
            metrics,
            steps: Vec::new(),
            validations: Vec::new(),
            names: names.map(|n| serde_json::to_string(n).unwrap_or_default()),
            dtype: wanted.dtype,
            told: RefCell::new(None),
            original: None,
            noun: "images",
            runtime: asked.runtime.clone(),
            plot: wanted.plot.map(Path::to_path_buf),
            report: wanted.report.map(Path::to_path_buf),
            begun: Instant::now(),
            loss: f64::NAN,
            accuracy: None,
        })
    }

    /// Writes a line; whoever follows the file sees it at once. Where the file was moved away (log rotation), a new one
    /// is begun.
    fn line(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let Some((path, file)) = &mut self.metrics else { return Ok(()) };
        let failed = |e: std::io::Error| Error::io(path.as_path(), e);
        if !path.exists() {
            *file = BufWriter::new(File::options().create(true).append(true).open(&*path).map_err(failed)?);
        }
        let text = serde_json::to_string(value).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        writeln!(file, "{text}").and_then(|()| file.flush()).map_err(failed)
    }

    fn write(&self, trained: &Model, path: &Path) -> Result<()> {
        let taken_apart = self.original.map(|original| of_inputs(trained, original));
        let trained = taken_apart.as_ref().unwrap_or(trained);
        let mut model = descendant::simplify(trained)?;
        if let Some(names) = &self.names {
            model.set_metadata(CLASSES, names.clone());
        }
        if self.told.borrow().is_none() {
            *self.told.borrow_mut() = Some(in_type(&mut model, self.dtype, None)?);
        } else if let Some(dtype) = self.dtype {
            rounding::convert(&mut model, dtype)?;
        }
        carry_value_info(trained, &mut model);
        plain::write_model(path, &model, &self.runtime)?;
        Ok(())
    }

    /// Loss, rate and what was measured, over the run.
    fn curve(&self, asked: &Asked) -> Curve {
        Curve {
            losses: self.steps.iter().map(|s| (s.step, s.loss)).collect(),
            rates: self.steps.iter().map(|s| (s.step, s.lr)).collect(),
            validations: (self.validations.iter())
                .map(|v| (v.step, v.val_loss, v.val_top1.or(v.val_spearman)))
                .collect(),
            measure: if asked.data.score_column.is_some() { Measure::Spearman } else { Measure::Accuracy },
        }
    }

    /// Writes what is written at the end, and says how it went.
    fn finish(
        mut self,
        trainer: &Trainer,
        summary: Summary,
        (images, batch): ([usize; 2], usize),
        asked: &Asked,
        runtime: &Runtime,
    ) -> Result<Outcome> {
        let validated = images[1] > 0;
        if let Some((path, file)) = &mut self.metrics {
            file.flush().map_err(|e| Error::io(path.as_path(), e))?;
        }
        let last = trainer.export(asked.training.ema.is_some())?;
        match (validated, &self.last) {
            (true, Some(path)) => self.write(&last, path)?,
            _ => self.write(&last, self.output)?,
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        let curve = self.curve(asked);
        if let Some(path) = &self.plot {
            write_text(path, &training_plot(&curve)?)?;
        }
        if let Some(path) = &self.report {
            let [to_learn, to_validate] = match self.noun {
                "images" => ["Images to train on", "Images to validate on"],
                _ => ["Samples to train on", "Samples to validate on"],
            };
            let facts = [
                ("Model", asked.model.display().to_string()),
                ("Data", asked.data.path().display().to_string()),
                ("Updates", trainer.updates.to_string()),
                ("Trained parameters", trainer.selection.parameters().to_string()),
                ("Batch", batch.to_string()),
                (to_learn, images[0].to_string()),
                (to_validate, images[1].to_string()),
                ("Learning rate", summary.learning_rate.to_string()),
                ("Seconds", format!("{seconds:.0}")),
                ("Runtime", runtime.describe()),
            ];
            write_text(path, &training_page("Tuning", &facts, &curve)?)?;
        }
        let mut text = format!("{} updates in {seconds:.0} s", trainer.updates);
        if parallel::size() > 1 {
            let share = 100.0 * parallel::seconds() / seconds.max(f64::MIN_POSITIVE);
            text += &format!(" with {} processes, {share:.1} % of it for sums over them", parallel::size());
        }
        if let Some(s) = self.steps.last() {
            text += &format!(", last loss {:.4}", s.loss);
        }
        if let Some(best) = summary.best.as_ref().filter(|best| best.epoch > 0) {
            text += &format!(", best epoch {}: {}", best.epoch, quality(best));
        }
        output::note(&text);
        if summary.improved() == Some(false) {
            output::warn(&format!(
                "no epoch was better than the start: `{}` is the model as it was before training",
                self.output.display()
            ));
        }
        Ok(Outcome {
            summary,
            images,
            separated: Vec::new(),
            teacher: None,
            class_order: None,
            int8: self.told.into_inner().flatten(),
            rounding: None,
            last: self.validations.last().cloned(),
            curve,
            steps: trainer.updates,
            trained_parameters: trainer.selection.parameters(),
            seconds,
            last_model: self.last.filter(|_| validated),
            input: None,
            runtime: runtime.kind,
            activation: None,
            batch: Value::Null,
            scores: None,
        })
    }
}

impl Observer for RunProgress<'_> {
    fn begun(&mut self, rate: &LearningRate) -> Result<()> {
        self.bar.suspend(|| output::note(&format!("learning rate {rate}")));
        Ok(())
    }

    fn step(&mut self, report: &StepReport, total: u64) -> Result<()> {
        // What a person reads is smoothed over some twenty updates.
        let smooth = |old: f64, new: f64| if old.is_nan() { new } else { 0.95 * old + 0.05 * new };
        self.loss = smooth(self.loss, report.loss);
        self.accuracy = report.accuracy.map(|a| smooth(self.accuracy.unwrap_or(f64::NAN), a)).or(self.accuracy);
        self.bar.set_length(total);
        self.bar.set_position(report.step);
        let mut text = format!("epoch {} loss {:.4}", report.epoch, self.loss);
        if let Some(a) = self.accuracy {
            text += &format!(" accuracy {:.1} %", 100.0 * a);
        }
        self.bar.set_message(format!("{text} {:.0} {}/s", report.images_per_second, self.noun));
        self.line(report)?;
        self.steps.push(report.clone());
        Ok(())
    }

    fn validated(&mut self, report: &ValidationReport) -> Result<()> {
        let mut text = match report.epoch {
            0 => format!("before training: {}", quality(report)),
            epoch => format!("epoch {epoch}: {}", quality(report)),
        };
        if report.best && report.epoch > 0 {
            text += ", the best so far";
        }
        self.bar.suspend(|| output::note(&text));
        self.line(report)?;
        self.validations.push(report.clone());
        Ok(())
    }

    /// Lines of updates behind the checkpoint are made again: they go.
    fn resumed(&mut self, step: u64) -> Result<()> {
        let Some((path, _)) = &self.metrics else { return Ok(()) };
        let failed = |e: std::io::Error| Error::io(path.as_path(), e);
        let mut kept = String::new();
        for line in BufReader::new(File::open(path).map_err(failed)?).lines() {
            let line = line.map_err(failed)?;
            let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
            if value["step"].as_u64().is_some_and(|s| s <= step) {
                match value.get("loss") {
                    Some(_) => self.steps.extend(serde_json::from_value(value)),
                    None => self.validations.extend(serde_json::from_value(value)),
                }
                kept += &format!("{line}\n");
            }
        }
        write_text(path, &kept)?;
        let file = File::options().append(true).open(path).map_err(failed)?;
        self.metrics = Some((path.clone(), BufWriter::new(file)));
        Ok(())
    }

    fn best(&mut self, model: &Model) -> Result<()> {
        self.write(model, self.output)
    }
}
