//! Nodes that nothing is known of.
//!
//! An operator without a rule makes values with axes of their own. Nothing that it touches is resized: the factors of
//! what goes in and of what comes out are pinned. Where the file does not say how large a result is, the result is
//! hidden, and so is what is made of it.

use std::collections::{HashMap, HashSet};

use crate::axes::factors::{Dim, Factor};
use crate::axes::typing::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, ImageInput, data_inputs, declared_dims, is_feed, nearest_border, needed, resolve_axis};
use crate::onnx::proto::tensor_shape_proto::dimension::Value;
use crate::onnx::proto::{NodeProto, ValueInfoProto, type_proto};
use crate::onnx::{node_label, subgraphs};
use crate::ops::{self, Mark};

impl<'m> Typing<'m> {
    /// Why what goes into a node is hidden, where some of it is.
    pub(super) fn hidden_by(&self, node: &NodeProto) -> Option<String> {
        // Most graphs hide nothing.
        let hidden = (!self.hidden.is_empty()).then_some(&self.hidden)?;
        needed(node).find_map(|x| hidden.get(x)).cloned()
    }

    /// Why a node has no rule, where it has none.
    pub(super) fn has_no_rule(&self, node: &NodeProto) -> Option<String> {
        let op = ops::of(node);
        if op.is_known() && subgraphs(node).next().is_none() && !op.is(Mark::Counts) {
            return None;
        }
        let domain = if node.domain().is_empty() { "ai.onnx" } else { node.domain() };
        let what = if op.is(Mark::Counts) { "makes as many elements as numbers say" } else { "has no typing rule" };
        Some(format!("`{domain}.{}` in node `{}` {what}", node.op_type(), node_label(node)))
    }

    /// Types a node of which nothing is known but what the file declares.
    pub(super) fn opaque(&mut self, k: usize, node: &'m NodeProto, why: String) -> Result<()> {
        let mut touched = Vec::new();
        for j in 0..node.input.len() {
            if self.shape(&node.input[j]).is_none() {
                continue;
            }
            touched.extend(self.operand(k, node, j)?.into_iter().flatten());
        }
        for x in needed(node) {
            touched.extend(self.dims.get(x).into_iter().flatten().cloned());
            touched.extend(self.sizes_behind(x));
        }
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            match self.declared_sizes(output) {
                Some(sizes) => {
                    let dims: Vec<Dim> = sizes.into_iter().map(|n| self.factors.fresh(n)).collect();
                    self.sized(&dims)?;
                    touched.extend(dims.iter().cloned());
                    self.dims.insert(output, dims);
                }
                None => drop(self.hidden.insert(output, why.clone())),
            }
        }
        self.pin(k, touched);
        self.opaque.insert(k, why);
        Ok(())
    }

    /// Pins dimensions: node `k` needs them as they are.
    pub(in crate::axes) fn pin(&mut self, k: usize, dims: impl IntoIterator<Item = Dim>) {
        self.pinned.extend(dims.into_iter().filter(|d| !d.is_empty()).map(|d| (d, k)));
    }

    /// The dimensions that a known value is computed from.
    pub(crate) fn sizes_behind(&self, value: &'m str) -> Vec<Dim> {
        let links = self.links();
        let shape_of = |node: &NodeProto| match node.op_type() {
            "Shape" | "Size" => self.dims.get(node.input.first()?.as_str()),
            _ => None,
        };
        let mut found = Vec::new();
        let mut walk = links.upstream([value]).along(|x| self.known.contains_key(x));
        while let Some(x) = walk.next() {
            let Some(node) = links.maker(x).map(|k| &self.graph.node[k]) else { continue };
            // Of a shape, what is picked.
            let data = node.input.first().and_then(|x| links.maker(x)).map(|m| &self.graph.node[m]);
            let picks =
                data.filter(|m| node.op_type() == "Gather" && m.op_type() == "Shape" && m.int("start").is_none());
            if let (Some(dims), Some(places)) =
                (picks.and_then(&shape_of), node.input.get(1).and_then(|x| self.known.get(x.as_str())))
            {
                let at = |i: i64| resolve_axis(i, dims.len());
                found.extend(places.ints().into_iter().filter_map(at).map(|a| dims[a].clone()));
                walk.stop();
            } else if let Some(dims) = shape_of(node) {
                let border =
                    |name: &str, default: usize| node.int(name).map_or(default, |v| nearest_border(v, dims.len()));
                let (start, end) = (border("start", 0), border("end", dims.len()));
                found.extend(dims.iter().take(end).skip(start).cloned());
                walk.stop();
            }
        }
        found
    }

    /// The error about a value that has to be known: its hint names the inputs whose values it is computed from.
    pub(super) fn unknown(&self, error: Error, value: &'m str) -> Error {
        let inputs = self.inputs_behind(value);
        let feeds: Vec<String> = self.feeds_of(&inputs).map(|x| format!("⟦feed⟧ {x}=VALUE")).collect();
        let names: Vec<String> = inputs.iter().map(|x| format!("`{x}`")).collect();
        let from = format!("it is computed from the values of {}", names.join(", "));
        match (inputs.is_empty(), feeds.is_empty()) {
            (true, _) => error,
            (_, true) => error.hint(format!("{from}: export the model with fixed ones, or an output that needs none")),
            _ => error.hint(format!("{from}: give them with {}, or export the model with fixed ones", feeds.join(" "))),
        }
    }

    /// True where a value is computed from those of an input that can be fed.
    pub(super) fn may_be_fed(&self, value: &'m str) -> bool {
        self.feeds_of(&self.inputs_behind(value)).next().is_some()
    }

    /// All of some inputs but the image.
    fn feeds_of<'x>(&self, inputs: &'x [&'m str]) -> impl Iterator<Item = &'x &'m str> {
        let image = ImageInput::of(self.graph).map(|image| image.name);
        inputs.iter().filter(move |x| image.as_deref() != Some(**x))
    }

    /// The inputs of the graph that a value is computed from.
    fn inputs_behind(&self, value: &'m str) -> Vec<&'m str> {
        let walk = self.links().upstream([value]).along(|x| x == value || !self.known.contains_key(x));
        let behind: HashSet<&str> = walk.collect();
        let inputs = data_inputs(self.graph).into_iter().map(|v| v.name());
        inputs.filter(|x| behind.contains(x)).collect()
    }

    /// The sizes that the file declares for a value, where all are numbers or names that inputs give a size.
    fn declared_sizes(&self, value: &str) -> Option<Vec<usize>> {
        let infos = self.graph.value_info.iter().chain(&self.graph.output);
        let info = infos.into_iter().find(|v| v.name() == value)?;
        let named = |name: &str| {
            self.graph.input.iter().find_map(|input| {
                let at = names(input)?.iter().position(|n| *n == Some(name))?;
                Some(self.factors.size(self.dims.get(input.name())?.get(at)?))
            })
        };
        let sizes = declared_dims(info)?.into_iter().zip(names(info)?);
        sizes.map(|(size, name)| size.or_else(|| named(name?))).collect()
    }

    /// The node that needs a factor as it is, where one does.
    pub fn pinned_by(&self, factor: Factor) -> Option<usize> {
        let pins = self.pins.get_or_init(|| {
            let mut pins = HashMap::new();
            for (dim, k) in &self.pinned {
                for leaf in self.factors.all_leaves(dim) {
                    pins.entry(leaf).or_insert(*k);
                }
            }
            pins
        });
        self.factors.all_leaves(&[factor]).iter().find_map(|f| pins.get(f)).copied()
    }

    /// What is not read of the graph, in one line; `None` where all of it is.
    pub fn unread(&self) -> Option<String> {
        let mut first: Vec<&String> = Vec::new();
        for why in self.opaque.values() {
            if !first.contains(&why) {
                first.push(why);
            }
        }
        let behind = self.opaque.len() - first.len();
        let more = first.len().saturating_sub(3);
        let mut what: Vec<String> = first.into_iter().take(3).cloned().collect();
        what.extend((more > 0).then(|| format!("{more} more like these")));
        let last = if behind > 0 { format!(", and {behind} node(s) behind are not read") } else { String::new() };
        let unknown = (!what.is_empty()).then(|| format!("{}: what they touch keeps its size{last}", what.join("; ")));
        let all: Vec<String> = unknown.into_iter().chain(self.sampled()).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// Attentions whose values are sampled at places that queries name (deformable attention), in one line. They have
    /// no keys.
    fn sampled(&self) -> Option<String> {
        let links = self.links();
        let op = |k: usize| self.graph.node[k].op_type();
        let moves = |n: &'m NodeProto| n.input.first().filter(|_| ops::of(n).is(Mark::Moves)).map(String::as_str);
        let is_map = |x: &str| {
            links.follow_back(x, moves).last().and_then(|x| links.maker(x)).is_some_and(|k| op(k) == "Softmax")
        };
        let is_product = |k: usize| matches!(op(k), "Mul" | "MatMul" | "Einsum");
        let weighs = |k: &usize| {
            let later = links.downstream(links.outputs(*k)).until(is_product);
            later.filter(|&k| is_product(k)).any(|k| links.inputs(k).any(is_map))
        };
        let samples: Vec<usize> =
            (0..self.graph.node.len()).filter(|&k| op(k) == "GridSample").filter(weighs).collect();
        let first = node_label(&self.graph.node[*samples.first()?]);
        Some(format!(
            "attentions that sample values at places (`GridSample` in node `{first}`; {} in all) are not read: they \
             stay as they are, and so do FFNs that no other attention has",
            samples.len()
        ))
    }

    /// Checks that a factor may be resized.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where a node of which nothing is known needs it as it is.
    pub(in crate::axes) fn free(&self, factor: Factor) -> Result<()> {
        let Some(k) = self.pinned_by(factor) else { return Ok(()) };
        let node = &self.graph.node[k];
        let what = match self.opaque.get(&k) {
            Some(why) => format!("{why}, so nothing that it touches can be resized"),
            None if is_feed(node) => {
                let input = node.output.first().map_or("", String::as_str);
                return Err(Error::new(ErrorKind::Unsupported, format!("the input `{input}` keeps its shape"))
                    .hint("keep the sizes of inputs, heads and widths that go with it"));
            }
            None => format!("the state of `{}` keeps its size", node.op_type()),
        };
        Err(Error::new(ErrorKind::Unsupported, what)
            .in_node(node_label(node))
            .hint("keep the sizes of inputs, heads and widths that reach this node, or cut the model before it"))
    }
}

/// The names of a declared value's dimensions.
fn names(info: &ValueInfoProto) -> Option<Vec<Option<&str>>> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_ref()?.value.as_ref()? else { return None };
    let dims = tensor.shape.as_ref()?.dim.iter();
    Some(
        dims.map(|d| d.value.as_ref())
            .map(|value| match value {
                Some(Value::DimParam(name)) if !name.is_empty() => Some(name.as_str()),
                _ => None,
            })
            .collect(),
    )
}
