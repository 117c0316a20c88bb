//! Typing of recurrent layers.

use super::vocabulary::Rule;
use crate::axes::factors::Dim;
use crate::axes::typing::Contraction;
use crate::error::Result;
use crate::graph::Attributes;

impl Rule<'_, '_> {
    /// LSTM and GRU: what goes in is summed over by a weight, the hidden state keeps its size. Outputs are all states
    /// [steps, directions, n, hidden] and the last ones [directions, n, hidden]; with `layout` 1 the batch comes first.
    pub(super) fn recurrence(&mut self, gates: usize) -> Result<Vec<Vec<Dim>>> {
        let (x, w, r) = (self.input(0)?, self.input(1)?, self.input(2)?);
        let ([a, b, features], [directions, _, summed], [_, gated, hidden]) = (&x[..], &w[..], &r[..]) else {
            return Err(self.fail("its input and its weights want three dimensions"));
        };
        let batch_first = self.node.int("layout").unwrap_or(0) != 0;
        let (steps, n) = if batch_first { (b, a) } else { (a, b) };
        if self.size(gated) != gates * self.size(hidden) {
            return Err(self.fail("its recurrent weights do not fit their hidden state"));
        }
        self.unify(features, summed);
        let (hidden, directions) = (hidden.clone(), directions.clone());
        let rest = self.inputs.iter().enumerate().filter(|(j, _)| *j > 0).flat_map(|(_, dims)| dims.iter().flatten());
        let state: Vec<Dim> = rest.filter(|d| *d != summed).cloned().collect();
        let label = self.k;
        self.typing.pin(label, state.into_iter().chain([steps.clone(), n.clone()]));
        let steps_of = [steps, n, &directions].iter().fold(1u64, |m, d| m.saturating_mul(self.size(d) as u64));
        let weights = (self.size(gated) as u64).saturating_mul((self.size(features) + self.size(&hidden)) as u64);
        let macs = steps_of.saturating_mul(weights);
        self.typing.contractions.push(Contraction { node: self.k, summed: Dim::new(), terms: Vec::new(), macs });
        let (all, last) = match batch_first {
            true => (vec![n, steps, &directions, &hidden], vec![n, &directions, &hidden]),
            false => (vec![steps, &directions, n, &hidden], vec![&directions, n, &hidden]),
        };
        let whole = |dims: &[&Dim]| dims.iter().map(|d| (*d).clone()).collect::<Vec<Dim>>();
        Ok((0..self.node.output.len()).map(|i| whole(if i == 0 { &all } else { &last })).collect())
    }
}
