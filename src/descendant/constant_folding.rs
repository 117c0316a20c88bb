//! Constants of a fixed image size: what a graph computes from weights and shapes alone is computed once and written
//! down.
//!
//! Exporters leave much of it in a graph: a position table that is resized on every run, shape operands, masks, rotary
//! tables, transposed weights. Values are found by typing the graph under two batch sizes: what is the same under both
//! and depends on no image is a constant. The small ones are known from the typing; the others are cut out as a graph
//! of their own and run once. Constant factors behind matrices go into them.
//!
//! Truth values stay computed: some engines take a comparison of constants, and no boolean tensor in the file.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::decided::{self, Verdict};
use super::scales::fold_scales;
use crate::anatomy::token_axes;
use crate::axes::arithmetic::ConstValue;
use crate::axes::{Assumption, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Builder, Names, data_inputs, declare_dim, declared_dims, element_types};
use crate::onnx::proto::{GraphProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, Model, payload, tensor_from_i64, tensor_info, to_i64};
use crate::runtime::{Runtime, can_evaluate};

/// A value of up to this many bytes is always worth writing down.
const SMALL: u64 = 64 << 10;
/// A larger one may take this many times the bytes of the weights that are gone with it.
const GROWTH: u64 = 8;
/// A condition of more bytes is not looked at.
const LARGEST_CONDITION: u64 = 256 << 20;

/// Replaces what depends on weights and shapes alone by weights. An image size that the graph leaves open becomes
/// `image` (height, width); the batch size may stay open. Values that would make the file much larger are left as they
/// are computed.
///
/// # Errors
/// [`ErrorKind::Usage`] where the image size is open and none is given, and errors of the runtime that computes the
/// values.
pub fn fold_constants(runtime: &Arc<Runtime>, model: &Model, image: Option<[usize; 2]>) -> Result<Model> {
    let mut model = model.clone();
    if let Some(size) = image {
        fix_size(model.graph_mut(), size);
    }
    if let Some(input) = data_inputs(model.graph()).into_iter().find(|v| is_open(v)) {
        return Err(no_size(&model, input));
    }
    loop {
        let decided = Folder::new(&model)?.decided(runtime)?;
        let Some(graph) = decided else { break };
        model.proto.graph = Some(graph);
    }
    model.proto.graph = Some(Folder::new(&model)?.fold(runtime)?);
    Ok(model)
}

/// True where every input has a fixed size, apart from the batch: what [`fold_constants`] can fold without being told
/// one.
pub fn has_fixed_size(model: &Model) -> bool {
    !data_inputs(model.graph()).into_iter().any(is_open)
}

fn is_open(input: &ValueInfoProto) -> bool {
    declared_dims(input).is_none_or(|d| d.iter().skip(1).any(Option::is_none))
}

/// The error where an input leaves its size open: how it is given.
fn no_size(model: &Model, input: &ValueInfoProto) -> Error {
    let is_image = declared_dims(input).is_some_and(|dims| dims.len() == 4);
    let has_tokens = || {
        let axes = Typing::new(model).map(|typing| token_axes(&typing)).unwrap_or_default();
        axes.iter().any(|axis| axis.inputs.iter().any(|(name, _)| name == input.name()))
    };
    let hint = match (is_image, is_image || has_tokens()) {
        (true, _) => "give the size with ⟦image-size⟧",
        (false, true) => "give the number of tokens with ⟦tokens⟧",
        (false, false) => "export the model with a fixed size of this input",
    };
    let what = format!("the input `{}` has no fixed size to fold for", input.name());
    Error::new(ErrorKind::Usage, what).at(&model.path).hint(hint)
}

/// Gives the image input a height and a width where it declares none.
fn fix_size(graph: &mut GraphProto, size: [usize; 2]) {
    let inputs: Vec<String> = data_inputs(graph).iter().map(|v| v.name().to_string()).collect();
    for info in graph.input.iter_mut().filter(|v| inputs.iter().any(|n| n == v.name())) {
        let declared = declared_dims(info).unwrap_or_default();
        if declared.len() == 4 {
            let first = if crate::axes::channels_last(&declared) { 1 } else { 2 };
            for (i, n) in size.into_iter().enumerate().filter(|(i, _)| declared[first + i].is_none()) {
                declare_dim(info, first + i, n);
            }
            return;
        }
    }
}

/// The first operator set with Expand.
const EXPAND: i64 = 8;

/// The truth value that all elements of a tensor have, where it is one.
fn one_value(t: &TensorProto) -> Option<bool> {
    let truths: Vec<bool> = to_i64(t).ok()?.into_iter().map(|n| n != 0).collect();
    let first = *truths.first()?;
    truths.iter().all(|&truth| truth == first).then_some(first)
}

struct Folder<'m> {
    model: &'m Model,
    typing: Typing<'m>,
    other: Typing<'m>,
    types: HashMap<&'m str, DataType>,
    /// Values that no input changes.
    constant: HashSet<&'m str>,
}

impl<'m> Folder<'m> {
    fn new(model: &'m Model) -> Result<Self> {
        let typing = Typing::new(model)?;
        let batch = typing.assumption.batch + 1;
        let other = Typing::with(model, Assumption { batch, ..typing.assumption.clone() })?;
        let graph = model.graph();
        let mut folder = Folder {
            model,
            types: element_types(graph),
            constant: typing.weights.keys().copied().collect(),
            typing,
            other,
        };
        for node in &graph.node {
            // A Shape of a constant is a constant; one of data is where the typing finds the same under both batch
            // sizes.
            let computed = folder.typing.keeps_constant(node, |x| folder.constant.contains(x));
            for o in node.output.iter().filter(|o| !o.is_empty()) {
                if computed || folder.known(o).is_some() {
                    folder.constant.insert(o);
                }
            }
        }
        Ok(folder)
    }

    /// The values of a result of shape arithmetic under both batch sizes.
    fn both(&self, value: &str) -> Option<(&ConstValue, &ConstValue)> {
        let known = (self.typing.known.get(value)?, self.other.known.get(value)?);
        (!self.typing.fed().contains(value)).then_some(known)
    }

    /// The value of a result of shape arithmetic that does not depend on the batch.
    fn known(&self, value: &str) -> Option<&ConstValue> {
        let (a, b) = self.both(value)?;
        (a.data == b.data).then_some(a)
    }

    fn maker(&self, value: &str) -> Option<usize> {
        let k = self.typing.links().maker(value)?;
        (self.model.graph().node[k].op_type() != "Constant").then_some(k)
    }

    /// The graph without the choices that constants decide; `None` where there is none.
    fn decided(&self, runtime: &Arc<Runtime>) -> Result<Option<GraphProto>> {
        let graph = self.model.graph();
        let is_constant = |x: &str| {
            let is_bool = self.types.get(x) == Some(&DataType::Bool);
            is_bool && self.typing.is_constant(x) && self.bytes(x).is_some_and(|n| n <= LARGEST_CONDITION)
        };
        let input = |(k, j): (usize, usize)| graph.node[k].input[j].as_str();
        let found: Vec<(usize, usize)> = decided::conditions(graph).filter(|&at| is_constant(input(at))).collect();
        let mut computed: Vec<&str> =
            found.iter().map(|&at| input(at)).filter(|x| !self.typing.weights.contains_key(x)).collect();
        computed.sort_unstable();
        computed.dedup();
        // A condition may be as long as the batch: it has to be the same throughout, whatever that is.
        let truths = |typing: &Typing| -> Result<HashMap<String, bool>> {
            let tensors = self.evaluated(&computed, |x| typing.known.get(x), runtime)?;
            Ok(tensors.iter().filter_map(|t| Some((t.name().to_string(), one_value(t)?))).collect())
        };
        // What the runtime does not know decides nothing.
        let (here, there) = (truths(&self.typing).unwrap_or_default(), truths(&self.other).unwrap_or_default());
        let same = |x: &str| here.get(x).filter(|truth| there.get(x) == Some(truth)).copied();
        let value = |x: &str| same(x).or_else(|| one_value(self.typing.weights.get(x)?));
        let mut out = graph.clone();
        let mut builder = Builder::new(graph, self.typing.opset, "offshoot");
        let mut done = HashSet::new();
        for (k, j) in found {
            let node = &graph.node[k];
            let left = value(node.input[j].as_str()).and_then(|value| decided::verdict(node, j, value));
            match left.filter(|_| !done.contains(&k)) {
                Some(Verdict::Is(j)) => {
                    let Some(target) = self.shape_to_expand(&node.input[j], &node.output[0]) else { continue };
                    let target = (!target.is_empty()).then(|| builder.operand(&target));
                    decided::replace(&mut out, k, j, target.as_deref());
                }
                Some(Verdict::Without(j)) => {
                    out.node[k].input[j].clear();
                    while out.node[k].input.last().is_some_and(String::is_empty) {
                        out.node[k].input.pop();
                    }
                }
                None => continue,
            }
            done.insert(k);
        }
        if done.is_empty() {
            return Ok(None);
        }
        builder.finish(&mut out);
        graph::prune(&mut out);
        Ok(Some(out))
    }

    /// What a value has to be expanded to, to have the shape of another one; nothing where it has it. `None` where that
    /// depends on the batch, or the operator set knows no Expand.
    fn shape_to_expand(&self, value: &str, like: &str) -> Option<Vec<i64>> {
        let shapes = |x: &str| Some([self.typing.shape(x)?, self.other.shape(x)?]);
        let (own, wanted) = (shapes(value)?, shapes(like)?);
        let skip = wanted[0].len().checked_sub(own[0].len())?;
        let axis = |axis: usize| {
            let [was, other] = [0, 1].map(|t| axis.checked_sub(skip).map(|a| own[t][a]));
            let [n, m] = [wanted[0][axis], wanted[1][axis]];
            match (was, other) == (Some(n), Some(m)) {
                true => Some(1),
                false => (n == m).then_some(n as i64),
            }
        };
        let target: Vec<i64> = (0..wanted[0].len()).map(axis).collect::<Option<_>>()?;
        match skip == 0 && target.iter().all(|&n| n == 1) {
            true => Some(Vec::new()),
            false => (self.typing.opset >= EXPAND).then_some(target),
        }
    }

    fn fold(self, runtime: &Arc<Runtime>) -> Result<GraphProto> {
        let graph = self.model.graph();
        let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name()).collect();
        // Constants that meet what is not constant, from the last node on; what is too large hands over to what it is
        // made of.
        let mut read: Vec<&str> = Vec::new();
        for node in &graph.node {
            if node.output.iter().any(|o| !o.is_empty() && !self.constant.contains(o.as_str()))
                || node.output.iter().any(|o| outputs.contains(o.as_str()))
            {
                read.extend(node.input.iter().map(String::as_str));
            }
        }
        let is_computed = |v: &str| self.constant.contains(v) && !outputs.contains(v) && self.maker(v).is_some();
        let mut wanted = Vec::new();
        let is_taken = |value| {
            let is_worth_it = self.is_worth_it(value);
            wanted.extend(is_worth_it.then_some(value));
            is_worth_it
        };
        self.typing.links().upstream(read).along(is_computed).until(is_taken).for_each(drop);
        wanted.sort_unstable_by_key(|v| (self.typing.links().maker(v), *v));
        let tensors = self.values(&wanted, runtime)?;
        let mut out = graph.clone();
        self.batch_targets(&mut out);
        replace(&mut out, tensors);
        graph::prune(&mut out);
        graph::forget_shapes(&mut out);
        fold_scales(&mut out)?;
        Ok(out)
    }

    fn bytes(&self, value: &str) -> Option<u64> {
        let kind = *self.types.get(value)?;
        let size = crate::onnx::element_size(kind)? as u64;
        Some(self.typing.shape(value)?.into_iter().map(|n| n as u64).product::<u64>() * size)
    }

    /// Whether a value may be written down: it is small, or not much larger than the weights that nothing else needs.
    fn is_worth_it(&self, value: &str) -> bool {
        let kind = self.types.get(value).copied();
        let (Some(bytes), true) = (self.bytes(value), kind.is_some_and(can_evaluate)) else { return false };
        if kind == Some(DataType::Bool) && !self.is_made_of_booleans(value) {
            return false;
        }
        if bytes <= SMALL {
            return true;
        }
        let cone = self.cone(value);
        let sources = self.sources(&cone);
        let gone = |w: &&&str| self.typing.links().users(w).iter().all(|k| cone.contains(k));
        let weights = sources.iter().filter(|w| self.typing.weights.contains_key(**w)).filter(gone);
        bytes <= GROWTH * weights.filter_map(|w| self.bytes_of_weight(w)).sum::<u64>()
    }

    /// Whether the file has a boolean tensor already that a value is computed from.
    fn is_made_of_booleans(&self, value: &str) -> bool {
        let is_boolean = |x: &str| self.typing.weights.contains_key(x) && self.types.get(x) == Some(&DataType::Bool);
        self.sources(&self.made_by(value, |_| false)).into_iter().any(is_boolean)
    }

    /// What some nodes read.
    fn sources(&self, nodes: &HashSet<usize>) -> HashSet<&str> {
        nodes.iter().flat_map(|&k| self.model.graph().node[k].input.iter().map(String::as_str)).collect()
    }

    fn bytes_of_weight(&self, name: &str) -> Option<u64> {
        self.typing.weights.get(name).map(|t| payload(t).len() as u64)
    }

    /// The nodes that a constant is computed by.
    fn cone(&self, value: &str) -> HashSet<usize> {
        self.made_by(value, |x| self.known(x).is_some())
    }

    /// The nodes that a value is computed by, up to values that are known.
    fn made_by(&self, value: &str, is_known: impl Fn(&str) -> bool) -> HashSet<usize> {
        let is_computed = |x: &str| self.maker(x).is_some() && (x == value || !is_known(x));
        self.typing.links().upstream([value]).along(is_computed).nodes().collect()
    }

    /// The tensors of constants: from the typing where it knows them, else from one run of the nodes that make them.
    fn values(&self, wanted: &[&str], runtime: &Arc<Runtime>) -> Result<Vec<TensorProto>> {
        self.evaluated(wanted, |x| self.known(x), runtime)
    }

    /// [`Self::values`], where something else is known.
    fn evaluated<'k>(
        &self,
        wanted: &[&str],
        known: impl Fn(&str) -> Option<&'k ConstValue>,
        runtime: &Arc<Runtime>,
    ) -> Result<Vec<TensorProto>> {
        let known_tensor = |x: &str| known(x)?.tensor(x, *self.types.get(x)?);
        let graph = self.model.graph();
        let mut made: HashMap<String, TensorProto> = HashMap::new();
        let mut run = GraphProto { name: Some("constants".into()), ..Default::default() };
        let (mut nodes, mut operands) = (HashSet::new(), HashSet::new());
        for &value in wanted {
            if let Some(t) = known_tensor(value) {
                made.insert(value.to_string(), t);
                continue;
            }
            nodes.extend(self.made_by(value, |x| known(x).is_some()));
            let kind = self.types.get(value).copied().unwrap_or(DataType::Float);
            run.output.push(tensor_info(value, kind, &[]));
        }
        if !run.output.is_empty() {
            let mut order: Vec<usize> = nodes.iter().copied().collect();
            order.sort_unstable();
            for &k in &order {
                operands.extend(graph.node[k].input.iter().map(String::as_str).filter(|x| !x.is_empty()));
                run.node.push(graph.node[k].clone());
            }
            let mut operands: Vec<&str> = operands.into_iter().collect();
            operands.sort_unstable();
            for x in operands {
                if self.maker(x).is_some_and(|k| nodes.contains(&k)) {
                    continue;
                }
                let tensor = match self.typing.weights.get(x) {
                    Some(t) => Some(TensorProto { name: Some(x.to_string()), ..(*t).clone() }),
                    None => known_tensor(x),
                };
                run.initializer.extend(tensor);
                if let Some(k) = self.typing.links().maker(x).filter(|_| !self.typing.weights.contains_key(x))
                    && known(x).is_none()
                {
                    run.node.insert(0, graph.node[k].clone());
                }
            }
            let mut model = self.model.clone();
            model.proto.graph = Some(run);
            model.proto.functions.clear();
            for t in runtime.evaluate(&model)? {
                made.insert(t.name().to_string(), t);
            }
        }
        Ok(wanted.iter().filter_map(|v| made.remove(*v)).collect())
    }

    /// A Reshape whose target depends on the batch in one entry gets a constant target that leaves this entry open.
    fn batch_targets(&self, out: &mut GraphProto) {
        let mut names = Names::new(out);
        let mut targets = Vec::new();
        for node in out.node.iter_mut().filter(|n| n.op_type() == "Reshape" && n.input.len() > 1) {
            let target = node.input[1].clone();
            let Some((a, b)) = self.both(&target) else { continue };
            let (a, b) = (a.ints(), b.ints());
            let differ: Vec<usize> = (0..a.len().min(b.len())).filter(|&i| a[i] != b[i]).collect();
            let ([i], true, true) = (&differ[..], a.len() == b.len(), a.iter().all(|&n| n > 0)) else { continue };
            let mut values = a.clone();
            values[*i] = -1;
            let name = names.fresh(&format!("{target}_folded"));
            targets.push(tensor_from_i64(name.clone(), &[values.len()], &values));
            node.input[1] = name;
        }
        out.initializer.extend(targets);
    }
}

/// Puts tensors in the place of the values that they are called after, equal ones once.
fn replace(out: &mut GraphProto, tensors: Vec<TensorProto>) {
    let mut names = Names::new(out);
    let mut renamed: HashMap<String, String> = HashMap::new();
    let mut known: HashMap<(i32, Vec<i64>, bytes::Bytes), String> = HashMap::new();
    for t in std::mem::take(&mut out.initializer).into_iter() {
        // Small integers of this kind are many: shape operands that are equal become one.
        let key = (t.data_type(), t.dims.clone(), payload(&t));
        if t.name().ends_with("_folded") && key.2.len() < 256 {
            if let Some(first) = known.get(&key) {
                renamed.insert(t.name().to_string(), first.clone());
                continue;
            }
            known.insert(key, t.name().to_string());
        }
        out.initializer.push(t);
    }
    for t in tensors {
        let value = t.name().to_string();
        let key = (t.data_type(), t.dims.clone(), payload(&t));
        let name = match known.get(&key) {
            Some(name) => name.clone(),
            None => {
                let name = names.fresh(&format!("{value}_folded"));
                known.insert(key, name.clone());
                out.initializer.push(TensorProto { name: Some(name.clone()), ..t });
                name
            }
        };
        renamed.insert(value, name);
    }
    for node in &mut out.node {
        for x in node.input.iter_mut() {
            if let Some(name) = renamed.get(x) {
                *x = name.clone();
            }
        }
    }
}
