//! Model, data and teacher, brought together and checked against each other before any graph is built.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::classifier::ClassifierBuilder;
use super::data::Data;
use super::fit::{Images, Session, Taught};
use super::options::Options;
use super::teaching::{self, Guide};
use crate::anatomy::{Activation, activation};
use crate::axes::Typing;
use crate::data::{InputReport, InputShape, InputTransform, Rows};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::PREPROCESS;
use crate::onnx::Model;
use crate::opening::keep_transform;
use crate::progress::Listener;
use crate::runtime::{self, Device, Runtime};
use crate::training::{Batching, Memory, Precision, Recipe, Separated, Trainer, Validation, said_of, separate};

/// What opens the file of a teacher.
pub type Open<'o> = &'o dyn Fn(&Path) -> Result<Model>;

/// What a session is made of.
pub struct Setup {
    /// Where the graphs will run.
    pub runtime: Arc<Runtime>,
    /// The model, with its classifier.
    pub model: Model,
    /// Its images.
    pub data: Data,
    /// What was asked for.
    pub options: Options,
    /// The model that it learns from.
    pub teacher: Option<Guide>,
    /// Weights that the file holds once and that are several parameters.
    pub separated: Vec<Separated>,
    /// Height and width of its images.
    pub image: [usize; 2],
    /// What stands behind its logits.
    pub activation: Option<Activation>,
    /// The file, which the model may have been taken out of.
    path: PathBuf,
}

/// What was found while a session was prepared.
pub struct Prepared {
    /// What the images become.
    pub input: InputReport,
    /// How the teacher sees them.
    pub teacher: Option<InputTransform>,
    /// What there is to say of batches.
    pub batch: Option<String>,
}

impl Setup {
    /// Gives a model its classifier and its goal. The teacher's file is opened once the student is known.
    ///
    /// # Errors
    /// Those of new classifiers and of opening the teacher; [`ErrorKind::Usage`] where there is nothing to learn from,
    /// and where student and teacher say nothing that can be compared.
    pub fn new(
        runtime: Arc<Runtime>,
        mut model: Model,
        data: Data,
        teacher: Option<(&Path, Open)>,
        mut options: Options,
        listener: &dyn Listener,
    ) -> Result<Setup> {
        let path = model.path.clone();
        let on = |e: Error| e.at(&path);
        ClassifierBuilder { data: &data, runtime: &runtime, options: &options, listener }.prepare(&mut model)?;
        let separated = separate(&mut model).map_err(on)?;
        say_separated(&separated, listener);
        let typing = Typing::new(&model).map_err(on)?;
        let image = typing.image_size();
        let activation = activation(&typing);
        if let Some(a) = &activation {
            listener.note(&format!("the model {}", said_of(a)));
        }
        let mut teacher = match teacher {
            Some((path, open)) => Some(Guide { path: path.to_path_buf(), model: open(path)?, classes: None }),
            None => None,
        };
        // One that cannot be typed has its say when it runs.
        let of_teacher = teacher.as_ref().and_then(|t| Typing::new(&t.model).ok());
        if let Some(a) = of_teacher.as_ref().and_then(self::activation) {
            listener.note(&format!("the teacher {}", said_of(&a)));
        }
        let labelled = data.dataset.labels().is_some();
        let loss = options.goal.loss(&model, teacher.as_ref().map(|t| &t.model), labelled, &data.path).map_err(on)?;
        if let (Some(teacher), Some(other)) = (&teacher, &of_teacher) {
            teaching::check([&path, &teacher.path], &typing, other, &loss)?;
        }
        drop(of_teacher);
        if let Some(t) = &mut teacher {
            t.classes = teaching::classes([&path, &t.path], [&model, &t.model], &data, &loss, listener);
        }
        drop(typing);
        options.recipe.loss = loss;
        // A batch is so many samples, and a pair is two of what the model takes.
        options.recipe.batch *= data.dataset.images_each();
        Ok(Setup { runtime, model, data, options, teacher, separated, image, activation, path })
    }

    /// Prepares the images, and builds and loads the graphs.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for what the device cannot do and for images to validate on that are missing; those of the
    /// transform, of [`Trainer::new`], of the labels, and of the teacher.
    pub fn session(&mut self, listener: &dyn Listener) -> Result<(Session, Prepared)> {
        let on = |e: Error| e.at(&self.path);
        let options = &self.options;
        if self.runtime.device == Device::Cuda {
            let each = self.data.dataset.images_each();
            advise(&self.model, self.image, &options.recipe, each, listener)?;
        } else if options.recipe.precision == Precision::Bf16 {
            return Err(Error::new(ErrorKind::Usage, "no runtime trains in bfloat16 on the processor")
                .hint("use ⟦precision⟧ fp16, or a GPU with ⟦device⟧ cuda"));
        }
        let typing = Typing::new(&self.model).map_err(on)?;
        let input = InputShape::of(&typing)?;
        let metadata = self.model.metadata(PREPROCESS);
        let preprocess = self.data.dataset.preprocess(&options.transform, metadata, input)?;
        let report = InputReport::new(&self.model, &typing, preprocess.as_ref());
        if options.rows.is_none() {
            listener.note(&report.line());
            report.warnings().iter().for_each(|warning| listener.warn(warning));
        }
        let strict = options.batches.strict;
        let mut validation = self.data.validation(&self.model, &typing, &options.transform, options.limit, strict)?;
        if validation.is_none() && options.require_improvement {
            return Err(Error::new(ErrorKind::Usage, "without samples to validate on no improvement can be told")
                .hint("give ⟦val⟧ DATA, or a ⟦val-split⟧ above 0"));
        }
        if let Some(only) = validation.as_ref().and_then(Validation::only_score) {
            listener.warn(&format!(
                "the pairs to validate on have one score alone, of cosine {only}: no correlation of ranks can be told, \
                 and the best model is chosen by its loss"
            ));
        }
        drop(typing);
        keep_transform(&mut self.model, preprocess.as_ref(), None)?;
        let (recipe, train, freeze) = (&options.recipe, &options.train, &options.freeze);
        let trainer = Trainer::new(&self.runtime, &self.model, self.image, recipe, train, freeze).map_err(on)?;
        let noun = if options.rows.is_some() { "samples" } else { "images" };
        let batch = trainer.batching.note(trainer.batch / self.data.dataset.images_each(), noun);
        batch.iter().for_each(|text| listener.note(text));
        if let Some((_, classes)) = &trainer.classes {
            self.data.match_classes(&self.model, *classes, listener)?;
            if let Some(Validation { labels, .. }) = &mut validation {
                *labels = self.data.other.as_ref().unwrap_or(&self.data.dataset).labels().map(<[u32]>::to_vec);
            }
        }
        let view = InputTransform { preprocess, layout: input.layout };
        let taught = self.teacher.as_ref().map(|t| self.taught(t, &view, listener)).transpose()?;
        let images = Images {
            dataset: self.data.dataset.clone(),
            training: self.data.split.training.clone(),
            validation,
            rows: options.rows.clone(),
            view,
            batches: options.batches.clone(),
        };
        let mut session = Session::new(trainer, options.recipe.clone(), images, options.plan.clone())?;
        if let Some(rows) = &options.rows {
            say_lengths(rows, session.trainer.lengths(), listener);
        }
        let mut seen = None;
        if let Some((taught, view)) = taught {
            session = session.with_teacher(&self.runtime, taught)?;
            seen = Some(view);
        }
        Ok((session, Prepared { input: report, teacher: seen, batch }))
    }

    /// The teacher with its view of the images, which is said where it is not the student's.
    fn taught(
        &self,
        teacher: &Guide,
        student: &InputTransform,
        listener: &dyn Listener,
    ) -> Result<(Taught, InputTransform)> {
        let seen = teaching::view(&teacher.model, &self.data, &self.options.transform, student, self.image);
        let (view, image) = seen.map_err(|e| e.at(&teacher.path))?;
        let own = Some(view.clone()).filter(|view| view != student);
        if let Some(view) = &own {
            teaching::say(&teacher.path, view, listener);
        }
        let rows = self.options.rows.clone();
        Ok((Taught { model: teacher.model.clone(), view: own, image, rows, classes: teacher.classes.clone() }, view))
    }
}

impl Batching {
    /// How batches come about, in a word.
    pub fn name(self) -> &'static str {
        match self {
            Batching::Own => "own",
            Batching::Opened(_) => "opened",
            Batching::Gathered { .. } => "gathered",
        }
    }

    /// What there is to say where the file fixes another size than was asked for; `noun` is what samples are called.
    pub fn note(self, samples: usize, noun: &str) -> Option<String> {
        match self {
            Batching::Own => None,
            Batching::Opened(fixed) => Some(format!(
                "the file fixes batches of {fixed}: its batch axis is opened for training, on {samples} {noun} at a \
                 time; the file keeps it"
            )),
            Batching::Gathered { fixed, steps } => Some(format!(
                "the file fixes batches of {fixed}, and its batch axis cannot be opened: gradients of {steps} steps \
                 are gathered for a batch of {samples} {noun}"
            )),
        }
    }
}

/// Says to which lengths texts are cut, or why they are not.
fn say_lengths(rows: &Rows, lengths: &[usize], listener: &dyn Listener) {
    match (lengths, &rows.lengths[..]) {
        ([short @ .., whole], _) => {
            let short: Vec<String> = short.iter().map(usize::to_string).collect();
            listener.note(&format!(
                "texts of like length are trained on together, without the padding that all of a batch have: with {} \
                 or {whole} tokens",
                short.join(", ")
            ));
        }
        ([], [_, .., whole]) => listener.warn(&format!(
            "the model says something else of a text with padding behind it than without: texts are trained on with \
             {whole} tokens, as all of them have with their padding"
        )),
        _ => {}
    }
}

/// Says which weights are several parameters.
fn say_separated(separated: &[Separated], listener: &dyn Listener) {
    let Some(first) = separated.first() else { return };
    let count: usize = separated.iter().map(|s| 1 + s.copies.len()).sum();
    let rest = match separated.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    listener.note(&format!(
        "`{}`{rest}, constants that the file holds once, are {count} parameters, one for each use",
        first.name
    ));
}

/// Says before the work begins whether the batch is likely to fit the GPU; `each` is how many images a sample is.
fn advise(model: &Model, image: [usize; 2], recipe: &Recipe, each: usize, listener: &dyn Listener) -> Result<()> {
    let Ok(gpu) = runtime::gpu() else { return Ok(()) };
    let memory = Memory::estimate(model, image, recipe)?;
    let (fits, batch) = (memory.batch(gpu.memory) / each as u64, (recipe.batch / each) as u64);
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let needed = memory.state + memory.per_image * recipe.batch as u64;
    listener.note(&format!(
        "{} with {}: a step takes about {}, batches of up to {fits} fit",
        gpu.name,
        gigabytes(gpu.memory),
        gigabytes(needed)
    ));
    if fits < batch {
        listener.warn(&format!(
            "a batch of {batch} may not fit: try ⟦batch-size⟧ {} ⟦accumulate⟧ {}",
            fits.max(1),
            batch.div_ceil(fits.max(1))
        ));
    }
    Ok(())
}
