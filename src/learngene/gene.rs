//! What a learngene is: clusters of heads, groups of FFNs, and how they were found.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::choices::{Algorithm, Centroid, Eps, FfnCentroid, FfnRule, PUBLISHED_EPS, PUBLISHED_SIDE, Similarities};
use super::clusters::{
    Cluster, automatic_ffn_eps, by_density, by_medoid, cluster_ffns, density_distances, ffn_centroid, parse_groups,
    partition,
};
use super::removal::{BlockKind, PruningOrder};
use crate::anatomy::{Anatomy, Roles, TokenPositions, class_factors};
use crate::axes::Typing;
use crate::density::Densities;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::int8_tensors;
use crate::metadata::{FEED_PREFIX, LEARNGENE, schema};
use crate::onnx::proto::GraphProto;
use crate::onnx::{Model, element_count, is_float};

/// How clusters are made.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rules {
    /// What makes heads alike.
    pub similarity: Similarities,
    /// How they are clustered.
    pub algorithm: Algorithm,
    /// Neighbourhood of heads for DBSCAN in the unit of the distances, the same for every layer. `None` for densities
    /// is the published 10 of 224 pixels, scaled to the image or window that a layer's attention sees, or to the mean
    /// length of sequences; for other distances it is [`Eps::Auto`].
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
pub struct Provenance {
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
    pub source: Provenance,
    /// Mean attention distances in pixels, or in tokens of sequences, as `[layer][head]`, empty for layers that have
    /// none; none at all where every head is its own cluster unmeasured.
    pub densities: Option<Vec<Vec<f64>>>,
    /// Mean length in real tokens of the sequence that a layer attends over: its densities and eps are in tokens.
    /// `None` for a layer that attends over an image; empty where all do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lengths: Vec<Option<f64>>,
    /// What made heads alike.
    #[serde(default)]
    pub similarity: Similarities,
    /// How they were clustered.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// The eps of each layer, in the unit of densities where these are compared; 0 where clusters were made without.
    pub eps: Vec<f64>,
    /// The eps for FFNs of each layer, in the unit of densities.
    pub ffn_eps: Vec<f64>,
    /// What stands for a cluster of heads.
    pub centroid: Centroid,
    /// What stands for a cluster of FFNs.
    pub ffn_centroid: FfnCentroid,
    /// Clusters of each layer, big ones first.
    pub layers: Vec<Vec<Cluster>>,
    /// Groups of layers that share an FFN.
    pub ffn_groups: Vec<Vec<usize>>,
    /// Clusters of the neurons of each layer's FFN, big ones first and those that pass on most among equals; empty for
    /// a layer whose neurons stand for themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neurons: Vec<Vec<Cluster>>,
    /// In which order heads and neurons go, where that was measured: then every weight is the ancestor's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removals: Option<PruningOrder>,
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
            source: Provenance::default(),
            densities: None,
            lengths: Vec::new(),
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
                    .hint("use another ⟦ffn-centroid⟧, or ⟦ffn-eps⟧ 0, where neurons are clustered"));
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

    /// Clusters heads by given distances, one symmetric matrix [heads, heads] a layer, and FFNs by density. In a layer
    /// without distances (an empty matrix) every head is its own cluster; a layer without densities keeps its FFN.
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
        let first = anatomy.same_attentions(typing);
        let (densities, distances) = (&densities.pooled(&first), &pooled(distances, &first)[..]);
        let published: Vec<f64> = anatomy
            .layers
            .iter()
            .enumerate()
            .map(|(l, layer)| {
                let length = densities.lengths.get(l).copied().flatten();
                let extent = length.or_else(|| TokenPositions::new(typing, &layer.queries).side());
                PUBLISHED_EPS * extent.unwrap_or(PUBLISHED_SIDE) / PUBLISHED_SIDE
            })
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
        gene.lengths.clone_from(&densities.lengths);
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
                    "the FFNs of layers {} and {} differ in shape, or have matrices in common with heads, and cannot \
                     be shared",
                    pair[0],
                    pair[1]
                );
            }
        }
        self.ffn_groups = groups;
        Ok(())
    }

    /// The ancestor itself, with the order in which its heads and neurons go: heads that stay longest fill slots first.
    pub fn calibrated(typing: &Typing, anatomy: &Anatomy, removals: PruningOrder) -> Learngene {
        let mut gene = Learngene::identity(typing, anatomy);
        for block in removals.blocks.iter().filter(|b| b.kind == BlockKind::Heads) {
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
            let width = layer.ffn().map_or(0, |f| typing.factors.size(&f.hidden));
            if ![0, width].contains(&neurons) {
                let what = format!("the learngene describes {neurons} FFN neurons of layer {l}, which has {width}");
                return Err(wrong(what));
            }
        }
        for block in self.removals.iter().flat_map(|r| &r.blocks) {
            let layer = &anatomy.layers[block.layer];
            let factor = match block.kind {
                BlockKind::Heads => layer.head_factor(typing),
                BlockKind::Neurons => layer.ffn().and_then(|f| f.hidden_factor(typing)),
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

/// Elements of all weights, each once: floating-point initializers and constants of more than one element, and weights
/// in int8, whose scales are none.
pub fn parameters(graph: &GraphProto) -> u64 {
    let [numbers, scales] = int8_tensors(graph);
    use crate::graph::Attributes;
    let constants = graph.node.iter().filter(|n| n.op_type() == "Constant").filter_map(|n| n.tensor("value"));
    graph
        .initializer
        .iter()
        .chain(constants)
        .filter(|t| (is_float(t) && !scales.contains(t.name())) || numbers.contains(t.name()))
        .filter(|t| !t.name().starts_with(FEED_PREFIX))
        .filter_map(|t| element_count(t).ok())
        .filter(|&n| n > 1)
        .map(|n| n as u64)
        .sum()
}

/// Means over the uses of a block that is used several times: what cannot be added up stays that of the first.
fn pooled(distances: &[Array2<f64>], first: &[usize]) -> Vec<Array2<f64>> {
    let mean = |&l: &usize| {
        let uses = (0..first.len()).filter(|&other| first[other] == l).filter_map(|other| distances.get(other));
        let alike: Vec<&Array2<f64>> = uses.filter(|d| d.dim() == distances[l].dim()).collect();
        let sum = alike.iter().fold(Array2::zeros(distances[l].dim()), |sum, d| sum + *d);
        sum / alike.len().max(1) as f64
    };
    first[..distances.len().min(first.len())].iter().map(mean).collect()
}

/// True where two layers' FFNs have the same form and shapes, so that one can stand for both. One that is used several
/// times stands for others already.
fn alike(typing: &Typing, anatomy: &Anatomy, roles: &Roles, a: usize, b: usize) -> bool {
    let ffns = |l: usize| anatomy.layers.get(l).into_iter().flat_map(|layer| &layer.ffns);
    if [a, b].into_iter().flat_map(ffns).any(|f| !roles.shared(f.down).is_empty()) {
        return false;
    }
    let form = |l: usize| -> Option<Vec<(String, usize, Vec<i64>)>> {
        let layer = anatomy.layers.get(l)?;
        layer.ffns.iter().map(|ffn| ffn.hidden_factor(typing)).collect::<Option<Vec<_>>>()?;
        let uses = roles.layer_ffn_uses(layer);
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
