//! The learngene: what an ancestor passes on.
//!
//! In every layer the heads that attend alike are one cluster with one centroid, and layers whose FFNs play the same
//! part share one. The learngene file is an ONNX model that runs: the ancestor with each head's queries, keys and
//! values replaced by its cluster's. A centroid is stored once; the weight is `Gather(centroids, slots)`, where `slots`
//! names the cluster of each head, so that sharing is an index list that anyone can read, and growing a descendant is
//! gathering from that list. The whole output projection, norms, embeddings and the classifier are there too, so that
//! no ancestor is needed any more.

mod choices;
mod clusters;
mod condense;
mod gene;
mod lookup;
mod removal;
mod towers;

pub use choices::{
    Algorithm, Centroid, Count, Eps, FfnCentroid, FfnRule, Order, PUBLISHED_EPS, PUBLISHED_SIDE, Similarities,
    Similarity,
};
pub use clusters::{
    Cluster, automatic_ffn_eps, by_density, by_medoid, cluster_ffns, cluster_heads, combined, density_distances,
    ffn_centroid, ordered, parse_groups, partition, silhouette,
};
pub use gene::{Inherited, Learngene, NeuronRules, Provenance, Rules, parameters};
pub(crate) use lookup::{bake, compact};
pub use removal::{BlockKind, BlockPruning, Dimensions, KeepOrder, PruningOrder};
