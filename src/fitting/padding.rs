//! Padding: which tokens of a sample are real, and which parts of its values are theirs.

use ndarray::{Array2, ArrayD, Axis};

use super::part::Values;
use crate::anatomy::sequence_axis;
use crate::axes::{Factor, Typing};

/// The input whose zeros are padding, and the axis of tokens along which it lies.
#[derive(Clone, Debug)]
pub struct Mask {
    input: String,
    axis: Factor,
}

impl Mask {
    /// The mask of a typed network, where it has the input.
    pub fn new(typing: &Typing, input: Option<&str>) -> Option<Mask> {
        let input = input?;
        Some(Mask { input: input.to_string(), axis: sequence_axis(typing, input)? })
    }

    /// The tokens of a sample that are real, by their places.
    fn tokens(&self, values: &Values) -> Option<Vec<usize>> {
        let mask = values.get(&self.input)?;
        Some(mask.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect())
    }

    /// The same for an axis of factors, where it is the axis of tokens.
    pub fn along(&self, axis: &[Factor], values: &Values) -> Option<Vec<usize>> {
        if axis == [self.axis] { self.tokens(values) } else { None }
    }

    /// The rows of a matrix that are those of real tokens, where its rows run over these factors; none where they do
    /// not run over tokens.
    pub fn rows(&self, typing: &Typing, factors: &[Factor], values: &Values) -> Option<Vec<usize>> {
        let at = factors.iter().position(|f| *f == self.axis)?;
        let behind = typing.factors.size(&factors[at + 1..]);
        let (tokens, count) = (self.tokens(values)?, typing.factors.factor_size(self.axis));
        let is_real = |row: &usize| tokens.binary_search(&(row / behind.max(1) % count.max(1))).is_ok();
        Some((0..typing.factors.size(factors)).filter(is_real).collect())
    }

    /// A value without what is padding's along its axis of tokens, where it has one.
    pub fn part(&self, typing: &Typing, name: &str, value: ArrayD<f32>, values: &Values) -> ArrayD<f32> {
        let dims = typing.dims.get(name).map_or(&[][..], Vec::as_slice);
        let axis = dims.iter().position(|d| typing.factors.leaves(d)[..] == [self.axis]);
        match (axis, self.tokens(values)) {
            (Some(axis), Some(tokens)) if axis < value.ndim() => value.select(Axis(axis), &tokens),
            _ => value,
        }
    }
}

/// Some rows of a matrix; all where none are named.
pub fn chosen(matrix: Array2<f32>, rows: Option<&[usize]>) -> Array2<f32> {
    match rows {
        Some(rows) if rows.len() < matrix.nrows() => matrix.select(Axis(0), rows),
        _ => matrix,
    }
}
