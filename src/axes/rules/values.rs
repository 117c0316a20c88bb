//! Values that are known while a graph is typed: constants, shapes, and what is computed of them.

use crate::axes::arithmetic::{self, ConstValue, LIMIT, elements, evaluate};
use crate::axes::factors::Dim;
use crate::axes::typing::{Typing, Use};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, nearest_border};
use crate::onnx::proto::NodeProto;
use crate::onnx::{element_count, is_float};

impl<'m> Typing<'m> {
    pub(super) fn constant(&mut self, node: &'m NodeProto) -> Result<()> {
        let Some(name) = node.output.first() else { return Ok(()) };
        if let Some(t) = node.tensor("value")
            && element_count(t)? > 1
        {
            self.weight(name, t);
            return Ok(());
        }
        let known = arithmetic::constant(node)
            .ok_or_else(|| Error::new(ErrorKind::Unsupported, "a constant of this kind has no typing rule"))?;
        self.know(name, known);
        Ok(())
    }

    pub(super) fn know(&mut self, name: &'m str, known: ConstValue) {
        let dims = known.data.shape().iter().map(|&n| self.factors.fresh(n)).collect();
        self.dims.insert(name, dims);
        if known.data.len() <= LIMIT {
            self.known.insert(name, known);
        }
    }

    pub(super) fn shape_of(&mut self, node: &'m NodeProto) -> Result<()> {
        let input = node.input.first().map(String::as_str).unwrap_or("");
        let Some(shape) = self.shape(input) else { bail!(Format, "nothing makes its input `{input}`") };
        if let Some(output) = node.output.first() {
            self.know(output, shape_value(node, &shape));
        }
        Ok(())
    }

    /// Evaluates a node of shape arithmetic. A short Concat may also take small floats that stand in initializers (the
    /// scales of a Resize).
    pub(super) fn arithmetic(&mut self, node: &'m NodeProto) -> bool {
        let Some(results) = self.evaluated(node, &self.known) else { return false };
        for (name, known) in node.output.iter().zip(results).filter(|(n, _)| !n.is_empty()) {
            self.know(name, known);
        }
        true
    }

    pub(in crate::axes) fn evaluated(
        &self,
        node: &NodeProto,
        values: &std::collections::HashMap<&'m str, ConstValue>,
    ) -> Option<Vec<ConstValue>> {
        if self.is_random(node) {
            return None;
        }
        // Rows of a table of numbers are weights (a learngene's lookups), however small the table is.
        let table = || node.input.first().and_then(|x| self.weights.get(x.as_str())).is_some_and(|t| is_float(t));
        if node.op_type() == "Gather" && table() {
            return None;
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        let mut computed = node.op_type() != "Concat";
        for x in &node.input {
            if x.is_empty() {
                inputs.push(None);
                continue;
            }
            let known = match values.get(x.as_str()) {
                Some(known) => {
                    computed |= !self.weights.contains_key(x.as_str());
                    known.clone()
                }
                None if node.op_type() == "Concat" => {
                    let t = self.weights.get(x.as_str()).filter(|t| t.dims.len() == 1 && t.dims[0] <= 4)?;
                    ConstValue::read(t)?
                }
                None => return None,
            };
            inputs.push(Some(known));
        }
        if inputs.is_empty() || (!computed && !inputs.iter().flatten().all(|k| k.number != arithmetic::Number::Float)) {
            return None;
        }
        let results = evaluate(node, &inputs)?;
        results.iter().all(|r| r.data.len() <= LIMIT).then_some(results)
    }

    /// Dimensions of an input; a weight gets factors of its own for every use.
    pub(super) fn operand(&mut self, k: usize, node: &'m NodeProto, j: usize) -> Result<Option<Vec<Dim>>> {
        let name = node.input[j].as_str();
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(t) = self.weights.get(name) {
            let dims: Vec<Dim> = t.dims.iter().map(|&d| self.factors.fresh(d as usize)).collect();
            self.uses.push(Use { name: name.to_string(), node: k, input: j, dims: dims.clone() });
            return Ok(Some(dims));
        }
        match self.dims.get(name) {
            Some(dims) => Ok(Some(dims.clone())),
            None => bail!(Format, "nothing makes its input `{name}`"),
        }
    }

    /// Small constants as integers: known values, or initializers that are read for it.
    pub(in crate::axes) fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.known.get(name).map(ConstValue::ints)
    }

    pub(super) fn floats(&self, name: &str) -> Option<Vec<f64>> {
        if let Some(known) = self.known.get(name) {
            return Some(known.data.iter().copied().collect());
        }
        let t = self.weights.get(name).filter(|t| element_count(t).is_ok_and(|n| n <= 16))?;
        Some(ConstValue::read(t)?.data.iter().copied().collect())
    }
}

/// The value of a Shape or Size node, of an input that has `shape`.
pub(in crate::axes) fn shape_value(node: &NodeProto, shape: &[usize]) -> ConstValue {
    if node.op_type() == "Size" {
        let count = ConstValue::integers([elements(shape) as i64]);
        return ConstValue { data: count.data.index_axis_move(ndarray::Axis(0), 0), ..count };
    }
    let border = |name: &str, default: usize| node.int(name).map_or(default, |v| nearest_border(v, shape.len()));
    let start = border("start", 0);
    let end = border("end", shape.len()).max(start);
    ConstValue::integers(shape[start..end].iter().map(|&n| n as i64))
}
