//! Typing of norms over channels and of reductions.

use super::vocabulary::Rule;
use crate::axes::factors::Dim;
use crate::error::Result;
use crate::graph::Attributes;

impl Rule<'_, '_> {
    pub(super) fn channel_norm(&mut self) -> Result<Vec<Vec<Dim>>> {
        let x = self.input(0)?;
        for j in 1..self.inputs.len() {
            if let Some(Some(d)) = self.inputs.get(j).cloned()
                && d.len() == 1
                && x.len() > 1
                && self.size(&d[0]) == self.size(&x[1])
            {
                self.unify(&x[1], &d[0]);
            }
        }
        Ok(self.node.output.iter().map(|_| x.clone()).collect())
    }

    pub(super) fn reduce(&mut self) -> Result<Vec<Dim>> {
        let x = self.input(0)?;
        let keep = self.node.int("keepdims").unwrap_or(1) != 0;
        let axes = if self.node.op_type().starts_with("Arg") {
            Some(vec![self.node.int("axis").unwrap_or(0)])
        } else {
            self.list("axes", 1)?.filter(|l| !l.is_empty())
        };
        let axes: Vec<usize> = match axes {
            Some(list) => list.iter().map(|&a| self.axis(a, x.len())).collect::<Result<_>>()?,
            None if self.node.int("noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
            None => (0..x.len()).collect(),
        };
        Ok(x.into_iter()
            .enumerate()
            .filter(|(i, _)| keep || !axes.contains(i))
            .map(|(i, d)| if axes.contains(&i) { Dim::new() } else { d })
            .collect())
    }
}
