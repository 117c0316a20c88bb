//! The operators as ONNX Runtime sees them: names, inputs, outputs, attributes, and how their work is cut for its
//! threads.

use std::ops::Range;

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::TensorElementType::Float32;
use ort::value::ValueType;
use ort::{AsPointer, sys};

use super::adamw::{Step, Tensors, adamw};
use super::attention::{self, HeadDims, Rows, RowsMut, Saved};
use super::lanes::{Width, widths};
use super::normalization::layer_norm_gradient;
use super::pointwise::{gelu, gelu_gradient, softmax_gradient};
use super::product::{self, Weights, linear, pack, weight_gradient};
use super::scratch::with_scratch;

/// The domain of the operators.
pub(crate) const DOMAIN: &str = "offshoot";

/// Numbers of an elementwise operator that one task works on.
const CHUNK: usize = 1 << 15;
/// Tasks of an operator that sums over rows; fixed, so that sums are the same on any number of threads.
const SUMS: usize = 16;

/// All operators, to be added to a session.
///
/// # Errors
/// Those of ONNX Runtime.
pub(crate) fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new(DOMAIN)?
        .add(Gelu)?
        .add(GeluGradient)?
        .add(SoftmaxGradient)?
        .add(LayerNormalizationGradient)?
        .add(AdamW)?
        .add(Attention)?
        .add(AttentionGradient)?
        .add(Linear)?
        .add(WeightGradient)
}

fn wrong(what: &str) -> ort::Error {
    ort::Error::new(what)
}

fn checked(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status was just returned by the library.
    unsafe { ort::Error::result_from_status(status) }
}

/// Where the numbers of a tensor lie.
unsafe fn data(value: *mut sys::OrtValue) -> ort::Result<*mut f32> {
    let mut start = std::ptr::null_mut();
    // SAFETY: the caller names a tensor.
    checked(unsafe { (ort::api().GetTensorMutableData)(value, &mut start) })?;
    Ok(start.cast())
}

/// The widest vectors of this processor.
fn width() -> Width {
    widths().next().unwrap_or(Width::Portable)
}

/// A tensor that is read. A pointer, because ONNX Runtime may give an output the memory of an input.
#[derive(Clone)]
struct Input {
    shape: Vec<i64>,
    start: *const f32,
    len: usize,
}

impl Input {
    fn of(c: &ComputeContext, index: usize) -> ort::Result<Input> {
        Self::optional(c, index)?.ok_or_else(|| wrong("an input is missing"))
    }

    fn optional(c: &ComputeContext, index: usize) -> ort::Result<Option<Input>> {
        if index >= c.num_inputs()? {
            return Ok(None);
        }
        // The library's own functions: `ComputeContext::input` and `output` lose a type description with every call
        // (ort 2.0.0-rc.14), some hundreds a step.
        let mut value = std::ptr::null();
        let mut kind = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        let (mut dims, mut rank) = (std::ptr::null(), 0);
        // SAFETY: the context lives through the call, and the value and its dimensions as long as the context.
        let shape = unsafe {
            let api = ort::api();
            checked((api.KernelContext_GetInput)(c.ptr(), index, &mut value))?;
            if value.is_null() {
                return Ok(None);
            }
            checked((api.GetTensorElementTypeAndShapeDataReference)(value, &mut kind, &mut dims, &mut rank))?;
            if rank == 0 { Vec::new() } else { std::slice::from_raw_parts(dims, rank).to_vec() }
        };
        if kind != sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT {
            return Err(wrong("an input is not of float32"));
        }
        let len = shape.iter().map(|&n| n as usize).product();
        // SAFETY: the value is a tensor, which is only read.
        let start = unsafe { data(value.cast_mut())? };
        Ok(Some(Input { shape, start, len }))
    }

    fn last(&self) -> usize {
        self.shape.last().map_or(1, |&n| n as usize)
    }
}

/// Memory that tasks write to, each its own part.
#[derive(Clone, Copy)]
struct Output(*mut f32);

impl Output {
    fn of(c: &ComputeContext, index: usize, shape: &[i64]) -> ort::Result<Output> {
        let mut value = std::ptr::null_mut();
        // SAFETY: the context lives through the call. Operators declare their outputs as float32.
        unsafe {
            let get = ort::api().KernelContext_GetOutput;
            checked(get(c.ptr().cast_mut(), index, shape.as_ptr(), shape.len(), &mut value))?;
            if value.is_null() {
                return Err(wrong("an output is missing"));
            }
            Ok(Output(data(value)?))
        }
    }
}

/// Pointers that tasks on several threads share.
#[derive(Clone, Copy)]
struct Shared<T>(T);
// SAFETY: tasks read inputs, and write disjoint parts of outputs.
unsafe impl<T> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    fn get(&self) -> T {
        self.0
    }
}

/// Runs `work` on each of `tasks` parts of `total`.
fn parts(
    c: &ComputeContext,
    total: usize,
    tasks: usize,
    work: impl Fn(usize, Range<usize>) + Sync + Send,
) -> ort::Result<()> {
    let tasks = tasks.clamp(1, total.max(1));
    let part = move |i: usize| work(i, total * i / tasks..total * (i + 1) / tasks);
    if tasks == 1 {
        part(0);
        return Ok(());
    }
    c.par_for(tasks, 0, part)
}

/// Gives an output the shape of an input, so that ONNX Runtime can plan memory; not where a dimension is open, which
/// `ort` would declare as -1, and not where there is none, which may be a shape that is not known.
fn shaped(c: &mut ShapeInferenceContext, output: usize, like: &ValueType) -> ort::Result<()> {
    match like.tensor_shape() {
        Some(shape) if !shape.is_empty() && shape.iter().all(|&n| n > 0) => c.set_output(output, like),
        _ => Ok(()),
    }
}

/// An operator whose output has the shape of its first input.
fn same_shape(c: &mut ShapeInferenceContext) -> ort::Result<()> {
    let inputs = c.inputs();
    shaped(c, 0, inputs.first().ok_or_else(|| wrong("an input is missing"))?)
}

fn is_tanh(k: &KernelContext) -> bool {
    k.get::<String>("approximate").as_deref() == Some("tanh")
}

fn is_transposed(k: &KernelContext) -> bool {
    k.get::<i64>("transB") == Some(1)
}

/// Into how many parts to cut what is cut best into few.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn required<const N: usize>() -> [OperatorInput; N] {
    std::array::from_fn(|_| OperatorInput::required(Float32))
}

fn outputs<const N: usize>() -> [OperatorOutput; N] {
    std::array::from_fn(|_| OperatorOutput::required(Float32))
}

/// `Gelu(x) -> y`, with the attribute `approximate` (`none` or `tanh`) of ONNX's Gelu (opset 20).
struct Gelu;

impl Operator for Gelu {
    type Kernel<'k> = BoxedKernel<'k>;

    fn name(&self) -> &str {
        "Gelu"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<1>()
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<1>()
    }
    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        same_shape(c)
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (tanh, width) = (is_tanh(k), width());
        Ok(Box::new(move |c: &ComputeContext| {
            let x = Input::of(c, 0)?;
            let y = Output::of(c, 0, &x.shape)?;
            let s = Shared((x.start, y.0));
            parts(c, x.len, x.len.div_ceil(CHUNK), move |_, r| {
                let (x, y) = s.get();
                // SAFETY: the range lies within both.
                unsafe { gelu(width, r.len(), x.add(r.start), y.add(r.start), tanh) }
            })
        }))
    }
}

/// `GeluGradient(g, x) -> gx`, with the attribute `approximate`.
struct GeluGradient;

impl Operator for GeluGradient {
    type Kernel<'k> = BoxedKernel<'k>;
    const INPLACES: &[(u32, u32)] = &[(0, 0)];

    fn name(&self) -> &str {
        "GeluGradient"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<2>()
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<1>()
    }
    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        same_shape(c)
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (tanh, width) = (is_tanh(k), width());
        Ok(Box::new(move |c: &ComputeContext| {
            let (g, x) = (Input::of(c, 0)?, Input::of(c, 1)?);
            if g.len != x.len {
                return Err(wrong("GeluGradient: the gradient has another shape than the input"));
            }
            let y = Output::of(c, 0, &g.shape)?;
            let s = Shared((g.start, x.start, y.0));
            parts(c, x.len, x.len.div_ceil(CHUNK), move |_, r| {
                let (g, x, y) = s.get();
                // SAFETY: the range lies within all three.
                unsafe { gelu_gradient(width, r.len(), g.add(r.start), x.add(r.start), y.add(r.start), tanh) }
            })
        }))
    }
}

/// `SoftmaxGradient(g, y) -> gx` along the last axis, for y = Softmax(x).
struct SoftmaxGradient;

impl Operator for SoftmaxGradient {
    type Kernel<'k> = BoxedKernel<'k>;
    const INPLACES: &[(u32, u32)] = &[(0, 0)];

    fn name(&self) -> &str {
        "SoftmaxGradient"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<2>()
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<1>()
    }
    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        same_shape(c)
    }
    fn create_kernel<'k>(&self, _: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let width = width();
        Ok(Box::new(move |c: &ComputeContext| {
            let (g, y) = (Input::of(c, 0)?, Input::of(c, 1)?);
            if g.shape != y.shape {
                return Err(wrong("SoftmaxGradient: the gradient has another shape than the output"));
            }
            let n = g.last();
            let x = Output::of(c, 0, &g.shape)?;
            let s = Shared((g.start, y.start, x.0));
            parts(c, g.len / n.max(1), g.len.div_ceil(CHUNK), move |_, r| {
                let (g, y, x) = s.get();
                let at = r.start * n;
                // SAFETY: the rows lie within all three.
                unsafe { softmax_gradient(width, r.len(), n, g.add(at), y.add(at), x.add(at)) }
            })
        }))
    }
}

/// Adds `tasks` rows of `n` partial sums in order, and writes pieces of the result to the outputs.
fn reduce(partial: &[f32], n: usize, outputs: &[(Output, usize)]) {
    let mut total = vec![0.0; n];
    for row in partial.chunks_exact(n) {
        total.iter_mut().zip(row).for_each(|(t, x)| *t += x);
    }
    let mut at = 0;
    for &(output, len) in outputs {
        // SAFETY: the lengths are those that the outputs were made with, and add up to n.
        unsafe { std::ptr::copy_nonoverlapping(total[at..at + len].as_ptr(), output.0, len) };
        at += len;
    }
}

/// Rows that a task of [`Linear`] works on at once: whole tiles of any width of vectors.
const ROWS: usize = 84;

/// `Linear(x, w[, bias]) -> y` = x w + bias for x [..., k], w [k, n] and a bias of n numbers; w is [n, k] with the
/// attribute `transB`.
struct Linear;

impl Operator for Linear {
    type Kernel<'k> = BoxedKernel<'k>;

    fn name(&self) -> &str {
        "Linear"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<2>().into_iter().chain([OperatorInput::optional(Float32)])
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<1>()
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (transposed, width, threads) = (is_transposed(k), width(), threads());
        Ok(Box::new(move |c: &ComputeContext| {
            let (x, w, bias) = (Input::of(c, 0)?, Input::of(c, 1)?, Input::optional(c, 2)?);
            let [rows, columns] = w.shape[..] else { return Err(wrong("Linear: the weights are no matrix")) };
            let (k, n) = if transposed { (columns, rows) } else { (rows, columns) };
            let mut shape = x.shape.clone();
            let Some(last) = shape.last_mut().filter(|last| **last == k) else {
                return Err(wrong("Linear: the activations do not fit the weights"));
            };
            *last = n;
            let (k, n) = (k as usize, n as usize);
            if bias.as_ref().is_some_and(|b| b.len != n) {
                return Err(wrong("Linear: the bias has another length than the output"));
            }
            let y = Output::of(c, 0, &shape)?;
            let bias = bias.map_or(std::ptr::null(), |b| b.start);
            let weights = Weights { k, n, start: w.start, transposed, bias };
            let rows = x.len / k.max(1);
            with_scratch(weights.panels(), |panels| {
                let s = Shared((weights, panels));
                let tiles = n.div_ceil(product::TILE);
                parts(c, tiles, threads, move |_, r| {
                    let (weights, panels) = s.get();
                    let [from, to] = [r.start, r.end].map(|tile| (tile * product::TILE).min(n));
                    // SAFETY: the tensors have these sizes; every part writes panels of its own.
                    unsafe { pack(width, weights, from, to, panels) };
                })?;
                let s = Shared(product::Linear { k, n, x: x.start, panels, y: y.0 });
                let blocks = rows.div_ceil(ROWS);
                parts(c, blocks, blocks, move |block, _| {
                    let l = s.get();
                    // SAFETY: the panels are whole, and every part writes rows of its own.
                    unsafe { linear(width, l, block * ROWS, (block * ROWS + ROWS).min(rows)) };
                })
            })
        }))
    }
}

/// `WeightGradient(x, g) -> gw[, gbias]` = xᵀ g and the sum of all rows of g, for x [rows, k] and g [rows, n], whose
/// rows may be several axes; gw is [n, k] with the attribute `transB`, as for [`Linear`].
struct WeightGradient;

impl Operator for WeightGradient {
    type Kernel<'k> = BoxedKernel<'k>;

    fn name(&self) -> &str {
        "WeightGradient"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<2>()
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32), OperatorOutput::optional(Float32)]
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (transposed, width, threads) = (is_transposed(k), width(), threads());
        Ok(Box::new(move |c: &ComputeContext| {
            let (mut x, mut g) = (Input::of(c, 0)?, Input::of(c, 1)?);
            let mut sums = [std::ptr::null_mut(); 2];
            if c.num_outputs()? > 1 {
                sums[1] = Output::of(c, 1, &[g.last() as i64])?.0;
            }
            if transposed {
                std::mem::swap(&mut x, &mut g);
                sums.swap(0, 1);
            }
            let (m, n) = (x.last(), g.last());
            let rows = x.len / m.max(1);
            if rows != g.len / n.max(1) || x.shape.is_empty() || g.shape.is_empty() {
                return Err(wrong("WeightGradient: the activations and the gradient differ in rows"));
            }
            let out = Output::of(c, 0, &[m as i64, n as i64])?.0;
            let [sum_of_x, sum_of_g] = sums;
            let w = product::WeightGradient { rows, m, n, x: x.start, g: g.start, out, sum_of_x, sum_of_g };
            let cut = w.parts(threads);
            let count = cut[0] * cut[1];
            let s = Shared(w);
            parts(c, count, count, move |part, _| {
                let w = s.get();
                // SAFETY: the tensors have these sizes; every part writes a part of its own.
                with_scratch(product::WeightGradient::SCRATCH, |scratch| unsafe {
                    weight_gradient(width, w, w.part(part, cut), scratch);
                });
            })
        }))
    }
}

/// `LayerNormalizationGradient(g, x, scale[, residual]) -> gx, gscale, gbias`, with the attribute `epsilon`; rows are
/// as long as the scale. The residual is added to gx.
struct LayerNormalizationGradient;

impl Operator for LayerNormalizationGradient {
    type Kernel<'k> = BoxedKernel<'k>;
    const INPLACES: &[(u32, u32)] = &[(0, 0), (3, 0)];

    fn name(&self) -> &str {
        "LayerNormalizationGradient"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<3>().into_iter().chain([OperatorInput::optional(Float32)])
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<3>()
    }
    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        let inputs = c.inputs();
        let scale = inputs.get(2).ok_or_else(|| wrong("an input is missing"))?;
        shaped(c, 1, scale)?;
        shaped(c, 2, scale)?;
        same_shape(c)
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (epsilon, width) = (k.get::<f32>("epsilon").unwrap_or(1e-5), width());
        let mut partial = Vec::new();
        Ok(Box::new(move |c: &ComputeContext| {
            let (g, x, scale) = (Input::of(c, 0)?, Input::of(c, 1)?, Input::of(c, 2)?);
            let residual = Input::optional(c, 3)?;
            let n = scale.len;
            let fits = |other: &Input| other.len == g.len;
            if n == 0 || g.len % n != 0 || !fits(&x) || !residual.as_ref().is_none_or(fits) {
                return Err(wrong("LayerNormalizationGradient: the shapes do not fit each other"));
            }
            let gx = Output::of(c, 0, &g.shape)?;
            let rows = g.len / n;
            let tasks = SUMS.min(rows.max(1));
            partial.clear();
            partial.resize(tasks * 2 * n, 0.0);
            let residual = residual.map_or(std::ptr::null(), |r| r.start);
            let s = Shared((g.start, x.start, scale.start, residual, gx.0, partial.as_mut_ptr()));
            parts(c, rows, tasks, move |task, r| {
                let (g, x, scale, residual, gx, sums) = s.get();
                let at = r.start * n;
                let residual = if residual.is_null() { residual } else { residual.wrapping_add(at) };
                // SAFETY: the rows lie within the tensors; every task has sums of its own.
                unsafe {
                    let (g, x, gx, sums) = (g.add(at), x.add(at), gx.add(at), sums.add(task * 2 * n));
                    layer_norm_gradient(width, r.len(), n, epsilon, g, x, scale, residual, gx, sums)
                }
            })?;
            let (gscale, gbias) = (Output::of(c, 1, &scale.shape)?, Output::of(c, 2, &scale.shape)?);
            reduce(&partial, 2 * n, &[(gscale, n), (gbias, n)]);
            Ok(())
        }))
    }
}

/// `AdamW(learning_rate, correction1, correction2, gradient_scale, guard, p..., m..., v..., g...) -> p'..., m'...,
/// v'...` for any number of tensors, with the attributes `rates` (what the learning rate of each tensor is multiplied
/// by), `decays` (weight decay of each), `weights` (1 - β1, 1 - β2) and `epsilon`. With lr the tensor's learning rate
/// and g times gradient_scale:
///
/// m' = β1 m + (1 - β1) g, v' = β2 v + (1 - β2) g², p' = (1 - lr decay) p - lr correction1 m' / (√v' correction2 +
/// epsilon).
///
/// The five are scalars: correction1 = 1/(1 - β1^t), correction2 = 1/√(1 - β2^t) at step t, counted from 1. Where the
/// guard is no finite number, nothing changes: p' = p, m' = m, v' = v.
///
/// The outputs may be bound to the memory of the inputs: the node wants all gradients, so that it runs when everything
/// else that reads a parameter has run.
struct AdamW;

/// Scalars before the tensors of [`AdamW`].
const SCALARS: usize = 5;

impl Operator for AdamW {
    type Kernel<'k> = BoxedKernel<'k>;

    fn name(&self) -> &str {
        "AdamW"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::variadic(SCALARS + 4).homogenous(Float32)]
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::variadic(3).homogenous(Float32)]
    }
    fn infer_shape(&self, c: &mut ShapeInferenceContext) -> ort::Result<()> {
        let inputs = c.inputs();
        let state = inputs.len().saturating_sub(SCALARS) / 4 * 3;
        inputs.iter().skip(SCALARS).take(state).enumerate().try_for_each(|(i, shape)| shaped(c, i, shape))
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let decays: Vec<f32> = k.get("decays").unwrap_or_default();
        let rates: Vec<f32> = k.get("rates").unwrap_or_default();
        let weights: Vec<f32> = k.get("weights").unwrap_or_else(|| vec![0.1, 0.001]);
        let [first, second] = weights[..] else { return Err(wrong("AdamW: `weights` are two")) };
        let (epsilon, width) = (k.get::<f32>("epsilon").unwrap_or(1e-8), width());
        Ok(Box::new(move |c: &ComputeContext| {
            let mut scalars = [0.0; SCALARS];
            for (i, scalar) in scalars.iter_mut().enumerate() {
                let input = Input::of(c, i)?;
                if input.len != 1 {
                    return Err(wrong("AdamW: the first five inputs are scalars"));
                }
                // SAFETY: it holds one number.
                *scalar = unsafe { *input.start };
            }
            let [learning_rate, correction, root, scale, guard] = scalars;
            let count = (c.num_inputs()? - SCALARS) / 4;
            if rates.len() != count || decays.len() != count {
                return Err(wrong("AdamW: `rates` and `decays` hold one number a tensor"));
            }
            let mut tasks = Vec::new();
            for t in 0..count {
                let mut all = Vec::with_capacity(4);
                for k in 0..4 {
                    all.push(Input::of(c, SCALARS + k * count + t)?);
                }
                let [p, m, v, g] = &all[..] else { return Err(wrong("an input is missing")) };
                if [m, v, g].iter().any(|x| x.len != p.len) {
                    return Err(wrong("AdamW: a parameter, its moments and its gradient differ in shape"));
                }
                let mut after = [std::ptr::null_mut(); 3];
                for (k, after) in after.iter_mut().enumerate() {
                    *after = Output::of(c, k * count + t, &p.shape)?.0;
                }
                let tensors = Tensors { before: [p.start, m.start, v.start], gradient: g.start, after };
                let rate = learning_rate * rates[t];
                let keep = 1.0 - rate * decays[t];
                let step = Step { size: rate * correction, root, keep, scale, weights: [first, second], epsilon };
                tasks.extend((0..p.len).step_by(CHUNK).map(|at| (at, CHUNK.min(p.len - at), tensors, step)));
            }
            let s = Shared(tasks.as_slice());
            parts(c, tasks.len(), tasks.len(), move |_, r| {
                for &(at, n, tensors, step) in &s.get()[r] {
                    // SAFETY: the numbers lie within the tensors, and a task is alone with its own.
                    unsafe {
                        if guard.is_finite() {
                            adamw(width, n, at, tensors, step);
                        } else {
                            for (from, to) in tensors.before.into_iter().zip(tensors.after) {
                                std::ptr::copy(from.add(at), to.add(at), n);
                            }
                        }
                    }
                }
            })
        }))
    }
}

/// Where the rows of every head lie in a tensor: `[offset, batch stride, head stride, row stride]`; a row is
/// contiguous.
#[derive(Clone, Copy)]
struct StridedView {
    offset: usize,
    batch: usize,
    head: usize,
    row: usize,
}

impl StridedView {
    /// Reads an attribute, and checks that every row lies within `len` numbers later on.
    fn read(k: &KernelContext, name: &str) -> ort::Result<StridedView> {
        let list: Vec<i64> = k.get(name).unwrap_or_default();
        match list[..] {
            [offset, batch, head, row] if list.iter().all(|&n| n >= 0) => {
                let size = |n: i64| n as usize;
                Ok(StridedView { offset: size(offset), batch: size(batch), head: size(head), row: size(row) })
            }
            _ => Err(wrong(&format!("the attribute `{name}` holds an offset and three strides"))),
        }
    }

    fn fits(&self, counts: [usize; 2], rows: usize, dim: usize, len: usize) -> bool {
        let last = |n: usize, stride: usize| n.saturating_sub(1).checked_mul(stride);
        let parts = [
            Some(self.offset),
            last(counts[0], self.batch),
            last(counts[1], self.head),
            last(rows, self.row),
            Some(dim),
        ];
        parts.into_iter().try_fold(0usize, |a, b| a.checked_add(b?)).is_some_and(|end| end <= len)
    }

    fn at(&self, batch: usize, head: usize) -> usize {
        self.offset + batch * self.batch + head * self.head
    }
    unsafe fn rows(&self, start: *const f32, batch: usize, head: usize) -> Rows {
        // SAFETY: the caller has checked that the rows fit.
        Rows { start: unsafe { start.add(self.at(batch, head)) }, stride: self.row }
    }
    unsafe fn rows_mut(&self, start: *mut f32, batch: usize, head: usize) -> RowsMut {
        // SAFETY: the caller has checked that the rows fit.
        RowsMut { start: unsafe { start.add(self.at(batch, head)) }, stride: self.row }
    }
}

/// The attributes of attention and of its gradient.
#[derive(Clone)]
struct HeadLayout {
    counts: [usize; 2],
    sizes: HeadDims,
    query: StridedView,
    key: StridedView,
    value: StridedView,
    output: StridedView,
    shape: Vec<i64>,
}

impl HeadLayout {
    fn read(k: &KernelContext) -> ort::Result<HeadLayout> {
        let sizes: Vec<i64> = k.get("sizes").unwrap_or_default();
        let [batch, heads, queries, keys, dim, value_dim] = sizes[..] else {
            return Err(wrong("`sizes` are batch, heads, queries, keys, dim and value_dim"));
        };
        if sizes.iter().any(|&n| n < 1) {
            return Err(wrong("every one of `sizes` is at least 1"));
        }
        let n = |n: i64| n as usize;
        let sizes = HeadDims {
            queries: n(queries),
            keys: n(keys),
            dim: n(dim),
            value_dim: n(value_dim),
            scale: k.get("scale").ok_or_else(|| wrong("the attribute `scale` is missing"))?,
        };
        Ok(HeadLayout {
            counts: [n(batch), n(heads)],
            sizes,
            query: StridedView::read(k, "query")?,
            key: StridedView::read(k, "key")?,
            value: StridedView::read(k, "value")?,
            output: StridedView::read(k, "output")?,
            shape: k.get("shape").unwrap_or_default(),
        })
    }

    fn check(&self, q: &Input, k: &Input, v: &Input, output: usize) -> ort::Result<()> {
        let s = &self.sizes;
        let fits = self.query.fits(self.counts, s.queries, s.dim, q.len)
            && self.key.fits(self.counts, s.keys, s.dim, k.len)
            && self.value.fits(self.counts, s.keys, s.value_dim, v.len)
            && self.output.fits(self.counts, s.queries, s.value_dim, output);
        if fits { Ok(()) } else { Err(wrong("Attention: a head lies outside of its tensor")) }
    }

    fn tasks(&self) -> usize {
        self.counts[0] * self.counts[1]
    }
}

/// `Attention(q, k, v) -> output, log_sums`: softmax(scale · q kᵀ) v of every head. The three inputs are the tensors in
/// which queries, keys and values lie, often one and the same; where in them is said by the attributes `query`, `key`,
/// `value` and `output`, each `[offset, batch stride, head stride, row stride]`; `sizes` are batch, heads, queries,
/// keys, length of a key, length of a value; `shape` is the output's. log_sums [batch, heads, queries] are for the
/// gradient.
struct Attention;

impl Operator for Attention {
    type Kernel<'k> = BoxedKernel<'k>;

    fn name(&self) -> &str {
        "Attention"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<3>()
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        outputs::<2>()
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (layout, width) = (HeadLayout::read(k)?, width());
        Ok(Box::new(move |c: &ComputeContext| {
            let (q, k, v) = (Input::of(c, 0)?, Input::of(c, 1)?, Input::of(c, 2)?);
            layout.check(&q, &k, &v, layout.shape.iter().map(|&n| n as usize).product())?;
            let out = Output::of(c, 0, &layout.shape)?;
            let [batch, heads] = layout.counts;
            let queries = layout.sizes.queries;
            let log_sums = Output::of(c, 1, &[batch as i64, heads as i64, queries as i64])?;
            let s = Shared((q.start, k.start, v.start, out.0, log_sums.0));
            let l = &layout;
            parts(c, l.tasks(), l.tasks(), move |_, r| {
                let (q, k, v, out, log_sums) = s.get();
                for task in r {
                    let (b, h) = (task / heads, task % heads);
                    // SAFETY: the rows of every head lie within the tensors, which was checked; every head has rows of
                    // its own.
                    unsafe {
                        let (q, k, v) = (l.query.rows(q, b, h), l.key.rows(k, b, h), l.value.rows(v, b, h));
                        let out = l.output.rows_mut(out, b, h);
                        attention::forward(width, l.sizes, q, k, v, out, log_sums.add(task * queries));
                    }
                }
            })
        }))
    }
}

/// `AttentionGradient(g, q, k, v, output, log_sums) -> gradients` of the tensors that q, k and v lie in: three, or
/// fewer where some are the same tensor; the attribute `gradients` says which output each of the three belongs to. The
/// other attributes are those of `Attention`.
struct AttentionGradient;

impl Operator for AttentionGradient {
    type Kernel<'k> = BoxedKernel<'k>;

    fn name(&self) -> &str {
        "AttentionGradient"
    }
    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        required::<6>()
    }
    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32), OperatorOutput::optional(Float32), OperatorOutput::optional(Float32)]
    }
    fn create_kernel<'k>(&self, k: &KernelContext<'k>) -> ort::Result<BoxedKernel<'k>> {
        let (layout, width) = (HeadLayout::read(k)?, width());
        let targets: Vec<i64> = k.get("gradients").unwrap_or_default();
        if targets.len() != 3 || targets.iter().any(|t| !(0..3).contains(t)) {
            return Err(wrong("AttentionGradient: `gradients` are three of 0, 1, 2"));
        }
        Ok(Box::new(move |c: &ComputeContext| {
            let (g, q, k, v) = (Input::of(c, 0)?, Input::of(c, 1)?, Input::of(c, 2)?, Input::of(c, 3)?);
            let (out, log_sums) = (Input::of(c, 4)?, Input::of(c, 5)?);
            layout.check(&q, &k, &v, out.len.min(g.len))?;
            let [_, heads] = layout.counts;
            let queries = layout.sizes.queries;
            if log_sums.len != layout.tasks() * queries {
                return Err(wrong("AttentionGradient: `log_sums` has another shape"));
            }
            let mut gradients = [std::ptr::null_mut(); 3];
            for ((gradient, &target), input) in gradients.iter_mut().zip(&targets).zip([&q, &k, &v]) {
                *gradient = Output::of(c, target as usize, &input.shape)?.0;
            }
            let s = Shared((g.start, [q.start, k.start, v.start], out.start, log_sums.start, gradients));
            let l = &layout;
            parts(c, l.tasks(), l.tasks(), move |_, r| {
                let (g, [q, k, v], out, log_sums, [gq, gk, gv]) = s.get();
                for task in r {
                    let (b, h) = (task / heads, task % heads);
                    // SAFETY: the rows of every head lie within the tensors, which was checked; every head has rows of
                    // its own.
                    unsafe {
                        let given = Saved {
                            gradient: l.output.rows(g, b, h),
                            query: l.query.rows(q, b, h),
                            key: l.key.rows(k, b, h),
                            value: l.value.rows(v, b, h),
                            output: l.output.rows(out, b, h),
                            log_sums: log_sums.add(task * queries),
                        };
                        let (gq, gk) = (l.query.rows_mut(gq, b, h), l.key.rows_mut(gk, b, h));
                        attention::backward(width, l.sizes, given, gq, gk, l.value.rows_mut(gv, b, h));
                    }
                }
            })
        }))
    }
}
