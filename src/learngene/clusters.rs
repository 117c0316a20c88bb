//! Which heads do alike, and which FFNs play the same part.
//!
//! Heads of a layer are clustered by density with DBSCAN on the real line (Cluster-Learngene, algorithm 1); each
//! cluster keeps one centroid head. Adjacent layers whose centroids lie alike share one FFN (equation 6). Other
//! distances of heads and other ways to cluster them ([`partition`]) are choices beside the paper's.

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::choices::{Algorithm, Eps, FfnCentroid, FfnRule, Order};
use crate::error::Result;

/// Heads of one layer that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its heads, ascending.
    pub members: Vec<usize>,
    /// The head that stands for it.
    pub centroid: usize,
}

/// Clusters the heads of one layer, big clusters first and equal ones in the order of their lowest heads.
///
/// `eps` is in the unit of the densities; two heads are neighbours up to and including it. With `eps` 0 every head is a
/// cluster of its own. Heads with fewer than `min_heads` neighbours (themselves included) that no cluster reaches are
/// clusters of one.
pub fn cluster_heads(densities: &[f64], eps: f64, min_heads: usize) -> Vec<Cluster> {
    let labels = dbscan(densities.len(), |a, b| (densities[a] - densities[b]).abs(), eps, min_heads);
    by_density(clusters(&labels), densities)
}

/// Labels of DBSCAN; what no cluster reaches is a cluster of one.
fn dbscan(n: usize, distance: impl Fn(usize, usize) -> f64, eps: f64, min_heads: usize) -> Vec<usize> {
    let neighbours =
        |h: usize| -> Vec<usize> { (0..n).filter(|&o| o == h || (eps > 0.0 && distance(o, h) <= eps)).collect() };
    let mut label: Vec<Option<usize>> = vec![None; n];
    let mut count = 0;
    for h in 0..n {
        if label[h].is_some() || neighbours(h).len() < min_heads {
            continue;
        }
        let mut todo = vec![h];
        label[h] = Some(count);
        while let Some(core) = todo.pop() {
            let reached = neighbours(core);
            if reached.len() < min_heads {
                continue;
            }
            for o in reached {
                if label[o].is_none() {
                    label[o] = Some(count);
                    todo.push(o);
                }
            }
        }
        count += 1;
    }
    let alone = |l: Option<usize>| {
        l.unwrap_or_else(|| {
            count += 1;
            count - 1
        })
    };
    label.into_iter().map(alone).collect()
}

/// Members of every label, big clusters first and equal ones in the order of their lowest heads.
fn clusters(labels: &[usize]) -> Vec<Vec<usize>> {
    let count = labels.iter().max().map_or(0, |m| m + 1);
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (h, &l) in labels.iter().enumerate() {
        members[l].push(h);
    }
    members.retain(|m| !m.is_empty());
    members.sort_by_key(|m| m[0]);
    members.sort_by_key(|m| std::cmp::Reverse(m.len()));
    members
}

/// Clusters with the members whose densities are nearest their means.
pub fn by_density(members: Vec<Vec<usize>>, densities: &[f64]) -> Vec<Cluster> {
    let centre = |m: &[usize]| nearest_to_mean(m.iter().map(|&h| densities[h])).map_or(0, |i| m[i]);
    members.into_iter().map(|members| Cluster { centroid: centre(&members), members }).collect()
}

/// Clusters with their medoids: the members with the least sum of distances to the others, of those that tie the
/// lowest.
pub fn by_medoid(members: Vec<Vec<usize>>, distances: &Array2<f64>) -> Vec<Cluster> {
    let scale = distances.iter().fold(0.0f64, |m, d| m.max(d.abs()));
    let centre = |members: &[usize]| -> usize {
        let sum = |&h: &usize| members.iter().map(|&o| distances[[h, o]]).sum::<f64>();
        let mut best = (members[0], f64::INFINITY);
        for h in members {
            let of_head = sum(h);
            if of_head < best.1 - 1e-9 * scale {
                best = (*h, of_head);
            }
        }
        best.0
    };
    members.into_iter().map(|members| Cluster { centroid: centre(&members), members }).collect()
}

/// Counts and neighbourhoods that are tried at most where they are automatic.
const TRIES: usize = 64;
/// Starts of k-means where there are more heads or neurons than that.
const FEW_STARTS: usize = 8;

/// Clusters the heads or neurons of one layer by any distances (symmetric, zero on the diagonal), big clusters first.
/// Returns the members of the clusters and the eps that DBSCAN used; 0 for the other algorithms.
///
/// What is automatic has the best mean silhouette (Rousseeuw 1987) of all neighbourhoods, or of all counts from two to
/// one less than there are heads; of those that tie, the one with more clusters. Two heads are left apart. Of more than
/// 64 that could be tried, 64 are that lie evenly.
pub fn partition(distances: &Array2<f64>, algorithm: Algorithm, eps: Eps, min_heads: usize) -> (Vec<Vec<usize>>, f64) {
    let n = distances.nrows();
    let neighbours = |eps: f64| dbscan(n, |a, b| distances[[a, b]], eps, min_heads);
    let apart = || ((0..n).collect::<Vec<usize>>(), 0.0);
    let counts = || evenly((2..n).rev().collect());
    let (labels, eps) = match (algorithm, eps) {
        (Algorithm::Dbscan, Eps::Given(eps)) => (neighbours(eps), eps),
        (Algorithm::Dbscan, Eps::Auto) => {
            let mut all: Vec<f64> = (0..n).flat_map(|a| (0..a).map(move |b| distances[[a, b]])).collect();
            all.sort_by(f64::total_cmp);
            all.dedup();
            let tries = evenly(all).into_iter().map(|eps| eps.max(f64::MIN_POSITIVE)).map(|eps| (neighbours(eps), eps));
            best(distances, tries).unwrap_or_else(apart)
        }
        (Algorithm::Agglomerative(count), _) => {
            let tree = AverageLinkage::new(distances);
            match count.resolve(n) {
                Some(count) => (tree.labels(count), 0.0),
                None => best(distances, counts().into_iter().map(|k| (tree.labels(k), 0.0))).unwrap_or_else(apart),
            }
        }
        (Algorithm::KMeans(count), _) => match count.resolve(n) {
            Some(count) => (k_means(distances, count), 0.0),
            None => best(distances, counts().into_iter().map(|k| (k_means(distances, k), 0.0))).unwrap_or_else(apart),
        },
    };
    (clusters(&labels), eps)
}

/// So many of a list at most, evenly spread over it.
fn evenly<T: Copy>(list: Vec<T>) -> Vec<T> {
    match list.len() {
        0..=TRIES => list,
        n => (0..TRIES).map(|i| list[i * (n - 1) / (TRIES - 1)]).collect(),
    }
}

/// The first of the labellings with the best mean silhouette, among those of more than one cluster and fewer than there
/// are heads.
fn best(distances: &Array2<f64>, tries: impl Iterator<Item = (Vec<usize>, f64)>) -> Option<(Vec<usize>, f64)> {
    let mut found: Option<(f64, (Vec<usize>, f64))> = None;
    for (labels, eps) in tries {
        let count = clusters(&labels).len();
        if count < 2 || count >= labels.len() {
            continue;
        }
        let score = silhouette(distances, &labels);
        if found.as_ref().is_none_or(|(s, _)| score > s + 1e-12) {
            found = Some((score, (labels, eps)));
        }
    }
    found.map(|f| f.1)
}

/// The mean silhouette of a labelling: how much nearer heads are to their own cluster than to the next, from -1 to 1; 0
/// for a head that is alone.
pub fn silhouette(distances: &Array2<f64>, labels: &[usize]) -> f64 {
    let mut sizes = vec![0usize; labels.iter().max().map_or(0, |m| m + 1)];
    labels.iter().for_each(|&l| sizes[l] += 1);
    let of_head = |h: usize| {
        let own = labels[h];
        if sizes[own] < 2 {
            return 0.0;
        }
        let mut sums = vec![0.0; sizes.len()];
        distances.row(h).iter().zip(labels).for_each(|(d, &l)| sums[l] += d);
        let inside = sums[own] / (sizes[own] - 1) as f64;
        let others = (0..sizes.len()).filter(|&l| l != own && sizes[l] > 0);
        let outside = others.map(|l| sums[l] / sizes[l] as f64).fold(f64::INFINITY, f64::min);
        let larger = inside.max(outside);
        if larger > 0.0 && larger.is_finite() { (outside - inside) / larger } else { 0.0 }
    };
    (0..labels.len()).map(of_head).sum::<f64>() / labels.len().max(1) as f64
}

/// Agglomerative clustering with average linkage.
struct AverageLinkage {
    heads: usize,
    /// Pairs that are joined, in order: heads, and beyond their number the results of earlier joins.
    joins: Vec<[usize; 2]>,
}

impl AverageLinkage {
    fn new(distances: &Array2<f64>) -> Self {
        let heads = distances.nrows();
        let mut upper: Vec<f64> = (0..heads).flat_map(|a| (a + 1..heads).map(move |b| distances[[a, b]])).collect();
        let joined = match heads {
            0 | 1 => Vec::new(),
            _ => kodama::linkage(&mut upper, heads, kodama::Method::Average).steps().to_vec(),
        };
        AverageLinkage { heads, joins: joined.iter().map(|s| [s.cluster1, s.cluster2]).collect() }
    }

    /// Labels of so many clusters.
    fn labels(&self, count: usize) -> Vec<usize> {
        let joins = &self.joins[..self.heads.saturating_sub(count.max(1))];
        // What a head or a join belongs to in the end.
        let mut top: Vec<usize> = (0..self.heads + joins.len()).collect();
        for (j, pair) in joins.iter().enumerate().rev() {
            pair.iter().for_each(|&part| top[part] = top[self.heads + j]);
        }
        let mut number = std::collections::HashMap::new();
        let numbered = |t: &usize| {
            let next = number.len();
            *number.entry(*t).or_insert(next)
        };
        top[..self.heads].iter().map(numbered).collect()
    }
}

/// k-means: the labelling with the least sum of spreads that is found from average linkage and from some heads as the
/// first of `count` that lie far apart. The spread of a cluster is the sum of the squared distances of its pairs,
/// divided by its size: for points in space the sum of the squared distances to their mean.
fn k_means(distances: &Array2<f64>, count: usize) -> Vec<usize> {
    let n = distances.nrows();
    let count = count.clamp(1, n.max(1));
    let squares = distances.mapv(|d| d * d);
    let far_apart = |first: usize| -> Vec<usize> {
        let mut labels = vec![0; n];
        let mut nearest = distances.row(first).to_vec();
        let mut is_seed = vec![false; n];
        is_seed[first] = true;
        for label in 1..count {
            let left = (0..n).filter(|&h| !is_seed[h]);
            let Some(next) = left.max_by(|&a, &b| nearest[a].total_cmp(&nearest[b])) else { break };
            is_seed[next] = true;
            for h in 0..n {
                if h == next || !is_seed[h] && distances[[h, next]] < nearest[h] {
                    (nearest[h], labels[h]) = (distances[[h, next]], label);
                }
            }
        }
        labels
    };
    let (mut found, mut least) = improved(&squares, AverageLinkage::new(distances).labels(count), count);
    let starts = if n > TRIES { FEW_STARTS } else { TRIES };
    for first in (0..n).step_by(n.div_ceil(starts).max(1)) {
        let (labels, total) = improved(&squares, far_apart(first), count);
        if total < least * (1.0 - 1e-12) {
            (found, least) = (labels, total);
        }
    }
    found
}

/// Moves heads one by one to the cluster where they lower the sum of spreads most (Hartigan and Wong 1979), until none
/// does. Returns the labels and the sum.
fn improved(squares: &Array2<f64>, mut labels: Vec<usize>, count: usize) -> (Vec<usize>, f64) {
    let n = labels.len();
    let mut size = vec![0usize; count];
    // The sum over a cluster's members of the squared distance from every head, and over all pairs of members.
    let mut from = Array2::<f64>::zeros((n, count));
    let mut inside = vec![0.0; count];
    for (o, &l) in labels.iter().enumerate() {
        size[l] += 1;
        (0..n).for_each(|h| from[[h, l]] += squares[[h, o]]);
    }
    labels.iter().enumerate().for_each(|(h, &l)| inside[l] += from[[h, l]] / 2.0);
    let spread = |pairs: f64, size: usize| pairs / size.max(1) as f64;
    let least = 1e-12 * squares.iter().fold(0.0f64, |m, d| m.max(*d));
    // Every move lowers the sum, so that it ends; the bound is for rounding.
    for _ in 0..100 {
        let mut moved = false;
        for h in 0..n {
            let own = labels[h];
            if size[own] < 2 {
                continue;
            }
            let saved = spread(inside[own], size[own]) - spread(inside[own] - from[[h, own]], size[own] - 1);
            let mut to = (own, least);
            for l in (0..count).filter(|&l| l != own) {
                let gain = saved + spread(inside[l], size[l]) - spread(inside[l] + from[[h, l]], size[l] + 1);
                if gain > to.1 {
                    to = (l, gain);
                }
            }
            if to.0 != own {
                (inside[own], inside[to.0]) = (inside[own] - from[[h, own]], inside[to.0] + from[[h, to.0]]);
                (size[own], size[to.0]) = (size[own] - 1, size[to.0] + 1);
                for o in 0..n {
                    from[[o, own]] -= squares[[o, h]];
                    from[[o, to.0]] += squares[[o, h]];
                }
                (labels[h], moved) = (to.0, true);
            }
        }
        if !moved {
            break;
        }
    }
    let total = (0..count).map(|l| spread(inside[l], size[l])).sum();
    (labels, total)
}

/// Distances of several kinds as one, by layer: each is divided by its mean over all pairs of all layers, and they are
/// averaged. A layer that lacks one of them has none. One kind alone stays as it is.
pub fn combined(kinds: &[Vec<Array2<f64>>]) -> Vec<Array2<f64>> {
    if let [only] = kinds {
        return only.clone();
    }
    let scaled: Vec<Vec<Array2<f64>>> = kinds
        .iter()
        .map(|layers| {
            let pairs: usize = layers.iter().map(|d| d.nrows() * d.nrows().saturating_sub(1)).sum();
            let mean = layers.iter().map(|d| d.sum()).sum::<f64>() / pairs.max(1) as f64;
            let scale = if mean > 0.0 { 1.0 / (mean * kinds.len() as f64) } else { 0.0 };
            layers.iter().map(|d| d * scale).collect()
        })
        .collect();
    let mut kinds = scaled.into_iter();
    let first = kinds.next().unwrap_or_default();
    let sum = |a: &Array2<f64>, b: &Array2<f64>| if a.dim() == b.dim() { a + b } else { Array2::zeros((0, 0)) };
    kinds.fold(first, |all, next| all.iter().zip(&next).map(|(a, b)| sum(a, b)).collect())
}

/// Differences of densities.
pub fn density_distances(densities: &[f64]) -> Array2<f64> {
    Array2::from_shape_fn((densities.len(), densities.len()), |(a, b)| (densities[a] - densities[b]).abs())
}

/// Position of the value nearest the mean; the first of those that tie (a pair always ties, up to rounding).
fn nearest_to_mean(values: impl Iterator<Item = f64> + Clone) -> Option<usize> {
    let n = values.clone().count();
    let mean = values.clone().sum::<f64>() / n.max(1) as f64;
    let tolerance = 1e-9 * mean.abs().max(1.0);
    let mut best: Option<(usize, f64)> = None;
    for (i, v) in values.enumerate() {
        let distance = (v - mean).abs();
        if best.is_none_or(|(_, b)| distance < b - tolerance) {
            best = Some((i, distance));
        }
    }
    best.map(|(i, _)| i)
}

/// Groups of layers that share an FFN, in order; a layer that shares with none is a group of one.
///
/// `alike` says whether the FFNs of a layer and the next have the same shapes at all.
pub fn cluster_ffns(
    layers: &[Vec<Cluster>],
    densities: &[Vec<f64>],
    eps: &[f64],
    rule: FfnRule,
    alike: impl Fn(usize) -> bool,
) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (l, &eps) in eps.iter().enumerate() {
        let joins = l > 0
            && eps > 0.0
            && alike(l - 1)
            && ffn_difference(layers, densities, rule, l).is_some_and(|mean| mean < eps);
        match groups.last_mut() {
            Some(group) if joins => group.push(l),
            _ => groups.push(vec![l]),
        }
    }
    groups
}

/// The mean difference of the sorted densities of the centroids of a layer and the one before (equation 6); `None`
/// where they have different numbers of them, or no densities.
fn ffn_difference(layers: &[Vec<Cluster>], densities: &[Vec<f64>], rule: FfnRule, l: usize) -> Option<f64> {
    let (a, b) = (sorted(&layers[l - 1], &densities[l - 1], rule), sorted(&layers[l], &densities[l], rule));
    let mean = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).sum::<f64>() / a.len().max(1) as f64;
    (!a.is_empty() && a.len() == b.len()).then_some(mean)
}

/// The eps for FFNs in the middle of the largest gap between the differences of adjacent layers, in units of `scale`
/// (the published eps of each layer); `None` where fewer than two pairs can be compared.
pub fn automatic_ffn_eps(
    layers: &[Vec<Cluster>],
    densities: &[Vec<f64>],
    scale: &[f64],
    rule: FfnRule,
    alike: impl Fn(usize) -> bool,
) -> Option<f64> {
    let pairs = (1..layers.len()).filter(|&l| alike(l - 1));
    let mut all: Vec<f64> =
        pairs.filter_map(|l| Some(ffn_difference(layers, densities, rule, l)? / scale[l])).collect();
    all.sort_by(f64::total_cmp);
    let gap = |w: &&[f64]| w[1] - w[0];
    let widest = all.windows(2).max_by(|a, b| gap(a).total_cmp(&gap(b)))?;
    Some((widest[0] + widest[1]) / 2.0)
}

/// Densities of a layer's centroids, ascending: the only pairing that gives the published groups.
fn sorted(clusters: &[Cluster], densities: &[f64], rule: FfnRule) -> Vec<f64> {
    let mut list: Vec<f64> = clusters
        .iter()
        .filter(|c| rule == FfnRule::Strict || c.members.len() > 1)
        .filter_map(|c| densities.get(c.centroid).copied())
        .collect();
    list.sort_by(f64::total_cmp);
    list
}

/// Which member of a group of layers gives its FFN. Layers without densities are no one's nearest.
pub fn ffn_centroid(group: &[usize], densities: &[Vec<f64>], rule: FfnCentroid) -> usize {
    let mean = |l: &usize| {
        let d = densities.get(*l).filter(|d| !d.is_empty())?;
        Some((*l, d.iter().sum::<f64>() / d.len() as f64))
    };
    let means: Vec<(usize, f64)> = group.iter().filter_map(mean).collect();
    match rule {
        FfnCentroid::Nearest => nearest_to_mean(means.iter().map(|m| m.1)).map_or(group[0], |i| means[i].0),
        FfnCentroid::Shallowest | FfnCentroid::Mean => group[0],
    }
}

/// Reads explicit groups such as `6-7,9-11` and completes them with groups of one.
///
/// # Errors
/// [`crate::error::ErrorKind::Usage`] for a layer that does not exist or stands in two groups.
pub fn parse_groups(text: &str, layers: usize) -> Result<Vec<Vec<usize>>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse::<usize>()) else {
            bail!(Usage, "`{part}` in ⟦ffn-clusters⟧ is not a range of layers such as 6-7");
        };
        if first > last || last >= layers {
            bail!(Usage, "`{part}` in ⟦ffn-clusters⟧ is not a range within layers 0 to {}", layers.saturating_sub(1));
        }
        groups.push((first..=last).collect());
    }
    for l in 0..layers {
        match groups.iter().filter(|g| g.contains(&l)).count() {
            0 => groups.push(vec![l]),
            1 => {}
            _ => bail!(Usage, "layer {l} stands in two groups of ⟦ffn-clusters⟧"),
        }
    }
    groups.sort();
    Ok(groups)
}

/// The clusters in the order in which they fill slots.
pub fn ordered<'c>(clusters: &'c [Cluster], densities: Option<&[f64]>, order: Order) -> Vec<&'c Cluster> {
    let mut list: Vec<&Cluster> = clusters.iter().collect();
    let density = |c: &&Cluster| densities.and_then(|d| d.get(c.centroid).copied()).unwrap_or(c.centroid as f64);
    match order {
        Order::Priority => {}
        Order::Original => list.sort_by_key(|c| c.members.first().copied()),
        Order::Ascending => list.sort_by(|a, b| density(a).total_cmp(&density(b))),
        Order::Descending => list.sort_by(|a, b| density(b).total_cmp(&density(a))),
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::choices::Count;
    use super::*;

    fn labels(clusters: &[Cluster], heads: usize) -> Vec<usize> {
        let mut by_lowest: Vec<&Cluster> = clusters.iter().collect();
        by_lowest.sort_by_key(|c| c.members[0]);
        (0..heads).map(|h| by_lowest.iter().position(|c| c.members.contains(&h)).unwrap()).collect()
    }

    /// The densities that the authors published for DeiT-B give the labels and centroids that they published.
    #[test]
    fn published_densities_give_the_published_clusters() {
        #[derive(Deserialize)]
        struct Published {
            eps: f64,
            min_heads: usize,
            densities: Vec<Vec<f64>>,
            labels: Vec<Vec<usize>>,
            centroids: Vec<Vec<usize>>,
        }
        let published: Published =
            serde_json::from_str(include_str!("../../fixtures/density/deit-base-published.json")).unwrap();
        assert_eq!(published.densities.len(), 12);
        let mut all = Vec::new();
        for (l, densities) in published.densities.iter().enumerate() {
            let clusters = cluster_heads(densities, published.eps, published.min_heads);
            assert_eq!(labels(&clusters, 12), published.labels[l], "labels of layer {l}");
            let centroids: Vec<_> = clusters.iter().map(|c| c.centroid).collect();
            assert_eq!(centroids, published.centroids[l], "centroids of layer {l}");
            all.push(clusters);
        }
        let eps = vec![10.0; 12];
        let shared = |rule| -> Vec<Vec<usize>> {
            cluster_ffns(&all, &published.densities, &eps, rule, |_| true).into_iter().filter(|g| g.len() > 1).collect()
        };
        assert_eq!(shared(FfnRule::Strict), [vec![6, 7]]);
        assert_eq!(shared(FfnRule::IgnoreSingletons), [vec![6, 7], vec![9, 10, 11]]);
    }

    #[test]
    fn eps_zero_switches_clustering_off() {
        let clusters = cluster_heads(&[5.0, 5.0, 1.0], 0.0, 1);
        let centroids: Vec<_> = clusters.iter().map(|c| c.centroid).collect();
        assert_eq!(centroids, [0, 1, 2]);
    }

    #[test]
    fn eps_is_inclusive_and_chains() {
        let clusters = cluster_heads(&[0.0, 10.0, 20.0, 30.5], 10.0, 1);
        assert_eq!(clusters[0].members, [0, 1, 2]);
        assert_eq!(clusters[1].members, [3]);
    }

    #[test]
    fn noise_becomes_clusters_of_one() {
        let clusters = cluster_heads(&[0.0, 1.0, 2.0, 50.0], 1.0, 3);
        assert_eq!(clusters[0].members, [0, 1, 2]);
        assert_eq!(clusters[1].members, [3]);
        let clusters = cluster_heads(&[0.0, 9.0], 1.0, 2);
        assert_eq!(clusters.len(), 2);
    }

    #[test]
    fn a_pair_takes_its_lower_head() {
        assert_eq!(cluster_heads(&[27.5541, 28.4726], 10.0, 1)[0].centroid, 0);
        assert_eq!(cluster_heads(&[28.4726, 27.5541], 10.0, 1)[0].centroid, 0);
    }

    #[test]
    fn explicit_groups() {
        assert_eq!(parse_groups("1-2, 4", 5).unwrap(), [vec![0], vec![1, 2], vec![3], vec![4]]);
        for bad in ["1-9", "2-1", "x", "0-2,2-3"] {
            assert!(parse_groups(bad, 5).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_layer_that_gives_a_shared_ffn() {
        let densities = [vec![0.0], vec![40.0, 50.0], vec![10.0, 20.0], vec![16.0]];
        assert_eq!(ffn_centroid(&[1, 2, 3], &densities, FfnCentroid::Shallowest), 1);
        // Means 45, 15 and 16: their mean is 25.3, and 16 is nearest.
        assert_eq!(ffn_centroid(&[1, 2, 3], &densities, FfnCentroid::Nearest), 3);
    }

    fn labels_of(members: &[Vec<usize>], heads: usize) -> Vec<usize> {
        let mut by_lowest: Vec<&Vec<usize>> = members.iter().collect();
        by_lowest.sort_by_key(|m| m[0]);
        (0..heads).map(|h| by_lowest.iter().position(|m| m.contains(&h)).unwrap()).collect()
    }

    /// SciPy's average and single linkage, and silhouettes: `scripts/golden/cluster.py`.
    #[test]
    fn clusters_are_those_of_scipy() {
        #[derive(Deserialize)]
        struct Level {
            labels: Vec<usize>,
            silhouette: Option<f64>,
        }
        #[derive(Deserialize)]
        struct Chain {
            eps: f64,
            labels: Vec<usize>,
        }
        #[derive(Deserialize)]
        struct Case {
            points: Vec<[f64; 2]>,
            average: Vec<Level>,
            single: Vec<Chain>,
        }
        #[derive(Deserialize)]
        struct Golden {
            clusterings: Vec<Case>,
        }
        let golden: Golden = serde_json::from_str(include_str!("../../fixtures/density/similarities.json")).unwrap();
        assert_eq!(golden.clusterings.len(), 4);
        for Case { points, average, single } in golden.clusterings {
            let n = points.len();
            let distances = Array2::from_shape_fn((n, n), |(a, b)| {
                (points[a][0] - points[b][0]).hypot(points[a][1] - points[b][1])
            });
            for (k, level) in average.iter().enumerate() {
                let found = partition(&distances, Algorithm::Agglomerative(Count::Of(k + 1)), Eps::Auto, 1).0;
                assert_eq!(labels_of(&found, n), level.labels, "{} of {n} heads", k + 1);
                if let Some(score) = level.silhouette {
                    assert!((silhouette(&distances, &level.labels) - score).abs() < 1e-12);
                }
            }
            for chain in single {
                let (found, eps) = partition(&distances, Algorithm::Dbscan, Eps::Given(chain.eps), 1);
                assert_eq!((labels_of(&found, n), eps), (chain.labels, chain.eps));
            }
            let best = average.iter().max_by(|a, b| a.silhouette.partial_cmp(&b.silhouette).unwrap()).unwrap();
            let found = partition(&distances, Algorithm::Agglomerative(Count::Auto), Eps::Auto, 1).0;
            assert_eq!(labels_of(&found, n), best.labels);
            // The best k-means of two and three clusters, by trying all labellings.
            if n > 8 {
                continue;
            }
            for k in [2, 3] {
                let cost = |labels: &[usize]| -> f64 {
                    (0..k)
                        .map(|l| {
                            let own: Vec<[f64; 2]> = (0..n).filter(|&h| labels[h] == l).map(|h| points[h]).collect();
                            let mean = |a: usize| own.iter().map(|p| p[a]).sum::<f64>() / own.len().max(1) as f64;
                            let (x, y) = (mean(0), mean(1));
                            own.iter().map(|p| (p[0] - x).powi(2) + (p[1] - y).powi(2)).sum::<f64>()
                        })
                        .sum()
                };
                let all = (0..k.pow(n as u32)).map(|code| (0..n).map(|h| code / k.pow(h as u32) % k).collect());
                let least = all.map(|labels: Vec<usize>| cost(&labels)).fold(f64::INFINITY, f64::min);
                let found = partition(&distances, Algorithm::KMeans(Count::Of(k)), Eps::Auto, 1).0;
                assert!(cost(&labels_of(&found, n)) < least + 1e-9, "{k} of {n}");
            }
        }
    }

    #[test]
    fn silhouettes_by_hand() {
        let distances = density_distances(&[0.0, 1.0, 4.0]);
        // Heads 0 and 1: (4 - 1) / 4 and (3 - 1) / 3; head 2 is alone.
        let score = silhouette(&distances, &[0, 0, 1]);
        assert!((score - (0.75 + 2.0 / 3.0) / 3.0).abs() < 1e-15);
        assert_eq!(silhouette(&distances, &[0, 0, 0]), 0.0);
    }

    #[test]
    fn what_is_automatic() {
        let distances = density_distances(&[1.0, 1.5, 2.0, 9.0, 9.25, 30.0]);
        let (members, eps) = partition(&distances, Algorithm::Dbscan, Eps::Auto, 1);
        assert_eq!(members, [vec![0, 1, 2], vec![3, 4], vec![5]]);
        assert_eq!(eps, 0.5);
        for algorithm in [Algorithm::Agglomerative(Count::Auto), Algorithm::KMeans(Count::Auto)] {
            assert_eq!(partition(&distances, algorithm, Eps::Auto, 1).0, members);
        }
        // Heads that are the same are neighbours at no distance at all; two heads are left apart.
        let same = density_distances(&[3.0, 7.0, 3.0, 11.0]);
        assert_eq!(partition(&same, Algorithm::Dbscan, Eps::Auto, 1).0, [vec![0, 2], vec![1], vec![3]]);
        let pair = density_distances(&[3.0, 7.0]);
        assert_eq!(partition(&pair, Algorithm::Dbscan, Eps::Auto, 1), (vec![vec![0], vec![1]], 0.0));
        assert_eq!(partition(&density_distances(&[1.0]), Algorithm::KMeans(Count::Auto), Eps::Auto, 1).0, [vec![0]]);
        // More clusters than heads are as many as there are heads.
        assert_eq!(partition(&pair, Algorithm::Agglomerative(Count::Of(9)), Eps::Auto, 1).0, [vec![0], vec![1]]);
    }

    #[test]
    fn medoids() {
        let distances = density_distances(&[0.0, 4.0, 5.0, 20.0]);
        assert_eq!(by_medoid(vec![vec![0, 1, 2], vec![3]], &distances)[0].centroid, 1);
        // A pair ties.
        assert_eq!(by_medoid(vec![vec![1, 2]], &distances)[0].centroid, 1);
    }

    #[test]
    fn several_distances_weigh_alike() {
        let a = [density_distances(&[0.0, 1.0]), density_distances(&[0.0, 3.0])].to_vec();
        let b = [density_distances(&[0.0, 300.0]), density_distances(&[0.0, 100.0])].to_vec();
        let both = combined(&[a, b]);
        // Means 2 and 200.
        assert_eq!((both[0][[0, 1]], both[1][[1, 0]]), ((0.5 + 1.5) / 2.0, (1.5 + 0.5) / 2.0));
    }

    #[test]
    fn the_largest_gap_between_layers() {
        let densities: Vec<Vec<f64>> = [0.0, 0.5, 20.0, 21.0, 50.0].iter().map(|d| vec![*d, d + 100.0]).collect();
        let layers: Vec<Vec<Cluster>> = densities.iter().map(|d| cluster_heads(d, 1.0, 1)).collect();
        let eps = automatic_ffn_eps(&layers, &densities, &[1.0; 5], FfnRule::Strict, |_| true).unwrap();
        // Differences 0.5, 19.5, 1 and 29.
        assert_eq!(eps, (1.0 + 19.5) / 2.0);
        let groups = cluster_ffns(&layers, &densities, &[eps; 5], FfnRule::Strict, |_| true);
        assert_eq!(groups, [vec![0, 1], vec![2, 3], vec![4]]);
        assert_eq!(automatic_ffn_eps(&layers[..2], &densities, &[1.0; 2], FfnRule::Strict, |_| true), None);
    }

    #[test]
    fn orders() {
        let densities = [1.0, 30.0, 31.0, 60.0];
        let clusters = cluster_heads(&densities, 10.0, 1);
        let centroids = |o| ordered(&clusters, Some(&densities), o).iter().map(|c| c.centroid).collect::<Vec<_>>();
        assert_eq!(centroids(Order::Priority), [1, 0, 3]);
        assert_eq!(centroids(Order::Original), [0, 1, 3]);
        assert_eq!(centroids(Order::Ascending), [0, 1, 3]);
        assert_eq!(centroids(Order::Descending), [3, 1, 0]);
    }
}
