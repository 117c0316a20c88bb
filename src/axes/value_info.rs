//! What a file declares of the values inside (`value_info`): a child declares them as the exporter did, in its own
//! sizes.
//!
//! Tools that rewrite graphs match on it (the fusions of onnxscript, among others). Sizes are those of the child's own
//! typing: a number where it is the same for every batch, image and length that the inputs leave open, and otherwise
//! the name that the exporter gave it.

use std::collections::{HashMap, HashSet};

use super::typing::{Assumption, Typing, channels_last};
use crate::graph::{axes_mut, data_inputs, declared_axes, declared_dims, element_types};
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension::Value};
use crate::onnx::proto::{GraphProto, ValueInfoProto};
use crate::onnx::{DataType, Model, tensor_info};
use crate::ops;

/// Other batches than the assumed one, from the best on: what grows with the batch may become too large to follow.
const OTHER_BATCHES: [usize; 2] = [59, 3];

/// Declares the values of a child as the exporter declared those of its ancestor, and the new ones beside them. Nothing
/// is declared where the ancestor's file declares nothing, and nothing that the typing does not know.
pub fn carry_value_info(ancestor: &Model, child: &mut Model) {
    if ancestor.graph().value_info.is_empty() {
        return;
    }
    let declared = match (Typing::new(ancestor), DeclaredValues::new(child)) {
        (Ok(before), Some(known)) => known.declared(&before),
        _ => return,
    };
    child.graph_mut().value_info = declared;
}

/// What is known of the values of a child.
struct DeclaredValues<'m> {
    model: &'m Model,
    /// The child under several assumptions.
    typings: Vec<Typing<'m>>,
    /// True where these differ in everything that the inputs leave open.
    varied: bool,
    types: HashMap<&'m str, DataType>,
    /// The names of sizes that inputs leave open, by the size under every assumption.
    names: HashMap<Vec<usize>, String>,
}

impl<'m> DeclaredValues<'m> {
    fn new(model: &'m Model) -> Option<Self> {
        let first = Typing::new(model).ok()?;
        let Assumption { batch, image } = Assumption { image: first.image_size(), ..first.assumption.clone() };
        // A height is told from a width where the graph takes both.
        let other_images = [2, 3].map(|times| [2 * image[0], times * image[1]]);
        let sound = |batch, image| {
            let mut typing = Typing::empty(model, Assumption { batch, image });
            // A table of places may have no more rows than are assumed.
            typing.open_length = match first.has_short_table() {
                true => first.open_length - first.open_length.div_ceil(4),
                false => typing.open_length + typing.open_length / 2,
            };
            typing.walk(false).ok().filter(|()| typing.conflicts.is_empty())?;
            Some(typing)
        };
        let mut others = vec![OTHER_BATCHES.into_iter().find_map(|n| sound(n, image))];
        if leaves_image_open(model.graph()) {
            others.push(other_images.into_iter().rev().find_map(|other| sound(batch, other)));
        }
        // What an input is fed has one length, whatever the file leaves open.
        let varied = model.fed.is_empty() && others.iter().all(Option::is_some);
        let typings: Vec<Typing> = std::iter::once(first).chain(others.into_iter().flatten()).collect();
        let mut known =
            DeclaredValues { model, typings, varied, types: element_types(model.graph()), names: HashMap::new() };
        known.names = known.open_sizes();
        Some(known)
    }

    /// The sizes that inputs name, but for those that two names share.
    fn open_sizes(&self) -> HashMap<Vec<usize>, String> {
        let mut names: HashMap<Vec<usize>, Option<String>> = HashMap::new();
        for info in data_inputs(self.model.graph()) {
            let sizes = self.sizes(info.name()).unwrap_or_default();
            for (size, dim) in sizes.into_iter().zip(declared_axes(info).unwrap_or_default()) {
                if let Some(Value::DimParam(name)) = dim.value.as_ref().filter(|_| !is_same(&size)) {
                    let known = names.entry(size).or_insert_with(|| Some(name.clone()));
                    *known = known.take().filter(|known| known == name);
                }
            }
        }
        names.into_iter().filter_map(|(size, name)| Some((size, name?))).collect()
    }

    /// The sizes of a value's axes, each under every assumption.
    fn sizes(&self, value: &str) -> Option<Vec<Vec<usize>>> {
        let shapes: Vec<Vec<usize>> = self.typings.iter().map(|t| t.shape(value)).collect::<Option<_>>()?;
        let same_rank = shapes.iter().all(|s| s.len() == shapes[0].len());
        same_rank.then(|| (0..shapes[0].len()).map(|a| shapes.iter().map(|s| s[a]).collect()).collect())
    }

    /// Declarations of what the exporter declared, in its order, and then of new values.
    fn declared(&self, before: &Typing) -> Vec<ValueInfoProto> {
        let (old, graph) = (before.graph, self.model.graph());
        let ends = graph.input.iter().chain(&graph.output).map(|v| v.name());
        let mut done: HashSet<&str> = ends.collect();
        let made = || graph.node.iter().flat_map(|n| &n.output).map(String::as_str).filter(|o| !o.is_empty());
        let there: HashSet<&str> = made().chain(graph.initializer.iter().map(|t| t.name())).collect();
        let mut out = Vec::new();
        for info in &old.value_info {
            if there.contains(info.name()) && done.insert(info.name()) {
                out.extend(self.carried(info, before));
            }
        }
        let had: HashSet<&str> = old.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
        for value in made().filter(|v| !had.contains(v)) {
            if done.insert(value) {
                out.extend(self.types.get(value).and_then(|&kind| self.info(value, kind, &[], &[])));
            }
        }
        out
    }

    /// What the exporter declared of a value, in the child's sizes.
    fn carried(&self, info: &ValueInfoProto, before: &Typing) -> Option<ValueInfoProto> {
        let value = info.name();
        let known = self.types.get(value).and_then(|&kind| {
            let was = before.shape(value).unwrap_or_default();
            self.info(value, kind, declared_axes(info).unwrap_or_default(), &was)
        });
        match known {
            Some(now) => Some(ValueInfoProto { r#type: now.r#type, ..info.clone() }),
            // Nothing but the file says what an operator makes that is not known.
            None => {
                let maker = self.typings[0].links().maker(value)?;
                (!ops::of(&self.model.graph().node[maker]).is_known()).then(|| info.clone())
            }
        }
    }

    /// A declaration. `exported` are the axes as the exporter declared them, where it did, and `was` their sizes in the
    /// ancestor.
    fn info(&self, value: &str, kind: DataType, exported: &[Dimension], was: &[usize]) -> Option<ValueInfoProto> {
        let sizes = self.sizes(value)?;
        let exported = if exported.len() == sizes.len() && was.len() == sizes.len() { exported } else { &[] };
        let dims = sizes.iter().enumerate().map(|(axis, size)| {
            let said = exported.get(axis).and_then(|d| d.value.as_ref());
            if is_same(size) && (self.varied || matches!(said, Some(Value::DimValue(_)))) {
                return Some(Value::DimValue(size[0] as i64));
            }
            // A name may be a formula that has the number of heads in it.
            let name = match said {
                Some(Value::DimParam(name)) if was[axis] == size[0] => Some(name),
                _ => self.names.get(size),
            };
            name.cloned().map(Value::DimParam)
        });
        let dims: Vec<Dimension> = dims.map(|value| Dimension { value, denotation: None }).collect();
        let mut info = tensor_info(value, kind, &vec![None; dims.len()]);
        *axes_mut(&mut info)? = dims;
        Some(info)
    }
}

/// True where a size is the same under every assumption.
fn is_same(size: &[usize]) -> bool {
    size.windows(2).all(|pair| pair[0] == pair[1])
}

/// True where an input leaves the height or the width of images open.
fn leaves_image_open(graph: &GraphProto) -> bool {
    let is_open = |dims: Vec<Option<usize>>| {
        let sides = if channels_last(&dims) { 1..3 } else { 2..4 };
        dims.len() == 4 && dims[sides].contains(&None)
    };
    data_inputs(graph).into_iter().filter_map(declared_dims).any(is_open)
}
