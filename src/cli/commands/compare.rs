//! `offshoot compare`: two models on the same images.

use std::path::{Path, PathBuf};

use clap::Args;
use ndarray::{Array4, ArrayD, Axis};
use serde_json::json;

use super::verification::{Verifying, tell};
use super::{images, named, open_pair, warn_skipped};
use crate::anatomy::ranking;
use crate::axes::Typing;
use crate::cli::common::values::tolerance;
use crate::cli::common::{RunFlags, VerifyFlags};
use crate::cli::output::{self, count, table};
use crate::data::{InputReport, Loader};
use crate::descendant::{Case, Verifier, cost};
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::parameters;
use crate::metadata::schema;
use crate::metrics::Agreement;
use crate::runtime::{Runtime, Session};

/// `offshoot compare`.
#[derive(Args, Debug)]
pub struct CompareArgs {
    /// The model to compare with
    pub a: PathBuf,
    /// The model to judge
    pub b: PathBuf,
    /// Images: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: PathBuf,
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

/// Runs the command.
pub fn run(c: &CompareArgs) -> Result<()> {
    let [a, b] = open_pair([&c.a, &c.b], &c.run.open, &c.run.runtime, [&c.run.transform; 2])?;
    let (ta, tb) = (named(&c.a, Typing::new(&a))?, named(&c.b, Typing::new(&b))?);
    let (la, lb) = (images(&c.images, &c.run.transform, &a, &ta)?, images(&c.images, &c.run.transform, &b, &tb)?);
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let load = |model, typing: &Typing| -> Result<Session> {
        let image = typing.image_size();
        runtime.load_for(la.len(), model, image)
    };
    let (mut sa, mut sb) = (named(&c.a, load(&a, &ta))?, named(&c.b, load(&b, &tb))?);
    let ranked = a.graph().output.first().is_some_and(|o| ranking(&ta, o.name()).is_some());
    let mut agreement = Agreement::of(ranked);
    let bar = output::progress(la.len(), "compare");
    let step = sa.batch.max(sb.batch);
    let mut sample = None;
    let mut batches = lb.batches(step);
    for batch in la.batches(step) {
        let batch = batch?;
        let other = match batches.next() {
            Some(other) => other?,
            None => break,
        };
        let (oa, ob) = (named(&c.a, sa.run(batch.images.view()))?, named(&c.b, sb.run(other.images.view()))?);
        pair(&oa, &ob, &sa, &sb)
            .map_err(|e| e.at(&c.b))?
            .into_iter()
            .for_each(|(x, y, first)| agreement.add(x, y, first));
        bar.inc(batch.images.len_of(Axis(0)) as u64);
        sample.get_or_insert((batch.images, other.images));
    }
    bar.finish_and_clear();
    warn_skipped(&la.skipped());
    let Some((xa, xb)) = sample else {
        return Err(Error::new(ErrorKind::Images, "there is no image to compare on").at(&c.images));
    };
    let alone = |path: &Path, model, typing: &Typing| named(path, runtime.load(model, 1, typing.image_size()));
    let [ms_a, ms_b] = latencies([(alone(&c.a, &a, &ta)?, &xa), (alone(&c.b, &b, &tb)?, &xb)], c.runs.into())?;
    let verifying = Verifying { flags: c.verification, runtime: &c.run.runtime };
    let case = Case { ancestor: &a, child: &b, written: &b, grown: None };
    let on_images = |runtime| Verifier::new(runtime).on(xb.clone());
    let verification = named(&c.b, verifying.verify(&case, cost(tb.macs(), ta.macs()), false, on_images))?;
    let measures = agreement.finish();
    let input = |m, t: &Typing, l: &Loader| InputReport::new(m, t, l.preprocess());
    let size = |m: &crate::onnx::Model, t: &Typing| [parameters(m.graph()), t.macs(), m.bytes];
    let ([pa, fa, ba], [pb, fb, bb]) = (size(&a, &ta), size(&b, &tb));
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
            "latency_ms": {"a": ms_a, "b": ms_b},
            "parameters": {"a": pa, "b": pb},
            "macs": {"a": fa, "b": fb},
            "bytes": {"a": ba, "b": bb},
            "input": {"a": input(&a, &ta, &la), "b": input(&b, &tb, &lb)},
            "verification": verification,
            "runtime": runtime.kind,
        }))?;
    } else {
        let ratio = |x: f64, y: f64| format!("{:.3}", y / x);
        let rows = vec![
            vec!["parameters".into(), count(pa), count(pb), ratio(pa as f64, pb as f64)],
            vec!["MACs an image".into(), count(fa), count(fb), ratio(fa as f64, fb as f64)],
            vec!["bytes".into(), ba.to_string(), bb.to_string(), ratio(ba as f64, bb as f64)],
            vec!["latency, ms an image".into(), format!("{ms_a:.3}"), format!("{ms_b:.3}"), ratio(ms_a, ms_b)],
        ];
        let mut text = table(&["", "A", "B", "B / A"], rows);
        text += &format!("\nover {} images on {}\n", measures.images, runtime.describe());
        text += &format!("max abs error   {:.3e}\n", measures.max_abs_error);
        text += &format!("relative error  {:.3e}\n", measures.relative_error);
        let error = measures.correlation_error.map(|e| format!(" (standard error {e:.6})")).unwrap_or_default();
        text += &format!("correlation     {:.6}{error}\n", measures.correlation);
        if let Some(top1) = measures.top1_agreement {
            text += &format!("top-1 agreement {:.2} %\n", 100.0 * top1);
        }
        output::print(&text)?;
    }
    tell(&verification);
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

/// Median milliseconds of one image through either model. They take turns, so that a machine that slows down slows
/// both.
fn latencies(mut models: [(Session, &Array4<f32>); 2], runs: usize) -> Result<[f64; 2]> {
    let mut times = [Vec::new(), Vec::new()];
    for run in 0..=runs.max(1) {
        for ((session, images), times) in models.iter_mut().zip(&mut times) {
            let milliseconds = 1e3 * session.seconds(images.view())? / session.batch as f64;
            // The first run warms up.
            times.extend((run > 0).then_some(milliseconds));
        }
    }
    Ok(times.map(|mut list| {
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    }))
}

/// An output of either model, and whether it is the first.
type Pair<'o> = (&'o ArrayD<f32>, &'o ArrayD<f32>, bool);

/// Outputs of both models that belong together: by name where names agree, else by place.
fn pair<'o>(a: &'o [ArrayD<f32>], b: &'o [ArrayD<f32>], sa: &Session, sb: &Session) -> Result<Vec<Pair<'o>>> {
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
        pairs.push((x, &b[at], pairs.is_empty()));
    }
    Ok(pairs)
}
