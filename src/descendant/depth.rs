//! Depth: layers are by-passed in the residual stream, which is renaming.

use std::collections::{BTreeSet, HashSet};

use super::taps;
use crate::anatomy::{Anatomy, Attention, Roles};
use crate::axes::{Dim, Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder};
use crate::onnx::proto::{GraphProto, NodeProto};
use crate::onnx::{Model, node_label};
use crate::ops::{self, Mark};
use crate::runtime::separate_skip_norms;

/// A model without some of its layers.
#[derive(Debug)]
pub struct Shallow {
    /// The model.
    pub model: Model,
    /// What the user should know of outputs that hold what the layers computed that are gone.
    pub warnings: Vec<String>,
}

/// Keeps the layers `kept` and by-passes the others.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a layer that has no place of its own in the residual stream, or that changes its
/// shape.
pub fn keep_layers(model: &Model, typing: &Typing, anatomy: &Anatomy, kept: &[usize]) -> Result<Shallow> {
    let drops = (0..anatomy.layers.len()).any(|l| !kept.contains(&l));
    if let (true, Some(apart)) = (drops, separate_skip_norms(model, typing)?) {
        // A sum that is fused with the next layer's norm is no place to cut.
        let typing = Typing::new(&apart)?;
        return keep_layers(&apart, &typing, &Anatomy::new(&typing)?, kept);
    }
    let mut out = model.clone();
    let ends = ends(typing, anatomy);
    let warnings = taps::said(typing, anatomy, &ends, kept);
    // From the last to the first, so that the value that enters a dropped layer is still the right one.
    for l in (0..anatomy.layers.len()).rev().filter(|l| !kept.contains(l)) {
        let fail = |why: &str| {
            Error::new(ErrorKind::Unsupported, format!("layer {l} cannot be dropped: {why}"))
                .hint("choose other layers with ⟦layers⟧")
        };
        let layer = &anatomy.layers[l];
        let enter = layer.residual_in.as_ref().ok_or_else(|| fail("no residual sum encloses it"))?;
        let leave = ends[l].as_ref().ok_or_else(|| fail("no residual sum ends it"))?;
        let Some(reshape) = bridge(typing, enter, leave) else {
            return Err(fail("the residual stream changes its shape there"));
        };
        if let Some(node) = left_behind(typing, anatomy, &ends, l) {
            let node = node_label(&typing.graph.node[node]);
            return Err(fail(&format!("node `{node}` behind its attention is no FFN that is known, and would stay")));
        }
        let outside =
            anatomy.layers.iter().enumerate().any(|(o, other)| o != l && other.residual_in.as_ref() == Some(enter));
        if outside {
            return Err(fail("another attention branches from the same value"));
        }
        let graph = out.graph_mut();
        let mut enter = enter.clone();
        if let Some(shape) = reshape {
            // The same elements in the same order, on other axes (windows as a grid, tokens as a list).
            let mut b = Builder::new(graph, typing.opset, &enter);
            let operand = b.operand(&shape);
            enter = b.op_called("Reshape", &[&enter, &operand], vec![], &format!("{enter}_reshaped"));
            b.finish(graph);
        }
        for node in &mut graph.node {
            graph::replace_use(node, leave, &enter);
        }
        if graph.output.iter().any(|o| o.name() == leave) {
            for node in &mut graph.node {
                node.output.iter_mut().filter(|x| *x == leave).for_each(|x| *x = format!("{leave}_dropped"));
            }
            graph.node.push(graph::node("Identity", &[&enter], &[leave], vec![]));
        }
        graph::forget_shapes(graph);
    }
    graph::sort(out.graph_mut())?;
    graph::prune(out.graph_mut());
    if let Some((l, node)) = other_stream(typing, anatomy, kept, out.graph()) {
        let node = node_label(node);
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("layer {l} cannot be dropped: node `{node}` uses its matrices for another stream, and would stay"),
        )
        .hint("choose other layers with ⟦layers⟧"));
    }
    Ok(Shallow { model: out, warnings })
}

/// A dropped layer whose matrices are still used in what is left, and where: for another stream than that of the layer
/// (Pegasus-X). A block that is used several times has layers of its own for its uses.
fn other_stream<'m>(
    typing: &Typing<'m>,
    anatomy: &Anatomy,
    kept: &[usize],
    left: &GraphProto,
) -> Option<(usize, &'m NodeProto)> {
    if typing.shared.is_empty() {
        return None;
    }
    let roles = Roles::new(typing);
    let nodes =
        |a: &Attention| -> Vec<usize> { std::iter::once(a.projection).chain(a.ffns.iter().map(|f| f.down)).collect() };
    let stays: HashSet<&str> = left.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    let known: HashSet<usize> = kept.iter().filter_map(|&l| anatomy.layers.get(l)).flat_map(nodes).collect();
    let others: Vec<(usize, Vec<&str>)> = (typing.contractions.iter().map(|c| c.node))
        .filter(|k| !known.contains(k) && typing.graph.node[*k].output.iter().any(|o| stays.contains(o.as_str())))
        .map(|k| (k, roles.shared(k)))
        .collect();
    let gone = (0..anatomy.layers.len()).filter(|l| !kept.contains(l));
    gone.into_iter().find_map(|l| {
        let own: Vec<&str> = nodes(&anatomy.layers[l]).into_iter().flat_map(|k| roles.shared(k)).collect();
        let other = others.iter().find(|(_, names)| names.iter().any(|name| own.contains(name)));
        other.map(|(k, _)| (l, &typing.graph.node[*k]))
    })
}

/// A node behind a layer without an FFN that may be part of one, in a form that is not known: between the end of the
/// layer and the next one of its stack, a contraction with a weight or a node that is not read. Behind the last layer,
/// where others have FFNs, one that is not read.
fn left_behind(typing: &Typing, anatomy: &Anatomy, ends: &[Option<String>], l: usize) -> Option<usize> {
    let (stack, place) = anatomy.stack_of(l).filter(|_| anatomy.layers[l].ffns.is_empty())?;
    let end = ends[l].as_deref()?;
    let links = typing.links();
    let behind: HashSet<usize> = links.downstream([end]).collect();
    let unread = |among: &HashSet<usize>| typing.opaque.keys().copied().find(|k| among.contains(k));
    let Some(&next) = stack.layers.get(place + 1) else {
        let others_have = stack.layers.iter().any(|&other| !anatomy.layers[other].ffns.is_empty());
        return unread(&behind).filter(|_| others_have);
    };
    let next = anatomy.layers[next].residual_in.as_deref()?;
    let between = links.upstream([next]).along(|x| x != end && links.maker(x).is_some_and(|k| behind.contains(&k)));
    let between: HashSet<usize> = between.nodes().collect();
    let weighing: HashSet<usize> = typing.uses.iter().map(|u| u.node).collect();
    let mut contractions = typing.contractions.iter().map(|c| c.node);
    contractions.find(|k| between.contains(k) && weighing.contains(k)).or_else(|| unread(&between))
}

/// How the value that enters a layer becomes one of the shape that leaves it: not at all (`Some(None)`), by a Reshape
/// that keeps every element in its place, or by no means (`None`).
fn bridge(typing: &Typing, enter: &str, leave: &str) -> Option<Option<Vec<i64>>> {
    let (a, b) = (typing.dims.get(enter)?, typing.dims.get(leave)?);
    let leaves = |dims: &[Dim]| dims.iter().flat_map(|d| typing.factors.leaves(d)).collect::<Vec<_>>();
    let (before, after) = (leaves(a), leaves(b));
    let sorted = |list: &[Factor]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list
    };
    // As many channels as tokens have the same shape on either axis.
    let turned = before != after && sorted(&before) == sorted(&after);
    if typing.shape(enter) == typing.shape(leave) && !turned {
        return Some(None);
    }
    if before != after {
        return None;
    }
    let batch = typing.batch.map(|f| typing.factors.root(f));
    let shape = b
        .iter()
        .map(|d| match typing.factors.leaves(d)[..] {
            [f] if Some(f) == batch => -1,
            _ => typing.factors.size(d) as i64,
        })
        .collect();
    Some(Some(shape))
}

/// Where each layer ends: behind the norm that belongs to it, where one does, and the next layer begins there.
///
/// A norm belongs to a layer only where the layer's own sums are followed by one: of two sums, what the second adds to
/// is the norm of the first. Where a layer has one sum alone, a norm behind it belongs to it if none is in front of its
/// attention. A norm behind every layer belongs to the layers, too (Conformer). Any other norm is that of the stack,
/// and stays when the last layer goes.
pub(super) fn ends(typing: &Typing, anatomy: &Anatomy) -> Vec<Option<String>> {
    let mut ends: Vec<Option<String>> = anatomy.layers.iter().map(|layer| layer.residual_out.clone()).collect();
    for stack in &anatomy.stacks {
        let mut before: Option<Vec<&str>> = None;
        let shape = |l: usize| anatomy.layers[l].residual_out.as_deref().and_then(|leave| typing.shape(leave));
        let stages = stack.layers.chunk_by(|&a, &b| shape(a) == shape(b));
        let everywhere: Vec<Option<Vec<&str>>> =
            stages.flat_map(|stage| vec![norm_everywhere(typing, anatomy, stage); stage.len()]).collect();
        for (i, &l) in stack.layers.iter().enumerate() {
            let layer = &anatomy.layers[l];
            let Some(leave) = layer.residual_out.as_deref() else { continue };
            let next = next_enter(typing, anatomy, &stack.layers, i);
            let border = next.and_then(|next| norm_between(typing, leave, next));
            let (own, place) = match inner_norm(typing, layer) {
                Inner::Norm(ops) => (Some(ops), border.and(next)),
                Inner::None if everywhere[i].is_some() => (everywhere[i].clone(), border.and(next)),
                Inner::None => (None, None),
                Inner::Unknown if is_normed_first(typing, layer) => (None, None),
                // It ends like the layer before it, and the first as far as one norm: that of the stack may follow.
                Inner::Unknown => {
                    let own = before.clone().or(border.as_deref().map(first_norm));
                    (own.clone(), border.filter(|b| own.as_ref() == Some(b)).and(next))
                }
            };
            if let Some(ops) = &own {
                ends[l] = end(typing, leave, ops, place).or(ends[l].take());
            }
            before = own;
        }
    }
    ends
}

/// What the operators of a norm make of a value, or the place that they lead to.
fn end(typing: &Typing, leave: &str, ops: &[&str], place: Option<&str>) -> Option<String> {
    // Moves behind the norm belong to it where nothing else reads what it makes.
    let norm = &ops[..ops.len() - ops.iter().rev().take_while(|op| moves(op)).count()];
    let alone = |x: String| typing.links().users(&x).len() == 1;
    let whole = norm.len() == ops.len() || follow(typing, leave, norm).is_some_and(alone);
    let end = follow(typing, leave, ops).or(place.map(str::to_string)).filter(|_| whole);
    end.or_else(|| follow(typing, leave, norm))
}

/// The value that enters the next layer of a stack, where it is another one than leaves layer `i`, of the same shape.
fn next_enter<'a>(typing: &Typing, anatomy: &'a Anatomy, stack: &[usize], i: usize) -> Option<&'a str> {
    let leave = anatomy.layers[stack[i]].residual_out.as_deref()?;
    let next = stack.get(i + 1).and_then(|&n| anatomy.layers[n].residual_in.as_deref());
    next.filter(|n| *n != leave && typing.shape(n) == typing.shape(leave))
}

/// The operators of the norm between all neighbours of one stage, where there is one. Of two layers it may be the norm
/// between an encoder and what follows, unless they have several FFNs each.
fn norm_everywhere<'m>(typing: &Typing<'m>, anatomy: &Anatomy, stack: &[usize]) -> Option<Vec<&'m str>> {
    let border = |i: usize| {
        let leave = anatomy.layers[stack[i]].residual_out.as_deref()?;
        norm_between(typing, leave, next_enter(typing, anatomy, stack, i)?)
    };
    let borders: Vec<_> = (0..stack.len().saturating_sub(1)).map(border).collect::<Option<_>>()?;
    let first = borders.first().filter(|_| borders.len() > 1 || anatomy.layers[stack[0]].ffns.len() > 1)?;
    Some(first_norm(first))
}

/// What stands between the first sum of a layer and the value that its second adds to.
enum Inner<'m> {
    /// The operators of a norm.
    Norm(Vec<&'m str>),
    /// No norm.
    None,
    /// The layer has no two such sums.
    Unknown,
}

fn inner_norm<'m>(typing: &Typing<'m>, layer: &Attention) -> Inner<'m> {
    let sums = layer.residual_adds.iter().enumerate();
    let pairs = sums.clone().flat_map(|(i, (_, sum))| {
        let others = sums.clone().filter(move |(j, _)| *j != i);
        others.map(move |(_, (skip, _))| (sum, skip))
    });
    for (sum, skip) in pairs {
        match (sum == skip).then(Vec::new).or_else(|| between(typing, sum, skip)) {
            Some(ops) if is_norm(&ops) => return Inner::Norm(ops),
            // A skip may be weighed (LASR), and in half precision pass a Cast of its own.
            Some(ops) if ops.iter().all(|op| matches!(*op, "Cast" | "Identity" | "Mul")) => return Inner::None,
            _ => {}
        }
    }
    Inner::Unknown
}

/// True where a norm is the first that is done with what enters a layer, beside the sum that it is added to.
fn is_normed_first(typing: &Typing, layer: &Attention) -> bool {
    let node = |k: usize| &typing.graph.node[k];
    let mut users =
        typing.links().downstream(layer.residual_in.as_deref()).until(|k| !ops::of(node(k)).is(Mark::Keeps));
    users.any(|k| makes_norm(node(k).op_type()))
}

/// The operators of the norm that makes one value of another, and nothing else.
fn norm_between<'m>(typing: &Typing<'m>, from: &str, to: &str) -> Option<Vec<&'m str>> {
    between(typing, from, to).filter(|ops| is_norm(ops))
}

/// Operators between two values, in order; `None` where the second is not made from the first alone.
fn between<'m>(typing: &Typing<'m>, from: &str, to: &str) -> Option<Vec<&'m str>> {
    let mut nodes = BTreeSet::new();
    for x in typing.links().upstream([to]).along(|x| x != from && !typing.is_constant(x)) {
        nodes.insert(typing.links().maker(x).filter(|_| nodes.len() <= 16)?);
    }
    // A Slice that keeps everything does nothing (LUKE without entities).
    let cuts = |node: &&NodeProto| {
        let shape = |list: &[String]| list.first().and_then(|x| typing.shape(x));
        node.op_type() != "Slice" || shape(&node.input) != shape(&node.output)
    };
    Some(nodes.into_iter().map(|k| &typing.graph.node[k]).filter(cuts).map(|node| node.op_type()).collect())
}

/// Of the operators of norms, those of the first, where each is one operator.
fn first_norm<'m>(ops: &[&'m str]) -> Vec<&'m str> {
    let norms: Vec<usize> = (0..ops.len()).filter(|&i| ops[i].contains("Normalization")).collect();
    match norms[..] {
        [first, _, ..] => ops[..=first].to_vec(),
        _ => ops.to_vec(),
    }
}

/// True where the operators are those of a norm, or the gain and the bias alone (MobileBERT).
fn is_norm(names: &[&str]) -> bool {
    if names == ["Mul", "Add"] {
        return true;
    }
    let is_step = |op: &&str| makes_norm(op) || moves(op) || ops::named(op).is(Mark::NormStep);
    names.iter().any(|op| makes_norm(op)) && names.iter().all(is_step)
}

/// True for an operator that keeps every element, on other axes perhaps.
fn moves(op: &str) -> bool {
    ops::named(op).is(Mark::Keeps)
}

/// True for an operator that only a norm has in a residual stream.
fn makes_norm(op: &str) -> bool {
    op.contains("Normalization") || op == "ReduceMean"
}

/// Follows a value through the given operators.
fn follow(typing: &Typing, from: &str, ops: &[&str]) -> Option<String> {
    let mut walk = typing.links().downstream([from]);
    let mut last = None;
    for op in ops {
        let node = &typing.graph.node[walk.next()?];
        if node.op_type() != *op {
            return None;
        }
        last = node.output.first().cloned();
    }
    last
}
