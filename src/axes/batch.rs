//! The batch axis: whether a graph takes any number of images and keeps them apart, and the graph with an open batch
//! where its file fixes one.
//!
//! Exporters that trace one image write its 1 into shapes. The batch is followed as a factor of its own, in front of
//! what the file fixes, and so it is known at every Reshape on which axis of the target it lies. A graph may also
//! declare an open batch and hold a 1 all the same: its shapes then fit one image only, or images of a batch meet where
//! they should not, in the tokens that attend to each other.

use std::collections::HashMap;
use std::path::Path;

use super::arithmetic::{ConstValue, elements};
use super::factors::{Dim, Factor};
use super::opening::{Correction, Opening};
use super::typing::{Assumption, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, Builder, data_inputs, declare_dim, declared_dims, int_attribute, nearest_border};
use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto, tensor_shape_proto::dimension::Value, type_proto};
use crate::onnx::{Model, node_label};
use crate::ops::{self, Mark};

/// Images that are assumed to follow the batch through a graph: a prime number that no axis of a network is likely to
/// be a multiple of.
const GROUPS: usize = 59;

/// What a declared open batch is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchFault {
    /// Shapes in the graph fit batches of so many images alone.
    Holds(usize),
    /// By the graph, images of a batch may meet in the node of this name.
    Meets(String),
}

/// The images in a batch of the image input, where the file fixes them.
pub fn declared_batch(model: &Model) -> Option<usize> {
    image_dims(model)?[0]
}

/// True where no input fixes how many samples a batch has.
pub fn takes_any_batch(model: &Model) -> bool {
    let is_open = |info: &&ValueInfoProto| declared_dims(info).and_then(|dims| dims.first().copied()) == Some(None);
    data_inputs(model.graph()).iter().all(is_open)
}

/// Declares that batches are of so many images.
pub fn fix_batch(model: &mut Model, images: usize) {
    let name = image_name(model);
    let graph = model.graph_mut();
    if let Some(info) = graph.input.iter_mut().find(|v| Some(v.name()) == name.as_deref()) {
        declare_dim(info, 0, images);
    }
}

/// Declares that batches are of so many samples, for every input that leaves that open.
pub fn fix_batches(model: &mut Model, samples: usize) {
    for info in &mut model.graph_mut().input {
        if declared_dims(info).is_some_and(|d| d.first().is_some_and(Option::is_none)) {
            declare_dim(info, 0, samples);
        }
    }
}

fn is_image(info: &ValueInfoProto) -> bool {
    declared_dims(info).is_some_and(|d| d.len() == 4)
}

fn image_name(model: &Model) -> Option<String> {
    data_inputs(model.graph()).into_iter().find(|v| is_image(v)).map(|v| v.name().to_string())
}

fn image_dims(model: &Model) -> Option<Vec<Option<usize>>> {
    data_inputs(model.graph()).into_iter().filter_map(declared_dims).find(|d| d.len() == 4)
}

/// What is wrong with a batch that the file declares open; `None` where nothing is, or where the file fixes it.
pub fn batch_fault(model: &Model) -> Option<BatchFault> {
    if image_dims(model)?[0].is_some() { None } else { fault(model) }
}

/// The same for a model whose inputs all have samples along their first axes.
pub fn batch_fault_of_all(model: &Model) -> Option<BatchFault> {
    let is_fixed = |v: &&ValueInfoProto| declared_dims(v).is_some_and(|d| d.first().is_some_and(Option::is_some));
    if data_inputs(model.graph()).iter().any(is_fixed) { None } else { fault(model) }
}

fn fault(model: &Model) -> Option<BatchFault> {
    let of = |images| Typing::with_image_size(model, images).ok().filter(|t| t.conflicts.is_empty());
    // What grows with the batch may become too large to follow.
    let Some(typing) = of(GROUPS).or_else(|| of(3)) else {
        return [1, 2].into_iter().find(|&n| of(n).is_some()).map(BatchFault::Holds);
    };
    let label = |k: usize| BatchFault::Meets(typing.graph.node.get(k).map(node_label).unwrap_or_default());
    apart(&typing, typing.batch?).err().map(label)
}

/// The model with an open batch: its shapes follow from the number of images that it is given.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where the graph does not show how; it names the node.
pub fn open_batch(model: &Model) -> Result<Model> {
    if model.is_of_singles {
        return Err(refuse(&model.path, "samples of a batch change each other when it runs"));
    }
    let Some(fixed) = fixed_batch(model) else { return Ok(model.clone()) };
    let dims = image_dims(&fixed).unwrap_or_default();
    if data_inputs(fixed.graph()).len() != 1 || dims.is_empty() {
        return Err(refuse(&model.path, "the model has other inputs than one batch of images"));
    }
    let assumption = Assumption { image: Typing::new(&fixed)?.image_size(), ..Assumption::default() };
    let typing = Typing::begin(&fixed, assumption.clone(), true)?;
    check_batch(&model.path, &typing)?;
    let mut out = fixed.clone();
    let mut change = Change {
        path: &model.path,
        typing: &typing,
        sizes_are_fixed: dims[1..].iter().all(Option::is_some),
        builder: Builder::new(out.graph(), typing.opset, "offshoot"),
        before: HashMap::new(),
    };
    let graph = out.graph_mut();
    for correction in typing.opening.as_ref().map(|o| o.corrections.as_slice()).unwrap_or_default() {
        let (k, input, operand) = change.operand(correction)?;
        graph.node[k].input[input] = operand;
    }
    change.finish(graph);
    graph::forget_shapes(graph);
    let image = image_name(&fixed);
    graph.input.iter_mut().filter(|v| Some(v.name()) == image.as_deref()).for_each(open_first);
    graph.output.iter_mut().for_each(open_first);
    graph::prune(graph);
    // What was opened is followed once more, as a file is that declares it so.
    check_batch(&model.path, &Typing::with(&out, Assumption { batch: GROUPS, ..assumption })?)?;
    Ok(out)
}

/// The model with a batch of so many images as its shapes fit; `None` where its open batch is sound as it is.
fn fixed_batch(model: &Model) -> Option<Model> {
    let mut fixed = model.clone();
    match (declared_batch(model), batch_fault(model)) {
        (None, None) => return None,
        (None, Some(BatchFault::Holds(n))) => fix_batch(&mut fixed, n),
        (None, Some(BatchFault::Meets(_))) => fix_batch(&mut fixed, 1),
        (Some(_), _) => {}
    }
    Some(fixed)
}

/// Checks that shapes agree, and that images of the batch keep apart.
fn check_batch(path: &Path, typing: &Typing) -> Result<()> {
    if let Some(c) = typing.conflicts.first() {
        return Err(refuse_at(path, typing, c.node, "shapes disagree there"));
    }
    let Some(groups) = typing.batch else { return Err(refuse(path, "it does not enter the graph")) };
    apart(typing, groups).map_err(|k| refuse_at(path, typing, k, "images may meet there, or are lost"))
}

fn refuse(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the batch axis cannot be opened: {what}"))
        .at(path)
        .hint("export the model with a dynamic batch axis")
}

/// The same with the name of node `k`, where there is one.
fn refuse_at(path: &Path, typing: &Typing, k: usize, what: &str) -> Error {
    match typing.graph.node.get(k) {
        Some(node) => refuse(path, what).in_node(node_label(node)),
        None => refuse(path, what),
    }
}

/// Leaves the first dimension open.
fn open_first(info: &mut ValueInfoProto) {
    if let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
        && let Some(dim) = tensor.shape.as_mut().and_then(|s| s.dim.first_mut())
    {
        dim.value = Some(Value::DimParam("batch".into()));
    }
}

/// New operands of a graph whose batch is opened.
struct Change<'t, 'm> {
    path: &'t Path,
    typing: &'t Typing<'m>,
    /// True where the file fixes height, width and channels of its images.
    sizes_are_fixed: bool,
    builder: Builder,
    /// New nodes, before which node each is to stand.
    before: HashMap<usize, Vec<NodeProto>>,
}

impl Change<'_, '_> {
    /// What a correction puts in the place of an operand: the node, which of its inputs, and the name.
    fn operand(&mut self, correction: &Correction) -> Result<(usize, usize, String)> {
        let (node, input, operand) = match correction {
            Correction::Target { node, target, sizes, axis, copies } => {
                let target = if *copies {
                    let mut target = target.clone();
                    target[*axis] = 0;
                    target
                } else {
                    self.open_target(*node, target, sizes, *axis)?
                };
                (node, 1, self.builder.operand(&target))
            }
            Correction::Shape { node, shape, axis } => {
                let mut shape = shape.clone();
                shape[*axis] = 1;
                (node, 1, self.builder.operand(&shape))
            }
            Correction::Sizes { node, sizes, axis } => {
                let x = &self.typing.graph.node[*node].input[0];
                (node, 3, self.with_images(*node, sizes, *axis, x))
            }
            Correction::Repeat { node, input, like, axis, one_row } => {
                (node, *input, self.repeated(*node, [*input, *like], *axis, *one_row))
            }
        };
        Ok((*node, input, operand))
    }

    /// The target of Reshape `k` with the axis of the images left open, and no other.
    fn open_target(&self, k: usize, target: &[i64], sizes: &[usize], axis: usize) -> Result<Vec<i64>> {
        let literal = self.typing.weights.contains_key(self.typing.graph.node[k].input[1].as_str());
        if !self.sizes_are_fixed && (!literal || target.contains(&-1)) {
            return Err(refuse_at(self.path, self.typing, k, "two of its sizes are left open"));
        }
        let mut target = target.to_vec();
        target.iter_mut().zip(sizes).filter(|(t, _)| **t == -1).for_each(|(t, &n)| *t = n as i64);
        target[axis] = -1;
        Ok(target)
    }

    /// An operand of Concat `k`, the same for all images, once for each image that its operand `like` has.
    fn repeated(&mut self, k: usize, [input, like]: [usize; 2], axis: usize, one_row: bool) -> String {
        let inputs = &self.typing.graph.node[k].input;
        let mut row = inputs[input].clone();
        if !one_row {
            let along = vec![int_attribute("axis", axis as i64)];
            let index = self.builder.operand(&[0]);
            row = self.builder.op_called("Gather", &[&row, &index], along, "offshoot_row");
        }
        let ones = vec![1; self.typing.dims[inputs[like].as_str()].len()];
        let shape = self.with_images(k, &ones, axis, &inputs[like]);
        let repeated = self.builder.op_called("Expand", &[&row, &shape], vec![], "offshoot_repeated");
        self.put(k);
        repeated
    }

    /// Writes what was built into the graph.
    fn finish(mut self, graph: &mut GraphProto) {
        self.builder.finish(graph);
        for (k, node) in std::mem::take(&mut graph.node).into_iter().enumerate() {
            graph.node.extend(self.before.remove(&k).unwrap_or_default());
            graph.node.push(node);
        }
    }

    /// Puts the nodes that were built before node `k`.
    fn put(&mut self, k: usize) {
        self.before.entry(k).or_default().append(&mut self.builder.nodes);
    }

    /// A list of sizes, before node `k`, one of which is that of the axis of `value`.
    fn with_images(&mut self, k: usize, sizes: &[i64], axis: usize, value: &str) -> String {
        debug_assert!(self.typing.dims.contains_key(value));
        let first = || vec![int_attribute("axis", 0)];
        let b = &mut self.builder;
        let shape = b.op_called("Shape", &[value], vec![], "offshoot_shape");
        let index = b.operand(&[axis as i64]);
        let own = b.op_called("Gather", &[&shape, &index], first(), "offshoot_images");
        let mut parts = Vec::new();
        if axis > 0 {
            parts.push(b.operand(&sizes[..axis]));
        }
        parts.push(own);
        if axis + 1 < sizes.len() {
            parts.push(b.operand(&sizes[axis + 1..]));
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let list = b.op_called("Concat", &parts, first(), "offshoot_sizes");
        self.put(k);
        list
    }
}

impl<'m> Typing<'m> {
    /// The dimension of a batch that the file fixes and that is to be opened: groups of as many images as it says.
    pub(super) fn groups_of(&mut self, images: usize) -> Dim {
        let groups = self.factors.atom(GROUPS);
        self.opening = Some(Opening { groups, corrections: Vec::new() });
        let mut dim = Dim::from_slice(&[groups]);
        dim.extend(self.factors.fresh(images));
        dim
    }

    fn has_groups(&self, dim: &Dim) -> bool {
        self.opening.as_ref().is_some_and(|o| self.factors.leaves(dim).contains(&self.factors.root(o.groups)))
    }

    fn correct(&mut self, correction: Correction) {
        if let Some(o) = &mut self.opening {
            o.corrections.push(correction);
        }
    }

    /// The sizes that a Reshape to `target` is to make of dimensions that hold a batch which is being opened, where the
    /// target says otherwise.
    pub(super) fn opened_target(
        &mut self,
        k: usize,
        dims: &[Dim],
        target: &[i64],
        allow_zero: bool,
    ) -> Option<Vec<usize>> {
        let at = dims.iter().position(|d| self.has_groups(d))?;
        let now: Vec<usize> = dims.iter().map(|d| self.factors.size(d)).collect();
        let mut was = now.clone();
        was[at] /= GROUPS;
        let copied = |i: usize| target[i] == 0 && !allow_zero;
        let literal = |sizes: &[usize], i: usize| match target[i] {
            _ if copied(i) => sizes.get(i).copied(),
            -1 => Some(1),
            n => usize::try_from(n).ok(),
        };
        let of_now: Vec<usize> = (0..target.len()).map(|i| literal(&now, i)).collect::<Option<_>>()?;
        let open = target.iter().position(|&n| n == -1);
        // The target follows the batch by itself: it was computed from the input's shape, or copies it.
        if elements(&of_now).is_multiple_of(GROUPS) || (open.is_none() && elements(&of_now) == elements(&now)) {
            return None;
        }
        let mut sizes: Vec<usize> = (0..target.len()).map(|i| literal(&was, i)).collect::<Option<_>>()?;
        let (all, named) = (elements(&was), elements(&sizes));
        if named == 0 || !all.is_multiple_of(named) || (open.is_none() && all != named) {
            return None;
        }
        if let Some(i) = open {
            sizes[i] = all / named;
        }
        let leaves = |d: &Dim| self.factors.leaves(d);
        let groups = self.opening.as_ref().map(|o| self.factors.root(o.groups))?;
        let inside = leaves(&dims[at])
            .iter()
            .take_while(|f| **f != groups)
            .map(|&f| self.factors.factor_size(f))
            .product::<usize>();
        let outer = elements(&was[..at]) * inside;
        let axis = axis_of(&was, at, &sizes, outer)?;
        let copies = axis == at && sizes[axis] == was[at] && !allow_zero;
        if open != Some(axis) {
            self.correct(Correction::Target { node: k, target: target.to_vec(), sizes: sizes.clone(), axis, copies });
        }
        sizes[axis] *= GROUPS;
        Some(sizes)
    }

    /// The shape of an Expand with the axes left out that hold a batch which is being opened.
    pub(super) fn opened_shape(&mut self, k: usize, dims: &[Dim], shape: &mut [usize]) {
        for axis in 0..dims.len() {
            let size = self.factors.size(&dims[axis]);
            if shape[axis] != 1 && self.has_groups(&dims[axis]) && shape[axis] * GROUPS == size {
                let before = shape.iter().map(|&n| n as i64).collect();
                self.correct(Correction::Shape { node: k, shape: before, axis });
                shape[axis] = size;
            }
        }
    }

    /// The same for the sizes of a Resize of all axes.
    pub(super) fn opened_sizes(&mut self, k: usize, dims: &[Dim], sizes: &mut [usize]) {
        for axis in 0..dims.len() {
            let size = self.factors.size(&dims[axis]);
            if self.has_groups(&dims[axis]) && sizes[axis] * GROUPS == size {
                let before = sizes.iter().map(|&n| n as i64).collect();
                self.correct(Correction::Sizes { node: k, sizes: before, axis });
                sizes[axis] = size;
            }
        }
    }

    /// Operands of a Concat that are the same for all images where another one holds a batch which is being opened: one
    /// row, or one that an Expand repeats for each image of the file's batch. From here on they have one row.
    pub(super) fn opened_operands(&mut self, k: usize, operands: &mut [Option<Vec<Dim>>], along: usize) {
        let Some(groups) = self.opening.as_ref().map(|o| self.factors.root(o.groups)) else { return };
        let rank = operands.iter().flatten().map(Vec::len).max().unwrap_or(0);
        for axis in (0..rank).filter(|&a| a != along) {
            let dim = |operand: &Option<Vec<Dim>>| operand.as_ref().and_then(|d| d.get(axis)).cloned();
            let is_batch = |d: Dim| self.factors.leaves(&d).first() == Some(&groups);
            let Some(like) = operands.iter().position(|o| dim(o).is_some_and(is_batch)) else { continue };
            let fixed = dim(&operands[like]).map_or(1, |d| self.factors.size(&d) / GROUPS);
            let rows = |o: &Option<Vec<Dim>>| dim(o).filter(|d| !self.has_groups(d)).map(|d| self.factors.size(&d));
            let repeated = |i: usize| self.is_repeated(&self.graph.node[k].input[i], rank, axis);
            let same = |i: usize| match rows(&operands[i])? {
                1 => Some((i, true)),
                n => (n == fixed && repeated(i)).then_some((i, false)),
            };
            let found: Vec<(usize, bool)> = (0..operands.len()).filter_map(same).collect();
            for (input, one_row) in found {
                self.correct(Correction::Repeat { node: k, input, like, axis, one_row });
                if let Some(d) = operands[input].as_mut().and_then(|d| d.get_mut(axis)) {
                    d.clear();
                }
            }
        }
    }

    /// True for what an Expand repeats along an axis on which its input has one row.
    fn is_repeated(&self, value: &str, rank: usize, axis: usize) -> bool {
        let Some(node) = self.links().maker(value).map(|k| &self.graph.node[k]) else { return false };
        let sizes = node.input.first().and_then(|x| self.shape(x));
        // The axes of what is expanded are the last ones.
        let row =
            |sizes: Vec<usize>| (axis + sizes.len()).checked_sub(rank).is_none_or(|own| sizes.get(own) == Some(&1));
        node.op_type() == "Expand" && sizes.is_some_and(row)
    }
}

/// The axis of a Reshape's target on which images lie that stand on axis `at` of the input, behind `outer` elements of
/// others: of the axes that can be, one of size one, else the first that begins there, and none of those at the end
/// that stay as they are.
fn axis_of(was: &[usize], at: usize, sizes: &[usize], outer: usize) -> Option<usize> {
    let behind = &was[at + 1..];
    let kept = match sizes.last() {
        // Heads are joined: one axis for all that is behind the batch.
        Some(&last) if behind.len() > 1 && last == elements(behind) => 1,
        _ => behind.iter().rev().zip(sizes.iter().rev()).take_while(|(a, b)| a == b).count(),
    };
    let fits = |a: usize| {
        let before = elements(&sizes[..a]);
        before <= outer && outer.is_multiple_of(before) && sizes[a].is_multiple_of(outer / before)
    };
    let all: Vec<usize> = (0..sizes.len()).filter(|&a| fits(a)).collect();
    let near: Vec<usize> = all.iter().copied().filter(|&a| a + kept < sizes.len()).collect();
    let chosen = if near.is_empty() { all } else { near };
    let begins = |a: &usize| elements(&sizes[..*a]) == outer;
    let own = chosen.iter().copied().find(|&a| a == at && sizes[a] == was[at] && begins(&a));
    own.or_else(|| chosen.iter().copied().find(|a| sizes[*a] == 1))
        .or_else(|| chosen.iter().copied().find(begins))
        .or(chosen.last().copied())
}

/// Checks that images of a batch keep apart by the graph, and lead every output. The node where they may not is the
/// error.
fn apart(typing: &Typing, batch: Factor) -> std::result::Result<(), usize> {
    let batch = typing.factors.root(batch);
    let holds = |dim: &Dim| typing.factors.all_leaves(dim).contains(&batch);
    if let Some(c) = typing.contractions.iter().find(|c| holds(&c.summed)) {
        return Err(c.node);
    }
    for (k, node) in typing.graph.node.iter().enumerate() {
        let known = node.output.first().is_some_and(|o| typing.known.contains_key(o.as_str()));
        let carries = |x: &String| typing.dims.get(x.as_str()).is_some_and(|d| d.iter().any(holds));
        if known || !node.input.iter().any(carries) {
            continue;
        }
        let is_lost = |o: &String| !o.is_empty() && typing.dims.contains_key(o.as_str()) && !carries(o);
        let across = typing.fused.get(&k).is_some_and(|f| [&f.heads, &f.queries, &f.keys].into_iter().any(holds));
        let dims = node.input.first().and_then(|x| typing.dims.get(x.as_str()));
        let mixed =
            dims.is_some_and(|d| mixed_axes(typing, node, d.len()).iter().any(|&a| d.get(a).is_some_and(holds)));
        let reversed = dims.is_some_and(|d| reversed_axes(typing, node, d.len()).iter().any(|&a| holds(&d[a])));
        if node.output.iter().any(is_lost) || across || mixed || reversed {
            return Err(k);
        }
    }
    for output in &typing.graph.output {
        let dims = typing.dims.get(output.name());
        let leads = dims.is_some_and(|d| {
            let first = d.first().map(|d| typing.factors.leaves(d)).unwrap_or_default();
            first.first() == Some(&batch) && !d[1..].iter().any(holds)
        });
        if !leads {
            return Err(typing.links().maker(output.name()).unwrap_or(0));
        }
    }
    Ok(())
}

/// The axes along which a node turns the order of its input round.
fn reversed_axes(typing: &Typing, node: &NodeProto, rank: usize) -> Vec<usize> {
    let known = |j: usize| node.input.get(j).and_then(|x| typing.known.get(x.as_str())).map(ConstValue::ints);
    let (Some(steps), "Slice") = (known(4), node.op_type()) else { return Vec::new() };
    let axes = known(3).unwrap_or_else(|| (0..steps.len() as i64).collect());
    let turned = axes.into_iter().zip(steps).filter(|(_, step)| *step < 0);
    turned.map(|(axis, _)| nearest_border(axis, rank)).filter(|axis| *axis < rank).collect()
}

/// The axes of a node's first input along which its elements depend on each other, beside those that it sums products
/// over.
pub(crate) fn mixed_axes(typing: &Typing, node: &NodeProto, rank: usize) -> Vec<usize> {
    let wrap = |a: i64| nearest_border(a, rank);
    let from = |default: i64| -> Vec<usize> { (wrap(node.int("axis").unwrap_or(default))..rank).collect() };
    let known = |j: usize| node.input.get(j).and_then(|x| typing.known.get(x.as_str())).map(ConstValue::ints);
    let one = |default: i64| vec![wrap(node.int("axis").unwrap_or(default))];
    let all = || (0..rank).collect::<Vec<usize>>();
    match node.op_type() {
        "Softmax" | "LogSoftmax" | "Hardmax" => {
            if typing.opset < 13 {
                from(1)
            } else {
                one(-1)
            }
        }
        _ if ops::of(node).is(Mark::LayerNorm) => from(-1),
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => vec![rank.saturating_sub(1)],
        "LpNormalization" | "TopK" => one(-1),
        "Concat" | "Split" => one(0),
        "Trilu" => (rank.saturating_sub(2)..rank).collect(),
        "CumSum" | "CumProd" => known(1).map_or_else(all, |axes| axes.into_iter().map(wrap).collect()),
        "MeanVarianceNormalization" => node.ints("axes").unwrap_or(&[0, 2, 3]).iter().map(|&a| wrap(a)).collect(),
        "BatchNormalization" if node.int("training_mode").unwrap_or(0) == 0 => Vec::new(),
        "BatchNormalization" => all(),
        "GlobalAveragePool" | "GlobalMaxPool" | "InstanceNormalization" | "GroupNormalization" => (1..rank).collect(),
        "CausalConvWithState" => vec![2],
        _ if ops::of(node).is(Mark::Window) => (1..rank).collect(),
        op if op.starts_with("Arg") => one(0),
        op if op.starts_with("Reduce") => match node.ints("axes").map(<[i64]>::to_vec).or_else(|| known(1)) {
            Some(axes) if !axes.is_empty() => axes.into_iter().map(wrap).collect(),
            _ if node.int("noop_with_empty_axes").unwrap_or(0) != 0 => Vec::new(),
            _ => all(),
        },
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::axis_of;

    /// By hand, for what exporters write: where in the target of a Reshape the batch of one stands.
    #[test]
    fn the_axis_of_the_batch_is_found_in_a_target() {
        // Heads are split and joined again.
        assert_eq!(axis_of(&[1, 17, 48], 0, &[1, 17, 4, 12], 1), Some(0));
        assert_eq!(axis_of(&[1, 4, 17, 12], 0, &[4, 17, 12], 1), Some(0));
        assert_eq!(axis_of(&[4, 17, 12], 0, &[1, 4, 17, 12], 1), Some(0));
        // torch's MultiheadAttention: tokens first, batch and heads in one axis.
        assert_eq!(axis_of(&[17, 1, 48], 1, &[17, 4, 12], 17), Some(1));
        assert_eq!(axis_of(&[17, 4, 12], 1, &[17, 1, 48], 17), Some(1));
        // Tokens are flattened for a product, and get their axes back.
        assert_eq!(axis_of(&[1, 17, 48], 0, &[17, 48], 1), Some(0));
        assert_eq!(axis_of(&[17, 1, 48], 1, &[17, 48], 17), Some(0));
        assert_eq!(axis_of(&[17, 1, 4, 12], 1, &[17, 48], 17), Some(0));
        assert_eq!(axis_of(&[17, 48], 0, &[17, 1, 48], 17), Some(1));
        // Swin: windows behind the batch, and a mask for each.
        assert_eq!(axis_of(&[4, 3, 49, 49], 0, &[1, 4, 3, 49, 49], 1), Some(0));
        assert_eq!(axis_of(&[1, 14, 14, 32], 0, &[1, 2, 7, 2, 7, 32], 1), Some(0));
    }
}
