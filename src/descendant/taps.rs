//! What of a layer something else needs than the residual stream behind it: attention maps and hidden states among the
//! outputs, scores that the next layer adds to. A layer that is by-passed goes on computing it, on a stream that is no
//! longer its own, and that is said.

use std::collections::{BTreeSet, HashSet};

use crate::anatomy::Anatomy;
use crate::axes::Typing;
use crate::graph::Links;

/// Names that a message lists.
const LISTED: usize = 3;

/// What is to be said of outputs when the layers that are not `kept` go; `ends` says where each layer ends.
pub(super) fn said(typing: &Typing, anatomy: &Anatomy, ends: &[Option<String>], kept: &[usize]) -> Vec<String> {
    let links = Links::new(typing.graph);
    let outputs: HashSet<&str> = typing.graph.output.iter().map(|o| o.name()).collect();
    let mut said = Vec::new();
    for l in (0..anatomy.layers.len()).filter(|l| !kept.contains(l)) {
        let (Some(enter), Some(end)) = (anatomy.layers[l].enter.as_deref(), ends[l].as_deref()) else { continue };
        // Behind the last layer an output is that of whatever layer is now the last.
        let is_last = anatomy.stacks.iter().any(|s| s.layers.last() == Some(&l));
        if outputs.contains(end) && !is_last {
            said.push(format!(
                "layer {l} is left out: the output `{end}`, which held what leaves it, holds what would have entered it"
            ));
        }
        let needed = needed(typing, &links, enter, end);
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
fn needed<'m>(typing: &Typing<'m>, links: &Links<'m>, enter: &str, end: &str) -> Vec<&'m str> {
    let Some(&last) = links.maker.get(end) else { return Vec::new() };
    let node = |k: usize| &typing.graph.node[k];
    // Sizes do not depend on what is computed.
    let computes = |k: usize| !node(k).output.iter().all(|o| o.is_empty() || typing.is_constant(o));
    let users = |x: &str| links.users(x).iter().copied().filter(|&k| computes(k)).collect::<Vec<_>>();
    let mut behind: BTreeSet<usize> = BTreeSet::new();
    let mut todo = users(enter);
    while let Some(k) = todo.pop() {
        if k <= last && behind.insert(k) {
            todo.extend(node(k).output.iter().filter(|o| *o != end).flat_map(|o| users(o)));
        }
    }
    let mut inside: HashSet<usize> = HashSet::new();
    let mut todo = vec![last];
    while let Some(k) = todo.pop() {
        if behind.contains(&k) && inside.insert(k) {
            todo.extend(node(k).input.iter().filter(|x| *x != enter).filter_map(|x| links.maker.get(x.as_str())));
        }
    }
    let mut reached: HashSet<&str> = HashSet::new();
    let mut todo: Vec<usize> = inside.iter().copied().collect();
    let mut seen = HashSet::new();
    while let Some(k) = todo.pop() {
        for o in node(k).output.iter().filter(|o| *o != end && !o.is_empty()) {
            reached.insert(o);
            todo.extend(users(o).into_iter().filter(|u| !inside.contains(u) && seen.insert(*u)));
        }
    }
    typing.graph.output.iter().map(|o| o.name()).filter(|o| reached.contains(o)).collect()
}
