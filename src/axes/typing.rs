//! A typed graph, and what is asked of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

use super::arithmetic::{self, ConstValue};
use super::choices::Choices;
use super::factors::{Dim, Factor, Factors, Mismatch};
use super::opening::Opening;
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Links, data_inputs, declared_dims, output_type};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Model, data_type, node_label};
use crate::ops::{self, Mark};

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
    /// The axes of its operands that it sums over, with the factors that each began with. What unification made one
    /// factor still tells the two axes of a square matrix apart by these.
    pub terms: Vec<Dim>,
    /// Multiply-accumulate operations under the assumed input.
    pub macs: u64,
}

/// A part that a Slice takes of an axis.
#[derive(Clone, Debug)]
pub struct AxisSlice {
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
    pub known: HashMap<&'m str, ConstValue>,
    /// Initializers, and tensors of Constant nodes.
    pub weights: HashMap<&'m str, &'m TensorProto>,
    /// Values that depend on no input, once somebody asks.
    pub(super) constants: OnceLock<HashSet<&'m str>>,
    /// Values that are computed from what inputs were fed, once somebody asks.
    pub(super) fed: OnceLock<HashSet<&'m str>>,
    /// Uses of weights.
    pub uses: Vec<Use>,
    /// Contractions.
    pub contractions: Vec<Contraction>,
    /// Parts that slices take.
    pub parts: Vec<AxisSlice>,
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
    pub(super) hidden: HashMap<&'m str, String>,
    /// Dimensions that a node needs as they are.
    pub(super) pinned: Vec<(Dim, usize)>,
    /// Matrices that several contractions take by design.
    pub shared: HashSet<&'m str>,
    /// The factors of these, once somebody asks.
    pub(super) pins: OnceLock<HashMap<Factor, usize>>,
    /// The factor of the batch, if the graph has one.
    pub batch: Option<Factor>,
    /// The version of the default operator set.
    pub opset: i64,
    /// What was assumed.
    pub assumption: Assumption,
    /// True where the first axis of the first input is no batch, but holds the patches of one image.
    pub(super) takes_patches: bool,
    /// The batch that is being opened, if it is.
    pub(super) opening: Option<Opening>,
    /// What shapes choose, where that is to be found out.
    pub(super) choices: Option<Choices>,
    /// How long axes are that inputs leave open, but for the batch and the image.
    pub(super) open_length: usize,
    /// What decided the image size.
    pub size_from: SizeFrom,
    /// Factors that some node takes pieces of, once somebody asks.
    pub(super) taken_apart: OnceLock<HashSet<Factor>>,
    /// Who makes and uses each value, once somebody asks.
    pub(super) links: OnceLock<Links<'m>>,
}

impl<'m> Typing<'m> {
    /// Checks that no dimensions contradict each other.
    ///
    /// # Errors
    /// [`ErrorKind::Typing`] where they do; it names the node.
    pub fn check_consistent(&self) -> Result<()> {
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
    pub(super) fn constant_number(&self, value: &str) -> Option<(ConstValue, DataType)> {
        if let Some(t) = self.weights.get(value) {
            return Some((ConstValue::read(t)?, data_type(t)?));
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
        self.taken_apart.get_or_init(|| self.parted()).contains(&self.factors.root(factor))
    }

    /// The factors that some node takes pieces of out of an axis.
    fn parted(&self) -> HashSet<Factor> {
        let leaves = |x: &String| -> HashSet<Factor> {
            let dims = self.dims.get(x.as_str()).into_iter().flatten();
            dims.flat_map(|d| self.factors.all_leaves(d)).collect()
        };
        let takes = |n: &&NodeProto| matches!(n.op_type(), "Split" | "Slice" | "Gather");
        let lost = |n: &NodeProto| {
            let left: HashSet<Factor> = n.output.iter().flat_map(leaves).collect();
            n.input.first().map(leaves).unwrap_or_default().into_iter().filter(move |f| !left.contains(f))
        };
        self.graph.node.iter().filter(takes).flat_map(lost).collect()
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

/// True where some nodes may be opaque: most models have none, and need not be typed for it.
pub fn holds_unread(model: &Model) -> bool {
    let is_unread =
        |n: &NodeProto| !ops::of(n).is_known() || ops::of(n).is(Mark::Counts) || n.op_type() == "GridSample";
    model.graph().node.iter().any(is_unread)
}

/// True where the last of four dims holds the channels.
pub fn channels_last(dims: &[Option<usize>]) -> bool {
    let few = |d: Option<usize>| matches!(d, Some(1..=4));
    dims.len() == 4 && !few(dims[1]) && few(dims[3])
}
