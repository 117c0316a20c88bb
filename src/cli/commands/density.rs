//! `offshoot density`: the mean attention distance of every head.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{agree, densities, images, named, open_to_run, without_density};
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::cli::common::RunFlags;
use crate::cli::output::{self, table};
use crate::data::InputReport;
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::schema;
use crate::report;
use crate::runtime::Runtime;

/// `offshoot density`.
#[derive(Args, Debug)]
pub struct DensityArgs {
    /// The model
    pub model: PathBuf,
    /// Images: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: PathBuf,
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
    let model = open_to_run(&c.model, &c.run.open, &c.run.runtime, &c.run.transform)?;
    let typing = named(&c.model, Typing::new(&model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    if let Some(plot) = &c.plot {
        if plot.extension().is_none_or(|e| !e.eq_ignore_ascii_case("svg")) {
            return Err(Error::new(ErrorKind::Usage, "plots are SVG").at(plot).hint("name a file that ends in .svg"));
        }
        output::check_output(plot, &[&c.model], c.force)?;
    }
    let loader = images(&c.images, &c.run.transform, &model, &typing)?;
    agree(&c.model, || loader.fingerprint())?;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let measured = named(&c.model, densities(&runtime, &model, &typing, &anatomy, &loader))?;
    if let Some(plot) = &c.plot {
        let svg = report::density_plot(&measured.layers)?;
        output::write_text(plot, &svg)?;
        output::note(&format!("wrote {}", plot.display()));
    }
    if c.json {
        return output::print_json(&json!({
            "schema": schema::DENSITY,
            "unit": "px",
            "images": measured.images,
            "preprocess": loader.preprocess(),
            "input": InputReport::new(&model, &typing, loader.preprocess()),
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
    output::note(&format!("mean attention distance in pixels over {} images", measured.images));
    output::print(&table(&header, rows))
}
