//! `offshoot tune`: training a model.

use std::path::{Path, PathBuf};

use clap::Args;
use ndarray::{ArrayD, IxDyn};
use serde_json::{Value, json};

use super::flags_for;
use super::training::{Asked, Outcome, Training, Wanted};
use crate::anatomy::WeightKind;
use crate::axes::Typing;
use crate::cli::common::values::score_range;
use crate::cli::common::{DataFlags, RunFlags, TrainingFlags};
use crate::cli::output::{self, table, write_text};
use crate::error::{Error, ErrorKind, Result};
use crate::metadata::schema;
use crate::onnx::to_f32;
use crate::parallel;
use crate::rounding::Dtype;
use crate::training::{Operators, Selection, Setup, Steps, checkpoint, trainable_form};

/// `offshoot tune`.
#[derive(Args, Debug)]
pub struct TuneArgs {
    /// The model
    pub model: PathBuf,
    #[command(flatten)]
    pub data: DataFlags,
    /// Replace the classifier by one of this many classes; a model without one is cut after its encoder and gets one
    #[arg(long, value_name = "N")]
    pub classes: Option<usize>,
    /// The scores (--score-column) that stand for cosines of 0 and of 1 [default: scores are cosines as they are]
    #[arg(long, value_name = "LOW,HIGH", help_heading = "Data", requires = "score_column", value_parser = score_range,
        allow_hyphen_values = true)]
    pub score_range: Option<[f64; 2]>,
    #[command(flatten)]
    pub training: TrainingFlags,
    /// The tuned model to write: the best by validation; the last stands beside it as NAME.last.onnx
    #[arg(short, long, value_name = "TUNED.onnx")]
    pub output: Option<PathBuf>,
    /// Type that the tuned model computes in, or int8 for its weights; its inputs and outputs are float32 [default: as
    /// the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Overwrite existing outputs
    #[arg(long)]
    pub force: bool,
    /// List what is trained and what is not, and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    /// Write the step graph and STEP.json, which describes it, and train nothing
    #[arg(long, value_name = "STEP.onnx", conflicts_with_all = ["dry_run", "resume"])]
    pub emit_step: Option<PathBuf>,

    /// Write a JSON line for every update and every validation
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Output")]
    pub metrics: Option<PathBuf>,
    /// Write a plot of loss and accuracy (SVG)
    #[arg(long, value_name = "FILE.svg", help_heading = "Output")]
    pub plot: Option<PathBuf>,
    /// Write a report (HTML, one file)
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    pub report: Option<PathBuf>,
    /// Checkpoint [default: beside the output]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub checkpoint: Option<PathBuf>,
    /// Updates between checkpoints; there is one at the end of every epoch
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = clap::value_parser!(u64).range(1..))]
    pub checkpoint_every: Option<u64>,
    /// Go on from the checkpoint
    #[arg(long, help_heading = "Output")]
    pub resume: bool,

    #[command(flatten)]
    pub run: RunFlags,
}

/// Runs the command.
pub fn run(c: &TuneArgs) -> Result<()> {
    let open = match &c.training.teacher {
        None => [c.run.open.clone(), c.run.open.clone()],
        Some(teacher) => flags_for([&c.model, teacher], &c.run.open)?,
    };
    let asked = Asked {
        model: &c.model,
        open,
        data: &c.data,
        training: &c.training,
        transform: &c.run.transform,
        runtime: &c.run.runtime,
        classes: c.classes,
        score_range: c.score_range,
        dry_run: c.dry_run,
    };
    let wanted = Wanted {
        output: c.output.as_deref(),
        step: c.emit_step.as_deref(),
        dtype: c.dtype,
        metrics: c.metrics.as_deref(),
        plot: c.plot.as_deref(),
        report: c.report.as_deref(),
        checkpoint: c.checkpoint.as_deref(),
        checkpoint_every: c.checkpoint_every,
        resume: c.resume,
        force: c.force,
    };
    let training = Training::new(&asked, &wanted)?;
    if let Some(path) = &c.emit_step {
        return emit_step(path, &training.setup, c.training.operators);
    }
    if c.dry_run {
        return dry_run(&training.setup, c.json);
    }
    let outcome = training.run()?;
    if c.json {
        output::print_json(&describe(c, &outcome))?;
    }
    outcome.check(&c.training)
}

/// The result as JSON.
fn describe(c: &TuneArgs, outcome: &Outcome) -> Value {
    let mut value = json!({
        "schema": schema::TUNE,
        "output": c.output,
        "last": outcome.last_model,
        "steps": outcome.steps,
        "trained_parameters": outcome.trained_parameters,
        "seconds": outcome.seconds,
        "last_loss": outcome.curve.losses.last().map(|l| l.1),
        "images": {"training": outcome.images[0], "validation": outcome.images[1]},
        "learning_rate": outcome.summary.learning_rate,
        "start": outcome.summary.start,
        "best": outcome.summary.best,
        "improved": outcome.summary.improved(),
        "separated": outcome.separated,
        "teacher": outcome.teacher.as_ref().map(|view| json!({
            "model": c.training.teacher, "preprocess": view.preprocess, "class_order": outcome.class_order,
        })),
        "last_validation": outcome.last,
        "input": outcome.input,
        "runtime": outcome.runtime,
        "activation": outcome.activation,
        "scores": outcome.scores,
        "batch": outcome.batch,
    });
    if let Some(int8) = &outcome.int8 {
        value["int8"] = json!(int8);
        value["int8"]["validation"] = json!(outcome.rounding);
    }
    value
}

/// What is trained and what is not.
fn dry_run(setup: &Setup, json: bool) -> Result<()> {
    let options = &setup.options;
    let selection = {
        let (form, _, _) = trainable_form(&setup.model, options.recipe.batch, setup.image)?;
        let typing = Typing::new(&form)?;
        Selection::new(&typing, &options.train, &options.freeze)?
    };
    if json {
        return output::print_json(&json!({
            "schema": schema::TUNE_PLAN,
            "parameters": selection.parameters(),
            "trained": selection.trained,
            "frozen": selection.frozen,
            "separated": setup.separated,
        }));
    }
    let kind =
        |k: WeightKind| serde_json::to_value(k).ok().and_then(|v| v.as_str().map(str::to_string)).unwrap_or_default();
    let shape = |s: &[usize]| format!("{s:?}");
    let rows = selection
        .trained
        .iter()
        .map(|w| {
            let decay = if w.decays { "yes" } else { "no" };
            vec![w.name.clone(), shape(&w.shape), kind(w.kind), decay.into(), w.depth.to_string()]
        })
        .collect();
    let mut text = format!("{} parameters are trained\n\n", selection.parameters());
    text += &table(&["trained", "shape", "kind", "decay", "depth"], rows);
    if !selection.frozen.is_empty() {
        let rows = selection.frozen.iter().map(|w| vec![w.name.clone(), shape(&w.shape), w.reason.clone()]).collect();
        text += &format!("\n{}", table(&["not trained", "shape", "why"], rows));
    }
    output::print(&text)
}

/// Writes the step graph and what its inputs and outputs mean.
fn emit_step(path: &Path, setup: &Setup, operators: Option<Operators>) -> Result<()> {
    let (model, image, options) = (&setup.model, setup.image, &setup.options);
    let mut recipe = options.recipe.clone();
    // Others run it: only what every ONNX Runtime has.
    recipe.operators = operators.unwrap_or(Operators::Standard);
    recipe.ranks = 1;
    // Where the batch cannot be opened it is the file's own.
    recipe.batch = trainable_form(model, recipe.batch, image)?.1[0];
    let steps = Steps::new(model, image, &recipe, &options.train, &options.freeze)?;
    let (form, _, _) = trainable_form(model, steps.batch, image)?;
    if steps.update.is_some() {
        return Err(Error::new(ErrorKind::Usage, "--emit-step writes one graph, and --accumulate needs two")
            .hint("leave --accumulate out: whoever runs the step graph chooses the batch size"));
    }
    let mut initial = Vec::new();
    for tensor in &steps.step.description.state {
        if let Some(name) = &tensor.initial
            && let Some(t) = form.graph().initializer.iter().find(|t| t.name() == name)
        {
            let data = ArrayD::from_shape_vec(IxDyn(&tensor.shape), to_f32(t)?);
            initial.push((tensor.name.clone(), data.map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?));
        }
    }
    let weights_file = path.with_extension("safetensors");
    if !parallel::is_first() {
        return Ok(());
    }
    checkpoint::save(&weights_file, &initial, &steps.step.description)?;
    steps.step.model.write(path)?;
    let description = json!({
        "schema": steps.step.description.schema,
        "graph": path.file_name().map(|n| n.to_string_lossy().into_owned()),
        "batch": steps.batch,
        "inputs": steps.step.description.inputs,
        "outputs": steps.step.description.outputs,
        "optimiser": recipe.optimiser,
        "state": steps.step.description.state,
        "initial": {
            "file": weights_file.file_name().map(|n| n.to_string_lossy().into_owned()),
            "meaning": "what each tensor of the state holds at the start, by its name; zeros where the file has no \
             such tensor",
        },
    });
    let text =
        serde_json::to_string_pretty(&description).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
    write_text(&path.with_extension("json"), &format!("{text}\n"))
}
