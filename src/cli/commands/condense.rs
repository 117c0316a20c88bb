//! `offshoot condense`: an ancestor into a learngene.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use ndarray::Array2;
use serde_json::json;

use super::fitter::{FitSamples, calibrated};
use super::source::{InputSource, Subject, open_for, open_towers};
use super::{agree, densities, named};
use crate::anatomy::{Anatomy, layers_of_part};
use crate::axes::Typing;
use crate::cli::common::{ClusterFlags, RunFlags, SampleFlags};
use crate::cli::output::{self, Bars, count, table};
use crate::data::Samples;
use crate::density::{Densities, attention_distances};
use crate::error::{Error, ErrorKind, Result};
use crate::fitting::similarity::{head_distances, neuron_clusters};
use crate::fitting::{Limits, Views, analyse, carrying};
use crate::learngene::{
    Algorithm, Cluster, Learngene, PUBLISHED_EPS, PUBLISHED_SIDE, Rules, Similarity, combined, density_distances,
    parameters,
};
use crate::metadata::{LEARNGENE, PREPROCESS};
use crate::onnx::{Model, sha256};
use crate::runtime::Runtime;

/// `offshoot condense`.
#[derive(Args, Debug)]
pub struct CondenseArgs {
    /// The ancestor
    pub model: PathBuf,
    #[command(flatten)]
    pub samples: SampleFlags,
    /// The learngene to write
    #[arg(short, long, value_name = "GENE.onnx")]
    pub output: PathBuf,
    /// Cluster nothing: keep the ancestor whole and measure in which order heads and neurons go, and what that costs
    ///
    /// `grow` and `shrink` then make descendants of any size from it, fitted where images are given.
    #[arg(long)]
    pub fitted: bool,
    /// Random views of the images that the order is measured on; of arrays and texts, samples at most (with --fitted)
    /// [default: 192; of texts, as many as have the tokens of so many images]
    #[arg(long, value_name = "N", requires = "fitted", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub crops: Option<u32>,
    /// Seed of the views (with --fitted)
    #[arg(long, value_name = "N", default_value_t = 0, requires = "fitted")]
    pub seed: u64,
    /// Overwrite an existing output
    #[arg(long)]
    pub force: bool,
    /// Print the learngene's description as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub clusters: ClusterFlags,
    #[command(flatten)]
    pub run: RunFlags,
}

/// Runs the command.
pub fn run(c: &CondenseArgs) -> Result<()> {
    let (model, fed) = match c.samples.are_of_towers() {
        true => open_towers(&c.model, &c.run, &c.samples).map(|(model, towers)| (model, FitSamples::Towers(towers)))?,
        false => open_for(&c.model, &c.run, &c.samples).map(|(model, arrays)| (model, FitSamples::Whole(arrays)))?,
    };
    let typing = named(&c.model, Typing::new(&model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    output::check_output(&c.output, &[&c.model], c.force)?;
    if c.fitted {
        return fitted(c, &model, fed);
    }
    let parts = parts(c, (&model, &typing), fed)?;
    let runtime = Runtime::start(&c.run.runtime.options())?;
    let of_parts: Vec<_> = parts.iter().map(|(tower, source)| (tower.as_ref(), source)).collect();
    let (gene, condensed) = condense(&model, (&typing, &anatomy), &of_parts, &c.clusters, &runtime)?;
    let written = Typing::new(&condensed)?;
    let inherited = gene.inherited(&condensed, &written, &Anatomy::new(&written)?, parameters(model.graph()));
    let bytes = output::write_model(&c.output, &condensed)?;
    let rows = gene
        .layers
        .iter()
        .enumerate()
        .map(|(l, clusters)| {
            let shared = gene.ffn_groups.iter().find(|g| g.contains(&l) && g.len() > 1);
            let listed: Vec<String> = clusters.iter().map(|k| format!("{}*{:?}", k.centroid, k.members)).collect();
            vec![
                l.to_string(),
                clusters.len().to_string(),
                listed.join(" "),
                shared.map(|g| format!("{g:?}")).unwrap_or("own".into()),
            ]
        })
        .collect();
    output::note(table(&["layer", "clusters", "centroid*[members]", "FFN"], rows).trim_end());
    if !gene.similarity.is_density() || gene.algorithm != Algorithm::Dbscan {
        output::note(&format!("heads clustered by {} with {}", gene.similarity, gene.algorithm));
    }
    let kept: usize = gene.layers.iter().map(Vec::len).sum();
    let heads: usize = gene.layers.iter().flatten().map(|k| k.members.len()).sum();
    output::note(&format!("{kept} of {heads} heads, {} of {} FFNs", gene.ffn_groups.len(), gene.layers.len()));
    if !gene.neurons.is_empty() {
        let neurons = |clusters: &Vec<Cluster>| clusters.iter().map(|c| c.members.len()).sum::<usize>();
        let of: usize = gene.neurons.iter().map(neurons).sum();
        output::note(&format!("{} of {of} FFN neurons", gene.neurons.iter().map(Vec::len).sum::<usize>()));
    }
    output::note(&format!(
        "I-Params {} (output projection of centroid heads only, no classifier); the learngene holds {}, the ancestor \
         {}",
        count(inherited.i_params),
        count(inherited.whole),
        count(inherited.ancestor)
    ));
    output::note(&format!("wrote {} ({bytes} bytes)", c.output.display()));
    if c.json {
        let mut value = serde_json::to_value(&gene).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        value["parameters"] = json!(inherited);
        value["bytes"] = json!(bytes);
        value["input"] = match &parts[..] {
            [(_, source)] => source.report(),
            parts => parts.iter().map(|(_, source)| (source.noun().many.to_string(), source.report())).collect(),
        };
        return output::print_json(&value);
    }
    Ok(())
}

/// A tower, where it is none of the whole model, and what it is run on.
type Tower = (Option<Model>, InputSource);

/// What is clustered: the model, or each of its towers, with what it is run on.
fn parts(c: &CondenseArgs, (model, typing): (&Model, &Typing), fed: FitSamples) -> Result<Vec<Tower>> {
    let source = |model: &Model, typing: &Typing, arrays| {
        let source = InputSource::new(&c.samples, &c.run, model, typing, arrays)?;
        agree(&c.model, || source.fingerprint())?;
        Ok(source)
    };
    match fed {
        FitSamples::Whole(arrays) => Ok(vec![(None, source(model, typing, arrays)?)]),
        FitSamples::Towers(_) if c.clusters.ffn_clusters.is_some() => {
            Err(Error::new(ErrorKind::Usage, "--ffn-clusters names layers of one tower, and there are samples for two")
                .at(&c.model)
                .hint("leave it out, or give the samples of one tower"))
        }
        FitSamples::Towers(towers) => {
            let of = |(tower, arrays): Subject| {
                let source = source(&tower, &named(&c.model, Typing::new(&tower))?, arrays)?;
                Ok((Some(tower), source))
            };
            towers.into_iter().map(of).collect()
        }
    }
}

/// The ancestor whole, with the order in which its heads and neurons go.
fn fitted(c: &CondenseArgs, model: &Model, fed: FitSamples) -> Result<()> {
    if c.clusters.any() || model.metadata(LEARNGENE).is_some() {
        return Err(Error::new(ErrorKind::Usage, "--fitted clusters nothing, and takes the ancestor")
            .at(&c.model)
            .hint("leave out the clustering flags"));
    }
    let bars = Bars::default();
    let views = Views { count: c.crops.map(|n| n as usize), seed: c.seed };
    let calibrated = calibrated(model, (&c.samples, fed), &c.run, views, &bars)?;
    let mut towers = calibrated.towers(model)?;
    let limits = Limits { dims: true, ..Limits::default() };
    let removals = named(&c.model, analyse(&mut towers, &limits, &bars))?;
    bars.clear();
    let gene = carrying(model, removals, Some(calibrated.origin()?))?;
    let bytes = output::write_model(&c.output, &gene)?;
    output::note(&format!("wrote {} ({bytes} bytes)", c.output.display()));
    match (c.json, Learngene::read(&gene)?) {
        (true, Some(gene)) => {
            let mut value = serde_json::to_value(&gene).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
            value["input"] = calibrated.report();
            output::print_json(&value)
        }
        _ => Ok(()),
    }
}

/// The distances of heads by which they are clustered, [heads, heads] a layer.
fn distances(
    runtime: &Arc<Runtime>,
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    samples: &dyn Samples,
    densities: &Densities,
    rules: &Rules,
) -> Result<Vec<Array2<f64>>> {
    let kinds = &rules.similarity.0;
    let has = |kind: Similarity| kinds.contains(&kind);
    let maps = match has(Similarity::Attention) {
        false => None,
        true => {
            let bar = output::progress(samples.len(), "attention");
            let told = |n: usize, of: usize| {
                bar.set_length(of as u64);
                bar.set_position(n as u64);
            };
            let maps = attention_distances(runtime, model, typing, anatomy, samples, told)?;
            bar.finish_and_clear();
            Some(maps)
        }
    };
    let outputs = match has(Similarity::Output) || has(Similarity::Prediction) {
        false => None,
        true => {
            let bar = output::progress(samples.len(), "outputs");
            let outputs = head_distances(&runtime.single_threaded(), model, samples, |n| bar.set_position(n as u64))?;
            bar.finish_and_clear();
            Some(outputs)
        }
    };
    let measured: Vec<Vec<Array2<f64>>> = kinds
        .iter()
        .filter_map(|kind| match kind {
            Similarity::Density => Some(densities.layers.iter().map(|d| density_distances(d)).collect()),
            Similarity::Attention => maps.clone(),
            Similarity::Output => outputs.as_ref().map(|o| o.output.clone()),
            Similarity::Prediction => outputs.as_ref().map(|o| o.prediction.clone()),
        })
        .collect();
    Ok(combined(&measured))
}

/// Measures, clusters and condenses in memory. Each of `parts` is a tower, or none and so the whole model, with what it
/// is run on.
pub fn condense(
    model: &Model,
    (typing, anatomy): (&Typing, &Anatomy),
    parts: &[(Option<&Model>, &InputSource)],
    clusters: &ClusterFlags,
    runtime: &Arc<Runtime>,
) -> Result<(Learngene, Model)> {
    if model.metadata(LEARNGENE).is_some() {
        return Err(Error::new(ErrorKind::Usage, "the model is a learngene already")
            .at(&model.path)
            .hint("give the ancestor"));
    }
    let (gene, digest) = std::thread::scope(|scope| {
        let digest = scope.spawn(|| sha256(&model.path));
        let gene = match parts {
            [(None, source)] => {
                let places: Vec<usize> = (0..anatomy.layers.len()).collect();
                of_part(model, (Some((typing, anatomy)), &places), source, clusters, runtime)
            }
            parts => {
                let of = |(tower, source): &(Option<&Model>, &InputSource)| {
                    let tower = tower.unwrap_or(model);
                    let places = layers_of_part(tower, (typing, anatomy))?;
                    Ok((of_part(tower, (None, &places), source, clusters, runtime)?, places))
                };
                let towers = parts.iter().map(of).collect::<Result<_>>();
                towers.map(|towers| Learngene::of_towers(typing, anatomy, towers))
            }
        };
        (named(&model.path, gene), digest.join())
    });
    let mut gene = gene?;
    gene.source.file = model.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    gene.source.sha256 = digest.map_err(|_| Error::new(ErrorKind::Internal, "hashing the model panicked"))??;
    gene.source.parameters = parameters(model.graph());
    let hashes = parts.iter().map(|(_, source)| source.fingerprint()).collect::<Result<Vec<_>>>()?;
    gene.source.images_sha256 = hashes.join("+");
    let mut condensed = named(&model.path, gene.condense(model, typing, anatomy))?;
    if let Some(preprocess) = parts.iter().find_map(|(_, source)| source.preprocess()) {
        let text = serde_json::to_string(preprocess).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        condensed.set_metadata(PREPROCESS, text);
    }
    Ok((gene, condensed))
}

/// The clusters of a model, or of a tower whose layers have these places in the whole. Lengths are those of the samples
/// for what is measured alone: the learngene takes what its ancestor does.
fn of_part(
    model: &Model,
    (typed, places): (Option<(&Typing, &Anatomy)>, &[usize]),
    source: &InputSource,
    clusters: &ClusterFlags,
    runtime: &Arc<Runtime>,
) -> Result<Learngene> {
    let fixed = source.fixed(model);
    match (&fixed, typed) {
        (None, Some((typing, anatomy))) => clustered(model, (typing, anatomy, places), source, clusters, runtime),
        (fixed, _) => {
            let model = fixed.as_ref().unwrap_or(model);
            let typing = Typing::new(model)?;
            clustered(model, (&typing, &Anatomy::new(&typing)?, places), source, clusters, runtime)
        }
    }
}

/// The clusters of a model that is as long as what it is run on.
fn clustered(
    model: &Model,
    (typing, anatomy, places): (&Typing, &Anatomy, &[usize]),
    source: &InputSource,
    clusters: &ClusterFlags,
    runtime: &Arc<Runtime>,
) -> Result<Learngene> {
    let samples = source.samples();
    let measured = densities(runtime, model, typing, (anatomy, places), samples, || source.skipped())?;
    let rules = clusters.rules();
    let distances = distances(runtime, model, typing, anatomy, samples, &measured, &rules)?;
    let number = |l: usize| places.get(l).unwrap_or(&l).to_string();
    let whole: Vec<String> = (0..distances.len()).filter(|&l| distances[l].is_empty()).map(number).collect();
    if !whole.is_empty() {
        output::warn(&format!(
            "all heads of layers without densities are kept ({}); `--similarity attention` and `output` cluster them, \
             too",
            whole.join(", ")
        ));
    }
    let mut gene = Learngene::cluster_by(typing, anatomy, &measured, &distances, &rules)?;
    if let Some(rules) = &rules.neurons {
        let bar = output::progress(samples.len(), "neurons");
        let told = |n: usize| bar.set_position(n as u64);
        gene.cluster_neurons(neuron_clusters(&runtime.single_threaded(), model, samples, rules, told)?)?;
        bar.finish_and_clear();
    }
    if let (InputSource::Arrays(_, report), false) = (source, gene.lengths.is_empty()) {
        report.special_line().iter().for_each(|line| output::note(line));
    }
    tell_radius(&gene, &rules);
    Ok(gene)
}

/// Says what radius heads and FFNs of sequences were clustered with, where it is the published one.
fn tell_radius(gene: &Learngene, rules: &Rules) {
    let by_density = rules.eps.is_none() && rules.similarity.is_density() && rules.algorithm == Algorithm::Dbscan;
    let what = match (by_density, rules.ffn_eps.is_none() && rules.ffn_clusters.is_none()) {
        (true, true) => "heads, and layers that share an FFN,",
        (true, false) => "heads",
        (false, true) => "layers that share an FFN",
        (false, false) => return,
    };
    let mut lengths: Vec<f64> = gene.lengths.iter().copied().flatten().collect();
    lengths.sort_by(f64::total_cmp);
    lengths.dedup();
    for length in lengths {
        let eps = PUBLISHED_EPS * length / PUBLISHED_SIDE;
        output::note(&format!(
            "{what} are alike within {eps:.2} tokens, {PUBLISHED_EPS}/{PUBLISHED_SIDE} of the mean length of \
             {length:.1}, as within {PUBLISHED_EPS} of {PUBLISHED_SIDE} pixels"
        ));
    }
}
