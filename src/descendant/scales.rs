//! Scales: a constant factor behind a matrix becomes part of it.
//!
//! A layer scale, or the scale of attention scores where it stands between a projection and its product, multiplies
//! what MatMul or Gemm with a weight made. The columns of the weight and the bias take the factor over, and the node
//! goes. The same function comes out, up to the rounding of float32. A bias of zeros behind a product goes too.

use std::collections::HashMap;

use crate::error::Result;
use crate::graph::{self, Attributes, Links};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, data_type, element_count, tensor_from_f32, to_f32};
use crate::ops::{self, Mark};

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
            if let Some(value) = scales.beside_nothing(k)? {
                renamed.insert(node.output[0].clone(), value.to_string());
                continue;
            }
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

    /// What the Add that is node `k` adds a bias of zeros to, behind a MatMul with a weight of as many columns.
    fn beside_nothing(&self, k: usize) -> Result<Option<&'g str>> {
        let node = &self.graph.node[k];
        let [a, b] = &node.input[..] else { return Ok(None) };
        let (value, bias) = match (node.op_type(), self.tensors.get(a.as_str()), self.tensors.get(b.as_str())) {
            ("Add", None, Some(t)) => (a, t),
            ("Add", Some(t), None) => (b, t),
            _ => return Ok(None),
        };
        let made = self.links.maker(value).map(|m| &self.graph.node[m]);
        let weight = made.filter(|m| m.op_type() == "MatMul").and_then(|m| self.tensors.get(m.input.get(1)?.as_str()));
        let fits = weight.is_some_and(|w| w.dims.len() == 2 && bias.dims[..] == w.dims[1..]);
        let is_output = self.graph.output.iter().any(|o| o.name() == node.output[0]);
        if !fits || is_output || data_type(bias) != Some(DataType::Float) {
            return Ok(None);
        }
        Ok(to_f32(bias)?.iter().all(|v| *v == 0.0).then_some(value.as_str()))
    }

    /// The weights that a factor of `length` elements behind `value` goes into.
    fn targets(&self, value: &'g str, length: usize) -> Option<Vec<&'g str>> {
        let alone =
            |value: &str| self.links.users(value).len() == 1 && !self.graph.output.iter().any(|o| o.name() == value);
        let weight = |name: &'g str, dims: usize| {
            let t = self.tensors.get(name)?;
            (alone(name) && t.dims.len() == dims && data_type(t) == Some(DataType::Float)).then_some(name)
        };
        // What a bias is added to, and the bias.
        let summands = |node: &'g NodeProto| match &node.input[..] {
            [x, b] => weight(b, 1).map(|bias| (x.as_str(), bias)).or_else(|| Some((b.as_str(), weight(x, 1)?))),
            _ => None,
        };
        let before = |node: &'g NodeProto| match node.op_type() {
            "Add" => summands(node).map(|(x, _)| x),
            _ => node.input.first().map(String::as_str),
        };
        let mut targets = Vec::new();
        let mut columns = None;
        for value in self.links.follow_back(value, before) {
            if !alone(value) {
                return None;
            }
            let node = &self.graph.node[self.links.maker(value)?];
            let input = |i: usize| node.input.get(i).map(String::as_str);
            match (node.op_type(), columns) {
                // A single factor passes what only moves elements.
                (op, None) if length == 1 && ops::of(node).is(Mark::Keeps) && !matches!(op, "Cast" | "Flatten") => {}
                ("Add", None) => {
                    let (_, bias) = summands(node)?;
                    columns = Some(self.tensors[bias].dims[0]);
                    targets.push(bias);
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
        None
    }

    fn fits(&self, bias: Option<i64>, columns: i64, length: usize) -> bool {
        bias.is_none_or(|b| b == columns) && (length == 1 || length as i64 == columns)
    }
}

fn scaled(tensor: &TensorProto, factor: &[f32]) -> Result<TensorProto> {
    let dims = tensor.shape();
    let mut data = to_f32(tensor)?;
    data.iter_mut().zip(factor.iter().cycle()).for_each(|(v, f)| *v *= f);
    Ok(tensor_from_f32(tensor.name(), DataType::Float, &dims, &data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::node;

    fn graph() -> GraphProto {
        let tensor = |name: &str, dims: &[usize], data: &[f32]| tensor_from_f32(name, DataType::Float, dims, data);
        GraphProto {
            node: vec![
                node("MatMul", &["x", "w"], &["a"], vec![]),
                node("Add", &["b", "a"], &["c"], vec![]),
                node("Mul", &["c", "g"], &["d"], vec![]),
                node("Reshape", &["d", "shape"], &["e"], vec![]),
                node("Div", &["e", "two"], &["f"], vec![]),
                node("MatMul", &["f", "v"], &["h"], vec![]),
                node("Add", &["h", "zeros"], &["i"], vec![]),
                node("Relu", &["i"], &["y"], vec![]),
            ],
            initializer: vec![
                tensor("w", &[2, 2], &[1.0, 2.0, 3.0, 4.0]),
                tensor("b", &[2], &[10.0, 20.0]),
                tensor("g", &[2], &[0.5, 3.0]),
                tensor("two", &[], &[2.0]),
                tensor("v", &[2, 1], &[1.0, 1.0]),
                tensor("zeros", &[1], &[0.0]),
                crate::onnx::tensor_from_i64("shape", &[2], &[-1, 2]),
            ],
            input: vec![crate::onnx::tensor_info("x", DataType::Float, &[None, Some(2)])],
            output: vec![crate::onnx::tensor_info("y", DataType::Float, &[None, Some(1)])],
            ..GraphProto::default()
        }
    }

    #[test]
    fn factors_go_into_matrices_and_zeros_go() {
        let mut folded = graph();
        fold_scales(&mut folded).unwrap();
        let ops = |g: &GraphProto| g.node.iter().map(|n| n.op_type().to_string()).collect::<Vec<_>>();
        // The weight takes one factor; the second one waits for the next fold.
        assert_eq!(ops(&folded), ["MatMul", "Add", "Reshape", "Div", "MatMul", "Relu"]);
        let of = |g: &GraphProto, name: &str| to_f32(g.initializer.iter().find(|t| t.name() == name).unwrap()).unwrap();
        assert_eq!(of(&folded, "w"), [0.5, 6.0, 1.5, 12.0]);
        assert_eq!(of(&folded, "b"), [5.0, 60.0]);
        fold_scales(&mut folded).unwrap();
        assert_eq!(ops(&folded), ["MatMul", "Add", "Reshape", "MatMul", "Relu"]);
        assert_eq!((of(&folded, "w"), of(&folded, "b")), (vec![0.25, 3.0, 0.75, 6.0], vec![2.5, 30.0]));
    }

    #[test]
    fn what_something_else_sees_stays() {
        let mut shared = graph();
        shared.node.push(node("Exp", &["c"], &["z"], vec![]));
        shared.output.push(crate::onnx::tensor_info("z", DataType::Float, &[None, Some(2)]));
        let before = shared.node.iter().filter(|n| n.op_type() == "Mul").count();
        fold_scales(&mut shared).unwrap();
        assert_eq!(shared.node.iter().filter(|n| n.op_type() == "Mul").count(), before);
    }
}
