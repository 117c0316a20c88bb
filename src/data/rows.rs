//! Arrays side by side: what training and judging by labels feed is one array a sample, and so the arrays of a sample
//! are laid into one row.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use ndarray::{Array4, ArrayView1, ArrayView4, Axis, s};

use super::arrays::Arrays;
use super::dataset::Dataset;
use super::item::{Container, Labels, Opened, Sample, within};
use super::samples::Samples;
use super::texts::{LabelsBy, Side};
use crate::error::{Error, ErrorKind, Result};

/// The most lengths that texts are cut to; each is a graph of its own.
const MOST_LENGTHS: usize = 3;
/// Lengths that texts are cut to are multiples of this.
const STEP: usize = 8;
/// A length is worth its graph where it saves so large a share of all tokens.
const WORTH: f64 = 0.05;

/// Where the arrays of a sample lie in its row, which is `[1, length, 1]`: never mistaken for channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The arrays in their order.
    pub places: Vec<Place>,
    /// Numbers in a row.
    pub length: usize,
    /// The input at whose zeros tokens are padding.
    pub mask: Option<String>,
    /// Lengths that texts may be cut to where all behind is padding, ascending; the last is the whole. Empty where they
    /// may not be cut.
    pub lengths: Vec<usize>,
}

/// Where an array lies in a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The input that takes it.
    pub input: String,
    /// The shape of one sample.
    pub shape: Vec<usize>,
    /// Its numbers in the row.
    pub range: Range<usize>,
}

impl Rows {
    /// Rows of arrays, in the order of their inputs.
    pub fn of(arrays: &Arrays) -> Rows {
        let rows = Rows::laid(arrays);
        let lengths = rows.tokens(arrays).map_or_else(Vec::new, |(tokens, all)| lengths(&tokens, all));
        Rows { lengths, ..rows }
    }

    /// Where arrays lie, for rows that are not cut.
    fn laid(arrays: &Arrays) -> Rows {
        let mut length = 0;
        let place = |(input, shape): (&str, &[usize])| {
            let first = length;
            length += shape.iter().product::<usize>();
            Place { input: input.to_string(), shape: shape.to_vec(), range: first..length }
        };
        let places: Vec<Place> = arrays.shapes().into_iter().map(place).collect();
        let mask = arrays.mask().map(str::to_string);
        Rows { places, length, mask, lengths: Vec::new() }
    }

    /// How many tokens each text has, and how many with its padding; `None` where padding does not lie behind them,
    /// where not all arrays run over tokens alone, and where the model takes texts of one length.
    fn tokens(&self, arrays: &Arrays) -> Option<(Vec<usize>, usize)> {
        let report = arrays.texts().filter(|texts| texts.padded_on == Side::Right && arrays.takes_any_length())?;
        let all = report.padded_to;
        let of_tokens = self.mask.is_some() && self.places.iter().all(|place| place.shape == [all]);
        Some((arrays.tokens().filter(|_| of_tokens)?, all))
    }

    /// The same of texts that are cut to a length: what is behind it is left out.
    pub fn cut(&self, length: usize) -> Rows {
        let cut = |p: &Place| Place { shape: vec![length], range: p.range.start..p.range.start + length, ..p.clone() };
        Rows { places: self.places.iter().map(cut).collect(), ..self.clone() }
    }

    /// The least length that a batch of rows may be cut to; `None` where that is all of it.
    pub fn shortest(&self, batch: ArrayView4<f32>) -> Option<usize> {
        let place = self.places.iter().find(|place| Some(&place.input) == self.mask.as_ref())?;
        let real = |row: ArrayView1<f32>| row.iter().rposition(|v| *v != 0.0).map_or(0, |last| last + 1);
        let longest = batch.slice(s![.., 0, place.range.clone(), 0]).outer_iter().map(real).max()?;
        self.length_of(longest).filter(|length| Some(length) != self.lengths.last())
    }

    /// The length that a text of so many tokens is cut to.
    fn length_of(&self, tokens: usize) -> Option<usize> {
        self.lengths.iter().copied().find(|length| *length >= tokens)
    }

    /// Arrays as a data set of rows, with their labels unless these are to be left aside.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for arrays of another shape, and those of [`Dataset::open`] for labels.
    pub fn dataset(&self, arrays: &Arrays, ignore_labels: bool) -> Result<Dataset> {
        let own = Rows::laid(arrays);
        if (&own.places, &own.mask) != (&self.places, &self.mask) {
            return Err(Error::new(ErrorKind::Usage, "its arrays are of other shapes than those to train on")
                .at(arrays.path())
                .hint("cut or pad both to the same length"));
        }
        let mut rows = Array4::zeros((arrays.len(), 1, self.length, 1));
        let whole = arrays.select(&(0..arrays.len()).collect::<Vec<_>>());
        for (i, mut row) in rows.outer_iter_mut().enumerate() {
            for (place, (_, array)) in self.places.iter().zip(&whole.arrays) {
                let own = array.index_axis(Axis(0), i);
                let values = own.iter().copied().collect::<Vec<f32>>();
                row.slice_mut(ndarray::s![0, place.range.clone(), 0]).assign(&ArrayView1::from(&values));
            }
        }
        let labels = match (ignore_labels, arrays.labels()) {
            (true, _) => Labels::Ignored,
            (false, Some(labels)) => Labels::Present(labels.to_vec()),
            (false, None) => Labels::Absent(arrays.no_labels()),
        };
        let content = HeldRows { rows, digest: arrays.fingerprint() };
        let classes = arrays.classes().and_then(|labels| labels.classes.clone());
        let by_name = arrays.classes().is_some_and(|labels| labels.by == LabelsBy::Names);
        let opened = Opened { labels, classes, by_name, ..Opened::new(arrays.path(), content) };
        let set = Dataset::of_parts(arrays.path(), vec![opened], ignore_labels)?;
        let tokens = self.tokens(arrays).filter(|_| self.lengths.len() > 1).map(|(tokens, _)| tokens);
        match tokens.and_then(|tokens| tokens.iter().map(|n| self.length_of(*n)).collect()) {
            Some(lengths) => set.of_lengths(lengths),
            None => Ok(set),
        }
    }
}

/// Few lengths for texts of these tokens, `all` with their padding: those that leave least padding.
fn lengths(tokens: &[usize], all: usize) -> Vec<usize> {
    let run = |lengths: &[usize]| -> usize {
        tokens.iter().map(|n| lengths.iter().find(|length| *length >= n).copied().unwrap_or(all)).sum()
    };
    let mut found = vec![all];
    while found.len() < MOST_LENGTHS {
        let with = |more: usize| {
            let mut lengths = [&[more], &found[..]].concat();
            lengths.sort_unstable();
            lengths
        };
        let best = (STEP..all).step_by(STEP).map(with).min_by_key(|lengths| run(lengths));
        match best.filter(|best| (run(best) as f64) < (1.0 - WORTH) * run(&found) as f64) {
            Some(best) => found = best,
            None => break,
        }
    }
    found
}

/// Rows in memory.
#[derive(Debug)]
struct HeldRows {
    rows: Array4<f32>,
    digest: String,
}

impl Container for HeldRows {
    fn len(&self) -> usize {
        self.rows.len_of(Axis(0))
    }

    fn sample(&self, index: usize) -> Result<Sample<'_>> {
        Ok(Sample::tensor(self.rows.view().index_axis_move(Axis(0), index)))
    }

    fn name<'a>(&'a self, path: &Path, index: usize) -> Cow<'a, Path> {
        within(path, format_args!("sample {index}"))
    }

    fn tensor_shape(&self) -> Option<[usize; 3]> {
        let (_, channels, height, width) = self.rows.dim();
        Some([channels, height, width])
    }

    fn digest(&self) -> Option<&str> {
        Some(&self.digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_few_and_leave_little_padding() {
        let texts = |counts: &[(usize, usize)]| -> Vec<usize> {
            counts.iter().flat_map(|&(tokens, count)| std::iter::repeat_n(tokens, count)).collect()
        };
        assert_eq!(lengths(&texts(&[(7, 50), (30, 50), (64, 1)]), 64), [8, 32, 64]);
        // One that saves little is none.
        assert_eq!(lengths(&texts(&[(60, 50), (56, 5), (64, 1)]), 64), [64]);
        assert_eq!(lengths(&texts(&[(3, 9)]), 8), [8]);
        let spread: Vec<usize> = (1..=64).collect();
        assert_eq!(lengths(&spread, 64).len(), MOST_LENGTHS);
    }

    #[test]
    fn a_batch_is_as_long_as_its_longest_text() {
        let place = |input: &str, first| Place { input: input.into(), shape: vec![20], range: first..first + 20 };
        let places = vec![place("ids", 0), place("mask", 20)];
        let rows = Rows { places, length: 40, mask: Some("mask".into()), lengths: vec![8, 16, 20] };
        let batch = |tokens: &[usize]| {
            Array4::from_shape_fn((tokens.len(), 1, 40, 1), |(text, _, at, _)| match at.checked_sub(20) {
                None => 7.0,
                Some(at) => f32::from(at < tokens[text]),
            })
        };
        for (tokens, length) in [(&[3, 8][..], Some(8)), (&[9, 2], Some(16)), (&[16], Some(16)), (&[17, 1], None)] {
            assert_eq!(rows.shortest(batch(tokens).view()), length, "{tokens:?}");
        }
        let cut = rows.cut(8);
        assert_eq!(cut.places.iter().map(|p| p.range.clone()).collect::<Vec<_>>(), [0..8, 20..28]);
        assert_eq!((cut.places[1].shape.as_slice(), cut.length), (&[8][..], 40));
        assert_eq!(Rows { lengths: vec![20], ..rows.clone() }.shortest(batch(&[3]).view()), None);
    }
}
