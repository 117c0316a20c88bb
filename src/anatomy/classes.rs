//! Outputs that tell classes apart, and what the graph puts behind their logits: an activation that makes probabilities
//! of them (Softmax, LogSoftmax, Sigmoid), or a norm that makes a unit vector of them.
//!
//! Both are found going back from the output, as one operator or written out in small ones (exponentials over their
//! sum, with or without the maximum taken away first). Operators that leave every element as it is may stand between.

use std::fmt;

use super::structure::Anatomy;
use crate::axes::arithmetic::ConstValue;
use crate::axes::{Dim, Factor, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, Links, is_standard, nearest_border, resolve_axis};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, node_label};
use crate::ops::{self, Mark};

/// What makes probabilities of logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationKind {
    /// Probabilities of classes that exclude each other.
    Softmax,
    /// Their logarithms.
    LogSoftmax,
    /// A probability for each class by itself.
    Sigmoid,
}

impl ActivationKind {
    /// The ONNX operator.
    pub fn operator(self) -> &'static str {
        match self {
            ActivationKind::Softmax => "Softmax",
            ActivationKind::LogSoftmax => "LogSoftmax",
            ActivationKind::Sigmoid => "Sigmoid",
        }
    }
}

impl fmt::Display for ActivationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operator())
    }
}

/// An activation behind a classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct Activation {
    /// The output that holds what it makes.
    pub output: String,
    /// What it is.
    pub kind: ActivationKind,
    /// The value before it.
    pub logits: String,
    /// The value that it makes: the output, or what becomes the output in another form.
    pub made: String,
    /// The node that takes `made` on the way to the output; `None` where `made` is the output.
    pub next: Option<usize>,
    /// Classes: the last axis of the output, which has two.
    pub classes: usize,
}

impl Activation {
    /// True for one Sigmoid, which tells two classes apart.
    pub fn is_binary(&self) -> bool {
        self.kind == ActivationKind::Sigmoid && self.classes == 1
    }
}

/// The factor of the classes: the last axis of a first output of rank two that a weight makes.
pub fn class_factor(typing: &Typing) -> Option<Factor> {
    classes_of(typing, typing.graph.output.first()?.name())
}

fn classes_of(typing: &Typing, output: &str) -> Option<Factor> {
    let [_, classes] = &typing.dims.get(output)?[..] else { return None };
    let [f] = typing.factors.leaves(classes)[..] else { return None };
    let made =
        typing.uses.iter().any(|u| u.dims.len() > 1 && u.dims.iter().any(|d| typing.factors.leaves(d)[..] == [f]));
    made.then_some(f)
}

/// The factors of all outputs that hold classes, that of the first output first: they have as many classes as that one,
/// and none is the embedding of the layers.
pub fn class_factors(typing: &Typing) -> Vec<Factor> {
    let Some(first) = class_factor(typing) else { return Vec::new() };
    let mut found = vec![first];
    if typing.graph.output.len() > 1 {
        let embedding: Vec<Factor> = match Anatomy::new(typing) {
            Ok(anatomy) => anatomy.layers.iter().flat_map(|l| typing.factors.all_leaves(&l.embedding)).collect(),
            Err(_) => Vec::new(),
        };
        let count = typing.factors.factor_size(first);
        for f in typing.graph.output[1..].iter().filter_map(|o| classes_of(typing, o.name())) {
            if !found.contains(&f) && typing.factors.factor_size(f) == count && !embedding.contains(&f) {
                found.push(f);
            }
        }
    }
    found
}

/// Outputs [batch, n] beside the first that a classifier of their own makes, each with its n: they are none of the
/// first one's classes. Features are among them where a weight makes them, since a graph does not tell the two apart.
pub fn other_outputs(typing: &Typing) -> Vec<(String, usize)> {
    let factors = class_factors(typing);
    let outputs = typing.graph.output.iter().skip(1).filter_map(|o| Some((o.name(), classes_of(typing, o.name())?)));
    let others = outputs.filter(|(_, f)| !factors.contains(f));
    others.map(|(name, f)| (name.to_string(), typing.factors.factor_size(f))).collect()
}

/// The activations behind outputs [batch, classes], in the order of the outputs.
pub fn activations(typing: &Typing) -> Vec<Activation> {
    let factors = class_factors(typing);
    let outputs = typing.graph.output.iter().enumerate().filter_map(|(i, o)| {
        let [_, classes] = &typing.dims.get(o.name())?[..] else { return None };
        let found = ClassifierReader::new(typing, typing.factors.leaves(classes)).activation(o.name())?;
        // Numbers from 0 to 1 may be something else than classes, a map for instance.
        let is_class = || classes_of(typing, o.name()).is_some_and(|f| factors.contains(&f));
        let is_first = i == 0 && (found.kind != ActivationKind::Sigmoid || found.is_binary());
        (is_first || is_class()).then_some(found)
    });
    outputs.collect()
}

/// The activation behind the first output, where that holds classes and has one.
pub fn activation(typing: &Typing) -> Option<Activation> {
    let first = typing.graph.output.first()?.name();
    activations(typing).into_iter().find(|a| a.output == first)
}

/// Where the logits of an output are made unit vectors: the value that is divided by its length, and the quotient.
/// Constant factors and an activation may follow.
pub fn unit_norms(typing: &Typing) -> Vec<(String, String)> {
    let factors = class_factors(typing);
    let mut found = Vec::new();
    for output in &typing.graph.output {
        let Some(f) = classes_of(typing, output.name()).filter(|f| factors.contains(f)) else { continue };
        let reader = ClassifierReader::new(typing, Dim::from_slice(&[f]));
        let logits = reader.activation(output.name()).map(|a| a.logits);
        if let Some(norm) = reader.norm_behind(logits.as_deref().unwrap_or(output.name()))
            && !found.contains(&norm)
        {
            found.push(norm);
        }
    }
    found
}

/// The TopK that sorted what a value holds along its last axis, if one did: its places are ranks, and none stands for a
/// class.
pub fn ranking(typing: &Typing, value: &str) -> Option<usize> {
    let last = typing.factors.leaves(typing.dims.get(value)?.last()?);
    let sorts = |node: &&NodeProto| node.op_type() == "TopK" && is_standard(node);
    let axis = |node: &NodeProto, rank: usize| resolve_axis(node.int("axis").unwrap_or(-1), rank);
    if last.is_empty() {
        // One place has no factor of its own.
        let reader = ClassifierReader::new(typing, Dim::new());
        let k = reader.links.maker(reader.back(value))?;
        return Some(k).filter(|&k| sorts(&&typing.graph.node[k]));
    }
    typing.graph.node.iter().position(|node| {
        let sorted = node.output.iter().filter_map(|o| typing.dims.get(o.as_str()));
        sorts(&node)
            && sorted
                .into_iter()
                .any(|d| axis(node, d.len()).and_then(|a| d.get(a)).is_some_and(|d| typing.factors.leaves(d) == last))
    })
}

/// Checks that the places along the last axis of an output may stand for classes.
///
/// # Errors
/// [`ErrorKind::Usage`] where they are ranks: see [`ranking`].
pub fn check_classes(typing: &Typing, output: &str) -> Result<()> {
    let Some(node) = ranking(typing, output).map(|k| &typing.graph.node[k]) else { return Ok(()) };
    let of = node.input.first().map_or("", String::as_str);
    let message = format!("the output `{output}` holds what TopK found, sorted: its places are ranks and no classes");
    Err(Error::new(ErrorKind::Usage, message)
        .in_node(node_label(node))
        .hint(format!("let the model end before that node: make `{of}` its output, from which TopK chooses")))
}

/// Reads what is behind the logits of one output.
struct ClassifierReader<'t, 'm> {
    typing: &'t Typing<'m>,
    links: &'t Links<'m>,
    classes: Dim,
}

impl<'t, 'm> ClassifierReader<'t, 'm> {
    fn new(typing: &'t Typing<'m>, classes: Dim) -> Self {
        ClassifierReader { typing, links: typing.links(), classes }
    }

    /// The standard operator that makes a value: typing has seen that it has its operands.
    fn maker(&self, value: &str) -> Option<&'m NodeProto> {
        self.links.maker(value).map(|k| &self.typing.graph.node[k]).filter(|n| is_standard(n))
    }

    /// The value whose elements those of `value` are.
    fn back<'v>(&self, value: &'v str) -> &'v str
    where
        'm: 'v,
    {
        self.forms(value, one_form_back).last().unwrap_or(value)
    }

    /// A value, and the values that it is a form of, one after the other: `step` names the operand of an operator.
    fn forms<'v>(
        &self,
        value: &'v str,
        step: impl Fn(&'m NodeProto) -> Option<&'m str>,
    ) -> impl Iterator<Item = &'v str>
    where
        'm: 'v,
    {
        self.links.follow_back(value, move |node| is_standard(node).then(|| step(node)).flatten())
    }

    fn activation(&self, output: &str) -> Option<Activation> {
        let mut next = None;
        for made in self.forms(output, |node| one_form_back(node).or_else(|| self.unchanged(node))) {
            if let Some((kind, logits)) = self.activated(made) {
                let same_shape = self.typing.shape(logits) == self.typing.shape(made);
                return same_shape.then(|| Activation {
                    output: output.to_string(),
                    kind,
                    logits: logits.to_string(),
                    made: made.to_string(),
                    next,
                    classes: self.typing.factors.size(&self.classes),
                });
            }
            next = self.links.maker(made);
        }
        None
    }

    /// What is multiplied by one, or added to zero, as PaddlePaddle ends its models.
    fn unchanged(&self, node: &'m NodeProto) -> Option<&'m str> {
        match node.op_type() {
            "Mul" => self.other_than(node, 1.0),
            "Add" => self.other_than(node, 0.0),
            _ => None,
        }
    }

    fn activated(&self, value: &str) -> Option<(ActivationKind, &'m str)> {
        let one = |kind: ActivationKind, logits: Option<&'m str>| logits.map(|l| (kind, l));
        if self.classes.is_empty() {
            return one(ActivationKind::Sigmoid, self.sigmoid(value));
        }
        one(ActivationKind::Softmax, self.softmax(value))
            .or_else(|| one(ActivationKind::LogSoftmax, self.log_softmax(value)))
            .or_else(|| one(ActivationKind::Sigmoid, self.sigmoid(value)))
    }

    /// The logits whose Softmax over the classes `value` is.
    fn softmax(&self, value: &str) -> Option<&'m str> {
        let node = self.maker(value)?;
        match node.op_type() {
            "Softmax" => self.over_classes(node).then(|| node.input[0].as_str()),
            "Exp" => self.log_softmax(self.back(node.input.first()?)),
            "Div" => self.exponentials_over(&node.input[0], &node.input[1]),
            "Mul" => [(0, 1), (1, 0)].into_iter().find_map(|(e, r)| {
                let inverse = self.maker(self.back(&node.input[r])).filter(|m| m.op_type() == "Reciprocal")?;
                self.exponentials_over(&node.input[e], inverse.input.first()?)
            }),
            _ => None,
        }
    }

    /// The logits, where `sum` is that of the exponentials `e` of them over the classes.
    fn exponentials_over(&self, e: &'m str, sum: &'m str) -> Option<&'m str> {
        let e = self.back(e);
        let exponential = self.maker(e).filter(|m| m.op_type() == "Exp")?;
        (self.reduced("ReduceSum", sum)? == e).then_some(())?;
        Some(self.unshifted(exponential.input.first()?))
    }

    /// The logits whose LogSoftmax over the classes `value` is.
    fn log_softmax(&self, value: &str) -> Option<&'m str> {
        let node = self.maker(value)?;
        match node.op_type() {
            "LogSoftmax" => self.over_classes(node).then(|| node.input[0].as_str()),
            "Log" => self.softmax(self.back(node.input.first()?)),
            "Sub" => {
                let logits = node.input[0].as_str();
                self.is_log_sum_exp(&node.input[1], self.back(logits)).then(|| self.unshifted(logits))
            }
            _ => None,
        }
    }

    /// True where `value` is the logarithm of the sum of the exponentials of `logits` over the classes.
    fn is_log_sum_exp(&self, value: &'m str, logits: &str) -> bool {
        if self.reduced("ReduceLogSumExp", value).is_some_and(|x| x == logits) {
            return true;
        }
        let Some(node) = self.maker(self.spread(value)) else { return false };
        let exponentials = |log: &'m NodeProto| -> Option<&'m str> {
            let sum = log.input.first().filter(|_| log.op_type() == "Log")?;
            let e = self.maker(self.reduced("ReduceSum", sum)?).filter(|m| m.op_type() == "Exp")?;
            Some(self.back(e.input.first()?))
        };
        match node.op_type() {
            "Log" => exponentials(node) == Some(logits),
            // The maximum is put back on top of the logarithm.
            "Add" => [(0, 1), (1, 0)].into_iter().any(|(m, l)| {
                let shifted = self.maker(self.spread(&node.input[l])).and_then(exponentials);
                let taken = shifted.and_then(|s| self.maker(s)).filter(|s| s.op_type() == "Sub");
                self.reduced("ReduceMax", &node.input[m]).is_some_and(|x| x == logits)
                    && taken.is_some_and(|s| {
                        self.back(&s.input[0]) == logits
                            && self.reduced("ReduceMax", &s.input[1]).is_some_and(|x| x == logits)
                    })
            }),
            _ => false,
        }
    }

    /// The logits whose Sigmoid `value` is.
    fn sigmoid(&self, value: &str) -> Option<&'m str> {
        let node = self.maker(value)?;
        // 1 + exp(x): what the exponential is of.
        let one_and_exponential = |x: &'m str| -> Option<(&'m str, &'m str)> {
            let sum = self.maker(self.back(x)).filter(|m| m.op_type() == "Add")?;
            let e = self.back(self.other_than(sum, 1.0)?);
            let exponential = self.maker(e).filter(|m| m.op_type() == "Exp")?;
            Some((e, exponential.input.first()?))
        };
        let of_negative = |x: &'m str| self.negated(one_and_exponential(x)?.1);
        match node.op_type() {
            "Sigmoid" => node.input.first().map(String::as_str),
            "Reciprocal" => of_negative(node.input.first()?),
            "Div" if self.is_number(&node.input[0], 1.0) => of_negative(&node.input[1]),
            "Div" => {
                let (e, logits) = one_and_exponential(&node.input[1])?;
                (self.back(&node.input[0]) == e).then_some(logits)
            }
            _ => None,
        }
    }

    /// The value whose negative `value` is.
    fn negated(&self, value: &'m str) -> Option<&'m str> {
        let node = self.maker(self.back(value))?;
        match node.op_type() {
            "Neg" => node.input.first().map(String::as_str),
            "Mul" => self.other_than(node, -1.0),
            "Sub" if self.is_number(&node.input[0], 0.0) => Some(&node.input[1]),
            _ => None,
        }
    }

    /// What a maximum over the classes was taken away from, else the value itself.
    fn unshifted(&self, value: &'m str) -> &'m str {
        match self.maker(self.back(value)) {
            Some(m) if m.op_type() == "Sub" => {
                let x = m.input[0].as_str();
                let by_maximum = self.reduced("ReduceMax", &m.input[1]).is_some_and(|r| r == self.back(x));
                if by_maximum && self.typing.shape(x) == self.typing.shape(value) { x } else { value }
            }
            _ => value,
        }
    }

    /// What `value`, one number for all classes of an image, is spread from.
    fn spread(&self, value: &'m str) -> &'m str {
        self.forms(value, spread_from).last().unwrap_or(value)
    }

    /// What `value` is a reduction of over the classes.
    fn reduced(&self, op: &str, value: &'m str) -> Option<&'m str> {
        let node = self.maker(self.spread(value)).filter(|m| m.op_type() == op)?;
        let x = node.input.first()?;
        let dims = self.typing.dims.get(x.as_str())?;
        let listed = || self.typing.known.get(node.input.get(1)?.as_str()).map(ConstValue::ints);
        let axes = node.ints("axes").map(<[i64]>::to_vec).or_else(listed)?;
        self.are_classes(dims, &axes).then(|| self.back(x))
    }

    fn are_classes(&self, dims: &[Dim], axes: &[i64]) -> bool {
        let axes = axes.iter().map(|&a| resolve_axis(a, dims.len()));
        let Some(axes) = axes.collect::<Option<Vec<usize>>>() else { return false };
        let all: Dim = axes.iter().flat_map(|&a| self.typing.factors.leaves(&dims[a])).collect();
        all == self.classes
    }

    /// True where a Softmax or a norm runs over the classes alone.
    fn over_classes(&self, node: &NodeProto) -> bool {
        let dims = node.input.first().and_then(|x| self.typing.dims.get(x.as_str()));
        let Some(dims) = dims else { return false };
        // Before operator set 13 all axes from the named one on are one.
        let flattens = self.typing.opset < 13 && node.op_type() != "LpNormalization";
        let axis = node.int("axis").unwrap_or(if flattens { 1 } else { -1 });
        let from = nearest_border(axis, dims.len()) as i64;
        let axes: Vec<i64> = if flattens { (from..dims.len() as i64).collect() } else { vec![from] };
        self.are_classes(dims, &axes)
    }

    fn is_number(&self, value: &str, number: f64) -> bool {
        let known = self.typing.known.get(value);
        known.is_some_and(|k| k.data.len() == 1 && k.data.iter().all(|v| (v - number).abs() < 1e-6))
    }

    /// The operand of two that is not this number, where the other one is.
    fn other_than(&self, node: &'m NodeProto, number: f64) -> Option<&'m str> {
        let [a, b] = &node.input[..] else { return None };
        [(a, b), (b, a)].into_iter().find(|(n, _)| self.is_number(n, number)).map(|(_, x)| x.as_str())
    }

    /// The nearest division by a length before `value`, past constant factors and summands.
    fn norm_behind(&self, value: &str) -> Option<(String, String)> {
        let computed = |node: &'m NodeProto| {
            let [a, b] = &node.input[..] else { return None };
            match (self.typing.is_constant(a), self.typing.is_constant(b)) {
                _ if !ops::of(node).is(Mark::Arithmetic) => None,
                (false, true) => Some(a.as_str()),
                (true, false) => Some(b.as_str()),
                _ => None,
            }
        };
        let mut forms = self.forms(value, |node| one_form_back(node).or_else(|| computed(node)));
        let (value, x) = forms.find_map(|value| Some((value, self.normalised(value)?)))?;
        (self.typing.shape(x) == self.typing.shape(value)).then(|| (x.to_string(), value.to_string()))
    }

    /// What `value` is, divided by its length over the classes.
    fn normalised(&self, value: &str) -> Option<&'m str> {
        let node = self.maker(value)?;
        let over_length = |x: &'m str, length: &'m str| self.is_length(length, self.back(x)).then_some(x);
        match node.op_type() {
            "LpNormalization" => {
                (node.int("p").unwrap_or(2) == 2 && self.over_classes(node)).then(|| node.input[0].as_str())
            }
            "Div" => over_length(&node.input[0], &node.input[1]),
            "Mul" => [(0, 1), (1, 0)].into_iter().find_map(|(x, r)| {
                let inverse = self.maker(self.spread(&node.input[r])).filter(|m| m.op_type() == "Reciprocal")?;
                over_length(&node.input[x], inverse.input.first()?)
            }),
            _ => None,
        }
    }

    /// True where `value` is the root of the sum of squares of `of` over the classes, kept from zero or not.
    fn is_length(&self, value: &'m str, of: &str) -> bool {
        let root = self.unbounded(value);
        if self.reduced("ReduceL2", root).is_some_and(|x| x == of) {
            return true;
        }
        let squares = match self.maker(root) {
            Some(m) if m.op_type() == "Sqrt" => m.input.first(),
            Some(m) if m.op_type() == "Pow" && self.is_number(&m.input[1], 0.5) => m.input.first(),
            _ => None,
        };
        let Some(sum) = squares.map(|s| self.unbounded(s)) else { return false };
        let is_square = |square: &str| match self.maker(square) {
            Some(m) if m.op_type() == "Mul" => m.input.iter().all(|x| self.back(x) == of),
            Some(m) if m.op_type() == "Pow" => self.back(&m.input[0]) == of && self.is_number(&m.input[1], 2.0),
            _ => false,
        };
        self.reduced("ReduceSumSquare", sum).is_some_and(|x| x == of)
            || self.reduced("ReduceSum", sum).is_some_and(is_square)
    }

    /// A length or a sum of squares without what keeps it from zero.
    fn unbounded(&self, value: &'m str) -> &'m str {
        let known = |x: &String| self.typing.known.contains_key(x.as_str());
        let bounded = |m: &'m NodeProto| match m.op_type() {
            "Clip" => m.input.first().map(String::as_str),
            "Max" | "Add" if m.input.iter().any(known) => m.input.iter().find(|x| !known(x)).map(String::as_str),
            _ => None,
        };
        self.forms(value, |m| spread_from(m).or_else(|| bounded(m))).last().unwrap_or(value)
    }
}

/// The first input of an operator that repeats elements, or leaves each as it is.
fn spread_from(node: &NodeProto) -> Option<&str> {
    match node.op_type() {
        "Expand" => node.input.first().map(String::as_str),
        _ => one_form_back(node),
    }
}

/// The first input of an operator that leaves every element of it as it is.
fn one_form_back(node: &NodeProto) -> Option<&str> {
    let floats = [DataType::Float, DataType::Float16, DataType::Bfloat16, DataType::Double].map(|t| Some(t as i64));
    let keeps = match node.op_type() {
        "Identity" | "Dropout" => true,
        "Cast" => floats.contains(&node.int("to")),
        _ => ops::of(node).is(Mark::View),
    };
    node.input.first().filter(|_| keeps).map(String::as_str)
}
