//! Graphs that have to say what a descendant says: with its heads in another order, and the ancestor with what was
//! removed at zero.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::depth;
use super::plan::DescendantPlan;
use crate::anatomy::{Anatomy, Attention, Roles, Summed};
use crate::axes::resize::{ResizePlan, resize};
use crate::axes::{Factor, Typing};
use crate::error::Result;
use crate::graph::{self, Links, Names};
use crate::learngene::{BlockKind, Cluster, Learngene};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, Model, data_type, tensor_from_f32, to_f32};
use crate::ops::{self, Mark};
use crate::runtime::separate_skip_norms;

/// The model with the heads of its layers, and the neurons of their FFNs, the other way round.
pub(super) fn permute(model: &Model) -> Result<Model> {
    let typing = Typing::new(model)?;
    let mut plan = ResizePlan::default();
    for factor in units(&typing, &Anatomy::new(&typing)?) {
        if plan.indices(&typing.factors, factor).is_none() {
            plan.gather(&typing.factors, factor, (0..typing.factors.factor_size(factor)).rev().collect())?;
        }
    }
    let mut out = model.clone();
    out.proto.graph = Some(resize(&typing, &plan)?);
    Ok(out)
}

/// The factors of heads and of FFNs' neurons.
pub(super) fn units(typing: &Typing, anatomy: &Anatomy) -> Vec<Factor> {
    let of_layer = |layer: &Attention| {
        let neurons = layer.ffns.iter().filter_map(|f| f.hidden_factor(typing));
        layer.head_factors(typing).into_iter().chain(neurons).collect::<Vec<_>>()
    };
    anatomy.layers.iter().flat_map(of_layer).map(|f| typing.factors.root(f)).collect()
}

/// The ancestor with what a plan removes put to zero where it stands: output rows of heads and neurons, and the
/// branches of layers. Rows of what a centroid stands for are added to its own.
pub(super) fn without(model: &Model, gene: &Learngene, plan: &DescendantPlan) -> Result<Model> {
    let typing = Typing::new(model)?;
    let anatomy = Anatomy::new(&typing)?;
    let is_dropped = |l: usize| plan.layers.iter().all(|p| p.ancestor_layer != l);
    if let (true, Some(apart)) = ((0..anatomy.layers.len()).any(is_dropped), separate_skip_norms(model, &typing)?) {
        // A sum that is fused with the norm behind it may have no name, and what is added there would stay.
        return without(&apart, gene, plan);
    }
    let mut oracle = Oracle {
        typing: &typing,
        anatomy: &anatomy,
        roles: Roles::new(&typing),
        links: typing.links(),
        rows: BTreeMap::new(),
        done: HashSet::new(),
        ends: depth::ends(&typing, &anatomy),
        branches: Vec::new(),
    };
    let mut kept: HashMap<Factor, &[usize]> = HashMap::new();
    for (l, layer) in anatomy.layers.iter().enumerate() {
        let Some(planned) = plan.layers.iter().find(|p| p.ancestor_layer == l) else {
            oracle.silence(l)?;
            continue;
        };
        let clusters = gene.layers.get(l).map_or(&[][..], Vec::as_slice);
        oracle.heads(layer, &sums(layer.head_count(&typing), &planned.slots, clusters))?;
        kept.extend(layer.head_factors(&typing).into_iter().map(|f| (typing.factors.root(f), &planned.slots[..])));
        for (i, (ffn, neurons)) in layer.ffns.iter().zip(&planned.neurons).enumerate() {
            let Some(factor) = ffn.hidden_factor(&typing).filter(|_| !neurons.is_empty()) else { continue };
            let ordered = gene.removals.as_ref().is_some_and(|r| r.block(l, BlockKind::Neurons).is_some());
            // A learngene knows the neurons of the last FFN.
            let known = i + 1 == layer.ffns.len() && !ordered;
            let clusters = if known { gene.neurons(l) } else { &[][..] };
            let sums = sums(typing.factors.factor_size(factor), neurons, clusters);
            for summed in oracle.roles.summed_over(ffn.down, factor)? {
                oracle.pool(summed, &sums)?;
            }
        }
    }
    // Attentions beside the layers lose heads that they share with them.
    for other in &anatomy.others {
        let shared = other.head_factor(&typing).and_then(|f| kept.get(&typing.factors.root(f)));
        if let Some(slots) = shared {
            oracle.heads(other, &sums(other.head_count(&typing), slots, &[]))?;
        }
    }
    Ok(oracle.model(model))
}

/// What is added up in the place of each unit: the members of its cluster where it is kept, else nothing.
fn sums(units: usize, kept: &[usize], clusters: &[Cluster]) -> Vec<Vec<usize>> {
    let cluster = |n: usize| clusters.iter().find(|c| c.centroid == n).map_or(vec![n], |c| c.members.clone());
    (0..units).map(|n| if kept.contains(&n) { cluster(n) } else { Vec::new() }).collect()
}

struct Oracle<'t, 'm> {
    typing: &'t Typing<'m>,
    anatomy: &'t Anatomy,
    roles: Roles<'t, 'm>,
    links: &'t Links<'m>,
    /// New elements, by use.
    rows: BTreeMap<usize, Vec<f32>>,
    done: HashSet<(usize, Factor)>,
    /// Where layers end.
    ends: Vec<Option<String>>,
    /// Nodes and their inputs that become zero.
    branches: Vec<(usize, usize)>,
}

impl Oracle<'_, '_> {
    fn heads(&mut self, layer: &Attention, sums: &[Vec<usize>]) -> Result<()> {
        if sums.iter().enumerate().all(|(h, sum)| sum[..] == [h]) {
            return Ok(());
        }
        for summed in self.roles.summing(layer)? {
            self.pool(summed, sums)?;
        }
        Ok(())
    }

    /// Row n of a weight, along what is summed over, becomes a sum of its rows.
    fn pool(&mut self, summed: Summed, sums: &[Vec<usize>]) -> Result<()> {
        let Summed { of_use: u, axis, factor } = summed;
        if !self.done.insert((u, self.typing.factors.root(factor))) {
            return Ok(());
        }
        let (of_use, places) = (&self.typing.uses[u], self.roles.positions(&summed));
        let tensor = self.typing.weights[of_use.name.as_str()];
        let dims = tensor.shape();
        let (before, after) = (dims[..axis].iter().product::<usize>(), dims[axis + 1..].iter().product::<usize>());
        let old = match self.rows.remove(&u) {
            Some(rows) => rows,
            None => to_f32(tensor)?,
        };
        let mut new = old.clone();
        for block in 0..before {
            let row = |place: usize| (block * dims[axis] + place) * after..(block * dims[axis] + place + 1) * after;
            for (own, sum) in places.iter().zip(sums) {
                for (i, &place) in own.iter().enumerate() {
                    let target = &mut new[row(place)];
                    target.fill(0.0);
                    for &n in sum {
                        target.iter_mut().zip(&old[row(places[n][i])]).for_each(|(t, v)| *t += v);
                    }
                }
            }
        }
        self.rows.insert(u, new);
        Ok(())
    }

    /// What a layer adds to the stream becomes zero.
    fn silence(&mut self, l: usize) -> Result<()> {
        if !self.is_added(l) {
            bail!(Unsupported, "layer {l} goes with the norm behind its sums, which nothing else can stand for");
        }
        for (skip, sum) in &self.anatomy.layers[l].residual_adds {
            let Some(k) = self.links.maker(sum) else {
                bail!(Unsupported, "nothing makes `{sum}`, a sum of layer {l}");
            };
            let node = &self.typing.graph.node[k];
            let slots: Vec<usize> = match node.op_type() {
                "Add" | "Sum" => (0..node.input.len()).collect(),
                "SkipLayerNormalization" => vec![0, 1, 4],
                "SkipSimplifiedLayerNormalization" => vec![0, 1, 3],
                op => bail!(Unsupported, "the sum `{sum}` of layer {l} is made by {op}"),
            };
            let adds = |j: &usize| node.input.get(*j).is_some_and(|x| !x.is_empty() && x != skip);
            self.branches.extend(slots.into_iter().filter(adds).map(|j| (k, j)));
        }
        Ok(())
    }

    /// True where a layer leaves what it adds to as it is: its sums follow each other, and no norm is between them.
    fn is_added(&self, l: usize) -> bool {
        let layer = &self.anatomy.layers[l];
        if self.ends[l] != layer.residual_out {
            return false;
        }
        if layer.residual_adds.len() > 1 {
            return layer.residual_adds.windows(2).all(|w| self.is_moved(&w[1].0, &w[0].1));
        }
        // One sum says nothing by itself: the layer beside it begins, or ends, with the same value.
        let joins = |from: &Option<String>, to: &Option<String>| {
            from.as_deref().zip(to.as_deref()).is_some_and(|(from, to)| self.is_moved(to, from))
        };
        let others = || self.anatomy.layers.iter().enumerate().filter(|(o, _)| *o != l).map(|(_, other)| other);
        !layer.residual_adds.is_empty()
            && others()
                .any(|o| joins(&layer.residual_out, &o.residual_in) || joins(&o.residual_out, &layer.residual_in))
    }

    /// True where a value is another one, at most on other axes.
    fn is_moved(&self, value: &str, from: &str) -> bool {
        let moved = |n: &NodeProto| ops::of(n).is(Mark::Keeps);
        self.links.follow_back(value, |n| n.input.first().filter(|_| moved(n)).map(String::as_str)).any(|x| x == from)
    }

    /// The model with all that.
    fn model(self, model: &Model) -> Model {
        let mut out = model.clone();
        let graph = out.graph_mut();
        let mut names = Names::new(graph);
        for (u, rows) in self.rows {
            let of_use = &self.typing.uses[u];
            let tensor = self.typing.weights[of_use.name.as_str()];
            let dims = tensor.shape();
            let name = names.fresh("offshoot_pooled");
            let kind = data_type(tensor).unwrap_or(DataType::Float);
            graph.initializer.push(tensor_from_f32(name.clone(), kind, &dims, &rows));
            graph.node[of_use.node].input[of_use.input] = name;
        }
        if !self.branches.is_empty() {
            let zero = names.fresh("offshoot_zero");
            graph.initializer.push(tensor_from_f32(zero.clone(), DataType::Float, &[], &[0.0]));
            let mut before: HashMap<usize, Vec<_>> = HashMap::new();
            for (k, j) in self.branches {
                let nothing = names.fresh("offshoot_nothing");
                let input = std::mem::replace(&mut graph.node[k].input[j], nothing.clone());
                before.entry(k).or_default().push(graph::node("Mul", &[&input, &zero], &[&nothing], vec![]));
            }
            for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
                graph.node.extend(before.remove(&k).unwrap_or_default());
                graph.node.push(node);
            }
        }
        graph::forget_shapes(graph);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_added_up_where_their_centroid_stays() {
        let clusters = [Cluster { members: vec![0, 2], centroid: 2 }, Cluster { members: vec![1], centroid: 1 }];
        assert_eq!(sums(3, &[2, 2], &clusters), [vec![], vec![], vec![0, 2]]);
        assert_eq!(sums(3, &[1, 2], &[]), [vec![], vec![1], vec![2]]);
    }
}
