//! Which weights belong to which layer, and which weight of one layer plays the part of which weight of another.
//!
//! A layer is what lies between the value that enters it and the one that leaves it. Its weights are listed in the
//! order in which a walk back from its end meets them, input by input, so that equal layers list equal parts in equal
//! places, however their nodes are ordered in the file.

use std::collections::{HashMap, HashSet};

use super::depth;
use crate::anatomy::{Anatomy, WeightKind, WeightUse};
use crate::axes::Typing;

/// The weights of each layer.
pub(super) struct LayerWeights {
    /// Uses (indices into [`Typing::uses`]) of each layer, in the order of their parts; constants are left out.
    pub layers: Vec<Vec<usize>>,
    /// Layer and place of a use.
    pub place: HashMap<usize, (usize, usize)>,
}

/// What a weight of a layer is: the operator where it meets the data, its kind and its dims.
pub(super) type WeightSignature = (String, WeightKind, Vec<i64>);

impl LayerWeights {
    pub fn new(typing: &Typing, anatomy: &Anatomy, uses: &[WeightUse]) -> LayerWeights {
        let walks: Vec<HashMap<usize, usize>> = walks(typing, anatomy);
        let mut layers: Vec<Vec<((usize, usize), usize)>> = vec![Vec::new(); walks.len()];
        for (u, found) in uses.iter().enumerate().filter(|(_, f)| f.kind != WeightKind::Constant) {
            let homes: HashSet<usize> =
                found.meets.iter().flat_map(|(k, _)| (0..walks.len()).filter(|&l| walks[l].contains_key(k))).collect();
            let outside = found.meets.iter().any(|(k, _)| !walks.iter().any(|w| w.contains_key(k)));
            // A weight that several layers share belongs to none of them.
            if let (&[l], false) = (&homes.into_iter().collect::<Vec<_>>()[..], outside)
                && let Some(&(k, j)) = found.meets.first()
            {
                layers[l].push(((walks[l][&k], j), u));
            }
        }
        let layers: Vec<Vec<usize>> = layers
            .into_iter()
            .map(|mut list| {
                list.sort_unstable();
                list.into_iter().map(|(_, u)| u).collect()
            })
            .collect();
        let place = layers
            .iter()
            .enumerate()
            .flat_map(|(l, list)| list.iter().enumerate().map(move |(p, &u)| (u, (l, p))))
            .collect();
        LayerWeights { layers, place }
    }

    /// What the weights of a layer are, in order. Layers with equal parts are alike.
    pub fn parts(&self, typing: &Typing, uses: &[WeightUse], l: usize) -> Vec<WeightSignature> {
        let part = |&u: &usize| {
            let op = uses[u].meets.first().map(|(k, _)| typing.graph.node[*k].op_type()).unwrap_or("");
            (op.to_string(), uses[u].kind, typing.weights[typing.uses[u].name.as_str()].dims.clone())
        };
        self.layers[l].iter().map(part).collect()
    }
}

/// For each layer, its nodes that depend on data, numbered in the order of a walk back from its end.
fn walks(typing: &Typing, anatomy: &Anatomy) -> Vec<HashMap<usize, usize>> {
    let links = typing.links();
    let ends = depth::ends(typing, anatomy);
    let mut out = Vec::new();
    for (layer, end) in anatomy.layers.iter().zip(&ends) {
        let mut order = HashMap::new();
        if let (Some(enter), Some(end)) = (layer.residual_in.as_deref(), end.as_deref()) {
            // Behind the value that enters, and in front of the one that leaves.
            let behind: HashSet<usize> = links.downstream([enter]).along(|o| o != end).collect();
            let is_behind = |x: &str| links.maker(x).is_some_and(|k| behind.contains(&k));
            let inside = links.upstream([end]).along(|x| x != enter && !typing.is_constant(x) && is_behind(x));
            order.extend(inside.nodes().enumerate().map(|(at, k)| (k, at)));
        }
        out.push(order);
    }
    out
}
