//! tract by itself, without ONNX Runtime's interface between: it runs beside another library, and a panic of it can be
//! caught.
//!
//! The interface is C, and a panic that would pass it ends the process. What has to survive every graph goes this way.

use ndarray::{ArrayD, ArrayView4};

use super::session::{fix_input, float_borders, for_tract, guarded};
use super::start::Kind;
use crate::axes::Assumption;
use crate::error::Result;
use crate::graph;
use crate::onnx::{DataType, Model};

/// A model that was loaded into tract, with one image input of fixed shape.
pub struct Embedded {
    plan: plan::Plan,
    /// Images in a batch.
    pub batch: usize,
}

impl Embedded {
    /// Loads a model whose only data input is a batch of images, as [`super::Runtime::load`] does.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unsupported`] for models with other inputs, [`crate::error::ErrorKind::Runtime`]
    /// where tract cannot load it or this build has none.
    pub fn load(model: &Model, batch: usize, image: [usize; 2]) -> Result<Embedded> {
        let mut model = model.clone();
        graph::prune(model.graph_mut());
        // tract has no bfloat16; float32 holds it exactly.
        graph::widen(model.graph_mut(), &[DataType::Bfloat16])?;
        let (_, shape, _) = fix_input(model.graph_mut(), batch, image)?;
        for_tract(&mut model, Assumption { batch: shape[0], image })?;
        float_borders(model.graph_mut());
        let plan = guarded(Kind::Tract, || plan::Plan::new(&model))?;
        Ok(Embedded { plan, batch: shape[0] })
    }

    /// Runs one batch, of as many images as it was loaded for, and returns every output.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Runtime`].
    pub fn run(&self, images: ArrayView4<f32>) -> Result<Vec<ArrayD<f32>>> {
        guarded(Kind::Tract, || self.plan.run(images))
    }
}

#[cfg(feature = "tract")]
mod plan {
    use std::sync::Arc;

    use ndarray::{ArrayD, ArrayView4};
    use tract_onnx::prelude::{
        Framework, InferenceModelExt, IntoRunnable, Tensor, TractResult, TypedRunnableModel, tvec,
    };

    use crate::error::{Error, ErrorKind, Result};
    use crate::onnx::Model;
    use crate::runtime::Kind;
    use crate::runtime::session::load_error;

    pub struct Plan(Arc<TypedRunnableModel>);

    impl Plan {
        pub fn new(model: &Model) -> Result<Plan> {
            let load = || -> TractResult<_> {
                tract_onnx::onnx().model_for_read(&mut &model.to_bytes()[..])?.into_optimized()?.into_runnable()
            };
            load().map(Plan).map_err(|e| load_error(Kind::Tract, &format!("{e:#}")))
        }

        pub fn run(&self, images: ArrayView4<f32>) -> Result<Vec<ArrayD<f32>>> {
            let run = || -> TractResult<Vec<ArrayD<f32>>> {
                let images = images.as_standard_layout();
                let tensor = Tensor::from_shape(images.shape(), images.as_slice().unwrap_or_default())?;
                let outputs = self.0.run(tvec!(tensor.into()))?;
                outputs.iter().map(|o| Ok(o.cast_to::<f32>()?.to_plain_array_view::<f32>()?.to_owned())).collect()
            };
            run().map_err(|e| Error::new(ErrorKind::Runtime, format!("tract failed: {e:#}")))
        }
    }
}

#[cfg(not(feature = "tract"))]
mod plan {
    use ndarray::{ArrayD, ArrayView4};

    use crate::error::{Error, ErrorKind, Result};
    use crate::onnx::Model;

    pub enum Plan {}

    impl Plan {
        pub fn new(_: &Model) -> Result<Plan> {
            Err(Error::new(ErrorKind::Runtime, "this build has no embedded runtime"))
        }

        pub fn run(&self, _: ArrayView4<f32>) -> Result<Vec<ArrayD<f32>>> {
            match *self {}
        }
    }
}
