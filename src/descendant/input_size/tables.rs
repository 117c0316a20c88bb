//! Tables that were made for the old image size, made again for the new one.

use std::collections::{HashMap, HashSet};

use ndarray::ArrayD;

use super::relative::Pairs;
use super::rotary::{WAVE_TOLERANCE, Wave};
use super::sizes::ResizedFactors;
use super::tokens::{Place, TokenGrid};
use crate::anatomy::{WeightKind, WeightUse, weight_uses};
use crate::axes::arithmetic::ConstValue;
use crate::axes::resize::{LinearCombination, ResizePlan};
use crate::axes::{Dim, Factor, ImageAxis, Typing};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, nearest_axis, resolve_axis};
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{DataType, data_type, is_float, node_label, tensor_from_i64, tensor_from_raw, to_f32};

fn unknown(name: &str, shape: &[i64]) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("`{name}` {shape:?} was made for the old image size, in a way that is not understood"),
    )
    .hint("export the model for the new size, or with a dynamic image size")
}

/// Plans what becomes of every table that was made for the old size.
pub(super) struct Tables<'t, 'm> {
    typing: &'t Typing<'m>,
    sizes: ResizedFactors<'t, 'm>,
    kinds: Vec<WeightUse>,
    plan: ResizePlan,
    done: HashSet<(usize, usize)>,
}

impl<'t, 'm> Tables<'t, 'm> {
    pub fn new(typing: &'t Typing<'m>, sizes: ResizedFactors<'t, 'm>) -> Self {
        Tables { typing, sizes, kinds: weight_uses(typing), plan: ResizePlan::default(), done: HashSet::new() }
    }

    pub fn plan(mut self) -> Result<ResizePlan> {
        let mut changed: Vec<(Factor, usize)> = self.sizes.new.iter().map(|(&f, &n)| (f, n)).collect();
        changed.sort_unstable();
        for (f, n) in changed {
            let old = self.typing.factors.factor_size(f);
            // The last index stays the last and the first stands for all others: what masks of shifted windows need.
            self.plan.gather(
                &self.typing.factors,
                f,
                (0..n).map(|i| if i + 1 == n { old - 1 } else { 0 }).collect(),
            )?;
        }
        for (k, axis, first, last) in std::mem::take(&mut self.sizes.cuts) {
            self.plan.cut(k, axis, first, last);
        }
        let graph = self.typing.graph;
        for (k, node) in graph.node.iter().enumerate().filter(|(_, n)| n.op_type() == "Gather") {
            self.lookup(k, node).map_err(|e| e.in_node(node_label(node)))?;
        }
        for u in 0..self.typing.uses.len() {
            let of_use = &self.typing.uses[u];
            let changed: Vec<usize> = (0..of_use.dims.len()).filter(|&a| self.sizes.changed(&of_use.dims[a])).collect();
            if !changed.is_empty() && !self.done.contains(&(of_use.node, of_use.input)) {
                self.table(u, &changed).map_err(|e| e.in_node(node_label(&graph.node[of_use.node])))?;
            }
        }
        Ok(self.plan)
    }

    /// One use of a weight that carries a grid.
    fn table(&mut self, u: usize, changed: &[usize]) -> Result<()> {
        let of_use = &self.typing.uses[u];
        let tensor = self.typing.weights[of_use.name.as_str()];
        let unknown = || unknown(&of_use.name, &tensor.dims);
        if !is_float(tensor) {
            let Some(known) = ConstValue::read(tensor) else { return Err(unknown()) };
            return if self.repeats(u, &known.data) { Ok(()) } else { Err(unknown()) };
        }
        let data = to_f32(tensor)?;
        let shape = tensor.shape();
        match self.kinds[u].kind {
            WeightKind::Position | WeightKind::Token => {
                for &a in changed {
                    let tokens = self.tokens(&of_use.dims[a]).ok_or_else(unknown)?;
                    self.plan.mix(u, a, tokens.resample());
                }
                Ok(())
            }
            WeightKind::HeadTable => {
                let [a, b] = changed[..] else { return Err(unknown()) };
                let elements = self.relative(&data, &shape, [a, b], u).ok_or_else(unknown)?;
                self.plan.replace(u, elements);
                Ok(())
            }
            WeightKind::Constant => {
                let values = ArrayD::from_shape_vec(shape.clone(), data.iter().map(|&v| f64::from(v)).collect())
                    .map_err(|_| unknown())?;
                if self.repeats(u, &values) {
                    return Ok(());
                }
                let [a] = changed[..] else { return Err(unknown()) };
                let elements = self.rotary(&data, &shape, a, u).ok_or_else(unknown)?;
                self.plan.replace(u, elements);
                Ok(())
            }
            _ => Err(Error::new(
                ErrorKind::Unsupported,
                format!("the weight `{}` {:?} is trained for one size of the grid", of_use.name, tensor.dims),
            )
            .hint("such a model has one image size: leave ⟦image-size⟧ out")),
        }
    }

    /// Whether a tensor has, along every factor that changes, one value for all indices but the last.
    fn repeats(&self, u: usize, values: &ArrayD<f64>) -> bool {
        let dims = &self.typing.uses[u].dims;
        let factors = &self.typing.factors;
        (0..dims.len()).filter(|&a| self.sizes.changed(&dims[a])).all(|a| {
            let leaves = factors.leaves(&dims[a]);
            // Changes inside a sum would need the borders of its segments; only a constant needs none.
            let sum = leaves.iter().any(|&f| factors.segments(&[f]).is_some());
            let lists: Vec<usize> = leaves.iter().map(|&f| factors.factor_size(f)).collect();
            let source = |i: usize| {
                if sum {
                    return 0;
                }
                let (mut rest, mut at, mut scale) = (i, 0, 1);
                for (&n, &f) in lists.iter().zip(&leaves).rev() {
                    let digit = rest % n;
                    rest /= n;
                    let digit = if self.sizes.new.contains_key(&f) && digit + 1 != n { 0 } else { digit };
                    at += digit * scale;
                    scale *= n;
                }
                at
            };
            (0..values.shape()[a]).all(|i| {
                let axis = ndarray::Axis(a);
                source(i) == i || values.index_axis(axis, i) == values.index_axis(axis, source(i))
            })
        })
    }

    /// The tokens of a dimension; `None` where it is not known how they lie on the image.
    fn tokens(&self, dim: &Dim) -> Option<TokenGrid> {
        let axis = |leaves: &[Factor]| {
            leaves.iter().map(|&f| self.typing.factors.spatial(f).map(|s| s.axis)).collect::<Option<Vec<ImageAxis>>>()
        };
        self.tokens_by(dim, axis)
    }

    /// [`Tables::tokens`], where two factors that are not known to run over the image are taken for rows and columns:
    /// for tables that show whether they are.
    fn tokens_or_rows(&self, dim: &Dim) -> Option<TokenGrid> {
        self.tokens(dim).or_else(|| {
            self.tokens_by(dim, |leaves| (leaves.len() == 2).then(|| vec![ImageAxis::Height, ImageAxis::Width]))
        })
    }

    fn tokens_by(&self, dim: &Dim, axes_of: impl Fn(&[Factor]) -> Option<Vec<ImageAxis>>) -> Option<TokenGrid> {
        let factors = &self.typing.factors;
        let segments = factors.segments(dim).unwrap_or_else(|| vec![dim.clone()]);
        let mut tokens = TokenGrid { old: Vec::new(), new: Vec::new(), old_grid: [1, 1], new_grid: [1, 1] };
        let mut prefix = 0;
        for segment in &segments {
            if !self.sizes.changed(segment) {
                for list in [&mut tokens.old, &mut tokens.new] {
                    list.extend((prefix..prefix + factors.size(segment)).map(Place::Prefix));
                }
                prefix += factors.size(segment);
                continue;
            }
            let leaves = factors.leaves(segment);
            let axes = axes_of(&leaves)?;
            if tokens.old_grid != [1, 1] {
                return None;
            }
            let old: Vec<usize> = leaves.iter().map(|&f| factors.factor_size(f)).collect();
            let new: Vec<usize> = leaves.iter().map(|&f| self.sizes.leaf(f)).collect();
            for (list, sizes, grid) in
                [(&mut tokens.old, &old, &mut tokens.old_grid), (&mut tokens.new, &new, &mut tokens.new_grid)]
            {
                let extent = |axis| sizes.iter().zip(&axes).filter(|(_, a)| **a == axis).map(|(n, _)| n).product();
                *grid = [extent(ImageAxis::Height), extent(ImageAxis::Width)];
                for i in 0..sizes.iter().product() {
                    let (mut rest, mut place, mut scale) = (i, [0, 0], [1, 1]);
                    for (&n, axis) in sizes.iter().zip(&axes).rev() {
                        let at = usize::from(*axis == ImageAxis::Width);
                        place[at] += rest % n * scale[at];
                        scale[at] *= n;
                        rest /= n;
                    }
                    list.push(Place::Patch(place[0], place[1]));
                }
            }
        }
        (tokens.old_grid != [1, 1]).then_some(tokens)
    }

    /// A table that is looked up by a constant index: positions by a token's place, relative positions by two of them.
    fn lookup(&mut self, k: usize, node: &NodeProto) -> Result<()> {
        let (Some(table), Some(index)) = (node.input.first(), node.input.get(1)) else { return Ok(()) };
        let dims = match self.sizes.operand(k, 1) {
            Some(dims) => dims.clone(),
            None => self.typing.dims.get(index.as_str()).cloned().unwrap_or_default(),
        };
        let values = self.typing.known.get(index.as_str()).cloned();
        let values = values.or_else(|| ConstValue::read(self.typing.weights.get(index.as_str())?));
        let (true, Some(values)) = (dims.iter().any(|d| self.sizes.changed(d)), values) else { return Ok(()) };
        let of_table = self.typing.uses.iter().position(|u| u.node == k && u.input == 0);
        let unknown = || unknown(index, &values.data.shape().iter().map(|&n| n as i64).collect::<Vec<_>>());
        let Some(u) = of_table.filter(|_| self.typing.weights.get(table.as_str()).is_some_and(|t| is_float(t))) else {
            // What is resampled before it is looked up has to have as many rows as the new places want.
            let is_made =
                !self.typing.known.contains_key(table.as_str()) && self.typing.dims.contains_key(table.as_str());
            let follows = self.typing.dims.get(table.as_str()).is_some_and(|d| d.iter().any(|d| self.sizes.changed(d)));
            return match is_made && !follows && self.typing.is_constant(table) {
                true => Err(unknown()),
                false => Ok(()),
            };
        };
        let along = nearest_axis(node.int("axis").unwrap_or(0), self.typing.uses[u].dims.len());
        let rows = self.typing.factors.size(&self.typing.uses[u].dims[along]);
        let entries = values.ints().into_iter().map(|v| resolve_axis(v, rows));
        let entries: Vec<usize> = entries.collect::<Option<_>>().ok_or_else(unknown)?;
        let lists = self.token_axes(&dims).ok_or_else(unknown)?;
        let (mixture, index_values) = match &lists[..] {
            [tokens] => {
                let mixture: LinearCombination = tokens.resample();
                let named = |terms: &Vec<(usize, f32)>| terms.iter().map(|&(i, w)| (entries[i], w)).collect();
                (
                    mixture.iter().map(named).collect::<LinearCombination>(),
                    (0..tokens.new.len() as i64).collect::<Vec<i64>>(),
                )
            }
            [queries, keys] => {
                let pairs = Pairs::read(queries, keys, |i, j| entries[i * keys.old.len() + j]).ok_or_else(unknown)?;
                pairs.resized(queries, keys)
            }
            _ => return Err(unknown()),
        };
        let table_rows = self.typing.factors.leaves(&self.typing.uses[u].dims[along]);
        let [rows] = table_rows[..] else { return Err(unknown()) };
        let shape: Vec<usize> = dims.iter().map(|d| self.sizes.size(d)).collect();
        let data = tensor_from_i64(index.clone(), &shape, &index_values);
        let kind = self.typing.weights.get(index.as_str()).and_then(|t| data_type(t)).unwrap_or(DataType::Int64);
        self.plan.operand(k, 1, if kind == DataType::Int32 { narrow(&data, &index_values) } else { data });
        self.plan.gather(&self.typing.factors, rows, vec![0; mixture.len()])?;
        self.plan.mix(u, along, mixture);
        self.done.extend([(k, 0), (k, 1)]);
        Ok(())
    }

    /// The token axes that the dimensions of an index table run over, which may lie in one dimension.
    fn token_axes(&self, dims: &[Dim]) -> Option<Vec<TokenGrid>> {
        let factors = &self.typing.factors;
        let all: Vec<Factor> = dims.iter().flat_map(|d| factors.leaves(d)).collect();
        let mut lists = Vec::new();
        let mut i = 0;
        while i < all.len() {
            let one = factors.segments(&[all[i]]).is_some();
            let height = factors.spatial(all[i]).map(|s| s.axis);
            let mut end = i + 1;
            if !one {
                // Rows and columns of one grid, outermost first: it ends before the next rows.
                let axis = |f: Factor| factors.spatial(f).map(|s| s.axis);
                let mut columns = height == Some(ImageAxis::Width);
                while end < all.len()
                    && axis(all[end]).is_some()
                    && !(columns && axis(all[end]) == Some(ImageAxis::Height))
                {
                    columns |= axis(all[end]) == Some(ImageAxis::Width);
                    end += 1;
                }
            }
            lists.push(self.tokens(&all[i..end].iter().copied().collect())?);
            i = end;
        }
        Some(lists)
    }

    /// A relative position bias that was computed for pairs of tokens, for the new tokens.
    fn relative(&self, data: &[f32], shape: &[usize], [a, b]: [usize; 2], u: usize) -> Option<Vec<f32>> {
        let dims = &self.typing.uses[u].dims;
        let (queries, keys) = (self.tokens_or_rows(&dims[a])?, self.tokens_or_rows(&dims[b])?);
        let values = ArrayD::from_shape_vec(shape.to_vec(), data.to_vec()).ok()?;
        let mut new_shape = shape.to_vec();
        (new_shape[a], new_shape[b]) = (queries.new.len(), keys.new.len());
        let mut out = ArrayD::<f32>::zeros(new_shape);
        // Every head has a matrix of its own; queries come first in each.
        let rest: Vec<usize> = (0..shape.len()).filter(|&i| i != a && i != b).collect();
        let count: usize = rest.iter().map(|&i| shape[i]).product();
        for n in 0..count {
            let (mut old, mut new, mut left) = (values.view(), out.view_mut(), n);
            for &i in rest.iter().rev() {
                old.slice_axis_inplace(ndarray::Axis(i), (left % shape[i]..left % shape[i] + 1).into());
                new.slice_axis_inplace(ndarray::Axis(i), (left % shape[i]..left % shape[i] + 1).into());
                left /= shape[i];
            }
            let at = |i: usize, j: usize| {
                let mut index = vec![0; shape.len()];
                (index[a], index[b]) = (i, j);
                index
            };
            // Entries are named by the first pair that has them.
            let width = keys.old.len();
            let mut first: HashMap<u32, usize> = HashMap::new();
            let mut entries = Vec::with_capacity(queries.old.len() * width);
            for i in 0..queries.old.len() {
                for j in 0..width {
                    let bits = old[&at(i, j)[..]].to_bits();
                    entries.push(*first.entry(bits).or_insert(i * width + j));
                }
            }
            let pairs = Pairs::read(&queries, &keys, |i, j| entries[i * width + j])?;
            let (mixture, index) = pairs.resized(&queries, &keys);
            let value = |pair: usize| old[&at(pair / width, pair % width)[..]];
            let table: Vec<f32> = mixture.iter().map(|row| row.iter().map(|&(p, w)| w * value(p)).sum()).collect();
            for (pair, entry) in index.into_iter().enumerate() {
                new[&at(pair / keys.new.len(), pair % keys.new.len())[..]] = table[entry as usize];
            }
        }
        Some(out.into_iter().collect())
    }

    /// A table of sines and cosines of positions times frequencies, for the new grid: the frequencies are read off the
    /// table, and the positions span what they spanned.
    fn rotary(&self, data: &[f32], shape: &[usize], a: usize, u: usize) -> Option<Vec<f32>> {
        let tokens = self.tokens(&self.typing.uses[u].dims[a])?;
        let before: usize = shape[..a].iter().product();
        let after: usize = shape[a + 1..].iter().product();
        let place: HashMap<Place, usize> = tokens.old.iter().enumerate().map(|(i, &p)| (p, i)).collect();
        let [rows, columns] = tokens.old_grid;
        let mut waves = Vec::with_capacity(before * after);
        for channel in 0..before * after {
            let (b, c) = (channel / after, channel % after);
            let at = |r: usize, q: usize| Some(data[(b * shape[a] + place.get(&Place::Patch(r, q))?) * after + c]);
            let down: Vec<f32> = (0..rows).map(|r| at(r, 0)).collect::<Option<_>>()?;
            let across: Vec<f32> = (0..columns).map(|q| at(0, q)).collect::<Option<_>>()?;
            let constant = |line: &[f32]| line.iter().all(|v| (v - line[0]).abs() < 1e-6);
            let (axis, line) = if constant(&across) { (0, down) } else { (1, across) };
            let wave = Wave::fit(&line)?;
            // Every other line must say the same.
            for r in 0..rows {
                for q in 0..columns {
                    if (wave.at([r, q][axis] as f64) - f64::from(at(r, q)?)).abs() > WAVE_TOLERANCE {
                        return None;
                    }
                }
            }
            waves.push((axis, wave));
        }
        let fastest = waves.iter().max_by(|x, y| x.1.step.abs().total_cmp(&y.1.step.abs()))?;
        let from_zero = (2.0 * fastest.1.phase).sin().abs() < 1e-3;
        let ratio: [f64; 2] = std::array::from_fn(|i| tokens.old_grid[i] as f64 / tokens.new_grid[i] as f64);
        let mut out = Vec::with_capacity(before * tokens.new.len() * after);
        for b in 0..before {
            for token in &tokens.new {
                for c in 0..after {
                    let (axis, wave) = &waves[b * after + c];
                    out.push(match *token {
                        Place::Prefix(_) => {
                            data[(b * shape[a] + tokens.old.iter().position(|p| p == token)?) * after + c]
                        }
                        Place::Patch(r, q) => {
                            let x = [r, q][*axis] as f64;
                            let x = if from_zero { x * ratio[*axis] } else { (x + 0.5) * ratio[*axis] - 0.5 };
                            wave.at(x) as f32
                        }
                    });
                }
            }
        }
        Some(out)
    }
}

/// An index as 32-bit integers.
fn narrow(tensor: &TensorProto, values: &[i64]) -> TensorProto {
    let bytes: Vec<u8> = values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect();
    let dims = tensor.shape();
    tensor_from_raw(tensor.name(), DataType::Int32, &dims, bytes.into())
}
