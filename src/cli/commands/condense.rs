//! `offshoot condense`: an ancestor into a learngene.

use std::sync::Arc;

use serde_json::json;

use super::{densities, images, named, open};
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::cli::flags::{ClusterFlags, Condense};
use crate::cli::output::{self, count, table};
use crate::data::Loader;
use crate::error::{Error, ErrorKind, Result};
use crate::learngene::{Learngene, METADATA, parameters};
use crate::onnx::{Model, sha256};
use crate::report::PREPROCESS;
use crate::runtime::Runtime;

/// Runs the command.
pub fn run(c: &Condense) -> Result<()> {
    let model = open(&c.model, c.open)?;
    let typing = named(&c.model, Typing::new(&model))?;
    let anatomy = named(&c.model, Anatomy::new(&typing))?;
    output::check_output(&c.output, &[&c.model], c.force)?;
    let (loader, runtime) = (images(&c.images, &c.transform, &model, &typing)?, Runtime::start(&c.runtime.options())?);
    let (gene, condensed) = condense(&model, &typing, &anatomy, &loader, &c.clusters, &runtime)?;
    let written = Typing::new(&condensed)?;
    let inherited = gene.inherited(&condensed, &written, &Anatomy::new(&written)?, parameters(model.graph()));
    let bytes = condensed.write(&c.output)?;
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
    let kept: usize = gene.layers.iter().map(Vec::len).sum();
    let heads: usize = gene.layers.iter().flatten().map(|k| k.members.len()).sum();
    output::note(&format!("{kept} of {heads} heads, {} of {} FFNs", gene.ffn_groups.len(), gene.layers.len()));
    output::note(&format!(
        "I-Params {} (output projection of centroid heads only, no classifier); the learngene holds {}, the ancestor {}",
        count(inherited.i_params),
        count(inherited.whole),
        count(inherited.ancestor)
    ));
    output::note(&format!("wrote {} ({bytes} bytes)", c.output.display()));
    if c.json {
        let mut value = serde_json::to_value(&gene).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        value["parameters"] = json!(inherited);
        value["bytes"] = json!(bytes);
        return output::print_json(&value);
    }
    Ok(())
}

/// Measures, clusters and condenses in memory.
pub fn condense(
    model: &Model,
    typing: &Typing,
    anatomy: &Anatomy,
    loader: &Loader,
    clusters: &ClusterFlags,
    runtime: &Arc<Runtime>,
) -> Result<(Learngene, Model)> {
    if model.metadata(METADATA).is_some() {
        return Err(Error::new(ErrorKind::Usage, "the model is a learngene already")
            .at(&model.path)
            .hint("give the ancestor"));
    }
    let measured = named(&model.path, densities(runtime, model, typing, anatomy, loader))?;
    let mut gene = Learngene::cluster(typing, anatomy, &measured, &clusters.rules())?;
    gene.source.file = model.path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    gene.source.sha256 = sha256(&model.path)?;
    gene.source.parameters = parameters(model.graph());
    gene.source.images_sha256 = loader.fingerprint()?;
    let mut condensed = named(&model.path, gene.condense(model, typing, anatomy))?;
    if let Some(preprocess) = loader.preprocess() {
        let text = serde_json::to_string(preprocess).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?;
        condensed.set_metadata(PREPROCESS, text);
    }
    Ok((gene, condensed))
}
