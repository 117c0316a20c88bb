//! How heads, FFNs and neurons are clustered.

use clap::Args;

use crate::learngene::{Algorithm, Centroid, Eps, FfnCentroid, FfnRule, NeuronRules, Rules, Similarities, Similarity};

/// How clusters are made.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterFlags {
    /// What makes heads alike: density, attention, output, prediction, or several joined by + [default: density]
    ///
    /// density: mean attention distances, in pixels (the paper) or tokens. attention: Jensen-Shannon divergence of mean
    /// attention maps, in bits. output: one minus the linear CKA of their outputs. prediction: what the layer's output
    /// loses when one is predicted from the other. Several are scaled to a mean of one and averaged.
    #[arg(long, value_name = "KIND", help_heading = "Clustering")]
    pub similarity: Option<Similarities>,
    /// How heads are clustered: dbscan, agglomerative:K or kmeans:K, where K clusters a layer may be auto [default:
    /// dbscan]
    #[arg(long, value_name = "HOW", help_heading = "Clustering")]
    pub cluster: Option<Algorithm>,
    /// Heads this close are neighbours for dbscan, densities in pixels or tokens; 0 keeps every head, auto takes the
    /// clusters of the best silhouette [default: 10 at 224 pixels, scaled to the image or to the mean length in tokens;
    /// auto for other similarities]
    #[arg(long, value_name = "DISTANCE", help_heading = "Clustering")]
    pub eps: Option<Eps>,
    /// Layers whose densities lie this close share an FFN, in pixels or tokens; 0 shares none, auto takes the largest
    /// gap [default: as for the densities of heads]
    #[arg(long, value_name = "PIXELS", help_heading = "Clustering")]
    pub ffn_eps: Option<Eps>,
    /// Heads that make a neighbourhood dense
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Clustering",
        value_parser = clap::value_parser!(u16).range(1..))]
    pub min_heads: u16,
    /// What stands for a cluster of heads
    #[arg(long, value_enum, default_value_t, help_heading = "Clustering")]
    pub centroid: Centroid,
    /// What stands for a cluster of FFNs
    #[arg(long, value_enum, default_value_t, help_heading = "Clustering")]
    pub ffn_centroid: FfnCentroid,
    /// When adjacent layers share an FFN
    #[arg(long, value_enum, default_value_t, help_heading = "Clustering")]
    pub ffn_rule: FfnRule,
    /// Groups of layers that share an FFN, such as 6-7,9-11, instead of a rule
    #[arg(long, value_name = "GROUPS", help_heading = "Clustering")]
    pub ffn_clusters: Option<String>,
    /// Cluster the neurons of every FFN too: dbscan, agglomerative:K or kmeans:K, where K clusters a layer may be a
    /// share (50%) or auto [default: neurons are not clustered]
    #[arg(long, value_name = "HOW", help_heading = "Clustering")]
    pub neuron_cluster: Option<Algorithm>,
    /// What makes neurons alike: output, prediction, or output+prediction [default: output]
    ///
    /// output: the mean squared difference of their outputs, as a share of their mean squares. prediction: what the
    /// layer's output loses when one is predicted from the other.
    #[arg(long, value_name = "KIND", help_heading = "Clustering", requires = "neuron_cluster")]
    pub neuron_similarity: Option<Similarities>,
    /// Neurons this close are neighbours for dbscan; auto takes the clusters of the best silhouette [default: auto]
    #[arg(long, value_name = "DISTANCE", help_heading = "Clustering", requires = "neuron_cluster")]
    pub neuron_eps: Option<Eps>,
}

impl ClusterFlags {
    /// As options of the library.
    pub fn rules(&self) -> Rules {
        Rules {
            similarity: self.similarity.clone().unwrap_or_default(),
            algorithm: self.cluster.unwrap_or_default(),
            eps: self.eps,
            ffn_eps: self.ffn_eps,
            min_heads: self.min_heads.into(),
            centroid: self.centroid,
            ffn_centroid: self.ffn_centroid,
            ffn_rule: self.ffn_rule,
            ffn_clusters: self.ffn_clusters.clone(),
            neurons: self.neuron_cluster.map(|algorithm| NeuronRules {
                similarity: self.neuron_similarity.clone().unwrap_or(Similarities(vec![Similarity::Output])),
                algorithm,
                eps: self.neuron_eps,
            }),
        }
    }

    /// True where a flag asks for clusters.
    pub fn any(&self) -> bool {
        self.rules() != Rules { min_heads: 1, ..Rules::default() }
    }
}
