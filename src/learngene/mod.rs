//! The learngene: what an ancestor passes on.
//!
//! In every layer the heads that attend alike are one cluster with one centroid, and layers whose FFNs play the same part share
//! one. The learngene file is an ONNX model that runs: the ancestor with each head's queries, keys and values replaced by its
//! cluster's. A centroid is stored once; the weight is `Gather(centroids, slots)`, where `slots` names the cluster of each head, so
//! that sharing is an index list that anyone can read, and growing a descendant is gathering from that list. The whole output
//! projection, norms, embeddings and the classifier are there too, so that no ancestor is needed any more.

mod clusters;
mod removal;

use std::collections::HashMap;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use crate::anatomy::{Anatomy, Roles, Tokens, class_factors};
use crate::axes::Typing;
use crate::axes::resize::{Mixture, Plan};
use crate::density::Densities;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Names, int_attribute, node as new_node};
use crate::metadata::{LEARNGENE, SHARE_PREFIX, schema};
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{
    DataType, Model, data_type, element_count, is_float, payload, tensor_from_f32, tensor_from_i64, tensor_from_raw,
    to_f32,
};
pub use clusters::{
    Algorithm, Centroid, Cluster, Count, Eps, FfnCentroid, FfnRule, Order, PUBLISHED_EPS, Similarities, Similarity,
    automatic_ffn_eps, by_density, by_medoid, cluster_ffns, cluster_heads, combined, density_distances, ffn_centroid,
    ordered, parse_groups, partition, silhouette,
};
pub use removal::{Dimensions, Kept, Kind, Removal, Removals};

/// How clusters are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// What makes heads alike.
    pub similarity: Similarities,
    /// How they are clustered.
    pub algorithm: Algorithm,
    /// Neighbourhood of heads for DBSCAN in the unit of the distances, the same for every layer. `None` for densities is the published
    /// 10 pixels, scaled to the image or window that a layer's attention sees, and for other distances [`Eps::Auto`].
    pub eps: Option<Eps>,
    /// The same for sharing FFNs, which go by densities always.
    pub ffn_eps: Option<Eps>,
    /// Heads that make a neighbourhood dense.
    pub min_heads: usize,
    /// What stands for a cluster of heads.
    pub centroid: Centroid,
    /// What stands for a cluster of FFNs.
    pub ffn_centroid: FfnCentroid,
    /// When adjacent layers share an FFN.
    pub ffn_rule: FfnRule,
    /// Explicit groups of layers that share an FFN, such as `6-7,9-11`.
    pub ffn_clusters: Option<String>,
    /// How the neurons of an FFN are clustered, where they are.
    pub neurons: Option<NeuronRules>,
}

/// How the neurons of an FFN are clustered.
#[derive(Clone, Debug, PartialEq)]
pub struct NeuronRules {
    /// What makes neurons alike: outputs or predictions.
    pub similarity: Similarities,
    /// How they are clustered.
    pub algorithm: Algorithm,
    /// Neighbourhood for DBSCAN, in the unit of the distances.
    pub eps: Option<Eps>,
}

/// Where a learngene comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// File name of the ancestor.
    pub file: String,
    /// SHA-256 of the ancestor's file; empty where it was not computed.
    pub sha256: String,
    /// Parameters of the ancestor.
    pub parameters: u64,
    /// Images that the densities were measured on.
    pub images: usize,
    /// SHA-256 that identifies the set of images.
    pub images_sha256: String,
}

/// The description of a learngene.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learngene {
    /// [`schema::LEARNGENE`].
    pub schema: String,
    /// Version of Offshoot that made it.
    pub offshoot: String,
    /// Where it comes from.
    pub source: Source,
    /// Mean attention distances in pixels, as `[layer][head]`, empty for layers that have none; none at all where every head is its own
    /// cluster unmeasured.
    pub densities: Option<Vec<Vec<f64>>>,
    /// What made heads alike.
    #[serde(default)]
    pub similarity: Similarities,
    /// How they were clustered.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// The eps of each layer, in pixels for densities; 0 where clusters were made without.
    pub eps: Vec<f64>,
    /// The eps for FFNs of each layer in pixels.
    pub ffn_eps: Vec<f64>,
    /// What stands for a cluster of heads.
    pub centroid: Centroid,
    /// What stands for a cluster of FFNs.
    pub ffn_centroid: FfnCentroid,
    /// Clusters of each layer, big ones first.
    pub layers: Vec<Vec<Cluster>>,
    /// Groups of layers that share an FFN.
    pub ffn_groups: Vec<Vec<usize>>,
    /// Clusters of the neurons of each layer's FFN, big ones first and those that pass on most among equals; empty for a layer whose
    /// neurons stand for themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neurons: Vec<Vec<Cluster>>,
    /// In which order heads and neurons go, where that was measured: then every weight is the ancestor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removals: Option<Removals>,
}

/// Counts of inherited parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Inherited {
    /// As the paper counts: the output projection of centroid heads only, and no classifier.
    pub i_params: u64,
    /// Everything that the learngene holds.
    pub whole: u64,
    /// Parameters of the ancestor.
    pub ancestor: u64,
}

impl Learngene {
    /// Every head its own cluster, every FFN its own group: the ancestor itself.
    pub fn identity(typing: &Typing, anatomy: &Anatomy) -> Learngene {
        let alone = |n: usize| (0..n).map(|h| Cluster { members: vec![h], centroid: h }).collect();
        let layers: Vec<Vec<Cluster>> = anatomy.layers.iter().map(|l| alone(l.head_count(typing))).collect();
        Learngene {
            schema: schema::LEARNGENE.into(),
            offshoot: env!("CARGO_PKG_VERSION").into(),
            source: Source::default(),
            densities: None,
            similarity: Similarities::default(),
            algorithm: Algorithm::default(),
            eps: vec![0.0; layers.len()],
            ffn_eps: vec![0.0; layers.len()],
            centroid: Centroid::Nearest,
            ffn_centroid: FfnCentroid::Shallowest,
            ffn_groups: (0..layers.len()).map(|l| vec![l]).collect(),
            layers,
            neurons: Vec::new(),
            removals: None,
        }
    }

    /// Clusters of the neurons of a layer's FFN; empty where they stand for themselves.
    pub fn neurons(&self, layer: usize) -> &[Cluster] {
        self.neurons.get(layer).map_or(&[], Vec::as_slice)
    }

    /// Takes clusters of neurons, one list a layer. Layers that share an FFN get those of the layer that gives it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the FFN that layers share is the mean of several.
    pub fn cluster_neurons(&mut self, mut neurons: Vec<Vec<Cluster>>) -> Result<()> {
        let densities = self.densities.clone().unwrap_or_default();
        neurons.resize(self.layers.len(), Vec::new());
        for group in self.ffn_groups.iter().filter(|g| g.len() > 1) {
            if self.ffn_centroid == FfnCentroid::Mean {
                return Err(Error::new(ErrorKind::Usage, "the mean of several FFNs has no neurons that were measured")
                    .hint("use another --ffn-centroid, or --ffn-eps 0, where neurons are clustered"));
            }
            let given = neurons.get(ffn_centroid(group, &densities, self.ffn_centroid)).cloned().unwrap_or_default();
            for &l in group {
                if let Some(own) = neurons.get_mut(l) {
                    own.clone_from(&given);
                }
            }
        }
        self.neurons = neurons;
        Ok(())
    }

    /// Clusters heads and FFNs by density.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for explicit groups that cannot be, and for similarities that take more than densities.
    pub fn cluster(typing: &Typing, anatomy: &Anatomy, densities: &Densities, rules: &Rules) -> Result<Learngene> {
        if !rules.similarity.is_density() {
            return Err(Error::new(
                ErrorKind::Usage,
                format!("densities do not tell the {} of heads", rules.similarity),
            )
            .hint("measure the distances, and give them to `Learngene::cluster_by`"));
        }
        let distances: Vec<Array2<f64>> = densities.layers.iter().map(|d| density_distances(d)).collect();
        Learngene::cluster_by(typing, anatomy, densities, &distances, rules)
    }

    /// Clusters heads by given distances, one symmetric matrix [heads, heads] a layer, and FFNs by density. In a layer without distances
    /// (an empty matrix) every head is its own cluster; a layer without densities keeps its FFN.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for explicit groups that cannot be.
    pub fn cluster_by(
        typing: &Typing,
        anatomy: &Anatomy,
        densities: &Densities,
        distances: &[Array2<f64>],
        rules: &Rules,
    ) -> Result<Learngene> {
        let mut gene = Learngene::identity(typing, anatomy);
        let published: Vec<f64> = anatomy
            .layers
            .iter()
            .map(|l| PUBLISHED_EPS * Tokens::new(typing, &l.queries).side().unwrap_or(224.0) / 224.0)
            .collect();
        let by_pixels = rules.similarity.is_density();
        (gene.similarity, gene.algorithm) = (rules.similarity.clone(), rules.algorithm);
        (gene.centroid, gene.ffn_centroid) = (rules.centroid, rules.ffn_centroid);
        for (l, d) in densities.layers.iter().enumerate().filter(|(l, _)| !distances[*l].is_empty()) {
            let eps = match rules.eps {
                Some(eps) => eps,
                None if by_pixels => Eps::Given(published[l]),
                None => Eps::Auto,
            };
            let (members, eps) = partition(&distances[l], rules.algorithm, eps, rules.min_heads.max(1));
            gene.layers[l] = if by_pixels { by_density(members, d) } else { by_medoid(members, &distances[l]) };
            gene.eps[l] = eps;
        }
        let roles = Roles::new(typing);
        let alike = |l: usize| alike(typing, anatomy, &roles, l, l + 1);
        gene.ffn_eps = match rules.ffn_eps {
            None => published,
            Some(Eps::Given(eps)) => vec![eps; published.len()],
            Some(Eps::Auto) => {
                let found = automatic_ffn_eps(&gene.layers, &densities.layers, &published, rules.ffn_rule, alike);
                let scale = found.unwrap_or(1.0);
                published.iter().map(|eps| scale * eps).collect()
            }
        };
        match &rules.ffn_clusters {
            Some(text) => gene.group_ffns(text, typing, anatomy)?,
            None => {
                gene.ffn_groups = cluster_ffns(&gene.layers, &densities.layers, &gene.ffn_eps, rules.ffn_rule, alike)
            }
        }
        gene.densities = Some(densities.layers.clone());
        gene.source.images = densities.images;
        Ok(gene)
    }

    /// Shares FFNs in explicit groups of layers, such as `6-7,9-11`.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for groups that cannot be.
    pub fn group_ffns(&mut self, groups: &str, typing: &Typing, anatomy: &Anatomy) -> Result<()> {
        let groups = parse_groups(groups, self.layers.len())?;
        let roles = Roles::new(typing);
        for pair in groups.iter().flat_map(|g| g.windows(2)) {
            if !alike(typing, anatomy, &roles, pair[0], pair[1]) {
                bail!(
                    Usage,
                    "the FFNs of layers {} and {} differ in shape, or have matrices in common with heads, and cannot be shared",
                    pair[0],
                    pair[1]
                );
            }
        }
        self.ffn_groups = groups;
        Ok(())
    }

    /// The ancestor itself, with the order in which its heads and neurons go: heads that stay longest fill slots first.
    pub fn calibrated(typing: &Typing, anatomy: &Anatomy, removals: Removals) -> Learngene {
        let mut gene = Learngene::identity(typing, anatomy);
        for block in removals.blocks.iter().filter(|b| b.kind == Kind::Heads) {
            if let Some(clusters) = gene.layers.get_mut(block.layer).filter(|c| c.len() == block.kept.units()) {
                *clusters =
                    block.kept.by_priority().into_iter().map(|h| Cluster { members: vec![h], centroid: h }).collect();
            }
        }
        gene.removals = Some(removals);
        gene
    }

    /// Reads the description that a learngene file carries; `None` for any other model.
    ///
    /// # Errors
    /// [`ErrorKind::Format`] where the description is damaged or of a version that this one does not know.
    pub fn read(model: &Model) -> Result<Option<Learngene>> {
        let Some(text) = model.metadata(LEARNGENE) else { return Ok(None) };
        let damaged = |why: String| {
            Error::new(ErrorKind::Format, format!("its learngene description cannot be read: {why}"))
                .at(&model.path)
                .hint("this file is damaged, or was made by another version of Offshoot: condense the ancestor again")
        };
        let value: serde_json::Value = serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?;
        match value["schema"].as_str() {
            Some(schema::LEARNGENE) => {}
            other => {
                return Err(damaged(format!("schema {other:?} is not {:?}", schema::LEARNGENE)));
            }
        }
        let gene: Learngene = serde_json::from_value(value).map_err(|e| damaged(e.to_string()))?;
        let n = gene.layers.len();
        let measured = gene.densities.as_ref().is_none_or(|d| {
            d.len() == n
                && (d.iter().zip(&gene.layers))
                    .all(|(d, c)| d.is_empty() || d.len() == c.iter().map(|c| c.members.len()).sum::<usize>())
        });
        let whole = |clusters: &[Cluster]| {
            let mut members: Vec<usize> = clusters.iter().flat_map(|c| c.members.iter().copied()).collect();
            members.sort_unstable();
            members.iter().enumerate().all(|(i, &m)| i == m) && clusters.iter().all(|c| c.members.contains(&c.centroid))
        };
        let complete = gene.layers.iter().chain(&gene.neurons).all(|clusters| whole(clusters));
        if !complete || !measured || gene.ffn_groups.iter().flatten().any(|&l| l >= n) {
            return Err(damaged("its clusters do not cover the heads".into()));
        }
        if gene.removals.as_ref().is_some_and(|r| r.layers.len() != n || !r.is_sound()) {
            return Err(damaged("the order in which heads and neurons go is none".into()));
        }
        Ok(Some(gene))
    }

    /// True where nothing is shared.
    pub fn is_identity(&self) -> bool {
        self.layers.iter().chain(&self.neurons).flatten().all(|c| c.members.len() == 1)
            && self.ffn_groups.iter().all(|g| g.len() == 1)
    }

    /// Checks that the description fits a model.
    ///
    /// # Errors
    /// [`ErrorKind::Format`].
    pub fn check(&self, typing: &Typing, anatomy: &Anatomy) -> Result<()> {
        let wrong = |what: String| {
            Error::new(ErrorKind::Format, what).hint("this file is damaged: condense the ancestor again")
        };
        let have: Vec<usize> = anatomy.layers.iter().map(|l| l.head_count(typing)).collect();
        let want: Vec<usize> = self.layers.iter().map(|c| c.iter().map(|c| c.members.len()).sum()).collect();
        if have != want {
            return Err(wrong(format!("the learngene describes layers of {want:?} heads, and the model has {have:?}")));
        }
        for (l, layer) in anatomy.layers.iter().enumerate() {
            let neurons: usize = self.neurons(l).iter().map(|c| c.members.len()).sum();
            let width = layer.ffn.as_ref().map_or(0, |f| typing.factors.size(&f.hidden));
            if ![0, width].contains(&neurons) {
                let what = format!("the learngene describes {neurons} FFN neurons of layer {l}, which has {width}");
                return Err(wrong(what));
            }
        }
        for block in self.removals.iter().flat_map(|r| &r.blocks) {
            let layer = &anatomy.layers[block.layer];
            let factor = match block.kind {
                Kind::Heads => layer.head_factor(typing),
                Kind::Neurons => layer.ffn.as_ref().and_then(|f| f.hidden_factor(typing)),
            };
            let units = factor.map_or(1, |f| typing.factors.factor_size(f));
            if ![1, units].contains(&block.kept.units()) {
                let l = block.layer;
                return Err(wrong(format!(
                    "the learngene orders {} {:?} of layer {l}, which has {units}",
                    block.kept.units(),
                    block.kind
                )));
            }
        }
        Ok(())
    }

    /// The learngene as a model: the ancestor with each head's queries, keys and values looked up among the centroids, and one
    /// FFN for each group of layers.
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
        }
        out.set_metadata(
            LEARNGENE,
            serde_json::to_string(self).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))?,
        );
        Ok(out)
    }

    /// Counts what a learngene model holds against its ancestor.
    pub fn inherited(&self, gene: &Model, typing: &Typing, anatomy: &Anatomy, ancestor: u64) -> Inherited {
        let whole = parameters(gene.graph());
        let roles = Roles::new(typing);
        let mut i_params = whole;
        for (layer, clusters) in anatomy.layers.iter().zip(&self.layers) {
            let heads: usize = clusters.iter().map(|c| c.members.len()).sum();
            for u in roles.projection_uses(layer) {
                let t = typing.weights[typing.uses[u].name.as_str()];
                let all = element_count(t).unwrap_or(0) as u64;
                i_params -= all * (heads - clusters.len()) as u64 / heads.max(1) as u64;
            }
        }
        let mut seen = std::collections::HashSet::new();
        for u in class_factors(typing).into_iter().flat_map(|classes| roles.carriers(classes)) {
            let name = typing.uses[u].name.as_str();
            if seen.insert(name) && is_float(typing.weights[name]) {
                i_params = i_params.saturating_sub(element_count(typing.weights[name]).unwrap_or(0) as u64);
            }
        }
        Inherited { i_params, whole, ancestor }
    }
}

/// Elements of all weights, each once: floating-point initializers and constants of more than one element.
pub fn parameters(graph: &GraphProto) -> u64 {
    use crate::graph::Attributes;
    let constants = graph.node.iter().filter(|n| n.op_type() == "Constant").filter_map(|n| n.tensor("value"));
    graph
        .initializer
        .iter()
        .chain(constants)
        .filter(|t| is_float(t))
        .filter_map(|t| element_count(t).ok())
        .filter(|&n| n > 1)
        .map(|n| n as u64)
        .sum()
}

/// True where two layers' FFNs have the same form and shapes, so that one can stand for both.
fn alike(typing: &Typing, anatomy: &Anatomy, roles: &Roles, a: usize, b: usize) -> bool {
    let form = |l: usize| -> Option<Vec<(String, usize, Vec<i64>)>> {
        let ffn = anatomy.layers.get(l)?.ffn.as_ref()?;
        ffn.hidden_factor(typing)?;
        let uses = roles.ffn_uses(ffn);
        // A matrix that heads share with the FFN cannot be another layer's.
        let heads = anatomy.layers[l].head_factors(typing).into_iter().flat_map(|f| roles.carriers(f));
        if heads.into_iter().any(|u| uses.contains(&u)) {
            return None;
        }
        Some(
            uses.iter()
                .map(|&u| {
                    let of_use = &typing.uses[u];
                    let op = typing.graph.node[of_use.node].op_type().to_string();
                    (op, of_use.input, typing.weights[of_use.name.as_str()].dims.clone())
                })
                .collect(),
        )
    };
    matches!((form(a), form(b)), (Some(x), Some(y)) if x == y && !x.is_empty())
}

struct Condenser<'a, 'm> {
    gene: &'a Learngene,
    typing: &'a Typing<'m>,
    anatomy: &'a Anatomy,
    roles: Roles<'a, 'm>,
    names: Names,
    graph: GraphProto,
    lookups: Vec<crate::onnx::proto::NodeProto>,
}

impl<'a, 'm> Condenser<'a, 'm> {
    fn new(gene: &'a Learngene, typing: &'a Typing<'m>, anatomy: &'a Anatomy) -> Self {
        let graph = typing.graph.clone();
        let names = Names::new(&graph);
        Condenser { gene, typing, anatomy, roles: Roles::new(typing), names, graph, lookups: Vec::new() }
    }

    fn heads(&mut self) -> Result<()> {
        let mut seen: HashMap<crate::axes::Factor, usize> = HashMap::new();
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
                .hint("use --eps 0, which keeps every head"));
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
            let Some(ffn) = layer.ffn.as_ref().filter(|_| clusters.iter().any(|c| c.members.len() > 1)) else {
                continue;
            };
            let Some(factor) = ffn.hidden_factor(self.typing) else {
                bail!(Unsupported, "the neurons of layer {l} have no axis of their own");
            };
            // As with heads, what they pass on stays each one's own.
            let down = self.roles.operand(ffn.down);
            let uses = self.roles.carriers(factor).into_iter().filter(|u| !down.contains(u)).map(|u| (u, factor));
            self.look_up(&uses.collect::<Vec<_>>(), clusters, &format!("{SHARE_PREFIX}layer{l}/neurons"))?;
        }
        Ok(())
    }

    /// Replaces uses by lookups of clusters, with one list of slots.
    fn look_up(&mut self, uses: &[(usize, crate::axes::Factor)], clusters: &[Cluster], name: &str) -> Result<()> {
        let mut slots = vec![0i64; clusters.iter().map(|c| c.members.len()).sum()];
        for (c, cluster) in clusters.iter().enumerate() {
            cluster.members.iter().for_each(|&h| slots[h] = c as i64);
        }
        let name = self.names.fresh(name);
        self.graph.initializer.push(tensor_from_i64(name.clone(), &[slots.len()], &slots));
        let mut made: HashMap<(String, usize, usize), String> = HashMap::new();
        uses.iter().try_for_each(|&(u, factor)| self.share(u, factor, clusters, &name, &mut made))
    }

    /// Replaces one use by a lookup among centroids.
    fn share(
        &mut self,
        u: usize,
        factor: crate::axes::Factor,
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
        let name = self.names.fresh(&format!("{SHARE_PREFIX}{}/centroids", of_use.name));
        let centroids = centroids(tensor, clusters, self.gene.centroid, [before, heads, after], &shape, &name)?;
        self.graph.initializer.push(centroids);
        let (gathered, whole) = (
            self.names.fresh(&format!("{SHARE_PREFIX}{}/gathered", of_use.name)),
            self.names.fresh(&format!("{SHARE_PREFIX}{}", of_use.name)),
        );
        self.lookups.push(new_node("Gather", &[&name, slots], &[&gathered], vec![int_attribute("axis", at as i64)]));
        let target = self.names.fresh(&format!("{SHARE_PREFIX}{}/shape", of_use.name));
        self.graph.initializer.push(tensor_from_i64(target.clone(), &[dims.len()], &tensor.dims));
        self.lookups.push(new_node("Reshape", &[&gathered, &target], &[&whole], vec![]));
        made.insert((of_use.name.clone(), axis, outer), whole.clone());
        *input = whole;
        Ok(())
    }

    /// Where heads are not a plain factor of the axis (unequally packed operands), the weight is written out.
    fn replace(&mut self, u: usize, factor: crate::axes::Factor, clusters: &[Cluster]) -> Result<()> {
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
                let mut plan = Plan::default();
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
            data = crate::axes::resize::mix(&data, &dims, axis, &mixture);
        }
        let name = self.names.fresh(&format!("{SHARE_PREFIX}{}", of_use.name));
        let kind = data_type(tensor).unwrap_or(DataType::Float);
        self.graph.initializer.push(tensor_from_f32(name.clone(), kind, &dims, &data));
        self.graph.node[of_use.node].input[of_use.input] = name;
        Ok(())
    }

    fn ffns(&mut self) -> Result<()> {
        for group in self.gene.ffn_groups.iter().filter(|g| g.len() > 1) {
            let densities = self.gene.densities.clone().unwrap_or_default();
            let centroid = ffn_centroid(group, &densities, self.gene.ffn_centroid);
            let uses: Vec<Vec<usize>> = group
                .iter()
                .map(|&l| self.anatomy.layers[l].ffn.as_ref().map(|f| self.roles.ffn_uses(f)).unwrap_or_default())
                .collect();
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
        let dims = tensors[0].shape();
        let name = self.names.fresh(&format!("{SHARE_PREFIX}{}", tensors[0].name()));
        self.graph.initializer.push(tensor_from_f32(
            name.clone(),
            data_type(tensors[0]).unwrap_or(DataType::Float),
            &dims,
            &mean,
        ));
        Ok(name)
    }

    fn finish(mut self) -> GraphProto {
        // Lookups depend on initializers alone; they may stand before everything else.
        self.lookups.append(&mut self.graph.node);
        self.graph.node = self.lookups;
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
        let data = crate::axes::resize::take(&data, &[before, heads, after], 1, &list, size);
        return Ok(tensor_from_raw(name, kind, shape, data.into()));
    }
    let mixture: Mixture =
        clusters.iter().map(|c| c.members.iter().map(|&h| (h, 1.0 / c.members.len() as f32)).collect()).collect();
    let data = crate::axes::resize::mix(&to_f32(tensor)?, &[before, heads, after], 1, &mixture);
    Ok(tensor_from_f32(name, kind, shape, &data))
}
