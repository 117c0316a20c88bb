//! What becomes of the axes and the weights of a graph.

use std::collections::{BTreeMap, HashMap};

use crate::axes::factors::{Dim, Factor, Factors};
use crate::error::Result;
use crate::onnx::proto::TensorProto;

/// New rows of a weight axis as sums of old ones: for each new position, the old positions and their coefficients.
pub type LinearCombination = Vec<Vec<(usize, f32)>>;

/// What becomes of the factors and of single weights.
#[derive(Clone, Debug, Default)]
pub struct ResizePlan {
    pub(super) gathers: BTreeMap<Factor, Vec<usize>>,
    pub(super) mixtures: BTreeMap<(usize, usize), LinearCombination>,
    pub(super) spreads: BTreeMap<(usize, usize, Factor), LinearCombination>,
    pub(super) replaced: HashMap<usize, Vec<f32>>,
    pub(super) operands: BTreeMap<(usize, usize), TensorProto>,
    pub(super) cuts: HashMap<(usize, usize), (usize, usize)>,
}

impl ResizePlan {
    /// Index i of the factor becomes what index `indices[i]` was.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`](crate::error::ErrorKind::Usage) where the factor has another plan already (layers that
    /// share it must be resized alike).
    pub fn gather(&mut self, factors: &Factors, factor: Factor, indices: Vec<usize>) -> Result<()> {
        if indices.is_empty() {
            bail!(Usage, "an axis cannot become empty");
        }
        match self.gathers.insert(factors.root(factor), indices.clone()) {
            Some(old) if old != indices => bail!(Usage, "an axis that several layers share was given two plans"),
            _ => Ok(()),
        }
    }

    /// Along one axis of one use (an index into [`Typing::uses`](crate::axes::Typing::uses)), rows are mixed instead of
    /// gathered.
    pub fn mix(&mut self, of_use: usize, axis: usize, mixture: LinearCombination) {
        self.mixtures.insert((of_use, axis), mixture);
    }

    /// Along one factor of one axis of one use, wherever the axis holds it, indices are mixed instead of gathered.
    pub fn spread(
        &mut self,
        factors: &Factors,
        of_use: usize,
        axis: usize,
        factor: Factor,
        mixture: LinearCombination,
    ) {
        self.spreads.insert((of_use, axis, factors.root(factor)), mixture);
    }

    /// One use of a weight gets new elements altogether, of the shape that the resized factors give it.
    pub fn replace(&mut self, of_use: usize, elements: Vec<f32>) {
        self.replaced.insert(of_use, elements);
    }

    /// Input `input` of node `node` becomes a new initializer.
    pub fn operand(&mut self, node: usize, input: usize, tensor: TensorProto) {
        self.operands.insert((node, input), tensor);
    }

    /// The Slice `node` takes the elements from `first` to before `last` of an axis, whatever the typing says of its
    /// borders.
    pub fn cut(&mut self, node: usize, axis: usize, first: usize, last: usize) {
        self.cuts.insert((node, axis), (first, last));
    }

    /// The plan of a factor.
    pub fn indices(&self, factors: &Factors, factor: Factor) -> Option<&[usize]> {
        self.gathers.get(&factors.root(factor)).map(Vec::as_slice)
    }

    /// True where nothing changes.
    pub fn is_empty(&self) -> bool {
        self.gathers.is_empty()
            && self.mixtures.is_empty()
            && self.spreads.is_empty()
            && self.replaced.is_empty()
            && self.operands.is_empty()
    }

    /// Old positions of each new one along a dimension; `None` where it stays as it is.
    pub fn positions(&self, factors: &Factors, dim: &[Factor]) -> Option<Vec<usize>> {
        let leaves = factors.leaves(dim);
        let lists: Vec<Option<Vec<usize>>> = leaves
            .iter()
            .map(|&f| match factors.segments(&[f]) {
                Some(segments) => self.segment_positions(factors, &segments),
                None => self.gathers.get(&f).cloned(),
            })
            .collect();
        if lists.iter().all(Option::is_none) {
            return None;
        }
        let mut out = vec![0];
        for (&f, list) in leaves.iter().zip(lists) {
            let n = factors.factor_size(f);
            let list = list.unwrap_or_else(|| (0..n).collect());
            out = out.iter().flat_map(|&o| list.iter().map(move |&i| o * n + i)).collect();
        }
        Some(out)
    }

    /// What becomes of an axis `(use, axis)`, or of a part of it: mixtures along factors, and gathers along the others.
    pub(super) fn mixed(&self, factors: &Factors, (u, axis): (usize, usize), dim: &[Factor]) -> LinearCombination {
        let mut out: LinearCombination = vec![vec![(0, 1.0)]];
        for &f in &factors.leaves(dim) {
            let n = factors.factor_size(f);
            let list: LinearCombination = if let Some(rows) = self.spreads.get(&(u, axis, f)) {
                rows.clone()
            } else if let Some(segments) = factors.segments(&[f]) {
                let mut offset = 0;
                let mut rows = LinearCombination::new();
                for s in &segments {
                    let shift = |row: Vec<(usize, f32)>| row.into_iter().map(|(i, c)| (offset + i, c)).collect();
                    rows.extend(self.mixed(factors, (u, axis), s).into_iter().map(shift));
                    offset += factors.size(s);
                }
                rows
            } else {
                let kept = self.gathers.get(&f).cloned().unwrap_or_else(|| (0..n).collect());
                kept.into_iter().map(|i| vec![(i, 1.0)]).collect()
            };
            let times = |outer: &Vec<(usize, f32)>, inner: &Vec<(usize, f32)>| -> Vec<(usize, f32)> {
                outer.iter().flat_map(|&(o, c)| inner.iter().map(move |&(i, d)| (o * n + i, c * d))).collect()
            };
            out = out.iter().flat_map(|outer| list.iter().map(move |inner| times(outer, inner))).collect();
        }
        out
    }

    /// True where an axis of one use is mixed along a factor of its dimension.
    pub(super) fn is_spread(&self, factors: &Factors, (u, axis): (usize, usize), dim: &[Factor]) -> bool {
        let is_mixed = |f: Factor| self.spreads.contains_key(&(u, axis, f));
        !self.spreads.is_empty() && factors.all_leaves(dim).into_iter().any(is_mixed)
    }

    fn segment_positions(&self, factors: &Factors, segments: &[Dim]) -> Option<Vec<usize>> {
        let lists: Vec<_> = segments.iter().map(|s| self.positions(factors, s)).collect();
        if lists.iter().all(Option::is_none) {
            return None;
        }
        let (mut out, mut offset) = (Vec::new(), 0);
        for (s, list) in segments.iter().zip(lists) {
            let n = factors.size(s);
            out.extend(list.unwrap_or_else(|| (0..n).collect()).into_iter().map(|i| offset + i));
            offset += n;
        }
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_of_a_packed_axis() {
        let mut factors = Factors::default();
        let (three, heads, dim) = (factors.fresh(3), factors.fresh(4), factors.fresh(2));
        let packed: Dim = three.iter().chain(&heads).chain(&dim).copied().collect();
        let mut plan = ResizePlan::default();
        plan.gather(&factors, heads[0], vec![3, 1]).unwrap();
        assert_eq!(plan.positions(&factors, &packed).unwrap(), [6, 7, 2, 3, 14, 15, 10, 11, 22, 23, 18, 19]);
        assert_eq!(plan.positions(&factors, &three), None);
        assert!(plan.gather(&factors, heads[0], vec![0]).is_err());
    }

    #[test]
    fn positions_of_a_sum() {
        let mut factors = Factors::default();
        let packed = factors.fresh(10);
        let q = factors.cut_atom(&packed, 4);
        let mut plan = ResizePlan::default();
        plan.gather(&factors, q[0], vec![2]).unwrap();
        assert_eq!(plan.positions(&factors, &packed).unwrap(), [2, 4, 5, 6, 7, 8, 9]);
    }
}
