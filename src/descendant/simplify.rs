//! Simplification: what a graph computes from weights alone becomes a plain weight.
//!
//! Transforms of shared weights and lookups of centroids are computed here, once, so that a tuned descendant is written
//! with plain weights and nothing that a deployer has to know of.

use std::collections::{HashMap, HashSet};

use ndarray::{ArrayD, Axis, Ix2, IxDyn};

use crate::anatomy::{WeightKind, weight_uses};
use crate::axes::Typing;
use crate::axes::arithmetic::{Number, broadcast_shape, resolve_shape};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, Names, resolve_axis};
use crate::metadata::SHARE_PREFIX;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Model, data_type, is_float, tensor_from_f32, to_f32, to_i64};

/// Replaces every value that is computed from initializers alone, and that the data meets as a weight, by an
/// initializer. What is computed from tokens and position tables, or from constants alone, stays as it is, and so does
/// what an exporter computes by operators that are not known here; transforms and lookups are made of known ones.
///
/// # Errors
/// [`crate::error::ErrorKind::Format`] where the graph is damaged, and those of [`Typing::new`].
pub fn simplify(model: &Model) -> Result<Model> {
    let typing = Typing::new(model)?;
    let uses = weight_uses(&typing);
    // Values at which weights meet the data, apart from weights that meet it as they are.
    let (mut wanted, mut left) = (HashSet::new(), HashSet::new());
    for (of_use, found) in typing.uses.iter().zip(&uses) {
        let is_weight = !matches!(found.kind, WeightKind::Token | WeightKind::Position | WeightKind::Constant);
        let is_table = matches!(found.kind, WeightKind::Token | WeightKind::Position);
        let is_integer = !is_float(typing.weights[of_use.name.as_str()]);
        for &(k, j) in &found.meets {
            let value = model.graph().node[k].input[j].as_str();
            if is_integer || typing.links().maker(value).is_none() || typing.weights.contains_key(value) {
                continue;
            }
            if is_weight {
                wanted.insert(value);
            }
            if is_table {
                left.insert(value);
            }
        }
    }
    let mut wanted: Vec<&str> = wanted.into_iter().filter(|v| !left.contains(v)).collect();
    wanted.sort_unstable();
    let mut evaluator = Evaluator { typing: &typing, done: HashMap::new() };
    let mut made: Vec<(String, TensorProto)> = Vec::new();
    let mut renamed = HashMap::new();
    for value in wanted {
        // Another name of a weight, as exporters give each use of a shared one, is no weight of its own.
        if let Some(weight) = named_by(&typing, value) {
            renamed.insert(value.to_string(), weight.to_string());
            continue;
        }
        let Some(Value::Floats(data, kind)) = evaluator.value(value)? else { continue };
        let dims = data.shape().to_vec();
        let elements: Vec<f32> = data.iter().copied().collect();
        made.push((value.to_string(), tensor_from_f32("", kind, &dims, &elements)));
    }
    let mut out = model.clone();
    let graph = out.graph_mut();
    let mut names = Names::new(graph);
    let old: HashSet<String> = graph.initializer.iter().map(|t| t.name().to_string()).collect();
    for (value, tensor) in made {
        // A looked-up weight has its plain name back where that is free.
        let plain = value.strip_prefix(SHARE_PREFIX).filter(|p| !old.contains(*p)).unwrap_or(&value);
        let name = names.fresh(plain);
        graph.initializer.push(TensorProto { name: Some(name.clone()), ..tensor });
        renamed.insert(value, name);
    }
    replace_inputs(graph, &renamed);
    graph::prune(graph);
    Ok(out)
}

/// The weight that a value is another name of: nothing but Identity nodes stand between them.
fn named_by<'m>(typing: &Typing<'m>, value: &str) -> Option<&'m str> {
    let named = |node: &'m NodeProto| node.input.first().filter(|_| node.op_type() == "Identity").map(String::as_str);
    let mut names = typing.links().follow_back(value, named).skip(1);
    names.find_map(|x| typing.weights.get_key_value(x).map(|(name, _)| *name))
}

fn replace_inputs(graph: &mut GraphProto, renamed: &HashMap<String, String>) {
    for node in &mut graph.node {
        for x in &mut node.input {
            if let Some(name) = renamed.get(x) {
                *x = name.clone();
            }
        }
    }
}

/// A value that depends on initializers alone.
#[derive(Clone)]
enum Value {
    Floats(ArrayD<f32>, DataType),
    Integers(ArrayD<i64>),
}

struct Evaluator<'t, 'm> {
    typing: &'t Typing<'m>,
    done: HashMap<String, Value>,
}

impl Evaluator<'_, '_> {
    /// Computes a value; `None` where an operator is not known, as none is that lets an operand be left out.
    fn value(&mut self, name: &str) -> Result<Option<Value>> {
        if let Some(value) = self.done.get(name) {
            return Ok(Some(value.clone()));
        }
        if let Some(t) = self.typing.weights.get(name) {
            return read(t).map(Some);
        }
        if let Some(known) = self.typing.known.get(name) {
            return Ok(Some(match known.number {
                Number::Float => Value::Floats(known.data.mapv(|v| v as f32), DataType::Float),
                _ => Value::Integers(known.data.mapv(|v| v as i64)),
            }));
        }
        let Some(k) = self.typing.links().maker(name) else { bail!(Format, "nothing makes the value `{name}`") };
        let node = &self.typing.graph.node[k];
        if node.input.iter().any(String::is_empty) {
            return Ok(None);
        }
        let Some(inputs) = node.input.iter().map(|x| self.value(x)).collect::<Result<Option<Vec<_>>>>()? else {
            return Ok(None);
        };
        let value = evaluate(node, &inputs);
        // Only what several nodes need is worth its memory.
        if let (Some(value), true) = (&value, self.typing.links().users(name).len() > 1) {
            self.done.insert(name.to_string(), value.clone());
        }
        Ok(value)
    }
}

fn read(t: &TensorProto) -> Result<Value> {
    let shape = t.shape();
    let bad = |_| Error::new(ErrorKind::Format, format!("tensor `{}` has impossible dims {:?}", t.name(), t.dims));
    Ok(match is_float(t) {
        true => Value::Floats(
            ArrayD::from_shape_vec(IxDyn(&shape), to_f32(t)?).map_err(bad)?,
            data_type(t).unwrap_or(DataType::Float),
        ),
        false => Value::Integers(ArrayD::from_shape_vec(IxDyn(&shape), to_i64(t)?).map_err(bad)?),
    })
}

/// The first output of a node; `None` for what is not known here.
fn evaluate(node: &NodeProto, inputs: &[Value]) -> Option<Value> {
    let Some(Value::Floats(x, kind)) = inputs.first() else { return None };
    let args = Args { node, inputs, x };
    // A Cast alone has another element type than its input.
    let kind = if node.op_type() == "Cast" { float_type(node)? } else { *kind };
    let (_, function) = FUNCTIONS.iter().find(|(op, _)| *op == node.op_type())?;
    function(&args).map(|data| Value::Floats(data, kind))
}

/// A node and what goes into it.
struct Args<'a> {
    node: &'a NodeProto,
    inputs: &'a [Value],
    /// The first input, which is of floats.
    x: &'a ArrayD<f32>,
}

type Function = fn(&Args) -> Option<ArrayD<f32>>;

/// What is computed of floats, an operator a row.
const FUNCTIONS: &[(&str, Function)] = &[
    ("Identity", |args| Some(args.x.clone())),
    ("Cast", |args| Some(args.x.clone())),
    ("Relu", |args| Some(args.x.mapv(|v| v.max(0.0)))),
    ("Neg", |args| Some(args.x.mapv(|v| -v))),
    ("Add", |args| args.binary(|a, b| a + b)),
    ("Sub", |args| args.binary(|a, b| a - b)),
    ("Mul", |args| args.binary(|a, b| a * b)),
    ("Div", |args| args.binary(|a, b| a / b)),
    ("MatMul", product),
    ("Transpose", transpose),
    ("Reshape", reshape),
    ("Unsqueeze", unsqueeze),
    ("Squeeze", squeeze),
    ("Gather", gather),
    ("Concat", concat),
];

impl Args<'_> {
    fn floats(&self, i: usize) -> Option<&ArrayD<f32>> {
        match self.inputs.get(i) {
            Some(Value::Floats(data, _)) => Some(data),
            _ => None,
        }
    }

    fn integers(&self, i: usize) -> Option<&ArrayD<i64>> {
        match self.inputs.get(i) {
            Some(Value::Integers(data)) => Some(data),
            _ => None,
        }
    }

    fn list(&self, i: usize) -> Option<Vec<i64>> {
        self.integers(i).map(|data| data.iter().copied().collect())
    }

    /// A list of integers that is an input, else an attribute.
    fn axes(&self) -> Option<Vec<i64>> {
        self.list(1).or_else(|| self.node.ints("axes").map(<[i64]>::to_vec))
    }

    /// The first input in another shape.
    fn shaped(&self, shape: &[usize]) -> Option<ArrayD<f32>> {
        self.x.as_standard_layout().into_owned().into_shape_with_order(IxDyn(shape)).ok()
    }

    fn binary(&self, f: fn(f32, f32) -> f32) -> Option<ArrayD<f32>> {
        let y = self.floats(1)?;
        let shape = broadcast_shape(self.x.shape(), y.shape())?;
        let (x, y) = (self.x.broadcast(IxDyn(&shape))?, y.broadcast(IxDyn(&shape))?);
        Some(ndarray::Zip::from(&x).and(&y).map_collect(|&a, &b| f(a, b)))
    }
}

/// The element type that a Cast is to, where it is one of floats.
fn float_type(cast: &NodeProto) -> Option<DataType> {
    let to = DataType::try_from(cast.int("to")? as i32).ok()?;
    let float = matches!(to, DataType::Float | DataType::Float16 | DataType::Bfloat16 | DataType::Double);
    float.then_some(to)
}

fn product(args: &Args) -> Option<ArrayD<f32>> {
    let (x, y) = (args.x, args.floats(1)?);
    let (&columns, lead) = x.shape().split_last()?;
    let right = y.view().into_dimensionality::<Ix2>().ok()?;
    if right.nrows() != columns || lead.is_empty() {
        return None;
    }
    let rows: usize = lead.iter().product();
    let left = x.as_standard_layout().into_owned().into_shape_with_order((rows, columns)).ok()?;
    let shape: Vec<usize> = lead.iter().copied().chain([right.ncols()]).collect();
    left.dot(&right).into_shape_with_order(IxDyn(&shape)).ok()
}

fn transpose(args: &Args) -> Option<ArrayD<f32>> {
    let rank = args.x.ndim();
    let perm: Vec<usize> = match args.node.ints("perm") {
        Some(p) => p.iter().map(|&a| resolve_axis(a, rank)).collect::<Option<_>>()?,
        None => (0..rank).rev().collect(),
    };
    if perm.len() != rank || (0..rank).any(|a| !perm.contains(&a)) {
        return None;
    }
    Some(args.x.clone().permuted_axes(perm).as_standard_layout().into_owned())
}

fn reshape(args: &Args) -> Option<ArrayD<f32>> {
    let allow_zero = args.node.int("allowzero").unwrap_or(0) != 0;
    args.shaped(&resolve_shape(args.x.shape(), &args.list(1)?, allow_zero)?)
}

fn unsqueeze(args: &Args) -> Option<ArrayD<f32>> {
    let list = args.axes()?;
    let all = args.x.ndim() + list.len();
    let new: Vec<usize> = list.iter().map(|&a| resolve_axis(a, all)).collect::<Option<_>>()?;
    let mut old = args.x.shape().iter().copied();
    let shape: Vec<usize> =
        (0..all).map(|a| if new.contains(&a) { Some(1) } else { old.next() }).collect::<Option<_>>()?;
    args.shaped(&shape)
}

fn squeeze(args: &Args) -> Option<ArrayD<f32>> {
    let (shape, rank) = (args.x.shape(), args.x.ndim());
    let gone: Vec<usize> = match args.axes() {
        Some(list) => list.iter().map(|&a| resolve_axis(a, rank)).collect::<Option<_>>()?,
        None => (0..rank).filter(|&a| shape[a] == 1).collect(),
    };
    let shape: Vec<usize> = (0..rank).filter(|a| !gone.contains(a)).map(|a| shape[a]).collect();
    args.shaped(&shape)
}

fn gather(args: &Args) -> Option<ArrayD<f32>> {
    let (x, indices) = (args.x, args.integers(1)?);
    let a = resolve_axis(args.node.int("axis").unwrap_or(0), x.ndim())?;
    let n = x.shape()[a];
    let list: Vec<usize> = indices.iter().map(|&i| resolve_axis(i, n)).collect::<Option<_>>()?;
    let shape: Vec<usize> = x.shape()[..a].iter().chain(indices.shape()).chain(&x.shape()[a + 1..]).copied().collect();
    let picked = x.select(Axis(a), &list);
    picked.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&shape)).ok()
}

fn concat(args: &Args) -> Option<ArrayD<f32>> {
    let all: Vec<_> = (0..args.inputs.len()).map(|i| Some(args.floats(i)?.view())).collect::<Option<_>>()?;
    let rank = args.x.ndim();
    let a = resolve_axis(args.node.int("axis")?, rank)?;
    if all.iter().any(|v| v.ndim() != rank) {
        return None;
    }
    ndarray::concatenate(Axis(a), &all).ok()
}
