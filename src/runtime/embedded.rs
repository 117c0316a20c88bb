//! tract by itself, without ONNX Runtime's interface between: it runs beside another library, and a panic of it can be
//! caught.
//!
//! The interface is C, and a panic that would pass it ends the process. What has to survive every graph goes this way.

use ndarray::{ArrayD, ArrayViewD};

use super::session::{SessionInput, fix_inputs, float_borders, guarded, in_order};
use super::start::RuntimeKind;
use super::tract::for_tract;
use crate::axes::Assumption;
use crate::error::Result;
use crate::graph;
use crate::onnx::{DataType, Model};

/// A model that was loaded into tract, with inputs of fixed shapes.
pub struct Embedded {
    plan: plan::TractModel,
    inputs: Vec<SessionInput>,
    /// Samples in a batch.
    pub batch: usize,
}

impl Embedded {
    /// Loads a model whose inputs are batches of samples, as [`super::Runtime::load`] does.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unsupported`] for models that leave other axes open,
    /// [`crate::error::ErrorKind::Runtime`] where tract cannot load it or this build has none.
    pub fn load(model: &Model, batch: usize, image: [usize; 2]) -> Result<Embedded> {
        let mut model = model.clone();
        graph::prune(model.graph_mut());
        // tract has no bfloat16; float32 holds it exactly.
        graph::widen(model.graph_mut(), &[DataType::Bfloat16])?;
        let inputs = fix_inputs(model.graph_mut(), batch, image, false)?;
        inputs.iter().try_for_each(|input| input.fixed().map(drop))?;
        let batch = inputs.first().and_then(|i| i.shape[0]).unwrap_or(batch);
        for_tract(&mut model, Assumption { batch, image })?;
        float_borders(model.graph_mut());
        let plan = guarded(RuntimeKind::Tract, || plan::TractModel::new(&model))?;
        Ok(Embedded { plan, inputs, batch })
    }

    /// Runs one batch, of as many samples as it was loaded for, an array for each input by its name, and returns every
    /// output. Where there is one array and one input, names do not matter.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Unsupported`] where an input has no array, [`crate::error::ErrorKind::Images`] for
    /// arrays of other shapes, [`crate::error::ErrorKind::Runtime`].
    pub fn run_on(&self, arrays: &[(&str, ArrayViewD<f32>)]) -> Result<Vec<ArrayD<f32>>> {
        let arrays = in_order(&self.inputs, arrays)?;
        guarded(RuntimeKind::Tract, || self.plan.run(&arrays))
    }
}

#[cfg(feature = "tract")]
mod plan {
    use std::sync::Arc;

    use ndarray::{ArrayD, ArrayViewD};
    use tract_onnx::prelude::{
        Framework, InferenceModelExt, IntoRunnable, TValue, Tensor, TractResult, TypedRunnableModel,
    };

    use crate::error::{Error, ErrorKind, Result};
    use crate::onnx::Model;
    use crate::runtime::RuntimeKind;
    use crate::runtime::session::load_error;

    pub struct TractModel(Arc<TypedRunnableModel>);

    impl TractModel {
        pub fn new(model: &Model) -> Result<TractModel> {
            let load = || -> TractResult<_> {
                tract_onnx::onnx().model_for_read(&mut &model.to_bytes()[..])?.into_optimized()?.into_runnable()
            };
            load().map(TractModel).map_err(|e| load_error(RuntimeKind::Tract, &format!("{e:#}")))
        }

        pub fn run(&self, arrays: &[ArrayViewD<f32>]) -> Result<Vec<ArrayD<f32>>> {
            let run = || -> TractResult<Vec<ArrayD<f32>>> {
                let tensor = |array: &ArrayViewD<f32>| -> TractResult<TValue> {
                    let array = array.as_standard_layout();
                    Ok(Tensor::from_shape(array.shape(), array.as_slice().unwrap_or_default())?.into())
                };
                let outputs = self.0.run(arrays.iter().map(tensor).collect::<TractResult<_>>()?)?;
                outputs.iter().map(|o| Ok(o.cast_to::<f32>()?.to_plain_array_view::<f32>()?.to_owned())).collect()
            };
            run().map_err(|e| Error::new(ErrorKind::Runtime, format!("tract failed: {e:#}")))
        }
    }
}

#[cfg(not(feature = "tract"))]
mod plan {
    use ndarray::{ArrayD, ArrayViewD};

    use crate::error::{Error, ErrorKind, Result};
    use crate::onnx::Model;

    pub enum TractModel {}

    impl TractModel {
        pub fn new(_: &Model) -> Result<TractModel> {
            Err(Error::new(ErrorKind::Runtime, "this build has no embedded runtime"))
        }

        pub fn run(&self, _: &[ArrayViewD<f32>]) -> Result<Vec<ArrayD<f32>>> {
            match *self {}
        }
    }
}
