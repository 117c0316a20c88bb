//! `offshoot density`: the mean attention distance of every head.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::source::{Source, open_for, sized};
use super::{agree, densities, named, without_density};
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::cli::common::{RunFlags, SampleFlags};
use crate::cli::output::{self, table};
use crate::density::Unit;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::schema;
use crate::report;
use crate::runtime::Runtime;

/// `offshoot density`.
#[derive(Args, Debug)]
pub struct DensityArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub samples: SampleFlags,
    /// Write a plot of density against depth (SVG)
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub run: RunFlags,
}

/// Runs the command.
pub fn run(c: &DensityArgs) -> Result<()> {
    let (model, arrays) = sized(open_for(&c.model, &c.run, &c.samples)?);
    let typing = named(&c.model, Typing::new(&model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    if let Some(plot) = &c.plot {
        if plot.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) {
            return Err(Error::new(ErrorKind::Usage, "plots are SVG").at(plot).hint("name a file that ends in .svg"));
        }
        output::check_output(plot, &[&c.model], c.force)?;
    }
    let source = Source::new(&c.samples, &c.run, &model, &typing, arrays)?;
    agree(&c.model, || source.fingerprint())?;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let unit = unit(&typing, &anatomy)?;
    if let (Source::Arrays(_, report), Unit::Tokens) = (&source, unit) {
        report.special_line().iter().for_each(|line| output::note(line));
    }
    let unread = || source.skipped();
    let measured = named(&c.model, densities(&runtime, &model, &typing, &anatomy, source.samples(), unread))?;
    if let Some(plot) = &c.plot {
        let svg = report::density_plot(&measured.layers, unit.plural())?;
        output::write_text(plot, &svg)?;
        output::note(&format!("wrote {}", plot.display()));
    }
    if c.json {
        return output::print_json(&json!({
            "schema": schema::DENSITY,
            "unit": unit,
            "images": measured.images,
            "preprocess": source.preprocess(),
            "input": source.report(),
            "densities": measured.layers,
            "without": without_density(&typing, &anatomy)
                .into_iter()
                .map(|(layer, reason)| json!({ "layer": layer, "reason": reason }))
                .collect::<Vec<_>>(),
        }));
    }
    let heads = measured.layers.iter().map(Vec::len).max().unwrap_or(0);
    let mut header = vec!["layer".to_string()];
    header.extend((0..heads).map(|h| format!("head {h}")));
    header.push("mean".into());
    let rows = measured
        .layers
        .iter()
        .enumerate()
        .map(|(l, d)| {
            let mut row = vec![l.to_string()];
            row.extend((0..heads).map(|h| d.get(h).map(|v| format!("{v:.2}")).unwrap_or_default()));
            row.push(match d.len() {
                0 => "-".into(),
                n => format!("{:.2}", d.iter().sum::<f64>() / n as f64),
            });
            row
        })
        .collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let (unit, many) = (unit.plural(), source.noun().many);
    output::note(&format!("mean attention distance in {unit} over {} {many}", measured.images));
    output::print(&table(&header, rows))
}

/// What densities are in; pixels where no layer has any, which measuring them refuses.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where some are in pixels and some in tokens.
fn unit(typing: &Typing, anatomy: &Anatomy) -> Result<Unit> {
    let units: Vec<Unit> = anatomy.layers.iter().filter_map(|l| Unit::of(typing, l)).collect();
    match units.split_first() {
        Some((first, rest)) if rest.iter().any(|unit| unit != first) => {
            Err(Error::new(ErrorKind::Unsupported, "some layers attend over an image, and others over a sequence")
                .hint("pick the output of one of them with --of"))
        }
        Some((first, _)) => Ok(*first),
        None => Ok(Unit::Pixels),
    }
}
