//! Surgery, the same for every dialect: gather each weight axis that carries a factor along that factor, then walk once
//! more with the new sizes and correct every shape operand, slice border and attribute that disagrees with the typing.

use std::collections::{BTreeMap, HashMap, HashSet};

use rayon::prelude::*;

use super::arithmetic::{Known, slice_range};
use super::factors::{Dim, Factor, Factors, gcd};
use super::rules::shape_value;
use super::store::Store;
use super::typing::{Assumption, Typing, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, Builder, Names, int_attribute, ints_attribute, nearest_axis, resolve_axis};
use crate::onnx::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto};
use crate::onnx::{
    DataType, Model, data_type, element_count, node_label, payload, subgraphs, tensor_from_f32, tensor_from_i64,
    tensor_from_raw, to_f32,
};
use crate::ops::{self, Shape, Slot};

/// New rows of a weight axis as sums of old ones: for each new position, the old positions and their coefficients.
pub type Mixture = Vec<Vec<(usize, f32)>>;

/// What becomes of the factors and of single weights.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    gathers: BTreeMap<Factor, Vec<usize>>,
    mixtures: BTreeMap<(usize, usize), Mixture>,
    spreads: BTreeMap<(usize, Factor), Mixture>,
    replaced: HashMap<usize, Vec<f32>>,
    operands: BTreeMap<(usize, usize), TensorProto>,
    cuts: HashMap<(usize, usize), (usize, usize)>,
}

impl Plan {
    /// Index i of the factor becomes what index `indices[i]` was.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] where the factor has another plan already (layers that share it must be resized alike).
    pub fn gather(&mut self, factors: &Factors, factor: Factor, indices: Vec<usize>) -> Result<()> {
        if indices.is_empty() {
            bail!(Usage, "an axis cannot become empty");
        }
        match self.gathers.insert(factors.root(factor), indices.clone()) {
            Some(old) if old != indices => bail!(Usage, "an axis that several layers share was given two plans"),
            _ => Ok(()),
        }
    }

    /// Along one axis of one use (an index into [`Typing::uses`]), rows are mixed instead of gathered.
    pub fn mix(&mut self, of_use: usize, axis: usize, mixture: Mixture) {
        self.mixtures.insert((of_use, axis), mixture);
    }

    /// Along one factor of one use, wherever its axes hold it, indices are mixed instead of gathered.
    pub fn spread(&mut self, factors: &Factors, of_use: usize, factor: Factor, mixture: Mixture) {
        self.spreads.insert((of_use, factors.root(factor)), mixture);
    }

    /// One use of a weight gets new elements altogether, of the shape that the resized factors give it.
    pub fn replace(&mut self, of_use: usize, elements: Vec<f32>) {
        self.replaced.insert(of_use, elements);
    }

    /// Input `input` of node `node` becomes a new initializer.
    pub fn operand(&mut self, node: usize, input: usize, tensor: TensorProto) {
        self.operands.insert((node, input), tensor);
    }

    /// The Slice `node` takes the elements from `first` to before `last` of an axis, whatever the typing says of its
    /// borders.
    pub fn cut(&mut self, node: usize, axis: usize, first: usize, last: usize) {
        self.cuts.insert((node, axis), (first, last));
    }

    /// The plan of a factor.
    pub fn indices(&self, factors: &Factors, factor: Factor) -> Option<&[usize]> {
        self.gathers.get(&factors.root(factor)).map(Vec::as_slice)
    }

    /// True where nothing changes.
    pub fn is_empty(&self) -> bool {
        self.gathers.is_empty()
            && self.mixtures.is_empty()
            && self.spreads.is_empty()
            && self.replaced.is_empty()
            && self.operands.is_empty()
    }

    /// Old positions of each new one along a dimension; `None` where it stays as it is.
    pub fn positions(&self, factors: &Factors, dim: &[Factor]) -> Option<Vec<usize>> {
        let leaves = factors.leaves(dim);
        let lists: Vec<Option<Vec<usize>>> = leaves
            .iter()
            .map(|&f| match factors.segments(&[f]) {
                Some(segments) => self.segment_positions(factors, &segments),
                None => self.gathers.get(&f).cloned(),
            })
            .collect();
        if lists.iter().all(Option::is_none) {
            return None;
        }
        let mut out = vec![0];
        for (&f, list) in leaves.iter().zip(lists) {
            let n = factors.factor_size(f);
            let list = list.unwrap_or_else(|| (0..n).collect());
            out = out.iter().flat_map(|&o| list.iter().map(move |&i| o * n + i)).collect();
        }
        Some(out)
    }

    /// What becomes of a dimension of one use: its mixtures along factors, and gathers along the others.
    fn mixed(&self, factors: &Factors, u: usize, dim: &[Factor]) -> Mixture {
        let mut out: Mixture = vec![vec![(0, 1.0)]];
        for &f in &factors.leaves(dim) {
            let n = factors.factor_size(f);
            let list: Mixture = if let Some(rows) = self.spreads.get(&(u, f)) {
                rows.clone()
            } else if let Some(segments) = factors.segments(&[f]) {
                let mut offset = 0;
                let mut rows = Mixture::new();
                for s in &segments {
                    let shift = |row: Vec<(usize, f32)>| row.into_iter().map(|(i, c)| (offset + i, c)).collect();
                    rows.extend(self.mixed(factors, u, s).into_iter().map(shift));
                    offset += factors.size(s);
                }
                rows
            } else {
                let kept = self.gathers.get(&f).cloned().unwrap_or_else(|| (0..n).collect());
                kept.into_iter().map(|i| vec![(i, 1.0)]).collect()
            };
            let times = |outer: &Vec<(usize, f32)>, inner: &Vec<(usize, f32)>| -> Vec<(usize, f32)> {
                outer.iter().flat_map(|&(o, c)| inner.iter().map(move |&(i, d)| (o * n + i, c * d))).collect()
            };
            out = out.iter().flat_map(|outer| list.iter().map(move |inner| times(outer, inner))).collect();
        }
        out
    }

    /// True where a dimension of one use is mixed along a factor.
    fn is_spread(&self, factors: &Factors, u: usize, dim: &[Factor]) -> bool {
        !self.spreads.is_empty() && factors.all_leaves(dim).into_iter().any(|f| self.spreads.contains_key(&(u, f)))
    }

    fn segment_positions(&self, factors: &Factors, segments: &[Dim]) -> Option<Vec<usize>> {
        let lists: Vec<_> = segments.iter().map(|s| self.positions(factors, s)).collect();
        if lists.iter().all(Option::is_none) {
            return None;
        }
        let (mut out, mut offset) = (Vec::new(), 0);
        for (s, list) in segments.iter().zip(lists) {
            let n = factors.size(s);
            out.extend(list.unwrap_or_else(|| (0..n).collect()).into_iter().map(|i| offset + i));
            offset += n;
        }
        Some(out)
    }
}

/// Carries out a plan. The result is pruned and consistent; type it again to work on it further.
///
/// # Errors
/// [`ErrorKind::Typing`] where an operand cannot be corrected; it names the node.
pub fn resize(typing: &Typing, plan: &Plan) -> Result<GraphProto> {
    let mut out = typing.graph.clone();
    if plan.is_empty() {
        return Ok(out);
    }
    for factor in plan.gathers.keys().chain(plan.spreads.keys().map(|(_, factor)| factor)) {
        typing.free(*factor)?;
    }
    let mut builder = Builder::new(&out, typing.opset, "offshoot");
    let changed = weights(typing, plan)?;
    place(typing, changed, &mut builder.names, &mut out);
    put_operands(&plan.operands, &mut builder.names, &mut out);
    let mut factors = typing.factors.clone();
    for (&f, indices) in &plan.gathers {
        factors.set_size(f, indices.len());
    }
    repair(typing, plan, &mut factors, builder, &mut out)?;
    graph::prune(&mut out);
    Ok(out)
}

/// The new tensors, by use.
fn weights(typing: &Typing, plan: &Plan) -> Result<Vec<(usize, TensorProto)>> {
    let store = Store::default();
    typing
        .uses
        .par_iter()
        .enumerate()
        .filter_map(|(u, of_use)| {
            let changed = changed_weight(typing, plan, u, of_use).transpose()?;
            Some(changed.and_then(|t| Ok((u, store.keep(t)?))))
        })
        .collect()
}

fn changed_weight(typing: &Typing, plan: &Plan, u: usize, of_use: &Use) -> Result<Option<TensorProto>> {
    let tensor = typing.weights[of_use.name.as_str()];
    let lists: Vec<Option<Vec<usize>>> = of_use.dims.iter().map(|d| plan.positions(&typing.factors, d)).collect();
    let mut mixtures: BTreeMap<usize, Mixture> = BTreeMap::new();
    for (a, dim) in of_use.dims.iter().enumerate() {
        if let Some(mixture) = plan.mixtures.get(&(u, a)) {
            mixtures.insert(a, mixture.clone());
        } else if plan.is_spread(&typing.factors, u, dim) {
            mixtures.insert(a, plan.mixed(&typing.factors, u, dim));
        }
    }
    let replaced = plan.replaced.get(&u);
    if mixtures.is_empty() && replaced.is_none() && lists.iter().all(Option::is_none) {
        return Ok(None);
    }
    let kind = data_type(tensor).unwrap_or(DataType::Float);
    let mut shape = tensor.shape();
    if let Some(elements) = replaced {
        for (n, list) in shape.iter_mut().zip(&lists) {
            *n = list.as_ref().map_or(*n, Vec::len);
        }
        if shape.iter().product::<usize>() != elements.len() {
            bail!(Internal, "new elements of `{}` do not have the shape {shape:?}", of_use.name);
        }
        return Ok(Some(tensor_from_f32(of_use.name.clone(), kind, &shape, elements)));
    }
    let mut data = payload(tensor);
    let size = data.len() / element_count(tensor)?.max(1);
    for (a, list) in lists.iter().enumerate() {
        if let Some(list) = list.as_ref().filter(|_| !mixtures.contains_key(&a)) {
            data = take(&data, &shape, a, list, size).into();
            shape[a] = list.len();
        }
    }
    let mut tensor = tensor_from_raw(of_use.name.clone(), kind, &shape, data);
    for (&a, mixture) in &mixtures {
        let mixed = mix(&to_f32(&tensor)?, &shape, a, mixture);
        shape[a] = mixture.len();
        tensor = tensor_from_f32(of_use.name.clone(), kind, &shape, &mixed);
    }
    Ok(Some(tensor))
}

/// Gathers along an axis of a tensor given as bytes.
pub(crate) fn take(data: &[u8], shape: &[usize], axis: usize, list: &[usize], element: usize) -> Vec<u8> {
    let inner = shape[axis + 1..].iter().product::<usize>() * element;
    match inner {
        // Single elements: copies of a length that is known.
        2 => return take_elements::<2>(data, shape[axis], list),
        4 => return take_elements::<4>(data, shape[axis], list),
        8 => return take_elements::<8>(data, shape[axis], list),
        _ => {}
    }
    let block = shape[axis] * inner;
    let mut out = Vec::with_capacity(data.len() / shape[axis].max(1) * list.len());
    if block > 0 {
        for outer in data.chunks_exact(block) {
            for &i in list {
                out.extend_from_slice(&outer[i * inner..(i + 1) * inner]);
            }
        }
    }
    out
}

/// [`take`] of the last axis, of so many elements of N bytes.
fn take_elements<const N: usize>(data: &[u8], length: usize, list: &[usize]) -> Vec<u8> {
    let elements = data.as_chunks::<N>().0;
    let mut out = vec![0; data.len() / length.max(1) * list.len()];
    if !out.is_empty() {
        let rows = out.as_chunks_mut::<N>().0.chunks_exact_mut(list.len());
        for (row, old) in rows.zip(elements.chunks_exact(length)) {
            for (to, &i) in row.iter_mut().zip(list) {
                *to = old[i];
            }
        }
    }
    out
}

pub(crate) fn mix(data: &[f32], shape: &[usize], axis: usize, mixture: &Mixture) -> Vec<f32> {
    let inner = shape[axis + 1..].iter().product::<usize>();
    let block = shape[axis] * inner;
    let mut out = Vec::with_capacity(data.len() / shape[axis].max(1) * mixture.len());
    for outer in data.chunks_exact(block.max(1)) {
        for terms in mixture {
            match terms[..] {
                [(i, 1.0)] => out.extend_from_slice(&outer[i * inner..(i + 1) * inner]),
                _ => {
                    let at = out.len();
                    out.resize(at + inner, 0.0);
                    for &(i, c) in terms {
                        for (o, x) in out[at..].iter_mut().zip(&outer[i * inner..(i + 1) * inner]) {
                            *o += c * x;
                        }
                    }
                }
            }
        }
    }
    out
}

/// Puts changed tensors into the graph: under the old name where every use of it changed alike, else as clones.
fn place(typing: &Typing, changed: Vec<(usize, TensorProto)>, names: &mut Names, out: &mut GraphProto) {
    let constants: HashSet<&str> = typing
        .graph
        .node
        .iter()
        .filter(|n| n.op_type() == "Constant")
        .flat_map(|n| n.output.iter().map(String::as_str))
        .collect();
    let mut uses: HashMap<&str, usize> = HashMap::new();
    for u in &typing.uses {
        *uses.entry(u.name.as_str()).or_default() += 1;
    }
    // What stands inside a node is found there by its name.
    let inside = typing.graph.node.iter().filter(|n| subgraphs(n).next().is_some()).flat_map(graph::needed);
    let outputs: HashSet<&str> = typing.graph.output.iter().map(|o| o.name()).chain(inside).collect();
    let mut by_name: BTreeMap<String, Vec<(usize, TensorProto)>> = BTreeMap::new();
    for (u, t) in changed {
        by_name.entry(typing.uses[u].name.clone()).or_default().push((u, t));
    }
    let mut positions: HashMap<String, usize> =
        out.initializer.iter().enumerate().map(|(i, t)| (t.name().to_string(), i)).collect();
    for (name, list) in by_name {
        let keeps_name = list.len() == uses[name.as_str()]
            && list.windows(2).all(|w| w[0].1 == w[1].1)
            && !constants.contains(name.as_str())
            && !outputs.contains(name.as_str());
        if keeps_name {
            if let (Some(&at), Some((_, t))) = (positions.get(&name), list.into_iter().next()) {
                out.initializer[at] = t;
            }
            continue;
        }
        let mut clones: Vec<(TensorProto, String)> = Vec::new();
        for (u, t) in list {
            let known =
                clones.iter().find(|(c, _)| c.dims == t.dims && c.raw_data == t.raw_data).map(|(_, n)| n.clone());
            let clone = known.unwrap_or_else(|| {
                let fresh = names.fresh(&format!("{name}_{}", clones.len() + 1));
                clones.push((t, fresh.clone()));
                fresh
            });
            let of_use = &typing.uses[u];
            out.node[of_use.node].input[of_use.input] = clone;
        }
        for (t, fresh) in clones {
            positions.insert(fresh.clone(), out.initializer.len());
            out.initializer.push(TensorProto { name: Some(fresh), ..t });
        }
    }
}

/// Puts new operands into the graph, equal ones once.
fn put_operands(operands: &BTreeMap<(usize, usize), TensorProto>, names: &mut Names, out: &mut GraphProto) {
    let mut made: Vec<(&TensorProto, String)> = Vec::new();
    for (&(node, input), tensor) in operands {
        let name = match made.iter().find(|(t, _)| t.dims == tensor.dims && t.raw_data == tensor.raw_data) {
            Some((_, name)) => name.clone(),
            None => {
                let name = names.fresh(tensor.name());
                out.initializer.push(TensorProto { name: Some(name.clone()), ..tensor.clone() });
                made.push((tensor, name.clone()));
                name
            }
        };
        out.node[node].input[input] = name;
    }
}

/// Why a node cannot follow an axis that is resized.
fn stuck(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{what} at constant places of an axis that is resized")).hint(
        "keep the heads and the FFN of this layer, and the image size; `inspect --explain LAYER` shows what its \
            axes reach",
    )
}

struct Repair<'t, 'm> {
    typing: &'t Typing<'m>,
    plan: &'t Plan,
    factors: &'t mut Factors,
    known: HashMap<String, Known>,
    /// The typing's constants but for what is computed from shapes, which change.
    constants: HashSet<String>,
    builder: Builder,
    /// Shape operands that were computed anew, with the values that they have.
    corrected: HashMap<String, Vec<(String, Vec<i64>)>>,
    /// The first node whose computed shape may not fit every batch.
    scaled: Option<usize>,
    /// Known values that a division has a part in: they may be right at one batch and wrong at another.
    divided: HashSet<String>,
}

/// Images in another batch than the assumed one: a prime number that no axis of a network is likely to be a multiple
/// of.
const OTHER_BATCH: usize = 59;

/// Inputs of nodes that get other numbers, with their types.
type Changes = HashMap<(usize, usize), (Known, DataType)>;

/// The arithmetic that makes a shape operand out of shapes and constants.
struct Cone {
    /// Its nodes, in the order of the graph.
    nodes: Vec<usize>,
    /// The nodes that make the shapes.
    shapes: HashMap<String, usize>,
    /// The constants that are numbers there, from the operand on, with the inputs that they are; then the parts of
    /// lists that are taken from shapes, which may become constants.
    constants: Vec<Number>,
}

/// A number of the arithmetic, or a list of them, and the inputs of nodes that it is.
struct Number {
    value: Known,
    kind: DataType,
    uses: Vec<(usize, usize)>,
}

impl Cone {
    fn new(typing: &Typing, known: &HashMap<String, Known>, constants: &HashSet<String>, operand: &str) -> Cone {
        let graph = typing.graph;
        let mut parts = Vec::new();
        let mut cone = Cone { nodes: Vec::new(), shapes: HashMap::new(), constants: Vec::new() };
        let mut names: Vec<&str> = Vec::new();
        let links = typing.links();
        let is_shape = |k: usize| matches!(graph.node[k].op_type(), "Shape" | "Size");
        let arithmetic = links.upstream([operand]).along(|x| typing.known.contains_key(x)).nearest_first();
        for k in arithmetic.until(|x| links.maker(x).is_some_and(is_shape)).nodes() {
            if is_shape(k) {
                cone.shapes.extend(links.outputs(k).take(1).map(|x| (x.to_string(), k)));
                continue;
            }
            if graph.node[k].op_type() == "Constant" {
                continue;
            }
            let node = &graph.node[k];
            cone.nodes.push(k);
            for (j, x) in node.input.iter().enumerate().filter(|(_, x)| !x.is_empty()) {
                let Some((value, kind)) = typing.constant_number(x).filter(|_| constants.contains(x)) else {
                    if let Some(value) = known.get(x).filter(|_| node.op_type() == "Concat") {
                        parts.push(Number { value: value.clone(), kind: DataType::Int64, uses: vec![(k, j)] });
                    }
                    continue;
                };
                let op = ops::of(node);
                let is_place = matches!(op.slot(j), Slot::Sizes | Slot::Places | Slot::Indices);
                if j > 0 && (is_place || op.shape == Shape::Reduce) {
                    continue;
                }
                match names.iter().position(|n| *n == x) {
                    Some(at) => cone.constants[at].uses.push((k, j)),
                    None => {
                        names.push(x);
                        cone.constants.push(Number { value, kind, uses: vec![(k, j)] });
                    }
                }
            }
        }
        cone.nodes.sort_unstable();
        cone.constants.extend(parts);
        cone
    }

    /// Other numbers that a constant may have wherever it is used, and then in one place: resized by one of the ratios,
    /// or what is wanted.
    fn candidates<'c>(
        &'c self,
        ratios: &'c [(usize, usize)],
        wanted: &'c [i64],
    ) -> impl Iterator<Item = (Vec<(usize, usize)>, (Known, DataType))> + 'c {
        self.constants.iter().flat_map(move |Number { value, kind, uses }| {
            let mut places = vec![uses.clone()];
            if uses.len() > 1 {
                places.extend(uses.iter().map(|&u| vec![u]));
            }
            let numbers = value.data.iter().copied().enumerate().take(MAX_ELEMENTS_OF_SHAPE);
            numbers.flat_map(move |(e, old)| {
                let scaled = ratios.iter().filter(move |(n, _)| old != 0.0 && old % *n as f64 == 0.0);
                let scaled = scaled.map(move |&(n, m)| old / n as f64 * m as f64);
                let others: Vec<f64> = scaled.chain(wanted.iter().map(|&w| w as f64)).filter(|v| *v != old).collect();
                let places = places.clone();
                others.into_iter().flat_map(move |v| {
                    let mut number = value.clone();
                    if let Some(x) = number.data.iter_mut().nth(e) {
                        *x = v;
                    }
                    places.clone().into_iter().map(move |p| (p, (number.clone(), *kind)))
                })
            })
        })
    }
}

/// Elements of a constant list that are tried.
const MAX_ELEMENTS_OF_SHAPE: usize = 8;

/// Walks the graph with the new sizes.
fn repair(typing: &Typing, plan: &Plan, factors: &mut Factors, builder: Builder, out: &mut GraphProto) -> Result<()> {
    let mut known = HashMap::new();
    let mut constants: HashSet<String> = HashSet::new();
    for t in &out.initializer {
        constants.insert(t.name().to_string());
        let old = typing.known.contains_key(t.name()) || !typing.weights.contains_key(t.name());
        if old && let Some(value) = Known::read(t) {
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
        Typing::with(&model, assumption).is_ok_and(|typing| typing.sound().is_ok())
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
    fn shape(&self, value: &str) -> Vec<usize> {
        match self.typing.dims.get(value) {
            Some(dims) => dims.iter().map(|d| self.factors.size(d)).collect(),
            None => self.typing.shape(value).unwrap_or_default(),
        }
    }

    fn operand(&self, name: &str) -> Result<Vec<i64>> {
        self.known.get(name).map(Known::ints).ok_or_else(|| {
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
            self.recompute(was, &node)?;
        } else if !typing.opaque.contains_key(&k) {
            match op {
                "Reshape" | "Expand" if was.input.len() > 1 => self.shape_operand(k, &mut node, 1)?,
                "Resize" | "Upsample" if self.scales(was, &mut node)? => {}
                "Resize" if was.input.get(3).is_some_and(|x| !x.is_empty()) && was.ints("axes").is_none() => {
                    self.shape_operand(k, &mut node, 3)?
                }
                "ConstantOfShape" => self.shape_operand(k, &mut node, 0)?,
                "Tile" => self.repeats(was, &mut node),
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
                let inputs: Vec<Option<Known>> = node
                    .input
                    .iter()
                    .map(|x| {
                        self.known
                            .get(x)
                            .cloned()
                            .or_else(|| self.typing.weights.get(x.as_str()).and_then(|t| Known::read(t)))
                    })
                    .collect();
                // A value that has grown too large to follow matters only where a shape operand needs it.
                match super::arithmetic::evaluate(node, &inputs) {
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

    /// Corrects a shape operand: in place where it is constant; where it is computed (from the batch, say), at the
    /// constants that carry what was resized. Behind a division of whole numbers it would be too late: half the heads
    /// of one image are no image. Where no constant is found a multiplication and a division stand behind it.
    fn shape_operand(&mut self, k: usize, node: &mut NodeProto, j: usize) -> Result<()> {
        let was = &self.typing.graph.node[k];
        let have = self.operand(&node.input[j])?;
        let (right, want) = self.agreement(was, &have);
        let agrees = right.iter().all(|&r| r);
        if agrees && !self.divided.contains(&node.input[j]) {
            return Ok(());
        }
        if self.constants.contains(&node.input[j]) {
            if agrees {
                return Ok(());
            }
            let values: Vec<i64> =
                have.iter().zip(&want).zip(&right).map(|((&h, &w), &r)| if r { h } else { w }).collect();
            node.input[j] = self.builder.operand(&values);
            return Ok(());
        }
        if let Some(corrected) = self.at_its_constants(was, &node.input[j]) {
            node.input[j] = corrected;
            return Ok(());
        }
        self.scaled.get_or_insert(k);
        if agrees {
            return Ok(());
        }
        let ratios: Vec<(i64, i64)> = have
            .iter()
            .zip(&want)
            .zip(&right)
            .map(|((&h, &w), &r)| {
                let g = gcd(h.unsigned_abs() as usize, w.unsigned_abs() as usize).max(1) as i64;
                if r { (1, 1) } else { (w / g, h / g) }
            })
            .collect();
        if ratios.iter().any(|r| r.1 == 0) {
            bail!(Typing, "a computed shape operand of zero cannot be corrected");
        }
        let times = self.builder.operand(&ratios.iter().map(|r| r.0).collect::<Vec<_>>());
        let by = self.builder.operand(&ratios.iter().map(|r| r.1).collect::<Vec<_>>());
        let product = self.builder.op_called("Mul", &[&node.input[j], &times], vec![], "offshoot_shape_times");
        node.input[j] = self.builder.op_called("Div", &[&product, &by], vec![], "offshoot_shape_by");
        Ok(())
    }

    /// Which elements of a shape operand agree with the typing, and what it wants of each.
    fn agreement(&self, was: &NodeProto, have: &[i64]) -> (Vec<bool>, Vec<i64>) {
        let op = was.op_type();
        let shape = self.shape(&was.output[0]);
        let skip = shape.len().saturating_sub(have.len());
        let want: Vec<i64> = shape[skip..].iter().map(|&n| n as i64).collect();
        let source = if op == "Reshape" { self.shape(&was.input[0]) } else { Vec::new() };
        let allow_zero = was.int("allowzero").unwrap_or(0) != 0;
        let agrees = |(i, (&h, &w)): (usize, (&i64, &i64))| match op {
            _ if h == w => true,
            "Reshape" => h == -1 || (h == 0 && !allow_zero && source.get(i) == Some(&(w as usize))),
            "Expand" => h == 1,
            _ => false,
        };
        (have.iter().zip(&want).enumerate().map(agrees).collect(), want)
    }

    /// The shape operand, computed anew with other constants where that takes it to agree with the typing at the
    /// assumed batch and at another one: its name, or `None` where no such constants are found.
    fn at_its_constants(&mut self, was: &NodeProto, operand: &str) -> Option<String> {
        if let Some(made) = self.corrected.get(operand) {
            let fits = |(_, value): &&(String, Vec<i64>)| self.agreement(was, value).0.iter().all(|&r| r);
            if let Some((name, _)) = made.iter().find(fits) {
                return Some(name.clone());
            }
        }
        let cone = Cone::new(self.typing, &self.known, &self.constants, operand);
        let mut changes = Changes::new();
        let (mut good, want) = self.good(was, operand, &cone, &changes)?;
        if good.iter().all(|&g| g) {
            return Some(operand.to_string());
        }
        let wanted: Vec<i64> = want.iter().zip(&good).filter(|(_, g)| !**g).map(|(&w, _)| w).collect();
        let ratios = self.ratios();
        while !good.iter().all(|&g| g) {
            let better = cone.candidates(&ratios, &wanted).find_map(|(places, value)| {
                let mut with = changes.clone();
                with.extend(places.into_iter().map(|place| (place, value.clone())));
                let (then, _) = self.good(was, operand, &cone, &with)?;
                let gains = then.iter().zip(&good).any(|(t, g)| *t && !g);
                let loses = then.iter().zip(&good).any(|(t, g)| !t && *g);
                (gains && !loses).then_some((with, then))
            });
            (changes, good) = better?;
        }
        let value = self.computed(operand, &cone, &changes)?;
        let mut renamed: HashMap<&str, String> = HashMap::new();
        for &k in &cone.nodes {
            let node = &self.typing.graph.node[k];
            let changed = (0..node.input.len()).any(|j| changes.contains_key(&(k, j)));
            if !changed && !node.input.iter().any(|x| renamed.contains_key(x.as_str())) {
                continue;
            }
            let mut copy = node.clone();
            for (j, x) in copy.input.iter_mut().enumerate() {
                if let Some((number, kind)) = changes.get(&(k, j)) {
                    *x = self.builder.tensor(number.tensor("offshoot_shape", *kind)?);
                } else if let Some(name) = renamed.get(x.as_str()) {
                    x.clone_from(name);
                }
            }
            for (o, old) in copy.output.iter_mut().zip(&node.output).filter(|(_, old)| !old.is_empty()) {
                *o = self.builder.names.fresh(old);
                renamed.insert(old, o.clone());
            }
            copy.name = copy.name.and(copy.output.first().cloned());
            self.builder.nodes.push(copy);
        }
        let name = renamed.get(operand)?.clone();
        self.corrected.entry(operand.to_string()).or_default().push((name.clone(), value));
        Some(name)
    }

    /// Which elements of a shape operand agree with the typing under changes of constants, at the assumed batch and at
    /// another one where the file leaves it open; and what the typing wants of each at the assumed one.
    fn good(
        &mut self,
        was: &NodeProto,
        operand: &str,
        cone: &Cone,
        changes: &Changes,
    ) -> Option<(Vec<bool>, Vec<i64>)> {
        let (mut good, want) = self.agreement(was, &self.computed(operand, cone, changes)?);
        if let Some(batch) = self.typing.batch.filter(|_| self.typing.batch_is_open()) {
            let assumed = self.factors.factor_size(batch);
            self.factors.set_size(batch, OTHER_BATCH);
            let there = self.computed(operand, cone, changes).map(|value| self.agreement(was, &value).0);
            self.factors.set_size(batch, assumed);
            good.iter_mut().zip(there?).for_each(|(g, t)| *g &= t);
        }
        Some((good, want))
    }

    /// The value of a shape operand under changes of constants.
    fn computed(&self, operand: &str, cone: &Cone, changes: &Changes) -> Option<Vec<i64>> {
        let mut values: HashMap<&str, Known> = HashMap::new();
        for &k in &cone.nodes {
            let node = &self.typing.graph.node[k];
            let mut inputs = Vec::with_capacity(node.input.len());
            for (j, x) in node.input.iter().enumerate() {
                inputs.push(match (changes.get(&(k, j)), values.get(x.as_str()), cone.shapes.get(x)) {
                    _ if x.is_empty() => None,
                    (Some((number, _)), ..) => Some(number.clone()),
                    (None, Some(value), _) => Some(value.clone()),
                    (None, None, Some(&at)) => {
                        let shape = &self.typing.graph.node[at];
                        Some(shape_value(shape, &self.shape(shape.input.first()?)))
                    }
                    (None, None, None) => {
                        let stored = || self.typing.weights.get(x.as_str()).and_then(|t| Known::read(t));
                        self.known.get(x).cloned().or_else(stored)
                    }
                });
            }
            let made = super::arithmetic::evaluate(node, &inputs)?;
            values.extend(node.output.iter().map(String::as_str).zip(made));
        }
        values.get(operand).map(Known::ints)
    }

    /// By how much factors are resized, and pairs of them.
    fn ratios(&self) -> Vec<(usize, usize)> {
        let of = |(&f, list): (&Factor, &Vec<usize>)| (self.typing.factors.factor_size(f), list.len());
        let mut single: Vec<(usize, usize)> = self.plan.gathers.iter().map(of).filter(|(n, m)| n != m).collect();
        single.sort_unstable();
        single.dedup();
        let pairs: Vec<(usize, usize)> =
            single.iter().flat_map(|a| single.iter().map(move |b| (a.0 * b.0, a.1 * b.1))).collect();
        single.extend(pairs);
        single
    }

    /// Constant repeats of a Tile make the new sizes.
    fn repeats(&mut self, was: &NodeProto, node: &mut NodeProto) {
        let (from, to) = (self.shape(&was.input[0]), self.shape(&was.output[0]));
        let have = node.input.get(1).filter(|x| self.constants.contains(*x)).and_then(|x| self.operand(x).ok());
        let Some(have) = have.filter(|h| h.len() == to.len() && from.len() == to.len()) else { return };
        if to.iter().zip(&from).any(|(t, &f)| f == 0 || t % f != 0) {
            return;
        }
        let want: Vec<i64> = to.iter().zip(&from).map(|(t, f)| (t / f) as i64).collect();
        if have != want {
            node.input[1] = self.builder.operand(&want);
        }
    }

    fn split(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let a = nearest_axis(was.int("axis").unwrap_or(0), self.shape(&was.input[0]).len());
        let lengths: Vec<i64> = was.output.iter().map(|o| self.shape(o)[a] as i64).collect();
        if let Some(attribute) = node.attribute.iter_mut().find(|at| at.name() == "split") {
            attribute.ints = lengths;
        } else if let Some(operand) = node.input.get(1).filter(|x| !x.is_empty()).cloned()
            && self.operand(&operand)? != lengths
        {
            node.input[1] = self.builder.operand(&lengths);
        }
        Ok(())
    }

    fn slice(&mut self, k: usize, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let old = |name: &str, j: usize| -> Option<Vec<i64>> {
            was.ints(name).map(<[i64]>::to_vec).or_else(|| self.typing.ints(was.input.get(j)?))
        };
        let (Some(mut starts), Some(mut ends)) = (old("starts", 1), old("ends", 2)) else { return Ok(()) };
        let shape = self.typing.shape(&was.input[0]).unwrap_or_default();
        let axes = old("axes", 3).unwrap_or_else(|| (0..starts.len() as i64).collect());
        let mut changed = false;
        for (i, &a) in axes.iter().enumerate() {
            let a = nearest_axis(a, shape.len());
            let part = self.typing.parts.iter().find(|p| p.node == k && p.axis == a);
            let (first, last) = match (self.plan.cuts.get(&(k, a)), part) {
                (Some(&cut), _) => cut,
                (None, Some(part)) => {
                    let first: usize = part.before.iter().map(|d| self.factors.size(d)).sum();
                    (first, first + self.factors.size(&part.taken))
                }
                (None, None) => {
                    // Steps of more than one run to the end of an axis that has become longer.
                    let now = self.shape(&was.input[0]).get(a).copied().unwrap_or_default();
                    if now > shape[a] && ends[i] == shape[a] as i64 {
                        (ends[i], changed) = (now as i64, true);
                    }
                    continue;
                }
            };
            let Some((was_first, was_length)) = slice_range(shape[a], starts[i], ends[i], 1) else { continue };
            if was_first != first {
                (starts[i], changed) = (first as i64, true);
            }
            let to_the_end = was_first + was_length == shape[a] && (ends[i] < 0 || ends[i] >= shape[a] as i64);
            if was_first + was_length != last && !(to_the_end && ends[i] > shape[a] as i64) {
                (ends[i], changed) = (last as i64, true);
            }
        }
        if !changed {
            return Ok(());
        }
        if was.ints("starts").is_some() {
            for attribute in &mut node.attribute {
                match attribute.name() {
                    "starts" => attribute.ints = starts.clone(),
                    "ends" => attribute.ints = ends.clone(),
                    _ => {}
                }
            }
        } else {
            // Borders may be int32 where axes are: all operands of a Slice have one type.
            node.input[1] = self.builder.operand(&starts);
            node.input[2] = self.builder.operand(&ends);
            for (j, name) in [(3, "axes"), (4, "steps")] {
                if was.input.get(j).is_some_and(|x| !x.is_empty())
                    && let Some(values) = old(name, j)
                {
                    node.input[j] = self.builder.operand(&values);
                }
            }
        }
        Ok(())
    }

    /// The border of a grid of another size: what is added behind it follows.
    fn pad(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let typing = self.typing;
        let dims = |value: &String| typing.dims.get(value.as_str());
        let (Some(from), Some(to)) = (dims(&was.input[0]), dims(&was.output[0])) else { return Ok(()) };
        let given = node.input.get(1).filter(|x| !x.is_empty()).and_then(|x| self.known.get(x)).map(Known::ints);
        let Some(mut pads) = node.ints("pads").map(<[i64]>::to_vec).or(given) else { return Ok(()) };
        let axes = was.input.get(3).and_then(|x| typing.ints(x)).unwrap_or_else(|| (0..from.len() as i64).collect());
        let (half, mut changed) = (pads.len() / 2, false);
        for (i, &a) in axes.iter().enumerate().take(half) {
            let Some(a) = resolve_axis(a, from.len()) else { continue };
            let (Some(x), Some(y)) = (from.get(a), to.get(a)) else { continue };
            if !self.on_image(std::slice::from_ref(x)) && !self.on_image(std::slice::from_ref(y)) {
                continue;
            }
            let behind = self.factors.size(y) as i64 - self.factors.size(x) as i64 - pads[i];
            if behind != pads[half + i] {
                if behind < 0 {
                    bail!(Typing, "a border of {} elements cannot be taken from the new grid", -behind);
                }
                (pads[half + i], changed) = (behind, true);
            }
        }
        if !changed {
            return Ok(());
        }
        match node.attribute.iter_mut().find(|a| a.name() == "pads") {
            Some(attribute) => attribute.ints = pads,
            None => node.input[1] = self.builder.operand(&pads),
        }
        Ok(())
    }

    /// Constant places along a resized axis follow it, and with them the values that are put there: the place of a row
    /// that is gone goes, that of a row that stands there several times is as many places.
    fn scatter(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let typing = self.typing;
        let (Some(dims), Some(shape)) = (typing.dims.get(was.output[0].as_str()), typing.shape(&was.input[1])) else {
            return Ok(());
        };
        let Some((&width, lead)) = shape.split_last().filter(|(width, _)| (1..=dims.len()).contains(*width)) else {
            return Ok(());
        };
        let moved: Vec<Option<Vec<usize>>> =
            dims[..width].iter().map(|d| self.plan.positions(&typing.factors, d)).collect();
        // Places that are computed were computed again.
        if moved.iter().all(Option::is_none) || !self.constants.contains(&node.input[1]) {
            return Ok(());
        }
        let stored = || typing.weights.get(was.input[1].as_str()).and_then(|t| Known::read(t));
        let places = typing.known.get(was.input[1].as_str()).cloned().or_else(stored);
        let places = places.filter(|_| !self.on_image(&dims[..width])).ok_or_else(|| stuck("values are put"))?.ints();
        let places_of: Vec<HashMap<usize, Vec<i64>>> = (moved.into_iter().zip(dims))
            .map(|(list, d)| {
                let list = list.unwrap_or_else(|| (0..typing.factors.size(d)).collect());
                let mut of: HashMap<usize, Vec<i64>> = HashMap::new();
                list.into_iter().enumerate().for_each(|(new, old)| of.entry(old).or_default().push(new as i64));
                of
            })
            .collect();
        let (mut rows, mut sources): (Vec<Vec<i64>>, Vec<i64>) = Default::default();
        for (i, place) in places.chunks_exact(width).enumerate() {
            let mut new: Vec<Vec<i64>> = vec![Vec::new()];
            for ((&v, of), d) in place.iter().zip(&places_of).zip(dims) {
                let old = resolve_axis(v, typing.factors.size(d));
                let along = old.and_then(|old| of.get(&old)).map(Vec::as_slice).unwrap_or_default();
                new = new.iter().flat_map(|p| along.iter().map(move |&v| [&p[..], &[v]].concat())).collect();
            }
            sources.extend(vec![i as i64; new.len()]);
            rows.extend(new);
        }
        if rows.is_empty() {
            *node = graph::node("Identity", &[&node.input[0]], &[&node.output[0]], vec![]);
            return Ok(());
        }
        let places = tensor_from_i64("offshoot_places", &[rows.len(), width], &rows.concat());
        node.input[1] = self.builder.tensor(places);
        let (before, now) = (typing.shape(&was.input[2]).unwrap_or_default(), self.shape(&was.input[2]));
        // Values that have the resized axis themselves have followed it.
        if now.first() != before.first() && now.first() == Some(&rows.len()) {
            return Ok(());
        }
        if lead.len() != 1 || now.first() != lead.first() {
            return Err(stuck("values are put"));
        }
        if let Some(t) = typing.weights.get(was.input[2].as_str()).filter(|_| node.input[2] == was.input[2]) {
            let list: Vec<usize> = sources.iter().map(|&i| i as usize).collect();
            let (data, elements) = (payload(t), element_count(t)?.max(1));
            let kept = take(&data, &before, 0, &list, data.len() / elements);
            let shape = [&[list.len()], &before[1..]].concat();
            let kind = data_type(t).unwrap_or(DataType::Float);
            node.input[2] = self.builder.tensor(tensor_from_raw(was.input[2].clone(), kind, &shape, kept.into()));
            return Ok(());
        }
        let (list, along) = (self.builder.operand(&sources), vec![int_attribute("axis", 0)]);
        let kept = format!("{}/kept", was.input[2]);
        node.input[2] = self.builder.op_called("Gather", &[&node.input[2], &list], along, &kept);
        Ok(())
    }

    /// Constant places of single elements are for the old sizes.
    fn scatter_elements(&self, was: &NodeProto) -> Result<()> {
        let dims = self.typing.dims.get(was.output[0].as_str()).map(Vec::as_slice).unwrap_or_default();
        let moved = dims.iter().any(|d| self.plan.positions(&self.typing.factors, d).is_some());
        match moved && was.input.get(1).is_some_and(|x| self.constants.contains(x)) {
            true => Err(stuck("elements are put")),
            false => Ok(()),
        }
    }

    /// True where one of the dimensions runs over the image: its new positions are no old ones.
    fn on_image(&self, dims: &[Dim]) -> bool {
        let factors = &self.typing.factors;
        let changed = |f: &Factor| self.plan.gathers.contains_key(f) && factors.spatial(*f).is_some();
        dims.iter().flat_map(|d| factors.all_leaves(d)).any(|f| changed(&f))
    }

    /// New scales for an operator that resizes by scales to a size that is no longer theirs. False where it resizes by
    /// sizes.
    fn scales(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<bool> {
        let at = if was.op_type() == "Upsample" || was.input.len() == 2 { 1 } else { 2 };
        let Some(operand) = was.input.get(at).filter(|x| !x.is_empty()) else { return Ok(false) };
        let Some(old) = self
            .known
            .get(node.input[at].as_str())
            .cloned()
            .or_else(|| self.typing.weights.get(operand.as_str()).and_then(|t| Known::read(t)))
        else {
            return Ok(false);
        };
        if old.data.is_empty() {
            return Ok(false);
        }
        let (from, to) = (self.shape(&was.input[0]), self.shape(&was.output[0]));
        let axes: Vec<usize> = match was.ints("axes").filter(|a| !a.is_empty()) {
            Some(list) => list.iter().filter_map(|&a| resolve_axis(a, from.len())).collect(),
            None => (0..from.len()).collect(),
        };
        if axes.len() != old.data.len() || axes.iter().any(|&a| a >= from.len() || a >= to.len()) {
            bail!(Typing, "its scales do not fit its axes");
        }
        let right = axes.iter().zip(&old.data).all(|(&a, &s)| (from[a] as f64 * s).floor() as usize == to[a]);
        if !right {
            let scales: Vec<f32> = axes.iter().map(|&a| to[a] as f32 / from[a].max(1) as f32).collect();
            let scales = tensor_from_f32("offshoot_scales", DataType::Float, &[scales.len()], &scales);
            node.input[at] = self.builder.tensor(scales);
        }
        Ok(true)
    }

    /// A window that covers a whole axis covers it at its new size.
    fn pool(&self, was: &NodeProto, node: &mut NodeProto) {
        let (old, new) = (self.typing.shape(&was.input[0]).unwrap_or_default(), self.shape(&was.input[0]));
        let Some(kernel) = node.attribute.iter_mut().find(|a| a.name() == "kernel_shape") else { return };
        for (i, size) in kernel.ints.iter_mut().enumerate() {
            if let (Some(&before), Some(&now)) = (old.get(i + 2), new.get(i + 2))
                && *size == before as i64
                && before > 1
            {
                *size = now as i64;
            }
        }
    }

    /// Attributes that count groups or heads.
    fn counts(&self, k: usize, node: &mut NodeProto) {
        if let Some(group) = self.typing.groups.get(&k) {
            let count = self.factors.size(group) as i64;
            node.attribute.retain(|a| a.name() != "group");
            node.attribute.push(int_attribute("group", count));
        }
        for ((_, attribute), heads) in self.typing.head_counts.iter().filter(|((at, _), _)| *at == k) {
            let count = self.factors.size(heads) as i64;
            node.attribute.retain(|a| a.name() != *attribute);
            node.attribute.push(int_attribute(attribute, count));
        }
        // `com.microsoft` Attention also counts the features of its queries, keys and values.
        const SIZES: &str = "qkv_hidden_sizes";
        let made = node.output.first().and_then(|o| self.typing.dims.get(o.as_str())?.last());
        if let (Some(_), Some(features)) = (node.ints(SIZES), made) {
            let size = self.factors.size(features) as i64;
            node.attribute.retain(|a| a.name() != SIZES);
            node.attribute.push(ints_attribute(SIZES, &[size; 3]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_gathered_along_any_axis() {
        let data: Vec<u8> = (0..12).collect();
        assert_eq!(take(&data, &[2, 3, 2], 1, &[2, 0], 1), [4, 5, 0, 1, 10, 11, 6, 7]);
        assert_eq!(take(&data, &[3, 4], 0, &[1, 1], 1), [4, 5, 6, 7, 4, 5, 6, 7]);
        assert_eq!(take(&data, &[3, 2], 1, &[1], 2), [2, 3, 6, 7, 10, 11]);
    }

    #[test]
    fn rows_are_mixed() {
        let mixture = vec![vec![(0, 0.5), (1, 0.5)], vec![(1, 1.0)]];
        assert_eq!(mix(&[1.0, 2.0, 3.0, 4.0], &[2, 2], 0, &mixture), [2.0, 3.0, 3.0, 4.0]);
        assert_eq!(mix(&[1.0, 2.0, 3.0, 4.0], &[2, 2], 1, &mixture), [1.5, 2.0, 3.5, 4.0]);
    }

    #[test]
    fn positions_of_a_packed_axis() {
        let mut factors = Factors::default();
        let (three, heads, dim) = (factors.fresh(3), factors.fresh(4), factors.fresh(2));
        let packed: Dim = three.iter().chain(&heads).chain(&dim).copied().collect();
        let mut plan = Plan::default();
        plan.gather(&factors, heads[0], vec![3, 1]).unwrap();
        assert_eq!(plan.positions(&factors, &packed).unwrap(), [6, 7, 2, 3, 14, 15, 10, 11, 22, 23, 18, 19]);
        assert_eq!(plan.positions(&factors, &three), None);
        assert!(plan.gather(&factors, heads[0], vec![0]).is_err());
    }

    #[test]
    fn positions_of_a_sum() {
        let mut factors = Factors::default();
        let packed = factors.fresh(10);
        let q = factors.cut_atom(&packed, 4);
        let mut plan = Plan::default();
        plan.gather(&factors, q[0], vec![2]).unwrap();
        assert_eq!(plan.positions(&factors, &packed).unwrap(), [2, 4, 5, 6, 7, 8, 9]);
    }
}
