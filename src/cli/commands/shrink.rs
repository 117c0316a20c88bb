//! `offshoot shrink`: smaller models on unlabelled images, without training.

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use indicatif::ProgressBar;
use serde_json::json;

use super::{images, named, open, skipped};
use crate::axes::Typing;
use crate::cli::flags::Shrink;
use crate::cli::output::{self, count, table};
use crate::descendant::{fold_constants, has_fixed_size};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::{Allocation, Budget, Calibration, Limits, Shrinker, Shrunk, Timing, stages};
use crate::learngene::parameters;
use crate::report::PREPROCESS;
use crate::runtime::{Options, Runtime};

/// Sizes of the frontier that `--dry-run` shows.
const FRONTIER: [f64; 11] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5];

/// Runs the command.
pub fn run(c: &Shrink) -> Result<()> {
    let cores = std::thread::available_parallelism().map(|n| n.get()).unwrap_or(1);
    let threads = c.runtime.threads.map_or(cores, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|e| Error::new(ErrorKind::Usage, format!("{threads} threads cannot be started: {e}")))?;
    pool.install(|| shrink(c))
}

fn shrink(c: &Shrink) -> Result<()> {
    let start = Instant::now();
    let model = open(&c.model, c.open)?;
    let jobs = jobs(c)?;
    let outputs: Vec<PathBuf> = jobs.iter().filter_map(|j| j.1.clone()).collect();
    output::check_distinct(&outputs)?;
    for path in &outputs {
        output::check_output(path, &[&c.model], c.force)?;
    }
    let loader = {
        let typing = named(&c.model, Typing::new(&model))?;
        images(&c.images, &c.transform, &model, &typing)?
    };
    // Every session has one thread, and images are worked on side by side: results do not depend on the number of threads.
    let runtime = Runtime::start(&Options { threads: Some(1), ..c.runtime.options() })?;
    let bars = Bars::default();
    let calibration = Calibration::draw(&loader, c.crops as usize, c.seed, &|n, of| bars.tell("views", n, of))?;
    let drawn = start.elapsed().as_secs_f64();
    skipped(&loader);
    let (views, held_out) = (calibration.fit.len(), calibration.held_out.len());
    let pinned = named(&c.model, stages::pin(&model))?;
    let mut shrinker = named(&c.model, Shrinker::new(&model, &pinned, &runtime, calibration))?;
    shrinker.timings.insert(0, Timing { stage: "views", seconds: drawn });
    let limits = Limits {
        heads: !c.no_heads,
        neurons: !c.no_ffn,
        layers: c.only_layers.clone(),
        min_heads: c.min_heads as usize,
        min_neurons: c.min_ffn as usize,
        multiple: c.multiple_of as usize,
    };
    let analysis = shrinker.analyse(&limits, &|stage, n, of| bars.tell(stage, n, of))?;
    for w in &analysis.warnings {
        output::warn(w);
    }
    if c.dry_run {
        let mut frontier = Vec::new();
        for share in FRONTIER {
            match shrinker.allocate(&analysis, &limits, Budget::Share(share)) {
                Ok(a) => frontier.push(a),
                Err(_) => break,
            }
        }
        bars.clear();
        return show(c, &frontier);
    }
    let allocations: Vec<Allocation> =
        jobs.iter().map(|j| shrinker.allocate(&analysis, &limits, j.0)).collect::<Result<_>>()?;
    let mut reports = Vec::new();
    for ((_, path), allocation) in jobs.iter().zip(&allocations) {
        let mut child = shrinker.shrink(&analysis, allocation, &|n, of| bars.tell("refit", n, of))?;
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
        if !c.no_fold && has_fixed_size(&child.model) {
            child.model = named(&c.model, fold_constants(&runtime, &child.model, None))?;
            child.parameters = parameters(child.model.graph());
        }
        if let (Some(preprocess), None) = (loader.preprocess(), model.metadata(PREPROCESS)) {
            let text = serde_json::to_string(preprocess).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
            child.model.set_metadata(PREPROCESS, text);
        }
        if let Some(path) = path {
            child.bytes = child.model.write(path)?;
        }
        reports.push(report(path.as_ref(), allocation, &child));
    }
    let total = start.elapsed().as_secs_f64();
    let times: Vec<String> = shrinker.timings.iter().map(|t| format!("{} {:.1} s", t.stage, t.seconds)).collect();
    output::note(&format!("{}; in all {total:.1} s on {}", times.join(", "), runtime.describe()));
    if c.json {
        return output::print_json(&json!({
            "schema": "offshoot.shrink/1",
            "views": views,
            "held_out": held_out,
            "seed": c.seed,
            "descendants": reports,
            "seconds": {"stages": shrinker.timings, "total": total},
            "runtime": runtime.kind,
        }));
    }
    Ok(())
}

/// What is to be made: budgets and outputs.
fn jobs(c: &Shrink) -> Result<Vec<(Budget, Option<PathBuf>)>> {
    if c.dry_run {
        return Ok(Vec::new());
    }
    let Some(output) = &c.output else {
        return Err(Error::new(ErrorKind::Usage, "no output was named").hint("give -o CHILD.onnx, or --dry-run"));
    };
    if let Some(budget) = c.budget {
        return Ok(vec![(budget, Some(output.clone()))]);
    }
    if let [share] = c.to[..] {
        return Ok(vec![(Budget::Share(share), Some(output.clone()))]);
    }
    if !output.is_dir() {
        std::fs::create_dir(output).map_err(|e| Error::io(output, e).hint("several sizes need a folder: -o FOLDER"))?;
    }
    let stem = c.model.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(c.to.iter().map(|&s| (Budget::Share(s), Some(output.join(format!("{stem}-{}.onnx", Percent(s)))))).collect())
}

/// A share as the number of a file name: 75, 62.5.
struct Percent(f64);

impl std::fmt::Display for Percent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.4}", 100.0 * self.0);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

fn report(path: Option<&PathBuf>, allocation: &Allocation, child: &Shrunk) -> serde_json::Value {
    let part = |n: Option<usize>, of: Option<usize>| match (n, of) {
        (Some(n), Some(of)) => format!("{n} of {of}"),
        _ => "-".into(),
    };
    let rows = allocation
        .layers
        .iter()
        .enumerate()
        .map(|(i, l)| vec![i.to_string(), part(l.heads, l.of_heads), part(l.neurons, l.of_neurons)])
        .collect();
    output::note(table(&["layer", "heads", "FFN neurons"], rows).trim_end());
    output::note(&format!(
        "{}: {:.1} % of heads and FFNs, {} parameters, {} MACs, {} bytes; error on held-out images {:.4}",
        path.map(|p| format!("wrote {}", p.display())).unwrap_or_default(),
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
        "fits": child.fits,
    })
}

fn show(c: &Shrink, frontier: &[Allocation]) -> Result<()> {
    if c.json {
        return output::print_json(&json!({"schema": "offshoot.frontier/1", "frontier": frontier}));
    }
    let rows = frontier
        .iter()
        .map(|a| {
            let list = |f: fn(&crate::fitting::PlannedLayer) -> Option<usize>| -> String {
                let all: Vec<String> = a.layers.iter().filter_map(f).map(|n| n.to_string()).collect();
                all.join(" ")
            };
            vec![
                format!("{:.1} %", 100.0 * a.share),
                format!("{:.4}", a.predicted_error),
                list(|l| l.heads),
                list(|l| l.neurons),
            ]
        })
        .collect();
    output::print(&table(&["kept", "predicted error", "heads", "FFN neurons"], rows))
}

/// One progress bar after the other.
#[derive(Default)]
struct Bars(Mutex<Option<(&'static str, ProgressBar)>>);

impl Bars {
    fn tell(&self, stage: &'static str, done: usize, of: usize) {
        let Ok(mut bar) = self.0.lock() else { return };
        if bar.as_ref().is_none_or(|b| b.0 != stage) {
            if let Some((_, old)) = bar.take() {
                old.finish_and_clear();
            }
            *bar = Some((stage, output::progress(of, stage)));
        }
        if let Some((_, bar)) = bar.as_ref() {
            bar.set_position(bar.position().max(done as u64));
        }
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.0.lock()
            && let Some((_, old)) = bar.take()
        {
            old.finish_and_clear();
        }
    }
}
