//! `offshoot grow`: descendants of any shape.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bundled::{Companions, in_folder};
use super::condense::condense;
use super::fitter::{Calibrated, FitSamples, calibrated};
use super::source::{InputSource, open_for};
use super::verification::{NO_VERIFY, Verifying, tell};
use super::{named, open, plain};
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::cli::common::values::{batch_axis, image_size, tokens};
use crate::cli::common::{ArrayFlags, ClusterFlags, RunFlags, SampleFlags, ShapeFlags, VerifyFlags};
use crate::cli::output::{self, Bars, count, table};
use crate::data::{Arrays, FedReport, PlaceTable};
use crate::descendant::{
    BatchAxis, Case, Descendant, DescendantPlan, GrowOptions, Grown, Heads, Init, Projection, Transform, Verification,
    Verifier, cost, grow, resize_tokens,
};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::{Limits, Towers, Views};
use crate::learngene::{Eps, Learngene, Order};
use crate::metadata::schema;
use crate::onnx::Model;
use crate::opening::keep_transform;
use crate::rounding::{Dtype, Rounded};
use crate::runtime::Runtime;

/// What becomes of a tied descendant where it is deployed. scripts/check/engines.py runs them.
const TIED: &str = "tied: OpenVINO's saved IR keeps shared weights once, ONNX Runtime writes shared heads out, \
                    OpenCV 4.14 refuses them: docs/deployment.md";

/// What becomes of a tied descendant in int8.
const UNTIED: &str = "--tied is left out: in int8 every layer has a copy, since one matrix for several layers is slow \
                      in ONNX Runtime and wrong in OpenVINO where its columns are gathered";

/// One descendant to grow.
struct Job {
    output: Option<PathBuf>,
    shape: GrowOptions,
    /// True where the user chose how the output projection follows.
    chosen: bool,
    tokens: Option<usize>,
    dtype: Option<Dtype>,
    batch_axis: Option<BatchAxis>,
    /// True where shared weights were asked for, and each layer has its own.
    untied: bool,
}

impl Job {
    /// In int8 a matrix that several layers share is slow in ONNX Runtime, and OpenVINO says something wrong where one
    /// is gathered by its columns.
    fn untie(mut self) -> Job {
        self.untied = self.shape.tied && self.dtype.is_some_and(Dtype::is_int8);
        self.shape.tied &= !self.untied;
        self
    }

    /// True where a descendant grows from a learngene whose heads are clustered.
    fn is_clustered(&self) -> bool {
        self.shape.init == Init::ClusterLearngene
    }

    /// True where a descendant takes what its ancestor takes.
    fn takes(&self, arrays: Option<&Arrays>) -> bool {
        let length = arrays.and_then(Arrays::length);
        self.shape.image_size.is_none() && self.tokens.is_none_or(|tokens| length == Some(tokens))
    }

    /// Where images are given, a descendant whose weights are its own is fitted to its ancestor, unless another
    /// projection was chosen.
    fn fit_by_default(&mut self) {
        let s = &self.shape;
        let own = s.init == Init::ClusterLearngene && !s.tied && s.transform.is_none_or(|t| t == Transform::None);
        if !self.chosen && own && s.image_size.is_none() && s.embedding_dim.is_none() {
            self.shape.projection = Projection::Fitted;
        }
    }
}

/// `offshoot grow`.
#[derive(Args, Debug)]
pub struct GrowArgs {
    /// A learngene, or an ancestor (with --images, --inputs, --texts or --no-images)
    pub model: PathBuf,
    /// The descendant to write; with --batch the folder for relative outputs
    #[arg(short, long, value_name = "CHILD.onnx")]
    pub output: Option<PathBuf>,
    /// Make -o a folder: the descendant becomes model.onnx in it, beside the tokenizer and configurations that lie
    /// beside the model, with its own sizes
    ///
    /// With --batch every output is such a folder.
    #[arg(long)]
    pub with_configs: bool,
    #[command(flatten)]
    pub shape: ShapeFlags,
    /// Keep shared weights shared in the file (centroids with an index list, one FFN a group)
    ///
    /// The file is smaller; what an engine holds in memory depends on the engine. OpenVINO's saved IR keeps
    /// shared weights once.
    #[arg(long)]
    pub tied: bool,
    /// Grow several descendants from a TOML list of [[descendant]] tables
    #[arg(long, value_name = "LIST.toml", conflicts_with_all = ["layers", "heads", "width", "ffn_width", "classes",
        "order", "projection", "tied", "init", "inherit", "share", "embedding_dim", "image_size", "tokens",
        "transform", "transform_rank"])]
    pub batch: Option<PathBuf>,
    /// Compute what is constant at a fixed size of the inputs once and write it down
    ///
    /// Resized position tables, shape operands, masks and rotary tables become plain weights. An image size that the
    /// model leaves open is fixed with --image-size, a number of tokens with --tokens.
    #[arg(long, conflicts_with_all = ["tied", "transform"])]
    pub fold: bool,
    /// Samples in a batch of the descendant: open for any number, or N [default: as the model has it]
    ///
    /// A batch that the file fixes, as PyTorch's dynamo exporter does by default, is opened wherever shapes hold it.
    #[arg(long, value_name = "open|N", value_parser = batch_axis)]
    pub batch_axis: Option<BatchAxis>,
    /// Type that the descendant computes in, or int8 for its weights; its inputs and outputs are float32 [default: as
    /// the model has it]
    #[arg(long, value_enum, value_name = "TYPE")]
    pub dtype: Option<Dtype>,
    /// Print the plan and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Images to condense an ancestor on the way: a folder, an IDX file, or an .npz or .npy of prepared tensors
    #[arg(long, value_name = "PATH")]
    pub images: Option<PathBuf>,
    #[command(flatten)]
    pub arrays: ArrayFlags,
    /// Grow from an ancestor without densities: every head is its own cluster
    #[arg(long, conflicts_with_all = ["images", "inputs", "texts"])]
    pub no_images: bool,
    /// Seed of what is drawn at random
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print the plan as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub verification: VerifyFlags,
    #[command(flatten)]
    pub clusters: ClusterFlags,
    #[command(flatten)]
    pub run: RunFlags,
}

impl GrowArgs {
    fn has_samples(&self) -> bool {
        self.images.is_some() || self.arrays.path().is_some()
    }

    fn samples(&self) -> SampleFlags {
        let mut arrays = self.arrays.clone();
        arrays.tokens.of_child = self.shape.tokens;
        SampleFlags { images: self.images.clone(), arrays }
    }
}

/// Runs the command.
pub fn run(c: &GrowArgs) -> Result<()> {
    let mut jobs = jobs(c)?;
    let samples = c.samples();
    let (model, arrays) = match c.has_samples() {
        true => open_for(&c.model, &c.run, &samples).and_then(|opened| as_long(opened, c.shape.tokens))?,
        false => (open(&c.model, &c.run.open)?, None),
    };
    let given = Learngene::read(&model)?;
    let calibrated = given.as_ref().is_some_and(|gene| gene.removals.is_some());
    if c.has_samples() && (given.is_none() || calibrated) {
        jobs.iter_mut().for_each(Job::fit_by_default);
    }
    let outputs: Vec<PathBuf> = jobs.iter().filter_map(|j| j.output.clone()).collect();
    output::check_distinct(&outputs)?;
    let companions = Companions::asked(c.with_configs, &c.model, c.arrays.tokens.tokenizer.as_deref(), &model)?;
    if !c.dry_run {
        check(c, &outputs, companions.as_ref())?;
    }
    if c.fold && jobs.iter().any(|j| j.shape.tied) {
        return Err(Error::new(ErrorKind::Usage, "--fold writes plain weights, and a tied descendant shares them")
            .hint("leave one of the two out"));
    }
    // What cannot be is said before any work.
    jobs.iter().try_for_each(|job| long(c, job, &model).map(drop))?;
    let (genes, mut input) = match jobs.iter().any(Job::is_clustered) {
        true => learngene(c, &model, arrays.as_ref(), &jobs)
            .map(|(gene, condensed, input)| (Some((gene, condensed)), input))?,
        false => (None, None),
    };
    let ancestor = if jobs.iter().all(Job::is_clustered) { None } else { Some(ancestor(c, &model, genes.is_none())?) };
    let fits = !c.dry_run && jobs.iter().any(|j| j.shape.projection == Projection::Fitted);
    let runtime = if c.fold { Some(Runtime::start(&c.run.runtime.options())?) } else { None };
    // A plan alone is verified where that is asked for.
    let verifies = !c.verification.no_verify && (c.verification.verify || !c.dry_run);
    let fitter = match fits {
        true => Some(fitter(c, &model, &samples, arrays.clone(), given.is_none() || calibrated)?),
        false => None,
    };
    input = input.or(fitter.as_ref().map(|f| f.report()));
    let fitter = fitter.as_ref();
    let towers = fitter.map(|f| f.towers(&model)).transpose()?;
    if let Some(towers) = &towers {
        towers.warnings(&Limits::default())?.iter().for_each(|w| output::warn(w));
    }
    let (arrays, companions) = (arrays.as_ref(), companions.as_ref());
    let growing = Growing { c, genes, ancestor, arrays, fitter, towers, runtime, verifies, companions };
    let grown: Vec<Result<DescendantPlan>> = jobs.par_iter().map(|job| growing.descendant(job)).collect();
    let plans: Vec<DescendantPlan> = grown.into_iter().collect::<Result<_>>()?;
    for (job, plan) in jobs.iter().zip(&plans) {
        report(c, job, plan);
    }
    if c.json { print_plans(c, &plans, input, &model) } else { Ok(()) }
}

/// The views of samples that descendants are fitted to, where the model is one that can be fitted to.
fn fitter(
    c: &GrowArgs,
    model: &Model,
    samples: &SampleFlags,
    arrays: Option<Arrays>,
    holds_heads: bool,
) -> Result<Calibrated> {
    if c.has_samples() && holds_heads {
        let views = Views { count: None, seed: c.seed };
        return calibrated(model, (samples, FitSamples::Whole(arrays)), &c.run, views, &Bars::default());
    }
    let [flag, many] = wanted(model);
    Err(Error::new(ErrorKind::Usage, format!("--projection fitted fits to the ancestor, on {many}"))
        .at(&c.model)
        .hint(format!("give {flag} and the ancestor, or a learngene of condense --fitted")))
}

/// What descendants of one call have in common.
struct Growing<'a> {
    c: &'a GrowArgs,
    /// What those grow from that cluster heads.
    genes: Option<(Learngene, Model)>,
    /// What the others grow from.
    ancestor: Option<(Learngene, Model)>,
    arrays: Option<&'a Arrays>,
    fitter: Option<&'a Calibrated>,
    towers: Option<Towers<'a>>,
    /// Computes constants, where they are folded.
    runtime: Option<Arc<Runtime>>,
    verifies: bool,
    companions: Option<&'a Companions>,
}

impl Growing<'_> {
    /// Grows one descendant, fits, verifies and writes it, each as far as that is asked for.
    fn descendant(&self, job: &Job) -> Result<DescendantPlan> {
        let c = self.c;
        let Some((gene, model)) = (if job.is_clustered() { &self.genes } else { &self.ancestor }) else {
            return Err(Error::new(ErrorKind::Internal, "a descendant has nothing to grow from"));
        };
        let mut child = named(&c.model, grow(model, gene, &job.shape))?;
        let grown = self.verifies.then(|| long(c, job, &child.model).map(Cow::into_owned)).transpose()?;
        self.fit(job, &mut child)?;
        named(&c.model, settled(job, &mut child, self.runtime.as_ref()))?;
        let single = self.verifies.then(|| child.model.clone());
        self.convert(job, &mut child)?;
        let transform = self.fitter.and_then(Calibrated::preprocess);
        keep_transform(&mut child.model, transform, job.shape.image_size)?;
        child.declare_values(model);
        if let (Some(grown), Some(single)) = (&grown, &single) {
            let how = Grown { gene, shape: &job.shape, plan: &child.plan, model: grown };
            let ancestor = long(c, job, model)?;
            let case = Case { ancestor: &ancestor, child: single, written: &child.model, grown: Some(how) };
            child.plan.verification = Some(verified(c, job, &case, self.arrays)?);
        } else if c.verification.no_verify {
            child.plan.verification = Some(Verification::not_run(NO_VERIFY));
        }
        write(c, job, child, self.companions)
    }

    /// Fits a descendant to its ancestor, where that is asked for.
    fn fit(&self, job: &Job, child: &mut Descendant) -> Result<()> {
        let Some(towers) = self.towers.as_ref().filter(|_| job.shape.projection == Projection::Fitted) else {
            return Ok(());
        };
        let sources: Vec<usize> = child.plan.layers.iter().map(|l| l.ancestor_layer).collect();
        let (fitted, error) = named(&self.c.model, towers.refit(&child.model, &sources, &|_, _| {}))?;
        child.model = fitted;
        let many = self.fitter.map_or("images", |f| f.noun().many);
        output::note(&format!("fitted; squared error on held-out {many} {error:.4}, relative to the values"));
        Ok(())
    }

    /// Gives a descendant the type that was asked for; what float16 might not hold of the samples stays float32.
    fn convert(&self, job: &Job, child: &mut Descendant) -> Result<()> {
        let Some(dtype) = job.dtype else { return Ok(()) };
        let fitter = self.fitter.zip(self.towers.as_ref()).filter(|_| job.takes(self.arrays));
        let wide = |(f, towers): (&Calibrated, &Towers)| f.wide(towers, &child.model, Some(dtype), &Bars::default());
        let wide = fitter.map(|of| named(&self.c.model, wide(of))).transpose()?.flatten();
        if job.untied {
            child.plan.warnings.push(UNTIED.to_string());
        }
        named(&self.c.model, child.convert(dtype, wide.as_ref()))
    }
}

/// Gives a descendant the sizes that were asked for, and computes what is constant at them where there is a runtime.
fn settled(job: &Job, child: &mut Descendant, runtime: Option<&Arc<Runtime>>) -> Result<()> {
    job.tokens.map_or(Ok(()), |tokens| child.tokens(tokens))?;
    job.batch_axis.map_or(Ok(()), |batch| child.batch(batch))?;
    runtime.map_or(Ok(()), |runtime| child.fold_constants(runtime, job.shape.image_size))
}

/// What a descendant is compared with has as many tokens.
fn long<'m>(c: &GrowArgs, job: &Job, model: &'m Model) -> Result<Cow<'m, Model>> {
    match job.tokens {
        Some(tokens) => named(&c.model, resize_tokens(model, tokens)).map(Cow::Owned),
        None => Ok(Cow::Borrowed(model)),
    }
}

/// The arrays of texts as long as a child is to be, where the model has so many places.
fn as_long((model, arrays): (Model, Option<Arrays>), tokens: Option<usize>) -> Result<(Model, Option<Arrays>)> {
    let Some(tokens) = tokens else { return Ok((model, arrays)) };
    let holds = PlaceTable::of(&model).is_none_or(|table| table.by.is_some() || table.places() >= tokens);
    let arrays = if holds { arrays.map(|arrays| arrays.padded(tokens)).transpose()? } else { arrays };
    Ok((model, arrays))
}

/// The plans as JSON, with what samples became and what inputs were fed.
fn print_plans(c: &GrowArgs, plans: &[DescendantPlan], input: Option<Value>, model: &Model) -> Result<()> {
    let mut value = match (plans, &c.batch) {
        ([plan], None) => json!(plan),
        _ => json!({"schema": schema::PLANS, "plans": plans}),
    };
    if let Some(input) = input {
        value["input"] = input;
    }
    let fed = FedReport::of(model);
    if !fed.is_empty() {
        value["fed"] = json!(fed);
    }
    output::print_json(&value)
}

/// Verifies a descendant, on samples where some are given; it is not written where it is wrong. One of another image
/// size is run once in any case.
fn verified(c: &GrowArgs, job: &Job, case: &Case, arrays: Option<&Arrays>) -> Result<Verification> {
    let verifying = Verifying { flags: c.verification, runtime: &c.run.runtime };
    let child = case.grown.as_ref().map_or(0, |g| g.plan.macs);
    let ancestor = || Typing::new(case.ancestor).map_or(0, |t| grown_macs(&t, job.shape.image_size));
    // An ancestor is typed where the descendant alone does not decide.
    let macs = if verifying.takes_long(cost(child, 0)) { cost(child, 0) } else { cost(child, ancestor()) };
    let resized = job.shape.image_size.is_some();
    let arrays = arrays.map(|arrays| arrays.clone().padded(job.tokens.unwrap_or(0))).transpose()?;
    if let Some((tokens, length)) = job.tokens.zip(arrays.as_ref().and_then(Arrays::length))
        && tokens != length
    {
        let why = format!("samples have {length} tokens, and the descendant takes {tokens}");
        return Ok(Verification::not_run(why));
    }
    let make = |runtime| Verifier::new(runtime).of(c.run.open.of.clone()).on_arrays(arrays.as_ref());
    let verification = named(&c.model, verifying.verify(case, macs, resized, make))?;
    let refused = |e: Error| {
        e.at(job.output.as_ref().unwrap_or(&c.model))
            .hint("nothing was written: please report the model; --no-verify writes the descendant as it is")
    };
    verifying.check(&verification).map_err(refused)?;
    Ok(verification)
}

/// Operations of a model for an image of another size, roughly: by its pixels.
fn grown_macs(typing: &Typing, size: Option<[usize; 2]>) -> u64 {
    let pixels = |[h, w]: [usize; 2]| h.saturating_mul(w).max(1) as f64;
    let own = pixels(typing.image_size());
    (typing.macs() as f64 * size.map_or(own, pixels) / own) as u64
}

/// Checks all outputs before any work.
fn check(c: &GrowArgs, outputs: &[PathBuf], companions: Option<&Companions>) -> Result<()> {
    if let (Some(_), Some(folder)) = (&c.batch, c.output.as_ref().filter(|f| !f.is_dir())) {
        std::fs::create_dir(folder).map_err(|e| Error::io(folder, e).hint("with --batch, -o names a folder"))?;
    }
    outputs.iter().try_for_each(|path| match companions {
        Some(companions) => companions.check(path, &c.model, c.force),
        None => output::check_output(path, &[&c.model], c.force),
    })
}

fn write(c: &GrowArgs, job: &Job, mut child: Descendant, companions: Option<&Companions>) -> Result<DescendantPlan> {
    if let (false, Some(path)) = (c.dry_run, &job.output) {
        if companions.is_some() {
            Companions::make_folder(path)?;
        }
        plain::write_model(path, &child.model, &c.run.runtime)?;
        let sources: Vec<usize> = child.plan.layers.iter().map(|l| l.ancestor_layer).collect();
        let write = |companions: &Companions| companions.write(path, &child.model, &sources);
        child.plan.configs = companions.map(write).transpose()?;
    }
    Ok(child.plan)
}

fn report(c: &GrowArgs, job: &Job, plan: &DescendantPlan) {
    plan.int8.iter().filter_map(Rounded::by_design).for_each(|note| output::note(&note));
    for w in &plan.warnings {
        output::warn(w);
    }
    if c.dry_run && !c.json {
        let rows = plan
            .layers
            .iter()
            .enumerate()
            .map(|(i, l)| {
                let ffn = match l.ffn_widths.is_empty() {
                    true => l.ffn_width.map(|w| w.to_string()).unwrap_or("-".into()),
                    false => l.ffn_widths.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
                };
                let source = format!("{:?}", l.source).to_lowercase();
                let slots = format!("{:?}", l.slots);
                vec![i.to_string(), l.ancestor_layer.to_string(), source, l.heads.to_string(), slots, ffn]
            })
            .collect();
        let header = ["layer", "from", "weights", "heads", "slots (ancestor heads)", "FFN width"];
        let _ = output::print(&table(&header, rows));
    }
    let size = format!("{} parameters, {} MACs, {} bytes", count(plan.parameters), count(plan.macs), plan.bytes);
    match &job.output {
        Some(path) if !c.dry_run => {
            output::note(&format!("wrote {}: {} layers, {size}", path.display(), plan.layers.len()));
            if job.shape.tied {
                output::note(TIED);
            }
        }
        _ => output::note(&format!("would write {} layers, {size}", plan.layers.len())),
    }
    plan.verification.iter().for_each(tell);
}

/// The model as it is, for methods that cluster nothing.
fn ancestor(c: &GrowArgs, model: &Model, alone: bool) -> Result<(Learngene, Model)> {
    if alone && (c.images.is_some() || c.clusters.any()) {
        return Err(Error::new(ErrorKind::Usage, "only --init cluster-learngene clusters heads")
            .at(&c.model)
            .hint("leave out --images and the clustering flags"));
    }
    if let Some(gene) = Learngene::read(model)? {
        return Ok((gene, model.clone()));
    }
    let typing = named(&c.model, Typing::new(model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    Ok((identity(model, &typing, &anatomy), model.clone()))
}

/// The identity learngene of a model, with its source.
fn identity(model: &Model, typing: &Typing, anatomy: &Anatomy) -> Learngene {
    let mut gene = Learngene::identity(typing, anatomy);
    gene.source.file = model.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    gene.source.parameters = crate::learngene::parameters(model.graph());
    gene
}

/// The flag that gives a model samples, with its value, and what they are called.
fn wanted(model: &Model) -> [&'static str; 2] {
    match Typing::new(model).is_ok_and(|typing| typing.image_input().is_some()) {
        true => ["--images PATH", "images"],
        false => ["--texts PATH or --inputs PATH", "samples"],
    }
}

/// The learngene, and the model to grow from: what was given, or an ancestor condensed on the way, with what its
/// samples became.
fn learngene(
    c: &GrowArgs,
    model: &Model,
    arrays: Option<&Arrays>,
    jobs: &[Job],
) -> Result<(Learngene, Model, Option<Value>)> {
    if let Some(gene) = Learngene::read(model)? {
        if c.no_images || c.clusters.any() {
            return Err(Error::new(ErrorKind::Usage, "the model is a learngene: its clusters are made already")
                .at(&c.model)
                .hint("leave out --no-images and the clustering flags, or give the ancestor"));
        }
        if c.images.is_some() && gene.removals.is_none() {
            output::warn("--images is not needed: the learngene carries its clusters");
        }
        if arrays.is_some() && gene.removals.is_none() {
            output::note("the learngene carries its clusters: descendants are only verified on the samples");
        }
        return Ok((gene, model.clone(), None));
    }
    let typing = named(&c.model, Typing::new(model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    if c.has_samples() {
        let source = InputSource::new(&c.samples(), &c.run, model, &typing, arrays.cloned())?;
        let runtime = Runtime::start(&c.run.runtime.options())?;
        let (gene, condensed) = condense(model, (&typing, &anatomy), &[(None, &source)], &c.clusters, &runtime)?;
        return Ok((gene, condensed, Some(source.report())));
    }
    let [flag, many] = wanted(model);
    let usage = |what: &str, hint: &str| {
        let hint = hint.replace("--images PATH", flag);
        let what = what.replace(" images", &format!(" {many}"));
        Err(Error::new(ErrorKind::Usage, what).at(&c.model).hint(hint))
    };
    let zero = |e: Option<Eps>| e.is_none_or(Eps::is_zero);
    let unclustered = [c.clusters.eps, c.clusters.ffn_eps].iter().all(|e| e.is_some_and(Eps::is_zero));
    if !c.no_images && !unclustered {
        return usage(
            "growing from an ancestor needs images, which its heads are clustered on",
            "give --images PATH, or --no-images to make every head its own cluster",
        );
    }
    if !zero(c.clusters.eps) || !zero(c.clusters.ffn_eps) {
        return usage(
            "--eps and --ffn-eps need densities, and --no-images measures none",
            "give --images PATH, or leave them out",
        );
    }
    let measured = [c.clusters.similarity.is_some(), c.clusters.cluster.is_some(), c.clusters.neuron_cluster.is_some()];
    if measured.contains(&true) {
        return usage(
            "--similarity, --cluster and --neuron-cluster need images to measure on, and there are none",
            "give --images PATH, or leave them out",
        );
    }
    if jobs.iter().any(|j| matches!(j.shape.order, Order::Ascending | Order::Descending)) {
        return usage(
            "this order needs densities, and --no-images measures none",
            "give --images PATH, or --order original",
        );
    }
    if c.no_images {
        output::warn("no densities: every head is its own cluster and keeps its place");
    }
    let mut gene = identity(model, &typing, &anatomy);
    (gene.centroid, gene.ffn_centroid) = (c.clusters.centroid, c.clusters.ffn_centroid);
    match &c.clusters.ffn_clusters {
        None => Ok((gene, model.clone(), None)),
        Some(groups) => {
            gene.group_ffns(groups, &typing, &anatomy)?;
            let condensed = gene.condense(model, &typing, &anatomy)?;
            Ok((gene, condensed, None))
        }
    }
}

/// A line of `--batch`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Entry {
    output: PathBuf,
    layers: Option<toml::Value>,
    heads: Option<toml::Value>,
    width: Option<f64>,
    ffn_width: Option<toml::Value>,
    classes: Option<usize>,
    order: Option<String>,
    projection: Option<String>,
    #[serde(default)]
    tied: bool,
    init: Option<String>,
    inherit: Option<toml::Value>,
    share: Option<usize>,
    embedding_dim: Option<usize>,
    image_size: Option<toml::Value>,
    tokens: Option<toml::Value>,
    transform: Option<String>,
    transform_rank: Option<usize>,
    dtype: Option<String>,
    batch_axis: Option<toml::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    descendant: Vec<Entry>,
}

fn jobs(c: &GrowArgs) -> Result<Vec<Job>> {
    let Some(list) = &c.batch else {
        if c.output.is_none() && !c.dry_run {
            return Err(Error::new(ErrorKind::Usage, "no output was named")
                .hint("give -o CHILD.onnx, or --dry-run for the plan alone"));
        }
        let chosen = c.shape.projection.is_some();
        let shape = GrowOptions { of: c.run.open.of.clone(), ..shape(&c.shape, c.tied, c.seed)? };
        let output = c.output.clone().map(|path| placed(c, path)).transpose()?;
        let (tokens, dtype, batch_axis) = (c.shape.tokens, c.dtype, c.batch_axis);
        return Ok(vec![Job { output, shape, chosen, tokens, dtype, batch_axis, untied: false }.untie()]);
    };
    let text = std::fs::read_to_string(list)
        .map_err(|e| Error::io(list, e).hint("give a TOML list of [[descendant]] tables"))?;
    let parsed: List = toml::from_str(&text).map_err(|e| {
        Error::new(ErrorKind::Format, e.to_string().trim().to_string()).at(list).hint(
            "a table is [[descendant]] with `output` and any of layers, heads, width, ffn-width, classes, order, \
                projection, tied, init, inherit, share, embedding-dim, image-size, tokens, transform, transform-rank, \
                dtype, batch-axis",
        )
    })?;
    if parsed.descendant.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "the list names no descendant").at(list));
    }
    parsed.descendant.into_iter().map(|e| job(e, c).map_err(|e| e.at(list))).collect()
}

/// The file of the descendant that an output stands for.
fn placed(c: &GrowArgs, output: PathBuf) -> Result<PathBuf> {
    if c.with_configs { in_folder(&output) } else { Ok(output) }
}

fn job(e: Entry, c: &GrowArgs) -> Result<Job> {
    // Lists may stand as TOML arrays or as text in the form of the flags.
    let text = |v: toml::Value| match v {
        toml::Value::String(s) => s,
        toml::Value::Array(a) => {
            let parts: Vec<String> = a.iter().map(|v| v.to_string()).collect();
            if parts.len() == 1 { format!("{},", parts[0]) } else { parts.join(",") }
        }
        other => other.to_string(),
    };
    fn choice<T: clap::ValueEnum>(name: &str, text: Option<String>) -> Result<Option<T>> {
        text.map(|t| T::from_str(&t, false).map_err(|_| Error::new(ErrorKind::Usage, format!("`{t}` is no {name}"))))
            .transpose()
    }
    if e.heads.is_some() && e.width.is_some() {
        return Err(Error::new(ErrorKind::Usage, "heads and width cannot both be given"));
    }
    let usage = |why: String| Error::new(ErrorKind::Usage, why).hint("the value is that of the flag of this name");
    let flags = ShapeFlags {
        layers: e.layers.map(|v| text(v).parse()).transpose()?,
        heads: e.heads.map(|v| text(v).parse()).transpose()?,
        width: e.width,
        ffn_width: e.ffn_width.map(|v| text(v).parse()).transpose()?,
        classes: e.classes,
        order: choice("order", e.order)?,
        projection: choice("projection", e.projection)?,
        init: choice("initialisation", e.init)?,
        inherit: e.inherit.map(|v| text(v).parse()).transpose()?,
        share: e.share,
        embedding_dim: e.embedding_dim,
        image_size: e.image_size.map(|v| image_size(&text(v)).map_err(usage)).transpose()?,
        tokens: e.tokens.map(|v| tokens(&text(v)).map_err(usage)).transpose()?,
        transform: choice("transform", e.transform)?,
        transform_rank: e.transform_rank,
    };
    let output = match &c.output {
        Some(folder) => folder.join(&e.output),
        None => e.output,
    };
    let chosen = flags.projection.is_some();
    let dtype = choice("dtype", e.dtype)?.or(c.dtype);
    let batch_axis = e.batch_axis.map(|v| batch_axis(&text(v)).map_err(usage)).transpose()?.or(c.batch_axis);
    let shape = GrowOptions { of: c.run.open.of.clone(), ..shape(&flags, e.tied, c.seed)? };
    let output = Some(placed(c, output)?);
    Ok(Job { output, shape, chosen, tokens: flags.tokens, dtype, batch_axis, untied: false }.untie())
}

/// The shape that flags ask for.
pub fn shape(f: &ShapeFlags, tied: bool, seed: u64) -> Result<GrowOptions> {
    let heads = match (f.width, &f.heads) {
        (Some(w), _) => Heads::Width(w),
        (None, Some(h)) => h.clone(),
        (None, None) => Heads::Same,
    };
    let init = f.init.unwrap_or_default();
    if init != Init::ClusterLearngene && (f.order.is_some() || f.projection.is_some()) {
        return Err(Error::new(ErrorKind::Usage, format!("{} has no clusters that fill slots", init.name()))
            .hint("--order and --projection go with cluster-learngene"));
    }
    let transforms = match f.transform {
        None => init == Init::WeightTransformation,
        Some(t) => t == Transform::Affine,
    };
    if f.transform_rank.is_some() && !transforms {
        return Err(Error::new(
            ErrorKind::Usage,
            "--transform-rank is the rank of an affine transform, and there is none",
        )
        .hint("give --transform affine"));
    }
    Ok(GrowOptions {
        of: None,
        layers: f.layers.clone().unwrap_or_default(),
        heads,
        ffn_width: f.ffn_width.unwrap_or_default(),
        classes: f.classes,
        order: f.order.unwrap_or_default(),
        projection: f.projection.unwrap_or_default(),
        tied,
        init,
        inherit: f.inherit,
        share: f.share,
        embedding_dim: f.embedding_dim,
        image_size: f.image_size,
        transform: f.transform,
        transform_rank: f.transform_rank,
        seed,
    })
}
