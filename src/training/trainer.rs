//! A training run in the runtime: its graphs, and its state on the device.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ndarray::{Array4, ArrayD, ArrayViewD, Axis, CowArray, Ix4, IxDyn, Slice, concatenate};
use serde::{Serialize, de::DeserializeOwned};

use super::checkpoint;
use super::form::trainable_form;
use super::loss::LOSS;
use super::optimiser::{EMA_DECAY, ema};
use super::rate::Attempt;
use super::regularise::KEPT;
use super::rows;
use super::sharing::separate;
use super::step::{
    Batching, CARRY, GRADIENT, GRADIENT_NORM, LOSS_SCALE, Port, Recipe, StepGraph, Steps, evaluation_graph,
};
use super::trained::Selection;
use crate::data::Rows;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{data_inputs, lift_constants};
use crate::onnx::{DataType, Model, data_type, tensor_from_f32, to_f32};
use crate::parallel;
use crate::runtime::{DeviceTensors, Program, Runtime, Session};

/// What one update saw.
#[derive(Clone, Debug, Default)]
pub struct StepResult {
    /// Mean loss before the update.
    pub loss: f64,
    /// Norm of all gradients together, where they are clipped.
    pub gradient_norm: Option<f64>,
    /// Logits of every batch before the update, where the loss knows classes.
    pub logits: Vec<ArrayD<f32>>,
}

/// Values that a step is fed, by the names of the step graph's inputs.
pub type Feeds<'a> = Vec<(&'a str, ArrayViewD<'a, f32>)>;

/// A training run.
pub struct Trainer {
    runtime: Arc<Runtime>,
    model: Model,
    image: [usize; 2],
    recipe: Recipe,
    train: Vec<String>,
    freeze: Vec<String>,
    state: DeviceTensors,
    step: Program,
    /// The inputs of the step that are fed.
    ports: Vec<Port>,
    update: Option<Program>,
    /// By whether averages are taken, and by the length that texts are cut to.
    evaluations: HashMap<(bool, Option<usize>), Program>,
    /// What the model takes, where these are rows that may be cut.
    rows: Option<Rows>,
    /// The model for texts that are cut to a length, and its step once there was a batch of that length.
    cuts: HashMap<usize, (Model, Option<Program>)>,
    /// Tensors of the state that hold sums of gradients, where the update stands apart.
    gradients: Vec<String>,
    /// The name of the image input.
    pub input: String,
    /// What is trained.
    pub selection: Selection,
    /// Images in a batch.
    pub batch: usize,
    /// How a batch comes about.
    pub batching: Batching,
    /// The output that classes are read from, and their number, where the loss knows classes.
    pub classes: Option<(String, usize)>,
    /// Residual branches that stochastic depth may drop; 0 where it is off.
    pub branches: usize,
    /// Updates that were made.
    pub updates: u64,
    /// What the loss is multiplied by in half precision, and the updates since it was changed.
    scale: (f32, u32),
}

/// The scale of the loss at the start, the updates after which it is doubled, and the most and the least that it can
/// be.
const SCALE: f32 = 65536.0;
const PATIENCE: u32 = 1000;
const SCALES: std::ops::RangeInclusive<f32> = 1.0..=16_777_216.0;

impl Trainer {
    /// Builds the graphs of a run and puts its state on the device.
    ///
    /// # Errors
    /// Those of [`Steps::new`]; [`ErrorKind::Runtime`] where the runtime cannot run the step.
    pub fn new(
        runtime: &Arc<Runtime>,
        model: &Model,
        image: [usize; 2],
        recipe: &Recipe,
        train: &[String],
        freeze: &[String],
    ) -> Result<Trainer> {
        let mut model = model.clone();
        separate(&mut model)?;
        let Steps { step, update, selection, batch, batching, classes, branches } =
            Steps::new(&model, image, recipe, train, freeze)?;
        let program = runtime.load_program(&step.model, step.ports())?;
        let update_program = update.as_ref().map(|u| runtime.load_program(&u.model, u.ports())).transpose()?;
        let (form, _, _) = trainable_form(&model, batch, image)?;
        let initial: HashMap<&str, _> = form.graph().initializer.iter().map(|t| (t.name(), t)).collect();
        let mut state = DeviceTensors::default();
        let graphs: Vec<&StepGraph> = std::iter::once(&step).chain(&update).collect();
        for tensor in graphs.iter().flat_map(|g| &g.description.state) {
            if state.shape(&tensor.name).is_some() {
                continue;
            }
            let value = match &tensor.initial {
                None => ArrayD::zeros(IxDyn(&tensor.shape)),
                Some(name) => {
                    let Some(t) = initial.get(name.as_str()) else { bail!(Internal, "the weight `{name}` is gone") };
                    array(&tensor.shape, to_f32(t)?)?
                }
            };
            state.insert(&program, &tensor.name, value)?;
        }
        let gradients = update.iter().flat_map(|u| &u.description.state).map(|t| t.name.clone());
        let gradients = gradients.filter(|n| n.starts_with(GRADIENT)).collect();
        let mut trainer = Trainer {
            runtime: runtime.clone(),
            model,
            image,
            recipe: recipe.clone(),
            train: train.to_vec(),
            freeze: freeze.to_vec(),
            state,
            step: program,
            ports: step.description.inputs,
            update: update_program,
            evaluations: HashMap::new(),
            rows: None,
            cuts: HashMap::new(),
            gradients,
            input: data_inputs(form.graph()).first().map(|v| v.name().to_string()).unwrap_or_default(),
            selection,
            batch: batch * batching.steps(),
            batching,
            classes,
            branches,
            updates: 0,
            scale: (SCALE, 0),
        };
        trainer.synchronise()?;
        Ok(trainer)
    }

    /// Cuts batches of rows to the length of their longest text, where rows may be cut: to one of [these
    /// lengths](Self::lengths). Nothing is cut where the model says something else of `short` texts with the padding
    /// that they have in their rows.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
    pub fn of_rows(mut self, rows: Option<&Rows>, short: &[Array4<f32>]) -> Result<Trainer> {
        let (Some(rows), mut cuts) = (rows, HashMap::new()) else { return Ok(self) };
        let Some((whole, lengths)) = rows.lengths.split_last() else { return Ok(self) };
        // A model that takes no texts of a length has its say about the whole.
        for &length in lengths {
            let cut = rows::cut(&self.model, rows, length).ok().flatten();
            cuts.extend(cut.map(|model| (length, (model, None))));
        }
        let lengths = lengths.iter().filter(|length| cuts.contains_key(length)).chain([whole]).copied().collect();
        self.cuts = cuts;
        let rows = Rows { lengths, ..rows.clone() };
        let is_same = rows::says_the_same(short, |batch, is_cut| {
            self.rows = is_cut.then(|| rows.clone());
            self.outputs(batch, false)
        })?;
        self.rows = is_same.then_some(rows);
        if !is_same {
            self.cuts.clear();
            self.evaluations.retain(|(_, cut), _| cut.is_none());
        }
        Ok(self)
    }

    /// The lengths that texts are cut to, ascending, where they are cut.
    pub fn lengths(&self) -> &[usize] {
        self.rows.as_ref().map(|rows| rows.lengths.as_slice()).filter(|lengths| lengths.len() > 1).unwrap_or_default()
    }

    /// The length that a batch is cut to, whose step is loaded then; `None` for the whole.
    fn cut(&mut self, batch: &ArrayViewD<f32>) -> Result<Option<usize>> {
        let batch = batch.view().into_dimensionality::<Ix4>().ok();
        let length = self.rows.as_ref().zip(batch).and_then(|(rows, batch)| rows.shortest(batch));
        let Some((model, step)) = length.and_then(|length| self.cuts.get_mut(&length)) else { return Ok(None) };
        if step.is_none() {
            let steps = Steps::new(model, self.image, &self.recipe, &self.train, &self.freeze)?;
            if steps.step.description.inputs != self.ports {
                bail!(Internal, "a step for shorter texts takes other values than that for all");
            }
            // It reads and writes the same state.
            *step = Some(self.runtime.load_program(&steps.step.model, steps.step.ports())?);
        }
        Ok(length)
    }

    /// Names of the tensors that a checkpoint holds, in order.
    fn kept(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.state.names().filter(|n| !n.starts_with(GRADIENT)).map(str::to_string).collect();
        names.sort_unstable();
        names
    }

    /// Gives every process the state of the first one.
    fn synchronise(&mut self) -> Result<()> {
        match self.recipe.ranks {
            0 | 1 => Ok(()),
            _ => self.state.broadcast(&self.kept()),
        }
    }

    /// Batches that one update takes in this process.
    pub fn batches_per_update(&self) -> usize {
        self.recipe.accumulate.max(1)
    }

    /// One update from as many batches as [`Trainer::batches_per_update`] says; where several processes train, each
    /// with batches of its own, they make the same update. A loss or gradient that is not finite leaves the weights as
    /// they were; in half precision the loss is scaled down first and the update tried again.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] where the runtime fails, [`ErrorKind::Check`] where the loss is not finite.
    pub fn step(&mut self, batches: &[Feeds], learning_rate: f64, ema_decay: f64) -> Result<StepResult> {
        if !self.recipe.precision.scales() {
            return self.try_step(batches, learning_rate, ema_decay);
        }
        loop {
            match self.try_step(batches, learning_rate, ema_decay) {
                Err(e) if e.kind() == ErrorKind::Check && SCALES.contains(&(self.scale.0 / 2.0)) => {
                    self.scale = (self.scale.0 / 2.0, 0);
                }
                Ok(result) => {
                    self.scale.1 += 1;
                    if self.scale.1 >= PATIENCE && SCALES.contains(&(self.scale.0 * 2.0)) {
                        self.scale = (self.scale.0 * 2.0, 0);
                    }
                    return Ok(result);
                }
                Err(e) => return Err(e),
            }
        }
    }

    fn try_step(&mut self, batches: &[Feeds], learning_rate: f64, ema_decay: f64) -> Result<StepResult> {
        let step = self.updates + 1;
        let mut scalars: Vec<(&str, ArrayD<f32>)> = self
            .recipe
            .optimiser
            .scalars()
            .into_iter()
            .zip(self.recipe.optimiser.scalar_values(step, learning_rate))
            .map(|(name, v)| (name, scalar(v)))
            .collect();
        if self.recipe.ema {
            scalars.push((EMA_DECAY, scalar(ema_decay as f32)));
        }
        let scale = self.recipe.precision.scales().then(|| scalar(self.scale.0));
        let mut result = StepResult::default();
        let pieces: Vec<Feeds> = batches.iter().flat_map(|feeds| self.pieces(feeds)).collect();
        for (i, feeds) in pieces.iter().enumerate() {
            let carry = scalar(if i == 0 { 0.0 } else { 1.0 });
            let mut fed = feeds.clone();
            match self.update {
                Some(_) => fed.push((CARRY, carry.view())),
                None => fed.extend(scalars.iter().map(|(n, v)| (*n, v.view()))),
            }
            fed.extend(scale.iter().map(|s| (LOSS_SCALE, s.view())));
            let batch = feeds.iter().find(|(name, _)| *name == self.input).map(|(_, batch)| batch.clone());
            let cut = batch.map(|batch| self.cut(&batch)).transpose()?.flatten();
            let of_length = cut.and_then(|length| self.cuts.get_mut(&length)?.1.as_mut());
            let program = of_length.unwrap_or(&mut self.step);
            let outputs = program.run(&mut self.state, &fed)?;
            for (name, value) in program.results().iter().zip(outputs) {
                match name.as_str() {
                    LOSS => result.loss += first(&value) / pieces.len() as f64,
                    GRADIENT_NORM => result.gradient_norm = Some(first(&value)),
                    _ => result.logits.push(value),
                }
            }
        }
        result.logits = joined(result.logits, self.batching.steps())?;
        if self.recipe.ranks > 1 {
            let mut loss = [result.loss / self.recipe.ranks as f64];
            parallel::sum(&mut loss);
            result.loss = loss[0];
            // All processes know of a loss that is not finite, and none of them goes on.
            if result.loss.is_finite() {
                self.state.sum(&self.gradients)?;
            }
        }
        let finite = |r: &StepResult| r.loss.is_finite() && r.gradient_norm.is_none_or(f64::is_finite);
        if !finite(&result) {
            if self.update.is_none() {
                self.state.undo(&self.step);
            }
            return Err(self.not_finite(&result, step));
        }
        if let Some(update) = &mut self.update {
            let mut fed: Feeds = scalars.iter().map(|(n, v)| (*n, v.view())).collect();
            fed.extend(scale.iter().map(|s| (LOSS_SCALE, s.view())));
            let outputs = update.run(&mut self.state, &fed)?;
            for (name, value) in update.results().iter().zip(outputs) {
                if name == GRADIENT_NORM {
                    result.gradient_norm = Some(first(&value));
                }
            }
            if !finite(&result) {
                self.state.undo(update);
                return Err(self.not_finite(&result, step));
            }
        }
        self.updates = step;
        Ok(result)
    }

    /// What one batch feeds, in as many parts as it takes steps.
    fn pieces<'f>(&self, feeds: &Feeds<'f>) -> Vec<Feeds<'f>> {
        let steps = self.batching.steps();
        let part = |i: usize| {
            let of = |(name, value): &(&'f str, ArrayViewD<'f, f32>)| {
                let mut value = value.clone();
                // Branches come first, images second in what says which are kept.
                let axis = Axis(usize::from(*name == KEPT));
                // Of pairs there are half as many targets.
                let images = value.len_of(axis) / steps;
                value.slice_axis_inplace(axis, Slice::from(i * images..(i + 1) * images));
                (*name, value)
            };
            feeds.iter().map(of).collect()
        };
        if steps == 1 { vec![feeds.clone()] } else { (0..steps).map(part).collect() }
    }

    /// Tries the first update of a run: the loss of its batches before and after it. The state is as it was afterwards.
    ///
    /// # Errors
    /// Those of [`Trainer::step`] for the loss before it; [`ErrorKind::Internal`] behind the first update.
    pub fn attempt(&mut self, batches: &[Feeds], learning_rate: f64) -> Result<Attempt> {
        if self.updates > 0 {
            bail!(Internal, "an update is tried before the first one, not after {}", self.updates);
        }
        // What the optimiser keeps is zero yet, and averages are the weights.
        let weights: Vec<(String, ArrayD<f32>)> = (self.selection.trained.iter())
            .filter(|w| self.state.shape(&w.name).is_some())
            .map(|w| Ok((w.name.clone(), self.state.get(&w.name)?)))
            .collect::<Result<_>>()?;
        let scale = self.scale;
        let before = self.step(batches, learning_rate, 0.0).map(|result| result.loss);
        // A rate of 0 moves nothing and tells the loss.
        let after = before.is_ok().then(|| self.step(batches, 0.0, 0.0));
        for (name, value) in weights {
            for moment in self.recipe.optimiser.moments(&name) {
                self.state.insert(&self.step, &moment, ArrayD::zeros(value.raw_dim()))?;
            }
            if self.recipe.ema {
                self.state.insert(&self.step, &ema(&name), value.clone())?;
            }
            self.state.insert(&self.step, &name, value)?;
        }
        (self.updates, self.scale) = (0, scale);
        let after = match after.transpose() {
            Ok(result) => result.map(|r| r.loss),
            Err(e) if e.kind() == ErrorKind::Check => None,
            Err(e) => return Err(e),
        };
        Ok(Attempt { rate: learning_rate, before: before?, after })
    }

    fn not_finite(&self, result: &StepResult, step: u64) -> Error {
        let what = match result.gradient_norm {
            Some(norm) if result.loss.is_finite() => format!("the norm of the gradients is {norm}"),
            _ => format!("the loss is {}", result.loss),
        };
        Error::new(ErrorKind::Check, format!("{what} in step {step}; the weights are as they were before it")).hint(
            "lower ⟦lr⟧, clip gradients with ⟦clip⟧ 1, or look for samples or labels that cannot be (⟦dry-run⟧ lists \
             what is trained)",
        )
    }

    /// Outputs of the model, and the values that its loss compares with a teacher's, for at most a batch of images,
    /// with the weights as they are or with their moving average. A smaller batch is filled up: the first axis of what
    /// is returned is that of a whole one.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
    pub fn outputs(&mut self, images: &Array4<f32>, averaged: bool) -> Result<Vec<(String, ArrayD<f32>)>> {
        let averaged = averaged && self.recipe.ema;
        let cut = self.cut(&images.view().into_dyn())?;
        if !self.evaluations.contains_key(&(averaged, cut)) {
            let of = |w: &str| if averaged { ema(w) } else { w.to_string() };
            let mut selection = self.selection.clone();
            selection.trained.retain(|w| self.state.shape(&of(&w.name)).is_some());
            let values = self.recipe.loss.student_values();
            let batch = self.batch / self.batching.steps();
            let own = cut.and_then(|length| self.cuts.get(&length)).map_or(&self.model, |(model, _)| model);
            let (model, ports) = evaluation_graph(own, self.image, batch, &selection, &values, of)?;
            self.evaluations.insert((averaged, cut), self.runtime.load_program(&model, ports)?);
        }
        let Some(program) = self.evaluations.get_mut(&(averaged, cut)) else {
            bail!(Internal, "the evaluation graph is gone")
        };
        let count = images.len_of(Axis(0));
        let steps = self.batching.steps();
        let batch = self.batch / steps;
        let mut parts: Vec<Vec<ArrayD<f32>>> = vec![Vec::new(); program.results().len()];
        for first in (0..count.max(1)).step_by(batch) {
            let whole = match first + batch <= count {
                true => CowArray::from(images.slice_axis(Axis(0), Slice::from(first..first + batch))).into_dyn(),
                false => {
                    let order: Vec<usize> = (first..first + batch).map(|i| i.min(count.saturating_sub(1))).collect();
                    CowArray::from(images.select(Axis(0), &order)).into_dyn()
                }
            };
            let outputs = program.run(&mut self.state, &[(self.input.as_str(), whole.view())])?;
            parts.iter_mut().zip(outputs).for_each(|(list, output)| list.push(output));
        }
        let outputs = parts.into_iter().map(|list| {
            let mut whole = joined(list, steps)?;
            whole.pop().ok_or_else(|| Error::new(ErrorKind::Internal, "the evaluation graph gave nothing"))
        });
        program.results().iter().cloned().zip(outputs).map(|(name, output)| Ok((name, output?))).collect()
    }

    /// Loads another model that takes what this one takes.
    ///
    /// # Errors
    /// Those of [`Runtime::load`].
    pub fn load_other(&self, model: &Model) -> Result<Session> {
        self.runtime.load(model, self.batch, self.image)
    }

    /// A weight as it is, or its moving average.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] for a weight that is not trained.
    pub fn weight(&self, name: &str, averaged: bool) -> Result<ArrayD<f32>> {
        match averaged && self.recipe.ema {
            true => self.state.get(&ema(name)),
            false => self.state.get(name),
        }
    }

    /// The model with its trained weights, or with their moving average, in the element types that it had.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] where the state cannot be read.
    pub fn export(&self, averaged: bool) -> Result<Model> {
        let mut model = self.model.clone();
        lift_constants(model.graph_mut());
        let trained: HashMap<&str, &[usize]> =
            self.selection.trained.iter().map(|w| (w.name.as_str(), w.shape.as_slice())).collect();
        for tensor in &mut model.graph_mut().initializer {
            let name = tensor.name().to_string();
            let Some(shape) = trained.get(name.as_str()) else { continue };
            if self.state.shape(&name).is_none() {
                continue;
            }
            let value = self.weight(&name, averaged)?;
            let kind = data_type(tensor).unwrap_or(DataType::Float);
            let data: Vec<f32> = value.iter().copied().collect();
            *tensor = tensor_from_f32(name, kind, shape, &data);
        }
        Ok(model)
    }

    /// Writes the whole state and a description of where the run stands.
    ///
    /// # Errors
    /// Those of [`checkpoint::save`].
    pub fn save(&self, path: &Path, description: &impl Serialize) -> Result<()> {
        let tensors =
            self.kept().into_iter().map(|n| Ok((n.clone(), self.state.get(&n)?))).collect::<Result<Vec<_>>>()?;
        checkpoint::save(path, &tensors, description)
    }

    /// Goes back to a checkpoint, which the first process reads. Returns its description; the caller sets
    /// [`Trainer::updates`] by it.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the checkpoint is of another model or of another recipe, and those of
    /// [`checkpoint::load`].
    pub fn load<D: Serialize + DeserializeOwned>(&mut self, path: &Path) -> Result<D> {
        let description = match self.recipe.ranks {
            0 | 1 => self.read(path)?,
            _ => parallel::first(|| self.read(path))?,
        };
        self.synchronise()?;
        Ok(description)
    }

    fn read<D: DeserializeOwned>(&mut self, path: &Path) -> Result<D> {
        let (mut tensors, description) = checkpoint::load(path)?;
        let names = self.kept();
        let fail = |what: String| {
            Error::new(ErrorKind::Usage, what)
                .at(path)
                .hint("resume with the model and the flags of the run that wrote it, or begin anew without ⟦resume⟧")
        };
        for name in &names {
            match tensors.get(name) {
                None => return Err(fail(format!("the checkpoint has no tensor `{name}`"))),
                Some(t) if Some(t.shape()) != self.state.shape(name) => {
                    return Err(fail(format!("the checkpoint's `{name}` has the shape {:?}", t.shape())));
                }
                Some(_) => {}
            }
        }
        if tensors.len() > names.len() {
            return Err(fail("the checkpoint holds tensors that this run does not have".into()));
        }
        for name in names {
            if let Some(value) = tensors.remove(&name) {
                self.state.insert(&self.step, &name, value)?;
            }
        }
        Ok(description)
    }
}

/// Every `steps` values, the last ones fewer, as one along their first axis.
fn joined(values: Vec<ArrayD<f32>>, steps: usize) -> Result<Vec<ArrayD<f32>>> {
    if steps == 1 {
        return Ok(values);
    }
    let join = |parts: &[ArrayD<f32>]| match parts {
        [one] => Ok(one.clone()),
        _ if parts[0].ndim() == 0 => Ok(parts[0].clone()),
        _ => {
            let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
            concatenate(Axis(0), &views).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))
        }
    };
    values.chunks(steps).map(join).collect()
}

fn scalar(value: f32) -> ArrayD<f32> {
    ArrayD::from_elem(IxDyn(&[]), value)
}

fn first(value: &ArrayD<f32>) -> f64 {
    value.iter().next().copied().unwrap_or(f32::NAN) as f64
}

fn array(shape: &[usize], data: Vec<f32>) -> Result<ArrayD<f32>> {
    ArrayD::from_shape_vec(IxDyn(shape), data).map_err(|e| Error::new(ErrorKind::Internal, e.to_string()))
}
