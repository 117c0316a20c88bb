//! `offshoot shrink`: smaller models on unlabelled images, without training.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::fitter::{Bars, Fitter, analyse};
use super::{in_type, keep_transform, named, open, open_for_images};
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::cli::common::values::tolerance;
use crate::cli::common::{OpenFlags, RuntimeFlags, TransformFlags};
use crate::cli::output::{self, count, table};
use crate::data::Loader;
use crate::density::attention_maps;
use crate::descendant::{fold_constants, has_fixed_size};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::{
    Allocation, Budget, Latencies, Limits, PlannedLayer, Shrinker, Shrunk, comparison, latency, plan, thin,
};
use crate::graph::{self, FloatType};
use crate::learngene::{Learngene, Removals, parameters};
use crate::metadata::{DESCENDANT, schema};
use crate::onnx::{Model, encoded_len, sha256};
use crate::parallel;
use crate::report::{Frontier, KeptLayer, Seen, frontier_plot, shrink_page};
use crate::runtime::Runtime;

/// Sizes of the frontier.
const FRONTIER: [f64; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];
/// A budget of time is met where the measured time is within this share of it.
const SLACK: f64 = 0.01;
/// How often an allocation is made anew because it takes longer than predicted.
const TRIES: usize = 4;

/// `offshoot shrink`.
#[derive(Args, Debug)]
pub struct ShrinkArgs {
    /// The ancestor, or a learngene that carries the order of removal (condense --fitted, shrink --save-learngene)
    pub model: PathBuf,
    /// Images that it is calibrated on, a few dozen or more: a folder, an IDX file, or an .npz or .npy of prepared tensors
    ///
    /// A learngene that carries the order of removal gives descendants without images too, which are then not fitted.
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    /// The descendant to write; with several sizes, the folder for them
    #[arg(short, long, value_name = "CHILD.onnx", required_unless_present_any = ["dry_run", "save_learngene"])]
    pub output: Option<PathBuf>,
    /// Share of the parameters of all heads and FFNs to keep; several, such as 85%,75%,50%, give several descendants
    #[arg(long, value_name = "P%", value_delimiter = ',', value_parser = kept_share, required_unless_present_any = ["budget", "dry_run", "save_learngene"], conflicts_with = "budget")]
    pub to: Vec<f64>,
    /// What the whole model may cost instead: params=12M, macs=2G, bytes=20MB or latency=8ms (on this machine, one image)
    #[arg(long, value_name = "WHAT=N", value_parser = budget)]
    pub budget: Option<Budget>,
    /// Also write the ancestor as a learngene with the order in which its heads and neurons go, and what that costs
    #[arg(long, value_name = "GENE.onnx")]
    pub save_learngene: Option<PathBuf>,
    /// Write a report (HTML, one file); with several sizes, of the last
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,
    /// Write the frontier of error against size, operations and time as a plot (SVG)
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Memory for the streams of tokens that the fit keeps; what is above it goes to a scratch file [default: 4GB]
    #[arg(long, value_name = "BYTES", value_parser = amount)]
    pub memory_limit: Option<f64>,
    /// Random views of the images that matrices are fitted on
    #[arg(long, value_name = "N", default_value_t = 192, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub crops: u32,
    /// Seed of the views and of which images are held out
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Exit with 1 and write nothing where the squared error on held-out images, relative to the values, is above this
    #[arg(long, value_name = "E", value_parser = tolerance)]
    pub max_error: Option<f64>,
    /// Print what each size would cost and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Layers that may be thinned, such as 0,1,5 [default: all]
    #[arg(long, value_name = "LAYERS", value_delimiter = ',', help_heading = "Levers")]
    pub only_layers: Option<Vec<usize>>,
    /// Keep all heads
    #[arg(long, help_heading = "Levers")]
    pub no_heads: bool,
    /// Keep all FFN neurons
    #[arg(long, help_heading = "Levers")]
    pub no_ffn: bool,
    /// Keep all layers
    #[arg(long, help_heading = "Levers")]
    pub no_layers: bool,
    /// Cut the dimensions of heads at every size [default: at 60 % and below]
    #[arg(long, help_heading = "Levers", conflicts_with = "no_head_dim")]
    pub head_dim: bool,
    /// Keep the dimensions of all heads
    #[arg(long, help_heading = "Levers")]
    pub no_head_dim: bool,
    /// Heads that every layer keeps at least
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Levers", value_parser = clap::value_parser!(u32).range(1..))]
    pub min_heads: u32,
    /// Neurons that every FFN keeps at least
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Levers", value_parser = clap::value_parser!(u32).range(2..))]
    pub min_ffn: u32,
    /// Floating-point type that the descendant computes in; its inputs and outputs are float32 [default: as the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<FloatType>,
    /// Leave what is constant at the model's image size to be computed at every run
    #[arg(long)]
    pub no_fold: bool,
    /// FFNs keep a multiple of this many neurons
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Levers", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub multiple_of: u32,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub open: OpenFlags,
    #[command(flatten)]
    pub transform: TransformFlags,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

fn kept_share(text: &str) -> Result<f64, String> {
    let number = |t: &str| t.trim().parse::<f64>().ok();
    let share = match text.strip_suffix('%') {
        Some(percent) => number(percent).map(|p| p / 100.0),
        None => number(text),
    };
    share.filter(|s| *s > 0.0 && *s <= 1.0).ok_or_else(|| "a share is above 0 and up to 100%, such as 75%".into())
}

/// A number with a unit: 12M, 20MB, 2G.
fn amount(text: &str) -> Result<f64, String> {
    let amount = text.trim().trim_end_matches('B');
    let (digits, scale) = match amount.chars().last() {
        Some('k' | 'K') => (&amount[..amount.len() - 1], 1e3),
        Some('M') => (&amount[..amount.len() - 1], 1e6),
        Some('G') => (&amount[..amount.len() - 1], 1e9),
        _ => (amount, 1.0),
    };
    let number = digits.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
    number.map(|n| n * scale).ok_or_else(|| format!("`{text}` is no number such as 12M, 20MB or 2G"))
}

fn budget(text: &str) -> Result<Budget, String> {
    let wrong = || "a budget is params=12M, macs=2G, bytes=20MB or latency=8ms".to_string();
    let (what, value) = text.split_once('=').ok_or_else(wrong)?;
    match what.trim() {
        "params" => Ok(Budget::Parameters(amount(value)?)),
        "macs" => Ok(Budget::Macs(amount(value)?)),
        "bytes" => Ok(Budget::Bytes(amount(value)?)),
        "latency" => Ok(Budget::Latency(amount(value.trim().strip_suffix("ms").ok_or_else(wrong)?)?)),
        _ => Err(wrong()),
    }
}

/// Runs the command.
pub fn run(c: &ShrinkArgs) -> Result<()> {
    let cores = std::thread::available_parallelism().map(|n| n.get()).unwrap_or(1);
    let threads = c.runtime.threads.map(usize::from).or_else(parallel::threads).unwrap_or(cores);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::new(ErrorKind::Usage, format!("{threads} threads cannot be started: {e}")))?;
    pool.install(|| shrink(c))
}

fn shrink(c: &ShrinkArgs) -> Result<()> {
    let start = Instant::now();
    let model = match c.images {
        Some(_) => open_for_images(&c.model, c.open, &c.transform)?,
        None => open(&c.model, c.open)?,
    };
    let jobs = jobs(c, &model)?;
    let outputs: Vec<PathBuf> =
        (jobs.iter().map(|j| &j.1)).chain(&c.save_learngene).chain(&c.plot).chain(&c.report).cloned().collect();
    output::check_distinct(&outputs)?;
    for path in &outputs {
        output::check_output(path, &[&c.model], c.force)?;
    }
    let recorded = Learngene::read(&model)?.and_then(|gene| gene.removals);
    let bars = Bars::default();
    let fitter = match &c.images {
        Some(path) => Some(Fitter::new(&model, path, &c.transform, &c.runtime, (c.crops as usize, c.seed), &bars)?),
        None => None,
    };
    let mut shrinker = fitter.as_ref().map(|f| f.shrinker(&model)).transpose()?;
    if let (Some(shrinker), Some(limit)) = (&mut shrinker, c.memory_limit) {
        shrinker.memory_limit = limit as u64;
    }
    let limits = limits(c, &jobs);
    let removals = match (recorded, &mut shrinker) {
        (Some(removals), _) => removals,
        (None, Some(shrinker)) => named(&c.model, analyse(shrinker, &limits, &bars))?,
        (None, None) => {
            return Err(Error::new(ErrorKind::Usage, "shrink calibrates the ancestor on images")
                .at(&c.model)
                .hint("give --images PATH: a few dozen photographs, no labels"));
        }
    };
    if shrinker.is_none() {
        output::warn("no images: descendants are thinned in the learngene's order, and not fitted");
    }
    if let Some(path) = &c.save_learngene {
        let loader = fitter.as_ref().map(|f| &f.loader);
        let gene = learngene(&model, removals.clone(), loader)?;
        let bytes = output::write_model(path, &gene)?;
        output::note(&format!("wrote {} ({bytes} bytes)", path.display()));
    }
    let fits = shrinker.is_some();
    let timer = Timer { c, model: &model, fits, runtime: Runtime::start(&c.runtime.options())? };
    let wants_time = |b: &Budget| matches!(b, Budget::Latency(_));
    let latencies = match c.dry_run || c.plot.is_some() || jobs.iter().any(|j| wants_time(&j.0)) {
        true => Some(parallel::first(|| timer.blocks(&limits, &bars))?),
        false => None,
    };
    let mut frontier_svg = None;
    if c.dry_run || c.plot.is_some() || c.report.is_some() {
        let frontier = frontier(&model, &removals, &limits, latencies.as_ref());
        bars.clear();
        let svg = frontier_plot(&points(&frontier))?;
        if let Some(path) = &c.plot {
            output::write_text(path, &svg)?;
        }
        if c.dry_run {
            return show(c, &frontier);
        }
        frontier_svg = Some(svg);
    }
    let mut reports = Vec::new();
    for (budget, path) in &jobs {
        let allocation = parallel::first(|| timer.allocate(&removals, &limits, *budget, latencies.as_ref()))?;
        let mut child = match &mut shrinker {
            Some(shrinker) => shrinker.shrink(&removals, &allocation, &|n, of| bars.tell("refit", n, of))?,
            None => Shrunk::of(thin(&model, &removals, &allocation)?)?,
        };
        bars.clear();
        if let Some(limit) = c.max_error
            && (child.error.is_nan() || child.error > limit)
        {
            return Err(Error::new(
                ErrorKind::Check,
                format!(
                    "the error on held-out images is {:.4}, above --max-error {limit}: nothing was written",
                    child.error
                ),
            )
            .at(&c.model)
            .hint("keep more, or give more different images"));
        }
        if !parallel::is_first() {
            continue;
        }
        if !c.no_fold && has_fixed_size(&child.model) {
            child.model = named(&c.model, fold_constants(&timer.runtime, &child.model, None))?;
            child.parameters = parameters(child.model.graph());
        }
        let wide = fitter.as_ref().map(|f| named(&c.model, f.wide(&child.model, c.dtype))).transpose()?.flatten();
        named(&c.model, in_type(&mut child.model, c.dtype, wide.as_ref()))?;
        describe(c, &model, &mut child, &allocation, fitter.as_ref().map(|f| &f.loader))?;
        let milliseconds = latency::side_by_side(&timer.runtime, &model, &child.model)?;
        child.bytes = output::write_model(path, &child.model)?;
        reports.push(report(path, &allocation, &child, milliseconds));
        if let (Some(file), Some(fitter)) = (&c.report, &fitter) {
            let page = page(c, &timer, fitter, &allocation, &child, milliseconds, frontier_svg.as_deref());
            output::write_text(file, &named(&c.model, page)?)?;
        }
    }
    // The first process measures times for its report; the others are quiet until it has.
    parallel::first(|| Ok(()))?;
    let total = start.elapsed().as_secs_f64();
    let timings = shrinker.as_ref().map(|s: &Shrinker| s.timings.clone()).unwrap_or_default();
    let times: Vec<String> = timings.iter().map(|t| format!("{} {:.1} s", t.stage, t.seconds)).collect();
    output::note(&format!("{}; in all {total:.1} s on {}", times.join(", "), timer.runtime.describe()));
    if c.json {
        let [views, held_out] = fitter.as_ref().map_or([0; 2], |f| f.views());
        return output::print_json(&json!({
            "schema": schema::SHRINK,
            "views": views,
            "held_out": held_out,
            "seed": c.seed,
            "input": fitter.as_ref().map(|f| &f.input),
            "descendants": reports,
            "seconds": {"stages": timings, "total": total},
            "runtime": timer.runtime.kind,
        }));
    }
    Ok(())
}

/// Up to this share of heads and FFNs the dimensions of heads are cut.
const CUT_DIMS: f64 = 0.6;

/// Levers; whether dimensions of heads are cut is decided for each size, and here whether that has to be measured.
fn limits(c: &ShrinkArgs, jobs: &[(Budget, PathBuf)]) -> Limits {
    let small = |b: &Budget| !matches!(b, Budget::Share(s) if *s > CUT_DIMS);
    Limits {
        dims: !c.no_head_dim && (c.head_dim || c.save_learngene.is_some() || jobs.iter().any(|j| small(&j.0))),
        heads: !c.no_heads,
        neurons: !c.no_ffn,
        depth: !c.no_layers,
        layers: c.only_layers.clone(),
        min_heads: c.min_heads as usize,
        min_neurons: c.min_ffn as usize,
        multiple: c.multiple_of as usize,
    }
}

/// The ancestor as a learngene that carries the order of removal.
pub fn learngene(model: &Model, removals: Removals, loader: Option<&Loader>) -> Result<Model> {
    let typing = named(&model.path, Typing::new(model))?;
    let anatomy = named(&model.path, Anatomy::new(&typing))?;
    let mut gene = Learngene::calibrated(&typing, &anatomy, removals);
    gene.source.file = model.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    gene.source.sha256 = sha256(&model.path)?;
    gene.source.parameters = parameters(model.graph());
    if let Some(loader) = loader {
        gene.source.images = loader.len();
        gene.source.images_sha256 = loader.fingerprint()?;
    }
    let mut out = named(&model.path, gene.condense(model, &typing, &anatomy))?;
    keep_transform(&mut out, loader.and_then(Loader::preprocess), None)?;
    Ok(out)
}

/// A descendant says where it comes from.
fn describe(
    c: &ShrinkArgs,
    model: &Model,
    child: &mut Shrunk,
    allocation: &Allocation,
    loader: Option<&Loader>,
) -> Result<()> {
    keep_transform(&mut child.model, loader.and_then(Loader::preprocess), None)?;
    let description = json!({
        "schema": schema::DESCENDANT,
        "offshoot": env!("CARGO_PKG_VERSION"),
        "source": {"file": model.path.file_name().map(|n| n.to_string_lossy())},
        "init": "shrink",
        "budget": allocation.budget,
        "share": allocation.share,
        "layers": allocation.layers,
        "error": child.error,
        "seed": c.seed,
    });
    child.model.set_metadata(DESCENDANT, description.to_string());
    Ok(())
}

/// What is measured in time, on a runtime that has the threads that a descendant will have.
struct Timer<'c> {
    c: &'c ShrinkArgs,
    model: &'c Model,
    /// True where descendants are fitted: without that the dimensions of heads cannot be cut.
    fits: bool,
    runtime: Arc<Runtime>,
}

impl Timer<'_> {
    fn blocks(&self, limits: &Limits, bars: &Bars) -> Result<Latencies> {
        let tell = |n, of| bars.tell("latency", n, of);
        named(&self.c.model, Latencies::measure(&self.runtime, self.model, limits, !self.c.no_fold, &tell))
    }

    /// An allocation. One under a budget of time is made anew until the thinned model keeps to it.
    fn allocate(
        &self,
        removals: &Removals,
        limits: &Limits,
        budget: Budget,
        latencies: Option<&Latencies>,
    ) -> Result<Allocation> {
        let whole = Limits { dims: false, ..limits.clone() };
        let mut first = plan(self.model, removals, &whole, budget, latencies);
        let cut = limits.dims && self.fits && (self.c.head_dim || first.as_ref().map_or(true, |a| a.share <= CUT_DIMS));
        let limits = if cut { limits } else { &whole };
        if cut {
            first = plan(self.model, removals, limits, budget, latencies);
        }
        let first = named(&self.c.model, first)?;
        let (Budget::Latency(wanted), Some(latencies)) = (budget, latencies) else { return Ok(first) };
        let mut allocation = first;
        let mut asked = wanted;
        for _ in 0..TRIES {
            let thinned = thin(self.model, removals, &allocation)?;
            let found = latencies.of(&self.runtime, self.model, &thinned, !self.c.no_fold)?;
            allocation.latency = Some(found);
            if found <= wanted * (1.0 + SLACK) {
                return Ok(allocation);
            }
            asked *= wanted / found;
            let next = plan(self.model, removals, limits, Budget::Latency(asked), Some(latencies));
            allocation = Allocation { budget, ..named(&self.c.model, next)? };
        }
        Ok(allocation)
    }
}

/// What is to be made: budgets and outputs.
fn jobs(c: &ShrinkArgs, model: &Model) -> Result<Vec<(Budget, PathBuf)>> {
    let Some(output) = c.output.as_ref().filter(|_| !c.dry_run) else { return Ok(Vec::new()) };
    if let Some(mut budget) = c.budget {
        if let (Budget::Bytes(bytes), Some(dtype)) = (&mut budget, c.dtype) {
            // The budget is that of the file; the allocation counts the ancestor's type.
            let mut converted = model.clone();
            named(&c.model, graph::convert(&mut converted, dtype))?;
            *bytes *= encoded_len(&model.proto) as f64 / encoded_len(&converted.proto) as f64;
        }
        return Ok(vec![(budget, output.clone())]);
    }
    if let [share] = c.to[..] {
        return Ok(vec![(Budget::Share(share), output.clone())]);
    }
    if !output.is_dir() && parallel::is_first() {
        std::fs::create_dir(output).map_err(|e| Error::io(output, e).hint("several sizes need a folder: -o FOLDER"))?;
    }
    let stem = c.model.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(c.to.iter().map(|&s| (Budget::Share(s), output.join(format!("{stem}-{}.onnx", Percent(s))))).collect())
}

/// A share as the number of a file name: 75, 62.5.
struct Percent(f64);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.4}", 100.0 * self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn report(path: &PathBuf, allocation: &Allocation, child: &Shrunk, (whole, own): (f64, f64)) -> serde_json::Value {
    let part = |n: Option<usize>, of: Option<usize>| match (n, of) {
        (Some(n), Some(of)) => format!("{n} of {of}"),
        _ => "-".into(),
    };
    let dims = |l: &PlannedLayer| match l.dims {
        Some([[q, v], [of_q, of_v]]) if of_q == of_v => format!("{q}, {v} of {of_q}"),
        Some([[q, v], [of_q, of_v]]) => format!("{q} of {of_q}, {v} of {of_v}"),
        None => "-".into(),
    };
    let rows = allocation
        .layers
        .iter()
        .enumerate()
        .map(|(i, l)| match l.dropped {
            true => vec![i.to_string(), "left out".into(), String::new(), String::new()],
            false => vec![i.to_string(), part(l.heads, l.of_heads), dims(l), part(l.neurons, l.of_neurons)],
        })
        .collect();
    output::note(table(&["layer", "heads", "dimensions (q k, v)", "FFN neurons"], rows).trim_end());
    output::note(&format!(
        "wrote {}: {:.1} % of heads and FFNs, {} parameters, {} MACs, {} bytes; error on held-out images {:.4}; {own:.2} ms an image, the ancestor {whole:.2}",
        path.display(),
        100.0 * allocation.share,
        count(child.parameters),
        count(child.macs),
        child.bytes,
        child.error
    ));
    json!({
        "file": path,
        "allocation": allocation,
        "error": child.error,
        "parameters": child.parameters,
        "macs": child.macs,
        "bytes": child.bytes,
        "latency_ms": {"ancestor": whole, "descendant": own},
        "fits": child.fits,
    })
}

/// Layers whose attention maps stand in a report, at most.
const MAPS: usize = 4;

fn page(
    c: &ShrinkArgs,
    timer: &Timer,
    fitter: &Fitter,
    allocation: &Allocation,
    child: &Shrunk,
    (whole, own): (f64, f64),
    frontier: Option<&str>,
) -> Result<String> {
    let (model, sources) = (timer.model, allocation.kept_layers());
    let found = comparison::compare(&fitter.runtime, model, &child.model, &sources, fitter.held_out())?;
    let [views, held_out] = fitter.views();
    let mut facts = vec![
        ("Ancestor", c.model.display().to_string()),
        ("Kept", format!("{:.1} % of the parameters of heads and FFNs", 100.0 * allocation.share)),
        ("Calibration", format!("{views} views; {held_out} views of other images held out, for what follows")),
        ("Error behind the encoder", format!("{:.4} (squared, relative to the values)", child.error)),
        ("Correlation of the output", format!("{:.4}", found.outputs.correlation)),
        ("Largest error of the output", format!("{:.4} of the largest value", found.outputs.relative_error)),
    ];
    if let Some(top1) = found.outputs.top1_agreement {
        facts.push(("Same class", format!("{:.1} % of the views", 100.0 * top1)));
    }
    facts.push(("Runtime", timer.runtime.describe()));
    let ratio = |name: &str, a: f64, b: f64, text: fn(f64) -> String| {
        vec![name.to_string(), text(a), text(b), format!("{:.3}", b / a)]
    };
    let n = |v: f64| count(v as u64);
    let models = [
        ratio("Parameters", parameters(model.graph()) as f64, child.parameters as f64, n),
        ratio("MACs an image", Typing::new(model)?.macs() as f64, child.macs as f64, n),
        ratio("Bytes", model.bytes as f64, child.bytes as f64, n),
        ratio("Milliseconds an image", whole, own, |v| format!("{v:.2}")),
    ];
    let part = |n: Option<usize>, of: Option<usize>| n.zip(of);
    let layers: Vec<KeptLayer> =
        allocation.layers.iter().map(|l| [part(l.heads, l.of_heads), part(l.neurons, l.of_neurons)]).collect();
    let features: Vec<Vec<String>> = sources
        .iter()
        .zip(&found.layers)
        .map(|(l, r)| vec![l.to_string(), r.map_or("not known".into(), |r| format!("{r:.4}"))])
        .collect();
    let mut shown: Vec<usize> =
        (0..MAPS).map(|i| i * sources.len().saturating_sub(1) / (MAPS - 1)).filter(|&i| i < sources.len()).collect();
    shown.dedup();
    let mut maps = Vec::new();
    if let Some(view) = fitter.held_out().first() {
        let of: Vec<usize> = shown.iter().map(|&i| sources[i]).collect();
        let a = attention_maps(&fitter.runtime, model, &of, view)?;
        let b = attention_maps(&fitter.runtime, &child.model, &shown, view)?;
        for ((a, b), l) in a.into_iter().zip(b).zip(of) {
            if let (Some(ancestor), Some(descendant)) = (a, b) {
                maps.push(Seen { caption: format!("layer {l}"), ancestor, descendant });
            }
        }
    }
    let name = c.model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    shrink_page(&format!("{name}, shrunk"), &facts, &models, &layers, &features, &maps, frontier)
}

/// Allocations from the whole model down to half of its heads and FFNs, as far as they go.
fn frontier(model: &Model, removals: &Removals, limits: &Limits, latencies: Option<&Latencies>) -> Vec<Allocation> {
    FRONTIER.iter().map_while(|&s| plan(model, removals, limits, Budget::Share(s), latencies).ok()).collect()
}

fn points(frontier: &[Allocation]) -> Vec<Frontier> {
    let point = |a: &Allocation| Frontier {
        error: a.predicted_error,
        parameters: a.parameters,
        macs: a.macs,
        milliseconds: a.latency.unwrap_or(f64::NAN),
    };
    frontier.iter().map(point).collect()
}

/// Characters of the longest bar of the frontier.
const BAR: f64 = 24.0;

fn show(c: &ShrinkArgs, frontier: &[Allocation]) -> Result<()> {
    if c.json {
        return output::print_json(&json!({"schema": schema::FRONTIER, "frontier": frontier}));
    }
    let most = frontier.iter().map(|a| a.predicted_error).fold(f64::MIN_POSITIVE, f64::max);
    let rows = frontier
        .iter()
        .map(|a| {
            let list = |f: fn(&PlannedLayer) -> Option<usize>| -> String {
                let all: Vec<String> = a.layers.iter().filter_map(f).map(|n| n.to_string()).collect();
                all.join(" ")
            };
            vec![
                format!("{:.1} %", 100.0 * a.share),
                format!("{:.4}", a.predicted_error),
                "▇".repeat((BAR * a.predicted_error / most).round() as usize),
                count(a.parameters as u64),
                count(a.macs as u64),
                a.latency.map_or("-".into(), |l| format!("{l:.2}")),
                list(|l| l.heads),
                list(|l| l.neurons),
            ]
        })
        .collect();
    let header = ["kept", "predicted error", "", "parameters", "MACs", "ms", "heads", "FFN neurons"];
    output::print(&table(&header, rows))
}
