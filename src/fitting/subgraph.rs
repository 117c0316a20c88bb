//! A part of a network as a program of its own, and the form of a model that parts are cut from.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use ndarray::{ArrayD, Axis};

use crate::axes::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph;
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{DataType, Model, tensor_from_i64, tensor_info};
use crate::runtime::{DeviceTensors, Ports, Program, Runtime, fix_inputs, separate_skip_norms};

/// Values of one sample, by name.
pub type Values = HashMap<String, ArrayD<f32>>;

/// How many samples a batch has.
pub(super) fn size(batch: &Values) -> usize {
    batch.values().next().and_then(|v| v.shape().first().copied()).unwrap_or(1)
}

/// One sample of a batch.
pub(super) fn sample(batch: &Values, i: usize) -> Values {
    batch.iter().map(|(name, v)| (name.clone(), v.select(Axis(0), &[i]))).collect()
}

/// The name of the only input of a model that takes images.
pub fn image_input(graph: &GraphProto) -> String {
    graph::data_inputs(graph).first().map(|v| v.name().to_string()).unwrap_or_default()
}

/// The model with the axes that it leaves open as long as those of a sample, but for the batch.
pub(super) fn fixed_to(model: &Model, view: &Values) -> Model {
    let mut fixed = model.clone();
    graph::fix_lengths(fixed.graph_mut(), view.iter().map(|(name, array)| (name.as_str(), array.shape())));
    fixed
}

/// The model for batches of the shape of `view`: see [`pin`].
///
/// # Errors
/// Those of [`pin`].
pub fn pin_on(model: &Model, view: &Values) -> Result<Model> {
    pinned(&fixed_to(model, view), size(view))
}

/// The model for a batch of one sample of fixed size, in float32, with shapes as constants and no norms fused with the
/// sums before them.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a model of a fixed batch of several samples, and those of typing.
pub fn pin(model: &Model) -> Result<Model> {
    pinned(model, 1)
}

fn pinned(model: &Model, batch: usize) -> Result<Model> {
    let image = Typing::new(model)?.image_size();
    let mut out = model.clone();
    graph::prune(out.graph_mut());
    let inputs = fix_inputs(out.graph_mut(), batch, image, false)?;
    let shapes = inputs.iter().map(|input| input.fixed()).collect::<Result<Vec<_>>>()?;
    if let Some(shape) = shapes.iter().find(|shape| shape[0] != batch) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("the model takes batches of {} samples only, and fits work on one after the other", shape[0]),
        )
        .at(&model.path)
        .hint("export it with an open batch size, or with a batch of one"));
    }
    graph::widen(out.graph_mut(), &[DataType::Float16, DataType::Bfloat16])?;
    // What a matrix makes and what the stream is have names of their own only where sums and norms are two nodes.
    let apart = separate_skip_norms(&out, &Typing::new(&out)?)?;
    let mut out = apart.unwrap_or(out);
    let typing = Typing::new(&out)?;
    let shapes: Vec<(usize, TensorProto)> = (typing.graph.node.iter().enumerate())
        .filter(|(_, n)| matches!(n.op_type(), "Shape" | "Size"))
        .filter_map(|(k, n)| {
            let output = n.output.first()?;
            let known = typing.known.get(output.as_str())?;
            Some((k, tensor_from_i64(output.clone(), known.data.shape(), &known.ints())))
        })
        .collect();
    drop(typing);
    let graph = out.graph_mut();
    let gone: HashSet<usize> = shapes.iter().map(|s| s.0).collect();
    let mut k = 0;
    graph.node.retain(|_| {
        k += 1;
        !gone.contains(&(k - 1))
    });
    graph.initializer.extend(shapes.into_iter().map(|s| s.1));
    graph::forget_shapes(graph);
    Ok(out)
}

/// A part of a network as a program of its own, with as many sessions as there are threads that want one.
pub struct Subgraph {
    runtime: Arc<Runtime>,
    model: Model,
    /// Values that it needs.
    pub feeds: Vec<String>,
    /// Values that it makes.
    pub results: Vec<String>,
    idle: Mutex<Vec<Program>>,
}

impl Subgraph {
    /// The part of a pinned model between `feeds` and `results`.
    pub fn cut(
        runtime: &Arc<Runtime>,
        typing: &Typing,
        model: &Model,
        feeds: Vec<String>,
        results: Vec<String>,
    ) -> Subgraph {
        let mut model = model.clone();
        let declare = |name: &String| {
            let shape = typing.shape(name).unwrap_or_default();
            tensor_info(name.clone(), DataType::Float, &shape.into_iter().map(Some).collect::<Vec<_>>())
        };
        let graph = model.graph_mut();
        graph.input = feeds.iter().map(declare).collect();
        graph.output = results.iter().map(declare).collect();
        let fed: HashSet<&str> = feeds.iter().map(String::as_str).collect();
        graph.node.retain(|n| !n.output.iter().any(|o| fed.contains(o.as_str())));
        graph::prune(graph);
        // What no result needs is not fed.
        let feeds = graph.input.iter().map(|v| v.name().to_string()).collect();
        Subgraph { runtime: runtime.clone(), model, feeds, results, idle: Mutex::default() }
    }

    /// True where its results follow from what it is fed: nothing else is needed that is made before it.
    pub(super) fn is_whole(&self) -> bool {
        let graph = self.model.graph();
        let mut made: HashSet<&str> = graph.input.iter().map(|v| v.name()).collect();
        made.extend(graph.initializer.iter().map(|t| t.name()));
        made.extend(graph.node.iter().flat_map(|n| &n.output).map(String::as_str));
        let needed = graph.node.iter().flat_map(|n| &n.input).map(String::as_str).filter(|x| !x.is_empty());
        needed.chain(graph.output.iter().map(|o| o.name())).all(|x| made.contains(x))
    }

    /// Runs it on the values of one image.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
    pub fn run(&self, values: &Values) -> Result<Vec<ArrayD<f32>>> {
        let feeds = self
            .feeds
            .iter()
            .map(|f| match values.get(f) {
                Some(v) => Ok((f.as_str(), v.view())),
                None => bail!(Internal, "the value `{f}` was not kept"),
            })
            .collect::<Result<Vec<_>>>()?;
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = idle().pop();
        let mut program = match ready {
            Some(program) => program,
            None => self.runtime.load_program(&self.model, Ports::default())?,
        };
        let results = program.run(&mut DeviceTensors::default(), &feeds)?;
        idle().push(program);
        Ok(results)
    }
}
