//! Typing of what a graph chooses by its shapes: branches, and lists of values.

use ndarray::{Axis, Slice};

use super::vocabulary::Rule;
use crate::axes::arithmetic::{ConstValue, LIMIT, evaluate};
use crate::axes::choices::{Choice, Lengths, Piece};
use crate::axes::factors::Dim;
use crate::axes::typing::Typing;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Attributes, int_attribute, node as new_node, resolve_axis};
use crate::onnx::node_label;
use crate::onnx::proto::{GraphProto, NodeProto};

/// The graph that an `If` runs where its condition holds, or where it does not.
pub(in crate::axes) fn branch_of(node: &NodeProto, holds: bool) -> Option<&GraphProto> {
    let name = if holds { "then_branch" } else { "else_branch" };
    node.attribute.iter().find(|a| a.name() == name)?.g.as_ref()
}

impl<'m> Typing<'m> {
    /// An `If`: the nodes of the branch that it takes.
    pub(super) fn branch(&mut self, k: usize, node: &'m NodeProto) -> Result<()> {
        let condition = node.input.first().map(String::as_str).unwrap_or("");
        let known = self.known.get(condition).and_then(|c| c.data.first()).map(|&v| v != 0.0);
        let holds = known.ok_or_else(|| {
            let error = undecided(node, self.constants_so_far().contains(condition));
            let fixed = "export the model with fixed choices: tracing, or a simplifier, removes such nodes";
            match self.may_be_fed(condition) {
                true => self.unknown(error, condition),
                false => error.hint(fixed),
            }
        })?;
        let Some(branch) = branch_of(node, holds) else { bail!(Format, "it has no branch for a condition of {holds}") };
        if self.choices.is_none() {
            bail!(
                Unsupported,
                "shapes decide which branch `If` takes: `axes::branches::inline` puts it into the graph"
            );
        }
        self.chosen(node, Choice::Branch(holds));
        for t in &branch.initializer {
            self.weight(t.name(), t);
        }
        for inner in &branch.node {
            self.node(k, inner).map_err(|e| e.in_node(node_label(inner)))?;
        }
        for (outer, inner) in node.output.iter().zip(&branch.output).filter(|(o, _)| !o.is_empty()) {
            if let Some(list) = self.choices.as_ref().and_then(|c| c.lists.get(inner.name())).cloned() {
                self.list_is(outer, list);
                continue;
            }
            match self.hidden.get(inner.name()).cloned() {
                Some(why) => drop(self.hidden.insert(outer, why)),
                None => {
                    let piece = self.piece(inner.name())?;
                    self.piece_is(outer, piece);
                }
            }
        }
        Ok(())
    }

    fn chosen(&mut self, node: &NodeProto, choice: Choice) {
        let name = node.output.iter().find(|o| !o.is_empty());
        if let (Some(choices), Some(name)) = (&mut self.choices, name) {
            choices.made.insert(name.clone(), (node_label(node), choice));
        }
    }

    fn list_is(&mut self, name: &str, list: Vec<Piece>) {
        if let Some(choices) = &mut self.choices {
            choices.lists.insert(name.to_string(), list);
        }
    }

    fn piece_is(&mut self, name: &'m str, piece: Piece) {
        match piece.known {
            Some(known) => self.know(name, known),
            None => drop(self.dims.insert(name, piece.dims)),
        }
    }

    /// A value as one of a list.
    fn piece(&mut self, name: &str) -> Result<Piece> {
        let Some(shape) = self.shape(name) else { bail!(Format, "nothing makes its input `{name}`") };
        let dims = match self.dims.get(name) {
            Some(dims) => dims.clone(),
            None => shape.iter().map(|&n| self.factors.fresh(n)).collect(),
        };
        Ok(Piece { dims, known: self.known.get(name).cloned() })
    }

    /// Types a node that makes or reads a list of values; false for any other.
    pub(super) fn list(&mut self, k: usize, node: &'m NodeProto) -> Result<bool> {
        let Some(choices) = &self.choices else { return Ok(false) };
        let Some(output) = node.output.first() else { return Ok(false) };
        let given = node.input.first().and_then(|x| choices.lists.get(x)).cloned();
        let list = match (node.op_type(), given) {
            ("SequenceEmpty", _) => Vec::new(),
            ("SequenceConstruct", _) => node.input.iter().map(|x| self.piece(x)).collect::<Result<_>>()?,
            ("SplitToSequence", _) => self.parts(node)?,
            ("Identity", Some(list)) => list,
            ("SequenceInsert", Some(mut list)) => {
                let at = self.place(node, 2, list.len() + 1, list.len())?;
                list.insert(at, self.piece(node.input.get(1).map_or("", String::as_str))?);
                list
            }
            ("SequenceErase", Some(mut list)) => {
                let at = self.place(node, 1, list.len(), list.len().wrapping_sub(1))?;
                list.remove(at);
                list
            }
            ("SequenceAt", Some(list)) => {
                let at = self.place(node, 1, list.len(), usize::MAX)?;
                self.piece_is(output, list[at].clone());
                return Ok(true);
            }
            ("SequenceLength", Some(list)) => {
                let count = ConstValue::integers([list.len() as i64]);
                self.know(output, ConstValue { data: count.data.index_axis_move(Axis(0), 0), ..count });
                self.chosen(node, Choice::Place(list.len()));
                return Ok(true);
            }
            ("ConcatFromSequence", Some(list)) => {
                let joined = self.joined(k, node, list)?;
                self.piece_is(output, joined);
                return Ok(true);
            }
            _ => return Ok(false),
        };
        self.list_is(output, list);
        Ok(true)
    }

    /// The place in a list of `n` that input `j` says; `default` where it is left out.
    fn place(&mut self, node: &NodeProto, j: usize, n: usize, default: usize) -> Result<usize> {
        let at = match node.input.get(j).filter(|x| !x.is_empty()) {
            Some(x) => match self.known.get(x.as_str()).and_then(|k| k.data.first()) {
                Some(&at) => resolve_axis(at as i64, n),
                None => return Err(computed(node, x, "place")),
            },
            None => Some(default),
        };
        let Some(at) = at.filter(|&at| at < n) else {
            bail!(Typing, "`{}`: its place is outside a list of {n} values", node.op_type())
        };
        self.chosen(node, Choice::Place(at));
        Ok(at)
    }

    /// The parts that `SplitToSequence` makes of a value.
    fn parts(&mut self, node: &NodeProto) -> Result<Vec<Piece>> {
        let whole = self.piece(node.input.first().map_or("", String::as_str))?;
        let rank = whole.dims.len();
        let axis = resolve_axis(node.int("axis").unwrap_or(0), rank);
        let Some(a) = axis else { bail!(Typing, "`SplitToSequence`: its axis is out of range for {rank} dimensions") };
        let n = self.factors.size(&whole.dims[a]);
        let operand = node.input.get(1).filter(|x| !x.is_empty());
        let said = match operand {
            Some(x) => Some(self.known.get(x.as_str()).cloned().ok_or_else(|| computed(node, x, "length"))?),
            None => None,
        };
        let length = match &said {
            Some(said) if said.data.ndim() > 0 => None,
            Some(said) => said.ints().first().copied().filter(|&length| length > 0),
            None => Some(1),
        };
        let lengths: Vec<i64> = match (&said, length) {
            (_, Some(length)) if n <= LIMIT => {
                (0..n as i64).step_by(length as usize).map(|at| length.min(n as i64 - at)).collect()
            }
            (Some(said), None) if said.data.ndim() > 0 => said.ints(),
            _ => bail!(Typing, "`SplitToSequence`: {n} elements cannot be divided so"),
        };
        let total: Option<i64> = lengths.iter().try_fold(0i64, |sum, &l| sum.checked_add(l).filter(|_| l >= 0));
        if total != Some(n as i64) || lengths.is_empty() {
            bail!(Typing, "`SplitToSequence`: its lengths {lengths:?} do not add up to {n}");
        }
        let how = match length {
            Some(_) if lengths.windows(2).all(|w| w[0] == w[1]) => Lengths::Equal,
            None if self.opset >= 13 => Lengths::Operand,
            _ => Lengths::Fixed(lengths.clone()),
        };
        self.chosen(node, Choice::Parts(lengths.len(), how));
        let squeezes = said.is_none() && node.int("keepdims") == Some(0);
        let (mut parts, mut at) = (Vec::with_capacity(lengths.len()), 0);
        for length in lengths.into_iter().map(|length| length as usize) {
            let mut dims = whole.dims.clone();
            dims[a] = self.factors.fresh(length);
            let mut known = whole.known.as_ref().map(|known| {
                let part = known.data.slice_axis(Axis(a), Slice::from(at..at + length)).to_owned();
                ConstValue { number: known.number, data: part }
            });
            if squeezes {
                dims.remove(a);
                known = known.map(|k| ConstValue { number: k.number, data: k.data.index_axis_move(Axis(a), 0) });
            }
            parts.push(Piece { dims, known });
            at += length;
        }
        Ok(parts)
    }

    /// The values of a list, joined along an axis or stacked along a new one.
    fn joined(&mut self, k: usize, node: &'m NodeProto, mut list: Vec<Piece>) -> Result<Piece> {
        let axis = node.int("axis").unwrap_or(0);
        if node.int("new_axis").unwrap_or(0) != 0 {
            for piece in &mut list {
                let rank = piece.dims.len() + 1;
                let Some(a) = resolve_axis(axis, rank) else {
                    bail!(Typing, "its axis is out of range for {rank} dimensions")
                };
                piece.dims.insert(a, Dim::new());
                piece.known =
                    piece.known.take().map(|k| ConstValue { number: k.number, data: k.data.insert_axis(Axis(a)) });
            }
        }
        let known: Vec<Option<ConstValue>> = list.iter().map(|piece| piece.known.clone()).collect();
        if !known.is_empty() && known.iter().all(Option::is_some) {
            let concat = new_node("Concat", &[], &[], vec![int_attribute("axis", axis)]);
            let joined = evaluate(&concat, &known).and_then(|mut all| all.pop());
            if joined.is_some() {
                return Ok(Piece { dims: Vec::new(), known: joined });
            }
        }
        let inputs = list.into_iter().map(|piece| Some(piece.dims)).collect();
        let dims = Rule { typing: self, k, node, inputs }.concat()?;
        Ok(Piece { dims, known: None })
    }
}

/// An operand of a list that no shape says.
fn computed(node: &NodeProto, operand: &str, what: &str) -> Error {
    let op = node.op_type();
    Error::new(ErrorKind::Unsupported, format!("`{op}`: the {what} `{operand}` depends on more than shapes"))
        .hint("export the model with fixed choices: tracing, or a simplifier, removes such nodes")
}

/// An `If` whose condition no shape says.
fn undecided(node: &NodeProto, by_weights: bool) -> Error {
    let branch = |holds: bool| {
        let Some(graph) = branch_of(node, holds) else { return "none".to_string() };
        let mut operators: Vec<&str> = graph.node.iter().map(|n| n.op_type()).filter(|op| *op != "Constant").collect();
        operators.dedup();
        let more = if operators.len() > 4 { ", ..." } else { "" };
        operators.truncate(4);
        format!("`{}` ({}{more})", graph.name(), operators.join(", "))
    };
    let by = if by_weights { "weights" } else { "the values of the image, or of another input" };
    let condition = node.input.first().map_or("", String::as_str);
    let [then, otherwise] = [true, false].map(branch);
    let what = format!("the branch that `If` takes, {then} or {otherwise}, depends on {by} (condition `{condition}`)");
    Error::new(ErrorKind::Unsupported, what)
}
