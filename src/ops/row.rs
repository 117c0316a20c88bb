//! A row of the table, and what its columns hold.

use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;

/// An operator set for types that do not depend on the default domain's.
pub(super) const ANY: i64 = 0;

/// A row of the table.
#[derive(Debug)]
pub struct Op {
    /// Its operator set: empty for the default one.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What the dimensions of its outputs are.
    pub shape: ShapeRule,
    /// How many inputs it has, where that is one number and what works on graphs asks for each of them.
    pub inputs: Option<usize>,
    /// How many it has at least, where it is differentiated.
    pub least: usize,
    /// The element type of its outputs.
    pub result: Type,
    /// The operator sets from which on ONNX defines it for float16 and for bfloat16.
    pub(super) half: [Option<i64>; 2],
    /// The operator set from which on ONNX Runtime computes it in bfloat16 on CUDA (seen with 1.31; on the processor it
    /// has none).
    pub cuda_bfloat16: Option<i64>,
    /// What its inputs are for, and those behind the last that is listed.
    pub(super) slots: (&'static [Slot], Slot),
    pub(super) marks: &'static [Mark],
}

/// Where the dimensions of outputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShapeRule {
    /// They are those of the first input.
    Same,
    /// They are what the inputs broadcast to.
    Broadcast,
    /// They are those of the first input, whose channels the other inputs are for.
    Channels,
    /// They are those of the first input without some axes, or with axes of one element.
    Reduce,
    /// A rule of its own says.
    Own,
}

/// Where the element type of outputs comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// It is that of an input.
    Of(usize),
    /// It is an attribute.
    Attribute(&'static str),
    /// Truth values.
    Bool,
    /// Counts and places.
    Int64,
    /// Sums of products of bytes.
    Int32,
}

/// What an input is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// What is computed with.
    Data,
    /// What a norm multiplies by.
    Scale,
    /// What a norm adds.
    Shift,
    /// What is added to a product or before a nonlinearity.
    Bias,
    /// Numbers for each head: masks, biases of scores, caches.
    Heads,
    /// Numbers that are not trained: statistics, angles.
    Constant,
    /// Integers that say how long axes of the output are.
    Sizes,
    /// Other integers that the output's shape is computed from: axes, steps, repeats.
    Places,
    /// How many elements are put before and behind each axis.
    Borders,
    /// Numbers, floats among them, that lengths of the output are computed from: factors, limits, steps.
    Extent,
    /// Where elements are taken from.
    Indices,
}

impl Slot {
    /// True for integers that say what shape the output has.
    pub fn is_of_shape(self) -> bool {
        matches!(self, Slot::Sizes | Slot::Places | Slot::Borders)
    }
}

/// What is true of some operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It moves or chooses numbers and computes nothing: its result has the type of what it is given.
    Moves,
    /// It does to quantised values what it does to numbers.
    MovesQuantised,
    /// It gives the elements of its first input another place, shape or type, and does nothing else to them.
    Keeps,
    /// Of these it gives them another shape alone.
    View,
    /// It is computed number by number, or chooses the largest: in float32 between two nodes of float32.
    Elementwise,
    /// It adds, subtracts, multiplies or divides.
    Arithmetic,
    /// Its results differ from one run to the next.
    Random,
    /// It is flat wherever it has a slope.
    Flat,
    /// It slides a window over an image.
    Window,
    /// It is a nonlinearity that goes by the operator's name; the first in the table that an FFN has names it.
    Activation,
    /// It normalises over the last axes.
    LayerNorm,
    /// Norms that an exporter took apart are made of it, and of means.
    NormStep,
    /// It stands between a mean of squares and the deviation that a norm divides by.
    Deviation,
    /// Behind it an image is still that image.
    Image,
    /// It keeps heads apart, between the scores and what they weight.
    Heads,
    /// A head dimension passes it between a projection and the attention.
    HeadDim,
    /// It computes scores inside that it rounds to its own type, whatever their range.
    Rounds,
    /// It is several operators in one, and taken apart before it is differentiated.
    Composite,
    /// It is younger than the embedded runtime, and taken apart for it.
    Recent,
    /// How many elements it makes depends on numbers.
    Counts,
    /// It computes with quantised values, and the float operator that it approximates is known.
    Dequantised,
}

impl Op {
    /// True where it is marked so.
    pub fn is(&self, mark: Mark) -> bool {
        self.marks.contains(&mark)
    }

    /// True where the table has it.
    pub fn is_known(&self) -> bool {
        !self.name.is_empty()
    }

    /// True where the node is of this operator, and of no namesake in another domain.
    pub fn is_of(&self, node: &NodeProto) -> bool {
        let domain = if node.domain() == "ai.onnx" { "" } else { node.domain() };
        self.name == node.op_type() && self.domain == domain
    }

    /// The operator set from which on ONNX defines it for a half-precision type.
    pub fn half(&self, kind: DataType) -> Option<i64> {
        match kind {
            DataType::Float16 => self.half[0],
            DataType::Bfloat16 => self.half[1],
            _ => None,
        }
    }

    /// What an input is for.
    pub fn slot(&self, input: usize) -> Slot {
        self.slots.0.get(input).copied().unwrap_or(self.slots.1)
    }
}

/// What rows are written with.
impl Op {
    pub(super) const fn new(domain: &'static str, name: &'static str, shape: ShapeRule) -> Op {
        Op {
            domain,
            name,
            shape,
            inputs: None,
            least: 1,
            result: Type::Of(0),
            half: [None, None],
            cuda_bfloat16: None,
            slots: (&[], Slot::Data),
            marks: &[],
        }
    }

    /// It has so many inputs, no more and no less.
    pub(super) const fn takes(mut self, inputs: usize) -> Op {
        self.inputs = Some(inputs);
        self.needs(inputs)
    }

    /// It has so many inputs or more.
    pub(super) const fn needs(mut self, inputs: usize) -> Op {
        self.least = inputs;
        self
    }

    /// Its outputs are of this type.
    pub(super) const fn makes(mut self, result: Type) -> Op {
        self.result = result;
        self
    }

    /// The operator sets from which on it takes float16 and bfloat16.
    pub(super) const fn halves(mut self, float16: i64, bfloat16: i64) -> Op {
        self.half = [Some(float16), Some(bfloat16)];
        self
    }

    /// It takes float16, and no bfloat16.
    pub(super) const fn float16(mut self) -> Op {
        self.half = [Some(ANY), None];
        self
    }

    /// The operator set from which on CUDA computes it in bfloat16.
    pub(super) const fn cuda(mut self, since: i64) -> Op {
        self.cuda_bfloat16 = Some(since);
        self
    }

    pub(super) const fn slots(mut self, slots: &'static [Slot]) -> Op {
        self.slots.0 = slots;
        self
    }

    /// What inputs behind the last slot are for.
    pub(super) const fn then(mut self, slot: Slot) -> Op {
        self.slots.1 = slot;
        self
    }

    pub(super) const fn marks(mut self, marks: &'static [Mark]) -> Op {
        self.marks = marks;
        self
    }
}
