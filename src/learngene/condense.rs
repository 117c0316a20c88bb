//! The learngene as a model: centroids and lookups in the place of the weights that they stand for.

use std::collections::{HashMap, HashSet};

use super::choices::{Centroid, FfnCentroid};
use super::clusters::{Cluster, ffn_centroid};
use super::gene::Learngene;
use crate::anatomy::{Anatomy, Roles};
use crate::axes::resize::{LinearCombination, ResizePlan, mix, take};
use crate::axes::{Factor, Typing, carry_value_info};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, int_attribute};
use crate::metadata::{LEARNGENE, SHARE_PREFIX};
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{
    DataType, Model, data_type, element_count, payload, tensor_from_f32, tensor_from_i64, tensor_from_raw, to_f32,
};

impl Learngene {
    /// The learngene as a model: the ancestor with each head's queries, keys and values looked up among the centroids,
    /// and one FFN for each group of layers.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where layers share one head axis and would be clustered differently.
    pub fn condense(&self, model: &Model, typing: &Typing, anatomy: &Anatomy) -> Result<Model> {
        self.check(typing, anatomy)?;
        let mut out = model.clone();
        if !self.is_identity() {
            let mut condenser = Condenser::new(self, typing, anatomy);
            condenser.heads()?;
            condenser.neurons()?;
            condenser.ffns()?;
            *out.graph_mut() = condenser.finish();
            carry_value_info(model, &mut out);
        }
        out.set_metadata(
            LEARNGENE,
            serde_json::to_string(self).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?,
        );
        Ok(out)
    }
}

struct Condenser<'a, 'm> {
    gene: &'a Learngene,
    typing: &'a Typing<'m>,
    anatomy: &'a Anatomy,
    roles: Roles<'a, 'm>,
    graph: GraphProto,
    builder: Builder,
}

impl<'a, 'm> Condenser<'a, 'm> {
    fn new(gene: &'a Learngene, typing: &'a Typing<'m>, anatomy: &'a Anatomy) -> Self {
        let graph = typing.graph.clone();
        let builder = Builder::new(&graph, typing.opset, SHARE_PREFIX);
        Condenser { gene, typing, anatomy, roles: Roles::new(typing), graph, builder }
    }

    fn heads(&mut self) -> Result<()> {
        let mut seen: HashMap<Factor, usize> = HashMap::new();
        for (l, layer) in self.anatomy.layers.iter().enumerate() {
            let clusters = &self.gene.layers[l];
            let Some(factor) = layer.head_factor(self.typing) else { continue };
            let root = self.typing.factors.root(factor);
            if let Some(&other) = seen.get(&root)
                && self.gene.layers[other] != *clusters
            {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("layers {other} and {l} share one head axis and cannot be clustered differently"),
                )
                .hint("use ⟦eps⟧ 0, which keeps every head"));
            }
            seen.insert(root, l);
            if clusters.iter().all(|c| c.members.len() == 1) {
                continue;
            }
            let uses = self.roles.head_uses(layer);
            self.look_up(&uses, clusters, &format!("{SHARE_PREFIX}layer{l}/slots"))?;
        }
        Ok(())
    }

    fn neurons(&mut self) -> Result<()> {
        for (l, layer) in self.anatomy.layers.iter().enumerate() {
            let clusters = self.gene.neurons(l);
            let Some(ffn) = layer.ffn().filter(|_| clusters.iter().any(|c| c.members.len() > 1)) else {
                continue;
            };
            let Some(factor) = ffn.hidden_factor(self.typing) else {
                bail!(Unsupported, "the neurons of layer {l} have no axis of their own");
            };
            // As with heads, what they pass on stays each one's own, in every use of the FFN.
            let all = self.anatomy.layers.iter().flat_map(|l| &l.ffns);
            let same = all.filter(|f| f.hidden_factor(self.typing) == Some(factor));
            let down: HashSet<usize> = same.flat_map(|f| self.roles.operand(f.down)).collect();
            let uses = self.roles.carriers(factor).into_iter().filter(|u| !down.contains(u)).map(|u| (u, factor));
            self.look_up(&uses.collect::<Vec<_>>(), clusters, &format!("{SHARE_PREFIX}layer{l}/neurons"))?;
        }
        Ok(())
    }

    /// Replaces uses by lookups of clusters, with one list of slots.
    fn look_up(&mut self, uses: &[(usize, Factor)], clusters: &[Cluster], name: &str) -> Result<()> {
        let mut slots = vec![0i64; clusters.iter().map(|c| c.members.len()).sum()];
        for (c, cluster) in clusters.iter().enumerate() {
            cluster.members.iter().for_each(|&h| slots[h] = c as i64);
        }
        let name = self.builder.tensor(tensor_from_i64(name, &[slots.len()], &slots));
        let mut made: HashMap<(String, usize, usize), String> = HashMap::new();
        uses.iter().try_for_each(|&(u, factor)| self.share(u, factor, clusters, &name, &mut made))
    }

    /// Replaces one use by a lookup among centroids.
    fn share(
        &mut self,
        u: usize,
        factor: Factor,
        clusters: &[Cluster],
        slots: &str,
        made: &mut HashMap<(String, usize, usize), String>,
    ) -> Result<()> {
        let of_use = &self.typing.uses[u];
        let tensor = self.typing.weights[of_use.name.as_str()];
        let Some((axis, outer, inner)) = self.roles.place(u, factor) else {
            return self.replace(u, factor, clusters);
        };
        let input = &mut self.graph.node[of_use.node].input[of_use.input];
        if let Some(name) = made.get(&(of_use.name.clone(), axis, outer)) {
            *input = name.clone();
            return Ok(());
        }
        let dims = tensor.shape();
        let heads: usize = clusters.iter().map(|c| c.members.len()).sum();
        let (before, after) =
            (dims[..axis].iter().product::<usize>() * outer, inner * dims[axis + 1..].iter().product::<usize>());
        let mut shape = dims[..axis].to_vec();
        shape.extend((outer > 1).then_some(outer));
        let at = shape.len();
        shape.push(clusters.len());
        shape.extend((inner > 1).then_some(inner));
        shape.extend(&dims[axis + 1..]);
        let stem = format!("{SHARE_PREFIX}{}", of_use.name);
        let (name, rule) = (format!("{stem}/centroids"), self.gene.centroid);
        let centroids = centroids(tensor, clusters, rule, [before, heads, after], &shape, &name)?;
        let b = &mut self.builder;
        let (centroids, along) = (b.tensor(centroids), vec![int_attribute("axis", at as i64)]);
        let gathered = b.op_called("Gather", &[&centroids, slots], along, &format!("{stem}/gathered"));
        let target = b.tensor(tensor_from_i64(format!("{stem}/shape"), &[dims.len()], &tensor.dims));
        let whole = b.op_called("Reshape", &[&gathered, &target], vec![], &stem);
        made.insert((of_use.name.clone(), axis, outer), whole.clone());
        *input = whole;
        Ok(())
    }

    /// Where heads are not a plain factor of the axis (unequally packed operands), the weight is written out.
    fn replace(&mut self, u: usize, factor: Factor, clusters: &[Cluster]) -> Result<()> {
        let factors = &self.typing.factors;
        let heads = factors.factor_size(factor);
        let of_use = &self.typing.uses[u];
        let tensor = self.typing.weights[of_use.name.as_str()];
        let dims = tensor.shape();
        let mut data = to_f32(tensor)?;
        for (axis, d) in of_use.dims.iter().enumerate() {
            // For each head, where every element would come from if all heads were that one.
            let mut from = Vec::with_capacity(heads);
            for h in 0..heads {
                let mut plan = ResizePlan::default();
                plan.gather(factors, factor, vec![h; heads])?;
                from.extend(plan.positions(factors, d));
            }
            if from.len() < heads {
                continue;
            }
            let sources = |i: usize| -> Vec<usize> {
                let own = (0..heads).find(|&h| from[h][i] == i).unwrap_or(0);
                match clusters.iter().find(|c| c.members.contains(&own)) {
                    Some(c) if self.gene.centroid == Centroid::Mean => c.members.iter().map(|&h| from[h][i]).collect(),
                    Some(c) => vec![from[c.centroid][i]],
                    None => vec![i],
                }
            };
            let mixture = (0..dims[axis])
                .map(|i| {
                    let sources = sources(i);
                    let share = 1.0 / sources.len() as f32;
                    sources.into_iter().map(|s| (s, share)).collect()
                })
                .collect();
            data = mix(&data, &dims, axis, &mixture);
        }
        let kind = data_type(tensor).unwrap_or(DataType::Float);
        let name = format!("{SHARE_PREFIX}{}", of_use.name);
        self.graph.node[of_use.node].input[of_use.input] =
            self.builder.tensor(tensor_from_f32(name, kind, &dims, &data));
        Ok(())
    }

    fn ffns(&mut self) -> Result<()> {
        for group in self.gene.ffn_groups.iter().filter(|g| g.len() > 1) {
            let densities = self.gene.densities.clone().unwrap_or_default();
            let centroid = ffn_centroid(group, &densities, self.gene.ffn_centroid);
            let uses: Vec<Vec<usize>> =
                group.iter().map(|&l| self.roles.layer_ffn_uses(&self.anatomy.layers[l])).collect();
            let Some(position) = group.iter().position(|&l| l == centroid) else { continue };
            if uses.iter().any(|u| u.len() != uses[position].len()) {
                bail!(Unsupported, "the FFNs of layers {group:?} differ in form and cannot be shared");
            }
            for i in 0..uses[position].len() {
                let giver = &self.typing.uses[uses[position][i]];
                // Its neurons may be lookups already.
                let source = self.graph.node[giver.node].input[giver.input].clone();
                let name = match self.gene.ffn_centroid {
                    FfnCentroid::Mean => self.mean(&uses.iter().map(|u| u[i]).collect::<Vec<_>>())?,
                    _ => source,
                };
                for list in &uses {
                    let of_use = &self.typing.uses[list[i]];
                    self.graph.node[of_use.node].input[of_use.input] = name.clone();
                }
            }
        }
        Ok(())
    }

    fn mean(&mut self, uses: &[usize]) -> Result<String> {
        let tensors: Vec<&TensorProto> =
            uses.iter().map(|&u| self.typing.weights[self.typing.uses[u].name.as_str()]).collect();
        let mut sum = vec![0f64; element_count(tensors[0])?];
        for t in &tensors {
            sum.iter_mut().zip(to_f32(t)?).for_each(|(s, v)| *s += v as f64);
        }
        let mean: Vec<f32> = sum.iter().map(|s| (s / tensors.len() as f64) as f32).collect();
        let name = format!("{SHARE_PREFIX}{}", tensors[0].name());
        let kind = data_type(tensors[0]).unwrap_or(DataType::Float);
        Ok(self.builder.tensor(tensor_from_f32(name, kind, &tensors[0].shape(), &mean)))
    }

    fn finish(mut self) -> GraphProto {
        // Lookups depend on initializers alone; they may stand before everything else.
        let after = std::mem::take(&mut self.graph.node);
        self.builder.finish(&mut self.graph);
        self.graph.node.extend(after);
        graph::prune(&mut self.graph);
        self.graph
    }
}

/// Centroids along the head axis of a weight seen as [before, heads, after].
fn centroids(
    tensor: &TensorProto,
    clusters: &[Cluster],
    rule: Centroid,
    [before, heads, after]: [usize; 3],
    shape: &[usize],
    name: &str,
) -> Result<TensorProto> {
    let kind = data_type(tensor).unwrap_or(DataType::Float);
    if rule == Centroid::Nearest {
        let data = payload(tensor);
        let size = data.len() / element_count(tensor)?.max(1);
        let list: Vec<usize> = clusters.iter().map(|c| c.centroid).collect();
        let data = take(&data, &[before, heads, after], 1, &list, size);
        return Ok(tensor_from_raw(name, kind, shape, data.into()));
    }
    let mixture: LinearCombination =
        clusters.iter().map(|c| c.members.iter().map(|&h| (h, 1.0 / c.members.len() as f32)).collect()).collect();
    let data = mix(&to_f32(tensor)?, &[before, heads, after], 1, &mixture);
    Ok(tensor_from_f32(name, kind, shape, &data))
}
