//! Shape operands: what is computed from shapes gives the new sizes by the constants that it is computed with.

use std::collections::{HashMap, HashSet};

use super::repair::{OTHER_BATCH, Repair};
use crate::axes::arithmetic::{self, ConstValue};
use crate::axes::factors::{Factor, gcd};
use crate::axes::rules::shape_value;
use crate::axes::typing::Typing;
use crate::error::Result;
use crate::graph::Attributes;
use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;
use crate::ops::{self, ShapeRule, Slot};

/// Inputs of nodes that get other numbers, with their types.
type Changes = HashMap<(usize, usize), (ConstValue, DataType)>;

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
    value: ConstValue,
    kind: DataType,
    uses: Vec<(usize, usize)>,
}

impl Cone {
    fn new(typing: &Typing, known: &HashMap<String, ConstValue>, constants: &HashSet<String>, operand: &str) -> Cone {
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
                if j > 0 && (is_place || op.shape == ShapeRule::Reduce) {
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

    /// The nodes that compute something else under changes of constants, in order.
    fn changed(&self, typing: &Typing, changes: &Changes) -> Vec<usize> {
        let mut values: HashSet<&str> = HashSet::new();
        let mut nodes = Vec::new();
        for &k in &self.nodes {
            let node = &typing.graph.node[k];
            let direct = (0..node.input.len()).any(|j| changes.contains_key(&(k, j)));
            if direct || node.input.iter().any(|x| values.contains(x.as_str())) {
                values.extend(node.output.iter().map(String::as_str).filter(|o| !o.is_empty()));
                nodes.push(k);
            }
        }
        nodes
    }

    /// Other numbers that a constant may have wherever it is used, and then in one place: resized by one of the ratios,
    /// or what is wanted.
    fn candidates<'c>(
        &'c self,
        ratios: &'c [(usize, usize)],
        wanted: &'c [i64],
    ) -> impl Iterator<Item = (Vec<(usize, usize)>, (ConstValue, DataType))> + 'c {
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

impl Repair<'_, '_> {
    /// Corrects a shape operand: in place where it is constant; where it is computed (from the batch, say), at the
    /// constants that carry what was resized. Behind a division of whole numbers it would be too late: half the heads
    /// of one image are no image. Where no constant is found a multiplication and a division stand behind it.
    ///
    /// Where the exporter left -1 for what is resized (`[.., -1, 32]`), the number is written, as far as that takes no
    /// more than other constants: whoever reads heads off a shape finds those of the child.
    pub(super) fn shape_operand(&mut self, k: usize, node: &mut NodeProto, j: usize) -> Result<()> {
        let was = &self.typing.graph.node[k];
        let have = self.operand(&node.input[j])?;
        self.names_counts = true;
        let leaves_count = !self.agreement(was, &have).0.iter().all(|&r| r);
        let named = leaves_count.then(|| self.at_constants(was, node, j, &have));
        self.names_counts = false;
        if named == Some(true) {
            return Ok(());
        }
        let (right, want) = self.agreement(was, &have);
        let agrees = right.iter().all(|&r| r);
        if agrees && !self.divided.contains(&node.input[j]) {
            return Ok(());
        }
        if self.at_constants(was, node, j, &have) {
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

    /// Corrects a shape operand that is constant, or is computed of constants that can be others; false where neither
    /// helps.
    fn at_constants(&mut self, was: &NodeProto, node: &mut NodeProto, j: usize, have: &[i64]) -> bool {
        if self.constants.contains(&node.input[j]) {
            let (right, want) = self.agreement(was, have);
            if !right.iter().all(|&r| r) {
                let values = have.iter().zip(&want).zip(&right).map(|((&h, &w), &r)| if r { h } else { w });
                node.input[j] = self.builder.operand(&values.collect::<Vec<i64>>());
            }
            return true;
        }
        let corrected = self.at_its_constants(was, &node.input[j]);
        let found = corrected.is_some();
        node.input[j] = corrected.unwrap_or_else(|| std::mem::take(&mut node.input[j]));
        found
    }

    /// True where an axis of a value is made of nothing but what gets another number of elements, for every image.
    fn is_count(&self, value: &str, axis: usize) -> bool {
        let of_image = |f: &Factor| self.typing.factors.spatial(*f).is_some();
        let changes = |f: &Factor| {
            let now = self.plan.gathers.get(f).map(Vec::len);
            now.is_some_and(|n| n != self.typing.factors.factor_size(*f))
        };
        let dim = self.typing.dims.get(value).and_then(|dims| dims.get(axis));
        let leaves = dim.map(|d| self.typing.factors.leaves(d)).unwrap_or_default();
        !leaves.is_empty() && leaves.iter().all(changes) && !self.plan.gathers.keys().any(of_image)
    }

    /// Numbers that are known may lie along an axis that is resized, too: a mask for each head, expanded to the shape
    /// of scores (Funnel).
    pub(super) fn shape_of_numbers(&mut self, k: usize, node: &mut NodeProto) -> Result<()> {
        let was = &self.typing.graph.node[k];
        let resized = |f: &Factor| self.plan.gathers.contains_key(f);
        let dims = was.output.first().and_then(|o| self.typing.dims.get(o.as_str())).into_iter().flatten();
        let carries = dims.flat_map(|d| self.typing.factors.leaves(d)).any(|f| resized(&f));
        let Some(operand) = node.input.get(1).filter(|_| carries && matches!(was.op_type(), "Expand" | "Reshape"))
        else {
            return Ok(());
        };
        let Some(have) = self.known.get(operand).map(ConstValue::ints) else { return Ok(()) };
        let (right, want) = self.agreement(was, &have);
        if right.iter().all(|&r| r) {
            return Ok(());
        }
        self.shape_operand(k, node, 1)?;
        let sizes = have.iter().zip(&want).zip(&right).map(|((&h, &w), &r)| if r { h } else { w });
        self.known.insert(node.input[1].clone(), ConstValue::integers(sizes));
        Ok(())
    }

    /// True where a Tile is to repeat every axis a whole number of times, by a constant or by what is computed for
    /// other widths: what is computed from the size of an image follows it by itself.
    pub(super) fn repeats(&self, was: &NodeProto) -> bool {
        let Some(operand) = was.input.get(1) else { return false };
        let [from, to] = [&was.input[0], &was.output[0]].map(|x| self.shape(x));
        let count = self.known.get(operand).map(|known| known.ints().len());
        let of_image = |f: &Factor| self.typing.factors.spatial(*f).is_some();
        count == Some(to.len())
            && from.len() == to.len()
            && to.iter().zip(&from).all(|(t, &f)| f > 0 && t % f == 0)
            && (self.constants.contains(operand) || !self.plan.gathers.keys().any(of_image))
    }

    /// Which elements of a shape operand agree with the typing, and what it wants of each.
    fn agreement(&self, was: &NodeProto, have: &[i64]) -> (Vec<bool>, Vec<i64>) {
        let op = was.op_type();
        let shape = self.shape(&was.output[0]);
        let skip = shape.len().saturating_sub(have.len());
        let mut want: Vec<i64> = shape[skip..].iter().map(|&n| n as i64).collect();
        let source = if matches!(op, "Reshape" | "Tile") { self.shape(&was.input[0]) } else { Vec::new() };
        if op == "Tile" {
            want.iter_mut().zip(&source).for_each(|(w, &n)| *w /= n.max(1) as i64);
        }
        let allow_zero = was.int("allowzero").unwrap_or(0) != 0;
        let agrees = |(i, (&h, &w)): (usize, (&i64, &i64))| match op {
            _ if h == w => true,
            "Reshape" if h == -1 => !(self.names_counts && self.is_count(&was.output[0], skip + i)),
            "Reshape" => h == 0 && !allow_zero && source.get(i) == Some(&(w as usize)),
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
        let changed = cone.changed(self.typing, &changes);
        if self.names_counts && !self.replaces_all(&changed, operand, &value) {
            return None;
        }
        let mut renamed: HashMap<&str, String> = HashMap::new();
        for k in changed {
            let node = &self.typing.graph.node[k];
            let mut copy = node.clone();
            for (j, x) in copy.input.iter_mut().enumerate() {
                if let Some((number, kind)) = changes.get(&(k, j)) {
                    *x = self.number(number, *kind)?;
                } else if let Some(name) = renamed.get(x.as_str()) {
                    x.clone_from(name);
                }
            }
            let outputs = match self.recomputed.get(&(k, copy.input.clone())) {
                Some(made) => made.clone(),
                None => self.write_anew(k, copy),
            };
            renamed.extend(node.output.iter().map(String::as_str).zip(outputs).filter(|(old, _)| !old.is_empty()));
        }
        let name = renamed.get(operand)?.clone();
        self.corrected.entry(operand.to_string()).or_default().push((name.clone(), value));
        Some(name)
    }

    /// True where nobody needs the nodes of a shape operand as they were, if its value becomes `value`: the new ones
    /// then take their place.
    fn replaces_all(&self, changed: &[usize], operand: &str, value: &[i64]) -> bool {
        let (graph, links) = (self.typing.graph, self.typing.links());
        let fits = |k: &usize, x: &str| {
            let node = &graph.node[*k];
            let takes = node.op_type() == "Reshape" && x == operand && node.input.first().is_some_and(|i| i != x);
            takes && self.agreement(node, value).0.iter().all(|&r| r)
        };
        let all = |x: &str| links.users(x).iter().all(|k| changed.contains(k) || fits(k, x));
        changed.iter().all(|&k| links.outputs(k).all(all))
    }

    /// A number as a constant of the graph, the same for equal numbers.
    fn number(&mut self, number: &ConstValue, kind: DataType) -> Option<String> {
        let same = |(value, k, _): &&(ConstValue, DataType, String)| *k == kind && value.data == number.data;
        if let Some((.., name)) = self.numbers.iter().find(same) {
            return Some(name.clone());
        }
        let name = self.builder.tensor(number.tensor("offshoot_shape", kind)?);
        self.numbers.push((number.clone(), kind, name.clone()));
        Some(name)
    }

    /// Writes a node of shape arithmetic once more, with other inputs; its outputs.
    fn write_anew(&mut self, k: usize, mut node: NodeProto) -> Vec<String> {
        for o in node.output.iter_mut().filter(|o| !o.is_empty()) {
            *o = self.builder.names.fresh(o);
        }
        node.name = node.name.and(node.output.first().cloned());
        self.recomputed.insert((k, node.input.clone()), node.output.clone());
        let outputs = node.output.clone();
        self.builder.nodes.push(node);
        outputs
    }

    /// Whoever asks how many numbers shape arithmetic makes gets that as a constant, where the arithmetic was written
    /// anew: the old one would stay for it alone (TorchScript's `repeat`).
    pub(super) fn count_numbers(&mut self) {
        let (typing, anew) = (self.typing, self.recomputed.keys().map(|(k, _)| *k).collect::<HashSet<usize>>());
        let is_anew = |x: &str| {
            let mut nodes = typing.links().upstream([x]).along(|x| typing.known.contains_key(x)).nodes();
            nodes.any(|k| anew.contains(&k))
        };
        let asks = |n: &&NodeProto| n.op_type() == "Shape" && n.input.first().is_some_and(|x| is_anew(x));
        let asking: Vec<NodeProto> = self.builder.nodes.iter().filter(asks).cloned().collect();
        let mut counts: HashMap<String, String> = HashMap::new();
        for node in &asking {
            let Some(numbers) = self.known.get(&node.input[0]) else { continue };
            let count = shape_value(node, numbers.data.shape()).ints();
            counts.insert(node.output[0].clone(), self.builder.operand(&count));
        }
        for x in self.builder.nodes.iter_mut().flat_map(|n| &mut n.input) {
            if let Some(count) = counts.get(x) {
                x.clone_from(count);
            }
        }
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
        let mut values: HashMap<&str, ConstValue> = HashMap::new();
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
                        let stored = || self.typing.weights.get(x.as_str()).and_then(|t| ConstValue::read(t));
                        self.known.get(x).cloned().or_else(stored)
                    }
                });
            }
            let made = arithmetic::evaluate(node, &inputs)?;
            values.extend(node.output.iter().map(String::as_str).zip(made));
        }
        values.get(operand).map(ConstValue::ints)
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
}
