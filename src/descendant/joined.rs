//! Layers whose heads are one axis, since a table or a matrix has those of all of them: a table of relative positions
//! that every layer looks into (MPNet, T5, LayoutLMv3), or a block that is used several times (ALBERT).

use std::collections::BTreeSet;

use crate::anatomy::{Anatomy, Attention, Roles};
use crate::axes::{Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::listed;

/// Checks that layers whose heads are one axis are given as many. `counts` names layers by their places; `kept` has
/// the number that each place has in the ancestor.
///
/// # Errors
/// [`ErrorKind::Usage`]; it names the tensor that both have.
pub(super) fn check_counts(
    typing: &Typing,
    anatomy: &Anatomy,
    kept: &[usize],
    counts: impl IntoIterator<Item = (usize, usize)>,
) -> Result<()> {
    let roots = |place: usize| -> BTreeSet<Factor> {
        let factors = anatomy.layers[place].head_factors(typing);
        factors.into_iter().map(|f| typing.factors.root(f)).collect()
    };
    let mut seen: Vec<(usize, usize, BTreeSet<Factor>)> = Vec::new();
    for (place, count) in counts {
        let own = roots(place);
        let other = seen.iter().find(|(_, other, theirs)| *other != count && !own.is_disjoint(theirs));
        if let Some((first, other, theirs)) = other {
            let common = in_common(typing, [*first, place].map(|l| &anatomy.layers[l]), own.intersection(theirs));
            let of = if common.is_empty() { String::new() } else { format!(", those of {}", listed(&common)) };
            let (first, place) = (kept[*first], kept[place]);
            let what = format!("layers {first} and {place} have the same heads{of}, and are given {other} and {count}");
            return Err(Error::new(ErrorKind::Usage, what)
                .hint(format!("give all layers as many: ⟦heads⟧ {}", count.min(*other))));
        }
        seen.push((place, count, own));
    }
    Ok(())
}

/// The weights with an axis of such heads that two layers make their attention maps with.
fn in_common<'f>(typing: &Typing, layers: [&Attention; 2], factors: impl Iterator<Item = &'f Factor>) -> Vec<String> {
    let (roles, links) = (Roles::new(typing), typing.links());
    let uses = factors.flat_map(|&f| roles.carriers(f));
    let carriers: BTreeSet<&str> = uses.map(|u| typing.uses[u].name.as_str()).collect();
    let [own, other] = layers.map(|layer| -> BTreeSet<String> {
        let from = links.inputs(layer.softmax.first().copied().unwrap_or(layer.projection));
        let behind = links.upstream(from).until(|x| layer.residual_in.as_deref() == Some(x));
        behind.filter(|x| carriers.contains(x)).map(str::to_string).collect()
    });
    own.intersection(&other).cloned().collect()
}
