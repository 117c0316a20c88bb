//! A model on its way to a training graph: in the form that gradients are taken of, then with what a run adds to it.

use super::loss::Loss;
use super::operators::Operators;
use super::precision::in_half;
use super::trained::Selection;
use super::{kernels, logits, regularise};
use crate::anatomy::Anatomy;
use crate::axes::{Assumption, Typing, declared_batch, open_batch};
use crate::error::Result;
use crate::graph;
use crate::onnx::{DataType, Model};
use crate::runtime::fix_input;

/// A model in the form that training works on: with a fixed batch (of another size than the file's where its batch axis
/// could be [opened](open_batch)), only differentiable operators, every weight an initializer, and logits where outputs
/// hold classes.
///
/// # Errors
/// [`Unsupported`](crate::error::ErrorKind::Unsupported) for models with other inputs than one batch of images, and for
/// operators that cannot be taken apart.
pub fn trainable_form(model: &Model, batch: usize, image: [usize; 2]) -> Result<(Model, [usize; 4], bool)> {
    // Where the batch cannot be opened it stays, and gradients of several batches are gathered.
    let opened = match declared_batch(model) {
        Some(fixed) if fixed != batch => open_batch(model).ok(),
        _ => None,
    };
    let mut model = opened.unwrap_or_else(|| model.clone());
    graph::lift_constants(model.graph_mut());
    // Weights in training are float32, whatever the file keeps them in.
    graph::widen(model.graph_mut(), &[DataType::Float16, DataType::Bfloat16])?;
    let (_, shape, channels_last) = fix_input(model.graph_mut(), batch, image)?;
    model.graph_mut().value_info.clear();
    let typing = typed(&model, shape[0], image)?;
    let graph = match &logits::with_logits(&model, &typing)? {
        Some(model) => crate::runtime::differentiable(&typed(model, shape[0], image)?)?,
        None => crate::runtime::differentiable(&typing)?,
    };
    model.proto.graph = Some(graph);
    Ok((model, shape, channels_last))
}

/// The typing of a model of fixed batch size, which knows all shapes.
pub(super) fn typed(model: &Model, batch: usize, image: [usize; 2]) -> Result<Typing<'_>> {
    let typing = Typing::with(model, Assumption { batch, image })?;
    typing.check_consistent()?;
    Ok(typing)
}

/// A model in trainable form that a run of training adds to.
pub(super) struct Form {
    pub model: Model,
    /// Images in a step.
    pub batch: usize,
    image: [usize; 2],
}

impl Form {
    /// Brings a model into [`trainable_form`].
    pub fn new(model: &Model, batch: usize, image: [usize; 2]) -> Result<Form> {
        let (model, shape, _) = trainable_form(model, batch, image)?;
        Ok(Form { model, batch: shape[0], image })
    }

    pub fn typing(&self) -> Result<Typing<'_>> {
        typed(&self.model, self.batch, self.image)
    }

    /// Lets residual branches be dropped, and returns how many.
    pub fn drop_branches(&mut self) -> Result<usize> {
        let (graph, count) = {
            let typing = self.typing()?;
            regularise::stochastic_depth(&typing, &Anatomy::new(&typing)?)?
        };
        self.model.proto.graph = Some(graph);
        Ok(count)
    }

    /// Brings it into half precision.
    pub fn compute_in(&mut self, half: DataType) -> Result<()> {
        graph::check_known(half, self.model.opset(), "⟦precision⟧")?;
        let graph = in_half(&self.typing()?, half)?;
        self.model.proto.graph = Some(graph);
        Ok(())
    }

    /// Adds the loss. Returns the output that classes are read from and its number of classes, where the loss knows
    /// classes.
    pub fn append(&mut self, loss: &Loss) -> Result<Option<(String, usize)>> {
        let typing = self.typing()?;
        let classes = match loss.needs_classes() {
            true => {
                let output = loss.class_output(&self.model)?;
                let count = typing.shape(&output).and_then(|s| s.get(1).copied()).unwrap_or(0);
                Some((output, count))
            }
            false => None,
        };
        let mut with_loss = self.model.clone();
        loss.append(&mut with_loss, &typing)?;
        drop(typing);
        self.model = with_loss;
        Ok(classes)
    }

    /// What is trained, by the operators that the model has; then they are fused, where that is asked for.
    pub fn select(&mut self, train: &[String], freeze: &[String], operators: Operators) -> Result<Selection> {
        let typing = self.typing()?;
        let selection = Selection::new(&typing, train, freeze)?;
        if operators == Operators::Fused {
            let graph = kernels::fuse(&typing);
            drop(typing);
            self.model.proto.graph = Some(graph);
            self.model.proto.opset_import.push(kernels::import());
        }
        Ok(selection)
    }
}
