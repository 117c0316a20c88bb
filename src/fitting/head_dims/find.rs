//! Finds the attentions whose head dimension may be cut.
//!
//! Where the columns of a projection lie among queries, keys and values is found by running that way on probes, as
//! everywhere in these fits, so that packed projections need no rule of their own; where a rotation or a norm acts on
//! the dimension in between, the attention keeps it.

use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use rayon::prelude::*;

use super::super::head_factors::{HeadFactors, head_factors};
use super::super::layout::MatrixLayout;
use super::super::network::Network;
use super::super::subgraph::Subgraph;
use super::super::targets::{ResidualPath, TargetFinder, TargetLinear};
use crate::anatomy::{Anatomy, Attention};
use crate::axes::{Factor, Typing};
use crate::error::Result;
use crate::graph::data_inputs;
use crate::learngene::BlockKind;
use crate::onnx::Model;
use crate::ops::{self, Mark};
use crate::runtime::Runtime;

/// Queries, keys or values as the attention takes them.
pub(super) struct Operand {
    pub value: String,
    /// Columns are heads, tokens and dimensions.
    pub layout: MatrixLayout,
    pub tokens: usize,
    /// The factors of the tokens.
    pub axis: Vec<Factor>,
    pub projection: TargetLinear,
    /// The column of the projection that makes dimension j of head h, at h * size + j.
    pub columns: Vec<usize>,
    /// What the projection is multiplied by on its way.
    pub gain: f32,
}

/// An attention whose head dimension may be cut.
pub struct HeadDimReduction {
    /// The layer.
    pub layer: usize,
    /// Heads.
    pub heads: usize,
    /// Dimensions of queries and keys, and of values.
    pub of: [usize; 2],
    /// The factors of both; the same where one projection packs them.
    pub factors: [Factor; 2],
    pub(super) query: Operand,
    pub(super) key: Operand,
    pub(super) values: Operand,
    pub(super) probabilities: (String, MatrixLayout),
    /// What scores are multiplied by behind the product.
    pub(super) scale: f32,
    /// The same attention for samples of the other lengths that a network runs.
    others: Vec<HeadDimReduction>,
}

impl HeadDimReduction {
    /// True where queries, keys and values share one factor, and so one size.
    pub fn is_joint(&self) -> bool {
        self.factors[0] == self.factors[1]
    }

    /// The attention for one of the lengths of samples that its network runs.
    pub(super) fn at(&self, length: usize) -> &HeadDimReduction {
        length.checked_sub(1).and_then(|i| self.others.get(i)).unwrap_or(self)
    }
}

/// The attentions of a network whose head dimension may be cut, for samples of all lengths that it runs.
pub fn narrows_of(network: &Network) -> Result<Vec<HeadDimReduction>> {
    let mut found = reductions(&network.runtime, &network.typing, network.model)?;
    for length in 1..network.lengths() {
        let own = network.at(length);
        let mut others = reductions(&own.runtime, &own.typing, own.model)?;
        found.retain_mut(|n| {
            let same = others.iter().position(|o| o.layer == n.layer);
            same.map(|i| n.others.push(others.swap_remove(i))).is_some()
        });
    }
    Ok(found)
}

/// The attentions of a pinned network whose head dimension may be cut.
pub fn reductions(runtime: &Arc<Runtime>, typing: &Typing, model: &Model) -> Result<Vec<HeadDimReduction>> {
    let anatomy = Anatomy::new(typing)?;
    let finder = TargetFinder::new(typing);
    let search = ReductionSearch { runtime, typing, model, finder };
    let found: Vec<Option<HeadDimReduction>> =
        anatomy.layers.par_iter().enumerate().map(|(l, layer)| search.attention(l, layer)).collect::<Result<_>>()?;
    Ok(found.into_iter().flatten().collect())
}

struct ReductionSearch<'t, 'm> {
    runtime: &'t Arc<Runtime>,
    typing: &'t Typing<'m>,
    model: &'t Model,
    finder: TargetFinder<'t, 'm>,
}

impl ReductionSearch<'_, '_> {
    fn attention(&self, l: usize, layer: &Attention) -> Result<Option<HeadDimReduction>> {
        let typing = self.typing;
        // A single head has no axis of its own.
        let head: Vec<Factor> = layer.head_factor(typing).map(|f| typing.factors.root(f)).into_iter().collect();
        let Some(found) = head_factors(typing, layer) else { return Ok(None) };
        let HeadFactors { scores, mix, factors: [fq, fv] } = found;
        let node = &typing.graph.node[layer.softmax[0]];
        let (Some(before), Some(after)) = (node.input.first(), node.output.first()) else { return Ok(None) };
        let (product, mixing) = (&typing.graph.node[scores], &typing.graph.node[mix]);
        // The operand of the scores whose tokens are the keys, and that of the mix that is no probability.
        let carries = |name: &str, dim: &[Factor]| {
            let leaves: Vec<Factor> = typing.dims[name].iter().flat_map(|d| typing.factors.leaves(d)).collect();
            typing.factors.leaves(dim).iter().all(|f| leaves.contains(f))
        };
        let known = |name: &String| typing.dims.contains_key(name.as_str());
        if !product.input.iter().chain(&mixing.input).all(known) || product.input.len() != 2 || mixing.input.len() != 2
        {
            return Ok(None);
        }
        let (q, k) = match (carries(&product.input[0], &layer.queries), carries(&product.input[1], &layer.queries)) {
            (true, _) => (&product.input[0], &product.input[1]),
            (_, true) => (&product.input[1], &product.input[0]),
            _ => return Ok(None),
        };
        let v = match carries(&mixing.input[0], &[fv]) {
            true => &mixing.input[0],
            false => &mixing.input[1],
        };
        let Some(probabilities) = MatrixLayout::of_probabilities(typing, &typing.dims[after.as_str()], &head) else {
            return Ok(None);
        };
        let operand = |value: &String, tokens: &[Factor], f: Factor| self.operand(l, value, &head, tokens, f);
        let (Some(query), Some(key), Some(values)) =
            (operand(q, &layer.queries, fq)?, operand(k, &layer.keys, fq)?, operand(v, &layer.keys, fv)?)
        else {
            return Ok(None);
        };
        let Some(scale) = self.scale(&product.output[0], before)? else { return Ok(None) };
        let narrow = HeadDimReduction {
            layer: l,
            heads: typing.factors.size(&head),
            of: [fq, fv].map(|f| typing.factors.factor_size(f)),
            factors: [fq, fv],
            query,
            key,
            values,
            probabilities: (after.clone(), probabilities),
            scale,
            others: Vec::new(),
        };
        Ok(self.is_free(&narrow, layer).then_some(narrow))
    }

    /// True where nothing but the projections carries the dimensions, and nothing mixes them in between.
    fn is_free(&self, n: &HeadDimReduction, layer: &Attention) -> bool {
        let (typing, roles) = (self.typing, &self.finder.roles);
        let mut allowed = roles.operand(layer.projection);
        for o in [&n.query, &n.key, &n.values] {
            allowed.extend(roles.operand(o.projection.node()));
            allowed.extend(roles.bias(o.projection.node()));
        }
        let plain = |f: Factor| {
            typing.graph.node.iter().filter(|node| !node.output.iter().all(|o| self.typing.is_constant(o))).all(
                |node| {
                    let carries = node.output.iter().any(|o| {
                        let dims = typing.dims.get(o.as_str());
                        dims.is_some_and(|d| d.iter().any(|d| typing.factors.leaves(d).contains(&f)))
                    });
                    !carries || ops::of(node).is(Mark::HeadDim)
                },
            )
        };
        n.factors.iter().all(|&f| roles.carriers(f).iter().all(|u| allowed.contains(u)) && plain(f))
    }

    fn layout(&self, value: &str, columns: &[&[Factor]]) -> Option<MatrixLayout> {
        let factors = &self.typing.factors;
        let columns: Vec<Factor> = columns.iter().flat_map(|c| factors.leaves(c)).collect();
        MatrixLayout::new(self.typing, self.typing.dims.get(value)?, &columns)
    }

    fn operand(&self, l: usize, value: &str, head: &[Factor], tokens: &[Factor], f: Factor) -> Result<Option<Operand>> {
        let factors = &self.typing.factors;
        let Some(layout) = self.layout(value, &[head, tokens, &[f]]) else { return Ok(None) };
        let (heads, size) = (factors.size(head), factors.factor_size(f));
        for c in &self.typing.contractions {
            let makes = self.typing.graph.node[c.node].output.first().and_then(|o| self.typing.dims.get(o.as_str()));
            if !makes.is_some_and(|d| d.iter().any(|d| factors.leaves(d).contains(&f))) {
                continue;
            }
            let Some(mut linear) = self.finder.linear(l, BlockKind::Heads, c.node, None, None) else { continue };
            linear.trace_to(value);
            let Some(way) = linear.residual_path(self.runtime, self.typing, self.model)? else { continue };
            let Some(columns) = self.columns(&layout, &way, [heads, factors.size(&factors.leaves(tokens)), size])
            else {
                continue;
            };
            let gain = way.gain[columns[0]];
            if columns.iter().any(|&c| (way.gain[c] - gain).abs() > 1e-4 * gain.abs()) {
                return Ok(None);
            }
            let axis = factors.leaves(tokens).to_vec();
            let tokens = factors.size(&axis);
            return Ok(Some(Operand {
                value: value.to_string(),
                layout,
                tokens,
                axis,
                projection: linear,
                columns,
                gain,
            }));
        }
        Ok(None)
    }

    /// Which column of a projection makes which dimension of which head; `None` where that is no one-to-one relation.
    fn columns(
        &self,
        layout: &MatrixLayout,
        way: &ResidualPath,
        [heads, tokens, size]: [usize; 3],
    ) -> Option<Vec<usize>> {
        let outputs = way.gain.len();
        let places = layout.places();
        let mut columns = vec![usize::MAX; heads * size];
        for c in (0..outputs).filter(|&c| way.gain[c] != 0.0) {
            let first =
                (c..way.source().len()).step_by(outputs).map(|i| way.source()[i]).find(|&at| at != usize::MAX)?;
            let column = places.get(first)? % (heads * tokens * size);
            let (h, j) = (column / (tokens * size), column % size);
            let place = columns.get_mut(h * size + j)?;
            if *place != usize::MAX {
                return None;
            }
            *place = c;
        }
        (!columns.contains(&usize::MAX)).then_some(columns)
    }

    /// What scores are multiplied by between the product and the softmax.
    fn scale(&self, scores: &str, softmax: &str) -> Result<Option<f32>> {
        if scores == softmax {
            return Ok(Some(1.0));
        }
        // A mask is made from inputs: of ones, it hides nothing.
        let inputs = data_inputs(self.typing.graph).into_iter().map(|v| v.name().to_string());
        let feeds: Vec<String> = std::iter::once(scores.to_string()).chain(inputs).collect();
        let part = Subgraph::cut(self.runtime, self.typing, self.model, feeds.clone(), vec![softmax.to_string()]);
        let shape = |name: &str| self.typing.shape(name).unwrap_or_default();
        let run = |v: f32| -> Result<ArrayD<f32>> {
            let of = |name: &String| if name == scores { v } else { 1.0 };
            let value = |name: &String| (name.clone(), ArrayD::from_elem(IxDyn(&shape(name)), of(name)));
            Ok(part.run(&feeds.iter().map(value).collect())?.into_iter().next().unwrap_or_default())
        };
        let (zero, one) = (run(0.0)?, run(1.0)?);
        let gains: Vec<f32> =
            one.iter().zip(&zero).map(|(a, b)| a - b).filter(|g| g.is_finite() && *g != 0.0).collect();
        let Some(&gain) = gains.first() else { return Ok(None) };
        // A mask of large negative numbers swallows small differences.
        let alike = gains.iter().filter(|g| (**g - gain).abs() <= 1e-3 * gain.abs()).count();
        Ok((2 * alike > gains.len()).then_some(gain))
    }
}
