//! How a graph is typed: inputs and weights first, then node by node.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::OnceLock;

use super::arithmetic::{ConstValue, LIMIT};
use super::factors::{Dim, Factors, ImageAxis, Spatial};
use super::limits::{MAX_ELEMENTS, MAX_RANK};
use super::typing::{Assumption, SizeFrom, Typing, channels_last};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{self, data_inputs, declared_dims, is_feed};
use crate::metadata::FEED_PREFIX;
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{Model, element_count, is_float, node_label};

/// Floats that are known of what an input is fed.
const FLOATS: usize = 16;

/// Numbers of rows of what may be tables of places, from the most rows on: fewer than tokens that are assumed. None
/// where no input leaves a length open.
fn shorter_lengths(model: &Model) -> Vec<usize> {
    let is_open = |dims: Vec<Option<usize>>| dims.len() != 4 && dims.iter().skip(1).any(Option::is_none);
    if !data_inputs(model.graph()).into_iter().filter_map(declared_dims).any(is_open) {
        return Vec::new();
    }
    let rows = |t: &TensorProto| match t.shape()[..] {
        [n, _] | [1, n, _] => Some(n),
        _ => None,
    };
    let tables = model.graph().initializer.iter().filter_map(rows);
    let rows: BTreeSet<usize> = tables.filter(|n| (2..Typing::OPEN_LENGTH).contains(n)).collect();
    rows.into_iter().rev().collect()
}

impl<'m> Typing<'m> {
    /// How long axes are taken to be that inputs leave open.
    pub(super) const OPEN_LENGTH: usize = 16;

    /// Types a model under a given assumption; contradictions are collected in [`Typing::conflicts`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an operator without a typing rule, [`ErrorKind::Typing`] for shape operands that
    /// cannot be.
    pub fn with(model: &'m Model, assumption: Assumption) -> Result<Self> {
        Self::begin(model, assumption, false)
    }

    /// Types a model, whose batch is opened where the file fixes it, if it `opens`.
    pub(super) fn begin(model: &'m Model, assumption: Assumption, opens: bool) -> Result<Self> {
        let of_length = |length| {
            let mut typing = Typing { open_length: length, ..Self::empty(model, assumption.clone()) };
            typing.walk(opens).map(|()| typing)
        };
        let is_sound = |typing: &Result<Self>| typing.as_ref().is_ok_and(|t| t.conflicts.is_empty());
        let usual = of_length(Self::OPEN_LENGTH);
        if is_sound(&usual) {
            return usual;
        }
        // A table of places may have fewer rows than the tokens that are assumed: then there are as many tokens.
        let fitting = shorter_lengths(model).into_iter().map(of_length).find(is_sound);
        fitting.unwrap_or(usual)
    }

    /// True where lengths that inputs leave open are those of a table of places with fewer rows than are assumed else.
    pub fn has_short_table(&self) -> bool {
        self.open_length < Self::OPEN_LENGTH
    }

    /// Nothing is typed yet.
    pub(super) fn empty(model: &'m Model, assumption: Assumption) -> Self {
        Typing {
            graph: model.graph(),
            factors: Factors::default(),
            dims: HashMap::new(),
            known: HashMap::new(),
            weights: HashMap::new(),
            constants: OnceLock::new(),
            fed: OnceLock::new(),
            uses: Vec::new(),
            contractions: Vec::new(),
            parts: Vec::new(),
            groups: HashMap::new(),
            head_counts: BTreeMap::new(),
            fused: HashMap::new(),
            conflicts: Vec::new(),
            opaque: BTreeMap::new(),
            hidden: HashMap::new(),
            pinned: Vec::new(),
            shared: HashSet::new(),
            pins: OnceLock::new(),
            batch: None,
            opset: model.opset(),
            assumption,
            takes_patches: false,
            opening: None,
            choices: None,
            open_length: Self::OPEN_LENGTH,
            size_from: SizeFrom::default(),
            taken_apart: OnceLock::new(),
            links: OnceLock::new(),
        }
    }

    pub(super) fn walk(&mut self, opens: bool) -> Result<()> {
        let graph = self.graph;
        for t in &graph.initializer {
            self.weight(t.name(), t);
        }
        self.inputs(opens)?;
        for (k, node) in graph.node.iter().enumerate() {
            self.node(k, node).map_err(|e| e.in_node(node_label(node)))?;
            if is_feed(node) {
                self.hold(k, node);
            }
        }
        self.join_shared();
        self.takes_patches = self.attends_over_batch();
        Ok(())
    }

    /// Settles what an input is fed. Axes that are as long as one of another input are that axis, and the others are
    /// pinned: the file takes the input as it is. A value that decides nothing is not known: it is data.
    fn hold(&mut self, k: usize, node: &'m NodeProto) {
        let Some(output) = node.output.first().filter(|o| !o.starts_with(FEED_PREFIX)) else { return };
        if !graph::decides(self.links(), output) {
            self.known.remove(output.as_str());
        }
        let graph = self.graph;
        let made = |x: &str| self.links().maker(x).map(|m| &graph.node[m]);
        let parts = node.input.get(1).and_then(|x| made(x)).map_or(&[][..], |concat| &concat.input);
        let like = |axis: usize| {
            let gather = made(parts.get(axis)?)?;
            let (shape, at) = (made(gather.input.first()?)?, self.ints(gather.input.get(1)?)?);
            let dims = self.dims.get(shape.input.first()?.as_str())?;
            dims.get(usize::try_from(*at.first()?).ok()?).cloned()
        };
        let Some(own) = self.dims.get(output.as_str()) else { return };
        let likes: Vec<Option<Dim>> = (0..own.len()).map(like).collect();
        let fixed: Vec<Dim> = own.iter().zip(&likes).filter(|(_, l)| l.is_none()).map(|(dim, _)| dim.clone()).collect();
        let dims = own.iter().zip(likes).map(|(dim, like)| like.unwrap_or_else(|| dim.clone())).collect();
        self.dims.insert(output, dims);
        self.pin(k, fixed);
    }

    pub(super) fn weight(&mut self, name: &'m str, t: &'m TensorProto) {
        self.weights.insert(name, t);
        let count = element_count(t).unwrap_or(usize::MAX);
        // Of what an input is fed, the numbers that a Resize takes may be floats.
        let limit = match is_float(t) {
            true if name.starts_with(FEED_PREFIX) => FLOATS,
            true => 1,
            false => LIMIT,
        };
        if count <= limit
            && let Some(known) = ConstValue::read(t)
        {
            self.known.insert(name, known);
        }
    }

    pub(super) fn inputs(&mut self, opens: bool) -> Result<()> {
        let mut image_seen = false;
        for info in data_inputs(self.graph) {
            let Some(declared) = declared_dims(info) else {
                return Err(Error::new(ErrorKind::Unsupported, format!("input `{}` declares no shape", info.name()))
                    .hint("export with declared input shapes, or run `onnx.shape_inference`"));
            };
            let channels_last = channels_last(&declared);
            let image_axes = if channels_last { [1, 2] } else { [2, 3] };
            let mut dims = Vec::new();
            for (i, d) in declared.iter().enumerate() {
                let assumed = match (i, declared.len()) {
                    (0, _) => self.assumption.batch,
                    (_, 4) => match image_axes.iter().position(|&a| a == i) {
                        Some(p) => self.assumption.image[p],
                        None => 3,
                    },
                    _ => self.open_length,
                };
                dims.push(match d {
                    Some(images) if opens && i == 0 => self.groups_of(*images),
                    _ => self.factors.fresh(d.unwrap_or(assumed)),
                });
            }
            if declared.len() == 4 && !image_seen {
                image_seen = true;
                for (axis, i) in [ImageAxis::Height, ImageAxis::Width].into_iter().zip(image_axes) {
                    self.factors.set_spatial(&dims[i], Some(Spatial { axis, stride: 1.0 }));
                }
            }
            self.sized(&dims).map_err(|e| e.in_node(info.name()))?;
            if self.batch.is_none() {
                self.batch = dims.first().and_then(|d| d.first().copied());
            }
            self.dims.insert(info.name(), dims);
        }
        Ok(())
    }

    /// Checks that a value is of a size that can be.
    pub(super) fn sized(&self, dims: &[Dim]) -> Result<()> {
        let places = |n: usize, d: &Dim| n.saturating_mul(self.factors.size(d).max(1));
        if dims.len() > MAX_RANK || dims.iter().fold(1, places) > MAX_ELEMENTS {
            let sizes: Vec<usize> = dims.iter().take(MAX_RANK).map(|d| self.factors.size(d)).collect();
            return Err(Error::new(ErrorKind::Unsupported, format!("a value of {sizes:?} is too large"))
                .hint("no network has such a value: check the shapes that the model declares, or export it again"));
        }
        Ok(())
    }

    /// True where an attention runs over what the first input has in its first axis, or is not computed for each of it:
    /// towers that take cut patches have those of one image there, all images' or not.
    pub(super) fn attends_over_batch(&self) -> bool {
        let Some(batch) = self.batch else { return false };
        let is_first = |dims: &&Vec<Dim>| dims.first().is_some_and(|d| d.contains(&batch));
        let inputs = data_inputs(self.graph);
        let mut inputs = inputs.iter().filter_map(|v| self.dims.get(v.name())).filter(is_first);
        if inputs.next().is_none_or(|dims| dims.len() > 3) {
            return false;
        }
        let images = self.factors.factor_size(batch);
        let holds = |dim: &Dim| self.factors.meet(dim, &[batch]);
        self.graph.node.iter().enumerate().any(|(k, node)| {
            let dims = node.output.first().and_then(|o| self.dims.get(o.as_str()));
            let across = match (self.fused.get(&k), dims) {
                (Some(f), _) => holds(&f.queries) || !self.factors.size(&f.batch).is_multiple_of(images),
                (None, Some(dims)) if node.op_type() == "Softmax" && dims.len() > 2 => {
                    let (front, scores) = dims.split_at(dims.len() - 2);
                    let apart: usize = front.iter().map(|d| self.factors.size(d)).product();
                    scores.iter().any(holds) || !apart.is_multiple_of(images)
                }
                _ => false,
            };
            // What weights alone attend to (a table of positions) has no batch.
            across && !node.input.iter().all(|x| x.is_empty() || self.is_constant(x))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, ints_attribute, node};
    use crate::onnx::proto::{AttributeProto, GraphProto, ModelProto, NodeProto};
    use crate::onnx::{DataType, tensor_from_f32, tensor_from_i64, tensor_info};

    const MOST: i64 = i64::MAX;

    fn model(input: &[usize], nodes: Vec<NodeProto>, operand: &[i64]) -> Model {
        let dims: Vec<Option<usize>> = input.iter().map(|&n| Some(n)).collect();
        Model::from_proto(ModelProto {
            graph: Some(GraphProto {
                input: vec![tensor_info("x", DataType::Float, &dims)],
                initializer: vec![
                    tensor_from_i64("n", &[operand.len()], operand),
                    tensor_from_f32("w", DataType::Float, &[4, 4, 1, 1], &[0.0; 16]),
                ],
                node: nodes,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    /// Found by fuzzing: sizes were multiplied until they overflowed, and lists made as long as an attribute said.
    #[test]
    fn numbers_that_no_network_has_are_errors() {
        let one = |op: &str, inputs: &[&str], attributes: Vec<AttributeProto>, operand: &[i64]| {
            let inputs: Vec<&str> = inputs.iter().copied().filter(|x| !x.is_empty()).collect();
            model(&[2, 4, 8, 8], vec![node(op, &inputs, &["y"], attributes)], operand)
        };
        let ints = |name: &str, n: usize, v: i64| vec![ints_attribute(name, &vec![v; n])];
        let cases = [
            one("Conv", &["x", "w"], ints("pads", 4, MOST), &[0]),
            one("Conv", &["x", "w"], ints("pads", 4, i64::MIN), &[0]),
            one("Conv", &["x", "w"], ints("pads", 4, 1 << 40), &[0]),
            one("ConvTranspose", &["x", "w"], ints("strides", 2, MOST), &[0]),
            one("MaxPool", &["x"], ints("kernel_shape", 2, MOST), &[0]),
            one("DepthToSpace", &["x"], vec![int_attribute("blocksize", 1 << 40)], &[0]),
            one("SpaceToDepth", &["x"], vec![int_attribute("blocksize", MOST)], &[0]),
            one("Pad", &["x", "n"], vec![], &[MOST; 8]),
            one("Expand", &["x", "n"], vec![], &[(1 << 40) - 1; 5]),
            one("Tile", &["x", "n"], vec![], &[MOST; 4]),
            one("Unsqueeze", &["x", "n"], vec![], &[0; 60_000]),
            one("Split", &["x"], vec![int_attribute("num_outputs", MOST)], &[0]),
            model(&[1 << 40, 1 << 40, 8, 8], vec![node("Relu", &["x"], &["y"], vec![])], &[0]),
            model(&[8; 65], vec![node("Relu", &["x"], &["y"], vec![])], &[0]),
        ];
        for (k, model) in cases.iter().enumerate() {
            let Err(error) = Typing::new(model) else { panic!("case {k} was typed") };
            assert!(matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::Typing), "case {k}: {error}");
        }
        // A dilation of one element does not matter, a step past the end takes the first.
        assert!(Typing::new(&one("Conv", &["x", "w"], ints("dilations", 2, MOST), &[0])).is_ok());
        for step in [MOST, i64::MIN] {
            let attributes = [("starts", 7), ("ends", if step > 0 { 8 } else { -9 }), ("axes", 2), ("steps", step)];
            let attributes = attributes.map(|(name, v)| ints_attribute(name, &[v])).to_vec();
            let model = one("Slice", &["x"], attributes, &[0]);
            assert_eq!(Typing::new(&model).unwrap().shape("y").unwrap(), [2, 4, 1, 8]);
        }
    }

    /// Found by fuzzing: whoever looks for the other operand of an Add subtracted from one.
    #[test]
    fn operators_have_as_many_operands_as_they_take() {
        for (op, inputs) in [("Add", &["x", "x", "x"][..]), ("Mul", &["x"]), ("MatMul", &["x", ""]), ("Where", &["x"])]
        {
            let model = model(&[2, 4, 8, 8], vec![node(op, inputs, &["y"], vec![])], &[0]);
            let Err(error) = Typing::new(&model) else { panic!("{op} of {inputs:?} was typed") };
            assert_eq!(error.kind(), ErrorKind::Format, "{error}");
        }
    }

    /// A text may be as long as its table of places has rows, and no longer.
    #[test]
    fn a_short_table_of_places_says_how_many_tokens_there_are() {
        let of_rows = |rows: usize| {
            let weight = |name: &str, dims: &[usize]| {
                tensor_from_f32(name, DataType::Float, dims, &vec![0.0; dims.iter().product()])
            };
            let int = |name: &str, n: i64| tensor_from_i64(name, &[1], &[n]);
            let nodes = vec![
                node("Gather", &["words", "ids"], &["looked_up"], vec![]),
                node("Shape", &["ids"], &["shape"], vec![]),
                node("Slice", &["shape", "one", "two"], &["tokens"], vec![]),
                node("Slice", &["table", "zero", "tokens"], &["places"], vec![]),
                node("Add", &["looked_up", "places"], &["y"], vec![]),
            ];
            Model::from_proto(ModelProto {
                graph: Some(GraphProto {
                    input: vec![tensor_info("ids", DataType::Int64, &[None, None])],
                    output: vec![tensor_info("y", DataType::Float, &[None, None, Some(6)])],
                    initializer: vec![
                        weight("words", &[14, 6]),
                        weight("table", &[rows, 6]),
                        int("zero", 0),
                        int("one", 1),
                        int("two", 2),
                    ],
                    node: nodes,
                    ..Default::default()
                }),
                ..Default::default()
            })
        };
        for (rows, tokens) in [(64, 16), (16, 16), (11, 11), (2, 2)] {
            let model = of_rows(rows);
            let typing = Typing::new(&model).unwrap();
            assert_eq!(typing.shape("y").unwrap()[1..], [tokens, 6]);
            assert_eq!(typing.has_short_table(), tokens < 16);
        }
    }

    /// Every Concat doubles the segments that the one before it made.
    #[test]
    fn concatenations_of_concatenations_are_bounded() {
        let names: Vec<String> = std::iter::once("x".into()).chain((0..36).map(|k| format!("y{k}"))).collect();
        let concat = |w: &[String]| node("Concat", &[&w[0], &w[0], "x"], &[&w[1]], vec![int_attribute("axis", 1)]);
        let nodes: Vec<NodeProto> = names.windows(2).map(concat).collect();
        let model = model(&[1, 1, 1, 3], nodes, &[0]);
        assert_eq!(Typing::new(&model).unwrap().shape("y35").unwrap(), [1, (1 << 37) - 1, 1, 3]);
    }
}
