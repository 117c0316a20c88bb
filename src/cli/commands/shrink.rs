//! `offshoot shrink`: smaller models on unlabelled images, without training.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::json;

use super::bundled::{Companions, in_folder};
use super::fitter::{Calibrated, FitSamples, calibrated};
use super::source::{Noun, open_for, open_towers};
use super::{in_type, named, open, open_for_images, plain};
use crate::axes::Typing;
use crate::cli::common::values::tolerance;
use crate::cli::common::{ArrayFlags, RunFlags, SampleFlags};
use crate::cli::output::{self, Bars, count, table};
use crate::data::FedReport;
use crate::density::attention_maps;
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::{
    Allocation, Budget, Fitter, Job, JobOptions, LayerBudget, Limits, Shrunk, Towers, Views, analyse, carrying,
    comparison, latency, may_cut_dims,
};
use crate::graph::{ImageInput, data_inputs};
use crate::learngene::{Learngene, PruningOrder, parameters};
use crate::metadata::schema;
use crate::metrics::Measures;
use crate::onnx::Model;
use crate::parallel;
use crate::report::{Frontier, KeptLayer, Seen, frontier_plot, shrink_page};
use crate::rounding::Dtype;
use crate::runtime::Runtime;

/// `offshoot shrink`.
#[derive(Args, Debug)]
pub struct ShrinkArgs {
    /// The ancestor, or a learngene that carries the order of removal (condense --fitted, shrink --save-learngene)
    pub model: PathBuf,
    /// Images that it is calibrated on, a few dozen or more: a folder, an IDX file, or an .npz or .npy of prepared
    /// tensors
    ///
    /// With --texts or --inputs beside them both towers of a model such as CLIP are shrunk, each on its own samples.
    /// A learngene that carries the order of removal gives descendants without images too, which are then not fitted.
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    #[command(flatten)]
    pub arrays: ArrayFlags,
    /// The descendant to write; with several sizes, the folder for them
    #[arg(short, long, value_name = "CHILD.onnx", required_unless_present_any = ["dry_run", "save_learngene"])]
    pub output: Option<PathBuf>,
    /// Make -o a folder: the descendant becomes model.onnx in it, beside the tokenizer and configurations that lie
    /// beside the model, with its own sizes
    ///
    /// Of several sizes each has a folder in -o.
    #[arg(long)]
    pub with_configs: bool,
    /// Share of the parameters of all heads and FFNs to keep; several, such as 85%,75%,50%, give several descendants
    #[arg(long, value_name = "P%", value_delimiter = ',', value_parser = kept_share,
        required_unless_present_any = ["budget", "dry_run", "save_learngene"], conflicts_with = "budget")]
    pub to: Vec<f64>,
    /// What the whole model may cost instead: params=12M, macs=2G, bytes=20MB or latency=8ms (on this machine, one
    /// image)
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
    /// Random views of the images that matrices are fitted on; of arrays and texts, samples at most [default: 192; of
    /// texts, as many as have the tokens of so many images]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub crops: Option<u32>,
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
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Levers",
        value_parser = clap::value_parser!(u32).range(1..))]
    pub min_heads: u32,
    /// Neurons that every FFN keeps at least
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Levers",
        value_parser = clap::value_parser!(u32).range(2..))]
    pub min_ffn: u32,
    /// Type that the descendant computes in, or int8 for its weights; its inputs and outputs are float32 [default: as
    /// the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Leave what is constant at the model's image size to be computed at every run
    #[arg(long)]
    pub no_fold: bool,
    /// FFNs keep a multiple of this many neurons
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Levers",
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub multiple_of: u32,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub run: RunFlags,
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
    let threads = c.run.runtime.threads.map(usize::from).or_else(parallel::threads).unwrap_or(cores);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::new(ErrorKind::Usage, format!("{threads} threads cannot be started: {e}")))?;
    pool.install(|| shrink(c))
}

/// The model, and what it is fitted on.
fn opened(c: &ShrinkArgs, samples: &SampleFlags) -> Result<(Model, Option<FitSamples>)> {
    Ok(match (c.arrays.path(), &c.images) {
        (Some(_), Some(_)) => {
            let (model, towers) = open_towers(&c.model, &c.run, samples)?;
            (model, Some(FitSamples::Towers(towers)))
        }
        (Some(_), None) => {
            let (model, arrays) = open_for(&c.model, &c.run, samples)?;
            (model, Some(FitSamples::Whole(arrays)))
        }
        (None, Some(_)) => (open_for_images(&c.model, &c.run.open, &c.run.transform)?, Some(FitSamples::Whole(None))),
        (None, None) => (open(&c.model, &c.run.open)?, None),
    })
}

fn shrink(c: &ShrinkArgs) -> Result<()> {
    let start = Instant::now();
    let samples = SampleFlags { images: c.images.clone(), arrays: c.arrays.clone() };
    let (model, fed) = opened(c, &samples)?;
    let sizes = sizes(c)?;
    let outputs: Vec<PathBuf> =
        (sizes.iter().map(|s| &s.1)).chain(&c.save_learngene).chain(&c.plot).chain(&c.report).cloned().collect();
    output::check_distinct(&outputs)?;
    let companions = Companions::asked(c.with_configs, &c.model, c.arrays.tokens.tokenizer.as_deref(), &model)?;
    for path in &outputs {
        match companions.as_ref().filter(|_| sizes.iter().any(|(_, child)| child == path)) {
            Some(companions) => companions.check(path, &c.model, c.force)?,
            None => output::check_output(path, &[&c.model], c.force)?,
        }
    }
    let recorded = Learngene::read(&model)?.and_then(|gene| gene.removals);
    let bars = Bars::default();
    let views = Views { count: c.crops.map(|n| n as usize), seed: c.seed };
    let calibrated = fed.map(|fed| calibrated(&model, (&samples, fed), &c.run, views, &bars)).transpose()?;
    let mut job = job(c, &model, recorded, &sizes, calibrated.as_ref(), &bars)?;
    let wants_time = |b: &Budget| matches!(b, Budget::Latency(_));
    if c.dry_run || c.plot.is_some() || sizes.iter().any(|s| wants_time(&s.0)) {
        named(&c.model, job.measure(&bars))?;
    }
    let mut frontier_svg = None;
    if c.dry_run || c.plot.is_some() || c.report.is_some() {
        let frontier = job.frontier();
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
    for (budget, path) in &sizes {
        let (calibrated, companions) = (calibrated.as_ref(), companions.as_ref());
        let made = ChildToMake { c, path, calibrated, companions, frontier: frontier_svg.as_deref() };
        reports.extend(made.make(&mut job, *budget, &bars)?);
    }
    // The first process measures times for its report; the others are quiet until it has.
    parallel::first(|| Ok(()))?;
    let total = start.elapsed().as_secs_f64();
    let timings = job.shrinker.as_ref().map(Towers::timings).unwrap_or_default();
    let times: Vec<String> = timings.iter().map(|t| format!("{} {:.1} s", t.stage, t.seconds)).collect();
    output::note(&format!("{}; in all {total:.1} s on {}", times.join(", "), job.runtime.describe()));
    if c.json {
        let [views, held_out] = calibrated.as_ref().map_or([0; 2], |f| f.views());
        return output::print_json(&json!({
            "schema": schema::SHRINK,
            "views": views,
            "held_out": held_out,
            "seed": c.seed,
            "input": calibrated.as_ref().map(|f| f.report()),
            "fed": FedReport::of(&model),
            "descendants": reports,
            "seconds": {"stages": timings, "total": total},
            "runtime": job.runtime.kind,
        }));
    }
    Ok(())
}

/// The job, with the order of removal that the model carries (`recorded`) or that is measured here; the learngene is
/// written where that is asked for.
fn job<'m>(
    c: &ShrinkArgs,
    model: &'m Model,
    recorded: Option<PruningOrder>,
    sizes: &[(Budget, PathBuf)],
    calibrated: Option<&'m Calibrated>,
    bars: &Bars,
) -> Result<Job<'m>> {
    let mut towers = calibrated.map(|f| f.towers(model)).transpose()?;
    if let (Some(towers), Some(limit)) = (&mut towers, c.memory_limit) {
        towers.limit_memory(limit as u64);
    }
    let limits = limits(c, sizes);
    let removals = match (recorded, &mut towers) {
        (Some(removals), _) => removals,
        (None, Some(towers)) => named(&c.model, analyse(towers, &limits, bars))?,
        (None, None) => {
            let takes_images = Typing::new(model).is_ok_and(|typing| typing.image_input().is_some());
            let (what, hint) = match takes_images {
                true => ("images", "give --images PATH: a few dozen photographs, no labels"),
                false => (
                    "samples",
                    "give --texts PATH or --inputs PATH: a few dozen texts, or arrays of samples, no labels",
                ),
            };
            return Err(Error::new(ErrorKind::Usage, format!("shrink calibrates the ancestor on {what}"))
                .at(&c.model)
                .hint(hint));
        }
    };
    if towers.is_none() {
        output::warn("no samples: descendants are thinned in the learngene's order, and not fitted");
    }
    if let Some(path) = &c.save_learngene {
        let origin = calibrated.map(Calibrated::origin).transpose()?;
        let gene = carrying(model, removals.clone(), origin)?;
        let bytes = output::write_model(path, &gene)?;
        output::note(&format!("wrote {} ({bytes} bytes)", path.display()));
    }
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let options = JobOptions {
        always_cut_dims: c.head_dim,
        fold: !c.no_fold,
        max_error: c.max_error,
        seed: c.seed,
        dtype: c.dtype,
    };
    Ok(Job::new(model, towers, removals, limits, runtime, options))
}

/// Levers; whether dimensions of heads are cut is decided for each size, and here whether that has to be measured.
fn limits(c: &ShrinkArgs, sizes: &[(Budget, PathBuf)]) -> Limits {
    let small = sizes.iter().any(|(budget, _)| may_cut_dims(budget));
    Limits {
        dims: !c.no_head_dim && (c.head_dim || c.save_learngene.is_some() || small),
        heads: !c.no_heads,
        neurons: !c.no_ffn,
        depth: !c.no_layers,
        layers: c.only_layers.clone(),
        min_heads: c.min_heads as usize,
        min_neurons: c.min_ffn as usize,
        multiple: c.multiple_of as usize,
    }
}

/// A descendant that is to be made and written.
struct ChildToMake<'c> {
    c: &'c ShrinkArgs,
    path: &'c Path,
    calibrated: Option<&'c Calibrated>,
    companions: Option<&'c Companions>,
    /// The plot of the frontier, for the report.
    frontier: Option<&'c str>,
}

impl ChildToMake<'_> {
    /// Makes and writes it, and says what it is: in JSON, by the first of several processes.
    fn make(&self, job: &mut Job, budget: Budget, bars: &Bars) -> Result<Option<serde_json::Value>> {
        let (c, images) = (self.c, self.calibrated);
        let allocation = named(&c.model, job.allocate(budget))?;
        let made = job.make(&allocation, &|n, of| bars.tell("refit", n, of));
        bars.clear();
        let mut child = made?;
        if !parallel::is_first() {
            return Ok(None);
        }
        named(&c.model, job.fold(&mut child))?;
        let wide = |(f, towers): (&Calibrated, &Towers)| f.wide(towers, &child.model, c.dtype, bars);
        let wide = named(&c.model, images.zip(job.shrinker.as_ref()).map(wide).transpose())?.flatten();
        let int8 = named(&c.model, in_type(&mut child.model, c.dtype, wide.as_ref()))?;
        job.describe(&mut child, &allocation, images.and_then(|f| f.preprocess()))?;
        let milliseconds = named(&c.model, timed(job, &child.model))?;
        if self.companions.is_some() {
            Companions::make_folder(self.path)?;
        }
        child.bytes = plain::write_model(self.path, &child.model, &c.run.runtime)?;
        let noun = images.map_or(Noun::of(None), |f| f.noun());
        let mut report = report(self.path, &allocation, &child, milliseconds, noun);
        if let Some(int8) = int8 {
            report["int8"] = json!(int8);
        }
        if let Some(companions) = self.companions {
            report["configs"] = json!(companions.write(self.path, &child.model, &allocation.kept_layers())?);
        }
        if let (Some(file), Some(images), Some(times)) = (&c.report, images, milliseconds) {
            let page = page(c, job, images, &allocation, &child, times, self.frontier);
            output::write_text(file, &named(&c.model, page)?)?;
        }
        Ok(Some(report))
    }
}

/// Milliseconds of a sample through the ancestor and through a child; none where it takes no images, for which any
/// would do, and there are no samples.
fn timed(job: &Job, child: &Model) -> Result<Option<(f64, f64)>> {
    let takes_images = ImageInput::of(job.ancestor.graph()).is_some() && data_inputs(job.ancestor.graph()).len() == 1;
    match job.sample().is_some() || takes_images {
        true => latency::side_by_side(&job.runtime, job.ancestor, child, job.sample()).map(Some),
        false => Ok(None),
    }
}

/// What is to be made: budgets and outputs.
fn sizes(c: &ShrinkArgs) -> Result<Vec<(Budget, PathBuf)>> {
    let Some(output) = c.output.as_ref().filter(|_| !c.dry_run) else { return Ok(Vec::new()) };
    let placed = |output: &Path| if c.with_configs { in_folder(output) } else { Ok(output.to_path_buf()) };
    if let Some(budget) = c.budget {
        return Ok(vec![(budget, placed(output)?)]);
    }
    if let [share] = c.to[..] {
        return Ok(vec![(Budget::Share(share), placed(output)?)]);
    }
    if !output.is_dir() && parallel::is_first() {
        std::fs::create_dir(output).map_err(|e| Error::io(output, e).hint("several sizes need a folder: -o FOLDER"))?;
    }
    let stem = c.model.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let child = |s: f64| match c.with_configs {
        true => in_folder(&output.join(format!("{stem}-{}", Percent(s)))),
        false => Ok(output.join(format!("{stem}-{}.onnx", Percent(s)))),
    };
    c.to.iter().map(|&s| Ok((Budget::Share(s), child(s)?))).collect()
}

/// A share as the number of a file name: 75, 62.5.
struct Percent(f64);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.4}", 100.0 * self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn report(
    path: &Path,
    allocation: &Allocation,
    child: &Shrunk,
    milliseconds: Option<(f64, f64)>,
    noun: Noun,
) -> serde_json::Value {
    let part = |n: Option<usize>, of: Option<usize>| match (n, of) {
        (Some(n), Some(of)) => format!("{n} of {of}"),
        _ => "-".into(),
    };
    let dims = |l: &LayerBudget| match l.dims {
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
    let list = |errors: &BTreeMap<String, f64>| {
        let each: Vec<String> = errors.iter().map(|(of, error)| format!("{of} {error:.4}")).collect();
        each.join(", ")
    };
    let error = match child.errors.is_empty() {
        true => format!("{:.4}", child.error),
        false => format!("{} ({})", list(&child.errors), list(&child.outputs)),
    };
    let times = match milliseconds {
        Some((whole, own)) => format!("{own:.2} ms {}, the ancestor {whole:.2}", noun.one),
        None => "not timed: there are no samples of its inputs".to_owned(),
    };
    output::note(&format!(
        "wrote {}: {:.1} % of heads and FFNs, {} parameters, {} MACs, {} bytes; error on held-out {} {error}; {times}",
        path.display(),
        100.0 * allocation.share,
        count(child.parameters),
        count(child.macs),
        child.bytes,
        noun.many,
    ));
    let mut report = json!({
        "file": path,
        "allocation": allocation,
        "error": child.error,
        "parameters": child.parameters,
        "macs": child.macs,
        "bytes": child.bytes,
        "latency_ms": milliseconds.map(|(whole, own)| json!({"ancestor": whole, "descendant": own})),
        "fits": child.fits,
    });
    if !child.errors.is_empty() {
        report["errors"] = json!(child.errors);
        report["output_errors"] = json!(child.outputs);
    }
    report
}

/// Layers whose attention maps stand in a report, at most.
const MAPS: usize = 4;

fn page(
    c: &ShrinkArgs,
    job: &Job,
    calibrated: &Calibrated,
    allocation: &Allocation,
    child: &Shrunk,
    (whole, own): (f64, f64),
    frontier: Option<&str>,
) -> Result<String> {
    let (model, sources) = (job.ancestor, allocation.kept_layers());
    let ([views, held_out], noun) = (calibrated.views(), calibrated.noun());
    let held_out = match noun.many {
        "images" => format!("{views} views; {held_out} views of other images held out, for what follows"),
        many => format!("{views} {many}; {held_out} others held out, for what follows"),
    };
    let mut facts = vec![
        ("Ancestor".to_string(), c.model.display().to_string()),
        ("Kept".into(), format!("{:.1} % of the parameters of heads and FFNs", 100.0 * allocation.share)),
        ("Calibration".into(), held_out),
    ];
    let (mut features, mut maps) = (vec![Vec::new(); sources.len()], Vec::new());
    let each = job.shrinker.as_ref().map(|towers| towers.each().iter().map(move |tower| (towers, tower)));
    for (part, (towers, tower)) in calibrated.parts().iter().zip(each.into_iter().flatten()) {
        let fitter = &part.fitter;
        let own = Small { of: towers.part(tower, model)?, model: towers.part(tower, &child.model)?, fitter };
        let (places, layers): (Vec<usize>, Vec<usize>) =
            sources.iter().enumerate().filter_map(|(place, &l)| Some((place, tower.own(l)?))).unzip();
        let (held, mask) = (fitter.held_out(), fitter.mask());
        let found = comparison::compare(&fitter.runtime, &own.of, &own.model, &layers, held, mask)?;
        let error = child.errors.get(&tower.name).unwrap_or(&child.error);
        facts.extend(agreement(&tower.name, *error, &found.outputs));
        for (&place, r) in places.iter().zip(&found.layers) {
            features[place] = vec![sources[place].to_string(), r.map_or("not known".into(), |r| format!("{r:.4}"))];
        }
        maps.extend(own.maps(&layers, &|at| sources[places[at]])?);
    }
    facts.push(("Runtime".into(), job.runtime.describe()));
    let ratio = |name: &str, a: f64, b: f64, text: fn(f64) -> String| {
        vec![name.to_string(), text(a), text(b), format!("{:.3}", b / a)]
    };
    let n = |v: f64| count(v as u64);
    let models = [
        ratio("Parameters", parameters(model.graph()) as f64, child.parameters as f64, n),
        ratio(&format!("MACs {}", noun.one), Typing::new(job.sized())?.macs() as f64, child.macs as f64, n),
        ratio("Bytes", model.bytes as f64, child.bytes as f64, n),
        ratio(&format!("Milliseconds {}", noun.one), whole, own, |v| format!("{v:.2}")),
    ];
    let part = |n: Option<usize>, of: Option<usize>| n.zip(of);
    let layers: Vec<KeptLayer> =
        allocation.layers.iter().map(|l| [part(l.heads, l.of_heads), part(l.neurons, l.of_neurons)]).collect();
    let facts: Vec<(&str, String)> = facts.iter().map(|(name, fact)| (name.as_str(), fact.clone())).collect();
    let name = c.model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    shrink_page(&format!("{name}, shrunk"), &facts, &models, &layers, &features, &maps, frontier)
}

/// What a report says of a tower, or of a model that has no name of a tower.
fn agreement(tower: &str, error: f64, outputs: &Measures) -> Vec<(String, String)> {
    let of = |what: &str| if tower.is_empty() { what.to_string() } else { format!("{what}, {tower} tower") };
    let mut facts = vec![
        (of("Error behind the encoder"), format!("{error:.4} (squared, relative to the values)")),
        (of("Correlation of the output"), format!("{:.4}", outputs.correlation)),
        (of("Largest error of the output"), format!("{:.4} of the largest value", outputs.relative_error)),
    ];
    facts.extend(
        outputs.top1_agreement.map(|top1| (of("Same class"), format!("{:.1} % of what is held out", 100.0 * top1))),
    );
    facts
}

/// A descendant, or a tower of it, beside that of the ancestor.
struct Small<'m> {
    of: Cow<'m, Model>,
    model: Cow<'m, Model>,
    fitter: &'m Fitter,
}

impl Small<'_> {
    /// Attention maps of some of its layers on an image, where it takes one. They come from these layers of the
    /// ancestor; `name` has the number of each in the report.
    fn maps(&self, layers: &[usize], name: &dyn Fn(usize) -> usize) -> Result<Vec<Seen>> {
        let (runtime, mut maps) = (&self.fitter.runtime, Vec::new());
        let mut shown: Vec<usize> =
            (0..MAPS).map(|i| i * layers.len().saturating_sub(1) / (MAPS - 1)).filter(|&i| i < layers.len()).collect();
        shown.dedup();
        let view = self.fitter.held_out().first().filter(|view| view.len() == 1).and_then(|v| v.values().next());
        if let Some(view) = view.filter(|view| view.ndim() == 4) {
            let of: Vec<usize> = shown.iter().map(|&i| layers[i]).collect();
            let a = attention_maps(runtime, &self.of, &of, view)?;
            let b = attention_maps(runtime, &self.model, &shown, view)?;
            for ((a, b), at) in a.into_iter().zip(b).zip(shown) {
                if let (Some(ancestor), Some(descendant)) = (a, b) {
                    maps.push(Seen { caption: format!("layer {}", name(at)), ancestor, descendant });
                }
            }
        }
        Ok(maps)
    }
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
            let list = |f: fn(&LayerBudget) -> Option<usize>| -> String {
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
