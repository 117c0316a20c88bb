//! Step graphs: forward, loss, backward and optimiser in one ONNX graph, or gradients and update apart.
//!
//! Every trained weight becomes an input `w` and an output `next/w` of the graph, and so do the tensors that the
//! optimiser keeps for it. A [`StepGraph`] is a plain model that any ONNX Runtime binding can run, and [`Description`]
//! says what its inputs and outputs mean.

use serde::{Deserialize, Serialize};

use super::form::{Form, trainable_form, typed};
use super::gradients::Gradients;
use super::logits;
use super::loss::{self, LOSS, Loss};
use super::operators::Operators;
use super::optimiser::{CORRECTION1, CORRECTION2, EMA_DECAY, LEARNING_RATE, Optimiser, Parameter, average, ema, next};
use super::precision::{Precision, runs_in_bfloat16, widen_where};
use super::recompute::{inside, recompute};
use super::sharing::separate;
use super::trained::{Selection, TrainedWeight};
use super::{kernels, regularise};
use crate::anatomy::Anatomy;
use crate::axes::{Assumption, Typing, declared_batch};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, data_inputs};
use crate::metadata::schema;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::onnx::{DataType, Model, tensor_from_i64, tensor_info};
use crate::ops;
use crate::runtime::Ports;

/// The norm of all gradients together, an output.
pub const GRADIENT_NORM: &str = "gradient_norm";
/// What the loss is multiplied by before it is differentiated, so that small gradients are numbers of half precision.
pub const LOSS_SCALE: &str = "loss_scale";
/// 0 in the first of several steps whose gradients are added up, else 1.
pub const CARRY: &str = "carry";

/// What a training step is made of.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Images in a batch. Where a model fixes fewer, and its batch axis cannot be opened, gradients of several steps
    /// are gathered for a batch; where it fixes more, it wins.
    pub batch: usize,
    /// What is minimised.
    pub loss: Loss,
    /// How parameters follow their gradients.
    pub optimiser: Optimiser,
    /// Weight decay of matrices.
    pub weight_decay: f32,
    /// The learning rate of a layer is that of the layer above it times this.
    pub layer_decay: f32,
    /// The norm that gradients are clipped to.
    pub clip: Option<f32>,
    /// Steps whose gradients are averaged for one update.
    pub accumulate: usize,
    /// Processes that each take a batch for every step; gradients are averaged over them too.
    pub ranks: usize,
    /// A moving average of the weights is kept.
    pub ema: bool,
    /// Probability that the last residual branch is dropped for an image; it grows in a line from 0 at the first.
    pub drop_path: f32,
    /// Values inside of layers are computed again for the backward pass and not kept for it: less memory, more time.
    pub recompute: bool,
    /// What graphs may be made of.
    pub operators: Operators,
    /// What a step computes in.
    pub precision: Precision,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            batch: 64,
            loss: Loss::cross_entropy(0.0),
            optimiser: Optimiser::default(),
            weight_decay: 0.05,
            layer_decay: 1.0,
            clip: None,
            accumulate: 1,
            ranks: 1,
            ema: false,
            drop_path: 0.0,
            recompute: false,
            operators: Operators::Standard,
            precision: Precision::F32,
        }
    }
}

impl Recipe {
    /// Batches whose gradients are averaged for one update, over all processes.
    pub fn batches(&self) -> usize {
        self.accumulate.max(1) * self.ranks.max(1)
    }
}

/// A tensor of the state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StateTensor {
    /// Its name, which is that of the graph's input.
    pub name: String,
    /// The output that holds its next value.
    pub next: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it holds at the start: the initializer of this name, or zeros.
    pub initial: Option<String>,
}

/// An input or output that is no state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it means.
    pub meaning: String,
}

/// What the inputs and outputs of a step graph mean.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// [`schema::STEP`].
    pub schema: String,
    /// Inputs that are fed at every step, all of float32.
    pub inputs: Vec<Port>,
    /// Outputs that are read at every step.
    pub outputs: Vec<Port>,
    /// Tensors that are carried from step to step.
    pub state: Vec<StateTensor>,
}

/// A graph with its description.
pub struct StepGraph {
    /// The graph.
    pub model: Model,
    /// What its inputs and outputs mean.
    pub description: Description,
}

impl StepGraph {
    /// Which inputs and outputs are state.
    pub fn ports(&self) -> Ports {
        let state = &self.description.state;
        let is = |list: Vec<&str>, n: &str| list.contains(&n);
        let inputs: Vec<&str> = self.model.graph().input.iter().map(|i| i.name()).collect();
        let outputs: Vec<&str> = self.model.graph().output.iter().map(|o| o.name()).collect();
        Ports {
            reads: state
                .iter()
                .filter(|t| is(inputs.clone(), &t.name))
                .map(|t| (t.name.clone(), t.name.clone()))
                .collect(),
            writes: state
                .iter()
                .filter(|t| is(outputs.clone(), &t.next))
                .map(|t| (t.next.clone(), t.name.clone()))
                .collect(),
            in_place: kernels::in_place(self.model.graph()),
        }
    }
}

/// How batches of the wanted size come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Batching {
    /// The file leaves the batch open, or fixes it as it is wanted, or to more images.
    Own,
    /// The file fixes it to so many images, and its batch axis was opened.
    Opened(usize),
    /// The file fixes it to so many images, and its batch axis cannot be opened: gradients of so many steps are
    /// gathered for one batch.
    Gathered {
        /// Images in a step.
        fixed: usize,
        /// Steps for a batch.
        steps: usize,
    },
}

impl Batching {
    fn new(model: &Model, wanted: usize, found: usize) -> Self {
        match declared_batch(model) {
            Some(fixed) if fixed != found => Batching::Opened(fixed),
            Some(fixed) if fixed < wanted => Batching::Gathered { fixed, steps: wanted.div_ceil(fixed) },
            _ => Batching::Own,
        }
    }

    /// Steps for a batch.
    pub fn steps(self) -> usize {
        match self {
            Batching::Gathered { steps, .. } => steps,
            _ => 1,
        }
    }
}

/// The graphs of a run.
pub struct Steps {
    /// Forward, loss, backward and update; or without the update, where that stands apart.
    pub step: StepGraph,
    /// The update, where it stands apart: where gradients are added up over several steps or processes.
    pub update: Option<StepGraph>,
    /// What is trained.
    pub selection: Selection,
    /// Images in a step.
    pub batch: usize,
    /// How a batch of the wanted size comes about.
    pub batching: Batching,
    /// The output that classes are read from, and its number of classes, where the loss knows classes.
    pub classes: Option<(String, usize)>,
    /// Residual branches that may be dropped, where stochastic depth was asked for.
    pub branches: usize,
}

impl Steps {
    /// Builds the graphs of a training run for a prepared model and images of the given height and width.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for losses that do not fit the model, [`ErrorKind::Unsupported`] for operators without a
    /// gradient; it names the node.
    pub fn new(
        model: &Model,
        image: [usize; 2],
        recipe: &Recipe,
        train: &[String],
        freeze: &[String],
    ) -> Result<Steps> {
        if recipe.loss.is_exclusive() {
            logits::check(&Typing::with(model, Assumption { batch: recipe.batch, image })?, &recipe.loss)?;
        }
        let mut separated = model.clone();
        separate(&mut separated)?;
        let mut form = Form::new(&separated, recipe.batch, image)?;
        let batch = form.batch;
        let batching = Batching::new(model, recipe.batch, batch);
        let recipe = &Recipe { accumulate: recipe.accumulate.max(1) * batching.steps(), ..recipe.clone() };
        let branches = if recipe.drop_path > 0.0 { form.drop_branches()? } else { 0 };
        if let Some(half) = recipe.precision.half() {
            form.compute_in(half)?;
        }
        let classes = form.append(&recipe.loss)?;
        let layers = match recipe.recompute {
            true => layers(&form.typing()?)?,
            false => Vec::new(),
        };
        let selection = form.select(train, freeze, recipe.operators)?;
        let typing = form.typing()?;
        let (seed, constants) = match recipe.precision.scales() {
            // An input of the step graph.
            true => (LOSS_SCALE.to_string(), Vec::new()),
            false => {
                let (name, one) = loss::seed();
                (name, vec![one])
            }
        };
        let seeds = [(LOSS.to_string(), seed)];
        let mut gradients =
            Gradients::new(&typing, &selection.names(), &seeds, (Vec::new(), constants), recipe.operators)?;
        recompute(&mut gradients.graph, &typing, &layers);
        let imports = imports(&form.model, &gradients, recipe.operators);
        let work = StepBuilder {
            typing: &typing,
            selection: &selection,
            recipe,
            gradients: &gradients,
            imports,
            classes: &classes,
        };
        let (step, update) = match recipe.batches() {
            1 => (work.whole(), None),
            _ => (work.gradients_alone(), Some(work.update_alone())),
        };
        drop(typing);
        Ok(Steps { step, update, selection, batch, batching, classes, branches })
    }
}

/// The operator sets beside the standard one that the model, its gradients and the update need.
fn imports(model: &Model, gradients: &Gradients, operators: Operators) -> Vec<OperatorSetIdProto> {
    let standard = |o: &OperatorSetIdProto| matches!(o.domain(), "" | "ai.onnx");
    let mut imports: Vec<_> = model.proto.opset_import.iter().filter(|o| !standard(o)).cloned().collect();
    let fused = (operators == Operators::Fused).then(kernels::import);
    for import in fused.iter().chain(&gradients.imports) {
        if imports.iter().all(|o| o.domain() != import.domain()) {
            imports.push(import.clone());
        }
    }
    imports
}

/// The values that enter and leave each layer.
fn layers(typing: &Typing) -> Result<Vec<(String, String)>> {
    let layers: Vec<_> =
        Anatomy::new(typing)?.layers.into_iter().filter_map(|l| Some((l.residual_in?, l.residual_out?))).collect();
    if layers.is_empty() {
        return Err(Error::new(ErrorKind::Unsupported, "no layer was found whose values could be computed again")
            .hint("leave ⟦recompute⟧ out"));
    }
    Ok(layers)
}

struct StepBuilder<'a, 'm> {
    typing: &'a Typing<'m>,
    selection: &'a Selection,
    recipe: &'a Recipe,
    gradients: &'a Gradients,
    imports: Vec<OperatorSetIdProto>,
    classes: &'a Option<(String, usize)>,
}

/// What names of sums of gradients begin with.
pub(super) const GRADIENT: &str = "gradient/";

/// The sum of gradients of a parameter.
fn accumulated(parameter: &str) -> String {
    format!("{GRADIENT}{parameter}")
}

impl StepBuilder<'_, '_> {
    /// Forward, loss, backward and update.
    fn whole(&self) -> StepGraph {
        let mut graph = self.gradients.graph.clone();
        let mut d = self.describe_forward();
        let mut b = Builder::new(&graph, self.typing.opset, "update");
        let found: Vec<(usize, String)> = self
            .selection
            .trained
            .iter()
            .enumerate()
            .filter_map(|(i, w)| Some((i, self.gradients.of.get(&w.name)?.clone())))
            .collect();
        self.update(&mut b, &mut d, &found, 1);
        b.finish(&mut graph);
        self.finish(graph, d)
    }

    /// Forward, loss and backward; gradients are added to what was carried.
    fn gradients_alone(&self) -> StepGraph {
        let mut graph = self.gradients.graph.clone();
        let mut d = self.describe_forward();
        let mut b = Builder::new(&graph, self.typing.opset, "accumulate");
        let zero = b.scalar(0.0);
        let goes_on = b.op("Greater", &[CARRY, &zero]);
        for w in &self.selection.trained {
            let Some(g) = self.gradients.of.get(&w.name) else { continue };
            d.state.push(StateTensor {
                name: w.name.clone(),
                next: next(&w.name),
                shape: w.shape.clone(),
                initial: Some(w.name.clone()),
            });
            let sum = accumulated(&w.name);
            // Chosen, not multiplied: what is no number times zero would stay.
            let carried = b.op("Where", &[&goes_on, &sum, &zero]);
            b.op_as("Add", &[&carried, g], vec![], &next(&sum));
            d.state.push(StateTensor { next: next(&sum), name: sum, shape: w.shape.clone(), initial: None });
        }
        d.inputs.push(scalar(CARRY, "0 in the first of the steps that are added up, else 1"));
        b.finish(&mut graph);
        self.finish(graph, d)
    }

    /// The update from gradients that were added up.
    fn update_alone(&self) -> StepGraph {
        let mut graph = GraphProto { name: Some("update".into()), ..Default::default() };
        let mut d = Description { schema: schema::STEP.into(), ..Description::default() };
        let mut b = Builder::new(&graph, self.typing.opset, "update");
        let mut found = Vec::new();
        for (i, w) in self.selection.trained.iter().enumerate() {
            if self.gradients.of.contains_key(&w.name) {
                let sum = accumulated(&w.name);
                d.state.push(StateTensor {
                    name: sum.clone(),
                    next: next(&sum),
                    shape: w.shape.clone(),
                    initial: None,
                });
                found.push((i, sum));
            }
        }
        self.update(&mut b, &mut d, &found, self.recipe.batches());
        b.finish(&mut graph);
        self.finish(graph, d)
    }

    fn describe_forward(&self) -> Description {
        let mut d = Description { schema: schema::STEP.into(), ..Description::default() };
        for info in data_inputs(self.typing.graph) {
            let shape = self.typing.shape(info.name()).unwrap_or_default();
            let meaning = match info.name() {
                loss::TARGETS if self.classes.is_none() => "the cosine that each pair is to have",
                loss::TARGETS => "target distribution of each image over the classes",
                regularise::KEPT => {
                    "for each residual branch and image 0 where the branch is dropped, else 1 / (1 - probability)"
                }
                n if n.starts_with("teacher/") => "the teacher's value of this name for the same images",
                _ => "images, prepared",
            };
            d.inputs.push(Port { name: info.name().into(), shape, meaning: meaning.into() });
        }
        if self.recipe.precision.scales() {
            d.inputs.push(scalar(LOSS_SCALE, SCALE_MEANING));
        }
        d.outputs.push(scalar(LOSS, "loss before the update, the mean over the batch"));
        if let Some((output, _)) = self.classes {
            let shape = self.typing.shape(output).unwrap_or_default();
            d.outputs.push(Port { name: output.clone(), shape, meaning: "logits before the update".into() });
        }
        d
    }

    /// Clipping, the optimiser and the moving average, from `found`: positions of trained weights and the values of
    /// their gradients, which are sums over `count` steps.
    fn update(&self, b: &mut Builder, d: &mut Description, found: &[(usize, String)], count: usize) {
        let recipe = self.recipe;
        let mut gradients = self.means(b, d, found, count);
        let share = self.clipping(b, d, &gradients);
        let together = match recipe.optimiser {
            Optimiser::AdamW { beta1, beta2, epsilon } if recipe.operators == Operators::Fused => {
                Some(([beta1, beta2], epsilon))
            }
            _ => None,
        };
        if let (Some(share), None) = (&share, together) {
            gradients = gradients.iter().map(|g| b.op("Mul", &[g, share])).collect();
        }
        let mut parameters = Vec::new();
        for ((i, _), gradient) in found.iter().zip(&gradients) {
            let w = &self.selection.trained[*i];
            let parameter = self.parameter(w, gradient);
            if together.is_none() {
                recipe.optimiser.update(b, &parameter);
            }
            parameters.push(parameter);
            if recipe.ema {
                average(b, &w.name);
            }
            d.state.extend(self.state(w));
        }
        if let Some((betas, epsilon)) = together {
            let scale = share.unwrap_or_else(|| b.scalar(1.0));
            let guard = guard(b, d, &scale);
            update_together(b, &recipe.optimiser, &parameters, [&scale, &guard], betas, epsilon);
        }
        for name in recipe.optimiser.scalars() {
            let meaning = match name {
                LEARNING_RATE => "learning rate of this step",
                CORRECTION1 => "1 / (1 - beta1^t) for step t, counted from 1",
                _ => "1 / sqrt(1 - beta2^t) for step t, counted from 1",
            };
            d.inputs.push(scalar(name, meaning));
        }
        if recipe.ema {
            d.inputs.push(scalar(EMA_DECAY, "share of the moving average that is kept"));
        }
    }

    /// Gradients as means over the steps, without the scale of the loss.
    fn means(&self, b: &mut Builder, d: &mut Description, found: &[(usize, String)], count: usize) -> Vec<String> {
        let means: Vec<String> = found.iter().map(|(_, g)| b.scaled(g, 1.0 / count as f32)).collect();
        if !self.recipe.precision.scales() {
            return means;
        }
        if d.inputs.iter().all(|i| i.name != LOSS_SCALE) {
            d.inputs.push(scalar(LOSS_SCALE, SCALE_MEANING));
        }
        means.iter().map(|g| b.op("Div", &[g, LOSS_SCALE])).collect()
    }

    /// The norm of all gradients, where somebody asks for it, and what clipping multiplies them by.
    fn clipping(&self, b: &mut Builder, d: &mut Description, gradients: &[String]) -> Option<String> {
        let recipe = self.recipe;
        let measured = if recipe.clip.is_some() || recipe.precision.scales() { gradients } else { &[] };
        let squares: Vec<String> = measured
            .iter()
            .map(|g| {
                let square = b.op("Mul", &[g, g]);
                b.reduce_all("ReduceSum", &square)
            })
            .collect();
        if !squares.is_empty() {
            let refs: Vec<&str> = squares.iter().map(String::as_str).collect();
            let sum = b.op("Sum", &refs);
            b.op_as("Sqrt", &[&sum], vec![], GRADIENT_NORM);
            d.outputs.push(scalar(GRADIENT_NORM, "norm of all gradients together, before clipping"));
        }
        recipe.clip.map(|limit| {
            // As torch.nn.utils.clip_grad_norm_ does.
            let (limit, small) = (b.scalar(limit), b.scalar(1e-6));
            let norm = b.op("Add", &[GRADIENT_NORM, &small]);
            let share = b.op("Div", &[&limit, &norm]);
            b.at_most(&share, 1.0)
        })
    }

    /// How a weight follows its gradient.
    fn parameter<'p>(&self, w: &'p TrainedWeight, gradient: &'p str) -> Parameter<'p> {
        let steps_down = (self.selection.layers + 1 - w.depth.min(self.selection.layers + 1)) as i32;
        Parameter {
            name: &w.name,
            gradient,
            decay: if w.decays { self.recipe.weight_decay } else { 0.0 },
            rate: self.recipe.layer_decay.powi(steps_down),
        }
    }

    /// What is carried from step to step for a weight: itself, what the optimiser keeps for it, and its average.
    fn state(&self, w: &TrainedWeight) -> Vec<StateTensor> {
        let tensor = |name: String, initial: Option<String>| StateTensor {
            next: next(&name),
            name,
            shape: w.shape.clone(),
            initial,
        };
        let mut state = vec![tensor(w.name.clone(), Some(w.name.clone()))];
        state.extend(self.recipe.optimiser.moments(&w.name).into_iter().map(|m| tensor(m, None)));
        if self.recipe.ema {
            state.push(tensor(ema(&w.name), Some(w.name.clone())));
        }
        state
    }

    /// Makes inputs and outputs of the state, and a model of the graph.
    fn finish(&self, mut graph: GraphProto, d: Description) -> StepGraph {
        fix_shapes(&mut graph, self.typing);
        let trained: std::collections::HashSet<&str> = d.state.iter().map(|t| t.name.as_str()).collect();
        graph.initializer.retain(|t| !trained.contains(t.name()));
        let info = |name: &str, shape: &[usize]| {
            tensor_info(name, DataType::Float, &shape.iter().map(|&d| Some(d)).collect::<Vec<_>>())
        };
        let made: std::collections::HashSet<String> =
            graph.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
        graph.input = d.inputs.iter().map(|p| info(&p.name, &p.shape)).collect();
        graph.input.extend(d.state.iter().map(|t| info(&t.name, &t.shape)));
        graph.output = d.outputs.iter().map(|p| info(&p.name, &p.shape)).collect();
        graph.output.extend(d.state.iter().filter(|t| made.contains(&t.next)).map(|t| info(&t.next, &t.shape)));
        graph.value_info.clear();
        if self.recipe.precision == Precision::Bf16 {
            widen_where(&mut graph, DataType::Bfloat16, |n| runs_in_bfloat16(n, self.typing.opset));
        }
        graph::prune(&mut graph);
        let mut opset_import =
            vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(self.typing.opset) }];
        opset_import.extend(self.imports.iter().cloned());
        let proto = ModelProto {
            ir_version: Some(8),
            producer_name: Some("offshoot".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            opset_import,
            graph: Some(graph),
            ..Default::default()
        };
        StepGraph { model: Model::from_proto(proto), description: d }
    }
}

/// What says by being no finite number that the step is to be undone.
fn guard(b: &mut Builder, d: &Description, scale: &str) -> String {
    let said: Vec<&str> =
        d.outputs.iter().map(|o| o.name.as_str()).filter(|n| [LOSS, GRADIENT_NORM].contains(n)).collect();
    match said[..] {
        [] => scale.to_string(),
        [one] => one.to_string(),
        _ => b.op("Sum", &said),
    }
}

/// One node that updates every parameter.
fn update_together(
    b: &mut Builder,
    optimiser: &Optimiser,
    parameters: &[Parameter],
    [gradient_scale, guard]: [&str; 2],
    betas: [f64; 2],
    epsilon: f64,
) {
    let moments: Vec<Vec<String>> = parameters.iter().map(|p| optimiser.moments(p.name)).collect();
    let tensors: Vec<kernels::Tensor> = parameters
        .iter()
        .zip(&moments)
        .map(|(p, m)| kernels::Tensor {
            state: [p.name, &m[0], &m[1]],
            gradient: p.gradient,
            decay: p.decay,
            rate: p.rate,
        })
        .collect();
    let scalars = [LEARNING_RATE, CORRECTION1, CORRECTION2];
    b.nodes.push(kernels::AdamW { scalars, gradient_scale, guard, betas, epsilon }.node(&tensors, next));
}

const SCALE_MEANING: &str =
    "factor of the loss before it is differentiated; lower it where the norm of the gradients is not finite";

fn scalar(name: &str, meaning: &str) -> Port {
    Port { name: name.into(), shape: Vec::new(), meaning: meaning.into() }
}

/// Shape operands that arithmetic found become constants: at a fixed batch nothing about shapes is left to compute.
fn fix_shapes(graph: &mut GraphProto, typing: &Typing) {
    let mut names = graph::Names::new(graph);
    let mut made = std::collections::HashMap::new();
    let mut constants = Vec::new();
    for node in &mut graph.node {
        let op = ops::of(node);
        let of_shape = |j: &usize| op.slot(*j).is_of_shape();
        for j in (0..node.input.len()).filter(of_shape) {
            let x = &mut node.input[j];
            let Some(known) = typing.known.get(x.as_str()).filter(|_| !typing.weights.contains_key(x.as_str())) else {
                continue;
            };
            let name = made.entry(x.clone()).or_insert_with(|| {
                let name = names.fresh("offshoot_shape");
                let dims: Vec<usize> = known.data.shape().to_vec();
                constants.push(tensor_from_i64(name.clone(), &dims, &known.ints()));
                name
            });
            *x = name.clone();
        }
    }
    graph.initializer.extend(constants);
}

/// Memory that a step takes, as far as shapes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of weights, gradients and the optimiser's state, both sets of it.
    pub state: u64,
    /// Bytes of activations for one image: every value of the forward pass, which the backward pass reads again; of
    /// layers that are computed again only the largest.
    pub per_image: u64,
}

impl Memory {
    /// Estimates the memory of a step.
    ///
    /// # Errors
    /// Those of [`trainable_form`].
    pub fn estimate(model: &Model, image: [usize; 2], recipe: &Recipe) -> Result<Memory> {
        let (form, shape, _) = trainable_form(model, recipe.batch, image)?;
        let typing = typed(&form, shape[0], image)?;
        let size = |nodes: &mut dyn Iterator<Item = &NodeProto>| -> u64 {
            let values = nodes.flat_map(|n| &n.output).filter(|o| !typing.is_constant(o));
            values.filter_map(|o| typing.shape(o)).map(|s| s.iter().product::<usize>() as u64).sum()
        };
        let mut elements = size(&mut typing.graph.node.iter());
        if recipe.recompute {
            let of_layer = |(enter, leave): (String, String)| {
                let nodes = inside(&typing.graph.node, &enter, &leave);
                // What leaves it is kept.
                size(&mut nodes.into_iter().filter(|n| !n.output.contains(&leave)))
            };
            let layers: Vec<u64> = layers(&typing)?.into_iter().map(of_layer).collect();
            let again = layers.iter().sum::<u64>() - layers.iter().max().copied().unwrap_or(0);
            elements = elements.saturating_sub(again);
        }
        let weights = Selection::new(&typing, &[], &[])?.parameters() as u64;
        let tensors = 1 + recipe.optimiser.moments("").len() as u64 + u64::from(recipe.ema);
        let width = if recipe.precision == Precision::F32 { 4 } else { 2 };
        Ok(Memory { state: weights * 4 * (2 * tensors + 1), per_image: elements * width / shape[0] as u64 })
    }

    /// The largest batch that fits a device of so many bytes, with a tenth left for the runtime.
    pub fn batch(&self, device: u64) -> u64 {
        (device / 10 * 9).saturating_sub(self.state) / self.per_image.max(1)
    }
}

/// The forward graph with trained weights as inputs, to be run on the state of a training run: outputs of the model
/// itself.
///
/// `of` says which tensor of the state each weight is read from. `values` become outputs too, where they are none.
///
/// # Errors
/// Those of [`trainable_form`].
pub fn evaluation_graph(
    model: &Model,
    image: [usize; 2],
    batch: usize,
    selection: &Selection,
    values: &[String],
    of: impl Fn(&str) -> String,
) -> Result<(Model, Ports)> {
    let (mut model, _, _) = trainable_form(model, batch, image)?;
    let outputs: Vec<_> = {
        let typing = typed(&model, batch, image)?;
        let is_output = |v: &str| model.graph().output.iter().any(|o| o.name() == v);
        let more = values.iter().filter(|v| !is_output(v)).map(|v| (v.as_str(), None));
        let own = model.graph().output.iter().map(|o| (o.name(), graph::declared_type(o)));
        own.chain(more)
            .map(|(name, kind)| {
                let Some(shape) = typing.shape(name) else {
                    return Err(Error::new(ErrorKind::Usage, format!("the model computes no value `{name}`")));
                };
                let shape: Vec<_> = shape.into_iter().map(Some).collect();
                let kind = kind.and_then(|k| DataType::try_from(k).ok()).unwrap_or(DataType::Float);
                Ok(tensor_info(name, kind, &shape))
            })
            .collect::<Result<_>>()?
    };
    let graph = model.graph_mut();
    graph.output = outputs;
    let mut ports = Ports::default();
    for w in &selection.trained {
        let before = graph.initializer.len();
        graph.initializer.retain(|t| t.name() != w.name);
        if graph.initializer.len() == before {
            return Err(Error::new(ErrorKind::Internal, format!("the weight `{}` is gone", w.name)));
        }
        graph.input.retain(|i| i.name() != w.name);
        let dims: Vec<Option<usize>> = w.shape.iter().map(|&d| Some(d)).collect();
        graph.input.push(tensor_info(&w.name, DataType::Float, &dims));
        ports.reads.push((w.name.clone(), of(&w.name)));
    }
    Ok((model, ports))
}
