//! Budgets: what a descendant may cost, how far it may be thinned, and how much of everything it then has.

use serde::{Deserialize, Serialize};

use crate::learngene::BlockKind;

/// What may be thinned, and how far.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Thin heads.
    pub heads: bool,
    /// Thin neurons.
    pub neurons: bool,
    /// Leave out whole layers.
    pub depth: bool,
    /// Cut the dimension of heads.
    pub dims: bool,
    /// Layers that may be touched; all where none are named.
    pub layers: Option<Vec<usize>>,
    /// Heads that every layer keeps at least.
    pub min_heads: usize,
    /// Neurons that every FFN keeps at least.
    pub min_neurons: usize,
    /// Neurons are kept in multiples of this.
    pub multiple: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            heads: true,
            neurons: true,
            depth: true,
            dims: false,
            layers: None,
            min_heads: 1,
            min_neurons: 16,
            multiple: 16,
        }
    }
}

impl Limits {
    pub(super) fn touches(&self, layer: usize) -> bool {
        self.layers.as_ref().is_none_or(|l| l.contains(&layer))
    }
}

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Budget {
    /// The share of the parameters of all heads and FFNs that is kept.
    Share(f64),
    /// Parameters of the whole model.
    Parameters(f64),
    /// Multiply-accumulate operations of the whole model for one image.
    Macs(f64),
    /// Bytes of the file.
    Bytes(f64),
    /// Milliseconds for one image on this machine.
    Latency(f64),
}

/// One layer of a plan.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerBudget {
    /// True where the layer is left out.
    pub dropped: bool,
    /// Heads that are kept.
    pub heads: Option<usize>,
    /// Heads that there were.
    pub of_heads: Option<usize>,
    /// Dimensions of queries and keys, and of values, of each head, where they are cut, and how many there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dims: Option<[[usize; 2]; 2]>,
    /// Neurons that are kept.
    pub neurons: Option<usize>,
    /// Neurons that there were.
    pub of_neurons: Option<usize>,
}

/// Counts for every block, and what is predicted of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Allocation {
    /// The budget.
    pub budget: Budget,
    /// By layer.
    pub layers: Vec<LayerBudget>,
    /// Sum of the errors of the blocks, each measured alone.
    pub predicted_error: f64,
    /// The share of the parameters of all heads and FFNs that is kept.
    pub share: f64,
    /// Parameters of the whole model, as predicted.
    pub parameters: f64,
    /// Multiply-accumulate operations for one image, as predicted.
    pub macs: f64,
    /// Bytes of the file, as predicted.
    pub bytes: f64,
    /// Milliseconds for one image on this machine, as predicted; where it was measured what blocks take.
    pub latency: Option<f64>,
}

impl Allocation {
    /// Layers of the ancestor that are there.
    pub fn kept_layers(&self) -> Vec<usize> {
        (0..self.layers.len()).filter(|&l| !self.layers[l].dropped).collect()
    }

    /// Units of a block.
    pub(super) fn count(&self, layer: usize, kind: BlockKind) -> Option<usize> {
        let layer = self.layers.get(layer).filter(|l| !l.dropped)?;
        match kind {
            BlockKind::Heads => layer.heads,
            BlockKind::Neurons => layer.neurons,
        }
    }
}
