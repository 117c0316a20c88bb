//! Sites: the matrices that are fitted, with what enters and leaves them.
//!
//! Every layer has two: the output projection of its attention, which sums over heads, and the last matrix of its FFN,
//! which sums over neurons. What a linear layer adds to the residual stream may pass a layer scale, windows, shifts and
//! changes of layout on its way. No operator of that way is looked at: it is run on probes, which tell where every
//! element goes and by how much it is scaled.

use std::collections::HashSet;
use std::sync::Arc;

use ndarray::{Array2, ArrayD, Axis, IxDyn};

use super::layout::MatrixLayout;
use super::subgraph::{Subgraph, Values};
use crate::anatomy::{Anatomy, Roles};
use crate::axes::{Dim, Factor, Typing};
use crate::error::Result;
use crate::graph::{Attributes, Links, Names};
use crate::learngene::BlockKind;
use crate::onnx::{DataType, Model, data_type, element_count, tensor_from_f32, to_f32};
use crate::runtime::Runtime;

/// A matrix that is fitted.
#[derive(Clone, Debug)]
pub struct TargetLinear {
    /// The layer.
    pub layer: usize,
    /// What it sums over.
    pub kind: BlockKind,
    /// The value that enters it.
    pub input: String,
    /// The value that leaves it, behind its bias.
    pub output: String,
    /// Heads or neurons; one where they have no axis of their own.
    pub units: usize,
    /// Features of a unit.
    pub size: usize,
    /// True where units have an axis of their own.
    pub divides: bool,
    /// Columns of the matrix.
    pub outputs: usize,
    /// The value of the residual stream that it adds to.
    pub skip: Option<String>,
    sum: Option<String>,
    /// The weights of a matrix that is used several times by design; none of any other.
    shared: Vec<String>,
    node: usize,
    operand: usize,
    bias: Option<(usize, usize)>,
    input_layout: MatrixLayout,
    output_layout: MatrixLayout,
    weight: MatrixLayout,
    /// The factors of its rows.
    pub(super) rows_over: Vec<Factor>,
}

/// The linear layers of a pinned model in order of execution, and what is to be said about layers that have none.
pub fn find_targets(typing: &Typing, anatomy: &Anatomy) -> (Vec<TargetLinear>, Vec<String>) {
    let finder = TargetFinder::new(typing);
    let (mut found, mut warnings) = (Vec::new(), Vec::new());
    for (layer, a) in anatomy.layers.iter().enumerate() {
        match finder.linear(layer, BlockKind::Heads, a.projection, a.head_factor(typing), a.sum.clone()) {
            Some(linear) => found.push(linear),
            None if !a.has_projection(typing) => {}
            None => warnings.push(format!("layer {layer}: the output projection has a form that is not fitted")),
        }
        let Some(ffn) = a.ffn() else { continue };
        match finder.linear(layer, BlockKind::Neurons, ffn.down, ffn.hidden_factor(typing), ffn.sum.clone()) {
            Some(linear) => found.push(linear),
            None => warnings.push(format!("layer {layer}: the last matrix of the FFN has a form that is not fitted")),
        }
    }
    found.sort_by_key(|s| s.node);
    (found, warnings)
}

/// Finds matrices with what enters and leaves them.
pub(super) struct TargetFinder<'t, 'm> {
    typing: &'t Typing<'m>,
    pub(super) roles: Roles<'t, 'm>,
    links: &'t Links<'m>,
}

impl<'t, 'm> TargetFinder<'t, 'm> {
    pub(super) fn new(typing: &'t Typing<'m>) -> Self {
        TargetFinder { typing, roles: Roles::new(typing), links: typing.links() }
    }

    /// The linear layer of contraction `k`, which sums over the units of `factor` where one is named.
    pub(super) fn linear(
        &self,
        layer: usize,
        kind: BlockKind,
        k: usize,
        factor: Option<Factor>,
        sum: Option<(String, String)>,
    ) -> Option<TargetLinear> {
        let typing = self.typing;
        let node = &typing.graph.node[k];
        if node.int("group").unwrap_or(1) != 1 || node.op_type() == "Gemm" && node.int("transA").unwrap_or(0) != 0 {
            return None;
        }
        let operand = (0..2).find(|&j| node.input.get(j).is_some_and(|x| typing.is_constant(x)))?;
        let input = node.input.get(1 - operand)?;
        let contraction = typing.contractions.iter().find(|c| c.node == k)?;
        let summed = typing.factors.leaves(&contraction.summed);
        let own = typing.uses.iter().find(|u| u.node == k && u.input == operand).map(|u| &u.dims);
        let dims = own.or_else(|| typing.dims.get(node.input[operand].as_str()))?;
        let made: Vec<Factor> =
            dims.iter().flat_map(|d| typing.factors.leaves(d)).filter(|f| !summed.contains(f)).collect();
        let input_layout = typing.dims.get(input.as_str())?;
        let all = |dims: &[Dim]| -> Vec<Factor> { dims.iter().flat_map(|d| typing.factors.leaves(d)).collect() };
        let factor = factor.map(|f| typing.factors.root(f)).filter(|f| summed.contains(f));
        let mut features: Vec<Factor> = factor.into_iter().collect();
        features.extend(all(input_layout).into_iter().filter(|f| summed.contains(f) && Some(*f) != factor));
        if features.len() != summed.len() {
            return None;
        }
        let bias = self.roles.bias_at(k).map(|(node, slot, _)| (node, slot));
        let output = bias.map_or(node, |(k, _)| &typing.graph.node[k]).output.first()?;
        let leaving = typing.dims.get(output.as_str())?;
        let outputs: Vec<Factor> = all(leaving).into_iter().filter(|f| made.contains(f)).collect();
        if outputs.len() != made.len() {
            return None;
        }
        let columns = typing.factors.size(&outputs);
        if let Some((k, slot)) = bias
            && elements(typing, &typing.graph.node[k].input[slot])? != columns
        {
            return None;
        }
        // Scales of a Gemm are not looked at.
        if [node.float("alpha"), node.float("beta")].iter().any(|s| s.is_some_and(|s| s != 1.0)) {
            return None;
        }
        let (rows_in, rows_out) = (
            all(input_layout).iter().filter(|f| !features.contains(f)).copied().collect::<Vec<_>>(),
            all(leaving).iter().filter(|f| !outputs.contains(f)).copied().collect::<Vec<_>>(),
        );
        if rows_in != rows_out && typing.factors.sizes(&rows_in) != typing.factors.sizes(&rows_out) {
            return None;
        }
        let units = factor.map_or(1, |f| typing.factors.factor_size(f));
        let (skip, sum) = sum.unzip();
        // A skip value that is made behind the linear layer would be needed before it is there.
        let early = |v: &String| self.links.maker(v).is_none_or(|m| m < k);
        let (skip, sum) = if skip.as_ref().is_some_and(early) { (skip, sum) } else { (None, None) };
        Some(TargetLinear {
            layer,
            kind,
            input: input.clone(),
            output: output.clone(),
            units,
            size: typing.factors.size(&features) / units.max(1),
            divides: factor.is_some(),
            outputs: columns,
            skip,
            sum,
            shared: self.shared(k),
            node: k,
            operand,
            bias,
            input_layout: MatrixLayout::new(typing, input_layout, &features)?,
            output_layout: MatrixLayout::new(typing, leaving, &outputs)?,
            weight: MatrixLayout::new(typing, dims, &[features.clone(), outputs].concat())?,
            rows_over: rows_in,
        })
    }

    /// The names of a shared matrix and of its bias.
    fn shared(&self, k: usize) -> Vec<String> {
        let matrix = self.roles.shared(k);
        let bias = self.roles.bias(k).filter(|_| !matrix.is_empty()).map(|u| self.typing.uses[u].name.as_str());
        matrix.into_iter().chain(bias).map(str::to_string).collect()
    }
}

/// For every linear layer the first one with the same matrix: itself, where that is used once.
pub(super) fn first_uses(linears: &[TargetLinear]) -> Vec<usize> {
    let same = |a: &TargetLinear, b: &TargetLinear| !a.shared.is_empty() && (a.kind, &a.shared) == (b.kind, &b.shared);
    (0..linears.len()).map(|i| (0..i).find(|&j| same(&linears[j], &linears[i])).unwrap_or(i)).collect()
}

/// Elements of a fixed value: a weight, or what is computed from weights.
fn elements(typing: &Typing, name: &str) -> Option<usize> {
    match typing.weights.get(name) {
        Some(t) => element_count(t).ok(),
        None => Some(typing.shape(name)?.iter().product()),
    }
}

impl TargetLinear {
    /// Features: heads times head dimension, or neurons.
    pub fn features(&self) -> usize {
        self.units * self.size
    }

    /// Its node.
    pub(super) fn node(&self) -> usize {
        self.node
    }

    /// Makes `value`, which this layer's output feeds, the end of [`Self::residual_path`].
    pub(super) fn trace_to(&mut self, value: &str) {
        self.sum = Some(value.to_string());
    }

    /// True where a bias stands behind the matrix.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    /// The features that enter, rows x features, unit by unit.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Internal`] where the value is not there or of another shape.
    pub fn rows(&self, values: &Values) -> Result<Array2<f32>> {
        match values.get(&self.input) {
            Some(value) => self.input_layout.matrix(value),
            None => bail!(Internal, "the value `{}` was not kept", self.input),
        }
    }

    /// What leaves as the value that the graph has there.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Internal`] for a matrix of another shape.
    pub fn leaving(&self, typing: &Typing, rows: &Array2<f32>) -> Result<ArrayD<f32>> {
        self.output_layout.tensor(rows, &typing.shape(&self.output).unwrap_or_default())
    }

    /// The matrix (features x outputs) and the bias, zero where there is none.
    ///
    /// # Errors
    /// Those of the runtime, for a matrix that the graph computes from weights.
    pub fn matrix(&self, runtime: &Arc<Runtime>, typing: &Typing, model: &Model) -> Result<(Array2<f32>, Vec<f32>)> {
        let value = |name: &String| -> Result<Vec<f32>> {
            if let Some(t) = typing.weights.get(name.as_str()) {
                return to_f32(t);
            }
            let part = Subgraph::cut(runtime, typing, model, Vec::new(), vec![name.clone()]);
            Ok(part.run(&Values::new())?.into_iter().flatten().collect())
        };
        let name = &typing.graph.node[self.node].input[self.operand];
        let bias = match self.bias {
            Some((node, input)) => value(&typing.graph.node[node].input[input])?,
            None => vec![0.0; self.outputs],
        };
        let value = value(name)?;
        let flat = ArrayD::from_shape_vec(IxDyn(&[value.len()]), value).unwrap_or_default();
        let whole = self.weight.flat().matrix(&flat)?;
        let matrix = whole.into_shape_with_order((self.features(), self.outputs));
        let Ok(matrix) = matrix else { bail!(Internal, "the matrix `{name}` has an unexpected shape") };
        Ok((matrix, bias))
    }

    /// Puts a matrix and a bias into a model whose nodes are those of the typed graph that the linear layer was found
    /// in. `again` are the other linear layers that have the same matrix.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Internal`] for shapes that do not fit.
    pub fn write(
        &self,
        again: &[&TargetLinear],
        typing: &Typing,
        model: &mut Model,
        matrix: &Array2<f32>,
        bias: &[f32],
    ) -> Result<()> {
        let shape = |node: usize, input: usize| {
            let name = typing.graph.node[node].input[input].as_str();
            typing.weights.get(name).map(|t| t.shape()).or(typing.shape(name))
        };
        let flat = matrix.as_standard_layout().into_owned().into_shape_with_order((1, matrix.len()));
        let Ok(flat) = flat else { bail!(Internal, "a matrix that is not contiguous") };
        let weight = self.weight.flat().tensor(&flat, &shape(self.node, self.operand).unwrap_or_default())?;
        let all = || std::iter::once(self).chain(again.iter().copied());
        let places: Vec<_> = all().map(|s| (s.node, s.operand)).collect();
        put(model, typing, &places, weight.shape(), &weight.iter().copied().collect::<Vec<_>>());
        if let Some((node, input)) = self.bias {
            let places: Vec<_> = all().filter_map(|s| s.bias).collect();
            put(model, typing, &places, &shape(node, input).unwrap_or_default(), bias);
        }
        Ok(())
    }

    /// Finds how what leaves reaches the residual stream; `None` where it passes something that is no selection and
    /// scale (a norm), or where the stream is not known.
    ///
    /// # Errors
    /// Those of the runtime.
    pub fn residual_path(
        &self,
        runtime: &Arc<Runtime>,
        typing: &Typing,
        model: &Model,
    ) -> Result<Option<ResidualPath>> {
        let Some(sum) = &self.sum else { return Ok(None) };
        let feeds = self.beside(typing, sum);
        if feeds.contains(sum) {
            // What leaves does not reach it.
            return Ok(None);
        }
        let part = Subgraph::cut(runtime, typing, model, feeds.clone(), vec![sum.clone()]);
        let mut values: Values =
            feeds.iter().map(|f| (f.clone(), ArrayD::zeros(IxDyn(&typing.shape(f).unwrap_or_default())))).collect();
        let rows: usize =
            typing.shape(&self.output).unwrap_or_default().iter().product::<usize>() / self.outputs.max(1);
        let mut probe = |f: &dyn Fn(usize, usize) -> f32| -> Result<ArrayD<f32>> {
            let matrix = Array2::from_shape_fn((rows, self.outputs), |(r, c)| f(r, c));
            values.insert(self.output.clone(), self.leaving(typing, &matrix)?);
            Ok(part.run(&values)?.into_iter().next().unwrap_or_default())
        };
        let zero = probe(&|_, _| 0.0)?;
        let gain = probe(&|_, _| 1.0)? - &zero;
        let (row, column) = (probe(&|r, _| r as f32)? - &zero, probe(&|_, c| c as f32)? - &zero);
        let mixed = |r: usize, c: usize| ((r * 7 + c * 13) % 31) as f32 / 31.0 - 0.5;
        let check = probe(&mixed)? - &zero;
        let largest = gain.iter().fold(0f32, |a, g| a.max(g.abs()));
        let mut way = ResidualPath { source: vec![usize::MAX; rows * self.outputs], gain: vec![0.0; self.outputs] };
        for (at, &g) in gain.iter().enumerate() {
            let found = check.as_slice().and_then(|p| p.get(at)).copied().unwrap_or(f32::NAN);
            if g.abs() <= 1e-6 * largest {
                // A norm maps equal values to zero: a zero gain that still changes the value means that a norm lies on
                // the path.
                if found.abs() > 1e-5 * largest.max(1.0) {
                    return Ok(None);
                }
                continue;
            }
            let index = |probe: &ArrayD<f32>| probe.as_slice().and_then(|p| p.get(at)).map(|v| (v / g).round());
            let (Some(r), Some(c)) = (index(&row), index(&column)) else { return Ok(None) };
            let (r, c) = (r as usize, c as usize);
            let sound =
                r < rows && c < self.outputs && (found - g * mixed(r, c)).abs() <= 1e-3 * g.abs() + 1e-6 * largest;
            let known = sound && (way.gain[c] == 0.0 || (way.gain[c] - g).abs() <= 1e-3 * g.abs() + 1e-6 * largest);
            if !known {
                return Ok(None);
            }
            way.source[r * self.outputs + c] = at;
            if way.gain[c] == 0.0 {
                way.gain[c] = g;
            }
        }
        Ok(Some(way))
    }

    /// Values besides what leaves the linear layer that the sum is computed from.
    fn beside(&self, typing: &Typing, sum: &str) -> Vec<String> {
        let links = typing.links();
        let behind: HashSet<usize> = links.downstream([self.output.as_str()]).collect();
        let is_beside = |v: &str| links.maker(v).is_none_or(|k| !behind.contains(&k));
        let needed = links.upstream([sum]).along(|v| v != self.output && !typing.is_constant(v)).until(is_beside);
        let beside = needed.filter(|v| is_beside(v)).map(str::to_string);
        std::iter::once(self.output.clone()).chain(beside).collect()
    }
}

/// Gives a weight new elements at some places: under its old name where nothing else uses it.
fn put(model: &mut Model, typing: &Typing, places: &[(usize, usize)], shape: &[usize], data: &[f32]) {
    let Some(&(node, input)) = places.first() else { return };
    let old = typing.graph.node[node].input[input].clone();
    let kind = typing.weights.get(old.as_str()).and_then(|t| data_type(t)).unwrap_or(DataType::Float);
    let uses = typing.graph.node.iter().flat_map(|n| &n.input).filter(|x| **x == old).count();
    let alone = uses == places.iter().filter(|(k, j)| typing.graph.node[*k].input[*j] == old).count();
    let graph = model.graph_mut();
    let name = match graph.initializer.iter().position(|t| t.name() == old).filter(|_| alone) {
        Some(at) => {
            graph.initializer[at] = tensor_from_f32(old.clone(), kind, shape, data);
            old
        }
        None => {
            let name = Names::new(graph).fresh(&format!("{old}_fitted"));
            graph.initializer.push(tensor_from_f32(name.clone(), kind, shape, data));
            name
        }
    };
    // Nodes of the model are those of the typed graph.
    for &(k, j) in places {
        if let Some(x) = graph.node.get_mut(k).and_then(|n| n.input.get_mut(j)) {
            x.clone_from(&name);
        }
    }
}

/// The path from the output of a target linear layer to the residual stream: a selection and a scale.
#[derive(Clone, Debug, PartialEq)]
pub struct ResidualPath {
    /// The place in the stream of every element (row by row); none where it is cut off.
    source: Vec<usize>,
    /// What every column is multiplied by (a layer scale).
    pub gain: Vec<f32>,
}

impl ResidualPath {
    /// The place in the target of every element, row by row; `usize::MAX` where it is cut off.
    pub(super) fn source(&self) -> &[usize] {
        &self.source
    }

    /// What the output of the layer adds to the stream, in the shape of `like`.
    pub fn to_residual(&self, rows: &Array2<f32>, like: &ArrayD<f32>) -> ArrayD<f32> {
        let mut stream = ArrayD::zeros(like.raw_dim());
        if let Some(flat) = stream.as_slice_mut() {
            for ((v, &at), g) in rows.iter().zip(&self.source).zip(self.gain.iter().cycle()) {
                if let Some(s) = flat.get_mut(at) {
                    *s = v * g;
                }
            }
        }
        stream
    }

    /// The output (rows x outputs) that would change the stream by `difference`.
    pub fn output_for(&self, difference: &ArrayD<f32>) -> Array2<f32> {
        let outputs = self.gain.len();
        let flat = difference.as_standard_layout();
        let flat = flat.as_slice().unwrap_or_default();
        let mut rows = Array2::zeros((self.source.len() / outputs.max(1), outputs));
        for (mut row, source) in rows.axis_iter_mut(Axis(0)).zip(self.source.chunks(outputs.max(1))) {
            for ((v, &at), &g) in row.iter_mut().zip(source).zip(&self.gain) {
                if let Some(d) = flat.get(at)
                    && g != 0.0
                {
                    *v = d / g;
                }
            }
        }
        rows
    }
}
