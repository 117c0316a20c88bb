//! The net: what every right descendant keeps, checked by running it.
//!
//! No check looks for a kind of fault. Each compares two graphs that were made in different ways and have to say the
//! same: the descendant and its heads in another order; an image alone and among others; the ancestor with the rows of
//! what was removed at zero, which no resizing has touched, and the descendant. All but the last check compute in
//! float32, whatever type the file has. Graphs are copied to be run: no byte of the descendant changes.

use std::sync::Arc;

use ndarray::{Array4, ArrayD};
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::grow::grow;
use super::init::{Init, LayerSource};
use super::input_size::resize_image;
use super::oracle::{permute, without};
use super::plan::{DescendantPlan, GrowOptions, Projection};
use super::subject::{MOST, Subject, difference, nudged, rows};
use super::verification::{Check, Checked, Outcome, Verification};
use crate::data::{Arrays, Inputs, Samples};
use crate::error::{Error, Result};
use crate::graph::{element_types, int8_tensors};
use crate::learngene::Learngene;
use crate::onnx::{DataType, Model, data_type};
use crate::runtime::Runtime;

/// Multiply-accumulate operations in a second that predictions count on: what a core or two do of a small network, with
/// what it takes to load it.
pub const MACS_PER_SECOND: u64 = 10_000_000_000;

/// Noise between minus and plus these, tried until the model is stable on one.
const AMPLITUDES: [f32; 3] = [2.0, 0.5, 0.1];

/// An error so many times as large as what a nudge of the images does is none of rounding.
const MAGNIFIED: f64 = 100.0;

/// How far outputs may be apart, relative to the largest of an output; and the nudge of images that rounding is likened
/// to.
#[derive(Clone, Copy)]
struct Tolerance {
    error: f64,
    nudge: f32,
}

/// Rounding alone stays well below.
const SINGLE: Tolerance = Tolerance { error: 1e-4, nudge: 1e-6 };
const HALF: Tolerance = Tolerance { error: 5e-2, nudge: 1e-3 };

/// Where rows are rounded to 8 bits on the way.
const ROWS: Tolerance = Tolerance { error: 1e-1, nudge: 1e-2 };

/// How far a descendant may be from its ancestor: sums of rows are rounded to the type in which both are stored.
fn of_stored(grown: &Model) -> Tolerance {
    let half = |t| matches!(data_type(t), Some(DataType::Float16 | DataType::Bfloat16));
    if grown.graph().initializer.iter().any(half) { HALF } else { SINGLE }
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
    pub shape: &'a GrowOptions,
    /// What was planned.
    pub plan: &'a DescendantPlan,
    /// The descendant before anything was fitted.
    pub model: &'a Model,
}

/// Operations of a verification, where an image costs so many.
pub fn cost(child: u64, ancestor: u64) -> u64 {
    // One, two and three images, permuted, and what it is compared with; the ancestor, whole, and without what was
    // removed.
    child.saturating_mul(9).saturating_add(ancestor.saturating_mul(3))
}

/// Seconds that so many operations are predicted to take.
pub fn predicted_seconds(macs: u64) -> f64 {
    macs as f64 / MACS_PER_SECOND as f64
}

/// Runs checks.
pub struct Verifier {
    runtime: Arc<Runtime>,
    samples: Option<Inputs>,
    of: Option<String>,
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
        Verifier { runtime, samples: None, of: None }
    }

    /// Runs them on samples instead; there has to be one.
    pub fn on(self, samples: Inputs) -> Self {
        Verifier { samples: Some(samples), ..self }
    }

    /// Runs them on the first arrays, where there are some.
    pub fn on_arrays(self, arrays: Option<&Arrays>) -> Self {
        let first = |arrays: &Arrays| arrays.select(&(0..arrays.len().min(MOST)).collect::<Vec<_>>());
        Verifier { samples: arrays.map(first), ..self }
    }

    /// Looks at one output alone.
    pub fn of(self, output: Option<String>) -> Self {
        Verifier { of: output, ..self }
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
            if let [numbers, _] = int8_tensors(case.written.graph())
                && !numbers.is_empty()
            {
                checks.push(attempt(Check::Int8, || self.int8(case.written)));
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
        let outputs = child
            .as_mut()
            .map_err(|e| e.marked())
            .and_then(|child| child.run(&some(&self.trial(child, 0), 1)).map_err(|e| e.marked()));
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
    fn of_ancestor(&self, case: &Case, samples: usize) -> Result<Vec<ArrayD<f32>>> {
        let mut ancestor = self.subject(case.ancestor)?;
        let trial = self.trial(&ancestor, 0);
        ancestor.run(&some(&trial, samples))
    }

    /// Batches, and images alone and among others; nothing where the file fixes a batch of one.
    fn batches(&self, case: &Case, child: &mut Subject) -> Vec<Checked> {
        let fault = match child.fixed {
            Some(1) => return Vec::new(),
            Some(_) => None,
            None => {
                let trial = self.trial(child, 0);
                let runs = |n| Some((n, child.run(&some(&trial, n)).err()?));
                Some((2..=MOST).find_map(runs))
            }
        };
        let batches = match fault {
            None => None,
            Some(None) => Some(Checked::new(Check::Batches, Outcome::Passed, None, None)),
            Some(Some((n, e))) => {
                return vec![match self.of_ancestor(case, n) {
                    Ok(_) => {
                        let e = e.marked();
                        let wrong = format!("it does not run on {n} samples at a time, and its ancestor does: {e}");
                        Checked::new(Check::Batches, Outcome::Failed, None, Some(wrong))
                    }
                    Err(_) => {
                        not_run(Check::Batches, format!("its ancestor does not run on {n} samples at a time either"))
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
                return Ok(not_run(Check::Samples, "its ancestor does not keep the samples of a batch apart either"));
            }
        }
        Ok(verdict(Check::Samples, found, |error| {
            format!("what it says of a sample changes{} when others are beside it", by(error))
        }))
    }

    fn among_others(&self, subject: &mut Subject) -> Result<Found> {
        let most = subject.fixed.unwrap_or(MOST).min(MOST);
        self.judge(subject, SINGLE, |subject, images, alone| {
            let mut error = 0f64;
            for n in 2..=most {
                let together = subject.run(&some(images, n))?;
                error = error.max(difference(alone, &rows(alone, &together, n, 0)));
                if n == most {
                    // A batch may be right for its first image and no other.
                    let last = subject.run(&images.select(&[n - 1]))?;
                    error = error.max(difference(&last, &rows(&last, &together, n, n - 1)));
                }
            }
            Ok(error)
        })
    }

    fn permuted(&self, child: &mut Subject) -> Result<Checked> {
        let mut other = self.subject(&permute(&child.model)?)?;
        let (found, of_units) = self.compare_wholes(child, &mut other, SINGLE)?;
        let checked = verdict(Check::Permuted, found, |error| {
            let by = by(error);
            format!("the outputs change{by} when heads and neurons are permuted: the graph is not understood fully")
        });
        Ok(checked.without(&of_units))
    }

    fn full_size(&self, grown: &Grown, ancestor: &mut Subject) -> Result<Checked> {
        let clustered = grown.gene.layers.iter().flatten().any(|c| c.members.len() > 1);
        if clustered && ancestor.anatomy()?.layers.iter().any(|l| !l.head_mixers.is_empty()) {
            return Ok(not_run(Check::FullSize, "heads that are mixed have no centroids that keep what they say"));
        }
        let shape = GrowOptions { tied: grown.shape.tied, order: grown.shape.order, ..GrowOptions::default() };
        let whole = grow(&ancestor.model, grown.gene, &shape)?;
        let mut whole = self.subject(&permute(&whole.model)?)?;
        let (found, of_units) = self.compare_wholes(ancestor, &mut whole, of_stored(grown.model))?;
        let checked = verdict(Check::FullSize, found, |error| {
            format!("grown at its full size and permuted, its ancestor changes{}", by(error))
        });
        Ok(checked.without(&of_units))
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
        let (found, of_units) = if shape.classes.is_some() {
            // A new classifier has nothing to be compared with: the old one stands in.
            let shape = GrowOptions { classes: None, image_size: None, ..(*shape).clone() };
            let twin = grow(&ancestor.model, gene, &shape)?.model;
            self.compare_wholes(&mut oracle, &mut self.subject(&twin)?, tolerance)?
        } else if plan.projection == Projection::Fitted {
            self.compare_wholes(&mut oracle, &mut self.subject(model)?, tolerance)?
        } else {
            self.compare_wholes(&mut oracle, child, tolerance)?
        };
        let apart = |error| format!("it differs{} from its ancestor with what was removed put to zero", by(error));
        Ok(match (found, plan.inexact.first()) {
            (Found::Differs(error), Some(warning)) => {
                let note = format!("{}, as was warned: {warning}", apart(error));
                Checked::new(Check::Removed, Outcome::Inexact, Some(error), Some(note))
            }
            (found, _) => verdict(Check::Removed, found, apart).without(&of_units),
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

    /// What the file says and what it says with the float32 weights that its integers stand for, on tract, which
    /// computes them so; other runtimes round what they multiply with them.
    fn int8(&self, written: &Model) -> Result<Checked> {
        let rows = written.graph().node.iter().any(|n| n.op_type() == "MatMulInteger");
        let mut float = self.subject(written)?.on_tract();
        let mut int8 = self.subject(written)?.in_its_types(written).on_tract();
        let found = self.compare(&mut float, &mut int8, if rows { ROWS } else { SINGLE })?;
        Ok(match found {
            Found::Fails(e) => not_run(Check::Int8, e),
            found => verdict(Check::Int8, found, |error| {
                format!("it differs{} from what its int8 weights stand for in float32", by(error))
            }),
        })
    }

    fn in_half(&self, model: &Model) -> Result<Found> {
        let mut single = self.subject(model)?.on_tract();
        let mut half = self.subject(model)?.in_its_types(model).on_tract();
        self.compare(&mut single, &mut half, HALF)
    }

    /// Compares what two models say of an image, but for outputs with an axis of heads or neurons, which are fewer in
    /// one of them or in another order: these are named.
    fn compare_wholes(&self, a: &mut Subject, b: &mut Subject, tolerance: Tolerance) -> Result<(Found, Vec<String>)> {
        let mut of_units = a.outputs_of_units()?;
        // A single head is no axis.
        of_units.extend(b.outputs_of_units()?);
        of_units.sort_unstable();
        of_units.dedup();
        if !(a.leave_out(&of_units) && b.leave_out(&of_units)) {
            bail!(Unsupported, "every output has an axis of heads or neurons");
        }
        Ok((self.compare(a, b, tolerance)?, of_units))
    }

    /// Compares what two models say of an image.
    fn compare(&self, a: &mut Subject, b: &mut Subject, tolerance: Tolerance) -> Result<Found> {
        let mut failed = None;
        let found = self.judge(a, tolerance, |_, images, said| match b.run(&some(images, 1)) {
            Ok(other) => Ok(difference(said, &other)),
            Err(e) => {
                failed = Some(e);
                Ok(f64::INFINITY)
            }
        })?;
        Ok(failed.map_or(found, Found::Fails))
    }

    /// Measures an error on one trial after the other, until it is none or cannot be one of rounding: what a model says
    /// of a nudged image says how much it magnifies that.
    fn judge(
        &self,
        subject: &mut Subject,
        tolerance: Tolerance,
        mut measure: impl FnMut(&mut Subject, &Inputs, &[ArrayD<f32>]) -> Result<f64>,
    ) -> Result<Found> {
        let mut found = Found::Same(0.0);
        for trial in 0..self.samples.as_ref().map_or(AMPLITUDES.len(), |_| 1) {
            let images = self.trial(subject, trial);
            let one = some(&images, 1);
            let said = subject.run(&one)?;
            let error = measure(subject, &images, &said)?;
            if error <= tolerance.error {
                return Ok(Found::Same(error));
            }
            let own = difference(&said, &nudged(subject, &one, tolerance.nudge)?);
            if own <= tolerance.error || error > MAGNIFIED * own {
                return Ok(Found::Differs(error));
            }
            found = Found::Unclear(error, own);
        }
        Ok(found)
    }

    /// The samples of a trial: those that were given, or noise as images.
    fn trial(&self, subject: &Subject, trial: usize) -> Inputs {
        if let Some(samples) = &self.samples {
            // Fewer than a batch are repeated, fainter where that can be.
            let n = samples.len().max(1);
            let mut all = samples.select(&(0..MOST).map(|i| i % n).collect::<Vec<_>>());
            for (_, array) in all.arrays.iter_mut().filter(|(name, _)| subject.takes_fractions(name)) {
                array.outer_iter_mut().enumerate().for_each(|(i, mut own)| own /= (1 + i / n) as f32);
            }
            return all;
        }
        let [_, a, b, c] = subject.shape.unwrap_or_default();
        let mut random = StdRng::seed_from_u64(1);
        let amplitude = AMPLITUDES[trial];
        let noise = Array4::from_shape_simple_fn([MOST, a, b, c], || random.random_range(-amplitude..amplitude));
        Inputs::of_images(match subject.whole_numbers.is_empty() {
            true => noise,
            false => noise.mapv(|v: f32| (127.5 + 63.0 * v).round()),
        })
    }

    fn subject(&self, model: &Model) -> Result<Subject> {
        Subject::new(&self.runtime, model, self.samples.as_ref(), self.of.as_deref())
    }
}

/// The first samples.
fn some(samples: &Inputs, count: usize) -> Inputs {
    samples.select(&(0..count).collect::<Vec<_>>())
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
                "{}, and by {own:.1e} when samples change as little as rounding does: nothing can be said of this \
                 model on these samples",
                wrong(error)
            );
            Checked::new(check, Outcome::Unclear, Some(error), Some(note))
        }
        Found::Fails(e) => {
            let note = format!("{}: {}", wrong(f64::INFINITY), e.marked());
            Checked::new(check, Outcome::Failed, None, Some(note))
        }
    }
}

/// How large an error is, in a sentence.
fn by(error: f64) -> String {
    if error.is_finite() { format!(" by {error:.1e}") } else { " beyond measure".into() }
}

/// The half precision that a model computes in, where it does.
fn half_type(model: &Model) -> Option<DataType> {
    let types = element_types(model.graph());
    [DataType::Float16, DataType::Bfloat16].into_iter().find(|half| types.values().any(|t| t == half))
}
