//! Arrays side by side: what training and judging by labels feed is one array a sample, and so the arrays of a sample
//! are laid into one row.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use ndarray::{Array4, ArrayView1, Axis};

use super::arrays::Arrays;
use super::dataset::Dataset;
use super::item::{Container, Labels, Opened, Sample, within};
use super::samples::Samples;
use super::texts::LabelsBy;
use crate::error::{Error, ErrorKind, Result};

/// Where the arrays of a sample lie in its row, which is `[1, length, 1]`: never mistaken for channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows {
    /// The arrays in their order.
    pub places: Vec<Place>,
    /// Numbers in a row.
    pub length: usize,
    /// The input at whose zeros tokens are padding.
    pub mask: Option<String>,
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
        let mut length = 0;
        let place = |(input, shape): (&str, &[usize])| {
            let first = length;
            length += shape.iter().product::<usize>();
            Place { input: input.to_string(), shape: shape.to_vec(), range: first..length }
        };
        let places: Vec<Place> = arrays.shapes().into_iter().map(place).collect();
        Rows { places, length, mask: arrays.mask().map(str::to_string) }
    }

    /// Arrays as a data set of rows, with their labels unless these are to be left aside.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for arrays of another shape, and those of [`Dataset::open`] for labels.
    pub fn dataset(&self, arrays: &Arrays, ignore_labels: bool) -> Result<Dataset> {
        if Rows::of(arrays) != *self {
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
        let content = Held { rows, digest: arrays.fingerprint() };
        let classes = arrays.classes().and_then(|labels| labels.classes.clone());
        let by_name = arrays.classes().is_some_and(|labels| labels.by == LabelsBy::Names);
        let opened = Opened { labels, classes, by_name, ..Opened::new(arrays.path(), content) };
        Dataset::of_parts(arrays.path(), vec![opened], ignore_labels)
    }
}

/// Rows in memory.
#[derive(Debug)]
struct Held {
    rows: Array4<f32>,
    digest: String,
}

impl Container for Held {
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
