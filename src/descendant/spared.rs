//! Layers that the output that counts does not need: in a model of two towers, those of the other one. They stay as
//! they are.

use std::collections::HashSet;

use crate::anatomy::{Anatomy, Attention};
use crate::axes::{Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::check_output;

/// Whether each layer is spared; none is where no output is named.
///
/// # Errors
/// [`ErrorKind::Usage`] where there is no such output, or where it needs no layer.
pub(super) fn spared(typing: &Typing, anatomy: &Anatomy, of: Option<&str>) -> Result<Vec<bool>> {
    let Some(of) = of else { return Ok(vec![false; anatomy.layers.len()]) };
    check_output(typing.graph, of)?;
    let needed: HashSet<usize> = typing.links().upstream([of]).nodes().collect();
    let spared: Vec<bool> = anatomy.layers.iter().map(|l| !needed.contains(&l.projection)).collect();
    if !spared.is_empty() && spared.iter().all(|&spared| spared) {
        return Err(Error::new(
            ErrorKind::Usage,
            format!("the output `{of}` needs no layer, so there is none to change"),
        )
        .hint("name another output with ⟦of⟧"));
    }
    Ok(spared)
}

/// Checks that nothing of a layer that is spared was given a `plan`.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where layers share an axis.
pub(super) fn check_untouched(
    typing: &Typing,
    layer: &Attention,
    index: usize,
    planned: impl Fn(Factor) -> bool,
) -> Result<()> {
    let neurons = layer.ffns.iter().filter_map(|ffn| ffn.hidden_factor(typing));
    match layer.head_factors(typing).into_iter().chain(neurons).any(planned) {
        false => Ok(()),
        true => Err(Error::new(
            ErrorKind::Unsupported,
            format!("layer {index} would change with the layers that ⟦of⟧ needs: they share matrices"),
        )
        .hint("leave out ⟦of⟧, and both change")),
    }
}
