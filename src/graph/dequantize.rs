//! Quantised models as float models.
//!
//! Every quantised operator is replaced by the float one that it approximates: integer weights become `(weight - zero
//! point) x scale`, and activations are left as they are, so that a quantisation and the dequantisation behind it are
//! nothing at all. No pattern is looked for, each operator is rewritten by itself: DynamicQuantizeLinear,
//! QuantizeLinear, DequantizeLinear (a scale for all, for an axis or for blocks), MatMulInteger, ConvInteger,
//! QLinearMatMul and QLinearConv (ONNX operator sets 10 to 24), and what ONNX Runtime's quantiser writes beside them.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::axis::nearest_axis;
use super::builder::Builder;
use super::functions;
use super::nodes::{Attributes, is_quantised, node as new_node};
use super::order::{prune, sort};
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{
    DataType, Model, data_type, is_float, node_label, tensor_from_f32, tensor_from_i64, tensor_from_raw, to_f32, to_i64,
};
use crate::ops::{self, Mark};

/// Rewrites a model that was just opened so that it computes in float numbers.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for quantised operators that have no rewriting, all of which it names, and for one that
/// is quantised in a form that is not known; it names the node.
pub fn dequantize(model: &mut Model) -> Result<()> {
    model.own_initializers();
    functions::inline(&mut model.proto)?;
    let path = model.path.clone();
    let graph = model.graph_mut();
    sort(graph).and_then(|()| rewrite(graph)).map_err(|e| if path.as_os_str().is_empty() { e } else { e.at(&path) })
}

fn rewrite(graph: &mut GraphProto) -> Result<()> {
    let unread = |n: &&NodeProto| is_quantised(n.op_type()) && !ops::of(n).is(Mark::Dequantised);
    if let Some(first) = graph.node.iter().find(unread) {
        let all: BTreeSet<String> = graph.node.iter().filter(unread).map(|n| format!("`{}`", n.op_type())).collect();
        let all = all.into_iter().collect::<Vec<_>>().join(", ");
        return Err(refuse(&format!("no float counterpart is known of {all}")).in_node(node_label(first)));
    }
    let mut users: HashMap<String, usize> = HashMap::new();
    for x in graph.node.iter().flat_map(|n| &n.input) {
        *users.entry(x.clone()).or_default() += 1;
    }
    let held = graph.node.iter().filter(|n| n.op_type() == "Constant");
    let held = held.filter_map(|n| Some((n.output.first()?.clone(), n.tensor("value")?.clone())));
    let constants = graph.initializer.iter().map(|t| (t.name().to_string(), t.clone())).chain(held).collect();
    let mut work = Dequantizer {
        builder: Builder::new(graph, 0, ""),
        constants,
        users,
        stands: HashMap::new(),
        real: HashSet::new(),
        ones: HashSet::new(),
        products: HashMap::new(),
    };
    for node in std::mem::take(&mut graph.node) {
        let label = node_label(&node);
        work.node(node).map_err(|e| e.in_node(label))?;
    }
    for output in &graph.output {
        if let Some(value) = work.stands.get(output.name()) {
            work.builder.op_as("Identity", &[value], vec![], output.name());
        }
    }
    work.builder.finish(graph);
    graph.value_info.clear();
    prune(graph);
    Ok(())
}

struct Dequantizer {
    builder: Builder,
    constants: HashMap<String, TensorProto>,
    /// How often a value of the quantised graph is used.
    users: HashMap<String, usize>,
    /// Values of the quantised graph that another value stands for.
    stands: HashMap<String, String>,
    /// Values that are float numbers now, and quantised ones in the quantised graph.
    real: HashSet<String>,
    /// Scales that are one now.
    ones: HashSet<String>,
    /// Products of integers, each with the place of its weight in the builder and the axis of its columns.
    products: HashMap<String, (usize, usize)>,
}

impl Dequantizer {
    fn node(&mut self, mut node: NodeProto) -> Result<()> {
        let given = node.input.clone();
        if given.is_empty() {
            self.builder.nodes.push(node);
            return Ok(());
        }
        let was: Vec<bool> = given.iter().map(|x| self.real.contains(x)).collect();
        for x in &mut node.input {
            if let Some(value) = self.stands.get(x) {
                *x = value.clone();
            }
        }
        let quantised = was.first().copied().unwrap_or(false);
        match node.op_type() {
            "DynamicQuantizeLinear" => self.dynamic(&node)?,
            "QuantizeLinear" => self.stand(output(&node)?, &node.input[0]),
            "DequantizeLinear" if quantised => {
                self.stands.insert(output(&node)?, node.input[0].clone());
            }
            "DequantizeLinear" => self.dequantised(&node)?,
            "MatMulInteger" | "ConvInteger" if quantised => self.integers(&node, &was)?,
            "QLinearMatMul" | "QLinearConv" if quantised => self.linear(node, &was)?,
            "QGemm" if quantised => self.gemm(node, &was)?,
            // Operands with a scale and a zero point each, in front of those of the result, or behind them.
            "QLinearAdd" => self.plain(node, &was, "Add", &[0, 3])?,
            "QLinearMul" => self.plain(node, &was, "Mul", &[0, 3])?,
            "QLinearSigmoid" => self.plain(node, &was, "Sigmoid", &[0])?,
            "QLinearLeakyRelu" => self.plain(node, &was, "LeakyRelu", &[0])?,
            "QLinearSoftmax" => self.plain(node, &was, "Softmax", &[0])?,
            "QLinearAveragePool" => self.plain(node, &was, "AveragePool", &[0])?,
            "QLinearGlobalAveragePool" => self.plain(node, &was, "GlobalAveragePool", &[0])?,
            "QLinearConcat" => {
                let operands: Vec<usize> = (2..node.input.len()).step_by(3).collect();
                self.plain(node, &was, "Concat", &operands)?;
            }
            "QLinearWhere" => self.plain(node, &was, "Where", &[0, 1, 4])?,
            // The scales of a product of integers go into its weight.
            "Cast"
                if node.int("to") == Some(DataType::Float as i64)
                    && self.products.contains_key(&node.input[0])
                    && self.alone(&given[0]) =>
            {
                self.stands.insert(output(&node)?, node.input[0].clone());
            }
            "Mul" if node.input.len() == 2 && node.input.iter().any(|x| self.ones.contains(x)) => {
                let other = usize::from(self.ones.contains(&node.input[0]));
                self.stands.insert(output(&node)?, node.input[other].clone());
            }
            "Mul" if self.scaled(&node, &given) => {}
            op => {
                if quantised && ops::of(&node).is(Mark::MovesQuantised) {
                    self.real.extend(node.output.iter().cloned());
                } else if quantised {
                    return Err(refuse(&format!("`{op}` computes with quantised values")));
                }
                self.builder.nodes.push(node);
            }
        }
        Ok(())
    }

    /// Lets a float value stand for a quantised one.
    fn stand(&mut self, quantised: String, value: &str) {
        self.real.insert(quantised.clone());
        self.stands.insert(quantised, value.to_string());
    }

    fn alone(&self, value: &str) -> bool {
        self.users.get(value) == Some(&1)
    }

    /// DynamicQuantizeLinear: its values are those that it is given, its scale is one and its zero point zero.
    fn dynamic(&mut self, node: &NodeProto) -> Result<()> {
        let [values, scale, zero] = &node.output[..] else { return Err(refuse("it has too few outputs")) };
        self.constants.insert(scale.clone(), tensor_from_f32(scale, DataType::Float, &[], &[1.0]));
        self.builder.initializers.push(tensor_from_f32(scale, DataType::Float, &[], &[1.0]));
        self.builder.initializers.push(tensor_from_raw(zero, DataType::Uint8, &[], vec![0].into()));
        self.ones.insert(scale.clone());
        self.stand(values.clone(), &node.input[0]);
        Ok(())
    }

    /// DequantizeLinear of a constant: a float weight under the name of its output.
    fn dequantised(&mut self, node: &NodeProto) -> Result<()> {
        let weight = self.constant(node, 0)?;
        let axis = nearest_axis(node.int("axis").unwrap_or(1), weight.dims.len());
        let (scale, zero) = (self.parameter(node, 1)?, self.parameter(node, 2)?);
        let block = node.int("block_size").and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let (scale, zero) = match block {
            0 => (scale, zero),
            n => (
                scale.map(|t| spread(&t, &weight, axis, n)).transpose()?,
                zero.map(|t| spread(&t, &weight, axis, n)).transpose()?,
            ),
        };
        self.builder.initializers.push(float(&weight, scale.as_ref(), zero.as_ref(), axis, output(node)?)?);
        Ok(())
    }

    /// MatMulInteger and ConvInteger: a constant weight is kept without its scale, which a Mul behind the product has.
    fn integers(&mut self, node: &NodeProto, was: &[bool]) -> Result<()> {
        let (y, matrix) = (output(node)?, node.op_type() == "MatMulInteger");
        let w = if let (Some(true), Some(w)) = (was.get(1), node.input.get(1)) {
            w.clone()
        } else {
            let weight = self.constant(node, 1)?;
            let axis = if matrix { weight.dims.len().saturating_sub(1) } else { 0 };
            let zero = self.parameter(node, 3)?;
            self.products.insert(y.clone(), (self.builder.initializers.len(), axis));
            self.weight(node, &weight, None, zero.as_ref(), axis)?
        };
        let op = if matrix { "MatMul" } else { "Conv" };
        self.builder.nodes.push(float_node(node, op, &[&node.input[0], &w], &y));
        Ok(())
    }

    /// The tensor of an input that must be constant.
    fn constant(&self, node: &NodeProto, j: usize) -> Result<TensorProto> {
        let name = node.input.get(j).map(String::as_str).unwrap_or("");
        let missing = || refuse(&format!("its operand `{name}` is no constant and was not quantised in the graph"));
        self.constants.get(name).cloned().ok_or_else(missing)
    }

    /// A scale or zero point, where it is given.
    fn parameter(&self, node: &NodeProto, j: usize) -> Result<Option<TensorProto>> {
        match node.input.get(j).is_some_and(|x| !x.is_empty()) {
            true => self.constant(node, j).map(Some),
            false => Ok(None),
        }
    }

    /// Keeps the weight of a node, and says its name.
    fn weight(
        &mut self,
        node: &NodeProto,
        weight: &TensorProto,
        scale: Option<&TensorProto>,
        zero: Option<&TensorProto>,
        axis: usize,
    ) -> Result<String> {
        let stem = weight.name().trim_end_matches("_quantized");
        let name = if stem.is_empty() { node.name() } else { stem };
        Ok(self.builder.tensor(float(weight, scale, zero, axis, name.into())?))
    }

    /// QLinearMatMul and QLinearConv: operand, scale and zero point of both factors; a bias comes in units of both
    /// scales.
    fn linear(&mut self, node: NodeProto, was: &[bool]) -> Result<()> {
        let (y, matrix) = (output(&node)?, node.op_type() == "QLinearMatMul");
        let mut inputs = vec![node.input[0].clone()];
        let scale = self.parameter(&node, 4)?;
        if was.get(3).copied().unwrap_or(false) {
            inputs.push(node.input[3].clone());
        } else {
            let (weight, zero) = (self.constant(&node, 3)?, self.parameter(&node, 5)?);
            let axis = if matrix { weight.dims.len().saturating_sub(1) } else { 0 };
            inputs.push(self.weight(&node, &weight, scale.as_ref(), zero.as_ref(), axis)?);
        }
        if let (false, Some(bias)) = (matrix, self.parameter(&node, 8)?) {
            inputs.push(self.bias(&node, &bias, 1.0)?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let op = if matrix { "MatMul" } else { "Conv" };
        self.builder.nodes.push(float_node(&node, op, &inputs, &y));
        self.real.insert(y);
        Ok(())
    }

    /// The float value of operand `j`, behind which its scale and its zero point stand.
    fn operand(&mut self, node: &NodeProto, was: &[bool], j: usize, axis: usize) -> Result<String> {
        if was.get(j).copied().unwrap_or(false) {
            return Ok(node.input[j].clone());
        }
        let (weight, scale, zero) =
            (self.constant(node, j)?, self.parameter(node, j + 1)?, self.parameter(node, j + 2)?);
        self.weight(node, &weight, scale.as_ref(), zero.as_ref(), axis)
    }

    /// One of ONNX Runtime's operators that compute on quantised values what `op` computes on float ones. The condition
    /// of a Where is no quantised value.
    fn plain(&mut self, node: NodeProto, was: &[bool], op: &str, operands: &[usize]) -> Result<()> {
        if node.int("channels_last").unwrap_or(0) != 0 {
            return Err(refuse(&format!("`{}` of channels last", node.op_type())));
        }
        let y = output(&node)?;
        let mut inputs = Vec::with_capacity(operands.len());
        for &j in operands {
            inputs.push(match (op, j) {
                ("Where", 0) => node.input[0].clone(),
                _ => self.operand(&node, was, j, 0)?,
            });
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let mut float = float_node(&node, op, &inputs, &y);
        float.attribute.retain(|a| !matches!(a.name(), "channels_last" | "opset"));
        self.real.insert(y);
        self.builder.nodes.push(float);
        Ok(())
    }

    /// QGemm: operand, scale and zero point of both factors, a bias in units of both scales; without a scale of its own
    /// the result is float.
    fn gemm(&mut self, node: NodeProto, was: &[bool]) -> Result<()> {
        let y = output(&node)?;
        let columns = usize::from(node.int("transB").unwrap_or(0) == 0);
        let mut inputs = vec![node.input[0].clone(), self.operand(&node, was, 3, columns)?];
        if let Some(bias) = self.parameter(&node, 6)? {
            inputs.push(self.bias(&node, &bias, node.float("alpha").unwrap_or(1.0))?);
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.builder.nodes.push(float_node(&node, "Gemm", &inputs, &y));
        if node.input.get(7).is_some_and(|x| !x.is_empty()) {
            self.real.insert(y);
        }
        Ok(())
    }

    /// Keeps a bias that counts in units of the scales of both factors, operands 1 and 4, and of what multiplies their
    /// product; says its name.
    fn bias(&mut self, node: &NodeProto, bias: &TensorProto, alpha: f32) -> Result<String> {
        let [of_input, of_weight] = [1, 4].map(|j| self.constant(node, j).and_then(|t| to_f32(&t)));
        let of_input = of_input?.first().copied().unwrap_or(1.0) * alpha;
        let both: Vec<f32> = of_weight?.iter().map(|s| s * of_input).collect();
        let both = tensor_from_f32("scale", DataType::Float, &[both.len()], &both);
        self.weight(node, bias, Some(&both), None, 0)
    }

    /// Multiplies the weight of a product of integers with its scales, where a Mul does nothing else.
    fn scaled(&mut self, node: &NodeProto, given: &[String]) -> bool {
        let Some(j) = node.input.iter().position(|x| self.products.contains_key(x)) else { return false };
        let (place, axis) = self.products[&node.input[j]];
        let Some(scale) = node.input.get(1 - j).and_then(|s| self.constants.get(s)).filter(|t| is_float(t)) else {
            return false;
        };
        let (weight, Some(y)) = (&self.builder.initializers[place], node.output.first()) else { return false };
        // Behind its columns a product has no axes, that of a convolution has the image's.
        let behind = if axis == 0 { weight.dims.len().saturating_sub(2) } else { 0 };
        let columns = weight.dims.get(axis).copied().unwrap_or(1);
        let place_of = scale.dims.len().checked_sub(1 + behind);
        let fits = scale.dims.iter().product::<i64>() == 1
            || place_of.is_some_and(|a| scale.dims[a] == columns && scale.dims.iter().product::<i64>() == columns);
        let (Ok(values), Ok(factors)) = (to_f32(weight), to_f32(scale)) else { return false };
        if !self.alone(&given[j]) || !fits || factors.is_empty() {
            return false;
        }
        let dims = weight.shape();
        let inner = dims.iter().skip(axis + 1).product::<usize>().max(1);
        let factor = |i: usize| factors[if factors.len() == 1 { 0 } else { i / inner % factors.len() }];
        let values: Vec<f32> = values.iter().enumerate().map(|(i, v)| v * factor(i)).collect();
        self.builder.initializers[place] = tensor_from_f32(weight.name(), DataType::Float, &dims, &values);
        self.stands.insert(y.clone(), node.input[j].clone());
        true
    }
}

/// The scales or zero points of blocks of `block` elements along an axis, one for each element of the weight.
fn spread(of_blocks: &TensorProto, weight: &TensorProto, axis: usize, block: usize) -> Result<TensorProto> {
    let (dims, blocks) = (&weight.dims, &of_blocks.dims);
    let fits = dims.len() == blocks.len()
        && dims.iter().zip(blocks).enumerate().all(|(a, (&n, &b))| match a == axis {
            true => (n as u64).div_ceil(block as u64) == b as u64,
            false => n == b,
        });
    if !fits {
        let name = weight.name();
        return Err(refuse(&format!("`{name}` {dims:?} has scales or zero points {blocks:?} for blocks of {block}")));
    }
    let size = |d: &[i64]| d.iter().map(|&n| n as usize).product::<usize>();
    let (inner, length, count) = (size(&dims[axis + 1..]), dims[axis] as usize, blocks[axis] as usize);
    let at = |i: usize| {
        let (outer, along, rest) = (i / (inner * length), i / inner % length, i % inner);
        (outer * count + along / block) * inner + rest
    };
    let shape = weight.shape();
    let kind = data_type(of_blocks).unwrap_or(DataType::Float);
    if is_float(of_blocks) {
        let values = to_f32(of_blocks)?;
        let all: Vec<f32> = (0..size(dims)).map(|i| values[at(i)]).collect();
        return Ok(tensor_from_f32(of_blocks.name(), kind, &shape, &all));
    }
    let values = to_i64(of_blocks)?;
    let all: Vec<i64> = (0..size(dims)).map(|i| values[at(i)]).collect();
    Ok(tensor_from_i64(of_blocks.name(), &shape, &all))
}

/// `(weight - zero point) x scale`, with one zero point and one scale, one for each element of an axis, or one for each
/// element.
fn float(
    weight: &TensorProto,
    scale: Option<&TensorProto>,
    zero: Option<&TensorProto>,
    axis: usize,
    name: String,
) -> Result<TensorProto> {
    let dims = weight.shape();
    let n = dims.get(axis).copied().unwrap_or(1);
    let inner = dims.iter().skip(axis + 1).product::<usize>().max(1);
    let scales = scale.map_or(Ok(vec![1.0]), to_f32)?;
    let zeros = zero.map_or(Ok(vec![0]), to_i64)?;
    let all = dims.iter().product::<usize>();
    let is_whole = |t: Option<&TensorProto>| t.is_some_and(|t| t.dims.len() > 1 && t.dims == weight.dims);
    let whole = [is_whole(scale), is_whole(zero)];
    let lengths = [scales.len(), zeros.len()];
    if lengths.iter().zip(whole).any(|(&l, whole)| l == 0 || l != 1 && l != if whole { all } else { n }) {
        return Err(refuse(&format!("`{}` is quantised in blocks", weight.name())));
    }
    let at = |i: usize, of: usize, whole: bool| match (of, whole) {
        (1, _) => 0,
        (_, true) => i,
        _ => i / inner % of,
    };
    let values = to_i64(weight)?.into_iter().enumerate();
    let values: Vec<f32> = values
        .map(|(i, v)| {
            let zero = zeros[at(i, zeros.len(), whole[1])];
            (v as f64 - zero as f64) as f32 * scales[at(i, scales.len(), whole[0])]
        })
        .collect();
    let kind = scale.and_then(data_type).unwrap_or(DataType::Float);
    Ok(tensor_from_f32(name, kind, &dims, &values))
}

/// A float operator in the place of a quantised one, under its name and with its attributes.
fn float_node(node: &NodeProto, op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let (name, attribute) = (node.name.clone(), node.attribute.clone());
    NodeProto { name, attribute, ..new_node(op, inputs, &[output], vec![]) }
}

fn output(node: &NodeProto) -> Result<String> {
    node.output.first().cloned().ok_or_else(|| refuse("it has no output"))
}

fn refuse(why: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the model cannot be dequantised: {why}"))
        .hint("give the model as it was before quantisation (fp32, fp16 or bf16)")
}
