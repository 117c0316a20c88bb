//! Which heads do alike, and which FFNs play the same part.
//!
//! Heads of a layer are clustered by density with DBSCAN on the real line (Cluster-Learngene, algorithm 1); each cluster
//! keeps one centroid head. Adjacent layers whose centroids lie alike share one FFN (equation 6).

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// The eps of the paper, in pixels of a 224-pixel image.
pub const PUBLISHED_EPS: f64 = 10.0;

/// Heads of one layer that are alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its heads, ascending.
    pub members: Vec<usize>,
    /// The head that stands for it.
    pub centroid: usize,
}

/// What stands for a cluster of heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Centroid {
    /// The member whose density is nearest the cluster's mean.
    #[default]
    Nearest,
    /// The mean of the members' weights.
    Mean,
}

/// What stands for a cluster of FFNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FfnCentroid {
    /// The FFN of the first layer of the cluster.
    #[default]
    Shallowest,
    /// The FFN of the layer whose mean density is nearest the cluster's.
    Nearest,
    /// The mean of the FFNs' weights.
    Mean,
}

/// When adjacent layers share an FFN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum FfnRule {
    /// The paper: equally many centroids, whose sorted densities differ by less than eps on average.
    #[default]
    Strict,
    /// The same, with clusters of one head left out of the comparison.
    IgnoreSingletons,
}

/// The order in which clusters fill the slots of a descendant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Big clusters first (the paper).
    #[default]
    Priority,
    /// In the order of their lowest heads.
    Original,
    /// Short distances first.
    Ascending,
    /// Long distances first.
    Descending,
}

/// Clusters the heads of one layer, big clusters first and equal ones in the order of their lowest heads.
///
/// `eps` is in the unit of the densities; two heads are neighbours up to and including it. With `eps` 0 every head is a
/// cluster of its own. Heads with fewer than `min_heads` neighbours (themselves included) that no cluster reaches are
/// clusters of one.
pub fn cluster_heads(densities: &[f64], eps: f64, min_heads: usize) -> Vec<Cluster> {
    let n = densities.len();
    let neighbours = |h: usize| -> Vec<usize> {
        (0..n).filter(|&o| o == h || (eps > 0.0 && (densities[o] - densities[h]).abs() <= eps)).collect()
    };
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
    for l in &mut label {
        l.get_or_insert_with(|| {
            count += 1;
            count - 1
        });
    }
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (h, l) in label.iter().enumerate() {
        members[l.unwrap_or_default()].push(h);
    }
    members.sort_by_key(|m| m[0]);
    members.sort_by_key(|m| std::cmp::Reverse(m.len()));
    members
        .into_iter()
        .map(|members| {
            let centroid =
                nearest_to_mean(members.iter().map(|&h| densities[h])).map(|i| members[i]).unwrap_or_default();
            Cluster { members, centroid }
        })
        .collect()
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
    for l in 0..layers.len() {
        let joins = l > 0 && eps[l] > 0.0 && alike(l - 1) && {
            let (a, b) = (sorted(&layers[l - 1], &densities[l - 1], rule), sorted(&layers[l], &densities[l], rule));
            let mean = a.iter().zip(&b).map(|(x, y)| (x - y).abs()).sum::<f64>() / a.len().max(1) as f64;
            !a.is_empty() && a.len() == b.len() && mean < eps[l]
        };
        match groups.last_mut() {
            Some(group) if joins => group.push(l),
            _ => groups.push(vec![l]),
        }
    }
    groups
}

/// Densities of a layer's centroids, ascending: the only pairing that gives the published groups.
fn sorted(clusters: &[Cluster], densities: &[f64], rule: FfnRule) -> Vec<f64> {
    let mut list: Vec<f64> = clusters
        .iter()
        .filter(|c| rule == FfnRule::Strict || c.members.len() > 1)
        .map(|c| densities[c.centroid])
        .collect();
    list.sort_by(f64::total_cmp);
    list
}

/// Which member of a group of layers gives its FFN.
pub fn ffn_centroid(group: &[usize], densities: &[Vec<f64>], rule: FfnCentroid) -> usize {
    let mean = |l: &usize| densities.get(*l).map(|d| d.iter().sum::<f64>() / d.len().max(1) as f64).unwrap_or(0.0);
    match rule {
        FfnCentroid::Nearest => nearest_to_mean(group.iter().map(mean)).map(|i| group[i]).unwrap_or(group[0]),
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
            bail!(Usage, "`{part}` in --ffn-clusters is not a range of layers such as 6-7");
        };
        if first > last || last >= layers {
            bail!(Usage, "`{part}` in --ffn-clusters is not a range within layers 0 to {}", layers.saturating_sub(1));
        }
        groups.push((first..=last).collect());
    }
    for l in 0..layers {
        match groups.iter().filter(|g| g.contains(&l)).count() {
            0 => groups.push(vec![l]),
            1 => {}
            _ => bail!(Usage, "layer {l} stands in two groups of --ffn-clusters"),
        }
    }
    groups.sort();
    Ok(groups)
}

/// The clusters in the order in which they fill slots.
pub fn ordered<'c>(clusters: &'c [Cluster], densities: Option<&[f64]>, order: Order) -> Vec<&'c Cluster> {
    let mut list: Vec<&Cluster> = clusters.iter().collect();
    let density = |c: &&Cluster| densities.map(|d| d[c.centroid]).unwrap_or(c.centroid as f64);
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
