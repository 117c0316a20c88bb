//! Typing of elementwise operators: what they align is the same.

use super::vocabulary::Rule;
use crate::axes::factors::Dim;
use crate::error::Result;

impl Rule<'_, '_> {
    /// The first input's dimensions, for every output.
    pub(super) fn same(&mut self) -> Result<Vec<Vec<Dim>>> {
        let x = self.input(0)?;
        Ok(self.node.output.iter().map(|_| x.clone()).collect())
    }

    pub(super) fn elementwise(&mut self) -> Result<Vec<Vec<Dim>>> {
        let given = self.given();
        let out = self.broadcast(&given);
        let norm = self.node.op_type().contains("Normalization");
        Ok((0..self.node.output.len())
            .map(|i| match (norm, i) {
                // Mean and inverse deviation; the fourth output of a skip norm is the sum.
                (true, 1 | 2) => {
                    let last = out.len().saturating_sub(1);
                    out.iter().enumerate().map(|(a, d)| if a == last { Dim::new() } else { d.clone() }).collect()
                }
                _ => out.clone(),
            })
            .collect())
    }
}
