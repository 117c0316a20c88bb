//! How many tokens there are, and which axes of inputs say it.

use super::structure::Anatomy;
use super::tokens::{sequence_axis, sequences};
use crate::axes::{Dim, Factor, Typing};
use crate::graph::data_inputs;
use crate::onnx::proto::ValueInfoProto;

/// A number of tokens that inputs have, and which of their axes have it.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenAxis {
    /// The number.
    pub factor: Factor,
    /// Inputs by their names, each with its axis.
    pub inputs: Vec<(String, usize)>,
}

/// The numbers of tokens that the inputs of a model have: of token numbers that an embedding looks up, and where there
/// are none, of whatever lies along the queries of its attentions and comes from an input as it is (embeddings of
/// tokens, frames). A text encoder has one, an encoder beside a decoder two, a network for images none.
pub fn token_axes(typing: &Typing) -> Vec<TokenAxis> {
    let inputs = data_inputs(typing.graph);
    let axes = |name: &str| typing.dims.get(name).into_iter().flatten().enumerate().skip(1);
    let own = |dim: &Dim| match typing.factors.leaves(dim)[..] {
        [factor] if typing.factors.spatial(factor).is_none() => Some(factor),
        _ => None,
    };
    let mut factors = sequences(typing);
    if factors.is_empty() {
        let anatomy = Anatomy::new(typing).ok();
        let queries: Vec<Factor> =
            anatomy.iter().flat_map(|a| &a.layers).flat_map(|l| typing.factors.all_leaves(&l.queries)).collect();
        let all = inputs.iter().flat_map(|v| axes(v.name())).filter_map(|(_, dim)| own(dim));
        factors = all.filter(|f| queries.contains(f)).collect();
    }
    let mut found: Vec<TokenAxis> = Vec::new();
    for factor in factors {
        if found.iter().any(|axis| axis.factor == factor) {
            continue;
        }
        let of_input = |v: &&ValueInfoProto| {
            let place = axes(v.name()).find(|(_, dim)| own(dim) == Some(factor)).map(|(axis, _)| axis);
            // Nothing but its length ties a mask to the tokens in some exports.
            let is_mask = || typing.dims.get(v.name()).is_some_and(|dims| dims.len() == 2);
            let place = place.or_else(|| (is_mask() && sequence_axis(typing, v.name()) == Some(factor)).then_some(1));
            Some((v.name().to_owned(), place?))
        };
        let inputs = inputs.iter().filter_map(of_input).collect();
        found.push(TokenAxis { factor, inputs });
    }
    found
}
