//! Gives a model of sequences a fixed number of tokens.

use ndarray::{ArrayD, IxDyn};

use super::continued::continued;
use super::sizes::ResizedFactors;
use crate::anatomy::{TokenAxis, WeightKind, WeightUse, token_axes, weight_uses};
use crate::axes::arithmetic::{ConstValue, Number};
use crate::axes::resize::{LinearCombination, ResizePlan, resize};
use crate::axes::{Factor, Typing};
use crate::data::PlaceTable;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, Attributes, data_inputs, declare_dim, declared_dims};
use crate::onnx::{DataType, Model, data_type, is_float, node_label, to_f32, to_i64};

/// Tokens at most.
const MOST: usize = 1 << 16;

/// Gives a model a fixed number of tokens. The first rows of a learned position table stay; where there are more tokens
/// than it has rows, these are interpolated linearly between the first and the last. Of places that are computed
/// nothing but the shape changes.
///
/// # Errors
/// [`ErrorKind::Usage`] for a number that cannot be, or that windows do not divide; [`ErrorKind::Unsupported`] where
/// the model takes no tokens, or two kinds of them, or holds a table for fewer tokens whose rule is not seen.
pub fn resize_tokens(model: &Model, tokens: usize) -> Result<Model> {
    if tokens == 0 || tokens > MOST {
        bail!(Usage, "the number of tokens must be between 1 and {MOST}, not {tokens}");
    }
    let axis = the_axis(&Typing::new(model)?)?;
    let table = PlaceTable::of(model);
    if let Some(PlaceTable { rows, by: Some(by), .. }) = table.as_ref().filter(|t| t.rows < tokens) {
        let what = format!("`{by}` says the place of each token, and the model has {rows} places, not {tokens}");
        return Err(Error::new(ErrorKind::Usage, what).hint(format!("give at most {rows} tokens")));
    }
    let table = table.filter(|table| table.by.is_none());
    let base = base(model, &axis, table.as_ref(), tokens);
    let typing = Typing::new(&base)?;
    let factor = the_axis(&typing)?.factor;
    let mut out = base.clone();
    if let Some(plan) = Sequence::new(&typing, factor, tokens, table)?.plan()? {
        out.proto.graph = Some(resize(&typing, &plan)?);
    }
    declare(&mut out, &axis, tokens);
    check(&mut out, tokens)?;
    Ok(out)
}

/// The only axis of tokens.
fn the_axis(typing: &Typing) -> Result<TokenAxis> {
    let mut axes = token_axes(typing);
    let first = |axis: &TokenAxis| axis.inputs.first().map_or(String::new(), |(name, _)| format!("`{name}`"));
    match &axes[..] {
        [_] => Ok(axes.remove(0)),
        [] => {
            let inputs: Vec<String> = data_inputs(typing.graph).iter().map(|v| v.name().to_string()).collect();
            let hint = match typing.image_input() {
                Some(_) => "leave ⟦tokens⟧ out; another size of images is given with ⟦image-size⟧",
                None => "leave ⟦tokens⟧ out",
            };
            let what = format!("none of its inputs ({}) takes the tokens of a sequence", graph::listed(&inputs));
            Err(Error::new(ErrorKind::Unsupported, what).hint(hint))
        }
        [_, ..] => {
            let several = axes.iter().map(first).collect::<Vec<_>>().join(" and ");
            Err(Error::new(ErrorKind::Unsupported, format!("{several} have a number of tokens each, not one"))
                .hint("leave ⟦tokens⟧ out, and export the model with fixed sizes"))
        }
    }
}

/// The model with a number of tokens that its tables were made for: from there they are cut or continued. Where it has
/// no such table, its number is the new one.
fn base(model: &Model, axis: &TokenAxis, table: Option<&PlaceTable>, tokens: usize) -> Model {
    let with = |n: usize| {
        let mut model = model.clone();
        declare(&mut model, axis, n);
        model
    };
    let own = axis.inputs.iter().find_map(|(name, at)| {
        let input = data_inputs(model.graph()).into_iter().find(|v| v.name() == name)?;
        declared_dims(input)?.get(*at).copied().flatten()
    });
    let whole = with(table.map_or(tokens, PlaceTable::places));
    match own {
        // A graph that counts its tokens takes another number of them as it is.
        Some(own) if Typing::new(&whole).is_err() => with(own),
        _ => whole,
    }
}

/// Declares a number of tokens.
fn declare(model: &mut Model, axis: &TokenAxis, tokens: usize) {
    let graph = model.graph_mut();
    for (name, at) in &axis.inputs {
        graph.input.iter_mut().filter(|v| v.name() == name).for_each(|info| declare_dim(info, *at, tokens));
    }
    graph::forget_shapes(graph);
}

/// The child types without contradictions, has a place for every token, and says how many tokens its outputs have.
fn check(child: &mut Model, tokens: usize) -> Result<()> {
    let wrong = |why: String| {
        Error::new(ErrorKind::Unsupported, format!("the graph cannot be given {tokens} tokens: {why}"))
            .hint("export the model for as many tokens, or with their number open")
    };
    let mut outputs = Vec::new();
    {
        let typing = Typing::new(child).map_err(|e| wrong(e.marked()))?;
        let factor = the_axis(&typing)?.factor;
        for (at, info) in child.graph().output.iter().enumerate() {
            let dims = typing.dims.get(info.name()).into_iter().flatten().enumerate();
            let along = dims.filter(|(_, dim)| typing.factors.leaves(dim)[..] == [typing.factors.root(factor)]);
            outputs.extend(along.map(|(axis, _)| (at, axis)));
        }
        if let Some((node, row, rows)) = beyond(&typing) {
            return Err(wrong(format!("it looks up row {row} of a table of {rows}")).in_node(node));
        }
    }
    if let Some(table) = PlaceTable::of(child).filter(|t| t.by.is_none() && t.places() < tokens) {
        return Err(wrong(format!("its table `{}` has places for {}", table.name, table.places())));
    }
    let graph = child.graph_mut();
    outputs.into_iter().for_each(|(at, axis)| declare_dim(&mut graph.output[at], axis, tokens));
    Ok(())
}

/// A node that looks up a row at a known place where there is none, that place, and how many there are.
fn beyond(typing: &Typing) -> Option<(String, i64, usize)> {
    typing.graph.node.iter().filter(|n| n.op_type() == "Gather").find_map(|node| {
        let shape = typing.shape(node.input.first()?)?;
        let rows = *shape.get(graph::resolve_axis(node.int("axis").unwrap_or(0), shape.len())?)?;
        let places = known(typing, node.input.get(1)?)?;
        let none = places.ints().into_iter().find(|&row| row >= rows as i64 || row < -(rows as i64))?;
        Some((node_label(node), none, rows))
    })
}

/// The elements of a value, where they are known.
fn known(typing: &Typing, value: &str) -> Option<ConstValue> {
    typing.known.get(value).cloned().or_else(|| ConstValue::read(typing.weights.get(value)?))
}

/// Plans what becomes of the tables of a graph that is given another number of tokens.
struct Sequence<'t, 'm> {
    typing: &'t Typing<'m>,
    sizes: ResizedFactors<'t, 'm>,
    kinds: Vec<WeightUse>,
    axis: Factor,
    /// The number, and the one that the graph has.
    tokens: usize,
    own: usize,
    table: Option<PlaceTable>,
    plan: ResizePlan,
}

impl<'t, 'm> Sequence<'t, 'm> {
    fn new(typing: &'t Typing<'m>, axis: Factor, tokens: usize, table: Option<PlaceTable>) -> Result<Self> {
        let sizes = ResizedFactors::of_tokens(typing, axis, tokens)?;
        let (kinds, plan) = (weight_uses(typing), ResizePlan::default());
        let own = typing.factors.factor_size(axis);
        Ok(Sequence { typing, sizes, kinds, axis: typing.factors.root(axis), tokens, own, table, plan })
    }

    /// `None` where nothing changes.
    fn plan(mut self) -> Result<Option<ResizePlan>> {
        let factors = &self.typing.factors;
        let mut changed: Vec<(Factor, usize)> = self.sizes.new.iter().map(|(&f, &n)| (f, n)).collect();
        changed.sort_unstable();
        for (f, n) in changed {
            // The first rows of every table stay.
            let last = factors.factor_size(f) - 1;
            self.plan.gather(factors, f, (0..n).map(|i| i.min(last)).collect())?;
        }
        for (k, axis, first, last) in std::mem::take(&mut self.sizes.cuts) {
            self.plan.cut(k, axis, first, last);
        }
        if let Some(table) = self.table.take().filter(|table| table.counted) {
            self.counted(&table)?;
        }
        self.looked_up()?;
        for u in 0..self.typing.uses.len() {
            let of_use = &self.typing.uses[u];
            let changed: Vec<usize> = (0..of_use.dims.len()).filter(|&a| self.sizes.changed(&of_use.dims[a])).collect();
            if !changed.is_empty() && self.tokens > self.own {
                let label = node_label(&self.typing.graph.node[of_use.node]);
                self.longer(u, &changed).map_err(|e| e.in_node(label))?;
            }
        }
        Ok((!self.plan.is_empty()).then_some(self.plan))
    }

    /// Tables whose rows are looked up in order, one for each token: as many stay or come as there are tokens.
    fn looked_up(&mut self) -> Result<()> {
        for u in 0..self.typing.uses.len() {
            let of_use = &self.typing.uses[u];
            let (node_at, node) = (of_use.node, &self.typing.graph.node[of_use.node]);
            let is_table = of_use.input == 0 && is_float(self.typing.weights[of_use.name.as_str()]);
            if node.op_type() != "Gather" || !is_table || node.int("axis").unwrap_or(0) != 0 {
                continue;
            }
            let index = node.input.get(1).map(String::as_str).unwrap_or_default();
            let of_index = self.sizes.operand(of_use.node, 1).or_else(|| self.typing.dims.get(index)).cloned();
            let of_index = of_index.unwrap_or_default();
            let changed: Vec<usize> = (0..of_index.len()).filter(|&a| self.sizes.changed(&of_index[a])).collect();
            let Some(places) = known(self.typing, index).filter(|_| !changed.is_empty()) else { continue };
            let all = places.ints();
            let Some(&first) = all.first().filter(|_| all.len() == self.own) else { continue };
            if self.own > 1 && first >= 0 && all.iter().zip(first..).all(|(&place, next)| place == next) {
                self.table_of(u, first as usize)?;
            }
            // What is taken of a list of places, or of kinds of tokens, would end with it.
            if let (true, Some(data)) = (self.tokens > self.own, continued(&places.data, &changed, self.tokens)) {
                let made =
                    ConstValue { number: places.number, data }.tensor(&format!("{index}_longer"), DataType::Int64);
                made.into_iter().for_each(|index| self.plan.operand(node_at, 1, index));
            }
        }
        Ok(())
    }

    /// A position table whose places are counted: its rows, and what else has one for each of them.
    fn counted(&mut self, table: &PlaceTable) -> Result<()> {
        for u in 0..self.typing.uses.len() {
            let of_use = &self.typing.uses[u];
            let tensor = self.typing.weights[of_use.name.as_str()];
            if of_use.name == table.name && of_use.input == 0 {
                self.table_of(u, table.first)?;
            } else if !is_float(tensor)
                && self.tokens > table.places()
                && let Some(axis) = tensor.shape().iter().position(|&n| n == table.rows)
                && !self.sizes.changed(&of_use.dims[axis])
            {
                let rows = table.first + self.tokens;
                let unknown = || unknown(&of_use.name, &tensor.dims, self.own);
                let [row] = self.typing.factors.leaves(&of_use.dims[axis])[..] else { return Err(unknown()) };
                let values = continued(&self.values(u)?, &[axis], rows).ok_or_else(unknown)?;
                self.plan.gather(&self.typing.factors, row, (0..rows).map(|i| i.min(table.rows - 1)).collect())?;
                self.replace(u, values)?;
            }
        }
        Ok(())
    }

    /// The rows of a table of places, the first of which stand for none: those of the tokens, more where it has fewer.
    fn table_of(&mut self, u: usize, first: usize) -> Result<()> {
        let dim = &self.typing.uses[u].dims[0];
        let (own, rows) = (self.typing.factors.size(dim), first + self.tokens);
        // What is not looked up may stay where there are more tokens than before.
        let [row] = self.typing.factors.leaves(dim)[..] else { return Ok(()) };
        if rows == own || (rows < own && self.tokens > self.own) {
            return Ok(());
        }
        self.plan.gather(&self.typing.factors, row, (0..rows).map(|i| i.min(own - 1)).collect())?;
        if rows > own { self.rows(u, 0, first) } else { Ok(()) }
    }

    /// More rows of a learned table along an axis, the first of which stand for no place.
    fn rows(&mut self, u: usize, axis: usize, first: usize) -> Result<()> {
        let values = self.values(u)?;
        let places = values.slice_axis(ndarray::Axis(axis), (first..).into()).to_owned();
        let (own, tokens) = (places.len_of(ndarray::Axis(axis)), self.tokens);
        // A table that was computed goes on as it was.
        if first == 0
            && let Some(values) = continued(&places, &[axis], tokens)
        {
            return self.replace(u, values);
        }
        let same = (0..first).map(|i| vec![(i, 1.0)]);
        let shift = |row: Vec<(usize, f32)>| row.into_iter().map(|(i, c)| (first + i, c)).collect();
        self.plan.mix(u, axis, same.chain(between(own, tokens).into_iter().map(shift)).collect());
        Ok(())
    }

    /// A table that lies along the tokens, of which there are more.
    fn longer(&mut self, u: usize, changed: &[usize]) -> Result<()> {
        let of_use = &self.typing.uses[u];
        let tensor = self.typing.weights[of_use.name.as_str()];
        let unknown = || unknown(&of_use.name, &tensor.dims, self.own);
        let is_whole = |&a: &usize| self.typing.factors.leaves(&of_use.dims[a])[..] == [self.axis];
        if !changed.iter().all(is_whole) {
            return Err(unknown());
        }
        if let ([axis], WeightKind::Position) = (changed, self.kinds[u].kind) {
            return self.rows(u, *axis, 0);
        }
        let values = continued(&self.values(u)?, changed, self.tokens).ok_or_else(unknown)?;
        self.replace(u, values)
    }

    /// The elements of a weight.
    fn values(&self, u: usize) -> Result<ArrayD<f64>> {
        let name = &self.typing.uses[u].name;
        let tensor = self.typing.weights[name.as_str()];
        let values: Vec<f64> = match is_float(tensor) {
            true => to_f32(tensor)?.into_iter().map(f64::from).collect(),
            false => to_i64(tensor)?.into_iter().map(|v| v as f64).collect(),
        };
        let unknown = |_| unknown(name, &tensor.dims, self.own);
        ArrayD::from_shape_vec(IxDyn(&tensor.shape()), values).map_err(unknown)
    }

    /// Puts other elements into the place of a weight.
    fn replace(&mut self, u: usize, data: ArrayD<f64>) -> Result<()> {
        let of_use = &self.typing.uses[u];
        let tensor = self.typing.weights[of_use.name.as_str()];
        let number = if is_float(tensor) { Number::Float } else { Number::Integer };
        let made = data_type(tensor).and_then(|kind| ConstValue { number, data }.tensor(&of_use.name, kind));
        let Some(made) = made else { return Err(unknown(&of_use.name, &tensor.dims, self.own)) };
        self.plan.operand(of_use.node, of_use.input, made);
        Ok(())
    }
}

fn unknown(name: &str, shape: &[i64], tokens: usize) -> Error {
    let what = format!("`{name}` {shape:?} was made for at most {tokens} tokens, in a way that is not understood");
    Error::new(ErrorKind::Unsupported, what)
        .hint(format!("give at most {tokens} tokens, or export the model for as many as are wanted"))
}

/// Linear interpolation of `n` rows to `m`, the first and the last of which stay what they are: the first is often that
/// of a token for the whole text.
fn between(n: usize, m: usize) -> LinearCombination {
    let step = (n - 1) as f64 / (m - 1).max(1) as f64;
    let row = |i: usize| {
        let x = step * i as f64;
        let below = (x as usize).min(n - 1);
        let share = (x - below as f64) as f32;
        let terms = [(below, 1.0 - share), ((below + 1).min(n - 1), share)];
        terms.into_iter().filter(|(_, c)| *c != 0.0).collect()
    };
    (0..m).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of numpy.interp(numpy.linspace(0, 3, 6), range(4), [1.0, -2.0, 0.5, 3.0]) (NumPy 2.5.5).
    #[test]
    fn rows_are_interpolated_between_their_ends() {
        let x = [1.0, -2.0, 0.5, 3.0];
        let found: Vec<f32> = between(4, 6).iter().map(|row| row.iter().map(|&(i, c)| c * x[i]).sum::<f32>()).collect();
        let expected = [1.0, -0.8, -1.5, 0.0, 1.5, 3.0];
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?}");
    }
}
