//! What a descendant keeps of its ancestor on views that no fit has seen: outputs, and the features behind every layer.

use std::sync::Arc;

use ndarray::ArrayD;
use rayon::prelude::*;
use serde::Serialize;

use super::part::{Part, Values, pin};
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

/// Values that a model makes of one image.
struct Probe {
    part: Part,
    input: String,
    outputs: usize,
    /// The place of what leaves each layer among the results.
    leaves: Vec<Option<usize>>,
}

impl Probe {
    fn new(runtime: &Arc<Runtime>, model: &Model, layers: &[usize]) -> Result<Probe> {
        let typing = Typing::new(model)?;
        let anatomy = Anatomy::new(&typing)?;
        let input = data_inputs(typing.graph).first().map(|v| v.name().to_string()).unwrap_or_default();
        let mut results: Vec<String> = model.graph().output.iter().map(|o| o.name().to_string()).collect();
        let outputs = results.len();
        let mut leaves = Vec::new();
        for &l in layers {
            let leave = anatomy.layers.get(l).and_then(|l| l.leave.clone());
            leaves.push(leave.map(|leave| {
                let place = results.iter().position(|r| *r == leave).unwrap_or(results.len());
                if place == results.len() {
                    results.push(leave);
                }
                place
            }));
        }
        Ok(Probe { part: Part::cut(runtime, &typing, model, vec![input.clone()], results), input, outputs, leaves })
    }

    fn run(&self, view: &ArrayD<f32>) -> Result<Vec<ArrayD<f32>>> {
        self.part.run(&Values::from([(self.input.clone(), view.clone())]))
    }
}

/// Compares on views of one image each. Layer l of the descendant comes from layer `sources[l]`; `runtime` should have
/// one thread.
///
/// # Errors
/// Those of typing and of the runtime.
pub fn compare(
    runtime: &Arc<Runtime>,
    ancestor: &Model,
    child: &Model,
    sources: &[usize],
    views: &[ArrayD<f32>],
) -> Result<Comparison> {
    let (ancestor, child) = (pin(ancestor)?, pin(child)?);
    let own: Vec<usize> = (0..sources.len()).collect();
    let (a, b) = (Probe::new(runtime, &ancestor, sources)?, Probe::new(runtime, &child, &own)?);
    let runs: Vec<[Vec<ArrayD<f32>>; 2]> =
        views.par_iter().map(|view| Ok([a.run(view)?, b.run(view)?])).collect::<Result<_>>()?;
    let first = ancestor.graph().output.first().map_or("", |o| o.name());
    let mut agreement = Agreement::of(ranking(&Typing::new(&ancestor)?, first).is_some());
    for [x, y] in &runs {
        for o in 0..a.outputs.min(b.outputs) {
            agreement.add(&x[o], &y[o], o == 0);
        }
    }
    let layers = a.leaves.iter().zip(&b.leaves).map(|(&p, &q)| {
        let (p, q) = (p?, q?);
        let mut alike = Agreement::default();
        runs.iter().filter(|[x, y]| x[p].len() == y[q].len()).for_each(|[x, y]| alike.add(&x[p], &y[q], true));
        let found = alike.finish();
        (found.images > 0).then_some(found.correlation)
    });
    Ok(Comparison { layers: layers.collect(), outputs: agreement.finish() })
}
