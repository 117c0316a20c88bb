//! Padding: which tokens of a sample are real, and which parts of its values are theirs.

use ndarray::{Array2, ArrayD, Axis, Ix2};

use super::layout::MatrixLayout;
use super::subgraph::Values;
use crate::anatomy::sequence_axis;
use crate::axes::{Factor, Typing};
use crate::error::Result;

/// The input whose zeros are padding, and the axes of samples and of tokens along which it lies.
#[derive(Clone, Debug)]
pub struct Mask {
    input: String,
    /// None where a batch is one sample.
    samples: Option<Factor>,
    tokens: Factor,
}

impl Mask {
    /// The mask of a typed network, where it has the input.
    pub fn new(typing: &Typing, input: Option<&str>) -> Option<Mask> {
        let input = input?;
        let samples = typing.batch.map(|f| typing.factors.root(f)).filter(|_| typing.batch_size() > 1);
        Some(Mask { input: input.to_string(), samples, tokens: sequence_axis(typing, input)? })
    }

    /// True where factors run over its tokens.
    pub fn is_along(&self, factors: &[Factor]) -> bool {
        factors.contains(&self.tokens)
    }

    /// What is to be said where nothing that is fitted runs over its tokens.
    pub fn meets_nothing(&self) -> String {
        let what = "nothing that is fitted runs over the tokens of";
        format!("{what} `{}`: padding counts like any token; give texts of one length", self.input)
    }

    /// The tokens of one sample of a batch that are real, by their places, for an axis of factors that is the axis of
    /// tokens.
    pub fn along(&self, axis: &[Factor], batch: &Values, sample: usize) -> Option<Vec<usize>> {
        let mask = batch.get(&self.input).filter(|_| axis == [self.tokens])?;
        let row = mask.outer_iter().nth(sample)?;
        Some(row.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect())
    }

    /// The rows of a matrix that are those of real tokens, where its rows run over these factors; none where they do
    /// not run over tokens. A row that all samples share is real where one of them has it.
    pub fn rows(&self, typing: &Typing, factors: &[Factor], batch: &Values) -> Option<Vec<usize>> {
        let mask = batch.get(&self.input)?.view().into_dimensionality::<Ix2>().ok()?;
        let [tokens, samples] = [Some(self.tokens), self.samples].map(|axis| {
            let at = factors.iter().position(|f| Some(*f) == axis)?;
            Some((typing.factors.size(&factors[at + 1..]).max(1), typing.factors.factor_size(factors[at]).max(1)))
        });
        let place = |row: usize, (behind, count): (usize, usize)| row / behind % count;
        let tokens = tokens?;
        let is_real = |row: &usize| {
            let token = place(*row, tokens);
            let set = |sample: usize| mask.get((sample, token)).is_some_and(|v| *v != 0.0);
            match samples {
                Some(samples) => set(place(*row, samples)),
                None => (0..mask.nrows()).any(set),
            }
        };
        Some((0..typing.factors.size(factors)).filter(is_real).collect())
    }

    /// A value without what is padding's, [real tokens, the rest], where it runs over tokens; else the value.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Internal`] for a value of another shape than the network has.
    pub fn part(&self, typing: &Typing, name: &str, value: ArrayD<f32>, batch: &Values) -> Result<ArrayD<f32>> {
        let dims = typing.dims.get(name).map_or(&[][..], Vec::as_slice);
        let is_token = |f: &Factor| *f == self.tokens || Some(*f) == self.samples;
        let (rows, columns): (Vec<Factor>, Vec<Factor>) =
            dims.iter().flat_map(|d| typing.factors.leaves(d)).partition(is_token);
        match (self.rows(typing, &rows, batch), MatrixLayout::new(typing, dims, &columns)) {
            (Some(real), Some(layout)) => Ok(chosen(layout.matrix(&value)?, Some(&real)).into_dyn()),
            _ => Ok(value),
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
