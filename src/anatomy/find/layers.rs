//! What belongs to a layer beside its attention: everything that adds to the residual stream, from the value that
//! enters the layer to the one where the next begins.
//!
//! The sums of a stream follow each other. Those between two attentions are split between the layer before and the
//! layer behind. How many go to each is read off the ends of the stack: what follows its last attention, and what
//! stands in front of its first. A Conformer has half an FFN in front of its attention, a convolution and the other
//! half behind; a decoder has its cross-attention and its FFN behind.

use std::collections::{HashMap, HashSet};

use super::super::structure::{Attention, FeedForward, Stack};
use super::finder::BlockFinder;
use super::residual::is_skip_norm;
use crate::graph::walk;

/// A sum of the residual stream.
struct Sum<'m> {
    /// Its node.
    join: usize,
    /// The value that it adds to.
    skip: &'m str,
    /// Layers whose attention it adds.
    layers: Vec<usize>,
    /// True where it adds an attention that reduces many tokens to one: that is no part of a layer.
    pools: bool,
    /// True where it adds an attention to other tokens.
    crosses: bool,
    /// FFNs that it adds, as indices into those that were found.
    ffns: Vec<usize>,
    /// True where it adds more than one weight makes: an adapter, and no convolution of positions.
    adapts: bool,
    /// The sum whose value it adds to, where there is one alone.
    before: Option<usize>,
}

impl<'m> Sum<'m> {
    fn new(join: usize, skip: &'m str) -> Self {
        Sum { join, skip, layers: vec![], pools: false, crosses: false, ffns: vec![], adapts: false, before: None }
    }
}

/// Gives layers what belongs to them beside their attention and one FFN. A layer whose stream is not a line of sums, or
/// whose own sums are not among those found, stays as it is.
pub(super) fn complete(
    finder: &BlockFinder,
    layers: &mut [Attention],
    others: &mut [Attention],
    ffns: &[FeedForward],
    stacks: &[Stack],
) {
    let sums = sums(finder, layers, others, ffns);
    for stack in stacks {
        for (l, range) in ranges(finder, &sums, stack, ffns) {
            let value = |s: &Sum| Some((s.skip.to_string(), finder.sum_of(s.join)?.to_string()));
            let found: Vec<_> = range.iter().filter_map(|&s| value(&sums[s])).collect();
            if layers[l].residual_adds.iter().any(|own| !found.contains(own)) {
                continue;
            }
            let own: Vec<usize> = range.iter().filter_map(|&s| ffn_of(&sums[s], layers, others, l, ffns)).collect();
            // A layer that has all its FFNs already takes nothing else: a convolution of positions stays where it is.
            let more = range.iter().any(|&s| sums[s].crosses || sums[s].adapts);
            if !more && !layers[l].ffns.is_empty() && own.len() == layers[l].ffns.len() {
                continue;
            }
            let is_taken = |a: &Attention| a.ffns.iter().any(|f| own.iter().any(|&i| ffns[i].down == f.down));
            if layers.iter().enumerate().any(|(o, other)| o != l && is_taken(other)) {
                continue;
            }
            // An FFN that follows a cross-attention belongs to the layer of both.
            others.iter_mut().filter(|o| is_taken(o)).for_each(|o| o.ffns.clear());
            let layer = &mut layers[l];
            let (enter, leave) = (range.first().map(|&s| sums[s].skip), range.last().map(|&s| sums[s].join));
            layer.residual_in = enter.map(|skip| finder.unscaled(skip).to_string());
            layer.residual_out = leave.and_then(|join| finder.sum_of(join)).map(str::to_string);
            let of_attention = layer.sum.clone();
            layer.ffns = own.into_iter().map(|i| ffns[i].clone()).collect();
            for ffn in &mut layer.ffns {
                let sum = finder.residual_add(ffn.down);
                ffn.sum = sum.0.zip(sum.1).filter(|s| Some(s) != of_attention.as_ref());
            }
            layer.residual_adds = found;
            // A convolution is the FFN of a layer that has no other. Beside others it stays as it is.
            let convolution = layer.ffns.iter().position(|f| f.convolves);
            if let Some(at) = convolution.filter(|_| layer.ffns.iter().any(|f| !f.convolves)) {
                layer.convolution = Some(layer.ffns.remove(at));
            }
        }
    }
}

/// The FFN that a sum adds: one that was given to an attention already, else the first. Any other in the same sum lies
/// within the branch of that FFN.
fn ffn_of(sum: &Sum, layers: &[Attention], others: &[Attention], layer: usize, ffns: &[FeedForward]) -> Option<usize> {
    let given: Vec<usize> =
        std::iter::once(&layers[layer]).chain(others).flat_map(|a| &a.ffns).map(|f| f.down).collect();
    let assigned = sum.ffns.iter().find(|&&i| given.contains(&ffns[i].down));
    assigned.or(sum.ffns.first()).copied()
}

/// The sums of the residual streams in order of execution, each with the one in front of it.
fn sums<'m>(
    finder: &BlockFinder<'_, 'm>,
    layers: &[Attention],
    others: &[Attention],
    ffns: &[FeedForward],
) -> Vec<Sum<'m>> {
    let mut found: HashMap<usize, Sum<'m>> = HashMap::new();
    let mut add = |k: usize, note: &dyn Fn(&mut Sum)| {
        if let Some((skip, join)) = finder.residual_join(k) {
            note(found.entry(join).or_insert_with(|| Sum::new(join, skip)));
        }
    };
    layers.iter().enumerate().for_each(|(l, a)| add(a.projection, &|s| s.layers.push(l)));
    for other in others {
        let pools = finder.size(&other.queries) < 2;
        add(other.projection, &|s| if pools { s.pools = true } else { s.crosses = true });
    }
    ffns.iter().enumerate().for_each(|(i, f)| add(f.down, &|s| s.ffns.push(i)));
    let stream = finder.leaves(layers.iter().map(|a| &a.embedding));
    for join in 0..finder.typing.graph.node.len() {
        if found.contains_key(&join) || !is_sum(finder, join) {
            continue;
        }
        let carries = finder.node(join).output.first().and_then(|o| finder.typing.dims.get(o.as_str()));
        if carries.is_some_and(|dims| dims.iter().any(|d| finder.is_among(d, &stream)))
            && let Some(skip) = skip_of(finder, join)
            && let weights @ 1.. = added_contractions(finder, join, skip)
        {
            found.insert(join, Sum { adapts: weights > 1, ..Sum::new(join, skip) });
        }
    }
    let mut sums: Vec<Sum> = found.into_values().collect();
    sums.sort_unstable_by_key(|s| s.join);
    let at: HashMap<usize, usize> = sums.iter().enumerate().map(|(s, sum)| (sum.join, s)).collect();
    for sum in &mut sums {
        sum.before = before(finder, sum.skip, &at);
    }
    sums
}

fn is_sum(finder: &BlockFinder, k: usize) -> bool {
    matches!(finder.node(k).op_type(), "Add" | "Sum") || is_skip_norm(finder.node(k))
}

/// Of a sum of a value and what was made of it, the value.
fn skip_of<'m>(finder: &BlockFinder<'_, 'm>, join: usize) -> Option<&'m str> {
    let operands: Vec<&str> =
        finder.links.inputs(join).filter(|x| !x.is_empty() && !finder.typing.is_constant(x)).collect();
    operands.iter().copied().find(|skip| {
        let branches = operands.iter().filter(|o| *o != skip);
        branches.filter_map(|o| finder.links.maker(o)).any(|m| finder.is_made_from(m, finder.unscaled(skip)))
    })
}

/// How many weights take part in what is added to the value, up to two.
fn added_contractions(finder: &BlockFinder, join: usize, skip: &str) -> usize {
    let first = finder.links.maker(skip).unwrap_or(0);
    let later = |x: &str| !finder.typing.is_constant(x) && finder.links.maker(x).is_some_and(|m| m > first);
    let branch = finder.links.upstream(finder.links.inputs(join).filter(|x| *x != skip)).along(later).nodes();
    branch.filter(|k| finder.weight.contains_key(k)).take(2).count()
}

/// The sum that a value is a form of, behind a norm say: no weight is summed over on the way.
fn before<'m>(finder: &BlockFinder<'_, 'm>, value: &'m str, at: &HashMap<usize, usize>) -> Option<usize> {
    let sum = |x: &str| finder.links.maker(x).and_then(|k| at.get(&k).copied());
    let is_end = |x: &str| finder.links.maker(x).is_some_and(|k| finder.weight.contains_key(&k));
    let back = |x: &&str| !x.is_empty() && !finder.typing.is_constant(x);
    let next = |x: &'m str| -> Vec<&'m str> {
        let Some(k) = finder.links.maker(x).filter(|_| sum(x).is_none() && !is_end(x)) else { return Vec::new() };
        // A sum that no weight adds to is a form of what it adds to.
        let skip = if is_sum(finder, k) { skip_of(finder, k) } else { None };
        skip.map_or_else(|| finder.links.inputs(k).filter(back).collect(), |skip| vec![skip])
    };
    let mut found: Vec<usize> = walk::search([value], next).filter_map(sum).collect();
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [s] => Some(s),
        _ => None,
    }
}

/// The sums of the layers of a stack, in order.
fn ranges(finder: &BlockFinder, sums: &[Sum], stack: &Stack, ffns: &[FeedForward]) -> Vec<(usize, Vec<usize>)> {
    let mut behind: Vec<Vec<usize>> = vec![Vec::new(); sums.len()];
    for (s, sum) in sums.iter().enumerate() {
        sum.before.into_iter().for_each(|b| behind[b].push(s));
    }
    let is_border = |s: usize| sums[s].pools || !sums[s].layers.is_empty();
    let mut own: Vec<(usize, usize)> = Vec::new();
    for (s, sum) in sums.iter().enumerate() {
        match sum.layers[..] {
            [l] if stack.layers.contains(&l) => own.push((l, s)),
            _ => {}
        }
    }
    // What stands in front of each attention, up to the attention before it.
    let front = |s: usize| -> (Vec<usize>, Option<usize>) {
        let mut line = Vec::new();
        let mut at = sums[s].before;
        while let Some(b) = at.filter(|b| !is_border(*b)) {
            line.insert(0, b);
            at = sums[b].before;
        }
        (line, at)
    };
    let fronts: Vec<(Vec<usize>, Option<usize>)> = own.iter().map(|&(_, s)| front(s)).collect();
    // What follows each: as far as the next attention, or as the stream is one line.
    let backs: Vec<(Vec<usize>, bool)> = own
        .iter()
        .map(|&(_, s)| {
            if let Some((line, _)) = fronts.iter().find(|(_, before)| *before == Some(s)) {
                return (line.clone(), false);
            }
            let next = |s: &usize| match behind[*s][..] {
                [next] if !is_border(next) => Some(next),
                _ => None,
            };
            (std::iter::successors(next(&s), next).collect(), true)
        })
        .collect();
    // A stack may hold layers with a cross-attention and layers without: each is compared with its own kind. One that
    // samples what it attends to (deformable attention) is not read as such.
    let samples = |s: &Sum| s.adapts && s.ffns.is_empty();
    let decodes = |i: usize| backs[i].0.first().is_some_and(|&s| sums[s].crosses || samples(&sums[s]));
    let range = |(i, &(l, s)): (usize, &(usize, usize))| {
        let like = || (0..own.len()).filter(|&o| decodes(o) == decodes(i));
        let gap = like().filter(|&o| !backs[o].1).map(|o| &backs[o].0).min_by_key(|gap| gap.len());
        let ends = || like().filter(|&o| backs[o].1).map(|o| &backs[o].0);
        let starts = || like().filter(|&o| fronts[o].1.is_none()).map(|o| &fronts[o].0);
        let end = ends().map(Vec::len).min().unwrap_or(0);
        let same = |a: &usize, b: &usize| kind(&sums[*a], ffns) == kind(&sums[*b], ffns);
        let (front, back) = (&fronts[i].0, &backs[i].0);
        let (lead, trail) = match gap {
            Some(gap) => {
                let prefix = |end: &Vec<usize>| gap.iter().zip(end).take_while(|(a, b)| same(a, b)).count();
                let trail = ends().map(prefix).max().unwrap_or(0);
                let left = gap[trail..].iter().rev();
                let suffix =
                    |start: &Vec<usize>| left.clone().zip(start.iter().rev()).take_while(|(a, b)| same(a, b)).count();
                (starts().map(suffix).max().unwrap_or(0), trail)
            }
            // What stands in front of a single decoder layer belongs to another, whose queries were zero (DETR).
            None if decodes(i) => (0, end),
            None => {
                let start = starts().map(Vec::len).min().unwrap_or(0);
                (start.min(alike(finder, sums, front, back, ffns)), end)
            }
        };
        let trail = trail.min(back.len());
        let mut range = front[front.len().saturating_sub(lead)..].to_vec();
        range.push(s);
        range.extend(&back[..trail]);
        (l, range)
    };
    own.iter().enumerate().map(range).collect()
}

/// What tells sums of different places in a layer apart: an attention to other tokens, and the form of an FFN.
fn kind<'f>(sum: &Sum, ffns: &'f [FeedForward]) -> (bool, Option<(bool, bool, &'f str)>) {
    let ffn = sum.ffns.first().map(|&i| (ffns[i].convolves, ffns[i].gated, ffns[i].activation.as_str()));
    (sum.crosses, ffn)
}

/// How many sums in front of a single attention belong to its layer: all of them if they are FFNs as wide as those
/// that follow, else none.
fn alike(finder: &BlockFinder, sums: &[Sum], front: &[usize], back: &[usize], ffns: &[FeedForward]) -> usize {
    let hidden =
        |s: &usize| sums[*s].ffns.first().map(|&i| &ffns[i]).filter(|f| !f.convolves).map(|f| finder.size(&f.hidden));
    let same = |s: &usize| hidden(s).is_some() && back.iter().any(|b| hidden(b) == hidden(s));
    if front.iter().all(same) { front.len() } else { 0 }
}

/// Completes layers on fewer channels than the stream that they add to (MobileBERT): every FFN between the attention
/// and that sum belongs to the layer. Returns true where there are any.
pub(super) fn enclose(finder: &BlockFinder, layers: &mut [Attention], ffns: &[FeedForward]) -> bool {
    let taken: HashSet<usize> = layers.iter().flat_map(|l| &l.ffns).map(|f| f.down).collect();
    let projections: Vec<usize> = layers.iter().map(|l| l.projection).collect();
    let mut any = false;
    for layer in layers.iter_mut() {
        let Some((skip, sum)) = layer.sum.clone() else { continue };
        let dims = finder.typing.dims.get(skip.as_str());
        if dims.is_none_or(|dims| dims.iter().any(|d| finder.meet(d, &layer.embedding))) {
            continue;
        }
        let (Some(join), Some(made)) = (finder.links.maker(&sum), finder.links.outputs(layer.projection).next()) else {
            continue;
        };
        if projections.iter().any(|p| (layer.projection + 1..join).contains(p)) {
            continue;
        }
        let mut branch = finder.links.upstream(finder.links.inputs(join).filter(|x| *x != skip)).nodes();
        let Some(back) = branch.find_map(|k| finder.weight.get(&k)) else { continue };
        let has = |f: &FeedForward| layer.ffns.iter().any(|own| own.down == f.down);
        let is_inside =
            |f: &FeedForward| f.down < join && !taken.contains(&f.down) && finder.is_made_from(f.down, made);
        let sum = |f: &FeedForward| {
            let (skip, sum) = finder.residual_add(f.down);
            skip.zip(sum).filter(|s| Some(s) != layer.sum.as_ref())
        };
        let own = ffns.iter().filter(|f| has(f) || is_inside(f));
        let own: Vec<_> = own.map(|f| FeedForward { sum: sum(f), ..f.clone() }).collect();
        if own.len() > layer.ffns.len() {
            let inner: Vec<_> = own.iter().filter_map(|f| f.sum.clone()).collect();
            layer.residual_adds.retain(|s| !inner.contains(s));
            layer.residual_adds.extend(inner);
            (layer.ffns, layer.embedding, any) = (own, back.made.clone(), true);
        }
    }
    any
}
