//! What ancestors are clustered and fitted on, whatever it is.

use ndarray::Axis;

use crate::data::{Arrays, Loader, Samples};
use crate::error::Result;
use crate::fitting::{Values, image_input};
use crate::onnx::Model;

/// What an ancestor is measured and fitted on.
pub(super) enum Calibrating {
    /// Images.
    Images(Loader),
    /// Samples of arrays.
    Arrays(Arrays),
}

impl Calibrating {
    /// As samples.
    pub fn samples(&self) -> &dyn Samples {
        match self {
            Calibrating::Images(images) => images,
            Calibrating::Arrays(arrays) => arrays,
        }
    }

    /// The first of them.
    pub fn limit(&self, count: usize) -> Calibrating {
        match self {
            Calibrating::Images(images) => Calibrating::Images(images.clone().limit(count)),
            Calibrating::Arrays(arrays) => Calibrating::Arrays(arrays.clone().limit(count)),
        }
    }

    /// One of them, as a batch for the inputs of a model.
    ///
    /// # Errors
    /// Those of reading an image.
    pub fn view(&self, place: usize, model: &Model) -> Result<Values> {
        match self {
            Calibrating::Images(images) => {
                let image = images.image(place)?.insert_axis(Axis(0)).into_dyn();
                Ok(Values::from([(image_input(model.graph()), image)]))
            }
            Calibrating::Arrays(arrays) => Ok(arrays.select(&[place]).arrays.into_iter().collect()),
        }
    }

    /// The model as long as what it is run on.
    pub fn fixed(&self, model: &Model) -> Model {
        match self {
            Calibrating::Images(_) => model.clone(),
            Calibrating::Arrays(arrays) => arrays.fixed(model),
        }
    }
}
