//! A loaded graph that maps a batch of samples, images or other arrays, to named outputs.

use std::borrow::Cow;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use ndarray::{ArrayD, ArrayView4, ArrayViewD, Axis, Slice, concatenate};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::session::{Session as OrtSession, SessionInputValue};
use ort::value::{Shape, TensorRef, TensorRefMut};
use ort::{AsPointer, ep};

use super::kernels;
use super::recent::Recent;
use super::start::{Device, Runtime, RuntimeKind};
use super::tract::{WAY_OUT, for_tract};
use crate::axes::{Assumption, channels_last};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, data_inputs, declare_dim, declared_dims, declared_type, int_attribute};
use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};
use crate::onnx::{DataType, Model, Payload, encoded_len};
use crate::ops::{self, Mark};

/// Past this tract is given a model as a file, whose weights it maps: it holds those of a message twice.
const MAX_IN_MEMORY: u64 = 1 << 30;

/// ONNX Runtime's passes that move a Transpose through a graph once its nodes have an execution provider.
const TRANSPOSE_OPTIMIZERS: &str = "TransposeOptimizer_CPUExecutionProvider;TransposeOptimizer_CUDAExecutionProvider";

/// ONNX Runtime's pass that joins a sum and the LayerNormalization behind it, where shapes are known. On the processor
/// the joint operator works number by number: MiniLM takes 1.15 times as long with it (1.32).
const SKIP_NORM_FUSION: &str = "SkipLayerNormFusion";

/// A model that was loaded into the runtime, with inputs of fixed shapes, but for lengths that [`Runtime::load_open`]
/// leaves open.
pub struct Session {
    plan: Graphs,
    runtime: Arc<Runtime>,
    /// Its inputs, in the order of the model's.
    pub inputs: Vec<SessionInput>,
    outputs: Vec<String>,
    /// Samples in a batch.
    pub batch: usize,
    /// Whether a smaller batch runs as it is; else it is filled up, and the surplus dropped.
    open: bool,
}

/// What a session runs.
enum Graphs {
    /// One graph for all batches.
    One(OrtSession),
    /// A graph for each shape that batches have: the library wants to know every size, and the model leaves some open.
    Each { model: Box<Model>, purpose: Purpose, image: [usize; 2], loaded: Recent<Vec<Vec<usize>>, OrtSession> },
}

/// An input of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInput {
    /// Its name.
    pub name: String,
    /// Its shape: the batch, then a sample; of an image channels, height and width in the model's own order. `None` for
    /// a length that may be another in every batch.
    pub shape: Vec<Option<usize>>,
}

impl SessionInput {
    /// The shape of an input that has one.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a length is open.
    pub fn fixed(&self) -> Result<Vec<usize>> {
        let fixed: Option<Vec<usize>> = self.shape.iter().copied().collect();
        fixed.ok_or_else(|| leaves_open(&self.name))
    }

    fn is_open(&self) -> bool {
        self.shape.contains(&None)
    }

    /// True where an array has the shape of a sample along all axes but the first.
    fn takes(&self, shape: &[usize]) -> bool {
        let fits = |(own, n): (&Option<usize>, &usize)| own.is_none_or(|own| own == *n);
        shape.len() == self.shape.len() && self.shape.iter().zip(shape).skip(1).all(fits)
    }

    /// The shape of a sample in a sentence.
    fn sample(&self) -> String {
        let size = |n: &Option<usize>| n.map_or("?".to_string(), |n| n.to_string());
        format!("[{}]", self.shape.iter().skip(1).map(size).collect::<Vec<_>>().join(", "))
    }
}

fn leaves_open(input: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the input `{input}` leaves its shape open"))
        .hint("⟦inputs⟧ FILE.npz gives an array for each input, and with it its shape")
}

/// What a graph is loaded for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// One batch: ONNX Runtime does not pack its weights for its products, which takes longer than it saves, and their
    /// memory twice.
    Once,
    /// Any number of batches.
    Often,
    /// Training steps, which are large and of fixed shapes: memory is taken as it is needed, which halves its peak.
    Training,
}

/// A batch size that keeps activations small for images of a height and width: 8 at 224 pixels, more for smaller ones,
/// and no more than there are `images`.
pub fn suggested_batch(size: [usize; 2], images: usize) -> usize {
    let pixels = size[0] * size[1];
    (8 * 224 * 224 / pixels.max(1)).clamp(1, 64).min(images.max(1))
}

/// The same for what a model takes: by the longest axis behind the batch of its inputs where none is an image.
fn batch_for(model: &Model, image: [usize; 2], samples: usize) -> usize {
    // As many tokens as eight images of 224 pixels have.
    const TOKENS: usize = 8 * 196;
    let dims: Vec<_> = data_inputs(model.graph()).into_iter().filter_map(declared_dims).collect();
    if dims.iter().any(|d| d.len() == 4) {
        return suggested_batch(image, samples);
    }
    let tokens = dims.iter().filter_map(|d| *d.get(1)?).max().unwrap_or(1);
    (TOKENS / tokens.max(1)).clamp(1, 64).min(samples.max(1))
}

impl Runtime {
    /// Loads a model whose inputs are batches of samples. What no output needs is cut away first. A batch size that the
    /// model fixes wins over `batch`; an image size that it leaves open becomes `image` (height, width).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for models that leave other axes open, [`ErrorKind::Runtime`] where the runtime
    /// cannot load it.
    pub fn load(self: &Arc<Self>, model: &Model, batch: usize, image: [usize; 2]) -> Result<Session> {
        self.load_to(Purpose::Often, model, batch, image, false)
    }

    /// Loads a model as [`Runtime::load`] does, whose inputs may leave other axes open: such a length is the same for
    /// the samples of a batch, and may be another in the next. Where the library wants to know every size, the model is
    /// loaded for each shape that batches have; the last few are kept.
    ///
    /// # Errors
    /// Those of [`Runtime::load`]; of loading it for some length, [`Session::run_on`] tells.
    pub fn load_open(self: &Arc<Self>, model: &Model, batch: usize, image: [usize; 2]) -> Result<Session> {
        self.load_to(Purpose::Often, model, batch, image, true)
    }

    /// Loads a model as [`Runtime::load`] does, for so many samples in batches of [`suggested_batch`]: the less for few
    /// of them.
    ///
    /// # Errors
    /// Those of [`Runtime::load`].
    pub fn load_for(self: &Arc<Self>, samples: usize, model: &Model, image: [usize; 2]) -> Result<Session> {
        let batch = batch_for(model, image, samples);
        // ONNX Runtime rounds what weights in int8 are multiplied with, but only where it prepacks them (1.32): what a
        // model says would depend on how many samples there are.
        let has_int8 = model.graph().node.iter().any(|n| ops::of(n).is(Mark::Dequantised));
        let purpose = if samples <= batch && !has_int8 { Purpose::Once } else { Purpose::Often };
        self.load_to(purpose, model, batch, image, false)
    }

    fn load_to(
        self: &Arc<Self>,
        purpose: Purpose,
        model: &Model,
        batch: usize,
        image: [usize; 2],
        any_length: bool,
    ) -> Result<Session> {
        let mut model = model.clone();
        graph::prune(model.graph_mut());
        if self.device == Device::Cpu {
            // Neither library has kernels for bfloat16 on the processor; float32 holds it exactly.
            graph::widen(model.graph_mut(), &[DataType::Bfloat16])?;
        }
        // Where ONNX Runtime knows the batch, its passes for the processor fuse products and biases to what is slower,
        // DeiT-small by 6 %: batches stay open there. Half precision is loaded with a batch that is known, the form in
        // which it is tested.
        let open = self.kind == RuntimeKind::Onnxruntime
            && self.device == Device::Cpu
            && !graph::element_types(model.graph()).values().any(|t| *t == DataType::Float16);
        let inputs = fix_inputs(model.graph_mut(), batch, image, open)?;
        if !any_length {
            inputs.iter().try_for_each(|input| input.fixed().map(drop))?;
        }
        let open_batch = data_inputs(model.graph()).iter().any(|v| declared_dims(v).is_some_and(|d| d[0].is_none()));
        let batch = inputs.first().and_then(|i| i.shape[0]).unwrap_or(batch);
        let outputs = model.graph().output.iter().map(|o| o.name().to_string()).collect();
        // What may take any batch takes any length.
        let plan = match !open && inputs.iter().any(SessionInput::is_open) {
            true => Graphs::Each { model: Box::new(model), purpose, image, loaded: Recent::new() },
            false => Graphs::One(self.ready(model, purpose, Assumption { batch, image })?),
        };
        Ok(Session { plan, runtime: self.clone(), inputs, outputs, batch, open: open_batch })
    }

    /// Loads a model in the form that the library takes it in; its sizes are fixed where the library wants them so.
    fn ready(&self, mut model: Model, purpose: Purpose, assumption: Assumption) -> Result<OrtSession> {
        if self.kind == RuntimeKind::Tract {
            for_tract(&mut model, assumption)?;
        }
        float_borders(model.graph_mut());
        guarded(self.kind, || self.build(model, purpose))
    }

    /// Says what a graph of fixed sizes has that the library has not, before anything is run.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`] and [`ErrorKind::Unsupported`]; they name a node.
    pub fn check(&self, model: &Model) -> Result<()> {
        match self.kind {
            RuntimeKind::Tract => for_tract(&mut model.clone(), Assumption::default()),
            _ => Ok(()),
        }
    }

    /// Loads a graph.
    pub(super) fn build(&self, model: Model, purpose: Purpose) -> Result<OrtSession> {
        let fail = |e: String| load_error(self.kind, &e);
        let mut builder = OrtSession::builder(&self.environment).map_err(|e| fail(e.to_string()))?;
        if self.kind == RuntimeKind::Onnxruntime {
            // The library moves a Transpose past a Resize that it then cannot run: to channels last, which shrinks only
            // with antialiasing (seen with 1.32). Where weights are constants it folds both away first.
            let resizes = purpose == Purpose::Training && model.graph().node.iter().any(|n| n.op_type() == "Resize");
            let harmful = [(resizes, TRANSPOSE_OPTIMIZERS), (self.device == Device::Cpu, SKIP_NORM_FUSION)];
            let harmful: Vec<&str> = harmful.iter().filter(|(is, _)| *is).map(|(_, passes)| *passes).collect();
            let set = |b: SessionBuilder| -> std::result::Result<SessionBuilder, String> {
                let b = b.with_intra_threads(self.threads).map_err(|e| e.to_string())?;
                // Threads that spin after a run take the cores from whatever runs next: another session, a data loader.
                let b = b.with_config_entry("session.force_spinning_stop", "1").map_err(|e| e.to_string())?;
                let b = b.with_disabled_optimizers(harmful.join(";")).map_err(|e| e.to_string())?;
                match purpose {
                    Purpose::Often => return Ok(b),
                    Purpose::Once => return b.with_prepacking(false).map_err(|e| e.to_string()),
                    Purpose::Training => {}
                }
                b.with_memory_pattern(false).map_err(|e| e.to_string())
            };
            builder = set(builder).map_err(fail)?;
            if self.device == Device::Cuda {
                builder = builder
                    .with_execution_providers([ep::CUDA::default().with_tf32(self.tf32).build().error_on_failure()])
                    .map_err(|e| fail(format!("the CUDA execution provider cannot start: {e}")))?;
            }
        }
        if model.proto.opset_import.iter().any(|o| o.domain() == kernels::DOMAIN) {
            if self.kind == RuntimeKind::Tract || self.device != Device::Cpu {
                let place = if self.kind == RuntimeKind::Tract { "tract" } else { "CUDA" };
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("the graph uses Offshoot's fused operators, which {place} does not run"),
                )
                .hint("build it of standard operators, or run it on ONNX Runtime's processor"));
            }
            let operators = kernels::domain().map_err(|e| fail(e.to_string()))?;
            builder = builder.with_operators(operators).map_err(|e| fail(e.to_string()))?;
        }
        if self.kind == RuntimeKind::Tract {
            // tract optimises only when it is told to.
            builder = builder.with_optimization_level(GraphOptimizationLevel::All).map_err(|e| fail(e.to_string()))?;
        }
        if self.kind == RuntimeKind::Onnxruntime {
            return commit(builder, model).map_err(|e| fail(e.to_string()));
        }
        if encoded_len(&model.proto) <= MAX_IN_MEMORY {
            return builder.commit_from_memory(&model.to_bytes()).map_err(|e| fail(e.to_string()));
        }
        let folder = tempfile::tempdir().map_err(|e| Error::io(std::env::temp_dir(), e))?;
        let path = folder.path().join("model.onnx");
        model.write(&path)?;
        builder.commit_from_file(&path).map_err(|e| fail(e.to_string()))
    }
}

/// Hands ONNX Runtime a model whose weights it copies from where they lie: those of float32 as tensors, which it copies
/// once, others as files in memory.
fn commit(builder: SessionBuilder, model: Model) -> ort::Result<OrtSession> {
    let (message, payloads) = model.into_parts();
    // Declared after the payloads, so that it ends before them.
    let mut builder = builder;
    for payload in &payloads {
        if is_plain(payload) {
            add_initializer(&mut builder, payload)?;
            continue;
        }
        // SAFETY: the builder alone keeps the slice. The library copies what it needs of it while it loads the message,
        // which is before the payloads end.
        let file: &'static [u8] = unsafe { std::slice::from_raw_parts(payload.bytes.as_ptr(), payload.bytes.len()) };
        builder = builder.with_external_initializer_file_in_memory(&payload.file, Cow::Borrowed(file))?;
    }
    builder.commit_from_memory(&message)
}

/// True for float32 in this processor's order of bytes, as many as the shape says.
fn is_plain(payload: &Payload) -> bool {
    let bytes = payload.dims.iter().try_fold(4u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?));
    cfg!(target_endian = "little") && payload.kind == Some(DataType::Float) && bytes == Some(payload.bytes.len() as u64)
}

/// Gives a session that is to be loaded the values of an initializer of float32, which it copies then: they have to
/// live until it is.
fn add_initializer(builder: &mut SessionBuilder, payload: &Payload) -> ort::Result<()> {
    let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?;
    let (values, shape) = (payload.bytes.as_ptr().cast_mut().cast(), Shape::new(payload.dims.iter().copied()));
    // SAFETY: the bytes are as many as the shape takes and outlive the value; all that the library does with them is to
    // copy them, so that they may lie at any address.
    let value = unsafe { TensorRefMut::<f32>::from_raw(memory, values, shape)? };
    let name = CString::new(payload.name.as_str()).map_err(ort::Error::wrap)?;
    // SAFETY: the options, the name and the value live through the call, which takes a handle of its own of the value.
    let status = unsafe { (ort::api().AddExternalInitializers)(builder.ptr_mut(), &name.as_ptr(), &value.ptr(), 1) };
    // SAFETY: the status is the one that the call returned.
    unsafe { ort::Error::result_from_status(status) }
}

pub(super) fn load_error(kind: RuntimeKind, message: &str) -> Error {
    let message = message.trim().lines().take(6).collect::<Vec<_>>().join(" ");
    let error = Error::new(ErrorKind::Runtime, format!("{} cannot run this graph: {message}", kind.name()));
    match kind {
        RuntimeKind::Tract => error.hint(WAY_OUT),
        _ => error.hint("check the model with `onnx.checker.check_model`"),
    }
}

/// A panic inside the runtime is the model's fault as far as a user can tell, never an internal fault of ours.
pub(super) fn guarded<T>(kind: RuntimeKind, work: impl FnOnce() -> Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()))
                .unwrap_or_else(|| "it panicked".into());
            Err(load_error(kind, &text))
        }
    }
}

/// Gives the image input, the only one, a fixed shape: its name, its shape, and whether channels are its last axis.
pub(crate) fn fix_input(graph: &mut GraphProto, batch: usize, image: [usize; 2]) -> Result<(String, [usize; 4], bool)> {
    let names: Vec<String> = data_inputs(graph).iter().map(|v| v.name().to_string()).collect();
    if names.len() != 1 {
        return Err(several(&names));
    }
    let last = data_inputs(graph).first().and_then(|v| declared_dims(v)).is_some_and(|d| channels_last(&d));
    let inputs = fix_inputs(graph, batch, image, false)?;
    let input = inputs.into_iter().next().map(|i| Ok((i.fixed()?, i.name))).transpose()?;
    let input = input.and_then(|(shape, name)| Some((name, <[usize; 4]>::try_from(shape).ok()?)));
    match input {
        Some((name, shape)) => Ok((name, shape, last)),
        None => Err(Error::new(ErrorKind::Unsupported, format!("the input `{}` is not a batch of images", names[0]))
            .hint("Offshoot feeds [batch, channels, height, width] or [batch, height, width, channels]")),
    }
}

fn several(inputs: &[String]) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the model has the inputs {inputs:?}, not one image"))
        .hint("export the image encoder alone")
}

/// Gives all data inputs fixed shapes, up to a batch that may stay `open` where the model does not fix it, and lengths
/// that are none of an image. They take floats from then on.
pub(crate) fn fix_inputs(
    graph: &mut GraphProto,
    batch: usize,
    image: [usize; 2],
    open: bool,
) -> Result<Vec<SessionInput>> {
    let inputs: Vec<ValueInfoProto> = data_inputs(graph).into_iter().cloned().collect();
    let dims: Vec<Vec<Option<usize>>> = inputs.iter().map(|v| declared_dims(v).unwrap_or_default()).collect();
    let mut fixed: Vec<usize> = dims.iter().filter_map(|d| *d.first()?).collect();
    fixed.dedup();
    if fixed.len() > 1 {
        return Err(Error::new(ErrorKind::Unsupported, format!("the model's inputs fix batches of {fixed:?}"))
            .hint("give what is the same for all samples with ⟦feed⟧ NAME=VALUE"));
    }
    let open = open && fixed.is_empty();
    let batch = fixed.first().copied().unwrap_or(batch);
    let mut found = Vec::new();
    for (info, dims) in inputs.iter().zip(dims) {
        let name = info.name();
        let own = match (dims.len(), channels_last(&dims)) {
            (0, _) => return Err(leaves_open(name)),
            (4, true) => vec![Some(batch), Some(image[0]), Some(image[1]), Some(3)],
            (4, false) => vec![Some(batch), Some(3), Some(image[0]), Some(image[1])],
            _ => std::iter::once(Some(batch)).chain(dims.iter().skip(1).copied()).collect(),
        };
        let shape: Vec<Option<usize>> = dims.iter().zip(own).map(|(d, own)| d.or(own)).collect();
        if let Some(info) = graph.input.iter_mut().find(|v| v.name() == name) {
            let known = shape.iter().enumerate().skip(usize::from(open));
            known.filter_map(|(axis, size)| Some((axis, (*size)?))).for_each(|(axis, n)| declare_dim(info, axis, n));
        }
        let kind = declared_type(info).and_then(|t| DataType::try_from(t).ok());
        if let Some(kind) = kind.filter(|&t| graph::is_integer(t) || t == DataType::Bool) {
            take_floats(graph, name, kind);
        }
        found.push(SessionInput { name: name.to_string(), shape });
    }
    Ok(found)
}

/// Lets an input of whole numbers take floats, which are rounded: pictures that were mixed are in between.
fn take_floats(graph: &mut GraphProto, input: &str, kind: DataType) {
    let mut names = graph::Names::new(graph);
    let [rounded, inside] = ["rounded", "whole"].map(|what| names.fresh(&format!("{input}_{what}")));
    for node in &mut graph.node {
        node.input.iter_mut().filter(|x| *x == input).for_each(|x| *x = inside.clone());
    }
    let to = int_attribute("to", kind as i64);
    let nodes =
        [graph::node("Round", &[input], &[&rounded], vec![]), graph::node("Cast", &[&rounded], &[&inside], vec![to])];
    graph.node.splice(0..0, nodes);
    retype(graph.input.iter_mut().find(|v| v.name() == input));
}

/// Puts casts at the borders of models in half precision, so that images and outputs are f32.
pub(super) fn float_borders(graph: &mut GraphProto) {
    let half = |t: Option<i32>| {
        matches!(t.map(DataType::try_from), Some(Ok(DataType::Float16 | DataType::Bfloat16 | DataType::Double)))
    };
    let mut names = graph::Names::new(graph);
    let cast =
        |from: &str, to: &str, kind: i32| graph::node("Cast", &[from], &[to], vec![int_attribute("to", kind as i64)]);
    let inputs: Vec<(String, Option<i32>)> =
        data_inputs(graph).into_iter().map(|v| (v.name().to_string(), declared_type(v))).collect();
    for (input, kind) in inputs.into_iter().filter(|(_, kind)| half(*kind)) {
        let inside = names.fresh(&format!("{input}_cast"));
        for node in &mut graph.node {
            node.input.iter_mut().filter(|x| **x == input).for_each(|x| *x = inside.clone());
        }
        graph.node.insert(0, cast(&input, &inside, kind.unwrap_or_default()));
        retype(graph.input.iter_mut().find(|v| v.name() == input));
    }
    let outputs: Vec<(String, Option<i32>)> =
        graph.output.iter().map(|o| (o.name().to_string(), declared_type(o))).collect();
    for (output, kind) in outputs {
        if half(kind) {
            let inside = names.fresh(&format!("{output}_cast"));
            for node in &mut graph.node {
                node.input
                    .iter_mut()
                    .chain(node.output.iter_mut())
                    .filter(|x| **x == output)
                    .for_each(|x| *x = inside.clone());
            }
            // The node that made the output may be called like it.
            let cast = cast(&inside, &output, DataType::Float as i32);
            graph.node.push(NodeProto { name: Some(names.fresh(&format!("{inside}_node"))), ..cast });
            retype(graph.output.iter_mut().find(|v| v.name() == output));
        }
    }
}

fn retype(info: Option<&mut ValueInfoProto>) {
    use crate::onnx::proto::type_proto::Value;
    if let Some(Value::TensorType(t)) = info.and_then(|i| i.r#type.as_mut()).and_then(|t| t.value.as_mut()) {
        t.elem_type = Some(DataType::Float as i32);
    }
}

impl Session {
    /// Names of the outputs, in order.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Runs any number of images and returns every output, images along the first axis.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a model of several inputs, [`ErrorKind::Runtime`].
    pub fn run(&mut self, images: ArrayView4<f32>) -> Result<Vec<ArrayD<f32>>> {
        self.run_on(&[("image", images.into_dyn())])
    }

    /// Runs any number of samples, an array for each input by its name, and returns every output, samples along the
    /// first axis. Where there is one array and one input, names do not matter; what no input takes is left out.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where an input has no array, [`ErrorKind::Images`] for arrays of other shapes,
    /// [`ErrorKind::Runtime`].
    pub fn run_on(&mut self, arrays: &[(&str, ArrayViewD<f32>)]) -> Result<Vec<ArrayD<f32>>> {
        let mut parts: Vec<Vec<ArrayD<f32>>> = vec![Vec::new(); self.outputs.len()];
        let n = arrays.first().map_or(0, |(_, a)| a.len_of(Axis(0)));
        let mut at = 0;
        while at < n {
            let count = self.batch.min(n - at);
            let chunk: Vec<(&str, ArrayViewD<f32>)> =
                arrays.iter().map(|(name, a)| (*name, a.slice_axis(Axis(0), Slice::from(at..at + count)))).collect();
            for (list, mut output) in parts.iter_mut().zip(self.run_batch(&chunk)?) {
                if count < self.batch && output.ndim() > 0 && output.len_of(Axis(0)) == self.batch {
                    output.slice_axis_inplace(Axis(0), Slice::from(..count));
                }
                list.push(output);
            }
            at += count;
        }
        parts
            .into_iter()
            .map(|list| {
                let views: Vec<_> = list.iter().map(|a| a.view()).collect();
                match views.first() {
                    Some(first) if first.ndim() > 0 => concatenate(Axis(0), &views).map_err(|e| {
                        Error::new(ErrorKind::Runtime, format!("outputs of two batches differ in shape: {e}"))
                    }),
                    _ => Ok(list.into_iter().next().unwrap_or_default()),
                }
            })
            .collect()
    }

    /// Runs one batch, filled up with its last sample where it is smaller than the session's, and that is fixed.
    fn run_batch(&mut self, arrays: &[(&str, ArrayViewD<f32>)]) -> Result<Vec<ArrayD<f32>>> {
        let ordered = in_order(&self.inputs, arrays)?;
        let mut filled = Vec::with_capacity(self.inputs.len());
        for array in &ordered {
            let count = array.len_of(Axis(0));
            filled.push(if count == self.batch || self.open {
                array.as_standard_layout()
            } else {
                let rows: Vec<usize> = (0..self.batch).map(|i| i.min(count - 1)).collect();
                array.select(Axis(0), &rows).into()
            });
        }
        let (runtime, inputs, outputs) = (&self.runtime, &self.inputs, &self.outputs);
        let kind = runtime.kind;
        let inner = match &mut self.plan {
            Graphs::One(inner) => inner,
            Graphs::Each { model, purpose, image, loaded } => {
                let shapes = filled.iter().map(|array| array.shape().to_vec()).collect();
                let assumption = Assumption { batch: self.batch, image: *image };
                loaded.get(shapes, |shapes| {
                    let mut model = Model::clone(model);
                    let fixed = inputs.iter().map(|i| i.name.as_str()).zip(shapes.iter().map(Vec::as_slice));
                    graph::fix_lengths(model.graph_mut(), fixed);
                    runtime.ready(model, *purpose, assumption)
                })?
            }
        };
        guarded(kind, || {
            let fail = |e: String| Error::new(ErrorKind::Runtime, format!("{} failed: {e}", kind.name()));
            let mut feed: Vec<(String, SessionInputValue)> = Vec::with_capacity(filled.len());
            for (input, array) in inputs.iter().zip(&filled) {
                let tensor = TensorRef::from_array_view(array).map_err(|e| fail(e.to_string()))?;
                feed.push((input.name.clone(), tensor.into()));
            }
            let results = inner.run(feed).map_err(|e| fail(e.to_string()))?;
            outputs
                .iter()
                .map(|o| {
                    let value = results.get(o).ok_or_else(|| fail(format!("no output `{o}`")))?;
                    to_float(value).map_err(|e| fail(format!("output `{o}`: {e}")))
                })
                .collect()
        })
    }

    /// Seconds of one batch.
    ///
    /// # Errors
    /// [`ErrorKind::Runtime`].
    pub fn seconds(&mut self, arrays: &[(&str, ArrayViewD<f32>)]) -> Result<f64> {
        let batch = self.batch;
        let first = |a: &ArrayViewD<f32>| Slice::from(..a.len_of(Axis(0)).min(batch));
        let one: Vec<(&str, ArrayViewD<f32>)> =
            arrays.iter().map(|(name, a)| (*name, a.slice_axis(Axis(0), first(a)))).collect();
        let start = Instant::now();
        self.run_batch(&one)?;
        Ok(start.elapsed().as_secs_f64())
    }
}

/// The arrays that inputs take, in the order of these. Where there is one of both, names do not matter.
pub(super) fn in_order<'a>(
    inputs: &[SessionInput],
    arrays: &'a [(&str, ArrayViewD<f32>)],
) -> Result<Vec<ArrayViewD<'a, f32>>> {
    let of = |input: &SessionInput| {
        let array = match (arrays, inputs.len()) {
            ([(_, only)], 1) => only,
            _ => match arrays.iter().find(|(name, _)| *name == input.name) {
                Some((_, array)) => array,
                None => return Err(several(&inputs.iter().map(|i| i.name.clone()).collect::<Vec<_>>())),
            },
        };
        if !input.takes(array.shape()) {
            let what = if input.shape.len() == 4 { "images" } else { "samples" };
            let (own, wanted) = (array.shape().get(1..).unwrap_or_default(), input.sample());
            let message = format!("{what} of shape {own:?} do not fit the model's input {wanted}");
            return Err(Error::new(ErrorKind::Images, message));
        }
        Ok(array.view())
    };
    inputs.iter().map(of).collect()
}

pub(super) fn to_float(value: &ort::value::DynValue) -> std::result::Result<ArrayD<f32>, String> {
    if let Ok(a) = value.try_extract_array::<f32>() {
        return Ok(a.to_owned());
    }
    if let Ok(a) = value.try_extract_array::<i64>() {
        return Ok(a.mapv(|v| v as f32));
    }
    if let Ok(a) = value.try_extract_array::<i32>() {
        return Ok(a.mapv(|v| v as f32));
    }
    value.try_extract_array::<bool>().map(|a| a.mapv(|v| v as u8 as f32)).map_err(|e| e.to_string())
}
