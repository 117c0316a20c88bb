//! What a model runs on, whatever it is made from: batches of arrays, one for each of its inputs.

use ndarray::{Array2, Array4, ArrayD, ArrayViewD, Axis};

use super::item::IMAGE;
use super::loader::{Batch, Loader};
use crate::error::Result;

/// Some samples that follow each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Inputs {
    /// An array for each data input of the model, by its name, whose first axis is the sample. That of pictures is
    /// called `image` whatever the input is.
    pub arrays: Vec<(String, ArrayD<f32>)>,
    /// Which tokens are real and not padding, `[samples, tokens]`, where that is known.
    pub real: Option<Array2<bool>>,
    /// Which of the real tokens stand for content: special tokens do not, where they are known.
    pub content: Option<Array2<bool>>,
}

impl Inputs {
    /// Pictures alone, `[pictures, channels, height, width]`.
    pub fn of_images(images: Array4<f32>) -> Inputs {
        Inputs { arrays: vec![(IMAGE.to_string(), images.into_dyn())], real: None, content: None }
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.arrays.first().map_or(0, |(_, a)| a.len_of(Axis(0)))
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Views of the arrays, as a session takes them.
    pub fn views(&self) -> Vec<(&str, ArrayViewD<'_, f32>)> {
        self.arrays.iter().map(|(name, a)| (name.as_str(), a.view())).collect()
    }

    /// Some of the samples, by their places.
    pub fn select(&self, samples: &[usize]) -> Inputs {
        let rows = |marks: &Option<Array2<bool>>| marks.as_ref().map(|m| m.select(Axis(0), samples));
        let arrays = self.arrays.iter().map(|(name, a)| (name.clone(), a.select(Axis(0), samples))).collect();
        Inputs { arrays, real: rows(&self.real), content: rows(&self.content) }
    }

    fn of_batch(batch: Batch) -> Inputs {
        Inputs::of_images(batch.images)
    }
}

/// Samples that a model runs on.
pub trait Samples {
    /// How many there are, readable or not.
    fn len(&self) -> usize;

    /// True where there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them in batches of `size`, in their order.
    fn batches_of(&self, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_>;

    /// Those that are this process's among all that [work together](crate::parallel), in batches of `size`.
    fn own_batches_of(&self, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_>;

    /// The input along whose second axis tokens lie that may be [padding](Inputs::real) or no
    /// [content](Inputs::content), where that is known.
    fn token_input(&self) -> Option<&str> {
        None
    }

    /// The input at whose zeros tokens are padding.
    fn mask(&self) -> Option<&str> {
        None
    }

    /// The error that says that none could be read, where there are some and `count`, of all processes, is none.
    ///
    /// # Errors
    /// [`Images`](crate::error::ErrorKind::Images).
    fn check_any(&self, count: usize) -> Result<()>;

    /// What to look at where the numbers that a model makes of them are none.
    fn advice(&self) -> &'static str;
}

impl Samples for Loader {
    fn len(&self) -> usize {
        Loader::len(self)
    }

    fn batches_of(&self, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_> {
        Box::new(self.batches(size).map(|batch| batch.map(Inputs::of_batch)))
    }

    fn own_batches_of(&self, size: usize) -> Box<dyn Iterator<Item = Result<Inputs>> + '_> {
        Box::new(self.clone().share().batches(size).map(|batch| batch.map(Inputs::of_batch)))
    }

    fn check_any(&self, count: usize) -> Result<()> {
        Loader::check_any(self, count)
    }

    fn advice(&self) -> &'static str {
        "check preprocessing (⟦mean⟧, ⟦std⟧) and the model's weights"
    }
}
