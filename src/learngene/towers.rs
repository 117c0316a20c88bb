//! The learngene of a model whose towers were clustered by themselves.

use super::gene::Learngene;
use crate::anatomy::Anatomy;
use crate::axes::Typing;

impl Learngene {
    /// The learngenes of towers as one of the whole model, of which each has some layers: for each of its own that of
    /// the model. What is in no tower is its own cluster.
    pub fn of_towers(typing: &Typing, anatomy: &Anatomy, towers: Vec<(Learngene, Vec<usize>)>) -> Learngene {
        let mut gene = Learngene::identity(typing, anatomy);
        let layers = gene.layers.len();
        let (mut densities, mut lengths) = (vec![Vec::new(); layers], vec![None; layers]);
        let mut neurons = vec![Vec::new(); layers];
        for (own, places) in towers {
            gene.ffn_groups.retain(|group| !group.iter().any(|l| places.contains(l)));
            let of_whole = |group: Vec<usize>| group.into_iter().map(|l| places[l]).collect();
            gene.ffn_groups.extend(own.ffn_groups.into_iter().map(of_whole));
            for (l, &place) in places.iter().enumerate() {
                gene.layers[place].clone_from(&own.layers[l]);
                (gene.eps[place], gene.ffn_eps[place]) = (own.eps[l], own.ffn_eps[l]);
                let measured = own.densities.as_ref().and_then(|all| all.get(l));
                densities[place] = measured.cloned().unwrap_or_default();
                lengths[place] = own.lengths.get(l).copied().flatten();
                neurons[place] = own.neurons.get(l).cloned().unwrap_or_default();
            }
            (gene.similarity, gene.algorithm) = (own.similarity, own.algorithm);
            (gene.centroid, gene.ffn_centroid) = (own.centroid, own.ffn_centroid);
            gene.source.images += own.source.images;
        }
        gene.ffn_groups.sort_unstable();
        gene.densities = Some(densities);
        if lengths.iter().any(Option::is_some) {
            gene.lengths = lengths;
        }
        if neurons.iter().any(|clusters| !clusters.is_empty()) {
            gene.neurons = neurons;
        }
        gene
    }
}
