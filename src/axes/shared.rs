//! Matrices that are shared by design: those of a block that is called again and again (ALBERT), or of a module that
//! several streams pass.
//!
//! Every use of a weight has factors of its own, since exporters store equal constants once. A matrix of learned
//! numbers is no such constant: where several contractions take it, one module is called several times. Its channels
//! are then the same in all of them, and so are the heads and the neurons that they hold: to resize one call is to
//! resize them all, and the file keeps one matrix. Of a matrix whose elements are all equal nothing can be told.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::factors::Dim;
use super::typing::{Typing, Use};
use crate::onnx::{is_float, is_uniform};
use crate::ops::{self, Mark};

impl<'m> Typing<'m> {
    /// Makes the channels of every shared matrix the same in all its uses.
    pub(super) fn join_shared(&mut self) {
        let mut counts: HashMap<&str, usize> = HashMap::new();
        self.uses.iter().for_each(|u| *counts.entry(u.name.as_str()).or_default() += 1);
        let mut uses: BTreeMap<&'m str, Vec<usize>> = BTreeMap::new();
        for (u, of_use) in self.uses.iter().enumerate().filter(|(_, u)| counts[u.name.as_str()] > 1) {
            if let Some((&name, _)) = self.weights.get_key_value(of_use.name.as_str()) {
                uses.entry(name).or_default().push(u);
            }
        }
        uses.retain(|name, uses| {
            uses.iter().all(|&u| self.is_matrix(&self.uses[u])) && !is_uniform(self.weights[name])
        });
        if uses.is_empty() {
            return;
        }
        let products: HashSet<usize> = self.contractions.iter().map(|c| c.node).collect();
        for (name, mut uses) in uses {
            uses.retain(|&u| self.meets(&self.uses[u], &products));
            if uses.len() < 2 {
                continue;
            }
            self.shared.insert(name);
            let dims: Vec<Vec<Dim>> = uses.iter().map(|&u| self.uses[u].dims.clone()).collect();
            for (a, b) in dims[1..].iter().flat_map(|other| dims[0].iter().zip(other)) {
                // Borders that cannot agree keep uses apart: they are resized each by itself.
                let _ = self.factors.unify(a, b);
            }
        }
    }

    /// True for a matrix of channels; one that mixes places of an image is a table.
    fn is_matrix(&self, of_use: &Use) -> bool {
        let wide = of_use.dims.iter().filter(|d| self.factors.size(d) > 1).count() > 1;
        let mut factors = of_use.dims.iter().flat_map(|d| self.factors.all_leaves(d));
        wide && is_float(self.weights[of_use.name.as_str()]) && factors.all(|f| self.factors.spatial(f).is_none())
    }

    /// True where a contraction takes the whole weight, moved or not.
    fn meets(&self, of_use: &Use, products: &HashSet<usize>) -> bool {
        let links = self.links();
        let keeps = |k: usize| ops::of(&self.graph.node[k]).is(Mark::Keeps);
        if !keeps(of_use.node) {
            return products.contains(&of_use.node) && of_use.input < 2;
        }
        let values = || links.outputs(of_use.node);
        let moved = links.downstream(values()).through(keeps).flat_map(|k| links.outputs(k));
        values().chain(moved).flat_map(|x| links.users(x)).any(|k| products.contains(k))
    }
}
