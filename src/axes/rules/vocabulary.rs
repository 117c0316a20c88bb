//! The vocabulary that typing rules are written in.

use crate::axes::factors::Dim;
use crate::axes::limits::MAX_RANK;
use crate::axes::typing::{Conflict, Contraction, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, resolve_axis};
use crate::onnx::proto::NodeProto;

/// A node that is being typed.
pub(super) struct Rule<'t, 'm> {
    pub typing: &'t mut Typing<'m>,
    /// Its index.
    pub k: usize,
    pub node: &'m NodeProto,
    /// The dimensions of its inputs; `None` for one that is left out.
    pub inputs: Vec<Option<Vec<Dim>>>,
}

impl Rule<'_, '_> {
    pub(super) fn fail(&self, what: &str) -> Error {
        Error::new(ErrorKind::Typing, format!("`{}`: {what}", self.node.op_type()))
    }

    pub(super) fn input(&self, j: usize) -> Result<Vec<Dim>> {
        match self.inputs.get(j) {
            Some(Some(dims)) => Ok(dims.clone()),
            _ => Err(self.fail(&format!("input {j} is missing"))),
        }
    }

    pub(super) fn given(&self) -> Vec<Vec<Dim>> {
        self.inputs.iter().flatten().cloned().collect()
    }

    pub(super) fn size(&self, dim: &Dim) -> usize {
        self.typing.factors.size(dim)
    }

    pub(super) fn shape(&self, j: usize) -> Result<Vec<usize>> {
        Ok(self.input(j)?.iter().map(|d| self.size(d)).collect())
    }

    pub(super) fn fresh(&mut self, shape: &[usize]) -> Vec<Dim> {
        shape.iter().map(|&n| self.typing.factors.fresh(n)).collect()
    }

    pub(super) fn axis(&self, a: i64, rank: usize) -> Result<usize> {
        resolve_axis(a, rank).ok_or_else(|| self.fail(&format!("axis {a} is out of range for {rank} dimensions")))
    }

    /// A list of integers that is an attribute in old opsets and an input in new ones.
    pub(super) fn list(&self, name: &str, j: usize) -> Result<Option<Vec<i64>>> {
        let list = match (self.node.ints(name), self.node.input.get(j).filter(|x| !x.is_empty())) {
            (Some(list), _) => list.to_vec(),
            (None, None) => return Ok(None),
            (None, Some(x)) => match self.typing.ints(x) {
                Some(list) => list,
                None => {
                    let error = self.fail(&format!("its operand `{x}` depends on more than shapes"));
                    return Err(self.typing.unknown(error, x));
                }
            },
        };
        // Pads come in pairs.
        if list.len() > 2 * MAX_RANK {
            return Err(self.fail(&format!("its list of {} numbers is longer than any shape", list.len())));
        }
        Ok(Some(list))
    }

    /// An operand that is a list of sizes.
    pub(super) fn sizes(&self, j: usize) -> Result<Vec<usize>> {
        let list = self.list("", j)?.ok_or_else(|| self.fail(&format!("input {j} is missing")))?;
        list.iter()
            .map(|&v| usize::try_from(v).ok().filter(|&v| v < 1 << 40))
            .collect::<Option<_>>()
            .ok_or_else(|| self.fail(&format!("the sizes {list:?} cannot be")))
    }

    pub(super) fn unify(&mut self, a: &Dim, b: &Dim) {
        if let Err(mismatch) = self.typing.factors.unify(a, b) {
            self.typing.conflicts.push(Conflict { node: self.k, mismatch, inputs: self.node.input.clone() });
        }
    }

    pub(super) fn broadcast(&mut self, operands: &[Vec<Dim>]) -> Vec<Dim> {
        let rank = operands.iter().map(Vec::len).max().unwrap_or(0);
        let mut out = Vec::with_capacity(rank);
        for i in 0..rank {
            let mut column = operands
                .iter()
                .filter_map(|d| (i + d.len()).checked_sub(rank).map(|at| d[at].clone()))
                .filter(|d| !self.typing.factors.leaves(d).is_empty());
            let Some(first) = column.next() else {
                out.push(Dim::new());
                continue;
            };
            for other in column.collect::<Vec<_>>() {
                self.unify(&first, &other);
            }
            out.push(first);
        }
        out
    }

    pub(super) fn contraction(&mut self, summed: Dim, terms: Vec<Dim>, output: &[Dim]) {
        let macs = output.iter().chain([&summed]).fold(1u64, |n, d| n.saturating_mul(self.size(d) as u64));
        self.typing.contractions.push(Contraction { node: self.k, summed, terms, macs });
    }
}
