//! What a descendant keeps of its ancestor on views that no fit has seen: outputs, and the features behind every layer.

use std::sync::Arc;

use ndarray::ArrayD;
use rayon::prelude::*;
use serde::Serialize;

use super::lengths::{alike, apart};
use super::padding::Mask;
use super::subgraph::{Subgraph, Values, pin_on};
use crate::anatomy::{Anatomy, ranking};
use crate::axes::Typing;
use crate::error::Result;
use crate::graph::data_inputs;
use crate::metrics::{Agreement, Measures};
use crate::onnx::Model;
use crate::runtime::Runtime;

/// How a descendant agrees with its ancestor.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Agreement of the outputs.
    pub outputs: Measures,
    /// For every layer of the descendant: the correlation of what leaves it with what leaves the ancestor's, the mean
    /// over views; none where that is not known.
    pub layers: Vec<Option<f64>>,
}

/// Values that a model makes of one sample.
struct Probe<'m> {
    typing: Typing<'m>,
    mask: Option<Mask>,
    part: Subgraph,
    outputs: usize,
    /// The place of what leaves each layer among the results.
    leaves: Vec<Option<usize>>,
}

impl<'m> Probe<'m> {
    fn new(runtime: &Arc<Runtime>, model: &'m Model, layers: &[usize], mask: Option<&str>) -> Result<Probe<'m>> {
        let typing = Typing::new(model)?;
        let anatomy = Anatomy::new(&typing)?;
        let mask = Mask::new(&typing, mask);
        let inputs = data_inputs(typing.graph).into_iter().map(|v| v.name().to_string()).collect();
        let mut results: Vec<String> = model.graph().output.iter().map(|o| o.name().to_string()).collect();
        let outputs = results.len();
        let mut leaves = Vec::new();
        for &l in layers {
            let leave = anatomy.layers.get(l).and_then(|l| l.residual_out.clone());
            leaves.push(leave.map(|leave| {
                let place = results.iter().position(|r| *r == leave).unwrap_or(results.len());
                if place == results.len() {
                    results.push(leave);
                }
                place
            }));
        }
        let part = Subgraph::cut(runtime, &typing, model, inputs, results);
        Ok(Probe { typing, mask, part, outputs, leaves })
    }

    /// What it makes of a sample, without what is padding's.
    fn run(&self, view: &Values) -> Result<Vec<ArrayD<f32>>> {
        let results = self.part.run(view)?;
        let real = |(name, value): (&String, _)| match &self.mask {
            Some(mask) => mask.part(&self.typing, name, value, view),
            None => Ok(value),
        };
        self.part.results.iter().zip(results).map(real).collect()
    }
}

/// Compares on samples, which may be joined in batches. Layer l of the descendant comes from layer `sources[l]`;
/// `runtime` should have one thread; tokens at the zeros of the input `mask` do not count.
///
/// # Errors
/// Those of typing and of the runtime.
pub fn compare(
    runtime: &Arc<Runtime>,
    ancestor: &Model,
    child: &Model,
    sources: &[usize],
    views: &[Values],
    mask: Option<&str>,
) -> Result<Comparison> {
    let first = ancestor.graph().output.first().map_or("", |o| o.name());
    let mut agreement = Agreement::of(ranking(&Typing::new(ancestor)?, first).is_some());
    let own: Vec<usize> = (0..sources.len()).collect();
    let mut layers: Vec<Option<Agreement>> = sources.iter().map(|_| Some(Agreement::default())).collect();
    let samples = apart(views);
    for views in alike(samples.iter().map(AsRef::as_ref)) {
        let (ancestor, child) = (pin_on(ancestor, views[0])?, pin_on(child, views[0])?);
        let (a, b) = (Probe::new(runtime, &ancestor, sources, mask)?, Probe::new(runtime, &child, &own, mask)?);
        let runs: Vec<[Vec<ArrayD<f32>>; 2]> =
            views.par_iter().map(|view| Ok([a.run(view)?, b.run(view)?])).collect::<Result<_>>()?;
        for [x, y] in &runs {
            for o in 0..a.outputs.min(b.outputs) {
                agreement.add(&x[o], &y[o], o == 0);
            }
        }
        for (layer, places) in layers.iter_mut().zip(a.leaves.iter().zip(&b.leaves)) {
            let (Some(found), (Some(p), Some(q))) = (layer.as_mut(), places) else {
                *layer = None;
                continue;
            };
            let same = runs.iter().filter(|[x, y]| x[*p].len() == y[*q].len());
            same.for_each(|[x, y]| found.add(&x[*p], &y[*q], true));
        }
    }
    let correlation = |found: Measures| (found.images > 0).then_some(found.correlation);
    let layers = layers.into_iter().map(|found| found.and_then(|found| correlation(found.finish())));
    Ok(Comparison { layers: layers.collect(), outputs: agreement.finish() })
}
