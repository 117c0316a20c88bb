//! `offshoot study`: a grid of cells, and its tables.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;

use crate::cli::common::RuntimeFlags;
use crate::cli::common::values::positive;
use crate::cli::output::{self, table, write_text};
use crate::error::{Error, ErrorKind, Result};
use crate::report::{Picture, Section, density_plot, study_page};
use crate::runtime::Runtime;
use crate::study::{Cell, CellRecord, Results, Study, Tables, pack};

/// `offshoot study`.
#[derive(Args, Debug)]
pub struct StudyArgs {
    /// The study, a TOML file
    pub study: PathBuf,
    /// Folder of results: cells in cells/, tables and plots beside it [default: results/ beside the study]
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// A smoke run: one seed, one epoch, few images
    #[arg(long)]
    pub quick: bool,
    /// Begin no cell after so many minutes; 0 makes the tables of what is there
    #[arg(long, value_name = "N", value_parser = positive)]
    pub minutes: Option<f64>,
    /// Check the study, list its cells and compute none
    #[arg(long)]
    pub dry_run: bool,
    /// Compute nothing: move the study's cells from cells/ into one file, STUDY.cells.jsonl, which is read as they are
    #[arg(long, conflicts_with_all = ["minutes", "dry_run", "json"])]
    pub pack: bool,
    /// Print the tables as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub runtime: RuntimeFlags,
}

/// Runs the command.
pub fn run(c: &StudyArgs) -> Result<()> {
    let beside = || c.study.parent().unwrap_or(Path::new("")).join("results");
    let mut folder = c.folder.clone().unwrap_or_else(beside);
    if c.quick {
        folder = folder.join("quick");
    }
    if c.pack {
        let (count, file) = pack(&c.study, c.quick, &folder)?;
        output::note(&format!("packed {count} cells into {}", file.display()));
        return Ok(());
    }
    let mut study = Study::open(&c.study, c.quick, Runtime::start(&c.runtime.options())?)?;
    for (name, input) in &study.inputs {
        input.lines().iter().for_each(|line| output::note(&format!("`{name}`: {line}")));
    }
    study.warnings.iter().for_each(|warning| output::warn(warning));
    let mut results = Results::open(&folder)?;
    let cells = results.cells();
    if c.dry_run {
        let there = |c: &Cell| if results.has(c) { "there" } else { "to do" }.to_string();
        let rows = study.cells.iter().map(|c| vec![c.file(), there(c)]).collect();
        return output::print(&table(&["cell", ""], rows));
    }
    fs::create_dir_all(&cells).map_err(|e| Error::io(&cells, e))?;
    let begun = Instant::now();
    let in_time = || c.minutes.is_none_or(|m| begun.elapsed().as_secs_f64() < 60.0 * m);
    let bar = output::progress(study.cells.len(), "study");
    let mut failed: Vec<String> = Vec::new();
    while in_time() {
        let Some((cell, _claim)) = study.next(&mut results, &failed)?.map(|(cell, claim)| (cell.clone(), claim)) else {
            break;
        };
        let name = cell.file();
        bar.set_position(study.cells.iter().filter(|c| results.has(c)).count() as u64);
        let result = study.compute(&cell, &results, &|text| bar.set_message(format!("{name} {text}")));
        let record = match result {
            Ok(record) => record,
            // A training that diverges is a result of its own, and no reason to leave the other cells undone.
            Err(e) if e.kind() == ErrorKind::Check => {
                bar.suspend(|| output::warn(&format!("{name}: {}", e.marked())));
                failed.push(name);
                continue;
            }
            Err(e) => return Err(e),
        };
        let seconds = record.seconds[0] + record.seconds[1];
        bar.suspend(|| output::note(&format!("{name}: {:.2} % in {seconds:.0} s", 100.0 * record.last())));
    }
    bar.finish_and_clear();
    let records = study.records(&results)?;
    let tables =
        Tables { inputs: study.inputs.clone(), ..Tables::new(&study.title, study.reference.as_deref(), &records) };
    let written = write(c, &study, &folder, &cells, &tables, &records)?;
    output::note(&format!("{} wrote {}", tables.summary(), written.display()));
    if c.json {
        output::print(&tables.json()?)?;
    } else {
        let header = tables.header();
        for (above, rows) in tables.parts() {
            output::print(&format!("\n{above}\n{}", table(&header, rows)))?;
        }
    }
    match failed.len() {
        0 => Ok(()),
        n => Err(Error::new(ErrorKind::Check, format!("{n} cells failed, the first is {}", failed[0])).at(&c.study)),
    }
}

/// Writes the tables, the plots and the report. Returns the report's path.
fn write(
    c: &StudyArgs,
    study: &Study,
    folder: &Path,
    cells: &Path,
    tables: &Tables,
    records: &[(&Cell, Option<CellRecord>)],
) -> Result<PathBuf> {
    let stem = c.study.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let file = |suffix: &str| folder.join(format!("{stem}{suffix}"));
    write_text(&file(".csv"), &tables.csv())?;
    write_text(&file(".json"), &tables.json()?)?;
    let header: Vec<String> = tables.header().into_iter().map(String::from).collect();
    let mut sections: Vec<Section> =
        tables.parts().into_iter().map(|(heading, rows)| Section { heading, header: header.clone(), rows }).collect();
    let searches = searches(records);
    let mut markdown = tables.markdown(&study.note);
    for section in &searches {
        markdown += &format!(
            "\n## {}\n\n| {} |\n|{}\n",
            section.heading,
            section.header.join(" | "),
            "---|".repeat(section.header.len())
        );
        section.rows.iter().for_each(|row| markdown += &format!("| {} |\n", row.join(" | ")));
    }
    write_text(&file(".md"), &markdown)?;
    sections.extend(searches);
    let mut plots = tables.plots()?;
    for (name, (found, unit)) in &study.densities()? {
        plots.push((format!("density: {name}"), density_plot(&found.layers, unit.plural())?));
    }
    let pictures = pictures(cells, records)?;
    let note = format!("{}\n\n{}", study.note, tables.summary());
    let path = file(".html");
    write_text(&path, &study_page(&study.title, &note, &sections, &plots, &pictures))?;
    Ok(path)
}

/// What searches for hyperparameters tried.
fn searches(records: &[(&Cell, Option<CellRecord>)]) -> Vec<Section> {
    let header = ["eps", "FFN eps", "w", "I-Params", "parameters", "correlation", "small enough", "taken"];
    let mut sections: Vec<Section> = Vec::new();
    for record in records.iter().filter_map(|r| r.1.as_ref()).filter(|r| !r.search.is_empty()) {
        let heading = format!("Search: {} of {}, {}", record.method, record.ancestor, record.shape);
        if sections.iter().any(|s| s.heading == heading) {
            continue;
        }
        let yes = |b: bool| if b { "yes" } else { "no" }.to_string();
        let rows = record
            .search
            .iter()
            .map(|t| {
                let correlation = format!("{:.4}", t.correlation);
                let (gene, own) = (t.inherited.to_string(), t.parameters.to_string());
                vec![
                    t.eps.clone(),
                    t.ffn_eps.clone(),
                    t.width.to_string(),
                    gene,
                    own,
                    correlation,
                    yes(t.fits),
                    yes(t.taken),
                ]
            })
            .collect();
        sections.push(Section { heading, header: header.map(String::from).to_vec(), rows });
    }
    sections
}

/// Attention of the first cell of every row that has some.
fn pictures(cells: &Path, records: &[(&Cell, Option<CellRecord>)]) -> Result<Vec<Picture>> {
    let mut pictures: Vec<Picture> = Vec::new();
    for (cell, record) in records {
        let Some(file) = record.as_ref().and_then(|r| r.attention.as_ref()) else { continue };
        let caption = format!("{} on {}: {}, {}", cell.ancestor, cell.data, cell.method, cell.shape);
        if pictures.iter().any(|p| p.caption == caption) {
            continue;
        }
        let path = cells.join(file.file_name().unwrap_or_default());
        pictures.push(Picture { caption, png: fs::read(&path).map_err(|e| Error::io(&path, e))? });
    }
    Ok(pictures)
}
