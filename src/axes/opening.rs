//! What changes in a graph whose batch is opened.

use super::factors::Factor;

/// The batch that is being opened, and what has to change for it.
pub(super) struct Opening {
    pub groups: Factor,
    pub corrections: Vec<Correction>,
}

/// What is to change in the inputs of a node.
pub(super) enum Correction {
    /// The target of a Reshape: as it stands there, the sizes that it means, and the axis that images lie on. With
    /// `copies` that axis is the input's own.
    Target { node: usize, target: Vec<i64>, sizes: Vec<usize>, axis: usize, copies: bool },
    /// The shape of an Expand, one of whose axes the input has already.
    Shape { node: usize, shape: Vec<i64>, axis: usize },
    /// The sizes of a Resize, along whose axis images lie.
    Sizes { node: usize, sizes: Vec<i64>, axis: usize },
    /// An operand of a Concat that is the same for all images, along an axis where another operand has them. Where it
    /// has more than one row there, all are the same.
    Repeat { node: usize, input: usize, like: usize, axis: usize, one_row: bool },
}
