//! Takes layers, heads, neurons and head dimensions out of a model; its matrices stay as they were.

use super::blocks::factor;
use super::budget::Allocation;
use super::head_factors::head_factors;
use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::axes::resize::{ResizePlan, resize};
use crate::descendant::keep_layers;
use crate::error::Result;
use crate::graph;
use crate::learngene::{BlockKind, PruningOrder};
use crate::metadata::LEARNGENE;
use crate::onnx::Model;

/// The model without the layers, heads and neurons that an allocation removes, its matrices as they were. Of heads that
/// are cut, the first dimensions stay.
///
/// # Errors
/// Those of surgery and of typing.
pub fn thin(model: &Model, removals: &PruningOrder, allocation: &Allocation) -> Result<Model> {
    let kept = allocation.kept_layers();
    let units = removals.blocks.iter().filter_map(|b| {
        let count = allocation.count(b.layer, b.kind).filter(|&n| n < b.kept.units())?;
        Some((b.layer, b.kind, b.kept.at(count)))
    });
    let dims = (0..allocation.layers.len()).filter_map(|l| Some((l, allocation.layers[l].dims?[0])));
    cut(model, &kept, units.collect(), dims.collect())
}

/// Keeps some layers, and some units of blocks that are named by the ancestor's layers.
pub(super) fn cut(
    model: &Model,
    kept: &[usize],
    units: Vec<(usize, BlockKind, Vec<usize>)>,
    dims: Vec<(usize, [usize; 2])>,
) -> Result<Model> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    if kept.len() < anatomy.layers.len() {
        let shallow = keep_layers(model, &typing, &anatomy, kept)?.model;
        let place = |l: usize| kept.iter().position(|&k| k == l);
        let units = units.into_iter().filter_map(|(l, kind, list)| Some((place(l)?, kind, list))).collect();
        let dims = dims.into_iter().filter_map(|(l, sizes)| Some((place(l)?, sizes))).collect();
        let all: Vec<usize> = (0..kept.len()).collect();
        return cut(&shallow, &all, units, dims);
    }
    let mut plan = ResizePlan::default();
    for (layer, kind, list) in units {
        // Heads that are mixed go together before and behind the mixing.
        let factors = match (kind, anatomy.layers.get(layer)) {
            (BlockKind::Heads, Some(layer)) => layer.head_factors(&typing),
            _ => factor(&typing, &anatomy, layer, kind).into_iter().collect(),
        };
        for factor in factors {
            plan.gather(&typing.factors, factor, list.clone())?;
        }
    }
    for (layer, sizes) in dims {
        let Some(found) = anatomy.layers.get(layer).and_then(|l| head_factors(&typing, l)) else {
            bail!(Unsupported, "the head dimension of layer {layer} cannot be cut")
        };
        plan.gather(&typing.factors, found.factors[0], (0..sizes[0]).collect())?;
        if found.factors[0] != found.factors[1] {
            plan.gather(&typing.factors, found.factors[1], (0..sizes[1]).collect())?;
        }
    }
    let mut out = model.clone();
    out.proto.metadata_props.retain(|p| p.key() != LEARNGENE);
    if !plan.is_empty() {
        out.proto.graph = Some(resize(&typing, &plan)?);
        graph::prune(out.graph_mut());
    }
    Ok(out)
}
