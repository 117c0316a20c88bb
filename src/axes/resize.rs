//! Surgery, the same for every dialect: gather each weight axis that carries a factor along that factor, then walk once more
//! with the new sizes and correct every shape operand, slice border and attribute that disagrees with the typing.

use std::collections::{BTreeMap, HashMap, HashSet};

use rayon::prelude::*;

use super::arithmetic::{Known, slice_range};
use super::factors::{Dim, Factor, Factors, gcd};
use super::rules::shape_value;
use super::store::Store;
use super::{Typing, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, Names, int_attribute, ints_attribute, node as new_node};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{
    DataType, data_type, element_count, node_label, payload, tensor_from_f32, tensor_from_i64, tensor_from_raw, to_f32,
};

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

    /// The Slice `node` takes the elements from `first` to before `last` of an axis, whatever the typing says of its borders.
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
    let mut names = Names::new(&out);
    let changed = weights(typing, plan)?;
    place(typing, changed, &mut names, &mut out);
    put_operands(&plan.operands, &mut names, &mut out);
    let mut factors = typing.factors.clone();
    for (&f, indices) in &plan.gathers {
        factors.set_size(f, indices.len());
    }
    repair(typing, plan, &mut factors, &mut names, &mut out)?;
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
    let mut shape: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
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
    let outputs: HashSet<&str> = typing.graph.output.iter().map(|o| o.name()).collect();
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

struct Repair<'t, 'm> {
    typing: &'t Typing<'m>,
    plan: &'t Plan,
    factors: &'t mut Factors,
    known: HashMap<String, Known>,
    fixed: HashSet<String>,
    names: &'t mut Names,
    initializers: Vec<TensorProto>,
    nodes: Vec<NodeProto>,
}

/// Walks the graph with the new sizes.
fn repair(typing: &Typing, plan: &Plan, factors: &mut Factors, names: &mut Names, out: &mut GraphProto) -> Result<()> {
    let mut known = HashMap::new();
    let mut fixed: HashSet<String> = HashSet::new();
    for t in &out.initializer {
        fixed.insert(t.name().to_string());
        let old = typing.known.contains_key(t.name()) || !typing.weights.contains_key(t.name());
        if old && let Some(value) = Known::read(t) {
            known.insert(t.name().to_string(), value);
        }
    }
    let mut repair = Repair { typing, plan, factors, known, fixed, names, initializers: Vec::new(), nodes: Vec::new() };
    for (k, node) in std::mem::take(&mut out.node).into_iter().enumerate() {
        let label = node_label(&node);
        repair.node(k, node).map_err(|e| e.in_node(label))?;
    }
    out.node = repair.nodes;
    out.initializer.extend(repair.initializers);
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
    out.value_info.clear();
    Ok(())
}

impl<'m> Repair<'_, 'm> {
    fn shape(&self, value: &str) -> Vec<usize> {
        match self.typing.dims.get(value) {
            Some(dims) => dims.iter().map(|d| self.factors.size(d)).collect(),
            None => self.typing.shape(value).unwrap_or_default(),
        }
    }

    fn constant(&mut self, values: &[i64]) -> String {
        let name = self.names.fresh("offshoot_shape");
        self.initializers.push(tensor_from_i64(name.clone(), &[values.len()], values));
        name
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
                self.fixed.insert(o.clone());
                if let Some(value) = typing.known.get(o.as_str()) {
                    self.known.insert(o.clone(), value.clone());
                }
            }
        } else if typing.known.contains_key(first) {
            self.recompute(was, &node)?;
        } else {
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
                "AveragePool" | "MaxPool" | "LpPool" => self.pool(was, &mut node),
                _ => self.counts(k, &mut node),
            }
            if node.input.iter().all(|x| x.is_empty() || self.fixed.contains(x)) {
                self.fixed.extend(node.output.iter().cloned());
            }
        }
        self.nodes.push(node);
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
        for (o, value) in was.output.iter().zip(results) {
            // A computed list can be as long as a resized axis (the indices of a ScatterND); what is made from it has that length.
            for (d, &n) in self.typing.dims.get(o.as_str()).into_iter().flatten().zip(value.data.shape()) {
                if let [f] = self.factors.leaves(d)[..]
                    && self.factors.factor_size(f) != n
                {
                    self.factors.set_size(f, n);
                }
            }
            self.known.insert(o.clone(), value);
        }
        let constant = !matches!(was.op_type(), "Shape" | "Size");
        if constant && node.input.iter().all(|x| x.is_empty() || self.fixed.contains(x)) {
            self.fixed.extend(was.output.iter().cloned());
        }
        Ok(())
    }

    /// Corrects a shape operand: in place where it is constant, by a multiplication and a division behind it where it is
    /// computed (from the batch, say).
    fn shape_operand(&mut self, k: usize, node: &mut NodeProto, j: usize) -> Result<()> {
        let was = &self.typing.graph.node[k];
        let op = was.op_type();
        let have = self.operand(&node.input[j])?;
        let shape = self.shape(&was.output[0]);
        let skip = shape.len().saturating_sub(have.len());
        let want: Vec<i64> = shape[skip..].iter().map(|&n| n as i64).collect();
        let source = if op == "Reshape" { self.shape(&was.input[0]) } else { Vec::new() };
        let allow_zero = was.int("allowzero").unwrap_or(0) != 0;
        let right: Vec<bool> = have
            .iter()
            .zip(&want)
            .enumerate()
            .map(|(i, (&h, &w))| match op {
                _ if h == w => true,
                "Reshape" => h == -1 || (h == 0 && !allow_zero && source.get(i) == Some(&(w as usize))),
                "Expand" => h == 1,
                _ => false,
            })
            .collect();
        if right.iter().all(|&r| r) {
            return Ok(());
        }
        if self.fixed.contains(&node.input[j]) {
            let values: Vec<i64> =
                have.iter().zip(&want).zip(&right).map(|((&h, &w), &r)| if r { h } else { w }).collect();
            node.input[j] = self.constant(&values);
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
        let times = self.constant(&ratios.iter().map(|r| r.0).collect::<Vec<_>>());
        let by = self.constant(&ratios.iter().map(|r| r.1).collect::<Vec<_>>());
        let (product, quotient) = (self.names.fresh("offshoot_shape_times"), self.names.fresh("offshoot_shape_by"));
        self.nodes.push(new_node("Mul", &[&node.input[j], &times], &[&product], vec![]));
        self.nodes.push(new_node("Div", &[&product, &by], &[&quotient], vec![]));
        node.input[j] = quotient;
        Ok(())
    }

    /// Constant repeats of a Tile make the new sizes.
    fn repeats(&mut self, was: &NodeProto, node: &mut NodeProto) {
        let (from, to) = (self.shape(&was.input[0]), self.shape(&was.output[0]));
        let have = node.input.get(1).filter(|x| self.fixed.contains(*x)).and_then(|x| self.operand(x).ok());
        let Some(have) = have.filter(|h| h.len() == to.len() && from.len() == to.len()) else { return };
        if to.iter().zip(&from).any(|(t, &f)| f == 0 || t % f != 0) {
            return;
        }
        let want: Vec<i64> = to.iter().zip(&from).map(|(t, f)| (t / f) as i64).collect();
        if have != want {
            node.input[1] = self.constant(&want);
        }
    }

    fn split(&mut self, was: &NodeProto, node: &mut NodeProto) -> Result<()> {
        let rank = self.shape(&was.input[0]).len() as i64;
        let a = was.int("axis").unwrap_or(0);
        let a = if a < 0 { a + rank } else { a } as usize;
        let lengths: Vec<i64> = was.output.iter().map(|o| self.shape(o)[a] as i64).collect();
        if let Some(attribute) = node.attribute.iter_mut().find(|at| at.name() == "split") {
            attribute.ints = lengths;
        } else if let Some(operand) = node.input.get(1).filter(|x| !x.is_empty()).cloned()
            && self.operand(&operand)? != lengths
        {
            node.input[1] = self.constant(&lengths);
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
            let a = (if a < 0 { a + shape.len() as i64 } else { a }) as usize;
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
            node.input[1] = self.constant(&starts);
            node.input[2] = self.constant(&ends);
            for (j, name) in [(3, "axes"), (4, "steps")] {
                if was.input.get(j).is_some_and(|x| !x.is_empty())
                    && let Some(values) = old(name, j)
                {
                    node.input[j] = self.constant(&values);
                }
            }
        }
        Ok(())
    }

    /// New scales for an operator that resizes by scales to a size that is no longer theirs. False where it resizes by sizes.
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
            Some(list) => list.iter().map(|&a| (if a < 0 { a + from.len() as i64 } else { a }) as usize).collect(),
            None => (0..from.len()).collect(),
        };
        if axes.len() != old.data.len() || axes.iter().any(|&a| a >= from.len() || a >= to.len()) {
            bail!(Typing, "its scales do not fit its axes");
        }
        let right = axes.iter().zip(&old.data).all(|(&a, &s)| (from[a] as f64 * s).floor() as usize == to[a]);
        if !right {
            let scales: Vec<f32> = axes.iter().map(|&a| to[a] as f32 / from[a].max(1) as f32).collect();
            let name = self.names.fresh("offshoot_scales");
            self.initializers.push(tensor_from_f32(name.clone(), DataType::Float, &[scales.len()], &scales));
            node.input[at] = name;
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
        for (_, attribute) in self.typing.head_counts.keys().filter(|(at, _)| *at == k) {
            let count = self.factors.size(&self.typing.head_counts[&(k, *attribute)]) as i64;
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
