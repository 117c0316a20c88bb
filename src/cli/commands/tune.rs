//! `offshoot tune`: training a model.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use ndarray::{ArrayD, IxDyn};
use serde_json::{Value, json};

use super::eval::{dataset, dataset_at, validation};
use super::{agree, in_type, keep_transform, named, open_to_run, opened, size_for, skipped, tell_input, warn_skipped};
use crate::anatomy::{ActivationKind, Anatomy, WeightKind, activation, class_factor};
use crate::axes::Typing;
use crate::cli::common::{DataFlags, LossKind, OpenFlags, OptimizerKind, RuntimeFlags, TrainingFlags, TransformFlags};
use crate::cli::output::{self, check_distinct, check_output, count, table, write_text};
use crate::cli::signals;
use crate::data::{
    Correspondence, Dataset, InputReport, InputShape, Preprocess, PreprocessFlags, Split, TrainingLoader,
    TrainingOptions, View, class_names,
};
use crate::descendant;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::FloatType;
use crate::learngene::Learngene;
use crate::metadata::{CLASSES, PREPROCESS, schema};
use crate::onnx::{Model, to_f32};
use crate::parallel;
use crate::report::{Curve, training_page, training_plot};
use crate::runtime::{self, Device, Kind, Runtime};
use crate::training::{
    Batching, CLASSIFIER_IMAGES, LearningRate, Loss, Memory, Observer, Operators, Optimiser, Plan, Pooling, Precision,
    Recipe, Run, Selection, Separated, StepReport, Steps, Summary, Teacher, Term, Trainer, Validation,
    ValidationReport, add_classifier, checkpoint, fit_classifier, has_classifier, is_independent, said_of, separate,
    trainable_form,
};

/// `offshoot tune`.
#[derive(Args, Debug)]
pub struct TuneArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// Replace the classifier by one of this many classes; a model without one is cut after its encoder and gets one
    #[arg(long, value_name = "N")]
    pub classes: Option<usize>,
    /// What a new classifier behind an encoder looks at
    #[arg(long, value_enum)]
    pub pooling: Option<Pooling>,
    #[command(flatten)]
    pub training: TrainingFlags,
    /// The tuned model to write: the best by validation; the last stands beside it as NAME.last.onnx
    #[arg(short, long, value_name = "TUNED.onnx")]
    pub output: Option<PathBuf>,
    /// Floating-point type that the tuned model computes in; its inputs and outputs are float32 [default: as the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatType>,
    /// Overwrite existing outputs
    #[arg(long)]
    pub force: bool,
    /// List what is trained and what is not, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the step graph and STEP.json, which describes it, and train nothing
    #[arg(long, value_name = "STEP.onnx", conflicts_with_all = ["dry_run", "resume"])]
    pub emit_step: Option<PathBuf>,

    /// Write a JSON line for every update and every validation
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Output")]
    pub metrics: Option<PathBuf>,
    /// Write a plot of loss and accuracy (SVG)
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    /// Write a report (HTML, one file)
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    pub report: Option<PathBuf>,
    /// Checkpoint [default: beside the output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub checkpoint: Option<PathBuf>,
    /// Updates between checkpoints; there is one at the end of every epoch
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// Go on from the checkpoint
    #[arg(long, help_heading = "Output")]
    pub resume: bool,

    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// Runs the command.
pub fn run(c: &TuneArgs) -> Result<()> {
    let Some(outcome) = tune(c)? else { return Ok(()) };
    if c.json {
        output::print_json(&outcome.describe(c))?;
    }
    outcome.check(&c.training)
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
    pub teacher: Option<View>,
    /// Where each of the student's classes lies among the teacher's, where their order is another.
    pub class_order: Option<Vec<usize>>,
    /// The last validation.
    pub last: Option<ValidationReport>,
    /// Updates.
    pub steps: u64,
    /// Elements that were trained.
    pub trained_parameters: usize,
    /// Seconds that it took.
    pub seconds: f64,
    last_model: Option<PathBuf>,
    input: Option<InputReport>,
    runtime: Kind,
    /// What stands behind the model's logits.
    activation: Option<ActivationKind>,
    /// How a batch came about.
    batch: Value,
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
            .hint("lower --lr, or give more images; the output is the model as it was before training")),
            _ => Ok(()),
        }
    }

    fn describe(&self, c: &TuneArgs) -> Value {
        json!({
            "schema": schema::TUNE,
            "output": c.output,
            "last": self.last_model,
            "steps": self.steps,
            "trained_parameters": self.trained_parameters,
            "seconds": self.seconds,
            "last_loss": self.curve.losses.last().map(|l| l.1),
            "images": {"training": self.images[0], "validation": self.images[1]},
            "learning_rate": self.summary.learning_rate,
            "start": self.summary.start,
            "best": self.summary.best,
            "improved": self.summary.improved(),
            "separated": self.separated,
            "teacher": self.teacher.as_ref().map(|view| json!({
                "model": c.training.teacher, "preprocess": view.preprocess, "class_order": self.class_order,
            })),
            "last_validation": self.last,
            "input": self.input,
            "runtime": self.runtime,
            "activation": self.activation,
            "batch": self.batch,
        })
    }
}

/// Loss and accuracy of a validation, in words.
fn quality(report: &ValidationReport) -> String {
    let mut text = format!("validation loss {:.4}", report.val_loss);
    if let Some(top1) = report.val_top1 {
        text += &format!(", accuracy {:.2} %", 100.0 * top1);
    }
    text
}

/// Trains and writes everything that was asked for; `None` where nothing was to be trained.
pub fn tune(c: &TuneArgs) -> Result<Option<Outcome>> {
    let opens = match &c.training.teacher {
        None => [c.open; 2],
        Some(teacher) => size_for([&c.model, teacher], c.open)?,
    };
    tune_opened(c, opens)
}

/// [`tune`] with flags of their own for opening student and teacher.
pub fn tune_opened(c: &TuneArgs, [student, of_teacher]: [OpenFlags; 2]) -> Result<Option<Outcome>> {
    let outputs = Outputs::new(c)?;
    let (mut model, batch_note) = opened(&c.model, student, Some(&c.runtime), Some(&c.transform))?;
    let mut data = named(&c.data.data, Data::open(c))?;
    agree(&c.model, || data.fingerprint())?;
    let runtime = Runtime::start(&c.runtime.options())?;
    prepare_classifier(c, &mut model, &data, &runtime)?;
    let separated = named(&c.model, separate(&mut model))?;
    say_separated(&separated);
    let typing = named(&c.model, Typing::new(&model))?;
    let image = typing.image_size();
    let behind = activation(&typing);
    if let Some(a) = &behind {
        output::note(&format!("the model {}", said_of(a)));
    }
    // The teacher's pictures are prepared as it says itself.
    let own = TransformFlags::default();
    let teacher = c.training.teacher.as_ref().map(|p| open_to_run(p, of_teacher, &c.runtime, &own)).transpose()?;
    if let Some(a) = teacher.as_ref().and_then(|t| activation(&Typing::new(t).ok()?)) {
        output::note(&format!("the teacher {}", said_of(&a)));
    }
    let loss = named(&c.model, loss(c, &model, teacher.as_ref(), data.dataset.labels().is_some()))?;
    if let (Some(path), Some(teacher)) = (&c.training.teacher, &teacher) {
        // One that cannot be typed has its say when it runs.
        if let Ok(other) = Typing::new(teacher) {
            check_teacher([&c.model, path], &typing, &other, &loss)?;
        }
    }
    let places = match (&c.training.teacher, &teacher) {
        (Some(path), Some(teacher)) => classes_of_teacher([&c.model, path], [&model, teacher], &data, &loss),
        _ => None,
    };
    let recipe = recipe(c, &runtime, loss);
    if c.dry_run || c.emit_step.is_some() {
        drop(typing);
        match &c.emit_step {
            Some(path) => emit_step(c, path, &model, image, &recipe)?,
            None => dry_run(c, &model, image, &recipe, &separated)?,
        }
        return Ok(None);
    }
    let Some(output) = &c.output else {
        return Err(Error::new(ErrorKind::Usage, "no output was named").hint("give -o TUNED.onnx, or --dry-run"));
    };
    if runtime.device == Device::Cuda {
        advise(&model, image, &recipe)?;
    } else if recipe.precision == Precision::Bf16 {
        return Err(Error::new(ErrorKind::Usage, "no runtime trains in bfloat16 on the processor")
            .hint("use --precision fp16, or a GPU with --device cuda"));
    }
    let input = InputShape::of(&typing)?;
    let preprocess = data.dataset.preprocess(&c.transform.preprocess(), model.metadata(PREPROCESS), input)?;
    let report = InputReport::new(&model, &typing, preprocess.as_ref());
    tell_input(&report);
    let mut validating = data.validation(c, &model, &typing)?;
    if validating.is_none() && c.training.require_improvement {
        return Err(Error::new(ErrorKind::Usage, "without images to validate on no improvement can be told")
            .hint("give --val DATA, or a --val-split above 0"));
    }
    drop(typing);
    keep_transform(&mut model, preprocess.as_ref(), None)?;
    let mut trainer =
        named(&c.model, Trainer::new(&runtime, &model, image, &recipe, &c.training.train, &c.training.freeze))?;
    let (batch_way, said) = batching(trainer.batching, trainer.batch);
    said.iter().for_each(|text| output::note(text));
    if let Some((_, classes)) = &trainer.classes {
        data.match_classes(&model, *classes)?;
        if let Some(validating) = &mut validating {
            validating.labels = data.other.as_ref().unwrap_or(&data.dataset).labels().map(<[u32]>::to_vec);
        }
    }
    let classes = trainer.classes.as_ref().map(|(_, n)| *n);
    let options = TrainingOptions {
        batch_size: trainer.batch,
        shuffle: !c.training.no_shuffle,
        seed: c.training.seed,
        augmentation: c.training.augment.clone(),
        mixup: c.training.mixup,
        cutmix: c.training.cutmix,
        classes,
        strict: c.data.strict,
        threads: 0,
        share: (parallel::rank(), parallel::size()),
    };
    let own = View { preprocess: preprocess.clone(), layout: input.layout };
    let seen = match (&c.training.teacher, &teacher) {
        (Some(path), Some(teacher)) => Some(named(path, seen_by_teacher(c, &data, teacher, &own, image))?),
        _ => None,
    };
    let other = seen.as_ref().map(|(view, _)| view.clone()).filter(|view| *view != own);
    if let (Some(path), Some(view)) = (&c.training.teacher, &other) {
        say_seen(path, view);
    }
    let training =
        TrainingLoader::new(data.dataset.clone(), data.split.training.clone(), preprocess, input.layout, options)?
            .with_teacher(other.clone())?;
    if let Some(validating) = &mut validating {
        validating.loader = validating.loader.clone().with_teacher(other.clone())?;
    }
    let mut teacher = match (&teacher, &seen) {
        (Some(t), Some((_, image))) => {
            let teacher = Teacher::new(&runtime, t, &recipe.loss, trainer.batch, *image)?;
            Some(match &places {
                Some((value, places)) => teacher.with_classes(value, places.clone()),
                None => teacher,
            })
        }
        _ => None,
    };
    let plan = plan(c, &outputs);
    let mut watch = Watch::new(c, &outputs, output, trainer.classes.is_some(), &data)?;
    let images = [training.len(), validating.as_ref().map_or(0, |v| v.loader.len())];
    output::note(&format!(
        "{} of {} parameters in {} weights, {} images to train on, {} to validate on, {}{}",
        count(trainer.selection.parameters() as u64),
        count(crate::learngene::parameters(model.graph())),
        trainer.selection.trained.len(),
        images[0],
        images[1],
        runtime.describe(),
        processes(&runtime, trainer.batch)?,
    ));
    let mut run = Run {
        trainer: &mut trainer,
        recipe: &recipe,
        training: &training,
        validation: validating.as_ref(),
        teacher: teacher.as_mut(),
        plan: &plan,
    };
    let result = run.go(&mut watch);
    watch.bar.finish_and_clear();
    if result.is_ok() {
        // One that several processes came upon, in different epochs, counts for each.
        skipped(training.skipped())?;
    } else {
        warn_skipped(&training.skipped());
    }
    if let (Err(e), Some(path)) = (&result, &plan.checkpoint)
        && e.kind() == ErrorKind::Check
        && path.exists()
    {
        output::warn(&format!("the checkpoint `{}` holds the last good state", path.display()));
    }
    let outcome = watch.finish(&trainer, result?, images, c, &runtime)?;
    let batch =
        json!({"images": trainer.batch, "way": batch_way, "notes": batch_note.iter().chain(&said).collect::<Vec<_>>()});
    Ok(Some(Outcome {
        activation: behind.map(|a| a.kind),
        batch,
        input: Some(report),
        separated,
        teacher: seen.map(|(view, _)| view),
        class_order: places.map(|(_, places)| places),
        ..outcome
    }))
}

/// How batches come about, in a word and, where the file fixes another size than was asked for, in a line.
fn batching(way: Batching, images: usize) -> (&'static str, Option<String>) {
    match way {
        Batching::Own => ("own", None),
        Batching::Opened(fixed) => {
            let text = format!(
                "the file fixes batches of {fixed}: its batch axis is opened for training, on {images} images at a time; the file keeps it"
            );
            ("opened", Some(text))
        }
        Batching::Gathered { fixed, steps } => {
            let text = format!(
                "the file fixes batches of {fixed}, and its batch axis cannot be opened: gradients of {steps} steps are gathered for a batch of {images} images"
            );
            ("gathered", Some(text))
        }
    }
}

/// Checks that student and teacher say things that can be compared, before anything is trained.
///
/// # Errors
/// [`ErrorKind::Usage`] where their classes or compared values differ in number; it names both files.
fn check_teacher([student, teacher]: [&Path; 2], own: &Typing, other: &Typing, loss: &Loss) -> Result<()> {
    for (_, term) in &loss.terms {
        let (Term::Distillation { student: a, teacher: b, .. } | Term::Imitation { student: a, teacher: b }) = term
        else {
            continue;
        };
        // What is not there, each model says for itself.
        let (Some(x), Some(y)) = (own.shape(a), other.shape(b)) else { continue };
        let (x, y) = (x.get(1..).unwrap_or_default(), y.get(1..).unwrap_or_default());
        if x == y {
            continue;
        }
        let (student, teacher) = (student.display(), teacher.display());
        return Err(match (term, x, y) {
            (Term::Distillation { .. }, [x], [y]) => Error::new(
                ErrorKind::Usage,
                format!("the student `{student}` tells {x} classes apart and the teacher `{teacher}` {y}"),
            )
            .hint(format!(
                "give a teacher of the same classes, or --classes {y} and its data; --feature compares values behind other classifiers"
            )),
            _ => Error::new(
                ErrorKind::Usage,
                format!("for an image `{a}` of the student `{student}` is {x:?} and `{b}` of the teacher `{teacher}` is {y:?}"),
            )
            .hint("a loss compares values of one shape: give another teacher, or --feature STUDENT=TEACHER with values that are alike"),
        });
    }
    Ok(())
}

/// The value of the teacher that holds its classes, and where each of the student's lies there, where names say that the order is another.
/// A student without names has the order of the data's labels. What names do not settle is said.
fn classes_of_teacher(
    [student, teacher]: [&Path; 2],
    [own, other]: [&Model; 2],
    data: &Data,
    loss: &Loss,
) -> Option<(String, Vec<usize>)> {
    let first = |m: &Model| m.graph().output.first().map(|o| o.name().to_string());
    let outputs = (first(own)?, first(other)?);
    let compares = |term: &Term| match term {
        Term::Distillation { student, teacher, .. } | Term::Imitation { student, teacher } => {
            (student, teacher) == (&outputs.0, &outputs.1)
        }
        _ => false,
    };
    if !loss.terms.iter().any(|(_, term)| compares(term)) {
        return None;
    }
    let typing = Typing::new(other).ok()?;
    let count = class_factor(&typing).map(|f| typing.factors.factor_size(f))?;
    let fits = |names: &Vec<String>| names.len() == count;
    let of_data = || data.dataset.labels().and(data.dataset.classes()).map(<[String]>::to_vec);
    let names = class_names(own).filter(fits).or_else(|| of_data().filter(fits))?;
    let (student, teacher) = (student.display(), teacher.display());
    match Correspondence::of(&names, &class_names(other).filter(fits)?) {
        Correspondence::Same => None,
        Correspondence::Moved(places) => {
            output::warn(&format!(
                "the teacher `{teacher}` has the classes of the student `{student}` in another order: they are matched by name"
            ));
            Some((outputs.1, places))
        }
        Correspondence::Unlike(a, b) => {
            output::warn(&format!(
                "the classes of the student `{student}` and of the teacher `{teacher}` are taken in their order, and their names differ: `{a}` is taught what `{b}` is"
            ));
            None
        }
    }
}

/// How the teacher sees the images, and in which size: with a transform of its own, but of every picture what the student sees of it. A
/// teacher that says nothing of its transform is taken to have the student's.
fn seen_by_teacher(
    c: &TuneArgs,
    data: &Data,
    teacher: &Model,
    student: &View,
    image: [usize; 2],
) -> Result<(View, [usize; 2])> {
    let Ok(typing) = Typing::new(teacher) else { return Ok((student.clone(), image)) };
    let input = InputShape::of(&typing)?;
    let size = [input.height, input.width];
    let known = teacher.metadata(PREPROCESS);
    let preprocess = match (known, &student.preprocess) {
        (None, Some(student)) if student.channels == input.channels => Some(Preprocess { size, ..student.clone() }),
        // Flags speak of the student.
        (Some(_), _) => data.dataset.preprocess(&PreprocessFlags::default(), known, input)?,
        (None, _) => data.dataset.preprocess(&c.transform.preprocess(), None, input)?,
    };
    let preprocess = preprocess.map(|own| match &student.preprocess {
        Some(student) => Preprocess { crop_ratio: student.crop_ratio, resize: student.resize, ..own },
        None => own,
    });
    Ok((View { preprocess, layout: input.layout }, size))
}

/// Says that the teacher sees the images otherwise than the student.
fn say_seen(teacher: &Path, view: &View) {
    let Some(p) = &view.preprocess else { return };
    output::note(&format!(
        "the teacher `{}` sees what the student sees at {} x {} pixels, with mean {:?} and deviation {:?}",
        teacher.display(),
        p.size[0],
        p.size[1],
        p.mean,
        p.std
    ));
}

/// Says which weights are several parameters.
fn say_separated(separated: &[Separated]) {
    let Some(first) = separated.first() else { return };
    let count: usize = separated.iter().map(|s| 1 + s.copies.len()).sum();
    let rest = match separated.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    output::note(&format!(
        "`{}`{rest}, constants that the file holds once, are {count} parameters, one for each use",
        first.name
    ));
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

/// Says before the work begins whether the batch is likely to fit the GPU.
fn advise(model: &Model, image: [usize; 2], recipe: &Recipe) -> Result<()> {
    let Ok(gpu) = runtime::gpu() else { return Ok(()) };
    let memory = Memory::estimate(model, image, recipe)?;
    let fits = memory.batch(gpu.memory);
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let needed = memory.state + memory.per_image * recipe.batch as u64;
    output::note(&format!(
        "{} with {}: a step takes about {}, batches of up to {fits} fit",
        gpu.name,
        gigabytes(gpu.memory),
        gigabytes(needed)
    ));
    if fits < recipe.batch as u64 {
        output::warn(&format!(
            "a batch of {} may not fit: try --batch-size {} --accumulate {}",
            recipe.batch,
            fits.max(1),
            (recipe.batch as u64).div_ceil(fits.max(1))
        ));
    }
    Ok(())
}

/// Files that the command writes.
struct Outputs {
    last: Option<PathBuf>,
    checkpoint: Option<PathBuf>,
}

impl Outputs {
    /// Derives and checks them before any work is done.
    fn new(c: &TuneArgs) -> Result<Self> {
        let beside = |suffix: &str| -> Option<PathBuf> {
            let output = c.output.as_ref()?;
            let stem = output.file_stem()?.to_string_lossy().into_owned();
            Some(output.with_file_name(format!("{stem}.{suffix}")))
        };
        let last = beside("last.onnx");
        let checkpoint = c.checkpoint.clone().or(beside("checkpoint.safetensors"));
        let mut paths: Vec<PathBuf> = Vec::new();
        if !c.dry_run && c.emit_step.is_none() {
            paths.extend(c.output.iter().chain(&last).cloned());
        }
        paths.extend([&c.plot, &c.report, &c.metrics, &c.emit_step].into_iter().flatten().cloned());
        paths.extend(c.emit_step.iter().flat_map(|p| ["json", "safetensors"].map(|e| p.with_extension(e))));
        check_distinct(&paths)?;
        let inputs: Vec<&Path> = std::iter::once(c.model.as_path()).chain(c.training.teacher.as_deref()).collect();
        for path in &paths {
            // A run that goes on writes where it has written before.
            check_output(path, &inputs, c.force || c.resume)?;
        }
        if let Some(path) = &checkpoint
            && !c.dry_run
            && c.emit_step.is_none()
            && c.output.is_some()
        {
            if c.resume && !path.is_file() && parallel::is_first() {
                return Err(Error::new(ErrorKind::Usage, "there is no checkpoint to go on from")
                    .at(path)
                    .hint("leave --resume out, or name the checkpoint with --checkpoint"));
            }
            check_output(path, &inputs, true)?;
        }
        Ok(Outputs { last, checkpoint })
    }
}

/// Images to train on and to validate on.
struct Data {
    dataset: Dataset,
    split: Split,
    other: Option<Dataset>,
}

impl Data {
    fn open(c: &TuneArgs) -> Result<Data> {
        let ignore_labels = c.training.teacher.is_some() && c.training.distill.unwrap_or(0.0) >= 1.0;
        let set = dataset(&c.data, ignore_labels)?;
        let other = c.training.val.as_ref().map(|p| dataset_at(p, &c.data, ignore_labels)).transpose()?;
        let all = || Split { training: (0..set.len()).collect(), validation: Vec::new() };
        let mut split = match (&other, c.training.val_split, set.given_split()) {
            (Some(_), _, Some(given)) => Split { training: given.training.clone(), validation: Vec::new() },
            (Some(_), _, None) => all(),
            (None, Some(0.0), _) => all(),
            (None, Some(share), _) => set.split(share, c.training.seed),
            (None, None, Some(given)) => given.clone(),
            (None, None, None) => set.split(set.held_out_share(), c.training.seed),
        };
        if set.len() < 80
            && !split.validation.is_empty()
            && c.training.val_split.is_none()
            && set.given_split().is_none()
        {
            let (held_out, share) = (split.validation.len(), set.held_out_share());
            output::note(&format!(
                "{held_out} of {} images are held out to validate on, as by --val-split {share}: of so few a tenth would say little",
                set.len()
            ));
        }
        if let Some(limit) = c.transform.limit {
            split.training.truncate(limit as usize);
        }
        Ok(Data { dataset: set, split, other })
    }

    /// A hash of all images and labels.
    fn fingerprint(&self) -> Result<String> {
        let other = self.other.as_ref().map(Dataset::fingerprint).transpose()?;
        Ok(self.dataset.fingerprint()? + &other.unwrap_or_default())
    }

    /// Puts the labels in the terms of the model, and those of another data set for validation in the same.
    fn match_classes(&mut self, model: &Model, outputs: usize) -> Result<()> {
        let names = class_names(model);
        let matched = self.dataset.matched(names.as_deref(), outputs)?;
        let mut notes: Vec<String> = matched.note.into_iter().collect();
        self.dataset = matched.dataset;
        if let Some(other) = &mut self.other {
            let matched = other.matched(self.dataset.classes().or(names.as_deref()), outputs)?;
            notes.extend(matched.note);
            *other = matched.dataset;
        }
        notes.dedup();
        notes.iter().for_each(|note| output::warn(note));
        Ok(())
    }

    fn validation(&mut self, c: &TuneArgs, model: &Model, typing: &Typing) -> Result<Option<Validation>> {
        let strict = c.data.strict;
        match &self.other {
            Some(other) => {
                let all = (0..other.len()).collect();
                validation(other, all, &c.transform, model, typing, strict).map(Some)
            }
            None if self.split.validation.is_empty() => Ok(None),
            None => {
                let part = self.split.validation.clone();
                let mut transform = c.transform.clone();
                transform.limit = None;
                validation(&self.dataset, part, &transform, model, typing, strict).map(Some)
            }
        }
    }
}

/// Gives the model the classifier that was asked for.
fn prepare_classifier(c: &TuneArgs, model: &mut Model, data: &Data, runtime: &Arc<Runtime>) -> Result<()> {
    let Some(classes) = c.classes else {
        if c.pooling.is_some() {
            return Err(Error::new(ErrorKind::Usage, "--pooling is for a new classifier").hint("give --classes too"));
        }
        return Ok(());
    };
    let replaced = {
        let typing = named(&c.model, Typing::new(model))?;
        match has_classifier(&typing) && c.pooling.is_none() {
            true => {
                let anatomy = named(&c.model, Anatomy::new(&typing))?;
                let gene = Learngene::identity(&typing, &anatomy);
                let shape = descendant::Shape { classes: Some(classes), seed: c.training.seed, ..Default::default() };
                let grown = descendant::grow(model, &gene, &shape)?;
                grown.plan.warnings.iter().for_each(|w| output::warn(w));
                Some(grown.model)
            }
            false => None,
        }
    };
    match replaced {
        Some(new) => *model = new,
        None => {
            let path = model.path.clone();
            *model = add_classifier(model, classes, c.pooling).map_err(|e| e.at(&path))?;
            if data.dataset.labels().is_some() && !c.dry_run {
                data.dataset.check_labels(classes)?;
                fit(c, model, data, runtime)?;
            }
        }
    }
    if let Some(names) = data.dataset.classes().filter(|names| names.len() == classes) {
        model.set_metadata(CLASSES, serde_json::to_string(names).unwrap_or_default());
    }
    Ok(())
}

/// Starts a new classifier from a regression on the encoder's features.
fn fit(c: &TuneArgs, model: &mut Model, data: &Data, runtime: &Arc<Runtime>) -> Result<()> {
    let (images, image) = {
        let typing = Typing::new(model)?;
        // Spread over the whole training part, whatever its order.
        let training = &data.split.training;
        let step = training.len().div_ceil(CLASSIFIER_IMAGES).max(1);
        let some: Vec<usize> = training.iter().copied().step_by(step).collect();
        (validation(&data.dataset, some, &c.transform, model, &typing, c.data.strict)?, typing.image_size())
    };
    let bar = output::progress(images.loader.len(), "features");
    let result = fit_classifier(runtime, model, &images, image, |n| bar.set_position(n as u64));
    bar.finish_and_clear();
    result
}

fn loss(c: &TuneArgs, model: &Model, teacher: Option<&Model>, labelled: bool) -> Result<Loss> {
    let mut terms = Vec::new();
    let share = match (teacher.is_some(), c.training.distill) {
        (false, _) => 0.0,
        (true, Some(share)) => share,
        (true, None) if labelled => 0.5,
        (true, None) => 1.0,
    };
    if share < 1.0 {
        if !labelled {
            return Err(Error::new(ErrorKind::Usage, "the data have no labels, and nothing else says what to learn")
                .at(&c.data.data)
                .hint("give a data set with labels, or a --teacher"));
        }
        let term = match c.training.loss {
            LossKind::CrossEntropy => Term::CrossEntropy { smoothing: c.training.label_smoothing as f32 },
            LossKind::Bce => Term::BinaryCrossEntropy { smoothing: c.training.label_smoothing as f32 },
            LossKind::Mse => Term::SquaredError,
        };
        terms.push((1.0 - share as f32, term));
    }
    if let Some(teacher) = teacher {
        let first = |m: &Model| m.graph().output.first().map(|o| o.name().to_string()).unwrap_or_default();
        let (student, of_teacher) = (first(model), first(teacher));
        if share > 0.0 {
            // Classes that exclude each other are compared as distributions.
            let exclusive = |m: &Model| match Typing::new(m) {
                Err(_) => false,
                Ok(t) => match activation(&t) {
                    Some(a) => !is_independent(&a),
                    None => has_classifier(&t),
                },
            };
            let term = match exclusive(model) && exclusive(teacher) {
                true => {
                    let temperature = c.training.temperature as f32;
                    Term::Distillation { temperature, student, teacher: of_teacher }
                }
                false => Term::Imitation { student, teacher: of_teacher },
            };
            terms.push((share as f32, term));
        }
        for names in &c.training.feature {
            let (student, teacher) = names.split_once('=').unwrap_or((names, names));
            let term = Term::Imitation { student: student.into(), teacher: teacher.into() };
            terms.push((c.training.feature_weight as f32, term));
        }
    }
    Ok(Loss { terms, output: None })
}

fn recipe(c: &TuneArgs, runtime: &Runtime, loss: Loss) -> Recipe {
    let betas = c.training.betas.clone().unwrap_or_else(|| vec![0.9, 0.999]);
    let beta = |i: usize, default: f64| betas.get(i).copied().unwrap_or(default);
    let operators = c.training.operators.unwrap_or(match (runtime.kind, runtime.device) {
        (Kind::Tract, _) => Operators::Standard,
        (_, Device::Cpu) if c.training.precision == Precision::F32 => Operators::Fused,
        _ => Operators::Contrib,
    });
    Recipe {
        batch: c.training.batch_size as usize,
        loss,
        optimiser: match c.training.optimizer {
            OptimizerKind::Adamw => Optimiser::AdamW { beta1: beta(0, 0.9), beta2: beta(1, 0.999), epsilon: 1e-8 },
            OptimizerKind::Sgd => Optimiser::Sgd { momentum: c.training.momentum },
        },
        weight_decay: c.training.weight_decay as f32,
        layer_decay: c.training.layer_decay as f32,
        clip: c.training.clip.map(|v| v as f32),
        accumulate: c.training.accumulate as usize,
        ranks: parallel::size(),
        ema: c.training.ema.is_some(),
        drop_path: c.training.drop_path as f32,
        recompute: c.training.recompute,
        operators,
        precision: c.training.precision,
    }
}

fn plan(c: &TuneArgs, outputs: &Outputs) -> Plan {
    Plan {
        epochs: c.training.epochs.into(),
        steps: c.training.steps,
        schedule: c.training.schedule,
        learning_rate: c.training.lr,
        minimum_rate: c.training.min_lr,
        warmup: c.training.warmup.unwrap_or(f64::from(c.training.epochs) / 20.0),
        ema_decay: c.training.ema.unwrap_or(0.0),
        drop_path: c.training.drop_path as f32,
        validate_start: true,
        seed: c.training.seed,
        checkpoint: outputs.checkpoint.clone(),
        checkpoint_every: c.checkpoint_every,
        resume: c.resume,
        stop: Some(signals::stop_on_request()),
    }
}

/// What is trained and what is not.
fn dry_run(c: &TuneArgs, model: &Model, image: [usize; 2], recipe: &Recipe, separated: &[Separated]) -> Result<()> {
    let selection = {
        let (form, _, _) = trainable_form(model, recipe.batch, image)?;
        let typing = Typing::new(&form)?;
        Selection::new(&typing, &c.training.train, &c.training.freeze)?
    };
    if c.json {
        return output::print_json(&json!({
            "schema": schema::TUNE_PLAN,
            "parameters": selection.parameters(),
            "trained": selection.trained,
            "frozen": selection.frozen,
            "separated": separated,
        }));
    }
    let kind =
        |k: WeightKind| serde_json::to_value(k).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
    let shape = |s: &[usize]| format!("{s:?}");
    let rows = selection
        .trained
        .iter()
        .map(|w| {
            let decay = if w.decays { "yes" } else { "no" };
            vec![w.name.clone(), shape(&w.shape), kind(w.kind), decay.into(), w.depth.to_string()]
        })
        .collect();
    let mut text = format!("{} parameters are trained\n\n", selection.parameters());
    text += &table(&["trained", "shape", "kind", "decay", "depth"], rows);
    if !selection.frozen.is_empty() {
        let rows = selection.frozen.iter().map(|w| vec![w.name.clone(), shape(&w.shape), w.reason.clone()]).collect();
        text += &format!("\n{}", table(&["not trained", "shape", "why"], rows));
    }
    output::print(&text)
}

/// Writes the step graph and what its inputs and outputs mean.
fn emit_step(c: &TuneArgs, path: &Path, model: &Model, image: [usize; 2], recipe: &Recipe) -> Result<()> {
    let mut recipe = recipe.clone();
    // Others run it: only what every ONNX Runtime has.
    recipe.operators = c.training.operators.unwrap_or(Operators::Standard);
    recipe.ranks = 1;
    // Where the batch cannot be opened it is the file's own.
    recipe.batch = trainable_form(model, recipe.batch, image)?.1[0];
    let steps = Steps::new(model, image, &recipe, &c.training.train, &c.training.freeze)?;
    let (form, _, _) = trainable_form(model, steps.batch, image)?;
    if steps.update.is_some() {
        return Err(Error::new(ErrorKind::Usage, "--emit-step writes one graph, and --accumulate needs two")
            .hint("leave --accumulate out: whoever runs the step graph chooses the batch size"));
    }
    let mut initial = Vec::new();
    for tensor in &steps.step.description.state {
        if let Some(name) = &tensor.initial
            && let Some(t) = form.graph().initializer.iter().find(|t| t.name() == name)
        {
            let data = ArrayD::from_shape_vec(IxDyn(&tensor.shape), to_f32(t)?);
            initial.push((tensor.name.clone(), data.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?));
        }
    }
    let weights_file = path.with_extension("safetensors");
    if !parallel::is_first() {
        return Ok(());
    }
    checkpoint::save(&weights_file, &initial, &steps.step.description)?;
    steps.step.model.write(path)?;
    let description = json!({
        "schema": steps.step.description.schema,
        "graph": path.file_name().map(|n| n.to_string_lossy().into_owned()),
        "batch": steps.batch,
        "inputs": steps.step.description.inputs,
        "outputs": steps.step.description.outputs,
        "optimiser": recipe.optimiser,
        "state": steps.step.description.state,
        "initial": {
            "file": weights_file.file_name().map(|n| n.to_string_lossy().into_owned()),
            "meaning": "what each tensor of the state holds at the start, by its name; zeros where the file has no such tensor",
        },
    });
    let text =
        serde_json::to_string_pretty(&description).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    write_text(&path.with_extension("json"), &format!("{text}\n"))
}

/// Watches a run: the bar, the metrics file, and the best model.
struct Watch<'a> {
    bar: ProgressBar,
    output: &'a Path,
    last: Option<PathBuf>,
    metrics: Option<(PathBuf, BufWriter<File>)>,
    steps: Vec<StepReport>,
    validations: Vec<ValidationReport>,
    names: Option<String>,
    dtype: Option<FloatType>,
    begun: Instant,
    loss: f64,
    accuracy: Option<f64>,
}

impl<'a> Watch<'a> {
    fn new(c: &TuneArgs, outputs: &Outputs, output: &'a Path, classified: bool, data: &Data) -> Result<Self> {
        // Labels that were matched to the model's classes have one name an output.
        let names = data.dataset.classes().filter(|_| classified);
        let metrics = match c.metrics.as_ref().filter(|_| parallel::is_first()) {
            None => None,
            Some(path) => {
                let file = File::options()
                    .create(true)
                    .write(true)
                    .truncate(!c.resume)
                    .read(true)
                    .open(path)
                    .map_err(|e| Error::io(path, e))?;
                Some((path.clone(), BufWriter::new(file)))
            }
        };
        Ok(Watch {
            bar: output::training_bar(),
            output,
            last: outputs.last.clone(),
            metrics,
            steps: Vec::new(),
            validations: Vec::new(),
            names: names.map(|n| serde_json::to_string(n).unwrap_or_default()),
            dtype: c.dtype,
            begun: Instant::now(),
            loss: f64::NAN,
            accuracy: None,
        })
    }

    /// Writes a line; whoever follows the file sees it at once. Where the file was moved away (log rotation), a new one is begun.
    fn line(&mut self, value: &impl serde::Serialize) -> Result<()> {
        let Some((path, file)) = &mut self.metrics else { return Ok(()) };
        let failed = |e: std::io::Error| Error::io(path.as_path(), e);
        if !path.exists() {
            *file = BufWriter::new(File::options().create(true).append(true).open(&*path).map_err(failed)?);
        }
        let text = serde_json::to_string(value).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        writeln!(file, "{text}").and_then(|()| file.flush()).map_err(failed)
    }

    fn write(&self, model: &Model, path: &Path) -> Result<()> {
        let mut model = descendant::simplify(model)?;
        if let Some(names) = &self.names {
            model.set_metadata(CLASSES, names.clone());
        }
        in_type(&mut model, self.dtype, None)?;
        output::write_model(path, &model)?;
        Ok(())
    }

    /// Writes what is written at the end, and says how it went.
    fn finish(
        mut self,
        trainer: &Trainer,
        summary: Summary,
        images: [usize; 2],
        c: &TuneArgs,
        runtime: &Runtime,
    ) -> Result<Outcome> {
        let validated = images[1] > 0;
        if let Some((path, file)) = &mut self.metrics {
            file.flush().map_err(|e| Error::io(path.as_path(), e))?;
        }
        let last = trainer.export(c.training.ema.is_some())?;
        match (validated, &self.last) {
            (true, Some(path)) => self.write(&last, path)?,
            _ => self.write(&last, self.output)?,
        }
        let seconds = self.begun.elapsed().as_secs_f64();
        let curve = Curve {
            losses: self.steps.iter().map(|s| (s.step, s.loss)).collect(),
            rates: self.steps.iter().map(|s| (s.step, s.lr)).collect(),
            validations: self.validations.iter().map(|v| (v.step, v.val_loss, v.val_top1)).collect(),
        };
        if let Some(path) = &c.plot {
            write_text(path, &training_plot(&curve)?)?;
        }
        if let Some(path) = &c.report {
            let facts = [
                ("Model", c.model.display().to_string()),
                ("Data", c.data.data.display().to_string()),
                ("Updates", trainer.updates.to_string()),
                ("Trained parameters", trainer.selection.parameters().to_string()),
                ("Batch", trainer.batch.to_string()),
                ("Images to train on", images[0].to_string()),
                ("Images to validate on", images[1].to_string()),
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
        match &summary.best {
            Some(v) if v.epoch > 0 => text += &format!(", best epoch {}: {}", v.epoch, quality(v)),
            _ => {}
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
        })
    }
}

impl Observer for Watch<'_> {
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
        self.bar.set_message(format!("{text} {:.0} images/s", report.images_per_second));
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
