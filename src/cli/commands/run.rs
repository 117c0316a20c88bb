//! `offshoot run`: the whole path, from an ancestor and labelled images to a tuned descendant and a report.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::{Value, json};

use super::bundled::Companions;
use super::condense::condense;
use super::eval::{Told, dataset, measure};
use super::grow::shape;
use super::labelled::{self, Laid, open_for_data};
use super::source::{InputSource, opened_on};
use super::training::{Asked, Training, Wanted};
use super::{flags_for, images, named, open_to_run, tell_input};
use crate::anatomy::{Anatomy, activation};
use crate::axes::Typing;
use crate::bundle::BundleReport;
use crate::cli::common::{ClusterFlags, DataFlags, OpenFlags, RunFlags, ShapeFlags, TrainingFlags};
use crate::cli::output::{self, Bars, check_output, count, table, write_text};
use crate::data::{Dataset, InputReport, InputShape, Loader};
use crate::density::Unit;
use crate::descendant::{self, Descendant, GrowOptions, Init, resize_tokens};
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::{Learngene, parameters};
use crate::metadata::{PREPROCESS, schema};
use crate::metrics::Evaluation;
use crate::onnx::Model;
use crate::report::{Curve, density_plot, run_page};
use crate::rounding::Dtype;
use crate::runtime::Runtime;
use crate::training::{has_classifier, of_rows, open_dataset};

/// Images of the data set that densities are measured on, where none are given.
const IMAGES: usize = 256;

/// What is said of one of the three models.
struct Row {
    name: &'static str,
    parameters: u64,
    macs: u64,
    bytes: u64,
    result: Option<Evaluation>,
}

/// `offshoot run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The ancestor
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// The folder for everything that is written
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    /// Images that densities are measured on [default: 256 of the training images or samples]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["inputs", "texts"])]
    pub images: Option<PathBuf>,
    /// Overwrite what an earlier run wrote into the folder
    #[arg(long)]
    pub force: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Type that the tuned model computes in, or int8 for its weights; its inputs and outputs are float32 [default: as
    /// the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    #[command(flatten)]
    pub shape: ShapeFlags,
    #[command(flatten)]
    pub clusters: ClusterFlags,
    #[command(flatten)]
    pub training: TrainingFlags,
    #[command(flatten)]
    pub run: RunFlags,
}

/// Runs the command.
pub fn run(c: &RunArgs) -> Result<()> {
    check_scores(c)?;
    let written = outputs(c)?;
    let [of_ancestor, of_teacher] = match &c.training.teacher {
        None => [c.run.open.clone(), c.run.open.clone()],
        Some(teacher) => flags_for([&c.model, teacher], &c.run.open)?,
    };
    // The child is of a size of its own.
    let of_child = OpenFlags { input_size: None, ..of_ancestor.clone() };
    // The folder of the child has no tokenizer.
    let mut flags = c.data.with_tokenizer([Some(&*c.model), c.training.teacher.as_deref()].into_iter().flatten());
    flags.tokens.of_child = c.shape.tokens;
    let flags = &flags;
    let to_learn = labelled::Wanted { data: flags, val: c.training.val.as_deref(), ignore_labels: false, first: None };
    let opened = open_for_data(&c.model, &of_ancestor, to_learn, &c.run.runtime, &c.run.transform)?;
    let laid = opened.arrays;
    let model = laid.as_ref().map_or(&opened.model, |laid| &laid.original);
    let typing = named(&c.model, Typing::new(model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    let companions = Companions::find(&c.model, flags.tokens.tokenizer.as_deref(), model)?;
    companions.iter().try_for_each(|found| found.check(&written[2], &c.model, c.force))?;
    c.shape.tokens.map_or(Ok(()), |tokens| named(&c.model, resize_tokens(model, tokens).map(drop)))?;
    let data = match &laid {
        None => dataset(flags)?,
        Some(laid) => laid.rows.dataset(&laid.arrays, false)?,
    };
    let other = of_val(c, flags, laid.as_ref(), &data)?;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let classified = has_classifier(&typing);
    let mut wanted = shape(&c.shape, false, c.training.seed)?;
    // Behind an encoder without a classifier `tune` adds one.
    let added = if classified { None } else { wanted.classes.take() };

    output::note("1/4 density and learngene");
    let (gene, source, densities) = match wanted.init {
        Init::ClusterLearngene => {
            let source = source(c, laid.as_ref(), &data, model, &typing)?;
            condensed(c, model, (&typing, &anatomy), &source, &runtime, &written[0])?
        }
        _ => (Learngene::identity(&typing, &anatomy), model.clone(), None),
    };

    output::note("2/4 descendant");
    let child = named(&c.model, grown(c, &source, (&gene, &wanted), model))?;
    output::write_model(&written[1], &child.model)?;

    output::note("3/4 tuning");
    let asked = Asked {
        model: &written[1],
        open: [of_child.clone(), of_teacher],
        data: flags,
        training: &c.training,
        transform: &c.run.transform,
        runtime: &c.run.runtime,
        classes: added,
        score_range: None,
        dry_run: false,
    };
    let (output, metrics) = (Some(&*written[2]), Some(&*written[4]));
    let files = Wanted { output, metrics, dtype: c.dtype, force: true, ..Wanted::default() };
    let outcome = Training::new(&asked, &files)?.run()?;

    output::note("4/4 evaluation and report");
    let tuned = reopened(c, flags, &written[2], &of_child)?;
    let (judge, judged) = judge(c, &data, other.as_ref());
    let long = long(c, flags, laid.as_ref(), &data)?;
    let (own, others) = (Judges { c, runtime: &runtime, laid: laid.as_ref(), data: judge, judged: &judged }, long);
    let others = others.as_ref().map_or(own, |(laid, data)| Judges { laid: Some(laid), data, ..own });
    let rows = [own.row("ancestor", model)?, others.row("child", &child.model)?, others.row("tuned", &tuned)?];
    let input = match &laid {
        Some(laid) => json!(laid.report),
        None => input(c, &data, model, &typing)?,
    };
    let densities = densities.as_ref().map(|(all, unit)| (&all[..], unit.plural()));
    let sources: Vec<usize> = child.plan.layers.iter().map(|l| l.ancestor_layer).collect();
    let configs = companions.map(|found| found.write(&written[2], &tuned, &sources)).transpose()?;
    report(c, &rows, densities, &outcome.curve, &runtime, (judged.len(), &input, configs))?;
    outcome.check(&c.training)
}

/// Refuses scores of pairs, by which models of classes are neither grown nor judged.
fn check_scores(c: &RunArgs) -> Result<()> {
    match &c.data.score_column {
        None => Ok(()),
        Some(_) => Err(Error::new(ErrorKind::Usage, "--score-column is not for `run`, which judges by classes")
            .at(c.data.path())
            .hint(
                "make the child with `offshoot shrink` or `offshoot grow`, train it with `offshoot tune \
                 --score-column`, and judge it with `offshoot eval --score-column`",
            )),
    }
}

/// The files that are written, and their folder, checked.
fn outputs(c: &RunArgs) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(&c.output).map_err(|e| Error::io(&c.output, e))?;
    let names =
        ["gene.onnx", "child.onnx", "tuned.onnx", "tuned.last.onnx", "metrics.jsonl", "report.html", "run.json"];
    let written = names.map(|name| c.output.join(name)).to_vec();
    written.iter().try_for_each(|path| check_output(path, &[&c.model], c.force))?;
    Ok(written)
}

/// Densities of heads, and what they are measured in.
type HeadDensities = (Vec<Vec<f64>>, Unit);

/// The learngene of an ancestor and the model that holds it, which is written.
fn condensed(
    c: &RunArgs,
    model: &Model,
    of_model: (&Typing, &Anatomy),
    source: &InputSource,
    runtime: &Arc<Runtime>,
    path: &Path,
) -> Result<(Learngene, Model, Option<HeadDensities>)> {
    let (gene, condensed) = condense(model, of_model, &[(None, source)], &c.clusters, runtime)?;
    output::write_model(path, &condensed)?;
    let unit = if gene.lengths.iter().any(Option::is_some) { Unit::Tokens } else { Unit::Pixels };
    let densities = gene.densities.clone().map(|all| (all, unit));
    let kept: usize = gene.layers.iter().map(Vec::len).sum();
    let heads: usize = gene.layers.iter().flatten().map(|k| k.members.len()).sum();
    output::note(&format!("    {kept} of {heads} heads, {} of {} FFNs", gene.ffn_groups.len(), gene.layers.len()));
    Ok((gene, condensed, densities))
}

/// What models are judged on.
#[derive(Clone, Copy)]
struct Judges<'a> {
    c: &'a RunArgs,
    runtime: &'a Arc<Runtime>,
    laid: Option<&'a Laid>,
    data: &'a Dataset,
    judged: &'a [usize],
}

impl Judges<'_> {
    /// What is said of a model. One whose classes are others than the data's has no accuracy on them.
    fn row(&self, name: &'static str, model: &Model) -> Result<Row> {
        let fed = self.laid.map(|laid| of_rows(model, &laid.rows)).transpose()?;
        let fed = fed.as_ref().unwrap_or(model);
        let typing = Typing::new(fed)?;
        let tells = has_classifier(&typing) || activation(&typing).is_some();
        let result = match tells && Told::new(fed, self.data).is_ok() {
            true => Some(score(self.runtime, fed, self.data, self.judged, self.c)?),
            false => None,
        };
        let bytes = crate::onnx::encoded_len(&model.proto);
        Ok(Row { name, parameters: parameters(model.graph()), macs: typing.macs(), bytes, result })
    }
}

/// The descendant of a learngene, of the sizes that were asked for; what is to be known of it is told.
fn grown(
    c: &RunArgs,
    source: &Model,
    (gene, shape): (&Learngene, &GrowOptions),
    ancestor: &Model,
) -> Result<Descendant> {
    let mut child = descendant::grow(source, gene, shape)?;
    c.shape.tokens.map_or(Ok(()), |tokens| child.tokens(tokens))?;
    child.declare_values(ancestor);
    child.plan.warnings.iter().for_each(|w| output::warn(w));
    Ok(child)
}

/// The data and which samples of them judge the models: all of `--val`, else those that no training saw.
fn judge<'d>(c: &RunArgs, data: &'d Dataset, other: Option<&'d Dataset>) -> (&'d Dataset, Vec<usize>) {
    match (other, c.training.val_split, data.given_split()) {
        (Some(other), ..) => (other, (0..other.len()).collect()),
        (None, None, Some(given)) => (data, given.validation.clone()),
        (None, share, _) => (data, data.split(share.unwrap_or(data.held_out_share()), c.training.seed).validation),
    }
}

/// The samples of `--val`. All of `data` is trained on where they are given. Names of classes are put in the terms of
/// `data`.
fn of_val(c: &RunArgs, flags: &DataFlags, laid: Option<&Laid>, data: &Dataset) -> Result<Option<Dataset>> {
    let other = match (laid, &c.training.val) {
        (Some(laid), _) => laid.other.as_ref().map(|other| laid.rows.dataset(other, false)).transpose()?,
        (None, Some(path)) => Some(open_dataset(path, &flags.options(false), &Bars::default())?),
        (None, None) => None,
    };
    match (other, data.classes()) {
        (Some(other), Some(names)) => Ok(Some(other.matched(Some(names), names.len())?.dataset)),
        (other, _) => Ok(other),
    }
}

/// The texts, and those that judge, as long as a child is that has another number of tokens.
fn long(c: &RunArgs, flags: &DataFlags, laid: Option<&Laid>, data: &Dataset) -> Result<Option<(Laid, Dataset)>> {
    let Some((laid, tokens)) = laid.zip(c.shape.tokens) else { return Ok(None) };
    let long = laid.padded(tokens)?;
    let judges = match of_val(c, flags, Some(&long), data)? {
        Some(other) => other,
        None => long.rows.dataset(&long.arrays, false)?,
    };
    Ok(Some((long, judges)))
}

/// The tuned model.
fn reopened(c: &RunArgs, data: &DataFlags, path: &Path, open: &OpenFlags) -> Result<Model> {
    // It pools by itself.
    let open = &OpenFlags { pooling: None, written: true, ..open.clone() };
    match data.given(data.path(), true) {
        None => open_to_run(path, open, &c.run.runtime, &c.run.transform),
        Some(given) => opened_on(path, open, &c.run.runtime, &c.run.transform, given).map(|opened| opened.model),
    }
}

/// What densities are measured on.
fn source(c: &RunArgs, laid: Option<&Laid>, data: &Dataset, model: &Model, typing: &Typing) -> Result<InputSource> {
    let loader = match (laid, &c.images) {
        (Some(laid), _) => {
            return Ok(InputSource::Arrays(laid.arrays.only(&some_of(data)), Box::new(laid.report.clone())));
        }
        (None, Some(path)) => images(path, &c.run.transform, model, typing)?,
        (None, None) => some_images(c, data, model, typing)?,
    };
    Ok(InputSource::of_loader(loader, model, typing))
}

/// What the pictures of a data set become, for JSON.
fn input(c: &RunArgs, data: &Dataset, model: &Model, typing: &Typing) -> Result<Value> {
    let (flags, shape) = (c.run.transform.preprocess(), InputShape::of(typing)?);
    let input = data.preprocess(&flags, model.metadata(PREPROCESS), shape)?;
    Ok(json!(InputReport::new(model, typing, input.as_ref())))
}

/// Some samples of a data set, evenly spread over its training part.
fn some_of(data: &Dataset) -> Vec<usize> {
    let all: Vec<usize> = data.given_split().map_or((0..data.len()).collect(), |s| s.training.clone());
    let step = all.len().div_ceil(IMAGES).max(1);
    all.into_iter().step_by(step).collect()
}

/// Images of the data set, evenly spread over its training part.
fn some_images(c: &RunArgs, data: &Dataset, model: &Model, typing: &Typing) -> Result<Loader> {
    let input = InputShape::of(typing)?;
    let preprocess = data.preprocess(&c.run.transform.preprocess(), model.metadata(PREPROCESS), input)?;
    tell_input(&InputReport::new(model, typing, preprocess.as_ref()));
    data.loader(some_of(data), preprocess, input.layout)
}

fn score(runtime: &Arc<Runtime>, model: &Model, data: &Dataset, judged: &[usize], c: &RunArgs) -> Result<Evaluation> {
    let mut transform = c.run.transform.clone();
    transform.limit = None;
    measure(runtime, model, data, judged.to_vec(), &transform, None, c.data.strict).map(|m| m.result)
}

fn report(
    c: &RunArgs,
    rows: &[Row],
    densities: Option<(&[Vec<f64>], &str)>,
    curve: &Curve,
    runtime: &Runtime,
    (judged, input, configs): (usize, &Value, Option<BundleReport>),
) -> Result<()> {
    let percent = |r: &Option<Evaluation>| r.as_ref().map_or("-".into(), |e| format!("{:.2}", 100.0 * e.top1));
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| vec![r.name.to_string(), count(r.parameters), count(r.macs), r.bytes.to_string(), percent(&r.result)])
        .collect();
    let of_arrays = c.data.is_given();
    let macs = if of_arrays { "MACs a sample" } else { "MACs an image" };
    let header = ["model", "parameters", macs, "bytes", "top-1 %"];
    let facts = [
        ("Ancestor", c.model.display().to_string()),
        ("Data", c.data.path().display().to_string()),
        ("Judged on", c.training.val.as_deref().map_or("a part of the data".into(), |val| val.display().to_string())),
        (if of_arrays { "Samples that judge" } else { "Images that judge" }, judged.to_string()),
        ("Runtime", runtime.describe()),
    ];
    let plot = densities.map(|(d, unit)| density_plot(d, unit)).transpose()?;
    let page = run_page("From ancestor to descendant", &facts, &header, &cells, plot.as_deref(), Some(curve))?;
    write_text(&c.output.join("report.html"), &page)?;
    let models: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "model": r.name, "parameters": r.parameters, "macs": r.macs, "bytes": r.bytes,
                "top1": r.result.as_ref().map(|e| e.top1), "loss": r.result.as_ref().map(|e| e.loss),
            })
        })
        .collect();
    let value = json!({
        "schema": schema::RUN, "ancestor": c.model, "data": c.data.path(), "val": c.training.val, "images": judged,
        "models": models, "input": input, "configs": configs, "runtime": runtime.kind,
    });
    write_text(&c.output.join("run.json"), &format!("{value:#}\n"))?;
    if c.json {
        return output::print_json(&value);
    }
    output::print(&table(&header, cells))?;
    output::note(&format!("wrote {}", c.output.join("report.html").display()));
    Ok(())
}
