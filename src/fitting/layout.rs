//! How a tensor is a matrix: which of its factors are rows, and which are columns.

use ndarray::{Array2, ArrayD, IxDyn};

use crate::axes::{Dim, Factor, Typing};
use crate::error::Result;

/// How the elements of a tensor make rows and columns.
#[derive(Clone, Debug)]
pub(super) struct MatrixLayout {
    /// Sizes of the factors, in the order of memory.
    sizes: Vec<usize>,
    /// Factors of the rows, then those of the columns.
    order: Vec<usize>,
    columns: usize,
}

impl MatrixLayout {
    /// The layout whose columns run over `columns`, in that order; `None` where a factor is not there.
    pub(super) fn new(typing: &Typing, dims: &[Dim], columns: &[Factor]) -> Option<MatrixLayout> {
        let leaves: Vec<Factor> = dims.iter().flat_map(|d| typing.factors.leaves(d)).collect();
        let inner: Vec<usize> = columns.iter().map(|c| leaves.iter().position(|l| l == c)).collect::<Option<_>>()?;
        let mut order: Vec<usize> = (0..leaves.len()).filter(|i| !inner.contains(i)).collect();
        order.extend(&inner);
        let sizes: Vec<usize> = leaves.iter().map(|&l| typing.factors.factor_size(l)).collect();
        (order.len() == sizes.len()).then_some(MatrixLayout { sizes, order, columns: typing.factors.size(columns) })
    }

    pub(super) fn matrix(&self, tensor: &ArrayD<f32>) -> Result<Array2<f32>> {
        let rows = tensor.len() / self.columns.max(1);
        let shaped = tensor
            .to_shape(IxDyn(&self.sizes))
            .map(|t| t.permuted_axes(self.order.clone()).as_standard_layout().into_owned());
        match shaped.and_then(|t| t.into_shape_with_order((rows, self.columns))) {
            Ok(matrix) => Ok(matrix),
            Err(_) => bail!(
                Internal,
                "a value of shape {:?} was expected to have the factors {:?}",
                tensor.shape(),
                self.sizes
            ),
        }
    }

    pub(super) fn tensor(&self, matrix: &Array2<f32>, shape: &[usize]) -> Result<ArrayD<f32>> {
        let permuted: Vec<usize> = self.order.iter().map(|&o| self.sizes[o]).collect();
        let mut back = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(i, &o)| back[o] = i);
        let shaped = matrix.to_shape(IxDyn(&permuted)).map(|t| t.permuted_axes(back).as_standard_layout().into_owned());
        match shaped.and_then(|t| t.into_shape_with_order(IxDyn(shape))) {
            Ok(tensor) => Ok(tensor),
            Err(_) => bail!(Internal, "a matrix of {:?} does not make a value of shape {shape:?}", matrix.dim()),
        }
    }

    /// The layout of attention probabilities, [.., queries, keys]: columns run over heads, queries and keys. Both may
    /// be the same factor.
    pub(super) fn of_probabilities(typing: &Typing, dims: &[Dim], heads: &[Factor]) -> Option<MatrixLayout> {
        let leaves: Vec<Factor> = dims.iter().flat_map(|d| typing.factors.leaves(d)).collect();
        let last: usize = dims.iter().rev().take(2).map(|d| typing.factors.leaves(d).len()).sum();
        let front = leaves.len() - last;
        let heads: Vec<usize> =
            heads.iter().map(|h| leaves[..front].iter().position(|f| f == h)).collect::<Option<_>>()?;
        let mut order: Vec<usize> = (0..front).filter(|i| !heads.contains(i)).collect();
        order.extend(&heads);
        order.extend(front..leaves.len());
        let sizes: Vec<usize> = leaves.iter().map(|&l| typing.factors.factor_size(l)).collect();
        let columns = heads.iter().copied().chain(front..leaves.len()).map(|i| sizes[i]).product();
        Some(MatrixLayout { sizes, order, columns })
    }

    /// The same elements in the same order, as a single row.
    pub(super) fn flat(&self) -> MatrixLayout {
        MatrixLayout { columns: self.sizes.iter().product(), ..self.clone() }
    }

    /// For every element of the tensor, its place in the matrix, row by row.
    pub(super) fn places(&self) -> Vec<usize> {
        let count: usize = self.sizes.iter().product();
        let mut strides = vec![0; self.sizes.len()];
        let mut stride = 1;
        for &o in self.order.iter().rev() {
            strides[o] = stride;
            stride *= self.sizes[o];
        }
        let place = |index: usize| {
            let mut rest = index;
            let mut at = 0;
            for (n, stride) in self.sizes.iter().zip(&strides).rev() {
                at += rest % n * stride;
                rest /= n;
            }
            at
        };
        (0..count).map(place).collect()
    }
}
