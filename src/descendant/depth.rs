//! Depth: layers are by-passed in the residual stream, which is renaming.

use std::collections::{BTreeSet, HashSet};

use crate::anatomy::Anatomy;
use crate::axes::{Dim, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Links, node as new_node};
use crate::onnx::{Model, tensor_from_i64};
use crate::runtime::separate_skip_norms;

/// Keeps the layers `kept` and by-passes the others.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a layer that has no place of its own in the residual stream, or that changes its shape.
pub fn keep_layers(model: &Model, typing: &Typing, anatomy: &Anatomy, kept: &[usize]) -> Result<Model> {
    let drops = (0..anatomy.layers.len()).any(|l| !kept.contains(&l));
    if let (true, Some(graph)) = (drops, separate_skip_norms(typing)?) {
        // A sum that is fused with the next layer's norm is no place to cut.
        let mut apart = model.clone();
        *apart.graph_mut() = graph;
        let typing = Typing::new(&apart)?;
        return keep_layers(&apart, &typing, &Anatomy::new(&typing)?, kept);
    }
    let mut out = model.clone();
    let ends = ends(typing, anatomy);
    // From the last to the first, so that the value that enters a dropped layer is still the right one.
    for l in (0..anatomy.layers.len()).rev().filter(|l| !kept.contains(l)) {
        let fail = |why: &str| {
            Error::new(ErrorKind::Unsupported, format!("layer {l} cannot be dropped: {why}"))
                .hint("choose other layers with --layers")
        };
        let layer = &anatomy.layers[l];
        let enter = layer.enter.as_ref().ok_or_else(|| fail("no residual sum encloses it"))?;
        let leave = ends[l].as_ref().ok_or_else(|| fail("no residual sum ends it"))?;
        let Some(reshape) = bridge(typing, enter, leave) else {
            return Err(fail("the residual stream changes its shape there"));
        };
        let outside = anatomy.layers.iter().enumerate().any(|(o, other)| o != l && other.enter.as_ref() == Some(enter));
        if outside {
            return Err(fail("another attention branches from the same value"));
        }
        let graph = out.graph_mut();
        let mut enter = enter.clone();
        if let Some(shape) = reshape {
            // The same elements in the same order, on other axes (windows as a grid, tokens as a list).
            let mut names = graph::Names::new(graph);
            let (operand, value) = (names.fresh("offshoot_shape"), names.fresh(&format!("{enter}_reshaped")));
            graph.initializer.push(tensor_from_i64(operand.clone(), &[shape.len()], &shape));
            graph.node.push(new_node("Reshape", &[&enter, &operand], &[&value], vec![]));
            enter = value;
        }
        for node in &mut graph.node {
            node.input.iter_mut().filter(|x| *x == leave).for_each(|x| *x = enter.clone());
        }
        if graph.output.iter().any(|o| o.name() == leave) {
            for node in &mut graph.node {
                node.output.iter_mut().filter(|x| *x == leave).for_each(|x| *x = format!("{leave}_dropped"));
            }
            graph.node.push(new_node("Identity", &[&enter], &[leave], vec![]));
        }
        graph.value_info.clear();
    }
    graph::sort(out.graph_mut())?;
    graph::prune(out.graph_mut());
    Ok(out)
}

/// How the value that enters a layer becomes one of the shape that leaves it: not at all (`Some(None)`), by a Reshape that keeps
/// every element in its place, or by no means (`None`).
fn bridge(typing: &Typing, enter: &str, leave: &str) -> Option<Option<Vec<i64>>> {
    let (a, b) = (typing.dims.get(enter)?, typing.dims.get(leave)?);
    let leaves = |dims: &[Dim]| dims.iter().flat_map(|d| typing.factors.leaves(d)).collect::<Vec<_>>();
    if typing.shape(enter) == typing.shape(leave) {
        return Some(None);
    }
    if leaves(a) != leaves(b) {
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

/// Where each layer ends. Where the norm comes last, it belongs to the layer: the next layer begins behind it.
pub(super) fn ends(typing: &Typing, anatomy: &Anatomy) -> Vec<Option<String>> {
    let links = Links::new(typing.graph);
    let fixed = typing.fixed();
    let mut trailing: Option<Vec<&str>> = None;
    let mut ends: Vec<Option<String>> = Vec::new();
    for (l, layer) in anatomy.layers.iter().enumerate() {
        let Some(leave) = layer.leave.as_deref() else {
            ends.push(None);
            continue;
        };
        let next = anatomy.layers.get(l + 1).and_then(|n| n.enter.as_deref());
        let end = match next {
            Some(next) if next != leave && typing.shape(next) == typing.shape(leave) => {
                match between(typing, &links, &fixed, leave, next) {
                    Some(ops) if is_norm(&ops) => {
                        trailing = Some(ops);
                        Some(next.to_string())
                    }
                    _ => Some(leave.to_string()),
                }
            }
            // The last layer has no next one to look at; it ends like the layers before it.
            None => trailing.as_ref().and_then(|ops| follow(typing, &links, leave, ops)).or(Some(leave.to_string())),
            _ => Some(leave.to_string()),
        };
        ends.push(end);
    }
    ends
}

/// Operators between two values, in order; `None` where the second is not made from the first alone.
fn between<'m>(
    typing: &Typing<'m>,
    links: &Links<'m>,
    fixed: &HashSet<&'m str>,
    from: &str,
    to: &str,
) -> Option<Vec<&'m str>> {
    let mut nodes = BTreeSet::new();
    let mut todo = vec![to];
    let mut seen = HashSet::new();
    while let Some(x) = todo.pop() {
        if x == from || fixed.contains(x) || !seen.insert(x) {
            continue;
        }
        let &k = links.maker.get(x)?;
        if nodes.len() > 16 {
            return None;
        }
        nodes.insert(k);
        todo.extend(typing.graph.node[k].input.iter().filter(|x| !x.is_empty()).map(String::as_str));
    }
    Some(nodes.into_iter().map(|k| typing.graph.node[k].op_type()).collect())
}

/// True where the operators are those of a norm.
fn is_norm(ops: &[&str]) -> bool {
    let norm = |op: &&str| op.contains("Normalization") || *op == "ReduceMean";
    let plain = ["Sub", "Pow", "Mul", "Add", "Sqrt", "Div", "Cast", "Reciprocal", "Identity"];
    ops.iter().any(norm) && ops.iter().all(|op| norm(op) || plain.contains(op))
}

/// Follows a value through the given operators.
fn follow<'m>(typing: &Typing<'m>, links: &Links<'m>, from: &str, ops: &[&str]) -> Option<String> {
    let mut made: HashSet<&str> = HashSet::from([from]);
    let mut todo: BTreeSet<usize> = links.users(from).iter().copied().collect();
    let mut last = None;
    for op in ops {
        let k = todo.pop_first()?;
        let node = &typing.graph.node[k];
        if node.op_type() != *op {
            return None;
        }
        for o in &node.output {
            made.insert(o);
            todo.extend(links.users(o));
        }
        last = node.output.first().cloned();
    }
    last
}
