//! Scales: a constant factor behind a matrix becomes part of it.
//!
//! A layer scale, or the scale of attention scores where it stands between a projection and its product, multiplies what MatMul or
//! Gemm with a weight made. The columns of the weight and the bias take the factor over, and the node goes. The same function comes
//! out, up to the rounding of float32.

use std::collections::HashMap;

use crate::error::Result;
use crate::graph::{self, Attributes, Links};
use crate::onnx::proto::{GraphProto, TensorProto};
use crate::onnx::{DataType, data_type, element_count, tensor_from_f32, to_f32};

/// Moves constant factors into the matrices before them, where nothing else sees what is between.
///
/// # Errors
/// [`crate::error::ErrorKind::Format`] for tensors that cannot be read.
pub(super) fn fold_scales(graph: &mut GraphProto) -> Result<()> {
    let mut new: HashMap<String, TensorProto> = HashMap::new();
    let mut renamed: HashMap<String, String> = HashMap::new();
    {
        let scales = Scales {
            graph,
            links: Links::new(graph),
            tensors: graph.initializer.iter().map(|t| (t.name(), t)).collect(),
        };
        for (k, node) in graph.node.iter().enumerate() {
            let Some((value, factor)) = scales.factor(k)? else { continue };
            let Some(targets) = scales.targets(value, factor.len()) else { continue };
            // A weight takes one factor; the next fold takes the next.
            if targets.iter().any(|t| new.contains_key(*t)) {
                continue;
            }
            for name in targets {
                new.insert(name.to_string(), scaled(scales.tensors[name], &factor)?);
            }
            renamed.insert(node.output[0].clone(), value.to_string());
        }
    }
    if renamed.is_empty() {
        return Ok(());
    }
    for t in &mut graph.initializer {
        if let Some(scaled) = new.remove(t.name()) {
            *t = scaled;
        }
    }
    for x in graph.node.iter_mut().flat_map(|n| &mut n.input) {
        // What is renamed may itself have been put in the place of another.
        while let Some(value) = renamed.get(x) {
            *x = value.clone();
        }
    }
    graph::prune(graph);
    Ok(())
}

struct Scales<'g> {
    graph: &'g GraphProto,
    links: Links<'g>,
    tensors: HashMap<&'g str, &'g TensorProto>,
}

impl<'g> Scales<'g> {
    /// What node `k` multiplies by constants, and these: one, or one for each element of the last axis.
    fn factor(&self, k: usize) -> Result<Option<(&'g str, Vec<f32>)>> {
        let node = &self.graph.node[k];
        let [a, b] = &node.input[..] else { return Ok(None) };
        let (value, constant) = match (node.op_type(), self.tensors.get(a.as_str()), self.tensors.get(b.as_str())) {
            ("Mul" | "Div", None, Some(t)) => (a, t),
            ("Mul", Some(t), None) => (b, t),
            _ => return Ok(None),
        };
        let last = constant.dims.last().map_or(1, |&d| d as usize);
        if data_type(constant) != Some(DataType::Float)
            || element_count(constant)? != last
            || self.graph.output.iter().any(|o| o.name() == node.output[0])
        {
            return Ok(None);
        }
        let mut factor = to_f32(constant)?;
        if node.op_type() == "Div" {
            factor.iter_mut().for_each(|f| *f = 1.0 / *f);
        }
        let finite = factor.iter().all(|f| f.is_finite());
        Ok(finite.then_some((value.as_str(), factor)))
    }

    /// The weights that a factor of `length` elements behind `value` goes into.
    fn targets(&self, value: &'g str, length: usize) -> Option<Vec<&'g str>> {
        let alone =
            |value: &str| self.links.users(value).len() == 1 && !self.graph.output.iter().any(|o| o.name() == value);
        let weight = |name: &'g str, dims: usize| {
            let t = self.tensors.get(name)?;
            (alone(name) && t.dims.len() == dims && data_type(t) == Some(DataType::Float)).then_some(name)
        };
        let mut targets = Vec::new();
        let mut value = value;
        let mut columns = None;
        loop {
            if !alone(value) {
                return None;
            }
            let node = &self.graph.node[*self.links.maker.get(value)?];
            let input = |i: usize| node.input.get(i).map(String::as_str);
            match (node.op_type(), columns) {
                // A single factor passes what only moves elements.
                ("Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Identity", None) if length == 1 => {
                    value = input(0)?
                }
                ("Add", None) => {
                    let (x, bias) = match weight(input(1)?, 1) {
                        Some(bias) => (input(0)?, bias),
                        None => (input(1)?, weight(input(0)?, 1)?),
                    };
                    columns = Some(self.tensors[bias].dims[0]);
                    targets.push(bias);
                    value = x;
                }
                ("MatMul", _) => {
                    let matrix = weight(input(1)?, 2)?;
                    let made = self.tensors[matrix].dims[1];
                    targets.push(matrix);
                    return self.fits(columns, made, length).then_some(targets);
                }
                ("Gemm", None) => {
                    let matrix = weight(input(1)?, 2)?;
                    let plain = node.int("transB").unwrap_or(0) == 0 || length == 1;
                    let unscaled = [node.float("alpha"), node.float("beta")].iter().all(|s| s.is_none_or(|s| s == 1.0));
                    targets.push(matrix);
                    if let Some(bias) = input(2).filter(|b| !b.is_empty()) {
                        targets.push(weight(bias, 1)?);
                    }
                    let made = self.tensors[matrix].dims[1];
                    return (plain && unscaled && self.fits(None, made, length)).then_some(targets);
                }
                _ => return None,
            }
        }
    }

    fn fits(&self, bias: Option<i64>, columns: i64, length: usize) -> bool {
        bias.is_none_or(|b| b == columns) && (length == 1 || length as i64 == columns)
    }
}

fn scaled(tensor: &TensorProto, factor: &[f32]) -> Result<TensorProto> {
    let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
    let mut data = to_f32(tensor)?;
    data.iter_mut().zip(factor.iter().cycle()).for_each(|(v, f)| *v *= f);
    Ok(tensor_from_f32(tensor.name(), DataType::Float, &dims, &data))
}
