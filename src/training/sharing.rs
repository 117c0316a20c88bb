//! Constants that exporters store once: equal tensors of different layers, such as the ones and zeros that norms and
//! biases begin with.
//!
//! Exporters and slimmers merge initializers of equal values, and a network that is to be trained from its start then
//! has one norm where it had five. Nothing in the file says which weights were one in the network, but how they are
//! shared does: a module that is called from several blocks shares its matrices between them, and matrices of random
//! numbers are not equal by accident. So a weight whose elements are all equal is one parameter for each of its uses,
//! apart from blocks that share another weight with each other: there the first use in one block goes with the first in
//! the other, the second with the second, and so on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use serde::Serialize;

use super::trained::{Layers, is_trainable};
use crate::anatomy::{WeightKind, weight_uses};
use crate::axes::Typing;
use crate::error::Result;
use crate::graph::{self, Attributes, Links, Names, lift_constants};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{Model, is_uniform};
use crate::ops::{self, Mark};

/// A weight that was stored once and is several parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Separated {
    /// Its name, which the first of them keeps.
    pub name: String,
    /// The names of the others.
    pub copies: Vec<String>,
}

/// A place where a weight meets the data: a node, and which of its inputs.
type Place = (usize, usize);

/// A use of a weight by a module: the block of the module, and the number of the use there.
type Use = (usize, usize);

/// Gives weights that an exporter stored once although they are several an initializer each, and says which they were.
/// A prepared model stays as it is where there are none.
///
/// # Errors
/// Those of [`Typing::new`].
pub fn separate(model: &mut Model) -> Result<Vec<Separated>> {
    if candidates(model.graph()).is_empty() {
        return Ok(Vec::new());
    }
    lift_constants(model.graph_mut());
    let (plan, constants) = {
        let typing = Typing::new(model)?;
        let constants: HashSet<String> = typing.constants().iter().map(|x| x.to_string()).collect();
        (plan(&typing), constants)
    };
    let graph = model.graph_mut();
    let (mut names, mut left) = (Names::new(graph), HashSet::new());
    let mut out = Vec::new();
    for (name, parameters) in plan {
        let mut copies = Vec::new();
        for places in &parameters[1..] {
            let new = names.fresh(&name);
            copy(graph, [&name, &new], places, &constants, &mut names, &mut left);
            copies.push(new);
        }
        out.push(Separated { name, copies });
    }
    remove_unread(graph, &left);
    graph::sort(graph)?;
    Ok(out)
}

/// Weights of several equal elements that are read at all; what one node reads may go on from there to several.
fn candidates(graph: &GraphProto) -> HashSet<&str> {
    let read: HashSet<&str> = graph.node.iter().flat_map(|n| &n.input).map(String::as_str).collect();
    let constants = graph.node.iter().filter(|n| n.op_type() == "Constant");
    let constants = constants.filter_map(|n| Some((n.output.first()?.as_str(), n.tensor("value")?)));
    let all = graph.initializer.iter().map(|t| (t.name(), t)).chain(constants);
    all.filter(|(name, tensor)| read.contains(name) && is_trainable(tensor) && is_uniform(tensor))
        .map(|(name, _)| name)
        .collect()
}

/// For every weight that is several parameters, the places of each; the first keeps the name.
fn plan(typing: &Typing) -> Vec<(String, Vec<Vec<Place>>)> {
    let candidates = candidates(typing.graph);
    let layers = Layers::new(typing);
    let mut places: BTreeMap<&str, Vec<(Place, WeightKind)>> = BTreeMap::new();
    for (of_use, found) in typing.uses.iter().zip(weight_uses(typing)) {
        let all = places.entry(of_use.name.as_str()).or_default();
        all.extend(found.meets.into_iter().map(|place| (place, found.kind)));
    }
    let mut blocks = Blocks::default();
    let whole = whole_uses(typing);
    for (name, all) in places.iter().filter(|(name, _)| !candidates.contains(**name)) {
        let modules = all.iter().filter(|(_, kind)| is_of_module(*kind));
        let depths: Vec<usize> = modules.map(|((k, _), _)| layers.depth(*k)).collect();
        depths.windows(2).for_each(|pair| blocks.join(pair[0], pair[1]));
        if depths.is_empty() {
            continue;
        }
        let mut seen = HashSet::new();
        for k in whole.get(name).into_iter().flatten() {
            if !seen.insert(layers.depth(*k)) {
                blocks.repeated.insert(layers.depth(*k));
            }
        }
    }
    let mut out = Vec::new();
    for (name, mut all) in places.into_iter().filter(|(name, _)| candidates.contains(*name)) {
        all.sort_unstable();
        all.dedup_by_key(|(place, _)| *place);
        // Where nothing is trained all may stay one.
        let mut parameters: Vec<(Option<Use>, Vec<Place>)> = Vec::new();
        let mut counts: HashMap<usize, usize> = HashMap::new();
        for (place, kind) in all {
            let key = (kind != WeightKind::Constant).then(|| {
                let block = layers.depth(place.0);
                let count = counts.entry(block).or_default();
                *count += usize::from(!blocks.repeated.contains(&block));
                (blocks.root(block), *count)
            });
            match parameters.iter_mut().find(|(k, _)| *k == key) {
                Some((_, list)) => list.push(place),
                None => parameters.push((key, vec![place])),
            }
        }
        // A trained one keeps the name.
        parameters.sort_by_key(|(key, _)| key.is_none());
        if parameters.len() > 1 {
            out.push((name.to_string(), parameters.into_iter().map(|(_, list)| list).collect()));
        }
    }
    out
}

/// Kinds of weights that belong to a module, so that sharing one is calling it again. Tables and tokens do not: a table
/// of positions may be all that layers share.
fn is_of_module(kind: WeightKind) -> bool {
    use WeightKind::*;
    matches!(kind, Contraction | NormScale | NormBias | Bias | LayerScale)
}

/// The nodes that take a weight as a whole, not a part of it, which several products do with the matrix of queries,
/// keys and values.
fn whole_uses<'m>(typing: &Typing<'m>) -> HashMap<&'m str, Vec<usize>> {
    let links = typing.links();
    let mut out = HashMap::new();
    for &name in typing.weights.keys() {
        let node = |k: usize| &typing.graph.node[k];
        let moves = |k: usize| ops::of(node(k)).is(Mark::Keeps);
        let moved = links.downstream([name]).through(moves).flat_map(|k| links.outputs(k));
        let users = std::iter::once(name).chain(moved).flat_map(|value| links.users(value)).copied();
        let whole = |k: &usize| !moves(*k) && !matches!(node(*k).op_type(), "Slice" | "Split" | "Gather");
        out.insert(name, users.filter(whole).collect());
    }
    out
}

/// Which blocks share weights with each other.
#[derive(Default)]
struct Blocks {
    parent: HashMap<usize, usize>,
    /// Blocks that use a weight several times: their uses cannot be told apart.
    repeated: HashSet<usize>,
}

impl Blocks {
    fn root(&self, mut block: usize) -> usize {
        while let Some(&parent) = self.parent.get(&block) {
            block = parent;
        }
        block
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if a != b {
            self.parent.insert(a.max(b), a.min(b));
        }
    }
}

/// Makes the inputs of nodes at some places read a copy of a weight; what is computed from it on the way, of
/// `constants` alone, is copied too, and `left` behind under its old names.
fn copy(
    graph: &mut GraphProto,
    [name, new]: [&str; 2],
    places: &[Place],
    constants: &HashSet<String>,
    names: &mut Names,
    left: &mut HashSet<String>,
) {
    let Some(tensor) = graph.initializer.iter().find(|t| t.name() == name) else { return };
    graph.initializer.push(TensorProto { name: Some(new.to_string()), ..tensor.clone() });
    let path: Vec<NodeProto> = {
        let links = Links::new(graph);
        let is_constant = |k: usize| links.outputs(k).any(|o| constants.contains(o));
        let behind: HashSet<usize> = links.downstream([name]).through(is_constant).collect();
        let is_behind = |x: &str| links.maker(x).is_some_and(|k| behind.contains(&k));
        let needed = places.iter().map(|&(k, j)| graph.node[k].input[j].as_str());
        let path: BTreeSet<usize> = links.upstream(needed).along(is_behind).nodes().collect();
        path.into_iter().map(|k| graph.node[k].clone()).collect()
    };
    let mut renamed = HashMap::from([(name.to_string(), new.to_string())]);
    for mut node in path {
        node.input.iter_mut().for_each(|x| rename(x, &renamed));
        for o in node.output.iter_mut().filter(|o| !o.is_empty()) {
            let fresh = names.fresh(o);
            renamed.insert(std::mem::replace(o, fresh.clone()), fresh);
        }
        node.name = node.output.first().cloned();
        graph.node.push(node);
    }
    for &(k, j) in places {
        rename(&mut graph.node[k].input[j], &renamed);
    }
    renamed.remove(name);
    left.extend(renamed.into_keys());
}

fn rename(value: &mut String, renamed: &HashMap<String, String>) {
    if let Some(new) = renamed.get(value.as_str()) {
        value.clone_from(new);
    }
}

/// Removes nodes that made values which nobody reads any more, among those that were `left` for copies.
fn remove_unread(graph: &mut GraphProto, left: &HashSet<String>) {
    loop {
        let outputs = graph.output.iter().map(|o| o.name().to_string());
        let read: HashSet<String> = graph.node.iter().flat_map(|n| n.input.iter().cloned()).chain(outputs).collect();
        let before = graph.node.len();
        graph.node.retain(|n| !n.output.iter().all(|o| left.contains(o) && !read.contains(o)));
        if graph.node.len() == before {
            return;
        }
    }
}
