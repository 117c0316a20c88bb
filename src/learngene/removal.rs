//! Removal: which heads and neurons of an ancestor go first, and what that costs, as a learngene carries it.
//!
//! It is measured on images ([`crate::fitting`]) and answers, for every size, which units stay and how large the error
//! is that comes of it at the end of the network.

use serde::{Deserialize, Serialize};

/// What a block of a layer is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// The heads of an attention.
    Heads,
    /// The neurons of an FFN.
    Neurons,
}

/// Which units of a block stay at every count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepOrder {
    /// A set for every count, from none to all.
    Sets(Vec<Vec<usize>>),
    /// Units in the order in which they are removed.
    Order(Vec<usize>),
}

impl KeepOrder {
    /// The units that stay where `count` do, ascending.
    pub fn at(&self, count: usize) -> Vec<usize> {
        match self {
            KeepOrder::Sets(sets) => sets.get(count).or(sets.last()).cloned().unwrap_or_default(),
            KeepOrder::Order(order) => {
                let mut kept = order[order.len() - count.min(order.len())..].to_vec();
                kept.sort_unstable();
                kept
            }
        }
    }

    /// All units there are.
    pub fn units(&self) -> usize {
        match self {
            KeepOrder::Sets(sets) => sets.len().saturating_sub(1),
            KeepOrder::Order(order) => order.len(),
        }
    }

    /// All units, those first that stay longest; of sets, those that are in most of them.
    pub fn by_priority(&self) -> Vec<usize> {
        match self {
            KeepOrder::Order(order) => order.iter().rev().copied().collect(),
            KeepOrder::Sets(sets) => {
                let mut units: Vec<usize> = (0..self.units()).collect();
                let missing = |u: &usize| sets.iter().filter(|s| !s.contains(u)).count();
                units.sort_by_key(|u| (missing(u), *u));
                units
            }
        }
    }

    fn is_sound(&self) -> bool {
        let n = self.units();
        let within = |list: &[usize], len: usize| {
            let mut sorted = list.to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            sorted.len() == len && list.len() == len && list.iter().all(|&u| u < n)
        };
        match self {
            KeepOrder::Sets(sets) => sets.iter().enumerate().all(|(k, s)| within(s, k)),
            KeepOrder::Order(order) => within(order, n),
        }
    }
}

/// The heads or the neurons of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockPruning {
    /// The layer.
    pub layer: usize,
    /// Heads or neurons.
    pub kind: BlockKind,
    /// Which units stay at every count.
    pub kept: KeepOrder,
    /// For every count from none to all, the squared error at the end of the network where only this block is thinned,
    /// relative to the values themselves; not rising.
    pub error: Vec<f32>,
}

/// The dimensions of the heads of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dimensions {
    /// The layer.
    pub layer: usize,
    /// Dimensions of queries and keys, and of values.
    pub of: [usize; 2],
    /// True where both have one size, since one projection packs them.
    pub joint: bool,
    /// For every number of dimensions of either, the squared error at the end of the network where only these are cut;
    /// not rising.
    pub error: [Vec<f32>; 2],
    /// Parameters, operations and bytes of one dimension of one head, of either; those of both in the first where they
    /// are joint.
    pub unit: [[f64; 3]; 2],
}

/// The removal of everything that may go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PruningOrder {
    /// Blocks in order of execution.
    pub blocks: Vec<BlockPruning>,
    /// The error where a whole layer is left out; none where it cannot be.
    pub layers: Vec<Option<f32>>,
    /// Heads whose dimension may be cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dimensions: Vec<Dimensions>,
    /// Views that it was measured on.
    pub views: usize,
    /// Seed of the views.
    pub seed: u64,
}

impl PruningOrder {
    /// The block of a layer.
    pub fn block(&self, layer: usize, kind: BlockKind) -> Option<&BlockPruning> {
        self.blocks.iter().find(|b| (b.layer, b.kind) == (layer, kind))
    }

    /// True where orders name every unit once and errors are numbers: what a file says is not trusted.
    pub fn is_sound(&self) -> bool {
        let errors = |e: &[f32]| e.iter().all(|e| e.is_finite() && *e >= 0.0);
        self.blocks.iter().all(|b| {
            b.layer < self.layers.len() && b.kept.is_sound() && b.error.len() == b.kept.units() + 1 && errors(&b.error)
        }) && self.layers.iter().flatten().all(|e| e.is_finite() && *e >= 0.0)
            && self.dimensions.iter().all(|d| {
                let sized = d.error.iter().zip(d.of).all(|(e, of)| errors(e) && e.len() == of + 1 && of > 0);
                sized && (!d.joint || d.of[0] == d.of[1]) && d.unit.iter().flatten().all(|u| u.is_finite())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priority_and_soundness() {
        let order = KeepOrder::Order(vec![2, 0, 1]);
        assert_eq!((order.at(2), order.at(0), order.by_priority()), (vec![0, 1], vec![], vec![1, 0, 2]));
        let sets = KeepOrder::Sets(vec![vec![], vec![1], vec![1, 2], vec![0, 1, 2]]);
        assert_eq!((sets.units(), sets.at(2), sets.by_priority()), (3, vec![1, 2], vec![1, 2, 0]));
        let whole = |kept: KeepOrder, error: Vec<f32>| PruningOrder {
            blocks: vec![BlockPruning { layer: 0, kind: BlockKind::Heads, kept, error }],
            layers: vec![None],
            ..PruningOrder::default()
        };
        assert!(whole(sets, vec![3.0, 2.0, 1.0, 0.0]).is_sound());
        assert!(!whole(order, vec![3.0, 2.0, 1.0]).is_sound());
        assert!(!whole(KeepOrder::Order(vec![0, 0, 1]), vec![1.0; 4]).is_sound());
        assert!(!whole(KeepOrder::Sets(vec![vec![], vec![5]]), vec![1.0; 2]).is_sound());
        assert!(!whole(KeepOrder::Order(vec![0]), vec![f32::NAN; 2]).is_sound());
    }
}
