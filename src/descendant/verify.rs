//! The net: what every right descendant keeps, checked by running it.
//!
//! No check looks for a kind of fault. Each compares two graphs that were made in different ways and have to say the same: the descendant
//! and its heads in another order; an image alone and among others; the ancestor with the rows of what was removed at zero, which no
//! resizing has touched, and the descendant. All but the last check compute in float32, whatever type the file has. Graphs are copied to be
//! run: no byte of the descendant changes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ndarray::{Array4, ArrayD, ArrayView4, Axis, Slice};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::Serialize;

use super::{Init, LayerSource, Plan, Projection, Shape, grow, resize_image};
use crate::anatomy::{Anatomy, Attention, Roles};
use crate::axes::resize::{Plan as Resizing, resize};
use crate::axes::{Factor, Typing, declared_batch};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, FloatType, Links, Names, data_inputs, declared_type, element_types, is_integer};
use crate::learngene::{Cluster, Kind as Block, Learngene};
use crate::onnx::{DataType, Model, data_type, tensor_from_f32, to_f32};
use crate::ops::{self, Mark};
use crate::runtime::{Device, Embedded, Kind, Runtime, Session, separate_skip_norms};

/// Multiply-accumulate operations in a second that predictions count on: what a core or two do of a small network, with what it takes to
/// load it.
pub const MACS_PER_SECOND: u64 = 10_000_000_000;

/// Images in the largest batch that is tried.
const MOST: usize = 3;

/// Noise between minus and plus these, tried until the model is stable on one.
const AMPLITUDES: [f32; 3] = [2.0, 0.5, 0.1];

/// An error so many times as large as what a nudge of the images does is none of rounding.
const MAGNIFIED: f64 = 100.0;

/// How far outputs may be apart, relative to the largest of an output; and the nudge of images that rounding is likened to.
#[derive(Clone, Copy)]
struct Tolerance {
    error: f64,
    nudge: f32,
}

/// Rounding alone stays well below.
const SINGLE: Tolerance = Tolerance { error: 1e-4, nudge: 1e-6 };
const HALF: Tolerance = Tolerance { error: 5e-2, nudge: 1e-3 };

/// How far a descendant may be from its ancestor: sums of rows are rounded to the type in which both are stored.
fn of_stored(grown: &Model) -> Tolerance {
    let half = |t| matches!(data_type(t), Some(DataType::Float16 | DataType::Bfloat16));
    if grown.graph().initializer.iter().any(half) { HALF } else { SINGLE }
}

/// What is checked, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Check {
    /// It runs on an image.
    Runs,
    /// It runs on two and on three images at a time.
    Batches,
    /// It says the same of an image alone and among others.
    Samples,
    /// It says the same with its heads and neurons in another order.
    Permuted,
    /// The ancestor, grown at its full size and permuted, says what the ancestor says.
    FullSize,
    /// It says what the ancestor says with the rows of what was removed at zero.
    Removed,
    /// It says in half precision what it says in float32.
    HalfPrecision,
}

impl Check {
    /// The name in messages and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Check::Runs => "runs",
            Check::Batches => "batches",
            Check::Samples => "samples",
            Check::Permuted => "permuted",
            Check::FullSize => "full-size",
            Check::Removed => "removed",
            Check::HalfPrecision => "half-precision",
        }
    }
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// As it should.
    Passed,
    /// The descendant is wrong.
    Failed,
    /// It differs, as a warning says that it does.
    Inexact,
    /// The model magnifies rounding too much to tell.
    Unclear,
    /// It could not be run.
    NotRun,
}

/// A check and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// The check.
    pub check: Check,
    /// How it ended.
    pub outcome: Outcome,
    /// The largest difference, relative to the largest element of its output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<f64>,
    /// What is wrong, or why it was not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What came of a verification.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verification {
    /// What ran it; none where nothing was run.
    pub runtime: Option<Kind>,
    /// The checks that concern the descendant.
    pub checks: Vec<Checked>,
    /// Why there are no others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
}

impl Verification {
    /// One in which nothing was run.
    pub fn not_run(why: impl Into<String>) -> Self {
        Verification { not_run: Some(why.into()), ..Self::default() }
    }

    /// The checks that ended so.
    pub fn ended(&self, outcome: Outcome) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(move |c| c.outcome == outcome)
    }

    /// The error of the first check that failed.
    pub fn failure(&self) -> Option<Error> {
        self.ended(Outcome::Failed).next().map(Checked::fault)
    }

    /// What a person is told, a line each: what was found right, and what was not checked or cannot be.
    pub fn lines(&self) -> Vec<String> {
        let passed: Vec<&str> = self.ended(Outcome::Passed).map(|c| c.check.name()).collect();
        let runtime = self.runtime.map_or(String::new(), |kind| format!(" on {}", kind.name()));
        let mut lines = Vec::new();
        if !passed.is_empty() {
            lines.push(format!("verified{runtime}: {}", passed.join(", ")));
        }
        for c in self.checks.iter().filter(|c| !matches!(c.outcome, Outcome::Passed | Outcome::Failed)) {
            lines.push(format!("not verified: {} ({})", c.check.name(), c.note.as_deref().unwrap_or_default()));
        }
        lines.extend(self.not_run.as_ref().map(|why| match self.checks.is_empty() {
            true => format!("not verified: {why}"),
            false => format!("no more was verified: {why}"),
        }));
        lines
    }
}

impl Checked {
    fn new(check: Check, outcome: Outcome, error: Option<f64>, note: Option<String>) -> Self {
        // JSON knows no infinity.
        Checked { check, outcome, error: error.filter(|e| e.is_finite()), note }
    }

    /// As an error.
    pub fn fault(&self) -> Error {
        let note = self.note.as_deref().unwrap_or("it does not hold");
        let error = Error::new(ErrorKind::Check, format!("check `{}`: {note}", self.check.name()));
        match self.check {
            Check::Permuted => error
                .hint("`offshoot inspect --explain LAYER` shows what each head axis reaches; please report the model"),
            Check::HalfPrecision => error.hint(
                "give pictures with --images, so that what leaves the range of float16 stays float32, or take --dtype bf16",
            ),
            _ => error,
        }
    }
}

/// What is verified.
pub struct Case<'a> {
    /// What the descendant descends from, before its images were given another size.
    pub ancestor: &'a Model,
    /// The descendant, all but its floating-point type.
    pub child: &'a Model,
    /// The descendant as it is to be written.
    pub written: &'a Model,
    /// How it was grown, where that is known.
    pub grown: Option<Grown<'a>>,
}

/// How a descendant was grown.
pub struct Grown<'a> {
    /// The learngene.
    pub gene: &'a Learngene,
    /// What was asked for.
    pub shape: &'a Shape,
    /// What was planned.
    pub plan: &'a Plan,
    /// The descendant before anything was fitted.
    pub model: &'a Model,
}

/// Operations of a verification, where an image costs so many.
pub fn cost(child: u64, ancestor: u64) -> u64 {
    // One, two and three images, permuted, and what it is compared with; the ancestor, whole, and without what was removed.
    child.saturating_mul(9).saturating_add(ancestor.saturating_mul(3))
}

/// Seconds that so many operations are predicted to take.
pub fn predicted_seconds(macs: u64) -> f64 {
    macs as f64 / MACS_PER_SECOND as f64
}

/// Runs checks.
pub struct Verifier {
    runtime: Arc<Runtime>,
    images: Option<Array4<f32>>,
}

/// What a comparison found.
enum Found {
    Same(f64),
    Differs(f64),
    /// The error, and what a nudge of the images does.
    Unclear(f64, f64),
    /// The second model does not run, and the first does.
    Fails(Error),
}

impl Verifier {
    /// Runs them on noise.
    pub fn new(runtime: Arc<Runtime>) -> Self {
        Verifier { runtime, images: None }
    }

    /// Runs them on images instead; there has to be one.
    pub fn on(self, images: Array4<f32>) -> Self {
        Verifier { images: Some(images), ..self }
    }

    /// All checks.
    ///
    /// # Errors
    /// Those of the runtime where it does not run the ancestor either, and those of the typing.
    pub fn verify(&self, case: &Case) -> Result<Verification> {
        let (first, child) = self.runs(case)?;
        let mut checks = vec![first];
        if let Some(mut child) = child.filter(|_| checks[0].outcome == Outcome::Passed) {
            checks.extend(self.batches(case, &mut child));
            checks.push(attempt(Check::Permuted, || self.permuted(&mut child)));
            if let Some(grown) = &case.grown {
                let whole = match grown.shape.image_size {
                    Some(size) => resize_image(case.ancestor, size).and_then(|model| self.subject(&model)),
                    None => self.subject(case.ancestor),
                };
                match whole {
                    Ok(mut whole) => {
                        checks.push(attempt(Check::FullSize, || self.full_size(grown, &mut whole)));
                        checks.push(attempt(Check::Removed, || self.removed(grown, &mut whole, &mut child)));
                    }
                    Err(e) => checks.extend([Check::FullSize, Check::Removed].map(|c| not_run(c, &e))),
                }
            } else {
                let why = "only `grow`, which makes a child, knows what was kept of its ancestor";
                checks.extend([Check::FullSize, Check::Removed].map(|c| not_run(c, why)));
            }
            if let Some(half) = half_type(case.written) {
                checks.push(attempt(Check::HalfPrecision, || self.half_precision(case, half)));
            }
        }
        Ok(Verification { runtime: Some(self.runtime.kind), checks, not_run: None })
    }

    /// The first check alone.
    ///
    /// # Errors
    /// Those of [`Verifier::verify`].
    pub fn run_once(&self, case: &Case) -> Result<Verification> {
        let checks = vec![self.runs(case)?.0];
        Ok(Verification { runtime: Some(self.runtime.kind), checks, not_run: None })
    }

    /// Whether the descendant runs, and the descendant to be run again, where its graph is one.
    fn runs(&self, case: &Case) -> Result<(Checked, Option<Subject>)> {
        let mut child = self.subject(case.child);
        let outputs = child.as_mut().map_err(|e| e.to_string()).and_then(|child| {
            let images = self.trial(child, 0);
            child.run(images.slice_axis(Axis(0), Slice::from(..1))).map_err(|e| e.to_string())
        });
        let wrong = match outputs {
            Ok(outputs) if outputs.iter().flatten().all(|v| !v.is_nan()) => None,
            Ok(_) => Some("it says what is no number, and its ancestor does not".to_owned()),
            Err(e) => Some(format!("it does not run, and its ancestor does: {e}")),
        };
        let Some(wrong) = wrong else {
            return Ok((Checked::new(Check::Runs, Outcome::Passed, None, None), child.ok()));
        };
        let outputs = self.of_ancestor(case, 1)?;
        let checked = match outputs.iter().flatten().all(|v| !v.is_nan()) {
            true => Checked::new(Check::Runs, Outcome::Failed, None, Some(wrong)),
            false => not_run(Check::Runs, "neither it nor its ancestor says numbers"),
        };
        Ok((checked, child.ok()))
    }

    /// What the ancestor says of so many images.
    fn of_ancestor(&self, case: &Case, images: usize) -> Result<Vec<ArrayD<f32>>> {
        let mut ancestor = self.subject(case.ancestor)?;
        let trial = self.trial(&ancestor, 0);
        ancestor.run(trial.slice_axis(Axis(0), Slice::from(..images)))
    }

    /// Batches, and images alone and among others; nothing where the file fixes a batch of one.
    fn batches(&self, case: &Case, child: &mut Subject) -> Vec<Checked> {
        let fault = match child.fixed {
            Some(1) => return Vec::new(),
            Some(_) => None,
            None => {
                let trial = self.trial(child, 0);
                let runs = |n| Some((n, child.run(trial.slice_axis(Axis(0), Slice::from(..n))).err()?));
                Some((2..=MOST).find_map(runs))
            }
        };
        let batches = match fault {
            None => None,
            Some(None) => Some(Checked::new(Check::Batches, Outcome::Passed, None, None)),
            Some(Some((n, e))) => {
                return vec![match self.of_ancestor(case, n) {
                    Ok(_) => {
                        let wrong = format!("it does not run on {n} images at a time, and its ancestor does: {e}");
                        Checked::new(Check::Batches, Outcome::Failed, None, Some(wrong))
                    }
                    Err(_) => {
                        not_run(Check::Batches, format!("its ancestor does not run on {n} images at a time either"))
                    }
                }];
            }
        };
        batches.into_iter().chain([attempt(Check::Samples, || self.samples(case, child))]).collect()
    }

    fn samples(&self, case: &Case, child: &mut Subject) -> Result<Checked> {
        let found = self.among_others(child)?;
        if let Found::Differs(_) = found {
            let mut ancestor = self.subject(case.ancestor)?;
            if !matches!(self.among_others(&mut ancestor)?, Found::Same(_)) {
                return Ok(not_run(Check::Samples, "its ancestor does not keep the images of a batch apart either"));
            }
        }
        Ok(verdict(Check::Samples, found, |error| {
            format!("what it says of an image changes{} when others are beside it", by(error))
        }))
    }

    fn among_others(&self, subject: &mut Subject) -> Result<Found> {
        let most = subject.fixed.unwrap_or(MOST).min(MOST);
        self.judge(subject, SINGLE, |subject, images, alone| {
            let mut error = 0f64;
            for n in 2..=most {
                let together = subject.run(images.slice_axis(Axis(0), Slice::from(..n)))?;
                error = error.max(difference(alone, &rows(alone, &together, n, 0)));
                if n == most {
                    // A batch may be right for its first image and no other.
                    let last = subject.run(images.slice_axis(Axis(0), Slice::from(n - 1..n)))?;
                    error = error.max(difference(&last, &rows(&last, &together, n, n - 1)));
                }
            }
            Ok(error)
        })
    }

    fn permuted(&self, child: &mut Subject) -> Result<Checked> {
        let mut other = self.subject(&permute(&child.model)?)?;
        let found = self.compare(child, &mut other, SINGLE)?;
        Ok(verdict(Check::Permuted, found, |error| {
            let by = by(error);
            format!("the outputs change{by} when heads and neurons are permuted: the graph is not understood fully")
        }))
    }

    fn full_size(&self, grown: &Grown, ancestor: &mut Subject) -> Result<Checked> {
        let clustered = grown.gene.layers.iter().flatten().any(|c| c.members.len() > 1);
        if clustered && ancestor.anatomy()?.layers.iter().any(|l| !l.mixings.is_empty()) {
            return Ok(not_run(Check::FullSize, "heads that are mixed have no centroids that keep what they say"));
        }
        let shape = Shape { tied: grown.shape.tied, order: grown.shape.order, ..Shape::default() };
        let whole = grow(&ancestor.model, grown.gene, &shape)?;
        let mut whole = self.subject(&permute(&whole.model)?)?;
        let found = self.compare(ancestor, &mut whole, of_stored(grown.model))?;
        Ok(verdict(Check::FullSize, found, |error| {
            format!("grown at its full size and permuted, its ancestor changes{}", by(error))
        }))
    }

    fn removed(&self, grown: &Grown, ancestor: &mut Subject, child: &mut Subject) -> Result<Checked> {
        let Grown { gene, shape, plan, model } = grown;
        let own = matches!(
            plan.init,
            Init::ClusterLearngene | Init::PretrainFinetune | Init::HeuristicLearngene | Init::AutoLearngene
        );
        if !own || plan.layers.iter().any(|l| l.source != LayerSource::Inherited) {
            return Ok(not_run(Check::Removed, "its weights are not the ancestor's own"));
        }
        if plan.projection == Projection::Paper {
            return Ok(not_run(Check::Removed, "the published projection does not follow the heads"));
        }
        let mut oracle = self.subject(&without(&ancestor.model, gene, plan)?)?;
        let tolerance = of_stored(grown.model);
        let found = if shape.classes.is_some() {
            // A new classifier has nothing to be compared with: the old one stands in.
            let shape = Shape { classes: None, image_size: None, ..(*shape).clone() };
            let twin = grow(&ancestor.model, gene, &shape)?.model;
            self.compare(&mut oracle, &mut self.subject(&twin)?, tolerance)?
        } else if plan.projection == Projection::Fitted {
            self.compare(&mut oracle, &mut self.subject(model)?, tolerance)?
        } else {
            self.compare(&mut oracle, child, tolerance)?
        };
        let apart = |error| format!("it differs{} from its ancestor with what was removed put to zero", by(error));
        Ok(match (found, plan.inexact.first()) {
            (Found::Differs(error), Some(warning)) => {
                let note = format!("{}, as was warned: {warning}", apart(error));
                Checked::new(Check::Removed, Outcome::Inexact, Some(error), Some(note))
            }
            (found, _) => verdict(Check::Removed, found, apart),
        })
    }

    /// On tract, which computes in it; ONNX Runtime's processor kernels compute much of it in float32.
    fn half_precision(&self, case: &Case, half: DataType) -> Result<Checked> {
        if half == DataType::Bfloat16 {
            return Ok(not_run(Check::HalfPrecision, "no runtime here computes in bfloat16"));
        }
        let found = self.in_half(case.written)?;
        if matches!(found, Found::Differs(_))
            && half_type(case.ancestor).is_some()
            && !matches!(self.in_half(case.ancestor)?, Found::Same(_))
        {
            return Ok(not_run(Check::HalfPrecision, "its ancestor does not hold in half precision either"));
        }
        Ok(match found {
            Found::Fails(e) => not_run(Check::HalfPrecision, e),
            found => verdict(Check::HalfPrecision, found, |error| {
                format!("in float16 it differs{} from what it says in float32", by(error))
            }),
        })
    }

    fn in_half(&self, model: &Model) -> Result<Found> {
        let mut single = self.subject(model)?;
        single.embedded = true;
        let mut half = Subject { model: model.clone(), loaded: HashMap::new(), ..self.subject(model)? };
        half.embedded = true;
        self.compare(&mut single, &mut half, HALF)
    }

    /// Compares what two models say of an image.
    fn compare(&self, a: &mut Subject, b: &mut Subject, tolerance: Tolerance) -> Result<Found> {
        let mut failed = None;
        let found =
            self.judge(a, tolerance, |_, images, said| match b.run(images.slice_axis(Axis(0), Slice::from(..1))) {
                Ok(other) => Ok(difference(said, &other)),
                Err(e) => {
                    failed = Some(e);
                    Ok(f64::INFINITY)
                }
            })?;
        Ok(failed.map_or(found, Found::Fails))
    }

    /// Measures an error on one trial after the other, until it is none or cannot be one of rounding: what a model says of a nudged image
    /// says how much it magnifies that.
    fn judge(
        &self,
        subject: &mut Subject,
        tolerance: Tolerance,
        mut measure: impl FnMut(&mut Subject, &Array4<f32>, &[ArrayD<f32>]) -> Result<f64>,
    ) -> Result<Found> {
        let mut found = Found::Same(0.0);
        for trial in 0..self.images.as_ref().map_or(AMPLITUDES.len(), |_| 1) {
            let images = self.trial(subject, trial);
            let one = images.slice_axis(Axis(0), Slice::from(..1));
            let said = subject.run(one)?;
            let error = measure(subject, &images, &said)?;
            if error <= tolerance.error {
                return Ok(Found::Same(error));
            }
            let own = difference(&said, &subject.run(nudged(one, tolerance.nudge).view())?);
            if own <= tolerance.error || error > MAGNIFIED * own {
                return Ok(Found::Differs(error));
            }
            found = Found::Unclear(error, own);
        }
        Ok(found)
    }

    /// The images of a trial: those that were given, or noise.
    fn trial(&self, subject: &Subject, trial: usize) -> Array4<f32> {
        let [_, a, b, c] = subject.shape;
        if let Some(images) = &self.images {
            // Fewer than a batch are repeated, fainter.
            let n = images.len_of(Axis(0)).max(1);
            return Array4::from_shape_fn([MOST, a, b, c], |(i, x, y, z)| {
                images.get([i % n, x, y, z]).copied().unwrap_or_default() / (1 + i / n) as f32
            });
        }
        let mut random = StdRng::seed_from_u64(1);
        let amplitude = AMPLITUDES[trial];
        let noise = Array4::from_shape_simple_fn([MOST, a, b, c], || random.random_range(-amplitude..amplitude));
        if subject.whole_numbers { noise.mapv(|v: f32| (127.5 + 63.0 * v).round()) } else { noise }
    }

    /// A model to run, in float32.
    fn subject(&self, model: &Model) -> Result<Subject> {
        let mut model = model.clone();
        graph::convert(&mut model, FloatType::Fp32)?;
        let (shape, image) = {
            let typing = Typing::new(&model)?;
            let Some((shape, _)) = typing.image_input() else {
                return Err(Error::new(ErrorKind::Unsupported, "the model does not take one batch of images"));
            };
            (shape, typing.image_size())
        };
        let input = data_inputs(model.graph()).into_iter().next().and_then(declared_type);
        let float = |t: Option<i32>| {
            let kind = t.and_then(|t| DataType::try_from(t).ok());
            matches!(kind, Some(DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double) | None)
        };
        let floats: Vec<bool> = model.graph().output.iter().map(|o| float(declared_type(o))).collect();
        Ok(Subject {
            image,
            shape,
            fixed: declared_batch(&model),
            whole_numbers: input.and_then(|t| DataType::try_from(t).ok()).is_some_and(is_integer),
            floats,
            embedded: self.runtime.kind == Kind::Tract,
            runtime: self.runtime.clone(),
            loaded: HashMap::new(),
            model,
        })
    }
}

/// A model that is run, loaded once for each batch.
struct Subject {
    model: Model,
    image: [usize; 2],
    /// Of its input.
    shape: [usize; 4],
    /// Images in a batch, where the file fixes them.
    fixed: Option<usize>,
    /// Whether its input takes whole numbers.
    whole_numbers: bool,
    /// Which outputs are floating-point numbers.
    floats: Vec<bool>,
    /// Whether it runs on tract, whose panics are errors.
    embedded: bool,
    runtime: Arc<Runtime>,
    loaded: HashMap<usize, Loaded>,
}

enum Loaded {
    Library(Box<Session>),
    Embedded(Embedded),
}

impl Subject {
    fn anatomy(&self) -> Result<Anatomy> {
        Anatomy::new(&Typing::new(&self.model)?)
    }

    /// The outputs for a batch of images. Whole numbers among them, such as the place of the largest, are left out where there are others:
    /// rounding decides between two that are close.
    fn run(&mut self, images: ArrayView4<f32>) -> Result<Vec<ArrayD<f32>>> {
        let count = images.len_of(Axis(0));
        // ONNX Runtime's sessions for the processor leave an open batch open.
        let open = !self.embedded && self.runtime.device == Device::Cpu;
        let batch = self.fixed.unwrap_or(if open { MOST } else { count });
        if !self.loaded.contains_key(&batch) {
            let loaded = match self.embedded {
                true => Loaded::Embedded(Embedded::load(&self.model, batch, self.image)?),
                false => Loaded::Library(Box::new(self.runtime.load(&self.model, batch, self.image)?)),
            };
            self.loaded.insert(batch, loaded);
        }
        let outputs = match self.loaded.get_mut(&batch) {
            Some(Loaded::Library(session)) => session.run(images)?,
            Some(Loaded::Embedded(tract)) => {
                // A batch that the file fixes is filled up with its last image.
                let rows: Vec<usize> = (0..tract.batch).map(|i| i.min(count - 1)).collect();
                let mut outputs = tract.run(images.select(Axis(0), &rows).view())?;
                for output in outputs.iter_mut().filter(|o| o.ndim() > 0 && o.len_of(Axis(0)) == tract.batch) {
                    output.slice_axis_inplace(Axis(0), Slice::from(..count));
                }
                outputs
            }
            None => Vec::new(),
        };
        let any = self.floats.contains(&true);
        let keep = |i: usize| !any || self.floats.get(i) != Some(&false);
        Ok(outputs.into_iter().enumerate().filter(|(i, _)| keep(*i)).map(|(_, o)| o).collect())
    }
}

/// A check that was not run.
fn not_run(check: Check, why: impl ToString) -> Checked {
    Checked::new(check, Outcome::NotRun, None, Some(why.to_string()))
}

/// A check whose graphs may turn out not to be made or not to run.
fn attempt(check: Check, work: impl FnOnce() -> Result<Checked>) -> Checked {
    work().unwrap_or_else(|e| not_run(check, e))
}

fn verdict(check: Check, found: Found, wrong: impl FnOnce(f64) -> String) -> Checked {
    match found {
        Found::Same(error) => Checked::new(check, Outcome::Passed, Some(error), None),
        Found::Differs(error) => Checked::new(check, Outcome::Failed, Some(error), Some(wrong(error))),
        Found::Unclear(error, own) => {
            let note = format!(
                "{}, and by {own:.1e} when images change as little as rounding does: nothing can be said of this model on these images",
                wrong(error)
            );
            Checked::new(check, Outcome::Unclear, Some(error), Some(note))
        }
        Found::Fails(e) => {
            let note = format!("{}: {e}", wrong(f64::INFINITY));
            Checked::new(check, Outcome::Failed, None, Some(note))
        }
    }
}

/// How large an error is, in a sentence.
fn by(error: f64) -> String {
    if error.is_finite() { format!(" by {error:.1e}") } else { " beyond measure".into() }
}

/// The largest difference of any output, relative to the largest element of that output. What is no number in the first may be none in the
/// second.
fn difference(a: &[ArrayD<f32>], b: &[ArrayD<f32>]) -> f64 {
    if a.len() != b.len() || a.iter().zip(b).any(|(a, b)| a.shape() != b.shape()) {
        return f64::INFINITY;
    }
    let pairs = a.iter().zip(b).map(|(a, b)| {
        let largest = a.iter().filter(|v| v.is_finite()).fold(1e-6f64, |m, &v| m.max(f64::from(v.abs())));
        let apart = a.iter().zip(b).map(|(&x, &y)| match x == y || (x.is_nan() && y.is_nan()) {
            true => 0.0,
            false => (f64::from(x) - f64::from(y)).abs(),
        });
        let far = apart.fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        far / largest
    });
    pairs.fold(0.0, f64::max)
}

/// What `together`, of `n` images, says of the image `at`: as many rows as `alone` has.
fn rows(alone: &[ArrayD<f32>], together: &[ArrayD<f32>], n: usize, at: usize) -> Vec<ArrayD<f32>> {
    let cut = |(one, all): (&ArrayD<f32>, &ArrayD<f32>)| {
        let own = one.shape().first().copied().unwrap_or(0);
        match own > 0 && all.shape().first() == Some(&(n * own)) {
            true => all.slice_axis(Axis(0), Slice::from(at * own..(at + 1) * own)).to_owned(),
            // One value for the whole batch says nothing of an image.
            false if all.shape() == one.shape() => one.clone(),
            false => all.clone(),
        }
    };
    alone.iter().zip(together).map(cut).collect()
}

/// Images that differ by `share` of their largest element.
fn nudged(images: ArrayView4<f32>, share: f32) -> Array4<f32> {
    let largest = images.iter().fold(0f32, |m, v| m.max(v.abs()));
    let mut random = StdRng::seed_from_u64(2);
    images.mapv(|v| v + largest * random.random_range(-share..share))
}

/// The half precision that a model computes in, where it does.
fn half_type(model: &Model) -> Option<DataType> {
    let types = element_types(model.graph());
    [DataType::Float16, DataType::Bfloat16].into_iter().find(|half| types.values().any(|t| t == half))
}

/// The model with the heads of its layers, and the neurons of their FFNs, the other way round.
fn permute(model: &Model) -> Result<Model> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let mut plan = Resizing::default();
    for layer in &anatomy.layers {
        let neurons = layer.ffn.as_ref().and_then(|f| f.hidden_factor(&typing));
        for factor in layer.head_factors(&typing).into_iter().chain(neurons) {
            if plan.indices(&typing.factors, factor).is_none() {
                plan.gather(&typing.factors, factor, (0..typing.factors.factor_size(factor)).rev().collect())?;
            }
        }
    }
    let mut out = model.clone();
    out.proto.graph = Some(resize(&typing, &plan)?);
    Ok(out)
}

/// The ancestor with what a plan removes put to zero where it stands: output rows of heads and neurons, and the branches of layers. Rows of
/// what a centroid stands for are added to its own.
fn without(model: &Model, gene: &Learngene, plan: &Plan) -> Result<Model> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let is_dropped = |l: usize| plan.layers.iter().all(|p| p.ancestor_layer != l);
    if let (true, Some(graph)) = ((0..anatomy.layers.len()).any(is_dropped), separate_skip_norms(&typing)?) {
        // A sum that is fused with the norm behind it may have no name, and what is added there would stay.
        let mut apart = model.clone();
        *apart.graph_mut() = graph;
        return without(&apart, gene, plan);
    }
    let mut oracle = Oracle {
        typing: &typing,
        anatomy: &anatomy,
        roles: Roles::new(&typing),
        links: Links::new(typing.graph),
        rows: BTreeMap::new(),
        done: HashSet::new(),
        branches: Vec::new(),
    };
    let mut kept: HashMap<Factor, &[usize]> = HashMap::new();
    for (l, layer) in anatomy.layers.iter().enumerate() {
        let Some(planned) = plan.layers.iter().find(|p| p.ancestor_layer == l) else {
            oracle.silence(l)?;
            continue;
        };
        let clusters = gene.layers.get(l).map_or(&[][..], Vec::as_slice);
        oracle.heads(layer, &sums(layer.head_count(&typing), &planned.slots, clusters))?;
        kept.extend(layer.head_factors(&typing).into_iter().map(|f| (typing.factors.root(f), &planned.slots[..])));
        let hidden = layer.ffn.as_ref().and_then(|f| Some((f, f.hidden_factor(&typing)?)));
        if let Some((ffn, factor)) = hidden.filter(|_| !planned.neurons.is_empty()) {
            let ordered = gene.removals.as_ref().is_some_and(|r| r.block(l, Block::Neurons).is_some());
            let clusters = if ordered { &[][..] } else { gene.neurons(l) };
            let sums = sums(typing.factors.factor_size(factor), &planned.neurons, clusters);
            let down = oracle.roles.operand(ffn.down);
            for u in oracle.roles.carriers(factor).into_iter().filter(|u| down.contains(u)) {
                oracle.pool(u, factor, &sums)?;
            }
        }
    }
    // Attentions beside the layers lose heads that they share with them.
    for other in &anatomy.others {
        let shared = other.head_factor(&typing).and_then(|f| kept.get(&typing.factors.root(f)));
        if let Some(slots) = shared {
            oracle.heads(other, &sums(other.head_count(&typing), slots, &[]))?;
        }
    }
    Ok(oracle.model(model))
}

/// What is added up in the place of each unit: the members of its cluster where it is kept, else nothing.
fn sums(units: usize, kept: &[usize], clusters: &[Cluster]) -> Vec<Vec<usize>> {
    let cluster = |n: usize| clusters.iter().find(|c| c.centroid == n).map_or(vec![n], |c| c.members.clone());
    (0..units).map(|n| if kept.contains(&n) { cluster(n) } else { Vec::new() }).collect()
}

struct Oracle<'t, 'm> {
    typing: &'t Typing<'m>,
    anatomy: &'t Anatomy,
    roles: Roles<'t, 'm>,
    links: Links<'m>,
    /// New elements, by use.
    rows: BTreeMap<usize, Vec<f32>>,
    done: HashSet<(usize, Factor)>,
    /// Nodes and their inputs that become zero.
    branches: Vec<(usize, usize)>,
}

impl Oracle<'_, '_> {
    fn heads(&mut self, layer: &Attention, sums: &[Vec<usize>]) -> Result<()> {
        if sums.iter().enumerate().all(|(h, sum)| sum[..] == [h]) {
            return Ok(());
        }
        for (u, factor) in self.roles.summing_uses(layer) {
            self.pool(u, factor, sums)?;
        }
        Ok(())
    }

    /// Row n of a weight, along a factor, becomes a sum of its rows.
    fn pool(&mut self, u: usize, factor: Factor, sums: &[Vec<usize>]) -> Result<()> {
        if !self.done.insert((u, self.typing.factors.root(factor))) {
            return Ok(());
        }
        let of_use = &self.typing.uses[u];
        let Some((axis, places)) = self.roles.along(u, factor) else {
            bail!(Unsupported, "`{}` has no rows of its own for what is removed", of_use.name);
        };
        let tensor = self.typing.weights[of_use.name.as_str()];
        let dims = tensor.shape();
        let (before, after) = (dims[..axis].iter().product::<usize>(), dims[axis + 1..].iter().product::<usize>());
        let old = match self.rows.remove(&u) {
            Some(rows) => rows,
            None => to_f32(tensor)?,
        };
        let mut new = old.clone();
        for block in 0..before {
            let row = |place: usize| (block * dims[axis] + place) * after..(block * dims[axis] + place + 1) * after;
            for (own, sum) in places.iter().zip(sums) {
                for (i, &place) in own.iter().enumerate() {
                    let target = &mut new[row(place)];
                    target.fill(0.0);
                    for &n in sum {
                        target.iter_mut().zip(&old[row(places[n][i])]).for_each(|(t, v)| *t += v);
                    }
                }
            }
        }
        self.rows.insert(u, new);
        Ok(())
    }

    /// What a layer adds to the stream becomes zero.
    fn silence(&mut self, l: usize) -> Result<()> {
        if !self.is_added(l) {
            bail!(Unsupported, "layer {l} goes with the norm behind its sums, which nothing else can stand for");
        }
        for (skip, sum) in &self.anatomy.layers[l].sums {
            let Some(&k) = self.links.maker.get(sum.as_str()) else {
                bail!(Unsupported, "nothing makes `{sum}`, a sum of layer {l}");
            };
            let node = &self.typing.graph.node[k];
            let slots: Vec<usize> = match node.op_type() {
                "Add" | "Sum" => (0..node.input.len()).collect(),
                "SkipLayerNormalization" => vec![0, 1, 4],
                "SkipSimplifiedLayerNormalization" => vec![0, 1, 3],
                op => bail!(Unsupported, "the sum `{sum}` of layer {l} is made by {op}"),
            };
            let adds = |j: &usize| node.input.get(*j).is_some_and(|x| !x.is_empty() && x != skip);
            self.branches.extend(slots.into_iter().filter(adds).map(|j| (k, j)));
        }
        Ok(())
    }

    /// True where a layer leaves what it adds to as it is: its sums follow each other, and no norm is between them.
    fn is_added(&self, l: usize) -> bool {
        let layer = &self.anatomy.layers[l];
        if layer.sums.len() > 1 {
            return layer.sums.windows(2).all(|w| self.is_moved(&w[1].0, &w[0].1));
        }
        // One sum says nothing by itself: the layer beside it begins, or ends, with the same value.
        let joins = |from: &Option<String>, to: &Option<String>| {
            from.as_deref().zip(to.as_deref()).is_some_and(|(from, to)| self.is_moved(to, from))
        };
        let others = || self.anatomy.layers.iter().enumerate().filter(|(o, _)| *o != l).map(|(_, other)| other);
        !layer.sums.is_empty() && others().any(|o| joins(&layer.leave, &o.enter) || joins(&o.leave, &layer.enter))
    }

    /// True where a value is another one, at most on other axes.
    fn is_moved(&self, value: &str, from: &str) -> bool {
        let mut value = value;
        loop {
            if value == from {
                return true;
            }
            let maker = self.links.maker.get(value).map(|&k| &self.typing.graph.node[k]);
            match maker.filter(|n| ops::of(n).is(Mark::Keeps)).and_then(|n| n.input.first()) {
                Some(input) => value = input,
                None => return false,
            }
        }
    }

    /// The model with all that.
    fn model(self, model: &Model) -> Model {
        let mut out = model.clone();
        let graph = out.graph_mut();
        let mut names = Names::new(graph);
        for (u, rows) in self.rows {
            let of_use = &self.typing.uses[u];
            let tensor = self.typing.weights[of_use.name.as_str()];
            let dims = tensor.shape();
            let name = names.fresh("offshoot_pooled");
            let kind = data_type(tensor).unwrap_or(DataType::Float);
            graph.initializer.push(tensor_from_f32(name.clone(), kind, &dims, &rows));
            graph.node[of_use.node].input[of_use.input] = name;
        }
        if !self.branches.is_empty() {
            let zero = names.fresh("offshoot_zero");
            graph.initializer.push(tensor_from_f32(zero.clone(), DataType::Float, &[], &[0.0]));
            let mut before: HashMap<usize, Vec<_>> = HashMap::new();
            for (k, j) in self.branches {
                let nothing = names.fresh("offshoot_nothing");
                let input = std::mem::replace(&mut graph.node[k].input[j], nothing.clone());
                before.entry(k).or_default().push(graph::node("Mul", &[&input, &zero], &[&nothing], vec![]));
            }
            for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
                graph.node.extend(before.remove(&k).unwrap_or_default());
                graph.node.push(node);
            }
        }
        graph.value_info.clear();
        out
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{ArrayD, IxDyn};

    use super::{difference, rows, sums};
    use crate::learngene::Cluster;

    fn array(shape: &[usize], values: &[f32]) -> ArrayD<f32> {
        ArrayD::from_shape_vec(IxDyn(shape), values.to_vec()).unwrap()
    }

    #[test]
    fn differences_are_those_of_the_worst_output() {
        let a = [array(&[2], &[100.0, 1.0]), array(&[1, 2], &[0.5, f32::NAN])];
        assert_eq!(difference(&a, &a), 0.0, "what is no number in both is the same");
        assert_eq!(difference(&a, &[a[0].clone(), array(&[1, 2], &[0.25, f32::NAN])]), 0.5);
        assert_eq!(difference(&a, &[a[0].clone(), array(&[1, 2], &[f32::NAN, f32::NAN])]), f64::INFINITY);
        assert_eq!(difference(&a, &[a[0].clone(), array(&[2, 1], &[0.5, f32::NAN])]), f64::INFINITY);
        let mask = [array(&[2], &[f32::NEG_INFINITY, 2.0])];
        assert_eq!(difference(&mask, &mask), 0.0);
        assert_eq!(difference(&mask, &[array(&[2], &[0.0, 2.0])]), f64::INFINITY);
    }

    #[test]
    fn rows_of_an_image_are_cut_out() {
        let alone = [array(&[2, 1], &[1.0, 2.0]), array(&[], &[7.0])];
        let together = [array(&[4, 1], &[1.0, 2.0, 3.0, 4.0]), array(&[], &[8.0])];
        assert_eq!(rows(&alone, &together, 2, 0)[0], alone[0]);
        assert_eq!(rows(&alone, &together, 2, 1)[0], array(&[2, 1], &[3.0, 4.0]));
        assert_eq!(rows(&alone, &together, 2, 0)[1], alone[1], "a value for all of the batch is none of an image");
        // As many rows as one image has, and others beside it: not what it should be.
        let odd = [array(&[3, 1], &[1.0, 2.0, 3.0]), array(&[], &[7.0])];
        assert_eq!(difference(&alone, &rows(&alone, &odd, 2, 0)), f64::INFINITY);
    }

    #[test]
    fn members_are_added_up_where_their_centroid_stays() {
        let clusters = [Cluster { members: vec![0, 2], centroid: 2 }, Cluster { members: vec![1], centroid: 1 }];
        assert_eq!(sums(3, &[2, 2], &clusters), [vec![], vec![], vec![0, 2]]);
        assert_eq!(sums(3, &[1, 2], &[]), [vec![], vec![1], vec![2]]);
    }
}
