//! Weights in int8 as float32 weights: what Offshoot writes with `--dtype int8` and `--dtype int8-rows`, read back.
//!
//! Three forms are known, each by its nodes and not by its names: a DequantizeLinear of a constant matrix with a scale
//! a column; rows of a table and their scales, each taken by a Gather and multiplied; and a product of bytes whose rows
//! were rounded in the graph. What another tool wrote in the first form is read as well.

use std::collections::{HashMap, HashSet};

use super::functions;
use super::links::Links;
use super::names::Names;
use super::nodes::{Attributes, is_standard, node as new_node};
use super::order::{prune, sort};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Model, data_type, element_count, payload, tensor_from_f32, to_f32, to_i64};

/// The largest rounded number of a row, and what a byte is more than its number.
pub const LARGEST: f32 = 127.0;
/// What is added to the rounded numbers of a row, which are bytes without a sign.
pub const MIDDLE: u8 = 128;
/// The largest magnitude that a row of zeros is taken to have, so that nothing is divided by zero.
pub const LEAST: f32 = 1e-30;

/// The names of the forms.
const ALONE: &str = "int8";
const ROWS: &str = "int8-rows";

/// How many weights were in int8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Unfolded {
    /// Matrices that were read by a DequantizeLinear.
    pub matrices: usize,
    /// Tables whose rows were taken in int8.
    pub tables: usize,
    /// Products of rounded rows.
    pub rows: usize,
}

impl Unfolded {
    /// The `--dtype` that asks for such weights.
    pub fn dtype(&self) -> &'static str {
        if self.rows > 0 { ROWS } else { ALONE }
    }

    /// As a line for whoever reads on in float32.
    pub fn note(&self) -> String {
        let dtype = self.dtype();
        let count = self.matrices + self.tables + self.rows;
        format!(
            "{count} weights are in int8: what is computed here has them as float32, and what is written, too, unless \
             ⟦dtype⟧ {dtype} rounds it again"
        )
    }
}

/// Makes float32 weights of those in int8; `None` where there are none.
///
/// # Errors
/// [`ErrorKind::Format`] for a tensor whose elements are not what it declares, and those of functions.
pub fn unfold(model: &mut Model) -> Result<Option<Unfolded>> {
    // What a function holds is a part of the graph.
    functions::inline(&mut model.proto)?;
    if !model.graph().node.iter().any(is_sign) {
        return Ok(None);
    }
    model.own_initializers();
    let graph = model.graph_mut();
    let forms = Forms::find(graph);
    let count = |of: fn(&Form) -> bool| forms.0.iter().filter(|(_, form)| of(form)).count();
    let unfolded = Unfolded {
        matrices: count(|f| matches!(f, Form::Matrix { .. })),
        tables: count(|f| matches!(f, Form::Table { .. })),
        rows: count(|f| matches!(f, Form::Rows { .. })),
    };
    if forms.0.is_empty() {
        return Ok(None);
    }
    forms.replace(graph)?;
    // Another tool's nodes may stand in any order, and what is unused is looked for backwards.
    sort(graph)?;
    let inputs = graph.input.clone();
    prune(graph);
    graph.input = inputs;
    Ok(Some(unfolded))
}

/// The nodes of quantised operators that [`unfold`] would read.
pub(super) fn read(graph: &GraphProto) -> HashSet<usize> {
    match graph.node.iter().any(is_sign) {
        true => Forms::find(graph).0.into_iter().map(|(k, _)| k).collect(),
        false => HashSet::new(),
    }
}

/// The names of weights in int8 that [`unfold`] would read, and of their scales.
pub(crate) fn int8_tensors(graph: &GraphProto) -> [HashSet<String>; 2] {
    let forms = if graph.node.iter().any(is_sign) { Forms::find(graph).0 } else { Vec::new() };
    let names = |of: fn((&str, &str)) -> String| forms.iter().map(|(_, form)| of(form.tensors())).collect();
    [names(|(numbers, _)| numbers.to_string()), names(|(_, scales)| scales.to_string())]
}

/// The `--dtype` that asks for weights as a graph has them, where they are in int8.
pub fn int8_dtype(graph: &GraphProto) -> Option<&'static str> {
    let forms = if graph.node.iter().any(is_sign) { Forms::find(graph).0 } else { Vec::new() };
    match forms.iter().any(|(_, form)| matches!(form, Form::Rows { .. })) {
        true => Some(ROWS),
        false => (!forms.is_empty()).then_some(ALONE),
    }
}

/// True for an operator that one of the forms has. Of tables it is what takes the scale.
fn is_sign(node: &NodeProto) -> bool {
    matches!(node.op_type(), "DequantizeLinear" | "MatMulInteger")
        || (node.op_type() == "Cast" && node.int("to") == Some(DataType::Float as i64))
}

/// What stands for a float weight, by the names of its tensors.
enum Form {
    /// A DequantizeLinear.
    Matrix { numbers: String, scales: String },
    /// The Cast of rows of a table, what places them, the product with their scales.
    Table { numbers: String, scales: String, places: String, product: usize },
    /// A MatMulInteger, what its rows were, the product with the scales of columns.
    Rows { numbers: String, scales: String, rows: String, product: usize },
}

/// All forms of a graph, each with the node that it is known by.
struct Forms(Vec<(usize, Form)>);

impl Forms {
    fn find(graph: &GraphProto) -> Forms {
        let links = Links::new(graph);
        let tensors: HashMap<&str, &TensorProto> = tensors(graph).collect();
        let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
        let look = Look { links, tensors, outputs };
        let form = |(k, node): (usize, &NodeProto)| {
            let form = match node.op_type() {
                _ if !is_standard(node) => None,
                "DequantizeLinear" => look.matrix(node),
                "MatMulInteger" => look.rows(node),
                "Cast" => look.table(node),
                _ => None,
            };
            Some((k, form?))
        };
        Forms(graph.node.iter().enumerate().filter_map(form).collect())
    }

    /// Puts float weights in their place.
    fn replace(self, graph: &mut GraphProto) -> Result<()> {
        let tensors: HashMap<String, TensorProto> =
            tensors(graph).map(|(name, t)| (name.to_string(), t.clone())).collect();
        let mut names = Names::new(graph);
        let mut made: HashMap<(String, String), String> = HashMap::new();
        let mut put: HashMap<usize, Option<NodeProto>> = HashMap::new();
        for (k, form) in self.0 {
            let (numbers, scales) = form.tensors();
            let key = (numbers.to_string(), scales.to_string());
            let along_rows = matches!(form, Form::Table { .. });
            let float = |name: &str| float(&tensors[&key.0], &tensors[&key.1], along_rows, name);
            if let Form::Matrix { .. } = form {
                graph.initializer.push(float(&graph.node[k].output[0])?);
                put.insert(k, None);
                continue;
            }
            let weight = match made.get(&key) {
                Some(weight) => weight.clone(),
                None => {
                    let stem = key.0.strip_suffix("/int8").unwrap_or(&key.0);
                    let weight = names.fresh(if stem == key.0 { "weight" } else { stem });
                    graph.initializer.push(float(&weight)?);
                    made.insert(key, weight.clone());
                    weight
                }
            };
            match form {
                Form::Table { places, product, .. } => {
                    let out = graph.node[product].output[0].clone();
                    put.insert(product, Some(new_node("Gather", &[&weight, &places], &[&out], vec![])));
                }
                Form::Rows { rows, product, .. } => {
                    let out = graph.node[product].output[0].clone();
                    put.insert(product, Some(new_node("MatMul", &[&rows, &weight], &[&out], vec![])));
                }
                Form::Matrix { .. } => {}
            }
        }
        for (k, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            match put.remove(&k) {
                None => graph.node.push(node),
                Some(None) => {}
                Some(Some(float)) => {
                    (node.op_type, node.input, node.attribute) = (float.op_type, float.input, float.attribute);
                    graph.node.push(node);
                }
            }
        }
        Ok(())
    }
}

impl Form {
    fn tensors(&self) -> (&str, &str) {
        match self {
            Form::Matrix { numbers, scales } => (numbers, scales),
            Form::Table { numbers, scales, .. } | Form::Rows { numbers, scales, .. } => (numbers, scales),
        }
    }
}

/// Constant tensors by their names: initializers, and what Constant nodes hold.
fn tensors(graph: &GraphProto) -> impl Iterator<Item = (&str, &TensorProto)> {
    let held = |n: &'_ NodeProto| is_standard(n) && n.op_type() == "Constant";
    let constants = graph.node.iter().filter(move |n| held(n)).filter_map(|n| {
        let value = n.attribute.iter().find(|a| a.name() == "value")?.t.as_ref()?;
        Some((n.output.first()?.as_str(), value))
    });
    graph.initializer.iter().map(|t| (t.name(), t)).chain(constants)
}

/// Looks for the forms.
struct Look<'g> {
    links: Links<'g>,
    tensors: HashMap<&'g str, &'g TensorProto>,
    outputs: HashSet<&'g str>,
}

impl<'g> Look<'g> {
    /// The node that makes an input of a node.
    fn maker(&self, node: &NodeProto, input: usize, op: &str) -> Option<&'g NodeProto> {
        let made = &self.links.nodes[self.links.maker(node.input.get(input)?)?];
        (made.op_type() == op && is_standard(made)).then_some(made)
    }

    /// The only node that uses what a node makes.
    fn user(&self, node: &NodeProto, op: &str) -> Option<usize> {
        let made = node.output.first()?.as_str();
        let [user] = self.links.users(made) else { return None };
        (self.links.nodes[*user].op_type() == op && !self.outputs.contains(made)).then_some(*user)
    }

    /// Names of the integers and scales of a weight, where they are of this form.
    fn weight(&self, node: &NodeProto, input: usize) -> Option<(&'g str, [i64; 2])> {
        let (name, t) = self.tensors.get_key_value(node.input.get(input)?.as_str())?;
        let dims = <[i64; 2]>::try_from(&t.dims[..]).ok()?;
        (data_type(t) == Some(DataType::Int8)).then_some((name, dims))
    }

    fn scales(&self, name: &str, dims: &[i64]) -> bool {
        self.tensors.get(name).is_some_and(|t| data_type(t) == Some(DataType::Float) && t.dims == dims)
    }

    /// True for zero points that move nothing.
    fn is_zero(&self, name: &str) -> bool {
        let zeros = |t: &&TensorProto| data_type(t) == Some(DataType::Int8) && payload(t).iter().all(|&b| b == 0);
        self.tensors.get(name).is_some_and(zeros)
    }

    fn matrix(&self, node: &NodeProto) -> Option<Form> {
        let (numbers, [_, n]) = self.weight(node, 0)?;
        let scales = node.input.get(1)?;
        let zero = node.input.get(2).filter(|z| !z.is_empty());
        let plain = zero.is_none_or(|z| self.is_zero(z)) && node.int("block_size").unwrap_or(0) == 0;
        let by_column = matches!(node.int("axis").unwrap_or(1), 1 | -1) && self.scales(scales, &[n]);
        let form = Form::Matrix { numbers: numbers.into(), scales: scales.clone() };
        (plain && by_column && !self.outputs.contains(node.output.first()?.as_str())).then_some(form)
    }

    /// `cast` widens the rows that a Gather took.
    fn table(&self, cast: &NodeProto) -> Option<Form> {
        let taken = self.maker(cast, 0, "Gather")?;
        let (numbers, [v, _]) = self.weight(taken, 0)?;
        let product = self.user(cast, "Mul")?;
        let of = &self.links.nodes[product];
        let other = (0..of.input.len()).find(|&j| of.input[j] != cast.output[0])?;
        let scale = self.maker(of, other, "Gather")?;
        let by_rows = |n: &NodeProto| n.int("axis").unwrap_or(0) == 0;
        let same = scale.input.get(1) == taken.input.get(1) && by_rows(scale) && by_rows(taken);
        let scales = scale.input.first()?;
        let form = Form::Table {
            numbers: numbers.into(),
            scales: scales.clone(),
            places: taken.input.get(1)?.clone(),
            product,
        };
        (same && self.scales(scales, &[v, 1])).then_some(form)
    }

    /// A constant number that a node takes beside a value.
    fn number(&self, node: &NodeProto, input: usize) -> Option<f32> {
        let t = self.tensors.get(node.input.get(input)?.as_str())?;
        match to_f32(t).ok().filter(|_| data_type(t) == Some(DataType::Float))?[..] {
            [number] => Some(number),
            _ => None,
        }
    }

    /// True for the largest number of each row, which stays an axis.
    fn is_of_rows(&self, reduce: &NodeProto) -> bool {
        let axes = match reduce.input.get(1) {
            Some(axes) => self.tensors.get(axes.as_str()).and_then(|t| to_i64(t).ok()),
            None => reduce.ints("axes").map(<[i64]>::to_vec),
        };
        axes.as_deref() == Some(&[-1]) && reduce.int("keepdims").unwrap_or(1) == 1
    }

    /// `product` is of rows that were divided by their steps, rounded and made bytes. Other numbers than those of this
    /// form would make another product.
    fn rows(&self, product: &NodeProto) -> Option<Form> {
        let (numbers, [_, n]) = self.weight(product, 1)?;
        let middle = product.input.get(2).and_then(|z| self.tensors.get(z.as_str()))?;
        let signed = product.input.get(3).is_some_and(|z| !z.is_empty());
        if signed || data_type(middle) != Some(DataType::Uint8) || payload(middle)[..] != [MIDDLE] {
            return None;
        }
        let shifted = self.maker(self.maker(product, 0, "Cast")?, 0, "Add")?;
        let divided = self.maker(self.maker(shifted, 0, "Round")?, 0, "Div")?;
        let (rows, step) = (divided.input.first()?, divided.input.get(1)?);
        let steps = self.maker(divided, 1, "Div")?;
        let bounded = self.maker(steps, 0, "Max")?;
        let largest = self.maker(bounded, 0, "ReduceMax")?;
        let is_ours = self.number(shifted, 1) == Some(f32::from(MIDDLE))
            && self.number(steps, 1) == Some(LARGEST)
            && self.number(bounded, 1).is_some_and(|least| least > 0.0 && least <= LEAST)
            && self.is_of_rows(largest);
        if !is_ours || self.maker(largest, 0, "Abs")?.input.first() != Some(rows) {
            return None;
        }
        let of_rows = self.user(&self.links.nodes[self.user(product, "Cast")?], "Mul")?;
        let of_columns = self.user(&self.links.nodes[of_rows], "Mul")?;
        let scales = self.links.nodes[of_columns].input.get(1)?;
        let form =
            Form::Rows { numbers: numbers.into(), scales: scales.clone(), rows: rows.clone(), product: of_columns };
        (self.links.nodes[of_rows].input.get(1) == Some(step) && self.scales(scales, &[n])).then_some(form)
    }
}

/// Integers times a scale a column, or a scale a row.
fn float(numbers: &TensorProto, scales: &TensorProto, along_rows: bool, name: &str) -> Result<TensorProto> {
    let (dims, bytes, scales) = (numbers.shape(), payload(numbers), to_f32(scales)?);
    if element_count(numbers)? != bytes.len() {
        let what = format!("tensor `{}` has not as many elements as its dims {dims:?} say", numbers.name());
        return Err(Error::new(ErrorKind::Format, what));
    }
    let units = if along_rows { dims[0] } else { dims[1] };
    if scales.len() != units {
        let what = format!("tensor `{}` has {} scales where there are to be {units}", numbers.name(), scales.len());
        return Err(Error::new(ErrorKind::Format, what));
    }
    let columns = dims[1].max(1);
    let mut values = vec![0f32; bytes.len()];
    for (i, (values, bytes)) in values.chunks_mut(columns).zip(bytes.chunks(columns)).enumerate() {
        for (j, (value, &byte)) in values.iter_mut().zip(bytes).enumerate() {
            *value = f32::from(byte as i8) * scales[if along_rows { i } else { j }];
        }
    }
    Ok(tensor_from_f32(name, DataType::Float, &dims, &values))
}
