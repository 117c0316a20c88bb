//! What of a layer something else needs than the residual stream behind it: attention maps and hidden states among the
//! outputs, scores that the next layer adds to. A layer that is by-passed goes on computing it, on a stream that is no
//! longer its own, and that is said.

use std::collections::HashSet;

use crate::anatomy::Anatomy;
use crate::axes::Typing;

/// Names that a message lists.
const LISTED: usize = 3;

/// What is to be said of outputs when the layers that are not `kept` go; `ends` says where each layer ends.
pub(super) fn said(typing: &Typing, anatomy: &Anatomy, ends: &[Option<String>], kept: &[usize]) -> Vec<String> {
    let outputs: HashSet<&str> = typing.graph.output.iter().map(|o| o.name()).collect();
    let mut said = Vec::new();
    for l in (0..anatomy.layers.len()).filter(|l| !kept.contains(l)) {
        let (Some(enter), Some(end)) = (anatomy.layers[l].residual_in.as_deref(), ends[l].as_deref()) else { continue };
        // Behind the last layer an output is that of whatever layer is now the last.
        let is_last = anatomy.stacks.iter().any(|s| s.layers.last() == Some(&l));
        if outputs.contains(end) && !is_last {
            said.push(format!(
                "layer {l} is left out: the output `{end}`, which held what leaves it, holds what would have entered it"
            ));
        }
        let needed = needed(typing, enter, end);
        if !needed.is_empty() {
            let more = if needed.len() > LISTED { " and others" } else { "" };
            said.push(format!(
                "layer {l} is left out, and what it computes inside is still needed by the output `{}`{more}: it goes \
                 on computing that \
                 from what would have entered it",
                needed.into_iter().take(LISTED).collect::<Vec<_>>().join("`, `")
            ));
        }
    }
    said
}

/// Outputs that need what lies between two values, and not the second of them alone, in their order.
fn needed<'m>(typing: &Typing<'m>, enter: &str, end: &str) -> Vec<&'m str> {
    let links = typing.links();
    let Some(last) = links.maker(end) else { return Vec::new() };
    let node = |k: usize| &typing.graph.node[k];
    // Sizes do not depend on what is computed.
    let computes = |k: usize| !node(k).output.iter().all(|o| o.is_empty() || typing.is_constant(o));
    let behind = links.downstream([enter]).along(|o| o != end).through(|k| k <= last && computes(k));
    let behind: HashSet<usize> = behind.collect();
    let is_behind = |x: &str| links.maker(x).is_some_and(|k| behind.contains(&k));
    let inside: HashSet<usize> = links.upstream([end]).along(|x| x != enter && is_behind(x)).nodes().collect();
    let taken = inside.iter().flat_map(|&k| links.outputs(k)).filter(|o| *o != end);
    let others = links.downstream(taken).along(|o| o != end).through(|k| computes(k) && !inside.contains(&k));
    let reached: HashSet<&str> =
        inside.iter().copied().chain(others).flat_map(|k| links.outputs(k)).filter(|o| *o != end).collect();
    typing.graph.output.iter().map(|o| o.name()).filter(|o| reached.contains(o)).collect()
}
