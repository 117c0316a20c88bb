//! Typing of operators that pick elements by computed indices.

use super::vocabulary::Rule;
use crate::axes::factors::Dim;
use crate::error::Result;
use crate::graph::Attributes;

impl Rule<'_, '_> {
    pub(super) fn gather(&mut self) -> Result<Vec<Dim>> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let a = self.axis(self.node.int("axis").unwrap_or(0), x.len())?;
        Ok(x[..a].iter().chain(&indices).chain(&x[a + 1..]).cloned().collect())
    }

    /// Every element of the indices stands where its value goes: along the axis that is gathered the order is computed,
    /// along all others that are taken whole the input's own.
    pub(super) fn gather_elements(&mut self) -> Result<Vec<Dim>> {
        let (x, indices) = (self.input(0)?, self.input(1)?);
        let a = self.axis(self.node.int("axis").unwrap_or(0), x.len())?;
        if x.len() != indices.len() {
            return Err(self.fail("its indices have another rank than its input"));
        }
        let mut out = Vec::with_capacity(x.len());
        for (k, (x, indices)) in x.iter().zip(&indices).enumerate() {
            let length = self.size(indices);
            if k != a && self.size(x) == length {
                self.unify(x, indices);
                out.push(x.clone());
            } else {
                out.push(self.typing.factors.fresh(length));
            }
        }
        Ok(out)
    }

    pub(super) fn gather_nd(&mut self) -> Result<Vec<Dim>> {
        let (x, shape) = (self.input(0)?, self.shape(1)?);
        let (&last, lead) = shape.split_last().ok_or_else(|| self.fail("its indices are a scalar"))?;
        let indexed = last + self.node.int("batch_dims").unwrap_or(0).max(0) as usize;
        if indexed > x.len() {
            return Err(self.fail("its indices are longer than its input has axes"));
        }
        let mut out = self.fresh(lead);
        out.extend_from_slice(&x[indexed..]);
        Ok(out)
    }

    pub(super) fn scatter_nd(&mut self) -> Result<Vec<Dim>> {
        // What is not indexed is the same in the values that are put in; a table of places that is too small for them
        // is said.
        let (x, indices, updates) = (self.input(0)?, self.shape(1)?, self.input(2)?);
        let indexed = indices.last().copied().unwrap_or(0);
        let places = indices.len().saturating_sub(1);
        let sizes: Vec<usize> = updates.iter().map(|d| self.size(d)).collect();
        if indexed > x.len()
            || sizes.get(..places) != indices.get(..places)
            || sizes.len() != places + x.len() - indexed
        {
            return Err(self
                .fail(&format!("values of dimensions {sizes:?} do not fit places of dimensions {indices:?}"))
                .hint("where a simplifier made constants of the places, give the model as it was before"));
        }
        for (a, b) in x[indexed..].iter().zip(&updates[places..]) {
            self.unify(a, b);
        }
        Ok(x)
    }

    pub(super) fn top_k(&mut self) -> Result<Vec<Vec<Dim>>> {
        let mut s = self.shape(0)?;
        let a = self.axis(self.node.int("axis").unwrap_or(-1), s.len())?;
        s[a] = self.sizes(1)?.first().copied().unwrap_or(1);
        Ok(vec![self.fresh(&s), self.fresh(&s)])
    }

    pub(super) fn one_hot(&mut self) -> Result<Vec<Dim>> {
        let mut s = self.shape(0)?;
        let depth = self.sizes(1)?.first().copied().unwrap_or(1);
        let a = self.axis(self.node.int("axis").unwrap_or(-1), s.len() + 1)?;
        s.insert(a, depth);
        Ok(self.fresh(&s))
    }
}
