//! The graph once more with the new sizes: what each node says about them is corrected.

use std::collections::{HashMap, HashSet};

use super::plan::ResizePlan;
use crate::axes::arithmetic::{self, ConstValue};
use crate::axes::factors::Factors;
use crate::axes::rules::shape_value;
use crate::axes::typing::{Assumption, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, Builder};
use crate::metadata::FEED_PREFIX;
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use crate::onnx::{DataType, Model, node_label};

/// The walk over the graph, and what it knows so far.
pub(super) struct Repair<'t, 'm> {
    pub(super) typing: &'t Typing<'m>,
    pub(super) plan: &'t ResizePlan,
    pub(super) factors: &'t mut Factors,
    pub(super) known: HashMap<String, ConstValue>,
    /// The typing's constants but for what is computed from shapes, which change.
    pub(super) constants: HashSet<String>,
    pub(super) builder: Builder,
    /// Shape operands that were computed anew, with the values that they have.
    pub(super) corrected: HashMap<String, Vec<(String, Vec<i64>)>>,
    /// The outputs of nodes of shape arithmetic that were computed anew, by node and inputs: what several operands are
    /// made from is there once, as in the ancestor.
    pub(super) recomputed: HashMap<(usize, Vec<String>), Vec<String>>,
    /// Numbers that took the place of others.
    pub(super) numbers: Vec<(ConstValue, DataType, String)>,
    /// True while numbers are written where the exporter left -1 for what is resized.
    pub(super) names_counts: bool,
    /// The first node whose computed shape may not fit every batch.
    pub(super) scaled: Option<usize>,
    /// Known values that a division has a part in: they may be right at one batch and wrong at another.
    pub(super) divided: HashSet<String>,
}

/// Images in another batch than the assumed one: a prime number that no axis of a network is likely to be a multiple
/// of.
pub(super) const OTHER_BATCH: usize = 59;

/// Walks the graph with the new sizes.
pub(super) fn repair(
    typing: &Typing,
    plan: &ResizePlan,
    factors: &mut Factors,
    builder: Builder,
    out: &mut GraphProto,
) -> Result<()> {
    let mut known = HashMap::new();
    let mut constants: HashSet<String> = HashSet::new();
    for t in &out.initializer {
        // What an input is fed is the input's.
        if !t.name().starts_with(FEED_PREFIX) {
            constants.insert(t.name().to_string());
        }
        let old = typing.known.contains_key(t.name()) || !typing.weights.contains_key(t.name());
        if old && let Some(value) = ConstValue::read(t) {
            known.insert(t.name().to_string(), value);
        }
    }
    let mut repair = Repair {
        typing,
        plan,
        factors,
        known,
        constants,
        builder,
        corrected: HashMap::new(),
        recomputed: HashMap::new(),
        numbers: Vec::new(),
        names_counts: false,
        scaled: None,
        divided: HashSet::new(),
    };
    for (k, node) in std::mem::take(&mut out.node).into_iter().enumerate() {
        let label = node_label(&node);
        repair.node(k, node).map_err(|e| e.in_node(label))?;
    }
    // Of another image size the input does not know yet.
    let same_image = !plan.gathers.keys().any(|&f| typing.factors.spatial(f).is_some());
    let scaled = repair.scaled.filter(|_| same_image);
    repair.count_numbers();
    repair.builder.finish(out);
    for info in &mut out.output {
        if let Some(dims) = typing.dims.get(info.name()) {
            for (a, d) in dims.iter().enumerate() {
                let (old, new) = (typing.factors.size(d), factors.size(d));
                if old != new {
                    graph::declare_dim(info, a, new);
                }
            }
        }
    }
    graph::forget_shapes(out);
    scaled.map_or(Ok(()), |k| any_batch(typing, out).map_err(|e| e.in_node(node_label(&typing.graph.node[k]))))
}

/// Checks that a resized graph takes other batches than the assumed one, where the graph that it comes from does.
fn any_batch(typing: &Typing, resized: &GraphProto) -> Result<()> {
    if !typing.batch_is_open() {
        return Ok(());
    }
    let takes = |graph: &GraphProto, batch: usize| {
        let opset = OperatorSetIdProto { domain: None, version: Some(typing.opset) };
        let model = Model::from_proto(ModelProto {
            graph: Some(graph.clone()),
            opset_import: vec![opset],
            ..Default::default()
        });
        let assumption = Assumption { batch, image: typing.image_size() };
        Typing::with(&model, assumption).is_ok_and(|typing| typing.check_consistent().is_ok())
    };
    match [1, OTHER_BATCH].into_iter().find(|&batch| !takes(resized, batch) && takes(typing.graph, batch)) {
        None => Ok(()),
        Some(batch) => Err(Error::new(
            ErrorKind::Unsupported,
            format!("a shape that is computed from the batch cannot be resized: it would not fit a batch of {batch}"),
        )
        .hint("export the model with a fixed batch, or keep its heads and widths")),
    }
}

impl<'m> Repair<'_, 'm> {
    pub(super) fn shape(&self, value: &str) -> Vec<usize> {
        match self.typing.dims.get(value) {
            Some(dims) => dims.iter().map(|d| self.factors.size(d)).collect(),
            None => self.typing.shape(value).unwrap_or_default(),
        }
    }

    pub(super) fn operand(&self, name: &str) -> Result<Vec<i64>> {
        self.known.get(name).map(ConstValue::ints).ok_or_else(|| {
            Error::new(ErrorKind::Typing, format!("the shape operand `{name}` is not known after resizing"))
        })
    }

    fn node(&mut self, k: usize, mut node: NodeProto) -> Result<()> {
        let typing = self.typing;
        let was = &typing.graph.node[k];
        let op = was.op_type();
        let first = was.output.first().map(String::as_str).unwrap_or("");
        if op == "Constant" {
            for o in &was.output {
                self.constants.insert(o.clone());
                if let Some(value) = typing.known.get(o.as_str()) {
                    self.known.insert(o.clone(), value.clone());
                }
            }
        } else if typing.known.contains_key(first) {
            self.shape_of_numbers(k, &mut node)?;
            self.recompute(was, &node)?;
        } else if !typing.opaque.contains_key(&k) {
            match op {
                "Reshape" | "Expand" if was.input.len() > 1 => self.shape_operand(k, &mut node, 1)?,
                "Resize" | "Upsample" if self.scales(was, &mut node)? => {}
                "Resize" if was.input.get(3).is_some_and(|x| !x.is_empty()) && was.ints("axes").is_none() => {
                    self.shape_operand(k, &mut node, 3)?
                }
                "ConstantOfShape" => self.shape_operand(k, &mut node, 0)?,
                "Tile" if self.repeats(was) => self.shape_operand(k, &mut node, 1)?,
                "Split" => self.split(was, &mut node)?,
                "Slice" => self.slice(k, was, &mut node)?,
                "Pad" => self.pad(was, &mut node)?,
                "ScatterND" => self.scatter(was, &mut node)?,
                "ScatterElements" => self.scatter_elements(was)?,
                "AveragePool" | "MaxPool" | "LpPool" => self.pool(was, &mut node),
                _ => self.counts(k, &mut node),
            }
            if typing.keeps_constant(&node, |x| self.constants.contains(x)) {
                self.constants.extend(node.output.iter().cloned());
            }
        }
        self.builder.nodes.push(node);
        Ok(())
    }

    /// Shape arithmetic again, with the new sizes.
    fn recompute(&mut self, was: &NodeProto, node: &NodeProto) -> Result<()> {
        let results = match was.op_type() {
            "Shape" | "Size" => {
                vec![shape_value(was, &self.shape(was.input.first().map(String::as_str).unwrap_or("")))]
            }
            _ => {
                let inputs: Vec<Option<ConstValue>> = node
                    .input
                    .iter()
                    .map(|x| {
                        self.known
                            .get(x)
                            .cloned()
                            .or_else(|| self.typing.weights.get(x.as_str()).and_then(|t| ConstValue::read(t)))
                    })
                    .collect();
                // A value that has grown too large to follow matters only where a shape operand needs it.
                match arithmetic::evaluate(node, &inputs) {
                    Some(results) => results,
                    None => return Ok(()),
                }
            }
        };
        if matches!(was.op_type(), "Div" | "Mod") || was.input.iter().any(|x| self.divided.contains(x)) {
            self.divided.extend(was.output.iter().cloned());
        }
        for (o, value) in was.output.iter().zip(results) {
            // A computed list can be as long as a resized axis (the indices of a ScatterND); what is made from it has
            // that length.
            for (d, &n) in self.typing.dims.get(o.as_str()).into_iter().flatten().zip(value.data.shape()) {
                if let [f] = self.factors.leaves(d)[..]
                    && self.factors.factor_size(f) != n
                {
                    self.factors.set_size(f, n);
                }
            }
            self.known.insert(o.clone(), value);
        }
        let of_shape = matches!(was.op_type(), "Shape" | "Size");
        if !of_shape && self.typing.keeps_constant(node, |x| self.constants.contains(x)) {
            self.constants.extend(was.output.iter().cloned());
        }
        Ok(())
    }
}
