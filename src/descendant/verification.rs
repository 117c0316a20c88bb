//! What is checked of a descendant, and what came of it.

use serde::Serialize;

use crate::error::{Error, ErrorKind};
use crate::runtime::RuntimeKind;

/// What is checked, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Check {
    /// It runs on a sample.
    Runs,
    /// It runs on two and on three samples at a time.
    Batches,
    /// It says the same of a sample alone and among others.
    Samples,
    /// It says the same with its heads and neurons in another order.
    Permuted,
    /// The ancestor, grown at its full size and permuted, says what the ancestor says.
    FullSize,
    /// It says what the ancestor says with the rows of what was removed at zero.
    Removed,
    /// It says in half precision what it says in float32.
    HalfPrecision,
    /// Its weights in int8 say what the float32 weights say that they stand for.
    Int8,
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
            Check::Int8 => "int8",
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
    /// What is wrong, why it was not run, or what was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What came of a verification.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verification {
    /// What ran it; none where nothing was run.
    pub runtime: Option<RuntimeKind>,
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
        let passed = self.ended(Outcome::Passed).map(|c| match &c.note {
            Some(note) => format!("{} ({note})", c.check.name()),
            None => c.check.name().to_owned(),
        });
        let passed: Vec<String> = passed.collect();
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
    pub(super) fn new(check: Check, outcome: Outcome, error: Option<f64>, note: Option<String>) -> Self {
        // JSON knows no infinity.
        Checked { check, outcome, error: error.filter(|e| e.is_finite()), note }
    }

    /// The same, where outputs were left out of what was compared because they have an axis of heads or neurons.
    pub(super) fn without(self, outputs: &[String]) -> Self {
        if self.outcome != Outcome::Passed || outputs.is_empty() {
            return self;
        }
        let names: Vec<String> = outputs.iter().map(|name| format!("`{name}`")).collect();
        let note = format!("but for {}, with an axis of heads or neurons", names.join(", "));
        Checked { note: Some(note), ..self }
    }

    /// As an error.
    pub fn fault(&self) -> Error {
        let note = self.note.as_deref().unwrap_or("it does not hold");
        let error = Error::new(ErrorKind::Check, format!("check `{}`: {note}", self.check.name()));
        match self.check {
            Check::Permuted => error
                .hint("`offshoot inspect ⟦explain⟧ LAYER` shows what each head axis reaches; please report the model"),
            Check::HalfPrecision => error.hint(
                "give pictures with ⟦images⟧, so that what leaves the range of float16 stays float32, or take ⟦dtype⟧ \
                 bf16",
            ),
            Check::Int8 => {
                error.hint("take ⟦dtype⟧ int8 where it was int8-rows, or leave it out; please report the model")
            }
            _ => error,
        }
    }
}
