//! Half precision: a graph that computes in float32 made to compute in float16 or bfloat16.
//!
//! Inputs and outputs of the graph stay as they are. What the data flow through becomes half, with four exceptions
//! that stay in float32 between casts: operators that ONNX does not define for the type at the model's operator set,
//! operators that square, sum, exponentiate or take roots (a norm or a Softmax that an exporter took apart would
//! overflow float16, and half-precision exporters widen there, too), arithmetic that no image reaches, such as shape
//! arithmetic, position grids and rotary angles, and in float16 the fused `Attention` of ONNX, whose kernels round the
//! scores to its own type whatever `softmax_precision` says.
//!
//! Numbers beyond the range of the type become its largest, in tensors and where what is computed of them in float32 is
//! cast. Masks are full of them: the smallest float32 stands for minus infinity and must not become it, or a row that
//! is masked as a whole is no number.

use std::collections::{HashMap, HashSet};

use super::links::Links;
use super::names::Names;
use super::nodes::{Attributes, float_attribute, int_attribute, node as new_node};
use super::types::{element_types, lift_constants, widen};
use super::unfold::unfold;
use super::values::data_inputs;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::proto::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use crate::onnx::{DataType, Model, data_type, element_count, node_label, subgraphs, tensor_from_f32, to_f32};
use crate::ops::{self, Mark};

/// The floating-point type that a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// float32.
    Fp32,
    /// float16: half the bytes; numbers up to 65,504.
    Fp16,
    /// bfloat16: half the bytes, the range of float32, 8 significant bits. Needs operator set 13.
    Bf16,
}

impl FloatType {
    /// What whoever writes a file in this type should know, where it was or was not looked at data for what float16
    /// does not hold.
    pub fn caution(self, looked: bool) -> Option<&'static str> {
        match self {
            FloatType::Fp32 => None,
            FloatType::Fp16 if looked => None,
            FloatType::Fp16 => Some(
                "numbers above 65504 are infinite in float16, and no data were looked at for them: `compare` on some \
                 shows whether there are such numbers",
            ),
            FloatType::Bf16 => Some(
                "ONNX Runtime's CPU provider does not load a file in bfloat16: it is for GPUs and other runtimes, and \
                 ⟦dtype⟧ fp16 for both",
            ),
        }
    }
}

/// Tensors of this many elements and more are half in the file even where the graph computes with them in float32.
const LARGE: usize = 1024;

/// Makes a prepared model ([`super::prepare`]) compute in `to`, whatever floating-point type it computed in before;
/// inputs and outputs become float32. Returns a warning where tensors held finite numbers beyond the range of the type,
/// which were clamped to it.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for bfloat16 below operator set 13, which does not know it.
pub fn convert(model: &mut Model, to: FloatType) -> Result<Option<String>> {
    convert_but(model, to, &HashSet::new())
}

/// [`convert`], but the nodes that make some values, or take them, compute in float32.
///
/// # Errors
/// Those of [`convert`].
pub fn convert_but(model: &mut Model, to: FloatType, wide: &HashSet<String>) -> Result<Option<String>> {
    unfold(model)?;
    widen(model.graph_mut(), &[DataType::Float16, DataType::Bfloat16])?;
    let half = match to {
        FloatType::Fp32 => return Ok(None),
        FloatType::Fp16 => DataType::Float16,
        FloatType::Bf16 => DataType::Bfloat16,
    };
    let opset = model.opset();
    check_known(half, opset, "⟦dtype⟧")?;
    check_types(model.graph())?;
    let clamped = narrow(model.graph_mut(), half, opset, wide)?;
    Ok(clamped.first().map(|first| {
        let more = if clamped.len() > 1 { format!(" and {} more", clamped.len() - 1) } else { String::new() };
        let (name, largest) = match half {
            DataType::Float16 => ("float16", "65504"),
            _ => ("bfloat16", "3.39e38"),
        };
        format!("`{first}`{more} had numbers beyond {name}, which are now {largest}: compare the outputs")
    }))
}

/// Checks that what every node makes has a type that is known: between some nodes a type is changed.
fn check_types(graph: &GraphProto) -> Result<()> {
    let unknown = |n: &&NodeProto| !ops::of(n).is_known();
    if !graph.node.iter().any(|n| unknown(&n)) {
        return Ok(());
    }
    let types = element_types(graph);
    let is_typed = |n: &NodeProto| n.output.iter().all(|o| o.is_empty() || types.contains_key(o.as_str()));
    match graph.node.iter().filter(unknown).find(|n| subgraphs(n).next().is_some() || !is_typed(n)) {
        None => Ok(()),
        Some(node) => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the type of what `{}` makes is not known, so nothing can change its type around it",
                node.op_type()
            ),
        )
        .in_node(node_label(node))
        .hint("leave ⟦dtype⟧ out, or run `onnx.shape_inference`, which writes types into the file")),
    }
}

/// Refuses a type that an operator set does not know; `flag` is what it was asked for with.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for bfloat16 below operator set 13.
pub(crate) fn check_known(half: DataType, opset: i64, flag: &str) -> Result<()> {
    if half == DataType::Bfloat16 && opset < 13 {
        return Err(Error::new(ErrorKind::Unsupported, format!("operator set {opset} has no bfloat16"))
            .hint(format!("use {flag} fp16, or export the model at operator set 17 or later")));
    }
    Ok(())
}

/// Makes a graph of float32 compute in `half`, and returns the names of the tensors that were clamped; see [`convert`].
fn narrow(graph: &mut GraphProto, half: DataType, opset: i64, wide: &HashSet<String>) -> Result<Vec<String>> {
    lift_constants(graph);
    let mut names = Names::new(graph);
    let floats: HashSet<String> = element_types(graph)
        .into_iter()
        .filter(|&(_, kind)| kind == DataType::Float)
        .map(|(name, _)| name.to_string())
        .collect();
    let plan = HalfPlan::new(graph, half, opset, &floats, wide);
    let far = Far::new(graph, half)?;
    let mut work =
        Narrowing { half, opset, plan, far, floats, casts: HashMap::new(), clamped: Vec::new(), out: Vec::new() };
    work.tensors(graph, &mut names)?;
    let outputs: Vec<String> = graph.output.iter().map(|o| o.name().to_string()).collect();
    for (k, mut node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
        if node.op_type() == "Constant" {
            work.constant(node, &mut names)?;
            continue;
        }
        for j in 0..node.input.len() {
            if work.floats.contains(&node.input[j]) && follows(&node, j) {
                node.input[j] = work.operand(&node.input[j], work.plan.halves[k], &mut names);
            }
        }
        if node.op_type() == "Cast" && work.plan.halves[k] {
            node.attribute = vec![int_attribute("to", half as i64)];
            if let Some(x) = node.input.first_mut().filter(|x| !work.plan.narrow.contains(*x)) {
                *x = work.within(x, &mut names);
            }
        }
        work.out.push(node);
    }
    for output in outputs.iter().filter(|o| work.plan.narrow.contains(*o)) {
        let inside = names.fresh(&format!("{output}/half"));
        for node in &mut work.out {
            node.input.iter_mut().chain(&mut node.output).filter(|x| *x == output).for_each(|x| *x = inside.clone());
        }
        work.out.push(cast(&inside, output, DataType::Float));
    }
    graph.node = work.out;
    split_half_gemms(graph);
    graph.value_info.retain(|v| !work.floats.contains(v.name()));
    work.clamped.sort();
    work.clamped.dedup();
    Ok(work.clamped)
}

/// Gives the bias of every Gemm in float16 a sum of its own: tract multiplies it by a float32, which a half bias is not
/// compatible with (seen with 0.23).
pub(crate) fn split_half_gemms(graph: &mut GraphProto) {
    let types = element_types(graph);
    let plain = |n: &NodeProto, scale| n.float(scale).is_none_or(|s| s == 1.0);
    let is_half = |n: &NodeProto| n.input.get(2).is_some_and(|c| types.get(c.as_str()) == Some(&DataType::Float16));
    let split = |n: &NodeProto| n.op_type() == "Gemm" && is_half(n) && plain(n, "alpha") && plain(n, "beta");
    let chosen: Vec<usize> = (0..graph.node.len()).filter(|&k| split(&graph.node[k])).collect();
    let mut names = Names::new(graph);
    for k in chosen.into_iter().rev() {
        let gemm = &mut graph.node[k];
        let (bias, output) = (gemm.input.remove(2), gemm.output[0].clone());
        let product = names.fresh(&format!("{output}/product"));
        gemm.output[0] = product.clone();
        let sum = new_node("Add", &[&product, &bias], &[&output], vec![]);
        graph.node.insert(k + 1, NodeProto { name: Some(format!("{output}/sum")), ..sum });
    }
}

/// The largest number of a half-precision type.
fn largest(half: DataType) -> f32 {
    match half {
        DataType::Float16 => half::f16::MAX.to_f32(),
        _ => half::bf16::MAX.to_f32(),
    }
}

/// Makes finite numbers beyond the range of a half-precision type its largest. True where there were some.
pub(crate) fn clamp(numbers: &mut [f32], half: DataType) -> bool {
    let largest = largest(half);
    let mut beyond = false;
    for v in numbers.iter_mut().filter(|v| v.is_finite() && v.abs() > largest) {
        (*v, beyond) = (v.clamp(-largest, largest), true);
    }
    beyond
}

/// Values of float32 that may hold finite numbers beyond the range of a half-precision type: small constants, what is
/// chosen from them and what is computed of them number by number. Each comes with the constant that it has them from.
pub(crate) struct Far(HashMap<String, String>);

impl Far {
    /// Follows the constants of a sorted graph of float32.
    pub(crate) fn new(graph: &GraphProto, half: DataType) -> Result<Far> {
        let mut far: HashMap<String, String> = HashMap::new();
        for t in graph.initializer.iter().filter(|t| data_type(t) == Some(DataType::Float)) {
            if element_count(t)? < LARGE && clamp(&mut to_f32(t)?, half) {
                far.insert(t.name().to_string(), t.name().to_string());
            }
        }
        for node in &graph.node {
            let from = match node.op_type() {
                "Constant" | "ConstantOfShape" => {
                    let mut numbers: Vec<f32> = node.attribute.iter().flat_map(|a| &a.floats).copied().collect();
                    numbers.extend(node.float("value_float"));
                    if let Some(t) = node.tensor("value").filter(|t| data_type(t) == Some(DataType::Float)) {
                        numbers.extend(to_f32(t)?);
                    }
                    clamp(&mut numbers, half).then(|| node.output.first().cloned()).flatten()
                }
                op if op == "Cast" || ops::of(node).is(Mark::Moves) || ops::of(node).is(Mark::Elementwise) => {
                    node.input.iter().find_map(|x| far.get(x)).cloned()
                }
                _ => None,
            };
            if let Some(from) = from {
                let made = node.output.iter().filter(|o| !o.is_empty());
                far.extend(made.map(|o| (o.clone(), from.clone())));
            }
        }
        Ok(Far(far))
    }

    /// The constant from which a value may have numbers beyond the range.
    pub(crate) fn origin(&self, value: &str) -> Option<&str> {
        self.0.get(value).map(String::as_str)
    }
}

/// A value of float32 with the numbers beyond the range of a half-precision type made its largest: its name, and the
/// nodes that make it.
pub(crate) fn clipped(value: &str, half: DataType, opset: i64, names: &mut Names) -> (String, Vec<NodeProto>) {
    let bounds = [-largest(half), largest(half)];
    let made = names.fresh(&format!("{value}/clipped"));
    if opset < 11 {
        let attributes = ["min", "max"].into_iter().zip(bounds).map(|(name, v)| float_attribute(name, v)).collect();
        let clip = new_node("Clip", &[value], &[&made], attributes);
        return (made, vec![clip]);
    }
    let [least, most] = ["least", "most"].map(|bound| names.fresh(&format!("{value}/{bound}")));
    let mut nodes = Vec::with_capacity(3);
    for (name, v) in [&least, &most].into_iter().zip(bounds) {
        let bound = value_attribute(tensor_from_f32("", DataType::Float, &[], &[v]));
        nodes.push(new_node("Constant", &[], &[name], vec![bound]));
    }
    nodes.push(new_node("Clip", &[value, &least, &most], &[&made], vec![]));
    (made, nodes)
}

/// The attribute that holds the tensor of a Constant.
fn value_attribute(t: TensorProto) -> AttributeProto {
    AttributeProto {
        name: Some("value".into()),
        r#type: Some(AttributeType::Tensor as i32),
        t: Some(t),
        ..Default::default()
    }
}

/// True where an input has the element type that the node computes in: the scales of a Resize are float32 always, and a
/// Cast takes what there is, as does what asks for a shape.
fn follows(node: &NodeProto, input: usize) -> bool {
    match node.op_type() {
        "Cast" | "Shape" | "Size" => false,
        "Resize" | "Dropout" => input == 0,
        _ => true,
    }
}

/// True where an output has the element type that the node computes in: the statistics of a norm are float32.
fn computed(node: &NodeProto, output: usize) -> bool {
    let norm = node.op_type().ends_with("LayerNormalization");
    !(norm && matches!(output, 1 | 2))
}

/// A Cast to an element type.
pub fn cast(from: &str, to: &str, kind: DataType) -> NodeProto {
    let node = new_node("Cast", &[from], &[to], vec![int_attribute("to", kind as i64)]);
    // The node that makes a value is often called like it.
    NodeProto { name: Some(format!("{to}/cast")), ..node }
}

/// What is computed in half precision.
struct HalfPlan {
    /// For every node.
    halves: Vec<bool>,
    /// Values that become half.
    narrow: HashSet<String>,
    /// Small tensors and constants that are used in float32, and in half precision: what is used in both is there
    /// twice.
    used: [HashSet<String>; 2],
}

impl HalfPlan {
    fn new(
        graph: &GraphProto,
        half: DataType,
        opset: i64,
        floats: &HashSet<String>,
        wide: &HashSet<String>,
    ) -> HalfPlan {
        let inputs: HashSet<&str> = data_inputs(graph).iter().map(|v| v.name()).collect();
        let links = Links::new(graph);
        let has_values = |k: usize| !matches!(graph.node[k].op_type(), "Shape" | "Size");
        let of_inputs: HashSet<usize> = links.downstream(inputs.iter().copied()).through(has_values).collect();
        let is_data = |x: &str| inputs.contains(x) || links.maker(x).is_some_and(|k| of_inputs.contains(&k));
        let mut narrow: HashSet<String> = HashSet::new();
        let mut small: HashSet<String> = HashSet::new();
        let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
        for t in graph.initializer.iter().filter(|t| data_type(t) == Some(DataType::Float)) {
            let is_large = element_count(t).is_ok_and(|n| n >= LARGE) && !outputs.contains(t.name());
            if is_large { &mut narrow } else { &mut small }.insert(t.name().to_string());
        }
        let products: HashSet<&str> =
            graph.node.iter().filter(|n| n.op_type() == "MatMul").flat_map(|n| &n.input).map(String::as_str).collect();
        let mut used: [HashSet<String>; 2] = Default::default();
        let mut halves = Vec::with_capacity(graph.node.len());
        for (k, node) in graph.node.iter().enumerate() {
            let of_data = of_inputs.contains(&k);
            if node.op_type() == "Constant" {
                small.extend(node.output.iter().filter(|o| floats.contains(*o)).cloned());
            }
            let touches = node.input.iter().chain(&node.output).any(|x| floats.contains(x));
            let halved = |x: &String| narrow.contains(x);
            let op = ops::of(node);
            let stays = node.input.iter().chain(&node.output).any(|x| wide.contains(x))
                || (half == DataType::Float16 && moves_batch(node) && products.contains(node.output[0].as_str()));
            let is_half = touches
                && !stays
                && can_be_half(node, half, opset)
                && match node.op_type() {
                    "Cast" => node.int("to") == Some(DataType::Float as i64) && of_data,
                    _ if op.is(Mark::Moves) => node.input.iter().any(halved),
                    _ if op.is(Mark::Elementwise) => node.input.iter().any(|x| halved(x) && is_data(x)),
                    _ => of_data,
                };
            for (j, x) in node.input.iter().enumerate().filter(|(_, x)| small.contains(*x)) {
                used[usize::from(is_half && follows(node, j))].insert(x.clone());
            }
            if is_half {
                let made = node.output.iter().enumerate().filter(|(j, o)| floats.contains(*o) && computed(node, *j));
                narrow.extend(made.map(|(_, o)| o.clone()));
            }
            halves.push(is_half);
        }
        used[0].extend(outputs.into_iter().filter(|o| small.contains(*o)).map(str::to_string));
        HalfPlan { halves, narrow, used }
    }
}

/// True for a Transpose that leaves the last axis where it is. In front of a product it stays in float32: every child
/// then opens in a plain session of ONNX Runtime.
fn moves_batch(node: &NodeProto) -> bool {
    let perm = node.ints("perm").filter(|_| node.op_type() == "Transpose").unwrap_or_default();
    perm.last().is_some_and(|&last| last + 1 == perm.len() as i64)
}

fn can_be_half(node: &NodeProto, half: DataType, opset: i64) -> bool {
    let squares = node.op_type() == "Mul" && node.input.first() == node.input.get(1);
    let op = ops::of(node);
    let rounds = half == DataType::Float16 && op.is(Mark::Rounds);
    !squares && !rounds && op.is_of(node) && op.half(half).is_some_and(|since| opset >= since)
}

struct Narrowing {
    half: DataType,
    opset: i64,
    plan: HalfPlan,
    far: Far,
    /// Values that are float32 in the graph as it was.
    floats: HashSet<String>,
    /// Casts that were made, by value and by whether they are to half.
    casts: HashMap<(String, bool), String>,
    clamped: Vec<String>,
    out: Vec<NodeProto>,
}

impl Narrowing {
    /// The initializers, half where that is what they are used as.
    fn tensors(&mut self, graph: &mut GraphProto, names: &mut Names) -> Result<()> {
        let mut copies = Vec::new();
        for t in &mut graph.initializer {
            let name = t.name().to_string();
            let [single, half] = [0, 1].map(|i| self.plan.used[i].contains(&name));
            if self.plan.narrow.contains(&name) {
                *t = self.tensor(t)?;
            } else if half && single {
                let copy = names.fresh(&format!("{name}/half"));
                copies.push(TensorProto { name: Some(copy.clone()), ..self.tensor(t)? });
                self.casts.insert((name, true), copy);
                continue;
            } else if half {
                *t = self.tensor(t)?;
                self.plan.narrow.insert(name.clone());
            } else {
                continue;
            }
        }
        graph.initializer.extend(copies);
        Ok(())
    }

    /// A Constant node, in each precision that is asked for.
    fn constant(&mut self, node: NodeProto, names: &mut Names) -> Result<()> {
        let name = node.output.first().cloned().unwrap_or_default();
        let [single, half] = [0, 1].map(|i| self.plan.used[i].contains(&name));
        let value = match node.attribute.first() {
            Some(a) if half && a.name() == "value_float" => Some(tensor_from_f32("", DataType::Float, &[], &[a.f()])),
            Some(a) if half && a.name() == "value_floats" => {
                Some(tensor_from_f32("", DataType::Float, &[a.floats.len()], &a.floats))
            }
            Some(a) if half => a.t.clone(),
            _ => None,
        };
        if let Some(value) = value {
            let t = self.tensor(&TensorProto { name: Some(name.clone()), ..value })?;
            let mut narrowed = node.clone();
            narrowed.attribute = vec![value_attribute(TensorProto { name: None, ..t })];
            if single {
                let copy = names.fresh(&format!("{name}/half"));
                narrowed.output = vec![copy.clone()];
                narrowed.name = Some(copy.clone());
                self.casts.insert((name, true), copy);
            } else {
                self.plan.narrow.insert(name);
            }
            self.out.push(narrowed);
        }
        if single || !half {
            self.out.push(node);
        }
        Ok(())
    }

    /// A value in the precision that a node computes in.
    fn operand(&mut self, value: &str, half: bool, names: &mut Names) -> String {
        if self.plan.narrow.contains(value) == half {
            return value.to_string();
        }
        if let Some(made) = self.casts.get(&(value.to_string(), half)) {
            return made.clone();
        }
        let (suffix, kind) = if half { ("half", self.half) } else { ("single", DataType::Float) };
        let made = names.fresh(&format!("{value}/{suffix}"));
        let from = if half { self.within(value, names) } else { value.to_string() };
        self.out.push(cast(&from, &made, kind));
        self.casts.insert((value.to_string(), half), made.clone());
        made
    }

    /// A value of float32 that is about to be cast, within the range of the type.
    fn within(&mut self, value: &str, names: &mut Names) -> String {
        let Some(origin) = self.far.origin(value) else { return value.to_string() };
        self.clamped.push(origin.to_string());
        let (made, nodes) = clipped(value, self.half, self.opset, names);
        self.out.extend(nodes);
        made
    }

    /// A tensor in half precision: numbers beyond its range are clamped, and a single number other than zero, such as
    /// the epsilon of a norm, does not become zero.
    fn tensor(&mut self, t: &TensorProto) -> Result<TensorProto> {
        let dims = t.shape();
        let mut numbers = to_f32(t)?;
        if clamp(&mut numbers, self.half) {
            self.clamped.push(t.name().to_string());
        }
        let smallest = half::f16::MIN_POSITIVE_SUBNORMAL.to_f32();
        if let [v] = &mut numbers[..]
            && self.half == DataType::Float16
            && *v != 0.0
            && v.abs() < smallest
        {
            *v = smallest.copysign(*v);
        }
        Ok(tensor_from_f32(t.name(), self.half, &dims, &numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Links;
    use crate::onnx::proto::{ModelProto, OperatorSetIdProto};
    use crate::onnx::tensor_info;

    /// x -> MatMul -> a norm that was taken apart -> Conv-free output, beside an epsilon that float16 does not hold.
    fn model(opset: i64) -> Model {
        let weight: Vec<f32> = (0..1600).map(|i| i as f32 / 1600.0).collect();
        let graph = GraphProto {
            node: vec![
                new_node("MatMul", &["x", "w"], &["y"], vec![]),
                new_node("Mul", &["y", "y"], &["squares"], vec![]),
                new_node("ReduceMean", &["squares"], &["mean"], vec![crate::graph::ints_attribute("axes", &[-1])]),
                new_node("Constant", &[], &["epsilon"], vec![float_attribute("value_float", 1e-12)]),
                new_node("Add", &["mean", "epsilon"], &["guarded"], vec![]),
                new_node("Sqrt", &["guarded"], &["root"], vec![]),
                new_node("Div", &["y", "root"], &["normed"], vec![]),
                new_node("Mul", &["normed", "scale"], &["scaled"], vec![]),
                new_node("Add", &["scaled", "epsilon"], &["out"], vec![]),
            ],
            initializer: vec![
                tensor_from_f32("w", DataType::Float, &[40, 40], &weight),
                tensor_from_f32("scale", DataType::Float, &[2], &[1e6, -2.0]),
            ],
            input: vec![tensor_info("x", DataType::Float, &[None, Some(40)])],
            output: vec![tensor_info("out", DataType::Float, &[None, Some(40)])],
            ..Default::default()
        };
        Model::from_proto(ModelProto {
            ir_version: Some(8),
            opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
            graph: Some(graph),
            ..Default::default()
        })
    }

    #[test]
    fn data_are_half_and_sums_of_squares_are_not() {
        let mut m = model(17);
        let clamped = convert(&mut m, FloatType::Fp16).unwrap();
        assert!(clamped.unwrap().starts_with("`scale` had numbers beyond float16"));
        let graph = m.graph();
        let types = element_types(graph);
        use DataType::{Float, Float16};
        for (value, kind) in
            [("x", Float), ("w", Float16), ("y", Float16), ("squares", Float), ("mean", Float), ("guarded", Float)]
        {
            assert_eq!(types[value], kind, "{value}");
        }
        assert_eq!((types["normed"], types["scaled"], types["out"]), (Float16, Float16, Float));
        // The epsilon inside the root is what it was; the one in half precision is not zero.
        let links = Links::new(graph);
        let constants: Vec<f32> = graph
            .node
            .iter()
            .filter(|n| n.op_type() == "Constant")
            .map(|n| n.float("value_float").unwrap_or_else(|| to_f32(n.tensor("value").unwrap()).unwrap()[0]))
            .collect();
        assert_eq!(constants, [5.9604645e-8, 1e-12]);
        let scale = graph.initializer.iter().find(|t| t.name() == "scale").unwrap();
        assert_eq!(to_f32(scale).unwrap(), [65504.0, -2.0]);
        // One cast of a value serves all its users.
        assert_eq!(links.users("y").len(), 2);
        // Back again everything is float32.
        assert!(convert(&mut m, FloatType::Fp32).unwrap().is_none());
        assert!(element_types(m.graph()).values().all(|&t| t == Float));
    }

    #[test]
    fn bfloat16_clamps_nothing_and_needs_operator_set_13() {
        let mut m = model(13);
        assert!(convert(&mut m, FloatType::Bf16).unwrap().is_none());
        assert_eq!(element_types(m.graph())["y"], DataType::Bfloat16);
        let error = convert(&mut model(12), FloatType::Bf16).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint_text().unwrap().contains("fp16"));
    }

    /// tract takes no float16 bias in a Gemm, and kernels of the fused attention overflow in float16.
    #[test]
    fn in_float16_biases_have_sums_of_their_own_and_fused_attention_stays_float32() {
        let graph = GraphProto {
            node: vec![
                new_node("Gemm", &["x", "w", "b"], &["q"], vec![]),
                new_node("Unsqueeze", &["q", "axis"], &["one"], vec![]),
                new_node("Attention", &["one", "one", "one"], &["a"], vec![]),
                new_node("MatMul", &["a", "w"], &["out"], vec![]),
            ],
            initializer: vec![
                tensor_from_f32("w", DataType::Float, &[40, 40], &[0.5; 1600]),
                tensor_from_f32("b", DataType::Float, &[40], &[0.25; 40]),
                crate::onnx::tensor_from_i64("axis", &[1], &[1]),
            ],
            input: vec![tensor_info("x", DataType::Float, &[None, Some(40)])],
            output: vec![tensor_info("out", DataType::Float, &[None, Some(1), Some(40)])],
            ..Default::default()
        };
        let of = Model::from_proto(ModelProto { graph: Some(graph), ..model(23).proto });
        for (to, gemm) in [(FloatType::Fp16, 2), (FloatType::Bf16, 3)] {
            let mut m = of.clone();
            convert(&mut m, to).unwrap();
            let types = element_types(m.graph());
            let node = |op: &str| m.graph().node.iter().find(|n| n.op_type() == op);
            assert_eq!(node("Gemm").unwrap().input.len(), gemm, "{to:?}");
            assert_eq!(node("Add").map(|n| n.output[0].as_str()), (gemm == 2).then_some("q"));
            let half = types["q"];
            assert_ne!(half, DataType::Float);
            let attention = types[node("Attention").unwrap().output[0].as_str()];
            assert_eq!(attention, if to == FloatType::Fp16 { DataType::Float } else { half });
        }
    }

    #[test]
    fn operators_that_do_not_know_the_type_keep_float32() {
        let graph = GraphProto {
            node: vec![
                new_node("Conv", &["x", "k"], &["c"], vec![]),
                new_node("Relu", &["c"], &["r"], vec![]),
                new_node("MatMul", &["r", "w"], &["out"], vec![]),
            ],
            initializer: vec![
                tensor_from_f32("k", DataType::Float, &[1, 1, 32, 32], &[0.5; 1024]),
                tensor_from_f32("w", DataType::Float, &[2, 2], &[1.0; 4]),
            ],
            input: vec![tensor_info("x", DataType::Float, &[None, Some(1), Some(33), Some(33)])],
            output: vec![tensor_info("out", DataType::Float, &[None, Some(1), Some(2), Some(2)])],
            ..Default::default()
        };
        let mut m = Model::from_proto(ModelProto { graph: Some(graph), ..model(17).proto });
        let mut other = m.clone();
        convert(&mut m, FloatType::Bf16).unwrap();
        let types = element_types(m.graph());
        // The kernel is half in the file, and a cast widens it for the convolution.
        assert_eq!((types["k"], types["c"], types["r"], types["w"]), {
            use DataType::{Bfloat16, Float};
            (Bfloat16, Float, Float, Bfloat16)
        });
        convert(&mut other, FloatType::Fp16).unwrap();
        assert_eq!(element_types(other.graph())["c"], DataType::Float16);
    }
}
