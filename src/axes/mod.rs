//! Axis typing: what every dimension of every value is made of.
//!
//! Exporters write the same network in dozens of ways; what they cannot change is which axis is contracted with which.
//! One walk over the graph types every dimension as a product of [factors](factors::Factors). An operator is one rule
//! (`rules`) that says which of its dimensions are the same and which are parts of others. Shape arithmetic is
//! evaluated on the way for one assumed input; nothing else is computed and no weight is read. With the factor of an
//! attention head or of an FFN's hidden axis at hand, [`resize`] changes every weight, shape operand and slice that
//! depends on it.
//!
//! Every *use* of an initializer has factors of its own: exporters merge equal constants of different layers (zero
//! biases, index tables), and those must stay independent.

pub mod arithmetic;
mod batch;
pub mod branches;
mod choices;
mod constants;
pub mod factors;
pub mod resize;
mod rules;
mod sizes;
mod store;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Links, data_inputs, declared_dims, output_type};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Model, data_type, element_count, is_float, node_label};
use crate::ops::{self, Mark};
use arithmetic::{Known, LIMIT};
pub(crate) use batch::mixed_axes;
pub use batch::{BatchFault, batch_fault, declared_batch, fix_batch, open_batch};
use choices::Choices;
pub use factors::{Dim, Factor, Factors, ImageAxis, Mismatch, Spatial};
pub use rules::explicit_einsum;
pub(crate) use rules::window_length;
use sizes::{MAX_SIZES, USUAL_SIZES, image_sizes, named_size, patch_stride, sizes_of_grid};

/// Elements of a value, an empty dimension counted as one: far more than any model has. Beyond it sizes are not
/// computed with.
const MAX_ELEMENTS: usize = 1 << 40;
/// Dimensions of a value, and axes in a list.
pub(crate) const MAX_RANK: usize = 64;

/// The shapes that the typing assumes where the graph leaves them open.
#[derive(Clone, Debug)]
pub struct Assumption {
    /// Images in a batch. Two, so that the batch is a factor of its own.
    pub batch: usize,
    /// Height and width of the image.
    pub image: [usize; 2],
}

impl Default for Assumption {
    fn default() -> Self {
        Assumption { batch: 2, image: [224, 224] }
    }
}

/// What decided the image size that a graph is typed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SizeFrom {
    /// Whoever asked for the typing.
    #[default]
    Caller,
    /// The graph, whose input declares its height and width.
    Graph,
    /// The model's metadata: [`IMAGE_SIZE`](crate::metadata::IMAGE_SIZE), else the size in
    /// [`PREPROCESS`](crate::metadata::PREPROCESS).
    Metadata,
    /// Position or bias tables, which fit this size as they are.
    Tables,
    /// Nothing: it is one of the usual sizes.
    Guess,
}

/// One use of an initializer (or of a Constant node's tensor), with factors of its own.
#[derive(Clone, Debug)]
pub struct Use {
    /// Name of the initializer.
    pub name: String,
    /// Index of the node that uses it.
    pub node: usize,
    /// Which of the node's inputs it is.
    pub input: usize,
    /// Its dimensions.
    pub dims: Vec<Dim>,
}

/// A node that sums products over a dimension.
#[derive(Clone, Debug)]
pub struct Contraction {
    /// Index of the node.
    pub node: usize,
    /// What it sums over.
    pub summed: Dim,
    /// Multiply-accumulate operations under the assumed input.
    pub macs: u64,
}

/// A part that a Slice takes of an axis.
#[derive(Clone, Debug)]
pub struct Part {
    /// Index of the node.
    pub node: usize,
    /// The axis.
    pub axis: usize,
    /// Dimensions that lie before the part.
    pub before: Vec<Dim>,
    /// The part.
    pub taken: Dim,
}

/// The axes of a fused attention operator.
#[derive(Clone, Debug)]
pub struct Fused {
    /// Batch.
    pub batch: Dim,
    /// Heads.
    pub heads: Dim,
    /// Queries.
    pub queries: Dim,
    /// Keys.
    pub keys: Dim,
}

/// Two axes that were to be the same and cannot be.
#[derive(Clone, Debug)]
pub struct Conflict {
    /// Index of the node.
    pub node: usize,
    /// What disagrees.
    pub mismatch: Mismatch,
    /// The inputs of the node that meet there, for the search of the assumed image size.
    pub inputs: Vec<String>,
}

/// A graph whose every dimension is typed.
pub struct Typing<'m> {
    /// The typed graph.
    pub graph: &'m GraphProto,
    /// All factors.
    pub factors: Factors,
    /// Dimensions of each value that a node makes or that is an input.
    pub dims: HashMap<&'m str, Vec<Dim>>,
    /// Known small values: the results of shape arithmetic.
    pub known: HashMap<&'m str, Known>,
    /// Initializers, and tensors of Constant nodes.
    pub weights: HashMap<&'m str, &'m TensorProto>,
    /// Values that depend on no input, once somebody asks.
    constants: OnceLock<HashSet<&'m str>>,
    /// Uses of weights.
    pub uses: Vec<Use>,
    /// Contractions.
    pub contractions: Vec<Contraction>,
    /// Parts that slices take.
    pub parts: Vec<Part>,
    /// Factors that stand for a `group` attribute, by node.
    pub groups: HashMap<usize, Dim>,
    /// Factors that stand for an attribute that counts heads, by node and attribute.
    pub head_counts: BTreeMap<(usize, &'static str), Dim>,
    /// Fused attention operators, by node.
    pub fused: HashMap<usize, Fused>,
    /// Contradictions.
    pub conflicts: Vec<Conflict>,
    /// Nodes of which nothing is known, and why.
    pub opaque: BTreeMap<usize, String>,
    /// Values of which not even the shape is known, and why.
    hidden: HashMap<&'m str, String>,
    /// Dimensions that a node needs as they are.
    pinned: Vec<(Dim, usize)>,
    /// The factors of these, once somebody asks.
    pins: OnceLock<HashMap<Factor, usize>>,
    /// The factor of the batch, if the graph has one.
    pub batch: Option<Factor>,
    /// The version of the default operator set.
    pub opset: i64,
    /// What was assumed.
    pub assumption: Assumption,
    /// True where the first axis of the first input is no batch, but holds the patches of one image.
    takes_patches: bool,
    /// The batch that is being opened, if it is.
    opening: Option<batch::Opening>,
    /// What shapes choose, where that is to be found out.
    choices: Option<Choices>,
    /// How long axes are that inputs leave open, but for the batch and the image.
    open_length: usize,
    /// What decided the image size.
    pub size_from: SizeFrom,
    /// Who makes and uses each value, once somebody asks.
    links: OnceLock<Links<'m>>,
}

impl<'m> Typing<'m> {
    /// Types a model. Where the graph leaves the image size open, it is the one that the metadata name, else the one
    /// that position and bias tables fit as they are, else a usual one: [`Typing::size_from`] says which.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an operator without a typing rule, [`ErrorKind::Typing`] where dimensions
    /// contradict each other; both name the node.
    pub fn new(model: &'m Model) -> Result<Self> {
        let typing = Self::settled(model, Assumption::default().batch)?;
        typing.sound()?;
        Ok(typing)
    }

    /// Checks that no dimensions contradict each other.
    ///
    /// # Errors
    /// [`ErrorKind::Typing`] where they do; it names the node.
    pub fn sound(&self) -> Result<()> {
        let Some(c) = self.conflicts.first() else { return Ok(()) };
        let node = &self.graph.node[c.node];
        Err(Error::new(
            ErrorKind::Typing,
            format!(
                "dimensions {:?} and {:?} of `{}` meet there and do not agree",
                c.mismatch.left,
                c.mismatch.right,
                node.op_type()
            ),
        )
        .in_node(node_label(node))
        .hint(
            "check the model with `onnx.checker.check_model(model, full_check=True)`; if it is sound, this is a \
            graph that Offshoot does not type yet",
        ))
    }

    /// Types with the image size that [`Typing::new`] promises.
    fn settled(model: &'m Model, batch: usize) -> Result<Self> {
        let is_open = |dims: Vec<Option<usize>>| {
            let sides = if channels_last(&dims) { 1..3 } else { 2..4 };
            dims.len() == 4 && dims[sides].contains(&None)
        };
        let open = data_inputs(model.graph()).into_iter().filter_map(declared_dims).any(is_open);
        let typed = |image| Self::with(model, Assumption { batch, image });
        let from = |typing, size_from| Ok(Typing { size_from, ..typing });
        let default = Assumption::default().image;
        if !open {
            return from(typed(default)?, SizeFrom::Graph);
        }
        let sound = |image| typed(image).ok().filter(|typing| typing.conflicts.is_empty());
        if let Some(typing) = named_size(model).and_then(sound) {
            return from(typing, SizeFrom::Metadata);
        }
        let mut tried = HashSet::new();
        let mut fitting = |sizes: Vec<usize>| {
            let new: Vec<usize> = sizes.into_iter().filter(|&n| tried.insert(n)).collect();
            let mut fit = new.into_iter().filter_map(|n| sound([n, n]).filter(|typing| typing.tables_fit(model)));
            let first = fit.next()?;
            match first.tables_agree(model) {
                true => Some(first),
                false => Some(fit.find(|typing| typing.tables_agree(model)).unwrap_or(first)),
            }
        };
        if let Some(typing) = fitting(image_sizes(model)) {
            return from(typing, SizeFrom::Tables);
        }
        let Some(guess) = USUAL_SIZES.into_iter().find_map(|n| sound([n, n])) else {
            return from(typed(default)?, SizeFrom::Guess);
        };
        if guess.tables_fit(model) {
            return from(guess, SizeFrom::Tables);
        }
        // Tables that no shape gave away: what is resampled shows its own grid in the typed graph.
        let grids = guess.resampled_tables().into_iter().flat_map(|(own, _)| own);
        match fitting(grids.flat_map(|side| sizes_of_grid(model, side)).take(MAX_SIZES).collect()) {
            Some(typing) => from(typing, SizeFrom::Tables),
            None => from(guess, SizeFrom::Guess),
        }
    }

    /// Tables of positions or biases that the graph resamples: each before and after.
    fn resizes_of_tables(&self) -> Vec<(&'m str, &'m str)> {
        let resizes = |n: &&NodeProto| matches!(n.op_type(), "Resize" | "Upsample");
        if !self.graph.node.iter().any(|n| resizes(&n)) {
            return Vec::new();
        }
        let ends = |node: &'m NodeProto| {
            let table = node.input.first().filter(|x| self.is_constant(x))?;
            Some((table.as_str(), node.output.first()?.as_str()))
        };
        self.graph.node.iter().filter(resizes).filter_map(ends).collect()
    }

    /// The sides of these tables before and after.
    fn resampled_tables(&self) -> Vec<(Vec<usize>, Vec<usize>)> {
        let sides = |value: &str| Some(self.shape(value)?.get(2..)?.to_vec());
        let tables = self.resizes_of_tables();
        tables.into_iter().filter_map(|(before, after)| Some((sides(before)?, sides(after)?))).collect()
    }

    /// True where every table that the graph resamples is what it is used as: one of places runs over the image, and
    /// one of the offsets between n patches has 2 n - 1 of them. An exporter that knows the size writes it down, so
    /// that a table stays as it is for any image.
    fn tables_agree(&self, model: &Model) -> bool {
        let (image, Some(patch)) = (self.image_size(), patch_stride(model)) else { return true };
        self.resizes_of_tables().into_iter().all(|(_, after)| {
            let Some([_, _, rows, columns]) = self.dims.get(after).map(Vec::as_slice) else { return true };
            let offsets = image.map(|n| 2 * (n / patch).max(1) - 1);
            self.covers(image, rows) || [rows, columns].map(|d| self.factors.size(d)) == offsets
        })
    }

    /// True where tables decide the image size: all that the graph resamples have the size that they come to, and where
    /// none is resampled, one covers the image and has no place at twice its size. Tokens that no patch makes
    /// (registers) do not mind the size, even where they happen to be as many as the patches.
    fn tables_fit(&self, model: &Model) -> bool {
        let (resampled, image) = (self.resampled_tables(), self.image_size());
        let covers = || self.uses.iter().any(|u| u.dims.iter().any(|d| self.covers(image, d)));
        let contradicts = || {
            let twice = Assumption { image: image.map(|n| 2 * n), ..self.assumption.clone() };
            Typing::with(model, twice).map_or(true, |typing| !typing.conflicts.is_empty())
        };
        match resampled.is_empty() {
            true => covers() && contradicts(),
            false => resampled.iter().all(|(before, after)| before == after),
        }
    }

    /// True where a dimension, or a segment of it, runs over a whole image of this height and width, in one axis or in
    /// both.
    fn covers(&self, image: [usize; 2], dim: &Dim) -> bool {
        let segments = self.factors.segments(dim).unwrap_or_else(|| vec![dim.clone()]);
        let covers = |segment: &Dim, axis: ImageAxis, side: usize| {
            let (mut count, mut stride) = (1, f64::INFINITY);
            for f in self.factors.leaves(segment) {
                if let Some(s) = self.factors.spatial(f).filter(|s| s.axis == axis) {
                    count *= self.factors.factor_size(f);
                    stride = stride.min(s.stride);
                }
            }
            // Patches without padding may leave a part of one at the border.
            count > 1 && (count + 1) as f64 * stride > side as f64
        };
        segments.iter().any(|s| {
            let [rows, columns] = [covers(s, ImageAxis::Height, image[0]), covers(s, ImageAxis::Width, image[1])];
            let both = self
                .factors
                .leaves(s)
                .iter()
                .any(|&f| self.factors.spatial(f).is_some_and(|s| s.axis == ImageAxis::Width));
            rows && (columns || !both)
        })
    }

    /// Types a model under a given assumption; contradictions are collected in [`Typing::conflicts`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an operator without a typing rule, [`ErrorKind::Typing`] for shape operands that
    /// cannot be.
    pub fn with(model: &'m Model, assumption: Assumption) -> Result<Self> {
        Self::begin(model, assumption, false)
    }

    /// Types a model, whose batch is opened where the file fixes it, if it `opens`.
    fn begin(model: &'m Model, assumption: Assumption, opens: bool) -> Result<Self> {
        let mut typing = Self::empty(model, assumption);
        typing.walk(opens)?;
        Ok(typing)
    }

    /// How long axes are taken to be that inputs leave open.
    const OPEN_LENGTH: usize = 16;

    /// Nothing is typed yet.
    fn empty(model: &'m Model, assumption: Assumption) -> Self {
        Typing {
            graph: model.graph(),
            factors: Factors::default(),
            dims: HashMap::new(),
            known: HashMap::new(),
            weights: HashMap::new(),
            constants: OnceLock::new(),
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
            pins: OnceLock::new(),
            batch: None,
            opset: model.opset(),
            assumption,
            takes_patches: false,
            opening: None,
            choices: None,
            open_length: Self::OPEN_LENGTH,
            size_from: SizeFrom::default(),
            links: OnceLock::new(),
        }
    }

    fn walk(&mut self, opens: bool) -> Result<()> {
        let graph = self.graph;
        for t in &graph.initializer {
            self.weight(t.name(), t);
        }
        self.inputs(opens)?;
        for (k, node) in graph.node.iter().enumerate() {
            self.node(k, node).map_err(|e| e.in_node(node_label(node)))?;
        }
        self.takes_patches = self.attends_over_batch();
        Ok(())
    }

    /// True where an attention runs over what the first input has in its first axis, or is not computed for each of it:
    /// towers that take cut patches have those of one image there, all images' or not.
    fn attends_over_batch(&self) -> bool {
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

    fn weight(&mut self, name: &'m str, t: &'m TensorProto) {
        self.weights.insert(name, t);
        let count = element_count(t).unwrap_or(usize::MAX);
        let limit = if is_float(t) { 1 } else { LIMIT };
        if count <= limit
            && let Some(known) = Known::read(t)
        {
            self.known.insert(name, known);
        }
    }

    fn inputs(&mut self, opens: bool) -> Result<()> {
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
    fn sized(&self, dims: &[Dim]) -> Result<()> {
        let places = |n: usize, d: &Dim| n.saturating_mul(self.factors.size(d).max(1));
        if dims.len() > MAX_RANK || dims.iter().fold(1, places) > MAX_ELEMENTS {
            let sizes: Vec<usize> = dims.iter().take(MAX_RANK).map(|d| self.factors.size(d)).collect();
            return Err(Error::new(ErrorKind::Unsupported, format!("a value of {sizes:?} is too large"))
                .hint("no network has such a value: check the shapes that the model declares, or export it again"));
        }
        Ok(())
    }

    /// Sizes of a value's dimensions.
    pub fn shape(&self, value: &str) -> Option<Vec<usize>> {
        if let Some(dims) = self.dims.get(value) {
            return Some(dims.iter().map(|d| self.factors.size(d)).collect());
        }
        let t = self.weights.get(value)?;
        Some(t.shape())
    }

    /// The image input: the first of four dimensions. Its shape, and whether channels come last.
    pub fn image_input(&self) -> Option<([usize; 4], bool)> {
        data_inputs(self.graph).into_iter().find_map(|v| {
            let shape: [usize; 4] = self.shape(v.name())?.try_into().ok()?;
            Some((shape, channels_last(&declared_dims(v)?)))
        })
    }

    /// Height and width of the image input; those assumed where there is none.
    pub fn image_size(&self) -> [usize; 2] {
        match self.image_input() {
            Some(([_, h, w, _], true)) | Some(([_, _, h, w], false)) => [h, w],
            None => self.assumption.image,
        }
    }

    /// True where the file leaves open how many images a batch has.
    pub(crate) fn batch_is_open(&self) -> bool {
        let declared = data_inputs(self.graph).into_iter().find_map(declared_dims);
        declared.is_some_and(|dims| dims.first().is_some_and(Option::is_none))
    }

    /// Who makes and uses each value of the graph.
    pub fn links(&self) -> &Links<'m> {
        self.links.get_or_init(|| Links::new(self.graph))
    }

    /// A constant of the file that shape arithmetic may use, and its element type.
    fn constant_number(&self, value: &str) -> Option<(Known, DataType)> {
        if let Some(t) = self.weights.get(value) {
            return Some((Known::read(t)?, data_type(t)?));
        }
        let node = &self.graph.node[self.links().maker(value)?];
        if node.op_type() != "Constant" {
            return None;
        }
        let kind = output_type(node, 0, |_| None)?;
        Some((arithmetic::constant(node)?, kind))
    }

    /// True where some node takes pieces of a factor out of an axis: what it stands for is then not alike from one
    /// index to the next (groups of heads that convolutions of different size treat, each behind its own output of a
    /// Split).
    pub fn is_taken_apart(&self, factor: Factor) -> bool {
        let factor = self.factors.root(factor);
        let holds = |x: &String| {
            let dims = self.dims.get(x.as_str()).into_iter().flatten();
            dims.flat_map(|d| self.factors.all_leaves(d)).any(|f| f == factor)
        };
        self.graph.node.iter().any(|n| {
            matches!(n.op_type(), "Split" | "Slice" | "Gather")
                && n.input.first().is_some_and(&holds)
                && !n.output.iter().any(&holds)
        })
    }

    /// Batch elements of the assumed input, over which sizes are divided to speak of one image. One where the input
    /// holds the patches of one image.
    pub fn batch_size(&self) -> usize {
        self.batch.filter(|_| !self.takes_patches).map(|f| self.factors.factor_size(f)).unwrap_or(1)
    }

    /// Multiply-accumulate operations for one image.
    pub fn macs(&self) -> u64 {
        let all = self.contractions.iter().fold(0u64, |n, c| n.saturating_add(c.macs));
        all / self.batch_size().max(1) as u64
    }
}

/// True where some nodes may be [opaque](Typing::opaque): most models have none, and need not be typed for it.
pub fn holds_unread(model: &Model) -> bool {
    let is_unread = |n: &NodeProto| !ops::of(n).is_known() || ops::of(n).is(Mark::Counts);
    model.graph().node.iter().any(is_unread)
}

/// True where the last of four dims holds the channels.
pub fn channels_last(dims: &[Option<usize>]) -> bool {
    let few = |d: Option<usize>| matches!(d, Some(1..=4));
    dims.len() == 4 && !few(dims[1]) && few(dims[3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{int_attribute, ints_attribute, node};
    use crate::metadata::{IMAGE_SIZE, PREPROCESS};
    use crate::onnx::proto::{AttributeProto, ModelProto};
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

    /// A network of patches of 8 pixels with four registers, and with a table that is added, resampled, or neither.
    fn open_model(table: &[usize], how: &str) -> Model {
        let dims = [None, Some(3), None, None];
        let weights = |name: &str, dims: &[usize]| {
            tensor_from_f32(name.to_string(), DataType::Float, dims, &vec![0.0; dims.iter().product()])
        };
        let mut nodes = vec![
            node("Conv", &["x", "w"], &["patches"], vec![ints_attribute("strides", &[8, 8])]),
            node("Shape", &["patches"], &["shape"], vec![]),
            node("Slice", &["shape", "two", "four"], &["grid"], vec![]),
            node("Reshape", &["patches", "flat"], &["rows"], vec![]),
            node("Transpose", &["rows"], &["tokens"], vec![ints_attribute("perm", &[0, 2, 1])]),
        ];
        nodes.extend(match how {
            "added" => vec![node("Add", &["tokens", "table"], &["placed"], vec![])],
            // Offsets from one patch to the other, of which there are 2 n - 1.
            "offsets" => vec![
                node("Add", &["grid", "grid"], &["twice"], vec![]),
                node("Sub", &["twice", "one"], &["offsets"], vec![]),
                node("Concat", &["ones", "offsets"], &["sizes"], vec![int_attribute("axis", 0)]),
                node("Resize", &["table", "", "", "sizes"], &["resampled"], vec![]),
                node("Identity", &["tokens"], &["placed"], vec![]),
            ],
            _ => vec![node("Identity", &["tokens"], &["placed"], vec![])],
        });
        nodes.push(node("Expand", &["registers", "batch"], &["all_registers"], vec![]));
        nodes.push(node("Concat", &["all_registers", "placed"], &["y"], vec![int_attribute("axis", 1)]));
        let int = |name: &str, values: &[i64]| tensor_from_i64(name.to_string(), &[values.len()], values);
        Model::from_proto(ModelProto {
            graph: Some(GraphProto {
                input: vec![tensor_info("x", DataType::Float, &dims)],
                output: vec![tensor_info("y", DataType::Float, &[None; 3])],
                initializer: vec![
                    weights("w", &[6, 3, 8, 8]),
                    weights("registers", &[1, 4, 6]),
                    weights("table", table),
                    int("flat", &[0, 6, -1]),
                    int("two", &[2]),
                    int("four", &[4]),
                    int("one", &[1]),
                    int("ones", &[1, 2]),
                    int("batch", &[2, 4, 6]),
                ],
                node: nodes,
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    #[test]
    fn tables_decide_the_image_size_where_they_fit() {
        let found = |model: &Model| {
            let typing = Typing::new(model).unwrap();
            (typing.image_size(), typing.size_from)
        };
        assert_eq!(found(&open_model(&[1, 36, 6], "added")), ([48, 48], SizeFrom::Tables));
        // Seven offsets are those of four patches, not seven patches.
        assert_eq!(found(&open_model(&[1, 2, 7, 7], "offsets")), ([32, 32], SizeFrom::Tables));
        // A table of whatever else, and the registers, are no grid.
        let mut open = open_model(&[1, 25, 6], "no table");
        assert_eq!(found(&open), ([224, 224], SizeFrom::Guess));
        open.set_metadata(PREPROCESS, r#"{"size": [40, 72]}"#);
        assert_eq!(found(&open), ([40, 72], SizeFrom::Metadata));
        open.set_metadata(IMAGE_SIZE, "64x56");
        assert_eq!(found(&open), ([64, 56], SizeFrom::Metadata));
        // Tables have more to say than metadata of another size.
        let mut added = open_model(&[1, 36, 6], "added");
        added.set_metadata(IMAGE_SIZE, "64x64");
        assert_eq!(found(&added), ([48, 48], SizeFrom::Tables));
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
