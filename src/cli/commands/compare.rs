//! `offshoot compare`: two models on the same samples.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use ndarray::ArrayD;
use serde_json::json;

use super::source::{InputSource, open_both};
use super::verification::{Verifying, tell};
use super::{int8_note, named, plain};
use crate::anatomy::{ranking, sequence_axis, token_axis};
use crate::axes::Typing;
use crate::cli::common::values::tolerance;
use crate::cli::common::{RunFlags, SampleFlags, VerifyFlags};
use crate::cli::output::{self, count, table};
use crate::data::{Arrays, Inputs};
use crate::descendant::{Case, Verification, Verifier, cost};
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::parameters;
use crate::metadata::schema;
use crate::metrics::{Agreement, Measures};
use crate::onnx::Model;
use crate::runtime::{Runtime, Session};

/// `offshoot compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// The model to compare with
    pub a: PathBuf,
    /// The model to judge
    pub b: PathBuf,
    #[command(flatten)]
    pub samples: SampleFlags,
    /// Exit with 1 where the relative error is above this
    #[arg(long, value_name = "E", value_parser = tolerance)]
    pub tolerance: Option<f64>,
    /// Runs that the latency is the median of
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub runs: u16,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub verification: VerifyFlags,
    #[command(flatten)]
    pub run: RunFlags,
}

/// One of the models.
struct Side<'m> {
    path: &'m Path,
    model: &'m Model,
    typing: &'m Typing<'m>,
    source: InputSource,
}

impl<'m> Side<'m> {
    fn new(
        c: &CompareArgs,
        path: &'m Path,
        (model, arrays): &'m (Model, Option<Arrays>),
        typing: &'m Typing<'m>,
    ) -> Result<Side<'m>> {
        let source = named(path, InputSource::new(&c.samples, &c.run, model, typing, arrays.clone()))?;
        Ok(Side { path, model, typing, source })
    }

    /// Its parameters, operations and bytes.
    fn size(&self) -> [u64; 3] {
        [parameters(self.model.graph()), self.typing.macs(), self.model.bytes]
    }

    /// A session of it for one sample.
    fn alone(&self, runtime: &Arc<Runtime>) -> Result<Session> {
        named(self.path, runtime.load(self.model, 1, self.typing.image_size()))
    }
}

/// Runs the command.
pub fn run(c: &CompareArgs) -> Result<()> {
    let opened = open_both([&c.a, &c.b], &c.run.as_written(), &c.samples)?;
    let [ta, tb] = [(&c.a, &opened[0].0), (&c.b, &opened[1].0)].map(|(path, model)| named(path, Typing::new(model)));
    let (ta, tb) = (ta?, tb?);
    let (a, b) = (Side::new(c, &c.a, &opened[0], &ta)?, Side::new(c, &c.b, &opened[1], &tb)?);
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let notes = [&a, &b].map(|side| int8_note(side.path, side.model, runtime.kind));
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    notes.iter().for_each(|note| output::note(note));
    let (measures, [xa, xb]) = measured(&runtime, &a, &b)?;
    a.source.warn_skipped();
    let times = latencies([(a.alone(&runtime)?, &xa), (b.alone(&runtime)?, &xb)], c.runs.into())?;
    let verifying = Verifying { flags: c.verification, runtime: &c.run.runtime };
    let verification = verified(&verifying, &a, &b, &xb)?;
    let ([pa, fa, ba], [pb, fb, bb]) = (a.size(), b.size());
    if c.json {
        output::print_json(&json!({
            "schema": schema::COMPARE,
            "images": measures.images,
            "max_abs_error": measures.max_abs_error,
            "relative_error": measures.relative_error,
            "correlation": measures.correlation,
            "correlation_error": measures.correlation_error,
            "correlations": measures.correlations,
            "top1_agreement": measures.top1_agreement,
            "latency_ms": {"a": times[0], "b": times[1]},
            "parameters": {"a": pa, "b": pb},
            "macs": {"a": fa, "b": fb},
            "bytes": {"a": ba, "b": bb},
            "input": {"a": a.source.report(), "b": b.source.report()},
            "verification": verification,
            "notes": notes,
            "runtime": runtime.kind,
        }))?;
    } else {
        output::print(&text(&a, &b, times, &measures, &runtime))?;
    }
    tell(&verification);
    plain::check(a.path, a.model, &c.run.runtime)?;
    plain::check(b.path, b.model, &c.run.runtime)?;
    match c.tolerance {
        // A comparison with something that is no number is never within a tolerance.
        Some(limit) if measures.relative_error.is_nan() || measures.relative_error > limit => Err(Error::new(
            ErrorKind::Check,
            format!("the relative error {:.3e} is above the tolerance {limit:e}", measures.relative_error),
        )
        .at(&c.b)),
        _ => named(&c.b, verifying.check(&verification)),
    }
}

/// How the outputs of both models agree, and the first samples of either. Of an output along tokens those count that
/// are no padding.
fn measured(runtime: &Arc<Runtime>, a: &Side, b: &Side) -> Result<(Measures, [Inputs; 2])> {
    let (of_a, of_b) = (a.source.samples(), b.source.samples());
    let load = |side: &Side| named(side.path, runtime.load_for(of_a.len(), side.model, side.typing.image_size()));
    let (mut sa, mut sb) = (load(a)?, load(b)?);
    let ranked = a.model.graph().output.first().is_some_and(|o| ranking(a.typing, o.name()).is_some());
    let mut agreement = Agreement::of(ranked);
    let bar = output::progress(of_a.len(), "compare");
    let step = sa.batch.max(sb.batch);
    let tokens = of_a.token_input().and_then(|input| sequence_axis(a.typing, input));
    let mut first = None;
    for (x, y) in of_a.batches_of(step).zip(of_b.batches_of(step)) {
        let (x, y) = (x?, y?);
        let (oa, ob) = (named(a.path, sa.run_on(&x.views()))?, named(b.path, sb.run_on(&y.views()))?);
        for Pair { name, outputs: [p, q], first } in pair(&oa, &ob, &sa, &sb).map_err(|e| e.at(b.path))? {
            match x.real.as_ref().filter(|_| tokens.is_some() && token_axis(a.typing, name) == tokens) {
                Some(real) => agreement.add_real(p, q, first, real),
                None => agreement.add(p, q, first),
            }
        }
        bar.inc(x.len() as u64);
        first.get_or_insert([x, y]);
    }
    bar.finish_and_clear();
    match first {
        Some(first) => Ok((agreement.finish(), first)),
        None => {
            let message = format!("there are no {} to compare on", a.source.noun().many);
            Err(Error::new(ErrorKind::Images, message).at(a.source.path()))
        }
    }
}

/// Verifies the second model on some samples.
fn verified(verifying: &Verifying, a: &Side, b: &Side, inputs: &Inputs) -> Result<Verification> {
    let case = Case { ancestor: a.model, child: b.model, written: b.model, grown: None };
    let macs = cost(b.typing.macs(), a.typing.macs());
    named(b.path, verifying.verify(&case, macs, false, |runtime| Verifier::new(runtime).on(inputs.clone())))
}

/// What was measured, for people.
fn text(a: &Side, b: &Side, [ms_a, ms_b]: [f64; 2], measures: &Measures, runtime: &Runtime) -> String {
    let ([pa, fa, ba], [pb, fb, bb]) = (a.size(), b.size());
    let ratio = |x: f64, y: f64| format!("{:.3}", y / x);
    let noun = a.source.noun();
    let rows = vec![
        vec!["parameters".into(), count(pa), count(pb), ratio(pa as f64, pb as f64)],
        vec![format!("MACs {}", noun.one), count(fa), count(fb), ratio(fa as f64, fb as f64)],
        vec!["bytes".into(), ba.to_string(), bb.to_string(), ratio(ba as f64, bb as f64)],
        vec![format!("latency, ms {}", noun.one), format!("{ms_a:.3}"), format!("{ms_b:.3}"), ratio(ms_a, ms_b)],
    ];
    let mut text = table(&["", "A", "B", "B / A"], rows);
    text += &format!("\nover {} {} on {}\n", measures.images, noun.many, runtime.describe());
    text += &format!("max abs error   {:.3e}\n", measures.max_abs_error);
    text += &format!("relative error  {:.3e}\n", measures.relative_error);
    let error = measures.correlation_error.map(|e| format!(" (standard error {e:.6})")).unwrap_or_default();
    text += &format!("correlation     {:.6}{error}\n", measures.correlation);
    if let Some(top1) = measures.top1_agreement {
        text += &format!("top-1 agreement {:.2} %\n", 100.0 * top1);
    }
    text
}

/// Median milliseconds of one sample through either model. They take turns, so that a machine that slows down slows
/// both.
fn latencies(mut models: [(Session, &Inputs); 2], runs: usize) -> Result<[f64; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for run in 0..=runs.max(1) {
        for ((session, inputs), times) in models.iter_mut().zip(&mut times) {
            let milliseconds = 1e3 * session.seconds(&inputs.views())? / session.batch as f64;
            // The first run warms up.
            times.extend((run > 0).then_some(milliseconds));
        }
    }
    Ok(times.map(|mut list| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    }))
}

/// An output of either model.
struct Pair<'o> {
    /// What the first model calls it.
    name: &'o str,
    outputs: [&'o ArrayD<f32>; 2],
    /// Whether it is the first.
    first: bool,
}

/// Outputs of both models that belong together: by name where names agree, else by place.
fn pair<'o>(a: &'o [ArrayD<f32>], b: &'o [ArrayD<f32>], sa: &'o Session, sb: &Session) -> Result<Vec<Pair<'o>>> {
    let mut pairs = Vec::new();
    for (i, (name, x)) in sa.outputs().iter().zip(a).enumerate() {
        let Some(at) = sb.outputs().iter().position(|o| o == name).or((i < b.len()).then_some(i)) else { continue };
        if x.shape() != b[at].shape() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("output `{name}` has shape {:?} in one model and {:?} in the other", x.shape(), b[at].shape()),
            )
            .hint("compare models with the same outputs; a new classifier has nothing to be compared with"));
        }
        pairs.push(Pair { name, outputs: [x, &b[at]], first: pairs.is_empty() });
    }
    Ok(pairs)
}
