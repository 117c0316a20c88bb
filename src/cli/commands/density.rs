//! `offshoot density`: the mean attention distance of every head.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};

use super::source::{InputSource, Subject, open_for, open_towers, sized};
use super::{agree, densities, named, without_density};
use crate::anatomy::{Anatomy, layers_of_part};
use crate::axes::Typing;
use crate::cli::common::{RunFlags, SampleFlags};
use crate::cli::output::{self, table};
use crate::density::{Densities, Unit};
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
    if let Some(plot) = &c.plot {
        if plot.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) {
            return Err(Error::new(ErrorKind::Usage, "plots are SVG").at(plot).hint("name a file that ends in .svg"));
        }
        output::check_output(plot, &[&c.model], c.force)?;
    }
    if !c.samples.are_of_towers() {
        let found = measured(c, open_for(&c.model, &c.run, &c.samples)?, None)?;
        return if c.json { output::print_json(&found.json) } else { found.tell() };
    }
    if let Some(plot) = &c.plot {
        return Err(Error::new(
            ErrorKind::Usage,
            "a plot has the densities of one tower, and there are samples for two",
        )
        .at(plot)
        .hint("give the samples of one tower, or leave --plot out"));
    }
    let (whole, towers) = open_towers(&c.model, &c.run, &c.samples)?;
    let typing = named(&c.model, Typing::new(&whole))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    let of = |tower: Subject| {
        let places = named(&c.model, layers_of_part(&tower.0, (&typing, &anatomy)))?;
        measured(c, tower, Some(places))
    };
    let found: Vec<Found> = towers.into_iter().map(of).collect::<Result<_>>()?;
    if !c.json {
        return found.iter().try_for_each(Found::tell);
    }
    let towers: Map<String, Value> = found.into_iter().map(|tower| (tower.many.to_string(), tower.json)).collect();
    output::print_json(&json!({"schema": schema::DENSITY, "towers": towers}))
}

/// The densities of a model, or of a tower, and what they were measured on.
struct Found {
    densities: Densities,
    unit: Unit,
    many: &'static str,
    /// The layer of the whole model that each of its layers is.
    places: Vec<usize>,
    json: Value,
}

/// Measures the densities of a model, or of a tower whose layers have these places in the whole.
fn measured(c: &DensityArgs, opened: Subject, places: Option<Vec<usize>>) -> Result<Found> {
    let (model, arrays) = sized(opened);
    let typing = named(&c.model, Typing::new(&model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    let source = InputSource::new(&c.samples, &c.run, &model, &typing, arrays)?;
    agree(&c.model, || source.fingerprint())?;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let unit = unit(&typing, &anatomy)?;
    if let (InputSource::Arrays(_, report), Unit::Tokens) = (&source, unit) {
        report.special_line().iter().for_each(|line| output::note(line));
    }
    let places = places.unwrap_or_else(|| (0..anatomy.layers.len()).collect());
    let unread = || source.skipped();
    let layers = (&anatomy, &places[..]);
    let measured = named(&c.model, densities(&runtime, &model, &typing, layers, source.samples(), unread))?;
    if let Some(plot) = &c.plot {
        let svg = report::density_plot(&measured.layers, unit.plural())?;
        output::write_text(plot, &svg)?;
        output::note(&format!("wrote {}", plot.display()));
    }
    let without = without_density(&typing, &anatomy).into_iter();
    let without: Vec<Value> =
        without.map(|(layer, reason)| json!({ "layer": places.get(layer), "reason": reason })).collect();
    let json = json!({
        "schema": schema::DENSITY,
        "unit": unit,
        "images": measured.images,
        "preprocess": source.preprocess(),
        "input": source.report(),
        "layers": places,
        "densities": measured.layers,
        "without": without,
    });
    Ok(Found { densities: measured, unit, many: source.noun().many, places, json })
}

impl Found {
    /// Prints them as a table.
    fn tell(&self) -> Result<()> {
        let Densities { layers, images, .. } = &self.densities;
        let heads = layers.iter().map(Vec::len).max().unwrap_or(0);
        let mut header = vec!["layer".to_string()];
        header.extend((0..heads).map(|h| format!("head {h}")));
        header.push("mean".into());
        let rows = (layers.iter().zip(&self.places))
            .map(|(d, l)| {
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
        output::note(&format!("mean attention distance in {} over {images} {}", self.unit.plural(), self.many));
        output::print(&table(&header, rows))
    }
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
