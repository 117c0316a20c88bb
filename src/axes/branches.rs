//! Branches that shapes choose, put into the graph.
//!
//! What is scripted, and a few functions that PyTorch's older exporter writes out (`torch.tile`), leave an `If` for
//! what every shape decides alike, and lists of values for what is a Split or a Concat. Both are followed by the
//! typing, for several batches and image sizes, and written as what they come to.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::arithmetic::ConstValue;
use super::choices::{Choice, Choices, Lengths};
use super::rules::branch_of;
use super::sizes::{USUAL_SIZES, image_sizes, named_size};
use super::typing::{Assumption, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{
    self, Attributes, Names, data_inputs, declare_dim, declared_dims, int_attribute, ints_attribute, is_standard,
    node as new_node,
};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{Model, node_label, tensor_from_i64};
use crate::ops::{self, Mark, Type};

/// What nodes choose, by their first output: what messages call them, and what.
type ChosenByNode = BTreeMap<String, (String, Choice)>;

/// Image sizes that the choices are compared for.
const SIZES: usize = 3;
/// Images in a batch that the choices are compared for.
const BATCHES: [usize; 2] = [1, 59];
/// The length of what another input leaves open, beside the one that is assumed.
const LENGTH: usize = 23;

/// Puts the branch that an `If` takes in its place, and a Split or a Concat in the place of a list of values, where
/// shapes decide. Where that depends on the size of the image, the graph is fixed to `image` (height, width).
///
/// # Errors
/// [`ErrorKind::Unsupported`] where a choice depends on the values of an input, on the batch, or on an image size that
/// is not given; it names the node. Those of [`Typing::new`] and of [`graph::prepare`].
pub fn inline(model: &mut Model, image: Option<[usize; 2]>) -> Result<()> {
    if !model.graph().node.iter().any(chooses) {
        return Ok(());
    }
    graph::name_apart(model.graph_mut())?;
    let (made, fixed) = choices(model, image)?;
    let opset = model.opset();
    let graph = model.graph_mut();
    if let Some(size) = fixed {
        fix_image(graph, size);
    }
    let mut rewriter = Rewriter {
        made: &made,
        opset,
        names: Names::new(graph),
        lists: HashMap::new(),
        renamed: HashMap::new(),
        weights: GraphProto::default(),
        out: Vec::new(),
    };
    for node in std::mem::take(&mut graph.node) {
        rewriter.node(node)?;
    }
    graph.node = rewriter.out;
    graph.initializer.append(&mut rewriter.weights.initializer);
    graph.sparse_initializer.append(&mut rewriter.weights.sparse_initializer);
    let renamed = resolved(rewriter.renamed);
    graph::rename(graph, &renamed);
    drop_unused_lists(graph);
    // Branches may name their nodes alike, and ONNX Runtime wants names of their own.
    let mut names = Names::default();
    for name in graph.node.iter_mut().filter_map(|n| n.name.as_mut()).filter(|name| !name.is_empty()) {
        *name = names.fresh(name);
    }
    graph::prepare(model)
}

/// True for nodes whose place another takes once shapes are known.
fn chooses(node: &NodeProto) -> bool {
    is_standard(node) && (node.op_type() == "If" || node.op_type().contains("Sequence"))
}

/// What every node chooses, for all inputs that the graph takes; and the image size that the graph is to have, where it
/// depends on that.
fn choices(model: &Model, image: Option<[usize; 2]>) -> Result<(ChosenByNode, Option<[usize; 2]>)> {
    let typed = |assumption: &Assumption, length: usize| -> Result<Sample> {
        let mut typing = Typing::empty(model, assumption.clone());
        (typing.choices, typing.open_length) = (Some(Choices::default()), length);
        typing.walk(false).and_then(|()| typing.check_consistent())?;
        let made = typing.choices.take().unwrap_or_default().made;
        Ok(Sample { assumption: assumption.clone(), made, known: typing.known })
    };
    let open = Assumption::default();
    // A size that contradicts the graph is none that it takes; what no size would mend is said at once.
    let mut sound: Vec<Sample> = Vec::new();
    let mut refused = None;
    for batch in [open.batch, 1] {
        for image in sizes(model, image) {
            match typed(&Assumption { batch, image }, Typing::OPEN_LENGTH) {
                Ok(sample) => sound.push(sample),
                Err(error) if error.kind() == ErrorKind::Unsupported => return Err(error),
                Err(error) => drop(refused.get_or_insert(error)),
            }
            if sound.len() == SIZES {
                break;
            }
        }
        if !sound.is_empty() {
            break;
        }
    }
    let Some((first, others)) = sound.split_first() else {
        return Err(refused.unwrap_or_else(|| Error::new(ErrorKind::Typing, "no shapes fit the graph")));
    };
    let batches = BATCHES.map(|batch| typed(&Assumption { batch, ..first.assumption.clone() }, Typing::OPEN_LENGTH));
    if let Some((label, choice)) = batches.iter().flatten().find_map(|other| first.doubtful(other, model)) {
        return Err(depends(label, choice, "the number of images in a batch")
            .hint("export the model with a fixed batch, or with fixed choices, as tracing makes them"));
    }
    let longer = typed(&first.assumption, LENGTH);
    if let Some((label, choice)) = longer.iter().find_map(|other| first.doubtful(other, model)) {
        return Err(depends(label, choice, "the length of an input")
            .hint("export the model with inputs of fixed sizes, or with fixed choices, as tracing makes them"));
    }
    let mut fixed = None;
    if let Some((label, choice)) = others.iter().find_map(|other| first.doubtful(other, model)) {
        fixed = image.filter(|&size| size == first.assumption.image);
        if fixed.is_none() {
            return Err(depends(label, choice, "the size of the image")
                .hint("give the size with ⟦input-size⟧, which fixes it, or export the model with a fixed size"));
        }
    }
    Ok((first.made.clone(), fixed))
}

/// What is chosen and known of a graph under an assumption.
struct Sample<'m> {
    assumption: Assumption,
    made: ChosenByNode,
    known: HashMap<&'m str, ConstValue>,
}

impl Sample<'_> {
    /// A choice that another sample makes otherwise, or that may be made otherwise by a third: that two sizes are both
    /// other than 16 does not say that none is. What messages call the node, and what it chooses.
    fn doubtful(&self, other: &Sample, model: &Model) -> Option<(&str, &Choice)> {
        let differs = |(name, (_, choice)): &(&String, &(String, Choice))| {
            other.made.get(name.as_str()).is_none_or(|(_, own)| own != choice)
        };
        if let Some((_, (label, choice))) = self.made.iter().find(differs) {
            return Some((label.as_str(), choice));
        }
        let mut nodes = Vec::new();
        walked(&model.graph().node, &self.made, &mut nodes);
        let unsound = self.chances(other, &nodes);
        nodes.into_iter().find_map(|node| {
            let (label, choice) = self.made.get(node.output.iter().find(|o| !o.is_empty())?)?;
            let decides = match choice {
                Choice::Branch(_) => 0,
                Choice::Parts(_, Lengths::Operand) => return None,
                Choice::Parts(..) => 1,
                Choice::Place(_) => node.input.len().saturating_sub(1),
            };
            unsound.contains(node.input.get(decides)?.as_str()).then_some((label.as_str(), choice))
        })
    }

    /// Values that are alike in both samples by chance, or may be: they are computed from some that are not.
    fn chances<'g>(&self, other: &Sample, nodes: &[&'g NodeProto]) -> HashSet<&'g str> {
        let varies = |x: &str| match (self.known.get(x), other.known.get(x)) {
            (Some(a), Some(b)) => a.data != b.data,
            (a, b) => a.is_some() != b.is_some(),
        };
        let mut unsound: HashSet<&str> = HashSet::new();
        for &node in nodes {
            if let Some((_, Choice::Branch(holds))) =
                node.output.iter().find(|o| !o.is_empty()).and_then(|o| self.made.get(o))
                && let Some(branch) = branch_of(node, *holds)
            {
                let pairs = node.output.iter().zip(&branch.output);
                let chances: Vec<&str> =
                    pairs.filter(|(_, i)| unsound.contains(i.name())).map(|(o, _)| o.as_str()).collect();
                unsound.extend(chances);
                continue;
            }
            if matches!(node.op_type(), "Shape" | "Size" | "Constant") {
                continue;
            }
            let op = ops::of(node);
            // Of what is moved, some elements may be alike and others not.
            let moves = (op.is(Mark::Moves) || op.is(Mark::Keeps)) && op.result == Type::Of(0);
            let from_chance = node.input.iter().any(|x| unsound.contains(x.as_str()));
            let from_varying = node.input.iter().skip(usize::from(moves)).any(|x| varies(x));
            for output in node.output.iter().filter(|o| self.known.contains_key(o.as_str())) {
                if from_chance || (from_varying && !varies(output)) {
                    unsound.insert(output);
                }
            }
        }
        unsound
    }
}

/// Nodes with those of the branches that are taken, in order: an `If` stands behind its branch.
fn walked<'g>(nodes: &'g [NodeProto], made: &ChosenByNode, found: &mut Vec<&'g NodeProto>) {
    for node in nodes {
        if let Some((_, Choice::Branch(holds))) = node.output.iter().find(|o| !o.is_empty()).and_then(|o| made.get(o))
            && let Some(branch) = branch_of(node, *holds)
        {
            walked(&branch.node, made, found);
        }
        found.push(node);
    }
}

fn depends(label: &str, choice: &Choice, on: &str) -> Error {
    let what = match choice {
        Choice::Branch(_) => "the branch that `If` takes",
        Choice::Parts(..) => "the number of parts that a value is divided into",
        Choice::Place(_) => "the place of a value in a list",
    };
    Error::new(ErrorKind::Unsupported, format!("{what} depends on {on}")).in_node(label)
}

/// Image sizes that a graph may take, likely ones first.
fn sizes(model: &Model, given: Option<[usize; 2]>) -> Vec<[usize; 2]> {
    let square = |n: usize| [n, n];
    let tables = image_sizes(model);
    let mut sizes: Vec<[usize; 2]> = given.into_iter().chain(named_size(model)).collect();
    sizes.extend(tables.iter().copied().chain(USUAL_SIZES).chain(tables.iter().map(|n| 2 * n)).map(square));
    let mut seen = HashSet::new();
    sizes.retain(|size| seen.insert(*size));
    // All are one where the file says the size.
    let is_open = |dims: Vec<Option<usize>>| dims.len() == 4 && dims[1..].contains(&None);
    if !data_inputs(model.graph()).into_iter().filter_map(declared_dims).any(is_open) {
        sizes.truncate(1);
    }
    sizes
}

/// Declares the size of the image where the graph leaves it open.
fn fix_image(graph: &mut GraphProto, size: [usize; 2]) {
    let inputs: HashSet<String> = data_inputs(graph).iter().map(|v| v.name().to_string()).collect();
    for info in graph.input.iter_mut().filter(|v| inputs.contains(v.name())) {
        let Some(dims) = declared_dims(info).filter(|dims| dims.len() == 4) else { continue };
        let first = if super::channels_last(&dims) { 1 } else { 2 };
        (0..2).filter(|i| dims[first + i].is_none()).for_each(|i| declare_dim(info, first + i, size[i]));
        return;
    }
}

struct Rewriter<'c> {
    made: &'c ChosenByNode,
    opset: i64,
    names: Names,
    /// The values that lists are made of.
    lists: HashMap<String, Vec<String>>,
    /// Names of a branch that become those outside it.
    renamed: HashMap<String, String>,
    weights: GraphProto,
    out: Vec<NodeProto>,
}

impl Rewriter<'_> {
    fn node(&mut self, node: NodeProto) -> Result<()> {
        let name = node.output.iter().find(|o| !o.is_empty()).cloned().unwrap_or_default();
        let choice = self.made.get(&name).map(|(_, choice)| choice);
        let list = node.input.first().and_then(|x| self.lists.get(x)).cloned();
        match (node.op_type(), choice, list) {
            ("If", Some(&Choice::Branch(holds)), _) => return self.branch(node, holds),
            ("SplitToSequence", Some(Choice::Parts(count, lengths)), _) => self.split(&node, *count, lengths),
            ("SequenceEmpty", ..) => drop(self.lists.insert(name, Vec::new())),
            ("SequenceConstruct", ..) => drop(self.lists.insert(name, node.input.clone())),
            ("Identity", _, Some(list)) => drop(self.lists.insert(name, list)),
            ("SequenceInsert", Some(&Choice::Place(at)), Some(mut list)) => {
                list.insert(at, node.input[1].clone());
                self.lists.insert(name, list);
            }
            ("SequenceErase", Some(&Choice::Place(at)), Some(mut list)) => {
                list.remove(at);
                self.lists.insert(name, list);
            }
            ("SequenceAt", Some(&Choice::Place(at)), Some(list)) => {
                self.put(&node, new_node("Identity", &[&list[at]], &[&name], vec![]));
                return Ok(());
            }
            ("SequenceLength", Some(&Choice::Place(count)), Some(_)) => {
                let count = TensorProto { dims: vec![], ..tensor_from_i64(name, &[1], &[count as i64]) };
                self.weights.initializer.push(count);
                return Ok(());
            }
            ("ConcatFromSequence", _, Some(list)) => {
                self.concat(&node, list, &name);
                return Ok(());
            }
            _ => {}
        }
        self.out.push(node);
        Ok(())
    }

    /// A node in the place of another.
    fn put(&mut self, was: &NodeProto, mut node: NodeProto) {
        node.name.clone_from(&was.name);
        self.out.push(node);
    }

    /// The nodes of a branch in the place of the `If`.
    fn branch(&mut self, node: NodeProto, holds: bool) -> Result<()> {
        let label = node_label(&node);
        let Some(mut branch) = branch_of(&node, holds).cloned() else {
            return Err(Error::new(ErrorKind::Format, "it lacks a branch").in_node(label));
        };
        if branch.output.len() != node.output.len() {
            return Err(Error::new(ErrorKind::Format, "its branch has another number of outputs").in_node(label));
        }
        self.weights.initializer.append(&mut branch.initializer);
        self.weights.sparse_initializer.append(&mut branch.sparse_initializer);
        let mut own: HashSet<String> = branch.node.iter().flat_map(|n| n.output.iter().cloned()).collect();
        for inner in branch.node {
            self.node(inner)?;
        }
        for (outer, inner) in node.output.iter().zip(&branch.output).filter(|(o, _)| !o.is_empty()) {
            let is_list = self.lists.get(inner.name()).cloned();
            let is_listed = || self.lists.values().flatten().any(|x| x == inner.name());
            if is_list.is_none() && own.contains(inner.name()) && !is_listed() && own.remove(inner.name()) {
                self.renamed.insert(inner.name().to_string(), outer.clone());
                continue;
            }
            self.out.push(new_node("Identity", &[inner.name()], &[outer], vec![]));
            self.lists.extend(is_list.map(|list| (outer.clone(), list)));
        }
        Ok(())
    }

    fn split(&mut self, node: &NodeProto, count: usize, lengths: &Lengths) {
        let axis = node.int("axis").unwrap_or(0);
        let output = &node.output[0];
        let parts: Vec<String> = (0..count).map(|i| self.names.fresh(&format!("{output}/{i}"))).collect();
        let mut inputs = vec![node.input[0].clone()];
        let mut attributes = vec![int_attribute("axis", axis)];
        match lengths {
            Lengths::Equal if self.opset >= 18 => attributes.push(int_attribute("num_outputs", count as i64)),
            Lengths::Equal => {}
            Lengths::Operand => inputs.push(node.input[1].clone()),
            Lengths::Fixed(lengths) if self.opset < 13 => attributes.push(ints_attribute("split", lengths)),
            Lengths::Fixed(lengths) => inputs.push(self.constant(lengths)),
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.put(node, new_node("Split", &inputs, &outputs, attributes));
        let squeezes = node.int("keepdims") == Some(0) && node.input.get(1).is_none_or(String::is_empty);
        let list = match squeezes {
            true => parts.iter().map(|part| self.moved("Squeeze", part, axis)).collect(),
            false => parts,
        };
        self.lists.insert(output.clone(), list);
    }

    fn concat(&mut self, node: &NodeProto, mut list: Vec<String>, name: &str) {
        let axis = node.int("axis").unwrap_or(0);
        if node.int("new_axis").unwrap_or(0) != 0 {
            list = list.iter().map(|value| self.moved("Unsqueeze", value, axis)).collect();
        }
        let inputs: Vec<&str> = list.iter().map(String::as_str).collect();
        self.put(node, new_node("Concat", &inputs, &[name], vec![int_attribute("axis", axis)]));
    }

    /// A value with one axis of one element less or more.
    fn moved(&mut self, op: &str, value: &str, axis: i64) -> String {
        let moved = self.names.fresh(&format!("{value}/{}", op.to_lowercase()));
        let made = match self.opset >= 13 {
            true => new_node(op, &[value, &self.constant(&[axis])], &[&moved], vec![]),
            false => new_node(op, &[value], &[&moved], vec![ints_attribute("axes", &[axis])]),
        };
        self.out.push(made);
        moved
    }

    fn constant(&mut self, values: &[i64]) -> String {
        let name = self.names.fresh("offshoot_shape");
        self.weights.initializer.push(tensor_from_i64(name.clone(), &[values.len()], values));
        name
    }
}

/// Names to which others lead on, followed to their end.
fn resolved(renamed: HashMap<String, String>) -> HashMap<String, String> {
    let end = |name: &String| {
        let mut at = name;
        // Branches nest no deeper than the file may.
        for _ in 0..renamed.len() {
            match renamed.get(at) {
                Some(next) => at = next,
                None => break,
            }
        }
        at.clone()
    };
    renamed.iter().map(|(from, to)| (from.clone(), end(to))).collect()
}

/// Drops the nodes that made lists which nothing reads any more.
fn drop_unused_lists(graph: &mut GraphProto) {
    let mut used: HashSet<String> = graph.output.iter().map(|o| o.name().to_string()).collect();
    let mut kept = Vec::with_capacity(graph.node.len());
    let mut lists: HashSet<String> = HashSet::new();
    for node in &graph.node {
        let is_list =
            chooses(node) || node.input.first().is_some_and(|x| node.op_type() == "Identity" && lists.contains(x));
        if is_list {
            lists.extend(node.output.iter().cloned());
        }
    }
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        let is_list = node.output.iter().any(|o| lists.contains(o));
        if !is_list || node.output.iter().any(|o| used.contains(o)) {
            used.extend(graph::needed(&node).map(str::to_string));
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
}
